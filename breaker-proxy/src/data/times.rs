//! How long requests took, as histograms: one writer each, read when somebody asks; nothing is decided from them.

use super::counts::Count;
use breaker_core::Span;
use std::sync::OnceLock;

/// Upper bounds of the whole time, in nanoseconds: from 50 µs to a minute. What takes longer is in one bucket more.
pub const WHOLE: [u64; 19] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// Upper bounds of the part that was added, in nanoseconds: from 1 µs to 100 ms.
pub const ADDED: [u64; 18] = [
    1_000,
    2_500,
    5_000,
    10_000,
    15_000,
    25_000,
    50_000,
    75_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];

/// What became of a request, as far as its time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its client has a whole answer of the upstream.
    Passed,
    /// It was answered by us and never sent.
    Refused,
    /// It has no whole answer: by a fault of the upstream, by a kill, or because its client left.
    Failed,
}

impl Ending {
    /// All of them, with their words.
    pub const ALL: [(Ending, &'static str); 3] =
        [(Ending::Passed, "passed"), (Ending::Refused, "refused"), (Ending::Failed, "failed")];
}

/// Times of one kind, on one worker.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    /// How many there are in each bucket alone.
    buckets: [Count; N],
    /// How many are above all bounds.
    above: Count,
    /// All of them together, in nanoseconds.
    sum: Count,
}

impl<const N: usize> Histogram<N> {
    /// One without anything in it.
    #[must_use]
    pub fn new(bounds: &'static [u64; N]) -> Histogram<N> {
        Histogram {
            bounds,
            buckets: [const { Count::new() }; N],
            above: Count::new(),
            sum: Count::new(),
        }
    }

    /// One more time.
    pub fn note(&self, time: Span) {
        let nanos = time.as_nanos();
        // A bound belongs to its bucket.
        let place = self.bounds.partition_point(|bound| *bound < nanos);
        self.buckets.get(place).unwrap_or(&self.above).up();
        self.sum.add(nanos);
    }

    /// Adds what is in it to a sum.
    pub fn add_to(&self, sum: &mut Sum) {
        let buckets = self.buckets.iter().chain(std::iter::once(&self.above));
        for (total, count) in sum.buckets.iter_mut().zip(buckets) {
            *total = total.wrapping_add(count.get());
        }
        sum.nanos = sum.nanos.wrapping_add(self.sum.get());
    }
}

/// Histograms of several workers, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many there are in each bucket alone; the last one is above all bounds.
    pub buckets: Vec<u64>,
    /// All of them together, in nanoseconds.
    pub nanos: u64,
}

impl Sum {
    /// Nothing, for so many bounds.
    #[must_use]
    pub fn new(bounds: usize) -> Sum {
        Sum { buckets: vec![0; bounds.saturating_add(1)], nanos: 0 }
    }
}

/// Both times of the requests of one route with one ending, on one worker.
#[derive(Debug)]
pub struct Pair {
    /// From the first byte of the head to the last of the answer.
    pub whole: Histogram<{ WHOLE.len() }>,
    /// Of that, what nobody else was waited for.
    pub added: Histogram<{ ADDED.len() }>,
}

/// The times of the requests of one route, on one worker. Of an ending that it never had there is nothing but a place.
#[derive(Debug, Default)]
pub struct Times {
    pairs: [OnceLock<Box<Pair>>; Ending::ALL.len()],
}

impl Times {
    /// One more request, and of its whole time the part that was added.
    pub fn note(&self, ending: Ending, whole: Span, added: Span) {
        let new =
            || Box::new(Pair { whole: Histogram::new(&WHOLE), added: Histogram::new(&ADDED) });
        let place = Ending::ALL.iter().position(|(own, _)| *own == ending);
        if let Some(pair) = place.and_then(|place| self.pairs.get(place)) {
            let pair = pair.get_or_init(new);
            pair.whole.note(whole);
            pair.added.note(added);
        }
    }

    /// The times of the requests with this ending, if there were any.
    #[must_use]
    pub fn of(&self, ending: Ending) -> Option<&Pair> {
        let place = Ending::ALL.iter().position(|(own, _)| *own == ending)?;
        self.pairs.get(place)?.get().map(Box::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Goal: bounds grow, so that the search for a bucket finds the right one.
    #[test]
    fn bounds_grow() {
        assert!(WHOLE.is_sorted_by(|a, b| a < b));
        assert!(ADDED.is_sorted_by(|a, b| a < b));
    }

    /// Goal: a time is in the first bucket whose bound it does not exceed; the bound itself belongs to it.
    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&WHOLE);
        for nanos in [0, 50_000, 50_001, 60_000_000_000, 60_000_000_001, u64::MAX] {
            histogram.note(Span::from_nanos(nanos));
        }
        let mut sum = Sum::new(WHOLE.len());
        histogram.add_to(&mut sum);
        let mut expected = vec![0; WHOLE.len() + 1];
        (expected[0], expected[1], expected[18], expected[19]) = (2, 1, 1, 2);
        assert_eq!(sum.buckets, expected);
    }

    /// Goal: only endings that happened have anything, and workers add up.
    #[test]
    fn endings_are_kept_apart_and_workers_add_up() {
        let (one, other) = (Times::default(), Times::default());
        let time = Span::from_nanos(70_000);
        one.note(Ending::Passed, time, Span::from_nanos(5_000));
        other.note(Ending::Passed, time, Span::from_nanos(6_000));
        assert!(one.of(Ending::Refused).is_none());
        let mut sum = Sum::new(ADDED.len());
        for times in [&one, &other] {
            times.of(Ending::Passed).unwrap().added.add_to(&mut sum);
        }
        assert_eq!((sum.buckets[2], sum.buckets[3], sum.nanos), (1, 1, 11_000));
    }

    proptest! {
        /// Goal: whatever times come, each is in exactly one bucket and in the sum.
        #[test]
        fn each_time_is_counted_once(times in prop::collection::vec(0..120_000_000_000_u64, 0..50)) {
            let histogram = Histogram::new(&WHOLE);
            for nanos in &times {
                histogram.note(Span::from_nanos(*nanos));
            }
            let mut sum = Sum::new(WHOLE.len());
            histogram.add_to(&mut sum);
            for (place, bound) in WHOLE.iter().enumerate() {
                let below: u64 = sum.buckets[..=place].iter().sum();
                let expected = times.iter().filter(|nanos| *nanos <= bound).count();
                prop_assert_eq!(below, u64::try_from(expected).unwrap());
            }
            prop_assert_eq!(sum.buckets.iter().sum::<u64>(), u64::try_from(times.len()).unwrap());
            prop_assert_eq!(sum.nanos, times.iter().sum::<u64>());
        }
    }
}
