//! Measures, goals, and the table they end in: medians, ratios within a round, what is missed; it measures nothing.

use crate::report::{Table, Verdict};
use crate::rivals::players::Rival;
use std::collections::BTreeMap;

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    /// Processor time of the proxy for one call, HTTP/1.1, 2 bytes of answer.
    Cpu2,
    /// The same with 1 KiB.
    Cpu1k,
    /// The same with 64 KiB.
    Cpu64k,
    /// The same over HTTP/2, 2 bytes.
    CpuHttp2,
    /// The same over TLS 1.3, 2 bytes.
    CpuTls,
    /// System calls for one call.
    Calls,
    /// Added median latency at a fixed rate.
    AddedP50,
    /// Added 99th percentile at a fixed rate.
    AddedP99,
    /// 99th percentile in a closed loop.
    TailP99,
    /// Memory at 64 connections.
    MemoryBusy,
    /// Memory with many idle connections.
    MemoryIdle,
}

/// How a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// Nanoseconds, shown as µs with one decimal, or as ms with two.
    Micros,
    /// Hundredths of one.
    Hundredths,
    /// KiB, shown as MiB with one decimal.
    KiB,
}

/// What the breaker is to reach; the value it is judged by is the median over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// At most so many thousandths of this rival's value in the same round.
    Ratio(Rival, i64),
    /// At most so much more than this rival's value in the same round.
    Beyond(Rival, i64),
    /// At most this.
    Most(i64),
}

impl Measure {
    /// All, in the table's order.
    pub(crate) const ALL: [Measure; 11] = [
        Measure::Cpu2,
        Measure::Cpu1k,
        Measure::Cpu64k,
        Measure::CpuHttp2,
        Measure::CpuTls,
        Measure::Calls,
        Measure::AddedP50,
        Measure::AddedP99,
        Measure::TailP99,
        Measure::MemoryBusy,
        Measure::MemoryIdle,
    ];

    /// As the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Measure::Cpu2 => "CPU per request, 2 B",
            Measure::Cpu1k => "CPU per request, 1 KiB",
            Measure::Cpu64k => "CPU per request, 64 KiB",
            Measure::CpuHttp2 => "CPU per request, HTTP/2, 2 B",
            Measure::CpuTls => "CPU per request, TLS 1.3, 2 B",
            Measure::Calls => "system calls per request",
            Measure::AddedP50 => "added p50 at 3,000/s",
            Measure::AddedP99 => "added p99 at 3,000/s",
            Measure::TailP99 => "closed-loop p99",
            Measure::MemoryBusy => "memory, 64 connections",
            Measure::MemoryIdle => "memory, 10,000 idle connections",
        }
    }

    fn unit(self) -> Unit {
        match self {
            Measure::Calls => Unit::Hundredths,
            Measure::MemoryBusy | Measure::MemoryIdle => Unit::KiB,
            _ => Unit::Micros,
        }
    }

    fn goal(self) -> Goal {
        match self {
            Measure::Cpu2 | Measure::Cpu1k => Goal::Ratio(Rival::HaProxy, 1_000),
            Measure::Cpu64k => Goal::Ratio(Rival::HaProxy, 750),
            Measure::CpuHttp2 => Goal::Ratio(Rival::Envoy, 1_000),
            Measure::CpuTls => Goal::Ratio(Rival::HaProxy, 1_100),
            Measure::Calls => Goal::Most(430),
            Measure::AddedP50 => Goal::Ratio(Rival::HaProxy, 1_150),
            Measure::AddedP99 => Goal::Beyond(Rival::HaProxy, 100_000),
            Measure::TailP99 => Goal::Ratio(Rival::HaProxy, 1_300),
            Measure::MemoryBusy => Goal::Most(25 * 1024),
            Measure::MemoryIdle => Goal::Most(150 * 1024),
        }
    }

    /// A value of this measure, for people.
    pub(crate) fn shown(self, value: i64) -> String {
        match self.unit() {
            Unit::Micros if value.unsigned_abs() < 1_000_000 => {
                format!("{} µs", decimal(value, 1_000, 1))
            }
            Unit::Micros => format!("{} ms", decimal(value, 1_000_000, 2)),
            Unit::Hundredths => decimal(value, 100, 2),
            Unit::KiB => format!("{} MiB", decimal(value, 1_024, 1)),
        }
    }

    fn wanted(self) -> String {
        match self.goal() {
            Goal::Ratio(rival, most) => {
                format!("≤ {} × {}", decimal(most, 1_000, 2), rival.name())
            }
            Goal::Beyond(rival, more) => format!("≤ {} + {}", rival.name(), self.shown(more)),
            Goal::Most(most) => format!("≤ {}", self.shown(most)),
        }
    }
}

/// What was measured of one proxy by one measure.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    /// A value for each round.
    Rounds(Vec<i64>),
    /// Nothing, and why.
    NotRun(String),
}

/// How the breaker stands to one goal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Met,
    Missed,
    /// One of the two was not measured.
    Unknown,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    cells: BTreeMap<(Measure, Rival), Cell>,
    profiles: BTreeMap<Measure, Vec<String>>,
    /// Timed runs, and those of them that were disturbed.
    runs: BTreeMap<Measure, (u32, u32)>,
}

impl Sheet {
    /// Notes the next round's value. After a failure nothing more is noted, so that rounds stay side by side.
    pub(crate) fn note(&mut self, measure: Measure, rival: Rival, value: i64) {
        let cell = self.cells.entry((measure, rival)).or_insert(Cell::Rounds(Vec::new()));
        if let Cell::Rounds(rounds) = cell {
            rounds.push(value);
        }
    }

    /// Notes that there will be no value, and why. The first reason stays.
    pub(crate) fn not_run(&mut self, measure: Measure, rival: Rival, why: &str) {
        let cell = self.cells.entry((measure, rival)).or_insert(Cell::Rounds(Vec::new()));
        if matches!(cell, Cell::Rounds(_)) {
            *cell = Cell::NotRun(why.to_owned());
        }
    }

    /// Notes that a timed run ended, and whether other programs disturbed it.
    pub(crate) fn ran(&mut self, measures: &[Measure], disturbed: bool) {
        for &measure in measures {
            let (runs, bad) = self.runs.entry(measure).or_default();
            *runs += 1;
            *bad += u32::from(disturbed);
        }
    }

    /// The rounds, and how many of the runs in them were disturbed.
    fn rounds_said(&self, measure: Measure) -> String {
        let rounds = self.rounds(measure, Rival::Breaker).map_or(0, <[i64]>::len);
        match self.runs.get(&measure) {
            Some(&(runs, bad)) if bad > 0 => format!("{rounds}; {bad} of {runs} runs disturbed"),
            _ => rounds.to_string(),
        }
    }

    /// Notes where the breaker's time goes, for a goal it misses.
    pub(crate) fn explain(&mut self, measure: Measure, profile: Vec<String>) {
        self.profiles.insert(measure, profile);
    }

    /// Whether anything was noted of a measure.
    fn has(&self, measure: Measure) -> bool {
        self.cells.keys().any(|&(noted, _)| noted == measure)
    }

    fn rounds(&self, measure: Measure, rival: Rival) -> Option<&[i64]> {
        match self.cells.get(&(measure, rival)) {
            Some(Cell::Rounds(rounds)) if !rounds.is_empty() => Some(rounds),
            _ => None,
        }
    }

    /// The breaker's value against this rival's, round by round.
    fn pairs(&self, measure: Measure, rival: Rival) -> Vec<(i64, i64)> {
        let ours = self.rounds(measure, Rival::Breaker).unwrap_or_default();
        let theirs = self.rounds(measure, rival).unwrap_or_default();
        if ours.len() == theirs.len() {
            ours.iter().copied().zip(theirs.iter().copied()).collect()
        } else {
            Vec::new()
        }
    }

    /// Thousandths of the rival's value, round by round.
    fn ratios(&self, measure: Measure, rival: Rival) -> Vec<i64> {
        let ratio = |(ours, theirs): (i64, i64)| ours.saturating_mul(1_000) / theirs.max(1);
        self.pairs(measure, rival).into_iter().map(ratio).collect()
    }

    /// What the goal speaks of, in the median over the rounds; `None` where a side was not measured.
    fn judged(&self, measure: Measure) -> Option<i64> {
        match measure.goal() {
            Goal::Ratio(rival, _) => median(self.ratios(measure, rival)),
            Goal::Beyond(rival, _) => {
                let beyond = |(ours, theirs): (i64, i64)| ours.saturating_sub(theirs);
                median(self.pairs(measure, rival).into_iter().map(beyond).collect())
            }
            Goal::Most(_) => {
                median(self.rounds(measure, Rival::Breaker).unwrap_or_default().to_vec())
            }
        }
    }

    fn standing(&self, measure: Measure) -> Standing {
        let (Goal::Ratio(_, most) | Goal::Beyond(_, most) | Goal::Most(most)) = measure.goal();
        match self.judged(measure) {
            Some(value) if value <= most => Standing::Met,
            Some(_) => Standing::Missed,
            None => Standing::Unknown,
        }
    }

    /// One failure for each goal that is missed, and one if there was nothing to judge.
    pub(crate) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for measure in Measure::ALL {
            verdict.check(self.standing(measure) != Standing::Missed, || {
                let said = self.said(measure);
                format!("{} {}: it is {said}", measure.name(), measure.wanted())
            });
        }
        verdict.check(self.known() > 0, || "no goal could be judged".to_owned());
        verdict
    }

    /// What a passed verdict claims.
    pub(crate) fn claim(&self) -> String {
        format!(
            "all of {} goals that could be judged, of {}, are met",
            self.known(),
            Measure::ALL.len()
        )
    }

    fn known(&self) -> usize {
        let known = |measure: &&Measure| self.standing(**measure) != Standing::Unknown;
        Measure::ALL.iter().filter(known).count()
    }

    /// The measures that miss their goals.
    pub(crate) fn missed(&self) -> Vec<Measure> {
        let missed = |measure: &Measure| self.standing(*measure) == Standing::Missed;
        Measure::ALL.into_iter().filter(missed).collect()
    }

    /// The judged value, for people.
    fn said(&self, measure: Measure) -> String {
        match (measure.goal(), self.judged(measure)) {
            (_, None) => "not known".to_owned(),
            (Goal::Ratio(..), Some(ratio)) => format!("{} ×", decimal(ratio, 1_000, 2)),
            (Goal::Beyond(..), Some(beyond)) => format!("{} beyond", measure.shown(beyond)),
            (Goal::Most(_), Some(value)) => measure.shown(value),
        }
    }

    /// One proxy's value, for people.
    fn cell(&self, measure: Measure, rival: Rival) -> String {
        match self.cells.get(&(measure, rival)) {
            Some(Cell::Rounds(rounds)) => {
                median(rounds.clone()).map_or_else(|| "-".to_owned(), |value| measure.shown(value))
            }
            Some(Cell::NotRun(why)) => format!("not run: {why}"),
            None => "-".to_owned(),
        }
    }

    /// The ratio to `HAProxy`, and between which values it moved. Differences that may be below nothing have none.
    fn to_haproxy(&self, measure: Measure) -> String {
        if matches!(measure.goal(), Goal::Beyond(..)) {
            return "-".to_owned();
        }
        let ratios = self.ratios(measure, Rival::HaProxy);
        let shown = |ratio: &i64| {
            // Only a difference near nothing gives such a ratio; its digits say nothing.
            if *ratio < 100_000 { decimal(*ratio, 1_000, 2) } else { "100 and more".to_owned() }
        };
        match (median(ratios.clone()), ratios.iter().min(), ratios.iter().max()) {
            (Some(middle), Some(least), Some(most)) => {
                format!("{} ({} to {})", shown(&middle), shown(least), shown(most))
            }
            _ => "-".to_owned(),
        }
    }

    /// The cells of one line, in the order of [`headings`].
    fn line(&self, measure: Measure) -> Vec<String> {
        let mut cells = vec![measure.name().to_owned()];
        cells.extend(Rival::ALL.into_iter().map(|rival| self.cell(measure, rival)));
        cells.push(self.to_haproxy(measure));
        cells.push(measure.wanted());
        cells.push(match self.standing(measure) {
            Standing::Met => format!("met: {}", self.said(measure)),
            Standing::Missed => format!("**missed**: {}", self.said(measure)),
            Standing::Unknown => "not known".to_owned(),
        });
        cells.push(self.rounds_said(measure));
        cells
    }

    /// The lines of what was measured.
    fn lines(&self) -> Vec<Vec<String>> {
        let noted = Measure::ALL.into_iter().filter(|&measure| self.has(measure));
        noted.map(|measure| self.line(measure)).collect()
    }

    /// For the terminal.
    pub(crate) fn table(&self) -> Table {
        let headings = headings();
        let mut table = Table::new(&headings.iter().map(String::as_str).collect::<Vec<_>>());
        for line in self.lines() {
            table.row(line);
        }
        table
    }

    /// `page` with what was measured between its marks. Lines and profiles of what was not measured this time stay as
    /// they stand, each with the date and commit it was measured at. `None` if the marks are not there.
    pub(crate) fn written_into(&self, page: &str, stamp: &str, about: &str) -> Option<String> {
        let (before, rest) = page.split_once(BEGIN)?;
        let (old, after) = rest.split_once(END)?;
        let mut headings = headings();
        headings.push("measured".to_owned());
        let rule = vec!["---"; headings.len()].join(" | ");
        let mut text =
            format!("{before}{BEGIN}\n{about}\n\n| {} |\n| {rule} |\n", headings.join(" | "));
        for measure in Measure::ALL {
            if self.has(measure) {
                let cells = self.line(measure).join(" | ");
                text.push_str(&format!("| {cells} | {stamp} |\n"));
            } else if let Some(line) = old_line(old, measure) {
                text.push_str(&format!("{line}\n"));
            }
        }
        text.push_str(&format!("\n{KILL}\n"));
        for measure in Measure::ALL {
            if let Some(profile) = self.profiles.get(&measure) {
                let block = profile.join("\n");
                text.push_str(&format!(
                    "\n{}, {stamp}\n\n```text\n{block}\n```\n",
                    profile_of(measure)
                ));
            } else if let Some(block) = old_profile(old, measure).filter(|_| !self.has(measure)) {
                text.push_str(&format!("\n{block}\n"));
            }
        }
        text.push_str(&format!("{END}{after}"));
        Some(text)
    }
}

/// The line of a measure as a page has it.
fn old_line(old: &str, measure: Measure) -> Option<&str> {
    let start = format!("| {} |", measure.name());
    old.lines().find(|line| line.starts_with(&start))
}

/// The profile of a measure as a page has it: its heading and what stands between the fences after it.
fn old_profile(old: &str, measure: Measure) -> Option<&str> {
    let (_, found) = old.split_at_checked(old.find(&format!("{},", profile_of(measure)))?)?;
    let end = found.match_indices("```").nth(1)?.0;
    found.get(..end + "```".len())
}

/// How a profile begins in a page.
fn profile_of(measure: Measure) -> String {
    format!("Where the breaker's time goes in *{}*", measure.name())
}

/// Where the table begins in a page.
const BEGIN: &str = "<!-- rivals: begin -->";

/// Where it ends.
const END: &str = "<!-- rivals: end -->";

/// What is measured by another command.
pub(crate) const KILL: &str = "The kill under saturation is judged by the command `kill`.";

fn headings() -> Vec<String> {
    let mut headings = vec!["measure".to_owned()];
    headings.extend(Rival::ALL.into_iter().map(|rival| rival.name().to_owned()));
    headings.extend(["to HAProxy", "goal", "standing", "rounds"].map(str::to_owned));
    headings
}

/// The middle one; of an even number the mean of the two in the middle.
fn median(mut values: Vec<i64>) -> Option<i64> {
    values.sort_unstable();
    let half = values.len() / 2;
    let upper = values.get(half).copied()?;
    if values.len().is_multiple_of(2) {
        let lower = values.get(half.checked_sub(1)?).copied()?;
        Some(lower.midpoint(upper))
    } else {
        Some(upper)
    }
}

/// `value / scale` with so many digits (at most 3) after the point, rounded to the nearest.
fn decimal(value: i64, scale: i64, digits: u32) -> String {
    let tens = 10_i64.saturating_pow(digits);
    let scaled = i128::from(value.unsigned_abs()) * i128::from(tens);
    let rounded = (scaled + i128::from(scale) / 2) / i128::from(scale);
    let (whole, part) = (rounded / i128::from(tens), rounded % i128::from(tens));
    let sign = if value < 0 { "-" } else { "" };
    let width = usize::try_from(digits).unwrap_or(0);
    format!("{sign}{whole}.{part:0width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(measure: Measure, ours: &[i64], rival: Rival, theirs: &[i64]) -> Sheet {
        let mut sheet = Sheet::default();
        ours.iter().for_each(|&value| sheet.note(measure, Rival::Breaker, value));
        theirs.iter().for_each(|&value| sheet.note(measure, rival, value));
        sheet
    }

    /// Goal: a ratio is judged round by round and then by its median, not by the ratio of two medians.
    #[test]
    fn ratios_are_of_one_round() {
        let theirs = [10_000, 20_000, 40_000];
        let equal = sheet(Measure::Cpu2, &theirs, Rival::HaProxy, &theirs);
        assert_eq!(equal.standing(Measure::Cpu2), Standing::Met);
        let above = [10_010, 20_020, 39_000];
        let above = sheet(Measure::Cpu2, &above, Rival::HaProxy, &theirs);
        assert_eq!(above.standing(Measure::Cpu2), Standing::Missed);
        assert_eq!(above.missed(), [Measure::Cpu2]);
        assert!(!above.verdict().passed());
        assert!(above.line(Measure::Cpu2).iter().any(|cell| cell.starts_with("**missed**")));
        assert_eq!(above.to_haproxy(Measure::Cpu2), "1.00 (0.98 to 1.00)");
    }

    /// Goal: a goal with another rival is judged against that one.
    #[test]
    fn http2_is_judged_against_envoy() {
        let mut sheet = sheet(Measure::CpuHttp2, &[20_000], Rival::HaProxy, &[10_000]);
        assert_eq!(sheet.standing(Measure::CpuHttp2), Standing::Unknown);
        sheet.note(Measure::CpuHttp2, Rival::Envoy, 20_000);
        assert_eq!(sheet.standing(Measure::CpuHttp2), Standing::Met);
    }

    /// Goal: "at most so much more" is a difference within the round, also below nothing.
    #[test]
    fn a_difference_is_of_one_round() {
        let close = sheet(Measure::AddedP99, &[90_000, -50_000], Rival::HaProxy, &[-10_000, 0]);
        assert_eq!(close.judged(Measure::AddedP99), Some(25_000));
        let far = sheet(Measure::AddedP99, &[90_001], Rival::HaProxy, &[-10_000]);
        assert_eq!(far.standing(Measure::AddedP99), Standing::Missed);
    }

    /// Goal: what was not run says why, is neither met nor missed, and takes no further values.
    #[test]
    fn not_run_is_said() {
        let mut sheet = sheet(Measure::CpuTls, &[], Rival::HaProxy, &[10_000]);
        sheet.not_run(Measure::CpuTls, Rival::Breaker, "not built");
        sheet.note(Measure::CpuTls, Rival::Breaker, 1);
        sheet.not_run(Measure::CpuTls, Rival::Breaker, "another reason");
        assert_eq!(sheet.cell(Measure::CpuTls, Rival::Breaker), "not run: not built");
        assert_eq!(sheet.standing(Measure::CpuTls), Standing::Unknown);
    }

    /// Goal: a run that could judge nothing does not pass.
    #[test]
    fn nothing_judged_is_no_pass() {
        let mut sheet = sheet(Measure::Calls, &[], Rival::HaProxy, &[440]);
        sheet.not_run(Measure::Calls, Rival::Breaker, "perf is not installed");
        assert!(!sheet.verdict().passed());
        sheet.note(Measure::Cpu2, Rival::Breaker, 9_000);
        sheet.note(Measure::Cpu2, Rival::HaProxy, 9_000);
        assert!(sheet.verdict().passed());
        assert_eq!(sheet.claim(), "all of 1 goals that could be judged, of 11, are met");
    }

    /// Goal: the page gets the new lines, keeps the old ones and everything outside the marks.
    #[test]
    fn a_page_keeps_what_was_not_measured() {
        let empty = format!("before\n{BEGIN}\n{END}\nafter\n");
        let first = sheet(Measure::Calls, &[417], Rival::HaProxy, &[440]);
        let page = first.written_into(&empty, "day 1", "about 1").unwrap();
        let second = sheet(Measure::Cpu2, &[15_000], Rival::HaProxy, &[10_000]);
        let page = second.written_into(&page, "day 2", "about 2").unwrap();
        let again = sheet(Measure::Calls, &[420], Rival::HaProxy, &[440]);
        let page = again.written_into(&page, "day 3", "about 3").unwrap();
        assert!(page.starts_with("before\n") && page.ends_with("\nafter\n"));
        let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).collect();
        let [_, _, cpu, calls] = lines.as_slice() else { panic!("{page}") };
        assert!(cpu.contains("15.0 µs") && cpu.ends_with("| 1 | day 2 |"), "{cpu}");
        assert!(calls.contains("4.20") && calls.ends_with("| 1 | day 3 |"), "{calls}");
        assert!(page.contains("about 3") && !page.contains("about 2"));
        assert_eq!(second.written_into("no marks", "", ""), None);
    }

    /// Goal: a profile stays until its measure is taken again, and goes when the goal is met.
    #[test]
    fn a_profile_stays_until_it_is_out_of_date() {
        let page = format!("{BEGIN}\n{END}\n");
        let mut missed = sheet(Measure::Cpu2, &[15_000], Rival::HaProxy, &[10_000]);
        missed.explain(Measure::Cpu2, vec!["9 % one".to_owned(), "1 % two".to_owned()]);
        let page = missed.written_into(&page, "day 1", "").unwrap();
        assert!(page.contains("*CPU per request, 2 B*, day 1\n\n```text\n9 % one\n1 % two\n```\n"));
        let other = sheet(Measure::Calls, &[417], Rival::HaProxy, &[440]);
        let page = other.written_into(&page, "day 2", "").unwrap();
        assert!(page.contains("day 1\n\n```text\n9 % one\n1 % two\n```\n"), "{page}");
        assert_eq!(other.written_into(&page, "day 2", ""), Some(page.clone()));
        let met = sheet(Measure::Cpu2, &[9_000], Rival::HaProxy, &[10_000]);
        let page = met.written_into(&page, "day 3", "").unwrap();
        assert!(!page.contains("9 % one"), "{page}");
    }

    /// Goal: a run that was disturbed is not passed over in silence.
    #[test]
    fn disturbed_runs_are_told() {
        let mut sheet = sheet(Measure::Calls, &[417, 418], Rival::HaProxy, &[440, 440]);
        sheet.ran(&[Measure::Calls], false);
        assert_eq!(sheet.rounds_said(Measure::Calls), "2");
        sheet.ran(&[Measure::Calls], true);
        assert_eq!(sheet.rounds_said(Measure::Calls), "2; 1 of 2 runs disturbed");
    }

    /// Goal: numbers are rounded to the nearest, and keep their sign and their zeros.
    #[test]
    fn decimals() {
        assert_eq!(decimal(15_340, 1_000, 1), "15.3");
        assert_eq!(decimal(15_350, 1_000, 1), "15.4");
        assert_eq!(decimal(-40, 1_000, 2), "-0.04");
        assert_eq!(decimal(1_003, 1_000, 2), "1.00");
        assert_eq!(decimal(25 * 1_024, 1_024, 1), "25.0");
        assert_eq!(median(vec![3, 1, 2]), Some(2));
        assert_eq!(median(vec![4, 1, 2, 3]), Some(2));
        assert_eq!(median(Vec::new()), None);
    }
}
