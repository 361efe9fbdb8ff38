//! A kill that waits for its silence, with the ready clock. It moves no gate itself.

use crate::breaker::{Breaker, OrderError, Stamp};
use crate::clock::MonotonicClock;
use crate::facts::KillLevel;
use crate::policy::Policy;
use crate::scope::Scope;
use crate::sending::{Hush, Senders};
use crate::sync::pause;
use crate::time::Span;

/// A kill that is in force, and how silent it is.
#[must_use = "a kill that is not silent is still waited for"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Killed {
    /// What a lift must name.
    pub stamp: Stamp,
    /// Whether anything can still go out.
    pub silence: Hush,
}

impl Senders {
    /// Kills a scope or key, which is in force at once, and waits until no sender is inside a send that may have begun
    /// before; at most `within`. It spins for some microseconds, and then lets other threads on.
    ///
    /// Silence is that of these senders: keep one `Senders` for all that the breaker guards. Within a send it would
    /// wait for itself, in vain.
    ///
    /// # Errors
    /// As [`Breaker::kill`]: nothing was killed.
    pub fn kill(
        &self,
        breaker: &Breaker,
        policy: &Policy,
        scope: &Scope,
        level: KillLevel,
        clock: &MonotonicClock,
        within: Span,
    ) -> Result<Killed, OrderError> {
        let stamp = breaker.kill(policy, scope, level, clock.now())?;
        let mut turns = 0_u32;
        let silence = self.watch().wait(within, || {
            turns = turns.saturating_add(1);
            if turns < SPINS {
                pause();
            } else {
                std::thread::yield_now();
            }
            clock.now()
        });
        Ok(Killed { stamp, silence })
    }
}

/// Looks at the marks before other threads are let on.
const SPINS: u32 = 200;
