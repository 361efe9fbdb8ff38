//! Keys and weights in bodies, by HTTP/1.1 and HTTP/2: what is looked into is decided about, and goes on to the upstream as it came.

use super::support::h2::H2;
use super::support::upstream::{Serving, Upstream};
use super::support::{LIMIT, Proxy, Setup, eventually};
use hyper::Request;
use std::time::Duration;

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// A route whose key `k` is the JSON value at `/account`, with more lines of its own.
fn by_account(upstream: &Serving, lines: &str) -> Setup {
    Setup {
        bounds: "inspect_bytes = \"1KB\"\nbody_bytes = \"1MB\"",
        ..Setup::route(
            upstream.address(),
            &format!("[[routes.keys]]\nname = \"k\"\nfrom = {{ json = \"/account\" }}\n{lines}"),
        )
    }
}

/// The status and the code of the answer to a POST by HTTP/1.1.
fn post(proxy: &Proxy, fields: &str, body: &str) -> (u16, String) {
    let mut client = proxy.client();
    let length = body.len();
    client.send(&format!(
        "POST /x HTTP/1.1\r\nhost: a\r\n{fields}content-length: {length}\r\n\r\n{body}"
    ));
    let answer = client.answer();
    (answer.status(), if answer.status() == 200 { String::new() } else { answer.code() })
}

fn post_as(proxy: &Proxy, kind: &str, body: &str) -> (u16, String) {
    post(proxy, &format!("content-type: {kind}\r\n"), body)
}

/// A POST by HTTP/2, in these pieces, without a length.
fn post_h2(proxy: &Proxy, kind: &str, pieces: &[&str]) -> u16 {
    let client = H2::connect(proxy.data());
    let request = Request::post("http://a/x").header("content-type", kind);
    let mut stream = client.start(request.body(()).unwrap(), true);
    for piece in pieces {
        stream.feed(piece.as_bytes());
    }
    stream.end();
    stream.answer().0
}

fn refused(status: u16) -> (u16, String) {
    (status, "bad-key".to_owned())
}

/// Goal: a client that is named in its body has one limit, by either version, in one piece or many, with a length or without; the upstream
/// gets each body as it came.
#[test]
fn a_body_names_its_client() {
    let upstream = Serving::ok();
    let proxy = by_account(&upstream, "limit = [{ window = \"4/10s\" }]").start_clocked();
    let body = r#"{ "lines": [1, {"account": 0}], "acc\u006funt": " a " }"#;
    assert_eq!(post_as(&proxy, JSON, body).0, 200);
    assert_eq!(post_h2(&proxy, JSON, &[body]), 200);
    assert_eq!(post_h2(&proxy, JSON, &[&body[..20], &body[20..43], &body[43..]]), 200);
    let mut client = proxy.client();
    client.send("POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n");
    for piece in [&body[..1], &body[1..50], &body[50..]] {
        client.send(&format!("{:x}\r\n{piece}\r\n", piece.len()));
        proxy.rest();
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    assert_eq!(post_as(&proxy, JSON, r#"{"account":"a"}"#).0, 429);
    assert_eq!(post_h2(&proxy, JSON, &[r#"{"account":"a"}"#]), 429);
    assert_eq!(post_as(&proxy, JSON, r#"{"account":"b"}"#).0, 200);
    let accounts = proxy.finish();
    assert_eq!((&accounts["forwarded"], &accounts["throttled"]), (&5.into(), &2.into()));
    let heard = upstream.heard();
    assert!(heard[..4].iter().all(|request| request.text() == body), "{heard:?}");
    assert_eq!(heard[0].head.field("content-length"), Some(body.len().to_string().as_str()));
    assert_eq!(heard[3].head.field("transfer-encoding"), Some("chunked"));
}

/// Goal: a body that is no plain JSON of its bound, or names two clients, is refused with the reason in the status, and never sent.
#[test]
fn a_body_that_cannot_name_its_client_is_refused() {
    let upstream = Serving::ok();
    let proxy = by_account(&upstream, "").start_clocked();
    for body in [
        r#"{"account":"a","account":"b"}"#,
        r#"{"account":"a","\u0061ccount":"a"}"#,
        r#"{"Account":"a"}"#,
        r#"{"account":"a"#,
        r#"{"account":"a"}}"#,
        r#"{"account":1.0}"#,
        r#"{"account":{}}"#,
        "account=a",
        "{}",
        "",
    ] {
        assert_eq!(post_as(&proxy, JSON, body), refused(400), "{body}");
        assert_eq!(post_h2(&proxy, JSON, &[body]), 400, "{body}");
    }
    let good = r#"{"account":"a"}"#;
    assert_eq!(post(&proxy, "", good), refused(415));
    assert_eq!(post_as(&proxy, "text/plain", good), refused(415));
    assert_eq!(
        post(&proxy, "content-type: application/json\r\ncontent-encoding: gzip\r\n", good),
        refused(415)
    );
    let long = format!("{{\"account\":\"a\",\"x\":\"{}\"}}", "x".repeat(1000));
    assert_eq!(post_as(&proxy, JSON, &long), refused(413));
    assert_eq!(post_h2(&proxy, JSON, &[&long[..600], &long[600..]]), 413);
    let fits = format!("{{\"account\":\"a\",\"x\":\"{}\"}}", "x".repeat(978));
    assert_eq!(fits.len(), 1000);
    assert_eq!(post_as(&proxy, JSON, &fits).0, 200, "the bound itself");
    proxy.finish();
    assert_eq!(upstream.heard().len(), 1);
}

/// Goal: where the configuration says so, what cannot be read goes on without its key, whole and counted; what names two clients does not.
#[test]
fn an_unreadable_body_can_be_let_through() {
    let upstream = Serving::ok();
    let lines = "missing = \"share\"\nunreadable = \"missing\"\nlimit = [{ window = \"4/10s\" }]";
    let proxy = by_account(&upstream, lines).start_clocked();
    let long = format!("{{\"account\":\"a\",\"x\":\"{}\"}}", "x".repeat(200_000));
    assert_eq!(post_as(&proxy, JSON, &long).0, 200, "its length is told");
    assert_eq!(
        post_h2(&proxy, JSON, &[&long[..900], &long[900..70_000], &long[70_000..]]),
        200,
        "it is not"
    );
    assert_eq!(post_as(&proxy, "text/plain", "account=a").0, 200);
    assert_eq!(post_as(&proxy, JSON, "{").0, 200);
    assert_eq!(post_as(&proxy, JSON, "[").0, 429, "they share one cell");
    assert_eq!(post_as(&proxy, JSON, r#"{"account":"a"}"#).0, 200);
    assert_eq!(post_as(&proxy, JSON, r#"{"account":1,"account":2}"#), refused(400));
    assert_eq!(proxy.metric("breaker_unread_keys_total"), 5.0);
    proxy.finish();
    let heard = upstream.heard();
    assert!(heard[0].text() == long && heard[1].text() == long, "streamed on untouched");
}

/// Goal: a kill of a client stops it whatever its body looks like, also one whose body was still arriving.
#[test]
fn a_kill_stops_the_client_in_the_body() {
    let upstream = Serving::ok();
    let proxy = by_account(&upstream, "").start_clocked();
    let mut early = proxy.client();
    let body = r#"{"account":"a b"}"#;
    early.send("POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n{\"acco");
    let client = H2::connect(proxy.data());
    let request = Request::post("http://a/x").header("content-type", JSON);
    let mut stream = client.start(request.body(()).unwrap(), true);
    stream.feed(b"{\"account\"");
    proxy.rest();
    proxy.halt("/default/api/k=a%20b");
    early.send("unt\":\"a b\"}");
    assert_eq!(early.answer().status(), 503);
    stream.feed(b":\"\\u0061 b\"}");
    stream.end();
    assert_eq!(stream.answer().0, 503);
    assert_eq!(post_as(&proxy, JSON, body), (503, "killed".to_owned()));
    assert_eq!(post_as(&proxy, JSON, r#"{"account":"b"}"#).0, 200);
    proxy.finish();
    assert_eq!(upstream.heard().len(), 1);
}

/// Goal: a form's field and a product in a document weigh and name as they would in a query.
#[test]
fn forms_and_products() {
    let upstream = Serving::ok();
    let lines = "weight = { json = \"/quantity\", times = \"/price\", scale = 2 }\nlimit = [{ window = \"1000/10s\", by = \"weight\" }]";
    let proxy = Setup::route(upstream.address(), lines).start_clocked();
    for (body, status) in [
        (r#"{"quantity":3,"price":"2.335"}"#, 200),
        (r#"{"quantity":3,"price":"1"}"#, 429),
        (r#"{"quantity":1,"price":2.99}"#, 200),
        (r#"{"quantity":-1,"price":1}"#, 400),
        (r#"{"quantity":1}"#, 400),
        (r#"{"quantity":1e18,"price":1e18}"#, 400),
        (r#"{"quantity":0.01,"price":0.0001}"#, 429),
    ] {
        assert_eq!(post_as(&proxy, JSON, body).0, status, "{body}");
    }
    proxy.finish();

    let lines = "[[routes.keys]]\nname = \"k\"\nfrom = { form = \"acct\" }\nlimit = [{ window = \"2/10s\" }]";
    let proxy = Setup::route(upstream.address(), lines).start_clocked();
    for (body, status) in [
        ("acct=a+b&x=1", 200),
        ("x=1&%61cct=a%20b", 200),
        ("acct=a b", 429),
        ("acct=a&acct=b", 400),
        ("acct=c", 200),
    ] {
        assert_eq!(post_as(&proxy, FORM, body).0, status, "{body}");
    }
    proxy.finish();
}

/// Goal: a body that does not come is given up in time, one that breaks off is refused, and neither is ever sent nor left uncounted.
#[test]
fn a_body_that_does_not_come_is_given_up() {
    let upstream = Upstream::start();
    let setup = Setup {
        deadlines: "inspect = \"50ms\"",
        ..Setup::route(
            upstream.address(),
            "[[routes.keys]]\nname = \"k\"\nfrom = { json = \"/account\" }\nmissing = \"share\"",
        )
    };
    let proxy = setup.start();
    let mut client = proxy.client();
    client.send("POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n{\"acco");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code()), (408, "request-timeout".to_owned()));
    client.assert_ends();
    let h2 = H2::connect(proxy.data());
    let request = Request::post("http://a/x").header("content-type", JSON).body(()).unwrap();
    let stream = h2.start(request, true);
    stream.feed(b"{");
    assert_eq!(stream.head().0, 408);
    assert_eq!(proxy.metric("breaker_slow_bodies_total"), 2.0);

    let mut broken = proxy.client();
    broken.send("POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n");
    let answer = broken.answer();
    assert_eq!((answer.status(), answer.code()), (400, "body-broken".to_owned()));
    let mut gone = proxy.client();
    gone.send("POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n{\"acco");
    proxy.rest();
    drop(gone);
    drop(stream);
    drop(h2);
    upstream.assert_nobody();
    let accounts = proxy.finish();
    assert_eq!(accounts["forwarded"], 0);
}

/// Goal: who waits for leave to send its body gets it, and one whose body would be too long gets its answer instead.
#[test]
fn leave_is_given_where_the_body_is_wanted() {
    let upstream = Serving::ok();
    let proxy = by_account(&upstream, "").start_clocked();
    let head =
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n";
    let mut client = proxy.client();
    client.send(&format!("{head}content-length: 15\r\n\r\n"));
    assert_eq!(client.head().word(1), "100");
    client.send(r#"{"account":"a"}"#);
    assert_eq!(client.answer().status(), 200);
    let mut client = proxy.client();
    client.send(&format!("{head}content-length: 1001\r\n\r\n"));
    assert_eq!(client.answer().status(), 413);
    proxy.finish();
    assert_eq!(upstream.heard().len(), 1);
}

/// Goal: only so many bodies are looked into at once, so that their memory has an end; a place is free again once its body is gone.
#[test]
fn the_places_for_bodies_are_bounded() {
    let upstream = Serving::ok();
    let setup = Setup { bounds: "inspecting = 2", ..by_account(&upstream, "") };
    let proxy = setup.start_clocked();
    let head = "POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n";
    let mut held: Vec<_> = (0..2).map(|_| proxy.client()).collect();
    for client in &mut held {
        client.send(head);
    }
    proxy.rest();
    assert_eq!(post_as(&proxy, JSON, r#"{"account":"a"}"#), (503, "inspect-busy".to_owned()));
    assert_eq!(post_as(&proxy, JSON, ""), refused(400), "what has no body needs no place");
    held[0].send(r#"{"account":"a"}"#);
    assert_eq!(held[0].answer().status(), 200);
    assert_eq!(post_as(&proxy, JSON, r#"{"account":"a"}"#).0, 200);
    drop(held.pop());
    held[0].send(head);
    eventually("the place of one that left", || {
        (post_as(&proxy, JSON, r#"{"account":"a"}"#).0 == 200).then_some(())
    });
    held[0].send(r#"{"account":"a"}"#);
    assert_eq!(held[0].answer().status(), 200);
    let accounts = proxy.finish();
    assert!(accounts["failed"].as_u64().unwrap() >= 1);
}

/// Goal: requests behind one that is looked into are served in their order, whatever became of it.
#[test]
fn the_connection_serves_on() {
    let upstream = Serving::ok();
    let proxy = by_account(&upstream, "").start_clocked();
    let one = |body: &str| {
        format!(
            "POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut client = proxy.client();
    let bodies = [r#"{"account":"a"}"#, "{}", r#"{"account":"b"}"#, "[", r#"{"account":"c"}"#];
    client.send(&bodies.map(one).concat());
    let statuses: Vec<u16> = bodies.iter().map(|_| client.answer().status()).collect();
    assert_eq!(statuses, [200, 400, 200, 400, 200]);
    client.assert_silent(Duration::from_millis(20).min(LIMIT));
    proxy.finish();
    let texts: Vec<String> = upstream.heard().iter().map(|request| request.text()).collect();
    assert_eq!(texts, [bodies[0], bodies[2], bodies[4]]);
}

/// Goal: an HTTP/2 stream that is taken back while its body is looked into leaves nothing behind.
#[test]
fn a_stream_that_is_taken_back_leaves_nothing() {
    let upstream = Serving::ok();
    let proxy = by_account(&upstream, "").start_clocked();
    let client = H2::connect(proxy.data());
    let request = Request::post("http://a/x").header("content-type", JSON).body(()).unwrap();
    let stream = client.start(request, true);
    stream.feed(b"{\"account\":");
    proxy.rest();
    drop(client);
    drop(stream);
    assert_eq!(post_as(&proxy, JSON, r#"{"account":"a"}"#).0, 200);
    let accounts = proxy.finish();
    assert_eq!((&accounts["forwarded"], &accounts["in_flight"]), (&1.into(), &0.into()));
    assert_eq!(upstream.heard().len(), 1);
}
