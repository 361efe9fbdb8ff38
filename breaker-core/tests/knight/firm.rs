//! The trading firm: one breaker, one route and one cancel route for each server, and a book of what became of every order. It sets no limits of its own.

use breaker_core::{
    Breaker, Call, Capacity, Class, Denial, DetectorKind, GroupSpec, KeyHash, KeySpec, KillLevel,
    Level, LiftTo, LimitSpec, Mode, Mono, Novel, Outcome, Policy, PolicySpec, Recover, RouteId,
    RouteSpec, Scope, ScopeSpec, Seed, Settlement, Stamp, Verdict,
};

use crate::market::{
    ACCOUNTS, Child, LOSS, PARENTS, PRICE, Parent, Plain, QUANTITY, SERVERS, SYMBOLS, parents,
};

/// The dimensions, in the order of a call's keys.
pub(crate) const PARENT: u8 = 0;
pub(crate) const SYMBOL: u8 = 1;
pub(crate) const ACCOUNT: u8 = 2;

/// The limits of one run.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    pub(crate) firm: Vec<LimitSpec>,
    /// Of each server.
    pub(crate) server: Vec<LimitSpec>,
    /// Of each parent.
    pub(crate) parent: Vec<LimitSpec>,
    /// Of each symbol.
    pub(crate) symbol: Vec<LimitSpec>,
    /// Which keys an order carries.
    pub(crate) keys: Keys,
    /// What an order weighs.
    pub(crate) weight: Weight,
    /// Of each parent, in a decision of its own before the order's, weighed in parts per million of the quantity
    /// that the parent asked for. A call has one weight, and here each parent has a quantity of its own.
    pub(crate) out_against_in: Vec<LimitSpec>,
    /// Of each server: a reject of a class never seen there is told.
    pub(crate) alerts: bool,
    /// Room for so many keys of each dimension, if more than 4,096.
    pub(crate) room: u32,
}

/// What an order weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Weight {
    #[default]
    Cents,
    Shares,
}

/// Which keys an order carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Keys {
    /// None: the controls of this run ask for none.
    #[default]
    None,
    /// Parent, symbol and account.
    All,
    /// Symbol and account: nobody told the parent's name.
    Untagged,
}

/// The firm under one policy.
pub(crate) struct Firm {
    pub(crate) breaker: Breaker,
    pub(crate) policy: Policy,
    pub(crate) parents: Vec<Parent>,
    keys: Keys,
    weight: Weight,
    /// Where an order is held against its parent first, if it is.
    check: Option<RouteId>,
    servers: Vec<RouteId>,
    cancels: Vec<RouteId>,
    parent_keys: Vec<KeyHash>,
    symbol_keys: Vec<KeyHash>,
    account_keys: Vec<KeyHash>,
}

/// What became of the orders. What the venue saw and what was refused are counted apart, so that they can be held
/// against what was offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book {
    /// By server: children of the defect.
    pub(crate) offered: [u64; SERVERS],
    /// By server: children that reached the venue.
    pub(crate) leaked: [u64; SERVERS],
    /// By server: children refused.
    pub(crate) refused: [u64; SERVERS],
    /// Orders refused against their parents, in a decision of its own.
    pub(crate) checked: u64,
    /// By the level that refused: global, group, route, key.
    pub(crate) refused_at: [u64; 4],
    /// Shares and cents that reached the venue.
    pub(crate) shares: u64,
    pub(crate) cents: u64,
    /// By parent: shares and children that reached the venue.
    pub(crate) filled: Vec<u64>,
    pub(crate) children: Vec<u64>,
    pub(crate) plain_offered: u64,
    pub(crate) plain_sent: u64,
    pub(crate) plain_refused: u64,
    pub(crate) cancels_offered: u64,
    pub(crate) cancels_passed: u64,
    /// Cancels among them for what had just been refused.
    pub(crate) cancels_halted: u64,
    /// Each trip: when, and which scope.
    pub(crate) trips: Vec<(Mono, String)>,
}

impl Firm {
    pub(crate) fn new(rules: Rules) -> Firm {
        let keys = rules.room.max(4_096);
        let breaker = Breaker::new(Capacity { scopes: 32, keys }, Seed([2012, 8]));
        let policy = breaker.compile(&spec(&rules)).unwrap();
        let route = |name: String| policy.route(&Scope::parse(&name).unwrap()).unwrap();
        let keys = |name: &str, count: usize| {
            (0..count).map(|number| breaker.hash(format!("{name}{number}").as_bytes())).collect()
        };
        Firm {
            servers: (1..=SERVERS).map(|number| route(format!("/firm/server{number}"))).collect(),
            cancels: (1..=SERVERS).map(|number| route(format!("/firm/cancel{number}"))).collect(),
            parents: parents(),
            keys: rules.keys,
            weight: rules.weight,
            check: (!rules.out_against_in.is_empty()).then(|| route("/parents/check".into())),
            parent_keys: keys("P", PARENTS),
            symbol_keys: keys("S", SYMBOLS),
            account_keys: keys("A", ACCOUNTS),
            breaker,
            policy,
        }
    }

    /// Decides on a child, and has it filled at once if it passes.
    pub(crate) fn send(&self, child: &Child) -> Result<(), Denial> {
        let call = self.call_of(self.servers[child.server], child);
        self.decide(call, self.parent_keys[child.parent], child.shares, QUANTITY, child.at)
    }

    /// Decides on a cancel of a child.
    pub(crate) fn cancel(&self, child: &Child) -> Result<(), Denial> {
        self.order(self.call_of(self.cancels[child.server], child), child.shares, child.at)
    }

    /// Decides on an order of the normal flow.
    pub(crate) fn send_plain(&self, order: &Plain) -> Result<(), Denial> {
        let parent = self.breaker.hash_u64(order.parent);
        let call = self.call(self.servers[order.server], parent, order.symbol, order.account);
        self.decide(call, parent, order.shares, order.quantity, order.at)
    }

    /// An order of no parent of the 212, which passes and is rejected by the venue for a reason of this number.
    pub(crate) fn rejected(&self, server: usize, reason: u16, now: Mono) {
        let parent = self.breaker.hash_u64(now.as_nanos());
        let call = self.call(self.servers[server], parent, server, 1).weighing(PRICE * 100);
        let Verdict::Allow(permit) = self.breaker.admit(&self.policy, call, now) else {
            panic!("an order before the open was refused")
        };
        permit.settle_as(Settlement { class: reason, ..Settlement::of(Outcome::Fault) }, now);
    }

    /// Where the gate at a path stands, as a stamp that a lift can name.
    pub(crate) fn stamp(&self, path: &str, now: Mono) -> Stamp {
        let scope = Scope::parse(path).unwrap();
        let standing = self.breaker.standing(&self.policy, &scope, now).unwrap();
        standing.stamp()
    }

    /// An operator's lift.
    pub(crate) fn lift(&self, path: &str, to: LiftTo, now: Mono) {
        self.breaker.lift(&self.policy, self.stamp(path, now), to, now).unwrap();
    }

    /// The path of the scope of a denial; of a key, its dimension.
    pub(crate) fn path(&self, denial: &Denial) -> String {
        match self.policy.scope_of(denial.place) {
            Some((scope, Some(dimension))) => format!("{scope}/{dimension}"),
            Some((scope, None)) => scope.to_string(),
            None => "nowhere".into(),
        }
    }

    fn call_of(&self, route: RouteId, child: &Child) -> Call {
        let facts = self.parents[child.parent];
        self.call(route, self.parent_keys[child.parent], facts.symbol, facts.account)
    }

    fn call(&self, route: RouteId, parent: KeyHash, symbol: usize, account: usize) -> Call {
        let call = Call::new(route);
        if self.keys == Keys::None {
            return call;
        }
        let call = call
            .with_key(SYMBOL, self.symbol_keys[symbol])
            .with_key(ACCOUNT, self.account_keys[account]);
        if self.keys == Keys::All { call.with_key(PARENT, parent) } else { call }
    }

    /// Holds an order against its parent, if that is asked for, and then decides on it. An order that is refused
    /// after all was not sent: what it took of its parent's quantity is given back.
    fn decide(
        &self,
        call: Call,
        parent: KeyHash,
        shares: u64,
        quantity: u64,
        now: Mono,
    ) -> Result<(), Denial> {
        let Some(check) = self.check.filter(|_| self.keys == Keys::All) else {
            return self.order(call, shares, now);
        };
        let check = Call::new(check).with_key(0, parent).weighing(shares * 1_000_000 / quantity);
        match self.breaker.admit(&self.policy, check, now) {
            Verdict::Deny(denial) => Err(denial),
            Verdict::Allow(permit) => {
                let verdict = self.order(call, shares, now);
                let weight = verdict.is_err().then_some(0);
                permit.settle_as(Settlement { weight, ..Settlement::of(Outcome::Good) }, now);
                verdict
            }
        }
    }

    fn order(&self, call: Call, shares: u64, now: Mono) -> Result<(), Denial> {
        let weight = match self.weight {
            Weight::Cents => shares * PRICE,
            Weight::Shares => shares,
        };
        match self.breaker.admit(&self.policy, call.weighing(weight), now) {
            Verdict::Allow(permit) => {
                permit.settle(Outcome::Good, now);
                Ok(())
            }
            Verdict::Deny(denial) => Err(denial),
        }
    }

    /// The breaker counted what the book says: orders offered to it and refused, over all servers.
    pub(crate) fn agrees(&self, book: &Book) {
        let mut counted = (0, 0);
        for number in 1..=SERVERS {
            let scope = Scope::parse(&format!("/firm/server{number}")).unwrap();
            let counts = self.breaker.counts(&self.policy, &scope).unwrap();
            let refused = counts.blocked + counts.throttled;
            counted.0 += refused + counts.good + counts.slow + counts.fault + counts.dropped;
            counted.1 += refused;
        }
        let offered = book.offered.iter().sum::<u64>() + book.plain_offered - book.checked;
        let refused = book.refused.iter().sum::<u64>() + book.plain_refused - book.checked;
        assert_eq!(counted, (offered, refused), "offered and refused, as the breaker counted");
    }

    /// Whether an order was refused before it came to its server's route: against its parent.
    pub(crate) fn is_check(&self, denial: &Denial) -> bool {
        self.policy.scope_of(denial.place).is_some_and(|(scope, _)| scope.as_str() == "/parents")
    }
}

impl Book {
    pub(crate) fn new() -> Book {
        Book { filled: vec![0; PARENTS], children: vec![0; PARENTS], ..Book::default() }
    }

    /// Writes down a child and its verdict.
    pub(crate) fn write(
        &mut self,
        child: &Child,
        verdict: &Result<(), Denial>,
        firm: Option<&Firm>,
    ) {
        self.offered[child.server] += 1;
        match verdict {
            Ok(()) => {
                self.leaked[child.server] += 1;
                self.shares += child.shares;
                self.cents += child.shares * PRICE;
                self.filled[child.parent] += child.shares;
                self.children[child.parent] += 1;
            }
            Err(denial) => {
                self.refused[child.server] += 1;
                let level = match denial.place.level {
                    Level::Global => 0,
                    Level::Group => 1,
                    Level::Route => 2,
                    Level::Key => 3,
                };
                self.refused_at[level] += 1;
                self.checked += u64::from(firm.is_some_and(|firm| firm.is_check(denial)));
                if let Some(firm) = firm.filter(|_| denial.moved) {
                    self.trips.push((child.at, firm.path(denial)));
                }
            }
        }
    }

    /// Children that reached the venue, over all servers.
    pub(crate) fn leaks(&self) -> u64 {
        self.leaked.iter().sum()
    }

    /// Dollars lost.
    pub(crate) fn loss(&self) -> u64 {
        self.leaks() * LOSS
    }

    /// A trip by hand, as a feed makes it that the core does not have.
    pub(crate) fn trip(&mut self, firm: &Firm, path: &str, now: Mono) {
        let scope = Scope::parse(path).unwrap();
        let before = firm.stamp(path, now);
        let after = firm.breaker.trip(&firm.policy, &scope, now).unwrap();
        if before != after {
            self.trips.push((now, path.into()));
        }
    }

    /// A kill by hand.
    pub(crate) fn kill(&mut self, firm: &Firm, path: &str, now: Mono) {
        let scope = Scope::parse(path).unwrap();
        firm.breaker.kill(&firm.policy, &scope, KillLevel::Halt, now).unwrap();
        self.trips.push((now, path.into()));
    }

    /// Children that their parents did not ask for.
    pub(crate) fn erroneous(&self) -> u64 {
        let excess = |&filled: &u64| filled.saturating_sub(QUANTITY).div_ceil(100);
        self.filled.iter().map(excess).sum()
    }

    /// Every order offered was either sent or refused, in each scope; and every cancel passed.
    pub(crate) fn check(&self) {
        for server in 0..SERVERS {
            assert_eq!(self.offered[server], self.leaked[server] + self.refused[server]);
        }
        assert_eq!(self.refused.iter().sum::<u64>(), self.refused_at.iter().sum::<u64>());
        assert_eq!(self.children.iter().sum::<u64>(), self.leaks());
        assert_eq!(self.filled.iter().sum::<u64>(), self.shares);
        assert_eq!(self.cents, self.shares * PRICE);
        assert_eq!(self.plain_offered, self.plain_sent + self.plain_refused);
        assert_eq!(self.cancels_offered, self.cancels_passed, "a cancel passes, halted or not");
    }
}

fn spec(rules: &Rules) -> PolicySpec {
    let route = |name: String, class: Class, limits: &[LimitSpec]| RouteSpec {
        name,
        group: "firm".into(),
        class,
        scope: ScopeSpec { counts: true, ..scope(limits.to_vec(), Vec::new()) },
    };
    let orders = (1..=SERVERS).map(|number| {
        let mut orders = route(format!("server{number}"), Class::Normal, &rules.server);
        if rules.alerts {
            orders.scope.detectors.push(DetectorKind::Novel(Novel::default()).into());
        }
        orders
    });
    let cancels =
        (1..=SERVERS).map(|number| route(format!("cancel{number}"), Class::Reducing, &[]));
    let check = RouteSpec { group: "parents".into(), ..route("check".into(), Class::Normal, &[]) };
    let keys = vec![
        key("parent", rules.parent.clone()),
        key("symbol", rules.symbol.clone()),
        key("account", Vec::new()),
    ];
    let check_keys = vec![key("parent", rules.out_against_in.clone())];
    PolicySpec {
        global: ScopeSpec::default(),
        groups: vec![
            GroupSpec { name: "firm".into(), scope: scope(rules.firm.clone(), keys) },
            GroupSpec { name: "parents".into(), scope: scope(Vec::new(), check_keys) },
        ],
        routes: orders.chain(cancels).chain([check]).collect(),
    }
}

/// A trip waits for a person, everywhere.
fn scope(limits: Vec<LimitSpec>, keys: Vec<KeySpec>) -> ScopeSpec {
    ScopeSpec { limits, keys, recover: Recover::Manual { probes: 5 }, ..ScopeSpec::default() }
}

fn key(name: &str, limits: Vec<LimitSpec>) -> KeySpec {
    KeySpec {
        name: name.into(),
        limits,
        recover: Recover::Manual { probes: 5 },
        mode: Mode::Enforce,
        detectors: Vec::new(),
        overrides: Vec::new(),
        ..KeySpec::default()
    }
}
