//! What a seed makes of itself: random policies, in the oracle's words, and their translation into the crate's.

use breaker_core::{
    Class, GroupSpec, KeyOverride, KeySpec, LimitSpec, Missing, Mode, PolicySpec, Recover,
    RouteSpec, Span,
};

use crate::oracle::ScopeSpec;
use crate::oracle::gate::Recovery;
use crate::oracle::limit::{Kind, Rule};

/// Randomness of a seed: SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Dice(u64);

/// What kind of life it is: where the crate promises only bounds, nothing hides in shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// What the short way takes.
    Plain,
    /// Shadow, candidates, offers, trips, operators' modes, keys with limits of their own.
    Shadowed,
    /// Weights of all kinds, windows by sub-buckets too.
    Weighty,
    /// Many keys in a small table.
    Flood,
    /// Reloads that change limits.
    Changing,
    /// Reloads that keep what a limit counts, and all of `Shadowed`.
    Reloading,
}

// What lives leave out until it is mended; each has its test beside the lives.

/// `a_wider_scope_counts_its_refusals_though_the_route_counts_nothing`
const ROUTES_MAY_NOT_COUNT: bool = true;
/// `a_refused_call_does_not_prolong_a_budget`
const BUDGETS_MAY_FORGET: bool = true;
/// `a_stale_lift_misses_a_key_that_moved_to_another_cell`
pub(crate) const STALE_LIFTS_MISS: bool = true;

/// A millisecond, and a little that is no round number.
const STEP: u64 = 1_000_003;

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From `low` up to but without `high`.
    pub(crate) fn pick(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low)
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.pick(0, length as u64)).unwrap()
    }

    /// True in so many of a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.pick(0, 100) < percent
    }
}

impl Style {
    pub(crate) fn of(dice: &mut Dice) -> Style {
        match dice.pick(0, 10) {
            0..3 => Style::Plain,
            3..5 => Style::Shadowed,
            5 => Style::Weighty,
            6 => Style::Flood,
            7..9 => Style::Changing,
            _ => Style::Reloading,
        }
    }

    fn hides(self) -> bool {
        matches!(self, Style::Shadowed | Style::Reloading)
    }

    pub(crate) fn reloads(self) -> bool {
        matches!(self, Style::Changing | Style::Reloading)
    }

    /// Operators' modes, and shadow.
    pub(crate) fn has_modes(self) -> bool {
        self.hides()
    }

    pub(crate) fn keys(self) -> u64 {
        if self == Style::Flood { 70 } else { 3 }
    }
}

pub(crate) fn any_kind(dice: &mut Dice, style: Style, weighs: bool) -> Kind {
    let scale = if weighs { 8 } else { 1 };
    let windows = !weighs || matches!(style, Style::Weighty | Style::Changing);
    match dice.pick(0, 10) {
        0..4 => {
            Kind::Rate { cost: dice.pick(1, 20) * STEP / scale, burst: dice.pick(1, 5) * scale }
        }
        4..7 if windows => {
            Kind::Window { count: dice.pick(1, 5) * scale, length: dice.pick(1, 60) * STEP }
        }
        4..8 => Kind::Budget { count: dice.pick(2, 12) * scale, idle: any_calm(dice) },
        _ => Kind::InFlight { count: dice.pick(1, 5) * scale },
    }
}

/// After how long a budget forgets, if it does.
fn any_calm(dice: &mut Dice) -> Option<u64> {
    let calm = dice.pick(1, 60) * STEP;
    (dice.chance(60) && BUDGETS_MAY_FORGET).then_some(calm)
}

pub(crate) fn any_rule(dice: &mut Dice, style: Style, name: &str) -> Rule {
    let weighs = dice.chance(if style == Style::Weighty { 70 } else { 25 });
    let kind = any_kind(dice, style, weighs);
    let offers = !matches!(style, Style::Plain | Style::Flood | Style::Reloading)
        && !matches!(kind, Kind::InFlight { .. });
    let named = match style {
        Style::Reloading => true,
        Style::Changing => dice.chance(50),
        _ => false,
    };
    Rule {
        kind,
        weighs,
        offered: offers && dice.chance(30),
        trips: dice.chance(25),
        candidate: style.hides() && dice.chance(20),
        name: if named { name.to_owned() } else { String::new() },
    }
}

/// What no spec may have.
pub(crate) fn impossible() -> Rule {
    Rule {
        kind: Kind::InFlight { count: 0 },
        weighs: false,
        offered: false,
        trips: false,
        candidate: false,
        name: String::new(),
    }
}

fn any_rules(dice: &mut Dice, style: Style, most: u64) -> Vec<Rule> {
    let count = dice.pick(0, most + 1);
    (0..count).map(|number| any_rule(dice, style, &format!("l{number}"))).collect()
}

pub(crate) fn any_recovery(dice: &mut Dice) -> Recovery {
    let probes = dice.pick(1, 4);
    let first = dice.pick(200, 500);
    let holds = (first * STEP, (first + dice.pick(0, 1_500)) * STEP);
    Recovery { probes, holds: dice.chance(80).then_some(holds) }
}

fn scope(dice: &mut Dice, style: Style, path: String) -> ScopeSpec {
    let most = match style {
        Style::Plain => 1,
        Style::Flood => dice.pick(0, 2) * dice.pick(0, 2),
        _ => 2,
    };
    ScopeSpec {
        path,
        limits: any_rules(dice, style, most),
        recovery: any_recovery(dice),
        shadow: style.hides() && dice.chance(25),
        counts: dice.chance(75) || !ROUTES_MAY_NOT_COUNT,
        reducing: false,
        parent: None,
        skips: false,
        overrides: Vec::new(),
    }
}

pub(crate) fn dimension(dice: &mut Dice, style: Style, parent: &str, name: &str) -> ScopeSpec {
    let path = format!("{}/{name}", parent.trim_end_matches('/'));
    let mut own = scope(dice, style, path);
    if style == Style::Flood {
        if own.limits.is_empty() {
            own.limits.push(any_rule(dice, style, "l0"));
        }
        own.limits.iter_mut().for_each(|rule| lengthen(&mut rule.kind));
    }
    own.parent = Some(parent.to_owned());
    own.skips = dice.chance(30);
    if style.hides() || style == Style::Changing {
        for label in 0..style.keys() {
            if dice.chance(15) {
                let rules = any_rules(dice, style, 2);
                own.overrides.push((label.to_string(), rules));
            }
        }
    }
    own
}

/// Keys that stay busy long enough to fill a table.
fn lengthen(kind: &mut Kind) {
    match kind {
        Kind::Rate { cost: length, .. }
        | Kind::Window { length, .. }
        | Kind::Budget { idle: Some(length), .. } => *length *= 40,
        Kind::Budget { .. } | Kind::InFlight { .. } => {}
    }
}

/// `/`, a group or two, a route or two in each, and up to four dimensions in a lineage.
pub(crate) fn any_spec(dice: &mut Dice, style: Style) -> Vec<ScopeSpec> {
    let mut all = vec![scope(dice, style, "/".into())];
    for group in 0..dice.pick(1, 3) {
        all.push(scope(dice, style, format!("/g{group}")));
        for route in 0..dice.pick(1, 3) {
            let mut own = scope(dice, style, format!("/g{group}/r{route}"));
            own.reducing = route == 1 && dice.chance(60);
            all.push(own);
        }
    }
    let wanted = match style {
        Style::Flood => 1,
        Style::Plain => dice.pick(0, 3),
        _ => dice.pick(0, 5),
    };
    for name in
        ["account", "symbol", "parent", "desk"].into_iter().zip(0..wanted).map(|(name, _)| name)
    {
        let parent = ["/", "/g0", "/g0/r0"][dice.index(3)];
        let parent = if style == Style::Flood { "/" } else { parent };
        all.push(dimension(dice, style, parent, name));
    }
    if style == Style::Plain && dice.chance(60) {
        leave_one(dice, &mut all);
    }
    all
}

/// Leaves nothing but one rate or window, or a key's rate and a wider window, and one dimension at most: what is decided in line.
fn leave_one(dice: &mut Dice, all: &mut Vec<ScopeSpec>) {
    let named = all.iter().filter(|scope| scope.parent.is_none()).count();
    all.truncate(named + 1);
    all.iter_mut().for_each(|scope| scope.limits.clear());
    let of_key = all.len() > named && dice.chance(60);
    let which = if of_key { named } else { dice.index(named) };
    let mut only = any_rule(dice, Style::Plain, "l0");
    only.weighs = false;
    only.kind = if of_key || dice.chance(50) {
        Kind::Rate { cost: dice.pick(1, 20) * STEP, burst: dice.pick(1, 5) }
    } else {
        Kind::Window { count: dice.pick(1, 5), length: dice.pick(1, 60) * STEP }
    };
    all[which].limits.push(only);
    if of_key && dice.chance(50) {
        let kind = Kind::Window { count: dice.pick(2, 9), length: dice.pick(1, 60) * STEP };
        let wider = dice.index(named);
        all[wider].limits.push(Rule { kind, weighs: false, ..any_rule(dice, Style::Plain, "l0") });
    }
}

/// Changes something, as a person would who edits a file.
pub(crate) fn mutate(
    dice: &mut Dice,
    style: Style,
    first: &[ScopeSpec],
    spec: &mut Vec<ScopeSpec>,
) {
    let at = dice.index(spec.len());
    match dice.pick(0, 12) {
        0..5 => {
            let limits = &mut spec[at].limits;
            if limits.is_empty() {
                return;
            }
            let which = dice.index(limits.len());
            change(dice, style, &mut limits[which]);
        }
        5 => {
            let limits = &mut spec[at].limits;
            if !limits.is_empty() {
                limits.remove(dice.index(limits.len()));
            }
        }
        6 => {
            if let Some(old) = first.iter().find(|old| old.path == spec[at].path) {
                spec[at].limits.clone_from(&old.limits);
            }
        }
        7 => {
            spec[at].recovery = any_recovery(dice);
            spec[at].counts = dice.chance(75) || !ROUTES_MAY_NOT_COUNT;
            spec[at].shadow = style.hides() && dice.chance(25);
        }
        8 => {
            if let Some(own) = spec[at].parent.is_some().then(|| &mut spec[at].overrides) {
                if dice.chance(50) && !own.is_empty() {
                    own.pop();
                } else if own.iter().all(|(label, _)| label != "1") {
                    own.push(("1".into(), any_rules(dice, style, 2)));
                }
            }
        }
        9 => {
            // A dimension or a route goes; never the first route.
            let goes = |scope: &ScopeSpec| scope.parent.is_some() || scope.path.ends_with("r1");
            if goes(&spec[at]) {
                let path = spec.remove(at).path;
                spec.retain(|scope| scope.parent.as_ref() != Some(&path));
            }
        }
        10 => {
            // Something comes back as it was.
            let known: Vec<String> = spec.iter().map(|scope| scope.path.clone()).collect();
            let gone = first.iter().filter(|old| !known.contains(&old.path));
            let parent = |old: &&ScopeSpec| old.parent.as_ref().is_none_or(|p| known.contains(p));
            if let Some(old) = gone.clone().find(parent) {
                spec.push(old.clone());
            }
        }
        _ => {
            if style == Style::Changing
                && let Some(limit) = spec[at].limits.first_mut()
            {
                limit.name = if limit.name.is_empty() { "renamed".into() } else { String::new() };
            }
        }
    }
}

fn change(dice: &mut Dice, style: Style, rule: &mut Rule) {
    let keeps = style == Style::Reloading;
    let scale = if rule.weighs { 8 } else { 1 };
    match &mut rule.kind {
        Kind::Rate { cost, burst } => {
            *burst = dice.pick(1, 6) * scale;
            if !keeps && dice.chance(50) {
                *cost = dice.pick(1, 20) * STEP / scale;
            }
        }
        Kind::Window { count, length } if !keeps => {
            *count = dice.pick(1, 6) * scale;
            if dice.chance(50) {
                *length = dice.pick(1, 60) * STEP;
            }
        }
        Kind::Window { .. } => {}
        Kind::Budget { count, idle } => {
            *count = dice.pick(2, 12) * scale;
            if !keeps && dice.chance(50) {
                *idle = any_calm(dice);
            }
        }
        Kind::InFlight { count } => *count = dice.pick(1, 5) * scale,
    }
}

/// The spec in the crate's words; for the long way with a candidate that is never reached.
pub(crate) fn translated(spec: &[ScopeSpec], long: bool) -> PolicySpec {
    let mut policy = PolicySpec::default();
    for scope in spec.iter().filter(|scope| scope.parent.is_none()) {
        let mut own = breaker_core::ScopeSpec {
            limits: limits(&scope.limits),
            recover: recover(scope.recovery),
            mode: mode(scope.shadow),
            keys: Vec::new(),
            counts: scope.counts,
            ..Default::default()
        };
        for key in spec.iter().filter(|key| key.parent.as_ref() == Some(&scope.path)) {
            own.keys.push(KeySpec {
                name: key.path.rsplit_once('/').unwrap().1.to_owned(),
                limits: limits(&key.limits),
                recover: recover(key.recovery),
                mode: mode(key.shadow),
                missing: if key.skips { Missing::Skip } else { Missing::Share },
                overrides: (key.overrides.iter())
                    .map(|(label, rules)| KeyOverride {
                        label: label.as_bytes().to_vec(),
                        limits: limits(rules),
                    })
                    .collect(),
                ..Default::default()
            });
        }
        match scope.path.trim_start_matches('/').split_once('/') {
            None if scope.path == "/" => {
                if long {
                    let never = LimitSpec::rate(1, Span::from_nanos(1), 1 << 40);
                    own.limits.push(never.candidate().named("never"));
                }
                policy.global = own;
            }
            None => policy.groups.push(GroupSpec { name: scope.path[1..].to_owned(), scope: own }),
            Some((group, name)) => policy.routes.push(RouteSpec {
                name: name.to_owned(),
                group: group.to_owned(),
                class: if scope.reducing { Class::Reducing } else { Class::Normal },
                scope: own,
            }),
        }
    }
    policy
}

fn mode(shadow: bool) -> Mode {
    if shadow { Mode::Shadow } else { Mode::Enforce }
}

fn recover(recovery: Recovery) -> Recover {
    let probes = u8::try_from(recovery.probes).unwrap();
    match recovery.holds {
        None => Recover::Manual { probes },
        Some((first, longest)) => Recover::Probe {
            probes,
            after: Span::from_nanos(first),
            at_most: Span::from_nanos(longest),
        },
    }
}

fn limits(rules: &[Rule]) -> Vec<LimitSpec> {
    rules.iter().map(limit).collect()
}

fn limit(rule: &Rule) -> LimitSpec {
    let mut limit = match rule.kind {
        Kind::Rate { cost, burst } => LimitSpec::rate(1, Span::from_nanos(cost), burst),
        Kind::Window { count, length } => LimitSpec::window(count, Span::from_nanos(length)),
        Kind::Budget { count, idle } => match idle {
            Some(idle) => LimitSpec::budget(count).idle(Span::from_nanos(idle)),
            None => LimitSpec::budget(count),
        },
        Kind::InFlight { count } => LimitSpec::in_flight(count),
    };
    if rule.weighs {
        limit = limit.by_weight();
    }
    if rule.offered {
        limit = limit.offered();
    }
    if rule.trips {
        limit = limit.tripping();
    }
    if rule.candidate {
        limit = limit.candidate();
    }
    limit.named(&rule.name)
}
