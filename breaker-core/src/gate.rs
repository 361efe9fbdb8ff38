//! The trip machine: one 64-bit word, and one pure function that moves it; it holds no atomic and reads no clock.
//!
//! | bits | field | meaning |
//! | --- | --- | --- |
//! | 2 | phase | armed, tripped, half-open, killed |
//! | 1 | cut | the kill's level |
//! | 2 | mode | empty (the policy's), enforce, shadow: an operator's override |
//! | 5 | cause | what tripped it |
//! | 4 | strikes | trips in the present bad spell |
//! | 6 | left | probes that may still be given out; of a killed gate: 1 if a trip lies below |
//! | 6 | owed | probes that must still pass; of a tripped gate, and of a trip below a kill: 1 if its hold has no end |
//! | 12 | epoch | grows with every move, and wraps |
//! | 26 | until | end of the hold, also of a trip below a kill; of an armed gate with strikes: when they are forgiven; of a half-open one: when its probes count as lost, or, with none out, when it became so |
//!
//! *Owed* is counted down, not up, so that a policy swapped in the middle of a probation cannot
//! leave it waiting for probes that nobody gives out.
//!
//! `until` counts units of 2²⁴ ns (about 17 ms), rounded up: a hold is never shorter than told. It wraps after 13
//! days and is compared by half ranges, so holds are at most `MAX_HOLD` (about 6.5 days).

use std::num::NonZeroU64;

use crate::facts::{By, Cause, KillLevel, Mode, State};
use crate::policy::Recover;
use crate::time::{Mono, Span};

/// A gate's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Word(u64);

/// What can happen to a gate. An input with an epoch acts only on the move it knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Trip(By),
    /// Time passed: ends a hold, forgives strikes.
    Elapsed,
    ProbeTaken,
    ProbePassed(u16),
    ProbeFailed(u16),
    ProbeAbandoned(u16),
    Kill(KillLevel),
    Lift(u16, LiftTo),
    Reset,
    Mode(Option<Mode>),
    /// A trip of before a restart, and its strikes, where a kill came first.
    TripBelow(By, u8),
}

/// Where a lift leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LiftTo {
    /// From cut down to halt.
    Halt,
    /// To probation: the default.
    HalfOpen,
    /// Straight back to where the kill found it: armed, or tripped by what had tripped it before, while that trip still holds. One
    /// that waits for a person waits on, for a reset or a lift of its own; one with an end holds until then. Of a trip: armed.
    Armed,
}

/// How a gate trips and recovers: [`Recover`] in the gate's units, in one word, for a permit carries one for each probe.
///
/// 26 bits each for the first hold (zero: never comes back by itself) and for the longest, which is also how long an
/// armed gate stays calm before its strikes are forgiven; then the probes, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TripRule(NonZeroU64);

/// Which words refuse a call by themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refuses {
    /// What a word shows of a trip that was made to last.
    trip: u64,
    /// Of all words those of killed gates are the greatest.
    from: u64,
}

impl Refuses {
    /// Those of trips that last and of kills, or none.
    pub(crate) const fn new(any: bool) -> Refuses {
        if any {
            Refuses { trip: TRIPPED | 1 << OWED_AT, from: KILLED }
        } else {
            Refuses { trip: u64::MAX, from: u64::MAX }
        }
    }
}

/// What a gate says to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Pass.
    Free,
    /// Pass with a probe.
    Probe,
    /// Do not pass.
    Blocked(Cause, Option<Span>),
}

/// A hold, at most: half the range of `until` less a minute for clocks that disagree.
pub(crate) const MAX_HOLD: Span = Span::from_nanos(((HALF - 4_096) as u64) << UNIT_BITS);
/// A hold, at least: ten sweeps.
pub(crate) const MIN_HOLD: Span = Span::from_millis(200);
/// Probes, at most.
pub(crate) const MAX_PROBES: u8 = 63;

impl TripRule {
    /// The rule in units, rounded up. Numbers out of range are the compiler's to refuse; here they saturate.
    pub(crate) const fn new(recover: Recover) -> TripRule {
        let (probes, after, at_most) = match recover {
            Recover::Manual { probes } => (probes, 0, 0),
            Recover::Probe { probes, after, at_most } => (probes, units(after), units(at_most)),
        };
        let probes = match probes {
            0 => 1,
            1..=MAX_PROBES => probes as u64,
            _ => MAX_PROBES as u64,
        };
        let word = probes << (UNTIL * 2) | (after as u64) << UNTIL | at_most as u64;
        match NonZeroU64::new(word) {
            Some(word) => TripRule(word),
            None => TripRule(NonZeroU64::MIN),
        }
    }

    const fn probes(self) -> u8 {
        byte(self.0.get(), UNTIL * 2, LEFT)
    }

    const fn after(self) -> u32 {
        (self.0.get() >> UNTIL & 0x03ff_ffff) as u32
    }

    const fn at_most(self) -> u32 {
        (self.0.get() & 0x03ff_ffff) as u32
    }

    /// How long a half-open gate waits for its probes before it gives them out again: as long as the first hold, and a minute
    /// at least, for a call may be slow and still be good.
    const fn patience(self) -> u32 {
        if self.after() > MIN_PATIENCE { self.after() } else { MIN_PATIENCE }
    }

    /// How long a gate with so many strikes holds, if it trips now.
    ///
    /// Each strike beyond the first doubles the hold and adds up to a quarter, so that many breakers that tripped
    /// together do not all probe together; never beyond the longest. The core has no random source: the
    /// quarter's share is spread from the instant of the trip.
    #[expect(clippy::cast_possible_truncation, reason = "compared with 26 bits just before")]
    const fn hold(self, strikes: u8, now: Mono) -> u32 {
        let doublings = strikes.saturating_sub(1) as u32;
        let mut long = (self.after() as u64) << doublings;
        if doublings > 0 {
            let share = now.as_nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
            long += (long * share) >> 10;
        }
        if long < self.at_most() as u64 { long as u32 } else { self.at_most() }
    }
}

impl Word {
    pub(crate) const fn from_bits(word: u64) -> Word {
        Word(word)
    }

    pub(crate) const fn to_bits(self) -> u64 {
        self.0
    }

    /// The word after `input`; `None` where the input means nothing to it. Total.
    pub(crate) const fn step(self, input: Input, rule: &TripRule, now: Mono) -> Option<Word> {
        let at = self.fields();
        let next = match (input, at.phase) {
            (Input::Trip(by), Phase::Armed | Phase::HalfOpen) => {
                at.tripped(at.strikes, trip_code(by), rule, now)
            }
            (Input::Elapsed, Phase::Tripped) if at.is_over(rule, now) => at.half_open(rule, now),
            (Input::Elapsed, Phase::Armed) if at.strikes > 0 && has_passed(at.until, now) => {
                Fields { strikes: 0, until: 0, ..at }
            }
            (Input::Elapsed, Phase::HalfOpen) if at.is_overdue(now) => {
                // What is still out counts no more: its epoch is gone.
                let until = deadline(now, 0);
                Fields { left: at.owed, owed: at.owed, until, ..at.moved(Phase::HalfOpen) }
            }
            (Input::ProbeTaken, Phase::HalfOpen) if at.left > 0 => {
                Fields { left: at.left - 1, until: deadline(now, rule.patience()), ..at }
            }
            (Input::ProbePassed(epoch), Phase::HalfOpen) if epoch == at.epoch => {
                if at.owed <= 1 {
                    at.armed_with_strikes(rule, now)
                } else {
                    let owed = at.owed - 1;
                    Fields { owed, left: smaller(at.left, owed), ..at }
                }
            }
            (Input::ProbeFailed(epoch), Phase::HalfOpen) if epoch == at.epoch => {
                at.tripped(at.strikes, at.cause, rule, now)
            }
            (Input::ProbeAbandoned(epoch), Phase::HalfOpen)
                if epoch == at.epoch && at.left < at.owed =>
            {
                Fields { left: at.left + 1, ..at }
            }
            (Input::Elapsed, Phase::Killed) if at.left > 0 && !at.holds(rule, now) => {
                // Told in time, before the end comes round as one that is ahead.
                Fields { cause: 0, left: 0, until: 0, ..at }
            }
            (Input::TripBelow(by, strikes), Phase::Killed) if at.left == 0 => {
                let cause = trip_code(by);
                let trip = at.tripped(strikes.saturating_sub(1), cause, rule, now);
                let Fields { strikes, owed, until, .. } = trip;
                Fields { left: 1, strikes, cause, owed, until, ..at }
            }
            (Input::Kill(level), phase) => {
                let was_cut = matches!(phase, Phase::Killed) && at.cut;
                at.killed(was_cut || matches!(level, KillLevel::Cut))
            }
            (Input::Lift(epoch, to), Phase::Killed) if epoch == at.epoch => {
                let trips = at.left > 0 && at.holds(rule, now);
                match to {
                    LiftTo::Halt if at.cut => at.killed(false),
                    LiftTo::Halt => return None,
                    LiftTo::HalfOpen if trips => at.half_open(rule, now),
                    LiftTo::HalfOpen => Fields { cause: 0, ..at.half_open(rule, now) },
                    LiftTo::Armed if trips => at.tripped_again(),
                    LiftTo::Armed => at.armed(),
                }
            }
            (Input::Lift(epoch, LiftTo::HalfOpen), Phase::Tripped) if epoch == at.epoch => {
                at.half_open(rule, now)
            }
            (Input::Lift(epoch, LiftTo::Armed), Phase::Tripped | Phase::HalfOpen)
                if epoch == at.epoch =>
            {
                at.armed()
            }
            (Input::Reset, Phase::Tripped | Phase::HalfOpen) => Fields { mode: 0, ..at.armed() },
            (Input::Reset, Phase::Armed) if at.mode != 0 || at.strikes != 0 => {
                Fields { mode: 0, strikes: 0, until: 0, ..at }
            }
            (Input::Mode(mode), _) => Fields { mode: mode_code(mode), ..at },
            _ => return None,
        };
        let next = next.word();
        if next.0 == self.0 { None } else { Some(next) }
    }

    /// What the gate says to a call. An elapsed hold counts as half-open.
    pub(crate) const fn look(self, reducing: bool, rule: &TripRule, now: Mono) -> Look {
        let at = self.fields();
        match at.phase {
            Phase::Armed => Look::Free,
            Phase::Killed if at.cut => Look::Blocked(Cause::Killed(KillLevel::Cut), None),
            _ if reducing => Look::Free,
            Phase::Killed => Look::Blocked(Cause::Killed(KillLevel::Halt), None),
            Phase::Tripped if at.is_over(rule, now) => Look::Probe,
            Phase::Tripped => Look::Blocked(at.trip_cause(), at.wait(rule, now)),
            Phase::HalfOpen if at.left > 0 || at.is_overdue(now) => Look::Probe,
            Phase::HalfOpen => Look::Blocked(Cause::Probing, None),
        }
    }

    /// The last look: what was decided at `epoch` against what the gate says now.
    ///
    /// A reducing call asks only for a cut, a call that shadow mode let through only for a kill: an epoch cannot
    /// tell them which kind of move they missed, and neither may be refused for a trip.
    pub(crate) const fn look_again(
        self,
        epoch: u16,
        reducing: bool,
        shadow: bool,
    ) -> Option<Cause> {
        let at = self.fields();
        match at.phase {
            Phase::Killed if at.cut => Some(Cause::Killed(KillLevel::Cut)),
            _ if reducing => None,
            Phase::Killed => Some(Cause::Killed(KillLevel::Halt)),
            _ if shadow => None,
            Phase::Tripped => Some(at.trip_cause()),
            Phase::Armed | Phase::HalfOpen if at.epoch != epoch => Some(Cause::Stale),
            Phase::Armed | Phase::HalfOpen => None,
        }
    }

    /// Of all words those of killed gates are the greatest.
    pub(crate) const fn is_killed(self) -> bool {
        self.0 >= KILLED
    }

    pub(crate) const fn is_cut(self) -> bool {
        let at = self.fields();
        matches!(at.phase, Phase::Killed) && at.cut
    }

    pub(crate) const fn is_armed(self) -> bool {
        matches!(self.fields().phase, Phase::Armed)
    }

    /// Whether all three let every call pass without a probe, and no operator overrides a mode.
    pub(crate) const fn are_quiet(words: [Word; 3]) -> bool {
        let [a, b, c] = words;
        (a.0 | b.0 | c.0) & LOUD == 0
    }

    /// Whether it lets every call pass without a probe, and no operator overrides its mode.
    pub(crate) const fn is_quiet(self) -> bool {
        self.0 & LOUD == 0
    }

    /// As [`Word::endless_block`], from the word alone: what only the rule at hand makes endless
    /// is not seen, nor what is under an operator's override.
    #[inline(always)]
    pub(crate) const fn lasting_block(self, refuses: Refuses) -> Option<Cause> {
        let shown = bits(PHASE) << PHASE_AT | bits(MODE) << MODE_AT | 1 << OWED_AT;
        if self.0 & shown == refuses.trip {
            Some(self.fields().trip_cause())
        } else if self.0 < refuses.from {
            None
        } else if (self.0 >> CUT_AT) & 1 == 1 {
            Some(Cause::Killed(KillLevel::Cut))
        } else {
            Some(Cause::Killed(KillLevel::Halt))
        }
    }

    /// A block that no time ends: a kill, or a trip that waits for a person.
    pub(crate) const fn endless_block(self, reducing: bool, rule: &TripRule) -> Option<Cause> {
        let at = self.fields();
        match at.phase {
            Phase::Killed if at.cut => Some(Cause::Killed(KillLevel::Cut)),
            _ if reducing => None,
            Phase::Killed => Some(Cause::Killed(KillLevel::Halt)),
            Phase::Tripped if at.is_endless(rule) => Some(at.trip_cause()),
            Phase::Armed | Phase::Tripped | Phase::HalfOpen => None,
        }
    }

    /// Whether nothing but the epoch tells it from a new gate.
    pub(crate) const fn is_fresh(self) -> bool {
        self.0 & !(bits(EPOCH) << EPOCH_AT) == 0
    }

    /// The word that a newcomer finds after its cell's last key was forgotten: armed, a move later.
    pub(crate) const fn freed(self) -> Word {
        self.fields().armed().cleared()
    }

    /// Whether its trip is long over and nobody came to prove anything: an hour after its hold ended, or
    /// its probation began, with no probe out. The key that it belonged to may be forgotten.
    pub(crate) const fn is_forgotten(self, now: Mono) -> bool {
        let at = self.fields();
        let over = wrapped(now).wrapping_sub(at.until) & RANGE;
        let long_ago = over >= FORGOTTEN && over < HALF;
        match at.phase {
            Phase::Tripped => at.owed == 0 && at.mode == 0 && long_ago,
            Phase::HalfOpen => at.left == at.owed && at.mode == 0 && long_ago,
            Phase::Armed | Phase::Killed => false,
        }
    }

    /// Whether time alone may move it.
    pub(crate) const fn awaits_time(self, rule: &TripRule) -> bool {
        let at = self.fields();
        match at.phase {
            Phase::Armed => at.strikes > 0,
            Phase::Tripped => !at.is_endless(rule),
            Phase::HalfOpen => at.left < at.owed,
            Phase::Killed => at.left > 0 && !at.is_endless(rule),
        }
    }

    pub(crate) const fn epoch(self) -> u16 {
        self.fields().epoch
    }

    pub(crate) const fn strikes(self) -> u8 {
        self.fields().strikes
    }

    /// The operator's override, if there is one.
    pub(crate) const fn mode(self) -> Option<Mode> {
        match self.fields().mode {
            MODE_ENFORCE => Some(Mode::Enforce),
            MODE_SHADOW => Some(Mode::Shadow),
            _ => None,
        }
    }

    /// The state as the word has it.
    pub(crate) const fn state(self) -> State {
        let at = self.fields();
        match at.phase {
            Phase::Armed => State::Armed,
            Phase::Tripped => State::Tripped,
            Phase::HalfOpen => State::HalfOpen,
            Phase::Killed if at.cut => State::Killed(KillLevel::Cut),
            Phase::Killed => State::Killed(KillLevel::Halt),
        }
    }

    /// Why the gate stands where it stands; `None` if armed, or on probation after a kill.
    pub(crate) const fn cause(self) -> Option<Cause> {
        let at = self.fields();
        match at.phase {
            Phase::Armed => None,
            Phase::Tripped => Some(at.trip_cause()),
            Phase::HalfOpen if at.cause == 0 => None,
            Phase::HalfOpen => Some(at.trip_cause()),
            Phase::Killed if at.cut => Some(Cause::Killed(KillLevel::Cut)),
            Phase::Killed => Some(Cause::Killed(KillLevel::Halt)),
        }
    }

    /// Of a killed gate: the trip that a lift to armed would lead back to.
    pub(crate) const fn trip_below(self, rule: &TripRule, now: Mono) -> Option<Cause> {
        let at = self.fields();
        let trips = matches!(at.phase, Phase::Killed) && at.left > 0 && at.holds(rule, now);
        if trips { Some(at.trip_cause()) } else { None }
    }

    /// When a tripped gate's hold ends; `None` if it has no end or the gate is not tripped.
    pub(crate) const fn until(self, rule: &TripRule, now: Mono) -> Option<Mono> {
        let at = self.fields();
        if !matches!(at.phase, Phase::Tripped) || at.is_endless(rule) {
            return None;
        }
        // Both are points on the wrapped circle; the nearer way round is the true one.
        let unit = now.as_nanos() >> UNIT_BITS;
        let ahead = at.until.wrapping_sub(wrapped(now)) & RANGE;
        let until = if ahead < HALF {
            unit.saturating_add(ahead as u64)
        } else {
            unit.saturating_sub((RANGE - ahead + 1) as u64)
        };
        Some(Mono::from_nanos(until.saturating_mul(1 << UNIT_BITS)))
    }

    const fn fields(self) -> Fields {
        let word = self.0;
        Fields {
            phase: match (word >> PHASE_AT) & bits(PHASE) {
                0 => Phase::Armed,
                1 => Phase::Tripped,
                2 => Phase::HalfOpen,
                _ => Phase::Killed,
            },
            cut: (word >> CUT_AT) & bits(CUT) == 1,
            mode: byte(word, MODE_AT, MODE),
            cause: byte(word, CAUSE_AT, CAUSE),
            strikes: byte(word, STRIKES_AT, STRIKES),
            left: byte(word, LEFT_AT, LEFT),
            owed: byte(word, OWED_AT, OWED),
            epoch: ((word >> EPOCH_AT) & 0xfff) as u16,
            until: (word & 0x03ff_ffff) as u32,
        }
    }
}

/// The word, taken apart.
#[derive(Clone, Copy)]
struct Fields {
    phase: Phase,
    cut: bool,
    mode: u8,
    cause: u8,
    strikes: u8,
    left: u8,
    owed: u8,
    epoch: u16,
    until: u32,
}

#[derive(Clone, Copy)]
enum Phase {
    Armed,
    Tripped,
    HalfOpen,
    Killed,
}

impl Fields {
    const fn word(self) -> Word {
        let phase = match self.phase {
            Phase::Armed => 0,
            Phase::Tripped => 1,
            Phase::HalfOpen => 2,
            Phase::Killed => 3_u64,
        };
        Word(
            phase << PHASE_AT
                | (self.cut as u64) << CUT_AT
                | (self.mode as u64) << MODE_AT
                | (self.cause as u64) << CAUSE_AT
                | (self.strikes as u64) << STRIKES_AT
                | (self.left as u64) << LEFT_AT
                | (self.owed as u64) << OWED_AT
                | (self.epoch as u64) << EPOCH_AT
                | self.until as u64,
        )
    }

    /// One move on, with everything emptied that a phase does not use.
    const fn moved(self, phase: Phase) -> Fields {
        let epoch = (self.epoch + 1) & 0xfff;
        Fields { phase, cut: false, left: 0, owed: 0, until: 0, epoch, ..self }
    }

    const fn tripped(self, strikes: u8, cause: u8, rule: &TripRule, now: Mono) -> Fields {
        let strikes = if strikes < MAX_STRIKES { strikes + 1 } else { strikes };
        let owed = (rule.after() == 0) as u8;
        let until = deadline(now, rule.hold(strikes, now));
        Fields { strikes, cause, owed, until, ..self.moved(Phase::Tripped) }
    }

    const fn half_open(self, rule: &TripRule, now: Mono) -> Fields {
        let (left, owed, until) = (rule.probes(), rule.probes(), deadline(now, 0));
        Fields { left, owed, until, ..self.moved(Phase::HalfOpen) }
    }

    /// A trip stays below: as it was found, whether it is over or not.
    const fn killed(self, cut: bool) -> Fields {
        let moved = Fields { cut, ..self.moved(Phase::Killed) };
        match self.phase {
            Phase::Tripped => Fields { left: 1, owed: self.owed, until: self.until, ..moved },
            Phase::Killed => {
                Fields { left: self.left, owed: self.owed, until: self.until, ..moved }
            }
            Phase::Armed | Phase::HalfOpen => Fields { cause: 0, ..moved },
        }
    }

    /// The trip below a kill.
    const fn tripped_again(self) -> Fields {
        Fields { owed: self.owed, until: self.until, ..self.moved(Phase::Tripped) }
    }

    const fn cleared(self) -> Word {
        Fields { mode: 0, ..self }.word()
    }

    const fn armed(self) -> Fields {
        Fields { cause: 0, strikes: 0, ..self.moved(Phase::Armed) }
    }

    /// Armed by its probes: what it did is remembered for as long as its longest hold.
    const fn armed_with_strikes(self, rule: &TripRule, now: Mono) -> Fields {
        if rule.at_most() == 0 || self.strikes == 0 {
            return self.armed();
        }
        let until = deadline(now, rule.at_most());
        Fields { cause: 0, until, ..self.moved(Phase::Armed) }
    }

    /// Of a tripped gate, or a trip below a kill: its hold has not ended.
    const fn holds(self, rule: &TripRule, now: Mono) -> bool {
        self.is_endless(rule) || !has_passed(self.until, now)
    }

    /// Of a tripped gate, or a trip below a kill: the trip or the rule at hand says that it never comes back by itself.
    const fn is_endless(self, rule: &TripRule) -> bool {
        self.owed > 0 || rule.after() == 0
    }

    /// Of a half-open gate: probes are out, and the last was taken so long ago that they count as lost.
    const fn is_overdue(self, now: Mono) -> bool {
        self.left < self.owed && has_passed(self.until, now)
    }

    const fn is_over(self, rule: &TripRule, now: Mono) -> bool {
        !self.is_endless(rule) && has_passed(self.until, now)
    }

    const fn wait(self, rule: &TripRule, now: Mono) -> Option<Span> {
        match self.word().until(rule, now) {
            Some(until) => Some(until.since(now)),
            None => None,
        }
    }

    const fn trip_cause(self) -> Cause {
        if self.cause == 0 {
            // Only a lift leads to probation without a trip before it.
            Cause::ProbeFailed
        } else if self.cause < FIRST_LIMIT {
            Cause::Tripped(By::Hand)
        } else if self.cause < FIRST_DETECTOR {
            Cause::Tripped(By::Limit(self.cause - FIRST_LIMIT))
        } else if self.cause == WIDER {
            Cause::Tripped(By::Wider)
        } else {
            Cause::Tripped(By::Detector(self.cause - FIRST_DETECTOR))
        }
    }
}

/// 1 is by hand, then come the limits, then the detectors, and last those of wider scopes; 0 is nothing. Numbers out of range are the compiler's to
/// refuse; here they saturate.
const fn trip_code(by: By) -> u8 {
    let (first, last, index) = match by {
        By::Hand => return 1,
        By::Wider => return WIDER,
        By::Limit(index) => (FIRST_LIMIT, FIRST_DETECTOR - 1, index),
        By::Detector(index) => (FIRST_DETECTOR, WIDER - 1, index),
    };
    if index < last - first { first + index } else { last }
}

const fn mode_code(mode: Option<Mode>) -> u8 {
    match mode {
        None => 0,
        Some(Mode::Enforce) => MODE_ENFORCE,
        Some(Mode::Shadow) => MODE_SHADOW,
    }
}

/// The instant, in units rounded down, on the wrapped circle.
#[expect(clippy::cast_possible_truncation, reason = "the mask keeps 26 bits")]
const fn wrapped(now: Mono) -> u32 {
    (now.as_nanos() >> UNIT_BITS) as u32 & RANGE
}

/// The end of a hold that starts now. One unit is added because now was rounded down.
const fn deadline(now: Mono, hold: u32) -> u32 {
    wrapped(now).wrapping_add(hold).wrapping_add(1) & RANGE
}

/// Half-range comparison: the half behind now has passed, the half ahead has not.
const fn has_passed(until: u32, now: Mono) -> bool {
    wrapped(now).wrapping_sub(until) & RANGE < HALF
}

#[expect(clippy::cast_possible_truncation, reason = "compared with the largest value just before")]
const fn units(span: Span) -> u32 {
    let units = span.as_nanos().div_ceil(1 << UNIT_BITS);
    if units < (HALF - 4_096) as u64 { units as u32 } else { HALF - 4_096 }
}

const fn smaller(a: u8, b: u8) -> u8 {
    if a < b { a } else { b }
}

const fn bits(width: u32) -> u64 {
    (1 << width) - 1
}

#[expect(clippy::cast_possible_truncation, reason = "no field read by it is wider than 6 bits")]
const fn byte(word: u64, at: u32, width: u32) -> u8 {
    ((word >> at) & bits(width)) as u8
}

const UNTIL: u32 = 26;
const EPOCH: u32 = 12;
const OWED: u32 = 6;
const LEFT: u32 = 6;
const STRIKES: u32 = 4;
const CAUSE: u32 = 5;
const MODE: u32 = 2;
const CUT: u32 = 1;
const PHASE: u32 = 2;

const EPOCH_AT: u32 = UNTIL;
const OWED_AT: u32 = EPOCH_AT + EPOCH;
const LEFT_AT: u32 = OWED_AT + OWED;
const STRIKES_AT: u32 = LEFT_AT + LEFT;
const CAUSE_AT: u32 = STRIKES_AT + STRIKES;
const MODE_AT: u32 = CAUSE_AT + CAUSE;
const CUT_AT: u32 = MODE_AT + MODE;
const PHASE_AT: u32 = CUT_AT + CUT;
const _: () = assert!(PHASE_AT + PHASE == 64, "the fields fill the word");
/// The phase of a tripped gate, and of a killed one.
const TRIPPED: u64 = 1 << PHASE_AT;
const KILLED: u64 = 3 << PHASE_AT;

/// Any bit of these: not armed, or a mode overridden.
const LOUD: u64 = bits(PHASE) << PHASE_AT | bits(MODE) << MODE_AT;

const UNIT_BITS: u32 = 24;
const RANGE: u32 = (1 << UNTIL) - 1;
const HALF: u32 = 1 << (UNTIL - 1);
/// About an hour.
const FORGOTTEN: u32 = units(Span::from_secs(3_600));
/// About a minute.
const MIN_PATIENCE: u32 = units(Span::from_secs(60));
const MAX_STRIKES: u8 = 15;
const FIRST_LIMIT: u8 = 2;
/// Eight limits before it, twenty-one detectors from it on.
const FIRST_DETECTOR: u8 = 10;
/// The last code there is.
const WIDER: u8 = (1 << CAUSE) - 1;
const MODE_ENFORCE: u8 = 1;
const MODE_SHADOW: u8 = 2;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{
        EPOCH_AT, HALF, Input, LEFT_AT, LiftTo, Look, MAX_HOLD, OWED_AT, PHASE_AT, RANGE,
        STRIKES_AT, TripRule, UNIT_BITS, Word, has_passed,
    };
    use crate::facts::{By, Cause, KillLevel, Mode, State};
    use crate::policy::Recover;
    use crate::time::{Mono, Span};

    const SECOND: Span = Span::from_secs(1);

    fn rules() -> [TripRule; 3] {
        [
            TripRule::new(Recover::Manual { probes: 2 }),
            TripRule::new(Recover::Probe { probes: 2, after: SECOND, at_most: Span::from_secs(4) }),
            TripRule::new(Recover::Probe { probes: 63, after: MAX_HOLD, at_most: MAX_HOLD }),
        ]
    }

    fn inputs(epoch: u16) -> Vec<Input> {
        let mut all = vec![
            Input::Trip(By::Hand),
            Input::Trip(By::Limit(3)),
            Input::Trip(By::Wider),
            Input::Elapsed,
            Input::ProbeTaken,
            Input::Kill(KillLevel::Halt),
            Input::Kill(KillLevel::Cut),
            Input::Reset,
            Input::Mode(None),
            Input::Mode(Some(Mode::Shadow)),
            Input::TripBelow(By::Limit(2), 3),
        ];
        for epoch in [epoch, epoch.wrapping_sub(1) & 0xfff] {
            all.extend([
                Input::ProbePassed(epoch),
                Input::ProbeFailed(epoch),
                Input::ProbeAbandoned(epoch),
                Input::Lift(epoch, LiftTo::Halt),
                Input::Lift(epoch, LiftTo::HalfOpen),
                Input::Lift(epoch, LiftTo::Armed),
            ]);
        }
        all
    }

    fn left(word: Word) -> u64 {
        word.0 >> LEFT_AT & 63
    }

    fn owed(word: Word) -> u64 {
        word.0 >> OWED_AT & 63
    }

    /// Is this a move from one state to another that the table of states has?
    fn may_move(from: State, input: Input, to: State) -> bool {
        use State::{Armed, HalfOpen, Killed, Tripped};
        match (from, input, to) {
            (_, Input::Kill(level), Killed(now)) => {
                let was = if let Killed(was) = from { was } else { KillLevel::Halt };
                now == level.max(was)
            }
            (Killed(KillLevel::Cut), Input::Lift(_, LiftTo::Halt), Killed(KillLevel::Halt)) => true,
            (Killed(_) | Tripped, Input::Lift(_, LiftTo::HalfOpen), HalfOpen) => true,
            // To the trip below.
            (Killed(_), Input::Lift(_, LiftTo::Armed), Tripped) => true,
            (Killed(_) | Tripped | HalfOpen, Input::Lift(_, LiftTo::Armed), Armed) => true,
            (Armed | HalfOpen, Input::Trip(_), Tripped) => true,
            // From half-open: probes that never came back are given out anew.
            (Tripped | HalfOpen, Input::Elapsed, HalfOpen) => true,
            (HalfOpen, Input::ProbePassed(_), Armed) => true,
            (HalfOpen, Input::ProbeFailed(_), Tripped) => true,
            (Tripped | HalfOpen, Input::Reset, Armed) => true,
            _ => false,
        }
    }

    /// Goal: over all shapes of words and all inputs: every move is in the table and bumps the
    /// epoch by one; what is no move leaves state and epoch alone; a wrong epoch does nothing;
    /// probes never grow beyond what is owed.
    #[test]
    fn every_word_and_every_input() {
        let now = Mono::from_nanos(1_000 << UNIT_BITS);
        let mut steps = 0_u64;
        let mut moves = 0_u64;
        for shape in 0..32_u64 * 4 {
            // Phase, cut and mode are the top five bits; four causes.
            let top = (shape / 4) << (PHASE_AT - 3) | [0, 1, 2, 31][(shape % 4) as usize] << 54;
            for strikes in [0_u64, 1, 15] {
                for (left, owed) in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (63, 63), (63, 0)] {
                    for epoch in [0_u16, 1, 4_094, 4_095] {
                        for until in [0, 999, 1_000, 1_001, u64::from(HALF), u64::from(RANGE)] {
                            let word = Word(
                                top | strikes << STRIKES_AT
                                    | left << LEFT_AT
                                    | owed << OWED_AT
                                    | u64::from(epoch) << EPOCH_AT
                                    | until,
                            );
                            for rule in rules() {
                                for input in inputs(epoch) {
                                    steps += 1;
                                    moves += u64::from(one_step(word, input, &rule, now));
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(steps > 4_000_000 && moves > steps / 10, "{moves} of {steps}");
    }

    fn one_step(word: Word, input: Input, rule: &TripRule, now: Mono) -> bool {
        let Some(after) = word.step(input, rule, now) else { return false };
        let (from, to) = (word.state(), after.state());
        assert_ne!(word, after);
        let moved = after.epoch() != word.epoch();
        if moved {
            assert_eq!(after.epoch(), (word.epoch() + 1) & 0xfff);
            assert!(may_move(from, input, to), "{from:?} {input:?} {to:?}");
        } else {
            assert_eq!(from, to, "{input:?}");
        }
        if let Input::ProbePassed(epoch)
        | Input::ProbeFailed(epoch)
        | Input::ProbeAbandoned(epoch)
        | Input::Lift(epoch, _) = input
        {
            assert_eq!(epoch, word.epoch());
        }
        if let (State::Killed(_), Input::Lift(_, LiftTo::Armed)) = (from, input) {
            let cause = word.trip_below(rule, now);
            assert_eq!(to == State::Tripped, cause.is_some(), "{word:?} {after:?}");
            assert!(cause.is_none() || after.cause() == cause && after.strikes() == word.strikes());
        }
        if let (State::Killed(_), State::Killed(_)) = (from, to) {
            let below = |word: Word| (word.trip_below(rule, now), left(word) > 0, word.strikes());
            let ended = input == Input::Elapsed && below(word).0.is_none();
            let given = matches!(input, Input::TripBelow(..)) && below(after).0.is_some();
            assert!(ended || given || below(after) == below(word), "{word:?} {input:?} {after:?}");
        }
        if to == State::HalfOpen {
            assert!(left(after) <= owed(after).max(left(word)), "{word:?} {input:?} {after:?}");
            assert!(!moved || left(after) > 0, "a probation begins with probes");
        }
        if !matches!(input, Input::Mode(_) | Input::Reset) {
            assert_eq!(word.mode(), after.mode());
        }
        moved
    }

    /// Goal: in all sequences of six inputs, with and without time passing, blocked becomes armed
    /// only through half-open, or by a reset or a lift to armed; half-open becomes armed by
    /// probes only after as many passed as the rule asks; and a kill that is lifted to armed leaves the trip that it found.
    #[test]
    fn every_sequence_of_six() {
        /// `below` is what stood when a kill found the gate: a trip, and when it ends.
        fn walk(
            word: Word,
            (passed, below): (u32, Option<Option<Mono>>),
            depth: u32,
            now: Mono,
            rule: &TripRule,
        ) -> u64 {
            if depth == 0 {
                return 1;
            }
            let epoch = word.epoch();
            let by_hand = [
                Input::Reset,
                Input::Lift(epoch, LiftTo::Armed),
                Input::Lift(epoch, LiftTo::HalfOpen),
            ];
            let others = [
                Input::Trip(By::Limit(0)),
                Input::Elapsed,
                Input::ProbeTaken,
                Input::ProbePassed(epoch),
                Input::ProbeFailed(epoch),
                Input::ProbeAbandoned(epoch),
                Input::Kill(KillLevel::Halt),
                Input::Kill(KillLevel::Cut),
                Input::Lift(epoch, LiftTo::Halt),
            ];
            let mut walked = 0;
            for input in by_hand.into_iter().chain(others) {
                let now = if input == Input::Elapsed { now.plus(Span::from_secs(5)) } else { now };
                let after = word.step(input, rule, now).unwrap_or(word);
                let (from, to) = (word.state(), after.state());
                // A probe passes only if it was given out.
                if matches!(
                    input,
                    Input::ProbePassed(_) | Input::ProbeFailed(_) | Input::ProbeAbandoned(_)
                ) && (from != State::HalfOpen || left(word) >= owed(word))
                {
                    continue;
                }
                let passed = match input {
                    Input::ProbePassed(_) => passed + 1,
                    _ if from == State::HalfOpen && to == State::HalfOpen => passed,
                    _ => 0,
                };
                let holds = below.is_some_and(|end| end.is_none_or(|end| now < end));
                if matches!(from, State::Killed(_)) && !matches!(to, State::Killed(_)) {
                    let armed = input == Input::Lift(epoch, LiftTo::Armed);
                    assert_eq!(to == State::Tripped, armed && holds, "{word:?} {input:?}");
                    assert_eq!(to == State::Armed, armed && !holds, "{word:?} {input:?}");
                }
                let below = match (from, to) {
                    (State::Killed(_), State::Killed(_)) => below,
                    (State::Tripped, State::Killed(_)) => Some(word.until(rule, now)),
                    _ => None,
                };
                if to == State::Armed && from != State::Armed {
                    let by_hand = matches!(input, Input::Reset | Input::Lift(_, LiftTo::Armed));
                    assert!(
                        by_hand || (from == State::HalfOpen && passed == 2),
                        "{from:?} {input:?}"
                    );
                }
                walked += walk(after, (passed, below), depth - 1, now, rule);
            }
            walked
        }
        for rule in rules().iter().take(2) {
            let walked = walk(Word::default(), (0, None), 6, Mono::ZERO, rule);
            assert!(walked > 500_000, "{walked}");
        }
    }

    /// Goal: a hold is never shorter than told, ends within a unit and a rounding, and does so also where `until`
    /// and the epoch wrap; over all of it the promised wait is exact.
    #[test]
    fn holds_end_also_at_the_wrap() {
        let wrap = u64::from(RANGE) + 1;
        for hold in [Span::from_millis(200), SECOND, MAX_HOLD] {
            let rule = TripRule::new(Recover::Probe { probes: 1, after: hold, at_most: hold });
            for unit in [0, 1, 77, wrap - 20, wrap - 1, wrap, wrap + 1, wrap / 2, wrap * 5 - 3] {
                for offset in [0, 1, (1 << UNIT_BITS) - 1] {
                    let now = Mono::from_nanos((unit << UNIT_BITS) + offset);
                    let word = Word(0xfff << EPOCH_AT);
                    let word = word.step(Input::Trip(By::Hand), &rule, now).unwrap();
                    assert_eq!(word.epoch(), 0, "the epoch wraps");
                    let Look::Blocked(Cause::Tripped(By::Hand), Some(wait)) =
                        word.look(false, &rule, now)
                    else {
                        panic!("not tripped");
                    };
                    assert!(wait >= hold);
                    assert!(wait.as_nanos() <= hold.as_nanos() + (2 << UNIT_BITS));
                    let end = now.plus(wait);
                    let before = Mono::from_nanos(end.as_nanos() - 1);
                    assert_eq!(word.until(&rule, now), Some(end));
                    assert!(word.step(Input::Elapsed, &rule, before).is_none());
                    assert!(matches!(word.look(false, &rule, before), Look::Blocked(..)));
                    assert_eq!(word.look(false, &rule, end), Look::Probe);
                    let over = word.step(Input::Elapsed, &rule, end).unwrap();
                    assert_eq!(over.state(), State::HalfOpen);
                    assert_eq!(word.until(&rule, end.plus(SECOND)), Some(end), "also when past");
                }
            }
        }
    }

    /// Goal: `now` running back a little at a trip or after it never ends a hold early, not even
    /// the longest.
    #[test]
    fn now_running_back_ends_no_hold() {
        let rule = TripRule::new(Recover::Probe { probes: 1, after: MAX_HOLD, at_most: MAX_HOLD });
        for unit in [5_000_u64, u64::from(RANGE) + 1] {
            let now = Mono::from_nanos(unit << UNIT_BITS);
            let word = Word::default().step(Input::Trip(By::Hand), &rule, now).unwrap();
            for back in 0..4_000 {
                let earlier = Mono::from_nanos((unit - back) << UNIT_BITS);
                assert!(word.step(Input::Elapsed, &rule, earlier).is_none());
            }
        }
        assert!(has_passed(7, Mono::from_nanos(7 << UNIT_BITS)));
        assert!(!has_passed(8, Mono::from_nanos(7 << UNIT_BITS)));
    }

    /// Goal: a probe that never comes back is given out again after a minute, and its late answer counts for nothing; one that is out
    /// for less keeps its turn.
    #[test]
    fn a_lost_probe_is_given_back_by_time() {
        let [_, rule, _] = rules();
        let word = Word::default().step(Input::Trip(By::Hand), &rule, Mono::ZERO).unwrap();
        let start = word.until(&rule, Mono::ZERO).unwrap();
        let mut word = word.step(Input::Elapsed, &rule, start).unwrap();
        for _ in 0..2 {
            word = word.step(Input::ProbeTaken, &rule, start).unwrap();
        }
        let lost = word.epoch();
        assert!(word.awaits_time(&rule));
        let early = start.plus(Span::from_secs(59));
        assert_eq!(word.look(false, &rule, early), Look::Blocked(Cause::Probing, None));
        assert!(word.step(Input::Elapsed, &rule, early).is_none());
        let late = start.plus(Span::from_secs(61));
        assert_eq!(word.look(false, &rule, late), Look::Probe);
        let word = word.step(Input::Elapsed, &rule, late).unwrap();
        assert_eq!((word.state(), left(word), owed(word)), (State::HalfOpen, 2, 2));
        for answer in
            [Input::ProbePassed(lost), Input::ProbeFailed(lost), Input::ProbeAbandoned(lost)]
        {
            assert!(word.step(answer, &rule, late).is_none());
        }
        assert!(word.step(Input::Elapsed, &rule, late.plus(Span::from_secs(90))).is_none());
    }

    /// Goal: a probation that began under one rule ends under any other: it neither sticks nor
    /// gives out more than was owed when it began.
    #[test]
    fn a_new_policy_in_mid_probation_never_sticks() {
        let rule = |probes| {
            TripRule::new(Recover::Probe { probes, after: SECOND, at_most: Span::from_secs(4) })
        };
        for began in 1..=63 {
            for now_asks in [1, 5, 63] {
                let killed =
                    Word::default().step(Input::Kill(KillLevel::Halt), &rule(began), Mono::ZERO);
                let killed = killed.unwrap();
                let lift = Input::Lift(killed.epoch(), LiftTo::HalfOpen);
                let mut word = killed.step(lift, &rule(began), Mono::ZERO).unwrap();
                let mut given = 0;
                while let Some(next) = word.step(Input::ProbeTaken, &rule(now_asks), Mono::ZERO) {
                    (word, given) = (next, given + 1);
                }
                assert_eq!(given, began);
                for _ in 0..began {
                    let passed = Input::ProbePassed(word.epoch());
                    word = word.step(passed, &rule(now_asks), Mono::ZERO).unwrap();
                }
                assert_eq!(word.state(), State::Armed);
            }
        }
    }

    /// Goal: a trip that was made to last lasts, whatever rule comes later; and the other way round.
    #[test]
    fn manual_lasts_under_any_rule() {
        let [manual, probe, _] = rules();
        let late = Mono::from_nanos(60_000_000_000);
        for (first, then) in [(manual, probe), (probe, manual)] {
            let word = Word::default().step(Input::Trip(By::Limit(0)), &first, Mono::ZERO).unwrap();
            assert!(word.step(Input::Elapsed, &then, late).is_none());
            assert_eq!(word.until(&then, late), None);
        }
    }

    /// Goal: who tripped a gate is told as it was, up to the last of each kind.
    #[test]
    fn every_tripper_is_told() {
        let all = (0..8).flat_map(|index| [By::Limit(index), By::Detector(index)]);
        for by in all.chain([By::Hand, By::Detector(20), By::Wider]) {
            let word = Word::default().step(Input::Trip(by), &rules()[0], Mono::ZERO).unwrap();
            assert_eq!(word.cause(), Some(Cause::Tripped(by)));
        }
        let beyond = Input::Trip(By::Detector(u8::MAX));
        let word = Word::default().step(beyond, &rules()[0], Mono::ZERO).unwrap();
        assert_eq!(word.cause(), Some(Cause::Tripped(By::Detector(20))));
    }

    /// Goal: a trip with an end that lies below a kill ends then, and does not come back when its end comes round as one ahead, though the
    /// gate stays killed for weeks.
    #[test]
    fn a_trip_below_a_long_kill_ends_once() {
        let [_, rule, _] = rules();
        let day = Span::from_secs(86_400);
        let tripped = Word::default().step(Input::Trip(By::Limit(3)), &rule, Mono::ZERO).unwrap();
        let mut word = tripped.step(Input::Kill(KillLevel::Cut), &rule, Mono::ZERO).unwrap();
        let lift = Input::Lift(word.epoch(), LiftTo::Armed);
        assert!(word.awaits_time(&rule));
        assert_eq!(word.trip_below(&rule, Mono::ZERO), tripped.cause());
        let mut now = Mono::ZERO;
        for _ in 0..40 {
            now = now.plus(day);
            word = word.step(Input::Elapsed, &rule, now).unwrap_or(word);
            assert!(!word.awaits_time(&rule));
            assert_eq!(word.step(lift, &rule, now).unwrap().state(), State::Armed);
        }
    }
}
