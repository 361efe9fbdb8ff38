//! The head of a request as its client sent it, by whichever version of HTTP it came; it judges nothing.

use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use std::str;

/// The head of a request.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// Its method.
    pub method: Method,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// Whether it came by HTTP/1.0.
    pub http10: bool,
    /// Host and port, where the target says them.
    pub authority: Option<&'a str>,
    /// The path, as written; `*` for all of a server.
    pub path: &'a str,
    /// What stands behind the question mark, as written.
    pub query: Option<&'a str>,
    /// Its fields.
    pub fields: Fields<'a>,
}

impl<'a> Asked<'a> {
    /// Does it ask to go on as a WebSocket (RFC 6455, 4.1)?
    #[must_use]
    pub fn wants_websocket(&self) -> bool {
        let has = |name: &HeaderName, token: &[u8]| {
            let mut tokens = self.fields.all(name).flat_map(|value| value.split(|&b| b == b','));
            tokens.any(|own| own.trim_ascii().eq_ignore_ascii_case(token))
        };
        // RFC 9110, 7.8: old HTTP knows no upgrade.
        !(self.http2 || self.http10)
            && self.method == Method::GET
            && has(&header::UPGRADE, b"websocket")
            && has(&header::CONNECTION, b"upgrade")
    }

    /// Does it say that it takes trailers (RFC 9110, 10.1.4)?
    #[must_use]
    pub fn takes_trailers(&self) -> bool {
        let mut tokens = self.fields.all(&header::TE).flat_map(|value| value.split(|&b| b == b','));
        tokens.any(|own| own.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    }

    /// A head that was read into a map.
    #[must_use]
    pub fn of(head: &'a Parts) -> Asked<'a> {
        Asked {
            method: head.method.clone(),
            http2: head.version == hyper::Version::HTTP_2,
            http10: head.version == hyper::Version::HTTP_10,
            authority: head.uri.authority().map(|authority| authority.as_str()),
            path: head.uri.path(),
            query: head.uri.query(),
            fields: Fields::Map(&head.headers),
        }
    }
}

/// The fields of a head: names in lower case, values without the blanks around them.
#[derive(Clone, Copy, Debug)]
pub enum Fields<'a> {
    /// In a map.
    Map(&'a HeaderMap),
    /// In the text of the head itself.
    Lines(Lines<'a>),
}

/// The fields of a head in its text.
#[derive(Clone, Copy, Debug)]
pub struct Lines<'a> {
    pub(super) text: &'a [u8],
    pub(super) lines: &'a [Line],
}

/// Where one field stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub(super) name: (usize, usize),
    pub(super) value: (usize, usize),
}

impl<'a> Lines<'a> {
    /// All of them: name and value.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
        self.lines.iter().map(move |line| self.field(line))
    }

    fn field(self, line: &Line) -> (&'a str, &'a [u8]) {
        let piece = |(from, to): (usize, usize)| self.text.get(from..to).unwrap_or(&[]);
        // A name is of ASCII alone, or it would not have been taken for one.
        (str::from_utf8(piece(line.name)).unwrap_or(""), piece(line.value))
    }
}

impl<'a> Fields<'a> {
    /// All of them: name and value.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let (map, lines) = match self {
            Fields::Map(map) => (Some(map), None),
            Fields::Lines(lines) => (None, Some(lines)),
        };
        let map = map.into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let lines = lines.into_iter().flat_map(Lines::iter);
        map.chain(lines)
    }

    /// The values of all fields of this name.
    pub fn all(self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let (map, lines) = match self {
            Fields::Map(map) => (Some(map.get_all(name)), None),
            Fields::Lines(lines) => (None, Some(lines)),
        };
        let map = map.into_iter().flatten().map(HeaderValue::as_bytes);
        let lines = lines.into_iter().flat_map(move |lines| {
            let own = lines.iter().filter(move |(own, _)| *own == name.as_str());
            own.map(|(_, value)| value)
        });
        map.chain(lines)
    }

    /// Is there one of this name?
    #[must_use]
    pub fn has(self, name: &HeaderName) -> bool {
        self.all(name).next().is_some()
    }

    /// How many hosts it names, and the first.
    #[must_use]
    pub fn host(self) -> (usize, Option<&'a [u8]>) {
        let mut hosts = self.all(&header::HOST);
        let first = hosts.next();
        (usize::from(first.is_some()) + hosts.count(), first)
    }
}
