//! What clients may and may not do to a connection beyond their requests: pace, ends, interim answers.

use super::support::h2::h2_get;
use super::support::upstream::{Serving, Upstream};
use super::support::wire::Wire;
use super::support::{Proxy, Setup, eventually};
use std::sync::atomic::{AtomicBool, Ordering};

/// Goal: a body that comes a byte at a time does not hold its call for longer than its bytes are worth.
#[test]
fn a_body_by_the_byte_held_its_call_for_ever() {
    let upstream = Upstream::start();
    let setup = Setup::route(upstream.address(), "");
    let deadlines = "body_idle = \"1s\"";
    let proxy = Setup { bounds: "upload_rate = \"16MiB/s\"", deadlines, ..setup }.start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    let mut writer = client.writer();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // ordering: relaxed, a flag on its own.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                writer.send("x");
            }
        });
        let answer = client.try_answer();
        done.store(true, Ordering::Relaxed);
        let answer = answer.unwrap();
        assert_eq!((answer.status(), answer.code()), (408, "request-timeout".to_owned()));
    });
    assert_eq!(proxy.metric("breaker_slow_uploads_total"), 1.0);
    assert_eq!(proxy.finish()["upstream_errors"], 0, "no fault of the upstream");
}

/// Goal: an answer that is taken a byte at a time does not hold its call for longer than its bytes are worth.
#[test]
fn a_client_that_sipped_held_its_call_for_ever() {
    let upstream = Upstream::start();
    let setup = Setup::route(upstream.address(), "");
    let deadlines = "body_idle = \"1s\"";
    let proxy = Setup { bounds: "download_rate = \"16MiB/s\"", deadlines, ..setup }.start();
    let mut client = Wire::connect_narrow(proxy.data());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    exchange.fill(&[b'x'; 64 * 1024]);
    eventually("the end of the answer", || (!client.sip()).then_some(()));
    assert_eq!(proxy.metric("breaker_stalled_clients_total"), 1.0);
    assert_eq!(proxy.finish()["upstream_errors"], 0, "no fault of the upstream");
}

/// Goal: who says nothing more after a whole request counts as gone, as with nginx and Envoy: its call ends, and is no fault of the
/// upstream.
#[test]
fn a_client_that_half_closes_is_gone() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    client.end_writing();
    exchange.assert_ends();
    client.assert_ends();
    let accounts = proxy.finish();
    assert_eq!((&accounts["forwarded"], &accounts["upstream_errors"]), (&1.into(), &0.into()));
}

/// A proxy that takes the word of another on this machine.
fn proxied(upstream: std::net::SocketAddr, trusted: &'static str) -> Setup {
    let (listen, deadlines) = ("proxy_protocol = true", "head = \"2s\"");
    Setup { listen, wire: trusted, deadlines, ..Setup::route(upstream, "") }
}

const LOOPBACK: &str = "trusted = \"127.0.0.0/8\"";

/// A header of version 2.
fn block(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// Goal: the client is whom a trusted proxy names, by either version, in however many pieces; what it says for itself is its own; and
/// what stands behind the header is the first request.
#[test]
fn a_trusted_proxy_names_the_client() {
    let upstream = Serving::ok();
    let proxy = proxied(upstream.address(), LOOPBACK).start();
    let v6 = [&[0x20, 1, 0xD, 0xB8][..], &[0; 11], &[7], &[0; 20]].concat();
    let long = [&[192, 0, 2, 8][..], &[0; 8], &[0xE0, 4, 0], &[0; 1024]].concat();
    let many: Vec<(Vec<u8>, &str)> = vec![
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::9 ::1 8080 80\r\n".to_vec(), "2001:db8::9"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (block(0x21, 0x11, &long), "192.0.2.8"),
        (block(0x21, 0x21, &v6), "2001:db8::7"),
        (block(0x20, 0x00, b""), "127.0.0.1"),
    ];
    for (header, told) in many {
        for cut in [0, 1, 14, header.len() - 1, header.len()] {
            let mut client = proxy.client();
            client.send_bytes(&header[..cut]);
            proxied_rest(&proxy);
            client.send_bytes(&header[cut..]);
            client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n");
            assert_eq!(client.answer().text(), "ok");
            let heard = upstream.heard();
            let own = heard.last().unwrap().head.all("x-forwarded-for").join("|");
            assert!(own == told || own.ends_with(&format!(", {told}")), "{own} for {told}");
        }
    }
    proxy.finish();
}

/// Returns when the worker has seen what was sent before.
fn proxied_rest(proxy: &Proxy) {
    let mut client = proxy.client();
    client.send("PROXY UNKNOWN\r\nGET // HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status(), 400);
}

/// Goal: nobody gets in without a header, with half of one, with one that is none, or with one from whom nobody trusts; not a word is
/// said to them, and each is counted.
#[test]
fn nobody_gets_in_without_a_name() {
    let upstream = Serving::ok();
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let strange = block(0x21, 0x11, &[0; 11]);
    let header = "PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n";
    let proxy = proxied(upstream.address(), LOOPBACK).start();
    for begin in [b"".as_slice(), b"PROXY TCP4 192.0.2.7\r\n", &strange, b"PROXY \n"] {
        let mut client = proxy.client();
        client.send_bytes(&[begin, get.as_bytes()].concat());
        client.assert_ends();
    }
    assert_eq!(proxy.metric("breaker_proxy_protocol_refused_total"), 4.0);
    // The deadline of a head holds for what stands before it.
    let mut slow = proxy.client();
    slow.send("PROXY TCP4 192.0.2.7");
    slow.assert_ends();
    assert_eq!(proxy.metric("breaker_slow_heads_total"), 1.0);
    proxy.finish();
    let proxy = proxied(upstream.address(), "trusted = \"10.0.0.0/8\"").start();
    let mut client = proxy.client();
    client.send(&format!("{header}{get}"));
    client.assert_ends();
    assert_eq!(proxy.metric("breaker_proxy_protocol_refused_total"), 1.0);
    proxy.finish();
    assert!(upstream.heard().is_empty());
}

/// Goal: a client that a proxy names is counted by that name, and HTTP/2 may stand behind the header.
#[test]
fn a_named_client_is_counted_by_its_name() {
    let upstream = Serving::ok();
    let keys = "[[routes.keys]]\nname = \"peer\"\nfrom = \"peer\"\nlimit = [{ window = \"1/1h\" }]";
    let setup = Setup {
        rules: Setup::route(upstream.address(), keys).rules,
        ..proxied(upstream.address(), LOOPBACK)
    };
    let proxy = setup.start();
    for (name, status) in [("192.0.2.7", 200), ("192.0.2.7", 429), ("192.0.2.8", 200)] {
        let mut client = proxy.client();
        client.send(&format!(
            "PROXY TCP4 {name} 10.0.0.1 8080 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
        ));
        assert_eq!(client.answer().status(), status, "{name}");
    }
    let mut client = proxy.client();
    client.send("PROXY TCP4 192.0.2.9 10.0.0.1 8080 80\r\n");
    client.send_bytes(&h2_get());
    eventually("a call by HTTP/2", || (upstream.heard().len() == 3).then_some(()));
    drop(client);
    proxy.finish();
}

/// Goal: what an upstream says before its answer reaches a client of HTTP/1.1 at once and in order, without fields of the upstream's
/// connection; leave to send a body is given by us alone, and HTTP/1.0 is told nothing of it.
#[test]
fn interim_answers_reach_the_client() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let hints =
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-own\r\nX-Own: 1\r\n\r\n";
    for version in ["1.1", "1.0"] {
        let mut client = proxy.client();
        client.send(&format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"));
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 100 Continue\r\n\r\n");
        exchange.send(hints);
        if version == "1.1" {
            let told = client.head();
            assert_eq!((told.word(1), told.field("link")), ("103", Some("</a.css>")));
            assert_eq!(told.fields.len(), 1, "{told:?}");
        }
        exchange.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        if version == "1.1" {
            assert_eq!(client.head().word(1), "102");
        }
        assert_eq!(client.answer().text(), "ok");
    }
    // Too many are no answer.
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send(&hints.repeat(100));
    loop {
        let head = client.head();
        if head.word(1) != "103" {
            assert_eq!(head.word(1), "502");
            break;
        }
    }
    drop(client);
    proxy.finish();
}
