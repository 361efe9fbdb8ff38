//! What processes have used, as the kernel tells it: processor time, memory, system calls; it starts no load.

use crate::clients::beside;
use crate::error::LoadError;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// How busy the machine was since some moment, and how much of that was ours.
#[derive(Debug)]
pub(crate) struct Watch {
    start: Instant,
    busy: u64,
    own: u64,
}

impl Watch {
    /// From now on.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn start() -> Result<Watch, LoadError> {
        Ok(Watch { start: Instant::now(), busy: busy()?, own: own()? })
    }

    /// The share of the whole machine that was taken by programs which are neither this one nor descend from it, in
    /// thousandths.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn others(&self) -> Result<u64, LoadError> {
        let own = own()?.saturating_sub(self.own);
        let others = busy()?.saturating_sub(self.busy).saturating_sub(own);
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let whole = elapsed.saturating_mul(u64::try_from(cores).unwrap_or(1));
        Ok(others.saturating_mul(1_000).checked_div(whole).unwrap_or(0))
    }
}

/// Nanoseconds that all cores together were not idle, in steps of a tick.
fn busy() -> Result<u64, LoadError> {
    let text = fs::read_to_string("/proc/stat").map_err(LoadError::io("read how busy it is"))?;
    busy_in(&text).ok_or_else(|| unreadable(&text))
}

/// User, nice, system, irq and softirq of the first line; idle, waiting and stolen time are not ours to share.
fn busy_in(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, irq, softirq, ..] = ticks.as_slice() else {
        return None;
    };
    Some([user, nice, system, irq, softirq].into_iter().sum::<u64>().saturating_mul(TICK))
}

/// Linux tells user space of 100 ticks a second, whatever it uses inside.
const TICK: u64 = 10_000_000;

/// Nanoseconds of this program, of what descends from it and lives, and of what did and was waited for.
fn own() -> Result<u64, LoadError> {
    let own = std::process::id();
    let living: Vec<u32> = family(own)?.into_iter().filter(|&pid| pid != own).collect();
    let mut sum = 0_u64;
    for pid in living {
        // It may have ended since it was listed: then it is found among those that were waited for.
        sum = sum.saturating_add(on_processor(&[pid]).unwrap_or(0));
    }
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)
            .map_err(std::io::Error::from)
            .map_err(LoadError::io("read the own account"))?;
        for time in [usage.user_time(), usage.system_time()] {
            sum = sum.saturating_add(u64::try_from(time.num_nanoseconds()).unwrap_or(0));
        }
    }
    Ok(sum)
}

/// A program's process and all that descend from it.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn family(pid: u32) -> Result<Vec<u32>, LoadError> {
    let mut seen = BTreeSet::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        if !seen.insert(pid) {
            continue;
        }
        // A descendant, or one of its threads, may have ended since it was listed.
        let list = match threads(pid) {
            Ok(list) => list,
            Err(error) if seen.len() == 1 => return Err(error),
            Err(_) => continue,
        };
        for thread in list {
            let Ok(children) = fs::read_to_string(thread.join("children")) else { continue };
            next.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    Ok(seen.into_iter().collect())
}

/// Nanoseconds on a processor, user and kernel, over all threads that live. It is the scheduler's own account, not one
/// of ticks.
///
/// # Errors
/// When a process is gone or the kernel keeps no such account.
pub(crate) fn on_processor(pids: &[u32]) -> Result<u64, LoadError> {
    let mut sum = 0_u64;
    for &pid in pids {
        for thread in threads(pid)? {
            // A thread may have ended since it was listed.
            let Ok(text) = fs::read_to_string(thread.join("schedstat")) else { continue };
            sum = sum.saturating_add(first_number(&text).ok_or_else(|| unreadable(&text))?);
        }
    }
    Ok(sum)
}

/// KiB of memory that stand in RAM. Of several processes the sum, in which a page they share counts once for each.
///
/// # Errors
/// When a process is gone.
pub(crate) fn resident(pids: &[u32]) -> Result<u64, LoadError> {
    let mut sum = 0_u64;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(LoadError::io("read what memory a process has"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        sum = sum.saturating_add(line.and_then(first_number).ok_or_else(|| unreadable(&text))?);
    }
    Ok(sum)
}

/// Runs `load` and counts the system calls that the processes begin meanwhile; gives what `load` printed, too.
///
/// # Errors
/// When perf is missing or may not count, or the load fails.
pub(crate) fn system_calls(
    pids: &[u32],
    load: &Command,
    dir: &Path,
) -> Result<(String, u64), LoadError> {
    let counts = dir.join("counts");
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut command = Command::new("perf");
    command.args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &pids.join(","), "-o"]);
    command.arg(&counts).arg("--").arg(load.get_program()).args(load.get_args());
    let said = beside(command, "perf", &mut || Ok(()))?;
    let text = fs::read_to_string(&counts).map_err(LoadError::io("read what perf counted"))?;
    let line = text.lines().find(|line| line.contains("sys_enter"));
    let number = line.and_then(|line| line.split(',').next()?.parse().ok());
    Ok((said, number.ok_or_else(|| unreadable(&text))?))
}

/// Runs `load` and says where the processes spend their time meanwhile: the objects, then the functions, most first.
///
/// # Errors
/// When perf is missing or may not look, or the load fails.
pub(crate) fn profile(pids: &[u32], load: &Command, dir: &Path) -> Result<Vec<String>, LoadError> {
    let data = dir.join("profile");
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut record = Command::new("perf");
    record.args(["record", "-q", "-F", "1999", "-p", &pids.join(","), "-o"]);
    record.arg(&data).arg("--").arg(load.get_program()).args(load.get_args());
    beside(record, "perf", &mut || Ok(()))?;
    let mut lines = Vec::new();
    for (keys, most) in [("dso", 4), ("dso,symbol", 20)] {
        let mut report = Command::new("perf");
        report.args(["report", "--no-children", "--stdio", "-q", "--sort", keys, "-i"]).arg(&data);
        // A report is longer than a pipe holds; `beside` reads it to its end.
        let text = beside(report, "perf", &mut || Ok(()))?;
        lines.extend(text.lines().filter(|line| line.contains('%')).take(most).map(tidy));
    }
    Ok(lines)
}

/// One line of a report without the columns it leaves empty.
fn tidy(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "-").collect();
    words.join(" ")
}

/// The directories of a process's threads.
fn threads(pid: u32) -> Result<Vec<std::path::PathBuf>, LoadError> {
    let list = fs::read_dir(format!("/proc/{pid}/task"))
        .map_err(LoadError::io("list the threads of a process"))?;
    Ok(list.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn unreadable(text: &str) -> LoadError {
    LoadError::Unreadable(format!("an account of the kernel: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    /// Goal: a process has a family of at least itself, and its child belongs to it while it lives.
    #[test]
    fn a_child_is_family() {
        let mut command = Command::new("cat");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let family = family(std::process::id()).unwrap();
        assert!(family.contains(&std::process::id()) && family.contains(&child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    /// Goal: work done by a thread that lives is found in the account of its process.
    #[test]
    fn work_shows_in_the_account() {
        let own = [std::process::id()];
        let before = on_processor(&own).unwrap();
        crate::wait::until(
            "some work to be accounted for",
            std::time::Duration::from_secs(30),
            std::time::Duration::ZERO,
            || Ok((on_processor(&own)? > before).then_some(())),
        )
        .unwrap();
        assert!(resident(&own).unwrap() > 100);
    }

    /// Goal: the time of all cores is summed over the columns in which something runs.
    #[test]
    fn busy_time_is_read() {
        let text = "cpu  1 2 3 400 500 6 7 800 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_in(text), Some(19 * TICK));
        assert_eq!(busy_in("cpu  1 2"), None);
        assert_eq!(busy_in(""), None);
    }

    /// Goal: what this program does and what its children did is in the own account.
    #[test]
    fn own_work_is_accounted_for() {
        let before = own().unwrap();
        let patience = std::time::Duration::from_secs(30);
        crate::wait::until("own work", patience, std::time::Duration::ZERO, || {
            Ok((own()? > before + 20_000_000).then_some(()))
        })
        .unwrap();
        let children = || {
            let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
            usage.user_time().num_nanoseconds() + usage.system_time().num_nanoseconds()
        };
        let (own_before, children_before) = (own().unwrap(), children());
        let count = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", count]).status().unwrap().success());
        let child = u64::try_from(children() - children_before).unwrap();
        assert!(child > 1_000_000);
        // Children of other tests come and go meanwhile; none of them does any work.
        assert!(own().unwrap() >= own_before + child / 2);
    }

    /// Goal: numbers at the start of a line are read, and nothing else.
    #[test]
    fn numbers_at_the_start() {
        assert_eq!(first_number("  4711 kB"), Some(4711));
        assert_eq!(first_number("kB 4711"), None);
        assert_eq!(first_number(""), None);
    }
}
