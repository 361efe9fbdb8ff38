//! A share of faults far above its own past; pure.

use super::ratio::{Settled, Share};
use super::{Sighting, forgets, long, narrow, seconds, single, told, wide, within};
use crate::detect::short::Short;
use crate::time::Span;

/// A share of faults far above its own past.
///
/// Found in either of two decaying windows that hold enough calls, if the lower end of Wilson's interval
/// (Wilson 1927) of the share lies above `max(least, times × base)`, or above the ceiling.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Errors {
    /// Time constants of the two windows, 1 s to 1 h. 60 s and 600 s unless said.
    pub windows: [Span; 2],
    /// Calls that a window must hold. 8 unless said.
    pub minimum: u32,
    /// Faults that a window must hold. 5 unless said.
    pub faults: u32,
    /// Standard deviations below the share at which the interval ends, 0 to 10. 3 unless said.
    pub deviations: f64,
    /// No share at or below this is found, however calm the past. 0.08 unless said.
    pub least: f64,
    /// By how much the base must be exceeded, 1 to 1 000. 5 unless said.
    pub times: f64,
    /// The ceiling: a share above it is found whatever was learned. 0.5 unless said.
    pub ceiling: f64,
    /// The time constant of the base, learned by time. 1 h unless said.
    pub base_over: Span,
    /// Before so much history only the ceiling stands: nothing is believed yet. 30 min unless said.
    pub start_after: Span,
}

impl Default for Errors {
    fn default() -> Errors {
        Errors {
            windows: [Span::from_secs(60), Span::from_secs(600)],
            minimum: 8,
            faults: 5,
            deviations: 3.0,
            least: 0.08,
            times: 5.0,
            ceiling: 0.5,
            base_over: Span::from_secs(3_600),
            start_after: Span::from_secs(1_800),
        }
    }
}

/// What one scope remembers of its faults.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ErrorMemory {
    pub(crate) fast: Share,
    pub(crate) slow: Share,
    /// The believed share.
    pub(crate) base: f32,
    /// The running epoch.
    pub(crate) epoch: Share,
    /// The shares of the last two epochs, not yet believed.
    waiting: [Short; 2],
}

impl Errors {
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        let [fast, slow] = self.windows;
        for window in [fast, slow] {
            long("a window", window, Span::from_secs(1), Span::from_secs(3_600))?;
        }
        if self.minimum == 0 || self.faults == 0 {
            return told("a share in nothing is no share", "use a minimum of at least 1");
        }
        within("deviations", self.deviations, 0.0, 10.0)?;
        within("least", self.least, 0.0, 1.0)?;
        within("times", self.times, 1.0, 1_000.0)?;
        within("ceiling", self.ceiling, 0.001, 1.0)?;
        if self.ceiling < self.least {
            return told("the ceiling lies below the least share", "swap them");
        }
        long("base_over", self.base_over, Span::from_secs(60), super::THIRTY_DAYS)?;
        long("start_after", self.start_after, Span::ZERO, super::THIRTY_DAYS)
    }

    /// The share that must not be exceeded, and whether it was learned.
    pub(crate) fn bound(&self, memory: &ErrorMemory, age: f64) -> (f64, bool) {
        if age < seconds(self.start_after) {
            return (self.ceiling, false);
        }
        let learned = self.times * f64::from(memory.base);
        let bound = learned.max(self.least).min(self.ceiling);
        (bound, bound < self.ceiling)
    }

    /// Counts what settled, and judges. `age` is the history's length in seconds.
    pub(crate) fn judge(
        &self,
        settled: &Settled,
        age: f64,
        memory: &mut ErrorMemory,
    ) -> Option<Sighting> {
        let (all, bad) = (wide(settled.finished), wide(settled.faults));
        let [fast, slow] = self.windows;
        memory.fast.add(all, bad, settled.elapsed, seconds(fast));
        memory.slow.add(all, bad, settled.elapsed, seconds(slow));
        let (bound, learned) = self.bound(memory, age);
        [(memory.fast, fast), (memory.slow, slow)].into_iter().find_map(|(share, window)| {
            let (all, bad) = (f64::from(share.all), f64::from(share.bad));
            let value = wilson(share.value(), all, self.deviations);
            // A count that decays is a hair below a whole number that it has reached.
            let enough =
                all >= f64::from(self.minimum) - 0.5 && bad >= f64::from(self.faults) - 0.5;
            (enough && value > bound).then(|| Sighting {
                value,
                bound,
                window,
                count: narrow(bad.round()),
                of: narrow(all.round()),
                learned,
            })
        })
    }

    /// Counts what settled towards the running epoch; not to be told while anything is tripped.
    pub(crate) fn learn(&self, settled: &Settled, memory: &mut ErrorMemory) {
        memory.epoch.all = single(f64::from(memory.epoch.all) + wide(settled.finished));
        let bad = settled.faults.min(settled.finished);
        memory.epoch.bad = single(f64::from(memory.epoch.bad) + wide(bad));
    }

    /// Ends an epoch of `length` seconds, and believes the one before the last.
    pub(crate) fn turn(&self, length: f64, memory: &mut ErrorMemory) {
        let [last, before] = memory.waiting;
        if before != Short::default() {
            let base = f64::from(memory.base);
            let share = before.value() - KNOWN;
            let weight = forgets(length, seconds(self.base_over));
            memory.base = single((base + weight * (share - base)).clamp(0.0, 1.0));
        }
        let enough = f64::from(memory.epoch.all) >= f64::from(self.minimum) - 0.5;
        let seen =
            if enough { Short::near(memory.epoch.value() + KNOWN) } else { Short::default() };
        memory.waiting = [seen, last];
        memory.epoch = Share::default();
    }
}

impl ErrorMemory {
    /// Drops what is not yet believed.
    pub(crate) fn drop_unbelieved(&mut self) {
        self.waiting = [Short::default(); 2];
        self.epoch = Share::default();
    }

    /// Forgets what the windows hold: after a trip they begin anew.
    pub(crate) fn begin_anew(&mut self) {
        self.fast = Share::default();
        self.slow = Share::default();
    }
}

/// The lower end of Wilson's interval of a share of `all`, `z` standard deviations out.
fn wilson(share: f64, all: f64, z: f64) -> f64 {
    if all <= 0.0 {
        return 0.0;
    }
    let square = z * z;
    let spread = (share * (1.0 - share) / all + square / (4.0 * all * all)).max(0.0).sqrt();
    ((share + square / (2.0 * all) - z * spread) / (1.0 + square / all)).clamp(0.0, 1.0)
}

/// A share stands in an epoch's memory with this added: a share of zero is known, a zero is not.
const KNOWN: f64 = 1.0;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{ErrorMemory, Errors, wilson};
    use crate::detect::ratio::Settled;
    use proptest::prelude::*;

    fn settled(finished: u64, faults: u64, elapsed: f64) -> Settled {
        Settled { finished, faults, slow: 0, elapsed }
    }

    const OLD: f64 = 86_400.0;

    /// Goal: Wilson's interval against figures worked out by hand.
    #[test]
    fn wilson_by_hand() {
        assert!((wilson(0.5, 100.0, 1.96) - 0.403_8).abs() < 1e-4);
        assert!((wilson(0.625, 8.0, 3.0) - 0.200_0).abs() < 1e-2);
        assert!(wilson(0.0, 10.0, 3.0) < 1e-12);
        assert_eq!(wilson(1.0, 0.0, 3.0), 0.0);
    }

    /// Goal: a dead upstream is found within a few calls, a few faults among many never.
    #[test]
    fn a_dead_upstream_is_found_soon() {
        let rule = Errors::default();
        assert!(rule.judge(&settled(7, 7, 1.0), OLD, &mut ErrorMemory::default()).is_none());
        assert!(rule.judge(&settled(8, 5, 0.1), OLD, &mut ErrorMemory::default()).is_some());
        assert!(rule.judge(&settled(100, 9, 1.0), OLD, &mut ErrorMemory::default()).is_none());
        assert!(rule.judge(&settled(100, 20, 1.0), OLD, &mut ErrorMemory::default()).is_some());
    }

    /// Goal: a scope that always fails a little is held against its own past, and the ceiling stands above.
    #[test]
    fn the_base_is_its_own_and_the_ceiling_stands() {
        let rule = Errors::default();
        let base = ErrorMemory { base: 0.09, ..ErrorMemory::default() };
        assert!(rule.judge(&settled(500, 150, 1.0), OLD, &mut base.clone()).is_none());
        assert!(rule.judge(&settled(500, 300, 1.0), OLD, &mut base.clone()).is_some());
        let poisoned = ErrorMemory { base: 0.9, ..ErrorMemory::default() };
        let found = rule.judge(&settled(500, 400, 1.0), OLD, &mut poisoned.clone()).unwrap();
        assert_eq!((found.bound, found.learned), (0.5, false));
    }

    /// Goal: before anything is believed only the ceiling stands.
    #[test]
    fn without_history_only_the_ceiling_stands() {
        let rule = Errors::default();
        assert!(rule.judge(&settled(500, 200, 1.0), 60.0, &mut ErrorMemory::default()).is_none());
        assert!(rule.judge(&settled(500, 400, 1.0), 60.0, &mut ErrorMemory::default()).is_some());
    }

    /// Goal: what an epoch saw is believed when two more have ended, and not if it was dropped meanwhile.
    #[test]
    fn an_epoch_is_believed_two_later() {
        let rule = Errors::default();
        for dropped in [false, true] {
            let mut memory = ErrorMemory::default();
            rule.learn(&settled(1_000, 100, 900.0), &mut memory);
            rule.turn(900.0, &mut memory);
            rule.turn(900.0, &mut memory);
            assert_eq!(memory.base, 0.0);
            if dropped {
                memory.drop_unbelieved();
            }
            rule.turn(900.0, &mut memory);
            // 1 − e^(−1/4) of a tenth.
            let expected = if dropped { 0.0 } else { 0.022_1 };
            assert!((f64::from(memory.base) - expected).abs() < 1e-3, "{}", memory.base);
        }
    }

    /// Goal: an epoch with too few calls says nothing, one without faults says zero.
    #[test]
    fn few_calls_say_nothing() {
        let rule = Errors::default();
        let mut memory = ErrorMemory { base: 0.2, ..ErrorMemory::default() };
        rule.learn(&settled(7, 7, 900.0), &mut memory);
        for _ in 0..3 {
            rule.turn(900.0, &mut memory);
        }
        assert_eq!(memory.base, 0.2);
        rule.learn(&settled(1_000, 0, 900.0), &mut memory);
        for _ in 0..3 {
            rule.turn(900.0, &mut memory);
        }
        assert!(memory.base < 0.16, "{}", memory.base);
    }

    proptest! {
        /// Goal: no reading and no memory makes a bound that is no number, under its floor, or over its ceiling.
        #[test]
        fn bounds_stay_in_range(
            readings in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<f64>()), 0..30),
            base: f32, age: f64,
        ) {
            let rule = Errors::default();
            let mut memory = ErrorMemory { base, ..ErrorMemory::default() };
            for (finished, faults, elapsed) in readings {
                let settled = settled(finished, faults, elapsed);
                if let Some(found) = rule.judge(&settled, age, &mut memory) {
                    prop_assert!(found.value > found.bound && found.value <= 1.0);
                }
                rule.learn(&settled, &mut memory);
                rule.turn(900.0, &mut memory);
                let (bound, _) = rule.bound(&memory, age);
                prop_assert!((rule.least..=rule.ceiling).contains(&bound), "{bound}");
            }
        }
    }
}
