//! Programs of any maker that we start, wait for, and end by their process ids; it knows no proxy.

use crate::error::LoadError;
use crate::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    name: &'static str,
    words: PathBuf,
}

/// How long a program may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a program may take to end before it is ended the hard way.
const FAREWELL: Duration = Duration::from_secs(3);

/// Between two looks.
const STEP: Duration = Duration::from_millis(5);

impl Running {
    /// Starts `command`; what it says goes into a file in `dir`.
    ///
    /// # Errors
    /// When it cannot be started at all.
    pub(crate) fn start(
        mut command: Command,
        name: &'static str,
        dir: &Path,
    ) -> Result<Running, LoadError> {
        let words = dir.join("words.log");
        let out = File::create(&words).map_err(LoadError::io("keep a program's words"))?;
        let err = out.try_clone().map_err(LoadError::io("keep a program's words"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| LoadError::Io { what: name, source })?;
        Ok(Running { child, name, words })
    }

    /// Waits until something listens at `addr`.
    ///
    /// # Errors
    /// When the program ends instead, with its last words, or nothing listens in time.
    pub(crate) fn listens(&mut self, addr: SocketAddr) -> Result<(), LoadError> {
        wait::until(self.name, PATIENCE, STEP, || {
            let ended = self.child.try_wait().map_err(LoadError::io("look after a program"))?;
            if ended.is_some() {
                return Err(LoadError::Unreadable(format!(
                    "{}, which ended at its start: {}",
                    self.name,
                    self.last_words()
                )));
            }
            Ok(TcpStream::connect(addr).ok().map(drop))
        })
    }

    /// Waits until it has printed a port of loopback, as its first line.
    ///
    /// # Errors
    /// When it ends instead, with its last words, or prints none in time.
    pub(crate) fn prints_port(&mut self) -> Result<SocketAddr, LoadError> {
        wait::until(self.name, PATIENCE, STEP, || {
            let text = std::fs::read_to_string(&self.words).unwrap_or_default();
            if let Some(port) = port_in(&text) {
                return Ok(Some(SocketAddr::from(([127, 0, 0, 1], port))));
            }
            let ended = self.child.try_wait().map_err(LoadError::io("look after a program"))?;
            match ended {
                None => Ok(None),
                Some(_) => Err(LoadError::Unreadable(format!(
                    "{}, which ended at its start: {}",
                    self.name,
                    self.last_words()
                ))),
            }
        })
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it said, on one line.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.words).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

/// The port on the first line, once that is whole.
fn port_in(text: &str) -> Option<u16> {
    text.split_once('\n')?.0.trim().parse().ok()
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ours, by its id: it has not been waited for, so the id cannot have passed on to another.
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let gone = wait::until(self.name, FAREWELL, STEP, || {
                self.child.try_wait().map_err(LoadError::io("wait for a program"))
            });
            if gone.is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

/// A port on loopback that was free a moment ago; nobody else on this machine is expected to take it.
///
/// # Errors
/// When there is none.
pub(crate) fn free_port() -> Result<SocketAddr, LoadError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(LoadError::io("find a free port"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// Goal: a program that ends instead of listening is reported with its own words.
    #[test]
    fn a_program_that_gives_up_is_quoted() {
        let dir = TempDir::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo no port >&2; exit 3"]);
        let mut running = Running::start(command, "sh", dir.path()).unwrap();
        let error = running.listens(free_port().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no port"), "{error}");
    }

    /// Goal: a port is believed once its line is whole, and nothing else is one.
    #[test]
    fn a_port_is_a_whole_line() {
        assert_eq!(port_in("8080\nmore"), Some(8080));
        for text in ["", "80", "none\n", "65536\n", "\n8080\n"] {
            assert_eq!(port_in(text), None, "{text:?}");
        }
    }

    /// Goal: a program is gone once its value is.
    #[test]
    fn a_dropped_program_is_gone() {
        let dir = TempDir::new().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let running = Running::start(command, "sleep", dir.path()).unwrap();
        let pid = running.pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
