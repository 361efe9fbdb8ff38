//! Upstreams over TLS: who is believed, what an end means, and that a kill reaches what is encrypted, too.

use super::balance::Names;
use super::support::tls::{Authority, Vault};
use super::support::upstream::Upstream;
use super::support::wire::{End, Wire};
use super::support::{Proxy, Setup, eventually};
use rustls::{HandshakeKind, ServerConfig};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const NAME: &str = "inside.example";

/// An upstream, and who vouches for it.
struct House {
    authority: Authority,
    upstream: Upstream,
    config: Arc<ServerConfig>,
}

impl House {
    fn new() -> House {
        let authority = Authority::new();
        let config = authority.server(NAME, None);
        House { authority, upstream: Upstream::start(), config }
    }

    fn setup(&self, lines: &str) -> Setup {
        let file = self.authority.file();
        Setup::new(format!(
            "[[upstreams]]\nname = \"u\"\nendpoints = \"https://{NAME}\"\nca = {file:?}\n{lines}\n\
             [[routes]]\nname = \"api\"\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"u\"\n"
        ))
    }

    fn start(&self, setup: &Setup) -> Proxy {
        setup.start_with_names(Names::new(self.upstream.address()))
    }

    fn accept(&self) -> Vault {
        Vault::accept(&self.upstream, &self.config)
    }
}

fn ask(proxy: &Proxy, path: &str) -> Wire {
    let mut client = proxy.client();
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client
}

/// Goal: a server that proves who it is is called by its name, in HTTP/1.1, over one connection for call after call; session
/// tickets that come in between are no surplus.
#[test]
fn a_server_that_proves_itself_is_called() {
    let house = House::new();
    let proxy = house.start(&house.setup(""));
    let mut client = ask(&proxy, "/0");
    let mut vault = house.accept();
    let (name, protocol, _) = vault.facts();
    assert_eq!((name.as_deref(), protocol.as_slice()), (Some(NAME), b"http/1.1".as_slice()));
    for number in 0..5 {
        assert_eq!(vault.head().word(1), format!("/{number}"));
        vault.reply("ok");
        assert_eq!(client.answer().text(), "ok");
        client.send(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", number + 1));
    }
    vault.head();
    vault.reply("last");
    assert_eq!(client.answer().text(), "last");
    house.upstream.assert_nobody();
    assert_eq!(proxy.metric("breaker_endpoint_connects_total"), 1.0);
    drop(client);
    assert_eq!(proxy.finish()["forwarded"], 6);
    assert_eq!(vault.end(), Some(true), "an idle connection says that it ends");
}

/// Goal: bodies of any length pass whole in both directions, framed either way.
#[test]
fn bodies_pass_whole() {
    let house = House::new();
    let proxy = house.start(&house.setup(""));
    let body: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let mut client = proxy.client();
    let mut vault: Option<Vault> = None;
    for chunked in [false, true] {
        let (length, sent) = (body.len(), body.clone());
        let mut writer = client.writer();
        let sender = std::thread::spawn(move || {
            writer.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
            writer.send_bytes(&sent);
        });
        let vault = vault.get_or_insert_with(|| house.accept());
        vault.head();
        assert!(vault.exactly(length) == body, "the upload");
        sender.join().unwrap();
        if chunked {
            vault.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            for piece in body.chunks(100_000) {
                vault.send(format!("{:x}\r\n", piece.len()));
                vault.send(piece);
                vault.send("\r\n");
            }
            vault.send("0\r\n\r\n");
        } else {
            vault.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"));
            vault.send(&body);
        }
        let answer = client.answer();
        assert!(answer.body == body && answer.end == End::Whole, "the download");
    }
    proxy.finish();
}

/// Goal: a certificate for another name, of an issuer that nobody vouches for, or of last year, and a server that speaks no
/// TLS, are all refused before a byte of the call is sent; each is told apart from a server that is not there, and counted.
#[test]
fn a_server_that_proves_nothing_is_sent_nothing() {
    let house = House::new();
    let stranger = Authority::new();
    let rule = "mark_down = { after = 1000 }";
    for (what, config) in [
        ("another name", house.authority.server("outside.example", None)),
        ("another issuer", stranger.server(NAME, None)),
        ("expired", house.authority.server(NAME, Some(2001))),
    ] {
        let proxy = house.start(&house.setup(rule));
        let mut client = ask(&proxy, "/secret");
        let refused = match Vault::try_new(house.upstream.accept_stream(), &config) {
            Ok(mut vault) => vault.try_head().is_none(),
            Err(_) => true,
        };
        assert!(refused, "{what}: was sent the call");
        let answer = client.answer();
        assert_eq!(
            (answer.status(), answer.code().as_str()),
            (502, "upstream-untrusted"),
            "{what}"
        );
        assert_eq!(proxy.metric("breaker_endpoint_handshake_failures_total"), 1.0);
        assert_eq!(proxy.finish()["failed"], 1);
    }
    let proxy = house.start(&house.setup(rule));
    let mut client = ask(&proxy, "/secret");
    let mut plain = house.upstream.accept();
    plain.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-untrusted"));
    let heard = plain.rest();
    assert!(!heard.windows(6).any(|window| window == b"secret"), "in clear");
    proxy.finish();
}

/// Goal: a handshake that never ends is given up with the connect deadline.
#[test]
fn a_handshake_has_an_end() {
    let house = House::new();
    let setup = Setup { deadlines: "connect = \"200ms\"", ..house.setup("") };
    let proxy = house.start(&setup);
    let mut client = ask(&proxy, "/");
    let silent = house.upstream.accept();
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream-timeout"));
    drop(silent);
    assert_eq!(proxy.finish()["failed"], 1);
}

/// Goal: an answer that ends with its connection is whole only if that end was said: anybody between could cut it short.
#[test]
fn an_end_that_was_not_said_is_none() {
    for said in [true, false] {
        let house = House::new();
        let proxy = house.start(&house.setup(""));
        let mut client = ask(&proxy, "/");
        let mut vault = house.accept();
        vault.head();
        vault.send("HTTP/1.1 200 OK\r\n\r\nwords");
        let head = client.head();
        if said {
            vault.say_end();
        } else {
            drop(vault);
        }
        let (body, end) = client.body(&head, true);
        let expected = if said { End::Whole } else { End::Broken };
        assert_eq!((body.as_slice(), end), (b"words".as_slice(), expected));
        assert_eq!(proxy.finish()["upstream_errors"], u64::from(!said));
    }
}

/// Goal: a second connection takes up the first one's session.
#[test]
fn sessions_are_taken_up_again() {
    let house = House::new();
    let proxy = house.start(&house.setup(""));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut client = ask(&proxy, "/");
        let mut vault = house.accept();
        vault.head();
        assert_eq!(vault.facts().2, kind);
        vault.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
        assert_eq!(client.answer().text(), "ok");
    }
    proxy.finish();
}

/// Goal: bytes beyond an answer poison nobody, encrypted or not: the next call has a connection of its own. Nor does a
/// connection that said its end carry another.
#[test]
fn surplus_and_ends_are_seen_on_idle_connections() {
    for surplus in [true, false] {
        let house = House::new();
        let proxy = house.start(&house.setup(""));
        let mut client = ask(&proxy, "/first");
        let mut vault = house.accept();
        vault.head();
        vault.reply("first");
        assert_eq!(client.answer().text(), "first");
        let held = if surplus {
            vault.reply("poison");
            Some(vault)
        } else {
            vault.say_end();
            None
        };
        client.send("GET /second HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut second = house.accept();
        assert_eq!(second.head().word(1), "/second");
        second.reply("second");
        assert_eq!(client.answer().text(), "second");
        drop(held);
        assert_eq!(proxy.finish()["upstream_errors"], 0);
    }
}

/// Goal: an upload that still arrives is ended by a halt, and what is encrypted of it and waits for the kernel goes nowhere: the upstream
/// meets a reset and never has it whole.
/// Method: the upstream reads nothing until the kill is answered, so that every buffer between is full.
#[test]
fn a_stuck_upload_is_not_sent_after_the_kill() {
    for level in ["halt", "cut"] {
        let house = House::new();
        let proxy = house.start(&house.setup(""));
        let mut client = proxy.client();
        let length = 256 * 1024 * 1024;
        client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        let mut vault = house.accept();
        client.fill(&[b'x'; 64 * 1024]);
        proxy.rest();
        let kill = if level == "halt" { proxy.halt("/") } else { proxy.cut("/") };
        assert_eq!((&kill["silent"], &kill["severed"]), (&true.into(), &1.into()));
        if vault.try_head().is_some() {
            assert!(vault.exactly(length).len() < length, "{level}: it has it whole");
        }
        assert_eq!(client.try_answer().map(|answer| answer.status()), Some(503));
        let accounts = proxy.finish();
        assert_eq!((&accounts["forwarded"], &accounts["severed"]), (&1.into(), &1.into()));
    }
}

/// Goal: a small upload that still arrives is broken off by a reset, and not by an end that could be believed.
#[test]
fn a_halt_ends_an_upload_by_a_reset() {
    let house = House::new();
    let proxy = house.start(&house.setup(""));
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf");
    let mut vault = house.accept();
    vault.head();
    assert_eq!(vault.exactly(4), b"half");
    proxy.rest();
    let kill = proxy.halt("/");
    assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &1.into()));
    client.send("rest");
    assert_eq!(client.answer().code(), "killed");
    assert_eq!(vault.end(), None);
    proxy.finish();
}

/// Goal: a call whose hands are being shaken while its scope is killed is never sent, lifted in the meantime or not.
#[test]
fn a_call_that_waits_for_a_handshake_is_not_sent_after_the_kill() {
    for lifted in [false, true] {
        let house = House::new();
        let proxy = house.start(&Setup { deadlines: "connect = \"9s\"", ..house.setup("") });
        let mut client = ask(&proxy, "/waiting");
        let stream = house.upstream.accept_stream();
        let kill = proxy.halt("/");
        assert_eq!((&kill["in_flight"], &kill["silent"]), (&1.into(), &true.into()));
        if lifted {
            proxy.lift("/");
        }
        let mut vault = Vault::try_new(stream, &house.config).unwrap();
        assert_eq!(client.answer().code(), if lifted { "stale" } else { "killed" });
        assert_eq!(vault.try_head(), None);
        let accounts = proxy.finish();
        assert_eq!((&accounts["halted"], &accounts["forwarded"]), (&1.into(), &0.into()));
    }
}

/// Goal: under load, uploads among it, the upstream sees no request begin after a kill was answered.
/// Method: clients call without pause on both workers; what the upstream reads while the scope is killed and nothing is under way
/// is late.
#[test]
fn nothing_is_sent_after_the_answer_to_a_kill() {
    let house = House::new();
    let (killed, late, heard) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let proxy = house.start(&Setup { workers: 2, ..house.setup("") });
    std::thread::scope(|scope| {
        let (killed, late, heard, stop) = (&killed, &late, &heard, &stop);
        let serve = move |mut vault: Vault| {
            while let Some(head) = vault.try_head() {
                // ordering: sequentially consistent, it stands beside sockets.
                if killed.load(Ordering::SeqCst) {
                    late.store(true, Ordering::SeqCst);
                }
                heard.fetch_add(1, Ordering::SeqCst);
                let length = head.field("content-length").map_or(0, |text| text.parse().unwrap());
                if vault.exactly(length).len() < length {
                    return;
                }
                vault.reply("ok");
            }
        };
        let (upstream, config) = (house.upstream, &house.config);
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let Some(stream) = upstream.try_accept_stream() else { continue };
                scope.spawn(move || Vault::try_new(stream, config).map(serve));
            }
        });
        let address = proxy.data();
        for caller in 0..6 {
            scope.spawn(move || {
                let body = vec![b'x'; 100_000];
                let mut client = Wire::connect(address);
                while !stop.load(Ordering::SeqCst) {
                    if caller % 2 == 0 {
                        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                    } else {
                        let length = body.len();
                        client.send(&format!(
                            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
                        ));
                        client.send_bytes(&body);
                    }
                    let answer = client.try_answer();
                    // Once it stops nobody can connect any more.
                    let again = || TcpStream::connect(address).map(Wire::new);
                    match answer {
                        Some(answer) if answer.status() == 200 => {}
                        // The upstream stops before the clients do.
                        _ if stop.load(Ordering::SeqCst) => break,
                        // With an upload refused half-way its connection ends.
                        Some(answer) => {
                            assert_eq!(answer.status(), 503, "{}", answer.text());
                            let Ok(next) = again() else { break };
                            client = next;
                        }
                        None => {
                            let Ok(next) = again() else { break };
                            client = next;
                        }
                    }
                }
            });
        }
        for round in 0..10 {
            let before = heard.load(Ordering::SeqCst);
            eventually("traffic", || (heard.load(Ordering::SeqCst) > before + 20).then_some(()));
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
        stop.store(true, Ordering::SeqCst);
        // Servers end with their connections, and those with the proxy.
        proxy.finish();
    });
}

/// Goal: health checks speak TLS, too.
#[test]
fn checks_speak_tls() {
    let house = House::new();
    let rule = "health = { path = \"/healthz\", every = \"1s\", fail = 1, pass = 1 }";
    let proxy = house.start(&house.setup(rule));
    for (status, up) in [("500 Ill", 0.0), ("200 Well", 1.0)] {
        let mut vault = house.accept();
        assert_eq!(vault.head().word(1), "/healthz");
        vault.send(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"));
        eventually("the finding", || (proxy.metric("breaker_endpoint_up") == up).then_some(()));
    }
    proxy.finish();
}

/// Goal: a file of authorities that is not there, or holds none, stops the start and is told by its key.
#[test]
fn an_authority_that_is_none_stops_the_start() {
    let house = House::new();
    let setup = house.setup("");
    std::fs::write(house.authority.file(), "words").unwrap();
    let text = setup.rules.clone();
    let refused = |setup: &Setup| {
        let room = super::support::room();
        setup.try_start(&room.path().join("state")).err().unwrap().to_string()
    };
    let said = refused(&setup);
    assert!(
        said.starts_with("upstreams.u.ca: ") && said.contains("holds no certificate"),
        "{said}"
    );
    let gone = text.replace("ca.pem", "gone.pem");
    let said = refused(&Setup::new(gone));
    assert!(said.starts_with("upstreams.u.ca: ") && said.contains("cannot be read"), "{said}");
}
