//! A permit that its send consumes, and what is left of it: a call that went out and must still be settled. It holds no atomic.

use crate::breaker::Breaker;
use crate::counts::Count;
use crate::facts::{Denial, Outcome};
use crate::permit::{Permit, Settlement, Ticket};
use crate::policy::Policy;
use crate::sending::Sender;
use crate::time::Mono;

/// A call that went out, with what its write returned. The value is reached by settling the call, or by
/// [parting](Sent::into_parts) from it, so that neither is forgotten.
#[must_use = "it went out: settle it, or part from it and settle it when the answer comes"]
#[derive(Debug)]
pub struct Sent<'a, R> {
    value: R,
    call: Unsettled<'a>,
}

/// A call that went out and whose end is not known yet. It cannot be sent again. Dropped, it counts as neither good nor bad, keeps
/// what its limits were charged, and gives back its place in flight and its probe.
#[must_use = "settle it when the answer comes; dropped, it says nothing of how the call went"]
#[derive(Debug)]
pub struct Unsettled<'a>(Permit<'a>);

/// An unsettled call without its borrows, for answers that arrive elsewhere. It must be
/// [attached](SentTicket::attach) again to end: lost, it keeps its place in flight for ever and its probe for a time.
#[must_use = "attach it and settle it when the answer comes"]
#[derive(Debug)]
pub struct SentTicket(Ticket);

impl<'a> Permit<'a> {
    /// The way to the wire: marks the sender, looks at the gates once more, runs `write` if they still allow,
    /// unmarks. The permit is consumed, so nothing goes out twice on it.
    ///
    /// After a kill whose [silence](crate::Hush) was proven, no `write` of a killed scope runs any more. What `write` does must
    /// be over when it returns. If it panics, the call counts as dropped.
    ///
    /// # Errors
    /// The denial of the last look: nothing was written, and all that the call was charged is given back as far as it
    /// can be. A window keeps the call; rates give back what time has not forgiven yet, budgets all; limits of *offered* calls
    /// keep it, since it was offered.
    pub fn send<R>(
        self,
        sender: &Sender<'_>,
        now: Mono,
        write: impl FnOnce() -> R,
    ) -> Result<Sent<'a, R>, Denial> {
        match sender.send(self.breaker, &self.pass(), now, write) {
            Ok(value) => Ok(Sent { value, call: Unsettled(self) }),
            Err(denial) => {
                self.retract(Count::Blocked, now);
                Err(denial)
            }
        }
    }
}

impl<'a, R> Sent<'a, R> {
    /// Says how the call went, and hands out what its write returned.
    pub fn settle(self, outcome: Outcome, now: Mono) -> R {
        self.settle_by(now, |_| Settlement::of(outcome))
    }

    /// As [`Sent::settle`], with all that is known of the call.
    pub fn settle_as(self, settlement: Settlement, now: Mono) -> R {
        self.settle_by(now, |_| settlement)
    }

    /// As [`Sent::settle`], with a judgement made of what the write returned. A gate that this moves is found
    /// by the next sweep.
    pub fn settle_by(self, now: Mono, judge: impl FnOnce(&R) -> Settlement) -> R {
        let settlement = judge(&self.value);
        self.call.settle_as(settlement, now);
        self.value
    }

    /// What the write returned.
    #[must_use]
    pub const fn value(&self) -> &R {
        &self.value
    }

    /// What the write returned, and the call, for an answer that comes later.
    pub fn into_parts(self) -> (R, Unsettled<'a>) {
        (self.value, self.call)
    }
}

impl Unsettled<'_> {
    /// As [`Permit::settle`].
    #[expect(clippy::must_use_candidate, reason = "settling is the point; the answer is a hint")]
    pub fn settle(self, outcome: Outcome, now: Mono) -> bool {
        self.0.settle(outcome, now)
    }

    /// As [`Permit::settle_as`].
    #[expect(clippy::must_use_candidate, reason = "settling is the point; the answer is a hint")]
    pub fn settle_as(self, settlement: Settlement, now: Mono) -> bool {
        self.0.settle_as(settlement, now)
    }

    /// Whether a gate on probation waits for how the call goes.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.0.is_probe()
    }

    /// Whether a *cut* stands over the call: what is still under way of it is to be severed.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.0.breaker.is_cut(&self.0.pass())
    }

    /// The call without its borrows.
    pub fn detach(self) -> SentTicket {
        SentTicket(self.0.detach())
    }
}

impl SentTicket {
    /// The call again.
    ///
    /// # Errors
    /// The ticket, if `policy` is not the one that it was admitted by: keep that until its calls have ended.
    pub fn attach<'a>(
        self,
        breaker: &'a Breaker,
        policy: &'a Policy,
    ) -> Result<Unsettled<'a>, SentTicket> {
        self.0.attach(breaker, policy).map(Unsettled).map_err(SentTicket)
    }
}
