//! A rate that died: a scope that is hardly ever silent, silent for too long; pure.

use super::surge::halved;
use super::{Sighting, forgets, long, seconds, single, told, within};
use crate::time::{Mono, Span};

/// A rate that died. It can only warn: there is nothing to cut off.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Silence {
    /// Only scopes that had calls in this share of the last 360 minutes are judged, 0.1 to 1. 0.8 unless said.
    pub active: f64,
    /// Calls that should have come in the meantime, by the rate of the last 20 minutes with calls. For a
    /// Poisson stream, e to the minus so many is the chance of it; 18 unless said.
    pub missed: f64,
    /// Shorter silence is none. 45 s unless said.
    pub least: Span,
    /// Times the longest believed gap, which halves daily. 1.7 unless said.
    pub times: f64,
    /// Times this hour of the day's longest believed gap. 1.4 unless said.
    pub hour_times: f64,
    /// The ceiling: longer silence is found whatever gaps were believed. 1 h unless said.
    pub ceiling: Span,
}

impl Default for Silence {
    fn default() -> Silence {
        Silence {
            active: 0.8,
            missed: 18.0,
            least: Span::from_secs(45),
            times: 1.7,
            hour_times: 1.4,
            ceiling: Span::from_secs(3_600),
        }
    }
}

/// What a look sees.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pulse {
    /// When the last call came, within half a second; `None` if there never was one.
    pub(crate) last: Option<Mono>,
    /// Calls a second in the last minutes.
    pub(crate) rate: f64,
    /// Seconds since the last look.
    pub(crate) elapsed: f64,
}

/// What one scope remembers of its silences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SilenceMemory {
    last: Mono,
    /// Calls a second.
    pub(crate) rate: f32,
    /// One bit for each of the last 360 minutes in which a call came.
    pub(crate) minutes: [u64; 6],
    /// The number of the newest minute in it.
    minute: u64,
    /// The longest believed gap in seconds.
    pub(crate) gap: f32,
    /// By hour of the day.
    pub(crate) hours: [f32; 24],
    /// The longest gaps of the running epoch and the two before it; not yet believed.
    waiting: [f32; 3],
    /// A silence was found and lasts: it is none of the gaps to believe.
    lasting: bool,
}

impl Silence {
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        within("active", self.active, 0.1, 1.0)?;
        within("missed", self.missed, 1.0, 1.0e6)?;
        within("times", self.times, 1.0, 100.0)?;
        within("hour_times", self.hour_times, 1.0, 100.0)?;
        long("least", self.least, Span::from_secs(5), Span::from_secs(86_400))?;
        if self.ceiling < self.least {
            return told("the ceiling lies below the least silence", "swap them");
        }
        long("ceiling", self.ceiling, self.least, Span::from_secs(86_400))
    }

    /// Counts what was seen, and judges. `hour` is the hour of the day.
    pub(crate) fn judge(
        &self,
        pulse: &Pulse,
        hour: usize,
        now: Mono,
        memory: &mut SilenceMemory,
    ) -> Option<Sighting> {
        let last = pulse.last?;
        memory.note(last, pulse, now);
        let idle = seconds(now.since(last));
        let active: u32 = memory.minutes.iter().map(|bits| bits.count_ones()).sum();
        if f64::from(active) < self.active * MINUTES || idle <= seconds(self.least) {
            return None;
        }
        let (mut bound, mut learned) = self.bound(hour, memory);
        let missed = f64::from(memory.rate) * idle;
        // Beyond the ceiling it is found however few calls were to be expected.
        let ceiling = seconds(self.ceiling);
        if idle > ceiling && missed <= self.missed {
            (bound, learned) = (ceiling, false);
        }
        (idle > bound && (missed > self.missed || !learned)).then(|| {
            memory.lasting = true;
            Sighting {
                value: idle,
                bound,
                window: now.since(last),
                count: 0,
                of: super::narrow(missed),
                learned,
            }
        })
    }

    /// The longest silence that is none, in seconds, and whether it was learned.
    pub(crate) fn bound(&self, hour: usize, memory: &SilenceMemory) -> (f64, bool) {
        let of_hour = f64::from(memory.hours.get(hour).copied().unwrap_or(0.0));
        let learned = (self.times * f64::from(memory.gap))
            .max(self.hour_times * of_hour)
            .max(seconds(self.least));
        let ceiling = seconds(self.ceiling);
        if learned < ceiling { (learned, true) } else { (ceiling, false) }
    }
}

impl SilenceMemory {
    fn note(&mut self, last: Mono, pulse: &Pulse, now: Mono) {
        let moved = last > self.last;
        self.shift(now, moved && pulse.elapsed > 60.0);
        if !moved {
            return;
        }
        let gap = seconds(last.since(self.last));
        self.mark(last);
        let first = self.last == Mono::ZERO;
        self.last = last;
        if first {
            self.rate = single(pulse.rate);
            return;
        }
        let rate = f64::from(self.rate);
        self.rate = single(rate + forgets(gap, RATE_OVER) * (pulse.rate - rate));
        // Between looks far apart the calls are unknown, so the gaps are too.
        if !std::mem::take(&mut self.lasting) && pulse.elapsed < 5.0 {
            let [running, ..] = &mut self.waiting;
            *running = running.max(single(gap));
        }
    }

    /// Moves the ring of minutes on to `now`. Minutes that nobody looked at count as active if calls came since.
    fn shift(&mut self, now: Mono, assume: bool) {
        let minute = now.as_nanos() / MINUTE;
        let ahead = minute.saturating_sub(self.minute).min(RING);
        for step in 1..=ahead {
            self.set(self.minute + step, assume && ahead < RING);
        }
        self.minute = self.minute.max(minute);
    }

    fn mark(&mut self, last: Mono) {
        let minute = last.as_nanos() / MINUTE;
        if self.minute.saturating_sub(minute) < RING {
            self.set(minute, true);
        }
    }

    fn set(&mut self, minute: u64, active: bool) {
        let bit = minute % RING;
        if let Some(word) = usize::try_from(bit / 64).ok().and_then(|at| self.minutes.get_mut(at)) {
            *word = *word & !(1 << (bit % 64)) | u64::from(active) << (bit % 64);
        }
    }

    /// Ends an epoch that lay in this hour of the day, and believes the one before the last.
    pub(crate) fn turn(&mut self, length: f64, hour: usize) {
        let [running, last, before] = self.waiting;
        self.gap = single(halved(f64::from(self.gap), length, DAY)).max(before);
        if let Some(gap) = self.hours.get_mut(hour) {
            // Once a day an hour comes round.
            *gap = single(halved(f64::from(*gap), length, DAY * 24.0)).max(before);
        }
        self.waiting = [0.0, running, last];
    }

    /// Drops what is not yet believed.
    pub(crate) fn drop_unbelieved(&mut self) {
        self.waiting = [0.0; 3];
    }
}

const MINUTE: u64 = 60_000_000_000;
const RING: u64 = 360;
const MINUTES: f64 = 360.0;
/// The rate's time constant in seconds.
const RATE_OVER: f64 = 1_200.0;
const DAY: f64 = 86_400.0;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Pulse, Silence, SilenceMemory};
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    fn at(second: u64) -> Mono {
        Mono::from_nanos(second * 1_000_000_000)
    }

    fn hour(second: u64) -> usize {
        usize::try_from(second / 3_600 % 24).unwrap_or(0)
    }

    /// Looks once a second; calls come where `calls` says so. The seconds at which a silence is found.
    fn life(
        rule: &Silence,
        from: u64,
        to: u64,
        memory: &mut SilenceMemory,
        calls: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        let mut last = None;
        let mut found = Vec::new();
        for second in from..to {
            if calls(second) {
                last = Some(at(second));
            }
            if second % 900 == 0 {
                memory.turn(900.0, hour(second));
            }
            let pulse = Pulse { last, rate: 1.0, elapsed: 1.0 };
            if rule.judge(&pulse, hour(second), at(second), memory).is_some() {
                found.push(second);
            }
        }
        found
    }

    /// Goal: a busy route that dies is found after 45 s, once six hours are known; then it is found dead.
    #[test]
    fn a_dead_route_is_found() {
        let rule = Silence::default();
        let mut memory = SilenceMemory::default();
        let found = life(&rule, 1, 30_000, &mut memory, |second| second < 25_000);
        assert_eq!(found.first(), Some(&25_045));
        let mut young = SilenceMemory::default();
        assert!(life(&rule, 1, 12_000, &mut young, |second| second < 10_000).is_empty());
    }

    /// Goal: gaps that came before are no news, a longer one is, and that one is not believed.
    #[test]
    fn gaps_that_came_before_are_no_news() {
        let rule = Silence::default();
        let mut memory = SilenceMemory::default();
        // A gap of two minutes each half hour.
        let calls = |second: u64| second % 1_800 >= 120;
        let early = life(&rule, 1, 40_000, &mut memory, calls);
        assert!(early.iter().all(|&second| second < 26_000), "{early:?}");
        assert!(life(&rule, 40_000, 46_800, &mut memory, calls).is_empty());
        let gap = memory.gap;
        let found = life(&rule, 46_800, 47_200, &mut memory, |second| second == 46_801);
        assert!((46_990..47_010).contains(&found[0]), "{found:?}");
        let _ = life(&rule, 47_200, 52_000, &mut memory, |_| true);
        assert!(memory.gap <= gap, "an outage became normal");
    }

    /// Goal: a quiet route is not judged, nor one with calls every minute but slowly.
    #[test]
    fn quiet_routes_are_not_judged() {
        let rule = Silence::default();
        let mut memory = SilenceMemory::default();
        assert!(life(&rule, 1, 60_000, &mut memory, |second| second % 600 == 0).is_empty());
    }

    /// Goal: the ceiling needs no learning, nor many calls that should have come: a route with a call a minute that died was told only by its
    /// believed gaps, and then never.
    #[test]
    fn a_silence_beyond_the_ceiling_was_not_found_where_few_calls_were_missed() {
        let rule = Silence { ceiling: Span::from_secs(300), ..Silence::default() };
        let mut memory = SilenceMemory::default();
        let judge = |second: u64, last: u64, memory: &mut SilenceMemory| {
            let pulse = Pulse { last: Some(at(last)), rate: 1.0 / 60.0, elapsed: 1.0 };
            rule.judge(&pulse, hour(second), at(second), memory)
        };
        for second in 1..25_000 {
            if second % 900 == 0 {
                memory.turn(900.0, hour(second));
            }
            assert_eq!(judge(second, second / 60 * 60, &mut memory), None, "{second}");
        }
        let last = 24_960;
        let found = (25_000..26_000).find_map(|second| judge(second, last, &mut memory)).unwrap();
        assert_eq!((found.value, found.bound, found.learned), (301.0, 300.0, false));
    }

    proptest! {
        /// Goal: no reading makes a bound that is no number, below its floor or over its ceiling.
        #[test]
        fn bounds_stay_in_range(
            looks in proptest::collection::vec(
                (any::<u64>(), any::<Option<u64>>(), any::<f64>(), any::<f64>(), any::<usize>()), 0..30),
        ) {
            let (rule, mut memory) = (Silence::default(), SilenceMemory::default());
            for (now, last, rate, elapsed, hour) in looks {
                let pulse = Pulse { last: last.map(Mono::from_nanos), rate, elapsed };
                let _ = rule.judge(&pulse, hour, Mono::from_nanos(now), &mut memory);
                memory.turn(elapsed, hour);
                let (bound, _) = rule.bound(hour, &memory);
                prop_assert!((45.0..=3_600.0).contains(&bound), "{bound}");
            }
        }
    }
}
