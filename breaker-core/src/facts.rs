//! What the core says: denials, states, transitions, and their causes, as plain values; it decides nothing.

use std::fmt;
use std::time::Duration;

use crate::scope::{KeyHash, Level};
use crate::time::{Mono, Span};

/// What a call does to risk. It comes from policy alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum Class {
    /// May add risk: anything blocks it.
    Normal,
    /// Cancels, reads, health: passes a trip and a halt, but not a cut, and charges no limit.
    Reducing,
}

/// How hard a kill is. A cut is higher than a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KillLevel {
    /// New work is refused; reducing calls pass.
    Halt,
    /// Everything is refused.
    Cut,
}

/// Whether a scope's limits and trips deny, or are only recorded. A kill always denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum Mode {
    /// They deny.
    Enforce,
    /// They are recorded: limits are charged what they would have been charged live, gates trip, calls go on.
    Shadow,
}

/// Where a gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass.
    Armed,
    /// Normal calls are refused, until a hold has elapsed or a person decides.
    Tripped,
    /// On probation: a few probes pass and decide.
    HalfOpen,
    /// Refused by order, until lifted.
    Killed(KillLevel),
}

/// Why a call was denied, or why a gate stands where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A limit refused: its index among the limits of its scope. A limit on weight refuses a call that is not weighed as well.
    Limit(u8),
    /// The gate is tripped, and by whom.
    Tripped(By),
    /// The gate is tripped again: a probe failed after a lift.
    ProbeFailed,
    /// The gate is half-open and all its probes are taken.
    Probing,
    /// The gate is killed.
    Killed(KillLevel),
    /// The gate moved between the decision and the send (a kill and its lift, say), or the route
    /// is not one of the policy at hand: what was decided no longer counts.
    Stale,
}

/// Who tripped a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// A person, or the embedder.
    Hand,
    /// A limit: its index among the limits of the scope.
    Limit(u8),
    /// A detector: its index among the detectors of the scope.
    Detector(u8),
    /// A detector of a wider scope: of what that found too much this key had made the larger part.
    Wider,
}

/// The place of one gate. Two places are the same gate only within one breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// How wide the scope is.
    pub level: Level,
    /// Which named scope; for a key, which dimension. Opaque: `Policy::scope_of` reads it.
    pub index: u32,
    /// For a key: its dimension's index in `Policy::dimensions`, and its hash.
    pub key: Option<(u8, KeyHash)>,
}

/// The answer to a call that may not pass. It is an error, so `?` takes it, and it prints as one line; names are the policy's,
/// which a denial does not hold: `Policy::scope_of` has them, and `Policy::limit_of`.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Whose gate or limit denied.
    pub place: Place,
    /// Why.
    pub cause: Cause,
    /// The exact wait until the same call could pass if no other took its place, where one is
    /// known; never for a kill.
    pub wait: Option<Span>,
    /// This very call tripped a gate: nudge the sweeper.
    pub moved: bool,
    /// The gate's epoch when it was looked at; with `place` it identifies one trip or one kill.
    /// Zero for a key that shares the overflow cell, which has no gate.
    pub epoch: u16,
}

/// How a call that passed went. A permit dropped unsettled is none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// As it should.
    Good,
    /// Answered, too late: a probe that is slow has failed.
    Slow,
    /// Failed.
    Fault,
}

/// The fact that a gate moved, as a sweep saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Which gate.
    pub place: Place,
    /// Where it stood at the last sweep.
    pub from: State,
    /// Where it stands.
    pub to: State,
    /// Why it stands there; `None` for armed.
    pub cause: Option<Cause>,
    /// When the sweep saw it.
    pub at: Mono,
    /// When its hold ends, if it is tripped and has an end.
    pub until: Option<Mono>,
    /// The gate's epoch now.
    pub epoch: u16,
    /// Moves in between that this sweep did not see one by one.
    pub skipped: u16,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.place.level {
            Level::Global => "`/`",
            Level::Group => "the group",
            Level::Route => "the route",
            Level::Key => "the key",
        };
        match self.cause {
            Cause::Limit(index) => write!(f, "limit[{index}] of {whose} refused")?,
            Cause::Tripped(by) => write!(f, "{whose} is tripped by {by}")?,
            Cause::ProbeFailed => write!(f, "{whose} is tripped again by a failed probe")?,
            Cause::Probing => write!(f, "{whose} is on probation, and all its probes are taken")?,
            Cause::Killed(KillLevel::Halt) => write!(f, "{whose} is killed: halt")?,
            Cause::Killed(KillLevel::Cut) => write!(f, "{whose} is killed: cut")?,
            Cause::Stale => {
                write!(f, "the gate of {whose} moved on, or the route is another policy's")?;
            }
        }
        match self.wait {
            Some(wait) => write!(f, "; wait {:?}", Duration::from_nanos(wait.as_nanos())),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Denial {}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Hand => f.write_str("hand"),
            By::Limit(index) => write!(f, "limit[{index}]"),
            By::Detector(index) => write!(f, "detector[{index}]"),
            By::Wider => f.write_str("a detector of a wider scope"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::error::Error;

    use super::{By, Cause, Denial, KillLevel, Place};
    use crate::scope::Level;
    use crate::time::Span;

    /// Goal: a denial goes through `?` into any error, and says who denied, why, and how long to wait.
    #[test]
    fn a_denial_is_an_error_of_one_line() {
        let said = |level, cause, wait| -> Result<(), Box<dyn Error + Send + Sync>> {
            let place = Place { level, index: 0, key: None };
            Err(Denial { place, cause, wait, moved: false, epoch: 0 })?
        };
        let wait = Some(Span::from_millis(200));
        let cases = [
            (Level::Key, Cause::Limit(1), wait, "limit[1] of the key refused; wait 200ms"),
            (Level::Group, Cause::Tripped(By::Hand), None, "the group is tripped by hand"),
            (
                Level::Route,
                Cause::Tripped(By::Detector(2)),
                wait,
                "the route is tripped by detector[2]; wait 200ms",
            ),
            (Level::Global, Cause::Killed(KillLevel::Cut), None, "`/` is killed: cut"),
        ];
        for (level, cause, wait, expected) in cases {
            assert_eq!(said(level, cause, wait).unwrap_err().to_string(), expected);
        }
    }
}
