//! The exact window's ring: its loops around hint and slots; the arithmetic is not here.

use super::{DISORDERED, LAPLESS, Past, Row, SOUND, Saved};
use crate::limit::NEVER;
use crate::limit::window::Window;
use crate::sync::{AtomicU64, Ordering, pause};
use crate::time::{Mono, Span};

/// A ring's words. `FLAW` is [`SOUND`] in all but the negative controls.
struct Ring<'a, const FLAW: u8> {
    window: Window,
    row: Row<'a>,
}

/// Where a ring turned when its slot was read, and the two words that show it.
#[derive(Clone, Copy)]
struct Turn {
    index: usize,
    before: u64,
    slot: u64,
}

impl<const FLAW: u8> Ring<'_, FLAW> {
    /// The turn, looked for where the hint says. None if the ring lacks words.
    #[inline]
    fn turn(&self) -> Option<Turn> {
        self.turn_from(self.hint())
    }

    #[inline(always)]
    fn hint(&self) -> usize {
        // ordering: relaxed, for a hint may be wrong.
        self.window.first_look(self.row.head.load(Ordering::Relaxed))
    }

    fn turn_from(&self, mut index: usize) -> Option<Turn> {
        let mut steps = 0;
        loop {
            let look = self.look(index)?;
            if self.is_turn(look) {
                return Some(look);
            }
            // A hint is late by what others admitted a moment ago, or by whatever a thread slept that
            // writes its hint only now.
            if steps < NEAR {
                steps += 1;
                index = self.window.after(index);
            } else {
                steps = 0;
                index = self.search()?;
            }
        }
    }

    /// Two neighbours: the predecessor is read first, see [`Window::is_turn`].
    #[inline(always)]
    fn look(&self, index: usize) -> Option<Turn> {
        let before = self.read(self.window.before(index))?;
        let slot = self.read(index)?;
        Some(Turn { index, before, slot })
    }

    /// Halves the ring until it finds where the laps meet: exact while nobody admits. Whoever has to look
    /// again knows that somebody did.
    #[cold]
    #[inline(never)]
    fn search(&self) -> Option<usize> {
        pause();
        let lap = self.read(0)? & 1;
        let (mut same, mut end) = (0, self.window.slots());
        while end - same > 1 {
            let middle = usize::midpoint(same, end);
            if self.read(middle)? & 1 == lap {
                same = middle;
            } else {
                end = middle;
            }
        }
        let found = if end < self.window.slots() { end } else { 0 };
        self.suggest(found);
        Some(found)
    }

    #[inline(always)]
    fn read(&self, index: usize) -> Option<u64> {
        // ordering: acquire. Whoever sees an admission sees all those before it, so that a slot read
        // after its predecessor is never a lap behind.
        Some(self.row.rest.get(index)?.load(Ordering::Acquire))
    }

    /// Swaps the turn's slot for this word, unless somebody else did. Its word never comes again, so a swap that
    /// succeeds shows that the ring had not moved on.
    #[inline(always)]
    fn write(&self, turn: Turn, word: u64) -> bool {
        let Some(slot) = self.row.rest.get(turn.index) else { return false };
        // ordering: release, to pair with the loads, which makes each admission carry all earlier ones;
        // relaxed on failure, since the turn is then read anew.
        let swap =
            slot.compare_exchange(turn.slot, word, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if swap {
            self.suggest(self.window.after(turn.index));
        }
        swap
    }

    /// Leaves a hint: by a store, not a swap, for it may be wrong.
    #[inline(always)]
    fn suggest(&self, index: usize) {
        if let Ok(hint) = u64::try_from(index) {
            // ordering: relaxed, for a hint publishes nothing.
            self.row.head.store(hint, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn is_turn(&self, look: Turn) -> bool {
        match FLAW {
            LAPLESS => self.window.is_older(look.slot, look.before),
            DISORDERED => self.window.laps_meet(look.index, look.before, look.slot),
            _ => self.window.is_turn(look.index, look.before, look.slot),
        }
    }
}

/// One call's admission to a ring: the word written (or that would be, if not `write`), or the exact wait.
///
/// The first try is inlined: it is all that a ring without contention needs.
#[inline(always)]
pub(super) fn take<const FLAW: u8>(
    window: Window,
    row: Row<'_>,
    now: Mono,
    write: bool,
) -> Result<u64, Span> {
    let ring = Ring::<FLAW> { window, row };
    let mut index = ring.hint();
    if let Some(look) = ring.look(index)
        && ring.is_turn(look)
    {
        let word = window.judge(look.before, look.slot, now)?;
        if !write || ring.write(look, word) {
            return Ok(word);
        }
        index = window.after(index);
    }
    take_from::<FLAW>(window, row.head, row.rest, now, write, index)
}

/// The tries after the first. A row's parts come one by one, to be passed in registers.
#[inline(never)]
fn take_from<const FLAW: u8>(
    window: Window,
    head: &AtomicU64,
    rest: &[AtomicU64],
    now: Mono,
    write: bool,
    mut index: usize,
) -> Result<u64, Span> {
    let ring = Ring::<FLAW> { window, row: Row { head, rest } };
    // A ring without its words cannot say yes.
    while let Some(turn) = ring.turn_from(index) {
        let word = window.judge(turn.before, turn.slot, now)?;
        if !write || ring.write(turn, word) {
            return Ok(word);
        }
        // Each retry means that another call was admitted: somebody always gets on.
        index = window.after(turn.index);
    }
    Err(NEVER)
}

/// Counts a whole ring of admissions, allowed or not.
pub(super) fn spend(window: Window, row: Row<'_>, now: Mono) {
    let ring = Ring::<SOUND> { window, row };
    let mut left = window.slots();
    while left > 0 {
        let Some(turn) = ring.turn() else { return };
        let Some(word) = window.forced(turn.before, turn.slot, now) else { return };
        // Each retry means that another thread wrote: somebody always gets on.
        left -= usize::from(ring.write(turn, word));
    }
}

pub(super) fn is_idle(window: Window, row: Row<'_>, now: Mono) -> bool {
    let turn = Ring::<SOUND> { window, row }.turn();
    turn.is_some_and(|turn| window.is_idle(turn.before, now))
}

/// How many slots have not expired. They are read one by one: while calls pass it is an estimate.
pub(super) fn used(window: Window, row: Row<'_>, now: Mono) -> u64 {
    let length = window.length().as_nanos();
    let slots = row.rest.iter().take(window.slots());
    // ordering: relaxed, for each slot is looked at alone.
    let ages = slots.filter_map(|slot| window.age(slot.load(Ordering::Relaxed), now));
    ages.fold(0, |used, age| used + u64::from(age < length))
}

/// All slots, as of one moment; None if calls pass too fast for that.
pub(super) fn save(window: Window, row: Row<'_>, now: Mono) -> Option<Saved> {
    let ring = Ring::<SOUND> { window, row };
    for _ in 0..ATTEMPTS {
        let turn = ring.turn()?;
        let slots = (0..window.slots()).map(|index| ring.read(index));
        let ages: Option<Vec<Option<u64>>> =
            slots.map(|slot| Some(window.age(slot?, now))).collect();
        let ages = ages?;
        // Every admission would have begun with this slot, whose word never comes again.
        if ring.read(turn.index)? != turn.slot {
            continue;
        }
        let mut passed: Vec<(u64, u64)> = ages.iter().flatten().map(|&age| (age, 1)).collect();
        if passed.is_empty() {
            return Some(Saved::Fresh);
        }
        passed.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        let whole = passed.len() < ages.len();
        let known = passed.first().filter(|_| !whole).map_or(u64::MAX, |(age, _)| *age);
        return Some(Saved::Window(Past { known, passed }));
    }
    None
}

/// Puts a past into a ring: the newest of it that fit, beside what is there. That is taken for a part of the past, its oldest.
///
/// Each is admitted like any other, for a ring that is used may turn anywhere: words written over a part of it would leave it
/// with no turn at all.
pub(super) fn restore(window: Window, row: Row<'_>, past: &Past, now: Mono) {
    let count = window.slots();
    let bound = u64::try_from(count).unwrap_or(u64::MAX);
    let mut expiries = Vec::new();
    for (age, amount) in past.within(window.length(), bound).into_iter().rev() {
        let amount = usize::try_from(amount).unwrap_or(count).min(count - expiries.len());
        expiries.extend(window.expiry(age, now).into_iter().cycle().take(amount));
    }
    let known = usize::try_from(used(window, row, now)).unwrap_or(count);
    expiries.truncate(expiries.len().saturating_sub(known));
    let ring = Ring::<SOUND> { window, row };
    for expiry in expiries.into_iter().rev() {
        // Each retry means that another thread wrote: somebody always gets on.
        while let Some(turn) = ring.turn() {
            match window.expiring(turn.before, turn.slot, expiry) {
                Some(word) if !ring.write(turn, word) => {}
                // Written; or the whole ring is as new as that.
                _ => break,
            }
        }
    }
}

/// How far past a hint the turn is looked for step by step: a line of slots.
const NEAR: usize = 8;
/// Reads of a ring that moves meanwhile, at most.
const ATTEMPTS: usize = 16;

#[cfg(all(test, loom))]
mod models {
    use super::{DISORDERED, LAPLESS, SOUND, take};
    use crate::charges::{Charges, explore};
    use crate::limit::Limit;
    use crate::limit::window::Window;
    use crate::time::{Mono, Span};
    use loom::sync::Arc;

    const LENGTH: u64 = 10;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    /// Each thread calls at its instants; before it all, one call for each instant of `past`.
    fn ring<const FLAW: u8>(count: u64, past: &'static [u64], threads: &'static [&'static [u64]]) {
        explore(3, move || {
            let window = Window::new(count, Span::from_nanos(LENGTH)).unwrap();
            let charges = Arc::new(Charges::for_rows(Limit::Window(window), 1));
            let call = move |charges: &Charges, now: u64| {
                let answer = take::<FLAW>(window, charges.row(0).unwrap(), at(now), true);
                (now, answer.map(|word| window.instant(word)).map_err(Span::as_nanos))
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
            let n = usize::try_from(count).unwrap();
            let mut passed: Vec<u64> = told.iter().filter_map(|told| told.1.ok()).collect();
            passed.sort_unstable();
            for (early, late) in passed.iter().zip(passed.iter().skip(n)) {
                assert!(early + LENGTH <= *late, "over-admitted: {passed:?}");
            }
            for (now, answer) in &told {
                if answer.is_err() {
                    let recent = passed.iter().filter(|passed| **passed + LENGTH > *now).count();
                    assert!(recent >= n, "refused at {now} after {passed:?}");
                }
            }
            // The ring is whole: long after, exactly N pass.
            for extra in 0..=n {
                assert_eq!(call(&charges, 1_000).1.is_ok(), extra < n, "a ring out of step");
            }
        });
    }

    /// Goal: a ring of one, two threads at one instant.
    #[test]
    fn loom_ring_of_one() {
        ring::<SOUND>(1, &[], &[&[5], &[5]]);
    }

    /// Goal: a ring of one, laps passing under a slow thread, `now` running back among threads.
    #[test]
    fn loom_ring_of_one_laps() {
        ring::<SOUND>(1, &[1], &[&[11, 21], &[12, 32]]);
    }

    /// Goal: a ring of two, three threads at one instant.
    #[test]
    fn loom_ring_of_two_three_threads() {
        ring::<SOUND>(2, &[], &[&[5], &[5], &[5]]);
    }

    /// Goal: a ring of two, the turn in its middle, laps passing under a slow thread.
    #[test]
    fn loom_ring_of_two_laps() {
        ring::<SOUND>(2, &[1], &[&[2, 12, 22], &[11, 21]]);
    }

    /// Goal: three threads, three laps, hints written late.
    #[test]
    fn loom_ring_of_two_late_hints() {
        ring::<SOUND>(2, &[1, 2], &[&[11, 21], &[12], &[22]]);
    }

    /// Goal: laps and more pass between one thread's look at a predecessor and at its slot.
    #[test]
    fn loom_ring_of_two_overtaken() {
        ring::<SOUND>(2, &[1], &[&[11, 21, 31, 32], &[31]]);
    }

    /// Goal: a predecessor that is read at one instant, and its slot after one more admission at the same instant.
    #[test]
    fn loom_ring_of_three_at_one_instant() {
        ring::<SOUND>(3, &[5], &[&[5], &[5]]);
    }

    /// Negative control: by parities alone, the thread that was overtaken by two laps takes a new slot for the
    /// oldest.
    #[test]
    #[should_panic(expected = "refused at 31")]
    fn loom_ring_out_of_order_is_caught() {
        ring::<DISORDERED>(2, &[1], &[&[11, 21, 31, 32], &[31]]);
    }

    /// Negative control: by order alone, a slot just taken passes for the oldest.
    #[test]
    #[should_panic(expected = "refused at 5")]
    fn loom_ring_without_laps_is_caught() {
        ring::<LAPLESS>(3, &[5], &[&[5], &[5]]);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{SOUND, take};
    use crate::charges::Charges;
    use crate::limit::Limit;
    use crate::limit::window::Window;
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    /// Calls of each thread: few where each step is interpreted.
    const ROUNDS: u64 = if cfg!(miri) { 100 } else { 8_000 };

    /// Goal: eight real threads at one ring: its recorded instants are exact, and each refusal was due: N recorded
    /// instants lie in the last W before it. The clock is a counter that they all push on, at an
    /// uneven pace, and some of them read it long before they call.
    #[test]
    fn eight_threads_at_one_ring_are_exact() {
        for (count, length) in [(1_u64, 7_u64), (3, 50), (64, 1_000)] {
            let window = Window::new(count, Span::from_nanos(length)).unwrap();
            let charges = Charges::for_rows(Limit::Window(window), 1);
            let clock = AtomicU64::new(0);
            let life = |thread: u64| {
                let (mut passed, mut refused) = (Vec::new(), Vec::new());
                for round in 0..ROUNDS {
                    let now = clock.fetch_add(round * thread % 3, Ordering::Relaxed);
                    if round % 64 == thread {
                        std::thread::yield_now();
                    }
                    match take::<SOUND>(window, charges.row(0).unwrap(), at(now), true) {
                        Ok(word) => passed.push(window.instant(word)),
                        Err(_) => refused.push(now),
                    }
                }
                (passed, refused)
            };
            let (mut passed, mut refused) = (Vec::new(), Vec::new());
            std::thread::scope(|threads| {
                let life = &life;
                let spawned: Vec<_> =
                    (0..8).map(|thread| threads.spawn(move || life(thread))).collect();
                for thread in spawned {
                    let (its_passed, its_refused) = thread.join().unwrap();
                    passed.extend(its_passed);
                    refused.extend(its_refused);
                }
            });
            passed.sort_unstable();
            let n = usize::try_from(count).unwrap();
            for (early, late) in passed.iter().zip(passed.iter().skip(n)) {
                assert!(early + length <= *late, "{count} and one within {length}");
            }
            for now in &refused {
                let before = passed.partition_point(|passed| passed + length <= *now);
                assert!(passed.len() - before >= n, "refused at {now} for nothing");
            }
            assert!(!passed.is_empty() && !refused.is_empty());
        }
    }

    proptest! {
        /// Goal: a ring agrees with a list of instants, call by call, when `now` jumps about.
        #[test]
        fn a_ring_agrees_with_a_list(
            count in 1_u64..6, length in 1_u64..60,
            steps in proptest::collection::vec(-30_i64..40, 1..300),
        ) {
            let window = Window::new(count, Span::from_nanos(length)).unwrap();
            let (limit, charges) = (Limit::Window(window), Charges::for_scope(Limit::Window(window)));
            let row = charges.row(0).unwrap();
            let n = usize::try_from(count).unwrap();
            let mut list: Vec<u64> = Vec::new();
            let mut now = 1_000_i64;
            for step in steps {
                now = (now + step).max(0);
                let nanos = u64::try_from(now).unwrap();
                let newest = list.last().copied().unwrap_or(0).max(nanos);
                let full = list.len() >= n && list[list.len() - n] + length > newest;
                let idle = list.last().is_none_or(|last| last + length <= nanos);
                prop_assert_eq!(row.is_idle(limit, at(nanos)), idle);
                let recent = list.iter().filter(|passed| **passed + length > nanos).count();
                prop_assert_eq!(row.used(limit, at(nanos)), recent.min(n) as u64);
                prop_assert_eq!(row.peek(limit, 1, at(nanos)).is_err(), full);
                match row.take(limit, 1, at(nanos)) {
                    Ok(_) => list.push(newest),
                    Err(wait) => {
                        prop_assert_eq!(nanos + wait.as_nanos(), list[list.len() - n] + length);
                    }
                }
                prop_assert!(!full || list.len() >= n);
            }
        }

        /// Goal: a hint of any value changes no answer: each ring is told wrong before each look.
        #[test]
        fn a_wrong_hint_changes_no_answer(
            count in 1_u64..100, length in 1_u64..300,
            steps in proptest::collection::vec((-30_i64..40, 0_u64..110), 1..600),
        ) {
            let window = Window::new(count, Span::from_nanos(length)).unwrap();
            let limit = Limit::Window(window);
            let (told, untold) = (Charges::for_scope(limit), Charges::for_scope(limit));
            let (told, untold) = (told.row(0).unwrap(), untold.row(0).unwrap());
            let mut now = 1_000_i64;
            for (step, hint) in steps {
                now = (now + step).max(0);
                let now = at(u64::try_from(now).unwrap());
                told.head.store(hint, Ordering::Relaxed);
                prop_assert_eq!(told.is_idle(limit, now), untold.is_idle(limit, now));
                told.head.store(hint, Ordering::Relaxed);
                prop_assert_eq!(told.peek(limit, 1, now), untold.peek(limit, 1, now));
                told.head.store(hint, Ordering::Relaxed);
                prop_assert_eq!(told.save(limit, now), untold.save(limit, now));
                told.head.store(hint, Ordering::Relaxed);
                let taken = |row: super::Row<'_>| take::<SOUND>(window, row, now, true);
                prop_assert_eq!(taken(told), taken(untold));
            }
        }

        /// Goal: a spent ring is full for a whole length from then on, whatever it held, and a ring like any other after.
        #[test]
        fn a_spent_ring_is_full_for_its_length(
            count in 1_u64..6, length in 1_u64..60,
            steps in proptest::collection::vec(0_u64..40, 0..40), late in 0_u64..10,
        ) {
            let window = Window::new(count, Span::from_nanos(length)).unwrap();
            let (limit, charges) = (Limit::Window(window), Charges::for_scope(Limit::Window(window)));
            let row = charges.row(0).unwrap();
            let mut now = 1_000;
            for step in steps {
                now += step;
                let _ = row.take(limit, 1, at(now));
            }
            // Another thread's clock may lag, by less than the length.
            let late = late.min(length - 1);
            row.spend(limit, at(now - late));
            let newest = row.peek(limit, 1, at(now)).unwrap_err().as_nanos();
            prop_assert!(newest + late >= length && newest <= length);
            prop_assert_eq!(row.used(limit, at(now)), count);
            for extra in 0..=count {
                prop_assert_eq!(row.take(limit, 1, at(now + newest)).is_ok(), extra < count);
            }
        }
    }
}
