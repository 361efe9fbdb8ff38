//! Accepts client connections and serves HTTP/1.1 or HTTP/2 on each; it looks into no request.

use super::Worker;
use super::channel::{Channel, Counted};
use super::doors::{Arrival, Place, hand_over};
use super::peer::Peer;
use super::upstream::duration;
use super::{http1, http2};
use crate::wire::proxied::{self, Told};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsAcceptor;

/// What an HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a header of the PROXY protocol that are looked at together; few are longer.
const INTRODUCTION: usize = 512;

/// Pause after an accept that failed for want of descriptors or memory, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Between two looks at a preface that comes in pieces, at most: a crowd that sends one byte each must cost little.
const PREFACE_PAUSE: Duration = Duration::from_millis(100);

/// A worker's open connections, so that they can be told to end.
#[derive(Default)]
pub struct Open {
    ending: Cell<bool>,
    wakers: RefCell<Slab<Option<Waker>>>,
}

impl Open {
    /// Tells all connections to end after the answers they owe.
    pub fn end(&self) {
        self.ending.set(true);
        for (_, waker) in self.wakers.borrow_mut().iter_mut() {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    /// Were they told to end?
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.wakers.borrow().len()
    }
}

/// One place in [`Open`].
pub struct Seat {
    /// Whose place it is.
    pub worker: Rc<Worker>,
    slot: usize,
    _place: Place,
}

impl Seat {
    /// A place for one more connection; `None` if all are taken.
    fn take(worker: &Rc<Worker>, place: Place) -> Option<Seat> {
        let plane = worker.plane;
        // ordering: relaxed, a number on its own; adding first makes the bound exact across workers.
        let before = plane.connections.fetch_add(1, Ordering::Relaxed);
        let slot = worker.open.wakers.borrow_mut().insert(None);
        let seat = Seat { worker: Rc::clone(worker), slot, _place: place };
        (before < u64::from(plane.bounds.connections)).then_some(seat)
    }

    /// Is the connection to end? Wakes it when it is.
    #[must_use]
    pub fn ending(&self, cx: &Context<'_>) -> bool {
        if self.worker.open.ending.get() {
            return true;
        }
        if let Some(waker @ None) = self.worker.open.wakers.borrow_mut().get_mut(self.slot) {
            *waker = Some(cx.waker().clone());
        }
        false
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // ordering: relaxed, as in `take`.
        self.worker.plane.connections.fetch_sub(1, Ordering::Relaxed);
        self.worker.open.wakers.borrow_mut().try_remove(self.slot);
    }
}

/// Accepts until the future is dropped, and takes in what other workers hand over.
pub async fn accept(
    worker: Rc<Worker>,
    listener: TcpListener,
    mut arrivals: UnboundedReceiver<Arrival>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(arrival) = arrivals.recv() => {
                match arrival.take() {
                    Ok((stream, peer, place)) => admit(&worker, stream, peer, place),
                    Err(_) => worker.shard.refused_connections.up(),
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = worker.plane.doors.place(worker.index);
                if place.worker() == worker.index {
                    admit(&worker, stream, peer, place);
                } else if hand_over(stream, peer, place).is_err() {
                    worker.shard.refused_connections.up();
                }
            }
            Err(error) if per_connection(&error) => {}
            Err(_) => {
                worker.shard.refused_connections.up();
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection, if there is room for one more.
fn admit(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr, place: Place) {
    match Seat::take(worker, place) {
        Some(seat) => {
            tokio::task::spawn_local(serve(seat, stream, peer));
        }
        None => worker.shard.refused_connections.up(),
    }
}

/// Errors of one connection that ended before it was accepted.
fn per_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn serve(seat: Seat, mut stream: TcpStream, peer: SocketAddr) {
    let worker = Rc::clone(&seat.worker);
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let deadline = Instant::now() + duration(worker.plane.deadlines.head);
    let mut client = peer.ip();
    if worker.plane.proxied {
        let told = Box::pin(unless_ending(&seat, introduced(&worker, &mut stream, client)));
        match timeout_at(deadline, told).await {
            Ok(Some(Some(told))) => client = told,
            Ok(Some(None)) => return worker.shard.unproxied.up(),
            Ok(None) => return,
            Err(_) => return worker.shard.slow_heads.up(),
        }
    }
    // In memory of their own: most of the time a connection needs neither.
    let opened = match &worker.plane.tls {
        None => timeout_at(deadline, unless_ending(&seat, in_clear(stream))).await,
        Some(tls) => {
            let opened = Box::pin(unless_ending(&seat, secured(&worker, tls, stream)));
            timeout_at(deadline, opened).await
        }
    };
    let (channel, is_http2) = match opened {
        Ok(Some(Some(opened))) => opened,
        Ok(Some(None) | None) => return,
        Err(_) => return worker.shard.slow_heads.up(),
    };
    let plane = worker.plane;
    let mut peer = Peer::new(client, plane.tls.is_some(), plane.trusts(client));
    peer.certificate = channel.certificate();
    let peer = Rc::new(peer);
    if is_http2 {
        Box::pin(http2::serve(&seat, channel, peer, deadline)).await;
    } else {
        http1::serve(&seat, channel, peer, deadline).await;
    }
}

/// Whom a connection is for, as a trusted proxy tells before its first byte. Not a byte is taken of what stands behind that.
async fn introduced(worker: &Worker, stream: &mut TcpStream, peer: IpAddr) -> Option<IpAddr> {
    if !worker.plane.trusts(peer) {
        return None;
    }
    let mut header = Vec::new();
    let mut more = [0; INTRODUCTION];
    loop {
        let before = header.len();
        let seen = stream.peek(&mut more).await.ok().filter(|seen| *seen > 0)?;
        header.extend_from_slice(more.get(..seen)?);
        let told = proxied::read(&header).ok()?;
        // As long as it is not whole, all of it is of the header.
        let own = told.map_or(header.len(), |(length, _)| length);
        let here = own.checked_sub(before)?;
        stream.read_exact(more.get_mut(..here)?).await.ok()?;
        match told {
            Some((_, Told::Client(client))) => return Some(client),
            Some((_, Told::Nobody)) => return Some(peer),
            None => {}
        }
    }
}

/// A connection in clear, and whether it speaks HTTP/2.
async fn in_clear(stream: TcpStream) -> Option<(Channel, bool)> {
    let http2 = speaks_http2(&stream).await.ok()?;
    Some((Channel::Plain(stream), http2))
}

/// A connection by TLS, and whether it agreed to speak HTTP/2.
async fn secured(worker: &Worker, tls: &TlsAcceptor, stream: TcpStream) -> Option<(Channel, bool)> {
    let Ok(stream) = tls.accept(Counted::new(stream)).await else {
        worker.shard.failed_handshakes.up();
        return None;
    };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Some((Channel::Tls(Box::new(stream)), http2))
}

/// What the future comes to, unless all connections are told to end before: who has said nothing yet is owed nothing.
async fn unless_ending<T>(seat: &Seat, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Pending if seat.ending(cx) => Poll::Ready(None),
        state => state.map(Some),
    })
    .await
}

/// Looks at the first bytes without taking them.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0u8; PREFACE.len()];
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = stream.peek(&mut first).await?;
        let seen = first.get(..seen).unwrap_or(&[]);
        if seen.is_empty() || !PREFACE.starts_with(seen) {
            return Ok(false);
        }
        if seen.len() == PREFACE.len() {
            return Ok(true);
        }
        // What is there stays readable, so waiting for readiness would spin.
        sleep(pause).await;
        pause = (pause * 2).min(PREFACE_PAUSE);
    }
}
