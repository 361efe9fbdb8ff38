//! The bounded table of one key dimension: which slot belongs to which key; it never sees a label, and knows no rule but the gate's.
//!
//! A key's slot stands in one bucket, of 512 in a large table. Finding a known key is a lock-free scan of the bucket, from a line of memory that
//! the key's hash says, so that it mostly ends in that line of four and touches no other: the tag and the
//! one-word memory of a limit stand together. Gates stand apart, and a bit for each block of 32 slots says whether any of its gates was ever
//! moved: while it says no, none is read. The first sight of a key takes the bucket's lock and claims an empty slot, or
//! one that is *indistinguishable from fresh* (gate armed, no strikes, no override, all limits idle), which
//! therefore needs no clearing. Tags are never emptied, so a scan ends at the first line that has room for anybody.
//!
//! Keys fall into buckets by chance, and the larger a bucket, the less its keys stray from their mean: with a ninth of their
//! slots free, of buckets of 32 one key in twenty has no slot, of buckets of 512 one in two thousand. Whom a full bucket concerns stays
//! small all the same: what newcomers lack, and what they share, is kept by the block of 32 in which a key's scan begins.
//!
//! All moves of a key's gate away from *armed* are made under the bucket's lock, with the tag
//! looked at: a kill or a trip lands on its own key, and a slot that is blocked or on probation never changes hands.
//!
//! Some slots of a bucket, one of 32 and two at least, are kept for orders: strangers' traffic cannot fill a bucket so that a kill finds no room. Where an
//! order must evict a busy key all the same, that key's block starts newcomers *spent*, as of the eviction: to be evicted never gives
//! permission back.
//!
//! Where the policy bounds the first sights per time, keys beyond it get no slot yet: a flood of fresh keys fills the
//! table no faster than that.
//!
//! One blur is allowed: a thread that found a slot just before it changed hands charges the
//! newcomer once, and its own key not at all for that call.

use std::sync::Arc;

use prefetch_index::prefetch_index;

use crate::cell::{Dirty, Gate, Moved};
use crate::charges::{Charges, Row};
use crate::facts::State;
use crate::gate::{Input, TripRule, Word};
use crate::limit::Limit;
use crate::policy::Recover;
use crate::scope::KeyHash;
use crate::sync::{AtomicU64, Mutex, Ordering, fence};
use crate::tally::Tally;
use crate::time::Mono;

/// Where the words of one limit of a dimension stand.
#[derive(Clone)]
pub(crate) enum Rows {
    /// In the keys' own slots.
    Inline(usize),
    /// Beside the table: a row for each slot.
    Beside(Arc<Charges>),
}

/// One limit that some living policy charges for a table's slots.
#[derive(Clone)]
pub(crate) struct Charged {
    pub(crate) limit: Limit,
    pub(crate) rows: Rows,
}

/// All that the living policies keep for a table's slots.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) limits: Vec<Charged>,
    pub(crate) tallies: Vec<Arc<Tally>>,
    /// No trip here ends by itself: what is tripped is never forgotten.
    pub(crate) manual: bool,
    /// How many keys may be seen for the first time: a rate.
    pub(crate) newcomers: Option<Limit>,
}

/// The keys of one dimension.
pub(crate) struct Table {
    /// By lines; the first of the last is shared by calls whose key has none.
    lines: Box<[Line]>,
    gates: Box<[Gate]>,
    /// When a slot's limits were spent for what its key was not charged, in nanoseconds, rounded up to fours; 0 for never. The
    /// two lowest bits say which: its budgets, its others.
    spent: Box<[AtomicU64]>,
    /// A bit for each block: a gate of it was moved at least once.
    stirred: Box<[AtomicU64]>,
    /// Lines where scans begin, which are all but the last.
    starts: usize,
    /// Slots of a bucket, and among how many one is kept for orders; both powers of two.
    ways: usize,
    every: usize,
    locks: Box<[Mutex<Lock>]>,
    pub(crate) dirty: Dirty,
    held: AtomicU64,
    overflowed: AtomicU64,
    evicted: AtomicU64,
    turned_away: AtomicU64,
    /// What the rate of first sights is charged to.
    sights: AtomicU64,
    /// For each block: calls of the keys at home there that hold a place in flight in the shared slot.
    flying: Box<[AtomicU64]>,
}

/// Slots that one line of the processor's memory holds.
#[repr(align(64))]
struct Line([Slot; LINE]);

/// A line's tags as they were read, and which line it is.
struct Tags {
    at: usize,
    tags: [u64; LINE],
}

/// What a decision on a key reads and writes.
#[repr(align(16))]
struct Slot {
    tag: AtomicU64,
    inline: [AtomicU64; INLINE],
}

/// What a bucket's lock guards besides the tags.
struct Lock {
    kept: Arc<Kept>,
    /// One for each of the bucket's blocks: what newcomers lack whose home it is.
    marks: Box<[Mark]>,
    /// All slots that any key may claim have a tag, and so they will for ever.
    full: bool,
    /// Where the search for an idle slot goes on that found none.
    hand: usize,
}

/// As of when newcomers start spent, in nanoseconds and one more; 0 for never.
#[derive(Clone, Copy, Default)]
struct Mark {
    /// They start as if they had used up everything but budgets then: their past is not known.
    spent: u64,
    /// The same of budgets.
    budgets_spent: u64,
}

/// How a table is divided.
struct Shape {
    buckets: usize,
    ways: usize,
}

/// Which slots a search may give away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Among {
    /// Those that any key may claim, of which it looks at so many that a flood cannot make it long.
    Some,
    /// All that any key may claim.
    Open,
    /// Those kept for orders too.
    All,
}

/// Which slot an order goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The key's, claimed for it if it has none.
    Claimed,
    /// The key's, if it has one.
    Known,
    /// The key's, if it is still that one: in another the epochs are other numbers.
    In(usize),
}

/// What a call would find whose key is looked up, and has its slot claimed if need be.
#[derive(Clone, Copy)]
pub(crate) enum Foreseen {
    /// Its key's slot.
    Known(usize),
    /// A slot that its key would be given.
    Newcomer(usize, Newcomer),
}

/// How a key would find a slot that it was given.
#[derive(Clone, Copy)]
pub(crate) struct Newcomer {
    /// The epoch of its gate.
    pub(crate) epoch: u16,
    spent: Option<Mono>,
    budgets_spent: Option<Mono>,
}

/// What came of an order to a key.
pub(crate) enum Ordered {
    /// The gate moved, or stands in its slot as it stood.
    Done(usize, Option<Moved>),
    /// The key has no slot, and the order may not claim one.
    Unknown,
    /// All slots of its bucket are blocked or on probation.
    NoRoom,
}

impl Rows {
    /// Whether they are the same words.
    pub(crate) fn are(&self, other: &Rows) -> bool {
        match (self, other) {
            (Rows::Inline(own), Rows::Inline(other)) => own == other,
            (Rows::Beside(own), Rows::Beside(other)) => Arc::ptr_eq(own, other),
            _ => false,
        }
    }
}

impl Newcomer {
    /// As of when a limit would be spent, if it would.
    pub(crate) fn spent_at(self, limit: Limit, now: Mono) -> Option<Mono> {
        let at = if matches!(limit, Limit::Budget(_)) { self.budgets_spent } else { self.spent };
        at.filter(|at| now < at.plus(limit.recovery()))
    }
}

impl Table {
    /// A table of at least so many slots.
    pub(crate) fn new(cells: usize) -> Table {
        let Shape { buckets, ways } = Shape::of(cells);
        let cells = buckets * ways;
        let kept = Arc::new(Kept::default());
        let lock = || Mutex::new(Lock::new(&kept, ways / BLOCK));
        Table {
            lines: (0..=cells / LINE).map(|_| Line::new()).collect(),
            gates: (0..cells).map(|_| Gate::new()).collect(),
            spent: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            stirred: (0..(cells / BLOCK).div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            starts: cells / LINE,
            ways,
            every: if ways > BLOCK { BLOCK } else { BLOCK / 2 },
            locks: (0..buckets).map(|_| lock()).collect(),
            dirty: Dirty::new(cells),
            held: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            sights: AtomicU64::new(0),
            flying: (0..cells / BLOCK).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn cells(&self) -> usize {
        self.gates.len()
    }

    /// The slot that calls without one of their own share.
    pub(crate) fn overflow_cell(&self) -> usize {
        self.cells()
    }

    /// Slots that a key has, or had and has not lost to another.
    pub(crate) fn held(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.held.load(Ordering::Relaxed)
    }

    /// Calls that had to share the overflow slot.
    pub(crate) fn overflowed(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Busy keys that lost their slot to an order.
    pub(crate) fn evicted(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.evicted.load(Ordering::Relaxed)
    }

    /// First sights beyond their rate.
    pub(crate) fn turned_away(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Slots whose key has something to lose: all but the empty and the idle.
    pub(crate) fn busy(&self, now: Mono) -> u64 {
        let mut busy = 0;
        for (bucket, lock) in self.locks.iter().enumerate() {
            let lock = lock.lock();
            let cells = (bucket * self.ways..(bucket + 1) * self.ways)
                .filter(|&cell| self.tag(cell).is_some() && !self.is_idle(cell, &lock.kept, now));
            busy += cells.fold(0, |sum, _| sum + 1);
        }
        busy
    }

    /// From now on a slot counts as fresh only if all of this is idle too.
    pub(crate) fn keep(&self, kept: &Arc<Kept>) {
        for lock in &self.locks {
            lock.lock().kept = Arc::clone(kept);
        }
    }

    /// Forgets the first sights, since their rate is counted otherwise now.
    pub(crate) fn forget_sights(&self) {
        // ordering: relaxed, for a debt stands alone.
        self.sights.store(0, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn gate(&self, cell: usize) -> Option<&Gate> {
        self.gates.get(cell)
    }

    /// A slot's gate as it stands. While no gate of its block was ever moved, none is read.
    #[inline]
    pub(crate) fn word(&self, cell: usize) -> Option<Word> {
        if self.is_stirred(cell) {
            Some(self.gates.get(cell)?.word())
        } else {
            Some(Word::default())
        }
    }

    /// Whether a gate of a slot's block was ever moved.
    #[inline(always)]
    fn is_stirred(&self, cell: usize) -> bool {
        let block = cell / BLOCK;
        // ordering: relaxed. Who moves a gate stirs its block before, so that after a kill returned every later look sees
        // both; the last look orders its loads after its mark by a fence of its own, as the killer does its stores.
        let stirred = self.stirred.get(block / 64).map(|word| word.load(Ordering::Relaxed));
        stirred.is_some_and(|stirred| stirred >> (block % 64) & 1 == 1)
    }

    /// Until when a limit of a slot is spent for what its key was not charged, if it was: until then the key is refused, and never
    /// tripped for it.
    pub(crate) fn spent_until(&self, cell: usize, limit: Limit) -> Option<Mono> {
        // ordering: relaxed, for the slot was found by its tag, with acquire.
        let spent = self.spent.get(cell)?.load(Ordering::Relaxed);
        let at = Mono::from_nanos(spent & !(BUDGETS | OTHERS));
        (spent & spent_bit(limit) != 0).then(|| at.plus(limit.recovery()))
    }

    /// Says that a limit of a slot is spent for what its key was not charged.
    pub(crate) fn note_spent(&self, cell: usize, limit: Limit, until: Mono) {
        let at = until.since(Mono::ZERO.plus(limit.recovery()));
        self.note(cell, spent_as_of(Mono::ZERO.plus(at), spent_bit(limit)));
    }

    /// Adds to what is said of a slot's limits: of two instants the later one.
    fn note(&self, cell: usize, note: u64) {
        let Some(spent) = self.spent.get(cell) else { return };
        let both = |was: u64| was.max(note) | (was | note) & (BUDGETS | OTHERS);
        // ordering: relaxed, for a restore comes before all calls, and a call that sees the word before a reload is of the policy before.
        let _ = spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |was| Some(both(was)));
    }

    /// Says that a gate of a slot's block is about to move.
    fn stir(&self, cell: usize) {
        let block = cell / BLOCK;
        let bit = 1 << (block % 64);
        if let Some(word) = self.stirred.get(block / 64)
            // ordering: relaxed, for only the first of many needs to be written.
            && word.load(Ordering::Relaxed) & bit == 0
        {
            // ordering: relaxed; the fence orders it before the move that follows, for all who see the move and look after
            // a fence of their own.
            word.fetch_or(bit, Ordering::Relaxed);
            fence(Ordering::Release);
        }
    }

    /// One limit's words of a slot.
    #[inline]
    pub(crate) fn row<'a>(&'a self, rows: &'a Rows, cell: usize) -> Option<Row<'a>> {
        match rows {
            Rows::Inline(column) => {
                let head = self.slot(cell)?.inline.get(*column)?;
                Some(Row { head, rest: &[] })
            }
            Rows::Beside(charges) => charges.row(cell),
        }
    }

    /// Empties one inline column, which nobody charges.
    pub(crate) fn clear(&self, column: usize) {
        let slots = self.lines.iter().flat_map(|line| &line.0);
        for word in slots.filter_map(|slot| slot.inline.get(column)) {
            // ordering: relaxed, for nobody looks at the column yet.
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Whose slot it is.
    pub(crate) fn tag(&self, cell: usize) -> Option<KeyHash> {
        // ordering: acquire, to pair with the claim's release: what its last tenant left is seen.
        match self.slot(cell)?.tag.load(Ordering::Acquire) {
            EMPTY => None,
            hash => Some(KeyHash::new(hash)),
        }
    }

    #[inline]
    fn slot(&self, cell: usize) -> Option<&Slot> {
        self.lines.get(cell / LINE)?.0.get(cell % LINE)
    }

    /// Asks for the memory in which a key's scan begins, without waiting for it: its line, and the one where it goes on.
    #[inline(always)]
    pub(crate) fn fetch(&self, key: KeyHash) {
        prefetch_index(&self.lines, self.line_of(key));
        prefetch_index(&self.lines, self.line_of(key) ^ 1);
    }

    /// Reads a line's tags.
    #[inline(always)]
    fn read(&self, at: usize) -> Option<Tags> {
        let line = self.lines.get(at)?;
        // ordering: acquire, to pair with the claim's release.
        let tags = line.0.each_ref().map(|slot| slot.tag.load(Ordering::Acquire));
        Some(Tags { at, tags })
    }

    /// A known key's slot with its inline word; `None` if it has none, or if a gate of its block was ever moved.
    #[inline(always)]
    pub(crate) fn quiet(&self, key: KeyHash) -> Option<(usize, Row<'_>)> {
        let cell = self.find(key)?;
        if self.is_stirred(cell) {
            return None;
        }
        let [head] = &self.slot(cell)?.inline;
        Some((cell, Row { head, rest: &[] }))
    }

    /// A known key's slot. Lock-free.
    #[inline(always)]
    pub(crate) fn find(&self, key: KeyHash) -> Option<usize> {
        let line = self.read(self.line_of(key))?;
        match line.way_of(key) {
            Some(way) => Some(line.at * LINE + way),
            None => self.find_beyond(key),
        }
    }

    /// As [`Table::find`], for a key that does not stand in the line where its scan begins.
    #[inline(never)]
    fn find_beyond(&self, key: KeyHash) -> Option<usize> {
        let first = self.line_of(key);
        for step in 0..self.ways / LINE {
            let line = self.read(first ^ step)?;
            if let Some(way) = line.way_of(key) {
                return Some(line.at * LINE + way);
            }
            if line.has_room(self.every) {
                return None;
            }
        }
        None
    }

    /// A key's slot, claimed at first sight. `None`, and the call is counted as one that shares the overflow slot, if its bucket is full of
    /// busy keys, or keys are first seen too fast.
    #[inline]
    pub(crate) fn find_or_claim(&self, key: KeyHash, now: Mono) -> Option<usize> {
        match self.find(key) {
            Some(cell) => Some(cell),
            None => self.claim(key, now),
        }
    }

    #[cold]
    fn claim(&self, key: KeyHash, now: Mono) -> Option<usize> {
        let mut lock = self.locks.get(self.bucket_of(key))?.lock();
        if let Some(cell) = self.find(key) {
            return Some(cell);
        }
        let room = self.room(key, &mut lock, Among::Some, now);
        if room.is_none() {
            lock.hand = (lock.hand + LOOKS) % self.ways;
        }
        let welcome = room.is_none() || self.welcomes(&lock.kept, now);
        let Some(cell) = room.filter(|_| welcome) else {
            // ordering: relaxed, for a count stands alone.
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            // ordering: relaxed, for a count stands alone.
            self.turned_away.fetch_add(u64::from(!welcome), Ordering::Relaxed);
            return None;
        };
        self.give(cell, key, &lock, now);
        Some(cell)
    }

    /// What a call would find that claims its key's slot at first sight; `None` if it would have to share the overflow slot.
    pub(crate) fn foresee(&self, key: KeyHash, now: Mono) -> Option<Foreseen> {
        let mut lock = self.locks.get(self.bucket_of(key))?.lock();
        if let Some(cell) = self.find(key) {
            return Some(Foreseen::Known(cell));
        }
        let cell = self.room(key, &mut lock, Among::Some, now)?;
        let sights = Row { head: &self.sights, rest: &[] };
        if lock.kept.newcomers.is_some_and(|limit| sights.peek(limit, 1, now).is_err()) {
            return None;
        }
        let word = self.word(cell).unwrap_or_default();
        // No rule matters to a reset.
        let rule = TripRule::new(Recover::default());
        let epoch = word.step(Input::Reset, &rule, now).unwrap_or(word).epoch();
        let (spent, budgets_spent) = lock.spent(self.home_of(key));
        Some(Foreseen::Newcomer(cell, Newcomer { epoch, spent, budgets_spent }))
    }

    /// Charges a call of a key without a slot to the shared one; `charge` says whether it took a place in flight there. What the
    /// call takes, its key must not have again of its own as soon as there is a slot. A call that is refused takes
    /// nothing, and marks nothing: a flood spends no more blocks than the shared slot admits calls.
    ///
    /// # Errors
    /// The key's slot, if it has one by now; then nothing was charged.
    #[cold]
    pub(crate) fn share<B>(
        &self,
        key: KeyHash,
        now: Mono,
        charge: impl FnOnce() -> Result<bool, B>,
    ) -> Result<Result<bool, B>, usize> {
        let (bucket, home) = (self.bucket_of(key), self.home_of(key));
        let (Some(lock), Some(flying)) = (self.locks.get(bucket), self.flying.get(home)) else {
            return Ok(charge());
        };
        let mut lock = lock.lock();
        if let Some(cell) = self.find(key) {
            return Err(cell);
        }
        let charged = charge();
        if let Ok(flies) = charged {
            lock.spend(home, now, true);
            // ordering: relaxed, for whoever gives slots away holds this lock.
            flying.fetch_add(u64::from(flies), Ordering::Relaxed);
        }
        Ok(charged)
    }

    /// A call that took a place in flight in the shared slot gave it back.
    pub(crate) fn land(&self, key: KeyHash) {
        if let Some(flying) = self.flying.get(self.home_of(key)) {
            // ordering: release, so that who sees none in flight sees their places given back.
            flying.fetch_sub(1, Ordering::Release);
        }
    }

    /// A slot that a key without one may have: an empty one or an idle one. While calls of its block hold places in flight
    /// in the shared slot there is none: some of them may be the key's own, which it would have twice.
    fn room(&self, key: KeyHash, lock: &mut Lock, among: Among, now: Mono) -> Option<usize> {
        // ordering: acquire, to pair with the release of the call that ended last.
        let flying = self.flying.get(self.home_of(key))?.load(Ordering::Acquire);
        if flying > 0 {
            return None;
        }
        self.empty(key, lock).or_else(|| self.idle(key, among, lock, now))
    }

    /// Whether one more key may be seen for the first time.
    fn welcomes(&self, kept: &Kept, now: Mono) -> bool {
        let row = Row { head: &self.sights, rest: &[] };
        kept.newcomers.is_none_or(|limit| row.take(limit, 1, now).is_ok())
    }

    /// Does something with a key's slot while it cannot change hands. The slot is claimed if need be, whatever the rate
    /// of first sights; `None` if there is none.
    pub(crate) fn hold<T>(
        &self,
        key: KeyHash,
        now: Mono,
        act: impl FnOnce(usize) -> T,
    ) -> Option<T> {
        let mut lock = self.locks.get(self.bucket_of(key))?.lock();
        let cell = self.find(key).or_else(|| {
            let cell = self.room(key, &mut lock, Among::Open, now)?;
            self.give(cell, key, &lock, now);
            Some(cell)
        })?;
        Some(act(cell))
    }

    /// Does something with the budgets of a key, whose slot cannot change hands meanwhile; out of range if it has none. What they were
    /// spent for what others had is over.
    pub(crate) fn with_budgets(&self, key: KeyHash, act: impl FnOnce(usize)) {
        let Some(lock) = self.locks.get(self.bucket_of(key)) else { return };
        let _lock = lock.lock();
        let cell = self.find(key).unwrap_or(usize::MAX);
        act(cell);
        if let Some(spent) = self.spent.get(cell) {
            // ordering: relaxed, for a call that sees the word before is refused and not tripped.
            spent.fetch_and(!BUDGETS, Ordering::Relaxed);
        }
    }

    /// From now on keys that have no slot yet (those of one key's block, or all) start as if they had used up everything by
    /// now: of their past nothing is known. Budgets only if told so.
    pub(crate) fn spend_newcomers(&self, of: Option<KeyHash>, budgets: bool, now: Mono) {
        if let Some(key) = of {
            if let Some(lock) = self.locks.get(self.bucket_of(key)) {
                lock.lock().spend(self.home_of(key), now, budgets);
            }
            return;
        }
        for lock in &self.locks {
            let mut lock = lock.lock();
            for mark in &mut lock.marks {
                mark.spend(now, budgets);
            }
        }
    }

    /// Spends what every known key has, and what is shared; budgets only if told so.
    pub(crate) fn spend_known(&self, budgets: bool, now: Mono) {
        let at = (Some(now), budgets.then_some(now));
        let mut kept = None;
        for (bucket, lock) in self.locks.iter().enumerate() {
            let lock = lock.lock();
            for cell in bucket * self.ways..(bucket + 1) * self.ways {
                if self.tag(cell).is_some() {
                    self.note(cell, self.spend(cell, &lock.kept, at, now));
                }
            }
            kept = Some(Arc::clone(&lock.kept));
        }
        if let Some(kept) = kept {
            self.spend(self.overflow_cell(), &kept, at, now);
        }
    }

    /// Steps a key's gate under its bucket's lock. A claim may evict a busy key, but never one
    /// that is blocked or on probation.
    pub(crate) fn order(
        &self,
        key: KeyHash,
        input: Input,
        rule: &TripRule,
        now: Mono,
        which: Which,
    ) -> Ordered {
        let Some(lock) = self.locks.get(self.bucket_of(key)) else { return Ordered::NoRoom };
        let mut lock = lock.lock();
        let cell = match self.find(key) {
            Some(cell) if matches!(which, Which::In(own) if own != cell) => {
                return Ordered::Unknown;
            }
            Some(cell) => cell,
            None if which != Which::Claimed => return Ordered::Unknown,
            None => {
                // The slots kept for orders come last in every scan, and are taken last: a scan that meets an empty slot before
                // them has missed nothing.
                let room = self.empty(key, &mut lock);
                let room = room.or_else(|| self.idle(key, Among::All, &lock, now));
                let room = room.or_else(|| self.kept_empty(key));
                let Some(cell) = room.or_else(|| self.evict(key, &mut lock, rule, now)) else {
                    return Ordered::NoRoom;
                };
                self.give(cell, key, &lock, now);
                cell
            }
        };
        self.stir(cell);
        let moved = self.gate(cell).and_then(|gate| gate.order(input, rule, now));
        if moved.is_some() {
            self.dirty.mark(cell);
        }
        Ordered::Done(cell, moved)
    }

    /// Steps the gate of a slot that cannot change hands meanwhile, for it is not armed, or
    /// whose step checks an epoch.
    pub(crate) fn step(
        &self,
        cell: usize,
        input: Input,
        rule: &TripRule,
        now: Mono,
    ) -> Option<Moved> {
        self.stir(cell);
        let moved = self.gate(cell)?.step(input, rule, now)?;
        // A probe that is out must be looked after, should it never come back.
        if moved.before.epoch() != moved.after.epoch() || input == Input::ProbeTaken {
            self.dirty.mark(cell);
        }
        Some(moved)
    }

    /// The line in which a scan for a key begins.
    #[inline(always)]
    fn line_of(&self, key: KeyHash) -> usize {
        let wide = u128::from(key.as_u64()) * (self.starts as u128);
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    fn bucket_of(&self, key: KeyHash) -> usize {
        self.line_of(key) * LINE / self.ways
    }

    /// The block in which a scan for a key begins.
    fn home_of(&self, key: KeyHash) -> usize {
        self.line_of(key) * LINE / BLOCK
    }

    /// The slots of the bucket that a slot is in: a key's are always in the same.
    pub(crate) const fn bucket_around(&self, cell: usize) -> std::ops::Range<usize> {
        let first = cell / self.ways * self.ways;
        first..first + self.ways
    }

    /// Slots of a bucket that any key may claim; the others are kept for orders.
    const fn open(&self) -> usize {
        if KEEPS { self.ways - self.ways / self.every } else { self.ways }
    }

    const fn is_kept(&self, cell: usize) -> bool {
        is_kept(cell, self.every)
    }

    /// The slots of a key's bucket, in the order of its scan: line by line, a neighbour first, since the processor fetches lines by
    /// twos. The slots kept for orders, each the last of its line, come when all others have.
    fn ways(&self, key: KeyHash) -> impl Iterator<Item = usize> {
        let first = self.line_of(key);
        let ways = (0..self.ways).map(move |step| (first ^ (step / LINE)) * LINE + step % LINE);
        let open = ways.clone().filter(|&cell| !self.is_kept(cell));
        open.chain(ways.filter(|&cell| self.is_kept(cell)))
    }

    /// The slot that a key has if it was free when the key was first seen. Who keeps more for a slot may so ask for it before the
    /// slot is read.
    #[inline(always)]
    pub(crate) fn likely(&self, key: KeyHash) -> usize {
        let way = usize::try_from(key.as_u64() % CHOICES).unwrap_or(0);
        self.line_of(key) * LINE + way
    }

    /// The likely slot if it is empty, else the first empty one of a key's scan that any key may claim.
    fn empty(&self, key: KeyHash, lock: &mut Lock) -> Option<usize> {
        if lock.full {
            return None;
        }
        let likely = self.likely(key);
        if !self.is_kept(likely) && self.tag(likely).is_none() {
            return Some(likely);
        }
        let empty = self.ways(key).take(self.open()).find(|&cell| self.tag(cell).is_none());
        lock.full = empty.is_none();
        empty
    }

    /// An empty slot that is kept for orders.
    fn kept_empty(&self, key: KeyHash) -> Option<usize> {
        self.ways(key).skip(self.open()).find(|&cell| self.tag(cell).is_none())
    }

    /// An idle slot: of those nearest to where a key's scan begins, or else of those beyond.
    fn idle(&self, key: KeyHash, among: Among, lock: &Lock, now: Mono) -> Option<usize> {
        let many = if among == Among::All { self.ways } else { self.open() };
        let near = self.lightest(self.ways(key).take(many.min(BLOCK)), &lock.kept, now);
        if near.is_some() || many <= BLOCK {
            return near;
        }
        if among == Among::Some {
            let first = self.bucket_of(key) * self.ways;
            let beyond = (lock.hand..lock.hand + LOOKS).map(|step| first + step % self.ways);
            return self.lightest(beyond.filter(|&cell| !self.is_kept(cell)), &lock.kept, now);
        }
        self.lightest(self.ways(key).take(many).skip(BLOCK), &lock.kept, now)
    }

    /// Of the idle ones among some slots the one whose learned past weighs least; the first, where nothing is learned.
    fn lightest(
        &self,
        among: impl Iterator<Item = usize>,
        kept: &Kept,
        now: Mono,
    ) -> Option<usize> {
        let is_idle = |&cell: &usize| self.tag(cell).is_some() && self.is_idle(cell, kept, now);
        let mut idle = among.filter(is_idle);
        if kept.tallies.is_empty() {
            return idle.next();
        }
        idle.min_by_key(|&cell| {
            kept.tallies.iter().map(|tally| tally.weight_of(cell)).fold(0, u64::saturating_add)
        })
    }

    /// Whether nothing tells a slot from a new one.
    fn is_idle(&self, cell: usize, kept: &Kept, now: Mono) -> bool {
        let word = self.gate(cell).map(Gate::word).unwrap_or_default();
        let forgotten = word.is_forgotten(now) && !(kept.manual && word.state() == State::Tripped);
        (word.is_fresh() || forgotten)
            && kept.limits.iter().all(|charged| {
                let row = self.row(&charged.rows, cell);
                row.is_some_and(|row| row.is_idle(charged.limit, now))
            })
    }

    /// Takes the slot of a busy key that is neither blocked nor on probation.
    fn evict(&self, key: KeyHash, lock: &mut Lock, rule: &TripRule, now: Mono) -> Option<usize> {
        let armed = |cell: usize| self.gate(cell).filter(|gate| gate.word().is_armed());
        let all = || self.ways(key).filter_map(|cell| Some((cell, armed(cell)?)));
        // Rather one that has nothing in flight: places stay with the slot in which they were taken, and its key could take as many
        // again elsewhere.
        let flies = |cell: usize| {
            lock.kept.limits.iter().any(|charged| {
                matches!(charged.limit, Limit::InFlight(_))
                    && self
                        .row(&charged.rows, cell)
                        .is_none_or(|row| !row.is_idle(charged.limit, now))
            })
        };
        let (cell, gate) = all().find(|(cell, _)| !flies(*cell)).or_else(|| all().next())?;
        let home = self.home_of(self.tag(cell)?);
        // Strikes and overrides of the key that is evicted are not the newcomer's; its debts stay, which is
        // stricter.
        let _ = gate.step(Input::Reset, rule, now);
        // ordering: relaxed, for a count stands alone.
        self.evicted.fetch_add(1, Ordering::Relaxed);
        // It comes back as a newcomer of its own block; who gets the slot starts spent too, for the slot's debts are not its own.
        lock.spend(home, now, true);
        lock.spend(self.home_of(key), now, true);
        // What it had used up, those who share the overflow slot now lack.
        self.spend(self.overflow_cell(), &lock.kept, (Some(now), Some(now)), now);
        Some(cell)
    }

    /// Charges a slot as if all had been used up then: what time restores, and budgets. Says what is to be noted of that.
    fn spend(
        &self,
        cell: usize,
        kept: &Kept,
        (at, budgets_at): (Option<Mono>, Option<Mono>),
        now: Mono,
    ) -> u64 {
        let newcomer = Newcomer { epoch: 0, spent: at, budgets_spent: budgets_at };
        let (mut newest, mut bits) = (Mono::ZERO, 0);
        for charged in &kept.limits {
            if let Some(at) = newcomer.spent_at(charged.limit, now)
                && let Some(row) = self.row(&charged.rows, cell)
            {
                row.spend(charged.limit, at);
                (newest, bits) = (newest.max(at), bits | spent_bit(charged.limit));
            }
        }
        spent_as_of(newest, bits)
    }

    /// Writes a key's tag; under the lock.
    fn give(&self, cell: usize, key: KeyHash, lock: &Lock, now: Mono) {
        let Some(slot) = self.slot(cell) else { return };
        // ordering: relaxed, for only holders of this lock write tags.
        if slot.tag.load(Ordering::Relaxed) == EMPTY {
            // ordering: relaxed, for a count stands alone.
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(gate) = self.gates.get(cell).filter(|gate| !gate.word().is_fresh()) {
            // Of a key that is forgotten; its newcomer has tripped nothing. No rule matters to a reset.
            let _ = gate.step(Input::Reset, &TripRule::new(Recover::default()), now);
            self.dirty.mark(cell);
        }
        for tally in &lock.kept.tallies {
            tally.clear(cell);
        }
        let note = self.spend(cell, &lock.kept, lock.spent(self.home_of(key)), now);
        if let Some(spent) = self.spent.get(cell) {
            // ordering: relaxed, for the tag is stored with release after it.
            spent.store(note, Ordering::Relaxed);
        }
        // ordering: release, so that whoever finds the key sees its slot as it was left.
        slot.tag.store(key.as_u64(), Ordering::Release);
    }
}

impl Tags {
    /// Where in the line a key stands. The tags are compared without a branch between them: which of them it is no predictor
    /// could guess.
    #[inline(always)]
    fn way_of(&self, key: KeyHash) -> Option<usize> {
        let matches = |(bit, tag): (u32, u64)| u32::from(tag == key.as_u64()) << bit;
        let found = (0..).zip(self.tags).map(matches).fold(0_u32, |all, bit| all | bit);
        if found == 0 { None } else { usize::try_from(found.trailing_zeros()).ok() }
    }

    /// Whether an open slot is empty, so that no key was ever driven on to the next line.
    fn has_room(&self, every: usize) -> bool {
        (self.at * LINE..).zip(self.tags).any(|(cell, tag)| tag == EMPTY && !is_kept(cell, every))
    }
}

impl Lock {
    fn new(kept: &Arc<Kept>, blocks: usize) -> Lock {
        let marks = vec![Mark::default(); blocks].into();
        Lock { kept: Arc::clone(kept), marks, full: false, hand: 0 }
    }

    /// As of when newcomers of a block start spent, and as of when their budgets.
    fn spent(&self, home: usize) -> (Option<Mono>, Option<Mono>) {
        let mark = self.marks.get(home % self.marks.len()).copied().unwrap_or_default();
        let read = |mark: u64| mark.checked_sub(1).map(Mono::from_nanos);
        (read(mark.spent), read(mark.budgets_spent))
    }

    /// Newcomers of a block start spent from now on; of budgets only if told so.
    fn spend(&mut self, home: usize, now: Mono, budgets: bool) {
        let blocks = self.marks.len();
        if let Some(mark) = self.marks.get_mut(home % blocks) {
            mark.spend(now, budgets);
        }
    }
}

impl Mark {
    fn spend(&mut self, now: Mono, budgets: bool) {
        let mark = now.as_nanos().saturating_add(1);
        self.spent = self.spent.max(mark);
        if budgets {
            self.budgets_spent = self.budgets_spent.max(mark);
        }
    }
}

impl Shape {
    /// A bucket is a 32nd of the table, but of 32 slots at least and of 512 at most: so a small table, too, has buckets for many, and what is rounded up is little.
    fn of(keys: usize) -> Shape {
        let ways = (keys / SHARE).max(1).checked_ilog2().map_or(1, |log| 1 << log);
        let ways = ways.clamp(BLOCK, LARGEST);
        Shape { buckets: keys.div_ceil(ways).max(1), ways }
    }
}

impl Line {
    fn new() -> Line {
        Line(std::array::from_fn(|_| Slot::new()))
    }
}

impl Slot {
    fn new() -> Slot {
        Slot { tag: AtomicU64::new(EMPTY), inline: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// The bit that says of a limit that it was spent.
const fn spent_bit(limit: Limit) -> u64 {
    if matches!(limit, Limit::Budget(_)) { BUDGETS } else { OTHERS }
}

/// What is noted of limits that were spent as of then.
const fn spent_as_of(at: Mono, bits: u64) -> u64 {
    if bits == 0 {
        return 0;
    }
    at.as_nanos().saturating_add(BUDGETS | OTHERS) & !(BUDGETS | OTHERS) | bits
}

/// Whether a slot is kept for orders, of so many one.
const fn is_kept(cell: usize, every: usize) -> bool {
    KEEPS && cell & (every - 1) == every - 1
}

/// Slots of a table for so many keys.
pub(crate) fn cells_for(keys: usize) -> usize {
    let Shape { buckets, ways } = Shape::of(keys);
    buckets * ways
}

/// Limits of one word each whose memory stands in the slots themselves.
pub(crate) const INLINE: usize = 1;
/// Slots of a block, and of the smallest bucket; two in models, which must try everything.
#[cfg(not(loom))]
const BLOCK: usize = 32;
#[cfg(loom)]
const BLOCK: usize = 2;
/// Slots of the largest bucket.
#[cfg(not(loom))]
const LARGEST: usize = 512;
#[cfg(loom)]
const LARGEST: usize = 2 * BLOCK;
/// Buckets that a table has at least, before its buckets grow.
#[cfg(not(loom))]
const SHARE: usize = 32;
#[cfg(loom)]
const SHARE: usize = 1;
/// Slots beyond the nearest at which one search for an idle one looks.
const LOOKS: usize = 2 * BLOCK;
/// Whether slots are kept for orders: not in models.
const KEEPS: bool = cfg!(not(loom));
/// Slots in a line.
#[cfg(not(loom))]
const LINE: usize = 4;
#[cfg(loom)]
const LINE: usize = 2;
/// Slots of its line among which a key's hash chooses the likely one; in models it is the first.
#[cfg(not(loom))]
const CHOICES: u64 = LINE as u64;
#[cfg(loom)]
const CHOICES: u64 = 1;
const EMPTY: u64 = 0;
/// The bits by which a slot says that its budgets, or its other limits, were spent for what its key was not charged.
const BUDGETS: u64 = 1;
const OTHERS: u64 = 2;

#[cfg(not(loom))]
const _: () =
    assert!(size_of::<Line>() == 64 && BLOCK.is_multiple_of(LINE), "four slots fill a line");

#[cfg(all(test, loom))]
mod models {
    use super::{Charged, Kept, Mark, Ordered, Rows, Table, Which};
    use crate::facts::{KillLevel, State};
    use crate::gate::{Input, TripRule};
    use crate::limit::Limit;
    use crate::policy::{LimitKind, Recover, Unit};
    use crate::scope::KeyHash;
    use crate::sync::{Ordering, fence};
    use crate::time::{Mono, Span};
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
        let done = table.order(KeyHash::new(key), input, &rule(), Mono::ZERO, Which::Claimed);
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

    /// A key of the upper block of a table of two, which are one bucket.
    const UPPER: u64 = u64::MAX;

    /// A table of two blocks in one bucket, the first of which is full.
    fn half_full() -> Arc<Table> {
        let table = Arc::new(Table::new(4));
        assert_eq!((table.ways, table.locks.len(), table.home_of(KeyHash::new(UPPER))), (4, 1, 1));
        for key in 1..=2 {
            assert!(table.find_or_claim(KeyHash::new(key), Mono::ZERO).unwrap() < 2);
        }
        table
    }

    /// Two threads see a key for the first time whose own block is full. `TWICE`: whether it is looked for once more under the lock.
    fn claims_beyond<const TWICE: bool>() {
        explore(|| {
            let table = half_full();
            let claim = |table: &Table| {
                let (key, now) = (KeyHash::new(7), Mono::ZERO);
                if TWICE {
                    return table.find_or_claim(key, now);
                }
                table.find(key).or_else(|| {
                    let mut lock = table.locks[0].lock();
                    let cell = table.empty(key, &mut lock)?;
                    table.give(cell, key, &lock, now);
                    Some(cell)
                })
            };
            let other = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || claim(&table))
            };
            let own = claim(&table);
            assert_eq!(own, other.join().unwrap(), "it has two cells");
            assert!(own.is_some_and(|cell| cell >= 2) && table.held() == 3);
        });
    }

    /// Goal: the same of a key that stands beyond its own block.
    #[test]
    fn loom_a_key_beyond_its_block_has_one_cell() {
        claims_beyond::<true>();
    }

    /// Negative control: a claim that does not look again under the lock.
    #[test]
    #[should_panic(expected = "it has two cells")]
    fn loom_a_claim_that_does_not_look_again_is_caught() {
        claims_beyond::<false>();
    }

    /// A key that stands beyond its own block is killed while another sees its gate, and looks at the bit of the block where it stands.
    /// `THERE`: whether the killer stirs that one, or the key's own.
    fn kill_beyond<const THERE: bool>() {
        explore(|| {
            let table = half_full();
            let cell = table.find_or_claim(KeyHash::new(7), Mono::ZERO).unwrap();
            assert!(cell >= 2 && table.home_of(KeyHash::new(7)) == 0);
            let killed = State::Killed(KillLevel::Halt);
            let looker = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || {
                    if table.gate(cell).unwrap().word().state() == killed {
                        fence(Ordering::Acquire);
                        assert_eq!(table.word(cell).unwrap().state(), killed, "the look missed it");
                    }
                })
            };
            let input = Input::Kill(KillLevel::Halt);
            if THERE {
                kill(&table, 7);
            } else {
                table.stir(0);
                table.gate(cell).unwrap().step(input, &rule(), Mono::ZERO).unwrap();
            }
            looker.join().unwrap();
            assert_eq!(table.word(cell).unwrap().state(), killed, "the look missed it after");
        });
    }

    /// Goal: the bit that a kill sets is that of the block where its key stands.
    #[test]
    fn loom_a_kill_beyond_the_block_is_seen() {
        kill_beyond::<true>();
    }

    /// Negative control: a kill that stirs its key's own block.
    #[test]
    #[should_panic(expected = "the look missed it")]
    fn loom_a_kill_that_stirs_the_own_block_is_caught() {
        kill_beyond::<false>();
    }

    /// A full bucket of busy keys: an order of the upper block evicts one of the first while that one calls, and calls once more. Its
    /// slot may be another by then. `MARKED`: whether its own block is told.
    fn eviction_beyond<const MARKED: bool>() {
        explore(|| {
            let table = half_full();
            let kind = LimitKind::Rate { count: 1, per: Span::from_secs(1), burst: 2 };
            let limit = Limit::new(kind, Unit::Calls).unwrap();
            let rows = Rows::Inline(0);
            let limits = vec![Charged { limit, rows: rows.clone() }];
            table.keep(&std::sync::Arc::new(Kept { limits, ..Kept::default() }));
            let now = Mono::from_nanos(1_000_000_000);
            for key in [1, 2, 3, 4] {
                let cell = table.find_or_claim(KeyHash::new(key), now).unwrap();
                assert!(table.row(&rows, cell).unwrap().take(limit, 1, now).is_ok());
            }
            let evicted = table.tag(2).unwrap();
            assert_eq!(table.home_of(evicted), 0);
            let caller = {
                let (table, rows) = (Arc::clone(&table), rows.clone());
                loom::thread::spawn(move || {
                    let cell = table.find_or_claim(evicted, now);
                    let row = cell.and_then(|cell| table.row(&rows, cell));
                    row.is_some_and(|row| row.take(limit, 1, now).is_ok())
                })
            };
            let input = Input::Kill(KillLevel::Halt);
            let done = table.order(KeyHash::new(UPPER), input, &rule(), now, Which::Claimed);
            assert!(matches!(done, Ordered::Done(2, Some(_))));
            if !MARKED {
                table.locks[0].lock().marks[0] = Mark::default();
            }
            let passed = usize::from(caller.join().unwrap());
            // A slot is free for it again.
            // ordering: relaxed, for nobody else is there.
            table.slot(0).unwrap().inline[0].store(0, Ordering::Relaxed);
            let cell = table.find_or_claim(evicted, now).unwrap();
            let row = table.row(&rows, cell).unwrap();
            let more = (0..2).filter(|_| row.take(limit, 1, now).is_ok()).count();
            assert!(1 + passed + more <= 2, "a burst of its own");
        });
    }

    /// Goal: a key that is evicted by an order of another block has nothing again.
    #[test]
    fn loom_an_eviction_beyond_the_block_gives_nothing_back() {
        eviction_beyond::<true>();
    }

    /// Negative control: where only the order's block is told.
    #[test]
    #[should_panic(expected = "a burst of its own")]
    fn loom_an_eviction_that_tells_one_block_is_caught() {
        eviction_beyond::<false>();
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
            // The first idle slot of its scan is key 1's.
            let _ = table.find_or_claim(KeyHash::new(101), Mono::ZERO);
            killer.join().unwrap();
            let killed = State::Killed(KillLevel::Halt);
            assert_eq!(state(&table, 1), Some(killed), "the kill missed");
            assert_ne!(state(&table, 101), Some(killed), "the kill hit another");
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

    /// How a killer stirs the bucket of the gate that it moves.
    #[derive(Clone, Copy)]
    enum Stirs {
        /// As it is meant.
        First,
        /// After the move.
        Late,
        /// First, without the fence.
        Unfenced,
        Never,
    }

    fn stir_and_kill(table: &Table, cell: usize, stirs: Stirs) {
        let input = Input::Kill(KillLevel::Halt);
        let moves = || table.gate(cell).unwrap().step(input, &rule(), Mono::ZERO);
        let moved = match stirs {
            Stirs::First => table.step(cell, input, &rule(), Mono::ZERO),
            Stirs::Late => {
                let moved = moves();
                table.stir(cell);
                moved
            }
            Stirs::Unfenced => {
                // ordering: relaxed and no more, which is the point.
                table.stirred[0].fetch_or(1, Ordering::Relaxed);
                moves()
            }
            Stirs::Never => moves(),
        };
        assert!(moved.is_some());
    }

    /// One thread kills a key; another that sees the gate moved looks as every decision does: at the bit first. The one that looks
    /// is spawned: the other way round loom reaches no look between the killer's two steps, and no control fails.
    fn kill_against_look(stirs: Stirs) {
        explore(move || {
            let table = Arc::new(Table::new(1));
            let cell = table.find_or_claim(KeyHash::new(1), Mono::ZERO).unwrap();
            let killed = State::Killed(KillLevel::Halt);
            let looker = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || {
                    if table.gate(cell).unwrap().word().state() == killed {
                        fence(Ordering::Acquire);
                        let seen = table.word(cell).unwrap().state();
                        assert_eq!(seen, killed, "the look missed it");
                    }
                })
            };
            stir_and_kill(&table, cell, stirs);
            looker.join().unwrap();
            assert_eq!(table.word(cell).unwrap().state(), killed, "the kill was lost");
        });
    }

    /// Goal: whoever saw a gate moved, and whoever looks after the kill returned, is told so by the bit.
    #[test]
    fn loom_a_stirred_bucket_shows_its_kill() {
        kill_against_look(Stirs::First);
    }

    /// Negative control: a bit that is never set.
    #[test]
    #[should_panic(expected = "the ")]
    fn loom_a_bit_never_set_is_caught() {
        kill_against_look(Stirs::Never);
    }

    /// Negative control: a bit that is set after the move is missed by who saw the move.
    #[test]
    #[should_panic(expected = "the look missed it")]
    fn loom_a_bit_set_late_is_caught() {
        kill_against_look(Stirs::Late);
    }

    /// Negative control: without the fence the move may be seen before the bit.
    #[test]
    #[should_panic(expected = "the look missed it")]
    fn loom_a_bit_without_its_fence_is_caught() {
        kill_against_look(Stirs::Unfenced);
    }

    /// Goal: two keys that are first seen at once get a slot each, and an order to a third while the bucket is full evicts one
    /// and lands on its own.
    #[test]
    fn loom_claims_and_an_order_share_a_bucket() {
        explore(|| {
            let table = Arc::new(Table::new(1));
            let other = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || table.find_or_claim(KeyHash::new(2), Mono::ZERO))
            };
            let own = table.find_or_claim(KeyHash::new(1), Mono::ZERO);
            kill(&table, 3);
            let other = other.join().unwrap();
            assert!(own.is_some());
            assert_eq!(state(&table, 3), Some(State::Killed(KillLevel::Halt)));
            for key in [1, 2] {
                assert_ne!(state(&table, key), Some(State::Killed(KillLevel::Halt)));
            }
            assert!(other.is_none() || table.held() == 2);
        });
    }

    /// A full bucket of busy keys: an order for a third evicts one while a call charges it. Whatever comes first, the newcomer
    /// starts spent. `TOLD`: whether the table knows what its slots are charged.
    fn eviction_against_charge<const TOLD: bool>() {
        explore(|| {
            let table = Arc::new(Table::new(1));
            let kind = LimitKind::Rate { count: 1, per: Span::from_secs(1), burst: 2 };
            let limit = Limit::new(kind, Unit::Calls).unwrap();
            let rows = Rows::Inline(0);
            let cells =
                [1, 2].map(|key| table.find_or_claim(KeyHash::new(key), Mono::ZERO).unwrap());
            let now = Mono::from_nanos(1_000_000_000);
            for cell in cells {
                table.row(&rows, cell).unwrap().take(limit, 1, now).unwrap();
            }
            if TOLD {
                let limits = vec![Charged { limit, rows: rows.clone() }];
                table.keep(&std::sync::Arc::new(Kept { limits, ..Kept::default() }));
            }
            let caller = {
                let (table, rows) = (Arc::clone(&table), rows.clone());
                loom::thread::spawn(move || {
                    let cell = table.find(KeyHash::new(1));
                    cell.map(|cell| table.row(&rows, cell).unwrap().take(limit, 1, now).is_ok())
                })
            };
            let input = Input::Kill(KillLevel::Halt);
            let done = table.order(KeyHash::new(3), input, &rule(), now, Which::Claimed);
            let Ordered::Done(cell, _) = done else { panic!("no room") };
            caller.join().unwrap();
            let row = table.row(&rows, cell).unwrap();
            assert!(row.peek(limit, 1, now).is_err(), "a burst of its own");
        });
    }

    /// Goal: who gets the slot of a busy key starts spent, also while that is charged.
    #[test]
    fn loom_an_eviction_gives_no_permission_back() {
        eviction_against_charge::<true>();
    }

    /// Negative control: a table that was not told what its slots are charged.
    #[test]
    #[should_panic(expected = "a burst of its own")]
    fn loom_an_eviction_without_spending_is_caught() {
        eviction_against_charge::<false>();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::{
        BLOCK, Charged, Foreseen, Kept, LOOKS, Ordered, Rows, Table, Which, cells_for, is_kept,
    };
    use crate::facts::KillLevel;
    use crate::gate::{Input, TripRule};
    use crate::limit::Limit;
    use crate::policy::{LimitKind, Recover, Unit};
    use crate::scope::KeyHash;
    use crate::time::{Mono, Span};

    /// The smallest table with the largest buckets: 32 of 512.
    const LARGE: usize = 32 * 512;
    /// Slots of such a bucket that any key may claim.
    const OPEN: usize = 512 - 16;

    /// A multiplicative spread stands in for the seeded hash.
    fn key(number: u64) -> KeyHash {
        KeyHash::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Keys of the first bucket of a large table, of all its blocks.
    fn neighbour(number: u64) -> KeyHash {
        KeyHash::new(key(number).as_u64() >> 5)
    }

    /// One an hour, and one at once.
    fn hourly() -> Option<Limit> {
        let kind = LimitKind::Rate { count: 1, per: Span::from_secs(3_600), burst: 1 };
        Limit::new(kind, Unit::Calls).ok()
    }

    /// A large table whose first bucket is full of so many keys, each of which has used up its rate.
    fn busy(keys: u64) -> Option<(Table, Limit)> {
        let (table, limit) = (Table::new(LARGE), hourly()?);
        let limits = vec![Charged { limit, rows: Rows::Inline(0) }];
        table.keep(&Arc::new(Kept { limits, ..Kept::default() }));
        for number in 1..=keys {
            let cell = table.find_or_claim(neighbour(number), at(0))?;
            assert!(takes(&table, limit, cell, 0));
        }
        Some((table, limit))
    }

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    fn takes(table: &Table, limit: Limit, cell: usize, millis: u64) -> bool {
        let row = table.row(&Rows::Inline(0), cell);
        row.is_some_and(|row| row.take(limit, 1, at(millis)).is_ok())
    }

    fn kill(table: &Table, key: KeyHash, millis: u64) -> Ordered {
        let rule = TripRule::new(Recover::Manual { probes: 1 });
        table.order(key, Input::Kill(KillLevel::Halt), &rule, at(millis), Which::Claimed)
    }

    /// Goal: tables round up to whole buckets, and spread keys over all of them.
    #[test]
    fn keys_spread_over_whole_buckets() {
        assert_eq!([0, 1, 32, 33].map(cells_for), [32, 32, 32, 64]);
        assert_eq!([1_024, 2_047, 2_048].map(cells_for), [1_024, 2_048, 2_048]);
        assert_eq!([112_500, 1_000_000].map(cells_for), [220 * 512, 1_954 * 512]);
        for (cells, ways) in [(32, 32), (1_024, 32), (64 * 32, 64), (LARGE, 512), (LARGE * 4, 512)]
        {
            let table = Table::new(cells);
            assert_eq!((table.ways, table.cells()), (ways, cells));
            let (mut buckets, mut homes) = (BTreeSet::new(), BTreeSet::new());
            for number in 1..80_000_u64 {
                let key = key(number);
                buckets.insert(table.bucket_of(key));
                homes.insert(table.home_of(key));
                assert_eq!(table.home_of(key) * BLOCK / ways, table.bucket_of(key));
            }
            assert_eq!((buckets.len(), homes.len()), (cells / ways, cells / BLOCK));
        }
    }

    /// Goal: a killed key keeps its cell whatever comes, and is found after; idle ones make room.
    #[test]
    fn killed_keys_keep_their_cells() {
        let table = Table::new(16);
        let rule = TripRule::new(Recover::Manual { probes: 1 });
        let kill = Input::Kill(KillLevel::Halt);
        let victim = KeyHash::new(1_000);
        let Ordered::Done(cell, Some(_)) =
            table.order(victim, kill, &rule, Mono::ZERO, Which::Claimed)
        else {
            panic!("no room in an empty table");
        };
        for key in 1..500 {
            assert!(table.find_or_claim(KeyHash::new(key), Mono::ZERO).is_some());
            assert_eq!(table.find(victim), Some(cell));
        }
        // The last two are kept for orders.
        assert_eq!((table.held(), table.cells()), (30, 32));
    }

    /// Goal: a key that was given an idle slot is found there. A bucket keeps two empty slots for orders, so newcomers are
    /// given idle ones that may stand beyond an empty one: a scan that ended there found them never again, and each of their
    /// calls claimed another slot, with a burst of its own.
    #[test]
    fn a_key_given_an_idle_slot_is_found_again() {
        for seed in 1..50_u64 {
            let table = Table::new(16);
            for number in 1..200_u64 {
                let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed) | 1);
                let key = KeyHash::new(hash.rotate_left(17));
                let cell = table.find_or_claim(key, Mono::ZERO);
                assert!(cell.is_some());
                assert_eq!(table.find(key), cell);
                assert_eq!(table.find_or_claim(key, Mono::ZERO), cell);
            }
            assert_eq!(table.held(), 30);
        }
    }

    /// Goal: in a large bucket, too, every key that is given a slot is found there, wherever its scan begins and however often slots
    /// change hands; no key has two; those kept for orders are given to no stranger; and a killed key keeps its own.
    #[test]
    fn large_buckets_give_each_key_one_slot() {
        let table = Table::new(LARGE);
        let victim = neighbour(1_000_000);
        let Ordered::Done(cell, Some(_)) = kill(&table, victim, 0) else { panic!("no room") };
        for number in 1..3_000_u64 {
            // Every other key begins its scan in the first line.
            let key = if number % 2 == 0 { neighbour(number) } else { KeyHash::new(number) };
            let own = table.find_or_claim(key, at(0)).unwrap();
            assert_eq!((table.find(key), table.bucket_of(key)), (Some(own), 0));
            assert!(own < 512 && !is_kept(own, BLOCK), "{own}");
            assert_eq!(table.find(victim), Some(cell));
        }
        let tags: Vec<_> = (0..LARGE).filter_map(|cell| table.tag(cell)).collect();
        let once: BTreeSet<_> = tags.iter().collect();
        assert_eq!((tags.len(), once.len(), table.held()), (OPEN, OPEN, 496));
    }

    /// Goal: a flood of keys that find no slot looks at a part of a large bucket in each call, and at all of it in turn: a slot that
    /// became idle is found after so many tries, and until then a look ahead says what the call is told.
    #[test]
    fn a_flood_finds_the_idle_slot_of_a_large_bucket_in_turn() {
        let (table, limit) = busy(496).unwrap();
        let idle = 300;
        table.slot(idle).unwrap().inline[0].store(0, crate::sync::Ordering::Relaxed);
        let stranger = KeyHash::new(7);
        assert!(table.ways(stranger).take(BLOCK).all(|cell| cell != idle), "it is not near");
        let mut tries = 0;
        loop {
            let foreseen = match table.foresee(stranger, at(1)) {
                Some(Foreseen::Newcomer(cell, _) | Foreseen::Known(cell)) => Some(cell),
                None => None,
            };
            let cell = table.find_or_claim(stranger, at(1));
            assert_eq!(foreseen, cell);
            tries += 1;
            if cell.is_some() {
                assert_eq!(cell, Some(idle));
                break;
            }
            assert_eq!(table.overflowed(), tries);
            assert!(tries < 512 / LOOKS as u64, "all of it was looked at");
        }
        assert!(tries > 1, "it was not found at once");
        assert!(takes(&table, limit, idle, 1));
        // Whom nothing hurries looks at all of it.
        table.slot(10).unwrap().inline[0].store(0, crate::sync::Ordering::Relaxed);
        let other = KeyHash::new(u64::MAX >> 5);
        assert_eq!(table.hold(other, at(1), |cell| cell), Some(10));
    }

    /// Goal: an order finds room in a large bucket that strangers filled: first in the slots kept for orders, then in those of busy keys, and
    /// never in those of the killed.
    #[test]
    fn orders_find_room_in_a_large_bucket() {
        let (table, _) = busy(496).unwrap();
        assert_eq!(table.find_or_claim(neighbour(497), at(1)), None, "strangers have no more");
        for number in 1_000..1_512_u64 {
            assert!(matches!(kill(&table, neighbour(number), 1), Ordered::Done(_, Some(_))));
            assert_eq!(table.evicted(), (number + 1 - 1_000).saturating_sub(16));
        }
        for number in 1_000..1_512_u64 {
            assert!(table.find(neighbour(number)).is_some(), "{number}");
        }
        assert!(matches!(kill(&table, neighbour(2_000), 1), Ordered::NoRoom));
    }

    /// Goal: to close this hole: a key that an order evicts is at home in another block than the order's, where nothing says that it was
    /// evicted, and so it comes back with a burst of its own. Its own block says so; and of all others newcomers start fresh.
    #[test]
    fn an_evicted_key_lacks_what_it_had_wherever_it_is_at_home() {
        let (table, limit) = busy(496).unwrap();
        // All slots of the first block's bucket are held, and the kept ones too.
        for number in 1_000..1_016 {
            assert!(matches!(kill(&table, neighbour(number), 1), Ordered::Done(..)));
        }
        let held: Vec<KeyHash> = (1..=496).map(neighbour).collect();
        // One that takes the slot of a key of another block.
        let first = |key: KeyHash| table.ways(key).next().unwrap();
        let strays = |key: KeyHash| table.home_of(table.tag(first(key)).unwrap());
        let killed = (5_000..).map(neighbour).find(|key| strays(*key) != table.home_of(*key));
        let killed = killed.unwrap();
        assert!(matches!(kill(&table, killed, 1), Ordered::Done(_, Some(_))));
        assert_eq!(table.evicted(), 1);
        let evicted: Vec<_> = held.iter().filter(|key| table.find(**key).is_none()).collect();
        let [evicted] = *evicted else { panic!("one was evicted") };
        let home = table.home_of(*evicted);
        // An idle slot for whoever comes.
        let free = |near: KeyHash| {
            table.slot(first(near)).unwrap().inline[0].store(0, crate::sync::Ordering::Relaxed);
        };
        free(*evicted);
        let cell = table.find_or_claim(*evicted, at(2)).unwrap();
        assert!(!takes(&table, limit, cell, 2), "a burst of its own again");
        let spent = [table.home_of(killed), home];
        let fresh = (3_000..).map(neighbour).find(|key| !spent.contains(&table.home_of(*key)));
        free(fresh.unwrap());
        let cell = table.find_or_claim(fresh.unwrap(), at(2)).unwrap();
        assert!(takes(&table, limit, cell, 2), "it has nothing to do with that");
    }

    /// Goal: what is shared concerns the newcomers of the block of the key that shared, and no others of its bucket: they start spent, and have no
    /// slot while its call is in flight.
    #[test]
    fn what_is_shared_concerns_one_block() {
        let (table, limit) = busy(400).unwrap();
        let (own, other) = (KeyHash::new(u64::MAX >> 5), KeyHash::new(1));
        let mut more = (2_000..).map(neighbour);
        let mut of = |home: usize| more.find(|key| table.home_of(*key) == home).unwrap();
        let shared = table.share(own, at(1), || Ok::<_, ()>(true)).unwrap();
        assert_eq!((table.home_of(own), table.home_of(other), shared), (15, 0, Ok(true)));
        let (same, elsewhere) = (of(15), of(0));
        assert_eq!(table.find_or_claim(same, at(1)), None, "a call is in flight");
        assert!(table.foresee(same, at(1)).is_none());
        let cell = table.find_or_claim(elsewhere, at(1)).unwrap();
        assert!(takes(&table, limit, cell, 1));
        table.land(own);
        let cell = table.find_or_claim(same, at(1)).unwrap();
        assert!(!takes(&table, limit, cell, 1), "it may be the one that shared");
    }
}
