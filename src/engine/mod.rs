//! The running store: the only structs with locks, and the order in which they may be taken.
//!
//! Lock order: maintenance, then supply, then dispatch ([`State`]), then append (the log's tail). The last two are
//! short and never held over I/O or a wait; what needs a file gives them up first. The first two are held by whoever
//! writes cursors or makes segments: a background thread, or a caller who cannot wait for it.

mod background;
mod backup;
mod browse;
mod catalog;
mod checkpoint;
mod choose;
mod close;
mod compact;
mod dead_letter;
mod dedup;
mod expire;
#[cfg(not(any(loom, shuttle)))]
#[cfg(test)]
mod fixture;
mod groups;
mod insert;
mod lane;
mod limits;
mod look;
mod maintenance;
mod manage;
#[cfg(test)]
#[cfg(loom)]
mod models;
mod open;
mod pause;
mod queue_entry;
mod queue_shared;
mod read;
mod recover;
mod redrive;
mod repair;
mod replay;
mod salvage;
#[cfg(test)]
#[cfg(shuttle)]
mod schedules;
mod scratch;
mod segment_state;
mod settle;
mod state;
mod stats;
mod supply;
mod sweep;
mod take;
mod usage;
mod verify;
mod walk;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::{Now, TimeSource, millis};
use crate::dispatch::QueueState;
use crate::error::{Error, ErrorKind, Result};
use crate::format::position::Position;
use crate::lock::{Guard, Lock, Signal};
use crate::log::{Appended, Log, Purpose, Refused, SyncFailed};
use crate::options::{Durability, Settings};
use crate::planted::{Bug, planted};
use crate::report::Recovery;
use crate::storage::{self, Space, Storage};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use background::Background;
use maintenance::Maintenance;
use state::State;

pub(crate) use browse::Browsing;
pub use close::Closed;
pub(crate) use insert::{Due, Outgoing};
pub(crate) use queue_shared::QueueShared;
pub(crate) use read::Content;
pub(crate) use salvage::check_empty;
pub use settle::Fate;
pub(crate) use settle::HeldBy;
pub use stats::{Oldest, QueueStats, SegmentStats, StoreStats};
pub(crate) use take::{Few, Peeked, Taken};
pub(crate) use verify::verify;

/// Under `Sync`, what nobody waits for is durable after so long.
const UNAWAITED: Duration = Duration::from_secs(1);

pub(crate) struct Engine {
    storage: Arc<dyn Storage>,
    space: Arc<Space>,
    settings: Settings,
    time: TimeSource,
    /// When the store was opened.
    opened: Now,
    store_id: [u8; 16],
    recovery: Recovery,
    log: Log,
    state: Lock<State>,
    maintenance: Lock<Maintenance>,
    /// Held by whoever makes segments ready.
    supply: Lock<()>,
    /// Maintains.
    background: Background,
    /// Supplies.
    supplier: Background,
    /// The end of the last move into a queue whose messages are seen once they are durable. Nobody waits for that
    /// move, so whoever syncs past it wakes the consumers.
    unseen: AtomicU64,
    /// What follows from a failed sync or write to the log has been done.
    poison_told: AtomicBool,
    /// No more gets.
    closing: AtomicBool,
    /// Wakes whoever waits for the last message in flight while the store closes.
    settled: Signal,
    /// Nothing at all any more.
    closed: AtomicBool,
    directory_lock: Lock<Option<Box<dyn storage::Lock>>>,
}

impl Engine {
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    pub fn store_id(&self) -> [u8; 16] {
        self.store_id
    }

    pub(crate) fn now(&self) -> Now {
        self.time.now()
    }

    /// The time, as far as it matters to a queue: the wall clock is read only if something waits for it.
    fn now_for(&self, queue: &QueueShared, touched: &QueueState) -> Now {
        if touched.delayed() > 0 || queue.has_expiring() {
            self.now()
        } else {
            Now { mono: self.time.mono(), wall_ms: 0 }
        }
    }

    /// The time that deduplication windows go by: that of the wall clock when the store was opened, and from then on of the
    /// one that nobody can set.
    fn window_ms(&self, now: Now) -> u64 {
        let open_ms = millis(now.mono.saturating_duration_since(self.opened.mono));
        self.opened.wall_ms.saturating_add(open_ms)
    }

    /// An error if the store is closed or poisoned.
    fn check_alive(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed());
        }
        if self.log.is_poisoned() {
            return Err(self.poisoned());
        }
        Ok(())
    }

    /// What follows from a failed write to the log, and its error. To be called outside of the locks.
    fn write_failed(&self) -> Error {
        self.on_poison();
        self.poisoned().indeterminate()
    }

    fn poisoned(&self) -> Error {
        poisoned(self.log.failure())
    }

    /// When the background thread must have synced what is appended now.
    #[inline]
    fn sync_by(&self, durability: Durability) -> Option<Instant> {
        match durability {
            Durability::Interval(every) => self.time.mono().checked_add(every),
            Durability::Sync | Durability::Process => None,
        }
    }

    /// When the background thread must have synced a record that nobody waits for: a get, a release, a failure.
    #[inline]
    fn settle_by(&self) -> Option<Instant> {
        match self.settings.delete_durability {
            // Its attempts are not worth a sync of their own, but are not left lying either.
            Durability::Sync => self.time.mono().checked_add(UNAWAITED),
            other => self.sync_by(other),
        }
    }

    /// Waits until all before `end` is durable.
    fn sync_to(&self, end: Position) -> Result<()> {
        self.log.sync_to(end).map_err(|failed| {
            self.on_poison();
            poisoned(Some(failed)).indeterminate()
        })?;
        self.wake_for_unseen();
        Ok(())
    }

    /// Wakes consumers of messages that were moved, and have become durable by whoever's sync.
    fn wake_for_unseen(&self) {
        let unseen = self.unseen.load(Ordering::SeqCst);
        if unseen == 0 || unseen > self.log.synced_through().as_u64() {
            return;
        }
        if self.unseen.compare_exchange(unseen, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.wake_all_waiters();
        }
    }

    /// Makes everything durable that was done before the call.
    pub fn sync(&self) -> Result<()> {
        self.check_alive()?;
        let end = self.log.tail().end();
        self.sync_to(end)?;
        self.wake_all_waiters();
        Ok(())
    }

    /// Tells the next open that frames behind the proof may be pages that never reached the disk, and wakes
    /// everybody, to find the store poisoned.
    fn on_poison(&self) {
        if self.poison_told.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(lock) = &*self.directory_lock.lock() {
            // Without the note, a bad frame is reported as damage instead of as the end; nothing is lost by that.
            let _ = lock.note(&open::lock_note(self.storage.pid(), ""));
        }
        self.wake_all_waiters();
        self.background.wake();
    }

    /// Does outside of the locks what an append was refused for. Then it can be tried again.
    fn make_room(&self, refused: Refused, purpose: Purpose) -> Result<()> {
        match refused {
            Refused::Poisoned => Err(self.poisoned()),
            Refused::Failed => Err(self.write_failed()),
            Refused::Closed => Err(Error::closed()),
            Refused::Removed => Err(removed()),
            // The next try looks for room.
            Refused::Limited => Ok(()),
            Refused::HeldBack => self.hold_back().inspect_err(|error| self.look_for_space(error)),
            Refused::Segment { frames_bytes } => self
                .prepare_for(frames_bytes, purpose)
                .inspect_err(|error| self.look_for_space(error)),
            Refused::Checkpoint { ids } => self.checkpoint_for(ids),
        }
    }

    /// Somebody was refused for want of space: what maintenance could not do for the same reason is tried again.
    fn look_for_space(&self, error: &Error) {
        if error.is_retryable() {
            self.space.asked();
            self.background.wake();
        }
    }

    fn after_append(&self, appended: &Appended) {
        if appended.wake {
            self.background.wake();
        }
        if appended.short {
            self.supplier.wake();
        }
    }

    fn wake_all_waiters(&self) {
        let state = self.state.lock();
        for queue in state.queues.values() {
            if queue.shared.waiters.load(Ordering::SeqCst) > 0 {
                queue.shared.signal.notify_all();
            }
            queue.shared.wake_for_room();
        }
        self.settled.notify_all();
    }

    /// Wakes consumers of `queue` for `messages` new ones.
    ///
    /// Ensures: a consumer that found the queue empty before these messages were visible is woken. It counts itself
    /// in before it looks, and the append lock lies between its look and this one.
    fn wake_waiters(&self, queue: &QueueShared, messages: usize) {
        if queue.waiters.load(Ordering::SeqCst) == 0 {
            return;
        }
        // A waiter holds this lock from its look until it sleeps.
        let without = planted(Bug::ConsumerSignalledWithoutTheLock);
        let _state = (!without).then(|| self.state.lock());
        if messages == 1 {
            queue.signal.notify_one();
        } else {
            queue.signal.notify_all();
        }
    }

    fn lock_state(&self) -> Guard<'_, State> {
        self.state.lock()
    }

    /// The state of a store that is not closed, and cannot be before the lock is given back: its log has an end.
    fn lock_open(&self) -> Result<Guard<'_, State>> {
        let state = self.state.lock();
        if self.closed.load(Ordering::Acquire) { Err(Error::closed()) } else { Ok(state) }
    }
}

fn poisoned(failure: Option<SyncFailed>) -> Error {
    match failure {
        Some(SyncFailed(cause)) => Error::poisoned(cause),
        None => Error::new(ErrorKind::Poisoned, "an earlier sync failed"),
    }
}

fn removed() -> Error {
    Error::new(ErrorKind::NotFound, "the queue was removed")
}
