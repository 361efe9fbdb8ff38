//! The exact window's ring: its loops around head and slots; the arithmetic is not here.

use super::{Past, RELAXED, Row, SOUND, Saved, UNCHECKED};
use crate::limit::NEVER;
use crate::limit::window::{Move, Window};
use crate::sync::{AtomicU64, Ordering, pause};
use crate::time::{Mono, Span};

/// One look at a ring, and the words it was taken of. `FLAW` is [`SOUND`] in all but the negative
/// controls.
struct Ring<'a, const FLAW: u8> {
    head_word: &'a AtomicU64,
    slot_word: &'a AtomicU64,
    head: u64,
    slot: u64,
    before: u64,
}

impl<'a, const FLAW: u8> Ring<'a, FLAW> {
    // ordering: acquire. Whoever sees a slot of some lap must see the head and the slots that came
    // before it, or old and new are mixed into a picture that never was.
    const LOAD: Ordering = if FLAW == RELAXED { Ordering::Relaxed } else { Ordering::Acquire };
    // ordering: release, to pair with the above; acquire, since what was read is passed on.
    const SWAP: Ordering = if FLAW == RELAXED { Ordering::Relaxed } else { Ordering::AcqRel };

    #[inline]
    fn look(window: Window, row: Row<'a>) -> Option<Ring<'a, FLAW>> {
        // ordering: see `LOAD`.
        let head = row.head.load(Self::LOAD);
        let (slot_at, before_at) = window.slots_at(head);
        let (slot_word, before_word) = (row.rest.get(slot_at)?, row.rest.get(before_at)?);
        // ordering: see `LOAD`.
        let slot = slot_word.load(Self::LOAD);
        let before = before_word.load(Self::LOAD);
        Some(Ring { head_word: row.head, slot_word, head, slot, before })
    }

    /// Whether the three words read were of one moment.
    #[inline]
    fn is_unmoved(&self) -> bool {
        // ordering: see `LOAD`.
        FLAW == UNCHECKED || self.head_word.load(Self::LOAD) == self.head
    }

    /// Moves the head on, unless somebody else did.
    #[inline]
    fn advance(&self, window: Window) {
        let next = window.advanced(self.head);
        // ordering: see `SWAP`; relaxed on failure, since what was found is not looked at.
        let _ = self.head_word.compare_exchange(self.head, next, Self::SWAP, Ordering::Relaxed);
    }

    #[inline]
    fn write(&self, word: u64) -> bool {
        // ordering: see `SWAP`; relaxed on failure, since the turn begins anew with loads of its own.
        self.slot_word.compare_exchange(self.slot, word, Self::SWAP, Ordering::Relaxed).is_ok()
    }
}

/// One call's turn at a ring: the word written (or that would be, if not `write`), or the exact wait.
#[inline]
pub(super) fn turn<const FLAW: u8>(
    window: Window,
    row: Row<'_>,
    now: Mono,
    write: bool,
) -> Result<u64, Span> {
    loop {
        // A ring without its words cannot say yes.
        let Some(look) = Ring::<FLAW>::look(window, row) else { return Err(NEVER) };
        let mut next = window.judge(look.head, look.slot, look.before, now);
        if FLAW == UNCHECKED && next == Move::Again {
            next = window.judge(look.head, look.slot, look.before ^ 1, now);
        }
        match next {
            // Whoever took the slot may be asleep: its admission must not make others wait.
            Move::Advance => look.advance(window),
            Move::Refuse(wait) if look.is_unmoved() => return Err(wait),
            Move::Write(word) if look.is_unmoved() => {
                if !write {
                    return Ok(word);
                }
                if look.write(word) {
                    look.advance(window);
                    return Ok(word);
                }
            }
            // Each retry means that another call was admitted: somebody always gets on.
            Move::Again | Move::Refuse(_) | Move::Write(_) => pause(),
        }
    }
}

/// Counts a whole ring of admissions, allowed or not.
pub(super) fn spend(window: Window, row: Row<'_>, now: Mono) {
    for _ in 0..window.slots() {
        loop {
            let Some(look) = Ring::<SOUND>::look(window, row) else { return };
            match window.forced(look.head, look.slot, look.before, now) {
                Move::Advance => look.advance(window),
                Move::Write(word) if look.is_unmoved() => {
                    if look.write(word) {
                        look.advance(window);
                        break;
                    }
                }
                Move::Refuse(_) => return,
                // Each retry means that another thread wrote: somebody always gets on.
                Move::Again | Move::Write(_) => pause(),
            }
        }
    }
}

pub(super) fn is_idle(window: Window, row: Row<'_>, now: Mono) -> bool {
    let Some(look) = Ring::<SOUND>::look(window, row) else { return false };
    look.is_unmoved() && window.is_idle(look.head, look.slot, look.before, now)
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
    for _ in 0..ATTEMPTS {
        // ordering: acquire, as for every look at a ring.
        let head = row.head.load(Ordering::Acquire);
        let slots = row.rest.iter().take(window.slots());
        let ages = slots.map(|slot| window.age(slot.load(Ordering::Acquire), now));
        let ages: Vec<Option<u64>> = ages.collect();
        if row.head.load(Ordering::Acquire) != head {
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

/// Writes a past into a new ring: the newest of it that fit.
pub(super) fn restore(window: Window, row: Row<'_>, past: &Past, now: Mono) {
    let count = window.slots();
    let bound = u64::try_from(count).unwrap_or(u64::MAX);
    let mut words = Vec::new();
    for (age, amount) in past.within(window.length(), bound).into_iter().rev() {
        let amount = usize::try_from(amount).unwrap_or(count).min(count - words.len());
        words.extend(window.slot(age, now).into_iter().cycle().take(amount));
    }
    let admissions = words.iter().rev().zip(row.rest);
    let mut written = 0;
    for (word, slot) in admissions {
        // ordering: relaxed, for nobody else has this memory yet.
        slot.store(*word, Ordering::Relaxed);
        written += 1;
    }
    // ordering: release, so that whoever sees the head sees the slots.
    row.head.store(window.head_after(written), Ordering::Release);
}

/// Reads of a ring that moves meanwhile, at most.
const ATTEMPTS: usize = 16;

#[cfg(all(test, loom))]
mod models {
    use super::{RELAXED, SOUND, UNCHECKED, turn};
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
                let answer = turn::<FLAW>(window, charges.row(0).unwrap(), at(now), true);
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

    /// Goal: a ring of two, the head in its middle, laps passing under a slow thread.
    #[test]
    fn loom_ring_of_two_laps() {
        ring::<SOUND>(2, &[1], &[&[2, 12, 22], &[11, 21]]);
    }

    /// Negative control: with relaxed orders the models above find a fault.
    #[test]
    #[should_panic(expected = "ring")]
    fn loom_ring_relaxed_is_caught() {
        ring::<RELAXED>(2, &[1], &[&[2, 12, 22], &[11, 21]]);
    }

    /// Goal: a lap and more passes between one thread's looks at the head and at its slot.
    #[test]
    fn loom_ring_of_two_overtaken() {
        ring::<SOUND>(2, &[1], &[&[11, 21, 22], &[31]]);
    }

    /// Negative control: neither asking the predecessor's lap nor looking at the head again, the
    /// thread that was overtaken refuses what it should admit.
    #[test]
    #[should_panic(expected = "refused at 31")]
    fn loom_ring_unchecked_is_caught() {
        ring::<UNCHECKED>(2, &[1], &[&[11, 21, 22], &[31]]);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{SOUND, turn};
    use crate::charges::Charges;
    use crate::limit::Limit;
    use crate::limit::window::Window;
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

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
                for round in 0..8_000_u64 {
                    let now = clock.fetch_add(round * thread % 3, Ordering::Relaxed);
                    if round % 64 == thread {
                        std::thread::yield_now();
                    }
                    match turn::<SOUND>(window, charges.row(0).unwrap(), at(now), true) {
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
            // Another thread's clock may lag.
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
