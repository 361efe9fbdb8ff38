//! The append-only file of what the ledger wrote, and the thread that makes it durable; it does not judge what it holds.

use crate::control::record::{BadLine, Entry, Record, VERSION};
use crate::ports::Wall;
use crate::state::{JOURNAL, sync_dir};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};

/// Records that may wait for the disk.
const QUEUE: usize = 1024;

/// Records that share one sync.
const BATCH: usize = 256;

/// Bytes of one line, at most: an act's reason and labels are bounded, so a longer one is no record of ours.
const LINE_MAX: u64 = 64 * 1024;

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
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
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
        }
    }
}

impl std::error::Error for JournalError {}

/// The journal's file, open at its end.
#[derive(Debug)]
pub struct Journal {
    file: File,
    next: u64,
    /// Bytes known to be durable.
    whole: u64,
    /// A write or a sync failed: what is on the disk is unknown, and no later success would prove anything.
    lost: bool,
}

impl Journal {
    /// Opens the journal of a state directory and hands over every record, oldest first. True: a last line without its end
    /// was cut off; its act was never answered as durable.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged anywhere but in a torn last line.
    pub fn open(dir: &Path, mut take: impl FnMut(&Entry)) -> Result<(Journal, bool), JournalError> {
        let path = dir.join(JOURNAL);
        let io = |error| JournalError::Io(path.clone(), error);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        let mut reader = BufReader::new(&file);
        let (mut next, mut whole) = (1u64, 0u64);
        let mut line = Vec::new();
        let torn = loop {
            line.clear();
            let read = (&mut reader).take(LINE_MAX).read_until(b'\n', &mut line).map_err(io)?;
            let read = u64::try_from(read).unwrap_or(u64::MAX);
            let damaged =
                |problem: String| JournalError::Damaged { path: path.clone(), line: next, problem };
            let Some(text) = line.strip_suffix(b"\n") else {
                if read == LINE_MAX {
                    return Err(damaged(format!("no record has {LINE_MAX} bytes")));
                }
                break read > 0;
            };
            let text = std::str::from_utf8(text).map_err(|error| damaged(error.to_string()))?;
            let entry =
                Entry::from_line(text).map_err(|problem: BadLine| damaged(problem.to_string()))?;
            if entry.seq != next {
                return Err(damaged(format!("record {} where {next} belongs", entry.seq)));
            }
            take(&entry);
            next += 1;
            whole += read;
        };
        if torn {
            file.set_len(whole).and_then(|()| file.sync_all()).map_err(io)?;
            file.seek(io::SeekFrom::End(0)).map_err(io)?;
        }
        sync_dir(dir).map_err(io)?;
        Ok((Journal { file, next, whole, lost: false }, torn))
    }

    /// Appends records and makes them durable, all or none as far as an answer goes.
    ///
    /// # Errors
    /// The disk failed, now or ever before.
    pub fn append(&mut self, records: &[(Wall, Record)]) -> io::Result<()> {
        if self.lost {
            return Err(io::Error::other("the journal failed before; it is not trusted again"));
        }
        let text = self.text(records.iter());
        let done = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if done.is_err() {
            self.lost = true;
            self.take_back(records);
            return done;
        }
        self.whole = self.whole.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        self.next = self.next.saturating_add(u64::try_from(records.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}

impl Journal {
    fn text<'a>(&self, records: impl Iterator<Item = &'a (Wall, Record)>) -> String {
        let mut text = String::new();
        for ((at, record), seq) in records.zip(self.next..) {
            let entry = Entry { v: VERSION, seq, at: at.0, record: record.clone() };
            text.push_str(&entry.to_line());
        }
        text
    }

    /// After a failure: what stands behind the durable part was answered as not done, and a restart must not find a lift
    /// there. What blocks is written once more, if the disk takes it: it is in force.
    fn take_back(&mut self, records: &[(Wall, Record)]) {
        let blocks = |record: &Record| matches!(record, Record::Kill { .. } | Record::Trip { .. });
        if self.file.set_len(self.whole).is_ok() {
            let text = self.text(records.iter().filter(|(_, record)| blocks(record)));
            let _ = self.file.write_all(text.as_bytes());
        }
        let _ = self.file.sync_data();
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

    /// Is at least half of the queue free? What nobody ordered waits for that, so that an order always finds a place.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.capacity() >= QUEUE / 2
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

    fn open(dir: &Path) -> Result<(Journal, Vec<Entry>, bool), JournalError> {
        let mut entries = Vec::new();
        let (journal, torn) = Journal::open(dir, |entry| entries.push(entry.clone()))?;
        Ok((journal, entries, torn))
    }

    fn started(boot: u64) -> (Wall, Record) {
        (Wall(1), Record::Started { boot, version: "x".into(), torn: false })
    }

    /// Goal: whatever was acknowledged is read back; a file cut at any byte never opens with a whole record lost or
    /// a record invented.
    #[test]
    fn a_file_cut_anywhere_keeps_its_whole_lines() {
        let root = tempfile::tempdir().unwrap();
        let (mut journal, entries, _) = open(root.path()).unwrap();
        assert!(entries.is_empty());
        journal.append(&[started(1), stopped()]).unwrap();
        journal.append(&[started(2)]).unwrap();
        drop(journal);
        let whole = std::fs::read(root.path().join(JOURNAL)).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(root.path().join(JOURNAL), &whole[..cut]).unwrap();
            let (mut journal, entries, torn) = open(root.path()).unwrap();
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(entries.len(), lines, "cut at {cut}");
            assert_eq!(torn, cut > 0 && whole[cut - 1] != b'\n', "cut at {cut}");
            // And it goes on from there.
            journal.append(&[stopped()]).unwrap();
            let (_, entries, _) = open(root.path()).unwrap();
            assert_eq!(entries.len(), lines + 1);
        }
    }

    /// Goal: a flipped bit anywhere before the last line's end refuses the start and names file and line.
    #[test]
    fn a_damaged_middle_refuses_the_start() {
        let root = tempfile::tempdir().unwrap();
        let (mut journal, _, _) = open(root.path()).unwrap();
        journal.append(&[started(1), stopped(), started(2)]).unwrap();
        let path = root.path().join(JOURNAL);
        let whole = std::fs::read(&path).unwrap();
        for index in 0..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[index] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            match open(root.path()) {
                Err(error) => {
                    assert!(error.to_string().contains("journal:"), "{error}");
                }
                Ok((_, entries, _)) => panic!("byte {index}: opened with {entries:?}"),
            }
        }
    }

    /// Goal: of records that the disk took but that were answered as not done, a restart finds what blocks, and no lift.
    #[test]
    fn a_lift_that_failed_was_found_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let (mut journal, _, _) = open(root.path()).unwrap();
        journal.append(&[started(1)]).unwrap();
        let order = (String::from("/pay"), String::from("a"), String::from("r"));
        let (scope, actor, reason) = order.clone();
        let to = crate::control::record::LiftTo::Armed;
        let lift = Record::Lift { ids: vec!["k1-1".into()], scope, to, actor, reason };
        let (scope, actor, reason) = order;
        let trip = Record::Trip { scope, actor, reason };
        let records = [(Wall(1), lift), (Wall(1), trip.clone())];
        // What a write leaves behind whose sync fails.
        let text = journal.text(records.iter());
        journal.file.write_all(text.as_bytes()).unwrap();
        journal.take_back(&records);
        drop(journal);
        let (_, entries, torn) = open(root.path()).unwrap();
        assert!(!torn);
        let found: Vec<&Record> = entries.iter().map(|entry| &entry.record).collect();
        assert_eq!(found, [&started(1).1, &trip]);
    }
}
