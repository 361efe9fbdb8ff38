//! The control thread's work: carries out orders, sweeps, and writes down what moved; it parses no request.

use super::ledger::{Kill, Ledger, LiftError};
use super::orders::{KillAnswer, LiftAnswer, MoveAnswer, Person, Refusal};
use super::record::{Level, LiftTo, Record};
use super::save::{Saver, Saves};
use super::sweep::{SharedSweeper, Sweep, Tallies, Whose};
use crate::data::Plane;
use crate::data::flight::Census;
use crate::journal::Pen;
use crate::voice::say;
use breaker_core::{DimensionUsage, KillLevel, Mode, Mono, OrderError, Scope, Standing, State};
use std::cell::{Cell, RefCell};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

/// How long a kill's answer waits for the workers and for the disk.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// How long a lift or a reset waits for the disk: nobody is in danger while it does.
const WRITE_WITHIN: Duration = Duration::from_secs(5);

/// Asks a worker what it has in flight and to wake what must end.
pub type CensusRequest = oneshot::Sender<Census>;

/// Everything the control thread knows.
pub struct Control {
    pub(super) plane: &'static Plane,
    pub(super) ledger: RefCell<Ledger>,
    pub(super) pen: Pen,
    workers: Vec<mpsc::Sender<CensusRequest>>,
    /// Kills that were answered before the disk was done with them.
    pub(super) late: RefCell<Vec<(String, oneshot::Receiver<bool>)>>,
    pub(super) acts: Acts,
    pub(super) sweep: RefCell<Sweep>,
    pub(super) tallies: RefCell<Tallies>,
    pub(super) saver: Saver,
    started: Mono,
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

pub(super) fn up(cell: &Cell<u64>) {
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
        (sweeper, saver): (SharedSweeper, Saver),
    ) -> Control {
        Control {
            plane,
            ledger: RefCell::new(ledger),
            pen,
            workers,
            late: RefCell::default(),
            acts: Acts::default(),
            sweep: RefCell::new(Sweep::new(sweeper, plane.clock.mono())),
            tallies: RefCell::default(),
            saver,
            started: plane.clock.mono(),
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

    /// What detectors found and how gates moved.
    pub fn tallies(&self) -> std::cell::Ref<'_, Tallies> {
        self.tallies.borrow()
    }

    /// When it began, by the decisions' clock.
    #[must_use]
    pub fn started(&self) -> Mono {
        self.started
    }

    /// How the saves of the standings go.
    #[must_use]
    pub fn saves(&self) -> &Saves {
        self.saver.saves()
    }

    /// How full the tables of keys were at the last look; asks for another.
    #[must_use]
    pub fn tables(&self) -> Vec<(Whose, DimensionUsage)> {
        self.saver.look();
        self.saver.saves().tables()
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
    pub(super) async fn write(&self, record: Record, until: Instant) -> bool {
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
