//! From rules as written to sound ones, with all errors at once; it gives no memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::compiled::Due;
use super::compiled::{MAX_DIMENSIONS, MAX_LIMITS, NAMED, Plainest, RouteRules};
use super::{
    Counting, KeySpec, LimitKind, LimitSpec, Missing, Newcomers, PolicySpec, Recover, ScopeSpec,
    Unit,
};
use crate::cell::Cell;
use crate::detect::{Compiled, DetectorSpec};
use crate::facts::Mode;
use crate::gate::{MAX_HOLD, MAX_PROBES, MIN_HOLD, TripRule};
use crate::limit::{Limit, makes_idle};
use crate::scope::{Scope, check_name};

/// One error of a spec. All errors of a spec are reported at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// Where, such as `routes.orders.limit[1]`.
    pub path: String,
    /// What is wrong, as a lower-case fragment.
    pub problem: String,
    /// What to do instead.
    pub hint: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path, self.problem, self.hint)
    }
}

impl std::error::Error for PolicyError {}

/// A spec that passed every check that needs no memory.
pub(crate) struct Draft {
    /// `/`, the groups, the routes.
    pub(crate) scopes: Vec<DraftScope>,
    pub(crate) dimensions: Vec<DraftKey>,
    pub(crate) routes: Vec<RouteRules>,
}

pub(crate) struct DraftScope {
    pub(crate) scope: Scope,
    pub(crate) rules: DraftRules,
}

pub(crate) struct DraftKey {
    pub(crate) name: String,
    pub(crate) parent: usize,
    pub(crate) index: u8,
    pub(crate) recover: Recover,
    pub(crate) missing: Missing,
    pub(crate) rules: DraftRules,
    /// How many keys may be seen for the first time: a rate.
    pub(crate) newcomers: Option<Limit>,
}

pub(crate) struct DraftRules {
    pub(crate) trip: TripRule,
    pub(crate) mode: Mode,
    pub(crate) limits: DraftLimits,
    /// Labels, and the limits of their keys.
    pub(crate) overrides: Vec<(Vec<u8>, DraftLimits)>,
    pub(crate) detectors: Compiled,
    pub(crate) counts: bool,
    pub(crate) spent_after_crash: bool,
}

/// Checked limits, as written and as arithmetic.
type DraftLimits = Vec<(LimitSpec, Limit)>;

/// What a breaker has room for.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// Groups and routes together.
    pub(crate) scopes: usize,
    /// Rows of memory of each dimension: its cells and the shared one.
    pub(crate) rows: usize,
}

/// Checks a spec whole.
pub(crate) fn check(spec: &PolicySpec, room: Room) -> Result<Draft, Vec<PolicyError>> {
    let mut check = Check { errors: Vec::new(), room, scopes: Vec::new(), dimensions: Vec::new() };
    check.scope("global", Scope::global(), &spec.global);
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for (position, group) in spec.groups.iter().enumerate() {
        let path = named("groups", position, &group.name);
        if groups.contains_key(group.name.as_str()) {
            check.error(&path, "is named twice", "give each group its own name");
            continue;
        }
        if let Some(scope) = check.child(&path, &Scope::global(), &group.name) {
            let index = check.scope(&path, scope, &group.scope);
            groups.insert(&group.name, index);
        }
    }
    let nowhere = Arc::<Cell>::default();
    let mut routes = Vec::new();
    let mut seen = BTreeSet::new();
    for (position, route) in spec.routes.iter().enumerate() {
        let path = named("routes", position, &route.name);
        if !seen.insert((&route.group, &route.name)) {
            check.error(&path, "is named twice in its group", "give each route its own name");
            continue;
        }
        let Some(&group) = groups.get(route.group.as_str()) else {
            let hint = nearest(&route.group, groups.keys().copied());
            let problem = format!("there is no group `{}`", route.group);
            check.error(&format!("{path}.group"), &problem, &hint);
            // Its own rules are checked all the same, so that all errors are seen at once.
            check.scope_rules(&path, &route.scope);
            continue;
        };
        let parent = check.scopes.get(group).map_or(Scope::global(), |scope| scope.scope.clone());
        if let Some(scope) = check.child(&path, &parent, &route.name) {
            let own = check.scope(&path, scope, &route.scope);
            let lineage = [0, group, own];
            let dimensions = check.lineage(&path, lineage);
            routes.push(RouteRules {
                class: route.class,
                lineage,
                cells: [0; NAMED],
                gates: std::array::from_fn(|_| Arc::clone(&nowhere)),
                hears_all: Due::Nothing,
                dimensions,
                plainest: Plainest::Other,
                enforced: false,
                short: None,
                hears: 0,
                counts: None,
                endings: Box::default(),
            });
        }
    }
    let named = check.scopes.len().saturating_sub(1);
    if named > room.scopes {
        let problem = format!("{named} groups and routes, and room for {}", room.scopes);
        check.error("routes", &problem, "raise the capacity for scopes; it is set at start");
    }
    if check.errors.is_empty() {
        Ok(Draft { scopes: check.scopes, dimensions: check.dimensions, routes })
    } else {
        Err(check.errors)
    }
}

struct Check {
    errors: Vec<PolicyError>,
    room: Room,
    scopes: Vec<DraftScope>,
    dimensions: Vec<DraftKey>,
}

impl Check {
    fn error(&mut self, path: &str, problem: &str, hint: &str) {
        self.errors.push(PolicyError {
            path: path.to_owned(),
            problem: problem.to_owned(),
            hint: hint.to_owned(),
        });
    }

    fn child(&mut self, path: &str, parent: &Scope, name: &str) -> Option<Scope> {
        match parent.child(name) {
            Ok(scope) => Some(scope),
            Err(error) => {
                self.error(path, &format!("`{name}` is no name"), &error.problem);
                None
            }
        }
    }

    /// Checks a named scope and returns its index.
    fn scope(&mut self, path: &str, scope: Scope, spec: &ScopeSpec) -> usize {
        let rules = self.scope_rules(path, spec);
        let parent = self.scopes.len();
        self.scopes.push(DraftScope { scope, rules });
        let mut names = BTreeSet::new();
        for (position, key) in spec.keys.iter().enumerate() {
            let path = named(&format!("{path}.keys"), position, &key.name);
            if let Err(error) = check_name(&key.name) {
                self.error(&path, &format!("`{}` is no name", key.name), &error.problem);
            }
            if !names.insert(&key.name) {
                self.error(&path, "is declared twice", "give each dimension its own name");
            }
            let rules = self.key_rules(&path, key);
            self.memory(&path, &rules);
            let newcomers = key.newcomers.and_then(|rate| self.newcomers(&path, rate));
            let (name, index, recover) = (key.name.clone(), u8::MAX, key.recover);
            let missing = key.missing;
            self.dimensions.push(DraftKey {
                name,
                parent,
                index,
                recover,
                missing,
                rules,
                newcomers,
            });
        }
        if spec.keys.len() > MAX_DIMENSIONS {
            let problem = format!("{} key dimensions", spec.keys.len());
            self.error(path, &problem, "a call carries at most 4 keys, over all its levels");
        }
        // A group without routes numbers its dimensions too: keys can be killed there.
        let wide = if parent == 0 || path.starts_with("routes") { None } else { Some(0) };
        self.number(wide, parent);
        parent
    }

    /// Gives the dimensions of `own` their index, after those of the wider scopes.
    fn number(&mut self, wide: Option<usize>, own: usize) {
        let before = self.dimensions.iter().filter(|key| Some(key.parent) == wide).count();
        for (key, index) in self.dimensions.iter_mut().filter(|key| key.parent == own).zip(before..)
        {
            key.index = u8::try_from(index).unwrap_or(u8::MAX);
        }
    }

    /// Checks what only a whole lineage shows, and returns its dimensions in order.
    fn lineage(&mut self, path: &str, lineage: [usize; 3]) -> Box<[usize]> {
        let mut indexes: Vec<usize> = Vec::new();
        for scope in lineage {
            let own = self.dimensions.iter().enumerate().filter(|(_, key)| key.parent == scope);
            indexes.extend(own.map(|(index, _)| index));
        }
        let mut names = BTreeSet::new();
        let mut twice = Vec::new();
        for (position, &index) in indexes.iter().enumerate() {
            if let Some(key) = self.dimensions.get_mut(index) {
                key.index = u8::try_from(position).unwrap_or(u8::MAX);
                if !names.insert(key.name.clone()) {
                    twice.push(key.name.clone());
                }
            }
        }
        for name in twice {
            let problem = format!("a wider scope of its lineage declares `{name}` as well");
            self.error(
                &format!("{path}.keys.{name}"),
                &problem,
                "declare it once, at the wider one",
            );
        }
        if indexes.len() > MAX_DIMENSIONS {
            let problem = format!("{} key dimensions in its lineage", indexes.len());
            self.error(path, &problem, "a call carries at most 4 keys, over all its levels");
        }
        indexes.into()
    }

    fn scope_rules(&mut self, path: &str, spec: &ScopeSpec) -> DraftRules {
        let limits = self.limits(path, &spec.limits);
        let detectors = self.detectors(path, &spec.detectors, false);
        self.recover(&format!("{path}.recover"), spec.recover);
        DraftRules {
            trip: TripRule::new(spec.recover),
            mode: spec.mode,
            limits,
            overrides: Vec::new(),
            counts: spec.counts || !detectors.is_empty(),
            detectors,
            spent_after_crash: spec.spent_after_crash,
        }
    }

    fn key_rules(&mut self, path: &str, spec: &KeySpec) -> DraftRules {
        let limits = self.limits(path, &spec.limits);
        let detectors = self.detectors(path, &spec.detectors, true);
        self.recover(&format!("{path}.recover"), spec.recover);
        let mut overrides = Vec::new();
        let mut labels = BTreeSet::new();
        for (position, own) in spec.overrides.iter().enumerate() {
            let path = format!("{path}.override[{position}]");
            if !labels.insert(&own.label) {
                self.error(&path, "its key has an override already", "give each key one");
            }
            overrides.push((own.label.clone(), self.limits(&path, &own.limits)));
        }
        if overrides.len() > MAX_OVERRIDES {
            let problem = format!("{} overrides", overrides.len());
            self.error(path, &problem, &format!("a dimension has at most {MAX_OVERRIDES}"));
        }
        DraftRules {
            trip: TripRule::new(spec.recover),
            mode: spec.mode,
            limits,
            overrides,
            counts: !detectors.is_empty(),
            detectors,
            spent_after_crash: spec.spent_after_crash,
        }
    }

    fn newcomers(&mut self, path: &str, rate: Newcomers) -> Option<Limit> {
        let Newcomers { count, per, burst } = rate;
        let sound = Limit::new(LimitKind::Rate { count, per, burst }, Unit::Calls);
        let told = sound.map_err(|(problem, hint)| {
            self.error(&format!("{path}.newcomers"), &problem, &hint);
        });
        told.ok()
    }

    fn detectors(&mut self, path: &str, specs: &[DetectorSpec], keys: bool) -> Compiled {
        Compiled::new(specs, keys).unwrap_or_else(|errors| {
            for (index, problem, hint) in errors {
                self.error(&format!("{path}.detect[{index}]"), &problem, &hint);
            }
            Compiled::default()
        })
    }

    fn limits(&mut self, path: &str, limits: &[LimitSpec]) -> DraftLimits {
        if limits.len() > MAX_LIMITS {
            let problem = format!("{} limits", limits.len());
            self.error(path, &problem, &format!("a scope has at most {MAX_LIMITS}"));
        }
        let mut checked = Vec::new();
        let mut names = BTreeSet::new();
        for (index, limit) in limits.iter().enumerate() {
            let path = format!("{path}.limit[{index}]");
            if !limit.name.is_empty() && !names.insert(&limit.name) {
                let problem = format!("another limit of its scope is named `{}`", limit.name);
                self.error(&path, &problem, "give each limit its own name, or none");
            }
            if matches!(limit.kind, LimitKind::InFlight { .. }) && limit.of == Counting::Offered {
                let problem = "calls that are refused are never in flight";
                self.error(&path, problem, "let it count admitted calls");
            }
            match Limit::new(limit.kind, limit.by) {
                Ok(sound) => {
                    checked.push((limit.clone(), sound));
                    self.idle(&path, index, limits);
                }
                Err((problem, hint)) => self.error(&path, &problem, &hint),
            }
        }
        checked
    }

    /// An *admitted* limit that another of its scope keeps from ever being reached is a mistake.
    /// One of *offered* calls sees them all, whatever the others refuse.
    /// Nor is one of weight that is settled: a true weight may take it where no call would.
    fn idle(&mut self, path: &str, index: usize, limits: &[LimitSpec]) {
        let live = |limit: &&LimitSpec| limit.of == Counting::Admitted && !limit.candidate;
        let Some(own) = limits.get(index).filter(live) else { return };
        if own.by == Unit::Weight && Limit::new(own.kind, own.by).is_ok_and(Limit::can_settle) {
            return;
        }
        let idler = limits.iter().enumerate().find(|&(other, limit)| {
            let equal = makes_idle(own.kind, limit.kind) && limit.of == Counting::Admitted;
            other != index
                && !limit.candidate
                && (limit.by, own.by) == (Unit::Calls, Unit::Calls)
                && Limit::new(limit.kind, limit.by).is_ok()
                && makes_idle(limit.kind, own.kind)
                && (!equal || other < index)
        });
        if let Some((other, _)) = idler {
            let problem = format!("can never act: limit[{other}] of the same scope is tighter");
            self.error(path, &problem, "drop it, tighten it, or let it count offered calls");
        }
    }

    fn recover(&mut self, path: &str, recover: Recover) {
        let (Recover::Manual { probes } | Recover::Probe { probes, .. }) = recover;
        if probes == 0 {
            self.error(path, "0 probes can never end a probation", "use at least 1");
        }
        if probes > MAX_PROBES {
            self.error(path, &format!("{probes} probes"), &format!("use at most {MAX_PROBES}"));
        }
        let Recover::Probe { after, at_most, .. } = recover else { return };
        if after < MIN_HOLD {
            self.error(path, "a hold this short ends before it is seen", "use at least 200 ms");
        }
        if at_most > MAX_HOLD {
            let hint = format!(
                "use at most {} s, or manual recovery",
                MAX_HOLD.as_nanos() / 1_000_000_000
            );
            self.error(path, "a hold this long is beyond the gate's range", &hint);
        }
        if at_most < after {
            self.error(path, "the longest hold is shorter than the first", "swap them");
        }
    }

    fn memory(&mut self, path: &str, rules: &DraftRules) {
        let words = rules.limits.iter().map(|(_, limit)| limit.words()).sum::<usize>().max(4);
        let rows = self.room.rows;
        let bytes = rows.saturating_mul(words).saturating_mul(8);
        if bytes > MAX_KEY_BYTES {
            let problem = format!(
                "its rings would need {bytes} bytes: {rows} cells of {words} words of 8 bytes, and \
                 {MAX_KEY_BYTES} is the most"
            );
            self.error(path, &problem, "use fewer key cells, smaller windows, or a rate");
        }
    }
}

/// `routes.orders`, or `routes[3]` where the name cannot be shown.
fn named(list: &str, position: usize, name: &str) -> String {
    if check_name(name).is_ok() { format!("{list}.{name}") } else { format!("{list}[{position}]") }
}

fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    match names.min_by_key(|known| strsim::damerau_levenshtein(name, known)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "declare it among the groups".to_owned(),
    }
}

/// Keys of one dimension with limits of their own, at most.
const MAX_OVERRIDES: usize = 1_024;
/// Memory of one dimension's limits, at most.
const MAX_KEY_BYTES: usize = 1 << 30;
