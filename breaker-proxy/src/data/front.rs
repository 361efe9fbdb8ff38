//! Accepts client connections and serves HTTP/1.1 or HTTP/2 on each; it looks into no request.

use super::Worker;
use super::doors::{Arrival, Place, hand_over};
use super::handle::handle;
use super::peer::Peer;
use super::upstream::duration;
use hyper::Version;
use hyper::body::Body as _;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// What an HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pause after an accept that failed for want of descriptors or memory, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Between two looks at a preface that comes in pieces, at most: a crowd that sends one byte each must cost little.
const PREFACE_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of an answer that are sent in one piece.
const SMALL: usize = 4096;

/// hyper keeps the fields of a head on the stack up to this number.
const STACK_FIELDS: u16 = 100;

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

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.wakers.borrow().len()
    }
}

/// One place in [`Open`].
struct Seat {
    worker: Rc<Worker>,
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
    fn ending(&self, cx: &Context<'_>) -> bool {
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

async fn serve(seat: Seat, stream: TcpStream, peer: SocketAddr) {
    let peer = Rc::new(Peer::new(peer.ip()));
    let worker = Rc::clone(&seat.worker);
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let deadline = Instant::now() + duration(worker.plane.deadlines.head);
    match timeout_at(deadline, unless_ending(&seat, speaks_http2(&stream))).await {
        Ok(Some(Ok(true))) => serve_http2(&seat, stream, peer).await,
        Ok(Some(Ok(false))) => serve_http1(&seat, stream, peer, deadline).await,
        Ok(Some(Err(_)) | None) => {}
        Err(_) => worker.shard.slow_heads.up(),
    }
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

async fn serve_http1(seat: &Seat, stream: TcpStream, peer: Rc<Peer>, first_head: Instant) {
    let worker = &seat.worker;
    let bounds = &worker.plane.bounds;
    let head_bytes = usize::try_from(bounds.head_bytes).unwrap_or(usize::MAX);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(duration(worker.plane.deadlines.head))
        .max_header_size(head_bytes)
        .max_buf_size(head_bytes.max(8192).saturating_mul(2));
    if bounds.fields != STACK_FIELDS {
        builder.max_headers(usize::from(bounds.fields));
    }
    let state = Rc::new(HeadState::default());
    let io = Client {
        io: TokioIo::new(stream),
        state: Rc::clone(&state),
        worker: Rc::clone(worker),
        peer: Rc::clone(&peer),
    };
    let head = &*state;
    let service = service_fn(|request| {
        head.begun.set(true);
        let (worker, peer) = (Rc::clone(worker), Rc::clone(&peer));
        async move {
            let old = request.version() < Version::HTTP_11;
            let answer = handle(worker, peer, request).await;
            head.by_close.set(old && answer.body().size_hint().exact().is_none());
            // What was read until now was this request's; what comes next begins another.
            head.partial.set(false);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut conn = pin!(builder.serve_connection(io, service));
    let mut first_head = pin!(sleep_until(first_head));
    let stalling = Rc::clone(&peer);
    let mut asked = false;
    let ended = poll_fn(|cx| {
        if seat.ending(cx) && !asked {
            asked = true;
            conn.as_mut().graceful_shutdown();
        }
        match conn.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended.map_err(Some)),
            // hyper's own deadline began with it, after the wait for the first byte.
            Poll::Pending if !head.begun.get() => first_head.as_mut().poll(cx).map(|()| Err(None)),
            // Its answer has ended; what is left of it waits for a client that does not read.
            Poll::Pending if stalling.stalled.get() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    let Err(error) = ended else { return };
    if error.as_ref().is_some_and(hyper::Error::is_parse) {
        // hyper has answered 400, 414 or 431 and ends the connection: its framing is in doubt.
        worker.shard.nowhere.offered.up();
        worker.shard.nowhere.invalid.up();
    } else if error.is_none_or(|error| error.is_timeout()) {
        worker.shard.slow_heads.up();
        if state.partial.get() {
            worker.shard.nowhere.offered.up();
            worker.shard.nowhere.invalid.up();
            state.too_slow.set(true);
        }
    }
}

async fn serve_http2(seat: &Seat, stream: TcpStream, peer: Rc<Peer>) {
    let worker = &seat.worker;
    let bounds = &worker.plane.bounds;
    let service = service_fn(|request| {
        let (worker, peer) = (Rc::clone(worker), Rc::clone(&peer));
        async move { Ok::<_, Infallible>(handle(worker, peer, request).await) }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(bounds.head_bytes)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let mut conn = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut asked = false;
    // An error here is the client's: hyper has ended the streams, and each call its account.
    let _ended = poll_fn(|cx| {
        if seat.ending(cx) && !asked {
            asked = true;
            conn.as_mut().graceful_shutdown();
        }
        conn.as_mut().poll(cx)
    })
    .await;
}

/// Runs HTTP/2 streams as tasks of the same thread.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Where a connection is with its next head.
#[derive(Default)]
struct HeadState {
    /// A whole head has come.
    begun: Cell<bool>,
    /// Bytes have come that are not yet a whole head.
    partial: Cell<bool>,
    /// The head did not come in time: say so when closing.
    too_slow: Cell<bool>,
    /// An answer is on its way whose end is that of the connection.
    by_close: Cell<bool>,
}

/// A client's socket, with one last word.
struct Client {
    io: TokioIo<TcpStream>,
    state: Rc<HeadState>,
    worker: Rc<Worker>,
    peer: Rc<Peer>,
}

impl Client {
    /// Notes when the kernel took bytes: however slowly, the client reads.
    fn took(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(1..)) = written {
            self.peer.moved.set(self.worker.second.get());
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.state.by_close.get() {
            // It broke off. A plain end would make it look whole.
            let _ = socket2::SockRef::from(self.io.inner()).set_linger(Some(Duration::ZERO));
        }
        if self.state.too_slow.get() {
            // hyper ends such a connection without a word. One short write fits any socket buffer that has no answer
            // waiting in it; if it does not fit, the client does not learn why.
            let _ = self.io.inner().try_write(
                b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            );
        }
    }
}

impl Read for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = result {
            self.state.partial.set(true);
        }
        result
    }
}

impl Write for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.took(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().fold(0_usize, |sum, buf| sum.saturating_add(buf.len()));
        let this = &mut *self;
        let mut scratch = this.worker.scratch.borrow_mut();
        // What is small costs less to copy than to hand to the kernel in pieces.
        let written = match scratch.get_mut(..length) {
            Some(whole) if length <= SMALL && bufs.len() > 1 => {
                let mut rest = &mut *whole;
                for buf in bufs {
                    let (piece, after) = rest.split_at_mut(buf.len());
                    piece.copy_from_slice(buf);
                    rest = after;
                }
                Pin::new(&mut this.io).poll_write(cx, whole)
            }
            _ => Pin::new(&mut this.io).poll_write_vectored(cx, bufs),
        };
        drop(scratch);
        self.took(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // All was written, and this is the end that was promised.
        self.state.by_close.set(false);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
