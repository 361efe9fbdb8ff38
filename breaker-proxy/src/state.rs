//! The state directory: made where it is missing, locked, and home of the token; the journal's records are not its business.

use crate::config::{State, TokenSource};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Why the state directory cannot be used. Each names the path.
#[derive(Debug)]
#[non_exhaustive]
pub enum StateError {
    /// It holds no journal, and the configuration says that it must.
    Required(PathBuf),
    /// Another process holds it.
    Locked(PathBuf),
    /// The system said no.
    Io(PathBuf, io::Error),
    /// The token file can be read by others.
    TokenExposed(PathBuf, u32),
    /// The token file holds no usable token.
    TokenBad(PathBuf),
    /// The system has no random bytes.
    Random,
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::Required(path) => write!(
                f,
                "state.dir: {} holds no journal and state.required is set: mount the right directory, \
                 or set state.required = false for a first start",
                path.display()
            ),
            StateError::Locked(path) => write!(
                f,
                "state.dir: {} is held by another running breaker-proxy: stop it, or give this one a \
                 directory of its own",
                path.display()
            ),
            StateError::Io(path, error) => write!(f, "{}: {error}", path.display()),
            StateError::TokenExposed(path, mode) => write!(
                f,
                "{}: others may read this token (mode {mode:o}): chmod 600 it and make a new token",
                path.display()
            ),
            StateError::TokenBad(path) => write!(
                f,
                "{}: holds no token of at least 16 printable characters: remove it to have one made",
                path.display()
            ),
            StateError::Random => f.write_str("the system's random source gave nothing"),
        }
    }
}

impl std::error::Error for StateError {}

/// A state directory that is ours as long as this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    new: bool,
    /// Held for its lock.
    _lock: File,
}

/// The journal's file.
pub const JOURNAL: &str = "journal";
const LOCK: &str = "lock";
const TOKEN: &str = "admin.token";
const TOKEN_MIN: usize = 16;

impl StateDir {
    /// Takes the directory.
    ///
    /// # Errors
    /// It cannot be made or is required and missing, or another process has it.
    pub fn take(state: &State) -> Result<StateDir, StateError> {
        let path = &state.dir;
        let io = |error| StateError::Io(path.clone(), error);
        // Not whether it is empty: a wrong volume holds a `lost+found`, and a start that failed early leaves its lock.
        let new = !path.join(JOURNAL).try_exists().map_err(io)?;
        if new && state.required {
            return Err(StateError::Required(path.clone()));
        }
        if new {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        }
        let path = fs::canonicalize(path).map_err(io)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path, new, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::Locked(path)),
            Err(TryLockError::Error(error)) => Err(StateError::Io(path, error)),
        }
    }

    /// Its absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Was it new: is there nothing yet that a start could bring back?
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// The admin token, and the file it stands in, if any.
    ///
    /// # Errors
    /// The file cannot be read or written, can be read by others, or holds no token.
    pub fn token(&self, source: &TokenSource) -> Result<(String, Option<PathBuf>), StateError> {
        match source {
            TokenSource::Value(token) => Ok((token.clone(), None)),
            TokenSource::File(path) => Ok((read_token(path)?, Some(path.clone()))),
            TokenSource::Generated => {
                let path = self.path.join(TOKEN);
                match read_token(&path) {
                    Ok(token) => Ok((token, Some(path))),
                    Err(StateError::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                        let token = make_token(&path)?;
                        Ok((token, Some(path)))
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }
}

fn read_token(path: &Path) -> Result<String, StateError> {
    let io = |error| StateError::Io(path.to_owned(), error);
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::TokenExposed(path.to_owned(), mode));
    }
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text).map_err(io)?;
    let token = text.trim();
    if token.len() < TOKEN_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(StateError::TokenBad(path.to_owned()));
    }
    Ok(token.to_owned())
}

fn make_token(path: &Path) -> Result<String, StateError> {
    let io = |error| StateError::Io(path.to_owned(), error);
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).map_err(|_| StateError::Random)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // Under another name first: a crash in between must not leave half a token.
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io)?;
    writeln!(file, "{token}").and_then(|()| file.sync_all()).map_err(io)?;
    fs::rename(&draft, path).map_err(io)?;
    Ok(token)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// The system said no.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(dir: &Path, required: bool) -> State {
        State { dir: dir.to_owned(), required, save_every: breaker_core::Span::from_secs(30) }
    }

    /// Goal: two instances never share a state directory, and the lock goes with its holder.
    #[test]
    fn a_second_instance_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("state");
        let first = StateDir::take(&state(&dir, false)).unwrap();
        assert!(first.is_new());
        let second = StateDir::take(&state(&dir, false));
        assert!(matches!(second, Err(StateError::Locked(_))), "{second:?}");
        drop(first);
        fs::write(dir.join(JOURNAL), "").unwrap();
        assert!(!StateDir::take(&state(&dir, true)).unwrap().is_new());
    }

    /// Goal: a state that must be there is not made anew in silence.
    #[test]
    fn required_state_is_not_invented() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("volume/lost+found")).unwrap();
        for dir in ["gone", "volume"] {
            let taken = StateDir::take(&state(&root.path().join(dir), true));
            assert!(matches!(taken, Err(StateError::Required(_))), "{dir}: {taken:?}");
        }
    }

    /// Goal: the token is made once, kept, private, and refused once others may read it.
    #[test]
    fn the_token_is_made_once_and_stays_private() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::take(&state(root.path(), false)).unwrap();
        let (token, path) = dir.token(&TokenSource::Generated).unwrap();
        let path = path.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(token.len() >= 32);
        assert_eq!(dir.token(&TokenSource::Generated).unwrap().0, token);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = dir.token(&TokenSource::Generated);
        assert!(matches!(exposed, Err(StateError::TokenExposed(_, 0o644))), "{exposed:?}");
    }
}
