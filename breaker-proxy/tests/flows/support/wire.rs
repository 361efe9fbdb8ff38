//! One end of a connection, byte for byte, so that a test can say what no client and no server would; it mends nothing.

use super::LIMIT;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a socket must take nothing to count as full.
pub(crate) const FULL_AFTER: Duration = Duration::from_millis(300);

/// A connection, and what was read of it but not yet asked for.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// The head of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The first line.
    pub(crate) start: String,
    /// Names in lower case, values, in the order they came.
    pub(crate) fields: Vec<(String, String)>,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As its framing says.
    Whole,
    /// By the end of the connection, where that is the framing.
    WithConnection,
    /// The connection ended before the body did.
    Broken,
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Head {
    /// The only field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let found = self.all(name);
        assert!(found.len() < 2, "{name} stands more than once in {self:?}");
        found.first().copied()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The part of the first line after so many blanks.
    pub(crate) fn word(&self, index: usize) -> &str {
        self.start.split(' ').nth(index).unwrap_or_default()
    }

    /// The head that these bytes are.
    pub(crate) fn parse(bytes: &[u8]) -> Head {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let fields = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("{line:?}"));
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        Head { start, fields }
    }
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.word(1).parse().unwrap()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The stable code of a problem document.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

/// A socket that has nothing to say within the limit is a failure; all other errors are an end of the connection.
fn ended(error: &io::Error) {
    assert!(
        !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "nothing moved for {LIMIT:?}"
    );
}

impl Wire {
    pub(crate) fn connect(address: SocketAddr) -> Wire {
        Wire::new(TcpStream::connect_timeout(&address, LIMIT).unwrap())
    }

    /// A connection on which little is taken that is not read.
    pub(crate) fn connect_narrow(address: SocketAddr) -> Wire {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(32 * 1024).unwrap();
        socket.connect_timeout(&address.into(), LIMIT).unwrap();
        Wire::new(socket.into())
    }

    /// From now on little is taken that is not read.
    pub(crate) fn narrow(&self) {
        socket2::SockRef::from(&self.stream).set_recv_buffer_size(16 * 1024).unwrap();
    }

    pub(crate) fn new(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Wire { stream, buffer: Vec::new() }
    }

    /// Writes text; the other side may be gone.
    pub(crate) fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    /// Writes bytes; the other side may be gone.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            ended(&error);
        }
    }

    /// Writes `chunk` again and again until the connection takes no more, or has ended: how much it took.
    pub(crate) fn fill(&mut self, chunk: &[u8]) -> usize {
        self.stream.set_write_timeout(Some(FULL_AFTER)).unwrap();
        let mut sent = 0;
        loop {
            match self.stream.write(chunk) {
                Ok(count) => sent += count,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    break;
                }
                Err(error) => {
                    ended(&error);
                    break;
                }
            }
        }
        self.stream.set_write_timeout(Some(LIMIT)).unwrap();
        sent
    }

    /// Another handle for writing, for a second thread.
    pub(crate) fn writer(&self) -> Wire {
        Wire::new(self.stream.try_clone().unwrap())
    }

    /// Says that nothing more will be written.
    pub(crate) fn end_writing(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// More bytes; false at the end of the connection.
    fn more(&mut self) -> bool {
        let mut part = [0u8; 64 * 1024];
        match self.stream.read(&mut part) {
            Ok(0) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&part[..count]);
                true
            }
            Err(error) => {
                ended(&error);
                false
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(count.min(self.buffer.len()));
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Everything up to and with `end`; what there was, if the connection ends before.
    pub(crate) fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let mut from = 0;
        loop {
            let found = self.buffer[from..].windows(end.len()).position(|window| window == end);
            if let Some(at) = found {
                return Ok(self.take(from + at + end.len()));
            }
            from = self.buffer.len().saturating_sub(end.len());
            if !self.more() {
                return Err(self.take(usize::MAX));
            }
        }
    }

    /// Exactly so many bytes, or what there was.
    pub(crate) fn exactly(&mut self, count: usize) -> Result<Vec<u8>, Vec<u8>> {
        while self.buffer.len() < count {
            if !self.more() {
                return Err(self.take(usize::MAX));
            }
        }
        Ok(self.take(count))
    }

    /// All that comes until the connection ends.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        self.take(usize::MAX)
    }

    /// Reads for so long, and fails if anything comes, the end included.
    pub(crate) fn assert_silent(&mut self, long: Duration) {
        self.stream.set_read_timeout(Some(long)).unwrap();
        let result = self.stream.read(&mut [0u8; 1]);
        assert!(result.is_err(), "came: {result:?}");
        self.stream.set_read_timeout(Some(LIMIT)).unwrap();
    }

    /// Reads one byte; false at the end of the connection.
    pub(crate) fn sip(&mut self) -> bool {
        match self.stream.read(&mut [0u8; 1]) {
            Ok(read) => read > 0,
            Err(error) => {
                ended(&error);
                false
            }
        }
    }

    /// Reads to the end: whether that is a reset, and not a plain end.
    pub(crate) fn ends_by_reset(&mut self) -> bool {
        loop {
            match self.stream.read(&mut [0u8; 4096]) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => {
                    ended(&error);
                    return error.kind() == ErrorKind::ConnectionReset;
                }
            }
        }
    }

    /// How many bytes have come and were not read, 64 MiB at most.
    pub(crate) fn at_hand(&self) -> usize {
        self.stream.peek(&mut vec![0u8; 64 * 1024 * 1024]).unwrap()
    }

    /// The connection ends, and nothing comes before.
    pub(crate) fn assert_ends(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "came before the end: {:?}", String::from_utf8_lossy(&rest));
    }

    /// The next head; `None` if the connection ends first, cleanly or within it.
    pub(crate) fn try_head(&mut self) -> Option<Head> {
        self.until(b"\r\n\r\n").ok().map(|bytes| Head::parse(&bytes))
    }

    pub(crate) fn head(&mut self) -> Head {
        self.until(b"\r\n\r\n").map(|bytes| Head::parse(&bytes)).unwrap_or_else(|bytes| {
            panic!("the connection ended before a head: {:?}", String::from_utf8_lossy(&bytes))
        })
    }

    /// The data of one chunk; `None` for the last, `Err` if the connection ends first.
    pub(crate) fn chunk(&mut self) -> Result<Option<Vec<u8>>, Vec<u8>> {
        let line = self.until(b"\r\n")?;
        let text = String::from_utf8(line).unwrap();
        let size = usize::from_str_radix(text.trim().split(';').next().unwrap(), 16).unwrap();
        if size == 0 {
            // Trailers, then an empty line.
            while self.until(b"\r\n")? != b"\r\n" {}
            return Ok(None);
        }
        let data = self.exactly(size)?;
        self.exactly(2)?;
        Ok(Some(data))
    }

    fn chunked(&mut self) -> (Vec<u8>, End) {
        let mut body = Vec::new();
        loop {
            match self.chunk() {
                Ok(Some(data)) => body.extend(data),
                Ok(None) => return (body, End::Whole),
                Err(part) => {
                    body.extend(part);
                    return (body, End::Broken);
                }
            }
        }
    }

    /// The body that goes with a head. `to_end`: without framing it lasts until the connection ends.
    pub(crate) fn body(&mut self, head: &Head, to_end: bool) -> (Vec<u8>, End) {
        if head.all("transfer-encoding").iter().any(|value| value.ends_with("chunked")) {
            assert!(head.all("content-length").is_empty(), "two framings: {head:?}");
            return self.chunked();
        }
        if let Some(length) = head.field("content-length") {
            return match self.exactly(length.parse().unwrap()) {
                Ok(body) => (body, End::Whole),
                Err(part) => (part, End::Broken),
            };
        }
        if to_end { (self.rest(), End::WithConnection) } else { (Vec::new(), End::Whole) }
    }

    /// The next answer to a request that was no HEAD.
    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().expect("the connection ended before an answer")
    }

    /// The next answer to a request that was no HEAD; `None` if the connection ends before its body.
    pub(crate) fn try_answer(&mut self) -> Option<Answer> {
        let head = self.try_head()?;
        let status: u16 = head.word(1).parse().unwrap();
        let bodiless = status < 200 || status == 204 || status == 304;
        let (body, end) = if bodiless { (Vec::new(), End::Whole) } else { self.body(&head, true) };
        Some(Answer { head, body, end })
    }

    /// The next answer that is no interim one; `None` if the connection ends before its body.
    pub(crate) fn try_final_answer(&mut self) -> Option<Answer> {
        loop {
            let answer = self.try_answer()?;
            if answer.status() >= 200 {
                return Some(answer);
            }
        }
    }

    /// The next request, whole or broken off; `None` if the connection ends before a head.
    pub(crate) fn try_request(&mut self) -> Option<Answer> {
        let head = self.try_head()?;
        let (body, end) = self.body(&head, false);
        Some(Answer { head, body, end })
    }

    /// The next request, whole.
    pub(crate) fn request(&mut self) -> Answer {
        let request = self.try_request().expect("the connection ended before a request");
        assert_eq!(request.end, End::Whole, "{:?}", request.head);
        request
    }

    /// A small answer with these words.
    pub(crate) fn reply(&mut self, words: &str) {
        let length = words.len();
        self.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{words}"));
    }
}
