//! The last look on a connection that carries many calls: an upstream socket that knows whose each byte is, and asks that call's gates
//! inside its own write; it makes no frames.
//!
//! The HTTP/2 library above writes frames of many calls in one go. Here they are told apart again. Those of a call that may no
//! longer pass are left out, whole: the connection goes on for the others. For that a head must not lean on heads before it, so
//! the library is told that the server keeps no table of fields; and room that a piece of a body would have used up is given back.
//! Only where the kernel took a part of a frame, and a gate then refuses the rest, is there no way but to end the
//! connection with all that it carries.

use super::Worker;
use super::socket::Socket;
use super::strand::{Blocked, Strand};
use crate::wire::frames::{self, Frame, Incoming, Kind};
use bytes::{Buf as _, BytesMut};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Pieces that are looked at in one write.
const PIECES: usize = 8;

/// Calls whose bytes go out in one write.
const BATCH: usize = 32;

/// Streams without a head that are remembered. A word about one comes soon after its head was left out, or never.
const GHOSTS_MAX: usize = 4096;

/// What a connection and those who use it know of each other.
pub struct Shared {
    /// Its calls, by stream.
    calls: RefCell<HashMap<u32, Rc<Strand>>>,
    /// Every stream may pass: they are requests of our own, and no calls.
    is_ours: bool,
    settled: Cell<bool>,
    over: Cell<bool>,
    /// It was ended from here, with all that it carried.
    torn: Cell<bool>,
    heard: Cell<Instant>,
    /// It was settled or ended, or a call on it has; or another to the same endpoint was.
    turned: Rc<Notify>,
    /// Nobody will use it again.
    given_up: Notify,
    blocked: Rc<Blocked>,
}

impl Shared {
    /// What is known of a connection that was just made. `turned` rings for all to the same endpoint.
    #[must_use]
    pub fn new(is_ours: bool, turned: Rc<Notify>) -> Rc<Shared> {
        Rc::new(Shared {
            calls: RefCell::default(),
            is_ours,
            settled: Cell::new(false),
            over: Cell::new(false),
            torn: Cell::new(false),
            heard: Cell::new(Instant::now()),
            turned,
            given_up: Notify::new(),
            blocked: Rc::default(),
        })
    }

    /// From now on what this stream carries is of this call.
    pub fn join(&self, id: u32, strand: &Rc<Strand>) {
        self.calls.borrow_mut().insert(id, Rc::clone(strand));
    }

    /// The call on this stream is over.
    pub fn leave(&self, id: u32) {
        self.calls.borrow_mut().remove(&id);
        self.turned.notify_waiters();
    }

    /// Calls on it.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.borrow().len()
    }

    /// Has the server said how it wants to be spoken to?
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled.get()
    }

    /// Is it at its end?
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Did a gate end it, with all that it carried? That is no fault of the upstream.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.torn.get()
    }

    /// It is at its end.
    pub fn end(&self) {
        self.over.set(true);
        self.turned.notify_waiters();
    }

    /// When something last came.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// Wakes it if it waits for the kernel.
    #[must_use]
    pub fn blocked(&self) -> &Rc<Blocked> {
        &self.blocked
    }

    /// Nobody will use it again.
    pub fn give_up(&self) {
        self.given_up.notify_one();
    }

    /// Rings once nobody will use it again.
    #[must_use]
    pub fn given_up(&self) -> &Notify {
        &self.given_up
    }

    /// Rings when it was settled, when it ends, and when a call on it does, or when another to its endpoint has such news.
    #[must_use]
    pub fn turned(&self) -> &Notify {
        &self.turned
    }
}

/// Whose a frame is.
#[derive(Clone)]
enum Whose {
    /// The connection's: it passes.
    Connection,
    /// A call's: it passes if the call may.
    Call(Rc<Strand>),
    /// Nobody's any more: it is left out.
    Nobody,
}

/// What of the bytes at hand is left out, and what of those behind goes out together.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    skip: usize,
    take: usize,
}

/// An upstream's socket under HTTP/2.
pub struct Cable {
    worker: Rc<Worker>,
    shared: Rc<Shared>,
    socket: Socket,
    /// Bytes of the frame that goes out now which have not gone.
    left: usize,
    /// And whose it is.
    whose: Whose,
    /// Whose head it is that the next frame goes on with.
    open: Option<Rc<Strand>>,
    /// The calls of the bytes at hand, or of what was encrypted and waits.
    batch: Vec<Rc<Strand>>,
    /// The last stream whose head went out.
    last: u32,
    /// Streams before it of which the server has never heard.
    ghosts: HashSet<u32>,
    /// Words about settings of our own making that the server must not hear.
    acks: u32,
    incoming: Incoming,
    /// What is to be told to the library as if the server had.
    aside: BytesMut,
    /// Room to give back.
    room: u32,
    /// What TLS has read and the library not yet taken.
    plain: BytesMut,
}

impl Cable {
    /// A socket whose hands are shaken.
    #[must_use]
    pub fn new(worker: Rc<Worker>, shared: Rc<Shared>, socket: Socket) -> Cable {
        Cable {
            worker,
            shared,
            socket,
            left: frames::PREFACE,
            whose: Whose::Connection,
            open: None,
            batch: Vec::new(),
            last: 0,
            ghosts: HashSet::new(),
            acks: 1,
            incoming: Incoming::default(),
            aside: BytesMut::from(&frames::NO_TABLE[..]),
            room: 0,
            plain: BytesMut::new(),
        }
    }

    /// Ends the connection at once, with all that it carries: the other side must not take what came of a frame for all of it.
    fn tear(&mut self) -> io::Error {
        if !self.shared.torn.replace(true) {
            self.socket.close_by_reset();
            self.worker.shard.torn.up();
        }
        torn()
    }

    /// Whose the frame is that begins here. `open`: whose head is not at its end.
    fn judge(&self, frame: &Frame, open: Option<&Rc<Strand>>) -> Whose {
        let is_ours = self.shared.is_ours;
        match frame.kind {
            Kind::Settings if frame.is_settings_ack() && self.acks > 0 => Whose::Nobody,
            Kind::Headers | Kind::Data | Kind::Continuation if is_ours => Whose::Connection,
            Kind::Continuation => open.cloned().map_or(Whose::Nobody, Whose::Call),
            Kind::Headers | Kind::Data => {
                let calls = self.shared.calls.borrow();
                let call = calls.get(&frame.stream).filter(|call| call.refused().is_none());
                call.cloned().map_or(Whose::Nobody, Whose::Call)
            }
            // The server has never heard of it, and would take a word about it for a fault.
            _ if frame.stream > self.last && !is_ours => Whose::Nobody,
            _ if self.ghosts.contains(&frame.stream) => Whose::Nobody,
            _ => Whose::Connection,
        }
    }

    /// A frame is left out.
    fn leave_out(&mut self, frame: &Frame, cx: &Context<'_>) {
        match frame.kind {
            Kind::Settings => self.acks = self.acks.saturating_sub(1),
            Kind::Data => {
                let length = u32::try_from(frame.length).unwrap_or(u32::MAX);
                self.room = self.room.saturating_add(length);
                // The library reads before it writes: it must come by once more.
                cx.waker().wake_by_ref();
            }
            Kind::Headers | Kind::Continuation | Kind::Reset | Kind::Other => {}
        }
    }

    /// A frame has begun to go out, with these calls: whose it is.
    fn begin(&mut self, frame: &Frame) -> Whose {
        // A word about a stream is the connection's, and may go out half.
        let carries = matches!(frame.kind, Kind::Headers | Kind::Continuation | Kind::Data);
        let own = self.batch.iter().find(|strand| carries && strand.id() == frame.stream).cloned();
        if frame.kind == Kind::Headers {
            // Numbers go up by two; those that were passed over have no head and never will.
            let next = if self.last == 0 { 1 } else { self.last.saturating_add(2) };
            self.ghosts.extend((next..frame.stream).step_by(2));
            self.last = frame.stream;
            if self.ghosts.len() > GHOSTS_MAX {
                let old = self.last.saturating_sub(4 * 4096);
                self.ghosts.retain(|id| *id > old);
            }
        }
        if matches!(frame.kind, Kind::Headers | Kind::Continuation) {
            self.open = own.clone().filter(|_| frame.leaves_head_open());
        }
        if let (Kind::Headers, Some(own)) = (frame.kind, &own) {
            own.set_sent();
        }
        own.map_or(Whose::Connection, Whose::Call)
    }

    /// Leaves out what is nobody's, and finds what can go out behind it in one write. The calls of these bytes are in `batch`.
    fn plan(&mut self, bufs: &[IoSlice<'_>], cx: &Context<'_>) -> io::Result<Run> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut run = Run::default();
        self.batch.clear();
        // The frame at hand is never nobody's with a part of it gone.
        let (mut left, mut whose) = (self.left, self.whose.clone());
        let mut open = self.open.clone();
        loop {
            let at = run.skip.saturating_add(run.take);
            let rest = total.saturating_sub(at);
            if left == 0 {
                let Some(frame) = head_at(bufs, at) else {
                    // The library hands over heads of frames whole.
                    return if rest == 0 || at > 0 { Ok(run) } else { Err(self.tear()) };
                };
                whose = self.judge(&frame, open.as_ref());
                left = frame.whole();
                match &whose {
                    Whose::Nobody if run.take > 0 => return Ok(run),
                    // The server waits for what this head says of its table, and no other says it again.
                    Whose::Nobody
                        if frame.kind == Kind::Headers
                            && self.incoming.wants_small_table()
                            && byte_at(bufs, at.saturating_add(frames::HEAD))
                                .is_none_or(frames::tells_table) =>
                    {
                        return Err(self.tear());
                    }
                    Whose::Nobody => self.leave_out(&frame, cx),
                    Whose::Call(_) if self.batch.len() >= BATCH => return Ok(run),
                    Whose::Call(strand) if frame.leaves_head_open() => {
                        open = Some(Rc::clone(strand));
                    }
                    _ => open = None,
                }
            }
            let here = left.min(rest);
            left -= here;
            if let Whose::Nobody = whose {
                run.skip = run.skip.saturating_add(here);
                (self.left, self.whose) = (left, Whose::Nobody);
            } else {
                if let Whose::Call(strand) = &whose
                    && !self.batch.iter().any(|own| Rc::ptr_eq(own, strand))
                {
                    self.batch.push(Rc::clone(strand));
                }
                run.take = run.take.saturating_add(here);
            }
            if here == rest {
                return Ok(run);
            }
        }
    }

    /// So many bytes behind `from` went out.
    fn advance(&mut self, bufs: &[IoSlice<'_>], from: usize, count: usize) {
        let mut at = from;
        let end = from.saturating_add(count);
        while at < end {
            if self.left == 0 {
                let Some(frame) = head_at(bufs, at) else { return };
                (self.left, self.whose) = (frame.whole(), self.begin(&frame));
            }
            let here = self.left.min(end - at);
            self.left -= here;
            at = at.saturating_add(here);
        }
    }

    /// Lets `write` happen if all calls of the batch may pass at this very moment; `None` if one may not, which knows it now.
    fn guard<R>(&mut self, write: impl FnOnce(&mut Socket) -> R) -> Option<R> {
        let socket = &mut self.socket;
        if self.batch.is_empty() {
            return Some(write(socket));
        }
        #[cfg(feature = "faults")]
        if crate::faults::no_last_look() {
            return Some(write(socket));
        }
        #[cfg(feature = "faults")]
        let write = |socket: &mut Socket| {
            crate::faults::stall();
            write(socket)
        };
        let plane = self.worker.plane;
        let now = plane.clock.mono();
        let passes = self.batch.iter().map(|strand| strand.pass());
        let sent = self.worker.sender.send_all(plane.breaker, passes, now, || write(socket));
        if let Ok(result) = sent {
            return Some(result);
        }
        self.look();
        None
    }

    /// May all calls of the batch pass at this moment? One that may not knows it now.
    fn look(&self) -> bool {
        #[cfg(feature = "faults")]
        if crate::faults::no_last_look() {
            return true;
        }
        let plane = self.worker.plane;
        let now = plane.clock.mono();
        let mut pass = true;
        for strand in &self.batch {
            if let Err(denial) = plane.breaker.look(strand.pass(), now) {
                strand.cut_off(denial);
                pass = false;
            }
        }
        pass
    }

    /// Has a gate refused one of the calls whose bytes can no longer be left out?
    fn is_stuck(&self, all: bool) -> bool {
        let is_refused = |strand: &Rc<Strand>| strand.refused().is_some();
        let begun = match &self.whose {
            Whose::Call(strand) if self.left > 0 => is_refused(strand),
            _ => false,
        };
        begun
            || self.open.as_ref().is_some_and(is_refused)
            || (all && self.batch.iter().any(is_refused))
    }

    /// Nothing can be written now, but some of it may have been left out.
    fn pending(&self, skipped: usize, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        if skipped > 0 {
            return Poll::Ready(Ok(skipped));
        }
        self.shared.blocked.waits(cx);
        Poll::Pending
    }

    /// Writes what may go out of these bytes; how many were written or left out.
    fn poll_out(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bufs = bufs.get(..bufs.len().min(PIECES)).unwrap_or(bufs);
        let mut skipped = 0;
        loop {
            if self.shared.is_torn() {
                return Poll::Ready(Err(torn()));
            }
            if self.is_stuck(false) {
                return Poll::Ready(Err(self.tear()));
            }
            // What was encrypted is no longer told apart: it goes first, all of it.
            if let Socket::Tls(session) = &self.socket
                && (session.is_owed() || session.wants_write())
            {
                let is_owed = session.is_owed();
                if is_owed && self.is_stuck(true) {
                    return Poll::Ready(Err(self.tear()));
                }
                if !is_owed {
                    // New keys, and nobody's.
                    self.batch.clear();
                }
                let flush = |socket: &mut Socket| match socket {
                    Socket::Tls(session) => session.poll_flush(cx),
                    Socket::Plain(_) => Poll::Ready(Ok(0)),
                };
                match self.guard(flush) {
                    None => continue,
                    Some(Poll::Pending) => return self.pending(skipped, cx),
                    Some(Poll::Ready(Err(error))) => return Poll::Ready(Err(error)),
                    // A part of what was encrypted may be all of a call.
                    Some(Poll::Ready(Ok(_))) => self.batch.iter().for_each(|call| call.set_sent()),
                }
                if let Socket::Tls(session) = &mut self.socket
                    && session.is_owed()
                    && !session.wants_write()
                {
                    let taken = session.settle();
                    self.advance(bufs, skipped, taken);
                    return Poll::Ready(Ok(skipped.saturating_add(taken)));
                }
                continue;
            }
            let (pieces, used) = part(bufs, skipped, usize::MAX);
            let run = self.plan(pieces.get(..used).unwrap_or(&[]), cx)?;
            skipped = skipped.saturating_add(run.skip);
            if run.take == 0 {
                return Poll::Ready(Ok(skipped));
            }
            // What is encrypted cannot be left out any more: nothing must be that a gate refuses already.
            if matches!(self.socket, Socket::Tls(_)) && !self.look() {
                continue;
            }
            let (pieces, used) = part(bufs, skipped, run.take);
            let pieces = pieces.get(..used).unwrap_or(&[]);
            match &mut self.socket {
                Socket::Tls(session) => {
                    session.encrypt(pieces)?;
                }
                Socket::Plain(_) => {
                    let write = |socket: &mut Socket| match socket {
                        Socket::Plain(io) => Pin::new(io).poll_write_vectored(cx, pieces),
                        Socket::Tls(_) => Poll::Ready(Ok(0)),
                    };
                    match self.guard(write) {
                        None => {}
                        Some(Poll::Pending) => return self.pending(skipped, cx),
                        Some(Poll::Ready(Err(error))) => return Poll::Ready(Err(error)),
                        Some(Poll::Ready(Ok(taken))) => {
                            self.advance(bufs, skipped, taken);
                            return Poll::Ready(Ok(skipped.saturating_add(taken)));
                        }
                    }
                }
            }
        }
    }
}

fn torn() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "a gate refused the rest of a frame")
}

/// The head of a frame at this place of the bytes, if all of it is at hand.
fn head_at(bufs: &[IoSlice<'_>], at: usize) -> Option<Frame> {
    let (pieces, used) = part(bufs, at, frames::HEAD);
    let mut head = [0; frames::HEAD];
    let bytes = pieces.iter().take(used).flat_map(|piece| piece.iter());
    let mut have = 0;
    for (into, byte) in head.iter_mut().zip(bytes) {
        *into = *byte;
        have += 1;
    }
    (have == frames::HEAD).then(|| Frame::read(&head))
}

/// The byte at this place, if it is at hand.
fn byte_at(bufs: &[IoSlice<'_>], at: usize) -> Option<u8> {
    let (pieces, _) = part(bufs, at, 1);
    pieces.first().and_then(|piece| piece.first().copied())
}

/// So many of the bytes behind a place.
fn part<'b>(bufs: &'b [IoSlice<'_>], skip: usize, take: usize) -> ([IoSlice<'b>; PIECES], usize) {
    let mut pieces = [IoSlice::new(&[]); PIECES];
    let (mut skip, mut take, mut used) = (skip, take, 0);
    for buf in bufs {
        let from = skip.min(buf.len());
        skip -= from;
        let rest = buf.get(from..).unwrap_or(&[]);
        let rest = rest.get(..rest.len().min(take)).unwrap_or(rest);
        take -= rest.len();
        if !rest.is_empty()
            && let Some(piece) = pieces.get_mut(used)
        {
            *piece = IoSlice::new(rest);
            used += 1;
        }
    }
    (pieces, used)
}

impl AsyncWrite for Cable {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_out(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_out(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was taken is with the kernel.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Socket::Tls(session) => {
                session.say_end();
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncRead for Cable {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        if own.incoming.is_between() && own.room > 0 {
            own.aside.extend_from_slice(&frames::room(std::mem::take(&mut own.room)));
        }
        if own.incoming.is_between() && !own.aside.is_empty() {
            // Frames of ours stand whole between the server's.
            let here = own.aside.len().min(into.remaining());
            if here == own.aside.len() {
                into.put_slice(&own.aside.split());
                return Poll::Ready(Ok(()));
            }
        }
        let before = into.filled().len();
        match &mut own.socket {
            Socket::Plain(io) => ready!(Pin::new(io).poll_read(cx, into))?,
            Socket::Tls(session) => {
                if own.plain.is_empty() {
                    ready!(session.poll_read(cx, &mut own.plain))?;
                }
                let here = own.plain.len().min(into.remaining());
                into.put_slice(own.plain.get(..here).unwrap_or(&[]));
                own.plain.advance(here);
            }
        }
        if let Some(came) = into.filled_mut().get_mut(before..) {
            own.incoming.pass(came);
        }
        own.shared.heard.set(Instant::now());
        if own.incoming.is_settled() && !own.shared.settled.replace(true) {
            own.shared.turned.notify_waiters();
        }
        Poll::Ready(Ok(()))
    }
}
