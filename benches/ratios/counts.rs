//! Whether a count is ever lost: threads hammer one route while another kills and lifts it, and every sum must be whole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use breaker_benches::World;
use breaker_core::{KillLevel, LiftTo, LimitSpec, Outcome, ScopeCounts, ScopeSpec, Span, Verdict};

use crate::ours::Tsc;
use crate::threads::pin;

/// What the threads know themselves.
#[derive(Clone, Copy, Default)]
struct Known {
    offered: u64,
    good: u64,
    slow: u64,
    fault: u64,
    dropped: u64,
    refused: u64,
}

/// What was offered, and what of it was lost or made up.
pub(crate) struct Lost {
    /// Calls.
    pub(crate) offered: u64,
    /// Kills meanwhile.
    pub(crate) kills: u64,
    /// Kinds of count that differ from what the threads know, each by how much, summed.
    pub(crate) wrong: u64,
    /// What the core counted.
    pub(crate) counts: ScopeCounts,
}

/// Two threads, so many calls each.
pub(crate) fn measure(calls: u64) -> Lost {
    let limits = vec![LimitSpec::rate(5_000_000, Span::from_secs(1), 1_000)];
    let world = World::new(ScopeSpec { limits, counts: true, ..ScopeSpec::default() }, 64);
    let (clock, done) = (Tsc::new(), AtomicBool::new(false));
    let (all, kills) = thread::scope(|scope| {
        let (world, done) = (&world, &done);
        let hammers: Vec<_> =
            (0..2).map(|number| scope.spawn(move || hammer(world, clock, number, calls))).collect();
        let killer = scope.spawn(move || kill_and_lift(world, clock, done));
        let known: Vec<Known> =
            hammers.into_iter().map(|one| one.join().expect("a decision does not panic")).collect();
        done.store(true, Ordering::Release);
        (known, killer.join().expect("an order does not panic"))
    });
    let sum = |part: fn(&Known) -> u64| all.iter().map(part).sum::<u64>();
    let counts = world.breaker.counts(&world.policy, &world.route).expect("it counts");
    let pairs = [
        (counts.good, sum(|known| known.good)),
        (counts.slow, sum(|known| known.slow)),
        (counts.fault, sum(|known| known.fault)),
        (counts.dropped, sum(|known| known.dropped)),
        (counts.blocked + counts.throttled, sum(|known| known.refused)),
        (
            counts.good
                + counts.slow
                + counts.fault
                + counts.dropped
                + counts.blocked
                + counts.throttled,
            sum(|known| known.offered),
        ),
    ];
    let wrong = pairs.iter().map(|(counted, known)| counted.abs_diff(*known)).sum();
    Lost { offered: sum(|known| known.offered), kills, wrong, counts }
}

fn hammer(world: &World, clock: &Tsc, number: usize, calls: u64) -> Known {
    pin(number);
    let mut known = Known::default();
    for call in 0..calls {
        known.offered += 1;
        let now = clock.now();
        let Verdict::Allow(permit) = world.breaker.admit(&world.policy, world.call, now) else {
            known.refused += 1;
            continue;
        };
        match call % 4 {
            0 => {
                permit.settle(Outcome::Good, now);
                known.good += 1;
            }
            1 => {
                permit.settle(Outcome::Slow, now);
                known.slow += 1;
            }
            2 => {
                permit.settle(Outcome::Fault, now);
                known.fault += 1;
            }
            _ => {
                drop(permit);
                known.dropped += 1;
            }
        }
    }
    known
}

fn kill_and_lift(world: &World, clock: &Tsc, done: &AtomicBool) -> u64 {
    let mut kills = 0;
    while !done.load(Ordering::Acquire) {
        let now = clock.now();
        let stamp = world.breaker.kill(&world.policy, &world.route, KillLevel::Halt, now);
        let lifted =
            stamp.map(|stamp| world.breaker.lift(&world.policy, stamp, LiftTo::Armed, now));
        assert!(matches!(lifted, Ok(Ok(_))), "nobody else kills here");
        kills += 1;
        thread::yield_now();
    }
    kills
}
