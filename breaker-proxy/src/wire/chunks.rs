//! The chunked coding (RFC 9112, 7.1): strict in, and bounded.

use super::Breach;
use super::fields::{Kind, kind};
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// Where a chunked body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// A line with a size comes next.
    Size,
    /// So many bytes of data are still to come.
    Data(u64),
    /// The line end after data comes next.
    DataEnd,
    /// Trailers, or the empty line.
    Trailers,
    /// All has come.
    Done,
}

/// What the bytes at hand came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Data.
    Data(Bytes),
    /// More bytes are needed.
    More,
    /// The end, with the trailers that may pass.
    End(Option<HeaderMap>),
}

impl Chunks {
    /// Takes what it can from the bytes at hand.
    ///
    /// # Errors
    /// They are no chunks, or a line of them is longer than anyone needs. The body must then never look complete.
    pub fn take(&mut self, input: &mut BytesMut) -> Result<Piece, Breach> {
        loop {
            match *self {
                Chunks::Size => match size(input)? {
                    None => return Ok(Piece::More),
                    Some((line, 0)) => {
                        input.advance(line);
                        *self = Chunks::Trailers;
                    }
                    Some((line, size)) => {
                        input.advance(line);
                        *self = Chunks::Data(size);
                    }
                },
                Chunks::Data(left) => {
                    if input.is_empty() {
                        return Ok(Piece::More);
                    }
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let left = left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX));
                    *self = if left == 0 { Chunks::DataEnd } else { Chunks::Data(left) };
                    return Ok(Piece::Data(input.split_to(here).freeze()));
                }
                Chunks::DataEnd => {
                    let Some(end) = input.first_chunk::<2>() else {
                        return if b"\r\n".starts_with(input) {
                            Ok(Piece::More)
                        } else {
                            Err(Breach::Chunk)
                        };
                    };
                    if end != b"\r\n" {
                        return Err(Breach::Chunk);
                    }
                    input.advance(2);
                    *self = Chunks::Size;
                }
                Chunks::Trailers => {
                    let Some((line, trailers)) = trailers(input)? else { return Ok(Piece::More) };
                    input.advance(line);
                    *self = Chunks::Done;
                    return Ok(Piece::End(trailers));
                }
                Chunks::Done => return Ok(Piece::End(None)),
            }
        }
    }
}

/// Length of the line with a size, and the size; `None` if it is not whole yet. Extensions are dropped.
fn size(input: &[u8]) -> Result<Option<(usize, u64)>, Breach> {
    let Some(end) = input.iter().take(LINE_MAX).position(|&byte| byte == b'\n') else {
        let (_, begun) = input.split_last().unwrap_or((&0, &[]));
        let may_go_on = input.len() < LINE_MAX && !begun.contains(&b'\r');
        return if may_go_on { Ok(None) } else { Err(Breach::Chunk) };
    };
    let line = input.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Breach::Chunk)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at_checked(digits).ok_or(Breach::Chunk)?;
    // What stands behind the size is nothing, or an extension; no control but a tab (RFC 9112, 7.1.1).
    let plain = rest.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f));
    if digits.is_empty()
        || digits.len() > 15
        || !plain
        || !matches!(rest.trim_ascii_start(), [] | [b';', ..])
    {
        return Err(Breach::Chunk);
    }
    let value = |digit: u8| char::from(digit).to_digit(16).map_or(0, u64::from);
    Ok(Some((end + 1, digits.iter().fold(0, |size, &digit| size << 4 | value(digit)))))
}

/// Length of the trailers and the empty line, and those that may pass; `None` if they are not whole yet.
fn trailers(input: &[u8]) -> Result<Option<(usize, Option<HeaderMap>)>, Breach> {
    if input.starts_with(b"\r\n") {
        return Ok(Some((2, None)));
    }
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(input, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) => {
            // A line that ends otherwise than others do could end elsewhere for them: here, too, the body would.
            let text = input.get(..length).unwrap_or(&[]);
            let crlf = |at: usize| at.checked_sub(1).and_then(|at| text.get(at)) == Some(&b'\r');
            if !memchr::memchr_iter(b'\n', text).all(crlf) {
                return Err(Breach::Chunk);
            }
            let mut map = HeaderMap::new();
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value);
                let (Ok(name), Ok(value)) = (name, value) else { return Err(Breach::Chunk) };
                if may_trail(name.as_str()) {
                    map.append(name, value);
                }
            }
            Ok(Some((length, Some(map).filter(|map| !map.is_empty()))))
        }
        Ok(httparse::Status::Partial) if input.len() < TRAILER_BYTES_MAX => Ok(None),
        _ => Err(Breach::Chunk),
    }
}

/// Whether a field may stand behind a body: none that frames, routes or authenticates (RFC 9110, 6.5.1).
pub(super) fn may_trail(name: &str) -> bool {
    kind(name) == Kind::EndToEnd
        && !matches!(
            name,
            "authorization"
                | "proxy-authorization"
                | "set-cookie"
                | "content-encoding"
                | "content-type"
                | "content-range"
                | "cache-control"
                | "location"
                | "www-authenticate"
        )
}

/// Bytes of a line with a size, extensions included.
const LINE_MAX: usize = 1024;
/// Fields behind a body.
const TRAILERS_MAX: usize = 32;
/// Their bytes.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All data and the trailers, fed in pieces of so many bytes; `None` if the end did not come.
    fn whole(text: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize, usize)>, Breach> {
        let (mut chunks, mut input, mut data) = (Chunks::Size, BytesMut::new(), Vec::new());
        for piece in text.chunks(step) {
            input.extend_from_slice(piece);
            loop {
                match chunks.take(&mut input)? {
                    Piece::Data(bytes) => data.extend_from_slice(&bytes),
                    Piece::More => break,
                    Piece::End(trailers) => {
                        if chunks == Chunks::Done && !input.is_empty() {
                            return Ok(Some((
                                data,
                                trailers.map_or(0, |map| map.len()),
                                input.len(),
                            )));
                        }
                        let trailers = trailers.map_or(0, |map| map.len());
                        return Ok(Some((data, trailers, 0)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Goal: well-formed bodies come out whole, however they arrive.
    #[test]
    fn good_chunks_pass() {
        let cases: [(&[u8], &[u8], usize); 5] = [
            (b"0\r\n\r\n", b"", 0),
            (b"3\r\nabc\r\n0\r\n\r\n", b"abc", 0),
            (b"3;x=\"y\"\r\nabc\r\nA ;z\r\n0123456789\r\n00\r\n\r\n", b"abc0123456789", 0),
            (b"1\r\n\n\r\n0\r\nx-sum: 1\r\nother: 2\r\n\r\n", b"\n", 2),
            (b"1\r\na\r\n0\r\nContent-Length: 5\r\nHost: b\r\nx-a: 1\r\n\r\n", b"a", 1),
        ];
        for (text, data, trailers) in cases {
            for step in 1..=text.len() {
                let got = whole(text, step).unwrap();
                assert_eq!(got, Some((data.to_vec(), trailers, 0)), "{text:?} by {step}");
            }
        }
    }

    /// Goal: what is malformed is refused, and what is not whole is not taken for whole.
    #[test]
    fn bad_chunks_do_not() {
        let long = [b"1;".as_slice(), &[b'x'; LINE_MAX]].concat();
        let bad: [&[u8]; 18] = [
            b"\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\na",
            b"1 1\r\na",
            b" 1\r\na\r\n",
            b"1\na\r\n",
            b"1\rXa",
            b"1\r\nab\r\n",
            b"1\r\na\n0\r\n\r\n",
            b"1\r\na\r0\r\n\r\n",
            b"1_0\r\n",
            b"ffffffffffffffff1\r\n",
            b"1;a\x00b\r\na",
            b"0\r\n: x\r\n\r\n",
            b"1;\x7f\r\na",
            &long,
        ];
        for text in bad {
            assert!(whole(text, 1).is_err(), "{text:?}");
        }
        for text in [b"".as_slice(), b"5", b"5\r\nabc", b"1\r\na\r\n", b"0\r\n", b"0\r\nx: 1\r\n"] {
            assert_eq!(whole(text, 1).unwrap(), None, "{text:?}");
        }
    }

    /// Goal: trailers end with CR LF as everything else does: a bare LF behind the last chunk, or in a trailer, is no end of a body.
    #[test]
    fn a_bare_line_feed_ends_no_trailers() {
        for text in
            [b"0\r\n\n".as_slice(), b"0\r\nx: 1\n\r\n", b"0\r\nx: 1\r\n\n", b"0\r\nx: 1\n\n"]
        {
            for step in 1..=text.len() {
                assert!(whole(text, step).is_err(), "{text:?} by {step}");
            }
        }
    }

    /// Goal: what comes after the end is left where it is.
    #[test]
    fn surplus_is_left() {
        let mut input = BytesMut::from(b"1\r\na\r\n0\r\n\r\nHTTP".as_slice());
        let mut chunks = Chunks::Size;
        assert_eq!(chunks.take(&mut input).unwrap(), Piece::Data(Bytes::from_static(b"a")));
        assert_eq!(chunks.take(&mut input).unwrap(), Piece::End(None));
        assert_eq!(&input[..], b"HTTP");
    }

    proptest! {
        /// Goal: any bytes at all are taken without a panic, and any cut of a good body gives the same data.
        #[test]
        fn any_bytes(text in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..50) {
            let _ = whole(&text, step);
            let mut coded = format!("{:x}\r\n", text.len()).into_bytes();
            if !text.is_empty() {
                coded.extend_from_slice(&text);
                coded.extend_from_slice(b"\r\n0\r\n");
            }
            coded.extend_from_slice(b"\r\n");
            prop_assert_eq!(whole(&coded, step).unwrap(), Some((text, 0, 0)));
        }
    }
}
