//! The servers behind an upstream: what each has in flight, whether it is left alone for a while, and which of them takes a call;
//! it opens no connection.

use super::counts::Count;
use super::health::Findings;
use super::resolve::Addresses;
use super::trust::{self, Flaw, Roots, Trust};
use crate::config::upstream::{self as config, MarkDown, Protocol, Queue};
use breaker_core::{Mono, Span};
use parking_lot::Mutex;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use slab::Slab;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// An upstream in force.
pub struct Upstream {
    spec: config::Upstream,
    trust: Option<Trust>,
    label: String,
    endpoints: Box<[Arc<Endpoint>]>,
    /// Endpoints that are marked down, and endpoints that are sick: while there are none, nobody looks for them.
    marked: AtomicU32,
    /// Calls that wait for a connection.
    waiting: AtomicU32,
}

/// One server of an upstream in force.
pub struct Endpoint {
    target: config::Endpoint,
    protocol: Protocol,
    label: String,
    addresses: Addresses,
    tls: Option<Tls>,
    slot: Slot,
    tallies: Box<[Tally]>,
    mark: Mark,
    findings: Findings,
    /// One for each connection that may still be made.
    places: Semaphore,
    /// Calls that wait for a connection to it.
    waiting: AtomicU32,
}

/// What it takes to shake hands with an endpoint.
struct Tls {
    trust: Trust,
    name: ServerName<'static>,
}

/// What one worker counts of an endpoint, on a line of memory of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    /// Calls that were given to it and have not ended.
    pub in_flight: Count,
    /// Connections made.
    pub connects: Count,
    /// Connections that could not be made, or not in time.
    pub connect_failures: Count,
    /// Of these, the ones on which TLS failed: the other side did not prove who it is.
    pub handshake_failures: Count,
    /// Calls refused because its connections were all taken, and the queue was full or did not move.
    pub busy: Count,
}

/// Whether an endpoint is left alone.
#[derive(Debug, Default)]
struct Mark {
    /// Until when, in nanoseconds of the breaker's clock; 0: it is not.
    until: AtomicU64,
    /// Failures in a row.
    failures: AtomicU32,
    /// Trials that failed in a row.
    strikes: AtomicU32,
    /// How often it was marked down or a trial failed.
    times: AtomicU64,
}

/// An endpoint for a call.
#[derive(Clone, Copy)]
pub struct Pick<'u> {
    /// The endpoint.
    pub endpoint: &'u Arc<Endpoint>,
    /// It was marked down, and this one call finds out whether it is back.
    pub is_trial: bool,
}

impl Upstream {
    /// An upstream in force, for so many workers. One of `known` that is configured alike goes on as it is.
    ///
    /// # Errors
    /// There is no trust for its endpoints: see [`Roots::trust`].
    pub fn build(
        spec: &config::Upstream,
        workers: usize,
        known: &[Arc<Upstream>],
        roots: &mut Roots,
    ) -> Result<Arc<Upstream>, Flaw> {
        let trust = roots.trust(spec)?;
        let is_same = |known: &&Arc<Upstream>| {
            let trusts_alike = match (&known.trust, &trust) {
                (Some(known), Some(new)) => known.is_like(new),
                (known, new) => known.is_none() && new.is_none(),
            };
            known.spec == *spec && trusts_alike
        };
        if let Some(same) = known.iter().find(is_same) {
            return Ok(Arc::clone(same));
        }
        let endpoints = spec.endpoints.iter().map(|target| {
            let name = trust::server_name(target)?;
            Ok(Arc::new(Endpoint {
                target: target.clone(),
                protocol: spec.protocol,
                label: target.to_string(),
                addresses: Addresses::of(target),
                tls: name.zip(trust.clone()).map(|(name, trust)| Tls { trust, name }),
                slot: Slot::take(),
                tallies: (0..workers).map(|_| Tally::default()).collect(),
                mark: Mark::default(),
                findings: Findings::default(),
                places: Semaphore::new(usize::try_from(spec.connections).unwrap_or(usize::MAX)),
                waiting: AtomicU32::new(0),
            }))
        });
        let endpoints: Box<[Arc<Endpoint>]> = endpoints.collect::<Result<_, Flaw>>()?;
        let label = spec.name.clone().unwrap_or_else(|| {
            let labels: Vec<&str> = endpoints.iter().map(|own| own.label.as_str()).collect();
            labels.join(",")
        });
        Ok(Arc::new(Upstream {
            spec: spec.clone(),
            trust,
            label,
            endpoints,
            marked: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
        }))
    }

    /// As it is configured.
    #[must_use]
    pub fn spec(&self) -> &config::Upstream {
        &self.spec
    }

    /// Its name, or its endpoints where it has none.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its servers.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Who may wait when an endpoint has as many connections as it may.
    #[must_use]
    pub fn queue(&self) -> Queue {
        self.spec.queue
    }

    /// The endpoint for a call: of two that are taken at random among those not marked down, the one with fewer calls in flight
    /// (the power of two choices: Mitzenmacher 2001). One whose hold has ended is given one call as a trial. If all are marked down,
    /// the one whose hold ends first: a mark is a guess, and nobody is refused for a guess. `None` if there is none
    /// that is not among `tried`.
    #[must_use]
    pub fn pick(&self, now: impl FnOnce() -> Mono, tried: &[&Arc<Endpoint>]) -> Option<Pick<'_>> {
        match &*self.endpoints {
            [only] if tried.is_empty() => Some(Pick { endpoint: only, is_trial: false }),
            // ordering: relaxed, a hint: whoever misses a mark picks as if it came a moment later.
            [first, others @ ..]
                if tried.is_empty() && self.marked.load(Ordering::Relaxed) == 0 =>
            {
                let one = fastrand::usize(..=others.len());
                let step = fastrand::usize(..others.len().max(1)) + 1;
                let two = (one + step) % (others.len() + 1);
                let at = |index: usize| self.endpoints.get(index).unwrap_or(first);
                Some(Pick { endpoint: idler(at(one), at(two)), is_trial: false })
            }
            _ => self.pick_among_marked(now(), tried),
        }
    }

    /// As [`Upstream::pick`], where some may be marked down.
    fn pick_among_marked(&self, now: Mono, tried: &[&Arc<Endpoint>]) -> Option<Pick<'_>> {
        let is_new = |one: &&Arc<Endpoint>| !tried.iter().any(|known| Arc::ptr_eq(known, one));
        let (mut seen, mut pair) = (0_usize, [None, None]);
        let mut least_bad: Option<(u64, &Arc<Endpoint>)> = None;
        for endpoint in self.endpoints.iter().filter(is_new) {
            let until = endpoint.left_alone_until();
            if until == 0 {
                // A sample of two of all that come by, each pair as likely as any other (Vitter's algorithm R).
                let place = if seen < 2 { seen } else { fastrand::usize(..=seen) };
                if let Some(place) = pair.get_mut(place) {
                    *place = Some(endpoint);
                }
                seen += 1;
            } else if until <= now.as_nanos()
                && endpoint.mark.claim(until, now, &self.spec.mark_down)
            {
                return Some(Pick { endpoint, is_trial: true });
            } else if least_bad.is_none_or(|(soonest, _)| until < soonest) {
                least_bad = Some((until, endpoint));
            }
        }
        let endpoint = match pair {
            // Who came by first must not win every tie.
            [Some(one), Some(two)] if fastrand::bool() => idler(one, two),
            [Some(one), Some(two)] => idler(two, one),
            [Some(only), None] | [None, Some(only)] => only,
            [None, None] => least_bad?.1,
        };
        Some(Pick { endpoint, is_trial: false })
    }

    /// An endpoint could not be reached, or did not answer in time. What was no trial changes nothing once it is marked down. True: it is
    /// marked down from now on.
    pub fn failed(&self, endpoint: &Endpoint, is_trial: bool, now: Mono) -> bool {
        let is_new = endpoint.mark.failed(is_trial, now, &self.spec.mark_down);
        if is_new {
            // ordering: relaxed, a hint: see `pick`.
            self.marked.fetch_add(1, Ordering::Relaxed);
        }
        is_new
    }

    /// An endpoint answered, be it an error.
    pub fn answered(&self, endpoint: &Endpoint) {
        if endpoint.mark.answered() {
            // ordering: relaxed, a hint: see `pick`.
            self.marked.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Health checks found one of the endpoints sick, or well again.
    pub fn turned(&self, is_sick: bool) {
        // ordering: relaxed, a hint: see `pick`.
        if is_sick {
            self.marked.fetch_add(1, Ordering::Relaxed);
        } else {
            self.marked.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A place in the queue of an endpoint; `None` if the queue is full.
    #[must_use]
    pub fn wait<'u>(&'u self, endpoint: &'u Endpoint) -> Option<Waiting<'u>> {
        // ordering: relaxed, a number on its own; adding first makes the bound exact. Others are told by a bell, which orders.
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        endpoint.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting { upstream: self, endpoint };
        (before < self.spec.queue.calls).then_some(waiting)
    }

    /// Calls that wait for a connection.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        // ordering: relaxed, a number on its own.
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Of two the one with fewer calls in flight.
fn idler<'u>(one: &'u Arc<Endpoint>, two: &'u Arc<Endpoint>) -> &'u Arc<Endpoint> {
    if two.in_flight() < one.in_flight() { two } else { one }
}

impl Endpoint {
    /// The server.
    #[must_use]
    pub fn target(&self) -> &config::Endpoint {
        &self.target
    }

    /// What is spoken with it.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Its URL.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A handshake to begin on a new connection; `None`: it speaks no TLS.
    ///
    /// # Errors
    /// The library's own.
    pub fn handshake(&self) -> Option<Result<ClientConnection, rustls::Error>> {
        let tls = self.tls.as_ref()?;
        Some(ClientConnection::new(Arc::clone(tls.trust.config()), tls.name.clone()))
    }

    /// Where it is.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Where a worker keeps its idle connections. No other endpoint has this number while any connection of this one is left.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.slot.0
    }

    /// What a worker counts of it.
    #[must_use]
    pub fn tally(&self, worker: usize) -> Option<&Tally> {
        self.tallies.get(worker)
    }

    /// One number of all workers added up.
    #[must_use]
    pub fn sum(&self, read: fn(&Tally) -> u64) -> u64 {
        // A call may begin with one worker's count while another's is read: the sum is of no single moment.
        self.tallies.iter().map(read).fold(0, u64::wrapping_add)
    }

    fn in_flight(&self) -> u64 {
        self.sum(|tally| tally.in_flight.get())
    }

    /// Is it left alone: marked down, or sick as checks say? A hold may have ended, if nobody has tried it since.
    #[must_use]
    pub fn is_left_alone(&self) -> bool {
        self.left_alone_until() != 0
    }

    /// Until when, in nanoseconds of the breaker's clock; 0: it is not. Who is sick is so until a check says otherwise.
    fn left_alone_until(&self) -> u64 {
        if self.findings.is_sick() { u64::MAX } else { self.mark.until() }
    }

    /// What health checks have found.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// How often it was marked down, or stayed so by a trial that failed.
    #[must_use]
    pub fn times_marked_down(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.mark.times.load(Ordering::Relaxed)
    }

    /// The places for its connections: one permit each.
    #[must_use]
    pub fn places(&self) -> &Semaphore {
        &self.places
    }

    /// Calls that wait for a connection to it.
    #[must_use]
    pub fn waiting(&self) -> usize {
        // ordering: relaxed, a hint: who begins to wait rings a bell afterwards.
        usize::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }
}

impl Mark {
    fn until(&self) -> u64 {
        // ordering: relaxed, the word is all there is, and a late reader picks as if it were a moment earlier.
        self.until.load(Ordering::Relaxed)
    }

    /// How long it is left alone after so many failed trials.
    fn hold(rule: &MarkDown, strikes: u32) -> Span {
        let doubled =
            rule.hold.as_nanos().checked_mul(1_u64.checked_shl(strikes).unwrap_or(u64::MAX));
        Span::from_nanos(doubled.unwrap_or(u64::MAX)).min(rule.at_most)
    }

    fn strikes(&self) -> u32 {
        // ordering: relaxed, one writer at a time: who holds the trial.
        self.strikes.load(Ordering::Relaxed)
    }

    /// Takes the trial after a hold; one caller has it. The mark then stands for as long again: if the trial comes
    /// to nothing, because its client left, there is another afterwards.
    fn claim(&self, until: u64, now: Mono, rule: &MarkDown) -> bool {
        let lease = now.plus(Mark::hold(rule, self.strikes())).as_nanos().max(1);
        // ordering: relaxed, the word is all there is.
        self.until.compare_exchange(until, lease, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// True: it is marked down from now on, and was not before.
    fn failed(&self, is_trial: bool, now: Mono, rule: &MarkDown) -> bool {
        // ordering: relaxed, these are counts and hints; the mark itself moves by one compare-and-exchange.
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if is_trial {
            let strikes = self.strikes.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            let end = now.plus(Mark::hold(rule, strikes)).as_nanos().max(1);
            // A late answer may have taken the mark away in the meantime: then it is marked anew.
            self.times.fetch_add(1, Ordering::Relaxed);
            return self.until.swap(end, Ordering::Relaxed) == 0;
        }
        if failures < rule.after {
            return false;
        }
        let end = now.plus(Mark::hold(rule, 0)).as_nanos().max(1);
        let marked = self.until.compare_exchange(0, end, Ordering::Relaxed, Ordering::Relaxed);
        if marked.is_ok() {
            self.times.fetch_add(1, Ordering::Relaxed);
        }
        marked.is_ok()
    }

    /// True: it was marked down, and is not any more.
    fn answered(&self) -> bool {
        // ordering: relaxed, as in `failed`. Loads before stores: nothing is written while all is well.
        if self.failures.load(Ordering::Relaxed) == 0 && self.until() == 0 {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        self.strikes.store(0, Ordering::Relaxed);
        self.until.swap(0, Ordering::Relaxed) != 0
    }
}

/// A place in a queue, given back when it is dropped.
pub struct Waiting<'u> {
    upstream: &'u Upstream,
    endpoint: &'u Endpoint,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // ordering: relaxed, as in `wait`.
        self.upstream.waiting.fetch_sub(1, Ordering::Relaxed);
        self.endpoint.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A small number that no other endpoint in the process has at the same time.
struct Slot(usize);

static SLOTS: Mutex<Slab<()>> = Mutex::new(Slab::new());

impl Slot {
    fn take() -> Slot {
        Slot(SLOTS.lock().insert(()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        SLOTS.lock().try_remove(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn spec(count: usize) -> config::Upstream {
        let target = |port| config::Endpoint::Http { host: "h".to_owned(), port };
        let ports = (1..).take(count).map(target);
        config::Upstream {
            mark_down: MarkDown { after: 2, hold: Span::from_secs(1), at_most: Span::from_secs(3) },
            ..config::Upstream::plain(ports.collect())
        }
    }

    fn build(spec: &config::Upstream, known: &[Arc<Upstream>]) -> Arc<Upstream> {
        Upstream::build(spec, 2, known, &mut Roots::default()).unwrap()
    }

    fn upstream(count: usize) -> Arc<Upstream> {
        build(&spec(count), &[])
    }

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(Span::from_millis(millis).as_nanos())
    }

    fn down(upstream: &Upstream, index: usize, now: Mono) {
        for _ in 0..2 {
            upstream.failed(&upstream.endpoints[index], false, now);
        }
        assert!(upstream.endpoints[index].is_left_alone());
    }

    fn picked(upstream: &Upstream, now: Mono) -> (String, bool) {
        let pick = upstream.pick(|| now, &[]).unwrap();
        (pick.endpoint.label().to_owned(), pick.is_trial)
    }

    /// Goal: of two endpoints the one with fewer calls in flight is taken, whichever worker has them.
    #[test]
    fn of_two_the_idler_is_taken() {
        let upstream = upstream(2);
        for worker in 0..2 {
            upstream.endpoints[0].tally(worker).unwrap().in_flight.up();
            for _ in 0..50 {
                assert_eq!(picked(&upstream, at(0)).0, "http://h:2");
            }
            upstream.endpoints[0].tally(worker).unwrap().in_flight.down();
        }
    }

    /// Goal: with nothing in flight all endpoints are taken alike, also while one is marked down, which is never taken then.
    /// The bounds are more than six standard deviations wide.
    #[test]
    fn all_that_are_up_are_taken_alike() {
        for marked in [false, true] {
            let upstream = upstream(5);
            if marked {
                down(&upstream, 2, at(0));
            }
            let up = if marked { 4 } else { 5 };
            let mut times: HashMap<String, i32> = HashMap::new();
            for _ in 0..10_000 {
                *times.entry(picked(&upstream, at(10)).0).or_default() += 1;
            }
            assert_eq!(times.len(), up, "{times:?}");
            let even = 10_000 / i32::try_from(up).unwrap();
            assert!(times.values().all(|count| (count - even).abs() < 300), "{times:?}");
        }
    }

    /// Goal: a hold ends with one trial and not with a rush; a trial that fails doubles the hold up to its maximum, one that
    /// comes to nothing is given again, and an answer ends all of it.
    #[test]
    fn a_hold_ends_with_one_trial() {
        let upstream = upstream(2);
        down(&upstream, 0, at(0));
        let first = &upstream.endpoints[0];
        let other = ("http://h:2".to_owned(), false);
        let trial = ("http://h:1".to_owned(), true);
        let mut now = 0;
        for hold in [1000, 2000, 3000, 3000] {
            assert_eq!(picked(&upstream, at(now + hold - 1)), other);
            assert_eq!(picked(&upstream, at(now + hold)), trial, "after {hold} ms");
            assert_eq!(picked(&upstream, at(now + hold)), other, "one at a time");
            now += hold;
            // What was sent before it was marked fails late: that is nothing new.
            upstream.failed(first, false, at(now));
            upstream.failed(first, true, at(now));
        }
        assert_eq!(first.times_marked_down(), 5);
        now += 3000;
        assert_eq!(picked(&upstream, at(now)), trial);
        assert_eq!(picked(&upstream, at(now + 2999)), other);
        assert_eq!(picked(&upstream, at(now + 3000)), trial, "the first trial came to nothing");
        upstream.answered(first);
        assert!(!first.is_left_alone());
        assert_eq!(upstream.marked.load(Ordering::Relaxed), 0);
        down(&upstream, 0, at(now));
        assert_eq!(picked(&upstream, at(now + 1000)), trial, "it starts over with the first hold");
    }

    /// Goal: an answer between two failures ends the row.
    #[test]
    fn only_failures_in_a_row_count() {
        let upstream = upstream(2);
        let first = &upstream.endpoints[0];
        for _ in 0..10 {
            upstream.failed(first, false, at(0));
            upstream.answered(first);
        }
        assert!(!first.is_left_alone());
    }

    /// Goal: with all marked down the one whose hold ends first is tried: nobody is refused for a guess; what was tried for the
    /// same call is not tried again.
    #[test]
    fn the_least_bad_is_tried() {
        let upstream = upstream(3);
        for (index, now) in [(0, 20), (1, 10), (2, 30)] {
            down(&upstream, index, at(now));
        }
        let label = |tried: &[&Arc<Endpoint>]| {
            upstream.pick(|| at(100), tried).map(|pick| pick.endpoint.label().to_owned())
        };
        let [one, two, three] = [0, 1, 2].map(|index| &upstream.endpoints[index]);
        assert_eq!(label(&[]).unwrap(), "http://h:2");
        assert_eq!(label(&[two]).unwrap(), "http://h:1");
        assert_eq!(label(&[two, one]).unwrap(), "http://h:3");
        assert_eq!(label(&[two, one, three]), None);
    }

    /// Goal: a queue has room for as many as it says, over all endpoints, and gives room back.
    #[test]
    fn a_queue_has_an_end() {
        let queue = Queue { calls: 2, wait: Span::from_secs(1) };
        let upstream = build(&config::Upstream { queue, ..spec(2) }, &[]);
        let first = upstream.wait(&upstream.endpoints[0]);
        let second = upstream.wait(&upstream.endpoints[1]);
        assert!(first.is_some() && second.is_some());
        assert!(upstream.wait(&upstream.endpoints[0]).is_none());
        drop(first);
        assert_eq!((upstream.waiting(), upstream.endpoints[0].waiting()), (1, 0));
        assert!(upstream.wait(&upstream.endpoints[0]).is_some());
    }

    /// Goal: an upstream that is configured alike goes on as it is; any other has endpoints of its own, whose slots are nobody else's.
    #[test]
    fn what_is_configured_alike_goes_on() {
        let old = upstream(2);
        assert!(Arc::ptr_eq(&old, &build(&spec(2), &[upstream(1), Arc::clone(&old)])));
        let new = build(&spec(3), &[Arc::clone(&old)]);
        let mut slots: Vec<usize> =
            old.endpoints.iter().chain(&new.endpoints).map(|endpoint| endpoint.slot()).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 5);
    }
}
