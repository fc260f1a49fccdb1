//! Opening what a crash has left, and holding it against the model.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millpond::testing::{Clock, Crash, Crashes, Cut, Disk};
use millpond::{Queue, Store, StoreOptions};

use super::content::{Content, DEAD, came_from, probe_keys};
use super::seen::{Got, Seen, SeenQueue, Stats};
use super::world::{DRAIN_BATCH, Moment};

/// The queue that shows whether a store works.
const PROBE: &str = "probe";

/// How many observations are remembered, roughly.
const REMEMBERED: usize = 40_000;

/// How many states were visited.
#[derive(Debug, Default)]
pub struct Counts {
    pub kills: AtomicU64,
    pub power_cuts: AtomicU64,
    /// In the middle of a recovery, and of a recovery from that.
    pub in_recovery: [AtomicU64; 2],
    /// Of all of them, those that were not in every byte like one that had been visited a while before.
    pub distinct: AtomicU64,
}

impl Counts {
    fn count(&self, cut: Cut, level: usize) {
        let counter = match (level, cut) {
            (0, Cut::Kill) => &self.kills,
            (0, Cut::PowerCut(_)) => &self.power_cuts,
            (level, _) => &self.in_recovery[level - 1],
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn total(&self) -> u64 {
        let all = [&self.kills, &self.power_cuts, &self.in_recovery[0], &self.in_recovery[1]];
        all.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }
}

/// What a crash has left, and what may still happen to it.
pub struct Fork {
    pub crash: Crash,
    /// What was on the disk and not synced may be lost by a power cut to come.
    pub unsynced: bool,
    /// How many recoveries were cut before.
    pub level: usize,
}

impl Fork {
    pub fn first(crash: Crash) -> Fork {
        let unsynced = crash.cut == Cut::Kill;
        Fork { crash, unsynced, level: 0 }
    }

    /// After a crash in the recovery from this one.
    fn next(&self, crash: Crash) -> Fork {
        let unsynced = self.unsynced && crash.cut == Cut::Kill;
        Fork { crash, unsynced, level: self.level + 1 }
    }
}

/// What a fork is checked against.
#[derive(Clone)]
pub struct Promises {
    /// The states since the last one that was promised to be durable, in order; that one first.
    pub since_durable: Arc<[Arc<Moment>]>,
    /// The first of them that a kill may leave: that before the operation that was cut.
    pub since_acknowledged: usize,
    /// The highest id that was ever given out.
    pub highest_id: u64,
    pub wall_ms: u64,
    /// Nothing was promised yet: the store itself may be missing.
    pub newborn: bool,
}

pub struct Checker {
    pub options: StoreOptions,
    pub counts: Arc<Counts>,
    /// How many of these first-level forks, and of the second-level ones, are cut again while they are recovered: one
    /// in so many.
    again_every: [u64; 2],
    known: RefCell<Known<Observed>>,
    known_reopened: RefCell<Known<Arc<Buried>>>,
}

/// All that an observation depends on, besides the options of the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Found {
    fingerprint: u128,
    wall_ms: u64,
    newborn: bool,
}

/// What was seen of a store, and the first id that it gave out.
#[derive(Clone)]
struct Observed {
    seen: Arc<Seen>,
    first_new: u64,
}

/// How many messages of each queue are buried in the end.
type Buried = BTreeMap<String, u64>;

/// What was observed of late: many crashes leave the same bytes, and many more the same after they were recovered from
/// and the store closed.
struct Known<T> {
    newer: HashMap<Found, T>,
    older: HashMap<Found, T>,
}

impl<T> Default for Known<T> {
    fn default() -> Known<T> {
        Known { newer: HashMap::new(), older: HashMap::new() }
    }
}

impl<T: Clone> Known<T> {
    fn get(&self, found: &Found) -> Option<T> {
        self.newer.get(found).or_else(|| self.older.get(found)).cloned()
    }

    fn insert(&mut self, found: Found, observed: T) {
        if self.newer.len() >= REMEMBERED / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(found, observed);
    }
}

type Check<T> = Result<T, String>;

pub fn words<T>(result: millpond::Result<T>, what: &str) -> Check<T> {
    result.map_err(|error| format!("{what}: {error}"))
}

impl Checker {
    pub fn new(options: StoreOptions, counts: Arc<Counts>, again_every: [u64; 2]) -> Checker {
        Checker {
            options,
            counts,
            again_every,
            known: RefCell::default(),
            known_reopened: RefCell::default(),
        }
    }

    /// Checks one crash, and a sample of those that can happen while it is recovered from. A panic of the store is a
    /// broken promise like any other.
    pub fn check(&self, fork: &Fork, promises: &Promises) -> Check<Arc<Moment>> {
        let caught = catch_unwind(AssertUnwindSafe(|| self.check_fork(fork, promises)));
        let outcome = caught.unwrap_or_else(|_| Err("the store panicked".to_owned()));
        outcome.map_err(|why| {
            let Crash { cut, operation, .. } = fork.crash;
            format!("{why}\n  after {cut:?} at storage operation {operation}, level {}", fork.level)
        })
    }

    fn check_fork(&self, fork: &Fork, promises: &Promises) -> Check<Arc<Moment>> {
        let Crash { disk, cut, operation } = &fork.crash;
        self.counts.count(*cut, fork.level);
        let again = self
            .again_every
            .get(fork.level)
            .is_some_and(|every| mix(operation ^ seed_of(*cut)).is_multiple_of(*every));
        let first = operation << 8;
        let again = again.then(|| {
            let cuts = move |n| [Cut::Kill, Cut::PowerCut(0), Cut::PowerCut(first + n)];
            Crashes::watch(disk, cuts)
        });
        let (observed, crashes) = self.observe(disk, promises, again)?;
        let Observed { seen, first_new } = observed;
        let from = if *cut == Cut::Kill { promises.since_acknowledged } else { 0 };
        let at = explain(&seen, promises, from)?;
        if first_new <= promises.highest_id {
            let highest = promises.highest_id;
            return Err(format!("id {first_new} was given out again; {highest} had been"));
        }
        for crash in crashes {
            self.check(&fork.next(crash), &promises_within(fork, promises, at))
                .map_err(|why| format!("{why}\n  in the recovery from {cut:?}"))?;
        }
        Ok(promises.since_durable[at].clone())
    }

    /// What is seen of a store, and the crashes that `watched` took of its open. Of a disk on which a store can find nothing
    /// different from one that was observed before, it is known.
    fn observe(
        &self,
        disk: &Disk,
        promises: &Promises,
        watched: Option<Crashes>,
    ) -> Check<(Observed, Vec<Crash>)> {
        let Promises { wall_ms, newborn, .. } = *promises;
        let found = Found { fingerprint: disk.fingerprint(), wall_ms, newborn };
        let known = self.known.borrow().get(&found);
        if let Some(known) = known.clone().filter(|_| watched.is_none()) {
            return Ok((known, Vec::new()));
        }
        let (seen, first_new, crashes) = self.look(disk, promises, watched)?;
        let observed = Observed { seen: Arc::new(seen), first_new };
        if known.is_none() {
            self.counts.distinct.fetch_add(1, Ordering::Relaxed);
            self.known.borrow_mut().insert(found, observed.clone());
        }
        Ok((observed, crashes))
    }

    /// Opens a store, looks at everything in it, uses it, closes and reopens it. Also the first id that it gives out, and
    /// the crashes that `watched` took of the open.
    fn look(
        &self,
        disk: &Disk,
        promises: &Promises,
        watched: Option<Crashes>,
    ) -> Check<(Seen, u64, Vec<Crash>)> {
        let clock = Clock::new();
        clock.set_wall_ms(promises.wall_ms);
        let store = words(self.options.open_simulated(disk, &clock), "open");
        let crashes = watched.map_or_else(Vec::new, |watched| watched.take());
        let store = store?;
        check_recovery(&store, promises.newborn)?;
        let mut seen = drain(&store, &clock)?;
        let first_new = check_it_works(&store)?;
        words(store.close(), "close")?;
        drop(store);
        for (name, buried) in &*self.reopen(disk, &clock, promises.wall_ms)? {
            match seen.queues.get_mut(name) {
                Some(seen) => seen.buried_in_the_end = *buried,
                None if name == PROBE => {}
                None => return Err(format!("queue {name} out of nowhere")),
            }
        }
        Ok((seen, first_new, crashes))
    }

    /// What is buried in a store that was drained and closed. As with [`observe`](Checker::observe) it may be known: the
    /// clock has been moved by the same.
    fn reopen(&self, disk: &Disk, clock: &Clock, wall_ms: u64) -> Check<Arc<Buried>> {
        let found = Found { fingerprint: disk.fingerprint(), wall_ms, newborn: false };
        if let Some(buried) = self.known_reopened.borrow().get(&found) {
            return Ok(buried);
        }
        let store = words(self.options.open_simulated(disk, clock), "reopen")?;
        let buried = Arc::new(check_reopened(&store)?);
        self.known_reopened.borrow_mut().insert(found, buried.clone());
        Ok(buried)
    }
}

/// What holds for a crash during the recovery of a store that is found in state `at`. Only what is synced nowhere can
/// still be lost: otherwise the second recovery finds what the first one did.
fn promises_within(first: &Fork, promises: &Promises, at: usize) -> Promises {
    let from = if first.unsynced { 0 } else { at };
    Promises {
        since_durable: promises.since_durable[from..=at].into(),
        since_acknowledged: at - from,
        ..promises.clone()
    }
}

fn seed_of(cut: Cut) -> u64 {
    match cut {
        Cut::Kill => 0x5555,
        Cut::PowerCut(seed) => seed << 20,
    }
}

pub fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 29)
}

/// Which state the store was found in: the newest that looks like it.
fn explain(seen: &Seen, promises: &Promises, from: usize) -> Check<usize> {
    let worlds = &promises.since_durable[from..];
    let difference = |world: &Arc<Moment>| seen.difference(&world.seen(promises.wall_ms));
    if let Some(at) = worlds.iter().rposition(|world| difference(world).is_none()) {
        return Ok(from + at);
    }
    let last: Vec<String> = worlds.iter().rev().take(4).filter_map(difference).collect();
    Err(format!("none of {} possible states explains it: {last:#?}", worlds.len()))
}

fn check_recovery(store: &Store, newborn: bool) -> Check<()> {
    let recovery = store.recovery();
    let walked = recovery.full_walk && !newborn;
    if !recovery.damaged.is_empty()
        || !recovery.bad_cursors.is_empty()
        || !recovery.renamed_queues.is_empty()
        || walked
    {
        return Err(format!("a crash is not damage: {recovery:?}"));
    }
    Ok(())
}

/// Takes and deletes everything: the dead letter queue, which others flow into, last.
fn drain(store: &Store, clock: &Clock) -> Check<Seen> {
    let mut seen = Seen::default();
    let mut queues: Vec<Queue> = Vec::new();
    for name in store.queue_names() {
        let queue = words(store.find(&name), "find")?.ok_or("a queue that cannot be found")?;
        let stats = words(queue.stats(), "stats")?;
        if stats.in_flight != 0 {
            return Err(format!("{name}: {stats:?} right after the open"));
        }
        let is_paused = stats.paused.is_some();
        if is_paused {
            words(queue.resume(), "resume")?;
        }
        let stats = Stats { ready: stats.ready, delayed: stats.delayed, buried: stats.buried };
        seen.queues.insert(name, SeenQueue { stats, is_paused, ..SeenQueue::default() });
        queues.push(queue);
    }
    let (sinks, sources): (Vec<Queue>, Vec<Queue>) =
        queues.into_iter().partition(|queue| queue.name() == DEAD);
    for queue in &sources {
        drain_queue(queue, &mut seen)?;
    }
    for queue in &sources {
        if let Some(seen) = seen.queues.get_mut(queue.name()) {
            seen.keys = probe_keys(queue)?;
        }
    }
    clock.advance(Duration::from_secs(7200));
    for queue in &sources {
        drain_queue(queue, &mut seen)?;
    }
    // What was moved to the dead letter queue becomes visible.
    words(store.sync(), "sync")?;
    for queue in &sinks {
        drain_queue(queue, &mut seen)?;
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
                content: Content::delivered(delivery),
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
    let queue = words(store.queue(PROBE), "declare")?;
    let id = words(queue.insert("after the crash"), "insert")?;
    let delivery = words(queue.try_get(), "get")?.ok_or("nothing to get after an insert")?;
    if (delivery.id(), delivery.attempt(), delivery.payload()) != (id, 1, b"after the crash") {
        return Err(format!("got {delivery:?} after the insert of {id}"));
    }
    words(delivery.delete(), "delete")?;
    Ok(id.as_u64())
}

/// After the drain, a clean close and a reopen nothing is left but what is buried.
fn check_reopened(store: &Store) -> Check<Buried> {
    let mut buried = Buried::new();
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
        if words(queue.try_get(), "get")?.is_some() {
            return Err(format!("{name}: a deleted message came back"));
        }
        buried.insert(name, stats.buried);
    }
    let stats = store.stats();
    if stats.damaged_messages != 0 || !stats.damage.is_empty() {
        return Err(format!("damage without damage: {stats:?}"));
    }
    Ok(buried)
}
