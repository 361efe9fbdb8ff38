//! The access log on its way to a file: lines wait in a queue with a bound, and a thread of its own writes them; nobody waits for it, and
//! what finds no room is dropped and counted.

pub mod line;

use crate::config::sight::{AccessLog, LogFormat, LogTo};
use crate::voice::say;
use parking_lot::Mutex;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of lines that a worker puts together before it hands them over, about.
pub const BATCH: usize = 64 * 1024;

/// How long a stop waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The access log could not be opened.
#[derive(Debug)]
pub struct AccessError {
    path: PathBuf,
    error: io::Error,
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "access_log.path: {} cannot be written: {}", self.path.display(), self.error)
    }
}

impl std::error::Error for AccessError {}

/// What all who have to do with it share.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes that wait.
    waiting: AtomicU64,
    /// Lines that were taken and could not be written.
    lost: AtomicU64,
    /// Attempts to write, or to open the file again, that failed.
    errors: AtomicU64,
    failing: AtomicBool,
}

/// The way to the access log.
#[derive(Debug)]
pub struct Access {
    queue: Sender<Option<Vec<u8>>>,
    shared: Arc<Shared>,
    /// Bytes that may wait.
    most: u64,
    /// What lines look like.
    pub format: LogFormat,
    /// Whether the query is part of them.
    pub query: bool,
    /// Bytes of each of a client's own words that are taken.
    pub field_bytes: usize,
}

impl Access {
    /// Hands lines over.
    ///
    /// # Errors
    /// The lines, if there is no room for them.
    pub fn hand_over(&self, lines: Vec<u8>) -> Result<(), Vec<u8>> {
        let length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        let waiting = &self.shared.waiting;
        // ordering: relaxed, a number on its own; adding first makes the bound exact across workers.
        if waiting.fetch_add(length, Ordering::Relaxed).saturating_add(length) > self.most {
            // ordering: relaxed, as above.
            waiting.fetch_sub(length, Ordering::Relaxed);
            return Err(lines);
        }
        self.queue.send(Some(lines)).map_err(|refused| refused.0.unwrap_or_default())
    }

    /// Lines that were taken and could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Attempts to write, or to open the file again, that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// Did the last attempt fail?
    #[must_use]
    pub fn is_failing(&self) -> bool {
        // ordering: relaxed, a flag on its own.
        self.shared.failing.load(Ordering::Relaxed)
    }
}

/// The thread that writes. Dropped, it ends once what waits is written, or after a while.
#[derive(Debug)]
pub struct Scribe {
    queue: Sender<Option<Vec<u8>>>,
    ended: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Scribe {
    fn drop(&mut self) {
        let _ = self.queue.send(None);
        // Whoever reads the lines may have stopped: a stop must not wait for that for ever. The thread ends with the process then.
        let ended = self.ended.get_mut().recv_timeout(LAST_LINES);
        if let (Err(std::sync::mpsc::RecvTimeoutError::Disconnected) | Ok(()), Some(thread)) =
            (ended, self.thread.take())
        {
            let _ = thread.join();
        }
    }
}

/// Opens the log and starts the thread that writes it.
///
/// # Errors
/// It cannot be opened, or the system gives no thread.
pub fn start(config: &AccessLog) -> Result<(Access, Scribe), AccessError> {
    let path = match &config.to {
        LogTo::Stdout => PathBuf::from("stdout"),
        LogTo::File(path) => path.clone(),
    };
    let wrong = |error| AccessError { path: path.clone(), error };
    let out = match &config.to {
        LogTo::Stdout => Out::stdout(),
        LogTo::File(path) => Out::file(path),
    };
    let out = out.map_err(wrong)?;
    let (queue, lines) = channel::<Option<Vec<u8>>>();
    let (ends, ended) = channel();
    let shared = Arc::new(Shared::default());
    let mut writer = Writer { out, shared: Arc::clone(&shared), torn: false, missed: 0 };
    let thread = std::thread::Builder::new().name("breaker-access".into());
    let thread = thread.spawn(move || {
        while let Ok(Some(lines)) = lines.recv() {
            writer.take(&lines);
        }
        drop(ends);
    });
    let thread = Some(thread.map_err(wrong)?);
    let access = Access {
        queue: queue.clone(),
        shared,
        most: config.queue_bytes.into(),
        format: config.format,
        query: config.query,
        field_bytes: usize::try_from(config.field_bytes).unwrap_or(usize::MAX),
    };
    Ok((access, Scribe { queue, ended: Mutex::new(ended), thread }))
}

/// Where bytes go.
struct Out {
    file: File,
    /// Which file it is, where it has a name.
    named: Option<(PathBuf, (u64, u64))>,
}

impl Out {
    fn stdout() -> io::Result<Out> {
        let own = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Out { file: File::from(own), named: None })
    }

    fn file(path: &Path) -> io::Result<Out> {
        // A pipe that is opened for both is opened without waiting for its reader.
        let is_pipe = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
        let mut options = OpenOptions::new();
        let file = options.create(true).read(is_pipe).append(true).mode(0o640).open(path)?;
        let metadata = file.metadata()?;
        Ok(Out { file, named: Some((path.to_owned(), which(&metadata))) })
    }

    /// The file was moved away, or another put in its place: that one is meant from now on.
    fn renewed(&self) -> Option<io::Result<Out>> {
        let (path, own) = self.named.as_ref()?;
        match std::fs::metadata(path) {
            Ok(metadata) if which(&metadata) == *own => None,
            _ => Some(Out::file(path)),
        }
    }

    fn shown(&self) -> String {
        self.named.as_ref().map_or("stdout".to_owned(), |(path, _)| path.display().to_string())
    }
}

/// One file and no other.
fn which(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Writes batches, and tells once when it cannot and once when it can again.
struct Writer {
    out: Out,
    shared: Arc<Shared>,
    /// The last line in the file has no end.
    torn: bool,
    /// Lines lost since it failed.
    missed: u64,
}

impl Writer {
    fn take(&mut self, lines: &[u8]) {
        let mut opened = Ok(());
        match self.out.renewed() {
            Some(Ok(out)) => (self.out, self.torn) = (out, false),
            // What is there takes the lines as long as it is there.
            Some(Err(error)) => opened = Err(error),
            None => {}
        }
        let (written, result) = self.write(lines);
        let rest = lines.get(written..).unwrap_or(&[]);
        let missed = u64::try_from(memchr::memchr_iter(b'\n', rest).count()).unwrap_or(u64::MAX);
        // ordering: relaxed, numbers on their own.
        self.shared.lost.fetch_add(missed, Ordering::Relaxed);
        self.missed = self.missed.saturating_add(missed);
        self.tell(result.and(opened));
        let length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        // ordering: relaxed, a number on its own.
        self.shared.waiting.fetch_sub(length, Ordering::Relaxed);
    }

    /// How many of the bytes were written, and what came then.
    fn write(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        if self.torn {
            if let Err(error) = self.out.file.write_all(b"\n") {
                return (0, Err(error));
            }
            self.torn = false;
        }
        let mut written = 0;
        while let Some(rest @ [_, ..]) = lines.get(written..) {
            match self.out.file.write(rest) {
                Ok(taken @ 1..) => written = written.saturating_add(taken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                failed => {
                    self.torn = written > 0 && lines.get(written.wrapping_sub(1)) != Some(&b'\n');
                    let error = failed.err().unwrap_or(io::ErrorKind::WriteZero.into());
                    return (written, Err(error));
                }
            }
        }
        (written, Ok(()))
    }

    fn tell(&mut self, result: io::Result<()>) {
        let (name, failing) = (self.out.shown(), &self.shared.failing);
        match result {
            Err(error) => {
                // ordering: relaxed, a number on its own.
                self.shared.errors.fetch_add(1, Ordering::Relaxed);
                // ordering: relaxed, a flag with one writer.
                if !failing.swap(true, Ordering::Relaxed) {
                    say(&format!("ACCESS LOG {name} cannot be written: {error}"));
                }
            }
            Ok(()) => {
                // ordering: relaxed, a flag with one writer.
                if failing.swap(false, Ordering::Relaxed) {
                    say(&format!(
                        "ACCESS LOG {name} is written again; {} lines are lost",
                        self.missed
                    ));
                    self.missed = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn config(path: &Path, queue_bytes: u32) -> AccessLog {
        let (to, format) = (LogTo::File(path.to_owned()), LogFormat::Json);
        AccessLog { to, format, query: false, field_bytes: 1024, queue_bytes }
    }

    /// Goal: all that was handed over is in the file once the thread has ended, behind what was there before.
    #[test]
    fn lines_are_written_to_the_end() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let (access, scribe) = start(&config(&path, 1024)).unwrap();
        for number in 0..100 {
            while access.hand_over(format!("line {number}\n").into_bytes()).is_err() {
                std::thread::yield_now();
            }
        }
        drop(scribe);
        let text = std::fs::read_to_string(&path).unwrap();
        let expected: Vec<String> = std::iter::once("before".to_owned())
            .chain((0..100).map(|n| format!("line {n}")))
            .collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        assert_eq!((access.lost(), access.errors(), access.is_failing()), (0, 0, false));
    }

    /// Goal: a file that is moved away is left, and a new one begun in its place.
    #[test]
    fn a_file_that_was_moved_is_begun_anew() {
        let room = tempfile::tempdir().unwrap();
        let (path, old) = (room.path().join("log"), room.path().join("log.1"));
        let mut writer = Writer {
            out: Out::file(&path).unwrap(),
            shared: Arc::default(),
            torn: false,
            missed: 0,
        };
        writer.take(b"one\n");
        std::fs::rename(&path, &old).unwrap();
        writer.take(b"two\n");
        std::fs::remove_file(&path).unwrap();
        writer.take(b"three\n");
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    /// Goal: where no file can be begun anew, the old one goes on, and that is told as a failure until one can.
    #[test]
    fn a_file_that_cannot_be_begun_anew_goes_on() {
        let room = tempfile::tempdir().unwrap();
        let (dir, away) = (room.path().join("dir"), room.path().join("away"));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("log");
        let shared = Arc::<Shared>::default();
        let out = Out::file(&path).unwrap();
        let mut writer = Writer { out, shared: Arc::clone(&shared), torn: false, missed: 0 };
        std::fs::rename(&dir, &away).unwrap();
        writer.take(b"one\n");
        assert_eq!(std::fs::read_to_string(away.join("log")).unwrap(), "one\n");
        assert!(shared.failing.load(Ordering::Relaxed));
        std::fs::create_dir(&dir).unwrap();
        writer.take(b"two\n");
        assert!(!shared.failing.load(Ordering::Relaxed));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(shared.lost.load(Ordering::Relaxed), 0);
    }

    /// Goal: a reader that has stopped makes the queue full, not its bound larger, and nobody waits.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_reader_that_stopped_holds_up_nobody() {
        use std::os::fd::AsRawFd as _;
        let (mut reader, writer) = io::pipe().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", writer.as_raw_fd()));
        let (access, scribe) = start(&config(&path, 512 * 1024)).unwrap();
        drop(writer);
        let batch = [&[b'x'; 4095][..], b"\n"].concat();
        let mut taken = 0;
        while access.hand_over(batch.clone()).is_ok() {
            taken += 1;
            assert!(taken < 1000, "there is no bound");
        }
        assert!(access.hand_over(batch.clone()).is_err());
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all.len()
        });
        drop(scribe);
        drop(access);
        assert_eq!(reading.join().unwrap(), taken * batch.len());
    }

    /// Goal: lines that a full disk does not take are counted as lost and told once, and the next whole line begins a line of its own.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_and_survived() {
        let shared = Arc::<Shared>::default();
        let out = Out::file(Path::new("/dev/full")).unwrap();
        let mut writer = Writer { out, shared: Arc::clone(&shared), torn: false, missed: 0 };
        writer.take(b"one\ntwo\n");
        writer.take(b"three\n");
        assert_eq!(shared.lost.load(Ordering::Relaxed), 3);
        assert_eq!(shared.errors.load(Ordering::Relaxed), 2);
        assert!(shared.failing.load(Ordering::Relaxed));
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("log");
        (writer.out, writer.torn) = (Out::file(&path).unwrap(), true);
        writer.take(b"four\n");
        assert!(!shared.failing.load(Ordering::Relaxed));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "\nfour\n");
    }

    /// Goal: what cannot be opened is told at the start, by its path.
    #[test]
    fn what_cannot_be_opened_is_told() {
        let room = tempfile::tempdir().unwrap();
        for path in [room.path().to_owned(), room.path().join("no/such/log")] {
            let error = start(&config(&path, 1024)).unwrap_err().to_string();
            assert!(error.starts_with("access_log.path: "), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
