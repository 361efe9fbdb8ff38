//! At most N in any interval of length W, exactly: what the words of a ring mean and what to do next; it holds no atomic.
//!
//! A ring has N slots and a hint. A slot holds the instant at which its admission expires
//! (recorded instant + W) and the parity of its lap. The ring's *turn* is where its laps meet: the slot
//! that is next, which is also the oldest, behind the newest. An admission swaps the turn's slot for
//! its own, which is allowed only if the old one has expired. A slot thus changes only between instants at
//! least W apart, so no interval `(t − W, t]` holds more than N recorded instants; and the oldest
//! of N is asked, so nobody is refused while fewer than N passed in the last W.
//!
//! The slots alone say where the turn is; the hint only says where to look first, and may be wrong.
//!
//! The recorded instant is `max(now, newest recorded)`: state newer than `now` wins.

use super::NEVER;
use crate::time::{Mono, Span};

/// A count and a length, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    count: u64,
    length: u64,
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

    /// Words of memory: the hint and the slots.
    pub(crate) const fn words(self) -> usize {
        self.slots() + 1
    }

    /// Slots in the ring.
    #[expect(clippy::cast_possible_truncation, reason = "a count is at most 65 536")]
    pub(crate) const fn slots(self) -> usize {
        self.count as usize
    }

    /// Where to look first, by a hint of any value.
    #[inline]
    pub(crate) fn first_look(self, hint: u64) -> usize {
        usize::try_from(hint).ok().filter(|index| *index < self.slots()).unwrap_or(0)
    }

    /// The slot after this one.
    #[inline]
    pub(crate) const fn after(self, index: usize) -> usize {
        if index + 1 < self.slots() { index + 1 } else { 0 }
    }

    /// The slot before this one.
    #[inline]
    pub(crate) const fn before(self, index: usize) -> usize {
        if index == 0 { self.slots() - 1 } else { index - 1 }
    }

    /// The length of every interval.
    pub(crate) const fn length(self) -> Span {
        Span::from_nanos(self.length)
    }

    /// Whether the slot at `index` was the ring's turn when it was read, `before` being its
    /// predecessor, read earlier.
    ///
    /// Number the admissions: slot i holds in turn those numbered i, i + N, i + 2N, and so on. Let `before` be of number
    /// a. What is read later of the next slot is of number a + 1 − N, or of a + 1 − N + mN if m laps have passed it
    /// since. An odd m shows in the parity. An even m above zero means a + 1 + N or later, which expires after a + 1
    /// does, for each slot's own expiries grow strictly, and so after a. Parity and order together leave m = 0: when the
    /// slot was read, it was the oldest and a was the newest.
    #[inline]
    pub(crate) const fn is_turn(self, index: usize, before: u64, slot: u64) -> bool {
        self.laps_meet(index, before, slot) && self.is_older(slot, before)
    }

    /// The first half of [`Window::is_turn`]: between two slots of one lap the ring does not turn, save that the
    /// last slot's lap ends where the first slot's next begins.
    #[inline]
    pub(crate) const fn laps_meet(self, index: usize, before: u64, slot: u64) -> bool {
        let differ = (before ^ slot) & 1 == 1;
        differ == (index != 0)
    }

    /// The second half of [`Window::is_turn`].
    #[inline]
    pub(crate) const fn is_older(self, slot: u64, before: u64) -> bool {
        slot >> 1 <= before >> 1
    }

    /// What to swap the turn's slot for, or the exact wait until the oldest expires.
    #[inline]
    pub(crate) const fn judge(self, before: u64, slot: u64, now: Mono) -> Result<u64, Span> {
        let newest = (before >> 1).saturating_sub(self.length);
        let instant = if newest > now.as_nanos() { newest } else { now.as_nanos() };
        if instant > END {
            return Err(NEVER);
        }
        let expiry = slot >> 1;
        if expiry > instant {
            return Err(Span::from_nanos(expiry.saturating_sub(now.as_nanos())));
        }
        Ok(((instant + self.length) << 1) | (slot & 1) ^ 1)
    }

    /// As [`Window::judge`], for an admission that is counted whether or not it is allowed: the oldest makes room
    /// before its time, which leaves no interval with fewer than it had. None if the whole ring is as new as that already:
    /// a slot's expiries must grow.
    pub(crate) const fn forced(self, before: u64, slot: u64, now: Mono) -> Option<u64> {
        if now.as_nanos() > END {
            return None;
        }
        self.expiring(before, slot, now.as_nanos() + self.length)
    }

    /// The same for an admission that expires then; it is recorded no earlier than the newest.
    pub(crate) const fn expiring(self, before: u64, slot: u64, expiry: u64) -> Option<u64> {
        let newest = before >> 1;
        let expiry = if newest > expiry { newest } else { expiry };
        if slot >> 1 >= expiry {
            return None;
        }
        Some((expiry << 1) | (slot & 1) ^ 1)
    }

    /// How long ago the admission in a slot was; none if it was never written.
    pub(crate) fn age(self, slot: u64, now: Mono) -> Option<u64> {
        let later = now.as_nanos().saturating_add(self.length);
        (slot != 0).then(|| later.saturating_sub(slot >> 1))
    }

    /// When an admission so long ago expires; none if it has.
    pub(crate) fn expiry(self, age: u64, now: Mono) -> Option<u64> {
        let left = self.length.checked_sub(age).filter(|left| *left > 0)?;
        Some(now.as_nanos().min(END).saturating_add(left))
    }

    /// Whether every admission has expired at `now`, by the newest: as good as a new ring. If in doubt, no.
    pub(crate) const fn is_idle(self, before: u64, now: Mono) -> bool {
        now.as_nanos() <= END && before >> 1 <= now.as_nanos()
    }

    /// The instant that a written slot records.
    #[cfg(test)]
    pub(crate) const fn instant(self, slot: u64) -> u64 {
        (slot >> 1) - self.length
    }
}

/// Slots in a ring, at most.
const MAX_COUNT: u64 = 1 << 16;
/// The last instant that a slot can stand for, and the longest window: together they fill 63 bits.
const END: u64 = (1 << 62) - 1;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{NEVER, Window};
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

    /// Goal: of a ring that filled up in order, exactly one place is its turn, at every count of admissions and in
    /// rings of all sizes up to nine.
    #[test]
    fn a_ring_turns_at_one_place() {
        for count in 1..10_usize {
            let window = Window::new(count as u64, Span::from_nanos(10)).unwrap();
            let mut slots = vec![0_u64; count];
            for step in 0..count * 4 {
                let turns: Vec<usize> = (0..count)
                    .filter(|&at| window.is_turn(at, slots[window.before(at)], slots[at]))
                    .collect();
                assert_eq!(turns, [step % count], "{slots:?}");
                let (before, slot) = (slots[window.before(step % count)], slots[step % count]);
                // All the admissions of a lap at one instant: only the parities tell them apart.
                let now = Mono::from_nanos((step / count) as u64 * 10);
                slots[step % count] = window.judge(before, slot, now).unwrap();
            }
        }
    }

    /// Goal: a predecessor read before the ring turned is never taken for the newest, by however many
    /// laps it is late.
    #[test]
    fn an_overtaken_look_is_no_turn() {
        for count in 1..5_usize {
            let window = Window::new(count as u64, Span::from_nanos(10)).unwrap();
            let mut slots = vec![0_u64; count];
            let mut past = vec![slots.clone()];
            for step in 0..count * 6 {
                let at = step % count;
                let now = Mono::from_nanos((step / count) as u64 * 10);
                slots[at] = window.judge(slots[window.before(at)], slots[at], now).unwrap();
                past.push(slots.clone());
            }
            for (early, then) in past.iter().enumerate() {
                for (late, now) in past.iter().enumerate().skip(early) {
                    for at in 0..count {
                        let said = window.is_turn(at, then[window.before(at)], now[at]);
                        let due =
                            late % count == at && then[window.before(at)] == now[window.before(at)];
                        assert_eq!(said, due, "{count}: {then:?} then {now:?} at {at}, {early}");
                    }
                }
            }
        }
    }

    /// Goal: hints of any value lead into the ring, and its places follow each other around.
    #[test]
    fn places_stay_in_the_ring() {
        for count in [1_u64, 2, 3, 65_536] {
            let window = Window::new(count, Span::from_secs(1)).unwrap();
            for hint in [0, 1, count - 1, count, count + 1, u64::MAX] {
                let place = window.first_look(hint);
                assert!((place as u64) < count);
                assert_eq!(window.before(window.after(place)), place);
                assert_eq!(window.after(place) as u64, (place as u64 + 1) % count);
            }
        }
    }

    /// Goal: at the end of time it refuses and does not overflow.
    #[test]
    fn the_end_of_time_refuses() {
        let window = Window::new(1, Span::from_nanos((1 << 62) - 1)).unwrap();
        assert!(window.judge(0, 0, Mono::from_nanos((1 << 62) - 1)).is_ok());
        for late in [1 << 62, u64::MAX] {
            assert_eq!(window.judge(0, 0, Mono::from_nanos(late)), Err(NEVER));
            assert_eq!(window.forced(0, 0, Mono::from_nanos(late)), None);
            assert!(!window.is_idle(0, Mono::from_nanos(late)));
        }
        let last = window.judge(0, 0, Mono::from_nanos((1 << 62) - 1)).unwrap();
        assert!(window.judge(last, last, Mono::from_nanos((1 << 62) - 1)).is_err());
    }
}
