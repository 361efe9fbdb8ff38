//! Which fields of a head pass, and which are ours to write (RFC 9110, 7.6.1; RFC 7239).

use std::collections::HashSet;
use std::str;

/// What a field is to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of one connection, or of the framing: never passed on.
    Hop,
    /// `Connection` itself, which names more of the kind.
    Connection,
    /// Whom the request is for.
    Host,
    /// `Content-Length`: we frame anew.
    Length,
    /// `Expect`: answered by us.
    Expect,
    /// Tells of the client, or may be taken for a field that is not to pass: ours to write, and never the client's.
    Forwarding,
    /// `Cookie`, of which HTTP/1.1 has one.
    Cookie,
    /// Everything else.
    EndToEnd,
}

/// What a field with this lower-case name is.
#[must_use]
pub fn kind(name: &str) -> Kind {
    match name {
        "connection" => Kind::Connection,
        "keep-alive" | "proxy-connection" | "te" | "trailer" | "transfer-encoding" | "upgrade"
        | "http2-settings" => Kind::Hop,
        "host" => Kind::Host,
        "content-length" => Kind::Length,
        "expect" => Kind::Expect,
        "cookie" => Kind::Cookie,
        "forwarded" | "x-real-ip" => Kind::Forwarding,
        _ if name.starts_with("x-forwarded-") => Kind::Forwarding,
        // As servers see it that turn fields into variables: there `X_Forwarded_For` is `X-Forwarded-For`, and
        // `Transfer_Encoding` frames.
        _ if name.contains('_') => match kind(&name.replace('_', "-")) {
            Kind::EndToEnd => Kind::EndToEnd,
            _ => Kind::Forwarding,
        },
        _ => Kind::EndToEnd,
    }
}

/// The fields that `Connection` takes with it: a set, so that a list of thousands costs no more than to be read once.
#[derive(Debug, Default)]
pub struct Named(HashSet<Box<str>>);

impl Named {
    /// As the values of `Connection` say; nobody may have a field removed that others rely on.
    pub fn of<'a>(values: impl Iterator<Item = &'a [u8]>) -> Named {
        let tokens = values.flat_map(|value| value.split(|&byte| byte == b','));
        let names = tokens.filter_map(|token| str::from_utf8(token.trim_ascii()).ok());
        let names = names.map(str::to_ascii_lowercase);
        Named(names.filter(|name| !stays_anyway(name)).map(String::into_boxed_str).collect())
    }

    /// Whether the field with this lower-case name is one of them.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// What a name in `Connection` changes nothing about: words of its own, and fields that may not be removed by naming them.
fn stays_anyway(name: &str) -> bool {
    matches!(name, "" | "keep-alive" | "close")
        || matches!(name, "host" | "content-length" | "authorization" | "cookie" | "forwarded")
        || name.starts_with("x-forwarded-")
}

/// The cookies of a request as one field. HTTP/2 may carry a cookie in pieces; in HTTP/1.1 it is one field (RFC 9113, 8.2.3), and
/// more than one is read differently by different servers.
pub fn write_cookies<'a>(out: &mut Vec<u8>, pieces: impl Iterator<Item = &'a [u8]>) {
    for (index, piece) in pieces.enumerate() {
        out.extend_from_slice(if index == 0 { b"cookie: " } else { b"; " });
        out.extend_from_slice(piece);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whatever spelling a server may take for the client's address is ours to write.
    #[test]
    fn forwarding_is_known_by_any_spelling() {
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-anything",
            "x-real-ip",
            "x_forwarded_for",
            "x_real-ip",
            "x-forwarded_host",
        ] {
            assert_eq!(kind(name), Kind::Forwarding, "{name}");
        }
        assert_eq!(kind("x_request_id"), Kind::EndToEnd);
        assert_eq!(kind("x-forward"), Kind::EndToEnd);
    }

    /// Goal: `Connection` names its own fields, in any spelling and list, but none that others rely on.
    #[test]
    fn connection_names_fields_but_not_ours() {
        let values: [&[u8]; 3] = [b"close, X-Trace", b" host ,x-forwarded-for,,", b"co\x80okie"];
        let named = Named::of(values.into_iter());
        let has = |name: &str| named.has(name);
        assert!(has("x-trace") && !has("close"));
        assert!(!has("host") && !has("x-forwarded-for") && !has("cookie"));
    }

    /// Goal: however long the list in `Connection`, what stands last in it is taken with it as well.
    #[test]
    fn a_long_list_hides_no_name() {
        let list = (0..5_000).map(|number| format!("x-{number}, ")).collect::<String>() + "x-last";
        let named = Named::of([list.as_bytes()].into_iter());
        assert!(named.has("x-last"));
        assert!(named.has("x-0"));
        assert!(!named.has("x-5000"));
    }

    /// Goal: fields that frame or belong to a connection are known in the spelling of variables, too; others stay what they are.
    #[test]
    fn underscores_hide_no_field() {
        for name in ["transfer_encoding", "content_length", "proxy_connection", "keep_alive"] {
            assert_eq!(kind(name), Kind::Forwarding, "{name}");
        }
        assert_eq!(kind("x_te_connection"), Kind::EndToEnd);
    }
}
