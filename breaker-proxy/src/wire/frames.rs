//! HTTP/2 frames as they pass by: where each begins, whose it is, and what may be changed on the way (RFC 9113, 4.1 and 6); it decides nothing.

/// Bytes of a frame before its payload.
pub const HEAD: usize = 9;

/// What a client says before its first frame (RFC 9113, 3.4).
pub const PREFACE: usize = 24;

/// The kinds of frame that matter to whoever stands between the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A piece of a body. It uses up room that the other side gave.
    Data,
    /// The beginning of a head.
    Headers,
    /// More of a head; between its frames stands no other.
    Continuation,
    /// The end of a stream.
    Reset,
    /// Settings, or a word that they were taken.
    Settings,
    /// Everything else.
    Other,
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of its payload.
    pub length: usize,
    /// What it is.
    pub kind: Kind,
    flags: u8,
    /// The stream that it belongs to; 0: the connection.
    pub stream: u32,
}

impl Frame {
    /// The frame that begins so.
    #[must_use]
    pub fn read(head: &[u8; HEAD]) -> Frame {
        let &[a, b, c, kind, flags, s1, s2, s3, s4] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        Frame {
            length: usize::try_from(length).unwrap_or(usize::MAX),
            kind: match kind {
                0 => Kind::Data,
                1 => Kind::Headers,
                3 => Kind::Reset,
                4 => Kind::Settings,
                9 => Kind::Continuation,
                _ => Kind::Other,
            },
            flags,
            stream: u32::from_be_bytes([s1, s2, s3, s4]) & 0x7fff_ffff,
        }
    }

    /// All of its bytes.
    #[must_use]
    pub fn whole(&self) -> usize {
        self.length.saturating_add(HEAD)
    }

    /// Settings that were taken.
    #[must_use]
    pub fn is_settings_ack(&self) -> bool {
        self.kind == Kind::Settings && self.flags & 1 != 0
    }

    /// Does a head go on in the next frame?
    #[must_use]
    pub fn leaves_head_open(&self) -> bool {
        matches!(self.kind, Kind::Headers | Kind::Continuation) && self.flags & 4 == 0
    }
}

/// The size of the table of fields that all begin with (RFC 9113, 6.5.2).
const TABLE: u32 = 4096;

/// Does a head that begins with this byte say of what size its table is (RFC 7541, 6.3)?
#[must_use]
pub fn tells_table(first: u8) -> bool {
    first & 0xe0 == 0x20
}

/// Settings by which a server would keep no table of fields: who sends nothing by reference may leave out a head, and the other side
/// reads the next one all the same (RFC 7541, 4.2).
pub const NO_TABLE: [u8; HEAD + 6] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];

/// Room for so many bytes more on the connection.
#[must_use]
pub fn room(bytes: u32) -> [u8; HEAD + 4] {
    let [a, b, c, d] = (bytes & 0x7fff_ffff).to_be_bytes();
    [0, 0, 4, 8, 0, 0, 0, 0, 0, a, b, c, d]
}

/// What a server says, on its way to whoever reads it: its settings pass but for the table of fields, which becomes none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incoming {
    head: [u8; HEAD],
    /// Bytes of the head that have come, while it is not whole.
    have: usize,
    /// Bytes of the payload that are still to come.
    left: usize,
    /// Where in settings the next byte is: in its pair of name and value, and what came of the name.
    pair: Option<(usize, [u8; 2])>,
    /// What came of the size of the table, and whether it was ever said to be less than all begin with.
    table: u32,
    is_small: bool,
    /// A head is not at its end.
    open: bool,
    /// Settings have come.
    settled: bool,
}

impl Incoming {
    /// Takes the next bytes, and changes them where they must be.
    pub fn pass(&mut self, bytes: &mut [u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.left > 0 {
                let here = self.left.min(rest.len());
                let (payload, behind) = rest.split_at_mut(here);
                self.settings(payload);
                self.left -= here;
                self.end();
                rest = behind;
                continue;
            }
            let here = (HEAD - self.have).min(rest.len());
            let (part, behind) = rest.split_at_mut(here);
            if let Some(into) = self.head.get_mut(self.have..self.have.saturating_add(here)) {
                into.copy_from_slice(part);
            }
            self.have += here;
            rest = behind;
            if self.have == HEAD {
                let frame = Frame::read(&self.head);
                (self.have, self.left) = (0, frame.length);
                self.open = frame.leaves_head_open();
                let is_word = frame.kind == Kind::Settings && !frame.is_settings_ack();
                self.pair = is_word.then_some((0, [0, 0]));
                self.end();
            }
        }
    }

    /// The last byte of a payload may have come.
    fn end(&mut self) {
        if self.left == 0 && self.pair.take().is_some() {
            self.settled = true;
        }
    }

    fn settings(&mut self, payload: &mut [u8]) {
        let Some((at, name)) = &mut self.pair else { return };
        for byte in payload {
            match *at {
                0 | 1 => {
                    if let Some(into) = name.get_mut(*at) {
                        *into = *byte;
                    }
                }
                // SETTINGS_HEADER_TABLE_SIZE.
                _ if *name == [0, 1] => {
                    self.table = self.table << 8 | u32::from(*byte);
                    self.is_small |= *at == 5 && self.table < TABLE;
                    *byte = 0;
                }
                _ => {}
            }
            *at = (*at + 1) % 6;
        }
    }

    /// May a frame of our own stand here?
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0 && !self.open
    }

    /// Did the server ask for a smaller table than all begin with? Then it waits to be told, in the next head, that it is one.
    #[must_use]
    pub fn wants_small_table(&self) -> bool {
        self.is_small
    }

    /// Have settings come?
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    /// Goal: a frame is what its first nine bytes say, the reserved bit aside.
    #[test]
    fn a_frame_is_read() {
        let bytes = frame(1, 4, 0x8000_0007, &[0; 300]);
        let found = Frame::read(bytes.first_chunk().unwrap());
        assert_eq!((found.length, found.kind, found.stream), (300, Kind::Headers, 7));
        assert!(!found.leaves_head_open() && found.whole() == 309);
        let open = Frame::read(frame(9, 0, 7, &[]).first_chunk().unwrap());
        assert!(open.leaves_head_open());
        let ack = Frame::read(frame(4, 1, 0, &[]).first_chunk().unwrap());
        assert!(ack.is_settings_ack());
        let own = Frame::read(NO_TABLE.first_chunk().unwrap());
        assert_eq!((own.kind, own.whole(), own.is_settings_ack()), (Kind::Settings, 15, false));
        let own = Frame::read(room(77).first_chunk().unwrap());
        assert_eq!((own.kind, own.whole(), own.stream), (Kind::Other, 13, 0));
    }

    proptest! {
        /// Goal: in whatever pieces frames come, only the size of the table in settings is changed, and what is between frames is known.
        #[test]
        fn only_the_table_is_changed(
            tables in prop::collection::vec(any::<u32>(), 1..4),
            cuts in prop::collection::vec(1_usize..12, 1..40),
            noise in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (mut sent, mut expected) = (Vec::new(), Vec::new());
            for table in tables {
                let settings = |table: u32| {
                    let mut payload = vec![0, 3, 0, 0, 0, 9];
                    payload.extend([0, 1]);
                    payload.extend(table.to_be_bytes());
                    payload.extend([0, 4, 0, 1, 0, 1]);
                    frame(4, 0, 0, &payload)
                };
                for (out, table) in [(&mut sent, table), (&mut expected, 0)] {
                    out.extend(frame(0, 0, 1, &noise));
                    out.extend(settings(table));
                    out.extend(frame(1, 0, 1, &noise));
                    out.extend(frame(9, 4, 1, &noise));
                }
            }
            let mut incoming = Incoming::default();
            let (mut at, mut cuts) = (0, cuts.iter().cycle());
            while at < sent.len() {
                let end = (at + cuts.next().unwrap()).min(sent.len());
                incoming.pass(&mut sent[at..end]);
                at = end;
            }
            prop_assert_eq!(sent, expected);
            prop_assert!(incoming.is_between() && incoming.is_settled());
        }
    }

    /// Goal: nothing of ours stands inside a frame, nor between the frames of one head.
    #[test]
    fn a_head_is_not_interrupted() {
        let mut incoming = Incoming::default();
        for (bytes, is_between) in [
            (frame(0, 0, 1, b"x"), true),
            (frame(1, 0, 1, b"x"), false),
            (frame(9, 0, 1, b"x"), false),
            (frame(9, 4, 1, b"x"), true),
            (vec![0, 0], false),
        ] {
            let mut bytes = bytes;
            incoming.pass(&mut bytes);
            assert_eq!(incoming.is_between(), is_between);
        }
        assert!(!incoming.is_settled());
        let mut ack = frame(4, 1, 0, &[]);
        let mut incoming = Incoming::default();
        incoming.pass(&mut ack);
        assert!(!incoming.is_settled(), "a word that ours were taken says nothing of theirs");
        let mut empty = frame(4, 0, 0, &[]);
        incoming.pass(&mut empty);
        assert!(incoming.is_settled() && !incoming.wants_small_table());
        for (table, is_small) in [(4096_u32, false), (4095, true), (0, true)] {
            let mut bytes = frame(4, 0, 0, &[&[0, 1][..], &table.to_be_bytes()].concat());
            let mut incoming = Incoming::default();
            incoming.pass(&mut bytes);
            assert_eq!(incoming.wants_small_table(), is_small, "{table}");
        }
        assert!(tells_table(0x20) && tells_table(0x3f) && !tells_table(0x40) && !tells_table(0x82));
    }
}
