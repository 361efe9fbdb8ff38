//! HTTP/2 towards clients, frame by frame.

use super::support::upstream::{Serving, Upstream};
use super::support::wire::Wire;
use super::support::{Setup, eventually};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

/// `SETTINGS_INITIAL_WINDOW_SIZE` of 0: no stream may send before it is told.
const NO_ROOM: [u8; 6] = [0, 4, 0, 0, 0, 0];

/// One frame.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A client with these settings.
fn connect(address: SocketAddr, settings: &[u8]) -> Wire {
    let mut client = Wire::connect(address);
    begin(&mut client, settings);
    client
}

fn begin(client: &mut Wire, settings: &[u8]) {
    client.send_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.send_bytes(&frame(SETTINGS, 0, 0, settings));
}

/// A request without a body: `method` as HPACK has it in its static table, for `/`.
fn ask(client: &mut Wire, stream: u32, method: u8, ends: bool, more: &[(&str, &str)]) {
    let mut block = vec![method, 0x86, 0x84, 0x41, 1, b'a'];
    for (name, value) in more {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    client.send_bytes(&frame(HEADERS, if ends { 5 } else { 4 }, stream, &block));
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

fn next(client: &mut Wire) -> Option<Frame> {
    let head = client.exactly(9).ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let payload = client.exactly(usize::try_from(length).unwrap()).ok()?;
    Some(Frame { kind: head[3], flags: head[4], stream, payload })
}

/// All frames up to the answer to a ping that is sent now; whatever the proxy had to say before has come by then.
fn up_to_ping(client: &mut Wire) -> Vec<Frame> {
    client.send_bytes(&frame(PING, 0, 0, b"are-you?"));
    let mut frames = Vec::new();
    loop {
        let frame = next(client).expect("the connection ended");
        if frame.kind == PING && frame.flags == 1 && frame.payload == b"are-you?" {
            return frames;
        }
        frames.push(frame);
    }
}

/// All data of a stream among these frames.
fn data(frames: &[Frame], stream: u32) -> Vec<u8> {
    let own = frames.iter().filter(|frame| frame.kind == DATA && frame.stream == stream);
    own.flat_map(|frame| frame.payload.clone()).collect()
}

fn makes_room(client: &mut Wire, stream: u32, room: u32) {
    client.send_bytes(&frame(WINDOW_UPDATE, 0, stream, &room.to_be_bytes()));
}

/// Waits for the next frame of this kind.
fn until(client: &mut Wire, kind: u8) -> Frame {
    loop {
        let frame = next(client).expect("the connection ended");
        if frame.kind == kind {
            return frame;
        }
    }
}

/// Goal: at a cut an answer ends where its client has it: a piece that waits for the client to make room does not follow, be it of
/// an answer that still comes or of one that is whole, and streams of other scopes go on.
#[test]
fn a_cut_left_a_piece_of_an_http2_answer_to_its_client() {
    for whole in [true, false] {
        let upstream = Upstream::start();
        let keys =
            "keys = [{ name = \"client\", from = { header = \"x-client\" }, missing = \"share\" }]";
        let proxy = Setup::route(upstream.address(), keys).start();
        let mut client = connect(proxy.data(), &NO_ROOM);
        ask(&mut client, 1, GET, true, &[("x-client", "mad")]);
        let mut mad = upstream.accept();
        mad.request();
        ask(&mut client, 3, GET, true, &[("x-client", "calm")]);
        let mut calm = upstream.accept();
        calm.request();
        let length = if whole { 5 } else { 1000 };
        mad.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nhello"));
        assert_eq!(until(&mut client, HEADERS).stream, 1);
        calm.reply("there");
        assert_eq!(until(&mut client, HEADERS).stream, 3);
        up_to_ping(&mut client);
        proxy.rest();
        let kill = proxy.cut("/default/api/client=mad");
        assert_eq!(kill["in_flight"], 1);
        makes_room(&mut client, 1, 1000);
        makes_room(&mut client, 3, 1000);
        let mut frames = Vec::new();
        while !frames.iter().any(|frame: &Frame| frame.kind == DATA) {
            frames.extend(up_to_ping(&mut client));
        }
        assert_eq!(data(&frames, 1), b"", "whole: {whole}");
        let resets = |frame: &Frame| frame.kind == RST_STREAM && frame.stream == 1;
        assert!(frames.iter().any(resets), "whole: {whole}: {frames:?}");
        assert_eq!(data(&frames, 3), b"there");
        drop(client);
        proxy.finish();
    }
}

/// Goal: answers that wait for a client that reads nothing, or makes no room, are bounded over all of its streams, and nothing is lost
/// or stuck by that: who reads in the end gets all of them, and one stream with room is not stopped by those without.
#[test]
fn a_connection_held_a_piece_for_each_of_its_streams() {
    const LENGTH: usize = 300_000;
    let streams = || (0..8_u32).map(|index| index * 2 + 1);
    let upstream = Serving::start(|_| {
        let body = "x".repeat(LENGTH);
        format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n{body}")
    });
    for reads in [true, false] {
        let setup = Setup::route(upstream.address(), "");
        let proxy = Setup { bounds: "connection_bytes = \"64KiB\"", ..setup }.start();
        // Who reads nothing at first makes room for everything; who reads makes no room.
        let settings = if reads { NO_ROOM } else { [0, 4, 0x7F, 0xFF, 0xFF, 0xFF] };
        let mut client = Wire::connect_narrow(proxy.data());
        begin(&mut client, &settings);
        makes_room(&mut client, 0, 1 << 30);
        for stream in streams() {
            ask(&mut client, stream, GET, true, &[]);
        }
        eventually("a full connection", || {
            (proxy.metric("breaker_full_connections_total") > 0.0).then_some(())
        });
        if reads {
            for stream in streams().collect::<Vec<_>>().into_iter().rev() {
                makes_room(&mut client, stream, 1 << 20);
                assert_eq!(whole(&mut client, stream), LENGTH);
            }
        } else {
            let mut left: Vec<(u32, usize)> = streams().map(|stream| (stream, LENGTH)).collect();
            while !left.is_empty() {
                let frame = until(&mut client, DATA);
                let own = left.iter_mut().find(|(stream, _)| *stream == frame.stream).unwrap();
                own.1 -= frame.payload.len();
                if frame.flags & 1 == 1 {
                    assert_eq!(own.1, 0);
                    left.retain(|(stream, _)| *stream != frame.stream);
                }
            }
        }
        drop(client);
        proxy.finish();
    }
}

/// Goal: a cut ends an answer at once though others have left it no room on its connection: it waited for a client that reads nothing.
#[test]
fn a_cut_waited_for_room_on_a_full_connection() {
    let upstream = Upstream::start();
    let keys =
        "keys = [{ name = \"client\", from = { header = \"x-client\" }, missing = \"share\" }]";
    let setup = Setup::route(upstream.address(), keys);
    let proxy = Setup { bounds: "connection_bytes = \"64KiB\"", ..setup }.start();
    let mut client = Wire::connect_narrow(proxy.data());
    begin(&mut client, &[0, 4, 0x7F, 0xFF, 0xFF, 0xFF]);
    makes_room(&mut client, 0, 1 << 30);
    ask(&mut client, 1, GET, true, &[("x-client", "calm")]);
    let mut calm = upstream.accept();
    calm.request();
    calm.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    calm.fill(&[b'x'; 65_536]);
    let full = || proxy.metric("breaker_full_connections_total");
    let before = full();
    ask(&mut client, 3, GET, true, &[("x-client", "mad")]);
    let mut mad = upstream.accept();
    mad.request();
    mad.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello");
    eventually("an answer without room", || (full() > before).then_some(()));
    proxy.rest();
    let kill = proxy.cut("/default/api/client=mad");
    assert_eq!((&kill["in_flight"], &kill["severed"]), (&1.into(), &1.into()));
    eventually("the end of the call", || (proxy.status()["calls_open"] == 1).then_some(()));
    drop(client);
    assert_eq!(proxy.finish()["severed"], 1);
}

/// The length of an answer, which must come whole.
fn whole(client: &mut Wire, stream: u32) -> usize {
    let mut length = 0;
    loop {
        let frame = next(client).expect("the connection ended");
        if frame.stream == stream {
            assert_ne!(frame.kind, RST_STREAM);
            if frame.kind == DATA {
                length += frame.payload.len();
            }
            if frame.flags & 1 == 1 && matches!(frame.kind, DATA | HEADERS) {
                return length;
            }
        }
    }
}

/// Goal: a body that comes a byte at a time does not hold its call for longer than its bytes are worth.
#[test]
fn a_body_by_the_byte_held_its_http2_stream_for_ever() {
    let upstream = Upstream::start();
    let setup = Setup::route(upstream.address(), "");
    let deadlines = "body_idle = \"1s\"";
    let proxy = Setup { bounds: "upload_rate = \"16MiB/s\"", deadlines, ..setup }.start();
    let mut client = connect(proxy.data(), &[]);
    ask(&mut client, 1, POST, false, &[]);
    eventually("the end of the body", || {
        client.send_bytes(&frame(DATA, 0, 1, b"x"));
        let frames = up_to_ping(&mut client);
        frames.iter().any(|frame| frame.kind == HEADERS && frame.stream == 1).then_some(())
    });
    assert_eq!(proxy.metric("breaker_slow_uploads_total"), 1.0);
    drop(client);
    assert_eq!(proxy.finish()["upstream_errors"], 0, "no fault of the upstream");
}

/// Goal: a stream of messages comes as there is something to say: it is no slow upload.
#[test]
fn a_grpc_stream_of_few_messages_goes_on() {
    let upstream = Upstream::start();
    let setup = Setup::route(upstream.address(), "");
    let deadlines = "body_idle = \"1s\"";
    let proxy = Setup { bounds: "upload_rate = \"16MiB/s\"", deadlines, ..setup }.start();
    let mut client = connect(proxy.data(), &[]);
    ask(&mut client, 1, POST, false, &[("content-type", "application/grpc")]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        client.send_bytes(&frame(DATA, 0, 1, b"x"));
        let frames = up_to_ping(&mut client);
        assert!(frames.iter().all(|frame| frame.kind != HEADERS), "it ended");
    }
    client.send_bytes(&frame(DATA, 1, 1, b"x"));
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.reply("ok");
    until(&mut client, HEADERS);
    assert_eq!(proxy.metric("breaker_slow_uploads_total"), 0.0);
    drop(client);
    proxy.finish();
}

/// Goal: over HTTP/2, too, what an upstream says before its answer reaches the client; leave to send a body is given when the body is wanted,
/// not to a call that is refused, and what else is expected nobody can promise.
#[test]
fn interim_answers_reach_a_client_of_http2() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = connect(proxy.data(), &[]);
    ask(&mut client, 1, POST, false, &[("expect", "100-continue")]);
    let leave = until(&mut client, HEADERS);
    assert_eq!((leave.stream, leave.flags & 1), (1, 0));
    assert!(leave.payload.ends_with(b"100") || leave.payload.contains(&0x08), "{leave:?}");
    client.send_bytes(&frame(DATA, 1, 1, b"body"));
    let mut exchange = upstream.accept();
    let request = exchange.request();
    assert_eq!(request.text(), "body");
    assert!(request.head.all("expect").is_empty());
    exchange.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
    let hints = until(&mut client, HEADERS);
    assert_eq!((hints.stream, hints.flags & 1), (1, 0));
    exchange.reply("there");
    assert_eq!(until(&mut client, HEADERS).stream, 1);
    assert_eq!(until(&mut client, DATA).payload, b"there");
    ask(&mut client, 3, POST, false, &[("expect", "a-pony")]);
    assert_eq!(until(&mut client, HEADERS).stream, 3);
    proxy.halt("/");
    ask(&mut client, 5, POST, false, &[("expect", "100-continue")]);
    let refused = until(&mut client, HEADERS);
    assert_eq!(refused.stream, 5);
    let frames = up_to_ping(&mut client);
    assert!(
        !frames.iter().any(|frame| frame.kind == HEADERS),
        "one answer, and no leave before it"
    );
    drop(client);
    assert_eq!(proxy.finish()["invalid"], 1);
}
