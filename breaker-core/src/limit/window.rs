//! At most N in any interval of length W, exactly: what the words of a ring mean and what to do next; it holds no atomic.
//!
//! A ring has N slots and a head. A slot holds the instant at which its admission expires
//! (recorded instant + W) and the parity of its lap; the head holds lap and index of the slot that
//! is next, which is also the oldest. An admission swaps the next slot for its own, which is allowed
//! only if the old one has expired, and then advances the head. A slot thus changes only between instants at
//! least W apart, so no interval `(t − W, t]` holds more than N recorded instants; and the oldest
//! of N is asked, so nobody is refused while fewer than N passed in the last W.
//!
//! The recorded instant is `max(now, newest recorded)`: state newer than `now` wins.

use crate::time::{Mono, Span};

/// A count and a length, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    count: u64,
    length: u64,
}

/// What to do after a look at head, next slot and preceding slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// The next slot is taken already: advance the head for whoever took it, and look again.
    Advance,
    /// The three were not read of one moment: look again.
    Again,
    /// N passed in the last W: the exact wait until the oldest expires.
    Refuse(Span),
    /// Swap the next slot for this word, then advance the head.
    Write(u64),
}

impl Window {
    /// At most `count` in any `length`; the error is a problem and a hint.
    pub(crate) fn new(count: u64, length: Span) -> Result<Window, (String, String)> {
        let told = |problem: String, hint: &str| Err((problem, hint.to_owned()));
        if count == 0 {
            return told(
                "0 calls can never pass".into(),
                "use a count of at least 1, or kill the scope",
            );
        }
        if count > MAX_COUNT {
            return told(
                format!("{count} calls are more than an exact window holds ({MAX_COUNT})"),
                "use a rate, or a shorter window with a smaller count",
            );
        }
        if length == Span::ZERO {
            return told("no time to count over".into(), "use a length above zero");
        }
        if length.as_nanos() > END {
            return told("a window of more than 146 years".into(), "use a shorter one");
        }
        Ok(Window { count, length: length.as_nanos() })
    }

    /// Whether a ring can hold so many.
    pub(crate) const fn holds(count: u64) -> bool {
        count <= MAX_COUNT
    }

    /// Words of memory: the head and the slots.
    pub(crate) const fn words(self) -> usize {
        self.slots() + 1
    }

    /// Slots in the ring.
    #[expect(clippy::cast_possible_truncation, reason = "a count is at most 65 536")]
    pub(crate) const fn slots(self) -> usize {
        self.count as usize
    }

    /// Which slots are the head's and its predecessor's.
    #[expect(clippy::cast_possible_truncation, reason = "an index is below 65 536")]
    pub(crate) const fn slots_at(self, head: u64) -> (usize, usize) {
        let index = head & INDEX;
        let before = if index == 0 { self.count - 1 } else { index - 1 };
        (index as usize, before as usize)
    }

    /// The length of every interval.
    pub(crate) const fn length(self) -> Span {
        Span::from_nanos(self.length)
    }

    /// The head after one more admission.
    pub(crate) const fn advanced(self, head: u64) -> u64 {
        if (head & INDEX) + 1 < self.count {
            head + 1
        } else {
            // The lap may wrap: only its parity is ever asked, and 2⁴⁸ laps pass in between.
            (head >> INDEX_BITS).wrapping_add(1) << INDEX_BITS
        }
    }

    /// Judges one look. `slot` is the head's, `before` its predecessor.
    #[inline]
    pub(crate) const fn judge(self, head: u64, slot: u64, before: u64, now: Mono) -> Move {
        // Fresh slots have parity 0, so the first lap writes parity 1.
        let lap = ((head >> INDEX_BITS) & 1) ^ 1;
        if slot & 1 == lap {
            return Move::Advance;
        }
        let before_lap = if head & INDEX == 0 { lap ^ 1 } else { lap };
        if before & 1 != before_lap {
            return Move::Again;
        }
        if now.as_nanos() > END {
            return Move::Refuse(Span::from_nanos(u64::MAX));
        }
        let newest = (before >> 1).saturating_sub(self.length);
        let instant = if newest > now.as_nanos() { newest } else { now.as_nanos() };
        let expiry = slot >> 1;
        if expiry > instant {
            return Move::Refuse(Span::from_nanos(expiry.saturating_sub(now.as_nanos())));
        }
        if instant > END {
            return Move::Refuse(Span::from_nanos(u64::MAX));
        }
        Move::Write(((instant + self.length) << 1) | lap)
    }

    /// As [`Window::judge`], for an admission that is counted whether or not it is allowed: the oldest makes room
    /// before its time, which leaves no interval with fewer than it had.
    pub(crate) const fn forced(self, head: u64, slot: u64, before: u64, now: Mono) -> Move {
        match self.judge(head, slot, before, now) {
            Move::Refuse(_) if now.as_nanos() <= END => {
                let expiry = now.as_nanos() + self.length;
                let newest = before >> 1;
                let expiry = if newest > expiry { newest } else { expiry };
                Move::Write((expiry << 1) | ((head >> INDEX_BITS) & 1) ^ 1)
            }
            next => next,
        }
    }

    /// How long ago the admission in a slot was; none if it was never written.
    pub(crate) fn age(self, slot: u64, now: Mono) -> Option<u64> {
        let later = now.as_nanos().saturating_add(self.length);
        (slot != 0).then(|| later.saturating_sub(slot >> 1))
    }

    /// The slot of the first lap for an admission so long ago; none if it has expired.
    pub(crate) fn slot(self, age: u64, now: Mono) -> Option<u64> {
        let left = self.length.checked_sub(age).filter(|left| *left > 0)?;
        Some(now.as_nanos().min(END).saturating_add(left) << 1 | 1)
    }

    /// The head after so many admissions to a new ring.
    pub(crate) const fn head_after(self, admissions: u64) -> u64 {
        if admissions < self.count { admissions } else { 1 << INDEX_BITS }
    }

    /// Whether every admission has expired at `now`: as good as a new ring. If in doubt, no.
    pub(crate) const fn is_idle(self, head: u64, slot: u64, before: u64, now: Mono) -> bool {
        match self.judge(head, slot, before, now) {
            Move::Write(_) => before >> 1 <= now.as_nanos(),
            Move::Advance | Move::Again | Move::Refuse(_) => false,
        }
    }

    /// The instant that a written slot records.
    #[cfg(test)]
    pub(crate) const fn instant(self, slot: u64) -> u64 {
        (slot >> 1) - self.length
    }
}

/// Slots in a ring, at most.
const MAX_COUNT: u64 = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 16;
const INDEX: u64 = (1 << INDEX_BITS) - 1;
/// The last instant that a slot can stand for, and the longest window: together they fill 63 bits.
const END: u64 = (1 << 62) - 1;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Move, Window};
    use crate::time::{Mono, Span};

    /// Goal: numbers that can never pass or do not fit are refused.
    #[test]
    fn bad_numbers_are_refused() {
        assert!(Window::new(0, Span::from_secs(1)).is_err());
        assert!(Window::new(1, Span::ZERO).is_err());
        assert!(Window::new(65_537, Span::from_secs(1)).is_err());
        assert!(Window::new(1, Span::from_nanos(u64::MAX)).is_err());
        assert!(Window::new(65_536, Span::from_secs(1)).is_ok());
    }

    /// Goal: the head walks all slots and comes back one lap later, for the smallest and largest ring.
    #[test]
    fn heads_walk_the_ring() {
        for count in [1_u64, 2, 3, 65_536] {
            let window = Window::new(count, Span::from_secs(1)).unwrap();
            let mut head = 0;
            for step in 0..count * 2 {
                let (slot, before) = window.slots_at(head);
                assert_eq!(slot as u64, step % count);
                assert_eq!(before as u64, (step + count - 1) % count);
                assert_eq!(window.head_after(step) >> 16, u64::from(step >= count));
                head = window.advanced(head);
            }
            assert_eq!(head >> 16, 2);
        }
        let window = Window::new(2, Span::from_secs(1)).unwrap();
        assert_eq!(window.advanced(u64::MAX << 16 | 1), 0, "the lap wraps into itself");
    }

    /// Goal: at the end of time it refuses and does not overflow.
    #[test]
    fn the_end_of_time_refuses() {
        let window = Window::new(1, Span::from_nanos((1 << 62) - 1)).unwrap();
        assert!(matches!(window.judge(0, 0, 0, Mono::from_nanos((1 << 62) - 1)), Move::Write(_)));
        assert!(matches!(window.judge(0, 0, 0, Mono::from_nanos(1 << 62)), Move::Refuse(_)));
        assert!(matches!(window.judge(0, 0, 0, Mono::from_nanos(u64::MAX)), Move::Refuse(_)));
    }
}
