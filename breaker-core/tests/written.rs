//! Specs as they are written and read: what comes back is what went out, and what means nothing is refused.
#![cfg(feature = "serde")]

use breaker_core::{
    Breaker, Call, Capacity, Class, DetectorKind, DetectorSpec, Errors, GroupSpec, KeyOverride,
    KeySpec, LimitSpec, Missing, Mode, Mono, Newcomers, Outcome, PolicySpec, Recover, RouteSpec,
    SavedWhole, Scope, ScopeSpec, Seed, Span, Streak, Surge, Sweeper, Verdict,
};

/// Goal: a spec with every part in it comes back as it was.
#[test]
fn a_spec_comes_back_as_it_was() {
    let second = Span::from_secs(1);
    let limits = vec![
        LimitSpec::window(100, second).offered().tripping().named("surge"),
        LimitSpec::rate(10, second, 5).by_weight().candidate(),
        LimitSpec::budget(7).idle(second),
        LimitSpec::in_flight(3),
    ];
    let keys = vec![KeySpec {
        name: "account".into(),
        limits: limits.clone(),
        recover: Recover::Manual { probes: 3 },
        mode: Mode::Shadow,
        detectors: vec![DetectorSpec::new(DetectorKind::Streak(Streak::default()))],
        overrides: vec![KeyOverride { label: vec![0, 255], limits: limits.clone() }],
        missing: Missing::Skip,
        newcomers: Some(Newcomers { count: 10, per: second, burst: 10 }),
        ..KeySpec::default()
    }];
    let recover = Recover::Probe { probes: 1, after: second, at_most: Span::from_secs(9) };
    let scope = ScopeSpec { limits, keys, recover, counts: false, ..ScopeSpec::default() };
    let spec = PolicySpec {
        global: scope.clone(),
        groups: vec![GroupSpec { name: "pay".into(), scope: scope.clone() }],
        routes: vec![RouteSpec {
            name: "orders".into(),
            group: "pay".into(),
            class: Class::Reducing,
            scope,
        }],
    };
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<PolicySpec>(&text).unwrap(), spec);
}

/// Goal: what is left out is as by default, spans are nanoseconds, and a word that means nothing is an error.
#[test]
fn what_is_left_out_is_as_by_default() {
    let read = |text: &str| serde_json::from_str::<PolicySpec>(text);
    assert_eq!(read("{}").unwrap(), PolicySpec::default());
    let text =
        r#"{"global": {"limits": [{"kind": {"window": {"count": 2, "length": 1000000000}}}]}}"#;
    let limits = vec![LimitSpec::window(2, Span::from_secs(1))];
    let global = ScopeSpec { limits, ..ScopeSpec::default() };
    assert_eq!(read(text).unwrap(), PolicySpec { global, ..PolicySpec::default() });
    for wrong in [
        r#"{"globl": {}}"#,
        r#"{"global": {"limit": []}}"#,
        r#"{"global": {"limits": [{"kind": {"window": {"count": 2, "length": 1, "lenght": 1}}}]}}"#,
        r#"{"global": {"limits": [{"kind": {"window": {"count": -2, "length": 1}}}]}}"#,
        r#"{"global": {"mode": "off"}}"#,
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

/// Goal: all that a restart must keep comes back as it was, and a path or a hash that is none is refused.
#[test]
fn a_save_comes_back_as_it_was() {
    let detectors: Vec<DetectorSpec> = vec![
        DetectorKind::Surge(Surge::of_keys(6_000)).into(),
        DetectorKind::Errors(Errors::default()).into(),
    ];
    let key =
        KeySpec { name: "account".into(), detectors: detectors.clone(), ..KeySpec::default() };
    let scope = ScopeSpec { detectors, keys: vec![key], ..ScopeSpec::default() };
    let (name, group) = ("orders".into(), "pay".into());
    let route = RouteSpec { name, group, class: Class::Normal, scope };
    let groups = vec![GroupSpec { name: "pay".into(), scope: ScopeSpec::default() }];
    let spec = PolicySpec { groups, routes: vec![route], ..PolicySpec::default() };
    let breaker = Breaker::new(Capacity { scopes: 4, keys: 64 }, Seed([1, 2]));
    let policy = breaker.compile(&spec).unwrap();
    let orders = policy.route(&Scope::parse("/pay/orders").unwrap()).unwrap();
    let call = Call::new(orders).with_key(0, breaker.hash_u64(7));
    let (mut sweeper, mut now) = (Sweeper::new(), Mono::ZERO);
    for _ in 0..7_200 {
        now = now.plus(Span::from_secs(1));
        let Verdict::Allow(permit) = breaker.admit(&policy, call, now) else { panic!("calm") };
        permit.settle(Outcome::Good, now);
        sweeper.sweep(&breaker, &policy, now, &mut Vec::new());
    }
    let saved = sweeper.save(&breaker, &policy, now);
    assert_eq!(saved.learned.len(), 3);
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(serde_json::from_str::<SavedWhole>(&text).unwrap(), saved);
    for (sound, nonsense) in [(r#""/pay/orders""#, r#""pay orders""#), (r#""key":"#, r#""key":0"#)]
    {
        assert!(text.contains(sound));
        assert!(serde_json::from_str::<SavedWhole>(&text.replace(sound, nonsense)).is_err());
    }
}
