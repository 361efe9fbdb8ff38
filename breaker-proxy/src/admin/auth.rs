//! Who may use the admin plane: one bearer token, compared in constant time; it knows no paths and no roles.

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The token, as its digest: comparing digests tells nothing about the token's length or its first bytes.
#[derive(Clone)]
pub struct Token {
    digest: [u8; 32],
}

impl Token {
    /// The token that lets in.
    #[must_use]
    pub fn new(token: &str) -> Token {
        Token { digest: digest(token.as_bytes()) }
    }

    /// Does the request carry it? A doubled `Authorization` never does.
    #[must_use]
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some((scheme, token)) = split(value.as_bytes()) else { return false };
        scheme.eq_ignore_ascii_case(b"bearer") && bool::from(self.digest.ct_eq(&digest(token)))
    }
}

/// Scheme and token of `Bearer abc`.
fn split(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = value.split_at(space);
    Some((scheme, rest.trim_ascii()))
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_static(value))).collect()
    }

    /// Goal: exactly the token lets in, once, as a bearer.
    #[test]
    fn only_the_token_lets_in() {
        let token = Token::new("0123456789abcdef");
        for right in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef "] {
            assert!(token.allows(&headers(&[right])), "{right}");
        }
        for wrong in [
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "Bearer",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "",
        ] {
            assert!(!token.allows(&headers(&[wrong])), "{wrong}");
        }
        assert!(!token.allows(&headers(&[])));
        let right = "Bearer 0123456789abcdef";
        assert!(!token.allows(&headers(&[right, right])), "doubled");
    }
}
