//! The two background threads, for maintenance and for supplies: loops that sleep when there is nothing to do.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Engine;
use crate::error::{Error, Result};
use crate::lock::{Lock, Signal};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, JoinHandle};

/// When maintenance that has failed is tried again.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// A thread, and how it is told to look.
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
    pub(super) fn start_background(self: &Arc<Engine>) -> Result<()> {
        start(self, "millpond", |engine| &engine.background, maintain)?;
        start(self, "millpond-supply", |engine| &engine.supplier, supply)
    }

    /// Ends both threads, and waits for them.
    pub(super) fn stop_background(&self) {
        self.supplier.stop();
        self.background.stop();
    }
}

/// All maintenance that there is to do. How long the thread may sleep then if nobody wakes it.
fn maintain(engine: &Engine) -> Option<Duration> {
    let done = loop {
        match engine.maintain() {
            Ok(true) => {}
            done => break done,
        }
    };
    if engine.log.is_poisoned() {
        return None;
    }
    let sync_by = engine.log.tail().sync_by();
    let until_sync = sync_by.map(|due| due.saturating_duration_since(engine.now().mono));
    let until_more = match done {
        Ok(_) => engine.sleep_until_sweep(),
        // It is tried again though nobody asks for it, and not at once, though a sweep may be due.
        Err(_) => Some(AFTER_ERROR),
    };
    match (until_sync, until_more) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// All supplies that are wanted.
fn supply(engine: &Engine) -> Option<Duration> {
    while engine.supply_step().is_ok_and(|worked| worked) {
        // The log has grown: a checkpoint may be due.
        engine.background.wake();
    }
    None
}

#[expect(clippy::disallowed_methods, reason = "the threads of a store start here")]
fn start(
    engine: &Arc<Engine>,
    name: &str,
    which: fn(&Engine) -> &Background,
    work: fn(&Engine) -> Option<Duration>,
) -> Result<()> {
    let weak = Arc::downgrade(engine);
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&weak, which, work))
        .map_err(|error| Error::io("cannot start a background thread", error))?;
    *which(engine).thread.lock() = Some(thread);
    Ok(())
}

fn run(
    engine: &Weak<Engine>,
    which: fn(&Engine) -> &Background,
    work: fn(&Engine) -> Option<Duration>,
) {
    loop {
        // A reference of its own while it sleeps: closing stops the thread before the engine goes.
        let Some(engine) = engine.upgrade() else { return };
        let limit = work(&engine);
        if !which(&engine).wait(limit) {
            return;
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;
    use crate::sync::atomic::AtomicUsize;

    /// Work that a lock guards, as the log's tail does.
    #[derive(Default)]
    struct Shared {
        background: Background,
        wanted: Lock<usize>,
        done: AtomicUsize,
    }

    fn work_until_stopped(shared: &Shared) {
        loop {
            let wanted = std::mem::take(&mut *shared.wanted.lock());
            shared.done.fetch_add(wanted, SeqCst);
            if !shared.background.wait(None) {
                return;
            }
        }
    }

    /// Somebody who has changed something and woken the thread never finds it asleep with the change unseen: loom would
    /// call that a deadlock, since whoever stops it waits until all is done.
    #[test]
    fn nothing_is_left_undone() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let shared = Arc::new(Shared::default());
            let (worker, other) = (shared.clone(), shared.clone());
            let worker = loom::thread::spawn(move || work_until_stopped(&worker));
            let other = loom::thread::spawn(move || {
                *other.wanted.lock() += 1;
                other.background.wake();
            });
            *shared.wanted.lock() += 1;
            shared.background.wake();
            other.join().unwrap();
            while shared.done.load(SeqCst) < 2 {
                loom::thread::yield_now();
            }
            shared.background.stop();
            worker.join().unwrap();
            assert_eq!(shared.done.load(SeqCst), 2);
        });
    }
}

#[cfg(not(any(loom, shuttle)))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, TimeSource};
    use crate::message::Message;
    use crate::options::{Durability, Settings};
    use crate::random::Entropy;
    use crate::storage::sim::{Disk, Fault, FaultKind};
    use crate::store::Store;

    #[test]
    fn an_error_does_not_keep_the_thread_awake_though_messages_have_expired() {
        let (disk, clock) = (Disk::new(), Clock::new());
        let settings = Settings {
            durability: Durability::Process,
            segment_bytes: 64 << 10,
            background: false,
            ..Settings::default()
        };
        let time = TimeSource::Manual(clock.clone());
        let storage = Arc::new(disk.clone());
        let store =
            Store::start(storage, settings, time, Entropy::Sequence(Arc::default())).unwrap();
        let queue = store.queue("q").unwrap();
        for _ in 0..1000 {
            queue.insert(Message::new(vec![0; 100]).ttl(Duration::from_secs(1))).unwrap();
        }
        disk.fail(Fault { kind: FaultKind::Create, after: 0, sticky: true });
        clock.advance(Duration::from_secs(1));
        assert!(maintain(store.engine()).is_some_and(|sleep| sleep >= AFTER_ERROR));
        assert!(disk.faults_struck() > 0 && store.stats().messages == 1000);
    }
}
