//! The data plane: all that a request may see; it knows neither ledger, journal, config file nor admin.

pub mod alarm;
pub mod answer;
pub mod body;
pub mod cable;
pub mod channel;
pub mod counts;
pub mod doors;
pub mod download;
pub mod downstream;
pub mod endpoint;
pub mod failure;
pub mod flight;
pub mod front;
pub mod handle;
pub mod health;
pub mod http1;
pub mod http2;
pub mod inspect;
pub mod interim;
pub mod lane;
pub mod link;
pub mod names;
pub mod notes;
pub mod outbox;
pub mod pace;
pub mod peer;
pub mod reply;
pub mod resolve;
pub mod room;
pub mod session;
pub mod settle;
pub mod socket;
pub mod strand;
pub mod stream;
pub mod streamed;
pub mod times;
pub mod trunk;
pub mod trust;
pub mod tunnel;
pub mod upload;
pub mod upstream;
pub mod visit;
pub mod watched;

use crate::access::BATCH;
use crate::certificates::Certificates;
use crate::config::sight::LogFormat;
use crate::config::{Bounds, Deadlines, Wire};
use crate::ports::{Clock, Resolver};
use crate::snapshot::Current;
use crate::wire::asked::Line;
use crate::wire::ids;
use breaker_core::{Breaker, Sender, Senders};
use counts::Shard;
use doors::Doors;
use ipnet::IpNet;
use names::Names;
use notes::Sight;
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// Seconds between two looks at idle upstream connections.
const REAP_EVERY: u64 = 5;

/// Bytes that are read at once, where it is not known that more will come.
const SCRATCH: usize = 16 * 1024;

/// Heads whose memory a worker keeps.
const SPARE_MAX: usize = 64;

/// Bytes of each.
const SPARE_BYTES: usize = 2048;

/// What all workers share. One is leaked for the life of the process, so that no request counts references.
pub struct Plane {
    /// Every cell there is.
    pub breaker: &'static Breaker,
    /// One mark for each worker: see [`breaker_core::Senders`].
    pub senders: &'static Senders,
    /// The rules and routes in force.
    pub current: Current,
    /// The clock.
    pub clock: &'static dyn Clock,
    /// Finds the addresses of upstreams.
    pub resolver: &'static dyn Resolver,
    /// Labels of keys and ids of kills, for answers and status.
    pub names: Names,
    /// Tells the sweeper that a gate moved; it has no content.
    pub nudge: Notify,
    /// Counters, one shard for each worker.
    pub shards: Box<[Shard]>,
    /// Upper bounds.
    pub bounds: Bounds,
    /// Deadlines.
    pub deadlines: Deadlines,
    /// Conventions on the wire.
    pub wire: Wire,
    /// Set once, when stopping.
    pub draining: AtomicBool,
    /// Client connections over all workers.
    pub connections: AtomicU64,
    /// Networks of those in front of us whose word on a client is taken.
    pub trusted: Box<[IpNet]>,
    /// Each connection begins with a header of the PROXY protocol, from one of these.
    pub proxied: bool,
    /// How clients connect by TLS; `None`: in clear.
    pub tls: Option<TlsAcceptor>,
    /// The certificate that they are shown.
    pub certificates: Option<Arc<Certificates>>,
    /// The ways in to the workers.
    pub doors: &'static Doors,
    /// One bell for each worker: rung when another waits for a connection to an endpoint that it may hold idle.
    pub bells: Box<[Notify]>,
    /// Who looks at requests one by one.
    pub sight: Sight,
    /// The address of the built-in origin, where a route uses it.
    pub origin: Option<std::net::SocketAddr>,
}

impl Plane {
    /// Is the word of whoever is at this address taken on whom it speaks for?
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// From now on `/ready` says no.
    pub fn drain(&self) {
        // ordering: relaxed, a flag on its own.
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Is it stopping?
    #[must_use]
    pub fn is_draining(&self) -> bool {
        // ordering: relaxed, as above.
        self.draining.load(Ordering::Relaxed)
    }
}

/// One data thread: a runtime, a listener, an upstream pool and one mark.
pub struct Worker {
    /// What it shares with the others.
    pub plane: &'static Plane,
    /// Which of the workers it is.
    pub index: usize,
    /// Its shard of the counters.
    pub shard: &'static Shard,
    /// Its mark.
    pub sender: Sender<'static>,
    /// Idle upstream connections, and who waits for one.
    pub pools: link::Pools,
    /// Upstream connections that carry many calls each.
    pub trunks: trunk::Trunks,
    /// Its calls in flight.
    pub flights: RefCell<flight::Flights>,
    /// Its client connections.
    pub open: front::Open,
    /// Seconds since it started, as its own tick counts them.
    pub second: Cell<u64>,
    /// Where it reads what is small or not known to be large.
    pub scratch: RefCell<Box<[u8]>>,
    /// Where the lines of a head are noted while it is read.
    pub lines: RefCell<Vec<Line>>,
    /// Memory for the courses of requests, for the next.
    pub courses: RefCell<Vec<Rc<visit::Course>>>,
    /// Lines of the access log that were not handed over yet.
    log: RefCell<Vec<u8>>,
    /// What its ids begin with, and how many it has made.
    ids: Cell<(u64, u64)>,
    /// Bodies that are being looked into.
    pub inspecting: Cell<u32>,
    /// Bytes of answers that are held to be looked into.
    pub tapped: Cell<usize>,
    /// Memory of heads that were sent, for the next.
    spare: RefCell<Vec<Vec<u8>>>,
    /// The date in the words of HTTP, and in which second it was written down.
    date: RefCell<(u64, String)>,
}

impl Worker {
    /// Once a second: ends what stalls, drops idle connections that are old or dead.
    pub fn tick(&self) {
        let second = self.second.get() + 1;
        self.second.set(second);
        // One second of grace, since a tick may come right after the question.
        let idle = self.plane.deadlines.body_idle.as_secs_ceil() + 1;
        self.flights.borrow_mut().forget_ended();
        if let Some(since) = second.checked_sub(idle) {
            let ended = self.flights.borrow_mut().end_stalled(since);
            self.shard.stalled_clients.add(ended);
        }
        self.hand_over_log();
        if second.is_multiple_of(REAP_EVERY) {
            let now = tokio::time::Instant::now();
            self.pools.reap(now);
            self.trunks.reap(now);
        }
    }

    /// Calls `say` with the date in the words of HTTP (RFC 9110, 5.6.7). It is written down once a second.
    pub fn dated(&self, say: impl FnOnce(&str)) {
        let mut date = self.date.borrow_mut();
        let (second, text) = &mut *date;
        if text.is_empty() || *second != self.second.get() {
            *second = self.second.get();
            let wall = Duration::from_nanos(self.plane.clock.wall().0);
            *text = httpdate::fmt_http_date(UNIX_EPOCH + wall);
        }
        say(text);
    }

    /// An id that no other request has.
    pub fn new_id(&self) -> [u8; 32] {
        let (maker, number) = self.ids.get();
        self.ids.set((maker, number.wrapping_add(1)));
        ids::make(maker, number)
    }

    /// Lets a line be written for the access log, if there is one and it has room. Lines are handed over together, once a second or
    /// when they are many: nobody is woken for each.
    pub fn log(&self, line: impl FnOnce(LogFormat, &mut Vec<u8>)) {
        let Some(access) = &self.plane.sight.log else { return };
        if self.log.borrow().len() >= BATCH {
            self.hand_over_log();
        }
        let mut lines = self.log.borrow_mut();
        if lines.len() >= BATCH {
            self.shard.unlogged.up();
            return;
        }
        if lines.capacity() == 0 {
            lines.reserve(BATCH.saturating_add(BATCH / 4));
        }
        line(access.format, &mut lines);
        self.shard.logged.up();
    }

    /// Hands over what lines there are, if there is room for them.
    fn hand_over_log(&self) {
        let Some(access) = &self.plane.sight.log else { return };
        let lines = self.log.take();
        if !lines.is_empty()
            && let Err(lines) = access.hand_over(lines)
        {
            *self.log.borrow_mut() = lines;
        }
    }

    /// Memory for a head.
    #[must_use]
    pub fn take_spare(&self) -> Vec<u8> {
        self.spare.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(SPARE_BYTES))
    }

    /// Memory of a head that was sent.
    pub fn give_spare(&self, mut head: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX && (1..=SPARE_BYTES).contains(&head.capacity()) {
            head.clear();
            spare.push(head);
        }
    }

    /// The worker with this index; `None` if its mark is taken already, or the system has no random bytes.
    #[must_use]
    pub fn new(plane: &'static Plane, index: usize) -> Option<Rc<Worker>> {
        Some(Rc::new(Worker {
            plane,
            index,
            shard: plane.shards.get(index)?,
            sender: plane.senders.sender(index)?,
            pools: link::Pools::default(),
            trunks: trunk::Trunks::default(),
            flights: RefCell::default(),
            open: front::Open::default(),
            second: Cell::new(0),
            scratch: RefCell::new(vec![0; SCRATCH].into()),
            lines: RefCell::default(),
            courses: RefCell::default(),
            log: RefCell::default(),
            ids: Cell::new((getrandom::u64().ok()?, 0)),
            inspecting: Cell::new(0),
            tapped: Cell::new(0),
            spare: RefCell::default(),
            date: RefCell::default(),
        }))
    }
}

/// The last lines are written, too.
impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(access) = &self.plane.sight.log {
            access.hand_over_last(self.log.take());
        }
    }
}
