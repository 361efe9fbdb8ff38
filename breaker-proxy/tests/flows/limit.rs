//! Limits, trips, probation and shadow, on a clock that only the test moves: every count and every wait is exact.

use super::support::upstream::{Serving, Upstream};
use super::support::wire::Answer;
use super::support::{Proxy, Setup, eventually};
use breaker_core::Span;
use serde_json::Value;

const TRIP: &str = "limit = [{ window = \"3/10s\", of = \"offered\", on_breach = \"trip\" }]";

/// The statuses of so many calls.
fn statuses(proxy: &Proxy, count: usize, fields: &str) -> Vec<u16> {
    (0..count).map(|_| proxy.get(fields).status()).collect()
}

/// Asserts what every refusal by the breaker tells, and gives its document.
fn refusal(answer: &Answer, status: u16, code: &str, scope: &str) -> Value {
    assert_eq!(answer.status(), status, "{}", answer.text());
    assert_eq!(answer.head.field("content-type"), Some("application/problem+json"));
    assert_eq!(answer.head.field("cache-control"), Some("no-store"));
    let document = answer.json();
    assert_eq!(document["type"], format!("urn:breaker:problem:{code}"));
    assert_eq!(document["code"], code);
    assert_eq!(document["status"], status);
    assert_eq!(document["scope"], scope);
    for name in ["title", "detail", "cause"] {
        assert!(document[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {document}");
    }
    document
}

/// Goal: a window lets exactly its number pass, says exactly how long to wait, and lets exactly its number pass again then.
#[test]
fn a_window_is_exact() {
    let upstream = Serving::ok();
    let proxy =
        Setup::route(upstream.address(), "limit = [{ window = \"5/10s\" }]").start_clocked();
    assert_eq!(statuses(&proxy, 5, ""), [200; 5]);
    for (wait, left) in [(0, 10_000_u64), (9_000, 1_000), (999, 1)] {
        proxy.advance(Span::from_millis(wait));
        let answer = proxy.get("");
        let document = refusal(&answer, 429, "limited", "/default/api");
        assert_eq!(document["cause"], "limit");
        assert_eq!(document["wait_ms"], left);
        assert_eq!(document.get("id"), None, "a limit has no id");
        let seconds = u64::max(1, left.div_ceil(1000));
        assert_eq!(answer.head.field("retry-after"), Some(seconds.to_string().as_str()));
        let now = format!("\"route-0\";r=0;t={seconds}");
        assert_eq!(answer.head.field("ratelimit"), Some(now.as_str()));
        assert_eq!(answer.head.field("ratelimit-policy"), Some("\"route-0\";q=5;w=10"));
    }
    proxy.advance(Span::from_millis(1));
    assert_eq!(statuses(&proxy, 6, ""), [200, 200, 200, 200, 200, 429]);
    let accounts = proxy.finish();
    assert_eq!((&accounts["forwarded"], &accounts["throttled"]), (&10.into(), &4.into()));
    assert_eq!(upstream.heard().len(), 10, "what was refused was not sent");
}

/// Goal: a rate lets its burst pass at once, then one call for each interval, to the millisecond.
#[test]
fn a_rate_is_exact() {
    let upstream = Serving::ok();
    let proxy =
        Setup::route(upstream.address(), "limit = [{ rate = \"2/s\", burst = 3 }]").start_clocked();
    assert_eq!(statuses(&proxy, 4, ""), [200, 200, 200, 429]);
    let answer = proxy.get("");
    assert_eq!(answer.json()["wait_ms"], 500);
    assert_eq!(answer.head.field("retry-after"), Some("1"), "rounded up, never 0");
    assert_eq!(answer.head.field("ratelimit-policy"), Some("\"route-0\";q=2;w=1"));
    proxy.advance(Span::from_millis(499));
    assert_eq!(proxy.get("").status(), 429);
    proxy.advance(Span::from_millis(1));
    assert_eq!(statuses(&proxy, 2, ""), [200, 429]);
    proxy.advance(Span::from_secs(3600));
    assert_eq!(statuses(&proxy, 4, ""), [200, 200, 200, 429], "no more than the burst, ever");
    proxy.finish();
}

/// Goal: a 429 tells what is left only where that is wanted, and when to come again in every case.
#[test]
fn rate_limit_fields_can_be_switched_off() {
    let upstream = Serving::ok();
    let proxy = Setup {
        wire: "rate_limit_fields = false",
        ..Setup::route(upstream.address(), "limit = [{ window = \"1/10s\" }]")
    }
    .start_clocked();
    assert_eq!(proxy.get("").status(), 200);
    let answer = proxy.get("");
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.head.field("retry-after"), Some("10"));
    assert_eq!(answer.head.field("ratelimit"), None);
    assert_eq!(answer.head.field("ratelimit-policy"), None);
    proxy.finish();
}

/// Goal: each key has a limit of its own, named in the refusal; a noisy one drains neither its neighbours nor what is wider.
#[test]
fn a_noisy_key_drains_nobody_else() {
    let upstream = Serving::ok();
    let lines = "limit = [{ window = \"4/10s\" }]\n[[routes.keys]]\nname = \"client\"\n\
                 from = { header = \"x-client\" }\nlimit = [{ window = \"2/10s\" }]";
    let proxy = Setup::route(upstream.address(), lines).start_clocked();
    let noisy = "x-client: a b/c\r\n";
    assert_eq!(statuses(&proxy, 2, noisy), [200; 2]);
    for _ in 0..50 {
        let answer = proxy.get(noisy);
        refusal(&answer, 429, "limited", "/default/api/client=a%20b%2Fc");
        assert_eq!(answer.head.field("ratelimit-policy"), Some("\"key-0\";q=2;w=10"));
    }
    assert_eq!(statuses(&proxy, 3, "x-client: b\r\n"), [200, 200, 429]);
    // The four that passed fill the route; that is what a new key now meets.
    refusal(&proxy.get("x-client: c\r\n"), 429, "limited", "/default/api");
    proxy.finish();
}

/// Goal: those who lack a key share one cell where the policy says so, and have no name.
#[test]
fn who_lacks_a_key_shares_one_cell() {
    let upstream = Serving::ok();
    let lines = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n\
                 missing = \"share\"\nlimit = [{ window = \"2/10s\" }]";
    let proxy = Setup::route(upstream.address(), lines).start_clocked();
    assert_eq!(statuses(&proxy, 3, ""), [200, 200, 429]);
    assert_eq!(statuses(&proxy, 2, "x-client: a\r\n"), [200; 2], "a named one is not among them");
    assert_eq!(proxy.get("x-client:\r\n").status(), 429, "an empty name is none");
    proxy.finish();
}

/// Goal: a limit of a group or of everything is shared by what is in it, and by nothing else.
#[test]
fn wider_limits_are_shared() {
    let upstream = Serving::ok();
    let address = upstream.address();
    let route = |name: &str, group: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\ngroup = \"{group}\"\nupstream = \"http://{address}\"\n\
             match = {{ path = \"/{name}\" }}\n"
        )
    };
    let groups = "[[groups]]\nname = \"one\"\nlimit = [{ window = \"3/10s\" }]\n\
                  [[groups]]\nname = \"two\"\n";
    let rules = [
        "[global]\nlimit = [{ window = \"5/10s\" }]\n",
        groups,
        &route("a", "one"),
        &route("b", "one"),
        &route("c", "two"),
    ]
    .concat();
    let proxy = Setup::new(rules).start_clocked();
    let call = |path: &str| {
        let mut client = proxy.client();
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.answer()
    };
    assert_eq!(["/a", "/b", "/a"].map(|path| call(path).status()), [200; 3]);
    refusal(&call("/b"), 429, "limited", "/one");
    assert_eq!(
        ["/c", "/c"].map(|path| call(path).status()),
        [200; 2],
        "the refused one cost nothing"
    );
    refusal(&call("/c"), 429, "limited", "/");
    proxy.finish();
}

/// Goal: a limit may trip: from the call that exceeds it on the scope is halted, without an end that anybody could wait
/// for, however far the clock moves; a reset brings it back with a clean slate.
#[test]
fn a_trip_holds_until_it_is_reset() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), TRIP).start_clocked();
    assert_eq!(statuses(&proxy, 3, ""), [200; 3]);
    let first = refusal(&proxy.get(""), 503, "tripped", "/default/api");
    let id = first["id"].as_str().expect("a trip has an id").to_owned();
    for days in [0, 1, 7, 13, 14, 60, 400] {
        proxy.advance(Span::from_secs(days * 86_400));
        let answer = proxy.get("");
        let document = refusal(&answer, 503, "tripped", "/default/api");
        assert_eq!(document["id"], id.as_str(), "after {days} days more");
        assert_eq!(document.get("wait_ms"), None);
        assert_eq!(answer.head.field("retry-after"), None);
        assert_eq!(answer.head.field("ratelimit"), None);
    }
    let shown = proxy.scope("/default/api");
    assert_eq!((&shown["state"], &shown["limit"]), (&"tripped".into(), &0.into()));
    assert_eq!(shown["id"], id.as_str());
    eventually("the trip in the metrics", || {
        (proxy.metric("breaker_trips_total") == 1.0).then_some(())
    });
    let reset = proxy.order("reset", "/default/api", r#"{"reason":"mended"}"#);
    assert_eq!((&reset["state"], &reset["durable"]), (&"armed".into(), &true.into()));
    assert_eq!(statuses(&proxy, 4, ""), [200, 200, 200, 503], "and it trips again");
    assert_eq!(upstream.heard().len(), 6);
    let accounts = proxy.finish();
    assert_eq!((&accounts["halted"], &accounts["throttled"]), (&9.into(), &0.into()), "{accounts}");
}

/// Goal: a limit on what is offered sees the calls that a stricter limit refuses, so that whoever does not slow down trips.
#[test]
fn hammering_on_a_refusal_trips() {
    let upstream = Serving::ok();
    let lines = "limit = [{ window = \"1/10s\" }, \
                 { window = \"4/10s\", of = \"offered\", on_breach = \"trip\" }]";
    let proxy = Setup::route(upstream.address(), lines).start_clocked();
    assert_eq!(statuses(&proxy, 5, ""), [200, 429, 429, 429, 503]);
    proxy.advance(Span::from_secs(100));
    assert_eq!(proxy.get("").status(), 503);
    assert_eq!(upstream.heard().len(), 1);
    proxy.finish();
}

/// Goal: a tripped key is alone: other keys and calls without a key pass, and status shows it by name.
#[test]
fn a_tripped_key_is_alone() {
    let upstream = Serving::ok();
    let lines = format!(
        "[[routes.keys]]\nname = \"peer\"\nfrom = \"peer\"\n\
         [[routes.keys]]\nname = \"client\"\nfrom = {{ header = \"x-client\" }}\nmissing = \"skip\"\n{TRIP}"
    );
    let proxy = Setup::route(upstream.address(), &lines).start_clocked();
    assert_eq!(statuses(&proxy, 5, "x-client: mad\r\n"), [200, 200, 200, 503, 503]);
    let path = "/default/api/client=mad";
    let document = refusal(&proxy.get("x-client: mad\r\n"), 503, "tripped", path);
    assert_eq!(statuses(&proxy, 3, "x-client: calm\r\n"), [200; 3]);
    assert_eq!(statuses(&proxy, 5, ""), [200; 5]);
    let shown = proxy.scope(path);
    assert_eq!((&shown["state"], &shown["id"]), (&"tripped".into(), &document["id"]));
    assert_eq!(proxy.state_of("/default/api"), "armed");
    // Its window is still full: a reset alone would let the next call trip it again.
    proxy.advance(Span::from_secs(10));
    proxy.order("reset", path, r#"{"reason":"calmed down"}"#);
    assert_eq!(proxy.get("x-client: mad\r\n").status(), 200);
    assert_eq!(proxy.scope(path), Value::Null, "an armed key is not shown");
    proxy.finish();
}

/// Goal: a trip by hand says so, has the id that its answer gave, and tells nobody to come again.
#[test]
fn a_trip_by_hand_waits_for_a_person() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start_clocked();
    let answer = proxy.order("trip", "/default", r#"{"reason":"odd numbers"}"#);
    assert_eq!((&answer["state"], &answer["durable"]), (&"tripped".into(), &true.into()));
    let refused = proxy.get("");
    let document = refusal(&refused, 503, "tripped", "/default");
    assert_eq!(document["cause"], "tripped by hand");
    assert_eq!(document["id"], answer["id"]);
    assert_eq!(refused.head.field("retry-after"), None);
    let again = proxy.order("trip", "/default", r#"{"reason":"twice"}"#);
    assert_eq!(again["state"], "tripped");
    proxy.order("reset", "/default", r#"{"reason":"fine"}"#);
    assert_eq!(proxy.get("").status(), 200);
    proxy.finish();
}

/// Goal: a tripped scope that may come back by itself says when, lets exactly its probes pass then, and is armed when all
/// were answered well.
#[test]
fn probation_lets_exactly_its_probes_pass() {
    let upstream = Upstream::start();
    let recover = "recover = { probes = 2, after = \"5s\", at_most = \"1m\" }";
    let proxy = Setup::route(upstream.address(), recover).start_clocked();
    proxy.order("trip", "/default/api", r#"{"reason":"test"}"#);
    let answer = proxy.get("");
    let document = refusal(&answer, 503, "tripped", "/default/api");
    // Holds are kept in units of some 17 ms, rounded up: never shorter than told.
    let wait = document["wait_ms"].as_u64().unwrap();
    assert!((5_000..5_040).contains(&wait), "{wait}");
    assert_eq!(answer.head.field("retry-after"), Some(wait.div_ceil(1000).to_string().as_str()));
    proxy.advance(Span::from_millis(wait - 20));
    refusal(&proxy.get(""), 503, "tripped", "/default/api");
    proxy.advance(Span::from_millis(20));

    let mut probes = [proxy.client(), proxy.client()];
    let mut exchanges = Vec::new();
    for probe in &mut probes {
        probe.send("GET /probe HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchanges.push(exchange);
    }
    assert_eq!(proxy.state_of("/default/api"), "half-open");
    for _ in 0..5 {
        refusal(&proxy.get(""), 503, "probing", "/default/api");
    }
    for (probe, exchange) in probes.iter_mut().zip(&mut exchanges) {
        exchange.reply("well");
        assert_eq!(probe.answer().status(), 200);
    }
    assert_eq!(proxy.state_of("/default/api"), "armed");
    upstream.assert_nobody();
    proxy.finish();
}

/// Goal: a probe that fails trips the scope again, for twice as long and a little more; a probe whose client leaves is given back.
#[test]
fn a_failed_probe_trips_again_for_longer() {
    let upstream = Upstream::start();
    let recover = "recover = { probes = 1, after = \"5s\", at_most = \"12s\" }";
    let proxy = Setup::route(upstream.address(), recover).start_clocked();
    proxy.order("trip", "/default/api", r#"{"reason":"test"}"#);
    let mut exchange = None;
    for hold in [5_000, 10_000, 12_000, 12_000] {
        let wait = proxy.get("").json()["wait_ms"].as_u64().unwrap();
        // Rounded up before it is doubled; from the second on up to a quarter longer, within the longest.
        let spread = if hold == 5_000 { 0 } else { hold / 4 };
        assert!((hold..(hold + spread).min(12_000) + 80).contains(&wait), "{wait} for {hold}");
        proxy.advance(Span::from_millis(wait));
        // This one leaves before its answer: nothing is learned from it.
        let mut gone = proxy.client();
        gone.send("GET /gone HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut left = exchange.take().unwrap_or_else(|| upstream.accept());
        left.request();
        drop(gone);
        left.assert_ends();
        let mut probe = proxy.client();
        probe.send("GET /probe HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut sick = upstream.accept();
        sick.request();
        sick.send("HTTP/1.1 500 Sick\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(probe.answer().status(), 500, "the probe itself gets its answer");
        assert_eq!(proxy.state_of("/default/api"), "tripped");
        exchange = Some(sick);
    }
    assert_eq!(proxy.scope("/default/api")["strikes"], 5);
    proxy.finish();
}

/// Goal: shadow counts every refusal it would have made, makes none, and tells its state by name; a kill is never in shadow.
#[test]
fn shadow_refuses_nothing_but_a_kill() {
    let upstream = Serving::ok();
    let lines = "mode = \"shadow\"\nlimit = [{ window = \"2/10s\" }, \
                 { window = \"5/10s\", of = \"offered\", on_breach = \"trip\" }]";
    let proxy = Setup::route(upstream.address(), lines).start_clocked();
    assert_eq!(statuses(&proxy, 10, ""), [200; 10]);
    assert_eq!(proxy.account("shadowed"), 8);
    assert_eq!(proxy.account("throttled") + proxy.account("halted"), 0);
    let shown = proxy.scope("/default/api");
    assert_eq!((&shown["state"], &shown["mode"]), (&"shadow".into(), &"shadow".into()));
    proxy.halt("/default/api");
    refusal(&proxy.get(""), 503, "killed", "/default/api");
    assert_eq!(proxy.state_of("/default/api"), "killed");
    proxy.lift("/default/api");
    assert_eq!(proxy.get("").status(), 200);
    proxy.finish();
}

/// Goal: what lowers risk passes a halt and a trip, at every level above it and at its own, and does not pass a cut.
#[test]
fn reducing_calls_pass_a_halt_and_a_trip_but_no_cut() {
    let upstream = Serving::ok();
    let address = upstream.address();
    let proxy = Setup::new(format!(
        "[[groups]]\nname = \"pay\"\n\
         [[routes]]\nname = \"order\"\ngroup = \"pay\"\nupstream = \"http://{address}\"\n\
         match = {{ method = \"POST\", path = \"/orders\" }}\n\
         [[routes]]\nname = \"cancel\"\ngroup = \"pay\"\nupstream = \"http://{address}\"\n\
         match = {{ method = \"DELETE\", path = \"/orders/{{id}}\" }}\nclass = \"reducing\"\n"
    ))
    .start_clocked();
    let call = |target: &str| {
        let mut client = proxy.client();
        client.send(&format!("{target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.answer().status()
    };
    let both = || (call("POST /orders"), call("DELETE /orders/1"));
    assert_eq!(both(), (200, 200));
    for scope in ["/", "/pay"] {
        proxy.halt(scope);
        assert_eq!(both(), (503, 200), "halted {scope}");
        proxy.cut(scope);
        assert_eq!(both(), (503, 503), "cut {scope}");
        proxy.lift(scope);
        assert_eq!(both(), (200, 200), "lifted {scope}");
        proxy.order("trip", scope, r#"{"reason":"test"}"#);
        assert_eq!(both(), (503, 200), "tripped {scope}");
        proxy.order("reset", scope, r#"{"reason":"test"}"#);
    }
    proxy.halt("/pay/cancel");
    assert_eq!(both(), (200, 200), "halted by its own name it still reduces");
    proxy.cut("/pay/cancel");
    assert_eq!(both(), (200, 503));
    proxy.finish();
}

/// Goal: what may pass a halt is what its method says: fields by which some servers read another method are refused there, and
/// pass elsewhere.
#[test]
fn a_reducing_call_is_what_its_method_says() {
    let names = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"];
    for (class, status) in [("reducing", 400), ("normal", 200)] {
        let upstream = Serving::ok();
        let class = format!("class = \"{class}\"");
        let proxy = Setup::route(upstream.address(), &class).start();
        for name in names {
            assert_eq!(proxy.get(&format!("{name}: POST\r\n")).status(), status, "{class}: {name}");
        }
        assert_eq!(proxy.get("").status(), 200);
        proxy.finish();
    }
}

/// Goal: orders that do not fit a scope's state change nothing and say so.
#[test]
fn orders_that_do_not_fit_are_refused() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start_clocked();
    let order = |verb: &str| {
        let answer =
            proxy.admin("POST", &format!("/v1/{verb}/default/api"), r#"{"reason":"test"}"#);
        (answer.status(), answer.json()["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(order("lift"), (409, "not-killed".to_owned()));
    assert_eq!(order("reset").0, 200, "nothing to do is no error");
    proxy.halt("/default/api");
    assert_eq!(order("reset"), (409, "killed".to_owned()));
    assert_eq!(order("trip"), (409, "killed".to_owned()));
    assert_eq!(proxy.state_of("/default/api"), "killed");
    assert_eq!(proxy.get("").status(), 503);
    proxy.finish();
}

/// Goal: strangers cannot push a known key out of its limit: beyond the table they share one cell, which throttles, and
/// never trips; who was tripped stays so.
#[test]
fn strangers_beyond_the_table_share_and_free_nobody() {
    let upstream = Serving::ok();
    let lines = format!(
        "[[routes.keys]]\nname = \"peer\"\nfrom = \"peer\"\n\
         [[routes.keys]]\nname = \"client\"\nfrom = {{ header = \"x-client\" }}\n{TRIP}"
    );
    let proxy =
        Setup { bounds: "keys = 64", ..Setup::route(upstream.address(), &lines) }.start_clocked();
    assert_eq!(statuses(&proxy, 4, "x-client: mad\r\n"), [200, 200, 200, 503]);
    let mut client = proxy.client();
    for number in 0..2_000 {
        client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\nx-client: n{number}\r\n\r\n"));
        let status = client.answer().status();
        assert!(status == 200 || status == 429, "{status} for stranger {number}");
    }
    assert_eq!(proxy.get("x-client: mad\r\n").status(), 503, "still tripped");
    let keys = proxy.status()["keys"].clone();
    assert!(keys["held"].as_u64() <= keys["cells"].as_u64(), "{keys}");
    assert!(keys["overflowed"].as_u64() > Some(0), "{keys}");
    proxy.finish();
}

/// Goal: a client that sends its body slowly cannot hold the only probe for longer than `answer`, however steadily it sends.
#[test]
fn a_slow_upload_held_the_probe_for_ever() {
    let upstream = Serving::ok();
    let rules = "recover = { probes = 1, after = \"1s\", at_most = \"1m\" }";
    let mut setup = Setup::route(upstream.address(), rules);
    setup.deadlines = "answer = \"300ms\"";
    let proxy = setup.start_clocked();
    proxy.order("trip", "/default/api", r#"{"reason":"test"}"#);
    proxy.advance(Span::from_secs(2));
    let mut slow = proxy.client();
    slow.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx");
    eventually("the end of the slow probe", || {
        slow.send_bytes(b"x");
        (proxy.get("").status() == 200).then_some(())
    });
    drop(slow);
    proxy.finish();
}

/// Goal: a budget lets its number pass in all, tells nobody to come again, forgets after its pause without a call, and begins anew after
/// a reset.
#[test]
fn a_budget_ends_until_it_is_reset_or_idle() {
    let upstream = Serving::ok();
    let rules = "[[routes.keys]]\nname = \"parent\"\nfrom = { header = \"x-parent\" }\n\
                 limit = [{ budget = 3, idle = \"1h\" }]";
    let proxy = Setup::route(upstream.address(), rules).start_clocked();
    let (a, b) = ("x-parent: a\r\n", "x-parent: b\r\n");
    assert_eq!(statuses(&proxy, 3, a), [200; 3]);
    proxy.advance(Span::from_secs(3_599));
    let answer = proxy.get(a);
    let document = refusal(&answer, 429, "limited", "/default/api/parent=a");
    assert_eq!(answer.head.field("ratelimit"), None, "no time refills it but a pause");
    assert_eq!(document["wait_ms"], 1_000, "what was refused is no call");
    assert_eq!(statuses(&proxy, 1, b), [200]);
    proxy.advance(Span::from_secs(1));
    assert_eq!(statuses(&proxy, 4, a), [200, 200, 200, 429], "forgotten after the pause");
    proxy.order("reset", "/default/api/parent=a", r#"{"reason":"another order"}"#);
    assert_eq!(statuses(&proxy, 4, a), [200, 200, 200, 429]);
    proxy.finish();
}

/// Goal: a call is in flight until its whole answer has come, not only its head; who breaks off gives its place back, and so does one
/// whose upstream cannot be reached.
#[test]
fn a_call_is_in_flight_until_its_answer_has_ended() {
    let upstream = Upstream::start();
    let rules = "limit = [{ name = \"cap\", in_flight = 2 }, { name = \"all\", budget = 100 }]";
    let proxy = Setup::route(upstream.address(), rules).start_clocked();
    let used = |name: &str| {
        let status = proxy.status();
        let limits = status["limits"].as_array().unwrap().clone();
        limits.into_iter().find(|limit| limit["limit"] == name).unwrap()["used"].as_u64().unwrap()
    };
    let begin = || {
        let mut client = proxy.client();
        client.send("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        client.head();
        assert_eq!(client.exactly(4), Ok(b"half".to_vec()));
        (client, exchange)
    };
    let (mut first, mut flowing) = begin();
    let (second, other) = begin();
    assert_eq!(used("cap"), 2);
    let answer = proxy.get("");
    let document = refusal(&answer, 429, "limited", "/default/api");
    assert!(document.get("wait_ms").is_none(), "nobody knows when an answer ends: {document}");
    flowing.send("rest");
    assert_eq!(first.exactly(4), Ok(b"rest".to_vec()));
    eventually("the place back", || (used("cap") == 1).then_some(()));
    drop(second);
    eventually("the other place back", || (used("cap") == 0).then_some(()));
    drop(other);
    let labels = [r#"limit="cap""#, r#"result="enforced""#];
    assert_eq!(proxy.line("breaker_limit_refusals_total", &labels), 1.0);
    assert_eq!(proxy.line("breaker_limit_headroom", &[r#"limit="cap""#]), 2.0);
    assert_eq!(proxy.line("breaker_limit_bound", &[r#"limit="cap""#]), 2.0);
    assert_eq!(used("all"), 2, "the refused one cost nothing");
    proxy.finish();
}

/// Goal: a client that leaves before anything of its call was sent has cost nothing.
#[test]
fn what_never_left_costs_no_budget() {
    let full = super::support::upstream::FullQueue::new();
    let rules = "limit = [{ budget = 5 }, { in_flight = 5 }]";
    let proxy = Setup { deadlines: "connect = \"1m\"", ..Setup::route(full.address, rules) }
        .start_clocked();
    let used = || -> Vec<u64> {
        let status = proxy.status();
        let limits = status["limits"].as_array().unwrap();
        limits.iter().map(|limit| limit["used"].as_u64().unwrap()).collect()
    };
    let mut client = proxy.client();
    client.send("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the call admitted", || (used() == [1, 1]).then_some(()));
    drop(client);
    eventually("all of it back", || (used() == [0, 0]).then_some(()));
    assert_eq!(proxy.account("failed"), 1);
    proxy.finish();
}

/// Goal: a candidate denies nothing and is counted as one, beside the limit that is enforced; in shadow mode what would have been refused is
/// counted apart from both.
#[test]
fn candidates_and_shadow_are_told_apart_from_what_is_enforced() {
    let upstream = Serving::ok();
    let rules = "limit = [{ name = \"live\", window = \"4/10s\" }, \
                 { name = \"tried\", window = \"2/10s\", on_breach = \"trip\", candidate = true }]";
    let proxy = Setup::route(upstream.address(), rules).start_clocked();
    assert_eq!(statuses(&proxy, 5, ""), [200, 200, 200, 200, 429]);
    assert_eq!(proxy.state_of("/default/api"), "armed", "a candidate trips nothing");
    let count = |proxy: &Proxy, limit: &str, result: &str| {
        let labels = [format!("limit=\"{limit}\""), format!("result=\"{result}\"")];
        proxy.line("breaker_limit_refusals_total", &labels.each_ref().map(String::as_str))
    };
    assert_eq!(count(&proxy, "live", "enforced"), 1.0);
    assert_eq!(
        (count(&proxy, "tried", "candidate"), count(&proxy, "tried", "enforced")),
        (2.0, 0.0)
    );
    proxy.finish();

    let shadow = "mode = \"shadow\"\nlimit = [{ name = \"live\", window = \"2/10s\" }]";
    let proxy = Setup::route(upstream.address(), shadow).start_clocked();
    assert_eq!(statuses(&proxy, 5, ""), [200; 5]);
    assert_eq!((count(&proxy, "live", "shadow"), count(&proxy, "live", "enforced")), (3.0, 0.0));
    proxy.finish();
}

/// Goal: a value with limits of its own has those instead of the dimension's, and one with none has none; all others are as they were.
#[test]
fn a_value_may_have_limits_of_its_own() {
    let upstream = Serving::ok();
    let rules = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n\
        limit = [{ window = \"2/10s\" }]\n\
        [[routes.keys.overrides]]\nkey = \"big one\"\nlimit = [{ window = \"4/10s\" }]\n\
        [[routes.keys.overrides]]\nkey = \"42\"\n";
    let proxy = Setup::route(upstream.address(), rules).start_clocked();
    assert_eq!(statuses(&proxy, 5, "x-client: big one\r\n"), [200, 200, 200, 200, 429]);
    assert_eq!(statuses(&proxy, 9, "x-client: 42\r\n"), [200; 9]);
    assert_eq!(statuses(&proxy, 3, "x-client: other\r\n"), [200, 200, 429]);
    proxy.finish();
}

/// Goal: values beyond what newcomers allow share one cell, so that made-up names get no limit each; who was known before keeps its own.
#[test]
fn made_up_names_share_one_cell() {
    let upstream = Serving::ok();
    let rules = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\n\
        newcomers = { rate = \"1/h\", burst = 2 }\nlimit = [{ window = \"3/10s\" }]";
    let proxy = Setup::route(upstream.address(), rules).start_clocked();
    assert_eq!(statuses(&proxy, 1, "x-client: known\r\n"), [200]);
    let strangers: Vec<u16> = (0..20)
        .map(|number| proxy.get(&format!("x-client: made-up-{number}\r\n")).status())
        .collect();
    let passed = strangers.iter().filter(|status| **status == 200).count();
    assert_eq!(passed, 4, "one of its own, three shared: {strangers:?}");
    assert_eq!(statuses(&proxy, 3, "x-client: known\r\n"), [200, 200, 429]);
    let dimension = [r#"scope="/default/api""#, r#"dimension="client""#];
    eventually("the count of those turned away", || {
        (proxy.line("breaker_key_turned_away_total", &dimension) >= 18.0).then_some(())
    });
    proxy.finish();
}
