//! The rules of a kill switch and rate circuit breaker.
#![allow(missing_docs, dead_code, clippy::all)]
mod contract;
pub mod time;
pub use contract::*;
pub use time::{Mono, Span};
