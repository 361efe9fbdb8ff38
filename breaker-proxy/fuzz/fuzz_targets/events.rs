//! Server-sent events: the same in any pieces, the same as a second reader finds that has all of the stream before it, and never more held
//! than allowed.
#![no_main]

use breaker_proxy::inspect::events::{Event, Events};
use libfuzzer_sys::fuzz_target;

fn read(pieces: &[&[u8]], most: usize) -> Vec<Option<Vec<u8>>> {
    let (mut events, mut told) = (Events::new(most), Vec::new());
    let mut tell = |event: Event<'_>| {
        told.push(match event {
            Event::Data(data) => Some(data.to_vec()),
            Event::TooLong => None,
        });
    };
    for piece in pieces {
        events.push(piece, &mut tell);
        assert!(events.held() <= most);
    }
    events.end(&mut tell);
    told
}

/// The standard's own words, line by line.
fn second(stream: &[u8]) -> Vec<Option<Vec<u8>>> {
    let stream = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
    let mut plain = Vec::new();
    for (at, byte) in stream.iter().enumerate() {
        match byte {
            b'\n' if at > 0 && stream[at - 1] == b'\r' => {}
            b'\r' => plain.push(b'\n'),
            other => plain.push(*other),
        }
    }
    let (mut data, mut told): (Option<Vec<u8>>, Vec<_>) = (None, Vec::new());
    for line in plain.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            told.extend(data.take().map(Some));
            continue;
        }
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        if &line[..at] != b"data" {
            continue;
        }
        let value = line.get(at + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut data {
            None => data = Some(value.to_vec()),
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
        }
    }
    told.extend(data.take().map(Some));
    told
}

fuzz_target!(|input: &[u8]| {
    let Some((&size, stream)) = input.split_first() else { return };
    let whole = read(&[stream], 1 << 20);
    assert_eq!(whole, second(stream));
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(size).max(1)).collect();
    assert_eq!(read(&pieces, 1 << 20), whole);
    let _ = read(&pieces, usize::from(size));
});
