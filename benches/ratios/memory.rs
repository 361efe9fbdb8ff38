//! Bytes: what a tracked key costs, and that nothing grows after start; counted by the allocator, not guessed from pages.

use std::alloc::System;

use breaker_benches::World;
use breaker_benches::figures::real;
use breaker_benches::report::{Goal, Table, nanos};
use breaker_core::{KeySpec, LimitSpec, Mono, ScopeSpec, Span, Sweeper};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::keys::{labels, numbers};
use crate::ours::{key, key_detectors, keyed_by, rate, route_detectors};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A million keys' memory.
pub(crate) struct Bytes {
    /// What was measured.
    pub(crate) name: String,
    /// For each place.
    pub(crate) place: f64,
    /// For each key that has a place of its own.
    pub(crate) each: f64,
    /// Keys that have none, of a hundred.
    pub(crate) shared: f64,
    /// Bytes that came after the start.
    pub(crate) grown: f64,
    /// The goal for `each`, if there is one.
    pub(crate) goal: Option<f64>,
}

/// Live bytes since the region began.
fn live(region: &Region<'_, System>) -> f64 {
    let change = region.change();
    // A reallocation counts as freed and allocated, or by its difference: here by what stands.
    real(change.bytes_allocated) - real(change.bytes_deallocated)
}

/// All rows; `keys` is a million but in a quick run.
pub(crate) fn measure(keys: usize) -> Vec<Bytes> {
    let mut rows = Vec::new();
    for (times, eighths) in [("1.0", 8), ("1.125", 9), ("1.5", 12), ("2.0", 16)] {
        let name = format!("one `rate`, room for {times} × the keys");
        rows.push(ours(name, vec![rate()], keys, keys * eighths / 8, Some(64.0)));
    }
    let few = keys / 16;
    let window = vec![LimitSpec::window(16, Span::from_secs(1))];
    for (times, eighths) in [("1.0", 8), ("1.125", 9), ("1.5", 12)] {
        let name = format!("one `window` of 16, {few} keys, room for {times} × the keys");
        let room = few * eighths / 8;
        rows.push(ours(name, window.clone(), few, room, Some(64.0 + 8.0 * 16.0)));
    }
    rows.push(governor("governor keyed, u64", numbers(keys)));
    rows.push(governor(
        "governor keyed, String of 25 bytes (the labels not counted twice)",
        labels(keys),
    ));
    rows
}

fn ours(
    name: String,
    limits: Vec<LimitSpec>,
    keys: usize,
    room: usize,
    goal: Option<f64>,
) -> Bytes {
    let numbers = numbers(keys);
    let region = Region::new(ALLOCATOR);
    let scope = ScopeSpec { keys: keyed_by(limits), ..ScopeSpec::default() };
    let world = World::new(scope, u32::try_from(room).unwrap_or(u32::MAX));
    let start = live(&region);
    for (number, nanos) in numbers.iter().zip(1_000_000_000..) {
        let call = world.call.with_key(0, world.breaker.hash_u64(*number));
        let _ = world.breaker.admit(&world.policy, call, Mono::from_nanos(nanos)).is_allowed();
    }
    let grown = live(&region) - start;
    let held = real(usize::try_from(world.breaker.key_usage().held).unwrap_or(0));
    let shared = 100.0 * (1.0 - held / real(keys));
    let cells = real(usize::try_from(world.breaker.key_usage().cells).unwrap_or(0));
    Bytes { name, place: start / cells, each: start / held, shared, grown, goal }
}

fn governor<K: Clone + std::hash::Hash + Eq>(name: &str, keys: &[K]) -> Bytes {
    let region = Region::new(ALLOCATOR);
    let limiter: DefaultKeyedRateLimiter<K> =
        RateLimiter::keyed(Quota::per_second(std::num::NonZeroU32::MAX));
    let start = live(&region);
    for key in keys {
        let _ = limiter.check_key(key).is_ok();
    }
    let grown = live(&region) - start;
    Bytes {
        name: name.to_owned(),
        place: f64::NAN,
        each: (start + grown) / real(keys.len()),
        shared: 0.0,
        grown,
        goal: None,
    }
}

/// What detectors add: bytes for a route that has all of them, and for a place of a key that has all of them.
pub(crate) fn detectors() -> Table {
    let of = |route: bool, key_has: bool| {
        let key_detectors = if key_has { key_detectors() } else { Vec::new() };
        let scope = ScopeSpec {
            keys: vec![KeySpec { detectors: key_detectors, ..key(vec![rate()]) }],
            detectors: if route { route_detectors() } else { Vec::new() },
            ..ScopeSpec::default()
        };
        let (region, mut sweeper) = (Region::new(ALLOCATOR), Sweeper::new());
        let world = World::new(scope, PLACES);
        let mut news = Vec::new();
        for (number, nanos) in (0..u64::from(PLACES)).zip((1_000_000_000..).step_by(1_000)) {
            let call = world.call.with_key(0, world.breaker.hash_u64(number));
            let now = Mono::from_nanos(nanos);
            let _ = world.breaker.admit(&world.policy, call, now).is_allowed();
            if number.is_multiple_of(1_000) {
                sweeper.sweep(&world.breaker, &world.policy, now, &mut news);
            }
        }
        live(&region)
    };
    // The first world pays for what the process needs once: it is not counted.
    let _ = of(true, true);
    let (none, route, both) = (of(false, false), of(true, false), of(true, true));
    assert!(none < route && route < both, "detectors that need no memory were not there");
    let mut table = Table::new(&["all detectors on", "bytes", "goal", ""]);
    for (name, bytes, goal) in [
        ("a route", route - none, 2_048.0),
        ("a key's place", (both - route) / f64::from(PLACES), 256.0),
    ] {
        let verdict = Goal(goal).verdict(bytes).to_owned();
        table.row([name.to_owned(), format!("{bytes:.0}"), format!("≤ {goal}"), verdict]);
    }
    table
}

/// Places in the table of keys with detectors.
const PLACES: u32 = 1 << 16;

/// The rows as a table.
pub(crate) fn table(rows: &[Bytes]) -> Table {
    let mut table = Table::new(&[
        "a million keys",
        "bytes per place",
        "bytes per tracked key",
        "goal",
        "",
        "keys without a place",
        "grown after start",
    ]);
    for row in rows {
        let goal = row.goal.map(Goal);
        table.row([
            row.name.clone(),
            nanos(row.place),
            format!("{:.1}", row.each),
            row.goal.map_or("-".to_owned(), |goal| format!("≤ {goal}")),
            goal.map_or("", |goal| goal.verdict(row.each)).to_owned(),
            format!("{:.2} %", row.shared),
            format!("{} bytes", row.grown),
        ]);
    }
    table
}
