//! Twelve seconds on the terminal: a polite client, a runaway one, a trip, a kill and a lift; real sockets, nothing staged.

use crate::app::{self, Running};
use crate::client::Client;
use crate::config::check;
use crate::origin::Origin;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::LocalOptions;
use tokio::time::{Instant, sleep_until};

const CONFIG: &str = r#"
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"

[state]
dir = "STATE"

[[groups]]
name = "demo"

[[routes]]
name = "orders"
group = "demo"
match = { path = "/orders/{*rest}" }
upstream = "http://ORIGIN"

[[routes.keys]]
name = "client"
from = { header = "x-client" }
missing = "refuse"
limit = [
  { rate = "100/s", burst = 20 },
  { window = "400/1s", of = "offered", on_breach = "trip" },
]
"#;

/// Calls a second of the polite client.
const POLITE: u32 = 25;

/// Calls a second of the runaway while it is only too fast.
const FAST: u32 = 200;

/// Connections of the runaway once it has gone mad.
const MAD: usize = 4;

/// Calls a mad runaway makes, at most.
const MAD_MAX: u64 = 200_000;

/// What one client did and met.
#[derive(Default)]
struct Tally {
    name: &'static str,
    offered: Cell<u64>,
    forwarded: Cell<u64>,
    throttled: Cell<u64>,
    halted: Cell<u64>,
    other: Cell<u64>,
    /// When the first call was sent that a gate refused.
    first_halt: Cell<Option<Instant>>,
    shown: RefCell<[u64; 3]>,
}

fn up(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl Tally {
    fn new(name: &'static str) -> Rc<Tally> {
        Rc::new(Tally { name, ..Tally::default() })
    }

    async fn call(&self, client: &mut Client) -> io::Result<()> {
        let sent = Instant::now();
        up(&self.offered);
        let answer =
            client.send(Method::GET, "/orders/new", &[("x-client", self.name)], "").await?;
        match answer.status {
            StatusCode::OK => up(&self.forwarded),
            StatusCode::TOO_MANY_REQUESTS => up(&self.throttled),
            StatusCode::SERVICE_UNAVAILABLE => {
                up(&self.halted);
                if self.first_halt.get().is_none_or(|first| sent < first) {
                    self.first_halt.set(Some(sent));
                }
            }
            _ => up(&self.other),
        }
        Ok(())
    }

    /// What came back since the last look: forwarded, throttled, halted.
    fn since_last(&self) -> [u64; 3] {
        let now = [self.forwarded.get(), self.throttled.get(), self.halted.get()];
        let before = self.shown.replace(now);
        let [f, t, h] = now;
        let [f0, t0, h0] = before;
        [f - f0, t - t0, h - h0]
    }
}

/// Calls at a steady pace until the deadline.
async fn paced(tally: Rc<Tally>, address: SocketAddr, rate: u32, until: Instant) -> io::Result<()> {
    let mut client = Client::connect(address).await?;
    let step = Duration::from_secs(1) / rate;
    let mut next = Instant::now();
    while next < until {
        sleep_until(next).await;
        tally.call(&mut client).await?;
        next += step;
    }
    Ok(())
}

/// Calls as fast as the answers come until the deadline.
async fn mad(tally: Rc<Tally>, address: SocketAddr, until: Instant) -> io::Result<()> {
    let mut client = Client::connect(address).await?;
    while Instant::now() < until && tally.offered.get() < MAD_MAX {
        tally.call(&mut client).await?;
    }
    Ok(())
}

/// When each client's last call reached the origin, by the origin's own clock reading.
#[derive(Default)]
struct Arrivals {
    polite: Option<Instant>,
    runaway: Option<Instant>,
}

/// Runs the demo.
#[must_use]
pub fn run() -> ExitCode {
    let dir = std::env::temp_dir().join(format!("breaker-demo-{}", std::process::id()));
    let result = play(&dir);
    // The state of a demo is of no use to anyone.
    let _ = std::fs::remove_dir_all(&dir);
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("the demo did not go as it should have: see the table");
            ExitCode::FAILURE
        }
        Err(problem) => {
            eprintln!("the demo could not run: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn play(dir: &Path) -> Result<bool, String> {
    let arrivals = Arc::new(Mutex::new(Arrivals::default()));
    let seen = Arc::clone(&arrivals);
    let origin = Origin::start_with(Arc::new(move |fields| {
        let now = Some(Instant::now());
        match fields.get("x-client").map(hyper::header::HeaderValue::as_bytes) {
            Some(b"polite") => seen.lock().polite = now,
            _ => seen.lock().runaway = now,
        }
    }))
    .map_err(|error| error.to_string())?;
    let text = CONFIG
        .replace("STATE", &dir.display().to_string())
        .replace("ORIGIN", &origin.address().to_string());
    let config = check::load(&text, "demo", &|_| None).map_err(|errors| errors.to_string())?;
    let running = app::start(config).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(|error| error.to_string())?;
    let good = runtime
        .block_on(script(&running, &arrivals))
        .map_err(|error: io::Error| error.to_string())?;
    Ok(good && running.stop().durable)
}

async fn script(running: &Running, arrivals: &Mutex<Arrivals>) -> io::Result<bool> {
    let address = running.data_addr();
    let start = Instant::now();
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let (polite, runaway) = (Tally::new("polite"), Tally::new("runaway"));

    println!("An origin, a proxy in front of it, and two clients, known by their x-client field.");
    println!(
        "Each client: 100 calls a second, 20 at once; more than 400 offered in a second trips it."
    );
    println!();
    println!("     each bar is half a second:  █ forwarded  ▒ throttled (429)  × halted (503)");

    let narrator = Narrator { start, clients: [Rc::clone(&polite), Rc::clone(&runaway)] };
    narrator.title("two clients, both polite");
    let end = at(11.5);
    let steady = tokio::task::spawn_local(paced(Rc::clone(&polite), address, POLITE, end));
    let calm = tokio::task::spawn_local(paced(Rc::clone(&runaway), address, POLITE, at(1.5)));
    narrator.until(at(1.5)).await;
    joined(calm.await)?;

    narrator.title("the runaway speeds up to 200 a second: its own limit holds it at 100");
    let fast = tokio::task::spawn_local(paced(Rc::clone(&runaway), address, FAST, at(3.5)));
    narrator.until(at(3.5)).await;
    joined(fast.await)?;

    narrator.title("the runaway goes mad: as fast as it can, on four connections");
    let loops: Vec<_> = (0..MAD)
        .map(|_| tokio::task::spawn_local(mad(Rc::clone(&runaway), address, at(6.5))))
        .collect();
    narrator.until(at(6.5)).await;
    for one in loops {
        joined(one.await)?;
    }
    let breach = runaway.first_halt.get();
    let last = arrivals.lock().runaway;
    let polite_halts = polite.halted.get();

    narrator.title("a person kills the route: POST /v1/kill/demo/orders");
    let mut admin = Client::connect(running.admin_addr()).await?;
    let token = format!("Bearer {}", running.token());
    let fields = [("authorization", token.as_str())];
    let asked = Instant::now();
    let kill = admin
        .send(Method::POST, "/v1/kill/demo/orders", &fields, r#"{"reason":"demo","actor":"you"}"#)
        .await?;
    let answered = Instant::now();
    let facts: serde_json::Value = serde_json::from_slice(&kill.body).unwrap_or_default();
    let fact = |name| facts.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default();
    println!(
        "     {} in {:?}: in force after {} us, silent after {} us, durable after {} us",
        kill.status,
        asked.elapsed(),
        fact("in_force_us"),
        fact("silent_us"),
        fact("durable_us"),
    );
    narrator.until(at(9.0)).await;
    let after_kill = arrivals.lock().polite.filter(|arrival| *arrival > answered);
    let killed = polite.halted.get() > polite_halts;

    narrator
        .title("the person lifts it: POST /v1/lift/demo/orders (first on probation, then armed)");
    let before_lift = polite.forwarded.get();
    let lift = admin
        .send(Method::POST, "/v1/lift/demo/orders", &fields, r#"{"reason":"demo over"}"#)
        .await?;
    println!("     {}", lift.status);
    narrator.until(end).await;
    joined(steady.await)?;
    let back = polite.forwarded.get() > before_lift;

    println!();
    println!("              offered  forwarded  throttled   halted");
    for tally in [&polite, &runaway] {
        println!(
            "     {:<8}{:>8}{:>11}{:>11}{:>9}",
            tally.name,
            tally.offered.get(),
            tally.forwarded.get(),
            tally.throttled.get(),
            tally.halted.get(),
        );
    }
    println!();
    let late = match (breach, last) {
        (Some(breach), Some(last)) => last.saturating_duration_since(breach),
        _ => Duration::ZERO,
    };
    if late == Duration::ZERO {
        println!(
            "     calls of the runaway at the origin after the call that broke its limit: none"
        );
    } else {
        println!(
            "     from the call that broke the runaway's limit to its last call at the origin: {late:?}"
        );
    }
    println!(
        "     calls at the origin after the kill was answered: {}",
        if after_kill.is_some() { "SOME" } else { "0" }
    );
    println!("     /demo/orders/client=runaway stays tripped until a person resets it.");
    let good = breach.is_some()
        && kill.status == StatusCode::OK
        && lift.status == StatusCode::OK
        && polite_halts == 0
        && polite.throttled.get() == 0
        && after_kill.is_none()
        && killed
        && back
        && runaway.throttled.get() > 0
        && polite.other.get() + runaway.other.get() == 0;
    Ok(good)
}

fn joined(result: Result<io::Result<()>, tokio::task::JoinError>) -> io::Result<()> {
    result.map_err(io::Error::other)?
}

/// Tells what happens while it happens.
struct Narrator {
    start: Instant,
    clients: [Rc<Tally>; 2],
}

impl Narrator {
    fn title(&self, what: &str) {
        println!();
        println!("{:>4.1}s {what}", self.start.elapsed().as_secs_f64());
    }

    /// A line every half second.
    async fn until(&self, end: Instant) {
        let mut next = Instant::now();
        while next < end {
            next = (next + Duration::from_millis(500)).min(end);
            sleep_until(next).await;
            let [polite, runaway] = &self.clients;
            println!("     {}   {}", line(polite), line(runaway));
        }
    }
}

fn line(tally: &Tally) -> String {
    let [forwarded, throttled, halted] = tally.since_last();
    let bar: String = [(forwarded, '█'), (throttled, '▒'), (halted, '×')]
        .into_iter()
        .flat_map(|(count, sign)| std::iter::repeat_n(sign, marks(count)))
        .collect();
    format!("{:<7} {:>6} {bar:<15}", tally.name, forwarded + throttled + halted)
}

/// One mark for up to 10, one more for each further doubling: a runaway is a thousand times a polite client.
fn marks(count: u64) -> usize {
    match count {
        0 => 0,
        count => usize::try_from((count / 10).max(1).ilog2()).unwrap_or(0) + 1,
    }
}
