//! A count over a sliding window in one word of two half-buckets, pure; it holds no atomic and reads no clock.
//!
//! A window of length w is two halves of w/2: its count is the last half plus the current one, so it
//! covers between w/2 and w. The word packs, from the top: the stamp (number of the current half, wrapping),
//! the last half's count, the current half's count. Within a half the count only grows; so the largest
//! count of a window is always found at the end of a half, where whoever turns it sees it.

use crate::time::{Mono, Span};

/// The form of one window's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Halves {
    /// Nanoseconds in a half, never zero.
    half: u64,
    /// Bits of each of the two counts; the stamp has the rest.
    bits: u32,
}

/// A word brought to some instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turned {
    pub(crate) word: u64,
    /// The window's count at the end of the half that ended, if one did.
    pub(crate) ended: Option<u64>,
}

impl Halves {
    /// A window of `length` with counts of `bits` bits, 13 to 28; a length under 2 ns counts as 2.
    pub(crate) const fn new(length: Span, bits: u32) -> Halves {
        let half = length.as_nanos() / 2;
        Halves { half: if half == 0 { 1 } else { half }, bits }
    }

    /// The whole window's length.
    pub(crate) const fn length(self) -> Span {
        Span::from_nanos(self.half.saturating_mul(2))
    }

    /// The largest count of a half. Some room above it is left for threads that add at once.
    pub(crate) const fn most(self) -> u64 {
        self.mask() - ROOM
    }

    /// Whether one more may simply be added to the word's low bits in the half of this number.
    #[inline(always)]
    pub(crate) const fn takes(self, word: u64, number: u64) -> bool {
        self.is_current(self.ahead(word, number)) && word & self.mask() < self.most()
    }

    /// The word brought to `now`. A word that is a little newer than `now` stays as it is.
    pub(crate) const fn turned(self, word: u64, now: Mono) -> Turned {
        self.turned_to(word, self.number(now))
    }

    const fn turned_to(self, word: u64, number: u64) -> Turned {
        let ahead = self.ahead(word, number);
        if self.is_current(ahead) {
            return Turned { word, ended: None };
        }
        let last = if ahead == 1 { word & self.mask() } else { 0 };
        let stamp = number & self.stamps();
        let word_now = stamp << (2 * self.bits) | last << self.bits;
        Turned { word: word_now, ended: Some(self.sum(word)) }
    }

    /// One more call in the half of this number; a full half stays full.
    pub(crate) const fn added(self, word: u64, number: u64) -> Turned {
        let turned = self.turned_to(word, number);
        if turned.word & self.mask() < self.most() {
            Turned { word: turned.word + 1, ended: turned.ended }
        } else {
            turned
        }
    }

    /// Calls in the window at `now`.
    pub(crate) const fn count(self, word: u64, now: Mono) -> u64 {
        self.count_in(word, self.number(now))
    }

    /// Calls in the window in the half of this number.
    #[inline]
    pub(crate) const fn count_in(self, word: u64, number: u64) -> u64 {
        self.sum(self.turned_to(word, number).word)
    }

    /// Both halves of a word, as they stand.
    #[inline(always)]
    pub(crate) const fn sum(self, word: u64) -> u64 {
        ((word >> self.bits) & self.mask()) + (word & self.mask())
    }

    /// The last and the current half at `now`.
    pub(crate) const fn parts(self, word: u64, now: Mono) -> (u64, u64) {
        let word = self.turned(word, now).word;
        ((word >> self.bits) & self.mask(), word & self.mask())
    }

    /// The number of the half that `now` lies in.
    pub(crate) const fn number(self, now: Mono) -> u64 {
        now.as_nanos() / self.half
    }

    /// How much time the window's count covers at `now`: between a half and the whole.
    pub(crate) const fn covered(self, now: Mono) -> Span {
        Span::from_nanos(self.half.saturating_add(now.as_nanos() % self.half))
    }

    /// How long ago the word's half began; `None` for a word that was never written. As right as the stamp's
    /// range is long.
    pub(crate) const fn idle(self, word: u64, now: Mono) -> Option<Span> {
        if word == 0 {
            return None;
        }
        let ahead = self.ahead(word, self.number(now));
        if self.is_current(ahead) {
            return Some(Span::ZERO);
        }
        Some(Span::from_nanos(ahead.saturating_mul(self.half)))
    }

    /// By how many halves the one of this number is ahead of the word, wrapping.
    #[inline(always)]
    const fn ahead(self, word: u64, number: u64) -> u64 {
        number.wrapping_sub(word >> (2 * self.bits)) & self.stamps()
    }

    const fn is_current(self, ahead: u64) -> bool {
        ahead == 0 || ahead > self.stamps() - BACK
    }

    const fn mask(self) -> u64 {
        (1 << self.bits) - 1
    }

    const fn stamps(self) -> u64 {
        (1 << (64 - 2 * self.bits)) - 1
    }
}

/// Halves that a clock may run back before the word counts as old, not new. Few, since the stamp wraps: what
/// was idle for nearly a whole lap of it must not pass for the future.
const BACK: u64 = 16;
/// More threads than this never add at one instant.
const ROOM: u64 = 1 << 12;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Halves;
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    /// Goal: the count is the last half and the current one, and empties as halves pass.
    #[test]
    fn two_halves_slide() {
        let form = Halves::new(Span::from_secs(1), 22);
        let mut word = 0;
        for _ in 0..5 {
            word = form.added(word, form.number(at(10_100))).word;
        }
        assert_eq!(form.count(word, at(10_499)), 5);
        let turned = form.added(word, form.number(at(10_500)));
        assert_eq!(turned.ended, Some(5));
        assert_eq!(form.count(turned.word, at(10_900)), 6);
        assert_eq!(form.parts(turned.word, at(10_900)), (5, 1));
        assert_eq!(form.count(turned.word, at(11_000)), 1);
        assert_eq!(form.count(turned.word, at(11_500)), 0);
        assert_eq!(form.idle(turned.word, at(20_500)), Some(Span::from_secs(10)));
    }

    /// Goal: a clock that runs back a little neither loses nor turns anything.
    #[test]
    fn newer_state_wins() {
        let form = Halves::new(Span::from_secs(1), 22);
        let word = form.added(0, form.number(at(10_600))).word;
        let again = form.added(word, form.number(at(10_000)));
        assert_eq!((form.sum(again.word), again.ended), (2, None));
        assert_eq!(form.count(again.word, at(10_700)), 2);
    }

    /// Goal: a full half stays full and spills into nothing.
    #[test]
    fn a_full_half_stays_full() {
        let form = Halves::new(Span::from_secs(1), 13);
        let mut word = 0;
        for _ in 0..10_000 {
            word = form.added(word, form.number(at(600))).word;
        }
        assert_eq!(form.sum(word), form.most());
        assert!(!form.takes(word, form.number(at(600))));
    }

    proptest! {
        /// Goal: against a list of all instants, the count is exactly that of the last half and the current one.
        #[test]
        fn counts_as_a_list_does(
            steps in proptest::collection::vec(0_u64..900, 1..300), bits in 20_u32..27,
        ) {
            let form = Halves::new(Span::from_millis(200), bits);
            let (mut word, mut now, mut seen) = (0, 1_000_000, Vec::new());
            for step in steps {
                now += step;
                word = form.added(word, form.number(at(now))).word;
                seen.push(now / 100);
                let half = now / 100;
                let exact = seen.iter().filter(|&&at| at == half || at + 1 == half).count();
                prop_assert_eq!(form.count(word, at(now)), u64::try_from(exact).unwrap());
            }
        }

        /// Goal: no word and no instant makes it panic, or a count above both halves.
        #[test]
        fn total(word: u64, now: u64, length: u64, bits in 13_u32..28) {
            let form = Halves::new(Span::from_nanos(length), bits);
            let now = Mono::from_nanos(now);
            let _ = (form.takes(word, form.number(now)), form.idle(word, now), form.covered(now));
            prop_assert!(form.count(word, now) <= 2 << bits);
            prop_assert!(form.sum(form.added(word, form.number(now)).word) <= 2 << bits);
        }
    }
}
