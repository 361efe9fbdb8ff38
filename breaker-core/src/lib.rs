//! The rules of a kill switch and rate circuit breaker, as arithmetic on atomic words; no clock, no thread, no IO.

mod breaker;
mod cell;
mod facts;
mod gate;
mod keys;
mod limit;
mod permit;
mod policy;
mod scope;
mod sending;
mod sweep;
mod sync;
pub mod time;

pub use breaker::{
    Breaker, Call, Capacity, KeyUsage, OrderError, ScopeOrKey, Seed, Stamp, Standing,
};
pub use facts::{Cause, Class, Denial, KillLevel, Mode, Outcome, Place, State, Transition};
pub use gate::LiftTo;
pub use permit::{Pass, Permit, Verdict};
pub use policy::{
    Counting, Dimension, GroupSpec, KeySpec, LimitKind, LimitSpec, OnBreach, Policy, PolicyError,
    PolicySpec, Recover, RouteId, RouteSpec, ScopeSpec,
};
pub use scope::{KeyHash, Level, Scope, ScopeError};
pub use sending::{Sender, Senders, Watch};
pub use sweep::Sweeper;
pub use time::{Mono, Span};
