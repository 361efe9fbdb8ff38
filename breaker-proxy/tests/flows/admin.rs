//! The admin plane: who gets in, what it tells, and what it refuses to read; what orders do stands in `kill.rs`.

use super::support::upstream::Serving;
use super::support::wire::{Answer, Wire};
use super::support::{LIMIT, Proxy, Setup, TOKEN, admin_request, eventually};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const PATHS: [(&str, &str); 9] = [
    ("GET", "/v1/status"),
    ("GET", "/metrics"),
    ("POST", "/v1/kill/"),
    ("POST", "/v1/lift/"),
    ("POST", "/v1/trip/"),
    ("POST", "/v1/reset/"),
    ("GET", "/v1/kill/"),
    ("GET", "/no/such/path"),
    ("POST", "/ready"),
];

fn start() -> (Serving, Proxy) {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    (upstream, proxy)
}

fn ask(proxy: &Proxy, method: &str, path: &str, fields: &str) -> Answer {
    let mut wire = Wire::connect(proxy.admin_addr());
    let body = r#"{"reason":"let me in"}"#;
    let length = body.len();
    wire.send(&format!(
        "{method} {path} HTTP/1.1\r\nHost: admin\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
    ));
    wire.answer()
}

/// Goal: without exactly one right token nothing is told and nothing is done, on any path but the two probes, and not
/// even whether the path exists.
#[test]
fn nobody_gets_in_without_the_token() {
    let (_upstream, proxy) = start();
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let wrong = [
        String::new(),
        "Authorization: Bearer wrong-wrong-wrong-wrong\r\n".to_owned(),
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &TOKEN[1..]),
        format!("Authorization: Basic {TOKEN}\r\n"),
        format!("Authorization: {TOKEN}\r\n"),
        "Authorization: Bearer\r\n".to_owned(),
        format!("{right}{right}"),
        format!("{right}Authorization: Bearer wrong-wrong-wrong-wrong\r\n"),
        format!("X-Authorization: Bearer {TOKEN}\r\n"),
        format!("Cookie: token={TOKEN}\r\n"),
    ];
    for fields in &wrong {
        for (method, path) in PATHS {
            let answer = ask(&proxy, method, path, fields);
            let told = (answer.status(), answer.head.field("www-authenticate"));
            assert_eq!(told, (401, Some("Bearer")), "{method} {path} {fields:?}");
            assert_eq!(answer.code(), "unauthorized");
            assert!(!answer.text().contains(TOKEN));
        }
    }
    let query = format!("/v1/status?token={TOKEN}");
    assert_eq!(ask(&proxy, "GET", &query, "").status(), 401);
    for path in ["/live", "/ready"] {
        assert_eq!(ask(&proxy, "GET", path, "").status(), 200, "{path} is for probes");
    }
    assert_eq!(proxy.status()["kills"], Value::Array(Vec::new()));
    assert_eq!(proxy.get("").status(), 200);
    assert_eq!(ask(&proxy, "GET", "/v1/status", &right).status(), 200);
    proxy.finish();
}

/// Goal: each path takes its own method and no other; a path that is none says which there are.
#[test]
fn paths_take_their_own_method() {
    let (_upstream, proxy) = start();
    for (method, path, allow) in [
        ("POST", "/v1/status", "GET"),
        ("DELETE", "/metrics", "GET"),
        ("POST", "/live", "GET"),
        ("PUT", "/ready", "GET"),
        ("GET", "/v1/reset/default", "POST"),
        ("PUT", "/v1/lift/", "POST"),
    ] {
        let answer = proxy.admin(method, path, r#"{"reason":"x"}"#);
        assert_eq!(
            (answer.status(), answer.head.field("allow")),
            (405, Some(allow)),
            "{method} {path}"
        );
    }
    for path in
        ["/", "/v1", "/v1/", "/v1/killx/", "/v1/Kill/", "/v2/kill/", "//v1/kill/", "/v1//kill/"]
    {
        let answer = proxy.admin("POST", path, r#"{"reason":"x"}"#);
        assert_eq!((answer.status(), answer.code().as_str()), (404, "not-found"), "{path}");
    }
    assert_eq!(proxy.status()["kills"], Value::Array(Vec::new()));
    // A variable that came out empty, or a switch that is not one, is no order.
    for path in ["/v1/kill", "/v1/lift", "/v1/reset/default?force=1", "/v1/kill/default?level=cut"]
    {
        let answer = proxy.admin("POST", path, r#"{"reason":"x"}"#);
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad-order"), "{path}");
    }
    assert_eq!(proxy.status()["kills"], Value::Array(Vec::new()));
    assert_eq!(proxy.order("kill", "/", r#"{"reason":"x"}"#)["scope"], "/");
    proxy.finish();
}

/// Goal: an order that cannot be read says what is wrong with it, and changes nothing.
#[test]
fn orders_that_cannot_be_read_say_why() {
    let (_upstream, proxy) = start();
    for (body, words) in [
        ("", "EOF"),
        ("reason=x", "expected"),
        (r#"{"reason":"x""#, "EOF"),
        (r#"{"reason":"x","scope":"/"}"#, "scope"),
        (r#"{"reason":"x","level":"cut!"}"#, "cut!"),
        (r#"["x"]"#, ""),
        ("\u{feff}{}", ""),
        ("{}", "reason"),
    ] {
        let answer = proxy.admin("POST", "/v1/kill/", body);
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad-order"), "{body}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(words), "{body}: {detail}");
    }
    let mut wire = Wire::connect(proxy.admin_addr());
    wire.send(&format!(
        "POST /v1/kill/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 4\r\n\r\n"
    ));
    wire.send_bytes(b"\xff\xfe{}");
    assert_eq!(wire.answer().status(), 400);
    let long = format!(r#"{{"reason":"x","actor":"{}"}}"#, "a".repeat(65));
    assert_eq!(proxy.admin("POST", "/v1/kill/", &long).status(), 400);
    assert_eq!(proxy.status()["kills"], Value::Array(Vec::new()));
    proxy.finish();
}

/// Goal: an order has an end: beyond 64 KiB it is 413, told or grown, and nothing is done; just below it is read.
#[test]
fn orders_have_an_end() {
    let (_upstream, proxy) = start();
    let padded = |size: usize| {
        let body = r#"{"reason":"x"}"#;
        format!("{body}{}", " ".repeat(size - body.len()))
    };
    let large = padded(64 * 1024 + 1);
    let answer = proxy.admin("POST", "/v1/kill/", &large);
    assert_eq!((answer.status(), answer.code().as_str()), (413, "body-too-large"));
    let mut wire = Wire::connect(proxy.admin_addr());
    wire.send(&format!(
        "POST /v1/kill/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    ));
    assert_eq!(wire.answer().status(), 413);
    assert_eq!(proxy.status()["kills"], Value::Array(Vec::new()));
    assert_eq!(proxy.admin("POST", "/v1/kill/", &padded(64 * 1024)).status(), 200);
    proxy.finish();
}

/// Goal: whoever dawdles on the admin plane is ended, and keeps nobody out meanwhile, however many they are.
#[test]
fn dawdlers_keep_nobody_out() {
    let (_upstream, proxy) = start();
    let begun = Instant::now();
    let silent: Vec<Wire> = (0..400).map(|_| Wire::connect(proxy.admin_addr())).collect();
    assert_eq!(proxy.halt("/")["durable"], true, "a kill gets through");
    assert!(begun.elapsed() < LIMIT / 2, "and at once");
    drop(silent);
    let mut half = Wire::connect(proxy.admin_addr());
    half.send("POST /v1/kill/ HTTP/1.1\r\nHost: a\r\n");
    let mut slow = Wire::connect(proxy.admin_addr());
    slow.send(&format!(
        "POST /v1/lift/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 50\r\n\r\n{{"
    ));
    let answer = slow.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (408, "request-timeout"));
    half.rest();
    assert_eq!(proxy.state_of("/"), "killed");
    proxy.finish();
}

/// Goal: whoever hangs up after an order does not undo half of it: the kill is in force, on the record and durable.
#[test]
fn an_order_outlives_its_connection() {
    let (_upstream, proxy) = start();
    for round in 0..10 {
        let mut wire = Wire::connect(proxy.admin_addr());
        wire.send(&admin_request("POST", "/v1/kill/default", r#"{"reason":"and gone"}"#));
        drop(wire);
        eventually("the kill", || {
            let kills = proxy.status()["kills"].clone();
            let kills = kills.as_array().unwrap();
            (kills.len() == round + 1 && kills.iter().all(|kill| kill["durable"] == true))
                .then_some(())
        });
    }
    proxy.finish();
}

/// Goal: orders on one connection are carried out one after the other, each with its answer.
#[test]
fn orders_in_one_go_are_carried_out_in_order() {
    let (_upstream, proxy) = start();
    let mut wire = Wire::connect(proxy.admin_addr());
    let (kill, lift) = (r#"{"reason":"x"}"#, r#"{"reason":"x","to":"armed"}"#);
    let batch: String = (0..5)
        .map(|_| {
            admin_request("POST", "/v1/kill/default", kill)
                + &admin_request("POST", "/v1/lift/default", lift)
        })
        .collect();
    wire.send(&batch);
    for _ in 0..5 {
        let killed = wire.answer().json();
        assert_eq!(killed["in_force"], true);
        assert_eq!(wire.answer().json()["lifted"], serde_json::json!([killed["id"]]));
    }
    assert_eq!(proxy.state_of("/default"), "armed");
    proxy.finish();
}

/// Goal: status is JSON that says all there is: version, journal, accounts that balance, keys, kills and every named scope.
#[test]
fn status_says_all_there_is() {
    let (_upstream, proxy) = start();
    assert_eq!(proxy.get("").status(), 200);
    proxy.halt("/default/api");
    assert_eq!(proxy.get("").status(), 503);
    let answer = proxy.admin("GET", "/v1/status", "");
    assert_eq!(answer.head.field("content-type"), Some("application/json"));
    assert_eq!(answer.head.field("cache-control"), Some("no-store"));
    let status = answer.json();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["journal"], &status["balanced"]), (&"ok".into(), &true.into()));
    let accounts = &status["accounts"];
    assert_eq!((&accounts["offered"], &accounts["forwarded"]), (&2.into(), &1.into()));
    assert_eq!(accounts["halted"], 1);
    let scopes: Vec<_> = status["scopes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|scope| (scope["scope"].as_str().unwrap(), scope["state"].as_str().unwrap()))
        .collect();
    assert_eq!(scopes, [("/", "armed"), ("/default", "armed"), ("/default/api", "killed")]);
    assert!(status["keys"]["cells"].is_u64() && status["keys"]["held"].is_u64());
    let kill = &status["kills"][0];
    for (name, value) in [("scope", "/default/api"), ("level", "halt"), ("actor", "admin-token")] {
        assert_eq!(kill[name], value);
    }
    assert!(kill["at"].as_u64() > Some(0));
    proxy.finish();
}

/// One line of the metrics page.
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads the text format of Prometheus, and fails on what it does not allow.
fn parse(text: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
    };
    assert!(text.ends_with('\n'), "the last line has no end");
    let mut types = BTreeMap::new();
    let mut samples = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
            let before = types.insert(name.to_owned(), kind.to_owned());
            assert!(before.is_none(), "declared twice: {name}");
            continue;
        }
        if line.starts_with('#') {
            assert!(line.starts_with("# HELP "), "{line}");
            continue;
        }
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let declared = |name: &str| types.contains_key(name);
        let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|part| {
            let whole = name.strip_suffix(part).and_then(|whole| types.get(whole));
            whole.is_some_and(|kind| kind == "histogram")
        });
        assert!(is_name(name) && (declared(name) || of_histogram), "undeclared: {line}");
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ").unwrap(),
            None => ("", rest.trim_start()),
        };
        let labels: BTreeMap<_, _> = labels
            .split(',')
            .filter(|label| !label.is_empty())
            .map(|label| {
                let (name, value) = label.split_once('=').unwrap();
                let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                assert!(is_name(name), "{line}");
                (name.to_owned(), value.unwrap().to_owned())
            })
            .collect();
        let value = value.parse().unwrap();
        samples.push(Sample { name: name.to_owned(), labels, value });
    }
    (types, samples)
}

/// Goal: the metrics page can be read by Prometheus, and its accounts balance, for each scope and in all.
#[test]
fn metrics_can_be_read_and_balance() {
    let upstream = Serving::ok();
    let lines = "limit = [{ window = \"3/1h\" }]\n[[routes.keys]]\nname = \"client\"\n\
                 from = { header = \"x-client\" }";
    let proxy = Setup { workers: 2, ..Setup::route(upstream.address(), lines) }.start();
    for _ in 0..5 {
        proxy.get("x-client: a\r\n");
    }
    proxy.get("");
    let mut bad = proxy.client();
    bad.send("GET /../ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(bad.answer().status(), 400);
    proxy.halt("/default/api/client=a");
    proxy.get("x-client: a\r\n");
    proxy.halt("/default");
    proxy.get("x-client: b\r\n");
    proxy.lift("/default");
    proxy.settled();

    let answer = proxy.admin("GET", "/metrics", "");
    let kind = answer.head.field("content-type").unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let (types, samples) = parse(&answer.text());
    for (name, kind) in &types {
        assert!(name.starts_with("breaker_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
    }
    let distinct: BTreeSet<_> =
        samples.iter().map(|sample| (sample.name.clone(), sample.labels.clone())).collect();
    assert_eq!(distinct.len(), samples.len(), "a sample stands there twice");

    let value = |name: &str, labels: &[(&str, &str)]| {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(name, value)| sample.labels[*name] == **value)
        };
        samples.iter().filter(fits).map(|sample| sample.value).sum::<f64>()
    };
    let requests = |scope: &str, result: &str| {
        value("breaker_requests_total", &[("scope", scope), ("result", result)])
    };
    let ends = ["forwarded", "throttled", "halted", "invalid", "unrouted", "failed"];
    for scope in ["/default/api", "none"] {
        let sum: f64 = ends.iter().map(|end| requests(scope, end)).sum();
        let waiting = value("breaker_requests_in_flight", &[("scope", scope)]);
        assert_eq!(requests(scope, "offered"), sum + waiting, "{scope}");
    }
    let api = ["offered", "forwarded", "throttled", "halted", "invalid"];
    assert_eq!(api.map(|result| requests("/default/api", result)), [8.0, 3.0, 2.0, 2.0, 1.0]);
    assert_eq!(requests("none", "invalid"), 1.0);
    assert_eq!(value("breaker_kills_total", &[]), 2.0);
    assert_eq!(value("breaker_lifts_total", &[]), 1.0);
    assert_eq!(value("breaker_kills_live", &[]), 1.0);
    assert_eq!(value("breaker_journal_up", &[]), 1.0);
    for scope in ["/", "/default", "/default/api"] {
        assert_eq!(
            value("breaker_state", &[("scope", scope)]),
            1.0,
            "one state at a time: {scope}"
        );
        assert_eq!(value("breaker_state", &[("scope", scope), ("state", "armed")]), 1.0);
    }
    assert!(!answer.text().contains("client=a"), "keys are no labels: there may be very many");
    proxy.finish();
}

/// Goal: every metric that the documentation names is on the page, with the labels it names, a type and a help text; and the page has none that
/// the documentation does not name.
#[test]
fn documentation_and_metrics_page_agree() {
    let upstream = Serving::ok();
    let rules = "limit = [{ window = \"1/1h\", of = \"offered\", on_breach = \"trip\" }]\ndetect = [{ errors = 0.5 }]\n\
        [[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\nlimit = [{ window = \"9/1h\" }]\n\
        detect = [{ streak = 5 }]";
    let proxy = Setup::route(upstream.address(), rules).start();
    for _ in 0..2 {
        proxy.get("x-client: a\r\n");
    }
    proxy.order("trip", "/default/api/client=b", r#"{"reason":"a move of a key"}"#);
    eventually("moves of the route and of a key", || {
        (proxy.metric("breaker_moves_total") >= 2.0).then_some(())
    });
    eventually("a look at the tables", || (proxy.metric("breaker_key_cells") > 0.0).then_some(()));
    let page = proxy.admin("GET", "/metrics", "").text();
    let (types, samples) = parse(&page);
    let on_page: BTreeSet<&str> = types.keys().map(String::as_str).collect();
    let documented = include_str!("../../docs/API.md")
        .split_once("### Metrics")
        .map(|(_, rest)| rest.split("\nKeys are never labels").next().unwrap())
        .unwrap();
    let mut named = BTreeSet::new();
    let here = |word: &&str| word.starts_with("breaker_");
    for word in documented.split('`').filter(here) {
        let (name, labels) = word.split_once('{').unwrap_or((word, "}"));
        named.insert(name);
        let labels: BTreeSet<&str> =
            labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).collect();
        let found: BTreeSet<&str> = samples
            .iter()
            // A histogram is known by how many there are in it.
            .filter(|sample| sample.name.strip_suffix("_count").unwrap_or(&sample.name) == name)
            .flat_map(|sample| sample.labels.keys().map(String::as_str))
            .collect();
        assert_eq!(labels, found, "{name}");
        let help = format!("# HELP {name} ");
        let text = page.lines().find_map(|line| line.strip_prefix(&help));
        assert!(text.is_some_and(|text| text.len() > 10), "{name} has no help text");
    }
    assert_eq!(named, on_page);
    proxy.finish();
}
