//! The rules of a kill switch and rate circuit breaker, as arithmetic on atomic words; no clock, no thread, no IO.
//!
//! | Room | What it is |
//! | --- | --- |
//! | `time`, `scope`, `facts` | words: plain data |
//! | `limit`, `gate`, `detect`, `hashes` | arithmetic: pure, no atomics |
//! | `policy` | rules, as written and as compiled |
//! | `sync`, `cell`, `keys`, `tally`, `sending` | atomics |
//! | `breaker`, `permit`, `sent`, `judges`, `sweep` | the house |
//! | `clock`, `bell`, `driver`, `silence` | with feature `std`: a clock, and a thread that sweeps; nothing above names them |
//!
//! Begin with [`Breaker::admit`]; [`guide`] shows the whole by example, [`model`] says what is promised.

#[cfg(feature = "std")]
mod bell;
mod breaker;
mod cell;
mod charges;
#[cfg(all(feature = "std", not(loom)))]
mod clock;
mod counts;
mod detect;
#[cfg(all(feature = "std", not(loom)))]
mod driver;
mod facts;
mod gate;
mod hashes;
mod judges;
mod keys;
mod limit;
mod permit;
mod policy;
mod scope;
mod sending;
mod sent;
#[cfg(all(feature = "std", not(loom)))]
mod silence;
mod sweep;
mod sync;
mod tally;
pub mod time;

pub use breaker::{
    Breaker, Call, Capacity, DimensionUsage, Gates, KeyUsage, LimitUsage, Missed, OrderError,
    Restart, Restored, Saved, SavedCause, SavedCharge, SavedDimension, SavedGate, SavedKey,
    SavedLimit, SavedScope, SavedState, SavedWhole, ScopeOrKey, Stamp, Standing, Why,
};
pub use breaker::{Lease, LeaseCounts, LeaseError, Unfit};
#[cfg(all(feature = "std", not(loom)))]
pub use clock::{ClockSource, MonotonicClock};
pub use counts::ScopeCounts;
pub use detect::{
    DetectorKind, DetectorSpec, Errors, Found, Latency, Learned, LearnedError, Novel, OnFind,
    Ratio, Repeat, ShareOf, Silence, Spread, Streak, Surge, SurgeWindow,
};
#[cfg(all(feature = "std", not(loom)))]
pub use driver::{Driver, Health, News, Nudge};
pub use facts::{By, Cause, Class, Denial, KillLevel, Mode, Outcome, Place, State, Transition};
pub use gate::LiftTo;
pub use hashes::Seed;
pub use judges::{Finding, LearnedAt};
pub use permit::{Held, Pass, Permit, Settlement, Ticket, Verdict};
pub use policy::{
    Counting, Dimension, GroupSpec, KeyOverride, KeySpec, LimitKind, LimitSpec, Missing, Newcomers,
    OnBreach, Policy, PolicyError, PolicySpec, Recover, RouteId, RouteSpec, ScopeSpec, Unit,
};
pub use scope::{KeyHash, Level, Scope, ScopeError};
pub use sending::{Hush, Sender, Senders, Watch};
pub use sent::{Sent, SentTicket, Unsettled};
#[cfg(all(feature = "std", not(loom)))]
pub use silence::Killed;
pub use sweep::Sweeper;
pub use time::{Mono, Span};

#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

#[cfg(all(feature = "std", not(loom)))]
#[doc = include_str!("../docs/running.md")]
pub mod running {}

#[doc = include_str!("../docs/model.md")]
pub mod model {}
