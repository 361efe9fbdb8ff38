//! A fixed share of faults or of slow calls, for those who want no learning; pure.

use super::{Sighting, long, narrow, seconds, single, told, wide, within};
use crate::time::Span;

/// A share of bad calls that is too large, over a decaying window.
///
/// The numbers stand where resilience4j's stand: half of at least a hundred calls.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Ratio {
    /// Which calls are bad.
    pub of: ShareOf,
    /// The share of bad calls from which on it is found, above 0 to 1. 0.5 unless said.
    pub share: f64,
    /// Calls that the window must hold, at least 1. 100 unless said.
    pub minimum: u32,
    /// The window's time constant: what is as old counts e⁻¹. 1 s to 1 h; 60 s unless said.
    pub window: Span,
}

/// Which calls are bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum ShareOf {
    /// Those that failed.
    Faults,
    /// Those that were answered too late.
    Slow,
    /// Both.
    Either,
}

impl Default for Ratio {
    fn default() -> Ratio {
        let window = Span::from_secs(60);
        Ratio { of: ShareOf::Faults, share: 0.5, minimum: 100, window }
    }
}

/// What settled since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Settled {
    pub(crate) finished: u64,
    pub(crate) faults: u64,
    pub(crate) slow: u64,
    /// Seconds since the last look.
    pub(crate) elapsed: f64,
}

/// A decaying count and how much of it is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Share {
    pub(crate) all: f32,
    pub(crate) bad: f32,
}

impl Share {
    /// Lets time pass and adds what came in it, evenly spread over it.
    pub(crate) fn add(&mut self, all: f64, bad: f64, elapsed: f64, constant: f64) {
        let forgets = super::forgets(elapsed, constant);
        // The mean weight at the end of what came evenly over the time; all of it, if there was none.
        let weight = if elapsed > 0.0 { forgets * constant / elapsed } else { 1.0 };
        self.all = single(f64::from(self.all) * (1.0 - forgets) + all * weight);
        self.bad = single(f64::from(self.bad) * (1.0 - forgets) + bad.min(all) * weight);
    }

    pub(crate) fn value(self) -> f64 {
        let (all, bad) = (f64::from(self.all), f64::from(self.bad));
        if all > 0.0 { (bad / all).clamp(0.0, 1.0) } else { 0.0 }
    }
}

impl Ratio {
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        within("share", self.share, 0.001, 1.0)?;
        if self.minimum == 0 {
            return told("a minimum of 0 calls finds a share in nothing", "use at least 1");
        }
        long("window", self.window, Span::from_secs(1), Span::from_secs(3_600))
    }

    /// Counts what settled, and judges.
    pub(crate) fn judge(&self, settled: &Settled, memory: &mut Share) -> Option<Sighting> {
        let bad = match self.of {
            ShareOf::Faults => settled.faults,
            ShareOf::Slow => settled.slow,
            ShareOf::Either => settled.faults.saturating_add(settled.slow),
        };
        memory.add(wide(settled.finished), wide(bad), settled.elapsed, seconds(self.window));
        // A count that decays is a hair below a whole number that it has reached.
        let enough = f64::from(memory.all) >= f64::from(self.minimum) - SLACK;
        let value = memory.value();
        (enough && value >= self.share - 1.0e-6).then(|| Sighting {
            value,
            bound: self.share,
            window: self.window,
            count: narrow(f64::from(memory.bad).round()),
            of: narrow(f64::from(memory.all).round()),
            learned: false,
        })
    }
}

/// Of a call, in a minimum of calls.
const SLACK: f64 = 0.5;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Ratio, Settled, Share, ShareOf};
    use proptest::prelude::*;

    fn settled(finished: u64, faults: u64, slow: u64, elapsed: f64) -> Settled {
        Settled { finished, faults, slow, elapsed }
    }

    /// Goal: half of a hundred is found, less is not, and fewer calls are not judged.
    #[test]
    fn a_share_with_a_minimum() {
        let rule = Ratio::default();
        let look = |finished, faults| {
            rule.judge(&settled(finished, faults, 0, 0.1), &mut Share::default())
        };
        assert!(look(99, 99).is_none());
        assert!(look(100, 49).is_none());
        let found = look(100, 50).unwrap();
        assert_eq!((found.count, found.of, found.learned), (50, 100, false));
    }

    /// Goal: slow calls count where they are asked for, and only there.
    #[test]
    fn slow_calls_are_their_own() {
        let look = |of| {
            let rule = Ratio { of, ..Ratio::default() };
            rule.judge(&settled(200, 60, 60, 0.1), &mut Share::default()).is_some()
        };
        assert_eq!(
            [look(ShareOf::Faults), look(ShareOf::Slow), look(ShareOf::Either)],
            [false, false, true]
        );
    }

    /// Goal: what is old no longer counts, and an hour that came in one look counts as an hour.
    #[test]
    fn the_window_forgets() {
        let rule = Ratio::default();
        let mut memory = Share::default();
        assert!(rule.judge(&settled(1_000, 400, 0, 1.0), &mut memory).is_none());
        assert!(rule.judge(&settled(0, 0, 0, 600.0), &mut memory).is_none());
        assert!(memory.all < 0.1);
        // 3 600 faults in an hour are 60 in a window of a minute: too few to be judged.
        assert!(rule.judge(&settled(3_600, 3_600, 0, 3_600.0), &mut memory).is_none());
    }

    proptest! {
        /// Goal: no reading makes a share that is no number, or out of its range.
        #[test]
        fn no_reading_breaks_it(
            readings in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<f64>()), 0..30),
        ) {
            let (rule, mut memory) = (Ratio::default(), Share::default());
            for (finished, faults, elapsed) in readings {
                if let Some(found) = rule.judge(&settled(finished, faults, faults, elapsed), &mut memory) {
                    prop_assert!(found.value >= rule.share - 1.0e-6 && found.value <= 1.0);
                }
                prop_assert!(memory.all.is_finite() && memory.bad.is_finite());
            }
        }
    }
}
