//! An inline reverse proxy that limits, trips and can be killed.
//!
//! Start with [`app`], which builds everything in order, then follow one request through [`data::handle`] and one kill
//! through [`control::task`]. `docs/ARCHITECTURE.md` has the picture.

pub mod access;
pub mod admin;
pub mod app;
pub mod certificates;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod data;
pub mod demo;
#[cfg(feature = "faults")]
pub mod faults;
pub mod inspect;
pub mod journal;
pub mod keys;
pub mod metrics;
pub mod origin;
pub mod path;
pub mod ports;
pub mod restore;
pub mod router;
pub mod snapshot;
pub mod standings;
pub mod state;
pub mod voice;
pub mod wire;
