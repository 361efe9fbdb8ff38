//! Lines for whoever watches the terminal: a thread of its own writes them; nobody waits for it, and what finds no room is dropped.

use crate::ports::SystemClock;
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Lines that may wait for a slow reader.
const LINES: usize = 1024;

static VOICE: OnceLock<Option<SyncSender<String>>> = OnceLock::new();

/// Says one line. Never waits and never fails: a reader that stopped reading, or is gone, must not keep a kill from being
/// carried out.
pub fn say(line: &str) {
    if let Some(lines) = VOICE.get_or_init(start) {
        // No room means that nobody reads; the journal has what matters.
        let at = humantime::format_rfc3339_millis(SystemClock::date());
        let _ = lines.try_send(format!("{at} breaker: {line}\n"));
    }
}

/// One thread for the life of the process. Without it nothing is said.
fn start() -> Option<SyncSender<String>> {
    let (lines, said) = sync_channel(LINES);
    let thread = std::thread::Builder::new().name("breaker-voice".into());
    thread.spawn(move || speak(&said)).ok().map(|_| lines)
}

fn speak(said: &Receiver<String>) {
    while let Ok(line) = said.recv() {
        // Where nobody listens there is nobody to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
