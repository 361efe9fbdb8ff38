//! The fields of a head that are ours: hop-by-hop fields go, the forwarding fields are written anew; it routes nothing.

use crate::config::Forwarded;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::cell::Cell;
use std::net::IpAddr;

/// Fields that belong to one connection (RFC 9110, 7.6.1), and those by which we frame anew.
const HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Who is at the other end of a client connection: looked up and written down once, not with every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address; an IPv4 address mapped into IPv6 is itself.
    pub ip: IpAddr,
    /// The same as the value of a field.
    pub field: HeaderValue,
    /// The worker's second in which the kernel last took bytes for it.
    pub moved: Cell<u64>,
    /// Set once it stopped reading an answer: its connection is to end.
    pub stalled: Cell<bool>,
}

impl Peer {
    /// The peer with this address.
    #[must_use]
    pub fn new(ip: IpAddr) -> Peer {
        let ip = ip.to_canonical();
        // The text of an address is always a valid value.
        let unknown = HeaderValue::from_static("unknown");
        let field = HeaderValue::try_from(ip.to_string()).unwrap_or(unknown);
        Peer { ip, field, moved: Cell::new(0), stalled: Cell::new(false) }
    }
}

/// Fields a client may not have removed by naming them in `Connection`.
fn protected(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == header::CONTENT_LENGTH
        || *name == header::AUTHORIZATION
        || *name == header::COOKIE
        || *name == header::FORWARDED
        || name.as_str().starts_with("x-forwarded-")
}

/// Takes out what belongs to one connection only, and what `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
            .filter(|name| !protected(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP {
        headers.remove(name);
    }
}

/// HTTP/2 may carry a cookie in pieces; in HTTP/1.1 it is one field (RFC 9113, 8.2.3), and more than one is read differently
/// by different servers.
pub fn join_cookies(headers: &mut HeaderMap) {
    let pieces: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() < 2 {
        return;
    }
    // Pieces of valid values make a valid value.
    if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(b"; ".as_slice())) {
        headers.insert(header::COOKIE, whole);
    }
}

const X_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL: HeaderName = HeaderName::from_static("x-real-ip");

/// Any name of the kind, for who knows which of them an upstream trusts; also as servers see it that turn fields into
/// variables: there `X_Forwarded_For` is `X-Forwarded-For`.
fn reads_as_forwarding(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-")
        || name.as_str().contains('_') && {
            let name = name.as_str().replace('_', "-");
            name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
        }
}

/// Writes the fields that tell the upstream about the client. What the client sent of them is gone in every case:
/// whoever stands behind us may trust them.
pub fn own_forwarding(headers: &mut HeaderMap, how: Forwarded, peer: &Peer, host: &HeaderValue) {
    for name in [&X_FOR, &X_PROTO, &X_HOST, &X_PORT, &X_REAL, &header::FORWARDED] {
        headers.remove(name);
    }
    if headers.keys().any(reads_as_forwarding) {
        let names: Vec<_> =
            headers.keys().filter(|name| reads_as_forwarding(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
    if matches!(how, Forwarded::XForwarded | Forwarded::Both) {
        headers.insert(X_FOR, peer.field.clone());
        headers.insert(X_PROTO, HeaderValue::from_static("http"));
        headers.insert(X_HOST, host.clone());
    }
    if matches!(how, Forwarded::Forwarded | Forwarded::Both) {
        let host = host.to_str().unwrap_or_default();
        // RFC 7239, 6: an IPv6 address stands in brackets and quotes.
        let text = match peer.ip {
            IpAddr::V4(v4) => format!("for={v4};host=\"{host}\";proto=http"),
            IpAddr::V6(v6) => format!("for=\"[{v6}]\";host=\"{host}\";proto=http"),
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(header::FORWARDED, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    /// Goal: `Connection` takes its own fields with it, but never one that others rely on.
    #[test]
    fn connection_names_fields_but_not_ours() {
        let mut headers = map(&[
            ("connection", "close, x-trace, host, x-forwarded-for"),
            ("x-trace", "1"),
            ("host", "a"),
            ("te", "trailers"),
            ("keep-alive", "timeout=5"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a"), ("accept", "*/*")]));
    }

    /// Goal: what a client claims about itself is replaced, whichever of the two forms we write.
    #[test]
    fn a_client_cannot_name_itself() {
        let spoofed = map(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-host", "evil"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
        ]);
        let peer = Peer::new(IpAddr::from(Ipv4Addr::new(10, 0, 0, 9)));
        let host = HeaderValue::from_static("good");
        for how in [Forwarded::XForwarded, Forwarded::Forwarded, Forwarded::Both, Forwarded::None] {
            let mut headers = spoofed.clone();
            own_forwarding(&mut headers, how, &peer, &host);
            let all = format!("{headers:?}");
            assert!(!all.contains("1.2.3.4") && !all.contains("evil"), "{how:?}: {all}");
            assert_eq!(all.contains("10.0.0.9"), how != Forwarded::None);
        }
    }
}
