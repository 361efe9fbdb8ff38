//! Names of endpoints, resolved off the path of calls and again in time; it makes no connection.

use super::Worker;
use super::endpoint::Endpoint;
use crate::config::upstream as config;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::sync::watch;

/// Addresses of one name.
const MAX_ADDRESSES: usize = 64;

/// Seconds between two attempts while the resolver fails.
const RETRY: u64 = 1;

/// Where an endpoint's servers are.
pub struct Addresses {
    name: Option<(String, u16)>,
    found: watch::Sender<Found>,
    /// Counts up with every change, so that nobody compares addresses while there is none.
    serial: AtomicU32,
    /// The address that the next connection begins with.
    turn: AtomicU32,
    /// Attempts that found nothing.
    failures: AtomicU64,
    /// The second of the first worker in which it is looked up again; the end of time while it is being looked up.
    due: AtomicU64,
}

/// What is known of a name.
#[derive(Clone)]
enum Found {
    /// Nobody has asked yet.
    Nothing,
    /// The resolver knows of none, and never did.
    Failed,
    /// These, as the last answer said.
    List(Arc<[SocketAddr]>),
}

impl Addresses {
    /// Of this endpoint; one that is no name is known from the start, and for ever.
    #[must_use]
    pub fn of(target: &config::Endpoint) -> Addresses {
        let (name, found) = match target.server() {
            None => (None, Found::Nothing),
            Some((host, port)) => match host.parse::<IpAddr>() {
                Ok(ip) => (None, Found::List(Arc::from([SocketAddr::new(ip, port)]))),
                Err(_) => (Some((host.to_owned(), port)), Found::Nothing),
            },
        };
        Addresses {
            name,
            found: watch::Sender::new(found),
            serial: AtomicU32::new(0),
            turn: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            due: AtomicU64::new(0),
        }
    }

    /// The addresses, each time beginning with the next one. Waits while nobody has asked yet.
    ///
    /// # Errors
    /// The name leads nowhere.
    pub async fn list(&self) -> io::Result<Vec<SocketAddr>> {
        let mut found = self.found.subscribe();
        let found = found.wait_for(|found| !matches!(found, Found::Nothing)).await;
        let found = found.map_err(|_| io::Error::other("nobody resolves names any more"))?;
        let Found::List(list) = &*found else {
            return Err(io::Error::other("its name leads to no address"));
        };
        let mut list = list.to_vec();
        // ordering: relaxed, a number on its own.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let turn = usize::try_from(turn).unwrap_or(0);
        let begin = turn.checked_rem(list.len()).unwrap_or(0);
        list.rotate_left(begin);
        Ok(list)
    }

    /// Which list is in force.
    #[must_use]
    pub fn serial(&self) -> u32 {
        // ordering: relaxed, a hint: who misses a change keeps a connection for one call more.
        self.serial.load(Ordering::Relaxed)
    }

    /// Is this one of the addresses?
    #[must_use]
    pub fn has(&self, address: SocketAddr) -> bool {
        match &*self.found.borrow() {
            Found::List(list) => list.contains(&address),
            Found::Nothing | Found::Failed => true,
        }
    }

    /// How many there are; 0 while nothing is known.
    #[must_use]
    pub fn count(&self) -> usize {
        match &*self.found.borrow() {
            Found::List(list) => list.len(),
            Found::Nothing | Found::Failed => 0,
        }
    }

    /// Attempts that found nothing.
    #[must_use]
    pub fn failures(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.failures.load(Ordering::Relaxed)
    }

    /// Takes what the resolver said; true if it found any. What was known stays when it found none.
    fn learn(&self, answer: io::Result<Vec<SocketAddr>>) -> bool {
        let mut list = answer.unwrap_or_default();
        list.truncate(MAX_ADDRESSES);
        if list.is_empty() {
            // ordering: relaxed, a number on its own.
            self.failures.fetch_add(1, Ordering::Relaxed);
            self.found.send_if_modified(|found| {
                let is_new = matches!(found, Found::Nothing);
                if is_new {
                    *found = Found::Failed;
                }
                is_new
            });
            return false;
        }
        self.found.send_if_modified(|found| {
            // Resolvers give the same addresses in another order each time.
            let is_same = match found {
                Found::List(old) => {
                    old.len() == list.len() && list.iter().all(|one| old.contains(one))
                }
                Found::Nothing | Found::Failed => false,
            };
            if !is_same {
                *found = Found::List(Arc::from(list));
                // ordering: relaxed, as in `serial`.
                self.serial.fetch_add(1, Ordering::Relaxed);
            }
            !is_same
        });
        true
    }
}

/// Looks up every name that is due. One worker does so, once a second.
pub fn refresh(worker: &Rc<Worker>) {
    let second = worker.second.get();
    let snapshot = worker.plane.current.load();
    for upstream in &snapshot.upstreams {
        for endpoint in upstream.endpoints() {
            let addresses = endpoint.addresses();
            // ordering: relaxed, one worker reads and writes it.
            if addresses.name.is_some() && addresses.due.load(Ordering::Relaxed) <= second {
                addresses.due.store(u64::MAX, Ordering::Relaxed);
                let every = upstream.spec().dns_refresh.as_secs_ceil().max(1);
                tokio::task::spawn_local(look_up(Rc::clone(worker), Arc::clone(endpoint), every));
            }
        }
    }
}

async fn look_up(worker: Rc<Worker>, endpoint: Arc<Endpoint>, every: u64) {
    let addresses = endpoint.addresses();
    let Some((host, port)) = addresses.name.clone() else { return };
    let resolver = worker.plane.resolver;
    // A resolver blocks, so it has threads of its own.
    let answer = tokio::task::spawn_blocking(move || resolver.resolve(&host, port)).await;
    let known = addresses.learn(answer.unwrap_or_else(|error| Err(io::Error::other(error))));
    let pause = if known { every } else { RETRY.min(every) };
    // ordering: relaxed, as in `refresh`.
    addresses.due.store(worker.second.get().saturating_add(pause), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(host: &str) -> Addresses {
        Addresses::of(&config::Endpoint::Http { host: host.to_owned(), port: 80 })
    }

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn list(addresses: &Addresses) -> Vec<SocketAddr> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(addresses.list()).unwrap()
    }

    /// Goal: an address is known without a resolver.
    #[test]
    fn an_address_is_no_name() {
        let known = addresses("10.0.0.1");
        assert!(known.name.is_none());
        assert_eq!(list(&known), [at(1)]);
    }

    /// Goal: the last good answer stays while the resolver fails, and each failure counts.
    #[test]
    fn the_last_good_answer_stays() {
        let known = addresses("h");
        assert!(known.learn(Ok(vec![at(1)])));
        assert!(!known.learn(Err(io::Error::other("broken"))));
        assert!(!known.learn(Ok(Vec::new())));
        assert_eq!((known.failures(), known.count(), known.serial()), (2, 1, 1));
        assert_eq!(list(&known), [at(1)]);
    }

    /// Goal: connections begin with each address in turn, and a new order alone is no change.
    #[test]
    fn addresses_take_turns() {
        let known = addresses("h");
        known.learn(Ok(vec![at(1), at(2)]));
        assert_eq!([list(&known), list(&known)], [[at(1), at(2)], [at(2), at(1)]]);
        known.learn(Ok(vec![at(2), at(1)]));
        assert_eq!(known.serial(), 1);
        known.learn(Ok(vec![at(2), at(3)]));
        assert_eq!(known.serial(), 2);
        assert!(known.has(at(3)) && !known.has(at(1)));
    }

    /// Goal: a name that was never resolved keeps nobody waiting once that is known.
    #[test]
    fn a_name_that_leads_nowhere_is_told() {
        let known = addresses("h");
        known.learn(Err(io::Error::other("no such name")));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(known.list()).is_err());
        known.learn(Ok(vec![at(1)]));
        assert_eq!(list(&known), [at(1)]);
    }
}
