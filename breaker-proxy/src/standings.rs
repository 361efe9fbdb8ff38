//! The file of standings: where limits stood and what was learned, with the seed that makes sense of it; it restores nothing.
//!
//! A line that names the form, a line of JSON, a line with the checksum of both. It is written beside and renamed, so that it is there whole
//! or as it was before.

use crate::state::sync_dir;
use breaker_core::SavedWhole;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The file's name in the state directory.
pub const STANDINGS: &str = "standings";

/// The first line. Another one is of another version.
const FORM: &str = "breaker-standings 1\n";

/// What is kept. It holds the seed of the keys' hashes: as secret as a token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The number of the start that wrote it.
    pub boot: u64,
    /// When, in nanoseconds since 1970.
    pub at: u64,
    /// Nothing was admitted after it: the last act of an orderly stop.
    pub last: bool,
    /// What the keys were hashed under.
    pub seed: [u64; 2],
    /// Where all stood, and what was learned.
    pub whole: SavedWhole,
}

/// Why a file of standings cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum BadStandings {
    /// The system said no.
    Io(io::Error),
    /// It is of another version.
    Form,
    /// The checksum does not fit: it is cut short, or damaged.
    Damaged,
    /// It says what it cannot.
    Content(String),
}

impl fmt::Display for BadStandings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadStandings::Io(error) => write!(f, "cannot be read: {error}"),
            BadStandings::Form => f.write_str("is of another version"),
            BadStandings::Damaged => f.write_str("is damaged: its checksum does not fit"),
            BadStandings::Content(problem) => write!(f, "says what it cannot: {problem}"),
        }
    }
}

impl std::error::Error for BadStandings {}

/// Reads the file of a state directory; `None`: there is none.
///
/// # Errors
/// Why it cannot be used.
pub fn read(dir: &Path) -> Result<Option<Kept>, BadStandings> {
    let text = match fs::read(dir.join(STANDINGS)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(BadStandings::Io(error)),
    };
    if !text.starts_with(FORM.as_bytes()) {
        return Err(BadStandings::Form);
    }
    // Eight digits and a newline.
    let Some((body, sum)) = text.len().checked_sub(SUM).and_then(|at| text.split_at_checked(at))
    else {
        return Err(BadStandings::Damaged);
    };
    if sum != format!("{:08x}\n", crc32fast::hash(body)).as_bytes() {
        return Err(BadStandings::Damaged);
    }
    let json = body.get(FORM.len()..).unwrap_or_default();
    let kept = serde_json::from_slice(json);
    kept.map(Some).map_err(|error| BadStandings::Content(error.to_string()))
}

/// Writes the file and makes it durable; the bytes that were written.
///
/// # Errors
/// The system said no. Then the file is as it was before.
pub fn write(dir: &Path, kept: &Kept) -> io::Result<u64> {
    let draft = dir.join("standings.draft");
    let file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    let mut out = Summing { inner: BufWriter::new(file), sum: crc32fast::Hasher::new(), bytes: 0 };
    out.write_all(FORM.as_bytes())?;
    serde_json::to_writer(&mut out, kept)?;
    out.write_all(b"\n")?;
    let Summing { mut inner, sum, bytes } = out;
    writeln!(inner, "{:08x}", sum.finalize())?;
    inner.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&draft, dir.join(STANDINGS))?;
    sync_dir(dir)?;
    Ok(bytes)
}

/// Bytes of the checksum's line.
const SUM: usize = 9;

/// Sums what passes.
struct Summing<W> {
    inner: W,
    sum: crc32fast::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.sum.update(bytes.get(..taken).unwrap_or_default());
        self.bytes = self.bytes.saturating_add(u64::try_from(taken).unwrap_or(u64::MAX));
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn kept(boot: u64) -> Kept {
        let (seed, whole) = ([1, u64::MAX], SavedWhole::default());
        Kept { boot, at: 7, last: true, seed, whole }
    }

    /// Goal: what was written is read back, privately; a second write replaces it whole; and no changed byte, nor one that is missing,
    /// goes unnoticed.
    #[test]
    fn any_changed_byte_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        assert!(read(root.path()).unwrap().is_none());
        for boot in 1..3 {
            write(root.path(), &kept(boot)).unwrap();
            let back = read(root.path()).unwrap().unwrap();
            assert_eq!((back.boot, back.at, back.last, back.seed), (boot, 7, true, [1, u64::MAX]));
        }
        let path = root.path().join(STANDINGS);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let whole = fs::read(&path).unwrap();
        for index in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[index] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(read(root.path()).is_err(), "byte {index}");
            fs::write(&path, &whole[..index]).unwrap();
            assert!(read(root.path()).is_err(), "cut at {index}");
        }
    }

    /// Goal: a file of another version is told as such, and one that fits its checksum and says nonsense is refused.
    #[test]
    fn another_version_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(STANDINGS);
        fs::write(&path, "breaker-standings 2\n{}\n00000000\n").unwrap();
        assert!(matches!(read(root.path()), Err(BadStandings::Form)));
        let body = format!("{FORM}{{\"boot\": 1}}\n");
        fs::write(&path, format!("{body}{:08x}\n", crc32fast::hash(body.as_bytes()))).unwrap();
        assert!(matches!(read(root.path()), Err(BadStandings::Content(_))));
    }
}
