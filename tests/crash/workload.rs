//! The operations: each is done to the store and to the model, and while it runs the disk is forked after every
//! storage operation. What the forks may hold is known once it has returned: the state before it, after it, or
//! between two of its records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use millpond::testing::{Clock, Crash, Crashes, Cut, Disk, step};
use millpond::{Delivery, Durability, Store};

use super::check::{Checker, Fork, Promises, mix, words};
use super::content::DEAD;
use super::queue::{Place, Rules, Time};
use super::run::{Job, Plan};
use super::world::{Moment, World};

pub type Outcome<T> = Result<T, String>;

/// Whether an operation has made durable all that was done before it returned.
pub type Durable = bool;

pub const QUEUES: [&str; 3] = ["a", "b", DEAD];

/// Takes a fork that is to be checked.
pub type HandOver<'a> = dyn Fn(Job) -> Outcome<()> + 'a;

/// What the run has come across.
#[derive(Debug, Default)]
pub struct Coverage {
    pub storage_operations: u64,
    pub segments: usize,
    pub removed_segments: usize,
    pub rewritten_segments: usize,
    pub indexes: usize,
    pub cursors: usize,
    pub crashes: usize,
    pub reopens: usize,
    pub dead_letters: usize,
    pub redriven: usize,
    pub inserted: usize,
    /// Messages whose key was known.
    pub duplicates: usize,
}

/// A delivery that the workload has not settled yet.
pub struct Held {
    pub delivery: Delivery,
    pub queue: &'static str,
    pub id: u64,
    pub token: u64,
}

/// Where a workload takes its choices from.
pub trait Choices {
    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize;
}

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0xa076_1d64_78bd_642f))
    }
}

impl Choices for Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 8) as usize % end
    }
}

pub struct Workload<'a> {
    pub plan: &'a Plan,
    pub random: Box<dyn Choices + 'a>,
    pub world: World,
    pub held: Vec<Held>,
    /// The id that the next message must get; None after a crash, which leaves some out.
    pub next_id: Option<u64>,
    pub highest_id: u64,
    pub tokens: u64,
    pub coverage: Coverage,
    checker: &'a Checker,
    hand_over: &'a HandOver<'a>,
    disk: Disk,
    clock: Clock,
    time: Time,
    store: Option<Store>,
    since_durable: Vec<Arc<Moment>>,
    crashes: Option<Crashes>,
    /// From now on, on whatever disk.
    is_watched: bool,
    files: BTreeSet<String>,
    newborn: bool,
}

impl<'a> Workload<'a> {
    pub fn new(
        plan: &'a Plan,
        random: impl Choices + 'a,
        checker: &'a Checker,
        hand_over: &'a HandOver<'a>,
    ) -> Workload<'a> {
        let clock = Clock::new();
        let time = Time { mono: 0, wall: 1_700_000_000_000 };
        clock.set_wall_ms(time.wall);
        Workload {
            plan,
            random: Box::new(random),
            world: World::default(),
            held: Vec::new(),
            next_id: None,
            highest_id: 0,
            tokens: 0,
            coverage: Coverage::default(),
            checker,
            hand_over,
            disk: Disk::new(),
            clock,
            time,
            store: None,
            since_durable: vec![Arc::default()],
            crashes: None,
            is_watched: false,
            files: BTreeSet::new(),
            newborn: true,
        }
    }

    /// Runs the whole plan.
    pub fn run(&mut self) -> Outcome<Coverage> {
        self.watch();
        self.begin()?;
        for n in 0..self.plan.operations {
            self.perform_any().map_err(|why| format!("operation {n}: {why}"))?;
        }
        self.reopen()?;
        self.coverage.storage_operations += self.disk.operations();
        Ok(std::mem::take(&mut self.coverage))
    }

    /// A new store with its queues and a first message, all of it durable.
    pub fn begin(&mut self) -> Outcome<()> {
        self.operate("open", Self::open)?;
        self.newborn = false;
        let rules = Rules { max_attempts: Some(3), lease_ms: 10_000, ..Rules::default() };
        self.operate("declare a", |run| run.declare("a", Rules { backoff_ms: 50, ..rules }))?;
        let rules = Rules { max_attempts: Some(2), dead_letter: Some(DEAD), ..Rules::default() };
        self.operate("declare b", |run| run.declare("b", Rules { backoff_ms: 0, ..rules }))?;
        self.operate("insert", |run| run.insert("a", 1000))?;
        // Without it a power cut could take even the queues away.
        self.operate("sync", Self::sync)
    }

    /// Does one operation and hands over the forks that were taken meanwhile.
    pub fn operate(
        &mut self,
        what: &str,
        operation: impl FnOnce(&mut Self) -> Outcome<Durable>,
    ) -> Outcome<()> {
        let before = self.since_durable.len() - 1;
        let outcome = operation(self).map_err(|why| format!("{what}: {why}"));
        let crashes = self.crashes.as_ref().map_or_else(Vec::new, Crashes::take);
        if outcome.is_ok() && !crashes.is_empty() {
            let promises = self.promises(before);
            let origin: Arc<str> = what.into();
            for mut crash in crashes {
                crash.operation += self.coverage.storage_operations;
                let (promises, origin) = (promises.clone(), origin.clone());
                (self.hand_over)(Job { fork: Fork::first(crash), promises, origin })?;
            }
        }
        if outcome? {
            self.since_durable.drain(..self.since_durable.len() - 1);
        }
        Ok(())
    }

    fn promises(&self, since_acknowledged: usize) -> Promises {
        Promises {
            since_durable: self.since_durable.as_slice().into(),
            since_acknowledged,
            highest_id: self.highest_id,
            wall_ms: self.time.wall,
            newborn: self.newborn,
        }
    }

    /// The model has reached a state that the log describes.
    pub fn note(&mut self) {
        self.since_durable.push(Arc::new(Moment::of(self.world.clone())));
    }

    /// Whether the message was there when all was last durable.
    pub fn is_durable(&self, queue: &str, id: u64) -> bool {
        let queue = self.since_durable.first().and_then(|past| past.world.queues.get(queue));
        queue.is_some_and(|queue| queue.messages.contains_key(&id))
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open between operations")
    }

    pub fn queue(&self, name: &str) -> Outcome<millpond::Queue> {
        words(self.store().find(name), "find")?.ok_or_else(|| format!("queue {name} is gone"))
    }

    pub fn time(&self) -> Time {
        self.time
    }

    pub fn inserts_are_synced(&self) -> bool {
        self.plan.durability == Durability::Sync
    }

    pub fn deletes_are_synced(&self) -> bool {
        self.plan.delete_durability == Durability::Sync
    }

    /// Crashes the disk after every storage operation from now on.
    pub fn watch(&mut self) {
        self.is_watched = true;
        let (base, power_cuts) = (self.coverage.storage_operations, self.plan.power_cuts);
        let seed =
            move |operation: u64, n| if n < 2 { n } else { mix((base + operation) << 8 | n) };
        self.crash_after(move |operation| {
            let power_cuts = (0..power_cuts).map(move |n| Cut::PowerCut(seed(operation, n)));
            power_cuts.chain([Cut::Kill])
        });
    }

    /// Crashes the disk in the ways that `cuts` says of each storage operation.
    pub fn crash_after<I: IntoIterator<Item = Cut>>(
        &mut self,
        cuts: impl FnMut(u64) -> I + Send + 'static,
    ) {
        self.crashes = Some(Crashes::watch(&self.disk, cuts));
    }

    /// How many the disks have performed so far.
    pub fn storage_operations(&self) -> u64 {
        self.coverage.storage_operations + self.disk.operations()
    }

    fn open(&mut self) -> Outcome<Durable> {
        let store = words(self.plan.options().open_simulated(&self.disk, &self.clock), "open")?;
        self.store = Some(store);
        self.note();
        Ok(true)
    }

    /// Closes the store properly, and opens it again.
    pub fn reopen(&mut self) -> Outcome<()> {
        self.operate("close", Self::close)?;
        self.world = self.world.died();
        self.operate("reopen", Self::open)?;
        self.coverage.reopens += 1;
        let recovery = self.store().recovery();
        if !recovery.clean || recovery.redelivered != 0 || !recovery.damaged.is_empty() {
            return Err(format!("after a close: {recovery:?}"));
        }
        Ok(())
    }

    fn close(&mut self) -> Outcome<Durable> {
        // Whether the end of a lease was noticed decides whether its attempt counts.
        let now = self.time;
        for name in ["a", DEAD, "b", "t"] {
            if !self.world.queues.contains_key(name) {
                continue;
            }
            words(self.queue(name)?.stats(), "stats")?;
            self.world.advance(name, now);
            let in_flight = |place| matches!(place, Place::InFlight(_));
            for id in self.world.queue(name).ids_at(in_flight) {
                let attempts = self.world.queue(name).messages[&id].attempts - 1;
                self.world.put(name, id, attempts, Place::GivenBack);
                self.note();
            }
            for message in self.world.queue_mut(name).messages.values_mut() {
                message.token = 0;
            }
        }
        if let Some(store) = self.store.take() {
            words(store.close(), "close")?;
        }
        self.held.clear();
        Ok(true)
    }

    /// The process dies or the power goes, and what is left is opened and worked on.
    pub fn crash(&mut self, cut: Cut) -> Outcome<()> {
        let left = cut.apply(&self.disk);
        let operation = self.storage_operations();
        // Looking at it changes it, so a copy of it is looked at.
        let fork = Fork::first(Crash { disk: left.kill(), cut, operation });
        let last = self.since_durable.len() - 1;
        let found = self.checker.check(&fork, &self.promises(last))?;
        self.crashes = None;
        self.held.clear();
        self.store = None;
        self.coverage.storage_operations += self.disk.operations();
        self.coverage.crashes += 1;
        self.disk = left;
        if self.is_watched {
            self.watch();
        }
        self.world = found.world.died();
        self.next_id = None;
        if cut != Cut::Kill {
            self.since_durable = vec![found];
        }
        self.operate("recover", Self::open)?;
        // What was looked at does not tell the options, and they may be older.
        let rules = self.world.queue("a").rules.clone();
        self.operate("declare", |run| run.declare("a", rules))?;
        // It tells the next id. This queue has no limit that could refuse it.
        self.operate("insert", |run| run.insert("b", 100))
    }

    pub fn sync(&mut self) -> Outcome<Durable> {
        words(self.store().sync(), "sync")?;
        Ok(true)
    }

    pub fn steps(&mut self, most: usize) -> Outcome<Durable> {
        for _ in 0..most {
            if !words(step(self.store()), "step")? {
                break;
            }
        }
        self.look_at_files();
        Ok(false)
    }

    /// Lets time pass, and the background thread do what it has to by then.
    pub fn tick(&mut self, by_ms: u64) -> Outcome<Durable> {
        self.clock.advance(Duration::from_millis(by_ms));
        self.time = Time { mono: self.time.mono + by_ms, wall: self.time.wall + by_ms };
        self.steps(usize::MAX)?;
        let within = |every: Duration| every <= Duration::from_millis(by_ms);
        let inserts = match self.plan.durability {
            Durability::Sync => true,
            Durability::Interval(every) => within(every),
            Durability::Process => false,
        };
        // Attempts and places are synced by the interval of the deletes, and with `Sync` not at all.
        let rest =
            matches!(self.plan.delete_durability, Durability::Interval(every) if within(every));
        Ok(inserts && rest)
    }

    /// Whether its header says that the segment takes the place of others.
    fn is_rewritten(&self, name: &str) -> bool {
        let content = self.disk.read_file(name).unwrap_or_default();
        content.get(32..40) != content.get(48..56)
    }

    fn look_at_files(&mut self) {
        let names: BTreeSet<String> = self.disk.file_names().into_iter().collect();
        let new: Vec<&String> = names.difference(&self.files).collect();
        let count = |extension: &str| new.iter().filter(|name| name.ends_with(extension)).count();
        self.coverage.segments += count(".seg");
        let segments = new.iter().filter(|name| name.ends_with(".seg"));
        self.coverage.rewritten_segments += segments.filter(|name| self.is_rewritten(name)).count();
        self.coverage.indexes += count(".idx");
        self.coverage.cursors += new.iter().filter(|name| name.starts_with("cursor.")).count();
        let gone = self.files.difference(&names).filter(|name| name.ends_with(".seg"));
        self.coverage.removed_segments += gone.count();
        self.files = names;
    }
}

impl Drop for Workload<'_> {
    fn drop(&mut self) {
        // Nobody asks for the crashes of what the store does when it is dropped.
        self.crashes = None;
    }
}
