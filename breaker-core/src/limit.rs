//! The kinds of limit behind one question, and which limit makes another one idle; it holds no atomic.

pub(crate) mod buckets;
pub(crate) mod budget;
pub(crate) mod flight;
pub(crate) mod rate;
pub(crate) mod window;

use self::buckets::Buckets;
use self::budget::Budget;
use self::flight::InFlight;
use self::rate::Rate;
use self::window::Window;
use crate::policy::{LimitKind, Unit};
use crate::time::Span;

/// One limit's arithmetic, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Rate(Rate),
    /// Calls, up to 65,536: exact.
    Window(Window),
    /// Weight, or more calls: by sub-buckets.
    Buckets(Buckets),
    Budget(Budget),
    InFlight(InFlight),
}

impl Limit {
    /// Checks the numbers; the error is a problem and a hint.
    pub(crate) fn new(kind: LimitKind, by: Unit) -> Result<Limit, (String, String)> {
        match kind {
            LimitKind::Rate { count, per, burst } => {
                Rate::new(count, per, burst, by).map(Limit::Rate)
            }
            LimitKind::Window { count, length } if by == Unit::Calls && Window::holds(count) => {
                Window::new(count, length).map(Limit::Window)
            }
            LimitKind::Window { count, length } => Buckets::new(count, length).map(Limit::Buckets),
            LimitKind::Budget { count, idle } => Budget::new(count, idle).map(Limit::Budget),
            LimitKind::InFlight { count } => InFlight::new(count).map(Limit::InFlight),
        }
    }

    /// Words of memory that one cell needs for it.
    pub(crate) const fn words(self) -> usize {
        match self {
            Limit::Rate(_) | Limit::InFlight(_) => 1,
            Limit::Window(window) => window.words(),
            Limit::Buckets(buckets) => buckets.words(),
            Limit::Budget(budget) => budget.words(),
        }
    }

    /// Whether the words mean the same to both: only the bound differs.
    pub(crate) fn shares_memory_with(self, other: Limit) -> bool {
        match (self, other) {
            (Limit::Rate(own), Limit::Rate(other)) => own.measures_as(other),
            (Limit::Window(own), Limit::Window(other)) => own == other,
            (Limit::Buckets(own), Limit::Buckets(other)) => own.measures_as(other),
            (Limit::Budget(own), Limit::Budget(other)) => own.measures_as(other),
            (Limit::InFlight(_), Limit::InFlight(_)) => true,
            _ => false,
        }
    }

    /// How long after its last charge within the bound all is as good as new, at most;
    /// without end for a budget that never forgets. What is in flight is given back, not healed: no time at all.
    pub(crate) const fn recovery(self) -> Span {
        match self {
            Limit::Rate(rate) => rate.recovery(),
            Limit::Window(window) => window.length(),
            Limit::Buckets(buckets) => buckets.recovery(),
            Limit::Budget(budget) => budget.recovery(),
            Limit::InFlight(_) => Span::ZERO,
        }
    }

    /// Whether a charge can be undone at all.
    pub(crate) const fn can_undo(self) -> bool {
        match self {
            Limit::Rate(rate) => rate.can_undo(),
            Limit::Window(_) => false,
            // What was charged is given back, but not that it was: its idle time goes on from the call undone.
            Limit::Budget(budget) => !budget.forgets(),
            Limit::Buckets(_) | Limit::InFlight(_) => true,
        }
    }

    /// Whether a true cost can be told after the charge, if it counts weight.
    pub(crate) const fn can_settle(self) -> bool {
        matches!(self, Limit::Rate(_) | Limit::Buckets(_) | Limit::Budget(_))
    }
}

/// Whether calls that passed `first` can never breach `second`; if in doubt, no. Both count the same, and calls: a
/// weight may be settled above what was reserved, so no bound on weight keeps another from being reached.
///
/// A window admits at most `count × (⌊t / length⌋ + 1)` in an interval of length `t`, a rate at
/// most `burst + count × t / per`.
pub(crate) fn makes_idle(first: LimitKind, second: LimitKind) -> bool {
    use LimitKind::{Budget, InFlight, Rate, Window};
    let wide = |number: u64| u128::from(number);
    match (first, second) {
        (Window { count, length }, Window { count: bound, length: over }) => {
            let laps = wide(over.as_nanos()).div_ceil(wide(length.as_nanos()).max(1));
            wide(count).saturating_mul(laps) <= wide(bound)
        }
        (Rate { count, per, burst }, Window { count: bound, length: over }) => {
            let per = wide(per.as_nanos()).max(1);
            let flow = wide(count).saturating_mul(wide(over.as_nanos())).div_ceil(per);
            wide(burst).saturating_add(flow) <= wide(bound)
        }
        (Window { count, length }, Rate { count: refill, per, burst }) => {
            count <= burst
                && wide(count).saturating_mul(wide(per.as_nanos()))
                    <= wide(refill).saturating_mul(wide(length.as_nanos()))
        }
        (Rate { count, per, burst }, Rate { count: refill, per: over, burst: bound }) => {
            burst <= bound
                && wide(count).saturating_mul(wide(over.as_nanos()))
                    <= wide(refill).saturating_mul(wide(per.as_nanos()))
        }
        // Whenever the first has forgotten, so has the second.
        (Budget { count, idle }, Budget { count: bound, idle: other }) => {
            count <= bound && idle.is_none_or(|idle| other.is_some_and(|other| other <= idle))
        }
        (InFlight { count }, InFlight { count: bound }) => count <= bound,
        // A reset may come at any time, a call may last any time, and neither rates nor windows bound what passes in all.
        _ => false,
    }
}

/// The wait where none is known to suffice.
pub(crate) const NEVER: Span = Span::from_nanos(u64::MAX);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Limit, makes_idle};
    use crate::policy::LimitKind::{self, Budget, InFlight, Rate, Window};
    use crate::policy::Unit;
    use crate::time::Span;

    /// Goal: a looser limit behind a tighter one is found idle, a tighter one never.
    #[test]
    fn looser_limits_are_idle() {
        let second = Span::from_secs(1);
        let minute = Span::from_secs(60);
        let window = |count, length| Window { count, length };
        let rate = |count, burst| Rate { count, per: second, burst };
        assert!(makes_idle(window(100, second), window(6_000, minute)));
        assert!(!makes_idle(window(100, second), window(5_999, minute)));
        assert!(makes_idle(window(100, minute), window(100, second)));
        assert!(!makes_idle(window(100, minute), window(99, second)));
        assert!(makes_idle(rate(10, 5), window(605, minute)));
        assert!(!makes_idle(rate(10, 5), window(604, minute)));
        assert!(makes_idle(window(5, second), rate(5, 5)));
        assert!(!makes_idle(window(5, second), rate(5, 4)));
        assert!(!makes_idle(window(5, second), rate(4, 5)));
        assert!(makes_idle(rate(10, 5), rate(10, 5)));
        assert!(!makes_idle(rate(10, 5), rate(9, 9)));
        let budget = |count, idle| Budget { count, idle };
        assert!(makes_idle(budget(5, None), budget(5, Some(second))));
        assert!(makes_idle(budget(5, Some(minute)), budget(5, Some(second))));
        assert!(!makes_idle(budget(5, Some(second)), budget(5, Some(minute))));
        assert!(!makes_idle(budget(5, Some(second)), budget(5, None)));
        assert!(!makes_idle(budget(6, None), budget(5, None)));
        assert!(makes_idle(InFlight { count: 5 }, InFlight { count: 5 }));
        assert!(!makes_idle(InFlight { count: 6 }, InFlight { count: 5 }));
        assert!(!makes_idle(budget(5, None), window(5, second)));
        assert!(!makes_idle(window(5, second), budget(5, None)));
        assert!(!makes_idle(InFlight { count: 5 }, rate(5, 5)));
    }

    /// Goal: only a bound may change while the memory stays; calls up to 65,536 get the exact window.
    #[test]
    fn a_bound_alone_keeps_the_memory() {
        let made = |kind: LimitKind, by| Limit::new(kind, by).unwrap();
        let second = Span::from_secs(1);
        let window = |count, length| Window { count, length };
        assert!(matches!(made(window(65_536, second), Unit::Calls), Limit::Window(_)));
        assert!(matches!(made(window(65_537, second), Unit::Calls), Limit::Buckets(_)));
        assert!(matches!(made(window(1, second), Unit::Weight), Limit::Buckets(_)));
        let same = |a, b| made(a, Unit::Weight).shares_memory_with(made(b, Unit::Weight));
        let rate = |count, burst| Rate { count, per: second, burst };
        assert!(same(rate(5, 1), rate(5, 9)) && !same(rate(5, 1), rate(6, 1)));
        assert!(same(window(1, second), window(2, second)));
        assert!(!same(window(1, second), window(1, Span::from_secs(2))));
        let budget = |count, idle| Budget { count, idle };
        assert!(same(budget(1, None), budget(2, None)));
        assert!(!same(budget(1, None), budget(1, Some(second))));
        assert!(same(InFlight { count: 1 }, InFlight { count: 2 }));
        assert!(!same(InFlight { count: 1 }, budget(1, None)));
        let exact = |count| made(window(count, second), Unit::Calls);
        assert!(!exact(1).shares_memory_with(exact(2)));
    }
}
