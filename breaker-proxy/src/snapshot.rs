//! One policy with the router that leads to it, swapped whole; it decides nothing.

use crate::config::{Config, Upstream};
use crate::keys::{self, Reader};
use crate::router::Router;
use arc_swap::ArcSwap;
use breaker_core::{Breaker, Level, Policy, PolicyError, RouteId, Scope};
use std::sync::Arc;

/// Rules and routes of one configuration, immutable.
pub struct Snapshot {
    /// Counts up with every swap; the first is 1.
    pub serial: u64,
    /// From a request's head to an index of `plans`.
    pub router: Router,
    /// The compiled rules.
    pub policy: Policy,
    /// What the data plane does for each route, in the order of the policy's routes.
    pub plans: Vec<Plan>,
    /// Distinct upstreams; plans point into it.
    pub upstreams: Vec<Upstream>,
}

/// What the data plane does for one route.
pub struct Plan {
    /// The route in the policy.
    pub route: RouteId,
    /// Its scope, for logs and metrics.
    pub scope: Scope,
    /// Index into [`Snapshot::upstreams`].
    pub upstream: usize,
    /// Reads the call's keys, in the order of the policy's dimensions, and its weight.
    pub keys: Reader,
}

/// The snapshot in force.
pub struct Current(ArcSwap<Snapshot>);

impl Current {
    /// Starts with `first` in force.
    #[must_use]
    pub fn new(first: Snapshot) -> Current {
        Current(ArcSwap::from_pointee(first))
    }

    /// The snapshot in force now. Not to be held across an await.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.0.load()
    }
}

impl Snapshot {
    /// A key's scope in the one spelling that requests lead to; other scopes as they are. `None` if no request can carry
    /// the label.
    #[must_use]
    pub fn spelled(&self, scope: &Scope) -> Option<Scope> {
        let (Some((dimension, label)), Some(parent)) = (scope.key_parts(), scope.parent()) else {
            return Some(scope.clone());
        };
        let below = |route: &Scope| {
            let group = route.parent();
            *route == parent || group.as_ref() == Some(&parent) || parent.parent().is_none()
        };
        let plans = self.plans.iter().filter(|plan| below(&plan.scope));
        let mut sources = plans.filter_map(|plan| plan.keys.source(dimension));
        // An unknown dimension is for others to refuse.
        let Some(source) = sources.next() else { return Some(scope.clone()) };
        let label = keys::spelled(&source.from, &label)?;
        parent.key(dimension, &label).ok()
    }

    /// Compiles a configuration into rules and routes.
    ///
    /// # Errors
    /// All errors of the policy at once, each with its path.
    pub fn build(
        config: &Config,
        breaker: &Breaker,
        serial: u64,
    ) -> Result<Snapshot, Vec<PolicyError>> {
        let policy = breaker.compile(&config.policy)?;
        let mut upstreams: Vec<Upstream> = Vec::new();
        let mut plans = Vec::with_capacity(config.routes.len());
        let trusted: Arc<[_]> = config.trusted.as_slice().into();
        for ((route, scope), configured) in policy.routes().zip(&config.routes) {
            let upstream = upstreams
                .iter()
                .position(|known| *known == configured.upstream)
                .unwrap_or_else(|| {
                    upstreams.push(configured.upstream.clone());
                    upstreams.len() - 1
                });
            let group = config
                .policy
                .groups
                .iter()
                .position(|group| Scope::parse(&format!("/{}", group.name)).ok() == scope.parent())
                .and_then(|index| config.groups.get(index));
            let mut global_keys = config.global_keys.iter();
            let mut group_keys = group.map(|group| group.keys.iter()).into_iter().flatten();
            let mut route_keys = configured.keys.iter();
            let keys = policy
                .dimensions(route)
                .filter_map(|dimension| {
                    let source = match dimension.level {
                        Level::Global => global_keys.next(),
                        Level::Group => group_keys.next(),
                        Level::Route | Level::Key => route_keys.next(),
                    };
                    source.map(|source| (dimension.name.to_owned(), source.clone()))
                })
                .collect();
            let (weight, pattern) = (configured.weight.as_ref(), &configured.matches.path);
            let keys = Reader::new(keys, weight, pattern, Arc::clone(&trusted));
            plans.push(Plan { route, scope: scope.clone(), upstream, keys });
        }
        let matches: Vec<_> = config
            .routes
            .iter()
            .enumerate()
            .map(|(index, route)| (index, &route.matches))
            .collect();
        let router = Router::build(&matches).map_err(|error| {
            vec![PolicyError {
                path: "routes".to_owned(),
                problem: error.to_string(),
                hint: "give each route a match of its own".to_owned(),
            }]
        })?;
        Ok(Snapshot { serial, router, policy, plans, upstreams })
    }
}
