//! Small worlds to measure in: a breaker with one route and what stands on it; it measures nothing itself.

/// Compiles and runs the example of the project's README, so that it stays true.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, KeySpec, LimitSpec, Policy, PolicySpec, RouteSpec,
    ScopeSpec, Seed,
};

/// A breaker with one route, ready to decide.
pub struct World {
    /// Every cell.
    pub breaker: Breaker,
    /// The rules.
    pub policy: Policy,
    /// A call on the only route, without keys.
    pub call: Call,
}

/// One route in one group; `limits` stand on the route, `keys` hang from it.
///
/// # Panics
/// When the rules do not compile: then the benchmark is wrong.
#[must_use]
pub fn world(limits: Vec<LimitSpec>, keys: Vec<KeySpec>) -> World {
    let breaker = Breaker::new(Capacity { scopes: 64, keys: 1 << 17 }, Seed([1, 2]));
    let spec = PolicySpec {
        groups: vec![GroupSpec { name: "g".to_owned(), scope: ScopeSpec::default() }],
        routes: vec![RouteSpec {
            name: "r".to_owned(),
            group: "g".to_owned(),
            class: Class::Normal,
            scope: ScopeSpec { limits, keys, ..ScopeSpec::default() },
        }],
        ..PolicySpec::default()
    };
    #[expect(clippy::panic, reason = "a benchmark with wrong rules must not run")]
    let policy = match breaker.compile(&spec) {
        Ok(policy) => policy,
        Err(errors) => panic!("{errors:?}"),
    };
    #[expect(clippy::panic, reason = "as above")]
    let call = match policy.routes().next() {
        Some((route, _)) => Call::new(route),
        None => panic!("no route"),
    };
    World { breaker, policy, call }
}

#[cfg(test)]
mod tests {
    use super::*;
    use breaker_core::{LimitKind, Mono, Span, Verdict};

    /// Goal: the world that is measured decides as its limit says.
    #[test]
    fn the_world_refuses_above_its_limit() {
        let limit = LimitSpec::new(LimitKind::Window { count: 2, length: Span::from_secs(1) });
        let world = world(vec![limit], Vec::new());
        let now = Mono::from_nanos(1_000_000_000);
        let verdicts: Vec<bool> = (0..3)
            .map(|_| {
                matches!(world.breaker.admit(&world.policy, world.call, now), Verdict::Allow(_))
            })
            .collect();
        assert_eq!(verdicts, [true, true, false]);
    }
}
