//! The rules of a decision, written slowly and obviously, for one thread; it shares no code with the crate, and is never fast.
//!
//! Where the crate promises an exact answer the oracle gives one. Where it promises a bound, the oracle knows the least and the
//! most that the crate may say, and follows what it said within that.

pub(crate) mod gate;
pub(crate) mod limit;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};

use gate::{Gate, Recovery, State, Why};
use limit::{Charge, Ever, Limit, NEVER, Older, Rows, Rule, Wait};

/// The rules of a scope as written. A dimension is a scope too, at `/g/account`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScopeSpec {
    pub(crate) path: String,
    pub(crate) limits: Vec<Rule>,
    pub(crate) recovery: Recovery,
    pub(crate) shadow: bool,
    pub(crate) counts: bool,
    pub(crate) reducing: bool,
    /// The scope that declares it, if it is a dimension.
    pub(crate) parent: Option<String>,
    /// Of a dimension: calls without the key are not judged by it.
    pub(crate) skips: bool,
    /// Keys with limits of their own.
    pub(crate) overrides: Vec<(String, Vec<Rule>)>,
}

/// The rules of a scope in force, with their memory.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) spec: ScopeSpec,
    pub(crate) limits: Vec<Limit>,
    pub(crate) overrides: BTreeMap<String, Vec<Limit>>,
}

/// A policy in force. Dropped when no call of it is left.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) scopes: BTreeMap<String, Scope>,
}

/// A limit that some policy had, to be known again.
#[derive(Debug)]
struct Known {
    identity: String,
    rule: Rule,
    rows: Rows,
    live: Weak<()>,
    older: Vec<Older>,
    ever: Rc<RefCell<Ever>>,
}

/// What is counted at a scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) good: u64,
    pub(crate) slow: u64,
    pub(crate) fault: u64,
    pub(crate) dropped: u64,
    pub(crate) blocked: u64,
    pub(crate) throttled: u64,
    pub(crate) shadowed: u64,
    pub(crate) enforced: [u64; 8],
    pub(crate) detected: [u64; 8],
}

/// All that outlives a policy.
#[derive(Debug, Default)]
pub(crate) struct House {
    gates: BTreeMap<String, Gate>,
    known: BTreeMap<String, Vec<Known>>,
    pub(crate) counts: BTreeMap<String, Counts>,
    /// By dimension: keys with limits of their own.
    owners: BTreeMap<String, Vec<String>>,
    /// Keys that got or lost limits of their own by a reload.
    moved: BTreeSet<String>,
}

/// One scope of a call's lineage: global, group, route, then the keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seat {
    /// Where its rules stand: `/g/account` for a key.
    pub(crate) rules: String,
    /// A key's label.
    pub(crate) label: Option<String>,
    /// A key that shares the overflow cell has no gate.
    pub(crate) shares: bool,
    /// Its limits may refuse for reasons of the table: it was full, and somebody was evicted.
    pub(crate) pressed: bool,
}

/// What the crate said, for where it has a choice: which seats refused (or would have, if they were not in shadow), by which
/// limits, and whether that tripped them.
pub(crate) type Said<'a> = &'a [(usize, usize, bool)];

/// What the oracle says of a call: who refused (index in the lineage), why, and how long to wait.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Pass(Passed),
    /// Any of these limits.
    Limit {
        seat: usize,
        limits: Vec<usize>,
        wait: Wait,
    },
    /// The same, and it tripped the gate.
    Breach {
        seat: usize,
        limits: Vec<usize>,
        wait: Wait,
    },
    Tripped {
        seat: usize,
        wait: u64,
    },
    Probing {
        seat: usize,
    },
    Killed {
        seat: usize,
        cut: bool,
    },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Passed {
    pub(crate) shadowed: bool,
    pub(crate) charges: Vec<Charge>,
    /// Seats that gave a probe, and the moves their gates had made.
    pub(crate) probes: Vec<(usize, u64)>,
    /// Of all seats.
    pub(crate) moves: Vec<u64>,
    pub(crate) shadows: Vec<bool>,
}

impl Seat {
    /// The path of its gate.
    pub(crate) fn gate(&self) -> String {
        match &self.label {
            Some(label) => format!("{}={label}", self.rules),
            None => self.rules.clone(),
        }
    }

    fn row(&self) -> &str {
        if self.shares { OVERFLOW } else { self.label.as_deref().unwrap_or("") }
    }
}

impl Scope {
    pub(crate) fn limits_of(&self, seat: &Seat) -> &[Limit] {
        let own = seat.label.as_ref().and_then(|label| self.overrides.get(label));
        own.map_or(&self.limits, |own| own)
    }
}

impl Policy {
    pub(crate) fn scope(&self, seat: &Seat) -> &Scope {
        &self.scopes[&seat.rules]
    }
}

impl House {
    pub(crate) fn gate(&self, path: &str) -> Gate {
        self.gates.get(path).cloned().unwrap_or_default()
    }

    pub(crate) fn gate_mut(&mut self, path: &str) -> &mut Gate {
        self.gates.entry(path.to_owned()).or_default()
    }

    /// Whether the gate of any key of a dimension was ever moved.
    pub(crate) fn has_moved_keys(&self, dimension: &str) -> bool {
        let prefix = format!("{dimension}=");
        let keys = self.gates.iter().filter(|(path, _)| path.starts_with(&prefix));
        keys.into_iter().any(|(_, gate)| gate.moves > 0 || gate.mode.is_some())
    }

    pub(crate) fn gates(&mut self) -> impl Iterator<Item = (&String, &mut Gate)> {
        self.gates.iter_mut()
    }

    fn counts(&mut self, scope: &str) -> &mut Counts {
        self.counts.entry(scope.to_owned()).or_default()
    }

    /// A policy from a spec, with the memory of what is known again.
    pub(crate) fn compile(&mut self, specs: &[ScopeSpec], now: u64) -> Policy {
        let mut scopes = BTreeMap::new();
        for spec in specs {
            let limits = self.limits(&spec.path, &spec.limits, now);
            let own = |(label, limits): &(String, Vec<Rule>)| {
                (label.clone(), self.limits(&format!("{}={label}", spec.path), limits, now))
            };
            let overrides: BTreeMap<_, _> = spec.overrides.iter().map(own).collect();
            self.note_owners(spec);
            scopes.insert(spec.path.clone(), Scope { spec: spec.clone(), limits, overrides });
        }
        Policy { scopes }
    }

    /// Notes the keys whose own limits came or went: what they had elsewhere may count on.
    fn note_owners(&mut self, spec: &ScopeSpec) {
        let new: Vec<String> = spec.overrides.iter().map(|(label, _)| label.clone()).collect();
        let prefix = spec.path.clone();
        if let Some(old) = self.owners.insert(prefix.clone(), new.clone()) {
            let moved = old.iter().filter(|label| !new.contains(label));
            let moved = moved.chain(new.iter().filter(|label| !old.contains(label)));
            self.moved.extend(moved.map(|label| format!("{prefix}={label}")));
        }
    }

    fn limits(&mut self, path: &str, rules: &[Rule], now: u64) -> Vec<Limit> {
        let mut old = self.known.remove(path).unwrap_or_default();
        let (mut limits, mut known, mut before) = (Vec::new(), Vec::new(), Vec::new());
        for rule in rules {
            let identity = identity(rule, &mut before);
            let found = old.iter().position(|known| known.identity == identity);
            let limit = match found.map(|index| old.swap_remove(index)) {
                None => Limit::new(rule.clone()),
                Some(was) if was.rule.measures_as(rule) => {
                    let live = was.live.upgrade().unwrap_or_default();
                    let (rows, older, ever) = (was.rows, was.older, was.ever);
                    let forgotten = was.live.strong_count() == 0;
                    let limit = Limit { rule: rule.clone(), rows, live, older, ever };
                    if forgotten {
                        limit.forget_lost();
                    }
                    limit.is_now();
                    limit
                }
                Some(was) => {
                    let mut limit = Limit::new(rule.clone());
                    limit.take_over(&was.rule, &was.rows, now);
                    (limit.older, limit.ever) = (was.older, was.ever);
                    limit.is_now();
                    limit.older.push(Older { rule: was.rule, rows: was.rows, live: was.live });
                    limit
                }
            };
            known.push(Known {
                identity,
                rule: rule.clone(),
                rows: Rc::clone(&limit.rows),
                live: Rc::downgrade(&limit.live),
                older: limit.older.clone(),
                ever: Rc::clone(&limit.ever),
            });
            limits.push(limit);
        }
        known.extend(old);
        self.known.insert(path.to_owned(), known);
        limits
    }

    /// Decides on a call, and does what the decision does.
    pub(crate) fn decide(
        &mut self,
        policy: &Policy,
        seats: &[Seat],
        weight: u64,
        now: u64,
        said: Said<'_>,
    ) -> Answer {
        let route = &policy.scopes[&seats[2].rules].spec;
        let answer = self.judge(policy, seats, weight, now, said);
        if route.counts {
            let counts = self.counts(&route.path);
            match &answer {
                Answer::Pass(passed) => counts.shadowed += u64::from(passed.shadowed),
                Answer::Limit { .. } => counts.throttled += 1,
                _ => counts.blocked += 1,
            }
        }
        answer
    }

    fn judge(
        &mut self,
        policy: &Policy,
        seats: &[Seat],
        weight: u64,
        now: u64,
        said: Said<'_>,
    ) -> Answer {
        let reducing = policy.scopes[&seats[2].rules].spec.reducing;
        let mut passed = Passed::default();
        let mut wanting = Vec::new();
        let mut blocked = Vec::new();
        // Look, wide to narrow.
        for (index, seat) in seats.iter().enumerate() {
            let recovery = &policy.scope(seat).spec.recovery;
            let gate = if seat.shares { Gate::default() } else { self.gate(&seat.gate()) };
            let shadow = gate.mode.unwrap_or(policy.scope(seat).spec.shadow);
            passed.shadows.push(shadow);
            wanting.push(!reducing && gate.wants_probe(recovery, now));
            blocked.push(false);
            let answer = match gate.state {
                State::Cut => return Answer::Killed { seat: index, cut: true },
                State::Halted if !reducing => return Answer::Killed { seat: index, cut: false },
                _ if reducing || wanting[index] => continue,
                State::Tripped => {
                    let wait = gate.hold_ends(recovery).map_or(NEVER, |end| end - now);
                    Answer::Tripped { seat: index, wait }
                }
                State::HalfOpen => Answer::Probing { seat: index },
                _ => continue,
            };
            if !shadow {
                return answer;
            }
            passed.shadowed = true;
            blocked[index] = true;
        }
        if !reducing {
            let charged = self.charge(policy, seats, weight, now, said, (&mut passed, &blocked));
            if let Some(refused) = charged {
                return refused;
            }
            // Probes, wide to narrow.
            for (index, seat) in seats.iter().enumerate() {
                let recovery = &policy.scope(seat).spec.recovery;
                let gate = self.gates.entry(seat.gate()).or_default();
                if wanting[index] && gate.take_probe(recovery, now) {
                    passed.probes.push((index, gate.moves));
                }
            }
        }
        passed.moves = seats.iter().map(|seat| self.gate(&seat.gate()).moves).collect();
        Answer::Pass(passed)
    }

    /// What the limits of every seat say, and whether each refuses: where the crate has a choice, by what it said.
    fn asked(
        &self,
        policy: &Policy,
        seats: &[Seat],
        weight: u64,
        now: u64,
        said: Said<'_>,
    ) -> Vec<Vec<(Wait, bool)>> {
        let ask = |(index, seat): (usize, &Seat)| -> Vec<(Wait, bool)> {
            let limits = policy.scope(seat).limits_of(seat).iter().enumerate();
            let uncertain = seat.pressed || self.moved.contains(&seat.gate());
            let one = |(number, limit): (usize, &Limit)| {
                let mut wait = limit.wait(seat.row(), weight, now);
                if uncertain {
                    wait.most = NEVER;
                }
                let is_said = said.iter().any(|&(at, limit, _)| (at, limit) == (index, number));
                let refuses = wait.least > 0 || wait.most > 0 && is_said;
                (wait, refuses)
            };
            limits.map(one).collect()
        };
        seats.iter().enumerate().map(ask).collect()
    }

    fn charge(
        &mut self,
        policy: &Policy,
        seats: &[Seat],
        weight: u64,
        now: u64,
        said: Said<'_>,
        (passed, blocked): (&mut Passed, &[bool]),
    ) -> Option<Answer> {
        let asked = self.asked(policy, seats, weight, now, said);
        let live = |index: usize| {
            let limits = policy.scope(&seats[index]).limits_of(&seats[index]);
            let live = limits.iter().zip(&asked[index]);
            let enforced = !passed.shadows[index];
            live.filter(move |(limit, _)| enforced && !limit.rule.candidate).map(|(_, asked)| asked)
        };
        let narrow: Vec<usize> = (0..seats.len()).rev().collect();
        let refusing = narrow.iter().copied().find(|&at| live(at).any(|(_, refuses)| *refuses));
        // The wait is the longest of all that refuse, wherever they stand.
        let all = || (0..seats.len()).flat_map(live);
        let longest = Wait {
            least: all().map(|(wait, _)| wait.least).max().unwrap_or(0),
            most: all().map(|(wait, _)| wait.most).max().unwrap_or(0),
        };
        for index in narrow {
            if blocked[index] {
                // What the gate would have refused is charged nothing.
                continue;
            }
            let seat = &seats[index];
            let scope = policy.scope(seat);
            let limits = scope.limits_of(seat);
            let shadow = passed.shadows[index];
            let refuses = |number: usize| asked[index][number].1;
            let is_live = |number: &usize| !limits[*number].rule.candidate;
            // In shadow a scope charges what it would have charged live.
            let would =
                shadow && (0..limits.len()).any(|number| refuses(number) && is_live(&number));
            let here = refusing == Some(index) || would;
            // Whether it is known that one that does not refuse was charged: not beside one that may have.
            let sure = |number: usize| !here || asked[index][number].0.most == 0;
            let (offered, admitted): (Vec<usize>, Vec<usize>) =
                (0..limits.len()).partition(|&number| limits[number].rule.offered);
            let mut breaching: Vec<usize> = Vec::new();
            for &number in &offered {
                if refuses(number) {
                    breaching.push(number);
                } else {
                    let sure = sure(number);
                    passed.charges.extend(limits[number].charge(seat.row(), weight, now, sure));
                }
            }
            if refusing.is_none() && !would {
                for &number in &admitted {
                    if refuses(number) {
                        breaching.push(number);
                    } else {
                        passed.charges.extend(limits[number].charge(seat.row(), weight, now, true));
                    }
                }
            } else if here {
                breaching.extend(admitted.iter().filter(|&&n| refuses(n) && is_live(&n)));
                breaching.sort_unstable();
            }
            for &tried in breaching.iter().filter(|number| !is_live(number)) {
                passed.shadowed = true;
                self.breached(scope, tried, true);
            }
            breaching.retain(is_live);
            if breaching.is_empty() {
                continue;
            }
            // What starts spent answers for what it was not charged, and is not tripped for it; nor is what a reload changed, for
            // what it takes for passed.
            let may_start_spent = seat.pressed
                || self.moved.contains(&seat.gate())
                || limits.iter().any(Limit::is_changed);
            let has_tripped = said.iter().any(|&(at, _, tripped)| at == index && tripped);
            let spared = may_start_spent && !has_tripped;
            let known = |number: usize| weight != UNWEIGHED || !limits[number].rule.weighs;
            let may_trip = |&number: &usize| {
                limits[number].rule.trips && !seat.shares && !spared && known(number)
            };
            let trips = breaching.iter().any(may_trip);
            // The one that trips leads, then the one that waits longest, then the first.
            let leads = |number: &usize| trips == may_trip(number);
            let waits = |number: usize| asked[index][number].0;
            let mut leaders: Vec<usize> = breaching.iter().copied().filter(leads).collect();
            if limits.iter().enumerate().all(|(n, _)| waits(n).least == waits(n).most) {
                let most = leaders.iter().map(|&number| waits(number).least).max();
                leaders.retain(|&number| Some(waits(number).least) == most);
                leaders.truncate(1);
            } else {
                let is_said =
                    |leader: &usize| said.iter().any(|said| (said.0, said.1) == (index, *leader));
                if leaders.iter().any(is_said) {
                    leaders.retain(is_said);
                }
            }
            let Some(&lead) = leaders.first() else { continue };
            self.breached(scope, lead, shadow);
            if trips {
                self.gate_mut(&seat.gate()).trip(Why::Limit(lead), &scope.spec.recovery, now);
            }
            if shadow {
                passed.shadowed = true;
                continue;
            }
            let (limits, wait) = (leaders, longest);
            if !trips {
                return Some(Answer::Limit { seat: index, limits, wait });
            }
            let end = self.gate(&seat.gate()).hold_ends(&scope.spec.recovery);
            let hold = end.map_or(NEVER, |end| end - now);
            let wait = Wait { least: wait.least.max(hold), most: wait.most.max(hold) };
            return Some(Answer::Breach { seat: index, limits, wait });
        }
        None
    }

    /// Counts a breach at its scope: of a dimension at all its keys together.
    fn breached(&mut self, scope: &Scope, limit: usize, only_detected: bool) {
        if scope.spec.counts || scope.spec.parent.is_some() {
            let counts = self.counts(&scope.spec.path);
            let which = if only_detected { &mut counts.detected } else { &mut counts.enforced };
            which[limit] += 1;
        }
    }

    /// A call ended: `None` if its permit was dropped. True if a gate moved.
    pub(crate) fn end(
        &mut self,
        policy: &Policy,
        seats: &[Seat],
        passed: &Passed,
        how: Option<(Outcome, Option<u64>)>,
        now: u64,
    ) -> bool {
        let route = &policy.scopes[&seats[2].rules].spec;
        if route.counts {
            let counts = self.counts(&route.path);
            *match how.map(|(outcome, _)| outcome) {
                Some(Outcome::Good) => &mut counts.good,
                Some(Outcome::Slow) => &mut counts.slow,
                Some(Outcome::Fault) => &mut counts.fault,
                None => &mut counts.dropped,
            } += 1;
        }
        for charge in &passed.charges {
            charge.end(how.and_then(|(_, truth)| truth), now);
        }
        let mut moved = false;
        for &(index, moves) in &passed.probes {
            let good = how.map(|(outcome, _)| outcome == Outcome::Good);
            let recovery = &policy.scope(&seats[index]).spec.recovery;
            moved |= self.gate_mut(&seats[index].gate()).probe(moves, good, recovery, now);
        }
        moved
    }

    /// Resets a scope or key: its gate, and its budgets; false if there was nothing to do.
    pub(crate) fn reset(&mut self, policy: &Policy, path: &str, now: u64) -> bool {
        if self.gate(path).is_killed() {
            return false;
        }
        let gate = self.gate_mut(path).reset();
        self.refill(policy, path, now) || gate
    }

    /// Whether it is not known what is used of the limits of a scope or key.
    pub(crate) fn is_uncertain(&self, policy: &Policy, path: &str) -> bool {
        let (rules, label) = match path.split_once('=') {
            Some((rules, label)) => (rules, Some(label.to_owned())),
            None => (path, None),
        };
        let seat = Seat { rules: rules.to_owned(), label, ..Seat::default() };
        let mut limits = policy.scope(&seat).limits_of(&seat).iter();
        self.moved.contains(path) || limits.any(Limit::is_changed)
    }

    /// Empties the budgets of a scope or key; false if nothing of them was used.
    pub(crate) fn refill(&mut self, policy: &Policy, path: &str, now: u64) -> bool {
        let (rules, label) = match path.split_once('=') {
            Some((rules, label)) => (rules, Some(label.to_owned())),
            None => (path, None),
        };
        let seat = Seat { rules: rules.to_owned(), label, ..Seat::default() };
        let limits = policy.scope(&seat).limits_of(&seat).iter();
        limits.filter(|limit| limit.refill(seat.row(), now)).count() > 0
    }

    /// Which of the named scopes, the widest first, blocks a call so that no time ends it.
    pub(crate) fn blocked(&self, policy: &Policy, seats: &[Seat]) -> Option<usize> {
        let reducing = policy.scopes[&seats[2].rules].spec.reducing;
        seats.iter().take(3).position(|seat| {
            let spec = &policy.scope(seat).spec;
            let gate = self.gate(&seat.gate());
            let shadow = gate.mode.unwrap_or(spec.shadow);
            match gate.state {
                State::Cut => true,
                State::Halted => !reducing,
                State::Tripped => !reducing && !shadow && gate.hold_ends(&spec.recovery).is_none(),
                State::Armed | State::HalfOpen => false,
            }
        })
    }
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    Slow,
    Fault,
}

/// By what a limit is known again: its name, or what it counts and how many like it stand before.
fn identity(rule: &Rule, before: &mut Vec<String>) -> String {
    if !rule.name.is_empty() {
        return format!("named {} {} {}", rule.name, rule.weighs, rule.healing());
    }
    let kind = match rule.kind {
        limit::Kind::Rate { .. } => "rate",
        limit::Kind::Window { .. } => "window",
        limit::Kind::Budget { .. } => "budget",
        limit::Kind::InFlight { .. } => "in flight",
    };
    let like = format!("{kind} {} {} {}", rule.weighs, rule.offered, rule.candidate);
    let nth = before.iter().filter(|other| **other == like).count();
    before.push(like.clone());
    format!("{like} {nth}")
}

/// The weight of a call that says none.
pub(crate) const UNWEIGHED: u64 = u64::MAX;
/// The row that keys without a cell share.
const OVERFLOW: &str = "*";
