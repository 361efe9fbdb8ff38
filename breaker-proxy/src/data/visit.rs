//! One request, from the first byte of its head to the last of its answer: how long that took, how much of it was waited for others,
//! and what became of it; it decides nothing.
//!
//! Whose turn it is costs one reading of the clock beside those that decide: a call says when it was sent and when it was answered,
//! and a task that has to wait for anything else says so when it does.

use super::Worker;
use super::body::Reply;
use super::notes::{End, Notes};
use super::peer::Peer;
use super::reply;
use super::times::Ending;
use crate::wire::asked::Asked;
use breaker_core::{Cause, Denial, Mono, Span};
use hyper::{Response, StatusCode};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

/// Courses whose memory a worker keeps.
pub const SPARE_MAX: usize = 1024;

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It was sent, and answered by the upstream.
    Passed,
    /// A limit refused it.
    Limited,
    /// A gate that is tripped refused it.
    Tripped,
    /// A gate on probation had no probe left.
    Probing,
    /// A kill refused it before its first byte was sent.
    Killed,
    /// A gate moved between the decision and the first byte.
    Stale,
    /// A kill or a trip ended it after its first byte was sent.
    Severed,
    /// It is none that is ever sent.
    #[default]
    Invalid,
    /// No route took it.
    Unrouted,
    /// There was no usable answer of the upstream.
    Failed,
    /// Its client left, or stopped reading, before it had all of the answer.
    Gone,
}

impl Verdict {
    /// Why a gate or a limit refused.
    #[must_use]
    pub fn of(denial: &Denial) -> Verdict {
        match denial.cause {
            Cause::Limit(_) => Verdict::Limited,
            Cause::Tripped(_) | Cause::ProbeFailed => Verdict::Tripped,
            Cause::Probing => Verdict::Probing,
            Cause::Killed(_) => Verdict::Killed,
            _ => Verdict::Stale,
        }
    }

    /// The word for it; programs may rely on it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Limited => "limited",
            Verdict::Tripped => "tripped",
            Verdict::Probing => "probing",
            Verdict::Killed => "killed",
            Verdict::Stale => "stale",
            Verdict::Severed => "severed",
            Verdict::Invalid => "invalid",
            Verdict::Unrouted => "unrouted",
            Verdict::Failed => "failed",
            Verdict::Gone => "gone",
        }
    }

    /// As its time is counted.
    #[must_use]
    pub fn ending(self) -> Ending {
        match self {
            Verdict::Passed => Ending::Passed,
            Verdict::Severed | Verdict::Failed | Verdict::Gone => Ending::Failed,
            Verdict::Limited
            | Verdict::Tripped
            | Verdict::Probing
            | Verdict::Killed
            | Verdict::Stale
            | Verdict::Invalid
            | Verdict::Unrouted => Ending::Refused,
        }
    }
}

/// How far a request has come, for whoever moves it on. It outlives no [`Visit`] of use: what is noted later is lost.
#[derive(Debug, Default)]
pub struct Course {
    began: Cell<Mono>,
    /// Since when it waits for others, if it does.
    paused: Cell<Option<Mono>>,
    /// How long it has waited for others before that.
    waited: Cell<Span>,
    /// Index of its route; `None`: no route took it.
    route: Cell<Option<usize>>,
    verdict: Cell<Verdict>,
    /// All of its answer was handed over.
    whole: Cell<bool>,
    /// Its time was counted.
    counted: Cell<bool>,
    /// How long all of it took, and what of that was added, once it was counted.
    took: Cell<(Span, Span)>,
    /// The status of its answer; 0: it had none.
    status: Cell<u16>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    /// Empty where nobody looks.
    notes: RefCell<Notes>,
}

impl Course {
    /// Others are waited for from now on.
    pub fn pause(&self, now: Mono) {
        if self.paused.get().is_none() {
            self.paused.set(Some(now));
        }
    }

    /// Nobody is waited for any more.
    pub fn resume(&self, now: Mono) {
        if let Some(since) = self.paused.take() {
            let waited = self.waited.get().as_nanos().saturating_add(now.since(since).as_nanos());
            self.waited.set(Span::from_nanos(waited));
        }
    }

    /// Its first byte was sent: what was waited for before that has come, and the upstream is waited for.
    pub fn sent(&self, now: Mono) {
        self.resume(now);
        self.pause(now);
    }

    /// A route took it.
    pub fn routed(&self, route: usize) {
        self.route.set(Some(route));
    }

    /// What became of it, as far as is known: a later word replaces an earlier one.
    pub fn ends(&self, verdict: Verdict) {
        self.verdict.set(verdict);
    }

    /// As it is known.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict.get()
    }

    /// All of its answer was handed over.
    pub fn is_whole(&self) {
        self.whole.set(true);
    }

    /// The status of its answer.
    pub fn answered(&self, status: StatusCode) {
        self.status.set(status.as_u16());
    }

    /// So many bytes of its body came.
    pub fn brought(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes_in.set(self.bytes_in.get().saturating_add(bytes));
    }

    /// So many bytes of its answer's body went.
    pub fn took_away(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes_out.set(self.bytes_out.get().saturating_add(bytes));
    }

    /// Our own answer to it, with its id if it has one.
    #[must_use]
    pub fn identified(&self, response: Response<Reply>) -> Response<Reply> {
        match self.notes.borrow().request_id() {
            Some(id) => reply::identified(response, id),
            None => response,
        }
    }

    /// What is kept of it for those who look at it; empty where nobody does.
    #[must_use]
    pub fn notes(&self) -> &RefCell<Notes> {
        &self.notes
    }

    fn begin(&self, now: Mono) {
        self.began.set(now);
        self.paused.set(None);
        self.waited.set(Span::ZERO);
        self.route.set(None);
        self.verdict.set(Verdict::default());
        self.whole.set(false);
        self.counted.set(false);
        self.status.set(0);
        self.bytes_in.set(0);
        self.bytes_out.set(0);
    }
}

/// One request that its client has begun. Its time is counted when this is dropped, whatever became of it.
pub struct Visit {
    worker: Rc<Worker>,
    course: Rc<Course>,
}

impl Visit {
    /// A request whose head began to come at this time.
    #[must_use]
    pub fn begin(worker: &Rc<Worker>, now: Mono) -> Visit {
        let course = worker.courses.borrow_mut().pop().unwrap_or_default();
        course.begin(now);
        Visit { worker: Rc::clone(worker), course }
    }

    /// How far it has come.
    #[must_use]
    pub fn course(&self) -> &Rc<Course> {
        &self.course
    }

    /// Notes what it asks for, if anybody looks; `None`: that could not be read.
    pub fn note(&self, peer: &Peer, asked: Option<&Asked<'_>>) {
        let sight = &self.worker.plane.sight;
        if sight.looks() {
            let mut notes = self.course.notes.borrow_mut();
            let fresh = || self.worker.new_id();
            match asked {
                Some(asked) => notes.take(sight, peer, asked, fresh),
                None => notes.begin(sight, peer, fresh),
            }
        }
    }

    /// Our own answer to it, with its id if it has one.
    #[must_use]
    pub fn identified(&self, response: Response<Reply>) -> Response<Reply> {
        self.course.identified(response)
    }

    /// Others are waited for from now on; the clock is read if nobody was.
    pub fn pause(&self) {
        if self.course.paused.get().is_none() {
            self.course.pause(self.worker.plane.clock.mono());
        }
    }

    /// Nobody is waited for any more; the clock is read if anybody was.
    pub fn resume(&self) {
        if self.course.paused.get().is_some() {
            self.course.resume(self.worker.plane.clock.mono());
        }
    }

    /// What the future comes to. From the first time that it is not ready, others are waited for, until it is (or says otherwise itself).
    pub async fn timed<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => {
                self.resume();
                Poll::Ready(output)
            }
            Poll::Pending => {
                self.pause();
                Poll::Pending
            }
        })
        .await
    }

    /// Counts its time now: what comes after is no answer to it.
    pub fn count(&self) {
        if !self.course.counted.replace(true) {
            let (course, now) = (&self.course, self.worker.plane.clock.mono());
            course.resume(now);
            if course.verdict.get() == Verdict::Passed && !course.whole.get() {
                course.ends(Verdict::Gone);
            }
            let whole = now.since(course.began.get());
            let added = whole.as_nanos().saturating_sub(course.waited.get().as_nanos());
            course.took.set((whole, Span::from_nanos(added)));
            let times = self.worker.shard.times(course.route.get());
            times.note(course.verdict.get().ending(), whole, Span::from_nanos(added));
        }
    }
}

impl Visit {
    /// Tells those who look how it went.
    fn tell(&self) {
        let (course, (whole, added)) = (&self.course, self.course.took.get());
        let end = End {
            at: self.worker.plane.clock.wall(),
            status: Some(course.status.get()).filter(|status| *status != 0),
            verdict: course.verdict.get(),
            bytes_in: course.bytes_in.get(),
            bytes_out: course.bytes_out.get(),
            whole,
            added,
        };
        self.worker.log(|out| course.notes.borrow_mut().tell(&end, out));
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.count();
        if self.worker.plane.sight.looks() {
            self.tell();
        }
        // Whoever still holds it keeps it.
        if Rc::strong_count(&self.course) == 1 {
            let mut spare = self.worker.courses.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(Rc::clone(&self.course));
            }
        }
    }
}
