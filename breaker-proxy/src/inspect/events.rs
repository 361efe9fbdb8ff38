//! The data of server-sent events (HTML Living Standard, 9.2.6), one event after the other as they pass; it holds no more than it is
//! allowed and interprets nothing.

/// Reads a stream of events.
#[derive(Debug)]
pub struct Events {
    /// What has come of the line that is not at its end.
    line: Vec<u8>,
    /// The data of the event that is not at its end, each line with a line feed behind it.
    data: Vec<u8>,
    /// Bytes of both, at most.
    most: usize,
    /// Something of this event, or line, went beyond them.
    lost: bool,
    line_lost: bool,
    /// The last line ended with a carriage return, to which a line feed may belong.
    after_return: bool,
    begun: bool,
}

/// An event that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'e> {
    /// All of its data.
    Data(&'e [u8]),
    /// It was longer than is held.
    TooLong,
}

impl Events {
    /// For events of which up to `most` bytes are held.
    #[must_use]
    pub fn new(most: usize) -> Events {
        Events {
            line: Vec::new(),
            data: Vec::new(),
            most,
            lost: false,
            line_lost: false,
            after_return: false,
            begun: false,
        }
    }

    /// The bytes that it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.line.len().saturating_add(self.data.len())
    }

    /// Takes the next bytes, and tells of each event that ends in them.
    pub fn push(&mut self, mut bytes: &[u8], tell: &mut impl FnMut(Event<'_>)) {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && first == b'\n' {
                bytes = bytes.get(1..).unwrap_or_default();
                continue;
            }
            let Some(at) = memchr::memchr2(b'\r', b'\n', bytes) else {
                self.keep(bytes);
                return;
            };
            let (line, rest) = bytes.split_at_checked(at).unwrap_or((bytes, b""));
            self.after_return = rest.first() == Some(&b'\r');
            bytes = rest.get(1..).unwrap_or_default();
            if self.line.is_empty() && !self.line_lost {
                self.take_line(line, tell);
            } else {
                self.keep(line);
                let mut line = std::mem::take(&mut self.line);
                self.take_line(&line, tell);
                line.clear();
                self.line = line;
            }
        }
    }

    /// The stream is at its end. An event that lacks its empty line is told as well: most of its readers drop it, but what its writer
    /// meant to say is clear.
    pub fn end(&mut self, tell: &mut impl FnMut(Event<'_>)) {
        if !self.line.is_empty() || self.line_lost {
            self.push(b"\n", tell);
        }
        self.tell(tell);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.line_lost || self.held().saturating_add(bytes.len()) > self.most {
            self.line_lost = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn take_line(&mut self, line: &[u8], tell: &mut impl FnMut(Event<'_>)) {
        if std::mem::take(&mut self.line_lost) {
            self.lost = true;
            self.begun = true;
            return;
        }
        // A mark of the byte order may stand before the first line.
        let line = match line.strip_prefix(b"\xEF\xBB\xBF") {
            Some(rest) if !self.begun => rest,
            _ => line,
        };
        self.begun = true;
        if line.is_empty() {
            return self.tell(tell);
        }
        let value = match line.strip_prefix(b"data") {
            Some(b"") => b"",
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            // A comment, or another field.
            _ => return,
        };
        if self.data.len().saturating_add(value.len()).saturating_add(1) > self.most {
            self.lost = true;
        } else if !self.lost {
            self.data.extend_from_slice(value);
            self.data.push(b'\n');
        }
    }

    fn tell(&mut self, tell: &mut impl FnMut(Event<'_>)) {
        if std::mem::take(&mut self.lost) {
            tell(Event::TooLong);
        } else if let Some((_, data)) = self.data.split_last() {
            tell(Event::Data(data));
        }
        self.data.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Events};
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

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

    fn texts(stream: &str) -> Vec<String> {
        let told = read(&[stream.as_bytes()], 1000);
        told.into_iter().map(|data| String::from_utf8(data.unwrap()).unwrap()).collect()
    }

    /// Goal: the examples of the standard, and its corner cases, are read as it says; and an event without its empty line is told too.
    #[test]
    fn events_are_read_as_the_standard_says() {
        for (stream, expected) in [
            ("data: YHOO\ndata: +2\ndata: 10\n\n", &["YHOO\n+2\n10"][..]),
            (
                ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
                &["first event", "second event", " third event"],
            ),
            ("data\n\ndata\ndata\n\ndata:", &["", "\n", ""]),
            ("data:test\n\ndata: test\n\n", &["test", "test"]),
            ("\u{FEFF}data: a\r\n\r\ndata: b\r\rdata: c\n\n", &["a", "b", "c"]),
            ("event: x\nid: 1\n\n\n\n", &[]),
            ("datum: x\n data: y\nDATA: z\n\n", &[]),
            ("data: a\n\n\u{FEFF}data: b\n\n", &["a"]),
            ("data: at the end", &["at the end"]),
            ("", &[]),
        ] {
            assert_eq!(texts(stream), expected, "{stream:?}");
        }
    }

    /// Goal: an event that is too long is told of as such, whichever of its lines is, and those around it are read.
    #[test]
    fn what_is_too_long_is_told_of() {
        let some = |text: &str| Some(text.as_bytes().to_vec());
        for middle in [
            "data: 0123456789abcdef",
            "data: 01234567\ndata: 89abcdef",
            ": 0123456789abcdef\ndata: x",
        ] {
            let stream = format!("data: a\n\n{middle}\n\ndata: b\n\n");
            for size in 1..stream.len() {
                let pieces: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
                let told = read(&pieces, 15);
                // A comment that comes whole is never held.
                let whole = told == [some("a"), some("x"), some("b")];
                assert!(
                    told == [some("a"), None, some("b")] || (whole && middle.starts_with(':')),
                    "{middle:?} by {size}: {told:?}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Goal: whatever the bytes and the pieces, the same events are read.
        #[test]
        fn pieces_change_nothing(
            stream in prop::collection::vec(prop::sample::select(&b"data: x\n\r\xEF\xBB\xBF"[..]), 0..60),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect();
            assert_eq!(read(&pieces, 1000), read(&[&stream], 1000));
        }
    }
}
