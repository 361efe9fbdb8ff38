//! An answer on its way from whoever gives it to the client's connection, by whichever version of HTTP; it picks no status.

use super::body::Reply;
use crate::wire::answer::Passing;
use hyper::{Response, StatusCode};

/// An answer: its head, and a body that may still be with its upstream.
pub struct Answer {
    /// How it went.
    pub status: StatusCode,
    /// The fields.
    pub fields: Passing,
    /// How long the body is, or would be, where an upstream told that.
    pub told: Option<u64>,
    /// The body.
    pub body: Reply,
}

/// Our own answers are made with a map.
impl From<Response<Reply>> for Answer {
    fn from(response: Response<Reply>) -> Answer {
        let (head, body) = response.into_parts();
        Answer { status: head.status, fields: Passing::Map(head.headers), told: None, body }
    }
}
