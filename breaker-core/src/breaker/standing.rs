//! What stands, what was counted and what is used up: for people and dashboards. It moves nothing.

use std::sync::OnceLock;

use super::{Breaker, OrderError, Stamp, count};
use crate::cell::Gate;
use crate::charges::Row;
use crate::counts::ScopeCounts;
use crate::facts::{Cause, Mode, Place, State};
use crate::gate::{Input, Word};
use crate::keys::Table;
use crate::limit::Limit;
use crate::permit::NO_CELL;
use crate::policy::{LimitKind, LimitRule, Policy, Rules};
use crate::scope::{KeyHash, Level, Scope};
use crate::sync::Ordering;
use crate::time::Mono;

/// Where a scope stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who.
    pub scope: ScopeOrKey,
    /// Its place.
    pub place: Place,
    /// Its gate's state at the time of reading: an elapsed hold shows half-open.
    pub state: State,
    /// Whether its limits and trips deny: the policy's word, or an operator's override.
    pub mode: Mode,
    /// Why it stands there; `None` if armed.
    pub cause: Option<Cause>,
    /// When its hold ends, if it is tripped and has an end.
    pub until: Option<Mono>,
    /// Trips in the present bad spell.
    pub strikes: u8,
    /// Its gate's epoch.
    pub epoch: u16,
    /// The cell that its gate stands in. Opaque.
    pub cell: u32,
}

impl Standing {
    /// What a lift of the kill or the trip that stands here must name.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        Stamp { place: self.place, epoch: self.epoch, cell: self.cell }
    }
}

/// A named scope, or a key of which the core knows only the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopeOrKey {
    /// `/`, a group or a route.
    Named(Scope),
    /// A key.
    Key {
        /// Where it hangs.
        parent: Scope,
        /// Its dimension.
        dimension: String,
        /// Its label's hash.
        hash: KeyHash,
    },
}

/// How full the keys' tables are, over all dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage {
    /// Cells that belong to a key. One whose key has gone quiet counts until another takes it.
    pub held: u64,
    /// Cells.
    pub cells: u64,
    /// Calls that had to share an overflow cell.
    pub overflowed: u64,
    /// Busy keys that lost their cell to the kill or trip of another.
    pub evicted: u64,
}

/// How full the table of one dimension is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DimensionUsage {
    /// Cells whose key has something to lose: a gate that moved, a limit that was charged and has not passed yet. As of the
    /// newest instant that a sweep or a reload was told.
    pub busy: u64,
    /// Cells that belong to a key, quiet or not.
    pub held: u64,
    /// Cells. Two of each thirty-two are kept for orders.
    pub cells: u64,
    /// Calls that had to share the overflow cell.
    pub overflowed: u64,
    /// Busy keys that lost their cell to the kill or trip of another.
    pub evicted: u64,
    /// First sights beyond the rate that the dimension allows.
    pub turned_away: u64,
}

impl DimensionUsage {
    /// Whether three quarters of the cells are busy: the mark to raise an alarm at.
    #[must_use]
    pub const fn is_crowded(&self) -> bool {
        self.busy >= self.cells.div_ceil(4).saturating_mul(3)
    }
}

/// How far one limit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitUsage {
    /// Used now, in the limit's own unit. It can be more than the bound after a settlement for more than was
    /// reserved, or a reload.
    pub used: u64,
    /// The most that can be used: the count of a window, a budget or calls in flight, the burst of a rate.
    pub bound: u64,
}

impl Breaker {
    /// How far each limit of a scope or key is used, in the order of the policy. A key without a cell uses
    /// nothing, but of limits of its own.
    ///
    /// # Errors
    /// `UnknownScope`.
    pub fn usage(
        &self,
        policy: &Policy,
        scope: &Scope,
        now: Mono,
    ) -> Result<Vec<LimitUsage>, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        let limits = rules.limits_of(place.key.map(|(_, key)| key));
        let bound = |kind| match kind {
            LimitKind::Rate { burst, .. } => burst,
            LimitKind::Window { count, .. }
            | LimitKind::Budget { count, .. }
            | LimitKind::InFlight { count } => count,
        };
        let unused = |rule: &LimitRule| LimitUsage { used: 0, bound: bound(rule.spec.kind) };
        let mut all: Vec<LimitUsage> = limits.iter().map(unused).collect();
        self.each_row(place, rules, |index, limit, row| {
            if let Some(usage) = all.get_mut(index) {
                usage.used = usage.used.max(row.used(limit, now));
            }
        });
        Ok(all)
    }

    /// Visits the words of each limit of a scope or key, by the limit's index; a limit that a reload changed comes with its
    /// earlier self.
    fn each_row(&self, place: Place, rules: &Rules, visit: impl FnMut(usize, Limit, Row<'_>)) {
        let mut at = (None, 0);
        if let Some((_, key)) = place.key {
            let Some(table) = self.table(count(place.index)) else { return };
            // Out of range without a cell: then only limits of the key's own have words.
            at = (Some(table), table.find(key).unwrap_or(usize::MAX));
        }
        each_row_at(place, rules, at, visit);
    }

    /// Where one scope or key stands. A key without a cell is armed.
    ///
    /// # Errors
    /// `UnknownScope`.
    pub fn standing(
        &self,
        policy: &Policy,
        scope: &Scope,
        now: Mono,
    ) -> Result<Standing, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        let found = match place.key {
            None => Some(place.index).zip(self.named_gate(place.index).map(Gate::word)),
            Some((_, key)) => self.table(count(place.index)).and_then(|table| {
                let cell = table.find(key)?;
                u32::try_from(cell).ok().zip(table.gate(cell).map(Gate::word))
            }),
        };
        let at = found.unwrap_or((NO_CELL, Word::default()));
        let scope = match (place.key, scope.parent(), scope.key_parts()) {
            (Some((_, hash)), Some(parent), Some((dimension, _))) => {
                ScopeOrKey::Key { parent, dimension: dimension.to_owned(), hash }
            }
            _ => ScopeOrKey::Named(scope.clone()),
        };
        Ok(standing(scope, place, rules, at, now))
    }

    /// Every named scope of the policy, then every key of it whose gate is not armed.
    #[must_use]
    pub fn standings(&self, policy: &Policy, now: Mono) -> Vec<Standing> {
        let mut all = Vec::new();
        for rules in &policy.scopes {
            let gate = &rules.gate.gate;
            let place = Place { level: rules.scope.level(), index: rules.cell, key: None };
            let scope = ScopeOrKey::Named(rules.scope.clone());
            all.push(standing(scope, place, &rules.rules, (rules.cell, gate.word()), now));
        }
        for rules in &policy.dimensions {
            let table = &*rules.keys;
            let Some(parent) = policy.scopes.get(rules.parent) else { continue };
            for cell in 0..table.cells() {
                let word = table.gate(cell).map(Gate::word).unwrap_or_default();
                let Some(hash) = table.tag(cell).filter(|_| !word.is_armed()) else { continue };
                let key = Some((rules.index, hash));
                let place = Place { level: Level::Key, index: rules.table, key };
                let scope = ScopeOrKey::Key {
                    parent: parent.scope.clone(),
                    dimension: rules.name.clone(),
                    hash,
                };
                let Ok(cell) = u32::try_from(cell) else { continue };
                all.push(standing(scope, place, &rules.rules, (cell, word), now));
            }
        }
        all
    }

    /// How full the keys' tables are.
    #[must_use]
    pub fn key_usage(&self) -> KeyUsage {
        let mut usage = KeyUsage::default();
        for table in self.tables.iter().filter_map(OnceLock::get) {
            usage.held += table.held();
            usage.cells += u64::try_from(table.cells()).unwrap_or(u64::MAX);
            usage.overflowed += table.overflowed();
            usage.evicted += table.evicted();
        }
        usage
    }

    /// How full the table of the dimension is that `parent` declares; `None` if the policy has no such dimension. It looks at
    /// every cell: ask it once in a while.
    #[must_use]
    pub fn key_usage_of(
        &self,
        policy: &Policy,
        parent: &Scope,
        dimension: &str,
    ) -> Option<DimensionUsage> {
        let table = &*policy.dimension(parent, dimension)?.keys;
        // ordering: relaxed, for an instant stands alone.
        let newest = Mono::from_nanos(self.newest.load(Ordering::Relaxed));
        Some(DimensionUsage {
            busy: table.busy(newest),
            held: table.held(),
            cells: u64::try_from(table.cells()).unwrap_or(u64::MAX),
            overflowed: table.overflowed(),
            evicted: table.evicted(),
            turned_away: table.turned_away(),
        })
    }

    /// What became of the calls of a named scope. `None` if the policy does not count there.
    #[must_use]
    pub fn counts(&self, policy: &Policy, scope: &Scope) -> Option<ScopeCounts> {
        Some(policy.named(scope)?.rules.counts.as_ref()?.read())
    }

    /// As [`Breaker::counts`], of the limits of all keys of the dimension that `parent` declares: `enforced` and `detected`
    /// alone, since what became of calls is counted at their route.
    #[must_use]
    pub fn key_counts(
        &self,
        policy: &Policy,
        parent: &Scope,
        dimension: &str,
    ) -> Option<ScopeCounts> {
        Some(policy.dimension(parent, dimension)?.rules.counts.as_ref()?.read())
    }
}

/// As [`Breaker::each_row`], where it is known which table and cell.
pub(super) fn each_row_at(
    place: Place,
    rules: &Rules,
    (table, cell): (Option<&Table>, usize),
    mut visit: impl FnMut(usize, Limit, Row<'_>),
) {
    let limits = rules.limits_of(place.key.map(|(_, key)| key));
    for (index, rule) in limits.iter().enumerate() {
        if let Some(row) = rule.memory.row(table, cell) {
            visit(index, rule.limit, row);
        }
        for before in &rule.before {
            if let Some(row) = before.memory.row(table, cell) {
                visit(index, before.limit, row);
            }
        }
    }
}

fn standing(
    scope: ScopeOrKey,
    place: Place,
    rules: &Rules,
    (cell, word): (u32, Word),
    now: Mono,
) -> Standing {
    let word = word
        .step(Input::Elapsed, &rules.trip, now)
        .filter(|after| after.state() == State::HalfOpen)
        .unwrap_or(word);
    Standing {
        scope,
        place,
        state: word.state(),
        mode: word.mode().unwrap_or(rules.mode),
        cause: word.cause(),
        until: word.until(&rules.trip, now),
        strikes: word.strikes(),
        epoch: word.epoch(),
        cell,
    }
}
