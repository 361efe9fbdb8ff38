//! Every error of a configuration with the line it must print, and what is right; it asks nothing of the core.

use super::super::raw::SHAPES;
use super::super::sight::RequestId;
use super::{default_text, load};
use crate::config::upstream::{Endpoint, Upstream};
use crate::config::{
    Bounds, Config, Deadlines, Forwarded, KeyFrom, Missing, Segment, Settle, SettleFrom, State,
    TokenSource, Unreadable, Weight, Wire,
};
use crate::inspect::json::Pointer;
use breaker_core::{
    Class, Counting, DetectorKind, Errors, Latency, LimitKind, Mode, Novel, OnBreach, OnFind,
    Ratio, Recover, Repeat, ShareOf, Silence, Span, Spread, Streak, Surge, Unit,
};
use proptest::prelude::{ProptestConfig, any, proptest};
use proptest::sample::Index;
use std::num::NonZeroU32;
use std::path::PathBuf;

const ROUTE: &str =
    "[[routes]]\nname = \"a\"\nmatch = { path = \"/{*rest}\" }\nupstream = \"builtin:origin\"\n";

fn env(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("correct-horse-battery".to_owned()),
        "SHORT" => Some("hunter2".to_owned()),
        "PORT" => Some("8000".to_owned()),
        "URL" => Some("http://me:hunter2@host".to_owned()),
        _ => None,
    }
}

fn good(text: &str) -> Config {
    match load(text, "test.toml", &env) {
        Ok(config) => config,
        Err(errors) => panic!("{text}\n{errors}"),
    }
}

/// The lines of all errors.
fn bad(text: &str) -> Vec<String> {
    match load(text, "test.toml", &env) {
        Ok(_) => panic!("no error in {text}"),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

/// Asserts that `text`, with a good route after it, has this one error.
fn one(text: &str, line: &str) {
    assert_eq!(bad(&format!("{text}\n{ROUTE}")), [line], "{text}");
}

/// As `one`, for lines within the route.
fn one_in_route(text: &str, line: &str) {
    assert_eq!(bad(&format!("{ROUTE}{text}\n")), [line], "{text}");
}

/// As `one`, for a limit of the route.
fn one_in_limit(text: &str, line: &str) {
    one_in_route(&format!("limit = [{{ {text} }}]"), line);
}

/// As `one`, for a whole route without name; the others of its keys are given.
fn one_route(key: &str, value: &str, line: &str) {
    let keys =
        [("name", "\"a\""), ("match", "{ path = \"/\" }"), ("upstream", "\"builtin:origin\"")];
    let mut text = "[[routes]]\n".to_owned();
    for (known, given) in keys {
        let given = if known == key { value } else { given };
        if !given.is_empty() {
            text.push_str(&format!("{known} = {given}\n"));
        }
    }
    if !keys.iter().any(|(known, _)| *known == key) {
        text.push_str(&format!("{key} = {value}\n"));
    }
    assert_eq!(bad(&text), [line], "{text}");
}

// What is right.

/// Goal: a file with one route has the documented defaults everywhere else.
#[test]
fn one_route_is_enough() {
    let config = good(ROUTE);
    assert_eq!(config.listen.data.to_string(), "127.0.0.1:8080");
    assert_eq!(config.listen.admin.to_string(), "127.0.0.1:9090");
    assert_eq!(config.listen.workers, None);
    assert_eq!(
        config.state,
        State {
            dir: PathBuf::from("breaker-state"),
            required: false,
            save_every: Span::from_secs(30)
        }
    );
    assert_eq!(config.admin.token, TokenSource::Generated);
    assert_eq!(
        config.bounds,
        Bounds {
            connections: 10_000,
            head_bytes: 32_768,
            fields: 100,
            body_bytes: None,
            inspect_bytes: 64 * 1024,
            inspecting: 1024,
            streams: 100,
            connection_bytes: 256 * 1024,
            upload_rate: NonZeroU32::new(240),
            download_rate: NonZeroU32::new(240),
            keys: 65_536,
        }
    );
    assert_eq!(
        config.deadlines,
        Deadlines {
            head: Span::from_secs(10),
            idle: Span::from_secs(60),
            inspect: Span::from_secs(10),
            body_idle: Span::from_secs(30),
            connect: Span::from_secs(2),
            answer: Span::from_secs(30),
            tunnel: Span::from_secs(3600),
            drain: Span::from_secs(10),
        }
    );
    let wire = Wire {
        rate_limit_fields: true,
        forwarded: Forwarded::XForwarded,
        request_id: RequestId::Off,
    };
    assert_eq!(config.wire, wire);
    assert_eq!(config.policy.global, breaker_core::ScopeSpec::default());
    assert_eq!(config.policy.groups.len(), 1);
    assert_eq!(config.policy.groups[0].name, "default");
    assert_eq!(config.groups.len(), 1);
    let route = &config.policy.routes[0];
    assert_eq!((route.name.as_str(), route.group.as_str()), ("a", "default"));
    assert_eq!(route.class, Class::Normal);
    assert_eq!(route.scope.mode, Mode::Enforce);
    assert_eq!(route.scope.recover, Recover::Manual { probes: 5 });
    assert_eq!(config.routes[0].upstream, Upstream::plain(vec![Endpoint::BuiltIn]));
}

/// Goal: the file that is built in is valid and says what the defaults are, so that neither can drift.
#[test]
fn the_built_in_file_states_the_defaults() {
    let built_in = good(default_text());
    let bare = good(ROUTE);
    assert_eq!(built_in.listen, bare.listen);
    assert_eq!(built_in.state, bare.state);
    assert_eq!(built_in.admin, bare.admin);
    assert_eq!(built_in.bounds, bare.bounds);
    assert_eq!(built_in.deadlines, bare.deadlines);
    assert_eq!(built_in.wire, bare.wire);
    assert_eq!(built_in.policy.global, bare.policy.global);
    assert_eq!(built_in.global_keys, bare.global_keys);
}

/// Goal: what the built-in file promises a newcomer: served without a header, slowed when hammering, and only a client
/// that names itself can trip, and only itself.
#[test]
fn the_built_in_route_serves_a_newcomer() {
    let config = good(default_text());
    let spec = &config.policy.routes[0];
    assert_eq!((spec.group.as_str(), spec.name.as_str()), ("demo", "api"));
    let trips = |limits: &[breaker_core::LimitSpec]| {
        limits.iter().any(|limit| limit.on_breach == OnBreach::Trip)
    };
    assert!(!trips(&spec.scope.limits));
    let route = &config.routes[0];
    let mut counted_without_header = 0;
    for (key, source) in spec.scope.keys.iter().zip(&route.keys) {
        assert_ne!(source.missing == Missing::Refuse, source.from != KeyFrom::Peer);
        if source.missing != Missing::Skip {
            counted_without_header += 1;
            assert!(!trips(&key.limits), "a shared address must not trip");
        }
    }
    assert_eq!(counted_without_header, 1);
    let client = &spec.scope.keys[1];
    assert_eq!(client.name, "client");
    assert_eq!(
        client.limits[0].kind,
        LimitKind::Rate { count: 5, per: Span::from_secs(1), burst: 10 }
    );
    assert_eq!(client.limits[1].kind, LimitKind::Window { count: 40, length: Span::from_secs(10) });
    assert_eq!(client.limits[1].of, Counting::Offered);
    assert!(trips(&client.limits));
}

/// Goal: every key can be given, and arrives.
#[test]
fn every_key_arrives() {
    let config = good(EVERYTHING);
    assert_eq!(config.listen.data.to_string(), "[::1]:8000");
    assert_eq!(config.listen.admin.to_string(), "0.0.0.0:9000");
    assert_eq!(config.listen.workers, Some(2));
    assert!(config.listen.proxy_protocol);
    assert!(config.state.required);
    assert_eq!(config.state.dir, PathBuf::from("/var/lib/breaker"));
    assert_eq!(config.state.save_every, Span::from_secs(5));
    assert_eq!(config.admin.token, TokenSource::Value("correct-horse-battery".to_owned()));
    assert_eq!(config.bounds.connections, 7);
    assert_eq!(config.bounds.head_bytes, 64_000);
    assert_eq!(config.bounds.body_bytes, Some(10 << 20));
    assert_eq!(config.bounds.connection_bytes, 1 << 20);
    assert_eq!(config.bounds.upload_rate, NonZeroU32::new(1024));
    assert_eq!(config.bounds.download_rate, None);
    assert_eq!(config.deadlines.head, Span::from_millis(250));
    assert_eq!(config.deadlines.idle, Span::from_secs(90));
    assert_eq!(config.deadlines.drain, Span::from_secs(3600));
    assert_eq!(config.wire.forwarded, Forwarded::Both);
    assert!(!config.wire.rate_limit_fields);

    let global = &config.policy.global;
    assert_eq!(
        global.limits[0].kind,
        LimitKind::Rate { count: 30, per: Span::from_secs(60), burst: 1 }
    );
    assert_eq!(global.mode, Mode::Shadow);
    assert_eq!(global.keys[0].name, "peer");
    assert_eq!(config.global_keys[0].from, KeyFrom::Peer);

    let group = &config.policy.groups[0];
    assert_eq!(group.scope.keys[0].name, "account");
    assert_eq!(config.groups[0].keys[0].missing, Missing::Share);
    assert_eq!(
        group.scope.recover,
        Recover::Probe { probes: 3, after: Span::from_secs(5), at_most: Span::from_secs(60) }
    );

    let route = &config.policy.routes[0];
    assert_eq!(route.class, Class::Reducing);
    assert_eq!(
        route.scope.limits[0].kind,
        LimitKind::Rate { count: 1000, per: Span::from_secs(10), burst: 100 }
    );
    assert_eq!(
        route.scope.recover,
        Recover::Probe { probes: 5, after: Span::from_secs(600), at_most: Span::from_secs(600) }
    );
    let matches = &config.routes[0].matches;
    assert_eq!(matches.host.as_deref(), Some("example.com"));
    assert_eq!(matches.methods, [http::Method::DELETE, http::Method::POST]);
    assert_eq!(matches.path, "/orders/{id}");
    assert_eq!(
        config.routes[0].upstream,
        Upstream::plain(vec![Endpoint::Http { host: "10.0.0.7".to_owned(), port: 8000 }])
    );
    let KeyFrom::Header(header) = &config.routes[0].keys[0].from else { panic!("a header") };
    assert_eq!(header, "x-client");
    assert_eq!(config.routes[0].keys[0].missing, Missing::Skip);
    assert_eq!(config.routes[0].slow, Some(Span::from_millis(750)));
    assert_eq!(route.scope.detectors[0].name.as_deref(), Some("late"));
    assert!(global.spent_after_crash && !route.scope.keys[0].spent_after_crash);
    assert_eq!(route.scope.keys[0].overrides[0].label, b"acme");
}

const EVERYTHING: &str = r#"
unrouted = "deny"
[listen]
proxy_protocol = true
data = "[::1]:8000"
admin = "0.0.0.0:9000"
workers = 2
[state]
dir = "/var/lib/breaker"
required = true
save_every = "5s"
[admin]
token = "${TOKEN}"
expose = true
[bounds]
connections = 7
head_bytes = "64KB"
fields = 50
body_bytes = "10MiB"
streams = 10
connection_bytes = "1MiB"
upload_rate = "1KiB/s"
download_rate = "any"
keys = 1000
[deadlines]
head = "250ms"
idle = "90s"
body_idle = "1m"
connect = "1s"
answer = "1d"
drain = "1h"
[wire]
rate_limit_fields = false
forwarded = "both"
trusted = "10.0.0.0/8"
[global]
limit = [{ rate = "30/m" }]
detect = [{ spread = 3, over = "1m", on_find = "warn" }]
recover = "manual"
mode = "shadow"
after_crash = "spent"
[[global.keys]]
name = "peer"
from = "peer"
[[groups]]
name = "pay"
limit = [{ window = "100/1s" }, { window = "1000/m", of = "offered", on_breach = "trip" }]
recover = { probes = 3, after = "5s", at_most = "1m" }
mode = "enforce"
[[groups.keys]]
name = "account"
from = { header = "X-Account" }
missing = "share"
limit = [{ rate = "5/s", burst = 10, of = "admitted", on_breach = "refuse" }]
[[routes]]
name = "cancel"
group = "pay"
match = { host = "Example.com", method = ["DELETE", "POST"], path = "/orders/{id}" }
upstream = "http://10.0.0.7:${PORT}"
class = "reducing"
slow = "750ms"
limit = [{ rate = "1000/10s" }]
detect = [{ name = "late", ratio = "slow", above = 0.2 }]
recover = { after = "10m" }
mode = "shadow"
[[routes.keys]]
name = "client"
from = { header = "X-Client" }
missing = "skip"
limit = [{ window = "40/10s", on_breach = "trip" }]
newcomers = { rate = "100/s", burst = 500 }
detect = [{ repeat = "25/1m", share = 0.1 }]
recover = { after = "1s" }
mode = "enforce"
after_crash = "saved"
[[routes.keys.overrides]]
key = "acme"
limit = [{ window = "80/10s" }]
[[routes]]
name = "rest"
group = "pay"
match = { method = "GET", path = "/{*rest}" }
upstream = "http://[::1]"
"#;

/// Goal: values that look odd and are right stay right.
#[test]
fn odd_values_that_are_right() {
    for text in [
        // Port 0 is chosen by the system, so both may have it.
        "[listen]\ndata = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"",
        "[listen]\ndata = \"127.0.0.1:1\"\nadmin = \"127.0.0.2:1\"",
        "[listen]\nadmin = \"[::1]:1\"",
        "[listen]\nadmin = \"[::ffff:127.0.0.1]:1\"",
        "[admin]\ntoken_file = \"/run/token\"",
        "[bounds]\nbody_bytes = \"unlimited\"",
        "[global]\nlimit = [{ rate = \"1/d\", burst = 1 }]",
    ] {
        good(&format!("{text}\n{ROUTE}"));
    }
    for text in [
        // One narrower, one wider; a trip beyond a refusal, of what is offered.
        "limit = [{ window = \"10/1s\" }, { window = \"100/1m\" }]",
        "limit = [{ rate = \"10/s\", burst = 1 }, { rate = \"5/s\", burst = 100 }]",
        "limit = [{ window = \"10/1s\" }, { window = \"99/1s\", of = \"offered\", on_breach = \"trip\" }]",
        // One method each, and both hosts.
        "[[routes]]\nname = \"b\"\nmatch = { method = \"GET\", path = \"/{*other}\" }\nupstream = \"http://h\"",
        "[[routes]]\nname = \"b\"\nmatch = { host = \"[::1]\", path = \"/{*rest}\" }\nupstream = \"http://db_1:99\"",
        // The same name in another group is another scope.
        "[[groups]]\nname = \"g\"\n[[routes]]\nname = \"a\"\ngroup = \"g\"\nmatch = { path = \"/x\" }\nupstream = \"http://h\"",
        // A peer never lacks its key, so nothing slips by.
        "[[routes.keys]]\nname = \"k\"\nfrom = \"peer\"\nmissing = \"skip\"",
        "[[groups]]\nname = \"default\"",
    ] {
        good(&format!("{ROUTE}{text}\n"));
    }
}

// What is wrong. Each error has its path, and nothing else is reported with it.

/// Goal: six different errors of one file are all told in one run.
#[test]
fn all_errors_are_told_at_once() {
    let text = r#"
[listen]
data = "localhost:8080"
[admin]
token = "${UNSET}"
[deadlines]
answr = "30s"
[bounds]
head_bytes = 32768
[[routes]]
name = "orders"
match = { path = "/orders" }
upstream = "http://10.0.0.7:8000"
limit = [{ rate = "10/s" }, { window = "0/1s" }]
[[routes]]
name = "orders"
match = { path = "/more" }
upstream = "http://10.0.0.7:8000"
"#;
    assert_eq!(
        bad(text),
        [
            "admin.token: the environment variable UNSET is not set; set it",
            "listen.data: \"localhost:8080\" is not an address; write numbers and a port, as in 127.0.0.1:8080 or [::1]:8080",
            "bounds.head_bytes: is a whole number without a unit; write the unit into the value, as in \"32KiB\"",
            "deadlines.answr: is not a key here; did you mean \"answer\"?",
            "routes[0].limit[1].window: \"0/1s\" allows nothing; use at least 1/1s, or kill the route instead",
            "routes[1].name: \"orders\" is taken by another route of group \"default\"; rename one of them",
        ]
    );
}

/// Goal: an error is one line, and where a name is valid its path carries it.
#[test]
fn an_error_reads_as_promised() {
    let text = "[[routes]]\nname = \"orders\"\nmatch = { path = \"/\" }\nupstream = \"http://h\"\nlimit = [{ rate = \"1/s\" }, { window = \"0/1s\" }]";
    assert_eq!(
        bad(text),
        [
            "routes.orders.limit[1].window: \"0/1s\" allows nothing; use at least 1/1s, or kill the route instead"
        ]
    );
    let odd = bad(&format!("\"a\\nb\" = 1\n{ROUTE}"));
    assert_eq!(odd.len(), 1);
    assert!(odd[0].starts_with("a\\nb: is not a key here; known here: unrouted, "), "{odd:?}");
}

/// Goal: unknown keys are found at every depth, with the nearest known one.
#[test]
fn unknown_keys_are_found_everywhere() {
    one("unroutd = \"deny\"", "unroutd: is not a key here; did you mean \"unrouted\"?");
    one("[listn]\ndata = 1", "listn: is not a key here; did you mean \"listen\"?");
    one("[listen]\nworker = 1", "listen.worker: is not a key here; did you mean \"workers\"?");
    one(
        "[state]\nfolder = \"x\"",
        "state.folder: is not a key here; known here: dir, required, save_every",
    );
    one(
        "[admin]\ntoken-file = \"x\"",
        "admin.token-file: is not a key here; did you mean \"token_file\"?",
    );
    one("[wire]\nforward = \"x\"", "wire.forward: is not a key here; did you mean \"forwarded\"?");
    one("[global]\nlimits = []", "global.limits: is not a key here; did you mean \"limit\"?");
    one_in_route(
        "shadow = true",
        "routes.a.shadow: is not a key here; known here: name, group, match, upstream, class, slow, weight, settle, websocket, limit, detect, recover, mode, after_crash, keys",
    );
    one_in_limit(
        "rate = \"1/s\", bursts = 3",
        "routes.a.limit[0].bursts: is not a key here; did you mean \"burst\"?",
    );
    one_in_route(
        "[[routes.keys]]\nname = \"k\"\nfrom = { header = \"x\", jsno = \"/y\" }",
        "routes.a.keys.k.from.jsno: is not a key here; did you mean \"json\"?",
    );
    one_in_route(
        "recover = { after = \"1s\", probe = 3 }",
        "routes.a.recover.probe: is not a key here; did you mean \"probes\"?",
    );
    one_route(
        "match",
        "{ path = \"/\", methods = [] }",
        "routes.a.match.methods: is not a key here; did you mean \"method\"?",
    );
}

/// Goal: a value of the wrong type says what is there and what is needed.
#[test]
fn wrong_types_are_told() {
    one(
        "listen = 3",
        "listen: is a whole number, but a table is needed; write [listen] or listen = { … }",
    );
    one(
        "[listen]\ndata = 8080",
        "listen.data: is a whole number, but a string is needed; put it in quotes",
    );
    one(
        "[listen]\nworkers = \"2\"",
        "listen.workers: is a string, but a whole number is needed; write it without quotes",
    );
    one(
        "[state]\nrequired = \"yes\"",
        "state.required: is a string, but true or false is needed; write it without quotes",
    );
    one(
        "[admin]\ntoken = 12345678901234567",
        "admin.token: is a whole number, but a string is needed; put it in quotes",
    );
    one(
        "[groups]\nname = \"g\"",
        "groups: is a table, but a list of tables is needed; write [[groups]] with two brackets",
    );
    one(
        "groups = [1]",
        "groups[0]: is a whole number, but a table is needed; write [[groups]] with two brackets",
    );
    one_in_route(
        "limit = { rate = \"1/s\" }",
        "routes.a.limit: is a table, but a list of tables is needed; write limit = [{ … }]",
    );
    one_in_route(
        "keys = { name = \"k\" }",
        "routes.a.keys: is a table, but a list of tables is needed; write [[routes.keys]] with two brackets",
    );
    one_in_route(
        "recover = 5",
        "routes.a.recover: is a whole number, but a word or a table is needed; in the table, the keys are: probes, after, at_most",
    );
    one_route(
        "match",
        "\"/\"",
        "routes.a.match: is a string, but a table is needed; write [match] or match = { … }",
    );
    one_route(
        "match",
        "{ path = \"/\", method = [\"GET\", 1] }",
        "routes.a.match.method[1]: is a whole number, but a string is needed; put it in quotes",
    );
    assert_eq!(
        bad("routes = 1"),
        [
            "routes: is a whole number, but a list of tables is needed; write [[routes]] with two brackets"
        ]
    );
}

/// Goal: text that is no TOML, or too much of it, is told with the name of the file.
#[test]
fn text_that_cannot_be_read_is_told() {
    let lines = bad("[listen\n");
    assert!(lines[0].starts_with("test.toml:1:8: "), "{lines:?}");
    let large = format!("# {}\n{ROUTE}", "x".repeat(1024 * 1024));
    assert_eq!(
        bad(&large),
        [format!(
            "test.toml: is {} bytes long; a configuration has at most 1048576; split the routes over several breakers",
            large.len()
        )]
    );
}

/// Goal: the environment is asked for by name, and what it gave is never printed.
#[test]
fn the_environment_is_named_and_not_printed() {
    one(
        "[state]\ndir = \"${NOPE}/x\"",
        "state.dir: the environment variable NOPE is not set; set it",
    );
    one(
        "[state]\ndir = \"${NOPE\"",
        "state.dir: has a ${ without a }; write $${ where ${ is meant as it stands",
    );
    one_route(
        "upstream",
        "\"${URL}\"",
        "routes.a.upstream: \"${URL}\" holds a user or password, which are not supported; write http://host:port, https://host:port or builtin:origin",
    );
    one(
        "[admin]\ntoken = \"${SHORT}\"",
        "admin.token: is shorter than 16 characters; make one with: openssl rand -hex 32",
    );
    one(
        "[admin]\ntoken = \"hunter2\"",
        "admin.token: is shorter than 16 characters; make one with: openssl rand -hex 32",
    );
    let config = good(&format!("[state]\ndir = \"$${{PORT}}\"\n{ROUTE}"));
    assert_eq!(config.state.dir, PathBuf::from("${PORT}"));
    let shown = format!("{:?}", good(&format!("[admin]\ntoken = \"${{TOKEN}}\"\n{ROUTE}")));
    assert!(!shown.contains("horse"));
}

/// Goal: addresses that cannot work, or should not, are told.
#[test]
fn addresses_are_checked() {
    one(
        "[listen]\ndata = \"127.0.0.1\"",
        "listen.data: \"127.0.0.1\" is not an address; write numbers and a port, as in 127.0.0.1:8080 or [::1]:8080",
    );
    one(
        "[listen]\ndata = \"127.0.0.1:9090\"",
        "listen.admin: 127.0.0.1:9090 is also where the data plane listens (127.0.0.1:9090); give each plane a port of its own",
    );
    one(
        "[listen]\ndata = \"0.0.0.0:9090\"",
        "listen.admin: 127.0.0.1:9090 is also where the data plane listens (0.0.0.0:9090); give each plane a port of its own",
    );
    one(
        "[listen]\nadmin = \"0.0.0.0:9090\"",
        "listen.admin: 0.0.0.0:9090 can be reached from elsewhere; listen on 127.0.0.1, or say admin.expose = true if that is meant",
    );
    one(
        "[listen]\nadmin = \"[::]:9090\"\n[admin]\nexpose = false",
        "listen.admin: [::]:9090 can be reached from elsewhere; listen on 127.0.0.1, or say admin.expose = true if that is meant",
    );
    one("[listen]\nworkers = 0", "listen.workers: 0 is too few; use a number from 1 to 1024");
    one("[listen]\nworkers = -1", "listen.workers: -1 is too few; use a number from 1 to 1024");
    good(&format!("[listen]\nadmin = \"0.0.0.0:9090\"\n[admin]\nexpose = true\n{ROUTE}"));
}

/// Goal: one source of the token, and one that a header can carry.
#[test]
fn tokens_are_checked() {
    one(
        "[admin]\ntoken = \"${TOKEN}\"\ntoken_file = \"x\"",
        "admin.token_file: there is also a token; keep one of the two",
    );
    one(
        "[admin]\ntoken_file = \"\"",
        "admin.token_file: \"\" names no file; drop the key, or name one",
    );
    one(
        "[admin]\ntoken = \"sixteen chars and blanks\"",
        "admin.token: holds a blank, or what a header cannot carry; make one with: openssl rand -hex 32",
    );
}

/// Goal: bounds and deadlines of zero, without unit, or beyond sense are told.
#[test]
fn bounds_and_deadlines_are_checked() {
    one(
        "[bounds]\nconnections = 0",
        "bounds.connections: 0 is too few; use a number from 1 to 1000000",
    );
    one(
        "[bounds]\nkeys = 99999999",
        "bounds.keys: 99999999 is too many; use a number from 1 to 16777216",
    );
    one("[bounds]\nfields = 0", "bounds.fields: 0 is too few; use a number from 1 to 1000");
    one("[bounds]\nstreams = 0", "bounds.streams: 0 is too few; use a number from 1 to 10000");
    one(
        "[bounds]\nhead_bytes = \"1KiB\"",
        "bounds.head_bytes: \"1KiB\" is too small for a request head; use at least 8KiB",
    );
    one(
        "[bounds]\nhead_bytes = \"2MiB\"",
        "bounds.head_bytes: \"2MiB\" is too large for a request head; use at most 1MiB",
    );
    one(
        "[bounds]\nhead_bytes = \"unlimited\"",
        "bounds.head_bytes: \"unlimited\" is not allowed here, since a head is held in memory; use 32KiB",
    );
    one(
        "[bounds]\nbody_bytes = \"0MiB\"",
        "bounds.body_bytes: \"0MiB\" is no room at all; use at least 1B",
    );
    one(
        "[bounds]\nbody_bytes = \"99999999999GiB\"",
        "bounds.body_bytes: \"99999999999GiB\" is too large; use less",
    );
    one(
        "[bounds]\nbody_bytes = \"10\"",
        "bounds.body_bytes: \"10\" has no unit; write a whole number and B, KB, KiB, MB, MiB, GB or GiB: 32KiB",
    );
    one(
        "[bounds]\nbody_bytes = \"10mb\"",
        "bounds.body_bytes: \"10mb\" has a unit that is not known; write a whole number and B, KB, KiB, MB, MiB, GB or GiB: 32KiB",
    );
    one(
        "[bounds]\nbody_bytes = \"much\"",
        "bounds.body_bytes: \"much\" is not a size; write a whole number and B, KB, KiB, MB, MiB, GB or GiB: 32KiB",
    );
    one(
        "[bounds]\nconnection_bytes = \"1KiB\"",
        "bounds.connection_bytes: \"1KiB\" is less than HTTP/2 begins with; use at least 64KiB",
    );
    one(
        "[bounds]\nconnection_bytes = \"1GiB\"",
        "bounds.connection_bytes: \"1GiB\" is too large to be held; use at most 64MiB",
    );
    one(
        "[bounds]\nupload_rate = \"240B\"",
        "bounds.upload_rate: \"240B\" is no rate of bytes; write bytes in a second, as in 240B/s, or \"any\"",
    );
    one(
        "[bounds]\ndownload_rate = \"1GiB/s\"",
        "bounds.download_rate: \"1GiB/s\" is more than clients can be asked for; use at most 16MiB/s",
    );
    one(
        "[listen]\nproxy_protocol = true",
        "listen.proxy_protocol: nobody's word is taken, so every connection would be refused; name the networks of the proxies in front in wire.trusted",
    );
    one(
        "[deadlines]\nhead = \"0s\"",
        "deadlines.head: \"0s\" leaves no time at all; use at least 1ms",
    );
    one(
        "[deadlines]\nhead = 10",
        "deadlines.head: is a whole number without a unit; write the unit into the value, as in \"10s\"",
    );
    one(
        "[deadlines]\nconnect = \"2d\"",
        "deadlines.connect: \"2d\" is no deadline; use at most 1d",
    );
    one(
        "[deadlines]\nanswer = \"2 s\"",
        "deadlines.answer: \"2 s\" has a unit that is not known; write a whole number and ms, s, m, h or d: 250ms",
    );
    one(
        "[deadlines]\ndrain = \"soon\"",
        "deadlines.drain: \"soon\" is not a length of time; write a whole number and ms, s, m, h or d: 250ms",
    );
    one(
        "[deadlines]\nbody_idle = \"99999999999999d\"",
        "deadlines.body_idle: \"99999999999999d\" is longer than 500 years; use less",
    );
}

/// Goal: words that are not known are told with the nearest.
#[test]
fn words_are_checked() {
    one(
        "unrouted = \"allow\"",
        "unrouted: \"allow\" is not known here; \"deny\" is the only word here",
    );
    one(
        "[wire]\nforwarded = \"x-forward\"",
        "wire.forwarded: \"x-forward\" is not known here; did you mean \"x-forwarded\"?",
    );
    one(
        "[global]\nmode = \"off\"",
        "global.mode: \"off\" is not known here; known here: enforce, shadow",
    );
    one_in_route(
        "class = \"reduce\"",
        "routes.a.class: \"reduce\" is not known here; did you mean \"reducing\"?",
    );
    one_in_route(
        "recover = \"manuel\"",
        "routes.a.recover: \"manuel\" is not known here; \"manual\" is the only word here",
    );
    one_in_limit(
        "rate = \"1/s\", of = \"offer\"",
        "routes.a.limit[0].of: \"offer\" is not known here; did you mean \"offered\"?",
    );
    one_in_limit(
        "rate = \"1/s\", on_breach = \"kill\"",
        "routes.a.limit[0].on_breach: \"kill\" is not known here; known here: refuse, trip",
    );
    one_in_route(
        "[[routes.keys]]\nname = \"k\"\nfrom = \"peer\"\nmissing = \"allow\"",
        "routes.a.keys.k.missing: \"allow\" is not known here; known here: refuse, share, skip",
    );
    one_in_route(
        "[[routes.keys]]\nname = \"k\"\nfrom = \"address\"",
        "routes.a.keys.k.from: \"address\" is not known here; \"peer\" is the only word here",
    );
}

/// Goal: limits that are no limits, or can never pass anything, are told.
#[test]
fn limits_are_checked() {
    one_in_limit(
        "burst = 1",
        "routes.a.limit[0]: has neither a rate nor a window, budget or in_flight; say rate = \"100/s\", window = \"100/1s\", budget = 1000 or in_flight = 100",
    );
    one_in_limit(
        "rate = \"1/s\", window = \"1/1s\"",
        "routes.a.limit[0].window: there is also a rate; write two limits, each with its own { }",
    );
    one_in_limit(
        "window = \"1/1s\", burst = 3",
        "routes.a.limit[0].burst: belongs to a rate; a window allows all of its calls at once already; drop the burst",
    );
    one_in_limit(
        "rate = \"1/s\", burst = 0",
        "routes.a.limit[0].burst: 0 is too few; use a number from 1 to 4294967295",
    );
    one_in_limit(
        "rate = \"0/s\"",
        "routes.a.limit[0].rate: \"0/s\" allows nothing; use at least 1/s, or kill the route instead",
    );
    one_in_limit(
        "window = \"5/0s\"",
        "routes.a.limit[0].window: \"5/0s\" is for no time at all; write it as in \"100/1s\"",
    );
    one_in_limit(
        "rate = 100",
        "routes.a.limit[0].rate: is a whole number without a unit; write the unit into the value, as in \"100/s\"",
    );
    one_in_limit(
        "rate = \"100\"",
        "routes.a.limit[0].rate: \"100\" is not a rate; write it as in \"100/s\"",
    );
    one_in_limit(
        "rate = \"+5/s\"",
        "routes.a.limit[0].rate: \"+5/s\" is not a rate; write it as in \"100/s\"",
    );
    one_in_limit(
        "rate = \"-5/s\"",
        "routes.a.limit[0].rate: \"-5/s\" is not a rate; write it as in \"100/s\"",
    );
    one_in_limit(
        "rate = \"/s\"",
        "routes.a.limit[0].rate: \"/s\" is not a rate; write it as in \"100/s\"",
    );
    one_in_limit(
        "rate = \"5/w\"",
        "routes.a.limit[0].rate: \"5/w\" is not a length of time after the '/'; write it as in \"100/s\"",
    );
    one_in_limit(
        "window = \"5/10\"",
        "routes.a.limit[0].window: \"5/10\" has no unit after the '/'; write it as in \"100/1s\"",
    );
    one_in_limit(
        "window = \"9999999999/1s\"",
        "routes.a.limit[0].window: \"9999999999/1s\" is more than can be counted; use at most 4294967295 calls",
    );
    one_in_limit(
        "budget = 5, idle = \"0s\"",
        "routes.a.limit[0].idle: \"0s\" is no time at all; use at least 1s, or leave it out",
    );
    one_in_limit(
        "window = \"1/1s\", idle = \"1h\"",
        "routes.a.limit[0].idle: belongs to a budget; drop it: what time gives back needs no pause to be forgotten",
    );
    one_in_limit(
        "budget = 5, in_flight = 3",
        "routes.a.limit[0].in_flight: there is also a budget; write two limits, each with its own { }",
    );
    one_in_limit(
        "in_flight = 5, burst = 3",
        "routes.a.limit[0].burst: belongs to a rate; drop the burst",
    );
    one_in_limit(
        "budget = \"5\"",
        "routes.a.limit[0].budget: is a string, but a whole number is needed; write it without quotes",
    );
    one_in_limit(
        "window = \"1/1s\", by = \"wieght\"",
        "routes.a.limit[0].by: \"wieght\" is not known here; did you mean \"weight\"?",
    );
    // What the core refuses stands at its place in the file, also behind a limit that has an error of its own.
    one_in_limit(
        "in_flight = 5, of = \"offered\"",
        "routes.a.limit[0]: calls that are refused are never in flight; let it count admitted calls",
    );
    let lines = bad(&format!(
        "{ROUTE}limit = [{{ window = \"x\" }}, {{ name = \"cap\", in_flight = 5, of = \"offered\" }}]\n"
    ));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].starts_with("routes.a.limit.cap: calls that are refused"), "{lines:?}");
    let nine = (1..=9).map(|n| format!("{{ window = \"{n}/{}s\" }}", n * n)).collect::<Vec<_>>();
    one_in_route(
        &format!("limit = [{}]", nine.join(", ")),
        "routes.a.limit: 9 of them are too many; use at most 8",
    );
}

/// Goal: a limit that another always meets first is told, with that other.
#[test]
fn limits_that_never_matter_are_told() {
    one_in_route(
        "limit = [{ window = \"10/1s\" }, { window = \"20/1s\" }]",
        "routes.a.limit[1]: is never reached, because routes.a.limit[0] refuses first; drop it, or make it the stricter of the two",
    );
    one_in_route(
        "limit = [{ window = \"20/1s\" }, { window = \"10/2s\" }]",
        "routes.a.limit[0]: is never reached, because routes.a.limit[1] refuses first; drop it, or make it the stricter of the two",
    );
    one_in_route(
        "limit = [{ rate = \"10/s\", burst = 5 }, { rate = \"600/m\", burst = 5 }]",
        "routes.a.limit[1]: is never reached, because routes.a.limit[0] refuses first; drop it, or make it the stricter of the two",
    );
    one_in_route(
        "limit = [{ window = \"10/1s\" }, { window = \"10/1s\", on_breach = \"trip\" }]",
        "routes.a.limit[1]: is never reached, because routes.a.limit[0] refuses first; count of = \"offered\", which sees what the other refuses",
    );
    one_in_route(
        "limit = [{ window = \"10/1s\" }, { window = \"40/1s\", on_breach = \"trip\" }]",
        "routes.a.limit[1]: is never reached, because routes.a.limit[0] refuses first; count of = \"offered\", which sees what the other refuses",
    );
}

/// Goal: every kind of limit arrives with all that is said of it.
#[test]
fn every_kind_of_limit_arrives() {
    let config = good(&format!(
        "{ROUTE}weight = 3\nafter_crash = \"spent\"\nlimit = [{{ name = \"day\", budget = 20, idle = \"1h\" }}, {{ in_flight = 3 }}, \
         {{ rate = \"9000000000/s\", burst = 5000000000, by = \"weight\" }}, \
         {{ window = \"5000000000/1m\", by = \"weight\", of = \"offered\", on_breach = \"trip\" }}, \
         {{ window = \"2/1s\", candidate = true }}]\n"
    ));
    let scope = &config.policy.routes[0].scope;
    assert!(scope.spent_after_crash);
    let idle = Some(Span::from_secs(3_600));
    assert_eq!(scope.limits[0].kind, LimitKind::Budget { count: 20, idle });
    assert_eq!(scope.limits[0].name, "day");
    assert_eq!(scope.limits[1].kind, LimitKind::InFlight { count: 3 });
    let (count, burst) = (9_000_000_000, 5_000_000_000);
    let per = Span::from_secs(1);
    assert_eq!(scope.limits[2].kind, LimitKind::Rate { count, per, burst });
    assert_eq!(scope.limits[2].by, Unit::Weight);
    assert_eq!(
        (scope.limits[3].of, scope.limits[3].on_breach),
        (Counting::Offered, OnBreach::Trip)
    );
    assert_eq!(scope.limits.iter().filter(|limit| limit.candidate).count(), 1);
}

/// Goal: overrides and the room for newcomers arrive; what is wrong with them is told at its place.
#[test]
fn overrides_and_newcomers_are_checked() {
    const KEY: &str = "[[routes.keys]]\nname = \"k\"\nfrom = { header = \"x\" }\n";
    let over = "[[routes.keys.overrides]]\n";
    let config = good(&format!(
        "{ROUTE}{KEY}limit = [{{ window = \"1/1s\" }}]\nnewcomers = {{ rate = \"100/s\", burst = 7 }}\n\
         {over}key = \"vip\"\nlimit = [{{ window = \"5/1s\" }}]\n{over}key = \"test\"\n"
    ));
    let key = &config.policy.routes[0].scope.keys[0];
    let newcomers = key.newcomers.unwrap();
    assert_eq!((newcomers.count, newcomers.burst), (100, 7));
    assert_eq!(key.overrides[0].label, b"vip");
    assert_eq!(key.overrides[0].limits.len(), 1);
    assert!(key.overrides[1].limits.is_empty(), "no limit at all is a choice");
    let peer = KEY.replace("{ header = \"x\" }", "\"peer\"");
    let config = good(&format!("{ROUTE}{peer}{over}key = \"2001:DB8::1\"\n"));
    let label = &config.policy.routes[0].scope.keys[0].overrides[0].label;
    assert_eq!(label, b"2001:db8:0:0::/64", "as requests carry it");
    for (text, line) in [
        (
            format!("{over}limit = []"),
            "routes.a.keys.k.overrides[0].key: is missing; name the key that has limits of its own, as in key = \"acme\"",
        ),
        (
            format!("{over}key = \"a\"\n{over}key = \"a\""),
            "routes.a.keys.k.overrides[1].key: \"a\" has an override already; give each key one",
        ),
        (
            format!("{over}key = \"a\"\nlimit = [{{ in_flight = 1, of = \"offered\" }}]"),
            "routes.a.keys.k.overrides[0].limit[0]: calls that are refused are never in flight; let it count admitted calls",
        ),
        (
            format!("{over}key = \" a\""),
            "routes.a.keys.k.overrides[0].key: no request carries \" a\"; a peer is an address, and a value has no blanks around it",
        ),
        (
            "newcomers = { burst = 3 }".to_owned(),
            "routes.a.keys.k.newcomers.rate: is missing; say how many new keys may come, as in newcomers = { rate = \"100/s\" }",
        ),
    ] {
        one_in_route(&format!("{KEY}{text}"), line);
    }
}

/// Goal: every kind of detector arrives as the core knows it, and its own key is the bound that needs no learning.
#[test]
fn every_kind_of_detector_arrives() {
    let detectors = |text: &str| {
        let config = good(&format!("{ROUTE}slow = \"1s\"\ndetect = [{text}]\n"));
        config.policy.routes[0].scope.detectors.clone()
    };
    let one = |text: &str| detectors(&format!("{{ {text} }}")).remove(0).kind;
    let second = Span::from_secs(1);
    assert_eq!(one("surge = \"600/1m\""), DetectorKind::Surge(Surge::of_route(600)));
    let DetectorKind::Surge(surge) =
        one("surge = [\"9/1s\", \"90/1m\"], times = 4.0, least = 7, growth = 1, after = \"1h\"")
    else {
        panic!("a surge")
    };
    let windows =
        surge.windows.map(|window| window.map(|one| (one.factor, one.floor, one.ceiling)));
    assert_eq!(windows, [Some((None, 1, 9)), None, Some((Some(4.0), 7, 90)), None]);
    assert_eq!(surge.start_after, Span::from_secs(3_600));
    let repeat = Repeat { count: 30, share: 0.2, window: Span::from_secs(10) };
    assert_eq!(one("repeat = \"30/10s\", share = 0.2"), DetectorKind::Repeat(repeat));
    let errors = Errors {
        ceiling: 0.4,
        windows: [second, Span::from_secs(60)],
        minimum: 20,
        faults: 3,
        least: 0.1,
        times: 3.0,
        ..Errors::default()
    };
    assert_eq!(
        one(
            "errors = 0.4, over = [\"1s\", \"1m\"], at_least = 20, faults = 3, least = 0.1, times = 3"
        ),
        DetectorKind::Errors(errors)
    );
    let latency = Latency { ceiling: second, times: 3.0, minimum: 50, ..Latency::default() };
    assert_eq!(one("latency = \"1s\", times = 3.0, at_least = 50"), DetectorKind::Latency(latency));
    let ceiling = Span::from_secs(600);
    assert_eq!(
        one("silence = \"10m\""),
        DetectorKind::Silence(Silence { ceiling, ..Silence::default() })
    );
    assert_eq!(
        one("spread = 0.3, at_least = 2, over = \"10s\""),
        DetectorKind::Spread(Spread {
            children: None,
            share: Some(0.3),
            minimum: 2,
            within: Span::from_secs(10)
        })
    );
    let spread = Spread { children: Some(4), share: None, ..Spread::default() };
    assert_eq!(one("spread = 4"), DetectorKind::Spread(spread));
    assert_eq!(
        one("streak = 4, slow = true"),
        DetectorKind::Streak(Streak { count: 4, or_slow: true })
    );
    let start_after = Span::from_secs(3_600);
    assert_eq!(one("novel = \"1h\""), DetectorKind::Novel(Novel { start_after }));
    let ratio = Ratio { of: ShareOf::Either, share: 0.3, minimum: 50, window: Span::from_secs(10) };
    assert_eq!(
        one("ratio = \"either\", above = 0.3, at_least = 50, over = \"10s\""),
        DetectorKind::Ratio(ratio)
    );
    let found =
        detectors("{ name = \"bad\", streak = 9, on_find = \"warn\" }, { silence = \"1h\" }");
    assert_eq!((found[0].name.as_deref(), found[0].on_find), (Some("bad"), OnFind::Warn));
    assert_eq!(
        found[1].on_find,
        OnFind::Warn,
        "what cannot trip warns unless it is told otherwise"
    );
}

/// Goal: detectors that are none, that mix kinds, or that could find nothing are told, at their place.
#[test]
fn detectors_are_checked() {
    for (text, line) in [
        (
            "on_find = \"trip\"",
            "routes.a.detect[0]: is none of surge, repeat, errors, latency, silence, spread, streak, novel, ratio; say what to look for, as in { errors = 0.5 }",
        ),
        (
            "errors = 0.5, streak = 5",
            "routes.a.detect[0].streak: there is also errors; write two detectors, each with its own { }",
        ),
        (
            "streak = 5, above = 0.3",
            "routes.a.detect[0].above: does not belong to streak; docs/CONFIG.md says which keys go with streak; drop it",
        ),
        (
            "surge = \"60/2m\"",
            "routes.a.detect[0].surge: \"60/2m\" is of none of the windows; surges are judged in 1s, 10s, 1m and 5m: \"600/1m\"",
        ),
        ("errors = 1.5", "routes.a.detect[0]: ceiling is 1.5; use 0.001 to 1"),
        (
            "errors = \"half\"",
            "routes.a.detect[0].errors: is a string, but a number is needed; write it without quotes",
        ),
        (
            "silence = \"10m\", on_find = \"trip\"",
            "routes.a.detect[0]: `silence` cannot trip: a trip would not mend it; let it warn",
        ),
        (
            "ratio = \"slow\"",
            "routes.a.detect[0]: looks for slow calls, and no route here says which calls are slow; give the route slow = \"2s\", or look for faults alone",
        ),
        (
            "name = \"late\", streak = 3, slow = true",
            "routes.a.detect.late: looks for slow calls, and no route here says which calls are slow; give the route slow = \"2s\", or look for faults alone",
        ),
    ] {
        one_in_route(&format!("detect = [{{ {text} }}]"), line);
    }
    let key = "[[routes.keys]]\nname = \"k\"\nfrom = { header = \"x\" }\n";
    one_in_route(
        &format!("{key}detect = [{{ latency = \"1s\" }}]"),
        "routes.a.keys.k.detect[0]: `latency` does not fit keys; put it on the route, the group or `/`",
    );
    one_in_route(
        &format!("{key}missing = \"share\"\ndetect = [{{ streak = 5 }}]"),
        "routes.a.keys.k.missing: \"share\" puts all who lack the key into one cell, which any stranger could then trip for the others; refuse or skip calls without the key, or let the detector warn and not trip",
    );
    one_in_route(
        "detect = [5]",
        "routes.a.detect[0]: is a whole number, but a table is needed; write detect = [{ … }]",
    );
}

/// Goal: a recovery that holds nothing, or shrinks, is told.
#[test]
fn recoveries_are_checked() {
    one_in_route(
        "recover = { probes = 3 }",
        "routes.a.recover.after: is missing; say after = \"5s\", or recover = \"manual\"",
    );
    one_in_route(
        "recover = { probes = 0, after = \"5s\" }",
        "routes.a.recover.probes: 0 is too few; use a number from 1 to 63",
    );
    one_in_route(
        "recover = { probes = 64, after = \"5s\" }",
        "routes.a.recover.probes: 64 is too many; use a number from 1 to 63",
    );
    one_in_route(
        "recover = { after = \"0s\" }",
        "routes.a.recover.after: \"0s\" holds nothing; use at least 1s, or take the trip away",
    );
    one_in_route(
        "recover = { after = \"5s\", at_most = \"1s\" }",
        "routes.a.recover.at_most: is shorter than after; each strike doubles the hold from after up to at_most; make it the longer",
    );
}

/// Goal: names that are missing, odd or taken are told, at every level.
#[test]
fn names_are_checked() {
    one_route("name", "", "routes[0].name: is missing; everything that holds rules has a name");
    for name in ["", "a/b", "a b", "é", "..", "k=v", &"x".repeat(65)] {
        one_route(
            "name",
            &format!("{name:?}"),
            &format!("routes[0].name: {name:?} is not a name; use 1 to 64 of A-Z a-z 0-9 _ . -"),
        );
    }
    let groups = "[[groups]]\nname = \"default\"\n[[groups]]\nname = \"default\"";
    one(
        groups,
        "groups[1].name: \"default\" is taken by another group; rename one, or put them together",
    );
    let route = "[[routes]]\nname = \"a\"\nmatch = { path = \"/x\" }\nupstream = \"http://h\"";
    one_in_route(
        route,
        "routes[1].name: \"a\" is taken by another route of group \"default\"; rename one of them",
    );
    let key =
        |table: &str, name: &str| format!("[[{table}.keys]]\nname = \"{name}\"\nfrom = \"peer\"\n");
    one_in_route(
        &format!("{}{}", key("routes", "k"), key("routes", "k")),
        "routes.a.keys[1].name: \"k\" is taken by another dimension; rename one of them",
    );
    one(
        &format!("{}[[groups]]\nname = \"default\"\n{}", key("global", "k"), key("groups", "k")),
        "groups.default.keys.k.name: \"k\" is the dimension global.keys.k already; a call meets both; rename one",
    );
    one_in_route(
        &format!("{}{}", key("routes", "k"), key("global", "k")),
        "routes.a.keys.k.name: \"k\" is the dimension global.keys.k already; a call meets both; rename one",
    );
    one_in_route(
        &format!("{}[[groups]]\nname = \"default\"\n{}", key("routes", "k"), key("groups", "k")),
        "routes.a.keys.k.name: \"k\" is the dimension groups.default.keys.k already; a call meets both; rename one",
    );
}

/// Goal: groups and routes that miss each other are told.
#[test]
fn groups_and_routes_that_miss_each_other_are_told() {
    one_in_route(
        "group = \"pay\"",
        "routes.a.group: \"pay\" is not declared; declare it in [[groups]]",
    );
    assert_eq!(
        bad(&format!("{ROUTE}group = \"pay\"\n[[groups]]\nname = \"pays\"\n")),
        [
            "routes.a.group: \"pay\" is not declared; did you mean \"pays\"?",
            "groups.pays: no route is in it, so its rules hold for nothing; is its name, or a route's group, a typo?",
        ]
    );
    assert_eq!(bad(""), ["routes: there is none; declare at least one [[routes]]"]);
    assert_eq!(bad("routes = []\n"), ["routes: there is none; declare at least one [[routes]]"]);
}

/// Goal: two routes for the same requests are told, at the second, however they spell it.
#[test]
fn routes_for_the_same_requests_are_told() {
    let routes = |one: &str, other: &str| {
        format!(
            "[[routes]]\nname = \"a\"\nmatch = {{ {one} }}\nupstream = \"http://h\"\n[[routes]]\nname = \"b\"\nmatch = {{ {other} }}\nupstream = \"http://h\"\n"
        )
    };
    let hint = "let them differ in host, method or path, or make them one";
    for (one, other, what) in [
        ("path = \"/{a}\"", "path = \"/{b}\"", "the same requests"),
        ("path = \"/{*a}\"", "path = \"/{*b}\"", "the same requests"),
        ("host = \"A.b\", path = \"/x\"", "host = \"a.B\", path = \"/x\"", "the same requests"),
        (
            "method = [\"PUT\", \"GET\"], path = \"/x\"",
            "method = \"GET\", path = \"/x\"",
            "the same GET requests",
        ),
    ] {
        assert_eq!(
            bad(&routes(one, other)),
            [format!("routes.b.match: takes {what} as routes.a; {hint}")]
        );
    }
}

/// Goal: one wrong value is one error: a route whose match is wrong is not compared with others as if it took any host.
#[test]
fn a_wrong_match_is_compared_with_none() {
    for wrong in ["host = \"a:1\"", "method = \"get\""] {
        let route = format!(
            "[[routes]]\nname = \"b\"\nmatch = {{ path = \"/{{*rest}}\", {wrong} }}\nupstream = \"http://h\"\n"
        );
        assert_eq!(bad(&format!("{ROUTE}{route}")).len(), 1, "{wrong}");
    }
}

/// Goal: what a route needs is asked for.
#[test]
fn what_a_route_needs_is_asked_for() {
    one_route(
        "match",
        "",
        "routes.a.match: is missing; say which requests it takes, as in match = { path = \"/{*rest}\" }",
    );
    one_route(
        "match",
        "{ method = \"GET\" }",
        "routes.a.match.path: is missing; say path = \"/{*rest}\" for every path",
    );
    one_route(
        "upstream",
        "",
        "routes.a.upstream: is missing; say upstream = \"http://10.0.0.7:8000\", or \"builtin:origin\" to try things out",
    );
}

/// Goal: hosts that could not match, or not only themselves, are told.
#[test]
fn hosts_are_checked() {
    for (host, line) in [
        ("", "\"\" is not a host; write the name alone, as in \"example.com\""),
        ("a..b", "\"a..b\" is not a host; write the name alone, as in \"example.com\""),
        ("-a", "\"-a\" is not a host; write the name alone, as in \"example.com\""),
        ("a.b.", "\"a.b.\" is not a host; write the name alone, as in \"example.com\""),
        ("10.0.0.256", "\"10.0.0.256\" is not a host; write the name alone, as in \"example.com\""),
        ("10.1", "\"10.1\" is not a host; write the name alone, as in \"example.com\""),
        (
            "exämple.com",
            "\"exämple.com\" is not a host; write the name alone, as in \"example.com\"",
        ),
        ("a.b/c", "\"a.b/c\" is not a host; write the name alone, as in \"example.com\""),
        ("a.b:80", "\"a.b:80\" has a port or bare colons; write the host alone; IPv6 as in [::1]"),
        ("[::x]", "\"[::x]\" is not a host; an IPv6 address stands in brackets: [::1]"),
        ("*.b", "\"*.b\" holds a wildcard, which is not supported; write one route for each host"),
    ] {
        one_route(
            "match",
            &format!("{{ path = \"/\", host = \"{host}\" }}"),
            &format!("routes.a.match.host: {line}"),
        );
    }
}

/// Goal: methods that are never forwarded, or never match, are told.
#[test]
fn methods_are_checked() {
    for (method, line) in [
        ("\"CONNECT\"", ": \"CONNECT\" is never forwarded; drop it"),
        ("[\"GET\", \"TRACE\"]", "[1]: \"TRACE\" is never forwarded; drop it"),
        ("\"get\"", ": \"get\" is not a method, since these are told apart by case; write \"GET\""),
        ("\"G T\"", ": \"G T\" is not a method; write it as in \"GET\" or [\"GET\", \"HEAD\"]"),
        ("\"\"", ": \"\" is not a method; write it as in \"GET\" or [\"GET\", \"HEAD\"]"),
        ("[]", ": is an empty list; drop it to take every method"),
        ("[\"GET\", \"GET\"]", "[1]: GET stands here twice; drop one"),
    ] {
        one_route(
            "match",
            &format!("{{ path = \"/\", method = {method} }}"),
            &format!("routes.a.match.method{line}"),
        );
    }
    let many: Vec<String> = (0..17).map(|number| format!("\"M{number}\"")).collect();
    one_route(
        "match",
        &format!("{{ path = \"/\", method = [{}] }}", many.join(", ")),
        "routes.a.match.method: 17 methods are too many; drop it to take every method",
    );
}

/// Goal: patterns that no request could ever meet are told.
#[test]
fn path_patterns_are_checked() {
    let never = "write it as it reaches the upstream: plain, without . or .. or //";
    for (path, line) in [
        ("", "does not begin with '/'; write it as in \"/orders/{id}\"".to_owned()),
        ("orders", "does not begin with '/'; write it as in \"/orders/{id}\"".to_owned()),
        ("/a/../b", format!("would never match, because such a path has a dot segment and is refused; {never}")),
        ("/a//b", format!("would never match, because such a path has an empty segment and is refused; {never}")),
        ("/a b", format!("would never match, because such a path holds the raw byte 0x20 and is refused; {never}")),
        ("/a?b", format!("would never match, because such a path holds the raw byte 0x3F and is refused; {never}")),
        ("/a%2Fb", format!("would never match, because such a path holds an encoded %2F and is refused; {never}")),
        ("/%7Euser/%c3%a9", "would never match, because requests are matched in their canonical form; write the plain part as in \"/~user/%C3%A9\"".to_owned()),
        ("/{*rest}/x", "goes on after {*…}, which takes all the rest; let it be the last segment".to_owned()),
        ("/x-{id}", "mixes a parameter with other text in one segment; a parameter is a whole segment: /orders/{id}".to_owned()),
        ("/{id", "mixes a parameter with other text in one segment; a parameter is a whole segment: /orders/{id}".to_owned()),
        ("/{}", "has a parameter without a proper name; use letters, digits and _: {id}".to_owned()),
        ("/{a-b}", "has a parameter without a proper name; use letters, digits and _: {id}".to_owned()),
        ("/{a}/{a}", "has two parameters a; rename one of them".to_owned()),
    ] {
        one_route(
            "match",
            &format!("{{ path = {path:?} }}"),
            &format!("routes.a.match.path: {path:?} {line}"),
        );
    }
    let deep = "/x".repeat(65);
    let lines = bad(&format!(
        "[[routes]]\nname = \"a\"\nmatch = {{ path = \"{deep}\" }}\nupstream = \"http://h\""
    ));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("routes.a.match.path: \"/x/x"), "{lines:?}");
    assert!(lines[0].ends_with("…\" has 65 segments; use at most 64"), "{lines:?}");
}

/// Goal: upstreams that cannot be reached, or hold what is not forwarded, are told.
#[test]
fn upstreams_are_checked() {
    let hint = "write http://host:port, https://host:port or builtin:origin";
    for (upstream, line) in [
        ("", format!("is not an upstream; {hint}")),
        ("10.0.0.7:8000", format!("is not an upstream; {hint}")),
        ("builtin:other", format!("is not an upstream; {hint}")),
        ("https://", format!("has no valid host; {hint}")),
        ("https://h:0", "has no valid port; use 1 to 65535".to_owned()),
        ("http://", format!("has no valid host; {hint}")),
        ("http://:80", format!("has no valid host; {hint}")),
        ("http://a b", format!("has no valid host; {hint}")),
        ("http://10.0.0.300", format!("has no valid host; {hint}")),
        ("http://h/", format!("has a path or query; requests keep their own; {hint}")),
        ("http://h:80/x", format!("has a path or query; requests keep their own; {hint}")),
        ("http://h?x", format!("has a path or query; requests keep their own; {hint}")),
        ("http://me@h", format!("holds a user or password, which are not supported; {hint}")),
        ("http://h:0", "has no valid port; use 1 to 65535".to_owned()),
        ("http://h:", "has no valid port; use 1 to 65535".to_owned()),
        ("http://h:+8", "has no valid port; use 1 to 65535".to_owned()),
        ("http://h:65536", "has no valid port; use 1 to 65535".to_owned()),
        ("http://[::1]8", "has no valid port; use 1 to 65535".to_owned()),
        (
            "http://[::1",
            "lacks a ]; an IPv6 address stands in brackets: http://[::1]:8000".to_owned(),
        ),
        (
            "http://[x]",
            "has no valid host; an IPv6 address stands in brackets: http://[::1]:8000".to_owned(),
        ),
        (
            "http://127.0.0.1:8080",
            "leads back to our own data plane at 127.0.0.1:8080; name the server behind us"
                .to_owned(),
        ),
        (
            "http://127.0.0.1:9090",
            "leads back to our own admin plane at 127.0.0.1:9090; name the server behind us"
                .to_owned(),
        ),
    ] {
        one_route(
            "upstream",
            &format!("{upstream:?}"),
            &format!("routes.a.upstream: {upstream:?} {line}"),
        );
    }
}

/// Goal: an upstream that is one of our own sockets is told, also by another of its names; a neighbour's port is not ours.
#[test]
fn an_upstream_that_leads_back_is_told() {
    let at = |data: &str, upstream: &str| {
        let listen = format!("[listen]\ndata = \"{data}\"\n");
        let route = ROUTE.replace("builtin:origin", upstream);
        load(&format!("{listen}{route}"), "test.toml", &env)
    };
    for (data, upstream) in [
        ("0.0.0.0:80", "http://127.0.0.1"),
        ("[::]:8000", "http://[::1]:8000"),
        ("10.0.0.7:8000", "http://10.0.0.7:8000"),
        ("127.0.0.1:8000", "http://localhost:8000"),
        ("127.0.0.1:8000", "http://LOCALHOST:8000"),
        ("127.0.0.1:8000", "http://0.0.0.0:8000"),
        ("127.0.0.1:8000", "http://[::ffff:127.0.0.1]:8000"),
    ] {
        let errors = at(data, upstream).unwrap_err();
        assert_eq!(errors.0.len(), 1, "{data} {upstream}");
        assert_eq!(errors.0[0].path, "routes.a.upstream");
        assert!(errors.0[0].problem.contains("leads back to our own data plane"), "{errors}");
    }
    for (data, upstream) in [
        ("0.0.0.0:8000", "http://10.0.0.7:8000"),
        ("127.0.0.1:8000", "http://127.0.0.1:8001"),
        ("127.0.0.1:8000", "http://127.0.0.2:8000"),
        ("10.0.0.7:8000", "http://127.0.0.1:8000"),
        ("10.0.0.7:8000", "http://0.0.0.0:8000"),
    ] {
        assert!(at(data, upstream).is_ok(), "{data} {upstream}");
    }
}

/// Goal: no file, however long, makes a reading long: lists have an end, and so have errors.
#[test]
fn lists_and_errors_have_an_end() {
    let routes: String = (0..4097)
        .map(|number| {
            format!("[[routes]]\nname = \"r{number}\"\nmatch = {{ path = \"/{number}\" }}\nupstream = \"http://h\"\n")
        })
        .collect();
    assert_eq!(bad(&routes), ["routes: 4097 of them are too many; use at most 4096"]);
    let lines =
        bad(&format!("{}{ROUTE}", (0..1500).map(|n| format!("key{n} = 1\n")).collect::<String>()));
    assert_eq!(lines.len(), 1001);
    assert_eq!(lines[1000], "test.toml: has 500 errors more");
}

/// Goal: dimensions that name nobody, can be tripped by a stranger, or can be left out by everyone are told.
#[test]
fn dimensions_are_checked() {
    let key = |text: &str| format!("[[routes.keys]]\nname = \"k\"\n{text}");
    one_in_route(
        &key(""),
        "routes.a.keys.k.from: is missing; say from = \"peer\" or from = { header = \"…\" }",
    );
    one_in_route(
        &key("from = {}"),
        "routes.a.keys.k.from: names no part of a request; name one, as in from = { header = \"x-client\" }; known here: header, query, segment, forwarded, certificate, claim, json, form",
    );
    one_in_route(
        &key("from = { header = \"a b\" }"),
        "routes.a.keys.k.from.header: \"a b\" is not the name of a header; write it as in \"x-client\"",
    );
    for header in ["Connection", "te", "transfer-encoding", "content-length", "Host", "upgrade"] {
        one_in_route(
            &key(&format!("from = {{ header = \"{header}\" }}")),
            &format!(
                "routes.a.keys.k.from.header: \"{header}\" is about the connection or the framing, and tells nobody apart; name a field that the client's own code sets"
            ),
        );
    }
    one_in_route(
        &key(
            "from = { header = \"x\" }\nmissing = \"share\"\nlimit = [{ window = \"1/1s\", on_breach = \"trip\" }]",
        ),
        "routes.a.keys.k.missing: \"share\" puts all who lack the key into one cell, which any stranger could then trip for the others; refuse or skip calls without the key, or let the limit refuse and not trip",
    );
    let skip = "routes.a.keys.k.missing: with \"skip\", nothing counts a call of routes.a that lacks the key; add a dimension that does not skip, such as from = \"peer\", or refuse such calls";
    one_in_route(&key("from = { header = \"x\" }\nmissing = \"skip\""), skip);
    let many: String = (0..5)
        .map(|number| format!("[[routes.keys]]\nname = \"k{number}\"\nfrom = \"peer\"\n"))
        .collect();
    one_in_route(&many, "routes.a.keys: 5 of them are too many; use at most 4");
    let spread: String = (0..5)
        .map(|number| {
            let table = if number < 2 { "global" } else { "routes" };
            format!("[[{table}.keys]]\nname = \"k{number}\"\nfrom = \"peer\"\n")
        })
        .collect();
    one_in_route(
        &spread,
        "routes.a.keys: a call meets 5 dimensions here, with those of wider scopes; a call carries 4 at most; drop some",
    );
    // A skip of a wider scope is told once, however many routes it is in.
    let other = "[[routes]]\nname = \"b\"\nmatch = { path = \"/b\" }\nupstream = \"http://h\"\n";
    one_in_route(
        &format!(
            "{other}[[global.keys]]\nname = \"k\"\nfrom = {{ header = \"x\" }}\nmissing = \"skip\""
        ),
        "global.keys.k.missing: with \"skip\", nothing counts a call of routes.a that lacks the key; add a dimension that does not skip, such as from = \"peer\", or refuse such calls",
    );
}

/// Goal: every source of a key and of a weight can be given, and arrives.
#[test]
fn every_source_arrives() {
    let config = good(
        r#"
        bounds.inspect_bytes = "1MiB"
        wire.trusted = ["10.0.0.0/8", "192.0.2.1", "fd00::/8"]
        [[global.keys]]
        name = "client"
        from = { forwarded = 2 }
        [[groups]]
        name = "pay"
        [[groups.keys]]
        name = "subject"
        from = { claim = "sub", unverified = true }
        missing = "share"
        unreadable = "missing"
        [[routes]]
        name = "order"
        group = "pay"
        match = { path = "/orders/{id}" }
        upstream = "builtin:origin"
        weight = { json = "/quantity", times = "/price", scale = 2, missing = 0 }
        [[routes.keys]]
        name = "order"
        from = { segment = "{id}" }
        [[routes.keys]]
        name = "account"
        from = { json = "/account/a~1b" }
        [[routes]]
        name = "search"
        group = "pay"
        match = { path = "/{*rest}" }
        upstream = "builtin:origin"
        weight = "length"
        [[routes.keys]]
        name = "first"
        from = { segment = 2 }
        [[routes.keys]]
        name = "account"
        from = { query = "account" }
        [[routes]]
        name = "form"
        match = { path = "/form" }
        upstream = "builtin:origin"
        weight = { header = "X-Cost", missing = "refuse" }
        [[routes.keys]]
        name = "account"
        from = { form = "account" }
        [[routes.keys]]
        name = "realm"
        from = { claim = "/realm/name", unverified = true }
        "#,
    );
    assert_eq!(config.bounds.inspect_bytes, 1 << 20);
    let trusted: Vec<String> = config.trusted.iter().map(ToString::to_string).collect();
    assert_eq!(trusted, ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]);
    assert_eq!(config.global_keys[0].from, KeyFrom::Forwarded(2));
    let subject = &config.groups[0].keys[0];
    assert_eq!(subject.from, KeyFrom::Claim(Pointer::member("sub")));
    assert_eq!((subject.missing, subject.unreadable), (Missing::Share, Unreadable::Missing));
    let from = |route: usize, key: usize| config.routes[route].keys[key].from.clone();
    let at = |text| Pointer::parse(text).unwrap();
    assert_eq!(from(0, 0), KeyFrom::Segment(Segment::Named("id".to_owned())));
    assert_eq!(from(0, 1), KeyFrom::Json(at("/account/a~1b")));
    assert_eq!(from(1, 0), KeyFrom::Segment(Segment::At(2)));
    assert_eq!(from(1, 1), KeyFrom::Query("account".to_owned()));
    assert_eq!(from(2, 0), KeyFrom::Form("account".to_owned()));
    assert_eq!(from(2, 1), KeyFrom::Claim(at("/realm/name")));
    let (from, times) = (KeyFrom::Json(at("/quantity")), Some(KeyFrom::Json(at("/price"))));
    assert_eq!(
        config.routes[0].weight,
        Some(Weight::Quantity { from, times, scale: 2, missing: Some(0) })
    );
    assert_eq!(config.routes[1].weight, Some(Weight::Length));
    let header = KeyFrom::Header(http::HeaderName::from_static("x-cost"));
    assert_eq!(
        config.routes[2].weight,
        Some(Weight::Quantity { from: header, times: None, scale: 0, missing: None })
    );
}

/// Goal: where an answer says its weight is taken as it is written, in the head or in the body.
#[test]
fn answers_settle_what_was_reserved() {
    let settle = |line: &str| {
        let text = format!("{ROUTE}weight = 200\nsettle = {line}\n");
        good(&text).routes[0].settle.clone().unwrap()
    };
    let at = |text| Some(Pointer::parse(text).unwrap());
    let from = SettleFrom::Header(http::HeaderName::from_static("x-used"));
    assert_eq!(
        settle("{ header = \"X-Used\", scale = 2 }"),
        Settle { from, scale: 2, missing: None }
    );
    let from = SettleFrom::Body { json: at("/a"), events: at("/b/c") };
    assert_eq!(
        settle("{ json = \"/a\", events = \"/b/c\", missing = 0 }"),
        Settle { from, scale: 0, missing: Some(0) }
    );
    let from = SettleFrom::Body { json: None, events: at("/b") };
    assert_eq!(settle("{ events = \"/b\" }"), Settle { from, scale: 0, missing: None });
}

/// Goal: what settles nothing, or in two ways, is told.
#[test]
fn what_settles_nothing_is_told() {
    let one = |lines: &str, error: &str| {
        one_in_route(lines, &format!("routes.a.{error}"));
    };
    one(
        "settle = { json = \"/a\" }",
        "weight: is missing, so there is nothing that an answer could settle; say what is reserved until the answer is there, as in weight = 2000",
    );
    let hint = "say header, json or events, as in settle = { json = \"/usage/total_tokens\" }";
    one(
        "weight = 1\nsettle = { scale = 1 }",
        &format!("settle: names no part of an answer; {hint}"),
    );
    one(
        "weight = 1\nsettle = { json = \"/a\", header = \"b\" }",
        "settle.header: there is also json or events; an answer says it in its head or in its body; json and events may stand together",
    );
    let pointer = "does not begin with '/', so it is no JSON pointer; write it as in \"/order/account\" (RFC 6901)";
    one("weight = 1\nsettle = { events = \"a\" }", &format!("settle.events: \"a\" {pointer}"));
    one("weight = 1\nsettle = { json = \"a\" }", &format!("settle.json: \"a\" {pointer}"));
}

/// Goal: a source that names nothing, nobody or more than one is told.
#[test]
fn sources_of_keys_are_checked() {
    let one = |from: &str, line: &str| {
        one_in_route(
            &format!("[[routes.keys]]\nname = \"k\"\nfrom = {from}"),
            &format!("routes.a.keys.k.from{line}"),
        );
    };
    one(
        "{ certificate = \"dns\" }",
        ": no client is asked for a certificate; name the authorities that sign them in listen.tls.client_ca",
    );
    one(
        "{ certificate = \"common-name\" }",
        ".certificate: \"common-name\" is not known here; did you mean \"common_name\"?",
    );
    one(
        "{ header = \"x\", query = \"y\" }",
        ".query: there is also header; a key comes from one place; write another dimension for the other",
    );
    let field =
        "is not the name of a field; write it decoded, in 1 to 128 bytes, as in \"account\"";
    one("{ query = \"\" }", &format!(".query: \"\" {field}"));
    one("{ form = \"a\\u0000\" }", &format!(".form: \"a\\0\" {field}"));
    one(
        "{ json = \"account\" }",
        ".json: \"account\" does not begin with '/', so it is no JSON pointer; write it as in \"/order/account\" (RFC 6901)",
    );
    one(
        "{ json = \"/a~2\" }",
        ".json: \"/a~2\" has a '~' that is neither ~0 nor ~1, so it is no JSON pointer; write it as in \"/order/account\" (RFC 6901)",
    );
    let unverified = "would be taken from a token that nobody here verifies, so anyone could write it; say unverified = true if something in front verifies the token, or if a wrong name is a small harm";
    one("{ claim = \"sub\" }", &format!(".claim: {unverified}"));
    one("{ claim = \"sub\", unverified = false }", &format!(".claim: {unverified}"));
    one(
        "{ claim = \"\", unverified = true }",
        ".claim: \"\" names no claim; write it as in \"sub\"",
    );
    one(
        "{ header = \"x\", unverified = true }",
        ".unverified: belongs to a claim; drop it: only a token would have to be verified",
    );
    one(
        "{ segment = \"{*rest}\" }",
        ".segment: \"{*rest}\" takes many segments, so it names nobody; give the one that is meant a parameter of its own",
    );
    one(
        "{ segment = \"a b\" }",
        ".segment: \"a b\" is not the name of a segment; name a parameter of the route's path, as in \"{id}\", or count from 1",
    );
    one("{ segment = 0 }", ".segment: 0 is too few; use a number from 1 to 64");
    one(
        "{ segment = \"{id}\" }",
        ".segment: the path segment `{id}` is not in the path \"/{*rest}\" of routes.a; name a parameter that every route of the dimension has, or a place in its path",
    );
    one("{ forwarded = 9 }", ".forwarded: 9 is too many; use a number from 1 to 8");
    one(
        "{ forwarded = 1 }",
        ".forwarded: believes nobody, because wire.trusted names no network; name those in front of us, as in wire.trusted = [\"10.0.0.0/8\"], or say from = \"peer\"",
    );
    for header in ["X-Forwarded-For", "forwarded", "x-real-ip", "x_forwarded_for"] {
        one(
            &format!("{{ header = \"{header}\" }}"),
            &format!(
                ".header: \"{header}\" tells of the client, and any client can write it; say from = {{ forwarded = 1 }} and name those in front of us in wire.trusted"
            ),
        );
    }
    let key = |text: &str| format!("[[routes.keys]]\nname = \"k\"\n{text}");
    one_in_route(
        &key("from = \"peer\"\nunreadable = \"missing\"\nmissing = \"share\""),
        "routes.a.keys.k.unreadable: belongs to a key from json, form or claim; drop it: only what stands in a body or a token may be unreadable",
    );
    one_in_route(
        &key("from = { json = \"/a\" }\nunreadable = \"missing\""),
        "routes.a.keys.k.unreadable: changes nothing while a missing key is refused; say missing = \"share\" or \"skip\" as well, or drop it",
    );
    one_in_route(
        &key(
            "from = \"peer\"\n[[routes.keys.overrides]]\nkey = \"10.0.0.300\"\nlimit = [{ rate = \"1/s\" }]",
        ),
        "routes.a.keys.k.overrides[0].key: no request carries \"10.0.0.300\"; a peer is an address, and a value has no blanks around it",
    );
    // A dimension of a wider scope must be in every path.
    let routes = "[[groups]]\nname = \"g\"\n[[groups.keys]]\nname = \"k\"\nfrom = { segment = 2 }\n[[routes]]\nname = \"b\"\ngroup = \"g\"\nmatch = { path = \"/x/{id}\" }\nupstream = \"http://h\"\n[[routes]]\nname = \"c\"\ngroup = \"g\"\nmatch = { path = \"/x\" }\nupstream = \"http://h\"\n";
    assert_eq!(
        bad(routes),
        [
            "groups.g.keys.k.from.segment: path segment 2 is not in the path \"/x\" of routes.c; name a parameter that every route of the dimension has, or a place in its path"
        ]
    );
}

/// Goal: an override is for the key that requests carry, in whatever spelling it is written.
#[test]
fn an_override_is_for_the_key_that_requests_carry() {
    let config = good(&format!(
        "{ROUTE}[[routes.keys]]\nname = \"k\"\nfrom = \"peer\"\n[[routes.keys.overrides]]\nkey = \"2001:DB8::7\"\nlimit = [{{ rate = \"1/s\" }}]\n"
    ));
    let own = &config.policy.routes[0].scope.keys[0].overrides[0];
    assert_eq!(own.label, b"2001:db8:0:0::/64");
}

/// Goal: a weight that says nothing, or too much, is told; and so is a limit that would find no weight.
#[test]
fn weights_are_checked() {
    let one = |weight: &str, line: &str| {
        one_in_route(&format!("weight = {weight}"), &format!("routes.a.weight{line}"));
    };
    one("0", ": 0 is too few; use a number from 1 to 9223372036854775807");
    one("\"size\"", ": \"size\" is not known here; \"length\" is the only word here");
    one(
        "true",
        ": is true or false, but a word or a table is needed; in the table, the keys are: header, query, json, form, times, scale, missing",
    );
    one(
        "{}",
        ": names no part of a request; say header, query, json or form, as in weight = { json = \"/quantity\" }",
    );
    one(
        "{ header = \"x\", json = \"/y\" }",
        ".json: there is also header; a weight is read from one place; for a product of two say times = \"…\"",
    );
    one(
        "{ json = \"/q\", times = \"p\" }",
        ".times: \"p\" does not begin with '/', so it is no JSON pointer; write it as in \"/order/account\" (RFC 6901)",
    );
    one(
        "{ json = \"/q\", times = \"/q\" }",
        ".times: is the quantity itself; name the other factor, as in { json = \"/quantity\", times = \"/price\" }",
    );
    one("{ query = \"q\", scale = 10 }", ".scale: 10 is too many; use a number from 0 to 9");
    one(
        "{ query = \"q\", missing = \"skip\" }",
        ".missing: \"skip\" is not known here; \"refuse\" is the only word here",
    );
    one(
        "{ query = \"q\", missing = -1 }",
        ".missing: -1 is too few; use a number from 0 to 9223372036854775807",
    );
    let needed = "is missing, but a limit on its calls counts weight and would refuse them all; say weight = 1, weight = \"length\" or weight = { header = \"…\" }";
    let limit = "limit = [{ rate = \"1/s\", by = \"weight\" }]";
    one_in_route(limit, &format!("routes.a.weight: {needed}"));
    one_in_route(
        &format!("[[routes.keys]]\nname = \"k\"\nfrom = \"peer\"\n{limit}"),
        &format!("routes.a.weight: {needed}"),
    );
    assert_eq!(bad(&format!("[global]\n{limit}\n{ROUTE}")), [format!("routes.a.weight: {needed}")]);
    good(&format!("[global]\n{limit}\n{ROUTE}weight = 1\n"));
}

/// Goal: a weight that is known here and that a limit never has room for is told: every call would be refused for good.
#[test]
fn a_weight_that_could_never_pass_was_good() {
    let heavy = |route: &str, key: &str| {
        let problem = "2000 is more than a limit on its calls ever has room for, which is 16; each such call would be refused";
        let hint = "raise that limit: the burst of a rate, the number of any other";
        one_in_route(route, &format!("routes.a.{key}: {problem}; {hint}"));
    };
    let limit = "limit = [{ rate = \"1000/m\", by = \"weight\" }]";
    let dimension = format!("[[routes.keys]]\nname = \"k\"\nfrom = \"peer\"\n{limit}");
    heavy(&format!("weight = 2000\n{limit}"), "weight");
    heavy(&format!("weight = 2000\n{dimension}"), "weight");
    heavy(&format!("weight = {{ query = \"q\", missing = 2000 }}\n{limit}"), "weight.missing");
    for fits in [
        "weight = 2000\nlimit = [{ rate = \"1000/m\", burst = 2000, by = \"weight\" }]",
        "weight = 2000\nlimit = [{ rate = \"1000/m\", by = \"weight\", candidate = true }]",
        "weight = 2000\nlimit = [{ rate = \"1000/m\" }, { budget = 2000, by = \"weight\" }]",
    ] {
        good(&format!("{ROUTE}{fits}\n"));
    }
}

/// Goal: a network that is none, or everyone, is told.
#[test]
fn trusted_networks_are_checked() {
    let bad_network = |text: &str, line: &str| {
        one(
            &format!("wire.trusted = [\"{text}\"]"),
            &format!("wire.trusted[0]: \"{text}\" {line}"),
        );
    };
    for text in ["", "10.0.0", "10.0.0.0/33", "example.com", "10.0.0.0/-1"] {
        bad_network(text, "is no network; write it as in \"10.0.0.0/8\", or an address alone");
    }
    bad_network("10.0.0.1/8", "has bits beyond its length; write \"10.0.0.0/8\"");
    bad_network("::ffff:10.0.0.0/104", "is of IPv4 addresses written as IPv6; write them as IPv4");
    for text in ["0.0.0.0/0", "::/0"] {
        bad_network(
            text,
            "is everyone, so that anyone could name another client; name those in front of us alone",
        );
    }
    good(&format!("wire.trusted = \"::1\"\n{ROUTE}"));
}

/// Goal: the access log, ids and spans are off unless they are asked for, and what is asked for is read.
#[test]
fn what_people_see_is_read() {
    use super::super::sight::{AccessLog, LogFormat, LogTo};
    let config = good(ROUTE);
    assert_eq!((config.access_log, config.spans), (None, false));
    assert_eq!(config.wire.request_id, RequestId::Off);
    let config = good(&format!(
        "wire.request_id = \"make\"\ntrace.spans = true\n[access_log]\npath = \"/l\"\n{ROUTE}"
    ));
    let log = AccessLog {
        to: LogTo::File("/l".into()),
        format: LogFormat::Json,
        query: false,
        field_bytes: 1024,
        queue_bytes: 4 * 1024 * 1024,
    };
    assert_eq!((config.access_log.as_ref(), config.spans), (Some(&log), true));
    assert_eq!(config.wire.request_id, RequestId::Make);
    let config = good(&format!(
        "[access_log]\npath = \"stdout\"\nformat = \"combined\"\nquery = true\nfield_bytes = \"64B\"\n\
         queue_bytes = \"1GiB\"\n{ROUTE}"
    ));
    let log = AccessLog {
        to: LogTo::Stdout,
        format: LogFormat::Combined,
        query: true,
        field_bytes: 64,
        queue_bytes: 1 << 30,
    };
    assert_eq!(config.access_log, Some(log));
}

/// Goal: each error of these keys names its path, what is wrong, and the mend.
#[test]
fn what_people_see_is_checked() {
    for (lines, expected) in [
        (
            "format = \"json\"",
            "access_log.path: is missing; name a file, or say \"stdout\"; without [access_log] there is none",
        ),
        ("path = \"\"", "access_log.path: \"\" names no file; drop the key, or name one"),
        (
            "path = 1",
            "access_log.path: is a whole number, but a string is needed; put it in quotes",
        ),
        (
            "path = \"/l\"\nformat = \"xml\"",
            "access_log.format: \"xml\" is not known here; known here: json, combined",
        ),
        (
            "path = \"/l\"\nfield_bytes = \"63B\"",
            "access_log.field_bytes: \"63B\" is too small to tell anything; use at least 64B",
        ),
        (
            "path = \"/l\"\nfield_bytes = \"17KiB\"",
            "access_log.field_bytes: \"17KiB\" is too large for a part of a line; use at most 16KiB",
        ),
        (
            "path = \"/l\"\nqueue_bytes = \"1KiB\"",
            "access_log.queue_bytes: \"1KiB\" is too small for a queue; use at least 512KiB",
        ),
        (
            "path = \"/l\"\nqueue_bytes = \"2GiB\"",
            "access_log.queue_bytes: \"2GiB\" is too large to be held; use at most 1GiB",
        ),
        (
            "path = \"/l\"\nquerry = true",
            "access_log.querry: is not a key here; did you mean \"query\"?",
        ),
        (
            "path = \"/l\"\n[trace]\nspan = true",
            "trace.span: is not a key here; did you mean \"spans\"?",
        ),
        (
            "path = \"/l\"\n[wire]\nrequest_id = \"on\"",
            "wire.request_id: \"on\" is not known here; did you mean \"off\"?",
        ),
    ] {
        assert_eq!(bad(&format!("[access_log]\n{lines}\n{ROUTE}")), [expected]);
    }
}

/// Goal: the documentation has a row for every key that the file may hold, under the name of its table.
#[test]
fn every_key_is_documented() {
    let text = include_str!("../../../docs/CONFIG.md");
    for shape in SHAPES {
        let heading = match shape.name {
            "top level" => "## Top level".to_owned(),
            name => format!("## `{name}`"),
        };
        let section = text
            .split_once(&format!("\n{heading}"))
            .map(|(_, rest)| rest.split("\n## ").next().unwrap_or_default());
        let Some(section) = section else { panic!("no heading {heading}") };
        for key in shape.keys {
            let row = format!("\n| `{key}` |");
            assert!(section.contains(&row), "{heading} has no row for {key}");
        }
        let rows = section.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, shape.keys.len(), "{heading} documents what is not there");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Goal: no text makes a reading panic, and every error has a path, a problem and one line.
    /// Method: a good file with a piece torn out and another put in, so that it still looks like one.
    #[test]
    fn any_text_is_read_or_refused(
        from in any::<Index>(),
        length in 0_usize..40,
        piece in "[\\PC\n\"\\[\\]{}=$0-9]{0,6}",
    ) {
        let lines: Vec<char> = EVERYTHING.chars().collect();
        let from = from.index(lines.len());
        let to = (from + length).min(lines.len());
        let text: String =
            lines[..from].iter().copied().chain(piece.chars()).chain(lines[to..].iter().copied()).collect();
        if let Err(errors) = load(&text, "test.toml", &env) {
            assert!(!errors.0.is_empty());
            assert_eq!(errors.to_string().lines().count(), errors.0.len(), "{errors}");
            for error in errors.0 {
                assert!(!error.path.is_empty() && !error.problem.is_empty(), "{error}");
                assert!(!error.to_string().contains("horse"));
            }
        }
    }
}
