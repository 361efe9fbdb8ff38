//! The append-only file of what the ledger wrote, and the thread that makes it durable; it does not judge what it holds.

use crate::control::record::{BadLine, Entry, Record, VERSION};
use crate::ports::Wall;
use crate::state::sync_dir;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};

const FILE: &str = "journal";

/// Records that may wait for the disk.
const QUEUE: usize = 1024;

/// Records that share one sync.
const BATCH: usize = 256;

/// Bytes of the journal that a start reads, at most.
const REPLAY_MAX: u64 = 1 << 30;

/// Why the journal cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum JournalError {
    /// The system said no.
    Io(PathBuf, io::Error),
    /// A line that is not the torn last one is damaged.
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Larger than a start reads.
    TooLarge(PathBuf),
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JournalError::Io(path, error) => write!(f, "{}: {error}", path.display()),
            JournalError::Damaged { path, line, problem } => write!(
                f,
                "{}:{line}: {problem}. Kills may be recorded there, so nothing was started: restore the file \
                 from a copy, or move the state directory away and kill again what must stay killed",
                path.display()
            ),
            JournalError::TooLarge(path) => {
                write!(f, "{}: larger than {REPLAY_MAX} bytes", path.display())
            }
        }
    }
}

impl std::error::Error for JournalError {}

/// The journal's file, open at its end.
#[derive(Debug)]
pub struct Journal {
    file: File,
    next: u64,
    /// A write or a sync failed: what is on the disk is unknown, and no later success would prove anything.
    lost: bool,
}

/// What a start found.
#[derive(Debug)]
pub struct Replay {
    /// All records, oldest first.
    pub entries: Vec<Entry>,
    /// A last line without its end was cut off: its act was never answered as durable.
    pub torn: bool,
}

impl Journal {
    /// Opens the journal of a state directory and reads all of it.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged anywhere but in a torn last line.
    pub fn open(dir: &Path) -> Result<(Journal, Replay), JournalError> {
        let path = dir.join(FILE);
        let io = |error| JournalError::Io(path.clone(), error);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        if file.metadata().map_err(io)?.len() > REPLAY_MAX {
            return Err(JournalError::TooLarge(path));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let torn = whole < bytes.len();
        bytes.truncate(whole);
        let mut entries = Vec::new();
        for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let damaged = |problem: String| JournalError::Damaged {
                path: path.clone(),
                line: index + 1,
                problem,
            };
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let text = std::str::from_utf8(line).map_err(|error| damaged(error.to_string()))?;
            let entry =
                Entry::from_line(text).map_err(|problem: BadLine| damaged(problem.to_string()))?;
            let expected = u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1);
            if entry.seq != expected {
                return Err(damaged(format!("record {} where {expected} belongs", entry.seq)));
            }
            entries.push(entry);
        }
        if torn {
            let length = u64::try_from(whole).unwrap_or(u64::MAX);
            file.set_len(length).and_then(|()| file.sync_all()).map_err(io)?;
            file.seek(io::SeekFrom::End(0)).map_err(io)?;
        }
        sync_dir(dir).map_err(io)?;
        let next = u64::try_from(entries.len()).unwrap_or(u64::MAX).saturating_add(1);
        Ok((Journal { file, next, lost: false }, Replay { entries, torn }))
    }

    /// Appends records and makes them durable, all or none as far as an answer goes.
    ///
    /// # Errors
    /// The disk failed, now or ever before.
    pub fn append(&mut self, records: &[(Wall, Record)]) -> io::Result<()> {
        if self.lost {
            return Err(io::Error::other("the journal failed before; it is not trusted again"));
        }
        let mut text = String::new();
        for ((at, record), seq) in records.iter().zip(self.next..) {
            let entry = Entry { v: VERSION, seq, at: at.0, record: record.clone() };
            text.push_str(&entry.to_line());
        }
        let done = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if done.is_err() {
            self.lost = true;
            return done;
        }
        self.next = self.next.saturating_add(u64::try_from(records.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}

type Done = oneshot::Sender<bool>;
type Job = (Wall, Record, Done);

/// The way to the journal's thread.
#[derive(Clone, Debug)]
pub struct Pen {
    queue: mpsc::Sender<Job>,
}

impl Pen {
    /// Hands a record over. The receiver yields true once it is durable, false (or an error) if it will never be.
    #[must_use]
    pub fn write(&self, at: Wall, record: Record) -> oneshot::Receiver<bool> {
        let (done, durable) = oneshot::channel();
        // A full queue drops `done`, and the receiver says so.
        let _ = self.queue.try_send((at, record, done));
        durable
    }
}

/// Starts the journal's thread. It ends when all pens are gone and all records are written.
///
/// # Errors
/// The system gives no thread.
pub fn start(mut journal: Journal) -> io::Result<(Pen, JoinHandle<()>)> {
    let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
    let thread = std::thread::Builder::new().name("breaker-journal".into()).spawn(move || {
        let mut batch = Vec::new();
        let mut answers = Vec::new();
        while let Some((at, record, done)) = jobs.blocking_recv() {
            batch.push((at, record));
            answers.push(done);
            while batch.len() < BATCH
                && let Ok((at, record, done)) = jobs.try_recv()
            {
                batch.push((at, record));
                answers.push(done);
            }
            let durable = journal.append(&batch).is_ok();
            for done in answers.drain(..) {
                // Nobody waits any more: the record is written all the same.
                let _ = done.send(durable);
            }
            batch.clear();
        }
    })?;
    Ok((Pen { queue }, thread))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped() -> (Wall, Record) {
        (Wall(1), Record::Stopped {})
    }

    fn started(boot: u64) -> (Wall, Record) {
        (Wall(1), Record::Started { boot, version: "x".into(), torn: false })
    }

    /// Goal: whatever was acknowledged is read back; a file cut at any byte never opens with a whole record lost or
    /// a record invented.
    #[test]
    fn a_file_cut_anywhere_keeps_its_whole_lines() {
        let root = tempfile::tempdir().unwrap();
        let (mut journal, replay) = Journal::open(root.path()).unwrap();
        assert!(replay.entries.is_empty());
        journal.append(&[started(1), stopped()]).unwrap();
        journal.append(&[started(2)]).unwrap();
        drop(journal);
        let whole = std::fs::read(root.path().join(FILE)).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(root.path().join(FILE), &whole[..cut]).unwrap();
            let (mut journal, replay) = Journal::open(root.path()).unwrap();
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(replay.entries.len(), lines, "cut at {cut}");
            assert_eq!(replay.torn, cut > 0 && whole[cut - 1] != b'\n', "cut at {cut}");
            // And it goes on from there.
            journal.append(&[stopped()]).unwrap();
            let (_, replay) = Journal::open(root.path()).unwrap();
            assert_eq!(replay.entries.len(), lines + 1);
        }
    }

    /// Goal: a flipped bit anywhere before the last line's end refuses the start and names file and line.
    #[test]
    fn a_damaged_middle_refuses_the_start() {
        let root = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(root.path()).unwrap();
        journal.append(&[started(1), stopped(), started(2)]).unwrap();
        let path = root.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for index in 0..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[index] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            match Journal::open(root.path()) {
                Err(error) => {
                    assert!(error.to_string().contains("journal:"), "{error}");
                }
                Ok((_, replay)) => panic!("byte {index}: opened with {:?}", replay.entries),
            }
        }
    }
}
