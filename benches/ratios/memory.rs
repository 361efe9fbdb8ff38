//! Bytes: what a tracked key costs, and that nothing grows after start; counted by the allocator, not guessed from pages.

use std::alloc::System;

use breaker_benches::World;
use breaker_benches::figures::real;
use breaker_benches::report::{Table, nanos};
use breaker_core::{LimitSpec, Mono, ScopeSpec, Span};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::keys::{labels, numbers};
use crate::ours::{keyed_by, rate};

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
    for tenths in [10, 15, 20] {
        let name = format!("one `rate`, room for {}.{} × the keys", tenths / 10, tenths % 10);
        rows.push(ours(name, vec![rate()], keys, keys * tenths / 10, Some(64.0)));
    }
    let few = keys / 16;
    let window = vec![LimitSpec::window(16, Span::from_secs(1))];
    for tenths in [10, 20] {
        let times = format!("{}.{}", tenths / 10, tenths % 10);
        let name = format!("one `window` of 16, {few} keys, room for {times} × the keys");
        let room = few * tenths / 10;
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
        let goal = row.goal.map(breaker_benches::report::Goal);
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
