//! An answer on its way down to an HTTP/1 client; it is never held whole.

use super::body::Reply;
use super::downstream::Downstream;
use super::outbox::Outbox;
use crate::wire::response::Coding;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::{Body as _, Frame};
use std::pin::Pin;
use std::task::{Context, Poll};

/// One answer.
pub struct Download {
    out: Outbox,
    /// It stays until the kernel has taken all of it, so that a kill finds the call as long as something of it is to be sent.
    body: Option<Reply>,
    /// Nothing more comes from `body`.
    ended: bool,
    chunked: bool,
    /// Trailers are for those who asked for them (RFC 9110, 6.5.1).
    trailers: bool,
    /// Bytes that the kernel took.
    sent: u64,
    /// Bytes of the body that came.
    carried: usize,
    /// All of it was written, and some of it waits for the kernel.
    unflushed: bool,
}

/// It broke off: nothing more can be sent, and it must not look whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokeOff {
    /// The answer itself did.
    Answer,
    /// The client left, or reads no more.
    Client,
    /// A kill ended it while its client did not read.
    Severed,
}

impl Download {
    /// An answer with this head. A body that does not come with it (to a HEAD) is `None`.
    #[must_use]
    pub fn new(head: Vec<u8>, body: Option<Reply>, coding: Coding, trailers: bool) -> Download {
        let chunked = coding == Coding::Chunked;
        let ended = body.is_none();
        let (out, sent, unflushed) = (Outbox::new(head), 0, false);
        Download { out, body, ended, chunked, trailers, sent, carried: 0, unflushed }
    }

    /// A number that grows with what the kernel takes for this client, and whether it owes to take more.
    #[must_use]
    pub fn progress(&self, client: &Downstream) -> (u64, bool) {
        (self.sent.wrapping_add(client.taken()), self.unflushed || !self.out.is_empty())
    }

    /// Bytes of the body that came.
    #[must_use]
    pub fn carried(&self) -> usize {
        self.carried
    }

    /// The memory of its head, for another.
    #[must_use]
    pub fn into_spare(self) -> Vec<u8> {
        self.out.into_spare()
    }

    /// Sends what there is; ready once all of it is with the kernel.
    ///
    /// # Errors
    /// The body broke off, or the client did, or a kill ended it.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        client: &Downstream,
    ) -> Poll<Result<(), BrokeOff>> {
        loop {
            let mut waits = false;
            // What comes at once goes out together with what is there.
            while let Some(body) = &mut self.body
                && !self.ended
                && self.out.takes_frame()
            {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                    Poll::Ready(Some(Ok(frame))) => {
                        let ends = body.is_end_stream();
                        self.take(frame);
                        if ends {
                            self.end();
                        }
                    }
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(BrokeOff::Answer)),
                    Poll::Ready(None) => self.end(),
                }
            }
            if self.out.is_empty() {
                // Without a piece left there is a wait, or the end.
                // What was written may still wait for the kernel.
                match client.poll_flush(cx) {
                    Poll::Ready(Ok(())) => self.unflushed = false,
                    Poll::Pending if !self.is_severed() => {
                        self.unflushed = true;
                        return Poll::Pending;
                    }
                    Poll::Pending => return Poll::Ready(Err(BrokeOff::Severed)),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(BrokeOff::Client)),
                }
                if waits {
                    return Poll::Pending;
                }
                self.body = None;
                return Poll::Ready(Ok(()));
            }
            let (pieces, used) = self.out.pieces();
            match client.poll_write(cx, pieces.get(..used).unwrap_or(&[])) {
                Poll::Pending if !self.is_severed() => return Poll::Pending,
                Poll::Ready(Ok(taken @ 1..)) => {
                    self.out.advance(taken);
                    self.sent = self.sent.saturating_add(u64::try_from(taken).unwrap_or(u64::MAX));
                }
                Poll::Ready(_) => return Poll::Ready(Err(BrokeOff::Client)),
                Poll::Pending => return Poll::Ready(Err(BrokeOff::Severed)),
            }
        }
    }

    /// Must it end now, though the client does not take what there is of it?
    fn is_severed(&self) -> bool {
        self.body.as_ref().is_some_and(Reply::is_severed)
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                self.carried = self.carried.saturating_add(data.len());
                self.out.frame(data, self.chunked);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                if self.chunked && self.trailers {
                    self.chunked = false;
                    self.out.end_chunks_with(&lines(&trailers));
                }
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if self.chunked {
            self.out.end_chunks();
        }
    }
}

fn lines(fields: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in fields {
        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(piece);
        }
    }
    lines
}
