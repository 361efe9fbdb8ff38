//! HTTP as bytes: the heads that come and go, chunks and frames; no socket, no time, no rule of ours but which fields pass.

pub mod answer;
pub mod asked;
pub mod chunks;
pub mod fields;
pub mod frames;
pub mod grpc;
pub mod head;
pub mod ids;
pub mod kept;
pub mod plural;
pub mod request;
pub mod response;
pub mod said;

use std::fmt;

/// Why what an upstream said is no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Breach {
    /// It is no HTTP/1 head, or longer than anyone needs.
    Head,
    /// Its framing has no single meaning (RFC 9112, 6.3).
    Framing,
    /// A chunk is malformed.
    Chunk,
    /// What it says is no HTTP/2.
    Http2,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Breach::Head => "the head of its answer is no HTTP/1, or too long",
            Breach::Framing => "where its answer ends has no single meaning",
            Breach::Chunk => "a chunk of its answer is malformed",
            Breach::Http2 => "what it says is no HTTP/2",
        })
    }
}

impl std::error::Error for Breach {}
