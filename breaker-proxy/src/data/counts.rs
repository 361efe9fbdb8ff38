//! Counters of the data plane, one shard for each worker; nothing is decided from them.

use super::times::Times;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer: its worker. Anyone may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Count {
        Count(AtomicU64::new(0))
    }

    /// One more.
    pub fn up(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        // ordering: relaxed load and store instead of a locked add: only the owning worker writes, and a
        // reader needs nothing but the number.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// One less, for a count of what is there now.
    pub fn down(&self) {
        // ordering: relaxed, as in `add`.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.0.load(Ordering::Relaxed)
    }
}

/// The accounts of one route (or of what found no route) on one worker. At rest
/// offered = forwarded + throttled + halted + invalid + unrouted + failed, and `in_flight` is zero.
#[derive(Debug, Default)]
pub struct Account {
    /// Requests that arrived, whatever became of them.
    pub offered: Count,
    /// Requests of which the kernel took the first byte towards the upstream.
    pub forwarded: Count,
    /// Refused by a limit (429).
    pub throttled: Count,
    /// Refused by a gate: tripped, half-open without a probe, killed (503).
    pub halted: Count,
    /// Refused for what they are (4xx).
    pub invalid: Count,
    /// No route took them (404).
    pub unrouted: Count,
    /// Never sent: no upstream connection, the client left first, or no place to look into a body.
    pub failed: Count,
    /// Admitted, and not yet forwarded, halted or failed.
    pub in_flight: Count,
    /// Of the forwarded: no usable answer came in time or at all (502, 504, or a body that broke off).
    pub upstream_errors: Count,
    /// Of the forwarded: ended by a kill while in flight.
    pub severed: Count,
    /// Refusals that shadow mode let through.
    pub shadowed: Count,
    /// A body or token in which a key could not be read, so that it counted as missing.
    pub unread: Count,
    /// Of the forwarded: answers that should have said what their call weighed and did not, so that what was reserved stood.
    pub unsettled: Count,
}

/// One worker's counters.
#[derive(Debug)]
#[repr(align(128))]
pub struct Shard {
    accounts: Box<[Account]>,
    /// What found no route.
    pub nowhere: Account,
    /// How long the requests of each route took.
    times: Box<[Times]>,
    /// How long those took that found no route.
    nowhere_times: Times,
    /// Connections refused because all were taken.
    pub refused_connections: Count,
    /// Connections that ended by a deadline before a whole request had come.
    pub slow_heads: Count,
    /// Requests refused because a body that is looked into did not come in time.
    pub slow_bodies: Count,
    /// TLS handshakes that came to nothing.
    pub failed_handshakes: Count,
    /// Answers that ended because their client stopped reading.
    pub stalled_clients: Count,
    /// Upstream connections made.
    pub connects: Count,
    /// GET requests sent again because they were never sent the first time.
    pub resent: Count,
    /// HTTP/2 connections to upstreams that a kill ended together with other calls: a piece of a killed one was half written.
    pub torn: Count,
    /// Lines written for the access log.
    pub logged: Count,
    /// Lines for which there was no room.
    pub unlogged: Count,
    /// Calls open right now: admitted, and their answer not yet at its end.
    pub calls: Count,
}

impl Shard {
    /// A shard for `routes` routes.
    #[must_use]
    pub fn new(routes: usize) -> Shard {
        Shard {
            accounts: (0..routes.max(1)).map(|_| Account::default()).collect(),
            nowhere: Account::default(),
            times: (0..routes.max(1)).map(|_| Times::default()).collect(),
            nowhere_times: Times::default(),
            refused_connections: Count::default(),
            slow_heads: Count::default(),
            slow_bodies: Count::default(),
            failed_handshakes: Count::default(),
            stalled_clients: Count::default(),
            connects: Count::default(),
            resent: Count::default(),
            torn: Count::default(),
            logged: Count::default(),
            unlogged: Count::default(),
            calls: Count::default(),
        }
    }

    /// The account of the route with this index.
    #[must_use]
    pub fn account(&self, route: usize) -> &Account {
        self.accounts.get(route).or_else(|| self.accounts.last()).unwrap_or(&self.nowhere)
    }

    /// How long the requests of the route with this index took; `None`: of those that found no route.
    #[must_use]
    pub fn times(&self, route: Option<usize>) -> &Times {
        route.and_then(|route| self.times.get(route)).unwrap_or(&self.nowhere_times)
    }

    /// All accounts: the routes', then the one for what found none.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter().chain(std::iter::once(&self.nowhere))
    }
}

/// The accounts added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// See [`Account::offered`].
    pub offered: u64,
    /// See [`Account::forwarded`].
    pub forwarded: u64,
    /// See [`Account::throttled`].
    pub throttled: u64,
    /// See [`Account::halted`].
    pub halted: u64,
    /// See [`Account::invalid`].
    pub invalid: u64,
    /// See [`Account::unrouted`].
    pub unrouted: u64,
    /// See [`Account::failed`].
    pub failed: u64,
    /// See [`Account::in_flight`].
    pub in_flight: u64,
    /// See [`Account::upstream_errors`].
    pub upstream_errors: u64,
    /// See [`Account::severed`].
    pub severed: u64,
    /// See [`Account::shadowed`].
    pub shadowed: u64,
    /// See [`Account::unread`].
    pub unread: u64,
    /// See [`Account::unsettled`].
    pub unsettled: u64,
}

impl Totals {
    /// Adds one account.
    pub fn add(&mut self, account: &Account) {
        self.offered += account.offered.get();
        self.forwarded += account.forwarded.get();
        self.throttled += account.throttled.get();
        self.halted += account.halted.get();
        self.invalid += account.invalid.get();
        self.unrouted += account.unrouted.get();
        self.failed += account.failed.get();
        // The worker may move a call on between these reads: never below zero.
        self.in_flight = self.in_flight.wrapping_add(account.in_flight.get());
        self.upstream_errors += account.upstream_errors.get();
        self.severed += account.severed.get();
        self.shadowed += account.shadowed.get();
        self.unread += account.unread.get();
        self.unsettled += account.unsettled.get();
    }

    /// All accounts of all shards.
    #[must_use]
    pub fn of(shards: &[Shard]) -> Totals {
        let mut totals = Totals::default();
        for shard in shards {
            shard.accounts().for_each(|account| totals.add(account));
        }
        totals
    }

    /// Does offered equal the sum of everything that became of it?
    #[must_use]
    pub fn balance(&self) -> bool {
        let ends = self.forwarded
            + self.throttled
            + self.halted
            + self.invalid
            + self.unrouted
            + self.failed
            + self.in_flight;
        self.offered == ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an account balances exactly when each offered request has one end.
    #[test]
    fn balance_counts_each_end_once() {
        let shard = Shard::new(2);
        shard.account(0).offered.add(3);
        shard.account(0).forwarded.add(2);
        assert!(!Totals::of(std::slice::from_ref(&shard)).balance());
        shard.account(0).throttled.up();
        assert!(Totals::of(std::slice::from_ref(&shard)).balance());
        shard.nowhere.offered.up();
        shard.nowhere.unrouted.up();
        assert!(Totals::of(std::slice::from_ref(&shard)).balance());
    }
}
