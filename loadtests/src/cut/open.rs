//! Clients whose calls do not end by themselves: they note when they were ended, and judge nothing.

use crate::error::LoadError;
use crate::stamp::{self, Wall};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// What is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Events,
    Body,
    Upload,
    Streams,
    Tunnel,
}

impl Kind {
    pub(super) const ALL: [Kind; 5] =
        [Kind::Events, Kind::Body, Kind::Upload, Kind::Streams, Kind::Tunnel];

    /// For tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Events => "event streams",
            Kind::Body => "bodies down",
            Kind::Upload => "bodies up",
            Kind::Streams => "HTTP/2 streams",
            Kind::Tunnel => "WebSockets",
        }
    }

    /// The head of a call over HTTP/1.1.
    fn request(self) -> &'static [u8] {
        match self {
            Kind::Events | Kind::Streams => b"GET /events HTTP/1.1\r\nhost: load.test\r\n\r\n",
            Kind::Body => b"GET /body HTTP/1.1\r\nhost: load.test\r\n\r\n",
            Kind::Upload => {
                b"POST /upload HTTP/1.1\r\nhost: load.test\r\ncontent-length: 1000000000000\r\n\r\n"
            }
            Kind::Tunnel => {
                b"GET /socket HTTP/1.1\r\nhost: load.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            }
        }
    }
}

/// All clients of one round: one thread of its own.
pub(super) struct Crowd {
    seen: Arc<Mutex<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    begun: usize,
    ends: Vec<(Kind, Wall)>,
}

/// Bytes of an upload after which it has certainly begun.
const UNDER_WAY: usize = 64 * 1024;

impl Crowd {
    /// Opens so many calls of each kind.
    ///
    /// # Errors
    /// When the system refuses the thread or its runtime.
    pub(super) fn start(addr: SocketAddr, each: usize) -> Result<Crowd, LoadError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LoadError::io("start the clients"))?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let own = Arc::clone(&seen);
        let thread = std::thread::Builder::new().name("open".to_owned()).spawn(move || {
            // Leaving this block drops the runtime, and with it every connection.
            runtime.block_on(async move {
                for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Streams) {
                    for _ in 0..each {
                        tokio::spawn(lines(addr, kind, Arc::clone(&own)));
                    }
                }
                tokio::spawn(streams(addr, each, own));
                let _ = stopped.await;
            });
        });
        let thread = thread.map_err(LoadError::io("start the clients"))?;
        Ok(Crowd { seen, stop: Some(stop), thread: Some(thread) })
    }

    /// Calls under way, or ended.
    pub(super) fn begun(&self) -> usize {
        self.seen.lock().begun
    }

    /// When calls have ended.
    pub(super) fn ends(&self) -> Vec<(Kind, Wall)> {
        self.seen.lock().ends.clone()
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

/// One call over HTTP/1.1. A failure to begin shows as a call that has not.
async fn lines(addr: SocketAddr, kind: Kind, seen: Arc<Mutex<Seen>>) {
    let Ok(stream) = TcpStream::connect(addr).await else { return };
    let (mut from, mut to) = stream.into_split();
    if to.write_all(kind.request()).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 64 * 1024];
    if kind == Kind::Upload {
        let piece = [b'x'; 4096];
        for _ in 0..UNDER_WAY / piece.len() {
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        seen.lock().begun += 1;
        let writing = async {
            while to.write_all(&piece).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Its end is an answer, or none.
        tokio::select! {
            () = writing => {}
            _ = from.read(&mut buffer) => {}
        }
    } else {
        if !matches!(from.read(&mut buffer).await, Ok(1..)) {
            return;
        }
        seen.lock().begun += 1;
        while let Ok(1..) = from.read(&mut buffer).await {}
    }
    seen.lock().ends.push((kind, stamp::wall()));
}

/// All streams of one HTTP/2 connection.
async fn streams(addr: SocketAddr, each: usize, seen: Arc<Mutex<Seen>>) {
    let Ok(io) = TcpStream::connect(addr).await else { return };
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let Ok((sender, driver)) = shaken else { return };
    for _ in 0..each {
        tokio::spawn(stream(addr, sender.clone(), Arc::clone(&seen)));
    }
    // What went wrong shows in the streams.
    let _ = driver.await;
}

async fn stream(addr: SocketAddr, mut sender: SendRequest<Empty<Bytes>>, seen: Arc<Mutex<Seen>>) {
    let request = hyper::Request::get(format!("http://{addr}/events")).body(Empty::new());
    let Ok(request) = request else { return };
    let Ok(answer) = sender.send_request(request).await else { return };
    let mut body = answer.into_body();
    if !matches!(body.frame().await, Some(Ok(_))) {
        return;
    }
    seen.lock().begun += 1;
    while let Some(Ok(_)) = body.frame().await {}
    seen.lock().ends.push((Kind::Streams, stamp::wall()));
}
