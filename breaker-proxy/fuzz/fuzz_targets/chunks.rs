//! The chunked coding against a second reader that has the whole text before it; and the same result however the bytes arrive.
#![no_main]

use breaker_proxy::wire::chunks::{Chunks, Piece};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, PartialEq)]
enum Came {
    /// The data, the trailers that pass, and how many bytes are behind it.
    Whole(Vec<u8>, Vec<(String, Vec<u8>)>, usize),
    /// So much data, and more must come.
    Part(Vec<u8>),
    Broken,
}

fn read(text: &[u8], step: usize) -> Came {
    let (mut chunks, mut input, mut data) = (Chunks::Size, BytesMut::new(), Vec::new());
    let mut fed = 0;
    for piece in text.chunks(step) {
        fed += piece.len();
        input.extend_from_slice(piece);
        loop {
            match chunks.take(&mut input) {
                Ok(Piece::Data(bytes)) => data.extend_from_slice(&bytes),
                Ok(Piece::More) => break,
                Ok(Piece::End(trailers)) => {
                    let trailers = trailers.unwrap_or_default();
                    let mut list: Vec<_> = trailers
                        .iter()
                        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
                        .collect();
                    list.sort();
                    return Came::Whole(data, list, input.len() + text.len() - fed);
                }
                Err(_) => return Came::Broken,
            }
        }
    }
    Came::Part(data)
}

/// Data and the place behind the last chunk, by one who has all of the text; `None`: broken, or not whole.
fn slow(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut at, mut data) = (0, Vec::new());
    loop {
        let end = at + text.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
        let line = text.get(at..end)?;
        let size = line.split(|byte| *byte == b';').next()?;
        let size = std::str::from_utf8(size).ok()?;
        let digits = size.trim_end_matches([' ', '\t']);
        // What stands between the digits and the end of the line is an extension, or nothing.
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let size = usize::from_str_radix(digits, 16).ok()?;
        at = end + 2;
        if size == 0 {
            return Some((data, at));
        }
        data.extend_from_slice(text.get(at..at.checked_add(size)?)?);
        at += size;
        if text.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
}

// The first byte says in what pieces the rest arrives.
fuzz_target!(|input: &[u8]| {
    let Some((step, text)) = input.split_first() else { return };
    let once = read(text, text.len().max(1));
    let pieces = read(text, usize::from(*step).max(1));
    match (&once, &pieces) {
        // Where it breaks may be seen earlier or later, but not by one of them alone unless the other still waits.
        (Came::Broken, Came::Broken) => {}
        (one, two) => assert_eq!(one, two),
    }
    if let Came::Whole(data, trailers, behind) = once {
        let (expected, at) = slow(text).expect("the second reader reads it, too");
        assert_eq!(data, expected);
        let trailing = &text[at..text.len() - behind];
        assert!(trailing.ends_with(b"\r\n"));
        assert_eq!(trailing == b"\r\n", trailing.len() == 2);
        for (name, _) in &trailers {
            assert!(!["content-length", "transfer-encoding", "host", "authorization"].contains(&&**name), "{name}");
        }
    }
    // Whatever the bytes, coded they come back.
    let mut coded = Vec::new();
    for chunk in text.chunks(usize::from(*step).max(1)) {
        coded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        coded.extend_from_slice(chunk);
        coded.extend_from_slice(b"\r\n");
    }
    coded.extend_from_slice(b"0\r\n\r\nrest");
    assert_eq!(read(&coded, 7), Came::Whole(text.to_vec(), Vec::new(), 4));
});
