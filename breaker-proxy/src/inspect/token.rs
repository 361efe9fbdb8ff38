//! The claims of a bearer token (RFC 6750, RFC 7519), read and **not** verified: anyone can write such a token; it knows no key and
//! no clock.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;

/// The longest payload that is decoded, in bytes of its text.
pub const MAX_PAYLOAD: usize = 16 * 1024;

/// Why a field is no token with claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// It does not consist of three parts in base64url (RFC 7515, 7.1).
    Form,
    /// Its payload is longer than [`MAX_PAYLOAD`].
    TooLong,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenError::Form => "is not a signed token of three parts",
            TokenError::TooLong => "is too long",
        })
    }
}

impl std::error::Error for TokenError {}

/// The payload of the bearer token in the value of an `Authorization` field; `None`: the field is of another scheme.
///
/// All three parts must be proper base64url without padding and without loose bits, so that one payload has one spelling.
///
/// # Errors
/// A bearer token that is no signed token.
pub fn payload(authorization: &[u8]) -> Result<Option<Vec<u8>>, TokenError> {
    let value = authorization.trim_ascii();
    let at = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at_checked(at).unwrap_or((value, b""));
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(None);
    }
    let mut parts = token.trim_ascii().split(|byte| *byte == b'.');
    let (Some(head), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Form);
    };
    if payload.len() > MAX_PAYLOAD {
        return Err(TokenError::TooLong);
    }
    let is_part = |part: &[u8]| {
        part.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if head.is_empty() || !is_part(head) || !is_part(signature) {
        return Err(TokenError::Form);
    }
    URL_SAFE_NO_PAD.decode(payload).map(Some).map_err(|_| TokenError::Form)
}

#[cfg(test)]
mod tests {
    use super::{MAX_PAYLOAD, TokenError, URL_SAFE_NO_PAD, payload};
    use base64::Engine as _;
    use proptest::prelude::{any, prop, proptest};

    /// Goal: the payload of the standard's own token (RFC 7519, 3.1) is read.
    #[test]
    fn the_payload_is_read() {
        let field = "Bearer eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let text = payload(field.as_bytes()).unwrap().unwrap();
        assert_eq!(
            text,
            b"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}"
        );
        assert_eq!(
            payload(b" bEARER   a.e30.  ").unwrap().unwrap(),
            b"{}",
            "unsigned: nothing is verified here"
        );
    }

    /// Goal: another scheme has no claims; a bearer token of another form is an error and not a missing one.
    #[test]
    fn other_schemes_and_forms() {
        for field in ["", "Basic YTpi", "Bearerx a.e30.b", "Negotiate a.e30.b", "a.e30.b"] {
            assert_eq!(payload(field.as_bytes()), Ok(None), "{field}");
        }
        for field in [
            "Bearer",
            "Bearer ",
            "Bearer opaque",
            "Bearer a.e30",
            "Bearer a.e30.b.c",
            "Bearer a.e30.b.c.d",
            "Bearer .e30.b",
            "Bearer a.e30=.b",
            "Bearer a.e3 0.b",
            "Bearer a.e31.b",
            "Bearer a.e+0.b",
            "Bearer a.e/0.b",
            "Bearer a b.e30.c",
            "Bearer a.e30.b=",
            "Bearer a.e.b",
            "Bearer a.e30\t.b",
            "Bearer a.e30.b, Bearer a.e30.c",
        ] {
            assert_eq!(payload(field.as_bytes()), Err(TokenError::Form), "{field}");
        }
        let long = format!("Bearer a.{}.b", "A".repeat(MAX_PAYLOAD + 1));
        assert_eq!(payload(long.as_bytes()), Err(TokenError::TooLong));
    }

    proptest! {
        /// Goal: what was encoded is read; no bytes make it panic, and a payload has one spelling only.
        #[test]
        fn one_payload_has_one_spelling(bytes in prop::collection::vec(any::<u8>(), 0..80), noise in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = URL_SAFE_NO_PAD.encode(&bytes);
            let field = format!("Bearer a.{text}.b");
            assert_eq!(payload(field.as_bytes()), Ok(Some(bytes)));
            let _ = payload(&[b"Bearer ", noise.as_slice()].concat());
            let odd = [b"Bearer a.", noise.as_slice(), b".b"].concat();
            if let Ok(Some(found)) = payload(&odd) {
                assert_eq!(URL_SAFE_NO_PAD.encode(found).as_bytes(), noise);
            }
        }
    }
}
