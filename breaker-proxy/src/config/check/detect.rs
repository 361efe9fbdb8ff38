//! The detectors of one scope or dimension, from a section to specs. Their numbers are the core's to judge; it knows which key of the
//! file is which of them.
//!
//! A detector's own key makes it one, and its value is the bound that needs no learning: a share, a length, a count. What it learns
//! may find less than that, never more.

use super::super::raw::{DETECT, Report, Section};
use super::super::value::{parse_name, parse_rate, parse_span, parse_window};
use super::rules::Level;
use super::{judged, word};
use breaker_core::{
    DetectorKind, DetectorSpec, Errors, Latency, Novel, OnFind, Ratio, Repeat, ShareOf, Silence,
    Span, Spread, Streak, Surge, SurgeWindow, Unit,
};

/// Detectors of one scope.
const MAX_DETECTORS: usize = 8;

/// The kinds, each by the key that makes it one.
const KINDS: [&str; 9] =
    ["surge", "repeat", "errors", "latency", "silence", "spread", "streak", "novel", "ratio"];

/// The detectors, and the path of each.
pub(super) fn detectors(
    section: &mut Section,
    level: Level,
    report: &mut Report<'_>,
) -> (Vec<DetectorSpec>, Vec<String>) {
    let sections = section.sections("detect", DETECT, MAX_DETECTORS, report);
    let found = sections.into_iter().filter_map(|mut one| {
        let spec = detector(&mut one, level, report)?;
        Some((spec, one.path))
    });
    found.unzip()
}

fn detector(section: &mut Section, level: Level, report: &mut Report<'_>) -> Option<DetectorSpec> {
    let name = section.text("name", report).and_then(|text| judged(&text, parse_name, report));
    let on_find = section
        .text("on_find", report)
        .and_then(|text| word(&text, &[("trip", OnFind::Trip), ("warn", OnFind::Warn)], report));
    let given: Vec<&str> = KINDS.into_iter().filter(|kind| section.has(kind)).collect();
    let kind = match given.as_slice() {
        [kind] => *kind,
        [] => {
            let hint = "say what to look for, as in { errors = 0.5 }";
            report.wrong(&section.path, format!("is none of {}", KINDS.join(", ")), hint);
            return None;
        }
        [first, second, ..] => {
            let hint = "write two detectors, each with its own { }";
            report.wrong(section.path_of(second), format!("there is also {first}"), hint);
            return None;
        }
    };
    let before = report.errors.len();
    let found = match kind {
        "surge" => surge(section, level, report).map(DetectorKind::Surge),
        "repeat" => repeat(section, report).map(DetectorKind::Repeat),
        "errors" => errors(section, report).map(DetectorKind::Errors),
        "latency" => latency(section, report).map(DetectorKind::Latency),
        "silence" => silence(section, report).map(DetectorKind::Silence),
        "spread" => spread(section, report).map(DetectorKind::Spread),
        "streak" => streak(section, report).map(DetectorKind::Streak),
        "novel" => novel(section, report).map(DetectorKind::Novel),
        _ => ratio(section, report).map(DetectorKind::Ratio),
    };
    for key in section.left() {
        let hint = format!("docs/CONFIG.md says which keys go with {kind}; drop it");
        report.wrong(section.path_of(&key), format!("does not belong to {kind}"), hint);
    }
    let spec = DetectorSpec { name, ..DetectorSpec::new(found?) };
    let spec = DetectorSpec { on_find: on_find.unwrap_or(spec.on_find), ..spec };
    (report.errors.len() == before).then_some(spec)
}

fn surge(section: &mut Section, level: Level, report: &mut Report<'_>) -> Option<Surge> {
    let rate = |text: &str| parse_window(text, Unit::Calls);
    let texts = section.texts("surge", report)?;
    if texts.is_empty() {
        report.wrong(section.path_of("surge"), "is an empty list", "say surge = \"600/1m\"");
    }
    let alone = matches!(texts.as_slice(), [_]);
    let mut ceilings: [Option<u64>; 4] = [None; 4];
    let mut a_minute = None;
    for text in texts {
        let Some((count, length)) = judged(&text, rate, report) else { continue };
        let Some(at) = WINDOWS.iter().position(|window| Span::from_secs(*window) == length) else {
            let hint = "surges are judged in 1s, 10s, 1m and 5m: \"600/1m\"";
            report.wrong(text.path, format!("{} is of none of the windows", text.shown), hint);
            continue;
        };
        a_minute = a_minute.or_else(|| (alone && length == MINUTE).then_some(count));
        match ceilings.get_mut(at) {
            Some(ceiling @ None) => *ceiling = Some(count),
            _ => report.wrong(text.path, "stands here twice", "drop one"),
        }
    }
    let like = a_minute.unwrap_or(1);
    let mut rule = match level {
        Level::Global => Surge::of_everything(like),
        Level::Named => Surge::of_route(like),
        Level::Keys => Surge::of_keys(like),
    };
    if a_minute.is_none() {
        for (window, ceiling) in rule.windows.iter_mut().zip(ceilings) {
            let old = *window;
            *window = ceiling.map(|ceiling| match old {
                Some(old) => SurgeWindow { ceiling, ..old },
                None => SurgeWindow { factor: None, floor: 1, ceiling },
            });
        }
    }
    let times = section.number("times", report);
    let least = section.whole("least", 0, u64::MAX >> 1, report);
    for window in rule.windows.iter_mut().flatten() {
        if window.factor.is_some() {
            window.factor = times.or(window.factor);
            window.floor = least.unwrap_or(window.floor);
        }
    }
    set(&mut rule.start_after, length(section, "after", report));
    set(&mut rule.peak_half, length(section, "forget", report));
    set(&mut rule.growth, section.number("growth", report));
    Some(rule)
}

fn repeat(section: &mut Section, report: &mut Report<'_>) -> Option<Repeat> {
    let text = section.quantity("repeat", "25/1m", report);
    let share = section.number("share", report);
    let (count, window) = judged(&text?, |text| parse_rate(text, Unit::Calls), report)?;
    let mut rule =
        Repeat { count: u32::try_from(count).unwrap_or(u32::MAX), window, ..Repeat::default() };
    set(&mut rule.share, share);
    Some(rule)
}

fn errors(section: &mut Section, report: &mut Report<'_>) -> Option<Errors> {
    let mut rule = Errors::default();
    let ceiling = section.number("errors", report);
    if let Some(windows) = lengths(section, "over", report) {
        match windows.as_slice() {
            [only] => rule.windows = [*only; 2],
            [fast, slow] => rule.windows = [*fast, *slow],
            _ => report.wrong(
                section.path_of("over"),
                "is no window or two",
                "use [\"1m\", \"10m\"]",
            ),
        }
    }
    set(&mut rule.minimum, small(section, "at_least", report));
    set(&mut rule.faults, small(section, "faults", report));
    set(&mut rule.deviations, section.number("deviations", report));
    set(&mut rule.least, section.number("least", report));
    set(&mut rule.times, section.number("times", report));
    set(&mut rule.base_over, length(section, "forget", report));
    set(&mut rule.start_after, length(section, "after", report));
    Some(Errors { ceiling: ceiling?, ..rule })
}

fn latency(section: &mut Section, report: &mut Report<'_>) -> Option<Latency> {
    let mut rule = Latency::default();
    let ceiling = length(section, "latency", report);
    set(&mut rule.times, section.number("times", report));
    set(&mut rule.spreads, section.number("deviations", report));
    set(&mut rule.weight, section.number("smoothing", report));
    set(&mut rule.minimum, small(section, "at_least", report));
    set(&mut rule.over, length(section, "forget", report));
    Some(Latency { ceiling: ceiling?, ..rule })
}

fn silence(section: &mut Section, report: &mut Report<'_>) -> Option<Silence> {
    let mut rule = Silence::default();
    let ceiling = length(section, "silence", report);
    set(&mut rule.active, section.number("active", report));
    set(&mut rule.missed, section.number("missed", report));
    set(&mut rule.least, length(section, "least", report));
    set(&mut rule.times, section.number("times", report));
    set(&mut rule.hour_times, section.number("hour_times", report));
    Some(Silence { ceiling: ceiling?, ..rule })
}

fn spread(section: &mut Section, report: &mut Report<'_>) -> Option<Spread> {
    let mut rule = Spread::default();
    if section.is_whole("spread") {
        let children = small(section, "spread", report);
        (rule.children, rule.share) = (Some(children?), None);
    } else {
        let share = section.number("spread", report);
        set(&mut rule.minimum, small(section, "at_least", report));
        rule.share = Some(share?);
    }
    set(&mut rule.within, length(section, "over", report));
    Some(rule)
}

fn streak(section: &mut Section, report: &mut Report<'_>) -> Option<Streak> {
    let count = small(section, "streak", report);
    let or_slow = section.flag("slow", report).unwrap_or(false);
    Some(Streak { count: count?, or_slow })
}

fn novel(section: &mut Section, report: &mut Report<'_>) -> Option<Novel> {
    Some(Novel { start_after: length(section, "novel", report)? })
}

fn ratio(section: &mut Section, report: &mut Report<'_>) -> Option<Ratio> {
    let words = [("faults", ShareOf::Faults), ("slow", ShareOf::Slow), ("either", ShareOf::Either)];
    let of = section.text("ratio", report).and_then(|text| word(&text, &words, report));
    let mut rule = Ratio::default();
    set(&mut rule.share, section.number("above", report));
    set(&mut rule.minimum, small(section, "at_least", report));
    set(&mut rule.window, length(section, "over", report));
    Some(Ratio { of: of?, ..rule })
}

/// Puts in what the file says, where it says something.
fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn small(section: &mut Section, key: &str, report: &mut Report<'_>) -> Option<u32> {
    let found = section.whole(key, 1, u64::from(u32::MAX), report);
    found.and_then(|found| u32::try_from(found).ok())
}

fn length(section: &mut Section, key: &str, report: &mut Report<'_>) -> Option<Span> {
    let text = section.quantity(key, "10s", report)?;
    judged(&text, parse_span, report)
}

fn lengths(section: &mut Section, key: &str, report: &mut Report<'_>) -> Option<Vec<Span>> {
    let texts = section.texts(key, report)?;
    Some(texts.iter().filter_map(|text| judged(text, parse_span, report)).collect())
}

/// The windows in which surges are judged, in seconds.
const WINDOWS: [u64; 4] = [1, 10, 60, 300];
const MINUTE: Span = Span::from_secs(60);
