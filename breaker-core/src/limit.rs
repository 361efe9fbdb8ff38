//! The kinds of limit behind one question, and which limit makes another one idle; it holds no atomic.

pub(crate) mod rate;
pub(crate) mod window;

use self::rate::Rate;
use self::window::Window;
use crate::policy::LimitKind;

/// One limit's arithmetic, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Rate(Rate),
    Window(Window),
    InFlight(()),
}

impl Limit {
    /// Checks the numbers; the error is a problem and a hint.
    pub(crate) fn new(
        kind: LimitKind,
        _by: crate::policy::Unit,
    ) -> Result<Limit, (String, String)> {
        match kind {
            LimitKind::Rate { count, per, burst } => Rate::new(count, per, burst).map(Limit::Rate),
            LimitKind::Window { count, length } => Window::new(count, length).map(Limit::Window),
            _ => Err(("not yet".into(), "".into())),
        }
    }

    pub(crate) fn recovery(self) -> crate::time::Span {
        crate::time::Span::from_nanos(u64::MAX)
    }
    pub(crate) fn can_undo(self) -> bool {
        !matches!(self, Limit::Window(_))
    }
    pub(crate) fn can_settle(self) -> bool {
        true
    }
    pub(crate) fn shares_memory_with(self, other: Limit) -> bool {
        self == other
    }

    /// Words of memory that one cell needs for it.
    pub(crate) const fn words(self) -> usize {
        match self {
            Limit::Rate(_) => 1,
            Limit::Window(window) => window.words(),
            Limit::InFlight(()) => 1,
        }
    }
}

/// Whether calls that passed `first` can never breach `second`.
///
/// A window admits at most `count × (⌊t / length⌋ + 1)` in an interval of length `t`, a rate at
/// most `burst + count × t / per`.
pub(crate) fn makes_idle(first: LimitKind, second: LimitKind) -> bool {
    use LimitKind::{Rate, Window};
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
        _ => false,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::makes_idle;
    use crate::policy::LimitKind::{Rate, Window};
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
    }
}
