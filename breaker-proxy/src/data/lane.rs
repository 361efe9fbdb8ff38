//! The last look: an upstream socket that asks the gates inside its own write; it knows nothing of HTTP.
//!
//! A request leaves this process only in a write to an upstream's socket, and whatever stands between the decision and
//! that write (a full socket buffer, a task that waits for its turn) may hold it back for any time. So
//! the gates are looked at once more *inside* the write, between two moves of the worker's mark, without an await: either
//! the write sees the kill, or the killer sees the worker inside and waits until it is out. After the killer has seen every
//! worker outside, no byte of a killed call can go out.

use super::Worker;
use breaker_core::{Denial, Mono, Pass};
use bytes::BytesMut;
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

/// What one upstream connection may send: nothing, or the bytes of one call.
pub struct Lane {
    worker: Rc<Worker>,
    pass: Cell<Option<Pass>>,
    now: Cell<Mono>,
    sent: Cell<bool>,
    refused: Cell<Option<Denial>>,
    /// Gone once the lane was cut off.
    io: RefCell<Option<TcpStream>>,
}

impl Lane {
    /// A socket's lane; nothing may pass yet.
    #[must_use]
    pub fn new(worker: Rc<Worker>, stream: TcpStream) -> Rc<Lane> {
        Rc::new(Lane {
            worker,
            io: RefCell::new(Some(stream)),
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
            let _ = socket2::SockRef::from(&io).set_linger(Some(Duration::ZERO));
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
        self.guard(|| match self.io.borrow_mut().as_mut() {
            // One piece costs the kernel less than a list of one.
            Some(io) => match bufs {
                [only] => Pin::new(io).poll_write(cx, only),
                _ => Pin::new(io).poll_write_vectored(cx, bufs),
            },
            None => Poll::Ready(Err(refusal())),
        })
    }

    /// Reads into the worker's scratch, and appends what came; 0 at the end.
    ///
    /// # Errors
    /// The socket's own, or that it was cut off.
    pub fn poll_read(&self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        let mut io = self.io.borrow_mut();
        let Some(io) = io.as_mut() else { return Poll::Ready(Err(refusal())) };
        let mut scratch = self.worker.scratch.borrow_mut();
        let mut buf = ReadBuf::new(&mut scratch);
        Pin::new(io).poll_read(cx, &mut buf).map_ok(|()| {
            into.extend_from_slice(buf.filled());
            buf.filled().len()
        })
    }

    /// Reads into memory of its own, at most as much as `into` has room for; 0 at the end.
    ///
    /// # Errors
    /// The socket's own, or that it was cut off.
    pub fn poll_read_large(
        &self,
        cx: &mut Context<'_>,
        into: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let mut io = self.io.borrow_mut();
        let Some(io) = io.as_mut() else { return Poll::Ready(Err(refusal())) };
        // What is read is in `into` when this returns, so the future need not live on.
        pin!(io.read_buf(into)).poll(cx)
    }

    /// Whether it is as an idle connection should be: there, and silent.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        // Not by a poll: a task that has used up its turn is told that nothing came, whatever came.
        let read = self.io.borrow().as_ref().map(|io| io.try_read(&mut [0]));
        matches!(read, Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock)
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
