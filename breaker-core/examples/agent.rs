//! An AI agent's tool calls under a breaker: identical repeats are stopped, tokens are reserved and then settled, and after so many
//! automatic executions a person must agree to more. The tools are simulated; it tells a short story and asserts it.

use std::error::Error;

use breaker_core::{
    Breaker, Call, Capacity, Class, Denial, GroupSpec, KeySpec, LimitSpec, MonotonicClock, Outcome,
    Permit, Policy, PolicySpec, RouteId, RouteSpec, Scope, ScopeSpec, Seed, Sender, Senders,
    Settlement, Span, Verdict,
};

/// One agent at work. Its tools are reached through [`Agent::run`] only.
struct Agent<'h> {
    breaker: &'h Breaker,
    policy: &'h Policy,
    route: RouteId,
    clock: MonotonicClock,
    sender: Sender<'h>,
    name: &'static str,
}

impl Agent<'_> {
    /// Runs a tool: asks first, with the most tokens that it may cost; settles with what it did cost.
    fn run(&self, tool: &str, input: &str, at_most: u64) -> Result<String, Denial> {
        let fields = [self.name.as_bytes(), tool.as_bytes(), input.as_bytes()];
        let call = Call::new(self.route)
            .with_key(0, self.breaker.hash(self.name.as_bytes()))
            .with_key(1, self.breaker.fingerprint(&fields))
            .weighing(at_most);
        let now = self.clock.now();
        let permit: Permit<'_> = match self.breaker.admit(self.policy, call, now) {
            Verdict::Allow(permit) => permit,
            Verdict::Deny(denial) => return Err(denial),
        };
        let sent = permit.send(&self.sender, now, || execute(tool, input, at_most))?;
        let done = self.clock.now();
        let (answer, _) = sent.settle_by(done, |(answer, tokens)| Settlement {
            weight: Some(*tokens),
            latency: Some(done.since(now)),
            ..Settlement::of(if answer.is_empty() { Outcome::Fault } else { Outcome::Good })
        });
        Ok(answer)
    }
}

/// A tool that uses a quarter of what it may, and its answer.
fn execute(tool: &str, input: &str, at_most: u64) -> (String, u64) {
    (format!("{tool}({input})"), at_most / 4)
}

fn main() -> Result<(), Box<dyn Error>> {
    let breaker = Breaker::new(Capacity { scopes: 8, keys: 1_024 }, Seed([0x5eed, 0x5eed]));
    let policy = breaker.compile(&spec()).map_err(|errors| format!("{errors:?}"))?;
    let route = policy.route(&Scope::parse("/agents/tools")?).ok_or("no such route")?;
    let senders = Senders::new(1);
    let sender = senders.sender(0).ok_or("taken")?;
    let clock = MonotonicClock::new();
    let agent =
        Agent { breaker: &breaker, policy: &policy, route, clock, sender, name: "assistant" };
    let limit = |denial: &Denial| policy.limit_of(denial).map(|limit| limit.name.clone());
    let denied = |answer: Result<String, Denial>| {
        let denial = answer.err().ok_or("it should not have passed")?;
        limit(&denial).ok_or("denied by something else than a limit")
    };

    // The same call a fourth time within ten minutes of the last: a loop.
    for _ in 0..3 {
        agent.run("search", "weather", 400).map_err(told)?;
    }
    let why = denied(agent.run("search", "weather", 400))?;
    println!("the same search a fourth time: denied by {why:?}");
    assert_eq!(why, "identical repeats");

    // 3 × 100 tokens are used, though 3 × 400 were reserved. One call can never ask for more than is left.
    let why = denied(agent.run("summarise", "a book", 10_000))?;
    println!("ten thousand tokens at once: denied by {why:?}");
    assert_eq!(why, "tokens");
    let assistant = Scope::parse("/agents/agent=assistant")?;
    let usage = breaker.usage(&policy, &assistant, clock.now())?;
    let [executions, tokens] = usage.as_slice() else { return Err("two limits".into()) };
    println!("used: {} executions, {} tokens", executions.used, tokens.used);
    assert_eq!((executions.used, tokens.used), (3, 300));

    // Ten executions by itself; then a person is asked, and gives it another ten.
    let ran = (0..).take_while(|page| agent.run("read", &page.to_string(), 40).is_ok()).count();
    assert_eq!(ran, 7);
    let why = denied(agent.run("write", "report", 40))?;
    println!("after 10 executions: denied by {why:?}, until a person agrees");
    assert_eq!(why, "automatic executions");
    assert!(breaker.refill(&policy, &assistant, clock.now())?);
    let answer = agent.run("write", "report", 40).map_err(told)?;
    println!("a person agreed: {answer}");
    Ok(())
}

fn spec() -> PolicySpec {
    let agent = KeySpec {
        name: "agent".into(),
        limits: vec![
            LimitSpec::budget(10).named("automatic executions"),
            LimitSpec::budget(5_000).by_weight().named("tokens"),
        ],
        ..KeySpec::default()
    };
    let same = KeySpec {
        name: "same".into(),
        limits: vec![LimitSpec::budget(3).idle(Span::from_secs(600)).named("identical repeats")],
        ..KeySpec::default()
    };
    PolicySpec {
        groups: vec![GroupSpec {
            name: "agents".into(),
            scope: ScopeSpec { keys: vec![agent, same], ..ScopeSpec::default() },
        }],
        routes: vec![RouteSpec {
            name: "tools".into(),
            group: "agents".into(),
            class: Class::Normal,
            scope: ScopeSpec::default(),
        }],
        ..PolicySpec::default()
    }
}

fn told(denial: Denial) -> String {
    format!("denied: {denial:?}")
}
