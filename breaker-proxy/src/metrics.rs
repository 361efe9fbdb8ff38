//! The metrics page: reads the counters when it is asked and owns every metric name; nothing is decided from it.

use crate::control::task::{Control, shown};
use crate::data::counts::Account;
use crate::data::endpoint::Tally;
use crate::snapshot::Snapshot;
use ::metrics::{Recorder, counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;

/// The page, in the text format of Prometheus.
#[must_use]
pub fn render(control: &Control) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    with_local_recorder(&recorder as &dyn Recorder, || fill(control));
    handle.render()
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
    }
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
    let total = |read: fn(&crate::data::counts::Shard) -> u64| plane.shards.iter().map(read).sum();
    gauge!("breaker_calls_open").set(as_gauge(total(|shard| shard.calls.get())));
    counter!("breaker_connections_refused_total")
        .absolute(total(|shard| shard.refused_connections.get()));
    counter!("breaker_stalled_clients_total").absolute(total(|shard| shard.stalled_clients.get()));
    counter!("breaker_tls_handshake_failures_total")
        .absolute(total(|shard| shard.failed_handshakes.get()));
    if let Some(certificates) = &plane.certificates {
        let (renewed, failures) = certificates.counts();
        counter!("breaker_tls_certificate_renewals_total").absolute(renewed);
        counter!("breaker_tls_certificate_failures_total").absolute(failures);
        gauge!("breaker_tls_certificate_failing").set(if certificates.is_failing() {
            1.0
        } else {
            0.0
        });
    }
    counter!("breaker_slow_heads_total").absolute(total(|shard| shard.slow_heads.get()));
    counter!("breaker_upstream_connects_total").absolute(total(|shard| shard.connects.get()));
    counter!("breaker_resent_total").absolute(total(|shard| shard.resent.get()));
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
    let usage = plane.breaker.key_usage();
    gauge!("breaker_key_cells", "kind" => "held").set(as_gauge(usage.held));
    gauge!("breaker_key_cells", "kind" => "total").set(as_gauge(usage.cells));
    counter!("breaker_key_overflow_total").absolute(usage.overflowed);
    gauge!("breaker_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
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
    describe_gauge!("breaker_key_cells", "key cells held and in all");
    describe_counter!(
        "breaker_key_overflow_total",
        "calls of new keys that shared an overflow cell because the table was full"
    );
    describe_gauge!("breaker_build_info", "1, labelled with the version");
}
