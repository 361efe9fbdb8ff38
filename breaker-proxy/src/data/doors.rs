//! Spreads client connections evenly over the workers; it serves none.
//!
//! The kernel spreads connections by their addresses, and with few of them that is uneven: one worker has all to do while another
//! sleeps. So a worker that accepts one and has more than another hands it over, once, before the first byte is read.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The ways in to all workers.
pub struct Doors(Box<[Door]>);

/// The way in to one worker, on a line of memory of its own.
#[repr(align(128))]
struct Door {
    /// Its connections, those on their way included.
    open: AtomicU64,
    /// As many wait in here as there are connections at most, for each holds its place.
    hand: UnboundedSender<Arrival>,
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub struct Arrival {
    stream: std::net::TcpStream,
    /// Who is at its other end.
    pub peer: SocketAddr,
    /// Its place with the worker.
    pub place: Place,
}

/// A connection's place with a worker, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    doors: &'static Doors,
    worker: usize,
}

impl std::fmt::Debug for Doors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.loads()).finish()
    }
}

impl Doors {
    /// Ways in to so many workers, and where each worker takes in what others hand over.
    #[must_use]
    pub fn new(workers: usize) -> (Doors, Vec<UnboundedReceiver<Arrival>>) {
        let (doors, inner) = (0..workers)
            .map(|_| {
                let (hand, inner) = unbounded_channel();
                (Door { open: AtomicU64::new(0), hand }, inner)
            })
            .unzip::<_, _, Vec<_>, _>();
        (Doors(doors.into()), inner)
    }

    /// Connections of each worker.
    #[must_use]
    pub fn loads(&self) -> Vec<u64> {
        // ordering: relaxed, a hint.
        self.0.iter().map(|door| door.open.load(Ordering::Relaxed)).collect()
    }

    /// A place with the worker that has the fewest connections; with this one if no other has fewer.
    #[must_use]
    pub fn place(&'static self, own: usize) -> Place {
        let load = |worker: usize| {
            // ordering: relaxed: two that choose at once may choose the same, and the next one makes up for it.
            let door = self.0.get(worker).filter(|door| !door.hand.is_closed());
            // A worker that has ended has none, and would be given all.
            door.map_or(u64::MAX, |door| door.open.load(Ordering::Relaxed))
        };
        let least = (0..self.0.len()).min_by_key(|&worker| (load(worker), worker != own));
        let worker = least.unwrap_or(own);
        if let Some(door) = self.0.get(worker) {
            // ordering: relaxed, as above.
            door.open.fetch_add(1, Ordering::Relaxed);
        }
        Place { doors: self, worker }
    }
}

impl Place {
    /// Which worker it is with.
    #[must_use]
    pub fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(door) = self.doors.0.get(self.worker) {
            // ordering: relaxed, a hint.
            door.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Hands a connection to the worker that its place is with. A worker that has ended takes none: the connection ends, too.
///
/// # Errors
/// The socket cannot change hands.
pub fn hand_over(stream: TcpStream, peer: SocketAddr, place: Place) -> io::Result<()> {
    let stream = stream.into_std()?;
    if let Some(door) = place.doors.0.get(place.worker) {
        let _ = door.hand.send(Arrival { stream, peer, place });
    }
    Ok(())
}

impl Arrival {
    /// The connection, with the worker that calls this.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub fn take(self) -> io::Result<(TcpStream, SocketAddr, Place)> {
        Ok((TcpStream::from_std(self.stream)?, self.peer, self.place))
    }
}

#[cfg(test)]
mod tests {
    use super::Doors;

    /// Goal: whoever accepts, no worker has more than one connection beyond any other, and an end makes room where it was.
    #[test]
    fn places_are_even() {
        let (doors, _inner) = Doors::new(3);
        let doors: &'static Doors = Box::leak(Box::new(doors));
        let mut places = Vec::new();
        for number in 0..10 {
            places.push(doors.place(usize::from(number % 4 == 0)));
            let loads = doors.loads();
            assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
        }
        let freed = places.remove(3);
        let worker = freed.worker();
        drop(freed);
        let before = doors.loads();
        let next = doors.place((worker + 1) % 3);
        assert!(before[next.worker()] == *before.iter().min().unwrap());
        drop((places, next));
        assert_eq!(doors.loads(), [0, 0, 0]);
    }

    /// Goal: a worker that has ended, and so has the fewest, is given nothing: what it was given was lost.
    #[test]
    fn a_worker_that_had_ended_was_given_every_connection() {
        let (doors, mut inner) = Doors::new(3);
        let doors: &'static Doors = Box::leak(Box::new(doors));
        drop(inner.remove(1));
        let places: Vec<_> = (0..10).map(|_| doors.place(0)).collect();
        assert_eq!(doors.loads(), [5, 0, 5]);
        drop(places);
        drop(inner);
        assert_eq!(doors.place(2).worker(), 2, "with nobody left it stays where it is");
    }

    /// Goal: a worker keeps what it accepted where no other has fewer: nothing changes hands without need.
    #[test]
    fn a_tie_stays_at_home() {
        let (doors, _inner) = Doors::new(3);
        let doors: &'static Doors = Box::leak(Box::new(doors));
        for own in [2, 1, 0] {
            let place = doors.place(own);
            assert_eq!(place.worker(), own);
            std::mem::forget(place);
        }
    }
}
