//! The configuration as the rest of the program sees it: only valid values; it reads no file and binds nothing.

pub mod advice;
pub mod check;
mod raw;
pub mod sight;
pub mod upstream;
mod value;

use crate::inspect::certificate::Part;
use crate::inspect::json::Pointer;
use breaker_core::{PolicyError, PolicySpec, Span};

use ipnet::IpNet;
use sight::{AccessLog, RequestId};
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use upstream::Upstream;

/// A configuration that passed every check.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// The state directory.
    pub state: State,
    /// Who may use the admin plane.
    pub admin: Admin,
    /// Upper bounds of what a client may make us hold.
    pub bounds: Bounds,
    /// How long each phase of a call may take.
    pub deadlines: Deadlines,
    /// What our own answers and forwarded requests look like.
    pub wire: Wire,
    /// Networks of those in front of us whose word on the client's address is taken.
    pub trusted: Vec<IpNet>,
    /// The access log; `None`: there is none.
    pub access_log: Option<AccessLog>,
    /// Requests have spans.
    pub spans: bool,
    /// The rules, as the core compiles them. Its groups and routes stand in the order of the two lists below.
    pub policy: PolicySpec,
    /// Where the keys declared at the global level come from, in the order of `policy.global.keys`.
    pub global_keys: Vec<KeySource>,
    /// One entry for each of `policy.groups`.
    pub groups: Vec<Group>,
    /// One entry for each of `policy.routes`.
    pub routes: Vec<Route>,
}

/// Addresses and threads.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// The data plane.
    pub data: SocketAddr,
    /// The admin plane.
    pub admin: SocketAddr,
    /// Data threads; `None`: one for each core.
    pub workers: Option<u16>,
    /// How clients of the data plane connect; `None`: in clear.
    pub tls: Option<Tls>,
    /// Each connection begins with a header of the PROXY protocol, from one of [`Config::trusted`].
    pub proxy_protocol: bool,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The file of the server's certificate and its chain.
    pub certificate: PathBuf,
    /// The file of its private key.
    pub key: PathBuf,
    /// Certificates of clients; `None`: none is asked for.
    pub clients: Option<ClientCertificates>,
}

/// What is asked of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The file of the authorities that sign them.
    pub authorities: PathBuf,
    /// Whether a client without one is refused. One that is shown is always verified.
    pub required: bool,
}

/// Where standing kills, the token and the lock live.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The directory; created where it is missing unless `required`.
    pub dir: PathBuf,
    /// Refuse to start on a directory without a journal.
    pub required: bool,
    /// How often limits and what detectors learned are saved while it runs.
    pub save_every: Span,
}

/// Access to the admin plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Where the bearer token comes from.
    pub token: TokenSource,
}

/// Where the bearer token comes from. There is no default token.
#[derive(Clone, PartialEq)]
pub enum TokenSource {
    /// Made at first start from the system's random source, kept in the state directory (mode 0600).
    Generated,
    /// Read from this file at start.
    File(PathBuf),
    /// Given in the configuration, by `${ENV}`.
    Value(String),
}

/// Says where the token comes from, never what it is: a configuration ends up in logs.
impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenSource::Generated => f.write_str("Generated"),
            TokenSource::File(path) => f.debug_tuple("File").field(path).finish(),
            TokenSource::Value(_) => f.write_str("Value(<redacted>)"),
        }
    }
}

/// Upper bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Open client connections, over all workers.
    pub connections: u32,
    /// Bytes of a request head.
    pub head_bytes: u32,
    /// Fields of a request head.
    pub fields: u16,
    /// Bytes of a request body that is looked into for keys and weights; a longer one is not.
    pub inspect_bytes: u32,
    /// Bodies that are looked into at once, over all workers.
    pub inspecting: u32,
    /// Bytes of a request body; `None`: unbounded (it is streamed either way).
    pub body_bytes: Option<u64>,
    /// Concurrent HTTP/2 streams of one connection.
    pub streams: u32,
    /// Bytes of one HTTP/2 connection that are held in memory: of request bodies that nobody has asked for yet, and of answers that
    /// wait for the client.
    pub connection_bytes: u32,
    /// Bytes of a request body that must come in a second; `None`: any number.
    pub upload_rate: Option<NonZeroU32>,
    /// Bytes of an answer that the client must take in a second; `None`: any number.
    pub download_rate: Option<NonZeroU32>,
    /// Key cells of each dimension.
    pub keys: u32,
}

/// Deadlines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deadlines {
    /// From the first moment of a connection, or from the first byte of a later request, to a whole request head.
    pub head: Span,
    /// From the end of an answer to the first byte of the next request.
    pub idle: Span,
    /// From a request's head to the end of what is looked into of its body.
    pub inspect: Span,
    /// Without a byte of a body in either direction.
    pub body_idle: Span,
    /// To connect to an upstream.
    pub connect: Span,
    /// From the last byte of the request to the head of the upstream's answer.
    pub answer: Span,
    /// Without a byte in either direction of a WebSocket.
    pub tunnel: Span,
    /// To finish what is in flight when stopping.
    pub drain: Span,
}

/// Conventions on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wire {
    /// Send `RateLimit` and `RateLimit-Policy` with a 429.
    pub rate_limit_fields: bool,
    /// Which fields tell the upstream about the client. What a client sent of either is removed, unless it is a trusted proxy.
    pub forwarded: Forwarded,
    /// Whether requests have ids of ours.
    pub request_id: RequestId,
}

/// Which fields tell the upstream about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// `X-Forwarded-For`, `X-Forwarded-Proto`, `X-Forwarded-Host`.
    XForwarded,
    /// RFC 7239 `Forwarded`.
    Forwarded,
    /// Both.
    Both,
    /// Neither.
    None,
}

/// What the proxy knows of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Sources of the group's keys, in the order of its spec.
    pub keys: Vec<KeySource>,
}

/// What the proxy knows of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Which requests it takes.
    pub matches: Match,
    /// Where they go.
    pub upstream: Upstream,
    /// An answer whose head takes longer is slow; `None`: none is.
    pub slow: Option<Span>,
    /// A request that asks for it may go on as a WebSocket.
    pub websocket: bool,
    /// Sources of the route's keys, in the order of its spec.
    pub keys: Vec<KeySource>,
    /// How much its calls weigh; `None`: nothing asks.
    pub weight: Option<Weight>,
    /// Where its answers say how much they weighed; `None`: what was charged stands.
    pub settle: Option<Settle>,
}

/// Which requests a route takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Lower-case host without port, IPv6 in brackets; `None`: any.
    pub host: Option<String>,
    /// Upper-case methods; empty: any.
    pub methods: Vec<http::Method>,
    /// A pattern: `/orders`, `/orders/{id}`, `/files/{*rest}`; `/{*rest}` also takes `/`.
    /// Parameters are whole segments; the rest of it is canonical as [`crate::path::canonical`] understands it.
    pub path: String,
}

impl Match {
    /// The path without the names of its parameters: two routes with one shape take the same paths.
    #[must_use]
    pub fn shape(&self) -> String {
        let mut shape = String::with_capacity(self.path.len());
        for segment in self.path.split('/').skip(1) {
            shape.push('/');
            shape.push_str(match segment {
                rest if rest.starts_with("{*") => "{*}",
                parameter if parameter.starts_with('{') => "{}",
                literal => literal,
            });
        }
        shape
    }
}

/// Where the value of a key dimension comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySource {
    /// The part of the request.
    pub from: KeyFrom,
    /// What happens to a request that lacks it.
    pub missing: Missing,
    /// What happens to a request in which that part cannot be read.
    pub unreadable: Unreadable,
}

/// A part of a request. One that stands there twice, or in a form that only some readers take for it, is refused in every case.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyFrom {
    /// A field of the head.
    Header(http::HeaderName),
    /// A parameter of the query.
    Query(String),
    /// A segment of the path.
    Segment(Segment),
    /// The peer's address: IPv4 whole, IPv6 by its /64.
    Peer,
    /// The client's address as `X-Forwarded-For` tells it, over so many hops at most, each of them trusted. From a peer that is
    /// not trusted, its own address.
    Forwarded(u8),
    /// A claim of the bearer token, which nobody here verifies.
    Claim(Pointer),
    /// A value in a JSON body.
    Json(Pointer),
    /// A field of a form in the body.
    Form(String),
    /// A part of the certificate that the client showed, which was verified.
    Certificate(Part),
}

impl KeyFrom {
    /// Whether every request has it.
    #[must_use]
    pub const fn is_always_there(&self) -> bool {
        matches!(self, KeyFrom::Peer | KeyFrom::Forwarded(_))
    }

    /// Whether it stands in the body.
    #[must_use]
    pub const fn is_in_body(&self) -> bool {
        matches!(self, KeyFrom::Json(_) | KeyFrom::Form(_))
    }
}

/// It as a client knows it.
impl fmt::Display for KeyFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyFrom::Header(name) => write!(f, "the field `{name}`"),
            KeyFrom::Query(name) => write!(f, "the query parameter `{name}`"),
            KeyFrom::Segment(Segment::Named(name)) => write!(f, "the path segment `{{{name}}}`"),
            KeyFrom::Segment(Segment::At(place)) => write!(f, "path segment {place}"),
            KeyFrom::Peer => f.write_str("the peer's address"),
            KeyFrom::Forwarded(_) => f.write_str("the field `x-forwarded-for`"),
            KeyFrom::Claim(claim) => write!(f, "the token's claim `{}`", claim.as_str()),
            KeyFrom::Json(pointer) => write!(f, "the JSON value at `{}`", pointer.as_str()),
            KeyFrom::Form(name) => write!(f, "the form field `{name}`"),
            KeyFrom::Certificate(part) => {
                let word = Part::ALL.iter().find(|(_, own)| own == part);
                let word = word.map_or("", |(word, _)| *word);
                write!(f, "the client certificate's `{word}`")
            }
        }
    }
}

/// A segment of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The one that a parameter of the route's path takes.
    Named(String),
    /// The one at this place, counted from 1.
    At(u8),
}

/// What happens to a request in which a key's part is there but cannot be read: a body that is encoded, of another type, too long or
/// malformed, a token without claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Refused.
    Refuse,
    /// As if the key were missing.
    Missing,
}

/// How the answers of a route say what its calls really weighed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// Where it stands.
    pub from: SettleFrom,
    /// Decimal places of the unit, as of a weight.
    pub scale: u8,
    /// What a call weighed whose whole answer does not say it; `None`: what was charged.
    pub missing: Option<u64>,
}

impl Settle {
    /// Whether the body of an answer must be seen, and so must be readable.
    #[must_use]
    pub fn looks_into_body(&self) -> bool {
        matches!(self.from, SettleFrom::Body { .. })
    }
}

/// Where an answer says what its call weighed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettleFrom {
    /// In a field of its head.
    Header(http::HeaderName),
    /// In its body, by what that is. At least one is there.
    Body {
        /// In a JSON document.
        json: Option<Pointer>,
        /// In the JSON data of a server-sent event; of several the last.
        events: Option<Pointer>,
    },
}

/// How much a call weighs.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight {
    /// Always the same.
    Constant(u64),
    /// The bytes of its body, as its head says. A body of unknown length is refused.
    Length,
    /// A quantity in the request, or the product of two.
    Quantity {
        /// Where it stands.
        from: KeyFrom,
        /// By what it is multiplied.
        times: Option<KeyFrom>,
        /// Decimal places of the unit: with 2, `1.5` weighs 150. What is finer is rounded up.
        scale: u8,
        /// What a call weighs that lacks one of them; `None`: it is refused. One that cannot be read is refused in every case.
        missing: Option<u64>,
    },
}

/// What happens to a request that lacks a declared key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// 400.
    Refuse,
    /// All such requests share one cell.
    Share,
    /// The dimension is not charged for such a request. Never a default, and only valid where every lineage that
    /// holds the dimension has another one that does not skip, so that leaving the key out is no way around.
    Skip,
}

/// One error of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where: `routes.orders.limit[1].window`, or `breaker.toml:3:7` where the text is not TOML.
    pub path: String,
    /// What is wrong there.
    pub problem: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

/// One line: `path: problem; hint`.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// What the core found in the rules has the same shape.
impl From<PolicyError> for ConfigError {
    fn from(error: PolicyError) -> ConfigError {
        ConfigError { path: error.path, problem: error.problem, hint: error.hint }
    }
}

/// All errors of a configuration, in the order of the sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One line for each error.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<Vec<PolicyError>> for ConfigErrors {
    fn from(errors: Vec<PolicyError>) -> ConfigErrors {
        ConfigErrors(errors.into_iter().map(ConfigError::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Admin, ConfigErrors, TokenSource};
    use breaker_core::PolicyError;
    use std::path::PathBuf;

    /// Goal: a token in a configuration never reaches a log by way of `Debug`.
    #[test]
    fn debug_says_where_the_token_comes_from_and_not_what_it_is() {
        let admin = Admin { token: TokenSource::Value("correct-horse-battery".to_owned()) };
        assert_eq!(format!("{admin:?}"), "Admin { token: Value(<redacted>) }");
        let file = TokenSource::File(PathBuf::from("/run/token"));
        assert_eq!(format!("{file:?}"), "File(\"/run/token\")");
        assert_eq!(format!("{:?}", TokenSource::Generated), "Generated");
    }

    /// Goal: what the core finds is printed like what we find, one line each, without a dangling separator.
    #[test]
    fn errors_of_the_core_print_like_ours() {
        let found = vec![
            PolicyError {
                path: "routes.a".into(),
                problem: "is odd".into(),
                hint: "mend it".into(),
            },
            PolicyError { path: "routes.b".into(), problem: "is even".into(), hint: String::new() },
        ];
        let errors = ConfigErrors::from(found);
        assert_eq!(errors.to_string(), "routes.a: is odd; mend it\nroutes.b: is even");
    }
}
