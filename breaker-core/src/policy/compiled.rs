//! All rules for all scopes as decisions read them, with the memory that they charge; it decides no call.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{Counting, LimitSpec, OnBreach, Unit};
use crate::cell::Cell;
use crate::charges::{Charges, Row};
use crate::counts::{Count, Counts};
use crate::facts::{By, Cause, Class, Denial, Mode, Place};
use crate::gate::{TripRule, Word};
use crate::keys::{Rows, Table};
use crate::limit::Limit;
use crate::limit::rate::Plain;
use crate::limit::window::Window;
use crate::scope::{KeyHash, Level, Scope};
use crate::sync::unique;
use crate::tally::Tally;
use crate::time::Mono;

/// All rules, compiled; belongs to the breaker that compiled it. Another takes no orders by it: what a decision by it
/// lets pass there is charged to the policy's own memory, and no last look lets it out.
pub struct Policy {
    /// Its number among all of this process.
    pub(crate) number: u32,
    /// The number of the breaker that compiled it.
    pub(crate) breaker: u32,
    /// `/`, then the groups, then the routes, in the order of the spec.
    pub(crate) scopes: Box<[ScopeRules]>,
    pub(crate) dimensions: Box<[KeyRules]>,
    pub(crate) routes: Box<[RouteRules]>,
    by_path: BTreeMap<Scope, usize>,
    by_cell: BTreeMap<u32, usize>,
    by_table: BTreeMap<u32, usize>,
}

/// A route in one policy: ask each new policy for its own. In another policy it is `Stale`, and denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId {
    pub(crate) number: u32,
    /// The policy's number.
    policy: u32,
}

/// A key dimension as a call meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimension<'a> {
    /// Its name.
    pub name: &'a str,
    /// The level that declares it.
    pub level: Level,
}

/// A named scope's rules, with the memory they charge.
pub(crate) struct ScopeRules {
    pub(crate) scope: Scope,
    pub(crate) level: Level,
    pub(crate) cell: u32,
    pub(crate) gate: Arc<Cell>,
    /// Held so that the cell is not handed to another scope.
    pub(crate) _claim: Arc<()>,
    pub(crate) rules: Rules,
}

/// A key dimension's rules, with the memory they charge.
pub(crate) struct KeyRules {
    pub(crate) name: String,
    /// Where it hangs: an index into `Policy::scopes`.
    pub(crate) parent: usize,
    pub(crate) table: u32,
    pub(crate) keys: Arc<Table>,
    /// Its index among the dimensions of any route that has it.
    pub(crate) index: u8,
    /// The key of calls that have none.
    pub(crate) missing: Option<KeyHash>,
    /// Whether a key's first call claims a slot: it has limits or detectors.
    pub(crate) claims: bool,
    pub(crate) rules: Rules,
}

/// What named scopes and keys have in common.
pub(crate) struct Rules {
    pub(crate) trip: TripRule,
    pub(crate) mode: Mode,
    pub(crate) limits: Box<[LimitRule]>,
    /// Keys with limits of their own, by hash; empty for named scopes.
    pub(crate) overrides: Box<[(KeyHash, Box<[LimitRule]>)]>,
    /// What its detectors are kept in, if it has any.
    pub(crate) tally: Option<Arc<Tally>>,
    /// What became of its calls, if that is counted.
    pub(crate) counts: Option<Arc<Counts>>,
    /// Whether its budgets start spent after a crash.
    pub(crate) spent_after_crash: bool,
}

/// One limit and the memory it charges.
pub(crate) struct LimitRule {
    pub(crate) spec: LimitSpec,
    pub(crate) limit: Limit,
    pub(crate) memory: Memory,
    /// Held so that a reload knows whether the policy is still in use.
    pub(crate) _live: Arc<()>,
    /// What it was before reloads, while calls may still be charged there alone: charged as well.
    pub(crate) before: Box<[Before]>,
}

/// Where a limit's words stand.
#[derive(Clone)]
pub(crate) enum Memory {
    /// One row of its own: of a named scope, or of a key with limits of its own.
    Own(Arc<Charges>),
    /// A row for each slot of a table.
    Keys(Rows),
}

/// A limit's earlier self.
#[derive(Clone)]
pub(crate) struct Before {
    pub(crate) limit: Limit,
    pub(crate) memory: Memory,
}

/// Where a plain charge goes.
pub(crate) enum Charged {
    /// To a named scope.
    Named(Arc<Charges>),
    /// To a key: its position in the lineage, and where its words stand.
    Key(usize, Rows),
}

/// A route's way through the tree.
pub(crate) struct RouteRules {
    pub(crate) class: Class,
    /// Global, group, route: indexes into `Policy::scopes`.
    pub(crate) lineage: [usize; NAMED],
    /// The cells of the same, by number and as they are.
    pub(crate) cells: [u32; NAMED],
    pub(crate) gates: [Arc<Cell>; NAMED],
    /// No named scope of the lineage is in shadow mode.
    pub(crate) enforced: bool,
    /// Who hears the end of every call.
    pub(crate) hears_all: Due,
    /// Indexes into `Policy::dimensions`: global's, the group's, the route's.
    pub(crate) dimensions: Box<[usize]>,
    /// What may be decided in line.
    pub(crate) plainest: Plainest,
    /// What the short way through a decision needs, if this route can take it.
    pub(crate) short: Option<Short>,
    /// Bits of the limits (eight for each seat of the lineage) that hear how a call ended.
    pub(crate) hears: u64,
    /// Where what becomes of a call is counted, if it is.
    pub(crate) counts: Option<Arc<Counts>>,
    /// Detectors of the lineage that hear how each call ends, the wider first.
    pub(crate) endings: Box<[Ending]>,
}

/// Who hears how a call ends. A whole word, so that a ticket is copied by words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Due {
    /// Nobody.
    Nothing,
    /// The route's counts.
    Count,
    /// Limits, gates on probation or detectors as well.
    All,
}

/// A route whose decisions need no more than gates that let all pass and a few plain charges.
pub(crate) struct Short {
    /// The dimensions of the lineage, in order.
    pub(crate) keys: Box<[ShortKey]>,
    /// In the order of charging: what can be undone first, the narrower first.
    pub(crate) charges: Box<[Charge]>,
    /// More than one of them cannot be undone, or one moves with time: all are looked at before the first is charged.
    pub(crate) looks_first: bool,
    /// Detectors that hear each offer, the narrower first.
    pub(crate) hearings: Box<[Hearing]>,
    /// A charge cannot be undone: detectors are asked before it is made whether they would find something.
    pub(crate) asks_first: bool,
    /// The only charge, if it counts the calls of a named scope and there are no keys.
    pub(crate) lone: Option<Lone>,
}

/// The only charge of a route, if it is one of those that most routes have. Its tag is a byte of its own, so that telling them
/// apart is one comparison.
#[repr(u8)]
pub(crate) enum Plainest {
    Rate(PlainRate),
    Window(PlainWindow),
    /// Of the route's only key.
    Keyed(KeyedRate),
    /// Another, or several.
    Other,
}

/// One rate of calls and nothing more.
pub(crate) struct PlainRate {
    pub(crate) rate: Plain,
    pub(crate) charges: Arc<Charges>,
    /// Its bit.
    pub(crate) charged: u64,
}

/// One exact window and nothing more.
pub(crate) struct PlainWindow {
    pub(crate) window: Window,
    pub(crate) charges: Arc<Charges>,
    /// Its bit.
    pub(crate) charged: u64,
    pub(crate) refusal: Refusal,
}

/// One rate of one key's calls, and at most an exact window of a wider scope.
pub(crate) struct KeyedRate {
    pub(crate) rate: Plain,
    pub(crate) table: Arc<Table>,
    pub(crate) number: u8,
    /// The bits of all that is charged.
    pub(crate) charged: u64,
    /// What is charged after it.
    pub(crate) wider: Option<WiderWindow>,
}

/// An exact window of a named scope, charged beside a key's rate.
pub(crate) struct WiderWindow {
    pub(crate) window: Window,
    pub(crate) charges: Arc<Charges>,
    /// Its bit.
    pub(crate) charged: u64,
}

/// One limit and nothing more.
pub(crate) struct Lone {
    pub(crate) limit: Limit,
    pub(crate) charges: Arc<Charges>,
    /// Its bit.
    pub(crate) charged: u64,
    /// If a breach does no more than refuse.
    pub(crate) refusal: Option<Refusal>,
}

/// What a refusal of a named scope's limit says, and where it is counted.
#[derive(Clone)]
pub(crate) struct Refusal {
    pub(crate) place: Place,
    pub(crate) limit: u8,
    pub(crate) counts: Option<Arc<Counts>>,
}

/// A dimension, as the short way meets it.
pub(crate) struct ShortKey {
    pub(crate) table: Arc<Table>,
    pub(crate) number: u8,
    pub(crate) index: u8,
    /// The key of calls that have none.
    pub(crate) missing: Option<KeyHash>,
    pub(crate) claims: bool,
    /// Its keys have detectors, so each call is a vote for its key.
    pub(crate) votes: bool,
    /// What hears each offer to a key.
    pub(crate) hears: Option<Arc<Tally>>,
}

/// Detectors that hear each offer to their scope.
pub(crate) struct Hearing {
    pub(crate) tally: Arc<Tally>,
    /// Which seat of the lineage.
    pub(crate) seat: u8,
}

/// Detectors that hear how each call to their scope ends.
pub(crate) struct Ending {
    pub(crate) tally: Arc<Tally>,
    /// Which seat of the lineage.
    pub(crate) seat: u8,
    /// Its table, if it is a dimension of keys.
    pub(crate) keys: Option<Arc<Table>>,
    pub(crate) trip: TripRule,
}

/// One plain charge.
pub(crate) struct Charge {
    pub(crate) limit: Limit,
    pub(crate) at: Charged,
    /// Which seat of the lineage, and which of its limits.
    pub(crate) seat: u8,
    pub(crate) index: u8,
    pub(crate) by: Unit,
    /// A breach only refuses.
    pub(crate) refuses: bool,
    /// Where its refusals are counted, if they are: in its own scope, whatever the route counts.
    pub(crate) counts: Option<Arc<Counts>>,
}

impl RouteId {
    /// No policy's route.
    #[cfg(test)]
    pub(crate) const fn nowhere() -> RouteId {
        RouteId { number: u32::MAX, policy: u32::MAX }
    }
}

impl Short {
    fn plainest(&self) -> Plainest {
        let own = match &self.lone {
            Some(lone) => lone.plain(),
            None => self.keyed().map(Plainest::Keyed),
        };
        own.unwrap_or(Plainest::Other)
    }

    fn keyed(&self) -> Option<KeyedRate> {
        let ([key], []) = (&*self.keys, &*self.hearings) else { return None };
        // What can be undone comes first.
        let (own, wider) = match &*self.charges {
            [own] => (own, None),
            [own, wider] => (own, Some(wider.ring()?)),
            _ => return None,
        };
        let Charged::Key(0, Rows::Inline(0)) = own.at else { return None };
        let Limit::Rate(rate) = own.limit else { return None };
        let charged = own.bit() | wider.as_ref().map_or(0, |wider| wider.charged);
        let (rate, table) = (rate.plain()?, Arc::clone(&key.table));
        Some(KeyedRate { rate, table, number: key.number, charged, wider })
    }
}

impl Lone {
    fn plain(&self) -> Option<Plainest> {
        let (charges, charged) = (Arc::clone(&self.charges), self.charged);
        match self.limit {
            Limit::Rate(rate) => {
                Some(Plainest::Rate(PlainRate { rate: rate.plain()?, charges, charged }))
            }
            Limit::Window(window) => {
                let refusal = self.refusal.clone()?;
                Some(Plainest::Window(PlainWindow { window, charges, charged, refusal }))
            }
            _ => None,
        }
    }
}

impl Charge {
    /// Its bit.
    pub(crate) fn bit(&self) -> u64 {
        limit_bit(self.seat, u32::from(self.index))
    }

    /// The exact window of a named scope, if it is one.
    fn ring(&self) -> Option<WiderWindow> {
        let (Charged::Named(charges), Limit::Window(window)) = (&self.at, self.limit) else {
            return None;
        };
        Some(WiderWindow { window, charges: Arc::clone(charges), charged: self.bit() })
    }

    fn lone(&self, cells: [u32; NAMED]) -> Option<Lone> {
        let (Charged::Named(charges), Unit::Calls) = (&self.at, self.by) else { return None };
        let charged = self.bit();
        let level = [Level::Global, Level::Group, Level::Route].get(usize::from(self.seat));
        let index = cells.get(usize::from(self.seat)).copied()?;
        let place = Place { level: *level?, index, key: None };
        let refusal = Refusal { place, limit: self.index, counts: self.counts.clone() };
        let refusal = self.refuses.then_some(refusal);
        Some(Lone { limit: self.limit, charges: Arc::clone(charges), charged, refusal })
    }
}

impl RouteRules {
    /// Global, group, route, as they stand.
    #[inline]
    pub(crate) fn words(&self) -> [Word; NAMED] {
        let [global, group, own] = &self.gates;
        [global.gate.word(), group.gate.word(), own.gate.word()]
    }

    /// Who hears the end of a call that was charged so and gave these probes.
    #[inline]
    pub(crate) const fn due(&self, charged: u64, probes: u8) -> Due {
        if charged & self.hears != 0 || probes != 0 { Due::All } else { self.hears_all }
    }

    /// Counts what became of a call.
    #[inline]
    pub(crate) fn count(&self, what: Count) {
        if let Some(counts) = &self.counts {
            counts.up(what);
        }
    }

    /// Counts that a call was denied.
    #[inline]
    pub(crate) fn count_denial(&self, denial: &Denial) {
        let throttled = matches!(denial.cause, Cause::Limit(_));
        self.count(if throttled { Count::Throttled } else { Count::Blocked });
    }
}

impl LimitRule {
    /// Whether it refuses for what it was not charged, as does one whose past was not known: who is refused for that has breached
    /// nothing. `table` and `cell` are those of a key.
    pub(crate) fn is_spent(&self, table: Option<&Table>, cell: usize, now: Mono) -> bool {
        let own = self.memory.spent_until(table, cell, self.limit);
        let before = self.before.iter().map(|was| was.memory.spent_until(table, cell, was.limit));
        before.chain([own]).flatten().any(|until| now < until)
    }

    /// Whether it counts what is in flight in the slots of a table.
    pub(crate) fn flies_in_table(&self) -> bool {
        matches!((self.limit, &self.memory), (Limit::InFlight(_), Memory::Keys(_)))
    }
}

impl Memory {
    /// Until when a cell's words hold what was not charged to them, if they ever did. `table` and `cell` are those of a key.
    pub(crate) fn spent_until(
        &self,
        table: Option<&Table>,
        cell: usize,
        limit: Limit,
    ) -> Option<Mono> {
        match self {
            Memory::Own(charges) => charges.spent_until(),
            Memory::Keys(_) => table?.spent_until(cell, limit),
        }
    }

    /// Says that a cell's words hold until then what was not charged to them.
    pub(crate) fn note_spent(&self, table: Option<&Table>, cell: usize, limit: Limit, until: Mono) {
        match self {
            Memory::Own(charges) => charges.note_spent(until),
            Memory::Keys(_) => {
                if let Some(table) = table {
                    table.note_spent(cell, limit, until);
                }
            }
        }
    }

    /// Charges a cell as if all had just been used, and says that it was not.
    pub(crate) fn spend(&self, table: Option<&Table>, cell: usize, limit: Limit, now: Mono) {
        if let Some(row) = self.row(table, cell) {
            self.note_spent(table, cell, limit, now.plus(limit.recovery()));
            row.spend(limit, now);
        }
    }

    /// Says that a row of its own holds what was charged to it. Of a key's slot the table says it.
    pub(crate) fn forget_spent(&self) {
        if let Memory::Own(charges) = self {
            charges.forget_spent();
        }
    }

    /// Whether it is the same memory.
    pub(crate) fn is(&self, other: &Memory) -> bool {
        match (self, other) {
            (Memory::Own(own), Memory::Own(other)) => Arc::ptr_eq(own, other),
            (Memory::Keys(own), Memory::Keys(other)) => own.are(other),
            _ => false,
        }
    }

    /// The words of one cell; `table` and `cell` are those of a key.
    #[inline]
    pub(crate) fn row<'a>(&'a self, table: Option<&'a Table>, cell: usize) -> Option<Row<'a>> {
        match self {
            Memory::Own(charges) => charges.row(0),
            Memory::Keys(rows) => table?.row(rows, cell),
        }
    }
}

impl Rules {
    /// Whether its detectors must be told how each call ended. Those of a route that want no more than outcomes read them from its
    /// counts.
    pub(crate) fn hears_ends(&self, seat: u8) -> bool {
        let fed = usize::from(seat) == NAMED - 1 && self.counts.is_some();
        self.tally.as_ref().is_some_and(|tally| !(fed && tally.is_fed_by_counts()))
    }

    /// The limits of a key, or of the named scope.
    #[inline]
    pub(crate) fn limits_of(&self, key: Option<KeyHash>) -> &[LimitRule] {
        if let (Some(key), false) = (key, self.overrides.is_empty())
            && let Ok(at) = self.overrides.binary_search_by_key(&key, |(key, _)| *key)
            && let Some((_, limits)) = self.overrides.get(at)
        {
            return limits;
        }
        &self.limits
    }
}

impl Policy {
    /// The routes, in the order of the spec.
    pub fn routes(&self) -> impl Iterator<Item = (RouteId, &Scope)> + '_ {
        (0_u32..).zip(&self.routes).filter_map(|(number, route)| {
            let [_, _, own] = route.lineage;
            let id = RouteId { number, policy: self.number };
            Some((id, &self.scopes.get(own)?.scope))
        })
    }

    /// The route at a path.
    #[must_use]
    pub fn route(&self, path: &Scope) -> Option<RouteId> {
        self.routes().find(|(_, scope)| *scope == path).map(|(id, _)| id)
    }

    /// The dimensions of a route's lineage: global's first, then the group's, then the route's.
    /// Their order is the order of a call's keys. At most 4.
    pub fn dimensions(&self, route: RouteId) -> impl Iterator<Item = Dimension<'_>> + '_ {
        let indexes = self.route_rules(route).map_or(&[][..], |route| &route.dimensions);
        indexes.iter().filter_map(|&index| {
            let rules = self.dimensions.get(index)?;
            let level = self.scopes.get(rules.parent)?.scope.level();
            Some(Dimension { name: &rules.name, level })
        })
    }

    /// What a route's calls do to risk. An unknown route is normal.
    #[must_use]
    pub fn class(&self, route: RouteId) -> Class {
        self.route_rules(route).map_or(Class::Normal, |route| route.class)
    }

    /// The named scope at a place; for a key, the scope it hangs from and its dimension's name.
    #[must_use]
    pub fn scope_of(&self, place: Place) -> Option<(&Scope, Option<&str>)> {
        if place.key.is_some() {
            let rules = self.key_rules(place.index)?;
            Some((&self.scopes.get(rules.parent)?.scope, Some(&rules.name)))
        } else {
            Some((&self.scope_rules(place.index)?.scope, None))
        }
    }

    /// The limit that a denial speaks of, if it speaks of one.
    #[must_use]
    pub fn limit_of(&self, denial: &Denial) -> Option<&LimitSpec> {
        let index = match denial.cause {
            Cause::Limit(index) | Cause::Tripped(By::Limit(index)) => index,
            _ => return None,
        };
        let rules = self.rules_at(denial.place)?;
        let limits = rules.limits_of(denial.place.key.map(|(_, key)| key));
        limits.get(usize::from(index)).map(|limit| &limit.spec)
    }

    /// Whether some limit was changed by a reload while an older policy was in use: until the older one is gone and its charges
    /// have passed, both are charged, and either refuses: one that was raised passes no more than it did. That is slower, and a save cannot tell how far such a limit is used: restored, it starts
    /// spent. [Recompile](crate::Breaker::recompile) the same spec later, and before a planned stop, to be rid of it.
    #[must_use]
    pub fn has_predecessors(&self) -> bool {
        let named = self.scopes.iter().map(|scope| &scope.rules);
        let keys = self.dimensions.iter().map(|key| &key.rules);
        let before = |limits: &[LimitRule]| limits.iter().any(|rule| !rule.before.is_empty());
        named.chain(keys).any(|rules| {
            before(&rules.limits) || rules.overrides.iter().any(|(_, limits)| before(limits))
        })
    }

    /// All named scopes: `/`, the groups, the routes.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> + '_ {
        self.scopes.iter().map(|rules| &rules.scope)
    }

    pub(crate) fn new(
        breaker: u32,
        scopes: Vec<ScopeRules>,
        dimensions: Vec<KeyRules>,
        routes: Vec<RouteRules>,
    ) -> Policy {
        let by_path =
            scopes.iter().enumerate().map(|(index, rules)| (rules.scope.clone(), index)).collect();
        let by_cell = scopes.iter().enumerate().map(|(index, rules)| (rules.cell, index)).collect();
        let by_table =
            dimensions.iter().enumerate().map(|(index, rules)| (rules.table, index)).collect();
        let mut policy = Policy {
            number: unique(),
            breaker,
            scopes: scopes.into(),
            dimensions: dimensions.into(),
            routes: routes.into(),
            by_path,
            by_cell,
            by_table,
        };
        let mut routes = std::mem::take(&mut policy.routes);
        for route in &mut routes {
            route.cells = route.lineage.map(|scope| policy.scopes.get(scope).map_or(0, |s| s.cell));
            route.short = policy.short(route);
            route.plainest = route.short.as_ref().map_or(Plainest::Other, Short::plainest);
            route.hears = policy.hears(route);
            let enforces = |&scope: &usize| {
                policy.scopes.get(scope).is_some_and(|scope| scope.rules.mode == Mode::Enforce)
            };
            route.enforced = route.lineage.iter().all(enforces);
            let [_, _, own] = route.lineage;
            let own = policy.scopes.get(own);
            route.endings = policy.endings(route);
            route.counts = own.and_then(|own| own.rules.counts.clone());
            route.hears_all = match (&*route.endings, &route.counts) {
                ([_, ..], _) => Due::All,
                ([], Some(_)) => Due::Count,
                ([], None) => Due::Nothing,
            };
            let gate = |scope: usize| policy.scopes.get(scope).map(|scope| Arc::clone(&scope.gate));
            for (slot, scope) in route.gates.iter_mut().zip(route.lineage) {
                if let Some(gate) = gate(scope) {
                    *slot = gate;
                }
            }
        }
        policy.routes = routes;
        policy
    }

    /// The rules of a route's lineage, each with its seat.
    pub(crate) fn seats<'a>(
        &'a self,
        route: &'a RouteRules,
    ) -> impl Iterator<Item = (u8, &'a Rules)> + 'a {
        let named = route.lineage.iter().filter_map(|&scope| Some(&self.scopes.get(scope)?.rules));
        let keys =
            route.dimensions.iter().filter_map(|&key| Some(&self.dimensions.get(key)?.rules));
        (0..).zip(named.chain(keys))
    }

    /// What the short way through a decision on a route needs, if the route can take it.
    fn short(&self, route: &RouteRules) -> Option<Short> {
        let (mut charges, mut hearings) = (Vec::new(), Vec::new());
        for (seat, rules) in self.seats(route) {
            if rules.mode != Mode::Enforce || !rules.overrides.is_empty() {
                return None;
            }
            if let Some(tally) = rules.tally.as_ref().filter(|tally| tally.hears_offers()) {
                hearings.push(Hearing { tally: Arc::clone(tally), seat });
            }
            for (index, rule) in (0..).zip(&rules.limits) {
                let plain = rule.spec.of == Counting::Admitted
                    && !rule.spec.candidate
                    && rule.before.is_empty();
                if !plain {
                    return None;
                }
                let at = match (&rule.memory, usize::from(seat).checked_sub(NAMED)) {
                    (Memory::Own(charges), None) => Charged::Named(Arc::clone(charges)),
                    (Memory::Keys(rows), Some(position)) => Charged::Key(position, rows.clone()),
                    _ => return None,
                };
                charges.push(Charge {
                    limit: rule.limit,
                    at,
                    seat,
                    index,
                    by: rule.spec.by,
                    refuses: rule.spec.on_breach == OnBreach::Refuse,
                    counts: rules.counts.clone(),
                });
            }
        }
        if route.class == Class::Reducing || charges.len() > MAX_SHORT {
            return None;
        }
        charges.sort_by_key(|charge| (!charge.limit.can_undo(), std::cmp::Reverse(charge.seat)));
        // A window of sub-buckets that is charged and undone has moved on to the call's instant: it is looked at first, too.
        let buckets = charges.iter().any(|charge| matches!(charge.limit, Limit::Buckets(_)));
        let lasting = charges.iter().filter(|charge| !charge.limit.can_undo()).count();
        let looks_first = lasting > 1 || buckets;
        let asks_first = lasting > 0 || buckets;
        hearings.reverse();
        let keys = route.dimensions.iter().map(|&dimension| {
            let rules = self.dimensions.get(dimension)?;
            let KeyRules { index, missing, claims, .. } = *rules;
            let number = u8::try_from(rules.table).ok()?;
            let votes = rules.rules.tally.is_some();
            let hears = rules.rules.tally.clone().filter(|tally| tally.hears_offers());
            let table = Arc::clone(&rules.keys);
            Some(ShortKey { table, number, index, missing, claims, votes, hears })
        });
        let keys = keys.collect::<Option<_>>()?;
        let lone = match &*charges {
            [only] if route.dimensions.is_empty() && !looks_first && hearings.is_empty() => {
                only.lone(route.cells)
            }
            _ => None,
        };
        Some(Short {
            keys,
            charges: charges.into(),
            looks_first,
            hearings: hearings.into(),
            asks_first,
            lone,
        })
    }

    /// Who of a route's lineage hears how a call ended, and judges it.
    fn endings(&self, route: &RouteRules) -> Box<[Ending]> {
        let hearing = self.seats(route).filter(|(seat, rules)| rules.hears_ends(*seat));
        let endings = hearing.filter_map(|(seat, rules)| {
            let keys = usize::from(seat).checked_sub(NAMED).and_then(|position| {
                let rules = self.dimensions.get(*route.dimensions.get(position)?)?;
                Some(Arc::clone(&rules.keys))
            });
            Some(Ending { tally: Arc::clone(rules.tally.as_ref()?), seat, keys, trip: rules.trip })
        });
        endings.collect()
    }

    /// A bit for each limit of a route's lineage that hears how a call ended: eight for each seat.
    fn hears(&self, route: &RouteRules) -> u64 {
        let mut bits = 0;
        for (seat, rules) in self.seats(route) {
            let overrides = rules.overrides.iter().map(|(_, limits)| limits);
            for limits in std::iter::once(&rules.limits).chain(overrides) {
                for (index, rule) in (0_u32..).zip(limits) {
                    let weighs = rule.spec.by == Unit::Weight && rule.limit.can_settle();
                    if weighs || matches!(rule.limit, Limit::InFlight(_)) {
                        bits |= limit_bit(seat, index);
                    }
                }
            }
        }
        bits
    }

    #[inline]
    pub(crate) fn route_rules(&self, route: RouteId) -> Option<&RouteRules> {
        if route.policy != self.number {
            return None;
        }
        self.route_at(route.number)
    }

    #[inline]
    pub(crate) fn route_at(&self, number: u32) -> Option<&RouteRules> {
        self.routes.get(usize::try_from(number).ok()?)
    }

    /// The rules of the named scope in a cell.
    pub(crate) fn scope_rules(&self, cell: u32) -> Option<&ScopeRules> {
        self.scopes.get(*self.by_cell.get(&cell)?)
    }

    /// The rules of the dimension with a table.
    pub(crate) fn key_rules(&self, table: u32) -> Option<&KeyRules> {
        self.dimensions.get(*self.by_table.get(&table)?)
    }

    pub(crate) fn rules_at(&self, place: Place) -> Option<&Rules> {
        if place.key.is_some() {
            self.key_rules(place.index).map(|key| &key.rules)
        } else {
            self.scope_rules(place.index).map(|scope| &scope.rules)
        }
    }

    /// The named scope at a path.
    pub(crate) fn named(&self, path: &Scope) -> Option<&ScopeRules> {
        self.scopes.get(*self.by_path.get(path)?)
    }

    /// The dimension that a scope declares.
    pub(crate) fn dimension(&self, parent: &Scope, name: &str) -> Option<&KeyRules> {
        let parent = *self.by_path.get(parent)?;
        self.dimensions.iter().find(|rules| rules.parent == parent && rules.name == name)
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.scopes()).finish()
    }
}

/// The bit of one limit of a lineage.
pub(crate) const fn limit_bit(seat: u8, index: u32) -> u64 {
    1 << ((seat as u32 * 8 + index) & 63)
}

/// Limits of one scope, at most; eight, so that those of a lineage fit a word of bits.
pub(crate) const MAX_LIMITS: usize = 8;
/// Charges of the short way, at most.
pub(crate) const MAX_SHORT: usize = 4;
/// Named scopes of a lineage: global, group, route.
pub(crate) const NAMED: usize = 3;
/// Keys of one call, at most.
pub(crate) const MAX_DIMENSIONS: usize = 4;
