//! The short way through a decision: gates that let all pass and a few plain charges, without a list of seats. Whatever
//! it cannot tell at once it leaves, undone, to the long way.

use super::{Breaker, Call, count, denial};
use crate::charges::{Row, Taken};
use crate::counts::Count;
use crate::facts::{Cause, Place};
use crate::gate::Word;
use crate::permit::{KeySeat, KeySeats, Permit, Ticket, Verdict};
use crate::policy::{Charge, MAX_SHORT, NAMED, Policy, RouteRules, Short, Unit, limit_bit};
use crate::scope::Level;
use crate::time::{Mono, Span};

impl Breaker {
    /// Decides, if that is simple: every gate armed without an operator's override, every key known.
    #[inline]
    pub(super) fn decide_shortly<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        short: &'a Short,
        call: &Call,
        now: Mono,
    ) -> Option<Verdict<'a>> {
        let [global, group, own] = route.cells;
        let words = [self.word(global)?, self.word(group)?, self.word(own)?];
        if !Word::are_quiet(words) {
            return None;
        }
        let keys = if route.dimensions.is_empty() {
            None
        } else {
            self.key_seats(policy, route, call, now)?
        };
        if short.looks_first && !self.would_pass(policy, route, short, call, &keys, now) {
            return None;
        }
        let mut taken = [Taken::default(); MAX_SHORT];
        let mut charged = 0;
        for (charge, slot) in short.charges.iter().zip(&mut taken) {
            let Some(row) = self.row(policy, route, charge, &keys)? else { continue };
            match row.take(charge.limit, amount(charge, call), now) {
                Ok(done) => *slot = done,
                Err(wait) => {
                    self.undo_short(policy, route, short, &keys, charged, &taken);
                    return self.refuse_shortly(policy, route, short, &keys, words, wait);
                }
            }
            charged |= limit_bit(charge.seat, u32::from(charge.index));
        }
        let ticket = Ticket {
            policy: policy.number,
            route: call.route.0,
            at: now,
            weight: call.weight,
            charged,
            epochs: words.map(Word::epoch),
            probes: 0,
            shadow: 0,
            reducing: false,
            due: route.counts || charged & route.hears != 0,
            keys,
        };
        Some(Verdict::Allow(Permit { breaker: self, policy, ticket, shadowed: None }))
    }

    #[inline]
    fn word(&self, cell: u32) -> Option<Word> {
        Some(self.cells.get(count(cell))?.gate.word())
    }

    /// The call's keys, each known and with a gate that lets all pass.
    #[inline]
    fn key_seats(
        &self,
        policy: &Policy,
        route: &RouteRules,
        call: &Call,
        now: Mono,
    ) -> Option<KeySeats> {
        let mut seats = [None; 4];
        let mut any = false;
        for ((seat, &dimension), key) in seats.iter_mut().zip(&route.dimensions).zip(call.keys) {
            let Some(key) = key else { continue };
            let rules = policy.dimensions.get(dimension)?;
            let table = self.table(count(rules.table))?;
            let cell = if rules.claims {
                table.find_or_claim(key, now)?
            } else {
                // Without limits a key needs a slot only once somebody blocks it.
                table.find(key)?
            };
            let word = table.gate(cell)?.word();
            if !word.is_quiet() {
                return None;
            }
            let cell = u32::try_from(cell).ok()?;
            let table = u8::try_from(rules.table).ok()?;
            *seat = Some(KeySeat { key, cell, table, shadow: false, epoch: word.epoch() });
            any = true;
        }
        Some(any.then_some(seats))
    }

    /// The words of one charge; `Some(None)` if the call has no such key.
    #[inline]
    fn row<'a>(
        &'a self,
        policy: &'a Policy,
        route: &RouteRules,
        charge: &'a Charge,
        keys: &KeySeats,
    ) -> Option<Option<Row<'a>>> {
        let Some(position) = usize::from(charge.seat).checked_sub(NAMED) else {
            return Some(Some(charge.memory.row(None, 0)?));
        };
        let Some(seat) = keys.as_ref().and_then(|keys| keys.get(position).copied().flatten())
        else {
            return Some(None);
        };
        let rules = policy.dimensions.get(*route.dimensions.get(position)?)?;
        let table = self.table(count(rules.table));
        Some(Some(charge.memory.row(table, count(seat.cell))?))
    }

    #[inline(never)]
    fn would_pass(
        &self,
        policy: &Policy,
        route: &RouteRules,
        short: &Short,
        call: &Call,
        keys: &KeySeats,
        now: Mono,
    ) -> bool {
        short.charges.iter().all(|charge| match self.row(policy, route, charge, keys) {
            Some(Some(row)) => row.peek(charge.limit, amount(charge, call), now).is_ok(),
            Some(None) => true,
            None => false,
        })
    }

    #[inline(never)]
    fn undo_short(
        &self,
        policy: &Policy,
        route: &RouteRules,
        short: &Short,
        keys: &KeySeats,
        charged: u64,
        taken: &[Taken; MAX_SHORT],
    ) {
        for (charge, taken) in short.charges.iter().zip(taken) {
            if charged & limit_bit(charge.seat, u32::from(charge.index)) != 0
                && let Some(Some(row)) = self.row(policy, route, charge, keys)
            {
                row.undo(charge.limit, *taken);
            }
        }
    }

    /// The refusal of an only limit that does no more than refuse.
    #[inline]
    fn refuse_shortly<'a>(
        &'a self,
        policy: &'a Policy,
        route: &'a RouteRules,
        short: &Short,
        keys: &KeySeats,
        words: [Word; NAMED],
        wait: Span,
    ) -> Option<Verdict<'a>> {
        let [only] = &*short.charges else { return None };
        if !only.refuses {
            return None;
        }
        let seat = usize::from(only.seat);
        let (place, epoch) = if let Some(position) = seat.checked_sub(NAMED) {
            let key = keys.as_ref()?.get(position).copied().flatten()?;
            let index = policy.dimensions.get(*route.dimensions.get(position)?)?.index;
            let place = Place {
                level: Level::Key,
                index: u32::from(key.table),
                key: Some((index, key.key)),
            };
            (place, key.epoch)
        } else {
            let level = [Level::Global, Level::Group, Level::Route].get(seat).copied()?;
            let place = Place { level, index: route.cells.get(seat).copied()?, key: None };
            (place, words.get(seat)?.epoch())
        };
        if let Some(counts) = policy.seat(route, seat).and_then(|rules| rules.counts.as_ref()) {
            counts.up(Count::Enforced(only.index));
        }
        let wait = Some(wait).filter(|wait| wait.as_nanos() != u64::MAX);
        let denial = denial(place, Cause::Limit(only.index), wait, epoch);
        self.count_denial(policy, route, &denial);
        Some(Verdict::Deny(denial))
    }
}

#[inline]
fn amount(charge: &Charge, call: &Call) -> u64 {
    match charge.by {
        Unit::Calls => 1,
        Unit::Weight => call.weight,
    }
}
