//! gRPC as far as a proxy must know it: who speaks it, how a status is written, and where a message ends; it picks no status.
//!
//! After "gRPC over HTTP2" (`PROTOCOL-HTTP2`), "gRPC status codes", and the pushback of "gRPC Retry Design" (A6).

use super::asked::Fields;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::fmt::Write as _;

/// In which of its forms a request speaks gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grpc {
    /// `application/grpc`, with or without the name of a coding.
    Plain,
    /// `application/grpc-web`.
    Web,
    /// `application/grpc-web-text`, of which the messages are in base64.
    WebText,
}

impl Grpc {
    /// The form that the fields of a request speak, if its `content-type` says one, once.
    #[must_use]
    pub fn of(fields: Fields<'_>) -> Option<Grpc> {
        let mut types = fields.all(&header::CONTENT_TYPE);
        let (Some(said), None) = (types.next(), types.next()) else { return None };
        let text = said.to_ascii_lowercase();
        let rest = text.strip_prefix(b"application/grpc")?;
        let (form, rest) = match (rest.strip_prefix(b"-web-text"), rest.strip_prefix(b"-web")) {
            (Some(rest), _) => (Grpc::WebText, rest),
            (None, Some(rest)) => (Grpc::Web, rest),
            (None, None) => (Grpc::Plain, rest),
        };
        matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t')).then_some(form)
    }

    /// The type of an answer that has no message.
    #[must_use]
    pub const fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Grpc::Plain => "application/grpc",
            Grpc::Web => "application/grpc-web",
            Grpc::WebText => "application/grpc-web-text",
        })
    }
}

/// The status codes that a proxy has a reason to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 3: the request itself is wrong, and would be again.
    InvalidArgument,
    /// 4: a deadline passed.
    DeadlineExceeded,
    /// 8: a limit is used up.
    ResourceExhausted,
    /// 12: nobody here does that.
    Unimplemented,
    /// 14: not now.
    Unavailable,
}

impl Status {
    /// As `grpc-status` says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::InvalidArgument => "3",
            Status::DeadlineExceeded => "4",
            Status::ResourceExhausted => "8",
            Status::Unimplemented => "12",
            Status::Unavailable => "14",
        }
    }
}

/// When a client may try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Its own policy decides.
    Nothing,
    /// After so many milliseconds.
    After(u64),
    /// Not at all by itself.
    Never,
}

/// Appends a status with its words, and when to try again, as the fields of an answer without messages or as its trailers.
pub fn write_status(fields: &mut HeaderMap, status: Status, words: &str, pushback: Pushback) {
    fields.insert(STATUS, HeaderValue::from_static(status.as_str()));
    if let Ok(words) = HeaderValue::try_from(encoded(words)) {
        fields.insert(MESSAGE, words);
    }
    match pushback {
        Pushback::Nothing => {}
        Pushback::After(millis) => drop(fields.insert(PUSHBACK, HeaderValue::from(millis))),
        // A6: "If the value for pushback is negative […] the server asking the client not to retry at all."
        Pushback::Never => drop(fields.insert(PUSHBACK, HeaderValue::from_static("-1"))),
    }
}

/// Words as `grpc-message` has them: percent-encoded but for what can be printed, and `%` too.
fn encoded(words: &str) -> String {
    let mut text = String::with_capacity(words.len());
    for byte in words.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Follows the messages of a body, each a byte of flags, its length in four bytes, and itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages {
    /// Bytes that came of the next message's five, and what they say of its length so far.
    prefix: u8,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
}

impl Messages {
    /// Takes the next bytes.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left = self.left.saturating_sub(u32::try_from(here).unwrap_or(u32::MAX));
                bytes = bytes.get(here..).unwrap_or_default();
                continue;
            }
            bytes = rest;
            // The first byte of the five is flags.
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(first);
            }
            self.prefix = self.prefix.saturating_add(1);
            if self.prefix == 5 {
                *self = Messages { left: self.length, ..Messages::default() };
            }
        }
    }

    /// Whether all that came is whole messages, so that a status may follow.
    #[must_use]
    pub const fn is_between(&self) -> bool {
        self.left == 0 && self.prefix == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    fn of(types: &[&str]) -> Option<Grpc> {
        let mut map = HeaderMap::new();
        for said in types {
            map.append(header::CONTENT_TYPE, said.parse().unwrap());
        }
        Grpc::of(Fields::Map(&map))
    }

    /// Goal: who speaks gRPC is known by the whole of its type, in any case, and nobody else is taken for it.
    #[test]
    fn grpc_is_known_by_its_type() {
        for said in ["application/grpc", "Application/gRPC+proto", "application/grpc; x=y"] {
            assert_eq!(of(&[said]), Some(Grpc::Plain), "{said}");
        }
        assert_eq!(of(&["application/grpc-web+proto"]), Some(Grpc::Web));
        assert_eq!(of(&["application/grpc-web-text"]), Some(Grpc::WebText));
        for said in ["application/grpcx", "application/grpc-foo", "application/json", "", "grpc"] {
            assert_eq!(of(&[said]), None, "{said}");
        }
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["application/grpc", "application/grpc"]), None, "said twice");
    }

    /// Goal: words that are no plain ASCII are encoded as the protocol says, the sign of the encoding too.
    #[test]
    fn words_are_encoded() {
        assert_eq!(encoded("a b~%\n\u{e9}"), "a b~%25%0A%C3%A9");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// Goal: whatever the pieces, what stands between two messages is known, and nothing else is taken for it.
        #[test]
        fn the_end_of_a_message_is_known(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5),
            size in 1_usize..50,
        ) {
            let (mut body, mut ends) = (Vec::new(), vec![0]);
            for message in &messages {
                body.push(0);
                body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
                body.extend(message);
                ends.push(body.len());
            }
            let (mut seen, mut at) = (Messages::default(), 0);
            for piece in body.chunks(size) {
                seen.pass(piece);
                at += piece.len();
                assert_eq!(seen.is_between(), ends.contains(&at), "after {at} bytes");
            }
        }
    }
}
