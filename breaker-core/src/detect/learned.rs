//! What detectors learned, as plain data that can be saved and restored; it judges nothing.

use std::fmt;

use super::surge::raise;
use super::{single, wide};
use crate::detect::short::Short;
use crate::time::Span;

/// What the detectors of one scope, one key, or one dimension as a whole have learned.
///
/// All of it is believed already: what still waited is not saved, and an attack in progress neither.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Learned {
    /// The version of this form. Another one is refused.
    pub version: u16,
    /// How long it has been learning.
    pub age: Span,
    /// Believed largest counts of the windows of 1, 10, 60 and 300 s.
    pub peaks: [f64; 4],
    /// The same by hour, 24 of them from the present hour on; empty where no hours are kept.
    pub hours: Vec<[f64; 4]>,
    /// For a dimension: the 99.9 % quantiles of the counts of keys with little history.
    pub quantiles: [f64; 4],
    /// Usual share of faults.
    pub errors: f64,
    /// Usual latency as a logarithm (of nanoseconds), and usual deviation from it; none before enough calls.
    pub latency: Option<(f64, f64)>,
    /// Longest believed silence in seconds.
    pub gap: f64,
    /// The same by hour, from the present one on; empty where none are kept.
    pub gaps: Vec<f64>,
    /// Classes of fault that were seen, one bit each.
    pub classes: [u64; 4],
}

/// Why something learned cannot be taken up, as a lower-case fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LearnedError {
    /// The fragment.
    pub problem: String,
}

impl Learned {
    /// The version that this library writes and reads.
    pub const VERSION: u16 = 1;

    /// Nothing learned.
    #[must_use]
    pub fn nothing() -> Learned {
        Learned {
            version: Learned::VERSION,
            age: Span::ZERO,
            peaks: [0.0; 4],
            hours: Vec::new(),
            quantiles: [0.0; 4],
            errors: 0.0,
            latency: None,
            gap: 0.0,
            gaps: Vec::new(),
            classes: [0; 4],
        }
    }

    /// Refuses what no life could have learned.
    ///
    /// # Errors
    /// Another version, a wrong length, or a number that is none or out of its range.
    pub fn check(&self) -> Result<(), LearnedError> {
        let refused = |problem: &str| Err(LearnedError { problem: problem.to_owned() });
        if self.version != Learned::VERSION {
            return refused("is of another version");
        }
        if ![0, HOURS].contains(&self.hours.len()) || ![0, HOURS].contains(&self.gaps.len()) {
            return refused("a day has 24 hours");
        }
        let mut counts = self.hours.iter().chain([&self.peaks, &self.quantiles]).flatten();
        if !counts.all(|count| (0.0..=MOST_CALLS).contains(count)) {
            return refused("a count is none");
        }
        if !(0.0..=1.0).contains(&self.errors) {
            return refused("a share is none");
        }
        if !self.gaps.iter().chain([&self.gap]).all(|gap| (0.0..=MOST_SECONDS).contains(gap)) {
            return refused("a gap is none");
        }
        if let Some((location, spread)) = self.latency
            && !((0.0..=45.0).contains(&location) && (0.0..=3.0).contains(&spread))
        {
            return refused("a latency is none");
        }
        if wide(self.age.as_nanos()) / 1.0e9 > MOST_SECONDS {
            return refused("is older than ten years");
        }
        Ok(())
    }
}

impl fmt::Display for LearnedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for LearnedError {}

/// Peaks of each hour of the day, by windows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hours([[Short; 4]; HOURS]);

impl Hours {
    pub(crate) fn new() -> Hours {
        Hours([[Short::default(); 4]; HOURS])
    }

    /// Lets all peaks decay by a factor, and raises those of one hour.
    pub(crate) fn turn(&mut self, factor: f64, hour: usize, believed: [Short; 4]) {
        for peak in self.0.iter_mut().flatten() {
            *peak = Short::near(peak.value() * factor);
        }
        if let Some(peaks) = self.0.get_mut(hour % HOURS) {
            raise(peaks, believed);
        }
    }

    /// The largest peaks of an hour and its two neighbours.
    pub(crate) fn around(&self, hour: usize) -> [f64; 4] {
        let mut peaks = [Short::default(); 4];
        for step in [HOURS - 1, 0, 1] {
            if let Some(&seen) = self.0.get((hour + step) % HOURS) {
                raise(&mut peaks, seen);
            }
        }
        peaks.map(Short::value)
    }

    /// All of them, from an hour on.
    pub(crate) fn from(&self, hour: usize) -> Vec<[f64; 4]> {
        let at = |step: usize| self.0.get((hour + step) % HOURS).copied().unwrap_or_default();
        (0..HOURS).map(|step| at(step).map(Short::value)).collect()
    }

    /// Takes up peaks that begin with an hour.
    pub(crate) fn restore(&mut self, hour: usize, peaks: &[[f64; 4]]) {
        for (step, peaks) in peaks.iter().enumerate() {
            if let Some(place) = self.0.get_mut((hour + step) % HOURS) {
                *place = peaks.map(Short::near);
            }
        }
    }

    /// Raises one hour's peaks: a person's word.
    pub(crate) fn raise(&mut self, hour: usize, peaks: [Short; 4]) {
        if let Some(place) = self.0.get_mut(hour % HOURS) {
            raise(place, peaks);
        }
    }
}

/// Gaps by hour, turned so that they begin with an hour.
pub(crate) fn turned(gaps: &[f32; HOURS], hour: usize) -> Vec<f64> {
    (0..HOURS)
        .map(|step| f64::from(gaps.get((hour + step) % HOURS).copied().unwrap_or(0.0)))
        .collect()
}

/// The reverse of [`turned`].
pub(crate) fn returned(gaps: &[f64], hour: usize, into: &mut [f32; HOURS]) {
    for (step, gap) in gaps.iter().enumerate() {
        if let Some(place) = into.get_mut((hour + step) % HOURS) {
            *place = single(*gap);
        }
    }
}

/// Hours of a day.
pub(crate) const HOURS: usize = 24;
/// No window counts more.
const MOST_CALLS: f64 = 134_217_728.0;
const MOST_SECONDS: f64 = 3.2e8;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Hours, Learned};
    use crate::detect::short::Short;
    use crate::time::Span;

    /// Goal: nonsense is refused, each kind once; nothing is accepted.
    #[test]
    fn nonsense_is_refused() {
        let sound = Learned::nothing();
        assert!(sound.check().is_ok());
        let cases = [
            Learned { version: 2, ..sound.clone() },
            Learned { peaks: [f64::NAN; 4], ..sound.clone() },
            Learned { peaks: [-1.0; 4], ..sound.clone() },
            Learned { quantiles: [f64::INFINITY; 4], ..sound.clone() },
            Learned { hours: vec![[0.0; 4]; 23], ..sound.clone() },
            Learned { errors: 1.5, ..sound.clone() },
            Learned { latency: Some((99.0, 0.0)), ..sound.clone() },
            Learned { gaps: vec![0.0; 25], ..sound.clone() },
            Learned { gap: f64::NAN, ..sound.clone() },
            Learned { age: Span::from_nanos(u64::MAX), ..sound.clone() },
        ];
        for case in cases {
            assert!(case.check().is_err(), "{case:?}");
        }
    }

    /// Goal: an hour has two neighbours, also at midnight; a day turned round comes back whole.
    #[test]
    fn hours_have_neighbours() {
        let mut hours = Hours::new();
        hours.turn(1.0, 23, [Short::up(100.0); 4]);
        assert_eq!([22, 23, 0, 1].map(|hour| hours.around(hour)[0]), [100.0, 100.0, 100.0, 0.0]);
        let mut again = Hours::new();
        again.restore(5, &hours.from(5));
        assert_eq!(again, hours);
    }
}
