//! One line of the access log, as JSON or as servers have written it since NCSA; no byte of a client can end a line or a field.

use crate::config::sight::LogFormat;
use crate::ports::Wall;
use breaker_core::Span;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

/// What one line tells. Bytes are a client's own words.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// When the request ended.
    pub at: Wall,
    /// Who asked, as far as that is to be believed.
    pub client: IpAddr,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// The method; empty where no head could be read.
    pub method: &'a [u8],
    /// The path, as it was matched.
    pub path: &'a [u8],
    /// What stands behind the question mark, where that is wanted.
    pub query: Option<&'a [u8]>,
    /// Whom it was for.
    pub host: Option<&'a [u8]>,
    /// By which version of HTTP it came.
    pub protocol: &'a str,
    /// The status of its answer, if it had one.
    pub status: Option<u16>,
    /// Bytes of its body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// From its first byte to the last of its answer.
    pub whole: Span,
    /// Of that, what nobody else was waited for.
    pub added: Span,
    /// The scope of its route.
    pub route: Option<&'a [u8]>,
    /// Where it was sent.
    pub upstream: Option<&'a [u8]>,
    /// What became of it.
    pub verdict: &'a str,
    /// Whose gate or limit refused it.
    pub scope: Option<&'a [u8]>,
    /// The limit that did, or that tripped the gate.
    pub limit: Option<&'a [u8]>,
    /// The detector that tripped the gate.
    pub detector: Option<&'a [u8]>,
    /// The id of the trip or kill.
    pub id: Option<&'a [u8]>,
    /// It was let through because of shadow mode.
    pub shadow: bool,
    /// The request's own id.
    pub request_id: Option<&'a [u8]>,
    /// The trace it belongs to.
    pub trace: Option<&'a [u8]>,
    /// `User-Agent`.
    pub agent: Option<&'a [u8]>,
    /// `Referer`.
    pub referer: Option<&'a [u8]>,
}

/// Appends the line, with its end.
pub fn write(out: &mut Vec<u8>, format: LogFormat, line: &Line<'_>) {
    match format {
        LogFormat::Json => json(out, line),
        LogFormat::Combined => combined(out, line),
    }
    out.push(b'\n');
}

fn json(out: &mut Vec<u8>, line: &Line<'_>) {
    let at = UNIX_EPOCH + Duration::from_nanos(line.at.0);
    // Writing to a vector does not fail.
    let _ = write!(out, "{{\"time\":\"{}\"", humantime::format_rfc3339_millis(at));
    let _ = write!(out, ",\"client\":\"{}\",\"peer\":\"{}\"", line.client, line.peer);
    for (name, value) in [
        ("method", Some(line.method).filter(|method| !method.is_empty())),
        ("path", Some(line.path).filter(|path| !path.is_empty())),
        ("query", line.query),
        ("host", line.host),
    ] {
        member(out, name, value);
    }
    let _ = write!(out, ",\"protocol\":\"{}\"", line.protocol);
    let _ = match line.status {
        Some(status) => write!(out, ",\"status\":{status}"),
        None => write!(out, ",\"status\":null"),
    };
    let _ = write!(out, ",\"bytes_in\":{},\"bytes_out\":{}", line.bytes_in, line.bytes_out);
    let _ = write!(out, ",\"duration\":{},\"added\":{}", Seconds(line.whole), Seconds(line.added));
    member(out, "route", line.route);
    member(out, "upstream", line.upstream);
    let _ = write!(out, ",\"verdict\":\"{}\"", line.verdict);
    for (name, value) in
        [("scope", line.scope), ("limit", line.limit), ("detector", line.detector), ("id", line.id)]
    {
        member(out, name, value);
    }
    if line.shadow {
        out.extend_from_slice(b",\"shadow\":true");
    }
    for (name, value) in [
        ("request_id", line.request_id),
        ("trace_id", line.trace),
        ("user_agent", line.agent),
        ("referer", line.referer),
    ] {
        member(out, name, value);
    }
    out.push(b'}');
}

fn member(out: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    let Some(value) = value else { return };
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":\"");
    escape_json(out, value);
    out.push(b'"');
}

/// All but visible ASCII is escaped: readers of JSON get it back, and a terminal is told nothing. What is no UTF-8 becomes U+FFFD.
fn escape_json(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                ' '..='~' => out.push(u8::try_from(character).unwrap_or(b'?')),
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

/// The combined format, and behind it what only we know: verdict, route, scope, what refused, id, both times, request and trace.
fn combined(out: &mut Vec<u8>, line: &Line<'_>) {
    let _ = write!(out, "{} - - [", line.client);
    date(out, line.at);
    out.extend_from_slice(b"] \"");
    if line.method.is_empty() {
        out.push(b'-');
    } else {
        escape(out, line.method);
        out.push(b' ');
        escape(out, line.path);
        if let Some(query) = line.query {
            out.push(b'?');
            escape(out, query);
        }
        let _ = write!(out, " {}", line.protocol);
    }
    // What had no answer has the status that old servers write for it.
    let _ = write!(out, "\" {:03} {}", line.status.unwrap_or(0), line.bytes_out);
    for value in [line.referer, line.agent] {
        quoted(out, value);
    }
    let _ = write!(out, " {}{}", line.verdict, if line.shadow { "/shadow" } else { "" });
    for value in [line.route, line.scope, line.limit.or(line.detector), line.id] {
        quoted(out, value);
    }
    let _ = write!(out, " {} {}", Seconds(line.whole), Seconds(line.added));
    for value in [line.request_id, line.trace] {
        quoted(out, value);
    }
}

fn quoted(out: &mut Vec<u8>, value: Option<&[u8]>) {
    out.extend_from_slice(b" \"");
    match value {
        Some(value) => escape(out, value),
        None => out.push(b'-'),
    }
    out.push(b'"');
}

/// As nginx does: `"`, `\`, controls and what is no ASCII become `\xHH`.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for byte in text {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                let _ = write!(out, "\\x{byte:02X}");
            }
            _ => out.push(*byte),
        }
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `22/Nov/2026:01:46:39 +0000`.
fn date(out: &mut Vec<u8>, at: Wall) {
    let at = UNIX_EPOCH + Duration::from_nanos(at.0);
    let text = humantime::format_rfc3339_seconds(at).to_string();
    let piece = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    let month = piece(5, 7).parse::<usize>().ok().and_then(|month| month.checked_sub(1));
    let month = month.and_then(|month| MONTHS.get(month)).copied().unwrap_or_default();
    let _ = write!(out, "{}/{month}/{}:{} +0000", piece(8, 10), piece(0, 4), piece(11, 19));
}

/// Seconds, to the microsecond.
struct Seconds(Span);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_nanos() / 1_000;
        write!(f, "{}.{:06}", micros / 1_000_000, micros % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::net::Ipv4Addr;

    fn line<'a>(words: &'a [u8]) -> Line<'a> {
        Line {
            at: Wall(1_795_312_499_123_456_789),
            client: Ipv4Addr::new(203, 0, 113, 5).into(),
            peer: Ipv4Addr::new(10, 0, 0, 1).into(),
            method: b"GET",
            path: words,
            query: Some(words),
            host: Some(words),
            protocol: "HTTP/1.1",
            status: Some(200),
            bytes_in: 1,
            bytes_out: 2,
            whole: Span::from_nanos(1_234_567_890),
            added: Span::from_nanos(999),
            route: Some(b"/default/api"),
            upstream: Some(b"http://h:80"),
            verdict: "limited",
            scope: Some(words),
            limit: Some(b"window[0]"),
            detector: None,
            id: None,
            shadow: false,
            request_id: Some(words),
            trace: None,
            agent: Some(words),
            referer: Some(words),
        }
    }

    fn text(format: LogFormat, line: &Line<'_>) -> String {
        let mut out = Vec::new();
        write(&mut out, format, line);
        String::from_utf8(out).unwrap()
    }

    /// Goal: the JSON line, whole.
    #[test]
    fn a_line_of_json() {
        assert_eq!(
            text(LogFormat::Json, &line(b"/x")),
            "{\"time\":\"2026-11-22T01:54:59.123Z\",\"client\":\"203.0.113.5\",\"peer\":\"10.0.0.1\",\
             \"method\":\"GET\",\"path\":\"/x\",\"query\":\"/x\",\"host\":\"/x\",\"protocol\":\"HTTP/1.1\",\"status\":200,\
             \"bytes_in\":1,\"bytes_out\":2,\"duration\":1.234567,\"added\":0.000000,\"route\":\"/default/api\",\
             \"upstream\":\"http://h:80\",\"verdict\":\"limited\",\"scope\":\"/x\",\"limit\":\"window[0]\",\
             \"request_id\":\"/x\",\"user_agent\":\"/x\",\"referer\":\"/x\"}\n"
        );
    }

    /// Goal: the combined line, whole, and one of which nothing could be read.
    #[test]
    fn a_combined_line() {
        assert_eq!(
            text(LogFormat::Combined, &line(b"/x")),
            "203.0.113.5 - - [22/Nov/2026:01:54:59 +0000] \"GET /x?/x HTTP/1.1\" 200 2 \"/x\" \"/x\" limited \
             \"/default/api\" \"/x\" \"window[0]\" \"-\" 1.234567 0.000000 \"/x\" \"-\"\n"
        );
        let none = Line {
            method: b"",
            path: b"",
            query: None,
            status: None,
            route: None,
            shadow: true,
            ..line(b"")
        };
        let text = text(LogFormat::Combined, &none);
        assert!(text.contains("] \"-\" 000 2 "), "{text}");
        assert!(text.contains(" limited/shadow \"-\" "), "{text}");
    }

    /// Goal: the words of a client cannot end a field or a line, and a terminal sees no control, whatever they are.
    #[test]
    fn hostile_words_stay_in_their_field() {
        for words in [
            &b"\" 200 0 \"-\" \"-\"\n127.0.0.1 - - [x] \"GET / HTTP/1.1\" 200"[..],
            b"\r\n{\"verdict\":\"passed\"}",
            b"\\\"},{\\",
            b"\x1b[2J\x07\x00\x7f\x80\xff",
            "\u{202e}\u{2028}\u{9b}31m\u{1f600}".as_bytes(),
        ] {
            for format in [LogFormat::Json, LogFormat::Combined] {
                let text = text(format, &line(words));
                let whole = text.strip_suffix('\n').unwrap();
                assert!(whole.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{whole}");
            }
            let value: Value = serde_json::from_str(&text(LogFormat::Json, &line(words))).unwrap();
            assert_eq!(value["user_agent"], String::from_utf8_lossy(words).as_ref());
            assert_eq!(value["verdict"], "limited");
            let text = text(LogFormat::Combined, &line(words));
            assert_eq!(text.matches('"').count(), 18, "{text}");
        }
    }

    proptest! {
        /// Goal: any words come back from JSON as they were, and the combined line has its quotes and nothing more.
        #[test]
        fn any_words_come_back(words in prop::collection::vec(any::<u8>(), 0..80)) {
            let read: Value = serde_json::from_str(&text(LogFormat::Json, &line(&words))).unwrap();
            let expected = String::from_utf8_lossy(&words);
            prop_assert_eq!(&read["referer"], expected.as_ref());
            let text = text(LogFormat::Combined, &line(&words));
            prop_assert_eq!(text.matches('"').count(), 18);
            prop_assert_eq!(text.matches('\n').count(), 1);
        }
    }
}
