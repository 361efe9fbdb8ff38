//! The one writer of slow changes: which kills live, and what a restart must bring back; it knows no file and no clock.

use super::record::{Entry, Level, LiftTo, Record};
use breaker_core::{Scope, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// Kills that may live at once.
pub const KILLS_MAX: usize = 10_000;

/// A kill that has not been lifted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Kill {
    /// Its id.
    pub id: String,
    /// Its scope.
    pub scope: String,
    /// Halt or cut.
    pub level: Level,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in nanoseconds since 1970.
    pub at: u64,
    /// Is it known to survive a crash?
    pub durable: bool,
}

/// The live kills, and what the gates of killed scopes were last stamped with.
#[derive(Debug, Default)]
pub struct Ledger {
    kills: BTreeMap<String, Kill>,
    stamps: BTreeMap<String, Stamp>,
    boot: u64,
    number: u64,
}

/// Reads the journal record by record into what a start must put back.
#[derive(Debug, Default)]
pub struct Replay {
    ledger: Ledger,
    /// Scopes whose last word was tripped or on probation.
    blocked: BTreeSet<String>,
    /// Lifts and resets of the start being read that are not known to be carried out.
    pending: BTreeMap<u64, Record>,
    /// The last record says that the process stopped in an orderly way.
    orderly: bool,
}

/// What a lift takes away and what it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiftPlan {
    /// The kills to lift.
    pub ids: Vec<String>,
    /// The highest level among the scope's other kills.
    pub remains: Option<Level>,
}

/// Why there is nothing to lift.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LiftError {
    /// The scope has no live kill.
    NotKilled,
    /// These ids are no live kills of the scope.
    Unknown(Vec<String>),
}

/// What a start must put back before it lets a byte in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Live kills, in the order of their scopes.
    pub kills: Vec<Kill>,
    /// Scopes that were tripped or on probation: they start tripped, with their hold in full.
    pub tripped: Vec<String>,
    /// The number of this start.
    pub boot: u64,
    /// The start before it ended in an orderly way.
    pub orderly: bool,
}

impl Replay {
    /// Takes the next record.
    pub fn take(&mut self, entry: &Entry) {
        let kills = &mut self.ledger.kills;
        self.orderly = matches!(entry.record, Record::Stopped {});
        match &entry.record {
            Record::Started { boot, .. } => {
                self.ledger.boot = *boot;
                // What was not done when a process ended is not done.
                self.pending.clear();
            }
            Record::Kill { id, scope, level, actor, reason } => {
                let kill = Kill {
                    id: id.clone(),
                    scope: scope.clone(),
                    level: *level,
                    actor: actor.clone(),
                    reason: reason.clone(),
                    at: entry.at,
                    durable: true,
                };
                kills.insert(id.clone(), kill);
            }
            Record::Lift { order, .. } | Record::Reset { order, .. } => {
                self.pending.insert(*order, entry.record.clone());
            }
            Record::Done { order } => match self.pending.remove(order) {
                Some(Record::Lift { ids, scope, to, .. }) => {
                    for id in ids {
                        kills.remove(&id);
                    }
                    self.set_blocked(&scope, to == LiftTo::HalfOpen);
                }
                Some(Record::Reset { scope, .. }) => self.set_blocked(&scope, false),
                _ => {}
            },
            Record::Trip { scope, .. } => self.set_blocked(scope, true),
            Record::Moved { scope, to, .. } => {
                self.set_blocked(scope, to == "tripped" || to == "half-open");
            }
            Record::Found { .. } | Record::MovedMany { .. } | Record::Stopped {} => {}
        }
    }

    fn set_blocked(&mut self, scope: &str, blocked: bool) {
        if !blocked {
            self.blocked.remove(scope);
        } else if !self.blocked.contains(scope) {
            self.blocked.insert(scope.to_owned());
        }
    }

    /// The ledger of the new start, and what must be put back before it lets a byte in.
    #[must_use]
    pub fn end(mut self) -> (Ledger, Restored) {
        self.ledger.boot += 1;
        let restored = Restored {
            kills: self.ledger.kills.values().cloned().collect(),
            tripped: self.blocked.into_iter().collect(),
            boot: self.ledger.boot,
            orderly: self.orderly,
        };
        (self.ledger, restored)
    }
}

impl Ledger {
    /// The number of this start.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// A number for the next kill of this start.
    pub fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Is there room for one more kill? The whole house always has room.
    #[must_use]
    pub fn has_room(&self, scope: &Scope) -> bool {
        scope.parent().is_none() || self.kills.len() < KILLS_MAX
    }

    /// Takes up a kill that is in force.
    pub fn killed(&mut self, kill: Kill, stamp: Stamp) {
        self.stamps.insert(kill.scope.clone(), stamp);
        self.kills.insert(kill.id.clone(), kill);
    }

    /// A kill became durable.
    pub fn durable(&mut self, id: &str) {
        if let Some(kill) = self.kills.get_mut(id) {
            kill.durable = true;
        }
    }

    /// What lifting these kills of a scope (all of them, if none is named) would mean.
    ///
    /// # Errors
    /// There is nothing to lift, or a named kill is not there.
    pub fn plan_lift(&self, scope: &str, named: &[String]) -> Result<LiftPlan, LiftError> {
        let here = || self.kills.values().filter(|kill| kill.scope == scope);
        if here().next().is_none() {
            return Err(LiftError::NotKilled);
        }
        let unknown: Vec<String> =
            named.iter().filter(|id| !here().any(|kill| kill.id == **id)).cloned().collect();
        if !unknown.is_empty() {
            return Err(LiftError::Unknown(unknown));
        }
        let goes = |kill: &&Kill| named.is_empty() || named.contains(&kill.id);
        Ok(LiftPlan {
            ids: here().filter(goes).map(|kill| kill.id.clone()).collect(),
            remains: here().filter(|kill| !goes(kill)).map(|kill| kill.level).max(),
        })
    }

    /// The stamp of the last kill of a scope: a lift that carries an older one misses.
    #[must_use]
    pub fn stamp(&self, scope: &str) -> Option<Stamp> {
        self.stamps.get(scope).copied()
    }

    /// A lift to a lower level moved the gate of a scope that stays killed.
    pub fn restamped(&mut self, scope: &str, stamp: Stamp) {
        self.stamps.insert(scope.to_owned(), stamp);
    }

    /// The kills are lifted.
    pub fn lifted(&mut self, scope: &str, ids: &[String]) {
        for id in ids {
            self.kills.remove(id);
        }
        if !self.kills.values().any(|kill| kill.scope == scope) {
            self.stamps.remove(scope);
        }
    }

    /// The highest live kill of a scope: the one its gate shows.
    #[must_use]
    pub fn highest(&self, scope: &str) -> Option<&Kill> {
        self.kills.values().filter(|kill| kill.scope == scope).max_by_key(|kill| kill.level)
    }

    /// All live kills.
    pub fn kills(&self) -> impl Iterator<Item = &Kill> {
        self.kills.values()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::VERSION;
    use super::*;

    fn replay(records: Vec<Record>) -> (Ledger, Restored) {
        let mut replay = Replay::default();
        for (seq, record) in (1..).zip(records) {
            replay.take(&Entry { v: VERSION, seq, at: seq, record });
        }
        replay.end()
    }

    fn kill(id: &str, scope: &str, level: Level) -> Record {
        Record::Kill {
            id: id.into(),
            scope: scope.into(),
            level,
            actor: "a".into(),
            reason: "r".into(),
        }
    }

    fn lift(order: u64, ids: &[&str], scope: &str, to: LiftTo) -> Record {
        Record::Lift {
            order,
            ids: ids.iter().map(|id| (*id).into()).collect(),
            scope: scope.into(),
            to,
            actor: "a".into(),
            reason: "r".into(),
        }
    }

    fn moved(scope: &str, to: &str) -> Record {
        Record::Moved {
            scope: scope.into(),
            from: "armed".into(),
            to: to.into(),
            id: None,
            limit: None,
            detector: None,
            skipped: 0,
        }
    }

    /// Goal: a lift takes the kills it names and leaves the others, and says which level stays.
    #[test]
    fn a_lift_leaves_kills_it_does_not_name() {
        let (ledger, _) = replay(vec![
            kill("k1-1", "/pay", Level::Halt),
            kill("k1-2", "/pay", Level::Cut),
            kill("k1-3", "/else", Level::Cut),
        ]);
        let plan = ledger.plan_lift("/pay", &["k1-2".into()]).unwrap();
        assert_eq!(plan, LiftPlan { ids: vec!["k1-2".into()], remains: Some(Level::Halt) });
        let all = ledger.plan_lift("/pay", &[]).unwrap();
        assert_eq!((all.ids.len(), all.remains), (2, None));
        assert_eq!(
            ledger.plan_lift("/pay", &["k1-3".into()]),
            Err(LiftError::Unknown(vec!["k1-3".into()])),
            "a kill of another scope is not lifted from here"
        );
        assert_eq!(ledger.plan_lift("/none", &[]), Err(LiftError::NotKilled));
    }

    /// Goal: after a restart live kills and trips are back, lifted and reset ones are not, a lift that was never done changes
    /// nothing, and probation starts anew as tripped.
    #[test]
    fn a_restart_brings_back_what_was_stopped() {
        let (_, restored) = replay(vec![
            Record::Started { boot: 4, version: "x".into(), torn: false },
            kill("k4-1", "/pay", Level::Halt),
            kill("k4-2", "/ads", Level::Cut),
            lift(1, &["k4-2"], "/ads", LiftTo::Armed),
            Record::Done { order: 1 },
            lift(2, &["k4-1"], "/pay", LiftTo::Armed),
            moved("/a/b", "tripped"),
            moved("/a/c", "tripped"),
            Record::Reset { order: 3, scope: "/a/c".into(), actor: "a".into(), reason: "r".into() },
            Record::Done { order: 3 },
            moved("/a/d", "half-open"),
            moved("/a/e", "tripped"),
            moved("/a/e", "armed"),
        ]);
        assert_eq!(restored.boot, 5);
        let kills: Vec<&str> = restored.kills.iter().map(|kill| kill.id.as_str()).collect();
        assert_eq!(kills, ["k4-1"]);
        assert_eq!(restored.tripped, ["/a/b", "/a/d"]);
    }
}
