//! An origin of which no answer ends by itself; it notes when each of its calls was ended.

use crate::error::LoadError;
use crate::stamp::{self, Wall};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// A running origin: one thread of its own.
pub(super) struct Endless {
    addr: SocketAddr,
    calls: Arc<Mutex<Calls>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Calls {
    begun: usize,
    ends: Vec<Wall>,
}

/// What one write of an event stream says, and of a body.
const EVENT: &[u8] = b"f\r\ndata: and more\n\r\n";
const PIECE: usize = 16 * 1024;

/// Between two events.
const PAUSE: Duration = Duration::from_millis(5);

impl Endless {
    /// Listens on a port of the system's choice.
    ///
    /// # Errors
    /// When the system refuses the socket or the thread.
    pub(super) fn start() -> Result<Endless, LoadError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LoadError::io("start the origin's runtime"))?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = runtime
            .block_on(TcpListener::bind(any))
            .map_err(LoadError::io("listen as the origin"))?;
        let addr = listener.local_addr().map_err(LoadError::io("listen as the origin"))?;
        let calls = Arc::new(Mutex::new(Calls::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let own = Arc::clone(&calls);
        let thread = std::thread::Builder::new().name("endless".to_owned()).spawn(move || {
            // Leaving this block drops the runtime, and with it every connection.
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, own) => {}
                    _ = stopped => {}
                }
            });
        });
        let thread = thread.map_err(LoadError::io("start the origin's thread"))?;
        Ok(Endless { addr, calls, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Calls that have begun and not ended.
    pub(super) fn open(&self) -> usize {
        let calls = self.calls.lock();
        calls.begun.saturating_sub(calls.ends.len())
    }

    /// When calls have ended, in that order.
    pub(super) fn ends(&self) -> Vec<Wall> {
        self.calls.lock().ends.clone()
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there was printed when it happened.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, calls: Arc<Mutex<Calls>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let calls = Arc::clone(&calls);
        tokio::spawn(async move {
            if serve(stream, &calls).await {
                calls.lock().ends.push(stamp::wall());
            }
        });
    }
}

/// One call, to its end; false: there was none.
async fn serve(mut stream: TcpStream, calls: &Mutex<Calls>) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    calls.lock().begun += 1;
    let path = std::str::from_utf8(&head).ok().and_then(|head| head.split(' ').nth(1));
    let (mut from, mut to) = stream.into_split();
    let writing = async {
        match path {
            Some("/events") => {
                to.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                loop {
                    to.write_all(EVENT).await?;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Some("/body") => {
                to.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n").await?;
                loop {
                    to.write_all(&[b'x'; PIECE]).await?;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Some("/socket") => {
                to.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await?;
                loop {
                    to.write_all(b"tick").await?;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            // An upload is read, and never answered.
            _ => std::future::pending::<std::io::Result<()>>().await,
        }
    };
    let reading = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(1..) = from.read(&mut buffer).await {}
    };
    tokio::select! {
        _ = writing => {}
        () = reading => {}
    }
    true
}
