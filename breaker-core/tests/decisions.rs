//! Decisions and orders through the public door, each rule once; no randomness here.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use breaker_core::{
    Breaker, By, Call, Capacity, Cause, Class, Counting, GroupSpec, KeyOverride, KeySpec,
    KillLevel, Level, LiftTo, LimitKind, LimitSpec, Missing, Mode, Mono, OrderError, Outcome,
    Permit, Policy, PolicySpec, Recover, RouteSpec, Scope, ScopeSpec, Seed, Settlement, Span,
    State, Sweeper, Verdict,
};

const SECOND: Span = Span::from_secs(1);
const PROBE: Recover = Recover::Probe { probes: 2, after: SECOND, at_most: Span::from_secs(8) };

fn at(millis: u64) -> Mono {
    Mono::ZERO.plus(Span::from_millis(millis))
}

fn scope(path: &str) -> Scope {
    Scope::parse(path).unwrap()
}

fn breaker() -> Breaker {
    Breaker::new(Capacity { scopes: 8, keys: 64 }, Seed([1, 2]))
}

fn limits(limits: Vec<LimitSpec>) -> ScopeSpec {
    ScopeSpec { limits, recover: PROBE, ..ScopeSpec::default() }
}

fn key(name: &str, limits: Vec<LimitSpec>) -> KeySpec {
    KeySpec { name: name.into(), limits, recover: PROBE, ..KeySpec::default() }
}

/// `/pay/orders` (normal) and `/pay/cancel` (reducing).
fn spec(group: ScopeSpec, route: ScopeSpec) -> PolicySpec {
    let cancel = ScopeSpec { limits: vec![LimitSpec::window(1, SECOND)], ..ScopeSpec::default() };
    PolicySpec {
        global: ScopeSpec::default(),
        groups: vec![GroupSpec { name: "pay".into(), scope: group }],
        routes: vec![
            RouteSpec {
                name: "orders".into(),
                group: "pay".into(),
                class: Class::Normal,
                scope: route,
            },
            RouteSpec {
                name: "cancel".into(),
                group: "pay".into(),
                class: Class::Reducing,
                scope: cancel,
            },
        ],
    }
}

fn call(policy: &Policy, path: &str) -> Call {
    Call::new(policy.route(&scope(path)).unwrap())
}

fn orders(policy: &Policy) -> Call {
    call(policy, "/pay/orders")
}

fn cancel(policy: &Policy) -> Call {
    call(policy, "/pay/cancel")
}

fn allowed(verdict: Verdict<'_>) -> Permit<'_> {
    match verdict {
        Verdict::Allow(permit) => permit,
        Verdict::Deny(denial) => panic!("denied: {denial:?}"),
    }
}

fn denied(verdict: Verdict<'_>) -> breaker_core::Denial {
    match verdict {
        Verdict::Allow(_) => panic!("allowed"),
        Verdict::Deny(denial) => denial,
    }
}

/// Goal: a window refuses above its count, names itself, and tells the exact wait.
#[test]
fn a_window_refuses_and_tells_the_wait() {
    let breaker = breaker();
    let spec = spec(ScopeSpec::default(), limits(vec![LimitSpec::window(2, SECOND)]));
    let policy = breaker.compile(&spec).unwrap();
    drop(allowed(breaker.admit(&policy, orders(&policy), at(0))));
    drop(allowed(breaker.admit(&policy, orders(&policy), at(400))));
    let denial = denied(breaker.admit(&policy, orders(&policy), at(700)));
    assert_eq!(denial.cause, Cause::Limit(0));
    assert_eq!(denial.place.level, Level::Route);
    assert_eq!(denial.wait, Some(Span::from_millis(300)));
    assert_eq!(policy.limit_of(&denial), Some(&LimitSpec::window(2, SECOND)));
    assert_eq!(policy.scope_of(denial.place), Some((&scope("/pay/orders"), None)));
    drop(allowed(breaker.admit(&policy, orders(&policy), at(1_000))));
    let _ = denied(breaker.admit(&policy, orders(&policy), at(1_000)));
}

/// Goal: a kill at any level of the lineage denies, a lift brings probation, probes bring it back.
#[test]
fn kill_lift_probation() {
    for path in ["/", "/pay", "/pay/orders"] {
        let breaker = breaker();
        let policy = breaker.compile(&spec(limits(vec![]), limits(vec![]))).unwrap();
        let stamp = breaker.kill(&policy, &scope(path), KillLevel::Halt, at(0)).unwrap();
        let denial = denied(breaker.admit(&policy, orders(&policy), at(1)));
        assert_eq!(denial.cause, Cause::Killed(KillLevel::Halt));
        assert_eq!((denial.place, denial.epoch), (stamp.place, stamp.epoch));
        assert_eq!(denial.wait, None);
        breaker.lift(&policy, stamp, LiftTo::HalfOpen, at(2)).unwrap();
        let probes = match path {
            "/" => 5,
            _ => 2,
        };
        let permits: Vec<_> =
            (0..probes).map(|_| allowed(breaker.admit(&policy, orders(&policy), at(3)))).collect();
        let denial = denied(breaker.admit(&policy, orders(&policy), at(3)));
        assert_eq!(denial.cause, Cause::Probing);
        let moved: Vec<_> =
            permits.into_iter().map(|permit| permit.settle(Outcome::Good, at(4))).collect();
        assert_eq!(moved.iter().filter(|moved| **moved).count(), 1, "the last one arms");
        drop(allowed(breaker.admit(&policy, orders(&policy), at(5))));
    }
}

/// Goal: a lift that has not seen the newest kill does nothing.
#[test]
fn a_lift_names_its_kill() {
    let breaker = breaker();
    let policy = breaker.compile(&spec(limits(vec![]), limits(vec![]))).unwrap();
    let first = breaker.kill(&policy, &scope("/pay"), KillLevel::Halt, at(0)).unwrap();
    let second = breaker.kill(&policy, &scope("/pay"), KillLevel::Halt, at(0)).unwrap();
    assert_ne!(first, second);
    let stale = breaker.lift(&policy, first, LiftTo::Armed, at(0));
    assert_eq!(stale, Err(OrderError::Stale));
    breaker.lift(&policy, second, LiftTo::Armed, at(0)).unwrap();
    drop(allowed(breaker.admit(&policy, orders(&policy), at(0))));
}

/// Goal: reducing calls pass a trip and a halt, charge nothing, and stop at a cut; cut goes down
/// to halt by a lift, and a weaker kill does not lower it.
#[test]
fn reducing_calls_stop_at_a_cut_only() {
    let breaker = breaker();
    let policy = breaker.compile(&spec(limits(vec![]), limits(vec![]))).unwrap();
    breaker.trip(&policy, &scope("/pay"), at(0)).unwrap();
    for _ in 0..3 {
        drop(allowed(breaker.admit(&policy, cancel(&policy), at(0))));
    }
    breaker.kill(&policy, &scope("/pay"), KillLevel::Halt, at(0)).unwrap();
    let permit = allowed(breaker.admit(&policy, cancel(&policy), at(0)));
    assert!(!breaker.is_cut(&permit.pass()));
    breaker.kill(&policy, &scope("/pay"), KillLevel::Cut, at(0)).unwrap();
    let stamp = breaker.kill(&policy, &scope("/pay"), KillLevel::Halt, at(0)).unwrap();
    assert!(breaker.is_cut(&permit.pass()));
    assert_eq!(
        breaker.look(&permit.pass(), at(0)).unwrap_err().cause,
        Cause::Killed(KillLevel::Cut)
    );
    let denial = denied(breaker.admit(&policy, cancel(&policy), at(0)));
    assert_eq!(denial.cause, Cause::Killed(KillLevel::Cut));
    let halted = breaker.lift(&policy, stamp, LiftTo::Halt, at(0)).unwrap();
    drop(allowed(breaker.admit(&policy, cancel(&policy), at(0))));
    let _ = denied(breaker.admit(&policy, orders(&policy), at(0)));
    assert_eq!(breaker.lift(&policy, halted, LiftTo::Halt, at(0)), Ok(halted));
}

/// Goal: a breach trips within the call, holds, doubles its hold with each strike, and forgets after
/// a calm as long as the longest hold.
#[test]
fn a_breach_trips_and_holds_double() {
    let breaker = breaker();
    let limit = LimitSpec::window(1, Span::from_millis(10)).tripping();
    let policy = breaker.compile(&spec(ScopeSpec::default(), limits(vec![limit]))).unwrap();
    let mut now = 0;
    for strike in 0..5 {
        let hold = (1_000_u64 << strike).min(8_000);
        drop(allowed(breaker.admit(&policy, orders(&policy), at(now))));
        let denial = denied(breaker.admit(&policy, orders(&policy), at(now)));
        assert_eq!(denial.cause, Cause::Tripped(By::Limit(0)));
        assert!(denial.moved);
        let wait = denial.wait.unwrap().as_nanos() / 1_000_000;
        // Rounded up to the gate's unit of 17 ms before it is doubled; from the second on up to a quarter more, so
        // that many that tripped together do not come back together.
        let spread = if strike == 0 { 0 } else { hold / 4 };
        let most = (hold + (17 << strike) + spread).min(8_000 + 17) + 17;
        assert!(wait >= hold && wait <= most, "{wait} for {hold}");
        let standing = breaker.standing(&policy, &scope("/pay/orders"), at(now)).unwrap();
        assert_eq!(standing.state, State::Tripped);
        let _ = denied(breaker.admit(&policy, orders(&policy), at(now + hold)));
        now += wait;
        let standing = breaker.standing(&policy, &scope("/pay/orders"), at(now + 1)).unwrap();
        assert_eq!(standing.state, State::HalfOpen, "computed on read");
        now += 1;
        for probe in [now, now + 20] {
            let permit = allowed(breaker.admit(&policy, orders(&policy), at(probe)));
            permit.settle(Outcome::Good, at(probe));
        }
        now += 40;
        let standing = breaker.standing(&policy, &scope("/pay/orders"), at(now)).unwrap();
        assert_eq!(standing.state, State::Armed);
    }
    now += 8_050;
    drop(allowed(breaker.admit(&policy, orders(&policy), at(now))));
    let denial = denied(breaker.admit(&policy, orders(&policy), at(now)));
    assert!(denial.wait.unwrap() < Span::from_millis(1_050), "calm forgives");
}

/// Goal: probation never sticks: a permit dropped unsettled gives its probe back, a fault or a slow
/// answer trips again, and an answer from an earlier probation counts for nothing.
#[test]
fn probation_never_sticks() {
    let breaker = breaker();
    let policy = breaker.compile(&spec(limits(vec![]), limits(vec![]))).unwrap();
    let path = scope("/pay/orders");
    breaker.trip(&policy, &path, at(0)).unwrap();
    for _ in 0..10 {
        drop(allowed(breaker.admit(&policy, orders(&policy), at(1_100))));
    }
    let old = allowed(breaker.admit(&policy, orders(&policy), at(1_100)));
    let bad = allowed(breaker.admit(&policy, orders(&policy), at(1_100)));
    assert!(bad.settle(Outcome::Slow, at(1_200)));
    assert_eq!(breaker.standing(&policy, &path, at(1_200)).unwrap().strikes, 2);
    let one = allowed(breaker.admit(&policy, orders(&policy), at(4_000)));
    assert!(!old.settle(Outcome::Fault, at(4_000)));
    assert!(!one.settle(Outcome::Good, at(4_000)));
    let two = allowed(breaker.admit(&policy, orders(&policy), at(4_000)));
    assert!(two.settle(Outcome::Good, at(4_000)));
    assert_eq!(breaker.standing(&policy, &path, at(4_000)).unwrap().state, State::Armed);
}

/// Goal: manual recovery never comes back by itself; a lift leads to probation, a reset back.
#[test]
fn manual_waits_for_a_person() {
    let breaker = breaker();
    let policy = breaker.compile(&spec(ScopeSpec::default(), ScopeSpec::default())).unwrap();
    let path = scope("/pay/orders");
    let stamp = breaker.trip(&policy, &path, at(0)).unwrap();
    let mut sweeper = Sweeper::new();
    for days in 0..40 {
        let now = at(days * 86_400_000);
        sweeper.sweep(&breaker, &policy, now, &mut Vec::new());
        let denial = denied(breaker.admit(&policy, orders(&policy), now));
        assert_eq!((denial.cause, denial.wait), (Cause::Tripped(By::Hand), None));
    }
    breaker.lift(&policy, stamp, LiftTo::HalfOpen, at(0)).unwrap();
    assert_eq!(breaker.standing(&policy, &path, at(0)).unwrap().state, State::HalfOpen);
    assert_eq!(breaker.reset(&policy, &path, at(0)), Ok(true));
    assert_eq!(breaker.reset(&policy, &path, at(0)), Ok(false));
    breaker.kill(&policy, &path, KillLevel::Halt, at(0)).unwrap();
    assert_eq!(breaker.reset(&policy, &path, at(0)), Err(OrderError::Killed));
    assert_eq!(breaker.trip(&policy, &path, at(0)), Err(OrderError::Killed));
}

/// Goal: what a narrower scope refuses is not offered to a wider one, and charges nothing there;
/// what the same scope's throttle refuses is offered to its trip limit.
#[test]
fn offered_means_not_refused_by_anything_narrower() {
    let breaker = breaker();
    let trip = LimitSpec::window(4, SECOND).offered().tripping();
    let group = limits(vec![trip]);
    let route = limits(vec![LimitSpec::window(1, SECOND)]);
    let policy = breaker.compile(&spec(group, route)).unwrap();
    drop(allowed(breaker.admit(&policy, orders(&policy), at(0))));
    for _ in 0..20 {
        let denial = denied(breaker.admit(&policy, orders(&policy), at(0)));
        assert_eq!((denial.cause, denial.place.level), (Cause::Limit(0), Level::Route));
    }
    let breaker = self::breaker();
    let both =
        vec![LimitSpec::window(1, SECOND), LimitSpec::window(4, SECOND).offered().tripping()];
    let policy = breaker.compile(&spec(ScopeSpec::default(), limits(both))).unwrap();
    drop(allowed(breaker.admit(&policy, orders(&policy), at(0))));
    for _ in 0..3 {
        let denial = denied(breaker.admit(&policy, orders(&policy), at(0)));
        assert_eq!(denial.cause, Cause::Limit(0));
    }
    let denial = denied(breaker.admit(&policy, orders(&policy), at(0)));
    assert_eq!((denial.cause, denial.moved), (Cause::Tripped(By::Limit(1)), true));
}

/// Goal: a refusal by a wider scope leaves the narrower ones as they were.
#[test]
fn a_wider_refusal_charges_nothing_narrower() {
    let breaker = breaker();
    let group = limits(vec![LimitSpec::window(1, Span::from_millis(100))]);
    let route = limits(vec![LimitSpec::window(2, SECOND), LimitSpec::rate(1, SECOND, 2).offered()]);
    let policy = breaker.compile(&spec(group, route)).unwrap();
    drop(allowed(breaker.admit(&policy, orders(&policy), at(0))));
    let denial = denied(breaker.admit(&policy, orders(&policy), at(0)));
    assert_eq!(denial.place.level, Level::Group);
    // The offered rate keeps the offer that the group refused, so it is spent; the window is not.
    let denial = denied(breaker.admit(&policy, orders(&policy), at(200)));
    assert_eq!((denial.place.level, denial.cause), (Level::Route, Cause::Limit(1)));
    drop(allowed(breaker.admit(&policy, orders(&policy), at(1_000))));
}

/// Goal: shadow mode charges, trips and records, and denies nothing but a kill.
#[test]
fn shadow_denies_nothing_but_a_kill() {
    let breaker = breaker();
    let route =
        ScopeSpec { mode: Mode::Shadow, ..limits(vec![LimitSpec::window(1, SECOND).tripping()]) };
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let path = scope("/pay/orders");
    assert!(allowed(breaker.admit(&policy, orders(&policy), at(0))).shadowed().is_none());
    let permit = allowed(breaker.admit(&policy, orders(&policy), at(0)));
    let shadowed = permit.shadowed().unwrap();
    assert_eq!((shadowed.cause, shadowed.moved), (Cause::Tripped(By::Limit(0)), true));
    assert_eq!(breaker.standing(&policy, &path, at(0)).unwrap().state, State::Tripped);
    let permit = allowed(breaker.admit(&policy, orders(&policy), at(0)));
    assert_eq!(permit.shadowed().unwrap().cause, Cause::Tripped(By::Limit(0)));
    assert!(breaker.look(&permit.pass(), at(0)).is_ok());
    let probes =
        [2_000, 4_000].map(|now| allowed(breaker.admit(&policy, orders(&policy), at(now))));
    assert!(probes.iter().all(|probe| probe.shadowed().is_none()));
    let permit = allowed(breaker.admit(&policy, orders(&policy), at(6_000)));
    assert_eq!(permit.shadowed().unwrap().cause, Cause::Probing);
    breaker.kill(&policy, &path, KillLevel::Halt, at(6_000)).unwrap();
    let _ = denied(breaker.admit(&policy, orders(&policy), at(6_000)));
    assert!(breaker.look(&permit.pass(), at(6_000)).is_err());
}

/// Goal: an operator's mode overrides the policy's until reset, also through a kill.
#[test]
fn an_operators_mode_lasts_until_reset() {
    let breaker = breaker();
    let spec = spec(ScopeSpec::default(), limits(vec![LimitSpec::window(1, SECOND)]));
    let policy = breaker.compile(&spec).unwrap();
    let path = scope("/pay/orders");
    breaker.set_mode(&policy, &path, Some(Mode::Shadow), at(0)).unwrap();
    let stamp = breaker.kill(&policy, &path, KillLevel::Halt, at(0)).unwrap();
    breaker.lift(&policy, stamp, LiftTo::Armed, at(0)).unwrap();
    for _ in 0..3 {
        drop(allowed(breaker.admit(&policy, orders(&policy), at(0))));
    }
    assert_eq!(breaker.standing(&policy, &path, at(0)).unwrap().mode, Mode::Shadow);
    assert_eq!(breaker.reset(&policy, &path, at(0)), Ok(true));
    let _ = denied(breaker.admit(&policy, orders(&policy), at(0)));
}

/// Goal: each key has its own limits and gate; a kill hits its own key only; dimensions come in
/// the order global, group, route.
#[test]
fn keys_are_apart() {
    let breaker = breaker();
    let mut group = limits(vec![]);
    let account = key("account", vec![LimitSpec::window(1, SECOND)]);
    group.keys.push(KeySpec { missing: Missing::Skip, ..account });
    let mut route = limits(vec![]);
    route.keys.push(key("symbol", vec![]));
    let mut spec = spec(group, route);
    spec.global.keys.push(key("desk", vec![]));
    let policy = breaker.compile(&spec).unwrap();
    let id = policy.route(&scope("/pay/orders")).unwrap();
    let names: Vec<_> = policy.dimensions(id).map(|d| (d.name, d.level)).collect();
    let expected = [("desk", Level::Global), ("account", Level::Group), ("symbol", Level::Route)];
    assert_eq!(names, expected);

    let with = |account: &str| orders(&policy).with_key(1, breaker.hash(account.as_bytes()));
    drop(allowed(breaker.admit(&policy, with("a"), at(0))));
    let denial = denied(breaker.admit(&policy, with("a"), at(0)));
    assert_eq!(denial.place.level, Level::Key);
    assert_eq!(denial.place.key, Some((1, breaker.hash(b"a"))));
    assert_eq!(policy.scope_of(denial.place), Some((&scope("/pay"), Some("account"))));
    drop(allowed(breaker.admit(&policy, with("b"), at(0))));
    let permit =
        allowed(breaker.admit(&policy, with("c").with_key(2, breaker.hash(b"EXC")), at(0)));
    let stamp =
        breaker.kill(&policy, &scope("/pay/orders/symbol=EXC"), KillLevel::Cut, at(0)).unwrap();
    assert!(breaker.look(&permit.pass(), at(0)).is_err(), "a key that had no cell is found");
    assert!(breaker.is_cut(&permit.pass()));
    let _ =
        denied(breaker.admit(&policy, orders(&policy).with_key(2, breaker.hash(b"EXC")), at(0)));
    drop(allowed(breaker.admit(&policy, orders(&policy).with_key(2, breaker.hash(b"EXD")), at(0))));
    let standings = breaker.standings(&policy, at(0));
    assert_eq!(standings.len(), 5, "four named scopes and one key");
    breaker.lift(&policy, stamp, LiftTo::Armed, at(0)).unwrap();
    drop(allowed(breaker.admit(&policy, orders(&policy).with_key(2, breaker.hash(b"EXC")), at(0))));
    assert_eq!(breaker.standings(&policy, at(0)).len(), 4);
}

/// Goal: a noisy key does not trip its route, and trips itself if told.
#[test]
fn a_noisy_key_is_stopped_at_its_own_cell() {
    let breaker = breaker();
    let mut route = limits(vec![LimitSpec::window(3, SECOND).offered().tripping()]);
    route.keys.push(key("account", vec![LimitSpec::window(2, SECOND).tripping()]));
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let noisy = orders(&policy).with_key(0, breaker.hash(b"noisy"));
    for _ in 0..2 {
        drop(allowed(breaker.admit(&policy, noisy, at(0))));
    }
    let denial = denied(breaker.admit(&policy, noisy, at(0)));
    assert_eq!((denial.cause, denial.moved), (Cause::Tripped(By::Limit(0)), true));
    for _ in 0..20 {
        let denial = denied(breaker.admit(&policy, noisy, at(0)));
        assert_eq!((denial.place.level, denial.moved), (Level::Key, false));
    }
    let quiet = orders(&policy).with_key(0, breaker.hash(b"quiet"));
    drop(allowed(breaker.admit(&policy, quiet, at(0))));
}

/// Goal: a full bucket makes newcomers share a throttle that never trips; a kill still finds room, in the cells kept for
/// orders and then in those of busy keys; quiet keys give up their cells; blocked ones never.
#[test]
fn a_full_table_throttles_and_still_kills() {
    let breaker = Breaker::new(Capacity { scopes: 8, keys: 1 }, Seed([1, 2]));
    let mut route = limits(vec![]);
    route.keys.push(key("account", vec![LimitSpec::window(3, SECOND).tripping()]));
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let path = |label: u32| scope(&format!("/pay/orders/account={label}"));
    let with = |label: u32| orders(&policy).with_key(0, breaker.hash(label.to_string().as_bytes()));
    for label in 0..30 {
        drop(allowed(breaker.admit(&policy, with(label), at(0))));
    }
    for label in 30..33 {
        drop(allowed(breaker.admit(&policy, with(label), at(0))));
    }
    for label in 33..44 {
        let denial = denied(breaker.admit(&policy, with(label), at(0)));
        assert_eq!((denial.cause, denial.moved), (Cause::Limit(0), false));
    }
    let usage = breaker.key_usage();
    assert_eq!((usage.held, usage.cells, usage.overflowed), (30, 32, 14));
    let permit = allowed(breaker.admit(&policy, with(100), at(1_000)));
    for label in 200..232 {
        breaker.kill(&policy, &path(label), KillLevel::Halt, at(1_000)).unwrap();
    }
    assert!(breaker.look(&permit.pass(), at(1_000)).is_ok(), "evicted, not killed");
    let full = breaker.kill(&policy, &path(300), KillLevel::Halt, at(1_000));
    assert_eq!(full, Err(OrderError::NoRoom));
    for label in 200..232 {
        let denial = denied(breaker.admit(&policy, with(label), at(9_000)));
        assert_eq!(denial.cause, Cause::Killed(KillLevel::Halt));
    }
    assert_eq!(breaker.standings(&policy, at(9_000)).len(), 4 + 32);
}

/// Goal: a decision asks for the time once, and not at all if a kill refuses the call; what it says is what `admit` says.
#[test]
fn the_clock_is_asked_once_or_never() {
    let asked = std::cell::Cell::new(0);
    let clock = || {
        asked.set(asked.get() + 1);
        at(5)
    };
    for limits in [vec![], vec![LimitSpec::rate(9, SECOND, 9)], vec![LimitSpec::window(9, SECOND)]]
    {
        for keys in [vec![], vec![key("account", vec![LimitSpec::rate(9, SECOND, 9)])]] {
            let breaker = breaker();
            let route = ScopeSpec { limits: limits.clone(), keys, ..ScopeSpec::default() };
            let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
            let call = orders(&policy).with_key(0, breaker.hash(b"7"));
            for _ in 0..2 {
                asked.set(0);
                drop(allowed(breaker.admit_at(&policy, call, clock)));
                assert_eq!(asked.get(), 1);
            }
            for path in ["/pay/orders", "/pay", "/"] {
                breaker.kill(&policy, &scope(path), KillLevel::Halt, at(6)).unwrap();
                asked.set(0);
                let denial = denied(breaker.admit_at(&policy, call, clock));
                assert_eq!((denial, asked.get()), (denied(breaker.admit(&policy, call, at(7))), 0));
                assert_eq!(denial.cause, Cause::Killed(KillLevel::Halt));
                drop(allowed(breaker.admit_at(&policy, cancel(&policy), clock)));
            }
            assert_eq!(breaker.counts(&policy, &scope("/pay/orders")).unwrap().blocked, 6);
        }
    }
}

/// Goal: the sweep tells each move once, with what it skipped, and ends a hold by itself.
#[test]
fn the_sweep_tells_what_moved() {
    let breaker = breaker();
    let mut route = limits(vec![]);
    route.keys.push(key("account", vec![]));
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let mut sweeper = Sweeper::new();
    let mut out = Vec::new();
    let mut sweep = |now| {
        sweeper.sweep(&breaker, &policy, now, &mut out);
        std::mem::take(&mut out)
    };
    assert!(sweep(at(0)).is_empty());
    breaker.trip(&policy, &scope("/pay/orders"), at(0)).unwrap();
    breaker.kill(&policy, &scope("/pay/orders/account=7"), KillLevel::Cut, at(0)).unwrap();
    let stamp = breaker.kill(&policy, &scope("/pay"), KillLevel::Halt, at(0)).unwrap();
    breaker.lift(&policy, stamp, LiftTo::Armed, at(0)).unwrap();
    let told = sweep(at(20));
    assert_eq!(told.len(), 3);
    let of = |level| told.iter().find(|fact| fact.place.level == level).unwrap();
    let (route, group, key) = (of(Level::Route), of(Level::Group), of(Level::Key));
    assert_eq!((route.from, route.to), (State::Armed, State::Tripped));
    assert_eq!((route.cause, route.skipped), (Some(Cause::Tripped(By::Hand)), 0));
    assert!(route.until.unwrap() >= at(1_000));
    assert_eq!((group.from, group.to, group.skipped), (State::Armed, State::Armed, 1));
    assert_eq!(
        (key.to, key.cause),
        (State::Killed(KillLevel::Cut), Some(Cause::Killed(KillLevel::Cut)))
    );
    assert_eq!(key.place.key, Some((0, breaker.hash(b"7"))));
    assert!(sweep(at(40)).is_empty());
    let told = sweep(at(1_100));
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].from, told[0].to), (State::Tripped, State::HalfOpen));
    assert!(sweep(at(1_200)).is_empty());
}

/// Goal: recompiling keeps gates by name and debts by equal limit; a failed compile changes nothing.
#[test]
fn recompiling_keeps_gates_and_debts() {
    let breaker = breaker();
    let mut route = limits(vec![LimitSpec::window(1, SECOND).named("s")]);
    route.keys.push(key("account", vec![LimitSpec::rate(1, SECOND, 1)]));
    let mut first_spec = spec(ScopeSpec::default(), route);
    let first = breaker.compile(&first_spec).unwrap();
    let with = |policy: &Policy| orders(policy).with_key(0, breaker.hash(b"a"));
    drop(allowed(breaker.admit(&first, with(&first), at(0))));
    breaker.kill(&first, &scope("/pay"), KillLevel::Halt, at(0)).unwrap();
    let mut broken = first_spec.clone();
    broken.routes[0].group = "nowhere".into();
    assert!(breaker.compile(&broken).is_err());
    drop(first);

    first_spec.groups.push(GroupSpec { name: "more".into(), scope: ScopeSpec::default() });
    first_spec.routes[0].scope.limits.insert(0, LimitSpec::window(5, Span::from_secs(60)));
    let second = breaker.compile(&first_spec).unwrap();
    let denial = denied(breaker.admit(&second, with(&second), at(0)));
    assert_eq!(denial.cause, Cause::Killed(KillLevel::Halt));
    let stamp = breaker.standing(&second, &scope("/pay"), at(0)).unwrap();
    let stamp = stamp.stamp();
    breaker.lift(&second, stamp, LiftTo::Armed, at(0)).unwrap();
    let denial = denied(breaker.admit(&second, with(&second), at(0)));
    assert_eq!(denial.place.level, Level::Key, "the key's debt is kept");
    let denial = denied(breaker.admit(&second, orders(&second), at(0)));
    assert_eq!(denial.cause, Cause::Limit(1), "the route's window is kept, the new one is empty");
    drop(allowed(breaker.admit(&second, orders(&second), at(1_000))));
}

/// Goal: every mistake of a spec is told at once, with its path.
#[test]
fn all_errors_of_a_spec_are_told() {
    let limit = LimitSpec::window;
    let mut route = limits(vec![
        limit(0, SECOND),
        limit(5, SECOND),
        limit(6, SECOND),
        LimitSpec::rate(1, SECOND, 0),
        limit(65_537, SECOND),
    ]);
    route.recover = Recover::Probe {
        probes: 0,
        after: Span::from_millis(1),
        at_most: Span::from_secs(900_000),
    };
    route.keys = vec![
        key("a", vec![limit(9, Span::ZERO)]),
        key("a", vec![]),
        key("b", vec![]),
        key("c", vec![]),
        key("bad name", vec![]),
        key("big", vec![limit(65_536, SECOND), limit(65_535, Span::from_millis(1))]),
    ];
    let mut spec = spec(ScopeSpec::default(), route);
    spec.global.recover = Recover::Manual { probes: 64 };
    spec.global.keys = vec![key("b", vec![])];
    spec.groups.push(GroupSpec { name: "pay".into(), scope: ScopeSpec::default() });
    spec.groups.push(GroupSpec { name: "".into(), scope: ScopeSpec::default() });
    spec.routes.push(RouteSpec {
        name: "lost".into(),
        group: "pya".into(),
        class: Class::Normal,
        scope: limits(vec![limit(0, SECOND)]),
    });
    spec.routes.push(spec.routes[1].clone());
    let breaker = Breaker::new(Capacity { scopes: 2, keys: 4_096 }, Seed([0, 0]));
    let errors = breaker.compile(&spec).unwrap_err();
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    let expected = [
        "global.recover",
        "groups.pay",
        "groups[2]",
        "routes.orders",
        "routes.orders.limit[0]",
        "routes.orders.limit[2]",
        "routes.orders.limit[3]",
        "routes.orders.limit[4]",
        "routes.orders.recover",
        "routes.orders.recover",
        "routes.orders.recover",
        "routes.orders.keys.a.limit[0]",
        "routes.orders.keys.a",
        "routes.orders.keys[4]",
        "routes.orders.keys.big",
        "routes.orders",
        "routes.orders.keys.b",
        "routes.lost.group",
        "routes.lost.limit[0]",
        "routes.cancel",
        "routes",
    ];
    for path in expected {
        assert!(paths.contains(&path), "{path} is missing among {paths:#?}");
    }
    let near = errors.iter().find(|error| error.path == "routes.lost.group").unwrap();
    assert!(near.hint.contains("`pay`"));
}

/// Goal: an unknown scope is told with the nearest names, an unknown route denies.
#[test]
fn unknown_names_are_told() {
    let breaker = breaker();
    let policy = breaker.compile(&spec(limits(vec![]), limits(vec![]))).unwrap();
    let error = breaker.kill(&policy, &scope("/pay/order"), KillLevel::Halt, at(0)).unwrap_err();
    let OrderError::UnknownScope(near) = error else { panic!("{error:?}") };
    assert_eq!(near[0], scope("/pay/orders"));
    let small = self::breaker();
    let empty = small.compile(&PolicySpec::default()).unwrap();
    assert_eq!(denied(small.admit(&empty, orders(&policy), at(0))).cause, Cause::Stale);
    assert_eq!(Counting::Admitted, LimitSpec::window(1, SECOND).of);
}

/// A breaker with a large table of accounts on the route, and its policy.
fn large() -> (Breaker, Policy) {
    let breaker = Breaker::new(Capacity { scopes: 8, keys: 65_536 }, Seed([1, 2]));
    let mut route = limits(vec![]);
    route.keys.push(key("account", vec![]));
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    (breaker, policy)
}

fn account(number: u32) -> Scope {
    scope("/pay/orders").key("account", number.to_string().as_bytes()).unwrap()
}

/// Goal: in a large house a hold ends at the first sweep after it, not when the slow walk comes by.
#[test]
fn holds_end_in_time_in_a_large_house() {
    let (breaker, policy) = large();
    let (mut sweeper, mut out) = (Sweeper::new(), Vec::new());
    for number in 0..100 {
        breaker.trip(&policy, &account(number), at(0)).unwrap();
    }
    for tick in 0..50 {
        sweeper.sweep(&breaker, &policy, at(tick * 20), &mut out);
    }
    assert_eq!(out.len(), 100);
    assert!(out.iter().all(|fact| fact.to == State::Tripped));
    out.clear();
    sweeper.sweep(&breaker, &policy, at(1_100), &mut out);
    assert_eq!(out.len(), 100);
    assert!(out.iter().all(|fact| fact.to == State::HalfOpen));
}

/// Goal: one sweep's work is bounded, and no move is lost for that.
#[test]
fn a_sweep_is_bounded_and_loses_nothing() {
    let (breaker, policy) = large();
    let (mut sweeper, mut out) = (Sweeper::new(), Vec::new());
    for number in 0..10_000 {
        breaker.kill(&policy, &account(number), KillLevel::Halt, at(0)).unwrap();
    }
    let mut told = 0;
    for _ in 0..4 {
        sweeper.sweep(&breaker, &policy, at(0), &mut out);
        assert!(out.len() - told <= 4_096 + 64 + 512);
        told = out.len();
    }
    assert_eq!(told, 10_000);
    let keys: std::collections::HashSet<_> = out.iter().map(|fact| fact.place.key).collect();
    assert_eq!(keys.len(), 10_000, "each once");
}

/// Goal: what another sweeper took is found by the slow walk.
#[test]
fn a_second_sweeper_only_delays() {
    let (breaker, policy) = large();
    let (mut first, mut second, mut out) = (Sweeper::new(), Sweeper::new(), Vec::new());
    breaker.kill(&policy, &account(7), KillLevel::Cut, at(0)).unwrap();
    first.sweep(&breaker, &policy, at(0), &mut out);
    assert_eq!(out.len(), 1);
    for _ in 0..200 {
        second.sweep(&breaker, &policy, at(0), &mut out);
    }
    assert_eq!(out.len(), 2);
    assert_eq!(out[0], out[1]);
}

/// Goal: cells of scopes that no policy names go to new ones when room is short, but neither while
/// a policy is in use nor while the scope is blocked.
#[test]
fn cells_are_handed_on() {
    let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([1, 2]));
    let of = |group: &str| {
        let scope = ScopeSpec::default;
        PolicySpec {
            groups: vec![GroupSpec { name: group.into(), scope: scope() }],
            routes: vec![RouteSpec {
                name: "r".into(),
                group: group.into(),
                class: Class::Normal,
                scope: scope(),
            }],
            ..PolicySpec::default()
        }
    };
    let first = breaker.compile(&of("a")).unwrap();
    assert!(breaker.compile(&of("b")).is_err(), "the first is in use");
    let stamp = breaker.kill(&first, &scope("/a/r"), KillLevel::Halt, at(0)).unwrap();
    drop(first);
    assert!(breaker.compile(&of("b")).is_err(), "a blocked scope keeps its cell");
    let again = breaker.compile(&of("a")).unwrap();
    assert!(!breaker.admit(&again, call(&again, "/a/r"), at(0)).is_allowed());
    breaker.lift(&again, stamp, LiftTo::Armed, at(0)).unwrap();
    drop(again);
    let second = breaker.compile(&of("b")).unwrap();
    assert!(breaker.admit(&second, call(&second, "/b/r"), at(0)).is_allowed());
}

/// Goal: while an old policy is in use, a key with debts only under its limits keeps its cell from
/// newcomers of the new policy.
#[test]
fn debts_of_a_policy_in_use_keep_their_cells() {
    let breaker = Breaker::new(Capacity { scopes: 8, keys: 16 }, Seed([1, 2]));
    let with = |count| {
        let mut route = limits(vec![]);
        route.keys.push(key("account", vec![LimitSpec::window(count, SECOND)]));
        breaker.compile(&spec(ScopeSpec::default(), route)).unwrap()
    };
    let old = with(1);
    let of = |policy: &Policy, label: u32| {
        orders(policy).with_key(0, breaker.hash(label.to_string().as_bytes()))
    };
    for label in 0..30 {
        drop(allowed(breaker.admit(&old, of(&old, label), at(0))));
    }
    let new = with(2);
    for label in 100..140 {
        let _ = breaker.admit(&new, of(&new, label), at(0));
    }
    for label in 0..30 {
        let _ = denied(breaker.admit(&old, of(&old, label), at(0)));
    }
}

/// Goal: a call from before a kill does not go out after its lift: neither for a named scope nor
/// for a key; and a trip in between counts as well, but not against reducing calls.
#[test]
fn a_pass_from_before_a_kill_is_stale_after_its_lift() {
    let breaker = breaker();
    let mut group = limits(vec![]);
    group.keys.push(key("account", vec![LimitSpec::window(9, SECOND)]));
    let policy = breaker.compile(&spec(group, limits(vec![]))).unwrap();
    for path in ["/", "/pay", "/pay/orders", "/pay/account=7"] {
        let with_key = orders(&policy).with_key(0, breaker.hash(b"7"));
        let permit = allowed(breaker.admit(&policy, with_key, at(0)));
        let reducing = allowed(breaker.admit(&policy, cancel(&policy), at(0)));
        assert_eq!(breaker.look(&permit.pass(), at(0)), Ok(()));
        let stamp = breaker.kill(&policy, &scope(path), KillLevel::Halt, at(0)).unwrap();
        let cause = breaker.look(&permit.pass(), at(0)).unwrap_err().cause;
        assert_eq!(cause, Cause::Killed(KillLevel::Halt));
        breaker.lift(&policy, stamp, LiftTo::Armed, at(0)).unwrap();
        let denial = breaker.look(&permit.pass(), at(0)).unwrap_err();
        assert_eq!((denial.cause, denial.place), (Cause::Stale, stamp.place));
        assert_eq!(breaker.look(&reducing.pass(), at(0)), Ok(()));
    }
    let permit = allowed(breaker.admit(&policy, orders(&policy), at(0)));
    breaker.trip(&policy, &scope("/pay"), at(0)).unwrap();
    let cause = breaker.look(&permit.pass(), at(0)).unwrap_err().cause;
    assert_eq!(cause, Cause::Tripped(By::Hand));
    breaker.reset(&policy, &scope("/pay"), at(0)).unwrap();
    assert_eq!(breaker.look(&permit.pass(), at(0)).unwrap_err().cause, Cause::Stale);
}

/// Goal: a kill that lands while the clock is asked stops the call, at the last look at the latest; also where it is decided in line. A
/// key's gate is looked at after the clock, so there nothing is admitted.
#[test]
fn a_kill_while_the_clock_is_asked_stops_the_call() {
    let rate = LimitSpec::rate(1, SECOND, 9);
    let mut keyed = limits(vec![]);
    keyed.keys.push(key("account", vec![rate.clone()]));
    let window = LimitSpec::window(9, SECOND);
    for group in [keyed, limits(vec![rate]), limits(vec![window]), limits(vec![])] {
        for path in ["/", "/pay", "/pay/orders", "/pay/account=7"] {
            let breaker = breaker();
            let policy = breaker.compile(&spec(group.clone(), limits(vec![]))).unwrap();
            if group.keys.is_empty() && path.contains('=') {
                continue;
            }
            let call = orders(&policy).with_key(0, breaker.hash(b"7"));
            let before = allowed(breaker.admit_at(&policy, call, || at(0)));
            assert_eq!(breaker.look(&before.pass(), at(0)), Ok(()));
            let verdict = breaker.admit_at(&policy, call, || {
                breaker.kill(&policy, &scope(path), KillLevel::Halt, at(0)).unwrap();
                at(0)
            });
            let cause = match verdict {
                Verdict::Deny(denial) => denial.cause,
                Verdict::Allow(permit) if !path.contains('=') => {
                    breaker.look(&permit.pass(), at(0)).unwrap_err().cause
                }
                Verdict::Allow(_) => panic!("{path}: admitted"),
            };
            assert_eq!(cause, Cause::Killed(KillLevel::Halt), "{path}");
        }
    }
}

/// Goal: a budget is used up for good, until a reset, which arms the gate it tripped as well, or a refill, which leaves
/// gates alone; and its use is told.
#[test]
fn a_budget_lasts_until_somebody_empties_it() {
    let breaker = breaker();
    let mut route = limits(vec![LimitSpec::budget(3).tripping()]);
    route.keys.push(key("account", vec![LimitSpec::budget(2)]));
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let path = scope("/pay/orders");
    let account = scope("/pay/orders/account=7");
    let with = orders(&policy).with_key(0, breaker.hash(b"7"));
    for _ in 0..2 {
        allowed(breaker.admit(&policy, with, at(0))).settle(Outcome::Good, at(0));
    }
    let late = at(10_000_000);
    assert_eq!(denied(breaker.admit(&policy, with, late)).place.level, Level::Key);
    let used = |path| breaker.usage(&policy, path, late).unwrap()[0];
    assert_eq!((used(&account).used, used(&account).bound), (2, 2));
    assert!(breaker.refill(&policy, &account, late).unwrap());
    assert!(!breaker.refill(&policy, &account, late).unwrap(), "nothing left to give back");
    drop(allowed(breaker.admit(&policy, with, late)));
    let denial = denied(breaker.admit(&policy, with, late));
    assert_eq!((denial.cause, denial.wait), (Cause::Tripped(By::Limit(0)), None));
    assert!(breaker.refill(&policy, &path, late).unwrap());
    assert_eq!(denied(breaker.admit(&policy, with, late)).place.level, Level::Route, "tripped");
    assert!(breaker.reset(&policy, &path, late).unwrap());
    assert_eq!((used(&path).used, used(&path).bound), (0, 3));
    drop(allowed(breaker.admit(&policy, orders(&policy), late)));
}

/// Goal: places in flight come back whatever becomes of the call: settled, dropped, panicked, detached and attached;
/// and a weight that was reserved is settled with the true one.
#[test]
fn in_flight_and_reservations_come_back() {
    let breaker = breaker();
    let route =
        limits(vec![LimitSpec::in_flight(1), LimitSpec::rate(100, SECOND, 100).by_weight()]);
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let call = |weight| orders(&policy).weighing(weight);
    let used = || {
        let usage = breaker.usage(&policy, &scope("/pay/orders"), at(0)).unwrap();
        (usage[0].used, usage[1].used)
    };
    let permit = allowed(breaker.admit(&policy, call(80), at(0)));
    assert_eq!(used(), (1, 80));
    assert_eq!(denied(breaker.admit(&policy, call(1), at(0))).cause, Cause::Limit(0));
    let truth = Settlement { weight: Some(30), ..Settlement::of(Outcome::Good) };
    permit.settle_as(truth, at(0));
    assert_eq!(used(), (0, 30));
    drop(allowed(breaker.admit(&policy, call(10), at(0))));
    assert_eq!(used(), (0, 40), "what was reserved by a call that never told stays spent");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _permit = allowed(breaker.admit(&policy, call(10), at(0)));
        panic!("the call fell over");
    }));
    assert!(caught.is_err());
    assert_eq!(used(), (0, 50));
    let ticket = allowed(breaker.admit(&policy, call(10), at(0))).detach();
    assert_eq!(used(), (1, 60));
    ticket.attach(&breaker, &policy).unwrap().settle(Outcome::Fault, at(0));
    assert_eq!(used(), (0, 60));
    let never = denied(breaker.admit(&policy, call(101), at(0)));
    assert_eq!((never.cause, never.wait), (Cause::Limit(1), None));
    let counts = breaker.counts(&policy, &scope("/pay/orders")).unwrap();
    assert_eq!((counts.good, counts.fault, counts.dropped, counts.throttled), (1, 1, 2, 2));
    assert_eq!((counts.enforced[0], counts.enforced[1]), (1, 1));
}

/// Goal: a candidate limit refuses nobody, is told apart in the counts, and shows in the permit.
#[test]
fn a_candidate_is_counted_and_never_enforced() {
    let breaker = breaker();
    let live = LimitSpec::window(3, SECOND);
    let route = limits(vec![live, LimitSpec::window(1, SECOND).candidate()]);
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let first = allowed(breaker.admit(&policy, orders(&policy), at(0)));
    assert!(first.shadowed().is_none());
    for _ in 0..2 {
        let permit = allowed(breaker.admit(&policy, orders(&policy), at(0)));
        assert_eq!(permit.shadowed().unwrap().cause, Cause::Limit(1));
    }
    assert_eq!(denied(breaker.admit(&policy, orders(&policy), at(0))).cause, Cause::Limit(0));
    let counts = breaker.counts(&policy, &scope("/pay/orders")).unwrap();
    assert_eq!((counts.enforced[0], counts.detected[0]), (1, 0));
    assert_eq!((counts.enforced[1], counts.detected[1], counts.shadowed), (0, 2, 2));
}

/// Goal: a key with limits of its own is held to them and to nothing else, others to the dimension's.
#[test]
fn a_key_may_have_limits_of_its_own() {
    let breaker = breaker();
    let mut route = limits(vec![]);
    route.keys.push(KeySpec {
        overrides: vec![KeyOverride {
            label: b"vip".to_vec(),
            limits: vec![LimitSpec::window(3, SECOND)],
        }],
        ..key("account", vec![LimitSpec::window(1, SECOND)])
    });
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let with = |account: &str| orders(&policy).with_key(0, breaker.hash(account.as_bytes()));
    for account in ["vip", "vip", "vip", "a", "b"] {
        drop(allowed(breaker.admit(&policy, with(account), at(0))));
    }
    for account in ["vip", "a", "b"] {
        let denial = denied(breaker.admit(&policy, with(account), at(0)));
        let limit = policy.limit_of(&denial).unwrap();
        let count = if account == "vip" { 3 } else { 1 };
        assert_eq!(limit.kind, LimitKind::Window { count, length: SECOND });
    }
}

/// Goal: a call that is settled while its answer flows has told how it went, once, and keeps its place in flight until its end;
/// a key's place as well as a route's.
#[test]
fn a_call_settled_early_keeps_its_place_until_its_end() {
    let breaker = breaker();
    let mut route = limits(vec![LimitSpec::in_flight(2)]);
    route.keys = vec![key("account", vec![LimitSpec::in_flight(1)])];
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let (orders, one) = (scope("/pay/orders"), breaker.hash(b"1"));
    let call = call(&policy, "/pay/orders").with_key(0, one);
    let Verdict::Allow(permit) = breaker.admit(&policy, call, at(0)) else { panic!() };
    let (moved, held) = permit.settle_early(Settlement::of(Outcome::Good), at(1));
    let held = held.unwrap();
    assert!(!moved);
    assert_eq!(breaker.counts(&policy, &orders).unwrap().good, 1);
    assert_eq!(breaker.usage(&policy, &orders, at(1)).unwrap()[0].used, 1);
    assert!(!breaker.admit(&policy, call, at(2)).is_allowed(), "the key has one place");
    let other = breaker.compile(&spec(ScopeSpec::default(), ScopeSpec::default())).unwrap();
    let held = held.end(&breaker, &other, None, at(3)).unwrap();
    assert!(held.end(&breaker, &policy, None, at(3)).is_none());
    assert_eq!(breaker.usage(&policy, &orders, at(3)).unwrap()[0].used, 0);
    assert_eq!(breaker.counts(&policy, &orders).unwrap().good, 1, "counted once");
    assert!(breaker.admit(&policy, call, at(4)).is_allowed());
}

/// Goal: a call settled early frees its gate from probation at once, and its true weight is settled at its end.
#[test]
fn a_call_settled_early_tells_its_weight_at_its_end() {
    let breaker = breaker();
    let route = limits(vec![LimitSpec::budget(100).by_weight()]);
    let policy = breaker.compile(&spec(ScopeSpec::default(), route)).unwrap();
    let orders = scope("/pay/orders");
    let stamp = breaker.kill(&policy, &orders, KillLevel::Halt, at(0)).unwrap();
    breaker.lift(&policy, stamp, LiftTo::HalfOpen, at(0)).unwrap();
    let call = call(&policy, "/pay/orders").weighing(40);
    let mut held = Vec::new();
    for probe in 1..=2 {
        let Verdict::Allow(permit) = breaker.admit(&policy, call, at(probe)) else { panic!() };
        let (moved, rest) = permit.settle_early(Settlement::of(Outcome::Good), at(probe));
        assert_eq!(moved, probe == 2, "the second probe arms");
        held.extend(rest);
    }
    assert_eq!(breaker.standing(&policy, &orders, at(3)).unwrap().state, State::Armed);
    assert_eq!(breaker.usage(&policy, &orders, at(3)).unwrap()[0].used, 80);
    for (rest, weight) in held.into_iter().zip([Some(10), None]) {
        assert!(rest.end(&breaker, &policy, weight, at(4)).is_none());
    }
    assert_eq!(breaker.usage(&policy, &orders, at(4)).unwrap()[0].used, 50);
}
