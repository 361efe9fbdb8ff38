//! What one call may send on a connection that carries many; it writes nothing itself.

use breaker_core::{Denial, Pass};
use bytes::Bytes;
use h2::{Reason, SendStream};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

/// Wakes a connection that waits for the kernel to take more.
#[derive(Debug, Default)]
pub struct Blocked(RefCell<Option<Waker>>);

impl Blocked {
    /// It waits from now on.
    pub fn waits(&self, cx: &Context<'_>) {
        *self.0.borrow_mut() = Some(cx.waker().clone());
    }

    fn wake(&self) {
        if let Some(waker) = self.0.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A call's strand of a connection: its stream, in the words of HTTP/2.
pub struct Strand {
    id: u32,
    blocked: Rc<Blocked>,
    pass: Pass,
    sent: Cell<bool>,
    refused: Cell<Option<Denial>>,
    /// Ended from here.
    gone: Cell<bool>,
    /// Where what is sent is handed over; gone once nothing more may be.
    out: RefCell<Option<SendStream<Bytes>>>,
    /// Who waits for the answer, and who sends the body.
    wakers: RefCell<[Option<Waker>; 2]>,
}

/// Who waits on a strand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who waits for the answer.
    Down,
    /// Who sends the body.
    Up,
}

impl Strand {
    /// The strand of the call with this pass.
    #[must_use]
    pub fn new(pass: Pass, out: SendStream<Bytes>, blocked: &Rc<Blocked>) -> Strand {
        Strand {
            blocked: Rc::clone(blocked),
            id: out.stream_id().as_u32(),
            pass,
            sent: Cell::new(false),
            refused: Cell::new(None),
            gone: Cell::new(false),
            out: RefCell::new(Some(out)),
            wakers: RefCell::default(),
        }
    }

    /// Its number on its connection.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What the last look needs.
    #[must_use]
    pub fn pass(&self) -> &Pass {
        &self.pass
    }

    /// The kernel took a byte of it.
    pub fn set_sent(&self) {
        if !self.sent.replace(true) {
            self.wake(Side::Down);
        }
    }

    /// Did the kernel take a byte of the call?
    #[must_use]
    pub fn sent(&self) -> bool {
        self.sent.get()
    }

    /// What the last look said against it, or whoever cut it off. It stays.
    #[must_use]
    pub fn refused(&self) -> Option<Denial> {
        self.refused.get()
    }

    /// Was it ended here, and not by the upstream?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// A gate is against it: nothing more of it passes, and the upstream is told by a reset, if it knows of it.
    pub fn cut_off(&self, denial: Denial) {
        if self.refused.get().is_none() {
            self.refused.set(Some(denial));
            // A part of a frame may be with the kernel, and the rest is on its way: whoever holds it must look again.
            self.blocked.wake();
        }
        self.abandon();
    }

    /// As [`Strand::cut_off`], but by no gate.
    pub fn abandon(&self) {
        if !self.gone.replace(true) {
            if let Some(mut out) = self.out.borrow_mut().take() {
                out.send_reset(Reason::CANCEL);
            }
            self.wake(Side::Down);
            self.wake(Side::Up);
        }
    }

    /// The call is over: what was not sent never is.
    pub fn end(&self) {
        self.gone.set(true);
        self.out.borrow_mut().take();
        self.wake(Side::Up);
    }

    /// Hands something over to be sent, if there is still a way.
    pub fn with_out<R>(&self, hand: impl FnOnce(&mut SendStream<Bytes>) -> R) -> Option<R> {
        self.out.borrow_mut().as_mut().map(hand)
    }

    /// Whom to wake of one side.
    pub fn wake_by(&self, side: Side, cx: &Context<'_>) {
        let mut wakers = self.wakers.borrow_mut();
        let [down, up] = &mut *wakers;
        let waker = if side == Side::Down { down } else { up };
        match waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Wakes one side.
    pub fn wake(&self, side: Side) {
        let wakers = self.wakers.borrow();
        let [down, up] = &*wakers;
        if let Some(waker) = if side == Side::Down { down } else { up } {
            waker.wake_by_ref();
        }
    }
}
