//! Random life against slow oracles, and threads against arithmetic; each failure prints what replays it.

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails says so by a panic"
)]

mod oracle;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use breaker_core::{
    Breaker, By, Call, Capacity, Cause, Class, Denial, GroupSpec, KeySpec, KillLevel, LiftTo,
    LimitSpec, Mode, Mono, Outcome, Permit, Policy, PolicySpec, Recover, RouteSpec, Scope,
    ScopeSpec, Seed, Senders, Span, Stamp, State, Sweeper, Verdict,
};
use oracle::{Answer, Kind};
use proptest::prelude::*;

/// The gate's unit: all instants and lengths here are whole numbers of it.
const UNIT: u64 = 1 << 24;

fn at(units: u64) -> Mono {
    Mono::from_nanos(units * UNIT)
}

fn span(units: u64) -> Span {
    Span::from_nanos(units * UNIT)
}

fn path(path: &str) -> Scope {
    Scope::parse(path).unwrap()
}

/// One scope's rules in both languages.
#[derive(Clone, Debug)]
struct Rules {
    limits: Vec<(Kind, bool, bool)>,
    shadow: bool,
    probes: u8,
    holds: Option<(u64, u64)>,
}

impl Rules {
    fn limits(&self) -> Vec<LimitSpec> {
        let spec = |&(kind, offered, trips): &(Kind, bool, bool)| {
            let limit = match kind {
                Kind::Window { count, length } => LimitSpec::window(count as u64, span(length)),
                Kind::Rate { cost, burst } => LimitSpec::rate(1, span(cost), burst),
            };
            let limit = if offered { limit.offered() } else { limit };
            if trips { limit.tripping() } else { limit }
        };
        self.limits.iter().map(spec).collect()
    }

    fn recover(&self) -> Recover {
        let probes = self.probes;
        match self.holds {
            None => Recover::Manual { probes },
            Some((first, longest)) => {
                Recover::Probe { probes, after: span(first), at_most: span(longest) }
            }
        }
    }

    fn mode(&self) -> Mode {
        if self.shadow { Mode::Shadow } else { Mode::Enforce }
    }

    fn scope(&self) -> ScopeSpec {
        ScopeSpec {
            limits: self.limits(),
            recover: self.recover(),
            mode: self.mode(),
            ..ScopeSpec::default()
        }
    }

    fn key(&self, name: &str) -> KeySpec {
        KeySpec {
            name: name.into(),
            limits: self.limits(),
            recover: self.recover(),
            mode: self.mode(),
            ..KeySpec::default()
        }
    }

    fn oracle(&self) -> oracle::Scope {
        let limits = self.limits.iter().map(|&(k, o, t)| oracle::Limit::new(k, o, t)).collect();
        oracle::Scope::new(limits, self.shadow, self.probes.into(), self.holds)
    }
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (1..5_usize, 1..40_u64).prop_map(|(count, length)| Kind::Window { count, length }),
        (1..20_u64, 1..4_u64).prop_map(|(cost, burst)| Kind::Rate { cost, burst }),
    ]
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let limit = (any_kind(), any::<bool>(), prop::bool::weighted(0.3));
    let holds = prop::option::weighted(0.8, (12..40_u64, 40..100_u64));
    (prop::collection::vec(limit, 0..3), prop::bool::weighted(0.2), 1..4_u8, holds)
        .prop_map(|(limits, shadow, probes, holds)| Rules { limits, shadow, probes, holds })
}

#[derive(Clone, Debug)]
enum Act {
    Call { account: Option<u8>, symbol: Option<u8>, reducing: bool },
    Settle { which: usize, outcome: Option<Outcome> },
    Kill { scope: usize, cut: bool },
    Lift { which: usize, to: u8 },
    Trip { scope: usize },
    Reset { scope: usize },
    Sweep,
    Wait(u64),
    Back(u64),
}

fn any_act() -> impl Strategy<Value = Act> {
    let key = || prop::option::weighted(0.7, 0..3_u8);
    let outcome = prop_oneof![
        Just(None),
        Just(Some(Outcome::Good)),
        Just(Some(Outcome::Good)),
        Just(Some(Outcome::Slow)),
        Just(Some(Outcome::Fault)),
    ];
    prop_oneof![
        12 => (key(), key(), prop::bool::weighted(0.1)).prop_map(
            |(account, symbol, reducing)| Act::Call { account, symbol, reducing }
        ),
        6 => (0..8_usize, outcome).prop_map(|(which, outcome)| Act::Settle { which, outcome }),
        1 => (0..10_usize, any::<bool>()).prop_map(|(scope, cut)| Act::Kill { scope, cut }),
        2 => (0..4_usize, 0..3_u8).prop_map(|(which, to)| Act::Lift { which, to }),
        1 => (0..10_usize).prop_map(|scope| Act::Trip { scope }),
        1 => (0..10_usize).prop_map(|scope| Act::Reset { scope }),
        2 => Just(Act::Sweep),
        5 => (0..30_u64).prop_map(Act::Wait),
        1 => (0..5_u64).prop_map(Act::Back),
    ]
}

/// `/`, `/g`, `/g/r`, `/g/c` (reducing), accounts of `/g`, symbols of `/g/r`.
const SCOPES: [&str; 10] = [
    "/",
    "/g",
    "/g/r",
    "/g/c",
    "/g/account=0",
    "/g/account=1",
    "/g/account=2",
    "/g/r/symbol=0",
    "/g/r/symbol=1",
    "/g/r/symbol=2",
];

/// A permit, the lineage it was given for, and the probes the oracle counts it as.
type Held<'b> = (Permit<'b>, Vec<String>, Vec<(usize, u64)>);

struct World<'b> {
    breaker: &'b Breaker,
    policy: &'b Policy,
    scopes: BTreeMap<String, oracle::Scope>,
    sweeper: Sweeper,
    permits: Vec<Held<'b>>,
    stamps: Vec<(Stamp, String, u64)>,
    now: u64,
}

impl World<'_> {
    fn act(&mut self, act: &Act) {
        let now = at(self.now);
        match *act {
            Act::Wait(units) => self.now += units,
            Act::Back(units) => self.now = self.now.saturating_sub(units),
            Act::Call { account, symbol, reducing } => self.call(account, symbol, reducing),
            Act::Settle { which, outcome } => {
                if self.permits.is_empty() {
                    return;
                }
                let (permit, lineage, probes) = self.permits.remove(which % self.permits.len());
                let moved = match outcome {
                    Some(outcome) => permit.settle(outcome, now),
                    None => {
                        drop(permit);
                        false
                    }
                };
                let mut expected = false;
                for (index, moves) in probes {
                    let scope = self.scopes.get_mut(&lineage[index]).unwrap();
                    let good = outcome.map(|outcome| outcome == Outcome::Good);
                    expected |= scope.probe(moves, good, self.now);
                }
                assert_eq!(moved, expected);
            }
            Act::Kill { scope, cut } => {
                let level = if cut { KillLevel::Cut } else { KillLevel::Halt };
                let stamp =
                    self.breaker.kill(self.policy, &path(SCOPES[scope]), level, now).unwrap();
                let model = self.scopes.get_mut(SCOPES[scope]).unwrap();
                model.kill(cut);
                self.stamps.push((stamp, SCOPES[scope].into(), model.moves));
            }
            Act::Lift { which, to } => self.lift(which, to),
            Act::Trip { scope } => {
                let done = self.breaker.trip(self.policy, &path(SCOPES[scope]), now);
                let model = self.scopes.get_mut(SCOPES[scope]).unwrap();
                model.trip(self.now);
                let killed = matches!(model.state, oracle::State::Halted | oracle::State::Cut);
                assert_eq!(done.is_err(), killed);
                if let Ok(stamp) = done {
                    self.stamps.push((stamp, SCOPES[scope].into(), model.moves));
                }
            }
            Act::Reset { scope } => {
                let done = self.breaker.reset(self.policy, &path(SCOPES[scope]), now);
                let model = self.scopes.get_mut(SCOPES[scope]).unwrap();
                match model.state {
                    oracle::State::Tripped | oracle::State::HalfOpen => {
                        model.arm();
                        assert_eq!(done, Ok(true));
                    }
                    oracle::State::Armed => model.strikes = 0,
                    oracle::State::Halted | oracle::State::Cut => assert!(done.is_err()),
                }
            }
            Act::Sweep => {
                let mut out = Vec::new();
                self.sweeper.sweep(self.breaker, self.policy, now, &mut out);
                self.scopes.values_mut().for_each(|scope| scope.elapse(self.now));
            }
        }
    }

    fn lift(&mut self, which: usize, to: u8) {
        if self.stamps.is_empty() {
            return;
        }
        let (stamp, name, moves) =
            self.stamps[self.stamps.len() - 1 - which % self.stamps.len()].clone();
        let model = self.scopes.get_mut(&name).unwrap();
        let (to, state) = match to {
            0 => (LiftTo::Halt, oracle::State::Halted),
            1 => (LiftTo::HalfOpen, oracle::State::HalfOpen),
            _ => (LiftTo::Armed, oracle::State::Armed),
        };
        let done = self.breaker.lift(self.policy, stamp, to, at(self.now));
        if model.moves != moves {
            assert!(done.is_err(), "a lift that has not seen the newest move did something");
            return;
        }
        match (state, model.state) {
            (oracle::State::Halted, oracle::State::Cut) => {
                model.state = state;
                model.moves += 1;
            }
            (oracle::State::Halted, _) => {}
            (oracle::State::HalfOpen, oracle::State::Armed | oracle::State::HalfOpen) => {}
            (oracle::State::HalfOpen, _) => model.half_open(),
            (_, oracle::State::Armed) => {}
            _ => model.arm(),
        }
        if let Ok(stamp) = done {
            self.stamps.push((stamp, name, model.moves));
        }
    }

    fn call(&mut self, account: Option<u8>, symbol: Option<u8>, reducing: bool) {
        let own = if reducing { "/g/c" } else { "/g/r" };
        let mut call = Call::new(self.policy.route(&path(own)).unwrap());
        let mut lineage: Vec<String> = ["/", "/g", own].map(String::from).into();
        if let Some(account) = account {
            lineage.push(format!("/g/account={account}"));
            call = call.with_key(0, self.breaker.hash(account.to_string().as_bytes()));
        }
        if let (Some(symbol), false) = (symbol, reducing) {
            lineage.push(format!("/g/r/symbol={symbol}"));
            call = call.with_key(1, self.breaker.hash(symbol.to_string().as_bytes()));
        }
        let answer = oracle::decide(&mut self.scopes, &lineage, reducing, self.now);
        match self.breaker.admit(self.policy, call, at(self.now)) {
            Verdict::Deny(denial) => {
                let said = self.translate(&denial, &lineage);
                assert_eq!(said, answer, "{denial:?}");
                assert_eq!(denial.moved, matches!(answer, Answer::Breach { .. }));
            }
            Verdict::Allow(permit) => {
                let Answer::Pass { probes, shadowed } = answer else {
                    panic!("allowed, and the oracle says {answer:?}");
                };
                assert_eq!(permit.shadowed().is_some(), shadowed);
                // Shadow lets calls through a tripped gate: nothing stands against them later.
                assert_eq!(self.breaker.look(&permit.pass(), at(self.now)), Ok(()));
                self.permits.push((permit, lineage, probes));
            }
        }
    }

    /// The crate's denial in the oracle's words.
    fn translate(&self, denial: &Denial, lineage: &[String]) -> Answer {
        let (parent, dimension) = self.policy.scope_of(denial.place).unwrap();
        let prefix = match dimension {
            None => parent.to_string(),
            Some(name) => format!("{}/{name}=", parent.as_str().trim_end_matches('/')),
        };
        let fits =
            |name: &String| name == &prefix || prefix.ends_with('=') && name.starts_with(&prefix);
        let scope = lineage.iter().position(fits).unwrap();
        match denial.cause {
            Cause::Limit(limit) => {
                let wait = denial.wait.unwrap().as_nanos();
                assert_eq!(wait % UNIT, 0);
                Answer::Limit { scope, limit: limit.into(), wait: wait / UNIT }
            }
            Cause::Tripped(By::Limit(limit)) if denial.moved => {
                Answer::Breach { scope, limit: limit.into() }
            }
            Cause::Tripped(_) | Cause::ProbeFailed => {
                let model = &self.scopes[&lineage[scope]];
                let left = denial.wait.map(|wait| wait.as_nanos().div_ceil(UNIT));
                if let Some(left) = left {
                    assert_eq!(self.now + left, model.until, "the wait is exact");
                }
                Answer::Tripped { scope }
            }
            Cause::Probing => Answer::Probing { scope },
            Cause::Killed(level) => Answer::Killed { scope, cut: level == KillLevel::Cut },
            Cause::Stale => panic!("stale"),
        }
    }

    /// Every scope stands where the oracle says.
    fn check(&self) {
        for (name, model) in &self.scopes {
            let standing = self.breaker.standing(self.policy, &path(name), at(self.now)).unwrap();
            let expected = match model.state {
                oracle::State::Armed => State::Armed,
                oracle::State::Tripped if model.is_over(self.now) => State::HalfOpen,
                oracle::State::Tripped => State::Tripped,
                oracle::State::HalfOpen => State::HalfOpen,
                oracle::State::Halted => State::Killed(KillLevel::Halt),
                oracle::State::Cut => State::Killed(KillLevel::Cut),
            };
            assert_eq!(standing.state, expected, "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// Goal: a random life of one breaker, beside the same rules written slowly: every answer, every
    /// wait and every state agree, also when `now` runs back.
    #[test]
    fn a_random_life_agrees_with_the_oracle(
        rules in prop::collection::vec(any_rules(), 6),
        acts in prop::collection::vec(any_act(), 1..150),
    ) {
        let mut spec = PolicySpec {
            global: rules[0].scope(),
            groups: vec![GroupSpec { name: "g".into(), scope: rules[1].scope() }],
            routes: Vec::new(),
        };
        spec.groups[0].scope.keys.push(rules[4].key("account"));
        for (name, class, rules) in
            [("r", Class::Normal, &rules[2]), ("c", Class::Reducing, &rules[3])]
        {
            let scope = rules.scope();
            spec.routes.push(RouteSpec { name: name.into(), group: "g".into(), class, scope });
        }
        spec.routes[0].scope.keys.push(rules[5].key("symbol"));
        let breaker = Breaker::new(Capacity { scopes: 4, keys: 64 }, Seed([7, 8]));
        // A limit that another makes idle is a mistake in a spec: not what is tried here.
        let Ok(policy) = breaker.compile(&spec) else { return Ok(()) };
        let which = |name: &str| match name {
            "/" => 0,
            "/g" => 1,
            "/g/r" => 2,
            "/g/c" => 3,
            _ if name.starts_with("/g/a") => 4,
            _ => 5,
        };
        let scopes = SCOPES.iter().map(|name| (name.to_string(), rules[which(name)].oracle())).collect();
        let mut world = World {
            breaker: &breaker, policy: &policy, scopes, sweeper: Sweeper::new(),
            permits: Vec::new(), stamps: Vec::new(), now: 1_000,
        };
        for act in &acts {
            world.act(act);
            world.check();
        }
        prop_assert_eq!(breaker.key_usage().overflowed, 0);
    }

    /// Goal: through the whole breaker, a window of N per W and a rate hold in every interval, and the
    /// promised wait is exact to the nanosecond, whatever the numbers and however `now` jumps.
    #[test]
    fn limits_hold_to_the_nanosecond(
        count in 1_u64..40, length in 1_u64..5_000, burst in 1_u64..10, window in any::<bool>(),
        steps in prop::collection::vec((0..4_u8, 0_u64..300), 1..300),
    ) {
        let length = Span::from_nanos(length);
        let limit = if window {
            LimitSpec::window(count, length)
        } else {
            LimitSpec::rate(count, length, burst)
        };
        let spec = PolicySpec {
            global: ScopeSpec { limits: vec![limit], ..ScopeSpec::default() },
            groups: vec![GroupSpec { name: "g".into(), scope: ScopeSpec::default() }],
            routes: vec![RouteSpec {
                name: "r".into(), group: "g".into(), class: Class::Normal, scope: ScopeSpec::default(),
            }],
        };
        let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
        let Ok(policy) = breaker.compile(&spec) else { return Ok(()) };
        let call = Call::new(policy.route(&path("/g/r")).unwrap());
        let mut now = 10_000_u64;
        let mut passed: Vec<u64> = Vec::new();
        for (kind, step) in steps {
            now = match kind { 0 => now.saturating_sub(step), 1 => now + step, _ => now };
            match breaker.admit(&policy, call, Mono::from_nanos(now)) {
                Verdict::Allow(_) => passed.push(now.max(passed.last().copied().unwrap_or(0))),
                Verdict::Deny(denial) => {
                    let wait = denial.wait.unwrap().as_nanos();
                    prop_assert!(wait > 0);
                    let early = Mono::from_nanos(now + wait - 1);
                    prop_assert!(!breaker.admit(&policy, call, early).is_allowed());
                    now += wait;
                    prop_assert!(breaker.admit(&policy, call, Mono::from_nanos(now)).is_allowed());
                    passed.push(now.max(passed.last().copied().unwrap_or(0)));
                }
            }
        }
        let n = usize::try_from(count).unwrap();
        for (index, first) in passed.iter().enumerate() {
            if window {
                if let Some(last) = passed.get(index + n) {
                    prop_assert!(last - first >= length.as_nanos());
                }
            } else {
                for (calls, last) in (1_u64..).zip(&passed[index..]) {
                    let free = calls.saturating_sub(burst);
                    prop_assert!(free * length.as_nanos() <= count * (last - first));
                }
            }
        }
    }
}

/// Goal: eight threads at one window through the whole breaker, under one clock that all of them
/// push on: no N + 1 admissions lie surely within one W, and nothing is refused for nothing. The clock is a
/// counter: each admission falls between the reading before it and the reading after it. (The
/// recorded instants themselves are checked exactly where the ring is.)
#[test]
fn eight_threads_stay_within_the_limits() {
    const COUNT: u64 = 20;
    const LENGTH: u64 = 1_000;
    let spec = PolicySpec {
        global: ScopeSpec {
            limits: vec![LimitSpec::window(COUNT, Span::from_nanos(LENGTH))],
            ..ScopeSpec::default()
        },
        groups: vec![GroupSpec { name: "g".into(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "r".into(),
            group: "g".into(),
            class: Class::Normal,
            scope: ScopeSpec::default(),
        }],
    };
    let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
    let policy = breaker.compile(&spec).unwrap();
    let call = Call::new(policy.route(&path("/g/r")).unwrap());
    let clock = AtomicU64::new(1);
    let mut passed: Vec<(u64, u64)> = std::thread::scope(|threads| {
        let spawned: Vec<_> = (0..8)
            .map(|_| {
                threads.spawn(|| {
                    let mut passed = Vec::new();
                    for _ in 0..20_000 {
                        let now = clock.fetch_add(1, Ordering::SeqCst);
                        if breaker.admit(&policy, call, Mono::from_nanos(now)).is_allowed() {
                            passed.push((now, clock.load(Ordering::SeqCst)));
                        }
                    }
                    passed
                })
            })
            .collect();
        spawned.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // Any N + 1 admissions, from before the first of them began to after the last of them ended.
    passed.sort_by_key(|&(_, after)| after);
    let n = usize::try_from(COUNT).unwrap();
    for some in passed.windows(n + 1) {
        let first = some.iter().map(|&(before, _)| before).min().unwrap();
        let last = some.iter().map(|&(_, after)| after).max().unwrap();
        assert!(last - first >= LENGTH, "{COUNT} and one in {}", last - first);
    }
    let most = (160_000 / LENGTH + 1) * COUNT;
    let got = passed.len() as u64;
    assert!(got <= most && got >= most / 2, "{got} of {most}");
}

/// Goal: real threads sending and one killing, again and again: nothing is written after silence.
#[test]
fn silence_is_silence_on_real_threads() {
    let spec = PolicySpec {
        groups: vec![GroupSpec { name: "g".into(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "r".into(),
            group: "g".into(),
            class: Class::Normal,
            scope: ScopeSpec::default(),
        }],
        ..PolicySpec::default()
    };
    let breaker = Breaker::new(Capacity { scopes: 2, keys: 0 }, Seed([7, 8]));
    let policy = breaker.compile(&spec).unwrap();
    let call = Call::new(policy.route(&path("/g/r")).unwrap());
    let senders = Senders::new(3);
    let done = AtomicU64::new(0);
    let written = [(); 3].map(|()| AtomicU64::new(0));
    std::thread::scope(|threads| {
        for (index, written) in written.iter().enumerate() {
            let (senders, breaker, policy, done) = (&senders, &breaker, &policy, &done);
            threads.spawn(move || {
                let sender = senders.sender(index).unwrap();
                while done.load(Ordering::Relaxed) == 0 {
                    let Verdict::Allow(permit) = breaker.admit(policy, call, Mono::ZERO) else {
                        std::hint::spin_loop();
                        continue;
                    };
                    let write = || written.fetch_add(1, Ordering::Relaxed);
                    let _ = sender.send(breaker, &permit.pass(), Mono::ZERO, write);
                }
            });
        }
        for _ in 0..2_000 {
            let stamp = breaker.kill(&policy, &path("/g"), KillLevel::Halt, Mono::ZERO).unwrap();
            let mut watch = senders.watch();
            // Bounded, so that a fault fails the test and does not hang it.
            let silent = (0..5_000_000).any(|_| {
                std::thread::yield_now();
                watch.is_silent()
            });
            let first = written.each_ref().map(|count| count.load(Ordering::Relaxed));
            for _ in 0..50 {
                std::hint::spin_loop();
            }
            let second = written.each_ref().map(|count| count.load(Ordering::Relaxed));
            let lifted = breaker.lift(&policy, stamp, LiftTo::Armed, Mono::ZERO);
            if !silent || first != second || lifted.is_err() {
                done.store(1, Ordering::Relaxed);
            }
            assert!(silent, "a sender never left");
            assert_eq!(first, second, "written after silence");
            assert!(lifted.is_ok());
        }
        done.store(1, Ordering::Relaxed);
    });
}
