//! Names for what the core knows by number: labels of keys and ids of kills and trips; off the allowed path.

use breaker_core::{Cause, Denial, KeyHash, Level, Place, Policy, Scope};
use dashmap::DashMap;

/// Labels and ids, shared by the data plane (which learns labels when it refuses) and the control plane.
#[derive(Debug, Default)]
pub struct Names {
    /// Which start of the process this is: part of every id, so that ids never repeat across restarts.
    boot: u64,
    /// Labels of keys that were refused, tripped or killed.
    labels: DashMap<KeyHash, Box<[u8]>>,
    /// The id of the kill that a gate shows.
    kills: DashMap<Place, Box<str>>,
    /// No more labels than this are kept.
    room: usize,
}

impl Names {
    /// Names for start number `boot`, with room for `room` labels.
    #[must_use]
    pub fn new(boot: u64, room: usize) -> Names {
        Names { boot, room, ..Names::default() }
    }

    /// Remembers the label of a key, if there is room.
    pub fn learn(&self, key: KeyHash, label: &[u8]) {
        if !self.labels.contains_key(&key) && self.labels.len() < self.room {
            self.labels.insert(key, label.into());
        }
    }

    /// Forgets the labels of all keys but those that `keep` wants; for when the room is used up.
    pub fn prune(&self, keep: impl Fn(KeyHash) -> bool) {
        self.labels.retain(|key, _| keep(*key));
    }

    /// Is the room for labels three quarters full?
    #[must_use]
    pub fn crowded(&self) -> bool {
        self.labels.len() >= self.room - self.room / 4
    }

    /// Is the label of the key at a place known? It always is for a named scope.
    #[must_use]
    pub fn knows(&self, place: Place) -> bool {
        place.key.is_none_or(|(_, key)| self.labels.contains_key(&key))
    }

    /// The scope at a place, with its label where that is known.
    #[must_use]
    pub fn scope(&self, policy: &Policy, place: Place) -> Scope {
        let Some((parent, dimension)) = policy.scope_of(place) else { return Scope::global() };
        let (Some(dimension), Some((_, key))) = (dimension, place.key) else {
            return parent.clone();
        };
        let label = self.labels.get(&key);
        let label: &[u8] = label.as_deref().map_or(b"?", |label| label);
        parent.key(dimension, label).unwrap_or_else(|_| parent.clone())
    }

    /// Notes the id of the kill that the gate at `place` shows from now on.
    pub fn killed(&self, place: Place, id: &str) {
        self.kills.insert(place, id.into());
    }

    /// Forgets the id of a kill that was lifted.
    pub fn lifted(&self, place: Place) {
        self.kills.remove(&place);
    }

    /// The id of the trip or kill a denial comes from; `None` for a limit.
    #[must_use]
    pub fn id(&self, denial: &Denial) -> Option<String> {
        match denial.cause {
            Cause::Killed(_) => self.kills.get(&denial.place).map(|id| id.to_string()),
            Cause::Tripped(_) | Cause::ProbeFailed | Cause::Probing => {
                Some(self.trip_id(denial.place, denial.epoch))
            }
            _ => None,
        }
    }

    /// The id of the trip that gave the gate at `place` this epoch.
    #[must_use]
    pub fn trip_id(&self, place: Place, epoch: u16) -> String {
        let level = match place.level {
            Level::Global => 'a',
            Level::Group => 'g',
            Level::Route => 'r',
            Level::Key => 'k',
        };
        match place.key {
            None => format!("t{}-{level}{}-{epoch}", self.boot, place.index),
            Some((dimension, key)) => {
                let short = key.as_u64() & 0xffff_ffff;
                format!("t{}-{level}{}.{dimension}.{short:08x}-{epoch}", self.boot, place.index)
            }
        }
    }

    /// The id of kill number `number` of this start.
    #[must_use]
    pub fn kill_id(&self, number: u64) -> String {
        format!("k{}-{number}", self.boot)
    }
}
