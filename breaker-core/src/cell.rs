//! The words of scopes and the loops around them: gates, limits' charges, the map of what moved; it knows no policy and no key.

use crate::gate::{Input, TripRule, Word};
use crate::limit::Limit;
use crate::limit::rate::Rate;
use crate::limit::window::{Move, Window};
use crate::sync::{AtomicU64, Ordering, pause};
use crate::time::{Mono, Span};

/// One gate's memory.
pub(crate) struct Gate(AtomicU64);

/// A move: the word before and after.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub(crate) before: Word,
    pub(crate) after: Word,
}

/// A named scope's gate on a cache line of its own: it is read by every call and hardly ever written.
#[repr(align(128))]
pub(crate) struct Cell {
    pub(crate) gate: Gate,
}

/// One limit's memory: a row of words for each cell.
pub(crate) struct Charges {
    limit: Limit,
    words: Box<[AtomicU64]>,
    /// Words before the first row and after the last.
    margin: usize,
}

/// What one charge did, for its undo.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Taken {
    /// A debt went from one value to another.
    Debt { before: u64, after: u64 },
    /// A slot of a ring was written: there is no undo, it is forfeited.
    Slot,
}

/// Which cells moved since somebody last asked: one bit each.
pub(crate) struct Dirty(Box<[AtomicU64]>);

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate(AtomicU64::new(0))
    }

    pub(crate) fn word(&self) -> Word {
        // ordering: relaxed, for the word stands alone: nothing else is published by it. The last
        // look orders this load after its mark by a fence of its own.
        Word::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Steps the word; `None` where the input means nothing to it.
    pub(crate) fn step(&self, input: Input, rule: &TripRule, now: Mono) -> Option<Moved> {
        let mut before = self.word();
        loop {
            let after = before.step(input, rule, now)?;
            // ordering: relaxed, for the word stands alone. A killer orders it before its look at
            // the senders' marks by a fence of its own.
            match self.0.compare_exchange_weak(
                before.to_bits(),
                after.to_bits(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Moved { before, after }),
                // Each retry means that another thread moved the gate: somebody always gets on.
                Err(seen) => before = Word::from_bits(seen),
            }
        }
    }
}

impl Cell {
    pub(crate) fn new() -> Cell {
        Cell { gate: Gate::new() }
    }
}

impl Charges {
    /// Memory for one named scope. A margin keeps other memory off its cache lines.
    pub(crate) fn for_scope(limit: Limit) -> Charges {
        Charges::new(limit, 1, 16)
    }

    /// Memory for so many cells.
    pub(crate) fn for_rows(limit: Limit, rows: usize) -> Charges {
        Charges::new(limit, rows, 0)
    }

    fn new(limit: Limit, rows: usize, margin: usize) -> Charges {
        let words = margin * 2 + limit.words().saturating_mul(rows);
        Charges { limit, words: (0..words).map(|_| AtomicU64::new(0)).collect(), margin }
    }

    /// The arithmetic it was made for.
    pub(crate) fn limit(&self) -> Limit {
        self.limit
    }

    /// Would one more call pass? Else the exact wait. Charges nothing.
    pub(crate) fn peek(&self, row: usize, now: Mono) -> Result<(), Span> {
        match self.limit {
            Limit::Rate(rate) => match self.row(row).first() {
                // ordering: relaxed, for a debt stands alone.
                Some(debt) => rate.take(debt.load(Ordering::Relaxed), now).map(drop),
                None => Err(NEVER),
            },
            Limit::Window(window) => turn::<SOUND>(window, self.row(row), now, false).map(drop),
        }
    }

    /// Charges one call, or says the exact wait.
    pub(crate) fn take(&self, row: usize, now: Mono) -> Result<Taken, Span> {
        match self.limit {
            Limit::Rate(rate) => take_debt(rate, self.row(row), now),
            Limit::Window(window) => {
                turn::<SOUND>(window, self.row(row), now, true).map(|_| Taken::Slot)
            }
        }
    }

    /// Undoes a charge exactly or not at all: a debt goes back only from the very value that the
    /// charge left. If anybody charged since, time may have forgiven ours, and to subtract it
    /// would eat theirs.
    pub(crate) fn undo(&self, row: usize, taken: Taken) {
        let Taken::Debt { before, after } = taken else { return };
        if let Some(debt) = self.row(row).first() {
            // ordering: relaxed, for a debt stands alone. A lost race is a forfeit.
            let _ = debt.compare_exchange(after, before, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether a row is as good as new at `now`. If in doubt, no.
    pub(crate) fn is_idle(&self, row: usize, now: Mono) -> bool {
        let words = self.row(row);
        match self.limit {
            // ordering: relaxed, for a debt stands alone.
            Limit::Rate(rate) => {
                words.first().is_some_and(|debt| rate.is_paid(debt.load(Ordering::Relaxed), now))
            }
            Limit::Window(window) => {
                let Some(look) = Ring::<SOUND>::look(window, words) else { return false };
                look.is_unmoved() && window.is_idle(look.head, look.slot, look.before, now)
            }
        }
    }

    fn row(&self, row: usize) -> &[AtomicU64] {
        let words = self.limit.words();
        let start = self.margin + words.saturating_mul(row);
        self.words.get(start..start + words).unwrap_or(&[])
    }
}

fn take_debt(rate: Rate, words: &[AtomicU64], now: Mono) -> Result<Taken, Span> {
    let Some(debt) = words.first() else { return Err(NEVER) };
    // ordering: relaxed, for a debt stands alone.
    let mut before = debt.load(Ordering::Relaxed);
    loop {
        let after = rate.take(before, now)?;
        // ordering: relaxed, for a debt stands alone.
        match debt.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok(Taken::Debt { before, after }),
            // Each retry means that another call was charged: somebody always gets on.
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

    fn look(window: Window, words: &'a [AtomicU64]) -> Option<Ring<'a, FLAW>> {
        let head_word = words.first()?;
        let head = head_word.load(Self::LOAD);
        let (slot_at, before_at) = window.slots(head);
        let (slot_word, before_word) = (words.get(slot_at)?, words.get(before_at)?);
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
        let _ = self.head_word.compare_exchange(self.head, next, Self::SWAP, Ordering::Relaxed);
    }

    fn write(&self, word: u64) -> bool {
        self.slot_word.compare_exchange(self.slot, word, Self::SWAP, Ordering::Relaxed).is_ok()
    }
}

/// One call's turn at a ring: the word written (or that would be, if not `write`), or the exact wait.
fn turn<const FLAW: u8>(
    window: Window,
    words: &[AtomicU64],
    now: Mono,
    write: bool,
) -> Result<u64, Span> {
    loop {
        // A ring without its words cannot say yes.
        let Some(look) = Ring::<FLAW>::look(window, words) else { return Err(NEVER) };
        match window.judge(look.head, look.slot, look.before, now) {
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

impl Dirty {
    pub(crate) fn new(cells: usize) -> Dirty {
        Dirty((0..cells.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Says that a cell moved; after the move.
    pub(crate) fn mark(&self, cell: usize) {
        if let Some(word) = self.0.get(cell / 64) {
            // ordering: release, so that whoever takes the bit sees the move.
            word.fetch_or(1 << (cell % 64), Ordering::Release);
        }
    }

    /// Words of 64 bits.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the bits of one word.
    pub(crate) fn take(&self, word: usize) -> u64 {
        let Some(word) = self.0.get(word) else { return 0 };
        // ordering: relaxed look first, so that a quiet house is only read: a bit that is missed
        // here is seen at the next sweep.
        if word.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        // ordering: acquire, to see the moves that the bits speak of; release, since other bits'
        // marks must stay ordered through this swap.
        word.swap(0, Ordering::AcqRel)
    }
}

/// The wait where none is known to suffice.
const NEVER: Span = Span::from_nanos(u64::MAX);

/// The algorithm as it is meant.
const SOUND: u8 = 0;
/// A negative control: acquire and release weakened to relaxed.
const RELAXED: u8 = 1;
/// A negative control: the head is not read again.
const UNCHECKED: u8 = 2;
