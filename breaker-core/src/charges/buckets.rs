//! The loops around a window's sub-buckets: the head, the tick that comes next, the sum of all others, and the buckets.
//!
//! A tick ends in steps that any thread can take for any other, so a thread that sleeps in the midst of it stops
//! nobody: the next tick is agreed on (by one swap of its word), the current bucket is frozen, those whose time is
//! over are cleared, the next one is begun, the head is moved. Before each step but the first the head is looked at
//! after the word that the step replaces: a step that comes late finds that word changed.

use super::{BLIND, Past, RELAXED, Row, SOUND, STALE, Saved, UNASKED, UNFROZEN};
use crate::limit::NEVER;
use crate::limit::buckets::{
    Buckets, begun, count_of, frozen, is_growing, is_of, less, more, sum_of, sum_word,
};
use crate::sync::{AtomicU64, Ordering, pause};
use crate::time::{Mono, Span};

/// A row's words by name.
#[derive(Clone, Copy)]
struct Words<'a, const FLAW: u8> {
    buckets: Buckets,
    head: &'a AtomicU64,
    next: &'a AtomicU64,
    sum: &'a AtomicU64,
    ring: &'a [AtomicU64],
}

impl<'a, const FLAW: u8> Words<'a, FLAW> {
    // ordering: acquire. Whoever sees a tick, a sum or a cleared bucket must see that the bucket before was
    // frozen, and with what in it.
    const LOAD: Ordering = if FLAW == RELAXED { Ordering::Relaxed } else { Ordering::Acquire };
    // ordering: release, to pair with the above; acquire, since what was read is passed on.
    const SWAP: Ordering = if FLAW == RELAXED { Ordering::Relaxed } else { Ordering::AcqRel };

    #[inline]
    fn new(buckets: Buckets, row: Row<'a>) -> Option<Words<'a, FLAW>> {
        let [next, sum, ring @ ..] = row.rest else { return None };
        let ring = ring.get(..buckets.buckets())?;
        Some(Words { buckets, head: row.head, next, sum, ring })
    }

    /// The tick that `now` lies in, made the current one; or a later one, if that is current: state newer than
    /// `now` wins.
    #[inline]
    fn tick(&self, now: Mono) -> u64 {
        loop {
            // ordering: see `LOAD`.
            let head = self.head.load(Self::LOAD);
            let next = self.next.load(Self::LOAD);
            if next != head {
                self.turn(head, next);
                // Each retry means that a tick ended: somebody always gets on.
                pause();
                continue;
            }
            if self.buckets.is_in(head, now) {
                return head;
            }
            let tick = self.buckets.tick(now.as_nanos());
            if tick <= head {
                return head;
            }
            // ordering: see `SWAP`; relaxed on failure, since all is read anew.
            let _ = self.next.compare_exchange(head, tick, Self::SWAP, Ordering::Relaxed);
        }
    }

    /// Ends the tick `head`, and makes `next` the current one.
    #[cold]
    #[inline(never)]
    fn turn(&self, head: u64, next: u64) {
        if next < head {
            // The head moved on between the two looks.
            return;
        }
        let last = self.buckets.bucket_of(next);
        if FLAW != UNFROZEN {
            self.replace(head, self.buckets.bucket_of(head), |word| {
                is_growing(word, head).then(|| frozen(word))
            });
        }
        // All buckets, at most: their ticks are those of the ring as it will be.
        for tick in self.buckets.counting(next).filter(|tick| *tick > head) {
            let bucket = self.buckets.bucket_of(tick);
            if bucket != last {
                self.replace(head, bucket, |word| {
                    (count_of(word) > 0).then(|| frozen(less(word, u64::MAX)))
                });
            }
        }
        self.replace(head, last, |word| (!is_growing(word, next)).then(|| begun(next)));
        // ordering: see `SWAP`; relaxed on failure, since what was found is not looked at.
        let _ = self.head.compare_exchange(head, next, Self::SWAP, Ordering::Relaxed);
    }

    /// Replaces a bucket's word by a rule, until that has nothing to replace or the tick has ended.
    fn replace(&self, head: u64, bucket: usize, rule: impl Fn(u64) -> Option<u64>) {
        let Some(place) = self.ring.get(bucket) else { return };
        loop {
            // ordering: see `LOAD`.
            let word = place.load(Self::LOAD);
            let Some(after) = rule(word) else { return };
            if self.head.load(Self::LOAD) != head {
                return;
            }
            // ordering: see `SWAP`; relaxed on failure, since the word is read anew.
            if place.compare_exchange(word, after, Self::SWAP, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    /// The sum of all buckets but a tick's.
    fn others(&self, tick: u64) -> u64 {
        let own = self.buckets.bucket_of(tick);
        let (before, after) = self.ring.split_at(own.min(self.ring.len()));
        // ordering: see `LOAD`.
        let counts = before.iter().chain(after.iter().skip(1));
        counts.fold(0, |sum, word| sum + count_of(word.load(Self::LOAD)))
    }

    /// What the buckets of a tick's window hold, the oldest first.
    fn counts(&self, tick: u64) -> impl Iterator<Item = u64> + '_ {
        let oldest = self.buckets.bucket_of(*self.buckets.counting(tick).start());
        let (newer, older) = self.ring.split_at(oldest.min(self.ring.len()));
        // ordering: see `LOAD`.
        older.iter().chain(newer).map(|word| count_of(word.load(Self::LOAD)))
    }

    /// Whether a tick is current, and not about to end.
    fn is_current(&self, tick: u64) -> bool {
        // ordering: see `LOAD`.
        self.head.load(Self::LOAD) == tick && self.next.load(Self::LOAD) == tick
    }

    /// Whether the amount fits at a tick beside the word of its own bucket; else the exact wait.
    /// None if the tick has ended meanwhile.
    #[inline]
    fn judge(&self, tick: u64, word: u64, amount: u64, now: Mono) -> Option<Result<(), Span>> {
        let all = |others: u64| others.saturating_add(count_of(word)).saturating_add(amount);
        // ordering: see `LOAD`.
        let kept = sum_of(self.sum.load(Self::LOAD), tick);
        if kept.is_some_and(|others| self.buckets.fits(all(others))) {
            return Some(Ok(()));
        }
        self.judge_anew(tick, word, amount, now)
    }

    /// Whether the amount would fit at a tick that is not current yet, if nothing more were charged until then; else the exact wait.
    fn judge_ahead(
        &self,
        (head, word): (u64, u64),
        tick: u64,
        amount: u64,
        now: Mono,
    ) -> Option<Result<(), Span>> {
        let held = |past: u64| {
            if past == head {
                count_of(word)
            } else if self.buckets.counting(head).contains(&past) {
                let bucket = self.buckets.bucket_of(past);
                // ordering: see `LOAD`.
                let held = |word: &AtomicU64| count_of(word.load(Self::LOAD));
                self.ring.get(bucket).map_or(0, held)
            } else {
                0
            }
        };
        let sum = self.buckets.counting(tick).map(held).fold(amount, u64::saturating_add);
        let answer = if self.buckets.fits(sum) {
            Ok(())
        } else {
            Err(self.buckets.wait(tick, self.buckets.counting(tick).map(held), sum, now))
        };
        (FLAW == STALE || self.is_current(head)).then_some(answer)
    }

    /// The same by a sum taken anew: the kept one is of another tick, or too high since a cost turned out less.
    #[inline(never)]
    fn judge_anew(&self, tick: u64, word: u64, amount: u64, now: Mono) -> Option<Result<(), Span>> {
        let others = self.others(tick);
        if !self.is_current(tick) {
            return None;
        }
        // ordering: release, so that whoever goes by the sum sees what it was taken of.
        self.sum.store(sum_word(tick, others), Ordering::Release);
        let sum = others.saturating_add(count_of(word)).saturating_add(amount);
        if self.buckets.fits(sum) {
            return Some(Ok(()));
        }
        let wait = self.buckets.wait(tick, self.counts(tick), sum, now);
        self.is_current(tick).then_some(Err(wait))
    }
}

/// Would an amount pass? Else the exact wait. No tick begins for a look: it may be asked about an instant that lies ahead.
pub(super) fn forecast<const FLAW: u8>(
    buckets: Buckets,
    row: Row<'_>,
    amount: u64,
    now: Mono,
) -> Result<(), Span> {
    let Some(words) = Words::<FLAW>::new(buckets, row) else { return Err(NEVER) };
    if !buckets.is_possible(amount, now) {
        return Err(NEVER);
    }
    loop {
        // ordering: see `LOAD`.
        let head = words.head.load(Words::<FLAW>::LOAD);
        let next = words.next.load(Words::<FLAW>::LOAD);
        if next != head {
            words.turn(head, next);
            // Each retry means that a tick ended: somebody always gets on.
            pause();
            continue;
        }
        let Some(bucket) = words.ring.get(buckets.bucket_of(head)) else { return Err(NEVER) };
        // ordering: see `LOAD`. The bucket that grows is read before those that only shrink: what they hold together, they held
        // at that instant at least.
        let word = bucket.load(Words::<FLAW>::LOAD);
        let tick = buckets.tick(now.as_nanos());
        let answer = if tick <= head {
            if is_growing(word, head) { words.judge(head, word, amount, now) } else { None }
        } else {
            words.judge_ahead((head, word), tick, amount, now)
        };
        match answer {
            Some(answer) => return answer,
            // Each retry means that the tick ended: somebody always gets on.
            None => pause(),
        }
    }
}

/// Charges an amount (or only looks, if not `write`): the tick it counts in, or the exact wait.
pub(super) fn take<const FLAW: u8>(
    buckets: Buckets,
    row: Row<'_>,
    amount: u64,
    now: Mono,
    write: bool,
) -> Result<u64, Span> {
    // Buckets without their words cannot say yes.
    let Some(words) = Words::<FLAW>::new(buckets, row) else { return Err(NEVER) };
    if !buckets.is_possible(amount, now) {
        return Err(NEVER);
    }
    loop {
        let tick = words.tick(now);
        let Some(bucket) = words.ring.get(buckets.bucket_of(tick)) else { return Err(NEVER) };
        // ordering: see `LOAD`.
        let word = bucket.load(Words::<FLAW>::LOAD);
        if FLAW != UNASKED && !is_growing(word, tick) {
            pause();
            continue;
        }
        match words.judge(tick, word, amount, now) {
            Some(Err(wait)) => return Err(wait),
            Some(Ok(())) if !write => return Ok(tick),
            Some(Ok(())) if FLAW == BLIND => {
                bucket.store(more(word, amount), Ordering::Release);
                return Ok(tick);
            }
            Some(Ok(())) => {
                let after = more(word, amount);
                // ordering: see `SWAP`; relaxed on failure, since all is read anew.
                let swap = Words::<FLAW>::SWAP;
                if bucket.compare_exchange(word, after, swap, Ordering::Relaxed).is_ok() {
                    return Ok(tick);
                }
            }
            // Each retry means that another call was charged, or the tick ended: somebody always gets on.
            None => pause(),
        }
    }
}

/// Takes a charge out of its tick's bucket, while that lives.
pub(super) fn undo<const FLAW: u8>(buckets: Buckets, row: Row<'_>, tick: u64, amount: u64) {
    let Some(words) = Words::<SOUND>::new(buckets, row) else { return };
    // ordering: acquire, for a tick that is past must be seen to be.
    if !buckets.counting(words.head.load(Ordering::Acquire)).contains(&tick) {
        return;
    }
    let Some(bucket) = words.ring.get(buckets.bucket_of(tick)) else { return };
    // ordering: as every swap of a bucket.
    let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
        ((FLAW == STALE || is_of(word, tick)) && count_of(word) >= amount)
            .then(|| less(word, amount))
    });
}

/// More is charged to the current tick. Less is given back to the tick of `since`, while that lives: it is no later
/// than the one that was charged, so no window is ever left with less than what passed in it.
pub(super) fn settle(
    buckets: Buckets,
    row: Row<'_>,
    reserved: u64,
    truth: u64,
    since: Mono,
    now: Mono,
) {
    if truth > reserved {
        grow(buckets, row, now, |word| more(word, truth - reserved));
        return;
    }
    let Some(words) = Words::<SOUND>::new(buckets, row) else { return };
    let tick = buckets.tick(since.as_nanos());
    // ordering: acquire, for a tick that is past must be seen to be.
    if !buckets.counting(words.head.load(Ordering::Acquire)).contains(&tick) {
        return;
    }
    let Some(bucket) = words.ring.get(buckets.bucket_of(tick)) else { return };
    // ordering: as every swap of a bucket.
    let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
        is_of(word, tick).then(|| less(word, reserved - truth))
    });
}

pub(super) fn spend(buckets: Buckets, row: Row<'_>, now: Mono) {
    grow(buckets, row, now, |word| buckets.spent(word));
}

/// Lets the current bucket grow, whatever the bound.
fn grow(buckets: Buckets, row: Row<'_>, now: Mono, rule: impl Fn(u64) -> u64) {
    let Some(words) = Words::<SOUND>::new(buckets, row) else { return };
    loop {
        let tick = words.tick(now);
        let Some(bucket) = words.ring.get(buckets.bucket_of(tick)) else { return };
        // ordering: as every swap of a bucket.
        let grown = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            is_growing(word, tick).then(|| rule(word))
        });
        if grown.is_ok() {
            return;
        }
        // Each retry means that the tick ended: somebody always gets on.
        pause();
    }
}

/// What counts at `now`; None if a tick ended during the look.
pub(super) fn used(buckets: Buckets, row: Row<'_>, now: Mono) -> Option<u64> {
    let words = Words::<SOUND>::new(buckets, row)?;
    // ordering: acquire, as for every look.
    let head = words.head.load(Ordering::Acquire);
    let since = *buckets.counting(buckets.tick(now.as_nanos())).start();
    let counts = buckets.counting(head).zip(words.counts(head));
    let counts = counts.filter(|(tick, _)| *tick >= since);
    let used = counts.fold(0, |used: u64, (_, count)| used.saturating_add(count));
    words.is_current(head).then_some(used)
}

/// All buckets, as of one tick; None if ticks end too fast for that.
pub(super) fn save(buckets: Buckets, row: Row<'_>, now: Mono) -> Option<Saved> {
    let words = Words::<SOUND>::new(buckets, row)?;
    for _ in 0..ATTEMPTS {
        // ordering: acquire, as for every look.
        let head = words.head.load(Ordering::Acquire);
        let counts: Vec<(u64, u64)> = buckets.counting(head).zip(words.counts(head)).collect();
        if !words.is_current(head) {
            continue;
        }
        if head == 0 {
            return Some(Saved::Fresh);
        }
        let known = counts.first().map_or(0, |(tick, _)| buckets.start_age(*tick, now));
        let passed = counts.into_iter().filter(|(_, count)| *count > 0);
        let passed = passed.map(|(tick, count)| (buckets.age(tick, now), count)).collect();
        return Some(Saved::Window(Past { known, passed }));
    }
    None
}

/// Puts a past into buckets. Into used ones it counts from now on, as far as it is more than what counts there, which is taken for
/// a part of it.
pub(super) fn restore(buckets: Buckets, row: Row<'_>, past: &Past, now: Mono) {
    let Some(words) = Words::<SOUND>::new(buckets, row) else { return };
    // ordering: acquire, as for every look.
    if words.head.load(Ordering::Acquire) != 0 {
        let passed = past.within(buckets.recovery(), buckets.count());
        let passed = passed.into_iter().fold(0, |sum: u64, (_, amount)| sum.saturating_add(amount));
        // What cannot be read counts as nothing: so more is charged.
        let alone = passed.saturating_sub(used(buckets, row, now).unwrap_or(0));
        grow(buckets, row, now, |word| more(word, alone));
        return;
    }
    let current = buckets.tick(now.as_nanos());
    let open = words.ring.get(buckets.bucket_of(current));
    // ordering: relaxed, for nobody else has this memory yet; so below.
    open.into_iter().for_each(|word| word.store(begun(current), Ordering::Relaxed));
    for (age, amount) in past.within(buckets.recovery(), 0) {
        add(&words, current, age, amount, now);
    }
    // What is unknown of the window counts as passed, as late as it can have.
    let known = words.counts(current).fold(0, u64::saturating_add);
    let unknown = buckets.count().saturating_sub(known);
    if past.known < buckets.length().as_nanos() {
        add(&words, current, past.known, unknown, now);
    }
    words.next.store(current, Ordering::Relaxed);
    // ordering: release, so that whoever sees the head sees the rest.
    words.head.store(current, Ordering::Release);
}

/// Adds what passed so long ago to its tick's bucket, if that still counts.
fn add(words: &Words<'_, SOUND>, current: u64, age: u64, amount: u64, now: Mono) {
    let Some(tick) = words.buckets.tick_before(age, now) else { return };
    let Some(bucket) = words.ring.get(words.buckets.bucket_of(tick)) else { return };
    // ordering: relaxed, for nobody else has this memory yet.
    let word = bucket.load(Ordering::Relaxed);
    let word = if is_of(word, tick) { word } else { begun(tick) };
    let word = more(word, amount);
    bucket.store(if tick == current { word } else { frozen(word) }, Ordering::Relaxed);
}

/// Reads of buckets whose tick ends meanwhile, at most.
const ATTEMPTS: usize = 16;

#[cfg(all(test, loom))]
mod models {
    use super::{BLIND, RELAXED, SOUND, STALE, UNASKED, UNFROZEN, forecast, take, undo};
    use crate::charges::{Charges, Taken, explore};
    use crate::limit::Limit;
    use crate::limit::buckets::Buckets;
    use crate::time::{Mono, Span};
    use loom::sync::Arc;

    /// Two ticks of a nanosecond: with the current one three count.
    const LENGTH: u64 = 2;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    fn buckets(count: u64) -> (Buckets, Arc<Charges>) {
        let buckets = Buckets::new(count, Span::from_nanos(LENGTH)).unwrap();
        (buckets, Arc::new(Charges::for_rows(Limit::Buckets(buckets), 1)))
    }

    /// Each thread calls at its instants; before it all, one call for each instant of `past`.
    fn window<const FLAW: u8>(
        bound: usize,
        count: u64,
        past: &'static [u64],
        threads: &'static [&'static [u64]],
    ) {
        explore(bound, move || {
            let (buckets, charges) = buckets(count);
            let call = move |charges: &Charges, now: u64| {
                (now, take::<FLAW>(buckets, charges.row(0).unwrap(), 1, at(now), true))
            };
            let mut told: Vec<_> = past.iter().map(|&now| call(&charges, now)).collect();
            let spawned: Vec<_> = threads
                .iter()
                .skip(1)
                .map(|&instants| {
                    let charges = Arc::clone(&charges);
                    loom::thread::spawn(move || {
                        instants.iter().map(|&now| call(&charges, now)).collect::<Vec<_>>()
                    })
                })
                .collect();
            told.extend(threads[0].iter().map(|&now| call(&charges, now)));
            for thread in spawned {
                told.extend(thread.join().unwrap());
            }
            let passed: Vec<u64> = told.iter().filter_map(|told| told.1.ok()).collect();
            let n = usize::try_from(count).unwrap();
            for tick in &passed {
                let within = passed.iter().filter(|other| buckets.counting(*tick).contains(other));
                assert!(within.count() <= n, "over-admitted: {passed:?}");
            }
            for (now, answer) in &told {
                if answer.is_err() {
                    let oldest = *buckets.counting(buckets.tick(*now)).start();
                    let recent = passed.iter().filter(|tick| **tick >= oldest).count();
                    assert!(recent >= n, "refused at {now} after {passed:?}");
                }
            }
            // Nothing is lost and nothing counts twice.
            let row = charges.row(0).unwrap();
            let newest = told.iter().map(|told| told.0).max().unwrap();
            let recent = passed.iter().filter(|tick| **tick + LENGTH >= buckets.tick(newest));
            let used = row.used(Limit::Buckets(buckets), at(newest));
            assert_eq!(used, recent.count() as u64, "lost count");
            for extra in 0..=n {
                assert_eq!(call(&charges, 1_000).1.is_ok(), extra < n, "buckets out of step");
            }
        });
    }

    /// Goal: two threads in one tick, the first ever.
    #[test]
    fn loom_buckets_in_one_tick() {
        window::<SOUND>(3, 1, &[], &[&[5], &[5]]);
    }

    /// Negative control: a charge that overwrites what it did not read.
    #[test]
    #[should_panic(expected = "over-admitted")]
    fn loom_buckets_blind_is_caught() {
        window::<BLIND>(3, 1, &[5], &[&[8], &[8]]);
    }

    /// Goal: one thread is late in a tick that another ends.
    #[test]
    fn loom_buckets_at_the_turn_of_a_tick() {
        window::<SOUND>(3, 1, &[1], &[&[5], &[6]]);
        window::<SOUND>(3, 2, &[5], &[&[5], &[6]]);
        window::<SOUND>(2, 1, &[1], &[&[5, 6], &[6]]);
    }

    /// Negative control: a bucket that is not frozen takes a charge that the next tick does not see.
    #[test]
    #[should_panic(expected = "over-admitted")]
    fn loom_buckets_unfrozen_is_caught() {
        window::<UNFROZEN>(3, 2, &[5], &[&[5], &[6]]);
    }

    /// Goal: buckets leave while others are charged, one at a time and all at once, and each counts once.
    #[test]
    fn loom_buckets_leave_once() {
        window::<SOUND>(3, 2, &[5, 6], &[&[8], &[8]]);
        window::<SOUND>(2, 2, &[5, 6], &[&[8], &[9]]);
        window::<SOUND>(2, 2, &[5, 5], &[&[8, 8], &[20]]);
    }

    /// Negative control: with relaxed orders a model above finds a fault.
    #[test]
    #[should_panic(expected = "over-admitted")]
    fn loom_buckets_relaxed_is_caught() {
        window::<RELAXED>(3, 1, &[1], &[&[5, 6], &[6]]);
    }

    /// Goal: three threads at the turn of a tick.
    #[test]
    fn loom_buckets_three_threads() {
        window::<SOUND>(1, 1, &[5], &[&[8], &[8], &[8]]);
        window::<SOUND>(2, 2, &[1], &[&[5], &[5], &[6]]);
    }

    /// Negative control: where a frozen bucket is charged all the same, a sum that is told late lets it.
    #[test]
    #[should_panic(expected = "over-admitted")]
    fn loom_buckets_unasked_are_caught() {
        window::<UNASKED>(2, 2, &[1], &[&[5], &[5], &[6]]);
    }

    /// A cost that turns out less, and an undo, while the tick ends and another call asks for what they free.
    fn freed_at_the_turn<const SETTLED: bool>(asked: u64) {
        explore(3, move || {
            let (buckets, charges) = buckets(2);
            let limit = Limit::Buckets(buckets);
            let row = charges.row(0).unwrap();
            row.take(limit, 1, at(5)).unwrap();
            let taken: Taken = row.take(limit, 1, at(5)).unwrap();
            let other = {
                let charges = Arc::clone(&charges);
                loom::thread::spawn(move || {
                    let row = charges.row(0).unwrap();
                    if SETTLED {
                        row.settle(limit, 1, 0, at(5), at(6));
                    } else {
                        row.undo(limit, taken);
                    }
                })
            };
            let passed = row.take(limit, 1, at(asked)).is_ok();
            other.join().unwrap();
            let kept = u64::from(asked < 8);
            assert_eq!(row.used(limit, at(asked)), kept + u64::from(passed), "lost count");
        });
    }

    /// Goal: what is freed is freed once, in its own bucket, or left with it.
    #[test]
    fn loom_buckets_free_at_the_turn() {
        for asked in [5, 6, 8] {
            freed_at_the_turn::<true>(asked);
            freed_at_the_turn::<false>(asked);
        }
    }

    /// One call is undone while another ends its tick, in the same bucket a ring later.
    fn undone_in_another_tick<const FLAW: u8>() {
        explore(3, || {
            let (buckets, charges) = buckets(1);
            let row = charges.row(0).unwrap();
            let tick = take::<SOUND>(buckets, row, 1, at(5), true).unwrap();
            let caller = {
                let charges = Arc::clone(&charges);
                loom::thread::spawn(move || {
                    let row = charges.row(0).unwrap();
                    let next = take::<SOUND>(buckets, row, 1, at(8), true).unwrap();
                    assert_eq!(buckets.bucket_of(next), buckets.bucket_of(tick), "the same");
                })
            };
            undo::<FLAW>(buckets, row, tick, 1);
            caller.join().unwrap();
            assert_eq!(row.used(Limit::Buckets(buckets), at(8)), 1, "another's charge undone");
        });
    }

    /// Goal: an undo that comes late takes nothing from the tick that has the bucket by then.
    #[test]
    fn loom_buckets_a_late_undo_takes_nothing() {
        undone_in_another_tick::<SOUND>();
    }

    /// Negative control: an undo that does not ask whose tick the bucket is.
    #[test]
    #[should_panic(expected = "another's charge undone")]
    fn loom_buckets_an_undo_of_any_tick_is_caught() {
        undone_in_another_tick::<STALE>();
    }

    /// Two fit. One passed at 4, another passes at 5, and at 7 the first has left: at no moment do two more fit at 6.
    fn forecast_beside_a_turn<const FLAW: u8>() {
        explore(3, || {
            let (buckets, charges) = buckets(2);
            let row = charges.row(0).unwrap();
            take::<SOUND>(buckets, row, 1, at(4), true).unwrap();
            // Nothing weighs nothing, but its tick begins.
            take::<SOUND>(buckets, row, 0, at(5), true).unwrap();
            let caller = {
                let charges = Arc::clone(&charges);
                loom::thread::spawn(move || {
                    let row = charges.row(0).unwrap();
                    take::<SOUND>(buckets, row, 1, at(5), true).unwrap();
                    take::<SOUND>(buckets, row, 0, at(7), true).unwrap();
                })
            };
            assert!(forecast::<FLAW>(buckets, row, 2, at(6)).is_err(), "two more at 6");
            caller.join().unwrap();
        });
    }

    /// Goal: a forecast never sees the half of a turn.
    #[test]
    fn loom_buckets_a_forecast_is_of_one_tick() {
        forecast_beside_a_turn::<SOUND>();
    }

    /// Negative control: a forecast that does not ask once more whether the tick it saw lasts.
    #[test]
    #[should_panic(expected = "two more at 6")]
    fn loom_buckets_a_forecast_of_two_ticks_is_caught() {
        forecast_beside_a_turn::<STALE>();
    }

    /// Goal: whatever is asked ahead, beside calls and the turn of a tick: the answer is one that some order of the same acts gives,
    /// and the calls are told what they would be told without it.
    #[test]
    fn loom_buckets_a_forecast_moves_nothing() {
        for (asked, count) in [(6, 2), (8, 2), (9, 1), (20, 1)] {
            explore(2, move || {
                let (buckets, charges) = buckets(count);
                let row = charges.row(0).unwrap();
                take::<SOUND>(buckets, row, 1, at(5), true).unwrap();
                let caller = {
                    let charges = Arc::clone(&charges);
                    loom::thread::spawn(move || {
                        let row = charges.row(0).unwrap();
                        take::<SOUND>(buckets, row, 1, at(6), true).is_ok()
                    })
                };
                let told = forecast::<SOUND>(buckets, row, 1, at(asked));
                let passed = caller.join().unwrap();
                assert_eq!(passed, count == 2, "a call is told otherwise");
                // Before the call at 6 or after it.
                let counts = |tick: u64| buckets.counting(buckets.tick(asked)).contains(&tick);
                let before = u64::from(counts(buckets.tick(5)));
                let after = before + u64::from(passed && counts(buckets.tick(6)));
                let fits = [before < count, after < count];
                assert!(fits.contains(&told.is_ok()), "{told:?} at {asked}");
                assert_eq!(row.used(Limit::Buckets(buckets), at(6)), 1 + u64::from(passed));
            });
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::charges::{Charges, Taken};
    use crate::limit::Limit;
    use crate::limit::buckets::Buckets;
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    /// What passed, slowly: instant, amount, and what it was when charged.
    struct Passed {
        then: u64,
        amount: u64,
        reserved: u64,
        taken: Taken,
    }

    fn sum(passed: &[Passed], after: i128) -> u64 {
        passed.iter().filter(|one| i128::from(one.then) > after).map(|one| one.amount).sum()
    }

    /// Calls of each thread: few where each step is interpreted.
    const ROUNDS: u64 = if cfg!(miri) { 20 } else { 8_000 };

    /// Goal: eight real threads, ticks ending under them: no window of the exact length ever holds more than the
    /// count, and in the end nothing is lost and nothing counts twice.
    #[test]
    fn eight_threads_at_the_buckets_never_over_admit() {
        for (count, length) in [(1_u64, 7_u64), (20, 64), (64, 1_000), (5_000, 10_000)] {
            let buckets = Buckets::new(count, Span::from_nanos(length)).unwrap();
            let charges = Charges::for_rows(Limit::Buckets(buckets), 1);
            let clock = AtomicU64::new(0);
            let life = |thread: u64| {
                let row = charges.row(0).unwrap();
                let mut passed = Vec::new();
                for round in 0..ROUNDS {
                    let now = clock.fetch_add(round * thread % 3, Ordering::Relaxed);
                    if round % 64 == thread {
                        std::thread::yield_now();
                    }
                    let amount = (round + thread) % 3 + 1;
                    if let Ok(taken) = row.take(Limit::Buckets(buckets), amount, at(now)) {
                        // The tick that was charged is the recorded instant.
                        if round % 16 == 0 {
                            row.undo(Limit::Buckets(buckets), taken);
                        } else {
                            passed.push((taken.before, amount));
                        }
                    }
                }
                passed
            };
            let mut passed: Vec<(u64, u64)> = Vec::new();
            std::thread::scope(|threads| {
                let life = &life;
                let spawned: Vec<_> =
                    (0..8).map(|thread| threads.spawn(move || life(thread))).collect();
                for thread in spawned {
                    passed.extend(thread.join().unwrap());
                }
            });
            passed.sort_unstable();
            let mut from = 0;
            let mut held = 0;
            for (tick, amount) in &passed {
                held += amount;
                while !buckets.counting(*tick).contains(&passed[from].0) {
                    held -= passed[from].1;
                    from += 1;
                }
                assert!(held <= count, "{held} of {count} within {length}");
            }
            let end = at(clock.load(Ordering::Relaxed));
            let row = charges.row(0).unwrap();
            let last = buckets.counting(buckets.tick(end.as_nanos()));
            let recent: u64 = passed
                .iter()
                .filter(|(tick, _)| tick >= last.start())
                .map(|(_, amount)| amount)
                .sum();
            assert_eq!(row.used(Limit::Buckets(buckets), end), recent);
            assert!(passed.len() as u64 > ROUNDS / 80);
        }
    }

    /// Goal: gaps after which the low bits of ticks come round again are gaps like any other.
    #[test]
    fn ticks_that_come_round_are_not_taken_for_others() {
        for length in [7_u64, 64, 1_000] {
            let buckets = Buckets::new(10, Span::from_nanos(length)).unwrap();
            let limit = Limit::Buckets(buckets);
            let width = length.div_ceil(64);
            let round = 32_768 * width * buckets.buckets() as u64;
            for gap in [round, 32_768 * width, 2 * round, round + width, round - width] {
                let charges = Charges::for_scope(limit);
                let row = charges.row(0).unwrap();
                let mut now = 1_000;
                for _ in 0..5 {
                    let taken = [3, 7].map(|amount| row.take(limit, amount, at(now)).unwrap());
                    assert!(row.take(limit, 1, at(now)).is_err());
                    assert_eq!(row.used(limit, at(now)), 10);
                    now += gap;
                    assert_eq!(row.used(limit, at(now)), 0);
                    row.take(limit, 4, at(now)).unwrap();
                    // The first is less than what the bucket holds now, and could be taken out of it.
                    taken.into_iter().for_each(|taken| row.undo(limit, taken));
                    row.settle(limit, 10, 0, at(now - gap), at(now));
                    assert_eq!(row.used(limit, at(now)), 4);
                    now += gap;
                }
            }
        }
    }

    proptest! {
        /// Goal: beside the exact sum: never more than the count in any window, nothing refused that would
        /// fit a tick and 63 ns later than exactly, waits exact by its own reckoning; with undos and true costs.
        #[test]
        fn buckets_stand_beside_the_exact_sum(
            count in 1_u64..200, length in prop_oneof![1_u64..200, 1_000_u64..100_000],
            acts in proptest::collection::vec(
                (0..8_u8, 0_u64..1_200, 0_u64..60, 0..50_usize, proptest::bool::weighted(0.03)), 1..200,
            ),
        ) {
            let buckets = Buckets::new(count, Span::from_nanos(length)).unwrap();
            let (limit, charges) = (Limit::Buckets(buckets), Charges::for_scope(Limit::Buckets(buckets)));
            let row = charges.row(0).unwrap();
            let late = i128::from(length.div_ceil(64) + 63);
            let mut passed: Vec<Passed> = Vec::new();
            let mut now = 10;
            for (act, step, amount, which, far) in acts {
                now += if far { length * step / 100 } else { length * step / 10_000 };
                let window = i128::from(now) - i128::from(length);
                let pick = (!passed.is_empty()).then(|| which % passed.len());
                match (act, pick) {
                    (0, Some(pick)) => {
                        let undone = passed.remove(pick);
                        // Settled ones are not undone.
                        if undone.amount == undone.reserved {
                            row.undo(limit, undone.taken);
                        } else {
                            passed.push(undone);
                        }
                    }
                    (1 | 2, Some(pick)) => {
                        let one = &mut passed[pick];
                        if one.amount == one.reserved {
                            row.settle(limit, one.reserved, amount, at(one.then), at(now));
                            let (then, more) = (one.then, amount.saturating_sub(one.reserved));
                            one.amount = amount.min(one.reserved);
                            // More than reserved counts from when it is told.
                            let taken = Taken::default();
                            passed.push(Passed { then: now, amount: more, reserved: u64::MAX, taken });
                            passed[pick].reserved = u64::MAX;
                            prop_assert!(then <= now);
                        }
                    }
                    _ => {
                        let told = row.forecast(limit, amount, at(now));
                        let peeked = row.peek(limit, amount, at(now));
                        prop_assert_eq!(told, peeked);
                        match row.take(limit, amount, at(now)) {
                            Ok(taken) => {
                                prop_assert!(peeked.is_ok());
                                prop_assert!(sum(&passed, window) + amount <= count, "over-admitted");
                                passed.push(Passed { then: now, amount, reserved: amount, taken });
                            }
                            Err(wait) if amount > count => prop_assert_eq!(wait, crate::limit::NEVER),
                            Err(wait) => {
                                prop_assert_eq!(peeked, Err(wait));
                                prop_assert!(sum(&passed, window - late) + amount > count, "too strict");
                                let due = now + wait.as_nanos();
                                // A look moves no charge, so the row may be asked of the future on a copy only.
                                let copy = Charges::for_scope(limit);
                                let copied = copy.row(0).unwrap();
                                for (from, to) in row.rest.iter().zip(copied.rest) {
                                    to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
                                }
                                copied.head.store(row.head.load(Ordering::Relaxed), Ordering::Relaxed);
                                prop_assert!(copied.peek(limit, amount, at(due - 1)).is_err());
                                prop_assert!(copied.peek(limit, amount, at(due)).is_ok());
                            }
                        }
                    }
                }
                let used = row.used(limit, at(now));
                prop_assert!(used >= sum(&passed, window) && used <= sum(&passed, window - late));
                prop_assert_eq!(row.is_idle(limit, at(now)), used == 0);
            }
        }

        /// Goal: when `now` runs back nothing is freer: the newest tick is charged, and no window of recorded
        /// instants holds more than the count.
        #[test]
        fn time_that_runs_back_frees_nothing(
            count in 1_u64..50, length in 1_u64..500,
            acts in proptest::collection::vec((-300_i64..400, 1_u64..20, proptest::option::of(0_u64..20)), 1..200),
        ) {
            let buckets = Buckets::new(count, Span::from_nanos(length)).unwrap();
            let (limit, charges) = (Limit::Buckets(buckets), Charges::for_scope(Limit::Buckets(buckets)));
            let row = charges.row(0).unwrap();
            let mut passed: Vec<(u64, u64)> = Vec::new();
            let mut now = 1_000_i64;
            for (step, amount, truth) in acts {
                now = (now + step).max(0);
                let then = u64::try_from(now).unwrap();
                if let Ok(taken) = row.take(limit, amount, at(then)) {
                    prop_assert!(taken.before >= passed.last().map_or(0, |last| last.0));
                    let held = passed.iter().filter(|(tick, _)| buckets.counting(taken.before).contains(tick));
                    prop_assert!(held.map(|(_, amount)| amount).sum::<u64>() + amount <= count);
                    let truth = truth.map_or(amount, |truth| truth.min(amount));
                    row.settle(limit, amount, truth, at(then), at(then));
                    passed.push((taken.before, truth));
                }
            }
        }
    }
}
