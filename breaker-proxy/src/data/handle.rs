//! The life of a request, top to bottom: read, route, key, decide, send, answer; it parses no bytes and opens no socket.

use super::Worker;
use super::answer::Answer;
use super::body::Reply;
use super::flight::Call;
use super::inspect::Waiting;
use super::interim::{Interim, Respond};
use super::peer::Peer;
use super::reply;
use super::reply::Invalid;
use super::upload::Upload;
use super::upstream::{Exchange, Outgoing, forward};
use crate::inspect::prefix::{Prefix, Seen};
use crate::keys::Given;
use crate::path::{self, PathError};
use crate::snapshot::{Plan, Snapshot};
use crate::wire::answer::Head;
use crate::wire::asked::Asked;
use crate::wire::head::{BadHead, may_stand_in_target};
use crate::wire::request::{self, Framing, Ours};
use breaker_core::{Class, Denial, Verdict};
use h2::RecvStream;
use hyper::header::{self, HeaderName};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

/// What the steps before sending came to. `Ok` sends. `Err` answers; the upstream never hears of the request.
pub type Decision = Result<Admitted, Response<Reply>>;

/// A call that may be sent.
pub struct Admitted {
    call: Call,
    /// The index of its upstream.
    upstream: usize,
    /// The request's head.
    head: Vec<u8>,
    /// It asks to go on as a WebSocket, and may.
    switches: bool,
}

/// Takes one HTTP/2 request to its answer. Every request ends in exactly one place of its route's account.
pub async fn handle(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<RecvStream>,
    respond: Respond,
) -> Answer {
    let (head, body) = request.into_parts();
    let mut body = Upload::of_http2(&worker, body, &head.headers, &respond);
    let asked = Asked::of(&head);
    let to_head = asked.method == Method::HEAD;
    let decision = match waits(&worker, &peer, &asked, body.framing()) {
        Some(waiting) => waiting.decide(&worker, &peer, &mut body).await,
        None => decide(&worker, &peer, &asked, body.framing(), None),
    };
    let answer = match decision {
        Ok(sent) => {
            let method = asked.method;
            drop(head);
            send(&worker, sent, &method, body, Some(Interim::Http2(respond))).await
        }
        Err(response) => response.into(),
    };
    if to_head { without_body(answer) } else { answer }
}

/// An answer to a HEAD: our own words are as long as they would be, and do not come.
fn without_body(mut answer: Answer) -> Answer {
    if let Reply::Whole(Some(words)) = &answer.body {
        answer.told = u64::try_from(words.len()).ok();
        answer.body = Reply::Whole(None);
    }
    answer
}

/// Sends an admitted call and waits for the head of its answer, which a client of HTTP/2 wants as a map, all others as lines. `interim` is
/// who is told of what comes before.
pub async fn send(
    worker: &Rc<Worker>,
    admitted: Admitted,
    method: &Method,
    body: Upload,
    interim: Option<Interim>,
) -> Answer {
    let as_lines = !matches!(interim, Some(Interim::Http2(_)));
    let Admitted { call, upstream, head, switches } = admitted;
    let framing = body.framing();
    let to_head = *method == Method::HEAD;
    let again = *method == Method::GET && framing == Framing::None;
    let request = Outgoing { head, body, framing, to_head, again, switches, as_lines, interim };
    match forward(worker, call, upstream, request).await {
        Ok((head, exchange)) => answered(head, exchange, switches),
        Err(failure) => {
            let snapshot = worker.plane.current.load();
            reply::failed(worker.plane, &snapshot.policy, &failure).into()
        }
    }
}

/// The request, if it cannot be decided before its body was looked into.
#[must_use]
pub fn waits(worker: &Worker, peer: &Peer, head: &Asked<'_>, framing: Framing) -> Option<Waiting> {
    let current = worker.plane.current.load();
    if framing == Framing::None || !current.looks_into_bodies {
        return None;
    }
    let (host, canonical) = target(head, peer).ok()?;
    let index = current.router.find(Some(host.host()), &head.method, &canonical)?;
    let looks = current.plans.get(index)?.keys.looks_into_body();
    looks.then(|| Waiting::new(head, framing, index))
}

/// Everything up to the decision, in one go: no await, so that one snapshot and one instant serve all of it. `seen` is what was looked
/// into of the body of one that had to wait.
///
/// # Errors
/// The answer to a request that is not sent.
#[expect(clippy::result_large_err, reason = "an answer is made once and moved once")]
pub fn decide(
    worker: &Rc<Worker>,
    peer: &Rc<Peer>,
    head: &Asked<'_>,
    framing: Framing,
    seen: Option<&Prefix>,
) -> Decision {
    let plane = worker.plane;
    let current = plane.current.load();
    let snapshot: &Snapshot = &current;
    let nowhere = &worker.shard.nowhere;

    let (host, canonical) = match target(head, peer) {
        Ok(target) => target,
        Err(why) => {
            nowhere.offered.up();
            nowhere.invalid.up();
            return Err(reply::invalid(&why));
        }
    };
    let found = snapshot.router.find(Some(host.host()), &head.method, &canonical);
    let Some((index, plan)) = found.and_then(|index| Some((index, snapshot.plans.get(index)?)))
    else {
        nowhere.offered.up();
        nowhere.unrouted.up();
        return Err(reply::unrouted());
    };
    let account = worker.shard.account(index);
    account.offered.up();

    if let (Some(most), Framing::Length(length)) = (plane.bounds.body_bytes, framing)
        && length > most
    {
        account.invalid.up();
        return Err(reply::invalid(&Invalid::TooLarge));
    }
    if snapshot.policy.class(plan.route) == Class::Reducing
        && OVERRIDES.iter().any(|name| head.fields.has(name))
    {
        account.invalid.up();
        return Err(reply::invalid(&Invalid::Override));
    }
    let length = match framing {
        Framing::None => Some(0),
        Framing::Length(length) => Some(length),
        Framing::Chunked => None,
    };
    let body = match (seen, framing) {
        (Some(prefix), _) => prefix.seen(),
        (None, Framing::None) => Seen::Whole(b""),
        (None, _) => Seen::Nothing,
    };
    let certificate = peer.certificate.as_deref();
    let given = Given { head, path: &canonical, peer: peer.ip, certificate, length, body };
    let call = breaker_core::Call::new(plan.route);
    let call = match plan.keys.read(plane.breaker, &given, call) {
        Ok((call, unread)) => {
            if unread {
                account.unread.up();
            }
            call
        }
        Err(error) => {
            account.invalid.up();
            return Err(reply::invalid(&Invalid::Key(error)));
        }
    };
    let whole = match body {
        Seen::Whole(body) => Some(body),
        Seen::Nothing | Seen::TooLong => None,
    };
    let method = head.method.as_str().as_bytes();
    let call = match plan.print(plane.breaker, method, &canonical, head.query, whole) {
        Some(print) => call.with_fingerprint(print),
        None => call,
    };
    match plane.breaker.admit(&snapshot.policy, call, plane.clock.mono()) {
        Verdict::Deny(denial) => {
            if matches!(denial.cause, breaker_core::Cause::Limit(_)) {
                account.throttled.up();
            } else {
                account.halted.up();
            }
            learn(worker, plan, &given, &denial);
            Err(reply::denied(plane, &snapshot.policy, &denial))
        }
        Verdict::Allow(permit) => {
            if let Some(denial) = permit.shadowed() {
                account.shadowed.up();
                learn(worker, plan, &given, &denial);
            }
            if plan.learns {
                plan.keys.each_label(&given, |_, label| {
                    plane.names.learn(plane.breaker.hash(label), label);
                });
            }
            // An HTTP/2 connection carries other answers too.
            let client = (!head.http2).then(|| Rc::clone(peer));
            let (pass, ticket) = (permit.pass(), permit.detach());
            let kept = Arc::clone(&current);
            let call = Call::new(Rc::clone(worker), index, kept, pass, ticket, client);
            let switches = plan.websocket && framing == Framing::None && head.wants_websocket();
            let mut out = worker.take_spare();
            let ours = Ours {
                host: host.as_str(),
                path: &canonical,
                framing,
                switches,
                forwarded: plane.wire.forwarded,
                secure: peer.secure,
                trusted: peer.trusted,
                peer: peer.ip,
                peer_text: &peer.text,
            };
            request::write(&mut out, head, &ours);
            Ok(Admitted { call, upstream: plan.upstream, head: out, switches })
        }
    }
}

/// Fields by which some servers take a request for one of another method. A route that passes a halt must not carry them: a
/// DELETE could be an order.
const OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// Remembers the label of the key a denial speaks of, and tells the sweeper if a gate moved.
fn learn(worker: &Worker, plan: &Plan, given: &Given<'_>, denial: &Denial) {
    if let Some((dimension, key)) = denial.place.key {
        plan.keys.each_label(given, |index, label| {
            if index == dimension {
                worker.plane.names.learn(key, label);
            }
        });
    }
    if denial.moved {
        worker.plane.nudge.notify_one();
    }
}

/// The host and the canonical path of a request, or what is wrong with them.
fn target<'a>(head: &Asked<'a>, peer: &Peer) -> Result<(Authority, Cow<'a, str>), Invalid> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Invalid::Method);
    }
    // HTTP/1 was asked this about the whole head.
    let mut expectations = head.fields.all(&header::EXPECT);
    if head.http2 && expectations.any(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
        return Err(Invalid::Head(BadHead::Expectation));
    }
    let (hosts, named) = head.fields.host();
    // HTTP/1 must name one, and a good one, whatever its target says (RFC 9112, 3.2).
    if hosts > 1 || (hosts == 0 && !head.http2) {
        return Err(Invalid::Host);
    }
    if let (Some(named), Some(_), false) = (named, head.authority, head.http2)
        && !Authority::try_from(named).is_ok_and(|host| is_good(&host))
    {
        return Err(Invalid::Host);
    }
    // HTTP/1 was asked this about the whole target.
    if let (true, Some(query)) = (head.http2, head.query)
        && let Some(byte) = query.bytes().find(|byte| !may_stand_in_target(byte))
    {
        return Err(Invalid::Path(PathError::BadByte(byte)));
    }
    // The authority of the target replaces Host (RFC 9112, 3.2.2).
    let named = head.authority.map(str::as_bytes).or(named).ok_or(Invalid::Host)?;
    let host = peer.host(named).ok_or(Invalid::Host)?;
    if !is_good(&host) {
        return Err(Invalid::Host);
    }
    let path = path::canonical(head.path).map_err(Invalid::Path)?;
    Ok((host, path))
}

/// Whether it is a host, and perhaps a port, and nothing else.
fn is_good(host: &Authority) -> bool {
    !host.as_str().contains('@') && !host.host().is_empty() && has_good_port(host)
}

/// Whether what stands behind the host is nothing, or a port that exists.
fn has_good_port(host: &Authority) -> bool {
    let behind = host.as_str().strip_prefix(host.host()).unwrap_or_default();
    behind.is_empty() || host.port_u16().is_some()
}

/// The upstream's answer as ours.
fn answered(head: Head, mut exchange: Box<Exchange>, switches: bool) -> Answer {
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if switched && !(switches && head.is_websocket) {
        // Nobody asked for that protocol.
        exchange.unusable();
        return reply::unasked_switch().into();
    }
    let body = if switched {
        Reply::Switched(exchange)
    } else if exchange.is_at_end() {
        // Nobody polls a body that is at its end.
        exchange.finish();
        Reply::Whole(None)
    } else if exchange.still_sends() {
        Reply::Both(exchange.send_apart())
    } else {
        Reply::Flow(exchange)
    };
    Answer { status: head.status, fields: head.fields, told: head.told, body }
}
