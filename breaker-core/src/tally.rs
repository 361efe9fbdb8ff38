//! Stub.
use crate::detect::Detector;
use crate::permit::Settlement;
use crate::time::{Mono, Span};
pub(crate) struct Tally {}
pub(crate) struct Found {
    pub(crate) detector: u8,
    pub(crate) window: Span,
    pub(crate) count: u64,
    pub(crate) trips: bool,
}
impl Tally {
    pub(crate) fn new(_: &[Detector], _rows: usize) -> Tally {
        Tally {}
    }
    pub(crate) fn hears_offers(&self) -> bool {
        false
    }
    pub(crate) fn offered(&self, _row: usize, _now: Mono) -> Option<Found> {
        None
    }
    pub(crate) fn count(&self, _row: usize, _window: Span, _now: Mono) -> u64 {
        0
    }
    pub(crate) fn finished(&self, _row: usize, _how: &Settlement, _now: Mono) -> Option<Found> {
        None
    }
    pub(crate) fn weight_of(&self, _row: usize) -> u64 {
        0
    }
    pub(crate) fn forget(&self, _row: usize) {}
}
