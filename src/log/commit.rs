//! Group commit: one fdatasync for everybody who waits, and the end of the store when one fails.
//!
//! The first waiter leads: it takes the end of the log, syncs outside of every lock, publishes how far the log
//! is durable, and wakes the rest. Who came meanwhile forms the next group. A failed sync is never tried again:
//! the kernel has marked the pages clean and forgotten them, so a second sync would succeed without the data.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::format::position::Position;
use crate::lock::{Lock, Signal};
use crate::storage::File;

/// The log is poisoned: a sync failed, now or earlier.
#[derive(Clone, Debug)]
pub(crate) struct SyncFailed(pub Arc<io::Error>);

/// What a sync has to cover: every file with bytes before `end` that no sync has covered yet.
pub(crate) struct Unsynced {
    pub end: Position,
    pub files: Vec<Arc<dyn File>>,
}

#[derive(Debug)]
pub(super) struct Commit {
    state: Lock<State>,
    turn: Signal,
    /// All before this position is durable.
    through: AtomicU64,
    poisoned: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    leading: bool,
    failure: Option<Arc<io::Error>>,
}

impl Commit {
    pub fn new(through: Position) -> Commit {
        Commit {
            state: Lock::default(),
            turn: Signal::default(),
            through: AtomicU64::new(through.as_u64()),
            poisoned: AtomicBool::new(false),
        }
    }

    #[inline]
    pub fn through(&self) -> Position {
        Position::from_u64(self.through.load(Ordering::Acquire))
    }

    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    pub fn failure(&self) -> Option<SyncFailed> {
        self.state.lock().failure.clone().map(SyncFailed)
    }

    /// Returns when all before `target` is durable.
    ///
    /// Ensures:
    /// 1. `collect` and the syncs run outside of the lock, by one thread at a time.
    /// 2. Whoever waits is woken when its group is done, and when it has failed.
    /// 3. After a failure nobody is told that anything became durable.
    pub fn wait(
        &self,
        target: Position,
        collect: impl FnOnce() -> Unsynced,
    ) -> Result<(), SyncFailed> {
        let mut state = self.state.lock();
        loop {
            if self.through() >= target {
                return Ok(());
            }
            if let Some(failure) = &state.failure {
                return Err(SyncFailed(failure.clone()));
            }
            if !state.leading {
                break;
            }
            state = self.turn.wait(state);
        }
        state.leading = true;
        drop(state);

        let unsynced = collect();
        let outcome = unsynced.files.iter().try_for_each(|file| file.sync_data());

        let mut state = self.state.lock();
        state.leading = false;
        let outcome = match outcome {
            // Another failure (of a cursor, say) may have come in between: nothing is proven after it.
            Ok(()) if state.failure.is_none() => {
                self.through.fetch_max(unsynced.end.as_u64(), Ordering::AcqRel);
                Ok(())
            }
            Ok(()) => Err(state.failure.clone()),
            Err(error) => Err(Some(Arc::new(error))),
        };
        let outcome = outcome.map_err(|failure| {
            let failure = failure.unwrap_or_else(|| Arc::new(io::Error::other("sync failed")));
            SyncFailed(self.fail(&mut state, failure))
        });
        drop(state);
        self.turn.notify_all();
        outcome
    }

    /// Ends the store: nothing is accepted or promised from now on.
    pub fn poison(&self, cause: io::Error) -> SyncFailed {
        let failure = self.fail(&mut self.state.lock(), Arc::new(cause));
        self.turn.notify_all();
        SyncFailed(failure)
    }

    /// The first failure is the one that is kept.
    fn fail(&self, state: &mut State, failure: Arc<io::Error>) -> Arc<io::Error> {
        self.poisoned.store(true, Ordering::Release);
        state.failure.get_or_insert(failure).clone()
    }
}
