//! The rules of a kill switch and rate circuit breaker.
#![allow(missing_docs, dead_code, clippy::all)]
pub mod time;
mod contract;
pub use contract::*;
pub use time::{Mono, Span};
