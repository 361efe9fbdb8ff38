//! From the file to a `Config` that holds only valid values, or to every error at once; it opens no file and compiles no
//! policy.

pub use super::{ConfigError, ConfigErrors};
pub use upstream::endpoint_at;

mod upstream;

use self::rules::{Level, Rules, rules};
use super::raw::{
    ACCESS_LOG, ADMIN, BOUNDS, DEADLINES, GLOBAL, GROUP, LISTEN, MATCH, ROUTE, Report, STATE,
    Section, TLS, TRACE, Text, UPSTREAM, WIRE, nearest_hint, parse, printable, quoted,
};
use super::sight::RequestId;
use super::upstream::{Endpoint, Protocol, Upstream};
use super::value::{
    Flaw, collide, flaw, parse_address, parse_body_bytes, parse_byte_rate, parse_connection_bytes,
    parse_deadline, parse_head_bytes, parse_host, parse_inspect_bytes, parse_method, parse_name,
    parse_pattern, parse_token,
};
use super::{
    Admin, Bounds, ClientCertificates, Config, Deadlines, Forwarded, Group, KeySource, Listen,
    Match, Missing, Route, Settle, State, Tls, TokenSource, Weight, Wire,
};
use breaker_core::{
    Class, DetectorKind, DetectorSpec, GroupSpec, OnFind, PolicySpec, RouteSpec, ShareOf, Span,
};
use ipnet::IpNet;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use upstream::Declared;

mod detect;
mod keys;
mod rules;
mod sight;

/// Reads a configuration. `source` is the name of the file for syntax errors; `env` looks up environment variables.
///
/// # Errors
///
/// All that is wrong, each with its path. The core still has to compile `policy`; its errors convert into ours.
pub fn load(
    text: &str,
    source: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigErrors> {
    let mut report = Report::new(env);
    let root = parse(text, source, &mut report)?;
    let config = whole(root, &mut report);
    let mut errors = report.errors;
    if errors.is_empty() {
        return Ok(config);
    }
    if let Some(more) = errors.len().checked_sub(MAX_ERRORS).filter(|more| *more > 0) {
        errors.truncate(MAX_ERRORS);
        let problem = format!("has {more} errors more");
        errors.push(ConfigError { path: printable(source), problem, hint: String::new() });
    }
    Err(ConfigErrors(errors))
}

/// The configuration that is built in: the defaults, with a route to try things on.
#[must_use]
pub fn default_text() -> &'static str {
    include_str!("../../default.toml")
}

/// The group of routes that name none.
const DEFAULT_GROUP: &str = "default";
/// Errors told at once; nobody reads more.
const MAX_ERRORS: usize = 1000;
/// Groups, and routes; the core has cells for as many of both together.
const MAX_SCOPES: usize = 4096;
/// Key dimensions of one call.
const MAX_DIMENSIONS: usize = 4;
const MAX_METHODS: usize = 16;
/// Bytes a second that a client must move, unless told otherwise: what others ask for as well.
const LEAST_RATE: Option<NonZeroU32> = NonZeroU32::new(240);

/// Walks the sections in order. Where something is wrong it is noted and a default stands in: the result is only used if
/// nothing was noted.
fn whole(mut root: Section, report: &mut Report<'_>) -> Config {
    if let Some(text) = root.text("unrouted", report) {
        word(&text, &[("deny", ())], report);
    }
    let listen_at = root.section("listen", LISTEN, report);
    let state_at = root.section("state", STATE, report);
    let admin_at = root.section("admin", ADMIN, report);
    let (admin, expose) = admin(admin_at, report);
    let listen = listen(listen_at, expose, report);
    let state = state(state_at, report);
    let bounds = bounds(root.section("bounds", BOUNDS, report), report);
    let deadlines = deadlines(root.section("deadlines", DEADLINES, report), report);
    let before = report.errors.len();
    let (wire, trusted) = wire(root.section("wire", WIRE, report), report);
    if listen.proxy_protocol && trusted.is_empty() && report.errors.len() == before {
        report.wrong(
            "listen.proxy_protocol",
            "nobody's word is taken, so every connection would be refused",
            "name the networks of the proxies in front in wire.trusted",
        );
    }
    let access_log = sight::access_log(root.section("access_log", ACCESS_LOG, report), report);
    let spans = sight::spans(root.section("trace", TRACE, report), report);

    let global = match root.section("global", GLOBAL, report) {
        Some(mut section) => rules(&mut section, Level::Global, report),
        None => Rules::default(),
    };
    let groups = groups(root.sections("groups", GROUP, MAX_SCOPES, report), report);
    let upstreams = root.sections("upstreams", UPSTREAM, MAX_SCOPES, report);
    let mut upstreams = Declared::read(upstreams, &listen, report);
    let before = report.errors.len();
    let routes = root.sections("routes", ROUTE, MAX_SCOPES, report);
    let routes = self::routes(routes, &mut upstreams, &listen, report);
    upstreams.unused(report);
    if routes.is_empty() && report.errors.len() == before {
        report.wrong("routes", "there is none", "declare at least one [[routes]]");
    }
    let groups = with_default_group(groups, &routes, report);
    lineages(&global, &groups, &routes, report);
    let asked = listen.tls.as_ref().is_some_and(|tls| tls.clients.is_some());
    let scopes = groups.iter().map(|group| &group.rules);
    let scopes = scopes.chain(routes.iter().map(|route| &route.rules));
    keys::certificates(asked, std::iter::once(&global).chain(scopes), report);
    keys::among_routes(&global, &groups, &routes, &trusted, report);
    slow_calls(&global, &groups, &routes, report);
    same_matches(&routes, report);

    let mut config = Config {
        listen,
        state,
        admin,
        bounds,
        deadlines,
        wire,
        trusted,
        access_log,
        spans,
        policy: PolicySpec { global: global.spec, ..PolicySpec::default() },
        global_keys: global.sources,
        groups: Vec::with_capacity(groups.len()),
        routes: Vec::with_capacity(routes.len()),
    };
    for group in groups {
        config.policy.groups.push(GroupSpec { name: group.name, scope: group.rules.spec });
        config.groups.push(Group { keys: group.rules.sources });
    }
    for route in routes {
        config.policy.routes.push(RouteSpec {
            name: route.name,
            group: route.group,
            class: route.class,
            scope: route.rules.spec,
        });
        config.routes.push(Route {
            matches: route.matches,
            upstream: route.upstream,
            slow: route.slow,
            websocket: route.websocket,
            keys: route.rules.sources,
            weight: route.weight,
            settle: route.settle,
        });
    }
    config
}

// The sections that are not rules.

fn listen(section: Option<Section>, expose: bool, report: &mut Report<'_>) -> Listen {
    let mut listen = Listen {
        data: SocketAddr::from(([127, 0, 0, 1], 8080)),
        admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
        workers: None,
        tls: None,
        proxy_protocol: false,
    };
    let Some(mut section) = section else {
        return listen;
    };
    let mut valid = true;
    for (key, address) in [("data", &mut listen.data), ("admin", &mut listen.admin)] {
        if section.has(key) {
            let text = section.text(key, report);
            match text.and_then(|text| judged(&text, parse_address, report)) {
                Some(found) => *address = found,
                None => valid = false,
            }
        }
    }
    listen.workers =
        section.whole("workers", 1, 1024, report).and_then(|workers| u16::try_from(workers).ok());
    listen.proxy_protocol = section.flag("proxy_protocol", report).unwrap_or(false);
    listen.tls = section.section("tls", TLS, report).and_then(|section| tls(section, report));
    let path = section.path_of("admin");
    if valid && collide(listen.data, listen.admin) {
        report.wrong(
            &path,
            format!("{} is also where the data plane listens ({})", listen.admin, listen.data),
            "give each plane a port of its own",
        );
    }
    if !listen.admin.ip().to_canonical().is_loopback() && !expose {
        report.wrong(
            path,
            format!("{} can be reached from elsewhere", listen.admin),
            "listen on 127.0.0.1, or say admin.expose = true if that is meant",
        );
    }
    listen
}

fn tls(mut section: Section, report: &mut Report<'_>) -> Option<Tls> {
    let mut file = |key: &str, needed: bool, report: &mut Report<'_>| {
        if needed && !section.has(key) {
            report.wrong(section.path_of(key), "is missing", "name a file of PEM");
        }
        section.text(key, report).and_then(|text| file_path(&text, report))
    };
    let (certificate, key) = (file("certificate", true, report), file("key", true, report));
    let authorities = file("client_ca", false, report);
    let path = section.path_of("client_certificate");
    let asked = section.text("client_certificate", report);
    if asked.is_some() && authorities.is_none() {
        report.wrong(
            &path,
            "asks for certificates that nobody signs",
            "name their authorities in client_ca",
        );
    }
    let required = match asked.as_ref().map(|text| text.value.as_str()) {
        None | Some("required") => true,
        Some("optional") => false,
        Some(_) => {
            let shown = asked.map(|text| text.shown).unwrap_or_default();
            let hint = "use \"required\" or \"optional\"";
            report.wrong(path, format!("{shown} is not a way to ask"), hint);
            true
        }
    };
    let clients = authorities.map(|authorities| ClientCertificates { authorities, required });
    Some(Tls { certificate: certificate?, key: key?, clients })
}

fn state(section: Option<Section>, report: &mut Report<'_>) -> State {
    let mut state = State {
        dir: PathBuf::from("breaker-state"),
        required: false,
        save_every: Span::from_secs(30),
    };
    if let Some(mut section) = section {
        if let Some(dir) = section.text("dir", report).and_then(|text| file_path(&text, report)) {
            state.dir = dir;
        }
        state.required = section.flag("required", report).unwrap_or(false);
        let every = section
            .quantity("save_every", "30s", report)
            .and_then(|text| judged(&text, parse_deadline, report));
        state.save_every = every.unwrap_or(state.save_every);
    }
    state
}

/// The admin plane, and whether it may listen beyond loopback.
fn admin(section: Option<Section>, report: &mut Report<'_>) -> (Admin, bool) {
    let mut admin = Admin { token: TokenSource::Generated };
    let Some(mut section) = section else {
        return (admin, false);
    };
    if section.has("token") && section.has("token_file") {
        report.wrong(section.path_of("token_file"), "there is also a token", "keep one of the two");
    }
    if let Some(path) = section.text("token_file", report).and_then(|text| file_path(&text, report))
    {
        admin.token = TokenSource::File(path);
    }
    if let Some(text) = section.text("token", report) {
        match parse_token(&text.value) {
            Ok(token) => admin.token = TokenSource::Value(token),
            // A token is not repeated, not even a wrong one.
            Err((problem, hint)) => report.wrong(text.path, problem, hint),
        }
    }
    (admin, section.flag("expose", report).unwrap_or(false))
}

fn bounds(section: Option<Section>, report: &mut Report<'_>) -> Bounds {
    let mut bounds = Bounds {
        connections: 10_000,
        head_bytes: 32 * 1024,
        fields: 100,
        inspect_bytes: 64 * 1024,
        inspecting: 1024,
        body_bytes: None,
        streams: 100,
        connection_bytes: 256 * 1024,
        upload_rate: LEAST_RATE,
        download_rate: LEAST_RATE,
        keys: 65_536,
    };
    let Some(mut section) = section else {
        return bounds;
    };
    for (key, bound, most) in [
        ("connections", &mut bounds.connections, 1_000_000),
        ("inspecting", &mut bounds.inspecting, 1_000_000),
        ("streams", &mut bounds.streams, 10_000),
        ("keys", &mut bounds.keys, 16_777_216),
    ] {
        let found = section.whole(key, 1, most, report);
        if let Some(found) = found.and_then(|found| u32::try_from(found).ok()) {
            *bound = found;
        }
    }
    let fields = section.whole("fields", 1, 1000, report);
    if let Some(fields) = fields.and_then(|fields| u16::try_from(fields).ok()) {
        bounds.fields = fields;
    }
    let head = section
        .quantity("head_bytes", "32KiB", report)
        .and_then(|text| judged(&text, parse_head_bytes, report));
    if let Some(head) = head {
        bounds.head_bytes = head;
    }
    let inspect = section
        .quantity("inspect_bytes", "64KiB", report)
        .and_then(|text| judged(&text, parse_inspect_bytes, report));
    if let Some(inspect) = inspect {
        bounds.inspect_bytes = inspect;
    }
    let body = section
        .quantity("body_bytes", "10MiB", report)
        .and_then(|text| judged(&text, parse_body_bytes, report));
    if let Some(body) = body {
        bounds.body_bytes = body;
    }
    let held = section
        .quantity("connection_bytes", "256KiB", report)
        .and_then(|text| judged(&text, parse_connection_bytes, report));
    if let Some(held) = held {
        bounds.connection_bytes = held;
    }
    for (key, rate) in
        [("upload_rate", &mut bounds.upload_rate), ("download_rate", &mut bounds.download_rate)]
    {
        let found = section
            .quantity(key, "240B/s", report)
            .and_then(|text| judged(&text, parse_byte_rate, report));
        if let Some(found) = found {
            *rate = found;
        }
    }
    bounds
}

fn deadlines(section: Option<Section>, report: &mut Report<'_>) -> Deadlines {
    let mut deadlines = Deadlines {
        head: Span::from_secs(10),
        idle: Span::from_secs(60),
        inspect: Span::from_secs(10),
        body_idle: Span::from_secs(30),
        connect: Span::from_secs(2),
        answer: Span::from_secs(30),
        tunnel: Span::from_secs(3600),
        drain: Span::from_secs(10),
    };
    let Some(mut section) = section else {
        return deadlines;
    };
    for (key, deadline) in [
        ("head", &mut deadlines.head),
        ("idle", &mut deadlines.idle),
        ("inspect", &mut deadlines.inspect),
        ("body_idle", &mut deadlines.body_idle),
        ("connect", &mut deadlines.connect),
        ("answer", &mut deadlines.answer),
        ("tunnel", &mut deadlines.tunnel),
        ("drain", &mut deadlines.drain),
    ] {
        let found = section
            .quantity(key, "10s", report)
            .and_then(|text| judged(&text, parse_deadline, report));
        if let Some(found) = found {
            *deadline = found;
        }
    }
    deadlines
}

/// The conventions, and the networks whose word on a client is taken.
fn wire(section: Option<Section>, report: &mut Report<'_>) -> (Wire, Vec<IpNet>) {
    let mut wire = Wire {
        rate_limit_fields: true,
        forwarded: Forwarded::XForwarded,
        request_id: RequestId::Off,
    };
    let mut trusted = Vec::new();
    if let Some(mut section) = section {
        wire.rate_limit_fields = section.flag("rate_limit_fields", report).unwrap_or(true);
        let words = [
            ("x-forwarded", Forwarded::XForwarded),
            ("forwarded", Forwarded::Forwarded),
            ("both", Forwarded::Both),
            ("none", Forwarded::None),
        ];
        if let Some(found) =
            section.text("forwarded", report).and_then(|text| word(&text, &words, report))
        {
            wire.forwarded = found;
        }
        wire.request_id = sight::request_id(&mut section, report);
        trusted = keys::trusted(&mut section, report);
    }
    (wire, trusted)
}

/// Whether one of them trips.
fn trips(detectors: &[DetectorSpec]) -> bool {
    detectors.iter().any(|detector| detector.on_find == OnFind::Trip)
}

/// The name of a group, route or dimension; empty where it is wrong and reported.
fn name(section: &mut Section, report: &mut Report<'_>) -> String {
    if !section.has("name") {
        report.wrong(
            section.path_of("name"),
            "is missing",
            "everything that holds rules has a name",
        );
        return String::new();
    }
    let text = section.text("name", report);
    text.and_then(|text| judged(&text, parse_name, report)).unwrap_or_default()
}

// Groups and routes.

struct GroupAt {
    name: String,
    path: String,
    rules: Rules,
}

struct RouteAt {
    name: String,
    path: String,
    group: String,
    /// Whether the file names the group, validly.
    group_is_named: bool,
    class: Class,
    matches: Match,
    /// Whether `matches` is what the file says, and not a stand-in.
    match_is_valid: bool,
    upstream: Upstream,
    slow: Option<Span>,
    weight: Option<Weight>,
    settle: Option<Settle>,
    websocket: bool,
    rules: Rules,
}

fn groups(sections: Vec<Section>, report: &mut Report<'_>) -> Vec<GroupAt> {
    let mut seen = BTreeSet::new();
    let mut groups = Vec::with_capacity(sections.len());
    for mut section in sections {
        let name = name(&mut section, report);
        if !name.is_empty() && !seen.insert(name.clone()) {
            let problem = format!("{} is taken by another group", quoted(&name));
            report.wrong(section.path_of("name"), problem, "rename one, or put them together");
        }
        let rules = rules(&mut section, Level::Named, report);
        groups.push(GroupAt { name, path: section.path, rules });
    }
    groups
}

fn routes(
    sections: Vec<Section>,
    upstreams: &mut Declared,
    listen: &Listen,
    report: &mut Report<'_>,
) -> Vec<RouteAt> {
    let mut seen = BTreeSet::new();
    let mut routes = Vec::with_capacity(sections.len());
    for mut section in sections {
        let route = route(&mut section, upstreams, listen, report);
        if !route.name.is_empty() && !seen.insert((route.group.clone(), route.name.clone())) {
            let (name, group) = (quoted(&route.name), quoted(&route.group));
            report.wrong(
                section.path_of("name"),
                format!("{name} is taken by another route of group {group}"),
                "rename one of them",
            );
        }
        routes.push(route);
    }
    routes
}

fn route(
    section: &mut Section,
    upstreams: &mut Declared,
    listen: &Listen,
    report: &mut Report<'_>,
) -> RouteAt {
    let name = name(section, report);
    let names_group = section.has("group");
    let group = section.text("group", report).and_then(|text| judged(&text, parse_name, report));
    let has_match = section.has("match");
    let matches = match section.section("match", MATCH, report) {
        Some(mut table) => matches(&mut table, report),
        None => {
            if !has_match {
                let hint = "say which requests it takes, as in match = { path = \"/{*rest}\" }";
                report.wrong(section.path_of("match"), "is missing", hint);
            }
            None
        }
    };
    let classes = [("normal", Class::Normal), ("reducing", Class::Reducing)];
    let place = section.path_of("websocket");
    let websocket = section.flag("websocket", report).unwrap_or(false);
    let upstream = upstreams.of_route(section, listen, report);
    if websocket && upstream.as_ref().is_some_and(|own| own.protocol == Protocol::Http2) {
        let hint = "drop it, or let protocol = \"http/1.1\" stand in the upstream";
        report.wrong(place, "a WebSocket is not carried by h2", hint);
    }
    RouteAt {
        name,
        path: section.path.clone(),
        group_is_named: names_group && group.is_some(),
        group: group.unwrap_or_else(|| DEFAULT_GROUP.to_owned()),
        match_is_valid: matches.is_some(),
        matches: matches.unwrap_or_else(|| Match {
            host: None,
            methods: Vec::new(),
            path: "/".to_owned(),
        }),
        upstream: upstream.unwrap_or_else(|| Upstream::plain(vec![Endpoint::BuiltIn])),
        class: section
            .text("class", report)
            .and_then(|text| word(&text, &classes, report))
            .unwrap_or(Class::Normal),
        websocket,
        slow: section
            .quantity("slow", "2s", report)
            .and_then(|text| judged(&text, parse_deadline, report)),
        weight: keys::weight(section, report),
        settle: keys::settle(section, report),
        rules: rules(section, Level::Named, report),
    }
}

fn matches(table: &mut Section, report: &mut Report<'_>) -> Option<Match> {
    let host = match table.has("host") {
        true => {
            let host = table.text("host", report);
            Some(host.and_then(|text| judged(&text, parse_host, report)))
        }
        false => None,
    };
    let methods = match table.has("method") {
        true => methods(table, report),
        false => Some(Vec::new()),
    };
    if !table.has("path") {
        let hint = "say path = \"/{*rest}\" for every path";
        report.wrong(table.path_of("path"), "is missing", hint);
    }
    let path = table.text("path", report).and_then(|text| judged(&text, parse_pattern, report));
    // A host that is there but wrong makes the whole match invalid, not one for any host.
    let host = match host {
        Some(host) => Some(host?),
        None => None,
    };
    Some(Match { host, methods: methods?, path: path? })
}

fn methods(table: &mut Section, report: &mut Report<'_>) -> Option<Vec<http::Method>> {
    let path = table.path_of("method");
    let before = report.errors.len();
    let texts = table.texts("method", report)?;
    if texts.is_empty() {
        report.wrong(&path, "is an empty list", "drop it to take every method");
    }
    if texts.len() > MAX_METHODS {
        let problem = format!("{} methods are too many", texts.len());
        report.wrong(&path, problem, "drop it to take every method");
    }
    let mut methods = Vec::with_capacity(texts.len());
    for text in texts {
        let Some(method) = judged(&text, parse_method, report) else {
            continue;
        };
        if methods.contains(&method) {
            report.wrong(text.path, format!("{method} stands here twice"), "drop one");
        } else {
            methods.push(method);
        }
    }
    (report.errors.len() == before).then_some(methods)
}

/// Adds the group that routes without one are in, and looks for groups and routes that miss each other.
fn with_default_group(
    mut groups: Vec<GroupAt>,
    routes: &[RouteAt],
    report: &mut Report<'_>,
) -> Vec<GroupAt> {
    let declared: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    for route in routes {
        if route.group_is_named
            && route.group != DEFAULT_GROUP
            && !declared.contains(&route.group.as_str())
        {
            let hint = match declared.iter().any(|name| !name.is_empty()) {
                true => nearest_hint(&route.group, &declared),
                false => "declare it in [[groups]]".to_owned(),
            };
            report.wrong(
                format!("{}.group", route.path),
                format!("{} is not declared", quoted(&route.group)),
                hint,
            );
        }
    }
    for group in &groups {
        if !group.name.is_empty() && !routes.iter().any(|route| route.group == group.name) {
            let problem = "no route is in it, so its rules hold for nothing";
            report.wrong(&group.path, problem, "is its name, or a route's group, a typo?");
        }
    }
    let is_needed = routes.iter().any(|route| route.group == DEFAULT_GROUP);
    if is_needed && !declared.contains(&DEFAULT_GROUP) {
        groups.push(GroupAt {
            name: DEFAULT_GROUP.to_owned(),
            path: "groups.default".to_owned(),
            rules: Rules::default(),
        });
    }
    groups
}

/// What holds for the dimensions that one call meets: their names differ, they are few, and not all of them can be skipped.
fn lineages(global: &Rules, groups: &[GroupAt], routes: &[RouteAt], report: &mut Report<'_>) {
    // Each place is reported once, however many lineages it is in.
    let mut reported = BTreeSet::new();
    for group in groups {
        no_name_twice(&group.rules, &[global], &mut reported, report);
    }
    for route in routes {
        let group = groups.iter().find(|group| group.name == route.group);
        let wider: Vec<&Rules> =
            [Some(global), group.map(|group| &group.rules)].into_iter().flatten().collect();
        no_name_twice(&route.rules, &wider, &mut reported, report);
        let all: Vec<(&str, &KeySource, &str)> =
            wider.iter().copied().chain([&route.rules]).flat_map(Rules::dimensions).collect();
        if all.len() > MAX_DIMENSIONS {
            report.wrong(
                format!("{}.keys", route.path),
                format!("a call meets {} dimensions here, with those of wider scopes", all.len()),
                format!("a call carries {MAX_DIMENSIONS} at most; drop some"),
            );
        }
        let stands =
            |source: &KeySource| source.missing != Missing::Skip || source.from.is_always_there();
        if all.iter().any(|(_, source, _)| stands(source)) {
            continue;
        }
        for (_, _, path) in all {
            if reported.insert(format!("{path}.missing")) {
                report.wrong(
                    format!("{path}.missing"),
                    format!("with \"skip\", nothing counts a call of {} that lacks the key", route.path),
                    "add a dimension that does not skip, such as from = \"peer\", or refuse such calls",
                );
            }
        }
    }
}

/// A detector that looks for slow calls where no route says which calls are slow finds nothing, ever.
fn slow_calls(global: &Rules, groups: &[GroupAt], routes: &[RouteAt], report: &mut Report<'_>) {
    let mut check = |path: &str, rules: &Rules, within: &dyn Fn(&RouteAt) -> bool| {
        if routes.iter().any(|route| within(route) && route.slow.is_some()) {
            return;
        }
        let keys = rules.spec.keys.iter().zip(rules.dimensions());
        let keys = keys.map(|(key, (_, _, path))| (path.to_owned(), &key.detectors));
        for (path, detectors) in keys.chain([(path.to_owned(), &rules.spec.detectors)]) {
            for (index, detector) in detectors.iter().enumerate() {
                let looks = match &detector.kind {
                    DetectorKind::Ratio(ratio) => ratio.of != ShareOf::Faults,
                    DetectorKind::Streak(streak) => streak.or_slow,
                    _ => false,
                };
                if looks {
                    let name = detector.name.as_ref().map(|name| format!(".{name}"));
                    let at = name.unwrap_or_else(|| format!("[{index}]"));
                    report.wrong(
                        format!("{path}.detect{at}"),
                        "looks for slow calls, and no route here says which calls are slow",
                        "give the route slow = \"2s\", or look for faults alone",
                    );
                }
            }
        }
    };
    check("global", global, &|_| true);
    for group in groups {
        check(&group.path, &group.rules, &|route| route.group == group.name);
    }
    for route in routes {
        check(&route.path, &route.rules, &|other| std::ptr::eq(other, route));
    }
}

fn no_name_twice(
    narrow: &Rules,
    wider: &[&Rules],
    reported: &mut BTreeSet<String>,
    report: &mut Report<'_>,
) {
    for (name, _, path) in narrow.dimensions() {
        let taken = wider
            .iter()
            .flat_map(|rules| rules.dimensions())
            .find(|(other, _, _)| *other == name && !name.is_empty());
        if let Some((_, _, other)) = taken
            && reported.insert(format!("{path}.name"))
        {
            let problem = format!("{} is the dimension {other} already", quoted(name));
            report.wrong(format!("{path}.name"), problem, "a call meets both; rename one");
        }
    }
}

/// Two routes that take the same requests, so that only one of them would ever be found.
fn same_matches(routes: &[RouteAt], report: &mut Report<'_>) {
    let mut seen: HashMap<(Option<&str>, Option<&http::Method>, String), &str> = HashMap::new();
    for route in routes.iter().filter(|route| route.match_is_valid) {
        let shape = route.matches.shape();
        let host = route.matches.host.as_deref();
        let methods: Vec<Option<&http::Method>> = match route.matches.methods.as_slice() {
            [] => vec![None],
            named => named.iter().map(Some).collect(),
        };
        let mut clash = None;
        for method in methods {
            match seen.get(&(host, method, shape.clone())) {
                Some(first) => clash = clash.or(Some((*first, method))),
                None => {
                    seen.insert((host, method, shape.clone()), &route.path);
                }
            }
        }
        if let Some((first, method)) = clash {
            let what = method.map_or("the same requests".to_owned(), |method| {
                format!("the same {method} requests")
            });
            report.wrong(
                format!("{}.match", route.path),
                format!("takes {what} as {first}"),
                "let them differ in host, method or path, or make them one",
            );
        }
    }
}

// From a text with its path to a value, or to an error at that path.

/// The value of `text`, or nothing and an error at its path. The flaw's problem follows the quoted text.
fn judged<T>(
    text: &Text,
    parse: impl FnOnce(&str) -> Result<T, Flaw>,
    report: &mut Report<'_>,
) -> Option<T> {
    match parse(&text.value) {
        Ok(value) => Some(value),
        Err((problem, hint)) => {
            let problem = format!("{} {problem}", text.shown);
            report.wrong(&text.path, problem, hint);
            None
        }
    }
}

/// One of a few words.
fn word<T: Clone>(text: &Text, words: &[(&str, T)], report: &mut Report<'_>) -> Option<T> {
    let found = words.iter().find(|(word, _)| *word == text.value);
    if found.is_none() {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let hint = match known.as_slice() {
            [only] => format!("{only:?} is the only word here"),
            _ => nearest_hint(&text.value, &known),
        };
        report.wrong(&text.path, format!("{} is not known here", text.shown), hint);
    }
    found.map(|(_, value)| value.clone())
}

fn file_path(text: &Text, report: &mut Report<'_>) -> Option<PathBuf> {
    let parse = |path: &str| match path {
        "" => flaw("names no file", "drop the key, or name one"),
        path if path.contains('\0') => flaw("holds a zero byte", "name a file"),
        path => Ok(PathBuf::from(path)),
    };
    judged(text, parse, report)
}

#[cfg(test)]
mod tests;
