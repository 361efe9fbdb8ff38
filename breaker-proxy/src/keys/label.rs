//! The one canonical form of a key's value, from whatever part of a request it was read; it looks for no value.
//!
//! All texts are UTF-8 without controls and without blanks at either end, as fields of a head have none: whether a value came in a
//! field, a parameter or a body, one client has one key.

use super::{LABEL_MAX, LabelRoom, Why};
use crate::inspect::form::Encoded;
use crate::inspect::json::Value;
use crate::path;

/// The canonical label; `None`: it is empty.
pub(super) fn of_text(text: &[u8]) -> Result<Option<&[u8]>, Why> {
    let text = std::str::from_utf8(text).map_err(|_| Why::Unfit("is not UTF-8"))?;
    // Before the blanks go, for some controls are blanks as well.
    if text.chars().any(char::is_control) {
        return Err(Why::Unfit("holds a control character"));
    }
    let text = text.trim();
    if text.len() > LABEL_MAX {
        return Err(Why::TooLong);
    }
    Ok((!text.is_empty()).then_some(text.as_bytes()))
}

/// That of a field's value: any bytes, as fields have them.
pub(super) fn of_field(value: &[u8]) -> Result<Option<&[u8]>, Why> {
    let label = value.trim_ascii();
    if label.len() > LABEL_MAX {
        return Err(Why::TooLong);
    }
    Ok((!label.is_empty()).then_some(label))
}

/// That of a parameter or a form's field.
pub(super) fn of_encoded<'r, 'a: 'r>(
    value: Encoded<'a>,
    room: &'r mut LabelRoom,
) -> Result<Option<&'r [u8]>, Why> {
    match value.read(room) {
        Ok(Some(text)) => of_text(text),
        Ok(None) => Err(Why::TooLong),
        Err(_) => Err(Why::Unfit("is no proper encoding")),
    }
}

/// That of a JSON value: a text, or a whole number, which means the same as the text of its digits. `null` is nothing.
pub(super) fn of_json<'r, 'a: 'r>(
    value: Value<'a>,
    room: &'r mut LabelRoom,
) -> Result<Option<&'r [u8]>, Why> {
    match value {
        Value::Text(text) => of_text(text.read(room).ok_or(Why::TooLong)?),
        Value::Number(number) => {
            let digits = number.strip_prefix('-').unwrap_or(number);
            let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit()) && number != "-0";
            if !is_whole {
                return Err(Why::Unfit("is a number that has more than one spelling"));
            }
            of_text(number.as_bytes())
        }
        Value::Null => Ok(None),
        Value::Flag(_) | Value::Nested => Err(Why::Unfit("is neither a text nor a number")),
    }
}

/// That of a segment of a canonical path, decoded. Some servers end a segment at its first semicolon and others do not, so one
/// with a semicolon names nobody.
pub(super) fn of_segment<'r, 'a: 'r>(
    segment: &'a str,
    room: &'r mut LabelRoom,
) -> Result<Option<&'r [u8]>, Why> {
    let text = if segment.contains('%') {
        let mut bytes = segment.bytes();
        while let Some(byte) = bytes.next() {
            let mut digit = || {
                let digit = bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                digit.and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0)
            };
            // A canonical path has two digits behind each `%`.
            room.push(&[if byte == b'%' { digit() << 4 | digit() } else { byte }]);
        }
        room.bytes().ok_or(Why::TooLong)?
    } else {
        segment.as_bytes()
    };
    if text.contains(&b';') {
        return Err(Why::Unfit("holds a semicolon"));
    }
    match of_text(text)? {
        // With blanks around them they are no dot segments, which have no single meaning; but nobody could name the key that is left.
        Some(b"." | b"..") => Err(Why::Unfit("is nothing but dots and blanks")),
        label => Ok(label),
    }
}

/// Whether a text is the label of some segment: its encoding must come through a path unharmed.
pub(super) fn fits_segment(label: &[u8]) -> bool {
    let mut encoded = String::from("/");
    for &byte in label {
        let is_plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if is_plain {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    let Ok(path) = path::canonical(&encoded) else { return false };
    let segment = path.strip_prefix('/').unwrap_or_default();
    !segment.contains('/')
        && matches!(of_segment(segment, &mut LabelRoom::default()), Ok(Some(own)) if own == label)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a segment of dots with encoded blanks around them names nobody: it was counted under a key that no order could name.
    #[test]
    fn dots_with_blanks_around_them_named_a_key_that_could_not_be_killed() {
        for segment in [".%20", "%20.", "..%20", "%20..%20", "%C2%A0."] {
            let mut room = LabelRoom::default();
            assert!(matches!(of_segment(segment, &mut room), Err(Why::Unfit(_))), "{segment}");
        }
        for segment in ["...%20", ".a%20", "a.", "%20a%20."] {
            let mut room = LabelRoom::default();
            let label = of_segment(segment, &mut room).unwrap().unwrap();
            assert!(fits_segment(label), "{segment}");
        }
    }
}
