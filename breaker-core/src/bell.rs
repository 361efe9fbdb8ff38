//! What calls a thread that waits: a nudge is never lost, and a stop is final. It owns no thread and knows no time.

use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// Shared by the one that waits and those that call it. Whoever rings it unparks the thread afterwards.
#[derive(Default)]
pub(crate) struct Bell {
    stop: AtomicBool,
    /// Calls so far.
    nudges: AtomicU64,
}

impl Bell {
    /// Calls for work; unpark next.
    pub(crate) fn nudge(&self) {
        // ordering: relaxed, for the count stands alone: what the work is about is read from words of its own, and
        // unparking carries it to the thread that was parked.
        self.nudges.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls the thread home; unpark next.
    pub(crate) fn stop(&self) {
        // ordering: relaxed, as above; nothing is handed over but the word.
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether to go home.
    pub(crate) fn is_stopped(&self) -> bool {
        // ordering: relaxed: parking returns after the unpark that follows the store, and sees it then.
        self.stop.load(Ordering::Relaxed)
    }

    /// Calls so far: one that is not in what was answered is waited for by nobody.
    pub(crate) fn nudges(&self) -> u64 {
        // ordering: relaxed, for the count stands alone.
        self.nudges.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::Bell;

    /// A thread that works once for each nudge it finds and parks in between, against one that nudges and then stops it.
    /// `LATE`: the stop is stored after the thread is unparked.
    fn waits_and_goes_home<const LATE: bool>() {
        loom::model(|| {
            // Leaked, so that nothing is dropped while the model unwinds.
            let bell: &'static Bell = Box::leak(Box::default());
            let thread = loom::thread::spawn(move || {
                let mut answered = 0;
                while !bell.is_stopped() {
                    answered = bell.nudges();
                    // Here it works.
                    if bell.nudges() == answered && !bell.is_stopped() {
                        loom::thread::park();
                    }
                }
                answered
            });
            bell.nudge();
            thread.thread().unpark();
            if LATE {
                thread.thread().unpark();
                bell.stop();
            } else {
                bell.stop();
                thread.thread().unpark();
            }
            // A lost call would leave it parked: the model then finds no thread that can run.
            let answered = thread.join().unwrap();
            assert!(answered <= bell.nudges());
        });
    }

    /// Goal: a thread that is called while it is about to park does not sleep through it.
    #[test]
    fn loom_a_call_is_not_slept_through() {
        waits_and_goes_home::<false>();
    }

    /// Negative control: a stop that is stored after the unpark is slept through.
    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_a_stop_after_the_unpark_is_caught() {
        waits_and_goes_home::<true>();
    }
}
