//! An nginx of our own, with an own prefix, that logs a line for each request; it is ended exactly so that the log
//! is whole.

use crate::error::LoadError;
use crate::wait;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A running nginx.
pub(crate) struct Nginx {
    child: Child,
    addr: SocketAddr,
    prefix: TempDir,
}

/// What its access log holds, by status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Logged {
    /// Lines of each status.
    pub(crate) by_status: BTreeMap<u16, u64>,
    /// Lines that are no status: a log that broke off.
    pub(crate) strange: u64,
}

impl Logged {
    /// Counts the lines of a log that holds one status on each.
    pub(crate) fn count(text: &str) -> Logged {
        let mut logged = Logged::default();
        for line in text.split_terminator('\n') {
            match line.parse() {
                Ok(status) => *logged.by_status.entry(status).or_default() += 1,
                Err(_) => logged.strange += 1,
            }
        }
        // A last line without its end was cut off.
        if !text.is_empty() && !text.ends_with('\n') {
            logged.strange += 1;
        }
        logged
    }

    /// Requests in all.
    pub(crate) fn lines(&self) -> u64 {
        self.by_status.values().sum()
    }
}

/// How long nginx may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

impl Nginx {
    /// Starts nginx on a port of the system's choice.
    ///
    /// # Errors
    /// [`LoadError::Missing`] when it is not installed; else whatever kept it from starting.
    pub(crate) fn start() -> Result<Nginx, LoadError> {
        Nginx::serving("location / { return 200 \"ok\\n\"; }", &[])
    }

    /// The same with other locations, and with these files (name and content) below `files`, which its workers may write to.
    ///
    /// # Errors
    /// As [`Nginx::start`].
    pub(crate) fn serving(locations: &str, files: &[(&str, &[u8])]) -> Result<Nginx, LoadError> {
        let prefix = TempDir::new().map_err(LoadError::io("make a directory for nginx"))?;
        let store = prefix.path().join("files");
        let stored = || -> io::Result<()> {
            fs::create_dir(&store)?;
            for (name, content) in files {
                fs::write(store.join(name), content)?;
            }
            // Started by root, its workers are another user.
            fs::set_permissions(prefix.path(), fs::Permissions::from_mode(0o755))?;
            fs::set_permissions(&store, fs::Permissions::from_mode(0o777))
        };
        stored().map_err(LoadError::io("write what nginx serves"))?;
        // We bind the port and nginx inherits the socket (as in its own upgrade of a running binary): no race for a
        // port, and no wait until it listens.
        let listener = TcpListener::bind("127.0.0.1:0").map_err(LoadError::io("bind for nginx"))?;
        let addr = listener.local_addr().map_err(LoadError::io("bind for nginx"))?;
        let path = prefix.path().join("nginx.conf");
        fs::write(&path, configuration(addr, locations))
            .map_err(LoadError::io("write nginx.conf"))?;
        fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(io::Error::from)
            .map_err(LoadError::io("let nginx inherit a socket"))?;
        let child = Command::new("nginx")
            .arg("-p")
            .arg(prefix.path())
            .args(["-e", "error.log", "-c", "nginx.conf"])
            .env("NGINX", format!("{};", listener.as_raw_fd()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| not_found("nginx", error))?;
        Ok(Nginx { child, addr, prefix })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Asks it to end gracefully, which writes out the log's buffer, waits for that, and counts.
    ///
    /// # Errors
    /// When it does not end, or the log cannot be read.
    pub(crate) fn quit(mut self) -> Result<Logged, LoadError> {
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        kill(Pid::from_raw(pid), Signal::SIGQUIT)
            .map_err(io::Error::from)
            .map_err(LoadError::io("ask nginx to end"))?;
        let ended = wait::until("the end of nginx", PATIENCE, Duration::from_millis(5), || {
            self.child.try_wait().map_err(LoadError::io("wait for nginx"))
        })?;
        if !ended.success() {
            return Err(LoadError::Unreadable(format!(
                "the log of an nginx that ended with {ended}"
            )));
        }
        let log = self.prefix.path().join("access.log");
        let text = fs::read_to_string(log).map_err(LoadError::io("read nginx's access log"))?;
        Ok(Logged::count(&text))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Only after a failure is it still there; it is ours, by its pid. SIGTERM takes its worker along.
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// A program that is not there is told apart from one that does not start.
pub(crate) fn not_found(program: &'static str, error: io::Error) -> LoadError {
    if error.kind() == io::ErrorKind::NotFound {
        LoadError::Missing(program)
    } else {
        LoadError::Io { what: program, source: error }
    }
}

/// Says whether a program is installed, before anything is started that would have to be ended.
pub(crate) fn need(program: &'static str, version: &str) -> Result<(), LoadError> {
    Command::new(program)
        .arg(version)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map(|_| ())
        .map_err(|error| not_found(program, error))
}

/// One worker, everything below the prefix, one line with the status for each request.
fn configuration(addr: SocketAddr, locations: &str) -> String {
    format!(
        r#"daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    log_format status '$status';
    access_log access.log status buffer=64k;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    server {{
        listen {addr};
        client_max_body_size 0;
        {locations}
    }}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every whole line counts once, by its status; a log that broke off is not taken for a whole one.
    #[test]
    fn a_log_is_counted_line_by_line() {
        let logged = Logged::count("200\n200\n499\n");
        assert_eq!((logged.lines(), logged.strange), (3, 0));
        assert_eq!(logged.by_status, BTreeMap::from([(200, 2), (499, 1)]));
        assert_eq!(Logged::count(""), Logged::default());
        assert_eq!(Logged::count("200\n20").strange, 1);
        assert_eq!(Logged::count("200\n\n").strange, 1);
    }
}
