//! Saves where limits stand and what was learned, on a thread of its own: a table of keys takes long to read, and a disk longer, and
//! neither may hold up a kill. It looks at how full the tables are, for the same reason. It decides nothing.

use super::sweep::{SharedSweeper, Whose};
use crate::data::Plane;
use crate::standings::{self, Kept};
use crate::voice::say;
use breaker_core::{DimensionUsage, Mono, SavedWhole, Scope, Span};
use parking_lot::Mutex;
use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long an orderly stop waits for its save: a large table on a slow disk.
const LAST_WITHIN: Duration = Duration::from_secs(30);

/// Looks and saves that may wait.
const ASKED_MAX: usize = 4;

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
    /// A save is asked for and has not begun.
    asked: AtomicBool,
    /// How full the tables of keys are, as of the last look.
    tables: Mutex<Vec<(Whose, DimensionUsage)>>,
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

    /// How full the table of each dimension is, as of the last look: see [`Saver::look`].
    #[must_use]
    pub fn tables(&self) -> Vec<(Whose, DimensionUsage)> {
        self.tables.lock().clone()
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
    Look,
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
        let (ask, asked) = sync_channel(ASKED_MAX);
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

    /// Asks for a look at how full the tables are: it reads every cell, which would hold up whoever else waits for the control thread. So
    /// whoever asks is told what the look before saw.
    pub fn look(&self) {
        let _ = self.ask.try_send(Ask::Look);
    }

    /// Asks for a save if it is time for one. One that is under way is not waited for, nor doubled.
    pub fn save_if_due(&self, now: Mono) {
        // ordering: relaxed, a flag on its own.
        if now < self.due.get() || self.saves.asked.load(Ordering::Relaxed) {
            return;
        }
        // ordering: relaxed, as above; before the thread can hear of it.
        self.saves.asked.store(true, Ordering::Relaxed);
        match self.ask.try_send(Ask::Now) {
            Ok(()) => self.due.set(now.plus(self.every)),
            // ordering: relaxed, as above.
            Err(_) => self.saves.asked.store(false, Ordering::Relaxed),
        }
    }

    /// Saves after the last call, and waits for it.
    pub async fn save_last(&self) {
        let (done, saved) = oneshot::channel();
        let asked = timeout(LAST_WITHIN, async {
            let mut ask = Ask::Last(done);
            // Others may wait for their turn, for as long as a save takes.
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
    *saves.tables.lock() = tables(source);
    while let Ok(ask) = asked.recv() {
        match ask {
            Ask::Look => {
                let tables = tables(source);
                *saves.tables.lock() = tables;
                continue;
            }
            // ordering: relaxed, a flag on its own.
            Ask::Now => saves.asked.store(false, Ordering::Relaxed),
            Ask::Last(_) => {}
        }
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

fn tables(source: &Source) -> Vec<(Whose, DimensionUsage)> {
    let plane = source.plane;
    let snapshot = Arc::clone(&plane.current.load());
    let mut tables = Vec::new();
    for (path, rules) in snapshot.scopes() {
        let Ok(scope) = Scope::parse(&path) else { continue };
        for key in &rules.keys {
            let usage = plane.breaker.key_usage_of(&snapshot.policy, &scope, &key.name);
            let whose = Whose { scope: path.clone(), dimension: Some(key.name.clone()) };
            tables.extend(usage.map(|usage| (whose, usage)));
        }
    }
    tables
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
