//! A long run of everything at once against a proxy in a process of its own: nothing may grow, and every request is accounted for. The
//! upstream with its faults is in `soak::faults`, the clients are in `soak::crowd`.

mod crowd;
mod faults;

use crate::accounts::settled;
use crate::admin::{Accounts, Admin, Answer};
use crate::error::LoadError;
use crate::report::{Table, Verdict};
use crate::rivals::child::{Running, free_port};
use crate::rivals::players::token_of;
use crate::rivals::{gauge, machine};
use crate::wait;
use crowd::{Crowd, Tally, Told};
use faults::Faulty;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Mixed traffic for a long time, with kills, lifts, trips and an upstream that fails in every way.
///
/// HTTP/1.1, HTTP/2, uploads, WebSockets and clients that leave in the middle. Memory and descriptors of the proxy may not grow, it
/// must account for every request, and serve as before when all is over. It is built first, unless `--proxy` names one.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SoakArgs {
    /// For how long.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// The proxy's program; without it, it is built first and taken from where this program lies.
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
}

/// What the proxy's process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holds {
    /// KiB in RAM.
    memory: u64,
    /// Open descriptors.
    descriptors: u64,
}

/// What may be more at the end than at the beginning. What is kept between calls, such as idle connections to upstreams and the
/// allocator's free pages, is not the same at every moment.
const ROOM: Holds = Holds { memory: 16 * 1024, descriptors: 16 };

/// What a run came to.
#[derive(Debug)]
struct Soaked {
    /// At rest after the beginning, and at the end.
    rests: [Holds; 2],
    /// Under load, in the order of time.
    course: Vec<Holds>,
    told: Told,
    accounts: Accounts,
    /// Of the accounts: without a whole answer, and ended by a kill.
    upstream_errors: u64,
    severed: u64,
    /// Orders given, and what was wrong with some.
    orders: u64,
    disorder: Vec<String>,
    /// A plain call at the very end.
    last: u16,
    lives: bool,
}

/// The proxy under test.
struct Proxy {
    running: Running,
    data: SocketAddr,
    admin: Admin,
    _dir: TempDir,
}

/// Runs the command.
///
/// # Errors
/// When the proxy cannot be built or started, or stops answering.
pub(crate) fn run(args: &SoakArgs) -> Result<ExitCode, LoadError> {
    let program = args.proxy.clone().map_or_else(machine::build, Ok)?;
    let upstream = Faulty::start()?;
    let mut proxy = start(program, upstream.addr())?;
    let whole = Duration::from_secs(args.minutes * 60);
    println!("{} minutes of everything through {}", args.minutes, proxy.data);
    let soaked = soak(&mut proxy, whole)?;
    print(&soaked);
    let claim =
        format!("{} minutes: nothing grew, and every request is accounted for", args.minutes);
    Ok(judge(&soaked).tell(&claim))
}

fn start(program: PathBuf, upstream: SocketAddr) -> Result<Proxy, LoadError> {
    let dir = TempDir::new().map_err(LoadError::io("make a directory"))?;
    let (data, plane, nowhere) = (free_port()?, free_port()?, free_port()?);
    let state = dir.path().join("state");
    let config = dir.path().join("breaker.toml");
    let text = rules(data, plane, &state.display().to_string(), upstream, nowhere);
    fs::write(&config, text).map_err(LoadError::io("write a configuration"))?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(config);
    let mut running = Running::start(command, "breaker-proxy", dir.path())?;
    running.listens(data)?;
    let admin = Admin::new(plane, &token_of(&state.join("admin.token"))?);
    Ok(Proxy { running, data, admin, _dir: dir })
}

fn rules(
    data: SocketAddr,
    admin: SocketAddr,
    state: &str,
    upstream: SocketAddr,
    nowhere: SocketAddr,
) -> String {
    let mut text = format!(
        "[listen]\ndata = \"{data}\"\nadmin = \"{admin}\"\nworkers = 2\n\n[state]\ndir = {state:?}\nsave_every = \"1s\"\n\n\
         [bounds]\nkeys = 1024\n\n[deadlines]\nanswer = \"1s\"\nhead = \"2s\"\nidle = \"5s\"\n\n[[groups]]\nname = \"g\"\n\n"
    );
    let routes = [
        ("plain", upstream, ""),
        ("faults", upstream, ""),
        ("upload", upstream, ""),
        ("sockets", upstream, "websocket = true\n"),
        ("nobody", nowhere, ""),
        (
            "limited",
            upstream,
            "limit = [{ rate = \"50/s\", burst = 20 }, { window = \"3000/1m\" }]\n",
        ),
        (
            "keyed",
            upstream,
            "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\nlimit = [{ rate = \"20/s\", burst = 5 }]\n",
        ),
    ];
    for (name, upstream, more) in routes {
        text.push_str(&format!(
            "[[routes]]\nname = \"{name}\"\ngroup = \"g\"\nmatch = {{ path = \"/{name}/{{*rest}}\" }}\n\
             upstream = \"http://{upstream}\"\n{more}\n"
        ));
    }
    text
}

/// The beginning, a rest, everything else, and a rest again.
fn soak(proxy: &mut Proxy, whole: Duration) -> Result<Soaked, LoadError> {
    let tally = Tally::default();
    let mut orders = Orders::default();
    let warm = (whole / 6).min(Duration::from_secs(60));
    let begin = phase(proxy, warm, &tally, &mut orders)?;
    let first = rest(proxy)?;
    println!("  at rest after {} s: {first:?}", warm.as_secs());
    let course = phase(proxy, whole.saturating_sub(warm), &tally, &mut orders)?;
    let second = rest(proxy)?;
    println!("  at rest at the end: {second:?}");
    drop(begin);
    let accounts = settled(&proxy.admin)?;
    let status = proxy.admin.status()?;
    let of = |name: &str| status.pointer(name).and_then(Value::as_u64).unwrap_or(0);
    Ok(Soaked {
        rests: [first, second],
        course,
        told: tally.told(),
        accounts,
        upstream_errors: of("/accounts/upstream_errors"),
        severed: of("/accounts/severed"),
        orders: orders.given,
        disorder: orders.disorder,
        last: crowd::one_call(proxy.data)?,
        lives: proxy.running.lives(),
    })
}

/// How often the proxy is looked at, and given an order, under load.
const STEP: Duration = Duration::from_millis(250);

/// Load and orders for so long; what the proxy held meanwhile, second by second.
fn phase(
    proxy: &Proxy,
    length: Duration,
    tally: &Tally,
    orders: &mut Orders,
) -> Result<Vec<Holds>, LoadError> {
    let crowd = Crowd::start(proxy.data, tally.clone())?;
    let begun = Instant::now();
    let mut course = Vec::new();
    while begun.elapsed() < length {
        orders.next(&proxy.admin)?;
        std::thread::park_timeout(STEP);
        if orders.given.is_multiple_of(4) {
            course.push(holds(proxy)?);
        }
    }
    orders.end(&proxy.admin)?;
    drop(crowd);
    Ok(course)
}

/// How long the last calls, or descriptors that are to be closed, may take: longer than every deadline of the configuration.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many equal looks in a row are a rest.
const STEADY: u32 = 8;

/// What it holds once no client is left and nothing changes.
fn rest(proxy: &Proxy) -> Result<Holds, LoadError> {
    settled(&proxy.admin)?;
    let (mut last, mut equal) = (0, 0);
    wait::until("descriptors that do not change", PATIENCE, STEP, || {
        let now = holds(proxy)?;
        let open = proxy.admin.status()?.get("calls_open").and_then(Value::as_u64);
        let steady = now.descriptors == last && open == Some(0);
        equal = if steady { equal + 1 } else { 0 };
        last = now.descriptors;
        Ok((equal >= STEADY).then_some(now))
    })
}

fn holds(proxy: &Proxy) -> Result<Holds, LoadError> {
    let pid = proxy.running.pid();
    let list =
        fs::read_dir(format!("/proc/{pid}/fd")).map_err(LoadError::io("count descriptors"))?;
    Ok(Holds {
        memory: gauge::resident(&[pid])?,
        descriptors: u64::try_from(list.count()).unwrap_or(u64::MAX),
    })
}

/// Kills, lifts, trips and resets, one after the other.
#[derive(Debug, Default)]
struct Orders {
    given: u64,
    disorder: Vec<String>,
    /// What takes back the last one: is it a kill, and of what.
    standing: Option<(bool, &'static str)>,
    turn: usize,
}

/// Where orders go, and the level of a kill; none: a trip.
const SCOPES: [(&str, Option<&str>); 9] = [
    ("/g/plain", Some("halt")),
    ("/g/upload", Some("halt")),
    ("/g/sockets", Some("halt")),
    ("/g/keyed/client=7", Some("cut")),
    ("/g/plain", None),
    ("/g/faults", Some("cut")),
    ("/g/sockets", Some("cut")),
    ("/g", None),
    ("/", Some("cut")),
];

impl Orders {
    fn next(&mut self, admin: &Admin) -> Result<(), LoadError> {
        if self.standing.is_some() {
            return self.end(admin);
        }
        let Some(&(scope, level)) = SCOPES.get(self.turn % SCOPES.len()) else { return Ok(()) };
        self.turn += 1;
        let answer = match level {
            Some(level) => admin.kill(scope, level)?,
            None => admin.trip(scope)?,
        };
        self.standing = Some((level.is_some(), scope));
        self.note(scope, answer);
        Ok(())
    }

    /// Takes back what stands.
    fn end(&mut self, admin: &Admin) -> Result<(), LoadError> {
        let Some((kill, scope)) = self.standing.take() else { return Ok(()) };
        let answer = if kill { admin.lift(scope)? } else { admin.reset(scope)? };
        self.note(scope, answer);
        Ok(())
    }

    fn note(&mut self, scope: &str, answer: Answer) {
        self.given += 1;
        if let Err(error) = answer.good() {
            self.disorder.push(format!("{scope}: {error}"));
        }
    }
}

fn print(soaked: &Soaked) {
    let Told { begun, answered, sockets, left, by_status } = &soaked.told;
    println!(
        "  clients: {begun} requests begun, {answered} answered, {sockets} WebSockets, {left} left in the middle"
    );
    println!("  by status {by_status:?}; {} orders", soaked.orders);
    println!(
        "  accounts: {:?}; {} without a whole answer, {} severed",
        soaked.accounts, soaked.upstream_errors, soaked.severed
    );
    let mut table = Table::new(&["", "MiB", "descriptors"]);
    let [first, second] = soaked.rests;
    let [early, late] =
        [most(soaked.course.get(..third(soaked)).unwrap_or_default()), most(late(soaked))];
    for (name, holds) in [
        ("rest, before", first),
        ("load, first third", early),
        ("load, last third", late),
        ("rest, after", second),
    ] {
        let (whole, tenth) = (holds.memory / 1024, holds.memory % 1024 * 10 / 1024);
        table.row(vec![name.to_owned(), format!("{whole}.{tenth}"), holds.descriptors.to_string()]);
    }
    println!("{table}");
}

fn third(soaked: &Soaked) -> usize {
    soaked.course.len().div_ceil(3)
}

fn late(soaked: &Soaked) -> &[Holds] {
    soaked.course.get(soaked.course.len() - third(soaked)..).unwrap_or_default()
}

fn most(course: &[Holds]) -> Holds {
    let of = |what: fn(&Holds) -> u64| course.iter().map(what).max().unwrap_or(0);
    Holds { memory: of(|holds| holds.memory), descriptors: of(|holds| holds.descriptors) }
}

/// Whether nothing grew, everything is accounted for, and everything happened that was to happen.
fn judge(soaked: &Soaked) -> Verdict {
    let mut verdict = Verdict::default();
    let early = most(soaked.course.get(..third(soaked)).unwrap_or_default());
    let [before, after] = soaked.rests;
    for (when, before, after) in
        [("at rest", before, after), ("under load", early, most(late(soaked)))]
    {
        verdict.check(after.memory <= before.memory + ROOM.memory, || {
            format!("{when}, memory grew from {} KiB to {} KiB", before.memory, after.memory)
        });
        verdict.check(after.descriptors <= before.descriptors + ROOM.descriptors, || {
            format!("{when}, descriptors grew from {} to {}", before.descriptors, after.descriptors)
        });
    }
    let (accounts, told) = (&soaked.accounts, &soaked.told);
    verdict.check(accounts.offered == accounts.sum(), || {
        format!("offered {}, accounted for {}", accounts.offered, accounts.sum())
    });
    verdict
        .check(accounts.in_flight == 0, || format!("{} in flight at the end", accounts.in_flight));
    verdict.check(told.answered <= accounts.offered && accounts.offered <= told.begun, || {
        format!(
            "{} offered, but {} begun and {} answered",
            accounts.offered, told.begun, told.answered
        )
    });
    for (&status, count) in &told.by_status {
        verdict.check(EXPECTED.contains(&status), || format!("{count} answers {status}"));
    }
    let of = |status: u16| told.by_status.get(&status).copied().unwrap_or(0);
    for (what, number) in [
        ("throttled", accounts.throttled),
        ("halted", accounts.halted),
        ("unrouted", accounts.unrouted),
        ("failed", accounts.failed),
        ("severed", soaked.severed),
        ("left without a whole answer", soaked.upstream_errors),
        ("answered 200", of(200)),
        ("answered 502", of(502)),
        ("answered 504", of(504)),
        ("a WebSocket", told.sockets),
        ("left by its client", told.left),
    ] {
        verdict.check(number > 0, || format!("nothing was {what}, so nothing was shown"));
    }
    for disorder in &soaked.disorder {
        verdict.check(false, || disorder.clone());
    }
    verdict.check(soaked.lives, || "the proxy is gone".to_owned());
    verdict.check(soaked.last == 200, || format!("the last call was answered {}", soaked.last));
    verdict
}

/// What the rules and the faults can lead to.
const EXPECTED: [u16; 8] = [101, 200, 404, 408, 429, 502, 503, 504];

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Soaked {
        let holds = |memory, descriptors| Holds { memory, descriptors };
        Soaked {
            rests: [holds(20_000, 30), holds(21_000, 31)],
            course: vec![holds(30_000, 90), holds(31_000, 95), holds(31_000, 92)],
            told: Told {
                begun: 110,
                answered: 90,
                sockets: 5,
                left: 4,
                by_status: [(200, 70), (502, 10), (504, 10)].into(),
            },
            accounts: Accounts {
                offered: 100,
                forwarded: 60,
                throttled: 10,
                halted: 10,
                unrouted: 10,
                failed: 10,
                ..Accounts::default()
            },
            upstream_errors: 1,
            severed: 1,
            orders: 9,
            disorder: Vec::new(),
            last: 200,
            lives: true,
        }
    }

    /// Goal: a run passes only if nothing grew, everything adds up and everything happened; each single deviation is found.
    #[test]
    fn each_deviation_is_found() {
        assert_eq!(judge(&good()), Verdict::default());
        let wrong: [fn(&mut Soaked); 14] = [
            |soaked| soaked.rests[1].memory += ROOM.memory,
            |soaked| soaked.rests[1].descriptors += ROOM.descriptors,
            |soaked| soaked.course[2].memory += ROOM.memory,
            |soaked| soaked.course[2].descriptors += ROOM.descriptors,
            |soaked| soaked.accounts.offered += 1,
            |soaked| (soaked.accounts.in_flight, soaked.accounts.forwarded) = (1, 59),
            |soaked| soaked.told.answered = 101,
            |soaked| soaked.told.begun = 99,
            |soaked| soaked.severed = 0,
            |soaked| soaked.told.by_status.remove(&504).map_or((), drop),
            |soaked| soaked.told.by_status.insert(500, 1).map_or((), drop),
            |soaked| soaked.disorder.push("/: 503".to_owned()),
            |soaked| soaked.last = 503,
            |soaked| soaked.lives = false,
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            let mut soaked = good();
            change(&mut soaked);
            assert_eq!(judge(&soaked).failures.len(), 1, "{number}");
        }
    }

    /// Goal: the rules are a configuration that the proxy takes, and every order names a scope of it.
    #[test]
    fn the_rules_are_taken() {
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let text = rules(addr(1), addr(2), "/tmp/x", addr(3), addr(4));
        let config = breaker_proxy::config::check::load(&text, "test", &|_| None);
        assert!(config.is_ok(), "{config:?}");
        for (scope, _) in SCOPES {
            let route = scope.split('/').nth(2);
            assert!(
                route.is_none_or(|name| text.contains(&format!("name = \"{name}\""))),
                "{scope}"
            );
        }
    }
}
