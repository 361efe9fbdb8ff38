//! A ready clock for embedders, on the processor's counter while that can be believed; nothing else in the crate asks it.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Instant;

use crate::sync::{AtomicU64, Ordering};
use crate::time::Mono;

/// The time of this process in nanoseconds, for `now` in all calls. It never runs back.
///
/// It reads the processor's counter (TSC on x86, the system counter on ARM), scaled by the crate `quanta`, where
/// the processor says that it ticks at one rate, and the operating system's monotonic clock elsewhere. All
/// clocks of a process are one: their instants can be compared, across threads as well.
///
/// A counter is a promise that some machines break: cores that are not in step, a virtual machine that moved to another host, a
/// sleep that set it to zero. So every reading is held against the newest one of any thread, and once in a
/// millisecond against the operating system. A counter that lies behind by more than 10 µs, or has strayed by more than 50 ms and
/// 0.1 %, is given up for the operating system's clock, for the life of the process and without a step back;
/// [`MonotonicClock::source`] tells.
///
/// - One thread never sees time run back.
/// - Of two threads one may be behind the other by what their cores are out of step, and never by more than a millisecond.
///   The core is made for that: state that is newer than `now` wins.
/// - It stops at the end of `u64`, after 584 years, and does not count while the machine sleeps.
///
/// The first clock of a process takes up to 200 ms to be made, while the counter is calibrated. Make it at the start.
#[derive(Clone, Copy)]
pub struct MonotonicClock(&'static House);

/// What a clock reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// The processor's counter, or what `quanta` reads on a processor without one.
    Counter,
    /// The operating system's monotonic clock: the counter was found wrong.
    System,
}

/// What all clocks of the process share.
struct House {
    counter: quanta::Clock,
    /// The counter's reading at the origin.
    origin: u64,
    system: Instant,
    steady: Steady,
}

/// Which of the two sources counts, and where time has got to.
#[repr(align(128))]
struct Steady {
    /// No reading lies before it. It follows the newest reading by [`STEP`] at most.
    floor: AtomicU64,
    /// What is added to the system's time, or [`TRUSTED`] while the counter counts.
    lead: AtomicU64,
}

impl MonotonicClock {
    /// The clock of this process.
    #[must_use]
    pub fn new() -> MonotonicClock {
        static HOUSE: OnceLock<House> = OnceLock::new();
        MonotonicClock(HOUSE.get_or_init(House::new))
    }

    /// Now: nanoseconds since this process made its first clock.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Mono {
        self.0.now()
    }

    /// The newest instant that any thread has got from [`MonotonicClock::now`], or up to a millisecond before it, without
    /// reading a clock. With a [`Driver`](crate::Driver) running it is at most a tick old. For what need not be exact, such as a
    /// refusal that is only counted; never to charge a limit.
    #[must_use]
    #[inline]
    pub fn recent(&self) -> Mono {
        latest(self.0.steady.floor())
    }

    /// What it reads at present. A change is worth a line in the log.
    #[must_use]
    pub fn source(&self) -> ClockSource {
        match self.0.steady.lead() {
            TRUSTED => ClockSource::Counter,
            _ => ClockSource::System,
        }
    }

    /// Holds the counter against the operating system now, and not only when a reading is due to. The
    /// driver does so at every tick.
    #[expect(clippy::must_use_candidate, reason = "the check is the point; the answer is a hint")]
    pub fn check(&self) -> ClockSource {
        let house = self.0;
        house.steady.check(|| house.counted(), || house.system());
        self.source()
    }
}

impl House {
    #[expect(clippy::disallowed_methods, reason = "a clock reads the time: here and nowhere else")]
    fn new() -> House {
        let counter = quanta::Clock::new();
        let (origin, system) = (counter.raw(), Instant::now());
        House { counter, origin, system, steady: Steady::new() }
    }

    #[inline]
    fn now(&self) -> Mono {
        latest(self.steady.read(|| self.counted(), || self.system()))
    }

    #[inline]
    fn counted(&self) -> u64 {
        self.counter.delta_as_nanos(self.origin, self.counter.raw())
    }

    #[inline(never)]
    fn system(&self) -> u64 {
        u64::try_from(self.system.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Steady {
    const fn new() -> Steady {
        Steady { floor: AtomicU64::new(0), lead: AtomicU64::new(TRUSTED) }
    }

    fn floor(&self) -> u64 {
        // ordering: relaxed, for an instant stands alone.
        self.floor.load(Ordering::Relaxed)
    }

    fn lead(&self) -> u64 {
        // ordering: relaxed, for it is one word and set once.
        self.lead.load(Ordering::Relaxed)
    }

    /// A reading, from what the counter and the system say has passed.
    #[inline]
    fn read(&self, counter: impl Fn() -> u64, system: impl Fn() -> u64) -> u64 {
        if self.lead() != TRUSTED {
            return self.of_system(system());
        }
        // The floor first: a thread that is held up between the two must not take its own lateness for the counter's.
        let floor = self.floor();
        let counted = counter();
        // Behind the floor wraps to far ahead: one comparison for the two.
        if counted.wrapping_sub(floor) <= STEP {
            return counted;
        }
        self.check(counter, system)
    }

    /// Judges the counter by a reading between two of the system, and raises the floor.
    #[cold]
    fn check(&self, counter: impl Fn() -> u64, system: impl Fn() -> u64) -> u64 {
        let floor = self.floor();
        let (before, counted, after) = (system(), counter(), system());
        let stray = STRAY.saturating_add(after >> STRAY_SHIFT);
        let behind = counted.saturating_add(SKEW) < floor;
        let strayed =
            counted.saturating_add(stray) < before || counted > after.saturating_add(stray);
        if self.lead() == TRUSTED && (behind || strayed) {
            // Time goes on where it had got to.
            let lead = self.floor().saturating_sub(after).min(TRUSTED - 1);
            // ordering: relaxed, for the word stands alone; the first to find out decides.
            let _ = self.lead.compare_exchange(TRUSTED, lead, Ordering::Relaxed, Ordering::Relaxed);
        }
        if self.lead() != TRUSTED {
            return self.of_system(after);
        }
        self.raised(counted)
    }

    fn of_system(&self, system: u64) -> u64 {
        let reading = system.saturating_add(self.lead());
        if reading.wrapping_sub(self.floor()) <= STEP { reading } else { self.raised(reading) }
    }

    /// A reading that is not before the floor, which follows it.
    fn raised(&self, reading: u64) -> u64 {
        // ordering: relaxed, for an instant stands alone; the maximum makes it never fall.
        reading.max(self.floor.fetch_max(reading, Ordering::Relaxed))
    }
}

/// The reading, or this thread's last one if that was later.
#[inline]
fn latest(reading: u64) -> Mono {
    thread_local!(static LAST: Cell<u64> = const { Cell::new(0) });
    LAST.with(|last| {
        let reading = reading.max(last.get());
        last.set(reading);
        Mono::from_nanos(reading)
    })
}

impl Default for MonotonicClock {
    fn default() -> MonotonicClock {
        MonotonicClock::new()
    }
}

impl std::fmt::Debug for MonotonicClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MonotonicClock").field("source", &self.source()).finish_non_exhaustive()
    }
}

/// The counter counts.
const TRUSTED: u64 = u64::MAX;
/// Readings raise the floor when they have got so far beyond it, in nanoseconds.
const STEP: u64 = 1_000_000;
/// So far behind the floor a counter may be, in nanoseconds: cores that are in step differ by less than a microsecond.
const SKEW: u64 = 10_000;
/// So far from the system's time the counter may be, in nanoseconds, …
const STRAY: u64 = 50_000_000;
/// … and by this share of the time passed, as a shift: calibration errs by some millionths, and the system's clock is
/// slewed by 500 millionths at most.
const STRAY_SHIFT: u32 = 10;

#[cfg(test)]
mod tests {
    use super::{ClockSource, MonotonicClock, STEP, Steady, TRUSTED};
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn read(steady: &Steady, counter: u64, system: u64) -> u64 {
        steady.read(|| counter, || system)
    }

    /// Goal: a good counter is read as it is, and the system is asked about once in a millisecond.
    #[test]
    fn a_good_counter_is_believed() {
        let steady = Steady::new();
        let asked = std::cell::Cell::new(0);
        for nanos in (0..SECOND).step_by(10_000) {
            let reading = steady.read(
                || nanos,
                || {
                    asked.set(asked.get() + 1);
                    nanos + 300
                },
            );
            assert_eq!(reading, nanos);
        }
        assert!((1_800..=2_000).contains(&asked.get()), "{asked:?}");
        assert_eq!(steady.lead(), TRUSTED);
    }

    /// Goal: a core whose counter is 1.6 s behind the others', as some laptops have it, is found out at its first
    /// reading; time goes on from where it had got to.
    #[test]
    fn a_core_out_of_step_is_found_out() {
        let steady = Steady::new();
        assert_eq!(read(&steady, 2 * SECOND, 2 * SECOND), 2 * SECOND);
        let behind = read(&steady, 400_000_000, 2 * SECOND + 5);
        assert_eq!(behind, 2 * SECOND + 5);
        assert_ne!(steady.lead(), TRUSTED, "for good");
        assert_eq!(read(&steady, 9 * SECOND, 2 * SECOND + 9), 2 * SECOND + 9);
    }

    /// Goal: a counter that leaps ahead is found out before anybody sees the leap.
    #[test]
    fn a_leap_ahead_is_never_told() {
        let steady = Steady::new();
        assert_eq!(read(&steady, SECOND, SECOND), SECOND);
        assert_eq!(read(&steady, 3_600 * SECOND, SECOND + 7), SECOND + 7);
        assert_ne!(steady.lead(), TRUSTED);
    }

    /// Goal: a thread that is held up for a second in the middle of a reading, at any of its steps, does not take its own lateness for
    /// an error of the counter.
    #[test]
    fn a_thread_held_up_in_mid_reading_blames_nobody() {
        for held_up_at in 0..4 {
            let steady = Steady::new();
            assert_eq!(read(&steady, SECOND, SECOND), SECOND);
            let time = std::cell::Cell::new(SECOND + 2_000_000);
            let step = std::cell::Cell::new(0);
            let told = || {
                let now = time.get();
                if step.get() == held_up_at {
                    // Meanwhile others read on.
                    time.set(now + SECOND);
                    steady.raised(now + SECOND);
                }
                step.set(step.get() + 1);
                now
            };
            let reading = steady.read(told, told);
            assert!(reading >= SECOND + 2_000_000);
            assert_eq!(steady.lead(), TRUSTED, "held up at {held_up_at}");
        }
    }

    /// Goal: a counter that stands still is found out at a check, and time moves again.
    #[test]
    fn a_counter_that_stands_is_found_out() {
        let steady = Steady::new();
        read(&steady, SECOND, SECOND);
        assert_eq!(steady.check(|| SECOND + 1, || SECOND + 1), SECOND + 1);
        assert_eq!(steady.check(|| SECOND + 1, || 2 * SECOND), 2 * SECOND);
        assert_ne!(steady.lead(), TRUSTED);
    }

    /// Goal: after the counter is given up no reading lies before one of a millisecond earlier, although the system is behind
    /// what was told.
    #[test]
    fn the_change_of_source_is_no_step_back() {
        let steady = Steady::new();
        let ahead = SECOND + 40_000_000;
        assert_eq!(read(&steady, ahead, SECOND), ahead, "within what is tolerated");
        assert_eq!(read(&steady, 5, SECOND + 10), ahead);
        assert_eq!(read(&steady, 5, SECOND + 30), ahead + 20);
    }

    proptest! {
        /// Goal: whatever the two sources say, readings never fall behind the newest one by more than a millisecond.
        #[test]
        fn no_reading_is_far_behind_another(
            steps in proptest::collection::vec((any::<u64>(), 0..5_000_000_u64, any::<bool>()), 1..200)
        ) {
            let steady = Steady::new();
            let (mut system, mut newest) = (0, 0_u64);
            for (wild, passed, good) in steps {
                system += passed;
                let reading = read(&steady, if good { system } else { wild }, system);
                prop_assert!(reading.saturating_add(STEP) >= newest, "{} after {}", reading, newest);
                newest = newest.max(reading);
            }
        }
    }

    /// Goal: on this machine, whatever it has: no thread sees time run back, a reading that is handed on is at most a millisecond
    /// ahead of the next one elsewhere, and all clocks are one.
    #[test]
    fn threads_see_time_go_on() {
        let clock = MonotonicClock::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    let mut last = clock.now();
                    for _ in 0..20_000 {
                        let now = MonotonicClock::new().now();
                        assert!(now >= last);
                        assert!(clock.recent() >= now, "as new as this thread's last");
                        last = now;
                    }
                });
            }
        });
        let handed_on = clock.now();
        let later = std::thread::scope(|scope| scope.spawn(move || clock.now()).join().unwrap());
        assert!(later.as_nanos() + STEP >= handed_on.as_nanos());
        assert!(matches!(clock.check(), ClockSource::Counter | ClockSource::System));
    }
}
