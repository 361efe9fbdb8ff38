//! The clients of the accounts test: wrk, h2load, and one of our own that counts every answer; they judge nothing.

use crate::accounts::TARGETS;
use crate::admin::Accounts;
use crate::error::LoadError;
use crate::load::{Wire, write_request};
use crate::nginx::not_found;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// HTTP/1.1 at full speed for a time; it leaves with requests in flight and does not say how many.
    Wrk,
    /// HTTP/2 at full speed, an exact number of requests.
    H2load,
    /// HTTP/1.1, an exact number, and each status counted.
    Counting,
}

impl Client {
    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Client::Wrk => "wrk",
            Client::H2load => "h2load",
            Client::Counting => "counting",
        }
    }
}

/// What a client says it sent and saw, as far as it can say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Requests sent, where the client knows.
    pub(crate) sent: Option<u64>,
    /// What went wrong for the client itself.
    pub(crate) troubles: Vec<String>,
    classes: Option<[u64; 3]>,
    statuses: Option<BTreeMap<u16, u64>>,
}

impl Report {
    /// The report of several turns: only wrk takes several, and it counts nothing.
    pub(crate) fn joined(reports: Vec<Report>) -> Report {
        let mut all = reports.into_iter();
        let mut first = all.next().unwrap_or_default();
        for other in all {
            first.troubles.extend(other.troubles);
        }
        first
    }

    /// Of a client that counted 2xx, 4xx and 5xx.
    pub(crate) fn of_classes(sent: u64, good: u64, client: u64, server: u64) -> Report {
        Report { sent: Some(sent), classes: Some([good, client, server]), ..Report::default() }
    }

    /// Of a client that counted each status.
    pub(crate) fn of_statuses(sent: u64, statuses: BTreeMap<u16, u64>) -> Report {
        Report { sent: Some(sent), statuses: Some(statuses), ..Report::default() }
    }

    /// How many answers were 2xx, of a client that counted such classes.
    pub(crate) fn good(&self) -> Option<u64> {
        self.classes.map(|[good, ..]| good)
    }

    /// Pairs of what the client saw and what the proxy counted, which must be equal.
    pub(crate) fn compare(&self, counted: &Accounts) -> Vec<(&'static str, u64, u64)> {
        let mut pairs = Vec::new();
        if let Some([good, client, server]) = self.classes {
            pairs.push(("answers 2xx", good, counted.forwarded));
            pairs.push((
                "answers 4xx",
                client,
                counted.throttled + counted.invalid + counted.unrouted,
            ));
            pairs.push(("answers 5xx", server, counted.halted + counted.failed));
        }
        if let Some(statuses) = &self.statuses {
            let of = |status| statuses.get(&status).copied().unwrap_or(0);
            let named = [200, 429, 503, 404];
            let rest = |class: u16| -> u64 {
                let others = statuses.iter().filter(|(status, _)| !named.contains(*status));
                others.filter(|(status, _)| *status / 100 == class).map(|(_, count)| count).sum()
            };
            pairs.push(("answers 200", of(200), counted.forwarded));
            pairs.push(("answers 429", of(429), counted.throttled));
            pairs.push(("answers 503", of(503), counted.halted));
            pairs.push(("answers 404", of(404), counted.unrouted));
            pairs.push(("other answers 4xx", rest(4), counted.invalid));
            pairs.push(("other answers 5xx", rest(5), counted.failed));
        }
        pairs
    }
}

/// Runs one client to its end, and `meanwhile` beside it.
///
/// # Errors
/// When the program is missing, cannot be read, or `meanwhile` fails.
pub(crate) fn run(
    client: Client,
    addr: SocketAddr,
    requests: u64,
    meanwhile: &mut dyn FnMut() -> Result<(), LoadError>,
) -> Result<Report, LoadError> {
    let files = TempDir::new().map_err(LoadError::io("make a directory for a client"))?;
    match client {
        Client::Wrk => {
            let script = files.path().join("mix.lua");
            std::fs::write(&script, wrk_script()).map_err(LoadError::io("write wrk's script"))?;
            beside(wrk(addr, &script), "wrk", meanwhile).and_then(|text| read_wrk(&text))
        }
        Client::H2load => {
            let list = files.path().join("list");
            std::fs::write(&list, h2load_list(addr))
                .map_err(LoadError::io("write h2load's list"))?;
            beside(h2load(requests, &list), "h2load", meanwhile).and_then(|text| read_h2load(&text))
        }
        Client::Counting => std::thread::scope(|scope| {
            let thread = scope.spawn(move || count(addr, requests));
            let disturbed = meanwhile();
            let report = thread.join().map_err(|_| LoadError::Thread)?;
            disturbed.and(report)
        }),
    }
}

/// Connections of wrk, h2load and our own client.
const CONNECTIONS: &str = "32";
const OWN_CONNECTIONS: u64 = 8;

fn wrk(addr: SocketAddr, script: &Path) -> Command {
    let mut command = Command::new("wrk");
    command
        .args(["-t2", "-c", CONNECTIONS, "-d3s", "-s"])
        .arg(script)
        .arg(format!("http://{addr}"));
    command
}

fn wrk_script() -> String {
    let mut script = "local all = {}\ninit = function(args)\n".to_owned();
    for target in TARGETS {
        let client =
            target.client.map_or_else(String::new, |name| format!("[\"x-client\"] = \"{name}\""));
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            script,
            "  all[#all + 1] = wrk.format(\"GET\", \"{}\", {{ [\"Host\"] = \"load.test\", {client} }})",
            target.path
        );
    }
    script.push_str(
        "end\nlocal n = 0\nrequest = function()\n  n = n + 1\n  return all[n % #all + 1]\nend\n",
    );
    script
}

fn h2load(requests: u64, list: &Path) -> Command {
    let mut command = Command::new("h2load");
    command.args(["-t2", "-c", CONNECTIONS, "-m16", "-n", &requests.to_string()]);
    command.args(["-H", "x-client: a", "-i"]).arg(list);
    command
}

/// h2load sends one set of headers to all, so the target without a key is left to the others.
fn h2load_list(addr: SocketAddr) -> String {
    let with_key = TARGETS.iter().filter(|target| target.client.is_some());
    with_key.map(|target| format!("http://{addr}{}\n", target.path)).collect()
}

/// A child that is ended when we are done with it, whatever happened.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Our own child; an error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end and `meanwhile` beside it; gives what it printed.
///
/// # Errors
/// When it is missing, cannot be read or fails, or `meanwhile` does.
pub(crate) fn beside(
    mut command: Command,
    program: &'static str,
    meanwhile: &mut dyn FnMut() -> Result<(), LoadError>,
) -> Result<String, LoadError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = Ended(command.spawn().map_err(|error| not_found(program, error))?);
    meanwhile()?;
    let mut text = String::new();
    if let Some(mut out) = child.0.stdout.take() {
        // What it prints fits a pipe's buffer, so it never waits for us.
        std::io::Read::read_to_string(&mut out, &mut text)
            .map_err(LoadError::io("read a client's words"))?;
    }
    let status = child.0.wait().map_err(LoadError::io("wait for a client"))?;
    if status.success() {
        Ok(text)
    } else {
        Err(LoadError::Unreadable(format!("{program}, which ended with {status}: {text}")))
    }
}

fn read_wrk(text: &str) -> Result<Report, LoadError> {
    let unreadable = || LoadError::Unreadable(format!("wrk's words: {text}"));
    let line = text.lines().find(|line| line.contains(" requests in ")).ok_or_else(unreadable)?;
    println!("  wrk: {}", line.trim());
    let errors = text.lines().find(|line| line.contains("Socket errors"));
    Ok(Report {
        troubles: errors.map(|line| line.trim().to_owned()).into_iter().collect(),
        ..Report::default()
    })
}

pub(crate) fn read_h2load(text: &str) -> Result<Report, LoadError> {
    let unreadable = || LoadError::Unreadable(format!("h2load's words: {text}"));
    let line = |start: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix(start)).ok_or_else(unreadable)
    };
    let number = |line: &str, name: &str| {
        let part = line.split(',').map(str::trim).find_map(|part| part.strip_suffix(name));
        part.and_then(|part| part.trim().parse::<u64>().ok()).ok_or_else(unreadable)
    };
    let requests = line("requests:")?;
    let codes = line("status codes:")?;
    println!("  h2load:{requests}; status codes:{codes}");
    let sent = number(requests, " started")?;
    let (good, client, server) =
        (number(codes, " 2xx")?, number(codes, " 4xx")?, number(codes, " 5xx")?);
    let mut report = Report::of_classes(sent, good, client, server);
    for name in [" errored", " timeout"] {
        let count = number(requests, name)?;
        if count > 0 {
            report.troubles.push(format!("{count}{name}"));
        }
    }
    Ok(report)
}

/// Sends exactly `requests` requests over some connections, one at a time on each, and counts each status.
fn count(addr: SocketAddr, requests: u64) -> Result<Report, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LoadError::io("start the counting client"))?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..OWN_CONNECTIONS {
            let share = requests / OWN_CONNECTIONS + u64::from(number < requests % OWN_CONNECTIONS);
            tasks.spawn(count_one(addr, share));
        }
        let mut statuses: BTreeMap<u16, u64> = BTreeMap::new();
        let mut sent = 0;
        let mut troubles = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            let (seen, trouble) = ended.map_err(|_| LoadError::Thread)?;
            troubles.extend(trouble.map(|error| error.to_string()));
            for (status, count) in seen {
                sent += count;
                *statuses.entry(status).or_default() += count;
            }
        }
        println!("  counting: {sent} sent, by status {statuses:?}");
        Ok(Report { troubles, ..Report::of_statuses(sent, statuses) })
    })
}

/// One connection's share; with an error it is not known whether the last request arrived.
async fn count_one(addr: SocketAddr, share: u64) -> (BTreeMap<u16, u64>, Option<LoadError>) {
    let mut seen = BTreeMap::new();
    let mut request = Vec::new();
    let mut wire = None;
    let mut targets = TARGETS.iter().cycle();
    for _ in 0..share {
        let Some(&target) = targets.next() else { break };
        request.clear();
        write_request(&mut request, target, None, None);
        let mut open = match wire.take() {
            Some(open) => open,
            None => match Wire::connect(addr).await {
                Ok(open) => open,
                Err(error) => return (seen, Some(error)),
            },
        };
        let mut status = 0;
        match open.exchange(&request, 1, |answer| status = answer.status).await {
            Ok(again) => wire = again.then_some(open),
            Err(error) => return (seen, Some(error)),
        }
        *seen.entry(status).or_default() += 1;
    }
    (seen, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: h2load's words are read to the number, its errors are troubles, other words are refused.
    #[test]
    fn h2load_is_read() {
        let text = "finished in 1.00s\nrequests: 40 total, 40 started, 40 done, 30 succeeded, 10 failed, 1 errored, 0 timeout\n\
            status codes: 30 2xx, 0 3xx, 8 4xx, 1 5xx\n";
        let report = read_h2load(text).unwrap();
        let expected = Report::of_classes(40, 30, 8, 1);
        assert_eq!(report, Report { troubles: vec!["1 errored".to_owned()], ..expected });
        assert!(read_h2load("requests: many").is_err());
    }

    /// Goal: wrk's socket errors are troubles, its silence is an error.
    #[test]
    fn wrk_is_read() {
        let text = "  Latency ...\n  100 requests in 3.00s, 1.00MB read\n  Socket errors: connect 0, read 1, write 0, timeout 0\n";
        assert_eq!(read_wrk(text).unwrap().troubles.len(), 1);
        assert!(read_wrk("").is_err());
    }

    /// Goal: the script and the list name every target they can.
    #[test]
    fn every_target_is_asked_for() {
        let script = wrk_script();
        assert!(TARGETS.iter().all(|target| script.contains(target.path)));
        let list = h2load_list(SocketAddr::from(([127, 0, 0, 1], 1)));
        let with_key = TARGETS.iter().filter(|target| target.client.is_some()).count();
        assert_eq!(list.lines().count(), with_key);
    }
}
