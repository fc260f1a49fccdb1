//! The locks that the rest of the crate uses: the standard library's, with one rule about panics.
//!
//! A panic while a lock is held leaves state that nobody has checked. Nothing may be decided by it, so whoever
//! comes next panics too, but for drop paths, which use [`Lock::try_healthy`] and keep silent.

use std::sync::atomic::{AtomicU32, Ordering};
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

/// Where any number of threads wait to be let through, by one call of the system, and without a lock to take afterwards.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU32);

/// What a thread has seen of a [`Gate`] before it decided to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u32);

impl Gate {
    /// To be taken before the look at what the thread waits for.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.0.load(Ordering::SeqCst))
    }

    /// Waits until somebody is let through who took their ticket no later, or for no reason. Returns at once if that
    /// has happened since the ticket was taken.
    pub fn wait(&self, ticket: Ticket) {
        atomic_wait::wait(&self.0, ticket.0);
    }

    /// Whoever has a ticket may go.
    pub fn open(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        atomic_wait::wake_all(&self.0);
    }

    /// At least one of those who have a ticket may go.
    pub fn let_one(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        atomic_wait::wake_one(&self.0);
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
