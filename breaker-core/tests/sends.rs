//! Sends that consume permits: what goes out, what is given back, and what a kill knows of it.
#![expect(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use breaker_core::{
    Breaker, Call, Capacity, Cause, Class, Denial, GroupSpec, KeySpec, KillLevel, LiftTo,
    LimitSpec, Mono, Outcome, Permit, Policy, PolicySpec, Recover, RouteId, RouteSpec, Scope,
    ScopeSpec, Seed, Senders, Settlement, Span, Verdict,
};

const START: Mono = Mono::from_nanos(1_000_000_000_000);
const MINUTE: Span = Span::from_secs(60);

struct House {
    breaker: Breaker,
    policy: Policy,
    route: RouteId,
    orders: Scope,
}

fn house(limits: Vec<LimitSpec>, keys: Vec<KeySpec>) -> House {
    let breaker = Breaker::new(Capacity { scopes: 4, keys: 16 }, Seed([3, 4]));
    let recover = Recover::Manual { probes: 1 };
    let spec = PolicySpec {
        groups: vec![GroupSpec { name: "pay".into(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "orders".into(),
            group: "pay".into(),
            class: Class::Normal,
            scope: ScopeSpec { limits, keys, recover, ..ScopeSpec::default() },
        }],
        ..PolicySpec::default()
    };
    let policy = breaker.compile(&spec).unwrap();
    let orders = Scope::parse("/pay/orders").unwrap();
    let route = policy.route(&orders).unwrap();
    House { breaker, policy, route, orders }
}

impl House {
    fn admit(&self, call: Call, now: Mono) -> Result<Permit<'_>, Denial> {
        match self.breaker.admit(&self.policy, call, now) {
            Verdict::Allow(permit) => Ok(permit),
            Verdict::Deny(denial) => Err(denial),
        }
    }

    fn call(&self) -> Call {
        Call::new(self.route)
    }

    fn kill_and_lift(&self, to: LiftTo) {
        let stamp = self.breaker.kill(&self.policy, &self.orders, KillLevel::Halt, START).unwrap();
        self.breaker.lift(&self.policy, stamp, to, START).unwrap();
    }
}

/// Goal: a send that the last look denies writes nothing and gives back all that can be: budget, rate and place in
/// flight; a window of calls and a limit of offered calls keep it; and it counts as blocked.
#[test]
fn a_denied_send_gives_everything_back() {
    let house = house(
        vec![
            LimitSpec::budget(10).by_weight(),
            LimitSpec::rate(10, MINUTE, 10).by_weight(),
            LimitSpec::in_flight(1),
            LimitSpec::budget(1),
        ],
        Vec::new(),
    );
    let senders = Senders::new(1);
    let sender = senders.sender(0).unwrap();
    for _ in 0..3 {
        let permit = house.admit(house.call().weighing(10), START).unwrap();
        house.kill_and_lift(LiftTo::Armed);
        let denial = permit.send(&sender, START, || panic!("nothing may go out")).unwrap_err();
        assert_eq!(denial.cause, Cause::Stale);
    }
    let sent = house.admit(house.call().weighing(10), START).unwrap().send(&sender, START, || 7);
    assert_eq!(sent.unwrap().settle(Outcome::Good, START), 7);
    let counts = house.breaker.counts(&house.policy, &house.orders).unwrap();
    assert_eq!((counts.blocked, counts.good, counts.dropped), (3, 1, 0));
}

/// Goal: what was offered stays offered, also if the last look denies it.
#[test]
fn a_denied_send_was_offered_all_the_same() {
    let house = house(vec![LimitSpec::budget(1).offered()], Vec::new());
    let senders = Senders::new(1);
    let sender = senders.sender(0).unwrap();
    let permit = house.admit(house.call(), START).unwrap();
    house.kill_and_lift(LiftTo::Armed);
    assert!(permit.send(&sender, START, || ()).is_err());
    assert_eq!(house.admit(house.call(), START).unwrap_err().cause, Cause::Limit(0));
}

/// Goal: a call that is not made after all gives back what it took; one that is dropped keeps the charge, for it may have gone out.
#[test]
fn a_call_that_is_not_made_gives_back_what_a_drop_keeps() {
    let house = house(vec![LimitSpec::budget(2), LimitSpec::in_flight(1)], Vec::new());
    for _ in 0..5 {
        house.admit(house.call(), START).unwrap().give_back(START);
    }
    for _ in 0..2 {
        drop(house.admit(house.call(), START).unwrap());
    }
    assert_eq!(house.admit(house.call(), START).unwrap_err().cause, Cause::Limit(0));
    let counts = house.breaker.counts(&house.policy, &house.orders).unwrap();
    assert_eq!(counts.dropped, 7);
}

/// Goal: a rate gives back no more than time has not forgiven: a call that is given back late frees nothing twice.
#[test]
fn a_rate_gives_back_what_time_has_not() {
    let house = house(vec![LimitSpec::rate(10, Span::from_secs(10), 10).by_weight()], Vec::new());
    let first = house.admit(house.call().weighing(10), START).unwrap();
    let later = START.plus(Span::from_secs(4));
    first.give_back(later);
    assert!(house.admit(house.call().weighing(10), later).is_ok());
    assert!(house.admit(house.call().weighing(1), later).is_err(), "not one more");
}

/// Goal: a call on probation that the last look denies, or that is not made, gives its probe back.
#[test]
fn a_probe_is_given_back() {
    let house = house(Vec::new(), Vec::new());
    let senders = Senders::new(1);
    let sender = senders.sender(0).unwrap();
    house.kill_and_lift(LiftTo::HalfOpen);
    let probe = house.admit(house.call(), START).unwrap();
    assert!(probe.is_probe());
    assert_eq!(house.admit(house.call(), START).unwrap_err().cause, Cause::Probing);
    probe.give_back(START);
    let probe = house.admit(house.call(), START).unwrap();
    // Killed and lifted again, the probe of the earlier probation moves nothing.
    house.kill_and_lift(LiftTo::HalfOpen);
    assert!(probe.send(&sender, START, || ()).is_err());
    let sent = house.admit(house.call(), START).unwrap().send(&sender, START, || ()).unwrap();
    sent.settle(Outcome::Good, START);
    assert!(!house.admit(house.call(), START).unwrap().is_probe(), "armed again");
}

/// Goal: what went out is settled with what is known of it, at once or when the answer comes, also without its borrows; dropped it
/// counts as dropped.
#[test]
fn what_went_out_is_settled_once() {
    let house = house(vec![LimitSpec::budget(100).by_weight()], Vec::new());
    let senders = Senders::new(1);
    let sender = senders.sender(0).unwrap();
    let send = |weight| {
        let permit = house.admit(house.call().weighing(weight), START).unwrap();
        permit.send(&sender, START, || weight).unwrap()
    };
    let filled = |weight| Settlement { weight: Some(weight), ..Settlement::of(Outcome::Good) };
    assert_eq!(*send(1).value(), 1);
    assert_eq!(send(60).settle_by(START, |weight| filled(weight - 20)), 60);
    let (weight, unsettled) = send(40).into_parts();
    assert!(!unsettled.is_probe() && !unsettled.is_cut());
    let ticket = unsettled.detach();
    let unsettled = ticket.attach(&house.breaker, &house.policy).unwrap();
    unsettled.settle_as(filled(weight - 10), START);
    let (_, unsettled) = send(2).into_parts();
    unsettled.settle(Outcome::Fault, START);
    // 1 + 40 + 30 + 2 are used.
    assert!(house.admit(house.call().weighing(28), START).is_err());
    drop(send(27));
    let counts = house.breaker.counts(&house.policy, &house.orders).unwrap();
    assert_eq!((counts.good, counts.fault, counts.dropped, counts.throttled), (2, 1, 2, 1));
}

/// Goal: a write that panics leaves nobody waiting: the mark is clear and the place in flight is free.
#[test]
fn a_write_that_panics_leaves_nobody_waiting() {
    let house = house(vec![LimitSpec::in_flight(1)], Vec::new());
    let senders = Senders::new(1);
    let sender = senders.sender(0).unwrap();
    let permit = house.admit(house.call(), START).unwrap();
    let write = || -> u32 { panic!("in the write") };
    let panicked = catch_unwind(AssertUnwindSafe(|| permit.send(&sender, START, write).is_ok()));
    assert!(panicked.is_err());
    assert!(senders.watch().is_silent());
    assert!(house.admit(house.call(), START).is_ok());
}

/// Goal: a call whose key lost its slot meanwhile refunds nothing to the key that has it now; but its place in flight, which stayed
/// with the slot, is given back, or nobody ever would.
#[test]
fn a_call_of_an_evicted_key_refunds_nothing_to_its_successor() {
    let limits = vec![LimitSpec::in_flight(1), LimitSpec::rate(10, MINUTE, 10).by_weight()];
    let account = KeySpec { name: "account".into(), limits, ..KeySpec::default() };
    let house = house(Vec::new(), vec![account]);
    let of =
        |label: &str| house.call().with_key(0, house.breaker.hash(label.as_bytes())).weighing(10);
    let held: Vec<_> =
        (0..40).filter_map(|key| house.admit(of(&format!("busy{key}")), START).ok()).collect();
    // Orders take the slot of a busy key once those kept for orders are gone.
    let successor = (0..16).map(|number| format!("killed{number}")).find(|label| {
        let scope = Scope::parse(&format!("/pay/orders/account={label}")).unwrap();
        let stamp = house.breaker.kill(&house.policy, &scope, KillLevel::Halt, START).unwrap();
        let evicts = house.breaker.key_usage().evicted == 1;
        evicts && house.breaker.lift(&house.policy, stamp, LiftTo::Armed, START).is_ok()
    });
    let successor = successor.unwrap();
    let refused = || house.admit(of(&successor), START).unwrap_err().cause;
    assert_eq!(refused(), Cause::Limit(0), "the place of the call before");
    for permit in held {
        let nothing = Settlement { weight: Some(0), ..Settlement::of(Outcome::Good) };
        permit.settle_as(nothing, START);
    }
    assert_eq!(refused(), Cause::Limit(1), "a newcomer starts spent");
}

#[cfg(feature = "std")]
mod with_a_clock {
    use super::{KillLevel, START, Senders, house};
    use breaker_core::{MonotonicClock, OrderError, Scope, Span};
    use std::sync::mpsc::channel;

    /// Goal: a kill says who was not seen outside at its deadline, and is in force all the same; once that sender is out,
    /// it is silent.
    #[test]
    fn a_kill_names_whom_it_did_not_see_outside() {
        let house = house(Vec::new(), Vec::new());
        let clock = MonotonicClock::new();
        let senders = Senders::new(2);
        let (inside, is_inside) = channel();
        let (leave, may_leave) = channel::<()>();
        let kill = |within| {
            let level = KillLevel::Halt;
            senders.kill(&house.breaker, &house.policy, &house.orders, level, &clock, within)
        };
        std::thread::scope(|threads| {
            let (house, senders) = (&house, &senders);
            let stuck = threads.spawn(move || {
                let sender = senders.sender(1).unwrap();
                let permit = house.admit(house.call(), START).unwrap();
                let write = || {
                    inside.send(()).unwrap();
                    may_leave.recv().unwrap();
                };
                permit.send(&sender, START, write).is_ok()
            });
            is_inside.recv().unwrap();
            let killed = kill(Span::ZERO).unwrap();
            assert!(!killed.silence.silent);
            assert_eq!(killed.silence.pending, [1]);
            assert!(house.admit(house.call(), START).is_err(), "in force for all others");
            leave.send(()).unwrap();
            assert!(kill(Span::from_secs(60)).unwrap().silence.silent);
            assert!(
                stuck.join().unwrap(),
                "it began before the kill, and went out before the silence"
            );
        });
        let unknown = Scope::parse("/pay/nowhere").unwrap();
        let (breaker, policy, level) = (&house.breaker, &house.policy, KillLevel::Halt);
        let missed = senders.kill(breaker, policy, &unknown, level, &clock, Span::ZERO);
        assert!(matches!(missed, Err(OrderError::UnknownScope(_))));
    }
}
