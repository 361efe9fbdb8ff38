//! The admin plane: its own listener on the control thread; it asks the control plane and writes no file itself.

pub mod api;
pub mod auth;

use crate::control::task::Control;
use api::Reply;
use auth::Token;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// Admin connections at once; they share nothing with the data plane's.
const CONNECTIONS: usize = 256;

/// Bytes of an order's body.
const BODY_MAX: usize = 64 * 1024;

/// For a whole head, and for a whole body.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// What the admin plane needs.
pub struct Admin {
    /// Whom it asks.
    pub control: Rc<Control>,
    /// Whom it lets in.
    pub token: Token,
}

/// The connections there are, oldest first. When all seats are taken the oldest that has not shown the token makes room: a
/// crowd of silent connections must not keep a kill out.
#[derive(Default)]
struct Seats {
    taken: VecDeque<Seat>,
}

struct Seat {
    task: AbortHandle,
    trusted: Rc<Cell<bool>>,
}

impl Seats {
    /// Room for one more? If need be, somebody is shown out.
    fn make_room(&mut self) -> bool {
        if self.taken.len() < CONNECTIONS {
            return true;
        }
        self.taken.retain(|seat| !seat.task.is_finished());
        if self.taken.len() < CONNECTIONS {
            return true;
        }
        let stranger = self.taken.iter().position(|seat| !seat.trusted.get());
        match stranger.and_then(|at| self.taken.remove(at)) {
            Some(seat) => {
                seat.task.abort();
                true
            }
            None => false,
        }
    }
}

/// Accepts until the future is dropped.
pub async fn accept(admin: Rc<Admin>, listener: TcpListener) {
    let mut seats = Seats::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if !seats.make_room() {
                    continue;
                }
                let admin = Rc::clone(&admin);
                let trusted = Rc::new(Cell::new(false));
                let seen = Rc::clone(&trusted);
                let task = tokio::task::spawn_local(async move {
                    let _ = stream.set_nodelay(true);
                    let service = service_fn(move |request: Request<Incoming>| {
                        let admin = Rc::clone(&admin);
                        seen.set(admin.token.allows(request.headers()));
                        async move { Ok::<_, Infallible>(answer(&admin, request).await) }
                    });
                    // An error here is the client's own: there is nobody left to tell.
                    let _ended = http1::Builder::new()
                        // Whoever hangs up after a whole order has given it.
                        .half_close(true)
                        .timer(TokioTimer::new())
                        .header_read_timeout(READ_WITHIN)
                        .max_buf_size(BODY_MAX)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                seats.taken.push_back(Seat { task: task.abort_handle(), trusted });
            }
            // Out of descriptors: do not spin.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn answer(admin: &Admin, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let reply = route(admin, request).await;
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(reply.kind));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    if let Some(allow) = reply.allow {
        headers.insert(header::ALLOW, header::HeaderValue::from_static(allow));
    }
    if reply.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    }
    response
}

/// Which order a path names, and the rest of the path: the scope.
fn order(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v1/")?;
    let (verb, scope) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    matches!(verb, "kill" | "lift" | "trip" | "reset").then_some((verb, scope))
}

async fn route(admin: &Admin, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let get = head.method == Method::GET || head.method == Method::HEAD;
    // Probes carry no token: they tell nothing but yes or no.
    match path {
        "/live" if get => return Reply::text(StatusCode::OK, "live\n"),
        "/ready" if get => return api::ready(&admin.control),
        _ => {}
    }
    if !admin.token.allows(&head.headers) {
        return Reply::problem(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            if head.headers.contains_key(header::AUTHORIZATION) {
                "this is not the token: the start says where the right one is"
            } else {
                "a bearer token is needed: Authorization: Bearer <token>"
            },
        );
    }
    if let Some((verb, scope)) = order(path) {
        // What is not said in full may be a variable that came out empty, or a switch that is not one.
        if scope.is_empty() || head.uri.query().is_some() {
            return Reply::problem(
                StatusCode::BAD_REQUEST,
                "bad-order",
                "an order names its scope, /v1/kill/group/route, or / for everything, /v1/kill/; all else stands in its body",
            );
        }
        // A mutation by GET would be one link in a chat away from a halt, or from a lift.
        if head.method != Method::POST {
            return Reply::not_allowed("POST");
        }
        let body = match timeout(READ_WITHIN, Limited::new(body, BODY_MAX).collect()).await {
            Err(_) => {
                return Reply::problem(
                    StatusCode::REQUEST_TIMEOUT,
                    "request-timeout",
                    "the body did not arrive in time",
                );
            }
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Reply::problem(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body-too-large",
                    "an order has at most 64 KiB",
                );
            }
            Ok(Err(_)) => {
                return Reply::problem(
                    StatusCode::BAD_REQUEST,
                    "body-broken",
                    "the body broke off",
                );
            }
            Ok(Ok(body)) => body.to_bytes(),
        };
        // A task of its own: whoever hangs up in the middle must not leave half an order behind.
        let (control, verb) = (Rc::clone(&admin.control), verb.to_owned());
        let scope = scope.to_owned();
        let order = async move { api::order(&control, &verb, &scope, &body).await };
        return tokio::task::spawn_local(order).await.unwrap_or_else(|_| {
            Reply::problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "failed",
                "the order failed half-way: look at /v1/status before you trust anything",
            )
        });
    }
    match path {
        "/v1/status" if get => api::status(&admin.control),
        "/metrics" if get => api::metrics(&admin.control),
        "/live" | "/ready" | "/metrics" | "/v1/status" => Reply::not_allowed("GET"),
        _ => Reply::problem(
            StatusCode::NOT_FOUND,
            "not-found",
            "there are: POST /v1/kill/{scope}, /v1/lift/{scope}, /v1/trip/{scope}, /v1/reset/{scope}; \
             GET /v1/status, /live, /ready, /metrics",
        ),
    }
}
