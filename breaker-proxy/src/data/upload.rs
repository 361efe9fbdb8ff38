//! A request's body on its way up to the upstream; it is never held whole.

use crate::wire::request::Framing;
use bytes::Bytes;
use hyper::Version;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// What went wrong with a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadFailure {
    /// More bytes than allowed.
    TooLarge,
    /// The client broke off, or its framing did.
    Broken,
}

impl fmt::Display for UploadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UploadFailure::TooLarge => "the request body is larger than allowed",
            UploadFailure::Broken => "the request body broke off",
        })
    }
}

impl std::error::Error for UploadFailure {}

/// How far a request's body has come.
#[derive(Debug)]
pub struct Progress {
    last: Cell<Instant>,
    done: Cell<bool>,
}

impl Progress {
    /// When its last byte came.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.last.get()
    }

    /// Did it come to its end, good or bad?
    #[must_use]
    pub fn done(&self) -> bool {
        self.done.get()
    }
}

/// A request's body on its way to the upstream.
pub struct Upload {
    inner: Option<Incoming>,
    left: u64,
    progress: Option<Rc<Progress>>,
    /// Its end must be told, and not only be the end of what comes.
    told: bool,
}

impl Upload {
    /// The body of a request of this version, of which at most `most` bytes may pass.
    #[must_use]
    pub fn new(body: Incoming, version: Version, most: Option<u64>) -> Upload {
        // hyper takes an HTTP/2 stream that was reset without an error for one that ended. Of HTTP/1.1 it says nothing once
        // a chunked body has ended, but there a body that breaks off is an error.
        let told = version == Version::HTTP_2;
        if body.is_end_stream() {
            return Upload { inner: None, left: 0, progress: None, told };
        }
        let progress = Progress { last: Cell::new(Instant::now()), done: Cell::new(false) };
        Upload {
            inner: Some(body),
            left: most.unwrap_or(u64::MAX),
            progress: Some(Rc::new(progress)),
            told,
        }
    }

    /// How it is framed towards the upstream.
    #[must_use]
    pub fn framing(&self) -> Framing {
        match &self.inner {
            None => Framing::None,
            Some(body) => body.size_hint().exact().map_or(Framing::Chunked, Framing::Length),
        }
    }

    /// Its progress; `None` for no body at all.
    #[must_use]
    pub fn progress(&self) -> Option<Rc<Progress>> {
        self.progress.clone()
    }

    fn fail(
        &mut self,
        failure: UploadFailure,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadFailure>>> {
        self.inner = None;
        if let Some(progress) = &self.progress {
            progress.done.set(true);
        }
        Poll::Ready(Some(Err(failure)))
    }

    fn end(&mut self) {
        self.inner = None;
        if let Some(progress) = &self.progress {
            progress.last.set(Instant::now());
            progress.done.set(true);
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadFailure>>> {
        let Some(body) = &mut self.inner else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                if self.told && !self.inner.as_ref().is_some_and(Body::is_end_stream) {
                    return self.fail(UploadFailure::Broken);
                }
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => self.fail(UploadFailure::Broken),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    match self.left.checked_sub(length) {
                        Some(left) => self.left = left,
                        None => return self.fail(UploadFailure::TooLarge),
                    }
                }
                if self.inner.as_ref().is_some_and(Body::is_end_stream) {
                    self.end();
                } else if let Some(progress) = &self.progress {
                    progress.last.set(Instant::now());
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
