//! The head of an upstream's answer: what of it passes, and where the body ends (RFC 9112, 6.3).

use super::Breach;
use super::chunks::Chunks;
use super::fields::{Kind, kind};
use super::response;
use super::said::Said;
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::mem::MaybeUninit;
use std::str;

/// Where the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes are still to come.
    Length(u64),
    /// By chunks.
    Chunked(Chunks),
    /// With the connection.
    Close,
}

/// In what form the fields of an answer are wanted.
#[derive(Clone, Copy)]
pub enum Form<'a> {
    /// As a map.
    Map,
    /// As an HTTP/1 client gets them, in memory that this gives.
    Lines(&'a dyn Fn() -> Vec<u8>),
}

/// The fields of an answer that pass.
#[derive(Debug)]
pub enum Passing {
    /// As a map. `Content-Length` is there if it says how long the body is, or would be.
    Map(HeaderMap),
    /// As an HTTP/1 client gets them, behind the line with the status.
    Lines {
        /// What is sent, but for the framing and the end.
        text: Vec<u8>,
        /// `Date` is among them.
        dated: bool,
    },
}

impl Passing {
    /// The values of all fields of this name, without the blanks around them.
    pub fn all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let (map, text) = match self {
            Passing::Map(map) => (Some(map.get_all(name)), None),
            Passing::Lines { text, .. } => (None, Some(text)),
        };
        let map = map.into_iter().flatten().map(HeaderValue::as_bytes);
        let lines = text.into_iter().flat_map(|text| text.split(|&byte| byte == b'\n').skip(1));
        let lines = lines.filter_map(|line| {
            let rest = line.strip_prefix(name.as_str().as_bytes())?;
            rest.strip_prefix(b":").map(<[u8]>::trim_ascii)
        });
        map.chain(lines)
    }
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// How it went.
    pub status: StatusCode,
    /// The fields that pass.
    pub fields: Passing,
    /// How long the body is, or would be, where that is told.
    pub told: Option<u64>,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the connection may carry another exchange after it.
    pub lasts: bool,
    /// It switches to WebSocket, and to nothing else.
    pub is_websocket: bool,
}

/// What came of an answer before its final head was whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Bytes that were looked at.
    bytes: usize,
    /// Heads before the final one.
    interim: usize,
}

/// Takes a head from the bytes at hand; `None` if it is not whole yet. What comes before the final answer (1xx but for 101) is
/// taken as well. `to_head`: the answer is to a HEAD request. `seen`: what came of this answer before.
///
/// # Errors
/// It is no head of an answer, or one of too many before it.
pub fn take(
    input: &mut BytesMut,
    to_head: bool,
    seen: &mut Seen,
    form: Form<'_>,
) -> Result<Option<Head>, Breach> {
    take_telling(input, to_head, seen, form, |_| ())
}

/// The same, and tells of what comes before the final answer.
///
/// # Errors
/// As [`take`].
pub fn take_telling(
    input: &mut BytesMut,
    to_head: bool,
    seen: &mut Seen,
    form: Form<'_>,
    mut tell: impl FnMut(Head),
) -> Result<Option<Head>, Breach> {
    loop {
        let Some(length) = end_of_head(input, &mut seen.bytes)? else { return Ok(None) };
        let head = parse(input, length, to_head, form)?;
        if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Some(head));
        }
        // Nobody has a reason to say more than a few, at once or one by one.
        seen.interim += 1;
        if seen.interim >= INTERIM_MAX {
            return Err(Breach::Head);
        }
        tell(head);
    }
}

/// Length of the head, its empty line included.
fn end_of_head(input: &[u8], seen: &mut usize) -> Result<Option<usize>, Breach> {
    let from = seen.saturating_sub(3).min(input.len());
    match input.get(from..).and_then(|rest| memchr::memmem::find(rest, b"\r\n\r\n")) {
        Some(at) if from + at <= HEAD_MAX => {
            *seen = 0;
            Ok(Some(from + at + 4))
        }
        None if input.len() <= HEAD_MAX => {
            *seen = input.len();
            Ok(None)
        }
        _ => Err(Breach::Head),
    }
}

/// Takes the head, which is so long, from what is at hand.
fn parse(
    input: &mut BytesMut,
    length: usize,
    to_head: bool,
    form: Form<'_>,
) -> Result<Head, Breach> {
    match form {
        Form::Map => {
            let bytes = input.split_to(length).freeze();
            read(&bytes, to_head, |parsed, said, told, _| {
                map(parsed, &bytes, said, told).map(Passing::Map)
            })
        }
        Form::Lines(memory) => {
            let bytes = input.get(..length).unwrap_or(&[]);
            let head = read(bytes, to_head, |parsed, said, _, status| {
                Ok(lines(memory(), parsed, said, status))
            });
            input.advance(length);
            head
        }
    }
}

fn read(
    bytes: &[u8],
    to_head: bool,
    pass: impl FnOnce(
        &[httparse::Header<'_>],
        &Said,
        Option<u64>,
        StatusCode,
    ) -> Result<Passing, Breach>,
) -> Result<Head, Breach> {
    let mut places = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut places) {
        // A line that ends otherwise than others do could end the head elsewhere.
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        _ => return Err(Breach::Head),
    }
    let code = parsed.code.ok_or(Breach::Head)?;
    let status = StatusCode::from_u16(code).map_err(|_| Breach::Head)?;
    let is_11 = parsed.version == Some(1);
    let fields_said = parsed.headers.iter().map(|field| (field.name, field.value));
    let said = Said::of(fields_said, is_11).map_err(|_| Breach::Framing)?;
    let bodiless = to_head
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match (bodiless, said.chunked, said.length) {
        (true, ..) | (_, false, Some(0)) => Framing::None,
        (_, true, _) => Framing::Chunked(Chunks::Size),
        (_, false, Some(length)) => Framing::Length(length),
        (_, false, None) => Framing::Close,
    };
    // Two framings at once are one too many: the connection is not trusted further (RFC 9112, 6.3).
    let twice = said.chunked && said.length.is_some();
    // A body is told of where none can be: who knows whether it comes.
    let impossible =
        status == StatusCode::NO_CONTENT && (said.chunked || said.length.is_some_and(|n| n > 0));
    let lasts = !said.closes && !twice && !impossible && framing != Framing::Close;
    let tells = !said.chunked && !status.is_informational() && status != StatusCode::NO_CONTENT;
    let told = said.length.filter(|_| tells);
    let fields = pass(parsed.headers, &said, told, status)?;
    let mut upgrades = parsed.headers.iter().filter(|f| f.name.eq_ignore_ascii_case("upgrade"));
    let is_websocket = status == StatusCode::SWITCHING_PROTOCOLS
        && upgrades.next().is_some_and(|f| f.value.trim_ascii().eq_ignore_ascii_case(b"websocket"))
        && upgrades.next().is_none();
    Ok(Head { status, fields, told, framing, lasts, is_websocket })
}

/// Does this field stay with the upstream's connection? A server's word of whom it takes the client for is its own affair.
fn stays_behind(name: &str, said: &Said) -> bool {
    matches!(kind(name), Kind::Hop | Kind::Connection | Kind::Length)
        || said.named.as_ref().is_some_and(|named| named.has(name))
}

/// The fields that pass, as lines.
fn lines(
    mut text: Vec<u8>,
    parsed: &[httparse::Header<'_>],
    said: &Said,
    status: StatusCode,
) -> Passing {
    response::begin(&mut text, status);
    let mut dated = false;
    for field in parsed {
        let from = text.len();
        text.extend_from_slice(field.name.as_bytes());
        let name = text.get_mut(from..).unwrap_or_default();
        name.make_ascii_lowercase();
        // Of ASCII alone, or it would not have been taken for a name.
        let name = str::from_utf8(name).unwrap_or("");
        if stays_behind(name, said) {
            text.truncate(from);
            continue;
        }
        dated |= name == "date";
        text.extend_from_slice(b": ");
        text.extend_from_slice(field.value);
        text.extend_from_slice(b"\r\n");
    }
    Passing::Lines { text, dated }
}

/// The fields that pass, as a map. Their values share the head's memory.
fn map(
    parsed: &[httparse::Header<'_>],
    bytes: &Bytes,
    said: &Said,
    told: Option<u64>,
) -> Result<HeaderMap, Breach> {
    let mut fields = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Breach::Head)?;
        if stays_behind(name.as_str(), said) {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
        fields.append(name, value.map_err(|_| Breach::Head)?);
    }
    if let Some(length) = told {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(fields)
}

/// Bytes of a head.
const HEAD_MAX: usize = 64 * 1024;
/// Its fields.
const FIELDS_MAX: usize = 128;
/// Heads that come before the final one.
pub const INTERIM_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str) -> Result<Option<Head>, Breach> {
        take(&mut BytesMut::from(text), false, &mut Seen::default(), Form::Map)
    }

    fn of(head: &Head) -> &HeaderMap {
        match &head.fields {
            Passing::Map(fields) => fields,
            Passing::Lines { .. } => unreachable!("a map was asked for"),
        }
    }

    fn framing(fields: &str) -> Result<(Framing, bool), Breach> {
        let head = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"))?.ok_or(Breach::Head)?;
        Ok((head.framing, head.lasts))
    }

    /// Goal: where a body ends is what RFC 9112, 6.3 says, for each way to say it.
    #[test]
    fn a_body_ends_where_its_head_says() {
        let chunked = Framing::Chunked(Chunks::Size);
        let cases = [
            ("", (Framing::Close, false)),
            ("Content-Length: 5\r\n", (Framing::Length(5), true)),
            ("Content-Length: 0\r\n", (Framing::None, true)),
            ("content-length: 5, 5\r\nCONTENT-LENGTH: 5\r\n", (Framing::Length(5), true)),
            ("Transfer-Encoding: Chunked\r\n", (chunked, true)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", (chunked, false)),
            ("Content-Length: 5\r\nConnection: x, Close\r\n", (Framing::Length(5), false)),
        ];
        for (fields, expected) in cases {
            assert_eq!(framing(fields).unwrap(), expected, "{fields:?}");
        }
    }

    /// Goal: what frames a body in no single way is no answer.
    #[test]
    fn no_framing_is_guessed() {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 6\r\n",
            "Content-Length:\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding:\r\n",
        ] {
            assert!(matches!(framing(fields), Err(Breach::Framing)), "{fields:?}");
        }
        let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(matches!(head(old), Err(Breach::Framing)));
    }

    /// Goal: what is no HTTP/1 head is refused, whole or not.
    #[test]
    fn what_is_no_head_is_refused() {
        let many = "a: b\r\n".repeat(FIELDS_MAX + 1);
        let cases = [
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "hello\r\n\r\n",
            "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\n\nx\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\rc: d\r\n\r\n",
            &format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
            &"x".repeat(HEAD_MAX + 1),
            &"HTTP/1.1 100 Continue\r\n\r\n".repeat(INTERIM_MAX),
        ];
        for text in cases {
            assert!(head(text).is_err(), "{:?}", text.get(..60.min(text.len())));
        }
    }

    /// Goal: HTTP/1.0 ends its connection unless it says otherwise.
    #[test]
    fn http_10_ends_its_connection() {
        for (connection, lasts) in [("", false), ("Connection: keep-alive\r\n", true)] {
            let text = format!("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n{connection}\r\n");
            assert_eq!(head(&text).unwrap().unwrap().lasts, lasts);
        }
    }

    /// Goal: answers without a body have none, whatever their fields say, and keep the length that a body would have.
    #[test]
    fn some_answers_have_no_body() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let head = take(&mut BytesMut::from(text), true, &mut Seen::default(), Form::Map)
            .unwrap()
            .unwrap();
        assert_eq!((head.framing, head.lasts), (Framing::None, true));
        assert_eq!(of(&head)[header::CONTENT_LENGTH], "5");
        for (code, told) in [(204, false), (304, true)] {
            let text = format!("HTTP/1.1 {code} X\r\nContent-Length: 5\r\n\r\n");
            let head = take(&mut BytesMut::from(&*text), false, &mut Seen::default(), Form::Map)
                .unwrap()
                .unwrap();
            assert_eq!(head.framing, Framing::None);
            assert_eq!(of(&head).contains_key(header::CONTENT_LENGTH), told);
        }
    }

    /// Goal: what belongs to the upstream's connection stays there; everything else passes, in order and doubled.
    #[test]
    fn fields_of_the_connection_stay_behind() {
        let text = "HTTP/1.1 200 OK\r\nConnection: x-own, set-cookie\r\nx-own: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\n\
                    Trailer: a\r\nProxy-Connection: a\r\nServer: s\r\nVia: 1\r\nVia: 2\r\nContent-Length: 0\r\n\r\n";
        let map = head(text).unwrap().unwrap();
        let got: Vec<_> =
            of(&map).iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        assert_eq!(got, ["server=s", "via=1", "via=2", "content-length=0"]);
        let form = Form::Lines(&Vec::new);
        let mut input = BytesMut::from(&*format!("{text}rest"));
        let head = take(&mut input, false, &mut Seen::default(), form).unwrap().unwrap();
        let Passing::Lines { text, dated } = head.fields else { panic!("{head:?}") };
        assert_eq!(text, b"HTTP/1.1 200 OK\r\nserver: s\r\nvia: 1\r\nvia: 2\r\n");
        assert_eq!((head.told, dated, &input[..]), (Some(0), false, &b"rest"[..]));
        let lines = Passing::Lines { text, dated };
        for (name, values) in
            [("via", &["1", "2"][..]), ("server", &["s"]), ("vi", &[]), ("x", &[])]
        {
            let name = HeaderName::from_static(name);
            for fields in [&lines, &map.fields] {
                let found: Vec<_> =
                    fields.all(&name).map(|value| str::from_utf8(value).unwrap()).collect();
                assert_eq!(found, values, "{name}");
            }
        }
    }

    /// Goal: interim answers are passed over, a switch of protocols is not, and the body's first bytes stay.
    #[test]
    fn interim_answers_are_passed_over() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
        for step in 1..text.len() {
            let (mut input, mut seen, mut got) = (BytesMut::new(), Seen::default(), None);
            for piece in text.as_bytes().chunks(step) {
                input.extend_from_slice(piece);
                if got.is_none() {
                    got = take(&mut input, false, &mut seen, Form::Map).unwrap();
                }
            }
            let head = got.unwrap();
            assert_eq!((head.status.as_u16(), &input[..]), (200, b"ab".as_slice()), "by {step}");
        }
        let switch = head("HTTP/1.1 101 Switching\r\n\r\n").unwrap().unwrap();
        assert_eq!(switch.status, StatusCode::SWITCHING_PROTOCOLS);
    }

    proptest! {
        /// Goal: no bytes make it panic, and what it took for a head says one thing about its framing.
        #[test]
        fn any_bytes(text in "(HTTP/1\\.[01] [0-9]{3} \r\n)?((content-length|transfer-encoding|a): ?[0-9a-z, ]{0,8}\r\n){0,4}\r\n.{0,10}") {
            if let Ok(Some(head)) = head(&text) {
                let length = of(&head).get_all(header::CONTENT_LENGTH).iter().count();
                prop_assert!(length <= 1);
                prop_assert!(!of(&head).contains_key(header::TRANSFER_ENCODING));
                if matches!(head.framing, Framing::Chunked(_)) {
                    prop_assert_eq!(length, 0);
                }
            }
        }
    }
}
