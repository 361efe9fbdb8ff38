//! Counterexamples: what an attacker, a race or a hasty embedder could do to a breaker, one test for each; each is named after what went wrong.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use breaker_core::{
    Breaker, Call, Capacity, Cause, Class, Denial, DetectorKind, DetectorSpec, GroupSpec, KeyHash,
    KeyOverride, KeySpec, KillLevel, LiftTo, LimitKind, LimitSpec, Mono, Newcomers, Outcome,
    Permit, Policy, PolicySpec, Recover, RouteSpec, Scope, ScopeSpec, Seed, Settlement, Span,
    State, Streak, Verdict,
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

/// A house whose table is one bucket: `old` has a cell and permits that are still out, the rest is strangers'; then, all having
/// gone quiet, fourteen newcomers take all the cells.
fn inherited<'h>(house: &'h House, permits: usize, weight: u64) -> (Vec<Permit<'h>>, Vec<Call>) {
    let old = house.of("old").weighing(weight);
    let permits = (0..permits).map(|_| house.permit(old, at(0))).collect();
    for number in 0..13 {
        house.send(house.of(&format!("stranger{number}")), at(0)).unwrap();
    }
    let newcomers: Vec<_> = (0..14).map(|number| house.of(&format!("newcomer{number}"))).collect();
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
