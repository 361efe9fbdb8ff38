//! The control thread's work: carries out orders, sweeps, and writes down what moved; it parses no request.

use super::ledger::{Kill, Ledger, LiftError};
use super::orders::{KillAnswer, LiftAnswer, MoveAnswer, Person, Refusal};
use super::record::{Level, LiftTo, Record};
use crate::data::Plane;
use crate::data::flight::Census;
use crate::journal::Pen;
use crate::voice::say;
use breaker_core::{
    By, Cause, KillLevel, Mode, Mono, OrderError, Scope, ScopeOrKey, Span, Standing, State,
    Sweeper, Transition,
};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

/// How long a kill's answer waits for the workers and for the disk.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// How long a lift or a reset waits for the disk: nobody is in danger while it does.
const WRITE_WITHIN: Duration = Duration::from_secs(5);

/// Between two sweeps without a nudge.
const SWEEP_EVERY: Duration = Duration::from_millis(20);

/// Moves of keys written down one by one in a second; the rest is one count.
const MOVES_PER_SECOND: u32 = 1_000;

/// Asks a worker what it has in flight and to wake what must end.
pub type CensusRequest = oneshot::Sender<Census>;

/// Everything the control thread knows.
pub struct Control {
    plane: &'static Plane,
    ledger: RefCell<Ledger>,
    pen: Pen,
    workers: Vec<mpsc::Sender<CensusRequest>>,
    /// Kills that were answered before the disk was done with them.
    late: RefCell<Vec<(String, oneshot::Receiver<bool>)>>,
    acts: Acts,
    sweep: RefCell<Sweep>,
}

/// The sweeper, and how much of what it found was written down.
struct Sweep {
    sweeper: Sweeper,
    moved: Vec<Transition>,
    /// The second that `written` counts in.
    second: Mono,
    written: u32,
    unwritten: u64,
}

/// How often each act was carried out.
#[derive(Debug, Default)]
pub struct Acts {
    /// Kills put in force.
    pub kills: Cell<u64>,
    /// Kills lifted.
    pub lifts: Cell<u64>,
    /// Trips, by a limit or by hand.
    pub trips: Cell<u64>,
    /// Gates that became armed again.
    pub recoveries: Cell<u64>,
    /// Moves that were only counted.
    pub unwritten: Cell<u64>,
}

fn up(cell: &Cell<u64>) {
    cell.set(cell.get().wrapping_add(1));
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A state in the words of status, journal and metrics.
#[must_use]
pub fn state_name(state: State) -> &'static str {
    match state {
        State::Armed => "armed",
        State::Tripped => "tripped",
        State::HalfOpen => "half-open",
        State::Killed(_) => "killed",
    }
}

/// The word operators read: shadow stands before all but killed.
#[must_use]
pub fn shown(standing: &Standing) -> &'static str {
    match (standing.state, standing.mode) {
        (State::Killed(_), _) => "killed",
        (_, Mode::Shadow) => "shadow",
        (state, Mode::Enforce) => state_name(state),
    }
}

impl Control {
    /// A control plane over a ledger whose kills are in force already.
    #[must_use]
    pub fn new(
        plane: &'static Plane,
        ledger: Ledger,
        pen: Pen,
        workers: Vec<mpsc::Sender<CensusRequest>>,
    ) -> Control {
        Control {
            plane,
            ledger: RefCell::new(ledger),
            pen,
            workers,
            late: RefCell::default(),
            acts: Acts::default(),
            sweep: RefCell::new(Sweep {
                sweeper: Sweeper::new(),
                moved: Vec::new(),
                second: plane.clock.mono(),
                written: 0,
                unwritten: 0,
            }),
        }
    }

    /// The data plane.
    #[must_use]
    pub fn plane(&self) -> &'static Plane {
        self.plane
    }

    /// How often each act was carried out.
    #[must_use]
    pub fn acts(&self) -> &Acts {
        &self.acts
    }

    /// Did the journal fail? Then nothing that was answered since is durable, and nothing is lifted.
    #[must_use]
    pub fn journal_lost(&self) -> bool {
        self.pen.is_lost()
    }

    /// The live kills.
    #[must_use]
    pub fn kills(&self) -> Vec<Kill> {
        self.ledger.borrow().kills().cloned().collect()
    }

    /// Writes a record and waits for the disk; true: durable.
    async fn write(&self, record: Record, until: Instant) -> bool {
        let durable = self.pen.write(self.plane.clock.wall(), record);
        self.wait_durable(durable, until).await
    }

    async fn wait_durable(&self, durable: oneshot::Receiver<bool>, until: Instant) -> bool {
        match timeout_at(until, durable).await {
            Ok(Ok(true)) => true,
            Ok(Ok(false) | Err(_)) | Err(_) => false,
        }
    }

    /// Kills a scope: acts first, then writes, then answers.
    ///
    /// # Errors
    /// The scope is not there, or a table is full; nothing was changed.
    pub async fn kill(
        &self,
        scope: &Scope,
        level: Level,
        person: Person,
    ) -> Result<KillAnswer, Refusal> {
        let start = Instant::now();
        let until = start + ANSWER_WITHIN;
        let plane = self.plane;
        if !self.ledger.borrow().has_room(scope) {
            return Err(Refusal::NoRoom);
        }
        let now = plane.clock.mono();
        let stamp = {
            let snapshot = plane.current.load();
            plane.breaker.kill(&snapshot.policy, scope, level.into(), now).map_err(refusal)?
        };
        let in_force_us = micros(start);

        let id = plane.names.kill_id(self.ledger.borrow_mut().next_number());
        if let (Some((_, key)), Some((_, label))) = (stamp.place.key, scope.key_parts()) {
            plane.names.learn(key, &label);
        }
        let at = plane.clock.wall();
        let kill = Kill {
            id: id.clone(),
            scope: scope.as_str().to_owned(),
            level,
            actor: person.actor.clone(),
            reason: person.reason.clone(),
            at: at.0,
            durable: false,
        };
        self.ledger.borrow_mut().killed(kill, stamp);
        self.show_highest(scope, stamp);
        up(&self.acts.kills);
        let record = Record::Kill {
            id: id.clone(),
            scope: scope.as_str().to_owned(),
            level,
            actor: person.actor.clone(),
            reason: person.reason.clone(),
        };
        // The disk works while we wait for the workers.
        let durable = self.pen.write(at, record);

        let pending_workers = self.silence(until).await;
        let silent = pending_workers.is_empty();
        let silent_us = silent.then(|| micros(start));
        let census = self.census(until).await;
        let mut durable = durable;
        let durable_us = match timeout_at(until, &mut durable).await {
            Ok(Ok(true)) => {
                self.ledger.borrow_mut().durable(&id);
                Some(micros(start))
            }
            Ok(_) => None,
            // The disk is late. The answer cannot wait for it, the record can: see `sweep_once`.
            Err(_) => {
                self.late.borrow_mut().push((id.clone(), durable));
                None
            }
        };
        let durable = durable_us.is_some();
        let after = |time: Option<u64>| {
            time.map_or_else(|| "NOT".to_owned(), |micros| format!("after {micros} us"))
        };
        say(&format!(
            "KILL {scope} {level} id={id} by {:?}: {:?}; in force after {in_force_us} us, silent {}, durable {}; \
             {} in flight, {} severed",
            person.actor,
            person.reason,
            after(silent_us),
            after(durable_us),
            census.in_flight,
            census.severed
        ));
        Ok(KillAnswer {
            id,
            scope: scope.as_str().to_owned(),
            level,
            in_force: true,
            in_force_us,
            silent,
            silent_us,
            pending_workers,
            durable,
            durable_us,
            in_flight: census.in_flight,
            severed: census.severed,
        })
    }

    /// Lets refusals name the kill that a gate shows.
    fn show_highest(&self, scope: &Scope, stamp: breaker_core::Stamp) {
        match self.ledger.borrow().highest(scope.as_str()) {
            Some(kill) => self.plane.names.killed(stamp.place, &kill.id),
            None => self.plane.names.lifted(stamp.place),
        }
    }

    /// Waits until each worker was seen outside a write; gives the ones that were not.
    async fn silence(&self, until: Instant) -> Vec<usize> {
        let mut watch = self.plane.senders.watch();
        #[cfg(feature = "faults")]
        if crate::faults::no_wait() {
            return Vec::new();
        }
        // A write is a few microseconds; a worker that lost its core inside one is out within a time slice.
        for _ in 0..64 {
            if watch.is_silent() {
                return Vec::new();
            }
            std::thread::yield_now();
        }
        while !watch.is_silent() {
            if Instant::now() >= until {
                return watch.pending().collect();
            }
            sleep(Duration::from_millis(1)).await;
        }
        Vec::new()
    }

    /// Wakes the calls that must end, on every worker, and adds up what they find.
    async fn census(&self, until: Instant) -> Census {
        // Its answers come from the workers' own threads, so it would wait for them too.
        #[cfg(feature = "faults")]
        if crate::faults::no_wait() {
            return Census::default();
        }
        let asked: Vec<_> = self
            .workers
            .iter()
            .filter_map(|worker| {
                let (answer, found) = oneshot::channel();
                worker.try_send(answer).ok().map(|()| found)
            })
            .collect();
        let mut sum = Census::default();
        for found in asked {
            if let Ok(Ok(census)) = timeout_at(until, found).await {
                sum.in_flight += census.in_flight;
                sum.severed += census.severed;
            }
        }
        sum
    }

    /// Lifts kills of a scope: writes first, then acts.
    ///
    /// # Errors
    /// There is nothing to lift, or it could not be written; nothing was changed.
    pub async fn lift(
        &self,
        scope: &Scope,
        kills: &[String],
        to: LiftTo,
        person: Person,
    ) -> Result<LiftAnswer, Refusal> {
        let plane = self.plane;
        let until = Instant::now() + WRITE_WITHIN;
        let plan =
            self.ledger.borrow().plan_lift(scope.as_str(), kills).map_err(|error| match error {
                LiftError::NotKilled => Refusal::NotKilled,
                LiftError::Unknown(ids) => Refusal::UnknownKills(ids),
            })?;
        let order = self.ledger.borrow_mut().next_number();
        let record = Record::Lift {
            order,
            ids: plan.ids.clone(),
            scope: scope.as_str().to_owned(),
            to,
            actor: person.actor.clone(),
            reason: person.reason.clone(),
        };
        if !self.write(record, until).await {
            return Err(Refusal::NotDurable);
        }
        // Others may have killed or lifted while the disk worked: look at what is left now.
        let (stamp, remains) = {
            let mut ledger = self.ledger.borrow_mut();
            let stamp = ledger.stamp(scope.as_str()).ok_or(Refusal::NotKilled)?;
            ledger.lifted(scope.as_str(), &plan.ids);
            (stamp, ledger.highest(scope.as_str()).map(|kill| kill.level))
        };
        let now = plane.clock.mono();
        let snapshot = plane.current.load();
        let target = match (remains, to) {
            (Some(Level::Cut), _) => None,
            (Some(Level::Halt), _) => Some(breaker_core::LiftTo::Halt),
            (None, LiftTo::HalfOpen) => Some(breaker_core::LiftTo::HalfOpen),
            (None, LiftTo::Armed) => Some(breaker_core::LiftTo::Armed),
        };
        if let Some(target) = target {
            match plane.breaker.lift(&snapshot.policy, stamp, target, now) {
                Ok(after) if remains.is_some() => {
                    self.ledger.borrow_mut().restamped(scope.as_str(), after);
                }
                // A kill that the ledger has not seen stamped the gate: it stays killed.
                Ok(_) | Err(OrderError::Stale) => {}
                Err(error) => return Err(refusal(error)),
            }
        }
        self.show_highest(scope, stamp);
        up(&self.acts.lifts);
        // Without this second record a restart finds the kills: until it is durable the answer cannot say "done".
        let done = self.pen.write(plane.clock.wall(), Record::Done { order });
        let durable = self.wait_durable(done, Instant::now() + WRITE_WITHIN).await;
        say(&format!(
            "LIFT {scope} {:?} to {to} by {:?}: {:?}",
            plan.ids, person.actor, person.reason
        ));
        Ok(LiftAnswer {
            scope: scope.as_str().to_owned(),
            lifted: plan.ids,
            still_killed: remains,
            state: self.state(scope),
            durable,
        })
    }

    /// Trips a scope by hand: acts first, then writes.
    ///
    /// # Errors
    /// The scope is not there or is killed.
    pub async fn trip(&self, scope: &Scope, person: Person) -> Result<MoveAnswer, Refusal> {
        let plane = self.plane;
        let until = Instant::now() + ANSWER_WITHIN;
        self.not_killed(scope)?;
        let stamp = {
            let snapshot = plane.current.load();
            plane.breaker.trip(&snapshot.policy, scope, plane.clock.mono()).map_err(refusal)?
        };
        if let (Some((_, key)), Some((_, label))) = (stamp.place.key, scope.key_parts()) {
            plane.names.learn(key, &label);
        }
        let record = Record::Trip {
            scope: scope.as_str().to_owned(),
            actor: person.actor.clone(),
            reason: person.reason.clone(),
        };
        // In the line before anything is waited for, so that a reset in the meantime stands after it.
        let durable = self.pen.write(plane.clock.wall(), record);
        self.silence(until).await;
        self.census(until).await;
        let durable = self.wait_durable(durable, until).await;
        say(&format!("TRIP {scope} by {:?}: {:?}", person.actor, person.reason));
        Ok(MoveAnswer {
            scope: scope.as_str().to_owned(),
            state: self.state(scope),
            id: Some(plane.names.trip_id(stamp.place, stamp.epoch)),
            durable,
        })
    }

    /// Arms a tripped or half-open scope by hand: writes first, then acts.
    ///
    /// # Errors
    /// The scope is not there or is killed, or it could not be written; nothing was changed.
    pub async fn reset(&self, scope: &Scope, person: Person) -> Result<MoveAnswer, Refusal> {
        let plane = self.plane;
        let until = Instant::now() + WRITE_WITHIN;
        self.not_killed(scope)?;
        let order = self.ledger.borrow_mut().next_number();
        let record = Record::Reset {
            order,
            scope: scope.as_str().to_owned(),
            actor: person.actor.clone(),
            reason: person.reason.clone(),
        };
        if !self.write(record, until).await {
            return Err(Refusal::NotDurable);
        }
        {
            let snapshot = plane.current.load();
            plane.breaker.reset(&snapshot.policy, scope, plane.clock.mono()).map_err(refusal)?;
        }
        let done = self.pen.write(plane.clock.wall(), Record::Done { order });
        let durable = self.wait_durable(done, Instant::now() + WRITE_WITHIN).await;
        say(&format!("RESET {scope} by {:?}: {:?}", person.actor, person.reason));
        Ok(MoveAnswer {
            scope: scope.as_str().to_owned(),
            state: self.state(scope),
            id: None,
            durable,
        })
    }

    fn not_killed(&self, scope: &Scope) -> Result<(), Refusal> {
        let plane = self.plane;
        let snapshot = plane.current.load();
        let now = plane.clock.mono();
        match plane.breaker.standing(&snapshot.policy, scope, now).map_err(refusal)?.state {
            State::Killed(_) => Err(Refusal::Killed),
            _ => Ok(()),
        }
    }

    fn state(&self, scope: &Scope) -> String {
        let snapshot = self.plane.current.load();
        let now = self.plane.clock.mono();
        let standing = self.plane.breaker.standing(&snapshot.policy, scope, now);
        standing.map_or_else(|_| String::new(), |standing| state_name(standing.state).to_owned())
    }

    /// Where every named scope stands, and every key that is not armed.
    #[must_use]
    pub fn standings(&self) -> Vec<(Scope, Standing)> {
        let plane = self.plane;
        let snapshot = plane.current.load();
        let standings = plane.breaker.standings(&snapshot.policy, plane.clock.mono());
        standings
            .into_iter()
            .map(|standing| (plane.names.scope(&snapshot.policy, standing.place), standing))
            .collect()
    }

    /// Sweeps for ever: timers run out, and what moved is written down.
    pub async fn sweep(&self) {
        let mut tick = interval(SWEEP_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.plane.nudge.notified() => {}
            }
            self.sweep_once();
        }
    }

    fn sweep_once(&self) {
        let plane = self.plane;
        let sweep = &mut *self.sweep.borrow_mut();
        let now = plane.clock.mono();
        {
            let snapshot = plane.current.load();
            sweep.sweeper.sweep(plane.breaker, &snapshot.policy, now, &mut sweep.moved);
        }
        if now.since(sweep.second) >= Span::from_secs(1) {
            sweep.second = now;
            sweep.written = 0;
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
        for transition in sweep.moved.drain(..) {
            self.count(&transition);
            // Strangers can make keys move as often as they like, and must not crowd out a route's trip.
            let key = transition.place.key.is_some();
            if !key || (sweep.written < MOVES_PER_SECOND && self.pen.has_room()) {
                if self.note(&transition) {
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
    }

    fn count(&self, transition: &Transition) {
        match transition.to {
            State::Tripped => up(&self.acts.trips),
            State::Armed if transition.from != State::Armed => up(&self.acts.recoveries),
            _ => {}
        }
    }

    /// Writes down a move that no person ordered; true: it was written. Kills and lifts have records of their own; but where
    /// more than the lift happened since the last sweep, such as a whole probation, the rest stands nowhere else.
    fn note(&self, transition: &Transition) -> bool {
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
        let scope = {
            let snapshot = plane.current.load();
            plane.names.scope(&snapshot.policy, transition.place)
        };
        let id = (transition.to == State::Tripped)
            .then(|| plane.names.trip_id(transition.place, transition.epoch));
        let limit = match transition.cause {
            Some(Cause::Tripped(By::Limit(limit)) | Cause::Limit(limit)) => Some(limit),
            _ => None,
        };
        say(&format!(
            "{} {scope} (was {}){}{}",
            state_name(transition.to).to_uppercase(),
            state_name(transition.from),
            limit.map(|limit| format!(" by limit[{limit}]")).unwrap_or_default(),
            id.as_ref().map(|id| format!(" id={id}")).unwrap_or_default(),
        ));
        let record = Record::Moved {
            scope: scope.as_str().to_owned(),
            from: state_name(transition.from).to_owned(),
            to: state_name(transition.to).to_owned(),
            id,
            limit,
            skipped: transition.skipped,
        };
        drop(self.pen.write(plane.clock.wall(), record));
        true
    }

    /// The last records of an orderly stop: what moved since the last sweep, and the stop; true: durable.
    pub async fn stopped(&self) -> bool {
        self.sweep_once();
        self.write(Record::Stopped {}, Instant::now() + ANSWER_WITHIN).await
    }
}

/// The level of a live kill as the core names it.
impl From<KillLevel> for Level {
    fn from(level: KillLevel) -> Level {
        match level {
            KillLevel::Halt => Level::Halt,
            KillLevel::Cut => Level::Cut,
        }
    }
}

fn refusal(error: OrderError) -> Refusal {
    match error {
        OrderError::UnknownScope(nearest) => Refusal::UnknownScope(nearest),
        OrderError::NoRoom => Refusal::NoRoom,
        OrderError::Killed => Refusal::Killed,
        _ => Refusal::Stale,
    }
}
