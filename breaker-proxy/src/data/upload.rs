//! A request's body on its way up to the upstream; it is never held whole.

use super::downstream::Downstream;
use super::visit::Course;
use crate::wire::request::Framing;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming};
use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
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

/// Where a request's body comes from.
enum Source {
    /// An HTTP/2 stream.
    Http2(Incoming),
    /// An HTTP/1 connection.
    Http1(Rc<Downstream>),
}

impl Source {
    fn framing(&self) -> Framing {
        match self {
            Source::Http2(body) => {
                body.size_hint().exact().map_or(Framing::Chunked, Framing::Length)
            }
            Source::Http1(client) => client.framing(),
        }
    }

    /// Has it come to a good end, of which it was told?
    fn is_whole(&self) -> bool {
        match self {
            // hyper takes a stream that was reset without an error for one that ended, but does not say that it did.
            Source::Http2(body) => body.is_end_stream(),
            Source::Http1(client) => client.is_whole(),
        }
    }

    /// The next piece of data, which may be empty.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UploadFailure>>> {
        match self {
            Source::Http2(body) => Pin::new(body).poll_frame(cx).map(|frame| {
                // Trailers end with the client's connection.
                let data = |frame: Frame<Bytes>| frame.into_data().unwrap_or_default();
                frame.map(|frame| frame.map(data).map_err(|_| UploadFailure::Broken))
            }),
            Source::Http1(client) => client
                .poll_body(cx)
                .map(|piece| piece.map_err(|_| UploadFailure::Broken).transpose()),
        }
    }
}

/// A request's body on its way to the upstream.
pub struct Upload {
    source: Option<Source>,
    /// How all of it is framed.
    framing: Framing,
    /// What was read of it already, and comes first.
    held: Bytes,
    left: u64,
    progress: Option<Rc<Progress>>,
    /// Who is told how much of it came.
    course: Option<Rc<Course>>,
}

impl Upload {
    /// The body of an HTTP/2 stream, of which at most `most` bytes may pass.
    #[must_use]
    pub fn of_http2(body: Incoming, most: Option<u64>) -> Upload {
        let comes = !body.is_end_stream();
        Upload::new(comes.then_some(Source::Http2(body)), most)
    }

    /// The body that a client's connection brings next, of which at most `most` bytes may pass.
    #[must_use]
    pub fn of_http1(client: &Rc<Downstream>, most: Option<u64>) -> Upload {
        let comes = !client.is_whole();
        Upload::new(comes.then(|| Source::Http1(Rc::clone(client))), most)
    }

    fn new(source: Option<Source>, most: Option<u64>) -> Upload {
        let progress =
            || Rc::new(Progress { last: Cell::new(Instant::now()), done: Cell::new(false) });
        let progress = source.is_some().then(progress);
        let framing = source.as_ref().map_or(Framing::None, Source::framing);
        let left = most.unwrap_or(u64::MAX);
        Upload { source, framing, held: Bytes::new(), left, progress, course: None }
    }

    /// Tells a request how much of its body comes, if it has one.
    pub fn tell(&mut self, course: &Rc<Course>) {
        self.course = self.source.as_ref().map(|_| Rc::clone(course));
    }

    /// How it is framed towards the upstream.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Has all of it been given out?
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.source.is_none() && self.held.is_empty()
    }

    /// Puts back what was read of its beginning, to be read once more.
    pub fn put_back(&mut self, held: Bytes) {
        debug_assert!(self.held.is_empty());
        self.held = held;
    }

    /// Its progress; `None` for no body at all.
    #[must_use]
    pub fn progress(&self) -> Option<Rc<Progress>> {
        self.progress.clone()
    }

    fn end(&mut self) {
        self.source = None;
        if let Some(progress) = &self.progress {
            progress.last.set(Instant::now());
            progress.done.set(true);
        }
    }

    fn fail(&mut self, failure: UploadFailure) -> Poll<Option<Result<Bytes, UploadFailure>>> {
        self.source = None;
        if let Some(progress) = &self.progress {
            progress.done.set(true);
        }
        Poll::Ready(Some(Err(failure)))
    }

    /// The next piece of data, which may be empty; `None` at the end of the body, once.
    pub fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UploadFailure>>> {
        if !self.held.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.held))));
        }
        let Some(source) = &mut self.source else { return Poll::Ready(None) };
        let piece = ready!(source.poll_data(cx));
        let whole = source.is_whole();
        match piece {
            None if whole => {
                self.end();
                Poll::Ready(None)
            }
            None => self.fail(UploadFailure::Broken),
            Some(Err(failure)) => self.fail(failure),
            Some(Ok(data)) => {
                let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                match self.left.checked_sub(length) {
                    Some(left) => self.left = left,
                    None => return self.fail(UploadFailure::TooLarge),
                }
                if let Some(course) = &self.course {
                    course.brought(data.len());
                }
                if whole {
                    self.end();
                } else if let Some(progress) = &self.progress {
                    progress.last.set(Instant::now());
                }
                Poll::Ready(Some(Ok(data)))
            }
        }
    }
}
