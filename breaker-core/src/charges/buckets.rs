//! The loops around a window's sub-buckets: the head, the tick that comes next, the sum of all others, and the buckets.
//!
//! A tick ends in steps that any thread can take for any other, so a thread that sleeps in the midst of it stops
//! nobody: the next tick is agreed on (by one swap of its word), the current bucket is frozen, those whose time is
//! over are cleared, the next one is begun, the head is moved. Before each step but the first the head is looked at
//! after the word that the step replaces: a step that comes late finds that word changed.

use super::{BLIND, Past, RELAXED, Row, SOUND, Saved, UNFROZEN};
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
        let counts = self.ring.iter().enumerate().filter(|(bucket, _)| *bucket != own);
        // ordering: see `LOAD`.
        let counts = counts.map(|(_, word)| count_of(word.load(Self::LOAD)));
        counts.fold(0, u64::saturating_add)
    }

    /// What the buckets of a tick's window hold, the oldest first.
    fn counts(&self, tick: u64) -> impl Iterator<Item = u64> + Clone + '_ {
        self.buckets.counting(tick).map(|tick| {
            let word = self.ring.get(self.buckets.bucket_of(tick));
            // ordering: see `LOAD`.
            word.map_or(0, |word| count_of(word.load(Self::LOAD)))
        })
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
        let wait = self.buckets.wait(tick, self.counts(tick), amount, now);
        self.is_current(tick).then_some(Err(wait))
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
        if !is_growing(word, tick) {
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
pub(super) fn undo(buckets: Buckets, row: Row<'_>, tick: u64, amount: u64) {
    let Some(words) = Words::<SOUND>::new(buckets, row) else { return };
    // ordering: acquire, for a tick that is past must be seen to be.
    if !buckets.counting(words.head.load(Ordering::Acquire)).contains(&tick) {
        return;
    }
    let Some(bucket) = words.ring.get(buckets.bucket_of(tick)) else { return };
    // ordering: as every swap of a bucket.
    let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
        (is_of(word, tick) && count_of(word) >= amount).then(|| less(word, amount))
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

/// Writes a past into new buckets.
pub(super) fn restore(buckets: Buckets, row: Row<'_>, past: &Past, now: Mono) {
    let Some(words) = Words::<SOUND>::new(buckets, row) else { return };
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
