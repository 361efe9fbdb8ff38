//! Cuts of a scope in which streams, bodies and tunnels are open: how long after the cut's answer each of them had ended, at both ends.

mod endless;
mod open;

use crate::error::LoadError;
use crate::proxy::Proxy;
use crate::report::{Table, Verdict, median_and_most};
use crate::stamp::Wall;
use crate::wait;
use endless::Endless;
use open::{Crowd, Kind};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Cuts a scope while event streams, bodies both ways, HTTP/2 streams and WebSockets are open in it, and measures when each has ended.
///
/// Needs nothing but loopback. Starts an origin and a proxy.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CutArgs {
    /// How many cuts.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How many calls of each kind are open.
    #[arg(long, default_value_t = 16)]
    each: usize,
}

/// After a cut everything has ended within this time.
const BOUND: Duration = Duration::from_millis(100);

/// How long calls may take to begin, and at the most to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often that is looked at.
const STEP: Duration = Duration::from_millis(1);

fn rules(origin: SocketAddr) -> String {
    format!(
        "[[routes]]\nname = \"all\"\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"http://{origin}\"\nwebsocket = true\n"
    )
}

/// Runs the command.
///
/// # Errors
/// When the calls do not begin in time, or an order is refused.
pub(crate) fn run(args: &CutArgs) -> Result<ExitCode, LoadError> {
    let origin = Endless::start()?;
    let proxy = Proxy::inside(&rules(origin.addr()), None)?;
    println!("{} cuts, {} calls of each kind open", args.rounds, args.each);
    let (mut verdict, mut seen) = (Verdict::default(), Seen::default());
    for round in 1..=args.rounds {
        once(args, round, &origin, &proxy, &mut seen, &mut verdict)?;
    }
    println!("{}", seen.table());
    Ok(verdict.tell("everything in a cut scope ended within 100 ms of the cut's answer"))
}

/// Microseconds from the answer to the end, for each kind of call and for the origin.
#[derive(Debug, Default)]
struct Seen {
    clients: Vec<(Kind, u64)>,
    origin: Vec<u64>,
    answers: Vec<u64>,
}

fn once(
    args: &CutArgs,
    round: usize,
    origin: &Endless,
    proxy: &Proxy,
    seen: &mut Seen,
    verdict: &mut Verdict,
) -> Result<(), LoadError> {
    let all = args.each.saturating_mul(Kind::ALL.len());
    let before = origin.ends().len();
    let crowd = Crowd::start(proxy.data, args.each)?;
    wait::until("all calls to be open", PATIENCE, STEP, || {
        Ok((crowd.begun() == all && origin.open() == all).then_some(()))
    })?;
    let answer = proxy.admin.kill("/default/all", "cut")?;
    let ended = wait::until("the ends of all calls", PATIENCE, STEP, || {
        Ok((crowd.ends().len() == all && origin.open() == 0).then_some(()))
    });
    // Lifted also when something goes on, so that the report comes.
    proxy.admin.lift("/default/all")?.good()?;
    verdict.check(ended.is_ok(), || {
        let (clients, origin) = (all.saturating_sub(crowd.ends().len()), origin.open());
        format!(
            "round {round}: {clients} clients and {origin} calls at the origin did not end at all"
        )
    });
    let severed = answer.number("severed");
    verdict.check(
        answer.status == 200 && answer.says("silent") && severed == u64::try_from(all).ok(),
        || format!("round {round}: the cut answered {} {}", answer.status, answer.body),
    );
    seen.answers.push(u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX));
    let after = |end: Wall| end.saturating_sub(answer.at) / 1000;
    for (kind, end) in crowd.ends() {
        let after = after(end);
        verdict.check(within(after), || {
            format!("round {round}: {} ended {after} us after the answer", kind.name())
        });
        seen.clients.push((kind, after));
    }
    for &end in origin.ends().get(before..).unwrap_or_default() {
        let after = after(end);
        verdict.check(within(after), || {
            format!("round {round}: a call ended at the origin {after} us after the answer")
        });
        seen.origin.push(after);
    }
    Ok(())
}

fn within(micros: u64) -> bool {
    Duration::from_micros(micros) <= BOUND
}

impl Seen {
    fn table(&self) -> Table {
        let mut table = Table::new(&["ended", "calls", "median us", "most us"]);
        let mut row = |name: &str, times: Vec<u64>| {
            let count = times.len();
            let (median, most) = median_and_most(times);
            let cells = [count.to_string(), median.to_string(), most.to_string()];
            table.row(std::iter::once(name.to_owned()).chain(cells).collect());
        };
        for kind in Kind::ALL {
            let own = self.clients.iter().filter(|(other, _)| *other == kind);
            row(kind.name(), own.map(|(_, after)| *after).collect());
        }
        row("at the origin", self.origin.clone());
        row("(the answer itself)", self.answers.clone());
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: calls of every kind are opened, cut, and seen to end, on both sides.
    #[test]
    fn every_kind_is_cut() {
        let origin = Endless::start().unwrap();
        let proxy = Proxy::inside(&rules(origin.addr()), None).unwrap();
        let (mut seen, mut verdict) = (Seen::default(), Verdict::default());
        let args = CutArgs { rounds: 2, each: 2 };
        for round in 1..=2 {
            once(&args, round, &origin, &proxy, &mut seen, &mut verdict).unwrap();
        }
        let all = 2 * 2 * Kind::ALL.len();
        assert_eq!((seen.clients.len(), seen.origin.len()), (all, all));
        // How soon is for a quiet machine to say.
        let other: Vec<_> = verdict
            .failures
            .iter()
            .filter(|failure| !failure.contains("after the answer"))
            .collect();
        assert!(other.is_empty(), "{other:?}");
    }
}
