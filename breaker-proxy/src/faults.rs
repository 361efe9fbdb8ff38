//! Faults that negative controls switch on to see a check fail; built only with the feature `faults`, never in a release.

use std::sync::atomic::{AtomicBool, Ordering};

static NO_LAST_LOOK: AtomicBool = AtomicBool::new(false);
static NO_WAIT: AtomicBool = AtomicBool::new(false);

/// Leaves out the look at the gates inside the upstream's write.
pub fn set_no_last_look(on: bool) {
    // ordering: relaxed, set before any load and never during it.
    NO_LAST_LOOK.store(on, Ordering::Relaxed);
}

/// Answers a kill without waiting for the workers, and lets some of them stall between the last look and the write, as a
/// thread does that loses its core there.
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

/// With [`set_no_wait`]: every sixteenth write of a thread stalls, after its look.
pub(crate) fn stall() {
    thread_local! {
        static WRITES: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    let write = WRITES.with(|writes| writes.replace(writes.get().wrapping_add(1)));
    if no_wait() && write.is_multiple_of(16) {
        let end = std::time::Instant::now() + STALL;
        while std::time::Instant::now() < end {
            std::hint::spin_loop();
        }
    }
}

/// Long beside a kill's answer, short beside a round.
const STALL: std::time::Duration = std::time::Duration::from_millis(20);
