//! Turns at a word that several threads charge without pause; it changes no word, only when a thread comes to it.
//!
//! A word's line of memory travels to each processor that charges it. Where two come again and again at once it travels for
//! every call, and all their calls cost what the travel costs. So a thread that finds that another was there since its own last
//! charge, a moment ago, stands back for some microseconds, once in a while: the others make their calls meanwhile in one go,
//! and then it makes its own. By a clock that shows the difference a thread that charges less often than [`CLOSE`] never stands back; by a
//! coarse tick, which makes all its calls look close, once for each tick at most. It waits for nobody.

use crate::sync::{AtomicU64, pause};
use crate::time::Mono;
#[cfg(not(loom))]
use crate::time::Span;

/// What a thread remembers of its last charge.
#[cfg(not(loom))]
#[derive(Clone, Copy)]
struct Last {
    /// Where the word is: a name, and never followed.
    word: usize,
    /// What the charge left there.
    left: u64,
    at: Mono,
}

#[cfg(not(loom))]
mod own {
    use std::cell::Cell;

    use super::Last;
    use crate::time::Mono;

    thread_local! {
        pub(super) static LAST: Cell<Last> =
            const { Cell::new(Last { word: 0, left: 0, at: Mono::ZERO }) };
        /// When this thread stood back last.
        pub(super) static STOOD: Cell<Mono> = const { Cell::new(Mono::ZERO) };
    }
}

/// Whether another thread has charged a word since this one did, a moment ago. `left` is what it holds now.
#[cfg(not(loom))]
#[inline(always)]
pub(super) fn is_disturbed(word: &AtomicU64, left: u64, now: Mono) -> bool {
    let last = own::LAST.get();
    last.word == name(word) && last.left != left && now.since(last.at) < CLOSE
}

/// Remembers what this thread's charge left.
#[cfg(not(loom))]
#[inline(always)]
pub(super) fn remember(word: &AtomicU64, left: u64, now: Mono) {
    own::LAST.set(Last { word: name(word), left, at: now });
}

/// Waits a little, whatever the others do, unless it did so a moment ago.
#[cfg(not(loom))]
#[cold]
#[inline(never)]
pub(super) fn stand_back(now: Mono) {
    if now.since(own::STOOD.get()) >= TURN {
        for _ in 0..PAUSES {
            pause();
        }
        own::STOOD.set(now);
    }
}

#[cfg(not(loom))]
fn name(word: &AtomicU64) -> usize {
    std::ptr::from_ref(word).addr()
}

// A model's threads are one thread of the system's, and how long one waits changes no outcome.
#[cfg(loom)]
pub(super) fn is_disturbed(_: &AtomicU64, _: u64, _: Mono) -> bool {
    false
}

#[cfg(loom)]
pub(super) fn remember(_: &AtomicU64, _: u64, _: Mono) {}

#[cfg(loom)]
pub(super) fn stand_back(_: Mono) {
    pause();
}

/// Charges of one thread closer than this come without pause.
#[cfg(not(loom))]
const CLOSE: Span = Span::from_nanos(500);
/// A thread stands back once in this time at most: where a tick stands still, once.
#[cfg(not(loom))]
const TURN: Span = Span::from_nanos(2500);
/// How long it stands back: 1 to 7 microseconds, as long as the processor's pause is. Shorter, and the others get too little done
/// meanwhile: 100 give two threads 0.60 of what they cost without, 160 give 0.50.
#[cfg(not(loom))]
const PAUSES: u32 = 160;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{CLOSE, is_disturbed, remember};
    use crate::sync::AtomicU64;
    use crate::time::{Mono, Span};

    /// Goal: only who comes back at once, to the same word, and finds another's charge there, is disturbed.
    #[test]
    fn only_who_comes_back_at_once_is_disturbed() {
        let [word, other] = [5, 5].map(AtomicU64::new);
        let at = |nanos| Mono::from_nanos(1_000_000).plus(Span::from_nanos(nanos));
        assert!(!is_disturbed(&word, 5, at(0)), "never seen");
        remember(&word, 5, at(0));
        assert!(!is_disturbed(&word, 5, at(100)), "nobody was there");
        assert!(is_disturbed(&word, 6, at(100)));
        assert!(!is_disturbed(&other, 6, at(100)), "another word");
        assert!(!is_disturbed(&word, 6, at(CLOSE.as_nanos())), "not without pause");
        remember(&other, 7, at(200));
        assert!(!is_disturbed(&word, 6, at(200)), "one word is remembered");
    }
}
