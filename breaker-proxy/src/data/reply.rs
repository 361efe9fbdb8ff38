//! Refusals and failures as HTTP: RFC 9457 problem documents, or what gRPC makes of them; the only file of the data plane that picks a
//! status.

use super::Plane;
use super::body::Reply;
use super::failure::Failure;
use super::upload::UploadFailure;
use crate::keys::{KeyError, Why};
use crate::path::PathError;
use crate::wire::grpc::{Grpc, Pushback, Status, write_status};
use crate::wire::head::BadHead;
use crate::wire::ids::REQUEST_ID;
use breaker_core::{By, Cause, Denial, KillLevel, LimitKind, Policy, Scope, Span};
use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use std::borrow::Cow;

/// A problem document (RFC 9457).
#[derive(Debug, Serialize)]
struct Problem<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    /// Stable: programs may rely on it.
    code: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_ms: Option<u64>,
}

/// What is wrong with a request, as far as the request itself goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Invalid {
    /// The head is none, or says nothing that can be believed.
    Head(BadHead),
    /// `Host` is missing, doubled or malformed.
    Host,
    /// The path has no single meaning.
    Path(PathError),
    /// A method that is never forwarded.
    Method,
    /// A field that changes the method, on a route that passes a halt.
    Override,
    /// A key could not be read.
    Key(KeyError),
    /// `Content-Length` exceeds the bound.
    TooLarge,
}

/// A refusal or failure, before it is put in the words of its protocol.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: Cow<'static, str>,
    /// What the breaker itself refused, and why.
    denied: Option<Denied>,
}

/// What a refusal says that is the breaker's own.
#[derive(Debug)]
struct Denied {
    scope: Scope,
    cause: &'static str,
    id: Option<String>,
    wait: Option<Span>,
    /// It ends by itself, or by its use.
    passes: bool,
    fields: HeaderMap,
}

impl Refusal {
    /// In the words of who asked.
    #[must_use]
    pub fn said(self, grpc: Option<Grpc>) -> Response<Reply> {
        match grpc {
            None => self.into(),
            Some(form) => self.in_grpc(form),
        }
    }

    /// As gRPC has it: 200, and a status among the fields of an answer that has no body ("Trailers-Only").
    fn in_grpc(self, form: Grpc) -> Response<Reply> {
        let mut response = Response::new(Reply::Whole(None));
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, form.content_type());
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.write_status(fields);
        response
    }

    /// Its gRPC status, as the end of an answer that had begun.
    #[must_use]
    pub fn trailers(&self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        self.write_status(&mut fields);
        fields
    }

    fn write_status(&self, fields: &mut HeaderMap) {
        let Refusal { code, detail, denied, .. } = self;
        let (words, pushback) = match denied {
            None => (format!("{code}: {detail}"), Pushback::Nothing),
            Some(Denied { scope, wait, passes, .. }) => {
                let millis = wait.map(|wait| wait.as_nanos().div_ceil(1_000_000));
                let pushback = match millis {
                    Some(millis) => Pushback::After(millis),
                    None if *passes => Pushback::Nothing,
                    None => Pushback::Never,
                };
                (format!("{code}: {detail}; scope {}", scope.as_str()), pushback)
            }
        };
        write_status(fields, grpc_status(self.status), &words, pushback);
    }
}

/// What gRPC says where HTTP says this.
fn grpc_status(status: StatusCode) -> Status {
    match status.as_u16() {
        429 => Status::ResourceExhausted,
        408 | 504 => Status::DeadlineExceeded,
        404 | 501 => Status::Unimplemented,
        400..=499 => Status::InvalidArgument,
        _ => Status::Unavailable,
    }
}

/// As a problem document.
impl From<Refusal> for Response<Reply> {
    fn from(refusal: Refusal) -> Response<Reply> {
        let Refusal { status, code, title, detail, denied } = refusal;
        let kind = format!("urn:breaker:problem:{code}");
        let own = denied.as_ref();
        let fields = Problem {
            r#type: &kind,
            title,
            status: status.as_u16(),
            code,
            detail: &detail,
            scope: own.map(|own| own.scope.as_str()),
            cause: own.map(|own| own.cause),
            id: own.and_then(|own| own.id.as_deref()),
            wait_ms: own.and_then(|own| own.wait).map(|wait| wait.as_nanos().div_ceil(1_000_000)),
        };
        let text = serde_json::to_vec(&fields).unwrap_or_default();
        let mut response = Response::new(Reply::Whole(Some(Bytes::from(text))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        *headers = denied.map(|own| own.fields).unwrap_or_default();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

fn plain(
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: impl Into<Cow<'static, str>>,
) -> Refusal {
    Refusal { status, code, title, detail: detail.into(), denied: None }
}

/// Our own answer, with the id of the request that it is for: as a field, and in the problem document.
#[must_use]
pub fn identified(mut response: Response<Reply>, id: &[u8]) -> Response<Reply> {
    let (Ok(value), Ok(text)) = (HeaderValue::from_bytes(id), std::str::from_utf8(id)) else {
        return response;
    };
    response.headers_mut().insert(REQUEST_ID.clone(), value);
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/problem+json");
    if is_problem
        && let Reply::Whole(Some(words)) = response.body_mut()
        && let Some(open) = words.strip_suffix(b"}")
    {
        let id = serde_json::Value::from(text);
        *words = Bytes::from([open, format!(",\"request_id\":{id}}}").as_bytes()].concat());
    }
    response
}

/// No route took the request.
#[must_use]
pub fn unrouted() -> Refusal {
    plain(
        StatusCode::NOT_FOUND,
        "unrouted",
        "No route takes this request",
        "the configuration has no route for this host, method and path",
    )
}

/// The request itself is refused.
#[must_use]
pub fn invalid(why: &Invalid) -> Refusal {
    let bad = StatusCode::BAD_REQUEST;
    match why {
        Invalid::Head(error) => {
            let (status, title) = match error {
                BadHead::TooLarge => {
                    (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Request head too large")
                }
                BadHead::TargetTooLong => (StatusCode::URI_TOO_LONG, "Request target too long"),
                BadHead::Expectation => {
                    (StatusCode::EXPECTATION_FAILED, "Expectation cannot be met")
                }
                _ => (bad, "Bad request"),
            };
            plain(status, "bad-request", title, error.to_string())
        }
        Invalid::Host => plain(
            bad,
            "bad-host",
            "Bad host",
            "exactly one well-formed Host (or :authority) is needed",
        ),
        Invalid::Path(error) => plain(bad, "bad-path", "Bad path", error.to_string()),
        Invalid::Method => plain(
            StatusCode::NOT_IMPLEMENTED,
            "bad-method",
            "Method not forwarded",
            "CONNECT and TRACE are not forwarded",
        ),
        Invalid::Override => plain(
            bad,
            "bad-method",
            "Method override refused",
            "this route is for calls that reduce risk; a field that changes the method is not taken here",
        ),
        Invalid::Key(error) => {
            let status = match error.why {
                Why::LongBody => StatusCode::PAYLOAD_TOO_LARGE,
                Why::Encoded | Why::OtherType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
                _ => bad,
            };
            plain(status, "bad-key", "Bad key", error.to_string())
        }
        Invalid::TooLarge => too_large(),
    }
}

/// The body had to be looked into, and did not come in time.
#[must_use]
pub fn late_body() -> Refusal {
    plain(
        StatusCode::REQUEST_TIMEOUT,
        "request-timeout",
        "Request body stopped arriving",
        "the request body did not come in time to be looked into",
    )
}

/// The body had to be looked into, and could not be read.
#[must_use]
pub fn unseen(failure: UploadFailure) -> Refusal {
    match failure {
        UploadFailure::TooLarge => too_large(),
        UploadFailure::Broken => {
            let bad = StatusCode::BAD_REQUEST;
            plain(bad, "body-broken", "Request body broke off", failure.to_string())
        }
    }
}

/// The body had to be looked into, and too many others are.
#[must_use]
pub fn busy_looking() -> Refusal {
    plain(
        StatusCode::SERVICE_UNAVAILABLE,
        "inspect-busy",
        "Too many request bodies at once",
        "too many request bodies are being looked into; try again",
    )
}

fn too_large() -> Refusal {
    plain(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body-too-large",
        "Body too large",
        "the request body is larger than this proxy allows",
    )
}

/// There is no answer from the upstream.
#[must_use]
pub fn failed(plane: &Plane, policy: &Policy, failure: &Failure) -> Refusal {
    let detail = failure.to_string();
    match failure {
        Failure::Halted(denial) | Failure::Severed(denial) => denied(plane, policy, denial),
        Failure::ConnectTimeout | Failure::AnswerTimeout => plain(
            StatusCode::GATEWAY_TIMEOUT,
            "upstream-timeout",
            "Upstream did not answer in time",
            detail,
        ),
        Failure::Busy => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream-busy",
            "Upstream is busy",
            "all connections to the upstream are in use, and none came free in time",
        ),
        Failure::Handshake(_) => plain(
            StatusCode::BAD_GATEWAY,
            "upstream-untrusted",
            "Upstream cannot be trusted",
            "no secure connection to the upstream could be made",
        ),
        Failure::Connect(_) => plain(
            StatusCode::BAD_GATEWAY,
            "upstream-unreachable",
            "Upstream cannot be reached",
            "no connection to the upstream could be made",
        ),
        Failure::Closed(_) | Failure::Breach(_) => plain(
            StatusCode::BAD_GATEWAY,
            "upstream-broken",
            "Upstream broke the exchange",
            "the upstream ended the exchange early or answered no valid HTTP",
        ),
        Failure::UploadStalled => plain(
            StatusCode::REQUEST_TIMEOUT,
            "request-timeout",
            "Request body stopped arriving",
            detail,
        ),
        Failure::UploadTooLarge => too_large(),
        Failure::UploadBroken => {
            plain(StatusCode::BAD_REQUEST, "body-broken", "Request body broke off", detail)
        }
    }
}

/// The upstream switched protocols though nobody asked.
#[must_use]
pub fn unasked_switch() -> Refusal {
    plain(
        StatusCode::BAD_GATEWAY,
        "upstream-broken",
        "Upstream broke the exchange",
        "the upstream switched protocols without being asked",
    )
}

/// The breaker refuses: 429 for a limit, 503 for a gate.
#[must_use]
pub fn denied(plane: &Plane, policy: &Policy, denial: &Denial) -> Refusal {
    let scope = plane.names.scope(policy, denial.place);
    let id = plane.names.id(denial);
    let (status, code, title, cause) = match denial.cause {
        Cause::Limit(_) => (StatusCode::TOO_MANY_REQUESTS, "limited", "Too many requests", "limit"),
        Cause::Tripped(By::Limit(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, "tripped", "Tripped", "a limit was exceeded")
        }
        Cause::Tripped(By::Detector(_) | By::Wider) => {
            (StatusCode::SERVICE_UNAVAILABLE, "tripped", "Tripped", "a detector found something")
        }
        Cause::Tripped(By::Hand) => {
            (StatusCode::SERVICE_UNAVAILABLE, "tripped", "Tripped", "tripped by hand")
        }
        Cause::ProbeFailed => {
            (StatusCode::SERVICE_UNAVAILABLE, "tripped", "Tripped", "a probe failed")
        }
        Cause::Probing => {
            (StatusCode::SERVICE_UNAVAILABLE, "probing", "On probation", "all probes are taken")
        }
        Cause::Killed(KillLevel::Halt) => {
            (StatusCode::SERVICE_UNAVAILABLE, "killed", "Killed", "halt")
        }
        Cause::Killed(KillLevel::Cut) => {
            (StatusCode::SERVICE_UNAVAILABLE, "killed", "Killed", "cut")
        }
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            "stale",
            "Stopped before sending",
            "the scope was stopped while the request waited",
        ),
    };
    let detail = match denial.cause {
        Cause::Limit(_) => "a limit of this scope is used up; slow down",
        Cause::Killed(_) => "this scope is killed until a person lifts it; do not retry",
        Cause::Stale => "this scope was stopped while the request waited to be sent",
        _ if denial.wait.is_none() => "this scope is halted until a person resets it",
        _ => "this scope is halted; it tries again by itself",
    };
    let mut headers = HeaderMap::new();
    // A kill has no end that anyone knows. A wait is rounded up: a client that trusts it must not come too early.
    let killed = matches!(denial.cause, Cause::Killed(_));
    let wait = denial.wait.filter(|_| !killed);
    if let Some(wait) = wait {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_ceil().max(1)));
    } else if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(1));
    }
    if plane.wire.rate_limit_fields && status == StatusCode::TOO_MANY_REQUESTS {
        rate_limit_fields(&mut headers, policy, denial);
    }
    // A trip without a wait is for a person to end, and so is a kill.
    let passes = matches!(denial.cause, Cause::Limit(_) | Cause::Probing | Cause::Stale);
    let denied = Denied { scope, cause, id, wait, passes, fields: headers };
    Refusal { status, code, title, detail: detail.into(), denied: Some(denied) }
}

/// `RateLimit` and `RateLimit-Policy` as in draft-ietf-httpapi-ratelimit-headers-11.
fn rate_limit_fields(headers: &mut HeaderMap, policy: &Policy, denial: &Denial) {
    let (Some(limit), Cause::Limit(index)) = (policy.limit_of(denial), denial.cause) else {
        return;
    };
    let (quota, window) = match limit.kind {
        LimitKind::Rate { count, per, .. } => (count, per),
        LimitKind::Window { count, length } => (count, length),
        // What no time refills has no place in these fields.
        LimitKind::Budget { .. } | LimitKind::InFlight { .. } => return,
    };
    let level = match denial.place.level {
        breaker_core::Level::Global => "global",
        breaker_core::Level::Group => "group",
        breaker_core::Level::Route => "route",
        breaker_core::Level::Key => "key",
    };
    let wait = denial.wait.unwrap_or(Span::ZERO).as_secs_ceil().max(1);
    let now = format!("\"{level}-{index}\";r=0;t={wait}");
    let rule = format!("\"{level}-{index}\";q={quota};w={}", window.as_secs_ceil().max(1));
    if let (Ok(now), Ok(rule)) = (HeaderValue::try_from(now), HeaderValue::try_from(rule)) {
        headers.insert(HeaderName::from_static("ratelimit"), now);
        headers.insert(HeaderName::from_static("ratelimit-policy"), rule);
    }
}

#[cfg(test)]
mod tests {
    use super::grpc_status;
    use hyper::StatusCode;

    /// Goal: each code that clients of the data plane may see is written down with its gRPC status, and that is the one that is said.
    #[test]
    fn each_code_has_the_grpc_status_that_is_written_down() {
        let page = include_str!("../../docs/API.md");
        let table = page.split("## What clients of the data plane see").nth(1).unwrap();
        let mut codes = 0;
        for row in table.lines().filter(|line| line.starts_with("| 4") || line.starts_with("| 5")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let numbers = |cell: &str| -> Vec<u16> {
                cell.split(", ").filter_map(|number| number.parse().ok()).collect()
            };
            let (statuses, told) = (numbers(cells[0]), numbers(cells[2]));
            assert!(!statuses.is_empty() && !told.is_empty(), "{row}");
            let mut said: Vec<u16> = Vec::new();
            for status in statuses {
                let own = grpc_status(StatusCode::from_u16(status).unwrap());
                said.push(own.as_str().parse().unwrap());
            }
            said.dedup();
            assert_eq!(said, told, "{row}");
            codes += cells[1].split(", ").count();
        }
        assert!(codes >= 19, "{codes} codes");
    }
}
