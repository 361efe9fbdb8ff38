//! What is tried with Python's `websockets`, client and server: what it asks for by itself, and kills that end it.

use super::{Bench, Door, Ledger, scripts};
use crate::admin::Answer;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Runs everything there is.
pub(super) fn check(bench: &Bench, door: &Door, ledger: &mut Ledger) {
    for (verb, path) in [("talk", "/sockets"), ("refused", "/quiet")] {
        let name = |check: &str| format!("websockets {check}, {}", door.name);
        match said(bench, door, verb, path) {
            Err(why) => ledger.note(&name(verb), Err(why)),
            Ok(text) => match read(&text) {
                Some(lines) => lines
                    .into_iter()
                    .for_each(|(check, outcome)| ledger.note(&name(&check), outcome)),
                None => ledger.note(&name(verb), Err(format!("its words: {text}"))),
            },
        }
    }
    for level in ["halt", "cut"] {
        ledger.note(&format!("websockets {level}, {}", door.name), ended(bench, door, level));
    }
}

/// The checks in what the client printed: name, and what was seen or went wrong.
pub(super) type Lines = Vec<(String, Result<String, String>)>;

/// Reads what a client printed; `None`: it printed something else.
pub(super) fn read(text: &str) -> Option<Lines> {
    let line = |line: &str| {
        let mut parts = line.splitn(3, '\t');
        let (name, word, seen) = (parts.next()?, parts.next()?, parts.next()?.to_owned());
        match word {
            "ok" => Some((name.to_owned(), Ok(seen))),
            "bad" => Some((name.to_owned(), Err(seen))),
            _ => None,
        }
    };
    let lines: Option<Lines> = text.lines().map(line).collect();
    lines.filter(|lines| !lines.is_empty())
}

fn client(bench: &Bench, door: &Door, verb: &str, path: &str) -> Command {
    let mut command = Command::new(&bench.python);
    command
        .arg(scripts().join("sockets_client.py"))
        .arg(verb)
        .arg(format!("{}{path}", door.sockets));
    command.args(&door.trusted).stdin(Stdio::null());
    command
}

fn said(bench: &Bench, door: &Door, verb: &str, path: &str) -> Result<String, String> {
    said_by(client(bench, door, verb, path))
}

/// What a client printed, or its last complaint.
pub(super) fn said_by(mut client: Command) -> Result<String, String> {
    let output = client.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(complaint.lines().last().unwrap_or("it failed").to_owned())
    }
}

/// A client that waits for its connection to end.
pub(super) struct Waiting {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Waiting {
    /// Starts it.
    pub(super) fn start(mut client: Command) -> Result<Waiting, String> {
        let mut child = client.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let out = child.stdout.take().map(BufReader::new).ok_or("no words")?;
        Ok(Waiting { child, out })
    }

    /// The next line that it prints.
    pub(super) fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        // It says something within ten seconds, or ends.
        self.out.read_line(&mut line).map_err(|error| error.to_string())?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Our own child; an error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills the route under an open WebSocket.
fn ended(bench: &Bench, door: &Door, level: &str) -> Result<String, String> {
    let words = |error: crate::error::LoadError| error.to_string();
    let mut waiting = Waiting::start(client(bench, door, "held", "/sockets"))?;
    let open = waiting.line()?;
    if open != "open" {
        return Err(format!("it did not connect: {open}"));
    }
    let killed =
        door.proxy.admin.kill("/default/sockets", level).and_then(Answer::good).map_err(words)?;
    let end = waiting.line();
    let refused = said(bench, door, "refused", "/sockets");
    door.proxy.admin.lift("/default/sockets").and_then(Answer::good).map_err(words)?;
    judge(&end?, killed.number("severed"), &refused?)
}

/// Whether the connection ended with the kill, which says so, and no other began.
fn judge(end: &str, severed: Option<u64>, refused: &str) -> Result<String, String> {
    let new = read(refused).unwrap_or_default().into_iter().next().map(|(_, outcome)| outcome);
    match (end.strip_prefix("ended "), severed, new) {
        (Some(how), Some(1), Some(Ok(new))) if new == "answered 503" => {
            Ok(format!("it ended (ms after it opened, and how: {how}); a new one was {new}"))
        }
        (_, _, new) => {
            Err(format!("{end:?}; the kill says severed {severed:?}; a new one: {new:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every line is a check with its outcome; silence or other words are not taken for success.
    #[test]
    fn the_clients_words_are_read() {
        let lines = read("text\tok\tcame back\nlarge\tbad\tAssertionError: 7\tx\n").unwrap();
        assert_eq!(lines[0], ("text".to_owned(), Ok("came back".to_owned())));
        assert_eq!(lines[1], ("large".to_owned(), Err("AssertionError: 7\tx".to_owned())));
        for bad in ["", "text\tok", "text\tperhaps\tx\n", "Traceback\n"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    /// Goal: only an end, a kill that counts it, and a refusal of the next one are a success together.
    #[test]
    fn a_kill_must_end_it() {
        let refused = "refused\tok\tanswered 503\n";
        assert!(judge("ended 12 ConnectionClosedError", Some(1), refused).is_ok());
        assert!(judge("held", Some(1), refused).is_err());
        assert!(judge("ended 12 x", Some(0), refused).is_err());
        assert!(judge("ended 12 x", Some(1), "refused\tok\tanswered 404\n").is_err());
        assert!(
            judge("ended 12 x", Some(1), "refused\tbad\tAssertionError: it was let through\n")
                .is_err()
        );
    }
}
