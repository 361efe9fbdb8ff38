//! The head of an HTTP/1 request as bytes: read strictly, in place, and without memory of its own; it routes nothing.

use super::asked::{Asked, Fields, Line, Lines};
use super::request::Framing;
use super::said::Said;
use http::Uri;
use hyper::{Method, header};
use std::fmt;
use std::mem::MaybeUninit;
use std::str;

/// Why bytes are no head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadHead {
    /// They are no HTTP/1 head.
    Malformed,
    /// Where the body ends has no single meaning.
    Framing,
    /// The head is longer than allowed, or has more fields.
    TooLarge,
    /// The target is longer than any server takes.
    TargetTooLong,
    /// It expects what nobody can promise (RFC 9110, 10.1.1).
    Expectation,
}

impl fmt::Display for BadHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadHead::Malformed => "what was sent is no head of an HTTP/1 request",
            BadHead::Framing => "where the request body ends has no single meaning",
            BadHead::TooLarge => "the head of the request is larger than this proxy allows",
            BadHead::TargetTooLong => "the target of the request is longer than this proxy allows",
            BadHead::Expectation => "no expectation but 100-continue can be met",
        })
    }
}

impl std::error::Error for BadHead {}

/// How much a head may hold.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes.
    pub bytes: usize,
    /// Fields.
    pub fields: usize,
}

/// What a head says of its body and its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Says {
    /// Bytes of the head.
    pub length: usize,
    /// It is of HTTP/1.1, not 1.0.
    pub is_11: bool,
    /// The body.
    pub framing: Framing,
    /// The connection ends after the answer.
    pub closes: bool,
    /// The client waits for leave to send the body.
    pub expects: bool,
    /// The client takes trailers.
    pub trailers: bool,
}

impl Says {
    /// Of what is no head nothing is believed, and the connection ends.
    #[must_use]
    pub fn unbelieved() -> Says {
        let framing = Framing::None;
        Says { length: 0, is_11: true, framing, closes: true, expects: false, trailers: false }
    }
}

/// A head that was read. What it borrows lives in `text` and in the places for its lines.
#[derive(Debug)]
pub struct Head {
    /// What it says of its body and its connection.
    pub says: Says,
    method: Method,
    target: (usize, usize),
    /// The target in another form than a path.
    uri: Option<Uri>,
}

impl Head {
    /// Reads the head at the beginning of `text`, and makes the names of its fields lower-case; `None` if it is not whole yet.
    ///
    /// # Errors
    /// It is none, or none of which only one thing can be made; nothing behind it can be believed.
    pub fn read(
        text: &mut [u8],
        lines: &mut Vec<Line>,
        room: Room,
    ) -> Result<Option<Head>, BadHead> {
        const PLACES: usize = 128;
        let mut few = [const { MaybeUninit::uninit() }; PLACES];
        let mut many = Vec::new();
        let places = match few.get_mut(..room.fields) {
            Some(places) => places,
            None => {
                many.resize_with(room.fields, MaybeUninit::uninit);
                &mut many
            }
        };
        let mut parsed = httparse::Request::new(&mut []);
        let status = httparse::ParserConfig::default().parse_request_with_uninit_headers(
            &mut parsed,
            text,
            places,
        );
        let length = match status {
            Ok(httparse::Status::Complete(length)) if length <= room.bytes => length,
            Ok(httparse::Status::Partial) if text.len() < room.bytes => return Ok(None),
            Ok(_) => return Err(too_large(text)),
            Err(httparse::Error::TooManyHeaders) => return Err(BadHead::TooLarge),
            Err(_) => return Err(BadHead::Malformed),
        };
        // A line that ends otherwise than others do could end elsewhere for them.
        let head = text.get(..length).unwrap_or(&[]);
        let crlf = |at: usize| at.checked_sub(1).and_then(|at| head.get(at)) == Some(&b'\r');
        if !memchr::memchr_iter(b'\n', head).all(crlf) {
            return Err(BadHead::Malformed);
        }
        let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
            return Err(BadHead::Malformed);
        };
        if target.len() > TARGET_MAX {
            return Err(BadHead::TargetTooLong);
        }
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| BadHead::Malformed)?;
        let is_11 = parsed.version == Some(1);
        let base = text.as_ptr().addr();
        let place = |piece: &[u8]| {
            let from = piece.as_ptr().addr().saturating_sub(base);
            (from, from.saturating_add(piece.len()))
        };
        let target = place(target.as_bytes());
        lines.clear();
        lines.extend(
            parsed.headers.iter().map(|field| Line {
                name: place(field.name.as_bytes()),
                value: place(field.value),
            }),
        );
        for line in &*lines {
            if let Some(name) = text.get_mut(line.name.0..line.name.1) {
                name.make_ascii_lowercase();
            }
        }
        let says = says(Lines { text, lines }, is_11, length)?;
        let uri = other_form(text.get(target.0..target.1).unwrap_or(&[]), &method)?;
        Ok(Some(Head { says, method, target, uri }))
    }

    /// The head as it was asked.
    #[must_use]
    pub fn asked<'a>(&'a self, text: &'a [u8], lines: &'a [Line]) -> Asked<'a> {
        let fields = Fields::Lines(Lines { text, lines });
        let method = self.method.clone();
        let (authority, path, query) = match &self.uri {
            Some(uri) => {
                (uri.authority().map(|authority| authority.as_str()), uri.path(), uri.query())
            }
            None => {
                let target = text.get(self.target.0..self.target.1).unwrap_or(&[]);
                // Of ASCII alone, or it would not have been taken.
                let target = str::from_utf8(target).unwrap_or("");
                match target.split_once('?') {
                    Some((path, query)) => (None, path, Some(query)),
                    None => (None, target, None),
                }
            }
        };
        let (http2, http10) = (false, !self.says.is_11);
        Asked { method, http2, http10, authority, path, query, fields }
    }
}

/// What is too large about a head that has more bytes than it may have.
fn too_large(text: &[u8]) -> BadHead {
    match memchr::memchr(b'\n', text) {
        None if text.len() > TARGET_MAX => BadHead::TargetTooLong,
        _ => BadHead::TooLarge,
    }
}

fn says(lines: Lines<'_>, is_11: bool, length: usize) -> Result<Says, BadHead> {
    let said = Said::of(lines.iter(), is_11).map_err(|_| BadHead::Framing)?;
    let framing = match (said.chunked, said.length) {
        (true, _) => Framing::Chunked,
        (false, None | Some(0)) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
    };
    let mut expects = false;
    for value in Fields::Lines(lines).all(&header::EXPECT) {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(BadHead::Expectation);
        }
        // Who has nothing to send waits for nothing, and old clients do not know the word.
        expects = is_11 && framing != Framing::None;
    }
    // A length beside chunks counts for nothing, and what follows is not believed (RFC 9112, 6.1).
    let closes = said.closes || (said.chunked && said.length.is_some());
    let mut codings = Fields::Lines(lines).all(&header::TE).flat_map(|te| te.split(|&b| b == b','));
    let trailers = codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
    Ok(Says { length, is_11, framing, closes, expects, trailers })
}

/// Whether a byte may stand in a target as it is. Other readers of URIs are kinder, to what is not ASCII above all.
#[must_use]
pub fn may_stand_in_target(byte: &u8) -> bool {
    (b'!'..=b'~').contains(byte) && !b"#\"<>".contains(byte)
}

/// The target as a URI where it is no path of our own: with a host in it (RFC 9112, 3.2). `*` and what CONNECT names stay as
/// they are: no route takes them.
fn other_form(target: &[u8], method: &Method) -> Result<Option<Uri>, BadHead> {
    if !target.iter().all(may_stand_in_target) {
        return Err(BadHead::Malformed);
    }
    if target.starts_with(b"/") || target == b"*" || *method == Method::CONNECT {
        return Ok(None);
    }
    Uri::try_from(target).map(Some).map_err(|_| BadHead::Malformed)
}

/// Bytes of a target, as other servers bound it.
const TARGET_MAX: usize = 65_534;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: Room = Room { bytes: 8192, fields: 20 };

    /// What was read: says, method, authority, path, query, fields.
    type Read = (Says, String, Option<String>, String, Option<String>, Vec<(String, Vec<u8>)>);

    fn read(text: &str) -> Result<Option<Read>, BadHead> {
        let mut bytes = text.as_bytes().to_vec();
        let mut lines = Vec::new();
        let head = Head::read(&mut bytes, &mut lines, ROOM)?;
        Ok(head.map(|head| {
            let asked = head.asked(&bytes, &lines);
            let owned = |text: &str| text.to_owned();
            let fields = asked.fields.iter().map(|(name, value)| (owned(name), value.to_vec()));
            (
                head.says,
                asked.method.to_string(),
                asked.authority.map(owned),
                owned(asked.path),
                asked.query.map(owned),
                fields.collect(),
            )
        }))
    }

    fn says(fields: &str) -> Result<Says, BadHead> {
        Ok(read(&format!("POST / HTTP/1.1\r\n{fields}\r\n"))?.unwrap().0)
    }

    /// Goal: a head is what its bytes say, names in lower case, values without the blanks around them, and ends where it ends.
    #[test]
    fn a_head_is_read() {
        let text = "GET /a/b?c=d?e HTTP/1.1\r\nHost: x\r\nX-Y:  1 \t\r\nx-y:\r\n\r\nrest";
        let (says, method, authority, path, query, fields) = read(text).unwrap().unwrap();
        assert_eq!(says.length, text.len() - 4);
        assert!(says.is_11 && !says.closes && !says.expects && says.framing == Framing::None);
        assert_eq!((method.as_str(), authority, path.as_str()), ("GET", None, "/a/b"));
        assert_eq!(query.as_deref(), Some("c=d?e"));
        let fields: Vec<_> =
            fields.iter().map(|(n, v)| (n.as_str(), str::from_utf8(v).unwrap())).collect();
        assert_eq!(fields, [("host", "x"), ("x-y", "1"), ("x-y", "")]);
    }

    /// Goal: a head that has not come whole is waited for, at whatever byte it was cut.
    #[test]
    fn half_a_head_is_waited_for() {
        let text = "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(read(&text[..end]), Ok(None), "{end}");
        }
        assert!(read(text).unwrap().is_some());
    }

    /// Goal: a target may be a path, a whole URI, or a star; what is none of these is no target.
    #[test]
    fn targets_have_their_forms() {
        let target = |target: &str| {
            let read = read(&format!("GET {target} HTTP/1.1\r\n\r\n"));
            read.map(|read| read.map(|(_, _, authority, path, query, _)| (authority, path, query)))
        };
        let some = |authority: Option<&str>, path: &str, query: Option<&str>| {
            Ok(Some((authority.map(str::to_owned), path.to_owned(), query.map(str::to_owned))))
        };
        assert_eq!(target("/"), some(None, "/", None));
        assert_eq!(target("*"), some(None, "*", None));
        assert_eq!(target("http://a:1/b?c"), some(Some("a:1"), "/b", Some("c")));
        assert_eq!(target("http://a"), some(Some("a"), "/", None));
        assert_eq!(target("//a"), some(None, "//a", None), "no host: a path that is refused");
        for bad in ["/a#b", "/\u{e9}", "http://a/#b", "http://a b/", "/a\tb", "http:///", "a/b"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    /// Goal: the body is framed in the one way that RFC 9112, 6.3 allows, or the head is refused.
    #[test]
    fn the_framing_has_one_meaning() {
        let good = [
            ("", Framing::None, false),
            ("Content-Length: 0\r\n", Framing::None, false),
            ("Content-Length: 5\r\n", Framing::Length(5), false),
            ("Content-Length: 5\r\ncontent-length: 5\r\n", Framing::Length(5), false),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked, false),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Framing::Chunked, true),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Framing::Chunked, true),
        ];
        for (fields, framing, closes) in good {
            let says = says(fields).unwrap();
            assert_eq!((says.framing, says.closes), (framing, closes), "{fields:?}");
        }
        for fields in [
            "Content-Length: 4\r\nContent-Length: 5\r\n",
            "Content-Length: 4, 5\r\n",
            "Content-Length: \r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5_0\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding: ,chunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding: chunked;x=1\r\n",
        ] {
            assert!(says(fields).is_err(), "{fields:?}");
        }
    }

    /// Goal: who says that the connection ends, or is of HTTP/1.0 and does not ask for more, is believed.
    #[test]
    fn connections_end_as_said() {
        for (version, fields, closes) in [
            ("1.1", "", false),
            ("1.1", "Connection: close\r\n", true),
            ("1.1", "Connection: x\r\nConnection: y, CLOSE\r\n", true),
            ("1.0", "", true),
            ("1.0", "Connection: Keep-Alive\r\n", false),
            ("1.0", "Connection: keep-alive, close\r\n", true),
        ] {
            let (says, ..) =
                read(&format!("GET / HTTP/{version}\r\n{fields}\r\n")).unwrap().unwrap();
            assert_eq!((says.closes, says.is_11), (closes, version == "1.1"), "{version} {fields}");
        }
    }

    /// Goal: 100-continue is the one expectation there is, and only a body is waited with.
    #[test]
    fn expectations_are_few() {
        assert!(says("Expect: 100-Continue\r\nContent-Length: 5\r\n").unwrap().expects);
        assert!(!says("Expect: 100-continue\r\n").unwrap().expects);
        assert_eq!(says("Expect: 200-ok\r\nContent-Length: 5\r\n"), Err(BadHead::Expectation));
    }

    /// Goal: what two readers could read in two ways is no head: line ends, blanks, folds, controls, versions.
    #[test]
    fn what_is_no_head_is_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nX : a\r\n\r\n",
            "GET / HTTP/1.1\r\nX\r\n\r\n",
            "GET / HTTP/1.1\r\n: a\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\n X: a\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET /  HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1 \r\n\r\n",
            "GET\t/ HTTP/1.1\r\n\r\n",
            " GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.2\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / http/1.1\r\n\r\n",
            "GET /\r\n\r\n",
            "G(T / HTTP/1.1\r\n\r\n",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    /// Goal: heads have an end, in bytes and in fields, whole or not; a target has its own where heads are allowed to be longer.
    #[test]
    fn heads_have_bounds() {
        let many = "x: 1\r\n".repeat(ROOM.fields + 1);
        assert_eq!(read(&format!("GET / HTTP/1.1\r\n{many}\r\n")), Err(BadHead::TooLarge));
        let long = "x".repeat(ROOM.bytes);
        assert_eq!(read(&format!("GET / HTTP/1.1\r\nX: {long}")), Err(BadHead::TooLarge));
        assert_eq!(read(&format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n")), Err(BadHead::TooLarge));
        assert_eq!(read(&format!("GET /{long}")), Err(BadHead::TooLarge));
        let wide = Room { bytes: 100_000, fields: 300 };
        let mut text = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(TARGET_MAX)).into_bytes();
        let read = Head::read(&mut text, &mut Vec::new(), wide);
        assert_eq!(read.unwrap_err(), BadHead::TargetTooLong);
        let mut text = format!("GET / HTTP/1.1\r\n{}\r\n", "x: 1\r\n".repeat(300)).into_bytes();
        let mut lines = Vec::new();
        assert!(Head::read(&mut text, &mut lines, wide).unwrap().is_some());
        assert_eq!(lines.len(), 300);
    }

    proptest! {
        /// Goal: what is read of a path is what another reader of URIs makes of it, and any bytes are read without a panic.
        #[test]
        fn any_target(target in "/[!-~]{0,30}") {
            let read = read(&format!("GET {target} HTTP/1.1\r\n\r\n"));
            match (read, http::uri::PathAndQuery::try_from(target.as_str())) {
                (Ok(Some((.., path, query, _))), Ok(other)) => {
                    prop_assert_eq!(path, other.path());
                    prop_assert_eq!(query.as_deref(), other.query());
                }
                (Err(_), _) => prop_assert!(target.contains(['#', '"', '<', '>'])),
                // Bytes that are no part of a URI are left to whoever reads the path and the query.
                (Ok(Some((.., path, query, _))), Err(_)) => {
                    let odd = |text: &str| text.contains(['\\', '^', '`', '{', '|', '}']);
                    prop_assert!(odd(&path) || query.is_some_and(|query| odd(&query)));
                }
                (read, _) => prop_assert!(false, "{read:?}"),
            }
        }

        /// Goal: no bytes make it panic.
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), start in "(GET / HTTP/1\\.1\r\n)?") {
            let mut text = [start.as_bytes(), &bytes].concat();
            let mut lines = Vec::new();
            if let Ok(Some(head)) = Head::read(&mut text, &mut lines, ROOM) {
                let asked = head.asked(&text, &lines);
                prop_assert_eq!(asked.fields.iter().count(), lines.len());
            }
        }
    }
}
