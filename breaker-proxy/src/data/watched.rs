//! An answer's body that is looked at as it passes: for whoever must end it in gRPC's own words should it break off. It changes no byte of
//! what passes, and holds none back.

use super::Worker;
use super::body::{Broken, Reply};
use super::reply;
use crate::wire::answer::Head;
use crate::wire::grpc::Messages;
use bytes::Bytes;
use hyper::body::{Body as _, Frame};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// What to look for in an answer.
pub struct Watch<'w> {
    /// Whose call it is.
    pub worker: &'w Rc<Worker>,
    /// gRPC's messages: between two of them a status may end it.
    pub messages: bool,
}

/// A body that is looked at.
pub struct Watched {
    reply: Reply,
    worker: Rc<Worker>,
    messages: Option<Messages>,
    /// Its end was told already.
    ended: bool,
}

/// The same body, looked at if there is anything to look for.
#[must_use]
pub fn watched(reply: Reply, head: &Head, watch: Watch<'_>) -> Reply {
    let Watch { worker, messages } = watch;
    // A length that was told must be kept; what is at its end has nothing to break off.
    let messages = messages && head.told.is_none() && !reply.is_end_stream();
    if !messages {
        return reply;
    }
    let (worker, messages) = (Rc::clone(worker), Some(Messages::default()));
    Reply::Watched(Box::new(Watched { reply, worker, messages, ended: false }))
}

impl Watched {
    /// What is looked at.
    #[must_use]
    pub fn reply(&self) -> &Reply {
        &self.reply
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
                Some(Ok(frame))
            }
            Some(Err(broken)) => Some(self.break_off(broken)),
            None => None,
        })
    }

    fn look(&mut self, data: &[u8]) {
        if let Some(messages) = &mut self.messages {
            messages.pass(data);
        }
    }

    /// How it ends: with a status if it is between two messages, else without one, which resets the stream.
    fn break_off(&mut self, broken: Broken) -> Result<Frame<Bytes>, Broken> {
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
