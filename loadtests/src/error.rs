//! What can keep a test from running at all; it says nothing about whether a test passed.

use crate::wire::WireError;
use std::fmt;
use std::io;

/// Why a test could not be carried out. Each fragment fits after "could not run: ".
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum LoadError {
    /// The system refused something; `what` says what was being done.
    Io {
        /// What was being done, as a phrase such as "start nginx".
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A program of another maker is not installed.
    Missing(&'static str),
    /// A peer spoke something that is not the HTTP/1.1 we read.
    Wire(WireError),
    /// The proxy did not start, with its own words.
    Proxy(String),
    /// The admin plane answered something unexpected.
    Admin {
        /// The HTTP status.
        status: u16,
        /// The start of the body.
        body: String,
    },
    /// Something did not happen in time; the text says what.
    Late(String),
    /// A program or a file said something we cannot read.
    Unreadable(String),
    /// The core refused our policy.
    Core(String),
    /// A thread of the test ended by a panic.
    Thread,
}

impl LoadError {
    /// Turns an `io::Error` into ours, naming what was being done.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> LoadError {
        move |source| LoadError::Io { what, source }
    }

    /// The exit code this error ends the program with: 3 for a missing program, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            LoadError::Missing(_) => 3,
            _ => 1,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Io { what, source } => write!(f, "{what}: {source}"),
            LoadError::Missing(program) => {
                write!(f, "{program} is not installed; run loadtests/install.sh (it needs root)")
            }
            LoadError::Wire(error) => write!(f, "a peer's bytes: {error}"),
            LoadError::Proxy(said) => write!(f, "the proxy did not start: {said}"),
            LoadError::Admin { status, body } => {
                write!(f, "the admin plane answered {status}: {body}")
            }
            LoadError::Late(what) => write!(f, "waited too long for {what}"),
            LoadError::Unreadable(what) => write!(f, "cannot read {what}"),
            LoadError::Core(said) => write!(f, "the core refused the policy: {said}"),
            LoadError::Thread => write!(f, "a thread of the test panicked"),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LoadError::Io { source, .. } => Some(source),
            LoadError::Wire(source) => Some(source),
            _ => None,
        }
    }
}

impl From<WireError> for LoadError {
    fn from(error: WireError) -> LoadError {
        LoadError::Wire(error)
    }
}
