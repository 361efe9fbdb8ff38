//! Detectors through the whole proxy, on a clock that only the test moves: each kind finds what it is for, and journal, status and
//! metrics tell it.

use super::support::upstream::{Serving, Upstream};
use super::support::wire::Answer;
use super::support::{Proxy, Setup, eventually};
use breaker_core::Span;
use serde_json::Value;
use std::fs;

/// An upstream that answers with the status that the call asks for, as in `/x?500`; 200 if it asks for none.
fn asked() -> Serving {
    Serving::start(|request: &Answer| {
        let status = request.head.field("x-answer").unwrap_or("200");
        format!("HTTP/1.1 {status} Told\r\ncontent-length: 2\r\n\r\nok")
    })
}

/// So many calls that the upstream answers so, by the status that the client sees.
fn answers(proxy: &Proxy, status: u16, count: usize) -> Vec<u16> {
    of(proxy, "anybody", status, count)
}

/// The same, of one client.
fn of(proxy: &Proxy, client: &str, status: u16, count: usize) -> Vec<u16> {
    let fields = format!("x-client: {client}\r\nx-answer: {status}\r\n");
    (0..count).map(|_| proxy.get(&fields).status()).collect()
}

/// What status says of the detector with this name at a scope.
fn detector(proxy: &Proxy, scope: &str, name: &str) -> Value {
    let status = proxy.status();
    let detectors = status["detectors"].as_array().unwrap();
    let found = detectors.iter().find(|one| one["scope"] == scope && one["detector"] == name);
    found.cloned().unwrap_or_else(|| panic!("no detector {name} at {scope}: {status}"))
}

/// The records of the journal of this kind.
fn records(proxy: &Proxy, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(proxy.state().join("journal")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let records = lines.map(|(_, json)| serde_json::from_str::<Value>(json).unwrap());
    records.filter_map(|entry| entry["record"].get(kind).cloned()).collect()
}

const API: &str = "/default/api";

/// Goal: a share of faults trips its route; the refusal, status, metrics and journal all say by which detector and what it saw.
#[test]
fn faults_trip_a_route_and_all_tell_it() {
    let upstream = asked();
    let rules = "detect = [{ name = \"sick\", errors = 0.5 }]";
    let proxy = Setup::route(upstream.address(), rules).start_clocked();
    assert_eq!(answers(&proxy, 200, 5), [200; 5]);
    let labels = |result: &str| {
        [r#"scope="/default/api""#, r#"detector="sick""#, result].map(ToOwned::to_owned)
    };
    let count = |result: &str| {
        let labels = labels(&format!("result=\"{result}\""));
        proxy.line("breaker_findings_total", &labels.each_ref().map(String::as_str))
    };
    assert_eq!(count("enforced"), 0.0, "it has its line from the start");
    for _ in 0..60 {
        answers(&proxy, 502, 1);
    }
    eventually("a trip", || (proxy.state_of(API) == "tripped").then_some(()));
    let answer = proxy.get("");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "tripped"));
    let shown = proxy.scope(API);
    assert_eq!((&shown["detector"], shown.get("limit")), (&0.into(), None));
    proxy.swept();
    assert_eq!((count("enforced"), count("warned"), count("shadow")), (1.0, 0.0, 0.0));
    let seen = detector(&proxy, API, "sick");
    assert_eq!((&seen["enforced"], &seen["last"]["learned"]), (&1.into(), &false.into()));
    assert!(seen["last"]["value"].as_f64().unwrap() > 0.5, "{seen}");
    let moves = [r#"scope="/default/api""#, r#"to="tripped""#];
    assert_eq!(proxy.line("breaker_moves_total", &moves), 1.0);
    eventually("the records", || (records(&proxy, "moved").len() == 1).then_some(()));
    let (found, moved) = (records(&proxy, "found").remove(0), records(&proxy, "moved").remove(0));
    assert_eq!((&found["kind"], &found["trips"]), (&"errors".into(), &true.into()));
    assert_eq!(found["scope"], API);
    assert_eq!((&moved["detector"], &moved["to"]), (&0.into(), &"tripped".into()));
    proxy.finish();
}

/// Goal: a streak of faults trips at the very answer that ends it, on a key alone; who answers well in between is never tripped; a
/// client's own faults are none.
#[test]
fn a_streak_trips_its_key_alone() {
    let upstream = asked();
    let rules = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\ndetect = [{ streak = 3 }]";
    let setup = Setup::route(upstream.address(), rules);
    let proxy = setup.start_clocked();
    assert_eq!(of(&proxy, "bad", 500, 4), [500, 500, 500, 503]);
    for _ in 0..3 {
        assert_eq!(of(&proxy, "fair", 500, 2), [500; 2]);
        assert_eq!(of(&proxy, "fair", 200, 1), [200]);
    }
    assert_eq!(of(&proxy, "wrong", 404, 10), [404; 10]);
    let labels = [r#"dimension="client""#, r#"detector="streak[0]""#, r#"result="enforced""#];
    eventually("the finding", || {
        (proxy.line("breaker_findings_total", &labels) == 1.0).then_some(())
    });
    assert!(!proxy.admin("GET", "/metrics", "").text().contains("bad"), "no key is a label");
    // It comes back by its name.
    let proxy = proxy.restart_clocked(&setup);
    assert_eq!(of(&proxy, "bad", 200, 1), [503]);
    assert_eq!(proxy.scope("/default/api/client=bad")["detector"], 0);
    assert_eq!(of(&proxy, "fair", 200, 1), [200]);
    proxy.finish();
}

/// Goal: a key that the sweep trips, at no call of its own, is known by its name, and comes back by it.
#[test]
fn a_key_tripped_between_two_calls_has_its_name() {
    let upstream = asked();
    let rules = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n\
                 detect = [{ ratio = \"faults\", above = 0.5, at_least = 10 }]";
    let setup = Setup::route(upstream.address(), rules);
    let proxy = setup.start_clocked();
    let fields = "x-client: bad\r\nx-answer: 500\r\n";
    for _ in 0..10 {
        assert_eq!(proxy.get(fields).status(), 500);
    }
    eventually("a trip", || {
        // What was judged at one instant is not judged again at the same.
        proxy.advance(Span::from_millis(10));
        (proxy.state_of("/default/api/client=bad") == "tripped").then_some(())
    });
    proxy.swept();
    let crash = proxy.crashed();
    let next = setup.start_on_clocked(crash.path());
    assert_eq!(next.state_of("/default/api/client=bad"), "tripped");
    assert_eq!(of(&next, "other", 200, 1), [200]);
    next.finish();
    proxy.finish();
}

/// Goal: a surge is refused at the call that is too many; a repetition likewise, while calls that differ in their query pass.
#[test]
fn a_surge_and_a_repetition_trip_at_the_call() {
    let upstream = asked();
    let key = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n";
    let surge = format!("{key}detect = [{{ surge = [\"5/1s\"] }}]");
    let proxy = Setup::route(upstream.address(), &surge).start_clocked();
    // A value is judged from the first sweep on that has seen it.
    let mut statuses = of(&proxy, "a", 200, 1);
    proxy.swept();
    statuses.extend(of(&proxy, "a", 200, 7));
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert!((5..=6).contains(&passed) && statuses.ends_with(&[503, 503]), "{statuses:?}");
    assert_eq!(of(&proxy, "b", 200, 2), [200; 2]);
    proxy.finish();

    let repeat = format!("{key}detect = [{{ repeat = \"4/10s\" }}]");
    let proxy = Setup::route(upstream.address(), &repeat).start_clocked();
    let ask = |target: &str, client: &str| {
        let mut wire = proxy.client();
        wire.send(&format!("GET {target} HTTP/1.1\r\nhost: a\r\nx-client: {client}\r\n\r\n"));
        wire.answer().status()
    };
    for number in 0..20 {
        assert_eq!(ask(&format!("/x?n={number}"), "varied"), 200, "{number}");
    }
    let same: Vec<u16> = (0..6).map(|_| ask("/x?n=1", "same")).collect();
    assert!(same.starts_with(&[200; 3]) && same.ends_with(&[503, 503]), "{same:?}");
    assert_eq!(ask("/x?n=1", "varied"), 200);
    // A body that is not known makes no repetition.
    for _ in 0..8 {
        let mut wire = proxy.client();
        wire.send("POST /x HTTP/1.1\r\nhost: a\r\nx-client: post\r\ncontent-length: 1\r\n\r\na");
        assert_eq!(wire.answer().status(), 200);
    }
    proxy.finish();
}

/// Goal: an answer that takes longer than the route's `slow` is slow, counted from the last byte of the request: a client that is slow
/// to send is not. Slow calls trip by their share; and a slow route by its latency.
#[test]
fn slow_answers_are_found() {
    let call = |proxy: &Proxy, upstream: &Upstream, wait: Span, upload: Span| {
        let mut client = proxy.client();
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\na");
        let mut exchange = upstream.accept();
        exchange.until(b"\r\n\r\na").unwrap();
        proxy.advance(upload);
        client.send("b");
        exchange.until(b"b").unwrap();
        // Whatever tells that the body is whole has been told.
        proxy.rest();
        proxy.advance(wait);
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        assert_eq!(client.answer().status(), 200);
    };
    let (fast, slow) = (Span::from_millis(100), Span::from_secs(3));
    for rule in [
        "ratio = \"slow\", above = 0.5, at_least = 10, over = \"1h\"",
        "latency = \"1s\", at_least = 10",
    ] {
        let upstream = Upstream::start();
        let rules = format!("slow = \"1s\"\ndetect = [{{ {rule} }}]");
        let proxy = Setup::route(upstream.address(), &rules).start_clocked();
        for _ in 0..12 {
            call(&proxy, &upstream, fast, slow);
        }
        proxy.swept();
        assert_eq!(proxy.state_of(API), "armed", "{rule}: a slow upload is not the upstream's");
        // Slow ones until it is found: the first hundred must do.
        let mut calls = 0;
        while proxy.state_of(API) == "armed" {
            call(&proxy, &upstream, slow, Span::ZERO);
            proxy.swept();
            calls += 1;
            assert!(calls < 100, "{rule}: never found");
        }
        assert_eq!(proxy.state_of(API), "tripped", "{rule}");
        assert_eq!(proxy.scope(API)["detector"], 0);
        drop(upstream);
        proxy.stop_now();
    }
}

/// Goal: too many tripped keys trip what they hang from, and a group hears of what its routes' calls came to.
#[test]
fn what_is_wide_is_found_wide() {
    let upstream = asked();
    let rules = "detect = [{ spread = 3 }]\n[[routes.keys]]\nname = \"client\"\n\
                 from = { header = \"x-client\" }\ndetect = [{ streak = 2 }]";
    let proxy = Setup::route(upstream.address(), rules).start_clocked();
    for client in ["a", "b"] {
        of(&proxy, client, 500, 2);
    }
    proxy.swept();
    assert_eq!(of(&proxy, "other", 200, 1), [200]);
    of(&proxy, "c", 500, 2);
    eventually("a trip", || (proxy.state_of(API) == "tripped").then_some(()));
    assert_eq!(of(&proxy, "other", 200, 1), [503]);
    proxy.finish();

    let address = upstream.address();
    let route = |name: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\ngroup = \"pay\"\nmatch = {{ path = \"/{name}\" }}\nupstream = \"http://{address}\"\n"
        )
    };
    let group = "[[groups]]\nname = \"pay\"\ndetect = [{ ratio = \"faults\", at_least = 20 }]\n";
    let proxy = Setup::new(format!("{group}{}{}", route("a"), route("b"))).start_clocked();
    let ask = |path: &str| {
        let mut wire = proxy.client();
        wire.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-answer: 500\r\n\r\n"));
        wire.answer().status()
    };
    for _ in 0..10 {
        assert_eq!([ask("/a"), ask("/b")], [500; 2]);
    }
    eventually("a trip of the group", || (proxy.state_of("/pay") == "tripped").then_some(()));
    assert_eq!([ask("/a"), ask("/b")], [503; 2]);
    proxy.finish();
}

/// Goal: a detector that only warns, and one whose scope is in shadow, deny nothing, and each is counted as what it is.
#[test]
fn what_is_only_tried_denies_nothing() {
    let upstream = asked();
    for (rules, result, member) in [
        ("detect = [{ name = \"row\", streak = 3, on_find = \"warn\" }]", "warned", "warned"),
        ("mode = \"shadow\"\ndetect = [{ name = \"row\", streak = 3 }]", "shadow", "shadow"),
    ] {
        let proxy = Setup::route(upstream.address(), rules).start_clocked();
        assert_eq!(answers(&proxy, 500, 6), [500; 6], "{rules}");
        let line = format!("result=\"{result}\"");
        eventually("the finding", || {
            let labels = [r#"detector="row""#, line.as_str()];
            (proxy.line("breaker_findings_total", &labels) >= 1.0).then_some(())
        });
        let seen = detector(&proxy, API, "row");
        assert_eq!(seen["enforced"], 0, "{seen}");
        assert!(seen[member].as_u64().unwrap() >= 1, "{seen}");
        proxy.finish();
    }
}

/// Goal: a class of fault that was never seen is told once; what was known is known after a restart.
#[test]
fn what_was_learned_is_known_after_a_restart() {
    let upstream = asked();
    let setup = Setup::route(upstream.address(), "detect = [{ novel = \"0s\" }]");
    let told = |proxy: &Proxy| {
        proxy.swept();
        detector(proxy, API, "novel[0]")["warned"].as_u64().unwrap()
    };
    let proxy = setup.start_clocked();
    proxy.swept();
    proxy.advance(Span::from_secs(60));
    answers(&proxy, 500, 3);
    assert_eq!(told(&proxy), 1);
    proxy.advance(Span::from_secs(3_600));
    answers(&proxy, 500, 1);
    assert_eq!(told(&proxy), 1, "known");
    let proxy = proxy.restart_clocked(&setup);
    assert!(proxy.standings().contains("learned 1"), "{}", proxy.standings());
    proxy.advance(Span::from_secs(60));
    answers(&proxy, 500, 3);
    assert_eq!(told(&proxy), 0, "known from before the restart");
    answers(&proxy, 503, 1);
    assert_eq!(told(&proxy), 1, "another one is not");
    proxy.finish();
}

/// Goal: a route that was busy and falls silent is told, and nobody is refused for it.
#[test]
fn a_silence_is_told() {
    let upstream = asked();
    let rules = "detect = [{ silence = \"5m\", active = 0.1, least = \"10s\" }]";
    let proxy = Setup::route(upstream.address(), rules).start_clocked();
    for _ in 0..45 {
        proxy.advance(Span::from_secs(60));
        answers(&proxy, 200, 1);
        proxy.swept();
    }
    assert_eq!(detector(&proxy, API, "silence[0]")["warned"], 0);
    proxy.advance(Span::from_secs(600));
    proxy.swept();
    let seen = detector(&proxy, API, "silence[0]");
    assert_eq!(seen["warned"], 1, "{seen}");
    assert!(seen["last"]["value"].as_f64().unwrap() > 300.0, "{seen}");
    assert_eq!(answers(&proxy, 200, 1), [200]);
    proxy.finish();
}
