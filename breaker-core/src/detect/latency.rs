//! Latency far above its own past, on a logarithmic scale; pure.
//!
//! What a settlement leaves behind is d = ln(latency) − location, clipped, as two sums of whole steps of
//! 1/64: of d and of its size. The rest is done at the look.

use super::{Sighting, forgets, long, seconds, single, told, wide, within};
use crate::time::Span;

/// Latency far above its own past.
///
/// Found if a fast moving average of d, the clipped logarithm of the latency over its usual one, lies above
/// both `ln(times)` and `spreads` times the usual size of d; or above the ceiling.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Latency {
    /// How much slower than usual, as a factor, 1.1 to 6. 2.2 unless said.
    pub times: f64,
    /// How many usual deviations, 0 to 10. 1.3 unless said.
    pub spreads: f64,
    /// Weight of each call in the fast average, 0.001 to 1. 0.12 unless said.
    pub weight: f64,
    /// Calls before anything is judged, at least 10; the usual latency begins as their mean. 200 unless said.
    pub minimum: u32,
    /// The time constant of the usual latency and its deviation, learned by time. 30 min unless said.
    pub over: Span,
    /// The ceiling: a (geometric) mean latency above it is found whatever was learned. 30 s unless said.
    pub ceiling: Span,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            times: 2.2,
            spreads: 1.3,
            weight: 0.12,
            minimum: 200,
            over: Span::from_secs(1_800),
            ceiling: Span::from_secs(30),
        }
    }
}

/// What came in since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Latencies {
    pub(crate) count: u64,
    /// Sum of the clipped steps, each with [`CLIP`] added.
    pub(crate) steps: u64,
    /// Sum of their sizes.
    pub(crate) sizes: u64,
    /// The location, in steps, that they were taken against.
    pub(crate) location: u64,
}

/// What one scope remembers of its latency; locations in nats of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LatencyMemory {
    pub(crate) location: f32,
    pub(crate) spread: f32,
    fast: f32,
    /// Calls seen, up to the minimum.
    pub(crate) seen: u32,
    epoch: Epoch,
    /// The last two epochs, not yet believed.
    waiting: [Option<(f32, f32)>; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Epoch {
    count: f64,
    /// Sum of the logarithms.
    logs: f64,
    /// Sum of the sizes of d.
    sizes: f64,
}

impl Latency {
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        within("times", self.times, 1.1, 6.0)?;
        within("spreads", self.spreads, 0.0, 10.0)?;
        within("weight", self.weight, 0.001, 1.0)?;
        if !(10..=1_000_000).contains(&self.minimum) {
            return told("the minimum is 10 to 1 000 000 calls", "use 200");
        }
        long("over", self.over, Span::from_secs(60), super::THIRTY_DAYS)?;
        long("ceiling", self.ceiling, Span::from_millis(1), Span::from_secs(86_400))
    }

    /// How far above the location the fast average may lie, in nats, and whether that was learned.
    pub(crate) fn bound(&self, memory: &LatencyMemory) -> (f64, bool) {
        let spread = f64::from(memory.spread).max(0.0);
        // Deviations are clipped: above the highest bound nothing could be found.
        let learned = (self.spreads * spread).max(self.times.ln()).min(HIGHEST);
        let ceiling = wide(self.ceiling.as_nanos()).max(1.0).ln() - f64::from(memory.location);
        if ceiling < learned { (ceiling, false) } else { (learned, true) }
    }

    /// Counts what came in, and judges.
    pub(crate) fn judge(&self, came: &Latencies, memory: &mut LatencyMemory) -> Option<Sighting> {
        if came.count == 0 {
            return None;
        }
        let deviation = came.deviation(memory);
        if memory.seen < self.minimum {
            self.begin(came, deviation, memory);
            return None;
        }
        let calls = wide(came.count);
        let keeps = (1.0 - self.weight).powf(calls);
        memory.fast = single(f64::from(memory.fast) * keeps + deviation * (1.0 - keeps));
        let (bound, learned) = self.bound(memory);
        let (location, fast) = (f64::from(memory.location), f64::from(memory.fast));
        (fast > bound).then(|| Sighting {
            value: (location + fast).exp() / 1.0e9,
            bound: (location + bound).exp() / 1.0e9,
            window: Span::ZERO,
            count: came.count,
            of: came.count,
            learned,
        })
    }

    /// The first calls: their mean is the usual latency.
    fn begin(&self, came: &Latencies, deviation: f64, memory: &mut LatencyMemory) {
        if memory.seen == 0 {
            memory.location = single(came.at());
        }
        let seen = u64::from(memory.seen).saturating_add(came.count);
        memory.seen = u32::try_from(seen).unwrap_or(u32::MAX).min(self.minimum);
        let weight = wide(came.count) / wide(seen);
        let deviation = if seen == came.count { came.mean() } else { deviation };
        let location = f64::from(memory.location) + weight * deviation;
        memory.location = single(location.clamp(0.0, LONGEST));
        let spread = f64::from(memory.spread);
        memory.spread = single(spread + weight * (came.size() - spread));
    }

    /// Counts towards the running epoch; not to be told while anything is tripped.
    pub(crate) fn learn(&self, came: &Latencies, memory: &mut LatencyMemory) {
        let calls = wide(came.count);
        memory.epoch.count += calls;
        memory.epoch.logs += calls * (came.at() + came.mean());
        memory.epoch.sizes += calls * came.size();
    }

    /// Ends an epoch of `length` seconds, and believes the one before the last.
    pub(crate) fn turn(&self, length: f64, memory: &mut LatencyMemory) {
        let [last, before] = memory.waiting;
        if let (Some((location, spread)), true) = (before, memory.seen >= self.minimum) {
            let weight = forgets(length, seconds(self.over));
            let toward = |value: f32, target: f32| {
                let value = f64::from(value);
                single(value + weight * (f64::from(target) - value))
            };
            memory.location = toward(memory.location, location).clamp(0.0, single(LONGEST));
            memory.spread = toward(memory.spread, spread);
        }
        let Epoch { count, logs, sizes } = std::mem::take(&mut memory.epoch);
        let seen = (count >= ENOUGH).then(|| (single(logs / count), single(sizes / count)));
        memory.waiting = [seen, last];
    }
}

impl Latencies {
    /// The location they were taken against, in nats.
    fn at(&self) -> f64 {
        wide(self.location) / STEPS
    }

    /// Their mean deviation from it, in nats.
    fn mean(&self) -> f64 {
        let mean = wide(self.steps) / wide(self.count.max(1)) - wide(CLIP);
        (mean / STEPS).clamp(-wide(CLIP) / STEPS, wide(CLIP) / STEPS)
    }

    /// The mean size of their deviations, in nats.
    fn size(&self) -> f64 {
        (wide(self.sizes) / wide(self.count.max(1)) / STEPS).min(wide(CLIP) / STEPS)
    }

    /// Their mean deviation from what the memory has as the location.
    fn deviation(&self, memory: &LatencyMemory) -> f64 {
        self.at() + self.mean() - f64::from(memory.location)
    }
}

impl LatencyMemory {
    /// What was learned before.
    pub(crate) fn known(location: f64, spread: f64, seen: u32) -> LatencyMemory {
        let (location, spread) = (single(location), single(spread));
        LatencyMemory { location, spread, seen, ..LatencyMemory::default() }
    }

    /// The location in steps, for settlements to be taken against; `None` before there is one.
    pub(crate) fn steps(&self) -> Option<u64> {
        (self.seen > 0).then(|| super::narrow((f64::from(self.location) * STEPS).round()))
    }

    /// Drops what is not yet believed.
    pub(crate) fn drop_unbelieved(&mut self) {
        self.waiting = [None; 2];
        self.epoch = Epoch::default();
    }

    /// Forgets the fast average: after a trip it begins anew.
    pub(crate) fn begin_anew(&mut self) {
        self.fast = 0.0;
    }
}

/// The logarithm of a latency in steps of 1/64 nat, within a step.
///
/// The logarithm to base 2 by its leading bit and a quadratic between powers of two, in whole numbers.
pub(crate) const fn steps(latency: Span) -> u64 {
    let nanos = if latency.as_nanos() == 0 { 1 } else { latency.as_nanos() };
    let power = nanos.ilog2();
    let rest = if power >= 16 { nanos >> (power - 16) } else { nanos << (16 - power) } & 0xffff;
    let curve = (((rest * (0x1_0000 - rest)) >> 16) * 22_543) >> 16;
    let log = ((power as u64) << 16) + rest + curve;
    // ln 2 in steps of 2⁻¹⁶; then from 2⁻³² to 2⁻⁶, to the nearest.
    (log * 45_426 + (1 << 25)) >> 26
}

/// One latency's clipped deviation with [`CLIP`] added, and its size.
pub(crate) const fn deviation(latency: Span, location: u64) -> (u64, u64) {
    let steps = steps(latency);
    let above = steps.saturating_sub(location);
    let below = location.saturating_sub(steps);
    let above = if above < CLIP { above } else { CLIP };
    let below = if below < CLIP { below } else { CLIP };
    (CLIP + above - below, above + below)
}

/// Deviations are clipped to so many steps: 2.1 nats.
pub(crate) const CLIP: u64 = 134;
/// Steps in a nat.
const STEPS: f64 = 64.0;
/// No bound is higher, in nats: clipped deviations do not reach much further.
const HIGHEST: f64 = 1.9;
/// The logarithm of the longest latency there is.
const LONGEST: f64 = 45.0;
/// Calls that an epoch must hold to say anything.
const ENOUGH: f64 = 20.0;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{CLIP, Latencies, Latency, LatencyMemory, deviation, steps, wide};
    use crate::time::Span;
    use proptest::prelude::*;

    /// What `count` calls of so many milliseconds leave behind.
    fn came(count: u64, millis: u64, memory: &LatencyMemory) -> Latencies {
        let span = Span::from_millis(millis);
        let location = memory.steps().unwrap_or(steps(span));
        let (step, size) = deviation(span, location);
        Latencies { count, steps: count * step, sizes: count * size, location }
    }

    fn known(rule: &Latency, millis: u64) -> LatencyMemory {
        let mut memory = LatencyMemory::default();
        for _ in 0..4 {
            assert!(rule.judge(&came(50, millis, &memory), &mut memory).is_none());
        }
        memory
    }

    /// Goal: twice as slow is not found, three times as slow is, within some twenty calls.
    #[test]
    fn three_times_as_slow_is_found() {
        let rule = Latency::default();
        let mut memory = known(&rule, 100);
        assert!(rule.judge(&came(500, 200, &memory), &mut memory).is_none());
        let mut memory = known(&rule, 100);
        let calls = (1..100).find(|_| rule.judge(&came(1, 300, &memory), &mut memory).is_some());
        assert!((5..20).contains(&calls.unwrap()), "{calls:?}");
        let mut memory = known(&rule, 100);
        let found = rule.judge(&came(100, 300, &memory), &mut memory).unwrap();
        assert!((0.28..0.32).contains(&found.value), "{found:?}");
        assert!((0.21..0.23).contains(&found.bound), "{found:?}");
    }

    /// Goal: a scope whose latency always varies widely is given its width.
    #[test]
    fn a_wide_scope_is_given_its_width() {
        let rule = Latency::default();
        let mut memory = LatencyMemory { spread: 1.2, ..known(&rule, 100) };
        assert!(rule.judge(&came(500, 300, &memory), &mut memory).is_none());
        assert!(rule.judge(&came(500, 900, &memory), &mut memory).is_some());
    }

    /// Goal: the ceiling stands whatever was learned as usual.
    #[test]
    fn the_ceiling_stands() {
        let rule = Latency { ceiling: Span::from_millis(500), ..Latency::default() };
        let mut memory = known(&rule, 400);
        let found = rule.judge(&came(200, 600, &memory), &mut memory).unwrap();
        assert_eq!(((found.bound * 10.0).round(), found.learned), (5.0, false));
        let off = Latency::default();
        let mut memory = known(&off, 400);
        assert!(off.judge(&came(200, 600, &memory), &mut memory).is_none());
    }

    /// Goal: the usual latency follows two epochs later, and not if they are dropped.
    #[test]
    fn the_location_follows_by_time() {
        let rule = Latency::default();
        for dropped in [false, true] {
            let mut memory = known(&rule, 100);
            let before = memory.location;
            let slower = came(100_000, 150, &memory);
            rule.learn(&slower, &mut memory);
            rule.turn(900.0, &mut memory);
            rule.turn(900.0, &mut memory);
            assert_eq!(memory.location, before);
            if dropped {
                memory.drop_unbelieved();
            }
            rule.turn(900.0, &mut memory);
            // ln 1.5 × (1 − e^(−1/2)): however many calls there were.
            let moved = f64::from(memory.location - before);
            assert!((moved - if dropped { 0.0 } else { 0.16 }).abs() < 0.01, "{moved}");
        }
    }

    proptest! {
        /// Goal: the whole-number logarithm is within a step of the true one.
        #[test]
        fn the_logarithm_is_right(power in 0_u32..64, bits: u64) {
            let nanos = (bits >> power).max(1);
            let exact = wide(nanos).ln() * 64.0;
            let step = wide(steps(Span::from_nanos(nanos)));
            prop_assert!((step - exact).abs() < 1.1, "{nanos}: {step} for {exact}");
        }

        /// Goal: no reading makes a bound that is no number, or above the highest; deviations are clipped.
        #[test]
        fn bounds_stay_in_range(
            readings in proptest::collection::vec(
                (any::<u64>(), any::<u64>(), any::<u64>(), 0_u64..3_000), 0..30),
            latency: u64, location: u64,
        ) {
            let (rule, mut memory) = (Latency::default(), LatencyMemory::default());
            let (step, size) = deviation(Span::from_nanos(latency), location);
            prop_assert!(step <= 2 * CLIP && size <= CLIP);
            for (count, steps, sizes, location) in readings {
                let came = Latencies { count, steps, sizes, location };
                let _ = rule.judge(&came, &mut memory);
                rule.learn(&came, &mut memory);
                rule.turn(900.0, &mut memory);
                let (bound, _) = rule.bound(&memory);
                prop_assert!(bound <= super::HIGHEST, "{bound}");
                prop_assert!((0.0..=45.0).contains(&memory.location), "{:?}", memory);
            }
        }
    }
}
