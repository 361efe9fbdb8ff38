//! The metrics page: reads the counters when it is asked and owns every metric name; nothing is decided from it.

use crate::access::Access;
use crate::control::sweep::Whose;
use crate::control::task::{Control, shown};
use crate::data::counts::{Account, Shard};
use crate::data::endpoint::Tally;
use crate::data::times::{ADDED, Ending, Pair, Sum, WHOLE};
use crate::snapshot::{Snapshot, detector_name, limit_name};
use ::metrics::{
    Label, Recorder, counter, describe_counter, describe_gauge, gauge, with_local_recorder,
};
use breaker_core::{DetectorSpec, LimitSpec, Mode, Scope, ScopeCounts};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::fmt::Write as _;

/// The page, in the text format of Prometheus.
#[must_use]
pub fn render(control: &Control) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    with_local_recorder(&recorder as &dyn Recorder, || fill(control));
    let mut page = handle.render();
    times(control, &mut page);
    page
}

/// Reads one number of an account.
type Read = fn(&Account) -> u64;

const RESULTS: [(&str, Read); 7] = [
    ("offered", |account| account.offered.get()),
    ("forwarded", |account| account.forwarded.get()),
    ("throttled", |account| account.throttled.get()),
    ("halted", |account| account.halted.get()),
    ("invalid", |account| account.invalid.get()),
    ("unrouted", |account| account.unrouted.get()),
    ("failed", |account| account.failed.get()),
];

fn fill(control: &Control) {
    describe();
    let plane = control.plane();
    let snapshot = plane.current.load();
    let mut names: Vec<String> =
        snapshot.plans.iter().map(|plan| plan.scope.as_str().to_owned()).collect();
    // What found no route has no scope; the label stays, so that sums over it are whole.
    names.push("none".to_owned());
    for (index, scope) in names.iter().enumerate() {
        let accounts = || plane.shards.iter().filter_map(|shard| shard.accounts().nth(index));
        let sum = |read: &dyn Fn(&Account) -> u64| accounts().map(read).sum::<u64>();
        for (result, read) in RESULTS {
            counter!("breaker_requests_total", "scope" => scope.clone(), "result" => result)
                .absolute(sum(&read));
        }
        gauge!("breaker_requests_in_flight", "scope" => scope.clone())
            .set(as_gauge(sum(&|account| account.in_flight.get())));
        counter!("breaker_upstream_errors_total", "scope" => scope.clone())
            .absolute(sum(&|account| account.upstream_errors.get()));
        counter!("breaker_severed_total", "scope" => scope.clone())
            .absolute(sum(&|account| account.severed.get()));
        counter!("breaker_shadow_refusals_total", "scope" => scope.clone())
            .absolute(sum(&|account| account.shadowed.get()));
        counter!("breaker_unread_keys_total", "scope" => scope.clone())
            .absolute(sum(&|account| account.unread.get()));
        counter!("breaker_unsettled_calls_total", "scope" => scope.clone())
            .absolute(sum(&|account| account.unsettled.get()));
    }
    states(control);
    limits(control, &snapshot);
    keys(control);
    detectors(control, &snapshot);
    saves(control);
    let total = |read: fn(&Shard) -> u64| plane.shards.iter().map(read).sum();
    gauge!("breaker_calls_open").set(as_gauge(total(|shard| shard.calls.get())));
    counter!("breaker_connections_refused_total")
        .absolute(total(|shard| shard.refused_connections.get()));
    counter!("breaker_stalled_clients_total").absolute(total(|shard| shard.stalled_clients.get()));
    counter!("breaker_tls_handshake_failures_total")
        .absolute(total(|shard| shard.failed_handshakes.get()));
    let certificates = plane.certificates.as_ref();
    let (renewed, failures) = certificates.map_or((0, 0), |certificates| certificates.counts());
    counter!("breaker_tls_certificate_renewals_total").absolute(renewed);
    counter!("breaker_tls_certificate_failures_total").absolute(failures);
    let failing = certificates.is_some_and(|certificates| certificates.is_failing());
    gauge!("breaker_tls_certificate_failing").set(if failing { 1.0 } else { 0.0 });
    counter!("breaker_slow_heads_total").absolute(total(|shard| shard.slow_heads.get()));
    counter!("breaker_slow_bodies_total").absolute(total(|shard| shard.slow_bodies.get()));
    counter!("breaker_upstream_connects_total").absolute(total(|shard| shard.connects.get()));
    counter!("breaker_resent_total").absolute(total(|shard| shard.resent.get()));
    counter!("breaker_upstream_torn_total").absolute(total(|shard| shard.torn.get()));
    access_log(control);
    endpoints(&snapshot);
    // ordering: relaxed, a number on its own.
    let connections = plane.connections.load(std::sync::atomic::Ordering::Relaxed);
    gauge!("breaker_connections").set(as_gauge(connections));
    let acts = control.acts();
    counter!("breaker_kills_total").absolute(acts.kills.get());
    counter!("breaker_lifts_total").absolute(acts.lifts.get());
    counter!("breaker_trips_total").absolute(acts.trips.get());
    counter!("breaker_recoveries_total").absolute(acts.recoveries.get());
    counter!("breaker_moves_unwritten_total").absolute(acts.unwritten.get());
    gauge!("breaker_kills_live").set(as_gauge(u64::try_from(control.kills().len()).unwrap_or(0)));
    gauge!("breaker_journal_up").set(if control.journal_lost() { 0.0 } else { 1.0 });
    gauge!("breaker_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Lines of the access log: none where there is no log.
fn access_log(control: &Control) {
    let plane = control.plane();
    let total = |read: fn(&Shard) -> u64| plane.shards.iter().map(read).sum::<u64>();
    let log = plane.sight.log.as_ref();
    let (lost, errors) = log.map_or((0, 0), |log| (log.lost(), log.errors()));
    counter!("breaker_access_log_lines_total").absolute(total(|shard| shard.logged.get()));
    counter!("breaker_access_log_dropped_total")
        .absolute(total(|shard| shard.unlogged.get()).saturating_add(lost));
    counter!("breaker_access_log_errors_total").absolute(errors);
    let failing = log.is_some_and(Access::is_failing);
    gauge!("breaker_access_log_up").set(if failing { 0.0 } else { 1.0 });
}

/// How long requests took. The recorder takes one value at a time and cannot be handed what workers have counted, so these lines are written
/// here. An ending that no request of a route has had has none, since each is some twenty lines.
fn times(control: &Control, page: &mut String) {
    let plane = control.plane();
    let snapshot = plane.current.load();
    let plans = snapshot.plans.iter().enumerate();
    let scopes = plans.map(|(index, plan)| (Some(index), plan.scope.as_str()));
    let scopes: Vec<_> = scopes.chain(std::iter::once((None, "none"))).collect();
    let mut tell = |name: &str, help: &str, bounds: &[u64], add: fn(&Pair, &mut Sum)| {
        // Writing to a string does not fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (route, scope) in &scopes {
            for (ending, word) in Ending::ALL {
                let pairs = plane.shards.iter().filter_map(|shard| shard.times(*route).of(ending));
                let mut sum = Sum::new(bounds.len());
                pairs.for_each(|pair| add(pair, &mut sum));
                let labels = format!("scope=\"{scope}\",result=\"{word}\"");
                let _ = histogram(page, name, &labels, bounds, &sum);
            }
        }
        page.push('\n');
    };
    tell(
        "breaker_request_seconds",
        "from the first byte of a request's head to the last byte of its answer",
        &WHOLE,
        |pair, sum| pair.whole.add_to(sum),
    );
    tell(
        "breaker_request_added_seconds",
        "of that, the part in which neither the upstream nor the client was waited for",
        &ADDED,
        |pair, sum| pair.added.add_to(sum),
    );
}

fn histogram(
    page: &mut String,
    name: &str,
    labels: &str,
    bounds: &[u64],
    sum: &Sum,
) -> std::fmt::Result {
    let count = sum.buckets.iter().fold(0_u64, |all, here| all.wrapping_add(*here));
    if count == 0 {
        return Ok(());
    }
    let mut below = 0_u64;
    for (bound, here) in bounds.iter().zip(&sum.buckets) {
        below = below.wrapping_add(*here);
        writeln!(page, "{name}_bucket{{{labels},le=\"{}\"}} {below}", seconds(*bound))?;
    }
    writeln!(page, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
    writeln!(page, "{name}_sum{{{labels}}} {}", seconds(sum.nanos))?;
    writeln!(page, "{name}_count{{{labels}}} {count}")
}

fn seconds(nanos: u64) -> f64 {
    as_gauge(nanos) / 1.0e9
}

/// Reads one number of a worker's count of an endpoint.
type ReadTally = fn(&Tally) -> u64;

/// Upstreams and their endpoints: as many as the configuration names.
fn endpoints(snapshot: &Snapshot) {
    let counts: [(&str, ReadTally); 4] = [
        ("breaker_endpoint_connects_total", |tally| tally.connects.get()),
        ("breaker_endpoint_connect_failures_total", |tally| tally.connect_failures.get()),
        ("breaker_endpoint_handshake_failures_total", |tally| tally.handshake_failures.get()),
        ("breaker_endpoint_busy_total", |tally| tally.busy.get()),
    ];
    for upstream in &snapshot.upstreams {
        let name = || upstream.label().to_owned();
        gauge!("breaker_upstream_waiting", "upstream" => name())
            .set(as_gauge(upstream.waiting().into()));
        for endpoint in upstream.endpoints() {
            let labels = [("upstream", name()), ("endpoint", endpoint.label().to_owned())];
            for (metric, read) in counts {
                counter!(metric, &labels).absolute(endpoint.sum(read));
            }
            counter!("breaker_endpoint_marked_down_total", &labels)
                .absolute(endpoint.times_marked_down());
            gauge!("breaker_endpoint_in_flight", &labels)
                .set(as_gauge(endpoint.sum(|tally| tally.in_flight.get())));
            let addresses = endpoint.addresses();
            counter!("breaker_endpoint_lookup_failures_total", &labels)
                .absolute(addresses.failures());
            counter!("breaker_endpoint_checks_failed_total", &labels)
                .absolute(endpoint.findings().failed());
            gauge!("breaker_endpoint_addresses", &labels)
                .set(as_gauge(u64::try_from(addresses.count()).unwrap_or(0)));
            gauge!("breaker_endpoint_up", &labels).set(if endpoint.is_left_alone() {
                0.0
            } else {
                1.0
            });
        }
    }
}

/// One 0/1 gauge for each named scope and state, and how often gates came to each.
fn states(control: &Control) {
    for (scope, standing) in control.standings() {
        // Keys are no labels: there may be tens of thousands.
        if standing.place.key.is_some() {
            continue;
        }
        let state = shown(&standing);
        for candidate in ["armed", "tripped", "half-open", "killed", "shadow"] {
            gauge!("breaker_state", "scope" => scope.as_str().to_owned(), "state" => candidate)
                .set(if candidate == state { 1.0 } else { 0.0 });
        }
    }
    for ((whose, to), moves) in &control.tallies().moves {
        let labels = labels(whose, &[("to", to)]);
        counter!("breaker_moves_total", labels).absolute(*moves);
    }
}

/// How far each limit of the named scopes is used, and what limits refused, or would have.
fn limits(control: &Control, snapshot: &Snapshot) {
    let plane = control.plane();
    let (breaker, policy, now) = (plane.breaker, &snapshot.policy, plane.clock.mono());
    for (path, rules) in snapshot.scopes() {
        let Ok(scope) = Scope::parse(&path) else { continue };
        let whose = Whose { scope: path, dimension: None };
        let usage = breaker.usage(policy, &scope, now).unwrap_or_default();
        for ((index, limit), usage) in (0u8..).zip(&rules.limits).zip(usage) {
            let labels = || labels(&whose, &[("limit", &limit_name(limit, index))]);
            gauge!("breaker_limit_bound", labels()).set(as_gauge(usage.bound));
            gauge!("breaker_limit_used", labels()).set(as_gauge(usage.used));
            let left = usage.bound.saturating_sub(usage.used);
            gauge!("breaker_limit_headroom", labels()).set(as_gauge(left));
        }
        refusals(&whose, &rules.limits, rules.mode, breaker.counts(policy, &scope));
        for key in &rules.keys {
            let counts = breaker.key_counts(policy, &scope, &key.name);
            let whose = Whose { dimension: Some(key.name.clone()), ..whose.clone() };
            refusals(&whose, &key.limits, key.mode, counts);
        }
    }
}

/// Enforced and detected told apart. Which of the detected are a candidate's the rule says; the rest are those of shadow mode.
fn refusals(whose: &Whose, limits: &[LimitSpec], mode: Mode, counts: Option<ScopeCounts>) {
    let Some(counts) = counts else { return };
    for (index, limit) in (0u8..).zip(limits) {
        let at = usize::from(index);
        let count = |counts: &[u64]| counts.get(at).copied().unwrap_or_default();
        let name = limit_name(limit, index);
        let detected = if limit.candidate { "candidate" } else { "shadow" };
        let results = [("enforced", count(&counts.enforced)), (detected, count(&counts.detected))];
        for (result, times) in results {
            // What cannot happen by the rules and never did is no line.
            let possible = match result {
                "enforced" => !limit.candidate,
                "shadow" => mode == Mode::Shadow,
                _ => true,
            };
            if possible || times > 0 {
                let labels = labels(whose, &[("limit", &name), ("result", result)]);
                counter!("breaker_limit_refusals_total", labels).absolute(times);
            }
        }
    }
}

/// How full the table of each dimension was at the look that the page before this one asked for.
fn keys(control: &Control) {
    for (whose, usage) in control.tables() {
        for (kind, cells) in [("busy", usage.busy), ("held", usage.held), ("total", usage.cells)] {
            gauge!("breaker_key_cells", labels(&whose, &[("kind", kind)])).set(as_gauge(cells));
        }
        let counter = |name: &'static str, times| {
            counter!(name, labels(&whose, &[])).absolute(times);
        };
        counter("breaker_key_overflow_total", usage.overflowed);
        counter("breaker_key_evictions_total", usage.evicted);
        counter("breaker_key_turned_away_total", usage.turned_away);
    }
}

/// What detectors found, enforced and only told apart. Every detector has its lines from the start.
fn detectors(control: &Control, snapshot: &Snapshot) {
    let tallies = control.tallies();
    let tell = |whose: &Whose, rules: &[DetectorSpec]| {
        for (index, rule) in (0u8..).zip(rules) {
            let counts = tallies.findings.get(&(whose.clone(), index)).copied().unwrap_or_default();
            let name = detector_name(rule, index);
            for (result, times) in [
                ("enforced", counts.enforced),
                ("shadow", counts.shadowed),
                ("warned", counts.warned),
                ("capped", counts.capped),
            ] {
                let labels = labels(whose, &[("detector", &name), ("result", result)]);
                counter!("breaker_findings_total", labels).absolute(times);
            }
        }
    };
    for (scope, rules) in snapshot.scopes() {
        let whose = Whose { scope, dimension: None };
        tell(&whose, &rules.detectors);
        for key in &rules.keys {
            let whose = Whose { dimension: Some(key.name.clone()), ..whose.clone() };
            tell(&whose, &key.detectors);
        }
    }
    counter!("breaker_findings_unwritten_total").absolute(tallies.unwritten);
    counter!("breaker_sweeps_total").absolute(tallies.sweeps);
    counter!("breaker_findings_missed_total").absolute(tallies.missed);
}

fn saves(control: &Control) {
    let saves = control.saves();
    counter!("breaker_saves_total", "result" => "ok").absolute(saves.good());
    counter!("breaker_saves_total", "result" => "failed").absolute(saves.failed());
    gauge!("breaker_save_bytes").set(as_gauge(saves.bytes()));
    let now = control.plane().clock.mono();
    // Since the start, where there was none: an age that grows is what an alarm looks at.
    let age = saves.age(now).unwrap_or_else(|| now.since(control.started()));
    gauge!("breaker_save_age_seconds").set(as_gauge(age.as_nanos()) / 1.0e9);
}

fn labels(whose: &Whose, more: &[(&'static str, &str)]) -> Vec<Label> {
    let mut labels = vec![Label::new("scope", whose.scope.clone())];
    labels.extend(whose.dimension.clone().map(|dimension| Label::new("dimension", dimension)));
    labels.extend(more.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())));
    labels
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float on the wire; counts of what is there now stay far below 2^53"
)]
fn as_gauge(count: u64) -> f64 {
    count as f64
}

fn describe() {
    describe_counter!(
        "breaker_requests_total",
        "requests by what became of them; offered is the sum of the others and those in flight"
    );
    describe_gauge!(
        "breaker_requests_in_flight",
        "admitted requests of which no byte has been sent yet"
    );
    describe_counter!(
        "breaker_upstream_errors_total",
        "forwarded requests without a whole answer from the upstream"
    );
    describe_counter!("breaker_severed_total", "forwarded requests that a kill ended in flight");
    describe_counter!("breaker_shadow_refusals_total", "refusals that shadow mode let through");
    describe_counter!(
        "breaker_unread_keys_total",
        "requests with a body or token in which a key could not be read, so that it counted as missing"
    );
    describe_counter!(
        "breaker_unsettled_calls_total",
        "calls whose answer did not say what they weighed, so that what was reserved stood"
    );
    describe_counter!(
        "breaker_slow_bodies_total",
        "requests refused because a body that is looked into did not come in time"
    );
    describe_gauge!("breaker_state", "1 for the state each scope is in");
    describe_gauge!("breaker_calls_open", "calls whose answer has not come to its end");
    describe_counter!(
        "breaker_connections_refused_total",
        "client connections refused because all were taken or the system had none"
    );
    describe_counter!(
        "breaker_tls_handshake_failures_total",
        "TLS handshakes that came to nothing"
    );
    describe_counter!("breaker_tls_certificate_renewals_total", "renewed certificates taken in");
    describe_counter!(
        "breaker_tls_certificate_failures_total",
        "looks at files of certificates that could not be used; the last good ones stay"
    );
    describe_gauge!(
        "breaker_tls_certificate_failing",
        "1 while the files of certificates cannot be used as they are"
    );
    describe_counter!(
        "breaker_slow_heads_total",
        "client connections ended because no whole request head came in time"
    );
    describe_counter!(
        "breaker_stalled_clients_total",
        "answers that ended because their client stopped reading"
    );
    describe_counter!("breaker_upstream_connects_total", "connections made to upstreams");
    describe_counter!(
        "breaker_resent_total",
        "GET requests that were never sent on a dead connection and went out on a new one"
    );
    describe_counter!(
        "breaker_upstream_torn_total",
        "HTTP/2 connections to upstreams that ended with all their calls, because a kill met a half-written frame"
    );
    describe_gauge!("breaker_upstream_waiting", "calls that wait for a connection");
    describe_counter!("breaker_endpoint_connects_total", "connections made to each endpoint");
    describe_counter!(
        "breaker_endpoint_connect_failures_total",
        "connections to each endpoint that could not be made, or not in time"
    );
    describe_counter!(
        "breaker_endpoint_handshake_failures_total",
        "of the connections that could not be made, those on which TLS failed"
    );
    describe_counter!(
        "breaker_endpoint_busy_total",
        "calls refused because no connection to the endpoint came free"
    );
    describe_counter!(
        "breaker_endpoint_marked_down_total",
        "how often each endpoint was marked down, failed trials included"
    );
    describe_counter!(
        "breaker_endpoint_lookup_failures_total",
        "attempts to resolve an endpoint's name that found nothing; the last good answer stays"
    );
    describe_gauge!("breaker_endpoint_addresses", "addresses that an endpoint's name leads to");
    describe_gauge!("breaker_endpoint_in_flight", "calls that each endpoint has");
    describe_counter!(
        "breaker_endpoint_checks_failed_total",
        "health checks of each endpoint that failed"
    );
    describe_gauge!("breaker_endpoint_up", "0: marked down, or sick as health checks say");
    describe_gauge!("breaker_connections", "client connections");
    describe_counter!("breaker_kills_total", "kills put in force since the start");
    describe_counter!("breaker_lifts_total", "lifts since the start");
    describe_counter!("breaker_trips_total", "trips since the start");
    describe_counter!("breaker_recoveries_total", "gates armed again since the start");
    describe_counter!(
        "breaker_moves_unwritten_total",
        "moves of gates that came too fast to be written to the journal one by one"
    );
    describe_gauge!("breaker_kills_live", "kills that are not lifted");
    describe_gauge!("breaker_journal_up", "0: the journal failed, nothing is durable");
    describe_counter!("breaker_moves_total", "moves of gates, by the state they came to");
    describe_gauge!("breaker_limit_bound", "the most that can be used of a limit, in its own unit");
    describe_gauge!("breaker_limit_used", "how much of a limit is used now");
    describe_gauge!("breaker_limit_headroom", "what is left of a limit now");
    describe_counter!(
        "breaker_limit_refusals_total",
        "how often a limit said no: enforced, or not obeyed because of shadow mode or because it is a candidate"
    );
    describe_counter!(
        "breaker_findings_total",
        "what detectors found: tripped and enforced, tripped in shadow mode, warned, or capped to a warning"
    );
    describe_counter!(
        "breaker_findings_unwritten_total",
        "findings that came too fast to be written to the journal"
    );
    describe_counter!(
        "breaker_findings_missed_total",
        "findings that were only counted, for there were too many at once"
    );
    describe_counter!("breaker_sweeps_total", "sweeps: some fifty a second while all is well");
    describe_counter!("breaker_saves_total", "saves of the standings, by how they went");
    describe_gauge!("breaker_save_bytes", "size of the last save of the standings");
    describe_gauge!("breaker_save_age_seconds", "since the last good save of the standings");
    describe_gauge!(
        "breaker_key_cells",
        "key cells of a dimension: busy with something to lose, held by a key, and in all"
    );
    describe_counter!(
        "breaker_key_overflow_total",
        "calls of keys that shared the overflow cell because the table was full"
    );
    describe_counter!(
        "breaker_key_evictions_total",
        "busy keys that lost their cell to the kill or trip of another"
    );
    describe_counter!(
        "breaker_key_turned_away_total",
        "first sights of keys beyond what newcomers allow"
    );
    describe_counter!("breaker_access_log_lines_total", "lines made for the access log");
    describe_counter!(
        "breaker_access_log_dropped_total",
        "lines for which there was no room, or that could not be written"
    );
    describe_counter!(
        "breaker_access_log_errors_total",
        "attempts to write the access log, or to open it again, that failed"
    );
    describe_gauge!("breaker_access_log_up", "0 while the access log cannot be written");
    describe_gauge!("breaker_build_info", "1, labelled with the version");
}
