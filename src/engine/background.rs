//! The background thread: a loop around [`Engine::step`] that sleeps when there is nothing to do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Engine;
use crate::error::{Error, Result};
use crate::lock::{Lock, Signal};

#[derive(Default)]
pub(super) struct Background {
    /// Somebody has seen something to do since the thread last looked. Changes under the lock of `stop`.
    work: AtomicBool,
    stop: Lock<bool>,
    signal: Signal,
    thread: Lock<Option<JoinHandle<()>>>,
}

impl Background {
    /// Cheap, and never waits for the thread.
    ///
    /// Ensures: the thread looks again at what the caller has changed. Either it is told to; or it has been told
    /// before, and not yet looked: it takes back `work` first, and then the lock that guards the change, which the
    /// caller held before it read `work`.
    #[inline]
    pub fn wake(&self) {
        if !self.work.load(Ordering::SeqCst) {
            self.tell();
        }
    }

    #[cold]
    fn tell(&self) {
        let _stop = self.stop.lock();
        if !self.work.swap(true, Ordering::SeqCst) {
            self.signal.notify_one();
        }
    }

    /// Waits for work, at most for `limit`. Whether to go on.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let mut stop = self.stop.lock();
        if !self.work.load(Ordering::SeqCst) && !*stop {
            stop = match limit {
                Some(limit) => self.signal.wait_for(stop, limit),
                None => self.signal.wait(stop),
            };
        }
        self.work.store(false, Ordering::SeqCst);
        !*stop
    }

    /// Ends the thread and waits for it, unless the caller is the thread.
    pub fn stop(&self) {
        *self.stop.lock() = true;
        self.signal.notify_one();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != thread::current().id()) {
            // A panic of the thread has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl Engine {
    #[expect(clippy::disallowed_methods, reason = "the one thread of a store starts here")]
    pub(super) fn start_background(self: &Arc<Engine>) -> Result<()> {
        let engine = Arc::downgrade(self);
        let thread = thread::Builder::new()
            .name("millpond".to_owned())
            .spawn(move || run(&engine))
            .map_err(|error| Error::io("cannot start the background thread", error))?;
        *self.background.thread.lock() = Some(thread);
        Ok(())
    }

    /// How long the thread may sleep if nobody wakes it.
    fn sleep_limit(&self) -> Option<Duration> {
        let due = self.log.tail().sync_by()?;
        Some(due.saturating_duration_since(self.now().mono))
    }
}

fn run(engine: &Weak<Engine>) {
    loop {
        // A reference of its own while it sleeps: closing stops the thread before the engine goes.
        let Some(engine) = engine.upgrade() else { return };
        while engine.step().is_ok_and(|worked| worked) {}
        let limit = if engine.log.is_poisoned() { None } else { engine.sleep_limit() };
        if !engine.background.wait(limit) {
            return;
        }
    }
}
