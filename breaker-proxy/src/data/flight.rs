//! Calls in flight: each is counted to exactly one end, and can be found and ended by a kill; it sends nothing.

use super::Worker;
use super::counts::Account;
use super::endpoint::{Endpoint, Upstream};
use super::lane::Lane;
use super::peer::Peer;
use super::settle::Settling;
use super::strand::Strand;
use super::visit::{Course, Verdict};
use crate::snapshot::Snapshot;
use breaker_core::{Denial, Held, Mono, Outcome, Pass, Permit, Settlement, Ticket};
use hyper::StatusCode;
use slab::Slab;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

/// A worker's calls in flight.
#[derive(Default)]
pub struct Flights {
    slab: Slab<Flight>,
    /// Calls that a gate ended and no census has counted: they saw a kill before it came by. Those of the last second or two.
    ended: Vec<(Pass, bool)>,
}

/// As many of them are kept.
const ENDED_MAX: usize = 4096;

struct Flight {
    pass: Pass,
    /// Set while the request's body still arrives: such a call is severed by a halt too.
    arriving: bool,
    waker: Option<Waker>,
    /// The upstream connection that carries it. A kill ends it here, since the call itself may not be polled for any time:
    /// its client may have stopped reading.
    way: Option<Way>,
    /// The client connection that waits for the answer, if it carries nothing else.
    client: Option<Rc<Peer>>,
    /// The worker's second in which the client last asked for a piece of the answer's body; `None` before that.
    asked: Option<u64>,
    /// The route's index.
    route: usize,
    /// Counted as severed.
    severed: bool,
    /// A census has counted it, and perhaps as severed.
    counted: bool,
    reported: bool,
}

/// By which way a call reaches its upstream.
pub enum Way {
    /// A connection that carries nothing else.
    Lane(Rc<Lane>),
    /// A stream of one that carries others.
    Strand(Rc<Strand>),
}

impl Way {
    /// Did the kernel take a byte of the call?
    fn sent(&self) -> bool {
        match self {
            Way::Lane(lane) => lane.sent(),
            Way::Strand(strand) => strand.sent(),
        }
    }

    fn cut_off(&self, denial: Denial) {
        match self {
            Way::Lane(lane) => lane.cut_off(denial),
            Way::Strand(strand) => strand.cut_off(denial),
        }
    }

    fn abandon(&self) {
        match self {
            Way::Lane(lane) => lane.abandon(),
            Way::Strand(strand) => strand.abandon(),
        }
    }
}

impl Flight {
    fn count_severed(&mut self, account: &Account) {
        if !std::mem::replace(&mut self.severed, true) {
            account.severed.up();
        }
    }
}

/// What a kill found in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Admitted calls of the killed scope that had not ended.
    pub in_flight: u64,
    /// Of these, the ones that end now instead of running out.
    pub severed: u64,
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Admitted; no byte has left.
    Waiting,
    /// The kernel took a byte of it.
    Sent,
    /// A gate refused it at the last look.
    Halted,
}

/// One admitted call. Dropping it ends the call: what was never sent counts as failed.
pub struct Call {
    worker: Rc<Worker>,
    route: usize,
    pass: Pass,
    /// By whose rules it was admitted, and by whose it ends.
    snapshot: Arc<Snapshot>,
    ticket: Option<Ticket>,
    /// What it holds until its end, once it was told how it went.
    held: Option<Held>,
    slot: usize,
    stage: Cell<Stage>,
    arriving: Cell<bool>,
    /// From when on the upstream's time counts: when the request began to leave, or the last of its body had come.
    asked_at: Cell<Mono>,
    /// What its answer says of its weight.
    settling: Option<Rc<Settling>>,
    /// What its client's request is told of it.
    course: Rc<Course>,
}

impl Call {
    /// A call that was just admitted on the route with this index.
    #[must_use]
    pub fn new(
        worker: Rc<Worker>,
        route: usize,
        snapshot: Arc<Snapshot>,
        pass: Pass,
        ticket: Ticket,
        client: Option<Rc<Peer>>,
        course: &Rc<Course>,
    ) -> Call {
        let account = worker.shard.account(route);
        account.in_flight.up();
        worker.shard.calls.up();
        let flight = Flight {
            pass,
            arriving: false,
            waker: None,
            way: None,
            client,
            asked: None,
            route,
            severed: false,
            counted: false,
            reported: false,
        };
        let slot = worker.flights.borrow_mut().slab.insert(flight);
        Call {
            worker,
            route,
            pass,
            snapshot,
            ticket: Some(ticket),
            held: None,
            slot,
            stage: Cell::new(Stage::Waiting),
            arriving: Cell::new(false),
            asked_at: Cell::new(Mono::ZERO),
            settling: None,
            course: Rc::clone(course),
        }
    }

    /// The same call, of which the answer says what it weighed.
    #[must_use]
    pub fn settled_by(mut self, settling: Option<Rc<Settling>>) -> Call {
        self.settling = settling;
        self
    }

    /// What the last look needs.
    #[must_use]
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// An upstream of the snapshot by which it was admitted.
    #[must_use]
    pub fn upstream(&self, index: usize) -> Option<&Arc<Upstream>> {
        self.snapshot.upstreams.get(index)
    }

    /// What a gate says against sending it now, if any does.
    #[must_use]
    pub fn refused(&self) -> Option<Denial> {
        let plane = self.worker.plane;
        plane.breaker.look(&self.pass, plane.clock.mono()).err()
    }

    /// The counters of the call's route.
    #[must_use]
    pub fn account(&self) -> &Account {
        self.worker.shard.account(self.route)
    }

    /// The kernel took the first byte; later calls change nothing.
    pub fn sent(&self) {
        if self.stage.get() == Stage::Waiting {
            let now = self.worker.plane.clock.mono();
            self.stage.set(Stage::Sent);
            self.asked_at.set(now);
            self.course.sent(now);
            self.account().in_flight.down();
            self.account().forwarded.up();
        }
    }

    /// Was a byte of it sent?
    #[must_use]
    pub fn was_sent(&self) -> bool {
        self.stage.get() == Stage::Sent
    }

    /// A gate refused it before its first byte.
    pub fn halted(&self) {
        if self.stage.get() == Stage::Waiting {
            self.stage.set(Stage::Halted);
            self.account().in_flight.down();
            self.account().halted.up();
        }
    }

    /// Says whether the request's body is still arriving.
    pub fn set_arriving(&self, arriving: bool) {
        if self.arriving.replace(arriving) != arriving
            && let Some(flight) = self.worker.flights.borrow_mut().slab.get_mut(self.slot)
        {
            flight.arriving = arriving;
            if !arriving && self.was_sent() {
                self.asked_at.set(self.worker.plane.clock.mono());
            }
        }
    }

    /// Says by which way it reaches its upstream, if by any.
    pub fn set_way(&self, way: Option<Way>) {
        if let Some(flight) = self.worker.flights.borrow_mut().slab.get_mut(self.slot) {
            flight.way = way;
        }
    }

    /// Says which endpoint it goes to, where anybody wants to know.
    pub fn goes_to(&self, endpoint: &Endpoint) {
        if self.worker.plane.sight.log.is_some()
            && let Some(notes) = self.course.notes()
        {
            notes.borrow_mut().sent_to(endpoint.label());
        }
    }

    /// A kill ends it after its first byte; counted once.
    pub fn count_severed(&self) {
        self.course.ends(Verdict::Severed);
        if let Some(flight) = self.worker.flights.borrow_mut().slab.get_mut(self.slot) {
            flight.count_severed(self.account());
        }
    }

    /// Where to wake the call should a kill end it.
    pub fn wake_by(&self, cx: &Context<'_>) {
        if let Some(flight) = self.worker.flights.borrow_mut().slab.get_mut(self.slot) {
            match &mut flight.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
        }
    }

    /// The client asks for a piece of the answer's body, and is to be woken there should a kill end the call.
    pub fn asked(&self, cx: &Context<'_>) {
        self.wake_by(cx);
        if let Some(flight) = self.worker.flights.borrow_mut().slab.get_mut(self.slot) {
            flight.asked = Some(self.worker.second.get());
        }
    }

    /// The client sends what is left of its request: it is not one that has stopped, though it may not read yet.
    pub fn is_busy(&self) {
        if let Some(flight) = self.worker.flights.borrow_mut().slab.get_mut(self.slot)
            && let Some(asked) = &mut flight.asked
        {
            *asked = self.worker.second.get();
        }
    }

    /// Wakes whoever waits for the answer.
    pub fn wake(&self) {
        if let Some(flight) = self.worker.flights.borrow_mut().slab.get_mut(self.slot)
            && let Some(waker) = flight.waker.take()
        {
            waker.wake();
        }
    }

    /// Is its outcome waited for by a gate on probation?
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.ticket.as_ref().is_some_and(Ticket::is_probe)
    }

    /// Must it end now? At *cut* everything must, at *halt* (and a trip) what still arrives from the client.
    #[must_use]
    pub fn severed(&self) -> Option<Denial> {
        let plane = self.worker.plane;
        if self.arriving.get() || plane.breaker.is_cut(&self.pass) {
            let denial = plane.breaker.look(&self.pass, plane.clock.mono()).err();
            if let Some(denial) = &denial {
                self.note_severed(denial);
            }
            return denial;
        }
        None
    }

    /// Tells whoever looks what it is that ends the call.
    pub fn note_severed(&self, denial: &Denial) {
        if let Some(notes) = self.course.notes() {
            notes.borrow_mut().severed(&self.snapshot, denial, &self.worker.plane.names);
        }
    }

    /// The head of the answer came, and whether it is a fault of the upstream. Gates and detectors hear of it at once. What the call holds in
    /// flight it holds until its end, since its answer may flow for hours.
    pub fn answered(&mut self, status: StatusCode, fault: bool) {
        let now = self.worker.plane.clock.mono();
        self.course.resume(now);
        let latency = now.since(self.asked_at.get());
        let slow = self.snapshot.plans.get(self.route).and_then(|plan| plan.slow);
        let outcome = match slow {
            _ if fault => Outcome::Fault,
            Some(slow) if latency > slow => Outcome::Slow,
            _ => Outcome::Good,
        };
        let class = if fault { status.as_u16() } else { 0 };
        self.tell(Settlement { outcome, weight: None, latency: Some(latency), class }, now);
    }

    /// There was no answer, by the upstream's fault. `class` is the status that the client is answered with.
    pub fn failed(&mut self, class: StatusCode) {
        let now = self.worker.plane.clock.mono();
        self.course.resume(now);
        // How long nothing came is a latency only where the whole of it was waited for.
        let waited = self.was_sent() && class == StatusCode::GATEWAY_TIMEOUT;
        let latency = waited.then(|| now.since(self.asked_at.get()));
        let outcome = Outcome::Fault;
        self.tell(Settlement { outcome, weight: None, latency, class: class.as_u16() }, now);
    }

    fn tell(&mut self, settlement: Settlement, now: Mono) {
        let Some(permit) = self.permit() else { return };
        let (moved, held) = permit.settle_early(settlement, now);
        self.held = held;
        if moved {
            self.worker.plane.nudge.notify_one();
        }
    }

    fn permit(&mut self) -> Option<Permit<'_>> {
        self.ticket.take()?.attach(self.worker.plane.breaker, &self.snapshot.policy).ok()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.stage.get() == Stage::Waiting {
            self.account().in_flight.down();
            self.account().failed.up();
        }
        let (plane, never_sent) = (self.worker.plane, !self.was_sent());
        let truth = self.settling.as_ref().and_then(|settling| {
            // What never left used nothing.
            if never_sent { Some(0) } else { settling.weight() }
        });
        if self.settling.is_some() && truth.is_none() {
            self.account().unsettled.up();
        }
        if let Some(held) = self.held.take() {
            // The policy is the one it was admitted by.
            let _ = held.end(plane.breaker, &self.snapshot.policy, truth, plane.clock.mono());
        }
        // Unsettled, it gives back its place in flight; what never left gives back all it was charged.
        match self.permit() {
            Some(permit) if never_sent => permit.give_back(plane.clock.mono()),
            permit => drop(permit),
        }
        self.worker.shard.calls.down();
        let mut flights = self.worker.flights.borrow_mut();
        let flight = flights.slab.try_remove(self.slot);
        let was_halted = self.stage.get() == Stage::Halted;
        if let Some(flight) = flight
            && ((flight.severed && !flight.reported) || (was_halted && !flight.counted))
            && flights.ended.len() < ENDED_MAX
        {
            flights.ended.push((flight.pass, flight.severed));
        }
    }
}

impl Flights {
    /// What ended a while ago was no kill's that is still being answered.
    pub fn forget_ended(&mut self) {
        self.ended.clear();
    }

    /// Ends calls whose client has not asked for more of the answer, nor taken any of what it asked for, since before the given
    /// second: it stopped reading, and must not hold an upstream connection for ever. A client that waits for the upstream has
    /// asked; that is another deadline.
    pub fn end_stalled(&mut self, since: u64) -> u64 {
        let mut ended = 0;
        for (_, flight) in &mut self.slab {
            let took = flight.client.as_ref().map_or(0, |client| client.moved.get());
            if flight.asked.is_some_and(|asked| asked.max(took) < since)
                && let Some(way) = flight.way.take()
            {
                ended += 1;
                way.abandon();
                if let Some(client) = &flight.client {
                    client.stalled.set(true);
                }
                if let Some(waker) = flight.waker.take() {
                    waker.wake();
                }
            }
        }
        ended
    }

    /// Counts what gates now refuse, cuts off the connections of calls that must end, and wakes all so that each learns of it.
    pub fn census(&mut self, worker: &Worker, now: Mono) -> Census {
        let breaker = worker.plane.breaker;
        let mut census = Census::default();
        for (_, flight) in &mut self.slab {
            let Err(denial) = breaker.look(&flight.pass, now) else { continue };
            census.in_flight += 1;
            flight.counted = true;
            if flight.arriving || breaker.is_cut(&flight.pass) {
                census.severed += 1;
                flight.reported = true;
                // What was not sent yet is refused by the last look.
                if let Some(way) = flight.way.take_if(|way| way.sent()) {
                    flight.count_severed(worker.shard.account(flight.route));
                    way.cut_off(denial);
                }
            }
            // It stays: another kill may find the call before it is asked for anything.
            if let Some(waker) = &flight.waker {
                waker.wake_by_ref();
            }
        }
        // A call may see the kill by itself, and be over before anybody counts.
        for (pass, was_severed) in self.ended.drain(..) {
            if breaker.look(&pass, now).is_err() {
                census.in_flight += 1;
                census.severed += u64::from(was_severed);
            }
        }
        census
    }
}
