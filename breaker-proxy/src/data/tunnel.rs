//! A connection that has become a WebSocket: both directions as they come, until one ends or a kill ends both; it reads no frames.
//!
//! Whoever sends through it goes on acting, so a halt severs it as it severs an upload. Each write towards the upstream is
//! looked at by the gates like any other.

use super::alarm::Alarm;
use super::downstream::Downstream;
use super::upstream::Exchange;
use bytes::Buf as _;
use std::future::poll_fn;
use std::io::IoSlice;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// Carries both directions to their end. Without a byte in either for `idle` it ends, too. Was it an end that the client is to be told
/// of in good order, after all that was for it?
pub async fn carry(
    client: &Downstream,
    exchange: &mut Exchange,
    alarm: &mut Alarm,
    idle: Duration,
) -> bool {
    exchange.switch();
    let mut tunnel = Tunnel { client, exchange, sent: false, heard: false, unflushed: false };
    let mut moved = Instant::now();
    poll_fn(|cx| match tunnel.poll(cx) {
        Turn::Ended => Poll::Ready(true),
        Turn::BrokeOff => Poll::Ready(false),
        turn => {
            if turn == Turn::Moved {
                moved = Instant::now();
            }
            match alarm.passed(moved + idle, cx) {
                true => Poll::Ready(true),
                false => Poll::Pending,
            }
        }
    })
    .await
}

struct Tunnel<'t> {
    client: &'t Downstream,
    exchange: &'t mut Exchange,
    /// The client has sent everything.
    sent: bool,
    /// The upstream has sent everything.
    heard: bool,
    /// Some of what the client was told waits for the kernel.
    unflushed: bool,
}

/// What came of a look at both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Bytes moved, and now both wait.
    Moved,
    /// Both wait.
    Waits,
    Ended,
    BrokeOff,
}

/// What came of one step in one direction: whether bytes moved, or that it broke off.
type Step = Result<bool, ()>;

impl Tunnel<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Turn {
        let mut turn = Turn::Waits;
        loop {
            // Before anything else moves, in either direction.
            if self.exchange.poll_severed(cx) {
                self.client.break_off();
                return Turn::BrokeOff;
            }
            let (Ok(up), Ok(down)) = (self.up(cx), self.down(cx)) else { return Turn::BrokeOff };
            let flushed = |left: bool, ended: bool| ended && !left;
            let left_up = !self.client.input().borrow().is_empty();
            let left_down = self.unflushed || !self.exchange.input().is_empty();
            if flushed(left_up, self.sent) || flushed(left_down, self.heard) {
                return Turn::Ended;
            }
            if !up && !down {
                return turn;
            }
            turn = Turn::Moved;
        }
    }

    /// From the client to the upstream.
    fn up(&mut self, cx: &mut Context<'_>) -> Step {
        if self.client.input().borrow().is_empty() {
            match self.client.poll_read(cx) {
                _ if self.sent => return Ok(false),
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => self.sent = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(()),
            }
        }
        let mut input = self.client.input().borrow_mut();
        if input.is_empty() {
            return Ok(false);
        }
        match self.exchange.poll_pass_on(cx, &input) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(taken @ 1..)) => {
                input.advance(taken);
                Ok(true)
            }
            Poll::Ready(_) => Err(()),
        }
    }

    /// From the upstream to the client.
    fn down(&mut self, cx: &mut Context<'_>) -> Step {
        if self.exchange.input().is_empty() {
            // What was written may still wait for the kernel.
            match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => return Err(()),
                Poll::Pending => self.unflushed = true,
            }
            if self.heard {
                return Ok(false);
            }
            match self.exchange.poll_hear(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => self.heard = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(()),
            }
        }
        let input = self.exchange.input();
        if input.is_empty() {
            return Ok(false);
        }
        match self.client.poll_write(cx, &[IoSlice::new(input)]) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(taken @ 1..)) => {
                input.advance(taken);
                Ok(true)
            }
            Poll::Ready(_) => Err(()),
        }
    }
}
