//! Bytes of one message on their way into a socket; it writes nothing itself.

use bytes::Bytes;
use std::io::{IoSlice, Write as _};

/// A chunk with fewer bytes is copied behind what is there: each would cost a write of its own.
const COPY_BELOW: usize = 256;

/// Bytes that are put together so, at most, about.
const GATHER_MAX: usize = 16 * 1024;

/// What stands before the data (a head, or the size of a chunk), the data, and what stands behind.
#[derive(Default)]
pub struct Outbox {
    before: Vec<u8>,
    written: usize,
    data: Bytes,
    behind: &'static [u8],
}

impl Outbox {
    /// A message that begins with this head.
    #[must_use]
    pub fn new(head: Vec<u8>) -> Outbox {
        Outbox { before: head, ..Outbox::default() }
    }

    /// What is left, as up to three pieces.
    #[must_use]
    pub fn pieces(&self) -> ([IoSlice<'_>; 3], usize) {
        let before = self.before.get(self.written..).unwrap_or(&[]);
        let mut pieces = [IoSlice::new(&[]); 3];
        let mut used = 0;
        for piece in [before, &self.data, self.behind] {
            if !piece.is_empty()
                && let Some(slot) = pieces.get_mut(used)
            {
                *slot = IoSlice::new(piece);
                used += 1;
            }
        }
        (pieces, used)
    }

    /// Is nothing left?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces().1 == 0
    }

    /// Is there room for a frame of the body? A head that was not written yet goes out with it.
    #[must_use]
    pub fn takes_frame(&self) -> bool {
        let before = self.before.len().saturating_sub(self.written);
        self.data.is_empty() && self.behind.is_empty() && before < GATHER_MAX
    }

    /// The first so many bytes of what was left are gone.
    pub fn advance(&mut self, taken: usize) {
        let before = self.before.len().saturating_sub(self.written).min(taken);
        self.written += before;
        let data = self.data.len().min(taken - before);
        let _ = self.data.split_to(data);
        let behind = (taken - before - data).min(self.behind.len());
        self.behind = self.behind.get(behind..).unwrap_or(&[]);
    }

    /// A frame of the body, behind what is left.
    pub fn frame(&mut self, data: Bytes, chunked: bool) {
        debug_assert!(self.takes_frame(), "one frame at a time");
        if chunked {
            self.prune();
            // Writing to a vector does not fail.
            let _ = write!(self.before, "{:x}\r\n", data.len());
            if data.len() < COPY_BELOW {
                self.before.extend_from_slice(&data);
                self.before.extend_from_slice(b"\r\n");
                return;
            }
            self.behind = b"\r\n";
        }
        self.data = data;
    }

    /// The end of a chunked body.
    pub fn end_chunks(&mut self) {
        self.behind = if self.behind.is_empty() { b"0\r\n\r\n" } else { b"\r\n0\r\n\r\n" };
    }

    /// The end of a chunked body with these lines behind it, each with its end.
    pub fn end_chunks_with(&mut self, trailers: &[u8]) {
        debug_assert!(self.takes_frame(), "one frame at a time");
        self.prune();
        self.before.extend_from_slice(b"0\r\n");
        self.before.extend_from_slice(trailers);
        self.behind = b"\r\n";
    }

    /// Nothing was written: the head goes out once more.
    pub fn rewind(&mut self) {
        self.written = 0;
    }

    /// The memory of its head, for another.
    #[must_use]
    pub fn into_spare(self) -> Vec<u8> {
        self.before
    }

    fn prune(&mut self) {
        if self.written >= self.before.len() {
            self.before.clear();
            self.written = 0;
        } else if self.written >= GATHER_MAX {
            // Who never takes all of it must not make it grow.
            self.before.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is left, taken `step` bytes at a time.
    fn drained(out: &mut Outbox, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !out.is_empty() {
            let (pieces, used) = out.pieces();
            let here: Vec<u8> = pieces[..used].iter().flat_map(|piece| piece.to_vec()).collect();
            let taken = step.min(here.len());
            all.extend_from_slice(&here[..taken]);
            out.advance(taken);
        }
        all
    }

    /// Goal: small chunks wait for each other, up to a bound, and leave in one piece with the head.
    #[test]
    fn each_tiny_chunk_cost_a_write() {
        let mut out = Outbox::new(b"head".to_vec());
        let mut frames = 0;
        while out.takes_frame() {
            out.frame(Bytes::from_static(b"x"), true);
            assert_eq!(out.pieces().1, 1);
            frames += 1;
        }
        assert!((2_000..4_000).contains(&frames), "{frames}");
        for _ in 0..100_000 {
            out.advance(6);
            out.frame(Bytes::from_static(b"x"), true);
        }
        assert!(out.into_spare().len() < 3 * GATHER_MAX, "it does not grow");
    }

    /// Goal: head, frames and end leave in order, whole, in whatever pieces a socket takes them.
    #[test]
    fn a_message_leaves_in_order() {
        for step in 1..40 {
            let mut out = Outbox::new(b"head\r\n\r\n".to_vec());
            out.frame(Bytes::from_static(b"first"), true);
            let mut all = drained(&mut out, step);
            out.frame(Bytes::from_static(b"second!"), true);
            out.end_chunks();
            all.extend(drained(&mut out, step));
            assert_eq!(all, b"head\r\n\r\n5\r\nfirst\r\n7\r\nsecond!\r\n0\r\n\r\n", "{step}");
            let mut out = Outbox::new(b"head".to_vec());
            for data in [&[b'x'; 3][..], &[b'y'; 300], b"z"] {
                if !out.takes_frame() {
                    all.extend(drained(&mut out, step));
                }
                out.frame(Bytes::copy_from_slice(data), true);
            }
            out.end_chunks();
            all.extend(drained(&mut out, step));
            let middle = "y".repeat(300);
            let whole = format!("head3\r\nxxx\r\n12c\r\n{middle}\r\n1\r\nz\r\n0\r\n\r\n");
            assert!(all.ends_with(whole.as_bytes()), "{step}");
            let mut out = Outbox::new(b"head".to_vec());
            out.end_chunks_with(b"a: b\r\n");
            assert_eq!(drained(&mut out, step), b"head0\r\na: b\r\n\r\n");
            let mut out = Outbox::new(b"h".to_vec());
            out.frame(Bytes::from_static(b"plain"), false);
            assert_eq!(drained(&mut out, step), b"hplain");
            out.end_chunks();
            assert_eq!(drained(&mut out, step), b"0\r\n\r\n");
        }
    }
}
