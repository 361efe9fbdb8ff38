//! The decision on a call, in three passes: look, charge, probe. It takes no order and changes no rule.

use super::{Breaker, Call, count, denial};
use crate::cell::{Gate, Moved, Taken};
use crate::facts::{Cause, Class, Denial, Mode, Place, State};
use crate::gate::{Input, Look, Word};
use crate::keys::{Ordered, Table};
use crate::permit::{KeySeat, NO_CELL, NamedSeat, Pass, Permit, Probes};
use crate::policy::{
    Counting, LimitRule, MAX_DIMENSIONS, MAX_LIMITS, OnBreach, Policy, RouteRules, Rules,
};
use crate::scope::{KeyHash, Level};
use crate::time::{Mono, Span};

/// The decision: look, charge, probe.
impl Breaker {
    pub(super) fn decide<'b>(
        &'b self,
        policy: &Policy,
        call: &Call,
        now: Mono,
    ) -> Result<Permit<'b>, Denial> {
        let nowhere = Place { level: Level::Global, index: 0, key: None };
        let unknown = denial(nowhere, Cause::Stale, None, 0);
        let route = policy.route_rules(call.route).ok_or(unknown)?;
        let reducing = route.class == Class::Reducing;
        let mut shadowed = None;
        let mut seats: Seats<'_> = std::array::from_fn(|_| None);

        for (seat, index) in seats.iter_mut().zip(route.lineage) {
            let found = self.seat_named(policy, index).ok_or(unknown)?;
            *seat = Some(found.looked(reducing, now, &mut shadowed)?);
        }
        for position in 0..MAX_DIMENSIONS {
            let found = self.seat_key(policy, route, call, position, reducing, now);
            if let (Some(found), Some(seat)) = (found, seats.get_mut(NAMED + position)) {
                *seat = Some(found.looked(reducing, now, &mut shadowed)?);
            }
        }
        let mut probes: Probes = [None; SEATS];
        if !reducing {
            self.charge(&mut seats, now, &mut shadowed)?;
            self.take_probes(&mut seats, now, &mut shadowed, &mut probes)?;
        }
        Ok(Permit { breaker: self, pass: pass(&seats, reducing), probes, shadowed })
    }

    fn seat_named<'a>(&'a self, policy: &'a Policy, index: usize) -> Option<Seat<'a>> {
        let scope = policy.scopes.get(index)?;
        let gate = self.named_gate(scope.cell)?;
        let place = Place { level: scope.level, index: scope.cell, key: None };
        Some(Seat::new(place, Some(gate), &scope.rules, 0))
    }

    fn seat_key<'a>(
        &'a self,
        policy: &'a Policy,
        route: &RouteRules,
        call: &Call,
        position: usize,
        reducing: bool,
        now: Mono,
    ) -> Option<Seat<'a>> {
        let key = (*call.keys.get(position)?)?;
        let rules = policy.dimensions.get(*route.dimensions.get(position)?)?;
        let table = self.table(count(rules.table))?;
        // A key that charges nothing needs a cell only once somebody blocks it.
        let charges = !reducing && !rules.rules.limits.is_empty();
        let cell = if charges { table.find_or_claim(key, now) } else { table.find(key) };
        if charges && cell.is_none() {
            table.count_overflow();
        }
        let place = Place { level: Level::Key, index: rules.table, key: Some((rules.index, key)) };
        let gate = cell.and_then(|cell| table.gate(cell));
        let mut seat = Seat::new(place, gate, &rules.rules, cell.unwrap_or(table.overflow_row()));
        seat.table = Some((table, key));
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
        seats: &mut Seats<'_>,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Result<(), Denial> {
        let refusal = first_refusal(seats, now);
        for at in (0..SEATS).rev() {
            let Some(seat) = seats.get_mut(at).and_then(Option::as_mut) else { continue };
            let mut breach = seat.take(Counting::Offered, now);
            match refusal {
                Some((place, found)) if place == at => breach = worse(Some(found), breach),
                Some(_) => {}
                None if breach.is_none() || seat.shadow => {
                    breach = worse(breach, seat.take(Counting::Admitted, now));
                }
                None => {}
            }
            let Some(breach) = breach else { continue };
            let denial = self.breached(seat, breach, now);
            if seat.shadow {
                shadowed.get_or_insert(denial);
            } else {
                undo(seats);
                return Err(denial);
            }
        }
        Ok(())
    }

    /// Trips the gate if the limit says so, and words the denial.
    fn breached(&self, seat: &Seat<'_>, breach: Breach, now: Mono) -> Denial {
        let refused = denial(seat.place, Cause::Limit(breach.limit), Some(breach.wait), seat.epoch);
        let Some(gate) = seat.gate.filter(|_| breach.trips) else { return refused };
        let input = Input::Trip(Some(breach.limit));
        let moved = match seat.table {
            // Under the bucket's lock: the cell may have changed hands since it was found.
            Some((table, key)) => match table.order(key, input, &seat.rules.trip, now, false) {
                Ordered::Done(_, moved) => moved,
                Ordered::Unknown | Ordered::NoRoom => None,
            },
            None => self.step_named(seat.place.index, input, &seat.rules.trip, now),
        };
        let word = moved.map_or_else(|| gate.word(), |moved| moved.after);
        match word.look(false, &seat.rules.trip, now) {
            Look::Blocked(cause, hold) => Denial {
                // Both must be over: the hold, and what the limit asks.
                wait: hold.map(|hold| hold.max(breach.wait)),
                moved: moved.is_some(),
                ..denial(seat.place, cause, None, word.epoch())
            },
            Look::Free | Look::Probe => refused,
        }
    }

    fn take_probes(
        &self,
        seats: &mut Seats<'_>,
        now: Mono,
        shadowed: &mut Option<Denial>,
        probes: &mut Probes,
    ) -> Result<(), Denial> {
        for at in 0..SEATS {
            let Some(seat) = seats.get_mut(at).and_then(Option::as_mut) else { continue };
            if !seat.probe {
                continue;
            }
            match self.take_probe(seat, now) {
                Ok(taken) => {
                    if let Some(probe) = probes.get_mut(at) {
                        *probe = taken.then_some(seat.rules.trip);
                    }
                }
                Err(denial) if seat.shadow && !matches!(denial.cause, Cause::Killed(_)) => {
                    shadowed.get_or_insert(denial);
                }
                Err(denial) => {
                    let pass = pass(seats, false);
                    for (at, rule) in probes.iter().enumerate() {
                        if let Some(rule) = rule {
                            self.settle_seat(&pass, at, Input::ProbeAbandoned, rule, now);
                        }
                    }
                    undo(seats);
                    return Err(denial);
                }
            }
        }
        Ok(())
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
                Look::Probe if word.state() == State::Tripped => {
                    self.step_seat(seat, Input::Elapsed, now);
                }
                Look::Probe => {
                    if let Some(moved) = self.step_seat(seat, Input::ProbeTaken, now) {
                        seat.epoch = moved.after.epoch();
                        return Ok(true);
                    }
                }
            }
            // Each turn means that the gate moved: half-open in a hurry, or the last probe gone.
        }
    }

    fn step_seat(&self, seat: &Seat<'_>, input: Input, now: Mono) -> Option<Moved> {
        match seat.table {
            Some((table, _)) => table.step(seat.row, input, &seat.rules.trip, now),
            None => self.step_named(seat.place.index, input, &seat.rules.trip, now),
        }
    }
}

/// One scope of a call's lineage, as met.
struct Seat<'a> {
    place: Place,
    /// `None` for a key without a cell of its own.
    gate: Option<&'a Gate>,
    table: Option<(&'a Table, KeyHash)>,
    rules: &'a Rules,
    /// The row of the limits' memory that is its own; for a key also its cell.
    row: usize,
    epoch: u16,
    shadow: bool,
    probe: bool,
    /// What its *admitted* limits were charged.
    taken: [Option<Taken>; MAX_LIMITS],
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
    fn new(place: Place, gate: Option<&'a Gate>, rules: &'a Rules, row: usize) -> Seat<'a> {
        let taken = [None; MAX_LIMITS];
        let shadow = rules.mode == Mode::Shadow;
        Seat { place, gate, table: None, rules, row, epoch: 0, shadow, probe: false, taken }
    }

    /// Looks at the gate. What shadow mode lets through is noted, but a kill always denies.
    fn looked(
        mut self,
        reducing: bool,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Result<Seat<'a>, Denial> {
        let Some(gate) = self.gate else { return Ok(self) };
        let mut word = gate.word();
        if let Some((table, key)) = self.table
            && !word.is_armed()
            && table.tag(self.row) != Some(key)
        {
            // The cell changed hands just now, and it is not we who are blocked.
            word = Word::default();
            self.gate = None;
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
                shadowed.get_or_insert(denial);
            }
        }
        Ok(self)
    }

    /// Charges the limits that count `of`, up to the first that refuses if they are of *admitted*
    /// calls, all of them if of *offered*.
    fn take(&mut self, of: Counting, now: Mono) -> Option<Breach> {
        let mut breach = None;
        for (index, limit) in (0_u8..).zip(&self.rules.limits) {
            if limit.spec.of != of {
                continue;
            }
            match limit.charges.take(self.row, now) {
                Ok(taken) => {
                    if let (Counting::Admitted, Some(slot)) =
                        (of, self.taken.get_mut(usize::from(index)))
                    {
                        *slot = Some(taken);
                    }
                }
                Err(wait) => {
                    breach = worse(breach, Some(self.breach(index, limit, wait)));
                    if of == Counting::Admitted {
                        break;
                    }
                }
            }
        }
        breach
    }

    fn peek(&self, now: Mono) -> Option<Breach> {
        let mut breach = None;
        for (index, limit) in (0_u8..).zip(&self.rules.limits) {
            if let Err(wait) = limit.charges.peek(self.row, now) {
                breach = worse(breach, Some(self.breach(index, limit, wait)));
            }
        }
        breach
    }

    fn breach(&self, limit: u8, rule: &LimitRule, wait: Span) -> Breach {
        // Without a cell of its own (so without a gate) a key shares its limits: they throttle and never trip.
        let trips = rule.spec.on_breach == OnBreach::Trip && self.gate.is_some();
        Breach { limit, wait, trips }
    }
}

/// The narrowest scope that refuses, by a look only. Its wait is the longest of all that refuse: no
/// earlier could the same call pass.
fn first_refusal(seats: &Seats<'_>, now: Mono) -> Option<(usize, Breach)> {
    let mut first: Option<(usize, Breach)> = None;
    for (at, seat) in seats.iter().enumerate().rev() {
        let Some(seat) = seat.as_ref().filter(|seat| !seat.shadow) else { continue };
        if let Some(breach) = seat.peek(now) {
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
    for seat in seats.iter_mut().flatten() {
        for (taken, limit) in seat.taken.iter_mut().zip(&seat.rules.limits) {
            if let Some(taken) = taken.take() {
                limit.charges.undo(seat.row, taken);
            }
        }
    }
}

fn pass(seats: &Seats<'_>, reducing: bool) -> Pass {
    let [global, group, route, ..] = seats;
    let named = [global, group, route].map(|seat| match seat {
        Some(seat) => NamedSeat { cell: seat.place.index, epoch: seat.epoch, shadow: seat.shadow },
        None => NamedSeat { cell: 0, epoch: 0, shadow: false },
    });
    let mut keys = [None; MAX_DIMENSIONS];
    for (key, seat) in keys.iter_mut().zip(seats.iter().skip(NAMED)) {
        let Some(seat) = seat else { continue };
        let Some((_, hash)) = seat.place.key else { continue };
        let own = seat.gate.and(u32::try_from(seat.row).ok());
        let cell = own.unwrap_or(NO_CELL);
        // There are 256 tables at most.
        let Ok(table) = u8::try_from(seat.place.index) else { continue };
        let (epoch, shadow) = (seat.epoch, seat.shadow);
        *key = Some(KeySeat { key: hash, table, cell, epoch, shadow });
    }
    Pass { reducing, named, keys }
}

/// Named seats of a lineage.
const NAMED: usize = 3;
/// All seats of a lineage.
const SEATS: usize = NAMED + MAX_DIMENSIONS;
