//! An upstream that answers as the path asks it to: at once, late, in pieces, or by breaking off; and speaks WebSocket as far as a
//! tunnel can tell.

use crate::error::LoadError;
use crate::wire::{Decoder, Event, Side};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// A running upstream: one thread of its own.
#[derive(Debug)]
pub(super) struct Faulty {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Faulty {
    /// Listens on loopback and starts answering.
    ///
    /// # Errors
    /// When the system refuses the socket or the thread.
    pub(super) fn start() -> Result<Faulty, LoadError> {
        let words = "start the upstream";
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LoadError::io(words))?;
        let listener =
            runtime.block_on(TcpListener::bind("127.0.0.1:0")).map_err(LoadError::io(words))?;
        let addr = listener.local_addr().map_err(LoadError::io(words))?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("faults".to_owned()).spawn(move || {
            // Leaving this block drops the runtime, and with it every connection.
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        let thread = thread.map_err(LoadError::io(words))?;
        Ok(Faulty { addr, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there was printed when it happened, and shows as answers that never came.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(async move {
                // However it ended: the next one is served.
                let _ = serve(stream).await;
            })),
            Err(error) => return eprintln!("upstream: cannot accept: {error}"),
        }
    }
}

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// 200 at once.
    Good,
    /// 200, after a while.
    Slow,
    /// 200, after the proxy's deadline.
    Late,
    /// A body in pieces, with pauses.
    Pieces,
    /// Half a body, then a reset.
    Reset,
    /// The end instead of an answer.
    Mute,
    /// Bytes that are no answer.
    Noise,
    /// More than one answer to one request.
    Surplus,
    /// A WebSocket.
    Socket,
}

/// As the last segment of the target on the first line says.
fn manner(first_line: &str) -> Manner {
    let target = first_line.split(' ').nth(1).unwrap_or_default();
    match target.rsplit('/').next().unwrap_or_default() {
        "slow" => Manner::Slow,
        "late" => Manner::Late,
        "pieces" => Manner::Pieces,
        "reset" => Manner::Reset,
        "mute" => Manner::Mute,
        "noise" => Manner::Noise,
        "surplus" => Manner::Surplus,
        "socket" => Manner::Socket,
        _ => Manner::Good,
    }
}

async fn serve(mut stream: TcpStream) -> Result<(), LoadError> {
    let io = LoadError::io;
    stream.set_nodelay(true).map_err(io("set an upstream connection up"))?;
    let mut decoder = Decoder::new(Side::Request);
    let mut buffer = vec![0; 64 * 1024];
    let mut asked = Manner::Good;
    loop {
        let bytes = stream.read(&mut buffer).await.map_err(io("read as the upstream"))?;
        if bytes == 0 {
            return Ok(());
        }
        let mut rest = buffer.get(..bytes).unwrap_or_default();
        loop {
            let (used, event) = decoder.push(rest)?;
            rest = rest.get(used..).unwrap_or_default();
            match event {
                Event::More => break,
                Event::Head(head) => asked = manner(&head.first_line),
                Event::End if asked == Manner::Socket => return echo(stream, rest).await,
                Event::End => {
                    if !answer(&mut stream, asked).await.map_err(io("answer as the upstream"))? {
                        return Ok(());
                    }
                }
            }
        }
    }
}

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Pieces of a long answer, their size, and the pause before each.
const PIECES: usize = 40;
const PIECE: usize = 4096;
const PAUSE: Duration = Duration::from_millis(5);

/// Answers; says whether the connection can be used again.
async fn answer(stream: &mut TcpStream, asked: Manner) -> std::io::Result<bool> {
    match asked {
        Manner::Good | Manner::Socket => stream.write_all(GOOD).await?,
        Manner::Slow => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.write_all(GOOD).await?;
        }
        Manner::Late => {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            stream.write_all(GOOD).await?;
        }
        Manner::Pieces => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            let piece = [format!("{PIECE:x}\r\n").as_bytes(), &[b'x'; PIECE], b"\r\n"].concat();
            for _ in 0..PIECES {
                tokio::time::sleep(PAUSE).await;
                stream.write_all(&piece).await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        }
        Manner::Reset => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nhalf").await?;
            tokio::time::sleep(PAUSE).await;
            stream.set_zero_linger()?;
            return Ok(false);
        }
        Manner::Mute => return Ok(false),
        Manner::Noise => {
            stream.write_all(b"no HTTP at all\r\n\r\n").await?;
            return Ok(false);
        }
        Manner::Surplus => stream.write_all(&[GOOD, GOOD].concat()).await?,
    }
    Ok(true)
}

/// Says back what it hears. A tunnel reads no frames, so none are needed.
async fn echo(mut stream: TcpStream, early: &[u8]) -> Result<(), LoadError> {
    let agree =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let (mut from, mut to) = stream.split();
    let talk = async {
        to.write_all(&[&agree[..], early].concat()).await?;
        tokio::io::copy(&mut from, &mut to).await
    };
    talk.await.map(drop).map_err(LoadError::io("talk as the upstream"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    /// Goal: each path has its manner, whatever stands before it.
    #[test]
    fn paths_have_their_manners() {
        assert_eq!(manner("GET /faults/reset HTTP/1.1"), Manner::Reset);
        assert_eq!(manner("GET /sockets/socket HTTP/1.1"), Manner::Socket);
        assert_eq!(manner("GET /plain/a HTTP/1.1"), Manner::Good);
        assert_eq!(manner(""), Manner::Good);
    }

    /// Goal: good answers are good, and the faults are what they are called: half a body, silence, a tunnel.
    #[test]
    fn faults_are_faults() {
        let upstream = Faulty::start().unwrap();
        let ask = |path: &str| {
            let mut stream = std::net::TcpStream::connect(upstream.addr()).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            stream
        };
        let mut good = vec![0; GOOD.len()];
        ask("/good").read_exact(&mut good).unwrap();
        assert_eq!(good, GOOD);
        let mut rest = Vec::new();
        assert!(ask("/reset").read_to_end(&mut rest).is_err(), "a reset");
        let mut rest = Vec::new();
        ask("/mute").read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
        let mut tunnel = ask("/socket");
        let mut byte = [0];
        while byte != *b"\n" {
            tunnel.read_exact(&mut byte).unwrap();
        }
        tunnel.write_all(b"anything").unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"anything") {
            tunnel.read_exact(&mut byte).unwrap();
            heard.extend_from_slice(&byte);
        }
    }
}
