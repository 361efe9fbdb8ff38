//! Where keys and weights come from, and who may tell of a client; what holds between them and the routes. It reads no request.

use super::super::raw::{FROM, Report, SETTLE, Section, Text, WEIGHT, WordOrTable, quoted};
use super::super::value::{Flaw, flaw, parse_header};
use super::rules::{Rules, key_rules};
use super::{GroupAt, RouteAt, judged, name, trips, word};
use crate::config::{KeyFrom, KeySource, Missing, Segment, Settle, SettleFrom, Unreadable, Weight};
use crate::inspect::certificate::Part;
use crate::inspect::decimal::{MAX_SCALE, MAX_UNITS};
use crate::inspect::form::MAX_NAME;
use crate::inspect::json::Pointer;
use crate::keys::{MAX_HOPS, place, spelled};
use breaker_core::{KeySpec, LimitKind, LimitSpec, OnBreach, Unit};
use ipnet::IpNet;

/// Networks of trusted peers; each request from one of them is compared with all.
const MAX_TRUSTED: usize = 64;
/// A segment is looked for by walking there.
const MAX_SEGMENT: u64 = 64;
/// TOML's integers end here.
const MAX_CONSTANT: u64 = i64::MAX.unsigned_abs();

/// One dimension: its rules, and where its keys come from.
pub(super) fn dimension(key: &mut Section, report: &mut Report<'_>) -> (KeySpec, KeySource) {
    let name = name(key, report);
    let mut spec = key_rules(key, name, report);
    let source = source(key, report);
    spec.missing = match source.missing {
        Missing::Skip => breaker_core::Missing::Skip,
        // What is refused for lack of a key never comes to be judged.
        Missing::Refuse | Missing::Share => breaker_core::Missing::Share,
    };
    let limits = spec.limits.iter().any(|limit| limit.on_breach == OnBreach::Trip);
    if source.missing == Missing::Share && (limits || trips(&spec.detectors)) {
        report.wrong(
            key.path_of("missing"),
            "\"share\" puts all who lack the key into one cell, which any stranger could then trip for the others",
            if limits {
                "refuse or skip calls without the key, or let the limit refuse and not trip"
            } else {
                "refuse or skip calls without the key, or let the detector warn and not trip"
            },
        );
    }
    for (index, own) in spec.overrides.iter_mut().enumerate() {
        match spelled(&source.from, &own.label) {
            Some(label) => own.label = label,
            None => {
                let label = String::from_utf8_lossy(&own.label);
                let path = format!("{}[{index}].key", key.path_of("overrides"));
                let problem = format!("no request carries {}", quoted(&label));
                let hint = "a peer is an address, and a value has no blanks around it";
                report.wrong(path, problem, hint);
            }
        }
    }
    (spec, source)
}

fn source(key: &mut Section, report: &mut Report<'_>) -> KeySource {
    if !key.has("from") {
        let hint = "say from = \"peer\" or from = { header = \"…\" }";
        report.wrong(key.path_of("from"), "is missing", hint);
    }
    let from = match key.word_or_section("from", FROM, report) {
        Some(WordOrTable::Word(text)) => word(&text, &[("peer", KeyFrom::Peer)], report),
        Some(WordOrTable::Table(mut table)) => part(&mut table, report),
        None => None,
    };
    let words = [("refuse", Missing::Refuse), ("share", Missing::Share), ("skip", Missing::Skip)];
    let missing = key.text("missing", report).and_then(|text| word(&text, &words, report));
    let has_unreadable = key.has("unreadable");
    let words = [("refuse", Unreadable::Refuse), ("missing", Unreadable::Missing)];
    let unreadable = key.text("unreadable", report).and_then(|text| word(&text, &words, report));
    let from = from.unwrap_or(KeyFrom::Peer);
    if has_unreadable && !(from.is_in_body() || matches!(from, KeyFrom::Claim(_))) {
        let hint = "drop it: only what stands in a body or a token may be unreadable";
        report.wrong(key.path_of("unreadable"), "belongs to a key from json, form or claim", hint);
    }
    let unreadable = unreadable.unwrap_or(Unreadable::Refuse);
    let missing = missing.unwrap_or(Missing::Refuse);
    if unreadable == Unreadable::Missing && missing == Missing::Refuse {
        let hint = "say missing = \"share\" or \"skip\" as well, or drop it";
        report.wrong(
            key.path_of("unreadable"),
            "changes nothing while a missing key is refused",
            hint,
        );
    }
    KeySource { from, missing, unreadable }
}

/// The parts of a request that a table can name.
const PARTS: [&str; 8] =
    ["header", "query", "segment", "forwarded", "certificate", "claim", "json", "form"];

/// The one part that a table names.
fn part(table: &mut Section, report: &mut Report<'_>) -> Option<KeyFrom> {
    let given: Vec<&str> = PARTS.into_iter().filter(|part| table.has(part)).collect();
    let (has_unverified, path) = (table.has("unverified"), table.path.clone());
    let unverified = table.flag("unverified", report);
    if has_unverified && !given.contains(&"claim") {
        let hint = "drop it: only a token would have to be verified";
        report.wrong(table.path_of("unverified"), "belongs to a claim", hint);
    }
    match given.as_slice() {
        [] => {
            let hint = "name one, as in from = { header = \"x-client\" }; known here: header, query, segment, forwarded, certificate, claim, json, form";
            report.wrong(path, "names no part of a request", hint);
            None
        }
        [one] => {
            if *one == "claim"
                && unverified != Some(true)
                && !(has_unverified && unverified.is_none())
            {
                report.wrong(
                    table.path_of("claim"),
                    "would be taken from a token that nobody here verifies, so anyone could write it",
                    "say unverified = true if something in front verifies the token, or if a wrong name is a small harm",
                );
            }
            named(table, one, report)
        }
        [first, second, ..] => {
            let hint = "a key comes from one place; write another dimension for the other";
            report.wrong(table.path_of(second), format!("there is also {first}"), hint);
            None
        }
    }
}

fn named(table: &mut Section, part: &str, report: &mut Report<'_>) -> Option<KeyFrom> {
    match part {
        "segment" if table.is_whole(part) => {
            let place = table.whole(part, 1, MAX_SEGMENT, report)?;
            Some(KeyFrom::Segment(Segment::At(u8::try_from(place).ok()?)))
        }
        "forwarded" => {
            let most = u64::try_from(MAX_HOPS).ok()?;
            let hops = table.whole(part, 1, most, report)?;
            Some(KeyFrom::Forwarded(u8::try_from(hops).ok()?))
        }
        "certificate" => {
            let text = table.text(part, report)?;
            word(&text, &Part::ALL, report).map(KeyFrom::Certificate)
        }
        _ => {
            let text = table.text(part, report)?;
            judged(&text, |text| parse_part(part, text), report)
        }
    }
}

fn parse_part(part: &str, text: &str) -> Result<KeyFrom, Flaw> {
    match part {
        "header" => parse_header(text).map(KeyFrom::Header),
        "query" => parse_field(text).map(KeyFrom::Query),
        "form" => parse_field(text).map(KeyFrom::Form),
        "segment" => parse_segment(text).map(|name| KeyFrom::Segment(Segment::Named(name))),
        "json" => parse_pointer(text).map(KeyFrom::Json),
        _ if text.starts_with('/') => parse_pointer(text).map(KeyFrom::Claim),
        _ if text.is_empty() => flaw("names no claim", "write it as in \"sub\""),
        _ => Ok(KeyFrom::Claim(Pointer::member(text))),
    }
}

fn parse_field(text: &str) -> Result<String, Flaw> {
    if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        return flaw(
            "is not the name of a field",
            format!("write it decoded, in 1 to {MAX_NAME} bytes, as in \"account\""),
        );
    }
    Ok(text.to_owned())
}

fn parse_segment(text: &str) -> Result<String, Flaw> {
    let name = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.starts_with('*') {
        return flaw(
            "takes many segments, so it names nobody",
            "give the one that is meant a parameter of its own",
        );
    }
    if name.is_empty() || !name.bytes().all(is_word) {
        let hint = "name a parameter of the route's path, as in \"{id}\", or count from 1";
        return flaw("is not the name of a segment", hint);
    }
    Ok(name.to_owned())
}

fn parse_pointer(text: &str) -> Result<Pointer, Flaw> {
    Pointer::parse(text).or_else(|why| {
        flaw(
            format!("{why}, so it is no JSON pointer"),
            "write it as in \"/order/account\" (RFC 6901)",
        )
    })
}

/// Keys from certificates that nobody is asked for.
pub(super) fn certificates<'a>(
    asked: bool,
    rules: impl Iterator<Item = &'a Rules>,
    report: &mut Report<'_>,
) {
    for (_, source, path) in rules.flat_map(Rules::dimensions) {
        if !asked && matches!(source.from, KeyFrom::Certificate(_)) {
            report.wrong(
                format!("{path}.from"),
                "no client is asked for a certificate",
                "name the authorities that sign them in listen.tls.client_ca",
            );
        }
    }
}

/// How much the calls of a route weigh.
pub(super) fn weight(section: &mut Section, report: &mut Report<'_>) -> Option<Weight> {
    if section.is_whole("weight") {
        return section.whole("weight", 1, MAX_CONSTANT, report).map(Weight::Constant);
    }
    match section.word_or_section("weight", WEIGHT, report)? {
        WordOrTable::Word(text) => word(&text, &[("length", Weight::Length)], report),
        WordOrTable::Table(mut table) => quantity(&mut table, report),
    }
}

/// The parts of a request that may hold a quantity.
const QUANTITIES: [&str; 4] = ["header", "query", "json", "form"];

fn quantity(table: &mut Section, report: &mut Report<'_>) -> Option<Weight> {
    let given: Vec<&str> = QUANTITIES.into_iter().filter(|part| table.has(part)).collect();
    let times = table.text("times", report);
    let most = u64::from(MAX_SCALE);
    let scale = table.whole("scale", 0, most, report).and_then(|scale| u8::try_from(scale).ok());
    let missing = missing_weight(table, report);
    let part = match given.as_slice() {
        [part] => *part,
        [] => {
            let hint = "say header, query, json or form, as in weight = { json = \"/quantity\" }";
            report.wrong(&table.path, "names no part of a request", hint);
            return None;
        }
        [first, second, ..] => {
            let hint = "a weight is read from one place; for a product of two say times = \"…\"";
            report.wrong(table.path_of(second), format!("there is also {first}"), hint);
            return None;
        }
    };
    let from = named(table, part, report)?;
    let times = match times {
        Some(text) => Some(judged(&text, |text| parse_part(part, text), report)?),
        None => None,
    };
    if times.as_ref() == Some(&from) {
        let hint = "name the other factor, as in { json = \"/quantity\", times = \"/price\" }";
        report.wrong(table.path_of("times"), "is the quantity itself", hint);
    }
    Some(Weight::Quantity { from, times, scale: scale.unwrap_or(0), missing })
}

/// What a call without its weight weighs.
fn missing_weight(table: &mut Section, report: &mut Report<'_>) -> Option<u64> {
    const { assert!(MAX_CONSTANT <= MAX_UNITS) };
    if table.is_whole("missing") {
        return table.whole("missing", 0, MAX_CONSTANT, report);
    }
    let text = table.text("missing", report)?;
    let refuse = word(&text, &[("refuse", None)], report);
    refuse.flatten()
}

/// Where the answers of a route say what its calls weighed. What they weigh was read before.
pub(super) fn settle(section: &mut Section, report: &mut Report<'_>) -> Option<Settle> {
    let mut table = section.section("settle", SETTLE, report)?;
    let header = table.text("header", report);
    let (json, events) = (table.text("json", report), table.text("events", report));
    let most = u64::from(MAX_SCALE);
    let scale = table.whole("scale", 0, most, report).and_then(|scale| u8::try_from(scale).ok());
    let missing = table.whole("missing", 0, MAX_CONSTANT, report);
    let mut pointer =
        |text: &Option<Text>| text.as_ref().map(|text| judged(text, parse_pointer, report));
    let from = match (header, pointer(&json), pointer(&events)) {
        (Some(header), None, None) => SettleFrom::Header(judged(&header, parse_header, report)?),
        (None, None, None) => {
            let hint =
                "say header, json or events, as in settle = { json = \"/usage/total_tokens\" }";
            report.wrong(&table.path, "names no part of an answer", hint);
            return None;
        }
        (None, json, events) => SettleFrom::Body { json: whole(json)?, events: whole(events)? },
        (Some(_), ..) => {
            let hint =
                "an answer says it in its head or in its body; json and events may stand together";
            report.wrong(table.path_of("header"), "there is also json or events", hint);
            return None;
        }
    };
    Some(Settle { from, scale: scale.unwrap_or(0), missing })
}

/// What is absent is `Some(None)`, and what was wrong `None`.
fn whole<T>(found: Option<Option<T>>) -> Option<Option<T>> {
    match found {
        None => Some(None),
        Some(None) => None,
        Some(some) => Some(some),
    }
}

/// The networks whose word on a client is taken.
pub(super) fn trusted(section: &mut Section, report: &mut Report<'_>) -> Vec<IpNet> {
    let texts = section.texts("trusted", report).unwrap_or_default();
    if texts.len() > MAX_TRUSTED {
        let problem = format!("{} networks are too many", texts.len());
        report.wrong(section.path_of("trusted"), problem, format!("use at most {MAX_TRUSTED}"));
    }
    let network = |text: Text| judged(&text, parse_network, report);
    texts.into_iter().filter_map(network).collect()
}

fn parse_network(text: &str) -> Result<IpNet, Flaw> {
    let hint = "write it as in \"10.0.0.0/8\", or an address alone";
    let network = match text.parse::<std::net::IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => match text.parse::<IpNet>() {
            Ok(network) => network,
            Err(_) => return flaw("is no network", hint),
        },
    };
    if network.prefix_len() == 0 {
        return flaw(
            "is everyone, so that anyone could name another client",
            "name those in front of us alone",
        );
    }
    if network.trunc() != network {
        return flaw("has bits beyond its length", format!("write \"{}\"", network.trunc()));
    }
    if matches!(network, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
        return flaw("is of IPv4 addresses written as IPv6", "write them as IPv4");
    }
    Ok(network)
}

/// What holds between keys, weights and routes: segments that are there, hops that are trusted, and a weight where one is counted.
pub(super) fn among_routes(
    global: &Rules,
    groups: &[GroupAt],
    routes: &[RouteAt],
    trusted: &[IpNet],
    report: &mut Report<'_>,
) {
    let mut all: Vec<&Rules> = vec![global];
    all.extend(groups.iter().map(|group| &group.rules));
    all.extend(routes.iter().map(|route| &route.rules));
    for (_, source, path) in all.iter().flat_map(|rules| rules.dimensions()) {
        if matches!(source.from, KeyFrom::Forwarded(_)) && trusted.is_empty() {
            report.wrong(
                format!("{path}.from.forwarded"),
                "believes nobody, because wire.trusted names no network",
                "name those in front of us, as in wire.trusted = [\"10.0.0.0/8\"], or say from = \"peer\"",
            );
        }
    }
    let mut reported = std::collections::BTreeSet::new();
    for route in routes {
        let group = groups.iter().find(|group| group.name == route.group);
        let lineage = [Some(global), group.map(|group| &group.rules), Some(&route.rules)];
        let lineage: Vec<&Rules> = lineage.into_iter().flatten().collect();
        for (_, source, path) in lineage.iter().flat_map(|rules| rules.dimensions()) {
            if let KeyFrom::Segment(segment) = &source.from
                && route.match_is_valid
                && !has_segment(segment, &route.matches.path)
                && reported.insert(path)
            {
                let pattern = quoted(&route.matches.path);
                report.wrong(
                    format!("{path}.from.segment"),
                    format!("{} is not in the path {pattern} of {}", source.from, route.path),
                    "name a parameter that every route of the dimension has, or a place in its path",
                );
            }
        }
        if route.weight.is_none() && route.settle.is_some() {
            let hint = "say what is reserved until the answer is there, as in weight = 2000";
            let problem = "is missing, so there is nothing that an answer could settle";
            report.wrong(format!("{}.weight", route.path), problem, hint);
        } else if route.weight.is_none() && lineage.iter().any(|rules| counts_weight(rules)) {
            let hint = "say weight = 1, weight = \"length\" or weight = { header = \"…\" }";
            let problem =
                "is missing, but a limit on its calls counts weight and would refuse them all";
            report.wrong(format!("{}.weight", route.path), problem, hint);
        }
        // What is known here weighs so much each time: a limit without room for it would refuse every such call for good.
        let (known, key) = match &route.weight {
            Some(Weight::Constant(known)) => (Some(*known), "weight"),
            Some(Weight::Quantity { missing, .. }) => (*missing, "weight.missing"),
            Some(Weight::Length) | None => (None, ""),
        };
        let most = lineage.iter().flat_map(|rules| capacities(rules)).min();
        if let (Some(known), Some(most)) = (known, most)
            && known > most
        {
            let problem = format!(
                "{known} is more than a limit on its calls ever has room for, which is {most}; each such call would be refused"
            );
            let hint = "raise that limit: the burst of a rate, the number of any other";
            report.wrong(format!("{}.{key}", route.path), problem, hint);
        }
    }
}

/// What each limit that counts weight has room for when unused.
fn capacities(rules: &Rules) -> impl Iterator<Item = u64> {
    let keys = rules.spec.keys.iter().flat_map(|key| &key.limits);
    let enforced = |limit: &&LimitSpec| limit.by == Unit::Weight && !limit.candidate;
    rules.spec.limits.iter().chain(keys).filter(enforced).map(|limit| match limit.kind {
        LimitKind::Rate { burst, .. } => burst,
        LimitKind::Window { count, .. }
        | LimitKind::Budget { count, .. }
        | LimitKind::InFlight { count } => count,
    })
}

fn has_segment(segment: &Segment, pattern: &str) -> bool {
    let segments = pattern.split('/').skip(1).count();
    let is_wide = pattern.contains("{*");
    place(segment, pattern).is_some_and(|place| place < segments || is_wide)
}

fn counts_weight(rules: &Rules) -> bool {
    let weighs = |limits: &[LimitSpec]| limits.iter().any(|limit| limit.by == Unit::Weight);
    weighs(&rules.spec.limits)
        || rules
            .spec
            .keys
            .iter()
            .any(|key| weighs(&key.limits) || key.overrides.iter().any(|own| weighs(&own.limits)))
}
