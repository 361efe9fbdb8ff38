//! A whole proxy for one test, with a state of its own on free ports; it judges nothing but that its accounts balance.

pub(crate) mod h2;
pub(crate) mod h2_server;
pub(crate) mod tls;
pub(crate) mod upstream;
pub(crate) mod wire;

use breaker_core::Span;
use breaker_proxy::app::{self, Running, StartError};
use breaker_proxy::config::{Config, check};
use breaker_proxy::data::Plane;
use breaker_proxy::ports::{Clock, ManualClock, Ports, Resolver, SystemClock, SystemResolver};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wire::{Answer, Wire};

/// Nothing in a test waits longer than this: what hangs fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) const TOKEN: &str = "0123456789abcdef-token";

/// Asks until there is an answer, and fails after [`LIMIT`].
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::yield_now();
    }
}

/// A directory that goes with the test; in memory where the system has such a place. A kill's answer waits half a second for
/// the disk, and a disk that others keep busy may take longer: that is not what is tested here.
pub(crate) fn room() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    made.unwrap()
}

/// Panics on the proxy's own threads. They are caught there, so that only a hook sees them.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if thread.name().is_some_and(|name| name.starts_with("breaker-")) {
                // ordering: relaxed, a number on its own.
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(info);
        }));
    });
}

/// What a proxy is started on. The sections hold lines of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) workers: u16,
    pub(crate) bounds: &'static str,
    pub(crate) deadlines: &'static str,
    pub(crate) wire: &'static str,
    pub(crate) required: bool,
    pub(crate) rules: String,
}

impl Setup {
    /// The groups and routes are `rules`.
    pub(crate) fn new(rules: String) -> Setup {
        Setup { workers: 1, bounds: "", deadlines: "", wire: "", required: false, rules }
    }

    /// One route `/default/api` that takes everything, with more lines of its own.
    pub(crate) fn route(upstream: SocketAddr, lines: &str) -> Setup {
        Setup::new(format!(
            "[[routes]]\nname = \"api\"\nmatch = {{ path = \"/{{*rest}}\" }}\n\
             upstream = \"http://{upstream}\"\n{lines}\n"
        ))
    }

    /// The text of the configuration.
    pub(crate) fn text(&self, state: &Path) -> String {
        let Setup { workers, bounds, deadlines, wire, required, rules } = self;
        let keys = if bounds.contains("keys") { "" } else { "keys = 256" };
        let drain = if deadlines.contains("drain") { "" } else { "drain = \"5s\"" };
        let dir = state.display();
        format!(
            "[listen]\ndata = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = {workers}\n\
             [state]\ndir = \"{dir}\"\nrequired = {required}\n[admin]\ntoken = \"{TOKEN}\"\n\
             [bounds]\n{keys}\n{bounds}\n[deadlines]\n{drain}\n{deadlines}\n[wire]\n{wire}\n{rules}"
        )
    }

    fn config(&self, state: &Path) -> Config {
        check::load(&self.text(state), "test", &|_| None).unwrap()
    }

    /// Starts on an empty state.
    pub(crate) fn start(&self) -> Proxy {
        let root = room();
        let state = root.path().join("state");
        Proxy::new(self.try_start(&state).unwrap(), None, Some(root), state)
    }

    /// Starts on an empty state, with a clock that only the test moves.
    pub(crate) fn start_clocked(&self) -> Proxy {
        count_panics();
        let root = room();
        let state = root.path().join("state");
        let clock: &'static ManualClock = Box::leak(Box::new(ManualClock::new()));
        let ports = Ports { clock, resolver: &SystemResolver };
        let running = app::start_with(self.config(&state), ports).unwrap();
        Proxy::new(running, Some(clock), Some(root), state)
    }

    /// Starts on an empty state, with a clock of the test's own.
    pub(crate) fn start_with_clock(&self, clock: &'static dyn Clock) -> Proxy {
        count_panics();
        let root = room();
        let state = root.path().join("state");
        let ports = Ports { clock, resolver: &SystemResolver };
        let running = app::start_with(self.config(&state), ports).unwrap();
        Proxy::new(running, None, Some(root), state)
    }

    /// Starts on an empty state, with a resolver that the test holds.
    pub(crate) fn start_with_names(&self, resolver: &'static dyn Resolver) -> Proxy {
        count_panics();
        let root = room();
        let state = root.path().join("state");
        let ports = Ports { clock: Box::leak(Box::new(SystemClock::new())), resolver };
        let running = app::start_with(self.config(&state), ports).unwrap();
        Proxy::new(running, None, Some(root), state)
    }

    /// Starts on a state that is there, with a clock of its own that only the test moves.
    pub(crate) fn start_on_clocked(&self, state: &Path) -> Proxy {
        count_panics();
        let clock: &'static ManualClock = Box::leak(Box::new(ManualClock::new()));
        let running =
            app::start_with(self.config(state), Ports { clock, resolver: &SystemResolver })
                .unwrap();
        Proxy::new(running, Some(clock), None, state.to_owned())
    }

    /// Starts on a state that is there, or says why not.
    pub(crate) fn try_start(&self, state: &Path) -> Result<Running, StartError> {
        count_panics();
        app::start(self.config(state))
    }

    /// Starts on a state that is there.
    pub(crate) fn start_on(&self, state: &Path) -> Proxy {
        Proxy::new(self.try_start(state).unwrap(), None, None, state.to_owned())
    }
}

/// A running proxy.
pub(crate) struct Proxy {
    running: Option<Running>,
    clock: Option<&'static ManualClock>,
    root: Option<TempDir>,
    state: PathBuf,
}

impl Proxy {
    fn new(
        running: Running,
        clock: Option<&'static ManualClock>,
        root: Option<TempDir>,
        state: PathBuf,
    ) -> Proxy {
        Proxy { running: Some(running), clock, root, state }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Its data plane, for looking at what it counts.
    pub(crate) fn plane(&self) -> &'static Plane {
        self.running().plane()
    }

    pub(crate) fn data(&self) -> SocketAddr {
        self.running().data_addr()
    }

    pub(crate) fn admin_addr(&self) -> SocketAddr {
        self.running().admin_addr()
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// A connection to the data plane.
    pub(crate) fn client(&self) -> Wire {
        Wire::connect(self.data())
    }

    /// Returns when the only worker has done all that it had to do before: it answers one line after the other.
    pub(crate) fn rest(&self) {
        let mut client = self.client();
        client.send("GET // HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().status(), 400);
    }

    /// Moves the clock of the decisions.
    pub(crate) fn advance(&self, span: Span) {
        self.clock.unwrap().advance(span);
    }

    /// One call on a connection of its own.
    pub(crate) fn get(&self, fields: &str) -> Answer {
        let mut client = self.client();
        client.send(&format!("GET /x HTTP/1.1\r\nhost: a\r\n{fields}\r\n"));
        client.answer()
    }

    /// One call to the admin plane, with the token.
    pub(crate) fn admin(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut wire = Wire::connect(self.admin_addr());
        wire.send(&admin_request(method, path, body));
        wire.answer()
    }

    /// An order that must be carried out.
    pub(crate) fn order(&self, verb: &str, scope: &str, body: &str) -> Value {
        let answer = self.admin("POST", &format!("/v1/{verb}{scope}"), body);
        assert_eq!(answer.status(), 200, "{verb} {scope}: {}", answer.text());
        answer.json()
    }

    /// A halt.
    pub(crate) fn halt(&self, scope: &str) -> Value {
        self.order("kill", scope, r#"{"reason":"test"}"#)
    }

    /// A cut.
    pub(crate) fn cut(&self, scope: &str) -> Value {
        self.order("kill", scope, r#"{"reason":"test","level":"cut"}"#)
    }

    /// A lift of all kills of a scope, straight to armed.
    pub(crate) fn lift(&self, scope: &str) -> Value {
        self.order("lift", scope, r#"{"reason":"test","to":"armed"}"#)
    }

    pub(crate) fn status(&self) -> Value {
        self.admin("GET", "/v1/status", "").json()
    }

    /// One of the accounts that status shows.
    pub(crate) fn account(&self, name: &str) -> u64 {
        let status = self.status();
        status["accounts"][name].as_u64().unwrap_or_else(|| panic!("no account {name}: {status}"))
    }

    /// What status says of one scope; `Null` for a key that is armed.
    pub(crate) fn scope(&self, path: &str) -> Value {
        let status = self.status();
        let scopes = status["scopes"].as_array().unwrap();
        scopes.iter().find(|scope| scope["scope"] == path).cloned().unwrap_or(Value::Null)
    }

    /// The state of a scope in the words of status; a key that is not shown is armed.
    pub(crate) fn state_of(&self, path: &str) -> String {
        self.scope(path)["state"].as_str().unwrap_or("armed").to_owned()
    }

    /// The number of one metric, all its labels added up.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.admin("GET", "/metrics", "").text();
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Waits until nothing is in flight; the accounts then, which must balance.
    pub(crate) fn settled(&self) -> Value {
        eventually("an account that balances, and nothing in flight", || {
            let status = self.status();
            let quiet = status["calls_open"] == 0 && status["accounts"]["in_flight"] == 0;
            (quiet && status["balanced"] == true).then(|| status["accounts"].clone())
        })
    }

    /// Stops it once its accounts balance; whatever it did, none of its threads may have panicked.
    pub(crate) fn finish(mut self) -> Value {
        let accounts = self.settled();
        self.stop();
        accounts
    }

    /// Stops it as it is.
    pub(crate) fn stop(&mut self) {
        let stopped = self.running.take().unwrap().stop();
        assert!(stopped.durable, "the last record is on the disk");
        // ordering: relaxed, a number on its own.
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a thread of a proxy panicked");
    }

    /// Stops it as it is; the state lives as long as what is given back.
    pub(crate) fn stop_now(mut self) -> Option<TempDir> {
        self.stop();
        self.root.take()
    }

    /// What a crash would leave of its state at this moment: a copy, since the process itself goes on.
    pub(crate) fn crashed(&self) -> TempDir {
        let copy = room();
        for entry in std::fs::read_dir(&self.state).unwrap() {
            let path = entry.unwrap().path();
            // A draft may go while we copy.
            let _ = std::fs::copy(&path, copy.path().join(path.file_name().unwrap()));
        }
        copy
    }

    /// Waits until so many saves of the standings are on the disk.
    pub(crate) fn saved(&self, times: u64) {
        eventually("a save", || {
            (self.status()["saves"]["good"].as_u64().unwrap() >= times).then_some(())
        });
    }

    /// Waits until a whole sweep has begun and ended, by what the clock shows now.
    pub(crate) fn swept(&self) {
        let sweeps = || self.metric("breaker_sweeps_total");
        let before = sweeps();
        eventually("two sweeps", || (sweeps() >= before + 2.0).then_some(()));
    }

    /// What its start said of limits and what was learned.
    pub(crate) fn standings(&self) -> String {
        self.running().facts().standings.to_string()
    }

    /// One line of the metrics page, by its labels; 0 if it is not there.
    pub(crate) fn line(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin("GET", "/metrics", "").text();
        let found = text.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
                && labels.iter().all(|label| line.contains(label))
        });
        found.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Stops it, and starts it again on the same state, with a clock of its own that only the test moves.
    pub(crate) fn restart_clocked(mut self, setup: &Setup) -> Proxy {
        self.settled();
        self.stop();
        let mut next = setup.start_on_clocked(&self.state);
        next.root = self.root.take();
        next
    }

    /// Stops it, and starts it again on the same state.
    pub(crate) fn restart(mut self, setup: &Setup) -> Proxy {
        self.settled();
        self.stop();
        let mut next = setup.start_on(&self.state);
        next.root = self.root.take();
        next
    }
}

/// The bytes of a call to the admin plane.
pub(crate) fn admin_request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {TOKEN}\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// Numbers that look random, the same for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed | 1)
    }

    pub(crate) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % below
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| u8::try_from(self.roll(256)).unwrap()).collect()
    }
}
