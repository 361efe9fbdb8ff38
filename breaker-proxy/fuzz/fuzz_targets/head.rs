//! From the head of a request to its route: what is read, made canonical and written for the upstream is read there once more, by
//! us and by a second reader of lines, and means the same: one head, one host, one framing, the same route.
#![no_main]

use breaker_proxy::config::{Forwarded, Match};
use breaker_proxy::path::canonical;
use breaker_proxy::router::Router;
use breaker_proxy::wire::asked::Asked;
use breaker_proxy::wire::head::{Head, Room, Says};
use breaker_proxy::wire::request::{self, Framing, Ours};
use hyper::Method;
use hyper::http::uri::Authority;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

const ROOM: Room = Room { bytes: 32 * 1024, fields: 100 };
/// What the upstream reads may have become longer by the fields of ours.
const WIDE: Room = Room { bytes: 1024 * 1024, fields: 200 };

static ROUTER: LazyLock<Router> = LazyLock::new(|| {
    let route = |host: Option<&str>, methods: &[Method], path: &str| Match {
        host: host.map(str::to_owned),
        methods: methods.to_vec(),
        path: path.to_owned(),
    };
    let routes = [
        route(None, &[], "/a"),
        route(None, &[Method::POST], "/a/{id}"),
        route(None, &[], "/a/{id}/b"),
        route(None, &[Method::GET], "/{*rest}"),
        route(Some("a"), &[], "/a/{*rest}"),
        route(Some("[::1]"), &[], "/{*rest}"),
    ];
    let numbered: Vec<(usize, &Match)> = routes.iter().enumerate().collect();
    Router::build(&numbered).expect("routes that differ")
});

type Field = (String, Vec<u8>);

fn fields(asked: &Asked<'_>) -> Vec<Field> {
    asked.fields.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
}

/// The fields of a head by a reader of its own: lines that end in CR LF, names up to the first colon.
fn lines(head: &[u8]) -> Vec<Field> {
    let text: Vec<u8> = head.strip_suffix(b"\r\n\r\n").expect("an empty line ends it").to_vec();
    let mut lines = Vec::new();
    let mut rest = &text[..];
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let field = |line: &&[u8]| {
        let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
        let name = String::from_utf8(line[..colon].to_ascii_lowercase()).expect("ASCII");
        let value = &line[colon + 1..];
        let from = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
        let to = value.iter().rposition(|byte| !blank(byte)).map_or(from, |at| at + 1);
        assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{line:?}");
        (name, value[from..to].to_vec())
    };
    lines.iter().skip_while(|line| line.is_empty()).skip(1).map(field).collect()
}

fn framing(fields: &[Field]) -> (usize, usize) {
    let count = |name: &str| fields.iter().filter(|(own, _)| own == name).count();
    (count("content-length"), count("transfer-encoding"))
}

fn authority(named: &[u8]) -> Option<Authority> {
    let host = Authority::try_from(named).ok()?;
    let behind = host.as_str().strip_prefix(host.host()).unwrap_or_default();
    let good = !host.as_str().contains('@') && !host.host().is_empty();
    (good && (behind.is_empty() || host.port_u16().is_some())).then_some(host)
}

fuzz_target!(|input: &[u8]| {
    let (mut text, mut places) = (input.to_vec(), Vec::new());
    let Ok(Some(head)) = Head::read(&mut text, &mut places, ROOM) else { return };
    let Says { length, is_11, framing: body, .. } = head.says;
    // Cut anywhere it is waited for, never taken for another.
    let cut = input.len() * 7 % length;
    let (mut part, mut other) = (input[..cut].to_vec(), Vec::new());
    assert!(matches!(Head::read(&mut part, &mut other, ROOM), Ok(None)), "cut at {cut}");
    // What comes behind it changes nothing.
    let (mut alone, mut other) = (input[..length].to_vec(), Vec::new());
    let again = Head::read(&mut alone, &mut other, ROOM);
    assert!(matches!(again, Ok(Some(again)) if again.says == head.says));
    let asked = head.asked(&text, &places);
    let all = fields(&asked);
    assert_eq!(all, lines(&text[..length]));
    let (lengths, codings) = framing(&all);
    match body {
        Framing::Chunked => assert!(is_11 && codings == 1),
        Framing::Length(_) => assert!(codings == 0 && lengths > 0),
        Framing::None => assert!(codings == 0),
    }
    let (hosts, named) = asked.fields.host();
    if hosts > 1 || asked.method == Method::CONNECT || asked.method == Method::TRACE {
        return;
    }
    let Some(host) = asked.authority.map(str::as_bytes).or(named).and_then(authority) else {
        return;
    };
    let Ok(path) = canonical(asked.path) else { return };
    let route = ROUTER.find(Some(host.host()), &asked.method, &path);
    let peer = "192.0.2.7".parse().expect("an address");
    let switches = body == Framing::None && asked.wants_websocket();
    let ours = Ours {
        host: host.as_str(),
        path: &path,
        framing: body,
        switches,
        forwarded: Forwarded::Both,
        plain: false,
        request_id: None,
        secure: false,
        trusted: false,
        peer,
        peer_text: "192.0.2.7",
    };
    let mut sent = Vec::new();
    request::write(&mut sent, &asked, &ours);
    let (mut heard, mut places) = (sent.clone(), Vec::new());
    let up =
        Head::read(&mut heard, &mut places, WIDE).expect("ours is a head").expect("a whole one");
    assert_eq!(up.says.length, sent.len(), "one head, and nothing behind it");
    assert_eq!((up.says.is_11, up.says.framing, up.says.closes), (true, body, false));
    let upstream = up.asked(&heard, &places);
    assert_eq!(upstream.method, asked.method);
    assert_eq!((upstream.authority, upstream.path, upstream.query), (None, &*path, asked.query));
    let all = fields(&upstream);
    assert_eq!(all, lines(&sent));
    let (lengths, codings) = framing(&all);
    assert!(lengths + codings <= 1, "the body is framed once");
    assert_eq!(codings == 1, body == Framing::Chunked);
    let (hosts, named) = upstream.fields.host();
    assert_eq!((hosts, named), (1, Some(host.as_str().as_bytes())));
    assert_eq!(upstream.wants_websocket(), switches);
    let there = authority(host.as_str().as_bytes()).expect("it was one");
    assert_eq!(ROUTER.find(Some(there.host()), &upstream.method, upstream.path), route);
});
