//! All rules for all scopes, as written and as checked; it holds no memory of its own and decides no call.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::cell::Charges;
use crate::facts::{Cause, Class, Denial, Mode, Place};
use crate::gate::{MAX_HOLD, MAX_PROBES, MIN_HOLD, TripRule};
use crate::limit::{Limit, makes_idle};
use crate::scope::{Level, Scope, check_name};
use crate::time::Span;

/// All rules, as written.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PolicySpec {
    /// The rules of `/`.
    pub global: ScopeSpec,
    /// The groups.
    pub groups: Vec<GroupSpec>,
    /// The routes, each in one of the groups.
    pub routes: Vec<RouteSpec>,
}

/// One group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSpec {
    /// Its name, unique among groups.
    pub name: String,
    /// Its rules.
    pub scope: ScopeSpec,
}

/// One route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSpec {
    /// Its name, unique within its group.
    pub name: String,
    /// The name of a group of the spec.
    pub group: String,
    /// What its calls do to risk.
    pub class: Class,
    /// Its rules.
    pub scope: ScopeSpec,
}

/// The rules of one named scope.
#[derive(Clone, Debug, PartialEq)]
pub struct ScopeSpec {
    /// Up to 4 limits.
    pub limits: Vec<LimitSpec>,
    /// How its gate comes back after a trip.
    pub recover: Recover,
    /// Whether its limits and trips deny.
    pub mode: Mode,
    /// The key dimensions declared here: shared by all calls of the scope.
    pub keys: Vec<KeySpec>,
}

/// One key dimension, and the rules of each of its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySpec {
    /// Its name, unique in any lineage.
    pub name: String,
    /// Up to 4 limits, for each key.
    pub limits: Vec<LimitSpec>,
    /// How a key's gate comes back after a trip.
    pub recover: Recover,
    /// Whether its limits and trips deny.
    pub mode: Mode,
}

/// One limit.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitSpec {
    /// Its kind and numbers.
    pub kind: LimitKind,
    /// What it counts.
    pub of: Counting,
    /// What a breach does.
    pub on_breach: OnBreach,
}

/// A kind of limit and its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// `count` per `per`, with `burst` calls at once at most.
    Rate {
        /// Calls refilled …
        count: u64,
        /// … in this time.
        per: Span,
        /// Calls at once.
        burst: u64,
    },
    /// At most `count` in any interval of length `length`, exactly.
    Window {
        /// Calls, 1 to 65 536.
        count: u64,
        /// Length of every interval.
        length: Span,
    },
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counting {
    /// Calls that pass.
    Admitted,
    /// Calls that nothing narrower refused, whatever becomes of them here and in wider scopes.
    Offered,
}

/// What a breach does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnBreach {
    /// Refuses the call.
    Refuse,
    /// Refuses the call and trips the gate.
    Trip,
}

/// How a tripped gate comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recover {
    /// It waits for a person: a lift leads to probation, a reset straight back.
    Manual {
        /// Probes that must pass on probation, 1 to 63.
        probes: u8,
    },
    /// It goes on probation by itself.
    Probe {
        /// Probes that must pass, 1 to 63.
        probes: u8,
        /// The first hold, at least 200 ms. Each further trip in a bad spell doubles it.
        after: Span,
        /// The longest hold, at most about 6.5 days. A gate that stays armed that long starts afresh.
        at_most: Span,
    },
}

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

/// All rules, compiled; belongs to the breaker that compiled it.
pub struct Policy {
    /// `/`, then the groups, then the routes, in the order of the spec.
    pub(crate) scopes: Box<[ScopeRules]>,
    pub(crate) dimensions: Box<[KeyRules]>,
    pub(crate) routes: Box<[RouteRules]>,
    by_path: BTreeMap<Scope, usize>,
    by_cell: BTreeMap<u32, usize>,
    by_table: BTreeMap<u32, usize>,
}

/// A route's number in one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub(crate) u32);

/// A key dimension as a call meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimension<'a> {
    /// Its name.
    pub name: &'a str,
    /// The level that declares it.
    pub level: Level,
}

/// A named scope's rules, with the memory they charge.
pub(crate) struct ScopeRules {
    pub(crate) scope: Scope,
    pub(crate) level: Level,
    pub(crate) cell: u32,
    /// Held so that the cell is not handed to another scope.
    pub(crate) _claim: Arc<()>,
    pub(crate) rules: Rules,
}

/// A key dimension's rules, with the memory they charge.
pub(crate) struct KeyRules {
    pub(crate) name: String,
    /// Where it hangs: an index into `Policy::scopes`.
    pub(crate) parent: usize,
    pub(crate) table: u32,
    /// Its index among the dimensions of any route that has it.
    pub(crate) index: u8,
    pub(crate) rules: Rules,
}

/// What named scopes and keys have in common.
pub(crate) struct Rules {
    pub(crate) trip: TripRule,
    pub(crate) mode: Mode,
    pub(crate) limits: Box<[LimitRule]>,
}

/// One limit and the memory it charges: one row of a named scope, one for each cell of a table.
pub(crate) struct LimitRule {
    pub(crate) spec: LimitSpec,
    pub(crate) charges: Arc<Charges>,
}

/// A route's way through the tree.
pub(crate) struct RouteRules {
    pub(crate) class: Class,
    /// Global, group, route: indexes into `Policy::scopes`.
    pub(crate) lineage: [usize; 3],
    /// Indexes into `Policy::dimensions`: global's, the group's, the route's.
    pub(crate) dimensions: Box<[usize]>,
}

impl LimitSpec {
    /// At most `count` admitted calls in any interval of length `length`; refuses above.
    #[must_use]
    pub const fn window(count: u64, length: Span) -> LimitSpec {
        LimitSpec::new(LimitKind::Window { count, length })
    }

    /// `count` admitted calls per `per`, at most `burst` at once; refuses above.
    #[must_use]
    pub const fn rate(count: u64, per: Span, burst: u64) -> LimitSpec {
        LimitSpec::new(LimitKind::Rate { count, per, burst })
    }

    /// The same limit, but a breach trips the gate.
    #[must_use]
    pub const fn tripping(mut self) -> LimitSpec {
        self.on_breach = OnBreach::Trip;
        self
    }

    /// The same limit, but it counts offered calls.
    #[must_use]
    pub const fn offered(mut self) -> LimitSpec {
        self.of = Counting::Offered;
        self
    }

    const fn new(kind: LimitKind) -> LimitSpec {
        LimitSpec { kind, of: Counting::Admitted, on_breach: OnBreach::Refuse }
    }
}

impl Default for Recover {
    fn default() -> Recover {
        Recover::Manual { probes: 5 }
    }
}

impl Default for ScopeSpec {
    fn default() -> ScopeSpec {
        ScopeSpec {
            limits: Vec::new(),
            recover: Recover::default(),
            mode: Mode::Enforce,
            keys: Vec::new(),
        }
    }
}

impl Policy {
    /// The routes, in the order of the spec.
    pub fn routes(&self) -> impl Iterator<Item = (RouteId, &Scope)> + '_ {
        (0_u32..).zip(&self.routes).filter_map(|(number, route)| {
            let [_, _, own] = route.lineage;
            Some((RouteId(number), &self.scopes.get(own)?.scope))
        })
    }

    /// The route at a path.
    #[must_use]
    pub fn route(&self, path: &Scope) -> Option<RouteId> {
        self.routes().find(|(_, scope)| *scope == path).map(|(id, _)| id)
    }

    /// The dimensions of a route's lineage: global's first, then the group's, then the route's.
    /// Their order is the order of a call's keys. At most 4.
    pub fn dimensions(&self, route: RouteId) -> impl Iterator<Item = Dimension<'_>> + '_ {
        let indexes = self.route_rules(route).map_or(&[][..], |route| &route.dimensions);
        indexes.iter().filter_map(|&index| {
            let rules = self.dimensions.get(index)?;
            let level = self.scopes.get(rules.parent)?.scope.level();
            Some(Dimension { name: &rules.name, level })
        })
    }

    /// What a route's calls do to risk. An unknown route is normal.
    #[must_use]
    pub fn class(&self, route: RouteId) -> Class {
        self.route_rules(route).map_or(Class::Normal, |route| route.class)
    }

    /// The named scope at a place; for a key, the scope it hangs from and its dimension's name.
    #[must_use]
    pub fn scope_of(&self, place: Place) -> Option<(&Scope, Option<&str>)> {
        if place.key.is_some() {
            let rules = self.key_rules(place.index)?;
            Some((&self.scopes.get(rules.parent)?.scope, Some(&rules.name)))
        } else {
            Some((&self.scope_rules(place.index)?.scope, None))
        }
    }

    /// The limit that a denial speaks of, if it speaks of one.
    #[must_use]
    pub fn limit_of(&self, denial: &Denial) -> Option<&LimitSpec> {
        let index = match denial.cause {
            Cause::Limit(index) | Cause::Tripped(Some(index)) => index,
            _ => return None,
        };
        let rules = self.rules_at(denial.place)?;
        rules.limits.get(usize::from(index)).map(|limit| &limit.spec)
    }

    /// All named scopes: `/`, the groups, the routes.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> + '_ {
        self.scopes.iter().map(|rules| &rules.scope)
    }

    pub(crate) fn new(
        scopes: Vec<ScopeRules>,
        dimensions: Vec<KeyRules>,
        routes: Vec<RouteRules>,
    ) -> Policy {
        let by_path =
            scopes.iter().enumerate().map(|(index, rules)| (rules.scope.clone(), index)).collect();
        let by_cell = scopes.iter().enumerate().map(|(index, rules)| (rules.cell, index)).collect();
        let by_table =
            dimensions.iter().enumerate().map(|(index, rules)| (rules.table, index)).collect();
        Policy {
            scopes: scopes.into(),
            dimensions: dimensions.into(),
            routes: routes.into(),
            by_path,
            by_cell,
            by_table,
        }
    }

    pub(crate) fn route_rules(&self, route: RouteId) -> Option<&RouteRules> {
        self.routes.get(usize::try_from(route.0).ok()?)
    }

    /// The rules of the named scope in a cell.
    pub(crate) fn scope_rules(&self, cell: u32) -> Option<&ScopeRules> {
        self.scopes.get(*self.by_cell.get(&cell)?)
    }

    /// The rules of the dimension with a table.
    pub(crate) fn key_rules(&self, table: u32) -> Option<&KeyRules> {
        self.dimensions.get(*self.by_table.get(&table)?)
    }

    pub(crate) fn rules_at(&self, place: Place) -> Option<&Rules> {
        if place.key.is_some() {
            self.key_rules(place.index).map(|key| &key.rules)
        } else {
            self.scope_rules(place.index).map(|scope| &scope.rules)
        }
    }

    /// The named scope at a path.
    pub(crate) fn named(&self, path: &Scope) -> Option<&ScopeRules> {
        self.scopes.get(*self.by_path.get(path)?)
    }

    /// The dimension that a scope declares.
    pub(crate) fn dimension(&self, parent: &Scope, name: &str) -> Option<&KeyRules> {
        let parent = *self.by_path.get(parent)?;
        self.dimensions.iter().find(|rules| rules.parent == parent && rules.name == name)
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.scopes()).finish()
    }
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
    pub(crate) rules: DraftRules,
}

pub(crate) struct DraftRules {
    pub(crate) trip: TripRule,
    pub(crate) mode: Mode,
    pub(crate) limits: Vec<(LimitSpec, Limit)>,
}

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
            check.rules(&path, &route.scope.limits, route.scope.recover, route.scope.mode);
            continue;
        };
        let parent = check.scopes.get(group).map_or(Scope::global(), |scope| scope.scope.clone());
        if let Some(scope) = check.child(&path, &parent, &route.name) {
            let own = check.scope(&path, scope, &route.scope);
            let lineage = [0, group, own];
            let dimensions = check.lineage(&path, lineage);
            routes.push(RouteRules { class: route.class, lineage, dimensions });
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
        let rules = self.rules(path, &spec.limits, spec.recover, spec.mode);
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
            let rules = self.rules(&path, &key.limits, key.recover, key.mode);
            self.memory(&path, &rules);
            let index = u8::MAX;
            self.dimensions.push(DraftKey { name: key.name.clone(), parent, index, rules });
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

    fn rules(
        &mut self,
        path: &str,
        limits: &[LimitSpec],
        recover: Recover,
        mode: Mode,
    ) -> DraftRules {
        if limits.len() > MAX_LIMITS {
            let problem = format!("{} limits", limits.len());
            self.error(path, &problem, "a scope has at most 4");
        }
        let mut checked = Vec::new();
        for (index, limit) in limits.iter().enumerate() {
            let path = format!("{path}.limit[{index}]");
            match Limit::new(limit.kind) {
                Ok(sound) => {
                    checked.push((limit.clone(), sound));
                    self.idle(&path, index, limits);
                }
                Err((problem, hint)) => self.error(&path, &problem, &hint),
            }
        }
        self.recover(&format!("{path}.recover"), recover);
        DraftRules { trip: TripRule::new(recover), mode, limits: checked }
    }

    /// An *admitted* limit that another of its scope keeps from ever being reached is a mistake.
    /// One of *offered* calls sees them all, whatever the others refuse.
    fn idle(&mut self, path: &str, index: usize, limits: &[LimitSpec]) {
        let Some(own) = limits.get(index).filter(|limit| limit.of == Counting::Admitted) else {
            return;
        };
        let idler = limits.iter().enumerate().find(|&(other, limit)| {
            let equal = makes_idle(own.kind, limit.kind) && limit.of == Counting::Admitted;
            other != index
                && Limit::new(limit.kind).is_ok()
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
        let words: usize = rules.limits.iter().map(|(_, limit)| limit.words()).sum();
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

/// Limits of one scope, at most.
pub(crate) const MAX_LIMITS: usize = 4;
/// Keys of one call, at most.
pub(crate) const MAX_DIMENSIONS: usize = 4;
/// Memory of one dimension's limits, at most.
const MAX_KEY_BYTES: usize = 1 << 30;
