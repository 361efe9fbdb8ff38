//! Who has which memory, by name: what a new policy takes over from earlier ones. It decides no call and moves no gate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Breaker, MAX_TABLES, count};
use crate::cell::{Charges, Gate};
use crate::keys::{Table, cells_for};
use crate::limit::Limit;
use crate::policy::{
    Counting, Draft, DraftRules, KeyRules, LimitRule, Policy, PolicyError, Rules, ScopeRules,
};
use crate::scope::Scope;

/// Who has which memory, by name.
pub(super) struct Registry {
    scopes: BTreeMap<Scope, ScopeEntry>,
    /// Cells that no scope has.
    free: Vec<u32>,
    tables: BTreeMap<(Scope, String), TableEntry>,
}

struct ScopeEntry {
    cell: u32,
    /// Shared with every policy that names the scope.
    claim: Arc<()>,
    charges: Vec<Known>,
}

struct TableEntry {
    table: u32,
    charges: Vec<Known>,
}

/// A limit's memory, and what it counts.
#[derive(Clone)]
struct Known {
    of: Counting,
    charges: Arc<Charges>,
}

impl Registry {
    /// A registry of no scopes, with so many cells to give.
    pub(super) fn new(cells: u32) -> Registry {
        Registry {
            scopes: BTreeMap::new(),
            free: (0..cells).rev().collect(),
            tables: BTreeMap::new(),
        }
    }

    pub(super) fn compile(
        &mut self,
        breaker: &Breaker,
        draft: Draft,
    ) -> Result<Policy, Vec<PolicyError>> {
        self.make_room(breaker, &draft)?;
        let mut scopes = Vec::new();
        for draft in draft.scopes {
            let Some(entry) = self.scope(&draft.scope) else { return Err(Vec::new()) };
            let limits = memory(&mut entry.charges, &draft.rules, 1, Charges::for_scope);
            scopes.push(ScopeRules {
                level: draft.scope.level(),
                scope: draft.scope,
                cell: entry.cell,
                _claim: Arc::clone(&entry.claim),
                rules: Rules { trip: draft.rules.trip, mode: draft.rules.mode, limits },
            });
        }
        let mut dimensions = Vec::new();
        let cells = cells_for(count(breaker.capacity.keys));
        for draft in draft.dimensions {
            let parent = scopes.get(draft.parent).map(|rules| rules.scope.clone());
            let name = (parent.unwrap_or_else(Scope::global), draft.name.clone());
            let next = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
            let entry = self
                .tables
                .entry(name)
                .or_insert_with(|| TableEntry { table: next, charges: Vec::new() });
            let Some(slot) = breaker.tables.get(count(entry.table)) else { return Err(Vec::new()) };
            let table = slot.get_or_init(|| Table::new(cells));
            let rows = |limit| Charges::for_rows(limit, cells + 1);
            let limits = memory(&mut entry.charges, &draft.rules, 2, rows);
            let watched = entry.charges.iter().map(|known| Arc::clone(&known.charges)).collect();
            table.watch_charges(&watched);
            dimensions.push(KeyRules {
                name: draft.name,
                parent: draft.parent,
                table: entry.table,
                index: draft.index,
                rules: Rules { trip: draft.rules.trip, mode: draft.rules.mode, limits },
            });
        }
        Ok(Policy::new(scopes, dimensions, draft.routes))
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
            let entry = ScopeEntry { cell, claim: Arc::new(()), charges: Vec::new() };
            self.scopes.insert(scope.clone(), entry);
        }
        self.scopes.get_mut(scope)
    }
}

/// The memory of checked limits: what is known of an equal limit of the same scope, else new. Memory that
/// neither this policy nor a living one charges is forgotten.
fn memory(
    known: &mut Vec<Known>,
    rules: &DraftRules,
    shares: usize,
    new: impl Fn(Limit) -> Charges,
) -> Box<[LimitRule]> {
    let mut old = std::mem::take(known);
    let mut limits = Vec::new();
    for (spec, limit) in &rules.limits {
        let equal = |known: &Known| known.of == spec.of && known.charges.limit() == *limit;
        let found = match old.iter().position(equal) {
            Some(index) => old.swap_remove(index),
            None => Known { of: spec.of, charges: Arc::new(new(*limit)) },
        };
        limits.push(LimitRule { spec: spec.clone(), charges: Arc::clone(&found.charges) });
        known.push(found);
    }
    known.extend(old.into_iter().filter(|known| Arc::strong_count(&known.charges) > shares));
    limits.into()
}
