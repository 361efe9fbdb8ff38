//! What a stop and a start keep: kills, trips and their ids; and the states on which nothing may be started.

use super::support::upstream::{Serving, Upstream};
use super::support::wire::Wire;
use super::support::{LIMIT, Setup, eventually};
use breaker_proxy::app::StartError;
use breaker_proxy::state::StateError;
use serde_json::Value;
use std::fs;
use std::path::Path;

const TRIP: &str = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n\
    limit = [{ window = \"3/1h\", of = \"offered\", on_breach = \"trip\" }]";

/// Why nothing was started; whatever it says, it names what has to be looked at.
fn refused(setup: &Setup, state: &Path) -> StartError {
    match setup.try_start(state) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

/// Goal: a kill outlives the process: it is in force before the first byte is accepted, with its id, level, actor and reason.
#[test]
fn a_kill_outlives_the_process() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let proxy = setup.start();
    let kills =
        [("/default/api", "halt"), ("/default", "cut"), ("/", "halt")].map(|(scope, level)| {
            let body = format!(r#"{{"reason":"runaway","actor":"eve","level":"{level}"}}"#);
            proxy.order("kill", scope, &body)
        });
    let before = proxy.status()["kills"].clone();
    let proxy = proxy.restart(&setup);
    let answer = proxy.get("");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "killed"));
    assert_eq!(answer.json()["id"], kills[2]["id"], "the widest answers");
    assert_eq!(proxy.status()["kills"], before);
    for kill in &kills {
        let shown = proxy.scope(kill["scope"].as_str().unwrap());
        assert_eq!((&shown["id"], &shown["level"]), (&kill["id"], &kill["level"]));
    }
    // And again, without an order in between.
    let proxy = proxy.restart(&setup);
    assert_eq!(proxy.status()["kills"], before);
    // A new kill has a new id, and the old ones are lifted by theirs.
    let new = proxy.halt("/default");
    assert!(kills.iter().all(|kill| kill["id"] != new["id"]));
    for (scope, ids) in [("/", 1), ("/default", 2), ("/default/api", 1)] {
        assert_eq!(proxy.get("").status(), 503);
        assert_eq!(proxy.lift(scope)["lifted"].as_array().unwrap().len(), ids);
    }
    assert_eq!(proxy.get("").status(), 200);
    let proxy = proxy.restart(&setup);
    assert_eq!(proxy.status()["kills"], serde_json::json!([]));
    assert_eq!(proxy.get("").status(), 200, "lifted is lifted");
    assert_eq!(upstream.heard().len(), 2);
    proxy.finish();
}

/// Goal: a halt that is left after its cut was lifted comes back as a halt.
#[test]
fn a_lowered_kill_comes_back_as_it_was_left() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "class = \"reducing\"");
    let proxy = setup.start();
    let cut = proxy.cut("/default");
    proxy.halt("/default");
    let body = format!(r#"{{"reason":"test","to":"armed","kills":[{}]}}"#, cut["id"]);
    assert_eq!(proxy.order("lift", "/default", &body)["still_killed"], "halt");
    let proxy = proxy.restart(&setup);
    assert_eq!(proxy.scope("/default")["level"], "halt");
    assert_eq!(proxy.get("").status(), 200, "a reducing call passes a halt");
    proxy.finish();
}

/// Goal: killed keys come back killed, and by name, whatever bytes their names hold.
#[test]
fn killed_keys_come_back_by_name() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), TRIP);
    let proxy = setup.start();
    let paths = ["client=plain", "client=a%20b%2Fc%25", "client=%FF%FE", "client=4%3D2"];
    for path in paths {
        proxy.halt(&format!("/default/api/{path}"));
    }
    let proxy = proxy.restart(&setup);
    for path in paths {
        assert_eq!(proxy.state_of(&format!("/default/api/{path}")), "killed", "{path}");
    }
    for (field, status) in [("plain", 503), ("a b/c%", 503), ("4=2", 503), ("other", 200)] {
        assert_eq!(proxy.get(&format!("x-client: {field}\r\n")).status(), status, "{field}");
    }
    let mut client = proxy.client();
    client.send_bytes(b"GET / HTTP/1.1\r\nHost: a\r\nx-client: \xff\xfe\r\n\r\n");
    assert_eq!(client.answer().status(), 503, "bytes that are no text");
    proxy.finish();
}

/// Goal: a trip outlives the process, of a route and of a key, by a limit and by hand; others pass; a reset one does not
/// come back.
#[test]
fn a_trip_outlives_the_process() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), TRIP);
    let proxy = setup.start();
    for number in 0..4 {
        let status = proxy.get("x-client: mad dog\r\n").status();
        assert_eq!(status, if number < 3 { 200 } else { 503 });
    }
    proxy.order("trip", "/default/api/client=odd", r#"{"reason":"odd"}"#);
    proxy.order("trip", "/default/api/client=fine", r#"{"reason":"odd"}"#);
    proxy.order("reset", "/default/api/client=fine", r#"{"reason":"was fine"}"#);
    // A trip by a limit is written by the sweeper.
    eventually("the trip on the record", || {
        (proxy.metric("breaker_trips_total") >= 2.0).then_some(())
    });
    let proxy = proxy.restart(&setup);
    let answer = proxy.get("x-client: mad dog\r\n");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "tripped"));
    assert_eq!(answer.json()["scope"], "/default/api/client=mad%20dog");
    assert_eq!(proxy.get("x-client: odd\r\n").status(), 503);
    assert_eq!(proxy.get("x-client: fine\r\n").status(), 200);
    assert_eq!(proxy.get("x-client: other\r\n").status(), 200);
    proxy.order("reset", "/default/api/client=mad%20dog", r#"{"reason":"test"}"#);
    let proxy = proxy.restart(&setup);
    let shown = |name: &str| proxy.state_of(&format!("/default/api/client={name}"));
    assert_eq!((shown("mad%20dog"), shown("odd")), ("armed".into(), "tripped".into()));
    assert_eq!(proxy.get("x-client: odd\r\n").status(), 503, "nobody reset that one");
    assert_eq!(proxy.get("x-client: fine\r\n").status(), 200);
    assert_eq!(proxy.get("x-client: mad dog\r\n").status(), 503, "its window is as full as it was");
    proxy.finish();
}

/// Goal: a stop right after a trip does not lose it: the last moves are written before the last record.
/// Method: the stop races with the sweep that would write it; often enough to meet the gap between two sweeps.
#[test]
fn a_stop_right_after_a_trip_does_not_lose_it() {
    let upstream = Serving::ok();
    let trip = "limit = [{ window = \"1/1h\", of = \"offered\", on_breach = \"trip\" }]";
    let setup = Setup::route(upstream.address(), trip);
    for round in 0..10 {
        let proxy = setup.start();
        assert_eq!(proxy.get("").status(), 200);
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().status(), 503);
        drop(client);
        let state = proxy.state().to_owned();
        let root = proxy.stop_now();
        let proxy = setup.start_on(&state);
        assert_eq!(proxy.get("").status(), 503, "round {round}");
        proxy.finish();
        drop(root);
    }
}

/// Goal: a probation that was passed is remembered, however fast it was: a restart does not bring the halt back.
/// Method: the probes follow the lift within one sweep.
#[test]
fn a_fast_probation_is_remembered() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    for round in 0..5 {
        let proxy = setup.start();
        proxy.halt("/default/api");
        let mut client = proxy.client();
        let mut wire = Wire::connect(proxy.admin_addr());
        wire.send(&super::support::admin_request(
            "POST",
            "/v1/lift/default/api",
            r#"{"reason":"test"}"#,
        ));
        assert_eq!(wire.answer().status(), 200);
        client.send(&"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5));
        for _ in 0..5 {
            assert_eq!(client.answer().status(), 200);
        }
        drop(client);
        assert_eq!(proxy.state_of("/default/api"), "armed");
        let proxy = proxy.restart(&setup);
        assert_eq!(proxy.state_of("/default/api"), "armed", "round {round}");
        assert_eq!(proxy.get("").status(), 200, "round {round}");
        proxy.finish();
    }
}

/// Goal: a probation that was not passed is no freedom: after a restart the scope is halted.
#[test]
fn an_unfinished_probation_starts_as_tripped() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let proxy = setup.start();
    proxy.halt("/default/api");
    proxy.order("lift", "/default/api", r#"{"reason":"test"}"#);
    assert_eq!(proxy.get("").status(), 200, "one of five probes");
    let proxy = proxy.restart(&setup);
    assert_eq!(proxy.state_of("/default/api"), "tripped");
    assert_eq!(proxy.get("").status(), 503);
    proxy.finish();
}

/// Goal: what is in flight when it stops runs out, and nothing new is accepted meanwhile.
#[test]
fn a_stop_lets_what_is_in_flight_run_out() {
    let upstream = Upstream::start();
    let mut proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    let mut idle = proxy.client();
    idle.send("GET // HTTP/1.1\r\nHost: a\r\n\r\n");
    idle.answer();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
    client.head();
    let stopping = std::thread::spawn(move || proxy.stop());
    // The idle connection ends first: the stop has begun.
    idle.assert_ends();
    exchange.send("rest");
    assert_eq!(client.exactly(8), Ok(b"halfrest".to_vec()));
    client.assert_ends();
    stopping.join().unwrap();
}

/// Goal: a stop waits for nobody who asked nothing: connections that have said nothing, or only idle, end at once.
#[test]
fn a_stop_waits_for_nobody_who_asked_nothing() {
    let upstream = Serving::ok();
    let mut proxy =
        Setup { deadlines: "drain = \"60s\"", ..Setup::route(upstream.address(), "") }.start();
    let mut silent = [proxy.client(), proxy.client(), proxy.client()];
    silent[1].send("P");
    silent[2].send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    silent[2].answer();
    proxy.rest();
    let (send, stopped) = std::sync::mpsc::channel();
    let stopping = std::thread::spawn(move || {
        proxy.stop();
        assert!(send.send(()).is_ok());
    });
    assert!(stopped.recv_timeout(LIMIT).is_ok(), "it waits for somebody");
    stopping.join().unwrap();
    for client in &mut silent {
        client.rest();
    }
}

/// Goal: while it stops it is not ready, so that nobody sends it more, and can still be killed: what runs out is cut.
#[test]
fn a_stopping_proxy_is_not_ready_and_can_be_killed() {
    let upstream = Upstream::start();
    let mut proxy =
        Setup { deadlines: "drain = \"60s\"", ..Setup::route(upstream.address(), "") }.start();
    let admin = proxy.admin_addr();
    let ask = move |method: &str, path: &str, body: &str| {
        let mut wire = Wire::connect(admin);
        wire.send(&super::support::admin_request(method, path, body));
        wire.answer()
    };
    assert_eq!(ask("GET", "/ready", "").status(), 200);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    let stopping = std::thread::spawn(move || proxy.stop());
    eventually("not ready", || (ask("GET", "/ready", "").status() == 503).then_some(()));
    assert_eq!(ask("GET", "/live", "").status(), 200);
    let cut = ask("POST", "/v1/kill/", r#"{"reason":"no patience","level":"cut"}"#);
    assert_eq!((cut.status(), &cut.json()["durable"]), (200, &true.into()));
    exchange.assert_ends();
    assert_eq!(client.answer().json()["id"], cut.json()["id"]);
    stopping.join().unwrap();
}

/// Goal: a call that does not end holds a stop up no longer than its deadline.
#[test]
fn a_stop_waits_no_longer_than_its_deadline() {
    let upstream = Upstream::start();
    let mut proxy =
        Setup { deadlines: "drain = \"200ms\"", ..Setup::route(upstream.address(), "") }.start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    let silent = proxy.client();
    proxy.stop();
    assert!(client.try_answer().is_none());
    exchange.assert_ends();
    drop(silent);
}

/// Goal: the kill is on the disk when it is answered, so that a crash, which is no stop, does not lose it.
/// Method: the journal is copied while the process runs, as a crash would leave it, also with half a line at its end.
#[test]
fn a_crash_loses_no_kill_that_was_answered() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let proxy = setup.start();
    let kill = proxy.halt("/default");
    assert_eq!(kill["durable"], true);
    let journal = fs::read(proxy.state().join("journal")).unwrap();
    proxy.lift("/default");
    proxy.finish();
    for torn in ["", "0123abcd {\"v\":1,\"seq\":"] {
        let root = super::support::room();
        fs::write(root.path().join("journal"), [&journal, torn.as_bytes()].concat()).unwrap();
        let proxy = setup.start_on(root.path());
        assert_eq!(proxy.scope("/default")["id"], kill["id"], "torn: {torn:?}");
        assert_eq!(proxy.get("").status(), 503);
        proxy.finish();
    }
}

/// Goal: a journal that is damaged refuses to start, and names file and line: a kill may have stood there.
#[test]
fn a_damaged_journal_refuses_to_start() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let mut proxy = setup.start();
    proxy.halt("/default");
    let state = proxy.state().to_owned();
    proxy.stop();
    let path = state.join("journal");
    let good = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.split_inclusive('\n').collect();
    assert!(lines.len() >= 3, "{good}");
    let without_second = [lines[0], &lines[2..].concat()].concat();
    let swapped = [lines[1], lines[0], &lines[2..].concat()].concat();
    let damaged = [
        ("a flipped bit", good.replacen("/default", "/defaulu", 1), 2),
        ("a lost line", without_second, 2),
        ("lines in another order", swapped, 1),
        ("noise", format!("{}no record\n", lines[0]), 2),
        ("a doubled line", format!("{}{}", lines[0], good), 2),
    ];
    for (name, text, line) in damaged {
        fs::write(&path, text).unwrap();
        let error = refused(&setup, &state);
        assert!(matches!(error, StartError::Journal(_)), "{name}: {error:?}");
        let words = error.to_string();
        let place = format!("{}:{line}:", path.canonicalize().unwrap().display());
        assert!(words.starts_with(&place), "{name}: {words}");
    }
    fs::write(&path, good).unwrap();
    let proxy = setup.start_on(&state);
    assert_eq!(proxy.get("").status(), 503, "and from the good one it starts, killed");
    proxy.finish();
}

/// Goal: a new configuration does not set a killed or tripped scope free by leaving it out or renaming it.
#[test]
fn a_renamed_scope_is_not_free() {
    let upstream = Serving::ok();
    let old = Setup::route(upstream.address(), TRIP);
    let new = Setup { rules: old.rules.replace("\"api\"", "\"app\""), ..old.clone() };
    for (verb, scope, what) in [
        ("kill", "/default/api", "kill k1-1"),
        ("kill", "/default/api/client=mad", "kill k1-1"),
        ("trip", "/default/api", "a trip"),
    ] {
        let mut proxy = old.start();
        proxy.order(verb, scope, r#"{"reason":"test"}"#);
        let state = proxy.state().to_owned();
        proxy.stop();
        let error = refused(&new, &state);
        assert!(matches!(error, StartError::Orphan { .. }), "{error:?}");
        let words = error.to_string();
        assert!(words.contains(what) && words.contains(scope), "{words}");
        let mut proxy = old.start_on(&state);
        let back = if verb == "kill" { "lift" } else { "reset" };
        let to = if verb == "kill" { r#","to":"armed""# } else { "" };
        proxy.order(back, scope, &format!(r#"{{"reason":"test"{to}}}"#));
        proxy.stop();
        let proxy = new.start_on(&state);
        assert_eq!(proxy.get("x-client: mad\r\n").status(), 200, "lifted, then renamed");
        proxy.finish();
    }
}

/// Goal: two processes never share a state: the second refuses, and the first serves on.
#[test]
fn a_second_instance_is_refused() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let proxy = setup.start();
    let error = refused(&setup, proxy.state());
    assert!(matches!(error, StartError::State(StateError::Locked(_))), "{error:?}");
    assert!(
        error.to_string().contains(&proxy.state().canonicalize().unwrap().display().to_string())
    );
    assert_eq!(proxy.get("").status(), 200);
    let proxy = proxy.restart(&setup);
    assert_eq!(proxy.get("").status(), 200, "after the first has stopped it is free");
    proxy.finish();
}

/// Goal: where state must be there, a start without it is refused and makes nothing up; with it, it starts.
#[test]
fn required_state_must_be_there() {
    let upstream = Serving::ok();
    let setup = Setup { required: true, ..Setup::route(upstream.address(), "") };
    let root = super::support::room();
    let state = root.path().join("state");
    for _ in 0..2 {
        let error = refused(&setup, &state);
        assert!(matches!(error, StartError::State(StateError::Required(_))), "{error:?}");
        assert!(!state.exists());
    }
    fs::create_dir(&state).unwrap();
    assert!(matches!(refused(&setup, &state), StartError::State(StateError::Required(_))));
    Setup { required: false, ..setup.clone() }.start_on(&state).finish();
    setup.start_on(&state).finish();
    // Without its journal it is a state that lost its kills.
    fs::remove_file(state.join("journal")).unwrap();
    let error = refused(&setup, &state);
    assert!(matches!(error, StartError::State(StateError::Required(_))), "{error:?}");
}

/// Goal: a port that is taken refuses the start, and names the key and the address; the state is free again.
#[test]
fn a_taken_port_refuses_the_start() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let root = super::support::room();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    for key in ["data", "admin"] {
        let text = setup.text(root.path());
        let text =
            text.replacen(&format!("{key} = \"127.0.0.1:0\""), &format!("{key} = \"{taken}\""), 1);
        let config = breaker_proxy::config::check::load(&text, "test", &|_| None).unwrap();
        let Err(error) = breaker_proxy::app::start(config) else { panic!("it started") };
        let words = error.to_string();
        assert!(words.contains(&format!("listen.{key}")), "{words}");
        assert!(words.contains(&taken.to_string()), "{words}");
    }
    let proxy = setup.start_on(root.path());
    assert_eq!(proxy.get("").status(), 200);
    assert_eq!(proxy.status()["kills"], Value::Array(Vec::new()));
    proxy.finish();
}
