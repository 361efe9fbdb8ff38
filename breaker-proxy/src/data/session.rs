//! TLS on an upstream connection, without a buffer that anything could go out of later; it trusts nobody on its own.
//!
//! Encrypted bytes are made only when all that were made before are with the kernel, and what they stand for counts as
//! taken only when they are, too. So whoever writes owns what waits here: until then it is not written, and who never
//! comes back leaves it unwritten.

use bytes::BytesMut;
use rustls::ClientConnection;
use std::future::poll_fn;
use std::io::{self, BufRead as _, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

/// Encrypted bytes that wait for the kernel, at most, about.
const UNSENT_MAX: usize = 64 * 1024;

/// Reads in one look at an idle connection: session tickets are few.
const LOOKS: usize = 16;

/// A connection with its handshake behind it.
pub struct Session {
    io: TcpStream,
    tls: ClientConnection,
    /// Bytes of the call whose encrypted form has not all been taken by the kernel.
    owed: usize,
}

impl Session {
    /// Shakes hands on a connection that was just made. Nothing of any call is part of it.
    ///
    /// # Errors
    /// The socket's own, or that the other side did not prove who it is.
    pub async fn begin(io: TcpStream, tls: ClientConnection) -> io::Result<Session> {
        let mut session = Session { io, tls, owed: 0 };
        session.tls.set_buffer_limit(Some(UNSENT_MAX));
        poll_fn(|cx| session.poll_handshake(cx)).await?;
        Ok(session)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.tls.wants_write() {
                ready!(self.poll_flush(cx))?;
            }
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_take_in(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // Its alert says why, if the kernel takes it now.
                    let _ = self.poll_flush(cx);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            };
            if state.plaintext_bytes_to_read() > 0 {
                return Poll::Ready(Err(io::Error::other("an answer before any request")));
            }
        }
    }

    /// What both sides agreed to speak (ALPN).
    #[must_use]
    pub fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Encrypted bytes wait for the kernel.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    /// Whether what waits, or went out last, is of the call.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.owed > 0
    }

    /// So many bytes of the call were taken: all that was encrypted of it is with the kernel.
    pub fn settle(&mut self) -> usize {
        debug_assert!(!self.wants_write(), "nothing is taken while any of it waits");
        std::mem::take(&mut self.owed)
    }

    /// Encrypts the first of these bytes. Nothing of what came before may wait.
    ///
    /// # Errors
    /// The connection has failed, or its keys are used up.
    pub fn encrypt(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<()> {
        debug_assert!(!self.wants_write() && self.owed == 0, "one piece at a time");
        self.owed = self.tls.writer().write_vectored(bufs)?;
        if self.owed == 0 || !self.wants_write() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// One write of encrypted bytes to the socket.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut socket = Polled { io: &mut self.io, cx };
        match self.tls.write_tls(&mut socket) {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            result => pending(result),
        }
    }

    /// One read of encrypted bytes from the socket.
    fn poll_take_in(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut socket = Polled { io: &mut self.io, cx };
        pending(self.tls.read_tls(&mut socket))
    }

    /// Appends what came; 0 at an end that the other side has said. One that it has not said is an error: anybody
    /// between could have made it.
    ///
    /// # Errors
    /// The socket's own, bytes that are not the other side's, or an end that was not said.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut taken: usize = 0;
            let mut reader = self.tls.reader();
            loop {
                match reader.fill_buf() {
                    Ok([]) => return Poll::Ready(Ok(taken)),
                    Ok(piece) => {
                        into.extend_from_slice(piece);
                        let length = piece.len();
                        taken = taken.saturating_add(length);
                        reader.consume(length);
                    }
                    Err(_) if taken > 0 => return Poll::Ready(Ok(taken)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            ready!(self.poll_take_in(cx))?;
            let processed = self.tls.process_new_packets();
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Whether it is as an idle connection should be: there, and without a word to any call. Session tickets and new keys are
    /// between the two ends.
    #[must_use]
    pub fn is_quiet(&mut self) -> bool {
        if self.owed > 0 {
            return false;
        }
        for _ in 0..LOOKS {
            match self.tls.read_tls(&mut Tried(&self.io)) {
                Ok(1..) => {}
                Ok(0) => return false,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            match self.tls.process_new_packets() {
                Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {}
                _ => return false,
            }
        }
        false
    }

    /// Says that nothing more will come, if the kernel takes it at once. Only where nothing of any call waits.
    pub fn say_end(&mut self) {
        if self.owed == 0 && !self.wants_write() {
            self.tls.send_close_notify();
            let _ = self.tls.write_tls(&mut Tried(&self.io));
        }
    }

    /// The socket itself.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.io
    }
}

/// What a socket that would block says to rustls, as it is said to a task.
fn pending(result: io::Result<usize>) -> Poll<io::Result<usize>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

fn blocking(poll: Poll<io::Result<usize>>) -> io::Result<usize> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A socket that wakes the task when it would block.
struct Polled<'s, 'c, 'w> {
    io: &'s mut TcpStream,
    cx: &'c mut Context<'w>,
}

impl Read for Polled<'_, '_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut into = ReadBuf::new(into);
        let read = Pin::new(&mut *self.io).poll_read(self.cx, &mut into);
        blocking(read.map_ok(|()| into.filled().len()))
    }
}

impl Write for Polled<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.io).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that nobody waits for.
struct Tried<'s>(&'s TcpStream);

impl Read for Tried<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl Write for Tried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
