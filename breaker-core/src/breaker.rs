//! The house: every cell there will ever be, the decision on a call, and the orders of operators. It reads no clock and keeps no rule.

mod decide;
mod finish;
mod registry;
mod short;

use std::fmt;
use std::hash::Hasher;
use std::sync::{Arc, OnceLock};

use siphasher::sip::SipHasher13;

use self::registry::Registry;
use crate::cell::{Cell, Dirty, Gate, Moved};
use crate::counts::{Count, ScopeCounts};
use crate::facts::{By, Cause, Class, Denial, KillLevel, Mode, Place, State};
use crate::gate::{Input, LiftTo, TripRule, Word};
use crate::keys::{Ordered, Table, cells_for};
use crate::permit::{KeySeat, Pass, Verdict};
use crate::policy::{
    MAX_DIMENSIONS, NAMED, Policy, PolicyError, PolicySpec, Room, RouteId, RouteRules, Rules, check,
};
use crate::scope::{KeyHash, Level, Scope};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::time::{Mono, Span};

/// What there is room for, set at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Groups and routes together.
    pub scopes: u32,
    /// Key cells of each dimension, rounded up to a multiple of 16.
    pub keys: u32,
}

/// 128 random bits for the keys' hashes. The embedder provides them: the core has no random
/// source, and whoever knows them can make keys collide.
#[derive(Clone, Copy)]
pub struct Seed(pub [u64; 2]);

/// Every cell there will ever be. Policies come and go; this stays.
pub struct Breaker {
    /// `/` is the first.
    cells: Box<[Arc<Cell>]>,
    dirty: Dirty,
    tables: Box<[OnceLock<Arc<Table>>]>,
    registry: Mutex<Registry>,
    capacity: Capacity,
    seed: Seed,
    /// The newest instant that a sweep or a reload was told.
    newest: AtomicU64,
}

/// One call, as a decision sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    route: RouteId,
    keys: [Option<KeyHash>; MAX_DIMENSIONS],
    weight: u64,
}

/// Which kill or trip a lift undoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Whose gate.
    pub place: Place,
    /// The gate's epoch after the move.
    pub epoch: u16,
}

/// Why an order did nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderError {
    /// No such scope in this policy; with the nearest names, at most 3.
    UnknownScope(Vec<Scope>),
    /// All cells of the key's bucket are blocked or on probation: kill the scope it hangs from.
    NoRoom,
    /// The gate moved on: somebody killed again, or it was lifted.
    Stale,
    /// The gate is killed: that is more than a trip, and is undone by a lift only.
    Killed,
}

/// Where a scope stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who.
    pub scope: ScopeOrKey,
    /// Its place.
    pub place: Place,
    /// Its gate's state at the time of reading: an elapsed hold shows half-open.
    pub state: State,
    /// Whether its limits and trips deny: the policy's word, or an operator's override.
    pub mode: Mode,
    /// Why it stands there; `None` if armed.
    pub cause: Option<Cause>,
    /// When its hold ends, if it is tripped and has an end.
    pub until: Option<Mono>,
    /// Trips in the present bad spell.
    pub strikes: u8,
    /// Its gate's epoch.
    pub epoch: u16,
}

/// A named scope, or a key of which the core knows only the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopeOrKey {
    /// `/`, a group or a route.
    Named(Scope),
    /// A key.
    Key {
        /// Where it hangs.
        parent: Scope,
        /// Its dimension.
        dimension: String,
        /// Its label's hash.
        hash: KeyHash,
    },
}

/// How full the keys' tables are, over all dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage {
    /// Cells that belong to a key. One whose key has gone quiet counts until another takes it.
    pub held: u64,
    /// Cells.
    pub cells: u64,
    /// Calls that had to share an overflow cell.
    pub overflowed: u64,
    /// Busy keys that lost their cell to the kill or trip of another.
    pub evicted: u64,
}

impl Call {
    /// A call without keys.
    #[must_use]
    pub const fn new(route: RouteId) -> Call {
        Call { route, keys: [None; MAX_DIMENSIONS], weight: 1 }
    }

    /// The same call with a weight, for limits that count weight: notional, bytes, tokens, in the unit of their
    /// numbers. 1 unless said.
    #[must_use]
    pub const fn weighing(mut self, weight: u64) -> Call {
        self.weight = weight;
        self
    }

    /// The same call with a key; `dimension` is an index of `Policy::dimensions`. Out of range it
    /// is asserted in debug builds and ignored in others.
    #[must_use]
    pub fn with_key(mut self, dimension: u8, key: KeyHash) -> Call {
        let slot = self.keys.get_mut(usize::from(dimension));
        debug_assert!(slot.is_some(), "a call carries at most {MAX_DIMENSIONS} keys");
        if let Some(slot) = slot {
            *slot = Some(key);
        }
        self
    }
}

impl Breaker {
    /// A breaker with room for `/` and `capacity`. Memory for keys and limits is allocated when
    /// a policy is compiled that needs it.
    #[must_use]
    pub fn new(capacity: Capacity, seed: Seed) -> Breaker {
        let cells = count(capacity.scopes).saturating_add(1);
        Breaker {
            cells: (0..cells).map(|_| Arc::default()).collect(),
            dirty: Dirty::new(cells),
            tables: (0..MAX_TABLES).map(|_| OnceLock::new()).collect(),
            registry: Mutex::new(Registry::new(capacity.scopes.saturating_add(1))),
            capacity,
            seed,
            newest: AtomicU64::new(0),
        }
    }

    /// Checks a spec and gives it memory. What an earlier policy of this breaker had stays with it: gates by scope, limits
    /// as [`Breaker::recompile`] says, key tables by scope and dimension. Nothing changes on error.
    ///
    /// # Errors
    /// All errors at once, each with its path.
    pub fn compile(&self, spec: &PolicySpec) -> Result<Policy, Vec<PolicyError>> {
        // ordering: relaxed, for an instant stands alone.
        let newest = Mono::from_nanos(self.newest.load(Ordering::Relaxed));
        self.recompile(spec, newest)
    }

    /// As [`Breaker::compile`], at an instant: what a reload calls. Limits are known again by name, or by what they
    /// count. One whose bound alone changed keeps its memory; one whose arithmetic changed (another
    /// refill, another length) starts with what its old self had been charged, and never with a second burst: while calls may
    /// still be charged to the old one by an older policy, both are charged.
    ///
    /// # Errors
    /// All errors at once, each with its path.
    pub fn recompile(&self, spec: &PolicySpec, now: Mono) -> Result<Policy, Vec<PolicyError>> {
        self.note(now);
        let room = Room {
            scopes: count(self.capacity.scopes),
            rows: cells_for(count(self.capacity.keys)) + 1,
        };
        let draft = check(spec, room)?;
        self.registry.lock().compile(self, draft, now)
    }

    /// A label's hash: the same for the life of this breaker, of no meaning beyond.
    #[must_use]
    pub fn hash(&self, label: &[u8]) -> KeyHash {
        let Seed([first, second]) = self.seed;
        let mut hasher = SipHasher13::new_with_keys(first, second);
        hasher.write(label);
        KeyHash::new(hasher.finish())
    }

    /// The hash of a number, such as an account's: as good as that of a label, and faster.
    #[must_use]
    #[inline]
    pub fn hash_u64(&self, label: u64) -> KeyHash {
        let Seed([first, second]) = self.seed;
        let hasher = SipHasher13::new_with_keys(first, second);
        KeyHash::new(hasher.hash(&label.to_le_bytes()))
    }

    /// The hash of several fields at once, such as symbol, side, quantity and price of an order: the key of a
    /// dimension that counts identical repeats. Fields keep their borders: `["a", "bc"]` is not `["ab", "c"]`.
    #[must_use]
    pub fn fingerprint(&self, fields: &[&[u8]]) -> KeyHash {
        let Seed([first, second]) = self.seed;
        let mut hasher = SipHasher13::new_with_keys(first, second);
        for field in fields {
            hasher.write_usize(field.len());
            hasher.write(field);
        }
        KeyHash::new(hasher.finish())
    }

    /// Decides on a call. `now` is read just before, from one monotonic clock for all calls.
    ///
    /// Gates are looked at wide to narrow, and the widest block answers. Then limits are charged
    /// narrow to wide, keys first; a refusal undoes what it can and leaves wider scopes
    /// unaware of the call. Lock-free but for the first sight of a key.
    ///
    /// A key whose dimension has limits shares the dimension's overflow cell when its bucket is full of busy keys: that cell
    /// throttles, and never trips.
    #[inline(always)]
    pub fn admit<'a>(&'a self, policy: &'a Policy, call: Call, now: Mono) -> Verdict<'a> {
        let Some(route) = policy.route_rules(call.route) else { return Verdict::Deny(NOWHERE) };
        match &route.short {
            Some(short) => self.decide_shortly(policy, route, short, &call, now),
            None => self.decide(policy, route, &call, now),
        }
    }

    /// What [`Breaker::admit`] would say, by a look: nothing is charged, claimed, counted or moved. A gate on
    /// probation with a probe left says yes.
    ///
    /// # Errors
    /// The denial.
    pub fn peek(&self, policy: &Policy, call: Call, now: Mono) -> Result<(), Denial> {
        let route = policy.route_rules(call.route).ok_or(NOWHERE)?;
        self.peek_at(policy, route, &call, now)
    }

    /// A block of the call's named scopes that no time ends: a kill, or a trip that waits for a person; shadow mode
    /// does not let it through only if it is a kill. It needs no clock, and counts nothing unless told to.
    ///
    /// For senders that ask often while they are blocked: look here first, and read the clock only if it says nothing.
    #[inline]
    #[must_use]
    pub fn blocked(&self, policy: &Policy, call: &Call) -> Option<Cause> {
        let Some(route) = policy.route_rules(call.route) else { return Some(Cause::Stale) };
        let words = route.words();
        if Word::are_quiet(words) {
            return None;
        }
        endless_block(policy, route, words)
    }

    /// As [`Breaker::blocked`], and counts the call as refused if it is.
    #[inline]
    #[must_use]
    pub fn refuse_blocked(&self, policy: &Policy, call: &Call) -> Option<Cause> {
        let cause = self.blocked(policy, call)?;
        if let Some(route) = policy.route_rules(call.route) {
            route.count(Count::Blocked);
        }
        Some(cause)
    }

    /// What became of the calls of a named scope. `None` if the policy does not count there.
    #[must_use]
    pub fn counts(&self, policy: &Policy, scope: &Scope) -> Option<ScopeCounts> {
        Some(policy.named(scope)?.rules.counts.as_ref()?.read())
    }

    /// As [`Breaker::counts`], of the limits of all keys of the dimension that `parent` declares.
    #[must_use]
    pub fn key_counts(
        &self,
        policy: &Policy,
        parent: &Scope,
        dimension: &str,
    ) -> Option<ScopeCounts> {
        Some(policy.dimension(parent, dimension)?.rules.counts.as_ref()?.read())
    }

    /// The last look: does what the pass was given under still hold?
    ///
    /// Any block that stands now denies, and so does a gate that moved since (`Stale`). A reducing
    /// call is denied only by a cut, a call that shadow mode let through only by a kill.
    /// A key that lost its cell meanwhile is looked for again and judged by where it stands now.
    ///
    /// By itself this proves nothing about a kill that comes a moment later:
    /// [`Sender::send`](crate::Sender::send) does.
    ///
    /// # Errors
    /// The denial.
    pub fn look(&self, pass: &Pass, _now: Mono) -> Result<(), Denial> {
        let levels = [Level::Global, Level::Group, Level::Route];
        for (seat, level) in pass.named.iter().zip(levels) {
            let Some(gate) = self.named_gate(seat.cell) else { continue };
            let word = gate.word();
            if let Some(cause) = word.look_again(seat.epoch, pass.reducing, seat.shadow) {
                let place = Place { level, index: seat.cell, key: None };
                return Err(denial(place, cause, None, word.epoch()));
            }
        }
        for (seat, index) in pass.keys.iter().zip(0_u8..) {
            let Some(seat) = seat else { continue };
            let Some((cell, word)) = self.key_word(seat) else { continue };
            // In another cell than before, the epoch is another count.
            let epoch = if cell == seat.cell() { seat.epoch() } else { word.epoch() };
            if let Some(cause) = word.look_again(epoch, pass.reducing, seat.shadow()) {
                let key = Some((index, seat.key));
                let place = Place { level: Level::Key, index: u32::from(seat.table()), key };
                return Err(denial(place, cause, None, word.epoch()));
            }
        }
        Ok(())
    }

    /// Whether a *cut* stands in the pass's lineage: what severs answers already flowing.
    #[must_use]
    pub fn is_cut(&self, pass: &Pass) -> bool {
        let named = pass.named.iter().filter_map(|seat| Some(self.named_gate(seat.cell)?.word()));
        let keys = pass.keys.iter().flatten();
        let keys = keys.filter_map(|seat| Some(self.key_word(seat)?.1));
        named.chain(keys).any(Word::is_cut)
    }

    /// Raises the gate of a scope or key to at least `level`; on a killed gate it renews the stamp, so that a lift
    /// decided before misses. In force when it returns. To prove silence, call
    /// [`Senders::watch`](crate::Senders::watch) next: the fence stands there.
    ///
    /// # Errors
    /// `UnknownScope`, or `NoRoom` for a key.
    pub fn kill(
        &self,
        policy: &Policy,
        scope: &Scope,
        level: KillLevel,
        now: Mono,
    ) -> Result<Stamp, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        let word = self.order(place, Input::Kill(level), &rules.trip, now)?;
        Ok(Stamp { place, epoch: word.epoch() })
    }

    /// Undoes the kill or the trip of a stamp, if the gate has not moved since; returns the stamp of what stands
    /// after. `LiftTo::Halt` on what is no cut changes nothing.
    ///
    /// # Errors
    /// `Stale` if the gate moved on, `UnknownScope` if the policy knows the place no more.
    pub fn lift(
        &self,
        policy: &Policy,
        stamp: Stamp,
        to: LiftTo,
        now: Mono,
    ) -> Result<Stamp, OrderError> {
        let Some(rules) = policy.rules_at(stamp.place) else {
            return Err(OrderError::UnknownScope(Vec::new()));
        };
        let input = Input::Lift(stamp.epoch, to);
        let word = self.order_known(stamp.place, input, &rules.trip, now);
        match word {
            Some((_, Some(moved))) => Ok(Stamp { place: stamp.place, epoch: moved.after.epoch() }),
            Some((word, None)) if to == LiftTo::Halt && word.epoch() == stamp.epoch => Ok(stamp),
            _ => Err(OrderError::Stale),
        }
    }

    /// Trips a scope or key by hand; it holds as the scope's recovery says. A gate that is
    /// tripped already stays as it is, and its stamp is returned.
    ///
    /// # Errors
    /// `UnknownScope`, `NoRoom` for a key, `Killed`.
    pub fn trip(&self, policy: &Policy, scope: &Scope, now: Mono) -> Result<Stamp, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        let word = self.order(place, Input::Trip(By::Hand), &rules.trip, now)?;
        if matches!(word.state(), State::Killed(_)) {
            return Err(OrderError::Killed);
        }
        Ok(Stamp { place, epoch: word.epoch() })
    }

    /// Arms a tripped or half-open gate, forgives its strikes and drops an operator's mode. False
    /// if there was nothing to do.
    ///
    /// # Errors
    /// `UnknownScope`; `Killed`: a killed gate is lifted, not reset.
    pub fn reset(&self, policy: &Policy, scope: &Scope, now: Mono) -> Result<bool, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        match self.order_known(place, Input::Reset, &rules.trip, now) {
            Some((_, Some(_))) => Ok(true),
            Some((word, None)) if matches!(word.state(), State::Killed(_)) => {
                Err(OrderError::Killed)
            }
            Some((_, None)) | None => Ok(false),
        }
    }

    /// Overrides a scope's or key's mode until it is reset; `None` gives it back to the policy.
    ///
    /// # Errors
    /// `UnknownScope`, or `NoRoom` for a key.
    pub fn set_mode(
        &self,
        policy: &Policy,
        scope: &Scope,
        mode: Option<Mode>,
        now: Mono,
    ) -> Result<(), OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        self.order(place, Input::Mode(mode), &rules.trip, now).map(drop)
    }

    /// Where one scope or key stands. A key without a cell is armed.
    ///
    /// # Errors
    /// `UnknownScope`.
    pub fn standing(
        &self,
        policy: &Policy,
        scope: &Scope,
        now: Mono,
    ) -> Result<Standing, OrderError> {
        let (place, rules) = self.locate(policy, scope)?;
        let word = match place.key {
            None => self.named_gate(place.index).map(Gate::word),
            Some((_, key)) => self.table(count(place.index)).and_then(|table| {
                let cell = table.find(key)?;
                table.gate(cell).map(Gate::word)
            }),
        };
        let scope = match (place.key, scope.parent(), scope.key_parts()) {
            (Some((_, hash)), Some(parent), Some((dimension, _))) => {
                ScopeOrKey::Key { parent, dimension: dimension.to_owned(), hash }
            }
            _ => ScopeOrKey::Named(scope.clone()),
        };
        Ok(standing(scope, place, rules, word.unwrap_or_default(), now))
    }

    /// Every named scope of the policy, then every key of it whose gate is not armed.
    #[must_use]
    pub fn standings(&self, policy: &Policy, now: Mono) -> Vec<Standing> {
        let mut all = Vec::new();
        for rules in &policy.scopes {
            let Some(gate) = self.named_gate(rules.cell) else { continue };
            let place = Place { level: rules.scope.level(), index: rules.cell, key: None };
            let scope = ScopeOrKey::Named(rules.scope.clone());
            all.push(standing(scope, place, &rules.rules, gate.word(), now));
        }
        for rules in &policy.dimensions {
            let Some(table) = self.table(count(rules.table)) else { continue };
            let Some(parent) = policy.scopes.get(rules.parent) else { continue };
            for cell in 0..table.cells() {
                let word = table.gate(cell).map(Gate::word).unwrap_or_default();
                let Some(hash) = table.tag(cell).filter(|_| !word.is_armed()) else { continue };
                let key = Some((rules.index, hash));
                let place = Place { level: Level::Key, index: rules.table, key };
                let scope = ScopeOrKey::Key {
                    parent: parent.scope.clone(),
                    dimension: rules.name.clone(),
                    hash,
                };
                all.push(standing(scope, place, &rules.rules, word, now));
            }
        }
        all
    }

    /// How full the keys' tables are.
    #[must_use]
    pub fn key_usage(&self) -> KeyUsage {
        let mut usage = KeyUsage::default();
        for table in self.tables.iter().filter_map(OnceLock::get) {
            usage.held += table.held();
            usage.cells += u64::try_from(table.cells()).unwrap_or(u64::MAX);
            usage.overflowed += table.overflowed();
            usage.evicted += table.evicted();
        }
        usage
    }

    /// Remembers an instant, if it is the newest.
    pub(crate) fn note(&self, now: Mono) {
        // ordering: relaxed, for an instant stands alone.
        self.newest.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    pub(crate) fn table(&self, number: usize) -> Option<&Table> {
        self.tables.get(number)?.get().map(AsRef::as_ref)
    }

    /// Areas to sweep: the named cells, and the tables.
    pub(crate) fn areas(&self) -> usize {
        1 + self.tables.iter().take_while(|table| table.get().is_some()).count()
    }

    pub(crate) fn cells_of(&self, area: usize) -> usize {
        match area.checked_sub(1) {
            None => self.cells.len(),
            Some(number) => self.table(number).map_or(0, Table::cells),
        }
    }

    pub(crate) fn gate_of(&self, area: usize, cell: usize) -> Option<&Gate> {
        match area.checked_sub(1) {
            None => self.cells.get(cell).map(|cell| &cell.gate),
            Some(number) => self.table(number)?.gate(cell),
        }
    }

    pub(crate) fn dirty_words(&self, area: usize) -> usize {
        self.dirty_of(area).map_or(0, Dirty::len)
    }

    pub(crate) fn take_dirty(&self, area: usize, word: usize) -> u64 {
        self.dirty_of(area).map_or(0, |dirty| dirty.take(word))
    }

    pub(crate) fn mark(&self, area: usize, cell: usize) {
        if let Some(dirty) = self.dirty_of(area) {
            dirty.mark(cell);
        }
    }

    fn dirty_of(&self, area: usize) -> Option<&Dirty> {
        match area.checked_sub(1) {
            None => Some(&self.dirty),
            Some(number) => self.table(number).map(|table| &table.dirty),
        }
    }

    fn named_gate(&self, cell: u32) -> Option<&Gate> {
        self.cells.get(count(cell)).map(|cell| &cell.gate)
    }

    fn step_named(&self, cell: u32, input: Input, rule: &TripRule, now: Mono) -> Option<Moved> {
        let moved = self.named_gate(cell)?.order(input, rule, now)?;
        // A probe that is out must be looked after, should it never come back.
        if moved.before.epoch() != moved.after.epoch() || input == Input::ProbeTaken {
            self.dirty.mark(count(cell));
        }
        Some(moved)
    }

    /// A key's cell and word as they stand now; `None` if it has no cell.
    fn key_word(&self, seat: &KeySeat) -> Option<(u32, Word)> {
        let table = self.table(usize::from(seat.table()))?;
        // Out of range where the key had no cell.
        if let Some(word) = owned_word(table, count(seat.cell()), seat.key) {
            return Some((seat.cell(), word));
        }
        // A cell may change hands again while we look: twice is bad luck, more is not believed.
        for _ in 0..4 {
            let cell = table.find(seat.key)?;
            if let Some(word) = owned_word(table, cell, seat.key) {
                return Some((u32::try_from(cell).ok()?, word));
            }
        }
        None
    }

    /// The place and the rules of a scope.
    fn locate<'p>(
        &self,
        policy: &'p Policy,
        scope: &Scope,
    ) -> Result<(Place, &'p Rules), OrderError> {
        let unknown = || OrderError::UnknownScope(nearest(policy, scope));
        if let Some((dimension, label)) = scope.key_parts() {
            let parent = scope.parent().ok_or_else(unknown)?;
            let rules = policy.dimension(&parent, dimension).ok_or_else(unknown)?;
            let key = Some((rules.index, self.hash(&label)));
            Ok((Place { level: Level::Key, index: rules.table, key }, &rules.rules))
        } else {
            let rules = policy.named(scope).ok_or_else(unknown)?;
            let place = Place { level: scope.level(), index: rules.cell, key: None };
            Ok((place, &rules.rules))
        }
    }

    /// An order that may claim a key's cell; returns the word that stands after.
    fn order(
        &self,
        place: Place,
        input: Input,
        rule: &TripRule,
        now: Mono,
    ) -> Result<Word, OrderError> {
        let unknown = OrderError::UnknownScope(Vec::new());
        let Some((_, key)) = place.key else {
            let moved = self.step_named(place.index, input, rule, now);
            let stands = moved.map(|moved| moved.after);
            let word = stands.or_else(|| self.named_gate(place.index).map(Gate::word));
            return word.ok_or(unknown);
        };
        let Some(table) = self.table(count(place.index)) else { return Err(unknown) };
        match table.order(key, input, rule, now, true) {
            Ordered::Done(_, Some(moved)) => Ok(moved.after),
            Ordered::Done(cell, None) => table.gate(cell).map(Gate::word).ok_or(unknown),
            Ordered::Unknown | Ordered::NoRoom => Err(OrderError::NoRoom),
        }
    }

    /// An order that claims nothing: the word that stands, and the move if there was one.
    fn order_known(
        &self,
        place: Place,
        input: Input,
        rule: &TripRule,
        now: Mono,
    ) -> Option<(Word, Option<Moved>)> {
        let (gate, moved) = if let Some((_, key)) = place.key {
            let table = self.table(count(place.index))?;
            let Ordered::Done(cell, moved) = table.order(key, input, rule, now, false) else {
                return None;
            };
            (table.gate(cell)?, moved)
        } else {
            let moved = self.step_named(place.index, input, rule, now);
            (self.named_gate(place.index)?, moved)
        };
        Some((moved.map_or_else(|| gate.word(), |moved| moved.after), moved))
    }
}

/// The block of a lineage that no time ends.
#[inline(never)]
fn endless_block(policy: &Policy, route: &RouteRules, words: [Word; NAMED]) -> Option<Cause> {
    let reducing = route.class == Class::Reducing;
    words.into_iter().zip(route.lineage).find_map(|(word, scope)| {
        let rules = &policy.scopes.get(scope)?.rules;
        let cause = word.endless_block(reducing, &rules.trip)?;
        let shadow = word.mode().unwrap_or(rules.mode) == Mode::Shadow;
        (!shadow || matches!(cause, Cause::Killed(_))).then_some(cause)
    })
}

fn denial(place: Place, cause: Cause, wait: Option<Span>, epoch: u16) -> Denial {
    Denial { place, cause, wait, moved: false, epoch }
}

/// The word of a cell, if it is that key's: before the look, and after.
fn owned_word(table: &Table, cell: usize, key: KeyHash) -> Option<Word> {
    if table.tag(cell)? != key {
        return None;
    }
    let word = table.word(cell)?;
    (word.is_armed() || table.tag(cell)? == key).then_some(word)
}

fn standing(scope: ScopeOrKey, place: Place, rules: &Rules, word: Word, now: Mono) -> Standing {
    let word = word
        .step(Input::Elapsed, &rules.trip, now)
        .filter(|after| after.state() == State::HalfOpen)
        .unwrap_or(word);
    Standing {
        scope,
        place,
        state: word.state(),
        mode: word.mode().unwrap_or(rules.mode),
        cause: word.cause(),
        until: word.until(&rules.trip, now),
        strikes: word.strikes(),
        epoch: word.epoch(),
    }
}

fn nearest(policy: &Policy, scope: &Scope) -> Vec<Scope> {
    let named = scope.key_parts().and_then(|_| scope.parent());
    let wanted = named.as_ref().unwrap_or(scope).as_str();
    let mut near: Vec<(usize, &Scope)> = policy
        .scopes()
        .map(|known| (strsim::damerau_levenshtein(wanted, known.as_str()), known))
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, known)| known.clone()).collect()
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The answer to a call on a route that the policy does not have.
const NOWHERE: Denial = Denial {
    place: Place { level: Level::Global, index: 0, key: None },
    cause: Cause::Stale,
    wait: None,
    moved: false,
    epoch: 0,
};
/// Key dimensions of one breaker, over all policies it ever compiled.
const MAX_TABLES: usize = 256;

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OrderError::UnknownScope(near) if near.is_empty() => f.write_str("no such scope"),
            OrderError::UnknownScope(near) => {
                f.write_str("no such scope; the nearest are")?;
                near.iter().try_for_each(|scope| write!(f, " {scope}"))
            }
            OrderError::NoRoom => {
                f.write_str("no room for the key among blocked ones; kill the scope it hangs from")
            }
            OrderError::Stale => f.write_str("the gate has moved on since"),
            OrderError::Killed => f.write_str("the gate is killed; lift that first"),
        }
    }
}

impl std::error::Error for OrderError {}
