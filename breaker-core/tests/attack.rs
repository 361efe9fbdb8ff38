//! Counterexamples: what an attacker, a race or a hasty embedder could do to a breaker, one test for each; each is named after what went wrong.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use breaker_core::{
    Breaker, By, Call, Capacity, Cause, Class, Denial, DetectorKind, DetectorSpec, GroupSpec,
    KeyOverride, KeySpec, KillLevel, LiftTo, LimitSpec, Missing, Mode, Mono, Newcomers, OrderError,
    Outcome, Permit, Policy, PolicySpec, Ratio, Recover, Repeat, Restart, RouteSpec, SavedWhole,
    Scope, ScopeSpec, Seed, Settlement, ShareOf, Span, Spread, State, Streak, Surge, SurgeWindow,
    Sweeper, Verdict,
};

const SECOND: Span = Span::from_secs(1);
const HOUR: Span = Span::from_secs(3_600);

fn at(millis: u64) -> Mono {
    Mono::ZERO.plus(Span::from_millis(millis))
}

fn scope(path: &str) -> Scope {
    Scope::parse(path).unwrap()
}

fn keyed(key: KeySpec) -> PolicySpec {
    spec(ScopeSpec { keys: vec![key], ..ScopeSpec::default() }, ScopeSpec::default())
}

fn key(limits: Vec<LimitSpec>) -> KeySpec {
    KeySpec { name: "account".into(), limits, ..KeySpec::default() }
}

fn streak(count: u32) -> DetectorSpec {
    DetectorSpec::new(DetectorKind::Streak(Streak { count, or_slow: false }))
}

fn ratio() -> ScopeSpec {
    let rule = Ratio { of: ShareOf::Faults, share: 0.5, minimum: 10, window: Span::from_secs(60) };
    let detectors = vec![DetectorSpec::new(DetectorKind::Ratio(rule))];
    ScopeSpec { detectors, ..ScopeSpec::default() }
}

/// `/desk/orders` and `/desk/cancels`, under one group.
fn spec(group: ScopeSpec, orders: ScopeSpec) -> PolicySpec {
    let route = |name: &str, class, scope| RouteSpec {
        name: name.into(),
        group: "desk".into(),
        class,
        scope,
    };
    PolicySpec {
        groups: vec![GroupSpec { name: "desk".into(), scope: group }],
        routes: vec![
            route("orders", Class::Normal, orders),
            route("cancels", Class::Reducing, ScopeSpec::default()),
        ],
        ..PolicySpec::default()
    }
}

struct House {
    breaker: Breaker,
    policy: Policy,
}

impl House {
    fn new(spec: &PolicySpec, keys: u32) -> House {
        let breaker = Breaker::new(Capacity { scopes: 16, keys }, Seed([3, 4]));
        let policy = breaker.compile(spec).unwrap();
        House { breaker, policy }
    }

    fn orders(&self) -> Call {
        Call::new(self.policy.route(&scope("/desk/orders")).unwrap())
    }

    fn of(&self, label: &str) -> Call {
        self.orders().with_key(0, self.breaker.hash(label.as_bytes()))
    }

    fn admit(&self, call: Call, now: Mono) -> Verdict<'_> {
        self.breaker.admit(&self.policy, call, now)
    }

    fn permit(&self, call: Call, now: Mono) -> Permit<'_> {
        match self.admit(call, now) {
            Verdict::Allow(permit) => permit,
            Verdict::Deny(denial) => panic!("denied: {denial:?}"),
        }
    }

    fn send(&self, call: Call, now: Mono) -> Result<(), Denial> {
        self.end(call, Outcome::Good, now)
    }

    fn end(&self, call: Call, outcome: Outcome, now: Mono) -> Result<(), Denial> {
        match self.admit(call, now) {
            Verdict::Allow(permit) => {
                permit.settle(outcome, now);
                Ok(())
            }
            Verdict::Deny(denial) => Err(denial),
        }
    }

    fn pass(&self, call: Call, count: usize, now: Mono) -> usize {
        (0..count).filter(|_| self.send(call, now).is_ok()).count()
    }

    fn state(&self, path: &str, now: Mono) -> State {
        self.breaker.standing(&self.policy, &scope(path), now).unwrap().state
    }
}

fn is_stale(verdict: &Verdict<'_>) -> bool {
    matches!(verdict, Verdict::Deny(denial) if denial.cause == Cause::Stale)
}

/// A house whose table is one bucket: `old` has a cell and permits that are still out, the rest is strangers'; then, all having
/// gone quiet, fourteen newcomers take all the cells.
fn inherited<'h>(house: &'h House, permits: usize, weight: u64) -> (Vec<Permit<'h>>, Vec<Call>) {
    let old = house.of("old").weighing(weight);
    let permits = (0..permits).map(|_| house.permit(old, at(0))).collect();
    for number in 0..13 {
        house.send(house.of(&format!("stranger{number}")).weighing(1), at(0)).unwrap();
    }
    let newcomers: Vec<_> =
        (0..30).map(|number| house.of(&format!("newcomer{number}")).weighing(1)).collect();
    for newcomer in &newcomers {
        house.send(*newcomer, at(2_000)).unwrap();
    }
    assert_eq!(house.breaker.key_usage().overflowed, 0, "each has a cell of its own");
    (permits, newcomers)
}

/// Goal: a route's number in one policy leads nowhere else in another: never from an order to a cancel, which passes a halt.
#[test]
fn a_route_number_of_an_older_policy_is_stale() {
    let mut reordered = spec(ScopeSpec::default(), ScopeSpec::default());
    let house = House::new(&reordered, 16);
    let orders = house.orders();
    reordered.routes.reverse();
    let newer = house.breaker.compile(&reordered).unwrap();
    house.breaker.kill(&newer, &scope("/desk/orders"), KillLevel::Halt, at(0)).unwrap();
    assert!(matches!(house.breaker.admit(&newer, orders, at(1)), Verdict::Deny(_)));
}

/// Goal: a policy moves nothing in a breaker that did not compile it, though its cells have the same numbers there: orders, sweeps and the long way
/// refuse it, and what the short way lets through ends in the policy's own memory, past no last look.
#[test]
fn a_policy_of_another_breaker_moves_nothing() {
    let own = KeySpec { missing: Missing::Skip, ..key(vec![LimitSpec::in_flight(1)]) };
    let orders = ScopeSpec { detectors: vec![streak(2)], ..ScopeSpec::default() };
    let group = ScopeSpec { keys: vec![own], ..ScopeSpec::default() };
    let all = spec(group.clone(), orders.clone());
    let (ours, theirs) = (House::new(&all, 16), House::new(&all, 16));
    let path = scope("/desk/orders");
    let foreign = Some(OrderError::Foreign);
    let kill = ours.breaker.kill(&theirs.policy, &path, KillLevel::Halt, at(0));
    assert_eq!(kill.err(), foreign);
    assert_eq!(ours.breaker.trip(&theirs.policy, &path, at(0)).err(), foreign);
    assert_eq!(ours.breaker.reset(&theirs.policy, &path, at(0)).err(), foreign);
    let shadow = ours.breaker.set_mode(&theirs.policy, &path, Some(Mode::Shadow), at(0));
    assert_eq!(shadow.err(), foreign);
    let stamp = ours.breaker.kill(&ours.policy, &path, KillLevel::Halt, at(0)).unwrap();
    let lift = ours.breaker.lift(&theirs.policy, stamp, LiftTo::Armed, at(0));
    assert_eq!(lift.err(), foreign);
    ours.breaker.lift(&ours.policy, stamp, LiftTo::Armed, at(0)).unwrap();
    let mut moved = Vec::new();
    Sweeper::new().sweep(&ours.breaker, &theirs.policy, at(0), &mut moved);
    assert!(moved.is_empty());
    assert!(is_stale(&ours.breaker.admit(&ours.policy, theirs.orders(), at(0))));

    // The short way: by the other's memory.
    let call = theirs.of("a");
    let Verdict::Allow(permit) = ours.breaker.admit(&theirs.policy, call, at(1)) else { panic!() };
    assert_eq!(ours.breaker.look(&permit.pass(), at(1)).unwrap_err().cause, Cause::Stale);
    assert!(theirs.send(call, at(1)).is_err(), "its place is taken there");
    assert!(!permit.settle(Outcome::Fault, at(1)));
    let Verdict::Allow(permit) = ours.breaker.admit(&theirs.policy, call, at(1)) else { panic!() };
    assert!(!permit.settle(Outcome::Fault, at(1)));
    assert_eq!(ours.state("/desk/orders", at(1)), State::Armed);
    assert!(theirs.send(call, at(1)).is_ok(), "and given back there");
    let ticket = theirs.permit(call, at(2)).detach();
    drop(
        ticket
            .attach(&ours.breaker, &theirs.policy)
            .unwrap_err()
            .attach(&ours.breaker, &ours.policy)
            .unwrap_err(),
    );

    // The long way: not at all.
    let long = ScopeSpec { mode: Mode::Shadow, ..orders };
    let theirs = House::new(&spec(group, long), 16);
    let call = theirs.of("b");
    assert!(is_stale(&ours.breaker.admit(&theirs.policy, call, at(3))));
    let peeked = ours.breaker.peek(&theirs.policy, call, at(3)).unwrap_err();
    assert_eq!(peeked.cause, Cause::Stale);
}

/// Goal: a ticket that is shown to the wrong policy still gives its place in flight back.
#[test]
fn a_ticket_shown_to_the_wrong_policy_keeps_no_place() {
    let orders = ScopeSpec { limits: vec![LimitSpec::in_flight(1)], ..ScopeSpec::default() };
    let all = spec(ScopeSpec::default(), orders);
    let house = House::new(&all, 16);
    let newer = house.breaker.compile(&all).unwrap();
    let ticket = house.permit(house.orders(), at(0)).detach();
    let ticket = ticket.attach(&house.breaker, &newer).unwrap_err();
    drop(ticket.attach(&house.breaker, &house.policy).unwrap());
    assert!(house.send(house.orders(), at(1)).is_ok(), "a place lost for ever");
}

/// Goal: late faults of a key that lost its cell meanwhile are not the next tenant's: it is not tripped for them.
#[test]
fn late_faults_trip_no_heir() {
    let own = KeySpec { detectors: vec![streak(5)], ..key(vec![LimitSpec::window(9, SECOND)]) };
    let house = House::new(&keyed(own), 16);
    let (permits, newcomers) = inherited(&house, 4, 1);
    for permit in permits {
        permit.settle(Outcome::Fault, at(2_001));
    }
    for (number, newcomer) in newcomers.into_iter().enumerate() {
        house.end(newcomer, Outcome::Fault, at(2_002)).unwrap();
        let path = format!("/desk/account=newcomer{number}");
        assert_eq!(house.state(&path, at(2_003)), State::Armed, "newcomer {number}");
    }
}

/// Goal: what a call turns out to weigh is charged to its own key, also if that lost its cell meanwhile, and not to the next tenant.
#[test]
fn a_late_settlement_charges_no_heir() {
    let house = House::new(&keyed(key(vec![LimitSpec::rate(10, SECOND, 10).by_weight()])), 16);
    let (permits, newcomers) = inherited(&house, 1, 5);
    for permit in permits {
        let truth = Settlement { weight: Some(1_000_000), ..Settlement::of(Outcome::Good) };
        permit.settle_as(truth, at(2_001));
    }
    for (number, newcomer) in newcomers.into_iter().enumerate() {
        assert!(house.send(newcomer, at(2_002)).is_ok(), "newcomer {number} pays for it");
    }
}

/// Goal: the same for the one who should pay: he has a cell again when he says what his call weighed, and is charged there.
#[test]
fn a_late_settlement_charges_its_own_key() {
    let house = House::new(&keyed(key(vec![LimitSpec::rate(10, SECOND, 10).by_weight()])), 16);
    let (permits, newcomers) = inherited(&house, 1, 5);
    // The others are busy again, its heir among them, so it has the cell of the first.
    for newcomer in newcomers.into_iter().skip(1) {
        house.send(newcomer, at(4_000)).unwrap();
    }
    let old = house.of("old").weighing(1);
    house.send(old, at(4_000)).unwrap();
    for permit in permits {
        let truth = Settlement { weight: Some(1_000_000), ..Settlement::of(Outcome::Good) };
        permit.settle_as(truth, at(4_001));
    }
    assert!(house.send(old, at(4_002)).is_err());
}

/// Goal: faults of those who shared the overflow cell trip nobody, also not one of them who has a cell of his own when his call ends.
#[test]
fn faults_of_the_shared_cell_trip_nobody() {
    let own = KeySpec { detectors: vec![streak(5)], ..key(vec![LimitSpec::window(9, SECOND)]) };
    let house = House::new(&keyed(own), 16);
    for number in 0..30 {
        house.send(house.of(&format!("busy{number}")), at(0)).unwrap();
    }
    let innocent = house.permit(house.of("innocent"), at(1));
    for number in 0..4 {
        house.end(house.of(&format!("fresh{number}")), Outcome::Fault, at(2)).unwrap();
    }
    assert_eq!(house.breaker.key_usage().overflowed, 5);
    // The others went quiet, and it has a cell now: spent, for it has shared.
    let _ = house.send(house.of("innocent"), at(1_500));
    innocent.settle(Outcome::Fault, at(1_501));
    assert_eq!(house.state("/desk/account=innocent", at(1_502)), State::Armed);
}

/// Goal: a refusal by a group's only limit is counted at the group, whether or not the route counts.
#[test]
fn a_refusal_is_counted_where_its_limit_stands() {
    for counts in [true, false] {
        let limits = vec![LimitSpec::window(1, SECOND)];
        let group = ScopeSpec { limits, ..ScopeSpec::default() };
        let orders = ScopeSpec { counts, ..ScopeSpec::default() };
        let house = House::new(&spec(group, orders), 16);
        assert_eq!(house.pass(house.orders(), 4, at(0)), 1);
        let desk = house.breaker.counts(&house.policy, &scope("/desk")).unwrap();
        assert_eq!(desk.enforced[0], 3, "the route counts: {counts}");
    }
}

/// Goal: a key with limits of its own is refilled, and told as used, also after its cell went to another.
#[test]
fn a_key_with_its_own_budget_is_refilled_without_a_cell() {
    let own = KeyOverride { label: b"old".to_vec(), limits: vec![LimitSpec::budget(1)] };
    let all = key(vec![LimitSpec::window(9, SECOND)]);
    let house = House::new(&keyed(KeySpec { overrides: vec![own], ..all }), 16);
    let (permits, _) = inherited(&house, 1, 1);
    drop(permits);
    let old = scope("/desk/account=old");
    let usage = house.breaker.usage(&house.policy, &old, at(4_000)).unwrap();
    assert_eq!((usage[0].used, usage[0].bound), (1, 1));
    assert!(house.breaker.refill(&house.policy, &old, at(4_000)).unwrap());
    assert!(house.send(house.of("old"), at(4_001)).is_ok());
}

/// Goal: to ask what could pass later moves nothing: not even a window in buckets, which by a look ahead forgot all that had passed.
#[test]
fn a_look_ahead_forgets_nothing() {
    let window = LimitSpec::window(10, SECOND).by_weight();
    let orders = ScopeSpec { limits: vec![window], ..ScopeSpec::default() };
    let house = House::new(&spec(ScopeSpec::default(), orders), 16);
    let order = house.orders().weighing(10);
    house.send(order, at(0)).unwrap();
    let wait = house.breaker.peek(&house.policy, order, at(1)).unwrap_err().wait.unwrap();
    let then = at(1).plus(wait);
    assert_eq!(house.breaker.peek(&house.policy, order, then), Ok(()));
    let before = Mono::from_nanos(then.as_nanos() - 1);
    assert!(house.breaker.peek(&house.policy, order, before).is_err(), "the wait is exact");
    assert_eq!(house.breaker.peek(&house.policy, order, at(60_000)), Ok(()));
    assert!(house.send(order, at(2)).is_err(), "ten more in the same second");
    assert!(house.send(order, then).is_ok());
}

/// Goal: an account that calls by its number is killed by its number as people write it: the kill does not land on a name that
/// nobody has.
#[test]
fn a_kill_by_number_does_not_miss() {
    let house = House::new(&keyed(key(vec![LimitSpec::window(9, SECOND)])), 64);
    for number in [0, 7, 42, 1_000_000, u64::MAX] {
        let call = house.orders().with_key(0, house.breaker.hash_u64(number));
        house.send(call, at(0)).unwrap();
        let path = scope(&format!("/desk/account={number}"));
        house.breaker.kill(&house.policy, &path, KillLevel::Halt, at(1)).unwrap();
        let cause = house.send(call, at(2)).unwrap_err().cause;
        assert_eq!(cause, Cause::Killed(KillLevel::Halt));
    }
    let labels = ["", "007", "+7", "18446744073709551616", "99999999999999999999", "7 ", "-7"];
    for label in labels {
        let hash = house.breaker.hash(label.as_bytes());
        assert!((0..100).all(|number| house.breaker.hash_u64(number) != hash), "{label}");
    }
}

/// Goal: the same for a key's own limits.
#[test]
fn limits_by_number_do_not_miss() {
    let own = KeyOverride { label: b"42".to_vec(), limits: vec![LimitSpec::window(1, SECOND)] };
    let all = key(vec![LimitSpec::window(9, SECOND)]);
    let house = House::new(&keyed(KeySpec { overrides: vec![own], ..all }), 64);
    let call = house.orders().with_key(0, house.breaker.hash_u64(42));
    assert_eq!(house.pass(call, 5, at(0)), 1);
}

/// Goal: calls that a wide kill or trip refuses leave the keys' tables alone: no flood during a halt fills them for the time after.
#[test]
fn a_flood_during_a_halt_claims_no_cell() {
    let house = House::new(&keyed(key(vec![LimitSpec::window(9, HOUR)])), 64);
    house.breaker.kill(&house.policy, &scope("/"), KillLevel::Halt, at(0)).unwrap();
    for number in 0..1_000 {
        let _ = house.send(house.of(&format!("fresh{number}")), at(0)).unwrap_err();
    }
    let usage = house.breaker.key_usage();
    assert_eq!((usage.held, usage.overflowed), (0, 0));
}

/// Goal: a probe that hangs does not hand the probation on: the key stays known for an hour, also from a flood of fresh names.
#[test]
fn a_hanging_probe_ends_no_probation() {
    let recover = Recover::Probe { probes: 1, after: SECOND, at_most: SECOND };
    let own = KeySpec { recover, ..key(vec![LimitSpec::window(3, SECOND).tripping()]) };
    for days in 0..14 {
        let start = Mono::from_nanos(days * 86_400_000_000_000);
        let house = House::new(&keyed(own.clone()), 16);
        let then = |seconds: u64| start.plus(Span::from_secs(seconds));
        assert_eq!(house.pass(house.of("culprit"), 4, then(0)), 3);
        let probe = house.permit(house.of("culprit"), then(10));
        assert!(probe.is_probe());
        let ticket = probe.detach();
        let mut sweeper = Sweeper::new();
        sweeper.sweep(&house.breaker, &house.policy, then(80), &mut Vec::new());
        for number in 0..40 {
            let _ = house.send(house.of(&format!("fresh{number}")), then(80));
        }
        assert_eq!(house.state("/desk/account=culprit", then(80)), State::HalfOpen, "day {days}");
        for number in 0..40 {
            let _ = house.send(house.of(&format!("late{number}")), then(4_000));
        }
        assert_eq!(house.state("/desk/account=culprit", then(4_000)), State::Armed, "day {days}");
        drop(ticket);
    }
}

/// Goal: that a forgotten key's trip is over is told of that key, and not of whoever has its cell by now.
#[test]
fn a_transition_of_the_forgotten_names_no_heir() {
    let recover = Recover::Probe { probes: 1, after: SECOND, at_most: SECOND };
    let own = KeySpec { recover, ..key(vec![LimitSpec::window(3, SECOND).tripping()]) };
    let house = House::new(&keyed(own), 16);
    let mut sweeper = Sweeper::new();
    let mut told = Vec::new();
    let mut sweep = |now| sweeper.sweep(&house.breaker, &house.policy, now, &mut told);
    assert_eq!(house.pass(house.of("culprit"), 4, at(0)), 3);
    sweep(at(1));
    sweep(at(2_000));
    let late = 2 * 3_600_000;
    for number in 0..30 {
        let newcomer = house.of(&format!("newcomer{number}"));
        // Every other one trips itself.
        let calls = if number % 2 == 1 { 6 } else { 3 };
        assert_eq!(house.pass(newcomer, calls, at(late)), 3);
    }
    sweep(at(late + 1));
    let culprit = house.breaker.hash(b"culprit");
    let of = |hash| told.iter().filter(move |fact| fact.place.key.unwrap().1 == hash);
    let states: Vec<_> = of(culprit).map(|fact| (fact.from, fact.to)).collect();
    let whole = [
        (State::Armed, State::Tripped),
        (State::Tripped, State::HalfOpen),
        (State::HalfOpen, State::Armed),
    ];
    assert_eq!(states, whole);
    for number in 0..30 {
        let hash = house.breaker.hash(format!("newcomer{number}").as_bytes());
        let states: Vec<_> = of(hash).map(|fact| (fact.from, fact.to)).collect();
        let tripped: &[_] = if number % 2 == 1 { &whole[..1] } else { &[] };
        assert_eq!(states, tripped, "newcomer {number}");
    }
}

/// Goal: an order that was admitted before its key was killed for the first time does not go out after the lift, though the key
/// had no cell yet when it was admitted.
#[test]
fn a_pass_from_before_the_first_kill_of_its_key_is_stale() {
    for limits in [vec![], vec![LimitSpec::window(9, SECOND)]] {
        let house = House::new(&keyed(key(limits)), 64);
        let permit = house.permit(house.of("first"), at(0));
        let path = scope("/desk/account=first");
        let stamp = house.breaker.kill(&house.policy, &path, KillLevel::Halt, at(1)).unwrap();
        assert!(house.breaker.look(&permit.pass(), at(2)).is_err());
        house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(3)).unwrap();
        let denial = house.breaker.look(&permit.pass(), at(4)).unwrap_err();
        assert_eq!(denial.cause, Cause::Stale);
        let after = house.permit(house.of("first"), at(5));
        assert_eq!(house.breaker.look(&after.pass(), at(6)), Ok(()));
    }
}

/// Goal: a limit on weight may stand behind a tighter one, for a settlement takes it where no admission does.
#[test]
fn a_second_limit_on_weight_can_act() {
    let limits = vec![
        LimitSpec::window(100, SECOND).by_weight(),
        LimitSpec::window(6_000, Span::from_secs(60)).by_weight().tripping(),
    ];
    let orders = ScopeSpec { limits, ..ScopeSpec::default() };
    let breaker = Breaker::new(Capacity { scopes: 16, keys: 16 }, Seed([3, 4]));
    assert!(breaker.compile(&spec(ScopeSpec::default(), orders)).is_ok());
}

/// Goal: fresh names beyond the bounded rate of first sights cost newcomers no more than the cell they share has given away: not every newcomer
/// an hour.
#[test]
fn a_flood_beyond_the_rate_of_first_sights_spends_few_newcomers() {
    let newcomers = Some(Newcomers { count: 10, per: SECOND, burst: 10 });
    let own = KeySpec { newcomers, ..key(vec![LimitSpec::window(3, HOUR)]) };
    let house = House::new(&keyed(own), 4_096);
    for number in 0..4_000 {
        let _ = house.send(house.of(&format!("flood{number}")), at(0));
    }
    // Minutes later, one honest newcomer each second.
    let passed: usize = (0..100)
        .map(|number| {
            house.pass(house.of(&format!("honest{number}")), 1, at(300_000 + number * 1_000))
        })
        .sum();
    assert!(passed > 90, "{passed} of 100");
}

/// Goal: one second's flood beyond the rate of first sights does not end a budget's dimension for good: no newcomer was ever served again.
#[test]
fn a_flood_of_a_second_ends_no_dimension() {
    let newcomers = Some(Newcomers { count: 1, per: SECOND, burst: 1 });
    let house = House::new(&keyed(KeySpec { newcomers, ..key(vec![LimitSpec::budget(5)]) }), 4_096);
    for number in 0..3_000 {
        let _ = house.send(house.of(&format!("flood{number}")), at(0));
    }
    let year = 365 * 86_400_000_u64;
    let honest = |number| house.of(&format!("honest{number}"));
    let passed: usize = (0..100).map(|n| house.pass(honest(n), 1, at(year + n * 10_000))).sum();
    assert!(passed > 90, "{passed} of 100");
}

/// Goal: who starts spent is tripped all the same by a limit that has long come back: a candidate that never forgets made a
/// runaway untrippable for ever.
#[test]
fn who_starts_spent_is_not_above_trips_for_ever() {
    let limits =
        vec![LimitSpec::window(3, SECOND).tripping(), LimitSpec::budget(1_000).candidate()];
    let house = House::new(&keyed(key(limits)), 16);
    for number in 0..30 {
        house.send(house.of(&format!("busy{number}")), at(0)).unwrap();
    }
    let _ = house.send(house.of("runaway"), at(1));
    for number in 0..30 {
        house
            .breaker
            .refill(&house.policy, &scope(&format!("/desk/account=busy{number}")), at(2))
            .unwrap();
    }
    let _ = house.send(house.of("runaway"), at(2_000));
    assert_eq!(house.pass(house.of("runaway"), 10, at(10_000)), 3);
    assert_eq!(house.state("/desk/account=runaway", at(10_000)), State::Tripped);
}

/// Goal: a key that moves between the shared cell and one of its own is never more often in flight than its limit says.
#[test]
fn in_flight_is_not_doubled_by_sharing() {
    let house = House::new(&keyed(key(vec![LimitSpec::in_flight(1)])), 16);
    let busy: Vec<_> =
        (0..30).map(|number| house.permit(house.of(&format!("busy{number}")), at(0))).collect();
    let shared = house.permit(house.of("mover"), at(1));
    drop(busy);
    assert!(house.send(house.of("mover"), at(2)).is_err(), "two at once");
    drop(shared);
    assert!(house.send(house.of("mover"), at(3)).is_ok());
}

/// Goal: over random lives of many keys in few cells no key is more often in flight than its limit says, whatever cell it is counted in; when all
/// have ended, all places are free again, and keys have cells of their own again.
#[test]
fn nobody_is_in_flight_more_often_than_allowed() {
    for seed in 0..200_u64 {
        let mut dice = seed;
        let mut roll = |sides: u64| {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % sides
        };
        let limits = vec![LimitSpec::in_flight(2), LimitSpec::window(5, SECOND).candidate()];
        let house = House::new(&keyed(key(limits)), 16);
        let mut held: Vec<(u64, Permit<'_>)> = Vec::new();
        for step in 0..400 {
            let label = roll(60);
            if let Verdict::Allow(permit) = house.admit(house.of(&label.to_string()), at(step * 9))
            {
                held.push((label, permit));
                let own = held.iter().filter(|(other, _)| *other == label).count();
                assert!(own <= 2, "{own} at once of one, seed {seed}");
            }
            while !held.is_empty() && roll(100) < 35 {
                let (_, permit) =
                    held.swap_remove(usize::try_from(roll(held.len() as u64)).unwrap());
                match roll(3) {
                    0 => drop(permit),
                    1 => permit.give_back(at(step * 9)),
                    _ => drop(permit.settle(Outcome::Good, at(step * 9))),
                }
            }
        }
        assert!(house.breaker.key_usage().overflowed > 0);
        held.clear();
        let late = at(100_000);
        let before = house.breaker.key_usage().overflowed;
        for label in 0..30 {
            let call = house.of(&format!("later{label}"));
            let both = [(); 2].map(|()| house.permit(call, late));
            assert!(house.send(call, late).is_err());
            drop(both);
        }
        assert_eq!(house.breaker.key_usage().overflowed, before, "seed {seed}");
    }
}

/// Goal: what a key had in flight when an order took its cell is neither given to the newcomer nor lost: the newcomer may have the rest, and all once those
/// calls have ended.
#[test]
fn places_of_the_evicted_are_neither_given_nor_lost() {
    let house = House::new(&keyed(key(vec![LimitSpec::in_flight(2)])), 16);
    let mut busy: Vec<_> =
        (0..30).map(|number| house.permit(house.of(&format!("busy{number}")), at(0))).collect();
    for number in 0..2 {
        let path = scope(&format!("/desk/account=killed{number}"));
        house.breaker.kill(&house.policy, &path, KillLevel::Halt, at(1)).unwrap();
    }
    assert_eq!(house.breaker.key_usage().evicted, 0);
    busy.pop();
    let heir = scope("/desk/account=heir");
    let stamp = house.breaker.kill(&house.policy, &heir, KillLevel::Halt, at(2)).unwrap();
    assert_eq!(house.breaker.key_usage().evicted, 0, "there was an idle one");
    house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(3)).unwrap();
    let _own = [(); 2].map(|()| house.permit(house.of("heir"), at(3)));
    let next = scope("/desk/account=next");
    let stamp = house.breaker.kill(&house.policy, &next, KillLevel::Halt, at(4)).unwrap();
    assert_eq!(house.breaker.key_usage().evicted, 1);
    house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(5)).unwrap();
    let one = house.permit(house.of("next"), at(6));
    assert!(house.send(house.of("next"), at(6)).is_err(), "the evicted has one of its places");
    drop(one);
    drop(busy);
    let _both = [(); 2].map(|()| house.permit(house.of("next"), at(7)));
}

/// Goal: a raised limit comes in force, however many raises came before it and however close, once the older policies are gone and
/// what they charged has passed.
#[test]
fn a_limit_raised_often_comes_in_force() {
    let breaker = Breaker::new(Capacity { scopes: 16, keys: 16 }, Seed([3, 4]));
    let raised = |rate: u64| {
        let limits = vec![LimitSpec::rate(rate, SECOND, rate)];
        spec(ScopeSpec::default(), ScopeSpec { limits, ..ScopeSpec::default() })
    };
    let mut now = at(0);
    let mut policy = breaker.recompile(&raised(10), now).unwrap();
    // The last is compiled twice more, as whoever wants to be rid of its predecessors is told to.
    for step in 1..52 {
        now = at(step * 60_000);
        policy = breaker.recompile(&raised(10 + step.min(49) * 10), now).unwrap();
    }
    let call = Call::new(policy.route(&scope("/desk/orders")).unwrap());
    let now = now.plus(Span::from_secs(30));
    let passed = (0..1_000)
        .filter(|_| matches!(breaker.admit(&policy, call, now), Verdict::Allow(_)))
        .count();
    assert_eq!(passed, 500);
}

/// Goal: in shadow mode a limit is charged with what it would have been charged with live: what another of its scope would have refused
/// is not on its account.
#[test]
fn shadow_charges_what_live_would() {
    let limits = vec![LimitSpec::window(6, HOUR), LimitSpec::window(2, SECOND)];
    let mut told = Vec::new();
    for mode in [Mode::Enforce, Mode::Shadow] {
        let orders = ScopeSpec { limits: limits.clone(), mode, ..ScopeSpec::default() };
        let house = House::new(&spec(ScopeSpec::default(), orders), 16);
        for second in 0..3 {
            for _ in 0..5 {
                let _ = house.send(house.orders(), at(second * 1_000));
            }
        }
        let orders = scope("/desk/orders");
        let usage = house.breaker.usage(&house.policy, &orders, at(2_000)).unwrap();
        let counts = house.breaker.counts(&house.policy, &orders).unwrap();
        let refused: Vec<u64> =
            counts.enforced.iter().zip(counts.detected).map(|(a, b)| a + b).collect();
        told.push((usage[0].used, usage[1].used, refused[0], refused[1]));
    }
    assert_eq!(told[0], told[1]);
}

/// Goal: the same of limits of offered calls, of those that trip, and while the gate would block.
#[test]
fn shadow_charges_what_live_would_also_when_it_trips() {
    let limits = vec![
        LimitSpec::budget(80),
        LimitSpec::budget(90).offered(),
        LimitSpec::window(2, SECOND).tripping(),
        LimitSpec::budget(3).candidate(),
        LimitSpec::window(4, SECOND).offered(),
    ];
    let recover = Recover::Probe { probes: 1, after: SECOND, at_most: SECOND };
    let mut told = Vec::new();
    for mode in [Mode::Enforce, Mode::Shadow] {
        let orders = ScopeSpec { limits: limits.clone(), mode, recover, ..ScopeSpec::default() };
        let house = House::new(&spec(ScopeSpec::default(), orders), 16);
        let orders = scope("/desk/orders");
        for step in 0..60 {
            let _ = house.send(house.orders(), at(step * 70));
            let now = at(step * 70);
            let usage = house.breaker.usage(&house.policy, &orders, now).unwrap();
            let counts = house.breaker.counts(&house.policy, &orders).unwrap();
            let refused: Vec<u64> =
                counts.enforced.iter().zip(counts.detected).map(|(a, b)| a + b).collect();
            let used: Vec<u64> = usage.iter().map(|usage| usage.used).collect();
            told.push((step, used, refused, house.state("/desk/orders", now)));
        }
    }
    let (live, shadow) = told.split_at(60);
    for (live, shadow) in live.iter().zip(shadow) {
        assert_eq!(live, shadow);
    }
    assert!(live.iter().any(|told| told.3 == State::Tripped));
}

/// Goal: a call that was never weighed is not the lightest: every kind of limit on weight refuses it, whatever its bound, both ways through a decision,
/// and is neither charged nor tripped by it; other routes do not ask.
#[test]
fn an_unweighed_call_is_not_light() {
    let most = u64::MAX;
    let kinds = [
        LimitSpec::budget(1 << 40),
        LimitSpec::budget(9).idle(SECOND),
        LimitSpec::window(1 << 30, SECOND),
        LimitSpec::rate(most, SECOND, most),
        LimitSpec::rate(5, SECOND, 5).offered(),
        LimitSpec::in_flight(most),
    ];
    for limit in kinds.map(LimitSpec::by_weight) {
        for limits in [vec![limit.clone()], vec![limit.clone(), LimitSpec::budget(9).candidate()]] {
            for limits in [limits.clone(), limits.into_iter().map(LimitSpec::tripping).collect()] {
                let orders = ScopeSpec { limits, ..ScopeSpec::default() };
                let house = House::new(&spec(ScopeSpec::default(), orders), 16);
                let denial = house.send(house.orders(), at(0)).unwrap_err();
                assert_eq!((denial.cause, denial.wait), (Cause::Limit(0), None), "{limit:?}");
                assert_eq!(house.state("/desk/orders", at(0)), State::Armed);
                let orders = scope("/desk/orders");
                let usage = house.breaker.usage(&house.policy, &orders, at(0)).unwrap();
                assert_eq!(usage[0].used, 0);
                assert!(house.send(house.orders().weighing(1), at(0)).is_ok(), "{limit:?}");
            }
        }
    }
    let house = House::new(&spec(ScopeSpec::default(), ScopeSpec::default()), 16);
    assert!(house.send(house.orders(), at(0)).is_ok());
}

/// Goal: a lift of a kill leaves the trip that stood below it: it was waiting for a person to look at it, and nobody did.
#[test]
fn a_lifted_kill_leaves_the_trip_below() {
    let house = House::new(&spec(ScopeSpec::default(), ScopeSpec::default()), 16);
    let orders = scope("/desk/orders");
    house.breaker.trip(&house.policy, &orders, at(0)).unwrap();
    let stamp = house.breaker.kill(&house.policy, &orders, KillLevel::Halt, at(1)).unwrap();
    house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(2)).unwrap();
    assert_eq!(house.state("/desk/orders", at(3)), State::Tripped);
}

/// Goal: a trip that a kill refuses changes nothing: not even time acts on the trip below, as seen by a clock that runs ahead.
#[test]
fn a_trip_that_a_kill_refuses_changes_nothing() {
    let recover = Recover::Probe { probes: 1, after: SECOND, at_most: SECOND };
    let orders = ScopeSpec { recover, ..ScopeSpec::default() };
    let house = House::new(&spec(ScopeSpec::default(), orders), 16);
    let orders = scope("/desk/orders");
    house.breaker.trip(&house.policy, &orders, at(0)).unwrap();
    let held = house.state("/desk/orders", at(500));
    let stamp = house.breaker.kill(&house.policy, &orders, KillLevel::Halt, at(1)).unwrap();
    assert!(house.breaker.trip(&house.policy, &orders, at(5_000)).is_err());
    house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(2)).unwrap();
    assert_eq!((held, house.state("/desk/orders", at(3))), (State::Tripped, State::Tripped));
}

/// Goal: the same over a restart, for latched trips and for those with an end.
#[test]
fn a_kill_over_a_restart_leaves_the_trip_below() {
    for recover in [Recover::default(), Recover::Probe { probes: 1, after: HOUR, at_most: HOUR }] {
        let all = spec(ScopeSpec::default(), ScopeSpec { recover, ..ScopeSpec::default() });
        let orders = scope("/desk/orders");
        let house = House::new(&all, 16);
        house.breaker.trip(&house.policy, &orders, at(0)).unwrap();
        house.breaker.kill(&house.policy, &orders, KillLevel::Cut, at(1)).unwrap();
        let saved = house.breaker.save(&house.policy, at(2));
        let next = House::new(&all, 16);
        next.breaker.restore(&next.policy, &saved, Restart::Clean, at(3));
        let stands = next.breaker.standing(&next.policy, &orders, at(4)).unwrap();
        assert_eq!(stands.state, State::Killed(KillLevel::Cut));
        assert_eq!(next.breaker.save(&next.policy, at(4)), saved);
        next.breaker.lift(&next.policy, stands.stamp(), LiftTo::Armed, at(5)).unwrap();
        assert_eq!(next.state("/desk/orders", at(6)), State::Tripped, "{recover:?}");
    }
}

/// Goal: a call without one of its declared keys is not free of that dimension's limits.
#[test]
fn a_call_without_its_key_is_not_free() {
    let house = House::new(&keyed(key(vec![LimitSpec::window(1, SECOND)])), 16);
    assert!(house.pass(house.orders(), 10, at(0)) <= 1);
}

/// Goal: the same for a route that must take the long way; such calls are one key: nobody else's limits are touched by them, an operator can name
/// them, and a policy may say that they are not judged.
#[test]
fn calls_without_their_key_are_one_key() {
    let limits = vec![LimitSpec::budget(2).tripping(), LimitSpec::window(9, SECOND).candidate()];
    let own = KeySpec { detectors: vec![streak(5)], ..key(limits) };
    let house = House::new(&keyed(own.clone()), 16);
    let missing = Scope::parse("/desk").unwrap().missing_key("account").unwrap();
    assert_eq!(house.pass(house.orders(), 10, at(0)), 2);
    assert_eq!(house.breaker.peek(&house.policy, house.orders(), at(0)).unwrap_err().cause, {
        Cause::Tripped(By::Limit(0))
    });
    assert!(house.send(house.of("!"), at(0)).is_ok(), "a label like its path");
    assert!(house.send(house.of(""), at(0)).is_ok(), "an empty label");
    assert_eq!(house.state("/desk/account=!", at(0)), State::Tripped);
    assert!(house.breaker.reset(&house.policy, &missing, at(0)).unwrap());
    let permit = house.permit(house.orders(), at(1));
    house.breaker.kill(&house.policy, &missing, KillLevel::Halt, at(2)).unwrap();
    assert!(house.breaker.look(&permit.pass(), at(3)).is_err());
    drop(permit);
    assert!(house.send(house.of("other"), at(4)).is_ok());
    let skips = KeySpec { missing: Missing::Skip, ..own };
    let house = House::new(&keyed(skips), 16);
    assert_eq!(house.pass(house.orders(), 10, at(0)), 10);
}

/// Goal: a label of eight bytes is not the number that its bytes spell, nor is what follows a length the field of a fingerprint: whoever
/// chooses his label cannot choose to be somebody else.
#[test]
fn a_label_cannot_be_chosen_to_be_a_number() {
    let breaker = Breaker::new(Capacity { scopes: 1, keys: 16 }, Seed([1, 2]));
    assert_ne!(breaker.hash(b"AAAAAAAA"), breaker.hash_u64(u64::from_le_bytes(*b"AAAAAAAA")));
    let mut label = 1_usize.to_ne_bytes().to_vec();
    label.push(b'x');
    assert_ne!(breaker.hash(&label), breaker.fingerprint(&[b"x"]));
}

/// Goal: a newcomer whose spent budget was refilled by an order is tripped by that budget like anybody else.
#[test]
fn a_refilled_newcomer_is_not_above_trips() {
    let house = House::new(&keyed(key(vec![LimitSpec::budget(3).tripping()])), 16);
    for number in 0..32 {
        let path = scope(&format!("/desk/account=busy{number}"));
        house.breaker.kill(&house.policy, &path, KillLevel::Halt, at(0)).ok();
        let stamp = house.breaker.standing(&house.policy, &path, at(0)).unwrap().stamp();
        house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(0)).ok();
        house.send(house.of(&format!("busy{number}")), at(0)).ok();
    }
    // An order evicts one, so the newcomer starts spent.
    let own = scope("/desk/account=runaway");
    let stamp = house.breaker.kill(&house.policy, &own, KillLevel::Halt, at(1)).unwrap();
    assert_eq!(house.breaker.key_usage().evicted, 1);
    house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(2)).unwrap();
    assert_eq!(house.pass(house.of("runaway"), 1, at(3)), 0, "spent");
    assert_eq!(house.state("/desk/account=runaway", at(3)), State::Armed);
    assert!(house.breaker.refill(&house.policy, &own, at(4)).unwrap());
    assert_eq!(house.pass(house.of("runaway"), 10, at(5)), 3);
    assert_eq!(house.state("/desk/account=runaway", at(5)), State::Tripped);
}

/// Goal: after a crash a key whose rate starts spent is tripped all the same by its budget, which did not.
#[test]
fn a_crash_puts_no_budget_above_trips() {
    let limits = vec![LimitSpec::window(100, SECOND), LimitSpec::budget(3).tripping()];
    let all = keyed(key(limits));
    let was = House::new(&all, 16);
    was.send(was.of("runaway"), at(0)).unwrap();
    let saved = was.breaker.save(&was.policy, at(1));
    let house = House::new(&all, 16);
    house.breaker.restore(&house.policy, &saved, Restart::Crash, at(2));
    for label in ["runaway", "unseen"] {
        house.pass(house.of(label), 10, at(5_000));
        let path = format!("/desk/account={label}");
        assert_eq!(house.state(&path, at(5_000)), State::Tripped, "{label}");
    }
}

/// Goal: what a detector finds in calls by another breaker's policy trips nothing here.
#[test]
fn a_finding_by_a_policy_of_another_breaker_trips_nothing() {
    let repeat = Repeat { count: 2, share: 0.0, ..Repeat::default() };
    let detectors = vec![DetectorSpec::new(DetectorKind::Repeat(repeat))];
    let all = spec(ScopeSpec::default(), ScopeSpec { detectors, ..ScopeSpec::default() });
    let (ours, theirs) = (House::new(&all, 16), House::new(&all, 16));
    let call = theirs.orders().with_fingerprint(theirs.breaker.fingerprint(&[b"same"]));
    for _ in 0..20 {
        let _ = ours.breaker.admit(&theirs.policy, call, at(1));
    }
    assert_eq!(ours.state("/desk/orders", at(1)), State::Armed);
}

/// Goal: a policy of another breaker takes up nothing of what was learned.
#[test]
fn a_policy_of_another_breaker_learns_nothing_here() {
    let own = KeySpec {
        detectors: vec![DetectorSpec::new(DetectorKind::Surge(Surge::of_keys(1_000)))],
        ..key(vec![LimitSpec::window(9, SECOND)])
    };
    let house = House::new(&keyed(own.clone()), 64);
    let mut sweeper = Sweeper::new();
    let mut out = Vec::new();
    for step in 0..2_000 {
        house.send(house.of("a"), at(step * 1_000)).unwrap();
        sweeper.sweep(&house.breaker, &house.policy, at(step * 1_000 + 100), &mut out);
    }
    let saved: SavedWhole = sweeper.save(&house.breaker, &house.policy, at(3_000_000));
    let other = House::new(&keyed(own), 64);
    let mut sweeper = Sweeper::new();
    sweeper.restore(&other.breaker, &house.policy, &saved, (Restart::Clean, Span::ZERO), at(10));
    assert_eq!(other.breaker.key_usage().held, 0, "nothing is taken up");
}

/// Goal: what keys had learned is taken up whatever the rate of first sights, and takes none of it.
#[test]
fn what_keys_learned_is_no_first_sight() {
    let own = KeySpec {
        newcomers: Some(Newcomers { count: 1, per: HOUR, burst: 1 }),
        detectors: vec![DetectorSpec::new(DetectorKind::Surge(Surge::of_keys(1_000)))],
        ..key(vec![LimitSpec::window(9, SECOND)])
    };
    let house = House::new(&keyed(KeySpec { newcomers: None, ..own.clone() }), 64);
    let mut sweeper = Sweeper::new();
    let mut out = Vec::new();
    for step in 0..2_000 {
        for label in ["a", "b", "c"] {
            house.send(house.of(label), at(step * 1_000)).unwrap();
        }
        sweeper.sweep(&house.breaker, &house.policy, at(step * 1_000 + 100), &mut out);
    }
    let saved: SavedWhole = sweeper.save(&house.breaker, &house.policy, at(3_000_000));
    let learned = saved.learned.iter().filter(|one| one.key.is_some()).count();
    assert_eq!(learned, 3);
    let next = House::new(&keyed(own), 64);
    let mut sweeper = Sweeper::new();
    sweeper.restore(&next.breaker, &next.policy, &saved, (Restart::Clean, Span::ZERO), at(10));
    assert_eq!(next.breaker.key_usage().held, 3);
    next.send(next.of("new"), at(20)).unwrap();
    assert_eq!(next.breaker.key_usage().held, 4, "the newcomer is welcome");
    // Another breaker's sweeper takes up nothing by this policy.
    let other = House::new(&keyed(key(vec![LimitSpec::window(9, SECOND)])), 64);
    let mut sweeper = Sweeper::new();
    sweeper.restore(&other.breaker, &next.policy, &saved, (Restart::Clean, Span::ZERO), at(10));
    assert_eq!(other.breaker.key_usage().held, 0, "nothing is taken up");
}

/// Goal: a lift that leads back to an old trip is no new trip for the scope above.
#[test]
fn a_lifted_kill_is_no_new_trip_for_those_above() {
    let spread = Spread { children: Some(2), share: None, minimum: 1, ..Spread::default() };
    let group = ScopeSpec {
        keys: vec![key(vec![LimitSpec::window(9, SECOND)])],
        detectors: vec![DetectorSpec::new(DetectorKind::Spread(spread))],
        ..ScopeSpec::default()
    };
    let house = House::new(&spec(group, ScopeSpec::default()), 16);
    let (mut sweeper, mut out) = (Sweeper::new(), Vec::new());
    let mut stamps = Vec::new();
    for (hour, label) in ["a", "b"].into_iter().enumerate() {
        let path = scope(&format!("/desk/account={label}"));
        let now = at(u64::try_from(hour).unwrap() * 3_600_000);
        house.breaker.trip(&house.policy, &path, now).unwrap();
        sweeper.sweep(&house.breaker, &house.policy, now, &mut out);
        sweeper.sweep(&house.breaker, &house.policy, now.plus(SECOND), &mut out);
    }
    assert_eq!(house.state("/desk", at(7_000_000)), State::Armed, "an hour apart");
    for label in ["a", "b"] {
        let path = scope(&format!("/desk/account={label}"));
        stamps.push(
            house.breaker.kill(&house.policy, &path, KillLevel::Halt, at(10_000_000)).unwrap(),
        );
    }
    sweeper.sweep(&house.breaker, &house.policy, at(10_000_020), &mut out);
    for stamp in stamps {
        house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(10_001_000)).unwrap();
    }
    for step in 0..100 {
        sweeper.sweep(&house.breaker, &house.policy, at(10_001_020 + step * 20), &mut out);
    }
    assert_eq!(house.state("/desk/account=a", at(10_005_000)), State::Tripped);
    assert_eq!(house.state("/desk", at(10_005_000)), State::Armed);
}

/// Goal: who kills the calls that lack a key, where a dimension does not judge those, is not told that it is done.
#[test]
fn a_kill_of_what_is_not_judged_is_refused() {
    let own = KeySpec { missing: Missing::Skip, ..key(vec![LimitSpec::window(9, SECOND)]) };
    let house = House::new(&keyed(own), 16);
    let missing = scope("/desk").missing_key("account").unwrap();
    let killed = house.breaker.kill(&house.policy, &missing, KillLevel::Halt, at(0));
    assert!(killed.is_err() || house.send(house.orders(), at(1)).is_err(), "killed, and it passes");
}

/// Goal: faults from the time when a scope had no detectors trip nobody hours later, when it has them again.
#[test]
fn faults_of_a_time_without_detectors_are_not_judged() {
    let (with, without) =
        (spec(ScopeSpec::default(), ratio()), spec(ScopeSpec::default(), ScopeSpec::default()));
    let mut house = House::new(&with, 16);
    let mut sweeper = Sweeper::new();
    let mut out = Vec::new();
    let mut sweep =
        |house: &House, now| sweeper.sweep(&house.breaker, &house.policy, now, &mut out);
    sweep(&house, at(0));
    house.policy = house.breaker.recompile(&without, at(1_000)).unwrap();
    sweep(&house, at(1_000));
    for _ in 0..100 {
        house.end(house.orders(), Outcome::Fault, at(2_000)).unwrap();
    }
    sweep(&house, at(3_000));
    house.policy = house.breaker.recompile(&with, at(20_000_000)).unwrap();
    for step in 0..100 {
        sweep(&house, at(20_000_000 + step * 20));
    }
    assert_eq!(house.state("/desk/orders", at(20_003_000)), State::Armed);
}

/// Goal: a new sweeper judges what ends from then on, not all that ever ended.
#[test]
fn a_new_sweeper_judges_nothing_twice() {
    let house = House::new(&spec(ScopeSpec::default(), ratio()), 16);
    let mut out = Vec::new();
    let mut sweeper = Sweeper::new();
    sweeper.sweep(&house.breaker, &house.policy, at(0), &mut out);
    // Ten faults among many that are good, over hours; no ten of them near each other.
    for step in 0..8 {
        for _ in 0..2 {
            house.end(house.orders(), Outcome::Fault, at(step * 3_600_000)).unwrap();
        }
        sweeper.sweep(&house.breaker, &house.policy, at(step * 3_600_000 + 100), &mut out);
    }
    assert_eq!(house.state("/desk/orders", at(30_000_000)), State::Armed);
    let mut second = Sweeper::new();
    for step in 0..100 {
        second.sweep(&house.breaker, &house.policy, at(40_000_000 + step * 20), &mut out);
    }
    assert_eq!(house.state("/desk/orders", at(40_003_000)), State::Armed);
}

/// Goal: a kill that is in force before the restore leaves the saved trip below it.
#[test]
fn a_kill_before_the_restore_leaves_the_trip_below() {
    let all = spec(ScopeSpec::default(), ScopeSpec::default());
    let orders = scope("/desk/orders");
    let was = House::new(&all, 16);
    was.breaker.trip(&was.policy, &orders, at(0)).unwrap();
    let saved = was.breaker.save(&was.policy, at(1));
    let house = House::new(&all, 16);
    let stamp = house.breaker.kill(&house.policy, &orders, KillLevel::Halt, at(2)).unwrap();
    let told = house.breaker.restore(&house.policy, &saved, Restart::Clean, at(3));
    house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(4)).unwrap();
    assert_eq!(house.state("/desk/orders", at(5)), State::Tripped, "{told:?}");
}

/// Goal: a look says of a key never seen what a call of it would be told.
#[test]
fn a_look_at_an_unseen_key_says_what_it_would_be_told() {
    let house = House::new(&keyed(key(vec![LimitSpec::window(1, HOUR)])), 128);
    let mut told = Vec::new();
    // Some bucket is full before the others: the shared cell is used.
    for number in 0..400 {
        let label = format!("key{number}");
        let looked = house.breaker.peek(&house.policy, house.of(&label), at(0)).is_ok();
        let passed = house.send(house.of(&label), at(0)).is_ok();
        if looked != passed {
            told.push((number, looked, passed));
        }
    }
    assert!(told.is_empty(), "{} {:?}", told.len(), told.first());
}

/// Goal: a scope whose limits start spent after a crash refuses for that, and is not tripped for it.
#[test]
fn a_crash_trips_nobody() {
    let limits = vec![LimitSpec::window(9, SECOND).tripping()];
    let all = spec(ScopeSpec::default(), ScopeSpec { limits, ..ScopeSpec::default() });
    let was = House::new(&all, 16);
    let saved = was.breaker.save(&was.policy, at(0));
    let house = House::new(&all, 16);
    house.breaker.restore(&house.policy, &saved, Restart::Crash, at(1_000));
    assert!(house.send(house.orders(), at(1_001)).is_err());
    assert_eq!(house.state("/desk/orders", at(1_002)), State::Armed);
}

/// Goal: what starts spent after a crash refuses and does not trip for exactly as long as that lasts: what is too much after it trips, and
/// so does a budget that was refilled.
#[test]
fn a_crash_puts_nobody_above_trips_for_longer_than_it_takes() {
    let idle = |limit: LimitSpec| limit.idle(SECOND);
    let cases = [
        (LimitSpec::window(9, SECOND), 9),
        (LimitSpec::rate(10, SECOND, 10), 10),
        (idle(LimitSpec::budget(9)), 9),
    ];
    for (limit, bound) in cases {
        let limits = vec![limit.clone().tripping()];
        let orders = ScopeSpec { limits, spent_after_crash: true, ..ScopeSpec::default() };
        let all = spec(ScopeSpec::default(), orders);
        let saved = House::new(&all, 16);
        let saved = saved.breaker.save(&saved.policy, at(0));
        let house = House::new(&all, 16);
        house.breaker.restore(&house.policy, &saved, Restart::Crash, at(1_000));
        let last = Mono::from_nanos(at(2_000).as_nanos() - 1);
        assert_eq!(house.pass(house.orders(), 100, at(1_001)), 0, "{limit:?}");
        house.pass(house.orders(), 100, last);
        assert_eq!(house.state("/desk/orders", last), State::Armed, "{limit:?}");
        let rest = house.pass(house.orders(), 100, at(2_001));
        assert!((1..=bound).contains(&rest), "{limit:?}: {rest}");
        assert_eq!(house.state("/desk/orders", at(2_001)), State::Tripped, "{limit:?}");
    }
    let limits = vec![LimitSpec::budget(3).tripping()];
    let orders = ScopeSpec { limits, spent_after_crash: true, ..ScopeSpec::default() };
    let all = spec(ScopeSpec::default(), orders);
    let saved = House::new(&all, 16);
    let saved = saved.breaker.save(&saved.policy, at(0));
    let house = House::new(&all, 16);
    house.breaker.restore(&house.policy, &saved, Restart::Crash, at(1_000));
    assert_eq!(house.pass(house.orders(), 9, at(9_000_000)), 0);
    assert_eq!(house.state("/desk/orders", at(9_000_000)), State::Armed);
    assert!(house.breaker.refill(&house.policy, &scope("/desk/orders"), at(9_000_001)).unwrap());
    assert_eq!(house.pass(house.orders(), 9, at(9_000_002)), 3);
    assert_eq!(house.state("/desk/orders", at(9_000_002)), State::Tripped);
}

/// Goal: a clean stop soon after a crash, and a reload by other numbers, leave what starts spent no cause to trip, nor do they make it last.
#[test]
fn a_second_restart_or_a_reload_trips_nobody_for_a_crash() {
    let limits = |length: Span| {
        vec![LimitSpec::window(9, length).tripping(), LimitSpec::budget(99).idle(length).tripping()]
    };
    let house_of = |length: Span| {
        let keys = vec![KeySpec { spent_after_crash: true, ..key(limits(length)) }];
        let group = ScopeSpec { keys, ..ScopeSpec::default() };
        let orders =
            ScopeSpec { limits: limits(length), spent_after_crash: true, ..ScopeSpec::default() };
        spec(group, orders)
    };
    let (was, two) = (house_of(SECOND), Span::from_secs(2));
    let first = House::new(&was, 16);
    first.send(first.of("a"), at(0)).unwrap();
    let saved = first.breaker.save(&first.policy, at(0));
    let second = House::new(&was, 16);
    second.breaker.restore(&second.policy, &saved, Restart::Crash, at(10_000));
    let armed = |house: &House, now| {
        assert_eq!(house.pass(house.of("a"), 100, now), 0, "{now:?}");
        assert_eq!(house.state("/desk/orders", now), State::Armed, "{now:?}");
        assert_eq!(house.state("/desk/account=a", now), State::Armed, "{now:?}");
    };
    let trips = |house: &House, now| {
        assert_eq!(house.pass(house.of("a"), 100, now), 9, "{now:?}");
        assert_eq!(house.state("/desk/account=a", now), State::Tripped, "{now:?}");
        assert_eq!(house.pass(house.of("b"), 100, now), 0);
        assert_eq!(house.state("/desk/orders", now), State::Tripped, "{now:?}");
    };
    armed(&second, at(10_400));
    let saved = second.breaker.save(&second.policy, at(10_400));
    let mut third = House::new(&was, 16);
    let told = third.breaker.restore(&third.policy, &saved, Restart::Clean, at(50_000));
    assert!(told.missed.is_empty(), "{told:?}");
    armed(&third, at(50_599));
    let reloaded = third.breaker.recompile(&house_of(two), at(50_599)).unwrap();
    third.policy = reloaded;
    armed(&third, at(50_600));
    armed(&third, at(51_598));
    trips(&third, at(51_600));
    // The same, and no reload.
    let fourth = House::new(&was, 16);
    fourth.breaker.restore(&fourth.policy, &saved, Restart::Clean, at(50_000));
    armed(&fourth, at(50_599));
    trips(&fourth, at(50_600));
}

/// Goal: a key whose limits a clean restore cannot read, as while a reload's are charged beside, is refused for that and not tripped; nor is one
/// with limits of its own, nor the scope.
#[test]
fn an_unclear_save_trips_nobody() {
    let house_of = |length: Span| {
        let limits = || vec![LimitSpec::window(9, length).tripping()];
        let own = KeyOverride { label: b"own".to_vec(), limits: limits() };
        let keys = vec![KeySpec { overrides: vec![own], ..key(limits()) }];
        let group = ScopeSpec { keys, ..ScopeSpec::default() };
        spec(group, ScopeSpec { limits: limits(), ..ScopeSpec::default() })
    };
    let mut was = House::new(&house_of(SECOND), 16);
    let held: Vec<_> =
        ["a", "own"].into_iter().map(|label| was.permit(was.of(label), at(0)).detach()).collect();
    let two = Span::from_secs(2);
    let newer = was.breaker.recompile(&house_of(two), at(1)).unwrap();
    assert!(newer.has_predecessors());
    let older = std::mem::replace(&mut was.policy, newer);
    for label in ["a", "own"] {
        was.send(was.of(label), at(1)).unwrap();
    }
    let saved = was.breaker.save(&was.policy, at(2));
    drop((held, older));
    let house = House::new(&house_of(two), 16);
    let told = house.breaker.restore(&house.policy, &saved, Restart::Clean, at(10_000));
    assert_eq!(told.missed.len(), 3, "{told:?}");
    for label in ["a", "own"] {
        let path = format!("/desk/account={label}");
        assert_eq!(house.pass(house.of(label), 9, at(11_999)), 0);
        assert_eq!(house.state(&path, at(11_999)), State::Armed, "{label}");
    }
    assert_eq!(house.pass(house.of("b"), 1, at(11_999)), 0);
    assert_eq!(house.state("/desk/orders", at(11_999)), State::Armed);
    for label in ["a", "own"] {
        let path = format!("/desk/account={label}");
        let now = if label == "a" { at(12_000) } else { at(14_000) };
        assert_eq!(house.pass(house.of(label), 10, now), 9);
        assert_eq!(house.state(&path, now), State::Tripped, "{label}");
    }
}

/// Goal: a limit that a reload makes one of another kind under its name starts spent, and trips nobody for that.
#[test]
fn a_limit_that_becomes_another_kind_trips_nobody() {
    let house_of = |limit: LimitSpec| {
        let limits = || vec![limit.clone().named("pace").tripping()];
        let group = ScopeSpec { keys: vec![key(limits())], ..ScopeSpec::default() };
        spec(group, ScopeSpec { limits: limits(), ..ScopeSpec::default() })
    };
    let mut house = House::new(&house_of(LimitSpec::rate(10, SECOND, 10)), 16);
    house.send(house.of("a"), at(0)).unwrap();
    let window = LimitSpec::window(9, SECOND);
    house.policy = house.breaker.recompile(&house_of(window), at(10)).unwrap();
    assert_eq!(house.pass(house.of("a"), 99, at(1_009)), 0);
    assert_eq!(house.pass(house.of("b"), 99, at(1_009)), 0);
    for path in ["/desk/orders", "/desk/account=a"] {
        assert_eq!(house.state(path, at(1_009)), State::Armed, "{path}");
    }
    assert_eq!(house.pass(house.of("a"), 99, at(1_011)), 9);
    assert_eq!(house.state("/desk/account=a", at(1_011)), State::Tripped);
}

/// Goal: the same, to the last nanosecond of the wait, while cells are given, lost, kept from newcomers and started spent; and a look gives no
/// cell, spends no bucket and takes no first sight.
#[test]
fn a_look_says_what_newcomers_of_any_bucket_would_be_told() {
    let kinds = [
        LimitSpec::rate(4, SECOND, 3),
        LimitSpec::window(3, SECOND),
        LimitSpec::window(6, SECOND).by_weight(),
        LimitSpec::budget(3).idle(SECOND),
        LimitSpec::in_flight(2),
    ];
    let newcomers = Some(Newcomers { count: 40, per: SECOND, burst: 9 });
    let mut seen = [0_u32; 3];
    for (round, limit) in (0_u64..).zip(&kinds) {
        let own = KeyOverride { label: b"7".to_vec(), limits: vec![LimitSpec::window(2, SECOND)] };
        let overrides = vec![own];
        let all = KeySpec {
            newcomers,
            overrides,
            ..key(vec![limit.clone(), LimitSpec::window(5, Span::from_secs(2))])
        };
        let house = House::new(&keyed(all), 64);
        let saved = house.breaker.save(&house.policy, at(0));
        house.breaker.restore(&house.policy, &saved, Restart::Crash, at(0));
        let mut dice = round + 1;
        let mut roll = |sides: u64| {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % sides
        };
        let (mut now, mut held) = (10_000, Vec::new());
        for _ in 0..6_000 {
            now += roll(20);
            let label = roll(90).to_string();
            if roll(20) == 0 {
                let path = scope(&format!("/desk/account={label}"));
                if let Ok(stamp) =
                    house.breaker.kill(&house.policy, &path, KillLevel::Halt, at(now))
                {
                    house.breaker.lift(&house.policy, stamp, LiftTo::Armed, at(now)).unwrap();
                }
            }
            let call = house.of(&label).weighing(1 + roll(3));
            let before = house.breaker.key_usage();
            let looked = house.breaker.peek(&house.policy, call, at(now));
            assert_eq!(house.breaker.peek(&house.policy, call, at(now)), looked);
            assert_eq!(house.breaker.key_usage(), before);
            let verdict = house.admit(call, at(now));
            let told = match verdict {
                Verdict::Allow(permit) => {
                    held.push(permit.detach());
                    Ok(())
                }
                Verdict::Deny(denial) => Err(denial),
            };
            assert_eq!(looked, told, "{limit:?}, {label} at {now}");
            if held.len() > 8 {
                let index = usize::try_from(roll(8)).unwrap();
                let ticket = held.swap_remove(index);
                drop(ticket.attach(&house.breaker, &house.policy).unwrap());
            }
            let after = house.breaker.key_usage();
            seen[0] += u32::from(after.held > before.held);
            seen[1] += u32::from(after.overflowed > before.overflowed);
            seen[2] += u32::from(after.evicted > 0 && told.is_err());
        }
    }
    assert!(seen.iter().all(|seen| *seen > 100), "{seen:?}");
}

/// Goal: while an older policy lives, what its longer limit was spent for trips nobody under the newer one either.
#[test]
fn a_reload_to_a_shorter_limit_trips_nobody_for_a_crash() {
    let house_of = |length: u64| {
        let limits = vec![LimitSpec::window(9, Span::from_millis(length)).tripping()];
        spec(ScopeSpec::default(), ScopeSpec { limits, ..ScopeSpec::default() })
    };
    let mut house = House::new(&house_of(2_000), 16);
    let saved = house.breaker.save(&house.policy, at(0));
    house.breaker.restore(&house.policy, &saved, Restart::Crash, at(1_000));
    let newer = house.breaker.recompile(&house_of(1_000), at(1_100)).unwrap();
    let older = std::mem::replace(&mut house.policy, newer);
    assert_eq!(house.pass(house.orders(), 9, at(2_999)), 0);
    assert_eq!(house.state("/desk/orders", at(2_999)), State::Armed);
    assert_eq!(house.pass(house.orders(), 99, at(3_000)), 9);
    assert_eq!(house.state("/desk/orders", at(3_000)), State::Tripped);
    drop(older);
}

/// Goal: a call that a wider scope's only limit refuses is counted at its route too, and one that is refused by a look once.
#[test]
fn a_refusal_is_counted_at_the_route() {
    let limits = vec![LimitSpec::window(1, SECOND)];
    let group = ScopeSpec { limits, ..ScopeSpec::default() };
    let house = House::new(&spec(group, ScopeSpec::default()), 16);
    let orders = scope("/desk/orders");
    let counts = || house.breaker.counts(&house.policy, &orders).unwrap();
    assert_eq!(house.pass(house.orders(), 4, at(0)), 1);
    assert_eq!((counts().throttled, counts().blocked), (3, 0));
    house.breaker.kill(&house.policy, &orders, KillLevel::Halt, at(1)).unwrap();
    let gates = house.policy.gates(house.policy.route(&orders).unwrap()).unwrap();
    let killed = Some(Cause::Killed(KillLevel::Halt));
    assert_eq!(
        (gates.blocked(), house.breaker.blocked(&house.policy, &house.orders())),
        (killed, killed)
    );
    assert_eq!(counts().blocked, 0, "who only asks is not refused");
    assert_eq!(gates.refuse(), killed);
    assert_eq!(house.breaker.refuse_blocked(&house.policy, &house.orders()), killed);
    assert_eq!((counts().throttled, counts().blocked), (3, 2));
}

/// Goal: a look that asks only for blocks without an end says of every mode, the policy's or an operator's, what a decision says; a kill has none.
#[test]
fn a_lasting_block_heeds_the_mode() {
    let manual = Recover::Manual { probes: 1 };
    for mode in [Mode::Enforce, Mode::Shadow] {
        for order in [None, Some(Mode::Enforce), Some(Mode::Shadow)] {
            for killed in [false, true] {
                let orders = ScopeSpec { mode, recover: manual, ..ScopeSpec::default() };
                let house = House::new(&spec(ScopeSpec::default(), orders), 16);
                let path = scope("/desk/orders");
                house.breaker.trip(&house.policy, &path, at(0)).unwrap();
                if killed {
                    house.breaker.kill(&house.policy, &path, KillLevel::Halt, at(0)).unwrap();
                }
                if order.is_some() {
                    house.breaker.set_mode(&house.policy, &path, order, at(0)).unwrap();
                }
                let enforced = order.unwrap_or(mode) == Mode::Enforce;
                let cause = match (killed, enforced) {
                    (true, _) => Some(Cause::Killed(KillLevel::Halt)),
                    (false, true) => Some(Cause::Tripped(By::Hand)),
                    (false, false) => None,
                };
                let told = house.send(house.orders(), at(1)).err().map(|denial| denial.cause);
                let looked = house.breaker.blocked(&house.policy, &house.orders());
                assert_eq!((told, looked), (cause, cause), "{mode:?} {order:?} {killed}");
            }
        }
    }
}

/// Goal: a key that charges one rate is not decided in line where its calls have another key beside it, though that charges nothing: a kill of
/// the other holds.
#[test]
fn a_kill_of_a_key_beside_a_plain_one_holds() {
    let other = KeySpec { name: "symbol".into(), ..KeySpec::default() };
    let keys = vec![key(vec![LimitSpec::rate(9, SECOND, 9)]), other];
    let house =
        House::new(&spec(ScopeSpec { keys, ..ScopeSpec::default() }, ScopeSpec::default()), 64);
    let call = |symbol: &[u8]| house.of("a").with_key(1, house.breaker.hash(symbol));
    assert!(house.send(call(b"x"), at(0)).is_ok());
    let permit = house.permit(call(b"x"), at(1));
    house.breaker.kill(&house.policy, &scope("/desk/symbol=x"), KillLevel::Halt, at(2)).unwrap();
    let killed = Cause::Killed(KillLevel::Halt);
    assert_eq!(house.breaker.look(&permit.pass(), at(3)).unwrap_err().cause, killed);
    assert_eq!(house.send(call(b"x"), at(3)).unwrap_err().cause, killed);
    assert!(house.send(call(b"y"), at(3)).is_ok());
}

/// Goal: what a reload cannot know of a limit's past counts as passed, and trips nobody: a window that holds more than its past does, and a rate
/// that is refilled more slowly. What is too much by their own charges trips again once they could have forgotten the rest.
#[test]
fn what_a_reload_takes_for_passed_trips_nobody() {
    let cases = [
        (LimitSpec::window(10, SECOND), LimitSpec::window(20, SECOND), 10, 20),
        (LimitSpec::window(10, SECOND), LimitSpec::window(20, Span::from_secs(2)), 10, 20),
        (LimitSpec::rate(10, SECOND, 10), LimitSpec::rate(5, SECOND, 10), 2, 10),
    ];
    for (was, is, before, bound) in cases {
        let house_of = |limit: &LimitSpec| {
            let limits = || vec![limit.clone().named("pace").tripping()];
            let group = ScopeSpec { keys: vec![key(limits())], ..ScopeSpec::default() };
            spec(group, ScopeSpec { limits: limits(), ..ScopeSpec::default() })
        };
        let mut house = House::new(&house_of(&was), 16);
        assert_eq!(house.pass(house.of("a"), before, at(0)), before);
        house.policy = house.breaker.recompile(&house_of(&is), at(300)).unwrap();
        let (path, key) = ("/desk/orders", "/desk/account=a");
        assert!(house.pass(house.of("a"), bound, at(301)) < bound - before, "{is:?}");
        assert_eq!(house.state(key, at(301)), State::Armed, "{is:?}");
        house.pass(house.of("b"), bound, at(301));
        assert_eq!(house.state(path, at(301)), State::Armed, "{is:?}");
        for later in [1_000, 6_000] {
            // What the limit was is charged beside it no longer.
            house.policy = house.breaker.recompile(&house_of(&is), at(later)).unwrap();
        }
        assert_eq!(house.pass(house.of("a"), bound + 1, at(9_000)), bound, "{is:?}");
        assert_eq!(house.state(key, at(9_000)), State::Tripped, "{is:?}");
        house.pass(house.of("b"), 1, at(9_000));
        assert_eq!(house.state(path, at(9_000)), State::Tripped, "{is:?}");
    }
}

/// Goal: a bound that is lowered after a crash makes nobody answer for what started spent by the larger one: a key's, nor a scope's, by the same
/// measure or by another.
#[test]
fn a_bound_lowered_after_a_crash_trips_nobody() {
    for (is, free) in
        [(LimitSpec::rate(1, SECOND, 10), 90), (LimitSpec::rate(1, Span::from_secs(2), 10), 182)]
    {
        let house_of = |limit: &LimitSpec| {
            let limits = || vec![limit.clone().tripping()];
            let group = ScopeSpec { keys: vec![key(limits())], ..ScopeSpec::default() };
            spec(group, ScopeSpec { limits: limits(), ..ScopeSpec::default() })
        };
        let was = house_of(&LimitSpec::rate(1, SECOND, 100));
        let first = House::new(&was, 16);
        first.send(first.of("a"), at(0)).unwrap();
        let saved = first.breaker.save(&first.policy, at(0));
        let mut house = House::new(&was, 16);
        house.breaker.restore(&house.policy, &saved, Restart::Crash, at(1_000));
        assert_eq!(house.pass(house.of("a"), 1, at(1_000)), 0);
        house.policy = house.breaker.recompile(&house_of(&is), at(1_000)).unwrap();
        for seconds in 1..free + 8 {
            house.pass(house.of("a"), 9, at(seconds * 1_000 + 1_000));
            house.pass(house.of("b"), 9, at(seconds * 1_000 + 1_000));
            for path in ["/desk/orders", "/desk/account=a", "/desk/account=b"] {
                assert_eq!(
                    house.state(path, at(seconds * 1_000 + 1_000)),
                    State::Armed,
                    "{is:?} {path} {seconds}"
                );
            }
        }
    }
}

/// Goal: a look at a call of a newcomer whose limits would start spent names the limit that the call is told.
#[test]
fn a_look_at_who_starts_spent_names_the_same_limit() {
    let limits =
        vec![LimitSpec::window(3, SECOND).tripping(), LimitSpec::window(5, Span::from_secs(2))];
    let all = keyed(key(limits));
    let saved = House::new(&all, 16);
    let saved = saved.breaker.save(&saved.policy, at(0));
    let house = House::new(&all, 16);
    house.breaker.restore(&house.policy, &saved, Restart::Crash, at(1_000));
    let looked = house.breaker.peek(&house.policy, house.of("a"), at(1_001));
    assert_eq!(looked, house.send(house.of("a"), at(1_001)));
    assert!(looked.is_err());
}

/// Goal: the same of a restart with other numbers than those of the save.
#[test]
fn what_a_restore_takes_for_passed_trips_nobody() {
    let house_of = |limit: LimitSpec| {
        let limits = || vec![limit.clone().named("pace").tripping()];
        let group = ScopeSpec { keys: vec![key(limits())], ..ScopeSpec::default() };
        House::new(&spec(group, ScopeSpec { limits: limits(), ..ScopeSpec::default() }), 16)
    };
    let first = house_of(LimitSpec::rate(10, SECOND, 10));
    assert_eq!(first.pass(first.of("a"), 2, at(0)), 2);
    let saved = first.breaker.save(&first.policy, at(100));
    let house = house_of(LimitSpec::rate(5, SECOND, 10));
    let told = house.breaker.restore(&house.policy, &saved, Restart::Clean, at(10_000));
    assert!(told.missed.is_empty(), "{told:?}");
    for call in [house.of("a"), house.of("b")] {
        assert!(house.pass(call, 9, at(10_001)) < 9);
        for path in ["/desk/orders", "/desk/account=a", "/desk/account=b"] {
            assert_eq!(house.state(path, at(10_001)), State::Armed, "{path}");
        }
    }
    assert_eq!(house.pass(house.of("a"), 11, at(12_001)), 10);
    assert_eq!(house.state("/desk/account=a", at(12_001)), State::Tripped);
}

/// Two dimensions of keys, and detectors on three levels beside them; `long` adds a candidate that refuses nobody, so that no decision is short.
fn crowded(limits: &[Vec<LimitSpec>; 4], long: bool) -> PolicySpec {
    let surge = |one: u64, ten: u64| {
        let window = |ceiling| Some(SurgeWindow { factor: None, floor: 1, ceiling });
        let windows = [window(one), window(ten), None, None];
        DetectorSpec::new(DetectorKind::Surge(Surge { windows, ..Surge::of_route(60) }))
    };
    let repeat =
        |count| DetectorSpec::new(DetectorKind::Repeat(Repeat { count, ..Repeat::default() }));
    let recover = Recover::Probe { probes: 2, after: SECOND, at_most: SECOND };
    let [wide, route, account, symbol] = limits.clone();
    let symbol = KeySpec {
        name: "symbol".into(),
        limits: symbol,
        detectors: vec![surge(7, 30)],
        missing: Missing::Skip,
        recover,
        ..KeySpec::default()
    };
    let account = KeySpec { detectors: vec![repeat(5), surge(6, 25)], recover, ..key(account) };
    let group = ScopeSpec {
        keys: vec![account],
        limits: wide,
        detectors: vec![surge(14, 60)],
        recover,
        ..ScopeSpec::default()
    };
    let orders = ScopeSpec {
        keys: vec![symbol],
        limits: route,
        detectors: vec![repeat(8), surge(12, 50)],
        recover,
        ..ScopeSpec::default()
    };
    let all = LimitSpec::rate(1_000_000, SECOND, 1_000_000).candidate();
    let global = ScopeSpec {
        limits: vec![all; usize::from(long)],
        detectors: vec![surge(16, 80)],
        recover,
        ..ScopeSpec::default()
    };
    PolicySpec { global, ..spec(group, orders) }
}

/// Goal: the short way answers, trips and counts as the long way does, call by call, with keys of two dimensions, more of them than there are cells,
/// detectors on every level, weights, and orders in between.
#[test]
fn two_dimensions_are_decided_alike_on_both_ways() {
    let weight = |most| LimitSpec::window(most, SECOND).by_weight();
    let tables: [[Vec<LimitSpec>; 4]; 5] = [
        [vec![], vec![], vec![], vec![]],
        [vec![], vec![LimitSpec::rate(20, SECOND, 9)], vec![LimitSpec::rate(8, SECOND, 5)], vec![]],
        [
            vec![],
            vec![LimitSpec::window(9, SECOND)],
            vec![LimitSpec::in_flight(3)],
            vec![weight(12)],
        ],
        [
            vec![LimitSpec::budget(90).idle(SECOND)],
            vec![],
            vec![weight(9)],
            vec![LimitSpec::window(6, SECOND)],
        ],
        [
            vec![LimitSpec::rate(30, SECOND, 11).tripping()],
            vec![],
            vec![],
            vec![LimitSpec::rate(9, SECOND, 6).tripping()],
        ],
    ];
    let mut seen = [0_usize; 3];
    for seed in 0..30_u64 {
        let limits = tables.iter().cycle().nth(usize::try_from(seed).unwrap()).unwrap();
        let houses = [false, true].map(|long| House::new(&crowded(limits, long), 32));
        let mut sweepers = [Sweeper::new(), Sweeper::new()];
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = |sides: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (dice >> 33) % sides
        };
        let mut now = 1_000;
        let mut held: Vec<[Permit<'_>; 2]> = Vec::new();
        for _ in 0..600 {
            now += [0, 0, 1, 20, 150, 2_000]
                .into_iter()
                .nth(usize::try_from(roll(6)).unwrap())
                .unwrap();
            // Few that are hot, many that are not.
            let account = if roll(3) == 0 { roll(70) } else { roll(3) };
            let (symbol, print, weight) = (roll(6), roll(9), 1 + roll(3));
            let order = roll(40);
            let path = ["/", "/desk", "/desk/orders", "/desk/account=1", "/desk/orders/symbol=2"];
            let path = scope(path.into_iter().nth(usize::try_from(roll(5)).unwrap()).unwrap());
            let answers = houses.each_ref().map(|house| {
                let (breaker, policy, now) = (&house.breaker, &house.policy, at(now));
                match order {
                    0 => drop(breaker.trip(policy, &path, now)),
                    1 => drop(breaker.reset(policy, &path, now)),
                    2 => drop(breaker.set_mode(policy, &path, Some(Mode::Shadow), now)),
                    _ => {}
                }
                let mut call = house.orders().weighing(weight);
                call = call.with_key(0, breaker.hash_u64(account));
                if symbol > 0 {
                    call = call.with_key(1, breaker.hash_u64(symbol));
                }
                if print > 0 {
                    call = call.with_fingerprint(breaker.hash_u64(print));
                }
                house.admit(call, now)
            });
            match answers {
                [Verdict::Allow(one), Verdict::Allow(other)] => {
                    assert_eq!(one.shadowed(), other.shadowed(), "{seed} at {now}");
                    assert_eq!(one.is_probe(), other.is_probe(), "{seed} at {now}");
                    held.push([one, other]);
                }
                [Verdict::Deny(one), Verdict::Deny(other)] => {
                    assert_eq!(one, other, "{seed} at {now}");
                    seen[0] += 1;
                }
                [one, other] => panic!("{one:?} beside {other:?}, {seed} at {now}"),
            }
            if held.len() > 3 {
                let ended = held.swap_remove(usize::try_from(roll(4)).unwrap());
                let outcome = if roll(6) == 0 { Outcome::Fault } else { Outcome::Good };
                let settlement = Settlement { weight: Some(roll(4)), ..Settlement::of(outcome) };
                let moved = ended.map(|permit| permit.settle_as(settlement, at(now)));
                assert_eq!(moved[0], moved[1], "{seed} at {now}");
            }
            if roll(10) == 0 {
                let mut told = Vec::new();
                for (house, sweeper) in houses.iter().zip(&mut sweepers) {
                    let mut moves = Vec::new();
                    sweeper.sweep(&house.breaker, &house.policy, at(now), &mut moves);
                    told.push((moves, sweeper.findings().collect::<Vec<_>>()));
                }
                assert_eq!(told.first(), told.last(), "{seed} at {now}");
                let (moves, findings) = told.swap_remove(0);
                seen[1] += moves.iter().filter(|moved| moved.to == State::Tripped).count();
                seen[2] += findings.len();
            }
        }
        let counts = houses
            .each_ref()
            .map(|house| house.breaker.counts(&house.policy, &scope("/desk/orders")).unwrap());
        assert_eq!(counts[0], counts[1], "{seed}");
        let usage = houses.each_ref().map(|house| house.breaker.key_usage());
        assert_eq!(usage[0], usage[1], "{seed}");
    }
    assert!(seen.iter().all(|seen| *seen > 100), "{seen:?}");
}
