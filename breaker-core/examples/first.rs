//! Ten lines that deny: three calls in any second pass, the fourth is told how long to wait. It shows nothing else.

use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, LimitSpec, Mono, PolicySpec, RouteSpec, Scope,
    ScopeSpec, Seed, Span, Verdict,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limits = vec![LimitSpec::window(3, Span::from_secs(1))];
    let spec = PolicySpec {
        groups: vec![GroupSpec { name: "pay".into(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "orders".into(),
            group: "pay".into(),
            class: Class::Normal,
            scope: ScopeSpec { limits, ..ScopeSpec::default() },
        }],
        ..PolicySpec::default()
    };
    // Take the seed from the operating system: whoever knows it can make keys collide.
    let breaker = Breaker::new(Capacity { scopes: 16, keys: 1_024 }, Seed([0x5eed, 0x5eed]));
    let policy = breaker.compile(&spec).map_err(|errors| format!("{errors:?}"))?;
    let route = policy.route(&Scope::parse("/pay/orders")?).ok_or("no such route")?;

    #[expect(
        clippy::disallowed_methods,
        reason = "the core is told the time; its embedder reads it"
    )]
    let start = std::time::Instant::now();
    for number in 1..=4 {
        let now = Mono::from_nanos(u64::try_from(start.elapsed().as_nanos())?);
        match breaker.admit(&policy, Call::new(route), now) {
            Verdict::Allow(permit) => {
                println!("call {number} passes");
                permit.settle(breaker_core::Outcome::Good, now);
            }
            Verdict::Deny(denial) => {
                println!("call {number} is denied: {:?}, wait {:?}", denial.cause, denial.wait);
            }
        }
    }
    Ok(())
}
