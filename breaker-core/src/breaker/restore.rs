//! Standings as plain data: saved relative to an instant, and put back at another; it lifts nothing, and what it cannot put back
//! starts spent.

use super::Breaker;
use super::registry::{Identity, identities};
use crate::cell::{Gate, Moved};
use crate::charges::{self, Filled, Past, Row};
use crate::detect::LearnedError;
use crate::facts::{By, Cause, KillLevel, Mode, State};
use crate::gate::{Input, LiftTo, TripRule, Word};
use crate::judges::LearnedAt;
use crate::keys::{Table, Which};
use crate::limit::Limit;
use crate::limit::rate::Owed;
use crate::policy::{KeyRules, LimitRule, Policy};
use crate::scope::{KeyHash, Scope};
use crate::time::{Mono, Span};

/// Where a breaker stood: gates and charges of one policy's scopes and keys, all times relative to the instant of the
/// save. Plain data, in a fixed order.
///
/// Keys are saved by hash, and a hash means something only under the same seed: whoever saves keys must start the next
/// breaker with the same [`Seed`](crate::Seed), and keep it as secret as the first time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Saved {
    /// The version of this form; another one is not read.
    pub version: u16,
    /// What one known label hashes to under the seed: tells whether the keys' hashes mean anything.
    pub seed: u64,
    /// The named scopes, in the order of the policy.
    pub scopes: Vec<SavedScope>,
    /// The key dimensions, in the order of the policy.
    pub dimensions: Vec<SavedDimension>,
}

/// All that a restart must keep: where a breaker stood, and what its detectors learned. [`Sweeper::save`](crate::Sweeper::save)
/// makes it, and [`Sweeper::restore`](crate::Sweeper::restore) takes it.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedWhole {
    /// Gates and charges.
    pub standings: Saved,
    /// What is believed of scopes, dimensions and keys.
    pub learned: Vec<LearnedAt>,
}

/// A named scope.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedScope {
    /// Its path.
    pub path: String,
    /// Its gate.
    pub gate: SavedGate,
    /// Its limits.
    pub limits: Vec<SavedLimit>,
}

/// The keys of a dimension that have something to lose.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedDimension {
    /// The path of the scope that declares it.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// By hash.
    pub keys: Vec<SavedKey>,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedKey {
    /// Its label's hash.
    pub hash: u64,
    /// Its gate.
    pub gate: SavedGate,
    /// Its limits.
    pub limits: Vec<SavedLimit>,
}

/// A gate. What remained of a hold is not said: a hold starts again in full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedGate {
    /// Where it stood.
    pub state: SavedState,
    /// An operator's override: true for shadow.
    pub shadow: Option<bool>,
    /// Trips in the bad spell.
    pub strikes: u8,
    /// What tripped it, if it was tripped, on probation, or killed while it was tripped.
    pub cause: SavedCause,
    /// Whether it was tripped when it was killed, and that trip still held: a lift leads back to it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub tripped_below: bool,
}

/// Where a gate stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SavedState {
    /// Armed.
    #[default]
    Armed,
    /// Tripped.
    Tripped,
    /// On probation.
    HalfOpen,
    /// Killed: halt.
    Halted,
    /// Killed: cut.
    Cut,
}

/// What tripped a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SavedCause {
    /// A person, or nothing that is known.
    #[default]
    Hand,
    /// A limit, by its index.
    Limit(u8),
    /// A detector, by its index.
    Detector(u8),
    /// A detector of a wider scope.
    Wider,
}

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedLimit {
    /// By what it is known again: its name, or what it counts; a text of no other meaning.
    pub identity: String,
    /// What it was charged.
    pub charge: SavedCharge,
    /// If it started spent: for how much longer that is no breach of its own, in nanoseconds.
    #[cfg_attr(feature = "serde", serde(default))]
    pub spent: Option<u64>,
}

/// What a limit was charged. Ages in nanoseconds before the save.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SavedCharge {
    /// Nothing.
    Fresh,
    /// More than could be read whole, as while [`Policy::has_predecessors`]: it starts spent.
    Unsure,
    /// A rate: its debt, and the measure of it.
    Rate {
        /// Units that so much weight costs …
        cost: u64,
        /// … so much weight.
        lot: u64,
        /// A unit is 2⁻ˢ nanoseconds.
        shift: u32,
        /// Units owed.
        units: u64,
        /// Since when all is paid.
        paid: u64,
    },
    /// A window.
    Window {
        /// How far back all is known.
        known: u64,
        /// Age and amount, the oldest first. Of many some stand as one, at the youngest's age.
        passed: Vec<(u64, u64)>,
    },
    /// A budget.
    Budget {
        /// Used.
        used: u64,
        /// Since its last charge, where it forgets.
        age: Option<u64>,
    },
    /// What is in flight ends with its calls.
    InFlight,
}

/// How the last life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// In order, with nothing admitted after the save: limits go on as they stood.
    Clean,
    /// Otherwise: rates and windows start spent; budgets stand as saved, or start spent where the scope says so. An
    /// operator's shadow mode does not come back.
    Crash,
}

/// What came of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Gates that stand blocked, on probation, with strikes or with an operator's mode again.
    pub gates: u64,
    /// Limits that stand as saved.
    pub limits: u64,
    /// What could not be put back, 1 000 at most. Its limits start spent.
    pub missed: Vec<Missed>,
    /// How many more.
    pub more: u64,
    /// What detectors had learned and could not be taken up, 1 000 at most: its index in [`SavedWhole::learned`], and why. The
    /// rest is among `more`.
    pub unlearned: Vec<(usize, LearnedError)>,
}

/// Something that could not be put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The scope's path, of a key that of the scope it hangs from.
    pub scope: String,
    /// The key's dimension and hash.
    pub key: Option<(String, u64)>,
    /// The limit.
    pub limit: Option<String>,
    /// Why.
    pub why: Why,
}

/// Why something could not be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// The policy is another breaker's: nothing was put back, and nothing spent.
    Foreign,
    /// The save is of another version.
    Version,
    /// The policy has no such scope or dimension.
    Unknown,
    /// The scope has no such limit.
    UnknownLimit,
    /// It says nothing about the limit as it is now, or could not be read whole: as of a limit that a reload had changed, while
    /// [`Policy::has_predecessors`].
    Unclear,
    /// The limit has been charged already.
    Charged,
    /// The keys were hashed under another seed.
    Seed,
    /// No room for the key.
    NoRoom,
    /// An operator's shadow mode ends with a crash.
    Shadow,
}

impl Breaker {
    /// Where all scopes of a policy stand, and all keys with something to lose. It allocates, and reads while calls pass:
    /// a save after the last call is exact, one beside traffic is as good as a moment's look.
    ///
    /// These are the standings alone. Where there are detectors, what they learned must be saved too:
    /// [`Sweeper::save`](crate::Sweeper::save) saves both.
    #[must_use]
    pub fn save(&self, policy: &Policy, now: Mono) -> Saved {
        let scopes = policy.scopes.iter().map(|rules| SavedScope {
            path: rules.scope.as_str().to_owned(),
            gate: saved_gate(Some(&rules.gate.gate), &rules.rules.trip, now),
            limits: saved_limits(&rules.rules.limits, None, 0, MAX_PASSED, now),
        });
        let dimensions = policy.dimensions.iter().filter_map(|rules| {
            let parent = policy.scopes.get(rules.parent)?;
            Some(SavedDimension {
                parent: parent.scope.as_str().to_owned(),
                name: rules.name.clone(),
                keys: saved_keys(rules, now),
            })
        });
        Saved {
            version: VERSION,
            seed: self.hash(SEED_LABEL).as_u64(),
            scopes: scopes.collect(),
            dimensions: dimensions.collect(),
        }
    }

    /// Puts back where a policy's scopes stood, before the first call is admitted. Times go on from `now`: the time between
    /// the save and now does not count.
    ///
    /// It only ever blocks: a gate that stands blocked already stays so, a kill comes back as a kill. A hold starts again in
    /// full, a probation with all its probes. Whatever cannot be put back starts spent, and is reported. After
    /// [`Restart::Crash`] rates and windows start spent, of keys seen and unseen. What starts spent refuses until it has recovered, and
    /// trips nobody for it.
    ///
    /// Where there are detectors, [`Sweeper::restore`](crate::Sweeper::restore) restores what they learned as well.
    pub fn restore(&self, policy: &Policy, saved: &Saved, restart: Restart, now: Mono) -> Restored {
        let mut work = Work { breaker: self, restart, now, told: Restored::default() };
        if !self.owns(policy) {
            work.miss("/", None, None, Why::Foreign);
            return work.told;
        }
        if saved.version != VERSION {
            work.miss("/", None, None, Why::Version);
            self.spend(policy, now);
            return work.told;
        }
        work.scopes(policy, saved);
        work.dimensions(policy, saved);
        work.told
    }

    /// Whether keys were hashed here as they are in this save.
    pub(crate) fn has_seed_of(&self, saved: &Saved) -> bool {
        saved.seed == self.hash(SEED_LABEL).as_u64()
    }

    /// Starts all limits of a policy spent, as if all had just been used: for a start after a crash without a save. What is
    /// in flight is not touched.
    pub fn spend(&self, policy: &Policy, now: Mono) {
        for rules in &policy.scopes {
            spend_limits(&rules.rules.limits, None, 0, true, now);
        }
        for rules in &policy.dimensions {
            for (_, limits) in &rules.rules.overrides {
                spend_limits(limits, Some(&rules.keys), rules.keys.overflow_cell(), true, now);
            }
            rules.keys.spend_known(true, now);
            rules.keys.spend_newcomers(None, true, now);
        }
    }
}

/// One restore.
struct Work<'a> {
    breaker: &'a Breaker,
    restart: Restart,
    now: Mono,
    told: Restored,
}

/// Whose limits are put back.
#[derive(Clone, Copy)]
struct Whose<'a> {
    path: &'a str,
    key: Option<(&'a str, u64)>,
    budgets_spent: bool,
}

impl Work<'_> {
    fn scopes(&mut self, policy: &Policy, saved: &Saved) {
        for known in &saved.scopes {
            if Scope::parse(&known.path).ok().and_then(|path| policy.named(&path)).is_none() {
                self.miss(&known.path, None, None, Why::Unknown);
            }
        }
        for rules in &policy.scopes {
            let path = rules.scope.as_str();
            let budgets_spent = rules.rules.spent_after_crash;
            let found = saved.scopes.iter().find(|known| known.path == path);
            let limits = found.map(|known| &*known.limits);
            let whose = Whose { path, key: None, budgets_spent };
            self.limits(whose, &rules.rules.limits, None, 0, limits);
            let Some(found) = found else { continue };
            let word = || {
                let gate = self.breaker.named_gate(rules.cell);
                gate.map(Gate::word).unwrap_or_default()
            };
            let step =
                |input| self.breaker.step_named(rules.cell, input, &rules.rules.trip, self.now);
            let why = self.gate(found.gate, word, step);
            self.note_gate(whose, found.gate, why);
        }
    }

    fn dimensions(&mut self, policy: &Policy, saved: &Saved) {
        for known in &saved.dimensions {
            let parent = Scope::parse(&known.parent).ok();
            if parent.and_then(|parent| policy.dimension(&parent, &known.name)).is_none() {
                let key = Some((&*known.name, 0));
                self.miss(&known.parent, key, None, Why::Unknown);
            }
        }
        let same_seed = self.breaker.has_seed_of(saved);
        for rules in &policy.dimensions {
            let Some(parent) = policy.scopes.get(rules.parent) else { continue };
            let path = parent.scope.as_str();
            let found = saved
                .dimensions
                .iter()
                .find(|known| known.parent == path && known.name == rules.name);
            let mut spends = self.restart == Restart::Crash;
            if let Some(found) = found {
                if same_seed {
                    self.keys(rules, path, found);
                } else if !found.keys.is_empty() {
                    self.miss(path, Some((&rules.name, 0)), None, Why::Seed);
                    spends = true;
                }
            }
            let budgets = rules.rules.spent_after_crash || (spends && !same_seed);
            if spends {
                for (key, limits) in &rules.rules.overrides {
                    let was = found.filter(|_| same_seed);
                    let was = was.is_some_and(|found| {
                        found.keys.iter().any(|known| known.hash == key.as_u64())
                    });
                    if !was {
                        spend_limits(
                            limits,
                            Some(&rules.keys),
                            rules.keys.overflow_cell(),
                            budgets,
                            self.now,
                        );
                    }
                }
                rules.keys.spend_known(budgets, self.now);
                rules.keys.spend_newcomers(None, budgets, self.now);
            }
        }
    }

    fn keys(&mut self, rules: &KeyRules, path: &str, saved: &SavedDimension) {
        let table = &*rules.keys;
        for known in &saved.keys {
            let key = KeyHash::new(known.hash);
            let whose = Whose {
                path,
                key: Some((&rules.name, known.hash)),
                budgets_spent: rules.rules.spent_after_crash,
            };
            let limits = rules.rules.limits_of(Some(key));
            let missed = self.told.missed.len();
            let now = self.now;
            if table
                .hold(key, now, |cell| {
                    self.limits(whose, limits, Some(table), cell, Some(&known.limits));
                })
                .is_none()
            {
                self.miss(path, whose.key, None, Why::NoRoom);
            }
            if self.told.missed.len() > missed || self.told.more > 0 {
                table.spend_newcomers(Some(key), true, now);
            }
            if known.gate == SavedGate::default() {
                continue;
            }
            let word = || {
                let cell = table.find(key).and_then(|cell| table.gate(cell));
                cell.map(Gate::word).unwrap_or_default()
            };
            let step = |input| match table.order(key, input, &rules.rules.trip, now, Which::Claimed)
            {
                crate::keys::Ordered::Done(_, moved) => moved,
                crate::keys::Ordered::Unknown | crate::keys::Ordered::NoRoom => None,
            };
            let mut why = self.gate(known.gate, word, step);
            if table.find(key).is_none() {
                why = Some(Why::NoRoom);
            }
            self.note_gate(whose, known.gate, why);
        }
    }

    /// Brings an armed gate to where it stood, by the moves that lead there; only a kill moves one that is not armed. Where a kill came
    /// first, a trip is put below it.
    fn gate(
        &self,
        saved: SavedGate,
        word: impl Fn() -> Word,
        step: impl Fn(Input) -> Option<Moved>,
    ) -> Option<Why> {
        let mut why = None;
        match saved.shadow {
            Some(true) if self.restart == Restart::Crash => why = Some(Why::Shadow),
            Some(shadow) if word().mode().is_none() => {
                let mode = if shadow { Mode::Shadow } else { Mode::Enforce };
                step(Input::Mode(Some(mode)));
            }
            _ => {}
        }
        let by = match saved.cause {
            SavedCause::Hand => By::Hand,
            SavedCause::Limit(index) => By::Limit(index),
            SavedCause::Detector(index) => By::Detector(index),
            SavedCause::Wider => By::Wider,
        };
        let killed = matches!(saved.state, SavedState::Halted | SavedState::Cut);
        let below = saved.tripped_below && killed;
        if word().is_killed() && (below || saved.state == SavedState::Tripped) {
            step(Input::TripBelow(by, saved.strikes.min(MAX_STRIKES)));
        }
        if word().is_armed() && word().strikes() == 0 {
            let tripped =
                matches!(saved.state, SavedState::Tripped | SavedState::HalfOpen) || below;
            let strikes = saved.strikes.min(MAX_STRIKES).max(u8::from(tripped));
            for strike in 0..strikes {
                if strike > 0 {
                    step(Input::Lift(word().epoch(), LiftTo::HalfOpen));
                }
                step(Input::Trip(by));
            }
            if strikes > 0 && saved.state != SavedState::Tripped && !below {
                step(Input::Lift(word().epoch(), LiftTo::HalfOpen));
            }
            if strikes > 0 && saved.state == SavedState::Armed {
                for _ in 0..MAX_PASSES {
                    if step(Input::ProbePassed(word().epoch())).is_none() {
                        break;
                    }
                }
            }
        }
        match saved.state {
            SavedState::Halted => drop(step(Input::Kill(KillLevel::Halt))),
            SavedState::Cut => drop(step(Input::Kill(KillLevel::Cut))),
            SavedState::Armed | SavedState::Tripped | SavedState::HalfOpen => {}
        }
        why
    }

    fn note_gate(&mut self, whose: Whose<'_>, saved: SavedGate, why: Option<Why>) {
        self.told.gates += u64::from(saved != SavedGate::default() && why.is_none());
        if let Some(why) = why {
            self.miss(whose.path, whose.key, None, why);
        }
    }

    /// Puts back the limits of one scope or key; those that cannot be start spent.
    fn limits(
        &mut self,
        whose: Whose<'_>,
        rules: &[LimitRule],
        table: Option<&Table>,
        cell: usize,
        saved: Option<&[SavedLimit]>,
    ) {
        let identities = names(rules);
        for known in saved.into_iter().flatten() {
            if !identities.contains(&known.identity) {
                self.miss(whose.path, whose.key, Some(&known.identity), Why::UnknownLimit);
            }
        }
        let crash = self.restart == Restart::Crash;
        for (rule, identity) in rules.iter().zip(&identities) {
            let Some(row) = rule.memory.row(table, cell) else { continue };
            let budget = matches!(rule.limit, Limit::Budget(_));
            if crash && (!budget || whose.budgets_spent) {
                rule.memory.spend(table, cell, rule.limit, self.now);
                continue;
            }
            let found = saved.and_then(|all| all.iter().find(|known| known.identity == *identity));
            let Some(found) = found else { continue };
            match put_back(row, rule.limit, &found.charge, self.now) {
                Ok(filled) => {
                    self.told.limits += 1;
                    let recovery = rule.limit.recovery();
                    let rest = match filled {
                        // Changed since the save: what is not known of its past is no breach of its own either.
                        Filled::Padded => Some(recovery),
                        _ => found.spent.map(|rest| Span::from_nanos(rest).min(recovery)),
                    };
                    if let Some(rest) = rest {
                        let until = self.now.plus(rest);
                        rule.memory.note_spent(table, cell, rule.limit, until);
                    }
                }
                Err(why) => {
                    rule.memory.spend(table, cell, rule.limit, self.now);
                    self.miss(whose.path, whose.key, Some(identity), why);
                }
            }
        }
    }

    fn miss(&mut self, scope: &str, key: Option<(&str, u64)>, limit: Option<&str>, why: Why) {
        if self.told.missed.len() >= MAX_MISSED {
            self.told.more = self.told.more.saturating_add(1);
            return;
        }
        let key = key.map(|(dimension, hash)| (dimension.to_owned(), hash));
        let (scope, limit) = (scope.to_owned(), limit.map(str::to_owned));
        self.told.missed.push(Missed { scope, key, limit, why });
    }
}

fn put_back(row: Row<'_>, limit: Limit, saved: &SavedCharge, now: Mono) -> Result<Filled, Why> {
    let saved = charge_of(saved).ok_or(Why::Unclear)?;
    if !row.is_idle(limit, now) {
        return Err(Why::Charged);
    }
    match row.restore(limit, &saved, now) {
        Filled::Not => Err(Why::Unclear),
        filled => Ok(filled),
    }
}

fn spend_limits(rules: &[LimitRule], table: Option<&Table>, cell: usize, budgets: bool, now: Mono) {
    for rule in rules.iter().filter(|rule| budgets || !matches!(rule.limit, Limit::Budget(_))) {
        rule.memory.spend(table, cell, rule.limit, now);
    }
}

fn saved_keys(rules: &KeyRules, now: Mono) -> Vec<SavedKey> {
    let table = &*rules.keys;
    let mut keys = Vec::new();
    for cell in 0..table.cells() {
        let Some(key) = table.tag(cell) else { continue };
        let gate = saved_gate(table.gate(cell), &rules.rules.trip, now);
        let limits =
            saved_limits(rules.rules.limits_of(Some(key)), Some(table), cell, MAX_KEY_PASSED, now);
        keys.push(SavedKey { hash: key.as_u64(), gate, limits });
    }
    for (key, limits) in &rules.rules.overrides {
        if table.find(*key).is_none() {
            let limits =
                saved_limits(limits, Some(table), table.overflow_cell(), MAX_KEY_PASSED, now);
            keys.push(SavedKey { hash: key.as_u64(), gate: SavedGate::default(), limits });
        }
    }
    let idle =
        |limit: &SavedLimit| matches!(limit.charge, SavedCharge::Fresh | SavedCharge::InFlight);
    keys.retain(|key| key.gate != SavedGate::default() || !key.limits.iter().all(idle));
    keys.sort_by_key(|key| key.hash);
    keys.dedup_by_key(|key| key.hash);
    keys
}

fn saved_limits(
    rules: &[LimitRule],
    table: Option<&Table>,
    cell: usize,
    most: usize,
    now: Mono,
) -> Vec<SavedLimit> {
    let charge = |rule: &LimitRule| {
        let row = rule.memory.row(table, cell)?;
        // What an earlier self alone was charged is in no one row.
        if !rule.before.is_empty() {
            return None;
        }
        if row.is_idle(rule.limit, now) {
            return Some(SavedCharge::Fresh);
        }
        row.save(rule.limit, now).map(|saved| plain(saved, most))
    };
    let rest = |rule: &LimitRule| {
        let until = rule.memory.spent_until(table, cell, rule.limit)?;
        Some(until.since(now).as_nanos()).filter(|rest| *rest > 0)
    };
    let all = rules.iter().zip(names(rules));
    all.map(|(rule, identity)| {
        let charge = charge(rule).unwrap_or(SavedCharge::Unsure);
        let spent = rest(rule).filter(|_| charge != SavedCharge::Fresh);
        SavedLimit { identity, charge, spent }
    })
    .collect()
}

fn names(rules: &[LimitRule]) -> Vec<String> {
    let all = identities(rules.iter().map(|rule| &rule.spec));
    all.iter().map(Identity::text).collect()
}

fn saved_gate(gate: Option<&Gate>, rule: &TripRule, now: Mono) -> SavedGate {
    let word = gate.map(Gate::word).unwrap_or_default();
    let below = word.trip_below(rule, now);
    let state = match word.state() {
        State::Armed => SavedState::Armed,
        State::Tripped => SavedState::Tripped,
        State::HalfOpen => SavedState::HalfOpen,
        State::Killed(KillLevel::Halt) => SavedState::Halted,
        State::Killed(KillLevel::Cut) => SavedState::Cut,
    };
    let cause = match below.or(word.cause()) {
        Some(Cause::Tripped(By::Limit(index))) => SavedCause::Limit(index),
        Some(Cause::Tripped(By::Detector(index))) => SavedCause::Detector(index),
        Some(Cause::Tripped(By::Wider)) => SavedCause::Wider,
        _ => SavedCause::Hand,
    };
    let shadow = word.mode().map(|mode| mode == Mode::Shadow);
    SavedGate { state, shadow, strikes: word.strikes(), cause, tripped_below: below.is_some() }
}

fn plain(saved: charges::Saved, most: usize) -> SavedCharge {
    match saved {
        charges::Saved::Fresh => SavedCharge::Fresh,
        charges::Saved::Rate(Owed { cost, lot, shift, units, paid }) => {
            SavedCharge::Rate { cost, lot, shift, units, paid }
        }
        charges::Saved::Window(Past { known, passed }) => {
            SavedCharge::Window { known, passed: fewer(passed, most) }
        }
        charges::Saved::Budget { used, age } => SavedCharge::Budget { used, age },
        charges::Saved::InFlight => SavedCharge::InFlight,
    }
}

fn charge_of(saved: &SavedCharge) -> Option<charges::Saved> {
    Some(match saved {
        SavedCharge::Fresh => charges::Saved::Fresh,
        SavedCharge::Unsure => return None,
        &SavedCharge::Rate { cost, lot, shift, units, paid } => {
            charges::Saved::Rate(Owed { cost, lot, shift, units, paid })
        }
        SavedCharge::Window { known, passed } => {
            let ordered = passed.is_sorted_by(|(older, _), (newer, _)| older >= newer);
            if passed.len() > MAX_PASSED || !ordered {
                return None;
            }
            charges::Saved::Window(Past { known: *known, passed: passed.clone() })
        }
        &SavedCharge::Budget { used, age } => charges::Saved::Budget { used, age },
        SavedCharge::InFlight => charges::Saved::InFlight,
    })
}

/// At most so many entries: neighbours stand as one, at the younger's age, which is stricter.
fn fewer(passed: Vec<(u64, u64)>, most: usize) -> Vec<(u64, u64)> {
    let share = passed.len().div_ceil(most.max(1)).max(1);
    let groups = passed.chunks(share).filter_map(|group| {
        let (age, _) = group.last()?;
        Some((*age, group.iter().fold(0, |sum: u64, (_, amount)| sum.saturating_add(*amount))))
    });
    groups.collect()
}

/// The version of the form.
const VERSION: u16 = 1;
/// What is hashed to know a seed again.
const SEED_LABEL: &[u8] = b"breaker: which seed";
/// Entries of one saved window: of a named scope's as many as the largest exact one has, so that none is lost.
const MAX_PASSED: usize = 65_536;
/// The same of a key's.
const MAX_KEY_PASSED: usize = 64;
const MAX_MISSED: usize = 1_000;
/// Strikes that a gate holds.
const MAX_STRIKES: u8 = 15;
/// Probes of one probation, at most.
const MAX_PASSES: usize = 64;
