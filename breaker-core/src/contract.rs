//! CONTRACT STUB: signatures that breaker-proxy builds on. To be replaced by the real rooms.
use crate::time::{Mono, Span};
use std::num::NonZeroU64;

/// ---- scope.rs ----
/// A checked path: `/`, `/pay`, `/pay/orders`, `/pay/orders/account=42`, `/pay/account=42`, `/symbol=EXC`.
/// A segment with `=` is a key (only as the last segment); the label is percent-encoded in the path where it holds
/// anything but ASCII alphanumerics and `-._~:@,+*[]()`; names are 1..=64 bytes of `[A-Za-z0-9_.-]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(Box<str>);
impl Scope {
    pub fn global() -> Scope {
        todo!()
    }
    pub fn parse(_path: &str) -> Result<Scope, ScopeError> {
        todo!()
    }
    /// The key scope below this one: appends `dimension=label`, encoding the label. Labels: 1..=256 bytes, any bytes.
    pub fn key(&self, _dimension: &str, _label: &[u8]) -> Result<Scope, ScopeError> {
        todo!()
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    pub fn level(&self) -> Level {
        todo!()
    }
    /// Dimension and decoded label of a key scope.
    pub fn key_parts(&self) -> Option<(&str, Vec<u8>)> {
        todo!()
    }
    /// What it hangs from; `None` for `/`.
    pub fn parent(&self) -> Option<Scope> {
        todo!()
    }
}
// + Display, FromStr
/// Names the problem and the mend, as a lower-case fragment. #[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeError {
    pub problem: String,
}

/// ---- facts.rs ---- (all Copy, Debug, Eq, Hash)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    Global,
    Group,
    Route,
    Key,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Normal,
    Reducing,
}
/// Halt < Cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KillLevel {
    Halt,
    Cut,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    Enforce,
    Shadow,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Armed,
    Tripped,
    HalfOpen,
    Killed(KillLevel),
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A limit refused: its index among the limits of its scope.
    Limit(u8),
    /// The gate is tripped: by limit `u8` of its scope, or by hand (`None`).
    Tripped(Option<u8>),
    /// The gate is half-open and all its probes are taken.
    Probing,
    Killed(KillLevel),
    /// The gate moved between the decision and the send (a kill and its lift, say): the permit is stale.
    Stale,
}
/// Where in the policy: a level, and for keys which of the call's dimensions. Opaque, Copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub level: Level,
    pub index: u32,
    pub key: Option<(u8, KeyHash)>,
}
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    pub place: Place,
    pub cause: Cause,
    /// The exact wait until the same call could pass, where one is known; never for a kill.
    pub wait: Option<Span>,
    /// This very call tripped a gate: nudge the sweeper.
    pub moved: bool,
    /// The gate's epoch when it was looked at; with `place` it identifies one trip or one kill.
    pub epoch: u16,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    Slow,
    Fault,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub place: Place,
    pub from: State,
    pub to: State,
    pub cause: Option<Cause>,
    pub at: Mono,
    pub until: Option<Mono>,
    pub epoch: u16,
    pub skipped: u16,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(NonZeroU64);
impl KeyHash {
    pub fn get(self) -> u64 {
        self.0.get()
    }
}
impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// ---- policy.rs: plain data, Clone + Debug + PartialEq ----
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PolicySpec {
    pub global: ScopeSpec,
    pub groups: Vec<GroupSpec>,
    pub routes: Vec<RouteSpec>,
}
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSpec {
    pub name: String,
    pub scope: ScopeSpec,
}
/// `group` must name a group of the spec.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSpec {
    pub name: String,
    pub group: String,
    pub class: Class,
    pub scope: ScopeSpec,
}
#[derive(Clone, Debug, PartialEq)]
pub struct ScopeSpec {
    pub limits: Vec<LimitSpec>,
    pub recover: Recover,
    pub mode: Mode,
    pub keys: Vec<KeySpec>,
}
#[derive(Clone, Debug, PartialEq)]
pub struct KeySpec {
    pub name: String,
    pub limits: Vec<LimitSpec>,
    pub recover: Recover,
    pub mode: Mode,
}
#[derive(Clone, Debug, PartialEq)]
pub struct LimitSpec {
    pub kind: LimitKind,
    pub of: Counting,
    pub on_breach: OnBreach,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// `count` per `per`, with `burst` calls at once at most.
    Rate { count: u64, per: Span, burst: u64 },
    /// At most `count` in any interval of length `length`, exactly.
    Window { count: u64, length: Span },
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    Admitted,
    Offered,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBreach {
    Refuse,
    Trip,
}
/// Default: Manual with 5 probes. `Manual`: a tripped gate waits for a person; a lift or reset by hand leads to probation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recover {
    Manual { probes: u8 },
    Probe { probes: u8, after: Span, at_most: Span },
}

/// One error of a spec. `path` such as `routes.orders.limit[1]`; all errors are reported at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    pub path: String,
    pub problem: String,
    pub hint: String,
}

pub struct Policy {
    _p: (),
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteId(pub(crate) u32);
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimension<'a> {
    pub name: &'a str,
    pub level: Level,
}
impl Policy {
    /// Routes in the order of the spec.
    pub fn routes(&self) -> impl Iterator<Item = (RouteId, &Scope)> + '_ {
        std::iter::empty()
    }
    pub fn route(&self, _name_path: &Scope) -> Option<RouteId> {
        todo!()
    }
    /// The dimensions of a route's lineage, global first, then group, then route: the order of a call's keys. At most 4.
    pub fn dimensions(&self, _route: RouteId) -> impl Iterator<Item = Dimension<'_>> + '_ {
        std::iter::empty()
    }
    pub fn class(&self, _route: RouteId) -> Class {
        todo!()
    }
    /// The named scope at a place; for a key, the scope it hangs from together with its dimension's name.
    pub fn scope_of(&self, _place: Place) -> Option<(&Scope, Option<&str>)> {
        todo!()
    }
    /// The limit a denial speaks of.
    pub fn limit_of(&self, _denial: &Denial) -> Option<&LimitSpec> {
        todo!()
    }
    /// All named scopes, for status and nearest-name hints.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> + '_ {
        std::iter::empty()
    }
}

/// ---- breaker.rs ----
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// groups and routes together
    pub scopes: u32,
    /// key cells of each dimension (rounded up to buckets)
    pub keys: u32,
}
/// 128 random bits; the embedder provides them (the core has no random source).
#[derive(Clone, Copy)]
pub struct Seed(pub [u64; 2]);
pub struct Breaker {
    _p: (),
}
#[derive(Clone, Copy, Debug)]
pub struct Call {
    route: RouteId,
    keys: [Option<KeyHash>; 4],
}
impl Call {
    pub const fn new(route: RouteId) -> Call {
        Call { route, keys: [None; 4] }
    }
    /// Key `dimension` (index in `Policy::dimensions`); out of range is ignored in release, asserted in debug.
    #[must_use]
    pub fn with_key(self, _dimension: u8, _key: KeyHash) -> Call {
        todo!()
    }
}
/// Which kill a lift undoes: place and epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    pub place: Place,
    pub epoch: u16,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiftTo {
    /// from cut down to halt
    Halt,
    /// probation: the default
    HalfOpen,
    /// straight back, on the record
    Armed,
}
/// #[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderError {
    /// with the nearest names, at most 3
    UnknownScope(Vec<Scope>),
    /// the key's bucket is full of killed keys: kill the route
    NoRoom,
    /// the epoch moved on: somebody killed again
    Stale,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub scope: ScopeOrKey,
    pub place: Place,
    pub state: State,
    pub mode: Mode,
    pub cause: Option<Cause>,
    pub until: Option<Mono>,
    pub strikes: u8,
    pub epoch: u16,
}
/// A named scope, or a key of which the core knows only the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopeOrKey {
    Named(Scope),
    Key { parent: Scope, dimension: String, hash: KeyHash },
}

impl Breaker {
    /// Allocates every cell it will ever have.
    pub fn new(_capacity: Capacity, _seed: Seed) -> Breaker {
        todo!()
    }
    pub fn compile(&self, _spec: &PolicySpec) -> Result<Policy, Vec<PolicyError>> {
        todo!()
    }
    /// Same label, same hash, for the life of this breaker.
    pub fn hash(&self, _label: &[u8]) -> KeyHash {
        todo!()
    }
    pub fn admit<'b>(&'b self, _policy: &Policy, _call: Call, _now: Mono) -> Verdict<'b> {
        todo!()
    }
    /// The last look: is what the pass was given under still so? SeqCst side of the handshake in sending.rs.
    pub fn look(&self, _pass: &Pass, _now: Mono) -> Result<(), Denial> {
        todo!()
    }
    /// As `look`, but asks only whether a *cut* stands in the lineage: what severs answers already flowing.
    pub fn is_cut(&self, _pass: &Pass) -> bool {
        todo!()
    }
    /// Raises the gate to at least `level`; on a killed gate re-stamps it. In force when it returns.
    pub fn kill(
        &self,
        _policy: &Policy,
        _scope: &Scope,
        _level: KillLevel,
        _now: Mono,
    ) -> Result<Stamp, OrderError> {
        todo!()
    }
    /// Acts only if the stamp's epoch is still the gate's.
    pub fn lift(
        &self,
        _policy: &Policy,
        _stamp: Stamp,
        _to: LiftTo,
        _now: Mono,
    ) -> Result<(), OrderError> {
        todo!()
    }
    /// By hand: holds as the scope's recovery says (`Manual`: until reset).
    pub fn trip(&self, _policy: &Policy, _scope: &Scope, _now: Mono) -> Result<Stamp, OrderError> {
        todo!()
    }
    /// tripped or half-open → armed. A killed gate is not reset: it is lifted. Ok(false): nothing to do.
    pub fn reset(&self, _policy: &Policy, _scope: &Scope, _now: Mono) -> Result<bool, OrderError> {
        todo!()
    }
    pub fn standing(
        &self,
        _policy: &Policy,
        _scope: &Scope,
        _now: Mono,
    ) -> Result<Standing, OrderError> {
        todo!()
    }
    /// Every named scope, then every key that is not armed. Computed on read: an elapsed hold shows half-open.
    pub fn standings(&self, _policy: &Policy, _now: Mono) -> Vec<Standing> {
        todo!()
    }
    /// (keys held, key cells, calls that had to share an overflow cell) over all dimensions
    pub fn key_usage(&self) -> KeyUsage {
        todo!()
    }
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage {
    pub held: u64,
    pub cells: u64,
    pub overflowed: u64,
}

/// ---- permit.rs ----
#[must_use]
pub enum Verdict<'b> {
    Allow(Permit<'b>),
    Deny(Denial),
}
#[must_use]
pub struct Permit<'b> {
    breaker: &'b Breaker,
}
/// What the last look needs: the lineage's cells and epochs, and the class. Copy, no lifetime; no allocation.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    _p: (),
}
impl Permit<'_> {
    pub fn pass(&self) -> Pass {
        todo!()
    }
    /// Counts a probe's outcome; true: a gate moved.
    pub fn settle(self, _outcome: Outcome, _now: Mono) -> bool {
        todo!()
    }
    /// The denial that shadow mode let through.
    pub fn shadowed(&self) -> Option<&Denial> {
        let _ = self.breaker;
        todo!()
    }
}
// Drop for Permit: gives its probe back.

/// ---- sending.rs ---- the store-load handshake of DESIGN 18
/// One mark for each sending thread, each on its own cache line.
pub struct Senders {
    _p: (),
}
/// The one writer of one mark. !Sync; Send.
pub struct Sender<'s> {
    _p: &'s Senders,
}
impl Senders {
    pub fn new(_count: usize) -> Senders {
        todo!()
    }
    /// Each index at most once; None when out of range or already taken.
    pub fn sender(&self, _index: usize) -> Option<Sender<'_>> {
        todo!()
    }
    /// After a gate moved: which senders were inside a send that began before. Pairs with the mark by SeqCst.
    pub fn watch(&self) -> Watch<'_> {
        todo!()
    }
}
impl Sender<'_> {
    /// Marks, looks (`breaker.look`), runs `write` if the gates still allow, unmarks (also on panic).
    pub fn send<R>(
        &self,
        _breaker: &Breaker,
        _pass: &Pass,
        _now: Mono,
        _write: impl FnOnce() -> R,
    ) -> Result<R, Denial> {
        todo!()
    }
}
pub struct Watch<'s> {
    _p: &'s Senders,
}
impl Watch<'_> {
    /// Indexes of the senders not yet seen outside. Empty: silent. Never blocks, never allocates after `watch`.
    pub fn pending(&mut self) -> impl Iterator<Item = usize> + '_ {
        std::iter::empty()
    }
    pub fn is_silent(&mut self) -> bool {
        todo!()
    }
}

/// ---- sweep.rs ----
pub struct Sweeper {
    _p: (),
}
impl Sweeper {
    pub fn new() -> Sweeper {
        todo!()
    }
    /// Steps elapsed timers and yields what moved since the last sweep (the word is the outbox). Call every 20 ms or when nudged.
    pub fn sweep(
        &mut self,
        _breaker: &Breaker,
        _policy: &Policy,
        _now: Mono,
        _out: &mut Vec<Transition>,
    ) {
        todo!()
    }
}
impl Default for Policy {
    fn default() -> Self {
        todo!()
    }
}
impl Default for ScopeSpec {
    fn default() -> Self {
        ScopeSpec {
            limits: vec![],
            recover: Recover::Manual { probes: 5 },
            mode: Mode::Enforce,
            keys: vec![],
        }
    }
}
