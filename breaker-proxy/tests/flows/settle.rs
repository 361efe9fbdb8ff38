//! Reservations that answers settle: what is charged before, and after, by what an answer says, by either version of HTTP.

use super::support::h2::H2;
use super::support::h2_server::{Grove, Said};
use super::support::upstream::{Serving, Upstream};
use super::support::{Proxy, Setup};
use hyper::Request;
use std::net::SocketAddr;

/// Tokens as a model's provider counts them: 1000 in all, and 200 reserved for each call.
fn tokens(upstream: SocketAddr, settle: &str) -> Setup {
    Setup {
        bounds: "inspect_bytes = \"1KB\"",
        ..Setup::route(
            upstream,
            &format!(
                "weight = 200\nsettle = {settle}\nlimit = [{{ budget = 1000, by = \"weight\" }}]"
            ),
        )
    }
}

/// What of the budget is spent.
fn spent(proxy: &Proxy) -> u64 {
    let status = proxy.status();
    let limit = &status["limits"][0];
    limit["used"].as_u64().unwrap_or_else(|| panic!("no use: {status}"))
}

/// An upstream that answers with these fields and this body, always the same.
fn answering(fields: &'static str, body: String) -> Serving {
    Serving::start(move |_| {
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\n{fields}content-length: {length}\r\n\r\n{body}")
    })
}

/// What one call by HTTP/1.1, and then one by HTTP/2, come to be charged; the answer is asserted to have come as it was.
fn charged(settle: &str, fields: &'static str, body: &str) -> (u64, u64, u64) {
    let upstream = answering(fields, body.to_owned());
    let proxy = tokens(upstream.address(), settle).start_clocked();
    let answer = proxy.get("");
    assert_eq!((answer.status(), answer.text().as_str()), (200, body));
    proxy.settled();
    let first = spent(&proxy);
    let client = H2::connect(proxy.data());
    assert_eq!(client.get("/x").answer(), (200, body.as_bytes().to_vec()));
    proxy.settled();
    let second = spent(&proxy) - first;
    drop(client);
    let unsettled = proxy.metric("breaker_unsettled_calls_total");
    let accounts = proxy.finish();
    assert_eq!(accounts["unsettled"].as_f64(), Some(unsettled));
    (first, second, accounts["unsettled"].as_u64().unwrap())
}

const HEADER: &str = "{ header = \"x-tokens-used\" }";
const BODY: &str = "{ json = \"/usage/total_tokens\", events = \"/usage/total_tokens\" }";
const JSON: &str = "content-type: application/json\r\n";
const EVENTS: &str = "content-type: text/event-stream\r\n";

/// Goal: what an answer says its call weighed is what is charged in the end, less than was reserved or more, wherever it stands; what does
/// not say it, or not plainly, leaves the reservation, and is counted.
#[test]
fn an_answer_settles_what_was_reserved() {
    let json = r#"{"id":"x","usage":{"total_tokens":37}}"#;
    let events = "data: {\"delta\":\"a\"}\n\ndata: {\"usage\":{\"total_tokens\":5}}\n\n\
                  data: {\"usage\":{\"total_tokens\":41}}\n\ndata: [DONE]\n\n";
    let long = format!("{{\"x\":\"{}\",\"usage\":{{\"total_tokens\":1}}}}", "x".repeat(1000));
    let long_event =
        format!("data: {{\"usage\":{{\"total_tokens\":1}}}}\n\ndata: {}\n\n", "x".repeat(1000));
    let many =
        format!("{}data: {{\"usage\":{{\"total_tokens\":9}}}}\n\n", "data: {}\n\n".repeat(5000));
    let scaled = "{ header = \"x-tokens-used\", scale = 1 }";
    let missing = "{ json = \"/usage/total_tokens\", missing = 3 }";
    for (name, settle, fields, body, each, unsettled) in [
        ("a field", HEADER, "X-Tokens-Used: 12\r\n", "ok", 12, 0),
        ("a field, and no body", HEADER, "x-tokens-used:0\r\n", "", 0, 0),
        ("a field of tenths", scaled, "x-tokens-used: 1.25\r\n", "ok", 13, 0),
        ("more than was reserved", HEADER, "x-tokens-used: 450\r\n", "ok", 450, 0),
        ("no field", HEADER, "", "ok", 200, 2),
        ("two fields", HEADER, "x-tokens-used: 1\r\nx-tokens-used: 1\r\n", "ok", 200, 2),
        ("a field that is no number", HEADER, "x-tokens-used: many\r\n", "ok", 200, 2),
        ("less than nothing", HEADER, "x-tokens-used: -5\r\n", "ok", 200, 2),
        ("a document", BODY, JSON, json, 37, 0),
        ("events", BODY, EVENTS, events, 41, 0),
        ("more than is held of events, in small ones", BODY, EVENTS, &many, 9, 0),
        ("a document as events", BODY, EVENTS, json, 200, 2),
        ("another type", BODY, "content-type: text/plain\r\n", json, 200, 2),
        ("no type", BODY, "", json, 200, 2),
        (
            "in a coding",
            BODY,
            "content-type: application/json\r\ncontent-encoding: gzip\r\n",
            json,
            200,
            2,
        ),
        (
            "a document that says it twice",
            BODY,
            JSON,
            r#"{"usage":{"total_tokens":1,"total_tokens":2}}"#,
            200,
            2,
        ),
        ("half a document", BODY, JSON, r#"{"usage":{"total_tokens":1}"#, 200, 2),
        ("a document that does not say it", BODY, JSON, "{}", 200, 2),
        ("the same, with a number for it", missing, JSON, "{}", 3, 0),
        ("nothing, with a number for it", missing, JSON, "", 3, 0),
        ("a document that is too long", BODY, JSON, &long, 200, 2),
        ("an event that is too long", BODY, EVENTS, &long_event, 200, 2),
    ] {
        assert_eq!(charged(settle, fields, body), (each, each, unsettled), "{name}");
    }
}

/// Goal: tokens per minute: a reservation is held while its call is in flight, so that calls side by side do not pass the limit together; what
/// was not used is there for others at once; and what was used beyond it is owed.
#[test]
fn calls_side_by_side_do_not_pass_a_limit_together() {
    let upstream = Upstream::start();
    let proxy = tokens(upstream.address(), HEADER).start_clocked();
    let mut calls: Vec<_> = (0..5)
        .map(|_| {
            let mut client = proxy.client();
            client.send("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
            let mut exchange = upstream.accept();
            exchange.request();
            (client, exchange)
        })
        .collect();
    assert_eq!((spent(&proxy), proxy.get("").status()), (1000, 429));
    let mut answer = |used: u64| {
        let (mut client, mut exchange) = calls.pop().unwrap();
        exchange.send(&format!(
            "HTTP/1.1 200 OK\r\nx-tokens-used: {used}\r\ncontent-length: 2\r\n\r\nok"
        ));
        assert_eq!(client.answer().status(), 200);
        super::support::eventually("the end of a call", || {
            let open = proxy.status()["calls_open"].as_u64().unwrap();
            (open == u64::try_from(calls.len()).unwrap()).then_some(())
        });
        spent(&proxy)
    };
    assert_eq!(answer(0), 800);
    assert_eq!(answer(50), 650);
    assert_eq!(answer(900), 1350, "what was used is owed");
    assert_eq!(proxy.get("").status(), 429);
    assert_eq!(answer(200), 1350);
    assert_eq!(answer(0), 1150);
    proxy.finish();
}

/// Goal: an answer that breaks off gives nothing back, by whoever's hand; but what it said to be more than was reserved is owed, so that a
/// client cannot leave with it.
#[test]
fn a_broken_answer_gives_nothing_back() {
    let event = |used: u64| format!("data: {{\"usage\":{{\"total_tokens\":{used}}}}}\n\n");
    for (said, expected) in [(Some(5), 200), (Some(700), 700), (None, 200)] {
        for how in ["cut", "the upstream", "the client"] {
            let upstream = Upstream::start();
            let proxy = tokens(upstream.address(), BODY).start_clocked();
            let client = H2::connect(proxy.data());
            let stream = client.get("/x");
            let mut exchange = upstream.accept();
            exchange.request();
            let body = said.map_or_else(|| ": nothing\n\n".to_owned(), event);
            let length = body.len();
            exchange.send(&format!(
                "HTTP/1.1 200 OK\r\n{EVENTS}transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n"
            ));
            stream.head();
            stream.next();
            match how {
                "cut" => {
                    proxy.cut("/");
                    assert!(!stream.rest().1, "it broke off");
                }
                "the upstream" => {
                    drop(exchange);
                    assert!(!stream.rest().1, "it broke off");
                }
                _ => drop(client),
            }
            proxy.settled();
            assert_eq!(spent(&proxy), expected, "{said:?}, broken off by {how}");
            proxy.finish();
        }
    }
}

/// Goal: a call that is never answered, or never sent, is settled by what became of it: the first is charged what was reserved, the second nothing.
#[test]
fn calls_without_an_answer() {
    let upstream = Upstream::start();
    let proxy = tokens(upstream.address(), HEADER).start_clocked();
    let mut client = proxy.client();
    client.send("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    drop(exchange);
    assert_eq!(client.answer().status(), 502);
    proxy.settled();
    assert_eq!(spent(&proxy), 200);
    proxy.finish();
    let proxy = tokens(upstream.close(), HEADER).start_clocked();
    assert_eq!(proxy.get("").status(), 502);
    proxy.settled();
    assert_eq!(spent(&proxy), 0);
    assert_eq!(proxy.finish()["unsettled"], 0);
}

/// Goal: a client cannot have the number hidden from us: no coding and no part of an answer is asked for where its body is looked into, in
/// whatever spelling; elsewhere both pass.
#[test]
fn an_answer_that_is_looked_into_comes_plain() {
    for (settle, passes) in [(BODY, false), (HEADER, true)] {
        let upstream = Serving::ok();
        let proxy = tokens(upstream.address(), settle).start_clocked();
        let fields =
            "accept-encoding: gzip\r\naccept_encoding: gzip\r\nrange: bytes=0-1\r\nif-range: x\r\n";
        proxy.get(fields);
        let client = H2::connect(proxy.data());
        let request = Request::get("http://a/x").header("accept-encoding", "br");
        client.start(request.body(()).unwrap(), false).answer();
        proxy.finish();
        let heard = upstream.heard();
        let own = |place: usize, name: &str| heard[place].head.field(name).map(str::to_owned);
        let plain = |place: usize| own(place, "accept-encoding").as_deref() == Some("identity");
        assert_eq!((plain(0), plain(1)), (!passes, !passes), "{settle}");
        for name in ["accept_encoding", "range", "if-range"] {
            assert_eq!(own(0, name).is_some(), passes, "{settle} {name}");
        }
    }
}

/// Goal: the same holds of an upstream over HTTP/2: its answers settle, with a body and without one, and it is asked for them in no coding.
#[test]
fn an_upstream_over_http2_settles_too() {
    let grove = Grove::start(|heard| {
        let streams = heard.head.uri.path() == "/events";
        let (kind, body) = match heard.head.uri.path() {
            "/events" => ("text/event-stream", "data: {\"usage\":{\"total_tokens\":41}}\n\n"),
            "/none" => ("application/json", ""),
            _ => ("application/json", r#"{"usage":{"total_tokens":300}}"#),
        };
        let trailers = streams.then(|| vec![("x-end", "1")]);
        Said { fields: vec![("content-type", kind)], body: body.as_bytes().to_vec(), trailers }
    });
    let proxy = Setup::new(format!(
        "[[upstreams]]\nname = \"u\"\nendpoints = \"http://{}\"\nprotocol = \"h2\"\n\
         [[routes]]\nname = \"api\"\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"u\"\nweight = 200\n\
         settle = {BODY}\nlimit = [{{ budget = 10000, by = \"weight\" }}]\n",
        grove.address()
    ))
    .start_clocked();
    let mut before = 0;
    for (path, expected) in [("/json", 300), ("/events", 41), ("/none", 200), ("/json", 300)] {
        let mut client = proxy.client();
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip\r\n\r\n"));
        assert_eq!(client.answer().status(), 200);
        proxy.settled();
        let now = spent(&proxy);
        assert_eq!(now - before, expected, "{path}");
        before = now;
    }
    proxy.finish();
    for heard in grove.heard() {
        assert_eq!(heard.head.headers["accept-encoding"], "identity");
    }
}

/// Goal: an answer goes on as it comes, though it is looked into: its first event is with the client before there is a second.
#[test]
fn nothing_is_held_back() {
    let upstream = Upstream::start();
    let proxy = tokens(upstream.address(), BODY).start_clocked();
    let mut client = proxy.client();
    client.send("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send(&format!("HTTP/1.1 200 OK\r\n{EVENTS}connection: close\r\n\r\ndata: {{"));
    client.head();
    assert_eq!(client.chunk(), Ok(Some(b"data: {".to_vec())));
    exchange.send("\"usage\":{\"total_tokens\":8}}");
    drop(exchange);
    while client.chunk().unwrap().is_some() {}
    proxy.settled();
    assert_eq!(spent(&proxy), 8, "the end of the answer ends its last event");
    proxy.finish();
}
