//! The handshake that makes a kill's silence provable: senders mark, look, write, unmark; a watcher waits for the marks. It moves no gate and never blocks.
//!
//! A sender stores its mark (odd: inside), then loads the gates. A killer stores a gate, then loads
//! the marks. Both stand a sequentially consistent fence in between, so not both can miss:
//! either the sender sees the kill and does not write, or the watcher sees it inside and waits
//! until its mark has changed. The sender's fence stands in [`Sender::send`], **the killer's in
//! [`Senders::watch`]**: kill first, then watch.

use std::cell::Cell;

use crate::breaker::Breaker;
use crate::facts::Denial;
use crate::permit::Pass;
use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};
use crate::time::{Mono, Span};

/// One mark for each sending thread.
pub struct Senders {
    marks: Box<[Mark]>,
}

/// The one writer of one mark. It may move to another thread, but not be shared; dropped, it leaves its index to another.
pub struct Sender<'s> {
    mark: &'s AtomicU64,
    taken: &'s AtomicBool,
    /// Sends inside one another: only the outermost marks. Also keeps the type off other threads.
    depth: Cell<u32>,
}

/// What is left to wait for after a gate moved.
pub struct Watch<'s> {
    senders: &'s Senders,
    /// The marks as first seen; even once seen outside.
    seen: Box<[u64]>,
}

/// How a wait for silence ended.
#[must_use = "a kill that is not silent is still waited for"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hush {
    /// Every sender was seen outside since the gate moved: nothing that was killed goes out any more.
    pub silent: bool,
    /// How long that took, or how long was waited in vain.
    pub waited: Span,
    /// Indexes of the senders that were not seen outside: each is stuck in a write that began before the kill. For all
    /// others the kill is silent.
    pub pending: Vec<usize>,
}

/// On its own cache line: it is written at every send.
#[repr(align(128))]
struct Mark {
    /// Odd while its sender is between the look and the end of the write.
    count: AtomicU64,
    taken: AtomicBool,
}

impl Senders {
    /// Marks for so many sending threads.
    #[must_use]
    pub fn new(count: usize) -> Senders {
        let mark = |_| Mark { count: AtomicU64::new(0), taken: AtomicBool::new(false) };
        Senders { marks: (0..count).map(mark).collect() }
    }

    /// The sender of an index, for one holder at a time: `None` when it is out of range or taken.
    #[must_use]
    pub fn sender(&self, index: usize) -> Option<Sender<'_>> {
        self.sender_as::<true>(index)
    }

    fn sender_as<const ACQUIRED: bool>(&self, index: usize) -> Option<Sender<'_>> {
        let mark = self.marks.get(index)?;
        // ordering: acquire, so that a later holder counts on from where the one before stopped: it reads the mark as
        // its own.
        let order = if ACQUIRED { Ordering::Acquire } else { Ordering::Relaxed };
        if mark.taken.swap(true, order) {
            return None;
        }
        Some(Sender { mark: &mark.count, taken: &mark.taken, depth: Cell::new(0) })
    }

    /// After a gate moved: which senders are inside a send that may have begun before. Contains
    /// the killer's fence. Allocates one word for each sender.
    #[must_use]
    pub fn watch(&self) -> Watch<'_> {
        self.watch_as::<true>()
    }

    fn watch_as<const FENCED: bool>(&self) -> Watch<'_> {
        if FENCED {
            // ordering: sequentially consistent, the killer's half of the handshake: the gate was
            // stored, the marks are loaded next.
            fence(Ordering::SeqCst);
        }
        // ordering: acquire, so that the write of a section that is over happened before silence.
        let seen = self.marks.iter().map(|mark| mark.count.load(Ordering::Acquire)).collect();
        Watch { senders: self, seen }
    }
}

impl Sender<'_> {
    /// Marks, looks once more at the gates of a pass, runs `write` if they still allow, unmarks
    /// (also if `write` panics). What `write` does must be over when it returns.
    ///
    /// A pass is no leave for one write: it may be shown for each part of a call, and shows only that the gates still allow. That a
    /// call goes out once is for [`Permit::send`](crate::Permit::send) to see to, which consumes its permit.
    ///
    /// `write` may itself send on the same sender; the mark then covers both.
    ///
    /// # Errors
    /// The denial of the last look; nothing was written.
    pub fn send<R>(
        &self,
        breaker: &Breaker,
        pass: &Pass,
        now: Mono,
        write: impl FnOnce() -> R,
    ) -> Result<R, Denial> {
        self.section::<SOUND, R, Denial>(|| breaker.look(pass, now), write)
    }

    /// As [`Sender::send`], for a write that carries several calls at once: it runs only if
    /// the gates of all passes still allow.
    ///
    /// # Errors
    /// The denial of the first pass that was denied; nothing was written.
    pub fn send_all<'p, R>(
        &self,
        breaker: &Breaker,
        passes: impl IntoIterator<Item = &'p Pass>,
        now: Mono,
        write: impl FnOnce() -> R,
    ) -> Result<R, Denial> {
        let look = || passes.into_iter().try_for_each(|pass| breaker.look(pass, now));
        self.section::<SOUND, R, Denial>(look, write)
    }

    fn section<const FLAW: u8, R, E>(
        &self,
        look: impl FnOnce() -> Result<(), E>,
        write: impl FnOnce() -> R,
    ) -> Result<R, E> {
        let _inside = Inside::enter::<FLAW>(self);
        look()?;
        Ok(write())
    }
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        // ordering: release, so that the next holder sees the mark as it was left.
        self.taken.store(false, Ordering::Release);
    }
}

/// The mark is odd while this lives.
struct Inside<'a, 's>(&'a Sender<'s>);

impl<'a, 's> Inside<'a, 's> {
    fn enter<const FLAW: u8>(sender: &'a Sender<'s>) -> Inside<'a, 's> {
        let depth = sender.depth.get();
        sender.depth.set(depth.saturating_add(1));
        if depth == 0 {
            // ordering: relaxed load, for nobody else writes this mark. Release store, so that a watcher which waited for the
            // section before, and finds this one already, sees that one's write done; the fence below orders it before the looks.
            let count = sender.mark.load(Ordering::Relaxed);
            let order = if FLAW == UNRELEASED { Ordering::Relaxed } else { Ordering::Release };
            sender.mark.store(count.wrapping_add(1), order);
            if FLAW != UNFENCED {
                // ordering: sequentially consistent, the sender's half of the handshake: the mark
                // was stored, the gates are loaded next. A send inside a send needs none of its own:
                // if this fence came before the killer's, the killer waits for the whole
                // of it; if after, the kill is seen.
                fence(Ordering::SeqCst);
            }
        }
        Inside(sender)
    }
}

impl Drop for Inside<'_, '_> {
    fn drop(&mut self) {
        let depth = self.0.depth.get().saturating_sub(1);
        self.0.depth.set(depth);
        if depth == 0 {
            // ordering: relaxed load, for nobody else writes this mark.
            let count = self.0.mark.load(Ordering::Relaxed);
            // ordering: release, so that whoever sees the sender outside sees its write done.
            self.0.mark.store(count.wrapping_add(1), Ordering::Release);
        }
    }
}

impl Watch<'_> {
    /// Indexes of the senders not yet seen outside. Never blocks and never allocates.
    pub fn pending(&mut self) -> impl Iterator<Item = usize> + '_ {
        let marks = self.senders.marks.iter();
        self.seen.iter_mut().zip(marks).enumerate().filter_map(|(index, (seen, mark))| {
            // ordering: acquire, so that the write of a section that is over happened before
            // silence.
            if *seen % 2 == 1 && mark.count.load(Ordering::Acquire) != *seen {
                *seen = 0;
            }
            (*seen % 2 == 1).then_some(index)
        })
    }

    /// Whether every sender was seen outside since the gate moved.
    pub fn is_silent(&mut self) -> bool {
        // Not `next().is_none()`: every mark is looked at, so that each is let go as soon as it may be.
        self.pending().count() == 0
    }

    /// Looks until every sender was seen outside, or `within` has passed; once in any case. `rest` is called
    /// between two looks: it may spin, yield or sleep, and says what time it is.
    pub fn wait(mut self, within: Span, mut rest: impl FnMut() -> Mono) -> Hush {
        let silent = |waited| Hush { silent: true, waited, pending: Vec::new() };
        if self.is_silent() {
            return silent(Span::ZERO);
        }
        let began = rest();
        loop {
            let waited = rest().since(began);
            // The look comes after the clock: at the deadline there is a last one.
            if self.is_silent() {
                return silent(waited);
            }
            if waited >= within {
                return Hush { silent: false, waited, pending: self.pending().collect() };
            }
        }
    }
}

/// A section as it is meant.
const SOUND: u8 = 0;
/// For models: its mark and its looks are not kept in order.
const UNFENCED: u8 = 1;
/// For models: its mark does not say that the section before is over.
const UNRELEASED: u8 = 2;

#[cfg(all(test, loom))]
mod models {
    use super::{SOUND, Senders, UNFENCED, UNRELEASED};
    use crate::cell::Gate;
    use crate::facts::KillLevel;
    use crate::gate::{Input, TripRule};
    use crate::policy::Recover;
    use crate::sync::{AtomicBool, Ordering};
    use crate::time::{Mono, Span};
    use loom::sync::Arc;

    struct World {
        gate: Gate,
        senders: Senders,
        /// Silence was reported.
        silent: AtomicBool,
    }

    /// Senders against one killer: nothing is written after the killer reported silence.
    fn race<const FLAW: u8, const KILLER_FENCED: bool, const WAITS: bool>(senders: usize) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || {
            let world = Arc::new(World {
                gate: Gate::new(),
                senders: Senders::new(senders),
                silent: AtomicBool::new(false),
            });
            let rule = TripRule::new(Recover::Manual { probes: 1 });
            let spawned: Vec<_> = (0..senders)
                .map(|index| {
                    let world = Arc::clone(&world);
                    loom::thread::spawn(move || {
                        let sender = world.senders.sender(index).unwrap();
                        for _ in 0..2 {
                            let look = || match world.gate.word().look_again(0, false, false) {
                                Some(cause) => Err(cause),
                                None => Ok(()),
                            };
                            // What a write would be: it must not happen after the report.
                            let write = || {
                                // ordering: relaxed, the weakest witness there is.
                                assert!(
                                    !world.silent.load(Ordering::Relaxed),
                                    "written after silence"
                                );
                            };
                            let _ = sender.section::<FLAW, _, _>(look, write);
                        }
                    })
                })
                .collect();
            world.gate.step(Input::Kill(KillLevel::Halt), &rule, Mono::ZERO).unwrap();
            let watch = world.senders.watch_as::<KILLER_FENCED>();
            if WAITS {
                let rest = || {
                    loom::thread::yield_now();
                    Mono::ZERO
                };
                assert!(watch.wait(Span::from_secs(1), rest).silent);
            }
            // ordering: relaxed, the weakest witness there is.
            world.silent.store(true, Ordering::Relaxed);
            for thread in spawned {
                thread.join().unwrap();
            }
        });
    }

    /// Goal: after silence was reported no sender writes.
    #[test]
    fn loom_silence_is_silence() {
        race::<SOUND, true, true>(1);
    }

    /// Goal: the same with two senders.
    #[test]
    fn loom_silence_of_two() {
        race::<SOUND, true, true>(2);
    }

    /// Negative control: without the sender's fence both can miss each other.
    #[test]
    #[should_panic(expected = "written after silence")]
    fn loom_sender_without_fence_is_caught() {
        race::<UNFENCED, true, true>(1);
    }

    /// Negative control: without the killer's fence both can miss each other.
    #[test]
    #[should_panic(expected = "written after silence")]
    fn loom_killer_without_fence_is_caught() {
        race::<SOUND, false, true>(1);
    }

    /// A watch that finds one section under way, and the next in its place: what the first wrote is seen by then. The watcher is
    /// spawned: the other way round loom reaches no look between a mark and the fence after it, and the control does not fail.
    fn one_section_after_another<const FLAW: u8>() {
        loom::model(|| {
            let senders = Arc::new(Senders::new(1));
            let written = Arc::new(AtomicBool::new(false));
            let watcher = {
                let (senders, written) = (Arc::clone(&senders), Arc::clone(&written));
                loom::thread::spawn(move || {
                    let mut watch = senders.watch();
                    let began = watch.seen[0] == 1;
                    if began && watch.is_silent() {
                        // ordering: relaxed, the weakest witness there is.
                        let seen = written.load(Ordering::Relaxed);
                        assert!(seen, "silence before the write was seen");
                    }
                })
            };
            let sender = senders.sender(0).unwrap();
            // ordering: relaxed, the weakest witness there is.
            let write = || written.store(true, Ordering::Relaxed);
            let _ = sender.section::<FLAW, _, ()>(|| Ok(()), write);
            let _ = sender.section::<FLAW, _, ()>(|| Ok(()), || ());
            watcher.join().unwrap();
        });
    }

    /// Goal: silence after a section shows what it wrote, also if the next one has begun when the watcher looks.
    #[test]
    fn loom_a_section_begun_shows_the_one_before() {
        one_section_after_another::<SOUND>();
    }

    /// Negative control: a mark that begins a section and releases nothing lets the watcher go before the last write is seen.
    #[test]
    #[should_panic(expected = "silence before the write was seen")]
    fn loom_a_section_begun_without_release_is_caught() {
        one_section_after_another::<UNRELEASED>();
    }

    /// Two threads that hold one index in turn: each section moves the mark by two, also across the change of hands.
    fn change_of_hands<const ACQUIRED: bool>() {
        loom::model(|| {
            let senders = Arc::new(Senders::new(1));
            let send = |senders: &Senders| {
                let Some(sender) = senders.sender_as::<ACQUIRED>(0) else { return 0 };
                let _ = sender.section::<SOUND, _, ()>(|| Ok(()), || ());
                2
            };
            let other = Arc::clone(&senders);
            let thread = loom::thread::spawn(move || send(&other));
            let moved = send(&senders) + thread.join().unwrap();
            // ordering: relaxed, for the joined thread's writes are seen.
            let count = senders.marks[0].count.load(Ordering::Relaxed);
            assert_eq!(count, moved, "a section was lost");
        });
    }

    /// Goal: an index that changes hands keeps its mark.
    #[test]
    fn loom_a_change_of_hands_loses_no_section() {
        change_of_hands::<true>();
    }

    /// Negative control: a holder that does not see the mark as it was left counts from an old one.
    #[test]
    #[should_panic(expected = "a section was lost")]
    fn loom_a_change_of_hands_without_acquire_is_caught() {
        change_of_hands::<false>();
    }

    /// Negative control: a killer that does not wait reports too early.
    #[test]
    #[should_panic(expected = "written after silence")]
    fn loom_killer_without_wait_is_caught() {
        race::<SOUND, true, false>(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Hush, SOUND, Senders};
    use crate::time::{Mono, Span};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Goal: a watch waits for a send that began before it, and for no later one; sends inside one
    /// another count as one; a look that denies and a write that panics unmark as well.
    #[test]
    fn a_watch_waits_for_what_began_before() {
        let senders = Senders::new(2);
        let sender = senders.sender(0).unwrap();
        assert!(senders.sender(0).is_none() && senders.sender(2).is_none());
        drop(senders.sender(1).unwrap());
        assert!(senders.sender(1).is_some(), "an index is left to the next");
        let fine = || Ok::<(), ()>(());
        let mut during = None;
        let sent = sender.section::<SOUND, _, _>(fine, || {
            let mut watch = senders.watch();
            let inner = sender.section::<SOUND, _, _>(fine, || watch.pending().collect::<Vec<_>>());
            assert_eq!(inner, Ok(vec![0]));
            assert_eq!(watch.pending().collect::<Vec<_>>(), [0], "the outer send goes on");
            during = Some(watch);
        });
        assert!(sent.is_ok());
        let mut watch = during.unwrap();
        let _ = sender.section::<SOUND, _, _>(fine, || {
            assert!(watch.is_silent(), "a later send is not waited for");
            assert!(!senders.watch().is_silent());
        });
        let denied = sender.section::<SOUND, _, _>(|| Err("no"), || unreachable!());
        let denied: Result<(), _> = denied;
        assert_eq!(denied, Err("no"));
        assert!(senders.watch().is_silent());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _ = sender.section::<SOUND, (), _>(fine, || panic!("in the write"));
        }));
        assert!(panicked.is_err());
        assert!(senders.watch().is_silent());
    }

    /// Goal: a wait ends at once when nobody is inside; at its deadline it names those that are, and looks once more; and it says how
    /// long it took.
    #[test]
    fn a_wait_names_whom_it_waited_for() {
        let senders = Senders::new(3);
        let sender = senders.sender(1).unwrap();
        let never = || unreachable!("nobody is inside");
        let silence = senders.watch().wait(Span::ZERO, never);
        assert_eq!((silence.silent, silence.waited), (true, Span::ZERO));
        let _ = sender.section::<SOUND, (), ()>(
            || Ok(()),
            || {
                let mut clock = (0..).map(|step| Mono::from_nanos(7_000 + step * 1_000));
                let silence =
                    senders.watch().wait(Span::from_nanos(2_500), || clock.next().unwrap());
                let waited = Span::from_nanos(3_000);
                assert_eq!(silence, Hush { silent: false, waited, pending: vec![1] });
            },
        );
        // The sender leaves while the last instant is read.
        let inside = super::Inside::enter::<SOUND>(&sender);
        let mut inside = Some(inside);
        let mut steps = 0;
        let silence = senders.watch().wait(Span::from_nanos(5), || {
            steps += 1;
            if steps == 3 {
                inside = None;
            }
            Mono::from_nanos(steps * 4)
        });
        assert!(silence.silent && silence.pending.is_empty());
        assert_eq!(silence.waited, Span::from_nanos(8));
    }
}
