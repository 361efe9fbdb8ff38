//! The clients of the long run: HTTP/1.1, HTTP/2, uploads, WebSockets, and some that leave in the middle; each goes on until the crowd is
//! dropped, whatever becomes of its calls.

use crate::error::LoadError;
use crate::load::{Target, Wire, write_request};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// What all clients together have done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Requests of which a first byte may have been written.
    pub(super) begun: u64,
    /// Those whose answer had a head.
    pub(super) answered: u64,
    /// WebSockets over which something came back.
    pub(super) sockets: u64,
    /// Requests whose client left in the middle.
    pub(super) left: u64,
    /// Answers of each status.
    pub(super) by_status: BTreeMap<u16, u64>,
}

/// The same while it grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Arc<Mutex<Told>>);

impl Tally {
    /// As of now.
    pub(super) fn told(&self) -> Told {
        self.0.lock().clone()
    }

    fn begun(&self) {
        self.0.lock().begun += 1;
    }

    fn left(&self) {
        self.0.lock().left += 1;
    }

    fn socket(&self) {
        self.0.lock().sockets += 1;
    }

    fn answered(&self, status: u16) {
        let mut told = self.0.lock();
        told.answered += 1;
        *told.by_status.entry(status).or_default() += 1;
    }
}

/// All clients: one thread of its own.
#[derive(Debug)]
pub(super) struct Crowd {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How many of each kind.
const PLAIN: usize = 12;
const FAULTS: usize = 8;
const MULTIPLE: usize = 2;
const STREAMS: usize = 8;
const UPLOADS: usize = 4;
const SOCKETS: usize = 6;
const RUDE: usize = 3;

/// The pause of a client between two calls: the aim is variety, not saturation.
const PAUSE: Duration = Duration::from_millis(2);

impl Crowd {
    /// Starts all of them.
    ///
    /// # Errors
    /// When the system refuses the thread or its runtime.
    pub(super) fn start(addr: SocketAddr, tally: Tally) -> Result<Crowd, LoadError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LoadError::io("start the crowd"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("crowd".to_owned()).spawn(move || {
            // Leaving this block drops the runtime, and with it every connection.
            runtime.block_on(async move {
                for number in 0..PLAIN {
                    tokio::spawn(forever(addr, tally.clone(), number, plain));
                }
                for number in 0..FAULTS {
                    tokio::spawn(forever(addr, tally.clone(), number, faults));
                }
                for number in 0..MULTIPLE {
                    tokio::spawn(forever(addr, tally.clone(), number, multiple));
                }
                for number in 0..UPLOADS {
                    tokio::spawn(forever(addr, tally.clone(), number, upload));
                }
                for number in 0..SOCKETS {
                    tokio::spawn(forever(addr, tally.clone(), number, socket));
                }
                for number in 0..RUDE {
                    tokio::spawn(forever(addr, tally.clone(), number, rude));
                }
                let _ = stopped.await;
            });
        });
        let thread = thread.map_err(LoadError::io("start the crowd"))?;
        Ok(Crowd { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// The answer to one GET on a connection of its own.
///
/// # Errors
/// When there is none.
pub(super) fn one_call(addr: SocketAddr) -> Result<u16, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LoadError::io("make a call"))?;
    runtime.block_on(async {
        let mut wire = Wire::connect(addr).await?;
        let mut request = Vec::new();
        write_request(&mut request, Target { path: "/plain/last", client: None }, None, None);
        let mut status = 0;
        wire.exchange(&request, 1, |answer| status = answer.status).await?;
        Ok(status)
    })
}

/// One life of a client after the other.
async fn forever<F: Future<Output = Result<(), LoadError>>>(
    addr: SocketAddr,
    tally: Tally,
    number: usize,
    life: fn(SocketAddr, Tally, usize) -> F,
) {
    for turn in 0.. {
        // However it ended, the next one begins.
        let _ = life(addr, tally.clone(), number + turn).await;
        tokio::time::sleep(PAUSE).await;
    }
}

const KEYS: [&str; 8] = ["1", "2", "3", "4", "5", "6", "7", "8"];

const CALLS: [&str; 8] = [
    "/plain/a",
    "/keyed/a",
    "/limited/a",
    "/plain/slow",
    "/nowhere",
    "/keyed/b",
    "/plain/pieces",
    "/limited/b",
];

/// Calls over one connection, in turn, until one fails or there were enough.
async fn plain(addr: SocketAddr, tally: Tally, number: usize) -> Result<(), LoadError> {
    calls(addr, tally, number, &CALLS, 200).await
}

const FAULTY: [&str; 8] = [
    "/faults/reset",
    "/faults/mute",
    "/nobody/a",
    "/faults/late",
    "/faults/noise",
    "/faults/surplus",
    "/faults/good",
    "/nobody/b",
];

async fn faults(addr: SocketAddr, tally: Tally, number: usize) -> Result<(), LoadError> {
    calls(addr, tally, number, &FAULTY, 20).await
}

async fn calls(
    addr: SocketAddr,
    tally: Tally,
    number: usize,
    paths: &[&'static str],
    most: usize,
) -> Result<(), LoadError> {
    let mut wire = Wire::connect(addr).await?;
    let mut request = Vec::new();
    let around = paths.iter().zip(KEYS).cycle().skip(number % paths.len());
    for (&path, key) in around.take(most) {
        request.clear();
        write_request(&mut request, Target { path, client: Some(key) }, None, None);
        tally.begun();
        let mut heard = None;
        let again = wire.exchange(&request, 1, |answer| heard = Some(answer.status)).await;
        if let Some(status) = heard {
            tally.answered(status);
        }
        if !again? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Streams beside each other over one HTTP/2 connection, some of them uploads.
async fn multiple(addr: SocketAddr, tally: Tally, number: usize) -> Result<(), LoadError> {
    let io = TcpStream::connect(addr).await.map_err(LoadError::io("connect"))?;
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let Ok((sender, driver)) = shaken else { return Ok(()) };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        // What went wrong shows in the streams.
        let _ = driver.await;
    });
    for stream in 0..STREAMS {
        tasks.spawn(streams(addr, tally.clone(), number + stream, sender.clone()));
    }
    drop(sender);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn streams(
    addr: SocketAddr,
    tally: Tally,
    number: usize,
    mut sender: http2::SendRequest<Full<Bytes>>,
) {
    let paths = CALLS.iter().chain(&FAULTY).zip(KEYS.iter().cycle()).cycle().skip(number % 16);
    for (turn, (path, key)) in paths.take(100).enumerate() {
        let (body, path) = match turn % 4 {
            3 => (Bytes::from(vec![b'x'; 20_000]), "/upload/a"),
            _ => (Bytes::new(), *path),
        };
        let request = hyper::Request::post(format!("http://{addr}{path}")).header("x-client", *key);
        let Ok(request) = request.body(Full::new(body)) else { return };
        tally.begun();
        if let Ok(response) = sender.send_request(request).await {
            tally.answered(response.status().as_u16());
            if turn % 7 == 6 {
                // Dropped unread: the stream is reset.
                tally.left();
            } else {
                let _ = response.into_body().collect().await;
            }
        } else if sender.is_closed() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Bodies of several sizes; the proxy may answer before it has read all of one.
async fn upload(addr: SocketAddr, tally: Tally, number: usize) -> Result<(), LoadError> {
    const SIZES: [usize; 4] = [10, 20_000, 300_000, 2_000_000];
    let mut wire = Wire::connect(addr).await?;
    let mut request = Vec::new();
    for &size in SIZES.iter().cycle().skip(number % SIZES.len()).take(20) {
        request.clear();
        write_request(&mut request, Target { path: "/upload/a", client: None }, None, Some(size));
        tally.begun();
        let mut heard = None;
        let again = wire.exchange(&request, 1, |answer| heard = Some(answer.status)).await;
        if let Some(status) = heard {
            tally.answered(status);
        }
        if !again? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

const SWITCH: &[u8] = b"GET /sockets/socket HTTP/1.1\r\nhost: load.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A WebSocket over which bytes come back, until it is severed or said enough.
async fn socket(addr: SocketAddr, tally: Tally, number: usize) -> Result<(), LoadError> {
    let io = LoadError::io;
    let mut stream = TcpStream::connect(addr).await.map_err(io("connect"))?;
    tally.begun();
    stream.write_all(SWITCH).await.map_err(io("ask for a WebSocket"))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.map_err(io("read an answer"))?);
    }
    let status = status_of(&head).unwrap_or(0);
    tally.answered(status);
    if status != 101 {
        return Ok(());
    }
    let (message, mut heard) = (vec![b'm'; 4096], vec![0; 4096]);
    for turn in 0..(50 + number % 200) {
        stream.write_all(&message).await.map_err(io("talk"))?;
        stream.read_exact(&mut heard).await.map_err(io("listen"))?;
        if turn == 0 {
            tally.socket();
        }
        tokio::time::sleep(PAUSE * 5).await;
    }
    if number.is_multiple_of(2) {
        stream.set_zero_linger().map_err(io("leave"))?;
    }
    Ok(())
}

fn status_of(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head).ok()?.split(' ').nth(1)?.parse().ok()
}

/// Leaves in the middle: of a head, of a body, of an answer, by a reset.
async fn rude(addr: SocketAddr, tally: Tally, number: usize) -> Result<(), LoadError> {
    let io = LoadError::io;
    let mut stream = TcpStream::connect(addr).await.map_err(io("connect"))?;
    let words: &[u8] = match number % 4 {
        0 => b"GET /plain/a HTTP/1.1\r\nhost: lo",
        1 => b"POST /upload/a HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nhalf",
        2 => b"GET /plain/pieces HTTP/1.1\r\nhost: a\r\n\r\n",
        _ => b"GET /plain/slow HTTP/1.1\r\nhost: a\r\n\r\n",
    };
    tally.begun();
    tally.left();
    stream.write_all(words).await.map_err(io("begin"))?;
    tokio::time::sleep(PAUSE * 10).await;
    if number % 8 < 4 {
        stream.set_zero_linger().map_err(io("leave"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every answer counts once, by its status, and what is begun or left counts apart.
    #[test]
    fn a_tally_counts() {
        let tally = Tally::default();
        for status in [200, 200, 503] {
            tally.begun();
            tally.answered(status);
        }
        tally.begun();
        tally.left();
        tally.socket();
        let told = tally.told();
        assert_eq!((told.begun, told.answered, told.left, told.sockets), (4, 3, 1, 1));
        assert_eq!(told.by_status, BTreeMap::from([(200, 2), (503, 1)]));
    }

    /// Goal: a status line is read, and anything else is none.
    #[test]
    fn a_status_is_read() {
        assert_eq!(status_of(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), Some(101));
        assert_eq!(status_of(b"\r\n\r\n"), None);
    }

    /// Goal: the crowd begins calls of every kind, and is gone when it is dropped.
    #[test]
    fn a_crowd_calls() {
        let upstream = super::super::faults::Faulty::start().unwrap();
        let tally = Tally::default();
        let crowd = Crowd::start(upstream.addr(), tally.clone()).unwrap();
        crate::wait::until(
            "sockets and leavers",
            Duration::from_secs(30),
            Duration::from_millis(5),
            || {
                let told = tally.told();
                Ok((told.sockets > 0 && told.left > 0 && told.by_status.contains_key(&200))
                    .then_some(()))
            },
        )
        .unwrap();
        drop(crowd);
        let told = tally.told();
        assert_eq!(tally.told(), told);
        assert!(told.answered <= told.begun);
    }
}
