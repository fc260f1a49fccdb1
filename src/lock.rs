//! The locks that the rest of the crate uses: the standard library's, with one rule about panics.
//!
//! A panic while a lock is held leaves state that nobody has checked. Nothing may be decided by it, so whoever
//! comes next panics too, but for drop paths, which use [`Lock::try_healthy`] and keep silent.

use std::sync::PoisonError;
use std::time::Duration;

use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

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

    /// The lock, also after a panic: for what holds at any moment.
    pub fn lock_anyway(&self) -> Guard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, unless a thread panicked while it held it.
    pub fn try_healthy(&self) -> Option<Guard<'_, T>> {
        self.0.lock().ok()
    }
}

#[cfg(not(any(loom, shuttle)))]
impl<T> Lock<T> {
    /// Whether no thread has panicked while it held the lock. Waits for nobody.
    pub fn is_healthy(&self) -> bool {
        !self.0.is_poisoned()
    }
}

/// No thread of a model panics and goes on.
#[cfg(any(loom, shuttle))]
impl<T> Lock<T> {
    pub fn is_healthy(&self) -> bool {
        true
    }
}

/// Where any number of threads wait to be let through, by one call of the system, and without a lock to take afterwards.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    word: AtomicU32,
    #[cfg(any(loom, shuttle))]
    futex: Futex,
}

/// What a thread has seen of a [`Gate`] before it decided to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u32);

impl Gate {
    /// To be taken before the look at what the thread waits for.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.word.load(Ordering::SeqCst))
    }

    /// Waits until somebody is let through who took their ticket no later, or for no reason. Returns at once if that
    /// has happened since the ticket was taken.
    pub fn wait(&self, ticket: Ticket) {
        #[cfg(not(any(loom, shuttle)))]
        atomic_wait::wait(&self.word, ticket.0);
        #[cfg(any(loom, shuttle))]
        self.futex.wait(|| self.word.load(Ordering::SeqCst) == ticket.0);
    }

    /// Whoever has a ticket may go.
    pub fn open(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        #[cfg(not(any(loom, shuttle)))]
        atomic_wait::wake_all(&self.word);
        #[cfg(any(loom, shuttle))]
        self.futex.wake(Condvar::notify_all);
    }

    /// At least one of those who have a ticket may go.
    pub fn let_one(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        #[cfg(not(any(loom, shuttle)))]
        atomic_wait::wake_one(&self.word);
        #[cfg(any(loom, shuttle))]
        self.futex.wake(Condvar::notify_one);
    }
}

/// What the kernel does for a futex, for checkers of interleavings: the word is changed outside of the lock of its queue,
/// and compared again under it before a sleep.
#[cfg(any(loom, shuttle))]
#[derive(Debug, Default)]
struct Futex {
    queue: Mutex<()>,
    sleepers: Condvar,
}

#[cfg(any(loom, shuttle))]
impl Futex {
    fn wait(&self, is_unchanged: impl FnOnce() -> bool) {
        let queue = self.queue.lock().expect("nobody panics here");
        if is_unchanged() {
            drop(self.sleepers.wait(queue));
        }
    }

    fn wake(&self, notify: fn(&Condvar)) {
        let _queue = self.queue.lock().expect("nobody panics here");
        notify(&self.sleepers);
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
