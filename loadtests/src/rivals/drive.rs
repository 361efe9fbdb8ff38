//! wrk and h2load against one proxy: what they are told, and what their words mean; it measures nothing itself.

use crate::error::LoadError;
use std::net::SocketAddr;
use std::process::Command;

/// What a load program says it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Driven {
    /// Answers that came whole, all of them 2xx.
    pub(crate) requests: u64,
    /// The 99th percentile of the time to an answer in a closed loop, ns; 0 where the program does not say.
    pub(crate) p99: u64,
}

/// The field that every call carries: the rules key on it.
pub(crate) const KEY: &str = "x-client: one";

/// 64 connections in closed loop over HTTP/1.1, on one thread.
pub(crate) fn wrk(scheme: &str, addr: SocketAddr, path: &str, seconds: u32) -> Command {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c64", "--latency", "--timeout", "10s", "-H", KEY]);
    command.arg(format!("-d{seconds}s")).arg(format!("{scheme}://{addr}{path}"));
    command
}

/// 8 connections with 16 streams each over HTTP/2 without TLS, on one thread.
pub(crate) fn h2load(addr: SocketAddr, path: &str, seconds: u32) -> Command {
    let mut command = Command::new("h2load");
    command.args(["-t1", "-c8", "-m16", "-H", KEY]);
    command.arg(format!("-D{seconds}")).arg(format!("http://{addr}{path}"));
    command
}

/// Reads wrk's words.
///
/// # Errors
/// When they cannot be read, or say that not every answer was 2xx on a sound connection.
pub(crate) fn read_wrk(text: &str) -> Result<Driven, LoadError> {
    let broken =
        text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    if let Some(line) = broken {
        return Err(LoadError::Unreadable(format!("a run with errors, wrk: {}", line.trim())));
    }
    let requests = text.lines().find_map(|line| {
        let (number, _) = line.trim().split_once(" requests in ")?;
        number.parse().ok()
    });
    let p99 = text.lines().find_map(|line| duration(line.trim().strip_prefix("99%")?.trim()));
    match (requests, p99) {
        (Some(requests), Some(p99)) if requests > 0 => Ok(Driven { requests, p99 }),
        _ => Err(LoadError::Unreadable(format!("wrk's words: {text}"))),
    }
}

/// Reads h2load's words.
///
/// # Errors
/// When they cannot be read, or say that not every answer was 2xx.
pub(crate) fn read_h2load(text: &str) -> Result<Driven, LoadError> {
    let line = |start| text.lines().find_map(|line| line.trim().strip_prefix(start));
    let number = |line: &str, name: &str| {
        let part = line.split(',').find_map(|part| part.trim().strip_suffix(name));
        part.and_then(|part| part.trim().parse::<u64>().ok())
    };
    let read = || {
        let requests = line("requests:")?;
        let codes = line("status codes:")?;
        let bad = number(requests, " failed")? + number(requests, " errored")?;
        Some((number(requests, " done")?, number(codes, " 2xx")?, bad))
    };
    match read() {
        Some((done, good, 0)) if done > 0 && good >= done => Ok(Driven { requests: done, p99: 0 }),
        Some((done, good, bad)) => Err(LoadError::Unreadable(format!(
            "a run with errors, h2load: {done} done, {good} with 2xx, {bad} failed"
        ))),
        None => Err(LoadError::Unreadable(format!("h2load's words: {text}"))),
    }
}

/// A length of time as wrk writes it, in ns: `839.00us`, `1.65ms`, `2.00s`.
fn duration(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let (whole, part) = text.strip_suffix(unit)?.split_once('.')?;
    let scale: u64 = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        _ => return None,
    };
    let hundredths: u64 = if part.len() == 2 { part.parse().ok()? } else { return None };
    Some(whole.parse::<u64>().ok()?.checked_mul(scale)?.saturating_add(hundredths * scale / 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: wrk's requests and its 99th percentile are read in each of its units; a run with errors is none.
    #[test]
    fn wrk_is_read() {
        let text = |p99: &str| {
            format!(
                "  Latency Distribution\n     50%  839.00us\n     99%    {p99}\n  137087 requests in 2.00s, 16.3MB read\n"
            )
        };
        for (said, nanos) in
            [("839.05us", 839_050), ("1.65ms", 1_650_000), ("2.00s", 2_000_000_000)]
        {
            let driven = read_wrk(&text(said)).unwrap();
            assert_eq!(driven, Driven { requests: 137_087, p99: nanos });
        }
        assert!(read_wrk(&text("1.65 parsecs")).is_err());
        assert!(read_wrk(&(text("1.65ms") + "  Non-2xx or 3xx responses: 1\n")).is_err());
        let sockets = "  Socket errors: connect 0, read 1, write 0, timeout 0\n";
        assert!(read_wrk(&(text("1.65ms") + sockets)).is_err());
        assert!(read_wrk("").is_err());
    }

    /// Goal: h2load's answers count only if all were good.
    #[test]
    fn h2load_is_read() {
        let text = |good: u64, errored: u64| {
            format!(
                "requests: 40 total, 50 started, 40 done, 40 succeeded, 0 failed, {errored} errored, 0 timeout\n\
                 status codes: {good} 2xx, 0 3xx, 0 4xx, 0 5xx\n"
            )
        };
        assert_eq!(read_h2load(&text(40, 0)).unwrap().requests, 40);
        assert!(read_h2load(&text(39, 0)).is_err());
        assert!(read_h2load(&text(40, 1)).is_err());
        assert!(read_h2load("requests: many").is_err());
    }
}
