//! One policy with the router that leads to it, swapped whole; it decides nothing.

use crate::config::{self, Config, Settle};
use crate::data::endpoint::Upstream;
use crate::data::trust::{self, Flaw, Roots};
use crate::keys::{self, Reader};
use crate::router::Router;
use arc_swap::ArcSwap;
use breaker_core::{
    Breaker, DetectorKind, DetectorSpec, KeyHash, Level, LimitKind, LimitSpec, Policy, PolicyError,
    PolicySpec, RouteId, RouteSpec, Scope, ScopeSpec, Span,
};
use std::sync::Arc;

/// Rules and routes of one configuration, immutable.
pub struct Snapshot {
    /// Counts up with every swap; the first is 1.
    pub serial: u64,
    /// From a request's head to an index of `plans`.
    pub router: Router,
    /// The compiled rules.
    pub policy: Policy,
    /// Whether any route looks into bodies.
    pub looks_into_bodies: bool,
    /// The same as written: for the names and kinds that status and metrics tell.
    pub spec: PolicySpec,
    /// What the data plane does for each route, in the order of the policy's routes.
    pub plans: Vec<Plan>,
    /// Distinct upstreams; plans point into it.
    pub upstreams: Vec<Arc<Upstream>>,
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
    /// Where an answer says what its call weighed.
    pub settle: Option<Arc<Settle>>,
    /// An answer whose head takes longer is slow.
    pub slow: Option<Span>,
    /// A request that asks for it may go on as a WebSocket.
    pub websocket: bool,
    /// A detector of its lineage looks for repetition.
    pub prints: bool,
    /// A detector may trip one of its keys at any time, not only at a call: their labels must be known by then.
    pub learns: bool,
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

impl Plan {
    /// The fingerprint of a call, if a detector wants it and all that makes the call is known; `body` is `None` where it is not.
    #[must_use]
    pub fn print(
        &self,
        breaker: &Breaker,
        method: &[u8],
        path: &str,
        query: Option<&str>,
        body: Option<&[u8]>,
    ) -> Option<KeyHash> {
        let body = body.filter(|_| self.prints)?;
        // No query is not an empty one.
        let (asked, query) = query.map_or((&b""[..], ""), |query| (&b"?"[..], query));
        let fields = [method, path.as_bytes(), asked, query.as_bytes(), body];
        Some(breaker.fingerprint(&fields))
    }
}

/// The detectors that calls of one route are judged by: those of its scopes, and those of its keys.
struct Judged<'c> {
    scopes: [Option<&'c ScopeSpec>; 3],
}

impl<'c> Judged<'c> {
    fn of(spec: &'c PolicySpec, route: &'c RouteSpec) -> Judged<'c> {
        let group = spec.groups.iter().find(|group| group.name == route.group);
        let scopes = [Some(&spec.global), group.map(|group| &group.scope), Some(&route.scope)];
        Judged { scopes }
    }

    fn keys(&self) -> impl Iterator<Item = &'c DetectorSpec> {
        let scopes = self.scopes.into_iter().flatten();
        scopes.flat_map(|scope| &scope.keys).flat_map(|key| &key.detectors)
    }

    fn all(&self) -> impl Iterator<Item = &'c DetectorSpec> {
        let scopes = self.scopes.into_iter().flatten();
        scopes.flat_map(|scope| &scope.detectors).chain(self.keys())
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

    /// Every named scope with its rules as written: `/`, the groups, the routes.
    pub fn scopes(&self) -> impl Iterator<Item = (String, &ScopeSpec)> {
        let groups = self.spec.groups.iter();
        let routes = self.spec.routes.iter();
        std::iter::once(("/".to_owned(), &self.spec.global))
            .chain(groups.map(|group| (format!("/{}", group.name), &group.scope)))
            .chain(routes.map(|route| (format!("/{}/{}", route.group, route.name), &route.scope)))
    }

    /// The detector with this index of a scope, or of the keys of its dimension.
    #[must_use]
    pub fn detector(
        &self,
        scope: &str,
        dimension: Option<&str>,
        index: u8,
    ) -> Option<&DetectorSpec> {
        let (_, rules) = self.scopes().find(|(path, _)| path == scope)?;
        let detectors = match dimension {
            None => &rules.detectors,
            Some(name) => &rules.keys.iter().find(|key| key.name == name)?.detectors,
        };
        detectors.get(usize::from(index))
    }

    /// Compiles a configuration into rules and routes, for so many workers. Of the upstreams that are `known`, those that are configured
    /// alike go on as they are, with their connections and marks.
    ///
    /// # Errors
    /// All errors of the policy at once, each with its path.
    pub fn build(
        config: &Config,
        breaker: &Breaker,
        serial: u64,
        workers: usize,
        known: &[Arc<Upstream>],
    ) -> Result<Snapshot, Vec<PolicyError>> {
        let policy = breaker.compile(&config.policy)?;
        let mut upstreams: Vec<Arc<Upstream>> = Vec::new();
        let (mut roots, mut errors) = (Roots::default(), Vec::new());
        let mut plans = Vec::with_capacity(config.routes.len());
        let trusted: Arc<[_]> = config.trusted.as_slice().into();
        let specs = config.routes.iter().zip(&config.policy.routes);
        for ((route, scope), (configured, spec)) in policy.routes().zip(specs) {
            let place = upstreams.iter().position(|known| *known.spec() == configured.upstream);
            let upstream = match place {
                Some(index) => index,
                None => {
                    let built = Upstream::build(&configured.upstream, workers, known, &mut roots);
                    match built {
                        Ok(built) => upstreams.push(built),
                        Err(flaw) => errors.push(no_trust(&configured.upstream, &spec.name, flaw)),
                    }
                    upstreams.len().saturating_sub(1)
                }
            };
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
            let judged = Judged::of(&config.policy, spec);
            plans.push(Plan {
                route,
                scope: scope.clone(),
                upstream,
                keys,
                settle: configured.settle.clone().map(Arc::new),
                slow: configured.slow,
                websocket: configured.websocket,
                prints: judged
                    .all()
                    .any(|detector| matches!(detector.kind, DetectorKind::Repeat(_))),
                learns: judged.keys().next().is_some(),
            });
        }
        if !errors.is_empty() {
            return Err(errors);
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
        let spec = config.policy.clone();
        let looks_into_bodies = plans.iter().any(|plan| plan.keys.looks_into_body());
        Ok(Snapshot { serial, router, policy, spec, looks_into_bodies, plans, upstreams })
    }
}

/// Whom an upstream over TLS should believe cannot be known.
fn no_trust(
    upstream: &config::upstream::Upstream,
    route: &str,
    (problem, hint): Flaw,
) -> PolicyError {
    let path = match (&upstream.name, &upstream.ca) {
        (Some(name), Some(_)) => format!("upstreams.{name}.ca"),
        (Some(name), None) => format!("upstreams.{name}.endpoints"),
        (None, _) => format!("routes.{route}.upstream"),
    };
    PolicyError { path, problem, hint }
}

/// Looks for whom the upstreams of a configuration should believe, as a start does.
///
/// # Errors
/// All that is missing.
pub fn trusts(config: &Config) -> Result<(), Vec<PolicyError>> {
    let (mut roots, mut errors) = (Roots::default(), Vec::new());
    let routes = config.policy.routes.iter().zip(&config.routes);
    for (spec, route) in routes {
        let names = route.upstream.endpoints.iter().map(trust::server_name);
        let named = names.collect::<Result<Vec<_>, _>>().map(drop);
        let trusted = named.and_then(|()| roots.trust(&route.upstream).map(drop));
        if let Err(flaw) = trusted {
            let error = no_trust(&route.upstream, &spec.name, flaw);
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What people call a limit: its name, or its kind and index.
#[must_use]
pub fn limit_name(limit: &LimitSpec, index: u8) -> String {
    if !limit.name.is_empty() {
        return limit.name.clone();
    }
    let kind = match limit.kind {
        LimitKind::Rate { .. } => "rate",
        LimitKind::Window { .. } => "window",
        LimitKind::Budget { .. } => "budget",
        LimitKind::InFlight { .. } => "in_flight",
    };
    format!("{kind}[{index}]")
}

/// What people call a detector: its name, or its kind and index.
#[must_use]
pub fn detector_name(rule: &DetectorSpec, index: u8) -> String {
    rule.name.clone().unwrap_or_else(|| format!("{}[{index}]", rule.kind.word()))
}
