//! Burst and refill in one word, pure: a debt, a now, an answer; it holds no atomic and reads no clock.
//!
//! The word is the instant at which all debt will be paid, in units of 2⁻ˢ nanoseconds (the
//! *shift* s is chosen per limit, 0 to 3). A call costs `per / count`, rounded **up** to a unit, and
//! may pass if the debt with its cost is paid within `burst` costs from now. So in any interval t
//! at most `burst + count × t / per` calls pass, and of the refill asked for at least 99.9 % is
//! granted: a limit for which no shift achieves that is refused when it is compiled.

use crate::time::{Mono, Span};

/// A refill and a burst, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// What one call costs, in units.
    cost: u64,
    /// How far ahead of now the debt may reach, in units.
    reach: u64,
    /// A unit is 2⁻ˢ nanoseconds.
    shift: u32,
}

impl Rate {
    /// `count` per `per`, at most `burst` at once; the error is a problem and a hint.
    pub(crate) fn new(count: u64, per: Span, burst: u64) -> Result<Rate, (String, String)> {
        let told = |problem: &str, hint: &str| Err((problem.to_owned(), hint.to_owned()));
        if count == 0 {
            return told("0 calls can never pass", "use a count of at least 1, or kill the scope");
        }
        if per == Span::ZERO {
            return told("no time to count over", "use a length of time above zero");
        }
        if burst == 0 {
            return told("0 is not a burst: no call could pass", "use at least 1");
        }
        for shift in 0..=MAX_SHIFT {
            let units = u128::from(per.as_nanos()) << shift;
            let cost = units.div_ceil(u128::from(count));
            // The excess of the rounded cost over the exact one, against the exact one.
            let excess = cost * u128::from(count) - units;
            if excess * COARSEST > units {
                continue;
            }
            let reach = cost.saturating_mul(u128::from(burst));
            return match (u64::try_from(cost), u64::try_from(reach)) {
                (Ok(cost), Ok(reach)) if reach <= MAX_REACH => Ok(Rate { cost, reach, shift }),
                _ => {
                    told("the burst would take more than 36 years to refill", "use a smaller burst")
                }
            };
        }
        told(
            "a refill this fast cannot be held to 0.1 %",
            "stay at or below 8 million calls a second, or choose a rate that divides evenly",
        )
    }

    /// The debt after one more call, or the exact wait until it could pass.
    ///
    /// State that is newer than `now` wins. Beyond the end of time (73 years after the caller's
    /// origin at the fastest rates) nothing passes.
    pub(crate) const fn take(self, debt: u64, now: Mono) -> Result<u64, Span> {
        let Some(now) = self.units(now) else {
            return Err(Span::from_nanos(u64::MAX));
        };
        let base = if debt > now { debt } else { now };
        let (Some(after), Some(reach)) = (base.checked_add(self.cost), now.checked_add(self.reach))
        else {
            return Err(Span::from_nanos(u64::MAX));
        };
        if after <= reach {
            Ok(after)
        } else {
            Err(Span::from_nanos((after - reach).div_ceil(1 << self.shift)))
        }
    }

    /// Whether a debt is all paid at `now`: as good as a new one.
    pub(crate) const fn is_paid(self, debt: u64, now: Mono) -> bool {
        match self.units(now) {
            Some(now) => debt <= now,
            None => false,
        }
    }

    const fn units(self, now: Mono) -> Option<u64> {
        if now.as_nanos() > u64::MAX >> self.shift {
            return None;
        }
        Some(now.as_nanos() << self.shift)
    }
}

/// The finest unit is an eighth of a nanosecond: it leaves 73 years of time in a word.
const MAX_SHIFT: u32 = 3;
/// One part in so many is the coarsest rounding allowed.
const COARSEST: u128 = 1_000;
/// Reach, at most: an eighth of the word's range.
const MAX_REACH: u64 = 1 << 60;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Rate;
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    /// Goal: numbers that can never pass, or that would be coarse, are refused.
    #[test]
    fn bad_numbers_are_refused() {
        let second = Span::from_secs(1);
        assert!(Rate::new(0, second, 1).is_err());
        assert!(Rate::new(1, Span::ZERO, 1).is_err());
        assert!(Rate::new(1, second, 0).is_err());
        assert!(Rate::new(1, Span::from_secs(1 << 33), 1 << 40).is_err());
        assert!(Rate::new(8_000_000, second, 1).is_ok());
        assert!(Rate::new(1_000_000_000, second, 1).is_ok(), "divides evenly");
        assert!(Rate::new(900_000_000, second, 1).is_err(), "would be 11 % too strict");
        assert!(Rate::new(5_000_000_000, second, 1).is_err());
        assert!(Rate::new(4_000_000_000, second, 1).is_ok());
    }

    /// Goal: the burst passes at once, the next call waits exactly one refill.
    #[test]
    fn burst_then_refill() {
        let rate = Rate::new(10, Span::from_secs(1), 3).unwrap();
        let mut debt = 0;
        for _ in 0..3 {
            debt = rate.take(debt, at(5)).unwrap();
        }
        assert_eq!(rate.take(debt, at(5)), Err(Span::from_millis(100)));
        assert!(rate.take(debt, at(5 + 99_999_999)).is_err());
        assert!(rate.take(debt, at(5 + 100_000_000)).is_ok());
    }

    /// Goal: at the end of time it refuses and does not overflow.
    #[test]
    fn the_end_of_time_refuses() {
        for (count, burst) in [(1, 1), (7_999_999, 1_000)] {
            let rate = Rate::new(count, Span::from_secs(1), burst).unwrap();
            assert!(rate.take(0, at(u64::MAX)).is_err());
            assert!(rate.take(u64::MAX, at(0)).is_err());
            assert!(rate.take(u64::MAX, at(u64::MAX)).is_err());
        }
    }

    proptest! {
        /// Goal: in any interval at most burst + rate × t calls pass, also when `now` runs back;
        /// and the promised wait is exact to the nanosecond.
        #[test]
        fn bound_and_wait_hold(
            count in 1_u64..2_000_000, per in 1_u64..3_000_000_000, burst in 1_u64..50,
            steps in proptest::collection::vec(-2_000_i64..4_000, 1..200),
        ) {
            let Ok(rate) = Rate::new(count, Span::from_nanos(per), burst) else { return Ok(()) };
            let (mut debt, mut now) = (0, 1_000_000_i64);
            let mut passed: Vec<u64> = Vec::new();
            let scale = i64::try_from((per / count / 1_000).max(1)).unwrap();
            for step in steps {
                now = (now + step * scale).max(0);
                let nanos = u64::try_from(now).unwrap();
                match rate.take(debt, at(nanos)) {
                    Ok(after) => {
                        debt = after;
                        // The decision counts at the newest instant known to the word.
                        passed.push(nanos.max(passed.last().copied().unwrap_or(0)));
                    }
                    Err(wait) => {
                        prop_assert!(rate.take(debt, at(nanos + wait.as_nanos())).is_ok());
                        prop_assert!(rate.take(debt, at(nanos + wait.as_nanos() - 1)).is_err());
                    }
                }
            }
            for (i, first) in passed.iter().enumerate() {
                for (j, last) in passed.iter().enumerate().skip(i) {
                    let calls = u128::try_from(j - i + 1).unwrap();
                    let flow = u128::from(count) * u128::from(last - first);
                    prop_assert!((calls - calls.min(u128::from(burst))) * u128::from(per) <= flow);
                }
            }
        }
    }
}
