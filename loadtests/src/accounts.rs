//! The identity of accounts, to the last request: what the proxy counted, what nginx logged, what the clients
//! saw; the counting clients are in `clients`.

use crate::admin::{Accounts, Admin};
use crate::clients::{self, Client, Report};
use crate::error::LoadError;
use crate::load::Target;
use crate::nginx::{self, Logged, Nginx};
use crate::proxy::Proxy;
use crate::report::{Table, Verdict};
use crate::wait;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Checks that every request is accounted for exactly once, against nginx's own log.
///
/// Needs nginx, wrk and h2load (loadtests/install.sh); without them it ends with exit code 3.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct AccountsArgs {
    /// How many times.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// At least how many requests in each run.
    #[arg(long, default_value_t = 100_000)]
    requests: u64,
}

/// Where the load goes. Weights are by repetition.
pub(crate) const TARGETS: &[Target] = &[
    Target { path: "/free/a", client: Some("a") },
    Target { path: "/free/b", client: Some("b") },
    Target { path: "/limited/a", client: Some("a") },
    Target { path: "/keyed/a", client: Some("a") },
    Target { path: "/free/c", client: Some("a") },
    Target { path: "/keyed/b", client: Some("b") },
    // No such route.
    Target { path: "/nowhere", client: Some("a") },
    // An encoded slash has no single meaning and is refused.
    Target { path: "/free/a%2Fb", client: Some("a") },
    Target { path: "/free/d", client: Some("a") },
    // A declared key is missing and may not be.
    Target { path: "/keyed/c", client: None },
];

/// What is tripped and killed in the middle.
const DISRUPTED: &str = "/g/free";

fn rules(upstream: SocketAddr) -> String {
    format!(
        r#"[[groups]]
name = "g"

[[routes]]
name = "free"
group = "g"
match = {{ path = "/free/{{*rest}}" }}
upstream = "http://{upstream}"

[[routes]]
name = "limited"
group = "g"
match = {{ path = "/limited/{{*rest}}" }}
upstream = "http://{upstream}"
limit = [{{ rate = "500/s", burst = 100 }}]

[[routes]]
name = "keyed"
group = "g"
match = {{ path = "/keyed/{{*rest}}" }}
upstream = "http://{upstream}"

[[routes.keys]]
name = "client"
from = {{ header = "x-client" }}
missing = "refuse"
limit = [{{ rate = "200/s", burst = 50 }}]
"#
    )
}

/// One phase of one run: one client, and what the proxy counted meanwhile.
struct Phase {
    client: Client,
    report: Report,
    counted: Accounts,
}

/// Runs the command.
///
/// # Errors
/// When a program is missing or a run could not be carried out.
pub(crate) fn run(args: &AccountsArgs) -> Result<ExitCode, LoadError> {
    nginx::need("nginx", "-v")?;
    nginx::need("wrk", "-v")?;
    nginx::need("h2load", "--version")?;
    let mut table = Table::new(&[
        "run",
        "client",
        "sent",
        "offered",
        "forwarded",
        "nginx",
        "throttled",
        "halted",
        "invalid",
        "unrouted",
        "failed",
        "in flight",
        "offered - sum",
    ]);
    let mut verdict = Verdict::default();
    for run in 1..=args.runs {
        // The second run, or the only one, is disturbed by a kill and a trip in each phase.
        let disturbed = run == 2.min(args.runs);
        println!(
            "run {run} of {}{}",
            args.runs,
            if disturbed { ", with kills and trips" } else { "" }
        );
        let nginx = Nginx::start()?;
        println!("  nginx on {}", nginx.addr());
        let proxy = Proxy::inside(&rules(nginx.addr()), None)?;
        let phases = phases(&proxy, &shares(args.requests), disturbed)?;
        let last = settled(&proxy.admin)?;
        drop(proxy);
        let logged = nginx.quit()?;
        println!("  nginx logged {} lines, by status {:?}", logged.lines(), logged.by_status);
        for phase in &phases {
            let sent = phase.report.sent.map_or("?".to_owned(), |sent| sent.to_string());
            table.row(cells(&run.to_string(), phase.client.name(), &sent, &phase.counted, "-"));
            verdict.join(judge_phase(run, phase));
        }
        table.row(cells(&run.to_string(), "all", "-", &last, &logged.lines().to_string()));
        verdict.join(judge_run(run, args.requests, &last, &logged, disturbed));
    }
    println!("{table}");
    Ok(verdict.tell("every request is accounted for, once"))
}

fn cells(run: &str, client: &str, sent: &str, counted: &Accounts, logged: &str) -> Vec<String> {
    let difference = i128::from(counted.offered) - i128::from(counted.sum());
    let mut cells = vec![run.to_owned(), client.to_owned(), sent.to_owned()];
    cells.extend([counted.offered, counted.forwarded].map(|number| number.to_string()));
    cells.push(logged.to_owned());
    let rest = [
        counted.throttled,
        counted.halted,
        counted.invalid,
        counted.unrouted,
        counted.failed,
        counted.in_flight,
    ];
    cells.extend(rest.map(|number| number.to_string()));
    cells.push(difference.to_string());
    cells
}

/// Who sends which part of the requests: most of it the fast ones, the rest the one that counts each answer.
fn shares(requests: u64) -> [(Client, u64); 3] {
    [
        (Client::Wrk, requests * 4 / 10),
        (Client::H2load, requests * 4 / 10),
        (Client::Counting, requests / 5 + 10),
    ]
}

/// One phase after another.
fn phases(
    proxy: &Proxy,
    shares: &[(Client, u64)],
    disturbed: bool,
) -> Result<Vec<Phase>, LoadError> {
    let mut phases = Vec::new();
    let mut before = settled(&proxy.admin)?;
    for &(client, share) in shares {
        let start = before;
        let mut reports = Vec::new();
        // wrk runs for a time, not for a number: as often as it takes.
        for _ in 0..MOST_TURNS {
            let mut disturb = || if disturbed { disturb(&proxy.admin) } else { Ok(()) };
            reports.push(clients::run(client, proxy.data, share, &mut disturb)?);
            before = settled(&proxy.admin)?;
            if client != Client::Wrk || before.since(&start).offered >= share {
                break;
            }
        }
        let counted = before.since(&start);
        println!("  {}: {counted:?}", client.name());
        phases.push(Phase { client, report: Report::joined(reports), counted });
    }
    Ok(phases)
}

/// How many times wrk may run to reach its share.
const MOST_TURNS: usize = 50;

/// How long one step of the disturbance, or the end of what is in flight, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the accounts are read meanwhile.
const STEP: Duration = Duration::from_millis(10);

/// How many equal readings in a row count as settled: a closed connection may still hold requests unread.
const SETTLED: u32 = 5;

/// The accounts, once nothing is in flight and nothing changes.
pub(crate) fn settled(admin: &Admin) -> Result<Accounts, LoadError> {
    let mut last = Accounts::default();
    let mut equal = 0;
    wait::until("nothing in flight", PATIENCE, STEP * 2, || {
        let now = admin.accounts()?;
        equal = if now == last && now.in_flight == 0 { equal + 1 } else { 0 };
        last = now;
        Ok((equal >= SETTLED).then_some(now))
    })
}

/// A kill and its lift, a trip and its reset, each held until it has refused some calls.
fn disturb(admin: &Admin) -> Result<(), LoadError> {
    let start = admin.accounts()?;
    let some = |what, count: &dyn Fn(&Accounts) -> u64, least: u64| {
        let before = count(&admin.accounts()?);
        wait::until(what, PATIENCE, STEP, || {
            let now = admin.accounts()?;
            Ok((count(&now) >= before + least).then_some(()))
        })
    };
    some("calls before the kill", &|now| now.offered, 1_000)?;
    admin.kill(DISRUPTED, "halt")?.good()?;
    let halted = some("halted calls after the kill", &|now| now.halted, 500);
    admin.lift(DISRUPTED)?.good()?;
    halted?;
    some("calls after the lift", &|now| now.forwarded, 200)?;
    admin.trip(DISRUPTED)?.good()?;
    let halted = some("halted calls after the trip", &|now| now.halted, 500);
    admin.reset(DISRUPTED)?.good()?;
    halted?;
    println!(
        "  killed, lifted, tripped and reset: {} calls meanwhile",
        admin.accounts()?.since(&start).offered
    );
    Ok(())
}

/// Whether one phase adds up, and agrees with what its client saw.
fn judge_phase(run: usize, phase: &Phase) -> Verdict {
    let mut verdict = Verdict::default();
    let counted = &phase.counted;
    let name = phase.client.name();
    verdict.check(counted.offered == counted.sum(), || {
        format!(
            "run {run}, {name}: offered {} but accounted for {}",
            counted.offered,
            counted.sum()
        )
    });
    if let Some(sent) = phase.report.sent {
        verdict.check(sent == counted.offered, || {
            format!("run {run}, {name}: sent {sent}, but {} were offered", counted.offered)
        });
    }
    for (what, saw, account) in phase.report.compare(counted) {
        verdict.check(saw == account, || {
            format!("run {run}, {name}: the client saw {saw} {what}, the proxy counted {account}")
        });
    }
    for trouble in &phase.report.troubles {
        verdict.check(false, || format!("run {run}, {name}: {trouble}"));
    }
    verdict
}

/// Whether a whole run adds up, agrees with nginx, and had something to agree about.
fn judge_run(
    run: usize,
    requests: u64,
    last: &Accounts,
    logged: &Logged,
    disturbed: bool,
) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.check(last.offered == last.sum(), || {
        format!("run {run}: offered {} but accounted for {}", last.offered, last.sum())
    });
    verdict.check(last.in_flight == 0, || format!("run {run}: {} still in flight", last.in_flight));
    verdict.check(last.forwarded == logged.lines(), || {
        format!("run {run}: forwarded {}, but nginx logged {}", last.forwarded, logged.lines())
    });
    verdict.check(logged.strange == 0, || format!("run {run}: nginx's log broke off"));
    verdict.check(last.offered >= requests, || format!("run {run}: only {} offered", last.offered));
    for (what, number) in [
        ("forwarded", last.forwarded),
        ("throttled", last.throttled),
        ("invalid", last.invalid),
        ("unrouted", last.unrouted),
        ("halted", if disturbed { last.halted } else { u64::MAX }),
    ] {
        verdict
            .check(number > 0, || format!("run {run}: nothing was {what}, so nothing was shown"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{Manner, Origin};
    use crate::standin::{Flaw, StandIn};

    fn balanced() -> Accounts {
        Accounts {
            offered: 15,
            forwarded: 9,
            throttled: 2,
            halted: 1,
            invalid: 1,
            unrouted: 2,
            ..Accounts::default()
        }
    }

    /// Goal: a run passes only if every sum is exact; each single deviation is found.
    #[test]
    fn one_request_too_few_or_too_many_is_found() {
        let logged = Logged::count(&"200\n".repeat(8)).with(499, 1);
        assert!(judge_run(1, 15, &balanced(), &logged, true).passed());
        for wrong in [
            Accounts { offered: 16, ..balanced() },
            Accounts { forwarded: 8, throttled: 3, ..balanced() },
            Accounts { in_flight: 1, throttled: 1, ..balanced() },
            Accounts { halted: 0, invalid: 2, ..balanced() },
        ] {
            assert!(!judge_run(1, 15, &wrong, &logged, true).passed(), "{wrong:?}");
        }
        assert!(!judge_run(1, 16, &balanced(), &logged, true).passed());
        let cut_off = Logged { strange: 1, ..logged.clone() };
        assert!(!judge_run(1, 15, &balanced(), &cut_off, true).passed());
    }

    impl Logged {
        fn with(mut self, status: u16, lines: u64) -> Logged {
            self.by_status.insert(status, lines);
            self
        }
    }

    /// Goal: what a client counted must be what the proxy counted, status by status.
    #[test]
    fn a_client_that_saw_something_else_is_heard() {
        let statuses = [(200, 9), (429, 2), (503, 1), (400, 1), (404, 2)];
        let phase = |report| Phase { client: Client::Counting, report, counted: balanced() };
        let report = Report::of_statuses(15, statuses.into());
        assert!(judge_phase(1, &phase(report)).passed());
        for (sent, status) in [(14, 200), (15, 503)] {
            let mut other = std::collections::BTreeMap::from(statuses);
            *other.entry(status).or_default() += 1;
            assert!(!judge_phase(1, &phase(Report::of_statuses(sent, other))).passed());
        }
        let h2load = Report::of_classes(15, 9, 5, 1);
        assert!(judge_phase(1, &phase(h2load)).passed());
        assert!(!judge_phase(1, &phase(Report::of_classes(15, 9, 4, 2))).passed());
        let mut trouble = Report::default();
        trouble.troubles.push("it broke".to_owned());
        assert!(!judge_phase(1, &phase(trouble)).passed());
    }

    fn counted(flaw: Flaw) -> (Verdict, Accounts, usize) {
        let origin =
            Origin::start(SocketAddr::from(([127, 0, 0, 1], 0)), Manner::default()).unwrap();
        let stand_in = StandIn::start(origin.addr(), flaw);
        let phases = phases(&stand_in.proxy(), &[(Client::Counting, 30_000)], true).unwrap();
        let mut verdict = Verdict::default();
        for phase in &phases {
            verdict.join(judge_phase(1, phase));
        }
        (verdict, stand_in.accounts(), origin.log().len())
    }

    /// Goal: a proxy that counts right agrees with client and upstream to the last request, through a kill and a trip.
    #[test]
    fn a_right_proxy_adds_up() {
        let (verdict, accounts, arrived) = counted(Flaw::None);
        assert_eq!(verdict, Verdict::default());
        assert_eq!((accounts.offered, u64::try_from(arrived)), (30_000, Ok(accounts.forwarded)));
        assert!(accounts.halted >= 1_000 && accounts.throttled > 0 && accounts.unrouted > 0);
    }

    /// Goal: one in a hundred not counted is found.
    #[test]
    fn a_proxy_that_miscounts_is_caught() {
        let (verdict, ..) = counted(Flaw::Miscounts);
        assert!(!verdict.passed());
    }
}
