//! An answer's body that is looked at as it passes: for what settles its call, and for whoever must end it in gRPC's own words should it
//! break off. It changes no byte of what passes, and holds none back.

use super::Worker;
use super::body::{Broken, Reply};
use super::reply;
use super::settle::{Settling, Tap};
use crate::wire::answer::Head;
use crate::wire::grpc::Messages;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::{Body as _, Frame};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// What to look for in an answer.
pub struct Watch<'w> {
    /// Whose call it is.
    pub worker: &'w Rc<Worker>,
    /// What the call weighed.
    pub settling: Option<Rc<Settling>>,
    /// gRPC's messages: between two of them a status may end it.
    pub messages: bool,
}

/// What is looked for in an answer of which the head has come.
pub struct Watching<'w> {
    worker: &'w Rc<Worker>,
    tap: Option<Tap>,
    messages: Option<Messages>,
}

/// A body that is looked at.
pub struct Watched {
    reply: Reply,
    worker: Rc<Worker>,
    tap: Option<Tap>,
    messages: Option<Messages>,
    /// It broke off, and its end was told already.
    ended: bool,
}

impl<'w> Watch<'w> {
    /// For the answer with this head.
    #[must_use]
    pub fn begin(self, head: &Head) -> Watching<'w> {
        let Watch { worker, settling, messages } = self;
        // What goes on as a WebSocket has no end that would say anything.
        let settling = settling.filter(|_| head.status != StatusCode::SWITCHING_PROTOCOLS);
        let tap = settling.map(|settling| Tap::new(worker, settling, head));
        // A length that was told must be kept.
        let messages = (messages && head.told.is_none()).then(Messages::default);
        Watching { worker, tap, messages }
    }
}

impl Watching<'_> {
    /// The answer is at its end already, and a good one.
    pub fn end(&mut self) {
        if let Some(mut tap) = self.tap.take() {
            tap.end();
        }
        self.messages = None;
    }

    /// The body, looked at if there is anything to look for.
    #[must_use]
    pub fn over(self, reply: Reply) -> Reply {
        let Watching { worker, tap, messages } = self;
        if tap.is_none() && messages.is_none() {
            return reply;
        }
        let worker = Rc::clone(worker);
        Reply::Watched(Box::new(Watched { reply, worker, tap, messages, ended: false }))
    }
}

impl Watched {
    /// What is looked at.
    #[must_use]
    pub fn reply(&self) -> &Reply {
        &self.reply
    }

    /// Did it end with a status of ours, instead of its own end?
    #[must_use]
    pub fn broke_off(&self) -> bool {
        self.ended
    }

    /// Whether all of it has come.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.ended || self.reply.is_end_stream()
    }

    /// The next frame.
    ///
    /// # Errors
    /// It broke off, where no status may follow.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(Pin::new(&mut self.reply).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.look(data);
                }
                // Nobody asks again once it is at its end.
                if self.reply.is_end_stream() {
                    self.end();
                }
                Some(Ok(frame))
            }
            Some(Err(broken)) => Some(self.break_off(broken)),
            None => {
                self.end();
                None
            }
        })
    }

    fn look(&mut self, data: &[u8]) {
        if let Some(tap) = &mut self.tap {
            tap.pass(data);
        }
        if let Some(messages) = &mut self.messages {
            messages.pass(data);
        }
    }

    fn end(&mut self) {
        if let Some(mut tap) = self.tap.take() {
            tap.end();
        }
    }

    /// How it ends: with a status if it is between two messages, else without one, which resets the stream.
    fn break_off(&mut self, broken: Broken) -> Result<Frame<Bytes>, Broken> {
        // What has come of it stays known, but it is not whole.
        self.tap = None;
        if !self.messages.is_some_and(|messages| messages.is_between()) {
            return Err(broken);
        }
        self.ended = true;
        let plane = self.worker.plane;
        let policy = &plane.current.load().policy;
        let refusal = reply::failed(plane, policy, broken.failure());
        Ok(Frame::trailers(refusal.trailers()))
    }
}
