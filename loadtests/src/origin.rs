//! An upstream that notes when the kernel received the first byte of each request; it answers 200 to everything
//! and knows nothing of proxies.

use crate::error::LoadError;
use crate::frames;
use crate::intake::{Intake, Stamp, Vault};
use crate::stamp::{self, Wall};
use crate::wire::{Decoder, Event, Side};
use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use parking_lot::Mutex;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// A running origin: one thread of its own.
#[derive(Debug)]
pub(crate) struct Origin {
    addr: SocketAddr,
    log: Arc<Log>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How an origin reads bodies slowly, so that whoever writes to it must wait with full buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    /// The pause before each read of a body.
    pub(crate) pause: Duration,
    /// The most bytes one such read takes.
    pub(crate) bytes: usize,
    /// What `SO_RCVBUF` is set to, in bytes.
    pub(crate) buffer: usize,
}

/// How an origin behaves; by default as one would wish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// Reads bodies slowly.
    pub(crate) stall: Option<Stall>,
    /// One of so many answers ends its connection, so that at any moment some calls wait for a new one: admitted, and not
    /// yet written.
    pub(crate) close_every: Option<usize>,
}

/// How an origin speaks; by default HTTP/1.1 in clear.
#[derive(Default)]
pub(crate) struct Speech {
    /// TLS.
    pub(crate) vault: Option<Vault>,
    /// HTTP/2, and nothing else.
    pub(crate) http2: bool,
}

impl Manner {
    /// Does the answer to the request at this place of the log end its connection?
    fn is_last(self, place: Option<usize>) -> bool {
        self.close_every.zip(place).is_some_and(|(every, place)| place.is_multiple_of(every))
    }
}

/// One request as the origin saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The `x-id` of its head; `None` while, or if, the head is incomplete.
    pub(crate) id: Option<u64>,
    /// When the kernel received its first byte (never earlier than it did).
    pub(crate) first: Wall,
    /// When the kernel received its newest byte.
    pub(crate) last: Wall,
    /// When the origin itself read the first byte.
    pub(crate) read: Wall,
    /// Whether `first` is the kernel's; without a stamp it is the time of the read, which is later.
    pub(crate) stamped: bool,
    /// Whether it came to its end.
    pub(crate) whole: bool,
}

/// What arrived, in the order of first reads.
#[derive(Debug, Default)]
pub(crate) struct Log {
    arrivals: Mutex<Vec<Arrival>>,
}

impl Log {
    /// A copy of the arrivals from the `from`-th on.
    pub(crate) fn from(&self, from: usize) -> Vec<Arrival> {
        self.arrivals.lock().get(from..).unwrap_or_default().to_vec()
    }

    /// How many arrived so far.
    pub(crate) fn len(&self) -> usize {
        self.arrivals.lock().len()
    }

    /// Notes a first byte; `None` when the log is full, which a verdict must not pass over.
    pub(crate) fn open(&self, arrival: Arrival) -> Option<usize> {
        let mut arrivals = self.arrivals.lock();
        if arrivals.len() == MOST_ARRIVALS {
            return None;
        }
        arrivals.push(arrival);
        Some(arrivals.len() - 1)
    }

    /// Changes what was noted there.
    pub(crate) fn change(&self, place: Option<usize>, change: impl FnOnce(&mut Arrival)) {
        let mut arrivals = self.arrivals.lock();
        if let Some(arrival) = place.and_then(|place| arrivals.get_mut(place)) {
            change(arrival);
        }
    }

    /// Whether the log is full and later arrivals went unrecorded.
    pub(crate) fn is_full(&self) -> bool {
        self.len() == MOST_ARRIVALS
    }
}

/// The most arrivals a log holds: 48 bytes each.
const MOST_ARRIVALS: usize = 8_000_000;

impl Origin {
    /// Listens on `addr` (port 0: any) and starts answering.
    ///
    /// # Errors
    /// When the system refuses the socket or the thread.
    #[cfg(test)]
    pub(crate) fn start(addr: SocketAddr, manner: Manner) -> Result<Origin, LoadError> {
        Origin::start_as(addr, manner, &Speech::default())
    }

    /// The same, for an origin that speaks in another way.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn start_as(
        addr: SocketAddr,
        manner: Manner,
        speech: &Speech,
    ) -> Result<Origin, LoadError> {
        let tls = speech.vault.as_ref().map(Vault::acceptor);
        let http2 = speech.http2;
        let listener = TcpListener::bind(addr).map_err(LoadError::io("listen as the origin"))?;
        stamp::enable(&listener).map_err(LoadError::io("ask for receive timestamps"))?;
        if let Some(stall) = manner.stall.filter(|_| !speech.http2) {
            setsockopt(&listener, RcvBuf, &stall.buffer)
                .map_err(io::Error::from)
                .map_err(LoadError::io("set the origin's receive buffer"))?;
        }
        listener.set_nonblocking(true).map_err(LoadError::io("listen as the origin"))?;
        let addr = listener.local_addr().map_err(LoadError::io("listen as the origin"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LoadError::io("start the origin's runtime"))?;
        let log = Arc::new(Log::default());
        let (stop, stopped) = oneshot::channel();
        let thread = {
            let log = Arc::clone(&log);
            std::thread::Builder::new().name("origin".to_owned()).spawn(move || {
                // Leaving this block drops the runtime, and with it every connection.
                runtime.block_on(async move {
                    tokio::select! {
                        () = accept(listener, log, manner, tls, http2) => {}
                        _ = stopped => {}
                    }
                });
            })
        }
        .map_err(LoadError::io("start the origin's thread"))?;
        Ok(Origin { addr, log, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What arrived.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there was printed when it happened, and shows in the verdict as missing answers.
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    log: Arc<Log>,
    manner: Manner,
    tls: Option<TlsAcceptor>,
    http2: bool,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("origin: cannot listen: {error}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (log, tls) = (Arc::clone(&log), tls.clone());
                tokio::spawn(async move {
                    // A connection that ends in the middle has its arrival in the log already.
                    let _ = speak(stream, log, manner, tls, http2).await;
                });
            }
            Err(error) => return eprintln!("origin: cannot accept: {error}"),
        }
    }
}

/// Serves a connection in the way it is meant to be.
async fn speak(
    stream: TcpStream,
    log: Arc<Log>,
    manner: Manner,
    tls: Option<TlsAcceptor>,
    http2: bool,
) -> Result<(), LoadError> {
    let (intake, at) = Intake::new(stream, tls.is_some())?;
    let Some(tls) = tls else {
        if !http2 {
            return serve(intake, &at, &log, manner).await;
        }
        // What ends a connection of HTTP/2 shows in its streams.
        let _ = frames::serve(intake, at, log, manner).await;
        return Ok(());
    };
    let secure = tls.accept(intake).await.map_err(LoadError::io("shake hands"))?;
    if !http2 {
        return serve(secure, &at, &log, manner).await;
    }
    let _ = frames::serve(secure, at, log, manner).await;
    Ok(())
}

/// Reads requests one at a time until the end of the connection.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    at: &Stamp,
    log: &Log,
    manner: Manner,
) -> Result<(), LoadError> {
    let mut decoder = Decoder::new(Side::Request);
    let mut buffer = vec![0; 64 * 1024];
    let mut place = None;
    loop {
        let most = match manner.stall {
            // The first byte is read alone, so that its stamp is its own segment's and not that of the request's last.
            _ if decoder.at_start() => 1,
            Some(stall) if decoder.in_body() => {
                tokio::time::sleep(stall.pause).await;
                stall.bytes.min(buffer.len())
            }
            _ => buffer.len(),
        };
        let into = buffer.get_mut(..most).unwrap_or_default();
        let bytes = stream.read(into).await.map_err(LoadError::io("read as the origin"))?;
        let (begun, last) = (at.first(), at.last());
        let now = stamp::wall();
        let mut rest = buffer.get(..bytes).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        loop {
            if decoder.at_start() && !rest.is_empty() {
                let first = begun.unwrap_or(now);
                place = log.open(Arrival {
                    first,
                    last: last.unwrap_or(now),
                    read: now,
                    stamped: begun.is_some(),
                    ..Arrival::default()
                });
            }
            let (used, event) = decoder.push(rest)?;
            rest = rest.get(used..).unwrap_or_default();
            match event {
                Event::More => {
                    log.change(place, |arrival| arrival.last = last.unwrap_or(now));
                    break;
                }
                Event::Head(head) => log.change(place, |arrival| arrival.id = head.id),
                Event::End => {
                    log.change(place, |arrival| {
                        arrival.last = last.unwrap_or(now);
                        arrival.whole = true;
                    });
                    let last = manner.is_last(place);
                    stream
                        .write_all(if last { LAST_ANSWER } else { ANSWER })
                        .await
                        .map_err(LoadError::io("answer as the origin"))?;
                    stream.flush().await.map_err(LoadError::io("answer as the origin"))?;
                    if last {
                        return Ok(());
                    }
                    place = None;
                }
            }
        }
    }
}

/// The answer to everything.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// The answer that ends its connection.
const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream as Blocking;

    /// Goal: a request in two segments is noted at its first, answered after its last; a cut-off one is noted too.
    #[test]
    fn a_request_is_noted_at_its_first_byte() {
        let origin =
            Origin::start(SocketAddr::from(([127, 0, 0, 1], 0)), Manner::default()).unwrap();
        let mut client = Blocking::connect(origin.addr()).unwrap();
        client.set_nodelay(true).unwrap();
        let before = stamp::wall();
        client.write_all(b"POST / HTTP/1.1\r\nx-id: 41\r\ncontent-length: 2\r\n\r\n").unwrap();
        // The origin holds the head before the body is sent.
        crate::wait::until("the head", Duration::from_secs(10), Duration::from_millis(1), || {
            Ok(origin.log().from(0).first().and_then(|arrival| arrival.id))
        })
        .unwrap();
        let between = stamp::wall();
        client.write_all(b"ab").unwrap();
        let mut answer = vec![0; ANSWER.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, ANSWER);
        client.write_all(b"GET /cut-o").unwrap();
        drop(client);
        let seen = crate::wait::until(
            "the rest",
            Duration::from_secs(10),
            Duration::from_millis(1),
            || {
                let seen = origin.log().from(0);
                Ok((seen.len() == 2).then_some(seen))
            },
        )
        .unwrap();
        let [first, second] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!((first.id, first.whole), (Some(41), true));
        assert!(before <= first.first && first.first <= between && between <= first.last);
        assert!(first.first <= first.read);
        assert_eq!((second.id, second.whole), (None, false));
    }
}
