//! The orders of operators: kill, lift, trip, reset, mode. Each names a scope or a stamp, and says what stands after.

use std::fmt;

use super::standing::each_row_at;
use super::{Breaker, count};
use crate::cell::{Gate, Moved};
use crate::facts::{By, KillLevel, Mode, Place, State};
use crate::gate::{Input, LiftTo, TripRule, Word};
use crate::keys::{Ordered, Which};
use crate::limit::Limit;
use crate::policy::{Policy, Rules};
use crate::scope::{Level, Scope};
use crate::time::Mono;

/// Which kill or trip a lift undoes.
///
/// It is good for the life of its breaker. After a restart epochs begin anew, and it may name another kill: take
/// [`Standing::stamp`](crate::Standing::stamp) there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Whose gate.
    pub place: Place,
    /// The gate's epoch after the move.
    pub epoch: u16,
    /// Which cell the gate stood in: a key that came back in another counts other epochs. Opaque.
    pub cell: u32,
}

/// Why an order did nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderError {
    /// The policy is another breaker's.
    Foreign,
    /// No such scope in this policy; with the nearest names, at most 3.
    UnknownScope(Vec<Scope>),
    /// All cells of the key's bucket are blocked or on probation: kill the scope it hangs from.
    NoRoom,
    /// The gate moved on: somebody killed again, or it was lifted.
    Stale,
    /// The gate is killed: that is more than a trip, and is undone by a lift only.
    Killed,
}

impl Breaker {
    /// Raises the gate of a scope or key to at least `level`; on a killed gate it renews the stamp, so that a lift
    /// decided before misses. In force when it returns. To prove silence, call
    /// [`Senders::watch`](crate::Senders::watch) next: the fence stands there.
    ///
    /// # Errors
    /// `UnknownScope`, or `NoRoom` for a key.
    pub fn kill(
        &self,
        policy: &Policy,
        scope: &Scope,
        level: KillLevel,
        now: Mono,
    ) -> Result<Stamp, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        let (cell, word) = self.order(place, Input::Kill(level), &rules.trip, now)?;
        Ok(Stamp { place, epoch: word.epoch(), cell })
    }

    /// Undoes the kill or the trip of a stamp, if the gate has not moved since; returns the stamp of what stands
    /// after. `LiftTo::Halt` on what is no cut changes nothing.
    ///
    /// # Errors
    /// `Stale` if the gate moved on, `UnknownScope` if the policy knows the place no more.
    pub fn lift(
        &self,
        policy: &Policy,
        stamp: Stamp,
        to: LiftTo,
        now: Mono,
    ) -> Result<Stamp, OrderError> {
        if !self.owns(policy) {
            return Err(OrderError::Foreign);
        }
        let Some(rules) = policy.rules_at(stamp.place) else {
            return Err(OrderError::UnknownScope(Vec::new()));
        };
        let input = Input::Lift(stamp.epoch, to);
        let which = Which::In(count(stamp.cell));
        let word = self.order_known(stamp.place, which, input, &rules.trip, now);
        match word {
            Some((_, Some(moved))) => Ok(Stamp { epoch: moved.after.epoch(), ..stamp }),
            Some((word, None)) if to == LiftTo::Halt && word.epoch() == stamp.epoch => Ok(stamp),
            _ => Err(OrderError::Stale),
        }
    }

    /// Trips a scope or key by hand; it holds as the scope's recovery says. A gate that is
    /// tripped already stays as it is, and its stamp is returned.
    ///
    /// # Errors
    /// `UnknownScope`, `NoRoom` for a key, `Killed`.
    pub fn trip(&self, policy: &Policy, scope: &Scope, now: Mono) -> Result<Stamp, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        let (cell, word) = self.order(place, Input::Trip(By::Hand), &rules.trip, now)?;
        if matches!(word.state(), State::Killed(_)) {
            return Err(OrderError::Killed);
        }
        Ok(Stamp { place, epoch: word.epoch(), cell })
    }

    /// Arms a tripped or half-open gate, forgives its strikes, drops an operator's mode and empties the scope's
    /// budgets. False if there was nothing to do. Windows and rates stay as they are: while the window that tripped the gate
    /// still holds too much, the next call trips it again.
    ///
    /// # Errors
    /// `UnknownScope`; `Killed`: a killed gate is lifted, not reset.
    pub fn reset(&self, policy: &Policy, scope: &Scope, now: Mono) -> Result<bool, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        let moved = match self.order_known(place, Which::Known, Input::Reset, &rules.trip, now) {
            Some((_, Some(_))) => true,
            Some((word, None)) if matches!(word.state(), State::Killed(_)) => {
                return Err(OrderError::Killed);
            }
            Some((_, None)) | None => false,
        };
        Ok(self.empty_budgets(place, rules, now) || moved)
    }

    /// Empties the budgets of a scope or key, and leaves its gate alone: whoever asked for more was given it. False if nothing
    /// of them was used.
    ///
    /// # Errors
    /// `UnknownScope`.
    pub fn refill(&self, policy: &Policy, scope: &Scope, now: Mono) -> Result<bool, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        Ok(self.empty_budgets(place, rules, now))
    }

    fn empty_budgets(&self, place: Place, rules: &Rules, now: Mono) -> bool {
        let mut used = false;
        let mut empty = |table, cell| {
            each_row_at(place, rules, (table, cell), |_, limit, row| {
                if matches!(limit, Limit::Budget(_)) && row.used(limit, now) > 0 {
                    row.reset(limit, now);
                    used = true;
                }
            });
        };
        // What they were spent for what they were not charged is over.
        for rule in rules.limits_of(place.key.map(|(_, key)| key)) {
            let before = rule.before.iter().map(|before| (before.limit, &before.memory));
            for (limit, memory) in before.chain([(rule.limit, &rule.memory)]) {
                if matches!(limit, Limit::Budget(_)) {
                    memory.forget_spent();
                }
            }
        }
        match place.key {
            None => empty(None, 0),
            // Under the bucket's lock: the cell may have changed hands since it was found.
            Some((_, key)) => {
                if let Some(table) = self.table(count(place.index)) {
                    table.with_budgets(key, |cell| empty(Some(table), cell));
                }
            }
        }
        used
    }

    /// Overrides a scope's or key's mode until it is reset; `None` gives it back to the policy. It is the mode of this gate alone:
    /// what hangs from a scope, its keys too, goes on as it was.
    ///
    /// # Errors
    /// `UnknownScope`, or `NoRoom` for a key.
    pub fn set_mode(
        &self,
        policy: &Policy,
        scope: &Scope,
        mode: Option<Mode>,
        now: Mono,
    ) -> Result<(), OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        self.order(place, Input::Mode(mode), &rules.trip, now).map(drop)
    }

    /// The place and the rules of a scope.
    pub(super) fn locate<'p>(
        &self,
        policy: &'p Policy,
        scope: &Scope,
    ) -> Result<(Place, &'p Rules), OrderError> {
        if !self.owns(policy) {
            return Err(OrderError::Foreign);
        }
        let unknown = || OrderError::UnknownScope(nearest(policy, scope));
        if let Some((dimension, label)) = scope.key_parts() {
            let parent = scope.parent().ok_or_else(unknown)?;
            let rules = policy.dimension(&parent, dimension).ok_or_else(unknown)?;
            // Where calls without the key are not judged, nothing could be done to them.
            let missing = || rules.missing.ok_or_else(unknown);
            let hash = if label.is_empty() { missing()? } else { self.hash(&label) };
            let key = Some((rules.index, hash));
            Ok((Place { level: Level::Key, index: rules.table, key }, &rules.rules))
        } else {
            let rules = policy.named(scope).ok_or_else(unknown)?;
            let place = Place { level: scope.level(), index: rules.cell, key: None };
            Ok((place, &rules.rules))
        }
    }

    /// An order that may claim a key's cell; returns the cell and the word that stands after.
    fn order(
        &self,
        place: Place,
        input: Input,
        rule: &TripRule,
        now: Mono,
    ) -> Result<(u32, Word), OrderError> {
        let unknown = OrderError::UnknownScope(Vec::new());
        let Some((_, key)) = place.key else {
            let moved = self.step_named(place.index, input, rule, now);
            let stands = moved.map(|moved| moved.after);
            let word = stands.or_else(|| self.named_gate(place.index).map(Gate::word));
            return word.map(|word| (place.index, word)).ok_or(unknown);
        };
        let Some(table) = self.table(count(place.index)) else { return Err(unknown) };
        match table.order(key, input, rule, now, Which::Claimed) {
            Ordered::Done(cell, moved) => {
                let stands = moved.map(|moved| moved.after);
                let word = stands.or_else(|| table.gate(cell).map(Gate::word));
                u32::try_from(cell).ok().zip(word).ok_or(unknown)
            }
            Ordered::Unknown | Ordered::NoRoom => Err(OrderError::NoRoom),
        }
    }

    /// An order that claims nothing: the word that stands, and the move if there was one.
    fn order_known(
        &self,
        place: Place,
        which: Which,
        input: Input,
        rule: &TripRule,
        now: Mono,
    ) -> Option<(Word, Option<Moved>)> {
        let (gate, moved) = if let Some((_, key)) = place.key {
            let table = self.table(count(place.index))?;
            let Ordered::Done(cell, moved) = table.order(key, input, rule, now, which) else {
                return None;
            };
            (table.gate(cell)?, moved)
        } else {
            let moved = self.step_named(place.index, input, rule, now);
            (self.named_gate(place.index)?, moved)
        };
        Some((moved.map_or_else(|| gate.word(), |moved| moved.after), moved))
    }
}

fn nearest(policy: &Policy, scope: &Scope) -> Vec<Scope> {
    let named = scope.key_parts().and_then(|_| scope.parent());
    let wanted = named.as_ref().unwrap_or(scope).as_str();
    let mut near: Vec<(usize, &Scope)> = policy
        .scopes()
        .map(|known| (strsim::damerau_levenshtein(wanted, known.as_str()), known))
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, known)| known.clone()).collect()
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OrderError::Foreign => {
                f.write_str("the policy is another breaker's; use one that this breaker compiled")
            }
            OrderError::UnknownScope(near) if near.is_empty() => f.write_str("no such scope"),
            OrderError::UnknownScope(near) => {
                f.write_str("no such scope; the nearest are")?;
                near.iter().try_for_each(|scope| write!(f, " {scope}"))
            }
            OrderError::NoRoom => {
                f.write_str("no room for the key among blocked ones; kill the scope it hangs from")
            }
            OrderError::Stale => f.write_str(
                "the gate has moved on since; look where it stands, and name the stamp of that",
            ),
            OrderError::Killed => f.write_str("the gate is killed; lift that first"),
        }
    }
}

impl std::error::Error for OrderError {}
