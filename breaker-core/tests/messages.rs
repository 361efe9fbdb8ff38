//! What errors say to those who meet them first: what is wrong, and what to do.

#![expect(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, KeySpec, KillLevel, LiftTo, LimitSpec, Mono, Policy,
    PolicySpec, RouteSpec, Scope, ScopeSpec, Seed, Span,
};

/// A route on which each account may make one call a minute.
fn house() -> (Breaker, Policy, Scope) {
    let account = KeySpec {
        name: "account".into(),
        limits: vec![LimitSpec::window(1, Span::from_secs(60))],
        ..KeySpec::default()
    };
    let route = RouteSpec {
        name: "orders".into(),
        group: "pay".into(),
        class: Class::Normal,
        scope: ScopeSpec { keys: vec![account], ..ScopeSpec::default() },
    };
    let spec = PolicySpec {
        groups: vec![GroupSpec { name: "pay".into(), scope: ScopeSpec::default() }],
        routes: vec![route],
        ..PolicySpec::default()
    };
    let breaker = Breaker::new(Capacity { scopes: 4, keys: 64 }, Seed([1, 2]));
    let policy = breaker.compile(&spec).unwrap();
    (breaker, policy, Scope::parse("/pay/orders").unwrap())
}

/// Goal: a lift by an older stamp, and an order by another breaker's policy, are told what to use instead.
#[test]
fn orders_that_miss_say_what_to_use_instead() {
    let (breaker, policy, orders) = house();
    let old = breaker.kill(&policy, &orders, KillLevel::Halt, Mono::ZERO).unwrap();
    breaker.kill(&policy, &orders, KillLevel::Halt, Mono::ZERO).unwrap();
    let stale = breaker.lift(&policy, old, LiftTo::Armed, Mono::ZERO).unwrap_err().to_string();
    assert!(stale.contains("name the stamp"), "{stale}");
    let (other, ..) = house();
    let foreign = other.trip(&policy, &orders, Mono::ZERO).unwrap_err().to_string();
    assert!(foreign.contains("that this breaker compiled"), "{foreign}");
}

/// Goal: a key under an index that its route has no dimension for is ignored, so all such calls are judged as one that lacks it.
#[test]
fn a_key_at_the_wrong_place_is_a_missing_key() {
    let (breaker, policy, orders) = house();
    let call = Call::new(policy.route(&orders).unwrap());
    let pass = |place, label: &[u8]| {
        let call = call.with_key(place, breaker.hash(label));
        breaker.admit(&policy, call, Mono::ZERO).is_allowed()
    };
    assert_eq!((pass(0, b"1"), pass(0, b"2")), (true, true));
    assert_eq!((pass(1, b"3"), pass(1, b"4")), (true, false));
}

/// Goal: an index that no route has is named by the assertion of debug builds.
#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "there is no dimension 9: a call carries at most 4 keys")]
fn an_impossible_dimension_is_named() {
    let (breaker, policy, orders) = house();
    let call = Call::new(policy.route(&orders).unwrap());
    let _ = call.with_key(9, breaker.hash(b"1"));
}
