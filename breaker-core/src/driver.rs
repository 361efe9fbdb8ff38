//! A thread that sweeps for embedders: every 20 ms, or when nudged. It decides nothing, and its end ends nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, Thread};
use std::time::Duration;

use crate::bell::Bell;
use crate::breaker::Breaker;
use crate::clock::MonotonicClock;
use crate::facts::Transition;
use crate::judges::Finding;
use crate::policy::Policy;
use crate::sweep::Sweeper;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::time::{Mono, Span};

/// A thread that sweeps a breaker until this is dropped: it ends holds, lets detectors judge, and tells what moved.
///
/// Decisions never wait for it, and go on without it; what stops with it is judgement. So watch [`Driver::health`] from
/// elsewhere: a sweep that is older than a second is worth an alarm.
#[must_use = "dropped, it stops"]
pub struct Driver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    waker: Thread,
}

/// Wakes a driver's sweep early: after a denial that says `moved`, or a settlement that returned true.
#[derive(Clone)]
pub struct Nudge {
    shared: Arc<Shared>,
    waker: Thread,
}

/// What a driver tells.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// A gate moved. `Policy::scope_of` knows the name of its place, unless a reload took the scope away.
    Moved(&'a Policy, &'a Transition),
    /// A detector found something. If that tripped a gate, the move is told as well.
    Found(&'a Policy, &'a Finding),
    /// What was told before ended in a panic, or the sweep itself did; so many since the start. The sweeps go on.
    Panicked(u64),
}

/// How a driver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Since the last sweep ended, or since the start. It grows while what is told does not return.
    pub age: Span,
    /// Whether the thread is there.
    pub alive: bool,
    /// Sweeps that ended.
    pub sweeps: u64,
    /// Panics that were caught, in a sweep or in what was told.
    pub panics: u64,
    /// What the last of them said, if it said anything.
    pub last_panic: Option<String>,
}

#[derive(Default)]
struct Shared {
    bell: Bell,
    /// The instant at which the last sweep ended.
    beat: AtomicU64,
    sweeps: AtomicU64,
    panics: AtomicU64,
    last_panic: Mutex<Option<String>>,
    /// Held during a sweep, never while anything is told.
    sweeper: Mutex<Sweeper>,
}

/// What the thread owns.
struct Sweeping<P, F> {
    breaker: Arc<Breaker>,
    policy: P,
    /// The newest one that `policy` gave.
    newest: Option<Arc<Policy>>,
    tell: F,
    clock: MonotonicClock,
    shared: Arc<Shared>,
    moved: Vec<Transition>,
    found: Vec<Finding>,
    /// Panics that were told.
    told: u64,
}

impl Driver {
    /// Starts the thread. `policy` is asked at every sweep for the newest policy of this breaker, so that a
    /// reload reaches it; `tell` is called on the driver's thread, and should be quick: while it runs, nothing is swept.
    ///
    /// A panic in either is caught, counted, and told at the next sweep; a transition it fell upon counts as told, the
    /// others are told all the same, and where `policy` panics the one before it is swept by.
    ///
    /// # Errors
    /// That of the operating system, when it gives no thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one thread of the crate, started by its embedder"
    )]
    pub fn start(
        breaker: Arc<Breaker>,
        policy: impl FnMut() -> Arc<Policy> + Send + 'static,
        clock: MonotonicClock,
        tell: impl FnMut(News<'_>) + Send + 'static,
    ) -> std::io::Result<Driver> {
        let shared = Arc::new(Shared::default());
        shared.note_beat(clock.now());
        let mut sweeping = Sweeping {
            breaker,
            policy,
            newest: None,
            tell,
            clock,
            shared: Arc::clone(&shared),
            moved: Vec::new(),
            found: Vec::new(),
            told: 0,
        };
        let thread = Builder::new().name("breaker-sweep".into()).spawn(move || sweeping.run())?;
        let waker = thread.thread().clone();
        Ok(Driver { shared, thread: Some(thread), waker })
    }

    /// What wakes it early; for as many threads as like.
    #[must_use]
    pub fn nudge(&self) -> Nudge {
        Nudge { shared: Arc::clone(&self.shared), waker: self.waker.clone() }
    }

    /// How long ago the last sweep ended: the heartbeat. While all is well it is some 20 ms at most.
    #[must_use]
    pub fn age(&self, now: Mono) -> Span {
        // ordering: relaxed, for an instant stands alone.
        now.since(Mono::from_nanos(self.shared.beat.load(Ordering::Relaxed)))
    }

    /// Asks or tells the sweeper something between two sweeps: what it learned, or that what it saw is normal. It waits for
    /// a sweep under way, and holds up the next: not for the way of a decision.
    pub fn with_sweeper<R>(&self, ask: impl FnOnce(&mut Sweeper) -> R) -> R {
        ask(&mut self.shared.sweeper.lock())
    }

    /// How it is.
    #[must_use]
    pub fn health(&self, now: Mono) -> Health {
        let shared = &self.shared;
        Health {
            age: self.age(now),
            alive: self.thread.as_ref().is_some_and(|thread| !thread.is_finished()),
            // ordering: relaxed, for counts stand alone.
            sweeps: shared.sweeps.load(Ordering::Relaxed),
            panics: shared.panics.load(Ordering::Relaxed),
            last_panic: shared.last_panic.lock().clone(),
        }
    }
}

impl Drop for Driver {
    /// Stops the sweeps and waits for the one under way, unless it is dropped by what that one tells.
    fn drop(&mut self) {
        self.shared.bell.stop();
        self.waker.unpark();
        let Some(thread) = self.thread.take() else { return };
        if thread.thread().id() != std::thread::current().id() {
            // Its panics are caught; one that was not has been told by the process's hook.
            let _ = thread.join();
        }
    }
}

impl Nudge {
    /// Wakes the sweep. No lock; a system call only if the thread is asleep.
    pub fn nudge(&self) {
        self.shared.bell.nudge();
        self.waker.unpark();
    }
}

impl<P, F> Sweeping<P, F>
where
    P: FnMut() -> Arc<Policy>,
    F: FnMut(News<'_>),
{
    fn run(&mut self) {
        while !self.shared.bell.is_stopped() {
            let answered = self.shared.bell.nudges();
            self.once();
            // A nudge that came meanwhile left its token with the thread, so parking returns at once; the
            // count says the same where something that was told has parked and taken the token.
            if self.shared.bell.nudges() == answered && !self.shared.bell.is_stopped() {
                std::thread::park_timeout(TICK);
            }
        }
    }

    /// One sweep, and what it found told. No panic leaves it.
    fn once(&mut self) {
        let _ = self.clock.check();
        let panics = self.shared.panics();
        if panics != self.told {
            self.told = panics;
            self.guarded(|this| (this.tell)(News::Panicked(panics)));
        }
        let Some(policy) = self.policy_now() else { return self.beat() };
        // Should a sweep panic, its sweeper goes on with what it learned; a gate it passed over is met again by its slow walk.
        self.guarded(|this| {
            let now = this.clock.now();
            let mut sweeper = this.shared.sweeper.lock();
            sweeper.sweep(&this.breaker, &policy, now, &mut this.moved);
            this.found.extend(sweeper.findings());
        });
        let mut moved = std::mem::take(&mut self.moved);
        // A scope that a reload brought while this sweep ran is known to the newest policy only.
        let mut found = std::mem::take(&mut self.found);
        let mut places =
            moved.iter().map(|fact| fact.place).chain(found.iter().map(|one| one.place));
        let unknown = places.any(|place| policy.scope_of(place).is_none());
        let policy = if unknown { self.policy_now().unwrap_or(policy) } else { policy };
        for transition in moved.drain(..) {
            self.guarded(|this| (this.tell)(News::Moved(&policy, &transition)));
        }
        for finding in found.drain(..) {
            self.guarded(|this| (this.tell)(News::Found(&policy, &finding)));
        }
        (self.moved, self.found) = (moved, found);
        self.beat();
    }

    /// The newest policy; where asking for it panics, the one before.
    fn policy_now(&mut self) -> Option<Arc<Policy>> {
        self.guarded(|this| this.newest = Some((this.policy)()));
        self.newest.clone()
    }

    fn beat(&self) {
        // ordering: relaxed, for counts stand alone; this thread alone writes them.
        self.shared.sweeps.fetch_add(1, Ordering::Relaxed);
        self.shared.note_beat(self.clock.now());
    }

    /// Runs a step; false if it panicked.
    fn guarded(&mut self, step: impl FnOnce(&mut Self)) -> bool {
        // Whatever is left half done by a panic is the caller's own, or made anew.
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| step(self))) else { return true };
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        // ordering: relaxed, for a count stands alone.
        self.shared.panics.fetch_add(1, Ordering::Relaxed);
        *self.shared.last_panic.lock() = text;
        // What was thrown may itself panic when it is dropped.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
        false
    }
}

impl Shared {
    fn note_beat(&self, now: Mono) {
        // ordering: relaxed, for an instant stands alone.
        self.beat.store(now.as_nanos(), Ordering::Relaxed);
    }

    fn panics(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.panics.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("panics", &self.shared.panics()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Nudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nudge").finish_non_exhaustive()
    }
}

/// From the end of one sweep to the next, if nobody nudges.
const TICK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::{Driver, News};
    use crate::breaker::{Breaker, Capacity};
    use crate::clock::MonotonicClock;
    use crate::facts::{KillLevel, State};
    use crate::hashes::Seed;
    use crate::policy::{GroupSpec, Policy, PolicySpec};
    use crate::scope::Scope;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    /// What a test waits for something that must come: it fails then, and passes at no time.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn house(groups: &[&str]) -> (Arc<Breaker>, PolicySpec) {
        let breaker = Arc::new(Breaker::new(Capacity { scopes: 8, keys: 64 }, Seed([1, 2])));
        let groups =
            groups.iter().map(|name| GroupSpec { name: (*name).into(), scope: Default::default() });
        (breaker, PolicySpec { groups: groups.collect(), ..PolicySpec::default() })
    }

    fn teller(to: Sender<(String, State)>) -> impl FnMut(News<'_>) + Send + 'static {
        move |news| {
            let said = match news {
                News::Moved(policy, fact) => {
                    let scope = policy.scope_of(fact.place).unwrap().0.to_string();
                    (scope, fact.to)
                }
                News::Found(..) => ("found".into(), State::Armed),
                News::Panicked(times) => (format!("panicked {times}"), State::Armed),
            };
            let _ = to.send(said);
        }
    }

    fn next(heard: &Receiver<(String, State)>) -> (String, State) {
        heard.recv_timeout(PATIENCE).expect("told within the patience of this test")
    }

    /// Goal: what moves is told by name, at a nudge or a tick; a reload reaches the thread; and its heart beats.
    #[test]
    fn what_moves_is_told_also_after_a_reload() {
        let (breaker, spec) = house(&["pay"]);
        let clock = MonotonicClock::new();
        let policy = Arc::new(parking_lot::Mutex::new(Arc::new(breaker.compile(&spec).unwrap())));
        let (to, heard) = channel();
        let source = Arc::clone(&policy);
        let newest = move || Arc::clone(&source.lock());
        let driver = Driver::start(Arc::clone(&breaker), newest, clock, teller(to)).unwrap();
        let nudge = driver.nudge();
        let kill = |policy: &Policy, path: &str| {
            let scope = Scope::parse(path).unwrap();
            breaker.kill(policy, &scope, KillLevel::Halt, clock.now()).unwrap();
        };
        kill(&policy.lock().clone(), "/pay");
        nudge.nudge();
        assert_eq!(next(&heard), ("/pay".into(), State::Killed(KillLevel::Halt)));

        let (_, wider) = house(&["pay", "late"]);
        let reloaded = Arc::new(breaker.recompile(&wider, clock.now()).unwrap());
        *policy.lock() = Arc::clone(&reloaded);
        kill(&reloaded, "/late");
        assert_eq!(next(&heard), ("/late".into(), State::Killed(KillLevel::Halt)));
        let health = driver.health(clock.now());
        assert!(health.alive && health.sweeps > 0 && health.panics == 0);
    }

    /// Goal: a scope that a reload brought while a sweep was under way is told by the policy that knows it.
    #[test]
    fn a_scope_that_came_in_mid_sweep_has_a_name() {
        let (breaker, spec) = house(&["pay"]);
        let clock = MonotonicClock::new();
        let (older, (_, wider)) = (breaker.compile(&spec).unwrap(), house(&["pay", "late"]));
        let newer = breaker.recompile(&wider, clock.now()).unwrap();
        let late = Scope::parse("/late").unwrap();
        breaker.kill(&newer, &late, KillLevel::Halt, clock.now()).unwrap();
        let (to, heard) = channel();
        let (mut older, newer) = (Some(Arc::new(older)), Arc::new(newer));
        let source = move || older.take().unwrap_or_else(|| Arc::clone(&newer));
        let driver = Driver::start(Arc::clone(&breaker), source, clock, teller(to)).unwrap();
        assert_eq!(next(&heard), ("/late".into(), State::Killed(KillLevel::Halt)));
        assert_eq!(driver.health(clock.now()).panics, 0);
    }

    /// Goal: a panic in what is told, or in what gives the policy, is caught, counted and told; the sweeps go on.
    #[test]
    fn a_panic_never_stops_the_sweeps() {
        let (breaker, spec) = house(&["pay", "late"]);
        let clock = MonotonicClock::new();
        let policy = Arc::new(breaker.compile(&spec).unwrap());
        let (to, heard) = channel();
        let mut tell = teller(to);
        let mut given = 0;
        let newest = Arc::clone(&policy);
        let source = move || {
            given += 1;
            assert!(given != 2, "no policy today");
            Arc::clone(&newest)
        };
        let driver = Driver::start(Arc::clone(&breaker), source, clock, move |news| {
            let panics =
                matches!(&news, News::Moved(_, fact) if fact.to == State::Killed(KillLevel::Halt));
            tell(news);
            assert!(!panics, "what is told may be wrong");
        });
        let driver = driver.unwrap();
        let kill = |path: &str, level| {
            let scope = Scope::parse(path).unwrap();
            breaker.kill(&policy, &scope, level, clock.now()).unwrap();
            driver.nudge().nudge();
        };
        // The panic for want of a policy is told at the third sweep.
        assert_eq!(next(&heard).0, "panicked 1");
        kill("/pay", KillLevel::Halt);
        assert_eq!(next(&heard).0, "/pay");
        assert_eq!(next(&heard).0, "panicked 2");
        kill("/late", KillLevel::Cut);
        assert_eq!(next(&heard), ("/late".into(), State::Killed(KillLevel::Cut)));
        let health = driver.health(clock.now());
        assert!(health.alive);
        assert_eq!(health.panics, 2);
        assert_eq!(health.last_panic.as_deref(), Some("what is told may be wrong"));
    }

    /// Goal: dropped, the thread is gone: nothing is told any more and what it held is let go.
    #[test]
    fn a_dropped_driver_is_gone() {
        let (breaker, spec) = house(&["pay"]);
        let clock = MonotonicClock::new();
        let policy = Arc::new(breaker.compile(&spec).unwrap());
        let newest = Arc::clone(&policy);
        let source = move || Arc::clone(&newest);
        let driver = Driver::start(Arc::clone(&breaker), source, clock, |_| ()).unwrap();
        drop(driver);
        assert_eq!(Arc::strong_count(&breaker), 1);
        assert_eq!(Arc::strong_count(&policy), 1);
    }

    /// Goal: a driver may be dropped by what it tells: the thread does not wait for itself.
    #[test]
    fn a_driver_may_be_dropped_by_what_it_tells() {
        let (breaker, spec) = house(&["pay"]);
        let clock = MonotonicClock::new();
        let policy = Arc::new(breaker.compile(&spec).unwrap());
        let (to, heard) = channel();
        let slot: Arc<parking_lot::Mutex<Option<Driver>>> = Arc::default();
        let (newest, own) = (Arc::clone(&policy), Arc::clone(&slot));
        let source = move || Arc::clone(&newest);
        let driver = Driver::start(Arc::clone(&breaker), source, clock, move |_| {
            drop(own.lock().take());
            let _ = to.send(());
        });
        *slot.lock() = Some(driver.unwrap());
        breaker.kill(&policy, &Scope::global(), KillLevel::Halt, clock.now()).unwrap();
        heard.recv_timeout(PATIENCE).expect("told, and not waiting for itself");
    }
}
