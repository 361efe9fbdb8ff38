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
