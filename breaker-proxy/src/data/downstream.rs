//! A client's socket and what has come of it, shared by the connection and by the upload of the request that it serves; it
//! reads no heads and decides nothing.

use super::Worker;
use super::channel::Channel;
use super::peer::Peer;
use crate::wire::Breach;
use crate::wire::chunks::{Chunks, Piece};
use crate::wire::request::Framing;
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf};

/// What is read through the worker's scratch, and not into memory of its own.
const SMALL: usize = 8 * 1024;

/// Bytes of a body that are read at once, at most.
const READ_MAX: usize = 64 * 1024;

/// Bytes of what stands behind the request that is being served that are taken in, at most.
const AHEAD_MAX: usize = 16 * 1024;

/// Bytes of a refused body that are read for the sake of the connection, where they are there already.
const DRAIN_MAX: usize = 64 * 1024;

/// Bytes of pieces that are copied together, at most: that costs less than to hand them to the kernel one by one.
const COPY_MAX: usize = 4096;

/// A chunk with fewer bytes goes on together with what stands behind it: each would cost a write of its own.
const GATHER_BELOW: usize = 256;

/// Bytes of interim answers that wait for a client that does not read; what comes beyond is not told.
const INTERIM_MAX: usize = 16 * 1024;

/// What a client is told that waits for leave to send its body (RFC 9110, 10.1.1).
const LEAVE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What is still to come of the body of the request that is being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Length(u64),
    Chunks(Chunks),
    /// What came was no body.
    Broken,
}

/// The client's side of one connection.
pub struct Downstream {
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    io: RefCell<Channel>,
    /// What has come and was not taken yet.
    input: RefCell<BytesMut>,
    left: Cell<Left>,
    /// What of [`LEAVE`] the client has yet to be told before it sends its body.
    leave: Cell<&'static [u8]>,
    /// What of interim answers the client has yet to be told.
    interim: RefCell<Vec<u8>>,
    /// Some of what it was told may still wait for the kernel.
    unflushed: Cell<bool>,
}

/// The body broke off, or is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl Downstream {
    /// A connection that serves nothing yet.
    #[must_use]
    pub fn new(worker: &Rc<Worker>, peer: &Rc<Peer>, channel: Channel) -> Rc<Downstream> {
        Rc::new(Downstream {
            worker: Rc::clone(worker),
            peer: Rc::clone(peer),
            io: RefCell::new(channel),
            input: RefCell::default(),
            left: Cell::new(Left::Nothing),
            leave: Cell::new(&[]),
            interim: RefCell::default(),
            unflushed: Cell::new(false),
        })
    }

    /// What has come and was not taken yet.
    #[must_use]
    pub fn input(&self) -> &RefCell<BytesMut> {
        &self.input
    }

    /// From now on what comes is the body of a request.
    pub fn begin_body(&self, framing: Framing, expects: bool) {
        self.left.set(match framing {
            Framing::None => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunks(Chunks::Size),
        });
        self.leave.set(if expects { LEAVE } else { &[] });
    }

    /// How the rest of the body is framed.
    #[must_use]
    pub fn framing(&self) -> Framing {
        match self.left.get() {
            Left::Nothing | Left::Broken => Framing::None,
            Left::Length(length) => Framing::Length(length),
            Left::Chunks(_) => Framing::Chunked,
        }
    }

    /// Has the whole body come?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.left.get() == Left::Nothing
    }

    /// A piece of the body; `None` at its end.
    pub fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        loop {
            match self.take_body() {
                Ok(Piece::Data(data)) => return Poll::Ready(Ok(Some(data))),
                Ok(Piece::End(_)) => return Poll::Ready(Ok(None)),
                Ok(Piece::More) => {}
                Err(Broken) => return Poll::Ready(Err(Broken)),
            }
            if !self.leave.get().is_empty() && ready!(self.poll_tell(cx)).is_err() {
                return Poll::Ready(Err(self.broke()));
            }
            while let leave @ [_, ..] = self.leave.get() {
                match ready!(Pin::new(&mut *self.io.borrow_mut()).poll_write(cx, leave)) {
                    Ok(told) => self.leave.set(leave.get(told..).unwrap_or(&[])),
                    Err(_) => return Poll::Ready(Err(self.broke())),
                }
                self.unflushed.set(true);
            }
            if self.unflushed.get() {
                if ready!(self.poll_flush(cx)).is_err() {
                    return Poll::Ready(Err(self.broke()));
                }
                self.unflushed.set(false);
            }
            if !matches!(ready!(self.poll_read(cx)), Ok(1..)) {
                return Poll::Ready(Err(self.broke()));
            }
        }
    }

    fn broke(&self) -> Broken {
        self.left.set(Left::Broken);
        Broken
    }

    /// What is at hand of the body.
    fn take_body(&self) -> Result<Piece, Broken> {
        let mut input = self.input.borrow_mut();
        if !input.is_empty() {
            // It does not wait for leave.
            if self.leave.get().len() == LEAVE.len() {
                self.leave.set(&[]);
            }
        }
        match self.left.get() {
            Left::Nothing => Ok(Piece::End(None)),
            Left::Broken => Err(Broken),
            Left::Length(_) if input.is_empty() => Ok(Piece::More),
            Left::Length(left) => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                let left = left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX));
                self.left.set(if left == 0 { Left::Nothing } else { Left::Length(left) });
                Ok(Piece::Data(input.split_to(here).freeze()))
            }
            Left::Chunks(mut chunks) => {
                let piece = chunks.take(&mut input).map_err(|_| self.broke())?;
                let (piece, ended) = match piece {
                    Piece::Data(data) if data.len() < GATHER_BELOW && !input.is_empty() => {
                        gather(&data, &mut chunks, &mut input).map_err(|_| self.broke())?
                    }
                    piece => {
                        let ended = matches!(piece, Piece::End(_));
                        (piece, ended)
                    }
                };
                self.left.set(if ended { Left::Nothing } else { Left::Chunks(chunks) });
                Ok(piece)
            }
        }
    }

    /// Reads what is at hand of a body that nobody wants, up to a bound, so that the connection can serve on.
    pub fn drain(&self) {
        let mut budget = DRAIN_MAX;
        // Who waits for leave gets none: what comes next may be the body all the same, or another request.
        if !self.leave.take().is_empty() {
            return;
        }
        while let Ok(Piece::Data(_) | Piece::More) = self.take_body() {
            if !self.input.borrow().is_empty() {
                continue;
            }
            let mut scratch = self.worker.scratch.borrow_mut();
            let mut nobody = Context::from_waker(Waker::noop());
            let mut buf = ReadBuf::new(&mut scratch);
            let read = Pin::new(&mut *self.io.borrow_mut()).poll_read(&mut nobody, &mut buf);
            let (true, read @ 1..) = (matches!(read, Poll::Ready(Ok(()))), buf.filled().len())
            else {
                return;
            };
            let Some(left) = budget.checked_sub(read) else { return };
            budget = left;
            self.input.borrow_mut().extend_from_slice(scratch.get(..read).unwrap_or(&[]));
        }
    }

    /// The client is to be told this interim answer, a head without its end; not if it has not taken what came before.
    pub fn tell(&self, text: Vec<u8>) {
        let mut interim = self.interim.borrow_mut();
        if interim.len() <= INTERIM_MAX {
            interim.extend_from_slice(&text);
            interim.extend_from_slice(b"\r\n");
        }
        self.worker.give_spare(text);
    }

    /// Tells it; ready once the client has no more to be told.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_tell(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut interim = self.interim.borrow_mut();
        // A word that was begun is said to its end first.
        let begun = (1..LEAVE.len()).contains(&self.leave.get().len());
        while !interim.is_empty() && !begun {
            let told = ready!(Pin::new(&mut *self.io.borrow_mut()).poll_write(cx, &interim))?;
            let told = told.min(interim.len());
            interim.drain(..told);
            self.unflushed.set(true);
        }
        if interim.is_empty() && self.unflushed.replace(false) {
            let flushed = Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx);
            self.unflushed.set(flushed.is_pending());
            return flushed;
        }
        Poll::Ready(Ok(()))
    }

    /// Nobody is given leave to send a body any more: the answer begins. What was told before it must be told to its end.
    #[must_use]
    pub fn end_leave(&self) -> Vec<u8> {
        let rest = self.leave.take();
        let interim = self.interim.take();
        if rest.len() == LEAVE.len() { interim } else { [rest, &interim].concat() }
    }

    /// Reads once more, and appends what came; 0 at the end.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut io = self.io.borrow_mut();
        let mut input = self.input.borrow_mut();
        let expected = match self.left.get() {
            Left::Length(left) => usize::try_from(left).unwrap_or(READ_MAX).min(READ_MAX),
            _ => 0,
        };
        if expected > SMALL {
            input.reserve(expected);
            // What is read is in `input` when this returns, so the future need not live on.
            return pin!(io.read_buf(&mut *input)).poll(cx);
        }
        let mut scratch = self.worker.scratch.borrow_mut();
        let mut buf = ReadBuf::new(&mut scratch);
        Pin::new(&mut *io).poll_read(cx, &mut buf).map_ok(|()| {
            input.extend_from_slice(buf.filled());
            buf.filled().len()
        })
    }

    /// Reads into this memory; 0 at the end.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_read_into(
        &self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(scratch);
        let read = Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, &mut buf);
        read.map_ok(|()| buf.filled().len())
    }

    /// Ready once the client has left. What it sends meanwhile, behind the request that is being served, is taken in up to a bound.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        while self.is_whole() && self.input.borrow().len() < AHEAD_MAX {
            if !matches!(ready!(self.poll_read(cx)), Ok(1..)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Writes what the kernel takes of these pieces.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        let mut io = self.io.borrow_mut();
        let mut scratch = self.worker.scratch.borrow_mut();
        let copied = match pieces {
            [_] => 0,
            // What fits into one record, and costs less to copy than a record does.
            _ if io.wants_one_piece() => length.min(scratch.len()),
            _ if length <= COPY_MAX => length,
            _ => 0,
        };
        let written = match (pieces, scratch.get_mut(..copied)) {
            ([only], _) => Pin::new(&mut *io).poll_write(cx, only),
            (_, Some(whole @ [_, ..])) => {
                let mut rest = &mut *whole;
                for piece in pieces {
                    let here = piece.len().min(rest.len());
                    let (filled, after) = rest.split_at_mut(here);
                    filled.copy_from_slice(piece.get(..here).unwrap_or(&[]));
                    rest = after;
                }
                Pin::new(&mut *io).poll_write(cx, whole)
            }
            _ => Pin::new(&mut *io).poll_write_vectored(cx, pieces),
        };
        if let Poll::Ready(Ok(1..)) = written {
            // However slowly, the client reads.
            self.peer.moved.set(self.worker.second.get());
        }
        written
    }

    /// Sees to it that the kernel takes all that was written.
    ///
    /// # Errors
    /// The socket's own.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = self.io.borrow_mut();
        let before = io.taken();
        let flushed = Pin::new(&mut *io).poll_flush(cx);
        if io.taken() != before {
            self.peer.moved.set(self.worker.second.get());
        }
        flushed
    }

    /// A number that grows whenever the kernel takes bytes that were written before.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.io.borrow().taken()
    }

    /// Says one last thing, if the kernel takes it at once: if it does not, the client does not learn why.
    pub fn say_at_once(&self, words: &[u8]) {
        let mut nobody = Context::from_waker(Waker::noop());
        let mut io = self.io.borrow_mut();
        if Pin::new(&mut *io).poll_write(&mut nobody, words).is_ready() {
            let _ = Pin::new(&mut *io).poll_flush(&mut nobody);
        }
    }

    /// Tells the client that no more comes.
    pub fn end_writing(&self) {
        // An end that fails is one that the client brought about.
        let mut nobody = Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(&mut nobody);
    }

    /// The connection, when it is dropped, ends by a reset: a plain end would make what was sent look whole.
    pub fn break_off(&self) {
        let _ = socket2::SockRef::from(self.io.borrow().socket()).set_linger(Some(Duration::ZERO));
    }
}

/// Data that came in small chunks and is at hand as one piece, and whether the body ends with it.
fn gather(
    first: &[u8],
    chunks: &mut Chunks,
    input: &mut BytesMut,
) -> Result<(Piece, bool), Breach> {
    let mut all = BytesMut::from(first);
    loop {
        match chunks.take(input)? {
            Piece::Data(data) => all.extend_from_slice(&data),
            Piece::More => return Ok((Piece::Data(all.freeze()), false)),
            Piece::End(_) => return Ok((Piece::Data(all.freeze()), true)),
        }
    }
}
