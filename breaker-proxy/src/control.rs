//! The control plane: kills, lifts, trips and resets in one line, on a thread of its own; no request passes here.

pub mod ledger;
pub mod orders;
pub mod record;
pub mod save;
pub mod sweep;
pub mod task;
