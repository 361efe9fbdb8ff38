//! The life of a request, top to bottom: read, route, key, decide, send, answer; it parses no bytes and opens no socket.

use super::Worker;
use super::body::{Reply, Upload};
use super::flight::Call;
use super::headers::Peer;
use super::reply::Invalid;
use super::upstream::forward;
use super::{headers, reply};
use crate::keys;
use crate::path;
use crate::snapshot::{Plan, Snapshot};
use breaker_core::{Class, Denial, Verdict};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

/// What the steps before sending came to. `Ok` sends: the call, and the index of its upstream. `Err` answers; the upstream
/// never hears of the request.
type Decision = Result<(Call, usize), Response<Reply>>;

/// Takes one request to its answer. Every request ends in exactly one place of its route's account.
pub async fn handle(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let (mut head, body) = request.into_parts();
    let (call, upstream) = match decide(&worker, &peer, &mut head, &body) {
        Ok(sent) => sent,
        Err(response) => return response,
    };
    let upload = Upload::new(body, worker.plane.bounds.body_bytes);
    let request = Request::from_parts(head, upload);
    match forward(&worker, call, upstream, request).await {
        Ok(answer) => answered(answer),
        Err(failure) => {
            let snapshot = worker.plane.current.load();
            reply::failed(worker.plane, &snapshot.policy, &failure)
        }
    }
}

/// Everything up to the decision, in one go: no await, so that one snapshot and one instant serve all of it.
#[expect(clippy::result_large_err, reason = "an answer is made once and moved once")]
fn decide(worker: &Rc<Worker>, peer: &Rc<Peer>, head: &mut Parts, body: &Incoming) -> Decision {
    let plane = worker.plane;
    let current = plane.current.load();
    let snapshot: &Snapshot = &current;
    let nowhere = &worker.shard.nowhere;

    let (host, canonical) = match target(head) {
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

    if let (Some(most), Some(length)) = (plane.bounds.body_bytes, body.size_hint().exact())
        && length > most
    {
        account.invalid.up();
        return Err(reply::invalid(&Invalid::TooLarge));
    }
    if snapshot.policy.class(plan.route) == Class::Reducing
        && OVERRIDES.iter().any(|name| head.headers.contains_key(name))
    {
        account.invalid.up();
        return Err(reply::invalid(&Invalid::Override));
    }
    let call = breaker_core::Call::new(plan.route);
    let call = match keys::read(plane.breaker, &plan.keys, &head.headers, peer.ip, call) {
        Ok(call) => call,
        Err(error) => {
            account.invalid.up();
            return Err(reply::invalid(&Invalid::Key(error)));
        }
    };
    match plane.breaker.admit(&snapshot.policy, call, plane.clock.mono()) {
        Verdict::Deny(denial) => {
            if matches!(denial.cause, breaker_core::Cause::Limit(_)) {
                account.throttled.up();
            } else {
                account.halted.up();
            }
            learn(worker, plan, head, peer, &denial);
            Err(reply::denied(plane, &snapshot.policy, &denial))
        }
        Verdict::Allow(permit) => {
            if let Some(denial) = permit.shadowed() {
                account.shadowed.up();
                learn(worker, plan, head, peer, &denial);
            }
            // An HTTP/2 connection carries other answers too.
            let client = (head.version != Version::HTTP_2).then(|| Rc::clone(peer));
            let (pass, ticket) = (permit.pass(), permit.detach());
            let kept = Arc::clone(&current);
            let call = Call::new(Rc::clone(worker), index, kept, pass, ticket, client);
            let canonical = match canonical {
                Cow::Borrowed(_) => None,
                Cow::Owned(path) => Some(path),
            };
            rewrite(worker, peer, head, &host, canonical.as_deref());
            if body.is_end_stream() && tells_length(&head.method) {
                head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Ok((call, plan.upstream))
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
fn learn(worker: &Worker, plan: &Plan, head: &Parts, peer: &Peer, denial: &Denial) {
    if let Some((dimension, key)) = denial.place.key {
        keys::each_label(&plan.keys, &head.headers, peer.ip, |index, label| {
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
fn target(head: &Parts) -> Result<(Authority, Cow<'_, str>), Invalid> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Invalid::Method);
    }
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (named, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Invalid::Host);
    }
    // The authority of the target replaces Host (RFC 9112, 3.2.2).
    let host = match (head.uri.authority(), named) {
        (Some(authority), _) => authority.clone(),
        (None, Some(named)) => Authority::try_from(named.as_bytes()).map_err(|_| Invalid::Host)?,
        (None, None) => return Err(Invalid::Host),
    };
    if host.as_str().contains('@') || host.host().is_empty() || !has_good_port(&host) {
        return Err(Invalid::Host);
    }
    let path = path::canonical(head.uri.path()).map_err(Invalid::Path)?;
    Ok((host, path))
}

/// Whether what stands behind the host is nothing, or a port that exists.
fn has_good_port(host: &Authority) -> bool {
    let behind = host.as_str().strip_prefix(host.host()).unwrap_or_default();
    behind.is_empty() || host.port_u16().is_some()
}

/// Makes of the client's head the one we send: canonical target (where it is not canonical already), our own framing and forwarding fields.
fn rewrite(
    worker: &Worker,
    peer: &Peer,
    head: &mut Parts,
    host: &Authority,
    canonical: Option<&str>,
) {
    if head.version == Version::HTTP_2 {
        headers::join_cookies(&mut head.headers);
    }
    head.version = Version::HTTP_11;
    let target = match canonical {
        None => head.uri.path_and_query().cloned(),
        Some(canonical) => {
            let whole = match head.uri.query() {
                Some(query) => format!("{canonical}?{query}"),
                None => canonical.to_owned(),
            };
            PathAndQuery::try_from(whole).ok()
        }
    };
    head.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    headers::strip_hop_by_hop(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.remove(header::EXPECT);
    if let Ok(host) = HeaderValue::from_str(host.as_str()) {
        headers::own_forwarding(&mut head.headers, worker.plane.wire.forwarded, peer, &host);
        head.headers.insert(header::HOST, host);
    }
}

/// Whether a request of this method says so when it has no body: else some servers answer 411, or wait for one (RFC 9110, 8.6).
fn tells_length(method: &Method) -> bool {
    *method == Method::POST || *method == Method::PUT || *method == Method::PATCH
}

/// The upstream's answer as ours.
fn answered(answer: super::upstream::Answer) -> Response<Reply> {
    let (mut head, (body, mut exchange)) = answer.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for another protocol: the field that asks is never forwarded.
        exchange.unusable();
        return reply::unasked_switch();
    }
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        head.headers.remove(header::CONTENT_LENGTH);
    }
    headers::strip_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    if body.is_end_stream() {
        // Nobody polls a body that is at its end.
        exchange.finish();
        return Response::from_parts(head, Reply::Whole(None));
    }
    Response::from_parts(head, Reply::flow(body, exchange))
}
