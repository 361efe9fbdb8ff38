//! Upstream connections and the one exchange each carries at a time; it neither routes nor decides.
//!
//! An exchange is driven by the future (and then the body) of the very call it serves: there is no task of its own to
//! hand bytes to and fro. Idle connections wait in a plain list of their worker.

use super::Worker;
use super::body::{Progress, Upload, UploadFailure};
use super::flight::Call;
use super::lane::{Gated, Lane};
use crate::config::Upstream;
use breaker_core::{Denial, Outcome, Span};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::{Method, Request, Response};
use std::cell::RefCell;
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// Idle connections kept for one upstream by one worker.
const IDLE_MAX: usize = 512;

/// An idle connection older than this is dropped: most servers do so themselves soon after.
const IDLE_AGE: Duration = Duration::from_secs(50);

/// Why a call got no answer from its upstream.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// A gate refused the first byte.
    Halted(Denial),
    /// A kill ended it after its first byte.
    Severed(Denial),
    /// No connection could be made.
    Connect(io::Error),
    /// No connection was made in time.
    ConnectTimeout,
    /// No answer came in time.
    AnswerTimeout,
    /// The client stopped sending its body.
    UploadStalled,
    /// The client's body is larger than allowed.
    UploadTooLarge,
    /// The client's body broke off.
    UploadBroken,
    /// The upstream closed, or what it said was no HTTP.
    Broken(hyper::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Halted(_) => f.write_str("a gate refused the call before its first byte"),
            Failure::Severed(_) => f.write_str("a kill ended the call"),
            Failure::Connect(error) => write!(f, "the upstream could not be reached: {error}"),
            Failure::ConnectTimeout => f.write_str("the upstream could not be reached in time"),
            Failure::AnswerTimeout => f.write_str("the upstream did not answer in time"),
            Failure::UploadStalled => f.write_str("the request body stopped arriving"),
            Failure::UploadTooLarge => f.write_str("the request body is larger than allowed"),
            Failure::UploadBroken => f.write_str("the request body broke off"),
            Failure::Broken(error) => write!(f, "the upstream broke the exchange: {error}"),
        }
    }
}

/// The idle connections of one worker, by index of the upstream.
#[derive(Default)]
pub struct Pools {
    idle: RefCell<Vec<Idle>>,
}

/// Boxed, since a connection of hyper's is large and moves with every call.
type Idle = Vec<Box<Link>>;

impl Pools {
    fn take(&self, upstream: usize) -> Option<Box<Link>> {
        self.idle.borrow_mut().get_mut(upstream)?.pop()
    }

    fn put(&self, link: Box<Link>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() <= link.upstream {
            idle.resize_with(link.upstream + 1, Vec::new);
        }
        if let Some(list) = idle.get_mut(link.upstream)
            && list.len() < IDLE_MAX
        {
            list.push(link);
        }
    }

    /// Drops idle connections that are old or that their upstream has ended.
    pub fn reap(&self, now: Instant) {
        let mut cx = Context::from_waker(Waker::noop());
        for list in self.idle.borrow_mut().iter_mut() {
            list.retain_mut(|link| {
                now.duration_since(link.idle_since) < IDLE_AGE
                    && Pin::new(&mut link.conn).poll(&mut cx).is_pending()
            });
        }
    }
}

/// One upstream connection.
pub struct Link {
    upstream: usize,
    sender: SendRequest<Upload>,
    conn: Connection<Gated, Upload>,
    lane: Rc<Lane>,
    alarm: Alarm,
    idle_since: Instant,
}

/// A deadline that moves with every phase but is put into the runtime's timer only when it must be.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    armed: Instant,
}

impl Alarm {
    fn new(at: Instant) -> Alarm {
        Alarm { sleep: Box::pin(sleep_until(at)), armed: at }
    }

    /// Has `deadline` passed? Wakes the task when it does.
    fn passed(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if deadline < self.armed {
            self.sleep.as_mut().reset(deadline);
            self.armed = deadline;
        }
        // An alarm armed for an earlier phase rings too soon: then it is set anew, once.
        while self.sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return true;
            }
            self.sleep.as_mut().reset(deadline);
            self.armed = deadline;
        }
        false
    }
}

/// A call on its connection. It ends by [`Exchange::finish`], or by being dropped, which closes the connection.
pub struct Exchange {
    worker: Rc<Worker>,
    call: Call,
    link: Option<Box<Link>>,
    progress: Option<Rc<Progress>>,
    /// When it was handed over.
    started: Instant,
    /// When the last byte moved, as far as deadlines care.
    moved: Instant,
    /// The connection came to its end; it must not be polled again.
    ended: bool,
    /// What the last look said, once the connection is gone.
    refused: Option<Denial>,
}

impl Exchange {
    /// Lets the connection read and write.
    fn drive(&mut self, cx: &mut Context<'_>) {
        let Some(link) = &mut self.link else { return };
        if !self.ended {
            // How it ended shows in the answer or its body.
            self.ended = Pin::new(&mut link.conn).poll(cx).is_ready();
        }
        if link.lane.sent() {
            self.call.sent();
        }
        if let Some(progress) = &self.progress {
            self.call.set_arriving(!progress.done());
            self.moved = self.moved.max(progress.last());
        }
    }

    /// The answer is none that can be passed on: the upstream's fault, and the end of its connection.
    pub fn unusable(self) {
        self.call.account().upstream_errors.up();
    }

    /// Ends the connection so that nothing more of the call arrives, not even what the kernel holds.
    fn sever(&mut self, denial: Denial) -> Failure {
        self.call.count_severed();
        if let Some(link) = self.link.take() {
            link.lane.cut_off(denial);
        }
        Failure::Severed(denial)
    }

    /// Ends the connection, and remembers what the last look said.
    fn close(&mut self) {
        if let Some(link) = self.link.take() {
            self.refused = link.lane.refused();
        }
    }

    fn arriving(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| !progress.done())
    }

    fn passed(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        self.link.as_mut().is_some_and(|link| link.alarm.passed(deadline, cx))
    }

    fn why(&self, error: hyper::Error) -> Failure {
        let refused = self.link.as_ref().map_or(self.refused, |link| link.lane.refused());
        if let Some(denial) = refused {
            return if self.call.was_sent() {
                Failure::Severed(denial)
            } else {
                Failure::Halted(denial)
            };
        }
        match self.progress.as_ref().and_then(|progress| progress.failure()) {
            Some(UploadFailure::TooLarge) => Failure::UploadTooLarge,
            Some(UploadFailure::Broken) => Failure::UploadBroken,
            None => Failure::Broken(error),
        }
    }

    /// The answer is complete: the connection goes back to the pool if it can carry another call.
    pub fn finish(&mut self) {
        // Nobody waits for an idle connection, so nobody need be woken for it.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.call.set_lane(None);
        if let Some(mut link) = self.link.take()
            && !self.ended
            && !self.arriving()
            && link.sender.is_ready()
        {
            link.lane.disarm();
            link.idle_since = self.moved;
            self.worker.pools.put(link);
        }
    }

    /// The next frame of the answer's body.
    ///
    /// # Errors
    /// The upstream broke off, was silent for too long, or a kill severed the call.
    pub fn poll_frame(
        &mut self,
        answer: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Failure>>> {
        if self.link.is_none() {
            return Poll::Ready(None);
        }
        self.call.asked(cx);
        if let Some(denial) = self.call.severed() {
            return Poll::Ready(Some(Err(self.sever(denial))));
        }
        for attempt in 0..2 {
            match Pin::new(&mut *answer).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if answer.is_end_stream() {
                        self.finish();
                    } else {
                        self.moved = Instant::now();
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Err(error))) => {
                    let failure = match self.why(error) {
                        Failure::Severed(denial) => self.sever(denial),
                        failure => failure,
                    };
                    // An upload that its client broke off is no fault of the upstream.
                    if let Failure::Broken(_) = failure {
                        self.call.account().upstream_errors.up();
                    }
                    self.link = None;
                    return Poll::Ready(Some(Err(failure)));
                }
                Poll::Ready(None) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                // What ended the connection shows in the second poll of the body.
                Poll::Pending if attempt == 0 => self.drive(cx),
                Poll::Pending => {}
            }
        }
        let deadline = self.moved + duration(self.worker.plane.deadlines.body_idle);
        if self.passed(deadline, cx) {
            self.call.account().upstream_errors.up();
            self.link = None;
            return Poll::Ready(Some(Err(Failure::AnswerTimeout)));
        }
        Poll::Pending
    }

    /// One step towards the head of the answer.
    fn step(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        self.call.wake_by(cx);
        self.drive(cx);
        if self.ended {
            return Ok(());
        }
        if self.call.was_sent()
            && let Some(denial) = self.call.severed()
        {
            return Err(self.sever(denial));
        }
        let deadlines = &self.worker.plane.deadlines;
        let (deadline, failure) = if !self.arriving() {
            (self.moved + duration(deadlines.answer), Failure::AnswerTimeout)
        } else if self.call.is_probe() {
            // Others wait for a probe's outcome: a slow client must not make it last.
            (self.started + duration(deadlines.answer), Failure::UploadStalled)
        } else {
            (self.moved + duration(deadlines.body_idle), Failure::UploadStalled)
        };
        if self.passed(deadline, cx) { Err(failure) } else { Ok(()) }
    }
}

/// An answer whose body is still with its exchange.
pub type Answer = Response<(Incoming, Exchange)>;

/// Sends one admitted call to its upstream and waits for the head of the answer.
///
/// A GET that was never sent, because an idle connection turned out to be closed, is sent once more on a new one.
/// Nothing else is.
///
/// # Errors
/// Why there is no answer; the call is counted as what the failure says.
pub async fn forward(
    worker: &Rc<Worker>,
    call: Call,
    upstream: usize,
    mut request: Request<Upload>,
) -> Result<Answer, Failure> {
    let resendable = *request.method() == Method::GET && request.body().is_end_stream();
    let progress = request.body().progress();
    let mut call = call;
    call.set_arriving(progress.is_some());
    let mut fresh = false;
    loop {
        let link = match if fresh { None } else { idle(worker, upstream) } {
            Some(link) => link,
            None => {
                fresh = true;
                match connect(worker, upstream).await {
                    Ok(link) => link,
                    Err(failure) => {
                        call.settle(Outcome::Fault);
                        return Err(failure);
                    }
                }
            }
        };
        // From here to the hand-over there is no await.
        link.lane.arm(call.pass(), worker.plane.clock.mono());
        call.set_lane(Some(&link.lane));
        let now = Instant::now();
        let mut exchange = Exchange {
            worker: Rc::clone(worker),
            call,
            link: Some(link),
            progress: progress.clone(),
            started: now,
            moved: now,
            ended: false,
            refused: None,
        };
        let Some(link) = &mut exchange.link else { return Err(Failure::ConnectTimeout) };
        let mut answer = pin!(link.sender.try_send_request(request));
        let head = poll_fn(|cx| {
            let step = exchange.step(cx);
            if let Err(failure @ Failure::Severed(_)) = step {
                // Its connection is gone, and that is all the answer could say.
                return Poll::Ready(Err(failure));
            }
            if let Poll::Ready(head) = answer.as_mut().poll(cx) {
                return Poll::Ready(Ok(head));
            }
            if exchange.ended {
                // hyper answers before it ends a connection; should it ever not, its pieces do when they are dropped.
                exchange.close();
                return answer.as_mut().poll(cx).map(Ok);
            }
            step.map_or_else(|failure| Poll::Ready(Err(failure)), |()| Poll::Pending)
        })
        .await;
        match head {
            Ok(Ok(response)) => {
                let fault = response.status().is_server_error();
                exchange.call.settle(if fault { Outcome::Fault } else { Outcome::Good });
                exchange.moved = Instant::now();
                return Ok(response.map(|body| (body, exchange)));
            }
            Ok(Err(mut error)) => {
                let unsent = error.take_message();
                let failure = exchange.why(error.into_error());
                if let Failure::Halted(_) = failure {
                    exchange.call.halted();
                    return Err(failure);
                }
                match unsent {
                    Some(unsent) if resendable && !fresh && !exchange.call.was_sent() => {
                        worker.shard.resent.up();
                        request = unsent;
                        fresh = true;
                        call = exchange.call;
                    }
                    _ => return Err(end(exchange, failure)),
                }
            }
            Err(failure) => return Err(end(exchange, failure)),
        }
    }
}

/// Counts a call that was sent but got no answer, and tells the gates whose fault it was.
fn end(mut exchange: Exchange, failure: Failure) -> Failure {
    match failure {
        Failure::AnswerTimeout | Failure::Broken(_) => {
            exchange.call.account().upstream_errors.up();
            exchange.call.settle(Outcome::Fault);
        }
        Failure::Severed(denial) => return exchange.sever(denial),
        // A client's slow or broken upload is no fault of the upstream.
        _ => {}
    }
    failure
}

/// An idle connection that its upstream has not ended yet.
fn idle(worker: &Rc<Worker>, upstream: usize) -> Option<Box<Link>> {
    let mut cx = Context::from_waker(Waker::noop());
    while let Some(mut link) = worker.pools.take(upstream) {
        if Pin::new(&mut link.conn).poll(&mut cx).is_pending() && link.sender.is_ready() {
            return Some(link);
        }
    }
    None
}

async fn connect(worker: &Rc<Worker>, upstream: usize) -> Result<Box<Link>, Failure> {
    let target = worker.plane.current.load().upstreams.get(upstream).cloned();
    let limit = duration(worker.plane.deadlines.connect);
    let stream = timeout(limit, async {
        match target {
            Some(Upstream::BuiltIn) => match worker.plane.origin {
                Some(address) => TcpStream::connect(address).await,
                None => Err(io::Error::other("the built-in origin is not running")),
            },
            Some(Upstream::Http { host, port }) => TcpStream::connect((host.as_str(), port)).await,
            None => Err(io::Error::other("the route was taken away")),
        }
    })
    .await
    .map_err(|_| Failure::ConnectTimeout)?
    .map_err(Failure::Connect)?;
    stream.set_nodelay(true).map_err(Failure::Connect)?;
    worker.shard.connects.up();
    let lane = Lane::new(Rc::clone(worker), stream);
    let (sender, conn) = http1::Builder::new()
        .handshake(Gated::new(Rc::clone(&lane)))
        .await
        .map_err(Failure::Broken)?;
    let now = Instant::now();
    let alarm = Alarm::new(now + duration(worker.plane.deadlines.answer));
    Ok(Box::new(Link { upstream, sender, conn, lane, alarm, idle_since: now }))
}

/// A span for the runtime's timers.
#[must_use]
pub fn duration(span: Span) -> Duration {
    Duration::from_nanos(span.as_nanos())
}
