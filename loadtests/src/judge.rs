//! The arithmetic behind the verdict of a kill: which requests came late, what the load was told; it does no IO.

use crate::load::{Fate, Kind, target_of};
use crate::origin::Arrival;
use crate::report::Verdict;
use crate::stamp::Wall;

/// The span in which a kill was known to be in force, and whom it concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    /// When the kernel received the first byte of the kill's answer.
    pub(crate) answered: Wall,
    /// Just before the lift was written.
    pub(crate) lifted: Wall,
    /// For each target, whether it lies in the killed scope.
    pub(crate) covered: &'a [bool],
}

impl Span<'_> {
    fn covers(&self, target: usize) -> bool {
        self.covered.get(target).copied().unwrap_or(false)
    }

    fn holds(&self, at: Wall) -> bool {
        self.answered < at && at < self.lifted
    }
}

/// What the upstream saw of one kill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// Requests of the scope whose first byte arrived after the answer: must be none. A request that never told
    /// its name counts here too.
    pub(crate) late: u64,
    /// Of the late ones, how long after the answer the last one came, in nanoseconds.
    pub(crate) latest: u64,
    /// Requests of the scope that had arrived before the answer but were read after it.
    pub(crate) queued: u64,
    /// Requests of the scope that began before the answer and had further bytes arrive after it.
    pub(crate) trailing: u64,
}

/// Counts what arrived.
pub(crate) fn upstream(span: Span<'_>, arrivals: &[Arrival]) -> Upstream {
    let mut seen = Upstream::default();
    for arrival in arrivals {
        let covered = arrival.id.is_none_or(|id| span.covers(target_of(id, span.covered.len())));
        if !covered {
            continue;
        }
        if span.holds(arrival.first) {
            seen.late += 1;
            seen.latest = seen.latest.max(arrival.first.saturating_sub(span.answered));
        } else if arrival.first <= span.answered {
            seen.queued += u64::from(span.holds(arrival.read));
            seen.trailing += u64::from(span.holds(arrival.last));
        }
    }
    seen
}

/// What the load was told in the span, by requests that were both sent and ended in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// In the scope and answered 503 with a problem document.
    pub(crate) refused: u64,
    /// In the scope and answered anything else.
    pub(crate) wrong: u64,
    /// One status of those, for the report.
    pub(crate) wrong_status: u16,
    /// In the scope and not answered, for the connection broke.
    pub(crate) broken: u64,
    /// The same, but with a body under way, which a server may break off (it answers before it has read everything).
    pub(crate) broken_bodies: u64,
    /// Outside the scope and answered 200.
    pub(crate) spared: u64,
    /// Outside the scope and answered anything else, or not at all.
    pub(crate) hurt: u64,
}

/// Counts what the load was told.
pub(crate) fn told(span: Span<'_>, fates: &[Fate]) -> Told {
    let mut told = Told::default();
    for fate in fates.iter().filter(|fate| span.holds(fate.sent) && span.holds(fate.ended)) {
        match (span.covers(fate.target), fate.status) {
            (true, 503) if fate.problem => told.refused += 1,
            (true, 0) if fate.kind == Kind::Body => told.broken_bodies += 1,
            (true, 0) => told.broken += 1,
            (true, status) => {
                told.wrong += 1;
                told.wrong_status = status;
            }
            (false, 200) => told.spared += 1,
            (false, _) => told.hurt += 1,
        }
    }
    told
}

/// Whether no request of the scope reached the upstream after the answer.
pub(crate) fn nothing_late(round: usize, seen: &Upstream) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.check(seen.late == 0, || {
        format!(
            "round {round}: {} requests reached the upstream after the kill's answer, the last {} us after it",
            seen.late,
            seen.latest / 1_000
        )
    });
    verdict
}

/// Whether the load was told what it should have been.
pub(crate) fn told_right(round: usize, told: &Told) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.check(told.wrong == 0, || {
        format!(
            "round {round}: {} calls into the killed scope were answered other than 503 (one: {})",
            told.wrong, told.wrong_status
        )
    });
    verdict.check(told.broken == 0, || {
        format!("round {round}: {} calls into the killed scope got no answer at all", told.broken)
    });
    verdict.check(told.hurt == 0, || {
        format!("round {round}: {} calls outside the killed scope were not answered 200", told.hurt)
    });
    verdict.check(told.refused > 0, || format!("round {round}: no call met the kill"));
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Targets 0 and 2 of three are in the scope; the span is (100, 200).
    const SPAN: Span<'_> = Span { answered: 100, lifted: 200, covered: &[true, false, true] };

    fn arrival(id: Option<u64>, first: Wall, read: Wall, last: Wall) -> Arrival {
        Arrival { id, first, read, last, stamped: true, whole: true }
    }

    /// Goal: a first byte counts by its arrival alone; one equal to the answer's is not later than it.
    #[test]
    fn late_is_by_arrival_and_queued_by_reading() {
        let arrivals = [
            arrival(Some(3), 99, 99, 99),    // before
            arrival(Some(3), 100, 101, 100), // queued
            arrival(Some(3), 90, 99, 150),   // trailing
            arrival(Some(3), 101, 102, 101), // late
            arrival(Some(5), 199, 300, 199), // late, though read after the lift
            arrival(None, 150, 150, 150),    // late: it never told its name
            arrival(Some(4), 150, 150, 150), // outside the scope
            arrival(Some(3), 200, 200, 200), // after the lift
            arrival(Some(3), 201, 250, 260), // after the lift
        ];
        let seen = upstream(SPAN, &arrivals);
        assert_eq!(seen, Upstream { late: 3, latest: 99, queued: 1, trailing: 1 });
        assert!(!nothing_late(1, &seen).passed());
        assert!(nothing_late(1, &upstream(SPAN, &arrivals[..3])).passed());
    }

    fn fate(target: usize, status: u16, sent: Wall, ended: Wall) -> Fate {
        Fate { sent, ended, status, problem: status == 503, target, kind: Kind::Plain }
    }

    /// Goal: only requests wholly within the span are judged, each by whether the kill concerned it.
    #[test]
    fn the_load_is_judged_within_the_span() {
        let fates = [
            fate(0, 200, 99, 150),  // sent before the answer
            fate(0, 200, 150, 201), // ended after the lift
            fate(0, 503, 101, 102),
            fate(2, 503, 101, 102),
            fate(1, 200, 101, 102),
        ];
        let right = told(SPAN, &fates);
        assert_eq!(right, Told { refused: 2, spared: 1, ..Told::default() });
        assert!(told_right(1, &right).passed());

        let body = Fate { kind: Kind::Body, ..fate(0, 0, 101, 102) };
        let bare = Fate { problem: false, ..fate(0, 503, 101, 102) };
        for (wrong, expected) in [
            (fate(0, 200, 101, 102), Told { wrong: 1, wrong_status: 200, ..right }),
            (bare, Told { wrong: 1, wrong_status: 503, ..right }),
            (fate(0, 0, 101, 102), Told { broken: 1, ..right }),
            (fate(1, 503, 101, 102), Told { hurt: 1, ..right }),
            (fate(1, 0, 101, 102), Told { hurt: 1, ..right }),
        ] {
            let all: Vec<Fate> = fates.iter().copied().chain([wrong]).collect();
            assert_eq!(told(SPAN, &all), expected);
            assert!(!told_right(1, &expected).passed(), "{wrong:?}");
        }
        let with_body: Vec<Fate> = fates.iter().copied().chain([body]).collect();
        assert!(told_right(1, &told(SPAN, &with_body)).passed());
        assert!(!told_right(1, &Told::default()).passed(), "a kill that met nobody proves nothing");
    }
}
