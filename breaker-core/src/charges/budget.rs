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
    fn new(budget: Budget, row: Row<'a>) -> Look<'a> {
        // ordering: acquire, so that the run's end is seen at least as late as the charges in the word left it.
        let word = row.head.load(Ordering::Acquire);
        if !budget.forgets() {
            return Look { row, word, end: u64::MAX };
        }
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
            if budget.forgets()
                && let Some(end) = end_word(self.row, run_of(next))
            {
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
        let look = Look::new(budget, row);
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
    raise_began(row, now.as_nanos().saturating_add(1));
    step(budget, row, now, |look| Step { word: budget.spent(look.word), begins: false });
}

pub(super) fn reset(row: Row<'_>, now: Mono) {
    raise_began(row, now.as_nanos().saturating_add(1));
    // ordering: as every swap of the head.
    let next = |word| Some(renewed(word, 0));
    let _ = row.head.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
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

/// Writes what was saved into new memory. Where no age is known, the last charge was now.
pub(super) fn restore(budget: Budget, row: Row<'_>, used: u64, age: Option<u64>, now: Mono) {
    if budget.forgets()
        && let Some(end) = end_word(row, 0)
    {
        // ordering: relaxed, for nobody else has this memory yet.
        end.store(budget.end_after(age.unwrap_or(0), now), Ordering::Relaxed);
    }
    // ordering: release, so that whoever sees the head sees the rest.
    row.head.store(budget.charged(0, 0, used, now).word, Ordering::Release);
}

/// A look whose words were of one moment.
fn look_whole(budget: Budget, row: Row<'_>) -> Look<'_> {
    loop {
        let look = Look::new(budget, row);
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
        let look = Look::new(budget, row);
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
