//! Single values of the configuration, from text to a value or a flaw; it knows no key, no path and no other value.

use super::raw::is_name;
use super::upstream::Endpoint;
use crate::path::canonical;
use crate::wire::fields::{Kind, kind};
use breaker_core::{Span, Unit};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Problem and hint. The problem follows the quoted text.
pub(super) type Flaw = (String, String);

/// A deadline beyond this is none.
const MAX_DEADLINE: Span = Span::from_secs(24 * 60 * 60);
const MIN_TOKEN: usize = 16;
/// Segments of a path pattern: the depth of the router.
const MAX_SEGMENTS: usize = 64;
/// Fields that are about the connection or the framing; hyper and we write them, so they name nobody.
const NOT_KEYS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

pub(super) fn flaw<T>(problem: impl Into<String>, hint: impl Into<String>) -> Result<T, Flaw> {
    Err((problem.into(), hint.into()))
}

pub(super) fn parse_name(name: &str) -> Result<String, Flaw> {
    if is_name(name) {
        return Ok(name.to_owned());
    }
    flaw("is not a name", "use 1 to 64 of A-Z a-z 0-9 _ . -")
}

pub(super) fn parse_address(text: &str) -> Result<SocketAddr, Flaw> {
    text.parse().or_else(|_| {
        flaw("is not an address", "write numbers and a port, as in 127.0.0.1:8080 or [::1]:8080")
    })
}

/// Whether two sockets would get in each other's way. Port 0 is chosen by the system, so it never does.
pub(super) fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port()
        && one.port() != 0
        && (a == b || a.is_unspecified() || b.is_unspecified())
}

pub(super) fn parse_token(token: &str) -> Result<String, Flaw> {
    let hint = "make one with: openssl rand -hex 32";
    if token.len() < MIN_TOKEN {
        return flaw(format!("is shorter than {MIN_TOKEN} characters"), hint);
    }
    if token.len() > 1024 {
        return flaw("is longer than 1024 characters", hint);
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return flaw("holds a blank, or what a header cannot carry", hint);
    }
    Ok(token.to_owned())
}

/// Splits `250ms` into 250 and `ms`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit))
}

fn nanos_of(unit: &str) -> Option<u64> {
    let seconds = match unit {
        "ms" => return Some(1_000_000),
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    Some(Span::from_secs(seconds).as_nanos())
}

pub(super) fn parse_span(text: &str) -> Result<Span, Flaw> {
    let Some((number, unit)) = number_and_unit(text) else {
        return flaw("is not a length of time", "write a whole number and ms, s, m, h or d: 250ms");
    };
    let Some(nanos) = nanos_of(unit) else {
        let problem = if unit.is_empty() { "has no unit" } else { "has a unit that is not known" };
        return flaw(problem, "write a whole number and ms, s, m, h or d: 250ms");
    };
    match number.checked_mul(nanos) {
        Some(nanos) => Ok(Span::from_nanos(nanos)),
        None => flaw("is longer than 500 years", "use less"),
    }
}

pub(super) fn parse_deadline(text: &str) -> Result<Span, Flaw> {
    match parse_span(text)? {
        Span::ZERO => flaw("leaves no time at all", "use at least 1ms"),
        span if span > MAX_DEADLINE => flaw("is no deadline", "use at most 1d"),
        span => Ok(span),
    }
}

pub(super) fn parse_hold(text: &str) -> Result<Span, Flaw> {
    match parse_span(text)? {
        Span::ZERO => flaw("holds nothing", "use at least 1s, or take the trip away"),
        span => Ok(span),
    }
}

pub(super) fn parse_bytes(text: &str) -> Result<u64, Flaw> {
    let hint = "write a whole number and B, KB, KiB, MB, MiB, GB or GiB: 32KiB";
    let Some((number, unit)) = number_and_unit(text) else {
        return flaw("is not a size", hint);
    };
    let unit: u64 = match unit {
        "B" => 1,
        "KB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        "" => return flaw("has no unit", hint),
        _ => return flaw("has a unit that is not known", hint),
    };
    match number.checked_mul(unit) {
        Some(0) => flaw("is no room at all", "use at least 1B"),
        Some(bytes) => Ok(bytes),
        None => flaw("is too large", "use less"),
    }
}

/// hyper refuses to work in less than 8 KiB, and no head worth reading needs more than 1 MiB.
pub(super) fn parse_head_bytes(text: &str) -> Result<u32, Flaw> {
    if text == "unlimited" {
        return flaw("is not allowed here, since a head is held in memory", "use 32KiB");
    }
    match u32::try_from(parse_bytes(text)?) {
        Ok(bytes) if bytes < 8 * 1024 => {
            flaw("is too small for a request head", "use at least 8KiB")
        }
        Ok(bytes) if bytes <= 1024 * 1024 => Ok(bytes),
        _ => flaw("is too large for a request head", "use at most 1MiB"),
    }
}

/// A body that is looked into is held in memory, for each request that is looked into at once.
pub(super) fn parse_inspect_bytes(text: &str) -> Result<u32, Flaw> {
    match u32::try_from(parse_bytes(text)?) {
        Ok(bytes) if bytes <= 16 * 1024 * 1024 => Ok(bytes),
        _ => flaw("is too large to be held", "use at most 16MiB"),
    }
}

pub(super) fn parse_body_bytes(text: &str) -> Result<Option<u64>, Flaw> {
    if text == "unlimited" { Ok(None) } else { parse_bytes(text).map(Some) }
}

/// `100/s`, `1000/10s`: a count and the time it is for.
fn parse_count_per(text: &str, by: Unit, what: &str, example: &str) -> Result<(u64, Span), Flaw> {
    let hint = format!("write it as in {example:?}");
    let Some((count, per)) = text.split_once('/') else {
        return flaw(format!("is not a {what}"), hint);
    };
    let digits = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    let Some(count) = count.parse::<u64>().ok().filter(|_| digits) else {
        return flaw(format!("is not a {what}"), hint);
    };
    let per = match nanos_of(per) {
        Some(nanos) => Span::from_nanos(nanos),
        None => match parse_span(per) {
            Ok(span) => span,
            Err((problem, _)) => return flaw(format!("{problem} after the '/'"), hint),
        },
    };
    if count == 0 {
        return flaw(
            "allows nothing",
            format!(
                "use at least 1/{}, or kill the route instead",
                text.split_once('/').map_or("s", |(_, per)| per)
            ),
        );
    }
    if per == Span::ZERO {
        return flaw("is for no time at all", hint);
    }
    if by == Unit::Calls && count > u64::from(u32::MAX) {
        return flaw("is more than can be counted", format!("use at most {} calls", u32::MAX));
    }
    Ok((count, per))
}

pub(super) fn parse_rate(text: &str, by: Unit) -> Result<(u64, Span), Flaw> {
    parse_count_per(text, by, "rate", "100/s")
}

pub(super) fn parse_window(text: &str, by: Unit) -> Result<(u64, Span), Flaw> {
    parse_count_per(text, by, "window", "100/1s")
}

pub(super) fn parse_header(text: &str) -> Result<http::HeaderName, Flaw> {
    let Ok(header) = http::HeaderName::from_bytes(text.as_bytes()) else {
        return flaw("is not the name of a header", "write it as in \"x-client\"");
    };
    if NOT_KEYS.contains(&header.as_str()) {
        return flaw(
            "is about the connection or the framing, and tells nobody apart",
            "name a field that the client's own code sets",
        );
    }
    if kind(header.as_str()) == Kind::Forwarding {
        return flaw(
            "tells of the client, and any client can write it",
            "say from = { forwarded = 1 } and name those in front of us in wire.trusted",
        );
    }
    Ok(header)
}

pub(super) fn parse_method(text: &str) -> Result<http::Method, Flaw> {
    let upper = text.to_ascii_uppercase();
    if upper == "CONNECT" || upper == "TRACE" {
        return flaw("is never forwarded", "drop it");
    }
    if upper != text {
        return flaw(
            "is not a method, since these are told apart by case",
            format!("write {upper:?}"),
        );
    }
    http::Method::from_bytes(text.as_bytes())
        .or_else(|_| flaw("is not a method", "write it as in \"GET\" or [\"GET\", \"HEAD\"]"))
}

pub(super) fn parse_host(text: &str) -> Result<String, Flaw> {
    let lower = text.to_ascii_lowercase();
    if text.contains('*') {
        return flaw("holds a wildcard, which is not supported", "write one route for each host");
    }
    if text.contains("://") || text.contains('/') {
        return flaw("is not a host", "write the name alone, as in \"example.com\"");
    }
    if let Some(inner) = lower.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(ip) => Ok(format!("[{ip}]")),
            Err(_) => flaw("is not a host", "an IPv6 address stands in brackets: [::1]"),
        };
    }
    if text.contains(':') {
        return flaw("has a port or bare colons", "write the host alone; IPv6 as in [::1]");
    }
    if is_dns_or_ipv4(&lower) {
        Ok(lower)
    } else {
        flaw("is not a host", "write the name alone, as in \"example.com\"")
    }
}

/// A name as DNS and container networks have them, or a full IPv4 address: never `10.1`, which some read as `10.0.0.1`.
fn is_dns_or_ipv4(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_number = |label: &str| {
        let hex = label
            .strip_prefix("0x")
            .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        hex || (!label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if host.rsplit('.').next().is_some_and(is_number) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    host.len() <= 253 && host.split('.').all(is_label)
}

pub(super) fn parse_endpoint(text: &str) -> Result<Endpoint, Flaw> {
    let hint = "write http://host:port, https://host:port or builtin:origin";
    if text == "builtin:origin" {
        return Ok(Endpoint::BuiltIn);
    }
    let (rest, is_tls) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (rest, false),
        (None, Some(rest)) => (rest, true),
        (None, None) => return flaw("is not an upstream", hint),
    };
    if rest.contains('@') {
        return flaw("holds a user or password, which are not supported", hint);
    }
    if rest.contains(['/', '?', '#']) {
        return flaw("has a path or query; requests keep their own", hint);
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(inner) => {
            let Some((host, port)) = inner.split_once(']') else {
                return flaw("lacks a ]", "an IPv6 address stands in brackets: http://[::1]:8000");
            };
            let Ok(ip) = host.parse::<Ipv6Addr>() else {
                return flaw(
                    "has no valid host",
                    "an IPv6 address stands in brackets: http://[::1]:8000",
                );
            };
            (ip.to_string(), port)
        }
        None => {
            let split = rest.find(':').unwrap_or(rest.len());
            let (host, port) = rest.split_at_checked(split).unwrap_or((rest, ""));
            let host = host.to_ascii_lowercase();
            if !is_dns_or_ipv4(&host) {
                return flaw("has no valid host", hint);
            }
            (host, port)
        }
    };
    let at = |port| match is_tls {
        true => Endpoint::Https { host: host.clone(), port },
        false => Endpoint::Http { host: host.clone(), port },
    };
    if port.is_empty() {
        return Ok(at(if is_tls { 443 } else { 80 }));
    }
    let digits = port
        .strip_prefix(':')
        .filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|port| port.parse().ok()) {
        Some(port) if port != 0 => Ok(at(port)),
        _ => flaw("has no valid port", "use 1 to 65535"),
    }
}

pub(super) fn parse_pattern(text: &str) -> Result<String, Flaw> {
    let Some(rest) = text.strip_prefix('/') else {
        return flaw("does not begin with '/'", "write it as in \"/orders/{id}\"");
    };
    let count = rest.split('/').count();
    if count > MAX_SEGMENTS {
        return flaw(format!("has {count} segments"), format!("use at most {MAX_SEGMENTS}"));
    }
    // What is left when every parameter is a plain word has to be canonical, as requests will be.
    let mut literal = String::with_capacity(text.len());
    let mut names = BTreeSet::new();
    for (index, segment) in rest.split('/').enumerate() {
        literal.push('/');
        let Some(inner) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            if segment.contains(['{', '}']) {
                let hint = "a parameter is a whole segment: /orders/{id}";
                return flaw("mixes a parameter with other text in one segment", hint);
            }
            literal.push_str(segment);
            continue;
        };
        let is_rest = inner.starts_with('*');
        let name = inner.strip_prefix('*').unwrap_or(inner);
        if is_rest && index + 1 < count {
            return flaw(
                "goes on after {*…}, which takes all the rest",
                "let it be the last segment",
            );
        }
        let is_word = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_word {
            return flaw(
                "has a parameter without a proper name",
                "use letters, digits and _: {id}",
            );
        }
        if !names.insert(name) {
            return flaw(format!("has two parameters {name}"), "rename one of them");
        }
        literal.push('x');
    }
    match canonical(&literal) {
        Err(reason) => flaw(
            format!("would never match, because such a path {reason} and is refused"),
            "write it as it reaches the upstream: plain, without . or .. or //",
        ),
        Ok(found) if found != literal => flaw(
            "would never match, because requests are matched in their canonical form",
            format!("write the plain part as in {:?}", found.as_ref()),
        ),
        Ok(_) => Ok(text.to_owned()),
    }
}
