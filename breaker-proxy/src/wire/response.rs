//! The head of an answer as we send it to an HTTP/1 client: our own framing and connection, everything else as it is given.

use hyper::StatusCode;
use std::io::Write as _;

/// How the body of an answer is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// There is none, and its length is not told.
    None,
    /// So many bytes; to a HEAD they are told and do not come.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Up to the end of the connection, which HTTP/1.0 does not tell from its breaking off.
    Close,
}

/// What becomes of the connection, where it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// What the version says.
    AsUsual,
    /// It ends.
    Close,
    /// It stays, which HTTP/1.0 must be told.
    KeepAlive,
    /// It goes on as a WebSocket.
    WebSocket,
}

/// What the head says that is not the given fields.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    /// The body.
    pub coding: Coding,
    /// The connection.
    pub after: After,
    /// The time in the words of HTTP, for an answer that does not tell it (RFC 9110, 6.6.1).
    pub date: &'a str,
}

/// Appends the line with the status.
pub fn begin(out: &mut Vec<u8>, status: StatusCode) {
    let reason = status.canonical_reason().unwrap_or("");
    for part in [b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Appends fields; `content-length` is ours and is left out. Says whether `date` is among them.
pub fn fields<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> bool {
    let mut dated = false;
    for (name, value) in fields.filter(|(name, _)| *name != "content-length") {
        dated |= name == "date";
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    dated
}

/// Appends what is ours, and the end of the head. `dated`: it tells the date already.
pub fn end(out: &mut Vec<u8>, ours: &Ours<'_>, dated: bool) {
    if !dated {
        for part in [b"date: ", ours.date.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(match ours.after {
        After::AsUsual => b"",
        After::Close => b"connection: close\r\n",
        After::KeepAlive => b"connection: keep-alive\r\n",
        After::WebSocket => b"connection: upgrade\r\nupgrade: websocket\r\n",
    });
    // Writing to a vector does not fail.
    let _ = match ours.coding {
        Coding::None | Coding::Close => out.write_all(b"\r\n"),
        Coding::Length(length) => write!(out, "content-length: {length}\r\n\r\n"),
        Coding::Chunked => out.write_all(b"transfer-encoding: chunked\r\n\r\n"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(coding: Coding, after: After, given: &[(&str, &str)]) -> String {
        let mut out = Vec::new();
        begin(&mut out, StatusCode::OK);
        let dated = fields(&mut out, given.iter().map(|(name, value)| (*name, value.as_bytes())));
        end(&mut out, &Ours { coding, after, date: "now" }, dated);
        String::from_utf8(out).unwrap()
    }

    /// Goal: the framing is ours and told once, the date is told once, and HTTP/1.0 learns what becomes of its connection.
    #[test]
    fn the_framing_is_told_once() {
        let fields = [("server", "x"), ("content-length", "9"), ("date", "then")];
        assert_eq!(
            head(Coding::Length(5), After::AsUsual, &fields),
            "HTTP/1.1 200 OK\r\nserver: x\r\ndate: then\r\ncontent-length: 5\r\n\r\n"
        );
        assert_eq!(
            head(Coding::Chunked, After::Close, &[]),
            "HTTP/1.1 200 OK\r\ndate: now\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        for coding in [Coding::None, Coding::Close] {
            assert_eq!(
                head(coding, After::KeepAlive, &[]),
                "HTTP/1.1 200 OK\r\ndate: now\r\nconnection: keep-alive\r\n\r\n"
            );
        }
    }

    /// Goal: a status without a name of its own has the blank behind it all the same (RFC 9112, 4).
    #[test]
    fn an_unnamed_status_is_whole() {
        let mut out = Vec::new();
        begin(&mut out, StatusCode::from_u16(299).unwrap());
        assert_eq!(out, b"HTTP/1.1 299 \r\n");
    }
}
