//! What people ask of the control plane and what it answers, as data; it does nothing.

use super::record::{Level, LiftTo};
use breaker_core::Scope;
use serde::{Deserialize, Serialize};

/// Bytes of a reason, at most.
pub const REASON_MAX: usize = 500;

/// Who asks, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// The answer to a kill. The three facts are told apart, each with its time in microseconds since the order was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KillAnswer {
    /// The kill's id.
    pub id: String,
    /// The scope.
    pub scope: String,
    /// The level.
    pub level: Level,
    /// The gate is moved: no new call is admitted.
    pub in_force: bool,
    /// When.
    pub in_force_us: u64,
    /// Every worker was seen outside a write to an upstream: no byte of a killed call goes out any more.
    pub silent: bool,
    /// When.
    pub silent_us: Option<u64>,
    /// Workers that were still inside when the wait ended.
    pub pending_workers: Vec<usize>,
    /// The kill is on the disk: it survives a crash.
    pub durable: bool,
    /// When.
    pub durable_us: Option<u64>,
    /// Calls of the scope that were in flight.
    pub in_flight: u64,
    /// Of these, the ones that were ended; the others run out.
    pub severed: u64,
}

impl KillAnswer {
    /// Is everything done that the word "done" promises?
    #[must_use]
    pub fn done(&self) -> bool {
        self.in_force && self.silent && self.durable
    }
}

/// The answer to a lift.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LiftAnswer {
    /// The scope.
    pub scope: String,
    /// The kills that were lifted.
    pub lifted: Vec<String>,
    /// The level at which other kills still hold the scope.
    pub still_killed: Option<Level>,
    /// The state the scope is in now.
    pub state: String,
    /// The lift is on the disk.
    pub durable: bool,
}

/// The answer to a trip or a reset by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MoveAnswer {
    /// The scope.
    pub scope: String,
    /// The state it is in now.
    pub state: String,
    /// The trip's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// It is on the disk.
    pub durable: bool,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// No such scope; the nearest names.
    UnknownScope(Vec<Scope>),
    /// No room for one more kill of a key.
    NoRoom,
    /// There is no live kill to lift.
    NotKilled,
    /// These kills are not there.
    UnknownKills(Vec<String>),
    /// The scope is killed: it is lifted, not reset or tripped.
    Killed,
    /// Somebody killed the scope again in the meantime.
    Stale,
    /// The journal does not take it: nothing was changed.
    NotDurable,
}

/// The body of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderBody {
    /// Why: required, for the record.
    #[serde(default)]
    pub reason: String,
    /// Who, for the record; without it the token's name stands there.
    pub actor: Option<String>,
    /// Kill only: `halt` (the default) or `cut`.
    pub level: Option<Level>,
    /// Lift only: the kills; none named means all of the scope.
    #[serde(default)]
    pub kills: Vec<String>,
    /// Lift only: `half-open` (the default) or `armed`.
    pub to: Option<LiftTo>,
}
