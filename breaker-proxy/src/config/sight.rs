//! What people see of each request, as a configuration says it; it writes no line.

use std::path::PathBuf;

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where its lines go.
    pub to: LogTo,
    /// What they look like.
    pub format: LogFormat,
    /// Whether the query is part of them. It may carry secrets.
    pub query: bool,
    /// Bytes of each of a client's own words that are taken.
    pub field_bytes: u32,
    /// Bytes of lines that may wait to be written.
    pub queue_bytes: u32,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// The standard output.
    Stdout,
    /// This file, at its end.
    File(PathBuf),
}

/// What lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    Json,
    /// The combined format of web servers, with our own fields behind it.
    Combined,
}

/// Whether requests have ids of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// A client's `x-request-id` passes like any other field.
    Off,
    /// Each has one: a trusted peer's, or a new one.
    Make,
}
