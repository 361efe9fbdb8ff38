//! The words of limits and the loops around them: take, undo, settle, carry over; it knows no policy, no gate and no key.

mod buckets;
mod budget;
mod ring;
mod turns;

use crate::limit::rate::{Owed, Plain};
use crate::limit::window::Window;
use crate::limit::{Limit, NEVER};
use crate::sync::{AtomicU64, Ordering};
use crate::time::{Mono, Span};

/// One limit's memory: a row of words for each cell.
pub(crate) struct Charges(Memory);

enum Memory {
    /// One row, whose head has its line of memory to itself: all its calls swap it. Beside it, until when it is spent
    /// for what it was not charged, in nanoseconds; 0 for never.
    Scope { head: Line, rest: Box<[AtomicU64]>, spent: AtomicU64 },
    /// Rows of so many words.
    Rows { words: usize, all: Box<[AtomicU64]> },
}

#[repr(align(128))]
struct Line(AtomicU64);

/// One cell's memory of one limit. All zero is new.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) head: &'a AtomicU64,
    pub(crate) rest: &'a [AtomicU64],
}

/// What one charge did, for its undo. The default undoes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// A rate's debt before; a bucket's tick; a budget's run.
    before: u64,
    /// A rate's debt after; of all others the amount.
    after: u64,
}

/// What a row held, as plain numbers that do not depend on the caller's origin of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Saved {
    /// Nothing was ever charged.
    Fresh,
    Rate(Owed),
    Window(Past),
    Budget {
        used: u64,
        /// Nanoseconds since the last charge, where that is known.
        age: Option<u64>,
    },
    /// What was in flight has ended.
    InFlight,
}

/// What passed, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    /// How many nanoseconds back all is known; `u64::MAX` for ever.
    pub(crate) known: u64,
    /// How many nanoseconds ago how much passed, the oldest first.
    pub(crate) passed: Vec<(u64, u64)>,
}

/// What is known of a limit's past once its memory was filled from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It holds what was charged.
    Whole,
    /// It holds more: what is unknown counts as passed.
    Padded,
    /// What was saved says nothing of the limit.
    Not,
}

impl Charges {
    /// Memory for one named scope.
    pub(crate) fn for_scope(limit: Limit) -> Charges {
        // A margin keeps other memory off the lines of a ring's first and last slots.
        let rest = limit.words() - 1 + MARGIN;
        let head = Line(AtomicU64::new(0));
        Charges(Memory::Scope { head, rest: zeros(rest), spent: AtomicU64::new(0) })
    }

    /// Memory for so many cells.
    pub(crate) fn for_rows(limit: Limit, rows: usize) -> Charges {
        let words = limit.words();
        Charges(Memory::Rows { words, all: zeros(words.saturating_mul(rows)) })
    }

    /// One cell's words.
    #[inline]
    pub(crate) fn row(&self, row: usize) -> Option<Row<'_>> {
        match &self.0 {
            Memory::Scope { head, rest, .. } => Some(Row { head: &head.0, rest }),
            Memory::Rows { words, all } => {
                let start = words.checked_mul(row)?;
                let (head, rest) = all.get(start..start.checked_add(*words)?)?.split_first()?;
                Some(Row { head, rest })
            }
        }
    }

    /// Until when its only row is spent for what it was not charged, if it ever was. Rows of cells say it elsewhere.
    pub(crate) fn spent_until(&self) -> Option<Mono> {
        // ordering: relaxed, for who spends a row has it alone: a restore comes before all calls, and a reload fills memory that
        // no policy has yet.
        let until = self.spent()?.load(Ordering::Relaxed);
        (until > 0).then(|| Mono::from_nanos(until))
    }

    /// Says that its only row is spent until then for what it was not charged.
    pub(crate) fn note_spent(&self, until: Mono) {
        if let Some(spent) = self.spent() {
            // ordering: relaxed, as for the look at it.
            spent.fetch_max(until.as_nanos(), Ordering::Relaxed);
        }
    }

    /// Says that its only row holds what was charged, and no more.
    pub(crate) fn forget_spent(&self) {
        if let Some(spent) = self.spent() {
            // ordering: relaxed, for a call that sees the word before is refused and not tripped.
            spent.store(0, Ordering::Relaxed);
        }
    }

    fn spent(&self) -> Option<&AtomicU64> {
        match &self.0 {
            Memory::Scope { spent, .. } => Some(spent),
            Memory::Rows { .. } => None,
        }
    }
}

fn zeros(words: usize) -> Box<[AtomicU64]> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

impl Row<'_> {
    /// Would this amount pass? Else the exact wait. Charges nothing.
    #[inline(always)]
    pub(crate) fn peek(self, limit: Limit, amount: u64, now: Mono) -> Result<(), Span> {
        match limit {
            // ordering: relaxed, for a debt stands alone.
            Limit::Rate(rate) => {
                rate.take(self.head.load(Ordering::Relaxed), amount, now).map(drop)
            }
            Limit::Window(window) => ring::take::<SOUND>(window, self, now, false).map(drop),
            Limit::Buckets(buckets) => {
                buckets::take::<SOUND>(buckets, self, amount, now, false).map(drop)
            }
            Limit::Budget(budget) => budget::peek(budget, self, amount, now),
            Limit::InFlight(flight) => {
                // ordering: relaxed, for a count stands alone.
                let used = self.head.load(Ordering::Relaxed);
                flight.take(used, amount).map(drop).ok_or(NEVER)
            }
        }
    }

    /// As [`Row::peek`], at an instant that may lie ahead: not even a tick begins.
    pub(crate) fn forecast(self, limit: Limit, amount: u64, now: Mono) -> Result<(), Span> {
        match limit {
            Limit::Buckets(buckets) => buckets::forecast::<SOUND>(buckets, self, amount, now),
            _ => self.peek(limit, amount, now),
        }
    }

    /// As [`Row::forecast`], had all of the limit been used at `at` besides. It allocates.
    pub(crate) fn forecast_spent(
        self,
        limit: Limit,
        amount: u64,
        (at, now): (Mono, Mono),
    ) -> Result<(), Span> {
        let copy = Charges::for_scope(limit);
        let Some(row) = copy.row(0) else { return Err(NEVER) };
        let words = std::iter::once(self.head).chain(self.rest);
        for (own, word) in std::iter::once(row.head).chain(row.rest).zip(words) {
            // ordering: acquire, as a look at any of them; relaxed, for nobody else has the copy.
            own.store(word.load(Ordering::Acquire), Ordering::Relaxed);
        }
        row.spend(limit, at);
        row.forecast(limit, amount, now)
    }

    /// Charges this amount, or says the exact wait; [`NEVER`] where none is known to suffice. A ring
    /// counts calls: the amount is not asked.
    ///
    /// Always inlined, so that the limit, a match over its kinds, is not copied for each call.
    #[inline(always)]
    pub(crate) fn take(self, limit: Limit, amount: u64, now: Mono) -> Result<Taken, Span> {
        match limit {
            Limit::Rate(rate) => step::<SOUND>(self.head, |debt| rate.take(debt, amount, now))
                .map(|(before, after)| Taken { before, after }),
            Limit::Window(window) => {
                ring::take::<SOUND>(window, self, now, true).map(|_| Taken::default())
            }
            Limit::Buckets(buckets) => buckets::take::<SOUND>(buckets, self, amount, now, true)
                .map(|tick| Taken { before: tick, after: amount }),
            Limit::Budget(budget) => budget::take::<SOUND>(budget, self, amount, now)
                .map(|run| Taken { before: run, after: amount }),
            Limit::InFlight(flight) => {
                step::<SOUND>(self.head, |used| flight.take(used, amount).ok_or(NEVER))
                    .map(|_| Taken { before: 0, after: amount })
            }
        }
    }

    /// Charges one call; `None` says only that [`Row::take`] must be asked.
    #[inline(always)]
    pub(crate) fn take_plain(self, plain: Plain, now: Mono) -> Option<Taken> {
        // ordering: relaxed, for a debt stands alone.
        self.swap_plain(self.head.load(Ordering::Relaxed), plain, now)
    }

    /// Undoes what [`Row::take_plain`] charged, exactly or not at all; whether it did.
    pub(crate) fn undo_plain(self, taken: Taken) -> bool {
        // ordering: relaxed, for a debt stands alone. A lost race is a forfeit.
        let order = Ordering::Relaxed;
        self.head.compare_exchange(taken.after, taken.before, order, order).is_ok()
    }

    /// As [`Row::take_plain`], of a word that several threads may want without pause: they take turns at it, see [`turns`].
    #[inline(always)]
    pub(crate) fn take_hot(self, plain: Plain, now: Mono) -> bool {
        // ordering: relaxed, for a debt stands alone.
        let mut debt = self.head.load(Ordering::Relaxed);
        if turns::is_disturbed(self.head, debt, now) {
            turns::stand_back(now);
            // ordering: relaxed, for a debt stands alone.
            debt = self.head.load(Ordering::Relaxed);
        }
        let taken = self.swap_plain(debt, plain, now);
        if let Some(taken) = taken {
            turns::remember(self.head, taken.after, now);
        }
        taken.is_some()
    }

    #[inline(always)]
    fn swap_plain(self, mut debt: u64, plain: Plain, now: Mono) -> Option<Taken> {
        loop {
            let after = plain.take(debt, now)?;
            // ordering: relaxed, for a debt stands alone.
            let order = Ordering::Relaxed;
            match self.head.compare_exchange_weak(debt, after, order, order) {
                Ok(_) => return Some(Taken { before: debt, after }),
                // A swap that fails has brought the word here, so that the next nearly always succeeds. Each retry means that
                // another thread charged: somebody always gets on.
                Err(seen) => debt = seen,
            }
        }
    }

    /// As [`Row::take`], of a ring.
    #[inline(always)]
    pub(crate) fn take_ring(self, window: Window, now: Mono) -> Result<(), Span> {
        ring::take::<SOUND>(window, self, now, true).map(drop)
    }

    /// Undoes a charge exactly or not at all.
    ///
    /// A debt of calls goes back only from the very value that the charge left: if anybody charged since, time may have
    /// forgiven ours, and to subtract it would eat theirs. One of weight is forfeited: what is settled could bring
    /// that value back. So is a ring's slot. A bucket shrinks while it lives, a budget within its run, though its idle
    /// time is still counted from the call undone.
    pub(crate) fn undo(self, limit: Limit, taken: Taken) {
        match limit {
            Limit::Rate(rate) => {
                if rate.can_undo() {
                    let _ = self.undo_plain(taken);
                }
            }
            Limit::Window(_) => {}
            Limit::Buckets(buckets) => {
                buckets::undo::<SOUND>(buckets, self, taken.before, taken.after);
            }
            Limit::Budget(_) => budget::undo(self, taken.before, taken.after),
            Limit::InFlight(_) => self.give_back(limit, taken.after),
        }
    }

    /// Gives back what a call took that is no longer in flight; other limits have nothing of the kind.
    pub(crate) fn give_back(self, limit: Limit, amount: u64) {
        if let Limit::InFlight(_) = limit {
            let _ = step::<SOUND>(self.head, |used| Ok(used.saturating_sub(amount)));
        }
    }

    /// Tells the true cost of a call that was charged `reserved` at `since`. More is charged in full, beyond the bound
    /// if need be; of less as much is given back as is never freer than if the truth had been charged at once.
    /// A ring counts calls, and what is in flight stays so until it is given back: neither has a true cost.
    /// A rate of calls is not settled: its charges may be undone.
    pub(crate) fn settle(self, limit: Limit, reserved: u64, truth: u64, since: Mono, now: Mono) {
        if reserved == truth {
            return;
        }
        match limit {
            Limit::Rate(rate) if rate.can_undo() => {}
            Limit::Rate(rate) => {
                let settled = |debt| Ok(rate.settle(debt, reserved, truth, since, now));
                let _ = step::<SOUND>(self.head, settled);
            }
            Limit::Buckets(buckets) => {
                buckets::settle(buckets, self, reserved, truth, since, now);
            }
            Limit::Budget(budget) => budget::settle(budget, self, reserved, truth, since, now),
            Limit::Window(_) | Limit::InFlight(_) => {}
        }
    }

    /// Whether the row is as good as new at `now`. If in doubt, no.
    pub(crate) fn is_idle(self, limit: Limit, now: Mono) -> bool {
        match limit {
            // ordering: relaxed, for a debt stands alone.
            Limit::Rate(rate) => rate.is_paid(self.head.load(Ordering::Relaxed), now),
            Limit::Window(window) => ring::is_idle(window, self, now),
            Limit::Buckets(buckets) => buckets::used(buckets, self, now) == Some(0),
            Limit::Budget(budget) => budget::used(budget, self, now) == 0,
            // ordering: relaxed, for a count stands alone.
            Limit::InFlight(_) => self.head.load(Ordering::Relaxed) == 0,
        }
    }

    /// Charges as if all of the limit had just been used. What is in flight is not touched: nothing would ever
    /// give it back.
    pub(crate) fn spend(self, limit: Limit, now: Mono) {
        match limit {
            Limit::Rate(rate) => {
                let _ = step::<SOUND>(self.head, |debt| Ok(rate.spent(debt, now)));
            }
            Limit::Window(window) => ring::spend(window, self, now),
            Limit::Buckets(buckets) => buckets::spend(buckets, self, now),
            Limit::Budget(budget) => budget::spend(budget, self, now),
            Limit::InFlight(_) => {}
        }
    }

    /// Empties a budget, by order. Other limits come back by time, or call by call.
    pub(crate) fn reset(self, limit: Limit, now: Mono) {
        if let Limit::Budget(budget) = limit {
            budget::reset(budget, self, now);
        }
    }

    /// How much of the bound is used at `now`, beyond it if settlements went there. Of a rate: the weight still
    /// owed, rounded up.
    pub(crate) fn used(self, limit: Limit, now: Mono) -> u64 {
        match limit {
            // ordering: relaxed, for a debt stands alone.
            Limit::Rate(rate) => rate.owed(self.head.load(Ordering::Relaxed), now),
            Limit::Window(window) => ring::used(window, self, now),
            Limit::Buckets(buckets) => buckets::used(buckets, self, now).unwrap_or(u64::MAX),
            Limit::Budget(budget) => budget::used(budget, self, now),
            // ordering: relaxed, for a count stands alone.
            Limit::InFlight(_) => self.head.load(Ordering::Relaxed),
        }
    }

    /// Fills memory from that of the limit as it was: never freer than if this limit had counted the same calls all along. What is
    /// unknown counts as passed. What the memory holds already is taken for a part of what the limit counted.
    /// Where the old memory says nothing of this limit, all of it counts as passed now.
    pub(crate) fn seed(self, limit: Limit, old: Row<'_>, was: Limit, now: Mono) -> Filled {
        let saved = old.save(was, now);
        let filled = saved.map_or(Filled::Not, |saved| self.restore(limit, &saved, now));
        if filled == Filled::Not {
            self.spend(limit, now);
        }
        filled
    }

    /// What the row holds, as seen from `now`; None if it was charged too fast to be read whole.
    pub(crate) fn save(self, limit: Limit, now: Mono) -> Option<Saved> {
        match limit {
            Limit::Rate(rate) => {
                // ordering: relaxed, for a debt stands alone.
                let debt = self.head.load(Ordering::Relaxed);
                Some(if debt == 0 { Saved::Fresh } else { Saved::Rate(rate.save(debt, now)) })
            }
            Limit::Window(window) => ring::save(window, self, now),
            Limit::Buckets(buckets) => buckets::save(buckets, self, now),
            Limit::Budget(budget) => Some(budget::save(budget, self, now)),
            Limit::InFlight(_) => Some(Saved::InFlight),
        }
    }

    /// Fills memory, new or idle or with a part of the same, with what was saved. Nothing is done if that says nothing
    /// about this limit.
    #[must_use]
    pub(crate) fn restore(self, limit: Limit, saved: &Saved, now: Mono) -> Filled {
        let padded = match (limit, saved) {
            (_, Saved::Fresh) | (Limit::InFlight(_), Saved::InFlight) => false,
            (Limit::Rate(rate), Saved::Rate(owed)) => {
                let Some((debt, padded)) = rate.restored(owed, now) else { return Filled::Not };
                // ordering: relaxed, for a debt stands alone. The later of two debts stands.
                self.head.fetch_max(debt, Ordering::Relaxed);
                padded
            }
            (Limit::Window(window), Saved::Window(past)) => {
                ring::restore(window, self, past, now);
                let bound = u64::try_from(window.slots()).unwrap_or(u64::MAX);
                past.unknown(window.length(), bound) > 0
            }
            (Limit::Buckets(buckets), Saved::Window(past)) => {
                buckets::restore(buckets, self, past, now);
                past.unknown(buckets.length(), buckets.count()) > 0
            }
            (Limit::Budget(budget), Saved::Budget { used, age }) => {
                budget::restore(budget, self, *used, *age, now);
                false
            }
            _ => return Filled::Not,
        };
        if padded { Filled::Padded } else { Filled::Whole }
    }
}

impl Past {
    /// What passed within a length of time, and as much as is unknown of it up to a bound, the oldest first.
    fn within(&self, length: Span, bound: u64) -> Vec<(u64, u64)> {
        let unknown = self.unknown(length, bound);
        let before = (unknown > 0).then_some((self.known, unknown));
        let mut within: Vec<(u64, u64)> = before.into_iter().chain(self.recent(length)).collect();
        within.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        within
    }

    /// As much as may have passed within a length of time besides what is known, up to a bound.
    fn unknown(&self, length: Span, bound: u64) -> u64 {
        if self.known >= length.as_nanos() {
            return 0;
        }
        let known = self.recent(length).fold(0, |sum: u64, (_, amount)| sum.saturating_add(amount));
        bound.saturating_sub(known)
    }

    fn recent(&self, length: Span) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.passed.iter().copied().filter(move |(age, _)| *age < length.as_nanos())
    }
}

/// Steps a word that stands alone by a rule: the word before and after, or what the rule says against it.
#[inline]
fn step<const FLAW: u8>(
    word: &AtomicU64,
    rule: impl Fn(u64) -> Result<u64, Span>,
) -> Result<(u64, u64), Span> {
    // ordering: relaxed, for the word stands alone.
    let mut before = word.load(Ordering::Relaxed);
    loop {
        let after = rule(before)?;
        if FLAW == BLIND {
            word.store(after, Ordering::Relaxed);
            return Ok((before, after));
        }
        // ordering: relaxed, for the word stands alone.
        match word.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok((before, after)),
            // Each retry means that another thread stepped the word: somebody always gets on.
            Err(seen) => before = seen,
        }
    }
}

/// Words after a scope's rows.
const MARGIN: usize = 16;

// The algorithms as they are meant, and negative controls, which show that the models would notice.
/// As it is meant.
const SOUND: u8 = 0;
/// Acquire and release weakened to relaxed.
const RELAXED: u8 = 1;
/// Where a ring turns is judged by the order of expiries alone.
const LAPLESS: u8 = 2;
/// What was read is not compared with what is replaced.
const BLIND: u8 = 3;
/// A bucket is not frozen before the next begins.
const UNFROZEN: u8 = 4;
/// A bucket is charged that is frozen.
const UNASKED: u8 = 7;
/// A budget's end is raised after the charge.
const LATE: u8 = 5;
/// A budget that forgets keeps the number of its run.
const NUMBERLESS: u8 = 6;
/// Where a ring turns is judged by the parities of laps alone.
const DISORDERED: u8 = 9;
/// What was read of a tick's bucket is not asked whether it still is that tick's.
const STALE: u8 = 8;

/// Tries every interleaving with at most so many preemptions.
#[cfg(all(test, loom))]
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[cfg(all(test, loom))]
mod models {
    use super::{BLIND, Charges, SOUND, explore, step};
    use crate::limit::flight::InFlight;
    use crate::limit::rate::Rate;
    use crate::limit::{Limit, NEVER};
    use crate::policy::Unit;
    use crate::time::{Mono, Span};
    use loom::sync::Arc;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    fn burst_of_two<const FLAW: u8>() {
        explore(3, || {
            let rate = Rate::new(1, Span::from_nanos(10), 2, Unit::Weight).unwrap();
            // A scope's row: it has the word by which calls stand back.
            let charges = Arc::new(Charges::for_scope(Limit::Rate(rate)));
            let call = move |charges: &Charges| {
                let row = charges.row(0).unwrap();
                usize::from(step::<FLAW>(row.head, |debt| rate.take(debt, 1, at(5))).is_ok())
            };
            let spawned: Vec<_> = (0..2)
                .map(|_| {
                    let charges = Arc::clone(&charges);
                    loom::thread::spawn(move || call(&charges))
                })
                .collect();
            let own = call(&charges);
            let passed = spawned.into_iter().fold(own, |sum, one| sum + one.join().unwrap());
            assert_eq!(passed, 2, "a burst of two");
        });
    }

    /// Goal: three threads at a burst of two.
    #[test]
    fn loom_a_burst_is_a_burst() {
        burst_of_two::<SOUND>();
    }

    /// Negative control: a charge that overwrites what it did not read lets all pass.
    #[test]
    #[should_panic(expected = "a burst of two")]
    fn loom_a_blind_burst_is_caught() {
        burst_of_two::<BLIND>();
    }

    /// Goal: an undo and two other charges at once: it goes back whole, or stays whole.
    #[test]
    fn loom_an_undo_leaves_the_others() {
        explore(3, || {
            let rate = Rate::new(1, Span::from_nanos(10), 4, Unit::Calls).unwrap();
            let limit = Limit::Rate(rate);
            let charges = Arc::new(Charges::for_rows(limit, 1));
            let undoer = {
                let charges = Arc::clone(&charges);
                loom::thread::spawn(move || {
                    let row = charges.row(0).unwrap();
                    let taken = row.take(limit, 1, at(5)).unwrap();
                    row.undo(limit, taken);
                })
            };
            let row = charges.row(0).unwrap();
            row.take(limit, 1, at(5)).unwrap();
            row.take(limit, 1, at(6)).unwrap();
            undoer.join().unwrap();
            let used = row.used(limit, at(6));
            assert!(used == 2 || used == 3, "{used} owed");
        });
    }

    fn settled_under_charges<const FLAW: u8>() {
        explore(3, || {
            let rate = Rate::new(1, Span::from_nanos(10), 6, Unit::Weight).unwrap();
            let charges = Arc::new(Charges::for_rows(Limit::Rate(rate), 1));
            charges.row(0).unwrap().take(Limit::Rate(rate), 3, at(5)).unwrap();
            let settler = {
                let charges = Arc::clone(&charges);
                loom::thread::spawn(move || {
                    let settled = |debt| Ok(rate.settle(debt, 3, 1, at(5), at(5)));
                    step::<FLAW>(charges.row(0).unwrap().head, settled).unwrap();
                })
            };
            let row = charges.row(0).unwrap();
            for _ in 0..2 {
                row.take(Limit::Rate(rate), 1, at(5)).unwrap();
            }
            settler.join().unwrap();
            assert_eq!(row.used(Limit::Rate(rate), at(5)), 3, "lost a charge");
        });
    }

    /// Goal: a settlement takes nothing but its own, whoever charges meanwhile.
    #[test]
    fn loom_a_settlement_leaves_the_others() {
        settled_under_charges::<SOUND>();
    }

    /// Negative control: a settlement that overwrites what it did not read loses a charge.
    #[test]
    #[should_panic(expected = "lost a charge")]
    fn loom_a_blind_settlement_is_caught() {
        settled_under_charges::<BLIND>();
    }

    fn one_in_flight<const FLAW: u8>() {
        explore(3, || {
            let flight = InFlight::new(1).unwrap();
            let limit = Limit::InFlight(flight);
            let charges = Arc::new(Charges::for_rows(limit, 1));
            let flying = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
            let call = move |charges: &Charges, flying: &loom::sync::atomic::AtomicUsize| {
                let row = charges.row(0).unwrap();
                let take = |used| flight.take(used, 1).ok_or(NEVER);
                if step::<FLAW>(row.head, take).is_ok() {
                    let before = flying.fetch_add(1, loom::sync::atomic::Ordering::AcqRel);
                    assert_eq!(before, 0, "two at once");
                    flying.fetch_sub(1, loom::sync::atomic::Ordering::AcqRel);
                    row.give_back(limit, 1);
                }
            };
            let other = {
                let (charges, flying) = (Arc::clone(&charges), Arc::clone(&flying));
                loom::thread::spawn(move || call(&charges, &flying))
            };
            call(&charges, &flying);
            other.join().unwrap();
            assert!(charges.row(0).unwrap().is_idle(limit, at(0)), "all given back");
        });
    }

    /// Goal: one at once, and each gives back what it took.
    #[test]
    fn loom_one_in_flight_is_one() {
        one_in_flight::<SOUND>();
    }

    /// Negative control: a take that overwrites what it did not read lets two fly.
    #[test]
    #[should_panic]
    fn loom_a_blind_flight_is_caught() {
        one_in_flight::<BLIND>();
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
