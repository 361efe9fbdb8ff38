//! More calls than ever believed, in four windows: the bound of each by its decaying peak; pure.
//!
//! A window of w seconds trips at more than `max(F, k × y × g × P)` calls, and always above its ceiling:
//! P is the largest believed count of any such window, halving in days; k a factor; y the wide margin that
//! little history gets; g how far a crowd has lifted everything else; F the floor under it all. What was
//! seen is normal, bursts and all; the idea of holding against believed maxima of the last days is
//! Cloudflare's Adaptive DDoS Protection's, which profiles the maximum rates of each of the past seven.

use super::halves::Halves;
use super::short::Short;
use super::{SIX_HOURS, THIRTY_DAYS, long, narrow, seconds, told, wide, within};
use crate::time::{Mono, Span};

/// More calls than ever believed, in 1, 10, 60 or 300 s.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Surge {
    /// The windows of 1, 10, 60 and 300 s; `None` is not judged at all. Counts of a half window above 4.1, 16,
    /// 33 and 67 million calls stand still.
    pub windows: [Option<SurgeWindow>; 4],
    /// How much wider the margin is at first: the bound is this much more than its factor, falling to
    /// nothing. 1.5 unless said: 2.5 times the bound at first.
    pub young_margin: f64,
    /// The time in which the young margin halves. 2 h unless said.
    pub young_half: Span,
    /// Before so much history only the ceilings stand. 6 h unless said.
    pub start_after: Span,
    /// The time in which a peak halves. 4 days unless said.
    pub peak_half: Span,
    /// For named scopes: from so much history on, a peak counts at most so much as `hour_factor` times
    /// the largest of this hour of the day and its two neighbours. 1.5 days unless said.
    pub hours_after: Span,
    /// See `hours_after`. 1.5 unless said.
    pub hour_factor: f64,
    /// Fixed lift for a scope beside which there is nothing else: 1.6 for `/`, else 1.
    pub alone: f64,
    /// The most that a crowd may lift a bound, at least 1. 10 unless said: it is bounded so that who floods
    /// everything does not free everything.
    pub crowd_at_most: f64,
    /// After so long a spell of tripping again and again the believed peaks grow, but never above what was
    /// seen. 3 h unless said.
    pub grow_after: Span,
    /// Growth by at most this factor an hour, 1 to 4. 1.5 unless said; 1 leaves the way back to a person alone.
    pub growth: f64,
}

/// One window's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SurgeWindow {
    /// By how much a believed peak must be exceeded, above 1; `None`: only the ceiling stands.
    pub factor: Option<f64>,
    /// No count at or below this is found, however calm the past.
    pub floor: u64,
    /// The ceiling: a count above it is found whatever was learned, and before anything is. Above 4 095 it is
    /// rounded down by up to one part in 2 048, as is a bound.
    pub ceiling: u64,
}

impl Surge {
    /// For the keys of a dimension: floors of 20, 40, 60 and 90 calls. No key ever makes more than
    /// `a_minute` calls in a minute, five times that in 300 s, half of it in 10 s, a quarter in one.
    #[must_use]
    pub const fn of_keys(a_minute: u64) -> Surge {
        Surge::new([Some(20), Some(40), Some(60), Some(90)], 1.0, a_minute)
    }

    /// For a route or a group: floors of 60, 120 and 240 calls from 10 s up (a second is too short to learn
    /// from). The ceiling as in [`Surge::of_keys`].
    #[must_use]
    pub const fn of_route(a_minute: u64) -> Surge {
        Surge::new([None, Some(60), Some(120), Some(240)], 1.0, a_minute)
    }

    /// For `/`, which has nothing beside it that could tell a crowd from a runaway: a lift of 1.6 at all
    /// times. The ceiling as in [`Surge::of_keys`].
    #[must_use]
    pub const fn of_everything(a_minute: u64) -> Surge {
        Surge::new([None, Some(60), Some(120), Some(240)], 1.6, a_minute)
    }

    const fn new(floors: [Option<u64>; 4], alone: f64, a_minute: u64) -> Surge {
        let [second, ten, minute, five] = floors;
        Surge {
            windows: [
                SurgeWindow::new(second, 3.0, a_minute.div_ceil(4)),
                SurgeWindow::new(ten, 2.5, a_minute.div_ceil(2)),
                SurgeWindow::new(minute, 2.2, a_minute),
                SurgeWindow::new(five, 2.0, a_minute.saturating_mul(5)),
            ],
            young_margin: 1.5,
            young_half: Span::from_secs(2 * 3_600),
            start_after: SIX_HOURS,
            peak_half: Span::from_secs(4 * 86_400),
            hours_after: Span::from_secs(36 * 3_600),
            hour_factor: 1.5,
            alone,
            crowd_at_most: 10.0,
            grow_after: Span::from_secs(3 * 3_600),
            growth: 1.5,
        }
    }
}

impl SurgeWindow {
    const fn new(floor: Option<u64>, factor: f64, ceiling: u64) -> Option<SurgeWindow> {
        let (factor, floor) = match floor {
            Some(floor) => (Some(factor), floor),
            None => (None, 1),
        };
        Some(SurgeWindow { factor, floor: if floor < ceiling { floor } else { ceiling }, ceiling })
    }
}

/// How far everything else is lifted: the counts of the four windows of everything, and their peaks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Crowd {
    /// Calls in the windows now.
    pub(crate) counts: [u64; 4],
    /// The believed peaks.
    pub(crate) peaks: [f64; 4],
}

/// What one scope remembers of its rate: windows' largest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SurgeMemory {
    /// Believed.
    pub(crate) peaks: [Short; 4],
    /// Seen in the running epoch and the two before it; not yet believed.
    waiting: [[Short; 4]; 3],
    /// Seen and dropped, since something tripped: what a person may accept.
    pub(crate) refused: [Short; 4],
}

/// What is known of one scope when its bounds are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    /// The history's length in seconds: of the table for a key that has little itself.
    pub(crate) age: f64,
    /// The history by which learning may begin to bind: the table's, for a key.
    pub(crate) learning: f64,
    /// The peaks to hold against, before hours and crowd.
    pub(crate) peaks: [f64; 4],
    /// The largest peaks of this hour and its neighbours, where the time of day is known.
    pub(crate) hours: Option<[f64; 4]>,
    pub(crate) crowd: Option<Crowd>,
    /// The scope's own counts now.
    pub(crate) counts: [u64; 4],
}

impl Surge {
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        if self.windows.iter().all(Option::is_none) {
            return told("no window is judged", "give at least one");
        }
        for (window, form) in self.windows.iter().zip(FORMS) {
            let Some(window) = window else { continue };
            if let Some(factor) = window.factor {
                within("factor", factor, 1.01, 1_000.0)?;
            }
            if window.ceiling == 0 {
                return told("a ceiling of 0 trips at every call", "kill the scope instead");
            }
            if window.floor == 0 || window.floor > window.ceiling {
                return told("the floor is 0, or above the ceiling", "use 1 to the ceiling");
            }
            if window.ceiling > form.most() {
                let hint = format!("use at most {}", form.most());
                return told("the ceiling is above what a window can count", &hint);
            }
        }
        within("young_margin", self.young_margin, 0.0, 100.0)?;
        within("hour_factor", self.hour_factor, 1.0, 100.0)?;
        within("alone", self.alone, 1.0, 100.0)?;
        within("crowd_at_most", self.crowd_at_most, 1.0, 1_000.0)?;
        within("growth", self.growth, 1.0, 4.0)?;
        let minute = Span::from_secs(60);
        long("young_half", self.young_half, minute, THIRTY_DAYS)?;
        long("peak_half", self.peak_half, Span::from_secs(3_600), THIRTY_DAYS)?;
        long("start_after", self.start_after, Span::ZERO, THIRTY_DAYS)?;
        long("hours_after", self.hours_after, Span::from_secs(86_400), THIRTY_DAYS)?;
        long("grow_after", self.grow_after, Span::ZERO, THIRTY_DAYS)
    }

    /// The same with floors and ceilings that a bound can be exactly.
    pub(crate) fn rounded(&self) -> Surge {
        let rounded = |window: &SurgeWindow| {
            let ceiling = Short::down(wide(window.ceiling));
            let floor = Short::up(wide(window.floor)).min(ceiling);
            SurgeWindow { factor: window.factor, floor: floor.floor(), ceiling: ceiling.floor() }
        };
        Surge { windows: self.windows.map(|window| window.as_ref().map(rounded)), ..*self }
    }

    /// The ceilings alone.
    pub(crate) fn ceilings(&self) -> [Short; 4] {
        self.windows.map(|window| match window {
            Some(window) => Short::down(wide(window.ceiling)),
            None => Short::NONE,
        })
    }

    /// The bounds: the most calls that each window may hold.
    pub(crate) fn bounds(&self, at: &Situation) -> [Short; 4] {
        if at.learning < seconds(self.start_after) {
            return self.ceilings();
        }
        let margin = 1.0 + self.young_margin * halved(1.0, at.age, seconds(self.young_half));
        let mut bounds = [Short::NONE; 4];
        for (index, bound) in bounds.iter_mut().enumerate() {
            let Some(window) = self.windows.get(index).copied().flatten() else { continue };
            let ceiling = Short::down(wide(window.ceiling));
            let Some(factor) = window.factor else {
                *bound = ceiling;
                continue;
            };
            let learned = factor * margin * self.lift(index, at) * self.peak(index, at);
            let floor = Short::up(wide(window.floor)).min(ceiling);
            *bound = Short::down(learned).clamp(floor, ceiling);
        }
        bounds
    }

    fn peak(&self, index: usize, at: &Situation) -> f64 {
        let peak = pick(&at.peaks, index);
        match at.hours {
            Some(hours) if at.age >= seconds(self.hours_after) => {
                peak.min(self.hour_factor * pick(&hours, index))
            }
            _ => peak,
        }
    }

    fn lift(&self, index: usize, at: &Situation) -> f64 {
        let Some(crowd) = at.crowd else { return self.alone };
        let count = |counts: &[u64; 4]| counts.get(index).copied().unwrap_or(0);
        let others = wide(count(&crowd.counts).saturating_sub(count(&at.counts)));
        let peak = pick(&crowd.peaks, index);
        if peak < 1.0 {
            return self.alone;
        }
        (others / peak).clamp(1.0, self.crowd_at_most).max(self.alone)
    }
}

impl SurgeMemory {
    /// Notes counts seen in the running epoch; not to be told while anything is tripped.
    pub(crate) fn learn(&mut self, counts: [u64; 4]) {
        let [running, ..] = &mut self.waiting;
        raise(running, counts.map(|count| Short::up(wide(count))));
    }

    /// Ends an epoch: believes the one before the last, and returns what that was.
    pub(crate) fn turn(&mut self) -> [Short; 4] {
        let [running, last, before] = self.waiting;
        raise(&mut self.peaks, before);
        self.waiting = [[Short::default(); 4], running, last];
        before
    }

    /// Lets the believed peaks halve over `elapsed` seconds.
    pub(crate) fn decay(&mut self, elapsed: f64, half: f64) {
        self.peaks = self.peaks.map(|peak| Short::near(halved(peak.value(), elapsed, half)));
    }

    /// Drops what is not yet believed, together with `seen`, and keeps it for a person to accept.
    pub(crate) fn refuse(&mut self, seen: [u64; 4]) {
        raise(&mut self.refused, seen.map(|count| Short::up(wide(count))));
        for epoch in std::mem::take(&mut self.waiting) {
            raise(&mut self.refused, epoch);
        }
    }

    /// Believes all that was seen: a person's word.
    pub(crate) fn accept(&mut self) {
        for epoch in std::mem::take(&mut self.waiting) {
            raise(&mut self.peaks, epoch);
        }
        raise(&mut self.peaks, std::mem::take(&mut self.refused));
    }

    /// Grows the believed peaks by a factor towards what was seen and dropped.
    pub(crate) fn grow(&mut self, factor: f64) {
        for (peak, refused) in self.peaks.iter_mut().zip(self.refused) {
            if *peak < refused {
                // From nothing there is no way up by factors.
                *peak = Short::up((peak.value() * factor).max(1.0)).min(refused);
            }
        }
    }

    pub(crate) fn values(&self) -> [f64; 4] {
        self.peaks.map(Short::value)
    }

    /// The largest count of a minute that is believed, or may be soon.
    pub(crate) fn weight(&self) -> f64 {
        let minute = |peaks: [Short; 4]| peaks.get(2).copied().unwrap_or_default();
        let waiting = self.waiting.into_iter().map(minute).max().unwrap_or_default();
        minute(self.peaks).max(waiting).value()
    }
}

/// The 99.9 % quantile of the counts of keys with little history, one for each window.
///
/// Stochastic, as Frugal streaming (Ma, Muthukrishnan and Sandler 2014): up by a step for a count above, down by
/// a thousandth of it for one at or below. The step is a share of the quantile, so it follows over any range.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Quantiles {
    values: [f64; 4],
    /// Where they stood when the hour began, and the hour's number.
    began: [f64; 4],
    hour: u64,
}

impl Quantiles {
    pub(crate) fn values(&self) -> [f64; 4] {
        self.values
    }

    pub(crate) fn restore(&mut self, values: [f64; 4]) {
        self.values = values;
        self.began = values;
    }

    /// One key's count of one window. From `bound_growth` on, the quantile rises by at most a half an hour.
    pub(crate) fn sample(&mut self, index: usize, count: u64, now: Mono, bound_growth: bool) {
        let hour = now.as_nanos() / HOUR;
        if hour != self.hour {
            (self.hour, self.began) = (hour, self.values);
        }
        let began = pick(&self.began, index);
        let Some(value) = self.values.get_mut(index) else { return };
        let step = 0.5 + 0.05 * *value;
        if wide(count) > *value {
            let most = if bound_growth { (began * 1.5).max(1.0) } else { f64::MAX };
            *value = (*value + step).min(wide(count)).min(most.max(*value));
        } else {
            *value = (*value - step / 1_000.0).max(0.0);
        }
    }
}

/// Raises each to the other's, if that is larger.
pub(crate) fn raise(peaks: &mut [Short; 4], seen: [Short; 4]) {
    for (peak, seen) in peaks.iter_mut().zip(seen) {
        *peak = (*peak).max(seen);
    }
}

/// What is left of a value after a time, if it halves in `half`.
pub(crate) fn halved(value: f64, elapsed: f64, half: f64) -> f64 {
    value * (-elapsed.max(0.0) / half.max(1.0)).exp2()
}

/// A bound as a count, for a finding.
pub(crate) fn bound_of(bound: Short) -> f64 {
    wide(narrow(bound.value()))
}

fn pick(values: &[f64; 4], index: usize) -> f64 {
    values.get(index).copied().filter(|value| value.is_finite()).unwrap_or(0.0).max(0.0)
}

/// The words of the four windows. The stamps wrap after 6.1, 3.8, 5.7 and 7.1 days.
pub(crate) const FORMS: [Halves; 4] = [
    Halves::new(Span::from_secs(1), 22),
    Halves::new(Span::from_secs(10), 24),
    Halves::new(Span::from_secs(60), 25),
    Halves::new(Span::from_secs(300), 26),
];

/// The numbers of the halves that an instant lies in: each window's half is whole halves of the window before.
#[inline(always)]
pub(crate) const fn halves_at(now: Mono) -> [u64; 4] {
    let [second, ..] = FORMS;
    let first = second.number(now);
    [first, first / 10, first / 60, first / 300]
}

const HOUR: u64 = 3_600_000_000_000;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Crowd, Quantiles, Short, Situation, Surge, SurgeMemory, wide};
    use crate::time::{Mono, Span};
    use proptest::prelude::*;

    const DAY: f64 = 86_400.0;

    fn situation(age: f64, peaks: [f64; 4]) -> Situation {
        Situation { age, learning: age, peaks, hours: None, crowd: None, counts: [0; 4] }
    }

    fn floors(bounds: [Short; 4]) -> [u64; 4] {
        bounds.map(Short::floor)
    }

    /// Goal: an instant's halves are those of each window.
    #[test]
    fn halves_are_of_halves() {
        let instants = [0, 1, 499_999_999, 149_999_999_999, 987_654_321_987_654_321, u64::MAX];
        for now in instants.map(Mono::from_nanos) {
            assert_eq!(super::halves_at(now), super::FORMS.map(|form| form.number(now)));
        }
    }

    /// Goal: floors, factors and ceilings as the rule has them, for keys, routes and everything.
    #[test]
    fn bounds_by_hand() {
        let keys = Surge::of_keys(6_000);
        assert!(keys.check().is_ok());
        assert_eq!(floors(keys.bounds(&situation(9.0 * DAY, [0.0; 4]))), [20, 40, 60, 90]);
        assert_eq!(
            floors(keys.bounds(&situation(9.0 * DAY, [10.0, 40.0, 100.0, 300.0]))),
            [30, 100, 220, 600]
        );
        assert_eq!(
            floors(keys.bounds(&situation(9.0 * DAY, [1e9; 4]))),
            [1_500, 3_000, 6_000, 30_000]
        );
        let route = Surge::of_route(6_000);
        assert_eq!(floors(route.bounds(&situation(9.0 * DAY, [0.0; 4]))), [1_500, 60, 120, 240]);
        let all = Surge::of_everything(6_000);
        assert_eq!(
            floors(all.bounds(&situation(9.0 * DAY, [0.0, 100.0, 0.0, 0.0]))),
            [1_500, 400, 120, 240]
        );
    }

    /// Goal: little history gives a wide margin, and none at all leaves the ceiling only.
    #[test]
    fn little_history_gives_a_wide_margin() {
        let keys = Surge::of_keys(60_000);
        let bound = |hours: f64| floors(keys.bounds(&situation(hours * 3_600.0, [100.0; 4])))[2];
        assert_eq!(bound(5.9), 60_000);
        assert_eq!(bound(6.0), 261);
        assert_eq!(bound(24.0), 220);
        let eager = Surge { start_after: Span::ZERO, ..keys };
        assert_eq!(floors(eager.bounds(&situation(0.0, [100.0; 4])))[2], 550);
        let guard_off = Surge { young_margin: 0.0, ..eager };
        assert_eq!(floors(guard_off.bounds(&situation(0.0, [100.0; 4])))[2], 220);
    }

    /// Goal: a crowd lifts the bound, a runaway's own calls do not, and the lift has an end.
    #[test]
    fn a_crowd_lifts_and_a_runaway_does_not() {
        let route = Surge::of_route(1_000_000);
        let bound = |everything: u64, own: u64| {
            let crowd = Some(Crowd { counts: [everything; 4], peaks: [1_000.0; 4] });
            let at = Situation { crowd, counts: [own; 4], ..situation(9.0 * DAY, [100.0; 4]) };
            floors(route.bounds(&at))[2]
        };
        assert_eq!(bound(1_000, 100), 220);
        assert_eq!(bound(3_000, 0), 660);
        assert_eq!(bound(3_000, 2_900), 220);
        assert_eq!(bound(900_000, 0), 2_200);
    }

    /// Goal: a night's calm hour binds once the days are known, and not before.
    #[test]
    fn hours_bind_after_a_day_and_a_half() {
        let route = Surge::of_route(1_000_000);
        let bound = |age: f64| {
            let at = Situation { hours: Some([100.0; 4]), ..situation(age, [1_000.0; 4]) };
            floors(route.bounds(&at))[2]
        };
        assert!(bound(1.4 * DAY) >= 2_200);
        assert_eq!(bound(1.6 * DAY), 330);
    }

    /// Goal: peaks are believed two epochs later; a trip meanwhile drops them, and a person may accept.
    #[test]
    fn peaks_wait_two_epochs() {
        let mut memory = SurgeMemory::default();
        memory.learn([5, 50, 500, 5_000]);
        memory.turn();
        memory.turn();
        assert_eq!(memory.values(), [0.0; 4]);
        let mut tripped = memory;
        memory.turn();
        assert_eq!(memory.values()[..3], [5.0, 50.0, 500.0]);
        tripped.refuse([9, 9, 9, 9]);
        tripped.turn();
        assert_eq!(tripped.values(), [0.0; 4]);
        tripped.accept();
        assert_eq!(tripped.values()[..3], [9.0, 50.0, 500.0]);
    }

    /// Goal: growth goes by factors, towards what was seen and no further.
    #[test]
    fn growth_ends_at_what_was_seen() {
        let mut memory = SurgeMemory::default();
        memory.refuse([0, 0, 100, 0]);
        for _ in 0..3 {
            memory.grow(1.5);
        }
        assert!((1.0..4.0).contains(&memory.values()[2]));
        for _ in 0..30 {
            memory.grow(1.5);
        }
        assert_eq!(memory.values(), [0.0, 0.0, 100.0, 0.0]);
    }

    /// Goal: a peak halves in four days, also in many small steps.
    #[test]
    fn peaks_halve() {
        let mut memory = SurgeMemory { peaks: [Short::up(3_000.0); 4], ..SurgeMemory::default() };
        for _ in 0..384 {
            memory.decay(900.0, 4.0 * DAY);
        }
        assert!((1_400.0..1_600.0).contains(&memory.values()[1]), "{:?}", memory.values());
    }

    /// Goal: the quantile finds the top thousandth of a known population, and cannot be driven up in an hour.
    #[test]
    #[cfg_attr(miri, ignore = "hundreds of thousands of samples of plain arithmetic")]
    fn the_quantile_settles() {
        let mut quantiles = Quantiles::default();
        let mut number = 1_u64;
        for step in 0..400_000_u64 {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let now = Mono::from_nanos(step * 1_000_000_000);
            // Evenly 0 to 99, and one in 500 is 300.
            let uniform = (number >> 33) % 50_000;
            let count = if uniform < 100 { 300 } else { uniform % 100 };
            quantiles.sample(2, count, now, true);
        }
        let settled = quantiles.values()[2];
        assert!((200.0..320.0).contains(&settled), "{settled}");
        for (bounded, least, most) in [(true, 0.0, settled * 1.5 + 1.0), (false, 5_000.0, 1e6)] {
            let mut driven = quantiles;
            for step in 0..3_000_u64 {
                driven.sample(2, 9_999, Mono::from_nanos(400_000_000_000_000 + step), bounded);
            }
            assert!((least..most).contains(&driven.values()[2]), "{:?}", driven.values());
        }
    }

    proptest! {
        /// Goal: whatever was learned, no bound is under its floor or over its ceiling.
        #[test]
        fn bounds_stay_between_floor_and_ceiling(
            age: f64, learning: f64, peaks: [f64; 4], hours: Option<[f64; 4]>, others: [u64; 4],
            crowd_peaks: [f64; 4], counts: [u64; 4], floor in 1_u64..100_000, above in 0_u64..3_000_000,
            alone in 1.0_f64..100.0,
        ) {
            let mut surge = Surge { alone, ..Surge::of_keys(6_000) };
            for window in surge.windows.iter_mut().flatten() {
                (window.floor, window.ceiling) = (floor, floor + above);
            }
            prop_assert!(surge.check().is_ok());
            let surge = surge.rounded();
            let crowd = Some(Crowd { counts: others, peaks: crowd_peaks });
            let at = Situation { age, learning, peaks, hours, crowd, counts };
            for (bound, window) in surge.bounds(&at).iter().zip(surge.windows) {
                let window = window.unwrap();
                prop_assert!(window.ceiling <= floor + above);
                prop_assert!(bound.floor() >= window.floor && bound.floor() <= window.ceiling);
            }
        }

        /// Goal: no life of a memory makes a peak above what it ever saw.
        #[test]
        fn peaks_are_never_above_what_was_seen(
            steps in proptest::collection::vec((0_u8..6, 0_u64..100_000), 1..100),
        ) {
            let (mut memory, mut most) = (SurgeMemory::default(), 1);
            for (step, count) in steps {
                match step {
                    0 => memory.learn([count; 4]),
                    1 => { memory.turn(); }
                    2 => memory.decay(900.0, 1_000.0),
                    3 => memory.refuse([count; 4]),
                    4 => memory.accept(),
                    _ => memory.grow(1.5),
                }
                most = most.max(count);
                let most = Short::up(wide(most)).value();
                prop_assert!(memory.values().iter().all(|&peak| peak <= most));
            }
        }
    }
}
