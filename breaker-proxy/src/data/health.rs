//! Active health checks: a request of our own to each endpoint that says so, every so often; it is nobody's call and counts as none.
//!
//! A check passes no gate: a kill stops calls, and whoever lifts it wants to know whether anybody is there.

use super::Worker;
use super::endpoint::{Endpoint, Upstream};
use super::link::open;
use super::trunk;
use super::upstream::duration;
use crate::config::upstream::{self as config, Health, Protocol};
use crate::voice::say;
use crate::wire::answer::{self, Form, Seen};
use crate::wire::plural;
use bytes::BytesMut;
use hyper::StatusCode;
use std::fmt::Write as _;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use tokio::time::{Instant, timeout_at};

/// What checks have found of one endpoint. One worker writes it.
#[derive(Debug, Default)]
pub struct Findings {
    is_sick: AtomicBool,
    /// Checks in a row that said otherwise.
    against: AtomicU32,
    failed: AtomicU64,
    /// The second of the first worker in which the next is due; the end of time while one is under way.
    due: AtomicU64,
}

impl Findings {
    /// Did too many checks in a row fail, and not enough pass since?
    #[must_use]
    pub fn is_sick(&self) -> bool {
        // ordering: relaxed, a hint: a late reader picks as if it were a moment earlier.
        self.is_sick.load(Ordering::Relaxed)
    }

    /// Checks that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.failed.load(Ordering::Relaxed)
    }

    /// Takes what a check found; true if the endpoint is sick, or well, from now on.
    fn learn(&self, passed: bool, rule: &Health) -> bool {
        // ordering: relaxed throughout, one worker writes, and each word stands on its own.
        if !passed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let is_sick = self.is_sick();
        if passed != is_sick {
            self.against.store(0, Ordering::Relaxed);
            return false;
        }
        let against = self.against.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let needed = if is_sick { rule.pass } else { rule.fail };
        if against < needed {
            return false;
        }
        self.against.store(0, Ordering::Relaxed);
        self.is_sick.store(!is_sick, Ordering::Relaxed);
        true
    }
}

/// Begins every check that is due. One worker does so, once a second.
pub fn check(worker: &Rc<Worker>) {
    let second = worker.second.get();
    let snapshot = worker.plane.current.load();
    for upstream in &snapshot.upstreams {
        let Some(rule) = &upstream.spec().health else { continue };
        for endpoint in upstream.endpoints() {
            let due = &endpoint.findings().due;
            // ordering: relaxed, one worker reads and writes it.
            if due.load(Ordering::Relaxed) <= second {
                due.store(u64::MAX, Ordering::Relaxed);
                let (upstream, endpoint) = (Arc::clone(upstream), Arc::clone(endpoint));
                let next = second.saturating_add(rule.every.as_secs_ceil().max(1));
                tokio::task::spawn_local(one(Rc::clone(worker), upstream, endpoint, next));
            }
        }
    }
}

async fn one(worker: Rc<Worker>, upstream: Arc<Upstream>, endpoint: Arc<Endpoint>, next: u64) {
    let Some(rule) = &upstream.spec().health else { return };
    let deadline = Instant::now() + duration(rule.within);
    let late = || Err("no answer in time".to_owned());
    let found = timeout_at(deadline, ask(&worker, &endpoint, &rule.path, deadline)).await;
    let found = found.unwrap_or_else(|_| late());
    let findings = endpoint.findings();
    if findings.learn(found.is_ok(), rule) {
        upstream.turned(findings.is_sick());
        let (endpoint, upstream) = (endpoint.label(), upstream.label());
        match found {
            Ok(()) => say(&format!("WELL {endpoint} of {upstream}")),
            Err(why) => say(&format!("SICK {endpoint} of {upstream}: {why}")),
        }
    }
    // ordering: relaxed, as in `check`.
    findings.due.store(next, Ordering::Relaxed);
}

/// One check: whether it answers with a status below 400.
async fn ask(
    worker: &Rc<Worker>,
    endpoint: &Arc<Endpoint>,
    path: &str,
    deadline: Instant,
) -> Result<(), String> {
    let dialled = open(worker, endpoint, deadline).await;
    let dialled = dialled.map_err(|failure| failure.to_string())?;
    if endpoint.protocol() == Protocol::Http2 {
        let text = request(endpoint.target(), path);
        let asked = plural::request(text.as_bytes(), endpoint.target().is_tls());
        let asked = asked.ok_or("the path cannot be said in HTTP/2")?;
        let trunk = trunk::lay(worker, endpoint, None, dialled, deadline).await;
        let trunk = trunk.map_err(|failure| failure.to_string())?;
        let status = trunk.ask(asked).await.map_err(|error| error.to_string())?;
        return judge(status);
    }
    let mut socket = dialled.socket;
    let broken = |error: io::Error| format!("the connection broke: {error}");
    socket.say(request(endpoint.target(), path).as_bytes()).await.map_err(broken)?;
    let (mut input, mut seen) = (BytesMut::new(), Seen::default());
    loop {
        if socket.hear(&mut input).await.map_err(broken)? == 0 {
            return Err("the connection ended before an answer".to_owned());
        }
        match answer::take(&mut input, false, &mut seen, Form::Map) {
            Ok(None) => {}
            Ok(Some(head)) => return judge(head.status),
            Err(breach) => return Err(breach.to_string()),
        }
    }
}

fn judge(status: StatusCode) -> Result<(), String> {
    match status.as_u16() {
        ..400 => Ok(()),
        bad => Err(format!("status {bad}")),
    }
}

fn request(target: &config::Endpoint, path: &str) -> String {
    let mut text = format!("GET {path} HTTP/1.1\r\nhost: ");
    let usual = if target.is_tls() { 443 } else { 80 };
    let (host, port) = target.server().unwrap_or(("origin", usual));
    // Writing to a string does not fail.
    let _ = if host.contains(':') { write!(text, "[{host}]") } else { write!(text, "{host}") };
    if port != usual {
        let _ = write!(text, ":{port}");
    }
    text.push_str("\r\nuser-agent: breaker-health\r\nconnection: close\r\n\r\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use breaker_core::Span;

    fn rule() -> Health {
        let (every, within) = (Span::from_secs(1), Span::from_secs(1));
        Health { path: "/".to_owned(), every, within, fail: 3, pass: 2 }
    }

    /// Goal: only so many checks in a row turn an endpoint, one way and the other.
    #[test]
    fn only_checks_in_a_row_turn_it() {
        let (findings, rule) = (Findings::default(), rule());
        for (passed, turns, is_sick) in [
            (false, false, false),
            (false, false, false),
            (true, false, false),
            (false, false, false),
            (false, false, false),
            (false, true, true),
            (false, false, true),
            (true, false, true),
            (false, false, true),
            (true, false, true),
            (true, true, false),
        ] {
            assert_eq!((findings.learn(passed, &rule), findings.is_sick()), (turns, is_sick));
        }
        assert_eq!(findings.failed(), 7);
    }

    /// Goal: a check names the host as a client would.
    #[test]
    fn a_check_names_the_host() {
        let host = |target: &config::Endpoint| {
            let text = request(target, "/h?x");
            assert!(text.starts_with("GET /h?x HTTP/1.1\r\nhost: "), "{text}");
            text.lines().nth(1).unwrap().to_owned()
        };
        let http = |host: &str, port| config::Endpoint::Http { host: host.to_owned(), port };
        assert_eq!(host(&http("a", 80)), "host: a");
        assert_eq!(host(&http("::1", 81)), "host: [::1]:81");
        let https = config::Endpoint::Https { host: "a".to_owned(), port: 443 };
        assert_eq!(host(&https), "host: a");
    }
}
