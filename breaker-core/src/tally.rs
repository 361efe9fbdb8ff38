//! The counts that detectors need of each scope or key, in atomic words, and the hooks on them; it learns nothing and moves no gate.
//!
//! A hook is a few additions to words of its row, and a look at the bounds that the sweeper wrote last: so a
//! surge is found at the very call that exceeds its bound. Whoever finds it takes the bound away in one
//! swap: one episode, one finding. What is found goes into a small box as well, for the sweeper to tell.

use std::sync::Arc;

use prefetch_index::prefetch_index;

use crate::counts::Ended;
use crate::detect::halves::Halves;
use crate::detect::judge::{Facts, Judge, Orders, Sight};
use crate::detect::latency::{Latencies, deviation, steps};
use crate::detect::ratio::{Settled, ShareOf};
use crate::detect::repeat::SLOTS;
use crate::detect::short::Short;
use crate::detect::surge::{FORMS, bound_of, halves_at};
use crate::detect::{Compiled, Found, OnFind, Sighting, wide};
use crate::facts::Outcome;
use crate::scope::KeyHash;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::time::{Mono, Span};

/// The counts of one scope, or of all cells of a dimension and the shared row.
pub(crate) struct Tally {
    rules: Arc<Compiled>,
    /// What its scope had counted when it was made.
    since: Ended,
    /// Whether a sweeper counts on from there.
    since_taken: AtomicBool,
    layout: Layout,
    /// What calls count in, a row after the other.
    hot: Sheet,
    /// What few calls touch, and what only named scopes have.
    beside: Sheet,
    /// One bit for each row that counted since somebody last asked.
    touched: Box<[AtomicU64]>,
    /// Where the word of total calls of the repeat rule turns.
    repeats: Halves,
    /// From when on a fault's class that was never seen is news.
    novel_from: AtomicU64,
    found: Box<[Slip]>,
    /// Findings that found no slip.
    missed: AtomicU64,
    /// Trips by learned bounds that calls may still make.
    cap: Cap,
}

/// How one call went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    pub(crate) outcome: Outcome,
    pub(crate) latency: Option<Span>,
    /// The caller's number for the kind of fault.
    pub(crate) class: u16,
}

/// How many trips by learned bounds one area may still have.
pub(crate) struct Cap {
    taken: AtomicU64,
    allowed: AtomicU64,
}

/// Rows of words of which none lies across the border of two pairs of cache lines: a row is fetched at once, and a large one
/// shares its lines with no other.
struct Sheet {
    pairs: Box<[Pair]>,
    /// Words of a row.
    words: usize,
    /// Words from one row to the next, as a power of two: at most those of a pair.
    stride: u32,
}

/// Two cache lines, which most processors fetch together.
#[repr(align(128))]
struct Pair([AtomicU64; PAIR]);

/// Where each word stands in its row; [`ABSENT`] where no rule needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    windows: usize,
    bounds: usize,
    peaks: usize,
    /// All calls of the repeat rule's window, where no other word says that.
    total: usize,
    slots: usize,
    outcomes: usize,
    streak: usize,
    hot: usize,
    /// Beside: written by the sweeper; zero says that the row was cleared since.
    mark: usize,
    slow: usize,
    location: usize,
    novel: usize,
    leader: usize,
    beside: usize,
}

/// A place for one finding, filled by whoever finds and emptied by the sweeper.
struct Slip {
    state: AtomicU64,
    words: [AtomicU64; 6],
}

impl Tally {
    /// Memory for one named scope.
    pub(crate) fn for_scope(rules: Arc<Compiled>) -> Tally {
        Tally::new(rules, 1, true)
    }

    /// Memory for so many cells, and the row that the others share.
    pub(crate) fn for_cells(rules: Arc<Compiled>, cells: usize) -> Tally {
        Tally::new(rules, cells.saturating_add(1), false)
    }

    fn new(rules: Arc<Compiled>, rows: usize, named: bool) -> Tally {
        let layout = Layout::of(&rules, named);
        let zeros = |words: usize| (0..words).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>();
        let window = rules.repeat.map_or(Span::from_secs(60), |repeat| repeat.rule.window);
        Tally {
            layout,
            hot: Sheet::new(rows, layout.hot),
            beside: Sheet::new(rows, layout.beside),
            touched: zeros(rows.div_ceil(64)),
            repeats: Halves::new(window, 22),
            novel_from: AtomicU64::new(u64::MAX),
            found: (0..rows.clamp(4, SLIPS)).map(|_| Slip::new()).collect(),
            missed: AtomicU64::new(0),
            cap: Cap::new(),
            rules,
            since: Ended::default(),
            since_taken: AtomicBool::new(false),
        }
    }

    /// Whether a call is asked about before it passes, or at least counted.
    pub(crate) fn hears_offers(&self) -> bool {
        self.layout.windows != ABSENT || self.rules.repeat.is_some()
    }

    /// The rules it was made for, which its judge has too.
    pub(crate) const fn rules(&self) -> &Arc<Compiled> {
        &self.rules
    }

    /// Bytes of all its words and slips, and of itself; not of the rules, which are the policy's.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let pairs = self.hot.pairs.len() + self.beside.pairs.len();
        let words = pairs * PAIR + self.touched.len();
        size_of::<Tally>() + words * 8 + self.found.len() * size_of::<Slip>()
    }

    /// Bytes of one row.
    #[cfg(test)]
    pub(crate) fn row_bytes(&self) -> usize {
        (8 << self.hot.stride) + (8 << self.beside.stride)
    }

    /// Asks for a row's cache lines, without waiting for them.
    #[inline]
    pub(crate) fn fetch(&self, row: usize) {
        self.hot.fetch(row);
        if self.layout.slow != ABSENT {
            self.beside.fetch(row);
        }
    }

    /// Whether one more call at `now` would be found by nothing, by a look.
    pub(crate) fn is_calm(&self, row: usize, print: Option<KeyHash>, now: Mono) -> bool {
        let words = self.hot.row(row);
        // ordering: relaxed throughout, for a look.
        let load = |at: usize| words.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let bounds = load(self.layout.bounds);
        if bounds != 0 {
            let windows = FORMS.into_iter().zip(Short::unpack(bounds)).enumerate();
            for (index, (form, bound)) in windows {
                if form.count(load(self.layout.windows + index), now) >= bound.floor() {
                    return false;
                }
            }
        }
        let (Some(repeat), Some(print)) = (&self.rules.repeat, print) else { return true };
        let slots = std::array::from_fn(|slot| load(self.layout.slots + slot));
        let half = self.repeats.number(now);
        let done = repeat.rule.slot(&slots, print.as_u64(), half);
        let (form, at) = self.layout.total_of(self.repeats);
        let total = form.count_in(load(at), half) + 1;
        repeat.rule.judge(done.count, total).is_none()
    }

    /// Counts one call that nothing narrower refused, and what it says if that is known; the first finding that trips.
    #[inline]
    pub(crate) fn hears(&self, row: usize, print: Option<KeyHash>, now: Mono) -> Option<Found> {
        let surged = self.offered(row, now);
        let repeated = match print {
            Some(print) => self.repeated(row, print.as_u64(), now),
            None => {
                self.unprinted(row, now);
                None
            }
        };
        // One that only warns hides none that trips.
        let trips = |found: &Found| found.on_find == OnFind::Trip;
        repeated.filter(trips).or(surged.filter(trips))
    }

    /// Counts one call that nothing narrower refused; a finding, if it is one too many.
    pub(crate) fn offered(&self, row: usize, now: Mono) -> Option<Found> {
        if self.layout.windows == ABSENT {
            return None;
        }
        // They stand first in each row that has them.
        let [one, ten, minute, five, bounds, peaks, ..] = self.hot.row(row) else { return None };
        // ordering: relaxed, for a bound stands alone: a call that sees the one before is judged by that.
        let bounds = bounds.load(Ordering::Relaxed);
        let ([a, b, c, d], [at_a, at_b, at_c, at_d]) = (FORMS, halves_at(now));
        // Each by itself, so that its form is known when this is compiled.
        let counts = [
            add_noting(a, one, at_a, peaks, 0),
            add_noting(b, ten, at_b, peaks, 1),
            add_noting(c, minute, at_c, peaks, 2),
            add_noting(d, five, at_d, peaks, 3),
        ];
        self.touch(row);
        if bounds == 0 {
            // Nobody has written any.
            return None;
        }
        let mut windows = counts.into_iter().zip(Short::unpack(bounds)).enumerate();
        let (index, (count, bound)) = windows.find(|(_, (count, bound))| *count > bound.floor())?;
        self.surged(row, bounds, (index, count, bound))
    }

    /// Takes the bound away that was exceeded; a finding for the one call that did.
    fn surged(
        &self,
        row: usize,
        bounds: u64,
        (index, count, bound): (usize, u64, Short),
    ) -> Option<Found> {
        let surge = self.rules.surge.as_ref()?;
        let ceilings = surge.rule.ceilings();
        let learned = ceilings.get(index).is_some_and(|&ceiling| bound < ceiling);
        let left = if learned { ceilings } else { [Short::NONE; 4] };
        // ordering: relaxed, for a bound stands alone. Who loses the race leaves the finding to the winner.
        let won = self.hot.row(row).get(self.layout.bounds)?.compare_exchange(
            bounds,
            Short::pack(left),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        won.ok()?;
        let mut found = surge.found(Sighting {
            value: wide(count),
            bound: bound_of(bound),
            window: FORMS.get(index)?.length(),
            count,
            of: count,
            learned,
        });
        if learned && found.on_find == OnFind::Trip && !self.cap.take() {
            found.on_find = OnFind::Warn;
        }
        self.tell(row, &found);
        Some(found)
    }

    /// What stands above the trips that learned bounds make.
    pub(crate) fn cap(&self) -> &Cap {
        &self.cap
    }

    /// Calls in a window (0 to 3: of 1, 10, 60 and 300 s) at `now`.
    pub(crate) fn count(&self, row: usize, window: usize, now: Mono) -> u64 {
        if self.layout.windows == ABSENT || window >= FORMS.len() {
            return 0;
        }
        match (FORMS.get(window), self.hot.row(row).get(self.layout.windows + window)) {
            // ordering: relaxed, for a count stands alone.
            (Some(form), Some(word)) => form.count(word.load(Ordering::Relaxed), now),
            _ => 0,
        }
    }

    /// Counts one call of which nobody said what it says: it is one of those that a share is a share of.
    fn unprinted(&self, row: usize, now: Mono) {
        if let Some(total) = self.hot.row(row).get(self.layout.total) {
            add(self.repeats, total, self.repeats.number(now));
        }
    }

    /// Counts one call by its fingerprint; a finding, if it is repeated too often.
    pub(crate) fn repeated(&self, row: usize, fingerprint: u64, now: Mono) -> Option<Found> {
        let repeat = self.rules.repeat.as_ref()?;
        let words = self.hot.row(row);
        let (total, half) = if self.layout.total == ABSENT {
            let (form, at) = self.layout.total_of(self.repeats);
            // The same window, whose halves need no division by a number that is not known before.
            let [_, _, half, _] = halves_at(now);
            // ordering: relaxed, for a count stands alone. This call was counted there when it was offered.
            (form.count_in(words.get(at)?.load(Ordering::Relaxed), half), half)
        } else {
            let half = self.repeats.number(now);
            (add(self.repeats, words.get(self.layout.total)?, half).0, half)
        };
        let slots = words.get(self.layout.slots..self.layout.slots + SLOTS)?;
        let mut seen = [0; SLOTS];
        for (seen, slot) in seen.iter_mut().zip(slots) {
            // ordering: relaxed, for each slot stands alone.
            *seen = slot.load(Ordering::Relaxed);
        }
        // Bounded: who loses the slot so often to others was one call among many of theirs.
        for _ in 0..SLOT_TRIES {
            let done = repeat.rule.slot(&seen, fingerprint, half);
            let sighting = repeat.rule.judge(done.count, total);
            let (slot, before) = (slots.get(done.slot)?, seen.get_mut(done.slot)?);
            // A repetition that was found counts anew from nothing.
            let after = if sighting.is_some() { 0 } else { done.word };
            // ordering: relaxed, for each slot stands alone.
            match slot.compare_exchange(*before, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let found = repeat.found(sighting?);
                    self.touch(row);
                    self.tell(row, &found);
                    return Some(found);
                }
                Err(now_there) => *before = now_there,
            }
        }
        None
    }

    /// Counts how one call went; a finding, if it is a fault too many in a row, or of a class never seen.
    pub(crate) fn finished(&self, row: usize, finish: &Finish, now: Mono) -> Option<Found> {
        let words = self.hot.row(row);
        let (fault, slow) = (finish.outcome == Outcome::Fault, finish.outcome == Outcome::Slow);
        if let Some(outcomes) = words.get(self.layout.outcomes) {
            // ordering: relaxed, for counts stand alone; the sweeper takes them in one swap.
            outcomes.fetch_add(1 << HALF_WORD | u64::from(fault), Ordering::Relaxed);
            self.touch(row);
        }
        self.timed(row, finish.latency, slow);
        let found = self
            .in_a_row(words, fault, slow)
            .or_else(|| fault.then(|| self.of_class(row, finish.class, now))?)?;
        self.tell(row, &found);
        Some(found)
    }

    /// The same tally for a scope that has counted this already.
    pub(crate) fn counting_from(self, since: Ended) -> Tally {
        Tally { since, ..self }
    }

    /// What its scope had counted when it was made, for the first sweeper that looks. A later one, or one that looks again after a
    /// policy without detectors, does not know what was judged since: it begins with what is counted by then.
    pub(crate) fn take_since(&self) -> Option<Ended> {
        // ordering: relaxed, for the flag stands alone.
        (!self.since_taken.swap(true, Ordering::Relaxed)).then_some(self.since)
    }

    /// Whether all that it wants to know of a call's end is the outcome: then its scope's counts can tell it before each look,
    /// and no call needs to.
    pub(crate) fn is_fed_by_counts(&self) -> bool {
        let Compiled { latency, streak, novel, .. } = &*self.rules;
        latency.is_none() && streak.is_none() && novel.is_none()
    }

    /// Adds what calls became since the last look, as their scope counted it.
    pub(crate) fn feed(&self, row: usize, ended: u64, faults: u64, slow: u64) {
        let most = |count: u64| count.min(MOST_FED);
        if let Some(outcomes) = self.hot.row(row).get(self.layout.outcomes) {
            let add = most(ended) << HALF_WORD | most(faults);
            // ordering: relaxed, for counts stand alone; the sweeper alone takes them.
            outcomes.fetch_add(add, Ordering::Relaxed);
        }
        if let Some(sizes) = self.beside.row(row).get(self.layout.slow) {
            // ordering: relaxed, as above.
            sizes.fetch_add(most(slow) << SUM_BITS, Ordering::Relaxed);
        }
    }

    fn timed(&self, row: usize, latency: Option<Span>, slow: bool) {
        if self.layout.slow == ABSENT || !slow && self.layout.location == ABSENT {
            return;
        }
        let words = self.beside.row(row);
        let Some(sizes) = words.get(self.layout.slow) else { return };
        let mut step_and_size = (0, 0);
        let known = words.get(self.layout.location).zip(words.get(self.layout.location + 1));
        if let (Some((location, sums)), Some(latency)) = (known, latency) {
            // ordering: relaxed, for a location stands alone.
            let mut at = location.load(Ordering::Relaxed);
            if at == 0 {
                // The first latency is where all others are measured from, until the sweeper knows better.
                let own = steps(latency) + 1;
                // ordering: relaxed, as above.
                at = match location.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => own,
                    Err(theirs) => theirs,
                };
            }
            step_and_size = deviation(latency, at.saturating_sub(1));
            // ordering: relaxed, for sums stand alone; the sweeper takes them in one swap.
            sums.fetch_add(1 << SUM_BITS | step_and_size.0, Ordering::Relaxed);
        }
        let add = u64::from(slow) << SUM_BITS | step_and_size.1;
        if add != 0 {
            // ordering: relaxed, as above.
            sizes.fetch_add(add, Ordering::Relaxed);
        }
    }

    fn in_a_row(&self, words: &[AtomicU64], fault: bool, slow: bool) -> Option<Found> {
        let streak = self.rules.streak.as_ref()?;
        let word = words.get(self.layout.streak)?;
        let row = count_streak::<SOUND>(word, fault || slow && streak.rule.or_slow);
        let bound = u64::from(streak.rule.count).max(1);
        // Each further row as long is found again: what was found may have had no leave to trip.
        (row > 0 && row.is_multiple_of(bound)).then(|| {
            streak.found(Sighting {
                value: wide(row),
                bound: wide(bound),
                window: Span::ZERO,
                count: row,
                of: row,
                learned: false,
            })
        })
    }

    fn of_class(&self, row: usize, class: u16, now: Mono) -> Option<Found> {
        let novel = self.rules.novel.as_ref()?;
        let words = self.beside.row(row);
        let [low, _] = class.to_le_bytes();
        let word = words.get(self.layout.novel + usize::from(low / 64))?;
        let bit = 1 << (low % 64);
        // ordering: relaxed, for a bit stands alone. Looked at first: a class that is known is only read.
        if word.load(Ordering::Relaxed) & bit != 0
            || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
        {
            return None;
        }
        // ordering: relaxed, for the instant stands alone.
        if now.as_nanos() < self.novel_from.load(Ordering::Relaxed) {
            return None;
        }
        Some(novel.found(Sighting {
            value: f64::from(class),
            bound: 0.0,
            window: Span::ZERO,
            count: 1,
            of: 1,
            learned: false,
        }))
    }

    /// Notes whose call it was. Who makes over half of the calls will be the leader (Boyer and Moore's majority
    /// vote, with few votes, so that a new one is soon seen).
    pub(crate) fn voted(&self, row: usize, key: KeyHash) {
        let words = self.beside.row(row);
        let (Some(leader), Some(votes)) =
            (words.get(self.layout.leader), words.get(self.layout.leader + 1))
        else {
            return;
        };
        // ordering: relaxed throughout: the two words may disagree for a moment. A leader is a guess, and
        // whoever asks for it looks at its own count before anything is done to it.
        let count = votes.load(Ordering::Relaxed);
        if leader.load(Ordering::Relaxed) == key.as_u64() {
            if count < MOST_VOTES {
                // A vote that another thread's overwrites is one of many.
                votes.store(count + 1, Ordering::Relaxed);
            }
        } else if count == 0 {
            leader.store(key.as_u64(), Ordering::Relaxed);
            votes.store(1, Ordering::Relaxed);
        } else {
            votes.store(count - 1, Ordering::Relaxed);
        }
    }

    /// Who probably makes over half of the calls, if anybody does.
    pub(crate) fn leader(&self, row: usize) -> Option<KeyHash> {
        // ordering: relaxed, see `voted`.
        match self.beside.row(row).get(self.layout.leader)?.load(Ordering::Relaxed) {
            0 => None,
            hash => Some(KeyHash::new(hash)),
        }
    }

    /// Makes a row as good as new for another key; under the claim's lock.
    pub(crate) fn clear(&self, row: usize) {
        for word in self.hot.row(row).iter().chain(self.beside.row(row)) {
            // ordering: relaxed, for the words stand alone. A call of the last tenant that is still on its way
            // counts once for the newcomer.
            word.store(0, Ordering::Relaxed);
        }
    }

    /// How much would be forgotten with a row: the largest count of a minute that is believed. Of idle
    /// candidates the lightest goes, never just the oldest.
    pub(crate) fn weight_of(&self, row: usize) -> u64 {
        // ordering: relaxed, for a weight stands alone.
        self.beside.row(row).get(self.layout.mark).map_or(0, |mark| mark.load(Ordering::Relaxed))
    }

    /// Takes the rows that counted, of one word.
    pub(crate) fn take_touched(&self, word: usize) -> u64 {
        let Some(word) = self.touched.get(word) else { return 0 };
        // ordering: relaxed look first, so that a quiet house is only read; acquire to see the counts that the
        // bits speak of, release to keep the others' marks ordered through this swap.
        if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) }
    }

    /// Says that a row is to be looked at (again).
    pub(crate) fn touch(&self, row: usize) {
        let Some(word) = self.touched.get(row / 64) else { return };
        let bit = 1 << (row % 64);
        // ordering: relaxed look first, so that a busy row is only read. A call may so take a bit for set that
        // was just taken: it is seen with the row's next call.
        if word.load(Ordering::Relaxed) & bit == 0 {
            // ordering: release, so that whoever takes the bit sees what was counted.
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Takes what was found since, with its row.
    pub(crate) fn take_found(&self, out: &mut Vec<(usize, Found)>) {
        out.extend(self.found.iter().filter_map(Slip::take));
    }

    /// Findings that found no slip: nothing but their telling is lost.
    pub(crate) fn missed(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.missed.load(Ordering::Relaxed)
    }

    /// Tells what calls found since, looks at the rows that counted since, and judges them; what is found goes to
    /// `out` with its row, and the caller trips or tells. For the one sweeper, each 20 ms or when nudged.
    ///
    /// The first so many as it returns were found by calls, which tripped what was to be tripped; the rest by looks. At most `budget` rows are looked at, in turn; a row that was just looked at waits, unless its gate moved. Whoever moves
    /// a gate touches its row.
    pub(crate) fn sweep(
        &self,
        judge: &mut Judge,
        budget: usize,
        mut facts: impl FnMut(usize) -> Facts,
        now: Mono,
        out: &mut Vec<(usize, Found)>,
    ) -> usize {
        let told = out.len();
        self.take_found(out);
        let mut kept = told;
        for at in told..out.len() {
            let Some(&(row, found)) = out.get(at) else { break };
            if judge.told(row, &found, now) {
                out.swap(kept, at);
                kept += 1;
            }
        }
        out.truncate(kept);
        if let Some(from) = judge.novel_from() {
            self.set_novel_from(from);
        }
        if judge.is_of_scope() {
            self.look(judge, 0, &facts(0), now, out);
            return kept;
        }
        let mut left = budget;
        for _ in 0..self.touched.len() {
            if left == 0 {
                break;
            }
            let word = judge.next_of(self.touched.len());
            let mut bits = self.take_touched(word);
            while bits != 0 {
                let row = word * 64 + usize::try_from(bits.trailing_zeros()).unwrap_or(0);
                bits &= bits - 1;
                left = left.saturating_sub(1);
                if !judge.knows(row) {
                    continue;
                }
                let facts = facts(row);
                if judge.is_due(row, &facts, now) {
                    self.look(judge, row, &facts, now, out);
                } else {
                    self.touch(row);
                }
            }
        }
        kept
    }

    /// Says that a row's memory is its own: what was learned of it comes from elsewhere.
    pub(crate) fn keep(&self, row: usize) {
        if let Some(mark) = self.beside.row(row).get(self.layout.mark) {
            // ordering: relaxed, for a weight stands alone.
            mark.store(1, Ordering::Relaxed);
        }
    }

    /// One look at one row.
    pub(crate) fn look(
        &self,
        judge: &mut Judge,
        row: usize,
        facts: &Facts,
        now: Mono,
        out: &mut Vec<(usize, Found)>,
    ) {
        let Some(elapsed) = judge.elapsed(row, now) else { return };
        let sight = self.sight(row, elapsed, now);
        let mut found = Vec::new();
        if let Some(orders) = judge.look(row, &sight, facts, now, &mut found) {
            self.obey(row, &sight, &orders);
        }
        out.extend(found.into_iter().map(|found| (row, found)));
    }

    /// Reads a row for its judge, and takes what is to be counted once. For the one sweeper.
    pub(crate) fn sight(&self, row: usize, elapsed: f64, now: Mono) -> Sight {
        let (hot, beside) = (self.hot.row(row), self.beside.row(row));
        // ordering: relaxed throughout: each word stands alone, and what one look misses the next has.
        let load = |words: &[AtomicU64], at: usize| {
            words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
        };
        let take = |words: &[AtomicU64], at: usize| match words.get(at) {
            Some(word) if word.load(Ordering::Relaxed) != 0 => word.swap(0, Ordering::Relaxed),
            _ => 0,
        };
        let at = self.layout;
        let mut sight = Sight { elapsed, bounds: load(hot, at.bounds), ..Sight::default() };
        sight.is_new = load(beside, at.mark) == 0;
        if at.windows != ABSENT {
            for (index, (form, count)) in FORMS.into_iter().zip(&mut sight.counts).enumerate() {
                let word = load(hot, at.windows + index);
                *count = form.count(word, now);
                if index == 0 {
                    sight.idle = form.idle(word, now);
                }
                if index == 3 {
                    (sight.last, sight.current) = form.parts(word, now);
                }
            }
            sight.peaks = Short::unpack(take(hot, at.peaks));
        }
        let (outcomes, sums, sizes) =
            (take(hot, at.outcomes), take(beside, at.sums()), take(beside, at.slow));
        let low = (1 << SUM_BITS) - 1;
        sight.settled = Settled {
            finished: outcomes >> HALF_WORD,
            faults: outcomes & ((1 << HALF_WORD) - 1),
            slow: sizes >> SUM_BITS,
            elapsed,
        };
        sight.latencies = Latencies {
            count: sums >> SUM_BITS,
            steps: sums & low,
            sizes: sizes & low,
            location: load(beside, at.location).saturating_sub(1),
        };
        sight
    }

    /// Writes what a judge decided of a row. For the one sweeper.
    pub(crate) fn obey(&self, row: usize, seen: &Sight, orders: &Orders) {
        let (hot, beside) = (self.hot.row(row), self.beside.row(row));
        let at = self.layout;
        let bounds = Short::pack(orders.bounds);
        if let Some(word) = hot.get(at.bounds)
            && bounds != seen.bounds
        {
            // ordering: relaxed, for a bound stands alone. If a call took the bound away meanwhile, its finding
            // comes first.
            let _ =
                word.compare_exchange(seen.bounds, bounds, Ordering::Relaxed, Ordering::Relaxed);
        }
        if let Some(mark) = beside.get(at.mark) {
            // ordering: relaxed, for a weight stands alone.
            mark.store(u64::from(orders.weight).max(1), Ordering::Relaxed);
        }
        if let (Some(word), Some(location)) = (beside.get(at.location), orders.location) {
            // ordering: relaxed, for a location stands alone.
            word.store(location.saturating_add(1), Ordering::Relaxed);
        }
        if orders.begin_anew {
            let windows = (0..FORMS.len()).map(|index| at.windows + index);
            let slots = (0..SLOTS).map(|slot| at.slots + slot);
            for word in windows.chain(slots).filter_map(|at| hot.get(at)) {
                // ordering: relaxed, for a count stands alone.
                word.store(0, Ordering::Relaxed);
            }
            if let Some(streak) = hot.get(at.streak) {
                // ordering: relaxed, for a count stands alone.
                streak.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Says from when on a class of fault that was never seen is news.
    pub(crate) fn set_novel_from(&self, at: Mono) {
        // ordering: relaxed, for the instant stands alone.
        self.novel_from.store(at.as_nanos(), Ordering::Relaxed);
    }

    /// The classes of fault that a row has seen, one bit each.
    pub(crate) fn classes(&self, row: usize) -> [u64; 4] {
        let words = self.beside.row(row);
        std::array::from_fn(|index| {
            // ordering: relaxed, for a bit stands alone.
            words.get(self.layout.novel + index).map_or(0, |word| word.load(Ordering::Relaxed))
        })
    }

    /// Adds classes that were seen before a restart.
    pub(crate) fn know_classes(&self, row: usize, classes: [u64; 4]) {
        let words = self.beside.row(row);
        for (index, classes) in classes.into_iter().enumerate() {
            if let Some(word) = words.get(self.layout.novel + index) {
                // ordering: relaxed, for a bit stands alone.
                word.fetch_or(classes, Ordering::Relaxed);
            }
        }
    }

    fn tell(&self, row: usize, found: &Found) {
        if !self.found.iter().any(|slip| slip.fill(row, found)) {
            // ordering: relaxed, for a count stands alone.
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Sheet {
    /// So many rows of so many words.
    fn new(rows: usize, words: usize) -> Sheet {
        let stride = words.next_power_of_two().min(PAIR).trailing_zeros();
        let pairs = if words == 0 { 0 } else { rows.div_ceil(PAIR >> stride) };
        let pair = || Pair(std::array::from_fn(|_| AtomicU64::new(0)));
        Sheet { pairs: (0..pairs).map(|_| pair()).collect(), words, stride }
    }

    /// Asks for a row's cache lines.
    #[inline]
    fn fetch(&self, row: usize) {
        let first = row << self.stride;
        if let Some(pair) = self.pairs.get(first / PAIR) {
            for word in (first % PAIR..first % PAIR + self.words).step_by(PAIR / 2) {
                prefetch_index(&pair.0, word);
            }
        }
    }

    /// A row's words; none beyond the last pair.
    #[inline]
    fn row(&self, row: usize) -> &[AtomicU64] {
        let first = row << self.stride;
        let start = first % PAIR;
        let pair = self.pairs.get(first / PAIR);
        pair.and_then(|pair| pair.0.get(start..start + self.words)).unwrap_or(&[])
    }
}

impl Layout {
    fn of(rules: &Compiled, named: bool) -> Layout {
        let place = |words: &mut usize, count: usize, needed: bool| {
            if !needed {
                return ABSENT;
            }
            *words += count;
            *words - count
        };
        let some = !rules.is_empty();
        let surges = rules.surge.is_some() || rules.silence.is_some();
        let is_slow =
            |ruled: &crate::detect::Ruled<crate::detect::Ratio>| ruled.rule.of != ShareOf::Faults;
        let ratios = rules.ratios.iter().flatten().count() > 0;
        let slow = rules.latency.is_some() || rules.ratios.iter().flatten().any(is_slow);
        let minute = surges && rules.repeat.is_some_and(|repeat| repeat.rule.window == MINUTE);
        let (mut hot, mut beside) = (0, 0);
        Layout {
            windows: place(&mut hot, FORMS.len(), surges),
            bounds: place(&mut hot, 1, surges),
            peaks: place(&mut hot, 1, surges),
            total: place(&mut hot, 1, rules.repeat.is_some() && !minute),
            slots: place(&mut hot, SLOTS, rules.repeat.is_some()),
            outcomes: place(&mut hot, 1, rules.errors.is_some() || ratios),
            streak: place(&mut hot, 1, rules.streak.is_some()),
            mark: place(&mut beside, 1, some),
            slow: place(&mut beside, 1, slow),
            location: place(&mut beside, 2, rules.latency.is_some()),
            novel: place(&mut beside, 4, rules.novel.is_some()),
            leader: place(&mut beside, 2, named && rules.surge.is_some()),
            hot,
            beside,
        }
    }

    /// The word that says how many calls there were in the window of the repeat rule, and its form: its own, or that of the window of
    /// 60 s if it looks at as much.
    fn total_of(&self, own: Halves) -> (Halves, usize) {
        let [_, _, minute, _] = FORMS;
        if self.total == ABSENT { (minute, self.windows + 2) } else { (own, self.total) }
    }

    /// The sums of deviations stand beside the location.
    const fn sums(&self) -> usize {
        self.location + 1
    }
}

impl Slip {
    fn new() -> Slip {
        Slip { state: AtomicU64::new(EMPTY), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    fn fill(&self, row: usize, found: &Found) -> bool {
        // ordering: acquire, to come after the sweeper's last look at the words; relaxed where it is not ours.
        if self.state.compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        let row = u64::try_from(row).unwrap_or(u64::MAX) & 0xffff_ffff;
        let flags = u64::from(found.learned) | u64::from(found.on_find == OnFind::Trip) << 1;
        let values = [
            row << 32 | u64::from(found.detector) << 8 | flags,
            found.value.to_bits(),
            found.bound.to_bits(),
            found.window.as_nanos(),
            found.count,
            found.of,
        ];
        for (word, value) in self.words.iter().zip(values) {
            // ordering: relaxed, for the state publishes them.
            word.store(value, Ordering::Relaxed);
        }
        // ordering: release, so that whoever finds it full sees the words.
        self.state.store(FULL, Ordering::Release);
        true
    }

    fn take(&self) -> Option<(usize, Found)> {
        // ordering: acquire, to pair with the above.
        if self.state.load(Ordering::Acquire) != FULL {
            return None;
        }
        // ordering: relaxed, for the state publishes them.
        let [head, value, bound, window, count, of] =
            std::array::from_fn(|at| self.words.get(at).map_or(0, |w| w.load(Ordering::Relaxed)));
        // ordering: release, so that who fills it next does so after this look.
        self.state.store(EMPTY, Ordering::Release);
        let row = usize::try_from(head >> 32).ok()?;
        let found = Found {
            detector: u8::try_from(head >> 8 & 0xff).ok()?,
            on_find: if head & 2 == 0 { OnFind::Warn } else { OnFind::Trip },
            value: f64::from_bits(value),
            bound: f64::from_bits(bound),
            window: Span::from_nanos(window),
            count,
            of,
            learned: head & 1 == 1,
        };
        Some((row, found))
    }
}

impl Cap {
    /// Nothing is allowed before the sweeper has counted.
    pub(crate) fn new() -> Cap {
        Cap { taken: AtomicU64::new(0), allowed: AtomicU64::new(0) }
    }

    /// Takes leave for one trip; without it a finding is only told.
    pub(crate) fn take(&self) -> bool {
        // ordering: relaxed, for the counts stand alone.
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            // ordering: relaxed, as above.
            if taken >= self.allowed.load(Ordering::Relaxed) {
                return false;
            }
            // ordering: relaxed, as above.
            match self.taken.compare_exchange_weak(
                taken,
                taken + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                // Each retry means that another trip was allowed: there are few.
                Err(seen) => taken = seen,
            }
        }
    }

    /// Trips allowed so far.
    pub(crate) fn taken(&self) -> u64 {
        // ordering: relaxed, for a count stands alone.
        self.taken.load(Ordering::Relaxed)
    }

    /// So many may be cut off at once, and so many are. `before` is what [`Cap::taken`] said one sweep ago: a
    /// trip that was allowed since may or may not be among those that are cut off, and counts as one more.
    pub(crate) fn allow(&self, at_once: u64, cut_off: u64, before: u64) {
        let allowed = before.saturating_add(at_once.saturating_sub(cut_off));
        // ordering: relaxed, for the count stands alone.
        self.allowed.store(allowed, Ordering::Relaxed);
    }
}

/// Counts one more in a window: its count. What it was at the end of a half that ended is noted among the peaks.
#[inline(always)]
fn add_noting(form: Halves, word: &AtomicU64, half: u64, peaks: &AtomicU64, index: usize) -> u64 {
    let (count, ended) = add(form, word, half);
    if let Some(ended) = ended {
        note_peak(peaks, index, ended);
    }
    count
}

/// Raises a window's peak to what it counted at the end of a half.
#[inline(never)]
fn note_peak(word: &AtomicU64, index: usize, ended: u64) {
    // ordering: relaxed, for peaks stand alone.
    let mut before = word.load(Ordering::Relaxed);
    loop {
        let mut peaks = Short::unpack(before);
        // A peak is at least as large as what it was raised to.
        let Some(peak) = peaks.get_mut(index).filter(|peak| peak.floor() < ended) else { return };
        *peak = Short::up(wide(ended));
        // ordering: relaxed, for peaks stand alone.
        match word.compare_exchange_weak(
            before,
            Short::pack(peaks),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            Ok(_) => return,
            // Each retry means that another half ended, or the sweeper came: both are rare.
            Err(seen) => before = seen,
        }
    }
}

/// Counts one more in the half of this number: the window's count, and what it was at the end of the half that this call ended.
#[inline(always)]
fn add(form: Halves, word: &AtomicU64, half: u64) -> (u64, Option<u64>) {
    // ordering: relaxed, for a window's word stands alone.
    let before = word.load(Ordering::Relaxed);
    if form.takes(before, half) {
        // Should the half be turned just now by another, this call counts in the new one.
        let found = word.fetch_add(1, Ordering::Relaxed);
        return (form.sum(found) + 1, None);
    }
    turn_and_add::<SOUND>(form, word, before, half)
}

/// `FLAW` is [`SOUND`] in all but the negative controls, which show that the models would notice.
#[inline(never)]
fn turn_and_add<const FLAW: u8>(
    form: Halves,
    word: &AtomicU64,
    mut before: u64,
    half: u64,
) -> (u64, Option<u64>) {
    // ordering: relaxed throughout, for a window's word stands alone.
    loop {
        if form.takes(before, half) {
            let found = word.fetch_add(1, Ordering::Relaxed);
            return (form.sum(found) + 1, None);
        }
        let after = form.added(before, half);
        if FLAW == STORED {
            word.store(after.word, Ordering::Relaxed);
            return (form.sum(after.word), after.ended);
        }
        match word.compare_exchange_weak(before, after.word, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return (form.sum(after.word), after.ended),
            // Each retry means that another call was counted: somebody always gets on.
            Err(seen) => before = seen,
        }
    }
}

/// Counts a fault, or ends the row: faults in a row so far.
fn count_streak<const FLAW: u8>(word: &AtomicU64, fault: bool) -> u64 {
    // ordering: relaxed throughout, for a row stands alone.
    if fault && FLAW == STORED {
        let row = word.load(Ordering::Relaxed) + 1;
        word.store(row, Ordering::Relaxed);
        return row;
    }
    if fault {
        return word.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    }
    // Looked at first: good calls after good calls only read.
    if word.load(Ordering::Relaxed) != 0 {
        word.store(0, Ordering::Relaxed);
    }
    0
}

/// The algorithm as it is meant.
const SOUND: u8 = 0;
/// A negative control: what was read is written back changed, whatever happened in between.
const STORED: u8 = 1;
/// No rule needs this word. No row is as long.
const ABSENT: usize = usize::MAX / 2;
/// What a repeat rule looks at unless said, and the third of the windows too.
const MINUTE: Span = Span::from_secs(60);
/// Words of a pair of cache lines.
const PAIR: usize = 16;
/// Outcomes: calls above, faults below.
const HALF_WORD: u32 = 32;
/// The most of one look: what fits beside what is there.
const MOST_FED: u64 = 1 << 27;
/// Sums below, counts above: room for 256 million calls between two looks.
const SUM_BITS: u32 = 36;
/// Tries of one call at its slot.
const SLOT_TRIES: usize = 4;
const MOST_VOTES: u64 = 32;
/// Findings that wait to be told, at most.
const SLIPS: usize = 64;
const EMPTY: u64 = 0;
const BUSY: u64 = 1;
const FULL: u64 = 2;

#[cfg(all(test, loom))]
mod models {
    use super::{EMPTY, SOUND, STORED, Slip, count_streak, turn_and_add};
    use crate::detect::halves::Halves;
    use crate::detect::{Found, OnFind};
    use crate::sync::{AtomicU64, Ordering};
    use crate::time::{Mono, Span};
    use loom::sync::Arc;

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// Two threads count at their instants; one of them turns the half. Then all are in the window's word.
    fn turn<const FLAW: u8>(threads: [&'static [u64]; 2]) {
        explore(move || {
            let form = Halves::new(Span::from_nanos(20), 22);
            let word = Arc::new(AtomicU64::new(0));
            let count = move |word: &AtomicU64, instants: &[u64]| {
                for &now in instants {
                    // ordering: relaxed, as in `add`.
                    let before = word.load(Ordering::Relaxed);
                    let half = form.number(Mono::from_nanos(1_000 + now));
                    turn_and_add::<FLAW>(form, word, before, half);
                }
            };
            let other = {
                let word = Arc::clone(&word);
                loom::thread::spawn(move || count(&word, threads[1]))
            };
            count(&word, threads[0]);
            other.join().unwrap();
            let all = u64::try_from(threads[0].len() + threads[1].len()).unwrap();
            // ordering: relaxed, for both threads have ended.
            assert_eq!(form.sum(word.load(Ordering::Relaxed)), all, "a count was lost");
        });
    }

    /// Goal: no count is lost when a half turns under two threads, also if one of them is late.
    #[test]
    fn loom_a_turned_half_loses_no_count() {
        turn::<SOUND>([&[1, 11], &[2, 12]]);
        turn::<SOUND>([&[1, 11, 12], &[9]]);
    }

    /// Negative control: a half turned by a store loses counts.
    #[test]
    #[should_panic(expected = "a count was lost")]
    fn loom_a_half_turned_by_a_store_is_caught() {
        turn::<STORED>([&[1, 11], &[2, 12]]);
    }

    /// Two threads with two faults each, in a row of four: exactly one sees the fourth.
    fn streak<const FLAW: u8>() {
        explore(|| {
            let word = Arc::new(AtomicU64::new(0));
            let faults =
                |word: &AtomicU64| (0..2).filter(|_| count_streak::<FLAW>(word, true) == 4).count();
            let other = {
                let word = Arc::clone(&word);
                loom::thread::spawn(move || faults(&word))
            };
            let own = faults(&word);
            assert_eq!(own + other.join().unwrap(), 1, "the fourth fault was not seen once");
        });
    }

    /// Goal: faults of two threads make one row, and one of them sees its end.
    #[test]
    fn loom_a_streak_is_seen_once() {
        streak::<SOUND>();
    }

    /// Negative control: a row counted by load and store loses faults.
    #[test]
    #[should_panic(expected = "the fourth fault was not seen once")]
    fn loom_a_streak_by_stores_is_caught() {
        streak::<STORED>();
    }

    /// A finding is told while the sweeper takes: whole, or not yet.
    fn slip<const CLAIMED: bool>() {
        explore(|| {
            let slip = Arc::new(Slip::new());
            let finding = |number: u32| Found {
                detector: 0,
                on_find: OnFind::Trip,
                value: f64::from(number),
                bound: f64::from(number),
                window: Span::ZERO,
                count: u64::from(number),
                of: u64::from(number),
                learned: true,
            };
            let other = {
                let slip = Arc::clone(&slip);
                loom::thread::spawn(move || {
                    if !CLAIMED {
                        // ordering: relaxed: this is the flaw.
                        slip.state.store(EMPTY, Ordering::Relaxed);
                    }
                    slip.fill(0, &finding(7))
                })
            };
            let own = slip.fill(0, &finding(9));
            let early = slip.take();
            let others = other.join().unwrap();
            let late = slip.take();
            for (_, found) in early.iter().chain(&late) {
                assert_eq!(
                    (found.value, found.bound),
                    (super::wide(found.count), super::wide(found.of)),
                    "torn"
                );
                assert_eq!(found.count, found.of, "torn");
            }
            let taken = usize::from(early.is_some()) + usize::from(late.is_some());
            assert_eq!(taken, usize::from(own) + usize::from(others), "a finding was lost");
        });
    }

    /// Goal: two threads find at once while the sweeper takes: each finding told is whole, and taken once.
    #[test]
    fn loom_a_finding_is_whole() {
        slip::<true>();
    }

    /// Negative control: a slip that is filled without being claimed loses a finding, or tears it.
    #[test]
    #[should_panic(expected = "a finding was lost")]
    fn loom_a_slip_without_a_claim_is_caught() {
        slip::<false>();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::{Cap, Finish, SLIPS, Tally};
    use crate::detect::judge::Orders;
    use crate::detect::short::Short;
    use crate::detect::{
        Compiled, DetectorKind, DetectorSpec, Errors, Found, Latency, Novel, Ratio, Repeat,
        ShareOf, Streak, Surge,
    };
    use crate::facts::Outcome;
    use crate::scope::KeyHash;
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    fn rules(kinds: Vec<DetectorKind>) -> Arc<Compiled> {
        let specs: Vec<_> = kinds.into_iter().map(DetectorSpec::new).collect();
        Arc::new(Compiled::new(&specs, false).unwrap_or_default())
    }

    fn surges() -> Arc<Compiled> {
        rules(vec![DetectorKind::Surge(Surge::of_keys(40_000))])
    }

    fn bound(tally: &Tally, row: usize, bounds: [u64; 4]) {
        let seen = tally.sight(row, 1.0, at(0));
        let bounds = bounds
            .map(|bound| if bound == 0 { Short::NONE } else { Short::down(super::wide(bound)) });
        let orders = Orders { bounds, location: None, weight: 1, begin_anew: false };
        tally.obey(row, &seen, &orders);
    }

    fn finish(outcome: Outcome) -> Finish {
        Finish { outcome, latency: None, class: 0 }
    }

    /// Goal: the call that exceeds its bound finds it, alone; the ceiling stands after it; no bound finds nothing.
    #[test]
    fn the_call_that_exceeds_finds() {
        let tally = Tally::for_cells(surges(), 2);
        for _ in 0..20_000 {
            assert!(tally.offered(2, at(10)).is_none(), "the shared row found something");
        }
        bound(&tally, 1, [0, 10, 0, 0]);
        let found: Vec<_> = (0..50).filter_map(|call| tally.offered(1, at(call))).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].count, found[0].bound, found[0].window),
            (11, 10.0, Span::from_secs(10))
        );
        assert!(found[0].learned);
        let ceiling = (50..20_000).find_map(|_| tally.offered(1, at(60))).unwrap();
        assert_eq!(
            (ceiling.count, ceiling.learned, ceiling.window),
            (10_001, false, Span::from_secs(1))
        );
        let mut told = Vec::new();
        tally.take_found(&mut told);
        assert_eq!(told, [(1, found[0]), (1, ceiling)]);
        assert_eq!(tally.count(0, 1, at(60)), 0, "a neighbour was counted");
    }

    /// Goal: many threads at one bound: one finds it, and no call is lost.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "threads are what is tested")]
    fn one_of_many_threads_finds() {
        // Few where each step is interpreted.
        const CALLS: u64 = if cfg!(miri) { 25 } else { 2_500 };
        let tally = Arc::new(Tally::for_scope(surges()));
        bound(&tally, 0, [0, 0, 2 * CALLS, 0]);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let tally = Arc::clone(&tally);
                std::thread::spawn(move || {
                    (0..CALLS)
                        .filter_map(|call| tally.offered(0, at(29_990 + call * 10 / CALLS)))
                        .count()
                })
            })
            .collect();
        let found: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!((found, tally.count(0, 2, at(30_000))), (1, 4 * CALLS));
    }

    /// Goal: the largest count of every half that ended is kept for the judge, and told once.
    #[test]
    fn peaks_outlive_their_windows() {
        let tally = Tally::for_scope(surges());
        for call in 0..70 {
            tally.offered(0, at(1_000 + call));
        }
        tally.offered(0, at(900_000));
        tally.offered(0, at(1_900_000));
        let sight = tally.sight(0, 1.0, at(1_900_000));
        assert_eq!(sight.peaks.map(Short::floor), [70; 4]);
        assert_eq!(tally.sight(0, 1.0, at(1_900_000)).peaks.map(Short::floor), [0; 4]);
        assert_eq!(sight.idle, Some(Span::ZERO));
    }

    /// Goal: faults in a row are found at the settlement itself, a good call ends the row, a slow one as told.
    #[test]
    fn a_streak_is_found_at_once() {
        for (or_slow, found) in [(false, 1), (true, 2)] {
            let tally =
                Tally::for_scope(rules(vec![DetectorKind::Streak(Streak { count: 3, or_slow })]));
            use Outcome::{Fault, Good, Slow};
            let outcomes = [Fault, Fault, Good, Fault, Fault, Slow, Fault, Fault, Fault];
            let count = outcomes
                .iter()
                .filter_map(|&outcome| tally.finished(0, &finish(outcome), at(1)))
                .count();
            assert_eq!(count, found, "or_slow: {or_slow}");
        }
    }

    /// Goal: a class that was never seen is told once, but not while all are new, nor a known one after a restart.
    #[test]
    fn a_new_class_is_told_once() {
        let tally = Tally::for_scope(rules(vec![DetectorKind::Novel(Novel::default())]));
        let fault = |class: u16, now: u64| {
            tally
                .finished(0, &Finish { outcome: Outcome::Fault, latency: None, class }, at(now))
                .is_some()
        };
        assert!(!fault(500, 10));
        tally.set_novel_from(at(1_000));
        assert!(!fault(503, 999));
        assert_eq!(
            [fault(504, 1_000), fault(504, 1_001), fault(503, 1_002), fault(500, 1_003)],
            [true, false, false, false]
        );
        let again = Tally::for_scope(rules(vec![DetectorKind::Novel(Novel::default())]));
        again.set_novel_from(at(0));
        again.know_classes(0, tally.classes(0));
        let old = Finish { outcome: Outcome::Fault, latency: None, class: 504 };
        assert!(again.finished(0, &old, at(5)).is_none());
    }

    /// Goal: a repetition is found at its 25th call, and again only after as many more.
    #[test]
    fn a_repetition_is_found() {
        let tally = Tally::for_scope(rules(vec![DetectorKind::Repeat(Repeat::default())]));
        let found: Vec<_> = (0..60)
            .filter(|&call| {
                tally.repeated(0, 0xfeed_5678_9abc_def0, at(60_000 + call * 10)).is_some()
            })
            .collect();
        assert_eq!(found, [24, 49]);
    }

    /// Goal: a repetition that only warns hides no surge that trips at the same call: that surge's bound was gone, and nothing tripped.
    #[test]
    fn a_warning_repetition_hides_no_surge() {
        let repeat = Repeat { count: 10, ..Repeat::default() };
        let specs = [
            DetectorSpec::new(DetectorKind::Repeat(repeat)).warning(),
            DetectorSpec::new(DetectorKind::Surge(Surge::of_keys(36))),
        ];
        let tally = Tally::for_scope(Arc::new(Compiled::new(&specs, false).unwrap()));
        bound(&tally, 0, [9, 0, 0, 0]);
        let print = Some(KeyHash::new(0xfeed_5678_9abc_def0));
        let found: Vec<_> = (0..10).filter_map(|call| tally.hears(0, print, at(call))).collect();
        assert_eq!((found.len(), found[0].detector, found[0].count), (1, 1, 10));
        let mut told = Vec::new();
        tally.take_found(&mut told);
        assert_eq!(told.len(), 2, "both are told");
    }

    /// Goal: a repetition's share is one of all calls, printed or not, whether the calls are counted for it alone or by the window of a
    /// minute that the surge rule has anyway.
    #[test]
    fn a_share_is_one_of_all_calls() {
        for surges in [false, true] {
            let repeat = Repeat { count: 10, share: 0.5, ..Repeat::default() };
            let mut kinds = vec![DetectorKind::Repeat(repeat)];
            kinds.extend(surges.then(|| DetectorKind::Surge(Surge::of_keys(40_000))));
            let found = |others: u64| {
                let tally = Tally::for_scope(rules(kinds.clone()));
                (0..others).for_each(|call| assert!(tally.hears(0, None, at(call)).is_none()));
                let print = Some(KeyHash::new(0xfeed_5678_9abc_def0));
                (0..10).filter_map(|call| tally.hears(0, print, at(call))).count()
            };
            assert_eq!((found(10), found(11)), (1, 0), "surges: {surges}");
        }
    }

    /// Goal: outcomes and latencies are taken whole, once.
    #[test]
    fn settlements_are_taken_once() {
        let slow = Ratio { of: ShareOf::Slow, ..Ratio::default() };
        let tally = Tally::for_scope(rules(vec![
            DetectorKind::Errors(Errors::default()),
            DetectorKind::Latency(Latency::default()),
            DetectorKind::Ratio(slow),
        ]));
        for call in 0..30 {
            let outcome = [Outcome::Good, Outcome::Slow, Outcome::Fault][call % 3];
            let latency = (call < 20).then_some(Span::from_millis(100));
            tally.finished(0, &Finish { outcome, latency, class: 1 }, at(5));
        }
        let sight = tally.sight(0, 1.0, at(5));
        assert_eq!(
            (sight.settled.finished, sight.settled.faults, sight.settled.slow),
            (30, 10, 10)
        );
        assert_eq!((sight.latencies.count, sight.latencies.sizes), (20, 0));
        let again = tally.sight(0, 1.0, at(5));
        assert_eq!((again.settled.finished, again.settled.slow, again.latencies.count), (0, 0, 0));
    }

    /// Goal: who makes over half of the calls is the leader, soon, and whoever was before.
    #[test]
    fn who_makes_over_half_leads() {
        let tally = Tally::for_scope(surges());
        assert_eq!(tally.leader(0), None);
        for call in 0..1_000 {
            tally.voted(0, KeyHash::new(1 + call % 7));
        }
        for call in 0..300 {
            tally.voted(0, KeyHash::new(if call % 5 < 3 { 99 } else { 1 + call % 7 }));
        }
        assert_eq!(tally.leader(0), Some(KeyHash::new(99)));
    }

    /// Goal: so many may be cut off at once and no more; who came back makes room; trips not yet seen count.
    #[test]
    fn a_cap_is_a_cap() {
        let cap = Cap::new();
        assert!(!cap.take(), "nothing is allowed before anybody counted");
        cap.allow(3, 0, 0);
        assert_eq!((0..10).filter(|_| cap.take()).count(), 3);
        // The sweep after: three are cut off, and known to be.
        cap.allow(3, 3, cap.taken());
        assert!(!cap.take());
        cap.allow(3, 1, cap.taken());
        assert_eq!((0..10).filter(|_| cap.take()).count(), 2);
        // A sweep that counted before these two tripped gives no more leave.
        cap.allow(3, 1, 3);
        assert!(!cap.take());
    }

    /// Goal: what finds no slip is counted, and a row that was cleared counts nothing.
    #[test]
    fn full_slips_and_cleared_rows() {
        let tally = Tally::for_cells(
            rules(vec![DetectorKind::Streak(Streak { count: 2, or_slow: false })]),
            100,
        );
        for row in 0..100 {
            for _ in 0..2 {
                tally.finished(row, &finish(Outcome::Fault), at(1));
            }
        }
        let mut told = Vec::new();
        tally.take_found(&mut told);
        assert_eq!((told.len(), tally.missed()), (SLIPS, 100 - u64::try_from(SLIPS).unwrap()));
        let tally = Tally::for_cells(surges(), 2);
        tally.offered(1, at(5));
        tally.clear(1);
        assert_eq!((tally.count(1, 3, at(5)), tally.weight_of(1)), (0, 0));
    }

    fn is_sound(found: Option<Found>) -> bool {
        found.is_none_or(|found| found.value.is_finite() && found.bound.is_finite())
    }

    proptest! {
        /// Goal: no rows, instants, or latencies make a hook panic, and a clock that runs back corrupts nothing.
        #[test]
        fn hooks_are_total(
            calls in proptest::collection::vec(
                (0_usize..5, any::<u64>(), any::<u64>(), any::<u16>(), 0_u8..3), 1..60),
        ) {
            let kinds = vec![
                DetectorKind::Surge(Surge::of_keys(100)),
                DetectorKind::Repeat(Repeat::default()),
                DetectorKind::Errors(Errors::default()),
                DetectorKind::Latency(Latency::default()),
                DetectorKind::Streak(Streak::default()),
                DetectorKind::Novel(Novel::default()),
            ];
            let tally = Tally::for_cells(rules(kinds), 3);
            for (row, now, odd, class, kind) in calls {
                let now = Mono::from_nanos(now);
                let outcome = [Outcome::Good, Outcome::Slow, Outcome::Fault][usize::from(kind)];
                let latency = (kind > 0).then_some(Span::from_nanos(odd));
                prop_assert!(is_sound(tally.offered(row, now)));
                prop_assert!(is_sound(tally.repeated(row, odd, now)));
                let finish = Finish { outcome, latency, class };
                prop_assert!(is_sound(tally.finished(row, &finish, now)));
                tally.voted(row, KeyHash::new(odd));
                let sight = tally.sight(row, 0.1, now);
                prop_assert!(sight.counts.iter().all(|&count| count <= 60));
            }
        }
    }
}
