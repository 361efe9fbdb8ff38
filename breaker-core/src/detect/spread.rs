//! Too many children tripped within a time; pure.

use super::{Sighting, long, narrow, told, wide, within};
use crate::time::{Mono, Span};

/// Too many children (keys of a dimension, routes of a group) tripped within a time: what ails them is wider
/// than each of them. At least one of `children` and `share` is given.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Spread {
    /// So many children. `None` unless said.
    pub children: Option<u32>,
    /// Such a share of the children seen, above 0 to 1. 0.5 unless said.
    pub share: Option<f64>,
    /// … but no fewer than this. Envoy's outlier detection asks for at least 5 hosts. 5 unless said.
    pub minimum: u32,
    /// The time. What is up to an eighth older may still count. 8 s to 30 days; 60 s unless said.
    pub within: Span,
}

impl Default for Spread {
    fn default() -> Spread {
        Spread { children: None, share: Some(0.5), minimum: 5, within: Span::from_secs(60) }
    }
}

/// What one scope remembers of its children's trips: an eighth of the time in each place, and one more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SpreadMemory {
    trips: [u32; 9],
    /// The number of the newest eighth.
    newest: u64,
}

impl Spread {
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        if self.children.is_none() && self.share.is_none() {
            return told("neither a number nor a share of children", "give one of them");
        }
        if self.children == Some(0) || self.minimum == 0 {
            return told("0 children are always tripped", "use at least 1");
        }
        if let Some(share) = self.share {
            within("share", share, 0.001, 1.0)?;
        }
        long("within", self.within, Span::from_secs(8), super::THIRTY_DAYS)
    }

    /// Counts a child's trip, unless that child's last *counted* one counts still; true if it counted it.
    pub(crate) fn tripped(
        &self,
        counted: Option<Mono>,
        now: Mono,
        memory: &mut SpreadMemory,
    ) -> bool {
        self.turn(now, memory);
        let number = counted.map(|counted| counted.as_nanos() / self.eighth());
        if number.is_some_and(|number| number + 8 >= memory.newest) {
            return false;
        }
        if let Some(trips) = memory.trips.get_mut(place(memory.newest)) {
            *trips = trips.saturating_add(1);
        }
        true
    }

    /// Judges, given how many children there are.
    pub(crate) fn judge(
        &self,
        children: u64,
        now: Mono,
        memory: &mut SpreadMemory,
    ) -> Option<Sighting> {
        self.turn(now, memory);
        let tripped: u64 = memory.trips.iter().map(|&trips| u64::from(trips)).sum();
        let of_share = self
            .share
            .map(|share| narrow((share * wide(children)).ceil()).max(u64::from(self.minimum)));
        let bound = match (self.children.map(u64::from), of_share) {
            (Some(number), Some(share)) => number.min(share),
            (one, other) => one.or(other)?,
        };
        (tripped >= bound).then(|| Sighting {
            value: wide(tripped),
            bound: wide(bound),
            window: self.within,
            count: tripped,
            of: children,
            learned: false,
        })
    }

    fn turn(&self, now: Mono, memory: &mut SpreadMemory) {
        let number = now.as_nanos() / self.eighth();
        let ahead = number.saturating_sub(memory.newest).min(PLACES);
        for step in 0..ahead {
            if let Some(trips) = memory.trips.get_mut(place(number - step)) {
                *trips = 0;
            }
        }
        memory.newest = memory.newest.max(number);
    }

    fn eighth(&self) -> u64 {
        (self.within.as_nanos() / 8).max(1)
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number % PLACES).unwrap_or(0)
}

const PLACES: u64 = 9;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Spread, SpreadMemory};
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(second: u64) -> Mono {
        Mono::from_nanos(second * 1_000_000_000)
    }

    /// Goal: half of the children within the time is found, fewer or slower is not.
    #[test]
    fn half_of_the_children() {
        let rule = Spread::default();
        let tripped = |count: u64, apart: u64| {
            let mut memory = SpreadMemory::default();
            for child in 1..=count {
                rule.tripped(None, at(1_000 + child * apart), &mut memory);
            }
            rule.judge(20, at(1_000 + count * apart), &mut memory).is_some()
        };
        assert!(tripped(10, 1));
        assert!(!tripped(9, 1));
        assert!(!tripped(100, 15));
    }

    /// Goal: few children need the minimum; a number needs none; one child that trips again is one.
    #[test]
    fn minimum_number_and_distinct_children() {
        let (rule, mut memory) = (Spread::default(), SpreadMemory::default());
        for child in 0..4 {
            rule.tripped(None, at(100 + child), &mut memory);
        }
        assert!(rule.judge(4, at(104), &mut memory).is_none());
        let number = Spread { children: Some(4), ..rule };
        assert!(number.judge(1_000, at(104), &mut memory).is_some());
        let mut memory = SpreadMemory::default();
        assert!(rule.tripped(None, at(100), &mut memory));
        for second in 101..140 {
            assert!(!rule.tripped(Some(at(100)), at(second), &mut memory));
        }
        assert!(number.judge(1_000, at(140), &mut memory).is_none());
    }

    proptest! {
        /// Goal: of trips at any instants all within the time are counted, and none an eighth older.
        #[test]
        fn counts_the_time_and_an_eighth(
            steps in proptest::collection::vec(0_u64..20_000, 1..100), within in 8_u64..100,
        ) {
            let rule = Spread { children: Some(1), within: Span::from_secs(within), ..Spread::default() };
            let (mut memory, mut now, mut seen) = (SpreadMemory::default(), 1 << 40, Vec::new());
            for step in steps {
                now += step * 1_000_000;
                rule.tripped(None, Mono::from_nanos(now), &mut memory);
                seen.push(now);
                let found = rule.judge(0, Mono::from_nanos(now), &mut memory).unwrap();
                let length = within * 1_000_000_000;
                let since = |length: u64| u64::try_from(seen.iter().filter(|&&at| at + length > now).count()).unwrap();
                prop_assert!(since(length) <= found.count && found.count <= since(length + length / 8));
            }
        }

        /// Goal: no instants make it panic.
        #[test]
        fn total(times in proptest::collection::vec((any::<Option<u64>>(), any::<u64>()), 0..50)) {
            let (rule, mut memory) = (Spread::default(), SpreadMemory::default());
            for (previous, now) in times {
                rule.tripped(previous.map(Mono::from_nanos), Mono::from_nanos(now), &mut memory);
                let _ = rule.judge(u64::MAX, Mono::from_nanos(now), &mut memory);
            }
        }
    }
}
