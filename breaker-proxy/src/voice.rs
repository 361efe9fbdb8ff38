//! Lines for whoever watches the terminal: a thread of its own writes them; nobody waits for it, and what finds no room is dropped.

use crate::ports::SystemClock;
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Lines that may wait for a slow reader.
const LINES: usize = 1024;

/// A queue, and the thread behind it, once anything was said.
type Queue = OnceLock<Option<SyncSender<String>>>;

static VOICE: Queue = OnceLock::new();

/// Of its own, so that many spans leave room for what matters more.
static SPANS: Queue = OnceLock::new();

/// Says one line. Never waits and never fails: a reader that stopped reading, or is gone, must not keep a kill from being
/// carried out.
pub fn say(line: &str) {
    let at = humantime::format_rfc3339_millis(SystemClock::date());
    queue(&VOICE, "breaker-voice", format!("{at} breaker: {line}\n"));
}

/// Passes on the line of a span, with its end.
pub(crate) fn tell_span(line: String) {
    queue(&SPANS, "breaker-spans", line);
}

fn queue(queue: &Queue, thread: &str, line: String) {
    if let Some(lines) = queue.get_or_init(|| start(thread)) {
        // No room means that nobody reads; the journal has what matters.
        let _ = lines.try_send(line);
    }
}

/// One thread for the life of the process. Without it nothing is said.
fn start(thread: &str) -> Option<SyncSender<String>> {
    let (lines, said) = sync_channel(LINES);
    let thread = std::thread::Builder::new().name(thread.into());
    thread.spawn(move || speak(&said)).ok().map(|_| lines)
}

fn speak(said: &Receiver<String>) {
    while let Ok(line) = said.recv() {
        // Where nobody listens there is nobody to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
