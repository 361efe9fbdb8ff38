//! The short way through a decision: gates that let all pass and a few plain charges, without a list of seats. Whatever
//! it cannot tell at once it leaves, undone, to the long way.

use std::sync::Arc;

use super::{Breaker, Call, count, denial};
use crate::charges::{Row, Taken};
use crate::counts::Count;
use crate::detect::Found;
use crate::facts::{Cause, Class, Denial, KillLevel, Place, State};
use crate::gate::Word;
use crate::permit::{KeySeat, KeySeats, Marks, NO_CELL, Permit, Ticket, Verdict};
use crate::policy::{
    Charge, Charged, Hearing, MAX_DIMENSIONS, MAX_SHORT, NAMED, Policy, Refusal, RouteRules, Short,
    Unit, limit_bit,
};
use crate::scope::{KeyHash, Level};
use crate::time::{Mono, Span};

impl RouteRules {
    /// Counts and words the refusal of a named scope's only limit.
    #[inline(always)]
    pub(super) fn refuse(&self, refusal: &Refusal, words: [Word; NAMED], wait: Span) -> Denial {
        let Refusal { place, limit, counts } = refusal;
        match (counts, &self.counts) {
            (Some(own), Some(route)) if Arc::ptr_eq(own, route) => own.up_throttled(*limit),
            (own, _) => {
                if let Some(own) = own {
                    own.up(Count::Enforced(*limit));
                }
                self.count(Count::Throttled);
            }
        }
        let [global, group, own] = words;
        let word = match place.level {
            Level::Global => global,
            Level::Group => group,
            Level::Route | Level::Key => own,
        };
        let wait = Some(wait).filter(|wait| wait.as_nanos() != u64::MAX);
        denial(*place, Cause::Limit(*limit), wait, word.epoch())
    }
}

impl Breaker {
    /// Decides where a named gate may block, or an operator overrides its mode. If the widest of these is killed that is the
    /// answer, and no time is asked for.
    #[inline(never)]
    pub(super) fn admit_loud<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        call: &Call,
        words: [Word; NAMED],
        clock: impl FnOnce() -> Mono,
    ) -> Verdict<'a> {
        if self.owns(policy)
            && let Some(denial) = killed(route, words)
        {
            route.count_denial(&denial);
            return Verdict::Deny(denial);
        }
        self.decide(policy, route, call, clock())
    }

    /// Decides on whatever is not the plainest.
    #[inline(never)]
    pub(super) fn admit_other<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        call: &Call,
        now: Mono,
    ) -> Verdict<'a> {
        match &route.short {
            Some(short) => self.decide_shortly(policy, route, short, call, now),
            None => self.decide(policy, route, call, now),
        }
    }

    /// Decides the short way, if every gate is armed without an operator's override and every key has a slot.
    #[inline(always)]
    pub(super) fn decide_shortly<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        short: &'a Short,
        call: &Call,
        now: Mono,
    ) -> Verdict<'a> {
        let words = route.words();
        if !Word::are_quiet(words) {
            return self.decide(policy, route, call, now);
        }
        // The commonest route first: one limit, no key.
        if let Some(lone) = &short.lone
            && let Some(row) = lone.charges.row(0)
        {
            return match row.take(lone.limit, 1, now) {
                Ok(_) => self.allow(policy, route, call, now, words, lone.charged, NO_KEYS),
                Err(wait) => match &lone.refusal {
                    Some(refusal) => Verdict::Deny(route.refuse(refusal, words, wait)),
                    None => self.decide(policy, route, call, now),
                },
            };
        }
        self.decide_few(policy, route, short, call, now, words)
    }

    #[inline(never)]
    fn decide_few<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        short: &'a Short,
        call: &Call,
        now: Mono,
        words: [Word; NAMED],
    ) -> Verdict<'a> {
        let mut keys = NO_KEYS;
        if !short.keys.is_empty()
            && let Err(slotless) = find_keys(short, call, now, &mut keys)
        {
            return self.decide_without(policy, route, call, slotless, now);
        }
        // What a detector finds in calls by another breaker's policy would trip our gates.
        let calm = || self.owns(policy) && (!short.asks_first || is_calm(short, call, &keys, now));
        if !short.hearings.is_empty() && !calm() {
            return self.decide(policy, route, call, now);
        }
        if short.looks_first && !would_pass(short, call, &keys, now) {
            return self.decide(policy, route, call, now);
        }
        let mut taken = [Taken::default(); MAX_SHORT];
        let mut charged = 0;
        for (charge, slot) in short.charges.iter().zip(&mut taken) {
            let Some(row) = row(short, charge, &keys) else { continue };
            match row.take(charge.limit, amount(charge, call), now) {
                Ok(done) => *slot = done,
                Err(wait) => {
                    if charged != 0 {
                        undo(short, &keys, charged, &taken);
                    }
                    if !short.hearings.is_empty() {
                        // Who hears of a call that is refused depends on where: the long way tells them.
                        return self.decide(policy, route, call, now);
                    }
                    return match refusal(short, route, &keys, words, wait) {
                        Some(denial) => {
                            count_refusal(route, short, &denial);
                            Verdict::Deny(denial)
                        }
                        None => self.decide(policy, route, call, now),
                    };
                }
            }
            charged |= limit_bit(charge.seat, u32::from(charge.index));
        }
        if !short.hearings.is_empty()
            && let Some(denial) = self.tell_offer(policy, route, short, call, &keys, now)
        {
            undo(short, &keys, charged, &taken);
            route.count_denial(&denial);
            return Verdict::Deny(denial);
        }
        self.allow(policy, route, call, now, words, charged, keys)
    }

    /// Tells the detectors of an offer that every limit has admitted; a denial, if one trips for it. Named scopes count it first, while
    /// the rows of its keys are on their way here; what they find is acted upon after what the keys' find, narrow to wide. So
    /// the one call that trips a key is counted by the wider scopes too.
    #[inline]
    fn tell_offer(
        &self,
        policy: &Policy,
        route: &RouteRules,
        short: &Short,
        call: &Call,
        keys: &KeySeats,
        now: Mono,
    ) -> Option<Denial> {
        let mut wider: [Option<Found>; NAMED] = [const { None }; NAMED];
        for hearing in &short.hearings {
            if let Some(found) = wider.get_mut(usize::from(hearing.seat)) {
                if let Some(voter) = voter(short, keys) {
                    hearing.tally.voted(0, voter);
                }
                if let Some(seen) = hearing.tally.hears(0, call.print, now) {
                    *found = Some(seen);
                }
            }
        }
        let mut denial = None;
        for hearing in &short.hearings {
            let at = usize::from(hearing.seat);
            let found = match wider.get_mut(at) {
                Some(found) => found.take(),
                None if denial.is_some() => None,
                None => row_heard(hearing, keys)
                    .and_then(|row| hearing.tally.hears(row, call.print, now)),
            };
            if let Some(found) = found {
                let found = self.found_shortly(policy, route, call, (at, &found), now);
                denial = denial.or(found);
            }
        }
        denial
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "all of it goes into one ticket")]
    pub(super) fn allow<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        call: &Call,
        now: Mono,
        words: [Word; NAMED],
        charged: u64,
        keys: KeySeats,
    ) -> Verdict<'a> {
        Verdict::Allow(Permit {
            breaker: self,
            policy,
            route,
            ticket: Ticket {
                policy: policy.number,
                route: call.route.number,
                at: now,
                weight: call.weight,
                charged,
                marks: Marks::new(words.map(Word::epoch), 0, 0, false),
                due: route.due(charged, 0),
                keys,
            },
            shadowed: None,
        })
    }
}

/// The denial of the widest gate that is not quiet, if it is killed for this route.
fn killed(route: &RouteRules, words: [Word; NAMED]) -> Option<Denial> {
    let levels = [Level::Global, Level::Group, Level::Route];
    let mut gates = words.into_iter().zip(route.cells).zip(levels);
    let ((word, index), level) = gates.find(|((word, _), _)| !word.is_quiet())?;
    let State::Killed(kill) = word.state() else { return None };
    let spared = route.class == Class::Reducing && kill == KillLevel::Halt;
    let place = Place { level, index, key: None };
    (!spared).then(|| denial(place, Cause::Killed(kill), None, word.epoch()))
}

/// The row of a call in what detectors count in; `None` if it has no such key.
#[inline]
fn row_heard(hearing: &Hearing, keys: &KeySeats) -> Option<usize> {
    match usize::from(hearing.seat).checked_sub(NAMED) {
        None => Some(0),
        Some(position) => Some(count(keys.get(position).copied().flatten()?.cell())),
    }
}

/// The key that votes on who leads the wider scopes.
#[inline]
fn voter(short: &Short, keys: &KeySeats) -> Option<KeyHash> {
    let mut votes = keys.iter().zip(&short.keys).filter(|(_, dimension)| dimension.votes);
    votes.find_map(|(seat, _)| seat.map(|seat| seat.key))
}

/// Whether no detector would find anything in the call. It is asked where a charge cannot be undone once whoever found something
/// wants the call refused: then whoever finds it is told before anything is charged, as the long way does.
fn is_calm(short: &Short, call: &Call, keys: &KeySeats, now: Mono) -> bool {
    let mut rows =
        short.hearings.iter().filter_map(|one| Some((&one.tally, row_heard(one, keys)?)));
    rows.all(|(tally, row)| tally.is_calm(row, call.print, now))
}

/// Counts a refusal at the limit, and at the route.
#[inline]
fn count_refusal(route: &RouteRules, short: &Short, denial: &Denial) {
    if let [only] = &*short.charges
        && let Some(counts) = &only.counts
    {
        counts.up(Count::Enforced(only.index));
    }
    route.count_denial(denial);
}

/// Finds the slots of the call's keys.
///
/// # Errors
/// A gate does not simply let all pass, or there is no slot for a key: that key's bit.
#[inline]
fn find_keys(short: &Short, call: &Call, now: Mono, keys: &mut KeySeats) -> Result<(), u8> {
    for (dimension, key) in short.keys.iter().zip(call.keys) {
        let Some(key) = key.or(dimension.missing) else { continue };
        dimension.table.fetch(key);
        if let Some(tally) = &dimension.hears {
            // Before it is known where the key stands: mostly there.
            tally.fetch(dimension.table.likely(key));
        }
    }
    let positions = keys.iter_mut().zip(&short.keys).zip(call.keys).zip(0_u8..);
    for (((seat, dimension), key), position) in positions {
        let Some(key) = key.or(dimension.missing) else { continue };
        let table = &dimension.table;
        let cell = if dimension.claims { table.find_or_claim(key, now) } else { table.find(key) };
        let Some(cell) = cell else {
            if dimension.claims {
                return Err(1 << position);
            }
            // Without limits a key needs a slot only once somebody blocks it; the last look asks for it again.
            *seat = Some(KeySeat::new(key, NO_CELL, dimension.number, 0, false));
            continue;
        };
        if let Some(tally) = &dimension.hears
            && cell != table.likely(key)
        {
            tally.fetch(cell);
        }
        let Some(word) = table.word(cell).filter(|word| word.is_quiet()) else { return Err(0) };
        let Ok(at) = u32::try_from(cell) else { return Err(0) };
        *seat = Some(KeySeat::new(key, at, dimension.number, word.epoch(), false));
    }
    Ok(())
}

/// The words of one charge; `None` if the call has no such key.
#[inline]
fn row<'a>(short: &'a Short, charge: &'a Charge, keys: &KeySeats) -> Option<Row<'a>> {
    match &charge.at {
        Charged::Named(charges) => charges.row(0),
        Charged::Key(position, rows) => {
            let seat = keys.get(*position).copied().flatten()?;
            short.keys.get(*position)?.table.row(rows, count(seat.cell()))
        }
    }
}

#[inline(never)]
fn would_pass(short: &Short, call: &Call, keys: &KeySeats, now: Mono) -> bool {
    let rows = short.charges.iter().filter_map(|charge| Some((charge, row(short, charge, keys)?)));
    let mut looks = rows.map(|(charge, row)| row.peek(charge.limit, amount(charge, call), now));
    looks.all(|look| look.is_ok())
}

#[inline(never)]
fn undo(short: &Short, keys: &KeySeats, charged: u64, taken: &[Taken; MAX_SHORT]) {
    for (charge, taken) in short.charges.iter().zip(taken) {
        if charged & limit_bit(charge.seat, u32::from(charge.index)) != 0
            && let Some(row) = row(short, charge, keys)
        {
            row.undo(charge.limit, *taken);
        }
    }
}

/// The denial of an only limit that does no more than refuse.
#[inline]
fn refusal(
    short: &Short,
    route: &RouteRules,
    keys: &KeySeats,
    words: [Word; NAMED],
    wait: Span,
) -> Option<Denial> {
    let [only] = &*short.charges else { return None };
    if !only.refuses {
        return None;
    }
    let seat = usize::from(only.seat);
    let (place, epoch) = if let Some(position) = seat.checked_sub(NAMED) {
        let key = keys.get(position).copied().flatten()?;
        let index = short.keys.get(position)?.index;
        let (table, key, epoch) = (u32::from(key.table()), key.key, key.epoch());
        (Place { level: Level::Key, index: table, key: Some((index, key)) }, epoch)
    } else {
        let level = [Level::Global, Level::Group, Level::Route].get(seat).copied()?;
        let index = route.cells.get(seat).copied()?;
        (Place { level, index, key: None }, words.get(seat)?.epoch())
    };
    let wait = Some(wait).filter(|wait| wait.as_nanos() != u64::MAX);
    Some(denial(place, Cause::Limit(only.index), wait, epoch))
}

/// A call without keys.
const NO_KEYS: KeySeats = [None; MAX_DIMENSIONS];

#[inline]
fn amount(charge: &Charge, call: &Call) -> u64 {
    match charge.by {
        Unit::Calls => 1,
        Unit::Weight => call.weight,
    }
}
