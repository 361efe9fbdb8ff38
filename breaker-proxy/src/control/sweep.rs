//! The sweep: timers run out, detectors judge, and what moved or was found is counted and written down; it takes no order.

use super::record::Record;
use super::task::{ANSWER_WITHIN, Control, state_name, up};
use crate::snapshot::{Snapshot, detector_name};
use crate::voice::say;
use breaker_core::{
    By, Cause, Finding, Found, Mode, Mono, OnFind, Place, Scope, ScopeOrKey, Span, State, Sweeper,
    Transition,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Between two sweeps without a nudge.
const SWEEP_EVERY: Duration = Duration::from_millis(20);

/// Moves of keys written down one by one in a second; the rest is one count.
const MOVES_PER_SECOND: u32 = 1_000;

/// Findings written down in a second; the rest is counted.
const FINDINGS_PER_SECOND: u32 = 100;

/// The one sweeper. Whoever saves what was learned reads it beside; a sweep that finds it taken comes later.
pub type SharedSweeper = Arc<Mutex<Sweeper>>;

/// The sweeper, and how much of what it found was written down.
pub struct Sweep {
    sweeper: SharedSweeper,
    moved: Vec<Transition>,
    found: Vec<Finding>,
    /// The second that the two counts below are of.
    second: Mono,
    written: u32,
    told: u32,
    unwritten: u64,
}

impl Sweep {
    /// A sweep that has written nothing yet.
    #[must_use]
    pub fn new(sweeper: SharedSweeper, now: Mono) -> Sweep {
        let (moved, found) = (Vec::new(), Vec::new());
        Sweep { sweeper, moved, found, second: now, written: 0, told: 0, unwritten: 0 }
    }
}

/// A named scope, or all keys of a dimension of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whose {
    /// The named scope.
    pub scope: String,
    /// The dimension, of keys.
    pub dimension: Option<String>,
}

/// What came of findings of one detector.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FindingCounts {
    /// Tripped a gate that denies.
    pub enforced: u64,
    /// Tripped a gate in shadow mode.
    pub shadowed: u64,
    /// Only told, as its rule says.
    pub warned: u64,
    /// Was to trip and only told: too much stood tripped by learned bounds already.
    pub capped: u64,
    /// The newest.
    pub last: Option<(Mono, Found)>,
}

/// What was found and what moved since the start, by scope and dimension; as many as the rules name.
#[derive(Debug, Default)]
pub struct Tallies {
    /// By the detector's index in its scope.
    pub findings: BTreeMap<(Whose, u8), FindingCounts>,
    /// By the state that gates moved to.
    pub moves: BTreeMap<(Whose, &'static str), u64>,
    /// Findings that were only counted: too many in a second.
    pub unwritten: u64,
    /// Findings that not even the sweeper had room for.
    pub missed: u64,
    /// Sweeps: the heartbeat of the control thread.
    pub sweeps: u64,
}

/// Whose place it is; `None` if the policy does not know it.
fn whose(snapshot: &Snapshot, place: Place) -> Option<Whose> {
    let (scope, dimension) = snapshot.policy.scope_of(place)?;
    Some(Whose { scope: scope.as_str().to_owned(), dimension: dimension.map(ToOwned::to_owned) })
}

impl Control {
    /// Sweeps for ever: timers run out, and what moved is written down.
    pub async fn sweep(&self) {
        let mut tick = interval(SWEEP_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.plane.nudge.notified() => {}
            }
            self.sweep_once(false);
        }
    }

    /// One sweep. `wait`: also for whoever reads what was learned.
    fn sweep_once(&self, wait: bool) {
        let plane = self.plane;
        let sweep = &mut *self.sweep.borrow_mut();
        let now = plane.clock.mono();
        let snapshot = plane.current.load();
        let shared = Arc::clone(&sweep.sweeper);
        let sweeper = if wait { Some(shared.lock()) } else { shared.try_lock() };
        if let Some(mut sweeper) = sweeper {
            sweeper.sweep(plane.breaker, &snapshot.policy, now, &mut sweep.moved);
            sweep.found.extend(sweeper.findings());
            let mut tallies = self.tallies.borrow_mut();
            tallies.missed = sweeper.findings_missed();
            tallies.sweeps += 1;
        }
        if now.since(sweep.second) >= Span::from_secs(1) {
            sweep.second = now;
            (sweep.written, sweep.told) = (0, 0);
            if sweep.unwritten > 0 {
                let record = Record::MovedMany { count: std::mem::take(&mut sweep.unwritten) };
                drop(self.pen.write(plane.clock.wall(), record));
            }
        }
        self.late.borrow_mut().retain_mut(|(id, durable)| match durable.try_recv() {
            Ok(true) => {
                self.ledger.borrow_mut().durable(id);
                false
            }
            Ok(false) | Err(TryRecvError::Closed) => false,
            Err(TryRecvError::Empty) => true,
        });
        for finding in sweep.found.drain(..) {
            let writes = sweep.told < FINDINGS_PER_SECOND && self.pen.has_room();
            sweep.told += u32::from(writes);
            self.found(&snapshot, &finding, writes);
        }
        for transition in sweep.moved.drain(..) {
            self.count(&snapshot, &transition);
            // Strangers can make keys move as often as they like, and must not crowd out a route's trip.
            let key = transition.place.key.is_some();
            if !key || (sweep.written < MOVES_PER_SECOND && self.pen.has_room()) {
                if self.note(&snapshot, &transition) {
                    sweep.written += 1;
                }
            } else {
                sweep.unwritten += 1;
                up(&self.acts.unwritten);
            }
        }
        if plane.names.crowded() {
            let keep: HashSet<_> = self
                .standings()
                .into_iter()
                .filter_map(|(_, standing)| match standing.scope {
                    ScopeOrKey::Key { hash, .. } => Some(hash),
                    ScopeOrKey::Named(_) => None,
                })
                .collect();
            plane.names.prune(|key| keep.contains(&key));
        }
        self.saver.save_if_due(now);
    }

    fn count(&self, snapshot: &Snapshot, transition: &Transition) {
        match transition.to {
            State::Tripped => up(&self.acts.trips),
            State::Armed if transition.from != State::Armed => up(&self.acts.recoveries),
            _ => {}
        }
        if let Some(whose) = whose(snapshot, transition.place) {
            let mut tallies = self.tallies.borrow_mut();
            *tallies.moves.entry((whose, state_name(transition.to))).or_default() += 1;
        }
    }

    /// Counts a finding, and writes it down if there is room.
    fn found(&self, snapshot: &Snapshot, finding: &Finding, writes: bool) {
        let Finding { place, at, found } = *finding;
        let Some(whose) = whose(snapshot, place) else { return };
        let rule = snapshot.detector(&whose.scope, whose.dimension.as_deref(), found.detector);
        let mut tallies = self.tallies.borrow_mut();
        let counts = tallies.findings.entry((whose.clone(), found.detector)).or_default();
        counts.last = Some((at, found));
        let what = match (found.on_find, rule.map(|rule| rule.on_find)) {
            (OnFind::Trip, _) if self.is_in_shadow(snapshot, place) => {
                counts.shadowed += 1;
                "tripped in shadow"
            }
            (OnFind::Trip, _) => {
                counts.enforced += 1;
                "tripped"
            }
            (OnFind::Warn, Some(OnFind::Trip)) => {
                counts.capped += 1;
                "only told: too much is tripped by learned bounds already"
            }
            (OnFind::Warn, _) => {
                counts.warned += 1;
                "told"
            }
        };
        if !writes {
            tallies.unwritten += 1;
            return;
        }
        drop(tallies);
        let scope = self.named(snapshot, place);
        let detector = rule.map_or_else(String::new, |rule| detector_name(rule, found.detector));
        let learned = if found.learned { "learned " } else { "" };
        say(&format!(
            "FOUND {scope} by {detector}: {:.4} above the {learned}bound of {:.4}, {} of {}; {what}",
            found.value, found.bound, found.count, found.of
        ));
        let record = Record::Found {
            scope: scope.as_str().to_owned(),
            detector: found.detector,
            kind: rule.map_or("", |rule| rule.kind.word()).to_owned(),
            trips: found.on_find == OnFind::Trip,
            value: found.value,
            bound: found.bound,
            count: found.count,
            of: found.of,
            learned: found.learned,
        };
        drop(self.pen.write(self.plane.clock.wall(), record));
    }

    /// The scope at a place; of a key whose label is not known that of its dimension.
    fn named(&self, snapshot: &Snapshot, place: Place) -> Scope {
        let plane = self.plane;
        match snapshot.policy.scope_of(place) {
            Some((parent, Some(_))) if !plane.names.knows(place) => parent.clone(),
            _ => plane.names.scope(&snapshot.policy, place),
        }
    }

    fn is_in_shadow(&self, snapshot: &Snapshot, place: Place) -> bool {
        let (plane, scope) = (self.plane, self.named(snapshot, place));
        let standing = plane.breaker.standing(&snapshot.policy, &scope, plane.clock.mono());
        standing.is_ok_and(|standing| standing.mode == Mode::Shadow)
    }

    /// Writes down a move that no person ordered; true: it was written. Kills and lifts have records of their own; but where
    /// more than the lift happened since the last sweep, such as a whole probation, the rest stands nowhere else.
    fn note(&self, snapshot: &Snapshot, transition: &Transition) -> bool {
        let killed = |state| matches!(state, State::Killed(_));
        if killed(transition.to) || killed(transition.from) && transition.skipped == 0 {
            return false;
        }
        let plane = self.plane;
        if !plane.names.knows(transition.place) {
            // There was no room for its label. Under another name a restart would trip somebody else.
            up(&self.acts.unwritten);
            return false;
        }
        let scope = plane.names.scope(&snapshot.policy, transition.place);
        let id = (transition.to == State::Tripped)
            .then(|| plane.names.trip_id(transition.place, transition.epoch));
        let limit = match transition.cause {
            Some(Cause::Tripped(By::Limit(limit)) | Cause::Limit(limit)) => Some(limit),
            _ => None,
        };
        let detector = match transition.cause {
            Some(Cause::Tripped(By::Detector(detector))) => Some(detector),
            _ => None,
        };
        let by = match (limit, detector) {
            (Some(limit), _) => format!(" by limit[{limit}]"),
            (None, Some(detector)) => format!(" by detect[{detector}]"),
            (None, None) => String::new(),
        };
        say(&format!(
            "{} {scope} (was {}){by}{}",
            state_name(transition.to).to_uppercase(),
            state_name(transition.from),
            id.as_ref().map(|id| format!(" id={id}")).unwrap_or_default(),
        ));
        let record = Record::Moved {
            scope: scope.as_str().to_owned(),
            from: state_name(transition.from).to_owned(),
            to: state_name(transition.to).to_owned(),
            id,
            limit,
            detector,
            skipped: transition.skipped,
        };
        drop(self.pen.write(plane.clock.wall(), record));
        true
    }

    /// The last acts of an orderly stop: what moved since the last sweep, where all stands, and the stop's record; true: durable. That the stop was
    /// orderly is believed only with both.
    pub async fn stopped(&self) -> bool {
        self.sweep_once(true);
        self.saver.save_last().await;
        self.write(Record::Stopped {}, Instant::now() + ANSWER_WITHIN).await
    }
}
