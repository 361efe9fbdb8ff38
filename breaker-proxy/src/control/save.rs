//! Saves where limits stand and what was learned, on a thread of its own: a table of keys takes long to read, and a disk longer, and
//! neither may hold up a kill. It decides nothing.

use super::sweep::SharedSweeper;
use crate::data::Plane;
use crate::standings::{self, Kept};
use crate::voice::say;
use breaker_core::{Mono, SavedWhole, Span};
use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long an orderly stop waits for its save: a large table on a slow disk.
const LAST_WITHIN: Duration = Duration::from_secs(30);

/// What a save is made from, and where it goes.
pub struct Source {
    /// The data plane.
    pub plane: &'static Plane,
    /// The one sweeper.
    pub sweeper: SharedSweeper,
    /// The state directory.
    pub dir: PathBuf,
    /// The number of this start.
    pub boot: u64,
    /// What keys are hashed under.
    pub seed: [u64; 2],
    /// Between two saves.
    pub every: Span,
}

/// How the saves go.
#[derive(Debug, Default)]
pub struct Saves {
    good: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    /// When the last good one was, by the decisions' clock; 0: there was none.
    at: AtomicU64,
}

impl Saves {
    /// Saves that reached the disk.
    #[must_use]
    pub fn good(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.good.load(Ordering::Relaxed)
    }

    /// Saves that did not.
    #[must_use]
    pub fn failed(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.failed.load(Ordering::Relaxed)
    }

    /// Bytes of the last one.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.bytes.load(Ordering::Relaxed)
    }

    /// How old the last good one is; `None`: there was none since the start.
    #[must_use]
    pub fn age(&self, now: Mono) -> Option<Span> {
        // ordering: relaxed, a number on its own.
        let at = self.at.load(Ordering::Relaxed);
        (at != 0).then(|| now.since(Mono::from_nanos(at)))
    }
}

enum Ask {
    Now,
    Last(oneshot::Sender<()>),
}

/// Asks the saving thread. It ends with this value.
pub struct Saver {
    ask: SyncSender<Ask>,
    saves: Arc<Saves>,
    every: Span,
    due: Cell<Mono>,
}

impl Saver {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives none.
    pub fn start(source: Source) -> io::Result<Saver> {
        let (ask, asked) = sync_channel(1);
        let saves = Arc::<Saves>::default();
        let (every, now) = (source.every, source.plane.clock.mono());
        let told = Arc::clone(&saves);
        // It outlives nothing: whoever needs its last save waits for that.
        std::thread::Builder::new()
            .name("breaker-save".into())
            .spawn(move || run(&source, &told, &asked))?;
        Ok(Saver { ask, saves, every, due: Cell::new(now.plus(every)) })
    }

    /// How the saves go.
    #[must_use]
    pub fn saves(&self) -> &Saves {
        &self.saves
    }

    /// Asks for a save if it is time for one. One that is under way is not waited for, nor doubled.
    pub fn save_if_due(&self, now: Mono) {
        if now >= self.due.get() {
            self.due.set(now.plus(self.every));
            // Full: the one before is still under way.
            let _ = self.ask.try_send(Ask::Now);
        }
    }

    /// Saves after the last call, and waits for it.
    pub async fn save_last(&self) {
        let (done, saved) = oneshot::channel();
        let asked = timeout(LAST_WITHIN, async {
            let mut ask = Ask::Last(done);
            // A save that waits for its turn leaves no room, for as long as the one before takes.
            while let Err(std::sync::mpsc::TrySendError::Full(back)) = self.ask.try_send(ask) {
                ask = back;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            saved.await
        });
        if !matches!(asked.await, Ok(Ok(()))) {
            say("the standings were not saved: the next start takes this stop for a crash");
        }
    }
}

fn run(source: &Source, saves: &Saves, asked: &Receiver<Ask>) {
    while let Ok(ask) = asked.recv() {
        let now = source.plane.clock.mono();
        match standings::write(&source.dir, &taken(source, now, matches!(ask, Ask::Last(_)))) {
            Ok(bytes) => {
                // ordering: relaxed, numbers on their own; this thread alone writes them.
                saves.bytes.store(bytes, Ordering::Relaxed);
                saves.at.store(now.as_nanos().max(1), Ordering::Relaxed);
                saves.good.fetch_add(1, Ordering::Relaxed);
                if let Ask::Last(done) = ask {
                    let _ = done.send(());
                }
            }
            Err(error) => {
                // ordering: relaxed, a number on its own.
                if saves.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    say(&format!("the standings could not be saved: {error}"));
                }
            }
        }
    }
}

/// Where all stands now.
fn taken(source: &Source, now: Mono, last: bool) -> Kept {
    let plane = source.plane;
    let snapshot = Arc::clone(&plane.current.load());
    let standings = plane.breaker.save(&snapshot.policy, now);
    // The sweeper is held for what was learned alone.
    let learned = source.sweeper.lock().learned(plane.breaker, &snapshot.policy, now);
    let whole = SavedWhole { standings, learned };
    let at = plane.clock.wall().0;
    Kept { boot: source.boot, at, last, seed: source.seed, whole }
}
