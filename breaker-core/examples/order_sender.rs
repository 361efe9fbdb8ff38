//! An order gateway that cannot send unchecked: limits by strategy, account, symbol and parent order, a runaway that trips itself, and a
//! kill from another thread whose silence is proven. It tells a short story and asserts it; the exchange is a simulation.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use breaker_core::{
    Breaker, By, Call, Capacity, Cause, Class, Denial, Driver, GroupSpec, KeyOverride, KeySpec,
    KillLevel, LiftTo, LimitSpec, Missing, MonotonicClock, News, Outcome, Permit, Policy,
    PolicySpec, Recover, RouteId, RouteSpec, Scope, ScopeSpec, Seed, Sender, Senders, Settlement,
    Span, State,
};

/// Orders and cancels go out here, and nowhere else.
mod wire {
    use super::{AtomicU64, Denial, Mono, Order, Ordering, Permit, Sender, Sent};

    /// Leave to send one new order; made by [`super::Desk::clear_order`] only.
    pub(crate) struct OrderPermit<'a>(pub(super) Permit<'a>);
    /// Leave to send one cancel. It passes a halt, so it is another type: no order can go out on it.
    pub(crate) struct CancelPermit<'a>(pub(super) Permit<'a>);

    #[derive(Debug, PartialEq)]
    pub(crate) enum Answer {
        Accepted { id: u64 },
        Rejected,
    }

    /// The session with the exchange. What writes to it is private, and each way in consumes a permit.
    #[derive(Default)]
    pub(crate) struct Wire {
        orders: AtomicU64,
        cancels: AtomicU64,
    }

    impl Wire {
        pub(crate) fn send_order<'a>(
            &self,
            permit: OrderPermit<'a>,
            sender: &Sender<'_>,
            now: Mono,
            order: &Order,
        ) -> Result<Sent<'a, Answer>, Denial> {
            permit.0.send(sender, now, || self.write_order(order))
        }

        pub(crate) fn send_cancel<'a>(
            &self,
            permit: CancelPermit<'a>,
            sender: &Sender<'_>,
            now: Mono,
            _order: u64,
        ) -> Result<Sent<'a, ()>, Denial> {
            permit.0.send(sender, now, || {
                self.cancels.fetch_add(1, Ordering::SeqCst);
            })
        }

        /// What the exchange has seen: the only witness that counts.
        pub(crate) fn orders_seen(&self) -> u64 {
            self.orders.load(Ordering::SeqCst)
        }

        pub(crate) fn cancels_seen(&self) -> u64 {
            self.cancels.load(Ordering::SeqCst)
        }

        fn write_order(&self, order: &Order) -> Answer {
            let id = self.orders.fetch_add(1, Ordering::SeqCst);
            if order.symbol == "HALTED" { Answer::Rejected } else { Answer::Accepted { id } }
        }
    }
}

use breaker_core::{Mono, Sent};
use wire::{Answer, CancelPermit, OrderPermit, Wire};

struct Order {
    strategy: &'static str,
    account: &'static str,
    symbol: String,
    /// The parent order and its whole quantity.
    parent: (u64, u64),
    quantity: u64,
    /// In cents.
    price: u64,
}

/// What all gateways share.
struct Desk {
    breaker: Arc<Breaker>,
    policy: Arc<Policy>,
    clock: MonotonicClock,
    senders: Senders,
    wire: Wire,
    routes: Routes,
}

struct Routes {
    orders: RouteId,
    parents: RouteId,
    cancels: RouteId,
}

/// One thread's way to the exchange.
struct Gateway<'d> {
    desk: &'d Desk,
    sender: Sender<'d>,
}

/// An order that may go: leave to send it, and what it reserved of its parent.
struct Cleared<'d> {
    order: OrderPermit<'d>,
    share: Permit<'d>,
}

impl Desk {
    /// Everything that is asked of an order before it goes. First its share of the parent, then the order itself: if that is
    /// denied, the parent gets its share back.
    fn clear_order(&self, order: &Order, now: Mono) -> Result<Cleared<'_>, Denial> {
        let share = self.breaker.admit(&self.policy, self.share(order), now).permit()?;
        let notional = order.price.saturating_mul(order.quantity);
        let call = Call::new(self.routes.orders)
            .with_key(STRATEGY, self.breaker.hash(order.strategy.as_bytes()))
            .with_key(ACCOUNT, self.breaker.hash(order.account.as_bytes()))
            .with_key(SYMBOL, self.breaker.hash(order.symbol.as_bytes()))
            .weighing(notional);
        match self.breaker.admit(&self.policy, call, now).permit() {
            Ok(permit) => Ok(Cleared { order: OrderPermit(permit), share }),
            Err(denial) => {
                share.give_back(now);
                Err(denial)
            }
        }
    }

    fn clear_cancel(&self, strategy: &str, now: Mono) -> Result<CancelPermit<'_>, Denial> {
        let key = self.breaker.hash(strategy.as_bytes());
        let call = Call::new(self.routes.cancels).with_key(STRATEGY, key);
        self.breaker.admit(&self.policy, call, now).permit().map(CancelPermit)
    }

    /// A child's part of its parent, in millionths rounded up: one budget for parents of all sizes.
    fn share(&self, order: &Order) -> Call {
        let (parent, whole) = order.parent;
        let part = order.quantity.saturating_mul(WHOLE).div_ceil(whole.max(1));
        Call::new(self.routes.parents)
            .with_key(PARENT, self.breaker.hash_u64(parent))
            .weighing(part)
    }
}

impl Gateway<'_> {
    fn submit(&self, order: &Order) -> Result<Answer, Denial> {
        let desk = self.desk;
        let now = desk.clock.now();
        let Cleared { order: permit, share } = desk.clear_order(order, now)?;
        let sent = match desk.wire.send_order(permit, &self.sender, now, order) {
            Ok(sent) => sent,
            // Killed between the decision and the send: nothing went out.
            Err(denial) => {
                share.give_back(now);
                return Err(denial);
            }
        };
        let answered = desk.clock.now();
        let mut unfilled = None;
        let answer = sent.settle_by(answered, |answer| {
            let outcome = match answer {
                Answer::Accepted { .. } => Outcome::Good,
                Answer::Rejected => Outcome::Fault,
            };
            unfilled = (outcome == Outcome::Fault).then_some(0);
            Settlement { latency: Some(answered.since(now)), ..Settlement::of(outcome) }
        });
        // What was rejected is not out: the parent may send it again.
        share.settle_as(Settlement { weight: unfilled, ..Settlement::of(Outcome::Good) }, answered);
        Ok(answer)
    }

    fn cancel(&self, strategy: &str, id: u64) -> Result<(), Denial> {
        let now = self.desk.clock.now();
        let permit = self.desk.clear_cancel(strategy, now)?;
        let sent = self.desk.wire.send_cancel(permit, &self.sender, now, id)?;
        sent.settle(Outcome::Good, self.desk.clock.now());
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let desk = desk()?;
    let (told, heard) = channel();
    let newest = Arc::clone(&desk.policy);
    let driver = Driver::start(
        Arc::clone(&desk.breaker),
        move || Arc::clone(&newest),
        desk.clock,
        move |news| {
            if let News::Moved(policy, fact) = news {
                let place =
                    policy.scope_of(fact.place).map(|(scope, key)| format!("{scope} {key:?}"));
                let _ = told.send((place, fact.to, fact.cause));
            }
        },
    )?;
    let gateway = Gateway { desk: &desk, sender: desk.senders.sender(0).ok_or("taken")? };

    limits_hold(&desk, &gateway)?;
    a_runaway_trips_itself(&desk, &gateway)?;
    let (place, to, cause) = heard.recv_timeout(Duration::from_secs(10))?;
    println!("the driver tells: {place:?} is {to:?} by {cause:?}");
    assert_eq!((to, cause), (State::Tripped, Some(Cause::Tripped(By::Limit(0)))));
    a_kill_is_silent(&desk, &gateway)?;

    let now = desk.clock.now();
    let health = driver.health(now);
    assert!(health.alive && health.panics == 0);
    println!("the driver swept {} times; the clock reads {:?}", health.sweeps, desk.clock.source());
    Ok(())
}

/// Each limit in turn: symbol, notional of the account, quantity of the parent; and a reject.
fn limits_hold(desk: &Desk, gateway: &Gateway<'_>) -> Result<(), Box<dyn Error>> {
    let order = |symbol: &str, account, parent, quantity| Order {
        strategy: "momentum",
        account,
        symbol: symbol.to_owned(),
        parent: (parent, 1_000),
        quantity,
        price: 10_000,
    };
    let cheap =
        |symbol, account, quantity| Order { price: 100, ..order(symbol, account, 3, quantity) };
    for _ in 0..5 {
        let answer = gateway.submit(&order("AAPL", "A1", 1, 10)).map_err(told)?;
        assert!(matches!(answer, Answer::Accepted { .. }));
    }
    let denial = refused(gateway.submit(&order("AAPL", "A1", 1, 10)))?;
    println!("symbol AAPL: the sixth order is denied, {}", said(desk, &denial));
    assert_eq!(limit_name(desk, &denial), "orders a minute");

    let denial = refused(gateway.submit(&order("MSFT", "A2", 2, 600)))?;
    println!("account A2: 60,000 dollars at once are denied, {}", said(desk, &denial));
    assert_eq!(limit_name(desk, &denial), "notional a minute");

    for quantity in [400, 400] {
        gateway.submit(&cheap("GOOG", "A3", quantity)).map_err(told)?;
    }
    let denial = refused(gateway.submit(&cheap("GOOG", "A3", 300)))?;
    println!("parent 3: 800 of 1,000 are out, 300 more are denied, {}", said(desk, &denial));
    assert_eq!(limit_name(desk, &denial), "quantity of the parent");
    // Neither denial above kept anything of the parent, nor does a reject: it is a fault, and its quantity is free again.
    let answer = gateway.submit(&cheap("HALTED", "A3", 200)).map_err(told)?;
    assert_eq!(answer, Answer::Rejected);
    let answer = gateway.submit(&cheap("AMZN", "A3", 200)).map_err(told)?;
    assert!(matches!(answer, Answer::Accepted { .. }));

    let orders = Scope::parse("/desk/orders")?;
    let counts = desk.breaker.counts(&desk.policy, &orders).ok_or("counted")?;
    println!(
        "orders: {} good, {} fault, {} throttled",
        counts.good, counts.fault, counts.throttled
    );
    assert_eq!((counts.good, counts.fault, counts.throttled), (8, 1, 2));
    Ok(())
}

/// A strategy in a loop is halted at its 51st offer of a minute, by itself; its cancels pass, and the others trade on.
fn a_runaway_trips_itself(desk: &Desk, gateway: &Gateway<'_>) -> Result<(), Box<dyn Error>> {
    let order = |strategy, number| Order {
        strategy,
        account: "A5",
        symbol: format!("SYM{number}"),
        parent: (number, 1),
        quantity: 1,
        price: 100,
    };
    let before = desk.wire.orders_seen();
    let tripped = (1..1_000).find(|number| {
        let denial = gateway.submit(&order("loop", 100 + number)).err();
        denial.is_some_and(|denial| matches!(denial.cause, Cause::Tripped(_)))
    });
    let sent = desk.wire.orders_seen() - before;
    println!("strategy loop: {sent} orders went out, halted at offer {tripped:?}");
    assert_eq!((sent, tripped), (50, Some(51)));
    let scope = Scope::parse("/desk/strategy=loop")?;
    let standing = desk.breaker.standing(&desk.policy, &scope, desk.clock.now())?;
    assert_eq!(standing.state, State::Tripped);
    gateway.cancel("loop", 1).map_err(told)?;
    gateway.submit(&order("momentum", 2_000)).map_err(told)?;
    println!("its cancels pass, and momentum trades on");
    Ok(())
}

/// Two threads send as fast as they can; a third kills their strategy and knows when nothing goes out any more.
fn a_kill_is_silent(desk: &Desk, gateway: &Gateway<'_>) -> Result<(), Box<dyn Error>> {
    let scope = Scope::parse("/desk/strategy=maker")?;
    let maker = |index: usize| Order {
        strategy: "maker",
        account: "MM",
        symbol: "ES".to_owned(),
        parent: (u64::try_from(index).unwrap_or(0), 1 << 40),
        quantity: 1,
        price: 1,
    };
    let before = desk.wire.orders_seen();
    let (killed, seen) = std::thread::scope(|threads| {
        for index in 1..=2 {
            threads.spawn(move || {
                let Some(sender) = desk.senders.sender(index) else { return };
                let own = Gateway { desk, sender };
                let order = maker(index);
                while !matches!(own.submit(&order), Err(Denial { cause: Cause::Killed(_), .. })) {}
            });
        }
        while desk.wire.orders_seen() < before + 1_000 {
            std::thread::yield_now();
        }
        let (breaker, policy) = (&desk.breaker, &desk.policy);
        let within = Span::from_secs(5);
        let killed =
            desk.senders.kill(breaker, policy, &scope, KillLevel::Halt, &desk.clock, within);
        // From here on the exchange sees no order of this strategy, whatever the threads are at.
        (killed, desk.wire.orders_seen())
    });
    let killed = killed?;
    println!(
        "strategy maker: killed after {} orders, silent: {}, after {} ns",
        seen - before,
        killed.silence.silent,
        killed.silence.waited.as_nanos()
    );
    assert!(killed.silence.silent, "not seen outside: {:?}", killed.silence.pending);
    assert_eq!(desk.wire.orders_seen(), seen, "an order went out after the silence");

    let cancels = desk.wire.cancels_seen();
    gateway.cancel("maker", seen).map_err(told)?;
    assert_eq!(desk.wire.cancels_seen(), cancels + 1);
    println!("its cancels pass the halt");

    let (breaker, policy) = (&desk.breaker, &desk.policy);
    breaker.lift(policy, killed.stamp, LiftTo::HalfOpen, desk.clock.now())?;
    gateway.submit(&maker(1)).map_err(told)?;
    let standing = breaker.standing(policy, &scope, desk.clock.now())?;
    assert_eq!(standing.state, State::Armed);
    println!("lifted on probation: one good order, and it is armed");
    Ok(())
}

fn desk() -> Result<Desk, Box<dyn Error>> {
    let minute = Span::from_secs(60);
    let key = |name: &str, limits| KeySpec { name: name.into(), limits, ..KeySpec::default() };
    // A runaway is what is offered, not what passes; it waits for a person then, and one good order.
    let runaway =
        |count| LimitSpec::window(count, minute).offered().tripping().named("offers a minute");
    let strategy = KeySpec {
        recover: Recover::Manual { probes: 1 },
        overrides: own("maker", vec![runaway(1 << 40)]),
        // A share of a parent says no strategy: its order does, and is counted once.
        missing: Missing::Skip,
        ..key("strategy", vec![runaway(50)])
    };
    let notional = |cents| LimitSpec::window(cents, minute).by_weight().named("notional a minute");
    let account = KeySpec {
        overrides: own("MM", vec![notional(1 << 40)]),
        ..key("account", vec![notional(5_000_000), LimitSpec::in_flight(20)])
    };
    let pace = |count| LimitSpec::window(count, minute).named("orders a minute");
    let symbol =
        KeySpec { overrides: own("ES", vec![pace(1 << 40)]), ..key("symbol", vec![pace(5)]) };
    let parent =
        key("parent", vec![LimitSpec::budget(WHOLE).by_weight().named("quantity of the parent")]);

    let route = |name: &str, class, keys| RouteSpec {
        name: name.into(),
        group: "desk".into(),
        class,
        scope: ScopeSpec { keys, ..ScopeSpec::default() },
    };
    let spec = PolicySpec {
        groups: vec![GroupSpec {
            name: "desk".into(),
            scope: ScopeSpec { keys: vec![strategy], ..ScopeSpec::default() },
        }],
        routes: vec![
            route("orders", Class::Normal, vec![account, symbol]),
            route("parents", Class::Normal, vec![parent]),
            route("cancels", Class::Reducing, Vec::new()),
        ],
        ..PolicySpec::default()
    };
    // Take the seed from the operating system: whoever knows it can make keys collide.
    let breaker =
        Arc::new(Breaker::new(Capacity { scopes: 16, keys: 4_096 }, Seed([0x5eed, 0x5eed])));
    let policy = breaker.compile(&spec).map_err(|errors| format!("{errors:?}"))?;
    let find = |path: &str| -> Result<RouteId, Box<dyn Error>> {
        Ok(policy.route(&Scope::parse(path)?).ok_or("no such route")?)
    };
    let routes = Routes {
        orders: find("/desk/orders")?,
        parents: find("/desk/parents")?,
        cancels: find("/desk/cancels")?,
    };
    let names: Vec<_> = policy.dimensions(routes.orders).map(|dimension| dimension.name).collect();
    assert_eq!(names, ["strategy", "account", "symbol"], "as the constants below have it");
    Ok(Desk {
        breaker,
        policy: Arc::new(policy),
        clock: MonotonicClock::new(),
        senders: Senders::new(3),
        wire: Wire::default(),
        routes,
    })
}

fn own(label: &str, limits: Vec<LimitSpec>) -> Vec<KeyOverride> {
    vec![KeyOverride { label: label.as_bytes().to_vec(), limits }]
}

fn told(denial: Denial) -> String {
    format!("denied: {denial}")
}

fn refused(answer: Result<Answer, Denial>) -> Result<Denial, String> {
    answer.err().ok_or_else(|| "it should not have passed".to_owned())
}

fn limit_name<'d>(desk: &'d Desk, denial: &Denial) -> &'d str {
    desk.policy.limit_of(denial).map_or("", |limit| &limit.name)
}

fn said(desk: &Desk, denial: &Denial) -> String {
    let wait = denial
        .wait
        .map_or("no wait helps".into(), |wait| format!("wait {} s", wait.as_secs_ceil()));
    format!("{:?}: {wait}", limit_name(desk, denial))
}

/// The positions of the dimensions in a call: the group's first, then the route's.
const STRATEGY: u8 = 0;
const ACCOUNT: u8 = 1;
const SYMBOL: u8 = 2;
const PARENT: u8 = 1;
/// A parent's whole quantity, in the unit of its budget.
const WHOLE: u64 = 1_000_000;
