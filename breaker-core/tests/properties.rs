//! Limits through the whole breaker against their arithmetic, at random and under threads. What a whole life does is the simulation's.

#![expect(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::sync::atomic::{AtomicU64, Ordering};

use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, KillLevel, LiftTo, LimitSpec, Mono, Policy,
    PolicySpec, RouteSpec, Scope, ScopeSpec, Seed, Senders, Span, Verdict,
};
use proptest::prelude::*;

fn path(path: &str) -> Scope {
    Scope::parse(path).unwrap()
}

/// `/g/r`, with a limit at `/`.
fn house(limit: Option<LimitSpec>) -> PolicySpec {
    PolicySpec {
        global: ScopeSpec { limits: limit.into_iter().collect(), ..ScopeSpec::default() },
        groups: vec![GroupSpec { name: "g".into(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "r".into(),
            group: "g".into(),
            class: Class::Normal,
            scope: ScopeSpec::default(),
        }],
    }
}

fn only_call(policy: &Policy) -> Call {
    Call::new(policy.route(&path("/g/r")).unwrap())
}

/// The wait of a denial; none if the call passes, and then its permit is dropped.
fn wait(breaker: &Breaker, policy: &Policy, call: Call, now: u64) -> Option<u64> {
    match breaker.admit(policy, call, Mono::from_nanos(now)) {
        Verdict::Allow(_) => None,
        Verdict::Deny(denial) => Some(denial.wait.map_or(u64::MAX, Span::as_nanos)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// Goal: through the whole breaker, a window of N per W and a rate hold in every interval, and the
    /// promised wait is exact to the nanosecond, whatever the numbers and however `now` jumps.
    #[test]
    fn limits_hold_to_the_nanosecond(
        count in 1_u64..40, length in 1_u64..5_000, burst in 1_u64..10, window in any::<bool>(),
        steps in prop::collection::vec((0..4_u8, 0_u64..300), 1..300),
    ) {
        let length = Span::from_nanos(length);
        let limit = if window {
            LimitSpec::window(count, length)
        } else {
            LimitSpec::rate(count, length, burst)
        };
        let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
        let Ok(policy) = breaker.compile(&house(Some(limit))) else { return Ok(()) };
        let call = only_call(&policy);
        let mut now = 10_000_u64;
        let mut passed: Vec<u64> = Vec::new();
        for (kind, step) in steps {
            now = match kind { 0 => now.saturating_sub(step), 1 => now + step, _ => now };
            match breaker.admit(&policy, call, Mono::from_nanos(now)) {
                Verdict::Allow(_) => passed.push(now.max(passed.last().copied().unwrap_or(0))),
                Verdict::Deny(denial) => {
                    let wait = denial.wait.unwrap().as_nanos();
                    prop_assert!(wait > 0);
                    let early = Mono::from_nanos(now + wait - 1);
                    prop_assert!(!breaker.admit(&policy, call, early).is_allowed());
                    now += wait;
                    prop_assert!(breaker.admit(&policy, call, Mono::from_nanos(now)).is_allowed());
                    passed.push(now.max(passed.last().copied().unwrap_or(0)));
                }
            }
        }
        let n = usize::try_from(count).unwrap();
        for (index, first) in passed.iter().enumerate() {
            if window {
                if let Some(last) = passed.get(index + n) {
                    prop_assert!(last - first >= length.as_nanos());
                }
            } else {
                for (calls, last) in (1_u64..).zip(&passed[index..]) {
                    let free = calls.saturating_sub(burst);
                    prop_assert!(free * length.as_nanos() <= count * (last - first));
                }
            }
        }
    }

    /// Goal: of weight no more than burst + rate × t passes in any interval, and the promised wait is exact.
    #[test]
    fn a_rate_of_weight_holds(
        cost in 1_u64..500, burst in 1_u64..60,
        steps in prop::collection::vec((0_u64..2_000, 0_u64..70), 1..120),
    ) {
        let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
        let limit = LimitSpec::rate(1, Span::from_nanos(cost), burst).by_weight();
        let policy = breaker.compile(&house(Some(limit))).unwrap();
        let mut now = 10_000_u64;
        let mut passed: Vec<(u64, u64)> = Vec::new();
        for (step, weight) in steps {
            now += step;
            let call = only_call(&policy).weighing(weight);
            match wait(&breaker, &policy, call, now) {
                Some(u64::MAX) => prop_assert!(weight > burst),
                Some(wait) => {
                    prop_assert!(weight <= burst);
                    prop_assert!(breaker.peek(&policy, call, Mono::from_nanos(now + wait)).is_ok());
                    let early = Mono::from_nanos(now + wait - 1);
                    prop_assert!(breaker.peek(&policy, call, early).is_err());
                }
                None => passed.push((now, weight)),
            }
        }
        for (index, (first, _)) in passed.iter().enumerate() {
            let mut sum = 0;
            for (last, weight) in &passed[index..] {
                sum += weight;
                prop_assert!(sum.saturating_sub(burst) * cost <= last - first);
            }
        }
    }

    /// Goal: a window of weight never holds more than its count in any interval of its length, and refuses
    /// no later than a 64th of that and 63 ns after an exact one would.
    #[test]
    fn a_window_of_weight_holds(
        count in 1_u64..60, length in 1_u64..5_000,
        steps in prop::collection::vec((0_u64..600, 0_u64..70), 1..120),
    ) {
        let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
        let limit = LimitSpec::window(count, Span::from_nanos(length)).by_weight();
        let policy = breaker.compile(&house(Some(limit))).unwrap();
        let stricter = length.div_ceil(64) + 63;
        let mut now = 10_000_u64;
        let mut passed: Vec<(u64, u64)> = Vec::new();
        for (step, weight) in steps {
            now += step;
            let within = |length: u64| -> u64 {
                passed.iter().filter(|(at, _)| at + length > now).map(|(_, weight)| weight).sum()
            };
            let call = only_call(&policy).weighing(weight);
            match wait(&breaker, &policy, call, now) {
                None => {
                    prop_assert!(within(length) + weight <= count, "over-admitted");
                    passed.push((now, weight));
                }
                Some(wait) => {
                    prop_assert!(within(length + stricter) + weight > count, "refused for nothing");
                    prop_assert!(wait <= length + stricter || weight > count);
                }
            }
        }
    }

    /// Goal: a budget admits its count between two lapses and not one more; the wait ends with the calm.
    #[test]
    fn a_budget_holds(
        count in 1_u64..20, idle in 1_u64..1_000,
        steps in prop::collection::vec(0_u64..700, 1..120),
    ) {
        let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
        let limit = LimitSpec::budget(count).idle(Span::from_nanos(idle));
        let policy = breaker.compile(&house(Some(limit))).unwrap();
        let (mut now, mut used, mut last) = (10_000_u64, 0, 0);
        for step in steps {
            now += step;
            if now >= last + idle {
                used = 0;
            }
            let wait = wait(&breaker, &policy, only_call(&policy), now);
            if used < count {
                prop_assert_eq!(wait, None);
                (used, last) = (used + 1, now);
            } else {
                prop_assert_eq!(wait, Some(last + idle - now));
            }
        }
    }
}

/// What each thread does: little of it where each step is interpreted.
const fn often(times: u64) -> u64 {
    if cfg!(miri) { times / 400 } else { times }
}

/// Goal: eight threads at one budget: its count passes, and not one more or less.
#[test]
fn eight_threads_share_a_budget() {
    let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
    let policy = breaker.compile(&house(Some(LimitSpec::budget(often(10_000))))).unwrap();
    let passed = AtomicU64::new(0);
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                for now in 0..often(4_000) {
                    if wait(&breaker, &policy, only_call(&policy), now).is_none() {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), often(10_000));
}

/// Goal: eight threads and room for three at once: never more, and all of it is given back.
#[test]
fn eight_threads_stay_within_what_may_be_in_flight() {
    let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
    let policy = breaker.compile(&house(Some(LimitSpec::in_flight(3)))).unwrap();
    let (inside, most) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                for _ in 0..often(20_000) {
                    let verdict = breaker.admit(&policy, only_call(&policy), Mono::ZERO);
                    if verdict.is_allowed() {
                        let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                    drop(verdict);
                }
            });
        }
    });
    assert!(most.into_inner() <= 3);
    let all: Vec<Verdict<'_>> =
        (0..4).map(|_| breaker.admit(&policy, only_call(&policy), Mono::ZERO)).collect();
    assert_eq!(all.iter().filter(|verdict| verdict.is_allowed()).count(), 3);
}

/// Goal: eight threads at one window through the whole breaker, under one clock that all of them
/// push on: no N + 1 admissions lie surely within one W, and nothing is refused for nothing. The clock is a
/// counter: each admission falls between the reading before it and the reading after it. (The
/// recorded instants themselves are checked exactly where the ring is.)
#[test]
fn eight_threads_stay_within_the_limits() {
    const COUNT: u64 = 20;
    const LENGTH: u64 = 1_000;
    let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
    let limit = LimitSpec::window(COUNT, Span::from_nanos(LENGTH));
    let policy = breaker.compile(&house(Some(limit))).unwrap();
    let call = only_call(&policy);
    let clock = AtomicU64::new(1);
    let mut passed: Vec<(u64, u64)> = std::thread::scope(|threads| {
        let spawned: Vec<_> = (0..8)
            .map(|_| {
                threads.spawn(|| {
                    let mut passed = Vec::new();
                    for _ in 0..often(20_000) {
                        let now = clock.fetch_add(1, Ordering::SeqCst);
                        if breaker.admit(&policy, call, Mono::from_nanos(now)).is_allowed() {
                            passed.push((now, clock.load(Ordering::SeqCst)));
                        }
                    }
                    passed
                })
            })
            .collect();
        spawned.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // Any N + 1 admissions, from before the first of them began to after the last of them ended.
    passed.sort_by_key(|&(_, after)| after);
    let n = usize::try_from(COUNT).unwrap();
    for some in passed.windows(n + 1) {
        let first = some.iter().map(|&(before, _)| before).min().unwrap();
        let last = some.iter().map(|&(_, after)| after).max().unwrap();
        assert!(last - first >= LENGTH, "{COUNT} and one in {}", last - first);
    }
    let most = (often(160_000) / LENGTH + 1) * COUNT;
    let got = passed.len() as u64;
    assert!(got <= most && got >= most / 2, "{got} of {most}");
}

/// Goal: real threads sending and one killing, again and again: nothing is written after silence.
#[test]
fn silence_is_silence_on_real_threads() {
    let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
    let policy = breaker.compile(&house(None)).unwrap();
    let call = only_call(&policy);
    let senders = Senders::new(3);
    let done = AtomicU64::new(0);
    let written = [(); 3].map(|()| AtomicU64::new(0));
    std::thread::scope(|threads| {
        for (index, written) in written.iter().enumerate() {
            let (senders, breaker, policy, done) = (&senders, &breaker, &policy, &done);
            threads.spawn(move || {
                let sender = senders.sender(index).unwrap();
                while done.load(Ordering::Relaxed) == 0 {
                    let Verdict::Allow(permit) = breaker.admit(policy, call, Mono::ZERO) else {
                        std::hint::spin_loop();
                        continue;
                    };
                    let write = || written.fetch_add(1, Ordering::Relaxed);
                    let _ = sender.send(breaker, &permit.pass(), Mono::ZERO, write);
                }
            });
        }
        for _ in 0..often(2_000) {
            let stamp = breaker.kill(&policy, &path("/g"), KillLevel::Halt, Mono::ZERO).unwrap();
            let mut watch = senders.watch();
            // Bounded, so that a fault fails the test and does not hang it.
            let silent = (0..5_000_000).any(|_| {
                std::thread::yield_now();
                watch.is_silent()
            });
            let first = written.each_ref().map(|count| count.load(Ordering::Relaxed));
            for _ in 0..50 {
                std::hint::spin_loop();
            }
            let second = written.each_ref().map(|count| count.load(Ordering::Relaxed));
            let lifted = breaker.lift(&policy, stamp, LiftTo::Armed, Mono::ZERO);
            if !silent || first != second || lifted.is_err() {
                done.store(1, Ordering::Relaxed);
            }
            assert!(silent, "a sender never left");
            assert_eq!(first, second, "written after silence");
            assert!(lifted.is_ok());
        }
        done.store(1, Ordering::Relaxed);
    });
}
