//! Kills under load, round after round, against an origin that asks the kernel when bytes came; it drives and
//! reports, the judging is in `judge`.

use crate::admin::{Admin, Answer};
use crate::error::LoadError;
use crate::intake::Vault;
use crate::judge::{self, Span, Told, Upstream};
use crate::load::{Connection, Kind, Load, Mix, Plan, Record, Target};
use crate::origin::{Manner, Origin, Speech, Stall};
use crate::proxy::{Proxy, Sabotage};
use crate::report::{Table, Verdict, median_and_most};
use crate::stamp::{self, Wall};
use crate::wait;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Kills a scope under load and counts requests that reach the upstream after the kill's answer.
///
/// Needs nothing but loopback. Starts an origin and, unless told where one is, a proxy.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct KillArgs {
    /// How many kills.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How many client connections: half plain HTTP/1.1, an eighth with bodies, the rest pipelined and HTTP/2.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes of each request body.
    #[arg(long, default_value_t = 64 * 1024)]
    body: usize,
    /// Let the origin read bodies slowly, so that the proxy's writes must wait; more connections have bodies.
    #[arg(long)]
    stall: bool,
    /// Let the proxy speak to the origin over TLS.
    #[arg(long, conflicts_with = "data", conflicts_with = "print_rules")]
    tls: bool,
    /// Let the proxy speak to the origin over HTTP/2, in clear or, with --tls, over TLS.
    #[arg(long)]
    h2: bool,
    /// Build a fault into the proxy, which the run must catch; implies --stall.
    #[arg(long, value_enum, conflicts_with = "data")]
    sabotage: Option<Sabotage>,
    /// The data plane of a proxy that runs already (then also --admin, --token and --origin).
    #[arg(long, requires = "admin", requires = "token")]
    data: Option<SocketAddr>,
    /// The admin plane of that proxy.
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// The token of that proxy.
    #[arg(long, env = "BREAKER_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where the origin listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    origin: SocketAddr,
    /// Print the rules a running proxy needs for this test (with --origin), and end.
    #[arg(long)]
    print_rules: bool,
}

/// What one series of kills is run against.
pub(crate) struct Bench<'a> {
    pub(crate) data: SocketAddr,
    pub(crate) admin: &'a Admin,
    pub(crate) origin: &'a Origin,
    pub(crate) mix: Mix,
    pub(crate) body: usize,
    pub(crate) rounds: usize,
}

/// What a series of kills came to.
#[derive(Debug, Default)]
pub(crate) struct Series {
    /// Whether nothing came late.
    pub(crate) late: Verdict,
    /// Whether everything else was right: answers, bystanders, the kill's own words.
    pub(crate) rest: Verdict,
    rounds: Vec<Round>,
    unstamped: usize,
    arrivals: usize,
}

/// One kill and its lift.
#[derive(Debug)]
struct Round {
    number: usize,
    scope: &'static str,
    level: &'static str,
    answer: Answer,
    lifted: Wall,
    deaths: [u64; 4],
    clock: u64,
    seen: Upstream,
    told: Told,
}

/// Where the load goes: two keys of one route, a second route of the same group, another group.
const TARGETS: &[Target] = &[
    Target { path: "/r/x", client: Some("a") },
    Target { path: "/r/x", client: Some("b") },
    Target { path: "/s/x", client: None },
    Target { path: "/t/x", client: None },
];

/// What is killed, in turn, and which targets lie in it.
const SCOPES: [(&str, [bool; 4]); 4] = [
    ("/", [true, true, true, true]),
    ("/g", [true, true, true, false]),
    ("/g/r", [true, true, false, false]),
    ("/g/r/client=a", [true, false, false, false]),
];

const LEVELS: [&str; 2] = ["halt", "cut"];

/// The groups and routes that [`TARGETS`] and [`SCOPES`] speak of.
fn rules(origin: SocketAddr, speech: &Speech) -> String {
    let (scheme, authority) = match &speech.vault {
        None => ("http", String::new()),
        Some(vault) => ("https", format!("ca = {:?}\n", vault.authority().display().to_string())),
    };
    let http2 = if speech.http2 { HTTP2 } else { "" };
    format!(
        r#"[[upstreams]]
name = "origin"
endpoints = ["{scheme}://{origin}"]
{authority}{http2}
[[groups]]
name = "g"

[[groups]]
name = "h"

[[routes]]
name = "r"
group = "g"
match = {{ path = "/r/{{*rest}}" }}
upstream = "origin"

[[routes.keys]]
name = "client"
from = {{ header = "x-client" }}

[[routes]]
name = "s"
group = "g"
match = {{ path = "/s/{{*rest}}" }}
upstream = "origin"

[[routes]]
name = "t"
group = "h"
match = {{ path = "/t/{{*rest}}" }}
upstream = "origin"
"#
    )
}

/// What the rules say of an upstream that speaks HTTP/2.
pub(crate) const HTTP2: &str = "protocol = \"h2\"\n";

/// Runs the command.
///
/// # Errors
/// When the series could not be carried out.
pub(crate) fn run(args: &KillArgs) -> Result<ExitCode, LoadError> {
    let vault = if args.tls { Some(Vault::new(args.h2)?) } else { None };
    let speech = Speech { vault, http2: args.h2 };
    if args.print_rules {
        print!("{}", rules(args.origin, &speech));
        return Ok(ExitCode::SUCCESS);
    }
    let stalled = args.stall || args.sabotage.is_some();
    let manner = Manner { stall: stalled.then_some(STALL), close_every: Some(CLOSE_EVERY) };
    let origin = Origin::start_as(args.origin, manner, &speech)?;
    let version = if args.h2 { "HTTP/2" } else { "HTTP/1.1" };
    let secure = if args.tls { " over TLS" } else { "" };
    println!("origin on {}, {version}{secure}, kernel receive timestamps on", origin.addr());
    let proxy = match (args.data, args.admin, args.token.as_deref()) {
        (Some(data), Some(admin), Some(token)) => Proxy::external(data, admin, token),
        _ => Proxy::inside(&rules(origin.addr(), &speech), args.sabotage)?,
    };
    println!("proxy on {}", proxy.data);
    let series = kill_again_and_again(&Bench {
        data: proxy.data,
        admin: &proxy.admin,
        origin: &origin,
        mix: mix(args.connections, stalled),
        body: if stalled { args.body.max(256 * 1024) } else { args.body },
        rounds: args.rounds,
    })?;
    series.print();
    Ok(match args.sabotage {
        None => {
            let mut verdict = series.late;
            verdict.join(series.rest);
            verdict.tell("no request reached the upstream after a kill was answered")
        }
        Some(fault) => series.late.tell_control(fault.name()),
    })
}

/// Shares out connections; with stalls most of them have bodies, for those fill the proxy's buffers.
fn mix(connections: usize, stalled: bool) -> Mix {
    let share = |eighths: usize| connections.saturating_mul(eighths) / 8;
    let (body, pipelined) = if stalled { (share(3), share(1)) } else { (share(1), share(2)) };
    let streams = share(1);
    Mix { plain: connections - body - pipelined - streams, body, pipelined, streams }
}

/// With every fourth answer the origin ends a connection.
const CLOSE_EVERY: usize = 4;

/// How the origin stalls: a body of 256 KiB takes it 16 reads and 32 ms.
const STALL: Stall = Stall { pause: Duration::from_millis(2), bytes: 16 * 1024, buffer: 16 * 1024 };

/// Requests in a pipelined batch.
const BATCH: usize = 8;

/// Streams at once on one HTTP/2 connection.
const STREAMS: usize = 8;

/// How long the load may take to reach a state.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked at meanwhile.
const STEP: Duration = Duration::from_millis(1);

/// Good answers each connection must have had since the last lift before the next kill.
const STEADY: u64 = 5;

/// Good answers all connections together must have had.
const STEADY_IN_ALL: u64 = 2_000;

/// Refusals (or deaths) each connection of the scope must have had after a kill before its lift.
const REFUSED: u64 = 3;

/// Refusals all connections of the scope together must have had.
const REFUSED_IN_ALL: u64 = 1_000;

/// The series itself.
///
/// # Errors
/// When the load does not reach a steady state in time, or an order is refused.
pub(crate) fn kill_again_and_again(bench: &Bench<'_>) -> Result<Series, LoadError> {
    let plan = Plan {
        addr: bench.data,
        targets: TARGETS,
        mix: bench.mix,
        body: bench.body,
        batch: BATCH,
        streams: STREAMS,
    };
    println!("load: {:?}", bench.mix);
    let load = Load::start(plan)?;
    let mut series = Series::default();
    let mut from = 0;
    let mut pending = None;
    for number in 0..=bench.rounds {
        wait_steady(load.record())?;
        if let Some(round) = pending.take() {
            // Judged only now: what was read late is in the log by the next steady state.
            series.judge(round, &load, bench.origin, from);
        }
        if number < bench.rounds {
            from = bench.origin.log().len().saturating_sub(READ_BACK);
            let _ = load.record().take();
            pending = Some(kill_once(bench, load.record(), number)?);
        }
    }
    let arrivals = bench.origin.log().from(0);
    series.arrivals = arrivals.len();
    series.unstamped = arrivals.iter().filter(|arrival| !arrival.stamped).count();
    series.rest.check(!bench.origin.log().is_full(), || "the origin's log is full".to_owned());
    Ok(series)
}

/// How many arrivals before a kill are looked at again, for bytes that trail.
const READ_BACK: usize = 10_000;

fn wait_steady(record: &Record) -> Result<(), LoadError> {
    let before: Vec<u64> = record.connections().iter().map(Connection::good).collect();
    wait::until("a steady state under load", PATIENCE, STEP, || {
        let more =
            record.connections().iter().zip(&before).map(|(one, before)| one.good() - before);
        let (least, all) =
            more.fold((u64::MAX, 0), |(least, all), more| (least.min(more), all + more));
        Ok((least >= STEADY && all >= STEADY_IN_ALL).then_some(()))
    })
}

fn kill_once(bench: &Bench<'_>, record: &Record, number: usize) -> Result<Round, LoadError> {
    // Levels alternate; each scope meets both.
    let level = LEVELS.get(number % 2).copied().unwrap_or("halt");
    let (scope, covered) = SCOPES.get(number / 2 % 4).copied().unwrap_or(("/", [true; 4]));
    let clock = stamp::offset();
    let deaths_before = deaths(record);
    let answer = bench.admin.kill(scope, level)?;
    let scoped = |one: &&Connection| covered.get(one.target).copied().unwrap_or(false);
    let met = |one: &Connection| one.refused() + one.deaths();
    let before: Vec<u64> = record.connections().iter().filter(scoped).map(met).collect();
    let refused = wait::until("503s after a kill", PATIENCE, STEP, || {
        let now = record.connections().iter().filter(scoped).map(met);
        let more = now.zip(&before).map(|(now, before)| now - before);
        let (least, all) =
            more.fold((u64::MAX, 0), |(least, all), more| (least.min(more), all + more));
        Ok((least >= REFUSED && all >= REFUSED_IN_ALL).then_some(()))
    });
    let lifted = stamp::wall();
    // Lifted also when the load is stuck, so that the proxy is left as it was found.
    bench.admin.lift(scope)?.good()?;
    refused?;
    let clock = stamp::offset().abs_diff(clock);
    let round = Round {
        number: number + 1,
        scope,
        level,
        answer,
        lifted,
        deaths: deaths_before,
        clock,
        seen: Upstream::default(),
        told: Told::default(),
    };
    println!("round {}: {level} of {scope}, answered in {} us", round.number, round.took());
    Ok(round)
}

/// Deaths of connections so far, by kind.
fn deaths(record: &Record) -> [u64; 4] {
    Kind::ALL.map(|kind| {
        record.connections().iter().filter(|one| one.kind == kind).map(Connection::deaths).sum()
    })
}

impl Round {
    fn took(&self) -> u64 {
        u64::try_from(self.answer.took.as_micros()).unwrap_or(u64::MAX)
    }

    /// Whether the kill's own answer says what it must.
    fn answered_right(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let right = self.answer.status == 200
            && ["in_force", "silent", "durable"].iter().all(|fact| self.answer.says(fact));
        verdict.check(right, || {
            format!(
                "round {}: the kill answered {} {}",
                self.number, self.answer.status, self.answer.body
            )
        });
        verdict.check(self.clock < CLOCK_STEP, || {
            format!(
                "round {}: the wall clock was set meanwhile; its stamps say nothing",
                self.number
            )
        });
        verdict
    }
}

/// How far the wall clock may drift from the monotonic one within a round, in nanoseconds.
const CLOCK_STEP: u64 = 1_000_000;

impl Series {
    fn judge(&mut self, mut round: Round, load: &Load, origin: &Origin, from: usize) {
        let covered =
            SCOPES.iter().find(|(scope, _)| *scope == round.scope).map(|(_, covered)| covered);
        let span = Span {
            answered: round.answer.at,
            lifted: round.lifted,
            covered: covered.map_or(&[][..], |covered| covered),
        };
        let (fates, lost) = load.record().take();
        let after = deaths(load.record());
        for (death, after) in round.deaths.iter_mut().zip(after) {
            *death = after.saturating_sub(*death);
        }
        round.seen = judge::upstream(span, &origin.log().from(from));
        round.told = judge::told(span, &fates);
        self.late.join(judge::nothing_late(round.number, &round.seen));
        self.rest.join(judge::told_right(round.number, &round.told));
        self.rest.join(round.answered_right());
        self.rest
            .check(lost == 0, || format!("round {}: {lost} fates found no room", round.number));
        self.rounds.push(round);
    }

    fn print(&self) {
        let mut table = Table::new(&[
            "round",
            "scope",
            "level",
            "in_force_us",
            "silent_us",
            "durable_us",
            "answer_us",
            "in flight",
            "severed",
            "late",
            "queued",
            "trailing",
            "503s",
            "spared",
            "broken",
            "died p/b/pl/h2",
        ]);
        for round in &self.rounds {
            let said = |name| round.answer.number(name).map_or("?".to_owned(), |us| us.to_string());
            let deaths: Vec<String> = round.deaths.iter().map(u64::to_string).collect();
            table.row(vec![
                round.number.to_string(),
                round.scope.to_owned(),
                round.level.to_owned(),
                said("in_force_us"),
                said("silent_us"),
                said("durable_us"),
                round.took().to_string(),
                said("in_flight"),
                said("severed"),
                round.seen.late.to_string(),
                round.seen.queued.to_string(),
                round.seen.trailing.to_string(),
                round.told.refused.to_string(),
                round.told.spared.to_string(),
                (round.told.broken + round.told.broken_bodies).to_string(),
                deaths.join("/"),
            ]);
        }
        println!("{table}");
        for name in ["in_force_us", "silent_us", "durable_us"] {
            let times = self.rounds.iter().filter_map(|round| round.answer.number(name)).collect();
            let (median, most) = median_and_most(times);
            println!("  {name}: median {median}, most {most}");
        }
        let (median, most) = median_and_most(self.rounds.iter().map(Round::took).collect());
        println!("  answer_us: median {median}, most {most}");
        println!(
            "  {} requests arrived at the origin, {} of them without a kernel stamp",
            self.arrivals, self.unstamped
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standin::{Flaw, StandIn};

    /// Goal: every connection is dealt out, with and without stalls.
    #[test]
    fn a_mix_adds_up() {
        for stalled in [false, true] {
            let mix = mix(64, stalled);
            assert_eq!(mix.plain + mix.body + mix.pipelined + mix.streams, 64);
            assert!(
                [mix.plain, mix.body, mix.pipelined, mix.streams].iter().all(|&share| share >= 8)
            );
        }
    }

    fn series(flaw: Flaw) -> Series {
        let origin =
            Origin::start(SocketAddr::from(([127, 0, 0, 1], 0)), Manner::default()).unwrap();
        let proxy = StandIn::start(origin.addr(), flaw).proxy();
        kill_again_and_again(&Bench {
            data: proxy.data,
            admin: &proxy.admin,
            origin: &origin,
            mix: Mix { plain: 4, body: 4, pipelined: 4, streams: 0 },
            body: 20_000,
            rounds: 8,
        })
        .unwrap()
    }

    /// Goal: a proxy that holds the gates from its look to the end of its write passes, at every scope and level.
    #[test]
    fn a_right_proxy_passes() {
        let series = series(Flaw::None);
        assert_eq!((series.late, series.rest), (Verdict::default(), Verdict::default()));
        assert_eq!(series.rounds.len(), 8);
        assert!(series.rounds.iter().all(|round| round.told.refused > 0));
        assert!(series.rounds.iter().skip(2).all(|round| round.told.spared > 0));
    }

    /// Goal: a proxy that goes on for a while after its answer is caught by the bytes it sends.
    #[test]
    fn a_proxy_with_stale_gates_is_caught() {
        let series = series(Flaw::StaleGates);
        assert!(!series.late.passed(), "nothing came late");
        assert!(!series.rest.passed(), "and nobody was answered 200");
    }
}
