//! One decision on one thread, beside governor's; run it with `cargo bench -p breaker-benches --features rivals`.
#![allow(missing_docs, reason = "criterion's macros write functions without documentation")]
#![allow(clippy::allow_attributes, reason = "as above")]

use breaker_benches::world;
use breaker_core::{LimitKind, LimitSpec, Mono, Span, Verdict};
use criterion::{Criterion, criterion_group, criterion_main};
use governor::{Quota, RateLimiter};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Instant;

fn limit(kind: LimitKind) -> LimitSpec {
    LimitSpec::new(kind)
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    let rate = LimitKind::Rate { count: 1_000_000_000, per: Span::from_secs(1), burst: 1_000_000 };
    let window = LimitKind::Window { count: 1_000, length: Span::from_secs(1) };

    let quota = Quota::per_second(NonZeroU32::MAX);
    let governor = RateLimiter::direct(quota);
    group.bench_function("governor direct check, its own clock", |bench| {
        bench.iter(|| black_box(governor.check().is_ok()));
    });
    for (name, kind) in [("rate", rate), ("window", window)] {
        let world = world(vec![limit(kind)], Vec::new());
        let origin = Instant::now();
        group.bench_function(format!("breaker {name}, clock read by the caller"), |bench| {
            bench.iter(|| {
                let now = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                let verdict = world.breaker.admit(&world.policy, world.call, Mono::from_nanos(now));
                black_box(matches!(verdict, Verdict::Allow(_)))
            });
        });
        let mut now = 1_000_000_000u64;
        group.bench_function(format!("breaker {name}, time given"), |bench| {
            bench.iter(|| {
                now += 1_500_000;
                let verdict = world.breaker.admit(&world.policy, world.call, Mono::from_nanos(now));
                black_box(matches!(verdict, Verdict::Allow(_)))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
