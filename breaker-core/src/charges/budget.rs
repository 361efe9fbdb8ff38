//! A budget's loops around its words: the head, when its run began, when even and odd runs end.

use super::{BLIND, LATE, NUMBERLESS, Row, SOUND, Saved};
use crate::limit::budget::{Budget, Step, renewed, run_of, used_of};
use crate::sync::{AtomicU64, Ordering, pause};
use crate::time::{Mono, Span};

/// One look: the head word, and when its run ends.
struct Look<'a> {
    row: Row<'a>,
    word: u64,
    end: u64,
}

impl<'a> Look<'a> {
    #[inline]
    fn new(row: Row<'a>) -> Look<'a> {
        // ordering: acquire, so that the run's end is seen at least as late as the charges in the word left it.
        let word = row.head.load(Ordering::Acquire);
        // ordering: acquire, so that a head read again after this is no older than it.
        let end = end_word(row, run_of(word)).map_or(u64::MAX, |end| end.load(Ordering::Acquire));
        Look { row, word, end }
    }

    /// Whether both words read were of one run.
    fn is_unmoved(&self) -> bool {
        // ordering: acquire, as the first look.
        self.row.head.load(Ordering::Acquire) == self.word
    }

    /// Raises the time words, then swaps the head.
    #[inline]
    fn swap<const FLAW: u8>(&self, budget: Budget, step: Step, now: Mono) -> bool {
        let mut next = step.word;
        if FLAW == NUMBERLESS && step.begins {
            next = renewed(self.word.wrapping_sub(renewed(0, 0)), used_of(next));
        }
        if step.begins {
            raise_began(self.row, now.as_nanos());
        }
        let raise = || {
            if let Some(end) = end_word(self.row, run_of(next)) {
                raise(end, budget.end(now));
            }
        };
        if FLAW != LATE {
            raise();
        }
        if FLAW == BLIND {
            self.row.head.store(next, Ordering::Release);
            return true;
        }
        // ordering: release, so that whoever sees the charge sees the time words; acquire, since what was
        // read is passed on; relaxed on failure, since all is read anew.
        let head = self.row.head;
        let swapped =
            head.compare_exchange(self.word, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if FLAW == LATE && swapped {
            raise();
        }
        swapped
    }
}

/// Charges an amount: the run it was charged in, or the exact wait.
pub(super) fn take<const FLAW: u8>(
    budget: Budget,
    row: Row<'_>,
    amount: u64,
    now: Mono,
) -> Result<u64, Span> {
    loop {
        let look = Look::new(row);
        match budget.judge(look.word, look.end, amount, now) {
            Ok(_) if amount == 0 => return Ok(run_of(look.word)),
            Ok(step) if look.swap::<FLAW>(budget, step, now) => return Ok(run_of(step.word)),
            Err(wait) if !budget.forgets() || look.is_unmoved() => return Err(wait),
            // Each retry means that another thread moved the head: somebody always gets on.
            Ok(_) | Err(_) => pause(),
        }
    }
}

pub(super) fn peek(budget: Budget, row: Row<'_>, amount: u64, now: Mono) -> Result<(), Span> {
    let look = look_whole(budget, row);
    budget.judge(look.word, look.end, amount, now).map(drop)
}

/// Takes a charge out of its run, if that lasts.
pub(super) fn undo(row: Row<'_>, run: u64, amount: u64) {
    less(row, amount, |word| run_of(word) == run && used_of(word) >= amount);
}

pub(super) fn settle(
    budget: Budget,
    row: Row<'_>,
    reserved: u64,
    truth: u64,
    since: Mono,
    now: Mono,
) {
    if truth > reserved {
        step(budget, row, now, |look| budget.charged(look.word, look.end, truth - reserved, now));
        return;
    }
    // What was charged before the run began is not in it. A charge of the same instant is: a run begins with one
    // that came an idle time after all of the last run, and orders begin theirs an instant later.
    less(row, reserved - truth, |_| {
        // ordering: acquire, though the head's own load has seen to it that this is no older than the run.
        row.rest.first().is_some_and(|began| began.load(Ordering::Acquire) <= since.as_nanos())
    });
}

pub(super) fn spend(budget: Budget, row: Row<'_>, now: Mono) {
    renew(budget, row, now, Some(now), |look| budget.spent(look.word));
}

pub(super) fn reset(budget: Budget, row: Row<'_>, now: Mono) {
    renew(budget, row, now, None, |look| renewed(look.word, 0));
}

/// Begins a run by order: after all that was charged before, also by a thread whose time is ahead. It lasts at least as long as the
/// last would have: what is charged in it by a late clock is not forgotten sooner than what was charged before.
fn renew(
    budget: Budget,
    row: Row<'_>,
    now: Mono,
    charged: Option<Mono>,
    rule: impl Fn(&Look<'_>) -> u64,
) {
    loop {
        let look = Look::new(row);
        let newest = Mono::from_nanos(budget.newest(look.end));
        raise_began(row, newest.max(now).as_nanos().saturating_add(1));
        let step = Step { word: rule(&look), begins: false };
        if look.swap::<SOUND>(budget, step, charged.map_or(newest, |at| at.max(newest))) {
            return;
        }
        // Each retry means that another thread moved the head: somebody always gets on.
        pause();
    }
}

pub(super) fn used(budget: Budget, row: Row<'_>, now: Mono) -> u64 {
    let look = look_whole(budget, row);
    if budget.has_lapsed(look.word, look.end, now) { 0 } else { used_of(look.word) }
}

pub(super) fn save(budget: Budget, row: Row<'_>, now: Mono) -> Saved {
    let look = look_whole(budget, row);
    let used = if budget.has_lapsed(look.word, look.end, now) { 0 } else { used_of(look.word) };
    if used == 0 {
        return Saved::Fresh;
    }
    let age = budget.forgets().then(|| budget.age(look.end, now));
    Saved::Budget { used, age }
}

/// Puts what was saved into a budget. Where no age is known, the last charge was now; so it is in one that was used, which is
/// charged what is more than it holds.
pub(super) fn restore(budget: Budget, row: Row<'_>, used: u64, age: Option<u64>, now: Mono) {
    // ordering: acquire, as for every look.
    if row.head.load(Ordering::Acquire) != 0 {
        let alone = used.saturating_sub(self::used(budget, row, now));
        step(budget, row, now, |look| budget.charged(look.word, look.end, alone, now));
        return;
    }
    if let Some(end) = end_word(row, 0) {
        // ordering: relaxed, for nobody else has this memory yet.
        end.store(budget.end_after(age.unwrap_or(0), now), Ordering::Relaxed);
    }
    // ordering: release, so that whoever sees the head sees the rest.
    row.head.store(budget.charged(0, 0, used, now).word, Ordering::Release);
}

/// A look whose words were of one moment.
fn look_whole(budget: Budget, row: Row<'_>) -> Look<'_> {
    loop {
        let look = Look::new(row);
        if !budget.forgets() || look.is_unmoved() {
            return look;
        }
        // Each retry means that another thread moved the head: somebody always gets on.
        pause();
    }
}

/// Steps the head whatever it holds.
fn step(budget: Budget, row: Row<'_>, now: Mono, rule: impl Fn(&Look<'_>) -> Step) {
    loop {
        let look = Look::new(row);
        if look.swap::<SOUND>(budget, rule(&look), now) {
            return;
        }
        // Each retry means that another thread moved the head: somebody always gets on.
        pause();
    }
}

/// Takes an amount out of the head, down to nothing, as long as it may.
fn less(row: Row<'_>, amount: u64, may: impl Fn(u64) -> bool) {
    // ordering: as every swap of the head.
    let _ = row.head.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
        may(word).then(|| word - amount.min(used_of(word)))
    });
}

fn raise_began(row: Row<'_>, nanos: u64) {
    if let Some(began) = row.rest.first() {
        raise(began, nanos);
    }
}

/// Raises a word to at least this.
fn raise(word: &AtomicU64, nanos: u64) {
    // ordering: relaxed, for it is published by the swap of the head.
    if word.load(Ordering::Relaxed) < nanos {
        word.fetch_max(nanos, Ordering::Relaxed);
    }
}

/// Where a run's end stands: even and odd runs have their own, so that one that is about to begin does not
/// prolong the one that it ends.
fn end_word(row: Row<'_>, run: u64) -> Option<&AtomicU64> {
    row.rest.get(if run & 1 == 0 { 1 } else { 2 })
}

#[cfg(all(test, loom))]
mod models {
    use super::{BLIND, LATE, NUMBERLESS, SOUND, take, undo};
    use crate::charges::{Charges, explore};
    use crate::limit::Limit;
    use crate::limit::budget::Budget;
    use crate::time::{Mono, Span};
    use loom::sync::Arc;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    fn budget(count: u64) -> (Budget, Arc<Charges>) {
        let budget = Budget::new(count, Some(Span::from_nanos(10))).unwrap();
        (budget, Arc::new(Charges::for_rows(Limit::Budget(budget), 1)))
    }

    /// Before it all, calls at `past`; then two at once; then one at each instant of `after`. How many of the
    /// two passed, and of the last.
    fn two<const FLAW: u8>(
        count: u64,
        past: &'static [u64],
        both: [u64; 2],
        after: &'static [u64],
        check: fn(usize, usize),
    ) {
        explore(3, move || {
            let (budget, charges) = budget(count);
            let call = move |charges: &Charges, now| {
                usize::from(take::<FLAW>(budget, charges.row(0).unwrap(), 1, at(now)).is_ok())
            };
            for now in past {
                assert_eq!(call(&charges, *now), 1);
            }
            let other = {
                let charges = Arc::clone(&charges);
                loom::thread::spawn(move || call(&charges, both[1]))
            };
            let passed = call(&charges, both[0]) + other.join().unwrap();
            let later = after.iter().map(|now| call(&charges, *now)).sum();
            check(passed, later);
        });
    }

    /// Goal: two find the budget idle: it forgets once, and one of them passes.
    fn forgotten_once<const FLAW: u8>() {
        two::<FLAW>(1, &[0], [10, 11], &[19, 21], |passed, later| {
            assert_eq!((passed, later), (1, 1), "forgotten twice");
        });
    }

    /// Goal: a budget forgets once.
    #[test]
    fn loom_a_budget_forgets_once() {
        forgotten_once::<SOUND>();
    }

    /// Negative control: a run that keeps its number is forgotten twice.
    #[test]
    #[should_panic(expected = "forgotten twice")]
    fn loom_a_run_without_a_number_is_caught() {
        forgotten_once::<NUMBERLESS>();
    }

    fn charged_while_forgotten<const FLAW: u8>() {
        two::<FLAW>(2, &[0], [9, 10], &[12], |passed, later| {
            assert!(passed >= 1);
            assert_eq!(later, 0, "a charge was forgotten");
        });
    }

    /// Goal: a call that is charged just before the budget forgets is counted with what came before or
    /// with what comes after.
    #[test]
    fn loom_no_charge_is_forgotten() {
        charged_while_forgotten::<SOUND>();
    }

    /// Negative control: where the end is raised only after the charge, the charge is forgotten.
    #[test]
    #[should_panic(expected = "a charge was forgotten")]
    fn loom_an_end_raised_late_is_caught() {
        charged_while_forgotten::<LATE>();
    }

    fn one_of_two<const FLAW: u8>() {
        two::<FLAW>(1, &[], [5, 6], &[7], |passed, later| {
            assert_eq!((passed, later), (1, 0), "over-admitted");
        });
    }

    /// Goal: of two that ask for the last one of a budget, one passes.
    #[test]
    fn loom_a_budget_is_spent_once() {
        one_of_two::<SOUND>();
    }

    /// Negative control: a charge that overwrites what it did not read lets both pass.
    #[test]
    #[should_panic(expected = "over-admitted")]
    fn loom_a_blind_charge_is_caught() {
        one_of_two::<BLIND>();
    }

    /// An undo, or a settlement to nothing, while the budget forgets what it is about.
    fn undone_while_forgotten<const FLAW: u8, const SETTLED: bool>() {
        explore(3, || {
            let (budget, charges) = budget(2);
            let limit = Limit::Budget(budget);
            let run = take::<FLAW>(budget, charges.row(0).unwrap(), 1, at(0)).unwrap();
            let other = {
                let charges = Arc::clone(&charges);
                loom::thread::spawn(move || {
                    let row = charges.row(0).unwrap();
                    if SETTLED {
                        row.settle(limit, 1, 0, at(0), at(10));
                    } else {
                        undo(row, run, 1);
                    }
                })
            };
            let row = charges.row(0).unwrap();
            take::<FLAW>(budget, row, 1, at(10)).unwrap();
            other.join().unwrap();
            assert_eq!(row.used(limit, at(10)), 1, "another's charge was undone");
        });
    }

    /// Goal: what belongs to a run that is over is never taken out of the next.
    #[test]
    fn loom_an_undo_stays_in_its_run() {
        undone_while_forgotten::<SOUND, false>();
        undone_while_forgotten::<SOUND, true>();
    }

    /// Negative control: without a run's number it is.
    #[test]
    #[should_panic(expected = "another's charge was undone")]
    fn loom_an_undo_without_a_run_is_caught() {
        undone_while_forgotten::<NUMBERLESS, false>();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::charges::{Charges, Taken};
    use crate::limit::budget::Budget;
    use crate::limit::{Limit, NEVER};
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    /// A budget, slowly: all charges of the run, when the last was, and when the run began.
    #[derive(Default)]
    struct Oracle {
        idle: Option<u64>,
        run: Vec<(usize, u64)>,
        /// Of this run and of the last but one, whose word it has: a lagging thread may find itself older than that.
        last: u64,
        last_before: u64,
        began: u64,
    }

    impl Oracle {
        fn has_lapsed(&self, now: u64) -> bool {
            self.idle.is_some_and(|idle| self.last + idle <= now)
        }

        fn used(&self, now: u64) -> u64 {
            if self.has_lapsed(now) { 0 } else { self.run.iter().map(|(_, amount)| amount).sum() }
        }

        fn charge(&mut self, number: usize, amount: u64, now: u64) {
            if self.run.iter().any(|(_, amount)| *amount > 0) && self.has_lapsed(now) {
                self.renew(now);
            }
            self.run.push((number, amount));
            self.last = self.last.max(now);
        }

        fn renew(&mut self, began: u64) {
            self.run.clear();
            self.began = self.began.max(began);
            (self.last, self.last_before) = (self.last_before, self.last);
        }
    }

    /// Calls of each thread: few where each step is interpreted.
    const CALLS: u64 = if cfg!(miri) { 20 } else { 2_000 };

    /// Goal: eight real threads at one budget: it passes its count between two resets, no more and no less,
    /// undone ones aside.
    #[test]
    fn eight_threads_share_a_budget_exactly() {
        for idle in [None, Some(Span::from_secs(1))] {
            let limit = Limit::Budget(Budget::new(1_000, idle).unwrap());
            let charges = Charges::for_scope(limit);
            for round in 0..4_u64 {
                let now = at(round * 2_000_000_000);
                charges.row(0).unwrap().reset(limit, now);
                let life = |thread: u64| {
                    let row = charges.row(0).unwrap();
                    let mut passed = 0;
                    for call in 0..CALLS {
                        let amount = (call + thread) % 3 + 1;
                        match row.take(limit, amount, now) {
                            Ok(taken) if call % 4 == 0 => row.undo(limit, taken),
                            Ok(_) => passed += amount,
                            Err(_) => {}
                        }
                    }
                    passed
                };
                let passed: u64 = std::thread::scope(|threads| {
                    let life = &life;
                    let spawned: Vec<_> =
                        (0..8).map(|thread| threads.spawn(move || life(thread))).collect();
                    spawned.into_iter().map(|thread| thread.join().unwrap()).sum()
                });
                let row = charges.row(0).unwrap();
                assert!(passed <= 1_000);
                assert_eq!(row.used(limit, now), passed);
                for _ in passed..1_000 {
                    row.take(limit, 1, now).unwrap();
                }
                assert!(row.take(limit, 1, now).is_err());
            }
        }
    }

    proptest! {
        /// Goal: a budget agrees with its oracle, act by act and wait by wait, also when `now` runs back.
        #[test]
        fn a_budget_agrees_with_its_oracle(
            count in 1_u64..20, idle in proptest::option::of(1_u64..60),
            acts in proptest::collection::vec((0..12_u8, -10_i64..40, 0_u64..8, 0..50_usize), 1..200),
        ) {
            let limit = Limit::Budget(Budget::new(count, idle.map(Span::from_nanos)).unwrap());
            let charges = Charges::for_scope(limit);
            let row = charges.row(0).unwrap();
            let mut oracle = Oracle { idle, ..Oracle::default() };
            let mut taken: Vec<(usize, Taken, u64, u64)> = Vec::new();
            let mut now = 1_000_i64;
            for (number, (act, step, amount, which)) in acts.into_iter().enumerate() {
                now += step;
                let nanos = u64::try_from(now).unwrap();
                let pick = (!taken.is_empty()).then(|| which % taken.len());
                match (act, pick) {
                    (0, Some(pick)) => {
                        let (number, undone, ..) = taken.remove(pick);
                        row.undo(limit, undone);
                        oracle.run.retain(|(own, _)| *own != number);
                    }
                    (1..4, Some(pick)) => {
                        let (own, _, reserved, since) = taken.remove(pick);
                        row.settle(limit, reserved, amount, at(since), at(nanos));
                        let charge = oracle.run.iter_mut().find(|(number, _)| *number == own);
                        if amount > reserved {
                            oracle.charge(usize::MAX, amount - reserved, nanos);
                        } else if let Some(charge) = charge.filter(|_| since >= oracle.began) {
                            // To a thread whose time lags behind the run's nothing is given back: stricter.
                            charge.1 = amount;
                        }
                    }
                    (4, _) if which < 10 => {
                        row.reset(limit, at(nanos));
                        oracle.renew(oracle.last.max(nanos) + 1);
                        // No charge, and forgotten no sooner than what was charged before.
                        oracle.last = oracle.last.max(oracle.last_before);
                    }
                    _ => {
                        let fits = oracle.used(nanos) + amount <= count;
                        prop_assert_eq!(row.peek(limit, amount, at(nanos)).is_ok(), fits);
                        match row.take(limit, amount, at(nanos)) {
                            Ok(charge) => {
                                prop_assert!(fits);
                                if amount > 0 {
                                    oracle.charge(number, amount, nanos);
                                }
                                taken.push((number, charge, amount, nanos));
                            }
                            Err(wait) => {
                                prop_assert!(!fits);
                                let idle = idle.filter(|_| amount <= count);
                                let exact = idle.map_or(NEVER, |idle| {
                                    Span::from_nanos(oracle.last + idle - nanos)
                                });
                                prop_assert_eq!(wait, exact);
                            }
                        }
                    }
                }
                prop_assert_eq!(row.used(limit, at(nanos)), oracle.used(nanos));
                prop_assert_eq!(row.is_idle(limit, at(nanos)), oracle.used(nanos) == 0);
            }
        }

        /// Goal: a spent budget passes nothing until it is idle or reset, whatever is undone or settled.
        #[test]
        fn a_spent_budget_is_spent(
            count in 1_u64..20, idle in proptest::option::of(1_u64..60), amount in 1_u64..20,
        ) {
            let limit = Limit::Budget(Budget::new(count, idle.map(Span::from_nanos)).unwrap());
            let charges = Charges::for_scope(limit);
            let row = charges.row(0).unwrap();
            let taken = row.take(limit, amount.min(count), at(7)).unwrap();
            row.spend(limit, at(7));
            row.undo(limit, taken);
            row.settle(limit, amount.min(count), 0, at(7), at(8));
            prop_assert_eq!(row.used(limit, at(7)), count);
            let wait = row.take(limit, 1, at(7)).unwrap_err();
            prop_assert_eq!(wait, idle.map_or(NEVER, Span::from_nanos));
            row.reset(limit, at(9));
            prop_assert!(row.take(limit, count, at(9)).is_ok());
        }
    }
}
