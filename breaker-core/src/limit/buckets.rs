//! At most N in any interval of length W, by sub-buckets: what the words mean; it holds no atomic.
//!
//! Time is cut into *ticks* of a 64th of W (rounded up to a nanosecond; a shorter W has fewer). A call counts
//! in the bucket of its tick, and a bucket counts whole until all its tick is W or more in the past. So no interval of length
//! W ever holds more than N, and what passed at t counts until at most `t + W + a tick + 63 ns`: it is never freer
//! than the exact window, and stricter by no more than that.
//!
//! The head holds the current tick. A bucket holds its count (48 bits), the low bits of its tick, and whether it is
//! *frozen*. Only the current bucket ever grows, and it is frozen before the next one begins; every other
//! only shrinks, when a cost turns out less, or is cleared, when its time is over. So a sum of all others
//! that was taken during a tick is never less than what they hold, until that tick ends; and a swap of the current
//! bucket for itself with more in it, which fails if anybody else put something in or the tick ended, admits exactly
//! what fits beside that sum.

use crate::limit::NEVER;
use crate::time::{Mono, Span};

/// A count and a length, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    count: u64,
    length: u64,
    /// Length of a tick.
    width: u64,
    /// Ticks before the current one that still count.
    behind: u64,
}

impl Buckets {
    /// At most `count` in any `length`; the error is a problem and a hint.
    pub(crate) fn new(count: u64, length: Span) -> Result<Buckets, (String, String)> {
        let told = |problem: String, hint: &str| Err((problem, hint.to_owned()));
        if count == 0 {
            let hint = "use a count of at least 1, or kill the scope";
            return told("0 can never pass".into(), hint);
        }
        if count > MAX_COUNT {
            let problem = format!("{count} is more than a window holds ({MAX_COUNT})");
            return told(problem, "use a coarser unit of weight");
        }
        if length == Span::ZERO {
            return told("no time to count over".into(), "use a length above zero");
        }
        if length.as_nanos() > END {
            return told("a window of more than 146 years".into(), "use a shorter one");
        }
        let length = length.as_nanos();
        let width = length.div_ceil(PARTS);
        Ok(Buckets { count, length, width, behind: length.div_ceil(width) })
    }

    /// Words of memory: the head, the next tick, the sum of all others, and the buckets.
    pub(crate) const fn words(self) -> usize {
        self.buckets() + 3
    }

    /// Buckets in the ring.
    #[expect(clippy::cast_possible_truncation, reason = "there are 65 at most")]
    pub(crate) const fn buckets(self) -> usize {
        self.behind as usize + 1
    }

    /// The tick of an instant. Ticks begin where an instant a whole window before the origin still has one.
    pub(crate) const fn tick(self, nanos: u64) -> u64 {
        nanos.saturating_add(self.lead()) / self.width
    }

    /// Whether `now` lies in this tick. Saves a division.
    #[inline]
    pub(crate) const fn is_in(self, tick: u64, now: Mono) -> bool {
        let start = tick.saturating_mul(self.width);
        match now.as_nanos().saturating_add(self.lead()).checked_sub(start) {
            Some(since) => since < self.width,
            None => false,
        }
    }

    /// Which bucket is a tick's.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a remainder by 65 at most")]
    pub(crate) const fn bucket_of(self, tick: u64) -> usize {
        (tick % (self.behind + 1)) as usize
    }

    /// The ticks that count at a tick: it, and those before it.
    pub(crate) const fn counting(self, tick: u64) -> std::ops::RangeInclusive<u64> {
        tick.saturating_sub(self.behind)..=tick
    }

    /// Whether so much is allowed in all.
    #[inline]
    pub(crate) const fn fits(self, sum: u64) -> bool {
        sum <= self.count
    }

    /// Whether so much is ever allowed at `now`: never more than the count, nothing at the end of time.
    #[inline]
    pub(crate) const fn is_possible(self, amount: u64, now: Mono) -> bool {
        amount <= self.count && now.as_nanos() <= END
    }

    /// The exact wait until a sum, with what is asked for, fits: until the tick ends in which enough of the oldest has
    /// left. `counts` are those of the ticks that count at `tick`, the oldest first.
    pub(crate) fn wait(
        self,
        tick: u64,
        counts: impl Iterator<Item = u64>,
        mut sum: u64,
        now: Mono,
    ) -> Span {
        let oldest = *self.counting(tick).start();
        for (bucket, count) in (oldest..).zip(counts) {
            sum = sum.saturating_sub(count);
            if self.fits(sum) {
                // A bucket leaves when the tick `behind + 1` after it begins; ticks lead by as many.
                return match bucket.checked_mul(self.width) {
                    Some(leaves) => Span::from_nanos(leaves.saturating_sub(now.as_nanos())),
                    None => NEVER,
                };
            }
        }
        NEVER
    }

    /// The current bucket's word as if all had just been used.
    pub(crate) const fn spent(self, word: u64) -> u64 {
        let count = if count_of(word) > self.count { count_of(word) } else { self.count };
        word & !COUNT | count
    }

    /// How long after it was charged a call still counts, at most.
    pub(crate) const fn recovery(self) -> Span {
        Span::from_nanos(self.lead())
    }

    /// Whether words mean the same to both.
    pub(crate) const fn measures_as(self, other: Buckets) -> bool {
        self.length == other.length
    }

    /// The length of every interval.
    pub(crate) const fn length(self) -> Span {
        Span::from_nanos(self.length)
    }

    /// The most that may pass.
    pub(crate) const fn count(self) -> u64 {
        self.count
    }

    /// How long ago the last instant of a tick was.
    pub(crate) const fn age(self, tick: u64, now: Mono) -> u64 {
        let next = tick.saturating_add(1).saturating_mul(self.width);
        now.as_nanos().saturating_add(self.lead() + 1).saturating_sub(next)
    }

    /// How long ago a tick began.
    pub(crate) const fn start_age(self, tick: u64, now: Mono) -> u64 {
        let start = tick.saturating_mul(self.width);
        now.as_nanos().saturating_add(self.lead()).saturating_sub(start)
    }

    /// The tick of an instant so long ago, if it still counts at `now`.
    pub(crate) const fn tick_before(self, age: u64, now: Mono) -> Option<u64> {
        match now.as_nanos().saturating_add(self.lead()).checked_sub(age) {
            Some(instant) => {
                let tick = instant / self.width;
                if tick + self.behind >= self.tick(now.as_nanos()) { Some(tick) } else { None }
            }
            None => None,
        }
    }

    /// Ticks lead the caller's time by the ticks that count, and are no later than `END` with it.
    const fn lead(self) -> u64 {
        (self.behind + 1) * self.width
    }
}

/// A bucket of a tick that just began.
pub(crate) const fn begun(tick: u64) -> u64 {
    (tick & TAG) << TAG_SHIFT
}

/// What a bucket holds.
#[inline]
pub(crate) const fn count_of(word: u64) -> u64 {
    word & COUNT
}

/// Whether a bucket is this tick's, and may grow.
#[inline]
pub(crate) const fn is_growing(word: u64, tick: u64) -> bool {
    word & !COUNT == begun(tick)
}

/// Whether a bucket is this tick's, growing or not.
pub(crate) const fn is_of(word: u64, tick: u64) -> bool {
    word & !COUNT & !FROZEN == begun(tick)
}

/// The bucket with this amount more, up to its range.
#[inline]
pub(crate) const fn more(word: u64, amount: u64) -> u64 {
    let room = COUNT - count_of(word);
    word + if amount < room { amount } else { room }
}

/// The bucket with this amount less, down to nothing.
pub(crate) const fn less(word: u64, amount: u64) -> u64 {
    word - if amount < count_of(word) { amount } else { count_of(word) }
}

/// The bucket, never to grow again.
pub(crate) const fn frozen(word: u64) -> u64 {
    word | FROZEN
}

/// The word that keeps the sum of all buckets but a tick's.
#[inline]
pub(crate) const fn sum_word(tick: u64, sum: u64) -> u64 {
    begun(tick) | FROZEN | if sum < COUNT { sum } else { COUNT }
}

/// The sum of all buckets but this tick's, if the word keeps that.
#[inline]
pub(crate) const fn sum_of(word: u64, tick: u64) -> Option<u64> {
    if word & !COUNT == begun(tick) | FROZEN { Some(word & COUNT) } else { None }
}

/// Ticks in a window.
const PARTS: u64 = 64;
const COUNT_BITS: u32 = 48;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const FROZEN: u64 = 1 << COUNT_BITS;
/// The low 15 bits of a tick: a thread would have to sleep through 32,768 ticks to take one for another.
const TAG_SHIFT: u32 = COUNT_BITS + 1;
const TAG: u64 = (1 << (64 - TAG_SHIFT)) - 1;
/// A count, at most: half of a bucket's range, so that what is settled above its reserve fits beside it.
const MAX_COUNT: u64 = 1 << (COUNT_BITS - 1);
/// The last instant at which anything passes, and the longest window.
const END: u64 = (1 << 62) - 1;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{
        Buckets, begun, count_of, frozen, is_growing, is_of, less, more, sum_of, sum_word,
    };
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    /// Goal: numbers that can never pass or do not fit are refused.
    #[test]
    fn bad_numbers_are_refused() {
        let second = Span::from_secs(1);
        assert!(Buckets::new(0, second).is_err());
        assert!(Buckets::new(1, Span::ZERO).is_err());
        assert!(Buckets::new((1 << 47) + 1, second).is_err());
        assert!(Buckets::new(1, Span::from_nanos(1 << 62)).is_err());
        assert!(Buckets::new(1 << 47, Span::from_nanos((1 << 62) - 1)).is_ok());
    }

    /// Goal: words stay within their bits, and say whose they are.
    #[test]
    fn words_stay_within_their_bits() {
        let word = more(begun(7), u64::MAX);
        assert_eq!(
            (count_of(word), is_growing(word, 7), is_of(word, 7)),
            ((1 << 48) - 1, true, true)
        );
        assert_eq!((is_growing(frozen(word), 7), is_of(frozen(word), 7)), (false, true));
        assert!(!is_of(word, 8));
        assert_eq!(less(frozen(word), u64::MAX), frozen(begun(7)));
        assert_eq!(sum_of(0, 0), None, "fresh memory keeps no sum");
        assert_eq!(sum_of(sum_word(7, u64::MAX), 7), Some((1 << 48) - 1));
        assert_eq!(sum_of(sum_word(7, 3), 8), None);
    }

    proptest! {
        /// Goal: a tick counts for as long as anything in it may be within the window, and no longer than a
        /// tick and 63 ns more.
        #[test]
        fn ticks_count_long_enough(length in 1_u64..100_000, then in 0_u64..1_000_000) {
            let buckets = Buckets::new(1, Span::from_nanos(length)).unwrap();
            let tick = buckets.tick(then);
            prop_assert!(buckets.is_in(tick, at(then)));
            prop_assert!(!buckets.is_in(tick + 1, at(then)) && !buckets.is_in(tick - 1, at(then)));
            let counts = |now: u64| buckets.counting(buckets.tick(now)).contains(&tick);
            prop_assert!(counts(then + length - 1));
            prop_assert!(!counts(then + length + length.div_ceil(64) + 63));
            let none = std::iter::repeat_n(0, buckets.buckets() - 1).chain([1]);
            let leaves = then + buckets.wait(tick, none, 2, at(then)).as_nanos();
            prop_assert!(counts(leaves - 1) && !counts(leaves));
            prop_assert_eq!(buckets.age(tick, at(leaves)) <= leaves - then, true);
            prop_assert_eq!(buckets.tick_before(buckets.age(tick, at(then + length)), at(then + length)), Some(tick));
        }
    }
}
