//! What the ledger writes down: one record for each act, with its checksum; it knows no file.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the format. A reader refuses a version it does not know.
pub const VERSION: u16 = 2;

/// The oldest version that is still read. The first had no detectors: no `found`, and moves without `detector`.
const OLDEST: u16 = 1;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The version of the format.
    pub v: u16,
    /// Counts up by one from 1, without a gap.
    pub seq: u64,
    /// Wall time of the act, nanoseconds since 1970.
    pub at: u64,
    /// What happened.
    pub record: Record,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Record {
    /// A process started on this state; the number makes ids unique.
    Started {
        /// Number of the start, from 1.
        boot: u64,
        /// The program's version.
        version: String,
        /// A torn last line was cut off.
        torn: bool,
    },
    /// A kill was put in force.
    Kill {
        /// Its id.
        id: String,
        /// Its scope.
        scope: String,
        /// `halt` or `cut`.
        level: Level,
        /// Who.
        actor: String,
        /// Why.
        reason: String,
    },
    /// Kills are to be lifted. It counts only with its [`Record::Done`]: a lift that reached the disk too late was refused,
    /// and must not be found after a restart.
    Lift {
        /// Number of the order, unique within a start.
        order: u64,
        /// The kills.
        ids: Vec<String>,
        /// Their scope.
        scope: String,
        /// Where the gate goes if no other kill holds it.
        to: LiftTo,
        /// Who.
        actor: String,
        /// Why.
        reason: String,
    },
    /// A scope was tripped by hand.
    Trip {
        /// The scope.
        scope: String,
        /// Who.
        actor: String,
        /// Why.
        reason: String,
    },
    /// A tripped or half-open scope is to be armed by hand. It counts only with its [`Record::Done`].
    Reset {
        /// Number of the order, unique within a start.
        order: u64,
        /// The scope.
        scope: String,
        /// Who.
        actor: String,
        /// Why.
        reason: String,
    },
    /// The lift or reset with this number was carried out.
    Done {
        /// Number of the order.
        order: u64,
    },
    /// A gate moved by itself.
    Moved {
        /// The scope.
        scope: String,
        /// From which state.
        from: String,
        /// To which state.
        to: String,
        /// The trip's id.
        id: Option<String>,
        /// The limit that was exceeded, by its index in the scope.
        limit: Option<u8>,
        /// The detector that tripped it, by its index in the scope.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detector: Option<u8>,
        /// Moves between the two that nobody saw.
        skipped: u16,
    },
    /// A detector found something. If it tripped, the move stands beside it.
    Found {
        /// The scope; of a key whose label is not known that of its dimension.
        scope: String,
        /// The detector, by its index in the scope.
        detector: u8,
        /// Its kind.
        kind: String,
        /// Whether it was to trip, and not only to warn.
        trips: bool,
        /// What was seen, in the unit of the bound.
        value: f64,
        /// What it was held against.
        bound: f64,
        /// Calls, faults or children counted …
        count: u64,
        /// … of so many.
        of: u64,
        /// Whether the bound was learned.
        learned: bool,
    },
    /// More gates moved within a second than are written one by one.
    MovedMany {
        /// How many more.
        count: u64,
    },
    /// The process stopped in an orderly way.
    Stopped {},
}

/// The level of a kill, as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Reducing calls pass.
    Halt,
    /// Nothing passes, and everything in flight ends.
    Cut,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Halt => "halt",
            Level::Cut => "cut",
        })
    }
}

impl fmt::Display for LiftTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LiftTo::HalfOpen => "half-open",
            LiftTo::Armed => "armed",
        })
    }
}

impl From<Level> for breaker_core::KillLevel {
    fn from(level: Level) -> breaker_core::KillLevel {
        match level {
            Level::Halt => breaker_core::KillLevel::Halt,
            Level::Cut => breaker_core::KillLevel::Cut,
        }
    }
}

/// Where a lifted gate goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LiftTo {
    /// On probation.
    HalfOpen,
    /// Straight back.
    Armed,
}

/// Why a line is not a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadLine {
    /// The checksum does not fit the text.
    Checksum,
    /// The text is no record of this version.
    Format(String),
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadLine::Checksum => f.write_str("the checksum does not match the text"),
            BadLine::Format(problem) => f.write_str(problem),
        }
    }
}

impl Entry {
    /// The line of the journal: checksum, space, JSON, newline.
    #[must_use]
    pub fn to_line(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
    }

    /// Reads a line without its newline.
    ///
    /// # Errors
    /// Why it is not a record.
    pub fn from_line(line: &str) -> Result<Entry, BadLine> {
        let (sum, json) = line.split_once(' ').ok_or(BadLine::Checksum)?;
        if sum != format!("{:08x}", crc32fast::hash(json.as_bytes())) {
            return Err(BadLine::Checksum);
        }
        let entry: Entry =
            serde_json::from_str(json).map_err(|error| BadLine::Format(error.to_string()))?;
        if !(OLDEST..=VERSION).contains(&entry.v) {
            return Err(BadLine::Format(format!(
                "format version {} is none that this program knows ({OLDEST} to {VERSION})",
                entry.v
            )));
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what was written is read back, and no single changed byte goes unnoticed.
    #[test]
    fn any_changed_byte_is_noticed() {
        let record = Record::Kill {
            id: "k1-1".into(),
            scope: "/pay".into(),
            level: Level::Cut,
            actor: "admin".into(),
            reason: "runaway".into(),
        };
        let entry = Entry { v: VERSION, seq: 7, at: 9, record };
        let line = entry.to_line();
        let line = line.trim_end();
        assert_eq!(Entry::from_line(line).unwrap(), entry);
        for index in 0..line.len() {
            let mut bytes = line.as_bytes().to_vec();
            bytes[index] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(Entry::from_line(&changed).is_err(), "byte {index}: {changed}");
        }
    }
}
