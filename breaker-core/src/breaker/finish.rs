//! What the end of a call gives back and tells: places in flight, true weights, probes, counts. It refuses nothing.

use super::{Breaker, count};
use crate::charges::Row;
use crate::counts::Count;
use crate::detect::OnFind;
use crate::facts::{By, Outcome};
use crate::gate::Input;
use crate::keys::{Ordered, Rows, Table, Which};
use crate::limit::Limit;
use crate::permit::{KeySeat, NO_CELL, Settlement, Ticket};
use crate::policy::{
    Counting, Ending, LimitRule, MAX_LIMITS, Memory, NAMED, Policy, RouteRules, Unit, limit_bit,
};
use crate::scope::KeyHash;
use crate::tally::Finish;
use crate::time::Mono;

impl Breaker {
    /// A call ended, and how; true if a gate moved.
    #[inline(never)]
    pub(crate) fn settle(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: Ticket,
        settlement: Settlement,
        now: Mono,
    ) -> bool {
        let (ticket, settlement) = (&ticket, &settlement);
        if ticket.charged & route.hears != 0 {
            self.give_back(policy, route, ticket, settlement.weight, now);
        }
        self.tell(policy, route, ticket, settlement, now)
    }

    /// Counts how a call went, and tells gates on probation and detectors; true if a gate moved. Nothing is given back.
    pub(crate) fn tell(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: &Ticket,
        settlement: &Settlement,
        now: Mono,
    ) -> bool {
        route.count(Count::Ended(settlement.outcome));
        let mut moved = false;
        if ticket.marks.probes() != 0 {
            moved =
                self.settle_probes(policy, route, ticket, now, |epoch| match settlement.outcome {
                    Outcome::Good => Input::ProbePassed(epoch),
                    Outcome::Slow | Outcome::Fault => Input::ProbeFailed(epoch),
                });
        }
        // Another breaker's policy lets a call pass by its own memory alone; its gates are not ours to trip.
        if !route.endings.is_empty() && self.owns(policy) {
            moved |= self.tell_endings(route, ticket, settlement, now);
        }
        moved
    }

    /// A permit was dropped unsettled: what it held is given back, and nothing is said of the call.
    #[inline(never)]
    pub(crate) fn abandon(&self, policy: &Policy, route: &RouteRules, ticket: Ticket) {
        let ticket = &ticket;
        route.count(Count::Dropped);
        // A place in flight and a probe that are given back move no deadline, so no time is needed.
        if ticket.charged & route.hears != 0 {
            self.give_back(policy, route, ticket, None, ticket.at);
        }
        if ticket.marks.probes() != 0 {
            self.settle_probes(policy, route, ticket, ticket.at, Input::ProbeAbandoned);
        }
    }

    /// A call was admitted and is not made after all, so whatever can be undone is; `what` became of it is counted. What
    /// counts *offered* calls has counted it rightly.
    #[inline(never)]
    pub(crate) fn retract(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: Ticket,
        what: Count,
        now: Mono,
    ) {
        let ticket = &ticket;
        route.count(what);
        self.each_charge(policy, route, ticket, ticket.charged, |charge| match charge {
            Charge { at: At::There(row), limit: limit @ Limit::InFlight(_), reserved, .. } => {
                row.give_back(limit, reserved);
            }
            Charge { at: At::There(row), limit, reserved, rule }
                if rule.spec.of == Counting::Admitted =>
            {
                row.settle(limit, reserved, 0, ticket.at, now);
            }
            _ => {}
        });
        self.land(policy, route, ticket);
        if ticket.marks.probes() != 0 {
            self.settle_probes(policy, route, ticket, now, Input::ProbeAbandoned);
        }
    }

    /// Gives back places in flight, and what was reserved beyond the true weight.
    pub(crate) fn give_back(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: &Ticket,
        truth: Option<u64>,
        now: Mono,
    ) {
        let told = ticket.charged & route.hears;
        self.each_charge(policy, route, ticket, told, |Charge { at, limit, reserved, rule }| {
            let truth = truth.filter(|_| rule.spec.by == Unit::Weight).unwrap_or(reserved);
            match (at, limit) {
                (At::There(row), Limit::InFlight(_)) => row.give_back(limit, reserved),
                (At::There(row), _) => row.settle(limit, reserved, truth, ticket.at, now),
                // A refund would be a stranger's; a debt is its own, and its own way out of it must not be to lose its cell.
                (At::Moved { table, key, rows }, _) if truth > reserved => {
                    let settle = |cell: usize| {
                        if let Some(row) = table.row(rows, cell) {
                            row.settle(limit, reserved, truth, ticket.at, now);
                        }
                    };
                    if table.hold(key, now, settle).is_none() {
                        settle(table.overflow_cell());
                    }
                }
                (At::Moved { .. }, _) => {}
            }
        });
        self.land(policy, route, ticket);
    }

    /// The limits of `told` bits, and their earlier selves: where each was charged, and how much.
    fn each_charge<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        ticket: &Ticket,
        told: u64,
        mut end: impl FnMut(Charge<'a>),
    ) {
        for (at, rules) in policy.seats(route) {
            if told >> (u32::from(at) * 8) & 0xff == 0 {
                continue;
            }
            let Some((table, cell, key)) = self.seat_rows(policy, route, ticket, usize::from(at))
            else {
                continue;
            };
            let lost = table.zip(key).filter(|(table, seat)| has_lost_cell(table, *seat));
            for (index, rule) in (0..).zip(rules.limits_of(key.map(|seat| seat.key))) {
                if told & limit_bit(at, index) == 0 {
                    continue;
                }
                let weighs = rule.spec.by == Unit::Weight;
                let reserved = if weighs { ticket.weight } else { 1 };
                let selves = std::iter::once((rule.limit, &rule.memory))
                    .chain(rule.before.iter().map(|before| (before.limit, &before.memory)));
                for (limit, memory) in selves {
                    let at = match (lost, memory) {
                        // A place in flight stays with the slot in which it was taken, whoever has that.
                        (Some((table, seat)), Memory::Keys(rows))
                            if !matches!(limit, Limit::InFlight(_)) =>
                        {
                            Some(At::Moved { table, key: seat.key, rows })
                        }
                        _ => memory.row(table, cell).map(At::There),
                    };
                    if let Some(at) = at {
                        end(Charge { at, limit, reserved, rule });
                    }
                }
            }
        }
    }

    /// Places in flight that were taken in a shared slot are given back: its keys may have slots of their own again.
    fn land(&self, policy: &Policy, route: &RouteRules, ticket: &Ticket) {
        for (at, rules) in policy.seats(route).skip(NAMED) {
            let Some((Some(table), _, Some(seat))) =
                self.seat_rows(policy, route, ticket, usize::from(at))
            else {
                continue;
            };
            let mut limits = (0..).zip(rules.limits_of(Some(seat.key)));
            let flew = seat.cell() == NO_CELL
                && limits.any(|(index, rule)| {
                    ticket.charged & limit_bit(at, index) != 0 && rule.flies_in_table()
                });
            if flew {
                table.land(seat.key);
            }
        }
    }

    /// Where the limits of a seat keep their words: table and slot of a key.
    fn seat_rows<'a>(
        &self,
        policy: &'a Policy,
        route: &RouteRules,
        ticket: &Ticket,
        at: usize,
    ) -> Option<(Option<&'a Table>, usize, Option<KeySeat>)> {
        let Some(position) = at.checked_sub(NAMED) else { return Some((None, 0, None)) };
        let seat = ticket.keys.get(position).copied().flatten()?;
        let rules = policy.dimensions.get(*route.dimensions.get(position)?)?;
        // The policy's own, as when it was charged.
        let table = &*rules.keys;
        let cell = usize::try_from(seat.cell()).ok().filter(|cell| *cell < table.cells());
        Some((Some(table), cell.unwrap_or(table.overflow_cell()), Some(seat)))
    }

    fn settle_probes(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: &Ticket,
        now: Mono,
        input: impl Fn(u16) -> Input,
    ) -> bool {
        let (mut moved, epochs) = (false, ticket.marks.epochs());
        for (at, rules) in
            policy.seats(route).filter(|(at, _)| ticket.marks.probes() >> at & 1 == 1)
        {
            let at = usize::from(at);
            let step = if let Some(epoch) = epochs.get(at) {
                let cell = route.cells.get(at).copied().unwrap_or_default();
                self.step_named(cell, input(*epoch), &rules.trip, now)
            } else {
                ticket.keys.get(at - NAMED).copied().flatten().and_then(|seat| {
                    let table = self.table(usize::from(seat.table()))?;
                    table.step(count(seat.cell()), input(seat.epoch()), &rules.trip, now)
                })
            };
            moved |= step.is_some_and(|moved| moved.before.epoch() != moved.after.epoch());
        }
        moved
    }

    /// Tells the detectors of the lineage how a call ended, and trips whom they name.
    fn tell_endings(
        &self,
        route: &RouteRules,
        ticket: &Ticket,
        settlement: &Settlement,
        now: Mono,
    ) -> bool {
        let Settlement { outcome, latency, class, .. } = *settlement;
        let finish = Finish { outcome, latency, class };
        let mut moved = false;
        for ending in &route.endings {
            let (row, key) = match &ending.keys {
                None => (0, None),
                Some(table) => {
                    let position = usize::from(ending.seat).checked_sub(NAMED);
                    let seat = position.and_then(|at| ticket.keys.get(at).copied().flatten());
                    // Who shared a cell is never judged by it, and who lost his is not judged by the next one's.
                    let kept = |seat: &KeySeat| table.tag(count(seat.cell())) == Some(seat.key);
                    let Some(seat) = seat.filter(kept) else { continue };
                    (count(seat.cell()), Some((&**table, seat)))
                }
            };
            if let Some(found) = ending.tally.finished(row, &finish, now)
                && found.on_find == OnFind::Trip
            {
                moved |= self.trip_found(route, ending, key, found.detector, now);
            }
        }
        moved
    }

    fn trip_found(
        &self,
        route: &RouteRules,
        ending: &Ending,
        key: Option<(&Table, KeySeat)>,
        detector: u8,
        now: Mono,
    ) -> bool {
        let input = Input::Trip(By::Detector(detector));
        if let Some((table, seat)) = key {
            let done = table.order(seat.key, input, &ending.trip, now, Which::Known);
            return matches!(done, Ordered::Done(_, Some(_)));
        }
        let cell = route.cells.get(usize::from(ending.seat)).copied();
        cell.and_then(|cell| self.step_named(cell, input, &ending.trip, now)).is_some()
    }
}

/// What a call was charged: by which limit or earlier self of one, and how much.
struct Charge<'a> {
    at: At<'a>,
    limit: Limit,
    reserved: u64,
    rule: &'a LimitRule,
}

/// Where a charge is now.
enum At<'a> {
    /// Where it was made.
    There(Row<'a>),
    /// With a key that lost the slot in which it was made.
    Moved { table: &'a Table, key: KeyHash, rows: &'a Rows },
}

/// Whether a key's cell is another's by now.
fn has_lost_cell(table: &Table, seat: KeySeat) -> bool {
    seat.cell() != NO_CELL && table.tag(count(seat.cell())) != Some(seat.key)
}

const _: () = assert!(MAX_LIMITS == 8, "a byte of bits for each seat");
