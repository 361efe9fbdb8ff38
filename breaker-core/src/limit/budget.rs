//! At most N in all, until it is reset or nothing was charged for so long: what the words mean and what to do next; it
//! holds no atomic.
//!
//! The head word holds what is used (48 bits) and the number of the *run* (16 bits): a run ends when the budget is
//! reset or forgets, and only what belongs to the run of the word is ever taken out of it. A second word says
//! when the run began. Two more hold, for runs of even and odd number, its *end*: the instant of the newest charge and
//! the idle time after it. It is raised before the head is charged, so whoever sees a charge sees its time; a call
//! that raises it and then finds that others left no room for it may prolong the run to its own instant.

use crate::limit::NEVER;
use crate::time::{Mono, Span};

/// A count and an idle time, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    count: u64,
    /// Nanoseconds without a charge after which all is forgotten; 0 for never.
    idle: u64,
}

/// What to do with the head word, after a look at it and at its run's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The head word after.
    pub(crate) word: u64,
    /// Whether that begins a run.
    pub(crate) begins: bool,
}

impl Budget {
    /// At most `count` in all; the error is a problem and a hint.
    pub(crate) fn new(count: u64, idle: Option<Span>) -> Result<Budget, (String, String)> {
        let told = |problem: String, hint: &str| Err((problem, hint.to_owned()));
        if count == 0 {
            let hint = "use a count of at least 1, or kill the scope";
            return told("a budget of 0 can never pass".into(), hint);
        }
        if count > MAX_COUNT {
            let problem = format!("{count} is more than a budget holds ({MAX_COUNT})");
            return told(problem, "use a coarser unit of weight");
        }
        if idle == Some(Span::ZERO) {
            return told("it forgets at once".into(), "use an idle time above zero, or none");
        }
        Ok(Budget { count, idle: idle.map_or(0, Span::as_nanos) })
    }

    /// Words of memory: the head, when its run began, and when even and odd runs end.
    pub(crate) const fn words(self) -> usize {
        4
    }

    /// Whether it ever forgets by itself.
    pub(crate) const fn forgets(self) -> bool {
        self.idle > 0
    }

    /// Whether words mean the same to both.
    pub(crate) const fn measures_as(self, other: Budget) -> bool {
        self.idle == other.idle
    }

    /// Judges one look; else the exact wait. `end` is when the word's run is forgotten.
    #[inline]
    pub(crate) fn judge(self, word: u64, end: u64, amount: u64, now: Mono) -> Result<Step, Span> {
        if amount > self.count {
            return Err(NEVER);
        }
        let step = self.charged(word, end, amount, now);
        if used_of(step.word) <= self.count {
            Ok(step)
        } else if self.forgets() && end != u64::MAX {
            Err(Span::from_nanos(end.saturating_sub(now.as_nanos())))
        } else {
            Err(NEVER)
        }
    }

    /// The charge of an amount, allowed or not; stops at the word's range, which is above every count.
    pub(crate) fn charged(self, word: u64, end: u64, amount: u64, now: Mono) -> Step {
        if self.has_lapsed(word, end, now) {
            return Step { word: renewed(word, amount.min(USED)), begins: true };
        }
        let used = used_of(word).saturating_add(amount).min(USED);
        Step { word: word & !USED | used, begins: false }
    }

    /// The head word as if all had just been used, in a run of its own.
    pub(crate) fn spent(self, word: u64) -> u64 {
        renewed(word, used_of(word).max(self.count))
    }

    /// Whether the run is over at `now`.
    pub(crate) const fn has_lapsed(self, word: u64, end: u64, now: Mono) -> bool {
        self.forgets() && used_of(word) > 0 && end <= now.as_nanos() && end != u64::MAX
    }

    /// When a run charged at `now` is forgotten.
    pub(crate) const fn end(self, now: Mono) -> u64 {
        now.as_nanos().saturating_add(self.idle)
    }

    /// How long after a charge it is forgotten.
    pub(crate) const fn recovery(self) -> Span {
        if self.forgets() { Span::from_nanos(self.idle) } else { NEVER }
    }

    /// The newest charge of a run that ends so.
    pub(crate) const fn newest(self, end: u64) -> u64 {
        end.saturating_sub(self.idle)
    }

    /// Nanoseconds since the last charge of a run that ends so.
    pub(crate) const fn age(self, end: u64, now: Mono) -> u64 {
        now.as_nanos().saturating_sub(self.newest(end))
    }

    /// When a run is forgotten whose last charge was so long ago; at `now` if that is past.
    pub(crate) const fn end_after(self, age: u64, now: Mono) -> u64 {
        now.as_nanos().saturating_add(self.idle.saturating_sub(age))
    }
}

/// What is used.
pub(crate) const fn used_of(word: u64) -> u64 {
    word & USED
}

/// The number of the run.
pub(crate) const fn run_of(word: u64) -> u64 {
    word >> USED_BITS
}

/// The first word of the next run. Numbers wrap: a thread would have to sleep through 65,536 runs to take one for another.
pub(crate) const fn renewed(word: u64, used: u64) -> u64 {
    run_of(word).wrapping_add(1) << USED_BITS | used
}

const USED_BITS: u32 = 48;
const USED: u64 = (1 << USED_BITS) - 1;
/// A budget, at most: half of the word's range, so that what is settled above its reserve fits beside it.
const MAX_COUNT: u64 = 1 << (USED_BITS - 1);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Budget, Step, renewed, run_of, used_of};
    use crate::limit::NEVER;
    use crate::time::{Mono, Span};

    fn at(nanos: u64) -> Mono {
        Mono::from_nanos(nanos)
    }

    /// Goal: numbers that can never pass or do not fit are refused.
    #[test]
    fn bad_numbers_are_refused() {
        assert!(Budget::new(0, None).is_err());
        assert!(Budget::new(1, Some(Span::ZERO)).is_err());
        assert!(Budget::new((1 << 47) + 1, None).is_err());
        assert!(Budget::new(1 << 47, None).is_ok());
    }

    /// Goal: runs end at their instant, not before; numbers wrap; the end of time never comes.
    #[test]
    fn runs_end_in_time() {
        let budget = Budget::new(2, Some(Span::from_nanos(10))).unwrap();
        let word = renewed(u64::MAX, 2);
        assert_eq!((run_of(word), used_of(word)), (0, 2));
        assert_eq!(budget.judge(word, 15, 1, at(14)), Err(Span::from_nanos(1)));
        let step = budget.judge(word, 15, 1, at(15)).unwrap();
        assert_eq!(step, Step { word: renewed(word, 1), begins: true });
        assert_eq!(budget.judge(word, u64::MAX, 1, at(u64::MAX)), Err(NEVER));
        assert_eq!(budget.judge(word, 15, 3, at(20)), Err(NEVER));
        assert_eq!(used_of(budget.charged(word, 15, u64::MAX, at(3)).word), (1 << 48) - 1);
        assert_eq!((budget.age(15, at(8)), budget.end_after(3, at(8))), (3, 15));
    }
}
