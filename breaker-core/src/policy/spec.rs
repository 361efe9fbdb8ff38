//! All rules for all scopes as written: plain data. It checks nothing.

use crate::detect::DetectorSpec;
use crate::facts::{Class, Mode};
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
    /// Whether its limits and trips deny. It says nothing of its keys, nor of the scopes below: each has its own mode.
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
    /// Whether the limits and trips of its keys deny, whatever the mode of the scope that they hang from.
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
