//! Real clients and servers through the proxy: curl, wrk, h2load, nginx, Python's HTTP server and its packages `websockets`
//! and `grpcio`; what is tried with curl is in `real::curl`, with WebSockets in `real::sockets`, with gRPC in `real::grpc`.

mod curl;
mod grpc;
mod sockets;

use crate::accounts::settled;
use crate::clients::{beside, read_h2load};
use crate::error::LoadError;
use crate::nginx::Nginx;
use crate::proxy::{self, Proxy};
use crate::report::Verdict;
use crate::rivals::child::Running;
use crate::rivals::players::{Certificate, version_of};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use tempfile::TempDir;

/// Sends real clients through the proxy to real servers, in clear and by TLS, and looks at what comes back.
///
/// Needs what `loadtests/install.sh clients` installs; what is missing is named, and ends it with exit code 3.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClientsArgs {
    /// The Python that has `websockets` and `grpcio`; without it, the one where install.sh puts it.
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
}

/// A proxy and the way in.
struct Door {
    name: &'static str,
    /// What a URL begins with.
    base: String,
    /// What the URL of a WebSocket begins with.
    sockets: String,
    /// The file with the certificate to trust.
    trusted: Option<String>,
    proxy: Proxy,
}

/// What the checks work with.
struct Bench {
    python: PathBuf,
    /// What nginx serves as `/files/big`.
    big: Vec<u8>,
    /// A directory with `upload`, and room for answers.
    dir: TempDir,
}

impl Bench {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// What every check came to.
#[derive(Default)]
struct Ledger {
    passed: u32,
    /// What is known not to be built.
    lacking: u32,
    verdict: Verdict,
}

impl Ledger {
    /// Prints what a check showed to be missing, which is known.
    fn lacks(&mut self, name: &str, what: &str) {
        println!("  NOT BUILT {name}: {what}");
        self.lacking += 1;
    }

    /// Prints what a check did or what went wrong, and keeps it.
    fn note(&mut self, name: &str, outcome: Result<String, String>) {
        match outcome {
            Ok(seen) => {
                println!("  PASS {name}: {seen}");
                self.passed += 1;
            }
            Err(why) => {
                println!("  FAIL {name}: {why}");
                self.verdict.check(false, || format!("{name}: {why}"));
            }
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When a program is missing, or a server does not start.
pub(crate) fn run(args: &ClientsArgs) -> Result<ExitCode, LoadError> {
    let python = args
        .python
        .clone()
        .unwrap_or_else(|| Path::new(HERE).join("../target/clients/venv/bin/python"));
    if let Some(missing) = missing(&python) {
        return Err(LoadError::Missing(missing));
    }
    let bench = Bench {
        python,
        big: noise(1 << 20),
        dir: TempDir::new().map_err(LoadError::io("make a directory"))?,
    };
    fs::write(bench.file("upload"), noise(8 << 20)).map_err(LoadError::io("write an upload"))?;
    let nginx = Nginx::serving(LOCATIONS, &[("big", &bench.big)])?;
    let script = |name: &'static str| -> Result<(Running, SocketAddr), LoadError> {
        let mut command = Command::new(&bench.python);
        command.arg(scripts().join(name));
        let dir = bench.file(name.trim_end_matches(".py"));
        fs::create_dir(&dir).map_err(LoadError::io("make a directory"))?;
        let mut running = Running::start(command, name, &dir)?;
        let addr = running.prints_port()?;
        Ok((running, addr))
    };
    let (_origin, origin) = script("origin.py")?;
    let (_server, server) = script("sockets_server.py")?;
    let (_callee, callee) = script("grpc_server.py")?;
    let through = proxy::takes(&grpc::rules(callee, nginx.addr(), true));
    let rules = rules(nginx.addr(), origin, server) + &grpc::rules(callee, nginx.addr(), through);
    let certificate = Certificate::new().map_err(LoadError::Proxy)?;
    let mut ledger = Ledger::default();
    for secure in [false, true] {
        let door = door(&rules, secure.then_some(&certificate))?;
        println!("{} on {}", door.name, door.base);
        curl::check(&bench, &door, &mut ledger);
        loads(&door, &mut ledger);
        sockets::check(&bench, &door, &mut ledger);
        grpc::check(&bench, &door, through, &mut ledger);
        ledger.note(&format!("accounts, {}", door.name), accounts(&door));
    }
    if !through {
        println!(
            "  NOT RUN grpcio through to its server: that needs upstreams over HTTP/2, which are not built"
        );
    }
    let lacking = if ledger.lacking > 0 { "; not built: 100 Continue over HTTP/2" } else { "" };
    let not_run = if through { "" } else { "; not run: grpcio through to its server" };
    let passed = ledger.passed;
    let claim = format!(
        "real clients and servers get what they ask for: {passed} checks{not_run}{lacking}"
    );
    Ok(ledger.verdict.tell(&claim))
}

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn scripts() -> PathBuf {
    Path::new(HERE).join("python")
}

/// Says what is there, with its version; and the first thing that is not.
fn missing(python: &Path) -> Option<&'static str> {
    let programs = [
        ("curl", "--version"),
        ("wrk", "-v"),
        ("h2load", "--version"),
        ("nghttp", "--version"),
        ("nginx", "-v"),
        ("openssl", "version"),
    ];
    let mut missing = None;
    for (program, argument) in programs {
        match version_of(program, argument) {
            Ok(version) => println!("{program} {version}"),
            Err(why) => {
                println!("{why}");
                missing = missing.or(Some(program));
            }
        }
    }
    let asked = "import grpc, platform, websockets; print(platform.python_version(), websockets.__version__, grpc.__version__)";
    let said = Command::new(python).args(["-c", asked]).output();
    match said.ok().filter(|said| said.status.success()) {
        Some(said) => {
            println!(
                "Python, websockets and grpcio {}",
                String::from_utf8_lossy(&said.stdout).trim()
            )
        }
        None => {
            println!(
                "{} lacks the package websockets or grpcio: loadtests/install.sh clients",
                python.display()
            );
            missing = missing.or(Some("the Python package websockets or grpcio"));
        }
    }
    missing
}

/// Bytes that no compression makes smaller, the same in every run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

const LOCATIONS: &str = r#"location /files/ {
            alias files/;
            dav_methods PUT;
            create_full_put_path on;
        }
        location / { return 200 "ok\n"; }"#;

fn rules(nginx: SocketAddr, origin: SocketAddr, server: SocketAddr) -> String {
    let routes = [
        ("files", "/files/{*rest}", nginx, ""),
        ("python", "/python/{*rest}", origin, ""),
        ("killed", "/killed/{*rest}", nginx, ""),
        // One call in two seconds.
        ("limited", "/limited/{*rest}", nginx, "limit = [{ rate = \"30/m\", burst = 1 }]"),
        ("sockets", "/sockets", server, "websocket = true"),
        ("quiet", "/quiet", server, ""),
    ];
    let route = |(name, path, upstream, more): (&str, &str, SocketAddr, &str)| {
        format!(
            "[[routes]]\nname = \"{name}\"\nmatch = {{ path = \"{path}\" }}\nupstream = \"http://{upstream}\"\n{more}\n\n"
        )
    };
    routes.into_iter().map(route).collect()
}

fn door(rules: &str, certificate: Option<&Certificate>) -> Result<Door, LoadError> {
    let mut rules = rules.to_owned();
    let (name, scheme, sockets) =
        if certificate.is_some() { ("TLS", "https", "wss") } else { ("in clear", "http", "ws") };
    if let Some(certificate) = certificate {
        let (chain, key) = (certificate.file("cert"), certificate.file("key"));
        rules.push_str(&format!("[listen.tls]\ncertificate = {chain:?}\nkey = {key:?}\n"));
    }
    let proxy = Proxy::inside(&rules, None)?;
    let (base, sockets) =
        (format!("{scheme}://{}", proxy.data), format!("{sockets}://{}", proxy.data));
    let trusted = certificate.map(|certificate| certificate.file("cert"));
    Ok(Door { name, base, sockets, trusted, proxy })
}

/// wrk and h2load at full speed for a moment: every answer is good, and no connection breaks.
fn loads(door: &Door, ledger: &mut Ledger) {
    let url = format!("{}/files/big", door.base);
    let small = format!("{}/python/echo", door.base);
    let plain = format!("{}/killed/not", door.base);
    ledger.note(&format!("wrk, {}", door.name), wrk(&plain, 32));
    ledger.note(&format!("wrk with 1 MiB answers, {}", door.name), wrk(&url, 8));
    let runs: [(&str, &[&str], &str, u64); 4] = [
        ("h2load", &["-c8", "-m16"], &plain, 20_000),
        ("h2load with 1 MiB answers", &["-c2", "-m8"], &url, 200),
        ("h2load, HTTP/1.1", &["-c8", "--h1"], &plain, 20_000),
        ("h2load with uploads to Python", &["-c4", "-m4", "-d", UPLOADED], &small, 200),
    ];
    for (name, args, url, requests) in runs {
        ledger.note(&format!("{name}, {}", door.name), h2load(args, url, requests));
    }
}

/// A file for h2load to send: this one.
const UPLOADED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/real.rs");

fn wrk(url: &str, connections: u32) -> Result<String, String> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-d2s", &format!("-c{connections}"), url]);
    let text = beside(command, "wrk", &mut || Ok(())).map_err(|error| error.to_string())?;
    read_wrk(&text)
}

/// What wrk says of itself, or the line in which it complains.
fn read_wrk(text: &str) -> Result<String, String> {
    let line = |part: &str| text.lines().find(|line| line.contains(part)).map(str::trim);
    match (line(" requests in "), line("Socket errors").or_else(|| line("Non-2xx"))) {
        (Some(done), None) if !done.starts_with("0 ") => Ok(done.to_owned()),
        (_, trouble) => Err(trouble.unwrap_or(text).to_owned()),
    }
}

fn h2load(args: &[&str], url: &str, requests: u64) -> Result<String, String> {
    let mut command = Command::new("h2load");
    command.args(args).args(["-t1", "-n", &requests.to_string(), url]);
    let text = beside(command, "h2load", &mut || Ok(())).map_err(|error| error.to_string())?;
    let report = read_h2load(&text).map_err(|error| error.to_string())?;
    match (report.troubles.as_slice(), report.good()) {
        ([], Some(good)) if good == requests => Ok(format!("{good} of {requests} answered 2xx")),
        (troubles, good) => Err(format!("{good:?} of {requests} answered 2xx; {troubles:?}")),
    }
}

/// Everything that went through this door is accounted for.
fn accounts(door: &Door) -> Result<String, String> {
    let last = settled(&door.proxy.admin).map_err(|error| error.to_string())?;
    let said =
        format!("{} offered, {} forwarded, {} failed", last.offered, last.forwarded, last.failed);
    if last.offered == last.sum() && last.in_flight == 0 && last.failed == 0 {
        Ok(said)
    } else {
        Err(format!("{said}, {} accounted for: {last:?}", last.sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: one failed check fails the command, and is told with its name.
    #[test]
    fn a_ledger_keeps_what_failed() {
        let mut ledger = Ledger::default();
        ledger.note("one", Ok("seen".to_owned()));
        assert!(ledger.verdict.passed());
        ledger.note("two", Err("not seen".to_owned()));
        assert_eq!((ledger.passed, ledger.verdict.failures), (1, vec!["two: not seen".to_owned()]));
    }

    /// Goal: wrk's complaints are heard, of the connections and of the answers, and so is that it did nothing.
    #[test]
    fn wrk_is_believed_only_when_it_is_content() {
        let good = "Running\n  100 requests in 2.00s, 1.00MB read\nRequests/sec: 50\n";
        assert_eq!(read_wrk(good), Ok("100 requests in 2.00s, 1.00MB read".to_owned()));
        for bad in [
            format!("{good}  Socket errors: connect 0, read 1, write 0, timeout 0\n"),
            format!("{good}  Non-2xx or 3xx responses: 3\n"),
            good.replace("100 requests", "0 requests"),
            String::new(),
        ] {
            assert!(read_wrk(&bad).is_err(), "{bad}");
        }
    }

    /// Goal: the rules are a configuration that a proxy takes, and noise is as long as asked and not all the same.
    #[test]
    fn the_rules_are_taken() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let rules = rules(addr, addr, addr);
        let text = format!("[listen]\ndata = \"127.0.0.1:0\"\n{rules}");
        assert!(breaker_proxy::config::check::load(&text, "test", &|_| None).is_ok());
        let noise = noise(1001);
        assert_eq!(noise.len(), 1001);
        assert_ne!(noise[..8], noise[8..16]);
    }
}
