//! Reloads through the public door: no new policy gives a second burst, and none undoes what an older one still holds.

#![expect(clippy::unwrap_used, reason = "a test that fails says so by a panic")]
#![expect(clippy::cast_possible_truncation, reason = "small random numbers")]
#![expect(clippy::indexing_slicing, reason = "a test that fails says so by a panic")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, KeyOverride, KeySpec, KillLevel, LimitSpec, Mono,
    Newcomers, Outcome, Policy, PolicySpec, RouteSpec, Scope, ScopeSpec, Seed, Span, State,
    Verdict,
};

const SECOND: Span = Span::from_secs(1);
/// Random lives, if `RELOAD_LIVES` asks for no other number.
const LIVES: u64 = 300;

fn at(millis: u64) -> Mono {
    Mono::ZERO.plus(Span::from_millis(1_000_000 + millis))
}

fn breaker() -> Breaker {
    Breaker::new(Capacity { scopes: 4, keys: 64 }, Seed([1, 2]))
}

fn spec(limits: Vec<LimitSpec>, keys: Vec<KeySpec>) -> PolicySpec {
    PolicySpec {
        global: ScopeSpec::default(),
        groups: vec![GroupSpec { name: "g".into(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "r".into(),
            group: "g".into(),
            class: Class::Normal,
            scope: ScopeSpec { limits, keys, ..ScopeSpec::default() },
        }],
    }
}

fn route(limits: Vec<LimitSpec>) -> PolicySpec {
    spec(limits, Vec::new())
}

fn keyed(limits: Vec<LimitSpec>, overrides: &[(&str, Vec<LimitSpec>)]) -> PolicySpec {
    let overrides = overrides.iter().map(|(label, limits)| KeyOverride {
        label: label.as_bytes().to_vec(),
        limits: limits.clone(),
    });
    let overrides = overrides.collect();
    let key = KeySpec { name: "k".into(), limits, overrides, ..KeySpec::default() };
    spec(Vec::new(), vec![key])
}

fn path(path: &str) -> Scope {
    Scope::parse(path).unwrap()
}

fn call(policy: &Policy) -> Call {
    Call::new(policy.route(&path("/g/r")).unwrap()).weighing(1)
}

fn call_of(breaker: &Breaker, policy: &Policy, label: &str) -> Call {
    call(policy).with_key(0, breaker.hash(label.as_bytes()))
}

fn admit(breaker: &Breaker, policy: &Policy, call: Call, now: Mono) -> bool {
    match breaker.admit(policy, call, now) {
        Verdict::Allow(permit) => {
            permit.settle(Outcome::Good, now);
            true
        }
        Verdict::Deny(_) => false,
    }
}

/// Calls that pass in a row, of so many.
fn burst(breaker: &Breaker, policy: &Policy, call: Call, now: Mono, calls: usize) -> usize {
    (0..calls).filter(|_| admit(breaker, policy, call, now)).count()
}

/// Goal: a raised limit admits no more than its own bound, counted from before the reload; while the old policy is in use,
/// no more than the old bound.
#[test]
fn a_raised_limit_gives_no_second_burst() {
    let cases = [
        (LimitSpec::rate(10, SECOND, 10), LimitSpec::rate(10, SECOND, 15), true),
        (LimitSpec::rate(10, SECOND, 10), LimitSpec::rate(15, SECOND, 15), false),
        (LimitSpec::window(10, SECOND), LimitSpec::window(15, SECOND), false),
        (LimitSpec::budget(10), LimitSpec::budget(15), true),
        (
            LimitSpec::window(10, SECOND).by_weight(),
            LimitSpec::window(15, SECOND).by_weight(),
            true,
        ),
    ];
    for (before, after, shared) in cases {
        for drops in [false, true] {
            let breaker = breaker();
            let old = breaker.recompile(&route(vec![before.clone()]), at(0)).unwrap();
            assert_eq!(burst(&breaker, &old, call(&old), at(0), 30), 10);
            let kept = (!drops).then_some(old);
            let new = breaker.recompile(&route(vec![after.clone()]), at(1)).unwrap();
            assert_eq!(new.has_predecessors(), !drops && !shared, "{before:?}");
            let more = burst(&breaker, &new, call(&new), at(1), 30);
            let room = if shared || drops { 5 } else { 0 };
            // What is not known of a shorter past counts as passed, never the other way.
            assert!(more <= room, "{before:?}: {more} of {room}");
            if shared {
                assert_eq!(more, room, "{before:?}");
            }
            drop(kept);
        }
    }
}

/// Goal: a lowered limit holds from its first decision, whatever passed before.
#[test]
fn a_lowered_limit_holds_at_once() {
    let cases = [
        (LimitSpec::rate(10, SECOND, 10), LimitSpec::rate(10, SECOND, 3)),
        (LimitSpec::rate(10, SECOND, 10), LimitSpec::rate(3, SECOND, 3)),
        (LimitSpec::window(10, SECOND), LimitSpec::window(3, SECOND)),
        (LimitSpec::window(10, SECOND), LimitSpec::window(10, Span::from_secs(60))),
        (LimitSpec::budget(10), LimitSpec::budget(3)),
        (LimitSpec::rate(10, SECOND, 10).named("x"), LimitSpec::window(3, SECOND).named("x")),
        (LimitSpec::window(10, SECOND).named("x"), LimitSpec::rate(3, SECOND, 3).named("x")),
    ];
    for (before, after) in cases {
        let breaker = breaker();
        let old = breaker.recompile(&route(vec![before.clone()]), at(0)).unwrap();
        assert_eq!(burst(&breaker, &old, call(&old), at(0), 4), 4);
        let new = breaker.recompile(&route(vec![after.clone()]), at(1)).unwrap();
        let more = burst(&breaker, &new, call(&new), at(1), 30);
        let room = if after == LimitSpec::window(10, Span::from_secs(60)) { 6 } else { 0 };
        assert!(more <= room, "{before:?} to {after:?}: {more}");
        drop(old);
    }
}

/// Goal: calls in flight are counted over reloads that raise and lower the bound, and given back by whichever
/// policy admitted them.
#[test]
fn calls_in_flight_outlive_a_reload() {
    let breaker = breaker();
    let first = breaker.recompile(&route(vec![LimitSpec::in_flight(2)]), at(0)).unwrap();
    let held: Vec<_> = (0..2).map(|_| breaker.admit(&first, call(&first), at(0))).collect();
    assert!(held.iter().all(Verdict::is_allowed));
    let second = breaker.recompile(&route(vec![LimitSpec::in_flight(3)]), at(1)).unwrap();
    let third = breaker.admit(&second, call(&second), at(1));
    assert!(third.is_allowed() && !admit(&breaker, &second, call(&second), at(1)));
    let last = breaker.recompile(&route(vec![LimitSpec::in_flight(1)]), at(2)).unwrap();
    assert!(!admit(&breaker, &last, call(&last), at(2)));
    drop(held);
    assert!(!admit(&breaker, &last, call(&last), at(2)), "one is in flight still");
    drop(third);
    assert!(admit(&breaker, &last, call(&last), at(2)));
}

/// Goal: a limit under the same name but by another unit is another limit: what is in flight by the one is not given back to the
/// other.
#[test]
fn another_unit_is_another_limit() {
    let breaker = breaker();
    let calls = LimitSpec::in_flight(10).named("x");
    let first = breaker.recompile(&route(vec![calls.clone()]), at(0)).unwrap();
    let held = breaker.admit(&first, call(&first).weighing(7), at(0));
    let weight = route(vec![calls.by_weight()]);
    let second = breaker.recompile(&weight, at(1)).unwrap();
    assert!(!second.has_predecessors());
    let heavy = breaker.admit(&second, call(&second).weighing(10), at(1));
    assert!(heavy.is_allowed());
    drop(held);
    assert!(!admit(&breaker, &second, call(&second), at(1)), "ten of ten are in flight");
    drop(heavy);
    assert!(admit(&breaker, &second, call(&second), at(1)));
}

/// Goal: with three policies in use at once, each of other arithmetic, one memory sees the calls of all. The second's
/// memory saw nothing of the first's calls, so the third must be charged to the first's.
#[test]
fn three_policies_in_use_share_one_bound() {
    let breaker = breaker();
    let window =
        |count, millis| route(vec![LimitSpec::window(count, Span::from_millis(millis)).named("w")]);
    let first = breaker.recompile(&window(10, 1_000), at(0)).unwrap();
    let second = breaker.recompile(&window(10, 1_100), at(0)).unwrap();
    let third = breaker.recompile(&window(10, 1_200), at(0)).unwrap();
    assert_eq!(burst(&breaker, &first, call(&first), at(1), 6), 6);
    assert_eq!(burst(&breaker, &third, call(&third), at(2), 20), 4);
    assert_eq!(burst(&breaker, &second, call(&second), at(3), 20), 0);
    // The bound that changes alone does not end the first's memory either.
    let fourth = breaker.recompile(&window(12, 1_200), at(4)).unwrap();
    let fifth = breaker.recompile(&window(12, 1_300), at(4)).unwrap();
    assert_eq!(burst(&breaker, &fourth, call(&fourth), at(5), 20), 0);
    assert_eq!(burst(&breaker, &fifth, call(&fifth), at(5), 20), 0);
}

/// Goal: a policy that was compiled and never used leaves the limits as they were.
#[test]
fn a_policy_thrown_away_changes_no_limit() {
    let breaker = breaker();
    let spec = route(vec![LimitSpec::rate(10, SECOND, 10)]);
    let first = breaker.recompile(&spec, at(0)).unwrap();
    assert_eq!(burst(&breaker, &first, call(&first), at(0), 4), 4);
    drop(breaker.recompile(&route(vec![LimitSpec::rate(99, SECOND, 99)]), at(0)).unwrap());
    assert_eq!(burst(&breaker, &first, call(&first), at(0), 4), 4);
    let again = breaker.recompile(&spec, at(0)).unwrap();
    assert!(!again.has_predecessors());
    assert_eq!(burst(&breaker, &again, call(&again), at(0), 20), 2);
}

/// Goal: a limit taken out and put in again, even some reloads later, still owes what it owed; and is forgotten
/// once all has passed.
#[test]
fn a_limit_taken_out_and_put_in_again_gives_no_second_burst() {
    for limit in [
        LimitSpec::window(5, SECOND),
        LimitSpec::rate(5, SECOND, 5),
        LimitSpec::budget(5),
        LimitSpec::budget(5).idle(SECOND),
    ] {
        let breaker = breaker();
        let with = route(vec![limit.clone()]);
        let first = breaker.recompile(&with, at(0)).unwrap();
        assert_eq!(burst(&breaker, &first, call(&first), at(0), 9), 5);
        drop(first);
        drop(breaker.recompile(&route(Vec::new()), at(1)).unwrap());
        drop(breaker.recompile(&route(Vec::new()), at(2)).unwrap());
        let again = breaker.recompile(&with, at(3)).unwrap();
        assert_eq!(burst(&breaker, &again, call(&again), at(3), 9), 0, "{limit:?}");
        drop(again);
        drop(breaker.recompile(&route(Vec::new()), at(2_000)).unwrap());
        drop(breaker.recompile(&route(Vec::new()), at(4_000)).unwrap());
        let last = breaker.recompile(&with, at(4_000)).unwrap();
        let endless = limit == LimitSpec::budget(5);
        let whole = if endless { 0 } else { 5 };
        assert_eq!(burst(&breaker, &last, call(&last), at(4_000), 9), whole, "{limit:?}");
    }
}

/// Goal: a scope that one policy leaves out keeps its gate and its debts for the next that has it.
#[test]
fn a_scope_that_comes_back_finds_what_it_had() {
    let breaker = breaker();
    let mut with = route(vec![LimitSpec::window(5, SECOND)]);
    let first = breaker.recompile(&with, at(0)).unwrap();
    assert_eq!(burst(&breaker, &first, call(&first), at(0), 3), 3);
    breaker.kill(&first, &path("/g/r"), KillLevel::Halt, at(0)).unwrap();
    drop(first);
    with.routes[0].name = "other".into();
    let renamed = breaker.recompile(&with, at(1)).unwrap();
    let other = Call::new(renamed.route(&path("/g/other")).unwrap());
    assert_eq!(burst(&breaker, &renamed, other, at(1), 9), 5, "another name is another scope");
    drop(renamed);
    with.routes[0].name = "r".into();
    let back = breaker.recompile(&with, at(2)).unwrap();
    let stands = breaker.standing(&back, &path("/g/r"), at(2)).unwrap();
    assert_eq!(stands.state, State::Killed(KillLevel::Halt));
    let stamp = stands.stamp();
    breaker.lift(&back, stamp, breaker_core::LiftTo::Armed, at(2)).unwrap();
    assert_eq!(burst(&breaker, &back, call(&back), at(2), 9), 2);
}

/// Goal: a compile that fails leaves everything as it was, also what it would have made room for.
#[test]
fn a_failed_compile_changes_nothing() {
    let breaker = breaker();
    let with = route(vec![LimitSpec::window(5, SECOND)]);
    let first = breaker.recompile(&with, at(0)).unwrap();
    assert_eq!(burst(&breaker, &first, call(&first), at(0), 5), 5);
    drop(first);
    drop(breaker.recompile(&PolicySpec::default(), at(1)).unwrap());
    let mut many = PolicySpec::default();
    many.groups.extend(
        (0..4).map(|number| GroupSpec { name: format!("n{number}"), scope: ScopeSpec::default() }),
    );
    let blocked = breaker.recompile(&many, at(1)).unwrap();
    let mut more = many.clone();
    more.groups[0].name = "m0".into();
    more.groups[1].name = "m1".into();
    // Four cells are in use, and so the old group's and route's are all there is to forget.
    assert!(breaker.recompile(&more, at(1)).is_err());
    drop(blocked);
    let again = breaker.recompile(&with, at(2));
    // Had the old scopes been forgotten for `many`, there would be nothing to find.
    if let Ok(again) = again {
        assert!(burst(&breaker, &again, call(&again), at(2), 9) <= 5);
    }
    let breaker = Breaker::new(Capacity { scopes: 3, keys: 0 }, Seed([1, 2]));
    let first = breaker.recompile(&with, at(0)).unwrap();
    assert_eq!(burst(&breaker, &first, call(&first), at(0), 5), 5);
    drop(first);
    let mut wide = many;
    wide.groups.truncate(3);
    wide.groups.push(GroupSpec { name: "g".into(), scope: ScopeSpec::default() });
    assert!(breaker.recompile(&wide, at(1)).is_err(), "four groups, and room for three");
    let again = breaker.recompile(&with, at(2)).unwrap();
    assert_eq!(burst(&breaker, &again, call(&again), at(2), 9), 0, "nothing was forgotten");
}

/// Goal: charging twice ends: once the older policy is gone and what it admitted has passed.
#[test]
fn predecessors_end() {
    let breaker = breaker();
    let first = breaker.recompile(&route(vec![LimitSpec::rate(10, SECOND, 10)]), at(0)).unwrap();
    let spec = route(vec![LimitSpec::rate(20, SECOND, 20)]);
    let compile = |millis| breaker.recompile(&spec, at(millis)).unwrap();
    assert!(compile(0).has_predecessors());
    // The first is in use all the time, so time alone ends nothing.
    assert!(compile(9_000).has_predecessors());
    drop(first);
    let draining = compile(10_000);
    assert!(draining.has_predecessors());
    assert!(compile(10_900).has_predecessors(), "a recovery is a second");
    let last = compile(11_100);
    assert!(!last.has_predecessors());
    assert_eq!(burst(&breaker, &last, call(&last), at(11_100), 99), 20);
    assert_eq!(burst(&breaker, &draining, call(&draining), at(11_100), 99), 0);
}

/// Goal: a budget that no longer forgets takes over what an older policy charged while both were in use.
#[test]
fn a_budget_takes_over_what_was_charged_beside_it() {
    let breaker = breaker();
    let short = LimitSpec::budget(10).idle(SECOND);
    let first = breaker.recompile(&route(vec![short]), at(0)).unwrap();
    assert_eq!(burst(&breaker, &first, call(&first), at(0), 2), 2);
    let spec = route(vec![LimitSpec::budget(10)]);
    let second = breaker.recompile(&spec, at(1)).unwrap();
    assert_eq!(burst(&breaker, &first, call(&first), at(2), 3), 3);
    assert_eq!(burst(&breaker, &second, call(&second), at(2), 1), 1);
    drop(first);
    assert!(breaker.recompile(&spec, at(3)).unwrap().has_predecessors());
    // Within the idle time, so that the old one has not forgotten yet.
    assert_eq!(burst(&breaker, &second, call(&second), at(900), 1), 1);
    let last = breaker.recompile(&spec, at(1_100)).unwrap();
    assert!(!last.has_predecessors());
    assert_eq!(burst(&breaker, &last, call(&last), at(1_100), 20), 3);
}

/// Goal: the word in a key's slot is not handed to a new limit while a living policy still charges it.
#[test]
fn a_word_in_the_slot_has_one_limit_at_a_time() {
    let breaker = breaker();
    let one = |count| LimitSpec::rate(count, SECOND, 10).named("a");
    let first = breaker.recompile(&keyed(vec![one(10)], &[]), at(0)).unwrap();
    let second = breaker.recompile(&keyed(vec![one(20)], &[]), at(0)).unwrap();
    drop(first);
    drop(breaker.recompile(&keyed(vec![one(20)], &[]), at(1)).unwrap());
    let third = breaker.recompile(&keyed(vec![one(20)], &[]), at(5_000)).unwrap();
    assert!(second.has_predecessors() && !third.has_predecessors());
    let hour = LimitSpec::rate(1, Span::from_secs(3_600), 1).by_weight().named("b");
    let fourth = breaker.recompile(&keyed(vec![one(20), hour], &[]), at(5_000)).unwrap();
    let old = call_of(&breaker, &second, "x");
    assert_eq!(burst(&breaker, &second, old, at(5_000), 3), 3);
    let new = call_of(&breaker, &fourth, "x");
    assert_eq!(burst(&breaker, &fourth, new, at(5_000), 9), 1, "charged by another limit");
}

/// Goal: a key that gets limits of its own, and one that loses them, takes along what it was charged.
#[test]
fn overrides_come_and_go_without_a_second_burst() {
    for limit in [
        |count| LimitSpec::window(count, SECOND),
        |count| LimitSpec::rate(count, SECOND, count),
        LimitSpec::budget,
    ] {
        for keeps in [false, true] {
            let breaker = breaker();
            let mut held = Vec::new();
            let compile = |own: Option<u64>, now| {
                let own = own.map(|count| ("x", vec![limit(count)]));
                breaker.recompile(&keyed(vec![limit(5)], own.as_slice()), now).unwrap()
            };
            let plain = compile(None, at(0));
            let x = call_of(&breaker, &plain, "x");
            assert_eq!(burst(&breaker, &plain, x, at(0), 4), 4);
            if keeps {
                held.push(plain);
            }
            let own = compile(Some(8), at(1));
            let (x, y) = (call_of(&breaker, &own, "x"), call_of(&breaker, &own, "y"));
            let first = burst(&breaker, &own, x, at(1), 20);
            assert!(first <= 4, "{:?}: {first}", limit(5));
            assert_eq!(burst(&breaker, &own, y, at(1), 20), 5);
            held.extend(keeps.then_some(own));
            let back = compile(None, at(2));
            let x = call_of(&breaker, &back, "x");
            let more = burst(&breaker, &back, x, at(2), 20);
            assert_eq!(more, usize::from(first == 0 && limit(5) == LimitSpec::budget(5)) * more);
            assert!(4 + first + more <= 8, "{:?}: {first} and {more}", limit(5));
            held.extend(keeps.then_some(back));
            let again = compile(Some(8), at(3));
            let x = call_of(&breaker, &again, "x");
            let last = burst(&breaker, &again, x, at(3), 20);
            assert!(4 + first + more + last <= 8, "{:?}: {last}", limit(5));
            drop(again);
            held.clear();
            drop(compile(None, at(4)));
            drop(compile(None, at(3_000)));
            let rest = compile(None, at(6_000));
            assert!(!rest.has_predecessors());
            let whole = if limit(5) == LimitSpec::budget(5) { 0 } else { 5 };
            let x = call_of(&breaker, &rest, "x");
            assert!(burst(&breaker, &rest, x, at(6_000), 20) == whole || whole == 0);
        }
    }
}

/// Goal: over random reloads, with policies of many ages in use at once, no interval holds more than the largest bound of
/// the policies that lived in it; for a route's limit, for keys, and for keys with and without limits of their own.
/// `RELOAD_LIVES` says over how many.
#[test]
fn random_reloads_stay_within_the_largest_bound() {
    let asked = std::env::var("RELOAD_LIVES").ok().and_then(|lives| lives.parse().ok());
    let lives: u64 = asked.unwrap_or(LIVES);
    let passed: usize = (1..=lives).map(random_life).sum();
    assert!(passed as u64 > lives * 15, "{passed} calls passed");
}

fn random_life(seed: u64) -> usize {
    let mut dice = seed;
    let mut roll = move |sides: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice >> 11) % sides
    };
    let breaker = breaker();
    let by_key = seed.is_multiple_of(2);
    let rates = seed.is_multiple_of(3);
    // Each policy with the bound of its limit and how long an interval that bounds, and when it lived.
    let mut living: Vec<(Policy, usize)> = Vec::new();
    let mut all: Vec<(u64, u64, u64, u64)> = Vec::new();
    let mut passed: Vec<u64> = Vec::new();
    let mut now = 0;
    for _ in 0..300 {
        now += roll(60);
        match roll(12) {
            0 => {
                let (count, length) = (1 + roll(8), [500, 1_000, 1_500][roll(3) as usize]);
                let limit = if rates {
                    LimitSpec::rate(count, Span::from_millis(length), count)
                } else {
                    LimitSpec::window(count, Span::from_millis(length))
                };
                let spec = match (by_key, roll(3)) {
                    (false, _) => route(vec![limit]),
                    (true, 0) => {
                        keyed(vec![LimitSpec::window(1, SECOND).named("z")], &[("x", vec![limit])])
                    }
                    (true, 1) => keyed(vec![limit.clone()], &[("y", vec![limit])]),
                    (true, _) => keyed(vec![limit], &[]),
                };
                living.push((breaker.recompile(&spec, at(now)).unwrap(), all.len()));
                all.push((count, length, now, u64::MAX));
            }
            1 if living.len() > 1 => {
                let (_, gone) = living.remove(roll(living.len() as u64) as usize);
                all[gone].3 = now;
            }
            _ if !living.is_empty() => {
                let (policy, number) = &living[roll(living.len() as u64) as usize];
                let call = if by_key { call_of(&breaker, policy, "x") } else { call(policy) };
                if !admit(&breaker, policy, call, at(now)) {
                    continue;
                }
                passed.push(now);
                let (_, length, ..) = all[*number];
                let start = now.saturating_sub(length);
                let in_it = passed.iter().filter(|&&then| then > start || now < length).count();
                let alive = all.iter().filter(|(.., until)| *until > start);
                let bound = if rates {
                    // Where a rate follows another, no more than the larger burst and the faster refill.
                    let bursts = alive.clone().map(|(count, ..)| *count);
                    let refills = alive.map(|(count, over, ..)| (count * length).div_ceil(*over));
                    bursts.max().unwrap() + refills.max().unwrap()
                } else {
                    alive.map(|(count, over, ..)| count * length.div_ceil(*over)).max().unwrap()
                };
                assert!(in_it as u64 <= bound, "seed {seed} at {now}: {in_it} of {bound}");
            }
            _ => {}
        }
    }
    passed.len()
}

/// Goal: threads that decide by the old and by the new policy at once never admit more than the larger bound in an
/// interval. Instants are virtual: all threads decide at one, and meet before the next.
#[test]
fn threads_under_two_policies_share_one_bound() {
    const HALF: u64 = 500;
    // Few where each step is interpreted.
    const TURNS: u64 = if cfg!(miri) { 8 } else { 40 };
    for (before, after) in [(8, 5), (5, 8)] {
        for by_key in [false, true] {
            let breaker = breaker();
            let compile = |count, length| {
                let limit = LimitSpec::window(count, Span::from_millis(length)).named("w");
                let spec = if by_key { keyed(vec![limit], &[]) } else { route(vec![limit]) };
                breaker.recompile(&spec, at(0)).unwrap()
            };
            let old = compile(before, 2 * HALF);
            let new = compile(after, 2 * HALF + 1);
            assert!(new.has_predecessors());
            let passed: Vec<AtomicU64> = (0..TURNS).map(|_| AtomicU64::new(0)).collect();
            let barrier = Barrier::new(4);
            std::thread::scope(|scope| {
                for policy in [&old, &new, &old, &new] {
                    let (breaker, passed, barrier) = (&breaker, &passed, &barrier);
                    scope.spawn(move || {
                        let call =
                            if by_key { call_of(breaker, policy, "x") } else { call(policy) };
                        for (turn, passed) in (0..).zip(passed) {
                            barrier.wait();
                            let more = burst(breaker, policy, call, at(turn * HALF), 20);
                            passed.fetch_add(more as u64, Ordering::Relaxed);
                        }
                    });
                }
            });
            let passed: Vec<u64> = passed.into_iter().map(AtomicU64::into_inner).collect();
            for pair in passed.windows(2) {
                assert!(pair.iter().sum::<u64>() <= before.max(after), "{passed:?}");
            }
            assert!(passed.iter().sum::<u64>() >= TURNS * 3 / 8 * before.min(after), "{passed:?}");
        }
    }
}

/// Goal: beyond the rate of first sights fresh keys share the overflow cell, known keys and orders do not mind, and
/// the rate is checked like any.
#[test]
fn fresh_keys_are_bounded_by_a_rate() {
    let breaker = breaker();
    let mut spec = keyed(vec![LimitSpec::window(2, SECOND)], &[]);
    let newcomers = Newcomers { count: 1, per: SECOND, burst: 3 };
    spec.routes[0].scope.keys[0].newcomers = Some(newcomers);
    let policy = breaker.recompile(&spec, at(0)).unwrap();
    let usage = || breaker.key_usage_of(&policy, &path("/g/r"), "k").unwrap();
    let passed = (0..20).map(|number| {
        let call = call_of(&breaker, &policy, &format!("n{number}"));
        burst(&breaker, &policy, call, at(0), 1)
    });
    // Three slots, and two calls of all the others together.
    assert_eq!(passed.sum::<usize>(), 5);
    assert_eq!((usage().held, usage().turned_away), (3, 17));
    let known = call_of(&breaker, &policy, "n0");
    assert!(admit(&breaker, &policy, known, at(1)));
    breaker.kill(&policy, &path("/g/r/k=fresh"), KillLevel::Halt, at(1)).unwrap();
    assert_eq!(usage().held, 4);
    let late = call_of(&breaker, &policy, "late");
    assert!(admit(&breaker, &policy, late, at(1_100)));
    assert_eq!(usage().held, 5);
    spec.routes[0].scope.keys[0].newcomers = Some(Newcomers { count: 0, ..newcomers });
    let errors = breaker.recompile(&spec, at(1_200)).unwrap_err();
    assert_eq!(errors[0].path, "routes.r.keys.k.newcomers");
}

/// Goal: a dimension is crowded from three quarters of its slots on, counting those with something to lose.
#[test]
fn a_crowded_dimension_says_so() {
    let breaker = breaker();
    let policy = breaker.recompile(&keyed(vec![LimitSpec::window(2, SECOND)], &[]), at(0)).unwrap();
    let usage = || breaker.key_usage_of(&policy, &path("/g/r"), "k").unwrap();
    let mut number = 0;
    while usage().busy < 48 {
        assert!(!usage().is_crowded(), "{:?}", usage());
        number += 1;
        assert!(number < 1_000);
        let call = call_of(&breaker, &policy, &format!("n{number}"));
        admit(&breaker, &policy, call, at(0));
    }
    assert!(usage().is_crowded(), "{:?}", usage());
    assert!(breaker.key_usage_of(&policy, &path("/g"), "k").is_none());
    drop(breaker.recompile(&keyed(Vec::new(), &[]), at(5_000)).unwrap());
    assert_eq!((usage().busy, usage().is_crowded()), (0, false), "all have gone quiet");
}

/// Goal: a key that loses its own limits charges its dimension's again, also where its slot was charged before: what it brings along is
/// put among what is there. It was written over a part of a ring, which then turned nowhere, and every later call of the key
/// looked for the turn for ever.
#[test]
fn a_key_back_among_others_finds_a_ring_that_turns() {
    for brings in 1..=3 {
        let breaker = breaker();
        let shared = LimitSpec::window(3, SECOND);
        let own = [("x", vec![LimitSpec::window(5, SECOND)])];
        let compile = |own: &[(&str, Vec<LimitSpec>)], millis| {
            breaker.recompile(&keyed(vec![shared.clone()], own), at(millis)).unwrap()
        };
        let first = compile(&[], 0);
        assert_eq!(burst(&breaker, &first, call_of(&breaker, &first, "x"), at(0), 9), 3);
        drop(first);
        // Twice again, until what the key was charged among others is charged no more.
        drop(compile(&own, 10));
        drop(compile(&own, 2_000));
        let alone = compile(&own, 4_000);
        assert!(!alone.has_predecessors());
        let x = call_of(&breaker, &alone, "x");
        assert_eq!(burst(&breaker, &alone, x, at(4_000), brings), brings);
        let back = compile(&[], 4_001);
        drop(alone);
        let x = call_of(&breaker, &back, "x");
        assert_eq!(burst(&breaker, &back, x, at(4_001), 9), 3 - brings);
        assert_eq!(burst(&breaker, &back, x, at(9_000), 9), 3);
    }
}

/// Goal: a memory of all keys that one key kept for its own is charged for that key as long as a policy with it lives, though the
/// other keys' policies have gone. It was known by its number of selves alone, and forgotten with the others'.
#[test]
fn what_a_key_kept_for_its_own_is_charged_while_its_policy_lives() {
    let breaker = breaker();
    let window = |count, millis| LimitSpec::window(count, Span::from_millis(millis));
    let all = |limit| keyed(vec![limit], &[]);
    let own = keyed(vec![window(1, 1_000).named("z")], &[("x", vec![window(4, 500)])]);
    let compile = |spec: &PolicySpec, millis| breaker.recompile(spec, at(millis)).unwrap();
    let first = compile(&all(window(4, 500)), 0);
    drop(compile(&all(window(8, 500)), 1));
    // The key goes back to the first memory, for its own; the others do not.
    let kept = compile(&own, 2);
    drop(first);
    let wide = all(window(5, 1_000));
    let third = compile(&wide, 3);
    drop(compile(&wide, 2_000));
    let last = compile(&wide, 4_000);
    let (one, other) = (call_of(&breaker, &kept, "x"), call_of(&breaker, &last, "x"));
    assert_eq!(burst(&breaker, &kept, one, at(4_000), 9), 4);
    assert_eq!(burst(&breaker, &last, other, at(4_001), 9), 0, "more than any policy allows");
    drop(third);
}
