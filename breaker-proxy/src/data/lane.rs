//! The last look: an upstream socket that asks the gates inside its own write; it knows nothing of HTTP.
//!
//! Under TLS the look stands in each write of encrypted bytes to the socket, and what is encrypted counts as written only when the
//! kernel has all of it: nothing of a call waits anywhere that could go out by itself.
//!
//! A request leaves this process only in a write to an upstream's socket, and whatever stands between the decision and
//! that write (a full socket buffer, a task that waits for its turn) may hold it back for any time. So
//! the gates are looked at once more *inside* the write, between two moves of the worker's mark, without an await: either
//! the write sees the kill, or the killer sees the worker inside and waits until it is out. After the killer has seen every
//! worker outside, no byte of a killed call can go out.

use super::Worker;
use super::session::Session;
use super::socket::Socket;
use breaker_core::{Denial, Mono, Pass};
use bytes::BytesMut;
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite as _;

/// What one upstream connection may send: nothing, or the bytes of one call.
pub struct Lane {
    worker: Rc<Worker>,
    pass: Cell<Option<Pass>>,
    now: Cell<Mono>,
    sent: Cell<bool>,
    refused: Cell<Option<Denial>>,
    /// The last answer was too large for the worker's scratch.
    large: Cell<bool>,
    /// Gone once the lane was cut off.
    io: RefCell<Option<Socket>>,
}

impl Lane {
    /// A socket's lane; nothing may pass yet.
    #[must_use]
    pub fn new(worker: Rc<Worker>, socket: Socket) -> Rc<Lane> {
        Rc::new(Lane {
            worker,
            io: RefCell::new(Some(socket)),
            pass: Cell::new(None),
            now: Cell::new(Mono::ZERO),
            sent: Cell::new(false),
            refused: Cell::new(None),
            large: Cell::new(false),
        })
    }

    /// From now on the bytes of the call with this pass may be written, as long as its gates allow.
    pub fn arm(&self, pass: Pass, now: Mono) {
        debug_assert!(self.pass.get().is_none(), "one call at a time");
        self.pass.set(Some(pass));
        self.now.set(now);
        self.sent.set(false);
    }

    /// The call has ended; nothing may pass until the next one.
    pub fn disarm(&self) {
        self.pass.set(None);
    }

    /// Was the last answer too large for the worker's scratch?
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.large.get()
    }

    /// Says whether the answer is too large for the worker's scratch.
    pub fn set_large(&self, large: bool) {
        self.large.set(large);
    }

    /// Did the kernel take a byte of the call?
    #[must_use]
    pub fn sent(&self) -> bool {
        self.sent.get()
    }

    /// The denial the last look met. It stays: the connection can only be dropped.
    #[must_use]
    pub fn refused(&self) -> Option<Denial> {
        self.refused.get()
    }

    /// Ends the connection at once, whoever else holds it. What the kernel took but has not sent is thrown away, and the
    /// upstream is told by a reset: a plain close would still deliver it, and look like the end of a request that is none.
    pub fn cut_off(&self, denial: Denial) {
        self.refused.set(Some(denial));
        self.abandon();
    }

    /// As [`Lane::cut_off`], but by no gate.
    pub fn abandon(&self) {
        if let Some(io) = self.io.borrow_mut().take() {
            io.close_by_reset();
        }
    }

    /// Was it ended here, and not by the upstream?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.io.borrow().is_none()
    }

    /// Writes what the kernel takes of these bytes, if the call may pass at this very moment.
    ///
    /// # Errors
    /// The socket's own, or a refusal: then [`Lane::refused`] says by what.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.io.borrow_mut().as_mut() {
            // One piece costs the kernel less than a list of one.
            Some(Socket::Plain(io)) => self.guard(true, || match bufs {
                [only] => Pin::new(io).poll_write(cx, only),
                _ => Pin::new(io).poll_write_vectored(cx, bufs),
            }),
            Some(Socket::Tls(session)) => self.poll_write_tls(cx, session, bufs),
            None => Poll::Ready(Err(refusal())),
        }
    }

    /// Encrypts a piece and writes all of it, whatever number of calls that takes: they come with the same bytes until this one is
    /// ready.
    fn poll_write_tls(
        &self,
        cx: &mut Context<'_>,
        session: &mut Session,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            while session.wants_write() {
                // New keys may wait before the first byte of a call, and are none of it.
                let of_call = session.is_owed();
                if ready!(self.guard(of_call, || session.poll_flush(cx)))? == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
            }
            if session.is_owed() {
                return Poll::Ready(Ok(session.settle()));
            }
            session.encrypt(bufs)?;
        }
    }

    /// Reads through the worker's scratch, and appends what came; 0 at the end.
    ///
    /// # Errors
    /// The socket's own, or that it was cut off.
    pub fn poll_read(&self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        match self.io.borrow_mut().as_mut() {
            Some(io) => io.poll_read(cx, &mut self.worker.scratch.borrow_mut(), into),
            None => Poll::Ready(Err(refusal())),
        }
    }

    /// Reads into memory of its own, for which there is `room` once something has come; 0 at the end.
    ///
    /// # Errors
    /// The socket's own, or that it was cut off.
    pub fn poll_read_large(
        &self,
        cx: &mut Context<'_>,
        into: &mut BytesMut,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        match self.io.borrow_mut().as_mut() {
            Some(io) => io.poll_read_large(cx, into, room),
            None => Poll::Ready(Err(refusal())),
        }
    }

    /// Whether it is as an idle connection should be: there, and silent.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.io.borrow_mut().as_mut().is_some_and(Socket::is_quiet)
    }

    /// Lets `write` happen if the call may pass at this very moment. `of_call`: what is written is of the call itself.
    fn guard(
        &self,
        of_call: bool,
        write: impl FnOnce() -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.refused.get().is_some() {
            return Poll::Ready(Err(refusal()));
        }
        let Some(pass) = self.pass.get() else {
            // Bytes that belong to no call: whatever they are, nobody allowed them.
            return Poll::Ready(Err(refusal()));
        };
        let plane = self.worker.plane;
        #[cfg(feature = "faults")]
        if crate::faults::no_last_look() {
            let result = write();
            if let (true, Poll::Ready(Ok(1..))) = (of_call, &result) {
                self.sent.set(true);
            }
            return result;
        }
        #[cfg(feature = "faults")]
        let write = || {
            crate::faults::stall();
            write()
        };
        match self.worker.sender.send(plane.breaker, &pass, self.now.get(), write) {
            Ok(result) => {
                if let (true, Poll::Ready(Ok(1..))) = (of_call, &result) {
                    self.sent.set(true);
                }
                result
            }
            Err(denial) => {
                self.refused.set(Some(denial));
                Poll::Ready(Err(refusal()))
            }
        }
    }
}

impl Drop for Lane {
    /// A connection that carries no call says that it ends. With a call on it, it just ends: that is no end to be believed.
    fn drop(&mut self) {
        if let (None, None, Some(Socket::Tls(session))) =
            (self.pass.get(), self.refused.get(), self.io.get_mut())
        {
            session.say_end();
        }
    }
}

fn refusal() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a gate refused the write")
}
