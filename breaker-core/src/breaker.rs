//! The house: every cell there will ever be, the decision on a call, and the orders of operators. It reads no clock and keeps no rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hasher;
use std::sync::{Arc, OnceLock};

use siphasher::sip::SipHasher13;

use crate::cell::{Cell, Charges, Dirty, Gate, Moved, Taken};
use crate::facts::{Cause, Class, Denial, KillLevel, Mode, Place, State};
use crate::gate::{Input, LiftTo, Look, TripRule, Word};
use crate::keys::{Ordered, Table, cells_for};
use crate::limit::Limit;
use crate::permit::{KeySeat, NO_CELL, NamedSeat, Pass, Permit, Probes, Verdict};
use crate::policy::{
    Counting, Draft, DraftRules, KeyRules, LimitRule, MAX_DIMENSIONS, MAX_LIMITS, OnBreach, Policy,
    PolicyError, PolicySpec, Room, RouteId, RouteRules, Rules, ScopeRules, check,
};
use crate::scope::{KeyHash, Level, Scope};
use crate::sync::Mutex;
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
    cells: Box<[Cell]>,
    dirty: Dirty,
    tables: Box<[OnceLock<Table>]>,
    registry: Mutex<Registry>,
    capacity: Capacity,
    seed: Seed,
}

/// One call, as a decision sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    route: RouteId,
    keys: [Option<KeyHash>; MAX_DIMENSIONS],
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
}

impl Call {
    /// A call without keys.
    #[must_use]
    pub const fn new(route: RouteId) -> Call {
        Call { route, keys: [None; MAX_DIMENSIONS] }
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
            cells: (0..cells).map(|_| Cell::new()).collect(),
            dirty: Dirty::new(cells),
            tables: (0..MAX_TABLES).map(|_| OnceLock::new()).collect(),
            registry: Mutex::new(Registry {
                scopes: BTreeMap::new(),
                free: (0..=capacity.scopes).rev().collect(),
                tables: BTreeMap::new(),
            }),
            capacity,
            seed,
        }
    }

    /// Checks a spec and gives it memory. What an earlier policy of this breaker had stays with it: gates by scope,
    /// debts by scope and equal limit, key tables by scope and dimension. Nothing changes on error.
    ///
    /// # Errors
    /// All errors at once, each with its path.
    pub fn compile(&self, spec: &PolicySpec) -> Result<Policy, Vec<PolicyError>> {
        let room = Room {
            scopes: count(self.capacity.scopes),
            rows: cells_for(count(self.capacity.keys)) + 1,
        };
        let draft = check(spec, room)?;
        self.registry.lock().compile(self, draft)
    }

    /// A label's hash: the same for the life of this breaker, of no meaning beyond.
    #[must_use]
    pub fn hash(&self, label: &[u8]) -> KeyHash {
        let Seed([first, second]) = self.seed;
        let mut hasher = SipHasher13::new_with_keys(first, second);
        hasher.write(label);
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
    pub fn admit<'b>(&'b self, policy: &Policy, call: Call, now: Mono) -> Verdict<'b> {
        match self.decide(policy, &call, now) {
            Ok(permit) => Verdict::Allow(permit),
            Err(denial) => Verdict::Deny(denial),
        }
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
            let epoch = if cell == seat.cell { seat.epoch } else { word.epoch() };
            if let Some(cause) = word.look_again(epoch, pass.reducing, seat.shadow) {
                let key = Some((index, seat.key));
                let place = Place { level: Level::Key, index: u32::from(seat.table), key };
                return Err(denial(place, cause, None, word.epoch()));
            }
        }
        Ok(())
    }

    /// Whether a *cut* stands in the pass's lineage: what severs answers already flowing.
    #[must_use]
    pub fn is_cut(&self, pass: &Pass) -> bool {
        let named = pass.named.iter().filter_map(|seat| Some(self.named_gate(seat.cell)?.word()));
        let keys = pass.keys.iter().flatten().filter_map(|seat| Some(self.key_word(seat)?.1));
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
        let word = self.order(place, Input::Trip(None), &rules.trip, now)?;
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
        }
        usage
    }

    pub(crate) fn settle_seat(
        &self,
        pass: &Pass,
        seat: usize,
        input: impl Fn(u16) -> Input,
        rule: &TripRule,
        now: Mono,
    ) -> bool {
        let moved = if let Some(named) = pass.named.get(seat) {
            self.step_named(named.cell, input(named.epoch), rule, now)
        } else {
            let key = pass.keys.get(seat - pass.named.len()).copied().flatten();
            key.and_then(|key| {
                let table = self.table(usize::from(key.table))?;
                table.step(count(key.cell), input(key.epoch), rule, now)
            })
        };
        moved.is_some_and(|moved| moved.before.epoch() != moved.after.epoch())
    }

    pub(crate) fn table(&self, number: usize) -> Option<&Table> {
        self.tables.get(number)?.get()
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
        if moved.before.epoch() != moved.after.epoch() {
            self.dirty.mark(count(cell));
        }
        Some(moved)
    }

    /// A key's cell and word as they stand now; `None` if it has no cell.
    fn key_word(&self, seat: &KeySeat) -> Option<(u32, Word)> {
        let table = self.table(usize::from(seat.table))?;
        // Out of range where the key had no cell.
        if let Some(word) = owned_word(table, count(seat.cell), seat.key) {
            return Some((seat.cell, word));
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

/// The decision: look, charge, probe.
impl Breaker {
    fn decide<'b>(&'b self, policy: &Policy, call: &Call, now: Mono) -> Result<Permit<'b>, Denial> {
        let nowhere = Place { level: Level::Global, index: 0, key: None };
        let unknown = denial(nowhere, Cause::Stale, None, 0);
        let route = policy.route_rules(call.route).ok_or(unknown)?;
        let reducing = route.class == Class::Reducing;
        let mut shadowed = None;
        let mut seats: Seats<'_> = std::array::from_fn(|_| None);

        for (seat, index) in seats.iter_mut().zip(route.lineage) {
            let found = self.seat_named(policy, index).ok_or(unknown)?;
            *seat = Some(found.looked(reducing, now, &mut shadowed)?);
        }
        for position in 0..MAX_DIMENSIONS {
            let found = self.seat_key(policy, route, call, position, reducing, now);
            if let (Some(found), Some(seat)) = (found, seats.get_mut(NAMED + position)) {
                *seat = Some(found.looked(reducing, now, &mut shadowed)?);
            }
        }
        let mut probes: Probes = [None; SEATS];
        if !reducing {
            self.charge(&mut seats, now, &mut shadowed)?;
            self.take_probes(&mut seats, now, &mut shadowed, &mut probes)?;
        }
        Ok(Permit { breaker: self, pass: pass(&seats, reducing), probes, shadowed })
    }

    fn seat_named<'a>(&'a self, policy: &'a Policy, index: usize) -> Option<Seat<'a>> {
        let scope = policy.scopes.get(index)?;
        let gate = self.named_gate(scope.cell)?;
        let place = Place { level: scope.level, index: scope.cell, key: None };
        Some(Seat::new(place, Some(gate), &scope.rules, 0))
    }

    fn seat_key<'a>(
        &'a self,
        policy: &'a Policy,
        route: &RouteRules,
        call: &Call,
        position: usize,
        reducing: bool,
        now: Mono,
    ) -> Option<Seat<'a>> {
        let key = (*call.keys.get(position)?)?;
        let rules = policy.dimensions.get(*route.dimensions.get(position)?)?;
        let table = self.table(count(rules.table))?;
        // A key that charges nothing needs a cell only once somebody blocks it.
        let charges = !reducing && !rules.rules.limits.is_empty();
        let cell = if charges { table.find_or_claim(key, now) } else { table.find(key) };
        if charges && cell.is_none() {
            table.count_overflow();
        }
        let place = Place { level: Level::Key, index: rules.table, key: Some((rules.index, key)) };
        let gate = cell.and_then(|cell| table.gate(cell));
        let mut seat = Seat::new(place, gate, &rules.rules, cell.unwrap_or(table.overflow_row()));
        seat.table = Some((table, key));
        Some(seat)
    }

    /// Charges narrow to wide: the keys, the route, the group, `/`.
    ///
    /// All limits are looked at first, and nothing *admitted* is charged if one refuses: what is charged and
    /// refused in a wider scope after all is only a lost race, undone exactly or forfeited. A scope's
    /// limits of *offered* calls are charged once nothing narrower refused, before its others,
    /// and never undone.
    fn charge(
        &self,
        seats: &mut Seats<'_>,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Result<(), Denial> {
        let refusal = first_refusal(seats, now);
        for at in (0..SEATS).rev() {
            let Some(seat) = seats.get_mut(at).and_then(Option::as_mut) else { continue };
            let mut breach = seat.take(Counting::Offered, now);
            match refusal {
                Some((place, found)) if place == at => breach = worse(Some(found), breach),
                Some(_) => {}
                None if breach.is_none() || seat.shadow => {
                    breach = worse(breach, seat.take(Counting::Admitted, now));
                }
                None => {}
            }
            let Some(breach) = breach else { continue };
            let denial = self.breached(seat, breach, now);
            if seat.shadow {
                shadowed.get_or_insert(denial);
            } else {
                undo(seats);
                return Err(denial);
            }
        }
        Ok(())
    }

    /// Trips the gate if the limit says so, and words the denial.
    fn breached(&self, seat: &Seat<'_>, breach: Breach, now: Mono) -> Denial {
        let refused = denial(seat.place, Cause::Limit(breach.limit), Some(breach.wait), seat.epoch);
        let Some(gate) = seat.gate.filter(|_| breach.trips) else { return refused };
        let input = Input::Trip(Some(breach.limit));
        let moved = match seat.table {
            // Under the bucket's lock: the cell may have changed hands since it was found.
            Some((table, key)) => match table.order(key, input, &seat.rules.trip, now, false) {
                Ordered::Done(_, moved) => moved,
                Ordered::Unknown | Ordered::NoRoom => None,
            },
            None => self.step_named(seat.place.index, input, &seat.rules.trip, now),
        };
        let word = moved.map_or_else(|| gate.word(), |moved| moved.after);
        match word.look(false, &seat.rules.trip, now) {
            Look::Blocked(cause, hold) => Denial {
                // Both must be over: the hold, and what the limit asks.
                wait: hold.map(|hold| hold.max(breach.wait)),
                moved: moved.is_some(),
                ..denial(seat.place, cause, None, word.epoch())
            },
            Look::Free | Look::Probe => refused,
        }
    }

    fn take_probes(
        &self,
        seats: &mut Seats<'_>,
        now: Mono,
        shadowed: &mut Option<Denial>,
        probes: &mut Probes,
    ) -> Result<(), Denial> {
        for at in 0..SEATS {
            let Some(seat) = seats.get_mut(at).and_then(Option::as_mut) else { continue };
            if !seat.probe {
                continue;
            }
            match self.take_probe(seat, now) {
                Ok(taken) => {
                    if let Some(probe) = probes.get_mut(at) {
                        *probe = taken.then_some(seat.rules.trip);
                    }
                }
                Err(denial) if seat.shadow && !matches!(denial.cause, Cause::Killed(_)) => {
                    shadowed.get_or_insert(denial);
                }
                Err(denial) => {
                    let pass = pass(seats, false);
                    for (at, rule) in probes.iter().enumerate() {
                        if let Some(rule) = rule {
                            self.settle_seat(&pass, at, Input::ProbeAbandoned, rule, now);
                        }
                    }
                    undo(seats);
                    return Err(denial);
                }
            }
        }
        Ok(())
    }

    /// Takes a probe, if the gate still wants one.
    fn take_probe(&self, seat: &mut Seat<'_>, now: Mono) -> Result<bool, Denial> {
        let Some(gate) = seat.gate else { return Ok(false) };
        let rule = &seat.rules.trip;
        loop {
            let word = gate.word();
            seat.epoch = word.epoch();
            match word.look(false, rule, now) {
                Look::Free => return Ok(false),
                Look::Blocked(cause, wait) => {
                    return Err(denial(seat.place, cause, wait, seat.epoch));
                }
                Look::Probe if word.state() == State::Tripped => {
                    self.step_seat(seat, Input::Elapsed, now);
                }
                Look::Probe => {
                    if let Some(moved) = self.step_seat(seat, Input::ProbeTaken, now) {
                        seat.epoch = moved.after.epoch();
                        return Ok(true);
                    }
                }
            }
            // Each turn means that the gate moved: half-open in a hurry, or the last probe gone.
        }
    }

    fn step_seat(&self, seat: &Seat<'_>, input: Input, now: Mono) -> Option<Moved> {
        match seat.table {
            Some((table, _)) => table.step(seat.row, input, &seat.rules.trip, now),
            None => self.step_named(seat.place.index, input, &seat.rules.trip, now),
        }
    }
}

/// One scope of a call's lineage, as met.
struct Seat<'a> {
    place: Place,
    /// `None` for a key without a cell of its own.
    gate: Option<&'a Gate>,
    table: Option<(&'a Table, KeyHash)>,
    rules: &'a Rules,
    /// The row of the limits' memory that is its own; for a key also its cell.
    row: usize,
    epoch: u16,
    shadow: bool,
    probe: bool,
    /// What its *admitted* limits were charged.
    taken: [Option<Taken>; MAX_LIMITS],
}

/// Global, group, route, and the keys.
type Seats<'a> = [Option<Seat<'a>>; SEATS];

/// A limit that said no.
#[derive(Clone, Copy)]
struct Breach {
    limit: u8,
    wait: Span,
    trips: bool,
}

impl<'a> Seat<'a> {
    fn new(place: Place, gate: Option<&'a Gate>, rules: &'a Rules, row: usize) -> Seat<'a> {
        let taken = [None; MAX_LIMITS];
        let shadow = rules.mode == Mode::Shadow;
        Seat { place, gate, table: None, rules, row, epoch: 0, shadow, probe: false, taken }
    }

    /// Looks at the gate. What shadow mode lets through is noted, but a kill always denies.
    fn looked(
        mut self,
        reducing: bool,
        now: Mono,
        shadowed: &mut Option<Denial>,
    ) -> Result<Seat<'a>, Denial> {
        let Some(gate) = self.gate else { return Ok(self) };
        let mut word = gate.word();
        if let Some((table, key)) = self.table
            && !word.is_armed()
            && table.tag(self.row) != Some(key)
        {
            // The cell changed hands just now, and it is not we who are blocked.
            word = Word::default();
            self.gate = None;
        }
        self.epoch = word.epoch();
        if let Some(mode) = word.mode() {
            self.shadow = mode == Mode::Shadow;
        }
        match word.look(reducing, &self.rules.trip, now) {
            Look::Free => {}
            Look::Probe => self.probe = true,
            Look::Blocked(cause, wait) => {
                let denial = denial(self.place, cause, wait, self.epoch);
                if !self.shadow || matches!(cause, Cause::Killed(_)) {
                    return Err(denial);
                }
                shadowed.get_or_insert(denial);
            }
        }
        Ok(self)
    }

    /// Charges the limits that count `of`, up to the first that refuses if they are of *admitted*
    /// calls, all of them if of *offered*.
    fn take(&mut self, of: Counting, now: Mono) -> Option<Breach> {
        let mut breach = None;
        for (index, limit) in (0_u8..).zip(&self.rules.limits) {
            if limit.spec.of != of {
                continue;
            }
            match limit.charges.take(self.row, now) {
                Ok(taken) => {
                    if let (Counting::Admitted, Some(slot)) =
                        (of, self.taken.get_mut(usize::from(index)))
                    {
                        *slot = Some(taken);
                    }
                }
                Err(wait) => {
                    breach = worse(breach, Some(self.breach(index, limit, wait)));
                    if of == Counting::Admitted {
                        break;
                    }
                }
            }
        }
        breach
    }

    fn peek(&self, now: Mono) -> Option<Breach> {
        let mut breach = None;
        for (index, limit) in (0_u8..).zip(&self.rules.limits) {
            if let Err(wait) = limit.charges.peek(self.row, now) {
                breach = worse(breach, Some(self.breach(index, limit, wait)));
            }
        }
        breach
    }

    fn breach(&self, limit: u8, rule: &LimitRule, wait: Span) -> Breach {
        // Without a cell of its own (so without a gate) a key shares its limits: they throttle and never trip.
        let trips = rule.spec.on_breach == OnBreach::Trip && self.gate.is_some();
        Breach { limit, wait, trips }
    }
}

/// The narrowest scope that refuses, by a look only. Its wait is the longest of all that refuse: no
/// earlier could the same call pass.
fn first_refusal(seats: &Seats<'_>, now: Mono) -> Option<(usize, Breach)> {
    let mut first: Option<(usize, Breach)> = None;
    for (at, seat) in seats.iter().enumerate().rev() {
        let Some(seat) = seat.as_ref().filter(|seat| !seat.shadow) else { continue };
        if let Some(breach) = seat.peek(now) {
            let (_, found) = first.get_or_insert((at, breach));
            found.wait = found.wait.max(breach.wait);
        }
    }
    first
}

/// Of two breaches of one scope the one that trips, else the one that waits longer; with the longer wait.
fn worse(one: Option<Breach>, other: Option<Breach>) -> Option<Breach> {
    let (Some(a), Some(b)) = (one, other) else { return one.or(other) };
    let b_leads = if a.trips == b.trips { b.wait > a.wait } else { b.trips };
    let lead = if b_leads { b } else { a };
    Some(Breach { wait: a.wait.max(b.wait), ..lead })
}

fn undo(seats: &mut Seats<'_>) {
    for seat in seats.iter_mut().flatten() {
        for (taken, limit) in seat.taken.iter_mut().zip(&seat.rules.limits) {
            if let Some(taken) = taken.take() {
                limit.charges.undo(seat.row, taken);
            }
        }
    }
}

fn pass(seats: &Seats<'_>, reducing: bool) -> Pass {
    let [global, group, route, ..] = seats;
    let named = [global, group, route].map(|seat| match seat {
        Some(seat) => NamedSeat { cell: seat.place.index, epoch: seat.epoch, shadow: seat.shadow },
        None => NamedSeat { cell: 0, epoch: 0, shadow: false },
    });
    let mut keys = [None; MAX_DIMENSIONS];
    for (key, seat) in keys.iter_mut().zip(seats.iter().skip(NAMED)) {
        let Some(seat) = seat else { continue };
        let Some((_, hash)) = seat.place.key else { continue };
        let own = seat.gate.and(u32::try_from(seat.row).ok());
        let cell = own.unwrap_or(NO_CELL);
        // There are 256 tables at most.
        let Ok(table) = u8::try_from(seat.place.index) else { continue };
        let (epoch, shadow) = (seat.epoch, seat.shadow);
        *key = Some(KeySeat { key: hash, table, cell, epoch, shadow });
    }
    Pass { reducing, named, keys }
}

fn denial(place: Place, cause: Cause, wait: Option<Span>, epoch: u16) -> Denial {
    Denial { place, cause, wait, moved: false, epoch }
}

/// The word of a cell, if it is that key's: before the look, and after.
fn owned_word(table: &Table, cell: usize, key: KeyHash) -> Option<Word> {
    if table.tag(cell)? != key {
        return None;
    }
    let word = table.gate(cell)?.word();
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

/// Who has which memory, by name.
struct Registry {
    scopes: BTreeMap<Scope, ScopeEntry>,
    /// Cells that no scope has.
    free: Vec<u32>,
    tables: BTreeMap<(Scope, String), TableEntry>,
}

struct ScopeEntry {
    cell: u32,
    /// Shared with every policy that names the scope.
    claim: Arc<()>,
    charges: Vec<Known>,
}

struct TableEntry {
    table: u32,
    charges: Vec<Known>,
}

/// A limit's memory, and what it counts.
#[derive(Clone)]
struct Known {
    of: Counting,
    charges: Arc<Charges>,
}

impl Registry {
    fn compile(&mut self, breaker: &Breaker, draft: Draft) -> Result<Policy, Vec<PolicyError>> {
        self.make_room(breaker, &draft)?;
        let mut scopes = Vec::new();
        for draft in draft.scopes {
            let Some(entry) = self.scope(&draft.scope) else { return Err(Vec::new()) };
            let limits = memory(&mut entry.charges, &draft.rules, 1, Charges::for_scope);
            scopes.push(ScopeRules {
                level: draft.scope.level(),
                scope: draft.scope,
                cell: entry.cell,
                _claim: Arc::clone(&entry.claim),
                rules: Rules { trip: draft.rules.trip, mode: draft.rules.mode, limits },
            });
        }
        let mut dimensions = Vec::new();
        let cells = cells_for(count(breaker.capacity.keys));
        for draft in draft.dimensions {
            let parent = scopes.get(draft.parent).map(|rules| rules.scope.clone());
            let name = (parent.unwrap_or_else(Scope::global), draft.name.clone());
            let next = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
            let entry = self
                .tables
                .entry(name)
                .or_insert_with(|| TableEntry { table: next, charges: Vec::new() });
            let Some(slot) = breaker.tables.get(count(entry.table)) else { return Err(Vec::new()) };
            let table = slot.get_or_init(|| Table::new(cells));
            let rows = |limit| Charges::for_rows(limit, cells + 1);
            let limits = memory(&mut entry.charges, &draft.rules, 2, rows);
            let watched = entry.charges.iter().map(|known| Arc::clone(&known.charges)).collect();
            table.watch_charges(&watched);
            dimensions.push(KeyRules {
                name: draft.name,
                parent: draft.parent,
                table: entry.table,
                index: draft.index,
                rules: Rules { trip: draft.rules.trip, mode: draft.rules.mode, limits },
            });
        }
        Ok(Policy::new(scopes, dimensions, draft.routes))
    }

    /// Finds cells and tables for what is new, before anything is changed.
    fn make_room(&mut self, breaker: &Breaker, draft: &Draft) -> Result<(), Vec<PolicyError>> {
        let named: BTreeSet<&Scope> = draft.scopes.iter().map(|draft| &draft.scope).collect();
        let new = named.iter().filter(|scope| !self.scopes.contains_key(**scope)).count();
        if new > self.free.len() {
            let gates = |cell: u32| breaker.named_gate(cell).map(Gate::word).unwrap_or_default();
            let free = &mut self.free;
            self.scopes.retain(|scope, entry| {
                let kept = named.contains(scope)
                    || Arc::strong_count(&entry.claim) > 1
                    || !gates(entry.cell).is_fresh();
                if !kept {
                    free.push(entry.cell);
                }
                kept
            });
        }
        let mut errors = Vec::new();
        if new > self.free.len() {
            errors.push(PolicyError {
                path: "routes".to_owned(),
                problem: format!(
                    "{new} new scopes, and room for {}: earlier policies are in use, or their \
                     scopes blocked",
                    self.free.len()
                ),
                hint: "raise the capacity for scopes, or lift what is blocked".to_owned(),
            });
        }
        let unknown = draft.dimensions.iter().filter(|key| {
            let parent = draft.scopes.get(key.parent).map(|draft| draft.scope.clone());
            parent.is_some_and(|parent| !self.tables.contains_key(&(parent, key.name.clone())))
        });
        let tables = self.tables.len() + unknown.count();
        if tables > MAX_TABLES {
            errors.push(PolicyError {
                path: "keys".to_owned(),
                problem: format!(
                    "{tables} key dimensions since the start, and room for {MAX_TABLES}"
                ),
                hint: "restart to forget those that no policy declares any more".to_owned(),
            });
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn scope(&mut self, scope: &Scope) -> Option<&mut ScopeEntry> {
        if !self.scopes.contains_key(scope) {
            let cell = self.free.pop()?;
            let entry = ScopeEntry { cell, claim: Arc::new(()), charges: Vec::new() };
            self.scopes.insert(scope.clone(), entry);
        }
        self.scopes.get_mut(scope)
    }
}

/// The memory of checked limits: what is known of an equal limit of the same scope, else new. Memory that
/// neither this policy nor a living one charges is forgotten.
fn memory(
    known: &mut Vec<Known>,
    rules: &DraftRules,
    shares: usize,
    new: impl Fn(Limit) -> Charges,
) -> Box<[LimitRule]> {
    let mut old = std::mem::take(known);
    let mut limits = Vec::new();
    for (spec, limit) in &rules.limits {
        let equal = |known: &Known| known.of == spec.of && known.charges.limit() == *limit;
        let found = match old.iter().position(equal) {
            Some(index) => old.swap_remove(index),
            None => Known { of: spec.of, charges: Arc::new(new(*limit)) },
        };
        limits.push(LimitRule { spec: spec.clone(), charges: Arc::clone(&found.charges) });
        known.push(found);
    }
    known.extend(old.into_iter().filter(|known| Arc::strong_count(&known.charges) > shares));
    limits.into()
}

/// Key dimensions of one breaker, over all policies it ever compiled.
const MAX_TABLES: usize = 256;
/// Named seats of a lineage.
const NAMED: usize = 3;
/// All seats of a lineage.
const SEATS: usize = NAMED + MAX_DIMENSIONS;

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
