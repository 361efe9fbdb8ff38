//! All rules for all scopes, as written and as checked; it holds no memory of its own and decides no call.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::cell::Cell;
use crate::charges::{Charges, Row};
use crate::counts::{Count, Counts};
use crate::detect::{Compiled, DetectorSpec};
use crate::facts::{By, Cause, Class, Denial, Mode, Place};
use crate::gate::{MAX_HOLD, MAX_PROBES, MIN_HOLD, TripRule, Word};
use crate::keys::{Rows, Table};
use crate::limit::rate::Plain;
use crate::limit::window::Window;
use crate::limit::{Limit, makes_idle};
use crate::permit::Due;
use crate::scope::{KeyHash, Level, Scope, check_name};
use crate::sync::unique;
use crate::tally::Tally;
use crate::time::Span;

/// All rules, as written.
#[derive(Clone, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct PolicySpec {
    /// The rules of `/`.
    pub global: ScopeSpec,
    /// The groups.
    pub groups: Vec<GroupSpec>,
    /// The routes, each in one of the groups.
    pub routes: Vec<RouteSpec>,
}

/// One group.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct GroupSpec {
    /// Its name, unique among groups.
    pub name: String,
    /// Its rules.
    #[cfg_attr(feature = "serde", serde(default))]
    pub scope: ScopeSpec,
}

/// One route.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct RouteSpec {
    /// Its name, unique within its group.
    pub name: String,
    /// The name of a group of the spec.
    pub group: String,
    /// What its calls do to risk.
    pub class: Class,
    /// Its rules.
    #[cfg_attr(feature = "serde", serde(default))]
    pub scope: ScopeSpec,
}

/// The rules of one named scope.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct ScopeSpec {
    /// Up to 8 limits.
    pub limits: Vec<LimitSpec>,
    /// How its gate comes back after a trip.
    pub recover: Recover,
    /// Whether its limits and trips deny.
    pub mode: Mode,
    /// The key dimensions declared here: shared by all calls of the scope.
    pub keys: Vec<KeySpec>,
    /// Up to 8 detectors.
    pub detectors: Vec<DetectorSpec>,
    /// Whether refusals and outcomes are counted here: see `Breaker::counts`. A scope with detectors counts in any case.
    pub counts: bool,
    /// Whether budgets start spent after a crash. Else they come from what was saved last, and what passed after that is
    /// forgotten.
    pub spent_after_crash: bool,
}

/// One key dimension, and the rules of each of its keys.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct KeySpec {
    /// Its name, unique in any lineage.
    pub name: String,
    /// Up to 8 limits, for each key.
    pub limits: Vec<LimitSpec>,
    /// How a key's gate comes back after a trip.
    pub recover: Recover,
    /// Whether its limits and trips deny.
    pub mode: Mode,
    /// Up to 8 detectors, for each key.
    pub detectors: Vec<DetectorSpec>,
    /// Keys that have limits of their own instead.
    pub overrides: Vec<KeyOverride>,
    /// What becomes of calls that lack the key.
    pub missing: Missing,
    /// How many keys may be seen for the first time, if that is bounded. Keys beyond it share the dimension's overflow cell
    /// until they are seen again in calmer times: a flood of fresh keys then cannot fill the table.
    pub newcomers: Option<Newcomers>,
    /// Whether budgets start spent after a crash. Else they come from what was saved last, and what passed after that is
    /// forgotten.
    pub spent_after_crash: bool,
}

/// How a call is judged that lacks the key of a dimension.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum Missing {
    /// All such calls are one key, with a cell of its own: to leave the key out is no way around the dimension. No label is that
    /// key; orders name it by [`Scope::missing_key`](crate::Scope::missing_key), as in `/pay/account=!`.
    #[default]
    Share,
    /// The dimension does not judge them.
    Skip,
}

/// First sights of keys: `count` per `per`, at most `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Newcomers {
    /// So many …
    pub count: u64,
    /// … in this time.
    pub per: Span,
    /// At once, at most.
    pub burst: u64,
}

/// One key's own limits.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct KeyOverride {
    /// The key's label, as it is hashed.
    pub label: Vec<u8>,
    /// Its limits, in place of those of its dimension.
    pub limits: Vec<LimitSpec>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct LimitSpec {
    /// Its name, unique in its scope; empty for none. A reload knows a limit again by its name, and one without by
    /// its kind and what it counts, in the order of the spec.
    #[cfg_attr(feature = "serde", serde(default))]
    pub name: String,
    /// Its kind and numbers.
    pub kind: LimitKind,
    /// In what it counts.
    #[cfg_attr(feature = "serde", serde(default))]
    pub by: Unit,
    /// What it counts.
    #[cfg_attr(feature = "serde", serde(default))]
    pub of: Counting,
    /// What a breach does.
    #[cfg_attr(feature = "serde", serde(default))]
    pub on_breach: OnBreach,
    /// Whether it only stands beside the live ones, to be tried: charged and counted, never enforced.
    #[cfg_attr(feature = "serde", serde(default))]
    pub candidate: bool,
}

/// A kind of limit and its numbers. Counts are of calls or of weight, as [`LimitSpec::by`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum LimitKind {
    /// `count` per `per`, with `burst` at once at most: in any interval t no more than `burst + count × t / per`.
    Rate {
        /// Refilled …
        count: u64,
        /// … in this time.
        per: Span,
        /// At once.
        burst: u64,
    },
    /// At most `count` in any interval of length `length`: of calls exactly, up to 65 536 of them; else in
    /// sub-buckets of which the oldest counts whole, which is stricter.
    Window {
        /// At most, at least 1.
        count: u64,
        /// Length of every interval.
        length: Span,
    },
    /// At most `count` in all, until it is reset, or idle for some time.
    Budget {
        /// In all.
        count: u64,
        /// Forgets all after so long without a charge; `None`: only a reset does.
        idle: Option<Span>,
    },
    /// At most `count` at once: given back when the permit ends, whatever became of the call.
    InFlight {
        /// At once.
        count: u64,
    },
}

/// In what a limit counts.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum Unit {
    /// Each call is one.
    #[default]
    Calls,
    /// Each call is its weight: notional, bytes, tokens. One that is not weighed is refused: see `Call::weighing`.
    Weight,
}

/// What a limit counts.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum Counting {
    /// Calls that pass.
    #[default]
    Admitted,
    /// Calls that nothing narrower refused, whatever becomes of them here and in wider scopes.
    Offered,
}

/// What a breach does.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum OnBreach {
    /// Refuses the call.
    #[default]
    Refuse,
    /// Refuses the call and trips the gate.
    Trip,
}

/// How a tripped gate comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum Recover {
    /// It waits for a person: a lift leads to probation, a reset straight back.
    Manual {
        /// Probes that must pass on probation, 1 to 63.
        probes: u8,
    },
    /// It goes on probation by itself.
    Probe {
        /// Probes that must pass, 1 to 63.
        probes: u8,
        /// The first hold, at least 200 ms. Each further trip in a bad spell doubles it.
        after: Span,
        /// The longest hold, at most about 6.5 days. A gate that stays armed that long starts afresh.
        at_most: Span,
    },
}

/// One error of a spec. All errors of a spec are reported at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// Where, such as `routes.orders.limit[1]`.
    pub path: String,
    /// What is wrong, as a lower-case fragment.
    pub problem: String,
    /// What to do instead.
    pub hint: String,
}

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
    /// Whether any scope of the lineage has detectors.
    pub(crate) tallies: bool,
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

/// One rate of one key's calls and nothing more.
pub(crate) struct KeyedRate {
    pub(crate) rate: Plain,
    pub(crate) table: Arc<Table>,
    pub(crate) number: u8,
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

impl LimitSpec {
    /// At most `count` admitted calls in any interval of length `length`; refuses above.
    #[must_use]
    pub const fn window(count: u64, length: Span) -> LimitSpec {
        LimitSpec::new(LimitKind::Window { count, length })
    }

    /// `count` admitted calls per `per`, at most `burst` at once; refuses above.
    #[must_use]
    pub const fn rate(count: u64, per: Span, burst: u64) -> LimitSpec {
        LimitSpec::new(LimitKind::Rate { count, per, burst })
    }

    /// At most `count` admitted calls in all; refuses above, until it is reset.
    #[must_use]
    pub const fn budget(count: u64) -> LimitSpec {
        LimitSpec::new(LimitKind::Budget { count, idle: None })
    }

    /// At most `count` calls at once; refuses above.
    #[must_use]
    pub const fn in_flight(count: u64) -> LimitSpec {
        LimitSpec::new(LimitKind::InFlight { count })
    }

    /// The same limit, but a breach trips the gate.
    #[must_use]
    pub const fn tripping(mut self) -> LimitSpec {
        self.on_breach = OnBreach::Trip;
        self
    }

    /// The same limit, but it counts offered calls.
    #[must_use]
    pub const fn offered(mut self) -> LimitSpec {
        self.of = Counting::Offered;
        self
    }

    /// The same limit, but it counts the calls' weight.
    #[must_use]
    pub const fn by_weight(mut self) -> LimitSpec {
        self.by = Unit::Weight;
        self
    }

    /// The same limit, but only tried: counted, never enforced.
    #[must_use]
    pub const fn candidate(mut self) -> LimitSpec {
        self.candidate = true;
        self
    }

    /// The same budget, but it forgets all after `idle` without a charge. Other kinds stay as they are.
    #[must_use]
    pub const fn idle(mut self, idle: Span) -> LimitSpec {
        if let LimitKind::Budget { count, .. } = self.kind {
            self.kind = LimitKind::Budget { count, idle: Some(idle) };
        }
        self
    }

    /// The same limit under a name.
    #[must_use]
    pub fn named(mut self, name: &str) -> LimitSpec {
        name.clone_into(&mut self.name);
        self
    }

    /// A limit of this kind on admitted calls; refuses above.
    #[must_use]
    pub const fn new(kind: LimitKind) -> LimitSpec {
        LimitSpec {
            name: String::new(),
            kind,
            by: Unit::Calls,
            of: Counting::Admitted,
            on_breach: OnBreach::Refuse,
            candidate: false,
        }
    }
}

impl Default for Recover {
    fn default() -> Recover {
        Recover::Manual { probes: 5 }
    }
}

impl Default for ScopeSpec {
    fn default() -> ScopeSpec {
        ScopeSpec {
            limits: Vec::new(),
            recover: Recover::default(),
            mode: Mode::Enforce,
            keys: Vec::new(),
            detectors: Vec::new(),
            counts: true,
            spent_after_crash: false,
        }
    }
}

impl Default for KeySpec {
    fn default() -> KeySpec {
        KeySpec {
            name: String::new(),
            limits: Vec::new(),
            recover: Recover::default(),
            mode: Mode::Enforce,
            detectors: Vec::new(),
            overrides: Vec::new(),
            missing: Missing::Share,
            newcomers: None,
            spent_after_crash: false,
        }
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
        let ([key], [only], []) = (&*self.keys, &*self.charges, &*self.hearings) else {
            return None;
        };
        let Charged::Key(0, Rows::Inline(0)) = only.at else { return None };
        let Limit::Rate(rate) = only.limit else { return None };
        let charged = limit_bit(only.seat, u32::from(only.index));
        let (rate, table) = (rate.plain()?, Arc::clone(&key.table));
        Some(KeyedRate { rate, table, number: key.number, charged })
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
    fn lone(&self, cells: [u32; NAMED]) -> Option<Lone> {
        let (Charged::Named(charges), Unit::Calls) = (&self.at, self.by) else { return None };
        let charged = limit_bit(self.seat, u32::from(self.index));
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
    /// Whether it counts what is in flight in the slots of a table.
    pub(crate) fn flies_in_table(&self) -> bool {
        matches!((self.limit, &self.memory), (Limit::InFlight(_), Memory::Keys(_)))
    }
}

impl Memory {
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
    /// have passed, both are charged. That is slower, and a save cannot tell how far such a limit is used: restored, it starts
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
            let tallies = policy.seats(route).any(|(seat, rules)| rules.hears_ends(seat));
            route.tallies = tallies;
            route.counts = own.and_then(|own| own.rules.counts.clone());
            route.hears_all = match (tallies, &route.counts) {
                (true, _) => Due::All,
                (false, Some(_)) => Due::Count,
                (false, None) => Due::Nothing,
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

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path, self.problem, self.hint)
    }
}

impl std::error::Error for PolicyError {}

/// A spec that passed every check that needs no memory.
pub(crate) struct Draft {
    /// `/`, the groups, the routes.
    pub(crate) scopes: Vec<DraftScope>,
    pub(crate) dimensions: Vec<DraftKey>,
    pub(crate) routes: Vec<RouteRules>,
}

pub(crate) struct DraftScope {
    pub(crate) scope: Scope,
    pub(crate) rules: DraftRules,
}

pub(crate) struct DraftKey {
    pub(crate) name: String,
    pub(crate) parent: usize,
    pub(crate) index: u8,
    pub(crate) recover: Recover,
    pub(crate) missing: Missing,
    pub(crate) rules: DraftRules,
    /// How many keys may be seen for the first time: a rate.
    pub(crate) newcomers: Option<Limit>,
}

pub(crate) struct DraftRules {
    pub(crate) trip: TripRule,
    pub(crate) mode: Mode,
    pub(crate) limits: DraftLimits,
    /// Labels, and the limits of their keys.
    pub(crate) overrides: Vec<(Vec<u8>, DraftLimits)>,
    pub(crate) detectors: Compiled,
    pub(crate) counts: bool,
    pub(crate) spent_after_crash: bool,
}

/// Checked limits, as written and as arithmetic.
type DraftLimits = Vec<(LimitSpec, Limit)>;

/// What a breaker has room for.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// Groups and routes together.
    pub(crate) scopes: usize,
    /// Rows of memory of each dimension: its cells and the shared one.
    pub(crate) rows: usize,
}

/// Checks a spec whole.
pub(crate) fn check(spec: &PolicySpec, room: Room) -> Result<Draft, Vec<PolicyError>> {
    let mut check = Check { errors: Vec::new(), room, scopes: Vec::new(), dimensions: Vec::new() };
    check.scope("global", Scope::global(), &spec.global);
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for (position, group) in spec.groups.iter().enumerate() {
        let path = named("groups", position, &group.name);
        if groups.contains_key(group.name.as_str()) {
            check.error(&path, "is named twice", "give each group its own name");
            continue;
        }
        if let Some(scope) = check.child(&path, &Scope::global(), &group.name) {
            let index = check.scope(&path, scope, &group.scope);
            groups.insert(&group.name, index);
        }
    }
    let nowhere = Arc::<Cell>::default();
    let mut routes = Vec::new();
    let mut seen = BTreeSet::new();
    for (position, route) in spec.routes.iter().enumerate() {
        let path = named("routes", position, &route.name);
        if !seen.insert((&route.group, &route.name)) {
            check.error(&path, "is named twice in its group", "give each route its own name");
            continue;
        }
        let Some(&group) = groups.get(route.group.as_str()) else {
            let hint = nearest(&route.group, groups.keys().copied());
            let problem = format!("there is no group `{}`", route.group);
            check.error(&format!("{path}.group"), &problem, &hint);
            // Its own rules are checked all the same, so that all errors are seen at once.
            check.scope_rules(&path, &route.scope);
            continue;
        };
        let parent = check.scopes.get(group).map_or(Scope::global(), |scope| scope.scope.clone());
        if let Some(scope) = check.child(&path, &parent, &route.name) {
            let own = check.scope(&path, scope, &route.scope);
            let lineage = [0, group, own];
            let dimensions = check.lineage(&path, lineage);
            routes.push(RouteRules {
                class: route.class,
                lineage,
                cells: [0; NAMED],
                gates: std::array::from_fn(|_| Arc::clone(&nowhere)),
                hears_all: Due::Nothing,
                dimensions,
                plainest: Plainest::Other,
                enforced: false,
                short: None,
                hears: 0,
                counts: None,
                tallies: false,
            });
        }
    }
    let named = check.scopes.len().saturating_sub(1);
    if named > room.scopes {
        let problem = format!("{named} groups and routes, and room for {}", room.scopes);
        check.error("routes", &problem, "raise the capacity for scopes; it is set at start");
    }
    if check.errors.is_empty() {
        Ok(Draft { scopes: check.scopes, dimensions: check.dimensions, routes })
    } else {
        Err(check.errors)
    }
}

struct Check {
    errors: Vec<PolicyError>,
    room: Room,
    scopes: Vec<DraftScope>,
    dimensions: Vec<DraftKey>,
}

impl Check {
    fn error(&mut self, path: &str, problem: &str, hint: &str) {
        self.errors.push(PolicyError {
            path: path.to_owned(),
            problem: problem.to_owned(),
            hint: hint.to_owned(),
        });
    }

    fn child(&mut self, path: &str, parent: &Scope, name: &str) -> Option<Scope> {
        match parent.child(name) {
            Ok(scope) => Some(scope),
            Err(error) => {
                self.error(path, &format!("`{name}` is no name"), &error.problem);
                None
            }
        }
    }

    /// Checks a named scope and returns its index.
    fn scope(&mut self, path: &str, scope: Scope, spec: &ScopeSpec) -> usize {
        let rules = self.scope_rules(path, spec);
        let parent = self.scopes.len();
        self.scopes.push(DraftScope { scope, rules });
        let mut names = BTreeSet::new();
        for (position, key) in spec.keys.iter().enumerate() {
            let path = named(&format!("{path}.keys"), position, &key.name);
            if let Err(error) = check_name(&key.name) {
                self.error(&path, &format!("`{}` is no name", key.name), &error.problem);
            }
            if !names.insert(&key.name) {
                self.error(&path, "is declared twice", "give each dimension its own name");
            }
            let rules = self.key_rules(&path, key);
            self.memory(&path, &rules);
            let newcomers = key.newcomers.and_then(|rate| self.newcomers(&path, rate));
            let (name, index, recover) = (key.name.clone(), u8::MAX, key.recover);
            let missing = key.missing;
            self.dimensions.push(DraftKey {
                name,
                parent,
                index,
                recover,
                missing,
                rules,
                newcomers,
            });
        }
        if spec.keys.len() > MAX_DIMENSIONS {
            let problem = format!("{} key dimensions", spec.keys.len());
            self.error(path, &problem, "a call carries at most 4 keys, over all its levels");
        }
        // A group without routes numbers its dimensions too: keys can be killed there.
        let wide = if parent == 0 || path.starts_with("routes") { None } else { Some(0) };
        self.number(wide, parent);
        parent
    }

    /// Gives the dimensions of `own` their index, after those of the wider scopes.
    fn number(&mut self, wide: Option<usize>, own: usize) {
        let before = self.dimensions.iter().filter(|key| Some(key.parent) == wide).count();
        for (key, index) in self.dimensions.iter_mut().filter(|key| key.parent == own).zip(before..)
        {
            key.index = u8::try_from(index).unwrap_or(u8::MAX);
        }
    }

    /// Checks what only a whole lineage shows, and returns its dimensions in order.
    fn lineage(&mut self, path: &str, lineage: [usize; 3]) -> Box<[usize]> {
        let mut indexes: Vec<usize> = Vec::new();
        for scope in lineage {
            let own = self.dimensions.iter().enumerate().filter(|(_, key)| key.parent == scope);
            indexes.extend(own.map(|(index, _)| index));
        }
        let mut names = BTreeSet::new();
        let mut twice = Vec::new();
        for (position, &index) in indexes.iter().enumerate() {
            if let Some(key) = self.dimensions.get_mut(index) {
                key.index = u8::try_from(position).unwrap_or(u8::MAX);
                if !names.insert(key.name.clone()) {
                    twice.push(key.name.clone());
                }
            }
        }
        for name in twice {
            let problem = format!("a wider scope of its lineage declares `{name}` as well");
            self.error(
                &format!("{path}.keys.{name}"),
                &problem,
                "declare it once, at the wider one",
            );
        }
        if indexes.len() > MAX_DIMENSIONS {
            let problem = format!("{} key dimensions in its lineage", indexes.len());
            self.error(path, &problem, "a call carries at most 4 keys, over all its levels");
        }
        indexes.into()
    }

    fn scope_rules(&mut self, path: &str, spec: &ScopeSpec) -> DraftRules {
        let limits = self.limits(path, &spec.limits);
        let detectors = self.detectors(path, &spec.detectors, false);
        self.recover(&format!("{path}.recover"), spec.recover);
        DraftRules {
            trip: TripRule::new(spec.recover),
            mode: spec.mode,
            limits,
            overrides: Vec::new(),
            counts: spec.counts || !detectors.is_empty(),
            detectors,
            spent_after_crash: spec.spent_after_crash,
        }
    }

    fn key_rules(&mut self, path: &str, spec: &KeySpec) -> DraftRules {
        let limits = self.limits(path, &spec.limits);
        let detectors = self.detectors(path, &spec.detectors, true);
        self.recover(&format!("{path}.recover"), spec.recover);
        let mut overrides = Vec::new();
        let mut labels = BTreeSet::new();
        for (position, own) in spec.overrides.iter().enumerate() {
            let path = format!("{path}.override[{position}]");
            if !labels.insert(&own.label) {
                self.error(&path, "its key has an override already", "give each key one");
            }
            overrides.push((own.label.clone(), self.limits(&path, &own.limits)));
        }
        if overrides.len() > MAX_OVERRIDES {
            let problem = format!("{} overrides", overrides.len());
            self.error(path, &problem, &format!("a dimension has at most {MAX_OVERRIDES}"));
        }
        DraftRules {
            trip: TripRule::new(spec.recover),
            mode: spec.mode,
            limits,
            overrides,
            counts: !detectors.is_empty(),
            detectors,
            spent_after_crash: spec.spent_after_crash,
        }
    }

    fn newcomers(&mut self, path: &str, rate: Newcomers) -> Option<Limit> {
        let Newcomers { count, per, burst } = rate;
        let sound = Limit::new(LimitKind::Rate { count, per, burst }, Unit::Calls);
        let told = sound.map_err(|(problem, hint)| {
            self.error(&format!("{path}.newcomers"), &problem, &hint);
        });
        told.ok()
    }

    fn detectors(&mut self, path: &str, specs: &[DetectorSpec], keys: bool) -> Compiled {
        Compiled::new(specs, keys).unwrap_or_else(|errors| {
            for (index, problem, hint) in errors {
                self.error(&format!("{path}.detect[{index}]"), &problem, &hint);
            }
            Compiled::default()
        })
    }

    fn limits(&mut self, path: &str, limits: &[LimitSpec]) -> DraftLimits {
        if limits.len() > MAX_LIMITS {
            let problem = format!("{} limits", limits.len());
            self.error(path, &problem, &format!("a scope has at most {MAX_LIMITS}"));
        }
        let mut checked = Vec::new();
        let mut names = BTreeSet::new();
        for (index, limit) in limits.iter().enumerate() {
            let path = format!("{path}.limit[{index}]");
            if !limit.name.is_empty() && !names.insert(&limit.name) {
                let problem = format!("another limit of its scope is named `{}`", limit.name);
                self.error(&path, &problem, "give each limit its own name, or none");
            }
            if matches!(limit.kind, LimitKind::InFlight { .. }) && limit.of == Counting::Offered {
                let problem = "calls that are refused are never in flight";
                self.error(&path, problem, "let it count admitted calls");
            }
            match Limit::new(limit.kind, limit.by) {
                Ok(sound) => {
                    checked.push((limit.clone(), sound));
                    self.idle(&path, index, limits);
                }
                Err((problem, hint)) => self.error(&path, &problem, &hint),
            }
        }
        checked
    }

    /// An *admitted* limit that another of its scope keeps from ever being reached is a mistake.
    /// One of *offered* calls sees them all, whatever the others refuse.
    /// Nor is one of weight that is settled: a true weight may take it where no call would.
    fn idle(&mut self, path: &str, index: usize, limits: &[LimitSpec]) {
        let live = |limit: &&LimitSpec| limit.of == Counting::Admitted && !limit.candidate;
        let Some(own) = limits.get(index).filter(live) else { return };
        if own.by == Unit::Weight && Limit::new(own.kind, own.by).is_ok_and(Limit::can_settle) {
            return;
        }
        let idler = limits.iter().enumerate().find(|&(other, limit)| {
            let equal = makes_idle(own.kind, limit.kind) && limit.of == Counting::Admitted;
            other != index
                && !limit.candidate
                && (limit.by, own.by) == (Unit::Calls, Unit::Calls)
                && Limit::new(limit.kind, limit.by).is_ok()
                && makes_idle(limit.kind, own.kind)
                && (!equal || other < index)
        });
        if let Some((other, _)) = idler {
            let problem = format!("can never act: limit[{other}] of the same scope is tighter");
            self.error(path, &problem, "drop it, tighten it, or let it count offered calls");
        }
    }

    fn recover(&mut self, path: &str, recover: Recover) {
        let (Recover::Manual { probes } | Recover::Probe { probes, .. }) = recover;
        if probes == 0 {
            self.error(path, "0 probes can never end a probation", "use at least 1");
        }
        if probes > MAX_PROBES {
            self.error(path, &format!("{probes} probes"), &format!("use at most {MAX_PROBES}"));
        }
        let Recover::Probe { after, at_most, .. } = recover else { return };
        if after < MIN_HOLD {
            self.error(path, "a hold this short ends before it is seen", "use at least 200 ms");
        }
        if at_most > MAX_HOLD {
            let hint = format!(
                "use at most {} s, or manual recovery",
                MAX_HOLD.as_nanos() / 1_000_000_000
            );
            self.error(path, "a hold this long is beyond the gate's range", &hint);
        }
        if at_most < after {
            self.error(path, "the longest hold is shorter than the first", "swap them");
        }
    }

    fn memory(&mut self, path: &str, rules: &DraftRules) {
        let words = rules.limits.iter().map(|(_, limit)| limit.words()).sum::<usize>().max(4);
        let rows = self.room.rows;
        let bytes = rows.saturating_mul(words).saturating_mul(8);
        if bytes > MAX_KEY_BYTES {
            let problem = format!(
                "its rings would need {bytes} bytes: {rows} cells of {words} words of 8 bytes, and \
                 {MAX_KEY_BYTES} is the most"
            );
            self.error(path, &problem, "use fewer key cells, smaller windows, or a rate");
        }
    }
}

/// `routes.orders`, or `routes[3]` where the name cannot be shown.
fn named(list: &str, position: usize, name: &str) -> String {
    if check_name(name).is_ok() { format!("{list}.{name}") } else { format!("{list}[{position}]") }
}

fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    match names.min_by_key(|known| strsim::damerau_levenshtein(name, known)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "declare it among the groups".to_owned(),
    }
}

/// The bit of one limit of a lineage.
pub(crate) const fn limit_bit(seat: u8, index: u32) -> u64 {
    1 << ((seat as u32 * 8 + index) & 63)
}

/// Limits of one scope, at most; eight, so that those of a lineage fit a word of bits.
pub(crate) const MAX_LIMITS: usize = 8;
/// Keys of one dimension with limits of their own, at most.
const MAX_OVERRIDES: usize = 1_024;
/// Charges of the short way, at most.
pub(crate) const MAX_SHORT: usize = 4;
/// Named scopes of a lineage: global, group, route.
pub(crate) const NAMED: usize = 3;
/// Keys of one call, at most.
pub(crate) const MAX_DIMENSIONS: usize = 4;
/// Memory of one dimension's limits, at most.
const MAX_KEY_BYTES: usize = 1 << 30;
