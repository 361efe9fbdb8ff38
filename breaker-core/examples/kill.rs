//! Kills one account, sees it denied and silent, and lifts it to probation. It shows no limits.

use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, KeySpec, KillLevel, LiftTo, Mono, Outcome,
    PolicySpec, Recover, RouteSpec, Scope, ScopeSpec, Seed, Senders, Verdict,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let recover = Recover::Manual { probes: 1 };
    let account = KeySpec { name: "account".into(), recover, ..KeySpec::default() };
    let spec = PolicySpec {
        groups: vec![GroupSpec {
            name: "pay".into(),
            scope: ScopeSpec { keys: vec![account], ..ScopeSpec::default() },
        }],
        routes: vec![RouteSpec {
            name: "orders".into(),
            group: "pay".into(),
            class: Class::Normal,
            scope: ScopeSpec::default(),
        }],
        ..PolicySpec::default()
    };
    let breaker = Breaker::new(Capacity { scopes: 16, keys: 1_024 }, Seed([0x5eed, 0x5eed]));
    let policy = breaker.compile(&spec).map_err(|errors| format!("{errors:?}"))?;
    let route = policy.route(&Scope::parse("/pay/orders")?).ok_or("no such route")?;
    let senders = Senders::new(1);
    let sender = senders.sender(0).ok_or("taken")?;

    let now = Mono::ZERO;
    let of = |label: &str| Call::new(route).with_key(0, breaker.hash(label.as_bytes()));
    let Verdict::Allow(permit) = breaker.admit(&policy, of("42"), now) else {
        return Err("denied before any kill".into());
    };

    let scope = Scope::parse("/pay/account=42")?;
    let stamp = breaker.kill(&policy, &scope, KillLevel::Halt, now)?;
    println!("{scope} is killed, silent: {}", senders.watch().is_silent());

    // The call was admitted before the kill, but not yet sent: the last look stops it.
    let sent = sender.send(&breaker, &permit.pass(), now, || println!("sent"));
    println!("the call on its way: {:?}", sent.map_err(|denial| denial.cause));
    for label in ["42", "43"] {
        let passes = breaker.admit(&policy, of(label), now).is_allowed();
        println!("account {label} passes: {passes}");
    }

    breaker.lift(&policy, stamp, LiftTo::HalfOpen, now)?;
    if let Verdict::Allow(probe) = breaker.admit(&policy, of("42"), now) {
        probe.settle(Outcome::Good, now);
    }
    println!("after a good probe it is {:?}", breaker.standing(&policy, &scope, now)?.state);
    Ok(())
}
