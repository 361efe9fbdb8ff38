//! Upstream connections that carry many calls at once: made, shared, given up; it knows nothing of what a call says.

use super::Worker;
use super::cable::{Cable, Shared};
use super::endpoint::{Endpoint, Pick, Upstream};
use super::failure::Failure;
use super::flight::Call;
use super::link::{Deadline, Dialled, IDLE_AGE, Place, dial, reach_by, refused, ring};
use super::strand::Strand;
use super::upstream::duration;
use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use hyper::{Request, StatusCode};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// Calls on one connection, at most: servers allow about as many.
const CALLS_MAX: usize = 100;

/// Bytes of one answer that come before its client has room. All answers of a connection have as much at once, so that none waits
/// for another's client.
const ROOM: u32 = 64 * 1024;

/// Bytes of one request's body that wait for the server's room or the kernel's.
const UNSENT_MAX: usize = 64 * 1024;

/// Bytes of the head of an answer.
const HEAD_MAX: u32 = 64 * 1024;

/// Resets of calls that ended here that are remembered, to tell late frames from wrong ones.
const RESETS_MAX: usize = 1024;

/// How long a connection that nobody uses has for its last words. A server that reads nothing would never take them.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One upstream connection.
pub struct Trunk {
    endpoint: Arc<Endpoint>,
    address: SocketAddr,
    serial: Cell<u32>,
    shared: Rc<Shared>,
    requests: SendRequest<Bytes>,
    /// It is given no more calls.
    is_condemned: Cell<bool>,
    idle_since: Cell<Instant>,
}

/// One call on its connection. Dropped, it leaves.
pub struct Ride {
    /// The connection.
    pub trunk: Rc<Trunk>,
    /// What it may send.
    pub strand: Rc<Strand>,
    /// The call finds out whether the endpoint is back.
    pub is_trial: bool,
    worker: usize,
}

impl Trunk {
    /// Where it leads.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Is its server still one of the endpoint's? If not, it carries its calls to the end, and no other.
    fn is_listed(&self) -> bool {
        let addresses = self.endpoint.addresses();
        let serial = addresses.serial();
        if serial != self.serial.get() && addresses.has(self.address) {
            self.serial.set(serial);
        }
        serial == self.serial.get()
    }

    /// Could it carry a call, once there is room?
    fn is_good(&self) -> bool {
        let is_told = |requests: &SendRequest<Bytes>| {
            let mut cx = Context::from_waker(Waker::noop());
            matches!(requests.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
        };
        !self.is_condemned.get()
            && !self.shared.is_over()
            && self.is_listed()
            && !is_told(&self.requests)
    }

    /// Did a gate end it, with all that it carried?
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.shared.is_torn()
    }

    fn has_room(&self) -> bool {
        self.shared.calls() < CALLS_MAX.min(self.requests.current_max_send_streams())
    }

    /// Gives it no more calls if nothing has come since `then`: the server may be gone without a word.
    pub fn doubt(&self, then: Instant) {
        if self.shared.heard() <= then {
            self.is_condemned.set(true);
        }
    }

    /// Begins a call. Nothing is written before its gates were looked at in the write itself.
    ///
    /// # Errors
    /// The connection takes no more calls.
    pub fn begin(
        self: &Rc<Trunk>,
        worker: &Worker,
        call: &Call,
        request: Request<()>,
        ends: bool,
        is_trial: bool,
    ) -> Result<(Ride, ResponseFuture), h2::Error> {
        let sent = self.requests.clone().send_request(request, ends);
        let (answer, out) = sent.inspect_err(|_| self.is_condemned.set(true))?;
        let strand = Rc::new(Strand::new(call.pass(), out, self.shared.blocked()));
        self.shared.join(strand.id(), &strand);
        if let Some(tally) = self.endpoint.tally(worker.index) {
            tally.in_flight.up();
        }
        let (trunk, worker) = (Rc::clone(self), worker.index);
        Ok((Ride { trunk, strand, is_trial, worker }, answer))
    }
}

impl Trunk {
    /// Asks for something on our own behalf, on a connection that carries no calls.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(&self, request: Request<()>) -> Result<StatusCode, h2::Error> {
        let (answer, _) = self.requests.clone().send_request(request, true)?;
        Ok(answer.await?.status())
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        self.shared.give_up();
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        self.strand.end();
        self.trunk.idle_since.set(Instant::now());
        self.trunk.shared.leave(self.strand.id());
        if let Some(tally) = self.trunk.endpoint.tally(self.worker) {
            tally.in_flight.down();
        }
    }
}

/// The connections of one worker, by slot of their endpoint.
#[derive(Default)]
pub struct Trunks {
    shelves: RefCell<Vec<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    trunks: Vec<Rc<Trunk>>,
    /// One is being made: others wait for it.
    making: Weak<Making>,
    /// Rings when one of them has news, for whoever waits for room on any.
    turned: Rc<Notify>,
}

impl Trunks {
    /// One that has room for a call.
    fn take(&self, endpoint: &Arc<Endpoint>) -> Option<Rc<Trunk>> {
        let mut shelves = self.shelves.borrow_mut();
        let trunks = &mut shelves.get_mut(endpoint.slot())?.trunks;
        trunks.retain(|trunk| trunk.is_good());
        trunks.iter().find(|trunk| trunk.has_room()).cloned()
    }

    /// Drops all of them. Each ends when its last call has.
    pub fn clear(&self) {
        self.shelves.take();
    }

    /// Drops those that are bad, or have carried nothing for long.
    pub fn reap(&self, now: Instant) {
        for shelf in self.shelves.borrow_mut().iter_mut() {
            shelf.trunks.retain(|trunk| {
                let rests = trunk.shared.calls() == 0;
                let is_old = rests && now.duration_since(trunk.idle_since.get()) >= IDLE_AGE;
                !is_old && trunk.is_good()
            });
        }
    }

    /// Gives up connections that carry nothing, to endpoints for which others wait.
    pub fn make_room(&self) {
        for shelf in self.shelves.borrow_mut().iter_mut() {
            shelf.trunks.retain(|trunk| trunk.endpoint.waiting() == 0 || trunk.shared.calls() > 0);
        }
    }

    /// Rings when one to this endpoint has news.
    fn turned(&self, endpoint: &Endpoint) -> Rc<Notify> {
        self.on_shelf(endpoint, |shelf| Rc::clone(&shelf.turned)).unwrap_or_default()
    }

    fn on_shelf<R>(&self, endpoint: &Endpoint, change: impl FnOnce(&mut Shelf) -> R) -> Option<R> {
        let mut shelves = self.shelves.borrow_mut();
        if shelves.len() <= endpoint.slot() {
            shelves.resize_with(endpoint.slot().saturating_add(1), Shelf::default);
        }
        shelves.get_mut(endpoint.slot()).map(change)
    }
}

/// A connection with room for a call, and whether the call finds out if the endpoint is back.
///
/// # Errors
/// None could be made, or its time ended before there was room.
pub async fn reach(
    worker: &Rc<Worker>,
    call: &Call,
    upstream: &Upstream,
) -> Result<(Rc<Trunk>, bool), Failure> {
    let nowhere = || Failure::Connect(io::Error::other("the upstream has no endpoint"));
    let first = upstream.pick(|| worker.plane.clock.mono(), &[]).ok_or_else(nowhere)?;
    if let Some(trunk) = worker.trunks.take(first.endpoint) {
        return Ok((trunk, first.is_trial));
    }
    // Rare and large: it must not be part of every call's own future.
    Box::pin(reach_by(worker, upstream, first, async |pick, deadline| {
        let trunk = find(worker, call, upstream, pick, deadline).await?;
        Ok((trunk, pick.is_trial))
    }))
    .await
}

/// A connection to one endpoint: one that has room, one that another call is making, one of its own, or one that others leave.
async fn find(
    worker: &Rc<Worker>,
    call: &Call,
    upstream: &Upstream,
    pick: Pick<'_>,
    deadline: &mut Deadline,
) -> Result<Rc<Trunk>, Failure> {
    let endpoint = pick.endpoint;
    let mut waiting = None;
    let mut end = pin!(sleep(duration(upstream.queue().wait)));
    loop {
        if let Some(trunk) = worker.trunks.take(endpoint) {
            return Ok(trunk);
        }
        let making = worker.trunks.on_shelf(endpoint, |shelf| shelf.making.upgrade()).flatten();
        if let Some(made) = making.filter(|made| !made.is_over.get()) {
            let until = deadline.begin(worker);
            tokio::select! {
                biased;
                denial = refused(call) => return Err(Failure::Halted(denial)),
                made = timeout_at(until, made.told.notified()) => {
                    made.map_err(|_| Failure::ConnectTimeout)?;
                }
            }
            continue;
        }
        if let Some(place) = Place::take(endpoint) {
            let until = deadline.begin(worker);
            tokio::select! {
                biased;
                denial = refused(call) => return Err(Failure::Halted(denial)),
                trunk = make(worker, endpoint, place, until) => return trunk,
            }
        }
        // All that may be made are there, and full.
        let busy = || {
            if let Some(tally) = endpoint.tally(worker.index) {
                tally.busy.up();
            }
            Failure::Busy
        };
        if waiting.is_none() {
            waiting = Some(upstream.wait(endpoint).ok_or_else(busy)?);
            end.as_mut().reset(Instant::now() + duration(upstream.queue().wait));
            ring(worker);
        }
        let turned = worker.trunks.turned(endpoint);
        tokio::select! {
            biased;
            denial = refused(call) => return Err(Failure::Halted(denial)),
            () = turned.notified() => {}
            permit = endpoint.places().acquire() => drop(permit),
            () = &mut end => return Err(busy()),
        }
    }
}

/// Makes a connection, for all that wait for it.
async fn make(
    worker: &Rc<Worker>,
    endpoint: &Arc<Endpoint>,
    place: Place,
    deadline: Instant,
) -> Result<Rc<Trunk>, Failure> {
    let made = Rc::new(Making::default());
    // Whoever waits is told in any case, that this call is given up included.
    let _told = Told(Rc::clone(&made));
    worker.trunks.on_shelf(endpoint, |shelf| shelf.making = Rc::downgrade(&made));
    let dialled = dial(worker, endpoint, deadline).await?;
    let trunk = lay(worker, endpoint, Some(place), dialled, deadline).await?;
    worker.trunks.on_shelf(endpoint, |shelf| shelf.trunks.push(Rc::clone(&trunk)));
    Ok(trunk)
}

/// A connection that a call is making. Those who wait for it hold it too, so that it must say when it is over.
#[derive(Default)]
struct Making {
    told: Notify,
    is_over: Cell<bool>,
}

struct Told(Rc<Making>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.is_over.set(true);
        self.0.told.notify_waiters();
    }
}

/// Begins HTTP/2 on a connection that was just made, and waits until its server has said how it wants to be spoken to. Without a `place`
/// it is for requests of our own.
///
/// # Errors
/// The server speaks something else, or nothing in time.
pub async fn lay(
    worker: &Rc<Worker>,
    endpoint: &Arc<Endpoint>,
    place: Option<Place>,
    dialled: Dialled,
    deadline: Instant,
) -> Result<Rc<Trunk>, Failure> {
    let Dialled { socket, address, serial } = dialled;
    socket.keep_back_unsent();
    let turned = match &place {
        Some(_) => worker.trunks.turned(endpoint),
        None => Rc::default(),
    };
    let shared = Shared::new(place.is_none(), turned);
    let cable = Cable::new(Rc::clone(worker), Rc::clone(&shared), socket);
    let wrong = |error: h2::Error| Failure::Handshake(io::Error::other(error));
    let hands = Builder::new()
        .initial_window_size(ROOM)
        .initial_connection_window_size(ROOM.saturating_mul(u32::try_from(CALLS_MAX).unwrap_or(1)))
        .max_header_list_size(HEAD_MAX)
        .max_send_buffer_size(UNSENT_MAX)
        .max_concurrent_reset_streams(RESETS_MAX)
        .initial_max_send_streams(CALLS_MAX)
        .enable_push(false)
        .handshake::<_, Bytes>(cable);
    let hands = timeout_at(deadline, hands).await.map_err(|_| Failure::ConnectTimeout)?;
    let (requests, connection) = hands.map_err(wrong)?;
    tokio::task::spawn_local(carry(connection, Rc::clone(&shared), place));
    let turned = async {
        while !shared.is_settled() && !shared.is_over() {
            shared.turned().notified().await;
        }
    };
    timeout_at(deadline, turned).await.map_err(|_| Failure::ConnectTimeout)?;
    if !shared.is_settled() {
        return Err(Failure::Handshake(io::Error::other("it does not speak HTTP/2")));
    }
    Ok(Rc::new(Trunk {
        endpoint: Arc::clone(endpoint),
        address,
        serial: Cell::new(serial),
        shared,
        requests,
        is_condemned: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
    }))
}

/// Moves a connection's bytes, until it ends. Its place is given back behind it.
async fn carry(connection: Connection<Cable, Bytes>, shared: Rc<Shared>, place: Option<Place>) {
    let given_up = async {
        shared.given_up().notified().await;
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        biased;
        // Each call hears by itself what became of it.
        _ = connection => {}
        () = given_up => {}
    }
    shared.end();
    drop(place);
}
