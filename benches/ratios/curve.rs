//! What a hot scope gives to 1, 2, 4 and 8 threads, beside governor.

use std::thread;
use std::time::Duration;

use breaker_benches::figures::Samples;
use breaker_benches::report::{Table, nanos, ratio};

use crate::shared::{HOT_DIRECT, hot_governor, hot_leased, hot_rate, hot_window};
use crate::threads::PAIR_SAMPLE;

/// The curve as a table with what it means.
pub(crate) fn measure(rounds: usize, progress: &mut dyn FnMut(usize)) -> String {
    let cases = [hot_governor(), hot_rate(), hot_leased(), hot_window()];
    let mut all: Vec<Vec<Samples>> = vec![vec![Samples::default(); THREADS.len()]; cases.len()];
    let processors = thread::available_parallelism().map_or(1, usize::from);
    for round in 0..rounds {
        for (at, threads) in THREADS.into_iter().enumerate() {
            for (case, samples) in cases.iter().zip(&mut all) {
                let each = if threads <= processors {
                    case.undisturbed(threads, PAIR_SAMPLE).map_or(f64::NAN, |sample| sample.each)
                } else {
                    case.sample(threads, LONG).each
                };
                if let Some(samples) = samples.get_mut(at) {
                    samples.push(each);
                }
            }
        }
        progress(round + 1);
    }
    let mut table =
        Table::new(&["processor ns per decision, at so many threads", "1", "2", "4", "8"]);
    let governor = all.first().cloned().unwrap_or_default();
    for (case, samples) in cases.iter().zip(&all) {
        let cell = |(own, rival): (&Samples, &Samples)| {
            let beside = if case.name == HOT_DIRECT {
                String::new()
            } else {
                format!(" ({} ×)", ratio(own.ratios(rival).median()))
            };
            format!("{}{beside}", nanos(own.median()))
        };
        let mut cells = samples.iter().zip(&governor).map(cell);
        let mut next = || cells.next().unwrap_or_default();
        let name = case.name.replace("two threads, ", "").replace(", two threads", "");
        table.row([name, next(), next(), next(), next()]);
    }
    format!(
        "### The contention curve\n\n{}\n\
         On {processors} processors; in brackets the ratio to governor. With more threads than processors no more of \
         them run at once, and another program may have had one of the processors meanwhile.\n",
        table.markdown()
    )
}

const THREADS: [usize; 4] = [1, 2, 4, 8];
/// Long enough that eight threads on two processors all get their turn.
const LONG: Duration = Duration::from_millis(40);
