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

use breaker_core::{
    Breaker, Call, Capacity, Cause, Class, GroupSpec, KeyOverride, KeySpec, KillLevel, LiftTo,
    LimitSpec, Mode, Mono, OrderError, Outcome, Policy, PolicySpec, RouteSpec, Scope, ScopeSpec,
    Seed, Settlement, Span, State, Sweeper, Verdict,
};
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
    for seed in 0..2_000 {
        let mut life = Life::new(seed, false);
        life.live();
        for (event, times) in life.events {
            *seen.entry(event).or_default() += times;
        }
    }
    for event in life::EVENTS {
        let times = seen.get(event).copied().unwrap_or(0);
        let least = if event.ends_with(" in line") { 300 } else { 20 };
        assert!(times >= least, "{event}: {times} times in {seen:#?}");
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
    let live_on = || {
        let mut failed = Vec::new();
        loop {
            let lived = next.fetch_add(1, Ordering::Relaxed);
            if lived >= seeds {
                return failed;
            }
            if lived.is_multiple_of(10_000) {
                println!("{lived} of {seeds}");
            }
            let seed = from + lived;
            if std::panic::catch_unwind(|| live(seed, false)).is_err() {
                failed.push(seed);
            }
        }
    };
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let spawned: Vec<_> = (0..threads).map(|_| scope.spawn(live_on)).collect();
        spawned.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} of {seeds} fail: {failed:?}", failed.len());
}

// What lives found, each as the smallest life that shows it.

fn at(nanos: u64) -> Mono {
    Mono::from_nanos(nanos)
}

fn path(path: &str) -> Scope {
    Scope::parse(path).unwrap()
}

/// `/g/r`, with these limits at `/`, and others at the route.
fn house(global: Vec<LimitSpec>, route: Vec<LimitSpec>) -> PolicySpec {
    PolicySpec {
        global: ScopeSpec { limits: global, ..ScopeSpec::default() },
        groups: vec![GroupSpec { name: "g".into(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "r".into(),
            group: "g".into(),
            class: Class::Normal,
            scope: ScopeSpec { limits: route, ..ScopeSpec::default() },
        }],
    }
}

fn breaker() -> Breaker {
    Breaker::new(Capacity { scopes: 2, keys: 16 }, Seed([1, 2]))
}

fn call(policy: &Policy) -> Call {
    Call::new(policy.route(&path("/g/r")).unwrap())
}

fn passes(breaker: &Breaker, policy: &Policy, call: Call, now: u64) -> bool {
    breaker.admit(policy, call, at(now)).is_allowed()
}

/// Goal: a limit of `/` that refuses is counted there, whether or not the route counts.
#[test]
fn a_wider_scope_counts_its_refusals_though_the_route_counts_nothing() {
    let breaker = breaker();
    let mut spec = house(vec![LimitSpec::budget(1)], vec![]);
    spec.routes[0].scope.counts = false;
    let policy = breaker.compile(&spec).unwrap();
    assert!(passes(&breaker, &policy, call(&policy), 0));
    assert!(!passes(&breaker, &policy, call(&policy), 0));
    assert_eq!(breaker.counts(&policy, &Scope::global()).unwrap().enforced[0], 1);
}

/// Goal: a call that another limit refuses does not keep a budget from forgetting.
#[test]
fn a_refused_call_does_not_prolong_a_budget() {
    let (breaker, mut spec) = (breaker(), house(vec![], vec![]));
    spec.global.limits = vec![LimitSpec::window(1, Span::from_nanos(500))];
    spec.routes[0].scope.limits = vec![LimitSpec::budget(2).idle(Span::from_nanos(100))];
    let policy = breaker.compile(&spec).unwrap();
    assert!(passes(&breaker, &policy, call(&policy), 1_000));
    (1..9).for_each(|step| assert!(!passes(&breaker, &policy, call(&policy), 1_000 + step * 50)));
    spec.global.limits.clear();
    let alone = breaker.compile(&spec).unwrap();
    assert!(passes(&breaker, &alone, call(&alone), 1_450));
    assert!(passes(&breaker, &alone, call(&alone), 1_450), "all was forgotten at 1,100");
}

/// Goal: a peek at a later instant moves nothing: a window of weight holds for the calls that come before it.
#[test]
fn a_peek_of_a_window_of_weight_moves_nothing() {
    let breaker = breaker();
    let limit = LimitSpec::window(22, Span::from_nanos(697)).by_weight();
    let policy = breaker.compile(&house(vec![limit], vec![])).unwrap();
    assert!(passes(&breaker, &policy, call(&policy).weighing(20), 10_000));
    assert!(breaker.peek(&policy, call(&policy).weighing(3), at(20_000)).is_ok());
    assert!(!passes(&breaker, &policy, call(&policy).weighing(3), 10_000), "23 of 22 at once");
}

/// Goal: a lift that names the first kill of a key does not undo the second, though the key lost its cell in between
/// and the gate of its new one has made as many moves.
#[test]
fn a_stale_lift_misses_a_key_that_moved_to_another_cell() {
    let breaker = breaker();
    let mut spec = house(vec![], vec![]);
    spec.global.keys = vec![KeySpec {
        name: "account".into(),
        limits: vec![LimitSpec::window(1, Span::from_nanos(100))],
        ..KeySpec::default()
    }];
    let policy = breaker.compile(&spec).unwrap();
    let mallory = path("/account=mallory");
    let first = breaker.kill(&policy, &mallory, KillLevel::Halt, at(0)).unwrap();
    breaker.lift(&policy, first, LiftTo::Armed, at(0)).unwrap();
    // Strangers take every cell that is free, among them the one that was killed.
    for stranger in 0..64_u64 {
        let key = breaker.hash_u64(stranger);
        let _ = breaker.admit(&policy, call(&policy).with_key(0, key), at(1_000));
    }
    let second = breaker.kill(&policy, &mallory, KillLevel::Halt, at(1_000)).unwrap();
    let stale = breaker.lift(&policy, first, LiftTo::Armed, at(1_000));
    assert_eq!(stale, Err(OrderError::Stale), "{second:?} was lifted by who saw {first:?}");
}

/// Goal: a window that a reload lengthens counts what passed, also where the shorter one had let it expire.
#[test]
fn a_lengthened_window_counts_what_the_shorter_one_had_let_expire() {
    let breaker = breaker();
    let window = |length| house(vec![LimitSpec::window(3, Span::from_nanos(length))], vec![]);
    let first = breaker.compile(&window(100)).unwrap();
    (0..3).for_each(|_| assert!(passes(&breaker, &first, call(&first), 1_000)));
    let second = breaker.recompile(&window(1_000), at(1_101)).unwrap();
    drop(first);
    assert!(!passes(&breaker, &second, call(&second), 1_101), "four in 1,000");
    assert!(passes(&breaker, &second, call(&second), 2_000));
}

/// Goal: a key that gets a limit of another kind under the name of its dimension's starts with it spent, and in shadow the permit
/// says so though the call passes. The lives took the oracle's word for what shadow hides, which cannot know it.
#[test]
fn a_key_in_shadow_that_gets_another_limit_is_told_that_it_starts_spent() {
    let breaker = breaker();
    let second = Span::from_secs(1);
    let mut spec = house(vec![], vec![]);
    spec.global.keys = vec![KeySpec {
        name: "account".into(),
        limits: vec![LimitSpec::window(2, second).named("own")],
        mode: Mode::Shadow,
        ..KeySpec::default()
    }];
    let first = breaker.recompile(&spec, at(1_000)).unwrap();
    let known = |policy: &Policy| call(policy).with_key(0, breaker.hash(b"known"));
    assert!(passes(&breaker, &first, known(&first), 1_000));
    let limits = vec![LimitSpec::rate(1, second, 2).named("own")];
    spec.global.keys[0].overrides = vec![KeyOverride { label: b"known".to_vec(), limits }];
    let second = breaker.recompile(&spec, at(2_000)).unwrap();
    let Verdict::Allow(permit) = breaker.admit(&second, known(&second), at(2_000)) else {
        panic!("shadow refuses nobody")
    };
    assert_eq!(permit.shadowed().map(|denial| denial.cause), Some(Cause::Limit(0)));
}

/// Goal: what turns out to weigh less ends no tick of a window of weight, nor does a call that weighs too much to ever pass: who
/// asks by an earlier clock still finds it full. The oracle took their instants for ones at which somebody had asked.
#[test]
fn a_refund_ends_no_tick_of_a_window() {
    let breaker = breaker();
    let limit = LimitSpec::window(8, Span::from_nanos(6_400)).by_weight();
    let policy = breaker.compile(&house(vec![limit], vec![])).unwrap();
    let weighing = |weight| call(&policy).weighing(weight);
    let early = breaker.admit(&policy, weighing(2), at(10_000));
    assert!(passes(&breaker, &policy, weighing(8), 20_000));
    let Verdict::Allow(early) = early else { panic!("an empty window") };
    early.settle_as(Settlement { weight: Some(1), ..Settlement::of(Outcome::Good) }, at(40_000));
    assert!(!passes(&breaker, &policy, weighing(9), 40_000));
    assert!(!passes(&breaker, &policy, weighing(1), 15_000), "9 of 8 as of 20,000");
    assert!(passes(&breaker, &policy, weighing(1), 40_000));
}

/// Goal: a refill by a clock that is late does not let the budget forget sooner: what is charged in its new run counts at least as
/// long as what was charged before it would have.
#[test]
fn a_late_refill_does_not_shorten_what_a_budget_remembers() {
    let breaker = breaker();
    let limit = LimitSpec::budget(2).idle(Span::from_nanos(100));
    let policy = breaker.compile(&house(vec![limit], vec![])).unwrap();
    assert!(passes(&breaker, &policy, call(&policy), 1_000));
    assert_eq!(breaker.refill(&policy, &Scope::global(), at(0)), Ok(true));
    (0..2).for_each(|_| assert!(passes(&breaker, &policy, call(&policy), 0)));
    assert!(!passes(&breaker, &policy, call(&policy), 1_099), "idle for 99 of 100");
    assert!(passes(&breaker, &policy, call(&policy), 1_100));
}

/// Goal: a window of weight whose past a reload cannot know starts full: nothing that weighs passes until its length has, and what
/// weighs nothing does. The oracle, which knows the past, thought it fuller than full.
#[test]
fn a_window_that_starts_full_is_no_fuller() {
    let breaker = breaker();
    let window = |count, nanos| LimitSpec::window(count, Span::from_nanos(nanos)).by_weight();
    let first = breaker.recompile(&house(vec![window(32, 640)], vec![]), at(10_000)).unwrap();
    assert!(passes(&breaker, &first, call(&first).weighing(32), 10_000));
    assert!(passes(&breaker, &first, call(&first).weighing(1), 11_000));
    let second = breaker.recompile(&house(vec![window(24, 6_400)], vec![]), at(11_000)).unwrap();
    assert!(!passes(&breaker, &second, call(&second).weighing(1), 11_000));
    assert!(passes(&breaker, &second, call(&second).weighing(0), 11_000));
    assert!(!passes(&breaker, &second, call(&second).weighing(1), 16_300));
}

/// Goal: of a key that was lifted, lost its cell and was killed anew in another, the end is told before the new kill, whichever cell
/// the sweep comes to first: who follows what is told has it killed.
#[test]
fn a_key_killed_again_in_another_cell_is_told_in_order() {
    let mut spec = house(vec![], vec![]);
    spec.global.keys = vec![KeySpec {
        name: "account".into(),
        limits: vec![LimitSpec::window(1, Span::from_nanos(100))],
        ..KeySpec::default()
    }];
    for account in 100..140 {
        let (breaker, mut sweeper, mut told) = (breaker(), Sweeper::new(), Vec::new());
        let policy = breaker.compile(&spec).unwrap();
        let scope = path(&format!("/account={account}"));
        let first = breaker.kill(&policy, &scope, KillLevel::Halt, at(0)).unwrap();
        sweeper.sweep(&breaker, &policy, at(0), &mut told);
        breaker.lift(&policy, first, LiftTo::Armed, at(0)).unwrap();
        // Strangers take every cell that is free, the last of them the one that was killed, and she alone is busy later.
        for (stranger, now) in (0..30).map(|stranger| (stranger, 1_000)).chain([(29, 2_000)]) {
            let key = breaker.hash_u64(stranger);
            assert!(passes(&breaker, &policy, call(&policy).with_key(0, key), now));
        }
        breaker.kill(&policy, &scope, KillLevel::Halt, at(2_000)).unwrap();
        sweeper.sweep(&breaker, &policy, at(2_000), &mut told);
        let key = Some((0, breaker.hash_u64(account)));
        let own: Vec<_> = told.iter().filter(|fact| fact.place.key == key).collect();
        let states: Vec<_> = own.iter().map(|fact| (fact.from, fact.to)).collect();
        let (killed, armed) = (State::Killed(KillLevel::Halt), State::Armed);
        assert_eq!(states, [(armed, killed), (killed, armed), (armed, killed)], "{account}");
    }
}
