//! A request's body on its way up to the upstream; it is never held whole.

use super::Worker;
use super::alarm::Alarm;
use super::downstream::Downstream;
use super::interim::{Respond, give_leave};
use super::pace::Pace;
use super::upstream::duration;
use super::visit::Course;
use crate::wire::request::Framing;
use crate::wire::said::number;
use bytes::Bytes;
use h2::RecvStream;
use hyper::header::{self, HeaderMap, HeaderValue};
use std::cell::Cell;
use std::fmt;
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
    /// It came too slowly.
    Slow,
}

impl fmt::Display for UploadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UploadFailure::TooLarge => "the request body is larger than allowed",
            UploadFailure::Broken => "the request body broke off",
            UploadFailure::Slow => "the request body came too slowly",
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
    Http2(Stream),
    /// An HTTP/1 connection.
    Http1(Rc<Downstream>),
}

/// The body that an HTTP/2 stream brings.
struct Stream {
    body: RecvStream,
    framing: Framing,
    /// Its trailers have come, or there were none.
    ended: bool,
    /// Who waits for leave to send it.
    leave: Option<Respond>,
}

impl Stream {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UploadFailure>>> {
        let broken = |_| Some(Err(UploadFailure::Broken));
        let Poll::Ready(data) = self.body.poll_data(cx) else {
            if let Some(respond) = self.leave.take() {
                give_leave(&respond);
            }
            return Poll::Pending;
        };
        match data {
            Some(Ok(data)) => {
                // The client may send as much again.
                let released = self.body.flow_control().release_capacity(data.len());
                Poll::Ready(Some(released.map(|()| data).map_err(|_| UploadFailure::Broken)))
            }
            Some(Err(error)) => Poll::Ready(broken(error)),
            // Trailers end with the client's connection.
            None => self.body.poll_trailers(cx).map(|trailers| match trailers {
                Ok(_) => {
                    self.ended = true;
                    None
                }
                Err(error) => broken(error),
            }),
        }
    }
}

impl Source {
    fn framing(&self) -> Framing {
        match self {
            Source::Http2(stream) => stream.framing,
            Source::Http1(client) => client.framing(),
        }
    }

    /// Has it come to a good end, of which it was told?
    fn is_whole(&self) -> bool {
        match self {
            Source::Http2(stream) => stream.ended || stream.body.is_end_stream(),
            Source::Http1(client) => client.is_whole(),
        }
    }

    /// The next piece of data, which may be empty.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UploadFailure>>> {
        match self {
            Source::Http2(stream) => stream.poll_data(cx),
            Source::Http1(client) => client
                .poll_body(cx)
                .map(|piece| piece.map_err(|_| UploadFailure::Broken).transpose()),
        }
    }
}

/// How the body of an HTTP/2 request is framed towards the upstream. The stream itself ends it, and must agree with the length.
fn framing(fields: &HeaderMap) -> Framing {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    match (lengths.next().and_then(number), lengths.next()) {
        (Some(length), None) => Framing::Length(length),
        _ => Framing::Chunked,
    }
}

/// How slowly a body comes.
struct Hurry {
    pace: Pace,
    alarm: Option<Alarm>,
}

/// A request's body on its way to the upstream.
pub struct Upload {
    source: Option<Source>,
    /// How all of it is framed.
    framing: Framing,
    /// What was read of it already, and comes first.
    held: Bytes,
    left: u64,
    /// Bytes that came.
    taken: u64,
    progress: Option<Rc<Progress>>,
    /// Who is told how much of it came.
    course: Option<Rc<Course>>,
    /// Whose bounds it is within, as long as it must come in time.
    worker: Option<Rc<Worker>>,
    /// Made when it is waited for: mostly all of a body is there.
    hurry: Option<Box<Hurry>>,
}

impl Upload {
    /// The body of an HTTP/2 stream, the head of whose request has these fields.
    #[must_use]
    pub fn of_http2(
        worker: &Rc<Worker>,
        body: RecvStream,
        fields: &HeaderMap,
        respond: &Respond,
    ) -> Upload {
        let comes = !body.is_end_stream();
        let waits = comes && fields.contains_key(header::EXPECT);
        let leave = waits.then(|| Rc::clone(respond));
        let stream = || Stream { body, framing: framing(fields), ended: false, leave };
        Upload::new(worker, comes.then(|| Source::Http2(stream())))
    }

    /// The body that a client's connection brings next.
    #[must_use]
    pub fn of_http1(worker: &Rc<Worker>, client: &Rc<Downstream>) -> Upload {
        let comes = !client.is_whole();
        Upload::new(worker, comes.then(|| Source::Http1(Rc::clone(client))))
    }

    fn new(worker: &Rc<Worker>, source: Option<Source>) -> Upload {
        let bounds = &worker.plane.bounds;
        let worker = (source.is_some() && bounds.upload_rate.is_some()).then(|| Rc::clone(worker));
        let progress =
            || Rc::new(Progress { last: Cell::new(Instant::now()), done: Cell::new(false) });
        let progress = source.is_some().then(progress);
        let framing = source.as_ref().map_or(Framing::None, Source::framing);
        let left = bounds.body_bytes.unwrap_or(u64::MAX);
        let held = Bytes::new();
        let course = None;
        Upload { source, framing, held, left, taken: 0, progress, course, worker, hurry: None }
    }

    /// From now on it may come as slowly as its client likes.
    pub fn take_time(&mut self) {
        self.worker = None;
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
        let Poll::Ready(piece) = source.poll_data(cx) else { return self.poll_slow(cx) };
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
                self.taken = self.taken.saturating_add(length);
                if let Some(hurry) = &mut self.hurry {
                    hurry.pace.look(self.taken, false, Instant::now());
                }
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

    /// Waits for more, as long as it comes fast enough.
    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UploadFailure>>> {
        let Some(worker) = &self.worker else { return Poll::Pending };
        let plane = worker.plane;
        let hurry = self.hurry.get_or_insert_with(|| {
            let idle = duration(plane.deadlines.body_idle);
            Box::new(Hurry { pace: Pace::new(idle, plane.bounds.upload_rate), alarm: None })
        });
        let Some(until) = hurry.pace.look(self.taken, true, Instant::now()) else {
            return Poll::Pending;
        };
        if !hurry.alarm.get_or_insert_with(|| Alarm::new(until)).passed(until, cx) {
            return Poll::Pending;
        }
        worker.shard.slow_uploads.up();
        self.fail(UploadFailure::Slow)
    }
}
