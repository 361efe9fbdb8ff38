//! What a stop, a crash and a changed file leave of limits and of what was learned, on clocks that only the test moves.

use super::support::upstream::Serving;
use super::support::{Proxy, Setup, eventually};
use breaker_core::Span;
use std::fs;
use std::path::Path;

const KEYED: &str = "limit = [{ name = \"all\", window = \"10/1h\" }, { name = \"job\", budget = 8 }]\n\
    [[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n\
    limit = [{ window = \"3/1h\" }]";

/// So many calls of a client, by status.
fn calls(proxy: &Proxy, client: &str, count: usize) -> Vec<u16> {
    (0..count).map(|_| proxy.get(&format!("x-client: {client}\r\n")).status()).collect()
}

/// Goal: after an orderly stop windows, budgets and keys go on as they stood: a restart gives nobody anything.
#[test]
fn limits_go_on_after_an_orderly_stop() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), KEYED);
    let proxy = setup.start_clocked();
    assert_eq!(calls(&proxy, "a", 2), [200; 2]);
    assert_eq!(calls(&proxy, "b", 3), [200; 3]);
    let proxy = proxy.restart_clocked(&setup);
    assert!(!proxy.standings().contains("not orderly"), "{}", proxy.standings());
    assert_eq!(calls(&proxy, "a", 2), [200, 429]);
    assert_eq!(calls(&proxy, "b", 1), [429]);
    let used: Vec<u64> = proxy.status()["limits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|limit| limit["used"].as_u64().unwrap())
        .collect();
    assert_eq!(used, [6, 6]);
    assert_eq!(calls(&proxy, "c", 3), [200, 200, 429], "the budget of eight is used up");
    let proxy = proxy.restart_clocked(&setup);
    assert_eq!(calls(&proxy, "d", 1), [429], "once more");
    proxy.order("reset", "/default/api", r#"{"reason":"another job"}"#);
    proxy.advance(Span::from_secs(3_600));
    assert_eq!(calls(&proxy, "d", 3), [200; 3]);
    proxy.finish();
}

/// Goal: after a crash windows start spent, of keys too, and recover by themselves; budgets stand as they were saved, and are spent
/// where the file says so; nobody is tripped for it.
#[test]
fn limits_start_spent_after_a_crash() {
    let upstream = Serving::ok();
    for (lines, budget_left) in [("", 2_u64), ("after_crash = \"spent\"\n", 0)] {
        let rules = format!(
            "{lines}limit = [{{ window = \"10/10s\", of = \"offered\", on_breach = \"trip\" }}, {{ budget = 4 }}]"
        );
        let setup = Setup::route(upstream.address(), &rules);
        let proxy = setup.start_clocked();
        assert_eq!(calls(&proxy, "a", 2), [200; 2]);
        proxy.advance(Span::from_secs(30));
        proxy.saved(1);
        let crash = proxy.crashed();
        assert_eq!(calls(&proxy, "a", 1), [200], "it passes after the save, and is forgotten");
        let next = setup.start_on_clocked(crash.path());
        assert!(next.standings().contains("not orderly"), "{}", next.standings());
        assert_eq!(calls(&next, "a", 1), [429], "spent");
        assert_eq!(next.state_of("/default/api"), "armed", "and not tripped for that");
        next.advance(Span::from_secs(10));
        let passed = calls(&next, "a", 4).into_iter().filter(|status| *status == 200).count();
        assert_eq!(u64::try_from(passed).unwrap(), budget_left, "{lines}");
        next.finish();
        proxy.finish();
    }
}

/// Goal: a start on standings that are missing, cut short or damaged says so, and every limit starts spent; the kills are the journal's.
#[test]
fn unreadable_standings_are_told_and_safe() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "limit = [{ window = \"5/10s\" }]");
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 4] = [
        ("are not there", |path| fs::remove_file(path).unwrap()),
        ("is damaged", |path| {
            let text = fs::read(path).unwrap();
            fs::write(path, &text[..text.len() / 2]).unwrap();
        }),
        ("is damaged", |path| {
            let mut text = fs::read(path).unwrap();
            text[40] ^= 1;
            fs::write(path, text).unwrap();
        }),
        ("is of another version", |path| fs::write(path, "{}").unwrap()),
    ];
    for (says, damage) in damage {
        let proxy = setup.start_clocked();
        proxy.halt("/default");
        let state = proxy.state().to_owned();
        let root = proxy.stop_now();
        damage(&state.join("standings"));
        let proxy = setup.start_on_clocked(&state);
        let standings = proxy.standings();
        assert!(standings.contains(says) && standings.contains("SPENT"), "{standings}");
        assert_eq!(proxy.get("").code(), "killed");
        proxy.lift("/default");
        assert_eq!(proxy.get("").status(), 429, "spent");
        proxy.advance(Span::from_secs(10));
        assert_eq!(proxy.get("").status(), 200);
        proxy.finish();
        drop(root);
    }
}

/// Goal: the journal stands above the save: what was lifted or reset after the last save does not come back with it, and what was
/// tripped after it does.
#[test]
fn the_journal_stands_above_the_save() {
    let upstream = Serving::ok();
    let setup = Setup::route(
        upstream.address(),
        "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }",
    );
    let proxy = setup.start_clocked();
    let reason = r#"{"reason":"test"}"#;
    proxy.halt("/default/api/client=killed");
    proxy.halt("/default");
    proxy.order("trip", "/default/api/client=odd", reason);
    proxy.advance(Span::from_secs(30));
    proxy.saved(1);
    proxy.lift("/default/api/client=killed");
    proxy.lift("/default");
    proxy.order("reset", "/default/api/client=odd", reason);
    proxy.order("trip", "/default/api/client=late", reason);
    let crash = proxy.crashed();
    let next = setup.start_on_clocked(crash.path());
    for (client, status) in [("killed", 200), ("odd", 200), ("late", 503)] {
        assert_eq!(calls(&next, client, 1), [status], "{client}");
    }
    next.finish();
    proxy.finish();
}

/// Goal: between a stop and a start the file may change: a limit is known again by its name, one that is new starts fresh, what is gone is
/// told, and a scope that came starts fresh beside what stayed.
#[test]
fn a_changed_file_finds_its_limits_by_name() {
    let upstream = Serving::ok();
    let before =
        "limit = [{ name = \"job\", budget = 5 }, { name = \"gone\", window = \"100/1h\" }]";
    let after = "limit = [{ name = \"new\", window = \"50/1h\" }, { name = \"job\", budget = 6 }]";
    let proxy = Setup::route(upstream.address(), before).start_clocked();
    assert_eq!(calls(&proxy, "a", 4), [200; 4]);
    let proxy = proxy.restart_clocked(&Setup::route(upstream.address(), after));
    let standings = proxy.standings();
    assert!(
        standings.contains("gone") && standings.contains("no longer configured"),
        "{standings}"
    );
    let used = |name: &str| {
        let status = proxy.status();
        let limits = status["limits"].as_array().unwrap().clone();
        limits.into_iter().find(|limit| limit["limit"] == name).unwrap()["used"].as_u64().unwrap()
    };
    assert_eq!((used("job"), used("new")), (4, 0));
    assert_eq!(calls(&proxy, "a", 3), [200, 200, 429]);
    proxy.finish();
}

/// Goal: a trip by a limit comes back with its cause, and how often it tripped before is not forgotten.
#[test]
fn a_trip_comes_back_with_its_cause_and_strikes() {
    let upstream = Serving::ok();
    let rules = "recover = { probes = 1, after = \"10s\" }\n\
                 limit = [{ window = \"2/1s\", of = \"offered\", on_breach = \"trip\" }]";
    let setup = Setup::route(upstream.address(), rules);
    let proxy = setup.start_clocked();
    assert_eq!(calls(&proxy, "a", 3), [200, 200, 503]);
    eventually("the trip on the record", || {
        (proxy.metric("breaker_trips_total") >= 1.0).then_some(())
    });
    let before = proxy.scope("/default/api");
    let proxy = proxy.restart_clocked(&setup);
    let shown = proxy.scope("/default/api");
    assert_eq!((&shown["state"], &shown["limit"]), (&"tripped".into(), &0.into()));
    assert_eq!(shown["strikes"], before["strikes"]);
    assert!(
        shown["back_in_ms"].as_u64().unwrap() >= 10_000,
        "the hold starts again in full: {shown}"
    );
    proxy.finish();
}
