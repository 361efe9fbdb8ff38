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

/// Cells in a bucket; two in models, which must try everything.
#[cfg(not(loom))]
const WAYS: usize = 16;
#[cfg(loom)]
const WAYS: usize = 2;
const EMPTY: u64 = 0;

#[cfg(all(test, loom))]
mod models {
    use super::{Ordered, Table};
    use crate::facts::{KillLevel, State};
    use crate::gate::{Input, TripRule};
    use crate::policy::Recover;
    use crate::scope::KeyHash;
    use crate::time::Mono;
    use loom::sync::Arc;

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(model);
    }

    fn rule() -> TripRule {
        TripRule::new(Recover::Manual { probes: 1 })
    }

    fn kill(table: &Table, key: u64) {
        let input = Input::Kill(KillLevel::Halt);
        let done = table.order(KeyHash::new(key), input, &rule(), Mono::ZERO, true);
        assert!(matches!(done, Ordered::Done(_, Some(_))));
    }

    /// Where a key stands: the state of its cell.
    fn state(table: &Table, key: u64) -> Option<State> {
        let cell = table.find(KeyHash::new(key))?;
        Some(table.gate(cell)?.word().state())
    }

    /// Goal: two threads that see a key for the first time give it one cell.
    #[test]
    fn loom_a_key_has_one_cell() {
        explore(|| {
            let table = Arc::new(Table::new(1));
            let claim = |table: &Table| table.find_or_claim(KeyHash::new(7), Mono::ZERO);
            let other = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || claim(&table))
            };
            let own = claim(&table);
            assert_eq!(own, other.join().unwrap());
            assert_eq!((own.is_some(), table.held()), (true, 1));
        });
    }

    /// A full bucket of idle keys: one newcomer claims a cell while another of its old keys is
    /// killed. Without the lock a kill lands on whatever key has the cell by then.
    fn kill_against_claim<const LOCKED: bool>() {
        explore(|| {
            let table = Arc::new(Table::new(1));
            for key in 1..=2 {
                table.find_or_claim(KeyHash::new(key), Mono::ZERO).unwrap();
            }
            let killer = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || {
                    if LOCKED {
                        kill(&table, 1);
                    } else if let Some(cell) = table.find(KeyHash::new(1)) {
                        let input = Input::Kill(KillLevel::Halt);
                        let _ = table.step(cell, input, &rule(), Mono::ZERO);
                    }
                })
            };
            // The first idle cell is key 1's.
            let _ = table.find_or_claim(KeyHash::new(100), Mono::ZERO);
            killer.join().unwrap();
            let killed = State::Killed(KillLevel::Halt);
            assert_eq!(state(&table, 1), Some(killed), "the kill missed");
            assert_ne!(state(&table, 100), Some(killed), "the kill hit another");
        });
    }

    /// Goal: a kill lands on its own key, whoever claims cells meanwhile.
    #[test]
    fn loom_a_kill_lands_on_its_own_key() {
        kill_against_claim::<true>();
    }

    /// Negative control: a kill of a cell found without the lock hits the newcomer, or misses.
    #[test]
    #[should_panic(expected = "the kill missed")]
    fn loom_a_kill_without_the_lock_is_caught() {
        kill_against_claim::<false>();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Ordered, Table, cells_for};
    use crate::facts::KillLevel;
    use crate::gate::{Input, TripRule};
    use crate::policy::Recover;
    use crate::scope::KeyHash;
    use crate::time::Mono;

    /// Goal: tables round up to whole buckets, and spread keys over all of them.
    #[test]
    fn keys_spread_over_whole_buckets() {
        assert_eq!([0, 1, 16, 17].map(cells_for), [16, 16, 16, 32]);
        let table = Table::new(64 * 16);
        let mut used = std::collections::BTreeSet::new();
        for number in 1..2_000_u64 {
            // A multiplicative spread stands in for the seeded hash.
            let key = KeyHash::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            used.insert(table.bucket_of(key));
        }
        assert_eq!(used.len(), 64);
    }

    /// Goal: a killed key keeps its cell whatever comes, and is found after; idle ones make room.
    #[test]
    fn killed_keys_keep_their_cells() {
        let table = Table::new(16);
        let rule = TripRule::new(Recover::Manual { probes: 1 });
        let kill = Input::Kill(KillLevel::Halt);
        let victim = KeyHash::new(1_000);
        let Ordered::Done(cell, Some(_)) = table.order(victim, kill, &rule, Mono::ZERO, true)
        else {
            panic!("no room in an empty table");
        };
        for key in 1..500 {
            assert!(table.find_or_claim(KeyHash::new(key), Mono::ZERO).is_some());
            assert_eq!(table.find(victim), Some(cell));
        }
        assert_eq!((table.held(), table.cells()), (16, 16));
    }
}
