//! What a request is known by beyond this proxy: its id, and its place in a trace (W3C Trace Context); it makes up nothing random itself.

use super::asked::Fields;
use hyper::header::HeaderName;

/// The field that carries a request's id.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Bytes of an id that is taken from a client, at most.
const ID_MAX: usize = 128;

/// Is this a name, in lower case, by which some servers know a request's id?
#[must_use]
pub fn names_request_id(name: &str) -> bool {
    let own = REQUEST_ID.as_str();
    let same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
    name.len() == own.len() && name.bytes().zip(own.bytes()).all(same)
}

/// The id that a client gave its request: one, of visible ASCII, and no longer than ids are.
#[must_use]
pub fn request_id(fields: Fields<'_>) -> Option<&[u8]> {
    let mut all = fields.all(&REQUEST_ID);
    let id = all.next().filter(|_| all.next().is_none())?;
    let fits = (1..=ID_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    fits.then_some(id)
}

/// A new id: 32 digits, of which the first half names who made it. Two that differ in either number differ.
#[must_use]
pub fn make(maker: u64, number: u64) -> [u8; 32] {
    let mut text = [b'0'; 32];
    let halves = [maker, scatter(number)];
    for (half, number) in text.chunks_exact_mut(16).zip(halves) {
        for (digit, shift) in half.iter_mut().zip((0..16).rev()) {
            let value = (number >> (shift * 4)) & 0xf;
            *digit = b"0123456789abcdef"
                .get(usize::try_from(value).unwrap_or(0))
                .copied()
                .unwrap_or(b'0');
        }
    }
    text
}

/// Numbers that follow each other, far apart and each once: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn scatter(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The place of a request in a trace, as its client tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent<'a> {
    /// The trace: 32 digits.
    pub trace: &'a str,
    /// The client's own part of it: 16 digits.
    pub parent: &'a str,
    /// The client keeps its part.
    pub sampled: bool,
}

/// What `traceparent` says, if it stands there once and is valid (W3C Trace Context, 3.2). More than one has no single meaning, and is
/// as good as none.
#[must_use]
pub fn trace_parent(fields: Fields<'_>) -> Option<TraceParent<'_>> {
    let mut all = fields.all(&TRACEPARENT);
    let value = all.next().filter(|_| all.next().is_none())?;
    let text = std::str::from_utf8(value).ok()?;
    let piece = |from: usize, to: usize| {
        let piece = text.get(from..to)?;
        let is_hex = piece.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
        is_hex.then_some(piece)
    };
    let dash = |at: usize| value.get(at) == Some(&b'-');
    let (version, trace, parent, flags) =
        (piece(0, 2)?, piece(3, 35)?, piece(36, 52)?, piece(53, 55)?);
    let ends = match version {
        "ff" => false,
        "00" => value.len() == 55,
        // Later versions may say more behind a dash.
        _ => value.len() == 55 || dash(55),
    };
    let is_zero = |piece: &str| piece.bytes().all(|byte| byte == b'0');
    let stands = ends && dash(2) && dash(35) && dash(52) && !is_zero(trace) && !is_zero(parent);
    let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    stands.then_some(TraceParent { trace, parent, sampled })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::HeaderMap;
    use hyper::header::HeaderValue;

    fn map(name: &'static str, values: &[&[u8]]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        map
    }

    /// Goal: only one id, of what can be seen and of a length that fits, is taken from a client.
    #[test]
    fn an_id_is_taken_if_it_is_one() {
        let of = |values: &[&[u8]]| {
            let map = map("x-request-id", values);
            request_id(Fields::Map(&map)).map(<[u8]>::to_vec)
        };
        let long = [b'x'; 129];
        assert_eq!(of(&[b"a-1"]), Some(b"a-1".to_vec()));
        assert_eq!(of(&[&long[..128]]), Some(long[..128].to_vec()));
        let bad: [&[&[u8]]; 7] =
            [&[], &[b""], &[&long], &[b"a b"], &[b"a\tb"], &[b"a\xff"], &[b"a", b"a"]];
        for values in bad {
            assert_eq!(of(values), None, "{values:?}");
        }
    }

    /// Goal: whatever spelling a server takes for the id is known; nothing else is.
    #[test]
    fn an_id_is_known_by_any_spelling() {
        for name in ["x-request-id", "x_request_id", "x-request_id"] {
            assert!(names_request_id(name), "{name}");
        }
        for name in ["x-request-ids", "x-request.id", "request-id", ""] {
            assert!(!names_request_id(name), "{name}");
        }
    }

    /// Goal: ids that are made fit what is taken, and none comes twice.
    #[test]
    fn ids_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for maker in [0, 1, u64::MAX] {
            for number in (0..1000).chain([u64::MAX]) {
                let id = make(maker, number);
                let map = map("x-request-id", &[&id]);
                assert_eq!(request_id(Fields::Map(&map)), Some(&id[..]));
                assert!(seen.insert(id), "{maker} {number}");
            }
        }
        assert!(make(0xab, 0).starts_with(b"00000000000000ab"));
    }

    /// Goal: of trace parents exactly those are believed that the recommendation calls valid.
    #[test]
    fn a_trace_parent_is_believed_if_it_is_valid() {
        const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let of = |values: &[&str]| {
            let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
            let map = map("traceparent", &values);
            let parent = trace_parent(Fields::Map(&map));
            parent.map(|parent| (parent.trace.to_owned(), parent.parent.to_owned(), parent.sampled))
        };
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let expected = |sampled| Some((trace.to_owned(), parent.to_owned(), sampled));
        assert_eq!(of(&[GOOD]), expected(true));
        assert_eq!(of(&[&GOOD.replace("-01", "-00")]), expected(false));
        assert_eq!(of(&[&GOOD.replacen("00", "cc", 1)]), expected(true), "a later version");
        assert_eq!(of(&[&format!("{}-more", GOOD.replacen("00", "cc", 1))]), expected(true));
        let zeros = ["0".repeat(32), "0".repeat(16)];
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replace(trace, &zeros[0]),
            GOOD.replace(parent, &zeros[1]),
            GOOD.replace('-', "_"),
            format!("{GOOD}-more"),
            format!("{GOOD}0"),
            format!("{}0", GOOD.replacen("00", "cc", 1)),
            GOOD[..54].to_owned(),
            GOOD.replace('b', "g"),
            GOOD.replace("-01", "-0\u{e9}"),
        ] {
            assert_eq!(of(&[&bad]), None, "{bad}");
        }
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[GOOD, GOOD]), None, "two have no single meaning");
    }
}
