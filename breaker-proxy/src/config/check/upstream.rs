//! Upstreams: the `[[upstreams]]` of a file, and what a route says of its own; it asks no network.

use super::super::raw::{
    HEALTH, MARK_DOWN, QUEUE, Report, Section, Text, is_name, nearest_hint, quoted,
};
use super::super::upstream::{Endpoint, Health, MarkDown, Protocol, Queue, Upstream};
use super::super::value::{Flaw, flaw, parse_deadline, parse_endpoint, parse_hold};
use super::super::{ConfigError, Listen};
use super::{file_path, judged, name, word};
use breaker_core::Span;
use std::net::{IpAddr, SocketAddr};

/// Endpoints of one upstream.
const MAX_ENDPOINTS: usize = 256;
/// Connections to one endpoint, and calls in one queue.
const MAX_CONNECTIONS: u64 = 1_000_000;
/// Failures in a row.
const MAX_FAILURES: u64 = 1_000;

/// Reads an endpoint as it stands in a configuration: `http://host:port` or `builtin:origin`.
///
/// # Errors
///
/// What is wrong with it, under the given path.
pub fn endpoint_at(path: &str, text: &str) -> Result<Endpoint, ConfigError> {
    parse_endpoint(text).map_err(|(problem, hint)| ConfigError {
        path: path.to_owned(),
        problem: format!("{} {problem}", quoted(text)),
        hint,
    })
}

/// The declared upstreams, and which of them a route named.
pub(super) struct Declared {
    list: Vec<DeclaredAt>,
}

struct DeclaredAt {
    path: String,
    upstream: Upstream,
    is_used: bool,
}

impl Declared {
    /// Reads all of `[[upstreams]]`.
    pub(super) fn read(
        sections: Vec<Section>,
        listen: &Listen,
        report: &mut Report<'_>,
    ) -> Declared {
        let mut list: Vec<DeclaredAt> = Vec::with_capacity(sections.len());
        for mut section in sections {
            let name = name(&mut section, report);
            let is_taken = |known: &DeclaredAt| known.upstream.name.as_deref() == Some(&name);
            if !name.is_empty() && list.iter().any(is_taken) {
                let problem = format!("{} is taken by another upstream", quoted(&name));
                report.wrong(section.path_of("name"), problem, "rename one, or put them together");
            }
            if !section.has("endpoints") {
                let hint = "say endpoints = [\"http://10.0.0.7:8000\", \"http://10.0.0.8:8000\"]";
                report.wrong(section.path_of("endpoints"), "is missing", hint);
            }
            let place = section.path_of("endpoints");
            let texts = section.texts("endpoints", report);
            let endpoints = texts.and_then(|texts| endpoints(&place, &texts, listen, report));
            let mut upstream = Upstream::plain(endpoints.unwrap_or_default());
            upstream.name = Some(name);
            let place = section.path_of("connections");
            settings(&mut upstream, &mut section, report);
            let workers = listen.workers.map_or(1, u32::from);
            if upstream.protocol == Protocol::Http2 && upstream.connections < workers {
                let problem = format!(
                    "{} is less than the {workers} threads, which share none over h2",
                    upstream.connections
                );
                report.wrong(place, problem, format!("use at least {workers}"));
            }
            list.push(DeclaredAt { path: section.path, upstream, is_used: false });
        }
        Declared { list }
    }

    /// The upstream of one route: endpoints of its own, or a declared one.
    pub(super) fn of_route(
        &mut self,
        route: &mut Section,
        listen: &Listen,
        report: &mut Report<'_>,
    ) -> Option<Upstream> {
        if !route.has("upstream") {
            let hint =
                "say upstream = \"http://10.0.0.7:8000\", or \"builtin:origin\" to try things out";
            report.wrong(route.path_of("upstream"), "is missing", hint);
        }
        let place = route.path_of("upstream");
        let texts = route.texts("upstream", report)?;
        if let [only] = texts.as_slice()
            && only.path == place
            && is_name(&only.value)
        {
            return self.named(only, report);
        }
        endpoints(&place, &texts, listen, report).map(Upstream::plain)
    }

    fn named(&mut self, text: &Text, report: &mut Report<'_>) -> Option<Upstream> {
        let is_it = |known: &&mut DeclaredAt| known.upstream.name.as_ref() == Some(&text.value);
        if let Some(found) = self.list.iter_mut().find(is_it) {
            found.is_used = true;
            return Some(found.upstream.clone());
        }
        let names = self.list.iter().filter_map(|known| known.upstream.name.as_deref());
        let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
        let hint = if names.is_empty() {
            "write http://host:port, or declare it in [[upstreams]]".to_owned()
        } else {
            nearest_hint(&text.value, &names)
        };
        report.wrong(&text.path, format!("{} is not declared", text.shown), hint);
        None
    }

    /// Tells of upstreams that nothing goes to.
    pub(super) fn unused(&self, report: &mut Report<'_>) {
        for known in &self.list {
            let is_named = known.upstream.name.as_deref().is_some_and(|name| !name.is_empty());
            if is_named && !known.is_used {
                let hint = "is its name, or a route's upstream, a typo?";
                report.wrong(&known.path, "no route goes to it", hint);
            }
        }
    }
}

/// Everything but the endpoints. What is left out keeps its default.
fn settings(upstream: &mut Upstream, section: &mut Section, report: &mut Report<'_>) {
    let small = |number: Option<u64>| number.and_then(|number| u32::try_from(number).ok());
    let connections = small(section.whole("connections", 1, MAX_CONNECTIONS, report));
    upstream.connections = connections.unwrap_or(upstream.connections);
    let place = section.path_of("protocol");
    let protocols = [Protocol::Http1, Protocol::Http2].map(|protocol| (protocol.name(), protocol));
    let protocol = section.text("protocol", report);
    let protocol = protocol.and_then(|text| word(&text, &protocols, report));
    upstream.protocol = protocol.unwrap_or(upstream.protocol);
    if upstream.protocol == Protocol::Http2 && upstream.is_built_in() {
        report.wrong(place, "the built-in origin speaks http/1.1", "drop it, or name a server");
    }
    let refresh = section.quantity("dns_refresh", "30s", report);
    let refresh = refresh.and_then(|text| judged(&text, parse_refresh, report));
    upstream.dns_refresh = refresh.unwrap_or(upstream.dns_refresh);
    let place = section.path_of("ca");
    upstream.ca = section.text("ca", report).and_then(|text| file_path(&text, report));
    let has_some = !upstream.endpoints.is_empty();
    if upstream.ca.is_some() && has_some && !upstream.endpoints.iter().any(Endpoint::is_tls) {
        report.wrong(place, "there is no https:// endpoint", "drop it, or write https://");
    }
    upstream.health =
        section.section("health", HEALTH, report).map(|mut table| health(&mut table, report));
    if let Some(mut table) = section.section("queue", QUEUE, report) {
        let Queue { calls, wait } = &mut upstream.queue;
        *calls = small(table.whole("calls", 0, MAX_CONNECTIONS, report)).unwrap_or(*calls);
        let found = table.quantity("wait", "1s", report);
        *wait = found.and_then(|text| judged(&text, parse_deadline, report)).unwrap_or(*wait);
    }
    if let Some(mut table) = section.section("mark_down", MARK_DOWN, report) {
        let MarkDown { after, hold, at_most } = &mut upstream.mark_down;
        *after = small(table.whole("after", 1, MAX_FAILURES, report)).unwrap_or(*after);
        let says = table.has("at_most");
        for (key, span) in [("hold", &mut *hold), ("at_most", &mut *at_most)] {
            let found = table.quantity(key, "1s", report);
            *span = found.and_then(|text| judged(&text, parse_hold, report)).unwrap_or(*span);
        }
        if *at_most < *hold {
            if says {
                let hint = "each trial that fails doubles the hold up to at_most; make it longer";
                report.wrong(table.path_of("at_most"), "is shorter than hold", hint);
            }
            *at_most = *hold;
        }
    }
}

fn health(table: &mut Section, report: &mut Report<'_>) -> Health {
    if !table.has("path") {
        let hint = "say what to ask for, as in path = \"/healthz\"";
        report.wrong(table.path_of("path"), "is missing", hint);
    }
    let path = table.text("path", report).and_then(|text| judged(&text, parse_path, report));
    let every = table.quantity("every", "5s", report);
    let every = every.and_then(|text| judged(&text, parse_refresh, report));
    let within = table.quantity("within", "1s", report);
    let within = within.and_then(|text| judged(&text, parse_deadline, report));
    let mut times = |key, usual| {
        let found = table.whole(key, 1, MAX_FAILURES, report);
        found.and_then(|found| u32::try_from(found).ok()).unwrap_or(usual)
    };
    let (fail, pass) = (times("fail", 3), times("pass", 2));
    Health {
        path: path.unwrap_or_default(),
        every: every.unwrap_or(Span::from_secs(5)),
        within: within.unwrap_or(Span::from_secs(1)),
        fail,
        pass,
    }
}

fn parse_path(text: &str) -> Result<String, Flaw> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !text.starts_with('/') || !is_plain || text.len() > 1024 {
        return flaw("is not a path", "write it as in \"/healthz\", at most 1024 characters");
    }
    Ok(text.to_owned())
}

fn parse_refresh(text: &str) -> Result<Span, Flaw> {
    match parse_deadline(text)? {
        span if span < Span::from_secs(1) => flaw("is too often", "use at least 1s"),
        span => Ok(span),
    }
}

/// A list of endpoints, each once.
fn endpoints(
    place: &str,
    texts: &[Text],
    listen: &Listen,
    report: &mut Report<'_>,
) -> Option<Vec<Endpoint>> {
    let before = report.errors.len();
    if texts.is_empty() {
        report.wrong(place, "is an empty list", "name at least one endpoint");
    }
    if texts.len() > MAX_ENDPOINTS {
        let problem = format!("{} endpoints are too many", texts.len());
        report.wrong(place, problem, format!("use at most {MAX_ENDPOINTS}"));
    }
    let mut endpoints = Vec::with_capacity(texts.len().min(MAX_ENDPOINTS));
    for text in texts.iter().take(MAX_ENDPOINTS) {
        let parse = |written: &str| one_endpoint(written, text.path != place);
        let Some(endpoint) = judged(text, parse, report) else { continue };
        leads_back(&endpoint, text, listen, report);
        if endpoints.contains(&endpoint) {
            report.wrong(&text.path, format!("{} stands here twice", text.shown), "drop one");
        } else {
            endpoints.push(endpoint);
        }
    }
    (report.errors.len() == before).then_some(endpoints)
}

fn one_endpoint(text: &str, is_in_list: bool) -> Result<Endpoint, Flaw> {
    if is_in_list && is_name(text) {
        let hint = "write http://host:port; the name of an upstream stands alone, without a list";
        return flaw("is not an endpoint", hint);
    }
    parse_endpoint(text)
}

fn leads_back(endpoint: &Endpoint, text: &Text, listen: &Listen, report: &mut Report<'_>) {
    for (plane, own) in [("data", listen.data), ("admin", listen.admin)] {
        if leads_to(endpoint, own) {
            report.wrong(
                &text.path,
                format!("{} leads back to our own {plane} plane at {own}", text.shown),
                "name the server behind us",
            );
        }
    }
}

/// Whether an endpoint is one of our own sockets, as far as that can be seen without asking the network.
fn leads_to(endpoint: &Endpoint, own: SocketAddr) -> bool {
    let Some((host, port)) = endpoint.server() else {
        return false;
    };
    let ip = match host {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        other => other.parse::<IpAddr>().ok(),
    };
    let own_ip = own.ip().to_canonical();
    ip.map(|ip| ip.to_canonical()).is_some_and(|ip| {
        // A connection to the unspecified address goes to this host's loopback.
        let is_here = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
        let either_is_any = ip.is_unspecified() || own_ip.is_unspecified();
        port == own.port() && (ip == own_ip || (either_is_any && is_here(ip) && is_here(own_ip)))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::check::load;
    use crate::config::upstream::{Endpoint, Health, MarkDown, Protocol, Queue, Upstream};
    use breaker_core::Span;

    fn read(upstreams: &str, upstream: &str) -> Result<Config, String> {
        let text = format!(
            "{upstreams}\n[[routes]]\nname = \"a\"\nmatch = {{ path = \"/\" }}\nupstream = {upstream}\n"
        );
        load(&text, "test.toml", &|_| None).map_err(|errors| errors.to_string())
    }

    fn upstream(upstreams: &str, upstream: &str) -> Upstream {
        read(upstreams, upstream).unwrap().routes[0].upstream.clone()
    }

    fn http(host: &str, port: u16) -> Endpoint {
        Endpoint::Http { host: host.to_owned(), port }
    }

    /// Goal: one endpoint, a list of them and a name mean what they say, and what is left out has its documented default.
    #[test]
    fn a_route_names_one_endpoint_or_several_or_an_upstream() {
        let one = Upstream::plain(vec![http("a", 80)]);
        assert_eq!(upstream("", "\"http://A\""), one);
        assert_eq!(upstream("", "[\"http://a\"]"), one);
        let two = upstream("", "[\"http://a\", \"http://[::1]:81\"]");
        assert_eq!(two, Upstream::plain(vec![http("a", 80), http("::1", 81)]));
        let named = "[[upstreams]]\nname = \"u\"\nendpoints = \"http://a\"";
        assert_eq!(upstream(named, "\"u\""), Upstream { name: Some("u".to_owned()), ..one });
    }

    /// Goal: a thread that could have no connection of its own, where none is shared between threads, is told.
    #[test]
    fn each_thread_has_a_connection_over_http2() {
        let few = "[listen]\nworkers = 4\n[[upstreams]]\nname = \"u\"\nendpoints = \"http://a\"\nconnections = 3";
        assert!(read(few, "\"u\"").is_ok());
        assert_eq!(
            read(&format!("{few}\nprotocol = \"h2\""), "\"u\"").unwrap_err(),
            "upstreams.u.connections: 3 is less than the 4 threads, which share none over h2; use at least 4"
        );
    }

    /// Goal: everything that an upstream may say arrives.
    #[test]
    fn every_key_of_an_upstream_arrives() {
        let found = upstream(
            "[[upstreams]]\nname = \"u\"\nendpoints = [\"https://a\", \"http://b\"]\nconnections = 7\n\
             protocol = \"h2\"\nqueue = { calls = 0, wait = \"5ms\" }\nmark_down = { after = 9, hold = \"2s\", at_most = \"8s\" }\ndns_refresh = \"1s\"\nca = \"/etc/ca.pem\"\n\
             health = { path = \"/h?x=1\", every = \"2s\", within = \"250ms\", fail = 4, pass = 5 }",
            "\"u\"",
        );
        assert_eq!((found.connections, found.protocol), (7, Protocol::Http2));
        assert_eq!(found.queue, Queue { calls: 0, wait: Span::from_millis(5) });
        let (hold, at_most) = (Span::from_secs(2), Span::from_secs(8));
        assert_eq!(found.mark_down, MarkDown { after: 9, hold, at_most });
        assert_eq!(found.dns_refresh, Span::from_secs(1));
        assert_eq!(found.ca, Some("/etc/ca.pem".into()));
        let (every, within) = (Span::from_secs(2), Span::from_millis(250));
        let path = "/h?x=1".to_owned();
        assert_eq!(found.health, Some(Health { path, every, within, fail: 4, pass: 5 }));
        let tls = Endpoint::Https { host: "a".to_owned(), port: 443 };
        assert_eq!(found.endpoints, [tls, http("b", 80)]);
        let long =
            "[[upstreams]]\nname = \"u\"\nendpoints = \"http://a\"\nmark_down = { hold = \"5m\" }";
        assert_eq!(upstream(long, "\"u\"").mark_down.at_most, Span::from_secs(300));
    }

    /// Goal: endpoints are written back as they are read, so that metrics name what the file says.
    #[test]
    fn endpoints_are_shown_as_they_are_written() {
        for text in [
            "http://a:80",
            "https://a:1",
            "http://[::1]:8000",
            "https://[::1]:443",
            "builtin:origin",
        ] {
            assert_eq!(super::endpoint_at("x", text).unwrap().to_string(), text);
        }
    }

    /// Goal: an upstream that could not serve, or that nobody meant, is told.
    #[test]
    fn upstreams_that_miss_are_told() {
        let declared = |lines: &str| format!("[[upstreams]]\nname = \"u\"\n{lines}");
        let good = declared("endpoints = \"http://a\"");
        for (upstreams, route, line) in [
            ("", "[]", "routes.a.upstream: is an empty list; name at least one endpoint"),
            (
                "",
                "\"u\"",
                "routes.a.upstream: \"u\" is not declared; write http://host:port, or declare it in [[upstreams]]",
            ),
            (
                &good,
                "\"v\"",
                "routes.a.upstream: \"v\" is not declared; did you mean \"u\"?\nupstreams.u: no route goes to it; is its name, or a route's upstream, a typo?",
            ),
            (
                &good,
                "\"http://b\"",
                "upstreams.u: no route goes to it; is its name, or a route's upstream, a typo?",
            ),
            (
                &good,
                "[\"u\"]",
                "routes.a.upstream[0]: \"u\" is not an endpoint; write http://host:port; the name of an upstream stands alone, without a list\nupstreams.u: no route goes to it; is its name, or a route's upstream, a typo?",
            ),
            (
                "",
                "[\"http://a\", \"http://A:80\"]",
                "routes.a.upstream[1]: \"http://A:80\" stands here twice; drop one",
            ),
            (
                &declared(""),
                "\"u\"",
                "upstreams.u.endpoints: is missing; say endpoints = [\"http://10.0.0.7:8000\", \"http://10.0.0.8:8000\"]",
            ),
            (
                &declared("endpoints = []"),
                "\"u\"",
                "upstreams.u.endpoints: is an empty list; name at least one endpoint",
            ),
            (
                &declared("endpoints = \"http://127.0.0.1:8080\""),
                "\"u\"",
                "upstreams.u.endpoints: \"http://127.0.0.1:8080\" leads back to our own data plane at 127.0.0.1:8080; name the server behind us",
            ),
            (
                &format!("{good}\n{good}"),
                "\"u\"",
                "upstreams[1].name: \"u\" is taken by another upstream; rename one, or put them together\nupstreams[1]: no route goes to it; is its name, or a route's upstream, a typo?",
            ),
            (
                &format!("{good}\nprotocol = \"h3\""),
                "\"u\"",
                "upstreams.u.protocol: \"h3\" is not known here; did you mean \"h2\"?",
            ),
            (
                &declared("endpoints = \"builtin:origin\"\nprotocol = \"h2\""),
                "\"u\"",
                "upstreams.u.protocol: the built-in origin speaks http/1.1; drop it, or name a server",
            ),
            (
                &format!("{good}\nprotocol = \"h2\""),
                "\"u\"\nwebsocket = true",
                "routes.a.websocket: a WebSocket is not carried by h2; drop it, or let protocol = \"http/1.1\" stand in the upstream",
            ),
            (
                &format!("{good}\nconnections = 0"),
                "\"u\"",
                "upstreams.u.connections: 0 is too few; use a number from 1 to 1000000",
            ),
            (
                &format!("{good}\nhealth = {{ every = \"2s\" }}"),
                "\"u\"",
                "upstreams.u.health.path: is missing; say what to ask for, as in path = \"/healthz\"",
            ),
            (
                &format!("{good}\nhealth = {{ path = \"/a b\" }}"),
                "\"u\"",
                "upstreams.u.health.path: \"/a b\" is not a path; write it as in \"/healthz\", at most 1024 characters",
            ),
            (
                &format!("{good}\nqueue = {{ wait = 5 }}"),
                "\"u\"",
                "upstreams.u.queue.wait: is a whole number without a unit; write the unit into the value, as in \"1s\"",
            ),
            (
                &format!("{good}\nmark_down = {{ hold = \"2s\", at_most = \"1s\" }}"),
                "\"u\"",
                "upstreams.u.mark_down.at_most: is shorter than hold; each trial that fails doubles the hold up to at_most; make it longer",
            ),
        ] {
            assert_eq!(read(upstreams, route).unwrap_err(), line, "{upstreams}\n{route}");
        }
    }
}
