//! The words of scopes and the loops around them: gates, and the map of what moved; it knows no policy, no limit and no key.

use crate::gate::{Input, TripRule, Word};
use crate::sync::{AtomicU64, Ordering};
use crate::time::Mono;

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
    /// half-open, and strikes that are old enough no longer count. A killed gate takes no trip, and is left as it is.
    pub(crate) fn order(&self, input: Input, rule: &TripRule, now: Mono) -> Option<Moved> {
        if matches!(input, Input::Trip(_)) && !self.word().is_killed() {
            let _ = self.step(Input::Elapsed, rule, now);
        }
        self.step(input, rule, now)
    }
}

impl Default for Cell {
    fn default() -> Cell {
        Cell { gate: Gate::new() }
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

#[cfg(all(test, loom))]
mod models {
    use super::Gate;
    use crate::facts::{KillLevel, State};
    use crate::gate::{Input, LiftTo, TripRule};
    use crate::policy::Recover;
    use crate::time::Mono;
    use loom::sync::Arc;

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    fn rule() -> TripRule {
        TripRule::new(Recover::Manual { probes: 2 })
    }

    /// A lift of the first of two kills, against the second. A lift that is not `NAMED` takes whatever
    /// epoch it finds.
    fn lift_against_kill<const NAMED: bool>() {
        explore(|| {
            let gate = Arc::new(Gate::new());
            let first = gate.step(Input::Kill(KillLevel::Halt), &rule(), Mono::ZERO).unwrap().after;
            let lifter = {
                let gate = Arc::clone(&gate);
                loom::thread::spawn(move || {
                    let epoch = if NAMED { first.epoch() } else { gate.word().epoch() };
                    let _ = gate.step(Input::Lift(epoch, LiftTo::Armed), &rule(), Mono::ZERO);
                })
            };
            gate.step(Input::Kill(KillLevel::Halt), &rule(), Mono::ZERO).unwrap();
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
            let killed =
                gate.step(Input::Kill(KillLevel::Halt), &rule(), Mono::ZERO).unwrap().after;
            let lift = Input::Lift(killed.epoch(), LiftTo::HalfOpen);
            let epoch = gate.step(lift, &rule(), Mono::ZERO).unwrap().after.epoch();
            let probe = move |gate: &Gate| {
                let taken = gate.step(Input::ProbeTaken, &rule(), Mono::ZERO).is_some();
                let armed = taken
                    && gate
                        .step(Input::ProbePassed(epoch), &rule(), Mono::ZERO)
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
