//! Arithmetic on samples: medians, quantiles, ratios round by round; it measures nothing.

/// Samples of one case, in nanoseconds per turn, in the order of the rounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the sample of the next round.
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// Whether nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Rounds measured.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The sample in the middle; NaN if there is none. Here and below what could not be measured (NaN) is left out.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The sample that a share of all do not exceed (nearest rank); NaN if there is none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted: Vec<f64> = self.0.iter().copied().filter(|one| one.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        // The rank by search, not by a cast: lists are short.
        let rank = (0_u32..).zip(&sorted).find(|&(rank, _)| f64::from(rank) >= share * real(last));
        rank.map_or(f64::NAN, |(_, &sample)| sample)
    }

    /// Sample by sample, what part of the rival's this is. A round that either lacks is left out.
    #[must_use]
    pub fn ratios(&self, rival: &Samples) -> Samples {
        let pairs = self
            .0
            .iter()
            .zip(&rival.0)
            .filter(|(own, rival)| own.is_finite() && rival.is_finite() && **rival > 0.0);
        Samples(pairs.map(|(own, rival)| own / rival).collect())
    }
}

/// A count as a real number; exact up to 2^53, which no count here reaches.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
pub const fn real(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(all: &[f64]) -> Samples {
        Samples(all.to_vec())
    }

    /// Goal: quantiles are samples of the list, whatever its order.
    #[test]
    fn quantiles_are_of_the_sorted_list() {
        let some = samples(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!([some.quantile(0.0), some.median(), some.quantile(1.0)], [1.0, 3.0, 5.0]);
        assert_eq!([some.quantile(0.1), some.quantile(0.9)], [2.0, 5.0]);
        assert!(Samples::default().median().is_nan());
        assert_eq!(samples(&[f64::NAN, 2.0, f64::NAN]).quantile(1.0), 2.0);
    }

    /// Goal: a machine that is slow for some rounds slows both and leaves the ratio alone.
    #[test]
    fn ratios_are_of_one_round() {
        let own = samples(&[1.0, 10.0, 1.0]);
        let rival = samples(&[2.0, 20.0, 2.0]);
        assert_eq!(own.ratios(&rival), samples(&[0.5, 0.5, 0.5]));
        assert_eq!(own.ratios(&samples(&[2.0, f64::NAN, 4.0])), samples(&[0.5, 0.25]));
    }
}
