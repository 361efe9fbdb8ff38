//! Upstreams of several endpoints: who is given a call, who is left alone, and who waits when all connections are taken.

use super::support::upstream::{Serving, Upstream};
use super::support::wire::Wire;
use super::support::{Proxy, Setup, eventually};
use breaker_core::Span;
use breaker_proxy::ports::Resolver;
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One route to an upstream `u` of these endpoints.
fn to(endpoints: &[SocketAddr], lines: &str) -> Setup {
    let urls: Vec<String> = endpoints.iter().map(|at| format!("\"http://{at}\"")).collect();
    let urls = urls.join(", ");
    Setup::new(format!(
        "[[upstreams]]\nname = \"u\"\nendpoints = [{urls}]\n{lines}\n\
         [[routes]]\nname = \"api\"\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"u\"\n"
    ))
}

/// A call that is on its way.
fn ask(proxy: &Proxy, path: &str) -> Wire {
    let mut client = proxy.client();
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client
}

/// The next connection to either of two: to which, and the connection.
fn accept_either(one: &Upstream, two: &Upstream) -> (bool, Wire) {
    eventually("a connection to one of two", || {
        let first = one.try_accept().map(|wire| (true, wire));
        first.or_else(|| two.try_accept().map(|wire| (false, wire)))
    })
}

/// Goal: a call goes to the endpoint with fewer calls in flight, on whichever worker they are.
#[test]
fn a_call_goes_where_fewer_are() {
    let (one, two) = (Upstream::start(), Upstream::start());
    let proxy = Setup { workers: 2, ..to(&[one.address(), two.address()], "") }.start();
    let mut first = ask(&proxy, "/1");
    let (was_one, mut held) = accept_either(&one, &two);
    held.request();
    let mut second = ask(&proxy, "/2");
    let (is_one, mut other) = accept_either(&one, &two);
    assert_ne!(was_one, is_one, "both calls went to one endpoint");
    other.request();
    assert_eq!(proxy.metric("breaker_endpoint_in_flight"), 2.0);
    other.reply("two");
    assert_eq!(second.answer().text(), "two");
    for _ in 0..5 {
        second.send("GET /more HTTP/1.1\r\nHost: a\r\n\r\n");
        other.request();
        other.reply("more");
        assert_eq!(second.answer().text(), "more");
    }
    held.reply("one");
    assert_eq!(first.answer().text(), "one");
    eventually("nothing in flight", || {
        (proxy.metric("breaker_endpoint_in_flight") == 0.0).then_some(())
    });
    proxy.finish();
}

/// Goal: a call whose endpoint cannot be reached goes to another, whatever its method, since nothing of it was sent; an
/// endpoint that failed as often as it may is left alone until its hold ends, and then tried by one call.
#[test]
fn an_endpoint_that_cannot_be_reached_is_left_alone() {
    let dead = Upstream::start().close();
    let alive = Serving::ok();
    let rule = "mark_down = { after = 2, hold = \"10s\", at_most = \"15s\" }";
    let proxy = to(&[dead, alive.address()], rule).start_clocked();
    let mut calls = 0;
    let mut until_marked = |times: f64| {
        // Calls go to either at random while both are up.
        eventually("the mark", || {
            let mut client = proxy.client();
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.answer().status(), 200);
            calls += 1;
            (proxy.metric("breaker_endpoint_marked_down_total") == times).then_some(())
        });
        for _ in 0..20 {
            assert_eq!(proxy.get("").status(), 200);
            calls += 1;
        }
        proxy.metric("breaker_endpoint_connect_failures_total")
    };
    assert_eq!(until_marked(1.0), 2.0);
    assert_eq!(proxy.metric("breaker_endpoint_up"), 1.0);
    proxy.advance(Span::from_secs(10));
    assert_eq!(until_marked(2.0), 3.0, "one trial");
    proxy.advance(Span::from_secs(14));
    assert_eq!(until_marked(2.0), 3.0, "the hold has doubled, up to its maximum");
    proxy.advance(Span::from_secs(1));
    assert_eq!(until_marked(3.0), 4.0);
    assert_eq!(alive.heard().len(), calls, "each call arrived, and once");
    let accounts = proxy.finish();
    assert_eq!((&accounts["failed"], &accounts["upstream_errors"]), (&0.into(), &0.into()));
}

/// Goal: an endpoint that takes connections and does not answer is marked down as well; the answer to its trial brings it back.
#[test]
fn an_endpoint_that_does_not_answer_is_left_alone_until_it_does() {
    let (sick, well) = (Upstream::start(), Serving::ok());
    let setup = to(&[sick.address(), well.address()], "mark_down = { after = 1, hold = \"10s\" }");
    let proxy = Setup { deadlines: "answer = \"200ms\"", ..setup }.start_clocked();
    let mut stuck = eventually("a call to the sick one", || {
        let mut client = ask(&proxy, "/");
        let status = client.answer().status();
        (status == 504).then(|| sick.accept())
    });
    stuck.request();
    stuck.assert_ends();
    for _ in 0..20 {
        assert_eq!(proxy.get("").status(), 200);
    }
    sick.assert_nobody();
    proxy.advance(Span::from_secs(10));
    let mut client = ask(&proxy, "/trial");
    let mut trial = sick.accept();
    assert_eq!(trial.request().head.word(1), "/trial");
    assert_eq!(proxy.metric("breaker_endpoint_up"), 1.0);
    trial.reply("back");
    assert_eq!(client.answer().text(), "back");
    assert_eq!(proxy.metric("breaker_endpoint_up"), 2.0);
    proxy.finish();
}

/// Goal: with all endpoints marked down a call still tries: nobody is refused for a guess.
#[test]
fn all_marked_down_is_no_refusal() {
    let dead = [Upstream::start().close(), Upstream::start().close()];
    let proxy = to(&dead, "mark_down = { after = 1, hold = \"10s\" }").start_clocked();
    for call in 1..4 {
        let answer = proxy.get("");
        assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-unreachable"));
        let tries = f64::from(2 * call);
        assert_eq!(proxy.metric("breaker_endpoint_connect_failures_total"), tries);
    }
    assert_eq!(proxy.metric("breaker_endpoint_marked_down_total"), 2.0, "by no trial");
    assert_eq!(proxy.finish()["failed"], 3);
}

/// Goal: an endpoint has no more connections than it may; calls beyond wait in turn for as many as may wait, and the rest is
/// refused at once, told apart and counted.
#[test]
fn beyond_its_connections_calls_wait_in_turn() {
    let upstream = Upstream::start();
    let lines = "connections = 1\nqueue = { calls = 2, wait = \"9s\" }";
    let proxy = to(&[upstream.address()], lines).start();
    let mut clients = vec![ask(&proxy, "/0")];
    let mut exchange = upstream.accept();
    for number in 1..3 {
        clients.push(ask(&proxy, &format!("/{number}")));
        eventually("a call in the queue", || {
            (proxy.metric("breaker_upstream_waiting") == f64::from(number)).then_some(())
        });
    }
    let answer = proxy.get("");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "upstream-busy"));
    assert_eq!(proxy.metric("breaker_endpoint_busy_total"), 1.0);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(exchange.request().head.word(1), format!("/{number}"));
        exchange.reply("ok");
        assert_eq!(client.answer().text(), "ok");
    }
    upstream.assert_nobody();
    assert_eq!(proxy.metric("breaker_endpoint_connects_total"), 1.0);
    let accounts = proxy.finish();
    assert_eq!((&accounts["failed"], &accounts["forwarded"]), (&1.into(), &3.into()));
}

/// Goal: who waits for as long as it may without a connection is refused.
#[test]
fn a_wait_has_an_end() {
    let upstream = Upstream::start();
    let lines = "connections = 1\nqueue = { wait = \"50ms\" }";
    let proxy = to(&[upstream.address()], lines).start();
    let mut first = ask(&proxy, "/");
    let mut exchange = upstream.accept();
    assert_eq!(proxy.get("").code(), "upstream-busy");
    exchange.request();
    exchange.reply("ok");
    assert_eq!(first.answer().text(), "ok");
    assert_eq!(proxy.metric("breaker_upstream_waiting"), 0.0);
    proxy.finish();
}

/// Goal: a connection that one worker keeps idle does not keep another's calls waiting.
/// Method: the two clients are with one worker each, since connections are spread evenly.
#[test]
fn an_idle_connection_of_one_worker_makes_room_for_another() {
    let upstream = Serving::ok();
    let lines = "connections = 1\nqueue = { wait = \"9s\" }";
    let proxy = Setup { workers: 2, ..to(&[upstream.address()], lines) }.start();
    let (mut one, mut two) = (proxy.client(), proxy.client());
    for round in 0..10 {
        for client in [&mut one, &mut two] {
            client.send(&format!("GET /{round} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(client.answer().status(), 200);
        }
    }
    assert_eq!(upstream.connections(), 20, "it changed hands each time");
    proxy.finish();
}

/// Goal: with far more calls than connections, on two workers, every call has its turn, and no more run at once than may.
#[test]
fn a_crowd_has_its_turn() {
    let (now, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (count, record) = (Arc::clone(&now), Arc::clone(&most));
    let upstream = Serving::start(move |_| {
        // ordering: sequentially consistent, it stands beside sockets.
        let at_once = count.fetch_add(1, Ordering::SeqCst) + 1;
        record.fetch_max(at_once, Ordering::SeqCst);
        std::thread::yield_now();
        count.fetch_sub(1, Ordering::SeqCst);
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned()
    });
    let lines = "connections = 2\nqueue = { wait = \"9s\" }";
    let proxy = Setup { workers: 2, ..to(&[upstream.address()], lines) }.start();
    let mut clients: Vec<Wire> = (0..12).map(|_| proxy.client()).collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                for _ in 0..200 {
                    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                    assert_eq!(client.answer().status(), 200);
                }
            });
        }
    });
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 2, "{most} at once");
    assert_eq!(proxy.finish()["forwarded"], 2400);
}

/// Goal: a kill answers calls that wait for a connection at once, and none of them is ever sent.
#[test]
fn a_kill_empties_the_queue() {
    let upstream = Upstream::start();
    let lines = "connections = 1\nqueue = { wait = \"9s\" }";
    let proxy = to(&[upstream.address()], lines).start();
    let mut first = ask(&proxy, "/first");
    let mut exchange = upstream.accept();
    exchange.request();
    let mut second = ask(&proxy, "/second");
    eventually("a call in the queue", || {
        (proxy.metric("breaker_upstream_waiting") == 1.0).then_some(())
    });
    let kill = proxy.halt("/");
    assert_eq!(kill["in_flight"], 2);
    let answer = second.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (503, "killed"));
    proxy.lift("/");
    exchange.reply("ran out");
    assert_eq!(first.answer().text(), "ran out");
    first.send("GET /third HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(exchange.request().head.word(1), "/third", "the second was never sent");
    exchange.reply("ok");
    assert_eq!(first.answer().text(), "ok");
    let accounts = proxy.finish();
    assert_eq!((&accounts["halted"], &accounts["forwarded"]), (&1.into(), &2.into()));
}

/// Goal: clients that leave while they wait leave nothing behind that keeps others waiting.
#[test]
fn clients_that_leave_the_queue_leave_no_trace() {
    let upstream = Upstream::start();
    let lines = "connections = 1\nqueue = { calls = 3, wait = \"9s\" }";
    let proxy = to(&[upstream.address()], lines).start();
    let mut first = ask(&proxy, "/first");
    let mut exchange = upstream.accept();
    exchange.request();
    let waiting = |count: f64| {
        eventually("so many in the queue", || {
            (proxy.metric("breaker_upstream_waiting") == count).then_some(())
        });
    };
    for _ in 0..3 {
        let crowd: Vec<Wire> = (0..3).map(|_| ask(&proxy, "/left")).collect();
        waiting(3.0);
        drop(crowd);
        waiting(0.0);
    }
    let mut last = ask(&proxy, "/last");
    waiting(1.0);
    exchange.reply("ok");
    assert_eq!(first.answer().text(), "ok");
    assert_eq!(exchange.request().head.word(1), "/last");
    exchange.reply("ok");
    assert_eq!(last.answer().text(), "ok");
    upstream.assert_nobody();
    assert_eq!(proxy.finish()["failed"], 9);
}

/// Knows one name, and says of it what the test says.
pub(crate) struct Names(Mutex<io::Result<Vec<SocketAddr>>>);

impl Names {
    pub(crate) fn new(first: SocketAddr) -> &'static Names {
        Box::leak(Box::new(Names(Mutex::new(Ok(vec![first])))))
    }

    fn set(&self, answer: io::Result<Vec<SocketAddr>>) {
        *self.0.lock() = answer;
    }
}

impl Resolver for Names {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        assert_eq!(host, "inside.example");
        assert!(port == 80 || port == 443, "{port}");
        match &*self.0.lock() {
            Ok(list) => Ok(list.clone()),
            Err(error) => Err(io::Error::from(error.kind())),
        }
    }
}

fn to_name() -> Setup {
    Setup::new(
        "[[upstreams]]\nname = \"u\"\nendpoints = \"http://inside.example\"\ndns_refresh = \"1s\"\n\
         [[routes]]\nname = \"api\"\nmatch = { path = \"/{*rest}\" }\nupstream = \"u\"\n"
            .to_owned(),
    )
}

/// Goal: a name that leads elsewhere from now on is followed: new calls go there, idle connections to the old place are closed,
/// and a call that is under way there comes to its end. A resolver that fails changes nothing.
#[test]
fn a_name_is_followed() {
    let (old, new) = (Upstream::start(), Upstream::start());
    let names = Names::new(old.address());
    let proxy = to_name().start_with_names(names);
    let mut held = ask(&proxy, "/held");
    let mut exchange = old.accept();
    exchange.request();
    let mut other = ask(&proxy, "/idle");
    let mut idle = old.accept();
    idle.request();
    idle.reply("ok");
    assert_eq!(other.answer().text(), "ok");
    names.set(Err(io::ErrorKind::TimedOut.into()));
    eventually("a failure of the resolver", || {
        (proxy.metric("breaker_endpoint_lookup_failures_total") > 0.0).then_some(())
    });
    other.send("GET /still HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.request().head.word(1), "/still");
    idle.reply("ok");
    assert_eq!(other.answer().text(), "ok");
    names.set(Ok(vec![new.address(), new.address()]));
    eventually("the new addresses", || {
        (proxy.metric("breaker_endpoint_addresses") == 2.0).then_some(())
    });
    other.send("GET /moved HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut moved = new.accept();
    assert_eq!(moved.request().head.word(1), "/moved");
    moved.reply("ok");
    assert_eq!(other.answer().text(), "ok");
    idle.assert_ends();
    exchange.reply("to the end");
    assert_eq!(held.answer().text(), "to the end");
    exchange.assert_ends();
    proxy.finish();
}

/// Goal: a name that leads nowhere is 502 and not a wait, and is found once it leads somewhere.
#[test]
fn a_name_that_leads_nowhere_is_told() {
    let upstream = Serving::ok();
    let names = Names::new(upstream.address());
    names.set(Err(io::ErrorKind::NotFound.into()));
    let proxy = to_name().start_with_names(names);
    let answer = proxy.get("");
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-unreachable"));
    names.set(Ok(vec![upstream.address()]));
    eventually("an answer", || (proxy.get("").status() == 200).then_some(()));
    proxy.finish();
}

/// Goal: of several addresses those that take no connection are passed over.
#[test]
fn addresses_that_are_dead_are_passed_over() {
    let upstream = Serving::ok();
    let dead = Upstream::start().close();
    let names = Names::new(upstream.address());
    names.set(Ok(vec![dead, dead, upstream.address()]));
    let proxy = to_name().start_with_names(names);
    for _ in 0..6 {
        assert_eq!(proxy.get("Connection: close\r\n").status(), 200);
    }
    assert_eq!(proxy.metric("breaker_endpoint_connect_failures_total"), 0.0);
    proxy.finish();
}

/// Goal: an endpoint whose checks fail gets no calls until they pass again, and checks are no calls: they are in no account, and a
/// kill does not end them.
#[test]
fn a_sick_endpoint_gets_no_calls() {
    let (is_sick, checks) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (sick, asked) = (Arc::clone(&is_sick), Arc::clone(&checks));
    let one = Serving::start(move |request| {
        let is_check = request.head.word(1) == "/healthz?deep";
        if is_check {
            assert_eq!(request.head.field("user-agent"), Some("breaker-health"));
            // ordering: sequentially consistent, it stands beside sockets.
            asked.fetch_add(1, Ordering::SeqCst);
        }
        let is_bad = is_check && sick.load(Ordering::SeqCst);
        let status = if is_bad { "503 Ill" } else { "204 Well" };
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")
    });
    let other = Serving::ok();
    let rule = "health = { path = \"/healthz?deep\", every = \"1s\", fail = 1, pass = 1 }";
    let proxy = to(&[one.address(), other.address()], rule).start();
    let up = |count: f64| {
        eventually("so many up", || (proxy.metric("breaker_endpoint_up") == count).then_some(()));
    };
    up(1.0);
    for _ in 0..20 {
        assert_eq!(proxy.get("").status(), 200, "to the one that is well");
    }
    assert!(proxy.metric("breaker_endpoint_checks_failed_total") >= 1.0);
    proxy.cut("/");
    is_sick.store(false, Ordering::SeqCst);
    up(2.0);
    proxy.lift("/");
    eventually("a call to the other", || (proxy.get("").status() == 204).then_some(()));
    let accounts = proxy.finish();
    let calls = one.heard().len() + other.heard().len();
    let checked = other.targets().iter().filter(|target| target.starts_with("/healthz")).count();
    let checked = u64::try_from(checked).unwrap() + checks.load(Ordering::SeqCst);
    let calls = u64::try_from(calls).unwrap() - checked;
    assert_eq!(accounts["forwarded"], calls);
    assert_eq!(accounts["offered"], calls);
}
