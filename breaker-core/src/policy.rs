//! All rules for all scopes, as written and as checked; it holds no memory of its own and decides no call.

mod check;
mod compiled;
mod spec;

pub use self::check::PolicyError;
pub use self::compiled::{Dimension, Policy, RouteId};
pub use self::spec::{
    Counting, GroupSpec, KeyOverride, KeySpec, LimitKind, LimitSpec, Missing, Newcomers, OnBreach,
    PolicySpec, Recover, RouteSpec, ScopeSpec, Unit,
};

pub(crate) use self::check::{Draft, DraftKey, DraftRules, Room, check};
pub(crate) use self::compiled::{
    Before, Charge, Charged, Due, Ending, Hearing, KeyRules, LimitRule, MAX_DIMENSIONS, MAX_LIMITS,
    MAX_SHORT, Memory, NAMED, Plainest, Refusal, RouteRules, Rules, ScopeRules, Short, limit_bit,
};
