//! The locks that the rest of the crate uses: the standard library's, with one rule about panics.
//!
//! A panic while a lock is held leaves state that nobody has checked. Nothing may be decided by it, so whoever
//! comes next panics too, but for drop paths, which use [`Lock::try_healthy`] and keep silent.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Lock<T>(Mutex<T>);

pub(crate) type Guard<'a, T> = MutexGuard<'a, T>;

impl<T> Lock<T> {
    pub fn new(value: T) -> Lock<T> {
        Lock(Mutex::new(value))
    }

    /// # Panics
    /// If another thread panicked while it held the lock.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        self.0.lock().expect("a thread panicked inside of the store, its state cannot be trusted")
    }

    /// The lock, unless a thread panicked while it held it.
    pub fn try_healthy(&self) -> Option<Guard<'_, T>> {
        self.0.lock().ok()
    }
}

/// Wakes threads that wait for a change of what a [`Lock`] guards.
#[derive(Debug, Default)]
pub(crate) struct Signal(Condvar);

impl Signal {
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits until notified, or for no reason.
    pub fn wait<'a, T>(&self, guard: Guard<'a, T>) -> Guard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until notified, for `limit`, or for no reason.
    pub fn wait_for<'a, T>(&self, guard: Guard<'a, T>, limit: Duration) -> Guard<'a, T> {
        self.0.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
    }
}
