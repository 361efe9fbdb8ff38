//! Interleaved measuring: every case a little in every round, so that a slow minute of the machine slows all alike.

use std::hint::black_box;
use std::time::Duration;

use crate::figures::{Samples, real};

/// Something that is measured.
pub struct Case {
    name: &'static str,
    run: Box<dyn FnMut(usize)>,
    warm: usize,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds; odd, so that there is a middle one.
    pub rounds: usize,
    /// What one sample of one case should take.
    pub sample: Duration,
}

/// A case and what was measured of it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The case's name.
    pub name: &'static str,
    /// Nanoseconds per turn.
    pub samples: Samples,
}

impl Case {
    /// A case that does `turn` over and over. The loop around it is the same for all, and what a turn returns is
    /// used as far as the compiler knows.
    pub fn new<R>(name: &'static str, mut turn: impl FnMut() -> R + 'static) -> Case {
        let run = move |turns| {
            for _ in 0..turns {
                black_box(turn());
            }
        };
        Case { name, run: Box::new(run), warm: 0 }
    }

    /// The same case, with at least so many turns unmeasured before each sample: as many as it takes to bring its
    /// memory back into the caches, from which the other cases of the round have driven it.
    #[must_use]
    pub fn warmed(self, turns: usize) -> Case {
        Case { warm: turns, ..self }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Turns that take about so long, by `clock`.
    fn turns_for(&mut self, sample: Duration, clock: &dyn Fn() -> Duration) -> usize {
        let mut turns = 16;
        loop {
            let took = time(clock, || (self.run)(turns));
            // Long enough to be extrapolated from.
            if took * 8 >= sample || turns >= 1 << 30 {
                let wanted = u128::try_from(turns).unwrap_or(1) * sample.as_nanos();
                let turns = wanted / took.as_nanos().max(1);
                return usize::try_from(turns).unwrap_or(usize::MAX).max(1);
            }
            turns *= 2;
        }
    }
}

impl Plan {
    /// Measures all cases, each once per round, beginning with another one each round. `clock` is the measuring
    /// thread's processor time; `progress` is told of each finished round.
    pub fn measure(
        self,
        cases: &mut [Case],
        clock: &dyn Fn() -> Duration,
        progress: &mut dyn FnMut(usize),
    ) -> Vec<Measured> {
        let turns: Vec<usize> =
            cases.iter_mut().map(|case| case.turns_for(self.sample, clock)).collect();
        let empty = |case: &Case| Measured { name: case.name, samples: Samples::default() };
        let mut all: Vec<Measured> = cases.iter().map(empty).collect();
        for round in 0..self.rounds {
            let mut line: Vec<_> = cases.iter_mut().zip(&turns).zip(&mut all).collect();
            let first = round % line.len().max(1);
            line.rotate_left(first);
            for ((case, turns), measured) in line {
                // The caches are another case's.
                (case.run)(case.warm.max(turns / 8));
                let took = time(clock, || (case.run)(*turns));
                measured.samples.push(took.as_secs_f64() * 1e9 / real(*turns));
            }
            progress(round + 1);
        }
        all
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

fn time(clock: &dyn Fn() -> Duration, work: impl FnOnce()) -> Duration {
    let before = clock();
    work();
    clock().saturating_sub(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    /// Goal: each case is sampled in every round, and a case that costs twice as much measures twice as much.
    #[test]
    fn cases_are_interleaved_and_measured() {
        let now = Rc::new(Cell::new(Duration::ZERO));
        let costing = |name, nanos| {
            let now = Rc::clone(&now);
            Case::new(name, move || now.set(now.get() + Duration::from_nanos(nanos)))
        };
        let mut cases = [costing("one", 10), costing("two", 20)];
        let plan = Plan { rounds: 5, sample: Duration::from_micros(50) };
        let mut rounds = Vec::new();
        let clock = || now.get();
        let measured = plan.measure(&mut cases, &clock, &mut |round| rounds.push(round));
        let [one, two] = measured.as_slice() else { panic!("two cases") };
        assert_eq!((one.name, two.name, rounds.len()), ("one", "two", 5));
        assert_eq!((one.samples.len(), two.samples.len()), (5, 5));
        assert!((one.samples.median() - 10.0).abs() < 1e-6);
        assert!((two.samples.ratios(&one.samples).median() - 2.0).abs() < 1e-6);
    }
}
