//! A deadline of a connection; it ends nothing itself.

use std::future::Future as _;
use std::pin::Pin;
use std::task::Context;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// A deadline that moves with every phase but is put into the runtime's timer only when it must be.
pub struct Alarm {
    sleep: Pin<Box<Sleep>>,
    armed: Instant,
}

impl Alarm {
    /// Set for this time.
    #[must_use]
    pub fn new(at: Instant) -> Alarm {
        Alarm { sleep: Box::pin(sleep_until(at)), armed: at }
    }

    /// Has `deadline` passed? Wakes the task when it does.
    pub fn passed(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if deadline < self.armed {
            self.sleep.as_mut().reset(deadline);
            self.armed = deadline;
        }
        // An alarm armed for an earlier phase rings too soon: then it is set anew, once.
        while self.rings(cx) {
            if Instant::now() >= deadline {
                return true;
            }
            self.sleep.as_mut().reset(deadline);
            self.armed = deadline;
        }
        false
    }

    /// A task that has used up its turn is told that no timer rings: whoever keeps it busy all the time would stop the clock.
    fn rings(&mut self, cx: &mut Context<'_>) -> bool {
        Pin::new(&mut unconstrained(self.sleep.as_mut())).poll(cx).is_ready()
    }
}
