//! The framing of HTTP/1.1 messages, byte by byte and without IO; it judges no message and answers none.

use std::fmt;

/// Which way the messages flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Requests: no length means no body.
    Request,
    /// Responses: no length would mean "until the end of the connection", which is refused here.
    Response,
}

/// What the tests need to know of a head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The status of a response; 0 for a request.
    pub(crate) status: u16,
    /// The header `x-id`, where it holds a number.
    pub(crate) id: Option<u64>,
    /// Whether the body is `application/problem+json`.
    pub(crate) problem: bool,
    /// Whether the sender closes the connection after this message.
    pub(crate) close: bool,
    /// The method and the target of a request, or the status line of a response.
    pub(crate) first_line: String,
    /// The header `x-client`.
    pub(crate) client: Option<String>,
}

/// What a push led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// All input was taken; the message goes on.
    More,
    /// A head is complete.
    Head(Head),
    /// A message is complete; the next byte starts another.
    End,
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum WireError {
    /// A head or a chunk's line is longer than the bound.
    TooLong,
    /// The head has no such form.
    Head(String),
    /// A chunk's size is not a number.
    Chunk,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::TooLong => write!(f, "a line or a head longer than {LONGEST} bytes"),
            WireError::Head(what) => write!(f, "a head that is no HTTP/1.1: {what}"),
            WireError::Chunk => write!(f, "a chunk without a size"),
        }
    }
}

impl std::error::Error for WireError {}

/// Cuts a stream of bytes into messages.
#[derive(Debug)]
pub(crate) struct Decoder {
    side: Side,
    state: State,
    keep: usize,
    body: Vec<u8>,
}

impl Decoder {
    /// A decoder at the start of a message; it counts bodies but keeps none.
    pub(crate) fn new(side: Side) -> Decoder {
        Decoder { side, state: State::Head(Vec::new()), keep: 0, body: Vec::new() }
    }

    /// Keeps the first `bytes` bytes of each body.
    pub(crate) fn keeping(mut self, bytes: usize) -> Decoder {
        self.keep = bytes;
        self
    }

    /// Whether the next byte is the first of a message.
    pub(crate) fn at_start(&self) -> bool {
        matches!(&self.state, State::Head(seen) if seen.is_empty())
    }

    /// Whether a head is complete and its body is not.
    pub(crate) fn in_body(&self) -> bool {
        !matches!(&self.state, State::Head(_))
    }

    /// What was kept of the last body.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Takes bytes up to the next event; returns how many it took. Call again with the rest, also when nothing
    /// is left, until it answers [`Event::More`].
    pub(crate) fn push(&mut self, input: &[u8]) -> Result<(usize, Event), WireError> {
        let mut taken = 0;
        let mut rest = input;
        loop {
            let (next, event, used) = match std::mem::replace(&mut self.state, State::empty()) {
                State::Head(mut seen) => match fill(&mut seen, rest, b"\r\n\r\n")? {
                    (used, false) => (State::Head(seen), Some(Event::More), used),
                    (used, true) => {
                        let (head, body) = parse(self.side, &seen)?;
                        self.body.clear();
                        (body, Some(Event::Head(head)), used)
                    }
                },
                State::Length(0) => (State::empty(), Some(Event::End), 0),
                State::Length(left) => {
                    let used = self.swallow(rest, left);
                    let left = left.saturating_sub(length(used));
                    (State::Length(left), (used == 0).then_some(Event::More), used)
                }
                State::Size(mut seen) => match fill(&mut seen, rest, b"\r\n")? {
                    (used, false) => (State::Size(seen), Some(Event::More), used),
                    (used, true) => match chunk_size(&seen)? {
                        0 => (State::Trailer(Vec::new()), None, used),
                        size => (State::Data(size), None, used),
                    },
                },
                State::Data(0) => (State::DataEnd(Vec::new()), None, 0),
                State::Data(left) => {
                    let used = self.swallow(rest, left);
                    let left = left.saturating_sub(length(used));
                    (State::Data(left), (used == 0).then_some(Event::More), used)
                }
                State::DataEnd(mut seen) => match fill(&mut seen, rest, b"\r\n")? {
                    (used, false) => (State::DataEnd(seen), Some(Event::More), used),
                    (used, true) => (State::Size(Vec::new()), None, used),
                },
                State::Trailer(mut seen) => match fill(&mut seen, rest, b"\r\n")? {
                    (used, false) => (State::Trailer(seen), Some(Event::More), used),
                    (used, true) if seen.len() == 2 => (State::empty(), Some(Event::End), used),
                    (used, true) => (State::Trailer(Vec::new()), None, used),
                },
            };
            self.state = next;
            taken += used;
            rest = rest.get(used..).unwrap_or_default();
            if let Some(event) = event {
                return Ok((taken, event));
            }
        }
    }

    /// Takes at most `left` bytes of a body and keeps what is to be kept.
    fn swallow(&mut self, rest: &[u8], left: u64) -> usize {
        let used = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        let room = self.keep.saturating_sub(self.body.len()).min(used);
        self.body.extend_from_slice(rest.get(..room).unwrap_or_default());
        used
    }
}

/// Where in a message we are.
#[derive(Debug)]
enum State {
    Head(Vec<u8>),
    Length(u64),
    Size(Vec<u8>),
    Data(u64),
    DataEnd(Vec<u8>),
    Trailer(Vec<u8>),
}

impl State {
    fn empty() -> State {
        State::Head(Vec::new())
    }
}

/// The longest head or line we take, in bytes.
const LONGEST: usize = 64 * 1024;

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Moves bytes into `seen` until it ends with `end`; says how many, and whether it did.
fn fill(seen: &mut Vec<u8>, input: &[u8], end: &[u8]) -> Result<(usize, bool), WireError> {
    for (index, byte) in input.iter().enumerate() {
        if seen.len() == LONGEST {
            return Err(WireError::TooLong);
        }
        seen.push(*byte);
        if seen.ends_with(end) {
            return Ok((index + 1, true));
        }
    }
    Ok((input.len(), false))
}

fn chunk_size(line: &[u8]) -> Result<u64, WireError> {
    let text = std::str::from_utf8(line).map_err(|_| WireError::Chunk)?;
    let digits = text.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(digits, 16).map_err(|_| WireError::Chunk)
}

fn parse(side: Side, bytes: &[u8]) -> Result<(Head, State), WireError> {
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Head("not text".to_owned()))?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut head = Head { first_line: first.to_owned(), ..Head::default() };
    if side == Side::Response {
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        head.status = status
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| WireError::Head(first.to_owned()))?;
    }
    let mut bytes = None;
    let mut chunked = false;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| WireError::Head(line.to_owned()))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                bytes = Some(value.parse().map_err(|_| WireError::Head(line.to_owned()))?);
            }
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => head.close = value.eq_ignore_ascii_case("close"),
            "content-type" => head.problem = value.starts_with("application/problem+json"),
            "x-id" => head.id = value.parse().ok(),
            "x-client" => head.client = Some(value.to_owned()),
            _ => {}
        }
    }
    let bodiless = side == Side::Request || head.status < 200 || head.status == 204;
    let state = match bytes {
        _ if chunked => State::Size(Vec::new()),
        Some(bytes) => State::Length(bytes),
        None if bodiless => State::Length(0),
        None => return Err(WireError::Head("a response of unknown length".to_owned())),
    };
    Ok((head, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every split of the same bytes gives the same messages.
    #[test]
    fn a_stream_is_cut_alike_however_it_arrives() {
        let stream = b"POST /a HTTP/1.1\r\nx-id: 7\r\ncontent-length: 3\r\n\r\nabc\
            POST /b HTTP/1.1\r\ntransfer-encoding: chunked\r\nx-id: 8\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nt: u\r\n\r\n\
            GET /c HTTP/1.1\r\nx-id: 9\r\n\r\n";
        for size in 1..=stream.len() {
            let mut decoder = Decoder::new(Side::Request).keeping(10);
            let mut seen = Vec::new();
            for part in stream.chunks(size) {
                let mut rest = part;
                loop {
                    let (used, event) = decoder.push(rest).unwrap();
                    rest = &rest[used..];
                    match event {
                        Event::More => break,
                        Event::Head(head) => seen.push((head.id, Vec::new())),
                        Event::End => seen.last_mut().unwrap().1 = decoder.body().to_vec(),
                    }
                }
                assert!(rest.is_empty());
            }
            let expected =
                vec![(Some(7), b"abc".to_vec()), (Some(8), b"abc".to_vec()), (Some(9), Vec::new())];
            assert_eq!(seen, expected, "in parts of {size}");
            assert!(decoder.at_start());
        }
    }

    /// Goal: a response tells its status and whether it is a problem; one of unknown length is refused.
    #[test]
    fn a_response_tells_its_status() {
        let mut decoder = Decoder::new(Side::Response);
        let text = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (_, event) = decoder.push(text).unwrap();
        let Event::Head(head) = event else { panic!("{event:?}") };
        assert_eq!((head.status, head.problem, head.close), (503, true, true));
        assert_eq!(decoder.push(b"").unwrap(), (0, Event::End));
        assert!(Decoder::new(Side::Response).push(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(Decoder::new(Side::Response).push(b"HTTP/1.1 abc OK\r\n\r\n").is_err());
    }

    /// Goal: a head without an end does not grow without bound.
    #[test]
    fn a_head_has_a_longest_length() {
        let mut decoder = Decoder::new(Side::Request);
        assert_eq!(decoder.push(&vec![b'a'; LONGEST + 1]), Err(WireError::TooLong));
    }
}
