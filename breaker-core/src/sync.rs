//! The atomics, the fence and the lock that the crate uses: the real ones, or loom's under `cfg(loom)`; it holds no rule, and no state but a count of
//! numbers given.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;

#[cfg(loom)]
pub(crate) use self::under_loom::Mutex;

/// A number that nothing else in this process was given, until four thousand million were.
pub(crate) fn unique() -> u32 {
    // Not of a model, which explores what is shared on purpose.
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    // ordering: relaxed, for a number stands alone.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A pause before a retry: a hint to the processor, a turn for the others in a model.
pub(crate) fn pause() {
    #[cfg(not(loom))]
    std::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

#[cfg(loom)]
mod under_loom {
    use loom::sync::MutexGuard;

    /// loom's lock in the shape of parking_lot's, which does not poison.
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        #[expect(clippy::expect_used, reason = "a poisoned lock in a model is a failed model")]
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no model thread panicked")
        }
    }
}
