//! The background thread: a loop around [`Engine::step`] that sleeps when there is nothing to do.

use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Engine;
use crate::error::{Error, Result};
use crate::lock::{Lock, Signal};

#[derive(Default)]
pub(super) struct Background {
    state: Lock<BackgroundState>,
    signal: Signal,
    thread: Lock<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct BackgroundState {
    /// Somebody has seen something to do since the thread last looked.
    work: bool,
    stop: bool,
}

impl Background {
    /// Cheap, and never waits for the thread.
    pub fn wake(&self) {
        let mut state = self.state.lock();
        if !state.work {
            state.work = true;
            self.signal.notify_one();
        }
    }

    /// Waits for work, at most for `limit`. Whether to go on.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        if !state.work && !state.stop {
            state = match limit {
                Some(limit) => self.signal.wait_for(state, limit),
                None => self.signal.wait(state),
            };
        }
        state.work = false;
        !state.stop
    }

    /// Ends the thread and waits for it, unless the caller is the thread.
    pub fn stop(&self) {
        self.state.lock().stop = true;
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
