//! Seeded lives of a breaker beside the oracle: a seed makes a policy and what happens under it; a failing one prints what replays it.
//!
//! Every life is lived twice at once: by a breaker that may decide the short way, and by its twin, whose policy has one more limit,
//! a candidate that is never reached, and which therefore decides the long way.

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails says so by a panic"
)]

mod life;
mod oracle;

use std::sync::atomic::{AtomicU64, Ordering};

use life::Life;

/// Lives a life; a panic in it prints how to replay it.
fn live(seed: u64, trace: bool) {
    struct Told(u64);
    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                println!("to replay: SIM_SEED={} cargo sim", self.0);
            }
        }
    }
    let _told = Told(seed);
    Life::new(seed, trace).live();
}

fn live_some(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        live(seed, false);
    }
}

/// Goal: in every life each answer, wait, state and count is the oracle's, both ways through a decision.
#[test]
fn lives_agree_with_the_oracle_1() {
    live_some(0..2_500);
}

/// Goal: the same, of other seeds.
#[test]
fn lives_agree_with_the_oracle_2() {
    live_some(2_500..5_000);
}

/// Goal: the same, of other seeds.
#[test]
fn lives_agree_with_the_oracle_3() {
    live_some(5_000..7_500);
}

/// Goal: the same, of other seeds.
#[test]
fn lives_agree_with_the_oracle_4() {
    live_some(7_500..10_000);
}

/// Goal: the lives are no idle ones: all that can become of a call does, often.
#[test]
fn lives_are_eventful() {
    let mut seen = std::collections::BTreeMap::<&str, u64>::new();
    for seed in 0..600 {
        let mut life = Life::new(seed, false);
        life.live();
        for (event, times) in life.events {
            *seen.entry(event).or_default() += times;
        }
    }
    for event in life::EVENTS {
        let times = seen.get(event).copied().unwrap_or(0);
        assert!(times >= 20, "{event}: {times} times in {seen:#?}");
    }
}

/// Goal: as many lives as asked for (`SIM_SEEDS`, from `SIM_FROM` on), or one told step by step (`SIM_SEED`).
#[test]
#[ignore = "run it by `cargo sim`"]
fn swarm() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = number("SIM_SEED") {
        live(seed, true);
        return;
    }
    let from = number("SIM_FROM").unwrap_or(10_000);
    let seeds = number("SIM_SEEDS").unwrap_or(200_000);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let lived = next.fetch_add(1, Ordering::Relaxed);
                    if lived >= seeds {
                        return;
                    }
                    if lived % 10_000 == 0 {
                        println!("{lived} of {seeds}");
                    }
                    live(from + lived, false);
                }
            });
        }
    });
}
