//! A sweep of many dirty cells, and decisions that go on meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use breaker_benches::World;
use breaker_benches::figures::{Samples, real};
use breaker_core::{KillLevel, Mono, Scope, ScopeSpec, Sweeper};

use crate::keys::still;
use crate::ours::{Tsc, keyed_by, rate};
use crate::threads::{pin, processor_time};

/// What sweeping showed.
pub(crate) struct Swept {
    /// Milliseconds of processor time until every dirty cell was looked at.
    pub(crate) millis: Samples,
    /// Calls of `sweep` that it took.
    pub(crate) calls: usize,
    /// Transitions told in one round.
    pub(crate) told: usize,
    /// Decisions that ended while it swept, in all rounds.
    pub(crate) decisions: usize,
    /// The longest of them, in nanoseconds, and the 99.9th in a hundred.
    pub(crate) decision: Samples,
}

/// Kills so many keys, sweeps them all, so many times.
pub(crate) fn measure(cells: usize, rounds: usize) -> Swept {
    let scope = ScopeSpec { keys: keyed_by(vec![rate()]), ..ScopeSpec::default() };
    let world = still(World::new(scope, u32::try_from(cells * 4).unwrap_or(u32::MAX)));
    let clock = Tsc::new();
    let keys: Vec<Scope> = (0..cells)
        .map(|number| world.route.key("key", &number.to_le_bytes()).expect("a key"))
        .collect();
    let mut swept = Swept {
        millis: Samples::default(),
        calls: 0,
        told: 0,
        decisions: 0,
        decision: Samples::default(),
    };
    let mut sweeper = Sweeper::new();
    let mut news = Vec::with_capacity(cells * 2);
    // Seen once, so that the list of what was seen is there.
    sweeper.sweep(&world.breaker, &world.policy, clock.now(), &mut news);
    for _ in 0..rounds {
        for key in &keys {
            let killed = world.breaker.kill(&world.policy, key, KillLevel::Halt, clock.now());
            assert!(killed.is_ok(), "room for all");
        }
        news.clear();
        let (sweeping, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let decider = scope.spawn(|| decide(world, clock, &sweeping, &stop));
            // A thread of its own, so that the rest of the run is not pinned.
            let sweeping_thread = scope.spawn(|| {
                pin(0);
                while !sweeping.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                let before = processor_time();
                let mut calls = 0;
                while news.len() < cells && calls < 1_000 {
                    sweeper.sweep(&world.breaker, &world.policy, clock.now(), &mut news);
                    calls += 1;
                }
                let took = processor_time().saturating_sub(before);
                stop.store(true, Ordering::Release);
                (took, calls, news.len())
            });
            let (took, calls, told) = sweeping_thread.join().expect("a sweep does not panic");
            let decided = decider.join().expect("a decision does not panic");
            swept.millis.push(took.as_secs_f64() * 1e3);
            swept.calls = calls;
            swept.told = told;
            swept.decisions += decided.len();
            decided.into_iter().for_each(|nanos| swept.decision.push(nanos));
        });
    }
    swept
}

/// Decides on the route until told to stop; nanoseconds of each batch of decisions, by decision.
fn decide(world: &World, clock: &Tsc, sweeping: &AtomicBool, stop: &AtomicBool) -> Vec<f64> {
    pin(1);
    let mut all = Vec::with_capacity(1 << 20);
    let mut last: Mono = clock.now();
    sweeping.store(true, Ordering::Release);
    while !stop.load(Ordering::Acquire) && all.len() < 1 << 20 {
        let passed = world.breaker.admit(&world.policy, world.call, clock.now()).is_allowed();
        assert!(passed, "the route itself is not killed");
        let now = clock.now();
        let took = usize::try_from(now.since(last).as_nanos()).unwrap_or(usize::MAX);
        all.push(real(took));
        last = now;
    }
    all
}
