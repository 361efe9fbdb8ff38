//! A client that sends at a fixed rate whatever the answers do, and how long each answer took; it judges nothing.

use crate::error::LoadError;
use crate::wire::{Decoder, Event, Side};
use nix::sys::prctl::set_timerslack;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What is sent, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Calls a second, over all connections.
    pub(crate) rate: u32,
    /// Connections, each with a thread of its own: a call that is answered late delays the next of its connection,
    /// and the delay counts.
    pub(crate) connections: u32,
    /// For how long.
    pub(crate) length: Duration,
}

/// Times to the last byte of an answer, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latency {
    /// The median.
    pub(crate) p50: u64,
    /// The 99th percentile.
    pub(crate) p99: u64,
}

impl Latency {
    /// Of these times, in any order; `None` of none.
    pub(crate) fn of(mut nanos: Vec<u64>) -> Option<Latency> {
        nanos.sort_unstable();
        let at = |percent: usize| nanos.get(nanos.len().saturating_sub(1) * percent / 100).copied();
        Some(Latency { p50: at(50)?, p99: at(99)? })
    }
}

/// Sends, and measures each answer from the moment its call was due, not from when it was sent.
///
/// # Errors
/// When a connection breaks or an answer is not 200.
pub(crate) fn run(addr: SocketAddr, path: &str, pace: Pace) -> Result<Latency, LoadError> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\n{}\r\n\r\n", super::drive::KEY);
    let lanes: Result<Vec<Lane>, LoadError> =
        (0..pace.connections).map(|_| Lane::connect(addr)).collect();
    let start = Instant::now() + START;
    let lists = std::thread::scope(|scope| {
        let threads: Vec<_> = lanes?
            .into_iter()
            .zip(0_u32..)
            .map(|(lane, number)| {
                let request = request.as_bytes();
                scope.spawn(move || lane.run(request, pace, start, number))
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or(Err(LoadError::Thread))
        };
        threads.into_iter().map(join).collect::<Result<Vec<Vec<u64>>, LoadError>>()
    })?;
    let all: Vec<u64> = lists.into_iter().flatten().collect();
    Latency::of(all).ok_or_else(|| LoadError::Unreadable("a paced run without calls".to_owned()))
}

/// Until every thread stands ready.
const START: Duration = Duration::from_millis(20);

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One connection.
struct Lane {
    stream: TcpStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Lane {
    fn connect(addr: SocketAddr) -> Result<Lane, LoadError> {
        let stream = TcpStream::connect(addr).map_err(LoadError::io("connect"))?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .map_err(LoadError::io("prepare a connection"))?;
        Ok(Lane { stream, decoder: Decoder::new(Side::Response), buffer: vec![0; 16 * 1024] })
    }

    /// Every `connections`-th call, from the `number`-th on.
    fn run(
        mut self,
        request: &[u8],
        pace: Pace,
        start: Instant,
        number: u32,
    ) -> Result<Vec<u64>, LoadError> {
        // The kernel may round timers up by 50 us for the sake of power; here that would be most of what is measured.
        set_timerslack(1)
            .map_err(io::Error::from)
            .map_err(LoadError::io("ask for exact timers"))?;
        let gap = Duration::from_secs(1) * pace.connections / pace.rate.max(1);
        let mut due = start + gap / pace.connections.max(1) * number;
        let mut nanos = Vec::new();
        while due < start + pace.length {
            until(due);
            self.exchange(request)?;
            nanos.push(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
            due += gap;
        }
        Ok(nanos)
    }

    /// One call and its answer.
    fn exchange(&mut self, request: &[u8]) -> Result<(), LoadError> {
        self.stream.write_all(request).map_err(LoadError::io("send a call"))?;
        let mut status = 0;
        loop {
            let read =
                self.stream.read(&mut self.buffer).map_err(LoadError::io("read an answer"))?;
            let mut rest = self.buffer.get(..read).unwrap_or_default();
            if rest.is_empty() {
                return Err(LoadError::Unreadable("an answer: it broke off".to_owned()));
            }
            loop {
                let (used, event) = self.decoder.push(rest)?;
                rest = rest.get(used..).unwrap_or_default();
                match event {
                    Event::More => break,
                    Event::Head(head) => status = head.status,
                    Event::End if status == 200 => return Ok(()),
                    Event::End => {
                        return Err(LoadError::Unreadable(format!("an answer with {status}")));
                    }
                }
            }
        }
    }
}

/// Parks until then; a spurious wake-up parks again.
fn until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// Connections that have made one call each and wait.
pub(crate) struct Idle {
    _lanes: Vec<Lane>,
}

impl Idle {
    /// Makes `number` of them, one after another.
    ///
    /// # Errors
    /// When the system or the peer refuses one, or an answer is not 200.
    pub(crate) fn connect(addr: SocketAddr, path: &str, number: usize) -> Result<Idle, LoadError> {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\n{}\r\n\r\n", super::drive::KEY);
        let mut lanes = Vec::with_capacity(number);
        for _ in 0..number {
            let mut lane = Lane::connect(addr)?;
            lane.exchange(request.as_bytes())?;
            // What this side keeps for a connection that only waits should be little.
            lane.buffer = Vec::new();
            lanes.push(lane);
        }
        Ok(Idle { _lanes: lanes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{Manner, Origin};

    fn origin() -> Origin {
        Origin::start(SocketAddr::from(([127, 0, 0, 1], 0)), Manner::default()).unwrap()
    }

    /// Goal: percentiles are those of the sorted list, and of nothing there are none.
    #[test]
    fn percentiles() {
        let nanos = (1..=101).rev().collect();
        assert_eq!(Latency::of(nanos), Some(Latency { p50: 51, p99: 100 }));
        assert_eq!(Latency::of(vec![7]), Some(Latency { p50: 7, p99: 7 }));
        assert_eq!(Latency::of(Vec::new()), None);
    }

    /// Goal: as many calls arrive as rate and length say, whatever the machine does meanwhile.
    #[test]
    fn the_rate_is_kept() {
        let origin = origin();
        let pace = Pace { rate: 1_000, connections: 4, length: Duration::from_millis(100) };
        let latency = run(origin.addr(), "/", pace).unwrap();
        assert_eq!(origin.log().len(), 100);
        assert!(latency.p50 > 0 && latency.p50 <= latency.p99);
    }

    /// Goal: each idle connection has made exactly one call.
    #[test]
    fn idle_connections_have_called_once() {
        let origin = origin();
        let idle = Idle::connect(origin.addr(), "/", 10).unwrap();
        assert_eq!(origin.log().len(), 10);
        drop(idle);
    }
}
