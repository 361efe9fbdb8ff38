//! The one exchange that an upstream connection carries at a time; it neither routes nor decides, and makes no connection.
//!
//! An exchange is driven by the future (and then the body) of the very call it serves: there is no task of its own to
//! hand bytes to and fro.

use super::Worker;
use super::failure::{Failure, class_of};
use super::flight::{Call, Way};
use super::interim::Interim;
use super::link::{self, Link};
use super::outbox::Outbox;
use super::streamed::{self, Streamed};
use super::upload::{Progress, Upload};
use crate::config::upstream::Protocol;
use crate::voice::say;
use crate::wire;
use crate::wire::answer::{self, Form, Framing, Head, Seen};
use crate::wire::chunks::Piece;
use breaker_core::{Denial, Span};
use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use hyper::body::{Frame, SizeHint};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of an answer's body that are read at once, at most.
const READ_MAX: usize = 64 * 1024;

/// A request as it is sent.
pub struct Outgoing {
    /// Its head, whole.
    pub head: Vec<u8>,
    /// Its body.
    pub body: Upload,
    /// How the head says that the body is framed.
    pub framing: wire::request::Framing,
    /// HEAD: the answer has no body.
    pub to_head: bool,
    /// May be sent again if nothing of it was.
    pub again: bool,
    /// It asks to go on as a WebSocket.
    pub switches: bool,
    /// The head of the answer is wanted as lines.
    pub as_lines: bool,
    /// Who is told of what comes before the answer.
    pub interim: Option<Interim>,
}

/// A call on its connection. It ends by [`Exchange::finish`], or by being dropped, which closes the connection.
pub struct Exchange {
    worker: Rc<Worker>,
    call: Call,
    /// Index of the upstream in the call's own snapshot.
    upstream: usize,
    link: Option<Link>,
    /// What of the request is still to come from the client.
    upload: Option<Upload>,
    chunked: bool,
    progress: Option<Rc<Progress>>,
    out: Outbox,
    /// What has come and was not taken yet.
    input: BytesMut,
    /// What of the answer came before its head.
    seen: Seen,
    to_head: bool,
    as_lines: bool,
    interim: Option<Interim>,
    /// Where the answer's body ends, once its head has come.
    framing: Framing,
    /// Whether the connection may carry another call after this one.
    lasts: bool,
    /// Nothing more can be sent, and why, where the system said so.
    broken: Option<Option<io::Error>>,
    /// The rest of the request is sent by a task of its own.
    apart: bool,
    /// What that task failed with, for whoever asks for the answer next.
    late: Option<Failure>,
    /// That task, to be told when the exchange ends.
    sender: Option<Waker>,
    /// When it was handed over.
    started: Instant,
    /// When the last byte moved, as far as deadlines care.
    moved: Instant,
}

impl Exchange {
    /// Sends what can be sent. What the kernel does not take of the request does not end the exchange if something of it was sent: the
    /// upstream may have answered before it closed.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        if self.upload.is_none() && self.out.is_empty() {
            return Ok(());
        }
        let result = self.push(cx);
        let Some(link) = &self.link else { return Ok(()) };
        if link.lane.sent() {
            self.call.sent();
        }
        if let Some(progress) = &self.progress {
            self.call.set_arriving(!progress.done());
            self.moved = self.moved.max(progress.last());
        }
        match result {
            Ok(()) => Ok(()),
            Err(Failure::Closed(error)) => {
                if let Some(denial) = self.refused() {
                    return Err(self.stopped(denial));
                }
                if !self.call.was_sent() {
                    return Err(Failure::Closed(error));
                }
                (self.upload, self.out) = (None, Outbox::default());
                self.broken = Some(error);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    fn push(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        loop {
            let Some(link) = &self.link else { return Ok(()) };
            loop {
                let (pieces, used) = self.out.pieces();
                if used == 0 {
                    break;
                }
                match link.lane.poll_write(cx, pieces.get(..used).unwrap_or(&[])) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(0)) => return Err(Failure::Closed(None)),
                    Poll::Ready(Ok(taken)) => {
                        self.out.advance(taken);
                        // A head goes out at once or hardly ever: only a body moves.
                        if self.progress.is_some() {
                            self.moved = Instant::now();
                        }
                    }
                    Poll::Ready(Err(error)) => return Err(Failure::Closed(Some(error))),
                }
            }
            let Some(upload) = &mut self.upload else { return Ok(()) };
            match upload.poll_data(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(data))) if data.is_empty() => {}
                Poll::Ready(Some(Ok(data))) => self.out.frame(data, self.chunked),
                Poll::Ready(Some(Err(failure))) => return Err(Failure::of_upload(failure)),
                Poll::Ready(None) => {
                    self.upload = None;
                    if self.chunked {
                        self.out.end_chunks();
                    }
                }
            }
        }
    }

    /// What the last look said.
    fn refused(&self) -> Option<Denial> {
        self.link.as_ref().and_then(|link| link.lane.refused())
    }

    /// What a refusal at the last look comes to.
    fn stopped(&mut self, denial: Denial) -> Failure {
        if self.call.was_sent() { self.sever(denial) } else { Failure::Halted(denial) }
    }

    /// Why the upstream's side ended: a gate's refusal if there was one.
    fn ended(&mut self, failure: Failure) -> Failure {
        match self.refused() {
            Some(denial) => self.stopped(denial),
            None => failure,
        }
    }

    /// The answer is none that can be passed on: the upstream's fault, and the end of its connection.
    pub fn unusable(self: Box<Self>) {
        self.call.account().upstream_errors.up();
    }

    /// Ends the connection so that nothing more of the call arrives, not even what the kernel holds.
    fn sever(&mut self, denial: Denial) -> Failure {
        self.call.count_severed();
        if let Some(link) = self.link.take() {
            link.lane.cut_off(denial);
        }
        Failure::Severed(denial)
    }

    /// Ends the connection without a refusal. Of a request with a body the system may still hold a part, which a plain close
    /// would deliver for as long as the upstream takes to read it: long after a kill that no longer finds the call.
    fn break_off(&mut self) {
        if let Some(link) = self.link.take()
            && self.progress.is_some()
        {
            link.lane.abandon();
        }
    }

    fn arriving(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| !progress.done())
    }

    fn passed(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        self.link.as_mut().is_some_and(|link| link.passed(deadline, cx))
    }

    /// The answer is complete: the connection goes back to the pool if it can carry another call.
    pub fn finish(&mut self) {
        self.call.set_way(None);
        let whole = self.upload.is_none() && self.out.is_empty() && !self.arriving();
        let lasts = self.lasts && whole && self.broken.is_none() && self.input.is_empty();
        if !lasts {
            self.break_off();
        } else if let Some(link) = self.link.take()
            && link.lane.refused().is_none()
        {
            link.lane.disarm();
            self.worker.pools.put(link, self.moved);
        }
        self.worker.give_spare(std::mem::take(&mut self.out).into_spare());
    }

    /// From now on both directions carry what is no HTTP. A halt severs it, as it severs an upload.
    pub fn switch(&mut self) {
        self.call.set_arriving(true);
    }

    /// Has a kill ended it, or must one end it now? The task is woken when one does.
    pub fn poll_severed(&mut self, cx: &Context<'_>) -> bool {
        self.call.wake_by(cx);
        if let Some(denial) = self.call.severed().or_else(|| self.refused()) {
            self.sever(denial);
        }
        self.link.as_ref().is_none_or(|link| link.lane.is_gone())
    }

    /// Sends bytes that are no HTTP, if the gates allow it: how many the system took.
    ///
    /// # Errors
    /// The socket's own, or a refusal.
    pub fn poll_pass_on(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &self.link {
            Some(link) => link.lane.poll_write(cx, &[io::IoSlice::new(bytes)]),
            None => Poll::Ready(Ok(0)),
        }
    }

    /// Reads bytes that are no HTTP; 0 at the end.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_hear(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &self.link {
            Some(link) => link.lane.poll_read(cx, &mut self.input),
            None => Poll::Ready(Ok(0)),
        }
    }

    /// What has come from the upstream and was not taken yet.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// The client takes of the answer.
    pub fn is_taken(&self) {
        self.call.is_busy();
    }

    /// Must its call end now?
    #[must_use]
    pub fn is_severed(&self) -> bool {
        self.call.severed().is_some()
    }

    /// Whether the whole body has come.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.framing == Framing::None
    }

    /// How much of the body is still to come, if that is known.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::None => SizeHint::with_exact(0),
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::Close => SizeHint::default(),
        }
    }

    /// The next frame of the answer's body.
    ///
    /// # Errors
    /// The upstream broke off, was silent for too long, or a kill severed the call.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if self.link.is_none() && self.late.is_none() {
            return Poll::Ready(None);
        }
        self.call.asked(cx);
        if let Some(denial) = self.call.severed() {
            return Poll::Ready(Some(Err(self.sever(denial))));
        }
        let sent = match self.late.take() {
            Some(failure) => Err(failure),
            None if self.apart => Ok(()),
            None => self.send(cx),
        };
        let result = match sent {
            Ok(()) => self.poll_body(cx),
            Err(failure) => Poll::Ready(Err(failure)),
        };
        match result {
            Poll::Ready(Ok(frame)) => Poll::Ready(frame.map(Ok)),
            Poll::Ready(Err(failure)) => {
                // An upload that its client broke off is no fault of the upstream, nor is an end that was ours.
                let ours = self.link.as_ref().is_none_or(|link| link.lane.is_gone());
                if !ours && matches!(failure, Failure::Closed(_) | Failure::Breach(_)) {
                    self.call.account().upstream_errors.up();
                }
                self.break_off();
                Poll::Ready(Some(Err(failure)))
            }
            Poll::Pending => {
                let deadline = self.moved + duration(self.worker.plane.deadlines.body_idle);
                if !self.passed(deadline, cx) {
                    return Poll::Pending;
                }
                let failure = self.too_late();
                if matches!(failure, Failure::AnswerTimeout) {
                    self.call.account().upstream_errors.up();
                }
                self.break_off();
                Poll::Ready(Some(Err(failure)))
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Failure>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                self.moved = Instant::now();
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.framing == Framing::None {
                self.finish();
                return Poll::Ready(Ok(None));
            }
            if ready!(self.poll_read(cx))? == 0 {
                if self.framing != Framing::Close {
                    return Poll::Ready(Err(self.ended(Failure::Closed(None))));
                }
                self.framing = Framing::None;
            }
        }
    }

    /// A frame of what is at hand. Once the last one is taken, the exchange is at its end.
    fn take_frame(&mut self) -> Result<Option<Frame<Bytes>>, Failure> {
        let frame = match &mut self.framing {
            Framing::None => None,
            Framing::Close if self.input.is_empty() => None,
            Framing::Close => Some(Frame::data(self.input.split().freeze())),
            Framing::Length(_) if self.input.is_empty() => None,
            Framing::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(self.input.len());
                *left = left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX));
                if *left == 0 {
                    self.framing = Framing::None;
                }
                Some(Frame::data(self.input.split_to(here).freeze()))
            }
            Framing::Chunked(chunks) => match chunks.take(&mut self.input) {
                Ok(Piece::Data(data)) => Some(Frame::data(data)),
                Ok(Piece::More) => None,
                Ok(Piece::End(trailers)) => {
                    self.framing = Framing::None;
                    trailers.map(Frame::trailers)
                }
                Err(breach) => return Err(self.ended(Failure::Breach(breach))),
            },
        };
        if frame.is_some() && self.framing == Framing::None {
            self.finish();
        }
        Ok(frame)
    }

    /// Reads once more; 0 at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Failure>> {
        let Some(link) = &self.link else { return Poll::Ready(Ok(0)) };
        let expected = match self.framing {
            Framing::Length(left) => usize::try_from(left).unwrap_or(READ_MAX).min(READ_MAX),
            // As the last answer that this connection brought, so may this be large, and come together with its head.
            Framing::None if link.lane.is_large() => READ_MAX + HEAD_ROOM,
            // What is small is read where it costs no memory of its own.
            _ => 0,
        };
        let read = if expected > SMALL {
            // One byte more than is expected: a read that fills its memory leaves it open whether there is more.
            link.lane.poll_read_large(cx, &mut self.input, expected.saturating_add(1))
        } else {
            link.lane.poll_read(cx, &mut self.input)
        };
        match ready!(read) {
            Ok(read) => Poll::Ready(Ok(read)),
            Err(error) => Poll::Ready(Err(self.ended(Failure::Closed(Some(error))))),
        }
    }

    /// One step towards the head of the answer.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        self.call.wake_by(cx);
        self.send(cx)?;
        if self.call.was_sent()
            && let Some(denial) = self.call.severed()
        {
            return Poll::Ready(Err(self.sever(denial)));
        }
        // Before anything was sent nothing can answer it: what comes then is no answer to this call.
        while self.call.was_sent() {
            match self.poll_read(cx) {
                Poll::Pending => break,
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Ready(Ok(0)) => {
                    let error = self.broken.take().flatten();
                    return Poll::Ready(Err(self.ended(Failure::Closed(error))));
                }
                Poll::Ready(Ok(_)) => {}
            }
            let worker = &self.worker;
            let memory = || worker.take_spare();
            let form = if self.as_lines { Form::Lines(&memory) } else { Form::Map };
            let told = &self.interim;
            let tell = |head| {
                if let Some(told) = told {
                    told.tell(head);
                }
            };
            match answer::take_telling(&mut self.input, self.to_head, &mut self.seen, form, tell) {
                Ok(None) => {}
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Err(breach) => return Poll::Ready(Err(self.ended(Failure::Breach(breach)))),
            }
        }
        let deadlines = &self.worker.plane.deadlines;
        let deadline = if !self.arriving() {
            self.moved + duration(deadlines.answer)
        } else if self.call.is_probe() {
            // Others wait for a probe's outcome: a slow client must not make it last.
            self.started + duration(deadlines.answer)
        } else {
            self.moved + duration(deadlines.body_idle)
        };
        if self.passed(deadline, cx) { Poll::Ready(Err(self.too_late())) } else { Poll::Pending }
    }

    /// Whose fault it is that nothing moves: the client's if it owes a part of its body that the upstream would take.
    fn too_late(&self) -> Failure {
        if self.arriving() && self.out.is_empty() {
            Failure::UploadStalled
        } else {
            Failure::AnswerTimeout
        }
    }
}

/// Room for a head before what is read of a body.
const HEAD_ROOM: usize = 4096;

/// A body that does not fit into the worker's scratch together with its head.
const LARGE: usize = 12 * 1024;

/// What is read through the worker's scratch.
const SMALL: usize = 8 * 1024;

/// What carries a call and its answer.
pub enum Carrier {
    /// A connection that carries nothing else.
    Exchange(Box<Exchange>),
    /// A stream of one that carries others.
    Streamed(Box<Streamed>),
}

/// An answer whose body is still on its way.
pub type Answer = (Head, Carrier);

/// Sends one admitted call to its upstream and waits for the head of the answer.
///
/// A GET that was never sent, because an idle connection turned out to be closed, is sent once more on a new one.
/// Nothing else is.
///
/// # Errors
/// Why there is no answer; the call is counted as what the failure says.
pub async fn forward(
    worker: &Rc<Worker>,
    call: Call,
    upstream: usize,
    request: Outgoing,
) -> Result<Answer, Failure> {
    let protocol = call.upstream(upstream).map(|upstream| upstream.spec().protocol);
    if protocol == Some(Protocol::Http2) {
        let streamed = Box::pin(streamed::forward(worker, call, upstream, request)).await;
        return streamed.map(|(head, streamed)| (head, Carrier::Streamed(streamed)));
    }
    let Outgoing { head, body, framing, to_head, again, switches, as_lines, interim } = request;
    let progress = body.progress();
    call.set_arriving(progress.is_some());
    let mut fresh = false;
    let link = match obtain(worker, &call, upstream, &mut fresh).await {
        Ok(link) => link,
        Err(failure) => return Err(unreached(call, failure)),
    };
    let now = Instant::now();
    let mut exchange = Box::new(Exchange {
        worker: Rc::clone(worker),
        call,
        upstream,
        link: None,
        upload: progress.is_some().then_some(body),
        chunked: framing == wire::request::Framing::Chunked,
        progress,
        out: Outbox::new(head),
        input: BytesMut::new(),
        seen: Seen::default(),
        to_head,
        as_lines,
        interim,
        framing: Framing::None,
        lasts: false,
        broken: None,
        apart: false,
        late: None,
        sender: None,
        started: now,
        moved: now,
    });
    exchange.carry(link);
    loop {
        match poll_fn(|cx| exchange.poll_head(cx)).await {
            Ok(head) => {
                exchange.interim = None;
                exchange.framing = head.framing;
                exchange.lasts = head.lasts;
                exchange.note_size();
                let unasked = head.status == StatusCode::SWITCHING_PROTOCOLS
                    && !(switches && head.is_websocket);
                let fault = head.status.is_server_error() || unasked;
                exchange.call.answered(head.status, fault);
                exchange.answered();
                exchange.moved = Instant::now();
                return Ok((head, Carrier::Exchange(exchange)));
            }
            Err(Failure::Halted(denial)) => {
                exchange.call.halted();
                return Err(Failure::Halted(denial));
            }
            Err(Failure::Closed(_)) if again && !fresh && !exchange.call.was_sent() => {
                worker.shard.resent.up();
                fresh = true;
                exchange.link = None;
                match obtain(worker, &exchange.call, upstream, &mut fresh).await {
                    Ok(link) => {
                        exchange.carry(link);
                        // The wait for the connection was another deadline's.
                        exchange.started = Instant::now();
                        exchange.moved = exchange.started;
                    }
                    Err(Failure::Halted(denial)) => {
                        exchange.call.halted();
                        return Err(Failure::Halted(denial));
                    }
                    Err(failure) => {
                        if !matches!(failure, Failure::Busy) {
                            exchange.call.failed(class_of(&failure));
                        }
                        return Err(failure);
                    }
                }
            }
            Err(failure) => return Err(end(exchange, failure)),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.break_off();
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }
}

impl Exchange {
    /// Is some of the request still to be sent?
    #[must_use]
    pub fn still_sends(&self) -> bool {
        self.upload.is_some() || !self.out.is_empty()
    }

    /// Lets a task of its own send the rest of the request. The answer's body is asked for only as fast as the client reads, and a
    /// client may well read nothing before it has sent everything.
    #[must_use]
    pub fn send_apart(mut self: Box<Self>) -> Rc<RefCell<Exchange>> {
        self.apart = true;
        // Its client is answered: what it still sends is a conversation, with no pace of its own.
        if let Some(upload) = &mut self.upload {
            upload.take_time();
        }
        let shared = Rc::new(RefCell::new(*self));
        let weak = Rc::downgrade(&shared);
        tokio::task::spawn_local(poll_fn(move |cx| match weak.upgrade() {
            Some(exchange) => exchange.borrow_mut().poll_send(cx),
            None => Poll::Ready(()),
        }));
        shared
    }

    /// Sends what can be sent; ready once there is no more, for better or worse.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let before = self.moved;
        if self.link.is_some()
            && let Err(failure) = self.send(cx)
        {
            self.late = Some(failure);
            self.call.wake();
        } else if self.link.is_some() && self.still_sends() {
            if self.moved > before {
                self.call.is_busy();
            }
            self.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.apart = false;
        Poll::Ready(())
    }

    /// Notes whether the answer is large: the next one on this connection may be, too.
    fn note_size(&self) {
        let large = u64::try_from(LARGE).unwrap_or(u64::MAX);
        let is_large = matches!(self.framing, Framing::Length(left) if left > large);
        if let Some(link) = &self.link {
            link.lane.set_large(is_large);
        }
    }

    /// Puts the call on a connection. From here to its first write there is no await.
    fn carry(&mut self, link: Link) {
        link.lane.arm(self.call.pass(), self.worker.plane.clock.mono());
        self.call.set_way(Some(Way::Lane(Rc::clone(&link.lane))));
        self.call.goes_to(link.endpoint());
        self.link = Some(link);
        self.out.rewind();
    }

    /// The endpoint answered.
    fn answered(&self) {
        if let (Some(link), Some(upstream)) = (&self.link, self.call.upstream(self.upstream)) {
            upstream.answered(link.endpoint());
        }
    }

    /// The endpoint did not answer in time.
    fn unanswered(&self) {
        if let (Some(link), Some(upstream)) = (&self.link, self.call.upstream(self.upstream)) {
            let now = self.worker.plane.clock.mono();
            if upstream.failed(link.endpoint(), link.is_trial(), now) {
                let (endpoint, upstream) = (link.endpoint().label(), upstream.label());
                say(&format!("DOWN {endpoint} of {upstream}: {}", Failure::AnswerTimeout));
            }
        }
    }
}

/// A connection for a call: an idle one unless it must be `fresh`, and whether it is.
async fn obtain(
    worker: &Rc<Worker>,
    call: &Call,
    upstream: usize,
    fresh: &mut bool,
) -> Result<Link, Failure> {
    let nowhere = || Failure::Connect(io::Error::other("the route has no upstream"));
    let upstream = call.upstream(upstream).ok_or_else(nowhere)?;
    let first = upstream.pick(|| worker.plane.clock.mono(), &[]).ok_or_else(nowhere)?;
    if !*fresh && let Some(link) = worker.pools.take(first) {
        return Ok(link);
    }
    *fresh = true;
    // Rare and large: it must not be part of every call's own future.
    Box::pin(link::reach(worker, call, upstream, first)).await
}

/// Counts a call that never had a connection.
pub fn unreached(mut call: Call, failure: Failure) -> Failure {
    match failure {
        Failure::Halted(_) => call.halted(),
        // What we refuse by a bound of our own is no fault of the upstream.
        Failure::Busy => {}
        _ => call.failed(class_of(&failure)),
    }
    failure
}

/// Counts a call that was sent but got no answer, and tells the gates whose fault it was.
fn end(mut exchange: Box<Exchange>, failure: Failure) -> Failure {
    if matches!(failure, Failure::AnswerTimeout) {
        exchange.unanswered();
    }
    match failure {
        Failure::AnswerTimeout | Failure::Closed(_) | Failure::Breach(_) => {
            exchange.call.account().upstream_errors.up();
            exchange.call.failed(class_of(&failure));
        }
        Failure::Severed(denial) => return exchange.sever(denial),
        // A client's slow or broken upload is no fault of the upstream.
        _ => {}
    }
    failure
}

/// A span for the runtime's timers.
#[must_use]
pub fn duration(span: Span) -> Duration {
    Duration::from_nanos(span.as_nanos())
}
