//! Burst and refill in one word, pure: a debt, an amount, a now, an answer; it holds no atomic and reads no clock.
//!
//! The word is the instant at which all debt will be paid, in units of 2⁻ˢ nanoseconds (the
//! *shift* s is chosen per limit, 0 to 3). A weight of n costs `n × per / count` and may pass if the debt
//! with its cost is paid within `burst` weights' cost from now. Costs are rounded **up**, the burst's **down**, so in
//! any interval t at most `burst + count × t / per` pass. (The rule is the virtual scheduling form of the generic cell
//! rate algorithm, ITU-T I.371, with amounts.)
//!
//! Where one of weight costs a whole number of units, to 0.1 %, every cost is a multiple of that: amounts
//! add up exactly, and at least 99.9 % of the refill asked for is granted. Where it does not, and calls are counted
//! by weight, each call's cost is rounded up by itself: by less than an eighth of a nanosecond, which is 0.1 % at 8
//! million calls a second, however much they weigh. A limit that neither fits is refused when it is compiled.

use crate::limit::NEVER;
use crate::policy::Unit;
use crate::time::{Mono, Span};

/// A refill and a burst, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// What a lot costs, in units.
    cost: u64,
    /// How much weight a lot is: 1 where amounts add up exactly.
    lot: u64,
    /// How far ahead of now the debt may reach, in units: the cost of a burst, rounded down.
    reach: u64,
    /// The most that may pass at once.
    burst: u64,
    /// A unit is 2⁻ˢ nanoseconds.
    shift: u32,
    by: Unit,
}

/// What is known of a debt, without its instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) cost: u64,
    pub(crate) lot: u64,
    pub(crate) shift: u32,
    /// Units of debt.
    pub(crate) units: u64,
    /// Nanoseconds since all was paid; 0 if it is not.
    pub(crate) paid: u64,
}

/// A rate of calls in the form that is quickest to charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plain {
    cost: u64,
    /// How far ahead of now the debt may be before one more call.
    slack: u64,
    shift: u32,
    /// The last instant of which all sums here fit a word.
    end: u64,
}

impl Plain {
    /// The debt after one more call. `None` says no more than that [`Rate::take`] must be asked.
    #[inline(always)]
    pub(crate) const fn take(self, debt: u64, now: Mono) -> Option<u64> {
        let nanos = now.as_nanos();
        // Below the end a sum is less than 2⁶³ + 2⁶⁰.
        let at = nanos << (self.shift & 63);
        if nanos > self.end || debt > at.wrapping_add(self.slack) {
            return None;
        }
        let base = if debt > at { debt } else { at };
        Some(base.wrapping_add(self.cost))
    }
}

impl Rate {
    /// `count` per `per`, at most `burst` at once; the error is a problem and a hint.
    pub(crate) fn new(
        count: u64,
        per: Span,
        burst: u64,
        by: Unit,
    ) -> Result<Rate, (String, String)> {
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
        // The largest amount stands for one that is not known: it never passes.
        let burst = burst.min(u64::MAX - 1);
        for shift in 0..=MAX_SHIFT {
            let units = u128::from(per.as_nanos()) << shift;
            let cost = units.div_ceil(u128::from(count));
            // The excess of the rounded cost over the exact one, against the exact one.
            let excess = cost * u128::from(count) - units;
            if excess * COARSEST <= units {
                return Rate::reaching(cost, 1, burst, shift, by);
            }
        }
        let units = u128::from(per.as_nanos()) << MAX_SHIFT;
        let shared = common_divisor(units, u128::from(count));
        let rate = Rate::reaching(units / shared, u128::from(count) / shared, burst, MAX_SHIFT, by);
        match (by, rate) {
            (Unit::Calls, _) => told(
                "a refill this fast cannot be held to 0.1 %",
                "stay at or below 8 million calls a second, or choose a rate that divides evenly",
            ),
            (Unit::Weight, Ok(rate)) if u128::from(rate.reach) < COARSEST => told(
                "the burst is refilled in less than 125 ns: its rounding would exceed 0.1 %",
                "use a larger burst, or a coarser unit of weight",
            ),
            (Unit::Weight, rate) => rate,
        }
    }

    fn reaching(
        cost: u128,
        lot: u128,
        burst: u64,
        shift: u32,
        by: Unit,
    ) -> Result<Rate, (String, String)> {
        let reach = cost.saturating_mul(u128::from(burst)) / lot;
        match (u64::try_from(cost), u64::try_from(lot), u64::try_from(reach)) {
            (Ok(cost), Ok(lot), Ok(reach)) if reach <= MAX_REACH => {
                Ok(Rate { cost, lot, reach, burst, shift, by })
            }
            _ => Err((
                "the burst would take more than 36 years to refill".to_owned(),
                "use a smaller burst".to_owned(),
            )),
        }
    }

    /// The debt after one more call of this amount, or the exact wait until it could pass.
    ///
    /// State that is newer than `now` wins. Beyond the end of time (73 years after the caller's
    /// origin at the fastest rates) nothing passes. Where rounding makes a whole burst cost one unit more than the debt
    /// may reach, it passes when nothing is owed: then it is alone in its time, and the bound holds all the same.
    #[inline]
    pub(crate) const fn take(self, debt: u64, amount: u64, now: Mono) -> Result<u64, Span> {
        if amount > self.burst {
            return Err(NEVER);
        }
        let Some(now) = self.units(now) else { return Err(NEVER) };
        let cost = self.cost_of(amount);
        let base = if debt > now { debt } else { now };
        let (Some(after), Some(reach)) = (base.checked_add(cost), now.checked_add(self.reach))
        else {
            return Err(NEVER);
        };
        let due = if cost > self.reach { base + self.reach } else { after };
        if due <= reach {
            Ok(after)
        } else {
            Err(Span::from_nanos((due - reach).div_ceil(1 << self.shift)))
        }
    }

    /// The same rate for calls of one, as two sums, where that is all there is to it.
    pub(crate) const fn plain(self) -> Option<Plain> {
        if self.lot != 1 || self.cost > self.reach || !matches!(self.by, Unit::Calls) {
            return None;
        }
        let (cost, slack, shift) = (self.cost, self.reach - self.cost, self.shift);
        Some(Plain { cost, slack, shift, end: u64::MAX >> (shift + 1) })
    }

    /// The debt after a call that was charged `reserved` at `since` turned out to cost `truth`.
    ///
    /// More is charged in full, beyond the bound if need be. Of less, what is given back is never more than
    /// is still owed for it, whatever was charged in between. Proof: let the debt be what it is, and beside it the debt as
    /// it would be had the truth been charged at once. Both see the same later charges. At `since` they are apart by
    /// the refund; a charge moves both by its cost, unless the smaller was all paid by then: only while it is idle
    /// do they come nearer, and by no more than the time that passes. So at `now` they are still apart by
    /// `refund − (now − since)`, or by nothing; that much is given back, and nothing below `now`. A `now` older
    /// than that of a later charge, by x, may give back x too much.
    pub(crate) const fn settle(
        self,
        debt: u64,
        reserved: u64,
        truth: u64,
        since: Mono,
        now: Mono,
    ) -> u64 {
        let passed = self.units_of(now.since(since).as_nanos());
        let now = self.units_of(now.as_nanos());
        let (charged, due) = (self.cost_of(reserved), self.cost_of(truth));
        if due > charged {
            let base = if debt > now { debt } else { now };
            return base.saturating_add(due - charged);
        }
        let refund = (charged - due).saturating_sub(passed);
        let least = if debt < now { debt } else { now };
        let after = debt.saturating_sub(refund);
        if after > least { after } else { least }
    }

    /// The debt as if a burst had just been used.
    pub(crate) const fn spent(self, debt: u64, now: Mono) -> u64 {
        let full = self.units_of(now.as_nanos()).saturating_add(self.reach);
        if debt > full { debt } else { full }
    }

    /// The most that may pass at once: it does only when nothing is owed.
    pub(crate) const fn burst(self) -> u64 {
        self.burst
    }

    /// How much weight is still owed, rounded up.
    pub(crate) fn owed(self, debt: u64, now: Mono) -> u64 {
        let units = debt.saturating_sub(self.units_of(now.as_nanos()));
        weight_of(units, self.cost, self.lot)
    }

    /// Whether a debt is all paid at `now`: as good as a new one.
    pub(crate) const fn is_paid(self, debt: u64, now: Mono) -> bool {
        match self.units(now) {
            Some(now) => debt <= now,
            None => false,
        }
    }

    /// How long after its last charge within the bound all is paid, rounded up.
    pub(crate) const fn recovery(self) -> Span {
        Span::from_nanos((self.reach + 1).div_ceil(1 << self.shift))
    }

    /// Whether a debt means the same to both.
    pub(crate) fn measures_as(self, other: Rate) -> bool {
        (self.cost, self.lot, self.shift, self.by) == (other.cost, other.lot, other.shift, other.by)
    }

    /// Whether a charge can be undone. What is settled lowers the debt, so that later charges may bring
    /// it back to a value that it had: then it no longer says that nobody charged since. Only weights are settled.
    pub(crate) const fn can_undo(self) -> bool {
        matches!(self.by, Unit::Calls)
    }

    /// A debt as seen from `now`.
    pub(crate) fn save(self, debt: u64, now: Mono) -> Owed {
        let at = self.units_of(now.as_nanos());
        let paid = at.saturating_sub(debt) >> self.shift;
        let Rate { cost, lot, shift, .. } = self;
        Owed { cost, lot, shift, units: debt.saturating_sub(at), paid }
    }

    /// The debt that was saved, by this limit's measure, and whether it holds more than is known to have passed. None if it can
    /// be none's.
    ///
    /// At a refill at least as fast as the old one, the same calls never leave more weight owed: what
    /// was owed is owed still. At a slower one they might have left a whole burst owed when the last of
    /// them passed: what is unknown counts as passed.
    pub(crate) fn restored(self, owed: &Owed, now: Mono) -> Option<(u64, bool)> {
        if owed.cost == 0 || owed.lot == 0 || owed.shift > MAX_SHIFT {
            return None;
        }
        let at = self.units_of(now.as_nanos());
        if (owed.cost, owed.lot, owed.shift) == (self.cost, self.lot, self.shift) {
            return Some((if owed.units > 0 { at.saturating_add(owed.units) } else { 0 }, false));
        }
        let weight = weight_of(owed.units, owed.cost, owed.lot);
        let carried = at.saturating_add(self.cost_of(weight));
        let price = |cost: u64, shift: u32, lot: u64| {
            (u128::from(cost) << (MAX_SHIFT - shift)).checked_mul(u128::from(lot))
        };
        let own = price(self.cost, self.shift, owed.lot);
        let old = price(owed.cost, owed.shift, self.lot);
        if own.zip(old).is_some_and(|(own, old)| own <= old) {
            return Some((if owed.units > 0 { carried } else { 0 }, false));
        }
        let full = at.saturating_add(self.reach).saturating_sub(self.units_of(owed.paid));
        Some((carried.max(full), full > carried))
    }

    /// What an amount costs, rounded up to a unit; saturates.
    #[inline]
    const fn cost_of(self, amount: u64) -> u64 {
        if self.lot == 1 {
            return self.cost.saturating_mul(amount);
        }
        match self.cost.checked_mul(amount) {
            Some(cost) => cost.div_ceil(self.lot),
            None => self.large_cost_of(amount),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "what does not fit is saturated before")]
    const fn large_cost_of(self, amount: u64) -> u64 {
        let cost = (self.cost as u128 * amount as u128).div_ceil(self.lot as u128);
        if cost > u64::MAX as u128 { u64::MAX } else { cost as u64 }
    }

    const fn units(self, now: Mono) -> Option<u64> {
        if now.as_nanos() > u64::MAX >> self.shift {
            return None;
        }
        Some(now.as_nanos() << self.shift)
    }

    /// Units of so many nanoseconds; saturates.
    const fn units_of(self, nanos: u64) -> u64 {
        nanos.saturating_mul(1 << self.shift)
    }
}

/// How much weight so many units pay for, rounded up; saturates.
fn weight_of(units: u64, cost: u64, lot: u64) -> u64 {
    let weight = (u128::from(units) * u128::from(lot)).div_ceil(u128::from(cost.max(1)));
    u64::try_from(weight).unwrap_or(u64::MAX)
}

/// Euclid's algorithm.
const fn common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
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
    use crate::limit::NEVER;
    use crate::policy::Unit;
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    const SECOND: Span = Span::from_secs(1);

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    fn calls(count: u64, per: Span, burst: u64) -> Result<Rate, (String, String)> {
        Rate::new(count, per, burst, Unit::Calls)
    }

    fn weights(count: u64, per: Span, burst: u64) -> Result<Rate, (String, String)> {
        Rate::new(count, per, burst, Unit::Weight)
    }

    /// Goal: numbers that can never pass, or that would be coarse, are refused.
    #[test]
    fn bad_numbers_are_refused() {
        assert!(calls(0, SECOND, 1).is_err());
        assert!(calls(1, Span::ZERO, 1).is_err());
        assert!(calls(1, SECOND, 0).is_err());
        assert!(calls(1, Span::from_secs(1 << 33), 1 << 40).is_err());
        assert!(calls(8_000_000, SECOND, 1).is_ok());
        assert!(calls(1_000_000_000, SECOND, 1).is_ok(), "divides evenly");
        assert!(calls(900_000_000, SECOND, 1).is_err(), "would be 11 % too strict");
        assert!(calls(5_000_000_000, SECOND, 1).is_err());
        assert!(calls(4_000_000_000, SECOND, 1).is_ok());
        assert!(weights(10_000_000_000, SECOND, 1_000).is_err(), "refilled in 100 ns");
        assert!(weights(10_000_000_000, SECOND, 1_250).is_ok());
        assert!(weights(u64::MAX, SECOND, u64::MAX).is_ok());
        assert!(weights(u64::MAX, Span::from_nanos(1), u64::MAX).is_err());
        assert!(weights(1, Span::from_nanos(u64::MAX), u64::MAX).is_err());
    }

    /// Goal: the burst passes at once, the next call waits exactly one refill.
    #[test]
    fn burst_then_refill() {
        let rate = calls(10, SECOND, 3).unwrap();
        let mut debt = 0;
        for _ in 0..3 {
            debt = rate.take(debt, 1, at(5)).unwrap();
        }
        assert_eq!(rate.take(debt, 1, at(5)), Err(Span::from_millis(100)));
        assert!(rate.take(debt, 1, at(5 + 99_999_999)).is_err());
        assert!(rate.take(debt, 1, at(5 + 100_000_000)).is_ok());
    }

    /// Goal: weights add up: a burst in pieces is a burst, and more than a burst never passes.
    #[test]
    fn a_burst_in_pieces_is_a_burst() {
        let rate = weights(3, SECOND, 10).unwrap();
        let mut debt = 0;
        for amount in [1, 2, 3, 4] {
            debt = rate.take(debt, amount, at(7)).unwrap();
        }
        assert_eq!((rate.owed(debt, at(7)), rate.take(debt, 11, at(7))), (10, Err(NEVER)));
        assert!(rate.take(debt, 0, at(7)).is_ok());
        assert!(rate.take(debt, 1, at(7)).is_err());
        assert_eq!(
            rate.take(rate.spent(0, at(9)), 10, at(9)),
            Err(Span::from_nanos(3_333_333_340))
        );
    }

    /// Goal: where a unit of time is worth many of weight, a burst in pieces is no more than a burst, and a
    /// whole one passes when nothing is owed.
    #[test]
    fn a_burst_is_rounded_down() {
        // 12.5 of weight for each unit: a burst is worth 1,000.08 units.
        let rate = weights(100_000_000_000, SECOND, 12_501).unwrap();
        let debt = rate.take(0, 12_500, at(9)).unwrap();
        assert_eq!(rate.take(debt, 2, at(9)), Err(Span::from_nanos(1)));
        let debt = rate.take(0, 12_501, at(9)).unwrap();
        assert_eq!(rate.take(debt, 12_501, at(9)), Err(Span::from_nanos(126)));
        assert!(rate.take(debt, 12_501, at(9 + 126)).is_ok());
    }

    /// Goal: ten gigabytes a second in packets, and a billion dollars a second in cents, are granted to 0.1 %.
    #[test]
    fn fast_refills_are_granted() {
        for (count, burst, amount) in [
            (10_000_000_000, 1_000_000, 1_500),
            (10_000_000_001, 1_000_001, 1_499),
            (100_000_000_000, 10_000_000_000, 12_345_678),
            (9_999_999_967, 65_536, 2_000),
        ] {
            let rate = weights(count, SECOND, burst).unwrap();
            let (mut debt, mut now, mut passed) = (rate.spent(0, at(0)), 0, 0_u128);
            for _ in 0..20_000 {
                match rate.take(debt, amount, at(now)) {
                    Ok(after) => (debt, passed) = (after, passed + u128::from(amount)),
                    Err(wait) => now += wait.as_nanos(),
                }
            }
            let granted = u128::from(now) * u128::from(count) / 1_000_000_000;
            assert!(passed <= granted + 1 && passed + u128::from(amount) >= granted * 999 / 1_000);
        }
    }

    /// Goal: at the end of time it refuses and does not overflow.
    #[test]
    fn the_end_of_time_refuses() {
        for (count, burst) in [(1, 1), (7_999_999, 1_000), (10_000_000_001, 1_000_001)] {
            let rate = weights(count, SECOND, burst).unwrap();
            for amount in [1, burst] {
                assert!(rate.take(0, amount, at(u64::MAX)).is_err());
                assert!(rate.take(u64::MAX, amount, at(0)).is_err());
                assert!(rate.take(u64::MAX, amount, at(u64::MAX)).is_err());
            }
            for (reserved, truth) in [(0, u64::MAX), (u64::MAX, 0), (1, 2)] {
                for now in [0, u64::MAX] {
                    let debt = rate.settle(u64::MAX, reserved, truth, at(0), at(now));
                    assert!(debt >= rate.settle(0, reserved, truth, at(0), at(now)));
                }
            }
            assert_eq!(rate.owed(0, at(u64::MAX)), 0);
            let owed = rate.save(u64::MAX, at(0));
            assert_eq!(rate.restored(&owed, at(u64::MAX)), Some((u64::MAX, false)));
        }
    }

    /// A refill, a length, a burst and amounts up to a little more than it.
    fn lives() -> impl Strategy<Value = (Rate, u64, u64, u64, Vec<(i64, u64)>)> {
        let numbers = prop_oneof![
            (1_u64..2_000_000, 1_u64..3_000_000_000, 1_u64..50),
            // Refills that divide by no shift: each cost is rounded by itself.
            (
                2_000_000_000_u64..200_000_000_000,
                900_000_000_u64..1_100_000_000,
                150_000_u64..999_999
            ),
        ];
        let made = numbers.prop_filter_map("coarse", |(count, per, burst)| {
            let rate = weights(count, Span::from_nanos(per), burst).ok()?;
            Some((rate, count, per, burst))
        });
        made.prop_flat_map(|(rate, count, per, burst)| {
            let amounts = prop_oneof![1..=burst, Just(burst), 1..=burst.min(3), 0..=burst + 1];
            // Steps of some thousandths of the time that a burst takes to refill.
            let refill = i64::try_from(u128::from(burst) * u128::from(per) / u128::from(count));
            let step = (refill.unwrap_or(i64::MAX) / 1_000).max(1);
            let steps = proptest::collection::vec((-100_i64..400, amounts), 1..120);
            let steps = steps.prop_map(move |steps| {
                steps.into_iter().map(|(time, amount)| (time * step, amount)).collect::<Vec<_>>()
            });
            (Just(rate), Just(count), Just(per), Just(burst), steps)
        })
    }

    proptest! {
        /// Goal: the plain form says what the rate says, or nothing.
        #[test]
        fn the_plain_form_agrees(
            count in 1_u64..5_000_000, per in 1_u64..5_000_000_000, burst in 1_u64..1_000,
            debt in any::<u64>(), near in 0_u64..20_000_000_000, now in any::<u64>(), far: bool,
        ) {
            let Ok(rate) = Rate::new(count, Span::from_nanos(per), burst, Unit::Calls) else {
                return Ok(());
            };
            let Some(plain) = rate.plain() else { return Ok(()) };
            let now = if far { now } else { now >> 20 };
            let debt = if far { debt } else { (now << rate.shift).saturating_add(near) };
            let whole = rate.take(debt, 1, at(now));
            match plain.take(debt, at(now)) {
                Some(after) => prop_assert_eq!(whole, Ok(after)),
                None => prop_assert!(whole.is_err() || now > u64::MAX >> (rate.shift + 1)),
            }
        }

        /// Goal: in any interval at most burst + rate × t pass, also when `now` runs back;
        /// and the promised wait is exact to the nanosecond.
        #[test]
        fn bound_and_wait_hold((rate, count, per, burst, steps) in lives()) {
            let (mut debt, mut now) = (0, 1_000_000_000_000_i64);
            let mut passed: Vec<(u64, u64)> = Vec::new();
            for (step, amount) in steps {
                now = (now + step).max(0);
                let nanos = u64::try_from(now).unwrap();
                match rate.take(debt, amount, at(nanos)) {
                    Ok(after) => {
                        debt = after;
                        // The decision counts at the newest instant known to the word.
                        passed.push((nanos.max(passed.last().map_or(0, |last| last.0)), amount));
                    }
                    Err(wait) if amount > burst => prop_assert_eq!(wait, NEVER),
                    Err(wait) => {
                        let later = nanos + wait.as_nanos();
                        prop_assert!(rate.take(debt, amount, at(later)).is_ok());
                        prop_assert!(rate.take(debt, amount, at(later - 1)).is_err());
                    }
                }
            }
            for (i, (first, _)) in passed.iter().enumerate() {
                let mut sum = 0_u128;
                for (last, amount) in &passed[i..] {
                    sum += u128::from(*amount);
                    let flow = u128::from(count) * u128::from(last - first);
                    prop_assert!((sum - sum.min(u128::from(burst))) * u128::from(per) <= flow);
                }
            }
        }

        /// Goal: a settlement never leaves less owed than if the truth had been charged at once, whatever was
        /// charged and settled meanwhile; with no time passed it is exact; and a call that is settled
        /// above its reserve is charged in full.
        #[test]
        fn a_settlement_is_never_freer(
            (rate, _, _, burst, steps) in lives(),
            truths in proptest::collection::vec((0_u64..4, 0_usize..6), 120),
        ) {
            // Beside the debt: what it would be if each settled call had been charged its truth when it was taken.
            let (mut debt, mut now) = (0, 1_000_000_000_000_u64);
            let mut charges: Vec<(u64, u64)> = Vec::new();
            let mut waiting: Vec<(usize, u64)> = Vec::new();
            for ((step, amount), (part, which)) in steps.into_iter().zip(truths) {
                now += step.unsigned_abs();
                if let Ok(after) = rate.take(debt, amount, at(now)) {
                    debt = after;
                    waiting.push((charges.len(), amount));
                    charges.push((now, amount));
                }
                if !waiting.is_empty() && which < 4 {
                    let (index, reserved) = waiting.remove(which % waiting.len());
                    let truth = if part == 3 { reserved + burst / 2 } else { reserved * part / 3 };
                    let before = debt;
                    debt = rate.settle(debt, reserved, truth, at(charges[index].0), at(now));
                    if charges[index].0 == now && index + 1 == charges.len() {
                        prop_assert_eq!(
                            debt,
                            before + rate.cost_of(truth) - rate.cost_of(reserved)
                        );
                    }
                    charges[index].1 = truth;
                }
                let mut beside = 0;
                for &(then, amount) in &charges {
                    beside = rate.units_of(then).max(beside) + rate.cost_of(amount);
                }
                prop_assert!(debt.max(rate.units_of(now)) >= beside, "{debt} below {beside}");
            }
        }

        /// Goal: a debt carried to another rate is never freer than if that rate had counted the same calls all
        /// along; and carried to its own it is the same.
        #[test]
        fn a_carried_debt_is_never_freer(
            (rate, _, _, _, steps) in lives(),
            (count, per, burst) in (1_u64..2_000_000, 1_u64..3_000_000_000, 1_u64..50),
            later in 0_u64..1_100,
        ) {
            let Ok(other) = weights(count, Span::from_nanos(per), burst) else { return Ok(()) };
            let (mut debt, mut beside, mut now) = (0, 0, 1_000_000_000_000_u64);
            for (step, amount) in steps {
                now += step.unsigned_abs();
                if let Ok(after) = rate.take(debt, amount, at(now)) {
                    debt = after;
                    // What the other had refused it would not owe.
                    let next = other.units_of(now).max(beside) + other.cost_of(amount);
                    beside = next.min(other.spent(0, at(now)).max(beside));
                }
            }
            now += other.recovery().as_nanos().max(1_000) / 1_000 * later;
            let (same, padded) = rate.restored(&rate.save(debt, at(now)), at(now + 5)).unwrap();
            let left = debt.saturating_sub(rate.units_of(now));
            prop_assert_eq!((same.saturating_sub(rate.units_of(now + 5)), padded), (left, false));
            let (carried, _) = other.restored(&rate.save(debt, at(now)), at(now)).unwrap();
            prop_assert!(carried.max(other.units_of(now)) >= beside, "{carried} below {beside}");
        }
    }
}
