//! Upstreams that fail in every way they can: what the client learns, what is counted, and that no call is sent twice.

use super::support::h2::H2;
use super::support::upstream::{FullQueue, Serving, Upstream};
use super::support::wire::{End, Wire};
use super::support::{Setup, eventually};

/// Goal: an upstream that is not there is 502, and the call counts as never sent.
#[test]
fn nobody_listens() {
    let address = Upstream::start().close();
    let proxy = Setup::route(address, "").start();
    let answer = proxy.get("");
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-unreachable"));
    let text = answer.text();
    assert!(!text.contains("127.0.0.1"), "the inside is no business of the client: {text}");
    let accounts = proxy.finish();
    assert_eq!((&accounts["failed"], &accounts["forwarded"]), (&1.into(), &0.into()));
}

/// Goal: a connection that does not come about in time is 504, and the call counts as never sent.
/// Method: a listener whose queue is full leaves the next one waiting.
#[test]
fn nobody_accepts() {
    let full = FullQueue::new();
    let proxy =
        Setup { deadlines: "connect = \"200ms\"", ..Setup::route(full.address, "") }.start();
    let answer = proxy.get("");
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream-timeout"));
    let accounts = proxy.finish();
    assert_eq!((&accounts["failed"], &accounts["forwarded"]), (&1.into(), &0.into()));
}

/// Goal: a client that leaves while its connection to the upstream is still being made is sent nowhere, and counts as such.
#[test]
fn a_client_that_leaves_before_the_connection_is_sent_nowhere() {
    let full = FullQueue::new();
    let proxy = Setup { deadlines: "connect = \"9s\"", ..Setup::route(full.address, "") }.start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the call in flight", || (proxy.account("in_flight") == 1).then_some(()));
    drop(client);
    let accounts = proxy.finish();
    assert_eq!((&accounts["failed"], &accounts["forwarded"]), (&1.into(), &0.into()));
}

/// Goal: an upstream that does not answer in time is 504; its connection ends, so that a late answer reaches nobody.
#[test]
fn a_hanging_upstream_is_given_up() {
    let upstream = Upstream::start();
    let proxy =
        Setup { deadlines: "answer = \"200ms\"", ..Setup::route(upstream.address(), "") }.start();
    let mut client = proxy.client();
    client.send("GET /late HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream-timeout"));
    exchange.assert_ends();
    exchange.reply("too late");
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    assert_eq!(exchange.request().head.word(1), "/next");
    exchange.reply("in time");
    assert_eq!(client.answer().text(), "in time");
    let accounts = proxy.finish();
    assert_eq!((&accounts["upstream_errors"], &accounts["forwarded"]), (&1.into(), &2.into()));
}

/// Goal: no answer, and answers that are none, are 502, each counted once against the upstream.
#[test]
fn answers_that_are_none_are_refused() {
    let cases = [
        ("nothing", ""),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-Le"),
        ("noise", "\x01\x02\x03 no HTTP\r\n\r\n"),
        ("another protocol", "SSH-2.0-OpenSSH_9.9\r\n"),
        ("a bad status", "HTTP/1.1 2xx OK\r\n\r\n"),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
        ("a bad length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
        ("a control in a field", "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n"),
    ];
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    for (name, bytes) in cases {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send(bytes);
        drop(exchange);
        let answer = client.answer();
        assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-broken"), "{name}");
    }
    let accounts = proxy.finish();
    let count = u64::try_from(cases.len()).ok();
    assert_eq!(accounts["upstream_errors"].as_u64(), count);
    assert_eq!(accounts["forwarded"].as_u64(), count);
}

/// Goal: an answer that breaks off never looks whole to the client, however it is framed.
#[test]
fn a_broken_answer_never_looks_whole() {
    for (start, more) in [
        ("Content-Length: 10\r\n\r\nhalf", ""),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", ""),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "not a size\r\n"),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "5\r\nmo"),
    ] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send(&format!("HTTP/1.1 200 OK\r\n{start}"));
        let head = client.head();
        exchange.send(more);
        drop(exchange);
        let (body, end) = client.body(&head, false);
        assert!(body.starts_with(b"half") && end == End::Broken, "{start:?}: {body:?} {end:?}");
        assert_eq!(proxy.finish()["upstream_errors"], 1, "{start:?}");
    }
}

/// Goal: over HTTP/2 a broken answer is a broken stream, and its neighbours and the connection live on.
#[test]
fn a_broken_answer_breaks_only_its_stream() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let client = H2::connect(proxy.data());
    let broken = client.get("/broken");
    let mut first = upstream.accept();
    first.request();
    let good = client.get("/good");
    let mut second = upstream.accept();
    second.request();
    first.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(broken.head().0, 200);
    drop(first);
    let (body, whole) = broken.rest();
    assert!(b"half".starts_with(&body) && !whole, "{body:?} {whole}");
    second.reply("good");
    assert_eq!(good.answer(), (200, b"good".to_vec()));
    client.assert_up();
    drop(client);
    assert_eq!(proxy.finish()["upstream_errors"], 1);
}

/// Goal: an answer that stops in the middle is broken off after its deadline, and its upstream connection ends.
#[test]
fn an_answer_that_stalls_is_broken_off() {
    let upstream = Upstream::start();
    let proxy =
        Setup { deadlines: "body_idle = \"200ms\"", ..Setup::route(upstream.address(), "") }
            .start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    let head = client.head();
    assert_eq!(client.body(&head, false), (b"half".to_vec(), End::Broken));
    exchange.assert_ends();
    assert_eq!(proxy.finish()["upstream_errors"], 1);
}

/// Goal: a switch of protocols that nobody asked for is no answer, and the upstream's fault: no bytes pass beside HTTP.
#[test]
fn a_switch_that_nobody_asked_for_is_refused() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut exchange = upstream.accept();
    assert_eq!(exchange.request().head.field("upgrade"), None);
    exchange.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nraw",
    );
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-broken"));
    exchange.assert_ends();
    let accounts = proxy.finish();
    assert_eq!((&accounts["upstream_errors"], &accounts["forwarded"]), (&1.into(), &1.into()));
}

/// Goal: bytes beyond an answer, in one piece with it or later, poison nobody: the next call gets its own answer.
#[test]
fn surplus_bytes_poison_nobody() {
    let surplus = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for (number, at_once) in [(0, true), (1, false)] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send("GET /first HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst";
        if at_once {
            exchange.send(&format!("{good}{surplus}"));
            assert_eq!(client.answer().text(), "first");
        } else {
            exchange.send(good);
            assert_eq!(client.answer().text(), "first");
            exchange.send(surplus);
        }
        for name in ["second", "third"] {
            let mut other = proxy.client();
            other.send(&format!("GET /{name} HTTP/1.1\r\nHost: a\r\n\r\n"));
            if name == "second" {
                exchange = upstream.accept();
            }
            assert_eq!(exchange.request().head.word(1), format!("/{name}"), "case {number}");
            exchange.reply(name);
            assert_eq!(other.answer().text(), name, "case {number}");
        }
        proxy.finish();
    }
}

/// Goal: a connection that its upstream ended while it was idle is replaced in silence, for a POST as for a GET: no
/// byte had been sent on it.
#[test]
fn an_idle_connection_that_ended_is_replaced() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    for method in ["GET", "POST", "GET"] {
        client.send(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        let mut exchange = upstream.accept();
        assert_eq!(exchange.request().head.word(0), method);
        exchange.reply("ok");
        assert_eq!(client.answer().text(), "ok");
        // It ends here, without having said so.
    }
    let accounts = proxy.finish();
    assert_eq!((&accounts["forwarded"], &accounts["upstream_errors"]), (&3.into(), &0.into()));
}

/// Goal: a connection whose upstream says that it ends is not used again.
#[test]
fn a_connection_that_is_told_to_end_is_not_used_again() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(client.answer().text(), "ok");
        held.push(exchange);
    }
    proxy.finish();
}

/// Goal: what was sent once is never sent again, whatever its method and whatever became of the connection.
#[test]
fn what_was_sent_is_never_sent_again() {
    for method in ["GET", "POST"] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send("GET /warm HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.reply("ok");
        client.answer();
        client.send(&format!("{method} /once HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(exchange.request().head.word(1), "/once");
        drop(exchange);
        assert_eq!(client.answer().status(), 502);
        upstream.assert_nobody();
        assert_eq!(proxy.metric("breaker_resent_total"), 0.0);
        assert_eq!(proxy.finish()["upstream_errors"], 1);
    }
}

/// Goal: an upstream that ends its connections at any moment makes no call arrive twice, and each call one answer.
/// Method: it ends each connection after one answer without saying so, in a race with the next call.
#[test]
fn a_race_with_the_end_of_a_connection_doubles_no_call() {
    let upstream = Upstream::start();
    let address = upstream.address();
    let proxy = Setup { workers: 2, ..Setup::route(address, "") }.start();
    let data = proxy.data();
    let calls = 300;
    let caller = std::thread::spawn(move || {
        let mut client = Wire::connect(data);
        let mut served = 0;
        for number in 0..calls {
            let method = if number % 2 == 0 { "POST" } else { "GET" };
            client.send(&format!("{method} /{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let status = client.answer().status();
            assert!(status == 200 || status == 502, "{status}");
            served += u32::from(status == 200);
        }
        served
    });
    let mut heard = Vec::new();
    while !caller.is_finished() {
        let Some(mut exchange) = upstream.try_accept() else { continue };
        if let Some(request) = exchange.try_request() {
            heard.push(request.head.word(1).to_owned());
            exchange.reply("ok");
        }
    }
    let served = caller.join().unwrap();
    let mut once = heard.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), heard.len(), "a call arrived twice");
    assert_eq!(
        usize::try_from(served).unwrap(),
        heard.len(),
        "each call that arrived was answered"
    );
    let accounts = proxy.finish();
    assert_eq!(accounts["offered"], calls);
}

/// Goal: what an upstream answers is passed on as it is, be it an error: only its silence is ours to put into words.
#[test]
fn errors_of_the_upstream_are_its_own_words() {
    let upstream = Serving::start(|request| {
        let status = request.head.word(1).trim_start_matches('/').to_owned();
        format!("HTTP/1.1 {status} Words\r\ncontent-length: 3\r\nretry-after: 7\r\n\r\nown")
    });
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    for status in ["400", "429", "500", "502", "503", "599"] {
        client.send(&format!("GET /{status} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.head.word(1), status);
        assert_eq!(answer.text(), "own");
        assert_eq!(answer.head.field("retry-after"), Some("7"));
    }
    let accounts = proxy.finish();
    assert_eq!((&accounts["forwarded"], &accounts["upstream_errors"]), (&6.into(), &0.into()));
}

/// Goal: an answer framed twice is framed once to the client, so that nobody behind us can split it.
#[test]
fn an_answer_with_two_framings_gets_one() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send(
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    drop(exchange);
    let answer = client.answer();
    if answer.status() == 200 {
        assert_eq!((answer.text().as_str(), answer.end), ("hello", End::Whole));
    } else {
        assert_eq!(answer.status(), 502);
    }
    proxy.finish();
}

/// Goal: an upstream that reads slowly slows its client down, and holds neither the whole body nor anybody else up.
#[test]
fn a_slow_upstream_holds_up_only_its_own_call() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut slow = proxy.client();
    let length = 256 * 1024 * 1024;
    slow.send(&format!("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
    let mut stuck = upstream.accept();
    stuck.head();
    let taken = slow.fill(&[b'x'; 64 * 1024]);
    assert!(taken < 64 * 1024 * 1024, "{taken} bytes were taken though nobody reads them");
    let mut other = proxy.client();
    other.send("GET /other HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.reply("at once");
    assert_eq!(other.answer().text(), "at once");
    drop(slow);
    stuck.rest();
    proxy.finish();
}
