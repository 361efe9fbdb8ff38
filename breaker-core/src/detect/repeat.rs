//! The same call over and over: a few slots that the most repeated of a key's calls find their way into; pure.
//!
//! A slot is one word of a window's two halves whose top 24 bits are the call's tag. A call that has no slot
//! takes one that counts nothing, else wears the weakest down by one: who repeats stays, who passes goes
//! (as in HeavyKeeper, Gong et al. 2018). So a slot never counts a call that was not made.

use super::{Sighting, long, told, wide, within};
use crate::time::Span;

/// The same call over and over.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Repeat {
    /// Identical calls in the window from which on it is found, 2 to 16 000. 25 unless said.
    pub count: u32,
    /// … and from which share of all the scope's calls on, 0 to 1. 0.1 unless said. Of what repeats with a tenth
    /// of the calls a few repetitions are missed; what repeats with a fifth is hardly ever.
    pub share: f64,
    /// The window, 2 s to 1 h. 60 s unless said.
    pub window: Span,
}

impl Default for Repeat {
    fn default() -> Repeat {
        Repeat { count: 25, share: 0.1, window: Span::from_secs(60) }
    }
}

/// What one call does to the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slotted {
    /// The slot to write …
    pub(crate) slot: usize,
    /// … with this word.
    pub(crate) word: u64,
    /// How often this call was counted in the window, this time too; 0 if it has no slot.
    pub(crate) count: u64,
}

impl Repeat {
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        if !(2..=16_000).contains(&self.count) {
            return told("a repetition is 2 to 16 000 calls", "use 25");
        }
        within("share", self.share, 0.0, 1.0)?;
        long("window", self.window, Span::from_secs(2), Span::from_secs(3_600))
    }

    /// Whether so many identical calls of so many are too many.
    pub(crate) fn judge(&self, count: u64, of: u64) -> Option<Sighting> {
        let (bound, of) = (u64::from(self.count), of.max(count));
        (count >= bound && wide(count) >= self.share * wide(of)).then(|| Sighting {
            value: wide(count),
            bound: wide(bound),
            window: self.window,
            count,
            of,
            learned: false,
        })
    }

    /// What a call with this fingerprint does to the slots in the half window of this number.
    #[inline]
    pub(crate) fn slot(&self, slots: &[u64; SLOTS], fingerprint: u64, half: u64) -> Slotted {
        let stamp = half & STAMPS;
        let tag = (fingerprint >> (64 - TAG_BITS)) << (64 - TAG_BITS);
        let first = usize::try_from(fingerprint & 0xffff).unwrap_or(0) % SLOTS;
        // Its own slot, if there is one …
        let own =
            |&(_, word): &(usize, u64)| (word ^ tag) & TAG_MASK == 0 && count(word, stamp) > 0;
        if let Some((slot, word)) = (0..).zip(*slots).find(own) {
            let word = turn(word, stamp);
            let word = if word & MOST < MOST { word + 1 } else { word };
            return Slotted { slot, word, count: sum(word) };
        }
        // … else the one with the least count. Among equals the fingerprint chooses, so that no slot is always the one.
        let (mut least, mut at, mut word) = (u64::MAX, 0, 0);
        for (slot, &seen) in slots.iter().enumerate() {
            let behind = if slot < first { slot + SLOTS - first } else { slot - first };
            let rank = count(seen, stamp) << 3 | behind as u64;
            if rank < least {
                (least, at, word) = (rank, slot, seen);
            }
        }
        let word = turn(word, stamp);
        if sum(word) == 0 {
            return Slotted { slot: at, word: tag | stamp << STAMP_AT | 1, count: 1 };
        }
        // The older half wears down first; a slot worn to nothing is the newcomer's at once.
        let worn = if word >> COUNT_BITS & MOST > 0 { word - (1 << COUNT_BITS) } else { word - 1 };
        if sum(worn) == 0 {
            return Slotted { slot: at, word: tag | stamp << STAMP_AT | 1, count: 1 };
        }
        Slotted { slot: at, word: worn, count: 0 }
    }
}

/// A slot brought to the half of `stamp`. One of a little later stays as it is.
fn turn(slot: u64, stamp: u64) -> u64 {
    let ahead = stamp.wrapping_sub(slot >> STAMP_AT) & STAMPS;
    let last = if ahead == 1 { slot & MOST } else { 0 };
    let turned = slot & TAG_MASK | stamp << STAMP_AT | last << COUNT_BITS;
    if ahead == 0 || ahead > STAMPS - BACK { slot } else { turned }
}

/// What a slot counts in the half of `stamp`.
#[inline(always)]
fn count(slot: u64, stamp: u64) -> u64 {
    let ahead = stamp.wrapping_sub(slot >> STAMP_AT) & STAMPS;
    let current = slot & MOST;
    let later = if ahead == 1 { current } else { 0 };
    if ahead == 0 || ahead > STAMPS - BACK { current + (slot >> COUNT_BITS & MOST) } else { later }
}

const fn sum(slot: u64) -> u64 {
    (slot >> COUNT_BITS & MOST) + (slot & MOST)
}

/// Slots of a scope.
pub(crate) const SLOTS: usize = 7;
const TAG_BITS: u32 = 24;
const TAG_MASK: u64 = !((1 << (64 - TAG_BITS)) - 1);
const COUNT_BITS: u32 = 14;
/// The largest count of a half.
const MOST: u64 = (1 << COUNT_BITS) - 1;
const STAMP_AT: u32 = 2 * COUNT_BITS;
const STAMPS: u64 = (1 << (64 - TAG_BITS - STAMP_AT)) - 1;
/// Halves that a clock may run back.
const BACK: u64 = 16;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Repeat, SLOTS};
    use crate::detect::halves::Halves;
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    struct Mix(u64);

    impl Mix {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }
    }

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    fn half(rule: &Repeat, now: Mono) -> u64 {
        Halves::new(rule.window, 22).number(now)
    }

    /// Calls `count` times, `share` per cent of them the same; how many of those until it is found.
    fn found_after(share: u64, count: u64, tail: u64, seed: u64) -> Option<u64> {
        let (rule, mut mix, mut slots, mut same) = (Repeat::default(), Mix(seed), [0; SLOTS], 0);
        for call in 0..count {
            let repeats = mix.next() % 100 < share;
            let fingerprint =
                if repeats { 0xabcd_ef12_3456_7890 } else { Mix(mix.next() % tail).next() };
            same += u64::from(repeats);
            let done =
                rule.slot(&slots, fingerprint, half(&rule, at(30_000 + call * 29_000 / count)));
            if let Some(slot) = slots.get_mut(done.slot) {
                *slot = done.word;
            }
            if rule.judge(done.count, call + 1).is_some() {
                return repeats.then_some(same);
            }
        }
        None
    }

    /// Goal: a loop is found at its 25th call, whatever else its key does; a busy key without one never.
    #[test]
    fn a_loop_is_found() {
        assert_eq!(found_after(100, 30, 1_000, 1), Some(25));
        let hits = |share| {
            (0..200).filter(|&seed| found_after(share, 600, 1 << 40, seed).is_some()).count()
        };
        assert!(hits(20) >= 198, "{}", hits(20));
        assert_eq!(hits(0), 0);
        // A hundred addresses, called at random: each a hundredth.
        assert!((0..50).all(|seed| found_after(0, 3_000, 100, seed).is_none()));
    }

    /// Goal: repetition that is slow, or rare among others, is none.
    #[test]
    fn slow_or_rare_repetition_is_none() {
        let (rule, mut slots) = (Repeat::default(), [0; SLOTS]);
        for call in 0..200 {
            let done = rule.slot(&slots, 7 << 50, half(&rule, at(call * 3_000)));
            slots[done.slot] = done.word;
            assert!(rule.judge(done.count, done.count).is_none());
        }
        assert!(rule.judge(30, 301).is_none());
        assert!(rule.judge(30, 300).is_some());
    }

    /// Goal: what was long ago is forgotten, and a clock that runs back a little is not.
    #[test]
    fn slots_turn() {
        let (rule, mut slots) =
            (Repeat { window: Span::from_secs(10), ..Repeat::default() }, [0; SLOTS]);
        let mut count = 0;
        for now in [50_000, 51_000, 49_000, 55_100, 59_900] {
            let done = rule.slot(&slots, 7 << 50, half(&rule, at(now)));
            slots[done.slot] = done.word;
            count = done.count;
        }
        assert_eq!(count, 5);
        assert_eq!(rule.slot(&slots, 7 << 50, half(&rule, at(60_000))).count, 3);
        assert_eq!(rule.slot(&slots, 7 << 50, half(&rule, at(70_000))).count, 1);
    }

    proptest! {
        /// Goal: no words and no call make it panic, and none is counted more often than it was made.
        #[test]
        fn total(slots: [u64; SLOTS], fingerprint: u64, now: u64, calls in proptest::collection::vec(0_u64..9, 1..200)) {
            let rule = Repeat::default();
            let done = rule.slot(&slots, fingerprint, half(&rule, Mono::from_nanos(now)));
            prop_assert!(done.slot < SLOTS);
            let (mut slots, mut made) = ([0; SLOTS], [0_u64; 9]);
            for (step, call) in (0..).zip(calls) {
                made[usize::try_from(call).unwrap()] += 1;
                let done = rule.slot(&slots, Mix(call).next(), half(&rule, at(step * 100)));
                slots[done.slot] = done.word;
                prop_assert!(done.count <= made[usize::try_from(call).unwrap()]);
            }
        }
    }
}
