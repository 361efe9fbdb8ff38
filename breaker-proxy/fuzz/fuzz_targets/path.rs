//! The canonical path against a second implementation, which takes segments apart first and decodes them with a crate of others;
//! and what must hold of every path that is accepted: it is its own canonical form, and every other spelling of it becomes it.
#![no_main]

use breaker_proxy::path::canonical;
use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// A text as it is written, piece by piece: one character, or `%` with two digits.
fn pieces(text: &str) -> Option<Vec<&str>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let width = if first == '%' { 3 } else { first.len_utf8() };
        let (piece, behind) = rest.split_at_checked(width)?;
        if first == '%' && !piece.bytes().skip(1).all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        pieces.push(piece);
        rest = behind;
    }
    Some(pieces)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The canonical form of one segment, which may be empty.
fn segment(text: &str) -> Option<String> {
    let mut written = String::new();
    for piece in pieces(text)? {
        let decoded: Vec<u8> = percent_decode_str(piece).collect();
        let [byte] = decoded[..] else { return None };
        match (piece.len(), is_unreserved(byte)) {
            (_, true) => written.push(char::from(byte)),
            (1, false) if b"!$&'()*+,;=:@".contains(&byte) => written.push(char::from(byte)),
            (3, false) => written.push_str(&piece.to_ascii_uppercase()),
            _ => return None,
        }
    }
    let meaning = percent_decode_str(&written).decode_utf8().ok()?;
    let is_hidden = |c: char| c.is_control() || c == '/' || c == '\\';
    let is_dots = |part: &str| part == "." || part == "..";
    if meaning.chars().any(is_hidden) || meaning.starts_with(';') || meaning.split(';').any(is_dots) {
        return None;
    }
    // An encoding of an encoding: an encoded `%` and what would be its digits.
    let pieces = pieces(&written)?;
    let is_digit = |piece: &str| piece.len() == 1 && piece.bytes().all(|byte| byte.is_ascii_hexdigit());
    let twice = |window: &[&str]| window[0] == "%25" && is_digit(window[1]) && is_digit(window[2]);
    (!pieces.windows(3).any(twice)).then_some(written)
}

fn second(path: &str) -> Option<String> {
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let (_, before) = segments.split_last()?;
    if before.iter().any(|segment| segment.is_empty()) {
        return None;
    }
    let written: Option<Vec<String>> = segments.iter().map(|text| segment(text)).collect();
    Some(format!("/{}", written?.join("/")))
}

fuzz_target!(|path: &str| {
    let found = canonical(path);
    assert_eq!(found.as_deref().ok(), second(path).as_deref(), "{path:?}");
    let Ok(found) = found else { return };
    assert!(matches!(canonical(&found), Ok(Cow::Borrowed(same)) if same == found), "{path:?}");
    assert_eq!(matches!(found, Cow::Borrowed(_)), found == path, "{path:?}");
    let same = |spelling: String| assert_eq!(canonical(&spelling).as_deref(), Ok(&*found), "{spelling:?}");
    let written = pieces(&found).expect("what was accepted is well encoded");
    let respelled = |piece: &&str| match piece.as_bytes() {
        [byte] if is_unreserved(*byte) => format!("%{byte:02x}"),
        [_] => (*piece).to_owned(),
        _ => piece.to_ascii_lowercase(),
    };
    same(written.iter().map(respelled).collect());
    // However often the next server decodes it, it finds no other segments in it.
    let decoded = percent_decode_str(&found).decode_utf8().expect("text");
    assert_eq!(decoded.matches('/').count(), found.matches('/').count(), "{path:?}");
    let again: Vec<u8> = percent_decode_str(&decoded).collect();
    assert_eq!(again, decoded.as_bytes(), "{path:?} is encoded twice");
});
