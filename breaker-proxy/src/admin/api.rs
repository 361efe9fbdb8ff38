//! What each admin endpoint says and does, one function for each; it reads no socket.

use crate::control::ledger::Kill;
use crate::control::orders::{OrderBody, Person, REASON_MAX, Refusal};
use crate::control::record::{Level, LiftTo};
use crate::control::sweep::Whose;
use crate::control::task::{Control, shown};
use crate::data::counts::Totals;
use crate::metrics;
use crate::snapshot::{detector_name, limit_name};
use breaker_core::{By, Cause, DetectorSpec, KillLevel, Mode, Mono, Scope, Span, State};
use bytes::Bytes;
use hyper::StatusCode;
use serde::Serialize;

/// An answer of the admin plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The content type.
    pub kind: &'static str,
    /// The body.
    pub body: Bytes,
    /// For 405: what is allowed.
    pub allow: Option<&'static str>,
}

impl Reply {
    /// Plain text.
    #[must_use]
    pub fn text(status: StatusCode, text: &str) -> Reply {
        let kind = "text/plain; charset=utf-8";
        Reply { status, kind, body: Bytes::from(text.to_owned()), allow: None }
    }

    fn json(status: StatusCode, value: &impl Serialize) -> Reply {
        let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
        body.push(b'\n');
        Reply { status, kind: "application/json", body: Bytes::from(body), allow: None }
    }

    /// A problem document (RFC 9457).
    #[must_use]
    pub fn problem(status: StatusCode, code: &str, detail: &str) -> Reply {
        Reply::problem_near(status, code, detail, &[])
    }

    fn problem_near(status: StatusCode, code: &str, detail: &str, nearest: &[Scope]) -> Reply {
        let problem = ProblemView {
            r#type: format!("urn:breaker:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Problem"),
            status: status.as_u16(),
            code,
            detail,
            nearest: nearest.iter().map(Scope::as_str).collect(),
        };
        Reply { kind: "application/problem+json", ..Reply::json(status, &problem) }
    }

    /// The method is not the one this path takes; nothing was done.
    #[must_use]
    pub fn not_allowed(allow: &'static str) -> Reply {
        let detail = format!("only {allow} does this; nothing was changed");
        let reply = Reply::problem(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", &detail);
        Reply { allow: Some(allow), ..reply }
    }
}

#[derive(Serialize)]
struct ProblemView<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    /// Stable: programs may rely on it.
    code: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nearest: Vec<&'a str>,
}

/// Carries out `POST /v1/{verb}{path}`.
pub async fn order(control: &Control, verb: &str, path: &str, body: &[u8]) -> Reply {
    let bad = |detail: &str| Reply::problem(StatusCode::BAD_REQUEST, "bad-order", detail);
    let scope = match Scope::parse(path) {
        Ok(scope) => scope,
        Err(error) => return bad(&format!("the scope {path:?}: {}", error.problem)),
    };
    let Some(scope) = control.plane().current.load().spelled(&scope) else {
        return bad(&format!(
            "the scope {path:?}: no request carries this label; a peer is an address, and a value has no blanks around it"
        ));
    };
    let body: OrderBody = match serde_json::from_slice(body) {
        Ok(body) => body,
        Err(error) => {
            return bad(&format!("the body must be JSON such as {{\"reason\": \"…\"}}: {error}"));
        }
    };
    let reason = body.reason.trim();
    if reason.is_empty() || reason.len() > REASON_MAX {
        return bad(&format!("a reason of 1 to {REASON_MAX} bytes is needed, for the record"));
    }
    let misplaced = match verb {
        "kill" => !body.kills.is_empty() || body.to.is_some(),
        "lift" => body.level.is_some(),
        _ => body.level.is_some() || body.to.is_some() || !body.kills.is_empty(),
    };
    if misplaced {
        return bad("`level` goes with kill, `kills` and `to` go with lift");
    }
    let actor = body.actor.as_deref().map(str::trim).filter(|actor| !actor.is_empty());
    if actor.is_some_and(|actor| actor.len() > 64) {
        return bad("an actor has at most 64 bytes");
    }
    let actor = actor.unwrap_or("admin-token").to_owned();
    let person = Person { actor, reason: reason.to_owned() };
    let result = match verb {
        "kill" => {
            let level = body.level.unwrap_or(Level::Halt);
            control.kill(&scope, level, person).await.map(|answer| {
                // In force without being durable, or without silence, is not "done".
                let status =
                    if answer.done() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Reply::json(status, &answer)
            })
        }
        "lift" => {
            let to = body.to.unwrap_or(LiftTo::HalfOpen);
            let lifted = control.lift(&scope, &body.kills, to, person).await;
            lifted.map(|answer| {
                // Lifted, but a restart would find it killed: not "done".
                let status =
                    if answer.durable { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Reply::json(status, &answer)
            })
        }
        "trip" => control.trip(&scope, person).await.map(|answer| moved(&answer)),
        _ => control.reset(&scope, person).await.map(|answer| moved(&answer)),
    };
    result.unwrap_or_else(|refusal| refused(&scope, &refusal))
}

fn moved(answer: &crate::control::orders::MoveAnswer) -> Reply {
    let status = if answer.durable { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::json(status, answer)
}

fn refused(scope: &Scope, refusal: &Refusal) -> Reply {
    let conflict = StatusCode::CONFLICT;
    match refusal {
        Refusal::UnknownScope(nearest) => Reply::problem_near(
            StatusCode::NOT_FOUND,
            "unknown-scope",
            &format!("there is no scope {scope}; nothing was changed"),
            nearest,
        ),
        Refusal::NoRoom => Reply::problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "no-room",
            "no room for one more kill here; kill a wider scope (`/` always works)",
        ),
        Refusal::NotKilled => {
            let detail = format!(
                "{scope} has no live kill (a scope that is tripped is reset: POST /v1/reset{scope})"
            );
            Reply::problem(conflict, "not-killed", &detail)
        }
        Refusal::UnknownKills(ids) => Reply::problem(
            conflict,
            "unknown-kills",
            &format!("{} not among the live kills of {scope}; nothing was lifted", ids.join(", ")),
        ),
        Refusal::Killed => Reply::problem(
            conflict,
            "killed",
            &format!("{scope} is killed: it is lifted, not tripped or reset"),
        ),
        Refusal::Stale => Reply::problem(
            conflict,
            "stale",
            &format!("{scope} moved in the meantime: look at it again"),
        ),
        Refusal::NotDurable => Reply::problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-durable",
            "the journal did not take it in time, so nothing was changed; see breaker_journal_up",
        ),
    }
}

/// `GET /ready`: the process answers here only after the kills were restored and the data plane was bound.
#[must_use]
pub fn ready(control: &Control) -> Reply {
    if control.plane().is_draining() {
        Reply::text(StatusCode::SERVICE_UNAVAILABLE, "stopping: new connections are not accepted\n")
    } else if control.journal_lost() {
        Reply::text(StatusCode::SERVICE_UNAVAILABLE, "the journal failed: kills are not durable\n")
    } else {
        Reply::text(StatusCode::OK, "ready\n")
    }
}

#[derive(Serialize)]
struct StatusView {
    version: &'static str,
    journal: &'static str,
    access_log: &'static str,
    accounts: Totals,
    balanced: bool,
    calls_open: u64,
    keys: KeysView,
    saves: SavesView,
    kills: Vec<Kill>,
    scopes: Vec<ScopeView>,
    limits: Vec<LimitView>,
    detectors: Vec<DetectorView>,
}

#[derive(Serialize)]
struct SavesView {
    good: u64,
    failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
}

/// How far one limit of a named scope is used.
#[derive(Serialize)]
struct LimitView {
    scope: String,
    limit: String,
    bound: u64,
    used: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    candidate: bool,
}

/// What one detector has found since the start.
#[derive(Serialize)]
struct DetectorView {
    scope: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimension: Option<String>,
    detector: String,
    enforced: u64,
    shadow: u64,
    warned: u64,
    capped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<FoundView>,
}

/// The newest finding of a detector.
#[derive(Serialize)]
struct FoundView {
    ago_ms: u64,
    value: f64,
    bound: f64,
    learned: bool,
    count: u64,
    of: u64,
}

#[derive(Serialize)]
struct KeysView {
    held: u64,
    cells: u64,
    overflowed: u64,
}

/// One scope as status shows it.
#[derive(Serialize)]
struct ScopeView {
    scope: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detector: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    back_in_ms: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    strikes: u8,
    mode: &'static str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(strikes: &u8) -> bool {
    *strikes == 0
}

/// `GET /v1/status`.
#[must_use]
pub fn status(control: &Control) -> Reply {
    let plane = control.plane();
    let now = plane.clock.mono();
    let kills = control.kills();
    let scopes = control
        .standings()
        .into_iter()
        .map(|(scope, standing)| {
            let id = match standing.state {
                State::Killed(_) => kills
                    .iter()
                    .filter(|kill| kill.scope == scope.as_str())
                    .max_by_key(|kill| kill.level)
                    .map(|kill| kill.id.clone()),
                State::Tripped | State::HalfOpen => {
                    Some(plane.names.trip_id(standing.place, standing.epoch))
                }
                State::Armed => None,
            };
            ScopeView {
                scope: scope.as_str().to_owned(),
                state: shown(&standing),
                level: match standing.state {
                    State::Killed(KillLevel::Halt) => Some("halt"),
                    State::Killed(KillLevel::Cut) => Some("cut"),
                    _ => None,
                },
                id,
                limit: match standing.cause {
                    Some(Cause::Tripped(By::Limit(limit))) => Some(limit),
                    _ => None,
                },
                detector: match standing.cause {
                    Some(Cause::Tripped(By::Detector(detector))) => Some(detector),
                    _ => None,
                },
                back_in_ms: standing.until.map(|until| millis(until.since(now))),
                strikes: standing.strikes,
                mode: match standing.mode {
                    Mode::Enforce => "enforce",
                    Mode::Shadow => "shadow",
                },
            }
        })
        .collect();
    let accounts = Totals::of(&plane.shards);
    let usage = plane.breaker.key_usage();
    let view = StatusView {
        version: env!("CARGO_PKG_VERSION"),
        journal: if control.journal_lost() { "lost" } else { "ok" },
        access_log: match &plane.sight.log {
            None => "off",
            Some(log) if log.is_failing() => "failing",
            Some(_) => "ok",
        },
        balanced: accounts.balance(),
        accounts,
        calls_open: plane.shards.iter().map(|shard| shard.calls.get()).sum(),
        keys: KeysView { held: usage.held, cells: usage.cells, overflowed: usage.overflowed },
        saves: SavesView {
            good: control.saves().good(),
            failed: control.saves().failed(),
            age_ms: control.saves().age(now).map(millis),
        },
        kills,
        scopes,
        limits: limits(control, now),
        detectors: detectors(control, now),
    };
    Reply::json(StatusCode::OK, &view)
}

fn millis(span: Span) -> u64 {
    span.as_nanos().div_ceil(1_000_000)
}

fn limits(control: &Control, now: Mono) -> Vec<LimitView> {
    let plane = control.plane();
    let snapshot = plane.current.load();
    let mut all = Vec::new();
    for (path, rules) in snapshot.scopes() {
        let Ok(scope) = Scope::parse(&path) else { continue };
        let usage = plane.breaker.usage(&snapshot.policy, &scope, now).unwrap_or_default();
        for ((index, limit), usage) in (0u8..).zip(&rules.limits).zip(usage) {
            all.push(LimitView {
                scope: path.clone(),
                limit: limit_name(limit, index),
                bound: usage.bound,
                used: usage.used,
                candidate: limit.candidate,
            });
        }
    }
    all
}

fn detectors(control: &Control, now: Mono) -> Vec<DetectorView> {
    let snapshot = control.plane().current.load();
    let tallies = control.tallies();
    let mut all = Vec::new();
    let mut tell = |scope: &str, dimension: Option<&str>, rules: &[DetectorSpec]| {
        for (index, rule) in (0u8..).zip(rules) {
            let dimension = dimension.map(ToOwned::to_owned);
            let whose = Whose { scope: scope.to_owned(), dimension: dimension.clone() };
            let counts = tallies.findings.get(&(whose, index)).copied().unwrap_or_default();
            all.push(DetectorView {
                scope: scope.to_owned(),
                dimension,
                detector: detector_name(rule, index),
                enforced: counts.enforced,
                shadow: counts.shadowed,
                warned: counts.warned,
                capped: counts.capped,
                last: counts.last.map(|(at, found)| FoundView {
                    ago_ms: millis(now.since(at)),
                    value: found.value,
                    bound: found.bound,
                    learned: found.learned,
                    count: found.count,
                    of: found.of,
                }),
            });
        }
    };
    for (scope, rules) in snapshot.scopes() {
        tell(&scope, None, &rules.detectors);
        for key in &rules.keys {
            tell(&scope, Some(&key.name), &key.detectors);
        }
    }
    all
}

/// `GET /metrics`.
#[must_use]
pub fn metrics(control: &Control) -> Reply {
    let text = metrics::render(control);
    Reply {
        status: StatusCode::OK,
        kind: "text/plain; version=0.0.4; charset=utf-8",
        body: Bytes::from(text),
        allow: None,
    }
}
