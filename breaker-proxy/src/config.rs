//! The configuration as the rest of the program sees it: only valid values; it reads no file and binds nothing.

pub mod check;
pub mod raw;

use breaker_core::{PolicySpec, Span};
use std::net::SocketAddr;
use std::path::PathBuf;

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
}

/// Where standing kills, the token and the lock live.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The directory; created where it is missing unless `required`.
    pub dir: PathBuf,
    /// Refuse to start on a missing or empty directory.
    pub required: bool,
}

/// Access to the admin plane.
#[derive(Clone, PartialEq)]
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

/// Upper bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Open client connections, over all workers.
    pub connections: u32,
    /// Bytes of a request head.
    pub head_bytes: u32,
    /// Fields of a request head.
    pub fields: u16,
    /// Bytes of a request body; `None`: unbounded (it is streamed either way).
    pub body_bytes: Option<u64>,
    /// Concurrent HTTP/2 streams of one connection.
    pub streams: u32,
    /// Key cells of each dimension.
    pub keys: u32,
}

/// Deadlines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deadlines {
    /// From the first moment of a connection, or from the end of the last answer, to a whole request head.
    pub head: Span,
    /// Without a byte of a body in either direction.
    pub body_idle: Span,
    /// To connect to an upstream.
    pub connect: Span,
    /// From the last byte of the request to the head of the upstream's answer.
    pub answer: Span,
    /// To finish what is in flight when stopping.
    pub drain: Span,
}

/// Conventions on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wire {
    /// Send `RateLimit` and `RateLimit-Policy` with a 429.
    pub rate_limit_fields: bool,
    /// Which fields tell the upstream about the client. What a client sent of either is removed in every case.
    pub forwarded: Forwarded,
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
    /// Sources of the route's keys, in the order of its spec.
    pub keys: Vec<KeySource>,
}

/// Which requests a route takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Lower-case host without port; `None`: any.
    pub host: Option<String>,
    /// Upper-case methods; empty: any.
    pub methods: Vec<http::Method>,
    /// A pattern: `/orders`, `/orders/{id}`, `/files/{*rest}`; `/{*rest}` also takes `/`.
    pub path: String,
}

/// Where a route's requests go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// The small origin that is built in, for trying things out.
    BuiltIn,
    /// `http://host:port`.
    Http {
        /// A name or an address, as it stands in the URL (IPv6 without brackets).
        host: String,
        /// The port; 80 where the URL has none.
        port: u16,
    },
}

/// Where the value of a key dimension comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySource {
    /// The part of the request.
    pub from: KeyFrom,
    /// What happens to a request that lacks it.
    pub missing: Missing,
}

/// A part of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyFrom {
    /// A field of the head; twice the same field is refused.
    Header(http::HeaderName),
    /// The peer's address: IPv4 whole, IPv6 by its /64.
    Peer,
}

/// What happens to a request that lacks a declared key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// 400.
    Refuse,
    /// All such requests share one cell.
    Share,
}
