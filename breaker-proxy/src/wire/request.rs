//! The head of a request as we send it: canonical target, our own framing and forwarding fields; nothing of the client's connection.

use super::asked::Asked;
use super::fields::{Kind, Named, kind, write_cookies};
use super::ids::{REQUEST_ID, names_request_id};
use crate::config::Forwarded;
use hyper::{Method, header};
use std::io::Write as _;
use std::net::IpAddr;

/// How the body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Nobody knows how many.
    Chunked,
}

/// What the head says that is not the client's own words.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    /// Host and port, as checked.
    pub host: &'a str,
    /// The canonical path.
    pub path: &'a str,
    /// The body.
    pub framing: Framing,
    /// It asks to go on as a WebSocket.
    pub switches: bool,
    /// The answer is looked into: it must come whole, and in no coding.
    pub plain: bool,
    /// Which fields tell of the client.
    pub forwarded: Forwarded,
    /// The client came by TLS.
    pub secure: bool,
    /// The id of the request; `None`: it passes as the client sent it.
    pub request_id: Option<&'a [u8]>,
    /// The client.
    pub peer: IpAddr,
    /// The same as text.
    pub peer_text: &'a str,
}

/// Appends the whole head.
pub fn write(out: &mut Vec<u8>, head: &Asked<'_>, ours: &Ours<'_>) {
    let mut push = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    push(&[head.method.as_str().as_bytes(), b" ", ours.path.as_bytes()]);
    if let Some(query) = head.query {
        push(&[b"?", query.as_bytes()]);
    }
    push(&[b" HTTP/1.1\r\nhost: ", ours.host.as_bytes(), b"\r\n"]);
    let mut values = head.fields.all(&header::CONNECTION).peekable();
    let named = values.peek().is_some().then(|| Named::of(values));
    let (mut cookies, mut codings) = (false, false);
    for (name, value) in head.fields.iter() {
        let passes = match kind(name) {
            Kind::EndToEnd if ours.plain && asks_for_another(name) => false,
            Kind::EndToEnd if ours.request_id.is_some() && names_request_id(name) => false,
            Kind::EndToEnd => named.as_ref().is_none_or(|named| !named.has(name)),
            Kind::Cookie if head.http2 => {
                cookies = true;
                false
            }
            Kind::Cookie => true,
            Kind::Hop => {
                codings |= name == "te";
                false
            }
            _ => false,
        };
        if passes {
            push(&[name.as_bytes(), b": ", value, b"\r\n"]);
        }
    }
    if cookies {
        write_cookies(out, head.fields.all(&header::COOKIE));
    }
    if ours.plain {
        out.extend_from_slice(b"accept-encoding: identity\r\n");
    }
    if let Some(id) = ours.request_id {
        for part in [REQUEST_ID.as_str().as_bytes(), b": ", id, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    write_forwarding(out, ours);
    if ours.switches {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
    } else if codings && head.takes_trailers() {
        // The client's word is for us alone; this is ours, and we do pass trailers on to who takes them (RFC 9110, 10.1.4).
        out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    // Writing to a vector does not fail.
    let _ = match ours.framing {
        Framing::None if tells_length(&head.method) => out.write_all(b"content-length: 0\r\n\r\n"),
        Framing::None => out.write_all(b"\r\n"),
        Framing::Length(length) => write!(out, "content-length: {length}\r\n\r\n"),
        Framing::Chunked => out.write_all(b"transfer-encoding: chunked\r\n\r\n"),
    };
}

/// Does this field ask for an answer in another coding, or for a part of it; also as a server spells it that turns fields into variables?
fn asks_for_another(name: &str) -> bool {
    let is = |own: &str| {
        own.len() == name.len()
            && own
                .bytes()
                .zip(name.bytes())
                .all(|(own, byte)| own == byte || (own == b'-' && byte == b'_'))
    };
    is("accept-encoding") || is("range") || is("if-range")
}

fn write_forwarding(out: &mut Vec<u8>, ours: &Ours<'_>) {
    let Ours { host, peer, peer_text, .. } = ours;
    let proto = if ours.secure { "https" } else { "http" };
    if matches!(ours.forwarded, Forwarded::XForwarded | Forwarded::Both) {
        out.extend_from_slice(b"x-forwarded-for: ");
        out.extend_from_slice(peer_text.as_bytes());
        out.extend_from_slice(b"\r\nx-forwarded-proto: ");
        out.extend_from_slice(proto.as_bytes());
        out.extend_from_slice(b"\r\nx-forwarded-host: ");
        out.extend_from_slice(host.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if matches!(ours.forwarded, Forwarded::Forwarded | Forwarded::Both) {
        // RFC 7239, 6: an IPv6 address stands in brackets and quotes.
        let _ = match peer {
            IpAddr::V4(v4) => {
                write!(out, "forwarded: for={v4};host=\"{host}\";proto={proto}\r\n")
            }
            IpAddr::V6(v6) => {
                write!(out, "forwarded: for=\"[{v6}]\";host=\"{host}\";proto={proto}\r\n")
            }
        };
    }
}

/// Whether a request of this method says so when it has no body: else some servers answer 411, or wait for one (RFC 9110, 8.6).
fn tells_length(method: &Method) -> bool {
    *method == Method::POST || *method == Method::PUT || *method == Method::PATCH
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::{Request, Version};
    use std::net::Ipv4Addr;

    fn sent(request: Request<()>, forwarded: Forwarded, framing: Framing) -> String {
        sent_as(request, forwarded, framing, None)
    }

    fn sent_as(
        request: Request<()>,
        forwarded: Forwarded,
        framing: Framing,
        request_id: Option<&[u8]>,
    ) -> String {
        let (head, ()) = request.into_parts();
        let peer = IpAddr::from(Ipv4Addr::new(10, 0, 0, 9));
        let mut out = Vec::new();
        let (host, path, peer_text) = ("good", head.uri.path(), "10.0.0.9");
        let (secure, switches) = (false, false);
        let plain = false;
        let ours = Ours {
            host,
            path,
            framing,
            switches,
            plain,
            forwarded,
            secure,
            request_id,
            peer,
            peer_text,
        };
        write(&mut out, &Asked::of(&head), &ours);
        String::from_utf8(out).unwrap()
    }

    /// Goal: a plain request is passed on as it is, and says who asked.
    #[test]
    fn a_plain_request() {
        let request = Request::get("/a/b?x=1&y").header("accept", "*/*").header("host", "evil");
        let text = sent(request.body(()).unwrap(), Forwarded::XForwarded, Framing::None);
        assert_eq!(
            text,
            "GET /a/b?x=1&y HTTP/1.1\r\nhost: good\r\naccept: */*\r\nx-forwarded-for: 10.0.0.9\r\n\
             x-forwarded-proto: http\r\nx-forwarded-host: good\r\n\r\n"
        );
    }

    /// Goal: what belongs to the client's connection, and what it claims of itself, never passes, whichever form we write.
    #[test]
    fn a_client_cannot_name_itself_or_frame() {
        for how in [Forwarded::XForwarded, Forwarded::Forwarded, Forwarded::Both, Forwarded::None] {
            let request = Request::post("/")
                .header("connection", "close, x-trace, cookie")
                .header("x-trace", "evil")
                .header("te", "evil")
                .header("upgrade", "evil")
                .header("keep-alive", "evil")
                .header("transfer-encoding", "evil")
                .header("content-length", "666")
                .header("expect", "evil")
                .header("x-forwarded-for", "evil")
                .header("x_forwarded_for", "evil")
                .header("forwarded", "for=evil")
                .header("x-real-ip", "evil")
                .header("cookie", "a=1");
            let text = sent(request.body(()).unwrap(), how, Framing::Length(5));
            assert!(!text.contains("evil") && !text.contains("666"), "{how:?}: {text}");
            assert_eq!(text.contains("10.0.0.9"), how != Forwarded::None);
            assert!(text.contains("cookie: a=1\r\n"), "protected: {text}");
            assert!(text.ends_with("content-length: 5\r\n\r\n"), "{text}");
        }
    }

    /// Goal: an upstream hears that its client takes trailers, and of no other coding that the client named.
    #[test]
    fn trailers_are_asked_for_where_they_are_taken() {
        let ours = "te: trailers\r\nconnection: te\r\n";
        for (given, expected) in [
            ("trailers", ours),
            ("deflate;q=0.5, Trailers", ours),
            ("deflate", ""),
            ("trailers;q=1", ""),
            ("", ""),
        ] {
            let request = Request::get("/").header("te", given).header("connection", "te");
            let text = sent(request.body(()).unwrap(), Forwarded::None, Framing::None);
            assert_eq!(text, format!("GET / HTTP/1.1\r\nhost: good\r\n{expected}\r\n"), "{given}");
        }
    }

    /// Goal: an id of ours takes the place of all that a server may take for one; without one, what the client sent passes.
    #[test]
    fn our_id_takes_the_place_of_any() {
        let of = |id: Option<&[u8]>| {
            let request = Request::get("/")
                .header("x-request-id", "evil")
                .header("x_request_id", "evil")
                .header("connection", "x-request-id");
            sent_as(request.body(()).unwrap(), Forwarded::None, Framing::None, id)
        };
        assert_eq!(of(Some(b"id-1")), "GET / HTTP/1.1\r\nhost: good\r\nx-request-id: id-1\r\n\r\n");
        assert_eq!(of(None), "GET / HTTP/1.1\r\nhost: good\r\nx_request_id: evil\r\n\r\n");
    }

    /// Goal: the cookies of HTTP/2 become one field; those of HTTP/1.1 stay as they are.
    #[test]
    fn cookies_are_joined() {
        for (version, expected) in [
            (Version::HTTP_2, "cookie: a=1; b=2\r\n"),
            (Version::HTTP_11, "cookie: a=1\r\ncookie: b=2\r\n"),
        ] {
            let request =
                Request::get("/").version(version).header("cookie", "a=1").header("cookie", "b=2");
            let text = sent(request.body(()).unwrap(), Forwarded::None, Framing::None);
            assert_eq!(text, format!("GET / HTTP/1.1\r\nhost: good\r\n{expected}\r\n"));
        }
    }

    /// Goal: the framing is ours: none, a length, chunks; and a method that usually has a body says that there is none.
    #[test]
    fn the_framing_is_ours() {
        let of = |method: &str, framing| {
            let request = Request::builder().method(method).uri("/").body(()).unwrap();
            let text = sent(request, Forwarded::None, framing);
            text.rsplit_once("host: good\r\n").unwrap().1.to_owned()
        };
        assert_eq!(of("GET", Framing::None), "\r\n");
        assert_eq!(of("DELETE", Framing::None), "\r\n");
        for method in ["POST", "PUT", "PATCH"] {
            assert_eq!(of(method, Framing::None), "content-length: 0\r\n\r\n");
        }
        assert_eq!(of("GET", Framing::Length(7)), "content-length: 7\r\n\r\n");
        assert_eq!(of("POST", Framing::Chunked), "transfer-encoding: chunked\r\n\r\n");
    }
}
