//! The cases that several threads share: our rate and window, and governor's direct limiter.

use std::hint::black_box;

use breaker_benches::World;

use crate::ours::{Tsc, busy, counting, leased, plain, rate, window};
use crate::rivals::{busy_direct, direct};
use crate::threads::Shared;
use breaker_core::{Outcome, Verdict};

fn clocked(name: &'static str, world: &'static World) -> Shared {
    let clock = Tsc::new();
    Shared::new(name, move || {
        move || {
            let world = black_box(world);
            let clock = || black_box(clock).now();
            world.breaker.admit_at(&world.policy, world.call, clock).is_allowed()
        }
    })
}

/// One `rate` whose calls come faster than its refill: what makes a limit a hot one.
pub(crate) fn busy_rate() -> Shared {
    clocked(BUSY_RATE, plain(vec![busy()]))
}

/// The same of governor.
pub(crate) fn busy_governor() -> Shared {
    let limiter = busy_direct();
    Shared::new(BUSY_DIRECT, move || move || black_box(limiter).check().is_ok())
}

/// One hot `rate`.
pub(crate) fn hot_rate() -> Shared {
    clocked(HOT_RATE, plain(vec![rate()]))
}

/// One hot `rate`, each thread with a lease.
pub(crate) fn hot_leased() -> Shared {
    let (world, clock) = (plain(vec![rate()]), Tsc::new());
    Shared::new(HOT_LEASED, move || {
        let mut lease = leased(world);
        move || black_box(&mut lease).admit_at(|| black_box(clock).now()).is_allowed()
    })
}

/// The same, with a tick that each thread has anyway.
pub(crate) fn hot_leased_tick() -> Shared {
    let (world, clock) = (plain(vec![rate()]), Tsc::new());
    Shared::new(HOT_LEASED_TICK, move || {
        let (mut lease, mut turn, mut now) = (leased(world), 0_u32, clock.now());
        move || {
            // Read anew each 64 calls, as who handles them in batches would.
            turn = turn.wrapping_add(1);
            if turn.is_multiple_of(64) {
                now = black_box(clock).now();
            }
            black_box(&mut lease).admit(now).is_allowed()
        }
    })
}

/// One hot exact `window` of 1,000.
pub(crate) fn hot_window() -> Shared {
    clocked(HOT_WINDOW, plain(vec![window()]))
}

/// One hot `rate`, settled and counted.
pub(crate) fn hot_rate_settled() -> Shared {
    let (world, clock) = (counting(vec![rate()]), Tsc::new());
    Shared::new(HOT_RATE_SETTLED, move || {
        move || {
            let world = black_box(world);
            let now = black_box(clock).now();
            match world.breaker.admit(&world.policy, world.call, now) {
                Verdict::Allow(permit) => permit.settle(Outcome::Good, now),
                Verdict::Deny(_) => true,
            }
        }
    })
}

/// A scope without limits: gates looked at, nothing charged.
pub(crate) fn hot_gates() -> Shared {
    clocked(HOT_GATES, plain(Vec::new()))
}

/// governor's direct limiter.
pub(crate) fn hot_governor() -> Shared {
    let limiter = direct();
    Shared::new(HOT_DIRECT, move || move || black_box(limiter).check().is_ok())
}

pub(crate) const BUSY_RATE: &str =
    "two threads, one `rate` used faster than its refill, clock read";
pub(crate) const BUSY_DIRECT: &str = "governor direct, used so, two threads";
pub(crate) const HOT_RATE: &str = "two threads, one hot `rate`, clock read";
pub(crate) const HOT_RATE_SETTLED: &str =
    "two threads, one hot `rate`, clock read, settled and counted";
pub(crate) const HOT_WINDOW: &str = "two threads, one exact `window` of 1,000, clock read";
pub(crate) const HOT_GATES: &str = "two threads, gates alone, clock read";
pub(crate) const HOT_LEASED: &str = "two threads, one hot `rate`, leased, clock read";
pub(crate) const HOT_LEASED_TICK: &str =
    "two threads, one hot `rate`, leased, a tick for each 64 calls";
pub(crate) const HOT_DIRECT: &str = "governor direct, two threads";
