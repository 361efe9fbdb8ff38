//! Faults that negative controls switch on to see a check fail; built only with the feature `faults`, never in a release.

use std::sync::atomic::{AtomicBool, Ordering};

static NO_LAST_LOOK: AtomicBool = AtomicBool::new(false);
static NO_WAIT: AtomicBool = AtomicBool::new(false);

/// Leaves out the look at the gates inside the upstream's write.
pub fn set_no_last_look(on: bool) {
    // ordering: relaxed, set before any load and never during it.
    NO_LAST_LOOK.store(on, Ordering::Relaxed);
}

/// Answers a kill without waiting for the workers.
pub fn set_no_wait(on: bool) {
    // ordering: relaxed, as above.
    NO_WAIT.store(on, Ordering::Relaxed);
}

pub(crate) fn no_last_look() -> bool {
    // ordering: relaxed, as above.
    NO_LAST_LOOK.load(Ordering::Relaxed)
}

pub(crate) fn no_wait() -> bool {
    // ordering: relaxed, as above.
    NO_WAIT.load(Ordering::Relaxed)
}
