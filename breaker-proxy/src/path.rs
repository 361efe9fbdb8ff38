//! The one canonical form of a request path, for matching and forwarding alike; it matches nothing and mends nothing that
//! has more than one meaning.

use std::borrow::Cow;
use std::fmt;

/// Why a path has no canonical form. The words fit after "refused, because the path".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathError {
    /// It does not begin with `/`.
    NotAbsolute,
    /// A byte that no URI path may hold as it is: a control, a blank, a backslash, a quote, anything beyond ASCII.
    BadByte(u8),
    /// A `%` without two hexadecimal digits after it.
    BadEncoding,
    /// A slash, a backslash or a control in encoded form.
    EncodedSeparator(u8),
    /// An encoding of an encoding: `%25` and two hexadecimal digits.
    DoubleEncoding,
    /// Encoded bytes that are not UTF-8; an overlong `/` or `.` hides there.
    BadText,
    /// A segment `.` or `..`, plain, encoded, or dressed up with path parameters as in `..;`.
    DotSegment,
    /// A segment without a name: `//`, or `/;x` which some servers read as `//`.
    EmptySegment,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathError::NotAbsolute => f.write_str("does not begin with '/'"),
            PathError::BadByte(byte) => write!(f, "holds the raw byte 0x{byte:02X}"),
            PathError::BadEncoding => f.write_str("has a '%' without two hexadecimal digits"),
            PathError::EncodedSeparator(byte) => write!(f, "holds an encoded %{byte:02X}"),
            PathError::DoubleEncoding => f.write_str("is encoded twice"),
            PathError::BadText => f.write_str("encodes bytes that are not UTF-8"),
            PathError::DotSegment => f.write_str("has a dot segment"),
            PathError::EmptySegment => f.write_str("has an empty segment"),
        }
    }
}

impl std::error::Error for PathError {}

/// The canonical form of `path` (without query): encoded unreserved characters decoded, other encodings in upper case.
///
/// Borrowed, without allocation, where the path is canonical already. Applied twice it changes nothing more.
///
/// # Errors
///
/// Refuses what two servers might read in two ways; see [`PathError`].
pub fn canonical(path: &str) -> Result<Cow<'_, str>, PathError> {
    let bytes = path.as_bytes();
    let Some((&b'/', rest)) = bytes.split_first() else {
        return Err(PathError::NotAbsolute);
    };
    let mut place = Place::Start;
    for (index, &byte) in rest.iter().enumerate() {
        let kind = kind_of(byte);
        match kind {
            Kind::Plain | Kind::Dot | Kind::Slash | Kind::Semicolon => place = place.step(kind)?,
            Kind::Percent => {
                // One more than `index`, because `rest` begins after the leading slash.
                return decoded(path, index.saturating_add(1), place);
            }
            Kind::Bad => return Err(PathError::BadByte(byte)),
        }
    }
    place.end()?;
    Ok(Cow::Borrowed(path))
}

/// What a byte means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Dot,
    Slash,
    Semicolon,
    Percent,
    Bad,
}

/// One look-up for each byte. Plain is RFC 3986 `pchar` without what has a name of its own.
#[expect(
    clippy::indexing_slicing,
    reason = "evaluated by the compiler, which refuses an index out of bounds"
)]
const KINDS: [Kind; 256] = {
    let plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~!$&'()*+,=:@";
    let mut kinds = [Kind::Bad; 256];
    let mut index = 0;
    while index < plain.len() {
        kinds[plain[index] as usize] = Kind::Plain;
        index += 1;
    }
    kinds[b'.' as usize] = Kind::Dot;
    kinds[b'/' as usize] = Kind::Slash;
    kinds[b';' as usize] = Kind::Semicolon;
    kinds[b'%' as usize] = Kind::Percent;
    kinds
};

fn kind_of(byte: u8) -> Kind {
    KINDS.get(usize::from(byte)).copied().unwrap_or(Kind::Bad)
}

/// Where in a segment we stand: all that is needed to see empty and dot segments in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// After a slash.
    Start,
    /// After a semicolon; unlike a segment, a parameter may be empty.
    Parameter,
    /// After `.` alone.
    OneDot,
    /// After `..` alone.
    TwoDots,
    /// After anything else.
    Inside,
}

impl Place {
    fn step(self, kind: Kind) -> Result<Place, PathError> {
        match (kind, self) {
            (Kind::Slash | Kind::Semicolon, Place::Start) => Err(PathError::EmptySegment),
            (Kind::Slash | Kind::Semicolon, Place::OneDot | Place::TwoDots) => {
                Err(PathError::DotSegment)
            }
            (Kind::Slash, _) => Ok(Place::Start),
            (Kind::Semicolon, _) => Ok(Place::Parameter),
            (Kind::Dot, Place::Start | Place::Parameter) => Ok(Place::OneDot),
            (Kind::Dot, Place::OneDot) => Ok(Place::TwoDots),
            _ => Ok(Place::Inside),
        }
    }

    fn end(self) -> Result<(), PathError> {
        match self {
            Place::OneDot | Place::TwoDots => Err(PathError::DotSegment),
            Place::Start | Place::Parameter | Place::Inside => Ok(()),
        }
    }
}

/// The slow path, from the first `%` on.
fn decoded(path: &str, from: usize, mut place: Place) -> Result<Cow<'_, str>, PathError> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    out.push_str(path.get(..from).unwrap_or_default());
    // How many hexadecimal digits after an encoded `%` make it an encoding of an encoding. It looks at what is written,
    // not at what was read: `%25%32%66` becomes `%252f`.
    let mut digits_left = 0_u8;
    // Bytes of one encoded character still to come; checked together when its first byte is met.
    let mut tail = 0_usize;
    let mut at = from;
    while let Some(&byte) = bytes.get(at) {
        let (value, width) = match kind_of(byte) {
            Kind::Bad => return Err(PathError::BadByte(byte)),
            Kind::Percent => (encoded_byte(bytes, at)?, 3),
            _ => (byte, 1),
        };
        let was_encoded = width == 3;
        if was_encoded && (value < 0x20 || matches!(value, 0x7F | b'/' | b'\\')) {
            return Err(PathError::EncodedSeparator(value));
        }
        if was_encoded && value >= 0x80 {
            if tail > 0 {
                tail = tail.saturating_sub(1);
            } else {
                tail = encoded_character(bytes, at)?;
            }
        }
        let kept = was_encoded && !is_unreserved(value);
        if kept {
            push_encoded(&mut out, value);
            digits_left = if value == b'%' { 2 } else { 0 };
            // An encoded semicolon is a semicolon to those who decode before they split.
            let kind = if value == b';' { Kind::Semicolon } else { Kind::Plain };
            place = place.step(kind)?;
        } else {
            out.push(char::from(value));
            if digits_left > 0 {
                digits_left = if value.is_ascii_hexdigit() { digits_left - 1 } else { 0 };
                if digits_left == 0 && value.is_ascii_hexdigit() {
                    return Err(PathError::DoubleEncoding);
                }
            }
            place = place.step(kind_of(value))?;
        }
        at = at.saturating_add(width);
    }
    place.end()?;
    if out == path { Ok(Cow::Borrowed(path)) } else { Ok(Cow::Owned(out)) }
}

/// The byte that `%XX` at `at` stands for.
fn encoded_byte(bytes: &[u8], at: usize) -> Result<u8, PathError> {
    let digit = |offset: usize| {
        let byte = bytes.get(at.saturating_add(offset))?;
        char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
    };
    match (digit(1), digit(2)) {
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(PathError::BadEncoding),
    }
}

/// Checks the whole encoded character beyond ASCII that begins at `at`; answers how many encoded bytes follow the first.
fn encoded_character(bytes: &[u8], at: usize) -> Result<usize, PathError> {
    let mut text = [0_u8; 4];
    for follow in 0..text.len() {
        let here = at.saturating_add(follow.saturating_mul(3));
        if bytes.get(here) != Some(&b'%') {
            break;
        }
        if let Some(slot) = text.get_mut(follow) {
            *slot = encoded_byte(bytes, here)?;
        }
        let so_far = std::str::from_utf8(text.get(..=follow).unwrap_or_default());
        if let Some(character) = so_far.ok().and_then(|so_far| so_far.chars().next()) {
            return if character.is_control() {
                Err(PathError::EncodedSeparator(text[0]))
            } else {
                Ok(follow)
            };
        }
    }
    Err(PathError::BadText)
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn push_encoded(out: &mut String, value: u8) {
    out.push('%');
    for digit in [value >> 4, value & 0x0F] {
        let digit = char::from_digit(u32::from(digit), 16).unwrap_or('0');
        out.push(digit.to_ascii_uppercase());
    }
}

#[cfg(test)]
mod tests {
    use super::{PathError, canonical};
    use proptest::prelude::{ProptestConfig, proptest};
    use std::borrow::Cow;

    /// Goal: a path that is canonical already is handed back as it is, without a copy.
    #[test]
    fn canonical_paths_are_borrowed() {
        for path in [
            "/",
            "/orders",
            "/orders/",
            "/a/b.c/...d/..e/.f",
            "/a;v=1/b;;/c;",
            "/a:b@c!$&'()*+,=~-_",
            "/%20/%C3%A9%3F%25zz%3B",
            "/...",
        ] {
            let found = canonical(path);
            assert!(matches!(found, Ok(Cow::Borrowed(same)) if same == path), "{path}: {found:?}");
        }
    }

    /// Goal: two spellings of one path become one.
    #[test]
    fn spellings_of_one_path_become_one() {
        for (spelling, meaning) in [
            ("/%6Frders", "/orders"),
            ("/%7euser/%2d%5F%41", "/~user/-_A"),
            ("/a%c3%a9b", "/a%C3%A9b"),
            ("/%3fx%3d", "/%3Fx%3D"),
            ("/a%2Ehtml", "/a.html"),
            ("/%25zz", "/%25zz"),
            ("/%f0%9f%98%80", "/%F0%9F%98%80"),
        ] {
            assert_eq!(canonical(spelling).as_deref(), Ok(meaning), "{spelling}");
        }
    }

    /// Goal: what two servers might read in two ways is refused, with the reason.
    #[test]
    fn what_has_no_single_meaning_is_refused() {
        for (path, reason) in [
            ("", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("orders", PathError::NotAbsolute),
            ("http://a/b", PathError::NotAbsolute),
            ("/a%2Fb", PathError::EncodedSeparator(b'/')),
            ("/a%2fb", PathError::EncodedSeparator(b'/')),
            ("/a%5Cb", PathError::EncodedSeparator(b'\\')),
            ("/a%00", PathError::EncodedSeparator(0)),
            ("/a%0d%0a", PathError::EncodedSeparator(b'\r')),
            ("/a%7F", PathError::EncodedSeparator(0x7F)),
            ("/a%C2%85", PathError::EncodedSeparator(0xC2)),
            ("/a\\b", PathError::BadByte(b'\\')),
            ("/a b", PathError::BadByte(b' ')),
            ("/a\tb", PathError::BadByte(b'\t')),
            ("/a?b", PathError::BadByte(b'?')),
            ("/a#b", PathError::BadByte(b'#')),
            ("/{id}", PathError::BadByte(b'{')),
            ("/é", PathError::BadByte(0xC3)),
            ("/%41é", PathError::BadByte(0xC3)),
            ("/.", PathError::DotSegment),
            ("/..", PathError::DotSegment),
            ("/a/./b", PathError::DotSegment),
            ("/a/../b", PathError::DotSegment),
            ("/a/%2e%2E/b", PathError::DotSegment),
            ("/a/.%2e", PathError::DotSegment),
            ("/a/..;/b", PathError::DotSegment),
            ("/a/..;x=1/b", PathError::DotSegment),
            ("/a/.;/b", PathError::DotSegment),
            ("/a/b;..", PathError::DotSegment),
            ("/a/b;../c", PathError::DotSegment),
            ("/a/..%3B/b", PathError::DotSegment),
            ("//", PathError::EmptySegment),
            ("//a", PathError::EmptySegment),
            ("/a//b", PathError::EmptySegment),
            ("/a/;/b", PathError::EmptySegment),
            ("/a/%3Bx", PathError::EmptySegment),
            ("/%", PathError::BadEncoding),
            ("/%4", PathError::BadEncoding),
            ("/%zz", PathError::BadEncoding),
            ("/%u002f", PathError::BadEncoding),
            ("/%+1", PathError::BadEncoding),
            ("/%252f", PathError::DoubleEncoding),
            ("/%252e%252e", PathError::DoubleEncoding),
            ("/%25%32%66", PathError::DoubleEncoding),
            ("/%2541", PathError::DoubleEncoding),
            ("/%C0%AF", PathError::BadText),
            ("/%C0%AE%C0%AE", PathError::BadText),
            ("/%80", PathError::BadText),
            ("/%C3", PathError::BadText),
            ("/%C3a", PathError::BadText),
            ("/%E9", PathError::BadText),
        ] {
            assert_eq!(canonical(path), Err(reason), "{path}");
        }
    }

    /// The rules once more, slowly: split first, decode each segment whole, then look.
    fn slow(path: &str) -> Option<String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
        let mut segments = Vec::new();
        let body = path.strip_prefix('/')?;
        let count = body.split('/').count();
        for (index, segment) in body.split('/').enumerate() {
            if segment.is_empty() && (index + 1 < count || body.contains("//")) {
                return None;
            }
            let mut text = Vec::new();
            let mut written = String::new();
            let mut bytes = segment.bytes();
            while let Some(byte) = bytes.next() {
                if byte == b'%' {
                    let digits = [bytes.next()?, bytes.next()?];
                    if !digits.iter().all(u8::is_ascii_hexdigit) {
                        return None;
                    }
                    let value = u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
                    text.push(value);
                    if value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
                        written.push(char::from(value));
                    } else {
                        written.push_str(&format!("%{value:02X}"));
                    }
                } else if plain(byte) {
                    text.push(byte);
                    written.push(char::from(byte));
                } else {
                    return None;
                }
            }
            let text = String::from_utf8(text).ok()?;
            let dotted = text.split(';').any(|part| part == "." || part == "..");
            let twice = written.match_indices("%25").any(|(at, _)| {
                written
                    .get(at + 3..at + 5)
                    .is_some_and(|two| two.bytes().all(|b| b.is_ascii_hexdigit()))
            });
            let hidden = text.chars().any(|c| c.is_control() || c == '/' || c == '\\');
            if dotted || twice || hidden || text.starts_with(';') {
                return None;
            }
            segments.push(written);
        }
        Some(format!("/{}", segments.join("/")))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        /// Goal: the one pass over bytes agrees with the slow rules, and its result is a fixed point that is borrowed.
        /// Method: paths strung together from the pieces that matter.
        #[test]
        fn one_pass_agrees_with_the_slow_rules_and_is_idempotent(
            path in "/?(/|\\.|\\.\\.|;|%2[eEfF5]|%25|%3[bB]|%[0-9a-fA-F]{2}|%c3%a9|%C0%AF|%|[a-z0-9~ \\\\:]){0,10}"
        ) {
            let found = canonical(&path);
            assert_eq!(found.as_deref().ok(), slow(&path).as_deref(), "{path}");
            if let Ok(once) = found {
                assert!(matches!(canonical(&once), Ok(Cow::Borrowed(same)) if same == once));
            }
        }

        /// Goal: no text at all makes it panic, and whatever it accepts is printable ASCII.
        #[test]
        fn any_text_is_either_refused_or_plain(path in "\\PC{0,20}") {
            if let Ok(found) = canonical(&path) {
                assert!(found.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
