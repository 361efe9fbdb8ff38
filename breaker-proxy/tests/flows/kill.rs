//! Kills and lifts: what is refused, what runs out, what is severed, what the answer may claim, and the way back.

use super::support::h2::{Event, H2, h2_get};
use super::support::upstream::{FullQueue, Serving, Upstream};
use super::support::wire::{Answer, End, Wire};
use super::support::{Proxy, Setup, admin_request, eventually};
use hyper::Request;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const KEYED: &str = "[[routes.keys]]\nname = \"peer\"\nfrom = \"peer\"\n\
    [[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\nmissing = \"skip\"";

/// Two groups with a route each, and keys on the first.
fn two_groups(upstream: &Serving) -> Setup {
    let address = upstream.address();
    let route = |name: &str, group: &str, lines: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\ngroup = \"{group}\"\nupstream = \"http://{address}\"\n\
             match = {{ path = \"/{name}/{{*rest}}\" }}\n{lines}\n"
        )
    };
    let groups = "[[groups]]\nname = \"pay\"\n[[groups]]\nname = \"ads\"\n";
    Setup::new(
        [
            groups,
            &route("orders", "pay", KEYED),
            &route("refunds", "pay", ""),
            &route("banners", "ads", ""),
        ]
        .concat(),
    )
}

fn call(proxy: &Proxy, path: &str, fields: &str) -> Answer {
    let mut client = proxy.client();
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    client.answer()
}

/// Asserts that the answer is the refusal of this kill.
fn assert_killed(answer: &Answer, kill: &Value) {
    assert_eq!(answer.status(), 503, "{}", answer.text());
    assert_eq!(answer.head.field("retry-after"), None, "nobody knows when a kill ends");
    let document = answer.json();
    assert_eq!(document["code"], "killed");
    assert_eq!(document["type"], "urn:breaker:problem:killed");
    assert_eq!(document["status"], 503);
    assert_eq!(document["id"], kill["id"], "the kill's own id");
    assert_eq!(document["scope"], kill["scope"]);
    assert_eq!(document["cause"], kill["level"]);
    assert_eq!(document.get("wait_ms"), None);
}

/// Goal: at each level a kill of either kind refuses what is in its scope and nothing else, and its answer is complete.
#[test]
fn a_kill_holds_for_its_scope_and_no_other() {
    let upstream = Serving::ok();
    let proxy = two_groups(&upstream).start();
    let calls = [
        ("/orders/1", "x-client: mad\r\n"),
        ("/orders/1", "x-client: calm\r\n"),
        ("/orders/1", ""),
        ("/refunds/1", ""),
        ("/banners/1", ""),
    ];
    let scopes = [
        ("/", [true; 5]),
        ("/pay", [true, true, true, true, false]),
        ("/pay/orders", [true, true, true, false, false]),
        ("/pay/orders/client=mad", [true, false, false, false, false]),
        ("/pay/orders/peer=127.0.0.1", [true, true, true, false, false]),
    ];
    for level in ["halt", "cut"] {
        for (scope, killed) in scopes {
            let body = format!(r#"{{"reason":"runaway","actor":"eve","level":"{level}"}}"#);
            let kill = proxy.order("kill", scope, &body);
            assert_eq!((&kill["scope"], &kill["level"]), (&scope.into(), &level.into()));
            for fact in ["in_force", "silent", "durable"] {
                assert_eq!(kill[fact], true, "{fact}: {kill}");
            }
            let [force, silent, durable] =
                ["in_force_us", "silent_us", "durable_us"].map(|name| kill[name].as_u64().unwrap());
            assert!(force <= silent && force <= durable, "{kill}");
            assert_eq!((&kill["in_flight"], &kill["severed"]), (&0.into(), &0.into()));
            assert_eq!(kill["pending_workers"], serde_json::json!([]));
            for ((path, fields), killed) in calls.iter().zip(killed) {
                let answer = call(&proxy, path, fields);
                if killed {
                    assert_killed(&answer, &kill);
                } else {
                    assert_eq!(answer.status(), 200, "{level} of {scope} hit {path} {fields:?}");
                }
            }
            let shown = proxy.scope(scope);
            assert_eq!((&shown["state"], &shown["level"]), (&"killed".into(), &level.into()));
            assert_eq!(shown["id"], kill["id"]);
            let kills = proxy.status()["kills"].clone();
            assert_eq!(kills.as_array().unwrap().len(), 1, "{kills}");
            assert_eq!(kills[0]["id"], kill["id"]);
            assert_eq!(
                (&kills[0]["actor"], &kills[0]["reason"]),
                (&"eve".into(), &"runaway".into())
            );
            assert_eq!(kills[0]["durable"], true);
            let lift = proxy.lift(scope);
            assert_eq!(lift["lifted"], serde_json::json!([kill["id"]]));
            assert_eq!((&lift["state"], &lift["durable"]), (&"armed".into(), &true.into()));
            for (path, fields) in calls {
                assert_eq!(call(&proxy, path, fields).status(), 200, "after the lift of {scope}");
            }
        }
    }
    proxy.finish();
}

/// Goal: no id is given twice.
#[test]
fn every_kill_has_its_own_id() {
    let upstream = Serving::ok();
    let proxy = two_groups(&upstream).start();
    let ids: std::collections::BTreeSet<String> =
        (0..20).map(|_| proxy.halt("/pay")["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 20);
    assert_eq!(proxy.lift("/pay")["lifted"].as_array().unwrap().len(), 20);
    assert_eq!(proxy.state_of("/pay"), "armed");
    proxy.finish();
}

/// Goal: a key can be killed before it was ever seen.
#[test]
fn a_key_is_killed_before_its_first_call() {
    let upstream = Serving::ok();
    let proxy = two_groups(&upstream).start();
    let kill = proxy.cut("/pay/orders/client=never%20seen");
    assert_killed(&call(&proxy, "/orders/1", "x-client: never seen\r\n"), &kill);
    assert_eq!(call(&proxy, "/orders/1", "x-client: seen\r\n").status(), 200);
    assert_eq!(upstream.heard().len(), 1);
    proxy.finish();
}

/// Goal: only a POST with a reason, on a scope that exists, kills; everything else changes nothing and says what is wrong.
#[test]
fn orders_that_are_none_change_nothing() {
    let upstream = Serving::ok();
    let proxy = two_groups(&upstream).start();
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let mut wire = Wire::connect(proxy.admin_addr());
        wire.send(&admin_request(method, "/v1/kill/", r#"{"reason":"a link in a chat"}"#));
        let head = wire.head();
        assert_eq!((head.word(1), head.field("allow")), ("405", Some("POST")), "{method}");
    }
    let long = "x".repeat(501);
    let bad = [
        "".to_owned(),
        "{}".to_owned(),
        r#"{"reason":""}"#.to_owned(),
        r#"{"reason":"   "}"#.to_owned(),
        format!(r#"{{"reason":"{long}"}}"#),
        r#"{"reason":7}"#.to_owned(),
        r#"{"reason":"x","level":"stop"}"#.to_owned(),
        r#"{"reason":"x","to":"armed"}"#.to_owned(),
        r#"{"reason":"x","kills":["k1-1"]}"#.to_owned(),
        r#"{"reason":"x","forever":true}"#.to_owned(),
        r#"{"reason":"x","reason":"y"}"#.to_owned(),
        r#"{"reason":"x"} trailing"#.to_owned(),
    ];
    for body in &bad {
        let answer = proxy.admin("POST", "/v1/kill/pay", body);
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad-order"), "{body}");
    }
    for scope in
        ["/pay/", "/pay//orders", "/pay/orders/x/y", "/pay/=x", "/pa%79", "/pay/orders/client="]
    {
        let answer = proxy.admin("POST", &format!("/v1/kill{scope}"), r#"{"reason":"x"}"#);
        let status = answer.status();
        assert!(status == 400 || status == 404, "{scope}: {status}");
    }
    for (scope, near) in [("/pya", "/pay"), ("/pay/order", "/pay/orders")] {
        let answer = proxy.admin("POST", &format!("/v1/kill{scope}"), r#"{"reason":"x"}"#);
        assert_eq!((answer.status(), answer.code().as_str()), (404, "unknown-scope"));
        let nearest = answer.json()["nearest"].clone();
        assert!(nearest.as_array().unwrap().contains(&near.into()), "{scope}: {nearest}");
    }
    for scope in ["/pay/orders/nobody=1", "/ads/banners/client=1"] {
        let answer = proxy.admin("POST", &format!("/v1/kill{scope}"), r#"{"reason":"x"}"#);
        assert_eq!(answer.status(), 404, "no such dimension: {scope}");
    }
    assert_eq!(proxy.status()["kills"], serde_json::json!([]));
    assert_eq!(call(&proxy, "/orders/1", "").status(), 200);
    assert_eq!(proxy.metric("breaker_kills_total"), 0.0);
    proxy.finish();
}

/// Goal: two kills of one scope are two: lifting one leaves the other, at its own level; a kill that is not named stays.
#[test]
fn lifting_one_kill_leaves_the_other() {
    let upstream = Serving::ok();
    let proxy = two_groups(&upstream).start();
    let halt = proxy.halt("/pay/orders");
    let cut = proxy.cut("/pay/orders");
    assert_killed(&call(&proxy, "/orders/1", ""), &cut);
    let second_halt = proxy.halt("/pay/orders");
    assert_killed(&call(&proxy, "/orders/1", ""), &cut);

    let lift_one = |kill: &Value| {
        let id = kill["id"].as_str().unwrap();
        let body = format!(r#"{{"reason":"test","to":"armed","kills":["{id}"]}}"#);
        proxy.admin("POST", "/v1/lift/pay/orders", &body)
    };
    let lift = lift_one(&cut);
    assert_eq!(lift.json()["still_killed"], "halt");
    assert_eq!(lift.json()["state"], "killed");
    assert_eq!(proxy.scope("/pay/orders")["level"], "halt");
    let refused = call(&proxy, "/orders/1", "").json();
    assert_eq!(refused["cause"], "halt", "the level that is left");
    assert!([&halt["id"], &second_halt["id"]].contains(&&refused["id"]), "{refused}");
    let again = lift_one(&cut);
    assert_eq!((again.status(), again.code().as_str()), (409, "unknown-kills"));

    assert_eq!(lift_one(&halt).json()["still_killed"], "halt");
    assert_killed(&call(&proxy, "/orders/1", ""), &second_halt);
    assert_eq!(lift_one(&second_halt).json()["still_killed"], Value::Null);
    assert_eq!(call(&proxy, "/orders/1", "").status(), 200);
    proxy.finish();
}

/// Goal: lifts at the same time, of different kills of one scope, leave no gate killed that nobody can lift.
#[test]
fn lifts_at_once_leave_nothing_behind() {
    let upstream = Serving::ok();
    let proxy = two_groups(&upstream).start();
    for round in 0..20 {
        let ids = [proxy.cut("/pay")["id"].clone(), proxy.halt("/pay")["id"].clone()];
        let mut wires: Vec<Wire> = ids.iter().map(|_| Wire::connect(proxy.admin_addr())).collect();
        for (wire, id) in wires.iter_mut().zip(&ids) {
            let body = format!(r#"{{"reason":"test","to":"armed","kills":[{id}]}}"#);
            wire.send(&admin_request("POST", "/v1/lift/pay", &body));
        }
        for wire in &mut wires {
            assert_eq!(wire.answer().status(), 200, "round {round}");
        }
        assert_eq!(proxy.state_of("/pay"), "armed", "round {round}");
        assert_eq!(call(&proxy, "/orders/1", "").status(), 200, "round {round}");
    }
    proxy.finish();
}

/// Goal: a lift leads to probation unless told otherwise: a few calls decide, the others wait; `to: armed` leads straight back.
#[test]
fn a_lift_leads_to_probation() {
    let upstream = Upstream::start();
    let recover = "recover = { probes = 2, after = \"5s\", at_most = \"1m\" }";
    let proxy = Setup::route(upstream.address(), recover).start();
    proxy.halt("/default/api");
    let lift = proxy.order("lift", "/default/api", r#"{"reason":"mended"}"#);
    assert_eq!((&lift["state"], &lift["still_killed"]), (&"half-open".into(), &Value::Null));
    let mut probes = [proxy.client(), proxy.client()];
    let mut exchanges = Vec::new();
    for probe in &mut probes {
        probe.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchanges.push(exchange);
    }
    let refused = proxy.get("");
    assert_eq!((refused.status(), refused.code().as_str()), (503, "probing"));
    for (probe, exchange) in probes.iter_mut().zip(&mut exchanges) {
        exchange.reply("well");
        assert_eq!(probe.answer().status(), 200);
    }
    assert_eq!(proxy.state_of("/default/api"), "armed");
    // And a probe that fails trips it.
    proxy.halt("/default/api");
    proxy.order("lift", "/default/api", r#"{"reason":"mended?","to":"half-open"}"#);
    drop(exchanges.pop());
    probes[0].send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    exchanges[0].request();
    exchanges[0].send("HTTP/1.1 503 Sick\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(probes[0].answer().status(), 503);
    assert_eq!(proxy.state_of("/default/api"), "tripped");
    proxy.finish();
}

/// Goal: a halt lets an answer in flight run out, head and body; a cut breaks it off, for the client and for the upstream.
#[test]
fn a_cut_severs_what_a_halt_lets_run_out() {
    for (cut, flowing) in [(false, false), (false, true), (true, false), (true, true)] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        let (first, last) = ("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf", "rest");
        if flowing {
            exchange.send(first);
            client.head();
            assert_eq!(client.exactly(4), Ok(b"half".to_vec()));
        }
        proxy.rest();
        let kill = if cut { proxy.cut("/") } else { proxy.halt("/") };
        assert_eq!(kill["in_flight"], 1, "cut {cut}, flowing {flowing}");
        assert_eq!(kill["severed"], u64::from(cut), "cut {cut}, flowing {flowing}");
        match (cut, flowing) {
            (false, true) => {
                exchange.send(last);
                assert_eq!(client.exactly(4), Ok(b"rest".to_vec()));
            }
            (false, false) => {
                exchange.send(&format!("{first}{last}"));
                assert_eq!(client.answer().text(), "halfrest");
            }
            (true, true) => {
                exchange.assert_ends();
                assert_eq!(client.exactly(4), Err(Vec::new()), "broken off");
            }
            (true, false) => {
                exchange.assert_ends();
                assert_killed(&client.answer(), &kill);
            }
        }
        let accounts = proxy.finish();
        assert_eq!(accounts["severed"], u64::from(cut));
        assert_eq!((&accounts["forwarded"], &accounts["upstream_errors"]), (&1.into(), &0.into()));
    }
}

/// Goal: a cut reaches the upstream of a call whose client does not read: a client must not be able to hold on to it.
/// Method: the answer is larger than all buffers on the way, and the client takes none of it.
#[test]
fn a_cut_severs_a_call_whose_client_does_not_read() {
    for http2 in [false, true] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        if http2 {
            client.send_bytes(&h2_get());
        } else {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut chunk = b"10000\r\n".to_vec();
        chunk.extend([b'x'; 0x10000]);
        chunk.extend(b"\r\n");
        exchange.fill(&chunk);
        proxy.rest();
        let kill = proxy.cut("/");
        assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &1.into()));
        exchange.assert_ends();
        drop(client);
        assert_eq!(proxy.finish()["severed"], 1, "over HTTP/2: {http2}");
    }
}

/// Goal: a client that stops reading an answer does not hold its upstream connection for longer than `body_idle`, and over
/// HTTP/1.1 not its own either.
#[test]
fn a_client_that_stopped_reading_held_its_call_for_ever() {
    for http2 in [false, true] {
        let upstream = Upstream::start();
        let mut setup = Setup::route(upstream.address(), "");
        setup.deadlines = "body_idle = \"1s\"";
        let proxy = setup.start();
        let mut client = proxy.client();
        if http2 {
            client.send_bytes(&h2_get());
        } else {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut chunk = b"10000\r\n".to_vec();
        chunk.extend([b'x'; 0x10000]);
        chunk.extend(b"\r\n");
        exchange.fill(&chunk);
        exchange.assert_ends();
        if !http2 {
            eventually("the end of the call", || (proxy.status()["calls_open"] == 0).then_some(()));
        }
        drop(client);
        assert_eq!(proxy.finish()["severed"], 0, "over HTTP/2: {http2}");
    }
}

/// Goal: a halt breaks off an upload that is still arriving: the client learns of the kill, and the upstream never has it whole.
#[test]
fn a_halt_severs_an_upload_that_still_arrives() {
    for framing in
        ["Content-Length: 8\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}"));
        let mut exchange = upstream.accept();
        let head = exchange.head();
        if head.field("content-length").is_some() {
            assert_eq!(exchange.exactly(4), Ok(b"half".to_vec()));
        } else {
            assert_eq!(exchange.chunk(), Ok(Some(b"half".to_vec())));
        }
        proxy.rest();
        let kill = proxy.halt("/");
        assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &1.into()));
        client.send("rest");
        assert_killed(&client.answer(), &kill);
        exchange.assert_ends();
        let accounts = proxy.finish();
        assert_eq!((&accounts["forwarded"], &accounts["severed"]), (&1.into(), &1.into()));
    }
}

/// Goal: what is admitted but stuck on its way out is not sent after the kill: what the upstream reads later is never a
/// whole request.
/// Method: the upstream reads nothing, so that the body fills every buffer; only then comes the kill.
#[test]
fn a_stuck_call_is_not_sent_after_the_kill() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    let length = 256 * 1024 * 1024;
    client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
    let mut exchange = upstream.accept();
    client.fill(&[b'x'; 64 * 1024]);
    proxy.rest();
    let kill = proxy.halt("/");
    assert_eq!((&kill["silent"], &kill["severed"]), (&true.into(), &1.into()));
    // Whatever the kernel held for us is dropped: the upstream meets the end, and no whole request.
    if let Some(head) = exchange.try_head() {
        let (body, end) = exchange.body(&head, false);
        assert_eq!(end, End::Broken);
        assert!(body.len() < length);
    }
    assert_eq!(client.try_answer().map(|answer| answer.status()), Some(503));
    proxy.finish();
}

/// Goal: a call that waits for a connection while its scope is killed is never sent, not even if the kill was lifted before
/// the connection came about: it counts as halted.
/// Method: the listener's queue is full, so that the connection comes about only when the test makes room.
#[test]
fn a_call_that_waits_for_a_connection_is_not_sent_after_the_kill() {
    for lifted in [false, true] {
        let full = FullQueue::new();
        let proxy =
            Setup { deadlines: "connect = \"9s\"", ..Setup::route(full.address, "") }.start();
        let mut client = proxy.client();
        client.send("GET /waiting HTTP/1.1\r\nHost: a\r\n\r\n");
        eventually("the call in flight", || {
            (proxy.status()["accounts"]["in_flight"] == 1).then_some(())
        });
        let kill = proxy.halt("/");
        assert_eq!((&kill["in_flight"], &kill["silent"]), (&1.into(), &true.into()));
        if lifted {
            proxy.lift("/");
        }
        let listener = full.make_room();
        let answer = client.answer();
        if lifted {
            assert_eq!((answer.status(), answer.code().as_str()), (503, "stale"));
            assert_eq!(answer.head.field("retry-after"), None);
        } else {
            assert_killed(&answer, &kill);
        }
        let accounts = proxy.finish();
        assert_eq!((&accounts["halted"], &accounts["forwarded"]), (&1.into(), &0.into()));
        listener.set_nonblocking(true).unwrap();
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            Wire::new(stream).assert_ends();
        }
    }
}

/// Goal: what lowers risk is not severed by a halt, not even while it arrives, and is by a cut.
#[test]
fn a_halt_spares_a_reducing_upload() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "class = \"reducing\"").start();
    let mut client = proxy.client();
    client.send("DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\none ");
    let mut exchange = upstream.accept();
    exchange.head();
    assert_eq!(exchange.exactly(4), Ok(b"one ".to_vec()));
    proxy.rest();
    let halt = proxy.halt("/");
    assert_eq!((&halt["in_flight"], &halt["severed"]), (&0.into(), &0.into()), "it is spared");
    client.send("two ");
    assert_eq!(exchange.exactly(4), Ok(b"two ".to_vec()));
    proxy.rest();
    let cut = proxy.cut("/");
    assert_eq!((&cut["in_flight"], &cut["severed"]), (&1.into(), &1.into()));
    exchange.assert_ends();
    assert_killed(&client.answer(), &cut);
    proxy.finish();
}

/// Goal: a cut finds its calls on every worker and ends all of them, and none of another scope.
#[test]
fn a_cut_finds_its_calls_on_every_worker() {
    let upstream = Upstream::start();
    let proxy = Setup { workers: 4, ..Setup::route(upstream.address(), KEYED) }.start();
    let mut calls = Vec::new();
    for number in 0..24 {
        let name = if number % 3 == 0 { "calm" } else { "mad" };
        let mut client = proxy.client();
        client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\nx-client: {name}\r\n\r\n"));
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        client.head();
        assert_eq!(client.exactly(4), Ok(b"half".to_vec()));
        calls.push((name, client, exchange));
    }
    proxy.cut("/default/api/client=mad");
    for (name, client, exchange) in &mut calls {
        if *name == "mad" {
            exchange.assert_ends();
            assert_eq!(client.exactly(4), Err(Vec::new()));
        } else {
            exchange.send("rest");
            assert_eq!(client.exactly(4), Ok(b"rest".to_vec()));
        }
    }
    drop(calls);
    assert_eq!(proxy.finish()["severed"], 16);
}

/// Goal: of a pipelined batch, what is at the upstream runs out, and what stands behind it is refused: no byte of it goes out.
#[test]
fn a_batch_around_a_kill_is_split_there() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    let batch: String =
        (0..5).map(|number| format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(&batch);
    let mut exchange = upstream.accept();
    for number in 0..2 {
        assert_eq!(exchange.request().head.word(1), format!("/{number}"));
        if number == 0 {
            exchange.reply("before");
        }
    }
    let kill = proxy.halt("/");
    exchange.reply("during");
    assert_eq!(client.answer().text(), "before");
    assert_eq!(client.answer().text(), "during");
    for _ in 2..5 {
        assert_killed(&client.answer(), &kill);
    }
    proxy.lift("/");
    client.send("GET /after HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(exchange.request().head.word(1), "/after", "nothing came in between");
    exchange.reply("after");
    assert_eq!(client.answer().text(), "after");
    upstream.assert_nobody();
    let accounts = proxy.finish();
    assert_eq!((&accounts["forwarded"], &accounts["halted"]), (&3.into(), &3.into()));
}

/// Goal: a kill ends streams, not the HTTP/2 connection that carries them: what is outside its scope goes on.
#[test]
fn http2_streams_end_and_their_connection_stays() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), KEYED).start();
    let client = H2::connect(proxy.data());
    let start = |name: &str, up: bool| {
        let method = if up { "POST" } else { "GET" };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://a/{name}"))
            .header("x-client", name)
            .body(())
            .unwrap();
        client.start(request, up)
    };
    let killed = start("mad", false);
    let mut mad = upstream.accept();
    mad.request();
    mad.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
    killed.head();
    assert!(matches!(killed.next(), Event::Data(data) if data == "half"));
    let calm = start("calm", false);
    let mut other = upstream.accept();
    other.request();

    proxy.rest();
    let cut = proxy.cut("/default/api/client=mad");
    assert_eq!(cut["severed"], 1);
    assert_eq!(killed.rest(), (Vec::new(), false), "broken off");
    mad.assert_ends();
    let refused = start("mad", false);
    assert_eq!(refused.answer().0, 503);
    other.reply("calm");
    assert_eq!(calm.answer(), (200, b"calm".to_vec()));
    client.assert_up();

    // And a halt ends what still arrives, and lets the others be.
    let uploading = start("late", true);
    uploading.feed(b"some");
    other.head();
    assert_eq!(other.chunk(), Ok(Some(b"some".to_vec())));
    proxy.rest();
    let halt = proxy.halt("/default/api/client=late");
    assert_eq!(halt["severed"], 1);
    assert_eq!(uploading.answer().0, 503);
    assert!(other.rest().is_empty());
    let after = start("calm", false);
    let mut fresh = upstream.accept();
    fresh.request();
    fresh.reply("still calm");
    assert_eq!(after.answer(), (200, b"still calm".to_vec()));
    client.assert_up();
    drop(client);
    proxy.finish();
}

/// Goal: under load no request that the upstream sees began after a kill was answered, and no two answers to one call.
/// Method: clients call without pause on both workers; the upstream marks what it reads while the scope is killed.
#[test]
fn nothing_is_sent_after_the_answer_to_a_kill() {
    let killed = Arc::new(AtomicBool::new(false));
    let late = Arc::new(AtomicBool::new(false));
    let (watch, mark) = (Arc::clone(&killed), Arc::clone(&late));
    // The whole request lies in the kernel before the answer to the kill; only reading it may come after. So the kill is
    // watched from the moment when a call of our own, made after it, was refused.
    let upstream = Serving::start(move |_| {
        // ordering: sequentially consistent, it stands beside sockets.
        if watch.load(Ordering::SeqCst) {
            mark.store(true, Ordering::SeqCst);
        }
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned()
    });
    let proxy = Setup { workers: 2, ..Setup::route(upstream.address(), "") }.start();
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..6)
        .map(|_| {
            let (stop, address) = (Arc::clone(&stop), proxy.data());
            std::thread::spawn(move || {
                let mut client = Wire::connect(address);
                // ordering: relaxed, it is only to end some time.
                while !stop.load(Ordering::Relaxed) {
                    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                    let status = client.answer().status();
                    assert!(status == 200 || status == 503, "{status}");
                }
            })
        })
        .collect();
    for round in 0..10 {
        let before = upstream.heard().len();
        eventually("traffic", || (upstream.heard().len() > before + 20).then_some(()));
        let kill = proxy.halt("/default/api");
        assert_eq!(kill["silent"], true);
        eventually("everything that was sent answered", || {
            (proxy.status()["calls_open"] == 0).then_some(())
        });
        killed.store(true, Ordering::SeqCst);
        let refused = proxy.account("halted");
        eventually("refusals", || (proxy.account("halted") > refused + 50).then_some(()));
        assert!(!late.load(Ordering::SeqCst), "round {round}: sent after the kill");
        killed.store(false, Ordering::SeqCst);
        proxy.lift("/default/api");
    }
    stop.store(true, Ordering::Relaxed);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let accounts = proxy.finish();
    assert_eq!(accounts["forwarded"].as_u64(), u64::try_from(upstream.heard().len()).ok());
}
