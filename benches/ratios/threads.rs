//! Several pinned threads on one object: samples in a box of time, and which of them were undisturbed.

use std::hint::{black_box, spin_loop};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use breaker_benches::figures::{Samples, real};
use breaker_benches::rounds::Measured;
use nix::time::{ClockId, clock_gettime};

/// Something that several threads do to one object.
pub(crate) struct Shared {
    pub(crate) name: &'static str,
    /// Called in each thread: what runs so many turns there.
    make: Box<dyn Fn() -> Box<dyn FnMut(usize)> + Sync>,
}

/// What several threads did in one box of time.
#[derive(Clone, Copy)]
pub(crate) struct Contended {
    /// Wall nanoseconds between two turns of all threads together.
    pub(crate) apart: f64,
    /// Nanoseconds of processor time that a turn took, whoever made it.
    pub(crate) each: f64,
    /// Each thread had its processor all the time.
    pub(crate) undisturbed: bool,
}

struct Ran {
    turns: usize,
    began: Instant,
    ended: Instant,
    processor: Duration,
}

impl Shared {
    pub(crate) fn new<R, T: FnMut() -> R + 'static>(
        name: &'static str,
        make: impl Fn() -> T + Sync + 'static,
    ) -> Shared {
        let make = move || {
            let mut turn = make();
            let run = move |turns: usize| {
                for _ in 0..turns {
                    black_box(turn());
                }
            };
            Box::new(run) as Box<dyn FnMut(usize)>
        };
        Shared { name, make: Box::new(make) }
    }

    /// Lets so many threads run for so long at the same time.
    pub(crate) fn sample(&self, threads: usize, span: Duration) -> Contended {
        let (arrived, end) = (AtomicUsize::new(0), OnceLock::new());
        let all: Vec<Ran> = thread::scope(|scope| {
            let start = |number| {
                let (arrived, end) = (&arrived, &end);
                scope.spawn(move || {
                    pin(number);
                    let mut run = (self.make)();
                    run(CHUNK);
                    meet(arrived, threads);
                    // One end for all: a thread that comes late runs for less.
                    run_until(&mut run, *end.get_or_init(|| Instant::now() + span))
                })
            };
            let handles: Vec<_> = (0..threads).map(start).collect();
            handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
        });
        assert_eq!(all.len(), threads, "a measuring thread panicked");
        let turns = real(all.iter().map(|ran| ran.turns).sum());
        let began = all.iter().map(|ran| ran.began).min();
        let ended = all.iter().map(|ran| ran.ended).max();
        let wall = ended.zip(began).map_or(Duration::ZERO, |(ended, began)| ended - began);
        let processor: Duration = all.iter().map(|ran| ran.processor).sum();
        let least = real(threads) * wall.as_secs_f64() * 0.97;
        Contended {
            apart: wall.as_secs_f64() * 1e9 / turns,
            each: processor.as_secs_f64() * 1e9 / turns,
            undisturbed: processor.as_secs_f64() > least,
        }
    }

    /// The first sample in which every thread had its processor all the time; `None` if no try gives one.
    pub(crate) fn undisturbed(&self, threads: usize, span: Duration) -> Option<Contended> {
        (0..TRIES).map(|_| self.sample(threads, span)).find(|sample| sample.undisturbed)
    }
}

/// All cases with two threads, each once per round; of a round in which a thread lost its processor the sample is
/// taken again, and left out (NaN) if that never ends. The figure is nanoseconds per turn of one thread.
pub(crate) fn measure_pairs(
    cases: &[Shared],
    rounds: usize,
    progress: &mut dyn FnMut(usize),
) -> Vec<Measured> {
    let empty = |case: &Shared| Measured { name: case.name, samples: Samples::default() };
    let mut all: Vec<Measured> = cases.iter().map(empty).collect();
    for round in 0..rounds {
        for (case, measured) in cases.iter().zip(&mut all) {
            let clean = case.undisturbed(2, PAIR_SAMPLE);
            measured.samples.push(clean.map_or(f64::NAN, |sample| 2.0 * sample.apart));
        }
        progress(round + 1);
    }
    all
}

/// Pins this thread to a processor, in turn; without the right to, it runs where it is put.
pub(crate) fn pin(number: usize) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(&core) = cores.get(number % cores.len().max(1)) {
        core_affinity::set_for_current(core);
    }
}

/// Waits until so many threads have come here.
pub(crate) fn meet(arrived: &AtomicUsize, threads: usize) {
    // ordering: release and acquire, so that what was done before is done for all after.
    arrived.fetch_add(1, Ordering::Release);
    let mut turns = 0_u32;
    while arrived.load(Ordering::Acquire) < threads {
        turns += 1;
        if turns.is_multiple_of(1_000) {
            thread::yield_now();
        }
        spin_loop();
    }
}

/// The processor time of the calling thread.
pub(crate) fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn run_until(run: &mut dyn FnMut(usize), end: Instant) -> Ran {
    let (began, before) = (Instant::now(), processor_time());
    let mut turns = 0;
    loop {
        run(CHUNK);
        turns += CHUNK;
        let ended = Instant::now();
        if ended >= end {
            let processor = processor_time().saturating_sub(before);
            return Ran { turns, began, ended, processor };
        }
    }
}

/// Turns between two looks at the clock.
const CHUNK: usize = 256;
/// One sample of two threads; shorter than a turn of the scheduler.
pub(crate) const PAIR_SAMPLE: Duration = Duration::from_millis(2);
/// Tries for an undisturbed sample.
const TRIES: usize = 24;
