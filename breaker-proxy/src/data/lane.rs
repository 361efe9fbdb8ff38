//! The last look: an upstream socket that asks the gates inside its own write; it knows nothing of HTTP.
//!
//! A request leaves this process only in a write to an upstream's socket, and whatever stands between the decision and
//! that write (a queue in hyper, a full socket buffer, a task that waits for its turn) may hold it back for any time. So
//! the gates are looked at once more *inside* the write, between two moves of the worker's mark, without an await: either
//! the write sees the kill, or the killer sees the worker inside and waits until it is out. After the killer has seen every
//! worker outside, no byte of a killed call can go out.

use super::Worker;
use breaker_core::{Denial, Mono, Pass};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;

/// What one upstream connection may send: nothing, or the bytes of one call.
pub struct Lane {
    worker: Rc<Worker>,
    pass: Cell<Option<Pass>>,
    now: Cell<Mono>,
    sent: Cell<bool>,
    refused: Cell<Option<Denial>>,
    /// Gone once the lane was cut off.
    io: RefCell<Option<TokioIo<TcpStream>>>,
}

impl Lane {
    /// A socket's lane; nothing may pass yet.
    #[must_use]
    pub fn new(worker: Rc<Worker>, stream: TcpStream) -> Rc<Lane> {
        Rc::new(Lane {
            worker,
            io: RefCell::new(Some(TokioIo::new(stream))),
            pass: Cell::new(None),
            now: Cell::new(Mono::ZERO),
            sent: Cell::new(false),
            refused: Cell::new(None),
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
            // Without the option the close is a plain one: later, not less final.
            let _ = socket2::SockRef::from(io.inner()).set_linger(Some(Duration::ZERO));
        }
    }

    /// Works on the socket, as long as it is there.
    fn with_io<T>(
        &self,
        work: impl FnOnce(Pin<&mut TokioIo<TcpStream>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match self.io.borrow_mut().as_mut() {
            Some(io) => work(Pin::new(io)),
            None => Poll::Ready(Err(refusal())),
        }
    }

    /// Lets `write` happen if the call may pass at this very moment.
    fn guard(&self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
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
            if let Poll::Ready(Ok(1..)) = result {
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
                if let Poll::Ready(Ok(1..)) = result {
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

fn refusal() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a gate refused the write")
}

/// An upstream's socket behind its lane.
pub struct Gated {
    lane: Rc<Lane>,
    vectored: bool,
}

impl Gated {
    /// The socket of a lane.
    #[must_use]
    pub fn new(lane: Rc<Lane>) -> Gated {
        let vectored = lane.io.borrow().as_ref().is_some_and(Write::is_write_vectored);
        Gated { lane, vectored }
    }
}

impl Read for Gated {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.lane.with_io(|io| io.poll_read(cx, buf))
    }
}

impl Write for Gated {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lane.guard(|| self.lane.with_io(|io| io.poll_write(cx, buf)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lane.guard(|| self.lane.with_io(|io| io.poll_write_vectored(cx, bufs)))
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lane.with_io(|io| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lane.with_io(|io| io.poll_shutdown(cx))
    }
}
