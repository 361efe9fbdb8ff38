//! A request and an answer in the form of HTTP/2 (RFC 9113, 8): what `request` wrote in lines, said in fields; it chooses nothing that passes.

use super::answer::{Framing, Head, Passing};
use super::chunks::may_trail;
use super::fields::{Kind, kind};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{self, Authority, PathAndQuery, Scheme};
use hyper::{Method, Request, Uri, Version};

/// The request whose head stands in these lines, as [`super::request::write`] wrote them; `None` if they are none of its.
#[must_use]
pub fn request(head: &[u8], secure: bool) -> Option<Request<()>> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r"));
    let mut start = lines.next()??.split(|&byte| byte == b' ');
    let method = Method::from_bytes(start.next()?).ok()?;
    let target = start.next()?;
    let mut fields = HeaderMap::new();
    let mut host = None;
    for line in lines {
        let line = match line {
            Some(b"") | None => break,
            Some(line) => line,
        };
        let at = memchr::memchr(b':', line)?;
        let (name, value) = line.split_at_checked(at)?;
        let value = value.get(1..)?.trim_ascii();
        match name {
            b"host" => host = Some(Authority::try_from(value).ok()?),
            // One connection's affair: the other side has one of its own.
            b"transfer-encoding" | b"connection" | b"upgrade" => {}
            _ => {
                let name = HeaderName::from_bytes(name).ok()?;
                fields.append(name, HeaderValue::from_bytes(value).ok()?);
            }
        }
    }
    // Trailers pass, whoever asked; some servers answer nobody who does not say so (gRPC over HTTP/2: `te`).
    fields.insert(header::TE, HeaderValue::from_static("trailers"));
    let mut uri = uri::Parts::default();
    uri.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(host?);
    uri.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = fields;
    Some(request)
}

/// The head of an answer with these fields; `ended`: nothing comes after it.
#[must_use]
pub fn answer(status: StatusCode, mut fields: HeaderMap, to_head: bool, ended: bool) -> Head {
    let own = fields.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let told = own.and_then(|text| text.parse::<u64>().ok());
    strip(&mut fields, |name| matches!(kind(name), Kind::Hop | Kind::Connection | Kind::Length));
    let never = status.is_informational() || status == StatusCode::NO_CONTENT;
    let told = told.filter(|_| !never);
    if let Some(length) = told {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let bodiless = to_head || ended || never || status == StatusCode::NOT_MODIFIED;
    let framing = match told {
        _ if bodiless => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    };
    Head { status, fields: Passing::Map(fields), told, framing, lasts: true, is_websocket: false }
}

/// The trailers that may pass; `None` if none may.
#[must_use]
pub fn trailers(mut fields: HeaderMap) -> Option<HeaderMap> {
    strip(&mut fields, |name| !may_trail(name));
    (!fields.is_empty()).then_some(fields)
}

/// Takes out the fields that stay behind.
fn strip(fields: &mut HeaderMap, stays: impl Fn(&str) -> bool) {
    while let Some(name) = fields.keys().find(|name| stays(name.as_str())).cloned() {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Forwarded;
    use crate::wire::asked::Asked;
    use crate::wire::request::{Framing as Sent, Ours, write};
    use std::net::{IpAddr, Ipv4Addr};

    fn said(asked: &Request<()>, framing: Sent) -> Request<()> {
        let (head, ()) = asked.clone().into_parts();
        let mut out = Vec::new();
        let ours = Ours {
            host: "good:81",
            path: head.uri.path(),
            framing,
            switches: false,
            plain: false,
            request_id: None,
            forwarded: Forwarded::XForwarded,
            secure: false,
            peer: IpAddr::from(Ipv4Addr::LOCALHOST),
            peer_text: "127.0.0.1",
        };
        write(&mut out, &Asked::of(&head), &ours);
        request(&out, true).unwrap()
    }

    /// Goal: method, target, host and fields are the same in the other form, doubled ones too, and nothing of a connection comes with them.
    #[test]
    fn a_request_is_the_same_in_fields() {
        let asked = Request::post("/a%20b;c?x=1&y={}|`^")
            .header("host", "evil")
            .header("connection", "x-own")
            .header("x-own", "1")
            .header("te", "gzip")
            .header("twice", "1")
            .header("twice", "a: b")
            .header("empty", "")
            .header("cookie", "a=1")
            .body(())
            .unwrap();
        let found = said(&asked, Sent::Chunked);
        assert_eq!(found.uri(), "https://good:81/a%20b;c?x=1&y={}|`^");
        assert_eq!(found.method(), Method::POST);
        let fields: Vec<_> = found
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect();
        assert_eq!(
            fields,
            [
                "twice=1",
                "twice=a: b",
                "empty=",
                "cookie=a=1",
                "x-forwarded-for=127.0.0.1",
                "x-forwarded-proto=http",
                "x-forwarded-host=good:81",
                "te=trailers"
            ]
        );
        assert_eq!(said(&asked, Sent::Length(7)).headers()["content-length"], "7");
    }

    /// Goal: every target that passes the path's own rules can be said.
    #[test]
    fn every_path_can_be_said() {
        for byte in b'!'..=b'~' {
            let path = format!("/a{}b", char::from(byte));
            let Ok(path) = crate::path::canonical(&path) else { continue };
            let text = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            let found = request(text.as_bytes(), false);
            assert!(found.is_some_and(|found| found.uri().path() == path), "{path}");
        }
        for byte in (b'!'..=b'~').filter(crate::wire::head::may_stand_in_target) {
            let text = format!("GET /?{} HTTP/1.1\r\nhost: a\r\n\r\n", char::from(byte));
            assert!(request(text.as_bytes(), false).is_some(), "{}", char::from(byte));
        }
    }

    /// Goal: what is no head of ours is none.
    #[test]
    fn no_head_is_guessed() {
        for text in
            ["", "GET", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\nnone\r\n\r\n"]
        {
            assert!(request(text.as_bytes(), false).is_none(), "{text:?}");
        }
    }

    /// Goal: an answer keeps its fields but for the connection's, and its length where it has one.
    #[test]
    fn an_answer_keeps_its_fields() {
        let mut fields = HeaderMap::new();
        for (name, value) in [("content-length", "5"), ("server", "s"), ("keep-alive", "1")] {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let head = answer(StatusCode::OK, fields.clone(), false, false);
        assert_eq!((head.told, head.framing), (Some(5), Framing::Length(5)));
        let Passing::Map(map) = head.fields else { panic!("a map") };
        assert!(map.len() == 2 && map["content-length"] == "5" && map["server"] == "s");
        let head = answer(StatusCode::OK, fields.clone(), true, true);
        assert_eq!((head.told, head.framing), (Some(5), Framing::None));
        let head = answer(StatusCode::NO_CONTENT, fields.clone(), false, true);
        assert_eq!((head.told, head.framing), (None, Framing::None));
        fields.remove("content-length");
        assert_eq!(answer(StatusCode::OK, fields, false, false).framing, Framing::Close);
    }

    /// Goal: trailers pass but for those of the framing.
    #[test]
    fn trailers_pass() {
        let mut fields = HeaderMap::new();
        fields.append("grpc-status", HeaderValue::from_static("0"));
        fields.append("content-length", HeaderValue::from_static("0"));
        let map = trailers(fields).unwrap();
        assert!(map.len() == 1 && map["grpc-status"] == "0");
        assert!(trailers(HeaderMap::new()).is_none());
    }
}
