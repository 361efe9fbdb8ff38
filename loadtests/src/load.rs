//! Clients in closed loop, of four kinds, that note each request's fate; they judge nothing and know no proxy.

use crate::error::LoadError;
use crate::stamp::{self, Wall};
use crate::wire::{Decoder, Event, Side};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::sync::oneshot;

/// How a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// HTTP/1.1, one GET after another.
    Plain,
    /// HTTP/1.1, one POST with a body after another.
    Body,
    /// HTTP/1.1, batches of GETs in one write.
    Pipelined,
    /// HTTP/2 without TLS, several streams at once.
    Streams,
}

impl Kind {
    /// All four, in the order of [`Mix`].
    pub(crate) const ALL: [Kind; 4] = [Kind::Plain, Kind::Body, Kind::Pipelined, Kind::Streams];
}

/// How many connections of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    pub(crate) plain: usize,
    pub(crate) body: usize,
    pub(crate) pipelined: usize,
    pub(crate) streams: usize,
}

impl Mix {
    fn count(self, kind: Kind) -> usize {
        match kind {
            Kind::Plain => self.plain,
            Kind::Body => self.body,
            Kind::Pipelined => self.pipelined,
            Kind::Streams => self.streams,
        }
    }
}

/// Where requests go: connection `n` of each kind takes target `n` modulo their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The path asked for.
    pub(crate) path: &'static str,
    /// The value of `x-client`, where one is sent.
    pub(crate) client: Option<&'static str>,
}

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    /// Just before its first byte was written.
    pub(crate) sent: Wall,
    /// Just after its answer ended, or its connection died.
    pub(crate) ended: Wall,
    /// The answer's status; 0: the connection died first.
    pub(crate) status: u16,
    /// Whether the answer was `application/problem+json`.
    pub(crate) problem: bool,
    /// Which target.
    pub(crate) target: usize,
    /// How its connection speaks.
    pub(crate) kind: Kind,
}

/// What a load is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) addr: SocketAddr,
    pub(crate) targets: &'static [Target],
    pub(crate) mix: Mix,
    /// Bytes of each body of [`Kind::Body`].
    pub(crate) body: usize,
    /// Requests in a batch of [`Kind::Pipelined`].
    pub(crate) batch: usize,
    /// Streams at once on a connection of [`Kind::Streams`].
    pub(crate) streams: usize,
}

/// A running load: one thread of its own.
#[derive(Debug)]
pub(crate) struct Load {
    record: Arc<Record>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a load has done so far.
#[derive(Debug)]
pub(crate) struct Record {
    fates: Mutex<Fates>,
    connections: Vec<Connection>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Fates {
    list: Vec<Fate>,
    lost: u64,
}

/// The live numbers of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// How it speaks.
    pub(crate) kind: Kind,
    /// Its target.
    pub(crate) target: usize,
    good: AtomicU64,
    refused: AtomicU64,
    deaths: AtomicU64,
}

impl Connection {
    /// Answers 200 so far.
    pub(crate) fn good(&self) -> u64 {
        // ordering: relaxed; a number for pacing and tables, nothing is published by it.
        self.good.load(Ordering::Relaxed)
    }

    /// Answers 503 so far.
    pub(crate) fn refused(&self) -> u64 {
        // ordering: relaxed; as in `good`.
        self.refused.load(Ordering::Relaxed)
    }

    /// How often it had to be made anew.
    pub(crate) fn deaths(&self) -> u64 {
        // ordering: relaxed; as in `good`.
        self.deaths.load(Ordering::Relaxed)
    }
}

impl Record {
    /// Every connection of the plan.
    pub(crate) fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// Takes the fates noted so far, and how many found no room.
    pub(crate) fn take(&self) -> (Vec<Fate>, u64) {
        let mut fates = self.fates.lock();
        let taken = std::mem::take(&mut *fates);
        (taken.list, taken.lost)
    }

    /// A number for the header `x-id`: unique, and its target is the remainder by `targets`.
    fn id(&self, target: usize, targets: usize) -> u64 {
        // ordering: relaxed; only uniqueness matters.
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        turn.saturating_mul(wide(targets)).saturating_add(wide(target))
    }

    fn note(&self, connection: &Connection, fate: Fate) {
        match fate.status {
            // ordering: relaxed; numbers for pacing and tables.
            200 => connection.good.fetch_add(1, Ordering::Relaxed),
            // ordering: relaxed; as above.
            503 => connection.refused.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        let mut fates = self.fates.lock();
        if fates.list.len() == MOST_FATES {
            fates.lost += 1;
        } else {
            fates.list.push(fate);
        }
    }
}

/// The target of a request, from its id.
pub(crate) fn target_of(id: u64, targets: usize) -> usize {
    usize::try_from(id % wide(targets).max(1)).unwrap_or(0)
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The most fates kept between two calls of [`Record::take`]: 40 bytes each.
const MOST_FATES: usize = 8_000_000;

impl Load {
    /// Starts all connections of `plan`.
    ///
    /// # Errors
    /// When the system refuses the thread or its runtime.
    pub(crate) fn start(plan: Plan) -> Result<Load, LoadError> {
        let mut connections = Vec::new();
        for kind in Kind::ALL {
            for number in 0..plan.mix.count(kind) {
                let target = number % plan.targets.len().max(1);
                connections.push(Connection {
                    kind,
                    target,
                    good: AtomicU64::new(0),
                    refused: AtomicU64::new(0),
                    deaths: AtomicU64::new(0),
                });
            }
        }
        let record =
            Arc::new(Record { fates: Mutex::default(), connections, next: AtomicU64::new(1) });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LoadError::io("start the load's runtime"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = {
            let record = Arc::clone(&record);
            std::thread::Builder::new().name("load".to_owned()).spawn(move || {
                // Leaving this block drops the runtime, and with it every connection.
                runtime.block_on(async move {
                    for number in 0..record.connections.len() {
                        tokio::spawn(keep_up(plan, Arc::clone(&record), number));
                    }
                    let _ = stopped.await;
                });
            })
        }
        .map_err(LoadError::io("start the load's thread"))?;
        Ok(Load { record, stop: Some(stop), thread: Some(thread) })
    }

    /// What it has done so far.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there was printed when it happened, and shows as answers that never came.
            let _ = thread.join();
        }
    }
}

/// One connection, made anew whenever it dies.
async fn keep_up(plan: Plan, record: Arc<Record>, number: usize) {
    let Some(connection) = record.connections.get(number) else { return };
    loop {
        // Whatever ended it, the fates are noted and the next one is wanted.
        let _ = match connection.kind {
            Kind::Streams => streams(plan, &record, number).await,
            _ => sequence(plan, &record, connection).await,
        };
        // ordering: relaxed; a number for tables.
        connection.deaths.fetch_add(1, Ordering::Relaxed);
        // A refused connection must not turn into a spin that starves its neighbours.
        tokio::time::sleep(PAUSE).await;
    }
}

/// The pause before a connection is made anew.
const PAUSE: Duration = Duration::from_millis(1);

/// Requests over one HTTP/1.1 connection until it dies.
async fn sequence(plan: Plan, record: &Record, connection: &Connection) -> Result<(), LoadError> {
    let mut wire = Wire::connect(plan.addr).await?;
    let Some(&target) = plan.targets.get(connection.target) else { return Ok(()) };
    let batch = if connection.kind == Kind::Pipelined { plan.batch } else { 1 };
    let body = (connection.kind == Kind::Body).then_some(plan.body);
    let mut request = Vec::new();
    loop {
        request.clear();
        for _ in 0..batch {
            let id = record.id(connection.target, plan.targets.len());
            write_request(&mut request, target, Some(id), body);
        }
        let fate = Fate {
            sent: stamp::wall(),
            ended: 0,
            status: 0,
            problem: false,
            target: connection.target,
            kind: connection.kind,
        };
        let mut answered = 0;
        let ended = wire
            .exchange(&request, batch, |answer| {
                answered += 1;
                let ended = stamp::wall();
                record.note(
                    connection,
                    Fate { ended, status: answer.status, problem: answer.problem, ..fate },
                );
            })
            .await;
        for _ in answered..batch {
            record.note(connection, Fate { ended: stamp::wall(), ..fate });
        }
        if !ended? {
            return Ok(());
        }
    }
}

/// Several streams over one HTTP/2 connection until it dies.
async fn streams(plan: Plan, record: &Arc<Record>, number: usize) -> Result<(), LoadError> {
    let io = TcpStream::connect(plan.addr).await.map_err(LoadError::io("connect"))?;
    io.set_nodelay(true).map_err(LoadError::io("connect"))?;
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let Ok((sender, driver)) = shaken else { return Ok(()) };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        // What went wrong shows in the streams.
        let _ = driver.await;
    });
    for _ in 0..plan.streams {
        tasks.spawn(stream(plan, Arc::clone(record), number, sender.clone()));
    }
    drop(sender);
    // All of them end once the connection does: each fails at its next request.
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// One request after another over one share of an HTTP/2 connection, until one fails.
async fn stream(
    plan: Plan,
    record: Arc<Record>,
    number: usize,
    mut sender: http2::SendRequest<Empty<Bytes>>,
) {
    let Some(connection) = record.connections.get(number) else { return };
    let Some(target) = plan.targets.get(connection.target) else { return };
    loop {
        let id = record.id(connection.target, plan.targets.len());
        let mut request = hyper::Request::get(format!("http://{}{}", plan.addr, target.path))
            .header("x-id", id.to_string());
        if let Some(client) = target.client {
            request = request.header("x-client", client);
        }
        let Ok(request) = request.body(Empty::new()) else { return };
        let sent = stamp::wall();
        let answer = match sender.send_request(request).await {
            Ok(response) => {
                let status = response.status().as_u16();
                let problem = response
                    .headers()
                    .get(hyper::header::CONTENT_TYPE)
                    .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
                // A status whose body broke off is an answer that broke off.
                response.into_body().collect().await.ok().map(|_| (status, problem))
            }
            Err(_) => None,
        };
        let ended = stamp::wall();
        let (status, problem) = answer.unwrap_or((0, false));
        let target = connection.target;
        record.note(connection, Fate { sent, ended, status, problem, target, kind: Kind::Streams });
        if sender.is_closed() {
            return;
        }
        if status == 0 {
            // A stream that was reset while its connection lives: the next one may pass, but not in a spin.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Appends one request to `out`.
pub(crate) fn write_request(
    out: &mut Vec<u8>,
    target: Target,
    id: Option<u64>,
    body: Option<usize>,
) {
    let method = if body.is_some() { "POST" } else { "GET" };
    out.extend_from_slice(
        format!("{method} {} HTTP/1.1\r\nhost: load.test\r\n", target.path).as_bytes(),
    );
    if let Some(id) = id {
        out.extend_from_slice(format!("x-id: {id}\r\n").as_bytes());
    }
    if let Some(client) = target.client {
        out.extend_from_slice(format!("x-client: {client}\r\n").as_bytes());
    }
    if let Some(bytes) = body {
        out.extend_from_slice(format!("content-length: {bytes}\r\n\r\n").as_bytes());
        out.resize(out.len().saturating_add(bytes), b'x');
    } else {
        out.extend_from_slice(b"\r\n");
    }
}

/// One answer over HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) problem: bool,
    pub(crate) close: bool,
}

/// A client's HTTP/1.1 connection, written by hand so that batches go out in one write.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    decoder: Decoder,
    unread: BytesMut,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) async fn connect(addr: SocketAddr) -> Result<Wire, LoadError> {
        let stream = TcpStream::connect(addr).await.map_err(LoadError::io("connect"))?;
        stream.set_nodelay(true).map_err(LoadError::io("connect"))?;
        let unread = BytesMut::with_capacity(16 * 1024);
        Ok(Wire { stream, decoder: Decoder::new(Side::Response), unread })
    }

    /// Writes `request` and reads `answers` answers, both at once, for a server may answer before it has read
    /// everything. Says whether the connection can be used again.
    ///
    /// # Errors
    /// When the connection breaks before the last answer.
    pub(crate) async fn exchange(
        &mut self,
        request: &[u8],
        answers: usize,
        mut note: impl FnMut(Answer),
    ) -> Result<bool, LoadError> {
        let (mut from, mut to) = self.stream.split();
        let reading = async {
            let mut open = true;
            for _ in 0..answers {
                let answer = read_answer(&mut from, &mut self.decoder, &mut self.unread).await?;
                note(answer);
                open &= !answer.close;
            }
            Ok(open)
        };
        let mut written = false;
        let writing = async {
            // A broken write may still be followed by the answer that explains it.
            written = to.write_all(request).await.is_ok();
            std::future::pending::<()>().await;
        };
        let open: Result<bool, LoadError> = tokio::select! {
            biased;
            () = writing => Ok(false),
            open = reading => open,
        };
        Ok(open? && written)
    }
}

async fn read_answer(
    from: &mut ReadHalf<'_>,
    decoder: &mut Decoder,
    unread: &mut BytesMut,
) -> Result<Answer, LoadError> {
    let mut answer = Answer { status: 0, problem: false, close: false };
    loop {
        let (used, event) = decoder.push(unread)?;
        unread.advance(used);
        match event {
            Event::Head(head) => {
                answer = Answer {
                    status: head.status,
                    problem: head.problem,
                    close: answer.close || head.close,
                };
            }
            // An interim answer (1xx) is followed by the real one.
            Event::End if answer.status < 200 => {}
            Event::End => return Ok(answer),
            Event::More => {
                let bytes = from.read_buf(unread).await.map_err(LoadError::io("read an answer"))?;
                if bytes == 0 {
                    return Err(LoadError::Unreadable("an answer: it broke off".to_owned()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{Manner, Origin};
    use crate::wait;

    const TARGETS: &[Target] =
        &[Target { path: "/a", client: Some("a") }, Target { path: "/b", client: None }];

    /// Goal: an id says its target.
    #[test]
    fn an_id_says_its_target() {
        let record =
            Record { fates: Mutex::default(), connections: Vec::new(), next: AtomicU64::new(1) };
        let ids: Vec<u64> = (0..6).map(|turn| record.id(turn % 3, 3)).collect();
        let targets: Vec<usize> = ids.iter().map(|&id| target_of(id, 3)).collect();
        assert_eq!(targets, [0, 1, 2, 0, 1, 2]);
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    }

    /// Goal: each kind that speaks HTTP/1.1 gets answers from the origin, and both sides agree on their number.
    #[test]
    fn clients_and_origin_agree() {
        let origin =
            Origin::start(SocketAddr::from(([127, 0, 0, 1], 0)), Manner::default()).unwrap();
        let plan = Plan {
            addr: origin.addr(),
            targets: TARGETS,
            mix: Mix { plain: 2, body: 2, pipelined: 2, streams: 0 },
            body: 100_000,
            batch: 8,
            streams: 1,
        };
        let load = Load::start(plan).unwrap();
        wait::until("answers", Duration::from_secs(20), Duration::from_millis(1), || {
            Ok(load.record().connections().iter().all(|one| one.good() >= 20).then_some(()))
        })
        .unwrap();
        let record = Arc::clone(&load.record);
        drop(load);
        let (fates, lost) = record.take();
        assert_eq!(lost, 0);
        assert!(fates.iter().all(|fate| fate.status == 200 && fate.sent <= fate.ended));
        let arrivals = origin.log().from(0);
        let whole = arrivals.iter().filter(|arrival| arrival.whole).count();
        assert!(whole >= fates.len(), "{whole} arrived whole, {} answered", fates.len());
        let mut ids: Vec<u64> = arrivals.iter().filter_map(|arrival| arrival.id).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "every id is used once");
        assert!(arrivals.iter().all(|arrival| arrival.first <= arrival.last));
    }

    /// An HTTP/2 server without TLS that answers 503 problems on `/a` and 200 elsewhere.
    async fn serve_h2(listener: tokio::net::TcpListener) {
        use http_body_util::Full;
        use hyper::service::service_fn;
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
                assert!(request.headers().contains_key("x-id"));
                let response = match request.uri().path() {
                    "/a" => hyper::Response::builder()
                        .status(503)
                        .header("content-type", "application/problem+json"),
                    _ => hyper::Response::builder(),
                };
                response.body(Full::new(Bytes::from_static(b"{}")))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
        }
    }

    /// Goal: the streams of an HTTP/2 connection each get their answers, and a refusal does not end the connection.
    #[test]
    fn streams_get_their_answers() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || runtime.block_on(serve_h2(listener)));
        let mix = Mix { plain: 0, body: 0, pipelined: 0, streams: 2 };
        let plan = Plan { addr, targets: TARGETS, mix, body: 0, batch: 1, streams: 4 };
        let load = Load::start(plan).unwrap();
        wait::until("answers", Duration::from_secs(20), Duration::from_millis(1), || {
            let enough = |one: &Connection| one.good() + one.refused() >= 100;
            Ok(load.record().connections().iter().all(enough).then_some(()))
        })
        .unwrap();
        let (fates, _) = load.record().take();
        assert!(
            fates.iter().all(|fate| (fate.status, fate.problem, fate.target) == (503, true, 0)
                || (fate.status, fate.problem, fate.target) == (200, false, 1))
        );
        assert!(load.record().connections().iter().all(|one| one.deaths() == 0));
    }

    /// Goal: a body larger than a slow reader's buffer gets through, in pieces, and is answered once.
    #[test]
    fn a_stalled_body_arrives() {
        let pause = Duration::from_millis(1);
        let stall = crate::origin::Stall { pause, bytes: 16 * 1024, buffer: 16 * 1024 };
        let origin = Origin::start(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            Manner { stall: Some(stall), ..Manner::default() },
        )
        .unwrap();
        let mix = Mix { plain: 0, body: 2, pipelined: 0, streams: 0 };
        let plan = Plan {
            addr: origin.addr(),
            targets: TARGETS,
            mix,
            body: 256 * 1024,
            batch: 1,
            streams: 1,
        };
        let load = Load::start(plan).unwrap();
        wait::until("answers", Duration::from_secs(20), Duration::from_millis(1), || {
            Ok(load.record().connections().iter().all(|one| one.good() >= 3).then_some(()))
        })
        .unwrap();
        let arrivals = origin.log().from(0);
        let spread = |arrival: &crate::origin::Arrival| arrival.last > arrival.first;
        assert!(arrivals.iter().filter(|arrival| arrival.whole).all(spread), "{arrivals:?}");
    }
}
