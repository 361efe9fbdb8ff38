//! One decision on one thread, by criterion: for comparing two commits. The rivals' table is the bench `ratios`.
#![allow(missing_docs, reason = "criterion's macros write functions without documentation")]
#![allow(clippy::allow_attributes, reason = "as above")]

use breaker_benches::World;
use breaker_core::{Call, KeySpec, KillLevel, LimitSpec, Mono, Outcome, ScopeSpec, Span, Verdict};
use criterion::{Criterion, criterion_group, criterion_main};
use governor::{Quota, RateLimiter};
use std::hint::black_box;
use std::num::NonZeroU32;

/// A caller's tick: 20 ns later each time it is asked.
struct Tick(u64);

impl Tick {
    const fn next(&mut self) -> Mono {
        self.0 += 20;
        Mono::from_nanos(self.0)
    }
}

fn rate() -> LimitSpec {
    LimitSpec::rate(1_000_000_000, Span::from_secs(1), 1_000_000)
}

/// Never reached at one call in 20 ns.
fn window() -> LimitSpec {
    LimitSpec::window(1_000, Span::from_nanos(1_000))
}

fn admits(world: &World, call: Call, now: Mono) -> bool {
    let world = black_box(world);
    world.breaker.admit(&world.policy, call, now).is_allowed()
}

fn admits_and_settles(world: &World, call: Call, now: Mono) -> bool {
    let world = black_box(world);
    match world.breaker.admit(&world.policy, call, now) {
        Verdict::Allow(permit) => permit.settle(Outcome::Good, now),
        Verdict::Deny(_) => true,
    }
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    let governor = RateLimiter::direct(Quota::per_second(NonZeroU32::MAX));
    group.bench_function("governor direct", |bench| {
        bench.iter(|| black_box(&governor).check().is_ok());
    });
    let full = LimitSpec::window(1_000, Span::from_secs(3_600));
    for (name, limits) in [
        ("gates", vec![]),
        ("rate", vec![rate()]),
        ("window", vec![window()]),
        ("full", vec![full]),
    ] {
        for counts in [false, true] {
            let scope = ScopeSpec { limits: limits.clone(), counts, ..ScopeSpec::default() };
            let (world, mut tick) = (World::new(scope, 64), Tick(1_000_000_000));
            let settled = if counts { ", settled and counted" } else { "" };
            group.bench_function(format!("{name}{settled}"), |bench| {
                if counts {
                    bench.iter(|| admits_and_settles(&world, world.call, tick.next()));
                } else {
                    bench.iter(|| admits(&world, world.call, tick.next()));
                }
            });
        }
    }
    group.finish();
}

fn keyed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("keyed");
    let keys = vec![KeySpec { name: "key".to_owned(), limits: vec![rate()], ..KeySpec::default() }];
    for (name, limits) in [("key rate", vec![]), ("key rate and route window", vec![window()])] {
        let scope = ScopeSpec { limits, keys: keys.clone(), counts: true, ..ScopeSpec::default() };
        let (world, mut tick) = (World::new(scope, 200_000), Tick(1_000_000_000));
        let mut number = 0_u64;
        group.bench_function(format!("{name}, 65,536 keys, settled and counted"), |bench| {
            bench.iter(|| {
                // An odd step: all keys, far apart.
                number = number.wrapping_add(40_503) & 0xffff;
                let call = world.call.with_key(0, black_box(&world).breaker.hash_u64(number));
                admits_and_settles(&world, call, tick.next())
            });
        });
    }
    group.finish();
}

fn blocked(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("blocked");
    let scope = ScopeSpec { limits: vec![rate()], counts: true, ..ScopeSpec::default() };
    let (world, now) = (World::new(scope, 64), Mono::from_nanos(1_000_000_000));
    let killed = world.breaker.kill(&world.policy, &world.route, KillLevel::Halt, now);
    assert!(killed.is_ok());
    group.bench_function("look", |bench| {
        bench.iter(|| black_box(&world).breaker.blocked(&world.policy, &world.call).is_some());
    });
    group.bench_function("refused and counted", |bench| {
        bench.iter(|| black_box(&world).breaker.refuse_blocked(&world.policy, &world.call));
    });
    group.bench_function("admit", |bench| bench.iter(|| admits(&world, world.call, now)));
    group.finish();
}

criterion_group!(benches, decide, keyed, blocked);
criterion_main!(benches);
