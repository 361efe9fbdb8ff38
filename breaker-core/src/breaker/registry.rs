//! Who has which memory, by name: what a new policy takes over from earlier ones. It decides no call and moves no gate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Breaker, MAX_TABLES, count};
use crate::cell::Gate;
use crate::charges::Charges;
use crate::counts::Counts;
use crate::detect::Compiled;
use crate::keys::{Charged, INLINE, Kept, Rows, Table, cells_for};
use crate::limit::Limit;
use crate::policy::{
    Before, Claim, Counting, Draft, DraftKey, DraftRules, KeyRules, LimitKind, LimitRule,
    LimitSpec, Memory, Policy, PolicyError, Recover, Rules, ScopeRules, Unit,
};
use crate::scope::Scope;
use crate::tally::Tally;
use crate::time::{Mono, Span};

/// Who has which memory, by name.
pub(super) struct Registry {
    scopes: BTreeMap<Scope, ScopeEntry>,
    /// Cells that no scope has.
    free: Vec<u32>,
    tables: BTreeMap<(Scope, String), TableEntry>,
    /// Policies compiled.
    policies: u32,
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
    /// By the labels of the keys with limits of their own.
    overrides: BTreeMap<Vec<u8>, Memories>,
}

/// What one scope, or the keys of one dimension, keep from policy to policy.
#[derive(Default)]
struct Memories {
    limits: Vec<Known>,
    tally: Option<Arc<Tally>>,
    counts: Option<Arc<Counts>>,
}

/// A limit's memory.
#[derive(Clone)]
struct Known {
    identity: Identity,
    limit: Limit,
    memory: Memory,
    /// Shared with every policy that has the limit as it is here.
    live: Arc<()>,
    /// Shared with every policy that charges the memory at all.
    held: Claim,
    /// What it was, while that may still be charged by calls of an older policy.
    older: Option<Box<Older>>,
}

#[derive(Clone)]
struct Older {
    known: Known,
    /// When it was first seen that no policy has it any more.
    drained: Option<Mono>,
}

/// By what a limit is known again.
#[derive(Clone, PartialEq, Eq)]
enum Identity {
    Named(String),
    /// What it counts, and how many like it stand before it.
    Like {
        kind: &'static str,
        by: Unit,
        of: Counting,
        candidate: bool,
        nth: usize,
    },
}

impl Registry {
    /// A registry of no scopes, with so many cells to give.
    pub(super) fn new(cells: u32) -> Registry {
        Registry {
            scopes: BTreeMap::new(),
            free: (0..cells).rev().collect(),
            tables: BTreeMap::new(),
            policies: 0,
        }
    }

    pub(super) fn compile(
        &mut self,
        breaker: &Breaker,
        draft: Draft,
        now: Mono,
    ) -> Result<Policy, Vec<PolicyError>> {
        self.make_room(breaker, &draft)?;
        self.policies = self.policies.wrapping_add(1);
        let mut scopes = Vec::new();
        for draft in draft.scopes {
            let Some(entry) = self.scope(&draft.scope) else { return Err(Vec::new()) };
            let own = |limit| Memory::Own(Arc::new(Charges::for_scope(limit)));
            let rules = entry.kept.rules(&draft.rules, 1, now, None, own);
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
            let Some(rules) = self.dimension(breaker, parent, draft, now) else {
                return Err(Vec::new());
            };
            dimensions.push(rules);
        }
        Ok(Policy::new(self.policies, scopes, dimensions, draft.routes))
    }

    fn dimension(
        &mut self,
        breaker: &Breaker,
        parent: Scope,
        draft: DraftKey,
        now: Mono,
    ) -> Option<KeyRules> {
        let cells = cells_for(count(breaker.capacity.keys));
        let next = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        let entry = self.tables.entry((parent, draft.name.clone())).or_insert_with(|| TableEntry {
            table: next,
            kept: Memories::default(),
            overrides: BTreeMap::new(),
        });
        let slot = breaker.tables.get(count(entry.table))?;
        let table = slot.get_or_init(|| Arc::new(Table::new(cells)));
        let mut columns = entry.kept.free_columns();
        let rows = |limit: Limit| {
            if limit.words() == 1
                && let Some(column) = columns.pop()
            {
                table.clear(column);
                return Memory::Keys(Rows::Inline(column));
            }
            Memory::Keys(Rows::Beside(Arc::new(Charges::for_rows(limit, cells + 1))))
        };
        let mut rules = entry.kept.rules(&draft.rules, cells + 1, now, Some(table), rows);
        let mut overrides = Vec::new();
        for (label, limits) in &draft.rules.overrides {
            let own = |limit| Memory::Own(Arc::new(Charges::for_scope(limit)));
            let kept = entry.overrides.entry(label.clone()).or_default();
            overrides.push((breaker.hash(label), kept.limits(limits, 1, now, None, own)));
        }
        entry.overrides.retain(|_, kept| kept.is_used());
        overrides.sort_by_key(|(key, _)| *key);
        rules.overrides = overrides.into();
        let manual = matches!(draft.recover, Recover::Manual { .. });
        table.keep(&Arc::new(Kept { manual, ..entry.kept.kept() }));
        Some(KeyRules {
            name: draft.name,
            parent: draft.parent,
            table: entry.table,
            keys: Arc::clone(table),
            index: draft.index,
            claims: !rules.limits.is_empty() || rules.tally.is_some(),
            rules,
        })
    }

    /// Finds cells and tables for what is new, before anything is changed.
    fn make_room(&mut self, breaker: &Breaker, draft: &Draft) -> Result<(), Vec<PolicyError>> {
        let named: BTreeSet<&Scope> = draft.scopes.iter().map(|draft| &draft.scope).collect();
        let new = named.iter().filter(|scope| !self.scopes.contains_key(**scope)).count();
        if new > self.free.len() {
            let gates = |cell: u32| breaker.named_gate(cell).map(Gate::word).unwrap_or_default();
            let free = &mut self.free;
            self.scopes.retain(|scope, entry| {
                let kept = named.contains(scope)
                    || Arc::strong_count(&entry.claim) > 1
                    || !gates(entry.cell).is_fresh();
                if !kept {
                    free.push(entry.cell);
                }
                kept
            });
        }
        let mut errors = Vec::new();
        if new > self.free.len() {
            errors.push(PolicyError {
                path: "routes".to_owned(),
                problem: format!(
                    "{new} new scopes, and room for {}: earlier policies are in use, or their \
                     scopes blocked",
                    self.free.len()
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
        if errors.is_empty() { Ok(()) } else { Err(errors) }
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

impl Memories {
    /// The rules with their memory: what is known of each limit, detector and count, else new.
    fn rules(
        &mut self,
        draft: &DraftRules,
        rows: usize,
        now: Mono,
        table: Option<&Table>,
        new: impl FnMut(Limit) -> Memory,
    ) -> Rules {
        let limits = self.limits(&draft.limits, rows, now, table, new);
        let tally = self.tally(&draft.detectors, table.map(Table::cells));
        let counts = (draft.counts || table.is_some())
            .then(|| Arc::clone(self.counts.get_or_insert_with(|| Arc::new(Counts::new()))));
        let overrides = Box::default();
        Rules { trip: draft.trip, mode: draft.mode, limits, overrides, tally, counts }
    }

    /// What the detectors count in: as it was, if they are the same.
    fn tally(&mut self, rules: &Compiled, cells: Option<usize>) -> Option<Arc<Tally>> {
        if rules.is_empty() {
            return None;
        }
        let known = self.tally.take().filter(|known| known.rules() == rules);
        let tally = known.unwrap_or_else(|| {
            let rules = Arc::new(rules.clone());
            Arc::new(match cells {
                Some(cells) => Tally::for_cells(rules, cells),
                None => Tally::for_scope(rules),
            })
        });
        self.tally = Some(Arc::clone(&tally));
        Some(tally)
    }

    /// Memory that neither this policy nor a living one charges is forgotten.
    fn limits(
        &mut self,
        specs: &[(LimitSpec, Limit)],
        rows: usize,
        now: Mono,
        table: Option<&Table>,
        mut new: impl FnMut(Limit) -> Memory,
    ) -> Box<[LimitRule]> {
        let mut old = std::mem::take(&mut self.limits);
        let mut rules = Vec::new();
        let mut before: Vec<Identity> = Vec::new();
        for (spec, limit) in specs {
            let identity = identity(spec, &before);
            before.push(identity.clone());
            let found = old.iter().position(|known| known.identity == identity);
            let known = match found.map(|index| old.swap_remove(index)) {
                Some(known) if known.limit == *limit => known.drained(now),
                Some(known) if known.limit.shares_memory_with(*limit) => {
                    Known { limit: *limit, live: Arc::new(()), ..known.drained(now) }
                }
                Some(known) => {
                    let memory = new(*limit);
                    seed(&memory, *limit, &known, rows, table, now);
                    let older = Some(Box::new(Older { known, drained: None }));
                    Known::new(identity, *limit, memory, older).drained(now)
                }
                None => Known::new(identity, *limit, new(*limit), None),
            };
            rules.push(known.rule(spec));
            self.limits.push(known);
        }
        self.limits.extend(old.into_iter().filter(Known::is_used));
        rules.into()
    }

    /// Inline columns that no living policy charges.
    fn free_columns(&self) -> Vec<usize> {
        let mut used = Vec::new();
        for known in &self.limits {
            known.columns(&mut used);
        }
        (0..INLINE).rev().filter(|column| !used.contains(column)).collect()
    }

    fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        for known in &self.limits {
            known.keep(&mut kept);
        }
        kept.tallies.extend(self.tally.clone());
        kept
    }

    fn is_used(&self) -> bool {
        self.limits.iter().any(Known::is_used)
    }
}

impl Known {
    fn new(identity: Identity, limit: Limit, memory: Memory, older: Option<Box<Older>>) -> Known {
        let (live, held) = (Arc::new(()), Claim::default());
        Known { identity, limit, memory, live, held, older }
    }

    fn rule(&self, spec: &LimitSpec) -> LimitRule {
        LimitRule {
            spec: spec.clone(),
            limit: self.limit,
            memory: self.memory.clone(),
            _live: Arc::clone(&self.live),
            _held: self.held.clone(),
            before: self.older.as_ref().map(|older| Before {
                limit: older.known.limit,
                memory: older.known.memory.clone(),
                _held: older.known.held.clone(),
            }),
        }
    }

    /// Forgets its earlier self once no policy has that any more, and all that was charged there alone has
    /// passed.
    fn drained(mut self, now: Mono) -> Known {
        if let Some(older) = &mut self.older
            && Arc::strong_count(&older.known.live) == 1
        {
            let since = *older.drained.get_or_insert(now);
            let recovery = older.known.limit.recovery();
            if recovery != FOREVER && now >= since.plus(recovery) {
                self.older = None;
            }
        }
        self
    }

    fn is_used(&self) -> bool {
        self.held.is_shared() || self.older.as_ref().is_some_and(|older| older.known.is_used())
    }

    fn columns(&self, used: &mut Vec<usize>) {
        if let Memory::Keys(Rows::Inline(column)) = &self.memory {
            used.push(*column);
        }
        if let Some(older) = &self.older {
            older.known.columns(used);
        }
    }

    fn keep(&self, kept: &mut Kept) {
        if let Memory::Keys(rows) = &self.memory {
            kept.limits.push(Charged { limit: self.limit, rows: rows.clone() });
            kept.recovery = kept.recovery.max(self.limit.recovery());
        }
        if let Some(older) = &self.older {
            older.known.keep(kept);
        }
    }
}

/// Fills a changed limit's new memory from its old one: never freer.
fn seed(memory: &Memory, limit: Limit, old: &Known, rows: usize, table: Option<&Table>, now: Mono) {
    for cell in 0..rows {
        if let (Some(row), Some(was)) = (memory.row(table, cell), old.memory.row(table, cell))
            && !was.is_idle(old.limit, now)
        {
            row.seed(limit, was, old.limit, now);
        }
    }
}

fn identity(spec: &LimitSpec, before: &[Identity]) -> Identity {
    if !spec.name.is_empty() {
        return Identity::Named(spec.name.clone());
    }
    let kind = match spec.kind {
        LimitKind::Rate { .. } => "rate",
        LimitKind::Window { .. } => "window",
        LimitKind::Budget { .. } => "budget",
        LimitKind::InFlight { .. } => "in flight",
    };
    let (by, of, candidate) = (spec.by, spec.of, spec.candidate);
    let like = |nth| Identity::Like { kind, by, of, candidate, nth };
    let nth = (0..).find(|nth| !before.contains(&like(*nth))).unwrap_or(usize::MAX);
    like(nth)
}

const FOREVER: Span = Span::from_nanos(u64::MAX);
