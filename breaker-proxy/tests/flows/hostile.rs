//! Clients that mean harm: framing that hides requests, floods, and ways to hold on to what others need; nothing here is a mere
//! mistake.

use super::support::upstream::{Serving, Upstream};
use super::support::wire::{End, Wire};
use super::support::{LIMIT, Proxy, Setup, eventually};
use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Frames of RFC 9113, 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A block of fields, each written out (RFC 7541, 6.2.3), so that nothing stands between the test and what it says.
fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0x10);
        for text in [name.as_bytes(), value] {
            assert!(text.len() < 127, "a length of one byte");
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend(text);
        }
    }
    bytes
}

/// The head of a request with these fields behind the four that each has.
fn ask(method: &str, path: &str, more: &[(&str, &[u8])]) -> Vec<u8> {
    let mut fields: Vec<(&str, &[u8])> = vec![
        (":method", method.as_bytes()),
        (":scheme", b"http"),
        (":path", path.as_bytes()),
        (":authority", b"a"),
    ];
    fields.extend(more);
    block(&fields)
}

/// A client that has begun to speak HTTP/2, with these settings.
fn h2(address: SocketAddr, settings: &[u8]) -> Wire {
    let mut wire = Wire::connect(address);
    wire.send_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    wire.send_bytes(&frame(SETTINGS, 0, 0, settings));
    wire
}

/// The next frame: its kind, flags, stream and payload; `None` at the end of the connection.
fn next_frame(wire: &mut Wire) -> Option<(u8, u8, u32, Vec<u8>)> {
    let head = wire.exactly(9).ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let payload = wire.exactly(usize::try_from(length).unwrap()).ok()?;
    Some((head[3], head[4], stream, payload))
}

/// Waits for the end of a stream, however it comes.
fn ended(wire: &mut Wire, stream: u32) -> Option<(u8, u8)> {
    loop {
        let (kind, flags, of, _) = next_frame(wire)?;
        if kind == GOAWAY
            || (of == stream
                && (kind == RESET || ((kind == DATA || kind == HEADERS) && flags & END_STREAM > 0)))
        {
            return Some((kind, flags));
        }
    }
}

fn none_left(proxy: &Proxy) {
    eventually("all connections ended", || {
        (proxy.metric("breaker_connections") == 0.0).then_some(())
    });
}

/// Goal: an answer whose last bytes wait for its client is ended by a cut, also where a halt came before and let it run out.
#[test]
fn a_cut_after_a_halt_finds_the_answer() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = Wire::connect_narrow(proxy.data());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    exchange.fill(&[b'x'; 64 * 1024]);
    assert_eq!(proxy.halt("/")["severed"], 0, "it runs out");
    assert_eq!(proxy.status()["calls_open"], 1);
    assert_eq!(proxy.cut("/")["severed"], 1);
    none_left(&proxy);
    assert_eq!(proxy.finish()["severed"], 1);
}

/// Goal: an HTTP/2 client that makes no room for an answer does not hold its call for ever, however small the answer is.
#[test]
fn a_client_that_never_made_room_held_its_call_for_ever() {
    let upstream = Serving::ok();
    let deadlines = "idle = \"500ms\"\nbody_idle = \"500ms\"";
    let proxy = Setup { deadlines, ..Setup::route(upstream.address(), "") }.start();
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let mut client = h2(proxy.data(), &[0, 4, 0, 0, 0, 0]);
    for stream in [1, 3, 5] {
        let get = ask("GET", "/", &[]);
        client.send_bytes(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &get));
    }
    eventually("all calls", || (upstream.heard().len() == 3).then_some(()));
    eventually("their ends", || (proxy.status()["calls_open"] == 0).then_some(()));
    none_left(&proxy);
    assert_eq!(proxy.metric("breaker_stalled_clients_total"), 3.0);
    assert_eq!(proxy.finish()["upstream_errors"], 0, "no fault of the upstream");
}

/// Goal: a refused HEAD has no body over HTTP/2 either.
#[test]
fn a_refused_head_had_a_body_by_http2() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    proxy.halt("/");
    let mut client = h2(proxy.data(), &[]);
    client.send_bytes(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &ask("HEAD", "/", &[])));
    let (kind, flags) = ended(&mut client, 1).unwrap();
    assert_eq!((kind, flags & END_STREAM), (HEADERS, END_STREAM));
    drop(client);
    proxy.finish();
}

/// Goal: what HTTP/1.1 could read in another way than HTTP/2 does not leave HTTP/2: nothing of it goes up.
#[test]
fn a_downgrade_injects_nothing() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let get = |path: &str, more: &[(&str, &[u8])]| ask("GET", path, more);
    let twice = |first: (&str, &[u8]), second: (&str, &[u8])| {
        block(&[
            (":method", b"GET"),
            (":scheme", b"http"),
            (":path", b"/"),
            (":authority", b"a"),
            first,
            second,
        ])
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("CRLF in a value", get("/", &[("x", b"1\r\nHost: b")])),
        ("a return in a value", get("/", &[("x", b"1\rb")])),
        ("a line feed in a value", get("/", &[("x", b"1\nb")])),
        ("a zero in a value", get("/", &[("x", b"1\0b")])),
        ("CRLF in a name", get("/", &[("x\r\ny", b"1")])),
        ("a colon in a name", get("/", &[("x: y", b"1")])),
        ("a blank in a name", get("/", &[("x y", b"1")])),
        ("an empty name", get("/", &[("", b"1")])),
        ("a capital in a name", get("/", &[("X-Big", b"1")])),
        ("CRLF in the path", get("/a HTTP/1.1\r\nx: y", &[])),
        ("a blank in the path", get("/a b", &[])),
        ("no path", get("", &[])),
        ("no leading slash", get("a", &[])),
        ("raw bytes in the query", get("/a?b=\u{e9}\u{85}", &[])),
        ("a control in the query", get("/a?b=\u{7f}", &[])),
        ("CRLF in the method", ask("GET / HTTP/1.1\r\nx: y", "/", &[])),
        ("a blank in the method", ask("GET /", "/", &[])),
        ("transfer-encoding", get("/", &[("transfer-encoding", b"chunked")])),
        ("connection", get("/", &[("connection", b"close")])),
        ("keep-alive", get("/", &[("keep-alive", b"5")])),
        ("upgrade", get("/", &[("upgrade", b"h2c")])),
        ("a TE of its own", get("/", &[("te", b"chunked")])),
        ("two paths", twice((":path", b"/b"), ("x", b"1"))),
        ("two authorities", twice((":authority", b"b"), ("x", b"1"))),
        ("a pseudo field behind others", twice(("x", b"1"), (":path", b"/b"))),
        ("an unknown pseudo field", twice((":x", b"1"), ("x", b"1"))),
        ("the status of an answer", twice((":status", b"200"), ("x", b"1"))),
        ("two lengths", twice(("content-length", b"0"), ("content-length", b"1"))),
        ("a length without its body", get("/", &[("content-length", b"5")])),
        ("a length that is none", get("/", &[("content-length", b"+5")])),
        (
            "an authority with a user",
            block(&[
                (":method", b"GET"),
                (":scheme", b"http"),
                (":path", b"/"),
                (":authority", b"x@a"),
            ]),
        ),
        ("no authority", block(&[(":method", b"GET"), (":scheme", b"http"), (":path", b"/")])),
        ("CONNECT", block(&[(":method", b"CONNECT"), (":authority", b"a:80")])),
        ("a tunnel", ask("CONNECT", "/", &[(":protocol", b"websocket")])),
    ];
    for (name, fields) in &cases {
        let mut client = h2(proxy.data(), &[]);
        client.send_bytes(&frame(HEADERS, END_STREAM | END_HEADERS, 1, fields));
        ended(&mut client, 1);
        assert_eq!(upstream.targets(), [""; 0], "{name}");
    }
    // More and less data than the length tells.
    for length in [b"3", b"9"] {
        let mut client = h2(proxy.data(), &[]);
        let head = ask("POST", "/length", &[("content-length", length)]);
        client.send_bytes(&frame(HEADERS, END_HEADERS, 1, &head));
        client.send_bytes(&frame(DATA, END_STREAM, 1, b"hello"));
        ended(&mut client, 1);
    }
    let mut client = proxy.client();
    client.send("GET /last HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    proxy.finish();
    let whole = upstream.heard().into_iter().filter(|request| request.end == End::Whole);
    let targets: Vec<_> = whole.map(|request| request.head.word(1).to_owned()).collect();
    assert_eq!(targets, ["/last"]);
}

/// Goal: floods of frames that cost their sender nothing harm nobody: the connection ends or stands still, others are served, and
/// nothing is left behind.
#[test]
fn floods_of_frames_harm_nobody() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let get = ask("GET", "/flood", &[]);
    let streams = (1..40_001_u32).step_by(2);
    let resets = || -> Vec<u8> {
        let both = |stream| {
            [
                frame(HEADERS, END_STREAM | END_HEADERS, stream, &get),
                frame(RESET, 0, stream, &[0, 0, 0, 8]),
            ]
            .concat()
        };
        streams.clone().flat_map(both).collect()
    };
    // The server is made to reset: a window that grows by nothing is an error of its stream.
    let made_resets = || -> Vec<u8> {
        let both = |stream| {
            [
                frame(HEADERS, END_STREAM | END_HEADERS, stream, &get),
                frame(WINDOW, 0, stream, &[0, 0, 0, 0]),
            ]
            .concat()
        };
        streams.clone().flat_map(both).collect()
    };
    let endless_head = || {
        let more = block(&[("x", &[b'x'; 100])]);
        let mut bytes = frame(HEADERS, END_STREAM, 1, &get);
        for _ in 0..20_000 {
            bytes.extend(frame(CONTINUATION, 0, 1, &more));
        }
        bytes
    };
    let empty_head = || {
        let mut bytes = frame(HEADERS, END_STREAM, 1, &get);
        for _ in 0..200_000 {
            bytes.extend(frame(CONTINUATION, 0, 1, &[]));
        }
        bytes
    };
    // One long field into the table, then named again and again.
    let bomb = || {
        let mut head = get.clone();
        head.extend([0x40, 1, b'x', 127, 0x81, 0x1e]);
        head.extend([b'x'; 4000]);
        head.extend([0xbe; 10_000]);
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &head)
    };
    let empty_data = || {
        let post = ask("POST", "/flood", &[]);
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &post);
        for _ in 0..200_000 {
            bytes.extend(frame(DATA, 0, 1, &[]));
        }
        bytes
    };
    let floods: [(&str, Vec<u8>); 8] = [
        ("resets", resets()),
        ("resets of the server's", made_resets()),
        ("a head without end", endless_head()),
        ("a head of nothing", empty_head()),
        ("a head that grows", bomb()),
        ("data of nothing", empty_data()),
        ("pings", frame(PING, 0, 0, &[0; 8]).repeat(200_000)),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(200_000)),
    ];
    for (name, bytes) in floods {
        let begun = Instant::now();
        let mut client = h2(proxy.data(), &[]);
        client.fill(&bytes);
        assert_eq!(proxy.get("").status(), 200, "{name}");
        drop(client);
        none_left(&proxy);
        assert!(begun.elapsed() < LIMIT, "{name}");
    }
    proxy.finish();
    let flooded = upstream.targets().iter().filter(|target| *target == "/flood").count();
    assert!(flooded < 2_000, "{flooded} calls went up");
}

/// Goal: empty lines before a request are few, or it is none: who sends nothing else is told so, and ended.
#[test]
fn empty_lines_had_no_end() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    for first in [false, true] {
        let mut client = proxy.client();
        if first {
            client.send("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n");
            assert_eq!(client.answer().status(), 200, "a few belong to nobody");
        }
        client.fill("\r\n".repeat(100_000).as_bytes());
        assert_eq!(client.answer().status(), 400);
        client.assert_ends();
    }
    none_left(&proxy);
    let accounts = proxy.finish();
    assert_eq!((&accounts["invalid"], &accounts["offered"]), (&2.into(), &3.into()));
}

/// Goal: an empty line behind a request (old clients send one) begins no other: the connection stays idle, and is ended in silence
/// by that deadline alone.
#[test]
fn an_empty_line_began_a_request() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let proxy = Setup { deadlines: "head = \"1s\"\nidle = \"3s\"", ..setup }.start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    // On its own, so that it is not read together with the request.
    client.send("\r\n");
    client.assert_silent(std::time::Duration::from_millis(1500));
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    client.assert_ends();
    assert_eq!(proxy.metric("breaker_slow_heads_total"), 0.0);
    proxy.finish();
}

/// Goal: a body in the smallest chunks does not cost a write for each: what is at hand goes up together, whole.
#[test]
fn each_tiny_chunk_cost_a_write() {
    const COUNT: usize = 20_000;
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    let body: Vec<u8> = (0..COUNT).map(|at| b'a' + u8::try_from(at % 26).unwrap()).collect();
    let mut bytes = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for byte in &body {
        bytes.extend([b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    }
    bytes.extend(b"0\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut writer = client.writer();
    let sender = thread::spawn(move || writer.send_bytes(&bytes));
    let mut exchange = upstream.accept();
    exchange.head();
    let (mut heard, mut chunks) = (Vec::new(), 0);
    while let Some(chunk) = exchange.chunk().unwrap() {
        heard.extend(chunk);
        chunks += 1;
    }
    sender.join().unwrap();
    assert!(heard == body);
    assert!(chunks < COUNT / 50, "{chunks} chunks");
    exchange.reply("ok");
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(exchange.request().head.word(1), "/next");
    exchange.reply("next");
    assert_eq!(client.answer().text(), "next");
    proxy.finish();
}

/// Goal: an answer in the smallest chunks, put together on its way, arrives whole.
#[test]
fn an_answer_in_tiny_chunks_arrives_whole() {
    const COUNT: usize = 20_000;
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send(&format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        "1\r\nx\r\n".repeat(COUNT)
    ));
    let body = client.answer().body;
    assert!(body.len() == COUNT && body.iter().all(|&byte| byte == b'x'));
    proxy.finish();
}

/// Goal: an answer that comes before its request has ended makes no request of the rest, however that is framed and whenever it
/// comes; the connection ends, or goes on exactly where the body ended.
#[test]
fn the_rest_of_an_answered_request_is_no_request() {
    let body = SMUGGLED.repeat(3_000);
    for (framing, body) in [
        (format!("Content-Length: {}", body.len()), body.clone()),
        (
            "Transfer-Encoding: chunked".to_owned(),
            format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
        ),
    ] {
        for answer in [
            "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno",
            "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
            "HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
        ] {
            for begun in [0, 10, 40_000] {
                let upstream = Upstream::start();
                let proxy = Setup::route(upstream.address(), "").start();
                let mut client = proxy.client();
                client.send(&format!("POST /early HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
                client.send(&body[..begun]);
                let mut exchange = upstream.accept();
                exchange.head();
                exchange.send(answer);
                assert_eq!(client.answer().status(), 403);
                client.send(&body[begun..]);
                client.send("GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                client.end_writing();
                let heard = exchange.rest();
                let head = b"GET /smuggled HTTP/1.1\r\nhost:";
                assert!(!heard.windows(head.len()).any(|piece| piece == head), "{answer}");
                if let Some(mut other) = upstream.try_accept() {
                    assert_eq!(other.head().word(1), "/after", "{framing} {begun} {answer}");
                }
                drop(client);
                assert_eq!(proxy.finish()["invalid"], 0);
            }
        }
    }
}

/// Goal: however `Transfer-Encoding` is dressed up, it is refused or means one thing, and hides no request in what a length says is the
/// body.
#[test]
fn a_dressed_up_coding_hides_no_request() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let lines = [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding:chunked",
        "Transfer-Encoding:\t chunked \t",
        "TRANSFER-ENCODING: CHUNKED",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding\0: chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: \x0cchunked",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding: \u{a0}chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunke\u{1e9e}",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding:\n chunked",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "X: 1\rTransfer-Encoding: chunked",
        "X: 1\nTransfer-Encoding: chunked",
        " Transfer-Encoding: chunked",
        "Transfer_Encoding: chunked",
        "Transfer-Encoding-: chunked",
        "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
        "Connection: content-length\r\nX: 1",
        "TE: chunked",
    ];
    let body = format!("0\r\n\r\n{SMUGGLED}");
    for line in lines {
        let mut client = proxy.client();
        let length = body.len();
        client.send(&format!(
            "POST /te HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{line}\r\n\r\n{body}"
        ));
        client.end_writing();
        let status = client.try_answer().map(|answer| answer.status());
        assert!(matches!(status, None | Some(200 | 400)), "{line:?}: {status:?}");
        client.assert_ends();
    }
    proxy.finish();
    let targets = upstream.targets();
    assert!(targets.iter().all(|target| target == "/te"), "{targets:?}");
    for request in upstream.heard() {
        let told = (request.head.all("content-length"), request.head.all("transfer-encoding"));
        let once = told.0.len() + told.1.len();
        assert!(once == 1 && request.head.all("transfer_encoding").is_empty(), "{request:?}");
    }
}

/// Goal: what stands behind the chunks of a request frames, routes and names nobody, and has an end.
#[test]
fn trailers_of_a_request_go_nowhere() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let start = "POST /t HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n";
    let mut client = proxy.client();
    client.send(&format!(
        "{start}Content-Length: 5\r\nHost: b\r\nX-Forwarded-For: 6.6.6.6\r\nAuthorization: x\r\n\
         Transfer-Encoding: chunked\r\nX-Mine: 1\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n"
    ));
    assert_eq!(client.answer().status(), 200);
    assert_eq!(client.answer().status(), 200);
    drop(client);
    for (trailers, status) in
        [("x: 1\r\n".repeat(40), 400), (format!("x: {}", "y".repeat(20_000)), 400)]
    {
        let mut client = proxy.client();
        client.send(&format!("{start}{trailers}"));
        assert_eq!(client.answer().status(), status);
    }
    proxy.finish();
    let heard = upstream.heard();
    let whole: Vec<_> = heard.iter().filter(|request| request.end == End::Whole).collect();
    assert_eq!(whole.len(), 2);
    assert_eq!((whole[0].body.as_slice(), whole[1].head.word(1)), (&b"hi"[..], "/next"));
    assert!(whole[0].head.all("x-mine").is_empty() && whole[0].head.field("host") == Some("a"));
}

/// Goal: who waits for leave and is refused gets none, and what it sends all the same, be it the body or another request, is
/// served by nobody; who is given leave is told once.
#[test]
fn leave_smuggles_nothing() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let expects = "POST /first HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: ";
    let kill = proxy.halt("/");
    for rest in [SMUGGLED.to_owned(), SMUGGLED.repeat(100)] {
        let mut client = proxy.client();
        client.send(&format!("{expects}{}\r\n\r\n", SMUGGLED.len()));
        let answer = client.answer();
        assert_eq!((answer.status(), &answer.json()["id"]), (503, &kill["id"]));
        client.send(&rest);
        client.end_writing();
        client.assert_ends();
    }
    // Without waiting: the same, in one piece.
    let mut client = proxy.client();
    client.send(&format!("{expects}{}\r\n\r\n{SMUGGLED}", SMUGGLED.len()));
    assert_eq!(client.answer().status(), 503);
    drop(client);
    proxy.lift("/");
    let mut client = proxy.client();
    client.send(&format!("{expects}{}\r\n\r\n", SMUGGLED.len()));
    assert_eq!(client.head().word(1), "100");
    client.send(SMUGGLED);
    client.send("GET /second HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    let request = exchange.request();
    assert_eq!((request.head.word(1), request.body), ("/first", SMUGGLED.as_bytes().to_vec()));
    exchange.reply("first");
    assert_eq!(client.answer().text(), "first", "and no second leave");
    assert_eq!(exchange.request().head.word(1), "/second");
    exchange.reply("second");
    assert_eq!(client.answer().text(), "second");
    upstream.assert_nobody();
    proxy.finish();
}

/// Goal: a target with a host in it does without none of what a request must have, and old HTTP switches to nothing.
#[test]
fn a_host_in_the_target_hides_no_other() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "websocket = true").start();
    for head in [
        "GET http://a/ HTTP/1.1\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: b/c\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: x@b\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: b c\r\n\r\n",
    ] {
        let mut client = proxy.client();
        client.send(head);
        let answer = client.answer();
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad-host"), "{head}");
    }
    let mut client = proxy.client();
    client.send(
        "GET /ws HTTP/1.0\r\nHost: a\r\nConnection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n",
    );
    let mut exchange = upstream.accept();
    assert!(exchange.head().all("upgrade").is_empty(), "RFC 9110, 7.8");
    exchange.reply("no");
    assert_eq!(client.answer().text(), "no");
    assert_eq!(proxy.finish()["invalid"], 4);
}

/// Goal: a stop waits for what is in flight, and for nobody who only holds on: idle, half-way into a head, in a linger, or silent in
/// HTTP/2.
#[test]
fn a_stop_waited_for_who_only_held_on() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let deadlines = "drain = \"30s\"\nhead = \"30s\"";
    let mut proxy = Setup { deadlines, ..setup }.start();
    let mut held = Vec::new();
    for start in
        ["", "P", "GET / HT", "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT", "PRI * HTTP/2.0\r\n"]
    {
        let mut client = proxy.client();
        client.send(start);
        held.push(client);
    }
    let mut lingers = proxy.client();
    lingers.send("POST // HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n");
    assert_eq!(lingers.answer().status(), 400);
    held.push(lingers);
    let mut silent = h2(proxy.data(), &[]);
    silent.send_bytes(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &ask("GET", "/", &[])));
    assert!(ended(&mut silent, 1).is_some());
    held.push(silent);
    held.push(h2(proxy.data(), &[]));
    proxy.settled();
    let begun = Instant::now();
    proxy.stop();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
}

/// Goal: an HTTP/2 connection on which nothing is asked for too long ends, by the same deadlines as any other; one with a call in
/// flight does not.
#[test]
fn an_idle_http2_connection_was_never_ended() {
    let upstream = Upstream::start();
    let setup = Setup::route(upstream.address(), "");
    let proxy = Setup { deadlines: "head = \"500ms\"\nidle = \"500ms\"", ..setup }.start();
    let mut never = h2(proxy.data(), &[]);
    assert!(ended(&mut never, 1).is_none_or(|(kind, _)| kind == GOAWAY));
    // Half a head, and no more of it.
    let mut half = h2(proxy.data(), &[]);
    half.send_bytes(&frame(HEADERS, END_STREAM, 1, &ask("GET", "/", &[])));
    assert!(ended(&mut half, 1).is_none_or(|(kind, _)| kind == GOAWAY));
    let mut client = h2(proxy.data(), &[]);
    client.send_bytes(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &ask("GET", "/", &[])));
    let mut exchange = upstream.accept();
    exchange.request();
    none_left_but(&proxy, 1.0);
    exchange.reply("late");
    assert_eq!(ended(&mut client, 1), Some((DATA, END_STREAM)));
    assert!(ended(&mut client, 3).is_none_or(|(kind, _)| kind == GOAWAY));
    drop((never, half));
    none_left(&proxy);
    proxy.finish();
}

fn none_left_but(proxy: &Proxy, count: f64) {
    eventually("the others ended", || (proxy.metric("breaker_connections") <= count).then_some(()));
}
