//! The rivals, each as its own documentation says to use it, with limits that are never reached unless the name says so.

use std::future::Future;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use breaker_benches::rounds::Case;
use failsafe::CircuitBreaker as _;
use governor::clock::QuantaUpkeepClock;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use openpit::param::{AccountId, Asset, Price, Quantity, Side, TradeAmount};
use openpit::pretrade::policies::{
    RateLimit, RateLimitBrokerBarrier, RateLimitPolicy, RateLimitSettings,
};
use openpit::{Engine, Instrument, OrderOperation};
use tower::Service;

use crate::keys::{WARM, labels, numbers, still};

/// The same numbers as ours: 10⁹ a second, 10⁶ at once.
fn quota() -> Quota {
    let number = |count| NonZeroU32::new(count).expect("not zero");
    Quota::per_second(number(1_000_000_000)).allow_burst(number(1_000_000))
}

/// A limiter that all may share.
pub(crate) fn direct() -> &'static DefaultDirectRateLimiter {
    still(RateLimiter::direct(quota()))
}

/// A million a second, and a burst that no run uses up.
pub(crate) fn busy_direct() -> &'static DefaultDirectRateLimiter {
    let number = |count| NonZeroU32::new(count).expect("not zero");
    let quota = Quota::per_second(number(1_000_000)).allow_burst(number(4_000_000_000));
    still(RateLimiter::direct(quota))
}

/// governor's direct check, which reads the TSC.
pub(crate) fn governor_direct() -> Case {
    let limiter = direct();
    Case::new(DIRECT, move || black_box(limiter).check().is_ok())
}

/// The same, with a clock that a thread of its own sets every millisecond.
pub(crate) fn governor_upkeep() -> Case {
    let clock = QuantaUpkeepClock::from_interval(Duration::from_millis(1)).expect("one upkeep");
    let limiter = still(RateLimiter::direct_with_clock(quota(), clock));
    Case::new(UPKEEP, move || black_box(limiter).check().is_ok())
}

/// The direct check of a limiter that refuses.
pub(crate) fn governor_deny() -> Case {
    let hour = Quota::with_period(Duration::from_secs(3_600)).expect("not zero");
    let limiter = still(RateLimiter::direct(hour));
    assert!(limiter.check().is_ok() && limiter.check().is_err());
    Case::new(DENY, move || black_box(limiter).check().is_ok())
}

fn governor_keyed(name: &'static str, count: usize) -> Case {
    let limiter: &'static DefaultKeyedRateLimiter<u64> = still(RateLimiter::keyed(quota()));
    let keys = numbers(count);
    assert!(keys.iter().all(|key| limiter.check_key(key).is_ok()));
    let mut turn = keys.iter().cycle();
    Case::new(name, move || {
        let key = turn.next().unwrap_or(&0);
        black_box(limiter).check_key(key).is_ok()
    })
    .warmed(count)
}

/// governor keyed (DashMap, u64), 100,000 keys.
pub(crate) fn governor_u64_100k() -> Case {
    governor_keyed(U64_100K, 100_000)
}

/// governor keyed (DashMap, u64), 1,000,000 keys.
pub(crate) fn governor_u64_1m() -> Case {
    governor_keyed(U64_1M, 1_000_000)
}

/// governor keyed (DashMap, String), 100,000 keys of 25 bytes.
pub(crate) fn governor_text_100k() -> Case {
    let limiter: &'static DefaultKeyedRateLimiter<String> = still(RateLimiter::keyed(quota()));
    let keys = labels(100_000);
    assert!(keys.iter().all(|key| limiter.check_key(key).is_ok()));
    let empty = String::new();
    let mut turn = keys.iter().cycle();
    Case::new(TEXT_100K, move || {
        let key = turn.next().unwrap_or(&empty);
        black_box(limiter).check_key(key).is_ok()
    })
    .warmed(WARM)
}

/// A permitted call that succeeds, counted as such.
pub(crate) fn failsafe_call() -> Case {
    let breaker = still(failsafe::Config::new().build());
    Case::new(FAILSAFE, move || black_box(breaker).call(|| Ok::<u8, u8>(1)).is_ok())
}

/// A permitted call that succeeds, counted as such.
pub(crate) fn recloser_call() -> Case {
    let breaker = still(recloser::Recloser::custom().build());
    Case::new(RECLOSER, move || black_box(breaker).call(|| Ok::<u8, u8>(1)).is_ok())
}

/// One event counted for one key.
pub(crate) fn pingora_observe() -> Case {
    let rate = still(pingora_limits::rate::Rate::new(Duration::from_secs(1)));
    Case::new(OBSERVE, move || black_box(rate).observe(&7_u64, 1))
}

/// One call in flight and out again.
pub(crate) fn pingora_in_flight() -> Case {
    let flights = still(pingora_limits::inflight::Inflight::new());
    Case::new(IN_FLIGHT, move || black_box(flights).incr(7_u64, 1).1)
}

fn barrier() -> RateLimitSettings {
    let limit = RateLimit { max_orders: usize::MAX / 2, window: Duration::from_secs(1) };
    let broker = Some(RateLimitBrokerBarrier { limit });
    RateLimitSettings::new(broker, [], [], []).expect("a sound window")
}

fn order() -> OrderOperation {
    let asset = |name| Asset::new(name).expect("a name");
    OrderOperation {
        instrument: Instrument::new(asset("AAPL"), asset("USD")),
        account_id: AccountId::from_u64(99_224_416),
        side: Side::Buy,
        trade_amount: TradeAmount::Quantity(Quantity::from_str("100").expect("a number")),
        price: Some(Price::from_str("185").expect("a number")),
    }
}

/// An order through one broker-wide rate limit and committed, for one thread only.
pub(crate) fn openpit_alone() -> Case {
    let builder = Engine::builder::<OrderOperation, (), ()>().no_sync();
    let policy = RateLimitPolicy::new(barrier(), builder.storage_builder());
    let gate = builder.pre_trade(policy).build().expect("a sound policy");
    let order = order();
    Case::new(PIT_ALONE, move || {
        black_box(&gate).execute_pre_trade(order.clone()).map(|mut kept| kept.commit()).is_ok()
    })
}

/// The same, for any number of threads.
pub(crate) fn openpit_shared() -> Case {
    let builder = Engine::builder::<OrderOperation, (), ()>().full_sync();
    let policy = RateLimitPolicy::new(barrier(), builder.storage_builder());
    let gate = builder.pre_trade(policy).build().expect("a sound policy");
    let order = order();
    Case::new(PIT_SHARED, move || {
        black_box(&gate).execute_pre_trade(order.clone()).map(|mut kept| kept.commit()).is_ok()
    })
}

#[derive(Clone)]
struct Echo;

impl Service<u8> for Echo {
    type Response = u8;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<u8, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, number: u8) -> Self::Future {
        std::future::ready(Ok(number))
    }
}

/// One call through a layer around what answers at once: `poll_ready`, `call`, and its future polled.
fn through(name: &'static str, mut layered: impl Service<u8, Response = u8> + 'static) -> Case {
    Case::new(name, move || {
        let mut task = Context::from_waker(Waker::noop());
        assert!(matches!(layered.poll_ready(&mut task), Poll::Ready(Ok(()))));
        let answer = pin!(layered.call(1)).poll(&mut task);
        matches!(answer, Poll::Ready(Ok(1)))
    })
}

/// tower-resilience's limiter, refusing (not waiting), with a limit of 10⁹ a second.
pub(crate) fn tower_limiter() -> Case {
    use tower::Layer;
    let layer = tower_resilience::ratelimiter::RateLimiterLayer::builder()
        .limit_for_period(1_000_000_000)
        .refresh_period(Duration::from_secs(1))
        .timeout_duration(Duration::ZERO)
        .build()
        .expect("a sound limit");
    through(TOWER_LIMITER, layer.layer(Echo))
}

/// tower-resilience's circuit breaker, its defaults.
pub(crate) fn tower_breaker() -> Case {
    use tower::Layer;
    let layer = tower_resilience::circuitbreaker::CircuitBreakerLayer::builder()
        .build()
        .expect("its defaults");
    through(TOWER_BREAKER, layer.layer(Echo))
}

pub(crate) const DIRECT: &str = "governor direct check()";
pub(crate) const UPKEEP: &str = "governor direct, upkeep clock of 1 ms";
pub(crate) const DENY: &str = "governor direct, refuses";
pub(crate) const U64_100K: &str = "governor keyed, 100k u64";
pub(crate) const U64_1M: &str = "governor keyed, 1M u64";
pub(crate) const TEXT_100K: &str = "governor keyed, 100k String";
pub(crate) const FAILSAFE: &str = "failsafe call(Ok)";
pub(crate) const RECLOSER: &str = "recloser call(Ok)";
pub(crate) const OBSERVE: &str = "pingora-limits Rate::observe";
pub(crate) const IN_FLIGHT: &str = "pingora-limits Inflight in and out";
pub(crate) const PIT_ALONE: &str = "openpit rate limit, no_sync";
pub(crate) const PIT_SHARED: &str = "openpit rate limit, full_sync";
pub(crate) const TOWER_LIMITER: &str = "tower-resilience rate limiter";
pub(crate) const TOWER_BREAKER: &str = "tower-resilience circuit breaker";
