//! The rules of a kill switch and rate circuit breaker, as arithmetic on atomic words; no clock, no thread, no IO.
//!
//! | Room | What it is |
//! | --- | --- |
//! | `time`, `scope`, `facts` | words: plain data |
//! | `limit`, `gate`, `detect` | arithmetic: pure, no atomics |
//! | `policy` | rules, as written and as compiled |
//! | `sync`, `cell`, `keys`, `tally`, `sending` | atomics |
//! | `breaker`, `permit`, `judges`, `sweep` | the house |
//!
//! Begin with [`Breaker::admit`]; [`guide`] shows the whole by example, [`model`] says what is promised.

mod breaker;
mod cell;
mod charges;
mod counts;
mod detect;
mod facts;
mod gate;
mod judges;
mod keys;
mod limit;
mod permit;
mod policy;
mod scope;
mod sending;
mod sweep;
mod sync;
mod tally;
pub mod time;

pub use breaker::{
    Breaker, Call, Capacity, DimensionUsage, KeyUsage, LimitUsage, OrderError, ScopeOrKey, Seed,
    Stamp, Standing,
};
pub use counts::ScopeCounts;
pub use detect::{
    DetectorKind, DetectorSpec, Errors, Found, Latency, Learned, LearnedError, Novel, OnFind,
    Ratio, Repeat, ShareOf, Silence, Spread, Streak, Surge, SurgeWindow,
};
pub use facts::{By, Cause, Class, Denial, KillLevel, Mode, Outcome, Place, State, Transition};
pub use gate::LiftTo;
pub use judges::{Finding, LearnedAt};
pub use permit::{Pass, Permit, Settlement, Ticket, Verdict};
pub use policy::{
    Counting, Dimension, GroupSpec, KeyOverride, KeySpec, LimitKind, LimitSpec, Newcomers,
    OnBreach, Policy, PolicyError, PolicySpec, Recover, RouteId, RouteSpec, ScopeSpec, Unit,
};
pub use scope::{KeyHash, Level, Scope, ScopeError};
pub use sending::{Sender, Senders, Watch};
pub use sweep::Sweeper;
pub use time::{Mono, Span};

#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

#[doc = include_str!("../docs/model.md")]
pub mod model {}
