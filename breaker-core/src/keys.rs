//! The bounded table of one key dimension: which cell belongs to which key; it never sees a label, and knows no rule but the gate's.
//!
//! A key's cell stands in one bucket of 16. Finding a known key is a lock-free scan of the
//! bucket's tags. Its first sight takes the bucket's lock and claims an empty cell, or one that is
//! *indistinguishable from fresh* (gate armed, no strikes, no override, all debts paid), which
//! therefore needs no clearing. Tags are never emptied, so a scan ends at the first empty one.
//!
//! All moves of a key's gate away from *armed* are made under the bucket's lock, with the tag
//! looked at: a kill or a trip lands on its own key, and a cell that is blocked or on probation never changes hands.
//!
//! One blur is allowed: a thread that found a cell just before it changed hands charges the
//! newcomer once, and its own key not at all for that call.

use std::sync::Arc;

use crate::cell::{Charges, Dirty, Gate, Moved};
use crate::gate::{Input, TripRule};
use crate::scope::KeyHash;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::time::Mono;

/// All memory that the living policies charge for a table's cells.
pub(crate) type AllCharges = Arc<[Arc<Charges>]>;

/// The keys of one dimension.
pub(crate) struct Table {
    buckets: Box<[Bucket]>,
    gates: Box<[Gate]>,
    /// Each bucket's lock, over all memory that any living policy charges for these cells.
    locks: Box<[Mutex<AllCharges>]>,
    pub(crate) dirty: Dirty,
    held: AtomicU64,
    overflowed: AtomicU64,
}

#[repr(align(128))]
struct Bucket([AtomicU64; WAYS]);

/// What came of an order to a key.
pub(crate) enum Ordered {
    /// The gate moved, or stands in its cell as it stood.
    Done(usize, Option<Moved>),
    /// The key has no cell, and the order may not claim one.
    Unknown,
    /// All cells of its bucket are blocked or on probation.
    NoRoom,
}

impl Table {
    /// A table of at least so many cells.
    pub(crate) fn new(cells: usize) -> Table {
        let buckets = buckets(cells);
        let none: AllCharges = Arc::new([]);
        Table {
            buckets: (0..buckets)
                .map(|_| Bucket(std::array::from_fn(|_| AtomicU64::new(EMPTY))))
                .collect(),
            gates: (0..buckets * WAYS).map(|_| Gate::new()).collect(),
            locks: (0..buckets).map(|_| Mutex::new(Arc::clone(&none))).collect(),
            dirty: Dirty::new(buckets * WAYS),
            held: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        }
    }

    pub(crate) fn cells(&self) -> usize {
        self.gates.len()
    }

    /// The row of memory that calls without a cell share.
    pub(crate) fn overflow_row(&self) -> usize {
        self.gates.len()
    }

    /// Cells that a key has, or had and has not lost to another.
    pub(crate) fn held(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.held.load(Ordering::Relaxed)
    }

    /// Calls that had to share the overflow row.
    pub(crate) fn overflowed(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.overflowed.load(Ordering::Relaxed)
    }

    pub(crate) fn count_overflow(&self) {
        // ordering: relaxed, for a count stands alone.
        self.overflowed.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on a cell counts as fresh only if all of these are idle too.
    pub(crate) fn watch_charges(&self, charges: &AllCharges) {
        for lock in &self.locks {
            *lock.lock() = Arc::clone(charges);
        }
    }

    pub(crate) fn gate(&self, cell: usize) -> Option<&Gate> {
        self.gates.get(cell)
    }

    /// Whose cell it is.
    pub(crate) fn tag(&self, cell: usize) -> Option<KeyHash> {
        let tag = self.buckets.get(cell / WAYS)?.0.get(cell % WAYS)?;
        // ordering: acquire, to pair with the claim's release: what its last tenant left is seen.
        match tag.load(Ordering::Acquire) {
            EMPTY => None,
            hash => Some(KeyHash::new(hash)),
        }
    }

    /// A known key's cell. Lock-free.
    pub(crate) fn find(&self, key: KeyHash) -> Option<usize> {
        let number = self.bucket_of(key);
        for (way, tag) in self.buckets.get(number)?.0.iter().enumerate() {
            // ordering: acquire, to pair with the claim's release.
            match tag.load(Ordering::Acquire) {
                EMPTY => return None,
                hash if hash == key.as_u64() => return Some(number * WAYS + way),
                _ => {}
            }
        }
        None
    }

    /// A key's cell, claimed at first sight; `None` if its bucket is full of busy keys.
    pub(crate) fn find_or_claim(&self, key: KeyHash, now: Mono) -> Option<usize> {
        if let Some(cell) = self.find(key) {
            return Some(cell);
        }
        let number = self.bucket_of(key);
        let charges = self.locks.get(number)?.lock();
        self.find(key).or_else(|| {
            let cell = self.empty(number).or_else(|| self.idle(number, &charges, now))?;
            self.give(cell, key);
            Some(cell)
        })
    }

    /// Steps a key's gate under its bucket's lock. A claim may evict a busy key, but never one
    /// that is blocked or on probation.
    pub(crate) fn order(
        &self,
        key: KeyHash,
        input: Input,
        rule: &TripRule,
        now: Mono,
        may_claim: bool,
    ) -> Ordered {
        let number = self.bucket_of(key);
        let Some(lock) = self.locks.get(number) else { return Ordered::NoRoom };
        let charges = lock.lock();
        let cell = match self.find(key) {
            Some(cell) => cell,
            None if !may_claim => return Ordered::Unknown,
            None => {
                let room = self
                    .empty(number)
                    .or_else(|| self.idle(number, &charges, now))
                    .or_else(|| self.armed(number));
                let Some(cell) = room else { return Ordered::NoRoom };
                if let Some(gate) = self.gates.get(cell) {
                    // Strikes and overrides of the key that is evicted are not the newcomer's;
                    // its debts stay, which is stricter.
                    let _ = gate.step(Input::Reset, rule, now);
                }
                self.give(cell, key);
                cell
            }
        };
        let moved = self.gates.get(cell).and_then(|gate| gate.order(input, rule, now));
        if moved.is_some() {
            self.dirty.mark(cell);
        }
        Ordered::Done(cell, moved)
    }

    /// Steps the gate of a cell that cannot change hands meanwhile, for it is not armed, or
    /// whose step checks an epoch.
    pub(crate) fn step(
        &self,
        cell: usize,
        input: Input,
        rule: &TripRule,
        now: Mono,
    ) -> Option<Moved> {
        let moved = self.gates.get(cell)?.step(input, rule, now)?;
        if moved.before.epoch() != moved.after.epoch() {
            self.dirty.mark(cell);
        }
        Some(moved)
    }

    fn bucket_of(&self, key: KeyHash) -> usize {
        let wide = u128::from(key.as_u64()) * (self.buckets.len() as u128);
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    fn ways(number: usize) -> std::ops::Range<usize> {
        number * WAYS..(number + 1) * WAYS
    }

    fn empty(&self, number: usize) -> Option<usize> {
        Table::ways(number).find(|&cell| self.tag(cell).is_none())
    }

    fn idle(&self, number: usize, charges: &[Arc<Charges>], now: Mono) -> Option<usize> {
        Table::ways(number).find(|&cell| {
            self.gates.get(cell).is_some_and(|gate| gate.word().is_fresh())
                && charges.iter().all(|memory| memory.is_idle(cell, now))
        })
    }

    fn armed(&self, number: usize) -> Option<usize> {
        Table::ways(number)
            .find(|&cell| self.gates.get(cell).is_some_and(|gate| gate.word().is_armed()))
    }

    /// Writes a key's tag; under the lock.
    fn give(&self, cell: usize, key: KeyHash) {
        let tag = self.buckets.get(cell / WAYS).and_then(|bucket| bucket.0.get(cell % WAYS));
        if let Some(tag) = tag {
            // ordering: relaxed, for only holders of this lock write tags.
            if tag.load(Ordering::Relaxed) == EMPTY {
                // ordering: relaxed, for a count stands alone.
                self.held.fetch_add(1, Ordering::Relaxed);
            }
            // ordering: release, so that whoever finds the key sees its cell as it was left.
            tag.store(key.as_u64(), Ordering::Release);
        }
    }
}

/// Cells of a table for so many keys.
pub(crate) fn cells_for(keys: usize) -> usize {
    buckets(keys) * WAYS
}

fn buckets(keys: usize) -> usize {
    keys.div_ceil(WAYS).max(1)
}

const WAYS: usize = 16;
const EMPTY: u64 = 0;
