//! The life of a request, top to bottom: read, route, key, decide, send, answer; it parses no bytes and opens no socket.

use super::Worker;
use super::answer::Answer;
use super::body::Reply;
use super::failure::Failure;
use super::flight::Call;
use super::inspect::Waiting;
use super::interim::{Interim, Respond};
use super::peer::Peer;
use super::reply;
use super::reply::{Invalid, Refusal};
use super::settle::Settling;
use super::upload::Upload;
use super::upstream::{Carrier, Outgoing, forward};
use super::visit::{Course, Verdict, Visit};
use super::watched::Watch;
use crate::inspect::prefix::{Prefix, Seen};
use crate::keys::Given;
use crate::path::{self, PathError};
use crate::snapshot::{Plan, Snapshot};
use crate::wire::answer::Head;
use crate::wire::asked::Asked;
use crate::wire::grpc::Grpc;
use crate::wire::head::{BadHead, may_stand_in_target};
use crate::wire::request::{self, Framing, Ours};
use breaker_core::{Class, Denial, Mono, Verdict as Decided};
use h2::RecvStream;
use hyper::header::{self, HeaderName};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use std::borrow::Cow;
use std::cell::RefCell;
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
    /// It speaks gRPC.
    grpc: Option<Grpc>,
    /// What its answer says of its weight.
    settling: Option<Rc<Settling>>,
    /// A status may follow what has come of its answer, should that break off.
    may_trail: bool,
    /// What its client's request is told of it.
    course: Rc<Course>,
}

/// When a request is decided about, and who is told of it.
#[derive(Clone, Copy)]
pub struct Moment<'v> {
    /// The one instant of the whole decision.
    pub now: Mono,
    /// The course of the request.
    pub course: &'v Rc<Course>,
}

/// Takes one HTTP/2 request to its answer. Every request ends in exactly one place of its route's account.
pub async fn handle(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<RecvStream>,
    respond: Respond,
) -> (Answer, Visit) {
    let now = worker.plane.clock.mono();
    let visit = Visit::begin(&worker, now);
    let (head, body) = request.into_parts();
    let mut body = Upload::of_http2(&worker, body, &head.headers, &respond);
    body.tell(visit.course());
    let asked = Asked::of(&head);
    visit.note(&peer, Some(&asked));
    if grpc_of(&asked).is_some() {
        // A stream of messages comes as its sender has something to say, and its answer may begin at its end.
        body.take_time();
    }
    let to_head = asked.method == Method::HEAD;
    let decision = match waits(&worker, &peer, &asked, body.framing()) {
        Some(waiting) => visit.timed(waiting.decide(&worker, &peer, &mut body, &visit)).await,
        None => {
            let moment = Moment { now, course: visit.course() };
            decide(&worker, &peer, &asked, body.framing(), None, moment)
        }
    };
    let answer = match decision {
        Ok(sent) => {
            let method = asked.method;
            drop(head);
            let interim = Some(Interim::Http2(respond));
            visit.timed(send(&worker, sent, &method, body, interim)).await
        }
        Err(response) => visit.identified(response).into(),
    };
    visit.course().answered(answer.status);
    (if to_head { without_body(answer) } else { answer }, visit)
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
    let Admitted { call, upstream, head, switches, grpc, settling, may_trail, course } = admitted;
    let framing = body.framing();
    let to_head = *method == Method::HEAD;
    let again = *method == Method::GET && framing == Framing::None;
    let request = Outgoing { head, body, framing, to_head, again, switches, as_lines, interim };
    match forward(worker, call, upstream, request).await {
        Ok((head, carrier)) => {
            let watch = Watch { worker, settling, messages: may_trail };
            answered(head, carrier, switches, grpc, watch, &course)
        }
        Err(failure) => {
            course.ends(match &failure {
                Failure::Halted(denial) => Verdict::of(denial),
                Failure::Severed(_) => Verdict::Severed,
                _ => Verdict::Failed,
            });
            let snapshot = worker.plane.current.load();
            if let (Failure::Halted(denial) | Failure::Severed(denial), Some(notes)) =
                (&failure, course.notes())
            {
                notes.borrow_mut().denied(&snapshot, denial, &worker.plane.names);
            }
            let answer = reply::failed(worker.plane, &snapshot.policy, &failure).said(grpc);
            course.identified(answer).into()
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
    moment: Moment<'_>,
) -> Decision {
    judge(worker, peer, head, framing, seen, moment).map_err(|refusal| refusal.said(grpc_of(head)))
}

/// In which form a request speaks gRPC: always by a POST.
#[must_use]
pub fn grpc_of(head: &Asked<'_>) -> Option<Grpc> {
    if head.method == Method::POST { Grpc::of(head.fields) } else { None }
}

#[expect(clippy::result_large_err, reason = "as above")]
fn judge(
    worker: &Rc<Worker>,
    peer: &Rc<Peer>,
    head: &Asked<'_>,
    framing: Framing,
    seen: Option<&Prefix>,
    moment: Moment<'_>,
) -> Result<Admitted, Refusal> {
    let plane = worker.plane;
    let current = plane.current.load();
    let snapshot: &Snapshot = &current;
    let nowhere = &worker.shard.nowhere;
    moment.course.ends(Verdict::Invalid);

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
        moment.course.ends(Verdict::Unrouted);
        return Err(reply::unrouted());
    };
    let account = worker.shard.account(index);
    account.offered.up();
    moment.course.routed(index);
    if let Some(notes) = moment.course.notes() {
        let upstream = snapshot.upstreams.get(plan.upstream);
        let shown = upstream.map_or("", |upstream| match upstream.endpoints() {
            [only] => only.label(),
            _ => upstream.label(),
        });
        notes.borrow_mut().routed(&plane.sight, plan.scope.as_str(), &canonical, shown);
    }

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
    match plane.breaker.admit(&snapshot.policy, call, moment.now) {
        Decided::Deny(denial) => {
            moment.course.ends(Verdict::of(&denial));
            if matches!(denial.cause, breaker_core::Cause::Limit(_)) {
                account.throttled.up();
            } else {
                account.halted.up();
            }
            learn(worker, plan, &given, &denial);
            if let Some(notes) = moment.course.notes() {
                notes.borrow_mut().denied(snapshot, &denial, &plane.names);
            }
            Err(reply::denied(plane, &snapshot.policy, &denial))
        }
        Decided::Allow(permit) => {
            if let Some(denial) = permit.shadowed() {
                account.shadowed.up();
                learn(worker, plan, &given, &denial);
                if let Some(notes) = moment.course.notes() {
                    let mut notes = notes.borrow_mut();
                    notes.denied(snapshot, &denial, &plane.names);
                    notes.shadowed();
                }
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
            let settling = plan
                .settle
                .as_ref()
                .map(|settle| Rc::new(Settling::new(Arc::clone(settle), ticket.weight())));
            let call =
                Call::new(Rc::clone(worker), index, kept, pass, ticket, client, moment.course)
                    .settled_by(settling.clone());
            // Until it is answered.
            moment.course.ends(Verdict::Gone);
            let switches = plan.websocket && framing == Framing::None && head.wants_websocket();
            let mut out = worker.take_spare();
            let notes = moment.course.notes().map(RefCell::borrow);
            let ours = Ours {
                host: host.as_str(),
                path: &canonical,
                framing,
                switches,
                plain: plan.settle.as_ref().is_some_and(|settle| settle.looks_into_body()),
                forwarded: plane.wire.forwarded,
                secure: peer.secure,
                request_id: notes.as_ref().and_then(|notes| notes.request_id()),
                trusted: peer.trusted,
                peer: peer.ip,
                peer_text: &peer.text,
            };
            request::write(&mut out, head, &ours);
            let grpc = grpc_of(head);
            // Only HTTP/2 has trailers that every client waits for, and only plain gRPC has them as such.
            let may_trail = head.http2 && grpc == Some(Grpc::Plain);
            let (upstream, course) = (plan.upstream, Rc::clone(moment.course));
            Ok(Admitted { call, upstream, head: out, switches, grpc, settling, may_trail, course })
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
fn answered(
    head: Head,
    carrier: Carrier,
    switches: bool,
    grpc: Option<Grpc>,
    watch: Watch<'_>,
    course: &Course,
) -> Answer {
    let mut watching = watch.begin(&head);
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    course.ends(Verdict::Passed);
    let body = match carrier {
        Carrier::Exchange(exchange) if switched && !(switches && head.is_websocket) => {
            // Nobody asked for that protocol.
            exchange.unusable();
            course.ends(Verdict::Failed);
            return course.identified(reply::unasked_switch().said(grpc)).into();
        }
        Carrier::Exchange(exchange) if switched => Reply::Switched(exchange),
        Carrier::Exchange(mut exchange) if exchange.is_at_end() => {
            // Nobody polls a body that is at its end.
            watching.end();
            exchange.finish();
            Reply::Whole(None)
        }
        Carrier::Exchange(exchange) if exchange.still_sends() => Reply::Both(exchange.send_apart()),
        Carrier::Exchange(exchange) => Reply::Flow(exchange),
        Carrier::Streamed(streamed) if streamed.is_at_end() => {
            watching.end();
            drop(streamed);
            Reply::Whole(None)
        }
        Carrier::Streamed(streamed) => Reply::Stream(streamed),
    };
    let body = watching.over(body);
    Answer { status: head.status, fields: head.fields, told: head.told, body }
}
