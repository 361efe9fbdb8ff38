//! What people see of each request: its times.

use crate::support::h2::H2;
use crate::support::upstream::{Serving, Upstream};
use crate::support::{Proxy, Setup, eventually};
use breaker_core::{Mono, Span};
use breaker_proxy::ports::{Clock, Wall};
use std::sync::atomic::{AtomicU64, Ordering};

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
