//! Why a call got no answer from its upstream, in words; it picks no answer of ours.

use super::upload::UploadFailure;
use crate::wire::Breach;
use breaker_core::Denial;
use hyper::StatusCode;
use std::fmt;
use std::io;

/// Why a call got no answer from its upstream.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// A gate refused the first byte.
    Halted(Denial),
    /// A kill ended it after its first byte.
    Severed(Denial),
    /// No connection could be made.
    Connect(io::Error),
    /// TLS failed: the other side did not prove who it is, or speaks another language.
    Handshake(io::Error),
    /// No connection was made in time.
    ConnectTimeout,
    /// As many connections as there may be, and no room in the queue, or no end of the wait.
    Busy,
    /// No answer came in time.
    AnswerTimeout,
    /// The client stopped sending its body.
    UploadStalled,
    /// The client's body is larger than allowed.
    UploadTooLarge,
    /// The client's body broke off.
    UploadBroken,
    /// The upstream closed before its answer had ended.
    Closed(Option<io::Error>),
    /// What the upstream said was no answer.
    Breach(Breach),
}

impl Failure {
    /// What went wrong with the request's body.
    #[must_use]
    pub fn of_upload(failure: UploadFailure) -> Failure {
        match failure {
            UploadFailure::TooLarge => Failure::UploadTooLarge,
            UploadFailure::Broken => Failure::UploadBroken,
            UploadFailure::Slow => Failure::UploadStalled,
        }
    }

    /// Is it the fault of an upstream that had the call?
    #[must_use]
    pub fn is_of_upstream(&self) -> bool {
        matches!(self, Failure::AnswerTimeout | Failure::Closed(_) | Failure::Breach(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Halted(_) => f.write_str("a gate refused the call before its first byte"),
            Failure::Severed(_) => f.write_str("a kill ended the call"),
            Failure::Connect(error) => write!(f, "the upstream could not be reached: {error}"),
            Failure::Handshake(error) => write!(f, "the upstream could not be trusted: {error}"),
            Failure::ConnectTimeout => f.write_str("the upstream could not be reached in time"),
            Failure::Busy => f.write_str("the upstream has as many calls as it may have"),
            Failure::AnswerTimeout => f.write_str("the upstream did not answer in time"),
            Failure::UploadStalled => f.write_str("the request body stopped arriving"),
            Failure::UploadTooLarge => f.write_str("the request body is larger than allowed"),
            Failure::UploadBroken => f.write_str("the request body broke off"),
            Failure::Closed(None) => f.write_str("the upstream ended the exchange early"),
            Failure::Closed(Some(error)) => write!(f, "the upstream ended the exchange: {error}"),
            Failure::Breach(breach) => write!(f, "the upstream broke the exchange: {breach}"),
        }
    }
}

/// The kind of a failure, as the status that tells of it.
#[must_use]
pub fn class_of(failure: &Failure) -> StatusCode {
    match failure {
        Failure::ConnectTimeout | Failure::AnswerTimeout => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    }
}
