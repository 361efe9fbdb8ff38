//! Whether a body may be looked into, as its head describes it; it reads no body.

use super::Why;
use crate::wire::asked::Fields;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};

/// What a body must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON document.
    Json,
    /// A form, as a query is encoded.
    Form,
    /// A stream of server-sent events.
    Events,
}

/// Whether the head describes a body of this kind, plain and in UTF-8. A body that its reader takes for something else than we do
/// would name two clients at once, so the type must be said, once.
///
/// # Errors
/// Any other body.
pub fn is_readable(fields: Fields<'_>, kind: Kind) -> Result<(), Why> {
    is_plain(fields.all(&CONTENT_ENCODING), fields.all(&CONTENT_TYPE), kind)
}

/// The same, of all values of `content-encoding` and of `content-type`.
///
/// # Errors
/// Any other body.
pub fn is_plain<'a>(
    codings: impl Iterator<Item = &'a [u8]>,
    mut types: impl Iterator<Item = &'a [u8]>,
    kind: Kind,
) -> Result<(), Why> {
    let mut codings = codings.flat_map(|value| value.split(|&byte| byte == b','));
    if codings.any(|coding| !coding.trim_ascii().eq_ignore_ascii_case(b"identity")) {
        return Err(Why::Encoded);
    }
    let (Some(kind_said), None) = (types.next(), types.next()) else { return Err(Why::OtherType) };
    let text = std::str::from_utf8(kind_said).map_err(|_| Why::OtherType)?.to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let fits = match kind {
        Kind::Json => {
            let suffixed =
                essence.strip_prefix("application/").and_then(|rest| rest.strip_suffix("+json"));
            essence == "application/json" || suffixed.is_some_and(is_token)
        }
        Kind::Form => essence == "application/x-www-form-urlencoded",
        Kind::Events => essence == "text/event-stream",
    };
    // Other parameters say nothing that matters, but for a list of types behind a comma.
    let is_plain = |part: &str| match part.split_once('=') {
        Some((name, value)) if name.trim() == "charset" => {
            matches!(value.trim().trim_matches('"'), "utf-8" | "utf8" | "us-ascii")
        }
        _ => !part.contains(','),
    };
    if fits && parts.all(is_plain) { Ok(()) } else { Err(Why::OtherType) }
}

fn is_token(text: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'+');
    !text.is_empty() && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::{Kind, Why, is_readable};
    use crate::wire::asked::Fields;
    use hyper::HeaderMap;

    fn readable(lines: &[(&'static str, &str)], kind: Kind) -> Result<(), Why> {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        is_readable(Fields::Map(&map), kind)
    }

    /// Goal: a body is looked into only if its head says once, and plainly, what it is.
    #[test]
    fn a_body_is_what_its_head_says_once() {
        for said in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/problem+json",
            "application/vnd.api+json; profile=x",
            "application/json;",
        ] {
            assert_eq!(readable(&[("content-type", said)], Kind::Json), Ok(()), "{said}");
            assert_eq!(
                readable(&[("content-type", said)], Kind::Form),
                Err(Why::OtherType),
                "{said}"
            );
        }
        for said in [
            "text/plain",
            "text/json",
            "application/jsonp",
            "application/json, text/plain",
            "application/json; charset=utf-16",
            "application/json; charset=utf-7",
            "application/json; charset=utf-8; charset=utf-16",
            "application/+json",
            "application/a b+json",
            "application/json; a, text/xml",
            "application/x-www-form-urlencoded",
            "",
            "json",
        ] {
            assert_eq!(
                readable(&[("content-type", said)], Kind::Json),
                Err(Why::OtherType),
                "{said}"
            );
        }
        let form = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        assert_eq!(readable(&[form], Kind::Form), Ok(()));
        assert_eq!(readable(&[], Kind::Form), Err(Why::OtherType), "nothing is said");
        assert_eq!(readable(&[form, form], Kind::Form), Err(Why::OtherType), "said twice");
    }

    /// Goal: an encoded body is not looked into, whatever else is said of it.
    #[test]
    fn an_encoded_body_is_not_looked_into() {
        let json = ("content-type", "application/json");
        for coding in ["gzip", "identity, gzip", "br", "x-unknown", ""] {
            assert_eq!(
                readable(&[json, ("content-encoding", coding)], Kind::Json),
                Err(Why::Encoded),
                "{coding}"
            );
        }
        assert_eq!(readable(&[json, ("content-encoding", "Identity")], Kind::Json), Ok(()));
        let events = ("content-type", "text/event-stream; charset=utf-8");
        assert_eq!(readable(&[events], Kind::Events), Ok(()));
        assert_eq!(readable(&[events], Kind::Json), Err(Why::OtherType));
        assert_eq!(readable(&[json], Kind::Events), Err(Why::OtherType));
        let twice = [json, ("content-encoding", "identity"), ("content-encoding", "gzip")];
        assert_eq!(readable(&twice, Kind::Json), Err(Why::Encoded));
    }
}
