//! Our cases. Everything is reached through an opaque reference in every turn, ours and the rivals' alike.

use std::hint::black_box;

use breaker_benches::World;
use breaker_benches::rounds::Case;
use breaker_core::{
    Call, DetectorKind, DetectorSpec, Errors, Gates, KeySpec, KillLevel, Latency, Lease, LimitSpec,
    Mono, Novel, Outcome, Ratio, Repeat, ScopeSpec, Settlement, Silence, Span, Streak, Surge,
    Verdict,
};

use crate::keys::{WARM, labels, numbers, still};

/// The clock that governor reads: the TSC, scaled to nanoseconds.
pub(crate) struct Tsc(quanta::Clock);

/// A tick that the caller has anyway: later by one step each time it is asked.
struct Tick {
    nanos: u64,
    step: u64,
}

impl Tsc {
    pub(crate) fn new() -> &'static Tsc {
        still(Tsc(quanta::Clock::new()))
    }

    /// As governor does it.
    #[inline]
    pub(crate) fn now(&self) -> Mono {
        Mono::from_nanos(self.0.delta_as_nanos(0, self.0.raw()))
    }
}

impl Tick {
    const fn new() -> Tick {
        Tick::by(20)
    }

    const fn by(step: u64) -> Tick {
        Tick { nanos: 1_000_000_000, step }
    }

    #[inline]
    const fn next(&mut self) -> Mono {
        self.nanos += self.step;
        Mono::from_nanos(self.nanos)
    }
}

/// 10⁹ a second, 10⁶ at once: never reached, and the same numbers as the rival's.
pub(crate) fn rate() -> LimitSpec {
    LimitSpec::rate(1_000_000_000, Span::from_secs(1), 1_000_000)
}

/// A million a second, and a burst that no run uses up.
pub(crate) fn busy() -> LimitSpec {
    LimitSpec::rate(1_000_000, Span::from_secs(1), 4_000_000_000)
}

/// At most 1,000 in any microsecond: never reached, and its ring turns as fast as calls come.
pub(crate) fn window() -> LimitSpec {
    LimitSpec::window(1_000, Span::from_nanos(1_000))
}

pub(crate) fn key(limits: Vec<LimitSpec>) -> KeySpec {
    KeySpec { name: "key".to_owned(), limits, ..KeySpec::default() }
}

pub(crate) fn keyed_by(limits: Vec<LimitSpec>) -> Vec<KeySpec> {
    vec![key(limits)]
}

/// One route with these limits.
pub(crate) fn plain(limits: Vec<LimitSpec>) -> &'static World {
    still(World::new(ScopeSpec { limits, ..ScopeSpec::default() }, 64))
}

/// The same, counting what becomes of calls.
pub(crate) fn counting(limits: Vec<LimitSpec>) -> &'static World {
    still(World::new(ScopeSpec { limits, counts: true, ..ScopeSpec::default() }, 64))
}

#[inline]
fn admits(world: &World, call: Call, now: Mono) -> bool {
    let world = black_box(world);
    world.breaker.admit(&world.policy, call, now).is_allowed()
}

/// The same, and the clock is asked when the decision needs it.
#[inline]
fn admits_at(world: &World, call: Call, clock: &Tsc) -> bool {
    let world = black_box(world);
    world.breaker.admit_at(&world.policy, call, || black_box(clock).now()).is_allowed()
}

#[inline]
fn admits_and_settles(world: &World, call: Call, now: Mono) -> bool {
    let world = black_box(world);
    match world.breaker.admit(&world.policy, call, now) {
        Verdict::Allow(permit) => {
            permit.settle(Outcome::Good, now);
            true
        }
        Verdict::Deny(_) => false,
    }
}

pub(crate) fn clock_alone() -> Case {
    let clock = Tsc::new();
    Case::new(CLOCK, move || black_box(clock).now())
}

pub(crate) fn rate_clock() -> Case {
    let (world, clock) = (plain(vec![rate()]), Tsc::new());
    Case::new(RATE_CLOCK, move || admits_at(world, world.call, clock))
}

pub(crate) fn rate_clock_settled() -> Case {
    let (world, clock) = (counting(vec![rate()]), Tsc::new());
    Case::new(RATE_CLOCK_SETTLED, move || {
        admits_and_settles(world, world.call, black_box(clock).now())
    })
}

/// As above, with a detector that hears outcomes.
pub(crate) fn rate_clock_heard() -> Case {
    let detectors = vec![DetectorKind::Errors(Errors::default()).into()];
    let scope = ScopeSpec { limits: vec![rate()], counts: true, detectors, ..ScopeSpec::default() };
    let (world, clock) = (still(World::new(scope, 64)), Tsc::new());
    Case::new(RATE_CLOCK_HEARD, move || {
        admits_and_settles(world, world.call, black_box(clock).now())
    })
}

pub(crate) fn rate_tick() -> Case {
    let (world, mut tick) = (plain(vec![rate()]), Tick::new());
    Case::new(RATE_TICK, move || admits(world, world.call, tick.next()))
}

/// A lease of the only route.
pub(crate) fn leased(world: &'static World) -> Lease<'static> {
    let route = world.policy.route(&world.route).expect("the world has this route");
    let lease = world.breaker.lease(&world.policy, route, LOT, Span::from_millis(1));
    lease.expect("one plain rate")
}

pub(crate) fn rate_leased() -> Case {
    let (mut lease, mut tick) = (leased(plain(vec![rate()])), Tick::new());
    Case::new(RATE_LEASED, move || black_box(&mut lease).admit(tick.next()).is_allowed())
}

pub(crate) fn rate_leased_settled() -> Case {
    let (mut lease, mut tick) = (leased(counting(vec![rate()])), Tick::new());
    Case::new(RATE_LEASED_SETTLED, move || {
        let now = tick.next();
        match black_box(&mut lease).admit(now) {
            Verdict::Allow(permit) => permit.settle(Outcome::Good, now),
            Verdict::Deny(_) => true,
        }
    })
}

pub(crate) fn rate_tick_settled() -> Case {
    let (world, mut tick) = (counting(vec![rate()]), Tick::new());
    Case::new(RATE_TICK_SETTLED, move || admits_and_settles(world, world.call, tick.next()))
}

pub(crate) fn window_clock() -> Case {
    let (world, clock) = (plain(vec![window()]), Tsc::new());
    Case::new(WINDOW_CLOCK, move || admits_at(world, world.call, clock))
}

pub(crate) fn window_tick() -> Case {
    let (world, mut tick) = (plain(vec![window()]), Tick::new());
    Case::new(WINDOW_TICK, move || admits(world, world.call, tick.next()))
}

/// A window that is full: 1,000 in any hour, all taken.
pub(crate) fn window_refuse() -> Case {
    let world = plain(vec![LimitSpec::window(1_000, Span::from_secs(3_600))]);
    let mut tick = Tick::new();
    let taken = (0..2_000).filter(|_| admits(world, world.call, tick.next())).count();
    assert_eq!(taken, 1_000, "full");
    Case::new(WINDOW_REFUSE, move || admits(world, world.call, tick.next()))
}

/// So many slots for eight keys: twelve where lookups are to be fast, nine where memory is dear.
#[derive(Clone, Copy)]
enum Room {
    Fast = 12,
    Tight = 9,
}

fn keyed_world(count: u32, room: Room) -> &'static World {
    let scope = ScopeSpec { keys: keyed_by(vec![rate()]), ..ScopeSpec::default() };
    still(World::new(scope, count / 8 * room as u32))
}

fn keyed(name: &'static str, count: u32, room: Room, clocked: bool) -> Case {
    let (world, clock, mut tick) = (keyed_world(count, room), Tsc::new(), Tick::new());
    let mut turn = numbers(count.try_into().unwrap_or(0)).iter().cycle();
    let mut call = move || {
        let key = *turn.next().unwrap_or(&0);
        world.call.with_key(0, black_box(world).breaker.hash_u64(key))
    };
    let warm = usize::try_from(count).unwrap_or(0);
    for _ in 0..count {
        admits(world, call(), tick.next());
    }
    if clocked {
        Case::new(name, move || admits_at(world, call(), clock)).warmed(warm)
    } else {
        Case::new(name, move || admits(world, call(), tick.next())).warmed(warm)
    }
}

pub(crate) fn keyed_100k() -> Case {
    keyed(KEYED_100K, 100_000, Room::Fast, true)
}

pub(crate) fn keyed_tight() -> Case {
    keyed(KEYED_TIGHT, 100_000, Room::Tight, true)
}

pub(crate) fn keyed_tight_tick() -> Case {
    keyed(KEYED_TIGHT_TICK, 100_000, Room::Tight, false)
}

pub(crate) fn keyed_100k_tick() -> Case {
    keyed(KEYED_100K_TICK, 100_000, Room::Fast, false)
}

pub(crate) fn keyed_1m() -> Case {
    keyed(KEYED_1M, 1_000_000, Room::Fast, true)
}

pub(crate) fn keyed_1m_tick() -> Case {
    keyed(KEYED_1M_TICK, 1_000_000, Room::Fast, false)
}

fn text(name: &'static str, room: Room, clocked: bool) -> Case {
    let (world, clock, mut tick) = (keyed_world(100_000, room), Tsc::new(), Tick::new());
    let mut turn = labels(100_000).iter().cycle();
    let mut call = move || {
        let key = turn.next().map_or("", String::as_str);
        world.call.with_key(0, black_box(world).breaker.hash(key.as_bytes()))
    };
    for _ in 0..100_000 {
        admits(world, call(), tick.next());
    }
    if clocked {
        Case::new(name, move || admits_at(world, call(), clock)).warmed(WARM)
    } else {
        Case::new(name, move || admits(world, call(), tick.next())).warmed(WARM)
    }
}

pub(crate) fn keyed_text() -> Case {
    text(KEYED_TEXT, Room::Fast, true)
}

pub(crate) fn keyed_text_tick() -> Case {
    text(KEYED_TEXT_TICK, Room::Fast, false)
}

pub(crate) fn keyed_text_tight_tick() -> Case {
    text(KEYED_TEXT_TIGHT_TICK, Room::Tight, false)
}

/// Global, group, route and key looked at; the route's window and the key's rate charged; settled and counted.
pub(crate) fn four_gates() -> Case {
    let scope = ScopeSpec {
        limits: vec![window()],
        keys: keyed_by(vec![rate()]),
        counts: true,
        ..ScopeSpec::default()
    };
    let (world, mut tick) = (still(World::new(scope, 200_000)), Tick::new());
    let mut turn = numbers(100_000).iter().cycle();
    let mut next = move || {
        let key = *turn.next().unwrap_or(&0);
        let call = world.call.with_key(0, black_box(world).breaker.hash_u64(key));
        admits_and_settles(world, call, tick.next())
    };
    let passed = (0..100_000).filter(|_| next()).count();
    assert_eq!(passed, 100_000, "never reached");
    Case::new(FOUR_GATES, next).warmed(WARM)
}

/// All that a route may have: eight of the nine. The ninth, spread, hears trips and no decision.
pub(crate) fn route_detectors() -> Vec<DetectorSpec> {
    let kinds = [
        DetectorKind::Surge(Surge::of_route(MANY)),
        DetectorKind::Repeat(Repeat::default()),
        DetectorKind::Errors(Errors::default()),
        DetectorKind::Latency(Latency::default()),
        DetectorKind::Silence(Silence::default()),
        DetectorKind::Streak(Streak::default()),
        DetectorKind::Novel(Novel::default()),
        DetectorKind::Ratio(Ratio::default()),
    ];
    kinds.map(DetectorSpec::new).into()
}

/// All that a key may have.
pub(crate) fn key_detectors() -> Vec<DetectorSpec> {
    let kinds = [
        DetectorKind::Surge(Surge::of_keys(MANY)),
        DetectorKind::Repeat(Repeat::default()),
        DetectorKind::Errors(Errors::default()),
        DetectorKind::Streak(Streak::default()),
        DetectorKind::Ratio(Ratio::default()),
    ];
    kinds.map(DetectorSpec::new).into()
}

/// One call, admitted and settled with all that is known of it. It must pass: a refusal would be cheap.
#[inline]
fn settles_in_full(world: &World, call: Call, print: u64, now: Mono) {
    let world = black_box(world);
    let call = call.with_fingerprint(world.breaker.hash_u64(print));
    let Verdict::Allow(permit) = world.breaker.admit(&world.policy, call, now) else {
        panic!("no detector may trip here")
    };
    let latency = Some(Span::from_millis(1));
    permit.settle_as(Settlement { latency, ..Settlement::of(Outcome::Good) }, now);
}

/// A hundred thousand calls a second, each different from the last 1,000.
pub(crate) fn detectors_route() -> Case {
    let scope =
        ScopeSpec { limits: vec![rate()], detectors: route_detectors(), ..ScopeSpec::default() };
    let (world, mut tick, mut print) = (still(World::new(scope, 64)), Tick::by(APART), 0);
    Case::new(DETECTORS_ROUTE, move || {
        print = (print + 1) % PRINTS;
        settles_in_full(world, world.call, print, tick.next());
    })
}

/// The same with 100,000 keys that have all that keys may have.
pub(crate) fn detectors_keys() -> Case {
    let keys = vec![KeySpec { detectors: key_detectors(), ..key(vec![rate()]) }];
    let scope = ScopeSpec {
        limits: vec![rate()],
        keys,
        detectors: route_detectors(),
        ..ScopeSpec::default()
    };
    let (world, mut tick) = (still(World::new(scope, 200_000)), Tick::by(APART));
    let (mut turn, mut print) = (numbers(100_000).iter().cycle(), 0);
    Case::new(DETECTORS_KEYS, move || {
        print = (print + 1) % PRINTS;
        let key = *turn.next().unwrap_or(&0);
        let call = world.call.with_key(0, black_box(world).breaker.hash_u64(key));
        settles_in_full(world, call, print, tick.next());
    })
    .warmed(WARM)
}

fn blocked(by_kill: bool) -> &'static World {
    let world = counting(vec![rate()]);
    let now = Mono::from_nanos(1_000_000_000);
    let stamp = if by_kill {
        world.breaker.kill(&world.policy, &world.route, KillLevel::Halt, now)
    } else {
        world.breaker.trip(&world.policy, &world.route, now)
    };
    assert!(stamp.is_ok());
    world
}

fn gates_of(world: &'static World) -> &'static Gates<'static> {
    let gates = world.policy.route(&world.route).and_then(|route| world.policy.gates(route));
    still(gates.expect("the world has this route"))
}

fn look(name: &'static str, by_kill: bool) -> Case {
    let gates = gates_of(blocked(by_kill));
    assert!(gates.blocked().is_some());
    Case::new(name, move || black_box(gates).blocked().is_some())
}

fn counted(name: &'static str, by_kill: bool) -> Case {
    let gates = gates_of(blocked(by_kill));
    Case::new(name, move || black_box(gates).refuse().is_some())
}

pub(crate) fn killed_look() -> Case {
    look(KILLED_LOOK, true)
}

pub(crate) fn tripped_look() -> Case {
    look(TRIPPED_LOOK, false)
}

pub(crate) fn killed_counted() -> Case {
    counted(KILLED_COUNTED, true)
}

pub(crate) fn tripped_counted() -> Case {
    counted(TRIPPED_COUNTED, false)
}

/// The whole way to a refusal, for those who do not look first; counted, and told why.
pub(crate) fn killed_admit() -> Case {
    let (world, mut tick) = (blocked(true), Tick::new());
    Case::new(KILLED_ADMIT, move || admits(world, world.call, tick.next()))
}

pub(crate) const CLOCK: &str = "the clock alone (TSC to nanoseconds)";
pub(crate) const RATE_CLOCK: &str = "one `rate`, clock read";
pub(crate) const RATE_CLOCK_SETTLED: &str = "one `rate`, clock read, settled and counted";
pub(crate) const RATE_CLOCK_HEARD: &str =
    "one `rate`, clock read, settled, counted and heard by the detector of errors";
pub(crate) const DETECTORS_ROUTE: &str = "all 8 detectors of a route, tick given, settled in full";
pub(crate) const DETECTORS_KEYS: &str =
    "all 8 detectors of a route and all 5 of a key, 100k u64, tick given, settled in full";
pub(crate) const RATE_TICK: &str = "one `rate`, tick given";
pub(crate) const RATE_LEASED: &str = "one `rate`, tick given, leased";
pub(crate) const RATE_LEASED_SETTLED: &str = "one `rate`, tick given, leased, settled and counted";
pub(crate) const RATE_TICK_SETTLED: &str = "one `rate`, tick given, settled and counted";
pub(crate) const WINDOW_CLOCK: &str = "exact `window` of 1,000, admits, clock read";
pub(crate) const WINDOW_TICK: &str = "exact `window` of 1,000, admits, tick given";
pub(crate) const WINDOW_REFUSE: &str = "exact `window` of 1,000, refuses, tick given";
pub(crate) const KEYED_100K: &str = "keyed `rate`, 100k u64, clock read";
pub(crate) const KEYED_100K_TICK: &str = "keyed `rate`, 100k u64, tick given";
pub(crate) const KEYED_TIGHT: &str =
    "keyed `rate`, 100k u64, room for 1.125 × the keys, clock read";
pub(crate) const KEYED_TIGHT_TICK: &str =
    "keyed `rate`, 100k u64, room for 1.125 × the keys, tick given";
pub(crate) const KEYED_TEXT_TIGHT_TICK: &str =
    "keyed `rate`, 100k strings of 25 bytes, room for 1.125 × the keys, tick given";
pub(crate) const KEYED_1M: &str = "keyed `rate`, 1M u64, clock read";
pub(crate) const KEYED_1M_TICK: &str = "keyed `rate`, 1M u64, tick given";
pub(crate) const KEYED_TEXT: &str = "keyed `rate`, 100k strings of 25 bytes, clock read";
pub(crate) const KEYED_TEXT_TICK: &str = "keyed `rate`, 100k strings of 25 bytes, tick given";
pub(crate) const FOUR_GATES: &str =
    "four gates, route `window` and key `rate`, 100k u64, tick given, settled and counted";
pub(crate) const KILLED_LOOK: &str = "killed: the look that refuses";
pub(crate) const TRIPPED_LOOK: &str = "tripped: the look that refuses";
pub(crate) const KILLED_COUNTED: &str = "killed: refused and counted";
pub(crate) const TRIPPED_COUNTED: &str = "tripped: refused and counted";
pub(crate) const KILLED_ADMIT: &str = "killed: admit() says no, counted, tick given";

/// Calls a minute that are never seen here, and little below the most that a ceiling may be.
const MANY: u64 = 12_000_000;
/// Nanoseconds between two calls where detectors count them: 6 million a minute.
const APART: u64 = 10_000;
/// Calls that differ from each other. It shares no factor with the keys' number: else each key would say the same for ever,
/// and rightly be tripped for it.
const PRINTS: u64 = 1_001;
/// Calls that a lease charges at once, at most.
const LOT: u32 = 64;
