//! Where spans go when the program runs by itself: to the terminal, a line of JSON for each when it ends. Whoever embeds the library has a
//! subscriber of its own. Nobody waits for a line.

use crate::voice::tell_span;
use std::io;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Listens to spans for the life of the process; false: somebody does already.
pub(crate) fn listen() -> bool {
    let lines = tracing_subscriber::fmt().json().flatten_event(true).with_target(false);
    let lines = lines.with_max_level(tracing::Level::INFO).with_span_list(false);
    lines.with_span_events(FmtSpan::CLOSE).with_writer(Lines).try_init().is_ok()
}

/// Makes a writer for each line.
#[derive(Clone, Copy, Debug)]
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        Lines
    }
}

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        tell_span(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
