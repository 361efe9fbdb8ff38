//! What the tests say to a proxy's admin plane, and when its answers came; it judges no answer.

use crate::error::LoadError;
use crate::stamp::{self, Room, Wall};
use crate::wire::{Decoder, Event, Side};
use serde_json::Value;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Where an admin plane is, and what opens it.
#[derive(Clone)]
pub(crate) struct Admin {
    addr: SocketAddr,
    token: String,
}

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The body; `Null` where it is no JSON.
    pub(crate) body: Value,
    /// When the kernel received the answer's first byte.
    pub(crate) at: Wall,
    /// From the call to the answer's last byte.
    pub(crate) took: Duration,
}

impl Answer {
    /// A number of the body; `None` where it is missing or none.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.body.get(name).and_then(Value::as_u64)
    }

    /// A yes or no of the body; missing counts as no.
    pub(crate) fn says(&self, name: &str) -> bool {
        self.body.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The answer itself if its status is 200, else an error.
    pub(crate) fn good(self) -> Result<Answer, LoadError> {
        if self.status == 200 {
            Ok(self)
        } else {
            Err(LoadError::Admin { status: self.status, body: self.body.to_string() })
        }
    }
}

/// The proxy's own count of calls. The identity: offered is the sum of all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    pub(crate) offered: u64,
    pub(crate) forwarded: u64,
    pub(crate) throttled: u64,
    pub(crate) halted: u64,
    pub(crate) invalid: u64,
    pub(crate) unrouted: u64,
    pub(crate) failed: u64,
    pub(crate) in_flight: u64,
}

impl Accounts {
    /// The sum of everything a call can end as.
    pub(crate) fn sum(&self) -> u64 {
        self.forwarded
            + self.throttled
            + self.halted
            + self.invalid
            + self.unrouted
            + self.failed
            + self.in_flight
    }

    /// What was added since `earlier`, account by account.
    pub(crate) fn since(&self, earlier: &Accounts) -> Accounts {
        Accounts {
            offered: self.offered.saturating_sub(earlier.offered),
            forwarded: self.forwarded.saturating_sub(earlier.forwarded),
            throttled: self.throttled.saturating_sub(earlier.throttled),
            halted: self.halted.saturating_sub(earlier.halted),
            invalid: self.invalid.saturating_sub(earlier.invalid),
            unrouted: self.unrouted.saturating_sub(earlier.unrouted),
            failed: self.failed.saturating_sub(earlier.failed),
            in_flight: self.in_flight,
        }
    }

    fn read(status: &Value) -> Option<Accounts> {
        let accounts = status.get("accounts")?;
        let number = |name: &str| accounts.get(name).and_then(Value::as_u64);
        Some(Accounts {
            offered: number("offered")?,
            forwarded: number("forwarded")?,
            throttled: number("throttled")?,
            halted: number("halted")?,
            invalid: number("invalid")?,
            unrouted: number("unrouted")?,
            failed: number("failed")?,
            in_flight: number("in_flight")?,
        })
    }
}

impl Admin {
    /// An admin plane at `addr` that takes `token`.
    pub(crate) fn new(addr: SocketAddr, token: &str) -> Admin {
        Admin { addr, token: token.to_owned() }
    }

    /// `POST /v1/kill/{scope}`; `level` is `halt` or `cut`.
    pub(crate) fn kill(&self, scope: &str, level: &str) -> Result<Answer, LoadError> {
        self.post("kill", scope, &serde_json::json!({ "reason": REASON, "level": level }))
    }

    /// `POST /v1/lift/{scope}`, straight back to armed.
    pub(crate) fn lift(&self, scope: &str) -> Result<Answer, LoadError> {
        self.post("lift", scope, &serde_json::json!({ "reason": REASON, "to": "armed" }))
    }

    /// `POST /v1/trip/{scope}`.
    pub(crate) fn trip(&self, scope: &str) -> Result<Answer, LoadError> {
        self.post("trip", scope, &serde_json::json!({ "reason": REASON }))
    }

    /// `POST /v1/reset/{scope}`.
    pub(crate) fn reset(&self, scope: &str) -> Result<Answer, LoadError> {
        self.post("reset", scope, &serde_json::json!({ "reason": REASON }))
    }

    /// The totals of `GET /v1/status`.
    pub(crate) fn accounts(&self) -> Result<Accounts, LoadError> {
        let status = self.status()?;
        Accounts::read(&status)
            .ok_or_else(|| LoadError::Unreadable(format!("the accounts in {status}")))
    }

    /// All of `GET /v1/status`.
    pub(crate) fn status(&self) -> Result<Value, LoadError> {
        self.call("GET", "/v1/status", "")?.good().map(|answer| answer.body)
    }

    /// Reads the page of `GET /metrics`, as a scraper would.
    pub(crate) fn scrape(&self) -> Result<(), LoadError> {
        self.call("GET", "/metrics", "")?.good().map(drop)
    }

    fn post(&self, verb: &str, scope: &str, body: &Value) -> Result<Answer, LoadError> {
        self.call("POST", &format!("/v1/{verb}{scope}"), &body.to_string())
    }

    /// One call on a connection of its own.
    fn call(&self, method: &str, path: &str, body: &str) -> Result<Answer, LoadError> {
        let stream =
            TcpStream::connect(self.addr).map_err(LoadError::io("reach the admin plane"))?;
        let prepared = stamp::enable(&stream)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
        prepared.map_err(LoadError::io("prepare an admin connection"))?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.addr,
            self.token,
            body.len()
        );
        let start = Instant::now();
        (&stream).write_all(request.as_bytes()).map_err(LoadError::io("write an admin call"))?;
        let mut decoder = Decoder::new(Side::Response).keeping(LONGEST_BODY);
        let mut room = Room::new();
        let mut buffer = vec![0; 16 * 1024];
        let mut at = None;
        let mut status = 0;
        loop {
            // The first byte alone: its arrival is the answer's, and a later segment must not move it.
            let most = if at.is_none() { 1 } else { buffer.len() };
            let taken = stamp::read(&stream, buffer.get_mut(..most).unwrap_or_default(), &mut room)
                .map_err(LoadError::io("read an admin answer"))?;
            let at = *at.get_or_insert(taken.at.unwrap_or_else(stamp::wall));
            let mut rest = buffer.get(..taken.bytes).unwrap_or_default();
            if rest.is_empty() {
                return Err(LoadError::Unreadable("an admin answer: it broke off".to_owned()));
            }
            loop {
                let (used, event) = decoder.push(rest)?;
                rest = rest.get(used..).unwrap_or_default();
                match event {
                    Event::More => break,
                    Event::Head(head) => status = head.status,
                    Event::End => {
                        let body = serde_json::from_slice(decoder.body()).unwrap_or(Value::Null);
                        return Ok(Answer { status, body, at, took: start.elapsed() });
                    }
                }
            }
        }
    }
}

/// What the records of the proxy will say.
const REASON: &str = "load test";

/// How long one read of an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much of a body is kept.
const LONGEST_BODY: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: accounts are read whole or not at all, and the identity is a plain sum.
    #[test]
    fn accounts_are_read_whole() {
        let text = serde_json::json!({ "accounts": {
            "offered": 28, "forwarded": 1, "throttled": 2, "halted": 3, "invalid": 4,
            "unrouted": 5, "failed": 6, "in_flight": 7 } });
        let accounts = Accounts::read(&text).unwrap();
        assert_eq!(accounts.sum(), accounts.offered);
        assert_eq!(accounts.since(&accounts), Accounts { in_flight: 7, ..Accounts::default() });
        let mut short = text.clone();
        short["accounts"].as_object_mut().unwrap().remove("failed");
        assert_eq!(Accounts::read(&short), None);
    }
}
