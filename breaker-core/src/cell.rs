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

    /// As [`Gate::step`], but a trip first lets time act: a hold that has elapsed already counts as
    /// half-open, and strikes that are old enough no longer count.
    pub(crate) fn order(&self, input: Input, rule: &TripRule, now: Mono) -> Option<Moved> {
        if matches!(input, Input::Trip(_)) {
            let _ = self.step(Input::Elapsed, rule, now);
        }
        self.step(input, rule, now)
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
        // ordering: see `SWAP`; relaxed on failure, since what was found is not looked at.
        let _ = self.head_word.compare_exchange(self.head, next, Self::SWAP, Ordering::Relaxed);
    }

    fn write(&self, word: u64) -> bool {
        // ordering: see `SWAP`; relaxed on failure, since the turn begins anew with loads of its own.
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
/// A negative control: the head is not read again, nor is the predecessor's lap asked. In the models either of
/// the two is enough; both are kept, for each is one comparison.
const UNCHECKED: u8 = 2;

#[cfg(all(test, loom))]
mod models {
    use super::{Charges, Gate, RELAXED, SOUND, UNCHECKED, turn};
    use crate::facts::{KillLevel, State};
    use crate::gate::{Input, LiftTo, TripRule};
    use crate::limit::Limit;
    use crate::limit::window::Window;
    use crate::policy::Recover;
    use crate::time::{Mono, Span};
    use loom::sync::Arc;

    const LENGTH: u64 = 10;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// Each thread calls at its instants; before it all, one call for each instant of `past`.
    fn ring<const FLAW: u8>(count: u64, past: &'static [u64], threads: &'static [&'static [u64]]) {
        explore(move || {
            let window = Window::new(count, Span::from_nanos(LENGTH)).unwrap();
            let charges = Arc::new(Charges::for_rows(Limit::Window(window), 1));
            let call = move |charges: &Charges, now: u64| {
                let answer = turn::<FLAW>(window, charges.row(0), at(now), true);
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

    fn rule() -> TripRule {
        TripRule::new(Recover::Manual { probes: 2 })
    }

    /// A lift of the first of two kills, against the second. A lift that is not `NAMED` takes whatever
    /// epoch it finds.
    fn lift_against_kill<const NAMED: bool>() {
        explore(|| {
            let gate = Arc::new(Gate::new());
            let first = gate.step(Input::Kill(KillLevel::Halt), &rule(), at(0)).unwrap().after;
            let lifter = {
                let gate = Arc::clone(&gate);
                loom::thread::spawn(move || {
                    let epoch = if NAMED { first.epoch() } else { gate.word().epoch() };
                    let _ = gate.step(Input::Lift(epoch, LiftTo::Armed), &rule(), at(0));
                })
            };
            gate.step(Input::Kill(KillLevel::Halt), &rule(), at(0)).unwrap();
            lifter.join().unwrap();
            assert_eq!(gate.word().state(), State::Killed(KillLevel::Halt));
        });
    }

    /// Goal: a lift never undoes a kill that its author did not see.
    #[test]
    fn loom_lift_never_undoes_an_unseen_kill() {
        lift_against_kill::<true>();
    }

    /// Negative control: a lift that does not name its kill does.
    #[test]
    #[should_panic]
    fn loom_lift_without_a_name_is_caught() {
        lift_against_kill::<false>();
    }

    /// Goal: two probes that pass at once arm the gate, once; half-open gives out no more than its
    /// probes, whoever asks at once.
    #[test]
    fn loom_probes_are_counted() {
        explore(|| {
            let gate = Arc::new(Gate::new());
            let killed = gate.step(Input::Kill(KillLevel::Halt), &rule(), at(0)).unwrap().after;
            let lift = Input::Lift(killed.epoch(), LiftTo::HalfOpen);
            let epoch = gate.step(lift, &rule(), at(0)).unwrap().after.epoch();
            let probe = move |gate: &Gate| {
                let taken = gate.step(Input::ProbeTaken, &rule(), at(0)).is_some();
                let armed = taken
                    && gate
                        .step(Input::ProbePassed(epoch), &rule(), at(0))
                        .is_some_and(|moved| moved.after.state() == State::Armed);
                (taken, armed)
            };
            let spawned: Vec<_> = (0..2)
                .map(|_| {
                    let gate = Arc::clone(&gate);
                    loom::thread::spawn(move || probe(&gate))
                })
                .collect();
            let mut told = vec![probe(&gate)];
            told.extend(spawned.into_iter().map(|thread| thread.join().unwrap()));
            assert_eq!(told.iter().filter(|told| told.0).count(), 2);
            assert_eq!(told.iter().filter(|told| told.1).count(), 1);
            assert_eq!(gate.word().state(), State::Armed);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Charges, SOUND, Taken, turn};
    use crate::limit::Limit;
    use crate::limit::rate::Rate;
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
                    match turn::<SOUND>(window, charges.row(0), at(now), true) {
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
        /// Goal: a late undo frees nothing: the calls that were never undone hold the bound by
        /// themselves, however late and in whatever order the others are undone.
        #[test]
        fn a_late_undo_frees_nothing(
            burst in 1_u64..4,
            acts in proptest::collection::vec((0..3_u8, 0_u64..25, 0..8_usize), 1..120),
        ) {
            let rate = Rate::new(1, Span::from_nanos(10), burst).unwrap();
            let charges = Charges::for_scope(Limit::Rate(rate));
            let mut now = 100;
            let mut taken: Vec<(u64, Taken)> = Vec::new();
            for (act, step, which) in acts {
                match act {
                    0 => now += step,
                    1 if !taken.is_empty() => {
                        let (_, undone) = taken.remove(which % taken.len());
                        charges.undo(0, undone);
                    }
                    _ => {
                        if let Ok(charge) = charges.take(0, at(now)) {
                            taken.push((now, charge));
                        }
                    }
                }
                // After each act, for the undone ones are gone from the list only now.
                for (index, (first, _)) in taken.iter().enumerate() {
                    for (calls, (last, _)) in (1_u64..).zip(&taken[index..]) {
                        prop_assert!(calls.saturating_sub(burst) * 10 <= last - first);
                    }
                }
            }
        }

        /// Goal: a ring agrees with a list of instants, call by call, when `now` jumps about.
        #[test]
        fn a_ring_agrees_with_a_list(
            count in 1_u64..6, length in 1_u64..60,
            steps in proptest::collection::vec(-30_i64..40, 1..300),
        ) {
            let window = Window::new(count, Span::from_nanos(length)).unwrap();
            let charges = Charges::for_scope(Limit::Window(window));
            let n = usize::try_from(count).unwrap();
            let mut list: Vec<u64> = Vec::new();
            let mut now = 1_000_i64;
            for step in steps {
                now = (now + step).max(0);
                let nanos = u64::try_from(now).unwrap();
                let newest = list.last().copied().unwrap_or(0).max(nanos);
                let full = list.len() >= n && list[list.len() - n] + length > newest;
                let idle = list.last().is_none_or(|last| last + length <= nanos);
                prop_assert_eq!(charges.is_idle(0, at(nanos)), idle);
                prop_assert_eq!(charges.peek(0, at(nanos)).is_err(), full);
                match charges.take(0, at(nanos)) {
                    Ok(_) => list.push(newest),
                    Err(wait) => {
                        prop_assert_eq!(nanos + wait.as_nanos(), list[list.len() - n] + length);
                    }
                }
                prop_assert!(!full || list.len() >= n);
            }
        }
    }
}
