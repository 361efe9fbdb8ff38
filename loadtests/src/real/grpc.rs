//! What is tried with Python's `grpcio`, client and server: every kind of call, what a proxy refuses by itself, and kills that end a call.

use super::sockets::{Waiting, read, said_by};
use super::{Bench, Door, Ledger, scripts};
use crate::admin::Answer;
use crate::kill::HTTP2;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

/// The rules for it: `through`, where a proxy takes upstreams over HTTP/2.
pub(super) fn rules(server: SocketAddr, other: SocketAddr, through: bool) -> String {
    let mut rules = format!(
        "[[routes]]\nname = \"grpc-limited\"\nmatch = {{ path = \"/limited.Echo/{{*rest}}\" }}\n\
         upstream = \"http://{other}\"\nlimit = [{{ rate = \"1/h\", burst = 1 }}]\n\n\
         [[routes]]\nname = \"grpc-killed\"\nmatch = {{ path = \"/killed.Echo/{{*rest}}\" }}\n\
         upstream = \"http://{other}\"\n\n"
    );
    if through {
        rules.push_str(&format!(
            "[[upstreams]]\nname = \"grpc\"\nendpoints = [\"http://{server}\"]\n{HTTP2}\n\
             [[routes]]\nname = \"grpc\"\nmatch = {{ path = \"/test.Echo/{{*rest}}\" }}\nupstream = \"grpc\"\n\n"
        ));
    }
    rules
}

/// Runs everything that can be run.
pub(super) fn check(bench: &Bench, door: &Door, through: bool, ledger: &mut Ledger) {
    ledger.note(&format!("grpcio kill, {}", door.name), order(door, "kill"));
    all(bench, door, "refused", ledger);
    ledger.note(&format!("grpcio lift, {}", door.name), order(door, "lift"));
    if !through {
        return;
    }
    all(bench, door, "talk", ledger);
    for level in ["halt", "cut"] {
        ledger.note(&format!("grpcio {level}, {}", door.name), ended(bench, door, level));
    }
}

/// Kills or lifts what is refused.
fn order(door: &Door, verb: &str) -> Result<String, String> {
    let (admin, scope) = (&door.proxy.admin, "/default/grpc-killed");
    let done = if verb == "kill" { admin.kill(scope, "halt") } else { admin.lift(scope) };
    let answer = done.and_then(Answer::good).map_err(|error| error.to_string())?;
    Ok(format!("answered {}", answer.status))
}

fn all(bench: &Bench, door: &Door, verb: &str, ledger: &mut Ledger) {
    let name = |check: &str| format!("grpcio {check}, {}", door.name);
    match said_by(client(bench, door, verb)) {
        Err(why) => ledger.note(&name(verb), Err(why)),
        Ok(text) => match read(&text) {
            Some(lines) => {
                lines.into_iter().for_each(|(check, outcome)| ledger.note(&name(&check), outcome));
            }
            None => ledger.note(&name(verb), Err(format!("its words: {text}"))),
        },
    }
}

fn client(bench: &Bench, door: &Door, verb: &str) -> Command {
    let mut command = Command::new(&bench.python);
    command.arg(scripts().join("grpc_client.py")).arg(verb).arg(door.proxy.data.to_string());
    command.args(&door.trusted).stdin(Stdio::null());
    // It must come to us, whatever else the surroundings say.
    command.env("no_proxy", "127.0.0.1").env("GRPC_VERBOSITY", "NONE");
    command
}

/// Kills the route under a stream that goes both ways.
fn ended(bench: &Bench, door: &Door, level: &str) -> Result<String, String> {
    let words = |error: crate::error::LoadError| error.to_string();
    let mut waiting = Waiting::start(client(bench, door, "held"))?;
    let open = waiting.line()?;
    if open != "open" {
        return Err(format!("it did not begin: {open}"));
    }
    let scope = "/default/grpc";
    let killed = door.proxy.admin.kill(scope, level).and_then(Answer::good).map_err(words)?;
    let end = waiting.line();
    door.proxy.admin.lift(scope).and_then(Answer::good).map_err(words)?;
    judge(&end?, killed.number("severed"))
}

/// Whether the call ended with the kill, which says so. A reset of its stream is told by the client as it likes.
fn judge(end: &str, severed: Option<u64>) -> Result<String, String> {
    match (end.strip_prefix("ended "), severed) {
        (Some(how), Some(1)) if !how.starts_with("well") => {
            Ok(format!("it ended (ms after it opened, and how: {how})"))
        }
        _ => Err(format!("{end:?}; the kill says severed {severed:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only an end that is no good one, and a kill that counts it, are a success together.
    #[test]
    fn a_kill_must_end_it() {
        assert!(judge("ended 12 UNAVAILABLE killed: x", Some(1)).is_ok());
        for (end, severed) in [
            ("held", Some(1)),
            ("ended well", Some(1)),
            ("ended 1 UNAVAILABLE", Some(0)),
            ("", None),
        ] {
            assert!(judge(end, severed).is_err(), "{end}");
        }
    }

    /// Goal: the rules without upstreams over HTTP/2 are a configuration that a proxy takes.
    #[test]
    fn the_rules_are_taken() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(crate::proxy::takes(&rules(addr, addr, false)));
    }
}
