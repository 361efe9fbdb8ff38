//! Requests that must not pass: what is answered, what becomes of the connection, and that the upstream never hears of them.

use super::support::h2::H2;
use super::support::upstream::{Serving, Upstream};
use super::support::wire::{Answer, End, Wire};
use super::support::{Dice, LIMIT, Proxy, Setup, admin_request, eventually};
use hyper::Request;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// After this call has been served, whatever the upstream was to hear of before it has been heard.
fn assert_heard_only_the_last(proxy: Proxy, upstream: &Serving) -> serde_json::Value {
    let mut client = proxy.client();
    client.send("GET /last HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status(), 200, "it serves on");
    let accounts = proxy.finish();
    assert_eq!(upstream.targets(), ["/last"]);
    assert_eq!(accounts["forwarded"], 1);
    accounts
}

/// Goal: a request of which two readers could make two things is refused, with a code that says why, and counted.
#[test]
fn requests_with_two_meanings_are_refused() {
    let cases = [
        ("no Host", "GET / HTTP/1.1\r\n\r\n", 400, "bad-host"),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad-host"),
        ("the same Host twice", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "bad-host"),
        ("an empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "bad-host"),
        ("a Host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "bad-host"),
        ("a Host with a user", "GET / HTTP/1.1\r\nHost: x@a\r\n\r\n", 400, "bad-host"),
        ("two Hosts in one", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "bad-host"),
        ("a Host with a blank", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad-host"),
        ("no such port", "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", 400, "bad-host"),
        ("a port of letters", "GET / HTTP/1.1\r\nHost: a:http\r\n\r\n", 400, "bad-host"),
        ("two ports", "GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", 400, "bad-host"),
        (
            "two Hosts beside an absolute target",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            400,
            "bad-host",
        ),
        ("a user in the target", "GET http://x@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-host"),
        ("a dot segment", "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        ("an encoded dot segment", "GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        ("a dressed dot segment", "GET /a/..;x/b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        ("an encoded slash", "GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        ("an encoded backslash", "GET /a%5Cb HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        ("an encoded zero", "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        ("an empty segment", "GET //a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        (
            "an encoding of an encoding",
            "GET /%252e%252e HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "bad-path",
        ),
        ("half an encoding", "GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        ("no path", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-path"),
        ("CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501, "bad-method"),
        ("TRACE", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 501, "bad-method"),
    ];
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut wrong = Vec::new();
    for (name, bytes, status, code) in cases {
        let mut client = proxy.client();
        client.send(bytes);
        let answer = client.answer();
        let problem = answer.head.field("content-type") == Some("application/problem+json");
        if answer.status() != status || !problem || answer.code() != code {
            wrong.push((name, answer));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let accounts = assert_heard_only_the_last(proxy, &upstream);
    let bad = u64::try_from(cases.len()).unwrap();
    assert_eq!(accounts["invalid"].as_u64(), Some(bad), "{accounts}");
    assert_eq!(accounts["offered"].as_u64(), Some(bad + 1), "{accounts}");
}

/// Goal: where the framing is in doubt nothing that follows is believed: one refusal, then the end of the connection.
#[test]
fn doubtful_framing_ends_the_connection() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let cases = [
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        ),
        ("two lengths in one", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 5\r\n\r\n"),
        ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\n"),
        ("a negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\n"),
        (
            "a length beyond numbers",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        ),
        (
            "an unknown encoding",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunks that are not last",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunks in old HTTP",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("a blank before the colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\n"),
        ("a folded field", "POST / HTTP/1.1\r\nHost: a\r\nX: 1\r\n Content-Length: 4\r\n\r\n"),
        ("a control in a field", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n"),
        ("a bare return in a field", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n"),
        ("no version", "GET /\r\nHost: a\r\n\r\n"),
        ("an unknown version", "GET / HTTP/3.7\r\nHost: a\r\n\r\n"),
    ];
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut wrong = Vec::new();
    for (name, bytes) in cases {
        let mut client = proxy.client();
        client.send(&format!("{bytes}{smuggled}"));
        let answer = client.try_answer();
        let rest = client.rest();
        if !rest.is_empty() || answer.as_ref().map(Answer::status) != Some(400) {
            wrong.push((name, answer, String::from_utf8(rest)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let accounts = assert_heard_only_the_last(proxy, &upstream);
    assert_eq!(accounts["invalid"].as_u64(), u64::try_from(cases.len()).ok(), "{accounts}");
}

/// Goal: a length beside chunks counts for nothing (RFC 9112, 6.1): the chunks alone frame the body, the upstream gets no
/// length, and the connection ends, so that what follows is nobody's request.
#[test]
fn a_length_beside_chunks_counts_for_nothing() {
    let both = ["Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n"];
    for fields in [both.concat(), [both[1], both[0]].concat()] {
        let upstream = Serving::ok();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send(&format!(
            "POST /both HTTP/1.1\r\nHost: a\r\n{fields}\r\n5\r\nhello\r\n0\r\n\r\n\
             GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        ));
        client.answer();
        client.assert_ends();
        proxy.finish();
        let heard = upstream.heard();
        assert_eq!(upstream.targets(), ["/both"]);
        assert_eq!(heard[0].body, b"hello");
        assert_eq!(heard[0].head.all("content-length"), [""; 0]);
    }
}

/// Goal: chunks that are none break the request off: 400, the end of the connection, and the upstream never gets a
/// whole request; the call is counted once.
#[test]
fn bad_chunks_break_the_request_off() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for chunks in [
        "zz\r\nabcd\r\n0\r\n\r\n",
        "4\r\nabcdXX0\r\n\r\n",
        "-4\r\nabcd\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nabcd\r\n0\r\n\r\n",
        "4\nabcd\n0\n\n",
    ] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
        let mut exchange = upstream.accept();
        let head = exchange.head();
        assert_eq!(exchange.chunk(), Ok(Some(b"ok".to_vec())));
        client.send(&format!("{chunks}{smuggled}"));
        let (_, end) = exchange.body(&head, false);
        assert_eq!(end, End::Broken, "{chunks:?}");
        let answer = client.answer();
        assert_eq!(answer.status(), 400, "{chunks:?}");
        client.assert_ends();
        upstream.assert_nobody();
        let accounts = proxy.finish();
        assert_eq!(accounts["offered"], 1, "{chunks:?}: {accounts}");
    }
}

/// Goal: a body over the bound is refused before it is sent anywhere, where its length is told.
#[test]
fn a_body_that_is_told_to_be_too_large_is_refused_at_once() {
    let upstream = Serving::ok();
    let proxy =
        Setup { bounds: "body_bytes = \"1KiB\"", ..Setup::route(upstream.address(), "") }.start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (413, "body-too-large"));
    // At the bound it passes.
    let mut client = proxy.client();
    client.send("POST /full HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n");
    client.send(&"x".repeat(1024));
    assert_eq!(client.answer().status(), 200);
    let accounts = proxy.finish();
    assert_eq!(upstream.targets(), ["/full"]);
    assert_eq!((&accounts["invalid"], &accounts["forwarded"]), (&1.into(), &1.into()));
}

/// Goal: a body that grows over the bound chunk by chunk is broken off: 413, and the upstream never gets it whole.
#[test]
fn a_body_that_grows_too_large_is_broken_off() {
    let upstream = Upstream::start();
    let proxy =
        Setup { bounds: "body_bytes = \"1KiB\"", ..Setup::route(upstream.address(), "") }.start();
    let mut client = proxy.client();
    let half = format!("200\r\n{}\r\n", "x".repeat(0x200));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(&half);
    client.send(&half);
    let mut exchange = upstream.accept();
    let head = exchange.head();
    assert_eq!(exchange.chunk().unwrap().unwrap().len(), 0x200);
    client.send("1\r\nx\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (413, "body-too-large"));
    let (body, end) = exchange.body(&head, false);
    assert!(body.len() <= 0x200 && end == End::Broken, "{} bytes, {end:?}", body.len());
    drop(client);
    assert_eq!(proxy.finish()["upstream_errors"], 0, "no fault of the upstream");
}

/// Goal: the body of a refused request is no request: whatever refuses it, and however its bytes come, nothing in it is served.
#[test]
fn the_body_of_a_refused_request_is_no_request() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".repeat(20);
    let upstream = Serving::ok();
    let lines = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\nmissing = \"skip\"\n\
                 [[routes.keys]]\nname = \"peer\"\nfrom = \"peer\"";
    let proxy =
        Setup { bounds: "body_bytes = \"1MiB\"", ..Setup::route(upstream.address(), lines) }
            .start();
    proxy.halt("/default/api/client=mad");
    let refusals = [
        ("POST / HTTP/1.1\r\nHost: a\r\nx-client: mad\r\n", 503),
        ("POST / HTTP/1.1\r\nHost: a\r\nx-client: a\r\nx-client: b\r\n", 400),
        ("POST /../ HTTP/1.1\r\nHost: a\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n", 501),
    ];
    for (head, status) in refusals {
        for (framing, body) in [
            (format!("Content-Length: {}", smuggled.len()), smuggled.clone()),
            (
                "Transfer-Encoding: chunked".to_owned(),
                format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()),
            ),
        ] {
            for at_once in [true, false] {
                let mut client = proxy.client();
                let head = format!("{head}{framing}\r\n\r\n");
                if at_once {
                    client.send(&format!("{head}{body}"));
                    assert_eq!(client.answer().status(), status, "{head}");
                } else {
                    client.send(&head);
                    assert_eq!(client.answer().status(), status, "{head}");
                    client.send(&body);
                }
                // What comes now is an answer to this, or nothing.
                client.send("GET // HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                let next = client.try_answer().map(|answer| answer.status());
                assert!(next.is_none_or(|status| status == 400), "{head}: {next:?}");
                client.assert_ends();
            }
        }
    }
    assert_heard_only_the_last(proxy, &upstream);
}

/// Goal: a refused HEAD has no body, so that the next answer on the connection is read right.
#[test]
fn a_refused_head_has_no_body() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let kill = proxy.halt("/");
    let mut client = proxy.client();
    for _ in 0..3 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = client.head();
        assert_eq!(head.word(1), "503");
        let answer = client.answer();
        assert_eq!(answer.json()["id"], kill["id"], "the second answer begins where it should");
    }
    proxy.finish();
}

/// Goal: targets and heads have an end: 431 (414 for a target that no bound of heads stops), and the end of the connection;
/// what just fits passes.
#[test]
fn long_targets_and_heads_are_refused() {
    let upstream = Serving::ok();
    let setup = Setup {
        bounds: "head_bytes = \"8KiB\"\nfields = 20",
        ..Setup::route(upstream.address(), "")
    };
    let proxy = setup.start();
    let long = "x".repeat(9 * 1024);
    let fields: String = (0..21).map(|number| format!("x-{number}: 1\r\n")).collect();
    let cases = [
        ("a long target", format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 431),
        ("a long field", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 431),
        ("many fields", format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"), 431),
        ("a long name", format!("GET / HTTP/1.1\r\nHost: a\r\n{long}: 1\r\n\r\n"), 431),
        ("a head without end", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}{long}"), 431),
    ];
    let mut wrong = Vec::new();
    for (name, bytes, status) in &cases {
        let mut client = proxy.client();
        client.send(bytes);
        let answer = client.try_answer();
        if !client.rest().is_empty() || answer.as_ref().map(Answer::status) != Some(*status) {
            wrong.push((name, answer));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut client = proxy.client();
    let fits = "x".repeat(7 * 1024);
    client.send(&format!("GET /fits HTTP/1.1\r\nHost: a\r\nX: {fits}\r\n\r\n"));
    assert_eq!(client.answer().status(), 200);
    let accounts = proxy.finish();
    assert_eq!(upstream.targets(), ["/fits"]);
    assert_eq!(accounts["invalid"], 5);
    let wide = Setup { bounds: "head_bytes = \"256KiB\"", ..setup }.start();
    let mut client = wide.client();
    client.send(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000)));
    assert_eq!(client.answer().status(), 414);
    client.assert_ends();
    eventually("its account", || (wide.account("invalid") == 1).then_some(()));
    wide.finish();
    assert_eq!(upstream.heard().len(), 1);
}

/// Goal: a head that does not arrive in time is answered 408 and the connection ends; so does one that never began,
/// without a word.
#[test]
fn a_slow_head_is_ended() {
    let upstream = Serving::ok();
    let proxy =
        Setup { deadlines: "head = \"200ms\"", ..Setup::route(upstream.address(), "") }.start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost:");
    assert_eq!(client.answer().status(), 408);
    client.assert_ends();
    for start in ["", "P", "PRI * HTTP/2.0\r\n"] {
        let mut silent = proxy.client();
        silent.send(start);
        let rest = silent.rest();
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "), "{start:?}: {rest:?}");
    }
    assert_eq!(proxy.metric("breaker_slow_heads_total"), 4.0);
    assert_heard_only_the_last(proxy, &upstream);
}

/// Goal: the deadline of a head holds for all of it: a byte just before it wins no second one.
/// Method: one byte, which is also how HTTP/2 begins, then nothing; ended within a deadline and a half.
#[test]
fn a_first_byte_wins_no_second_deadline() {
    let upstream = Serving::ok();
    let proxy =
        Setup { deadlines: "head = \"2s\"", ..Setup::route(upstream.address(), "") }.start();
    let mut silent = proxy.client();
    let mut slow = proxy.client();
    silent.assert_silent(Duration::from_millis(1500));
    slow.send("GET / HT");
    let begun = Instant::now();
    silent.assert_ends();
    let rest = slow.rest();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "));
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    proxy.finish();
}

/// Goal: a connection that idles after a served POST is ended without a word: nobody asked anything, and nothing was refused.
#[test]
fn an_idle_connection_is_ended_in_silence() {
    let upstream = Serving::ok();
    let proxy =
        Setup { deadlines: "idle = \"200ms\"", ..Setup::route(upstream.address(), "") }.start();
    for body in ["Content-Length: 4\r\n\r\n", "Content-Length: 0\r\n\r\n"] {
        let mut client = proxy.client();
        client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\n{body}"));
        if body.contains('4') {
            // In a segment of its own, so that it is read after the head.
            eventually("the call in flight", || (proxy.account("offered") == 1).then_some(()));
            client.send("body");
        }
        assert_eq!(client.answer().status(), 200);
        let rest = client.rest();
        assert!(rest.is_empty(), "unasked: {:?}", String::from_utf8_lossy(&rest));
    }
    let accounts = proxy.finish();
    assert_eq!((&accounts["offered"], &accounts["invalid"]), (&2.into(), &0.into()), "{accounts}");
}

/// Goal: a body that stops arriving is answered 408, and the upstream gets it broken, not whole.
#[test]
fn a_slow_body_is_ended() {
    let upstream = Upstream::start();
    let proxy =
        Setup { deadlines: "body_idle = \"200ms\"", ..Setup::route(upstream.address(), "") }
            .start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    let mut exchange = upstream.accept();
    let head = exchange.head();
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (408, "request-timeout"));
    assert_eq!(exchange.body(&head, false), (b"half".to_vec(), End::Broken));
    client.assert_ends();
    assert_eq!(proxy.finish()["upstream_errors"], 0, "no fault of the upstream");
}

/// Goal: what no route takes is answered 404 and counted as such; hosts and methods are part of a route.
#[test]
fn what_no_route_takes_is_404() {
    let upstream = Serving::ok();
    let address = upstream.address();
    let proxy = Setup::new(format!(
        "[[routes]]\nname = \"one\"\nupstream = \"http://{address}\"\n\
         match = {{ host = \"shop.example\", method = \"GET\", path = \"/a/{{id}}\" }}\n"
    ))
    .start();
    for (host, target) in [
        ("shop.example", "GET /b/1"),
        ("shop.example", "POST /a/1"),
        ("else.example", "GET /a/1"),
        ("shop.example", "GET /a/1/2"),
        ("shop.example", "GET /a/"),
    ] {
        let mut client = proxy.client();
        client.send(&format!("{target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let answer = client.answer();
        assert_eq!((answer.status(), answer.code().as_str()), (404, "unrouted"), "{host} {target}");
    }
    for (host, target) in [
        ("SHOP.example:8080", "GET /a/1"),
        ("shop.example.", "GET /a/1"),
        ("else.example", "GET http://shop.example/a/1"),
    ] {
        let mut client = proxy.client();
        client.send(&format!("{target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.answer().status(), 200, "{host} {target}");
    }
    let heard = upstream.heard();
    assert_eq!(heard[2].head.field("host"), Some("shop.example"), "the target's host goes up");
    assert_eq!(heard[2].head.word(1), "/a/1");
    let accounts = proxy.finish();
    assert_eq!((&accounts["unrouted"], &accounts["forwarded"]), (&5.into(), &3.into()));
}

/// Goal: a call without its key, with two of them or with one without end is refused: each would dodge its limit.
#[test]
fn bad_keys_are_refused() {
    let upstream = Serving::ok();
    let keys = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n";
    let proxy = Setup::route(upstream.address(), keys).start();
    let long = "k".repeat(257);
    let cases = [
        ("missing", String::new()),
        ("empty", "x-client: \r\n".to_owned()),
        ("doubled", "x-client: a\r\nX-Client: b\r\n".to_owned()),
        ("doubled alike", "x-client: a\r\nx-client: a\r\n".to_owned()),
        ("too long", format!("x-client: {long}\r\n")),
    ];
    for (name, fields) in &cases {
        let answer = proxy.get(fields);
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad-key"), "{name}");
    }
    assert_eq!(proxy.get(&format!("x-client: {}\r\n", &long[..256])).status(), 200, "just fits");
    let accounts = proxy.finish();
    assert_eq!((&accounts["invalid"], &accounts["forwarded"]), (&5.into(), &1.into()));
    assert_eq!(upstream.heard().len(), 1);
}

/// Goal: HTTP/2 is no way around: the same requests are refused there, and the connection serves on.
#[test]
fn http2_refuses_the_same() {
    let upstream = Serving::ok();
    let keys = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n";
    let proxy =
        Setup { bounds: "body_bytes = \"8B\"", ..Setup::route(upstream.address(), keys) }.start();
    let client = H2::connect(proxy.data());
    let request = |uri: &str| Request::get(uri).header("x-client", "c");
    let refused = [
        (request("http://a/a/../b").body(()).unwrap(), 400),
        (request("http://a//b").body(()).unwrap(), 400),
        (request("http://a/%2f").body(()).unwrap(), 400),
        (Request::get("http://a/").body(()).unwrap(), 400),
        (request("http://a/").header("x-client", "d").body(()).unwrap(), 400),
        (request("http://a/").method("TRACE").body(()).unwrap(), 501),
        (request("http://a/").method("POST").header("content-length", "9").body(()).unwrap(), 413),
    ];
    for (request, status) in refused {
        let what = format!("{request:?}");
        let streams_up = status == 413;
        assert_eq!(client.start(request, streams_up).answer().0, status, "{what}");
    }
    let mut grows = client.start(request("http://a/").method("POST").body(()).unwrap(), true);
    grows.feed(b"nine char");
    grows.end();
    assert_eq!(grows.answer().0, 413);
    let good = client.start(request("http://a/good").body(()).unwrap(), false);
    assert_eq!(good.answer().0, 200);
    client.assert_up();
    drop(client);
    proxy.finish();
    let whole = upstream.heard().into_iter().filter(|request| request.end == End::Whole);
    let targets: Vec<_> = whole.map(|request| request.head.word(1).to_owned()).collect();
    assert_eq!(targets, ["/good"]);
}

/// Goal: connections have an end: one too many is closed at once and counted, and its place is free again after.
#[test]
fn one_connection_too_many_is_closed() {
    let upstream = Serving::ok();
    let proxy = Setup { bounds: "connections = 2", ..Setup::route(upstream.address(), "") }.start();
    let ask = |client: &mut Wire| {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_head().map(|head| client.body(&head, false))
    };
    let (mut first, mut second) = (proxy.client(), proxy.client());
    assert!(ask(&mut first).is_some() && ask(&mut second).is_some());
    let mut third = proxy.client();
    assert!(ask(&mut third).is_none(), "beyond the bound");
    assert_eq!(proxy.metric("breaker_connections_refused_total"), 1.0);
    assert!(ask(&mut first).is_some(), "those that are in are served on");
    drop(first);
    eventually("a free place", || ask(&mut proxy.client()));
    drop(second);
    proxy.finish();
}

/// What a seed makes of a good start: noise, a good request with flipped bytes, or noise after a good beginning.
fn garbage(dice: &mut Dice, good: &str) -> Vec<u8> {
    match dice.roll(4) {
        0 => {
            let count = 1 + dice.roll(2000);
            dice.bytes(count)
        }
        1 => {
            let mut bytes = good.as_bytes().to_vec();
            for _ in 0..=dice.roll(8) {
                let at = dice.roll(bytes.len());
                bytes[at] = dice.bytes(1)[0];
            }
            bytes
        }
        2 => {
            let count = dice.roll(1000);
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", dice.bytes(count).as_slice()].concat()
        }
        _ => {
            let (cut, count) = (dice.roll(good.len()), dice.roll(1000));
            [&good.as_bytes()[..cut], dice.bytes(count).as_slice()].concat()
        }
    }
}

fn throw(address: SocketAddr, seed: u64, good: &str) {
    let begun = Instant::now();
    let mut dice = Dice::new(seed);
    for number in 0..200 {
        let mut wire = Wire::connect(address);
        wire.send_bytes(&garbage(&mut dice, good));
        wire.end_writing();
        wire.rest();
        assert!(begun.elapsed() < LIMIT, "connection {number} of seed {seed}");
    }
}

/// Goal: noise on the data plane harms nobody: no panic, no lost place, accounts that balance, and it serves on.
#[test]
fn noise_on_the_data_plane_harms_nobody() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let good = "POST /a/b?c=d HTTP/1.1\r\nHost: a\r\nX-Client: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
                4\r\nbody\r\n0\r\n\r\n";
    throw(proxy.data(), 0x0b5e55ed, good);
    assert_eq!(proxy.get("").status(), 200);
    eventually("all places free", || (proxy.metric("breaker_connections") == 0.0).then_some(()));
    proxy.finish();
}

/// Goal: noise on the admin plane changes nothing: nothing is killed or lifted, nothing panics, and it answers on.
#[test]
fn noise_on_the_admin_plane_changes_nothing() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let good = admin_request("POST", "/v1/nothing/at/all", r#"{"reason":"noise"}"#);
    throw(proxy.admin_addr(), 0x0dd5eed, &good);
    assert_eq!(proxy.state_of("/"), "armed");
    assert!(proxy.status()["kills"].as_array().unwrap().is_empty());
    proxy.finish();
}

/// Goal: what passes a halt because it is a cancel is a cancel: a field that makes another method of it is refused there, and
/// only there.
#[test]
fn a_method_override_passed_a_halt() {
    let upstream = Serving::ok();
    let address = upstream.address();
    let route = |name: &str, method: &str, class: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\nclass = \"{class}\"\nupstream = \"http://{address}\"\n\
             match = {{ method = \"{method}\", path = \"/orders/{{id}}\" }}\n"
        )
    };
    let rules = route("cancel", "DELETE", "reducing") + &route("order", "POST", "normal");
    let proxy = Setup::new(rules).start();
    proxy.halt("/");
    for field in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"] {
        let mut client = proxy.client();
        client.send(&format!("DELETE /orders/7 HTTP/1.1\r\nHost: a\r\n{field}: POST\r\n\r\n"));
        let answer = client.answer();
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad-method"), "{field}");
    }
    let mut client = proxy.client();
    client.send("DELETE /orders/7 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    proxy.lift("/");
    client.send(
        "POST /orders/7 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX-HTTP-Method: PUT\r\n\r\n",
    );
    assert_eq!(client.answer().status(), 200);
    proxy.finish();
    assert_eq!(upstream.targets(), ["/orders/7", "/orders/7"]);
}
