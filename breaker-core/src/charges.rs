//! The words of limits and the loops around them: take, undo, settle, seed; it knows no policy, no gate and no key.

use crate::limit::Limit;
use crate::limit::rate::Rate;
use crate::limit::window::{Move, Window};
use crate::sync::{AtomicU64, Ordering, pause};
use crate::time::{Mono, Span};

/// One cell's memory of one limit.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) head: &'a AtomicU64,
    pub(crate) rest: &'a [AtomicU64],
}

#[repr(align(128))]
pub(crate) struct Charges {
    head: AtomicU64,
    rest: Box<[AtomicU64]>,
    words: usize,
}

#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Taken {
    before: u64,
    after: u64,
}

impl Charges {
    pub(crate) fn for_scope(limit: Limit) -> Charges {
        Charges {
            head: AtomicU64::new(0),
            rest: (1..limit.words()).map(|_| AtomicU64::new(0)).collect(),
            words: 0,
        }
    }
    pub(crate) fn for_rows(limit: Limit, rows: usize) -> Charges {
        let words = limit.words();
        Charges {
            head: AtomicU64::new(0),
            rest: (0..words * rows).map(|_| AtomicU64::new(0)).collect(),
            words,
        }
    }
    #[inline]
    pub(crate) fn row(&self, row: usize) -> Option<Row<'_>> {
        if self.words == 0 {
            return Some(Row { head: &self.head, rest: &self.rest });
        }
        let start = self.words.checked_mul(row)?;
        let (head, rest) = self.rest.get(start..start + self.words)?.split_first()?;
        Some(Row { head, rest })
    }
}
impl Row<'_> {
    #[inline]
    pub(crate) fn peek(self, limit: Limit, amount: u64, now: Mono) -> Result<(), Span> {
        let _ = amount;
        match limit {
            Limit::Rate(rate) => rate.take(self.head.load(Ordering::Relaxed), now).map(drop),
            Limit::Window(window) => turn::<SOUND>(window, self, now, false).map(drop),
            _ => Err(NEVER),
        }
    }
    #[inline]
    pub(crate) fn take(self, limit: Limit, amount: u64, now: Mono) -> Result<Taken, Span> {
        let _ = amount;
        match limit {
            Limit::Rate(rate) => take_debt(rate, self.head, now),
            Limit::Window(window) => {
                turn::<SOUND>(window, self, now, true).map(|_| Taken::default())
            }
            _ => Err(NEVER),
        }
    }
    pub(crate) fn undo(self, limit: Limit, taken: Taken) {
        if let Limit::Rate(_) = limit {
            let _ = self.head.compare_exchange(
                taken.after,
                taken.before,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
    pub(crate) fn give_back(self, _limit: Limit, _amount: u64) {}
    pub(crate) fn settle(
        self,
        _limit: Limit,
        _reserved: u64,
        _truth: u64,
        _since: Mono,
        _now: Mono,
    ) {
    }
    pub(crate) fn is_idle(self, limit: Limit, now: Mono) -> bool {
        match limit {
            Limit::Rate(rate) => rate.is_paid(self.head.load(Ordering::Relaxed), now),
            Limit::Window(window) => {
                let Some(look) = Ring::<SOUND>::look(window, self) else { return false };
                look.is_unmoved() && window.is_idle(look.head, look.slot, look.before, now)
            }
            _ => false,
        }
    }
    pub(crate) fn spend(self, _limit: Limit, _now: Mono) {}
    pub(crate) fn seed(self, _limit: Limit, _old: Row<'_>, _was: Limit, _now: Mono) {}
}

#[inline]
fn take_debt(rate: Rate, debt: &AtomicU64, now: Mono) -> Result<Taken, Span> {
    let mut before = debt.load(Ordering::Relaxed);
    loop {
        let after = rate.take(before, now)?;
        match debt.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok(Taken { before, after }),
            Err(seen) => before = seen,
        }
    }
}

/// One look at a ring, and the words it was taken of. `FLAW` is [`SOUND`] in all but the negative
/// controls, which show that the models would notice its absence.
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

    fn look(window: Window, row: Row<'a>) -> Option<Ring<'a, FLAW>> {
        let (head_word, words) = (row.head, row.rest);
        let head = head_word.load(Self::LOAD);
        let (slot_at, before_at) = window.slots(head);
        let (slot_word, before_word) =
            (words.get(slot_at.checked_sub(1)?)?, words.get(before_at.checked_sub(1)?)?);
        let slot = slot_word.load(Self::LOAD);
        let before = before_word.load(Self::LOAD);
        Some(Ring { head_word, slot_word, head, slot, before })
    }

    /// Whether the three words read were of one moment.
    fn is_unmoved(&self) -> bool {
        FLAW == UNCHECKED || self.head_word.load(Self::LOAD) == self.head
    }

    /// Moves the head on, unless somebody else did.
    fn advance(&self, window: Window) {
        let next = window.advanced(self.head);
        // ordering: see `SWAP`; relaxed on failure, since what was found is not looked at.
        let _ = self.head_word.compare_exchange(self.head, next, Self::SWAP, Ordering::Relaxed);
    }

    fn write(&self, word: u64) -> bool {
        // ordering: see `SWAP`; relaxed on failure, since the turn begins anew with loads of its own.
        self.slot_word.compare_exchange(self.slot, word, Self::SWAP, Ordering::Relaxed).is_ok()
    }
}

/// One call's turn at a ring: the word written (or that would be, if not `write`), or the exact wait.
fn turn<const FLAW: u8>(window: Window, row: Row<'_>, now: Mono, write: bool) -> Result<u64, Span> {
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

/// The wait where none is known to suffice.
const NEVER: Span = Span::from_nanos(u64::MAX);

/// The algorithm as it is meant.
const SOUND: u8 = 0;
/// A negative control: acquire and release weakened to relaxed.
const RELAXED: u8 = 1;
/// A negative control: the head is not read again, nor is the predecessor's lap asked. In the models either of
/// the two is enough; both are kept, for each is one comparison.
const UNCHECKED: u8 = 2;
