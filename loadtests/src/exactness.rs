//! Many threads against one exact window of breaker-core, checked over every admission; it opens no socket.
//!
//! What can be known from outside. A decision judges some instant `r`, the later of the `now` it was given and the
//! newest recorded one. The caller knows only that it read the clock before the call (`b`) and after it (`a`),
//! and so `b <= r <= a`: the newest recorded instant was read from the same clock before this call ended.
//!
//! - *Never more than N in any interval (t - W, t]* means: of the recorded instants in order, the (k+N)-th comes at
//!   least W after the k-th. The k-th smallest `r` lies between the k-th smallest `b` and the k-th smallest `a`. So
//!   `a[k + N] - b[k] < W` for any k proves that N + 1 were admitted in one interval.
//! - *Never refused without need*: a refusal is unjust if fewer than N recorded instants lay in (r - W, r]. Every
//!   admission that could lie there has `a > b(refusal) - W` and `b <= a(refusal)`. Fewer than N of those prove it unjust.
//!
//! Both checks can only miss by the time a call takes; neither can accuse wrongly.

use crate::error::LoadError;
use crate::report::{Table, Verdict};
use breaker_core::{
    Breaker, Call, Capacity, GroupSpec, LimitKind, LimitSpec, Mono, PolicySpec, RouteSpec,
    ScopeSpec, Seed, Span, Verdict as Decision,
};
use breaker_core::{Class, Outcome};
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Hammers one window limit of breaker-core from many threads and checks every admission.
///
/// Needs nothing.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct ExactnessArgs {
    /// Threads.
    #[arg(long, default_value_t = 8)]
    threads: usize,
    /// Seconds to hammer.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Calls the window allows in one second.
    #[arg(long, default_value_t = 1000)]
    window: u64,
    /// Every how many refusals one is kept; those next to an admission are kept anyway.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    keep: u64,
}

/// Between which two instants a decision was made, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bracket {
    before: u64,
    after: u64,
}

/// What one thread saw.
#[derive(Debug, Default)]
struct Seen {
    admitted: Vec<Bracket>,
    refused: Vec<Bracket>,
    decisions: u64,
}

/// What is hammered, how long, and what is to be held to.
#[derive(Clone, Copy, Debug)]
struct Task {
    threads: usize,
    /// How long, in nanoseconds.
    time: u64,
    /// N.
    count: u64,
    /// W, in nanoseconds.
    length: u64,
    /// Every how many refusals one is kept.
    keep: u64,
}

/// Whether a call at this instant (nanoseconds) may pass.
type Decide<'a> = &'a (dyn Fn(u64) -> bool + Sync);

/// Runs the command.
///
/// # Errors
/// When the core refuses the policy or a thread panics.
pub(crate) fn run(args: &ExactnessArgs) -> Result<ExitCode, LoadError> {
    println!(
        "{} threads for {} s against one window of {} in 1 s",
        args.threads, args.seconds, args.window
    );
    let breaker = Breaker::new(Capacity { scopes: 16, keys: 16 }, Seed([1, 2]));
    let policy = breaker
        .compile(&spec(args.window))
        .map_err(|errors| LoadError::Core(format!("{errors:?}")))?;
    let (route, _) =
        policy.routes().next().ok_or_else(|| LoadError::Core("it has no route".to_owned()))?;
    let decide = |now| match breaker.admit(&policy, Call::new(route), Mono::from_nanos(now)) {
        Decision::Allow(permit) => {
            // Settled at once, at the same instant: only the window is looked at here.
            let _ = permit.settle(Outcome::Good, Mono::from_nanos(now));
            true
        }
        Decision::Deny(_) => false,
    };
    let task = Task {
        threads: args.threads,
        time: args.seconds.saturating_mul(SECOND),
        count: args.window,
        length: SECOND,
        keep: args.keep,
    };
    let verdict = examine(&task, hammer(&task, &decide)?);
    Ok(verdict.tell("never more than the window allows, and no refusal without need"))
}

const SECOND: u64 = 1_000_000_000;

/// The most refusals one thread keeps: 16 bytes each.
const MOST_KEPT: usize = 2_000_000;

/// All threads at once, each until the time is over.
fn hammer(task: &Task, decide: Decide<'_>) -> Result<Vec<Seen>, LoadError> {
    let barrier = Barrier::new(task.threads);
    // `Instant` is CLOCK_MONOTONIC on Linux. One window of room below the first instant spares underflow.
    let origin = Instant::now();
    let now = || task.length + nanos(origin.elapsed());
    let hit = || {
        let mut seen = Seen::default();
        let mut last_refused = None;
        let mut after_admission = false;
        barrier.wait();
        let start = now();
        loop {
            let before = now();
            let admitted = decide(before);
            let bracket = Bracket { before, after: now() };
            seen.decisions += 1;
            if admitted {
                seen.admitted.push(bracket);
                // The refusals just before and just after an admission are the ones most likely to be wrong.
                seen.refused.extend(last_refused.take());
            } else {
                let keep = after_admission || seen.decisions.is_multiple_of(task.keep);
                if keep && seen.refused.len() < MOST_KEPT {
                    seen.refused.push(bracket);
                    last_refused = None;
                } else {
                    last_refused = Some(bracket);
                }
            }
            after_admission = admitted;
            if bracket.after.saturating_sub(start) >= task.time {
                return seen;
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..task.threads).map(|_| scope.spawn(hit)).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| LoadError::Thread)).collect()
    })
}

/// Checks everything that was seen; prints the table.
fn examine(task: &Task, seen: Vec<Seen>) -> Verdict {
    let decisions: u64 = seen.iter().map(|seen| seen.decisions).sum();
    let (admitted, refused): (Vec<_>, Vec<_>) =
        seen.into_iter().map(|seen| (seen.admitted, seen.refused)).unzip();
    let (admitted, refused) = (admitted.concat(), refused.concat());
    let count = usize::try_from(task.count).unwrap_or(usize::MAX);
    let order = Order::of(&admitted);
    let most = order.most_certain(task.length);
    let shortest = order.shortest(count);
    let unjust = refused.iter().filter(|one| !order.is_just(one, count, task.length)).count();
    let mut table = Table::new(&[
        "admitted",
        "most at once",
        "shortest ns",
        "refusals checked",
        "unjust",
        "decisions/s",
    ]);
    let per_second = u128::from(decisions) * u128::from(SECOND) / u128::from(task.time.max(1));
    table.row(vec![
        admitted.len().to_string(),
        most.to_string(),
        shortest.map_or("-".to_owned(), |nanos| nanos.to_string()),
        refused.len().to_string(),
        unjust.to_string(),
        per_second.to_string(),
    ]);
    println!("{table}");
    let mut verdict = Verdict::default();
    verdict.check(shortest.is_none_or(|nanos| nanos >= task.length), || {
        format!("{} calls were admitted within {} ns", count + 1, shortest.unwrap_or(0))
    });
    verdict.check(most <= count, || format!("{most} calls were admitted within one window"));
    verdict.check(unjust == 0, || format!("{unjust} calls were refused although there was room"));
    // Hammering fills each window: with fewer, the checks above had nothing to bite on.
    let least = task.count.saturating_mul(task.time / task.length.max(1));
    let total = u64::try_from(admitted.len()).unwrap_or(u64::MAX);
    verdict.check(total >= least, || format!("only {total} of at least {least} were admitted"));
    verdict.check(!refused.is_empty(), || "nothing was refused".to_owned());
    verdict
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn spec(window: u64) -> PolicySpec {
    let limit = LimitSpec::new(LimitKind::Window { count: window, length: Span::from_secs(1) });
    PolicySpec {
        groups: vec![GroupSpec { name: "g".to_owned(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "r".to_owned(),
            group: "g".to_owned(),
            class: Class::Normal,
            scope: ScopeSpec { limits: vec![limit], ..ScopeSpec::default() },
        }],
        ..PolicySpec::default()
    }
}

/// Admissions in order: of their earliest and of their latest possible instants, each for itself.
#[derive(Debug)]
struct Order {
    before: Vec<u64>,
    after: Vec<u64>,
}

impl Order {
    fn of(admitted: &[Bracket]) -> Order {
        let mut before: Vec<u64> = admitted.iter().map(|bracket| bracket.before).collect();
        let mut after: Vec<u64> = admitted.iter().map(|bracket| bracket.after).collect();
        before.sort_unstable();
        after.sort_unstable();
        Order { before, after }
    }

    /// The longest time in which `count + 1` admissions in a row can have happened, where it is shortest. Below the
    /// window's length it proves one too many. `None` with no `count + 1` admissions.
    fn shortest(&self, count: usize) -> Option<u64> {
        let later = self.after.iter().skip(count);
        self.before.iter().zip(later).map(|(before, after)| after.saturating_sub(*before)).min()
    }

    /// The most admissions that certainly lie within one interval (t - length, t].
    fn most_certain(&self, length: u64) -> usize {
        let mut most = 0;
        let mut gone = 0;
        for (index, &after) in self.after.iter().enumerate() {
            while self
                .before
                .get(gone)
                .is_some_and(|&before| after.saturating_sub(before) >= length)
            {
                gone += 1;
            }
            // In order statistics: places gone..=index lie between before[gone] and this instant.
            most = most.max((index + 1).saturating_sub(gone));
        }
        most
    }

    /// Whether at least `count` admissions can have stood in the window that a refusal judged.
    fn is_just(&self, refusal: &Bracket, count: usize, length: u64) -> bool {
        let begun = self.before.partition_point(|&before| before <= refusal.after);
        let since = refusal.before.checked_sub(length);
        let gone = since.map_or(0, |since| self.after.partition_point(|&after| after <= since));
        begun.saturating_sub(gone) >= count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(instants: &[u64]) -> Vec<Bracket> {
        instants.iter().map(|&at| Bracket { before: at, after: at }).collect()
    }

    /// Goal: N in any interval of length W passes, also when N + 1 stand exactly W apart; one nanosecond less is seen.
    #[test]
    fn one_too_many_is_seen_and_exactly_enough_is_not() {
        let right = Order::of(&at(&[5, 6, 7, 15, 16, 17]));
        assert_eq!(right.shortest(3), Some(10));
        assert_eq!(right.most_certain(10), 3);
        let wrong = Order::of(&at(&[5, 6, 7, 14, 16, 17]));
        assert_eq!(wrong.shortest(3), Some(9));
        assert_eq!(wrong.most_certain(10), 4);
        assert_eq!(Order::of(&at(&[1, 2])).shortest(3), None);
    }

    /// Goal: a bracket that leaves room for the right order accuses nobody, one that leaves none does.
    #[test]
    fn doubt_speaks_for_the_accused() {
        let mut admitted = at(&[5, 6, 7, 16, 17]);
        admitted.push(Bracket { before: 14, after: 15 });
        let doubtful = Order::of(&admitted);
        assert_eq!(doubtful.shortest(3), Some(10));
        assert_eq!(doubtful.most_certain(10), 3);
        admitted.push(Bracket { before: 7, after: 13 });
        assert!(Order::of(&admitted).shortest(3).unwrap() < 10);
    }

    /// Goal: the greedy count agrees with the slow and obvious one for exact instants.
    #[test]
    fn the_best_interval_is_the_best_of_all() {
        let mut state = 1_u64;
        for _ in 0..200 {
            let mut instants = Vec::new();
            for _ in 0..40 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                instants.push(20 + (state >> 33) % 100);
            }
            let slow = instants
                .iter()
                .map(|&end| instants.iter().filter(|&&at| at > end - 10 && at <= end).count())
                .max();
            assert_eq!(Some(Order::of(&at(&instants)).most_certain(10)), slow);
        }
    }

    /// Goal: a refusal is just while N stand in the window, and unjust from the instant the oldest leaves it.
    #[test]
    fn a_refusal_without_need_is_seen() {
        let order = Order::of(&at(&[5, 6, 7]));
        let refused = |before, after| order.is_just(&Bracket { before, after }, 3, 10);
        assert!(refused(7, 7) && refused(14, 14));
        assert!(!refused(15, 15), "5 has left (5, 15]");
        assert!(refused(14, 20), "it may have judged 14");
        assert!(!refused(6, 6), "7 was not yet");
        assert!(refused(6, 7), "7 may have been");
    }

    /// 20 windows of 2 ms.
    const SMALL: Task =
        Task { threads: 4, time: 40_000_000, count: 100, length: 2_000_000, keep: 8 };

    fn verdict(decide: Decide<'_>) -> Verdict {
        examine(&SMALL, hammer(&SMALL, decide).unwrap())
    }

    /// A window under a lock: exact for the later of `now` and the newest recorded instant, with room for `count`.
    fn locked(count: usize) -> impl Fn(u64) -> bool + Sync {
        let recorded = parking_lot::Mutex::new(std::collections::VecDeque::new());
        move |now| {
            let mut recorded = recorded.lock();
            let now = recorded.back().copied().unwrap_or(0).max(now);
            while recorded.front().is_some_and(|&oldest| oldest + SMALL.length <= now) {
                recorded.pop_front();
            }
            let admitted = recorded.len() < count;
            if admitted {
                recorded.push_back(now);
            }
            admitted
        }
    }

    /// Goal: an exact window passes, however its threads are scheduled.
    #[test]
    fn an_exact_window_passes() {
        let verdict = verdict(&locked(100));
        // On a starved machine fewer windows may be filled than there were; everything else must hold.
        let failures = verdict.failures.iter().filter(|failure| !failure.starts_with("only"));
        assert_eq!(failures.count(), 0, "{verdict:?}");
    }

    /// Goal: one call too many in a window is caught, and so is one too few.
    #[test]
    fn a_window_off_by_one_is_caught() {
        assert!(!verdict(&locked(101)).passed());
        assert!(!verdict(&locked(99)).passed());
    }

    /// Goal: the common mistake is caught: a counter that starts anew at fixed times lets twice as many pass around
    /// such a time.
    #[test]
    fn a_counter_that_starts_anew_is_caught() {
        let state = parking_lot::Mutex::new((0, 0_u64));
        let decide = |now: u64| {
            let mut state = state.lock();
            let window = now / SMALL.length;
            if state.0 != window {
                *state = (window, 0);
            }
            state.1 += 1;
            // The first half of each window waits, so that the calls gather at its end and the next one's start.
            state.1 <= 100 && (window.is_multiple_of(2) || now % SMALL.length > SMALL.length / 2)
        };
        let verdict = verdict(&decide);
        assert!(
            verdict.failures.iter().any(|one| one.contains("were admitted within")),
            "{verdict:?}"
        );
    }
}
