//! What the answers on one HTTP/2 connection have in memory, so that it stays within a bound; it sends nothing.

use bytes::{Buf, Bytes};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What one connection has in memory of its answers.
pub struct Room {
    /// Bytes of each kind, at most, and one piece of each stream beyond.
    bound: usize,
    /// Bytes that wait for the socket.
    queued: Cell<usize>,
    /// Bytes that wait for their stream's client to make room.
    held: Cell<usize>,
    /// The socket takes no more at the moment.
    stuck: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Bytes that a socket which is not stuck takes at once: there is no need to wait for them.
const AT_ONCE: usize = 16 * 1024;

impl Room {
    /// Room for so many bytes of each kind.
    #[must_use]
    pub fn new(bound: usize) -> Rc<Room> {
        let (queued, held, stuck) = (Cell::new(0), Cell::new(0), Cell::new(false));
        Rc::new(Room { bound, queued, held, stuck, waiting: RefCell::default() })
    }

    /// Says whether the socket takes no more at the moment.
    pub fn set_stuck(&self, stuck: bool) {
        self.stuck.set(stuck);
    }

    /// As much waits for the socket as may. Only the socket's client can mend that, for all streams at once.
    #[must_use]
    pub fn is_queue_full(&self) -> bool {
        self.queued.get() >= self.bound
    }

    /// As much waits for clients to make room on their streams as may: a stream without room must not take more from its upstream.
    #[must_use]
    pub fn is_hold_full(&self) -> bool {
        self.held.get() >= self.bound
    }

    /// The task is woken when there is room again.
    pub fn wake_by(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }

    fn change(&self, kind: &Cell<usize>, more: usize, less: usize) {
        let before = kind.get();
        kind.set(before.saturating_add(more).saturating_sub(less));
        if before >= self.bound && kind.get() < self.bound {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// What one answer has in memory.
pub struct Share {
    room: Rc<Room>,
    queued: Cell<usize>,
    held: Cell<usize>,
    /// Who waits until nothing is queued.
    waker: RefCell<Option<Waker>>,
}

impl Share {
    /// Of an answer that has nothing there yet.
    #[must_use]
    pub fn new(room: &Rc<Room>) -> Rc<Share> {
        let (queued, held) = (Cell::new(0), Cell::new(0));
        Rc::new(Share { room: Rc::clone(room), queued, held, waker: RefCell::default() })
    }

    /// Its connection's.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// It holds so many bytes from now on.
    pub fn hold(&self, bytes: usize) {
        self.room.change(&self.room.held, bytes, self.held.replace(bytes));
    }

    /// A piece for the socket.
    #[must_use]
    pub fn piece(self: &Rc<Share>, data: Bytes) -> Piece {
        let length = data.len();
        self.queued.set(self.queued.get().saturating_add(length));
        self.room.change(&self.room.queued, length, 0);
        Piece { data, length, share: Some(Rc::clone(self)) }
    }

    /// Ready once none of its pieces waits for the socket. What little there is on a connection whose socket takes all does not wait:
    /// it goes out before anything else happens.
    pub fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        let little = !self.room.stuck.get() && self.room.queued.get() <= AT_ONCE;
        if self.queued.get() == 0 || little {
            return Poll::Ready(());
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn gone(&self, length: usize) {
        self.room.change(&self.room.queued, 0, length);
        self.queued.set(self.queued.get().saturating_sub(length));
        if self.queued.get() == 0
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.hold(0);
    }
}

/// A piece of an answer that is on its way into the socket: dropped once it was written, or thrown away.
pub struct Piece {
    data: Bytes,
    length: usize,
    share: Option<Rc<Share>>,
}

impl Piece {
    /// No data: the end of an answer.
    #[must_use]
    pub fn nothing() -> Piece {
        Piece { data: Bytes::new(), length: 0, share: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.data.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.data
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(share) = self.share.take() {
            share.gone(self.length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            // ordering: relaxed, a number on its own.
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Goal: what is queued and what is held are bounded each, whoever waits is woken once there is room again, and nothing stays counted.
    #[test]
    fn room_comes_back() {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let cx = Context::from_waker(&waker);
        // ordering: relaxed, a number on its own.
        let rung = || bell.0.load(Ordering::Relaxed);
        let room = Room::new(10);
        room.set_stuck(true);
        let (one, other) = (Share::new(&room), Share::new(&room));
        let small = one.piece(Bytes::from_static(b"12345"));
        assert!(!room.is_queue_full());
        let mut large = other.piece(Bytes::from_static(b"0123456789"));
        assert!(room.is_queue_full() && !room.is_hold_full());
        room.wake_by(&cx);
        room.wake_by(&cx);
        assert!(one.poll_gone(&cx).is_pending());
        room.set_stuck(false);
        assert!(one.poll_gone(&cx).is_ready(), "so little goes at once");
        room.set_stuck(true);
        large.advance(9);
        assert!(room.is_queue_full(), "it is there until it is gone");
        drop(large);
        assert_eq!(rung(), 1);
        assert!(!room.is_queue_full() && other.poll_gone(&cx).is_ready());
        drop(small);
        assert_eq!(rung(), 2);
        assert!(one.poll_gone(&cx).is_ready());
        one.hold(7);
        other.hold(3);
        assert!(room.is_hold_full());
        room.wake_by(&cx);
        one.hold(2);
        assert_eq!(rung(), 3);
        drop((one, other));
        assert_eq!((room.queued.get(), room.held.get()), (0, 0));
    }
}
