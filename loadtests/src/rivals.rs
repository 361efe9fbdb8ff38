//! breaker-proxy beside `HAProxy`, nginx, Envoy and Pingora: who runs when, and what is taken down of each; the arithmetic
//! is in `rivals::sheet`.

pub(crate) mod child;
mod drive;
pub(crate) mod gauge;
pub(crate) mod machine;
mod paced;
pub(crate) mod players;
mod sheet;

use crate::clients::beside;
use crate::error::LoadError;
use crate::wait;
use drive::Driven;
use gauge::Watch;
use paced::{Idle, Pace};
use players::{Certificate, Player, Programs, Rival, Upstream};
use sheet::{Measure, Sheet};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Measures breaker-proxy, with limits, a key, a detector and metrics on, beside the proxies it is compared with.
///
/// Needs nginx, wrk and h2load (loadtests/install.sh); HAProxy, Envoy, Pingora and perf (loadtests/install.sh rivals)
/// where they are there, and says which are not. Every goal that is missed fails. The kill under saturation is the
/// command `kill`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RivalsArgs {
    /// How many rounds; each takes every proxy once, in an order that rotates.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,
    /// Seconds of one timed run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Two rounds of one second: shows that everything runs, and no figure to rely on.
    #[arg(long)]
    quick: bool,
    /// Only these.
    #[arg(long, num_args = 1.., value_enum)]
    only: Vec<Row>,
    /// Put the table into loadtests/README.md; lines of what was not measured now stay as they are.
    #[arg(long)]
    write: bool,
    /// The proxy's program; without it, it is built first and taken from where this program lies.
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
    /// Where envoy and pingora-plain lie; without it, where install.sh puts them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// What is run; some give several measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Row {
    /// HTTP/1.1, 2 bytes: CPU and closed-loop p99.
    Tiny,
    /// HTTP/1.1, 1 KiB: CPU.
    Kib,
    /// HTTP/1.1, 64 KiB: CPU.
    Large,
    /// HTTP/2, 2 bytes: CPU.
    Http2,
    /// TLS 1.3, 2 bytes: CPU.
    Tls,
    /// System calls per request, 2 bytes.
    Calls,
    /// Added latency at 3,000/s.
    Pace,
    /// Memory at 64 connections, and with 10,000 that are idle.
    Memory,
}

impl Row {
    const ALL: [Row; 8] =
        [Row::Tiny, Row::Kib, Row::Large, Row::Http2, Row::Tls, Row::Calls, Row::Pace, Row::Memory];

    /// What it gives; the processor time first.
    fn measures(self) -> &'static [Measure] {
        match self {
            Row::Tiny => &[Measure::Cpu2, Measure::TailP99],
            Row::Kib => &[Measure::Cpu1k],
            Row::Large => &[Measure::Cpu64k],
            Row::Http2 => &[Measure::CpuHttp2],
            Row::Tls => &[Measure::CpuTls],
            Row::Calls => &[Measure::Calls],
            Row::Pace => &[Measure::AddedP50, Measure::AddedP99],
            Row::Memory => &[Measure::MemoryBusy, Measure::MemoryIdle],
        }
    }

    /// Why a rival cannot take part, if so.
    fn without(self, rival: Rival) -> Option<&'static str> {
        if self == Row::Tls { rival.without_tls() } else { None }
    }

    /// The load and its name.
    fn load(self, player: &Player, seconds: u32) -> (Command, &'static str) {
        let ports = player.ports;
        match self {
            Row::Kib => (drive::wrk("http", ports.plain, "/1k", seconds), "wrk"),
            Row::Large => (drive::wrk("http", ports.plain, "/64k", seconds), "wrk"),
            Row::Http2 => (drive::h2load(ports.http2, TINY, seconds), "h2load"),
            Row::Tls => (drive::wrk("https", ports.tls, TINY, seconds), "wrk"),
            _ => (drive::wrk("http", ports.plain, TINY, seconds), "wrk"),
        }
    }

    fn read(self, text: &str) -> Result<Driven, LoadError> {
        if self == Row::Http2 { drive::read_h2load(text) } else { drive::read_wrk(text) }
    }
}

/// The path with the smallest answer.
const TINY: &str = "/2";

/// Calls a second of the paced row, and its connections.
const PACE: (u32, u32) = (3_000, 16);

/// At least so many rounds for the paced row, whose tail is noisy.
const PACED_ROUNDS: u32 = 7;

/// At most so many for memory, which hardly moves.
const MEMORY_ROUNDS: u32 = 3;

/// Connections that only wait.
const IDLE: u32 = 10_000;

/// How often a run is made before a disturbed one counts.
const TRIES: u32 = 4;

/// The share of the machine, in thousandths, that others may take of a run that counts as undisturbed.
const LITTLE: u64 = 50;

/// Descriptors beyond one for each idle connection.
const SPARE: u64 = 500;

/// Runs the command.
///
/// # Errors
/// When what every row needs is missing: nginx, wrk, h2load, the proxy itself.
pub(crate) fn run(args: &RivalsArgs) -> Result<ExitCode, LoadError> {
    crate::nginx::need("nginx", "-v")?;
    crate::nginx::need("wrk", "-v")?;
    crate::nginx::need("h2load", "--version")?;
    let programs = Programs {
        breaker: args.proxy.clone().map_or_else(machine::build, Ok)?,
        dir: args.programs.clone().unwrap_or_else(machine::programs),
    };
    let field = Field::new(args, programs);
    let mut sheet = Sheet::default();
    for row in Row::ALL {
        if args.only.is_empty() || args.only.contains(&row) {
            match row {
                Row::Pace => field.pace(&mut sheet)?,
                Row::Memory => field.memory(&mut sheet)?,
                _ => field.race(row, &mut sheet)?,
            }
        }
    }
    println!("\n{}\n{}\n{}", field.about, sheet.table(), sheet::KILL);
    if args.write {
        machine::write(|page| sheet.written_into(page, &field.stamp, &field.about))?;
    }
    Ok(sheet.verdict().tell(&sheet.claim()))
}

/// Who takes part, and under which rules.
struct Field {
    programs: Programs,
    rivals: Vec<Rival>,
    absent: Vec<(Rival, String)>,
    certificate: Result<Certificate, String>,
    rounds: u32,
    paced_rounds: u32,
    seconds: u32,
    /// Machine and versions.
    about: String,
    /// Date and commit.
    stamp: String,
}

impl Field {
    fn new(args: &RivalsArgs, programs: Programs) -> Field {
        let (rounds, seconds) = if args.quick { (2, 1) } else { (args.rounds, args.seconds) };
        let mut rivals = Vec::new();
        let mut absent = Vec::new();
        let mut versions = Vec::new();
        for rival in Rival::ALL {
            match rival.version(&programs) {
                Ok(version) => {
                    if rival != Rival::HaProxyLimits {
                        versions.push(format!("{} {version}", rival.name()));
                    }
                    rivals.push(rival);
                }
                Err(why) => {
                    println!("{} will not be run: {why}; see loadtests/install.sh", rival.name());
                    absent.push((rival, why));
                }
            }
        }
        for (program, argument) in [("wrk", "-v"), ("h2load", "--version")] {
            versions.push(format!(
                "{program} {}",
                players::version_of(program, argument).unwrap_or_default()
            ));
        }
        let about = format!(
            "Medians over the rounds of {seconds} s each. {} {}.",
            machine::about(),
            versions.join(", ")
        );
        println!("{about}");
        Field {
            programs,
            rivals,
            absent,
            certificate: Certificate::new(),
            rounds,
            paced_rounds: if args.quick { rounds } else { rounds.max(PACED_ROUNDS) },
            seconds,
            about,
            stamp: machine::stamp(),
        }
    }

    /// Notes who will not take part in a row.
    fn excuse(&self, row: Row, sheet: &mut Sheet) {
        for &measure in row.measures() {
            for (rival, why) in &self.absent {
                sheet.not_run(measure, *rival, why);
            }
            for &rival in &self.rivals {
                if let Some(why) = row.without(rival) {
                    sheet.not_run(measure, rival, why);
                }
            }
        }
    }

    /// Starts one, or notes why not.
    fn start(
        &self,
        rival: Rival,
        row: Row,
        origin: &Upstream,
        sheet: &mut Sheet,
    ) -> Option<Player> {
        if row.without(rival).is_some() {
            return None;
        }
        let certificate = self.certificate.as_ref().ok().filter(|_| row == Row::Tls);
        let started = rival.start(&self.programs, origin.addr, certificate);
        started.map_err(|error| fail(row, rival, &error, sheet)).ok()
    }

    /// Starts all, and lets each answer for a second before anything is measured.
    fn line_up(&self, row: Row, origin: &Upstream, sheet: &mut Sheet) -> Vec<Player> {
        self.excuse(row, sheet);
        let mut players = Vec::new();
        for &rival in &self.rivals {
            let Some(player) = self.start(rival, row, origin, sheet) else { continue };
            let (load, name) = row.load(&player, 1);
            let warm = beside(load, name, &mut || Ok(())).and_then(|text| row.read(&text));
            match warm {
                Ok(_) => players.push(player),
                Err(error) => fail(row, rival, &error, sheet),
            }
        }
        players
    }

    /// A row of full load: processor time for each request, or system calls.
    fn race(&self, row: Row, sheet: &mut Sheet) -> Result<(), LoadError> {
        if let (Row::Tls, Err(why)) = (row, &self.certificate) {
            for rival in Rival::ALL {
                sheet.not_run(Measure::CpuTls, rival, why);
            }
            return Ok(());
        }
        let origin = Upstream::start()?;
        let mut players = self.line_up(row, &origin, sheet);
        for round in 1..=self.rounds {
            for player in &players {
                match steady(row, sheet, || self.turn(row, player)) {
                    Ok((requests, values)) => {
                        let mut said = vec![format!("{requests} requests")];
                        for (&measure, value) in row.measures().iter().zip(values) {
                            said.push(format!("{} {}", measure.name(), measure.shown(value)));
                            sheet.note(measure, player.rival, value);
                        }
                        tell(row, round, self.rounds, player.rival, &said.join(", "));
                    }
                    Err(error) => fail(row, player.rival, &error, sheet),
                }
            }
            turn_over(&mut players);
        }
        if row != Row::Calls && sheet.missed().contains(&first(row)) {
            self.explain(row, &players, sheet);
        }
        Ok(())
    }

    /// One run against one proxy: the requests it answered, and what was read of it in the order of the row's measures.
    fn turn(&self, row: Row, player: &Player) -> Result<(u64, Vec<i64>), LoadError> {
        let pids = player.pids()?;
        let (load, name) = row.load(player, self.seconds);
        if row == Row::Calls {
            let (text, calls) = gauge::system_calls(&pids, &load, player.dir())?;
            let requests = row.read(&text)?.requests;
            return Ok((requests, vec![per(calls.saturating_mul(100), requests)]));
        }
        let before = gauge::on_processor(&pids)?;
        let half = Duration::from_secs(self.seconds.into()) / 2;
        // Its metrics are read once meanwhile, which is more often than a scraper would.
        let text = beside(load, name, &mut || {
            pause(half)?;
            player.admin.as_ref().map_or(Ok(()), crate::admin::Admin::scrape)
        })?;
        let used = gauge::on_processor(&pids)?.saturating_sub(before);
        let driven = row.read(&text)?;
        Ok((driven.requests, vec![per(used, driven.requests), signed(driven.p99)]))
    }

    /// Where the breaker's time goes, for a goal it misses.
    fn explain(&self, row: Row, players: &[Player], sheet: &mut Sheet) {
        let Some(player) = players.iter().find(|player| player.rival == Rival::Breaker) else {
            return;
        };
        println!("\n{} misses its goal; where its time goes:", first(row).name());
        let (load, _) = row.load(player, self.seconds);
        match player.pids().and_then(|pids| gauge::profile(&pids, &load, player.dir())) {
            Ok(lines) => {
                lines.iter().for_each(|line| println!("  {line}"));
                sheet.explain(first(row), lines);
            }
            Err(error) => println!("  not known: {error}"),
        }
        println!();
    }

    /// Latency at a fixed rate, less that of the origin without a proxy in the same round.
    fn pace(&self, sheet: &mut Sheet) -> Result<(), LoadError> {
        let row = Row::Pace;
        let origin = Upstream::start()?;
        let mut players = self.line_up(row, &origin, sheet);
        let (rate, connections) = PACE;
        let length = Duration::from_secs(self.seconds.into());
        let pace = Pace { rate, connections, length };
        for round in 1..=self.paced_rounds {
            let direct = steady(row, sheet, || paced::run(origin.addr, TINY, pace))?;
            println!(
                "pace, round {round} of {}, without a proxy: p50 {}, p99 {}",
                self.paced_rounds,
                Measure::AddedP50.shown(signed(direct.p50)),
                Measure::AddedP99.shown(signed(direct.p99)),
            );
            for player in &players {
                match steady(row, sheet, || paced::run(player.ports.plain, TINY, pace)) {
                    Ok(through) => {
                        let p50 = signed(through.p50).saturating_sub(signed(direct.p50));
                        let p99 = signed(through.p99).saturating_sub(signed(direct.p99));
                        sheet.note(Measure::AddedP50, player.rival, p50);
                        sheet.note(Measure::AddedP99, player.rival, p99);
                        let said = format!(
                            "added p50 {}, added p99 {}",
                            Measure::AddedP50.shown(p50),
                            Measure::AddedP99.shown(p99)
                        );
                        tell(row, round, self.paced_rounds, player.rival, &said);
                    }
                    Err(error) => fail(row, player.rival, &error, sheet),
                }
            }
            turn_over(&mut players);
        }
        Ok(())
    }

    /// Memory, each time of a proxy that has just started.
    fn memory(&self, sheet: &mut Sheet) -> Result<(), LoadError> {
        let row = Row::Memory;
        let origin = Upstream::start()?;
        self.excuse(row, sheet);
        let descriptors = machine::raise_descriptors();
        let room = descriptors >= u64::from(IDLE) + SPARE;
        let rounds = self.rounds.min(MEMORY_ROUNDS);
        for round in 1..=rounds {
            for &rival in &self.rivals {
                let Some(player) = self.start(rival, row, &origin, sheet) else { continue };
                match self.busy(&player) {
                    Ok(kib) => {
                        sheet.note(Measure::MemoryBusy, rival, kib);
                        tell(
                            row,
                            round,
                            rounds,
                            rival,
                            &format!("busy {}", Measure::MemoryBusy.shown(kib)),
                        );
                    }
                    Err(error) => fail(row, rival, &error, sheet),
                }
                drop(player);
                if !room {
                    let why = format!("{descriptors} descriptors are allowed");
                    sheet.not_run(Measure::MemoryIdle, rival, &why);
                    continue;
                }
                let Some(player) = self.start(rival, row, &origin, sheet) else { continue };
                match idle(&player) {
                    Ok(kib) => {
                        sheet.note(Measure::MemoryIdle, rival, kib);
                        tell(
                            row,
                            round,
                            rounds,
                            rival,
                            &format!("idle {}", Measure::MemoryIdle.shown(kib)),
                        );
                    }
                    Err(error) => sheet.not_run(Measure::MemoryIdle, rival, &error.to_string()),
                }
            }
        }
        Ok(())
    }

    /// The most memory seen during a run at 64 connections.
    fn busy(&self, player: &Player) -> Result<i64, LoadError> {
        let (load, name) = Row::Memory.load(player, self.seconds);
        let pids = player.pids()?;
        let mut most = 0;
        let start = Instant::now();
        let length = Duration::from_secs(self.seconds.into()) * 9 / 10;
        let text = beside(load, name, &mut || {
            while start.elapsed() < length {
                most = gauge::resident(&pids)?.max(most);
                pause(Duration::from_millis(50))?;
            }
            Ok(())
        })?;
        Row::Memory.read(&text).map(|_| signed(most))
    }
}

/// A timed run, and again while other programs take more than a little of the machine meanwhile, for they may also make
/// it fail. The last one counts even so, and is noted as disturbed.
fn steady<T>(
    row: Row,
    sheet: &mut Sheet,
    mut run: impl FnMut() -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    let mut left = TRIES;
    loop {
        let watch = Watch::start()?;
        let ended = run();
        let others = watch.others()?;
        left -= 1;
        if others <= LITTLE || left == 0 {
            sheet.ran(row.measures(), others > LITTLE);
            return ended;
        }
        println!("{}: again, since others took {} % of the machine", shown(row), others / 10);
    }
}

/// The memory with many connections that have made a call each and wait.
fn idle(player: &Player) -> Result<i64, LoadError> {
    let number = usize::try_from(IDLE).unwrap_or(usize::MAX);
    let idle = Idle::connect(player.ports.plain, TINY, number)?;
    // What was in use for the last calls may be given back first.
    pause(Duration::from_secs(1))?;
    let kib = gauge::resident(&player.pids()?)?;
    drop(idle);
    Ok(signed(kib))
}

/// Who began comes last in the next round.
fn turn_over(players: &mut [Player]) {
    if !players.is_empty() {
        players.rotate_left(1);
    }
}

/// The measure a row is profiled for.
fn first(row: Row) -> Measure {
    row.measures().first().copied().unwrap_or(Measure::Cpu2)
}

/// As it is written on the command line.
fn shown(row: Row) -> String {
    format!("{row:?}").to_lowercase()
}

fn tell(row: Row, round: u32, rounds: u32, rival: Rival, said: &str) {
    println!("{}, round {round} of {rounds}, {}: {said}", shown(row), rival.name());
}

/// Notes a failure for all that a row gives.
fn fail(row: Row, rival: Rival, error: &LoadError, sheet: &mut Sheet) {
    println!("{}, {}: {error}", shown(row), rival.name());
    for &measure in row.measures() {
        sheet.not_run(measure, rival, &error.to_string());
    }
}

fn pause(length: Duration) -> Result<(), LoadError> {
    let start = Instant::now();
    wait::until("a pause", length + Duration::from_secs(1), length, || {
        Ok((start.elapsed() >= length).then_some(()))
    })
}

/// `used` for each request.
fn per(used: u64, requests: u64) -> i64 {
    signed(used.checked_div(requests).unwrap_or(0))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every measure belongs to exactly one row, so that `--only` leaves none out and none is measured twice.
    #[test]
    fn every_measure_has_its_row() {
        let mut given: Vec<Measure> =
            Row::ALL.iter().flat_map(|row| row.measures().iter().copied()).collect();
        given.sort_unstable();
        let mut all = Measure::ALL.to_vec();
        all.sort_unstable();
        assert_eq!(given, all);
    }

    /// Goal: a run that answered nothing divides by nothing.
    #[test]
    fn no_requests_no_quotient() {
        assert_eq!(per(100, 0), 0);
        assert_eq!(per(1_000, 3), 333);
    }
}
