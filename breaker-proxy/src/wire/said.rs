//! What a head says of the framing of its body and of its connection (RFC 9112, 6 and 9.3), for both directions.

use super::fields::Named;

/// What a head says of its framing and its connection.
#[derive(Debug, Default)]
pub struct Said {
    /// `Content-Length`.
    pub length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
    /// The connection ends after this.
    pub closes: bool,
    /// What `Connection` names, if it is there.
    pub named: Option<Named>,
}

/// Where the body ends has no single meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt;

impl Said {
    /// As the fields of a head say; `is_11`: the head is of HTTP/1.1.
    ///
    /// # Errors
    /// They frame the body in no single way.
    pub fn of<'a>(
        fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
        is_11: bool,
    ) -> Result<Said, Doubt> {
        let mut said = Said { closes: !is_11, ..Said::default() };
        let mut connection = false;
        for (name, value) in fields.clone() {
            if name.eq_ignore_ascii_case("content-length") {
                // Equal values are one (RFC 9110, 8.6).
                for value in value.split(|&byte| byte == b',') {
                    let value = number(value.trim_ascii()).ok_or(Doubt)?;
                    if said.length.is_some_and(|length| length != value) {
                        return Err(Doubt);
                    }
                    said.length = Some(value);
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                // A coding that we do not know would hide where the body ends; HTTP/1.0 has none.
                if said.chunked || !is_11 || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Doubt);
                }
                said.chunked = true;
            } else if name.eq_ignore_ascii_case("connection") {
                connection = true;
            }
        }
        if connection {
            let own = fields.filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
            let values = own.map(|(_, value)| value);
            let says = |token: &[u8]| {
                let mut tokens = values.clone().flat_map(|value| value.split(|&byte| byte == b','));
                tokens.any(|own| own.trim_ascii().eq_ignore_ascii_case(token))
            };
            said.closes = says(b"close") || (!is_11 && !says(b"keep-alive"));
            said.named = Some(Named::of(values));
        }
        Ok(said)
    }
}

/// A number of digits and nothing else.
#[must_use]
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}
