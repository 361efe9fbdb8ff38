//! Everything that is promised about speed, measured in one run beside the rivals, and printed as tables.
//!
//! `cargo bench -p breaker-benches --features rivals --bench ratios -- [--quick] [--write] [filter]`

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot be set up must not run"
)]

mod counts;
mod curve;
mod keys;
mod kill;
mod memory;
mod ours;
mod rivals;
mod shared;
mod sweep;
mod threads;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use breaker_benches::report::{Goal, Table, nanos, ratio, replaced};
use breaker_benches::rounds::{Case, Measured, Plan};

use crate::threads::{Shared, measure_pairs, processor_time};

/// What is to be run.
struct Wanted {
    /// Fewer rounds, fewer keys: to see that it works.
    quick: bool,
    /// Write the tables into the README beside this crate.
    write: bool,
    /// Only rows whose names have all of this.
    filter: String,
}

/// A row of the table of goals: ours, a rival's, and what the one may be of the other.
struct Row {
    own: &'static str,
    rival: &'static str,
    goal: Option<f64>,
}

/// How a case is set up.
type Build = fn() -> Case;

fn main() -> ExitCode {
    let wanted = match Wanted::read() {
        Ok(wanted) => wanted,
        Err(unknown) => {
            eprintln!("unknown argument `{unknown}`; use [--quick] [--write] [filter]");
            return ExitCode::FAILURE;
        }
    };
    let begin = Instant::now();
    let mut text = conditions(&wanted);
    for part in [one_thread, two_threads, many_threads, kills, bytes, sweeps, whole_counts] {
        let table = part(&wanted);
        if !table.is_empty() {
            println!("\n{table}");
            let _ = write!(text, "\n{table}");
        }
    }
    let load = load();
    let _ =
        write!(text, "\nTook {} s; load average at the end {load}.\n", begin.elapsed().as_secs());
    println!("\n# Everything once more\n\n{text}");
    if wanted.write
        && let Err(problem) = write_down(&text)
    {
        eprintln!("{problem}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

impl Wanted {
    fn read() -> Result<Wanted, String> {
        let mut wanted = Wanted { quick: false, write: false, filter: String::new() };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--quick" => wanted.quick = true,
                "--write" => wanted.write = true,
                // Cargo says this to every benchmark.
                "--bench" => {}
                other if other.starts_with('-') => return Err(other.to_owned()),
                filter => filter.clone_into(&mut wanted.filter),
            }
        }
        Ok(wanted)
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    const fn pick<T: Copy>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Shows how far a part is, on the terminal only.
fn progress(part: &'static str, of: usize) -> impl FnMut(usize) {
    move |done| {
        eprint!("\r{part}: {done} of {of}{}", if done == of { "\n" } else { "" });
        let _ = std::io::stderr().flush();
    }
}

/// One-thread cases: every row of the goals, and what else is worth knowing.
fn one_thread(wanted: &Wanted) -> String {
    let rows: Vec<&Row> =
        ROWS.iter().filter(|row| wanted.wants(row.own) || wanted.wants(row.rival)).collect();
    let needed = |name: &str| rows.iter().any(|row| row.own == name || row.rival == name);
    let chosen = CASES.iter().filter(|(name, _)| needed(name) || wanted.wants(name));
    eprintln!("setting up");
    let mut cases: Vec<Case> = chosen.map(|(_, build)| build()).collect();
    if cases.is_empty() {
        return String::new();
    }
    let rounds = wanted.pick(61, 11);
    let plan =
        Plan { rounds, sample: wanted.pick(Duration::from_millis(5), Duration::from_millis(1)) };
    let all = plan.measure(&mut cases, &processor_time, &mut progress("one thread", rounds));
    let absolute = absolute(&all);
    let (mut text, goals) = (String::new(), goals(&rows, &all));
    if !goals.is_empty() {
        text += "### One thread, beside the rival of each goal\n\n";
        text += &goals.markdown();
    }
    if !absolute.is_empty() {
        text += "\n### Detectors, per decision\n\n";
        text += &absolute.markdown();
    }
    text += "\n### One thread, all cases\n\n";
    text += &every(&all, rivals::DIRECT).markdown();
    text
}

fn two_threads(wanted: &Wanted) -> String {
    let rows: Vec<&Row> = PAIRS.iter().filter(|row| wanted.wants(row.own)).collect();
    if rows.is_empty() {
        return String::new();
    }
    let cases: Vec<Shared> = [
        shared::hot_governor,
        shared::hot_rate,
        shared::busy_governor,
        shared::busy_rate,
        shared::hot_rate_settled,
        shared::hot_window,
        shared::hot_gates,
        shared::hot_leased,
        shared::hot_leased_tick,
    ]
    .map(|build| build())
    .into();
    let rounds = wanted.pick(61, 11);
    let all = measure_pairs(&cases, rounds, &mut progress("two threads", rounds));
    let mut text = "### Two threads on one object, nanoseconds per decision of each\n\n".to_owned();
    text += &goals(&rows, &all).markdown();
    text
}

fn many_threads(wanted: &Wanted) -> String {
    if !wanted.wants("curve") {
        return String::new();
    }
    let rounds = wanted.pick(15, 3);
    curve::measure(rounds, &mut progress("curve", rounds))
}

fn kills(wanted: &Wanted) -> String {
    if !wanted.wants("kill seen") {
        return String::new();
    }
    let seen = kill::measure(wanted.pick(20_000, 2_000));
    let mut table =
        Table::new(&["from", "trials", "median µs", "p99 µs", "max µs", "goal", "median"]);
    let goal = Goal(1.0);
    let micros = |figure: f64| format!("{:.2}", figure / 1e3);
    for (name, samples) in [
        ("the kill's return", &seen.after_return),
        ("the same, decider on its processor", &seen.undisturbed),
        ("the kill's call", &seen.after_call),
    ] {
        table.row([
            name.to_owned(),
            samples.len().to_string(),
            micros(samples.median()),
            micros(samples.quantile(0.99)),
            micros(samples.quantile(1.0)),
            "≤ 1 µs".to_owned(),
            goal.verdict(samples.median() / 1e3).to_owned(),
        ]);
    }
    format!(
        "### A kill seen by another thread's next decision (until that decision has ended)\n\n{}\n\
         Decisions begun after the kill had returned, and admitted: {} (must be 0).\n",
        table.markdown(),
        seen.late
    )
}

fn bytes(wanted: &Wanted) -> String {
    if !wanted.wants("memory") {
        return String::new();
    }
    eprintln!("memory");
    let rows = memory::measure(wanted.pick(1_000_000, 100_000));
    let (rows, detectors) = (memory::table(&rows).markdown(), memory::detectors().markdown());
    format!("### Memory\n\n{rows}\n{detectors}")
}

fn sweeps(wanted: &Wanted) -> String {
    if !wanted.wants("sweep") {
        return String::new();
    }
    eprintln!("sweep");
    let swept = sweep::measure(65_536, wanted.pick(15, 3));
    let median = swept.millis.median();
    format!(
        "### A sweep of 65,536 dirty cells\n\n\
         {median:.2} ms of processor time (p10 {:.2}, p90 {:.2}; goal ≤ 5 ms: {}), in {} calls, {} transitions told.\n\
         {} decisions of another thread ended meanwhile: median {} ns, p99.9 {} ns, longest {} ns, with the clock \
         read twice.\n",
        swept.millis.quantile(0.1),
        swept.millis.quantile(0.9),
        Goal(5.0).verdict(median),
        swept.calls,
        swept.told,
        swept.decisions,
        nanos(swept.decision.median()),
        nanos(swept.decision.quantile(0.999)),
        nanos(swept.decision.quantile(1.0)),
    )
}

fn whole_counts(wanted: &Wanted) -> String {
    if !wanted.wants("counts lost") {
        return String::new();
    }
    eprintln!("counts");
    let lost = counts::measure(wanted.pick(5_000_000, 500_000));
    format!(
        "### Counts lost\n\n\
         {} calls offered by two threads, {} kills and lifts meanwhile: {} good, {} slow, {} fault, {} dropped, \
         {} blocked, {} throttled. Lost or made up: {} (goal 0: {}).\n",
        lost.offered,
        lost.kills,
        lost.counts.good,
        lost.counts.slow,
        lost.counts.fault,
        lost.counts.dropped,
        lost.counts.blocked,
        lost.counts.throttled,
        lost.wrong,
        if lost.wrong == 0 { "met" } else { "**missed**" },
    )
}

fn find<'a>(all: &'a [Measured], name: &str) -> Option<&'a Measured> {
    all.iter().find(|measured| measured.name == name)
}

fn goals(rows: &[&Row], all: &[Measured]) -> Table {
    let mut table = Table::new(&[
        "case",
        "median ns",
        "p10..p90",
        "rival",
        "its median ns",
        "ratio",
        "p10..p90",
        "goal",
        "",
    ]);
    for row in rows {
        let (Some(own), Some(rival)) = (find(all, row.own), find(all, row.rival)) else { continue };
        let (own, ratios, rival) =
            (&own.samples, own.samples.ratios(&rival.samples), &rival.samples);
        table.row([
            row.own.to_owned(),
            nanos(own.median()),
            format!("{}..{}", nanos(own.quantile(0.1)), nanos(own.quantile(0.9))),
            row.rival.to_owned(),
            nanos(rival.median()),
            ratio(ratios.median()),
            format!("{}..{}", ratio(ratios.quantile(0.1)), ratio(ratios.quantile(0.9))),
            row.goal.map_or("-".to_owned(), |goal| format!("≤ {goal}")),
            row.goal.map_or("", |goal| Goal(goal).verdict(ratios.median())).to_owned(),
        ]);
    }
    table
}

/// Goals in nanoseconds, without a rival.
fn absolute(all: &[Measured]) -> Table {
    let mut table = Table::new(&["case", "median ns", "p10..p90", "goal", ""]);
    for name in [ours::DETECTORS_ROUTE, ours::DETECTORS_KEYS] {
        let Some(Measured { samples, .. }) = find(all, name) else { continue };
        table.row([
            name.to_owned(),
            nanos(samples.median()),
            format!("{}..{}", nanos(samples.quantile(0.1)), nanos(samples.quantile(0.9))),
            "≤ 300 ns".to_owned(),
            Goal(300.0).verdict(samples.median()).to_owned(),
        ]);
    }
    table
}

fn every(all: &[Measured], beside: &str) -> Table {
    let mut table = Table::new(&["case", "median ns", "p10..p90", "of governor direct"]);
    for measured in all {
        let samples = &measured.samples;
        let beside = find(all, beside).map(|rival| samples.ratios(&rival.samples).median());
        table.row([
            measured.name.to_owned(),
            nanos(samples.median()),
            format!("{}..{}", nanos(samples.quantile(0.1)), nanos(samples.quantile(0.9))),
            beside.map_or("-".to_owned(), ratio),
        ]);
    }
    table
}

/// Where and how it was measured.
fn conditions(wanted: &Wanted) -> String {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name"));
    let processor = processor.map_or("unknown", |name| name.trim_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let commit = output("git", &["describe", "--always", "--dirty"]);
    let rust = output("rustc", &["--version"]);
    format!(
        "{} run of commit {commit}, {rust}, on {cores} processors ({processor}), load average at the start {}.\n",
        if wanted.quick { "Quick" } else { "Full" },
        load()
    )
}

fn load() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    all.split(' ').next().unwrap_or("unknown").to_owned()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|_| "unknown".to_owned())
}

fn write_down(text: &str) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).map_err(|problem| problem.to_string())?;
    let readme = replaced(&readme, text).ok_or("the README has no place for results")?;
    std::fs::write(&path, readme).map_err(|problem| problem.to_string())
}

/// Every one-thread case. Neighbours are compared with each other.
const CASES: &[(&str, Build)] = &[
    (rivals::DIRECT, rivals::governor_direct),
    (ours::RATE_CLOCK, ours::rate_clock),
    (ours::RATE_CLOCK_SETTLED, ours::rate_clock_settled),
    (ours::RATE_CLOCK_HEARD, ours::rate_clock_heard),
    (ours::RATE_TICK, ours::rate_tick),
    (ours::RATE_TICK_SETTLED, ours::rate_tick_settled),
    (ours::RATE_LEASED, ours::rate_leased),
    (ours::RATE_LEASED_SETTLED, ours::rate_leased_settled),
    (rivals::UPKEEP, rivals::governor_upkeep),
    (ours::WINDOW_CLOCK, ours::window_clock),
    (ours::WINDOW_TICK, ours::window_tick),
    (ours::WINDOW_REFUSE, ours::window_refuse),
    (rivals::DENY, rivals::governor_deny),
    (ours::KILLED_LOOK, ours::killed_look),
    (ours::TRIPPED_LOOK, ours::tripped_look),
    (ours::KILLED_COUNTED, ours::killed_counted),
    (ours::TRIPPED_COUNTED, ours::tripped_counted),
    (ours::KILLED_ADMIT, ours::killed_admit),
    (ours::CLOCK, ours::clock_alone),
    (ours::DETECTORS_ROUTE, ours::detectors_route),
    (rivals::FAILSAFE, rivals::failsafe_call),
    (rivals::RECLOSER, rivals::recloser_call),
    (rivals::OBSERVE, rivals::pingora_observe),
    (rivals::IN_FLIGHT, rivals::pingora_in_flight),
    (rivals::PIT_ALONE, rivals::openpit_alone),
    (rivals::PIT_SHARED, rivals::openpit_shared),
    (rivals::TOWER_LIMITER, rivals::tower_limiter),
    (rivals::TOWER_BREAKER, rivals::tower_breaker),
    (rivals::U64_100K, rivals::governor_u64_100k),
    (ours::KEYED_100K, ours::keyed_100k),
    (ours::KEYED_100K_TICK, ours::keyed_100k_tick),
    (ours::KEYED_TIGHT, ours::keyed_tight),
    (ours::KEYED_TIGHT_TICK, ours::keyed_tight_tick),
    (ours::FOUR_GATES, ours::four_gates),
    (ours::DETECTORS_KEYS, ours::detectors_keys),
    (rivals::TEXT_100K, rivals::governor_text_100k),
    (ours::KEYED_TEXT, ours::keyed_text),
    (ours::KEYED_TEXT_TICK, ours::keyed_text_tick),
    (ours::KEYED_TEXT_TIGHT_TICK, ours::keyed_text_tight_tick),
    (rivals::U64_1M, rivals::governor_u64_1m),
    (ours::KEYED_1M, ours::keyed_1m),
    (ours::KEYED_1M_TICK, ours::keyed_1m_tick),
];

const fn row(own: &'static str, rival: &'static str, goal: f64) -> Row {
    Row { own, rival, goal: Some(goal) }
}

const fn beside(own: &'static str, rival: &'static str) -> Row {
    Row { own, rival, goal: None }
}

/// The goals of one thread.
const ROWS: &[Row] = &[
    row(ours::RATE_CLOCK, rivals::DIRECT, 1.1),
    row(ours::RATE_CLOCK_SETTLED, rivals::DIRECT, 1.5),
    row(ours::RATE_CLOCK_HEARD, rivals::DIRECT, 1.5),
    row(ours::RATE_TICK, rivals::DIRECT, 0.6),
    beside(ours::RATE_TICK, rivals::UPKEEP),
    row(ours::RATE_LEASED, rivals::DIRECT, 0.25),
    beside(ours::RATE_LEASED, rivals::UPKEEP),
    beside(ours::RATE_LEASED_SETTLED, rivals::DIRECT),
    row(ours::WINDOW_CLOCK, rivals::DIRECT, 1.4),
    row(ours::WINDOW_REFUSE, rivals::DIRECT, 0.3),
    row(ours::FOUR_GATES, rivals::U64_100K, 1.0),
    row(ours::KEYED_100K, rivals::U64_100K, 0.65),
    row(ours::KEYED_100K_TICK, rivals::U64_100K, 0.65),
    row(ours::KEYED_TIGHT, rivals::U64_100K, 0.65),
    row(ours::KEYED_TIGHT_TICK, rivals::U64_100K, 0.65),
    row(ours::KEYED_1M, rivals::U64_1M, 0.45),
    row(ours::KEYED_1M_TICK, rivals::U64_1M, 0.45),
    row(ours::KEYED_TEXT, rivals::TEXT_100K, 0.35),
    row(ours::KEYED_TEXT_TICK, rivals::TEXT_100K, 0.35),
    row(ours::KEYED_TEXT_TIGHT_TICK, rivals::TEXT_100K, 0.35),
    row(ours::KILLED_LOOK, rivals::DENY, 0.1),
    row(ours::TRIPPED_LOOK, rivals::DENY, 0.1),
    row(ours::KILLED_COUNTED, rivals::DENY, 0.6),
    row(ours::TRIPPED_COUNTED, rivals::DENY, 0.6),
    beside(ours::RATE_CLOCK_SETTLED, rivals::FAILSAFE),
    beside(ours::RATE_CLOCK_SETTLED, rivals::RECLOSER),
    beside(ours::RATE_CLOCK_SETTLED, rivals::TOWER_BREAKER),
    beside(ours::RATE_CLOCK, rivals::OBSERVE),
    beside(ours::RATE_CLOCK, rivals::PIT_SHARED),
    beside(ours::RATE_CLOCK, rivals::TOWER_LIMITER),
];

/// The goals of two threads.
const PAIRS: &[Row] = &[
    row(shared::HOT_RATE, shared::HOT_DIRECT, 0.55),
    row(shared::BUSY_RATE, shared::BUSY_DIRECT, 0.55),
    beside(shared::HOT_RATE_SETTLED, shared::HOT_DIRECT),
    row(shared::HOT_WINDOW, shared::HOT_DIRECT, 2.0),
    beside(shared::HOT_GATES, shared::HOT_DIRECT),
    beside(shared::HOT_LEASED, shared::HOT_DIRECT),
    beside(shared::HOT_LEASED_TICK, shared::HOT_DIRECT),
];
