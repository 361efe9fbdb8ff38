//! What one sweeper remembers of a scope or a dimension, and its look at a row: learn by time, judge, write bounds; pure.
//!
//! A look takes what a row counted since the last one. While anything of the row's lineage blocks, nothing
//! is learned, and what was not believed yet is dropped. Looks may come late, early, or an hour apart: the
//! words keep the largest counts meanwhile, and what comes from an hour is taken as an hour's.

use std::sync::Arc;

use super::errors::ErrorMemory;
use super::latency::{Latencies, LatencyMemory};
use super::learned::{HOURS, Hours, Learned, LearnedError, returned, turned};
use super::ratio::{Settled, Share};
use super::short::Short;
use super::silence::{Pulse, SilenceMemory};
use super::spread::SpreadMemory;
use super::surge::{Crowd, FORMS, Quantiles, Situation, SurgeMemory, halved};
use super::{Compiled, Found, RATIOS, Ruled, Sighting, seconds, single, wide};
use crate::time::{Mono, Span};

/// The memory of one scope, or of all cells of a dimension. It belongs to the one sweeper.
pub(crate) struct Judge {
    rules: Arc<Compiled>,
    rows: Box<[Row]>,
    /// What only a named scope has.
    extra: Option<Box<Extra>>,
    quantiles: Quantiles,
    since: Tick,
    /// The word of touched rows that the next sweep begins with.
    next: usize,
}

/// What a look at a row's words saw, and took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sight {
    /// The row was cleared since the last look: another key has it.
    pub(crate) is_new: bool,
    /// The bounds as they stood, packed.
    pub(crate) bounds: u64,
    /// Calls in the windows.
    pub(crate) counts: [u64; 4],
    /// Largest counts of halves that ended since the last look.
    pub(crate) peaks: [Short; 4],
    /// The last and the current half of the longest window.
    pub(crate) last: u64,
    pub(crate) current: u64,
    /// Time since the half second of the last call.
    pub(crate) idle: Option<Span>,
    pub(crate) settled: Settled,
    pub(crate) latencies: Latencies,
    /// Seconds since the last look.
    pub(crate) elapsed: f64,
}

/// What is known of a row's gate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// It, or a wider one of its lineage, is not armed.
    pub(crate) blocked: bool,
    /// Its epoch: twelve bits.
    pub(crate) epoch: u16,
    /// Everything, for the lift of a crowd; none for `/`, and for keys.
    pub(crate) crowd: Option<Crowd>,
    /// Children that it has: keys seen, or routes.
    pub(crate) children: u64,
}

/// What is to be written to the row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Orders {
    pub(crate) bounds: [Short; 4],
    /// The latency to measure from, in steps.
    pub(crate) location: Option<u64>,
    /// What would be forgotten with the row.
    pub(crate) weight: u32,
    /// The windows, the repeated calls and the streak begin at nothing.
    pub(crate) begin_anew: bool,
}

/// One row's memory.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    since: Tick,
    last: Tick,
    /// The last finding, and which kinds were found in its episode.
    found: Tick,
    kinds: u8,
    /// Calls seen, up to 255.
    seen: u8,
    /// The gate's epoch at the last look; the top bit says that it was blocked.
    gate: u16,
    /// When the present spell of tripping began.
    spell: Tick,
    /// The current half of the longest window at the last look.
    current: u32,
    surge: SurgeMemory,
    errors: ErrorMemory,
    ratios: [Share; RATIOS],
}

/// What only a named scope has.
struct Extra {
    hours: Hours,
    latency: LatencyMemory,
    silence: SilenceMemory,
    spread: SpreadMemory,
}

/// An instant in units of 2²⁶ ns (67 ms), with room for what was learned before time began; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u32);

impl Judge {
    /// Memory for one named scope.
    pub(crate) fn for_scope(rules: Arc<Compiled>, now: Mono) -> Judge {
        let extra = Extra {
            hours: Hours::new(),
            latency: LatencyMemory::default(),
            silence: SilenceMemory::default(),
            spread: SpreadMemory::default(),
        };
        Judge::new(rules, 1, Some(Box::new(extra)), now)
    }

    /// Memory for so many cells. The row that the others share is never judged, and never trips.
    pub(crate) fn for_cells(rules: Arc<Compiled>, cells: usize, now: Mono) -> Judge {
        Judge::new(rules, cells, None, now)
    }

    fn new(rules: Arc<Compiled>, rows: usize, extra: Option<Box<Extra>>, now: Mono) -> Judge {
        let rows = (0..rows).map(|_| Row::new(now)).collect();
        let (quantiles, since) = (Quantiles::default(), Tick::of(now));
        Judge { rules, rows, extra, quantiles, since, next: 0 }
    }

    /// Whether it is of one named scope.
    pub(crate) fn is_of_scope(&self) -> bool {
        self.extra.is_some()
    }

    /// The next of so many words of touched rows, in turn.
    pub(crate) fn next_of(&mut self, words: usize) -> usize {
        let word = if self.next < words { self.next } else { 0 };
        self.next = word + 1;
        word
    }

    /// Whether it judges a row: all but the one that keys without a cell share.
    pub(crate) fn knows(&self, row: usize) -> bool {
        row < self.rows.len()
    }

    /// Whether a row is to be looked at again: its gate moved, or the last look was a while ago.
    pub(crate) fn is_due(&self, row: usize, facts: &Facts, now: Mono) -> bool {
        self.rows.get(row).is_some_and(|row| {
            row.gate != facts.gate() || Tick::of(now).since(row.last) >= LOOK_SECONDS
        })
    }

    /// Seconds since the last look at a row; `None` for a row that is not judged.
    pub(crate) fn elapsed(&self, row: usize, now: Mono) -> Option<f64> {
        self.rows.get(row).map(|row| Tick::of(now).since(row.last))
    }

    /// Told of a finding that a call made: whether it is news.
    pub(crate) fn told(&mut self, row: usize, found: &Found, now: Mono) -> bool {
        let kind = self.kind_of(found.detector);
        let cells = self.extra.is_none();
        match self.rows.get_mut(row) {
            Some(row) => row.is_news(kind, now),
            // The shared row has no memory, and warns of nothing.
            None => !cells,
        }
    }

    /// Told of a child's trip; true if it was counted: then its time is the one to tell next time.
    pub(crate) fn child_tripped(&mut self, counted: Option<Mono>, now: Mono) -> bool {
        match (&self.rules.spread, &mut self.extra) {
            (Some(spread), Some(extra)) => spread.rule.tripped(counted, now, &mut extra.spread),
            _ => false,
        }
    }

    /// Looks at a row: learns, judges, and says what to write.
    pub(crate) fn look(
        &mut self,
        at: usize,
        sight: &Sight,
        facts: &Facts,
        now: Mono,
        out: &mut Vec<Found>,
    ) -> Option<Orders> {
        let rules = Arc::clone(&self.rules);
        let row = self.rows.get_mut(at)?;
        if sight.is_new && row.surge != SurgeMemory::default() && self.extra.is_none() {
            *row = Row::new(now);
        }
        let was_blocked = row.gate & BLOCKED != 0;
        let moved = row.gate != UNKNOWN && (row.gate ^ facts.epoch) & EPOCH_BITS != 0;
        let begin_anew = !facts.blocked && (was_blocked || moved);
        if facts.blocked || moved {
            row.refuse(sight, facts.blocked, now);
            if let Some(extra) = &mut self.extra {
                extra.latency.drop_unbelieved();
                extra.latency.begin_anew();
                extra.silence.drop_unbelieved();
            }
        }
        // Found but not tripped (it only warns, or another was tripped for it): not to be believed either.
        let held = !facts.blocked && !moved && row.is_held(now);
        if held {
            row.hold(sight, now);
            if let Some(extra) = &mut self.extra {
                extra.latency.drop_unbelieved();
            }
        }
        row.gate = facts.gate();
        self.turn(at, now);
        if !facts.blocked && !moved {
            if !held {
                self.learn(at, sight, now);
            }
            let row = self.rows.get_mut(at)?;
            row.judge(&rules, sight, now, out);
            if let Some(extra) = &mut self.extra {
                row.judge_named(&rules, extra, sight, facts, now, out);
            }
        }
        let bounds = self.bounds(at, sight, facts, begin_anew, now);
        let row = self.rows.get_mut(at)?;
        row.last = Tick::of(now);
        row.current = u32::try_from(sight.current).unwrap_or(u32::MAX);
        let weight = u32::try_from(super::narrow(row.surge.weight())).unwrap_or(u32::MAX);
        let location = self.extra.as_ref().and_then(|extra| extra.latency.steps());
        Some(Orders { bounds, location, weight, begin_anew })
    }

    /// A person's word that what was seen is normal.
    pub(crate) fn accept(&mut self, row: usize, now: Mono) {
        if let Some(row) = self.rows.get_mut(row) {
            row.surge.accept();
            (row.kinds, row.spell) = (0, Tick::default());
            if let Some(extra) = &mut self.extra {
                extra.hours.raise(hour(now), row.surge.peaks);
            }
        }
    }

    /// A scope's counts and peaks, for the crowd of the scopes in it.
    pub(crate) fn crowd(&self, counts: [u64; 4]) -> Option<Crowd> {
        self.rules.surge.as_ref()?;
        Some(Crowd { counts, peaks: self.rows.first()?.surge.values() })
    }

    /// From when on a class of fault that was never seen is news.
    pub(crate) fn novel_from(&self) -> Option<Mono> {
        let novel = self.rules.novel.as_ref()?;
        Some(self.since.instant().plus(novel.rule.start_after))
    }

    /// What a row has learned; for a dimension also what all have.
    pub(crate) fn export(&self, row: usize, now: Mono) -> Option<Learned> {
        let row = self.rows.get(row)?;
        let mut learned = Learned {
            age: span(Tick::of(now).since(row.since)),
            peaks: row.surge.values(),
            quantiles: self.quantiles.values(),
            errors: f64::from(row.errors.base).clamp(0.0, 1.0),
            ..Learned::nothing()
        };
        if let Some(extra) = &self.extra {
            learned.hours = extra.hours.from(hour(now));
            learned.gap = f64::from(extra.silence.gap);
            learned.gaps = turned(&extra.silence.hours, hour(now));
            let minimum = self.rules.latency.map(|latency| latency.rule.minimum);
            let known = minimum.is_some_and(|minimum| extra.latency.seen >= minimum);
            let (location, spread) = (extra.latency.location, extra.latency.spread);
            learned.latency = known.then(|| (f64::from(location), f64::from(spread)));
        }
        Some(learned)
    }

    /// What a dimension as a whole has learned.
    pub(crate) fn export_all(&self, now: Mono) -> Learned {
        let age = span(Tick::of(now).since(self.since));
        Learned { age, quantiles: self.quantiles.values(), ..Learned::nothing() }
    }

    /// Takes up what a dimension as a whole had learned.
    ///
    /// # Errors
    /// What no life could have learned.
    pub(crate) fn import_all(
        &mut self,
        learned: &Learned,
        away: Span,
        now: Mono,
    ) -> Result<(), LearnedError> {
        learned.check()?;
        self.since = Tick::of(now).before(seconds(learned.age) + seconds(away));
        self.quantiles.restore(learned.quantiles);
        Ok(())
    }

    /// Takes up what a row had learned, `away` ago.
    ///
    /// # Errors
    /// What no life could have learned.
    pub(crate) fn import(
        &mut self,
        at: usize,
        learned: &Learned,
        away: Span,
        now: Mono,
    ) -> Result<(), LearnedError> {
        learned.check()?;
        let half = self.rules.surge.map(|surge| seconds(surge.rule.peak_half));
        let kept = half.map_or(1.0, |half| halved(1.0, seconds(away), half));
        let since = Tick::of(now).before(seconds(learned.age) + seconds(away));
        let Some(row) = self.rows.get_mut(at) else { return Ok(()) };
        *row = Row { since, ..Row::new(now) };
        row.seen = u8::MAX;
        row.surge.peaks = learned.peaks.map(|peak| Short::near(peak * kept));
        row.errors.base = single(learned.errors);
        let Some(extra) = &mut self.extra else { return Ok(()) };
        self.since = since;
        // The hours begin with the one in which they were saved.
        let hours_away = usize::try_from(away.as_nanos() / HOUR % 24).unwrap_or(0);
        let first = (hour(now) + HOURS - hours_away) % HOURS;
        extra.hours.restore(first, &learned.hours);
        extra.silence.gap = single(learned.gap);
        returned(&learned.gaps, first, &mut extra.silence.hours);
        if let (Some((location, spread)), Some(latency)) = (learned.latency, self.rules.latency) {
            extra.latency = LatencyMemory::known(location, spread, latency.rule.minimum);
        }
        Ok(())
    }

    /// Ends the epochs that ended since the last look.
    fn turn(&mut self, at: usize, now: Mono) {
        let Some(row) = self.rows.get_mut(at) else { return };
        let (last, epoch) = (row.last.epoch(), Tick::of(now).epoch());
        let passed = epoch.saturating_sub(last);
        if passed == 0 {
            return;
        }
        let length = EPOCH_SECONDS * f64::from(passed);
        let surge = self.rules.surge;
        if let Some(Ruled { rule, .. }) = &surge {
            row.surge.decay(length, seconds(rule.peak_half));
        }
        // After three nothing waits any more.
        let turns = passed.min(3);
        for step in 0..turns {
            let believed = row.surge.turn();
            let part = length / f64::from(turns);
            if let Some(errors) = &self.rules.errors {
                errors.rule.turn(EPOCH_SECONDS, &mut row.errors);
            }
            let Some(extra) = &mut self.extra else { continue };
            // What is believed now was seen two epochs before the one that ends.
            let seen_in = (last + step).saturating_sub(2);
            let hour = usize::try_from(seen_in / 4 % 24).unwrap_or(0);
            if let Some(Ruled { rule, .. }) = &surge {
                let factor = halved(1.0, part, seconds(rule.peak_half));
                extra.hours.turn(factor, hour, believed);
            }
            if let Some(latency) = &self.rules.latency {
                latency.rule.turn(EPOCH_SECONDS, &mut extra.latency);
            }
            extra.silence.turn(part, hour);
        }
        if let Some(Ruled { rule, .. }) = &surge {
            let now = Tick::of(now);
            let lasting = row.spell != Tick::default() && now.since(row.found) < 3_600.0;
            if !lasting {
                row.spell = Tick::default();
            } else if now.since(row.spell) > seconds(rule.grow_after) {
                row.surge.grow(rule.growth.powf(length / 3_600.0));
                if let Some(extra) = &mut self.extra {
                    extra
                        .hours
                        .raise(usize::try_from(epoch / 4 % 24).unwrap_or(0), row.surge.peaks);
                }
            }
        }
    }

    fn learn(&mut self, at: usize, sight: &Sight, now: Mono) {
        let Some(row) = self.rows.get_mut(at) else { return };
        if let Some(surge) = &self.rules.surge {
            let young = row.is_young(now);
            let calls = row.calls_since(sight, now);
            row.seen = row.seen.saturating_add(u8::try_from(calls).unwrap_or(u8::MAX));
            row.surge.learn(sight.most());
            if young && self.extra.is_none() && calls > 0 {
                let grown = Tick::of(now).since(self.since) > seconds(surge.rule.start_after);
                for (index, form) in FORMS.into_iter().enumerate() {
                    // One sample for each window's length, however often there is a look.
                    let length = seconds(form.length());
                    let number = |tick: Tick| super::narrow(tick.seconds() / length);
                    if number(row.last) != number(Tick::of(now)) {
                        let count = sight.most().get(index).copied().unwrap_or(0);
                        self.quantiles.sample(index, count, now, grown);
                    }
                }
            }
        }
        if let Some(errors) = &self.rules.errors {
            errors.rule.learn(&sight.settled, &mut row.errors);
        }
        if let (Some(latency), Some(extra)) = (&self.rules.latency, &mut self.extra) {
            latency.rule.learn(&sight.latencies, &mut extra.latency);
        }
    }

    fn bounds(&self, at: usize, sight: &Sight, facts: &Facts, anew: bool, now: Mono) -> [Short; 4] {
        let none = [Short::NONE; 4];
        let (Some(surge), Some(row)) = (&self.rules.surge, self.rows.get(at)) else { return none };
        if facts.blocked {
            return none;
        }
        if row.kinds & 1 != 0 && Tick::of(now).since(row.found) < HOLD_SECONDS {
            // Found, and nothing tripped: told already. What the finding left stands until the hold is over.
            return Short::unpack(sight.bounds);
        }
        let named = self.extra.is_some();
        let young = !named && row.is_young(now);
        let now_tick = Tick::of(now);
        let table = now_tick.since(self.since);
        let own = now_tick.since(row.since);
        surge.rule.bounds(&Situation {
            age: if young { table } else { own },
            learning: if named { own } else { table },
            peaks: if young { self.quantiles.values() } else { row.surge.values() },
            hours: self.extra.as_ref().map(|extra| extra.hours.around(hour(now))),
            crowd: facts.crowd,
            counts: if anew { [0; 4] } else { sight.counts },
        })
    }

    fn kind_of(&self, detector: u8) -> u8 {
        let is = |index: Option<u8>| index == Some(detector);
        if is(self.rules.surge.map(|ruled| ruled.index)) {
            return SURGE;
        }
        if is(self.rules.repeat.map(|ruled| ruled.index)) {
            return REPEAT;
        }
        OTHER
    }
}

impl Row {
    fn new(now: Mono) -> Row {
        Row { since: Tick::of(now), last: Tick::of(now), gate: UNKNOWN, ..Row::default() }
    }

    /// Too little of its own to be held against.
    fn is_young(&self, now: Mono) -> bool {
        Tick::of(now).since(self.since) < YOUNG_SECONDS || self.seen < YOUNG_CALLS
    }

    /// Drops what is not believed yet, and lets the windows begin anew.
    fn refuse(&mut self, sight: &Sight, blocked: bool, now: Mono) {
        if self.gate == UNKNOWN {
            return;
        }
        self.surge.refuse(sight.most());
        self.errors.drop_unbelieved();
        self.errors.begin_anew();
        self.ratios = Default::default();
        if !blocked {
            // It came back: what is found from now on is a new episode.
            self.kinds = 0;
        }
        self.note_spell(now);
    }

    /// Whether something was found just now that could have tripped.
    fn is_held(&self, now: Mono) -> bool {
        self.kinds & !(1 << SILENCE) != 0 && Tick::of(now).since(self.found) < HOLD_SECONDS
    }

    /// Drops what is not believed yet, though nothing tripped.
    fn hold(&mut self, sight: &Sight, now: Mono) {
        self.surge.refuse(sight.most());
        self.errors.drop_unbelieved();
        self.note_spell(now);
    }

    fn note_spell(&mut self, now: Mono) {
        let now = Tick::of(now);
        if self.spell == Tick::default() && now.since(self.found) < HOLD_SECONDS {
            self.spell = now;
        }
    }

    /// Whether a finding of this kind is news: once in an episode.
    fn is_news(&mut self, kind: u8, now: Mono) -> bool {
        let now = Tick::of(now);
        if now.since(self.found) >= HOLD_SECONDS {
            self.kinds = 0;
        }
        let bit = 1_u8.checked_shl(u32::from(kind)).unwrap_or(0);
        if bit != 0 && self.kinds & bit != 0 {
            return false;
        }
        if self.kinds == 0 {
            self.found = now;
        }
        self.kinds |= bit;
        true
    }

    /// Calls since the last look, by the longest window's halves.
    fn calls_since(&self, sight: &Sight, now: Mono) -> u64 {
        let [.., form] = FORMS;
        let before = form.number(self.last.instant());
        let seen = u64::from(self.current);
        match form.number(now).saturating_sub(before) {
            0 => sight.current.saturating_sub(seen),
            1 => sight.current + sight.last.saturating_sub(seen),
            _ => sight.current + sight.last,
        }
    }

    fn judge(&mut self, rules: &Compiled, sight: &Sight, now: Mono, out: &mut Vec<Found>) {
        let age = Tick::of(now).since(self.since);
        if let Some(errors) = &rules.errors {
            let sighting = errors.rule.judge(&sight.settled, age, &mut self.errors);
            self.say(ERRORS, errors, sighting, now, out);
        }
        for (at, ratio) in rules.ratios.iter().enumerate() {
            let (Some(ratio), Some(share)) = (ratio, self.ratios.get_mut(at)) else { continue };
            let sighting = ratio.rule.judge(&sight.settled, share);
            self.say(if at == 0 { RATIO } else { RATIO + 1 }, ratio, sighting, now, out);
        }
    }

    fn judge_named(
        &mut self,
        rules: &Compiled,
        extra: &mut Extra,
        sight: &Sight,
        facts: &Facts,
        now: Mono,
        out: &mut Vec<Found>,
    ) {
        if let Some(latency) = &rules.latency {
            let sighting = latency.rule.judge(&sight.latencies, &mut extra.latency);
            self.say(LATENCY, latency, sighting, now, out);
        }
        if let Some(silence) = &rules.silence {
            let [.., form] = FORMS;
            let calls = wide(sight.last + sight.current);
            let pulse = Pulse {
                last: sight.idle.map(|idle| back(now, idle)),
                rate: calls / seconds(form.covered(now)).max(1.0),
                elapsed: sight.elapsed,
            };
            let sighting = silence.rule.judge(&pulse, hour(now), now, &mut extra.silence);
            self.say(SILENCE, silence, sighting, now, out);
        }
        if let Some(spread) = &rules.spread {
            let sighting = spread.rule.judge(facts.children, now, &mut extra.spread);
            self.say(SPREAD, spread, sighting, now, out);
        }
    }

    fn say<T: Copy>(
        &mut self,
        kind: u8,
        ruled: &Ruled<T>,
        sighting: Option<Sighting>,
        now: Mono,
        out: &mut Vec<Found>,
    ) {
        let Some(sighting) = sighting else { return };
        if self.is_news(kind, now) {
            out.push(ruled.found(sighting));
        }
    }
}

impl Facts {
    fn gate(&self) -> u16 {
        self.epoch & EPOCH_BITS | if self.blocked { BLOCKED } else { 0 }
    }
}

impl Sight {
    /// The largest counts since the last look.
    fn most(&self) -> [u64; 4] {
        let mut most = self.counts;
        for (most, peak) in most.iter_mut().zip(self.peaks) {
            *most = (*most).max(peak.floor());
        }
        most
    }
}

impl Tick {
    fn of(now: Mono) -> Tick {
        Tick(u32::try_from(now.as_nanos() >> TICK_BITS).unwrap_or(u32::MAX).saturating_add(ORIGIN))
    }

    fn instant(self) -> Mono {
        Mono::from_nanos(u64::from(self.0.saturating_sub(ORIGIN)) << TICK_BITS)
    }

    fn seconds(self) -> f64 {
        f64::from(self.0) * TICK_SECONDS
    }

    /// Seconds since an earlier one; for ever since never.
    fn since(self, earlier: Tick) -> f64 {
        if earlier == Tick::default() {
            1.0e12
        } else {
            f64::from(self.0.saturating_sub(earlier.0)) * TICK_SECONDS
        }
    }

    fn before(self, seconds: f64) -> Tick {
        let ticks = u32::try_from(super::narrow(seconds / TICK_SECONDS)).unwrap_or(u32::MAX);
        Tick(self.0.saturating_sub(ticks).max(1))
    }

    /// The number of its quarter of an hour; four make an hour of [`hour`].
    fn epoch(self) -> u32 {
        u32::try_from(self.instant().as_nanos() / EPOCH).unwrap_or(u32::MAX)
    }
}

/// The hour of a day that begins with the caller's origin.
fn hour(now: Mono) -> usize {
    usize::try_from(now.as_nanos() / HOUR % 24).unwrap_or(0)
}

fn back(now: Mono, idle: Span) -> Mono {
    Mono::from_nanos(now.as_nanos().saturating_sub(idle.as_nanos()))
}

fn span(seconds: f64) -> Span {
    Span::from_nanos(super::narrow(seconds * 1.0e9))
}

const TICK_BITS: u32 = 26;
/// 2²⁶ ns.
const TICK_SECONDS: f64 = 0.067_108_864;
/// The tick of the caller's origin: half of the range, 4.5 years.
const ORIGIN: u32 = 1 << 31;
const HOUR: u64 = 3_600_000_000_000;
const EPOCH: u64 = 900_000_000_000;
const EPOCH_SECONDS: f64 = 900.0;
/// One episode, one finding: then look again.
const HOLD_SECONDS: f64 = 300.0;
const YOUNG_SECONDS: f64 = 7_200.0;
const YOUNG_CALLS: u8 = 50;
/// Between two looks at a key's row.
const LOOK_SECONDS: f64 = 0.2;
const BLOCKED: u16 = 1 << 15;
const EPOCH_BITS: u16 = 0xfff;
/// No look yet.
const UNKNOWN: u16 = 1 << 14;
/// The kinds, as bits of an episode. Streak and novel tell each time: they cannot repeat themselves quickly.
const SURGE: u8 = 0;
const REPEAT: u8 = 1;
const ERRORS: u8 = 2;
const LATENCY: u8 = 3;
const SILENCE: u8 = 4;
const SPREAD: u8 = 5;
const RATIO: u8 = 6;
const OTHER: u8 = 8;

const _: () =
    assert!(size_of::<Row>() <= 112, "a key's memory, with its words, is at most 256 bytes");

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::{Facts, HOUR, Judge, Row};
    use crate::detect::surge::Crowd;
    use crate::detect::{
        Compiled, DetectorKind, DetectorSpec, Errors, Found, Latency, Learned, OnFind, Repeat,
        Silence, Streak, Surge,
    };
    use crate::facts::Outcome;
    use crate::tally::{Finish, Tally};
    use crate::time::{Mono, Span};

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;
    const DAY: u64 = 24 * HOUR;

    /// A scope or a dimension in virtual time: its gates hold five minutes and come back by themselves.
    struct World {
        tally: Tally,
        judge: Judge,
        now: u64,
        /// For each row: blocked until, epoch.
        gates: Vec<(u64, u16)>,
        trips: Vec<(u64, usize, Found)>,
        warnings: Vec<(u64, usize, Found)>,
        crowd: Option<Crowd>,
        /// The guard that is off in a negative control: the judge is told of no trip and no finding.
        blind: bool,
        chance: u64,
    }

    impl World {
        fn new(specs: &[DetectorSpec], cells: Option<usize>) -> World {
            let rules = Arc::new(Compiled::new(specs, cells.is_some()).unwrap_or_default());
            assert!(!rules.is_empty(), "no sound detector");
            let (tally, judge) = match cells {
                Some(cells) => (
                    Tally::for_cells(Arc::clone(&rules), cells),
                    Judge::for_cells(rules, cells, Mono::ZERO),
                ),
                None => (Tally::for_scope(Arc::clone(&rules)), Judge::for_scope(rules, Mono::ZERO)),
            };
            tally.cap().allow(u64::MAX, 0, 0);
            let gates = vec![(0, 0); cells.unwrap_or(1)];
            let (trips, warnings) = (Vec::new(), Vec::new());
            World {
                tally,
                judge,
                now: 0,
                gates,
                trips,
                warnings,
                crowd: None,
                blind: false,
                chance: 1,
            }
        }

        fn at(&self) -> Mono {
            Mono::from_nanos(self.now)
        }

        fn random(&mut self, below: u64) -> u64 {
            self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.chance >> 33) % below.max(1)
        }

        fn is_blocked(&self, row: usize) -> bool {
            self.gates.get(row).is_some_and(|gate| self.now < gate.0)
        }

        fn act(&mut self, row: usize, found: Found) {
            let (now, told) = (self.now, (self.now, row, found));
            match self.gates.get_mut(row) {
                Some(gate) if found.on_find == OnFind::Trip => {
                    *gate = (now + 5 * MINUTE, gate.1.wrapping_add(1));
                    self.trips.push(told);
                    self.tally.touch(row);
                }
                _ => self.warnings.push(told),
            }
        }

        /// `count` calls, evenly over a second; those that are blocked count nowhere.
        fn calls(&mut self, row: usize, count: u64) {
            for call in 0..count {
                if self.is_blocked(row) {
                    return;
                }
                let now = Mono::from_nanos(self.now + call * SECOND / count);
                if let Some(found) = self.tally.offered(row, now)
                    && found.on_find == OnFind::Trip
                {
                    self.act(row, found);
                }
            }
        }

        fn settle(&mut self, row: usize, count: u64, outcome: Outcome, millis: u64) {
            let latency = Some(Span::from_millis(millis));
            for _ in 0..count {
                let finish = Finish { outcome, latency, class: 500 };
                let now = self.at();
                if let Some(found) = self.tally.finished(row, &finish, now) {
                    self.act(row, found);
                }
            }
        }

        fn sweep(&mut self) {
            let now = self.at();
            let (gates, blind, crowd, time) =
                (self.gates.clone(), self.blind, self.crowd, self.now);
            let facts = |row: usize| {
                let (until, epoch) = gates.get(row).copied().unwrap_or_default();
                // A trip and the way back are a move each.
                let epoch = if time < until { epoch * 2 } else { epoch * 2 + 1 };
                let (blocked, epoch) = if blind { (false, 0) } else { (time < until, epoch) };
                Facts { blocked, epoch, crowd, children: 0 }
            };
            let mut out = Vec::new();
            if blind {
                self.tally.take_found(&mut Vec::new());
            }
            let by_calls = self.tally.sweep(&mut self.judge, 4_096, facts, now, &mut out);
            for (at, (row, found)) in out.into_iter().enumerate() {
                // What a call found to trip it has tripped.
                if at >= by_calls || found.on_find == OnFind::Warn {
                    self.act(row, found);
                }
            }
        }

        /// Lives to an instant, second by second.
        fn live(&mut self, until: u64, mut second: impl FnMut(&mut World)) {
            while self.now < until {
                second(self);
                self.now += SECOND;
                self.sweep();
            }
        }
    }

    fn surge(rule: Surge) -> DetectorSpec {
        DetectorSpec::new(DetectorKind::Surge(rule))
    }

    /// A route's day: 2 to 14 calls a second, and a burst of 60 more at each full hour.
    fn daily(world: &mut World, times: u64) {
        let hour = world.now / HOUR % 24;
        let rate = 2 + hour.min(24 - hour);
        let burst = if world.now % HOUR < 3 * SECOND { 60 } else { 0 };
        let noise = world.random(rate);
        world.calls(0, (rate / 2 + noise + burst) * times);
    }

    /// Goal: six days with bursts, sevenfold tides and growth trip nothing; then a runaway of the route trips in
    /// seconds, and what tripped is told.
    #[test]
    fn a_route_lives_and_a_runaway_trips() {
        let mut world = World::new(&[surge(Surge::of_route(600_000))], None);
        world.live(6 * DAY, |world| {
            daily(world, 1);
            // Growth by a tenth a day.
            let more = world.now / DAY;
            world.calls(0, more);
        });
        assert!(world.trips.is_empty(), "{:?}", world.trips);
        let from = world.now;
        world.live(from + 60 * SECOND, |world| world.calls(0, 600));
        let (at, _, found) = world.trips[0];
        assert!(at - from < 15 * SECOND, "{} s", (at - from) / SECOND);
        assert!(found.learned && found.value > found.bound && found.count > 0, "{found:?}");
    }

    /// Goal: a crowd that comes to everything trips no route; without the guard it does.
    #[test]
    fn a_crowd_trips_nothing() {
        for guarded in [true, false] {
            let mut world = World::new(&[surge(Surge::of_route(600_000))], None);
            world.live(2 * DAY, |world| world.calls(0, 5));
            world.live(2 * DAY + 600 * SECOND, |world| {
                let seconds = (world.now - 2 * DAY) / SECOND;
                let times = 1 + seconds.min(60) / 6;
                world.calls(0, 5 * times);
                if guarded {
                    // Everything has 100 calls a second on other days.
                    let count = |length: u64| length * 100 * times;
                    world.crowd = Some(Crowd {
                        counts: [1, 10, 60, 300].map(count),
                        peaks: [100.0, 1_000.0, 6_000.0, 30_000.0],
                    });
                }
            });
            assert_eq!(world.trips.is_empty(), guarded, "{:?}", world.trips.first());
        }
    }

    /// Goal: the ceiling is in force before anything is learned.
    #[test]
    fn the_ceiling_needs_no_learning() {
        let mut world = World::new(&[surge(Surge::of_route(6_000))], None);
        world.live(10 * SECOND, |world| world.calls(0, 90));
        assert!(world.trips.is_empty());
        world.live(2 * MINUTE, |world| world.calls(0, 110));
        assert_eq!((world.trips.len(), world.trips[0].2.learned), (1, false));
    }

    /// Goal: an attack that comes again and again is never learned; with the quarantine's eyes shut it is.
    #[test]
    fn an_attack_is_not_learned() {
        for blind in [false, true] {
            let rule = Surge { growth: 1.0, ..Surge::of_route(600_000) };
            let mut world = World::new(&[surge(rule)], None);
            world.live(DAY, |world| world.calls(0, 5));
            world.blind = blind;
            world.live(2 * DAY, |world| {
                let attacked = world.now % (20 * MINUTE) < 5 * MINUTE;
                world.calls(0, if attacked { 100 } else { 5 });
            });
            let late = world.trips.iter().filter(|trip| trip.0 > DAY + DAY / 2).count();
            assert_eq!(late > 30, !blind, "{late} late trips, blind: {blind}");
        }
    }

    /// Goal: a slow climb that never exceeds its bound ends at the ceiling; without one it gets through.
    #[test]
    fn slow_poisoning_ends_at_the_ceiling() {
        for (a_minute, stopped) in [(1_200, true), (6_000_000, false)] {
            let mut world = World::new(&[surge(Surge::of_route(a_minute))], None);
            world.live(DAY, |world| world.calls(0, 4));
            world.live(DAY + 15 * HOUR, |world| {
                let hours = i32::try_from((world.now - DAY) / HOUR).unwrap_or(0);
                let rate = super::super::narrow(4.0 * 1.3_f64.powi(hours.min(12)));
                world.calls(0, rate);
            });
            assert!(world.trips.first().is_none_or(|trip| !trip.2.learned));
            assert_eq!(!world.trips.is_empty(), stopped);
        }
    }

    /// Goal: a new normal finds its way back: by growth after hours, by a person at once, else never.
    #[test]
    fn there_is_a_way_back() {
        let life = |growth: f64, accepted: bool| {
            let rule = Surge { growth, ..Surge::of_route(600_000) };
            let mut world = World::new(&[surge(rule)], None);
            world.live(2 * DAY, |world| world.calls(0, 5));
            world.live(2 * DAY + 10 * MINUTE, |world| world.calls(0, 50));
            if accepted {
                // The whole of it is what the person saw.
                for _ in 0..3 {
                    world.judge.accept(0, Mono::from_nanos(world.now));
                }
            }
            world.live(3 * DAY, |world| world.calls(0, 50));
            world.trips.iter().filter(|trip| trip.0 > 2 * DAY + DAY * 3 / 4).count()
        };
        assert_eq!(life(1.5, false), 0, "growth");
        assert!(life(1.0, false) > 20, "no way back");
    }

    /// Goal: one episode is one warning, and after the hold there is another look.
    #[test]
    fn one_episode_is_one_warning() {
        let mut world = World::new(&[surge(Surge::of_route(600_000)).warning()], None);
        world.live(2 * DAY, |world| world.calls(0, 5));
        world.live(2 * DAY + 4 * MINUTE, |world| world.calls(0, 200));
        assert_eq!(world.warnings.len(), 1, "{:?}", world.warnings);
        world.live(2 * DAY + 11 * MINUTE, |world| world.calls(0, 200));
        assert!((2..=3).contains(&world.warnings.len()), "{:?}", world.warnings);
        assert!(world.trips.is_empty());
    }

    /// Goal: looks an hour apart lose no peak: nothing trips that did not before.
    #[test]
    fn late_looks_lose_no_peak() {
        let mut world = World::new(&[surge(Surge::of_route(600_000))], None);
        while world.now < 4 * DAY {
            daily(&mut world, 1);
            world.now += SECOND;
            if world.now.is_multiple_of(HOUR) {
                world.sweep();
            }
        }
        assert!(world.trips.is_empty(), "{:?}", world.trips);
        assert!(world.judge.export(0, world.at()).unwrap().peaks[1] >= 180.0);
    }

    /// Goal: among a dimension's keys the runaway is cut and nobody else: neither the nightly batch, nor a new key of
    /// the usual size; a new key of no usual size is. The batch is the one worth remembering.
    #[test]
    fn the_runaway_key_is_cut_alone() {
        let mut world = World::new(&[surge(Surge::of_keys(100_000))], Some(64));
        let day = |world: &mut World| {
            for key in 0..40 {
                let calls = u64::from(world.random(4) == 0);
                world.calls(key, calls);
            }
            // The nightly batch of key 7.
            if world.now % DAY >= 2 * HOUR && world.now % DAY < 2 * HOUR + 5 * MINUTE {
                world.calls(7, 30);
            }
            // Every hour a key comes back that was evicted: it has no history.
            if world.now.is_multiple_of(HOUR) {
                let row = 40 + usize::try_from(world.now / HOUR % 20).unwrap_or(0);
                world.tally.clear(row);
            }
            let row = 40 + usize::try_from(world.now / HOUR % 20).unwrap_or(0);
            let calls = u64::from(world.random(4) == 0);
            world.calls(row, calls);
        };
        world.live(3 * DAY, day);
        let first: Vec<_> = world.trips.iter().filter(|trip| trip.0 > DAY).collect();
        assert!(first.is_empty(), "{first:?}");
        assert!(
            (0..40).all(|key| key == 7 || world.tally.weight_of(key) < world.tally.weight_of(7))
        );
        world.trips.clear();
        let from = world.now;
        world.live(from + MINUTE, |world| {
            day(world);
            world.calls(3, 20);
            world.calls(63, 20);
        });
        let mut cut: Vec<_> = world.trips.iter().map(|trip| trip.1).collect();
        cut.sort_unstable();
        assert_eq!(cut, [3, 63], "{:?}", world.trips);
        assert!(world.trips.iter().all(|trip| trip.0 - from < 10 * SECOND));
    }

    /// Goal: a dead upstream trips in seconds at 25 calls a second and is never learned, however long it lasts; a base
    /// of its own is learned where nothing trips.
    #[test]
    fn errors_are_learned_by_time() {
        let mut world =
            World::new(&[DetectorSpec::new(DetectorKind::Errors(Errors::default()))], None);
        world.live(6 * HOUR, |world| {
            world.settle(0, 24, Outcome::Good, 10);
            let fault = world.random(25) < 3;
            world.settle(0, 1, if fault { Outcome::Fault } else { Outcome::Good }, 10);
        });
        assert!(world.trips.is_empty());
        let base = world.judge.export(0, world.at()).unwrap().errors;
        assert!((0.001..0.02).contains(&base), "{base}");
        let from = world.now;
        world.live(from + 3 * HOUR, |world| {
            if !world.is_blocked(0) {
                world.settle(0, 3, Outcome::Good, 10);
                world.settle(0, 22, Outcome::Fault, 10);
            }
        });
        assert!(world.trips[0].0 - from <= 10 * SECOND);
        assert!(world.trips.len() >= 30, "{} trips", world.trips.len());
        let after = world.judge.export(0, world.at()).unwrap().errors;
        assert!(after <= base * 1.2, "{base} became {after}");
    }

    /// Goal: latency and silence are found in a life as well, once each.
    #[test]
    fn slow_and_silent_routes_are_found() {
        let latency = DetectorSpec::new(DetectorKind::Latency(Latency::default()));
        let silence = DetectorSpec::new(DetectorKind::Silence(Silence::default()));
        let mut world = World::new(&[latency.warning(), silence], None);
        let usual = |world: &mut World| {
            world.calls(0, 3);
            let millis = 50 + world.random(100);
            world.settle(0, 3, Outcome::Good, millis);
        };
        world.live(DAY, usual);
        assert!(world.warnings.is_empty(), "{:?}", world.warnings);
        world.live(DAY + 3 * MINUTE, |world| {
            world.calls(0, 3);
            world.settle(0, 3, Outcome::Good, 900);
        });
        assert_eq!(world.warnings.len(), 1);
        assert_eq!(world.warnings[0].2.detector, 0);
        world.live(DAY + HOUR, usual);
        world.warnings.clear();
        let from = world.now;
        world.live(from + 4 * MINUTE, |_| {});
        assert_eq!(world.warnings.len(), 1, "{:?}", world.warnings);
        let (at, _, found) = world.warnings[0];
        assert_eq!(found.detector, 1);
        assert!((45..48).contains(&((at - from) / SECOND)), "{found:?}");
    }

    /// Goal: what was learned survives a restart, away or not, and nonsense is refused.
    #[test]
    fn learned_survives_a_restart() {
        let mut world = World::new(&[surge(Surge::of_route(600_000))], None);
        world.live(3 * DAY, |world| daily(world, 1));
        let learned = world.judge.export(0, world.at()).unwrap();
        assert!(learned.check().is_ok());
        // A new origin of time, nine hours later.
        let mut again = World::new(&[surge(Surge::of_route(600_000))], None);
        again.now = 5 * SECOND;
        again.judge.import(0, &learned, Span::from_secs(9 * 3_600), again.at()).unwrap();
        let exported = again.judge.export(0, again.at()).unwrap();
        assert!(exported.peaks[2] > learned.peaks[2] * 0.9);
        // Nine o'clock, by the old origin, is what comes next.
        assert!((exported.hours[3][2] - learned.hours[12][2]).abs() < learned.hours[12][2] * 0.1);
        again.sweep();
        again.live(20 * SECOND, |world| world.calls(0, 600));
        assert_eq!(again.trips.len(), 1, "a restart forgot what is normal");
        let nonsense = Learned { errors: f64::NAN, ..learned };
        assert!(again.judge.import(0, &nonsense, Span::ZERO, again.at()).is_err());
    }

    /// Goal: all detectors that fit fit into what was promised: 256 bytes a key, 2 kB a route.
    #[test]
    fn memory_is_as_promised() {
        use crate::detect::{Novel, Ratio, ShareOf, Spread};
        let either = Ratio { of: ShareOf::Either, ..Ratio::default() };
        let keys = [
            DetectorKind::Surge(Surge::of_keys(1_000)),
            DetectorKind::Repeat(Repeat::default()),
            DetectorKind::Errors(Errors::default()),
            DetectorKind::Streak(Streak::default()),
            DetectorKind::Ratio(Ratio::default()),
            DetectorKind::Ratio(either),
        ];
        let specs: Vec<_> = keys.into_iter().map(DetectorSpec::new).collect();
        let rules = Arc::new(Compiled::new(&specs, true).unwrap());
        let tally = Tally::for_cells(rules, 16);
        assert!(tally.row_bytes() + size_of::<Row>() <= 256, "{}", tally.row_bytes());
        let named = [
            DetectorKind::Surge(Surge::of_route(1_000)),
            DetectorKind::Repeat(Repeat::default()),
            DetectorKind::Errors(Errors::default()),
            DetectorKind::Streak(Streak::default()),
            DetectorKind::Latency(Latency::default()),
            DetectorKind::Silence(Silence::default()),
            DetectorKind::Spread(Spread::default()),
            DetectorKind::Novel(Novel::default()),
        ];
        let specs: Vec<_> = named.into_iter().map(DetectorSpec::new).collect();
        let tally = Tally::for_scope(Arc::new(Compiled::new(&specs, false).unwrap()));
        let judge = size_of::<Judge>() + size_of::<Row>() + size_of::<super::Extra>();
        assert!(tally.bytes() + judge <= 2_048, "{} and {judge}", tally.bytes());
    }
}
