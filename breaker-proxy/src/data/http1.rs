//! An HTTP/1 client connection: one request after the other, each to its answer; it decides nothing about them.
//!
//! While a connection is idle it holds no memory for what may come: heads are read where the worker reads everything, and only
//! half a head, or what stands behind a request, is kept.

use super::Worker;
use super::alarm::Alarm;
use super::answer::Answer;
use super::body::Reply;
use super::channel::Channel;
use super::download::{BrokeOff, Download};
use super::downstream::Downstream;
use super::front::Seat;
use super::handle::{self, Decision, Moment};
use super::inspect::Waiting;
use super::interim::Interim;
use super::pace::Pace;
use super::peer::Peer;
use super::reply::{self, Invalid};
use super::tunnel;
use super::upload::Upload;
use super::upstream::{Exchange, duration};
use super::visit::{Verdict, Visit};
use crate::wire::answer::Passing;
use crate::wire::asked::Asked;
use crate::wire::head::{BadHead, Head, Room, Says};
use crate::wire::response::{self, After, Coding};
use breaker_core::Mono;
use bytes::Buf as _;
use hyper::body::Body as _;
use hyper::{Method, StatusCode};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// What a client is told whose head did not come in time.
const TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How long a client may go on sending what nobody wants after its last answer, so that the answer is not lost to it: a close
/// with bytes unread is a reset, which may overtake the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of it.
const LINGER_MAX: usize = 1024 * 1024;

/// Bytes of empty lines before a request, at most.
const BLANK_MAX: usize = 64;

/// Serves a connection to its end. The first head must have come by `first`.
pub async fn serve(seat: &Seat, channel: Channel, peer: Rc<Peer>, first: Instant) {
    let worker = &seat.worker;
    let bounds = &worker.plane.bounds;
    let mut connection = Connection {
        seat,
        client: Downstream::new(worker, &peer, channel),
        peer,
        room: Room {
            bytes: usize::try_from(bounds.head_bytes).unwrap_or(usize::MAX),
            fields: usize::from(bounds.fields),
        },
        alarm: Alarm::new(first),
        wait: Wait::First(first),
        begun: None,
        looked: 0,
        blank: Cell::new(0),
        hurried: false,
    };
    while let Some(next) = poll_fn(|cx| connection.poll_next(cx)).await {
        if !connection.serve(next).await {
            return;
        }
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// Its first head, until then.
    First(Instant),
    /// Another request, which may never come, until then.
    Idle(Instant),
    /// The rest of a head, until then.
    Head(Instant),
}

/// A client connection.
struct Connection<'s> {
    seat: &'s Seat,
    client: Rc<Downstream>,
    peer: Rc<Peer>,
    room: Room,
    alarm: Alarm,
    wait: Wait,
    /// When the first byte of a head came that is not whole.
    begun: Option<Mono>,
    /// Bytes of what was kept that were found to be no whole head.
    looked: usize,
    /// Bytes of empty lines since the last request.
    blank: Cell<usize>,
    /// It was told to end with half a head.
    hurried: bool,
}

/// A request that has come, and what the decision says.
struct Next {
    method: Method,
    says: Says,
    step: Step,
    visit: Visit,
}

/// How far it has come.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, made and moved once"
)]
enum Step {
    Decided(Decision),
    /// Its body is looked into first.
    Waits(Box<Waiting>),
}

impl Connection<'_> {
    fn worker(&self) -> &Rc<Worker> {
        &self.seat.worker
    }

    /// The next request; `None` if the connection is to end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Next>> {
        let worker = Rc::clone(self.worker());
        let mut unread = true;
        loop {
            if unread && let Some(next) = self.take_kept() {
                return Poll::Ready(Some(next));
            }
            let kept = !self.client.input().borrow().is_empty();
            if self.seat.ending(cx) {
                if !kept {
                    return Poll::Ready(None);
                }
                self.hurry();
            }
            let mut scratch = worker.scratch.borrow_mut();
            let read = match self.client.poll_read_into(cx, &mut scratch) {
                Poll::Pending => {
                    drop(scratch);
                    return self.poll_late(cx, kept);
                }
                Poll::Ready(Ok(read @ 1..)) => scratch.get_mut(..read).unwrap_or_default(),
                Poll::Ready(_) => return Poll::Ready(None),
            };
            if kept {
                self.client.input().borrow_mut().extend_from_slice(read);
                unread = true;
                continue;
            }
            // Mostly a head comes whole, and is read where it lies.
            let (next, taken) = self.take_head(read);
            let rest = read.get(taken..).unwrap_or(&[]);
            if !rest.is_empty() {
                self.client.input().borrow_mut().extend_from_slice(rest);
            }
            if next.is_some() {
                return Poll::Ready(next);
            }
            unread = false;
            self.looked = rest.len();
            if !rest.is_empty() {
                self.begun();
            }
        }
    }

    /// A request from what was kept.
    fn take_kept(&mut self) -> Option<Next> {
        let client = Rc::clone(&self.client);
        let mut input = client.input().borrow_mut();
        if input.is_empty() || !may_be_whole(&input, self.looked, self.room.bytes) {
            return None;
        }
        let (next, taken) = self.take_head(&mut input);
        input.advance(taken);
        self.looked = if next.is_some() { 0 } else { input.len() };
        if input.is_empty() {
            // An idle connection keeps no memory.
            *input = bytes::BytesMut::new();
        } else if next.is_none() {
            self.begun();
        }
        next
    }

    /// Some of a head has come: from now on it must come whole in time.
    fn begun(&mut self) {
        if self.begun.is_none() {
            self.begun = Some(self.worker().plane.clock.mono());
        }
        match self.wait {
            Wait::First(until) => self.wait = Wait::Head(until),
            Wait::Idle(_) => {
                let head = duration(self.worker().plane.deadlines.head);
                self.wait = Wait::Head(Instant::now() + head);
            }
            Wait::Head(_) => {}
        }
    }

    /// The request at the beginning of these bytes, if it is whole, and how many of the bytes are taken.
    fn take_head(&mut self, text: &mut [u8]) -> (Option<Next>, usize) {
        // An empty line before a request belongs to nobody (RFC 9112, 2.2).
        let blank = text.chunks_exact(2).take_while(|line| line == b"\r\n").count() * 2;
        self.blank.set(self.blank.get().saturating_add(blank));
        if self.blank.get() > BLANK_MAX {
            return (Some(self.refuse(BadHead::Malformed)), blank.saturating_add(text.len()));
        }
        let Some(text) = text.get_mut(blank..).filter(|text| !text.is_empty()) else {
            return (None, blank);
        };
        let worker = Rc::clone(self.worker());
        let now = worker.plane.clock.mono();
        let mut lines = worker.lines.borrow_mut();
        match Head::read(text, &mut lines, self.room) {
            Ok(None) => (None, blank),
            Ok(Some(head)) => {
                self.blank.set(0);
                let asked = head.asked(text, &lines);
                let visit = self.visit(now, Some(&asked));
                let framing = head.says.framing;
                let step = match handle::waits(&worker, &self.peer, &asked, framing) {
                    Some(waiting) => Step::Waits(Box::new(waiting)),
                    None => {
                        let moment = Moment { now, course: visit.course() };
                        let peer = &self.peer;
                        Step::Decided(handle::decide(&worker, peer, &asked, framing, None, moment))
                    }
                };
                let mut says = head.says;
                // What was sent on the strength of a switch that is refused is no request (RFC 9931).
                says.closes |= asked.wants_websocket();
                let next = Next { method: asked.method, says, step, visit };
                (Some(next), blank.saturating_add(head.says.length))
            }
            Err(bad) => (Some(self.refuse(bad)), blank.saturating_add(text.len())),
        }
    }

    /// What is no request is answered, and ends the connection: nothing behind it is believed.
    fn refuse(&mut self, bad: BadHead) -> Next {
        let visit = self.visit(self.worker().plane.clock.mono(), None);
        let nowhere = &self.worker().shard.nowhere;
        nowhere.offered.up();
        nowhere.invalid.up();
        let step = Step::Decided(Err(reply::invalid(&Invalid::Head(bad)).into()));
        Next { method: Method::GET, says: Says::unbelieved(), step, visit }
    }

    /// The request whose head is whole now, or never will be. What of it came before was waited for.
    fn visit(&mut self, now: Mono, asked: Option<&Asked<'_>>) -> Visit {
        let began = self.begun.take().unwrap_or(now);
        let visit = Visit::begin(self.worker(), began);
        visit.course().pause(began);
        visit.course().resume(now);
        visit.note(&self.peer, asked);
        visit
    }

    /// Who is half-way into a head when all are to end has little time left for the rest.
    fn hurry(&mut self) {
        if !std::mem::replace(&mut self.hurried, true) {
            let (Wait::First(until) | Wait::Idle(until) | Wait::Head(until)) = self.wait;
            self.wait = Wait::Head(until.min(Instant::now() + LINGER));
        }
    }

    /// Ends the wait for a head if it has lasted too long.
    fn poll_late(&mut self, cx: &mut Context<'_>, kept: bool) -> Poll<Option<Next>> {
        let (Wait::First(until) | Wait::Idle(until) | Wait::Head(until)) = self.wait;
        if !self.alarm.passed(until, cx) {
            return Poll::Pending;
        }
        let shard = self.worker().shard;
        if !matches!(self.wait, Wait::Idle(_)) {
            shard.slow_heads.up();
        }
        if kept {
            shard.nowhere.offered.up();
            shard.nowhere.invalid.up();
            let visit = self.visit(self.worker().plane.clock.mono(), None);
            visit.course().answered(StatusCode::REQUEST_TIMEOUT);
            self.client.say_at_once(TOO_SLOW);
        }
        Poll::Ready(None)
    }

    /// Takes a request to its answer; true: the connection serves on.
    async fn serve(&mut self, next: Next) -> bool {
        let Next { method, says, step, visit } = next;
        self.client.begin_body(says.framing, says.expects);
        let mut body = Upload::of_http1(self.worker(), &self.client);
        body.tell(visit.course());
        let decision = match step {
            Step::Decided(decision) => decision,
            Step::Waits(waiting) => {
                let decision = waiting.decide(self.worker(), &self.peer, &mut body, &visit);
                match self.unless_gone(visit.timed(decision)).await {
                    Some(decision) => decision,
                    None => return false,
                }
            }
        };
        let answer = match decision {
            Err(response) => {
                self.client.drain();
                Answer::from(visit.identified(response))
            }
            Ok(sent) => {
                // What comes before an answer is nothing that HTTP/1.0 knows.
                let interim = says.is_11.then(|| Interim::Http1(Rc::clone(&self.client)));
                let answer = handle::send(self.worker(), sent, &method, body, interim);
                match self.unless_gone(visit.timed(answer)).await {
                    Some(answer) => answer,
                    None => return false,
                }
            }
        };
        self.answer(answer, &says, method == Method::HEAD, &visit).await
    }

    /// What the future comes to, unless the client leaves before.
    async fn unless_gone<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Pending => {
                // What it cannot be told now goes out before its answer.
                let _ = self.client.poll_tell(cx);
                self.client.poll_gone(cx).map(|()| None)
            }
            Poll::Ready(output) => Poll::Ready(Some(output)),
        })
        .await
    }

    /// Sends an answer; true: the connection serves on.
    async fn answer(&mut self, answer: Answer, says: &Says, to_head: bool, visit: &Visit) -> bool {
        let Answer { status, fields, told, body } = answer;
        visit.course().answered(status);
        let whole = self.client.is_whole() || body.is_sent_apart();
        let lasts = !says.closes && whole && !self.worker().open.is_ending();
        let never = status.is_informational() || status == StatusCode::NO_CONTENT;
        let bodiless = to_head || never || status == StatusCode::NOT_MODIFIED;
        let coding = match body.size_hint().exact() {
            _ if bodiless && !to_head => Coding::None,
            _ if never => Coding::None,
            // Whoever answers a HEAD without a length does not know it.
            Some(0) | None if to_head => told.map_or(Coding::None, Coding::Length),
            Some(length) => Coding::Length(length),
            None if says.is_11 => Coding::Chunked,
            None => Coding::Close,
        };
        let after = match (&body, lasts && coding != Coding::Close, says.is_11) {
            (Reply::Switched(_), ..) => After::WebSocket,
            (_, true, true) => After::AsUsual,
            (_, true, false) => After::KeepAlive,
            (_, false, _) => After::Close,
        };
        let head = self.head(status, fields, coding, after);
        if let Reply::Switched(exchange) = body {
            self.tunnel(head, exchange, visit).await;
            return false;
        }
        let body = (!bodiless).then_some(body);
        let mut download = Download::new(head, body, coding, says.trailers);
        let sent = self.send(&mut download, visit).await;
        self.worker().give_spare(download.into_spare());
        if sent.is_err() {
            // A plain end would make it look whole, or wait for a client that does not read.
            if coding == Coding::Close || self.peer.stalled.get() {
                self.client.break_off();
            }
            return false;
        }
        if lasts && coding != Coding::Close && self.client.is_whole() {
            let idle = duration(self.worker().plane.deadlines.idle);
            self.wait = Wait::Idle(Instant::now() + idle);
            return true;
        }
        self.client.end_writing();
        // Who said that it closes and sent nothing more loses nothing.
        if !says.closes || !self.client.is_whole() || !self.client.input().borrow().is_empty() {
            self.linger().await;
        }
        false
    }

    /// The head of an answer.
    fn head(&self, status: StatusCode, fields: Passing, coding: Coding, after: After) -> Vec<u8> {
        let worker = self.worker();
        let (mut head, dated) = match fields {
            Passing::Lines { text, dated } => (text, dated),
            Passing::Map(fields) => {
                let mut head = worker.take_spare();
                response::begin(&mut head, status);
                let given = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
                let dated = response::fields(&mut head, given);
                (head, dated)
            }
        };
        worker.dated(|date| {
            response::end(&mut head, &response::Ours { coding, after, date }, dated);
        });
        // A word that was begun is said to its end.
        let leave = self.client.end_leave();
        if !leave.is_empty() {
            head.splice(..0, leave);
        }
        head
    }

    /// Lets the connection go on as a WebSocket, to its end.
    async fn tunnel(&mut self, head: Vec<u8>, mut exchange: Box<Exchange>, visit: &Visit) {
        let mut download = Download::new(head, None, Coding::None, false);
        if self.send(&mut download, visit).await.is_ok() {
            visit.count();
            let idle = duration(self.worker().plane.deadlines.tunnel);
            let told = tunnel::carry(&self.client, &mut exchange, &mut self.alarm, idle).await;
            drop(exchange);
            if told {
                self.client.end_writing();
                self.linger().await;
            }
        }
    }

    /// Sends it to its end, as long as the client takes it.
    async fn send(&mut self, download: &mut Download, visit: &Visit) -> Result<(), BrokeOff> {
        let plane = self.worker().plane;
        let idle = duration(plane.deadlines.body_idle);
        let mut pace = Pace::new(idle, plane.bounds.download_rate);
        let sent = poll_fn(|cx| {
            visit.resume();
            if let Poll::Ready(sent) = download.poll_send(cx, &self.client) {
                return Poll::Ready(sent);
            }
            visit.pause();
            // Its call was ended, since it stopped reading.
            if self.peer.stalled.get() {
                return Poll::Ready(Err(BrokeOff::Client));
            }
            let (sent, owes) = download.progress(&self.client);
            if let Some(until) = pace.look(sent, owes, Instant::now())
                && self.alarm.passed(until, cx)
            {
                self.seat.worker.shard.stalled_clients.up();
                self.peer.stalled.set(true);
                return Poll::Ready(Err(BrokeOff::Client));
            }
            self.client.poll_gone(cx).map(|()| Err(BrokeOff::Client))
        })
        .await;
        let course = visit.course();
        course.took_away(download.carried());
        match sent {
            Ok(()) => course.is_whole(),
            Err(BrokeOff::Severed) => course.ends(Verdict::Severed),
            Err(BrokeOff::Answer) if course.verdict() == Verdict::Passed => {
                course.ends(Verdict::Failed);
            }
            Err(_) => {}
        }
        sent
    }

    /// Reads what still comes of a request that was answered, until the client has seen its answer and ends, for a while.
    async fn linger(&mut self) {
        let until = Instant::now() + LINGER;
        let worker = Rc::clone(self.worker());
        let mut budget = LINGER_MAX;
        poll_fn(|cx| {
            loop {
                if self.seat.ending(cx) || self.alarm.passed(until, cx) {
                    return Poll::Ready(());
                }
                let mut scratch = worker.scratch.borrow_mut();
                match ready!(self.client.poll_read_into(cx, &mut scratch)) {
                    Ok(read @ 1..) if read <= budget => budget -= read,
                    _ => return Poll::Ready(()),
                }
            }
        })
        .await;
    }
}

/// Could these bytes be a whole head now, or be refused, where the first `looked` of them could not? Bytes that come one by one must not
/// cost a look at all that came before.
fn may_be_whole(text: &[u8], looked: usize, most: usize) -> bool {
    let fresh = text.get(looked.saturating_sub(2)..).unwrap_or(&[]);
    text.len() >= looked.saturating_mul(2).min(most)
        || memchr::memmem::find(fresh, b"\n\r\n").is_some()
        || memchr::memmem::find(fresh, b"\n\n").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a head that comes byte by byte is looked at only as often as its length doubles, and at once when it is whole or too long.
    #[test]
    fn a_head_by_the_byte_was_read_again_with_each() {
        let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(30_000)).into_bytes();
        let (mut looked, mut looks) = (0, 0);
        for length in 1..=head.len() {
            if may_be_whole(&head[..length], looked, 32 * 1024) {
                (looked, looks) = (length, looks + 1);
            }
        }
        assert_eq!(looked, head.len(), "the last byte is seen at once");
        assert!(looks < 20, "{looks} looks");
        for end in ["\n\r\n", "\n\n"] {
            for cut in 0..=end.len() {
                let text = ["x".repeat(1000).as_bytes(), end.as_bytes()].concat();
                let looked = 1000 + cut;
                assert!(cut == end.len() || may_be_whole(&text, looked, 4000), "{end:?} at {cut}");
            }
        }
        assert!(may_be_whole(&[b'x'; 4000], 3999, 4000), "too long");
    }
}
