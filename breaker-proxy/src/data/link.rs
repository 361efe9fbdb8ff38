//! Connections to upstreams: made, kept while idle, waited for; it knows nothing of what they carry.
//!
//! Idle connections wait in a plain list of their worker, and so do calls for which there is none. What is shared is how many
//! connections there are of each endpoint; a worker that waits while another keeps one idle rings that one's bell.

use super::Worker;
use super::alarm::Alarm;
use super::counts::Count;
use super::endpoint::{Endpoint, Pick, Tally, Upstream};
use super::failure::Failure;
use super::flight::Call;
use super::lane::Lane;
use super::session::Session;
use super::socket::Socket;
use super::upstream::duration;
use crate::config::upstream::Protocol;
use crate::voice::say;
use breaker_core::Denial;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

/// Idle connections kept for one endpoint by one worker.
const IDLE_MAX: usize = 512;

/// An idle connection older than this is dropped: most servers do so themselves soon after.
pub const IDLE_AGE: Duration = Duration::from_secs(50);

/// Endpoints that one call tries to reach. Nothing of it was sent to any but the last.
const TRIES: usize = 3;

/// Addresses of one name that a call tries to reach.
const ADDRESS_TRIES: usize = 4;

/// Of so many connections that come free, one goes to whoever waits longest on any worker, and not to who waits on its own.
const SHARED_TURN: u32 = 16;

/// One upstream connection.
pub struct Link {
    endpoint: Arc<Endpoint>,
    worker: usize,
    is_busy: bool,
    /// The call it carries finds out whether the endpoint is back.
    is_trial: bool,
    /// The server's address, and the list of addresses in which it was last seen.
    address: SocketAddr,
    serial: u32,
    /// Its socket.
    pub lane: Rc<Lane>,
    alarm: Alarm,
    idle_since: Instant,
}

impl Link {
    /// Where it leads.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Does the call it carries find out whether the endpoint is back?
    #[must_use]
    pub fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// Has `deadline` passed? Wakes the task when it does.
    pub fn passed(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        self.alarm.passed(deadline, cx)
    }

    /// Is its server still one of the endpoint's? If not, it carries its call to the end, and no other.
    fn is_listed(&mut self) -> bool {
        let addresses = self.endpoint.addresses();
        let serial = addresses.serial();
        if serial != self.serial && addresses.has(self.address) {
            self.serial = serial;
        }
        serial == self.serial
    }

    /// Could it carry a call now?
    fn is_good(&mut self) -> bool {
        self.is_listed() && self.lane.is_quiet()
    }

    /// It carries a call from now on.
    fn begin(&mut self, is_trial: bool) {
        debug_assert!(!self.is_busy, "one call at a time");
        (self.is_busy, self.is_trial) = (true, is_trial);
        if let Some(tally) = self.endpoint.tally(self.worker) {
            tally.in_flight.up();
        }
    }

    /// Its call has ended.
    fn rest(&mut self) {
        if std::mem::take(&mut self.is_busy)
            && let Some(tally) = self.endpoint.tally(self.worker)
        {
            tally.in_flight.down();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.rest();
        self.endpoint.places().add_permits(1);
    }
}

/// The connections of one worker that carry nothing, by slot of their endpoint.
#[derive(Default)]
pub struct Pools {
    shelves: RefCell<Vec<Shelf>>,
}

/// What one worker has of one endpoint.
#[derive(Default)]
struct Shelf {
    idle: Vec<Link>,
    /// Calls that wait for a connection, the first first.
    waiting: VecDeque<oneshot::Sender<Link>>,
    /// Connections that came free while calls waited.
    turns: u32,
}

impl Pools {
    /// An idle connection that its upstream has not ended yet, for a call that begins now.
    #[must_use]
    pub fn take(&self, pick: Pick<'_>) -> Option<Link> {
        let mut shelves = self.shelves.borrow_mut();
        let idle = &mut shelves.get_mut(pick.endpoint.slot())?.idle;
        let mut link = std::iter::from_fn(|| idle.pop())
            .find_map(|mut link| link.is_good().then_some(link))?;
        debug_assert!(Arc::ptr_eq(&link.endpoint, pick.endpoint), "a slot is one endpoint's");
        link.begin(pick.is_trial);
        Some(link)
    }

    /// Keeps a connection whose call has ended, or hands it to a call that waits.
    pub fn put(&self, mut link: Link, now: Instant) {
        link.rest();
        if !link.is_listed() {
            return;
        }
        link.idle_since = now;
        let mut shelves = self.shelves.borrow_mut();
        let Some(shelf) = shelf(&mut shelves, link.endpoint.slot()) else { return };
        let waiting = link.endpoint.waiting();
        if waiting > 0 {
            shelf.turns = shelf.turns.wrapping_add(1);
            let elsewhere = waiting > shelf.waiting.len();
            if !(elsewhere && shelf.turns.is_multiple_of(SHARED_TURN)) {
                while let Some(hand) = shelf.waiting.pop_front() {
                    match hand.send(link) {
                        Ok(()) => return,
                        // It has stopped waiting.
                        Err(back) => link = back,
                    }
                }
            }
            if elsewhere {
                // Its place goes to another worker's call.
                return;
            }
        }
        if shelf.idle.len() < IDLE_MAX {
            shelf.idle.push(link);
        }
    }

    /// Drops all of them. Each holds its worker, so that neither would ever end by itself.
    pub fn clear(&self) {
        self.shelves.take();
    }

    /// Drops idle connections that are old or that their upstream has ended.
    pub fn reap(&self, now: Instant) {
        for shelf in self.shelves.borrow_mut().iter_mut() {
            shelf.idle.retain_mut(|link| {
                now.duration_since(link.idle_since) < IDLE_AGE && link.is_good()
            });
        }
    }

    /// Gives up idle connections to endpoints for which others wait.
    pub fn make_room(&self) {
        for shelf in self.shelves.borrow_mut().iter_mut() {
            let wanted = shelf.idle.first().map_or(0, |link| link.endpoint.waiting());
            let keep = shelf.idle.len().saturating_sub(wanted);
            shelf.idle.truncate(keep);
        }
    }

    fn queue(&self, endpoint: &Endpoint) -> oneshot::Receiver<Link> {
        let (hand, inner) = oneshot::channel();
        if let Some(shelf) = shelf(&mut self.shelves.borrow_mut(), endpoint.slot()) {
            // Who stopped waiting came first, as all wait for the same time.
            while shelf.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                shelf.waiting.pop_front();
            }
            shelf.waiting.push_back(hand);
        }
        inner
    }
}

fn shelf(shelves: &mut Vec<Shelf>, slot: usize) -> Option<&mut Shelf> {
    if shelves.len() <= slot {
        shelves.resize_with(slot.saturating_add(1), Shelf::default);
    }
    shelves.get_mut(slot)
}

/// Asks all other workers to give up what they do not use.
pub fn ring(worker: &Worker) {
    for (_, bell) in worker.plane.bells.iter().enumerate().filter(|(own, _)| *own != worker.index) {
        bell.notify_one();
    }
}

/// Answers the bell of a worker: gives up what others wait for.
pub async fn answer_bell(worker: Rc<Worker>) {
    while let Some(bell) = worker.plane.bells.get(worker.index) {
        bell.notified().await;
        worker.pools.make_room();
        worker.trunks.make_room();
    }
}

/// A connection for a call that found none idle with `first`: waits for one or makes one, with another endpoint if the first
/// cannot be reached.
///
/// # Errors
/// No connection could be made, or its time ended before one came free.
pub async fn reach(
    worker: &Rc<Worker>,
    call: &Call,
    upstream: &Upstream,
    first: Pick<'_>,
) -> Result<Link, Failure> {
    reach_by(worker, upstream, first, async |pick, deadline| {
        // Calls that are being connected count as well, so that not all go where none has arrived yet.
        let load = Load::new(worker, pick.endpoint);
        let place = match room(worker, call, upstream, pick.endpoint).await? {
            Room::Handed(mut link) => {
                drop(load);
                link.begin(pick.is_trial);
                return Ok(link);
            }
            Room::Free(place) => place,
        };
        let dialled = dial(worker, pick.endpoint, deadline.begin(worker)).await?;
        drop(load);
        place.link(worker, dialled, pick.is_trial).ok_or(Failure::Busy)
    })
    .await
}

/// One deadline for all attempts to connect. The wait in a queue has its own.
#[derive(Debug, Default)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// It begins with the first attempt.
    pub fn begin(&mut self, worker: &Worker) -> Instant {
        let limit = duration(worker.plane.deadlines.connect);
        *self.0.get_or_insert_with(|| Instant::now() + limit)
    }
}

/// Reaches an endpoint by whatever way, the first or another if that cannot be reached. Nothing has been sent then, so that any call may
/// go elsewhere.
///
/// # Errors
/// None could be reached, or what keeps the call from all of them.
pub async fn reach_by<T>(
    worker: &Worker,
    upstream: &Upstream,
    first: Pick<'_>,
    mut way: impl AsyncFnMut(Pick<'_>, &mut Deadline) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut tried: Vec<&Arc<Endpoint>> = Vec::new();
    let (mut pick, mut deadline) = (first, Deadline::default());
    loop {
        let failure = match way(pick, &mut deadline).await {
            Ok(reached) => return Ok(reached),
            Err(failure @ (Failure::Halted(_) | Failure::Busy)) => return Err(failure),
            Err(failure) => failure,
        };
        let now = worker.plane.clock.mono();
        if upstream.failed(pick.endpoint, pick.is_trial, now) {
            let (endpoint, upstream) = (pick.endpoint.label(), upstream.label());
            say(&format!("DOWN {endpoint} of {upstream}: {failure}"));
        }
        tried.push(pick.endpoint);
        if tried.len() >= TRIES || Instant::now() >= deadline.begin(worker) {
            return Err(failure);
        }
        let Some(next) = upstream.pick(|| now, &tried) else { return Err(failure) };
        pick = next;
    }
}

/// A call that is on its way to an endpoint.
struct Load<'u>(&'u Tally);

impl<'u> Load<'u> {
    fn new(worker: &Worker, endpoint: &'u Endpoint) -> Option<Load<'u>> {
        let tally = endpoint.tally(worker.index)?;
        tally.in_flight.up();
        Some(Load(tally))
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.in_flight.down();
    }
}

/// The right to one connection, given back unless it became one.
pub struct Place(Option<Arc<Endpoint>>);

impl Place {
    /// A place at this endpoint, if one is free now.
    #[must_use]
    pub fn take(endpoint: &Arc<Endpoint>) -> Option<Place> {
        endpoint.places().try_acquire().ok()?.forget();
        Some(Place(Some(Arc::clone(endpoint))))
    }

    /// The connection that has it from now on; it carries this call.
    fn link(mut self, worker: &Rc<Worker>, dialled: Dialled, is_trial: bool) -> Option<Link> {
        let endpoint = self.0.take()?;
        let now = Instant::now();
        let mut link = Link {
            endpoint,
            worker: worker.index,
            is_busy: false,
            is_trial,
            address: dialled.address,
            serial: dialled.serial,
            lane: Lane::new(Rc::clone(worker), dialled.socket),
            alarm: Alarm::new(now + duration(worker.plane.deadlines.answer)),
            idle_since: now,
        };
        link.begin(is_trial);
        Some(link)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(endpoint) = self.0.take() {
            endpoint.places().add_permits(1);
        }
    }
}

enum Room {
    /// A connection came free.
    Handed(Link),
    /// One may be made.
    Free(Place),
}

/// Waits until there is a connection, or room for one more.
async fn room(
    worker: &Worker,
    call: &Call,
    upstream: &Upstream,
    endpoint: &Arc<Endpoint>,
) -> Result<Room, Failure> {
    if let Some(place) = Place::take(endpoint) {
        return Ok(Room::Free(place));
    }
    let busy = || {
        count(worker, endpoint, |tally| &tally.busy);
        Failure::Busy
    };
    let _waiting = upstream.wait(endpoint).ok_or_else(busy)?;
    ring(worker);
    let mut end = pin!(sleep(duration(upstream.queue().wait)));
    loop {
        let handed = worker.pools.queue(endpoint);
        tokio::select! {
            biased;
            denial = refused(call) => return Err(Failure::Halted(denial)),
            Ok(mut link) = handed => {
                // One that its upstream ended just now makes room by being dropped.
                if link.is_good() {
                    return Ok(Room::Handed(link));
                }
            }
            Ok(permit) = endpoint.places().acquire() => {
                permit.forget();
                return Ok(Room::Free(Place(Some(Arc::clone(endpoint)))));
            }
            () = &mut end => return Err(busy()),
        }
    }
}

/// Waits until a gate refuses the call: who waits for a connection is told of a kill at once.
pub async fn refused(call: &Call) -> Denial {
    poll_fn(|cx| {
        call.wake_by(cx);
        call.refused().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// A connection that was just made.
pub struct Dialled {
    /// Its socket, hands shaken.
    pub socket: Socket,
    /// Where it leads.
    pub address: SocketAddr,
    /// The list of addresses that it was taken from.
    pub serial: u32,
}

/// Makes a connection for a call.
///
/// # Errors
/// None can be made, or none in time.
pub async fn dial(
    worker: &Worker,
    endpoint: &Endpoint,
    deadline: Instant,
) -> Result<Dialled, Failure> {
    let dialled = open(worker, endpoint, deadline).await;
    match &dialled {
        Ok(_) => {
            worker.shard.connects.up();
            count(worker, endpoint, |tally| &tally.connects);
        }
        Err(failure) => {
            count(worker, endpoint, |tally| &tally.connect_failures);
            if matches!(failure, Failure::Handshake(_)) {
                count(worker, endpoint, |tally| &tally.handshake_failures);
            }
        }
    }
    dialled
}

/// Makes a connection, and counts it nowhere.
///
/// # Errors
/// None can be made, or none in time.
pub async fn open(
    worker: &Worker,
    endpoint: &Endpoint,
    deadline: Instant,
) -> Result<Dialled, Failure> {
    let serial = endpoint.addresses().serial();
    let (stream, address) = if endpoint.target().server().is_none() {
        let stopped = || Failure::Connect(io::Error::other("the built-in origin is not running"));
        let address = worker.plane.origin.ok_or_else(stopped)?;
        (connect(address, deadline).await?, address)
    } else {
        let list = timeout_at(deadline, endpoint.addresses().list()).await;
        let list = list.map_err(|_| Failure::ConnectTimeout)?.map_err(Failure::Connect)?;
        any(&list, deadline).await?
    };
    stream.set_nodelay(true).map_err(Failure::Connect)?;
    let Some(tls) = endpoint.handshake() else {
        return Ok(Dialled { socket: Socket::Plain(stream), address, serial });
    };
    let begun = async { Session::begin(stream, tls.map_err(io::Error::other)?).await };
    let begun = timeout_at(deadline, begun).await.map_err(|_| Failure::ConnectTimeout)?;
    let session = begun.map_err(Failure::Handshake)?;
    if endpoint.protocol() == Protocol::Http2 && session.protocol() != Some(b"h2") {
        let error = io::Error::other("it does not speak HTTP/2 (ALPN: h2)");
        return Err(Failure::Handshake(error));
    }
    Ok(Dialled { socket: Socket::Tls(Box::new(session)), address, serial })
}

/// A connection to the first of the addresses that takes one. Each has its share of the time that is left, so that one which is
/// silent leaves some for the others.
async fn any(list: &[SocketAddr], deadline: Instant) -> Result<(TcpStream, SocketAddr), Failure> {
    let mut last = Failure::Connect(io::Error::other("there is no address"));
    for (left, address) in (1..=ADDRESS_TRIES.min(list.len())).rev().zip(list) {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now);
        let share = share.checked_div(u32::try_from(left).unwrap_or(1)).unwrap_or(share);
        match connect(*address, now + share).await {
            Ok(stream) => return Ok((stream, *address)),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

async fn connect(address: SocketAddr, deadline: Instant) -> Result<TcpStream, Failure> {
    let stream = timeout_at(deadline, TcpStream::connect(address)).await;
    stream.map_err(|_| Failure::ConnectTimeout)?.map_err(Failure::Connect)
}

fn count(worker: &Worker, endpoint: &Endpoint, which: fn(&Tally) -> &Count) {
    if let Some(tally) = endpoint.tally(worker.index) {
        which(tally).up();
    }
}
