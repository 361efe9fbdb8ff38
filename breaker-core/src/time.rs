//! Points and lengths of time as integers; it reads no clock.

use std::fmt;
use std::time::Duration;

/// A point in time: nanoseconds since an origin that the caller chose.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(u64);

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Span(u64);

impl Mono {
    /// The origin itself.
    pub const ZERO: Mono = Mono(0);

    /// The point `nanos` nanoseconds after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Mono {
        Mono(nanos)
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This point moved later by `span`; stops at the end of time.
    #[must_use]
    pub const fn plus(self, span: Span) -> Mono {
        Mono(self.0.saturating_add(span.0))
    }

    /// How long `earlier` was ago; zero if it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Mono) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Span = Span(0);

    /// A length of `nanos` nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Span {
        Span(nanos)
    }

    /// A length of `millis` milliseconds; saturates.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Span {
        Span(millis.saturating_mul(1_000_000))
    }

    /// A length of `secs` seconds; saturates.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Span {
        Span(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds in all.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole seconds, rounded up: what `Retry-After` wants.
    #[must_use]
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(1_000_000_000)
    }
}

impl From<Duration> for Span {
    /// Saturates after 584 years.
    fn from(duration: Duration) -> Span {
        Span(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Duration {
        Duration::from_nanos(span.0)
    }
}

impl fmt::Debug for Mono {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mono({:?})", Duration::from_nanos(self.0))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({:?})", Duration::from_nanos(self.0))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Mono, Span};
    use std::time::Duration;

    /// Goal: spans and the standard library's durations are one and the same, as far as nanoseconds in a word go.
    #[test]
    fn spans_are_durations() {
        for nanos in [0, 1, 1_000_000_001, u64::MAX] {
            let span = Span::from_nanos(nanos);
            assert_eq!(Span::from(Duration::from(span)), span);
        }
        assert_eq!(Span::from(Duration::MAX), Span::from_nanos(u64::MAX));
    }

    /// Goal: who prints a time sees its unit, and every nanosecond of it.
    #[test]
    fn times_are_printed_with_their_unit() {
        assert_eq!(format!("{:?}", Span::from_nanos(199_849_863)), "Span(199.849863ms)");
        assert_eq!(format!("{:?}", Span::from_secs(60)), "Span(60s)");
        assert_eq!(format!("{:?}", Span::from_nanos(u64::MAX)), "Span(18446744073.709551615s)");
        assert_eq!(format!("{:?}", Mono::from_nanos(1_000_000_001)), "Mono(1.000000001s)");
    }
}
