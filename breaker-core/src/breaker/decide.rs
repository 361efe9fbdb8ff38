//! The decision on a call, in three passes: look, charge, probe. It takes no order and changes no rule.

use super::{Breaker, Call, NOWHERE, UNWEIGHED, count, denial};
use crate::cell::{Gate, Moved};
use crate::charges::{Row, Taken};
use crate::counts::Count;
use crate::detect::Found;
use crate::facts::{By, Cause, Class, Denial, Mode, Place};
use crate::gate::{Input, Look, Word};
use crate::keys::{Foreseen, Newcomer, Ordered, Table, Which};
use crate::limit::Limit;
use crate::permit::{KeySeat, KeySeats, Marks, NO_CELL, Permit, Shadow, Ticket, Verdict};
use crate::policy::{
    Before, Counting, Due, LimitRule, MAX_DIMENSIONS, MAX_LIMITS, Memory, NAMED, OnBreach, Policy,
    RouteRules, Rules, Unit, limit_bit,
};
use crate::scope::{KeyHash, Level};
use crate::tally::Tally;
use crate::time::{Mono, Span};

/// The decision: look, charge, probe.
impl Breaker {
    /// The long way: any policy, any state.
    #[inline]
    pub(super) fn decide<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        call: &Call,
        now: Mono,
    ) -> Verdict<'a> {
        self.decide_without(policy, route, call, 0, now)
    }

    /// As [`Breaker::decide`], where it is known of some keys, by bits, that there is no slot for them: each asked for under its
    /// bucket's lock, and counted.
    #[inline(never)]
    pub(super) fn decide_without<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        call: &Call,
        slotless: u8,
        now: Mono,
    ) -> Verdict<'a> {
        if !self.owns(policy) {
            route.count_denial(&NOWHERE);
            return Verdict::Deny(NOWHERE);
        }
        let mut seats: Seats<'a> = std::array::from_fn(|_| None);
        let mut shadowed = None;
        let decided =
            self.pass_through(policy, route, call, slotless, now, &mut seats, &mut shadowed);
        match decided {
            Ok(probes) => {
                if shadowed.is_some() {
                    route.count(Count::Shadowed);
                }
                let ticket = ticket(policy, route, call, now, &seats, probes);
                let shadowed = shadowed.as_ref().map(Shadow::of);
                Verdict::Allow(Permit { breaker: self, policy, route, ticket, shadowed })
            }
            Err(denial) => {
                route.count_denial(&denial);
                Verdict::Deny(denial)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one caller; all of it is one call's")]
    fn pass_through<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        call: &Call,
        slotless: u8,
        now: Mono,
        seats: &mut Seats<'a>,
        shadowed: &mut Option<Denial>,
    ) -> Result<u8, Denial> {
        let reducing = route.class == Class::Reducing;
        self.sit(policy, route, seats);
        for seat in seats.iter_mut().flatten() {
            seat.look(reducing, now, shadowed)?;
        }
        // What a wide block refuses has claimed no cell.
        let sight = if reducing { Sight::Finds } else { Sight::Claims { but: slotless } };
        self.sit_keys(policy, route, call, now, sight, seats);
        for seat in seats.iter_mut().skip(NAMED).flatten() {
            seat.look(reducing, now, shadowed)?;
        }
        if reducing {
            return Ok(0);
        }
        self.charge(call, seats, now, shadowed)?;
        self.take_probes(seats, now, shadowed)
    }

    /// What a call would be told; nothing is charged, claimed, counted or moved.
    pub(super) fn peek_at(
        &self,
        policy: &Policy,
        route: &RouteRules,
        call: &Call,
        now: Mono,
    ) -> Result<(), Denial> {
        let reducing = route.class == Class::Reducing;
        let mut seats: Seats<'_> = std::array::from_fn(|_| None);
        let mut shadowed = None;
        self.sit(policy, route, &mut seats);
        let sight = if reducing { Sight::Finds } else { Sight::Foresees };
        self.sit_keys(policy, route, call, now, sight, &mut seats);
        for seat in seats.iter_mut().flatten() {
            seat.look(reducing, now, &mut shadowed)?;
        }
        let refusal = if reducing { None } else { first_refusal::<true>(&seats, call, now) };
        let Some((at, breach)) = refusal else { return Ok(()) };
        let seat = seats.get(at).and_then(Option::as_ref);
        seat.map_or(Ok(()), |seat| Err(seat.refused(breach)))
    }

    /// Finds the named scopes of a call's lineage: global, group, route.
    fn sit<'a>(&'a self, policy: &'a Policy, route: &RouteRules, seats: &mut Seats<'a>) {
        for (seat, index) in seats.iter_mut().zip(route.lineage) {
            let Some(scope) = policy.scopes.get(index) else { continue };
            let gate = self.named_gate(scope.cell);
            let place = Place { level: scope.level, index: scope.cell, key: None };
            *seat = Some(Seat::new(place, gate, &scope.rules, &scope.rules.limits, 0));
        }
    }

    /// Finds the keys of a call's lineage.
    fn sit_keys<'a>(
        &'a self,
        policy: &'a Policy,
        route: &RouteRules,
        call: &Call,
        now: Mono,
        sight: Sight,
        seats: &mut Seats<'a>,
    ) {
        let keys = seats.iter_mut().skip(NAMED).zip(&route.dimensions).zip(call.keys);
        for (((seat, &dimension), key), position) in keys.zip(0_u8..) {
            let sight = match sight {
                Sight::Claims { but } if but >> position & 1 == 1 => Sight::Finds,
                sight => sight,
            };
            let missing = || policy.dimensions.get(dimension)?.missing;
            let Some(key) = key.or_else(missing) else { continue };
            *seat = self.seat_key(policy, dimension, key, now, sight);
        }
    }

    fn seat_key<'a>(
        &'a self,
        policy: &'a Policy,
        dimension: usize,
        key: KeyHash,
        now: Mono,
        sight: Sight,
    ) -> Option<Seat<'a>> {
        let rules = policy.dimensions.get(dimension)?;
        let table = self.table(count(rules.table))?;
        let limits = rules.rules.limits_of(Some(key));
        // A key that charges nothing needs a slot only once somebody blocks it.
        let charges = !limits.is_empty() || rules.rules.tally.is_some();
        let mut newcomer = None;
        let cell = match sight {
            Sight::Claims { .. } if charges => table.find_or_claim(key, now),
            Sight::Foresees if charges => match table.foresee(key, now) {
                Some(Foreseen::Newcomer(cell, found)) => {
                    newcomer = Some(found);
                    Some(cell)
                }
                Some(Foreseen::Known(cell)) => Some(cell),
                None => None,
            },
            Sight::Claims { .. } | Sight::Finds | Sight::Foresees => table.find(key),
        };
        let place = Place { level: Level::Key, index: rules.table, key: Some((rules.index, key)) };
        let gate = cell.and_then(|cell| table.gate(cell));
        let cell = cell.unwrap_or(table.overflow_cell());
        let mut seat = Seat::new(place, gate, &rules.rules, limits, cell);
        seat.table = Some((table, key));
        if let Some(newcomer) = newcomer {
            (seat.newcomer, seat.epoch) = (Some(newcomer), newcomer.epoch);
        }
        Some(seat)
    }

    /// Charges narrow to wide: the keys, the route, the group, `/`.
    ///
    /// All limits are looked at first, and nothing *admitted* is charged if one refuses: what is charged and
    /// refused in a wider scope after all is only a lost race, undone exactly or forfeited. A scope's
    /// limits of *offered* calls are charged once nothing narrower refused, before its others,
    /// and never undone.
    fn charge(
        &self,
        call: &Call,
        seats: &mut Seats<'_>,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Result<(), Denial> {
        let refusal = first_refusal::<false>(seats, call, now);
        for at in (0..SEATS).rev() {
            if let Some((tripped, denial)) = self.judge_offer(seats, at, call, now) {
                let seat = seats.get(tripped).and_then(Option::as_ref);
                if seat.is_none_or(|seat| !seat.shadow) {
                    // The call that trips a narrower scope is one of the wider scopes' calls all the same.
                    for wider in (0..at.min(NAMED)).rev() {
                        self.judge_offer(seats, wider, call, now);
                    }
                    undo(seats);
                    return Err(denial);
                }
                shadowed.get_or_insert(denial);
            }
            let Some(seat) = seats.get_mut(at).and_then(Option::as_mut) else { continue };
            if seat.blocked {
                // Live it would have been refused by the gate, and have charged nothing.
                continue;
            }
            let found = match refusal {
                Some((place, found)) if place == at => Some(found),
                // What would refuse live leaves the others of its scope as they would be live.
                _ if seat.shadow => seat.peek::<false>(call, now),
                _ => None,
            };
            let mut breach = worse(found, seat.take(Counting::Offered, call, now, shadowed));
            if refusal.is_none() && breach.is_none() {
                match seat.take_admitted(call, now, shadowed) {
                    Ok(found) => breach = found,
                    Err(denial) => {
                        undo(seats);
                        return Err(denial);
                    }
                }
            }
            let Some(breach) = breach else { continue };
            let denial = self.breached(seat, breach, now);
            seat.count_breach(breach.limit, seat.shadow);
            if seat.shadow {
                shadowed.get_or_insert(denial);
            } else {
                undo(seats);
                return Err(denial);
            }
        }
        Ok(())
    }

    /// Lets the detectors of a seat judge the offer, and trips whom they name.
    fn judge_offer(
        &self,
        seats: &Seats<'_>,
        at: usize,
        call: &Call,
        now: Mono,
    ) -> Option<(usize, Denial)> {
        let seat = seats.get(at)?.as_ref()?;
        // What is blocked counts nowhere, and who shares a slot is never judged by it.
        let tally = seat.rules.tally.as_ref().filter(|_| seat.gate.is_some() && !seat.blocked)?;
        if let Some((_, key)) = voter(seats, at).and_then(|key| key.place.key) {
            tally.voted(seat.cell, key);
        }
        let found = tally.hears(seat.cell, call.print, now)?;
        self.act_on(seats, at, &found, now)
    }

    /// What a finding of the calls offered to the keys and scopes of a lineage leads to, met the short way.
    #[cold]
    pub(super) fn found_shortly(
        &self,
        policy: &Policy,
        route: &RouteRules,
        call: &Call,
        (at, found): (usize, &Found),
        now: Mono,
    ) -> Option<Denial> {
        let mut seats: Seats<'_> = std::array::from_fn(|_| None);
        self.sit(policy, route, &mut seats);
        self.sit_keys(policy, route, call, now, Sight::Claims { but: 0 }, &mut seats);
        for seat in seats.iter_mut().flatten() {
            // What blocks since the short way looked was not there when this call passed.
            let _ = seat.look(false, now, &mut None);
        }
        let (tripped, denial) = self.act_on(&seats, at, found, now)?;
        let seat = seats.get(tripped).and_then(Option::as_ref);
        seat.is_none_or(|seat| !seat.shadow).then_some(denial)
    }

    /// Trips whom a finding names: the seat that found it, or a key that makes most of what was found.
    fn act_on(
        &self,
        seats: &Seats<'_>,
        at: usize,
        found: &Found,
        now: Mono,
    ) -> Option<(usize, Denial)> {
        let seat = seats.get(at)?.as_ref()?;
        let tally = seat.rules.tally.as_ref()?;
        let keys = || (NAMED..).zip(seats.iter().skip(NAMED));
        // If one key makes more than half of it, the key is tripped and not those it shares with.
        let window = WINDOWS.iter().position(|window| *window == found.window);
        let culprit = keys().find(|(_, key)| {
            let Some(key) = key.as_ref().filter(|key| at < NAMED && key.gate.is_some()) else {
                return false;
            };
            let count = key.rules.tally.as_ref().zip(window);
            count.is_some_and(|(own, window)| own.count(key.cell, window, now) > found.count / 2)
        });
        if let Some((at, Some(key))) = culprit {
            return Some((at, self.tripped(key, By::Wider, None, now)));
        }
        let voter = voter(seats, at);
        if window.is_some_and(|window| self.trip_leader(tally, seat, voter, found, window, now)) {
            // Somebody else's calls were too many: this one is not to blame.
            return None;
        }
        Some((at, self.tripped(seat, By::Detector(found.detector), None, now)))
    }

    /// Trips the key that makes over half of a scope's calls, if there is one and this call is not its own.
    fn trip_leader(
        &self,
        tally: &Tally,
        seat: &Seat<'_>,
        voter: Option<&Seat<'_>>,
        found: &Found,
        window: usize,
        now: Mono,
    ) -> bool {
        let Some(voter) = voter else { return false };
        let (Some((table, _)), Some(own)) = (voter.table, &voter.rules.tally) else { return false };
        let Some(leader) = tally.leader(seat.cell) else { return false };
        let Some(cell) = table.find(leader) else { return false };
        // A leader is a guess by votes; what it made itself is counted.
        if own.count(cell, window, now) <= found.count / 2 {
            return false;
        }
        let input = Input::Trip(By::Wider);
        let done = table.order(leader, input, &voter.rules.trip, now, Which::Known);
        matches!(done, Ordered::Done(_, Some(_)))
    }

    /// Trips the gate if the limit says so, and words the denial.
    fn breached(&self, seat: &Seat<'_>, breach: Breach, now: Mono) -> Denial {
        if !breach.trips || seat.gate.is_none() {
            return seat.refused(breach);
        }
        self.tripped(seat, By::Limit(breach.limit), Some(breach), now)
    }

    /// Trips a seat's gate and words the denial.
    fn tripped(&self, seat: &Seat<'_>, by: By, breach: Option<Breach>, now: Mono) -> Denial {
        let moved = self.trip_seat(seat, by, now);
        let word = match (moved, seat.gate) {
            (Some(moved), _) => moved.after,
            (None, Some(gate)) => gate.word(),
            (None, None) => Word::default(),
        };
        let least = breach.map_or(Span::ZERO, |breach| breach.wait);
        match word.look(false, &seat.rules.trip, now) {
            Look::Blocked(cause, hold) => Denial {
                // Both must be over: the hold, and what the limit asks.
                wait: hold.map(|hold| hold.max(least)).filter(|wait| *wait != NEVER),
                moved: moved.is_some(),
                ..denial(seat.place, cause, None, word.epoch())
            },
            Look::Free | Look::Probe => match breach {
                Some(breach) => seat.refused(breach),
                None => denial(seat.place, Cause::Tripped(by), None, word.epoch()),
            },
        }
    }

    fn trip_seat(&self, seat: &Seat<'_>, by: By, now: Mono) -> Option<Moved> {
        let input = Input::Trip(by);
        match seat.table {
            // Under the bucket's lock: the slot may have changed hands since it was found.
            Some((table, key)) => {
                match table.order(key, input, &seat.rules.trip, now, Which::Known) {
                    Ordered::Done(_, moved) => moved,
                    Ordered::Unknown | Ordered::NoRoom => None,
                }
            }
            None => self.step_named(seat.place.index, input, &seat.rules.trip, now),
        }
    }

    /// Takes a probe of each gate on probation; bits of the seats that gave one.
    fn take_probes(
        &self,
        seats: &mut Seats<'_>,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Result<u8, Denial> {
        let mut probes = 0;
        for at in 0..SEATS {
            let Some(seat) = seats.get_mut(at).and_then(Option::as_mut) else { continue };
            if !seat.probe {
                continue;
            }
            match self.take_probe(seat, now) {
                Ok(taken) => probes |= u8::from(taken) << at,
                Err(denial) if seat.shadow && !matches!(denial.cause, Cause::Killed(_)) => {
                    shadowed.get_or_insert(denial);
                }
                Err(denial) => {
                    for (bit, seat) in seats.iter().enumerate() {
                        if let Some(seat) = seat.as_ref().filter(|_| probes >> bit & 1 == 1) {
                            self.step_seat(seat, Input::ProbeAbandoned(seat.epoch), now);
                        }
                    }
                    undo(seats);
                    return Err(denial);
                }
            }
        }
        Ok(probes)
    }

    /// Takes a probe, if the gate still wants one.
    fn take_probe(&self, seat: &mut Seat<'_>, now: Mono) -> Result<bool, Denial> {
        let Some(gate) = seat.gate else { return Ok(false) };
        let rule = &seat.rules.trip;
        loop {
            let word = gate.word();
            seat.epoch = word.epoch();
            match word.look(false, rule, now) {
                Look::Free => return Ok(false),
                Look::Blocked(cause, wait) => {
                    return Err(denial(seat.place, cause, wait, seat.epoch));
                }
                Look::Probe => {
                    if let Some(moved) = self.step_seat(seat, Input::ProbeTaken, now) {
                        seat.epoch = moved.after.epoch();
                        return Ok(true);
                    }
                    // A hold that is over, or probes that never came back: time acts first.
                    self.step_seat(seat, Input::Elapsed, now);
                }
            }
            // Each turn means that the gate moved: half-open in a hurry, or the last probe gone.
        }
    }

    fn step_seat(&self, seat: &Seat<'_>, input: Input, now: Mono) -> Option<Moved> {
        match seat.table {
            Some((table, _)) => table.step(seat.cell, input, &seat.rules.trip, now),
            None => self.step_named(seat.place.index, input, &seat.rules.trip, now),
        }
    }
}

/// How a key is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// It is given a slot, if it needs one; but not those of which it is known, by their bits, that there is none.
    Claims { but: u8 },
    /// What it would be given is looked at.
    Foresees,
    /// It has a slot or not.
    Finds,
}

/// One scope of a call's lineage, as met.
pub(super) struct Seat<'a> {
    place: Place,
    /// `None` for a key without a slot of its own.
    gate: Option<&'a Gate>,
    table: Option<(&'a Table, KeyHash)>,
    rules: &'a Rules,
    limits: &'a [LimitRule],
    /// Of a key: its slot, or the one that is shared.
    cell: usize,
    /// How it would find its cell, if it is a key's that would be given one.
    newcomer: Option<Newcomer>,
    epoch: u16,
    shadow: bool,
    probe: bool,
    /// Its gate would block, if it were not in shadow mode.
    blocked: bool,
    /// It holds a place in flight in the slot that is shared.
    shared_flight: bool,
    /// Bits of the limits that were charged.
    charged: u8,
    /// What its *admitted* limits were charged, and their earlier selves.
    taken: [Option<(Taken, Option<Taken>)>; MAX_LIMITS],
}

/// Global, group, route, and the keys.
type Seats<'a> = [Option<Seat<'a>>; SEATS];

/// A limit that said no.
#[derive(Clone, Copy)]
struct Breach {
    limit: u8,
    wait: Span,
    trips: bool,
}

impl<'a> Seat<'a> {
    fn new(
        place: Place,
        gate: Option<&'a Gate>,
        rules: &'a Rules,
        limits: &'a [LimitRule],
        cell: usize,
    ) -> Seat<'a> {
        Seat {
            place,
            gate,
            table: None,
            rules,
            limits,
            cell,
            newcomer: None,
            epoch: 0,
            shadow: rules.mode == Mode::Shadow,
            probe: false,
            blocked: false,
            shared_flight: false,
            charged: 0,
            taken: [None; MAX_LIMITS],
        }
    }

    /// Looks at the gate. What shadow mode lets through is noted, but a kill always denies.
    fn look(
        &mut self,
        reducing: bool,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Result<(), Denial> {
        // What a newcomer would find lets all pass.
        let Some(gate) = self.gate.filter(|_| self.newcomer.is_none()) else { return Ok(()) };
        let mut word = match self.table {
            Some((table, _)) => table.word(self.cell).unwrap_or_default(),
            None => gate.word(),
        };
        if let Some((table, key)) = self.table
            && !word.is_armed()
            && table.tag(self.cell) != Some(key)
        {
            // The slot changed hands just now, and it is not we who are blocked. What is charged from now on must be where the
            // end of the call will give it back.
            word = Word::default();
            self.gate = None;
            self.cell = table.overflow_cell();
        }
        self.epoch = word.epoch();
        if let Some(mode) = word.mode() {
            self.shadow = mode == Mode::Shadow;
        }
        match word.look(reducing, &self.rules.trip, now) {
            Look::Free => {}
            Look::Probe => self.probe = true,
            Look::Blocked(cause, wait) => {
                let denial = denial(self.place, cause, wait, self.epoch);
                if !self.shadow || matches!(cause, Cause::Killed(_)) {
                    return Err(denial);
                }
                self.blocked = true;
                shadowed.get_or_insert(denial);
            }
        }
        Ok(())
    }

    /// Charges the limits that count `of`, up to the first that refuses if they are of *admitted*
    /// calls, all of them if of *offered*.
    fn take(
        &mut self,
        of: Counting,
        call: &Call,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Option<Breach> {
        let mut breach = None;
        for (index, rule) in (0_u8..).zip(self.limits) {
            if rule.spec.of != of {
                continue;
            }
            match self.take_one(rule, amount(rule, call), now) {
                Ok(taken) => {
                    self.charged |= 1 << index;
                    if let (Counting::Admitted, Some(slot)) =
                        (of, self.taken.get_mut(usize::from(index)))
                    {
                        *slot = Some(taken);
                    }
                }
                Err(wait) if rule.spec.candidate => {
                    self.count_breach(index, true);
                    let breach = self.breach(index, rule, call, wait, now);
                    shadowed.get_or_insert(self.refused(breach));
                }
                Err(wait) => {
                    breach = worse(breach, Some(self.breach(index, rule, call, wait, now)));
                    if of == Counting::Admitted {
                        break;
                    }
                }
            }
        }
        breach
    }

    /// Charges its *admitted* limits, all or none.
    ///
    /// # Errors
    /// The denial of the gate, if the key has got a slot of its own meanwhile.
    fn take_admitted(
        &mut self,
        call: &Call,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Result<Option<Breach>, Denial> {
        while let Some((table, key)) = self.sharing() {
            let charge = || self.take_all(call, now, shadowed).map_or(Ok(self.flies()), Err);
            match table.share(key, now, charge) {
                Ok(charged) => {
                    self.shared_flight = charged.is_ok_and(|flies| flies);
                    return Ok(charged.err());
                }
                Err(cell) => {
                    // What counts *offered* calls has counted it in the shared slot, and no end is told there.
                    (self.cell, self.gate, self.charged) = (cell, table.gate(cell), 0);
                    // It may be lost again by then: each turn means that an order gave it to another key.
                    self.look(false, now, shadowed)?;
                }
            }
        }
        Ok(self.take_all(call, now, shadowed))
    }

    /// Its table and key, if it charges the shared slot.
    fn sharing(&self) -> Option<(&'a Table, KeyHash)> {
        self.table.filter(|_| self.gate.is_none() && !self.limits.is_empty())
    }

    /// Charges its *admitted* limits, all or none.
    fn take_all(
        &mut self,
        call: &Call,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Option<Breach> {
        let breach = self.take(Counting::Admitted, call, now, shadowed);
        if breach.is_some() {
            self.undo();
        }
        breach
    }

    /// Whether it was charged a place in flight in its slot.
    fn flies(&self) -> bool {
        (0_u8..)
            .zip(self.limits)
            .any(|(index, rule)| self.charged >> (index & 7) & 1 == 1 && rule.flies_in_table())
    }

    /// Undoes what its *admitted* limits were charged.
    fn undo(&mut self) {
        if let Some((table, key)) = self.table.filter(|_| self.shared_flight) {
            table.land(key);
            self.shared_flight = false;
        }
        let taken = std::mem::take(&mut self.taken);
        for ((index, rule), taken) in (0_u8..).zip(self.limits).zip(taken) {
            let Some((taken, also)) = taken else { continue };
            self.undo_one(rule, taken, also);
            self.charged &= !(1 << index);
        }
    }

    /// Charges one limit, and its earlier selves where it has any.
    fn take_one(
        &self,
        rule: &LimitRule,
        amount: u64,
        now: Mono,
    ) -> Result<(Taken, Option<Taken>), Span> {
        // Memory that is not there cannot say yes.
        let row = self.row_of(rule).ok_or(NEVER)?;
        let taken = row.take(rule.limit, amount, now)?;
        let mut also = None;
        for (before, row) in self.before_of(rule) {
            match row.take(before.limit, amount, now) {
                // Of several only the last is undone, should it come to that; the others' charges are forfeited.
                Ok(taken) => also = also.or(Some(taken)),
                Err(wait) => {
                    self.undo_one(rule, taken, also);
                    return Err(wait);
                }
            }
        }
        Ok((taken, also))
    }

    /// Undoes a charge, and that of the last earlier self.
    fn undo_one(&self, rule: &LimitRule, taken: Taken, also: Option<Taken>) {
        if let Some(row) = self.row_of(rule) {
            row.undo(rule.limit, taken);
        }
        if let (Some((before, row)), Some(also)) = (self.before_of(rule).next(), also) {
            row.undo(before.limit, also);
        }
    }

    /// The words of one of its limits.
    fn row_of<'r>(&'r self, rule: &'r LimitRule) -> Option<Row<'r>> {
        rule.memory.row(self.table.map(|(table, _)| table), self.cell)
    }

    /// The same of what the limit was before reloads, the last self first.
    fn before_of<'r>(
        &'r self,
        rule: &'r LimitRule,
    ) -> impl Iterator<Item = (&'r Before, Row<'r>)> + 'r {
        let table = self.table.map(|(table, _)| table);
        rule.before
            .iter()
            .rev()
            .filter_map(move |before| Some((before, before.memory.row(table, self.cell)?)))
    }

    /// As of when a limit of a newcomer would be spent, if it would.
    fn starts_at(&self, memory: &Memory, limit: Limit, now: Mono) -> Option<Mono> {
        let in_slot = matches!(memory, Memory::Keys(_));
        self.newcomer.filter(|_| in_slot)?.spent_at(limit, now)
    }

    /// The limit that would refuse first, by a look only; with the longest wait of all that refuse.
    fn peek<const AHEAD: bool>(&self, call: &Call, now: Mono) -> Option<Breach> {
        let look = |row: Row<'_>, memory: &Memory, limit: Limit, amount: u64| match AHEAD {
            true => match self.starts_at(memory, limit, now) {
                Some(at) => row.forecast_spent(limit, amount, (at, now)).err(),
                None => row.forecast(limit, amount, now).err(),
            },
            false => row.peek(limit, amount, now).err(),
        };
        let mut breach = None;
        for (index, rule) in (0_u8..).zip(self.limits).filter(|(_, rule)| !rule.spec.candidate) {
            let amount = amount(rule, call);
            let asked = match self.row_of(rule) {
                Some(row) => look(row, &rule.memory, rule.limit, amount),
                None => Some(NEVER),
            };
            let before = self.before_of(rule);
            let also =
                before.filter_map(|(before, row)| look(row, &before.memory, before.limit, amount));
            if let Some(wait) = asked.max(also.max()) {
                breach = worse(breach, Some(self.breach(index, rule, call, wait, now)));
            }
        }
        breach
    }

    fn breach(&self, limit: u8, rule: &LimitRule, call: &Call, wait: Span, now: Mono) -> Breach {
        // Without a slot of its own (so without a gate) a key shares its limits, and what starts spent, since its past is not
        // known, answers for others: they throttle and never trip.
        let table = self.table.map(|(table, _)| table);
        // That a weight is not known proves no breach.
        let known = rule.spec.by == Unit::Calls || call.weight != UNWEIGHED;
        let trips = rule.spec.on_breach == OnBreach::Trip
            && known
            && self.gate.is_some()
            && !self.starts_spent(rule, now)
            && !rule.is_spent(table, self.cell, now);
        Breach { limit, wait, trips }
    }

    /// Whether a limit of a newcomer would be spent.
    fn starts_spent(&self, rule: &LimitRule, now: Mono) -> bool {
        let starts = |memory: &Memory, limit: Limit| self.starts_at(memory, limit, now).is_some();
        let mut before = rule.before.iter();
        starts(&rule.memory, rule.limit) || before.any(|was| starts(&was.memory, was.limit))
    }

    fn refused(&self, breach: Breach) -> Denial {
        let wait = Some(breach.wait).filter(|wait| *wait != NEVER);
        denial(self.place, Cause::Limit(breach.limit), wait, self.epoch)
    }

    fn count_breach(&self, limit: u8, only_detected: bool) {
        if let Some(counts) = &self.rules.counts {
            let what = if only_detected { Count::Detected(limit) } else { Count::Enforced(limit) };
            counts.up(what);
        }
    }
}

/// The key that votes on who leads a scope: that of the first dimension that is counted, for votes of several would only
/// outvote each other.
fn voter<'s, 'a>(seats: &'s Seats<'a>, at: usize) -> Option<&'s Seat<'a>> {
    let counted = |key: &&Seat<'_>| key.gate.is_some() && key.rules.tally.is_some();
    seats.iter().skip(NAMED).flatten().find(|key| at < NAMED && counted(key))
}

/// The narrowest scope that refuses, by a look only. Its wait is the longest of all that refuse: no
/// earlier could the same call pass. `AHEAD` of a decision nothing may be moved by it.
fn first_refusal<const AHEAD: bool>(
    seats: &Seats<'_>,
    call: &Call,
    now: Mono,
) -> Option<(usize, Breach)> {
    let mut first: Option<(usize, Breach)> = None;
    for (at, seat) in seats.iter().enumerate().rev() {
        let Some(seat) = seat.as_ref().filter(|seat| !seat.shadow) else { continue };
        if let Some(breach) = seat.peek::<AHEAD>(call, now) {
            let (_, found) = first.get_or_insert((at, breach));
            found.wait = found.wait.max(breach.wait);
        }
    }
    first
}

/// Of two breaches of one scope the one that trips, else the one that waits longer; with the longer wait.
fn worse(one: Option<Breach>, other: Option<Breach>) -> Option<Breach> {
    let (Some(a), Some(b)) = (one, other) else { return one.or(other) };
    let b_leads = if a.trips == b.trips { b.wait > a.wait } else { b.trips };
    let lead = if b_leads { b } else { a };
    Some(Breach { wait: a.wait.max(b.wait), ..lead })
}

fn undo(seats: &mut Seats<'_>) {
    seats.iter_mut().flatten().for_each(Seat::undo);
}

fn amount(rule: &LimitRule, call: &Call) -> u64 {
    match rule.spec.by {
        Unit::Calls => 1,
        Unit::Weight => call.weight,
    }
}

fn ticket(
    policy: &Policy,
    route: &RouteRules,
    call: &Call,
    now: Mono,
    seats: &Seats<'_>,
    probes: u8,
) -> Ticket {
    let mut charged = 0;
    let mut shadow = 0;
    for (at, seat) in (0_u8..).zip(seats) {
        let Some(seat) = seat else { continue };
        shadow |= u8::from(seat.shadow) << at;
        for index in (0..8).filter(|index| seat.charged >> index & 1 == 1) {
            charged |= limit_bit(at, index);
        }
    }
    let [global, group, own, ..] = seats;
    let epochs = [global, group, own].map(|seat| seat.as_ref().map_or(0, |seat| seat.epoch));
    let reducing = route.class == Class::Reducing;
    let due = match (reducing, &route.counts) {
        (false, _) => route.due(charged, probes),
        // A reducing call charges nothing and proves nothing; it is counted.
        (true, Some(_)) => Due::Count,
        (true, None) => Due::Nothing,
    };
    Ticket {
        policy: policy.number,
        route: call.route.number,
        at: now,
        weight: call.weight,
        charged,
        marks: Marks::new(epochs, probes, shadow, reducing),
        due,
        keys: key_seats(seats),
    }
}

fn key_seats(seats: &Seats<'_>) -> KeySeats {
    let mut keys = [None; MAX_DIMENSIONS];
    for (key, seat) in keys.iter_mut().zip(seats.iter().skip(NAMED)) {
        let Some(seat) = seat else { continue };
        let Some((_, hash)) = seat.place.key else { continue };
        let own = seat.gate.and(u32::try_from(seat.cell).ok());
        let cell = own.unwrap_or(NO_CELL);
        // There are 256 tables at most.
        let Ok(table) = u8::try_from(seat.place.index) else { continue };
        *key = Some(KeySeat::new(hash, cell, table, seat.epoch, seat.shadow));
    }
    keys
}

/// The wait where none is known to suffice.
const NEVER: Span = Span::from_nanos(u64::MAX);
/// The lengths of a surge's windows, by their index.
const WINDOWS: [Span; 4] =
    [Span::from_secs(1), Span::from_secs(10), Span::from_secs(60), Span::from_secs(300)];
/// All seats of a lineage.
const SEATS: usize = NAMED + MAX_DIMENSIONS;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{Breaker, Call, Capacity};
    use super::{Counting, SEATS, Seats, Sight, key_seats};
    use crate::facts::KillLevel;
    use crate::hashes::Seed;
    use crate::permit::NO_CELL;
    use crate::policy::{KeySpec, LimitSpec, NAMED, PolicySpec, RouteId, ScopeSpec};
    use crate::scope::Scope;
    use crate::time::{Mono, Span};

    /// Goal: a call whose key lost its slot between the search and the look charges where its end will give back: the place in flight was
    /// taken in a slot that was another's by then, and given back to the shared one, so it was lost for good.
    #[test]
    fn a_slot_lost_in_mid_decision_keeps_no_place() {
        let second = Span::from_secs(1);
        let limits = vec![LimitSpec::in_flight(9), LimitSpec::window(9, second)];
        let keys = vec![KeySpec { name: "account".into(), limits, ..KeySpec::default() }];
        let global = ScopeSpec { keys, ..ScopeSpec::default() };
        let breaker = Breaker::new(Capacity { scopes: 4, keys: 16 }, Seed([1, 2]));
        let policy = breaker.compile(&PolicySpec { global, ..PolicySpec::default() }).unwrap();
        let table = breaker.table(0).unwrap();
        let late = Mono::ZERO.plus(second);
        let mut seats: Seats<'_> = std::array::from_fn::<_, SEATS, _>(|_| None);
        let key = breaker.hash(b"unlucky");
        seats[NAMED] = breaker.seat_key(&policy, 0, key, late, Sight::Claims { but: 0 });
        for number in 0..29_u8 {
            let stranger = breaker.seat_key(
                &policy,
                0,
                breaker.hash(&[number, 0]),
                late,
                Sight::Claims { but: 0 },
            );
            let call = Call::new(RouteId::nowhere());
            assert!(stranger.unwrap().take(Counting::Admitted, &call, late, &mut None).is_none());
        }
        let killed = Scope::parse("/account=killed").unwrap();
        breaker.kill(&policy, &killed, KillLevel::Halt, late).unwrap();
        assert_eq!(table.find(key), None, "its slot is the killed key's");
        let seat = seats[NAMED].as_mut().unwrap();
        assert_eq!(seat.look(false, late, &mut None), Ok(()));
        assert_eq!(seat.cell, table.overflow_cell());
        assert_eq!(key_seats(&seats)[0].unwrap().cell(), NO_CELL);
    }
}
