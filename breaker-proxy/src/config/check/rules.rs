//! The rules of one scope or dimension, from a section to a spec: what the core would refuse is told at its place in the file; it
//! knows no request and no upstream.

use super::super::raw::{
    KEY, LIMIT, OVERRIDE, RATE, RECOVER, Report, Section, WordOrTable, quoted,
};
use super::super::value::{parse_hold, parse_name, parse_rate, parse_span, parse_window};
use super::detect::detectors;
use super::keys::dimension;
use super::{judged, word};
use crate::config::KeySource;
use breaker_core::{
    Breaker, Capacity, Counting, KeyOverride, KeySpec, LimitKind, LimitSpec, Mode, Newcomers,
    OnBreach, PolicySpec, Recover, ScopeSpec, Seed, Span, Unit,
};
use std::collections::BTreeSet;

/// The rules of one scope, and where its dimensions stand in the file.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) spec: ScopeSpec,
    pub(super) sources: Vec<KeySource>,
    /// The path of each dimension.
    paths: Vec<String>,
}

impl Rules {
    /// Name, source and path of each dimension.
    pub(super) fn dimensions(&self) -> impl Iterator<Item = (&str, &KeySource, &str)> {
        let named = self.spec.keys.iter().map(|key| key.name.as_str());
        let placed = self.paths.iter().map(String::as_str);
        named.zip(&self.sources).zip(placed).map(|((name, source), path)| (name, source, path))
    }
}

/// What scopes and dimensions have in common.
pub(super) struct Common {
    pub(super) limits: Vec<LimitSpec>,
    pub(super) detectors: Vec<breaker_core::DetectorSpec>,
    pub(super) recover: Recover,
    pub(super) mode: Mode,
    pub(super) spent_after_crash: bool,
    /// Where the core's paths lead: of each limit and detector its place in the core's words and in the file.
    places: Vec<(String, String)>,
}

/// Limits, detectors, recovery, mode and dimensions.
pub(super) fn rules(section: &mut Section, level: Level, report: &mut Report<'_>) -> Rules {
    let common = common(section, level, report);
    let mut rules = Rules {
        spec: ScopeSpec {
            limits: common.limits,
            detectors: common.detectors,
            recover: common.recover,
            mode: common.mode,
            spent_after_crash: common.spent_after_crash,
            ..ScopeSpec::default()
        },
        ..Rules::default()
    };
    let alone = PolicySpec { global: rules.spec.clone(), ..PolicySpec::default() };
    ask_core(&alone, "global", &section.path, &common.places, report);
    let mut seen = BTreeSet::new();
    for mut key in section.sections("keys", KEY, super::MAX_DIMENSIONS, report) {
        let (spec, source) = dimension(&mut key, report);
        if !spec.name.is_empty() && !seen.insert(spec.name.clone()) {
            report.wrong(
                key.path_of("name"),
                format!("{} is taken by another dimension", quoted(&spec.name)),
                "rename one of them",
            );
        }
        rules.spec.keys.push(spec);
        rules.sources.push(source);
        rules.paths.push(key.path);
    }
    rules
}

/// Where rules stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// `/`.
    Global,
    /// A group or a route.
    Named,
    /// The keys of a dimension.
    Keys,
}

fn common(section: &mut Section, level: Level, report: &mut Report<'_>) -> Common {
    let (limits, limits_at) = limits(section, report);
    let (detectors, detectors_at) = detectors(section, level, report);
    let place = |kind: &'static str| {
        move |(index, path): (usize, String)| (format!(".{kind}[{index}]"), path)
    };
    let places = limits_at.into_iter().enumerate().map(place("limit"));
    let places = places.chain(detectors_at.into_iter().enumerate().map(place("detect"))).collect();
    let (recover, mode) = (recover(section, report), mode(section, report));
    let spent_after_crash = after_crash(section, report);
    Common { limits, detectors, recover, mode, spent_after_crash, places }
}

/// The rules of each key of a dimension.
pub(super) fn key_rules(key: &mut Section, name: String, report: &mut Report<'_>) -> KeySpec {
    let common = common(key, Level::Keys, report);
    let mut places = common.places;
    let newcomers = newcomers(key, report);
    let overrides = overrides(key, &mut places, report);
    let spec = KeySpec {
        name,
        limits: common.limits,
        detectors: common.detectors,
        recover: common.recover,
        mode: common.mode,
        spent_after_crash: common.spent_after_crash,
        newcomers,
        overrides,
        ..KeySpec::default()
    };
    let alone = KeySpec { name: "k".to_owned(), ..spec.clone() };
    let global = ScopeSpec { keys: vec![alone], ..ScopeSpec::default() };
    let alone = PolicySpec { global, ..PolicySpec::default() };
    ask_core(&alone, "global.keys.k", &key.path, &places, report);
    spec
}

/// Lets the core judge the rules of one scope or dimension by themselves, on a breaker that is thrown away, so that what it
/// refuses is told with everything else. What is wrong at a place already is not told twice.
fn ask_core(
    spec: &PolicySpec,
    prefix: &str,
    path: &str,
    places: &[(String, String)],
    report: &mut Report<'_>,
) {
    let breaker = Breaker::new(Capacity { scopes: 1, keys: 1 }, Seed([0, 0]));
    let Err(errors) = breaker.compile(spec) else { return };
    for error in errors {
        let rest = error.path.strip_prefix(prefix).unwrap_or_default();
        let placed = places
            .iter()
            .filter_map(|(core, file)| Some(format!("{file}{}", rest.strip_prefix(core.as_str())?)))
            .next();
        let at = placed.unwrap_or_else(|| format!("{path}{rest}"));
        let told = report.errors.iter().any(|told| {
            told.path.strip_prefix(at.as_str()).is_some_and(|rest| {
                rest.is_empty() || rest.starts_with('.') || rest.starts_with('[')
            })
        });
        if !told {
            report.wrong(at, error.problem, error.hint);
        }
    }
}

fn overrides(
    key: &mut Section,
    places: &mut Vec<(String, String)>,
    report: &mut Report<'_>,
) -> Vec<KeyOverride> {
    let mut overrides = Vec::new();
    let mut seen = BTreeSet::new();
    for mut section in key.sections("overrides", OVERRIDE, MAX_OVERRIDES, report) {
        let has_key = section.has("key");
        let label = section.text("key", report);
        if !has_key {
            let hint = "name the key that has limits of its own, as in key = \"acme\"";
            report.wrong(section.path_of("key"), "is missing", hint);
        }
        let (limits, limits_at) = limits(&mut section, report);
        let Some(label) = label else { continue };
        if label.value.is_empty() {
            report.wrong(label.path, "names no key", "write its value as requests carry it");
            continue;
        }
        if !seen.insert(label.value.clone()) {
            let problem = format!("{} has an override already", label.shown);
            report.wrong(label.path, problem, "give each key one");
            continue;
        }
        let index = overrides.len();
        let core = |(at, path)| (format!(".override[{index}].limit[{at}]"), path);
        places.extend(limits_at.into_iter().enumerate().map(core));
        places.push((format!(".override[{index}]"), section.path));
        overrides.push(KeyOverride { label: label.value.into_bytes(), limits });
    }
    overrides
}

fn newcomers(key: &mut Section, report: &mut Report<'_>) -> Option<Newcomers> {
    let mut table = key.section("newcomers", RATE, report)?;
    if !table.has("rate") {
        let hint = "say how many new keys may come, as in newcomers = { rate = \"100/s\" }";
        report.wrong(table.path_of("rate"), "is missing", hint);
    }
    let burst = table.whole("burst", 1, u64::from(u32::MAX), report);
    let rate = table.quantity("rate", "100/s", report)?;
    let (count, per) = judged(&rate, |text| parse_rate(text, Unit::Calls), report)?;
    Some(Newcomers { count, per, burst: burst.unwrap_or_else(|| one_second_of(count, per)) })
}

/// The limits, and the path of each.
fn limits(section: &mut Section, report: &mut Report<'_>) -> (Vec<LimitSpec>, Vec<String>) {
    let mut limits: Vec<(String, LimitSpec)> = Vec::new();
    for mut one in section.sections("limit", LIMIT, MAX_LIMITS, report) {
        if let Some(spec) = limit(&mut one, report) {
            limits.push((one.path, spec));
        }
    }
    for (index, (path, spec)) in limits.iter().enumerate() {
        let stricter = limits.iter().enumerate().find(|(other, (_, stricter))| {
            *other != index
                && never_reached(spec, stricter)
                // Of two that are alike the second is the odd one.
                && (*other < index || !never_reached(stricter, spec))
        });
        if let Some((_, (stricter, _))) = stricter {
            let hint = match spec.on_breach {
                OnBreach::Refuse => "drop it, or make it the stricter of the two",
                OnBreach::Trip => "count of = \"offered\", which sees what the other refuses",
            };
            report.wrong(path, format!("is never reached, because {stricter} refuses first"), hint);
        }
    }
    limits.into_iter().map(|(path, spec)| (spec, path)).unzip()
}

fn limit(section: &mut Section, report: &mut Report<'_>) -> Option<LimitSpec> {
    let by = section
        .text("by", report)
        .and_then(|text| word(&text, &[("calls", Unit::Calls), ("weight", Unit::Weight)], report));
    let by = by.unwrap_or(Unit::Calls);
    let kind = kind(section, by, report);
    let of = section.text("of", report).and_then(|text| {
        let words = [("admitted", Counting::Admitted), ("offered", Counting::Offered)];
        word(&text, &words, report)
    });
    let on_breach = section.text("on_breach", report).and_then(|text| {
        word(&text, &[("refuse", OnBreach::Refuse), ("trip", OnBreach::Trip)], report)
    });
    let name = section.text("name", report).and_then(|text| judged(&text, parse_name, report));
    Some(LimitSpec {
        name: name.unwrap_or_default(),
        by,
        of: of.unwrap_or(Counting::Admitted),
        on_breach: on_breach.unwrap_or(OnBreach::Refuse),
        candidate: section.flag("candidate", report).unwrap_or(false),
        ..LimitSpec::new(kind?)
    })
}

/// The kinds of limit, each by the key that makes it one.
const KINDS: [(&str, &str); 4] = [
    ("rate", "a rate"),
    ("window", "a window"),
    ("budget", "a budget"),
    ("in_flight", "a bound on what is in flight"),
];

/// Kind and numbers. Exactly one of the four keys makes the kind; what goes with another kind is an error.
fn kind(section: &mut Section, by: Unit, report: &mut Report<'_>) -> Option<LimitKind> {
    let given: Vec<(&str, &str)> = KINDS.into_iter().filter(|(key, _)| section.has(key)).collect();
    let rate = section.quantity("rate", "100/s", report);
    let window = section.quantity("window", "100/1s", report);
    let most = match by {
        Unit::Calls => u64::from(u32::MAX),
        Unit::Weight => MAX_WEIGHT,
    };
    let budget = section.whole("budget", 1, most, report);
    let in_flight = section.whole("in_flight", 1, most, report);
    let (has_burst, has_idle) = (section.has("burst"), section.has("idle"));
    let burst = section.whole("burst", 1, most, report);
    let idle = section.quantity("idle", "1h", report);
    let idle = idle.and_then(|text| judged(&text, parse_idle, report));
    match given.as_slice() {
        [] => {
            let hint =
                "say rate = \"100/s\", window = \"100/1s\", budget = 1000 or in_flight = 100";
            report.wrong(
                &section.path,
                "has neither a rate nor a window, budget or in_flight",
                hint,
            );
            return None;
        }
        [_] => {}
        [(_, first), (second, _), ..] => {
            let hint = "write two limits, each with its own { }";
            report.wrong(section.path_of(second), format!("there is also {first}"), hint);
            return None;
        }
    }
    let [(kind, _)] = given.as_slice() else { return None };
    if has_burst && *kind != "rate" {
        let hint = match *kind {
            "window" => "a window allows all of its calls at once already; drop the burst",
            _ => "drop the burst",
        };
        report.wrong(section.path_of("burst"), "belongs to a rate", hint);
    }
    if has_idle && *kind != "budget" {
        let hint = "drop it: what time gives back needs no pause to be forgotten";
        report.wrong(section.path_of("idle"), "belongs to a budget", hint);
    }
    match *kind {
        "rate" => {
            let (count, per) = judged(&rate?, |text| parse_rate(text, by), report)?;
            let burst = burst.unwrap_or_else(|| one_second_of(count, per));
            Some(LimitKind::Rate { count, per, burst })
        }
        "window" => {
            let (count, length) = judged(&window?, |text| parse_window(text, by), report)?;
            Some(LimitKind::Window { count, length })
        }
        "budget" => Some(LimitKind::Budget { count: budget?, idle }),
        _ => Some(LimitKind::InFlight { count: in_flight? }),
    }
}

fn parse_idle(text: &str) -> Result<Span, (String, String)> {
    match parse_span(text)? {
        Span::ZERO => super::flaw("is no time at all", "use at least 1s, or leave it out"),
        span => Ok(span),
    }
}

/// Whether `stricter` refuses every call that would breach `spec`. Only where that is plain: both count what was admitted,
/// and both are of one kind.
fn never_reached(spec: &LimitSpec, stricter: &LimitSpec) -> bool {
    if stricter.on_breach != OnBreach::Refuse
        || spec.candidate
        || stricter.candidate
        || spec.by != stricter.by
        || spec.of != Counting::Admitted
        || stricter.of != Counting::Admitted
    {
        return false;
    }
    match (spec.kind, stricter.kind) {
        (
            LimitKind::Window { count, length },
            LimitKind::Window { count: less, length: longer },
        ) => count >= less && length <= longer,
        (
            LimitKind::Rate { count, per, burst },
            LimitKind::Rate { count: less, per: longer, burst: smaller },
        ) => {
            // count/per >= less/longer, without division.
            let faster = u128::from(count) * u128::from(longer.as_nanos())
                >= u128::from(less) * u128::from(per.as_nanos());
            faster && burst >= smaller
        }
        _ => false,
    }
}

/// What a rate lets pass in a second, at least one: the burst that nobody has to think about.
fn one_second_of(count: u64, per: Span) -> u64 {
    let calls = u128::from(count) * u128::from(Span::from_secs(1).as_nanos())
        / u128::from(per.as_nanos().max(1));
    u64::try_from(calls).unwrap_or(u64::MAX).clamp(1, MAX_WEIGHT)
}

fn recover(section: &mut Section, report: &mut Report<'_>) -> Recover {
    let manual = Recover::Manual { probes: DEFAULT_PROBES };
    match section.word_or_section("recover", RECOVER, report) {
        None => manual,
        Some(WordOrTable::Word(text)) => {
            word(&text, &[("manual", manual)], report).unwrap_or(manual)
        }
        Some(WordOrTable::Table(mut table)) => {
            let probes = table
                .whole("probes", 1, u64::from(MAX_PROBES), report)
                .and_then(|probes| u8::try_from(probes).ok())
                .unwrap_or(DEFAULT_PROBES);
            if !table.has("after") {
                let hint = "say after = \"5s\", or recover = \"manual\"";
                report.wrong(table.path_of("after"), "is missing", hint);
            }
            let mut hold = |key: &str| {
                let text = table.quantity(key, "5s", report)?;
                judged(&text, parse_hold, report)
            };
            let (after, at_most) = (hold("after"), hold("at_most"));
            let Some(after) = after else {
                return manual;
            };
            if at_most.is_some_and(|at_most| at_most < after) {
                let hint =
                    "each strike doubles the hold from after up to at_most; make it the longer";
                report.wrong(table.path_of("at_most"), "is shorter than after", hint);
            }
            Recover::Probe { probes, after, at_most: at_most.unwrap_or(DEFAULT_AT_MOST.max(after)) }
        }
    }
}

fn mode(section: &mut Section, report: &mut Report<'_>) -> Mode {
    let words = [("enforce", Mode::Enforce), ("shadow", Mode::Shadow)];
    let found = section.text("mode", report).and_then(|text| word(&text, &words, report));
    found.unwrap_or(Mode::Enforce)
}

/// Whether budgets start spent after a crash.
fn after_crash(section: &mut Section, report: &mut Report<'_>) -> bool {
    let words = [("saved", false), ("spent", true)];
    let found = section.text("after_crash", report).and_then(|text| word(&text, &words, report));
    found.unwrap_or(false)
}

/// Limits of one scope.
const MAX_LIMITS: usize = 8;
/// Keys of one dimension that have limits of their own.
const MAX_OVERRIDES: usize = 1_024;
/// No file counts further: TOML's integers end there.
const MAX_WEIGHT: u64 = i64::MAX.unsigned_abs();
/// Probes that a gate can count.
const MAX_PROBES: u8 = 63;
const DEFAULT_PROBES: u8 = 5;
/// The longest hold of a trip, where the file gives none and `after` is not longer still.
const DEFAULT_AT_MOST: Span = Span::from_secs(300);
