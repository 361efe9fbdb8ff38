//! Timers, the detectors' judges, and the facts of what moved: it compares each gate with what it saw last.

use crate::breaker::{Breaker, Restart, Restored, SavedWhole};
use crate::cell::Gate;
use crate::detect::LearnedError;
use crate::facts::{Place, State, Transition};
use crate::gate::{Input, TripRule, Word};
use crate::judges::{Finding, Judges, LearnedAt};
use crate::policy::Policy;
use crate::scope::{KeyHash, Level};
use crate::time::{Mono, Span};

/// One reader of all gates. A breaker has one sweeper; a second one would take half of its news,
/// and get the other half late.
#[derive(Default)]
pub struct Sweeper {
    /// The last word seen of each cell: the named ones first, then a list for each table.
    seen: Vec<Vec<Word>>,
    /// Whose words those are that were not armed, in the same order.
    blocked: Vec<Blocked>,
    /// Where the next walk over the dirty words begins: area and word.
    next_word: (usize, usize),
    /// Where the slow walk over all cells goes on: area and cell.
    next_cell: (usize, usize),
    judges: Judges,
}

/// Whose words were not armed in the cells of one area.
#[derive(Default)]
struct Blocked {
    whose: Vec<Option<KeyHash>>,
    /// How many keys stand there for each remainder of their hashes, so that one that does not is mostly known without a search.
    /// What was counted to the end of its range stays.
    alike: Vec<u8>,
}

impl Sweeper {
    /// A sweeper that has seen nothing: what is not armed is news to it.
    #[must_use]
    pub fn new() -> Sweeper {
        Sweeper::default()
    }

    /// Steps elapsed holds to half-open, forgives strikes, and appends what moved since the last
    /// sweep. Call it every 20 ms, or when nudged.
    ///
    /// By a policy of another breaker it does nothing.
    ///
    /// Its work is bounded: at most 4 096 cells that are known to have moved or to wait, round
    /// robin, and 512 others, so that nothing is overlooked for ever.
    pub fn sweep(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        now: Mono,
        out: &mut Vec<Transition>,
    ) {
        if !breaker.owns(policy) {
            return;
        }
        breaker.note(now);
        let areas = breaker.areas();
        self.seen.resize_with(areas, Vec::new);
        self.blocked.resize_with(areas, Blocked::default);
        for (area, (seen, blocked)) in self.seen.iter_mut().zip(&mut self.blocked).enumerate() {
            seen.resize(breaker.cells_of(area), Word::default());
            blocked.resize(breaker.cells_of(area));
        }
        self.judges.sweep(breaker, policy, now);
        let before = out.len();
        self.sweep_dirty(breaker, policy, now, out);
        self.sweep_some(breaker, policy, now, out);
        self.judges.heard(breaker, policy, out.get(before..).unwrap_or_default());
    }

    /// Takes what detectors found since it was last asked, in the order of the sweeps. What tripped a gate stands here with
    /// what was seen, and among the transitions with what came of it. At most 4 096 findings wait; later ones
    /// are only counted.
    pub fn findings(&mut self) -> std::vec::Drain<'_, Finding> {
        self.judges.findings()
    }

    /// Findings that were never told, for there were too many at once. What they tripped is tripped all the same.
    #[must_use]
    pub fn findings_missed(&self) -> u64 {
        self.judges.findings_missed()
    }

    /// A person's word that what a place saw is normal from now on, though it tripped; false if nothing is
    /// learned there. The gate is the person's to lift as well.
    pub fn accept(&mut self, breaker: &Breaker, place: Place, now: Mono) -> bool {
        self.judges.accept(breaker, place, now)
    }

    /// All that a restart must keep, in one: where the breaker stands, as [`Breaker::save`] says it, and what the detectors
    /// learned, as [`Sweeper::learned`] does. It allocates, and reads while calls pass.
    #[must_use]
    pub fn save(&self, breaker: &Breaker, policy: &Policy, now: Mono) -> SavedWhole {
        let standings = breaker.save(policy, now);
        SavedWhole { standings, learned: self.learned(breaker, policy, now) }
    }

    /// Puts all of it back before the first call is admitted: [`Breaker::restore`] and [`Sweeper::relearn`] in one. `away` is the
    /// time between the save and now by a clock that went on, such as the wall's: what was learned ages by it, holds and
    /// charges do not. It is the same after a crash: what a save says was learned was believed by then. What keys learned under
    /// another seed is not taken up.
    pub fn restore(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        saved: &SavedWhole,
        (restart, away): (Restart, Span),
        now: Mono,
    ) -> Restored {
        let mut told = breaker.restore(policy, &saved.standings, restart, now);
        if !breaker.owns(policy) {
            return told;
        }
        let known = breaker.has_seed_of(&saved.standings);
        let mut unlearned = self.judges.relearn(breaker, policy, &saved.learned, away, now, known);
        let beyond = unlearned.len().saturating_sub(MAX_UNLEARNED);
        told.more = told.more.saturating_add(u64::try_from(beyond).unwrap_or(u64::MAX));
        unlearned.truncate(MAX_UNLEARNED);
        told.unlearned = unlearned;
        told
    }

    /// All that the detectors learned and believe: of named scopes, of dimensions, and of their keys.
    #[must_use]
    pub fn learned(&self, breaker: &Breaker, policy: &Policy, now: Mono) -> Vec<LearnedAt> {
        self.judges.learned(breaker, policy, now)
    }

    /// Takes up what was learned before a restart, `away` ago. What has no place in this policy is left out;
    /// what no life could have learned is refused, by its index. Keys must have been hashed under this breaker's seed. By a policy of
    /// another breaker it does nothing.
    pub fn relearn(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        saved: &[LearnedAt],
        away: Span,
        now: Mono,
    ) -> Vec<(usize, LearnedError)> {
        if !breaker.owns(policy) {
            return Vec::new();
        }
        self.judges.relearn(breaker, policy, saved, away, now, true)
    }

    fn sweep_dirty(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        now: Mono,
        out: &mut Vec<Transition>,
    ) {
        let mut budget = MOVED_CELLS;
        let words: usize = (0..breaker.areas()).map(|area| breaker.dirty_words(area)).sum();
        let (mut area, mut word) = self.next_word;
        for _ in 0..words + breaker.areas() {
            if word >= breaker.dirty_words(area) {
                (area, word) = ((area + 1) % breaker.areas(), 0);
                continue;
            }
            if budget == 0 {
                break;
            }
            let mut bits = breaker.take_dirty(area, word);
            while bits != 0 {
                let bit = usize::try_from(bits.trailing_zeros()).unwrap_or(0);
                bits &= bits - 1;
                budget = budget.saturating_sub(1);
                self.look(breaker, policy, now, out, (area, word * 64 + bit));
            }
            word += 1;
        }
        self.next_word = (area, word);
    }

    fn sweep_some(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        now: Mono,
        out: &mut Vec<Transition>,
    ) {
        for _ in 0..OTHER_CELLS {
            let (area, cell) = self.next_cell;
            if cell >= breaker.cells_of(area) {
                self.next_cell = ((area + 1) % breaker.areas(), 0);
                continue;
            }
            self.next_cell = (area, cell + 1);
            self.look(breaker, policy, now, out, (area, cell));
        }
    }

    fn look(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        now: Mono,
        out: &mut Vec<Transition>,
        (area, cell): (usize, usize),
    ) {
        let Some(gate) = breaker.gate_of(area, cell) else { return };
        let key = key_of(breaker, area, cell);
        let word = gate.word();
        if key_of(breaker, area, cell) != key {
            // It changed hands just now, and whose word this is nobody knows.
            breaker.mark(area, cell);
            return;
        }
        let Some(seen) = self.seen.get_mut(area).and_then(|cells| cells.get_mut(cell)) else {
            return;
        };
        if word.is_fresh() && word.epoch() == seen.epoch() {
            return;
        }
        let Some((place, rule)) = placed(policy, area, cell, key) else { return };
        if let Some(key) = key {
            // What it was in a cell that it lost ends before what it is here begins, wherever that cell comes in the walk.
            let (before, elsewhere) = self.stood(breaker, area, cell, key);
            if before.is_some_and(|before| before != key) {
                self.forget(place, (area, cell), now, out);
            }
            if let Some(other) = elsewhere {
                self.forget(place, (area, other), now, out);
            }
        }
        let Some(seen) = self.seen.get_mut(area).and_then(|cells| cells.get_mut(cell)) else {
            return;
        };
        let fact = |from, to| fact_of(place, rule.as_ref(), from, to, now);
        if moves(*seen, word) > 0 && told(*seen, word) {
            out.push(fact(*seen, word));
        }
        *seen = word;
        if let Some(blocked) = self.blocked.get_mut(area) {
            blocked.put(cell, key.filter(|_| !word.is_armed()));
        }
        // Without a rule (its scope is in this policy no more) a gate stays as it is.
        let Some(trip) = &rule else { return };
        if let Some(moved) = step_elapsed(gate, trip, now) {
            if moves(word, moved) > 0 && told(word, moved) {
                out.push(fact(word, moved));
            }
            *seen = moved;
        }
        if seen.awaits_time(trip) {
            breaker.mark(area, cell);
        }
    }

    /// Whose word was not armed in a cell, and in which other cell of its bucket this key's was not.
    fn stood(
        &self,
        breaker: &Breaker,
        area: usize,
        cell: usize,
        key: KeyHash,
    ) -> (Option<KeyHash>, Option<usize>) {
        let Some(blocked) = self.blocked.get(area) else { return (None, None) };
        let own = blocked.whose.get(cell).copied().flatten();
        if own == Some(key) {
            return (own, None);
        }
        let table = area.checked_sub(1).and_then(|number| breaker.table(number));
        (own, table.and_then(|table| blocked.find(key, table.bucket_around(cell))))
    }

    /// Tells the end of a key that lost its cell while it was not armed. `place` is of a key of the same table.
    fn forget(
        &mut self,
        place: Place,
        (area, cell): (usize, usize),
        now: Mono,
        out: &mut Vec<Transition>,
    ) {
        let blocked = self.blocked.get_mut(area);
        let Some(forgotten) = blocked.and_then(|blocked| blocked.put(cell, None)) else { return };
        self.judges.forget((area, cell));
        let Some(seen) = self.seen.get_mut(area).and_then(|cells| cells.get_mut(cell)) else {
            return;
        };
        let freed = Word::freed(*seen);
        let place = Place { key: place.key.map(|(at, _)| (at, forgotten)), ..place };
        out.push(fact_of(place, None, *seen, freed, now));
        *seen = freed;
    }
}

impl Blocked {
    fn resize(&mut self, cells: usize) {
        if self.whose.len() == cells {
            return;
        }
        self.whose.resize(cells, None);
        self.alike = vec![0; cells * ALIKE];
        for key in self.whose.iter().flatten() {
            count_one(&mut self.alike, *key, u8::saturating_add);
        }
    }

    /// Notes whose word is not armed in a cell; returns who was noted before.
    fn put(&mut self, cell: usize, key: Option<KeyHash>) -> Option<KeyHash> {
        let place = self.whose.get_mut(cell)?;
        let before = std::mem::replace(place, key);
        if before != key {
            if let Some(before) = before {
                count_one(&mut self.alike, before, u8::saturating_sub);
            }
            if let Some(key) = key {
                count_one(&mut self.alike, key, u8::saturating_add);
            }
        }
        before
    }

    /// The cell where a key stands, of some.
    fn find(&self, key: KeyHash, among: std::ops::Range<usize>) -> Option<usize> {
        let alike = self.alike.get(remainder(key, self.alike.len())?)?;
        if *alike == 0 {
            return None;
        }
        let mut cells = among.clone().zip(self.whose.get(among)?);
        cells.find(|(_, other)| **other == Some(key)).map(|(cell, _)| cell)
    }
}

fn count_one(alike: &mut [u8], key: KeyHash, step: fn(u8, u8) -> u8) {
    let place = remainder(key, alike.len()).and_then(|at| alike.get_mut(at));
    if let Some(count) = place.filter(|count| **count < u8::MAX) {
        *count = step(*count, 1);
    }
}

fn remainder(key: KeyHash, of: usize) -> Option<usize> {
    usize::try_from(key.as_u64().checked_rem(u64::try_from(of).ok()?)?).ok()
}

impl std::fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweeper").field("areas", &self.seen.len()).finish_non_exhaustive()
    }
}

/// Moves between two words of one gate.
fn moves(from: Word, to: Word) -> u16 {
    to.epoch().wrapping_sub(from.epoch()) & 0xfff
}

/// Whether a move is news: probes that are given out anew, since they never came back, are not.
fn told(from: Word, to: Word) -> bool {
    moves(from, to) != 1 || (from.state(), to.state()) != (State::HalfOpen, State::HalfOpen)
}

fn step_elapsed(gate: &Gate, rule: &TripRule, now: Mono) -> Option<Word> {
    gate.step(Input::Elapsed, rule, now).map(|moved| moved.after)
}

fn fact_of(place: Place, rule: Option<&TripRule>, from: Word, to: Word, now: Mono) -> Transition {
    Transition {
        place,
        from: from.state(),
        to: to.state(),
        cause: to.cause(),
        at: now,
        until: rule.and_then(|rule| to.until(rule, now)),
        epoch: to.epoch(),
        skipped: moves(from, to).saturating_sub(1),
    }
}

/// Whose cell it is, if it is a key's.
fn key_of(breaker: &Breaker, area: usize, cell: usize) -> Option<KeyHash> {
    breaker.table(area.checked_sub(1)?)?.tag(cell)
}

/// Whose cell it is, and the rule of its gate if this policy has one.
fn placed(
    policy: &Policy,
    area: usize,
    cell: usize,
    key: Option<KeyHash>,
) -> Option<(Place, Option<TripRule>)> {
    let number = |index: usize| u32::try_from(index).ok();
    let Some(table) = area.checked_sub(1) else {
        let index = number(cell)?;
        let rules = policy.scope_rules(index);
        let level = rules.map_or(Level::Route, |rules| rules.scope.level());
        return Some((Place { level, index, key: None }, rules.map(|rules| rules.rules.trip)));
    };
    let key = key?;
    let index = number(table)?;
    let rules = policy.key_rules(index);
    let position = rules.map_or(u8::MAX, |rules| rules.index);
    let place = Place { level: Level::Key, index, key: Some((position, key)) };
    Some((place, rules.map(|rules| rules.rules.trip)))
}

/// Cells known to have moved or to wait that one sweep looks at.
const MOVED_CELLS: usize = 4_096;
/// What a restore could not take up is told so often.
const MAX_UNLEARNED: usize = 1_000;
/// Other cells that one sweep looks at.
const OTHER_CELLS: usize = 512;
/// Remainders of hashes for each cell.
const ALIKE: usize = 4;
