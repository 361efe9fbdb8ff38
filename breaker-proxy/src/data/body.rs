//! The body of what we answer, on its way down to the client; it is never held whole.

use super::failure::Failure;
use super::streamed::Streamed;
use super::upstream::Exchange;
use super::watched::Watched;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The body of what we answer.
pub enum Reply {
    /// Our own words, or nothing.
    Whole(Option<Bytes>),
    /// The upstream's answer as it comes.
    Flow(Box<Exchange>),
    /// The same, from a connection that carries others, too.
    Stream(Box<Streamed>),
    /// As [`Reply::Flow`], while the request is still being sent by a task of its own.
    Both(Rc<RefCell<Exchange>>),
    /// None: what comes is a WebSocket.
    Switched(Box<Exchange>),
    /// One of these, looked at as it passes.
    Watched(Box<Watched>),
}

impl Reply {
    /// Must it end now, because of a kill?
    #[must_use]
    pub fn is_severed(&self) -> bool {
        match self {
            Reply::Whole(_) => false,
            Reply::Flow(exchange) | Reply::Switched(exchange) => exchange.is_severed(),
            Reply::Stream(streamed) => streamed.is_severed(),
            Reply::Both(exchange) => exchange.borrow().is_severed(),
            Reply::Watched(watched) => watched.reply().is_severed(),
        }
    }

    /// Is the rest of the request sent by a task of its own?
    #[must_use]
    pub fn is_sent_apart(&self) -> bool {
        match self {
            Reply::Both(_) | Reply::Stream(_) => true,
            Reply::Watched(watched) => watched.reply().is_sent_apart(),
            Reply::Whole(_) | Reply::Flow(_) | Reply::Switched(_) => false,
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An answer that broke off; the client's connection or stream ends with it.
#[derive(Debug)]
pub struct Broken(Failure);

impl Broken {
    /// Why.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.0
    }
}

impl std::error::Error for Broken {}

impl Body for Reply {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Reply::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Reply::Switched(_) => Poll::Ready(None),
            Reply::Flow(exchange) => {
                exchange.poll_frame(cx).map(|frame| frame.map(|result| result.map_err(Broken)))
            }
            Reply::Stream(streamed) => {
                streamed.poll_frame(cx).map(|frame| frame.map(|result| result.map_err(Broken)))
            }
            Reply::Both(exchange) => {
                let frame = exchange.borrow_mut().poll_frame(cx);
                frame.map(|frame| frame.map(|result| result.map_err(Broken)))
            }
            Reply::Watched(watched) => watched.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Whole(bytes) => bytes.is_none(),
            Reply::Switched(_) => true,
            Reply::Flow(exchange) => exchange.is_at_end(),
            Reply::Stream(streamed) => streamed.is_at_end(),
            Reply::Both(exchange) => exchange.borrow().is_at_end(),
            Reply::Watched(watched) => watched.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
            Reply::Switched(_) => SizeHint::with_exact(0),
            Reply::Flow(exchange) => exchange.size_hint(),
            Reply::Stream(streamed) => streamed.size_hint(),
            Reply::Both(exchange) => exchange.borrow().size_hint(),
            Reply::Watched(watched) => watched.reply().size_hint(),
        }
    }
}
