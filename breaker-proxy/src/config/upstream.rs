//! Upstreams as a configuration names them: endpoints, and what may be asked of each; it knows no connection.

use breaker_core::Span;
use std::fmt;
use std::path::PathBuf;

/// Where a route's requests go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// Its name in `[[upstreams]]`; `None` where it stands in the route itself.
    pub name: Option<String>,
    /// The servers it is made of: at least one, each once.
    pub endpoints: Vec<Endpoint>,
    /// What is spoken with them.
    pub protocol: Protocol,
    /// Connections to each endpoint, over all workers, idle ones included.
    pub connections: u32,
    /// Who may wait when an endpoint has as many connections as it may.
    pub queue: Queue,
    /// When an endpoint that fails is left alone.
    pub mark_down: MarkDown,
    /// How long the addresses of a name are taken for good.
    pub dns_refresh: Span,
    /// Who may have signed the certificates of its endpoints, as a file in PEM; `None`: whom the system trusts.
    pub ca: Option<PathBuf>,
    /// How each endpoint is checked; `None`: it is not.
    pub health: Option<Health>,
}

impl Upstream {
    /// These endpoints, with the default of everything else.
    #[must_use]
    pub fn plain(endpoints: Vec<Endpoint>) -> Upstream {
        Upstream {
            name: None,
            endpoints,
            protocol: Protocol::Http1,
            connections: 10_000,
            queue: Queue { calls: 1_000, wait: Span::from_secs(1) },
            mark_down: MarkDown {
                after: 3,
                hold: Span::from_secs(1),
                at_most: Span::from_secs(60),
            },
            dns_refresh: Span::from_secs(30),
            ca: None,
            health: None,
        }
    }

    /// Does any of its requests go to the built-in origin?
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.endpoints.contains(&Endpoint::BuiltIn)
    }
}

/// What is spoken with an upstream, by the names that TLS has for it (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `http/1.1`: a connection carries one call at a time.
    Http1,
    /// `h2`: a connection carries many calls at once. Without TLS it is spoken from the first byte on.
    Http2,
}

impl Protocol {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Http1 => "http/1.1",
            Protocol::Http2 => "h2",
        }
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// The small origin that is built in, for trying things out.
    BuiltIn,
    /// `http://host:port`.
    Http {
        /// A name or an address, as it stands in the URL (IPv6 without brackets).
        host: String,
        /// The port; 80 where the URL has none.
        port: u16,
    },
    /// `https://host:port`. The host is what its certificate must be for.
    Https {
        /// As above.
        host: String,
        /// The port; 443 where the URL has none.
        port: u16,
    },
}

impl Endpoint {
    /// Host and port; `None` for the built-in origin.
    #[must_use]
    pub fn server(&self) -> Option<(&str, u16)> {
        match self {
            Endpoint::BuiltIn => None,
            Endpoint::Http { host, port } | Endpoint::Https { host, port } => Some((host, *port)),
        }
    }

    /// Does it speak TLS?
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self, Endpoint::Https { .. })
    }
}

/// As it is written in a configuration.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls() { "https" } else { "http" };
        match self.server() {
            None => f.write_str("builtin:origin"),
            Some((host, port)) if host.contains(':') => write!(f, "{scheme}://[{host}]:{port}"),
            Some((host, port)) => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// Who may wait for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Calls that wait at once, over all endpoints and workers; 0: nobody waits.
    pub calls: u32,
    /// How long each waits at most.
    pub wait: Span,
}

/// When an endpoint that fails is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MarkDown {
    /// After so many failures in a row.
    pub after: u32,
    /// For how long at first; each trial that fails doubles it.
    pub hold: Span,
    /// The longest hold.
    pub at_most: Span,
}

/// How an endpoint is checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Health {
    /// What is asked for, with a query if it has one.
    pub path: String,
    /// From the beginning of one check to the next.
    pub every: Span,
    /// How long each may take.
    pub within: Span,
    /// So many failures in a row make it sick.
    pub fail: u32,
    /// So many in a row that pass make it well again.
    pub pass: u32,
}
