//! Which fields pass to the upstream, from both versions of HTTP, against the rules written a second time: what belongs to the
//! connection stays, what tells of the client is ours alone, everything else passes in its order.
#![no_main]

use breaker_proxy::config::Forwarded;
use breaker_proxy::wire::asked::{Asked, Fields};
use breaker_proxy::wire::head::{Head, Room};
use breaker_proxy::wire::request::{self, Framing, Ours};
use hyper::Method;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const ROOM: Room = Room { bytes: 1024 * 1024, fields: 400 };

type Field = (String, Vec<u8>);

fn trimmed(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let from = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let to = value.iter().rposition(|byte| !blank(byte)).map_or(from, |at| at + 1);
    &value[from..to]
}

/// RFC 9110, 7.6.1, and what is ours: names as a server sees them that turns fields into variables.
fn stays(name: &str) -> bool {
    let hop = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ];
    let ours = ["host", "content-length", "expect", "forwarded", "x-real-ip"];
    let is_ours = |name: &str| {
        hop.contains(&name) || ours.contains(&name) || name.starts_with("x-forwarded-")
    };
    is_ours(name)
        || is_ours(&name.replace('_', "-"))
        || (name.contains('_') && name.replace('_', "-") == "cookie")
}

/// What must arrive of the client's own words.
fn expected(fields: &[Field], http2: bool) -> Vec<Field> {
    let mut named: Vec<String> = Vec::new();
    for (_, value) in fields.iter().filter(|(name, _)| name == "connection") {
        for token in value.split(|byte| *byte == b',') {
            let token = String::from_utf8_lossy(token.trim_ascii()).to_ascii_lowercase();
            // These may not be removed by naming them.
            if !["authorization", "cookie", ""].contains(&&*token) {
                named.push(token);
            }
        }
    }
    let passes = |name: &str| !stays(name) && !named.iter().any(|token| token == name);
    let mut left: Vec<Field> = fields.iter().filter(|(name, _)| passes(name)).cloned().collect();
    if http2 {
        let is_cookie = |field: &&Field| field.0 == "cookie";
        let pieces: Vec<&[u8]> =
            left.iter().filter(is_cookie).map(|(_, value)| &value[..]).collect();
        let whole = pieces.join(&b"; "[..]);
        let any = !pieces.is_empty();
        left.retain(|(name, _)| name != "cookie");
        if any {
            left.push(("cookie".to_owned(), trimmed(&whole).to_vec()));
        }
    }
    left
}

fn check(asked: &Asked<'_>, mode: Forwarded) {
    let given: Vec<Field> = asked
        .fields
        .iter()
        .map(|(name, value)| (name.to_owned(), trimmed(value).to_vec()))
        .collect();
    let ours = Ours {
        host: "host.test:81",
        path: "/p",
        framing: Framing::Length(3),
        switches: false,
        plain: false,
        forwarded: mode,
        request_id: None,
        secure: true,
        peer: "2001:db8::1".parse().expect("an address"),
        peer_text: "2001:db8::1",
    };
    let mut sent = Vec::new();
    request::write(&mut sent, asked, &ours);
    let mut places = Vec::new();
    let head =
        Head::read(&mut sent, &mut places, ROOM).expect("ours is a head").expect("a whole one");
    assert_eq!((head.says.length, head.says.framing), (sent.len(), Framing::Length(3)));
    let there = head.asked(&sent, &places);
    let all = there.fields.iter().map(|(name, value)| (name.to_owned(), value.to_vec()));
    let (own, mut theirs): (Vec<Field>, Vec<Field>) = all.partition(|(name, _)| stays(name));
    let own: Vec<(&str, &[u8])> = own.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut wanted: Vec<(&str, &[u8])> = vec![("host", b"host.test:81")];
    if matches!(mode, Forwarded::XForwarded | Forwarded::Both) {
        wanted.push(("x-forwarded-for", b"2001:db8::1"));
        wanted.push(("x-forwarded-proto", b"https"));
        wanted.push(("x-forwarded-host", b"host.test:81"));
    }
    if matches!(mode, Forwarded::Forwarded | Forwarded::Both) {
        wanted.push(("forwarded", b"for=\"[2001:db8::1]\";host=\"host.test:81\";proto=https"));
    }
    let mut codings = asked.fields.iter().filter(|(name, _)| *name == "te");
    if codings.any(|(_, value)| {
        value.split(|byte| *byte == b',').any(|own| own.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    }) {
        wanted.extend([("te", &b"trailers"[..]), ("connection", b"te")]);
    }
    wanted.push(("content-length", b"3"));
    assert_eq!(own, wanted);
    let mut expected = expected(&given, asked.http2);
    if asked.http2 {
        // A map keeps the order within a name, and no other.
        expected.sort();
        theirs.sort();
    }
    assert_eq!(theirs, expected);
}

// The first byte chooses the fields that tell of the client; then one field on each line.
fuzz_target!(|input: &[u8]| {
    let Some((choice, text)) = input.split_first() else { return };
    let mode = match choice % 4 {
        0 => Forwarded::XForwarded,
        1 => Forwarded::Forwarded,
        2 => Forwarded::Both,
        _ => Forwarded::None,
    };
    let mut map = HeaderMap::new();
    let mut head = b"GET /p HTTP/1.1\r\n".to_vec();
    for line in text.split(|byte| *byte == b'\n').take(300) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        head.extend_from_slice(&[name, b":", value, b"\r\n"].concat());
        // A head is handed over with values that have no blanks around them.
        let value = HeaderValue::from_bytes(trimmed(value));
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) else {
            continue;
        };
        map.append(name, value);
    }
    let asked = Asked {
        method: Method::GET,
        http2: true,
        http10: false,
        authority: None,
        path: "/p",
        query: None,
        fields: Fields::Map(&map),
    };
    check(&asked, mode);
    head.extend_from_slice(b"\r\n");
    let mut places = Vec::new();
    if let Ok(Some(read)) = Head::read(&mut head, &mut places, ROOM) {
        check(&read.asked(&head, &places), mode);
    }
});
