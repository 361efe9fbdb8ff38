//! A breaker with everything back that a start must put back: standings first, then trips and kills by the journal's word, which stands above them. It
//! opens no port and writes nothing.

use crate::app::{SCOPES, StartError};
use crate::config::Config;
use crate::control::ledger::{Kill, Restored};
use crate::data::names::Names;
use crate::ports::Clock;
use crate::snapshot::Snapshot;
use crate::standings::{self, Kept};
use breaker_core::{
    Breaker, Capacity, KillLevel, Missed, OrderError, Place, Restart, SavedGate, SavedState,
    SavedWhole, Scope, Seed, Span, Stamp, State, Sweeper, Why,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;

/// What gates of killed scopes were stamped with.
type Stamps = Vec<(String, Stamp)>;

/// A breaker that may begin.
pub struct House {
    /// Every cell there is.
    pub breaker: &'static Breaker,
    /// The rules and routes.
    pub snapshot: Snapshot,
    /// Labels of what was put back.
    pub names: Names,
    /// What the gates of killed scopes were stamped with.
    pub stamps: Stamps,
    /// The sweeper, with what was learned.
    pub sweeper: Sweeper,
    /// What keys are hashed under.
    pub seed: [u64; 2],
    /// How limits and what was learned came back.
    pub standings: Standings,
}

/// How limits and what was learned came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standings {
    /// There was nothing to bring back.
    Fresh,
    /// The save could not be used, or there was none: every limit starts spent, and nothing is known of what was normal.
    Spent(String),
    /// As saved.
    Back(Back),
}

/// What came of a save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Back {
    /// Whether it was the last act of an orderly stop. Else rates and windows start spent.
    pub orderly: bool,
    /// Limits that stand as saved.
    pub limits: u64,
    /// What was learned and taken up: scopes, dimensions and keys.
    pub learned: u64,
    /// What could not be put back, the first of it by name …
    pub missed: Vec<String>,
    /// … and all in number.
    pub misses: u64,
}

impl fmt::Display for Standings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Standings::Fresh => f.write_str("no limit was ever charged: all start fresh"),
            Standings::Spent(why) => write!(
                f,
                "ALL LIMITS START SPENT, because the standings {why}; rates and windows recover by themselves, budgets by a reset"
            ),
            Standings::Back(back) => {
                write!(f, "as saved: limits {}, learned {}", back.limits, back.learned)?;
                if !back.orderly {
                    f.write_str("; the last stop was not orderly: RATES AND WINDOWS START SPENT")?;
                }
                if back.misses > 0 {
                    write!(
                        f,
                        "; {} could not be put back: {}",
                        back.misses,
                        back.missed.join(", ")
                    )?;
                }
                Ok(())
            }
        }
    }
}

/// Builds a breaker for so many workers, with everything back in force that the state blocks. Tables that are full may not take all keys that were blocked under other
/// bounds: then larger ones do. Strangers can trip keys, and must not keep us from starting.
///
/// # Errors
/// Why it may not begin.
pub fn house(
    config: &Config,
    state: &Path,
    restored: &Restored,
    clock: &dyn Clock,
    workers: usize,
) -> Result<House, StartError> {
    let read = standings::read(state);
    let seed = match &read {
        Ok(Some(kept)) => kept.seed,
        _ => random().map_err(StartError::System)?,
    };
    let mut crowded = None;
    for doubling in 0..=DOUBLINGS {
        let keys = config.bounds.keys.saturating_mul(1 << doubling);
        let breaker: &'static Breaker =
            Box::leak(Box::new(Breaker::new(Capacity { scopes: SCOPES, keys }, Seed(seed))));
        let snapshot = match Snapshot::build(config, breaker, 1, workers, &[]) {
            Ok(snapshot) => snapshot,
            // The tables would be too large: what was wrong with the smaller ones is what to tell.
            Err(errors) => return Err(crowded.unwrap_or(StartError::Policy(errors))),
        };
        let labels = usize::try_from(keys).unwrap_or(usize::MAX).saturating_mul(2);
        let names = Names::new(restored.boot, labels);
        let mut sweeper = Sweeper::new();
        let standings = match &read {
            Ok(Some(kept)) => stand(&mut sweeper, breaker, &snapshot, kept, restored, clock),
            Ok(None) if restored.boot <= 1 => Standings::Fresh,
            none => {
                breaker.spend(&snapshot.policy, clock.mono());
                Standings::Spent(match none {
                    Err(error) => error.to_string(),
                    Ok(_) => "are not there".to_owned(),
                })
            }
        };
        match block(breaker, &snapshot, &names, restored, clock) {
            Ok(stamps) => {
                return Ok(House { breaker, snapshot, names, stamps, sweeper, seed, standings });
            }
            Err(error @ StartError::Crowded { .. }) => crowded = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(crowded.unwrap_or_else(|| StartError::System(io::Error::other("no tables"))))
}

/// How often the tables of keys may double at a start.
const DOUBLINGS: u32 = 3;

/// Names of what was missed that are told.
const MISSED_MAX: usize = 5;

fn random() -> io::Result<[u64; 2]> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok([0, 8].map(|at| {
        bytes.get(at..at + 8).and_then(|half| half.try_into().ok()).map_or(0, u64::from_le_bytes)
    }))
}

/// Puts back limits and what was learned.
fn stand(
    sweeper: &mut Sweeper,
    breaker: &Breaker,
    snapshot: &Snapshot,
    kept: &Kept,
    restored: &Restored,
    clock: &dyn Clock,
) -> Standings {
    // An orderly stop has both: the save after the last call, and then the journal's last record.
    let orderly = kept.last && restored.orderly && kept.boot + 1 == restored.boot;
    let restart = if orderly { Restart::Clean } else { Restart::Crash };
    let away = Span::from_nanos(clock.wall().0.saturating_sub(kept.at));
    let saved = told_by_journal(&kept.whole, breaker, restored);
    let told = sweeper.restore(breaker, &snapshot.policy, &saved, (restart, away), clock.mono());
    let (all, unlearned) = (saved.learned.len(), told.unlearned.len());
    let missed = told.missed.iter().take(MISSED_MAX).map(missed).collect();
    let misses = told.missed.len().saturating_add(unlearned);
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    Standings::Back(Back {
        orderly,
        limits: told.limits,
        learned: number(all.saturating_sub(unlearned)),
        missed,
        misses: number(misses).saturating_add(told.more),
    })
}

fn missed(missed: &Missed) -> String {
    let why = match missed.why {
        Why::Foreign => "another breaker's",
        Why::Version => "of another version",
        Why::Unknown => "no longer configured",
        Why::UnknownLimit => "a limit no longer configured",
        Why::Unclear => "changed: it starts spent",
        Why::Charged => "charged already",
        Why::Seed => "hashed otherwise",
        Why::NoRoom => "no room",
        Why::Shadow => "shadow mode ends with a crash",
        _ => "not known here",
    };
    let key = missed.key.as_ref().map(|(dimension, _)| format!(" ({dimension})"));
    let limit = missed.limit.as_ref().map(|limit| format!(" limit {limit}"));
    format!("{}{}{}: {why}", missed.scope, key.unwrap_or_default(), limit.unwrap_or_default())
}

/// The save with the gates as the journal tells them: it knows of each kill, trip, lift and reset in its order, where a save may be older than the last of them.
/// What a gate remembers beside (its strikes, the cause of a trip) stays.
fn told_by_journal(whole: &SavedWhole, breaker: &Breaker, restored: &Restored) -> SavedWhole {
    let mut named: BTreeSet<&str> = BTreeSet::new();
    let mut keys: BTreeMap<(String, String), BTreeSet<u64>> = BTreeMap::new();
    for path in &restored.tripped {
        let Ok(scope) = Scope::parse(path) else { continue };
        match (scope.parent(), scope.key_parts()) {
            (Some(parent), Some((dimension, label))) => {
                let at = (parent.as_str().to_owned(), dimension.to_owned());
                keys.entry(at).or_default().insert(breaker.hash(&label).as_u64());
            }
            _ => drop(named.insert(path)),
        }
    }
    let mut whole = whole.clone();
    for scope in &mut whole.standings.scopes {
        scope.gate = told(scope.gate, named.contains(scope.path.as_str()));
    }
    for dimension in &mut whole.standings.dimensions {
        let tripped = keys.get(&(dimension.parent.clone(), dimension.name.clone()));
        for key in &mut dimension.keys {
            let stands = tripped.is_some_and(|tripped| tripped.contains(&key.hash));
            key.gate = told(key.gate, stands);
        }
    }
    whole
}

fn told(gate: SavedGate, tripped: bool) -> SavedGate {
    let was = match gate.state {
        SavedState::Tripped | SavedState::HalfOpen => true,
        SavedState::Halted | SavedState::Cut => gate.tripped_below,
        SavedState::Armed => false,
    };
    // One that the journal trips and the save does not know as tripped is tripped afterwards, by hand.
    let state = if tripped && was { SavedState::Tripped } else { SavedState::Armed };
    SavedGate { state, tripped_below: false, ..gate }
}

/// Puts every live kill and every trip back in force.
fn block(
    breaker: &Breaker,
    snapshot: &Snapshot,
    names: &Names,
    restored: &Restored,
    clock: &dyn Clock,
) -> Result<Stamps, StartError> {
    let (now, policy) = (clock.mono(), &snapshot.policy);
    let orphan = |what: &str, scope: &str| StartError::Orphan {
        what: what.to_owned(),
        scope: scope.to_owned(),
    };
    let failed = |error: OrderError, what: &str, path: &str| match error {
        OrderError::NoRoom => StartError::Crowded { what: what.to_owned(), scope: path.to_owned() },
        _ => orphan(what, path),
    };
    let learn = |scope: &Scope, place: Place| {
        if let (Some((_, key)), Some((_, label))) = (place.key, scope.key_parts()) {
            names.learn(key, &label);
        }
    };
    for path in &restored.tripped {
        let what = "a trip";
        let scope = Scope::parse(path).map_err(|_| orphan(what, path))?;
        let stands = breaker.standing(policy, &scope, now);
        let place = match stands.map_err(|error| failed(error, what, path))? {
            standing if standing.state == State::Tripped => standing.place,
            _ => {
                let stamp = breaker.trip(policy, &scope, now);
                stamp.map_err(|error| failed(error, what, path))?.place
            }
        };
        learn(&scope, place);
    }
    let mut stamps = Vec::new();
    let mut kills: Vec<&Kill> = restored.kills.iter().collect();
    // The highest last, so that refusals name the one the gate shows.
    kills.sort_by_key(|kill| kill.level);
    for kill in kills {
        let what = format!("kill {}", kill.id);
        let scope = Scope::parse(&kill.scope).map_err(|_| orphan(&what, &kill.scope))?;
        let level: KillLevel = kill.level.into();
        let stamp = breaker
            .kill(policy, &scope, level, now)
            .map_err(|error| failed(error, &what, &kill.scope))?;
        learn(&scope, stamp.place);
        names.killed(stamp.place, &kill.id);
        stamps.push((kill.scope.clone(), stamp));
    }
    Ok(stamps)
}
