//! From host, method and path to the one route that takes a request; it decides nothing else and never allocates to find.
//!
//! A tree of path segments, each step of which tries a literal, then a parameter, then a catch-all. Where a path ends, those
//! who take it stand in one list, and one that does not take the host and method lets the search go on. So a narrow pattern
//! of another method shadows nothing. A ready-made tree of patterns knows neither hosts nor methods, would need a copy for
//! each pair of them, and refuses `/{id}` beside `/{*rest}`, and collects parameters that nobody reads.

use crate::config::Match;
use http::Method;
use std::cmp::Ordering;
use std::fmt;

/// Deepest pattern, in segments. It bounds how deep a search goes.
const MAX_DEPTH: usize = 64;

/// Finds the route of a request.
///
/// Among the routes that take it the host decides first, as virtual hosts do everywhere: a route that names the host beats all
/// that name none. Then the path: segment by segment a literal beats a parameter, and that beats a catch-all. Of those with
/// the same path a named method beats any method.
#[derive(Debug)]
pub struct Router {
    /// The first is the root; children stand after their parents.
    nodes: Vec<Node>,
    /// Does any route name a host?
    names_hosts: bool,
}

/// Why no router can be built. A checked configuration gives no cause for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouterError {
    /// The two routes, by their index, take the same requests.
    SameMatch {
        /// The one that came first.
        first: usize,
        /// The one that would never be found.
        second: usize,
    },
    /// This route's pattern does not begin with `/`, goes on after a catch-all, or is deeper than 64 segments.
    BadPattern(usize),
}

impl fmt::Display for RouterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouterError::SameMatch { first, second } => {
                write!(f, "route {second} takes the same requests as route {first}")
            }
            RouterError::BadPattern(route) => write!(f, "the path of route {route} is no pattern"),
        }
    }
}

impl std::error::Error for RouterError {}

impl Router {
    /// Builds a router over routes, each with the index that is to be found.
    ///
    /// # Errors
    ///
    /// Two routes that take the same requests, and patterns that [`crate::config::check::load`] would have refused.
    pub fn build(routes: &[(usize, &Match)]) -> Result<Router, RouterError> {
        let names_hosts = routes.iter().any(|(_, matches)| matches.host.is_some());
        let mut router = Router { nodes: vec![Node::default()], names_hosts };
        for &(route, matches) in routes {
            router.insert(route, matches)?;
        }
        Ok(router)
    }

    /// The route that takes a request to `host` with `method` and `path`. The host may be in any case, with or without a
    /// port or a trailing dot: such spellings must not lead around its routes. The path must be canonical.
    #[must_use]
    pub fn find(&self, host: Option<&str>, method: &Method, path: &str) -> Option<usize> {
        let root = self.nodes.first()?;
        let rest = path.strip_prefix('/')?;
        let named = host.filter(|_| self.names_hosts).map(bare_host);
        named
            .and_then(|host| self.descend(root, rest, Some(host), method))
            .or_else(|| self.descend(root, rest, None, method))
    }

    /// Among the routes that name this host, or among those that name none. As deep as the patterns are, and each node is looked at once at most, since its depth fixes the segment it meets.
    fn descend(
        &self,
        node: &Node,
        rest: &str,
        host: Option<&str>,
        method: &Method,
    ) -> Option<usize> {
        let (segment, below) = match rest.split_once('/') {
            Some((segment, below)) => (segment, Some(below)),
            None => (rest, None),
        };
        let child = |index: usize| {
            let child = self.nodes.get(index)?;
            match below {
                Some(below) => self.descend(child, below, host, method),
                None => child.end.pick(host, method),
            }
        };
        let literal = node.literals.binary_search_by(|(name, _)| (**name).cmp(segment)).ok();
        literal
            .and_then(|at| node.literals.get(at))
            .and_then(|(_, index)| child(*index))
            .or_else(|| node.parameter.filter(|_| !segment.is_empty()).and_then(child))
            .or_else(|| node.rest.pick(host, method))
    }

    fn insert(&mut self, route: usize, matches: &Match) -> Result<(), RouterError> {
        let bad = RouterError::BadPattern(route);
        let shape = matches.shape();
        let segments = shape.strip_prefix('/').ok_or(bad)?;
        let depth = segments.split('/').count();
        if depth > MAX_DEPTH {
            return Err(bad);
        }
        let mut at = 0;
        for (index, segment) in segments.split('/').enumerate() {
            match segment {
                "{*}" => {
                    let node = self.nodes.get_mut(at).ok_or(bad)?;
                    return if index + 1 == depth {
                        node.rest.add(route, matches)
                    } else {
                        Err(bad)
                    };
                }
                "{}" => at = self.parameter_below(at).ok_or(bad)?,
                literal => at = self.literal_below(at, literal).ok_or(bad)?,
            }
        }
        self.nodes.get_mut(at).ok_or(bad)?.end.add(route, matches)
    }

    fn parameter_below(&mut self, at: usize) -> Option<usize> {
        let new = self.nodes.len();
        let index = *self.nodes.get_mut(at)?.parameter.get_or_insert(new);
        if index == new {
            self.nodes.push(Node::default());
        }
        Some(index)
    }

    fn literal_below(&mut self, at: usize, literal: &str) -> Option<usize> {
        let new = self.nodes.len();
        let literals = &mut self.nodes.get_mut(at)?.literals;
        match literals.binary_search_by(|(name, _)| (**name).cmp(literal)) {
            Ok(found) => literals.get(found).map(|(_, index)| *index),
            Err(place) => {
                literals.insert(place, (literal.into(), new));
                self.nodes.push(Node::default());
                Some(new)
            }
        }
    }
}

/// One segment of a pattern.
#[derive(Debug, Default)]
struct Node {
    /// Children by name, in order.
    literals: Vec<(Box<str>, usize)>,
    /// The child that takes any segment but an empty one.
    parameter: Option<usize>,
    /// Who takes a path that ends here.
    end: Takers,
    /// Who takes whatever follows.
    rest: Takers,
}

/// The routes of one path.
#[derive(Debug, Default)]
struct Takers {
    /// By lower-case host, in order.
    hosts: Vec<(Box<str>, Methods)>,
    any: Methods,
}

impl Takers {
    fn pick(&self, host: Option<&str>, method: &Method) -> Option<usize> {
        let Some(host) = host else { return self.any.pick(method) };
        let at = self.hosts.binary_search_by(|(name, _)| compare_lower(name, host)).ok()?;
        self.hosts.get(at)?.1.pick(method)
    }

    fn add(&mut self, route: usize, matches: &Match) -> Result<(), RouterError> {
        let Some(host) = matches.host.as_deref() else {
            return self.any.add(route, matches);
        };
        match self.hosts.binary_search_by(|(name, _)| compare_lower(name, host)) {
            Ok(at) => match self.hosts.get_mut(at) {
                Some((_, methods)) => methods.add(route, matches),
                None => Ok(()),
            },
            Err(place) => {
                let mut methods = Methods::default();
                methods.add(route, matches)?;
                self.hosts.insert(place, (host.to_ascii_lowercase().into(), methods));
                Ok(())
            }
        }
    }
}

/// The routes of one path and host.
#[derive(Debug, Default)]
struct Methods {
    named: Vec<(Method, usize)>,
    any: Option<usize>,
}

impl Methods {
    fn pick(&self, method: &Method) -> Option<usize> {
        let named = self.named.iter().find(|(name, _)| name == method);
        named.map(|(_, route)| *route).or(self.any)
    }

    fn add(&mut self, route: usize, matches: &Match) -> Result<(), RouterError> {
        if matches.methods.is_empty() {
            return match self.any {
                Some(first) => Err(RouterError::SameMatch { first, second: route }),
                None => {
                    self.any = Some(route);
                    Ok(())
                }
            };
        }
        for method in &matches.methods {
            match self.named.iter().find(|(name, _)| name == method) {
                Some(&(_, first)) => return Err(RouterError::SameMatch { first, second: route }),
                None => self.named.push((method.clone(), route)),
            }
        }
        Ok(())
    }
}

/// A host without its port and trailing dot. IPv6 stands in brackets, so a colon beyond them begins the port.
fn bare_host(host: &str) -> &str {
    let end = match host.find(']') {
        Some(bracket) => bracket.saturating_add(1),
        None => host.find(':').unwrap_or(host.len()),
    };
    let bare = host.get(..end).unwrap_or(host);
    bare.strip_suffix('.').unwrap_or(bare)
}

/// Orders a lower-case name against text in any case.
fn compare_lower(name: &str, text: &str) -> Ordering {
    name.bytes().cmp(text.bytes().map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::{Router, RouterError};
    use crate::config::Match;
    use http::Method;
    use proptest::prelude::{ProptestConfig, Strategy, prop, proptest};

    fn takes(host: &str, methods: &str, path: &str) -> Match {
        Match {
            host: (!host.is_empty()).then(|| host.to_owned()),
            methods: methods
                .split_whitespace()
                .map(|method| Method::from_bytes(method.as_bytes()).unwrap())
                .collect(),
            path: path.to_owned(),
        }
    }

    fn router(routes: &[Match]) -> Result<Router, RouterError> {
        let indexed: Vec<(usize, &Match)> = routes.iter().enumerate().collect();
        Router::build(&indexed)
    }

    /// Asks a router over `routes` and compares what it finds.
    fn check(routes: &[Match], expected: &[(&str, &str, &str, Option<usize>)]) {
        let router = router(routes).unwrap();
        for &(host, method, path, route) in expected {
            let host = (!host.is_empty()).then_some(host);
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(router.find(host, &method, path), route, "{host:?} {method} {path}");
        }
    }

    /// Goal: a literal beats a parameter, and that beats a catch-all, also when all three begin at one place.
    #[test]
    fn narrow_paths_beat_wide_ones() {
        check(
            &[
                takes("", "", "/{*rest}"),
                takes("", "", "/orders/{id}"),
                takes("", "", "/orders/new"),
                takes("", "", "/{name}"),
                takes("", "", "/files/{*rest}"),
                takes("", "", "/orders/{id}/lines"),
            ],
            &[
                ("", "GET", "/", Some(0)),
                ("", "GET", "/orders/new", Some(2)),
                ("", "GET", "/orders/7", Some(1)),
                ("", "GET", "/orders/new/lines", Some(5)),
                ("", "GET", "/orders/", Some(0)),
                ("", "GET", "/orders", Some(3)),
                ("", "GET", "/orders/7/else", Some(0)),
                ("", "GET", "/files/a/b", Some(4)),
                ("", "GET", "/files/", Some(4)),
                ("", "GET", "/files", Some(3)),
            ],
        );
    }

    /// Goal: without a route for it, a request is not routed; a catch-all takes an empty rest, but not a missing slash.
    #[test]
    fn what_no_route_takes_is_not_found() {
        check(
            &[takes("", "", "/a/{*rest}"), takes("", "GET", "/b"), takes("h", "", "/c/")],
            &[
                ("", "GET", "/", None),
                ("", "GET", "/a", None),
                ("", "GET", "/a/", Some(0)),
                ("", "GET", "/a/x", Some(0)),
                ("", "HEAD", "/b", None),
                ("", "GET", "/b/", None),
                ("", "GET", "/c/", None),
                ("h", "GET", "/c/", Some(2)),
                ("h", "GET", "/c", None),
                ("h", "GET", "", None),
            ],
        );
    }

    /// Goal: `/{*rest}` takes `/`, but an own route for `/` is narrower; a named host comes before either.
    #[test]
    fn the_root_catch_all_takes_the_root() {
        check(&[takes("", "", "/{*rest}")], &[("", "GET", "/", Some(0))]);
        check(
            &[takes("", "", "/{*rest}"), takes("", "GET", "/")],
            &[("", "GET", "/", Some(1)), ("", "PUT", "/", Some(0))],
        );
        check(
            &[takes("h", "", "/{*rest}"), takes("", "GET", "/")],
            &[("h", "GET", "/", Some(0)), ("", "GET", "/", Some(1)), ("", "PUT", "/", None)],
        );
    }

    /// Goal: a route with a narrower pattern but another method or host does not shadow a broader one that takes the request.
    #[test]
    fn a_narrow_route_of_another_method_shadows_nothing() {
        check(
            &[
                takes("", "DELETE", "/orders/{id}"),
                takes("", "", "/orders/{*rest}"),
                takes("", "POST", "/orders/new"),
                takes("other", "", "/orders/7"),
            ],
            &[
                ("", "DELETE", "/orders/7", Some(0)),
                ("", "GET", "/orders/7", Some(1)),
                ("", "POST", "/orders/new", Some(2)),
                ("", "DELETE", "/orders/new", Some(0)),
                ("", "GET", "/orders/new", Some(1)),
                ("other", "GET", "/orders/7", Some(3)),
            ],
        );
    }

    /// Goal: of routes with one path a named host beats any host, then a named method beats any method; HEAD is not GET.
    #[test]
    fn named_hosts_and_methods_beat_any() {
        check(
            &[
                takes("", "", "/x"),
                takes("", "GET", "/x"),
                takes("a.example", "", "/x"),
                takes("a.example", "GET POST", "/x"),
                takes("b.example", "PUT", "/x"),
            ],
            &[
                ("", "GET", "/x", Some(1)),
                ("", "HEAD", "/x", Some(0)),
                ("a.example", "POST", "/x", Some(3)),
                ("a.example", "HEAD", "/x", Some(2)),
                ("b.example", "PUT", "/x", Some(4)),
                ("b.example", "GET", "/x", Some(1)),
                ("c.example", "GET", "/x", Some(1)),
            ],
        );
    }

    /// Goal: a host in another case, with a port or a trailing dot is the same host, so none is a way around its route.
    #[test]
    fn spellings_of_a_host_are_one_host() {
        let routes = [
            takes("a.example", "", "/{*rest}"),
            takes("", "", "/{*rest}"),
            takes("[::1]", "", "/{*rest}"),
        ];
        check(
            &routes,
            &[
                ("A.Example", "GET", "/", Some(0)),
                ("a.example.", "GET", "/", Some(0)),
                ("a.example:8080", "GET", "/", Some(0)),
                ("A.example.:8080", "GET", "/", Some(0)),
                ("[::1]", "GET", "/", Some(2)),
                ("[::1]:8080", "GET", "/", Some(2)),
                ("[::2]:8080", "GET", "/", Some(1)),
                (":8080", "GET", "/", Some(1)),
                ("a.example.x", "GET", "/", Some(1)),
                ("a.exampl", "GET", "/", Some(1)),
            ],
        );
    }

    /// Goal: two routes for the same requests are refused, whatever their parameters are called; so is what is no pattern.
    #[test]
    fn routes_for_the_same_requests_are_refused() {
        let same = RouterError::SameMatch { first: 0, second: 1 };
        for (first, second) in [
            (takes("", "", "/{a}"), takes("", "", "/{b}")),
            (takes("", "", "/{*a}"), takes("", "", "/{*b}")),
            (takes("h", "GET PUT", "/x"), takes("h", "PUT", "/x")),
        ] {
            assert_eq!(router(&[first, second]).unwrap_err(), same);
        }
        for path in ["", "x", "/{*rest}/x", &"/x".repeat(65)] {
            let found = router(&[takes("", "", path)]).unwrap_err();
            assert_eq!(found, RouterError::BadPattern(0), "{path}");
        }
    }

    /// The rules once more, slowly: ask each route, then sort those that take the request.
    fn slow(routes: &[Match], host: Option<&str>, method: &Method, path: &str) -> Option<usize> {
        let rank = |matches: &Match| -> Option<(bool, Vec<u8>, bool)> {
            let fits_host = matches.host.is_none() || matches.host.as_deref() == host;
            let fits_method = matches.methods.is_empty() || matches.methods.contains(method);
            if !fits_host || !fits_method {
                return None;
            }
            let segments: Vec<&str> = path.split('/').skip(1).collect();
            let mut ranks = Vec::new();
            let mut at = 0;
            for piece in matches.path.split('/').skip(1) {
                if piece.starts_with("{*") {
                    ranks.push(1);
                    return (at < segments.len()).then_some((
                        matches.host.is_some(),
                        ranks,
                        !matches.methods.is_empty(),
                    ));
                }
                let segment = segments.get(at)?;
                if piece.starts_with('{') && !segment.is_empty() {
                    ranks.push(2);
                } else if piece == *segment {
                    ranks.push(3);
                } else {
                    return None;
                }
                at += 1;
            }
            (at == segments.len()).then_some((
                matches.host.is_some(),
                ranks,
                !matches.methods.is_empty(),
            ))
        };
        let ranked =
            routes.iter().enumerate().filter_map(|(index, matches)| Some((rank(matches)?, index)));
        // No two have one rank, since no two take the same requests.
        ranked.max().map(|(_, index)| index)
    }

    fn any_match() -> impl Strategy<Value = Match> {
        let host = prop::sample::select(vec!["", "", "a", "b"]);
        let methods = prop::sample::select(vec!["", "GET", "PUT", "GET PUT"]);
        let segment = prop::sample::select(vec!["x", "y", "{p}", "{q}"]);
        let last = prop::sample::select(vec!["", "x", "{p}", "{*r}", "{*r}"]);
        (host, methods, prop::collection::vec(segment, 0..3), last).prop_map(
            |(host, methods, segments, last)| {
                let path: String =
                    segments.iter().chain([&last]).map(|segment| format!("/{segment}")).collect();
                takes(host, methods, &path)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Goal: the tree finds what the slow rules find. Method: few names, so that routes overlap in every way.
        #[test]
        fn the_tree_agrees_with_the_slow_rules(
            candidates in prop::collection::vec(any_match(), 1..12),
            requests in prop::collection::vec(
                (
                    prop::sample::select(vec![None, Some("a"), Some("b"), Some("c")]),
                    prop::sample::select(vec![Method::GET, Method::PUT, Method::DELETE]),
                    "(/[xyz]){0,4}/?",
                ),
                16,
            ),
        ) {
            // Routes that clash with an earlier one are left out, as a checked configuration would have none.
            let mut routes: Vec<Match> = Vec::new();
            for candidate in candidates {
                routes.push(candidate);
                if router(&routes).is_err() {
                    routes.pop();
                }
            }
            let router = router(&routes).unwrap();
            for (host, method, path) in requests {
                let path = if path.is_empty() { "/" } else { path.as_str() };
                assert_eq!(
                    router.find(host, &method, path),
                    slow(&routes, host, &method, path),
                    "{host:?} {method} {path} over {routes:?}"
                );
            }
        }
    }
}
