//! Who has which memory, by name: what a new policy takes over from earlier ones. It decides no call and moves no gate.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::{Breaker, MAX_TABLES, count};
use crate::cell::Gate;
use crate::charges::{Charges, Filled, Row};
use crate::counts::Counts;
use crate::detect::Compiled;
use crate::keys::{Charged, INLINE, Kept, Rows, Table, cells_for};
use crate::limit::Limit;
use crate::policy::{
    Before, Counting, Draft, DraftKey, DraftRules, KeyRules, LimitKind, LimitRule, LimitSpec,
    Memory, Missing, Policy, PolicyError, Recover, Rules, ScopeRules, Unit,
};
use crate::scope::{KeyHash, Scope};
use crate::tally::Tally;
use crate::time::{Mono, Span};

/// Who has which memory, by name.
pub(super) struct Registry {
    scopes: BTreeMap<Scope, ScopeEntry>,
    /// Cells that no scope has.
    free: Vec<u32>,
    tables: BTreeMap<(Scope, String), TableEntry>,
    /// Policies compiled.
    serial: u64,
    /// The policies that may still be in use, by serial; each limit's rule holds its policy's token.
    living: Vec<(u64, Weak<()>)>,
}

struct ScopeEntry {
    cell: u32,
    /// Shared with every policy that names the scope.
    claim: Arc<()>,
    kept: Memories,
}

struct TableEntry {
    table: u32,
    kept: Memories,
    /// By the labels of the keys with limits of their own, or that had them until lately.
    overrides: BTreeMap<Vec<u8>, Memories>,
    newcomers: Option<Limit>,
}

/// What one scope, the keys of one dimension, or one key with limits of its own keep from policy to policy.
#[derive(Default)]
struct Memories {
    limits: Vec<Known>,
    /// Memory that no new policy charges any more, while an older one may.
    retired: Vec<Earlier>,
    tally: Option<Arc<Tally>>,
    counts: Option<Arc<Counts>>,
}

/// A limit's memory.
///
/// Of a limit whose arithmetic changed every policy charges the new memory, and beside it that of each earlier self that
/// a living policy still charges as its own. So the memory of the oldest self sees the calls of all policies, that of the
/// second those of all but the oldest, and so on: no two policies admit more together than the larger of their bounds.
#[derive(Clone)]
struct Known {
    identity: Identity,
    limit: Limit,
    memory: Memory,
    /// The first policy that had the memory as its own, and the last.
    since: u64,
    last: u64,
    /// When it was first seen that no living policy has the limit.
    gone: Option<Mono>,
    /// What it was before, the oldest first: charged beside it.
    older: Vec<Earlier>,
}

/// What a limit was.
#[derive(Clone)]
struct Earlier {
    limit: Limit,
    memory: Memory,
    /// The first policy that had the memory as its own, and the last.
    since: u64,
    until: u64,
    /// The last policy that may charge it at all, once no new one does.
    last: u64,
    /// When it was first seen that no living policy has it as its own.
    drained: Option<Mono>,
}

/// One compilation.
struct Turn {
    now: Mono,
    serial: u64,
    /// The policies that live, by serial, the oldest first.
    living: Vec<u64>,
    /// Held by the new policy while it lives.
    token: Arc<()>,
}

/// Which rows of a limit's memory there are, and of which table.
#[derive(Clone)]
struct Cells<'a> {
    table: Option<&'a Table>,
    rows: Range<usize>,
}

/// By what a limit is known again. A limit by another unit, or one that time restores against one that it does not, is another
/// limit whatever its name: what the one counted says nothing of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Its name, its unit and how it comes back.
    Named(String, Unit, Healing),
    /// What it counts, and how many like it stand before it.
    Like {
        /// Its kind.
        kind: &'static str,
        /// Its unit.
        by: Unit,
        /// What it counts.
        of: Counting,
        /// Whether it is only tried.
        candidate: bool,
        /// Its place among its like.
        nth: usize,
    },
}

/// How what a limit took comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Healing {
    /// By time.
    Time,
    /// By an order, or a long calm.
    Order,
    /// With the end of each call.
    End,
}

impl Registry {
    /// A registry of no scopes, with so many cells to give.
    pub(super) fn new(cells: u32) -> Registry {
        Registry {
            scopes: BTreeMap::new(),
            free: (0..cells).rev().collect(),
            tables: BTreeMap::new(),
            serial: 0,
            living: Vec::new(),
        }
    }

    pub(super) fn compile(
        &mut self,
        breaker: &Breaker,
        draft: Draft,
        now: Mono,
    ) -> Result<Policy, Vec<PolicyError>> {
        self.make_room(breaker, &draft)?;
        let turn = self.turn(now);
        let mut scopes = Vec::new();
        for draft in draft.scopes {
            let Some(entry) = self.scope(&draft.scope) else { return Err(Vec::new()) };
            let cells = Cells { table: None, rows: 0..1 };
            let rules = entry.kept.rules(&draft.rules, &cells, &turn, own_row);
            scopes.push(ScopeRules {
                level: draft.scope.level(),
                scope: draft.scope,
                cell: entry.cell,
                gate: breaker.cells.get(count(entry.cell)).cloned().unwrap_or_default(),
                _claim: Arc::clone(&entry.claim),
                rules,
            });
        }
        let mut dimensions = Vec::new();
        for draft in draft.dimensions {
            let parent = scopes.get(draft.parent).map(|rules: &ScopeRules| rules.scope.clone());
            let parent = parent.unwrap_or_else(Scope::global);
            let Some(rules) = self.dimension(breaker, parent, draft, &turn) else {
                return Err(Vec::new());
            };
            dimensions.push(rules);
        }
        Ok(Policy::new(breaker.number, scopes, dimensions, draft.routes))
    }

    fn turn(&mut self, now: Mono) -> Turn {
        self.living.retain(|(_, token)| token.strong_count() > 0);
        let living = self.living.iter().map(|(serial, _)| *serial).collect();
        self.serial += 1;
        let token = Arc::new(());
        self.living.push((self.serial, Arc::downgrade(&token)));
        Turn { now, serial: self.serial, living, token }
    }

    fn dimension(
        &mut self,
        breaker: &Breaker,
        parent: Scope,
        draft: DraftKey,
        turn: &Turn,
    ) -> Option<KeyRules> {
        let cells = cells_for(count(breaker.capacity.keys));
        let next = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        let entry = self.tables.entry((parent, draft.name.clone())).or_insert_with(|| TableEntry {
            table: next,
            kept: Memories::default(),
            overrides: BTreeMap::new(),
            newcomers: None,
        });
        let slot = breaker.tables.get(count(entry.table))?;
        let table = slot.get_or_init(|| Arc::new(Table::new(cells)));
        let mut columns = entry.free_columns();
        let rows = |limit: Limit| {
            if limit.words() == 1
                && let Some(column) = columns.pop()
            {
                table.clear(column);
                return Memory::Keys(Rows::Inline(column));
            }
            Memory::Keys(Rows::Beside(Arc::new(Charges::for_rows(limit, cells + 1))))
        };
        let all = Cells { table: Some(table), rows: 0..cells + 1 };
        let mut rules = entry.kept.rules(&draft.rules, &all, turn, rows);
        rules.overrides = entry.overrides(breaker, &draft.rules, table, turn);
        entry.welcome(draft.newcomers, table);
        let manual = matches!(draft.recover, Recover::Manual { .. });
        table.keep(&Arc::new(Kept { manual, ..entry.kept() }));
        let claims = !rules.limits.is_empty() || rules.tally.is_some();
        Some(KeyRules {
            name: draft.name,
            parent: draft.parent,
            table: entry.table,
            keys: Arc::clone(table),
            index: draft.index,
            missing: (draft.missing == Missing::Share).then_some(KeyHash::MISSING),
            claims,
            rules,
        })
    }

    /// Finds cells and tables for what is new, before anything is changed.
    fn make_room(&mut self, breaker: &Breaker, draft: &Draft) -> Result<(), Vec<PolicyError>> {
        let named: BTreeSet<&Scope> = draft.scopes.iter().map(|draft| &draft.scope).collect();
        let new = named.iter().filter(|scope| !self.scopes.contains_key(**scope)).count();
        let mut idle = Vec::new();
        if new > self.free.len() {
            let gates = |cell: u32| breaker.named_gate(cell).map(Gate::word).unwrap_or_default();
            let unused = self.scopes.iter().filter(|(scope, entry)| {
                !named.contains(scope)
                    && Arc::strong_count(&entry.claim) == 1
                    && gates(entry.cell).is_fresh()
            });
            idle.extend(unused.map(|(scope, _)| scope.clone()));
        }
        let mut errors = Vec::new();
        let room = self.free.len() + idle.len();
        if new > room {
            errors.push(PolicyError {
                path: "routes".to_owned(),
                problem: format!(
                    "{new} new scopes, and room for {room}: earlier policies are in use, or their \
                     scopes blocked"
                ),
                hint: "raise the capacity for scopes, or lift what is blocked".to_owned(),
            });
        }
        let unknown = draft.dimensions.iter().filter(|key| {
            let parent = draft.scopes.get(key.parent).map(|draft| draft.scope.clone());
            parent.is_some_and(|parent| !self.tables.contains_key(&(parent, key.name.clone())))
        });
        let tables = self.tables.len() + unknown.count();
        if tables > MAX_TABLES {
            errors.push(PolicyError {
                path: "keys".to_owned(),
                problem: format!(
                    "{tables} key dimensions since the start, and room for {MAX_TABLES}"
                ),
                hint: "restart to forget those that no policy declares any more".to_owned(),
            });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        // No more are forgotten than must be: a scope that comes back later finds what it had.
        let missing = new.saturating_sub(self.free.len());
        for scope in idle.into_iter().take(missing) {
            self.free.extend(self.scopes.remove(&scope).map(|entry| entry.cell));
        }
        Ok(())
    }

    fn scope(&mut self, scope: &Scope) -> Option<&mut ScopeEntry> {
        if !self.scopes.contains_key(scope) {
            let cell = self.free.pop()?;
            let entry = ScopeEntry { cell, claim: Arc::new(()), kept: Memories::default() };
            self.scopes.insert(scope.clone(), entry);
        }
        self.scopes.get_mut(scope)
    }
}

impl TableEntry {
    /// The keys with limits of their own, and those that had them until lately: by hash.
    fn overrides(
        &mut self,
        breaker: &Breaker,
        draft: &DraftRules,
        table: &Table,
        turn: &Turn,
    ) -> Box<[(KeyHash, Box<[LimitRule]>)]> {
        let mut rules = Vec::new();
        let mut kept = BTreeMap::new();
        for (label, limits) in &draft.overrides {
            let key = breaker.hash(label);
            let mut own = self.overrides.remove(label).unwrap_or_default();
            // What the key has been charged so far, it was as one of many.
            for shared in &self.kept.limits {
                if own.limits.iter().all(|known| known.identity != shared.identity) {
                    own.limits.push(shared.clone());
                }
            }
            let cells = Cells { table: Some(table), rows: rows_of(table, key) };
            rules.push((key, own.limits(limits, &cells, turn, own_row)));
            kept.insert(label.clone(), own);
        }
        for (label, mut own) in std::mem::take(&mut self.overrides) {
            let key = breaker.hash(&label);
            if let Some(limits) = own.back_among(&self.kept, &draft.limits, key, table, turn) {
                rules.push((key, limits));
            }
            if own.lingers(turn) {
                kept.insert(label, own);
            }
        }
        let mut excess = kept.len().saturating_sub(draft.overrides.len() + MAX_FORMER);
        kept.retain(|_, own| {
            let keep = excess == 0 || own.limits.iter().any(|known| known.gone.is_none());
            excess -= usize::from(!keep);
            keep
        });
        self.overrides = kept;
        rules.sort_by_key(|(key, _)| *key);
        rules.into()
    }

    fn welcome(&mut self, newcomers: Option<Limit>, table: &Table) {
        let same = match (self.newcomers, newcomers) {
            (Some(was), Some(limit)) => was.shares_memory_with(limit),
            _ => false,
        };
        if !same {
            table.forget_sights();
        }
        self.newcomers = newcomers;
    }

    fn memories(&self) -> impl Iterator<Item = &Memories> {
        std::iter::once(&self.kept).chain(self.overrides.values())
    }

    /// Inline columns that no living policy charges.
    fn free_columns(&self) -> Vec<usize> {
        let mut used = Vec::new();
        for (_, memory) in self.memories().flat_map(Memories::all) {
            if let Memory::Keys(Rows::Inline(column)) = memory {
                used.push(*column);
            }
        }
        (0..INLINE).rev().filter(|column| !used.contains(column)).collect()
    }

    /// What makes a slot busy.
    fn kept(&self) -> Kept {
        let mut kept = Kept { newcomers: self.newcomers, ..Kept::default() };
        for (limit, memory) in self.memories().flat_map(Memories::all) {
            let Memory::Keys(rows) = memory else { continue };
            if !kept.limits.iter().any(|known| known.limit == limit && known.rows.are(rows)) {
                kept.limits.push(Charged { limit, rows: rows.clone() });
            }
        }
        kept.tallies.extend(self.kept.tally.clone());
        kept
    }
}

impl Memories {
    /// The rules with their memory: what is known of each limit, detector and count, else new.
    fn rules(
        &mut self,
        draft: &DraftRules,
        cells: &Cells<'_>,
        turn: &Turn,
        new: impl FnMut(Limit) -> Memory,
    ) -> Rules {
        let limits = self.limits(&draft.limits, cells, turn, new);
        let counts = (draft.counts || cells.table.is_some())
            .then(|| Arc::clone(self.counts.get_or_insert_with(|| Arc::new(Counts::new()))));
        let tally = self.tally(&draft.detectors, cells.table.map(Table::cells));
        let overrides = Box::default();
        let DraftRules { trip, mode, spent_after_crash, .. } = *draft;
        Rules { trip, mode, limits, overrides, tally, counts, spent_after_crash }
    }

    /// What the detectors count in: as it was, if they are the same.
    fn tally(&mut self, rules: &Compiled, cells: Option<usize>) -> Option<Arc<Tally>> {
        if rules.is_empty() {
            return None;
        }
        let known = self.tally.take().filter(|known| **known.rules() == *rules);
        let tally = known.unwrap_or_else(|| {
            let rules = Arc::new(rules.clone());
            Arc::new(match cells {
                Some(cells) => Tally::for_cells(rules, cells),
                None => {
                    let counted = self.counts.as_ref().map(|counts| counts.read().ended());
                    Tally::for_scope(rules).counting_from(counted.unwrap_or_default())
                }
            })
        });
        self.tally = Some(Arc::clone(&tally));
        Some(tally)
    }

    fn limits(
        &mut self,
        specs: &[(LimitSpec, Limit)],
        cells: &Cells<'_>,
        turn: &Turn,
        mut new: impl FnMut(Limit) -> Memory,
    ) -> Box<[LimitRule]> {
        let mut old = std::mem::take(&mut self.limits);
        let mut rules = Vec::new();
        for ((spec, limit), identity) in specs.iter().zip(identities(specs.iter().map(|s| &s.0))) {
            let found = old.iter().position(|known| known.identity == identity);
            let known = match found.map(|index| old.swap_remove(index)) {
                Some(mut known) => {
                    self.retired.extend(known.forget_older(cells, turn));
                    known.changed_to(*limit, cells, turn, &mut new)
                }
                None => Known::new(identity, *limit, new(*limit), turn),
            };
            rules.push(known.rule(spec, turn));
            self.limits.push(known);
        }
        self.remember(old, turn);
        rules.into()
    }

    /// The limits of a key that has none of its own any more: those of its dimension, charged beside what it had.
    /// `None` once that has passed.
    fn back_among(
        &mut self,
        all: &Memories,
        specs: &[(LimitSpec, Limit)],
        key: KeyHash,
        table: &Table,
        turn: &Turn,
    ) -> Option<Box<[LimitRule]>> {
        let mut old = std::mem::take(&mut self.limits);
        let mut rules = Vec::new();
        let mut lasts = false;
        for (spec, _) in specs {
            let position = rules.len();
            let Some(shared) = all.limits.get(position) else { continue };
            let found = old.iter().position(|known| known.identity == shared.identity);
            let known = match found.map(|index| old.swap_remove(index)) {
                Some(mut own) => {
                    let cells = Cells { table: Some(table), rows: rows_of(table, key) };
                    self.retired.extend(own.forget_older(&cells, turn));
                    own.return_to(shared, key, table, turn)
                }
                None => shared.clone(),
            };
            lasts |= known.older.iter().any(|own| !shared.older.iter().any(|all| all.covers(own)));
            rules.push(known.rule(spec, turn));
            self.limits.push(known);
        }
        self.remember(old, turn);
        if !lasts {
            self.limits.retain(|known| known.last != turn.serial);
        }
        lasts.then(|| rules.into())
    }

    /// Remembers limits that the new policy does not have, for as long as they may be charged, and until all that was has
    /// passed: who takes a limit out and puts it in again gets no second burst.
    fn remember(&mut self, others: Vec<Known>, turn: &Turn) {
        for mut known in others {
            if turn.lives(known.since, known.last) {
                self.limits.push(known);
                continue;
            }
            let gone = *known.gone.get_or_insert(turn.now);
            let recovery = known.limit.recovery();
            if recovery == FOREVER || turn.now < gone.plus(recovery) {
                self.limits.push(known);
            } else {
                self.retired.append(&mut known.older);
            }
        }
        let mut excess = self.limits.iter().filter(|known| known.gone.is_some()).count();
        self.limits.retain(|known| {
            let keep = known.gone.is_none() || excess <= MAX_REMEMBERED;
            excess -= usize::from(!keep);
            keep
        });
        self.retired.retain(|earlier| turn.lives(0, earlier.last));
    }

    /// Whether a key's own memory must be kept although it has no limits of its own any more.
    fn lingers(&self, turn: &Turn) -> bool {
        !self.retired.is_empty()
            || self.limits.iter().any(|known| {
                known.last == turn.serial || known.gone.is_none() || !known.older.is_empty()
            })
    }

    /// All memory that a living policy may charge.
    fn all(&self) -> impl Iterator<Item = (Limit, &Memory)> {
        let own = self.limits.iter().map(|known| (known.limit, &known.memory));
        let older = self.limits.iter().flat_map(|known| &known.older).chain(&self.retired);
        own.chain(older.map(|earlier| (earlier.limit, &earlier.memory)))
    }
}

impl Identity {
    /// The same as a text.
    pub(super) fn text(&self) -> String {
        match self {
            Identity::Named(name, by, healing) => format!("{name} ({by:?}, {healing:?})"),
            Identity::Like { kind, by, of, candidate, nth } => {
                format!(
                    "{kind} {nth} ({by:?}, {of:?}, {})",
                    if *candidate { "tried" } else { "live" }
                )
            }
        }
    }
}

impl Turn {
    /// Whether a policy of these lives.
    fn lives(&self, first: u64, last: u64) -> bool {
        self.living.iter().any(|serial| (first..=last).contains(serial))
    }
}

impl Known {
    fn new(identity: Identity, limit: Limit, memory: Memory, turn: &Turn) -> Known {
        Known {
            identity,
            limit,
            memory,
            since: turn.serial,
            last: turn.serial,
            gone: None,
            older: Vec::new(),
        }
    }

    fn rule(&self, spec: &LimitSpec, turn: &Turn) -> LimitRule {
        LimitRule {
            spec: spec.clone(),
            limit: self.limit,
            memory: self.memory.clone(),
            _live: Arc::clone(&turn.token),
            before: self
                .older
                .iter()
                .map(|older| Before { limit: older.limit, memory: older.memory.clone() })
                .collect(),
        }
    }

    /// All its selves, this one the last.
    fn into_earlier(self, turn: &Turn) -> Vec<Earlier> {
        let Known { limit, memory, mut since, mut older, .. } = self;
        let until = turn.serial.saturating_sub(1);
        // A memory that came back is charged once, for as long as whoever had it first.
        older.retain(|older| {
            let same = older.memory.is(&memory);
            since = if same { since.min(older.since) } else { since };
            !same
        });
        older.push(Earlier { limit, memory, since, until, last: until, drained: None });
        older
    }

    /// Forgets each earlier self once no living policy has it as its own, and all that was charged there alone has passed.
    ///
    /// If the present self is no living policy's (its policy was thrown away), the one before it is the present one again: it
    /// has seen all the calls of the later one too.
    fn forget_older(&mut self, cells: &Cells<'_>, turn: &Turn) -> Vec<Earlier> {
        while !turn.lives(self.since, self.last)
            && turn.lives(0, self.since.saturating_sub(1))
            && let Some(before) = self.older.pop()
        {
            (self.limit, self.memory) = (before.limit, before.memory);
            (self.since, self.last) = (before.since, before.until);
        }
        let limits = self.older.iter().map(|older| older.limit).chain([self.limit]);
        let finite = limits.map(Limit::recovery).filter(|recovery| *recovery != FOREVER);
        let recovery = finite.max().unwrap_or_default();
        let mut forgotten = Vec::new();
        for mut older in std::mem::take(&mut self.older) {
            if turn.lives(older.since, older.until) {
                older.drained = None;
                self.older.push(older);
                continue;
            }
            let since = *older.drained.get_or_insert(turn.now);
            if turn.now < since.plus(recovery) {
                self.older.push(older);
                continue;
            }
            if self.limit.recovery() == FOREVER {
                self.take_over(&older, cells, turn.now);
            }
            older.last = turn.serial.saturating_sub(1);
            forgotten.push(older);
        }
        forgotten
    }

    /// Of what never passes: charges what an earlier self was charged alone. A call that is between its two charges just now
    /// is missed, which is why it is done once no policy that makes only one has lived for a while.
    fn take_over(&self, older: &Earlier, cells: &Cells<'_>, now: Mono) {
        for cell in cells.rows.clone() {
            let row = self.memory.row(cells.table, cell);
            let was = older.memory.row(cells.table, cell);
            let Some((row, was)) = row.zip(was) else { continue };
            let alone = was.used(older.limit, now).saturating_sub(row.used(self.limit, now));
            row.settle(self.limit, 0, alone, now, now);
        }
    }

    /// The same limit by new numbers: with its memory if only the bound differs, else with a new one that starts with what the
    /// old was charged.
    fn changed_to(
        mut self,
        limit: Limit,
        cells: &Cells<'_>,
        turn: &Turn,
        new: impl FnOnce(Limit) -> Memory,
    ) -> Known {
        (self.last, self.gone) = (turn.serial, None);
        if self.limit == limit || self.limit.shares_memory_with(limit) {
            self.excuse_by(limit, cells, turn.now);
            return Known { limit, ..self };
        }
        let memory = new(limit);
        seed(&memory, limit, &self, cells, turn.now);
        let mut next = Known::new(self.identity.clone(), limit, memory, turn);
        if turn.lives(self.since, self.last_before(turn)) || !self.older.is_empty() {
            next.older = self.into_earlier(turn);
        }
        next
    }

    /// What keys were spent for by a larger bound excuses them for as long as it lasts: what is noted of a slot is when it was
    /// spent, and a smaller bound recovers sooner.
    fn excuse_by(&self, limit: Limit, cells: &Cells<'_>, now: Mono) {
        if !matches!(self.memory, Memory::Keys(_)) || limit.recovery() >= self.limit.recovery() {
            return;
        }
        for cell in cells.rows.clone() {
            let until = self.memory.spent_until(cells.table, cell, self.limit);
            if let Some(until) = until.filter(|until| now < *until) {
                self.memory.note_spent(cells.table, cell, limit, until);
            }
        }
    }

    fn last_before(&self, turn: &Turn) -> u64 {
        self.last.min(turn.serial.saturating_sub(1))
    }

    /// A key's own limit becomes that of all keys of its dimension.
    fn return_to(self, shared: &Known, key: KeyHash, table: &Table, turn: &Turn) -> Known {
        let mut next = Known { last: turn.serial, gone: None, ..shared.clone() };
        let shares = |older: &Earlier| older.memory.is(&shared.memory);
        // If what all keys charge is charged already, it has seen every call of its later selves.
        if !self.memory.is(&shared.memory) && !self.older.iter().any(shares) {
            self.carry_to(shared, key, table, turn.now);
        }
        let mut older = self.into_earlier(turn);
        older.retain(|older| !shares(older));
        for earlier in &shared.older {
            match older.iter_mut().find(|known| known.memory.is(&earlier.memory)) {
                Some(known) => known.lives_as(earlier),
                None => older.push(earlier.clone()),
            }
        }
        next.older = older;
        next
    }

    /// Fills a key's slot with what its own memory holds.
    fn carry_to(&self, shared: &Known, key: KeyHash, table: &Table, now: Mono) {
        let idle = |row: Row<'_>| row.is_idle(self.limit, now);
        if matches!(self.memory, Memory::Keys(_)) || self.memory.row(None, 0).is_none_or(idle) {
            return;
        }
        let seeded = table.hold(key, now, |cell| {
            let cells = Cells { table: Some(table), rows: cell..cell + 1 };
            seed(&shared.memory, shared.limit, self, &cells, now);
        });
        if seeded.is_none() {
            table.spend_newcomers(Some(key), true, now);
        }
    }
}

impl Earlier {
    /// Whether this one is charged for at least as long as the other, which is the same.
    fn covers(&self, other: &Earlier) -> bool {
        self.memory.is(&other.memory) && self.since <= other.since && self.until >= other.until
    }

    /// Lives for as long as either of two that are the same: a key had a memory for its own that all keys had before.
    fn lives_as(&mut self, other: &Earlier) {
        self.since = self.since.min(other.since);
        self.until = self.until.max(other.until);
        self.last = self.last.max(other.last);
        self.drained = self.drained.zip(other.drained).map(|(own, all)| own.max(all));
    }
}

/// Fills a changed limit's new memory from its old one: never freer.
fn seed(memory: &Memory, limit: Limit, old: &Known, cells: &Cells<'_>, now: Mono) {
    for cell in cells.rows.clone() {
        if let (Some(row), Some(was)) =
            (memory.row(cells.table, cell), old.memory.row(cells.table, cell))
        {
            // Also where it is idle: by another measure it may not be.
            let filled = row.seed(limit, was, old.limit, now);
            let spent = old.memory.spent_until(cells.table, cell, old.limit);
            let since = match spent.filter(|until| now < *until) {
                _ if filled != Filled::Whole => now,
                // What never recovers has no age: by the new measure it is as old as the reload.
                Some(until) if until.as_nanos() == u64::MAX => now,
                Some(until) => Mono::ZERO.plus(until.since(Mono::ZERO.plus(old.limit.recovery()))),
                None => continue,
            };
            // By the new measure it may be more than a burst, of which the last is no breach of its own either.
            let whole = if let Limit::Rate(rate) = limit { rate.burst() } else { 1 };
            let wait = row.forecast(limit, whole, now).err().filter(|wait| *wait != FOREVER);
            let until = since.plus(limit.recovery()).max(now.plus(wait.unwrap_or_default()));
            memory.note_spent(cells.table, cell, limit, until);
        }
    }
}

/// One row of memory, for itself.
fn own_row(limit: Limit) -> Memory {
    Memory::Own(Arc::new(Charges::for_scope(limit)))
}

/// The row of one key, if it has a slot.
fn rows_of(table: &Table, key: KeyHash) -> Range<usize> {
    table.find(key).map_or(0..0, |cell| cell..cell + 1)
}

/// By what each limit of a scope is known again.
pub(super) fn identities<'a>(specs: impl Iterator<Item = &'a LimitSpec>) -> Vec<Identity> {
    let mut all: Vec<Identity> = Vec::new();
    for spec in specs {
        let identity = identity(spec, &all);
        all.push(identity);
    }
    all
}

fn identity(spec: &LimitSpec, before: &[Identity]) -> Identity {
    let (kind, healing) = match spec.kind {
        LimitKind::Rate { .. } => ("rate", Healing::Time),
        LimitKind::Window { .. } => ("window", Healing::Time),
        LimitKind::Budget { .. } => ("budget", Healing::Order),
        LimitKind::InFlight { .. } => ("in-flight", Healing::End),
    };
    if !spec.name.is_empty() {
        return Identity::Named(spec.name.clone(), spec.by, healing);
    }
    let (by, of, candidate) = (spec.by, spec.of, spec.candidate);
    let like = |nth| Identity::Like { kind, by, of, candidate, nth };
    let nth = (0..).find(|nth| !before.contains(&like(*nth))).unwrap_or(usize::MAX);
    like(nth)
}

const FOREVER: Span = Span::from_nanos(u64::MAX);
/// Limits of one scope that no policy has any more and that are remembered all the same, at most.
const MAX_REMEMBERED: usize = 8;
/// Keys that had limits of their own and whose memory is kept, at most.
const MAX_FORMER: usize = 1_024;

#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use super::super::{Breaker, Call, Capacity};
    use crate::hashes::Seed;
    use crate::permit::Verdict;
    use crate::policy::{KeySpec, LimitSpec, Policy, PolicySpec, RouteSpec, ScopeSpec};
    use crate::scope::Scope;
    use crate::time::{Mono, Span};

    const BOUND: usize = 2;

    /// A route with this limit; of each of its keys, if `KEYED`.
    fn spec<const KEYED: bool>(limit: LimitSpec) -> PolicySpec {
        let key = KeySpec { name: "k".into(), limits: vec![limit.clone()], ..KeySpec::default() };
        let (limits, keys) = if KEYED { (vec![], vec![key]) } else { (vec![limit], vec![]) };
        let route = RouteSpec {
            name: "r".into(),
            group: "g".into(),
            class: crate::facts::Class::Normal,
            scope: ScopeSpec { limits, keys, counts: false, ..ScopeSpec::default() },
        };
        let scope = ScopeSpec { counts: false, ..ScopeSpec::default() };
        PolicySpec {
            global: scope.clone(),
            groups: vec![crate::policy::GroupSpec { name: "g".into(), scope }],
            routes: vec![route],
        }
    }

    /// Calls that pass of as many as are too many.
    fn passed(breaker: &Breaker, policy: &Policy) -> usize {
        let route = policy.route(&Scope::parse("/g/r").unwrap()).unwrap();
        let call = Call::new(route).with_key(0, breaker.hash_u64(7));
        let passes = |_: &usize| match breaker.admit(policy, call, Mono::from_nanos(1_000)) {
            Verdict::Allow(permit) => {
                drop(permit);
                true
            }
            Verdict::Deny(_) => false,
        };
        (0..BOUND).filter(passes).count()
    }

    /// One thread calls under a policy while another compiles its successor, whose limit counts by other numbers, and calls
    /// under that. `BESIDE`: the successor charges beside its own memory that of the limit as it was.
    fn reload_against_calls<const KEYED: bool, const BESIDE: bool>(
        limit: impl Fn(u64) -> LimitSpec + Sync + Send + 'static,
    ) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(move || {
            let breaker = Arc::new(Breaker::new(Capacity { scopes: 2, keys: 1 }, Seed([1, 2])));
            let now = Mono::from_nanos(1_000);
            let old = breaker.recompile(&spec::<KEYED>(limit(10_000)), now).unwrap();
            let caller = {
                let breaker = Arc::clone(&breaker);
                loom::thread::spawn(move || {
                    let passed = passed(&breaker, &old);
                    // In use until the end.
                    (passed, old)
                })
            };
            let mut new = breaker.recompile(&spec::<KEYED>(limit(11_000)), now).unwrap();
            if !BESIDE {
                let scopes = new.scopes.iter_mut().map(|scope| &mut scope.rules);
                let keys = new.dimensions.iter_mut().map(|keys| &mut keys.rules);
                for rule in scopes.chain(keys).flat_map(|rules| &mut rules.limits) {
                    rule.before = Box::default();
                }
            }
            let own = passed(&breaker, &new);
            let (others, old) = caller.join().unwrap();
            assert!(own + others <= BOUND, "over-admitted");
            assert!(own + others > 0, "all were refused");
            assert_eq!(passed(&breaker, &old) + passed(&breaker, &new), BOUND - own - others);
        });
    }

    fn window(length: u64) -> LimitSpec {
        LimitSpec::window(BOUND as u64, Span::from_nanos(length))
    }

    fn rate(length: u64) -> LimitSpec {
        LimitSpec::rate(1, Span::from_nanos(length), BOUND as u64)
    }

    fn budget(length: u64) -> LimitSpec {
        LimitSpec::budget(BOUND as u64).idle(Span::from_nanos(length))
    }

    /// Goal: a limit that a reload changes under its callers gives no second burst, whichever policy they have.
    #[test]
    fn loom_a_reload_gives_no_second_burst() {
        reload_against_calls::<false, true>(window);
        reload_against_calls::<false, true>(rate);
        reload_against_calls::<false, true>(budget);
    }

    /// Goal: nor does a key's.
    #[test]
    fn loom_a_reload_gives_a_key_no_second_burst() {
        reload_against_calls::<true, true>(window);
        reload_against_calls::<true, true>(rate);
    }

    /// Negative control: a successor that charges its own memory alone does not see what is charged to the old one meanwhile.
    #[test]
    #[should_panic(expected = "over-admitted")]
    fn loom_a_reload_that_charges_once_is_caught() {
        reload_against_calls::<false, false>(window);
    }

    /// Negative control: the same of a key.
    #[test]
    #[should_panic(expected = "over-admitted")]
    fn loom_a_reload_that_charges_a_key_once_is_caught() {
        reload_against_calls::<true, false>(rate);
    }
}
