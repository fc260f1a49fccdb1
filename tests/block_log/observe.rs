//! Opening the store that a crash has left, and looking at everything in it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use millpond::{Queue, Store};

use crate::load::{self, AFTERWARDS, DEAD, QUEUES, WORK};

/// A message as it was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub key: u64,
    pub id: u64,
    /// Its id before it was moved to the dead letter queue.
    pub origin: u64,
    pub attempt: u32,
}

#[derive(Debug, Default)]
pub struct Observed {
    /// All messages of each queue, in the order in which they were delivered.
    pub queues: [Vec<Seen>; QUEUES.len()],
    /// The first id that the store gave out.
    pub first_new: u64,
    /// No cursor was found.
    pub full_walk: bool,
    pub redelivered: u64,
    /// There was a segment that compaction had written.
    pub rewritten: bool,
}

impl Observed {
    pub fn messages(&self) -> usize {
        self.queues.iter().map(Vec::len).sum()
    }

    /// Of the messages 0, 1, ... below `begun` that were inserted one after the other after a crash, those are there that
    /// returned with the ids `told`, and maybe more.
    pub fn check_afterwards(&self, told: &[u64], begun: u64) -> Check {
        let found = &self.queues[AFTERWARDS as usize];
        let in_order = found.iter().map(|seen| seen.key).eq(0..found.len() as u64);
        let same = told.iter().zip(found).all(|(told, seen)| *told == seen.id);
        let lost = found.len() < told.len() || found.len() as u64 > begun;
        let again = told.last().is_some_and(|last| self.first_new <= *last);
        match in_order && same && !lost && !again {
            true => Ok(()),
            false => Err(format!("{told:?} were inserted after the crash: {self:#?}")),
        }
    }
}

type Check<T = ()> = Result<T, String>;

fn words<T>(result: millpond::Result<T>, what: &str) -> Check<T> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Takes all messages out of the store in `dir`, uses it, closes and reopens it, and verifies every byte of it.
pub fn observe(dir: &Path) -> Check<Observed> {
    let rewritten = has_rewritten_segment(dir);
    let store = open_after_power_cut(dir)?;
    let recovery = store.recovery();
    let mut observed = Observed {
        rewritten,
        full_walk: recovery.full_walk,
        redelivered: recovery.redelivered,
        ..Observed::default()
    };
    drain(&store, &mut observed)?;
    observed.first_new = check_it_works(&store)?;
    words(store.close(), "close")?;
    drop(store);
    check_reopened(dir)?;
    let report = words(Store::verify(dir), "verify")?;
    match report.is_sound() {
        true => Ok(observed),
        false => Err(format!("after the recovery: {report:?}")),
    }
}

/// Whether the header of any segment says that it takes the place of others.
fn has_rewritten_segment(dir: &Path) -> bool {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let segments = files.filter(|file| file.path().extension().is_some_and(|end| end == "seg"));
    segments.filter_map(|file| fs::read(file.path()).ok()).any(|bytes| {
        let (number, lowest) = (bytes.get(32..40), bytes.get(40..48));
        number != lowest
    })
}

/// Opens the store as another boot does.
pub fn open_after_power_cut(dir: &Path) -> Check<Store> {
    forget_boot(dir);
    let store = words(load::options(0).0.open(dir), "open")?;
    check_recovery(&store)?;
    Ok(store)
}

/// This machine was not started anew, so the lock file names a boot that still goes on, if it was written back.
fn forget_boot(dir: &Path) {
    let path = dir.join("LOCK");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if let Ok(note) = fs::read_to_string(&path)
        && !boot.is_empty()
    {
        let other: String = boot.trim().chars().rev().collect();
        fs::write(path, note.replace(boot.trim(), &other)).unwrap();
    }
}

fn check_recovery(store: &Store) -> Check<()> {
    let recovery = store.recovery();
    match recovery.damaged.is_empty()
        && recovery.bad_cursors.is_empty()
        && recovery.renamed_queues.is_empty()
    {
        true => Ok(()),
        false => Err(format!("a power cut is not damage: {recovery:?}")),
    }
}

/// The dead letter queue, which others flow into, comes last.
fn drain(store: &Store, observed: &mut Observed) -> Check<()> {
    for (n, name) in QUEUES.iter().enumerate() {
        let Some(queue) = words(store.find(name), "find")? else { continue };
        if n == DEAD as usize {
            // What was moved becomes visible.
            words(store.sync(), "sync")?;
        }
        let stats = words(queue.stats(), "stats")?;
        if stats.in_flight + stats.delayed + stats.buried > 0 {
            return Err(format!("{name} right after the open: {stats:?}"));
        }
        let before = store.stats().messages;
        drain_queue(&queue, &mut observed.queues[n])?;
        let found = observed.queues[n].len() as u64;
        let gone = before - store.stats().messages;
        // Of the first queue, those that are out of attempts move to the dead letter queue instead.
        if gone != found || found > stats.ready || (found < stats.ready && n != WORK as usize) {
            return Err(format!("{name}: {found} messages were delivered of {stats:?}"));
        }
    }
    let left = store.stats();
    match left.messages == 0 && left.damaged_messages == 0 && left.damage.is_empty() {
        true => Ok(()),
        false => Err(format!("after all was taken out: {left:?}")),
    }
}

fn drain_queue(queue: &Queue, seen: &mut Vec<Seen>) -> Check<()> {
    loop {
        let deliveries = words(queue.get_batch(64, Duration::ZERO), "get")?;
        if deliveries.is_empty() {
            return Ok(());
        }
        for delivery in &deliveries {
            seen.push(Seen {
                key: load::identify(delivery.payload())?,
                id: delivery.id().as_u64(),
                origin: delivery.origin_id().as_u64(),
                attempt: delivery.attempt(),
            });
        }
        let count = deliveries.len() as u64;
        let deleted = words(queue.delete_batch(deliveries), "delete")?;
        if (deleted.deleted, deleted.stale) != (count, 0) {
            return Err(format!("deleting {count} messages: {deleted:?}"));
        }
    }
}

/// Inserts one message, gets and deletes it. Returns its id.
fn check_it_works(store: &Store) -> Check<u64> {
    let queue = words(store.queue("probe"), "declare")?;
    let id = words(queue.insert("after the crash"), "insert")?;
    let delivery = words(queue.try_get(), "get")?.ok_or("nothing to get after an insert")?;
    if (delivery.id(), delivery.attempt(), delivery.payload()) != (id, 1, b"after the crash") {
        return Err(format!("got {delivery:?} after the insert of {id}"));
    }
    words(delivery.delete(), "delete")?;
    Ok(id.as_u64())
}

/// All was deleted, and stays so.
fn check_reopened(dir: &Path) -> Check<()> {
    let store = words(load::options(1).0.open(dir), "reopen")?;
    check_recovery(&store)?;
    let (recovery, stats) = (store.recovery(), store.stats());
    if !recovery.clean || stats.messages > 0 {
        return Err(format!("drained, closed and reopened: {recovery:?}, {stats:?}"));
    }
    words(store.close(), "close")
}
