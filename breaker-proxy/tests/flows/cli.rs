//! The program itself: what it says and how it ends; only children that were started here are ended.

use super::support::upstream::Serving;
use super::support::wire::{Answer, Wire};
use super::support::{LIMIT, Setup, admin_request, eventually};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;

fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_breaker-proxy"));
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
fn run(dir: &Path, arguments: &[&str]) -> Output {
    let child = program(dir).args(arguments).spawn().unwrap();
    Daemon::wait(child)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A running child; ended when it is dropped.
struct Daemon {
    child: Option<Child>,
    data: SocketAddr,
    admin: SocketAddr,
    words: String,
}

impl Daemon {
    /// Waits for the end of a child, and ends it if it does not come.
    fn wait(mut child: Child) -> Output {
        let id = child.id();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut pipe) = pipe {
                    drop(pipe.read_to_end(&mut bytes));
                }
                bytes
            })
        };
        let out = read(out.map(|pipe| Box::new(pipe) as _));
        let err = read(err.map(|pipe| Box::new(pipe) as _));
        let (send, ended) = mpsc::channel();
        let waiting = std::thread::spawn(move || send.send(child.wait().unwrap()));
        let Ok(status) = ended.recv_timeout(LIMIT) else {
            signal(id, "KILL");
            panic!("it did not end");
        };
        assert!(waiting.join().unwrap().is_ok());
        Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
    }

    /// Starts it, and waits until it says that it is ready.
    fn start(dir: &Path, arguments: &[&str]) -> Daemon {
        Daemon::ready(program(dir).args(arguments))
    }

    /// Starts it with files that cannot grow beyond so many bytes, as on a full disk.
    fn start_on_a_full_disk(dir: &Path, arguments: &[&str], bytes: u32) -> Daemon {
        let mut command = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", bytes / 512);
        command.args(["-c", &script, env!("CARGO_BIN_EXE_breaker-proxy")]).args(arguments);
        Daemon::ready(command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()))
    }

    fn ready(command: &mut Command) -> Daemon {
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut daemon = Daemon {
            child: Some(child),
            data: SocketAddr::from(([0; 4], 0)),
            admin: SocketAddr::from(([0; 4], 0)),
            words: String::new(),
        };
        let (send, lines) = mpsc::channel();
        // It ends with the child.
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                drop(send.send(line));
            }
        });
        loop {
            let line = lines.recv_timeout(LIMIT).expect("it never became ready");
            if let Some(rest) = line.strip_prefix("ready ") {
                let (data, admin) = rest.split_once(' ').unwrap();
                daemon.data = data.strip_prefix("data=").unwrap().parse().unwrap();
                daemon.admin = admin.strip_prefix("admin=").unwrap().parse().unwrap();
                return daemon;
            }
            daemon.words += &line;
            daemon.words.push('\n');
        }
    }

    fn get(&self) -> Answer {
        let mut client = Wire::connect(self.data);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.answer()
    }

    fn order(&self, verb: &str, scope: &str) -> Answer {
        self.ask("POST", &format!("/v1/{verb}{scope}"), r#"{"reason":"test"}"#)
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut wire = Wire::connect(self.admin);
        wire.send(&admin_request(method, path, body));
        wire.answer()
    }

    /// Sends it a signal and waits for its end.
    fn end(mut self, name: &str) -> ExitStatus {
        let child = self.child.take().unwrap();
        signal(child.id(), name);
        Daemon::wait(child).status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn signal(id: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), id.to_string()]).status().unwrap();
    assert!(status.success());
}

/// A directory with a configuration in it.
fn written(setup: &Setup) -> tempfile::TempDir {
    let root = super::support::room();
    let text = setup.text(&root.path().join("state"));
    std::fs::write(root.path().join("breaker.toml"), text).unwrap();
    root
}

/// Goal: `check` says of a good file that it is good, and starts nothing: 0.
#[test]
fn check_of_a_good_file_is_0() {
    let root = written(&Setup::route(SocketAddr::from(([127, 0, 0, 1], 9)), ""));
    let output = run(root.path(), &["check", "breaker.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("breaker.toml") && said.contains("good"), "{said}");
    assert!(said.trim_end().ends_with(": good: 1 group, 1 route, 1 endpoint"), "{said}");
    assert!(!root.path().join("state").exists(), "it started something");
}

/// Goal: `check` of a bad file is 2, with every error at once, each with its path, and no secret among them.
#[test]
fn check_of_a_bad_file_is_2_and_tells_all() {
    let root = super::support::room();
    let bad = "[listen]\ndata = \"nowhere\"\n[admin]\ntoken = \"short-secret\"\n[bounds]\nkeys = 0\n\
               [deadlines]\nhead = 5\n[wire]\ncolour = \"red\"\n\
               [[routes]]\nname = \"api\"\nmatch = { path = \"no/slash\" }\nupstream = \"ftp://x\"\n\
               limit = [{ window = \"0/1s\" }, { rate = \"5\" }]\n";
    std::fs::write(root.path().join("bad.toml"), bad).unwrap();
    let output = run(root.path(), &["check", "bad.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    for path in [
        "listen.data:",
        "admin.token:",
        "bounds.keys:",
        "deadlines.head:",
        "wire.colour:",
        "routes.api.match.path:",
        "routes.api.upstream:",
        "routes.api.limit[0].window:",
        "routes.api.limit[1].rate:",
    ] {
        let found = said.lines().filter(|line| line.starts_with(path)).count();
        assert_eq!(found, 1, "{path} in\n{said}");
    }
    assert!(!said.contains("short-secret"), "{said}");
    assert!(said.contains("bad.toml"), "{said}");
    assert!(text(&output.stdout).is_empty());
}

/// Goal: a file that is no TOML, none at all, or not readable is 2, by name.
#[test]
fn files_that_cannot_be_read_are_2() {
    let root = super::support::room();
    std::fs::write(root.path().join("not.toml"), "[listen\n").unwrap();
    std::fs::write(root.path().join("binary.toml"), [0xff, 0xfe, 0]).unwrap();
    std::fs::write(root.path().join("large.toml"), "#".repeat((1 << 20) + 1)).unwrap();
    for name in ["not.toml", "binary.toml", "large.toml", "missing.toml", "."] {
        for verb in [&["check", name][..], &["run", "--config", name]] {
            let output = run(root.path(), verb);
            assert_eq!(output.status.code(), Some(2), "{verb:?}");
            assert!(text(&output.stderr).contains(name), "{verb:?}: {}", text(&output.stderr));
        }
    }
}

/// Goal: `run` on a bad file is 2 before anything was made or bound.
#[test]
fn run_on_a_bad_file_starts_nothing() {
    let root = written(&Setup::route(SocketAddr::from(([127, 0, 0, 1], 9)), "colour = \"red\""));
    let output = run(root.path(), &["run", "--config", "breaker.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("routes.api.colour"), "{said}");
    assert!(!text(&output.stdout).contains("ready"));
    assert!(!root.path().join("state").exists(), "it started something");
}

/// Goal: arguments that are none are refused with the right use, and nothing is started.
#[test]
fn unknown_arguments_start_nothing() {
    let root = super::support::room();
    for arguments in [&["rum"][..], &["run", "--confg", "x"], &["check"], &["run", "x.toml"]] {
        let output = run(root.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("Usage"), "{arguments:?}");
    }
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

/// Goal: `run` says where it listens, serves, and on SIGTERM and SIGINT lets what is in flight end: 0.
#[test]
fn run_serves_and_stops_in_order() {
    let upstream = Serving::ok();
    for name in ["TERM", "INT"] {
        let root = written(&Setup::route(upstream.address(), ""));
        let daemon = Daemon::start(root.path(), &["run", "--config", "breaker.toml"]);
        assert!(
            daemon.words.contains("state") && daemon.words.contains("(new)"),
            "{}",
            daemon.words
        );
        assert!(!daemon.words.contains(super::support::TOKEN), "a log is no place for a token");
        assert_eq!(daemon.get().text(), "ok");
        let (data, admin) = (daemon.data, daemon.admin);
        assert_eq!(daemon.end(name).code(), Some(0), "SIG{name}");
        for address in [data, admin] {
            assert!(std::net::TcpStream::connect(address).is_err(), "somebody still listens");
        }
    }
}

/// Goal: a kill survives the crash of the process: after SIGKILL and a new start it is in force, by its id, and said.
#[test]
fn a_kill_survives_a_crash() {
    let upstream = Serving::ok();
    let root = written(&Setup::route(upstream.address(), ""));
    let arguments = ["run", "--config", "breaker.toml"];
    let daemon = Daemon::start(root.path(), &arguments);
    let kill = daemon.order("kill", "/default").json();
    assert_eq!(kill["durable"], true);
    assert_eq!(daemon.end("KILL").code(), None, "it was no orderly end");
    let daemon = Daemon::start(root.path(), &arguments);
    let answer = daemon.get();
    assert_eq!((answer.status(), &answer.json()["id"]), (503, &kill["id"]));
    let id = kill["id"].as_str().unwrap();
    assert!(daemon.words.contains("KILLED") && daemon.words.contains(id), "{}", daemon.words);
    assert_eq!(daemon.order("lift", "/default").status(), 200);
    assert_eq!(daemon.get().status(), 200);
    assert_eq!(daemon.end("TERM").code(), Some(0));
    assert_eq!(upstream.heard().len(), 1);
}

/// Goal: on a full disk a kill is in force and says that it is not durable, which is no success; nothing is lifted that could
/// not be written; probes and metrics tell; and what was answered as durable is back after the next start.
#[test]
fn a_full_disk_stops_no_kill_and_is_no_secret() {
    let upstream = Serving::ok();
    let root = written(&Setup::route(upstream.address(), ""));
    let arguments = ["run", "--config", "breaker.toml"];
    let daemon = Daemon::start_on_a_full_disk(root.path(), &arguments, 4096);
    assert_eq!(daemon.ask("GET", "/ready", "").status(), 200);
    let long = "x".repeat(450);
    let body = format!(r#"{{"reason":"{long}"}}"#);
    let mut durable = Vec::new();
    let lost = loop {
        let answer = daemon.ask("POST", "/v1/kill/default", &body);
        let kill = answer.json();
        if answer.status() != 200 {
            assert_eq!(answer.status(), 503);
            break kill;
        }
        durable.push(kill["id"].clone());
        assert!(durable.len() < 100, "the disk is never full");
    };
    assert!(!durable.is_empty());
    let facts = ["in_force", "silent", "durable"].map(|fact| lost[fact].as_bool());
    assert_eq!(facts, [Some(true), Some(true), Some(false)], "{lost}");
    // At another scope: in force as well, and as honest.
    let other = daemon.order("kill", "/");
    assert_eq!((other.status(), &other.json()["in_force"]), (503, &true.into()));
    assert_eq!(daemon.get().json()["id"], other.json()["id"]);
    let lift = daemon.order("lift", "/");
    assert_eq!((lift.status(), lift.code().as_str()), (503, "not-durable"));
    assert_eq!(daemon.order("reset", "/default/api").status(), 503);
    assert_eq!(daemon.get().status(), 503, "still killed");
    assert_eq!(daemon.ask("GET", "/ready", "").status(), 503);
    assert!(daemon.ask("GET", "/metrics", "").text().contains("breaker_journal_up 0"));
    let status = daemon.ask("GET", "/v1/status", "").json();
    assert_eq!(status["journal"], "lost");
    let kills = status["kills"].as_array().unwrap();
    assert_eq!(kills.iter().filter(|kill| kill["durable"] == false).count(), 2);
    assert_eq!(daemon.end("TERM").code(), Some(1), "the last record is not on the disk");

    // With room again: all that was durable is back, and nothing is in the way.
    let daemon = Daemon::start(root.path(), &arguments);
    assert_eq!(daemon.get().status(), 503);
    let kills = daemon.ask("GET", "/v1/status", "").json()["kills"].clone();
    let back: Vec<_> = kills.as_array().unwrap().iter().map(|kill| &kill["id"]).collect();
    assert!(durable.iter().all(|id| back.contains(&id)), "{back:?}");
    assert_eq!(daemon.order("lift", "/default").status(), 200);
    assert_eq!(daemon.end("TERM").code(), Some(0));
    assert!(upstream.heard().is_empty());
}

/// Goal: a start that fails after the configuration is 1, says why, and disturbs the one that runs.
#[test]
fn a_second_one_on_the_same_state_is_1() {
    let upstream = Serving::ok();
    let root = written(&Setup::route(upstream.address(), ""));
    let arguments = ["run", "--config", "breaker.toml"];
    let first = Daemon::start(root.path(), &arguments);
    let output = run(root.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("did not start") && said.contains("state"), "{said}");
    assert_eq!(first.get().status(), 200);
    assert_eq!(first.end("TERM").code(), Some(0));
}

/// Goal: the printed default is a configuration that is accepted, and with `--upstream` its route leads there.
#[test]
fn the_default_can_be_started_from() {
    let upstream = Serving::ok();
    let root = super::support::room();
    let output = run(root.path(), &["default"]);
    assert_eq!(output.status.code(), Some(0));
    let printed = text(&output.stdout);
    let mine =
        printed.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:9090", "127.0.0.1:0");
    assert_ne!(printed, mine);
    std::fs::write(root.path().join("mine.toml"), mine).unwrap();
    assert_eq!(run(root.path(), &["check", "mine.toml"]).status.code(), Some(0));
    let built_in = Daemon::start(root.path(), &["run", "--config", "mine.toml"]);
    assert!(built_in.words.contains("NO REAL UPSTREAM"), "{}", built_in.words);
    assert!(built_in.get().text().contains("built-in"));
    assert_eq!(built_in.end("TERM").code(), Some(0));
    let url = format!("http://{}", upstream.address());
    let aimed =
        Daemon::start(root.path(), &["run", "--config", "mine.toml", "--upstream", url.as_str()]);
    assert_eq!(aimed.get().text(), "ok");
    // The token that was made is private, and lets in.
    let token = std::fs::read_to_string(root.path().join("breaker-state/admin.token")).unwrap();
    eventually("status", || {
        let mut wire = Wire::connect(aimed.admin);
        let token = token.trim();
        wire.send(&format!(
            "GET /v1/status HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
        ));
        (wire.answer().status() == 200).then_some(())
    });
    assert_eq!(aimed.end("TERM").code(), Some(0));
    let bad = run(root.path(), &["run", "--config", "mine.toml", "--upstream", "ftp://x"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(text(&bad.stderr).contains("--upstream"), "{}", text(&bad.stderr));
}

/// A program whose standard output is its access log and whose standard error tells of spans: what both said until it was stopped after one
/// call with these fields.
fn seen(lines: &str, fields: &str) -> (String, String) {
    let room = super::support::room();
    let upstream = Serving::ok();
    let text = Setup::route(upstream.address(), "").text(&room.path().join("state"));
    std::fs::write(room.path().join("breaker.toml"), format!("{text}\n{lines}")).unwrap();
    let mut child = program(room.path()).args(["run", "--config", "breaker.toml"]).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut words = String::new();
    let data: SocketAddr = loop {
        let mut line = String::new();
        assert!(err.read_line(&mut line).unwrap() > 0, "it never became ready: {words}");
        words.push_str(&line);
        if let Some(rest) = line.strip_prefix("ready data=") {
            break rest.split(' ').next().unwrap().parse().unwrap();
        }
    };
    let mut client = Wire::connect(data);
    client.send(&format!("GET /x HTTP/1.1\r\nHost: a\r\nconnection: close\r\n{fields}\r\n"));
    assert_eq!(client.answer().status(), 200);
    client.rest();
    // The line of a span may come after the answer.
    if lines.contains("spans = true") {
        let mut line = String::new();
        err.read_line(&mut line).unwrap();
        words.push_str(&line);
    }
    signal(child.id(), "TERM");
    let output = Daemon::wait(child);
    assert!(output.status.success());
    err.read_to_string(&mut words).unwrap();
    (self::text(&output.stdout), words)
}

/// Goal: an access log on the standard output is alone there, and whole at the end.
#[test]
fn a_log_on_the_standard_output_is_alone_there() {
    let (out, err) = seen("[access_log]\npath = \"stdout\"", "");
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&line["path"], &line["verdict"]), (&"/x".into(), &"passed".into()));
    assert!(err.contains("breaker-proxy ") && !err.contains("\"verdict\""), "{err}");
}

/// Goal: a span is told once, when its request has ended, with what became of it and with its place in the trace.
#[test]
fn a_span_is_told_with_its_trace() {
    let fields = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let (_, err) = seen("[trace]\nspans = true\n[access_log]\npath = \"stdout\"", fields);
    let told: Vec<serde_json::Value> =
        err.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(told.len(), 1, "{err}");
    let span = &told[0]["span"];
    for (name, value) in [
        ("name", "request"),
        ("route", "/default/api"),
        ("verdict", "passed"),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c"),
        ("parent_id", "b7ad6b7169203331"),
    ] {
        assert_eq!(span[name], value, "{name}: {err}");
    }
    assert_eq!((&span["status"], &span["sampled"]), (&200.into(), &true.into()));
}
