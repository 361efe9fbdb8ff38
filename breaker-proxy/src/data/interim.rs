//! Interim answers (RFC 9110, 15.2) on their way from an upstream to its client; it takes none that is ours to give.

use super::downstream::Downstream;
use super::room::Piece;
use crate::wire::answer::{Head, Passing};
use crate::wire::response;
use h2::server::SendResponse;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};
use std::cell::RefCell;
use std::rc::Rc;

/// A stream of HTTP/2, as long as it has no answer: behind one, nothing may be told.
pub type Respond = Rc<RefCell<Option<SendResponse<Piece>>>>;

/// Who is told of them.
pub enum Interim {
    /// A client of HTTP/1.1.
    Http1(Rc<Downstream>),
    /// One of HTTP/2.
    Http2(Respond),
}

impl Interim {
    /// Tells the client, if it is an answer to tell: leave to send a body is ours to give, and was not asked of the upstream.
    pub fn tell(&self, head: Head) {
        if matches!(head.status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            return;
        }
        match (self, head.fields) {
            (Interim::Http1(client), Passing::Lines { text, .. }) => client.tell(text),
            (Interim::Http1(client), Passing::Map(fields)) => {
                let mut text = Vec::new();
                response::begin(&mut text, head.status);
                let given = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
                response::fields(&mut text, given);
                client.tell(text);
            }
            (Interim::Http2(respond), Passing::Map(fields)) => inform(respond, head.status, fields),
            // Lines are asked for where they are told as they are.
            (Interim::Http2(_), Passing::Lines { .. }) => {}
        }
    }
}

/// Gives a client of HTTP/2 leave to send its body.
pub fn give_leave(respond: &Respond) {
    inform(respond, StatusCode::CONTINUE, HeaderMap::new());
}

fn inform(respond: &Respond, status: StatusCode, fields: HeaderMap) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    // Who has its answer is told nothing, and who has left hears nothing.
    if let Some(respond) = &mut *respond.borrow_mut() {
        let _ = respond.send_informational(response);
    }
}
