//! An HTTP/2 client connection; it looks into no request.

use super::Worker;
use super::alarm::Alarm;
use super::channel::Channel;
use super::front::Seat;
use super::pace::Pace;
use super::peer::Peer;
use super::room::{Piece, Room};
use super::stream::{self, Shared};
use super::upstream::duration;
use h2::server::{Builder, Connection};
use h2::{Ping, PingPong};
use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Bytes of a request's body that its client may send before they are wanted.
const STREAM_ROOM: u32 = 64 * 1024;

/// Bytes of one stream's answer that wait for the socket, at most.
const UNSENT_MAX: usize = 64 * 1024;

/// How long a client that was told of the end has to answer before it comes.
const GRACE: Duration = Duration::from_secs(1);

/// A client that has said nothing for so long is asked whether it is there.
const ASK_AFTER: Duration = Duration::from_secs(20);

/// And has so long to say anything.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Serves a connection to its end. The first request must have come by `first`.
pub async fn serve(seat: &Seat, channel: Channel, peer: Rc<Peer>, first: Instant) {
    let worker = &seat.worker;
    let bound = usize::try_from(worker.plane.bounds.connection_bytes).unwrap_or(usize::MAX);
    let room = Room::new(bound);
    let wire = Rc::new(Wire::new(worker, &room));
    let mut alarm = Alarm::new(first);
    let shaken = {
        let shake = builder(worker).handshake(Metered { channel, wire: Rc::clone(&wire) });
        let mut shake = pin!(shake);
        poll_fn(|cx| match shake.as_mut().poll(cx) {
            Poll::Ready(shaken) => Poll::Ready(shaken.ok()),
            // Who has not even begun is owed nothing.
            Poll::Pending if seat.ending(cx) => Poll::Ready(None),
            Poll::Pending if alarm.passed(first, cx) => {
                worker.shard.slow_heads.up();
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        })
        .await
    };
    let Some(mut connection) = shaken else { return };
    let shared = Shared { worker: Rc::clone(worker), peer, room };
    let mut serving = Serving {
        seat,
        wire,
        shared: Rc::new(shared),
        streams: Rc::default(),
        pulse: Pulse::new(&mut connection),
        alarm,
        set_for: None,
        first,
        told: None,
    };
    poll_fn(|cx| serving.poll(&mut connection, cx)).await;
}

fn builder(worker: &Worker) -> Builder {
    let bounds = &worker.plane.bounds;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(bounds.head_bytes)
        .initial_window_size(STREAM_ROOM)
        .initial_connection_window_size(bounds.connection_bytes)
        .max_send_buffer_size(UNSENT_MAX);
    builder
}

/// A connection beyond its handshake.
struct Serving<'s> {
    seat: &'s Seat,
    wire: Rc<Wire>,
    shared: Rc<Shared>,
    streams: Rc<Streams>,
    pulse: Pulse,
    alarm: Alarm,
    /// What the alarm is set for.
    set_for: Option<Instant>,
    first: Instant,
    /// When it was told to end.
    told: Option<Instant>,
}

impl Serving<'_> {
    /// Ready at its end.
    fn poll(
        &mut self,
        connection: &mut Connection<Metered, Piece>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let mut asked = false;
            while let Poll::Ready(accepted) = connection.poll_accept(cx) {
                // An error here is the client's: the streams end with the connection, and each call its account.
                let Some(Ok((request, respond))) = accepted else { return Poll::Ready(()) };
                asked = true;
                let open = Open::new(&self.streams);
                let shared = Rc::clone(&self.shared);
                // One future, and not one within another: it is moved to its place once.
                tokio::task::spawn_local(stream::serve(shared, open, request, respond));
            }
            self.pulse.hear(cx);
            let ends = self.ends();
            let next = [ends, self.wire.until.get()].into_iter().flatten();
            let next = next.fold(self.pulse.next, Instant::min);
            // It is set already, and the answer to what was asked brings us back here.
            let is_set = asked && self.set_for.replace(next) == Some(next);
            if !is_set && self.alarm.passed(next, cx) {
                if self.poll_late(connection, ends).is_ready() {
                    return Poll::Ready(());
                }
            } else if self.told.is_none() && self.seat.ending(cx) {
                self.tell_end(connection);
            } else {
                return Poll::Pending;
            }
        }
    }

    /// Until when it may carry nothing, if it does.
    fn ends(&self) -> Option<Instant> {
        let idle = duration(self.seat.worker.plane.deadlines.idle);
        match (self.streams.open.get(), self.streams.ended.get(), self.told) {
            (1.., ..) => None,
            (0, None, None) => Some(self.first),
            (0, Some(ended), None) => Some(ended + idle),
            (0, ended, Some(told)) => Some(ended.map_or(told, |ended| told.max(ended)) + GRACE),
        }
    }

    /// One of its deadlines has passed.
    fn poll_late(
        &mut self,
        connection: &mut Connection<Metered, Piece>,
        ends: Option<Instant>,
    ) -> Poll<()> {
        let now = Instant::now();
        let shard = self.seat.worker.shard;
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if passed(self.wire.until.get()) {
            // It reads nothing, not even that it is to end.
            shard.stalled_clients.up();
            self.wire.breaks.set(true);
            return Poll::Ready(());
        }
        if passed(ends) {
            if self.told.is_some() {
                return Poll::Ready(());
            }
            if self.streams.ended.get().is_none() {
                shard.slow_heads.up();
            }
            self.tell_end(connection);
            return Poll::Pending;
        }
        if self.pulse.next <= now && !self.pulse.beat(now, self.wire.heard.get()) {
            self.wire.breaks.set(true);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn tell_end(&mut self, connection: &mut Connection<Metered, Piece>) {
        self.told = Some(Instant::now());
        connection.graceful_shutdown();
    }
}

/// The streams of one connection.
#[derive(Default)]
pub struct Streams {
    /// How many there are.
    open: Cell<usize>,
    /// When the last one ended and left none.
    ended: Cell<Option<Instant>>,
}

/// A stream, from its request to the end of its answer.
pub struct Open(Rc<Streams>);

impl Open {
    fn new(streams: &Rc<Streams>) -> Open {
        streams.open.set(streams.open.get().saturating_add(1));
        Open(Rc::clone(streams))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let left = self.0.open.get().saturating_sub(1);
        self.0.open.set(left);
        if left == 0 {
            self.0.ended.set(Some(Instant::now()));
        }
    }
}

/// Finds out whether a client that says nothing is still there.
struct Pulse {
    ping: Option<PingPong>,
    asked: bool,
    /// How much was heard when it was looked at last.
    heard: u64,
    /// When it is looked at next.
    next: Instant,
}

impl Pulse {
    fn new(connection: &mut Connection<Metered, Piece>) -> Pulse {
        let next = Instant::now() + ASK_AFTER;
        Pulse { ping: connection.ping_pong(), asked: false, heard: 0, next }
    }

    /// Takes the answer to what was asked.
    fn hear(&mut self, cx: &mut Context<'_>) {
        if self.asked && self.ping.as_mut().is_none_or(|ping| ping.poll_pong(cx).is_ready()) {
            self.asked = false;
        }
    }

    /// Looks at it; false: it is gone. `heard` is how much has come in all.
    fn beat(&mut self, now: Instant, heard: u64) -> bool {
        if std::mem::replace(&mut self.heard, heard) != heard {
            self.next = now + ASK_AFTER;
            return true;
        }
        // Whatever it says is an answer.
        if self.asked {
            return false;
        }
        self.asked = self.ping.as_mut().is_some_and(|ping| ping.send_ping(Ping::opaque()).is_ok());
        self.next = now + ANSWER_WITHIN;
        true
    }
}

/// What has passed over a socket, as far as deadlines care.
struct Wire {
    /// How often something came.
    heard: Cell<u64>,
    /// Bytes that were written.
    written: Cell<u64>,
    pace: RefCell<Pace>,
    /// Until when the client must take some of what waits for it, if anything does.
    until: Cell<Option<Instant>>,
    /// It ends by a reset: nothing waits for a client that takes nothing.
    breaks: Cell<bool>,
    room: Rc<Room>,
}

impl Wire {
    fn new(worker: &Worker, room: &Rc<Room>) -> Wire {
        let plane = worker.plane;
        let pace = Pace::new(duration(plane.deadlines.body_idle), plane.bounds.download_rate);
        Wire {
            heard: Cell::new(0),
            written: Cell::new(0),
            pace: RefCell::new(pace),
            until: Cell::new(None),
            breaks: Cell::new(false),
            room: Rc::clone(room),
        }
    }

    /// Notes whether the client took what there is. `below` are the bytes that were taken below.
    fn note(&self, is_taken: bool, below: u64) {
        if is_taken && self.until.get().is_none() {
            return;
        }
        self.room.set_stuck(!is_taken);
        let taken = self.written.get().wrapping_add(below);
        self.until.set(self.pace.borrow_mut().look(taken, !is_taken, Instant::now()));
    }
}

/// A connection that notes what passes.
struct Metered {
    channel: Channel,
    wire: Rc<Wire>,
}

impl Metered {
    fn noted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = written {
            let written = u64::try_from(written).unwrap_or(u64::MAX);
            self.wire.written.set(self.wire.written.get().wrapping_add(written));
        }
        self.wire.note(written.is_ready(), self.channel.taken());
        written
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let read = Pin::new(&mut own.channel).poll_read(cx, buf);
        if read.is_ready() {
            own.wire.heard.set(own.wire.heard.get().wrapping_add(1));
        }
        read
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let written = Pin::new(&mut own.channel).poll_write(cx, buf);
        own.noted(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let written = Pin::new(&mut own.channel).poll_write_vectored(cx, bufs);
        own.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.channel.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let flushed = Pin::new(&mut own.channel).poll_flush(cx);
        own.wire.note(flushed.is_ready(), own.channel.taken());
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().channel).poll_shutdown(cx)
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        if self.wire.breaks.get() {
            let socket = socket2::SockRef::from(self.channel.socket());
            // What fails here is a socket that has ended anyway.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
    }
}
