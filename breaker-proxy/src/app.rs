//! Builds everything in order, runs it, drains it: the only file that knows everyone; it decides nothing.
//!
//! The order is the safety argument: state is locked, the journal is read, kills are in force, the admin plane answers,
//! and only then is the data port bound.

use crate::access::{self, AccessError, Scribe};
use crate::admin::{self, Admin, auth::Token};
use crate::certificates::{CertificateError, Certificates, Watch};
use crate::config::Config;
use crate::config::sight::RequestId;
use crate::control::ledger::{Kill, Ledger, Replay};
use crate::control::record::Record;
use crate::control::save::{Saver, Source};
use crate::control::sweep::SharedSweeper;
use crate::control::task::{CensusRequest, Control};
use crate::data::counts::Shard;
use crate::data::doors::{Arrival, Doors};
use crate::data::notes::Sight;
use crate::data::{Plane, Worker, front, health, link, resolve};
use crate::journal::{self, Journal, JournalError, Pen};
use crate::origin::Origin;
use crate::ports::{Ports, SystemClock, SystemResolver};
use crate::restore::{House, Standings, house};
use crate::snapshot::Current;
use crate::state::{StateDir, StateError};
use breaker_core::{KillLevel, PolicyError, Scope, Senders};
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::LocalOptions;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, interval, sleep};
use tokio_rustls::TlsAcceptor;

/// Accepted connections that may wait in the kernel.
const BACKLOG: i32 = 4096;

/// Bytes of an answer that the kernel takes for a client beyond what it can send at once.
#[cfg(target_os = "linux")]
const UNSENT_MAX: u32 = 128 * 1024;

/// Between two ticks of a worker.
const TICK: Duration = Duration::from_secs(1);

/// Groups and routes there may be, with room to grow by a reload.
pub const SCOPES: u32 = 4096;

/// Data threads, at most.
const WORKERS_MAX: usize = 1024;

/// Why it did not start. Nothing is bound then.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The state directory or the token.
    State(StateError),
    /// The journal.
    Journal(JournalError),
    /// The rules.
    Policy(Vec<PolicyError>),
    /// A live kill or a trip names a scope that the configuration does not have.
    Orphan {
        /// The kill's id, or "a trip".
        what: String,
        /// Its scope.
        scope: String,
    },
    /// What the state blocks does not fit into the tables of keys.
    Crowded {
        /// The kill's id, or "a trip".
        what: String,
        /// Its scope.
        scope: String,
    },
    /// The access log.
    Access(AccessError),
    /// The certificates for clients.
    Certificates(CertificateError),
    /// An address cannot be bound.
    Bind {
        /// The key of the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The system gives no thread, runtime or random bytes.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::State(error) => error.fmt(f),
            StartError::Journal(error) => error.fmt(f),
            StartError::Policy(errors) => {
                for (index, error) in errors.iter().enumerate() {
                    let end = if index == 0 { "" } else { "\n" };
                    write!(f, "{end}{}: {}; {}", error.path, error.problem, error.hint)?;
                }
                Ok(())
            }
            StartError::Orphan { what, scope } => write!(
                f,
                "the state holds {what} on {scope}, which the configuration does not have: a renamed scope must \
                 not set it free. Start with the old name, lift or reset it, then rename"
            ),
            StartError::Crowded { what, scope } => write!(
                f,
                "the state holds {what} on {scope}, and there is no room left among the other blocked keys: raise bounds.keys"
            ),
            StartError::Access(error) => error.fmt(f),
            StartError::Certificates(error) => write!(f, "listen.tls: {error}"),
            StartError::Bind { key, address, error } => {
                write!(
                    f,
                    "{key}: cannot listen on {address}: {error}; stop who has it, or give another address \
                     (`breaker-proxy default > breaker.toml`, change it there, `breaker-proxy run --config breaker.toml`)"
                )
            }
            StartError::System(error) => write!(f, "the system refused: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<StateError> for StartError {
    fn from(error: StateError) -> StartError {
        StartError::State(error)
    }
}

impl From<CertificateError> for StartError {
    fn from(error: CertificateError) -> StartError {
        StartError::Certificates(error)
    }
}

impl From<AccessError> for StartError {
    fn from(error: AccessError) -> StartError {
        StartError::Access(error)
    }
}

impl From<JournalError> for StartError {
    fn from(error: JournalError) -> StartError {
        StartError::Journal(error)
    }
}

/// A proxy that accepts.
pub struct Running {
    data: SocketAddr,
    admin: SocketAddr,
    token: String,
    token_file: Option<PathBuf>,
    state: StateDir,
    facts: Facts,
    plane: &'static Plane,
    drain: Duration,
    stop: watch::Sender<bool>,
    control_stop: Option<oneshot::Sender<()>>,
    workers: Vec<JoinHandle<()>>,
    control: Option<JoinHandle<bool>>,
    journal: Option<JoinHandle<()>>,
    origin: Option<Origin>,
    watch: Option<Watch>,
    scribe: Option<Scribe>,
}

/// What a start found and made; for whoever reads the terminal.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Data threads.
    pub workers: usize,
    /// The number of this start on its state.
    pub boot: u64,
    /// Live kills that were put back in force.
    pub kills: Vec<Kill>,
    /// Scopes that start tripped.
    pub tripped: Vec<String>,
    /// A torn last line was cut off the journal.
    pub torn: bool,
    /// How limits and what was learned came back.
    pub standings: Standings,
}

/// How a stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The last record is on the disk.
    pub durable: bool,
}

/// Starts a proxy with the machine's clocks; returns when both listeners accept.
///
/// # Errors
/// Why it did not start; nothing is bound then.
pub fn start(config: Config) -> Result<Running, StartError> {
    let clock = Box::leak(Box::new(SystemClock::new()));
    start_with(config, Ports { clock, resolver: &SystemResolver })
}

/// Starts a proxy with given doors to the outside.
///
/// # Errors
/// As [`start`].
pub fn start_with(config: Config, ports: Ports) -> Result<Running, StartError> {
    let Ports { clock, resolver } = ports;
    // Know: state, journal, rules, kills.
    let state = StateDir::take(&config.state)?;
    let (token, token_file) = state.token(&config.admin.token)?;
    let mut replay = Replay::default();
    let (mut journal, torn) = Journal::open(state.path(), |entry| replay.take(entry))?;
    let (mut ledger, restored) = replay.end();
    let House { breaker, snapshot, names, stamps, sweeper, seed, standings } =
        house(&config, state.path(), &restored, clock, workers(&config))?;
    if restored.boot > 1 {
        crate::voice::say(&standings.to_string());
    }
    for (scope, stamp) in stamps {
        ledger.restamped(&scope, stamp);
    }

    let facts = Facts {
        workers: workers(&config),
        boot: restored.boot,
        kills: restored.kills,
        tripped: restored.tripped,
        torn,
        standings,
    };
    let certificates = config.listen.tls.as_ref().map(Certificates::load).transpose()?;
    let tls = certificates.as_ref().map(Certificates::server).transpose()?;
    let (log, scribe) = config.access_log.as_ref().map(access::start).transpose()?.unzip();
    let sight = Sight {
        log,
        ids: config.wire.request_id == RequestId::Make,
        spans: config.spans,
        trusted: config.trusted.as_slice().into(),
    };
    let needs_origin = config.routes.iter().any(|route| route.upstream.is_built_in());
    let origin = needs_origin.then(Origin::start).transpose().map_err(StartError::System)?;
    let routes = snapshot.plans.len();
    let (doors, arrivals) = Doors::new(facts.workers);
    let plane: &'static Plane = Box::leak(Box::new(Plane {
        breaker,
        senders: Box::leak(Box::new(Senders::new(facts.workers))),
        current: Current::new(snapshot),
        clock,
        resolver,
        names,
        nudge: Notify::new(),
        shards: (0..facts.workers).map(|_| Shard::new(routes)).collect(),
        bounds: config.bounds,
        deadlines: config.deadlines,
        wire: config.wire,
        draining: AtomicBool::new(false),
        connections: AtomicU64::new(0),
        tls: tls.map(|tls| TlsAcceptor::from(Arc::new(tls))),
        certificates: certificates.clone(),
        doors: Box::leak(Box::new(doors)),
        bells: (0..facts.workers).map(|_| Notify::new()).collect(),
        sight,
        origin: origin.as_ref().map(Origin::address),
    }));

    // Open: the admin plane first, the data plane last.
    let admin_listener = bind(config.listen.admin, false).and_then(listen).map_err(|error| {
        StartError::Bind { key: "listen.admin", address: config.listen.admin, error }
    })?;
    let data_listeners = bind_all(config.listen.data, facts.workers).map_err(|error| {
        StartError::Bind { key: "listen.data", address: config.listen.data, error }
    })?;
    let admin = local(&admin_listener).map_err(StartError::System)?;
    let data = data_listeners
        .first()
        .ok_or_else(|| io::Error::other("no data listener"))
        .and_then(local)
        .map_err(StartError::System)?;
    // From here on something may be admitted. A start that came to nothing has left no trace: the stop before it still was orderly.
    let started =
        Record::Started { boot: facts.boot, version: env!("CARGO_PKG_VERSION").to_owned(), torn };
    let path = state.path().join("journal");
    journal.append(&[(clock.wall(), started)]).map_err(|error| JournalError::Io(path, error))?;
    let (pen, journal) = journal::start(journal).map_err(StartError::System)?;
    let (stop, stopping) = watch::channel(false);
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..facts.workers).map(|_| mpsc::channel::<CensusRequest>(64)).unzip();
    let (control_stop, control_stopping) = oneshot::channel();
    let sweeper: SharedSweeper = Arc::new(Mutex::new(sweeper));
    let saver = Saver::start(Source {
        plane,
        sweeper: Arc::clone(&sweeper),
        dir: state.path().to_owned(),
        boot: facts.boot,
        seed,
        every: config.state.save_every,
    })
    .map_err(StartError::System)?;
    let control = start_control(ControlParts {
        plane,
        ledger,
        pen,
        sweeping: (sweeper, saver),
        workers: senders,
        token: Token::new(&token),
        listener: admin_listener,
        stop: control_stopping,
    })
    .map_err(StartError::System)?;
    let watch = certificates.map(Watch::start).transpose().map_err(StartError::System)?;
    let mut threads = Vec::with_capacity(facts.workers);
    let ways_in = data_listeners.into_iter().zip(arrivals).zip(receivers);
    for (index, ((listener, arrivals), census)) in ways_in.enumerate() {
        let way_in = WayIn { listener, arrivals, census };
        threads.push(
            start_worker(plane, index, way_in, stopping.clone()).map_err(StartError::System)?,
        );
    }
    Ok(Running {
        data,
        admin,
        token,
        token_file,
        state,
        facts,
        plane,
        drain: front_drain(&config),
        stop,
        control_stop: Some(control_stop),
        workers: threads,
        control: Some(control),
        journal: Some(journal),
        origin,
        watch,
        scribe,
    })
}

fn front_drain(config: &Config) -> Duration {
    crate::data::upstream::duration(config.deadlines.drain)
}

/// How many data threads there are.
pub(crate) fn workers(config: &Config) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    config.listen.workers.map_or_else(cores, usize::from).clamp(1, WORKERS_MAX)
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
        // Accepted connections inherit it. Without it a slow client's reading shows only once a third of megabytes have
        // drained, and it looks like one that has stopped.
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// One listener for each worker on the same port: the kernel spreads connections by their addresses, and the workers even that out.
fn bind_all(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    // Without sharing first: another process on the port must be an error, not a silent division of its traffic.
    drop(bind(address, false)?);
    let first = listen(bind(address, true)?)?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(listen(bind(SocketAddr::new(address.ip(), port), true)?)?);
    }
    Ok(listeners)
}

fn local(listener: &TcpListener) -> io::Result<SocketAddr> {
    listener.local_addr()
}

struct ControlParts {
    plane: &'static Plane,
    ledger: Ledger,
    pen: Pen,
    sweeping: (SharedSweeper, Saver),
    workers: Vec<mpsc::Sender<CensusRequest>>,
    token: Token,
    listener: TcpListener,
    stop: oneshot::Receiver<()>,
}

/// Halts everything should the control thread die: without it nobody could stop anything.
struct DeadMan {
    plane: &'static Plane,
    orderly: bool,
}

impl Drop for DeadMan {
    fn drop(&mut self) {
        if !self.orderly {
            let snapshot = self.plane.current.load();
            let now = self.plane.clock.mono();
            let halted =
                self.plane.breaker.kill(&snapshot.policy, &Scope::global(), KillLevel::Halt, now);
            crate::voice::say(&format!(
                "the control thread died; everything is halted: {}",
                halted.is_ok()
            ));
        }
    }
}

fn start_control(parts: ControlParts) -> io::Result<JoinHandle<bool>> {
    let (ready, started) = std_mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("breaker-control".into()).spawn(move || {
        let mut dead_man = DeadMan { plane: parts.plane, orderly: false };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(error));
                return false;
            }
        };
        let durable = runtime.block_on(async move {
            let listener = match tokio::net::TcpListener::from_std(parts.listener) {
                Ok(listener) => listener,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return false;
                }
            };
            let control = Rc::new(Control::new(
                parts.plane,
                parts.ledger,
                parts.pen,
                parts.workers,
                parts.sweeping,
            ));
            let admin = Rc::new(Admin { control: Rc::clone(&control), token: parts.token });
            let _ = ready.send(Ok(()));
            tokio::select! {
                () = admin::accept(admin, listener) => false,
                () = control.sweep() => false,
                _ = parts.stop => control.stopped().await,
            }
        });
        dead_man.orderly = true;
        durable
    })?;
    started.recv().map_err(|_| io::Error::other("the control thread died at its start"))??;
    Ok(thread)
}

/// What reaches a worker.
struct WayIn {
    listener: TcpListener,
    /// Connections that other workers accepted.
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    census: mpsc::Receiver<CensusRequest>,
}

fn start_worker(
    plane: &'static Plane,
    index: usize,
    way_in: WayIn,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let WayIn { listener, arrivals, mut census } = way_in;
    let (ready, started) = std_mpsc::sync_channel(1);
    let thread =
        std::thread::Builder::new().name(format!("breaker-data-{index}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener);
            let (listener, worker) = match (listener, Worker::new(plane, index)) {
                (Ok(listener), Some(worker)) => (listener, worker),
                (Err(error), _) => {
                    let _ = ready.send(Err(error));
                    return;
                }
                (_, None) => {
                    let _ = ready.send(Err(io::Error::other("a mark was taken twice")));
                    return;
                }
            };
            let accepting = tokio::task::spawn_local(front::accept(Rc::clone(&worker), listener, arrivals));
            let tending = tokio::task::spawn_local(link::answer_bell(Rc::clone(&worker)));
            let _ = ready.send(Ok(()));
            let mut tick = interval(TICK);
            loop {
                tokio::select! {
                    Some(answer) = census.recv() => {
                        let now = plane.clock.mono();
                        let found = worker.flights.borrow_mut().census(&worker, now);
                        // The order may have stopped waiting: the calls are woken all the same.
                        let _ = answer.send(found);
                    }
                    _ = tick.tick() => {
                        worker.tick();
                        if index == 0 {
                            resolve::refresh(&worker);
                            health::check(&worker);
                        }
                    }
                    _ = stopping.changed() => break,
                }
            }
            accepting.abort();
            worker.open.end();
            let deadline = Instant::now() + crate::data::upstream::duration(plane.deadlines.drain);
            while worker.open.count() > 0 && Instant::now() < deadline {
                tokio::select! {
                    Some(answer) = census.recv() => {
                        let found = worker.flights.borrow_mut().census(&worker, plane.clock.mono());
                        let _ = answer.send(found);
                    }
                    () = sleep(Duration::from_millis(5)) => {}
                }
            }
            tending.abort();
            worker.pools.clear();
            worker.trunks.clear();
        });
        })?;
    started.recv().map_err(|_| io::Error::other("a data thread died at its start"))??;
    Ok(thread)
}

impl Running {
    /// Where the data plane listens.
    #[must_use]
    pub fn data_addr(&self) -> SocketAddr {
        self.data
    }

    /// Where the admin plane listens.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// The admin token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The file the token stands in, if any.
    #[must_use]
    pub fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// What the start found and made.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The data plane, for looking at its counters.
    #[must_use]
    pub fn plane(&self) -> &'static Plane {
        self.plane
    }

    /// Stops accepting, lets what is in flight run out within the drain deadline, writes the last record.
    #[must_use]
    pub fn stop(mut self) -> Stopped {
        self.end()
    }

    fn end(&mut self) -> Stopped {
        self.plane.drain();
        let _ = self.stop.send(true);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        drop(self.control_stop.take());
        let durable = self.control.take().is_some_and(|control| control.join().unwrap_or(false));
        if let Some(journal) = self.journal.take() {
            let _ = journal.join();
        }
        drop(self.origin.take());
        drop(self.watch.take());
        drop(self.scribe.take());
        Stopped { durable }
    }

    /// How long a stop may take.
    #[must_use]
    pub fn drain(&self) -> Duration {
        self.drain
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.control.is_some() {
            self.end();
        }
    }
}
