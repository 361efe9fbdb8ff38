//! When the kernel received bytes: reads that return the kernel's own receive timestamps, and the clock they
//! are given in; it keeps nothing.
//!
//! What a stamp of a TCP read means, as `net/ipv4/tcp.c` has it: of all the segments a read took bytes from, the
//! stamp of the *last* one; and when the kernel merges a segment into the one queued before it, the merged one
//! carries the *later* stamp. So a stamp is never earlier than the arrival of any byte it stands for. Taken as
//! the arrival of a first byte it can only err towards "later", which is the side that fails a test. On loopback
//! the stamp is set in the sender's own `write`, when the packet is queued for the receiver.

use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};

/// A point of `CLOCK_REALTIME`, in nanoseconds since 1970.
pub(crate) type Wall = u64;

/// What one read returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// How many bytes; 0 at the end of the stream.
    pub(crate) bytes: usize,
    /// When the kernel received the last of them, where it says.
    pub(crate) at: Option<Wall>,
}

/// Room for the control message of one read; kept to spare an allocation for each.
#[derive(Debug)]
pub(crate) struct Room(Vec<u8>);

impl Room {
    /// Room for one stamp.
    pub(crate) fn new() -> Room {
        Room(nix::cmsg_space!(TimeSpec))
    }
}

/// Asks the kernel to stamp what this socket receives. A listener hands it on to what it accepts.
pub(crate) fn enable(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, ReceiveTimestampns, &true)?)
}

/// One `recvmsg`, with its stamp.
pub(crate) fn read(socket: &impl AsRawFd, into: &mut [u8], room: &mut Room) -> io::Result<Taken> {
    let mut parts = [IoSliceMut::new(into)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room.0), MsgFlags::empty())?;
    let at = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(nanos(time)),
        _ => None,
    });
    Ok(Taken { bytes: message.bytes, at })
}

/// Now, by the clock the stamps use.
pub(crate) fn wall() -> Wall {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, nanos)
}

/// How far the wall clock is ahead of the monotonic one, in nanoseconds: if this moves, somebody set the clock,
/// and stamps from before and after cannot be compared.
pub(crate) fn offset() -> u64 {
    let mono = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, nanos);
    wall().saturating_sub(mono)
}

fn nanos(time: TimeSpec) -> u64 {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    /// Goal: on this kernel TCP reads on loopback are stamped, the stamp lies between the write and the read,
    /// also when the reader comes late, and a read of the first byte alone is not given a time before it was
    /// written.
    #[test]
    fn tcp_on_loopback_is_stamped_on_arrival() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        enable(&listener).unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sender.set_nodelay(true).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        let mut room = Room::new();
        let mut buffer = [0; 16];
        let mut stamped = 0;
        for _ in 0..100 {
            let before = wall();
            sender.write_all(b"abc").unwrap();
            let written = wall();
            // The write is over and the bytes are in the receiver's queue: its stamp must say so, whenever we read.
            let first = read(&receiver, buffer.get_mut(..1).unwrap(), &mut room).unwrap();
            let rest = read(&receiver, &mut buffer, &mut room).unwrap();
            assert_eq!((first.bytes, rest.bytes), (1, 2));
            assert_eq!(first.at, rest.at, "one segment, one stamp");
            if let Some(at) = first.at {
                assert!(before <= at, "stamped {} ns before it was written", before - at);
                // Not after the write, unless the kernel put the delivery off to a softirq thread; count those in time.
                stamped += u32::from(at <= written);
            }
        }
        assert!(stamped > 50, "only {stamped} of 100 reads were stamped within the sender's write");
    }
}
