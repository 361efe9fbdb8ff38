//! What people see of each request: its times, its line in the access log, its id and its place in a trace.

use crate::support::h2::{Event, H2};
use crate::support::h2_server::Far;
use crate::support::upstream::{Serving, Upstream};
use crate::support::{Proxy, Setup, eventually, room};
use breaker_core::{Mono, Span};
use breaker_proxy::ports::{Clock, Wall};
use hyper::Request;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

const GET: &str = "GET /x HTTP/1.1\r\nhost: a\r\n\r\n";

/// How many requests of one ending were timed, and the sums of both times in seconds.
fn times(proxy: &Proxy, scope: &str, result: &str) -> (f64, f64, f64) {
    let labels = [format!("scope=\"{scope}\""), format!("result=\"{result}\"")];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let line = |name: &str| proxy.line(name, &labels);
    (
        line("breaker_request_seconds_count"),
        line("breaker_request_seconds_sum"),
        line("breaker_request_added_seconds_sum"),
    )
}

fn timed(proxy: &Proxy, scope: &str, result: &str, count: f64) -> (f64, f64) {
    eventually("a request that was timed", || {
        let (found, whole, added) = times(proxy, scope, result);
        (found >= count).then_some((whole, added))
    })
}

/// Time passes while the only worker waits: it has done all that it had to do before.
fn lapse(proxy: &Proxy, span: Span) {
    proxy.rest();
    proxy.advance(span);
}

/// A clock that moves by a microsecond whenever a data thread looks at it, and counts that.
#[derive(Default)]
struct Ticking(AtomicU64);

impl Ticking {
    fn looks(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.0.load(Ordering::Relaxed)
    }
}

impl Clock for Ticking {
    fn mono(&self) -> Mono {
        let thread = std::thread::current();
        let step = u64::from(thread.name().is_some_and(|name| name.starts_with("breaker-data")));
        // ordering: relaxed, a number on its own.
        let looks = self.0.fetch_add(step, Ordering::Relaxed) + step;
        Mono::from_nanos(1_000_000_000 + looks * 1_000)
    }

    fn wall(&self) -> Wall {
        Wall(0)
    }
}

/// Goal: an upstream that lets wait makes the whole longer, and not what was added.
#[test]
fn a_wait_for_the_upstream_is_not_added() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start_clocked();
    let mut client = proxy.client();
    client.send(GET);
    let mut server = upstream.accept();
    server.request();
    lapse(&proxy, Span::from_secs(3));
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha");
    client.until(b"\r\n\r\nha").unwrap();
    lapse(&proxy, Span::from_secs(4));
    server.send("lf");
    client.until(b"lf").unwrap();
    assert_eq!(timed(&proxy, "/default/api", "passed", 1.0), (7.0, 0.0));
    assert_eq!(times(&proxy, "/default/api", "failed").0, 0.0);
    proxy.finish();
}

/// Goal: a client that sends its head or body slowly, or takes its answer late, adds nothing either.
#[test]
fn a_wait_for_the_client_is_not_added() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start_clocked();
    let mut client = proxy.client();
    client.send("POST /x HTTP/1.1\r\nhost: a\r\n");
    lapse(&proxy, Span::from_secs(2));
    client.send("content-length: 4\r\n\r\nha");
    let mut server = upstream.accept();
    server.until(b"\r\n\r\nha").unwrap();
    lapse(&proxy, Span::from_secs(5));
    client.send("lf");
    server.until(b"lf").unwrap();
    server.reply("ok");
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(timed(&proxy, "/default/api", "passed", 1.0), (7.0, 0.0));
    proxy.finish();
}

/// Goal: what the proxy itself takes is what was added, a refusal is wholly its own, and what is kept alive begins anew with each request.
#[test]
fn what_we_take_is_added() {
    let clock: &'static Ticking = Box::leak(Box::default());
    let upstream = Serving::ok();
    let lines = "limit = [{ window = \"2/1h\" }]";
    let proxy = Setup::route(upstream.address(), lines).start_with_clock(clock);
    let mut client = proxy.client();
    for expected in [200, 200, 429] {
        client.send(GET);
        assert_eq!(client.answer().status(), expected);
    }
    let (whole, added) = timed(&proxy, "/default/api", "passed", 2.0);
    assert!(added > 0.0 && added < whole, "{added} of {whole}");
    let (whole, added) = timed(&proxy, "/default/api", "refused", 1.0);
    assert!(whole > 0.0);
    assert_eq!(whole, added);
    client.send("GET // HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.answer().status(), 400);
    timed(&proxy, "none", "refused", 1.0);
    proxy.finish();
}

/// Goal: to time a request costs one look at the clock: six where five decide, send, settle and free its place.
#[test]
fn timing_costs_one_look_at_the_clock() {
    let clock: &'static Ticking = Box::leak(Box::default());
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start_with_clock(clock);
    let mut client = proxy.client();
    let mut call = || {
        client.send(GET);
        assert_eq!(client.answer().text(), "ok");
    };
    // The first one makes the connection to the upstream.
    call();
    let count = timed(&proxy, "/default/api", "passed", 1.0);
    let before = clock.looks();
    for _ in 0..10 {
        call();
    }
    assert!(timed(&proxy, "/default/api", "passed", 11.0) > count);
    let looks = clock.looks() - before;
    assert!(looks <= 60, "{looks} looks");
    proxy.finish();
}

/// Goal: a client that leaves, and an upstream that breaks off, have failed, whatever the head of the answer said.
#[test]
fn half_an_answer_has_failed() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send(GET);
    let mut server = upstream.accept();
    server.request();
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha");
    client.until(b"ha").unwrap();
    drop(server);
    client.rest();
    timed(&proxy, "/default/api", "failed", 1.0);
    let mut client = proxy.client();
    client.send(GET);
    let mut server = upstream.accept();
    server.request();
    drop(client);
    timed(&proxy, "/default/api", "failed", 2.0);
    assert_eq!(times(&proxy, "/default/api", "passed").0, 0.0);
    proxy.finish();
}

/// Goal: HTTP/2 streams are timed each on its own, also those without a body and those that their client takes back.
#[test]
fn streams_are_timed_each_on_its_own() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start_clocked();
    let client = H2::connect(proxy.data());
    let (one, other) = (client.get("/1"), client.get("/2"));
    let (mut first, mut second) = (upstream.accept(), upstream.accept());
    first.request();
    second.request();
    lapse(&proxy, Span::from_secs(1));
    first.reply("ok");
    second.send("HTTP/1.1 204 No Content\r\n\r\n");
    for stream in [&one, &other] {
        stream.head();
        assert!(stream.rest().1);
    }
    assert_eq!(timed(&proxy, "/default/api", "passed", 2.0), (2.0, 0.0));
    drop(client);
    proxy.finish();
}

/// Goal: an upstream by HTTP/2 that lets wait adds nothing either.
#[test]
fn a_wait_for_an_http2_upstream_is_not_added() {
    let upstream = Upstream::start();
    let proxy = Setup::new(format!(
        "[[upstreams]]\nname = \"u\"\nendpoints = \"http://{}\"\nprotocol = \"h2\"\n\
         [[routes]]\nname = \"api\"\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"u\"\n",
        upstream.address()
    ))
    .start_clocked();
    let mut client = proxy.client();
    client.send(GET);
    let mut far = Far::accept(&upstream, &[]);
    let stream = far.request();
    lapse(&proxy, Span::from_secs(3));
    far.head(stream, false);
    client.head();
    lapse(&proxy, Span::from_secs(4));
    far.data(stream, b"ok", true);
    client.chunk().unwrap();
    assert_eq!(timed(&proxy, "/default/api", "passed", 1.0), (7.0, 0.0));
    proxy.finish();
}

/// Goal: a gRPC answer that broke off has failed, though its client is told by a status that looks like any end.
#[test]
fn a_grpc_answer_that_broke_off_has_failed() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let client = H2::connect(proxy.data());
    for (end, result) in [("", "failed"), ("0\r\ngrpc-status: 0\r\n\r\n", "passed")] {
        let request = Request::post("http://a/x").header("content-type", "application/grpc");
        let request = request.header("te", "trailers").body(()).unwrap();
        let stream = client.start(request, false);
        let mut server = upstream.accept();
        server.request();
        server.send(
            "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n\
             7\r\n\0\0\0\0\x02hi\r\n",
        );
        stream.head();
        assert!(matches!(stream.next(), Event::Data(_)));
        server.send(end);
        drop(server);
        let Event::Trailers(trailers) = stream.next() else { panic!("no trailers") };
        assert_eq!(trailers["grpc-status"] == "0", result == "passed");
        timed(&proxy, "/default/api", result, 1.0);
    }
    drop(client);
    proxy.finish();
}

/// Goal: a WebSocket is timed up to its 101, however long it lasts.
#[test]
fn a_websocket_is_timed_up_to_its_switch() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "websocket = true").start_clocked();
    let mut client = proxy.client();
    client.send("GET /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    let mut server = upstream.accept();
    server.request();
    lapse(&proxy, Span::from_secs(1));
    server.send(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    );
    client.head();
    assert_eq!(timed(&proxy, "/default/api", "passed", 1.0), (1.0, 0.0));
    lapse(&proxy, Span::from_secs(100));
    drop((client, server));
    proxy.settled();
    assert_eq!(times(&proxy, "/default/api", "passed"), (1.0, 1.0, 0.0));
    proxy.finish();
}

/// A proxy that writes an access log into this directory.
fn logging(setup: Setup, room: &TempDir, lines: &str) -> Setup {
    let path = room.path().join("log");
    let rules = format!("[access_log]\npath = \"{}\"\n{lines}\n{}", path.display(), setup.rules);
    Setup { rules, ..setup }
}

/// So many whole lines of the log, once they are there; no more may come.
fn lines(room: &TempDir, count: usize) -> Vec<String> {
    eventually("lines in the log", || {
        let text = std::fs::read_to_string(room.path().join("log")).unwrap();
        let whole = text.matches('\n').count() >= count;
        whole.then(|| text.lines().map(ToOwned::to_owned).collect())
    })
}

fn entries(room: &TempDir, count: usize) -> Vec<Value> {
    let lines = lines(room, count);
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Goal: a line tells of each request what became of it, in words and numbers that are right, and nothing of what it does not have.
#[test]
fn a_line_tells_what_became_of_a_request() {
    let (upstream, room) = (Upstream::start(), room());
    let setup = Setup::route(upstream.address(), "limit = [{ name = \"few\", window = \"2/1h\" }]");
    let proxy = logging(setup, &room, "").start_clocked();
    let mut client = proxy.client();
    client.send(
        "POST /a/%62?token=secret HTTP/1.1\r\nhost: Good:80\r\nuser-agent: me\r\nreferer: there\r\n\
         content-length: 3\r\n\r\nabc",
    );
    let mut server = upstream.accept();
    server.request();
    lapse(&proxy, Span::from_millis(1_500));
    server.reply("hello");
    client.answer();
    client.send(GET);
    server.request();
    server.reply("ok");
    client.answer();
    client.send(GET);
    assert_eq!(client.answer().status(), 429);
    let id = proxy.halt("/default")["id"].as_str().unwrap().to_owned();
    client.send(GET);
    assert_eq!(client.answer().status(), 503);
    client.send("NONSENSE\r\n\r\n");
    assert_eq!(client.answer().status(), 400);
    let found = entries(&room, 6);
    let one = &found[1];
    for (name, value) in [
        ("client", json!("127.0.0.1")),
        ("peer", json!("127.0.0.1")),
        ("method", json!("POST")),
        ("path", json!("/a/b")),
        ("host", json!("Good:80")),
        ("protocol", json!("HTTP/1.1")),
        ("status", json!(200)),
        ("bytes_in", json!(3)),
        ("bytes_out", json!(5)),
        ("duration", json!(1.5)),
        ("added", json!(0.0)),
        ("route", json!("/default/api")),
        ("upstream", json!(format!("http://{}", upstream.address()))),
        ("verdict", json!("passed")),
        ("user_agent", json!("me")),
        ("referer", json!("there")),
        // Wall time is that of the test's clock.
        ("time", json!("1970-01-01T00:00:02.500Z")),
    ] {
        assert_eq!(one[name], value, "{name}");
    }
    for name in ["query", "scope", "limit", "detector", "id", "shadow", "request_id", "trace_id"] {
        assert_eq!(one[name], Value::Null, "{name}");
    }
    let limited = &found[3];
    assert_eq!((&limited["verdict"], &limited["status"]), (&json!("limited"), &json!(429)));
    assert_eq!((&limited["scope"], &limited["limit"]), (&json!("/default/api"), &json!("few")));
    let killed = &found[4];
    assert_eq!((&killed["verdict"], &killed["status"]), (&json!("killed"), &json!(503)));
    assert_eq!((&killed["scope"], &killed["id"]), (&json!("/default"), &json!(id)));
    let bad = &found[5];
    assert_eq!((&bad["verdict"], &bad["status"]), (&json!("invalid"), &json!(400)));
    assert_eq!((&bad["method"], &bad["path"]), (&Value::Null, &Value::Null));
    assert_eq!(proxy.status()["access_log"], "ok");
    assert_eq!(proxy.metric("breaker_access_log_lines_total"), 6.0);
    assert_eq!(proxy.metric("breaker_access_log_dropped_total"), 0.0);
    proxy.finish();
}

/// Goal: a call that a kill ends on a shared upstream connection names that kill, too.
#[test]
fn a_severed_line_behind_http2_named_no_kill() {
    let (upstream, room) = (Upstream::start(), room());
    let setup = Setup::new(format!(
        "[[upstreams]]\nname = \"u\"\nendpoints = \"http://{}\"\nprotocol = \"h2\"\n\
         [[routes]]\nname = \"api\"\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"u\"\n",
        upstream.address()
    ));
    let proxy = logging(setup, &room, "").start();
    let mut client = proxy.client();
    client.send(GET);
    let mut far = Far::accept(&upstream, &[]);
    let stream = far.request();
    far.head(stream, false);
    far.data(stream, b"half", false);
    client.until(b"half").unwrap();
    let id = proxy.cut("/default/api")["id"].clone();
    client.rest();
    let found = entries(&room, 1);
    assert_eq!(found[0]["verdict"], "severed");
    assert_eq!((&found[0]["scope"], &found[0]["id"]), (&json!("/default/api"), &id));
    drop(client);
    proxy.finish();
}

/// Goal: who was cut off, and why, is told: a kill in flight, an upstream that broke, a client that left, a shadow.
#[test]
fn a_line_tells_who_cut_it_off() {
    let (upstream, room) = (Upstream::start(), room());
    let lines = "limit = [{ window = \"1/1h\" }]\nmode = \"shadow\"";
    let setup = Setup::route(upstream.address(), lines);
    let proxy = logging(setup, &room, "").start();
    let mut client = proxy.client();
    client.send(GET);
    let mut server = upstream.accept();
    server.request();
    server.reply("ok");
    client.answer();
    client.send(GET);
    server.request();
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf");
    client.until(b"half").unwrap();
    let id = proxy.cut("/default/api")["id"].clone();
    client.rest();
    proxy.lift("/default/api");
    let mut client = proxy.client();
    client.send(GET);
    let mut server = upstream.accept();
    server.request();
    server.send("no answer at all\r\n\r\n");
    assert_eq!(client.answer().status(), 502);
    let mut client = proxy.client();
    client.send(GET);
    let mut server = upstream.accept();
    server.request();
    drop(client);
    let found = entries(&room, 4);
    let words: Vec<&str> = found.iter().map(|line| line["verdict"].as_str().unwrap()).collect();
    assert_eq!(words, ["passed", "severed", "failed", "gone"]);
    assert_eq!(found[0]["shadow"], Value::Null);
    // The kill is what matters of it, and not the limit that shadow mode let it pass.
    assert_eq!((&found[1]["scope"], &found[1]["id"]), (&json!("/default/api"), &id));
    assert_eq!((&found[1]["shadow"], &found[1]["limit"]), (&Value::Null, &Value::Null));
    assert_eq!((&found[3]["shadow"], &found[3]["limit"]), (&json!(true), &json!("window[0]")));
    assert_eq!((&found[1]["status"], &found[1]["bytes_out"]), (&json!(200), &json!(4)));
    assert_eq!(found[2]["status"], 502);
    assert_eq!(found[3]["status"], Value::Null);
    proxy.finish();
}

/// Goal: a detector that tripped a route is told by its name, with the id of the trip.
#[test]
fn a_line_names_the_detector() {
    let answer = "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n";
    let (upstream, room) = (Serving::start(|_| answer.to_owned()), room());
    let setup = Setup::route(upstream.address(), "detect = [{ name = \"row\", streak = 3 }]");
    let proxy = logging(setup, &room, "").start();
    let mut calls = 1;
    let refused = eventually("a trip", || {
        let answer = proxy.get("");
        calls += 1;
        (answer.status() == 503).then(|| answer.json())
    });
    let found = entries(&room, calls - 1);
    let last = found.last().unwrap();
    assert_eq!((&last["verdict"], &last["detector"]), (&json!("tripped"), &json!("row")));
    assert_eq!((&last["scope"], &last["id"]), (&json!("/default/api"), &refused["id"]));
    assert_eq!((&found[0]["verdict"], &found[0]["status"]), (&json!("passed"), &json!(500)));
    proxy.finish();
}

/// Goal: what a client writes stays in its own field of its own line, in both formats, however long it is and whatever bytes it has.
#[test]
fn a_line_cannot_be_forged() {
    for format in ["json", "combined"] {
        let (upstream, room) = (Serving::ok(), room());
        let lines = format!("format = \"{format}\"\nquery = true\nfield_bytes = \"64B\"");
        let proxy = logging(Setup::route(upstream.address(), ""), &room, &lines).start();
        let long = "x".repeat(8 * 1024);
        for agent in [
            &b"\" 200 1 \"-\" \"-\" passed"[..],
            b"\\\",\"verdict\":\"passed\"},{",
            b"\t\x80\xff\xc2\x9b31m\xe2\x80\xae",
            long.as_bytes(),
        ] {
            let mut client = proxy.client();
            let head = b"GET /a%22?%0a%22 HTTP/1.1\r\nhost: a\r\nuser-agent: ";
            client.send_bytes(&[&head[..], agent, b"\r\nreferer: ", agent, b"\r\n\r\n"].concat());
            let status = client.answer().status();
            assert!(status == 200 || status == 400, "{status}");
        }
        // A field that tries to be two lines is no request.
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\nuser-agent: a\nb\rc\r\n\r\n");
        assert_eq!(client.answer().status(), 400);
        let found = self::lines(&room, 5);
        assert_eq!(found.len(), 5, "{found:?}");
        for line in &found {
            assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{line}");
            assert!(line.len() < 1200, "{line}");
        }
        if format == "json" {
            let agents: Vec<Value> = found
                .iter()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["user_agent"].clone())
                .collect();
            assert_eq!(agents[0], "\" 200 1 \"-\" \"-\" passed");
            assert_eq!(agents[3], long[..64]);
        } else {
            assert!(found.iter().all(|line| line.matches('"').count() == 18), "{found:?}");
        }
        proxy.finish();
    }
}

/// Goal: behind a trusted proxy the client is who that says it is, and nobody else's word counts.
#[test]
fn the_client_is_whom_trusted_proxies_name() {
    for (trusted, expected) in [("127.0.0.1", "203.0.113.7"), ("10.0.0.0/8", "127.0.0.1")] {
        let (upstream, room) = (Serving::ok(), room());
        let wire = format!("trusted = [\"{trusted}\"]").leak();
        let setup = Setup { wire, ..Setup::route(upstream.address(), "") };
        let proxy = logging(setup, &room, "").start();
        proxy.get("x-forwarded-for: 6.6.6.6, 203.0.113.7\r\n");
        let found = entries(&room, 1);
        assert_eq!(
            (&found[0]["client"], &found[0]["peer"]),
            (&json!(expected), &json!("127.0.0.1"))
        );
        proxy.finish();
    }
}

/// Goal: each HTTP/2 stream has a line of its own.
#[test]
fn each_stream_has_a_line() {
    let (upstream, room) = (Serving::ok(), room());
    let proxy = logging(Setup::route(upstream.address(), ""), &room, "").start();
    let client = H2::connect(proxy.data());
    for path in ["/1", "/2"] {
        assert_eq!(client.get(path).answer(), (200, b"ok".to_vec()));
    }
    let found = entries(&room, 2);
    for (line, path) in found.iter().zip(["/1", "/2"]) {
        assert_eq!((&line["path"], &line["protocol"]), (&json!(path), &json!("HTTP/2.0")));
        assert_eq!((&line["bytes_out"], &line["verdict"]), (&json!(2), &json!("passed")));
    }
    drop(client);
    proxy.finish();
}

/// Goal: nobody waits for a log whose reader has stopped: requests are served, lines beyond the bound dropped and counted.
#[cfg(target_os = "linux")]
#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let lines = "field_bytes = \"16KiB\"\nqueue_bytes = \"512KiB\"";
    let rules = format!("[access_log]\npath = \"{path}\"\n{lines}\n{}", setup.rules);
    let proxy = Setup { rules, ..setup }.start();
    drop(writer);
    let agent = "x".repeat(15 * 1024);
    let mut client = proxy.client();
    for _ in 0..100 {
        client.send(&format!("GET /x HTTP/1.1\r\nhost: a\r\nuser-agent: {agent}\r\n\r\n"));
        assert_eq!(client.answer().text(), "ok");
    }
    // The last answer comes before its line.
    let (taken, dropped) = eventually("a line for each request", || {
        let taken = proxy.metric("breaker_access_log_lines_total");
        let dropped = proxy.metric("breaker_access_log_dropped_total");
        (taken + dropped == 100.0).then_some((taken, dropped))
    });
    assert!(dropped > 0.0, "the queue has a bound");
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        f64::from(u32::try_from(text.lines().count()).unwrap())
    });
    proxy.finish();
    assert_eq!(reading.join().unwrap(), taken);
}

/// Goal: a disk that is full costs lines and nothing else; status and metrics tell of it.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_lines_and_no_request() {
    let upstream = Serving::ok();
    let setup = Setup::route(upstream.address(), "");
    let rules = format!("[access_log]\npath = \"/dev/full\"\n{}", setup.rules);
    let proxy = Setup { rules, ..setup }.start();
    assert_eq!(proxy.get("").text(), "ok");
    eventually("a failure that is told", || {
        (proxy.status()["access_log"] == "failing").then_some(())
    });
    assert_eq!(proxy.metric("breaker_access_log_up"), 0.0);
    assert_eq!(proxy.metric("breaker_access_log_dropped_total"), 1.0);
    assert!(proxy.metric("breaker_access_log_errors_total") >= 1.0);
    assert_eq!(proxy.get("").text(), "ok");
    proxy.finish();
}

/// Goal: a log that cannot be opened stops the start, before anything is bound, and is named.
#[test]
fn a_log_that_cannot_be_opened_stops_the_start() {
    let (upstream, room) = (Serving::ok(), room());
    let setup = Setup::route(upstream.address(), "");
    let path = room.path().join("no/such/log");
    let rules = format!("[access_log]\npath = \"{}\"\n{}", path.display(), setup.rules);
    let error = Setup { rules, ..setup }.try_start(&room.path().join("state")).err().unwrap();
    assert!(error.to_string().starts_with("access_log.path: "), "{error}");
}

/// Goal: a stop writes the last lines, and a log that was moved away is begun anew.
#[test]
fn the_last_lines_are_written() {
    let (upstream, room) = (Serving::ok(), room());
    let proxy = logging(Setup::route(upstream.address(), ""), &room, "").start();
    proxy.get("");
    lines(&room, 1);
    std::fs::rename(room.path().join("log"), room.path().join("log.1")).unwrap();
    for _ in 0..3 {
        proxy.get("");
    }
    proxy.finish();
    assert_eq!(lines(&room, 3).len(), 3);
}

/// Goal: an id is made where there is none to be believed, and is the same for the upstream, the client and the log.
#[test]
fn ids_are_made_and_told() {
    let (upstream, room) = (Serving::ok(), room());
    let wire = "request_id = \"make\"";
    let setup =
        Setup { wire, ..Setup::route(upstream.address(), "limit = [{ window = \"3/1h\" }]") };
    let proxy = logging(setup, &room, "").start();
    for fields in ["", "x-request-id: mine\r\n", "x_request_id: mine\r\n"] {
        let answer = proxy.get(fields);
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.head.field("x-request-id"), None, "an upstream's answer passes as it is");
    }
    let refused = proxy.get("x-request-id: mine\r\n");
    assert_eq!(refused.status(), 429);
    let mut client = proxy.client();
    client.send("NONSENSE\r\n\r\n");
    let bad = client.answer();
    let found = entries(&room, 5);
    let mut ids: Vec<String> =
        found.iter().map(|line| line["request_id"].as_str().unwrap().to_owned()).collect();
    for (heard, id) in upstream.heard().iter().zip(&ids) {
        assert_eq!(heard.head.field("x-request-id"), Some(id.as_str()));
        assert!(heard.head.all("x_request_id").is_empty());
    }
    for (answer, id) in [(&refused, &ids[3]), (&bad, &ids[4])] {
        assert_eq!(answer.head.field("x-request-id"), Some(id.as_str()));
        assert_eq!(answer.json()["request_id"], id.as_str());
    }
    assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5);
    proxy.finish();
}

/// Goal: a trusted peer's id is taken, if it is one; from anybody else none is.
#[test]
fn an_id_is_taken_from_trusted_peers_alone() {
    let upstream = Serving::ok();
    let long = "x".repeat(129);
    for (trusted, given, taken) in [
        ("127.0.0.1", "theirs-1:\"a\"", true),
        ("10.0.0.0/8", "theirs-1", false),
        ("127.0.0.1", "two words", false),
        ("127.0.0.1", long.as_str(), false),
        ("127.0.0.1", "a\r\nx-request-id: b", false),
    ] {
        let wire = format!("request_id = \"make\"\ntrusted = [\"{trusted}\"]").leak();
        let setup = Setup { wire, ..Setup::route(upstream.address(), "") };
        let proxy = setup.start();
        proxy.get(&format!("x-request-id: {given}\r\n"));
        let heard = upstream.heard().pop().unwrap();
        let id = heard.head.field("x-request-id").unwrap().to_owned();
        assert_eq!(id == given, taken, "{given} from {trusted}: {id}");
        proxy.halt("/");
        let refused = proxy.get(&format!("x-request-id: {given}\r\n"));
        let own = refused.head.field("x-request-id").unwrap();
        assert_eq!(own == given, taken);
        assert_eq!(refused.json()["request_id"], own);
        proxy.finish();
    }
}

/// Goal: HTTP/2 refusals carry the id as well, and a HEAD is told the length of the document that it would have had.
#[test]
fn ids_by_http2() {
    let upstream = Serving::ok();
    let wire = "request_id = \"make\"";
    let proxy = Setup { wire, ..Setup::route(upstream.address(), "") }.start();
    proxy.halt("/");
    let client = H2::connect(proxy.data());
    let stream = client.get("/1");
    let (status, fields) = stream.head();
    let (body, _) = stream.rest();
    assert_eq!(status, 503);
    let document: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(document["request_id"].as_str().unwrap(), fields["x-request-id"]);
    let head = Request::builder().method("HEAD").uri("http://a/1").body(()).unwrap();
    let (_, fields) = client.start(head, false).head();
    assert_eq!(fields["content-length"], body.len().to_string().as_str());
    drop(client);
    proxy.finish();
}

/// Goal: with ids off, which they are by default, nothing is made, taken or removed.
#[test]
fn without_ids_nothing_is_touched() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    proxy.get("x-request-id: a b\r\nx-request-id: c\r\n");
    proxy.get("");
    let heard = upstream.heard();
    assert_eq!(heard[0].head.all("x-request-id"), ["a b", "c"]);
    assert_eq!(heard[1].head.all("x-request-id"), [""; 0]);
    proxy.halt("/");
    let refused = proxy.get("x-request-id: mine\r\n");
    assert_eq!(refused.head.field("x-request-id"), None);
    assert_eq!(refused.json()["request_id"], Value::Null);
    proxy.finish();
}

/// Goal: the place in a trace passes untouched, valid or not, once or twice; the log believes what is valid and alone.
#[test]
fn a_trace_passes_untouched() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (upstream, room) = (Serving::ok(), room());
    let proxy = logging(Setup::route(upstream.address(), ""), &room, "").start();
    let cases: [&[&str]; 4] = [&[PARENT], &["nonsense"], &[PARENT, PARENT], &[]];
    for parents in cases {
        let fields: String =
            parents.iter().map(|parent| format!("traceparent: {parent}\r\n")).collect();
        proxy.get(&format!("{fields}tracestate: a=1,b=2\r\ntracestate: c=3\r\n"));
    }
    for (heard, parents) in upstream.heard().iter().zip(cases) {
        assert_eq!(heard.head.all("traceparent"), parents);
        assert_eq!(heard.head.all("tracestate"), ["a=1,b=2", "c=3"]);
    }
    let found = entries(&room, 4);
    assert_eq!(found[0]["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert!(found[1..].iter().all(|line| line["trace_id"].is_null()), "{found:?}");
    proxy.finish();
}
