//! What the end of a call gives back and tells: places in flight, true weights, probes, counts. It refuses nothing.

use super::{Breaker, count};
use crate::charges::Row;
use crate::counts::Count;
use crate::detect::OnFind;
use crate::facts::{By, Outcome};
use crate::gate::Input;
use crate::keys::{Ordered, Table, Which};
use crate::limit::Limit;
use crate::permit::{KeySeat, NO_CELL, Settlement, Ticket};
use crate::policy::{
    Counting, LimitRule, MAX_LIMITS, Memory, NAMED, Policy, RouteRules, Rules, Unit, limit_bit,
};
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
        route.count(Count::Ended(settlement.outcome));
        if ticket.charged & route.hears != 0 {
            self.give_back(policy, route, ticket, settlement.weight, now);
        }
        let mut moved = false;
        if ticket.probes != 0 {
            moved =
                self.settle_probes(policy, route, ticket, now, |epoch| match settlement.outcome {
                    Outcome::Good => Input::ProbePassed(epoch),
                    Outcome::Slow | Outcome::Fault => Input::ProbeFailed(epoch),
                });
        }
        if route.tallies {
            moved |= self.tell_tallies(policy, route, ticket, settlement, now);
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
        if ticket.probes != 0 {
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
        self.each_charge(policy, route, ticket, ticket.charged, |charge, rule, reserved| {
            let (limit, row) = charge;
            match limit {
                Limit::InFlight(_) => row.give_back(limit, reserved),
                _ if rule.spec.of == Counting::Admitted => {
                    row.settle(limit, reserved, 0, ticket.at, now);
                }
                _ => {}
            }
        });
        if ticket.probes != 0 {
            self.settle_probes(policy, route, ticket, now, Input::ProbeAbandoned);
        }
    }

    fn give_back(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: &Ticket,
        truth: Option<u64>,
        now: Mono,
    ) {
        let told = ticket.charged & route.hears;
        self.each_charge(policy, route, ticket, told, |(limit, row), rule, reserved| {
            match (limit, truth) {
                (Limit::InFlight(_), _) => row.give_back(limit, reserved),
                (_, Some(truth)) if rule.spec.by == Unit::Weight && truth != reserved => {
                    row.settle(limit, reserved, truth, ticket.at, now);
                }
                _ => {}
            }
        });
        if let Some(truth) = truth.filter(|truth| *truth > ticket.weight) {
            self.charge_lost(policy, route, ticket, truth, now);
        }
    }

    /// Charges what a call weighed above its guess where its key has its cell by now, if it lost the one that it had: its own way
    /// out of a debt must not be to lose it.
    fn charge_lost(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: &Ticket,
        truth: u64,
        now: Mono,
    ) {
        for (at, rules) in policy.seats(route) {
            let rows = self.seat_rows(policy, route, ticket, usize::from(at));
            let Some((Some(table), _, Some(seat))) = rows else { continue };
            if !has_lost_cell(table, seat) {
                continue;
            }
            for (index, rule) in (0..).zip(rules.limits_of(Some(seat.key))) {
                let bit = limit_bit(at, index);
                if rule.spec.by != Unit::Weight || ticket.charged & route.hears & bit == 0 {
                    continue;
                }
                let selves = std::iter::once((rule.limit, &rule.memory))
                    .chain(rule.before.iter().map(|before| (before.limit, &before.memory)));
                for (limit, memory) in selves {
                    let settle = |cell: usize| {
                        if let (Memory::Keys(_), Some(row)) =
                            (memory, memory.row(Some(table), cell))
                        {
                            row.settle(limit, ticket.weight, truth, ticket.at, now);
                        }
                    };
                    if table.hold(seat.key, now, settle).is_none() {
                        settle(table.overflow_cell());
                    }
                }
            }
        }
    }

    /// The limits of `told` bits, and their earlier selves: where each was charged, and how much.
    fn each_charge(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: &Ticket,
        told: u64,
        mut end: impl FnMut((Limit, Row<'_>), &LimitRule, u64),
    ) {
        for (at, rules) in policy.seats(route) {
            if told >> (u32::from(at) * 8) & 0xff == 0 {
                continue;
            }
            let Some((table, cell, key)) = self.seat_rows(policy, route, ticket, usize::from(at))
            else {
                continue;
            };
            let lost = table.zip(key).is_some_and(|(table, seat)| has_lost_cell(table, seat));
            for (index, rule) in (0..).zip(rules.limits_of(key.map(|seat| seat.key))) {
                if told & limit_bit(at, index) == 0 {
                    continue;
                }
                let weighs = rule.spec.by == Unit::Weight;
                let reserved = if weighs { ticket.weight } else { 1 };
                let selves = std::iter::once((rule.limit, &rule.memory))
                    .chain(rule.before.iter().map(|before| (before.limit, &before.memory)));
                for (limit, memory) in selves {
                    // Where the slot has another tenant by now, a place in flight stayed with the slot and is given
                    // back there; a refund would be a stranger's.
                    let shared = lost && matches!(memory, Memory::Keys(_));
                    if shared && !matches!(limit, Limit::InFlight(_)) {
                        continue;
                    }
                    let Some(row) = memory.row(table, cell) else { continue };
                    end((limit, row), rule, reserved);
                }
            }
        }
    }

    /// Where the limits of a seat keep their words: table and slot of a key.
    fn seat_rows<'a>(
        &'a self,
        policy: &Policy,
        route: &RouteRules,
        ticket: &Ticket,
        at: usize,
    ) -> Option<(Option<&'a Table>, usize, Option<KeySeat>)> {
        let Some(position) = at.checked_sub(NAMED) else { return Some((None, 0, None)) };
        let seat = ticket.keys.get(position).copied().flatten()?;
        let rules = policy.dimensions.get(*route.dimensions.get(position)?)?;
        let table = self.table(count(rules.table))?;
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
        let mut moved = false;
        for (at, rules) in policy.seats(route).filter(|(at, _)| ticket.probes >> at & 1 == 1) {
            let at = usize::from(at);
            let step = if let Some(epoch) = ticket.epochs.get(at) {
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
    fn tell_tallies(
        &self,
        policy: &Policy,
        route: &RouteRules,
        ticket: &Ticket,
        settlement: &Settlement,
        now: Mono,
    ) -> bool {
        let mut moved = false;
        for (at, rules) in policy.seats(route) {
            let Some(tally) = rules.tally.as_ref().filter(|_| rules.hears_ends(at)) else {
                continue;
            };
            let Some((table, cell, key)) = self.seat_rows(policy, route, ticket, usize::from(at))
            else {
                continue;
            };
            // Who shared a cell is never judged by it, and who lost his is not judged by the next one's.
            if key.is_some_and(|key| key.cell() == NO_CELL)
                || table.zip(key).is_some_and(|(table, key)| has_lost_cell(table, key))
            {
                continue;
            }
            let Settlement { outcome, latency, class, .. } = *settlement;
            let finish = Finish { outcome, latency, class };
            let Some(found) = tally.finished(cell, &finish, now) else { continue };
            if found.on_find != OnFind::Trip {
                continue;
            }
            moved |=
                self.trip_found(route, rules, usize::from(at), table, key, found.detector, now);
        }
        moved
    }

    #[expect(clippy::too_many_arguments, reason = "a seat's parts, known one by one here")]
    fn trip_found(
        &self,
        route: &RouteRules,
        rules: &Rules,
        at: usize,
        table: Option<&Table>,
        key: Option<KeySeat>,
        detector: u8,
        now: Mono,
    ) -> bool {
        let input = Input::Trip(By::Detector(detector));
        match (table, key) {
            (Some(table), Some(seat)) => {
                let done = table.order(seat.key, input, &rules.trip, now, Which::Known);
                matches!(done, Ordered::Done(_, Some(_)))
            }
            _ => {
                let cell = route.cells.get(at).copied();
                cell.and_then(|cell| self.step_named(cell, input, &rules.trip, now)).is_some()
            }
        }
    }
}

/// Whether a key's cell is another's by now.
fn has_lost_cell(table: &Table, seat: KeySeat) -> bool {
    seat.cell() != NO_CELL && table.tag(count(seat.cell())) != Some(seat.key)
}

const _: () = assert!(MAX_LIMITS == 8, "a byte of bits for each seat");
