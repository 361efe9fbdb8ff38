//! The verbs of the command line: run, check, demo; only this file reads arguments and the environment.

use crate::app::{self, Running};
use crate::config::advice::advice;
use crate::config::check;
use crate::config::sight::LogTo;
use crate::config::upstream::Endpoint;
use crate::config::{Config, ConfigError, ConfigErrors};
use crate::demo;
use crate::snapshot::trusts;
use crate::spans;
use breaker_core::{Breaker, Capacity, Seed};
use clap::{Parser, Subcommand};
use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code for a configuration that is refused: nothing was bound.
const EXIT_CONFIG: u8 = 2;

/// Exit code for a start that failed, or a stop that could not be made durable.
const EXIT_FAILED: u8 = 1;

/// Number of the signal for a file beyond the size limit, on Linux and the BSDs.
const SIGXFSZ: i32 = 25;

/// Bytes of a configuration file, at most.
const CONFIG_MAX: u64 = 1 << 20;

#[derive(Debug, Parser)]
#[command(
    name = "breaker-proxy",
    version,
    about = "A reverse proxy that limits, trips and can be killed.",
    after_help = "Without a verb: run, on the built-in configuration."
)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve.
    Run {
        /// The configuration; without it, a built-in one.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Send everything that goes to the built-in origin here instead: http://host:port or https://host:port.
        #[arg(long, value_name = "URL")]
        upstream: Option<String>,
    },
    /// Say whether a configuration would be accepted, and every reason why not.
    Check {
        /// The configuration.
        file: PathBuf,
    },
    /// Show on the terminal, in a few seconds, what it does.
    Demo,
    /// Print the built-in configuration, with a comment on every key.
    Default,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match Arguments::parse().verb.unwrap_or(Verb::Run { config: None, upstream: None }) {
        Verb::Run { config, upstream } => run(config.as_deref(), upstream.as_deref()),
        Verb::Check { file } => match read(Some(&file)).and_then(compiles) {
            Ok(config) => {
                for advice in advice(&config) {
                    println!("advice: {advice}");
                }
                println!(
                    "{}: good: {}, {}, {}",
                    file.display(),
                    counted(config.groups.len(), "group"),
                    counted(config.routes.len(), "route"),
                    counted(endpoints(&config), "endpoint")
                );
                ExitCode::SUCCESS
            }
            Err(errors) => refuse(&file.display().to_string(), &errors),
        },
        Verb::Demo => demo::run(),
        Verb::Default => {
            print!("{}", check::default_text());
            ExitCode::SUCCESS
        }
    }
}

/// Servers that requests may go to, each counted once.
fn endpoints(config: &Config) -> usize {
    let all = config.routes.iter().flat_map(|route| &route.upstream.endpoints);
    all.collect::<HashSet<_>>().len()
}

/// So many of a thing, as one says it.
fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn refuse(source: &str, errors: &ConfigErrors) -> ExitCode {
    eprintln!("{source}: refused; nothing was started\n{errors}");
    ExitCode::from(EXIT_CONFIG)
}

/// One error as a list.
fn one(path: &str, problem: &str, hint: &str) -> ConfigErrors {
    let (path, problem, hint) = (path.to_owned(), problem.to_owned(), hint.to_owned());
    ConfigErrors(vec![ConfigError { path, problem, hint }])
}

/// Reads a file, or the built-in text.
fn read(file: Option<&Path>) -> Result<Config, ConfigErrors> {
    let env = |name: &str| std::env::var(name).ok();
    let Some(file) = file else { return check::load(check::default_text(), "built-in", &env) };
    let source = file.display().to_string();
    let bad = |problem: String, hint: &str| one(&source, &problem, hint);
    let size = std::fs::metadata(file)
        .map_err(|error| bad(format!("cannot be read: {error}"), "name a file that exists"))?
        .len();
    if size > CONFIG_MAX {
        return Err(bad(format!("{size} bytes"), "a configuration has at most 1 MiB"));
    }
    let text = std::fs::read_to_string(file)
        .map_err(|error| bad(format!("cannot be read: {error}"), "it must be UTF-8 text"))?;
    check::load(&text, &source, &env)
}

/// Compiles the rules as a start would, on a breaker that is thrown away.
fn compiles(config: Config) -> Result<Config, ConfigErrors> {
    let capacity = Capacity { scopes: app::SCOPES, keys: config.bounds.keys };
    match Breaker::new(capacity, Seed([0, 0])).compile(&config.policy) {
        Ok(_) => trusts(&config).map(|()| config).map_err(ConfigErrors::from),
        Err(errors) => Err(ConfigErrors::from(errors)),
    }
}

fn run(file: Option<&Path>, upstream: Option<&str>) -> ExitCode {
    let source = file.map_or_else(|| "built-in".to_owned(), |file| file.display().to_string());
    let loaded = read(file).and_then(|config| aim(config, upstream)).and_then(compiles);
    let config = match loaded {
        Ok(config) => config,
        Err(errors) => return refuse(&source, &errors),
    };
    let built_in = config.routes.iter().any(|route| route.upstream.is_built_in());
    let logs_to_stdout = config.access_log.as_ref().is_some_and(|log| log.to == LogTo::Stdout);
    if config.spans {
        spans::listen();
    }
    let signals = Signals::listen();
    let running = match app::start(config) {
        Ok(running) => running,
        Err(error) => {
            eprintln!("breaker-proxy did not start: {error}");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    greet(&greeting(&running, &source, built_in), logs_to_stdout);
    match signals {
        Some(signals) => signals.wait(),
        None => park(),
    }
    eprintln!("breaker: stopping; what is in flight has {:?}", running.drain());
    if running.stop().durable {
        ExitCode::SUCCESS
    } else {
        eprintln!("breaker: the last record could not be written");
        ExitCode::from(EXIT_FAILED)
    }
}

/// Puts a real upstream where the built-in origin stood.
fn aim(mut config: Config, upstream: Option<&str>) -> Result<Config, ConfigErrors> {
    let Some(url) = upstream else { return Ok(config) };
    let target =
        check::endpoint_at("--upstream", url).map_err(|error| ConfigErrors(vec![error]))?;
    let mut aimed = false;
    let endpoints = config.routes.iter_mut().flat_map(|route| &mut route.upstream.endpoints);
    for endpoint in endpoints.filter(|endpoint| **endpoint == Endpoint::BuiltIn) {
        endpoint.clone_from(&target);
        aimed = true;
    }
    if aimed {
        return Ok(config);
    }
    Err(one(
        "--upstream",
        "no route of this configuration goes to the built-in origin",
        "change the upstream of the routes in the file",
    ))
}

/// To the standard output, unless that is for the access log alone.
fn greet(words: &str, logs_to_stdout: bool) {
    // Whoever closed our output must not end what we serve.
    let _ = match logs_to_stdout {
        false => std::io::stdout().write_all(words.as_bytes()),
        true => std::io::stderr().write_all(words.as_bytes()),
    };
}

fn greeting(running: &Running, source: &str, built_in: bool) -> String {
    let (data, admin) = (running.data_addr(), running.admin_addr());
    let facts = running.facts();
    let mut text = String::new();
    let mut line = |told: String| {
        text.push_str(&told);
        text.push('\n');
    };
    line(format!("breaker-proxy {} on configuration {source}", env!("CARGO_PKG_VERSION")));
    let dir = running.state().path().display();
    if running.state().is_new() {
        line(format!("  state    {dir} (new)"));
    } else {
        line(format!("  state    {dir} (start {})", facts.boot));
    }
    if facts.torn {
        let what = "the last line was torn and is cut off: its order was never acknowledged";
        line(format!("  JOURNAL  {what}"));
    }
    for kill in &facts.kills {
        line(format!(
            "  KILLED   {} {} by {:?}: {:?} ({})",
            kill.scope, kill.level, kill.actor, kill.reason, kill.id
        ));
    }
    for scope in &facts.tripped {
        line(format!("  TRIPPED  {scope}, as before the start"));
    }
    let scheme = if running.plane().tls.is_some() { "https" } else { "http" };
    line(format!("  data     {scheme}://{data}  ({} threads)", facts.workers));
    line(format!("  admin    http://{admin}"));
    let token = match running.token_file() {
        Some(path) => {
            line(format!("  token    in {}", path.display()));
            format!("$(cat {})", path.display())
        }
        None => {
            line("  token    from the configuration".to_owned());
            "$TOKEN".to_owned()
        }
    };
    let auth = format!("-H \"Authorization: Bearer {token}\"");
    if built_in {
        line(String::new());
        line("  NO REAL UPSTREAM: requests go to a small built-in origin.".to_owned());
        line(
            "  Name yours: breaker-proxy run --upstream http://host:port, or a file: --config FILE"
                .to_owned(),
        );
        line("  (breaker-proxy default prints one to start from).".to_owned());
        line(String::new());
        line(format!("  try      curl -i {scheme}://{data}/"));
        for (verb, reason) in [("kill", "try"), ("lift", "done")] {
            line(format!(
                "  {verb}     curl -X POST {auth} -d '{{\"reason\":\"{reason}\"}}' http://{admin}/v1/{verb}/"
            ));
        }
    }
    line(format!("  status   curl {auth} http://{admin}/v1/status"));
    line(format!("ready data={data} admin={admin}"));
    text
}

/// The signals that end it. They are listened for before anything starts: one that comes early must not cut a start short
/// half-way, and who reads "ready" may send one at once.
struct Signals {
    runtime: Runtime,
    term: Signal,
    int: Signal,
    /// A file at its size limit is an error for the journal to report, not the end of the process.
    _file_size: Option<Signal>,
}

impl Signals {
    fn listen() -> Option<Signals> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let inside = runtime.enter();
        let term = signal(SignalKind::terminate()).ok()?;
        let int = signal(SignalKind::interrupt()).ok()?;
        let file_size = signal(SignalKind::from_raw(SIGXFSZ)).ok();
        drop(inside);
        Some(Signals { runtime, term, int, _file_size: file_size })
    }

    /// Waits for SIGINT or SIGTERM.
    fn wait(mut self) {
        let (term, int) = (&mut self.term, &mut self.int);
        self.runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        });
    }
}

/// Serves on without orderly signals: better than not to serve.
fn park() {
    eprintln!("breaker: signals cannot be received; stop it by SIGKILL");
    loop {
        std::thread::park();
    }
}
