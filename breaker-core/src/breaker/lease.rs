//! Leases: a thread charges a hot rate for several calls at once and decides them without touching it. No gate is leased, and no word is
//! written here but by [`Row`].

use std::fmt;

use super::{Breaker, Call};
use crate::cell::Gate;
use crate::charges::{Row, Taken};
use crate::facts::{Class, Mode};
use crate::gate::Word;
use crate::limit::Limit;
use crate::permit::Verdict;
use crate::policy::{
    Charge, Charged, Counting, LimitKind, LimitRule, MAX_DIMENSIONS, MAX_SHORT, NAMED, Policy,
    RouteId, RouteRules, Unit,
};
use crate::scope::Scope;
use crate::time::{Mono, Span};

/// Calls of one route charged in advance, for one thread that makes many: it decides as [`Breaker::admit`] does, and comes to the
/// rate's word, which all threads write, once for many calls.
///
/// What is leased is the charge, and no gate: every call looks at those of `/`, its group and its route, so a kill or a trip is seen by the
/// very next one. Where a gate has anything to say (a block, a probation, an operator's mode) the call is decided without the lease.
///
/// The first call charges for itself alone. A lease that uses up within half of `keep` what it charged doubles it the next time, up to
/// `calls` and to the smallest burst. Where so many do not fit, that call is decided without the lease, which refuses, trips and tells the
/// exact wait by all that is charged, and half as many are asked for the next time.
///
/// # What passes at most
///
/// A call that passes was charged at most `keep` before it. So in any interval t what passes, by leases and without, is at most
/// `burst + rate × (t + keep)`, and at most `burst + rate × t + leases × (calls − 1)`, over the leases there are when it begins, of all routes
/// that the rate charges. With `keep` of zero, or `calls` of one, that is the bound without leases. If the readings of a clock run back by x, t is
/// longer by x.
///
/// # What is refused
///
/// What is not used within `keep` is forfeited, never given back; so is what is left when the lease is dropped. The rate refuses
/// when it has no room beside all that was charged: what passed, what lies in leases (in each less than `calls`) and what was forfeited. Of
/// what a lease charged, never more lies there and was forfeited than what passed by it: calls that come in gusts may cost the rate twice what
/// they are, and a limit that trips may trip that much early. (With several limits, a lot charged to one of them while another thread
/// took the room of the next may be forfeited besides.) Calls at an even pace forfeit next to nothing. Calls more than `keep` apart are
/// charged each by itself, and gain nothing.
///
/// # Permits and reloads
///
/// Its permits are like any other: they settle, send, detach, and outlive it. To drop one or to give it back gives the rate nothing back, as
/// always with a rate of calls. After a reload a lease goes on by its own policy, as calls by that policy do, and keeps it in use: drop it,
/// and take one of the new policy.
pub struct Lease<'a> {
    breaker: &'a Breaker,
    policy: &'a Policy,
    route: &'a RouteRules,
    gates: [&'a Gate; NAMED],
    charges: &'a [Charge],
    /// The bits of all of them.
    charged: u64,
    call: Call,
    /// Calls that were charged and not yet made.
    stock: u32,
    /// The last instant at which they are still good.
    until: Mono,
    /// Used up by then, the next charge is twice as large.
    brisk: Mono,
    /// The last charge, or what is asked for next where the last did not fit.
    size: u32,
    most: u32,
    keep: Span,
    counts: LeaseCounts,
}

/// What became of the calls that a lease charged for. What is neither in `admitted` nor in `forfeited` lies in the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// Calls charged in advance, the one that asked included.
    pub charged: u64,
    /// Calls that passed by such a charge. Those decided the exact way are not among them.
    pub admitted: u64,
    /// Charged for nothing: not used in time, or charged to one of several limits while another had no room.
    pub forfeited: u64,
}

/// Why a route's calls cannot be leased. Each can be decided by [`Breaker::admit`] all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseError {
    /// The policy is another breaker's.
    Foreign,
    /// The route is not one of the policy.
    Stale,
    /// A lease of no calls at a time.
    NoCalls,
    /// The route is of [`Class::Reducing`], which charges nothing.
    Reducing,
    /// No limit stands in the way of the route's calls: there is nothing to charge.
    Unlimited,
    /// More than four limits.
    Crowded,
    /// The policy has this scope in shadow mode.
    Shadow(Scope),
    /// This scope has keys: each call is judged by its own.
    Keys(Scope),
    /// A detector of this scope hears every call before it passes.
    Heard(Scope),
    /// This limit of this scope (its index) cannot be charged in advance.
    Limit(Scope, u8, Unfit),
}

/// What a limit has that cannot be charged in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unfit {
    /// It is no rate: of windows and budgets each call is remembered by itself.
    Kind,
    /// It counts weight.
    Weight,
    /// It counts *offered* calls.
    Offered,
    /// It is a candidate.
    Candidate,
    /// A reload changed it, and an older policy may still be charged to what it was.
    Reloaded,
}

impl Breaker {
    /// Leases the calls of a route to one thread, up to `calls` at a time, each good for `keep` after it was charged: see [`Lease`] for the
    /// bound. Possible where all that charges the route's calls are rates of calls, live, of named scopes.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn lease<'a>(
        &'a self,
        policy: &'a Policy,
        route: RouteId,
        calls: u32,
        keep: Span,
    ) -> Result<Lease<'a>, LeaseError> {
        if !self.owns(policy) {
            return Err(LeaseError::Foreign);
        }
        let rules = policy.route_rules(route).ok_or(LeaseError::Stale)?;
        if calls == 0 {
            return Err(LeaseError::NoCalls);
        }
        let burst = burst(policy, rules)?;
        let charges = rules.short.as_ref().map_or(&[][..], |short| &short.charges);
        if charges.is_empty() {
            return Err(LeaseError::Unlimited);
        }
        Ok(Lease {
            breaker: self,
            policy,
            route: rules,
            gates: rules.gates.each_ref().map(|cell| &cell.gate),
            charges,
            charged: charges.iter().fold(0, |bits, charge| bits | charge.bit()),
            call: Call::new(route),
            stock: 0,
            until: Mono::ZERO,
            brisk: Mono::ZERO,
            size: 0,
            most: u32::try_from(burst).map_or(calls, |burst| burst.min(calls)),
            keep,
            counts: LeaseCounts::default(),
        })
    }
}

impl<'a> Lease<'a> {
    /// Decides on a call, as [`Breaker::admit`] does.
    #[inline(always)]
    pub fn admit(&mut self, now: Mono) -> Verdict<'a> {
        self.admit_at(|| now)
    }

    /// As [`Lease::admit`], and asks for the time itself, after the gates were read: never, if the widest gate that has anything to say
    /// is killed.
    #[inline(always)]
    pub fn admit_at(&mut self, clock: impl FnOnce() -> Mono) -> Verdict<'a> {
        let words = self.gates.map(Gate::word);
        if !Word::are_quiet(words) {
            return self.admit_exactly(clock);
        }
        let now = clock();
        if now <= self.until
            && let Some(rest) = self.stock.checked_sub(1)
        {
            self.stock = rest;
            return self.pass(now, words);
        }
        self.admit_charging(now)
    }

    /// Calls charged and not yet made, overdue or not.
    #[must_use]
    pub const fn stock(&self) -> u32 {
        self.stock
    }

    /// What became of the calls that it charged for. What is overdue counts as forfeited from the next call on.
    #[must_use]
    pub const fn counts(&self) -> LeaseCounts {
        let LeaseCounts { charged, forfeited, .. } = self.counts;
        let admitted = charged.saturating_sub(forfeited).saturating_sub(self.stock as u64);
        LeaseCounts { charged, admitted, forfeited }
    }

    #[inline(never)]
    fn admit_exactly(&self, clock: impl FnOnce() -> Mono) -> Verdict<'a> {
        self.breaker.admit_at(self.policy, self.call, clock)
    }

    #[inline(never)]
    fn admit_charging(&mut self, now: Mono) -> Verdict<'a> {
        // Looked at again, so that the quick way need not keep what it saw.
        let words = self.gates.map(Gate::word);
        if Word::are_quiet(words) && self.restock(now) {
            self.pass(now, words)
        } else {
            self.admit_exactly(|| now)
        }
    }

    #[inline(always)]
    fn pass(&self, now: Mono, words: [Word; NAMED]) -> Verdict<'a> {
        let keys = [None; MAX_DIMENSIONS];
        self.breaker.allow(self.policy, self.route, &self.call, now, words, self.charged, keys)
    }

    /// Charges for a call, and for some more. False if they do not fit: then nothing is charged, and the stock is empty.
    ///
    /// A lot is never more than twice what the one before it let pass. Hence what lies here and what was forfeited, together, are
    /// never more than what passed: let u₁, u₂, … be what passed by the lots up to the last, the n-th. The first was of one, so all of
    /// them are at most 1 + 2 × (u₁ + … + uₙ₋₁), and uₙ is at least 1.
    fn restock(&mut self, now: Mono) -> bool {
        let used = self.size.saturating_sub(self.stock);
        let wanted = if self.stock > 0 {
            self.forfeit(self.stock);
            used
        } else if now <= self.brisk {
            used.saturating_mul(2)
        } else {
            used
        };
        (self.stock, self.size) = (0, wanted.clamp(1, self.most));
        if !self.has_room(now) || !self.take_all(now) {
            // Not to be doubled before it has fit.
            (self.size, self.brisk) = (self.size / 2, Mono::ZERO);
            return false;
        }
        self.counts.charged = self.counts.charged.saturating_add(u64::from(self.size));
        self.stock = self.size - 1;
        self.until = now.plus(self.keep);
        self.brisk = now.plus(Span::from_nanos(self.keep.as_nanos() / 2));
        true
    }

    /// Whether all limits have room for a whole lot. Looked at before the first is charged, since a lot that one of them takes after all may
    /// not be undone.
    fn has_room(&self, now: Mono) -> bool {
        let amount = u64::from(self.size);
        self.rows().all(|(limit, row)| row.peek(limit, amount, now).is_ok())
    }

    /// Charges all limits for a whole lot, or none.
    fn take_all(&mut self, now: Mono) -> bool {
        let amount = u64::from(self.size);
        let mut taken = [Taken::default(); MAX_SHORT];
        for (at, ((limit, row), slot)) in self.rows().zip(&mut taken).enumerate() {
            let Ok(done) = row.take(limit, amount, now) else {
                self.take_back(taken.into_iter().take(at));
                return false;
            };
            *slot = done;
        }
        true
    }

    /// Undoes what the first limits were charged for a lot; if one cannot, the lot is forfeited.
    fn take_back(&mut self, taken: impl Iterator<Item = Taken>) {
        // All of them, whatever becomes of the first.
        if self.rows().zip(taken).filter(|((_, row), taken)| !row.undo_plain(*taken)).count() > 0 {
            self.counts.charged = self.counts.charged.saturating_add(u64::from(self.size));
            self.forfeit(self.size);
        }
    }

    /// The limits and their words.
    fn rows(&self) -> impl Iterator<Item = (Limit, Row<'a>)> + use<'a> {
        self.charges.iter().filter_map(|charge| Some((charge.limit, row(charge)?)))
    }

    fn forfeit(&mut self, calls: u32) {
        self.counts.forfeited = self.counts.forfeited.saturating_add(u64::from(calls));
        if let Some(counts) = &self.route.counts {
            counts.forfeited(calls);
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.stock > 0 {
            self.forfeit(self.stock);
        }
    }
}

impl fmt::Debug for Lease<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("stock", &self.stock)
            .field("until", &self.until)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeaseError::Foreign => {
                f.write_str("the policy is another breaker's; use one that this breaker compiled")
            }
            LeaseError::Stale => {
                f.write_str("the route is not one of this policy; ask it for its own")
            }
            LeaseError::NoCalls => f.write_str("0 calls cannot be leased; use at least 1"),
            LeaseError::Reducing => {
                f.write_str("reducing calls charge no limit; admit them without a lease")
            }
            LeaseError::Unlimited => {
                f.write_str("no limit charges the route's calls; admit them without a lease")
            }
            LeaseError::Crowded => {
                write!(f, "more than {MAX_SHORT} limits charge the route's calls; use fewer")
            }
            LeaseError::Shadow(scope) => {
                write!(f, "{scope} is in shadow mode; enforce it, or admit without a lease")
            }
            LeaseError::Keys(scope) => {
                write!(f, "{scope} has keys, which each call is judged by; admit without a lease")
            }
            LeaseError::Heard(scope) => {
                write!(
                    f,
                    "a detector of {scope} hears each call; drop it, or admit without a lease"
                )
            }
            LeaseError::Limit(scope, index, unfit) => {
                write!(f, "limit[{index}] of {scope} {unfit}")
            }
        }
    }
}

impl std::error::Error for LeaseError {}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unfit::Kind => "is no rate, and only rates are charged in advance; use one instead",
            Unfit::Weight => "counts weight, which is not known in advance; count calls",
            Unfit::Offered => "counts offered calls; count admitted ones",
            Unfit::Candidate => "is a candidate; make it live or drop it",
            Unfit::Reloaded => {
                "was changed by a reload, and an older policy still counts; compile the same spec again later"
            }
        })
    }
}

/// The smallest burst of a route's limits.
fn burst(policy: &Policy, route: &RouteRules) -> Result<u64, LeaseError> {
    if route.class == Class::Reducing {
        return Err(LeaseError::Reducing);
    }
    let mut dimensions = route.dimensions.iter().filter_map(|&key| policy.dimensions.get(key));
    if let Some(dimension) = dimensions.next() {
        let parent = policy.scopes.get(dimension.parent).map(|parent| parent.scope.clone());
        return Err(LeaseError::Keys(parent.ok_or(LeaseError::Stale)?));
    }
    let (mut least, mut limits) = (u64::MAX, 0);
    for scope in route.lineage.iter().filter_map(|&index| policy.scopes.get(index)) {
        let name = || scope.scope.clone();
        if scope.rules.mode != Mode::Enforce {
            return Err(LeaseError::Shadow(name()));
        }
        if scope.rules.tally.as_ref().is_some_and(|tally| tally.hears_offers()) {
            return Err(LeaseError::Heard(name()));
        }
        for (index, rule) in (0..).zip(&scope.rules.limits) {
            let own = fits(rule).map_err(|unfit| LeaseError::Limit(name(), index, unfit))?;
            (least, limits) = (least.min(own), limits + 1);
        }
    }
    if limits > MAX_SHORT { Err(LeaseError::Crowded) } else { Ok(least) }
}

/// The burst of a limit that can be charged in advance.
fn fits(rule: &LimitRule) -> Result<u64, Unfit> {
    let LimitKind::Rate { burst, .. } = rule.spec.kind else { return Err(Unfit::Kind) };
    if rule.spec.by == Unit::Weight {
        Err(Unfit::Weight)
    } else if rule.spec.of == Counting::Offered {
        Err(Unfit::Offered)
    } else if rule.spec.candidate {
        Err(Unfit::Candidate)
    } else if rule.before.is_empty() {
        Ok(burst)
    } else {
        Err(Unfit::Reloaded)
    }
}

/// The words of a charge. Those of a lease are all of named scopes.
fn row(charge: &Charge) -> Option<Row<'_>> {
    match &charge.at {
        Charged::Named(charges) => charges.row(0),
        Charged::Key(..) => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Breaker, LeaseCounts};
    use crate::facts::Class;
    use crate::policy::{GroupSpec, LimitSpec, PolicySpec, RouteSpec, ScopeSpec};
    use crate::scope::Scope;
    use crate::time::{Mono, Span};
    use crate::{Call, Capacity, Seed};

    /// Goal: a lot that the wider limit has no room for after all is taken back from the narrower one; where somebody charged that since,
    /// it is forfeited and counted.
    #[test]
    fn a_lost_race_is_undone_or_counted() {
        let now = Mono::from_nanos(1_000_000_000_000);
        let scope = |count, burst| {
            let limits = vec![LimitSpec::rate(count, Span::from_secs(1), burst)];
            ScopeSpec { limits, ..ScopeSpec::default() }
        };
        let route = |name: &str| {
            let (name, group) = (name.to_owned(), "g".to_owned());
            RouteSpec { name, group, class: Class::Normal, scope: scope(2, 9) }
        };
        let spec = PolicySpec {
            groups: vec![GroupSpec { name: "g".to_owned(), scope: scope(1, 10) }],
            routes: vec![route("a"), route("b")],
            ..PolicySpec::default()
        };
        let breaker = Breaker::new(Capacity { scopes: 4, keys: 0 }, Seed([1, 2]));
        let policy = breaker.compile(&spec).unwrap();
        let call = |path: &str| Call::new(policy.route(&Scope::parse(path).unwrap()).unwrap());
        let used = || {
            ["/g/a", "/g"].map(|path| {
                let usage = breaker.usage(&policy, &Scope::parse(path).unwrap(), now).unwrap();
                usage.first().unwrap().used
            })
        };
        for _ in 0..7 {
            assert!(breaker.admit(&policy, call("/g/b"), now).is_allowed());
        }
        let mut lease = breaker.lease(&policy, call("/g/a").route, 8, Span::from_secs(1)).unwrap();
        lease.size = 4;
        assert!(!lease.has_room(now));
        assert!(!lease.take_all(now), "the group has room for three");
        assert_eq!((used(), lease.counts()), ([0, 7], LeaseCounts::default()));
        let (limit, row) = lease.rows().next().unwrap();
        let taken = row.take(limit, 4, now).unwrap();
        assert!(breaker.admit(&policy, call("/g/a"), now).is_allowed());
        lease.take_back([taken].into_iter());
        let lost = LeaseCounts { charged: 4, admitted: 0, forfeited: 4 };
        assert_eq!((used(), lease.counts()), ([5, 8], lost));
        lease.size = 2;
        assert!(lease.has_room(now) && lease.take_all(now));
        assert_eq!(used(), [7, 10]);
    }
}
