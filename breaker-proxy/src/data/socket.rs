//! An upstream's socket, plain or under TLS; it asks no gate.

use super::session::Session;
use bytes::BytesMut;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of an answer to ourselves that are read at once.
const HEARD: usize = 4096;

/// An upstream's socket.
pub enum Socket {
    /// What is written is what goes out.
    Plain(TcpStream),
    /// What goes out is encrypted.
    Tls(Box<Session>),
}

impl Socket {
    /// Reads through `scratch`, and appends what came; 0 at the end.
    ///
    /// # Errors
    /// The socket's own; under TLS also an end that was not said.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        into: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Plain(io) => {
                let mut buf = ReadBuf::new(scratch);
                Pin::new(io).poll_read(cx, &mut buf).map_ok(|()| {
                    into.extend_from_slice(buf.filled());
                    buf.filled().len()
                })
            }
            Socket::Tls(session) => session.poll_read(cx, into),
        }
    }

    /// Reads into memory of its own, for which there is `room` once something has come; 0 at the end.
    ///
    /// # Errors
    /// As above.
    pub fn poll_read_large(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut BytesMut,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Plain(io) => {
                // While nothing comes no memory waits for it.
                ready!(io.poll_read_ready(cx))?;
                into.reserve(room);
                // What is read is in `into` when this returns, so the future need not live on.
                pin!(io.read_buf(into)).poll(cx)
            }
            Socket::Tls(session) => session.poll_read(cx, into),
        }
    }

    /// Writes words of our own. They pass no gate: never of a call.
    ///
    /// # Errors
    /// The socket's own.
    pub async fn say(&mut self, words: &[u8]) -> io::Result<()> {
        match self {
            Socket::Plain(io) => io.write_all(words).await,
            Socket::Tls(session) => {
                let mut left = words;
                while !left.is_empty() {
                    session.encrypt(&[io::IoSlice::new(left)])?;
                    while session.wants_write() {
                        poll_fn(|cx| session.poll_flush(cx)).await?;
                    }
                    left = left.get(session.settle()..).unwrap_or_default();
                }
                Ok(())
            }
        }
    }

    /// Appends what comes next; 0 at the end.
    ///
    /// # Errors
    /// As [`Socket::poll_read`].
    pub async fn hear(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read_large(cx, into, HEARD)).await
    }

    /// Whether it is as an idle connection should be: there, and silent.
    #[must_use]
    pub fn is_quiet(&mut self) -> bool {
        match self {
            // Not by a poll: a task that has used up its turn is told that nothing came, whatever came.
            Socket::Plain(io) => {
                let read = io.try_read(&mut [0]);
                matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Socket::Tls(session) => session.is_quiet(),
        }
    }

    /// Takes nothing more while the kernel holds bytes that it has not sent. What waits then waits with us, where it can still be left out;
    /// at most what one write handed over waits with the kernel.
    pub fn keep_back_unsent(&self) {
        let io = match self {
            Socket::Plain(io) => io,
            Socket::Tls(session) => session.socket(),
        };
        // Without the option the kernel holds more; nothing else changes.
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(io).set_tcp_notsent_lowat(1);
        #[cfg(not(target_os = "linux"))]
        let _ = io;
    }

    /// From now on a close throws away what the kernel still holds, and tells the other side by a reset.
    pub fn close_by_reset(&self) {
        let io = match self {
            Socket::Plain(io) => io,
            Socket::Tls(session) => session.socket(),
        };
        // Without the option the close is a plain one: later, not less final.
        let _ = socket2::SockRef::from(io).set_linger(Some(Duration::ZERO));
    }
}
