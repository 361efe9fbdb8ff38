//! The exchange of one call on a connection that carries many; it neither routes nor decides, and writes no byte itself.

use super::Worker;
use super::alarm::Alarm;
use super::failure::{Failure, class_of};
use super::flight::{Call, Way};
use super::interim::Interim;
use super::strand::{Side, Strand};
use super::trunk::{self, Ride};
use super::upload::{Progress, Upload, UploadFailure};
use super::upstream::{Outgoing, duration, unreached};
use crate::voice::say;
use crate::wire::answer::{Framing, Head, INTERIM_MAX};
use crate::wire::{Breach, plural};
use breaker_core::Denial;
use bytes::Bytes;
use h2::RecvStream;
use h2::client::ResponseFuture;
use hyper::Response;
use hyper::body::{Frame, SizeHint};
use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// Connections that a call is offered to, if each takes no more just then.
const TRIES: usize = 3;

/// A call on its stream. Dropped, it leaves the stream, and the upstream hears that nobody waits.
pub struct Streamed {
    worker: Rc<Worker>,
    call: Call,
    /// Index of the upstream in the call's own snapshot.
    upstream: usize,
    ride: Option<Ride>,
    answer: Option<ResponseFuture>,
    body: Option<RecvStream>,
    /// How much of the body is still to come, where that was told.
    left: Option<u64>,
    /// Bytes that the client was given last, and may not have taken.
    held: usize,
    /// How far the body of the request has come, and how its sending stands.
    progress: Option<Rc<Progress>>,
    sending: Rc<Sending>,
    to_head: bool,
    /// Who is told of what comes before the answer, and how much of that came.
    interim: Option<Interim>,
    heard: usize,
    /// The server said that it did nothing of it.
    is_untouched: bool,
    alarm: Alarm,
    started: Instant,
    /// When the last byte moved, as far as deadlines care.
    moved: Instant,
}

/// How the sending of a request's body stands.
#[derive(Default)]
struct Sending {
    /// What it failed with, for whoever asks for the answer next.
    late: RefCell<Option<Failure>>,
    /// A piece waits for room on the way up.
    is_full: Cell<bool>,
    /// When a piece last went.
    last: Cell<Option<Instant>>,
}

/// Sends one admitted call and waits for the head of the answer.
///
/// A call that a connection does not take goes to another one: nothing of it was sent. A GET without a body is sent once more if nothing of it
/// was, or if the server says that it did nothing of it (RFC 9113, 8.7). Nothing else is.
///
/// # Errors
/// Why there is no answer; the call is counted as what the failure says.
pub async fn forward(
    worker: &Rc<Worker>,
    call: Call,
    upstream: usize,
    request: Outgoing,
) -> Result<(Head, Box<Streamed>), Failure> {
    let Outgoing { head, body, to_head, again, interim, .. } = request;
    let progress = body.progress();
    call.set_arriving(progress.is_some());
    let begun = match begin(worker, &call, upstream, &head, progress.is_none()).await {
        Ok(begun) => begun,
        Err(failure) => return Err(unreached(call, failure)),
    };
    let now = Instant::now();
    let mut streamed = Box::new(Streamed {
        worker: Rc::clone(worker),
        call,
        upstream,
        ride: None,
        answer: None,
        body: None,
        left: None,
        held: 0,
        progress,
        sending: Rc::default(),
        to_head,
        interim,
        heard: 0,
        is_untouched: false,
        alarm: Alarm::new(now + duration(worker.plane.deadlines.answer)),
        started: now,
        moved: now,
    });
    streamed.board(begun);
    if streamed.progress.is_some() {
        streamed.send_up(body);
    }
    let mut resent = false;
    loop {
        let failure = match poll_fn(|cx| streamed.poll_head(cx)).await {
            Ok(found) => {
                worker.give_spare(head);
                return Ok((found, streamed));
            }
            Err(failure) => failure,
        };
        let may_again = matches!(failure, Failure::Closed(_)) && again && !resent;
        if !may_again || (streamed.call.was_sent() && !streamed.is_untouched) {
            return Err(streamed.end(failure));
        }
        worker.shard.resent.up();
        resent = true;
        streamed.leave();
        match begin(worker, &streamed.call, upstream, &head, true).await {
            Ok(begun) => streamed.board(begun),
            Err(failure) => return Err(streamed.end(failure)),
        }
    }
}

/// Begins the call on a connection that takes it.
async fn begin(
    worker: &Rc<Worker>,
    call: &Call,
    upstream: usize,
    head: &[u8],
    ends: bool,
) -> Result<(Ride, ResponseFuture), Failure> {
    let nowhere = || Failure::Connect(io::Error::other("the route has no upstream"));
    let unsayable = || Failure::Connect(io::Error::other("the request cannot be said in HTTP/2"));
    let upstream = call.upstream(upstream).ok_or_else(nowhere)?;
    let mut last = None;
    for _ in 0..TRIES {
        let (trunk, is_trial) = trunk::reach(worker, call, upstream).await?;
        let is_tls = trunk.endpoint().target().is_tls();
        let request = plural::request(head, is_tls).ok_or_else(unsayable)?;
        match trunk.begin(worker, call, request, ends, is_trial) {
            Ok(begun) => return Ok(begun),
            Err(error) => last = Some(io::Error::other(error)),
        }
    }
    Err(Failure::Connect(last.unwrap_or_else(|| io::ErrorKind::NotConnected.into())))
}

impl Streamed {
    /// Puts the call on a connection. Nothing of it is written before this task rests.
    fn board(&mut self, (ride, answer): (Ride, ResponseFuture)) {
        self.call.set_way(Some(Way::Strand(Rc::clone(&ride.strand))));
        self.call.goes_to(ride.trunk.endpoint());
        (self.ride, self.answer) = (Some(ride), Some(answer));
        self.is_untouched = false;
        // The wait for the connection was another deadline's.
        self.started = Instant::now();
        self.moved = self.started;
    }

    /// Lets a task of its own send the body of the request: neither side waits for the other.
    fn send_up(&self, upload: Upload) {
        if let Some(ride) = &self.ride {
            let (strand, sending) = (Rc::clone(&ride.strand), Rc::clone(&self.sending));
            tokio::task::spawn_local(send(strand, upload, sending));
        }
    }

    /// Leaves the stream. What is not at its end there is reset.
    fn leave(&mut self) {
        self.learn();
        self.call.set_way(None);
        (self.ride, self.answer, self.body) = (None, None, None);
    }

    /// What the connection has done with the call since it was last asked.
    fn learn(&mut self) {
        if self.ride.as_ref().is_some_and(|ride| ride.strand.sent()) {
            self.call.sent();
        }
        if let Some(progress) = &self.progress {
            self.call.set_arriving(!progress.done());
            let last = self.sending.last.get().unwrap_or(self.moved);
            self.moved = self.moved.max(progress.last()).max(last);
        }
    }

    /// A gate was against the call: was it before its first byte?
    fn stopped(&mut self, denial: Denial) -> Failure {
        self.learn();
        if self.call.was_sent() {
            return self.sever(denial);
        }
        if let Some(ride) = &self.ride {
            ride.strand.cut_off(denial);
        }
        Failure::Halted(denial)
    }

    /// Ends the stream so that nothing more of the call arrives.
    fn sever(&mut self, denial: Denial) -> Failure {
        self.call.count_severed();
        self.call.note_severed(&denial);
        if let Some(ride) = &self.ride {
            ride.strand.cut_off(denial);
        }
        self.leave();
        Failure::Severed(denial)
    }

    /// Does a gate end the call now?
    fn poll_stopped(&mut self, cx: &Context<'_>) -> Option<Failure> {
        let strand = &self.ride.as_ref()?.strand;
        strand.wake_by(Side::Down, cx);
        let refused = strand.refused();
        self.learn();
        let denial = refused.or_else(|| {
            // What waits for its turn to be written hears of a kill at once.
            if self.call.was_sent() { self.call.severed() } else { self.call.refused() }
        });
        denial.map(|denial| self.stopped(denial))
    }

    /// Why the upstream's side ended: a gate's refusal if there was one.
    fn ended(&mut self, error: h2::Error) -> Failure {
        if let Some(denial) = self.ride.as_ref().and_then(|ride| ride.strand.refused()) {
            return self.stopped(denial);
        }
        self.learn();
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        self.is_untouched = error.is_remote() && (refused || error.is_go_away());
        if error.is_io() || error.is_go_away() || error.is_reset() {
            Failure::Closed(Some(io::Error::other(error)))
        } else {
            Failure::Breach(Breach::Http2)
        }
    }

    /// One step towards the head of the answer.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        self.call.wake_by(cx);
        if let Some(failure) = self.poll_stopped(cx) {
            return Poll::Ready(Err(failure));
        }
        if let Some(failure) = self.sending.late.take() {
            return Poll::Ready(Err(failure));
        }
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(Err(Failure::Closed(None)));
        };
        while let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
            // Nobody has a reason to say more than a few.
            self.heard += 1;
            if self.heard >= INTERIM_MAX {
                return Poll::Ready(Err(Failure::Breach(Breach::Http2)));
            }
            let (parts, ()) = interim.into_parts();
            if let Some(told) = &self.interim {
                told.tell(plural::answer(parts.status, parts.headers, false, true));
            }
        }
        match Pin::new(answer).poll(cx) {
            Poll::Ready(Ok(response)) => return Poll::Ready(Ok(self.answered(response))),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(self.ended(error))),
            Poll::Pending => {}
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
        if self.alarm.passed(deadline, cx) {
            Poll::Ready(Err(self.too_late()))
        } else {
            Poll::Pending
        }
    }

    /// The head of the answer has come.
    fn answered(&mut self, response: Response<RecvStream>) -> Head {
        (self.answer, self.interim) = (None, None);
        let (parts, body) = response.into_parts();
        let head = plural::answer(parts.status, parts.headers, self.to_head, body.is_end_stream());
        self.left = head.told.filter(|_| head.framing != Framing::None);
        self.body = Some(body);
        self.call.answered(head.status, head.status.is_server_error());
        if let (Some(ride), Some(upstream)) = (&self.ride, self.call.upstream(self.upstream)) {
            upstream.answered(ride.trunk.endpoint());
        }
        self.moved = Instant::now();
        head
    }

    /// Did the connection end from here, for the sake of another call?
    fn is_torn(&self) -> bool {
        self.ride.as_ref().is_some_and(|ride| ride.trunk.is_torn())
    }

    fn arriving(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| !progress.done())
    }

    /// Whose fault it is that nothing moves: the client's if it owes a part of its body that the upstream would take.
    fn too_late(&self) -> Failure {
        if self.arriving() && !self.sending.is_full.get() {
            Failure::UploadStalled
        } else {
            Failure::AnswerTimeout
        }
    }

    /// Counts a call that got no answer, and tells the gates whose fault it was.
    fn end(mut self: Box<Self>, failure: Failure) -> Failure {
        self.learn();
        if let Failure::Halted(_) = failure {
            self.call.halted();
            return failure;
        }
        if matches!(failure, Failure::AnswerTimeout) {
            self.unanswered();
        }
        match failure {
            // The kill of another call, and no fault of the upstream.
            Failure::Closed(_) | Failure::Breach(_) if self.is_torn() => {}
            Failure::AnswerTimeout | Failure::Closed(_) | Failure::Breach(_) => {
                self.call.account().upstream_errors.up();
                self.call.failed(class_of(&failure));
            }
            Failure::Connect(_) | Failure::Handshake(_) | Failure::ConnectTimeout => {
                self.call.failed(class_of(&failure));
            }
            // A client's slow or broken upload is no fault of the upstream, nor is a bound of our own.
            _ => {}
        }
        failure
    }

    /// The endpoint did not answer in time.
    fn unanswered(&self) {
        let Some(ride) = &self.ride else { return };
        ride.trunk.doubt(self.started);
        if let Some(upstream) = self.call.upstream(self.upstream) {
            let now = self.worker.plane.clock.mono();
            let endpoint = ride.trunk.endpoint();
            if upstream.failed(endpoint, ride.is_trial, now) {
                let (endpoint, upstream) = (endpoint.label(), upstream.label());
                say(&format!("DOWN {endpoint} of {upstream}: {}", Failure::AnswerTimeout));
            }
        }
    }

    /// The answer is complete, or nobody wants the rest.
    pub fn finish(&mut self) {
        self.leave();
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
        self.body.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    /// How much of the body is still to come, if that is known.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_at_end() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
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
        if self.ride.is_none() {
            return Poll::Ready(None);
        }
        self.call.asked(cx);
        if let Some(failure) = self.poll_stopped(cx) {
            return Poll::Ready(Some(Err(failure)));
        }
        let late = self.sending.late.take();
        let result = late.map_or_else(|| self.poll_body(cx), |failure| Poll::Ready(Err(failure)));
        let failure = match result {
            Poll::Ready(Ok(frame)) => return Poll::Ready(frame.map(Ok)),
            Poll::Ready(Err(failure)) => failure,
            Poll::Pending => {
                let deadline = self.moved + duration(self.worker.plane.deadlines.body_idle);
                if !self.alarm.passed(deadline, cx) {
                    return Poll::Pending;
                }
                self.too_late()
            }
        };
        // An end that was ours is no fault of the upstream, nor is an upload that its client broke off.
        let ours = self.ride.as_ref().is_none_or(|ride| ride.strand.is_gone()) || self.is_torn();
        let theirs = Failure::is_of_upstream(&failure);
        if theirs && !ours {
            self.call.account().upstream_errors.up();
        }
        self.leave();
        Poll::Ready(Some(Err(failure)))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Failure>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(None)) };
        // Whoever asks has taken what came before: there is room for as much again.
        let _ = body.flow_control().release_capacity(std::mem::take(&mut self.held));
        loop {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.held = data.len();
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    self.left = self.left.map(|left| left.saturating_sub(length));
                    self.moved = Instant::now();
                    if body.is_end_stream() {
                        self.finish();
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Err(self.ended(error))),
                None => break,
            }
        }
        match ready!(body.poll_trailers(cx)) {
            Ok(fields) => {
                self.finish();
                let fields = fields.and_then(plural::trailers);
                Poll::Ready(Ok(fields.map(Frame::trailers)))
            }
            Err(error) => Poll::Ready(Err(self.ended(error))),
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Sends the body of a request, to its end or its stream's.
async fn send(strand: Rc<Strand>, mut upload: Upload, sending: Rc<Sending>) {
    let mut piece = Bytes::new();
    let sent = poll_fn(|cx| {
        strand.wake_by(Side::Up, cx);
        poll_send(&strand, &mut upload, &mut piece, &sending, cx)
    });
    if let Err(failure) = sent.await {
        *sending.late.borrow_mut() = Some(Failure::of_upload(failure));
        strand.abandon();
    }
    strand.wake(Side::Down);
}

/// Sends what can be sent; ready once there is no more, or the stream has ended: who waits for the answer hears why.
fn poll_send(
    strand: &Strand,
    upload: &mut Upload,
    piece: &mut Bytes,
    sending: &Sending,
    cx: &mut Context<'_>,
) -> Poll<Result<(), UploadFailure>> {
    loop {
        if piece.is_empty() {
            sending.is_full.set(false);
            // A server that has heard enough says so.
            if strand.with_out(|out| out.poll_reset(cx).is_ready()) != Some(false) {
                return Poll::Ready(Ok(()));
            }
            let Some(data) = ready!(upload.poll_data(cx)) else {
                let _ = strand.with_out(|out| out.send_data(Bytes::new(), true));
                return Poll::Ready(Ok(()));
            };
            *piece = data?;
            continue;
        }
        let room = strand.with_out(|out| {
            out.reserve_capacity(piece.len());
            match out.capacity() {
                0 => out.poll_capacity(cx),
                room => Poll::Ready(Some(Ok(room))),
            }
        });
        let room = match room {
            Some(Poll::Ready(Some(Ok(room)))) => room,
            Some(Poll::Pending) => {
                sending.is_full.set(true);
                return Poll::Pending;
            }
            None | Some(Poll::Ready(_)) => return Poll::Ready(Ok(())),
        };
        let part = piece.split_to(room.min(piece.len()));
        let ends = piece.is_empty() && upload.is_at_end();
        let handed = strand.with_out(|out| out.send_data(part, ends));
        sending.last.set(Some(Instant::now()));
        if ends || !matches!(handed, Some(Ok(()))) {
            return Poll::Ready(Ok(()));
        }
    }
}
