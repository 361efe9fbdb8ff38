//! Detectors as written and as checked, and what they find; it holds no atomic and reads no clock.
//!
//! A detector judges counts over time and only ever asks for a trip, or warns. Those that learn do so by
//! time and never by request, believe what they saw only two epochs later and only if nothing tripped
//! meanwhile, and stand below a ceiling that no learning moves.

pub(crate) mod errors;
pub(crate) mod halves;
pub(crate) mod judge;
pub(crate) mod latency;
pub(crate) mod learned;
pub(crate) mod ratio;
pub(crate) mod repeat;
pub(crate) mod short;
pub(crate) mod silence;
pub(crate) mod spread;
pub(crate) mod surge;

use crate::time::Span;

pub use self::errors::Errors;
pub use self::latency::Latency;
pub use self::learned::{Learned, LearnedError};
pub use self::ratio::{Ratio, ShareOf};
pub use self::repeat::Repeat;
pub use self::silence::Silence;
pub use self::spread::Spread;
pub use self::surge::{Surge, SurgeWindow};

/// One detector of a scope, as written.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct DetectorSpec {
    /// What it looks for, and its numbers.
    pub kind: DetectorKind,
    /// What a finding does.
    pub on_find: OnFind,
    /// Its identity over reloads: what it learned stays with its name.
    pub name: Option<String>,
}

/// What a detector looks for.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum DetectorKind {
    /// More calls than ever believed, in 1, 10, 60 or 300 s. Judged at the call itself.
    Surge(Surge),
    /// The same call over and over. Judged at the call itself.
    Repeat(Repeat),
    /// A share of faults far above its own past.
    Errors(Errors),
    /// Latency far above its own past. Named scopes only.
    Latency(Latency),
    /// A rate that died. It can only warn: there is nothing to cut off. Named scopes only.
    Silence(Silence),
    /// Too many children tripped. Named scopes only.
    Spread(Spread),
    /// Faults in a row. Judged at the settlement itself.
    Streak(Streak),
    /// A class of fault that was never seen before. It can only warn. Named scopes only.
    Novel(Novel),
    /// A fixed share of faults or of slow calls; learns nothing.
    Ratio(Ratio),
}

/// What a finding does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
pub enum OnFind {
    /// Trips the gate.
    Trip,
    /// Is told, and changes nothing: the way to begin with a detector that learns.
    Warn,
}

/// So many faults in a row, with no good call between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Streak {
    /// Faults in a row, 2 to 1 000 000. Envoy's outlier detection has 5 (consecutive 5xx).
    pub count: u32,
    /// Whether a slow call is one of them; else it ends the row as a good one does.
    pub or_slow: bool,
}

/// The first fault of a class that was never seen in this scope.
///
/// A class is the caller's number for a kind of fault (a status, a reject code). 256 are told apart, by their
/// lowest eight bits; any 256 in a row never collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Novel {
    /// Nothing is told before so long a time of looking. 6 h unless said: at first everything is new.
    pub start_after: Span,
}

/// What a detector saw: enough to say why.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The detector: its index among those of its scope.
    pub detector: u8,
    /// What a finding does, by its spec.
    pub on_find: OnFind,
    /// What was seen, in the unit of `bound`.
    pub value: f64,
    /// What it was held against: calls (surge, repeat, streak), a share (errors, ratio, spread), seconds
    /// (latency, silence), a class (novel, where it is 0).
    pub bound: f64,
    /// The window it was seen in; zero where there is none.
    pub window: Span,
    /// Calls, faults or children counted …
    pub count: u64,
    /// … of so many.
    pub of: u64,
    /// Whether the bound was learned. A fixed one needs no trust, and no cap stands above its trips.
    pub learned: bool,
}

/// How much the learned bounds of one area (a key dimension, or all routes) may cut off at once.
///
/// Envoy's outlier detection ejects at most 10 % of a cluster's hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CapSpec {
    /// Share of the scopes seen in the area, 0 to 1.
    pub(crate) share: f64,
    /// Scopes that may be cut off however small the area is, at least 1.
    pub(crate) at_least: u32,
}

impl DetectorSpec {
    /// A detector that trips; one that can only warn warns.
    #[must_use]
    pub fn new(kind: DetectorKind) -> DetectorSpec {
        let on_find = if kind.can_trip() { OnFind::Trip } else { OnFind::Warn };
        DetectorSpec { kind, on_find, name: None }
    }

    /// The same, but a finding is only told.
    #[must_use]
    pub fn warning(self) -> DetectorSpec {
        DetectorSpec { on_find: OnFind::Warn, ..self }
    }

    /// The same, with an identity over reloads.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> DetectorSpec {
        DetectorSpec { name: Some(name.into()), ..self }
    }
}

impl From<DetectorKind> for DetectorSpec {
    fn from(kind: DetectorKind) -> DetectorSpec {
        DetectorSpec::new(kind)
    }
}

impl DetectorKind {
    /// Whether a trip could mend what it finds.
    #[must_use]
    pub const fn can_trip(&self) -> bool {
        !matches!(self, DetectorKind::Silence(_) | DetectorKind::Novel(_))
    }

    /// Whether each key of a dimension may have it: memory of a key is small, and a key's traffic thin.
    #[must_use]
    pub const fn fits_keys(&self) -> bool {
        use DetectorKind::{Latency, Novel, Silence, Spread};
        !matches!(self, Latency(_) | Silence(_) | Spread(_) | Novel(_))
    }

    /// The word for it in words of a few letters, as it stands in causes and metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            DetectorKind::Surge(_) => "surge",
            DetectorKind::Repeat(_) => "repeat",
            DetectorKind::Errors(_) => "errors",
            DetectorKind::Latency(_) => "latency",
            DetectorKind::Silence(_) => "silence",
            DetectorKind::Spread(_) => "spread",
            DetectorKind::Streak(_) => "streak",
            DetectorKind::Novel(_) => "novel",
            DetectorKind::Ratio(_) => "ratio",
        }
    }
}

impl Default for Streak {
    fn default() -> Streak {
        Streak { count: 5, or_slow: false }
    }
}

impl Default for Novel {
    fn default() -> Novel {
        Novel { start_after: SIX_HOURS }
    }
}

impl Default for CapSpec {
    fn default() -> CapSpec {
        CapSpec { share: 0.1, at_least: 1 }
    }
}

/// A finding whose detector is not yet named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sighting {
    pub(crate) value: f64,
    pub(crate) bound: f64,
    pub(crate) window: Span,
    pub(crate) count: u64,
    pub(crate) of: u64,
    pub(crate) learned: bool,
}

/// One detector, checked, with its index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ruled<T> {
    pub(crate) rule: T,
    pub(crate) index: u8,
    pub(crate) on_find: OnFind,
}

/// All detectors of one scope, checked.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Compiled {
    pub(crate) surge: Option<Ruled<Surge>>,
    pub(crate) repeat: Option<Ruled<Repeat>>,
    pub(crate) errors: Option<Ruled<Errors>>,
    pub(crate) latency: Option<Ruled<Latency>>,
    pub(crate) silence: Option<Ruled<Silence>>,
    pub(crate) spread: Option<Ruled<Spread>>,
    pub(crate) streak: Option<Ruled<Streak>>,
    pub(crate) novel: Option<Ruled<Novel>>,
    /// One of faults, one of slow calls, one of both.
    pub(crate) ratios: [Option<Ruled<Ratio>>; RATIOS],
}

impl<T: Copy> Ruled<T> {
    /// The finding of this detector.
    pub(crate) fn found(&self, sighting: Sighting) -> Found {
        let Sighting { value, bound, window, count, of, learned } = sighting;
        let (detector, on_find) = (self.index, self.on_find);
        Found { detector, on_find, value, bound, window, count, of, learned }
    }
}

impl Compiled {
    /// Checks the detectors of one scope, or of each key of a dimension. Each error has the index of its
    /// detector, a problem and a hint.
    pub(crate) fn new(
        specs: &[DetectorSpec],
        keys: bool,
    ) -> Result<Compiled, Vec<(usize, String, String)>> {
        let (mut compiled, mut errors) = (Compiled::default(), Vec::new());
        for (index, spec) in specs.iter().enumerate() {
            if let Err((problem, hint)) = compiled.add(index, spec, keys) {
                errors.push((index, problem, hint));
            }
        }
        if errors.is_empty() { Ok(compiled) } else { Err(errors) }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Compiled::default()
    }

    fn add(&mut self, at: usize, spec: &DetectorSpec, keys: bool) -> Result<(), (String, String)> {
        if at >= MAX_DETECTORS {
            return told("more detectors than a scope can have", "use at most 8");
        }
        check(spec)?;
        if keys && !spec.kind.fits_keys() {
            let problem = format!("`{}` does not fit keys", spec.kind.word());
            return told(&problem, "put it on the route, the group or `/`");
        }
        let (index, on_find) = (u8::try_from(at).unwrap_or(u8::MAX), spec.on_find);
        match &spec.kind {
            DetectorKind::Surge(rule) => {
                put(&mut self.surge, Ruled { rule: rule.rounded(), index, on_find })
            }
            DetectorKind::Repeat(rule) => {
                put(&mut self.repeat, Ruled { rule: *rule, index, on_find })
            }
            DetectorKind::Errors(rule) => {
                put(&mut self.errors, Ruled { rule: *rule, index, on_find })
            }
            DetectorKind::Latency(rule) => {
                put(&mut self.latency, Ruled { rule: *rule, index, on_find })
            }
            DetectorKind::Silence(rule) => {
                put(&mut self.silence, Ruled { rule: *rule, index, on_find })
            }
            DetectorKind::Spread(rule) => {
                put(&mut self.spread, Ruled { rule: *rule, index, on_find })
            }
            DetectorKind::Streak(rule) => {
                put(&mut self.streak, Ruled { rule: *rule, index, on_find })
            }
            DetectorKind::Novel(rule) => {
                put(&mut self.novel, Ruled { rule: *rule, index, on_find })
            }
            DetectorKind::Ratio(rule) => {
                let ruled = Ruled { rule: *rule, index, on_find };
                match self.ratios.iter_mut().find(|place| place.is_none()) {
                    Some(place) => put(place, ruled),
                    None => told("a scope has at most two ratios", "drop one"),
                }
            }
        }
    }
}

/// Checks the numbers of one detector; the error is a problem and a hint.
pub(crate) fn check(spec: &DetectorSpec) -> Result<(), (String, String)> {
    if spec.on_find == OnFind::Trip && !spec.kind.can_trip() {
        let problem = format!("`{}` cannot trip: a trip would not mend it", spec.kind.word());
        return told(&problem, "let it warn");
    }
    match &spec.kind {
        DetectorKind::Surge(rule) => rule.check(),
        DetectorKind::Repeat(rule) => rule.check(),
        DetectorKind::Errors(rule) => rule.check(),
        DetectorKind::Latency(rule) => rule.check(),
        DetectorKind::Silence(rule) => rule.check(),
        DetectorKind::Spread(rule) => rule.check(),
        DetectorKind::Ratio(rule) => rule.check(),
        DetectorKind::Novel(rule) => long("start_after", rule.start_after, Span::ZERO, THIRTY_DAYS),
        DetectorKind::Streak(rule) if (2..=1_000_000).contains(&rule.count) => Ok(()),
        DetectorKind::Streak(_) => told("a row is 2 to 1 000 000 faults long", "use 5"),
    }
}

impl CapSpec {
    /// How many of `seen` scopes may be cut off at once.
    pub(crate) fn of(&self, seen: u64) -> u64 {
        narrow(self.share * wide(seen)).max(u64::from(self.at_least))
    }
}

fn put<T>(place: &mut Option<T>, rule: T) -> Result<(), (String, String)> {
    if place.is_some() {
        return told("a scope has one detector of a kind", "drop one of the two");
    }
    *place = Some(rule);
    Ok(())
}

pub(crate) fn told<T>(problem: &str, hint: &str) -> Result<T, (String, String)> {
    Err((problem.to_owned(), hint.to_owned()))
}

/// Whether a number lies within its range; what is no number does not.
pub(crate) fn within(
    name: &str,
    value: f64,
    least: f64,
    most: f64,
) -> Result<(), (String, String)> {
    if value >= least && value <= most {
        return Ok(());
    }
    told(&format!("{name} is {value}"), &format!("use {least} to {most}"))
}

/// Whether a length lies within its range.
pub(crate) fn long(
    name: &str,
    value: Span,
    least: Span,
    most: Span,
) -> Result<(), (String, String)> {
    if value >= least && value <= most {
        return Ok(());
    }
    let (told_value, least, most) = (seconds(value), seconds(least), seconds(most));
    told(&format!("{name} is {told_value} s"), &format!("use {least} to {most} s"))
}

/// A count as a float: exact to 2⁵³, nearest above.
#[expect(clippy::cast_precision_loss, reason = "a count above 2^53 may lose its last bits")]
pub(crate) const fn wide(count: u64) -> f64 {
    count as f64
}

/// A float as a count: cut, saturating, zero for what is no number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from float saturates, and makes zero of what is no number"
)]
pub(crate) const fn narrow(value: f64) -> u64 {
    value as u64
}

/// A float in half its width, and finite: memory of a detector is small.
#[expect(clippy::cast_possible_truncation, reason = "the nearest float of half the width is meant")]
pub(crate) fn single(value: f64) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(-3.0e38, 3.0e38) as f32 }
}

/// A length in seconds.
pub(crate) const fn seconds(span: Span) -> f64 {
    wide(span.as_nanos()) / 1.0e9
}

/// What an average forgets in `time`, of one with this time constant: 1 − e^(−time/constant).
pub(crate) fn forgets(time: f64, constant: f64) -> f64 {
    -(-time.max(0.0) / constant.max(1.0e-9)).exp_m1()
}

/// Detectors of one scope, at most.
pub(crate) const MAX_DETECTORS: usize = 8;
/// Ratios of one scope, at most.
pub(crate) const RATIOS: usize = 2;
/// The time before a learned bound counts: less history is none.
pub(crate) const SIX_HOURS: Span = Span::from_secs(6 * 3_600);
/// No field of a detector is longer.
pub(crate) const THIRTY_DAYS: Span = Span::from_secs(30 * 86_400);
