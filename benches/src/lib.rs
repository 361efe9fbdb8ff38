//! What measuring needs and no measuring itself: worlds to decide in, interleaved rounds, figures, tables.

/// Compiles and runs the example of the project's README, so that it stays true.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

pub mod figures;
pub mod report;
pub mod rounds;

use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, KeySpec, LimitSpec, Policy, PolicySpec, RouteSpec,
    Scope, ScopeSpec, Seed,
};

/// A breaker with one route, ready to decide.
pub struct World {
    /// Every cell.
    pub breaker: Breaker,
    /// The rules.
    pub policy: Policy,
    /// A call on the only route, without keys.
    pub call: Call,
    /// The only route.
    pub route: Scope,
}

/// One route in one group; `limits` stand on the route, `keys` hang from it.
///
/// # Panics
/// When the rules do not compile: then the benchmark is wrong.
#[must_use]
pub fn world(limits: Vec<LimitSpec>, keys: Vec<KeySpec>) -> World {
    World::new(ScopeSpec { limits, keys, ..ScopeSpec::default() }, 1 << 17)
}

impl World {
    /// One route of these rules, with room for so many keys in each dimension.
    ///
    /// # Panics
    /// When the rules do not compile: then the benchmark is wrong.
    #[must_use]
    pub fn new(scope: ScopeSpec, keys: u32) -> World {
        let breaker = Breaker::new(Capacity { scopes: 64, keys }, Seed([1, 2]));
        let (name, group) = ("r".to_owned(), "g".to_owned());
        let spec = PolicySpec {
            groups: vec![GroupSpec { name: group.clone(), scope: ScopeSpec::default() }],
            routes: vec![RouteSpec { name, group, class: Class::Normal, scope }],
            ..PolicySpec::default()
        };
        #[expect(clippy::panic, reason = "a benchmark with wrong rules must not run")]
        let policy = match breaker.compile(&spec) {
            Ok(policy) => policy,
            Err(errors) => panic!("{errors:?}"),
        };
        #[expect(clippy::panic, reason = "as above")]
        let (call, route) = match policy.routes().next() {
            Some((id, route)) => (Call::new(id), route.clone()),
            None => panic!("no route"),
        };
        World { breaker, policy, call, route }
    }
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
