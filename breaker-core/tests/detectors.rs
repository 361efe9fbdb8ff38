//! Detectors through the public door: what calls and looks find, what it trips, what is told, what a restart keeps.

#![expect(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use breaker_core::{
    Breaker, By, Call, Capacity, Cause, Class, DetectorKind, DetectorSpec, Errors, Finding,
    GroupSpec, KeySpec, KillLevel, Level, LimitSpec, Mono, OnFind, Outcome, Policy, PolicySpec,
    Recover, Repeat, Restart, RouteSpec, SavedWhole, Scope, ScopeSpec, Seed, Span, Spread, State,
    Streak, Surge, SurgeWindow, Sweeper, Transition, Verdict,
};

const HOLD: Span = Span::from_secs(300);
const PROBE: Recover = Recover::Probe { probes: 1, after: HOLD, at_most: HOLD };

/// One route in virtual time, swept once a second.
struct House {
    breaker: Breaker,
    policy: Policy,
    sweeper: Sweeper,
    now: Mono,
    moves: Vec<Transition>,
    findings: Vec<Finding>,
}

impl House {
    fn new(route: Vec<DetectorSpec>, keys: Vec<DetectorSpec>) -> House {
        let breaker = Breaker::new(Capacity { scopes: 8, keys: 256 }, Seed([1, 2]));
        let policy = breaker.compile(&spec(route, keys)).unwrap();
        let sweeper = Sweeper::new();
        let (moves, findings) = (Vec::new(), Vec::new());
        House { breaker, policy, sweeper, now: Mono::ZERO, moves, findings }
    }

    fn call(&self, account: u64) -> Call {
        let route = self.policy.route(&Scope::parse("/pay/orders").unwrap()).unwrap();
        Call::new(route).with_key(0, self.breaker.hash_u64(account))
    }

    /// One call and how it ends; false if it was denied.
    fn does(&self, call: Call, outcome: Outcome) -> bool {
        match self.breaker.admit(&self.policy, call, self.now) {
            Verdict::Allow(permit) => {
                permit.settle(outcome, self.now);
                true
            }
            Verdict::Deny(_) => false,
        }
    }

    fn good(&self, account: u64, count: u64) -> u64 {
        (0..count).map(|_| u64::from(self.does(self.call(account), Outcome::Good))).sum()
    }

    fn second(&mut self) {
        self.now = self.now.plus(Span::from_secs(1));
        self.sweeper.sweep(&self.breaker, &self.policy, self.now, &mut self.moves);
        self.findings.extend(self.sweeper.findings());
    }

    /// Seconds of what `calls` does.
    fn live(&mut self, seconds: u64, calls: impl Fn(&House, u64)) {
        for second in 0..seconds {
            calls(self, second);
            self.second();
        }
    }

    fn tripped(&self) -> Vec<(Level, Option<Cause>)> {
        let trips = self.moves.iter().filter(|moved| moved.to == State::Tripped);
        trips.map(|moved| (moved.place.level, moved.cause)).collect()
    }
}

/// One route and a dimension of keys.
fn spec(route: Vec<DetectorSpec>, keys: Vec<DetectorSpec>) -> PolicySpec {
    let dimension =
        KeySpec { name: "account".into(), detectors: keys, recover: PROBE, ..KeySpec::default() };
    let scope = ScopeSpec {
        detectors: route,
        recover: PROBE,
        keys: vec![dimension],
        ..ScopeSpec::default()
    };
    let orders =
        RouteSpec { name: "orders".into(), group: "pay".into(), class: Class::Normal, scope };
    PolicySpec {
        global: ScopeSpec::default(),
        groups: vec![GroupSpec { name: "pay".into(), scope: ScopeSpec::default() }],
        routes: vec![orders],
    }
}

fn of(kind: DetectorKind) -> DetectorSpec {
    DetectorSpec::new(kind)
}

/// Learns from the first second on, with no wide margin.
fn eager(surge: Surge) -> DetectorSpec {
    of(DetectorKind::Surge(Surge { start_after: Span::ZERO, young_margin: 0.0, ..surge }))
}

const BY_DETECTOR: Option<Cause> = Some(Cause::Tripped(By::Detector(0)));

/// Goal: a key's surge is refused at the very call that exceeds the bound, trips that key alone, and is told with what was seen;
/// after the hold it comes back by a probe, and may call as before.
#[test]
fn a_surging_key_is_cut_at_the_call() {
    let mut house = House::new(vec![], vec![eager(Surge::of_keys(60_000))]);
    house.live(3 * 3_600, |house, second| {
        for account in 0..20 {
            house.good(account, u64::from(second % 20 == account));
        }
    });
    assert_eq!((house.moves.len(), house.findings.len()), (0, 0));
    let passed = house.good(3, 100);
    assert!((15..=20).contains(&passed), "{passed} passed: the floor of a second is 20");
    assert!(house.good(4, 1) == 1, "another key was cut");
    house.second();
    assert_eq!(house.tripped(), [(Level::Key, BY_DETECTOR)]);
    let [finding] = house.findings[..] else { panic!("{:?}", house.findings) };
    assert_eq!(finding.place, house.moves[0].place);
    let found = finding.found;
    assert_eq!((found.value, found.bound, found.on_find), (21.0, 20.0, OnFind::Trip));
    assert_eq!((found.window, found.learned), (Span::from_secs(1), true));
    house.live(301, |_, _| {});
    assert_eq!(house.good(3, 1), 1, "the probe");
    house.second();
    assert_eq!(house.good(3, 10), 10);
}

/// Goal: where one key makes more than half of a route's surge, that key is cut and not the route: by its own call, and by
/// the call of another as well.
#[test]
fn the_hog_is_cut_and_not_the_route() {
    for unlucky in [false, true] {
        let keys = Surge { windows: [None; 4], ..Surge::of_keys(60_000) };
        let mut keys = Surge { start_after: Span::ZERO, ..keys };
        // The keys' own bounds are out of reach.
        keys.windows[3] = Some(SurgeWindow { factor: None, floor: 1, ceiling: 1_000_000 });
        let mut house = House::new(
            vec![of(DetectorKind::Surge(Surge::of_route(600_000)))],
            vec![of(DetectorKind::Surge(keys))],
        );
        house.live(8 * 3_600, |house, second| {
            house.good(second % 20, 2);
        });
        assert!(house.moves.is_empty(), "{:?}", house.moves);
        let mut passed = 0;
        while passed < 2_000 {
            if house.good(7, if unlucky { 6 } else { 9 }) == 0 {
                break;
            }
            passed += house.good(8 + passed % 5, if unlucky { 4 } else { 1 }) + 1;
            house.second();
        }
        house.second();
        assert_eq!(
            house.tripped(),
            [(Level::Key, Some(Cause::Tripped(By::Wider)))],
            "unlucky: {unlucky}"
        );
        assert_eq!(house.moves[0].place.key.unwrap().1, house.breaker.hash_u64(7));
        assert_eq!(house.findings[0].place.level, Level::Route);
        assert_eq!(house.good(9, 1), 1);
    }
}

/// Goal: faults beyond the ceiling trip at the look, and the finding names share and counts; a detector that only warns denies
/// nobody.
#[test]
fn errors_trip_or_warn() {
    for warns in [false, true] {
        let errors = of(DetectorKind::Errors(Errors::default()));
        let errors = if warns { errors.warning() } else { errors };
        let mut house = House::new(vec![errors], vec![]);
        house.live(20, |house, _| {
            for _ in 0..10 {
                house.does(house.call(1), Outcome::Fault);
            }
        });
        assert_eq!(house.findings.len(), 1, "{:?}", house.findings);
        let found = house.findings[0].found;
        assert!(
            found.value > found.bound && found.count >= 9 && found.of >= found.count,
            "{found:?}"
        );
        assert_eq!(house.tripped().is_empty(), warns);
        assert_eq!(house.good(2, 1) == 1, warns);
    }
}

/// Goal: faults in a row trip a key at the settlement; five keys so tripped trip their route.
#[test]
fn a_spread_of_streaks_trips_the_route() {
    let spread = Spread { children: Some(5), share: None, ..Spread::default() };
    let streak = of(DetectorKind::Streak(Streak { count: 3, or_slow: false }));
    let mut house = House::new(vec![of(DetectorKind::Spread(spread))], vec![streak]);
    for account in 0..5 {
        assert_eq!(house.tripped().len(), usize::try_from(account).unwrap());
        for _ in 0..3 {
            assert!(house.does(house.call(account), Outcome::Fault));
        }
        assert!(!house.does(house.call(account), Outcome::Good), "not at once");
        house.second();
        assert_eq!(house.good(100, 1), 1);
    }
    house.second();
    assert_eq!(house.tripped().last(), Some(&(Level::Route, BY_DETECTOR)));
    assert_eq!(house.good(100, 1), 0);
}

/// Goal: the same call over and over trips its key, other calls do not.
#[test]
fn a_loop_is_cut() {
    let mut house = House::new(vec![], vec![of(DetectorKind::Repeat(Repeat::default()))]);
    for turn in 0..40_u64 {
        let same = house.breaker.fingerprint(&[b"POST", b"/orders/7"]);
        let other = house.breaker.fingerprint(&[b"POST", &turn.to_le_bytes()]);
        let passed = house.does(house.call(1).with_fingerprint(same), Outcome::Good);
        assert_eq!(passed, turn < 24, "turn {turn}");
        assert!(house.does(house.call(2).with_fingerprint(other), Outcome::Good));
    }
    house.second();
    assert_eq!(house.tripped(), [(Level::Key, BY_DETECTOR)]);
    assert_eq!(house.findings[0].found.count, 25);
}

/// Goal: learned bounds cut off at most so many keys at once; those beyond are told as warnings. A ceiling has no cap.
#[test]
fn learned_bounds_cut_off_a_few_at_once() {
    for (a_minute, most) in [(60_000, 16), (60, 40)] {
        let mut house = House::new(vec![], vec![eager(Surge::of_keys(a_minute))]);
        house.live(60, |house, second| {
            for account in 0..40 {
                house.good(account, u64::from(second % 20 == account % 20));
            }
        });
        for account in 0..40 {
            house.good(account, 30);
        }
        house.live(3, |_, _| {});
        assert_eq!(house.tripped().len(), most);
        let warned = house.findings.iter().filter(|at| at.found.on_find == OnFind::Warn).count();
        assert_eq!(warned, 40 - most);
    }
}

/// Goal: what was learned is saved and taken up: after a restart a key is held to its own past, not to nothing; and a person's
/// word makes a new normal.
#[test]
fn learned_is_saved_and_taken_up() {
    let surge = || vec![of(DetectorKind::Surge(Surge::of_keys(600_000)))];
    let calm = |house: &House, second: u64| {
        house.good(second % 10, 1);
    };
    let mut first = House::new(vec![], surge());
    first.live(8 * 3_600, calm);
    let learned = first.sweeper.learned(&first.breaker, &first.policy, first.now);
    assert_eq!(learned.len(), 11, "ten keys, and all of them together");
    for taken_up in [false, true] {
        let mut second = House::new(vec![], surge());
        if taken_up {
            let away = Span::from_secs(60);
            let refused =
                second.sweeper.relearn(&second.breaker, &second.policy, &learned, away, second.now);
            assert!(refused.is_empty(), "{refused:?}");
        }
        second.live(60, calm);
        second.good(3, 500);
        second.second();
        assert_eq!(second.tripped().len(), usize::from(taken_up));
    }
}

/// Goal: one save and one restore carry all of it over a restart: a kill, a budget, and what a route and its keys had learned, so that a
/// runaway trips the second process as it would have tripped the first; under another seed the keys' part is told and left out.
#[test]
fn one_restore_carries_standings_and_what_was_learned() {
    let build = || {
        let surge = |surge| vec![of(DetectorKind::Surge(surge))];
        House::new(surge(Surge::of_route(6_000_000)), surge(Surge::of_keys(600_000)))
    };
    let calm = |house: &House, second: u64| {
        house.good(second % 10, 1);
    };
    let mut first = build();
    first.live(8 * 3_600, calm);
    let killed = Scope::parse("/pay/orders/account=7").unwrap();
    first.breaker.kill(&first.policy, &killed, KillLevel::Cut, first.now).unwrap();
    first.second();
    let saved = first.sweeper.save(&first.breaker, &first.policy, first.now);
    assert_eq!(saved.standings, first.breaker.save(&first.policy, first.now));
    let learned = first.sweeper.learned(&first.breaker, &first.policy, first.now);
    assert_eq!((&saved.learned, saved.learned.len()), (&learned, 12));
    let how = (Restart::Crash, Span::from_secs(60));
    for whole in [false, true] {
        let mut second = build();
        let part = if whole { saved.learned.clone() } else { Vec::new() };
        let saved = SavedWhole { learned: part, ..saved.clone() };
        let told = second.sweeper.restore(&second.breaker, &second.policy, &saved, how, second.now);
        assert!(told.unlearned.is_empty() && told.missed.is_empty(), "{told:?}");
        assert_eq!(second.good(7, 1), 0, "the kill was lost");
        second.live(60, calm);
        second.moves.clear();
        second.good(3, 500);
        second.second();
        assert_eq!(second.tripped().len(), usize::from(whole), "{whole}");
    }
    let mut other = build();
    other.breaker = Breaker::new(Capacity { scopes: 8, keys: 256 }, Seed([1, 3]));
    other.policy = other.breaker.compile(&spec(vec![], vec![])).unwrap();
    let told = other.sweeper.restore(&other.breaker, &other.policy, &saved, how, other.now);
    assert_eq!(told.unlearned.len(), 10, "the keys' part");
}

/// A route and its keys under limits and detectors that calls find something with; `long` adds a candidate that refuses nobody, so that
/// no decision is short.
fn ways(limits: &[LimitSpec], warns: bool, long: bool) -> (Breaker, Policy) {
    let surge = |surge: Surge| {
        let second = SurgeWindow { factor: None, floor: 1, ceiling: 9 };
        let ten = SurgeWindow { ceiling: 40, ..second };
        of(DetectorKind::Surge(Surge { windows: [Some(second), Some(ten), None, None], ..surge }))
    };
    let repeat = of(DetectorKind::Repeat(Repeat { count: 6, ..Repeat::default() }));
    let streak = of(DetectorKind::Streak(Streak { count: 4, or_slow: false }));
    let repeat_first = if warns { repeat.clone().warning() } else { repeat.clone() };
    let key = KeySpec {
        name: "account".into(),
        detectors: vec![repeat_first, surge(Surge::of_keys(60)), streak],
        limits: limits.iter().filter(|limit| limit.name.is_empty()).cloned().collect(),
        recover: PROBE,
        ..KeySpec::default()
    };
    let scope = ScopeSpec {
        detectors: vec![repeat, surge(Surge::of_route(60))],
        limits: limits.iter().filter(|limit| !limit.name.is_empty()).cloned().collect(),
        recover: PROBE,
        keys: vec![key],
        ..ScopeSpec::default()
    };
    let second = Span::from_secs(1);
    let all = LimitSpec::rate(1_000_000, second, 1_000_000).candidate();
    let global = ScopeSpec { limits: vec![all; usize::from(long)], ..ScopeSpec::default() };
    let orders =
        RouteSpec { name: "orders".into(), group: "pay".into(), class: Class::Normal, scope };
    let group = GroupSpec { name: "pay".into(), scope: ScopeSpec::default() };
    let spec = PolicySpec { global, groups: vec![group], routes: vec![orders] };
    let breaker = Breaker::new(Capacity { scopes: 8, keys: 16 }, Seed([1, 2]));
    let policy = breaker.compile(&spec).unwrap();
    (breaker, policy)
}

/// Goal: the short way through a decision answers, trips and counts as the long way does, call by call over random lives, whatever limits
/// stand beside the detectors: the short way once took no route with such detectors, and a lone rate of keys knows nothing of
/// them.
#[test]
fn the_short_way_finds_what_the_long_way_finds() {
    let second = Span::from_secs(1);
    let wide = || LimitSpec::rate(50, second, 7).named("route");
    let tables = [
        vec![],
        vec![LimitSpec::rate(1_000, second, 1_000)],
        vec![LimitSpec::rate(8, second, 8), wide()],
        vec![LimitSpec::window(6, second)],
        vec![LimitSpec::window(7, second), LimitSpec::window(9, second).named("route")],
        vec![LimitSpec::in_flight(3), LimitSpec::budget(100).named("route")],
    ];
    let (mut trips, mut denials) = (0, 0);
    for seed in 0..120_u64 {
        let limits = &tables[usize::try_from(seed).unwrap() % tables.len()];
        let houses = [false, true].map(|long| ways(limits, seed % 2 == 0, long));
        let mut sweepers = [Sweeper::new(), Sweeper::new()];
        let mut chance = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: u64| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (chance >> 33) % below
        };
        let mut now = Mono::ZERO.plus(second);
        for _ in 0..600 {
            now = now.plus(Span::from_millis(
                [0, 1, 20, 150, 2_000][usize::try_from(random(5)).unwrap()],
            ));
            let (account, print, fails) = (random(4), random(12), random(6) == 0);
            let answers = [0, 1].map(|house: usize| {
                let (breaker, policy) = &houses[house];
                let route = policy.route(&Scope::parse("/pay/orders").unwrap()).unwrap();
                let call = Call::new(route)
                    .with_key(0, breaker.hash_u64(account))
                    .with_fingerprint(breaker.hash_u64(print));
                let outcome = if fails { Outcome::Fault } else { Outcome::Good };
                match breaker.admit(policy, call, now) {
                    Verdict::Allow(permit) => Ok(permit.settle(outcome, now)),
                    Verdict::Deny(denial) => Err(denial),
                }
            });
            assert_eq!(answers[0], answers[1], "{limits:?}, seed {seed}");
            denials += u64::from(answers[0].is_err());
            if random(10) == 0 {
                let told = [0, 1].map(|house: usize| {
                    let ((breaker, policy), mut moves) = (&houses[house], Vec::new());
                    sweepers[house].sweep(breaker, policy, now, &mut moves);
                    (moves, sweepers[house].findings().collect::<Vec<_>>())
                });
                assert_eq!(told[0], told[1], "{limits:?}, seed {seed}");
                trips += told[0].0.iter().filter(|moved| moved.to == State::Tripped).count();
            }
            if random(60) == 0 {
                now = now.plus(HOLD);
            }
        }
    }
    assert!(trips > 500 && denials > 5_000, "{trips} trips and {denials} denials are no life");
}
