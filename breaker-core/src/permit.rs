//! The answer to a call: a verdict, the permit inside it, and the pass that the last look needs; it decides nothing.

use crate::breaker::Breaker;
use crate::facts::{Denial, Outcome};
use crate::gate::{Input, TripRule};
use crate::scope::KeyHash;
use crate::time::Mono;

/// The answer to a call.
#[must_use]
#[derive(Debug)]
pub enum Verdict<'b> {
    /// It may pass.
    Allow(Permit<'b>),
    /// It may not.
    Deny(Denial),
}

/// Leave for one call. Settle it with the call's outcome; dropped unsettled, it gives its probe back
/// and counts for nothing.
#[must_use]
pub struct Permit<'b> {
    pub(crate) breaker: &'b Breaker,
    pub(crate) pass: Pass,
    /// For each seat of the lineage that gave a probe: the rule by which to count it.
    pub(crate) probes: Probes,
    pub(crate) shadowed: Option<Denial>,
}

/// What the last look needs: the lineage's gates, the epochs they had, and the class.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    pub(crate) reducing: bool,
    /// Global, group, route.
    pub(crate) named: [NamedSeat; 3],
    /// In the order of `Policy::dimensions`.
    pub(crate) keys: [Option<KeySeat>; 4],
}

/// One rule for each seat: global, group, route, and the keys.
pub(crate) type Probes = [Option<TripRule>; 7];

#[derive(Clone, Copy, Debug)]
pub(crate) struct NamedSeat {
    pub(crate) cell: u32,
    pub(crate) epoch: u16,
    pub(crate) shadow: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct KeySeat {
    pub(crate) key: KeyHash,
    /// `NO_CELL` for a key that had none of its own.
    pub(crate) cell: u32,
    pub(crate) table: u8,
    pub(crate) shadow: bool,
    pub(crate) epoch: u16,
}

/// No table is this large: memory for it would be refused.
pub(crate) const NO_CELL: u32 = u32::MAX;

const _: () = assert!(size_of::<Option<KeySeat>>() == 16, "a pass is copied at every send");

impl Verdict<'_> {
    /// Whether the call may pass.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Verdict::Allow(_))
    }
}

impl Permit<'_> {
    /// What the last look needs.
    #[must_use]
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// Whether a gate on probation waits for how the call goes.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probes.iter().any(Option::is_some)
    }

    /// Counts how the call went; true if that moved a gate: nudge the sweeper.
    ///
    /// Only probes count: on probation `Good` brings the gate nearer to armed, `Slow` and `Fault`
    /// trip it again. An answer from an earlier probation counts for nothing.
    #[expect(clippy::must_use_candidate, reason = "settling is the point; the answer is a hint")]
    pub fn settle(mut self, outcome: Outcome, now: Mono) -> bool {
        self.give_back(now, |epoch| match outcome {
            Outcome::Good => Input::ProbePassed(epoch),
            Outcome::Slow | Outcome::Fault => Input::ProbeFailed(epoch),
        })
    }

    /// The first denial that shadow mode let through. If it says `moved`, nudge the sweeper.
    #[must_use]
    pub fn shadowed(&self) -> Option<&Denial> {
        self.shadowed.as_ref()
    }

    fn give_back(&mut self, now: Mono, input: impl Fn(u16) -> Input) -> bool {
        let probes = std::mem::take(&mut self.probes);
        let mut moved = false;
        for (seat, rule) in probes.iter().enumerate() {
            if let Some(rule) = rule {
                moved |= self.breaker.settle_seat(&self.pass, seat, &input, rule, now);
            }
        }
        moved
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // A probe that is given back moves no deadline, so no time is needed.
        self.give_back(Mono::ZERO, Input::ProbeAbandoned);
    }
}

impl std::fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit")
            .field("pass", &self.pass)
            .field("shadowed", &self.shadowed)
            .finish_non_exhaustive()
    }
}
