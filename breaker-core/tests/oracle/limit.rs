//! What a limit remembers and says, one line of arithmetic each; time and lengths are whole nanoseconds.
//!
//! A row is kept twice: the crate may never be *freer* than the one, nor *stricter* than the other. Where a limit is exact the two
//! are the same. They differ for windows of weight (ticks), and after a reload changed a limit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

/// The wait where none is known to suffice.
pub(crate) const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// One of weight each `cost`, so much at once.
    Rate {
        cost: u64,
        burst: u64,
    },
    Window {
        count: u64,
        length: u64,
    },
    Budget {
        count: u64,
        idle: Option<u64>,
    },
    InFlight {
        count: u64,
    },
}

/// A limit as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    pub(crate) kind: Kind,
    pub(crate) weighs: bool,
    pub(crate) offered: bool,
    pub(crate) trips: bool,
    pub(crate) candidate: bool,
    /// Empty for none.
    pub(crate) name: String,
}

/// What has happened to one row; each kind uses what it needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Past {
    /// Windows: when, how much, by which charge.
    passed: Vec<(u64, u64, usize)>,
    /// Rates: when all is paid.
    debt: u64,
    /// Budgets, and what is in flight.
    used: u64,
    /// Budgets: the last charge, and when the present run began.
    last: u64,
    began: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) free: Past,
    pub(crate) strict: Past,
    /// All that was ever charged: when, and how much.
    history: Vec<(u64, u64)>,
    /// The newest instant that anybody asked at, or charged more than was reserved: a window by ticks stands there. To give
    /// something back ends no tick, nor does asking for what can never pass.
    seen: u64,
}

/// The rows of one limit: of a named scope one, of a dimension one for each key.
pub(crate) type Rows = Rc<RefCell<BTreeMap<String, Row>>>;

/// A limit of a policy, with its memory.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) rule: Rule,
    pub(crate) rows: Rows,
    /// Held by every policy that has the limit as it is here.
    pub(crate) live: Rc<()>,
    /// What it was before reloads changed it.
    pub(crate) older: Vec<Older>,
    /// All that passed it, whatever it was then, and what it ever was.
    pub(crate) ever: Rc<RefCell<Ever>>,
}

#[derive(Debug, Default)]
pub(crate) struct Ever {
    rules: Vec<Rule>,
    passed: BTreeMap<String, Vec<(u64, u64)>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Older {
    pub(crate) rule: Rule,
    pub(crate) rows: Rows,
    pub(crate) live: Weak<()>,
}

/// The least and the most that the crate may say to wait: both 0 if it must let pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wait {
    pub(crate) least: u64,
    pub(crate) most: u64,
}

/// What a call was charged, for the end of it.
#[derive(Clone, Debug)]
pub(crate) struct Charge {
    rule: Rule,
    rows: Rows,
    row: String,
    entry: usize,
    amount: u64,
    since: u64,
}

impl Rule {
    fn is_coarse(&self) -> bool {
        self.weighs && matches!(self.kind, Kind::Window { .. })
    }

    pub(crate) fn amount(&self, weight: u64) -> u64 {
        if self.weighs { weight } else { 1 }
    }

    /// When a charge of a window leaves it: for the strict side at the end of the tick that is wholly past.
    fn leaves(&self, at: u64, strict: bool) -> u64 {
        let Kind::Window { length, .. } = self.kind else { return 0 };
        if !strict || !self.is_coarse() {
            return at + length;
        }
        let tick = length.div_ceil(64);
        let leaves = (at / tick + length.div_ceil(tick) + 1) * tick;
        assert!(leaves >= at + length && leaves <= at + length + tick + 63, "the stated bound");
        leaves
    }

    /// How what it took comes back: by time, by an order, or with the end of each call.
    pub(crate) fn healing(&self) -> &'static str {
        match self.kind {
            Kind::Rate { .. } | Kind::Window { .. } => "time",
            Kind::Budget { .. } => "order",
            Kind::InFlight { .. } => "end",
        }
    }

    /// Whether words of memory mean the same to both: then a reload keeps them.
    pub(crate) fn measures_as(&self, other: &Rule) -> bool {
        match (self.kind, other.kind) {
            (Kind::Rate { cost, .. }, Kind::Rate { cost: other, .. }) => cost == other,
            (Kind::Window { length, .. }, Kind::Window { length: over, .. }) if self.weighs => {
                length == over
            }
            (Kind::Window { .. }, Kind::Window { .. }) => self.kind == other.kind,
            (Kind::Budget { idle, .. }, Kind::Budget { idle: other, .. }) => idle == other,
            (Kind::InFlight { .. }, Kind::InFlight { .. }) => true,
            _ => false,
        }
    }
}

impl Past {
    /// The wait until so much could pass; 0 if now.
    fn wait(&self, rule: &Rule, amount: u64, now: u64, strict: bool) -> u64 {
        match rule.kind {
            Kind::Rate { burst, .. } if amount > burst => NEVER,
            Kind::Rate { cost, burst } => {
                (self.debt.max(now) + cost * amount).saturating_sub(now + cost * burst)
            }
            Kind::Window { count, .. } if amount > count => NEVER,
            Kind::Window { count, .. } => {
                let instant = self.passed.iter().map(|(at, ..)| *at).fold(now, u64::max);
                let mut counting: Vec<(u64, u64)> = (self.passed.iter())
                    .map(|&(at, amount, _)| (rule.leaves(at, strict), amount))
                    .filter(|&(leaves, _)| leaves > instant)
                    .collect();
                counting.sort_unstable();
                let mut sum = counting.iter().map(|(_, amount)| amount).sum::<u64>() + amount;
                let mut wait = 0;
                for (leaves, amount) in counting {
                    if sum <= count {
                        break;
                    }
                    sum -= amount;
                    wait = leaves - now;
                }
                wait
            }
            Kind::Budget { count, .. } if amount > count => NEVER,
            Kind::Budget { count, idle } => {
                let used = if self.has_lapsed(rule, now) { 0 } else { self.used };
                match idle {
                    _ if used + amount <= count => 0,
                    Some(idle) => self.last + idle - now,
                    None => NEVER,
                }
            }
            Kind::InFlight { count } if self.used.saturating_add(amount) <= count => 0,
            Kind::InFlight { .. } => NEVER,
        }
    }

    /// Whether nothing of it counts any more.
    fn is_idle(&self, rule: &Rule, now: u64) -> bool {
        match rule.kind {
            Kind::Rate { .. } => self.debt <= now,
            Kind::Window { .. } => {
                self.passed.iter().all(|&(at, ..)| rule.leaves(at, false) <= now)
            }
            Kind::Budget { .. } => self.used == 0 || self.has_lapsed(rule, now),
            Kind::InFlight { .. } => self.used == 0,
        }
    }

    fn has_lapsed(&self, rule: &Rule, now: u64) -> bool {
        let Kind::Budget { idle: Some(idle), .. } = rule.kind else { return false };
        self.used > 0 && self.last + idle <= now
    }

    fn charge(&mut self, rule: &Rule, amount: u64, now: u64, entry: usize) {
        match rule.kind {
            Kind::Rate { cost, .. } => self.debt = self.debt.max(now) + cost * amount,
            Kind::Window { .. } => {
                let newest = self.passed.iter().map(|(at, ..)| *at).fold(now, u64::max);
                self.passed.push((newest, amount, entry));
            }
            Kind::Budget { .. } => {
                if amount == 0 {
                    return;
                }
                if self.has_lapsed(rule, now) {
                    self.used = 0;
                    self.began = self.began.max(now);
                }
                self.used += amount;
                self.last = self.last.max(now);
            }
            Kind::InFlight { .. } => self.used += amount,
        }
    }

    /// A budget is emptied: nothing of before belongs to its new run.
    fn refill(&mut self, rule: &Rule, now: u64) -> bool {
        let is_used = self.used > 0 && !self.has_lapsed(rule, now);
        if matches!(rule.kind, Kind::Budget { .. }) && is_used {
            self.used = 0;
            self.began = self.began.max(now.max(self.last) + 1);
            return true;
        }
        false
    }

    /// The true cost, told at `now`, of what was charged at `since`.
    fn settle(&mut self, charge: &Charge, truth: u64, now: u64, strict: bool) {
        let (more, less) =
            (truth.saturating_sub(charge.amount), charge.amount.saturating_sub(truth));
        match charge.rule.kind {
            Kind::Rate { cost, .. } if more > 0 => self.debt = self.debt.max(now) + cost * more,
            Kind::Rate { cost, .. } => {
                let refund = (cost * less).saturating_sub(now.saturating_sub(charge.since));
                let least = self.debt.min(now);
                self.debt = self.debt.saturating_sub(refund).max(least);
            }
            Kind::Window { .. } => {
                if more > 0 {
                    // The strict side counts it from now on, the free one from when it passed.
                    let own = self.passed.iter().find(|(.., entry)| *entry == charge.entry);
                    let at = if strict { now } else { own.map_or(charge.since, |own| own.0) };
                    let newest = self.passed.iter().map(|(at, ..)| *at).fold(now, u64::max);
                    let at = if strict { newest } else { at };
                    self.passed.push((at, more, charge.entry));
                } else if !strict {
                    // How much of it is given back is not promised: at most this.
                    if let Some(own) =
                        self.passed.iter_mut().find(|(.., entry)| *entry == charge.entry)
                    {
                        own.1 -= less;
                    }
                }
            }
            Kind::Budget { .. } if more > 0 => {
                self.charge(&charge.rule, more, now, charge.entry);
            }
            Kind::Budget { .. } => {
                if self.began <= charge.since {
                    self.used -= less.min(self.used);
                }
            }
            Kind::InFlight { .. } => {}
        }
    }
}

impl Limit {
    pub(crate) fn new(rule: Rule) -> Limit {
        let limit = Limit {
            rule,
            rows: Rows::default(),
            live: Rc::new(()),
            older: Vec::new(),
            ever: Rc::default(),
        };
        limit.is_now();
        limit
    }

    /// No policy had it for a while: the places in flight that were lost may have been forgotten.
    pub(crate) fn forget_lost(&self) {
        if let Kind::InFlight { .. } = self.rule.kind {
            self.rows.borrow_mut().values_mut().for_each(|row| row.free.used = 0);
        }
    }

    /// Remembers what it is.
    pub(crate) fn is_now(&self) {
        self.ever.borrow_mut().rules.push(self.rule.clone());
    }

    /// What it says to so much, now. Since a reload changed it, it may refuse for what it was before.
    pub(crate) fn wait(&self, row: &str, weight: u64, now: u64) -> Wait {
        let amount = self.rule.amount(weight);
        let mut wait = ask(&self.rule, &self.rows, row, amount, now);
        if self.is_changed() {
            // That it refuses is promised, the wait is not. What weighs nothing may pass: a limit that counts what it cannot know
            // as passed starts full, and never fuller than that.
            wait = Wait { least: wait.least.min(amount).min(1), most: NEVER };
        }
        wait
    }

    pub(crate) fn is_changed(&self) -> bool {
        !self.older.is_empty()
    }

    /// What it was at first, if a policy still decides by that: all that newer policies admit is charged there too.
    fn first(&self) -> Option<&Older> {
        self.older.first().filter(|older| older.live.strong_count() > 0)
    }

    /// Charges; `surely` unless it is not known whether the crate did.
    pub(crate) fn charge(&self, row: &str, weight: u64, now: u64, surely: bool) -> Vec<Charge> {
        let amount = self.rule.amount(weight);
        let selves = std::iter::once((&self.rule, &self.rows));
        let older = self.first().map(|older| (&older.rule, &older.rows));
        let mut charges = Vec::new();
        // True weights come later, and are no part of this.
        if surely && !self.rule.weighs {
            self.ever.borrow_mut().check(row, amount, now);
        }
        for (rule, rows) in selves.chain(older) {
            let mut all = rows.borrow_mut();
            let own = all.entry(row.to_owned()).or_default();
            let entry = own.history.len();
            if surely {
                own.history.push((now, amount));
                own.free.charge(rule, amount, now, entry);
            }
            let late = if rule.is_coarse() { now.max(own.seen) } else { now };
            own.strict.charge(rule, amount, late, entry);
            charges.push(Charge {
                rule: rule.clone(),
                rows: Rc::clone(rows),
                row: row.to_owned(),
                entry,
                amount,
                since: now,
            });
        }
        charges
    }

    /// Empties a budget, by order; false if nothing of it was used.
    pub(crate) fn refill(&self, row: &str, now: u64) -> bool {
        let mut any = false;
        let older = self.older.iter().map(|older| (&older.rule, &older.rows));
        for (rule, rows) in std::iter::once((&self.rule, &self.rows)).chain(older) {
            let mut rows = rows.borrow_mut();
            let row = rows.entry(row.to_owned()).or_default();
            for past in [&mut row.free, &mut row.strict] {
                any |= past.refill(rule, now);
            }
            if any {
                row.history.iter_mut().for_each(|entry| entry.1 = 0);
            }
        }
        if any {
            self.ever.borrow_mut().passed.remove(row);
        }
        any
    }

    /// Seeds new memory from what the limit was: as if it had counted the same calls all along.
    pub(crate) fn take_over(&self, was: &Rule, old: &Rows, now: u64) {
        let mut rows = self.rows.borrow_mut();
        let moves = !matches!(
            (self.rule.kind, was.kind),
            (Kind::InFlight { .. }, _) | (_, Kind::InFlight { .. })
        );
        for (name, past) in old.borrow().iter() {
            let mut row = Row { seen: past.seen, ..Row::default() };
            if moves {
                row.history.clone_from(&past.history);
                // What the limit as it was had forgotten stays forgotten, also if it now remembers longer.
                let forgotten = past.free.is_idle(was, now);
                for (entry, &(at, amount)) in past.history.iter().enumerate() {
                    let counts = match self.rule.kind {
                        Kind::Window { .. } => self.rule.leaves(at, false) > now,
                        _ => true,
                    };
                    if !forgotten && counts {
                        row.free.charge(&self.rule, amount, at, entry);
                    }
                }
                // What was more than a burst of the new limit is not owed, but what was owed by the old.
                if let (Kind::Rate { cost, burst }, Kind::Rate { cost: old, .. }) =
                    (self.rule.kind, was.kind)
                {
                    let owed = past.free.debt.saturating_sub(now) / old;
                    row.free.debt = row.free.debt.min(now + cost * burst.max(owed));
                }
                // Of what is paid, no instant is known.
                row.free.debt = if row.free.debt <= now { 0 } else { row.free.debt };
                if let (Kind::Budget { .. }, Kind::Budget { .. }) = (self.rule.kind, was.kind) {
                    row.free.used = row.free.used.min(past.free.used);
                }
            }
            rows.insert(name.clone(), row);
        }
    }
}

impl Ever {
    /// Whatever policies decide at once: all that passes together stays within the largest of their bounds.
    fn check(&mut self, row: &str, amount: u64, now: u64) {
        if self.rules.len() == 1 {
            self.passed.entry(row.to_owned()).or_default().push((now, amount));
            return;
        }
        let passed = self.passed.entry(row.to_owned()).or_default();
        let allows = |rule: &Rule| {
            let mut past = Past::default();
            for (entry, &(at, amount)) in passed.iter().enumerate() {
                past.charge(rule, amount, at, entry);
            }
            past.wait(rule, amount, now, false) == 0
        };
        let timeless = |rule: &Rule| matches!(rule.kind, Kind::InFlight { .. });
        assert!(
            self.rules.iter().any(|rule| timeless(rule) || allows(rule)),
            "no bound that it ever had allows all that passed: {:?} {passed:?} and now {amount} at {now}",
            self.rules
        );
        passed.push((now, amount));
    }
}

fn ask(rule: &Rule, rows: &Rows, row: &str, amount: u64, now: u64) -> Wait {
    let mut rows = rows.borrow_mut();
    let row = rows.entry(row.to_owned()).or_default();
    if !matches!(rule.kind, Kind::Window { count, .. } if amount > count) {
        row.seen = row.seen.max(now);
    }
    Wait {
        // A window by ticks never goes back behind the newest instant that anybody asked at.
        least: row.free.wait(rule, amount, if rule.is_coarse() { row.seen } else { now }, false),
        most: row.strict.wait(rule, amount, now, true),
    }
}

impl Charge {
    /// The call ended: what was in flight is given back, and its true weight counts.
    pub(crate) fn end(&self, truth: Option<u64>, now: u64) {
        let mut rows = self.rows.borrow_mut();
        let Some(row) = rows.get_mut(&self.row) else { return };
        if let Kind::InFlight { .. } = self.rule.kind {
            row.free.used = row.free.used.saturating_sub(self.amount);
            row.strict.used = row.strict.used.saturating_sub(self.amount);
        } else if let Some(truth) = truth.filter(|_| self.rule.weighs) {
            if truth > self.amount {
                row.seen = row.seen.max(now);
            }
            row.free.settle(self, truth, now, false);
            let late = if self.rule.is_coarse() { row.seen } else { now };
            row.strict.settle(self, truth, late, true);
            if let Some(entry) = row.history.get_mut(self.entry) {
                entry.1 = truth;
            }
        }
    }
}
