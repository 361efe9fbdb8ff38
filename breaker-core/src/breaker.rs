//! The house: every cell there will ever be, the decision on a call, and the orders of operators. It reads no clock and keeps no rule.

mod decide;
mod finish;
mod gates;
mod lease;
mod look;
mod orders;
mod registry;
mod restore;
mod short;
mod standing;

pub use self::gates::Gates;
pub use self::lease::{Lease, LeaseCounts, LeaseError, Unfit};
pub use self::orders::{OrderError, Stamp};
pub use self::restore::{
    Missed, Restart, Restored, Saved, SavedCause, SavedCharge, SavedDimension, SavedGate, SavedKey,
    SavedLimit, SavedScope, SavedState, SavedWhole, Why,
};
pub use self::standing::{DimensionUsage, KeyUsage, LimitUsage, ScopeOrKey, Standing};

use std::fmt;
use std::sync::{Arc, OnceLock};

use self::registry::Registry;
use crate::cell::{Cell, Dirty, Gate, Moved};
use crate::facts::{Cause, Denial, Place};
use crate::gate::{Input, TripRule, Word};
use crate::hashes::{Hashes, Seed};
use crate::keys::{Table, cells_for};
use crate::permit::{KeySeat, Verdict};
use crate::policy::{
    MAX_DIMENSIONS, Plainest, Policy, PolicyError, PolicySpec, Room, RouteId, check,
};
use crate::scope::{KeyHash, Level};
use crate::sync::{AtomicU64, Mutex, Ordering, unique};
use crate::time::{Mono, Span};

/// What there is room for, set at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Groups and routes together.
    pub scopes: u32,
    /// Key cells of each dimension, rounded up to whole buckets: to a multiple of 32, and by a 32nd at most beyond 1,024. An eighth more than
    /// the keys that are busy at once is enough where these are 16,384 or more, and a half more where they are few.
    pub keys: u32,
}

/// Every cell there will ever be. Policies come and go; this stays.
pub struct Breaker {
    /// Its number among all of this process, for the policies that it compiles.
    number: u32,
    /// `/` is the first.
    cells: Box<[Arc<Cell>]>,
    dirty: Dirty,
    tables: Box<[OnceLock<Arc<Table>>]>,
    registry: Mutex<Registry>,
    capacity: Capacity,
    hashes: Hashes,
    /// The newest instant that a sweep or a reload was told.
    newest: AtomicU64,
}

/// One call, as a decision sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    route: RouteId,
    keys: [Option<KeyHash>; MAX_DIMENSIONS],
    weight: u64,
    print: Option<KeyHash>,
}

impl Call {
    /// A call without keys. Where its route declares some, it is judged as [`KeySpec::missing`](crate::KeySpec::missing) says.
    #[must_use]
    pub const fn new(route: RouteId) -> Call {
        Call { route, keys: [None; MAX_DIMENSIONS], weight: UNWEIGHED, print: None }
    }

    /// The same call with a weight, for limits that count weight: notional, bytes, tokens, in the unit of their
    /// numbers. The weight of a call of which none is said is not known, so every limit on weight refuses it, without a wait and without
    /// a trip, and is not charged. `u64::MAX` says the same.
    #[must_use]
    pub const fn weighing(mut self, weight: u64) -> Call {
        self.weight = weight;
        self
    }

    /// The same call with a fingerprint of what it says (see `Breaker::fingerprint`), for detectors of repetition.
    #[must_use]
    pub const fn with_fingerprint(mut self, print: KeyHash) -> Call {
        self.print = Some(print);
        self
    }

    /// The same call with a key; `dimension` is an index of `Policy::dimensions`. A key for which the route has no dimension is
    /// ignored, and the dimension it was meant for judges the call as one that lacks its key: compare the names once, when the policy is
    /// compiled. An index above 3, which no route has, is asserted in debug builds.
    #[must_use]
    pub fn with_key(mut self, dimension: u8, key: KeyHash) -> Call {
        let slot = self.keys.get_mut(usize::from(dimension));
        debug_assert!(
            slot.is_some(),
            "there is no dimension {dimension}: a call carries at most {MAX_DIMENSIONS} keys, counted from 0 as in `Policy::dimensions`"
        );
        if let Some(slot) = slot {
            *slot = Some(key);
        }
        self
    }
}

impl Breaker {
    /// A breaker with room for `/` and `capacity`. Memory for keys and limits is allocated when
    /// a policy is compiled that needs it.
    #[must_use]
    pub fn new(capacity: Capacity, seed: Seed) -> Breaker {
        let cells = count(capacity.scopes).saturating_add(1);
        Breaker {
            number: unique(),
            cells: (0..cells).map(|_| Arc::default()).collect(),
            dirty: Dirty::new(cells),
            tables: (0..MAX_TABLES).map(|_| OnceLock::new()).collect(),
            registry: Mutex::new(Registry::new(capacity.scopes.saturating_add(1))),
            capacity,
            hashes: Hashes::new(seed),
            newest: AtomicU64::new(0),
        }
    }

    /// Checks a spec and gives it memory. What an earlier policy of this breaker had stays with it: gates by scope, limits
    /// as [`Breaker::recompile`] says, key tables by scope and dimension. Nothing changes on error.
    ///
    /// # Errors
    /// All errors at once, each with its path.
    pub fn compile(&self, spec: &PolicySpec) -> Result<Policy, Vec<PolicyError>> {
        // ordering: relaxed, for an instant stands alone.
        let newest = Mono::from_nanos(self.newest.load(Ordering::Relaxed));
        self.recompile(spec, newest)
    }

    /// As [`Breaker::compile`], at an instant: what a reload calls. Limits are known again by name, or by what they
    /// count. One whose bound alone changed keeps its memory; one whose arithmetic changed (another
    /// refill, another length) starts with what its old self had been charged, and never with a second burst: while calls may
    /// still be charged to the old one by an older policy, both are charged.
    ///
    /// # Errors
    /// All errors at once, each with its path.
    pub fn recompile(&self, spec: &PolicySpec, now: Mono) -> Result<Policy, Vec<PolicyError>> {
        self.note(now);
        let room = Room {
            scopes: count(self.capacity.scopes),
            rows: cells_for(count(self.capacity.keys)) + 1,
        };
        let draft = check(spec, room)?;
        self.registry.lock().compile(self, draft, now)
    }

    /// A label's hash: the same for the life of this breaker, of no meaning beyond. The label of a number as people write it (`42`,
    /// not `042`) has the number's hash, so that an order to `/desk/account=42` finds the key that calls as `hash_u64(42)`.
    #[must_use]
    #[inline]
    pub fn hash(&self, label: &[u8]) -> KeyHash {
        self.hashes.of_label(label)
    }

    /// The hash of a number, such as an account's: the hash of its label, and faster. No two numbers have the same, but for
    /// three of all there are.
    #[must_use]
    #[inline(always)]
    pub fn hash_u64(&self, label: u64) -> KeyHash {
        self.hashes.of_number(label)
    }

    /// The hash of several fields at once, such as symbol, side, quantity and price of an order: the key of a
    /// dimension that counts identical repeats. Fields keep their borders: `["a", "bc"]` is not `["ab", "c"]`.
    #[must_use]
    pub fn fingerprint(&self, fields: &[&[u8]]) -> KeyHash {
        self.hashes.of_fields(fields)
    }

    /// Decides on a call. `now` is read just before, from one monotonic clock for all calls.
    ///
    /// Gates are looked at wide to narrow, and the widest block answers. Then limits are charged
    /// narrow to wide, keys first; a refusal undoes what it can and leaves wider scopes
    /// unaware of the call. Lock-free but for the first sight of a key, calls of a key without a cell, and trips of keys.
    ///
    /// A key whose dimension has limits shares the dimension's overflow cell when its bucket is full of busy keys: that cell
    /// throttles, and never trips.
    #[inline(always)]
    pub fn admit<'a>(&'a self, policy: &'a Policy, call: Call, now: Mono) -> Verdict<'a> {
        self.admit_at(policy, call, || now)
    }

    /// As [`Breaker::admit`], and asks for the time itself, as late as it can: never, if the widest gate that has anything to say is
    /// killed for the call; else once, after the gates were read and, where the limits are few and plain, the key's
    /// memory was asked for.
    ///
    /// Many processors finish all that came before they read their counter. What was only asked for they do not wait for, so it
    /// comes while they read.
    #[inline(always)]
    pub fn admit_at<'a>(
        &'a self,
        policy: &'a Policy,
        call: Call,
        clock: impl FnOnce() -> Mono,
    ) -> Verdict<'a> {
        let Some(route) = policy.route_rules(call.route) else { return Verdict::Deny(NOWHERE) };
        let words = route.words();
        if !Word::are_quiet(words) {
            return self.admit_loud(policy, route, &call, words, clock);
        }
        let keys = [None; MAX_DIMENSIONS];
        match &route.plainest {
            Plainest::Rate(plain) => {
                let now = clock();
                if plain.charges.row(0).is_some_and(|row| row.take_hot(plain.rate, now)) {
                    return self.allow(policy, route, &call, now, words, plain.charged, keys);
                }
                self.admit_other(policy, route, &call, now)
            }
            Plainest::Window(plain) => {
                let now = clock();
                if let Some(row) = plain.charges.row(0) {
                    return match row.take_ring(plain.window, now) {
                        Ok(()) => self.allow(policy, route, &call, now, words, plain.charged, keys),
                        Err(wait) => Verdict::Deny(route.refuse(&plain.refusal, words, wait)),
                    };
                }
                self.admit_other(policy, route, &call, now)
            }
            Plainest::Keyed(keyed) => {
                let [Some(key), ..] = call.keys else {
                    return self.admit_other(policy, route, &call, clock());
                };
                keyed.table.fetch(key);
                let now = clock();
                if let Some((cell, row)) = keyed.table.quiet(key)
                    && let Ok(cell) = u32::try_from(cell)
                    && let Some(taken) = row.take_plain(keyed.rate, now)
                {
                    if let Some(wider) = &keyed.wider {
                        let ring = wider.charges.row(0);
                        if ring.is_none_or(|ring| ring.take_ring(wider.window, now).is_err()) {
                            row.undo_plain(taken);
                            // Who says no, and for how long, is found the long way.
                            return self.decide(policy, route, &call, now);
                        }
                    }
                    let seat = Some(KeySeat::new(key, cell, keyed.number, 0, false));
                    let keys = [seat, None, None, None];
                    return self.allow(policy, route, &call, now, words, keyed.charged, keys);
                }
                self.admit_other(policy, route, &call, now)
            }
            _ => self.admit_other(policy, route, &call, clock()),
        }
    }

    /// What [`Breaker::admit`] would say, by a look: nothing is charged, claimed, counted or moved. A gate on
    /// probation with a probe left says yes. Of a key without a cell it says what the key would be told that is given one, or must share:
    /// that takes the lock of the key's bucket, and memory where newcomers start spent.
    ///
    /// # Errors
    /// The denial.
    pub fn peek(&self, policy: &Policy, call: Call, now: Mono) -> Result<(), Denial> {
        let route = policy.route_rules(call.route).filter(|_| self.owns(policy)).ok_or(NOWHERE)?;
        self.peek_at(policy, route, &call, now)
    }

    /// A block of the call's named scopes that no time ends, as [`Gates::blocked`] sees it.
    #[inline(always)]
    #[must_use]
    pub fn blocked(&self, policy: &Policy, call: &Call) -> Option<Cause> {
        match policy.route_rules(call.route) {
            Some(route) => Gates::of(policy, route).blocked(),
            None => Some(Cause::Stale),
        }
    }

    /// As [`Breaker::blocked`], and counts the call as refused if it is.
    #[inline(always)]
    #[must_use]
    pub fn refuse_blocked(&self, policy: &Policy, call: &Call) -> Option<Cause> {
        match policy.route_rules(call.route) {
            Some(route) => Gates::of(policy, route).refuse(),
            None => Some(Cause::Stale),
        }
    }

    /// Whether it compiled this policy: another's names cells that are not ours.
    pub(crate) const fn owns(&self, policy: &Policy) -> bool {
        policy.breaker == self.number
    }

    /// Remembers an instant, if it is the newest.
    pub(crate) fn note(&self, now: Mono) {
        // ordering: relaxed, for an instant stands alone.
        self.newest.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    pub(crate) fn table(&self, number: usize) -> Option<&Table> {
        self.tables.get(number)?.get().map(AsRef::as_ref)
    }

    /// Areas to sweep: the named cells, and the tables.
    pub(crate) fn areas(&self) -> usize {
        1 + self.tables.iter().take_while(|table| table.get().is_some()).count()
    }

    pub(crate) fn cells_of(&self, area: usize) -> usize {
        match area.checked_sub(1) {
            None => self.cells.len(),
            Some(number) => self.table(number).map_or(0, Table::cells),
        }
    }

    pub(crate) fn gate_of(&self, area: usize, cell: usize) -> Option<&Gate> {
        match area.checked_sub(1) {
            None => self.cells.get(cell).map(|cell| &cell.gate),
            Some(number) => self.table(number)?.gate(cell),
        }
    }

    pub(crate) fn dirty_words(&self, area: usize) -> usize {
        self.dirty_of(area).map_or(0, Dirty::len)
    }

    pub(crate) fn take_dirty(&self, area: usize, word: usize) -> u64 {
        self.dirty_of(area).map_or(0, |dirty| dirty.take(word))
    }

    pub(crate) fn mark(&self, area: usize, cell: usize) {
        if let Some(dirty) = self.dirty_of(area) {
            dirty.mark(cell);
        }
    }

    fn dirty_of(&self, area: usize) -> Option<&Dirty> {
        match area.checked_sub(1) {
            None => Some(&self.dirty),
            Some(number) => self.table(number).map(|table| &table.dirty),
        }
    }

    fn named_gate(&self, cell: u32) -> Option<&Gate> {
        self.cells.get(count(cell)).map(|cell| &cell.gate)
    }

    fn step_named(&self, cell: u32, input: Input, rule: &TripRule, now: Mono) -> Option<Moved> {
        let moved = self.named_gate(cell)?.order(input, rule, now)?;
        // A probe that is out must be looked after, should it never come back.
        if moved.before.epoch() != moved.after.epoch() || input == Input::ProbeTaken {
            self.dirty.mark(count(cell));
        }
        Some(moved)
    }
}

fn denial(place: Place, cause: Cause, wait: Option<Span>, epoch: u16) -> Denial {
    Denial { place, cause, wait, moved: false, epoch }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The weight of a call of which none was said: more than any limit holds.
const UNWEIGHED: u64 = u64::MAX;
/// The answer to a call on a route that the policy does not have.
const NOWHERE: Denial = Denial {
    place: Place { level: Level::Global, index: 0, key: None },
    cause: Cause::Stale,
    wait: None,
    moved: false,
    epoch: 0,
};
/// Key dimensions of one breaker, over all policies it ever compiled.
const MAX_TABLES: usize = 256;

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}
