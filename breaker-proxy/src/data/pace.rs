//! How fast a client must move a body, and until when it may move nothing; it looks at no clock and ends nothing.

use std::num::NonZeroU32;
use std::time::Duration;
use tokio::time::Instant;

/// How long a body has waited for its client, and for how long it may.
///
/// Only that counts during which the client alone is waited for. It may move nothing for `idle`, and over the whole of a body it may
/// be waited for as long as the bytes that it moved take at the least rate, and `idle` beyond that.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    idle: Duration,
    /// Bytes a second, at least; `None`: any.
    rate: Option<NonZeroU32>,
    /// The number of bytes at the beginning, and now.
    bytes: Option<(u64, u64)>,
    /// Waits that are over.
    waited: Duration,
    /// Since when it waits.
    since: Option<Instant>,
}

impl Pace {
    /// Of a body of which nothing was moved.
    #[must_use]
    pub fn new(idle: Duration, rate: Option<NonZeroU32>) -> Pace {
        Pace { idle, rate, bytes: None, waited: Duration::ZERO, since: None }
    }

    /// So many bytes have moved in all, counted from any number on, and the client `owes` a move or does not. Until when it may owe it.
    pub fn look(&mut self, bytes: u64, owes: bool, now: Instant) -> Option<Instant> {
        let (begun, before) = *self.bytes.get_or_insert((bytes, bytes));
        if (bytes != before || !owes)
            && let Some(since) = self.since.take()
        {
            self.waited = self.waited.saturating_add(now.saturating_duration_since(since));
        }
        self.bytes = Some((begun, bytes));
        if !owes {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        let left = match self.rate {
            None => self.idle,
            Some(rate) => {
                let moved = bytes.wrapping_sub(begun);
                let earned = moved.saturating_mul(1000).checked_div(u64::from(rate.get()));
                let earned = Duration::from_millis(earned.unwrap_or(0));
                let whole = earned.saturating_add(self.idle).saturating_sub(self.waited);
                whole.min(self.idle)
            }
        };
        Some(since.checked_add(left).unwrap_or(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(30);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Goal: a client that moves nothing has the idle time, from whenever it is waited for.
    #[test]
    fn nothing_moves_for_the_idle_time() {
        for rate in [None, NonZeroU32::new(240)] {
            let begun = Instant::now();
            let mut pace = Pace::new(IDLE, rate);
            assert_eq!(pace.look(7, true, begun), Some(begun + IDLE));
            assert_eq!(pace.look(7, true, begun + seconds(29)), Some(begun + IDLE));
            assert_eq!(pace.look(7, false, begun + seconds(29)), None, "it owes nothing");
        }
    }

    /// Goal: one byte at a time, each in time, goes on for ever without a rate, and with one only as long as the bytes are worth.
    #[test]
    fn a_byte_now_and_then_held_a_body_for_ever() {
        let begun = Instant::now();
        let (mut any, mut least) = (Pace::new(IDLE, None), Pace::new(IDLE, NonZeroU32::new(1)));
        let mut late = None;
        for byte in 0..100_u64 {
            let now = begun + seconds(byte * 20);
            assert_eq!(any.look(byte, true, now), Some(now + IDLE));
            let until = least.look(byte, true, now).unwrap();
            if until <= now && late.is_none() {
                late = Some(byte);
            }
        }
        // Twenty seconds a byte, of which one is earned: the idle time lasts for no more than two.
        assert_eq!(late, Some(2));
    }

    /// Goal: what the other side is waited for counts for nothing, and who is fast enough may go on for ever.
    #[test]
    fn only_the_client_is_timed() {
        let begun = Instant::now();
        let mut pace = Pace::new(IDLE, NonZeroU32::new(100));
        let mut now = begun;
        for turn in 0..1000_u64 {
            assert!(pace.look(turn * 100, true, now).unwrap() > now, "{turn}");
            now += seconds(1);
            assert_eq!(pace.look((turn + 1) * 100, false, now), None);
            now += seconds(1000);
        }
    }

    /// Goal: a count that runs over, or starts anywhere, earns what was moved.
    #[test]
    fn the_count_may_start_anywhere() {
        let begun = Instant::now();
        let mut pace = Pace::new(IDLE, NonZeroU32::new(10));
        pace.look(u64::MAX - 9, true, begun);
        let until = pace.look(90, true, begun + seconds(25)).unwrap();
        assert_eq!(until, begun + seconds(25) + seconds(15), "a hundred bytes are ten seconds");
    }
}
