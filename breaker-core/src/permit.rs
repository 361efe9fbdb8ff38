//! The answer to a call: a verdict, the permit inside it, and the pass that the last look needs; it decides nothing.

use crate::breaker::Breaker;
use crate::facts::{Denial, Outcome};
use crate::policy::{MAX_DIMENSIONS, NAMED, Policy, RouteRules};
use crate::scope::KeyHash;
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
    pub(crate) shadowed: Option<Denial>,
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
    pub(crate) epochs: [u16; NAMED],
    /// Bits of the seats that gave a probe.
    pub(crate) probes: u8,
    /// Bits of the seats in shadow mode.
    pub(crate) shadow: u8,
    pub(crate) reducing: bool,
    /// Whether anything hears how the call ends.
    pub(crate) due: bool,
    pub(crate) keys: KeySeats,
}

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

impl Verdict<'_> {
    /// Whether the call may pass.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Verdict::Allow(_))
    }
}

impl<'a> Permit<'a> {
    /// What the last look needs.
    #[must_use]
    pub fn pass(&self) -> Pass {
        let cells = self.route.cells;
        let mut named = [NamedSeat { cell: 0, epoch: 0, shadow: false }; NAMED];
        for ((bit, seat), (cell, epoch)) in
            (0..).zip(&mut named).zip(cells.into_iter().zip(self.ticket.epochs))
        {
            *seat = NamedSeat { cell, epoch, shadow: self.ticket.shadow >> bit & 1 == 1 };
        }
        Pass { reducing: self.ticket.reducing, named, keys: self.ticket.keys }
    }

    /// Whether a gate on probation waits for how the call goes.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.ticket.probes != 0
    }

    /// Counts how the call went; true if that moved a gate: nudge the sweeper.
    ///
    /// On probation `Good` brings the gate nearer to armed, `Slow` and `Fault` trip it again. An answer from
    /// an earlier probation moves nothing.
    #[expect(clippy::must_use_candidate, reason = "settling is the point; the answer is a hint")]
    #[inline]
    pub fn settle(self, outcome: Outcome, now: Mono) -> bool {
        self.settle_as(Settlement::of(outcome), now)
    }

    /// As [`Permit::settle`], with all that is known of the call.
    #[expect(clippy::must_use_candidate, reason = "settling is the point; the answer is a hint")]
    #[inline]
    pub fn settle_as(mut self, settlement: Settlement, now: Mono) -> bool {
        if !std::mem::take(&mut self.ticket.due) {
            return false;
        }
        self.breaker.settle(self.policy, self.route, &self.ticket, &settlement, now)
    }

    /// The first denial that shadow mode or a candidate limit let through. If it says `moved`, nudge the sweeper.
    #[must_use]
    pub const fn shadowed(&self) -> Option<&Denial> {
        self.shadowed.as_ref()
    }

    /// The permit without its borrows.
    pub fn detach(mut self) -> Ticket {
        let due = std::mem::take(&mut self.ticket.due);
        Ticket { due, ..self.ticket.copied() }
    }
}

impl Ticket {
    /// The permit again; `None` if `policy` is not the one that it was admitted by, with the ticket lost.
    #[must_use]
    pub fn attach<'a>(self, breaker: &'a Breaker, policy: &'a Policy) -> Option<Permit<'a>> {
        let route = policy.route_at(self.route).filter(|_| self.policy == policy.number)?;
        Some(Permit { breaker, policy, route, ticket: self, shadowed: None })
    }

    /// Whether a gate on probation waits for how the call goes.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.probes != 0
    }

    const fn copied(&self) -> Ticket {
        Ticket { ..*self }
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.ticket.due {
            self.breaker.abandon(self.policy, self.route, &self.ticket);
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
