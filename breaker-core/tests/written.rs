//! Specs as they are written and read: what comes back is what went out, and what means nothing is refused.
#![cfg(feature = "serde")]
#![expect(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use breaker_core::{
    Class, DetectorKind, DetectorSpec, GroupSpec, KeyOverride, KeySpec, LimitSpec, Missing, Mode,
    Newcomers, PolicySpec, Recover, RouteSpec, ScopeSpec, Span, Streak,
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
