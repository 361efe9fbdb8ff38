//! The doors to the outside that tests must be able to hold: the clock and the resolver of names; only this file asks either.

use breaker_core::{Mono, MonotonicClock, Span};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Wall time for people and records: nanoseconds since 1970-01-01 UTC. No decision is made from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(pub u64);

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Monotonic time since the clock was made.
    fn mono(&self) -> Mono;
    /// Wall time.
    fn wall(&self) -> Wall;
}

/// Finds the addresses of a name.
pub trait Resolver: Send + Sync {
    /// The addresses of a host, each with the port. May block.
    ///
    /// # Errors
    /// The system's own.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver.
#[derive(Debug)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        (host, port).to_socket_addrs().map(Iterator::collect)
    }
}

/// All doors.
#[derive(Clone, Copy)]
pub struct Ports {
    /// The clock.
    pub clock: &'static dyn Clock,
    /// The resolver.
    pub resolver: &'static dyn Resolver,
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    clock: MonotonicClock,
}

impl SystemClock {
    /// A clock whose origin is at least one second ago, so that "before now" exists from the start.
    #[must_use]
    pub fn new() -> SystemClock {
        SystemClock { clock: MonotonicClock::new() }
    }
}

impl SystemClock {
    /// Wall time for lines that people read.
    #[must_use]
    pub fn date() -> SystemTime {
        SystemTime::now()
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        self.clock.now().plus(Span::from_secs(1))
    }

    fn wall(&self) -> Wall {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Wall(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug)]
pub struct ManualClock {
    nanos: AtomicU64,
}

impl ManualClock {
    /// A clock that shows one second after its origin.
    #[must_use]
    pub fn new() -> ManualClock {
        ManualClock { nanos: AtomicU64::new(Span::from_secs(1).as_nanos()) }
    }

    /// Moves the time forward.
    pub fn advance(&self, span: Span) {
        // ordering: relaxed, the word is all there is; a test hands it on by its own means.
        self.nanos.fetch_add(span.as_nanos(), Ordering::Relaxed);
    }
}

impl Default for ManualClock {
    fn default() -> ManualClock {
        ManualClock::new()
    }
}

impl Clock for ManualClock {
    fn mono(&self) -> Mono {
        // ordering: relaxed, see `advance`.
        Mono::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Wall {
        Wall(self.mono().as_nanos())
    }
}
