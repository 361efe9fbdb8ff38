//! Standings saved and put back: what goes on after a clean stop, what starts spent after a crash, and that no save frees
//! anything.

#![expect(clippy::unwrap_used, reason = "a test that fails says so by a panic")]
#![expect(clippy::cast_possible_truncation, reason = "random numbers, of which any bits will do")]

use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, KeySpec, KillLevel, LiftTo, LimitSpec, Mode, Mono,
    Outcome, Policy, PolicySpec, Recover, Restart, Restored, RouteSpec, Saved, SavedCharge,
    SavedState, Scope, ScopeSpec, Seed, Span, Stamp, State, Verdict, Why,
};

const SECOND: Span = Span::from_secs(1);
const PROBE: Recover = Recover::Probe { probes: 2, after: SECOND, at_most: Span::from_secs(8) };

fn at(millis: u64) -> Mono {
    Mono::ZERO.plus(Span::from_millis(1_000_000 + millis))
}

fn limits() -> Vec<LimitSpec> {
    vec![
        LimitSpec::rate(10, SECOND, 10),
        LimitSpec::window(10, SECOND),
        LimitSpec::window(10, SECOND).by_weight(),
        LimitSpec::budget(10),
        LimitSpec::budget(10).idle(SECOND),
        LimitSpec::in_flight(10),
    ]
}

/// One limit at `/g/r`, and the same for each key of `k`.
fn spec(limit: &LimitSpec) -> PolicySpec {
    let key = KeySpec {
        name: "k".into(),
        limits: vec![limit.clone()],
        recover: PROBE,
        ..KeySpec::default()
    };
    let scope = |limits, keys| ScopeSpec { limits, keys, recover: PROBE, ..ScopeSpec::default() };
    let route = |name: &str, scope| RouteSpec {
        name: name.into(),
        group: "g".into(),
        class: Class::Normal,
        scope,
    };
    PolicySpec {
        global: ScopeSpec::default(),
        groups: vec![GroupSpec { name: "g".into(), scope: scope(Vec::new(), Vec::new()) }],
        routes: vec![
            route("r", scope(vec![limit.clone()], Vec::new())),
            route("q", scope(Vec::new(), vec![key])),
        ],
    }
}

fn house(spec: &PolicySpec, seed: u64) -> (Breaker, Policy) {
    let breaker = Breaker::new(Capacity { scopes: 8, keys: 64 }, Seed([seed, 2]));
    let policy = breaker.recompile(spec, at(0)).unwrap();
    (breaker, policy)
}

fn path(path: &str) -> Scope {
    Scope::parse(path).unwrap()
}

fn call(policy: &Policy) -> Call {
    Call::new(policy.route(&path("/g/r")).unwrap()).weighing(1)
}

fn call_of(breaker: &Breaker, policy: &Policy, label: &str) -> Call {
    let route = policy.route(&path("/g/q")).unwrap();
    Call::new(route).weighing(1).with_key(0, breaker.hash(label.as_bytes()))
}

/// Calls that pass in a row, of so many.
fn burst(breaker: &Breaker, policy: &Policy, call: Call, now: Mono, calls: usize) -> usize {
    let passes = |_: &usize| match breaker.admit(policy, call, now) {
        Verdict::Allow(permit) => {
            permit.settle(Outcome::Good, now);
            true
        }
        Verdict::Deny(_) => false,
    };
    (0..calls).filter(passes).count()
}

fn used(limit: &LimitSpec) -> (Breaker, Policy, Saved) {
    let (breaker, policy) = house(&spec(limit), 1);
    let done = burst(&breaker, &policy, call(&policy), at(0), 4);
    let keyed = burst(&breaker, &policy, call_of(&breaker, &policy, "x"), at(0), 7);
    assert_eq!((done, keyed), (4, 7));
    let saved = breaker.save(&policy, at(100));
    (breaker, policy, saved)
}

/// Goal: after a clean stop every kind of limit goes on as it stood, of scopes and of keys, whatever the clock's
/// origin is now; and a save of what was put back is the same save.
#[test]
fn after_a_clean_stop_limits_go_on() {
    for limit in limits() {
        let (was, old, saved) = used(&limit);
        assert_eq!(saved, was.save(&old, at(100)), "the same twice");
        let (breaker, policy) = house(&spec(&limit), 1);
        let told = breaker.restore(&policy, &saved, Restart::Clean, at(50_100));
        assert_eq!((told.missed.len(), told.more), (0, 0), "{limit:?}: {told:?}");
        // Sub-buckets begin at fixed instants: their ages depend on the clock's origin.
        if limit != LimitSpec::window(10, SECOND).by_weight() {
            assert_eq!(breaker.save(&policy, at(50_100)).scopes, saved.scopes, "{limit:?}");
        }
        for (label, expected) in [("x", 7), ("y", 0)] {
            let then = burst(&was, &old, call_of(&was, &old, label), at(100), 20);
            let now = burst(&breaker, &policy, call_of(&breaker, &policy, label), at(50_100), 20);
            let flight = limit == LimitSpec::in_flight(10);
            assert_eq!(now, then, "{limit:?} {label}");
            assert!(flight || then <= 11 - expected, "{limit:?} {label}: {then}");
        }
        let then = burst(&was, &old, call(&old), at(100), 20);
        assert_eq!(burst(&breaker, &policy, call(&policy), at(50_100), 20), then, "{limit:?}");
    }
}

/// Goal: after a crash rates and windows start spent, of scopes, of known keys and of keys never seen; budgets
/// come from the save, or start spent where the scope says so; time brings back what time can.
#[test]
fn after_a_crash_limits_start_spent() {
    for limit in limits() {
        for told_spent in [false, true] {
            let (_, _, saved) = used(&limit);
            let mut spec = spec(&limit);
            for route in &mut spec.routes {
                route.scope.spent_after_crash = told_spent;
                route.scope.keys.iter_mut().for_each(|key| key.spent_after_crash = told_spent);
            }
            let (breaker, policy) = house(&spec, 1);
            let told = breaker.restore(&policy, &saved, Restart::Crash, at(9_000));
            assert!(told.missed.is_empty(), "{told:?}");
            let budget = format!("{limit:?}").contains("Budget");
            let flight = limit == LimitSpec::in_flight(10);
            let keeps = |left| match (flight, budget && !told_spent) {
                (true, _) => 20,
                (false, true) => left,
                (false, false) => 0,
            };
            let now = at(9_000);
            assert_eq!(burst(&breaker, &policy, call(&policy), now, 20), keeps(6), "{limit:?}");
            for (label, left) in [("x", 3), ("y", 10)] {
                let call = call_of(&breaker, &policy, label);
                let passed = burst(&breaker, &policy, call, now, 20);
                assert_eq!(passed, keeps(left), "{limit:?} {label}");
            }
            if !budget && !flight {
                let later = call_of(&breaker, &policy, "later");
                assert_eq!(burst(&breaker, &policy, later, at(11_000), 20), 10, "{limit:?}");
                assert_eq!(burst(&breaker, &policy, call(&policy), at(11_000), 20), 10);
            }
        }
    }
}

/// Goal: without a save, or with one of another version, everything starts spent.
#[test]
fn without_a_save_all_starts_spent() {
    for limit in limits().into_iter().filter(|limit| *limit != LimitSpec::in_flight(10)) {
        for by_version in [false, true] {
            let (breaker, policy) = house(&spec(&limit), 1);
            if by_version {
                let saved = Saved { version: 9, ..Saved::default() };
                let told = breaker.restore(&policy, &saved, Restart::Clean, at(0));
                assert_eq!(told.missed[0].why, Why::Version);
            } else {
                breaker.spend(&policy, at(0));
            }
            assert_eq!(burst(&breaker, &policy, call(&policy), at(0), 20), 0, "{limit:?}");
            let fresh = call_of(&breaker, &policy, "fresh");
            assert_eq!(burst(&breaker, &policy, fresh, at(0), 20), 0, "{limit:?}");
        }
    }
}

/// Goal: each state of a gate comes back, of scopes and keys, with its strikes and cause; a hold starts again in full; an
/// operator's shadow mode survives a clean stop only.
#[test]
fn gates_come_back() {
    for restart in [Restart::Clean, Restart::Crash] {
        for scope in ["/g/r", "/g/q/k=x"] {
            for state in 0..6 {
                let spec = spec(&LimitSpec::window(10, SECOND));
                let (was, old) = house(&spec, 1);
                let scope = path(scope);
                let mut stamp = None;
                match state {
                    0 => stamp = Some(was.kill(&old, &scope, KillLevel::Halt, at(0)).unwrap()),
                    1 => stamp = Some(was.kill(&old, &scope, KillLevel::Cut, at(0)).unwrap()),
                    2 | 3 => stamp = Some(was.trip(&old, &scope, at(0)).unwrap()),
                    4 => was.set_mode(&old, &scope, Some(Mode::Enforce), at(0)).unwrap(),
                    _ => was.set_mode(&old, &scope, Some(Mode::Shadow), at(0)).unwrap(),
                }
                if state == 3 {
                    let half = was.lift(&old, stamp.unwrap(), LiftTo::HalfOpen, at(0)).unwrap();
                    let again = was.trip(&old, &scope, at(0)).unwrap();
                    assert_ne!(half, again);
                    was.lift(&old, again, LiftTo::HalfOpen, at(0)).unwrap();
                }
                let saved = was.save(&old, at(700));
                let (breaker, policy) = house(&spec, 1);
                let told: Restored = breaker.restore(&policy, &saved, restart, at(20_000));
                let then = was.standing(&old, &scope, at(700)).unwrap();
                let now = breaker.standing(&policy, &scope, at(20_000)).unwrap();
                let lost = state == 5 && restart == Restart::Crash;
                assert_eq!(u64::from(!lost), told.gates, "{told:?}");
                assert_eq!((now.state, now.strikes), (then.state, then.strikes), "{state}");
                if state < 2 {
                    assert!(matches!(now.state, State::Killed(_)));
                }
                assert_eq!(now.mode, if lost { Mode::Enforce } else { then.mode });
                if now.state == State::Tripped {
                    assert_eq!(now.cause, then.cause);
                    let hold = now.until.unwrap().since(at(20_000));
                    assert!(hold >= SECOND, "in full: {hold:?}");
                }
            }
        }
    }
}

/// Goal: no save lifts a kill, arms a tripped gate or gives back what was charged since.
#[test]
fn a_restore_frees_nothing() {
    let spec = spec(&LimitSpec::window(10, SECOND));
    let (fresh, empty) = house(&spec, 1);
    let nothing = fresh.save(&empty, at(0));
    let (breaker, policy) = house(&spec, 1);
    assert_eq!(burst(&breaker, &policy, call(&policy), at(0), 8), 8);
    let x = call_of(&breaker, &policy, "x");
    assert_eq!(burst(&breaker, &policy, x, at(0), 8), 8);
    let killed = breaker.kill(&policy, &path("/g/q/k=y"), KillLevel::Cut, at(0)).unwrap();
    breaker.trip(&policy, &path("/g"), at(0)).unwrap();
    for saved in [&nothing, &Saved::default(), &breaker.save(&policy, at(0))] {
        breaker.restore(&policy, saved, Restart::Clean, at(0));
    }
    let y = breaker.standing(&policy, &path("/g/q/k=y"), at(0)).unwrap();
    assert_eq!(y.state, State::Killed(KillLevel::Cut));
    let group = breaker.standing(&policy, &path("/g"), at(0)).unwrap();
    assert_eq!(group.state, State::Tripped);
    assert_ne!(y.stamp(), Stamp { epoch: 0, ..killed });
    breaker.reset(&policy, &path("/g"), at(0)).unwrap();
    assert!(burst(&breaker, &policy, call(&policy), at(0), 20) <= 2);
    assert!(burst(&breaker, &policy, x, at(0), 20) <= 2);
}

/// Goal: what the policy does not know, what changed, and keys of another seed are told, and start spent.
#[test]
fn what_is_not_restored_is_told() {
    let (_, _, saved) = used(&LimitSpec::window(10, SECOND));
    let (breaker, policy) = house(&spec(&LimitSpec::window(10, SECOND)), 9);
    let told = breaker.restore(&policy, &saved, Restart::Clean, at(0));
    assert_eq!(told.missed.iter().map(|missed| missed.why).collect::<Vec<_>>(), [Why::Seed]);
    let fresh = call_of(&breaker, &policy, "x");
    assert_eq!(burst(&breaker, &policy, fresh, at(0), 20), 0, "nothing is known of any key");
    let (breaker, policy) = house(&spec(&LimitSpec::rate(10, SECOND, 10)), 1);
    let told = breaker.restore(&policy, &saved, Restart::Clean, at(0));
    assert!(told.missed.iter().all(|missed| missed.why == Why::UnknownLimit), "{told:?}");
    let mut saved = saved;
    saved.scopes[2].path = "/g/elsewhere".into();
    let (breaker, policy) = house(&spec(&LimitSpec::window(10, SECOND)), 1);
    let told = breaker.restore(&policy, &saved, Restart::Clean, at(0));
    assert_eq!(told.missed[0].why, Why::Unknown);
}

/// Goal: a save of nonsense panics nowhere and admits no more than the bound in an interval.
#[test]
fn nonsense_frees_nothing() {
    let mut dice = 88_172_645_463_325_252_u64;
    let mut roll = move || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        match dice % 5 {
            0 => 0,
            1 => dice >> 40,
            2 => u64::MAX - (dice >> 60),
            _ => dice,
        }
    };
    for turn in 0..3_000 {
        let limit = &limits()[turn % 5];
        let (_, _, mut saved) = used(limit);
        let scopes = saved.scopes.iter_mut().map(|known| (&mut known.gate, &mut known.limits));
        let keys = saved.dimensions.iter_mut().flat_map(|known| &mut known.keys);
        for (gate, limits) in scopes.chain(keys.map(|key| (&mut key.gate, &mut key.limits))) {
            gate.strikes = roll() as u8;
            gate.state = [SavedState::Armed, SavedState::Tripped][roll() as usize % 2];
            for known in limits {
                known.charge = match roll() % 6 {
                    0 => SavedCharge::Unsure,
                    1 => SavedCharge::Rate {
                        cost: roll(),
                        lot: roll(),
                        shift: roll() as u32,
                        units: roll(),
                        paid: roll(),
                    },
                    2 => SavedCharge::Budget { used: roll(), age: Some(roll()) },
                    3 => SavedCharge::InFlight,
                    _ => SavedCharge::Window {
                        known: roll(),
                        passed: (0..roll() % 40).map(|_| (roll(), roll())).collect(),
                    },
                };
            }
        }
        let (breaker, policy) = house(&spec(limit), 1);
        breaker.restore(&policy, &saved, Restart::Clean, at(0));
        for scope in ["/g/r", "/g/q/k=x"] {
            let _ = breaker.reset(&policy, &path(scope), at(0));
        }
        let x = call_of(&breaker, &policy, "x");
        assert!(burst(&breaker, &policy, call(&policy), at(0), 20) <= 10, "{limit:?} {saved:?}");
        assert!(burst(&breaker, &policy, x, at(0), 20) <= 10, "{limit:?} {saved:?}");
    }
}

/// Goal: a save put back into a breaker that has been in use, and is idle, is as good as in a new one: what it used before leaves
/// nothing behind. A window's ring that was written over had no turn any more, and the next call looked for it for ever.
#[test]
fn a_save_put_back_into_an_idle_breaker_goes_on() {
    for limit in limits().into_iter().filter(|limit| *limit != LimitSpec::budget(10)) {
        // As many, fewer and more calls than the save tells of.
        for calls in [1, 3, 4, 9, 10, 13] {
            let (_, _, saved) = used(&limit);
            let (breaker, policy) = house(&spec(&limit), 1);
            burst(&breaker, &policy, call(&policy), at(0), calls);
            burst(&breaker, &policy, call_of(&breaker, &policy, "x"), at(0), calls);
            let told = breaker.restore(&policy, &saved, Restart::Clean, at(50_100));
            assert_eq!((told.missed.len(), told.more), (0, 0), "{limit:?}: {told:?}");
            let in_flight = limit == LimitSpec::in_flight(10);
            let gone = |calls| if in_flight { 0 } else { calls };
            // A tenth of a second ago: one call of the rate is forgiven.
            let forgiven = usize::from(limit == LimitSpec::rate(10, SECOND, 10));
            let most = if in_flight { 20 } else { 10 };
            let passed = burst(&breaker, &policy, call(&policy), at(50_100), 20);
            assert_eq!(passed, most - gone(4 - forgiven), "{limit:?} after {calls}");
            let x = call_of(&breaker, &policy, "x");
            let passed = burst(&breaker, &policy, x, at(50_100), 20);
            assert_eq!(passed, most - gone(7 - forgiven), "{limit:?} after {calls}");
            let later = burst(&breaker, &policy, x, at(60_000), 20);
            assert_eq!(later, most, "{limit:?} after {calls}");
        }
    }
}
