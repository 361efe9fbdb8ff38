//! The bounded table of one key dimension: which slot belongs to which key; it never sees a label, and knows no rule but the gate's.
//!
//! A key's slot stands in one bucket of 32. Finding a known key is a lock-free scan of the bucket, from a line of memory that
//! the key's hash says, so that it mostly ends in that line of four and touches no other: the tag and the
//! one-word memory of a limit stand together. Gates stand apart, and a bit for each bucket says whether any of its gates was ever
//! moved: while it says no, none is read. The first sight of a key takes the bucket's lock and claims an empty slot, or
//! one that is *indistinguishable from fresh* (gate armed, no strikes, no override, all limits idle), which
//! therefore needs no clearing. Tags are never emptied, so a scan ends at the first line that has room for anybody.
//!
//! All moves of a key's gate away from *armed* are made under the bucket's lock, with the tag
//! looked at: a kill or a trip lands on its own key, and a slot that is blocked or on probation never changes hands.
//!
//! Two slots of a bucket are kept for orders: strangers' traffic cannot fill a bucket so that a kill finds no room. Where an
//! order must evict a busy key all the same, the bucket starts newcomers *spent*, as of the eviction: to be evicted never gives
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
    /// A bit for each bucket: a gate of it was moved at least once.
    stirred: Box<[AtomicU64]>,
    buckets: usize,
    locks: Box<[Mutex<Lock>]>,
    pub(crate) dirty: Dirty,
    held: AtomicU64,
    overflowed: AtomicU64,
    evicted: AtomicU64,
    turned_away: AtomicU64,
    /// What the rate of first sights is charged to.
    sights: AtomicU64,
    /// For each bucket: calls of its keys that hold a place in flight in the shared slot.
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
    /// Newcomers start as if they had used up everything but budgets then: their past is not known.
    spent: Option<Mono>,
    /// The same of budgets.
    budgets_spent: Option<Mono>,
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
        let buckets = buckets(cells);
        let cells = buckets * WAYS;
        let kept = Arc::new(Kept::default());
        let lock =
            || Mutex::new(Lock { kept: Arc::clone(&kept), spent: None, budgets_spent: None });
        Table {
            lines: (0..=cells / LINE).map(|_| Line::new()).collect(),
            gates: (0..cells).map(|_| Gate::new()).collect(),
            spent: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            stirred: (0..buckets.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            buckets,
            locks: (0..buckets).map(|_| lock()).collect(),
            dirty: Dirty::new(cells),
            held: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            sights: AtomicU64::new(0),
            flying: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
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
            let cells = (bucket * WAYS..(bucket + 1) * WAYS)
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

    /// A slot's gate as it stands. While no gate of its bucket was ever moved, none is read.
    #[inline]
    pub(crate) fn word(&self, cell: usize) -> Option<Word> {
        if self.is_stirred(cell) {
            Some(self.gates.get(cell)?.word())
        } else {
            Some(Word::default())
        }
    }

    /// Whether a gate of a slot's bucket was ever moved.
    #[inline(always)]
    fn is_stirred(&self, cell: usize) -> bool {
        let bucket = cell / WAYS;
        // ordering: relaxed. Who moves a gate stirs its bucket before, so that after a kill returned every later look sees
        // both; the last look orders its loads after its mark by a fence of its own, as the killer does its stores.
        let stirred = self.stirred.get(bucket / 64).map(|word| word.load(Ordering::Relaxed));
        stirred.is_some_and(|stirred| stirred >> (bucket % 64) & 1 == 1)
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

    /// Says that a gate of a slot's bucket is about to move.
    fn stir(&self, cell: usize) {
        let bucket = cell / WAYS;
        let bit = 1 << (bucket % 64);
        if let Some(word) = self.stirred.get(bucket / 64)
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

    /// A known key's slot with its inline word; `None` if it has none, or if a gate of its bucket was ever moved.
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
        for step in 0..WAYS / LINE {
            let line = self.read(first ^ step)?;
            if let Some(way) = line.way_of(key) {
                return Some(line.at * LINE + way);
            }
            if line.has_room() {
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
        let lock = self.locks.get(self.bucket_of(key))?.lock();
        if let Some(cell) = self.find(key) {
            return Some(cell);
        }
        let room = self.room(key, &lock, now);
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
        let lock = self.locks.get(self.bucket_of(key))?.lock();
        if let Some(cell) = self.find(key) {
            return Some(Foreseen::Known(cell));
        }
        let cell = self.room(key, &lock, now)?;
        let sights = Row { head: &self.sights, rest: &[] };
        if lock.kept.newcomers.is_some_and(|limit| sights.peek(limit, 1, now).is_err()) {
            return None;
        }
        let word = self.word(cell).unwrap_or_default();
        // No rule matters to a reset.
        let rule = TripRule::new(Recover::default());
        let epoch = word.step(Input::Reset, &rule, now).unwrap_or(word).epoch();
        let (spent, budgets_spent) = (lock.spent, lock.budgets_spent);
        Some(Foreseen::Newcomer(cell, Newcomer { epoch, spent, budgets_spent }))
    }

    /// Charges a call of a key without a slot to the shared one; `charge` says whether it took a place in flight there. What the
    /// call takes, its key must not have again of its own as soon as there is a slot. A call that is refused takes
    /// nothing, and marks nothing: a flood spends no more buckets than the shared slot admits calls.
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
        let bucket = self.bucket_of(key);
        let (Some(lock), Some(flying)) = (self.locks.get(bucket), self.flying.get(bucket)) else {
            return Ok(charge());
        };
        let mut lock = lock.lock();
        if let Some(cell) = self.find(key) {
            return Err(cell);
        }
        let charged = charge();
        if let Ok(flies) = charged {
            lock.spend(now);
            // ordering: relaxed, for whoever gives slots away holds this lock.
            flying.fetch_add(u64::from(flies), Ordering::Relaxed);
        }
        Ok(charged)
    }

    /// A call that took a place in flight in the shared slot gave it back.
    pub(crate) fn land(&self, key: KeyHash) {
        if let Some(flying) = self.flying.get(self.bucket_of(key)) {
            // ordering: release, so that who sees none in flight sees their places given back.
            flying.fetch_sub(1, Ordering::Release);
        }
    }

    /// A slot that a key without one may have: an empty one or an idle one. While calls of its bucket hold places in flight
    /// in the shared slot there is none: some of them may be the key's own, which it would have twice.
    fn room(&self, key: KeyHash, lock: &Lock, now: Mono) -> Option<usize> {
        // ordering: acquire, to pair with the release of the call that ended last.
        let flying = self.flying.get(self.bucket_of(key))?.load(Ordering::Acquire);
        let idle = || self.idle(key, OPEN, &lock.kept, now);
        if flying > 0 { None } else { self.empty(key, OPEN).or_else(idle) }
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
        let lock = self.locks.get(self.bucket_of(key))?.lock();
        let cell = self.find(key).or_else(|| {
            let cell = self.room(key, &lock, now)?;
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

    /// From now on keys that have no slot yet (those of one key's bucket, or all) start as if they had used up everything by
    /// now: of their past nothing is known. Budgets only if told so.
    pub(crate) fn spend_newcomers(&self, of: Option<KeyHash>, budgets: bool, now: Mono) {
        let one = of.map(|key| self.bucket_of(key));
        let (from, many) = one.map_or((0, self.locks.len()), |bucket| (bucket, 1));
        for lock in self.locks.iter().skip(from).take(many) {
            let mut lock = lock.lock();
            lock.spent = lock.spent.max(Some(now));
            if budgets {
                lock.budgets_spent = lock.budgets_spent.max(Some(now));
            }
        }
    }

    /// Spends what every known key has, and what is shared; budgets only if told so.
    pub(crate) fn spend_known(&self, budgets: bool, now: Mono) {
        let at = (Some(now), budgets.then_some(now));
        let mut kept = None;
        for (bucket, lock) in self.locks.iter().enumerate() {
            let lock = lock.lock();
            for cell in bucket * WAYS..(bucket + 1) * WAYS {
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
                let room = self.empty(key, OPEN);
                let room = room.or_else(|| self.idle(key, WAYS, &lock.kept, now));
                let room = room.or_else(|| self.empty(key, WAYS));
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
        // Eight lines at most, so this fits.
        let low = usize::try_from(key.as_u64() % LINES).unwrap_or(0);
        self.bucket_of(key) * (WAYS / LINE) + low
    }

    #[inline(always)]
    fn bucket_of(&self, key: KeyHash) -> usize {
        let wide = u128::from(key.as_u64()) * (self.buckets as u128);
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// The slots of a key's bucket, in the order of its scan: line by line, a neighbour first, since the processor fetches lines by
    /// twos. The slots kept for orders, each the last of every fourth line, come when all others have.
    fn ways(&self, key: KeyHash) -> impl DoubleEndedIterator<Item = usize> {
        let line = self.line_of(key);
        let (bucket, line) = (line / (WAYS / LINE) * WAYS, line % (WAYS / LINE));
        let ways = (0..WAYS).map(move |step| ((step / LINE) ^ line) * LINE + step % LINE);
        let open = ways.clone().filter(|&way| !is_kept(way));
        open.chain(ways.filter(|&way| is_kept(way))).map(move |way| bucket + way)
    }

    /// The slot that a key has if it was free when the key was first seen. Who keeps more for a slot may so ask for it before the
    /// slot is read.
    #[inline(always)]
    pub(crate) fn likely(&self, key: KeyHash) -> usize {
        let way = usize::try_from(key.as_u64() / LINES % CHOICES).unwrap_or(0);
        self.line_of(key) * LINE + way
    }

    /// The likely slot if it is empty, else the first empty one among so many slots of a key's scan.
    fn empty(&self, key: KeyHash, among: usize) -> Option<usize> {
        let likely = self.likely(key);
        if !is_kept(likely % WAYS) && self.tag(likely).is_none() {
            return Some(likely);
        }
        self.ways(key).take(among).find(|&cell| self.tag(cell).is_none())
    }

    /// Of the idle ones among so many slots the one whose learned past weighs least.
    fn idle(&self, key: KeyHash, among: usize, kept: &Kept, now: Mono) -> Option<usize> {
        let is_idle = |&cell: &usize| self.tag(cell).is_some() && self.is_idle(cell, kept, now);
        let weight = |&cell: &usize| -> u64 {
            kept.tallies.iter().map(|tally| tally.weight_of(cell)).fold(0, u64::saturating_add)
        };
        self.ways(key).take(among).filter(is_idle).min_by_key(weight)
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
        // Strikes and overrides of the key that is evicted are not the newcomer's; its debts stay, which is
        // stricter.
        let _ = gate.step(Input::Reset, rule, now);
        // ordering: relaxed, for a count stands alone.
        self.evicted.fetch_add(1, Ordering::Relaxed);
        lock.spend(now);
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
        let note = self.spend(cell, &lock.kept, (lock.spent, lock.budgets_spent), now);
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
    fn has_room(&self) -> bool {
        (self.at * LINE..).zip(self.tags).any(|(cell, tag)| tag == EMPTY && !is_kept(cell % WAYS))
    }
}

impl Lock {
    /// Newcomers start spent from now on.
    fn spend(&mut self, now: Mono) {
        self.spent = self.spent.max(Some(now));
        self.budgets_spent = self.budgets_spent.max(Some(now));
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

/// Whether a slot of a bucket is kept for orders.
const fn is_kept(way: usize) -> bool {
    OPEN < WAYS && way % (4 * LINE) == 4 * LINE - 1
}

/// The slots of the bucket that a slot is in: a key's are always in the same.
pub(crate) const fn bucket_around(cell: usize) -> std::ops::Range<usize> {
    let first = cell / WAYS * WAYS;
    first..first + WAYS
}

/// Slots of a table for so many keys.
pub(crate) fn cells_for(keys: usize) -> usize {
    buckets(keys) * WAYS
}

fn buckets(keys: usize) -> usize {
    keys.div_ceil(WAYS).max(1)
}

/// Limits of one word each whose memory stands in the slots themselves.
pub(crate) const INLINE: usize = 1;
/// Slots in a bucket; two in models, which must try everything.
#[cfg(not(loom))]
const WAYS: usize = 32;
#[cfg(loom)]
const WAYS: usize = 2;
/// Slots of a bucket that any key may claim; the others are kept for orders.
#[cfg(not(loom))]
const OPEN: usize = 30;
#[cfg(loom)]
const OPEN: usize = 2;
/// Slots in a line.
#[cfg(not(loom))]
const LINE: usize = 4;
#[cfg(loom)]
const LINE: usize = 2;
/// Lines in a bucket.
const LINES: u64 = (WAYS / LINE) as u64;
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
    assert!(size_of::<Line>() == 64 && WAYS.is_multiple_of(LINE), "four slots fill a line");

#[cfg(all(test, loom))]
mod models {
    use super::{Charged, Kept, Ordered, Rows, Table, Which};
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
    use super::{Ordered, Table, Which, cells_for};
    use crate::facts::KillLevel;
    use crate::gate::{Input, TripRule};
    use crate::policy::Recover;
    use crate::scope::KeyHash;
    use crate::time::Mono;

    /// Goal: tables round up to whole buckets, and spread keys over all of them.
    #[test]
    fn keys_spread_over_whole_buckets() {
        assert_eq!([0, 1, 32, 33].map(cells_for), [32, 32, 32, 64]);
        let table = Table::new(64 * 32);
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
}
