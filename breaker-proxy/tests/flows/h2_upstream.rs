//! HTTP/2 towards the upstream: what passes and how, many calls on one connection, and that a kill takes out its own and no other's.

use super::balance::Names;
use super::support::h2::{Event, H2};
use super::support::h2_server::{DATA, Far, Grove, HEADERS, RESET, Said};
use super::support::tls::{Authority, Vault};
use super::support::upstream::Upstream;
use super::support::wire::{Answer, FULL_AFTER, Wire};
use super::support::{Dice, Proxy, Setup, eventually};
use hyper::Request;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;

/// `SETTINGS_HEADER_TABLE_SIZE`, `SETTINGS_MAX_CONCURRENT_STREAMS`, `SETTINGS_INITIAL_WINDOW_SIZE`.
const TABLE: u16 = 1;
const STREAMS: u16 = 3;
const WINDOW: u16 = 4;

/// Room that no test uses up.
const PLENTY: u32 = 1 << 30;

const CANCEL: [u8; 4] = [0, 0, 0, 8];
const REFUSED: u32 = 7;

/// Two routes, `/a/…` and `/b/…`, in front of the same upstream.
fn setup(upstream: SocketAddr, lines: &str) -> Setup {
    Setup::new(format!(
        "[[upstreams]]\nname = \"u\"\nendpoints = \"http://{upstream}\"\nprotocol = \"h2\"\n{lines}\n\
         [[routes]]\nname = \"a\"\nmatch = {{ path = \"/a/{{*rest}}\" }}\nupstream = \"u\"\n\
         [[routes]]\nname = \"b\"\nmatch = {{ path = \"/b/{{*rest}}\" }}\nupstream = \"u\"\n"
    ))
}

fn start(upstream: &Upstream) -> Proxy {
    setup(upstream.address(), "").start()
}

fn ask(proxy: &Proxy, path: &str) -> Wire {
    let mut client = proxy.client();
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
    client
}

fn post(proxy: &Proxy, path: &str, length: usize) -> Wire {
    let mut client = proxy.client();
    client.send(&format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n"));
    client
}

fn assert_killed(answer: &Answer, kill: &Value) {
    assert_eq!((answer.status(), answer.code()), (503, "killed".to_owned()));
    assert_eq!(answer.json()["id"], kill["id"]);
}

fn count(accounts: &Value, names: [&str; 3]) -> [u64; 3] {
    names.map(|name| accounts[name].as_u64().unwrap())
}

/// Goal: method, target, fields and body arrive as they were asked, and the answer with its fields, body and trailers, whichever version the
/// client speaks.
#[test]
fn a_call_passes_whole_in_both_directions() {
    let grove = Grove::start(|heard| Said {
        fields: vec![("x-own", "1"), ("x-own", "2"), ("server", "grove")],
        body: heard.body.clone(),
        trailers: Some(vec![("grpc-status", "0"), ("content-type", "evil")]),
    });
    let proxy = setup(grove.address(), "").start();
    let body = vec![b'x'; 300_000];
    let mut client = proxy.client();
    client.send(
        "POST /a/b%20c;d?x=1&y HTTP/1.1\r\nHost: h:81\r\nContent-Length: 300000\r\nX-Mine: 1\r\nX-Mine: 2\r\n\
         Connection: x-hop\r\nX-Hop: 1\r\nTE: trailers\r\nTrailer: t\r\n\r\n",
    );
    client.send_bytes(&body);
    let answer = client.answer();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.all("x-own"), ["1", "2"]);
    assert_eq!(answer.head.field("server"), Some("grove"));
    assert_eq!(answer.body, body);

    let client = H2::connect(proxy.data());
    let request = Request::post("http://h:81/a/b%20c;d?x=1&y").header("x-mine", "1");
    let mut stream = client.start(request.body(()).unwrap(), true);
    stream.feed(&body[..100_000]);
    stream.end();
    assert_eq!(stream.answer(), (200, body[..100_000].to_vec()));

    let heard = grove.heard();
    for one in &heard {
        let uri = &one.head.uri;
        assert_eq!(one.head.method, "POST");
        assert_eq!(uri.path_and_query().unwrap(), "/a/b%20c;d?x=1&y");
        assert_eq!((uri.scheme_str(), uri.authority().unwrap().as_str()), (Some("http"), "h:81"));
        let fields = &one.head.headers;
        assert_eq!(fields["te"], "trailers");
        assert_eq!(fields["x-forwarded-for"], "127.0.0.1");
        for absent in ["host", "connection", "x-hop", "trailer", "transfer-encoding"] {
            assert!(!fields.contains_key(absent), "{absent}: {fields:?}");
        }
    }
    assert_eq!(heard[0].head.headers["content-length"], "300000");
    let mine: Vec<_> = heard[0].head.headers.get_all("x-mine").iter().collect();
    assert_eq!(mine, ["1", "2"]);
    assert_eq!(grove.connections(), 1);
    drop(client);
    assert_eq!(proxy.finish()["forwarded"], 2);
}

/// Goal: trailers reach whoever asked for them, and none that could be taken for something else.
#[test]
fn trailers_pass() {
    let grove = Grove::start(|_| Said {
        fields: vec![("content-type", "application/grpc")],
        body: b"message".to_vec(),
        trailers: Some(vec![("grpc-status", "7"), ("content-type", "evil")]),
    });
    let proxy = setup(grove.address(), "").start();
    let mut client = proxy.client();
    client.send("GET /a/ HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: te, close\r\n\r\n");
    let text = String::from_utf8(client.rest()).unwrap();
    assert!(text.ends_with("message\r\n0\r\ngrpc-status: 7\r\n\r\n"), "{text}");
    assert_eq!(proxy.finish()["forwarded"], 1);
}

/// Goal: an answer without a body, to whatever was asked, is one: HEAD, 204, trailers alone.
#[test]
fn answers_without_a_body_have_none() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut client = proxy.client();
    client.send("HEAD /a/ HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut far = Far::accept(&upstream, &[]);
    let stream = far.request();
    far.head(stream, true);
    let head = client.head();
    assert_eq!(head.word(1), "200");
    client.send("GET /a/ HTTP/1.1\r\nHost: h\r\n\r\n");
    let stream = far.request();
    // 204, by the table that every side has.
    far.send(HEADERS, 5, stream, &[0x89]);
    assert_eq!(client.answer().status(), 204);
    client.send("GET /a/ HTTP/1.1\r\nHost: h\r\n\r\n");
    let stream = far.request();
    far.head(stream, true);
    let answer = client.answer();
    assert_eq!((answer.status(), answer.body.len()), (200, 0));
    assert_eq!(proxy.finish()["forwarded"], 3);
}

/// Goal: calls at once share one connection, and each gets its own answer, in whatever order they come.
#[test]
fn calls_share_a_connection() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut clients: Vec<Wire> = (0..20).map(|_| ask(&proxy, "/a/")).collect();
    let mut far = Far::accept(&upstream, &[]);
    let streams: Vec<u32> = (0..20).map(|_| far.request()).collect();
    assert!(streams.is_sorted() && streams[0] == 1);
    for stream in streams.iter().rev() {
        far.reply(*stream, &stream.to_string());
    }
    let mut words: Vec<u32> = Vec::new();
    words.extend(clients.iter_mut().map(|client| client.answer().text().parse::<u32>().unwrap()));
    words.sort_unstable();
    assert_eq!(words, streams);
    upstream.assert_nobody();
    assert_eq!(proxy.metric("breaker_endpoint_connects_total"), 1.0);
    drop(clients);
    assert_eq!(proxy.finish()["forwarded"], 20);
}

/// Goal: no head leans on one before it, whatever table the server offers: else one that is left out would take others with it.
/// Method: the same request again and again has the same bytes.
#[test]
fn heads_do_not_lean_on_each_other() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut client = proxy.client();
    let request = "GET /a/ HTTP/1.1\r\nHost: h\r\nX-Long: 0123456789abcdef\r\n\r\n";
    client.send(request);
    let mut far = Far::accept(&upstream, &[(STREAMS, 9), (TABLE, 8192)]);
    let mut blocks = Vec::new();
    for round in 0..4 {
        let came = far.next();
        assert_eq!(came.kind, HEADERS);
        far.reply(came.stream, "ok");
        assert_eq!(client.answer().text(), "ok");
        client.send(request);
        if round == 1 {
            far.settle(&[(TABLE, 4096)]);
        }
        blocks.push(came.payload);
    }
    let came = far.next();
    far.reply(came.stream, "ok");
    client.answer();
    // The first may say that the table has become none.
    let block = &blocks[1];
    assert!(blocks[2..].iter().all(|other| other.ends_with(block) || block.ends_with(other)));
    assert!(block.windows(4).any(|bytes| bytes.len() == 4) && block.len() > 40, "{block:?}");
    assert_eq!(proxy.finish()["forwarded"], 5);
}

/// Goal: both directions of a call flow at once, each as its side speaks.
#[test]
fn both_directions_flow_at_once() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let client = H2::connect(proxy.data());
    let mut stream = client.start(Request::post("http://h/a/").body(()).unwrap(), true);
    let mut far = Far::accept(&upstream, &[]);
    let id = far.request();
    far.head(id, false);
    stream.head();
    for word in ["one", "two", "three"] {
        stream.feed(word.as_bytes());
        let came = far.next();
        assert_eq!((came.kind, came.payload.as_slice()), (DATA, word.as_bytes()));
        far.data(id, word.as_bytes(), false);
        let Event::Data(data) = stream.next() else { panic!("no data") };
        assert_eq!(data, word);
    }
    stream.end();
    assert!(far.next().ends);
    far.data(id, b"", true);
    assert_eq!(stream.rest(), (Vec::new(), true));
    drop(client);
    assert_eq!(proxy.finish()["forwarded"], 1);
}

/// Goal: a body waits for the server's room, and an answer for the client's: nothing is held without bound, and nothing is lost.
#[test]
fn each_side_waits_for_the_other() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut client = post(&proxy, "/a/", 5);
    client.send("hello");
    let mut far = Far::accept(&upstream, &[(WINDOW, 2)]);
    let id = far.request();
    assert_eq!(far.next().payload, b"he");
    far.room(id, 2);
    assert_eq!(far.next().payload, b"ll");
    far.room(id, 100);
    let came = far.next();
    assert!(came.payload == b"o" && came.ends);
    far.head(id, false);
    // As much as there is room for; the client has not read a byte.
    far.data(id, &[b'x'; 16_384], false);
    far.data(id, &[b'x'; 16_384], true);
    assert_eq!(client.answer().body.len(), 32_768);
    assert_eq!(proxy.finish()["forwarded"], 1);
}

/// Goal: a call that is killed before its head has gone is answered, and the server never hears of it; the connection goes on with the calls
/// around it, a half-written frame of one of them included.
/// Method: another call's body fills every buffer, so that the head waits.
#[test]
fn a_killed_head_is_left_out_and_the_connection_goes_on() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut upload = proxy.client();
    upload.send("POST /b/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n");
    let mut far = Far::accept(&upstream, &[(WINDOW, PLENTY)]);
    far.room(0, PLENTY);
    let first = far.request();
    let mut writer = upload.writer();
    writer.fill(&[b'x'; 4096]);
    let mut waits = ask(&proxy, "/a/");
    eventually("a call that waits", || (proxy.account("in_flight") == 1).then_some(()));
    let kill = proxy.halt("/default/a");
    assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &0.into()));
    assert_killed(&waits.answer(), &kill);
    // The other call goes on, and so does the next one on the same connection.
    let mut next = ask(&proxy, "/b/");
    let second = loop {
        let came = far.next();
        match came.kind {
            DATA => assert_eq!(came.stream, first),
            HEADERS => break came.stream,
            other => panic!("{other}: {came:?}"),
        }
    };
    assert!(second > first);
    far.reply(second, "next");
    assert_eq!(next.answer().text(), "next");
    upstream.assert_nobody();
    far.reply(first, "first");
    assert_eq!(upload.answer().text(), "first");
    assert_eq!(proxy.metric("breaker_upstream_torn_total"), 0.0);
    drop((upload, writer));
    let accounts = proxy.finish();
    assert_eq!(count(&accounts, ["forwarded", "halted", "severed"]), [2, 1, 0]);
}

/// Goal: behind a server that stopped reading, a head waits with us, where a kill finds it, and not with the kernel, which would deliver it
/// whenever there is room.
#[cfg(target_os = "linux")]
#[test]
fn a_head_does_not_wait_in_the_kernel() {
    // More than a narrow receiver holds that reads nothing, and less than the kernel would hold for it besides.
    const LENGTH: usize = 400_000;
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut upload = post(&proxy, "/b/", LENGTH);
    let mut far = Far::accept(&upstream, &[(WINDOW, PLENTY)]);
    far.room(0, PLENTY);
    let first = far.request();
    far.wire.narrow();
    let mut writer = upload.writer();
    let sender = std::thread::spawn(move || writer.send_bytes(&vec![b'x'; LENGTH]));
    let (mut last, mut since) = (0, std::time::Instant::now());
    while last == 0 || since.elapsed() < FULL_AFTER {
        let now = far.wire.at_hand();
        if now != last {
            (last, since) = (now, std::time::Instant::now());
        }
    }
    let mut waits = ask(&proxy, "/a/");
    eventually("a call that waits", || (proxy.account("in_flight") == 1).then_some(()));
    let kill = proxy.halt("/default/a");
    assert_killed(&waits.answer(), &kill);
    let mut bytes = 0;
    while bytes < LENGTH {
        let came = far.next();
        assert_eq!(came.kind, DATA, "nothing of the killed call comes");
        bytes += came.payload.len();
    }
    sender.join().unwrap();
    far.reply(first, "first");
    assert_eq!(upload.answer().text(), "first");
    drop(upload);
    let accounts = proxy.finish();
    assert_eq!(count(&accounts, ["forwarded", "halted", "severed"]), [1, 1, 0]);
}

/// Goal: where a kill meets a frame of its call that is half written, the connection ends: the server never has that frame whole. Other
/// calls on it are told that their upstream broke off.
#[test]
fn a_killed_frame_that_is_half_written_ends_the_connection() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut other = ask(&proxy, "/a/");
    let mut far = Far::accept(&upstream, &[(WINDOW, PLENTY)]);
    far.room(0, PLENTY);
    far.request();
    let mut upload = proxy.client();
    upload.send("POST /b/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n");
    far.request();
    let mut writer = upload.writer();
    writer.fill(&[b'x'; 4096]);
    proxy.rest();
    let kill = proxy.halt("/default/b");
    assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &1.into()));
    assert_killed(&upload.answer(), &kill);
    assert_eq!(other.answer().status(), 502);
    while far.try_next().is_some_and(|came| came.kind == DATA) {}
    assert!(far.any().is_none());
    assert_eq!(proxy.metric("breaker_upstream_torn_total"), 1.0);
    // The next call has a connection of its own.
    let mut next = ask(&proxy, "/a/");
    let mut far = Far::accept(&upstream, &[]);
    let stream = far.request();
    far.reply(stream, "next");
    assert_eq!(next.answer().text(), "next");
    drop((upload, writer));
    let accounts = proxy.finish();
    assert_eq!(count(&accounts, ["forwarded", "halted", "severed"]), [3, 0, 1]);
    assert_eq!(accounts["upstream_errors"], 0, "the end was ours");
}

/// Goal: a halt ends an upload that still arrives: the server hears that the stream is taken back, and the connection goes on.
#[test]
fn a_halt_takes_back_an_upload() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut upload = post(&proxy, "/b/", 8);
    upload.send("half");
    let mut far = Far::accept(&upstream, &[]);
    let stream = far.request();
    assert_eq!(far.next().payload, b"half");
    proxy.rest();
    let kill = proxy.halt("/default/b");
    assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &1.into()));
    let came = far.next();
    assert_eq!((came.kind, came.stream, came.payload.as_slice()), (RESET, stream, &CANCEL[..]));
    upload.send("rest");
    assert_killed(&upload.answer(), &kill);
    let mut next = ask(&proxy, "/a/");
    let stream = far.request();
    far.reply(stream, "next");
    assert_eq!(next.answer().text(), "next");
    upstream.assert_nobody();
    drop(upload);
    let accounts = proxy.finish();
    assert_eq!(count(&accounts, ["forwarded", "halted", "severed"]), [2, 0, 1]);
}

/// Goal: what of an upload waits for the server's room is not sent after a halt, though room comes; and the room that others have is as it was.
#[test]
fn a_halted_upload_does_not_go_on_when_there_is_room() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut upload = post(&proxy, "/b/", 100);
    upload.send_bytes(&[b'x'; 100]);
    let mut far = Far::accept(&upstream, &[(WINDOW, 10)]);
    let stream = far.request();
    assert_eq!(far.next().payload.len(), 10);
    eventually("an upload that has come", || (proxy.account("forwarded") == 1).then_some(()));
    let kill = proxy.halt("/default/b");
    far.room(stream, 1000);
    let came = far.next();
    assert_eq!((came.kind, came.stream), (RESET, stream), "{kill}");
    assert_killed(&upload.answer(), &kill);
    let mut next = post(&proxy, "/a/", 3);
    next.send("all");
    let stream = far.request();
    assert_eq!(far.next().payload, b"all");
    far.reply(stream, "next");
    assert_eq!(next.answer().text(), "next");
    drop(upload);
    proxy.finish();
}

/// Goal: a halt lets an answer run out, a cut ends it: on both sides of us, and on no other stream.
#[test]
fn a_cut_ends_an_answer() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let client = H2::connect(proxy.data());
    let (cut, other) = (client.get("/b/"), client.get("/a/"));
    let mut far = Far::accept(&upstream, &[]);
    let (one, two) = (far.request(), far.request());
    for stream in [one, two] {
        far.head(stream, false);
        far.data(stream, b"begin", false);
    }
    for stream in [&cut, &other] {
        stream.head();
        assert!(matches!(stream.next(), Event::Data(_)));
    }
    let kill = proxy.halt("/default/b");
    assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &0.into()));
    far.data(one, b"still", false);
    assert!(matches!(cut.next(), Event::Data(_)));
    let kill = proxy.cut("/default/b");
    assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &1.into()));
    let came = far.next();
    assert_eq!((came.kind, came.stream), (RESET, one));
    assert!(matches!(cut.next(), Event::Broken));
    far.data(two, b"end", true);
    assert_eq!(other.rest(), (b"end".to_vec(), true));
    client.assert_up();
    drop((client, cut, other));
    let accounts = proxy.finish();
    assert_eq!(count(&accounts, ["forwarded", "halted", "severed"]), [2, 0, 1]);
}

/// Goal: a call that waits for a connection to be made is not sent after the kill.
#[test]
fn a_call_that_waits_for_hands_to_be_shaken_is_not_sent() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut waits = ask(&proxy, "/a/");
    let mut far = Far::greet(&upstream);
    let kill = proxy.halt("/default/a");
    assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &0.into()));
    assert_killed(&waits.answer(), &kill);
    assert_eq!(far.try_next(), None, "nobody waits for that connection any more");
    let accounts = proxy.finish();
    assert_eq!(count(&accounts, ["forwarded", "halted", "severed"]), [0, 1, 0]);
}

/// Goal: a client that leaves takes its stream with it, and no other's.
#[test]
fn a_client_that_leaves_takes_its_stream_along() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let leaves = ask(&proxy, "/a/");
    let mut far = Far::accept(&upstream, &[]);
    let stream = far.request();
    let mut stays = ask(&proxy, "/a/");
    let other = far.request();
    drop(leaves);
    let came = far.next();
    assert_eq!((came.kind, came.stream, came.payload.as_slice()), (RESET, stream, &CANCEL[..]));
    far.reply(other, "stays");
    assert_eq!(stays.answer().text(), "stays");
    drop(stays);
    assert_eq!(proxy.finish()["forwarded"], 2);
}

/// Goal: a server that goes away answers what it has; the next call goes to a new connection, and a GET that it never looked at is asked there
/// again.
#[test]
fn a_server_goes_away_in_good_order() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut first = ask(&proxy, "/a/");
    let mut far = Far::accept(&upstream, &[]);
    let one = far.request();
    let mut unseen = ask(&proxy, "/a/");
    let two = far.request();
    far.go_away(one);
    let mut next = Far::accept(&upstream, &[]);
    let again = next.request();
    next.reply(again, "again");
    assert_eq!(unseen.answer().text(), "again");
    far.reply(one, "first");
    assert_eq!(first.answer().text(), "first");
    assert!(two > one);
    // A request with a body is not sent twice.
    let mut body = post(&proxy, "/a/", 2);
    body.send("ab");
    let stream = next.request();
    next.next();
    next.reset(stream, REFUSED);
    assert_eq!(body.answer().status(), 502);
    let mut refused = ask(&proxy, "/a/");
    let stream = next.request();
    next.reset(stream, REFUSED);
    let stream = next.request();
    next.reset(stream, REFUSED);
    assert_eq!(refused.answer().status(), 502, "once more, and not for ever");
    assert_eq!(proxy.metric("breaker_resent_total"), 2.0);
    drop((first, unseen, body, refused));
    proxy.finish();
}

/// Goal: no more calls are on a connection than its server allows; the others get one of their own, and wait where there may be none.
#[test]
fn the_server_says_how_many() {
    let upstream = Upstream::start();
    let proxy =
        setup(upstream.address(), "connections = 2\nqueue = { calls = 1, wait = \"5s\" }").start();
    let mut clients = vec![ask(&proxy, "/a/")];
    let mut far = Far::accept(&upstream, &[(STREAMS, 1)]);
    let one = far.request();
    clients.push(ask(&proxy, "/a/"));
    let mut other = Far::accept(&upstream, &[(STREAMS, 1)]);
    let two = other.request();
    let mut waits = ask(&proxy, "/a/");
    eventually("a call that waits", || (proxy.account("in_flight") == 1).then_some(()));
    let busy = ask(&proxy, "/a/").answer();
    assert_eq!((busy.status(), busy.code()), (503, "upstream-busy".to_owned()));
    far.reply(one, "one");
    let three = far.request();
    far.reply(three, "three");
    assert_eq!(waits.answer().text(), "three");
    other.reply(two, "two");
    for (client, word) in clients.iter_mut().zip(["one", "two"]) {
        assert_eq!(client.answer().text(), word);
    }
    upstream.assert_nobody();
    drop((clients, waits));
    assert_eq!(proxy.finish()["forwarded"], 3);
}

/// Goal: a server that speaks something else is said to, and no call is left hanging.
#[test]
fn a_server_of_another_tongue_is_told_apart() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut client = ask(&proxy, "/a/");
    let mut wire = upstream.accept();
    wire.send("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code()), (502, "upstream-broken".to_owned()));
    drop((client, wire));
    proxy.finish();
}

/// Goal: over TLS it is agreed on, with a name and a certificate as ever; a server that does not agree is not called.
#[test]
fn over_tls_it_is_agreed_on() {
    const NAME: &str = "inside.example";
    let authority = Authority::new();
    let upstream = Upstream::start();
    let file = authority.file();
    let setup = Setup::new(format!(
        "[[upstreams]]\nname = \"u\"\nendpoints = \"https://{NAME}\"\nca = {file:?}\nprotocol = \"h2\"\n\
         [[routes]]\nname = \"a\"\nmatch = {{ path = \"/a/{{*rest}}\" }}\nupstream = \"u\"\n"
    ));
    let proxy = setup.start_with_names(Names::new(upstream.address()));
    let mut client = ask(&proxy, "/a/");
    let config = authority.server(NAME, None);
    let mut vault = Vault::accept(&upstream, &config);
    assert_eq!(vault.facts().1, b"h2");
    assert_eq!(vault.exactly(24), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // Settings, and an answer to what will be the first stream.
    vault.send([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    loop {
        let head = vault.exactly(9);
        vault.exactly(usize::from(head[1]) * 256 + usize::from(head[2]));
        if head[3] == HEADERS {
            break;
        }
    }
    vault.send([0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88]);
    vault.send([0, 0, 2, 0, 1, 0, 0, 0, 1, b'o', b'k']);
    assert_eq!(client.answer().text(), "ok");
    drop((client, vault));
    assert_eq!(proxy.finish()["forwarded"], 1);

    let mut old = Arc::unwrap_or_clone(authority.server(NAME, None));
    old.alpn_protocols = vec![b"http/1.1".to_vec()];
    let proxy = setup.start_with_names(Names::new(upstream.address()));
    let mut client = ask(&proxy, "/a/");
    drop(Vault::try_new(upstream.accept_stream(), &Arc::new(old)));
    assert_eq!(client.answer().status(), 502);
    drop(client);
    proxy.finish();
}

/// Goal: a check asks in HTTP/2, too.
#[test]
fn health_is_asked_for_in_http2() {
    let upstream = Upstream::start();
    let lines = "health = { path = \"/healthz\", every = \"1s\", fail = 1 }";
    let proxy = setup(upstream.address(), lines).start();
    let mut far = Far::accept(&upstream, &[]);
    let stream = far.request();
    // 500, by the table that every side has.
    far.send(HEADERS, 5, stream, &[0x8e]);
    eventually("a sick endpoint", || {
        (proxy.metric("breaker_endpoint_checks_failed_total") == 1.0).then_some(())
    });
    proxy.finish();
}

/// Goal: those who wait for the connection that a call is making get one of their own once that call is given up, though several wait: each of
/// them held what the others took for a connection still being made, for ever.
#[test]
fn waiters_for_a_connection_that_was_given_up_were_stuck() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let first = ask(&proxy, "/a/1");
    let silent = Far::greet(&upstream);
    let mut others: Vec<Wire> = (2..5).map(|number| ask(&proxy, &format!("/a/{number}"))).collect();
    proxy.rest();
    drop(first);
    let mut far = Far::accept(&upstream, &[]);
    for _ in 2..5 {
        let stream = far.request();
        far.reply(stream, "ok");
    }
    for client in &mut others {
        assert_eq!(client.answer().text(), "ok");
    }
    drop(silent);
    assert_eq!(proxy.finish()["failed"], 1);
}

/// Goal: a call that waits is told of room on whichever connection has some: it heard of the first alone, and was refused though the
/// second had room.
#[test]
fn a_call_that_waited_heard_of_one_connection_only() {
    let upstream = Upstream::start();
    let lines = "connections = 2\nqueue = { calls = 1, wait = \"5s\" }";
    let proxy = setup(upstream.address(), lines).start();
    let mut clients = vec![ask(&proxy, "/a/")];
    let mut far = Far::accept(&upstream, &[(STREAMS, 1)]);
    let one = far.request();
    clients.push(ask(&proxy, "/a/"));
    let mut other = Far::accept(&upstream, &[(STREAMS, 1)]);
    let two = other.request();
    let mut waits = ask(&proxy, "/a/");
    eventually("a call that waits", || (proxy.account("in_flight") == 1).then_some(()));
    other.reply(two, "two");
    let three = other.request();
    other.reply(three, "three");
    assert_eq!(waits.answer().text(), "three");
    far.reply(one, "one");
    for (client, word) in clients.iter_mut().zip(["one", "two"]) {
        assert_eq!(client.answer().text(), word);
    }
    drop((clients, waits));
    assert_eq!(proxy.finish()["forwarded"], 3);
}

/// Goal: a server that has stopped reading keeps no place: its connection was given up, and stayed, since it could not be said to
/// the server; every later call was refused for want of a place.
#[test]
fn a_server_that_stopped_reading_kept_its_place() {
    let upstream = Upstream::start();
    let mut setup =
        setup(upstream.address(), "connections = 1\nqueue = { calls = 9, wait = \"9s\" }");
    setup.deadlines = "answer = \"200ms\"\nbody_idle = \"3s\"";
    let proxy = setup.start();
    let mut upload = proxy.client();
    upload.send("POST /b/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n");
    let mut far = Far::accept(&upstream, &[(WINDOW, PLENTY)]);
    far.room(0, PLENTY);
    far.request();
    let mut writer = upload.writer();
    writer.fill(&[b'x'; 4096]);
    assert_eq!(ask(&proxy, "/a/").answer().status(), 504);
    drop((upload, writer));
    let mut next = ask(&proxy, "/a/");
    let mut new = Far::accept(&upstream, &[]);
    let stream = new.request();
    new.reply(stream, "next");
    assert_eq!(next.answer().text(), "next");
    drop(far);
    proxy.finish();
}

/// Goal: leave to send the body is not given once there is an answer: a second head in front of the end of a stream is a fault of ours, for
/// which clients end it.
#[test]
fn leave_to_send_was_given_after_the_answer() {
    let upstream = Upstream::start();
    let proxy = start(&upstream);
    let mut client = proxy.client();
    let mut asked = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // POST, http, `/a/`, `h`.
    let mut block = b"\x83\x86\x04\x03/a/\x01\x01h\0\x06expect\x0c100-continue".to_vec();
    asked.extend([0, 0, u8::try_from(block.len()).unwrap(), HEADERS, 4, 0, 0, 0, 1]);
    asked.append(&mut block);
    asked.extend(b"\0\0\x03\0\0\0\0\0\x01abc");
    client.send_bytes(&asked);
    let mut far = Far::accept(&upstream, &[(WINDOW, 1)]);
    let stream = far.request();
    assert_eq!(far.next().payload, b"a");
    far.head(stream, false);
    let mut client = Far { wire: client };
    assert_eq!(client.next().kind, HEADERS);
    far.room(stream, 100);
    assert_eq!(far.next().payload, b"bc");
    proxy.rest();
    far.data(stream, b"end", true);
    let came = client.next();
    assert_eq!((came.kind, came.payload.as_slice()), (DATA, &b"end"[..]));
    drop(client);
    proxy.finish();
}

/// Goal: over TLS, too, a call whose gate closed before its head went out is left out, and the connection goes on with the others: what was
/// encrypted before its gates were asked could not be left out any more, and took the connection along.
/// Method: two calls come at once, and the second trips the gate of both before any of it is written.
#[test]
fn a_call_that_tripped_its_gate_took_a_tls_connection_along() {
    const NAME: &str = "inside.example";
    let authority = Authority::new();
    let upstream = Upstream::start();
    let file = authority.file();
    let setup = Setup::new(format!(
        "[[upstreams]]\nname = \"u\"\nendpoints = \"https://{NAME}\"\nca = {file:?}\nprotocol = \"h2\"\n\
         [[routes]]\nname = \"a\"\nmatch = {{ path = \"/a/{{*rest}}\" }}\nupstream = \"u\"\n\
         limit = [{{ window = \"1/10s\", of = \"offered\", on_breach = \"trip\" }}]\n\
         [[routes]]\nname = \"b\"\nmatch = {{ path = \"/b/{{*rest}}\" }}\nupstream = \"u\"\n"
    ));
    let proxy = setup.start_with_names(Names::new(upstream.address()));
    let mut other = ask(&proxy, "/b/");
    let mut vault = Vault::accept(&upstream, &authority.server(NAME, None));
    vault.exactly(24);
    vault.send([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    loop {
        let head = vault.exactly(9);
        vault.exactly(usize::from(head[1]) * 256 + usize::from(head[2]));
        if head[3] == HEADERS {
            break;
        }
    }
    let mut asked = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in [1, 3] {
        // GET, http, `/a/`, `h`.
        asked.extend([0, 0, 10, HEADERS, 5, 0, 0, 0, stream]);
        asked.extend(b"\x82\x86\x04\x03/a/\x01\x01h");
    }
    let mut client = proxy.client();
    client.send_bytes(&asked);
    let mut client = Far { wire: client };
    for _ in 0..2 {
        assert_eq!(client.request() % 2, 1);
        assert_eq!(client.next().kind, DATA);
    }
    vault.send([0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]);
    assert_eq!(other.answer().status(), 200);
    assert_eq!(proxy.metric("breaker_upstream_torn_total"), 0.0);
    drop((client, other, vault));
    let accounts = proxy.finish();
    assert_eq!(count(&accounts, ["forwarded", "halted", "severed"]), [1, 2, 0]);
}

/// Goal: whatever a server does, and whenever its clients leave or a kill comes, each call ends in exactly one place of the accounts, and
/// nothing panics or stays.
#[test]
fn every_call_ends_whatever_the_server_does() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = setup(
        listener.local_addr().unwrap(),
        "connections = 3\nqueue = { calls = 20, wait = \"200ms\" }",
    );
    setup.deadlines = "answer = \"300ms\"\nbody_idle = \"500ms\"";
    std::thread::spawn(move || {
        for (seed, stream) in listener.incoming().enumerate() {
            let far = Far { wire: Wire::new(stream.unwrap()) };
            std::thread::spawn(move || rave(far, Dice::new(u64::try_from(seed).unwrap() * 7 + 3)));
        }
    });
    let proxy = setup.start();
    let mut dice = Dice::new(11);
    let mut waiting: Vec<Wire> = Vec::new();
    for round in 0..400 {
        let path = ["/a/", "/b/"][dice.roll(2)];
        let client = match dice.roll(4) {
            0 | 1 => ask(&proxy, path),
            2 => {
                let mut client = post(&proxy, path, 40_000);
                client.send_bytes(&vec![b'x'; 40_000]);
                client
            }
            _ => {
                let mut client = post(&proxy, path, 100);
                client.send_bytes(&[b'x'; 50]);
                client
            }
        };
        waiting.push(client);
        if waiting.len() > 12 {
            let index = dice.roll(waiting.len());
            let mut client = waiting.swap_remove(index);
            if dice.roll(2) == 0 {
                client.sip();
            }
        }
        if round % 25 == 24 {
            if dice.roll(2) == 0 {
                proxy.halt("/default/a")
            } else {
                proxy.cut("/default/a")
            };
            proxy.lift("/default/a");
        }
    }
    drop(waiting);
    let accounts = proxy.finish();
    assert!(accounts["forwarded"].as_u64().unwrap() > 0, "{accounts}");
}

/// A server that does what comes to its mind.
fn rave(mut far: Far, mut dice: Dice) {
    if far.wire.exactly(24).is_err() {
        return;
    }
    far.settle(&[(STREAMS, 1 + u32::try_from(dice.roll(9)).unwrap())]);
    while let Some(came) = far.any() {
        if came.kind != HEADERS {
            continue;
        }
        let stream = came.stream;
        match dice.roll(24) {
            0..8 => far.reply(stream, "ok"),
            8 => far.reset(stream, REFUSED),
            9 => far.reset(stream, 0),
            10 => far.go_away(stream.saturating_sub(2)),
            11 => return,
            12 => {
                far.head(stream, false);
                far.data(stream, b"half", false);
            }
            13 => far.head(stream + 2, true),
            14 => far.data(stream, b"no head", true),
            15 => {
                // 103, and so on.
                for _ in 0..20 {
                    far.send(HEADERS, 4, stream, b"\x08\x03103");
                }
            }
            16 => {
                far.head(stream, false);
                far.send(HEADERS, 5, stream, &[0x88]);
            }
            17 => far.room(stream, 0),
            18 => far.room(0, 0x7fff_ffff),
            19 => far.send(HEADERS, 0, stream, &[0x88]),
            20 => far.wire.send_bytes(&[0xff; 40]),
            21 => {
                for _ in 0..50 {
                    far.settle(&[(TABLE, 100), (WINDOW, 3)]);
                    far.send(6, 0, 0, b"12345678");
                    far.data(stream, b"", false);
                }
            }
            22 => far.send(HEADERS, 5, stream, b"\x88\x0f\x0d\x0299"),
            _ => {}
        }
    }
}
