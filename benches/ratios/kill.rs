//! How soon a kill is seen: one thread decides without pause, the other kills; no decision begun after the kill returned may pass.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use breaker_benches::World;
use breaker_benches::figures::Samples;
use breaker_core::{KillLevel, LiftTo};

use crate::ours::{Tsc, plain, rate};
use crate::threads::pin;

/// What the trials showed, in nanoseconds.
pub(crate) struct Seen {
    /// From the kill's return to the end of the first decision that it refused; 0 if that came before.
    pub(crate) after_return: Samples,
    /// The same, without trials in which the deciding thread was off its processor.
    pub(crate) undisturbed: Samples,
    /// From the kill's call to the same.
    pub(crate) after_call: Samples,
    /// Decisions that began after the kill had returned, and passed.
    pub(crate) late: u64,
}

/// What the two threads tell each other; one trial at a time, told by its number.
#[derive(Default)]
struct Words {
    begun: AtomicU64,
    deciding: AtomicU64,
    returned: AtomicU64,
    seen_at: AtomicU64,
    gap: AtomicU64,
    seen: AtomicU64,
    late: AtomicU64,
    done: AtomicBool,
}

/// Kills and lifts so many times.
pub(crate) fn measure(trials: u64) -> Seen {
    let (world, clock) = (plain(vec![rate()]), Tsc::new());
    let words = Words::default();
    let mut seen = Seen {
        after_return: Samples::default(),
        undisturbed: Samples::default(),
        after_call: Samples::default(),
        late: 0,
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            decide(world, clock, &words);
        });
        // A thread of its own, so that the rest of the run is not pinned.
        scope.spawn(|| {
            pin(0);
            for trial in 1..=trials {
                kill_once(world, clock, &words, trial, &mut seen);
            }
            words.done.store(true, Ordering::Release);
        });
    });
    seen.late = words.late.load(Ordering::Relaxed);
    seen
}

/// Decides until it is refused, in each trial.
fn decide(world: &World, clock: &Tsc, words: &Words) {
    let mut trial = 0;
    // ordering: acquire and release throughout, for each word tells that what was written before it is there.
    while !words.done.load(Ordering::Acquire) {
        if words.begun.load(Ordering::Acquire) == trial {
            std::hint::spin_loop();
            continue;
        }
        trial += 1;
        let (mut last, mut gap) = (clock.now(), 0);
        words.deciding.store(trial, Ordering::Release);
        loop {
            let returned = words.returned.load(Ordering::Acquire) == trial;
            let world = black_box(world);
            let passed = world.breaker.admit(&world.policy, world.call, clock.now()).is_allowed();
            let now = clock.now();
            // A decision begun before the kill may have slept over it: the one before the last counts too.
            let before = std::mem::replace(&mut gap, now.since(last).as_nanos());
            if !passed {
                words.seen_at.store(now.as_nanos(), Ordering::Relaxed);
                words.gap.store(gap.max(before), Ordering::Relaxed);
                words.seen.store(trial, Ordering::Release);
                break;
            }
            words.late.fetch_add(u64::from(returned), Ordering::Relaxed);
            last = now;
        }
    }
}

fn kill_once(world: &World, clock: &Tsc, words: &Words, trial: u64, seen: &mut Seen) {
    // ordering: as in `decide`.
    words.begun.store(trial, Ordering::Release);
    while words.deciding.load(Ordering::Acquire) != trial {
        std::hint::spin_loop();
    }
    let begin = clock.now();
    // Somewhere among the other thread's decisions, never at the same place.
    while clock.now().since(begin).as_nanos() < 3_000 + trial % 997 {}
    let called = clock.now();
    let stamp = world.breaker.kill(&world.policy, &world.route, KillLevel::Halt, called);
    let returned = clock.now();
    words.returned.store(trial, Ordering::Release);
    while words.seen.load(Ordering::Acquire) != trial {
        std::hint::spin_loop();
    }
    let seen_at = breaker_core::Mono::from_nanos(words.seen_at.load(Ordering::Relaxed));
    let nanos = |since| {
        let late: breaker_core::Span = seen_at.since(since);
        std::time::Duration::from_nanos(late.as_nanos()).as_secs_f64() * 1e9
    };
    seen.after_return.push(nanos(returned));
    seen.after_call.push(nanos(called));
    if words.gap.load(Ordering::Relaxed) < OFF {
        seen.undisturbed.push(nanos(returned));
    }
    let lifted = stamp
        .ok()
        .map(|stamp| world.breaker.lift(&world.policy, stamp, LiftTo::Armed, clock.now()));
    assert!(matches!(lifted, Some(Ok(_))), "nobody else kills here");
}

/// A decision that took so many nanoseconds was interrupted.
const OFF: u64 = 3_000;
