//! One seeded life: two breakers, the oracle, several threads of virtual time, and all that may happen to them.

pub(crate) mod spec;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use breaker_core::{
    Breaker, By, Call, Capacity, Cause, Denial, KeyHash, KillLevel, Level, LiftTo, Mode, Mono,
    OrderError, Pass, Policy, Scope, ScopeCounts, Seed, Settlement, Span, Stamp, Standing, State,
    Sweeper, Ticket, Transition, Verdict,
};

use crate::oracle::gate::{self, Gate, Why};
use crate::oracle::limit::{Kind, NEVER, Wait};
use crate::oracle::{self, Answer, House, Outcome, Passed, ScopeSpec, Seat};
use spec::{Dice, Style, any_spec, mutate, translated};

/// What may become of a call, and of the house.
pub(crate) const EVENTS: [&str; 28] = [
    "passed",
    "rate in line",
    "window in line",
    "key in line",
    "key and window in line",
    "refused by a look",
    "passed in shadow",
    "probe",
    "limit",
    "choice",
    "breach",
    "tripped",
    "probing",
    "killed",
    "settled",
    "dropped",
    "lost",
    "true weight",
    "stale look",
    "lift",
    "trip below",
    "no key",
    "stale lift",
    "reload",
    "failed reload",
    "shared cell",
    "eviction",
    "transition",
];

pub(crate) struct Life {
    dice: Dice,
    style: Style,
    trace: bool,
    /// The short way, and the long.
    twins: [Breaker; 2],
    sweepers: [Sweeper; 2],
    house: House,
    first: Vec<ScopeSpec>,
    now_in_force: Rc<InForce>,
    earlier: Vec<Rc<InForce>>,
    held: Vec<Held>,
    stamps: Vec<(Stamp, String, u64)>,
    /// Kills in force: an account of its own, kept by what was answered.
    killed: BTreeMap<String, KillLevel>,
    /// Which places are whose: of named scopes, and of dimensions.
    places: BTreeMap<(bool, u32), String>,
    /// What the sweeper told last.
    told: BTreeMap<String, State>,
    /// By route: calls counted, and calls that never ended.
    offered: BTreeMap<String, u64>,
    lost: BTreeMap<String, u64>,
    clock: u64,
    /// How much each thread's clock is late.
    late: [u64; 3],
    /// Instants at which something was promised.
    promised: Vec<u64>,
    evicted: u64,
    calls: u64,
    pub(crate) events: BTreeMap<&'static str, u64>,
}

/// A policy in use.
struct InForce {
    number: u64,
    spec: Vec<ScopeSpec>,
    twins: [Policy; 2],
    oracle: oracle::Policy,
}

/// A call in flight.
struct Held {
    tickets: [Ticket; 2],
    passes: [Pass; 2],
    under: Rc<InForce>,
    seats: Vec<Seat>,
    passed: Passed,
    /// Keys that share a cell have no epoch to be stale by.
    weight: u64,
}

/// What one twin said of a call.
#[expect(clippy::large_enum_variant, reason = "one at a time")]
enum Said {
    Allowed { ticket: Ticket, pass: Pass, shadowed: Option<Denial>, probe: bool },
    Denied(Denial),
}

fn at(nanos: u64) -> Mono {
    Mono::from_nanos(nanos)
}

fn path(path: &str) -> Scope {
    Scope::parse(path).unwrap()
}

fn nanos(wait: Option<Span>) -> u64 {
    wait.map_or(NEVER, Span::as_nanos)
}

impl InForce {
    fn new(
        number: u64,
        twins: &[Breaker; 2],
        house: &mut House,
        spec: &[ScopeSpec],
        now: u64,
    ) -> Option<InForce> {
        let [short, long] = [0, 1].map(|twin| {
            let spec = translated(spec, twin == 1);
            twins[twin].recompile(&spec, at(now))
        });
        match (short, long) {
            (Ok(short), Ok(long)) => Some(InForce {
                number,
                spec: spec.to_vec(),
                twins: [short, long],
                oracle: house.compile(spec, now),
            }),
            (Err(_), Err(_)) => None,
            (short, long) => panic!("compiled by one twin only: {short:?} {long:?}"),
        }
    }

    fn named(&self) -> impl Iterator<Item = &ScopeSpec> {
        self.spec.iter().filter(|scope| scope.parent.is_none())
    }

    /// Where its scopes and dimensions stand.
    fn places<'a>(
        &'a self,
        breaker: &'a Breaker,
    ) -> impl Iterator<Item = ((bool, u32), String)> + 'a {
        self.spec.iter().map(|scope| {
            let name = match scope.parent {
                None => scope.path.clone(),
                Some(_) => format!("{}=0", scope.path),
            };
            let standing = breaker.standing(&self.twins[0], &path(&name), Mono::ZERO).unwrap();
            ((scope.parent.is_some(), standing.place.index), scope.path.clone())
        })
    }

    fn routes(&self) -> Vec<&str> {
        let routes = self.named().map(|scope| scope.path.as_str());
        routes.filter(|path| path.matches('/').count() == 2).collect()
    }

    /// A route's lineage: its named scopes, and its dimensions.
    fn lineage(&self, route: &str) -> (Vec<String>, Vec<String>) {
        let group = route.rsplit_once('/').unwrap().0;
        let named: Vec<String> = ["/", group, route].map(String::from).into();
        let mut dimensions = Vec::new();
        for parent in &named {
            let own = self.spec.iter().filter(|scope| scope.parent.as_ref() == Some(parent));
            dimensions.extend(own.map(|scope| scope.path.clone()));
        }
        (named, dimensions)
    }
}

impl Life {
    pub(crate) fn new(seed: u64, trace: bool) -> Life {
        let mut dice = Dice::new(seed);
        let style = Style::of(&mut dice);
        let twins =
            [(); 2].map(|()| Breaker::new(Capacity { scopes: 12, keys: 16 }, Seed([seed, 7])));
        let start = match dice.pick(0, 4) {
            0 => 0,
            1 => dice.pick(0, 1 << 40),
            // Just before the gate's clock wraps.
            2 => (1 << 50) - dice.pick(0, 2_000_000_000),
            _ => (1 << 52) + dice.pick(0, 1 << 40),
        };
        let mut house = House::default();
        let first = loop {
            let first = any_spec(&mut dice, style);
            // A limit that another makes idle is a mistake in a spec: not what is tried here.
            if let Some(first) = InForce::new(0, &twins, &mut house, &first, start) {
                break Rc::new(first);
            }
        };
        if trace {
            println!("seed {seed}: {style:?}, from {start}");
            println!("{}", listed(&first.spec));
        }
        let places = first.places(&twins[0]).collect();
        Life {
            places,
            dice,
            style,
            trace,
            twins,
            sweepers: Default::default(),
            house,
            first: first.spec.clone(),
            now_in_force: first,
            earlier: Vec::new(),
            held: Vec::new(),
            stamps: Vec::new(),
            killed: BTreeMap::new(),
            told: BTreeMap::new(),
            offered: BTreeMap::new(),
            lost: BTreeMap::new(),
            clock: start,
            late: [0; 3],
            promised: Vec::new(),
            evicted: 0,
            calls: 0,
            events: BTreeMap::new(),
        }
    }

    pub(crate) fn live(&mut self) {
        let acts = self.dice.pick(30, 90);
        for act in 0..acts {
            self.act();
            if act % 8 == 7 {
                self.check_all();
            }
        }
        self.check_all();
    }

    fn note(&mut self, event: &'static str) {
        *self.events.entry(event).or_default() += 1;
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{}", what());
        }
    }

    fn act(&mut self) {
        self.pass_time();
        let thread = self.dice.index(self.late.len());
        let now = self.clock.saturating_sub(self.late[thread]);
        match self.dice.pick(0, 100) {
            0..53 => {
                let calls = match (self.style, self.dice.pick(0, 100)) {
                    (Style::Flood, 0..30) => self.dice.pick(20, 50),
                    (_, 0..20) => self.dice.pick(2, 7),
                    _ => 1,
                };
                (0..calls).for_each(|_| self.call(now));
            }
            53..71 => self.end(now),
            71..76 if self.style == Style::Flood => self.kill(now),
            71..76 => self.look(now),
            76..79 => self.kill(now),
            79..87 => self.lift(now),
            87..89 => self.trip(now),
            89 => self.reset(now),
            90 => self.refill(now),
            91..93 => self.mode(now),
            93..97 => self.sweep(now),
            // A reload is told the newest instant.
            97..100 => self.reload(self.clock),
            _ => {}
        }
        self.follow_evictions(now);
    }

    fn pass_time(&mut self) {
        let dice = &mut self.dice;
        let step = match dice.pick(0, 100) {
            0..30 => 0,
            30..45 => dice.pick(1, 1_000),
            45..65 => dice.pick(1, 60_000_000),
            65..72 => dice.pick(100_000_000, 800_000_000),
            72 => dice.pick(61_000_000_000, 130_000_000_000),
            73..95 => {
                self.promised.retain(|promised| *promised > self.clock);
                let soon = self.promised.iter().copied().min();
                let soon = soon.map_or(0, |soon| soon - self.clock);
                if dice.chance(70) { soon } else { soon.saturating_sub(1) }
            }
            // A late clock asks for a key as of an instant at which its cell was not yet idle: among many keys it may have
            // been given away since.
            _ if self.style == Style::Flood => 0,
            _ => {
                self.late = [0; 3].map(|_: u64| match dice.pick(0, 6) {
                    0 => dice.pick(0, 300_000_000),
                    1..3 => dice.pick(0, 5_000_000),
                    _ => 0,
                });
                0
            }
        };
        self.clock += step;
    }

    /// One of the policies in use: mostly the newest.
    fn any_policy(&mut self) -> Rc<InForce> {
        if !self.earlier.is_empty() && self.dice.chance(25) {
            return Rc::clone(&self.earlier[self.dice.index(self.earlier.len())]);
        }
        Rc::clone(&self.now_in_force)
    }

    /// A path of the policy: a named scope, or a key of a dimension.
    fn any_path(&mut self, policy: &InForce) -> String {
        let mut scope = &policy.spec[self.dice.index(policy.spec.len())];
        if scope.path == "/" || self.style == Style::Flood && scope.parent.is_none() {
            // What blocks all ends most of what may happen: once more.
            scope = &policy.spec[self.dice.index(policy.spec.len())];
        }
        match scope.parent {
            None => scope.path.clone(),
            // Where calls without the key are not judged, no order goes to them.
            Some(_) if !scope.skips && self.dice.chance(10) => format!("{}=!", scope.path),
            Some(_) => format!("{}={}", scope.path, self.dice.pick(0, self.style.keys())),
        }
    }

    /// The rules of a path.
    fn rules<'p>(policy: &'p InForce, path: &str) -> Option<&'p ScopeSpec> {
        let rules = path.split_once('=').map_or(path, |(dimension, _)| dimension);
        policy.spec.iter().find(|scope| scope.path == rules)
    }

    fn call(&mut self, now: u64) {
        let policy = self.any_policy();
        let routes = policy.routes();
        let route = routes[self.dice.index(routes.len())];
        let (named, dimensions) = policy.lineage(route);
        let mut seats: Vec<Seat> = Vec::new();
        let seat = |rules, label| Seat { rules, label, ..Seat::default() };
        seats.extend(named.into_iter().map(|path| seat(path, None)));
        let mut keys = Vec::new();
        for (number, dimension) in (0..).zip(dimensions) {
            if self.dice.chance(80) {
                let label = self.dice.pick(0, self.style.keys()).to_string();
                keys.push((number, label.clone()));
                seats.push(seat(dimension, Some(label)));
            } else if !Life::rules(&policy, &dimension).unwrap().skips {
                seats.push(seat(dimension, Some("!".to_owned())));
                self.note("no key");
            }
        }
        let weight = match self.dice.pick(0, 100) {
            0..40 => self.dice.pick(0, 14),
            40..43 => oracle::UNWEIGHED,
            _ => 1,
        };
        self.calls += 1;
        if self.is_refused_by_a_look(&policy, &seats) {
            return;
        }
        let in_line = self.in_line(&policy, &seats);
        let overflowed = self.twins[0].key_usage().overflowed;
        let detected = self.detected(&policy, &seats);
        let said = [0, 1].map(|twin| {
            let breaker = &self.twins[twin];
            let compiled = &policy.twins[twin];
            let mut call = Call::new(compiled.route(&path(route)).unwrap());
            if weight != oracle::UNWEIGHED {
                call = call.weighing(weight);
            }
            for (number, label) in &keys {
                call = call.with_key(*number, breaker.hash(label.as_bytes()));
            }
            let peeked = breaker.peek(compiled, call, at(now));
            assert_eq!(breaker.blocked(compiled, &call), self.block(&policy, &seats), "blocked");
            let verdict = if (self.calls + twin as u64).is_multiple_of(2) {
                admit_late(breaker, compiled, call, at(now))
            } else {
                breaker.admit(compiled, call, at(now))
            };
            let said = match verdict {
                Verdict::Deny(denial) => Said::Denied(denial),
                Verdict::Allow(permit) => {
                    let (pass, shadowed) = (permit.pass(), permit.shadowed());
                    let probe = permit.is_probe();
                    Said::Allowed { ticket: permit.detach(), pass, shadowed, probe }
                }
            };
            compare_peek(peeked, &said);
            said
        });
        self.compare_twins(&said);
        if self.twins[0].key_usage().overflowed > overflowed {
            assert_eq!(self.style, Style::Flood, "a key shares a cell though there is room");
            seats[3].shares = true;
            self.note("shared cell");
        }
        if self.evicted > 0 || self.twins[0].key_usage().overflowed > 0 {
            seats.iter_mut().skip(3).for_each(|seat| seat.pressed = true);
        }
        let mut hints = self.newly_detected(&policy, &seats, &detected);
        match &said[0] {
            Said::Denied(denial) => hints.extend(Life::hint(&policy, &seats, denial)),
            // Of a scope that counts nothing, the first refusal that was hidden is known.
            Said::Allowed { shadowed, .. } => {
                let hidden =
                    shadowed.as_ref().and_then(|denial| Life::hint(&policy, &seats, denial));
                hints.extend(hidden.filter(|_| self.style == Style::Reloading));
            }
        }
        if Life::rules(&policy, route).unwrap().counts {
            *self.offered.entry(route.to_owned()).or_default() += 1;
        }
        let answer = self.house.decide(&policy.oracle, &seats, weight, now, &hints);
        self.tell(|| {
            let keys: Vec<String> = seats.iter().skip(3).map(Seat::gate).collect();
            let said = match &said[0] {
                Said::Allowed { .. } => "passes".to_owned(),
                Said::Denied(denial) => format!("{denial:?}"),
            };
            format!(
                "{now}: call {route} {keys:?} of {weight} under {}: {said}; the oracle: {}",
                policy.number,
                brief(&answer)
            )
        });
        if let Some(in_line) = in_line.filter(|_| matches!(answer, Answer::Pass(_))) {
            self.note(in_line);
        }
        self.compare(&policy, seats, weight, said, answer, now);
    }

    /// The block of a call's named scopes that no time ends.
    fn block(&self, policy: &InForce, seats: &[Seat]) -> Option<Cause> {
        let seat = self.house.blocked(&policy.oracle, seats)?;
        cause(&self.house.gate(&seats[seat].gate()))
    }

    /// Now and then a sender looks at the gates alone; false if it must ask.
    fn is_refused_by_a_look(&mut self, policy: &InForce, seats: &[Seat]) -> bool {
        let block = self.block(policy, seats);
        let route = &policy.oracle.scope(&seats[2]).spec;
        for (twin, compiled) in policy.twins.iter().enumerate() {
            let id = compiled.route(&path(&route.path)).unwrap();
            let gates = compiled.gates(id).unwrap();
            assert_eq!(gates.blocked(), block, "the gates alone");
            if !self.calls.is_multiple_of(4) {
                continue;
            }
            let refused = match twin {
                0 => gates.refuse(),
                _ => self.twins[twin].refuse_blocked(compiled, &Call::new(id)),
            };
            assert_eq!(refused, block, "the gates alone");
        }
        let refused = block.is_some() && self.calls.is_multiple_of(4);
        if refused {
            if route.counts {
                *self.offered.entry(route.path.clone()).or_default() += 1;
                self.house.counts.entry(route.path.clone()).or_default().blocked += 1;
            }
            self.note("refused by a look");
        }
        refused
    }

    /// Which of the ways in line a call can take, if it passes: where nothing but one limit has anything to say.
    fn in_line(&self, policy: &InForce, seats: &[Seat]) -> Option<&'static str> {
        let (named, dimensions) = policy.lineage(&seats[2].rules);
        let rules: Vec<&oracle::Scope> =
            named.iter().chain(&dimensions).map(|path| &policy.oracle.scopes[path]).collect();
        let is_plain = |scope: &&oracle::Scope| {
            let spec = &scope.spec;
            !spec.shadow && !spec.reducing && spec.overrides.is_empty()
        };
        let is_armed = |gate: &Gate| gate.state == gate::State::Armed && gate.mode.is_none();
        if !rules.iter().all(is_plain) || !named.iter().all(|path| is_armed(&self.house.gate(path)))
        {
            return None;
        }
        let dimension = match &*dimensions {
            [] => None,
            [only] => Some(&policy.oracle.scopes[only]),
            _ => return None,
        };
        // The key's limit first, if it has one.
        let mut limits = rules.iter().rev().flat_map(|scope| &scope.limits);
        let kind = |limit: &oracle::limit::Limit| {
            let rule = &limit.rule;
            let plain = !rule.weighs && !rule.offered && !rule.candidate && !limit.is_changed();
            plain.then_some((rule.kind, rule.trips))
        };
        let limits = [limits.next().map(kind), limits.next().map(kind), limits.next().map(kind)];
        if let Some(dimension) = dimension {
            let key = seats.get(3).filter(|key| key.label.as_deref() != Some("!"))?;
            // A bucket where a gate was ever moved is left to the short way.
            let moved = self.house.has_moved_keys(&dimension.spec.path);
            if dimension.limits.len() != 1 || key.shares || moved {
                return None;
            }
        }
        match (limits, dimension) {
            ([Some(Some((Kind::Rate { .. }, _))), None, _], None) => Some("rate in line"),
            ([Some(Some((Kind::Window { .. }, false))), None, _], None) => Some("window in line"),
            ([Some(Some((Kind::Rate { .. }, _))), None, _], Some(_)) => Some("key in line"),
            (
                [Some(Some((Kind::Rate { .. }, _))), Some(Some((Kind::Window { .. }, _))), None],
                Some(_),
            ) => Some("key and window in line"),
            _ => None,
        }
    }

    fn compare_twins(&self, said: &[Said; 2]) {
        match said {
            [Said::Denied(short), Said::Denied(long)] => assert_eq!(short, long, "the two ways"),
            [
                Said::Allowed { shadowed: short, probe, .. },
                Said::Allowed { shadowed: long, probe: other, .. },
            ] => assert_eq!((short, probe), (long, other), "the two ways"),
            [Said::Denied(denial), _] => panic!("only the short way denies: {denial:?}"),
            [_, Said::Denied(denial)] => panic!("only the long way denies: {denial:?}"),
        }
    }

    /// Which seat denied.
    fn seat_of(policy: &InForce, seats: &[Seat], denial: &Denial) -> usize {
        let (parent, dimension) = policy.twins[0].scope_of(denial.place).unwrap();
        let rules = match dimension {
            None => parent.to_string(),
            Some(name) => format!("{}/{name}", parent.as_str().trim_end_matches('/')),
        };
        seats.iter().position(|seat| seat.rules == rules).unwrap()
    }

    /// How often the limits of a call's scopes and keys would have refused, where shadow may hide that they do.
    fn detected(&self, policy: &InForce, seats: &[Seat]) -> Vec<[u64; 8]> {
        if self.style != Style::Reloading {
            return Vec::new();
        }
        let counts = seats.iter().map(|seat| {
            let counts = self.counts(0, policy, &policy.oracle.scope(seat).spec);
            counts.map_or([0; 8], |counts| counts.detected)
        });
        counts.collect()
    }

    /// By which limits of a call's scopes and keys it would have been refused since.
    fn newly_detected(
        &self,
        policy: &InForce,
        seats: &[Seat],
        before: &[[u64; 8]],
    ) -> Vec<(usize, usize, bool)> {
        let mut new = Vec::new();
        for (seat, (now, before)) in self.detected(policy, seats).iter().zip(before).enumerate() {
            let limits = now.iter().zip(before).enumerate();
            let more = limits.filter(|(_, (now, before))| now > before);
            let gate = seats.get(seat).map(Seat::gate).unwrap_or_default();
            new.extend(
                more.map(|(limit, _)| (seat, limit, self.has_tripped(policy, &gate, limit))),
            );
        }
        new
    }

    /// Whether a key stands tripped by one of its limits. What starts spent refuses and does not trip, and what was refused in shadow
    /// says nothing of that.
    fn has_tripped(&self, policy: &InForce, gate: &str, limit: usize) -> bool {
        // The cause of a trip stays when its hold has elapsed, so that any instant will do.
        let stands = self.twins[0].standing(&policy.twins[0], &path(gate), Mono::ZERO).unwrap();
        let by = u8::try_from(limit).map(|limit| Cause::Tripped(By::Limit(limit)));
        stands.cause == by.ok()
    }

    /// What a twin counts at a scope, or at a dimension's keys; none if it does not.
    fn counts(&self, twin: usize, policy: &InForce, scope: &ScopeSpec) -> Option<ScopeCounts> {
        let (breaker, compiled) = (&self.twins[twin], &policy.twins[twin]);
        match &scope.parent {
            None => breaker.counts(compiled, &path(&scope.path)),
            Some(parent) => {
                let name = scope.path.rsplit_once('/').unwrap().1;
                breaker.key_counts(compiled, &path(parent), name)
            }
        }
    }

    fn hint(policy: &InForce, seats: &[Seat], denial: &Denial) -> Option<(usize, usize, bool)> {
        let limit = match denial.cause {
            Cause::Limit(limit) => limit,
            Cause::Tripped(By::Limit(limit)) if denial.moved => limit,
            _ => return None,
        };
        Some((Life::seat_of(policy, seats, denial), limit.into(), denial.moved))
    }

    fn compare(
        &mut self,
        policy: &Rc<InForce>,
        seats: Vec<Seat>,
        weight: u64,
        said: [Said; 2],
        answer: Answer,
        now: u64,
    ) {
        let [first, second] = said;
        match (first, second) {
            (Said::Denied(denial), _) => self.compare_denial(policy, &seats, denial, answer, now),
            (
                Said::Allowed { ticket, pass, shadowed, probe },
                Said::Allowed { ticket: other, pass: long, .. },
            ) => {
                let Answer::Pass(passed) = answer else {
                    panic!("allowed, and the oracle says {answer:?}");
                };
                assert_eq!(shadowed.is_some(), passed.shadowed, "{shadowed:?}");
                assert_eq!(probe, !passed.probes.is_empty());
                let reducing = policy.oracle.scope(&seats[2]).spec.reducing;
                for seat in &seats {
                    let level = self.killed.get(&seat.gate());
                    let stands = level.is_some_and(|&level| !reducing || level == KillLevel::Cut);
                    assert!(!stands, "admitted under the kill of {}", seat.gate());
                }
                self.note("passed");
                if passed.shadowed {
                    self.note("passed in shadow");
                }
                if probe {
                    self.note("probe");
                }
                let held = Held {
                    tickets: [ticket, other],
                    passes: [pass, long],
                    under: Rc::clone(policy),
                    seats,
                    passed,
                    weight,
                };
                if self.dice.chance(15) {
                    self.held.push(held);
                    let last = self.held.len() - 1;
                    self.end_one(last, now);
                } else {
                    self.held.push(held);
                }
            }
            _ => unreachable!("the twins agree"),
        }
    }

    fn compare_denial(
        &mut self,
        policy: &InForce,
        seats: &[Seat],
        denial: Denial,
        answer: Answer,
        now: u64,
    ) {
        let seat = Life::seat_of(policy, seats, &denial);
        let wait = nanos(denial.wait);
        let within = |bound: Wait| wait >= bound.least && wait <= bound.most;
        let (event, told) = match (denial.cause, &answer) {
            (Cause::Limit(limit), Answer::Limit { seat, limits, wait: bound }) => {
                assert!(limits.contains(&usize::from(limit)), "{denial:?}, not {answer:?}");
                assert!(within(*bound) && !denial.moved, "{denial:?}, not {answer:?}");
                (if bound.least == bound.most { "limit" } else { "choice" }, *seat)
            }
            (Cause::Tripped(By::Limit(limit)), Answer::Breach { seat, limits, wait: bound }) => {
                assert!(limits.contains(&usize::from(limit)), "{denial:?}, not {answer:?}");
                assert!(within(*bound) && denial.moved, "{denial:?}, not {answer:?}");
                ("breach", *seat)
            }
            (Cause::Tripped(_) | Cause::ProbeFailed, Answer::Tripped { seat, wait: exact }) => {
                assert_eq!((wait, denial.moved), (*exact, false), "{answer:?}");
                let gate = self.house.gate(&seats[*seat].gate());
                assert_eq!(Some(denial.cause), cause(&gate));
                ("tripped", *seat)
            }
            (Cause::Probing, Answer::Probing { seat }) => ("probing", *seat),
            (Cause::Killed(level), Answer::Killed { seat, cut }) => {
                assert_eq!(level == KillLevel::Cut, *cut);
                assert_eq!(denial.wait, None);
                ("killed", *seat)
            }
            _ => panic!("{denial:?}, and the oracle says {answer:?}"),
        };
        assert_eq!(seat, told, "{denial:?}, and the oracle says {answer:?}");
        let gate = self.house.gate(&seats[seat].gate());
        if seat < 3 {
            assert_eq!(u64::from(denial.epoch), gate.moves % 4_096, "{denial:?}");
        }
        let shadow = gate.mode.unwrap_or(policy.oracle.scope(&seats[seat]).spec.shadow);
        assert!(!shadow || event == "killed", "shadow denies: {denial:?}");
        if wait != NEVER && wait < 1 << 40 {
            self.promised.push(now + wait);
        }
        self.note(event);
    }

    fn end(&mut self, now: u64) {
        if !self.held.is_empty() {
            let which = self.dice.index(self.held.len());
            self.end_one(which, now);
        }
    }

    fn end_one(&mut self, which: usize, now: u64) {
        let held = self.held.swap_remove(which);
        let route = held.seats[2].rules.clone();
        if self.dice.chance(8) {
            // Attached to another policy, a ticket is lost.
            let other = {
                let mut others = self.earlier.iter().chain([&self.now_in_force]);
                others.rfind(|other| other.number != held.under.number).cloned()
            };
            if let Some(other) = other {
                for (twin, ticket) in held.tickets.into_iter().enumerate() {
                    assert!(ticket.attach(&self.twins[twin], &other.twins[twin]).is_err());
                }
                if held.under.oracle.scope(&held.seats[2]).spec.counts {
                    *self.lost.entry(route).or_default() += 1;
                }
                self.note("lost");
                return;
            }
        }
        let how = match self.dice.pick(0, 10) {
            0..6 => Some(Outcome::Good),
            6 => Some(Outcome::Slow),
            7 => Some(Outcome::Fault),
            _ => None,
        };
        let truth = self.dice.chance(30).then(|| self.dice.pick(0, 2 * held.weight.min(20) + 3));
        let how = how.map(|outcome| (outcome, truth));
        let moved = {
            let mut tickets = held.tickets.into_iter();
            [0, 1].map(|twin| {
                let ticket = tickets.next().unwrap();
                let policy = &held.under.twins[twin];
                let permit = ticket.attach(&self.twins[twin], policy).unwrap();
                let Some((outcome, weight)) = how else {
                    drop(permit);
                    return false;
                };
                let outcome = match outcome {
                    Outcome::Good => breaker_core::Outcome::Good,
                    Outcome::Slow => breaker_core::Outcome::Slow,
                    Outcome::Fault => breaker_core::Outcome::Fault,
                };
                permit.settle_as(Settlement { weight, ..Settlement::of(outcome) }, at(now))
            })
        };
        let expected = self.house.end(&held.under.oracle, &held.seats, &held.passed, how, now);
        self.tell(|| format!("{now}: ends {route} of {}: {how:?}, {}", held.weight, expected));
        assert_eq!(moved, [expected; 2], "moved");
        self.note(if how.is_some() { "settled" } else { "dropped" });
        if truth.is_some() {
            self.note("true weight");
        }
    }

    /// The last look at a call in flight.
    fn look(&mut self, now: u64) {
        if self.held.is_empty() {
            return;
        }
        let held = &self.held[self.dice.index(self.held.len())];
        let said = [0, 1].map(|twin| self.twins[twin].look(&held.passes[twin], at(now)).err());
        assert_eq!(said[0], said[1], "the two ways");
        let reducing = held.under.oracle.scope(&held.seats[2]).spec.reducing;
        let (mut expected, mut may_be_stale) = (None, false);
        let mut cut = false;
        for (index, seat) in held.seats.iter().enumerate() {
            let gate = self.house.gate(&seat.gate());
            let moved = gate.moves != held.passed.moves[index];
            cut |= gate.state == gate::State::Cut;
            let cause = match gate.state {
                gate::State::Cut => Some(Cause::Killed(KillLevel::Cut)),
                _ if reducing => None,
                gate::State::Halted => Some(Cause::Killed(KillLevel::Halt)),
                _ if held.passed.shadows[index] => None,
                gate::State::Tripped => cause(&gate),
                gate::State::Armed | gate::State::HalfOpen => moved.then_some(Cause::Stale),
            };
            // A key that had no cell of its own then is judged by where it stands now.
            let has_epoch = index < 3
                || !held.under.oracle.scope(seat).limits_of(seat).is_empty()
                || held.passed.moves[index] > 0;
            if cause == Some(Cause::Stale) && !has_epoch {
                may_be_stale = true;
            } else if expected.is_none() {
                expected = cause;
            }
        }
        let cause = said[0].map(|denial| denial.cause);
        let stale = said[0].is_some_and(|denial| denial.cause == Cause::Stale);
        if self.style != Style::Flood {
            let fits = cause == expected || may_be_stale && stale;
            assert!(fits, "the last look: {cause:?}, not {expected:?}");
        } else if let Some(Cause::Killed(_)) = expected {
            assert!(said[0].is_some(), "the last look passes a kill");
        }
        for twin in [0, 1] {
            assert_eq!(self.twins[twin].is_cut(&held.passes[twin]), cut);
        }
        if stale {
            self.note("stale look");
        }
    }

    fn kill(&mut self, now: u64) {
        let policy = self.any_policy();
        let times = if self.style == Style::Flood { self.dice.pick(1, 12) } else { 1 };
        for _ in 0..times {
            let tripped = self.house.gates().filter(|(path, gate)| {
                gate.state == gate::State::Tripped && Life::rules(&policy, path).is_some()
            });
            let tripped: Vec<String> = tripped.map(|(path, _)| path.clone()).collect();
            let scope = if !tripped.is_empty() && self.dice.chance(40) {
                tripped[self.dice.index(tripped.len())].clone()
            } else {
                self.any_path(&policy)
            };
            let level = if self.dice.chance(30) { KillLevel::Cut } else { KillLevel::Halt };
            let [short, long] = [0, 1].map(|twin| {
                self.twins[twin].kill(&policy.twins[twin], &path(&scope), level, at(now))
            });
            assert_eq!(short, long, "the two ways");
            let Some(stamp) = self.unless_full(short, &scope) else { continue };
            let gate = self.house.gate_mut(&scope);
            gate.kill(level == KillLevel::Cut);
            self.stamps.push((stamp, scope.clone(), gate.moves));
            self.tell(|| format!("{now}: kill {scope} {level:?}"));
            let stands = self.killed.entry(scope).or_insert(level);
            *stands = level.max(*stands);
        }
        self.follow_evictions(now);
    }

    /// The answer to an order; none if there was no room for the key, which takes a bucket of blocked ones.
    fn unless_full<T>(&mut self, answer: Result<T, OrderError>, scope: &str) -> Option<T> {
        match answer {
            Ok(done) => Some(done),
            Err(OrderError::NoRoom) => {
                let (dimension, _) = scope.split_once('=').unwrap();
                let prefix = format!("{dimension}=");
                let blocked = self.house.gates().filter(|(path, gate)| {
                    path.starts_with(&prefix) && gate.state != gate::State::Armed
                });
                assert!(blocked.count() >= 32, "no room, and not all are blocked");
                self.note("no room");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn lift(&mut self, now: u64) {
        if self.stamps.is_empty() {
            return;
        }
        let which = self.dice.index(self.stamps.len());
        // Mostly a recent one.
        let which = if self.dice.chance(60) { self.stamps.len() - 1 } else { which };
        let (stamp, scope, saw) = self.stamps[which].clone();
        let stale = self.house.gate(&scope).moves != saw;
        if self.style == Style::Flood && scope.contains('=') && stale && !spec::STALE_LIFTS_MISS {
            return;
        }
        let policy = self.any_policy();
        let (to, state) = match self.dice.pick(0, 5) {
            0 => (LiftTo::Halt, gate::State::Halted),
            1..3 => (LiftTo::HalfOpen, gate::State::HalfOpen),
            _ => (LiftTo::Armed, gate::State::Armed),
        };
        let [short, long] =
            [0, 1].map(|twin| self.twins[twin].lift(&policy.twins[twin], stamp, to, at(now)));
        assert_eq!(short, long, "the two ways");
        let Some(rules) = Life::rules(&policy, &scope) else {
            assert_eq!(short, Err(OrderError::UnknownScope(Vec::new())));
            return;
        };
        let recovery = rules.recovery;
        let gate = self.house.gate_mut(&scope);
        let was = gate.clone();
        let expected = gate.lift(saw, state, &recovery, now);
        let gate = gate.clone();
        self.tell(|| format!("{now}: lift {scope} (seen after {saw}) to {to:?}: {short:?}"));
        if was.state == gate::State::Armed && self.style == Style::Flood {
            // It may have lost its cell; nothing is lifted either way.
            return;
        }
        assert_eq!(short.is_ok(), expected, "a lift of {scope} to {to:?}");
        let Ok(stamp) = short else {
            assert_eq!(short, Err(OrderError::Stale));
            self.note("stale lift");
            return;
        };
        match (gate.state, to) {
            (gate::State::Cut, _) | (gate::State::Halted, LiftTo::Armed | LiftTo::HalfOpen) => {
                panic!("lifted, and killed")
            }
            (gate::State::Halted, _) => {
                self.killed.insert(scope.clone(), KillLevel::Halt);
            }
            _ => {
                self.killed.remove(&scope);
            }
        }
        self.stamps.push((stamp, scope, gate.moves));
        if (gate.state, to) == (gate::State::Tripped, LiftTo::Armed) {
            self.promised.extend(gate.hold_ends(&recovery).filter(|end| *end > self.clock));
            self.note("trip below");
        }
        self.note("lift");
    }

    fn trip(&mut self, now: u64) {
        let policy = self.any_policy();
        let scope = self.any_path(&policy);
        let [short, long] =
            [0, 1].map(|twin| self.twins[twin].trip(&policy.twins[twin], &path(&scope), at(now)));
        assert_eq!(short, long, "the two ways");
        self.tell(|| format!("{now}: trip {scope}: {short:?}"));
        let recovery = Life::rules(&policy, &scope).unwrap().recovery;
        if self.house.gate(&scope).is_killed() {
            assert_eq!(short, Err(OrderError::Killed));
            return;
        }
        let Some(stamp) = self.unless_full(short, &scope) else { return };
        let gate = self.house.gate_mut(&scope);
        gate.trip(Why::Hand, &recovery, now);
        let ends = gate.hold_ends(&recovery);
        self.promised.extend(ends);
        let moves = self.house.gate(&scope).moves;
        self.stamps.push((stamp, scope, moves));
    }

    fn reset(&mut self, now: u64) {
        let policy = self.any_policy();
        let scope = self.any_path(&policy);
        let [short, long] =
            [0, 1].map(|twin| self.twins[twin].reset(&policy.twins[twin], &path(&scope), at(now)));
        assert_eq!(short, long, "the two ways");
        self.tell(|| format!("{now}: reset {scope}: {short:?}"));
        let killed = self.house.gate(&scope).is_killed();
        let expected = self.house.reset(&policy.oracle, &scope, now);
        if !self.is_uncertain(&policy, &scope) {
            assert_eq!(short, if killed { Err(OrderError::Killed) } else { Ok(expected) });
        }
    }

    /// Whether it is not known what is used of the limits of a scope or key: among many keys one may answer for others.
    fn is_uncertain(&self, policy: &InForce, scope: &str) -> bool {
        let usage = self.twins[0].key_usage();
        scope.contains('=') && usage.evicted + usage.overflowed > 0
            || self.house.is_uncertain(&policy.oracle, scope)
    }

    fn refill(&mut self, now: u64) {
        let policy = self.any_policy();
        let scope = self.any_path(&policy);
        let [short, long] =
            [0, 1].map(|twin| self.twins[twin].refill(&policy.twins[twin], &path(&scope), at(now)));
        assert_eq!(short, long, "the two ways");
        let expected = self.house.refill(&policy.oracle, &scope, now);
        self.tell(|| format!("{now}: refill {scope}: {short:?}"));
        if !self.is_uncertain(&policy, &scope) {
            assert_eq!(short, Ok(expected), "refill");
        }
    }

    fn mode(&mut self, now: u64) {
        if !self.style.has_modes() {
            return;
        }
        let policy = self.any_policy();
        let scope = self.any_path(&policy);
        let mode = match self.dice.pick(0, 3) {
            0 => None,
            1 => Some(Mode::Enforce),
            _ => Some(Mode::Shadow),
        };
        for twin in [0, 1] {
            let policy = &policy.twins[twin];
            self.twins[twin].set_mode(policy, &path(&scope), mode, at(now)).unwrap();
        }
        self.tell(|| format!("{now}: mode of {scope}: {mode:?}"));
        self.house.gate_mut(&scope).mode = mode.map(|mode| mode == Mode::Shadow);
    }

    fn sweep(&mut self, now: u64) {
        let policy = self.any_policy();
        let [short, long] = [0, 1].map(|twin| {
            let mut out = Vec::new();
            let breaker = &self.twins[twin];
            self.sweepers[twin].sweep(breaker, &policy.twins[twin], at(now), &mut out);
            out
        });
        assert_eq!(short, long, "the two ways");
        for (path, gate) in self.house.gates() {
            if let Some(rules) = Life::rules(&policy, path) {
                gate.elapse(&rules.recovery, now);
            }
        }
        self.tell(|| format!("{now}: sweep under {}: {} moved", policy.number, short.len()));
        self.hear(&policy, &short);
    }

    /// Whatever moved was told, and nothing else.
    fn hear(&mut self, policy: &InForce, moved: &[Transition]) {
        for fact in moved {
            // Scopes that the policy at hand has no more are told of too.
            let place = &self.places[&(fact.place.key.is_some(), fact.place.index)];
            let path = match fact.place.key {
                Some((_, hash)) => {
                    let label = (0..self.style.keys()).map(|label| label.to_string());
                    let is = |label: &String| self.twins[0].hash(label.as_bytes()) == hash;
                    let label = label.filter(is).last();
                    let missing = (hash == KeyHash::MISSING).then(|| "!".to_owned());
                    format!("{place}={}", label.or(missing).unwrap())
                }
                None => place.clone(),
            };
            let was = self.told.insert(path, fact.to).unwrap_or(State::Armed);
            assert_eq!(was, fact.from, "{fact:?}");
            self.note("transition");
        }
        let told = self.told.clone();
        for (path, gate) in self.house.gates() {
            if Life::rules(policy, path).is_none() {
                continue;
            }
            let told = told.get(path).copied().unwrap_or(State::Armed);
            assert_eq!(told, state(gate), "{path}: what the sweeper told");
        }
    }

    fn reload(&mut self, now: u64) {
        if !self.style.reloads() {
            return;
        }
        let mut spec = self.now_in_force.spec.clone();
        for _ in 0..self.dice.pick(1, 4) {
            mutate(&mut self.dice, self.style, &self.first, &mut spec);
        }
        if self.dice.chance(10) {
            // A mistake: nothing changes.
            spec[0].limits.push(spec::impossible());
        }
        let number = self.now_in_force.number + 1;
        let new = InForce::new(number, &self.twins, &mut self.house, &spec, now);
        self.tell(|| {
            let now = if new.is_some() { "in force" } else { "refused" };
            format!("reload {number}: {now}\n{}", listed(&spec))
        });
        let Some(new) = new else {
            self.note("failed reload");
            return;
        };
        self.note("reload");
        self.places.extend(new.places(&self.twins[0]));
        let old = std::mem::replace(&mut self.now_in_force, Rc::new(new));
        self.earlier.push(old);
        if self.dice.chance(50) {
            // Whoever still decided under an older policy does so no more.
            self.earlier.remove(self.dice.index(self.earlier.len()));
        }
    }

    /// A key that an order evicted forgets its strikes.
    fn follow_evictions(&mut self, now: u64) {
        let evicted = self.twins.each_ref().map(|twin| twin.key_usage().evicted);
        assert_eq!(evicted[0], evicted[1], "the two ways");
        if evicted[0] == self.evicted {
            return;
        }
        assert_eq!(self.style, Style::Flood, "evicted though there is room");
        self.evicted = evicted[0];
        self.note("eviction");
        let policy = Rc::clone(&self.now_in_force);
        for (name, gate) in self.house.gates() {
            if gate.state == gate::State::Armed && name.contains('=') && gate.strikes > 0 {
                let standing = self.twins[0].standing(&policy.twins[0], &path(name), at(now));
                gate.strikes = standing.unwrap().strikes.into();
            }
        }
    }

    /// Every scope stands where the oracle says, every count is its, and nothing is lost.
    fn check_all(&mut self) {
        let policy = Rc::clone(&self.now_in_force);
        let now = self.clock;
        for scope in &policy.spec {
            if scope.parent.is_none() {
                self.check_scope(&policy, scope, &scope.path, now);
                self.check_counts(&policy, scope);
                continue;
            }
            let labels = if self.style == Style::Flood { 12 } else { self.style.keys() };
            for label in 0..labels {
                self.check_scope(&policy, scope, &format!("{}={label}", scope.path), now);
            }
            if !scope.skips {
                self.check_scope(&policy, scope, &format!("{}=!", scope.path), now);
            }
            self.check_counts(&policy, scope);
        }
        for twin in &self.twins {
            let usage = twin.key_usage();
            assert!(usage.held <= usage.cells && usage.cells <= 16 * 32);
        }
    }

    fn check_scope(&self, policy: &InForce, rules: &ScopeSpec, name: &str, now: u64) {
        let [short, long]: [Standing; 2] = [0, 1].map(|twin| {
            self.twins[twin].standing(&policy.twins[twin], &path(name), at(now)).unwrap()
        });
        assert_eq!(short, long, "the two ways");
        let gate = self.house.gate(name).shown(&rules.recovery, now);
        let mode = if gate.mode.unwrap_or(rules.shadow) { Mode::Shadow } else { Mode::Enforce };
        assert_eq!((short.state, short.mode), (state(&gate), mode), "{name}: {gate:?}");
        assert_eq!(short.cause, cause(&gate), "{name}");
        assert_eq!(u32::from(short.strikes), gate.strikes, "{name}");
        let until = gate.hold_ends(&rules.recovery);
        assert_eq!(short.until.map(Mono::as_nanos), until, "{name}");
        if rules.parent.is_none() {
            assert_eq!(u64::from(short.epoch), gate.moves % 4_096, "{name}: {gate:?}");
        }
    }

    fn check_counts(&self, policy: &InForce, scope: &ScopeSpec) {
        let [short, long] = [0, 1].map(|twin| self.counts(twin, policy, scope));
        assert_eq!(short, long, "{}: counts of the two ways", scope.path);
        assert_eq!(short.is_some(), scope.counts || scope.parent.is_some());
        let Some(read) = short else { return };
        let counted = self.house.counts.get(&scope.path).cloned().unwrap_or_default();
        let said = oracle::Counts {
            good: read.good,
            slow: read.slow,
            fault: read.fault,
            dropped: read.dropped,
            blocked: read.blocked,
            throttled: read.throttled,
            shadowed: read.shadowed,
            enforced: read.enforced,
            detected: read.detected,
        };
        assert_eq!(said, counted, "{}: counts", scope.path);
        if scope.path.matches('/').count() < 2 || scope.parent.is_some() {
            return;
        }
        let counts = |held: &&Held| {
            let route = &held.under.oracle.scope(&held.seats[2]).spec;
            route.path == scope.path && route.counts
        };
        let flying = self.held.iter().filter(counts).count() as u64;
        let ended = read.good + read.slow + read.fault + read.dropped;
        let lost = self.lost.get(&scope.path).copied().unwrap_or(0);
        let offered = self.offered.get(&scope.path).copied().unwrap_or(0);
        let told = read.blocked + read.throttled + ended + flying + lost;
        assert_eq!(told, offered, "{}: calls are lost", scope.path);
    }
}

/// As [`Breaker::admit`], by a clock that is asked once, and not at all if `/` is killed.
fn admit_late<'a>(breaker: &'a Breaker, policy: &'a Policy, call: Call, now: Mono) -> Verdict<'a> {
    let asked = Cell::new(0);
    let verdict = breaker.admit_at(policy, call, || {
        asked.set(asked.get() + 1);
        now
    });
    let at_once = matches!(&verdict, Verdict::Deny(denial)
        if denial.place.level == Level::Global && matches!(denial.cause, Cause::Killed(_)));
    let killed =
        matches!(&verdict, Verdict::Deny(denial) if matches!(denial.cause, Cause::Killed(_)));
    let most = if at_once { 0 } else { 1 };
    let least = if killed { 0 } else { 1 };
    assert!((least..=most).contains(&asked.get()), "the clock was asked {} times", asked.get());
    verdict
}

/// A peek says what the call was told, but trips nothing.
fn compare_peek(peeked: Result<(), Denial>, said: &Said) {
    match (peeked, said) {
        (Ok(()), Said::Allowed { .. }) => {}
        // Of several limits that refuse, which one leads may depend on their earlier selves.
        (Err(peeked), Said::Denied(denial)) if denial.moved => {
            assert_eq!(peeked.place, denial.place, "peek");
            assert!(matches!(peeked.cause, Cause::Limit(_)), "peek: {peeked:?}");
        }
        (Err(peeked), Said::Denied(denial)) => assert_eq!(peeked, *denial, "peek"),
        (peeked, Said::Denied(denial)) => panic!("peek said {peeked:?}, admit {denial:?}"),
        (peeked, Said::Allowed { .. }) => panic!("peek said {peeked:?}, admit let it pass"),
    }
}

fn state(gate: &Gate) -> State {
    match gate.state {
        gate::State::Armed => State::Armed,
        gate::State::Tripped => State::Tripped,
        gate::State::HalfOpen => State::HalfOpen,
        gate::State::Halted => State::Killed(KillLevel::Halt),
        gate::State::Cut => State::Killed(KillLevel::Cut),
    }
}

fn cause(gate: &Gate) -> Option<Cause> {
    match (gate.state, gate.why) {
        (gate::State::Armed, _) => None,
        (gate::State::Halted, _) => Some(Cause::Killed(KillLevel::Halt)),
        (gate::State::Cut, _) => Some(Cause::Killed(KillLevel::Cut)),
        (_, Some(Why::Hand)) => Some(Cause::Tripped(By::Hand)),
        (_, Some(Why::Limit(limit))) => {
            Some(Cause::Tripped(By::Limit(u8::try_from(limit).unwrap())))
        }
        (gate::State::Tripped, None) => Some(Cause::ProbeFailed),
        (gate::State::HalfOpen, None) => None,
    }
}

/// A policy, a line for each scope.
fn listed(spec: &[ScopeSpec]) -> String {
    let limits = |rules: &[oracle::limit::Rule]| -> String {
        rules.iter().map(|rule| format!("\n      {rule:?}")).collect()
    };
    let line = |scope: &ScopeSpec| {
        let ScopeSpec { path, recovery, shadow, counts, reducing, .. } = scope;
        let own: String = (scope.overrides.iter())
            .map(|(label, rules)| format!("\n    for {label}:{}", limits(rules)))
            .collect();
        format!(
            "  {path}: {recovery:?}, shadow {shadow}, counts {counts}, reducing {reducing}{}{own}\n",
            limits(&scope.limits)
        )
    };
    spec.iter().map(line).collect()
}

/// An answer without its charges.
fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Pass(passed) => format!("pass, probes {:?}", passed.probes),
        other => format!("{other:?}"),
    }
}
