//! What a valid configuration should still be asked about: who could trip what for others; it refuses nothing.

use super::{Config, ConfigError, KeySource, Missing, Route};
use breaker_core::{
    KeySpec, LimitKind, LimitSpec, Mode, OnBreach, OnFind, RouteSpec, ScopeSpec, Span,
};

/// Advice on a configuration that passed every check, each with its path and in the form of an error.
#[must_use]
pub fn advice(config: &Config) -> Vec<ConfigError> {
    let mut advice = Vec::new();
    let policy = &config.policy;
    forgeable("global", &policy.global, &config.global_keys, &mut advice);
    for (group, keys) in policy.groups.iter().zip(&config.groups) {
        forgeable(&format!("groups.{}", group.name), &group.scope, &keys.keys, &mut advice);
    }
    for (route, keys) in policy.routes.iter().zip(&config.routes) {
        forgeable(&format!("routes.{}", route.name), &route.scope, &keys.keys, &mut advice);
    }

    let lineages = lineages(config);
    lonely("global", &policy.global, &lineages, &mut advice);
    for group in &policy.groups {
        let within: Vec<Lineage<'_>> =
            lineages.iter().filter(|lineage| lineage.group == group.name).cloned().collect();
        lonely(&format!("groups.{}", group.name), &group.scope, &within, &mut advice);
    }
    for (route, lineage) in policy.routes.iter().zip(&lineages) {
        let within = std::slice::from_ref(lineage);
        lonely(&format!("routes.{}", route.name), &route.scope, within, &mut advice);
    }
    advice
}

/// The dimensions that every call of one route is charged in.
#[derive(Clone)]
struct Lineage<'c> {
    group: &'c str,
    route: &'c str,
    keys: Vec<&'c KeySpec>,
}

fn lineages(config: &Config) -> Vec<Lineage<'_>> {
    let policy = &config.policy;
    let routes = policy.routes.iter().zip(&config.routes);
    let lineage = |(route, own)| {
        let route: &RouteSpec = route;
        let own: &Route = own;
        let mut keys: Vec<&KeySpec> = charged(&policy.global, &config.global_keys).collect();
        let mut groups = policy.groups.iter().zip(&config.groups);
        if let Some((group, sources)) = groups.find(|(group, _)| group.name == route.group) {
            keys.extend(charged(&group.scope, &sources.keys));
        }
        keys.extend(charged(&route.scope, &own.keys));
        Lineage { group: &route.group, route: &route.name, keys }
    };
    routes.map(lineage).collect()
}

/// The dimensions that a call cannot leave out, and that do deny.
fn charged<'c>(
    scope: &'c ScopeSpec,
    sources: &'c [KeySource],
) -> impl Iterator<Item = &'c KeySpec> {
    let stands = |key: &KeySpec, source: &KeySource| {
        let is_there = source.missing != Missing::Skip || source.from.is_always_there();
        is_there && key.mode == Mode::Enforce
    };
    let keys = scope.keys.iter().zip(sources);
    keys.filter(move |(key, source)| stands(key, source)).map(|(key, _)| key)
}

/// Dimensions that trip on a value which the client itself writes.
fn forgeable(path: &str, scope: &ScopeSpec, sources: &[KeySource], advice: &mut Vec<ConfigError>) {
    for (key, source) in scope.keys.iter().zip(sources) {
        let live = |limit: &LimitSpec| limit.on_breach == OnBreach::Trip && !limit.candidate;
        let overrides = key.overrides.iter().flat_map(|own| &own.limits);
        let trips = key.limits.iter().chain(overrides).any(live)
            || key.detectors.iter().any(|detector| detector.on_find == OnFind::Trip);
        if trips && !source.from.is_always_there() {
            let part = &source.from;
            advice.push(ConfigError {
                path: format!("{path}.keys.{}", key.name),
                problem: format!(
                    "can trip, and whoever writes {part} can write another's name into it"
                ),
                hint: "let something in front verify it, or refuse and do not trip".to_owned(),
            });
        }
    }
}

/// Trip limits that one client alone could breach for all the others in the scope.
fn lonely(path: &str, scope: &ScopeSpec, lineages: &[Lineage<'_>], advice: &mut Vec<ConfigError>) {
    for (index, limit) in scope.limits.iter().enumerate() {
        if limit.on_breach != OnBreach::Trip || limit.candidate {
            continue;
        }
        let unbounded = lineages.iter().find(|lineage| {
            !lineage.keys.iter().flat_map(|key| &key.limits).any(|own| stays_below(own, limit))
        });
        if let Some(lineage) = unbounded {
            advice.push(ConfigError {
                path: format!("{path}.limit[{index}]"),
                problem: format!(
                    "can be tripped for all by one client of routes.{}",
                    lineage.route
                ),
                hint: "add a dimension that refuses each client well below this limit".to_owned(),
            });
        }
    }
}

/// Whether `own`, which refuses, keeps one key from breaching `shared` alone. Rounded to the safe side.
fn stays_below(own: &LimitSpec, shared: &LimitSpec) -> bool {
    if own.on_breach != OnBreach::Refuse || own.candidate || own.by != shared.by {
        return false;
    }
    // The shared limit allows `room` in some length of time, and what passes of one key in it must fit.
    match shared.kind {
        LimitKind::Window { count, length } => most_within(own.kind, length) <= u128::from(count),
        LimitKind::Rate { count, per, burst } => {
            let (own_count, own_per, at_once) = match own.kind {
                LimitKind::Rate { count, per, burst } => (count, per, burst),
                LimitKind::Window { count, length } => (count, length, count),
                LimitKind::Budget { .. } | LimitKind::InFlight { .. } => return false,
            };
            let slower = u128::from(own_count) * u128::from(per.as_nanos())
                <= u128::from(count) * u128::from(own_per.as_nanos());
            slower && at_once <= burst
        }
        LimitKind::Budget { .. } | LimitKind::InFlight { .. } => false,
    }
}

/// The most that a limit admits in any interval of that length.
fn most_within(kind: LimitKind, length: Span) -> u128 {
    let length = u128::from(length.as_nanos());
    match kind {
        LimitKind::Rate { count, per, burst } => {
            let refilled = u128::from(count) * length / u128::from(per.as_nanos().max(1));
            // One more, for what had half refilled before the interval began.
            refilled + u128::from(burst) + 1
        }
        LimitKind::Window { count, length: own } => {
            let times = length.div_ceil(u128::from(own.as_nanos().max(1)));
            u128::from(count) * times
        }
        LimitKind::Budget { count, idle: None } => u128::from(count),
        LimitKind::Budget { .. } | LimitKind::InFlight { .. } => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::advice;
    use crate::config::check::{default_text, load};

    /// The paths of all advice on a good file.
    fn paths(text: &str) -> Vec<String> {
        let config = load(text, "test.toml", &|_| None).unwrap();
        advice(&config).into_iter().map(|advice| advice.path).collect()
    }

    fn route(rules: &str) -> String {
        format!(
            "[[routes]]\nname = \"a\"\nmatch = {{ path = \"/\" }}\nupstream = \"http://h\"\n{rules}\n"
        )
    }

    const PEER: &str = "[[routes.keys]]\nname = \"peer\"\nfrom = \"peer\"\n";
    const TRIP: &str =
        "limit = [{ window = \"100/10s\", of = \"offered\", on_breach = \"trip\" }]\n";

    /// Goal: a limit that one client can trip for all is pointed out, until a dimension keeps each client below it.
    #[test]
    fn a_limit_that_one_client_can_trip_is_pointed_out() {
        let alone = ["routes.a.limit[0]"];
        assert_eq!(paths(&route(TRIP)), alone);
        assert_eq!(paths(&route(&format!("{TRIP}{PEER}"))), alone);
        for (limit, is_enough) in [
            ("{ rate = \"5/s\", burst = 10 }", true),
            ("{ rate = \"10/s\", burst = 10 }", false),
            ("{ rate = \"5/s\", burst = 51 }", false),
            ("{ window = \"100/10s\" }", true),
            ("{ window = \"101/10s\" }", false),
            ("{ window = \"10/1s\" }", true),
            ("{ window = \"26/3s\" }", false),
            ("{ window = \"25/3s\" }", true),
            ("{ window = \"5/10s\", on_breach = \"trip\" }", false),
        ] {
            let found = paths(&route(&format!("{TRIP}{PEER}limit = [{limit}]")));
            assert_eq!(found.is_empty(), is_enough, "{limit}: {found:?}");
        }
        let rate =
            "limit = [{ rate = \"10/s\", burst = 20, of = \"offered\", on_breach = \"trip\" }]\n";
        for (limit, is_enough) in [
            ("{ rate = \"10/s\", burst = 20 }", true),
            ("{ rate = \"11/s\", burst = 20 }", false),
            ("{ rate = \"10/s\", burst = 21 }", false),
            ("{ window = \"20/2s\" }", true),
            ("{ window = \"20/1s\" }", false),
        ] {
            let found = paths(&route(&format!("{rate}{PEER}limit = [{limit}]")));
            assert_eq!(found.is_empty(), is_enough, "{limit}: {found:?}");
        }
    }

    /// Goal: a wider scope is as safe as the least safe of its routes, and a dimension that can be skipped keeps nobody out.
    #[test]
    fn a_wide_scope_is_as_safe_as_its_least_safe_route() {
        let bounded = format!("{PEER}limit = [{{ window = \"10/10s\" }}]");
        let skipped = "[[routes.keys]]\nname = \"c\"\nfrom = { header = \"x\" }\nmissing = \"skip\"\nlimit = [{ window = \"10/10s\" }]\n";
        let global = format!("[global]\n{TRIP}");
        assert!(paths(&format!("{global}{}", route(&bounded))).is_empty());
        assert_eq!(
            paths(&format!("{global}{}", route(&format!("{PEER}{skipped}")))),
            ["global.limit[0]"]
        );
        let shadowed = format!("{bounded}\nmode = \"shadow\"");
        assert_eq!(paths(&format!("{global}{}", route(&shadowed))), ["global.limit[0]"]);
        let other = route("").replace("\"a\"", "\"b\"").replace("\"/\"", "\"/b\"");
        assert_eq!(paths(&format!("{global}{}{other}", route(&bounded))), ["global.limit[0]"]);
        let group = format!("[[groups]]\nname = \"default\"\n{TRIP}");
        assert_eq!(paths(&format!("{group}{other}")), ["groups.default.limit[0]"]);
    }

    /// Goal: a dimension that trips on a header is pointed out, one that trips on an address is not. The built-in file has
    /// one on purpose, for a newcomer to trip.
    #[test]
    fn a_dimension_that_trips_on_a_header_is_pointed_out() {
        assert_eq!(paths(default_text()), ["routes.api.keys.client"]);
        let peer = format!("{PEER}limit = [{{ window = \"10/10s\", on_breach = \"trip\" }}]");
        assert!(paths(&route(&peer)).is_empty());
        let header = PEER.replace("\"peer\"\n", "\"k\"\n").replacen(
            "from = \"k\"",
            "from = { header = \"x\" }",
            1,
        );
        for (rules, is_forgeable) in [
            ("detect = [{ streak = 5 }]", true),
            ("detect = [{ streak = 5, on_find = \"warn\" }]", false),
            ("limit = [{ window = \"1/1s\", on_breach = \"trip\", candidate = true }]", false),
            (
                "[[routes.keys.overrides]]\nkey = \"a\"\nlimit = [{ window = \"1/1s\", on_breach = \"trip\" }]",
                true,
            ),
        ] {
            let found = paths(&route(&format!("{header}{rules}")));
            assert_eq!(found.contains(&"routes.a.keys.k".to_owned()), is_forgeable, "{rules}");
        }
    }
}
