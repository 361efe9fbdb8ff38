//! What became of calls, counted per scope in stripes so that threads do not share a line; nothing is decided from it.

#[cfg(not(loom))]
use std::cell::Cell;

use crate::facts::Outcome;
use crate::policy::MAX_LIMITS;
#[cfg(not(loom))]
use crate::sync::Mutex;
use crate::sync::{AtomicU64, Ordering};

/// The counts of one named scope, or of all keys of one dimension.
pub(crate) struct Counts([Stripe; STRIPES]);

/// The counts of the threads that share it.
#[repr(align(128))]
struct Stripe([AtomicU64; WORDS]);

/// What is counted once.
#[derive(Clone, Copy)]
pub(crate) enum Count {
    /// A call that ended, and how.
    Ended(Outcome),
    /// A permit that was dropped unsettled.
    Dropped,
    /// Refused by a gate.
    Blocked,
    /// Refused by a limit.
    Throttled,
    /// Would have been refused, if shadow mode had not let it through.
    Shadowed,
    /// A limit said no and was obeyed.
    Enforced(u8),
    /// A limit said no and was not obeyed: a candidate, or in shadow mode.
    Detected(u8),
}

/// What became of the calls of a scope since it was first compiled. Nothing is lost: once every permit has ended,
/// the calls offered are `blocked + throttled + good + slow + fault + dropped`.
///
/// A group and `/` count what they refuse themselves; what became of calls is counted at their route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScopeCounts {
    /// Settled as good.
    pub good: u64,
    /// Settled as slow.
    pub slow: u64,
    /// Settled as a fault.
    pub fault: u64,
    /// Permits dropped unsettled: neither good nor bad.
    pub dropped: u64,
    /// Refused by a gate of the lineage.
    pub blocked: u64,
    /// Refused by a limit of the lineage.
    pub throttled: u64,
    /// Admitted although something of the lineage would have refused it: shadow mode, or a candidate limit.
    pub shadowed: u64,
    /// Calls of this route that a [`Lease`](crate::Lease) charged for and that were not made in time. None of them was offered.
    pub forfeited: u64,
    /// For each limit of this scope, by its index: how often it refused.
    pub enforced: [u64; MAX_LIMITS],
    /// For each limit of this scope: how often it would have refused, had it been live.
    pub detected: [u64; MAX_LIMITS],
}

/// How calls of a scope ended: all that detectors hear of its counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) good: u64,
    pub(crate) slow: u64,
    pub(crate) fault: u64,
}

impl ScopeCounts {
    /// Of all of them, how calls ended.
    pub(crate) const fn ended(&self) -> Ended {
        Ended { good: self.good, slow: self.slow, fault: self.fault }
    }
}

impl Counts {
    pub(crate) fn new() -> Counts {
        let stripe = || Stripe(std::array::from_fn(|_| AtomicU64::new(0)));
        Counts(std::array::from_fn(|_| stripe()))
    }

    #[inline]
    pub(crate) fn up(&self, count: Count) {
        self.raise([count]);
    }

    /// A limit said no and was obeyed, and so the call was refused: two counts in one look for the stripe.
    #[inline]
    pub(crate) fn up_throttled(&self, limit: u8) {
        self.raise([Count::Enforced(limit), Count::Throttled]);
    }

    /// So many calls were charged for in advance and not made.
    pub(crate) fn forfeited(&self, calls: u32) {
        self.add([(FORFEITED, u64::from(calls))]);
    }

    #[inline]
    fn raise<const N: usize>(&self, counts: [Count; N]) {
        self.add(counts.map(|count| (count.word(), 1)));
    }

    #[inline(always)]
    fn add<const N: usize>(&self, counts: [(usize, u64); N]) {
        let own = stripe();
        let Some(stripe) = self.0.get(own) else { return };
        for (word, more) in counts {
            let Some(word) = stripe.0.get(word) else { continue };
            if own == SHARED {
                // ordering: relaxed, for a count stands alone.
                word.fetch_add(more, Ordering::Relaxed);
            } else {
                // ordering: relaxed, for a count stands alone; and no locked add, for this thread alone writes the stripe.
                word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
            }
        }
    }

    /// The sum over all stripes.
    pub(crate) fn read(&self) -> ScopeCounts {
        let sum = |word: usize| {
            let stripes = self.0.iter().filter_map(|stripe| stripe.0.get(word));
            // ordering: relaxed, for a count stands alone.
            stripes.map(|count| count.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
        };
        ScopeCounts {
            good: sum(0),
            slow: sum(1),
            fault: sum(2),
            dropped: sum(3),
            blocked: sum(4),
            throttled: sum(5),
            shadowed: sum(6),
            forfeited: sum(FORFEITED),
            enforced: std::array::from_fn(|limit| sum(FIRST + limit)),
            detected: std::array::from_fn(|limit| sum(FIRST + MAX_LIMITS + limit)),
        }
    }
}

impl Count {
    /// Its place in a stripe.
    #[inline(always)]
    fn word(self) -> usize {
        match self {
            Count::Ended(Outcome::Good) => 0,
            Count::Ended(Outcome::Slow) => 1,
            Count::Ended(Outcome::Fault) => 2,
            Count::Dropped => 3,
            Count::Blocked => 4,
            Count::Throttled => 5,
            Count::Shadowed => 6,
            Count::Enforced(limit) => FIRST + usize::from(limit),
            Count::Detected(limit) => FIRST + MAX_LIMITS + usize::from(limit),
        }
    }
}

/// A stripe that belongs to one thread as long as it lives.
#[cfg(not(loom))]
struct Own(usize);

/// Stripes that no thread has.
#[cfg(not(loom))]
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// Stripes handed out so far for the first time.
#[cfg(not(loom))]
static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

#[cfg(not(loom))]
impl Own {
    /// Takes a stripe that nobody has; a thread that finds none shares the last. What an earlier owner wrote is seen, for it
    /// gave its stripe back under the lock.
    fn take() -> Own {
        if let Some(stripe) = FREE.lock().pop() {
            return Own(stripe);
        }
        // ordering: relaxed, for the number alone matters; it stays far below its range, since only the first few are kept.
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        Own(next.min(SHARED))
    }
}

#[cfg(not(loom))]
impl Drop for Own {
    fn drop(&mut self) {
        // A count made while the thread ends goes where all may write.
        MINE.set(SHARED);
        if self.0 != SHARED {
            FREE.lock().push(self.0);
        }
    }
}

#[cfg(not(loom))]
thread_local! {
    static OWN: Own = Own::take();
    /// The number of [`OWN`], where it can be read without asking whether it was made.
    static MINE: Cell<usize> = const { Cell::new(STRIPES) };
}

/// This thread's stripe.
#[cfg(not(loom))]
#[inline(always)]
fn stripe() -> usize {
    match MINE.get() {
        STRIPES => first_stripe(),
        mine => mine,
    }
}

#[cfg(not(loom))]
#[cold]
#[inline(never)]
fn first_stripe() -> usize {
    let mine = OWN.try_with(|own| own.0).unwrap_or(SHARED);
    MINE.set(mine);
    mine
}

#[cfg(loom)]
fn stripe() -> usize {
    SHARED
}

/// Stripes of one scope, of which the last is shared by all threads that came too late for one of their own.
const STRIPES: usize = 4;
const SHARED: usize = STRIPES - 1;
/// The word of what leases charged for nothing.
const FORFEITED: usize = 7;
/// The first of the limits' counts.
const FIRST: usize = 8;
const WORDS: usize = FIRST + 2 * MAX_LIMITS;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Count, Counts};
    use crate::facts::Outcome;

    /// Goal: each kind has a word of its own, and no count of many threads is lost.
    #[test]
    fn no_count_is_lost() {
        let counts = Counts::new();
        let all = [
            Count::Ended(Outcome::Good),
            Count::Ended(Outcome::Slow),
            Count::Ended(Outcome::Fault),
            Count::Dropped,
            Count::Blocked,
            Count::Throttled,
            Count::Shadowed,
            Count::Enforced(0),
            Count::Enforced(7),
            Count::Detected(0),
            Count::Detected(7),
        ];
        std::thread::scope(|scope| {
            // More threads than stripes.
            for _ in 0..12 {
                scope.spawn(|| {
                    for (times, count) in (1..).zip(all) {
                        (0..times * 10).for_each(|_| counts.up(count));
                    }
                    (0..10).for_each(|_| counts.forfeited(7));
                });
            }
        });
        let read = counts.read();
        let simple = [read.good, read.slow, read.fault, read.dropped, read.blocked, read.throttled];
        assert_eq!(simple, [120, 240, 360, 480, 600, 720]);
        assert_eq!((read.shadowed, read.forfeited), (840, 840));
        assert_eq!((read.enforced[0], read.enforced[7]), (960, 1_080));
        assert_eq!((read.detected[0], read.detected[7]), (1_200, 1_320));
        assert_eq!(read.enforced[1..7], [0; 6]);
    }
}
