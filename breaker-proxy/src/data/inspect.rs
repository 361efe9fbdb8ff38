//! A request that is decided only when its body was looked into: its head is kept, the beginning of its body read, and both are
//! then decided about; what was read goes to the upstream as it came. It knows no key.

use super::Worker;
use super::alarm::Alarm;
use super::handle::{self, Decision, Moment};
use super::peer::Peer;
use super::reply;
use super::upload::{Upload, UploadFailure};
use super::upstream::duration;
use super::visit::{Verdict, Visit};
use crate::inspect::prefix::Prefix;
use crate::wire::asked::Asked;
use crate::wire::grpc::Grpc;
use crate::wire::kept::Kept;
use crate::wire::request::Framing;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use tokio::time::Instant;

/// A request whose body is still to be looked into.
pub struct Waiting {
    head: Kept,
    framing: Framing,
    /// Its route, for the account of one that is never decided.
    route: usize,
}

/// Why a body was not looked into.
enum Unseen {
    /// It did not come in time.
    Late,
    /// It broke off, or is too large.
    Failed(UploadFailure),
}

impl Waiting {
    /// This request, whose body a key or weight of its route asks for.
    #[must_use]
    pub fn new(head: &Asked<'_>, framing: Framing, route: usize) -> Waiting {
        Waiting { head: Kept::of(head), framing, route }
    }

    fn grpc(&self) -> Option<Grpc> {
        handle::grpc_of(&self.head.asked())
    }

    /// Reads what is looked into of the body, and decides.
    ///
    /// A body of no more than the bound is read whole, one that is longer to just beyond it, and one that says it is longer not at all. Until
    /// the decision the request holds no place and no probe. If this is dropped, the request was never offered.
    pub async fn decide(
        self,
        worker: &Rc<Worker>,
        peer: &Rc<Peer>,
        body: &mut Upload,
        visit: &Visit,
    ) -> Decision {
        visit.course().routed(self.route);
        let account = worker.shard.account(self.route);
        let Some(_seat) = Seat::take(worker) else {
            account.offered.up();
            account.failed.up();
            visit.course().ends(Verdict::Failed);
            return Err(reply::busy_looking().said(self.grpc()));
        };
        let length = match self.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        };
        let most = usize::try_from(worker.plane.bounds.inspect_bytes).unwrap_or(usize::MAX);
        let mut prefix = Prefix::new(true, length, most);
        match fill(&mut prefix, body, worker).await {
            Ok(()) => {
                let now = worker.plane.clock.mono();
                let (head, moment) = (self.head.asked(), Moment { now, course: visit.course() });
                let decision =
                    handle::decide(worker, peer, &head, self.framing, Some(&prefix), moment);
                body.put_back(prefix.into_held());
                decision
            }
            Err(unseen) => {
                account.offered.up();
                account.invalid.up();
                let refusal = match unseen {
                    Unseen::Late => {
                        worker.shard.slow_bodies.up();
                        reply::late_body()
                    }
                    Unseen::Failed(failure) => reply::unseen(failure),
                };
                Err(refusal.said(self.grpc()))
            }
        }
    }
}

/// Reads until it can be decided, or the deadline has passed.
async fn fill(prefix: &mut Prefix, body: &mut Upload, worker: &Worker) -> Result<(), Unseen> {
    let until = Instant::now() + duration(worker.plane.deadlines.inspect);
    let mut alarm: Option<Alarm> = None;
    poll_fn(|cx| {
        while prefix.wants() {
            match body.poll_data(cx) {
                Poll::Ready(Some(Ok(piece))) => prefix.push(piece),
                Poll::Ready(Some(Err(failure))) => {
                    return Poll::Ready(Err(Unseen::Failed(failure)));
                }
                Poll::Ready(None) => prefix.end(),
                Poll::Pending => {
                    // Mostly all of it is there already, and nobody needs to be woken.
                    let late = alarm.get_or_insert_with(|| Alarm::new(until)).passed(until, cx);
                    return if late { Poll::Ready(Err(Unseen::Late)) } else { Poll::Pending };
                }
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// One of the places for bodies that are looked into at once.
struct Seat<'w>(&'w Worker);

impl<'w> Seat<'w> {
    /// A place, if one is free. Each worker has its share of them.
    fn take(worker: &'w Worker) -> Option<Seat<'w>> {
        let taken = worker.inspecting.get();
        let workers = u32::try_from(worker.plane.shards.len().max(1)).unwrap_or(u32::MAX);
        let share = worker.plane.bounds.inspecting.div_ceil(workers);
        (taken < share).then(|| {
            worker.inspecting.set(taken.saturating_add(1));
            Seat(worker)
        })
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.inspecting.set(self.0.inspecting.get().saturating_sub(1));
    }
}
