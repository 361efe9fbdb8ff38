//! Bytes of a request on their way to an upstream; it writes none of them.

use bytes::Bytes;
use std::io;

/// Bytes on their way to the upstream: what stands before the data (the head, or a chunk's size), the data, what stands behind.
#[derive(Default)]
pub struct Outbox {
    before: Vec<u8>,
    written: usize,
    data: Bytes,
    behind: &'static [u8],
}

impl Outbox {
    /// A head, whole.
    #[must_use]
    pub fn new(head: Vec<u8>) -> Outbox {
        Outbox { before: head, ..Outbox::default() }
    }

    /// What is left, as up to three pieces.
    #[must_use]
    pub fn pieces(&self) -> ([io::IoSlice<'_>; 3], usize) {
        let before = self.before.get(self.written..).unwrap_or(&[]);
        let mut pieces = [io::IoSlice::new(&[]); 3];
        let mut used = 0;
        for piece in [before, &self.data, self.behind] {
            if !piece.is_empty()
                && let Some(slot) = pieces.get_mut(used)
            {
                *slot = io::IoSlice::new(piece);
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

    /// The first so many bytes of what was left are gone.
    pub fn advance(&mut self, taken: usize) {
        let before = self.before.len().saturating_sub(self.written).min(taken);
        self.written += before;
        let data = self.data.len().min(taken - before);
        let _ = self.data.split_to(data);
        let behind = (taken - before - data).min(self.behind.len());
        self.behind = self.behind.get(behind..).unwrap_or(&[]);
    }

    /// A frame of the body.
    pub fn frame(&mut self, data: Bytes, chunked: bool) {
        if chunked {
            self.before.clear();
            self.written = 0;
            // Writing to a vector does not fail.
            let _ = io::Write::write_fmt(&mut self.before, format_args!("{:x}\r\n", data.len()));
            self.behind = b"\r\n";
        }
        self.data = data;
    }

    /// The end of a body in chunks.
    pub fn last_chunk(&mut self) {
        self.behind = b"0\r\n\r\n";
    }

    /// From the start once more: nothing of it has gone out.
    pub fn rewind(&mut self) {
        self.written = 0;
    }

    /// The memory of its head.
    pub fn take_head(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.before)
    }
}
