//! The answer to a call: a verdict, the permit inside it, and the pass that the last look needs; it decides nothing.

use std::mem::ManuallyDrop;

use crate::breaker::Breaker;
use crate::counts::Count;
use crate::facts::{Cause, Denial, Outcome, Place};
use crate::policy::{Due, MAX_DIMENSIONS, NAMED, Policy, RouteRules};
use crate::scope::{KeyHash, Level};
use crate::time::{Mono, Span};

/// The answer to a call.
#[must_use]
#[derive(Debug)]
pub enum Verdict<'a> {
    /// It may pass.
    Allow(Permit<'a>),
    /// It may not.
    Deny(Denial),
}

/// Leave for one call. Settle it with the call's outcome; dropped unsettled, it gives back its probe and its place in
/// flight, and counts as neither good nor bad.
#[must_use]
pub struct Permit<'a> {
    pub(crate) breaker: &'a Breaker,
    pub(crate) policy: &'a Policy,
    pub(crate) route: &'a RouteRules,
    pub(crate) ticket: Ticket,
    pub(crate) shadowed: Option<Shadow>,
}

/// A denial that was let through, in two words: its place is known from the ticket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shadow {
    /// In nanoseconds; the largest number if none is known.
    wait: u64,
    cause: Cause,
    /// Which seat of the lineage.
    seat: u8,
    moved: bool,
    epoch: u16,
}

/// A permit without its borrows, for calls that outlive the place where they were admitted. It must be
/// [attached](Ticket::attach) again to end: lost, it keeps its place in flight for ever and its probe for a time.
#[must_use]
#[derive(Debug)]
pub struct Ticket {
    /// The policy's number.
    pub(crate) policy: u32,
    /// The route's number.
    pub(crate) route: u32,
    pub(crate) at: Mono,
    pub(crate) weight: u64,
    /// Bits of the limits that were charged: eight for each seat of the lineage.
    pub(crate) charged: u64,
    pub(crate) marks: Marks,
    pub(crate) due: Due,
    pub(crate) keys: KeySeats,
}

/// What a call holds whose answer goes on after it was settled ([`Permit::settle_early`]): places in flight, and a reservation of which
/// the true weight may come later. Lost, it keeps its places in flight for ever.
#[must_use]
#[derive(Debug)]
pub struct Held {
    ticket: Ticket,
    weight: Option<u64>,
}

/// What the gates of a call's lineage were when it passed, as one word, so that it is copied as one: from the low end 16 bits of epoch
/// for global, group and route, eight of the seats that gave a probe, seven of the seats in shadow mode, one of class *reducing*.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks(u64);

/// How a call ended, with all that is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// How it went.
    pub outcome: Outcome,
    /// Its true weight, where the one it was admitted with was a guess. What was reserved too much is given back as far
    /// as time has not forgiven it yet; what was too little is charged in full.
    pub weight: Option<u64>,
    /// How long it took.
    pub latency: Option<Span>,
    /// The class of its fault, in the embedder's numbers: a status code, a reject reason. 0 says nothing.
    pub class: u16,
}

/// What the last look needs: the lineage's gates, the epochs they had, and the class.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    pub(crate) reducing: bool,
    /// Global, group, route.
    pub(crate) named: [NamedSeat; NAMED],
    pub(crate) keys: KeySeats,
}

/// The keys of a call, in the order of `Policy::dimensions`.
pub(crate) type KeySeats = [Option<KeySeat>; MAX_DIMENSIONS];

#[derive(Clone, Copy, Debug)]
pub(crate) struct NamedSeat {
    pub(crate) cell: u32,
    pub(crate) epoch: u16,
    pub(crate) shadow: bool,
}

/// A key of a call: two words, so that it is copied as two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeySeat {
    pub(crate) key: KeyHash,
    /// From the low end: 32 bits of the cell, 16 of the epoch, 8 of the table, one of shadow.
    rest: u64,
}

/// No table is this large: memory for it would be refused.
pub(crate) const NO_CELL: u32 = u32::MAX;

const _: () = assert!(size_of::<KeySeats>() == 64, "a pass is copied at every send");

impl Shadow {
    pub(crate) fn of(denial: &Denial) -> Shadow {
        let seat = match (denial.place.level, denial.place.key) {
            (Level::Global, _) => 0,
            (Level::Group, _) => 1,
            (Level::Route, _) => 2,
            (Level::Key, key) => key.map_or(u8::MAX, |(position, _)| position.saturating_add(3)),
        };
        let Denial { wait, cause, moved, epoch, .. } = *denial;
        Shadow { wait: wait.map_or(u64::MAX, Span::as_nanos), cause, seat, moved, epoch }
    }
}

impl Marks {
    #[inline]
    pub(crate) const fn new(epochs: [u16; NAMED], probes: u8, shadow: u8, reducing: bool) -> Marks {
        let [global, group, own] = epochs;
        let epochs = global as u64 | (group as u64) << 16 | (own as u64) << 32;
        Marks(epochs | (probes as u64) << 48 | (shadow as u64) << 56 | (reducing as u64) << 63)
    }

    #[expect(clippy::cast_possible_truncation, reason = "16 bits of the word are wanted")]
    pub(crate) const fn epochs(self) -> [u16; NAMED] {
        [self.0 as u16, (self.0 >> 16) as u16, (self.0 >> 32) as u16]
    }

    /// Bits of the seats that gave a probe.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "8 bits of the word are wanted")]
    pub(crate) const fn probes(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// Whether a seat was in shadow mode.
    pub(crate) const fn is_shadow(self, seat: u8) -> bool {
        self.0 >> 56 & 0x7f & 1 << seat != 0
    }

    pub(crate) const fn is_reducing(self) -> bool {
        self.0 >> 63 == 1
    }
}

impl KeySeat {
    #[inline]
    pub(crate) const fn new(
        key: KeyHash,
        cell: u32,
        table: u8,
        epoch: u16,
        shadow: bool,
    ) -> KeySeat {
        let rest =
            cell as u64 | (epoch as u64) << 32 | (table as u64) << 48 | (shadow as u64) << 56;
        KeySeat { key, rest }
    }

    /// `NO_CELL` for a key that had none of its own.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are wanted")]
    pub(crate) const fn cell(self) -> u32 {
        self.rest as u32
    }

    #[expect(clippy::cast_possible_truncation, reason = "16 bits of the word are wanted")]
    pub(crate) const fn epoch(self) -> u16 {
        (self.rest >> 32) as u16
    }

    #[expect(clippy::cast_possible_truncation, reason = "8 bits of the word are wanted")]
    pub(crate) const fn table(self) -> u8 {
        (self.rest >> 48) as u8
    }

    pub(crate) const fn shadow(self) -> bool {
        self.rest >> 56 != 0
    }
}

impl Settlement {
    /// An outcome, and nothing more.
    #[must_use]
    pub const fn of(outcome: Outcome) -> Settlement {
        Settlement { outcome, weight: None, latency: None, class: 0 }
    }
}

impl<'a> Verdict<'a> {
    /// The permit, for callers that pass a denial on.
    ///
    /// # Errors
    /// The denial.
    pub fn permit(self) -> Result<Permit<'a>, Denial> {
        match self {
            Verdict::Allow(permit) => Ok(permit),
            Verdict::Deny(denial) => Err(denial),
        }
    }
}

impl Verdict<'_> {
    /// Whether the call may pass. The permit lives no longer than the verdict: asked of a verdict that is not kept, it has
    /// already ended unsettled when the answer is there.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Verdict::Allow(_))
    }
}

impl<'a> Permit<'a> {
    /// What the last look needs.
    #[must_use]
    pub fn pass(&self) -> Pass {
        // By another breaker's policy it leads to no gate, and the last look denies.
        let ours = self.breaker.owns(self.policy);
        let cells = if ours { self.route.cells } else { [NO_CELL; NAMED] };
        let marks = self.ticket.marks;
        let mut named = [NamedSeat { cell: 0, epoch: 0, shadow: false }; NAMED];
        for ((bit, seat), (cell, epoch)) in
            (0..).zip(&mut named).zip(cells.into_iter().zip(marks.epochs()))
        {
            *seat = NamedSeat { cell, epoch, shadow: marks.is_shadow(bit) };
        }
        Pass { reducing: marks.is_reducing(), named, keys: self.ticket.keys }
    }

    /// Whether a gate on probation waits for how the call goes.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.ticket.marks.probes() != 0
    }

    /// Counts how the call went; true if that moved a gate: nudge the sweeper.
    ///
    /// On probation `Good` brings the gate nearer to armed, `Slow` and `Fault` trip it again. An answer from
    /// an earlier probation moves nothing.
    #[expect(clippy::must_use_candidate, reason = "settling is the point; the answer is a hint")]
    #[inline(always)]
    pub fn settle(self, outcome: Outcome, now: Mono) -> bool {
        self.settle_as(Settlement::of(outcome), now)
    }

    /// As [`Permit::settle`], with all that is known of the call.
    #[expect(clippy::must_use_candidate, reason = "settling is the point; the answer is a hint")]
    #[inline(always)]
    pub fn settle_as(self, settlement: Settlement, now: Mono) -> bool {
        // Nothing is written to it, and the ticket is handed on by value, so that the commonest permit is never
        // copied.
        let ended = ManuallyDrop::new(self);
        match ended.ticket.due {
            Due::Nothing => false,
            Due::Count => {
                ended.route.count(Count::Ended(settlement.outcome));
                false
            }
            Due::All => {
                let ticket = ended.ticket.copied();
                ended.breaker.settle(ended.policy, ended.route, ticket, settlement, now)
            }
        }
    }

    /// As [`Permit::settle_as`], for a call that is not at its end: an answer that has begun and may flow for hours. How it went is
    /// counted and told to gates on probation and to detectors now, since they must not wait for the last byte. Its places in flight stay taken,
    /// and a reservation stays as it is, until [`Held::end`]. `None`: nothing is held. True: a gate moved, so nudge the sweeper.
    #[must_use]
    pub fn settle_early(self, settlement: Settlement, now: Mono) -> (bool, Option<Held>) {
        let ended = ManuallyDrop::new(self);
        match ended.ticket.due {
            Due::Nothing => (false, None),
            Due::Count => {
                ended.route.count(Count::Ended(settlement.outcome));
                (false, None)
            }
            Due::All => {
                let (policy, route) = (ended.policy, ended.route);
                let ticket = ended.ticket.copied();
                let moved = ended.breaker.tell(policy, route, &ticket, &settlement, now);
                let holds = ticket.charged & route.hears != 0;
                (moved, holds.then_some(Held { ticket, weight: settlement.weight }))
            }
        }
    }

    /// The first denial that shadow mode or a candidate limit let through. If it says `moved`, nudge the sweeper.
    #[must_use]
    pub fn shadowed(&self) -> Option<Denial> {
        let Shadow { wait, cause, seat, moved, epoch } = self.shadowed?;
        let place = if let Some(&index) = self.route.cells.get(usize::from(seat)) {
            let level = [Level::Global, Level::Group, Level::Route].get(usize::from(seat));
            Place { level: *level?, index, key: None }
        } else {
            let position = usize::from(seat).checked_sub(NAMED)?;
            let key = self.ticket.keys.get(position).copied().flatten()?;
            let index = u32::from(key.table());
            Place { level: Level::Key, index, key: Some((u8::try_from(position).ok()?, key.key)) }
        };
        let wait = Some(Span::from_nanos(wait)).filter(|wait| wait.as_nanos() != u64::MAX);
        Some(Denial { place, cause, wait, moved, epoch })
    }

    /// The permit without its borrows.
    pub fn detach(self) -> Ticket {
        ManuallyDrop::new(self).ticket.copied()
    }
}

impl Ticket {
    /// The permit again.
    ///
    /// # Errors
    /// The ticket, if `policy` is not the one that it was admitted by: keep that until its calls have ended.
    pub fn attach<'a>(
        self,
        breaker: &'a Breaker,
        policy: &'a Policy,
    ) -> Result<Permit<'a>, Ticket> {
        let known = self.policy == policy.number && breaker.owns(policy);
        match policy.route_at(self.route).filter(|_| known) {
            Some(route) => Ok(Permit { breaker, policy, route, ticket: self, shadowed: None }),
            None => Err(self),
        }
    }

    /// Whether a gate on probation waits for how the call goes.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.marks.probes() != 0
    }

    /// The weight that the call was admitted with, in the unit of its limits; `u64::MAX`: none was said.
    #[must_use]
    pub const fn weight(&self) -> u64 {
        self.weight
    }

    #[inline(always)]
    const fn copied(&self) -> Ticket {
        Ticket { ..*self }
    }
}

impl Held {
    /// The call is at its end, whatever became of it: gives back its places in flight, and settles the true weight, if it is told here or
    /// was told when the call was settled. What is held comes back if `policy` is not the one that the call was admitted by: keep that until
    /// its calls have ended.
    #[must_use]
    pub fn end(
        self,
        breaker: &Breaker,
        policy: &Policy,
        weight: Option<u64>,
        now: Mono,
    ) -> Option<Held> {
        let known = self.ticket.policy == policy.number && breaker.owns(policy);
        let Some(route) = policy.route_at(self.ticket.route).filter(|_| known) else {
            return Some(self);
        };
        breaker.give_back(policy, route, &self.ticket, weight.or(self.weight), now);
        None
    }
}

impl Drop for Permit<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        match self.ticket.due {
            Due::Nothing => {}
            Due::Count => self.route.count(Count::Dropped),
            Due::All => self.breaker.abandon(self.policy, self.route, self.ticket.copied()),
        }
    }
}

impl std::fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit")
            .field("ticket", &self.ticket)
            .field("shadowed", &self.shadowed)
            .finish_non_exhaustive()
    }
}

impl Permit<'_> {
    /// The call is not made after all: gives back what it was charged, as far as it can be, where a drop keeps the
    /// charges of what may have gone out. Budgets get all of it back, rates and weighted windows what time has not
    /// forgiven; a window of calls keeps it, and so do limits of *offered* calls. It counts as dropped.
    pub fn give_back(self, now: Mono) {
        self.retract(Count::Dropped, now);
    }

    pub(crate) fn retract(self, what: Count, now: Mono) {
        let ended = ManuallyDrop::new(self);
        // A reducing call is counted nowhere, unless it is refused.
        if ended.ticket.marks.is_reducing() && matches!(what, Count::Dropped) {
            return;
        }
        let ticket = ended.ticket.copied();
        ended.breaker.retract(ended.policy, ended.route, ticket, what, now);
    }
}
