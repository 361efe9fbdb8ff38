//! The detectors' part of a sweep: who is judged with which facts, and what a finding does. It belongs to the one sweeper, and is
//! never seen by a decision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::breaker::Breaker;
use crate::cell::Gate;
use crate::counts::Ended;
use crate::detect::judge::{Facts, Judge, Sight};
use crate::detect::surge::Crowd;
use crate::detect::{
    CapSpec, Compiled, DetectorKind, DetectorSpec, Found, Learned, LearnedError, OnFind, Surge,
};
use crate::facts::{By, Cause, Place, State, Transition};
use crate::gate::Input;
use crate::keys::{Table, Which};
use crate::policy::{KeyRules, Policy};
use crate::scope::{KeyHash, Level, Scope};
use crate::tally::Tally;
use crate::time::{Mono, Span};

/// What a detector found, and where. One that tripped a gate comes with the transition of the same place whose cause names it,
/// or of a key of that scope whose cause is [`By::Wider`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// Whose detector it is: its index among the detectors of this scope, or of the keys of this dimension.
    pub place: Place,
    /// When the sweep told it.
    pub at: Mono,
    /// What was seen. Where its detector trips and this says *warn*, the cap on how much learned bounds may cut off at once
    /// stood above it.
    pub found: Found,
}

/// What the detectors of one place learned, to be saved and restored.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LearnedAt {
    /// The named scope, or the one that declares the dimension.
    pub scope: Scope,
    /// The dimension.
    pub dimension: Option<String>,
    /// The key; `None` for what a dimension learned of all its keys together. It means something only under the
    /// seed of the breaker that made it.
    pub key: Option<KeyHash>,
    /// What was learned.
    pub learned: Learned,
}

/// All judges of one breaker.
#[derive(Default)]
pub(crate) struct Judges {
    /// The policy that they were last made for.
    planned: Option<u32>,
    named: Vec<NamedSeat>,
    keys: Vec<KeySeat>,
    everything: Option<Judge>,
    findings: Vec<Finding>,
    /// Findings that found no place to wait in.
    missed: u64,
    /// Area and cell of what detectors have tripped.
    cut_off: BTreeSet<(usize, usize)>,
}

struct NamedSeat {
    /// An index into `Policy::scopes`.
    scope: usize,
    cell: u32,
    /// The cells of the wider scopes.
    wider: Vec<u32>,
    children: u64,
    seat: Seat,
}

struct KeySeat {
    /// An index into `Policy::dimensions`.
    dimension: usize,
    table: u32,
    /// The cells of the scope that declares it, and of the wider ones.
    wider: Vec<u32>,
    seat: Seat,
}

/// A tally and who judges it.
struct Seat {
    tally: Arc<Tally>,
    judge: Judge,
    /// Trips of learned bounds that had been allowed at the last sweep.
    taken: u64,
    /// When a child's trip was last counted.
    trips: BTreeMap<(usize, usize), Mono>,
    /// What the scope had counted at the last look; `None` if nobody looked yet who still knows.
    fed: Option<Ended>,
}

impl Judges {
    /// Judges what counted since, trips what is to be tripped, and notes what was found.
    pub(crate) fn sweep(&mut self, breaker: &Breaker, policy: &Policy, now: Mono) {
        self.plan(breaker, policy, now);
        if self.named.is_empty() && self.keys.is_empty() {
            return;
        }
        let crowd = self.crowd(policy, now);
        for at in 0..self.named.len() {
            self.judge_named(breaker, policy, at, crowd, now);
        }
        for at in 0..self.keys.len() {
            self.judge_keys(breaker, policy, at, now);
        }
    }

    /// Hears what moved: whoever moved is looked at again, and trips are counted for those above.
    pub(crate) fn heard(&mut self, breaker: &Breaker, policy: &Policy, moves: &[Transition]) {
        for moved in moves {
            let Some((area, cell)) = found_at(breaker, moved.place) else { continue };
            match (moved.to, moved.cause) {
                (State::Tripped, Some(Cause::Tripped(By::Detector(_) | By::Wider))) => {
                    self.cut_off.insert((area, cell));
                }
                (State::Tripped, _) => {}
                _ => {
                    self.cut_off.remove(&(area, cell));
                }
            }
            if let Some(seat) = self.seat_of(moved.place) {
                seat.tally.touch(if area == 0 { 0 } else { cell });
            }
            // A lift that leads back to the trip below a kill is no new trip.
            if moved.to == State::Tripped
                && !(matches!(moved.from, State::Killed(_)) && moved.skipped == 0)
                && let Some(parent) = parent_of(policy, moved.place)
                && let Some(named) = self.named.iter_mut().find(|named| named.scope == parent)
            {
                named.seat.child_tripped((area, cell), moved.at);
            }
        }
    }

    /// Hears that a cell has another key by now: it cuts nobody off any more.
    pub(crate) fn forget(&mut self, cell: (usize, usize)) {
        self.cut_off.remove(&cell);
    }

    /// Takes what was found.
    pub(crate) fn findings(&mut self) -> std::vec::Drain<'_, Finding> {
        self.findings.drain(..)
    }

    /// Findings that were never told, for there were too many at once: what they tripped is tripped.
    pub(crate) fn findings_missed(&self) -> u64 {
        let seats = self.named.iter().map(|named| &named.seat);
        let seats = seats.chain(self.keys.iter().map(|keys| &keys.seat));
        seats.map(|seat| seat.tally.missed()).fold(self.missed, u64::saturating_add)
    }

    /// A person's word that what a place saw is normal; false if nothing is learned there.
    pub(crate) fn accept(&mut self, breaker: &Breaker, place: Place, now: Mono) -> bool {
        let Some((area, cell)) = found_at(breaker, place) else { return false };
        let Some(seat) = self.seat_of(place) else { return false };
        let row = if area == 0 { 0 } else { cell };
        seat.judge.accept(row, now);
        seat.tally.touch(row);
        true
    }

    /// All that was learned: of the named scopes, of each dimension as a whole, and of its keys.
    pub(crate) fn learned(&self, breaker: &Breaker, policy: &Policy, now: Mono) -> Vec<LearnedAt> {
        let mut all = Vec::new();
        for named in &self.named {
            let Some(rules) = policy.scopes.get(named.scope) else { continue };
            let Some(mut learned) = named.seat.judge.export(0, now) else { continue };
            learned.classes = named.seat.tally.classes(0);
            all.push(LearnedAt { scope: rules.scope.clone(), dimension: None, key: None, learned });
        }
        for keys in &self.keys {
            let Some(rules) = policy.dimensions.get(keys.dimension) else { continue };
            let Some(parent) = policy.scopes.get(rules.parent) else { continue };
            let at = |key: Option<KeyHash>, learned: Learned| LearnedAt {
                scope: parent.scope.clone(),
                dimension: Some(rules.name.clone()),
                key,
                learned,
            };
            all.push(at(None, keys.seat.judge.export_all(now)));
            let Some(table) = table_of(breaker, rules) else { continue };
            for cell in 0..table.cells() {
                let Some(key) = table.tag(cell) else { continue };
                if keys.seat.tally.weight_of(cell) == 0 {
                    continue;
                }
                all.extend(keys.seat.judge.export(cell, now).map(|learned| at(Some(key), learned)));
            }
        }
        all
    }

    /// Takes up what was learned, `away` ago. What has no place any more is left out; nonsense is refused, by index.
    pub(crate) fn relearn(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        saved: &[LearnedAt],
        away: Span,
        now: Mono,
        knows_keys: bool,
    ) -> Vec<(usize, LearnedError)> {
        self.plan(breaker, policy, now);
        let mut refused = Vec::new();
        for (index, saved) in saved.iter().enumerate() {
            if saved.key.is_some() && !knows_keys {
                let problem = "is of a key that was hashed under another seed".to_owned();
                refused.push((index, LearnedError { problem }));
            } else if let Err(error) = self.relearn_one(breaker, policy, saved, away, now) {
                refused.push((index, error));
            }
        }
        refused
    }

    fn relearn_one(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        saved: &LearnedAt,
        away: Span,
        now: Mono,
    ) -> Result<(), LearnedError> {
        saved.learned.check()?;
        let Some(name) = &saved.dimension else {
            let Some(cell) = policy.named(&saved.scope).map(|rules| rules.cell) else {
                return Ok(());
            };
            let Some(named) = self.named.iter_mut().find(|named| named.cell == cell) else {
                return Ok(());
            };
            named.seat.tally.know_classes(0, saved.learned.classes);
            return named.seat.judge.import(0, &saved.learned, away, now);
        };
        let Some(rules) = policy.dimension(&saved.scope, name) else { return Ok(()) };
        let Some(keys) = self.keys.iter_mut().find(|keys| keys.table == rules.table) else {
            return Ok(());
        };
        let Some(key) = saved.key else {
            return keys.seat.judge.import_all(&saved.learned, away, now);
        };
        let Some(table) = table_of(breaker, rules) else { return Ok(()) };
        let Seat { tally, judge, .. } = &mut keys.seat;
        // Who is known from before is no first sight.
        let imported = table.hold(key, now, |cell| {
            tally.keep(cell);
            judge.import(cell, &saved.learned, away, now)
        });
        imported.unwrap_or(Ok(()))
    }

    /// Makes a judge for every tally of the policy. One whose rules changed takes over what was learned.
    fn plan(&mut self, breaker: &Breaker, policy: &Policy, now: Mono) {
        if self.planned == Some(policy.number) {
            return;
        }
        self.planned = Some(policy.number);
        let mut old_named = std::mem::take(&mut self.named);
        for (scope, rules) in policy.scopes.iter().enumerate() {
            let Some(tally) = &rules.rules.tally else { continue };
            let old = old_named.iter().position(|old| old.cell == rules.cell);
            let old = old.map(|at| old_named.swap_remove(at).seat);
            let wider = wider_of(policy, &rules.scope);
            let children = children_of(policy, scope);
            let new = Judge::for_scope(Arc::clone(tally.rules()), now);
            let seat = Seat::taken_over(tally, old, new, 1, now);
            self.named.push(NamedSeat { scope, cell: rules.cell, wider, children, seat });
        }
        let mut old_keys = std::mem::take(&mut self.keys);
        for (dimension, rules) in policy.dimensions.iter().enumerate() {
            let Some(tally) = &rules.rules.tally else { continue };
            let old = old_keys.iter().position(|old| old.table == rules.table);
            let old = old.map(|at| old_keys.swap_remove(at).seat);
            let Some(parent) = policy.scopes.get(rules.parent) else { continue };
            let mut wider = wider_of(policy, &parent.scope);
            wider.push(parent.cell);
            let cells = table_of(breaker, rules).map_or(0, Table::cells);
            let new = Judge::for_cells(Arc::clone(tally.rules()), cells, now);
            let seat = Seat::taken_over(tally, old, new, cells, now);
            self.keys.push(KeySeat { dimension, table: rules.table, wider, seat });
        }
    }

    /// Everything's counts and peaks: those of `/` if it has a surge detector, else the sum of its routes.
    fn crowd(&mut self, policy: &Policy, now: Mono) -> Option<Crowd> {
        let counts = |seat: &Seat| std::array::from_fn(|at| seat.tally.count(0, at, now));
        if let Some(all) = self.named.iter().find(|named| named.wider.is_empty())
            && let Some(crowd) = all.seat.judge.crowd(counts(&all.seat))
        {
            return Some(crowd);
        }
        // Beside what is alone there is no crowd.
        let counting = |named: &&NamedSeat| named.seat.tally.hears_offers();
        if self.named.iter().filter(counting).count() < 2 {
            return None;
        }
        let is_route = |named: &&NamedSeat| {
            policy.scopes.get(named.scope).is_some_and(|rules| rules.level == Level::Route)
        };
        let mut sum = [0_u64; 4];
        for route in self.named.iter().filter(is_route) {
            for (sum, count) in sum.iter_mut().zip(counts(&route.seat)) {
                *sum = sum.saturating_add(count);
            }
        }
        let everything = self.everything.get_or_insert_with(|| {
            let spec = DetectorSpec::new(DetectorKind::Surge(Surge::of_everything(MOST_A_MINUTE)));
            Judge::for_scope(Arc::new(Compiled::new(&[spec], false).unwrap_or_default()), now)
        });
        let elapsed = everything.elapsed(0, now).unwrap_or(0.0);
        let blocked = self.cut_off.iter().any(|(area, _)| *area == 0);
        let sight = Sight { counts: sum, elapsed, ..Sight::default() };
        let facts = Facts { blocked, ..Facts::default() };
        let _ = everything.look(0, &sight, &facts, now, &mut Vec::new());
        everything.crowd(sum)
    }

    fn judge_named(
        &mut self,
        breaker: &Breaker,
        policy: &Policy,
        at: usize,
        crowd: Option<Crowd>,
        now: Mono,
    ) {
        let named = self.named.len();
        let cut_off = self.cut_off.range((0, 0)..(1, 0)).count();
        let Some(NamedSeat { scope, cell, wider, children, seat }) = self.named.get_mut(at) else {
            return;
        };
        let Some(rules) = policy.scopes.get(*scope) else { return };
        let keys = policy.dimensions.iter().filter(|keys| keys.parent == *scope);
        let held: u64 = keys
            .filter_map(|keys| Some(table_of(breaker, keys)?.held()))
            .fold(0, u64::saturating_add);
        let word = rules.gate.gate.word();
        let facts = Facts {
            blocked: !word.is_armed() || is_blocked(breaker, wider),
            epoch: word.epoch(),
            // What all is part of cannot be lifted by the rest.
            crowd: crowd.filter(|_| !wider.is_empty()),
            children: children.saturating_add(held),
        };
        if rules.level == Level::Route
            && seat.tally.is_fed_by_counts()
            && let Some(counts) = &rules.rules.counts
        {
            seat.feed(counts.read().ended());
        }
        let mut found = Vec::new();
        let by_calls = seat.tally.sweep(&mut seat.judge, ROWS, |_| facts, now, &mut found);
        seat.allow(CapSpec::default().of(wide(named)), wide(cut_off));
        for (index, (_, mut found)) in found.into_iter().enumerate() {
            if index >= by_calls && seat.may_trip(&mut found) {
                let input = Input::Trip(By::Detector(found.detector));
                if rules.gate.gate.order(input, &rules.rules.trip, now).is_some() {
                    breaker.mark(0, usize::try_from(*cell).unwrap_or(usize::MAX));
                }
            }
            let place = Place { level: rules.level, index: *cell, key: None };
            self.missed += note(&mut self.findings, Finding { place, at: now, found });
        }
    }

    fn judge_keys(&mut self, breaker: &Breaker, policy: &Policy, at: usize, now: Mono) {
        let Some(KeySeat { dimension, table: number, wider, seat }) = self.keys.get_mut(at) else {
            return;
        };
        let Some(rules) = policy.dimensions.get(*dimension) else { return };
        let Some(table) = table_of(breaker, rules) else { return };
        let area = usize::try_from(*number).unwrap_or(usize::MAX).saturating_add(1);
        let cut_off = self.cut_off.range((area, 0)..(area.saturating_add(1), 0)).count();
        let above = is_blocked(breaker, wider);
        let facts = |row: usize| {
            let word = table.word(row).unwrap_or_default();
            let blocked = above || !word.is_armed();
            Facts { blocked, epoch: word.epoch(), ..Facts::default() }
        };
        let mut found = Vec::new();
        let by_calls = seat.tally.sweep(&mut seat.judge, ROWS, facts, now, &mut found);
        let cap = CapSpec { at_least: KEYS_AT_ONCE, ..CapSpec::default() };
        seat.allow(cap.of(table.held()), wide(cut_off));
        for (index, (row, mut found)) in found.into_iter().enumerate() {
            let Some(key) = table.tag(row) else { continue };
            if index >= by_calls && seat.may_trip(&mut found) {
                let input = Input::Trip(By::Detector(found.detector));
                let _ = table.order(key, input, &rules.rules.trip, now, Which::Known);
            }
            let key = Some((rules.index, key));
            let place = Place { level: Level::Key, index: *number, key };
            self.missed += note(&mut self.findings, Finding { place, at: now, found });
        }
    }

    fn seat_of(&mut self, place: Place) -> Option<&mut Seat> {
        if place.key.is_some() {
            let keys = self.keys.iter_mut().find(|keys| keys.table == place.index);
            keys.map(|keys| &mut keys.seat)
        } else {
            let named = self.named.iter_mut().find(|named| named.cell == place.index);
            named.map(|named| &mut named.seat)
        }
    }
}

impl Seat {
    /// The seat as it was, if the tally is the same; else a new judge that knows what the old one learned.
    fn taken_over(
        tally: &Arc<Tally>,
        old: Option<Seat>,
        mut judge: Judge,
        rows: usize,
        now: Mono,
    ) -> Seat {
        let old = match old {
            Some(old) if Arc::ptr_eq(&old.tally, tally) => return old,
            old => old,
        };
        if let Some(old) = &old {
            let all = old.judge.export_all(now);
            let _ = judge.import_all(&all, Span::ZERO, now);
            for row in (0..rows).filter(|&row| old.tally.weight_of(row) > 0) {
                let Some(learned) = old.judge.export(row, now) else { continue };
                tally.keep(row);
                tally.know_classes(row, old.tally.classes(row));
                // What it has learned is sound: it was learned here.
                let _ = judge.import(row, &learned, Span::ZERO, now);
            }
        }
        let trips = old.map_or_else(BTreeMap::new, |old| old.trips);
        Seat { tally: Arc::clone(tally), judge, taken: 0, trips, fed: tally.take_since() }
    }

    /// Tells the tally what its scope counted since the last look.
    fn feed(&mut self, counts: Ended) {
        let Some(before) = self.fed.replace(counts) else { return };
        let good = counts.good.wrapping_sub(before.good);
        let slow = counts.slow.wrapping_sub(before.slow);
        let faults = counts.fault.wrapping_sub(before.fault);
        let ended = good.saturating_add(slow).saturating_add(faults);
        if ended > 0 {
            self.tally.feed(0, ended, faults, slow);
        }
    }

    fn allow(&mut self, at_once: u64, cut_off: u64) {
        let before = std::mem::replace(&mut self.taken, self.tally.cap().taken());
        self.tally.cap().allow(at_once, cut_off, before);
    }

    /// Whether a finding of a look trips; what may not, warns.
    fn may_trip(&self, found: &mut Found) -> bool {
        if found.on_find == OnFind::Trip && found.learned && !self.tally.cap().take() {
            found.on_find = OnFind::Warn;
        }
        found.on_find == OnFind::Trip
    }

    fn child_tripped(&mut self, child: (usize, usize), now: Mono) {
        if self.judge.child_tripped(self.trips.get(&child).copied(), now) {
            if self.trips.len() >= CHILDREN {
                // The oldest are the first that count no more.
                let oldest = self.trips.iter().min_by_key(|(_, at)| **at).map(|(child, _)| *child);
                oldest.map(|oldest| self.trips.remove(&oldest));
            }
            self.trips.insert(child, now);
        }
    }
}

/// Notes a finding; 1 if there was no room for it.
fn note(findings: &mut Vec<Finding>, finding: Finding) -> u64 {
    if findings.len() >= FINDINGS {
        return 1;
    }
    findings.push(finding);
    0
}

fn is_blocked(breaker: &Breaker, cells: &[u32]) -> bool {
    cells.iter().any(|cell| gate(breaker, *cell).is_some_and(|gate| !gate.word().is_armed()))
}

fn gate(breaker: &Breaker, cell: u32) -> Option<&Gate> {
    breaker.gate_of(0, usize::try_from(cell).ok()?)
}

fn table_of<'a>(breaker: &'a Breaker, rules: &KeyRules) -> Option<&'a Table> {
    breaker.table(usize::try_from(rules.table).ok()?)
}

/// Area and cell of a place.
fn found_at(breaker: &Breaker, place: Place) -> Option<(usize, usize)> {
    let index = usize::try_from(place.index).ok()?;
    match place.key {
        None => Some((0, index)),
        Some((_, key)) => Some((index + 1, breaker.table(index)?.find(key)?)),
    }
}

/// The scope above a place, as an index into `Policy::scopes`.
fn parent_of(policy: &Policy, place: Place) -> Option<usize> {
    if place.key.is_some() {
        return policy.key_rules(place.index).map(|rules| rules.parent);
    }
    let parent = policy.scope_rules(place.index)?.scope.parent()?;
    policy.scopes.iter().position(|rules| rules.scope == parent)
}

/// The cells of the scopes above a named one.
fn wider_of(policy: &Policy, scope: &Scope) -> Vec<u32> {
    let mut cells = Vec::new();
    let mut above = scope.parent();
    while let Some(scope) = above {
        cells.extend(policy.named(&scope).map(|rules| rules.cell));
        above = scope.parent();
    }
    cells
}

/// Named scopes right below one.
fn children_of(policy: &Policy, scope: usize) -> u64 {
    let Some(own) = policy.scopes.get(scope) else { return 0 };
    let children =
        policy.scopes.iter().filter(|rules| rules.scope.parent().as_ref() == Some(&own.scope));
    wide(children.count())
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Rows of a dimension that one sweep looks at.
const ROWS: usize = 4_096;
/// Findings that wait to be taken, at most.
const FINDINGS: usize = 4_096;
/// Children whose last counted trip is known, at most.
const CHILDREN: usize = 4_096;
/// Keys that learned bounds may cut off at once, however few there are.
const KEYS_AT_ONCE: u32 = 16;
/// Of the sum of all routes, which nothing is held to.
const MOST_A_MINUTE: u64 = 10_000_000;
