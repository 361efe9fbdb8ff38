//! Connections that become WebSockets: only where a route says so, a request asks and the upstream agrees; and kills that end them.

use super::support::upstream::Upstream;
use super::support::wire::Wire;
use super::support::{Proxy, Setup, eventually};

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn setup(upstream: &Upstream) -> Setup {
    Setup::route(upstream.address(), "websocket = true")
}

/// A WebSocket, both ends of it.
fn opened(proxy: &Proxy, upstream: &Upstream) -> (Wire, Wire) {
    let mut client = proxy.client();
    client.send(ASK);
    let mut exchange = upstream.accept();
    exchange.head();
    exchange.send(AGREE);
    assert_eq!(client.head().word(1), "101");
    (client, exchange)
}

/// Goal: a request that asks goes up as one, the upstream's word comes down, and from then on bytes pass both ways as they are, whoever
/// speaks first and however much; the end of either is the end of both.
#[test]
fn a_websocket_passes_both_ways() {
    let upstream = Upstream::start();
    let proxy = setup(&upstream).start();
    let mut client = proxy.client();
    client.send(ASK);
    let mut exchange = upstream.accept();
    let head = exchange.head();
    assert_eq!(head.all("connection"), ["upgrade"]);
    assert_eq!(head.all("upgrade"), ["websocket"]);
    assert_eq!(head.field("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    exchange.send(&format!("{AGREE}at once"));
    let head = client.head();
    assert_eq!(head.word(1), "101");
    assert_eq!((head.all("connection"), head.all("upgrade")), (vec!["upgrade"], vec!["websocket"]));
    assert_eq!(head.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(client.exactly(7), Ok(b"at once".to_vec()));
    client.send("GET / HTTP/1.1\r\n\r\n");
    assert_eq!(exchange.exactly(18), Ok(b"GET / HTTP/1.1\r\n\r\n".to_vec()), "no HTTP any more");
    let large: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut client, &mut exchange];
        let mut writer = ends[from].writer();
        let sent = large.clone();
        let sender = std::thread::spawn(move || writer.send_bytes(&sent));
        assert!(ends[to].exactly(large.len()) == Ok(large.clone()));
        sender.join().unwrap();
    }
    assert_eq!(proxy.status()["calls_open"], 1);
    client.send("last words");
    drop(client);
    assert_eq!(exchange.exactly(10), Ok(b"last words".to_vec()));
    exchange.assert_ends();
    let (mut client, mut exchange) = opened(&proxy, &upstream);
    exchange.send("last words");
    drop(exchange);
    assert_eq!(client.exactly(10), Ok(b"last words".to_vec()));
    client.assert_ends();
    let accounts = proxy.finish();
    assert_eq!((&accounts["forwarded"], &accounts["upstream_errors"]), (&2.into(), &0.into()));
}

/// Goal: a halt and a cut both end a WebSocket, for the client and for the upstream, and what the client sends after the kill was
/// answered goes nowhere; a kill elsewhere does not touch it.
#[test]
fn a_kill_ends_a_websocket() {
    for cut in [false, true] {
        let upstream = Upstream::start();
        let mut setup = setup(&upstream);
        setup.rules.push_str(&format!(
            "[[routes]]\nname = \"other\"\nmatch = {{ path = \"/other\" }}\nupstream = \"http://{}\"\n",
            upstream.address()
        ));
        let proxy = setup.start();
        let (mut client, mut exchange) = opened(&proxy, &upstream);
        proxy.cut("/default/other");
        client.send("still there");
        assert_eq!(exchange.exactly(11), Ok(b"still there".to_vec()));
        let killed = if cut { proxy.cut("/default/api") } else { proxy.halt("/default/api") };
        assert_eq!(killed["severed"], 1, "{killed}");
        client.send("too late");
        assert_eq!(exchange.rest(), b"");
        assert_eq!(client.rest(), b"");
        assert_eq!(proxy.finish()["severed"], 1, "cut: {cut}");
    }
}

/// Goal: what was sent on the strength of a switch is no request if the switch is refused, and no other protocol is switched to.
#[test]
fn a_refused_switch_smuggles_nothing() {
    let upstream = Upstream::start();
    let proxy = setup(&upstream).start();
    let mut client = proxy.client();
    client.send(&format!("{ASK}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"));
    let mut exchange = upstream.accept();
    exchange.head();
    exchange.reply("no");
    assert_eq!(client.answer().text(), "no");
    client.assert_ends();
    for agreed in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n",
    ] {
        let mut client = proxy.client();
        client.send(ASK);
        assert!(exchange.head().start.starts_with("GET /ws "));
        exchange.send(agreed);
        assert_eq!(client.answer().status(), 502, "{agreed}");
        exchange.assert_ends();
        exchange = {
            let mut client = proxy.client();
            client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut next = upstream.accept();
            assert_eq!(next.head().word(1), "/next");
            next.reply("next");
            assert_eq!(client.answer().text(), "next");
            next
        };
    }
    proxy.finish();
}

/// Goal: where no route says so, and for what is no such request, nothing is switched: the fields that ask stay behind.
#[test]
fn nothing_is_switched_unasked() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send(ASK);
    let mut exchange = upstream.accept();
    let head = exchange.head();
    assert!(head.all("upgrade").is_empty() && head.all("connection").is_empty());
    exchange.send(AGREE);
    assert_eq!(client.answer().status(), 502);
    proxy.finish();
    let proxy = setup(&upstream).start();
    for ask in [
        ASK.replace("GET", "POST"),
        ASK.replace("WebSocket\r", "h2c\r"),
        ASK.replace("Connection: keep-alive, Upgrade", "Connection: close"),
    ] {
        let mut client = proxy.client();
        client.send(&ask);
        let mut exchange = upstream.accept();
        assert!(exchange.head().all("upgrade").is_empty(), "{ask}");
        exchange.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(client.answer().status(), 200);
    }
    proxy.finish();
}

/// Goal: a WebSocket through which nothing passes for too long is ended; one that is alive is not.
#[test]
fn a_silent_websocket_is_ended() {
    let upstream = Upstream::start();
    let proxy = Setup { deadlines: "tunnel = \"300ms\"", ..setup(&upstream) }.start();
    let (mut client, mut exchange) = opened(&proxy, &upstream);
    for _ in 0..3 {
        client.send("x");
        assert_eq!(exchange.exactly(1), Ok(b"x".to_vec()));
    }
    client.assert_ends();
    exchange.assert_ends();
    eventually("its end", || (proxy.status()["calls_open"] == 0).then_some(()));
    proxy.finish();
}
