//! Opens what a dead process has left, and holds it against the states that it may be in.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millpond::{Durability, Queue, Store};

use crate::child::{self, Note, Orders};
use crate::content::{Content, DEAD, came_from, probe_keys};
use crate::script::Script;
use crate::seen::{Got, Seen, SeenQueue, Stats};
use crate::world::{DRAIN_BATCH, World};

type Check<T> = Result<T, String>;

fn words<T>(result: millpond::Result<T>, what: &str) -> Check<T> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// How far a process has come, and what it may have left.
pub struct Promises {
    /// The state after the last step that returned, and those that the one under way leads through.
    pub worlds: Vec<Arc<World>>,
    /// All states that it has been in, and may be in.
    pub history: Vec<Arc<World>>,
    /// The highest id that may have been given out.
    highest_id: u64,
    /// Nothing was promised yet: the store itself may be missing.
    is_newborn: bool,
    /// Steps that have returned.
    pub returned: usize,
}

impl Promises {
    /// Plays the script as far as the process has come.
    pub fn of(script: &mut Script, notes: &[Note]) -> Promises {
        let begun = notes.iter().filter(|note| **note == Note::Begun).count();
        let returned = notes.iter().filter(|note| **note == Note::Returned).count();
        let mut worlds = vec![Arc::new(World::default())];
        let mut history = worlds.clone();
        for n in 0..begun {
            let step = script.next().expect("the process has played the same script");
            let passed = script.play(&step).worlds;
            history.extend(passed.iter().cloned());
            if n < returned {
                worlds = passed.last().map_or(worlds, |last| vec![last.clone()]);
            } else {
                worlds.extend(passed);
            }
        }
        Promises {
            worlds,
            history,
            highest_id: script.highest_id(),
            is_newborn: begun == 0,
            returned,
        }
    }
}

/// Opens the store that the orders name, takes everything out of it, uses, closes and reopens it. What is left of it is of
/// no use afterwards.
pub fn check(orders: &Orders, promises: &Promises) -> Check<()> {
    let dir = orders.store();
    if !promises.is_newborn {
        let report = words(Store::verify(&dir), "verify")?;
        if !report.is_sound() {
            return Err(format!("a death is not damage: {report:?}"));
        }
    }
    let (seen, first_new) = observe(&dir, orders.durability, promises.is_newborn)?;
    explain(&seen, &promises.worlds)?;
    if first_new <= promises.highest_id {
        let highest = promises.highest_id;
        return Err(format!("id {first_new} was given out again; {highest} had been"));
    }
    Ok(())
}

/// What has the name of a backup is one, of some moment: the states are those of the script so far.
pub fn check_backup(orders: &Orders, worlds: &[Arc<World>]) -> Check<bool> {
    let dir = orders.backup();
    if !dir.exists() {
        return Ok(false);
    }
    let (seen, _) = observe(&dir, orders.durability, false)?;
    explain(&seen, worlds).map_err(|why| format!("the backup: {why}"))?;
    Ok(true)
}

fn explain(seen: &Seen, worlds: &[Arc<World>]) -> Check<()> {
    if worlds.iter().any(|world| seen.difference(&world.seen(0)).is_none()) {
        return Ok(());
    }
    let last = worlds.iter().rev().take(4).filter_map(|world| seen.difference(&world.seen(0)));
    let last: Vec<String> = last.collect();
    Err(format!("none of {} possible states explains it: {last:#?}", worlds.len()))
}

/// All that is in a store, and the first id that it gives out.
fn observe(dir: &Path, durability: Durability, is_newborn: bool) -> Check<(Seen, u64)> {
    let store = words(child::open(dir, durability), "open")?;
    check_recovery(&store, is_newborn)?;
    let mut seen = drain(&store)?;
    let first_new = check_it_works(&store)?;
    words(store.close(), "close")?;
    drop(store);
    let store = words(child::open(dir, durability), "reopen")?;
    check_reopened(&store, &mut seen)?;
    Ok((seen, first_new))
}

fn check_recovery(store: &Store, is_newborn: bool) -> Check<()> {
    let recovery = store.recovery();
    if !recovery.damaged.is_empty()
        || !recovery.bad_cursors.is_empty()
        || !recovery.renamed_queues.is_empty()
        || (recovery.full_walk && !is_newborn)
    {
        return Err(format!("a death is not damage: {recovery:?}"));
    }
    Ok(())
}

/// Takes and deletes everything: the dead letter queue, which others flow into, last.
fn drain(store: &Store) -> Check<Seen> {
    let mut seen = Seen::default();
    let mut queues: Vec<Queue> = Vec::new();
    for name in store.queue_names() {
        let queue = words(store.find(&name), "find")?.ok_or("a queue that cannot be found")?;
        let stats = words(queue.stats(), "stats")?;
        if stats.in_flight != 0 {
            return Err(format!("{name}: {stats:?} right after the open"));
        }
        let stats = Stats { ready: stats.ready, delayed: stats.delayed, buried: stats.buried };
        seen.queues.insert(name, SeenQueue { stats, ..SeenQueue::default() });
        queues.push(queue);
    }
    queues.sort_by_key(|queue| queue.name() == DEAD);
    for queue in &queues {
        // What was moved to the dead letter queue becomes visible.
        words(store.sync(), "sync")?;
        drain_queue(queue, &mut seen)?;
        if let Some(seen) = seen.queues.get_mut(queue.name()).filter(|_| queue.name() != DEAD) {
            seen.keys = probe_keys(queue)?;
        }
    }
    Ok(seen)
}

fn drain_queue(queue: &Queue, seen: &mut Seen) -> Check<()> {
    let seen = seen.queues.get_mut(queue.name()).ok_or("a queue out of nowhere")?;
    loop {
        let deliveries = words(queue.get_batch(DRAIN_BATCH, Duration::ZERO), "get")?;
        if deliveries.is_empty() {
            return Ok(());
        }
        for delivery in &deliveries {
            seen.got.push(Got {
                id: delivery.id().as_u64(),
                origin: delivery.origin_id().as_u64(),
                from: came_from(delivery),
                attempt: delivery.attempt(),
                content: Content::of(delivery.payload()),
            });
        }
        let count = deliveries.len() as u64;
        let deleted = words(queue.delete_batch(deliveries), "delete")?;
        if (deleted.deleted, deleted.stale) != (count, 0) {
            return Err(format!("deleting {count} drained messages: {deleted:?}"));
        }
    }
}

/// Inserts one message, gets and deletes it. Returns its id.
fn check_it_works(store: &Store) -> Check<u64> {
    let queue = words(store.queue("probe"), "declare")?;
    let id = words(queue.insert("after the death"), "insert")?;
    let delivery = words(queue.try_get(), "get")?.ok_or("nothing to get after an insert")?;
    if (delivery.id(), delivery.attempt(), delivery.payload()) != (id, 1, b"after the death") {
        return Err(format!("got {delivery:?} after the insert of {id}"));
    }
    words(delivery.delete(), "delete")?;
    Ok(id.as_u64())
}

/// After the drain, a close and a reopen nothing is left but what is buried.
fn check_reopened(store: &Store, seen: &mut Seen) -> Check<()> {
    check_recovery(store, false)?;
    if !store.recovery().clean {
        return Err("a closed store was not found clean".to_owned());
    }
    for name in store.queue_names() {
        let queue = words(store.find(&name), "find")?.ok_or("a queue that cannot be found")?;
        let stats = words(queue.stats(), "stats")?;
        if (stats.ready, stats.delayed, stats.in_flight) != (0, 0, 0) {
            return Err(format!("{name} was drained, closed and reopened: {stats:?}"));
        }
        match seen.queues.get_mut(&name) {
            Some(seen) => seen.buried_in_the_end = stats.buried,
            None if name == "probe" => {}
            None => return Err(format!("queue {name} out of nowhere")),
        }
    }
    let stats = store.stats();
    if stats.damaged_messages != 0 || !stats.damage.is_empty() {
        return Err(format!("damage without damage: {stats:?}"));
    }
    Ok(())
}

/// Copies the files of a store, as far as there are any.
pub fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let Ok(files) = fs::read_dir(from) else { return };
    for file in files.map(|file| file.unwrap()) {
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}
