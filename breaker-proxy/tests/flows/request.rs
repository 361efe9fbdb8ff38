//! What a request and its answer look like after they went through; nothing here is refused.

use super::support::h2::{Event, H2, h2_get};
use super::support::upstream::{Serving, Upstream};
use super::support::wire::{End, Head, Wire};
use super::support::{Setup, eventually};
use hyper::Request;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

const LARGE: usize = 8 * 1024 * 1024;

/// Bytes of which no two stretches are alike, so that a lost or doubled piece shows.
fn large() -> Vec<u8> {
    (0..LARGE / 4).flat_map(|number| u32::try_from(number).unwrap().to_le_bytes()).collect()
}

/// Goal: method, target, fields and body arrive as the client said them, and the answer as the upstream said it.
#[test]
fn a_call_goes_through_unchanged() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send(
        "PATCH /a/b%20c;v=1?q=%2F..&r=/ HTTP/1.1\r\nHost: shop.example:81\r\nX-One: 1\r\nx-two: a, b\r\n\
         X-Two: c\r\nAuthorization: Basic eA==\r\nContent-Length: 4\r\n\r\n\x01b\r\n",
    );
    let mut exchange = upstream.accept();
    let request = exchange.request();
    assert_eq!(request.head.start, "PATCH /a/b%20c;v=1?q=%2F..&r=/ HTTP/1.1");
    assert_eq!(request.head.field("host"), Some("shop.example:81"));
    assert_eq!(request.head.field("x-one"), Some("1"));
    assert_eq!(request.head.all("x-two"), ["a, b", "c"]);
    assert_eq!(request.head.field("authorization"), Some("Basic eA=="));
    assert_eq!(request.head.field("content-length"), Some("4"));
    assert_eq!(request.body, b"\x01b\r\n");
    exchange.send(
        "HTTP/1.1 418 Short And Stout\r\nX-Answer: yes\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         Content-Length: 3\r\n\r\npot",
    );
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (418, "pot"));
    assert_eq!(answer.head.field("x-answer"), Some("yes"));
    assert_eq!(answer.head.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(answer.head.field("content-length"), Some("3"));
    let accounts = proxy.finish();
    assert_eq!((accounts["offered"].as_u64(), accounts["forwarded"].as_u64()), (Some(1), Some(1)));
}

/// Goal: what belongs to one connection stays on it, in both directions, with all that `Connection` names.
#[test]
fn hop_by_hop_fields_stay_behind() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine, upgrade\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip\r\nTrailer: x\r\nUpgrade: websocket\r\n\
         HTTP2-Settings: AAA\r\nX-Stays: 1\r\n\r\n",
    );
    let mut exchange = upstream.accept();
    let request = exchange.request();
    let hop = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "x-mine",
    ];
    for name in hop {
        assert!(request.head.all(name).is_empty(), "{name} went up: {:?}", request.head);
    }
    assert_eq!(request.head.field("x-stays"), Some("1"));
    exchange.send(
        "HTTP/1.1 200 OK\r\nConnection: X-Yours\r\nX-Yours: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
         Proxy-Connection: close\r\nX-Stays: 2\r\nContent-Length: 2\r\n\r\nok",
    );
    let answer = client.answer();
    for name in ["keep-alive", "upgrade", "proxy-connection", "x-yours"] {
        assert!(answer.head.all(name).is_empty(), "{name} came down: {:?}", answer.head);
    }
    assert_eq!(answer.head.field("x-stays"), Some("2"));
    proxy.finish();
}

/// Goal: credentials for a proxy end at it, as do what `Connection` may not take away: a client cannot strip fields
/// that others rely on.
#[test]
fn connection_takes_no_field_that_others_rely_on() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: host, content-length, x-forwarded-for, cookie\r\n\
         Cookie: c=1\r\nContent-Length: 2\r\n\r\nhi",
    );
    let request = upstream.accept().request();
    assert_eq!(request.head.field("host"), Some("a"));
    assert_eq!(request.head.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.head.field("cookie"), Some("c=1"));
    assert_eq!(request.body, b"hi");
}

/// Goal: whatever a client claims about where it comes from is replaced, for each way of telling the upstream.
#[test]
fn forwarding_fields_are_ours() {
    for (wire, x, forwarded) in [
        ("", true, false),
        ("forwarded = \"forwarded\"", false, true),
        ("forwarded = \"both\"", true, true),
        ("forwarded = \"none\"", false, false),
    ] {
        let upstream = Upstream::start();
        let proxy = Setup { wire, ..Setup::route(upstream.address(), "") }.start();
        let mut client = proxy.client();
        client.send(
            "GET / HTTP/1.1\r\nHost: real\r\nX-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 7.7.7.7\r\n\
             X-Forwarded-Host: fake\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 1\r\n\
             Forwarded: for=6.6.6.6\r\nX-Forwarded-Prefix: /fake\r\nX-Forwarded-Server: fake\r\n\
             X-Forwarded-Ssl: on\r\nX-Real-IP: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\n\
             x_forwarded_prefix: /fake\r\nX-Forwarding: no\r\n\r\n",
        );
        let mut exchange = upstream.accept();
        let head = exchange.request().head;
        let claims: Vec<_> = head
            .fields
            .iter()
            .filter(|(_, value)| ["6.6", "7.7", "fake"].iter().any(|claim| value.contains(claim)))
            .collect();
        assert!(claims.is_empty(), "{wire}: {claims:?}");
        assert_eq!(head.field("x-forwarded-ssl"), None, "{wire}");
        assert_eq!(head.field("x-forwarding"), Some("no"), "not of the kind");
        assert_eq!(head.field("x-forwarded-for"), x.then_some("127.0.0.1"), "{wire}");
        assert_eq!(head.field("x-forwarded-host"), x.then_some("real"), "{wire}");
        assert_eq!(head.field("x-forwarded-proto"), x.then_some("http"), "{wire}");
        assert_eq!(head.field("x-forwarded-port"), None, "{wire}");
        let told = forwarded.then_some("for=127.0.0.1;host=\"real\";proto=http");
        assert_eq!(head.field("forwarded"), told, "{wire}");
        exchange.reply("ok");
        client.answer();
        proxy.finish();
    }
}

/// Goal: large bodies of both framings go up and down byte for byte, and each keeps its kind of framing.
#[test]
fn large_bodies_pass_both_ways() {
    let body = large();
    for chunked in [false, true] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        let mut writer = client.writer();
        let up = body.clone();
        let sender = thread::spawn(move || {
            if chunked {
                writer.send("PUT /big HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                for piece in up.chunks(100_000) {
                    writer.send(&format!("{:x};ext=1\r\n", piece.len()));
                    writer.send_bytes(piece);
                    writer.send("\r\n");
                }
                writer.send("0\r\n\r\n");
            } else {
                let length = up.len();
                writer.send(&format!(
                    "PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
                ));
                writer.send_bytes(&up);
            }
        });
        let mut exchange = upstream.accept();
        let request = exchange.request();
        sender.join().unwrap();
        assert!(request.body == body, "the body going up, chunked: {chunked}");
        assert_eq!(request.head.field("transfer-encoding"), chunked.then_some("chunked"));

        let mut writer = exchange.writer();
        let down = body.clone();
        let sender = thread::spawn(move || {
            if chunked {
                writer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for piece in down.chunks(70_001) {
                    writer.send(&format!("{:X}\r\n", piece.len()));
                    writer.send_bytes(piece);
                    writer.send("\r\n");
                }
                writer.send("0\r\nX-Trailer: 1\r\n\r\n");
            } else {
                writer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", down.len()));
                writer.send_bytes(&down);
            }
        });
        let answer = client.answer();
        sender.join().unwrap();
        assert!(answer.body == body && answer.end == End::Whole, "coming down, chunked: {chunked}");
        assert_eq!(answer.head.field("transfer-encoding"), chunked.then_some("chunked"));
        proxy.finish();
    }
}

/// Goal: bodies are passed on as they come: the upstream has the first chunk before the client sent the last, and the
/// client has the first chunk of the answer before the upstream sent the last.
#[test]
fn bodies_stream_both_ways() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    let mut exchange = upstream.accept();
    exchange.head();
    assert_eq!(exchange.chunk(), Ok(Some(b"first".to_vec())));
    client.send("4\r\nlast\r\n0\r\n\r\n");
    assert_eq!(exchange.chunk(), Ok(Some(b"last".to_vec())));
    assert_eq!(exchange.chunk(), Ok(None));
    exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    client.head();
    assert_eq!(client.chunk(), Ok(Some(b"one".to_vec())));
    exchange.send("3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(client.chunk(), Ok(Some(b"two".to_vec())));
    assert_eq!(client.chunk(), Ok(None));
    // And with a length: half of it, then the other half.
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf");
    exchange.head();
    assert_eq!(exchange.exactly(4), Ok(b"half".to_vec()));
    client.send("rest");
    assert_eq!(exchange.exactly(4), Ok(b"rest".to_vec()));
    exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
    client.head();
    assert_eq!(client.exactly(4), Ok(b"half".to_vec()));
    exchange.send("rest");
    assert_eq!(client.exactly(4), Ok(b"rest".to_vec()));
    proxy.finish();
}

/// Goal: an upstream that answers before the body has ended is heard at once, and the answer comes whole.
#[test]
fn an_early_answer_is_passed_on_before_the_body_ends() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nstart");
    let mut exchange = upstream.accept();
    exchange.head();
    assert_eq!(exchange.exactly(5), Ok(b"start".to_vec()));
    exchange.send("HTTP/1.1 403 No\r\nContent-Length: 7\r\nConnection: close\r\n\r\nenough!");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (403, "enough!"));
    drop(exchange);
    drop(client);
    proxy.finish();
}

/// Goal: a request is framed anew: an empty POST keeps its zero length, a GET gets none, and no framing field of the
/// client is copied.
#[test]
fn empty_bodies_keep_their_meaning() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("POST /zero HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let mut exchange = upstream.accept();
    let head = exchange.request().head;
    assert_eq!(head.field("transfer-encoding"), None);
    assert_eq!(
        head.field("content-length"),
        Some("0"),
        "without it some servers answer 411, or wait for a body (RFC 9110, 8.6)"
    );
    exchange.reply("ok");
    client.answer();
    client.send("GET /none HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = exchange.request().head;
    assert!(head.all("content-length").is_empty() && head.all("transfer-encoding").is_empty());
    exchange.reply("ok");
    client.answer();
    client.send("POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let request = exchange.request();
    assert!(request.body.is_empty());
    exchange.reply("ok");
    client.answer();
    proxy.finish();
}

/// Goal: a client that waits for leave to send its body gets it, and the upstream is not asked a second time.
#[test]
fn expect_continue_is_answered_by_us() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.head().word(1), "100");
    client.send("body");
    let mut exchange = upstream.accept();
    let request = exchange.request();
    assert_eq!(request.head.field("expect"), None);
    assert_eq!(request.body, b"body");
    exchange.reply("ok");
    assert_eq!(client.answer().text(), "ok");
    proxy.finish();
}

/// Goal: who is refused is told so instead of being asked for the body.
#[test]
fn expect_continue_of_a_refused_call_is_not_granted() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    proxy.halt("/");
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.answer().status(), 503);
    upstream.assert_nobody();
    proxy.finish();
}

/// Goal: preliminary answers of an upstream confuse nobody: the final one arrives.
#[test]
fn preliminary_answers_are_no_answers() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    exchange.reply("final");
    let mut head = client.head();
    while head.word(1).starts_with('1') {
        head = client.head();
    }
    assert_eq!(head.word(1), "200");
    assert_eq!(client.body(&head, false), (b"final".to_vec(), End::Whole));
    proxy.finish();
}

/// Goal: answers without a body end where they should: the next answer on the same connection is read right. The
/// length that a HEAD tells survives; a 304 may leave it out.
#[test]
fn bodiless_answers_leave_the_connection_in_step() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    let mut exchange = None;
    let cases = [
        ("HEAD", "200 OK\r\nContent-Length: 12345", Some("12345")),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", None),
        ("GET", "204 No Content", None),
        ("GET", "304 Not Modified\r\nContent-Length: 77", None),
        ("GET", "200 OK\r\nContent-Length: 0", Some("0")),
    ];
    for (method, words, length) in cases {
        client.send(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        let exchange = exchange.get_or_insert_with(|| upstream.accept());
        assert_eq!(exchange.request().head.word(0), method);
        exchange.send(&format!("HTTP/1.1 {words}\r\n\r\n"));
        let head = client.head();
        assert_eq!(head.word(1), words.split(' ').next().unwrap());
        assert_eq!(head.field("content-length"), length, "{method} {words}");
        client.send("GET /after HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(exchange.request().head.word(1), "/after", "on the same upstream connection");
        exchange.reply("in step");
        assert_eq!(client.answer().text(), "in step", "after {method} {words}");
    }
    upstream.assert_nobody();
    proxy.finish();
}

/// Goal: a client that speaks HTTP/1.0 gets an answer it understands: no chunks, and the end of the connection as the
/// end of a body of unknown length.
#[test]
fn an_old_client_is_understood() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET /old HTTP/1.0\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    let request = exchange.request();
    assert_eq!(request.head.start, "GET /old HTTP/1.1", "upstream we speak our own version");
    exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let answer = client.answer();
    assert!(answer.head.all("transfer-encoding").is_empty(), "{:?}", answer.head);
    assert_eq!(
        (answer.status(), answer.text().as_str(), answer.end),
        (200, "abc", End::WithConnection)
    );

    let mut client = proxy.client();
    client.send("GET /old HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    exchange.request();
    exchange.reply("kept");
    assert_eq!(client.answer().text(), "kept");
    client.send("GET /again HTTP/1.0\r\nHost: a\r\n\r\n");
    exchange.request();
    exchange.reply("last");
    assert_eq!(client.answer().text(), "last");
    client.assert_ends();
    proxy.finish();
}

/// Goal: an upstream that speaks HTTP/1.0 and ends its body by closing is passed on whole.
#[test]
fn an_old_upstream_is_understood() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end");
    drop(exchange);
    let answer = client.answer();
    assert_eq!((answer.text().as_str(), answer.end), ("until the end", End::Whole));
    assert_eq!(answer.head.start, "HTTP/1.1 200 OK");
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.reply("new connection");
    assert_eq!(client.answer().text(), "new connection");
    proxy.finish();
}

/// Goal: requests sent in one go are answered one by one, in their order.
#[test]
fn a_pipelined_batch_is_answered_in_order() {
    let upstream = Serving::start(|request| {
        let words = request.head.word(1);
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{words}", words.len())
    });
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    let batch: String =
        (0..50).map(|number| format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(&batch);
    for number in 0..50 {
        assert_eq!(client.answer().text(), format!("/{number}"));
    }
    client.send("GET /bye HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(client.answer().text(), "/bye");
    client.assert_ends();
    assert_eq!(upstream.connections(), 1, "one after the other, on one connection");
    let accounts = proxy.finish();
    assert_eq!(accounts["forwarded"], 51);
}

/// Goal: an upstream connection serves many clients, one after the other.
#[test]
fn an_upstream_connection_is_used_again() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    for number in 0..20 {
        let mut client = proxy.client();
        let rest = if number % 2 == 0 { "\r\n" } else { "content-length: 2\r\n\r\nhi" };
        client.send(&format!("POST /{number} HTTP/1.1\r\nHost: a\r\n{rest}"));
        assert_eq!(client.answer().text(), "ok");
    }
    assert_eq!(upstream.connections(), 1);
    assert_eq!(proxy.metric("breaker_upstream_connects_total"), 1.0);
    proxy.finish();
}

/// Goal: calls at once use connections of their own, on every worker, and all are answered.
#[test]
fn many_at_once_are_all_answered() {
    let upstream = Serving::ok();
    let proxy = Setup { workers: 2, ..Setup::route(upstream.address(), "") }.start();
    let address = proxy.data();
    let threads: Vec<_> = (0..16)
        .map(|_| {
            thread::spawn(move || {
                let mut client = Wire::connect(address);
                for _ in 0..20 {
                    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                    assert_eq!(client.answer().text(), "ok");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(proxy.finish()["forwarded"], 320);
    assert_eq!(upstream.heard().len(), 320);
}

/// Goal: however the kernel spreads connections, no worker has more than one beyond another, and each end makes room.
#[test]
fn connections_are_spread_evenly() {
    let upstream = Serving::ok();
    let proxy = Setup { workers: 3, ..Setup::route(upstream.address(), "") }.start();
    let loads = || proxy.plane().doors.loads();
    let mut clients: Vec<Wire> = Vec::new();
    for number in 1..=12 {
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().text(), "ok");
        clients.push(client);
        let loads = loads();
        assert_eq!(loads.iter().sum::<u64>(), number);
        assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
    }
    drop(clients);
    eventually("all places are free", || (loads() == [0, 0, 0]).then_some(()));
    proxy.finish();
}

/// Goal: streams of one HTTP/2 connection do not wait for each other, and arrive upstream as good HTTP/1.1.
#[test]
fn http2_streams_are_independent() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let client = H2::connect(proxy.data());
    let first = client.get("/first?q=1");
    let mut held = upstream.accept();
    let head: Head = held.request().head;
    assert_eq!(head.start, "GET /first?q=1 HTTP/1.1");
    assert_eq!(head.field("host"), Some("a"));
    assert_eq!(head.field("x-forwarded-host"), Some("a"));
    let mut others: Vec<_> = (0..8).map(|number| client.get(&format!("/other/{number}"))).collect();
    // All are upstream at once, while the first is not answered.
    let mut exchanges: Vec<_> = others.iter().map(|_| upstream.accept()).collect();
    for exchange in exchanges.iter_mut().rev() {
        let target = exchange.request().head.word(1).to_owned();
        exchange.reply(&target);
    }
    for (number, stream) in others.drain(..).enumerate() {
        assert_eq!(stream.answer(), (200, format!("/other/{number}").into_bytes()));
    }
    held.reply("at last");
    assert_eq!(first.answer(), (200, b"at last".to_vec()));
    client.assert_up();
    drop(client);
    proxy.finish();
}

/// Goal: bodies stream over HTTP/2 as they do over HTTP/1.1, both ways.
#[test]
fn http2_bodies_stream_both_ways() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let client = H2::connect(proxy.data());
    let request = Request::post("http://a/up").body(()).unwrap();
    let mut stream = client.start(request, true);
    stream.feed(b"first");
    let mut exchange = upstream.accept();
    let head = exchange.head();
    assert_eq!(head.field("transfer-encoding"), Some("chunked"));
    assert_eq!(exchange.chunk(), Ok(Some(b"first".to_vec())));
    stream.feed(b"last");
    stream.end();
    assert_eq!(exchange.chunk(), Ok(Some(b"last".to_vec())));
    assert_eq!(exchange.chunk(), Ok(None));
    exchange.send(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\none\r\n",
    );
    let (status, headers) = stream.head();
    assert_eq!(status, 200);
    assert!(!headers.contains_key("transfer-encoding") && !headers.contains_key("connection"));
    assert!(matches!(stream.next(), Event::Data(data) if data == "one"));
    exchange.send("3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(stream.rest(), (b"two".to_vec(), true));
    drop(client);
    proxy.finish();
}

/// Goal: a cookie that HTTP/2 carries in pieces is one field again where HTTP/1.1 begins (RFC 9113, 8.2.3).
#[test]
fn http2_cookie_pieces_are_joined() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let client = H2::connect(proxy.data());
    let request = Request::get("http://a/")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("cookie", "c=3")
        .body(())
        .unwrap();
    let stream = client.start(request, false);
    let mut exchange = upstream.accept();
    assert_eq!(exchange.request().head.all("cookie"), ["a=1; b=2; c=3"]);
    exchange.reply("ok");
    assert_eq!(stream.answer().0, 200);
    drop(client);
    proxy.finish();
}

/// Goal: a client that leaves in the middle of an answer frees its upstream connection and leaves no call behind.
#[test]
fn a_client_that_leaves_ends_its_call() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome");
    client.head();
    drop(client);
    exchange.assert_ends();
    // And one that leaves before the head of the answer.
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    drop(client);
    exchange.assert_ends();
    let accounts = proxy.finish();
    assert_eq!(accounts["forwarded"], 2);
    assert_eq!(accounts["upstream_errors"], 0, "it was no fault of the upstream");
}

/// Goal: a client that reads slowly gets all of its answer: it is not one that has stopped.
/// Method: it takes a piece every now and then, so slowly that the buffers between take longer than the deadline to drain.
#[test]
fn a_slow_reader_is_served_to_the_end() {
    let upstream = Upstream::start();
    let proxy =
        Setup { deadlines: "body_idle = \"1s\"", ..Setup::route(upstream.address(), "") }.start();
    let mut client = Wire::connect_narrow(proxy.data());
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut pace = Wire::connect(nobody.local_addr().unwrap());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    let mut writer = exchange.writer();
    let length = 2 * LARGE;
    let sender = thread::spawn(move || {
        writer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
        writer.send_bytes(&large());
        writer.send_bytes(&large());
    });
    client.head();
    let mut taken = 0;
    // Nothing comes on the other connection: it measures the time.
    for _ in 0..60 {
        taken += client.exactly(16 * 1024).expect("broken off while it was reading").len();
        pace.assert_silent(Duration::from_millis(100));
    }
    let rest = client.exactly(length - taken).map(|rest| rest.len());
    assert_eq!(rest, Ok(length - taken), "it got all of it");
    sender.join().unwrap();
    proxy.finish();
}

/// Goal: a client that stops reading is ended after its deadline, and so is its upstream connection: it must not hold either
/// for ever.
#[test]
fn a_client_that_stops_reading_is_ended() {
    for http2 in [false, true] {
        let upstream = Upstream::start();
        let proxy =
            Setup { deadlines: "body_idle = \"200ms\"", ..Setup::route(upstream.address(), "") }
                .start();
        let mut client = proxy.client();
        if http2 {
            client.send_bytes(&h2_get());
        } else {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        exchange.fill(&[b'x'; 64 * 1024]);
        exchange.assert_ends();
        drop(client);
        let accounts = proxy.finish();
        assert_eq!(accounts["upstream_errors"], 0, "no fault of the upstream");
    }
}

/// Goal: an upload that its client breaks off reaches the upstream as broken, never as whole.
#[test]
fn a_broken_upload_never_looks_whole() {
    for start in
        ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\n{start}"));
        let mut exchange = upstream.accept();
        let head = exchange.head();
        drop(client);
        let (body, end) = exchange.body(&head, false);
        assert_eq!((body.as_slice(), end), (&b"half"[..], End::Broken), "{start}");
        let accounts = proxy.finish();
        assert_eq!(accounts["upstream_errors"], 0);
    }
}
