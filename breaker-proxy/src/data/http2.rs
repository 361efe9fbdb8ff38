//! An HTTP/2 client connection; it looks into no request.

use super::alarm::Alarm;
use super::body::{Broken, Reply};
use super::channel::Channel;
use super::front::Seat;
use super::handle::handle;
use super::peer::Peer;
use super::upstream::duration;
use super::visit::{Verdict, Visit};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of request bodies that a client may send before they are wanted: of one stream, and of all.
const ROOM: (u32, u32) = (64 * 1024, 256 * 1024);

/// Bytes of one stream's answer that wait for the socket, at most, about.
const UNSENT_MAX: usize = 64 * 1024;

/// How long a client that was told of the end has to answer before it comes.
const GRACE: Duration = Duration::from_secs(1);

/// Serves a connection to its end. The first request must have come by `first`.
pub async fn serve(seat: &Seat, channel: Channel, peer: Rc<Peer>, first: Instant) {
    let worker = &seat.worker;
    let bounds = &worker.plane.bounds;
    let streams = Rc::new(Streams::default());
    let service = service_fn(|request| {
        let open = Open::new(&streams);
        let (worker, peer) = (Rc::clone(worker), Rc::clone(&peer));
        async move {
            let (answer, visit) = handle(worker, peer, request).await;
            Ok::<_, Infallible>(answer.map(|reply| Carried { reply, open, visit }))
        }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(bounds.head_bytes)
        .initial_stream_window_size(ROOM.0)
        .initial_connection_window_size(ROOM.1)
        .max_send_buf_size(UNSENT_MAX)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let mut conn = pin!(builder.serve_connection(TokioIo::new(channel), service));
    let idle = duration(worker.plane.deadlines.idle);
    let mut alarm = Alarm::new(first);
    // When it was told to end, and whether with streams that nobody takes anything from.
    let mut told: Option<(Instant, bool)> = None;
    // An error here is the client's: hyper has ended the streams, and each call its account.
    let _ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = conn.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            let carries = streams.carries();
            let deadline = match (carries, told) {
                (_, Some((told, true))) | (Carries::NothingYet, Some((told, _))) => {
                    Some(told + GRACE)
                }
                (Carries::NothingSince(since), Some((told, _))) => Some(told.max(since) + GRACE),
                (Carries::NothingYet, None) => Some(first),
                (Carries::NothingSince(since), None) => Some(since + idle),
                (Carries::Streams { held }, _) => held.map(|since| since + idle),
            };
            let late = deadline.is_some_and(|deadline| alarm.passed(deadline, cx));
            match told {
                Some(_) if late => return Poll::Ready(Ok(())),
                Some(_) => return Poll::Pending,
                None if !late && !seat.ending(cx) => return Poll::Pending,
                None => {}
            }
            let held = late && matches!(carries, Carries::Streams { .. });
            if late && matches!(carries, Carries::NothingYet) {
                worker.shard.slow_heads.up();
            }
            if held {
                worker.shard.stalled_clients.up();
            }
            told = Some((Instant::now(), held));
            conn.as_mut().graceful_shutdown();
        }
    })
    .await;
}

/// The streams of one connection: since when each waits for its client to make room, if it does.
#[derive(Default)]
struct Streams {
    open: RefCell<Slab<Option<Instant>>>,
    /// When the last one ended.
    ended: Cell<Option<Instant>>,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug)]
enum Carries {
    NothingYet,
    NothingSince(Instant),
    /// Streams, of which one waits for room since then. hyper can end none alone, so that it ends with all.
    Streams {
        held: Option<Instant>,
    },
}

impl Streams {
    fn carries(&self) -> Carries {
        let open = self.open.borrow();
        match self.ended.get() {
            _ if !open.is_empty() => {
                Carries::Streams { held: open.iter().filter_map(|(_, held)| *held).min() }
            }
            None => Carries::NothingYet,
            Some(ended) => Carries::NothingSince(ended),
        }
    }
}

/// A stream, from its request to the end of its answer.
struct Open {
    streams: Rc<Streams>,
    slot: usize,
}

impl Open {
    fn new(streams: &Rc<Streams>) -> Open {
        let slot = streams.open.borrow_mut().insert(None);
        Open { streams: Rc::clone(streams), slot }
    }

    fn hold(&self, since: Option<Instant>) {
        if let Some(held) = self.streams.open.borrow_mut().get_mut(self.slot) {
            *held = since;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.open.borrow_mut().try_remove(self.slot);
        self.streams.ended.set(Some(Instant::now()));
    }
}

/// An answer's body, which keeps its stream open.
struct Carried {
    reply: Reply,
    open: Open,
    /// Its request, until all of the answer is with the connection.
    visit: Visit,
}

/// Whoever takes nothing more has all of it, or wants no more.
impl Drop for Carried {
    fn drop(&mut self) {
        if self.reply.is_end_stream() {
            self.visit.course().is_whole();
        }
    }
}

impl Body for Carried {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let own = self.get_mut();
        own.visit.resume();
        let frame = Pin::new(&mut own.reply).poll_frame(cx);
        let course = own.visit.course();
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            course.took_away(frame.data_ref().map_or(0, Bytes::len));
        }
        match &frame {
            Poll::Ready(Some(Err(_))) if course.verdict() == Verdict::Passed => {
                course.ends(Verdict::Failed);
            }
            Poll::Ready(Some(Err(_)) | None) => {}
            // Until the client has made room, or the upstream has more.
            _ if !own.reply.is_end_stream() => own.visit.pause(),
            _ => {}
        }
        // hyper asks for the next one when the client has made room for this one.
        own.open.hold(matches!(frame, Poll::Ready(Some(Ok(_)))).then(Instant::now));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.reply.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.reply.size_hint()
    }
}

/// Runs HTTP/2 streams as tasks of the same thread.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
