//! The run of one script. It has the name and the fields of the crash tests' workload, whose operations it performs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millpond::testing::fuzz::Input;
use millpond::testing::{Clock, Disk, step};
use millpond::{Delivery, Durability, Queue, Store, StoreOptions};

use super::check::{Checker, Counts, Crash, Fork, Promises, words};
use super::world::{DEAD, Place, Rules, Time, World};

pub type Outcome<T> = Result<T, String>;

/// Whether an operation has made durable all that was done before it returned.
pub type Durable = bool;

pub const QUEUES: [&str; 3] = ["a", "b", DEAD];

/// More is cut off the end of a script.
const OPERATIONS_MAX: usize = 200;

/// Of a byte's 256 values, so many have the next operation cut off within.
const CUTS: usize = 32;

/// One in so many of the recoveries is cut off again everywhere, which takes long.
const AGAIN_EVERY: [u64; 2] = [60, u64::MAX];

/// What the operations say they have come across; nobody asks here.
#[derive(Default)]
pub struct Coverage {
    pub dead_letters: usize,
    pub inserted: usize,
}

/// A delivery that the workload has not settled yet.
pub struct Held {
    pub delivery: Delivery,
    pub queue: &'static str,
    pub id: u64,
    pub token: u64,
}

/// When inserts and deletes are durable.
#[derive(Clone, Copy)]
pub struct Durabilities {
    inserts: Durability,
    deletes: Durability,
}

impl Durabilities {
    fn options(self) -> StoreOptions {
        let options = Store::options().segment_bytes(64 << 10);
        options.durability(self.inserts).delete_durability(self.deletes)
    }
}

/// The input, where the crash tests have random numbers.
pub struct Script<'a>(Input<'a>);

impl<'a> Script<'a> {
    pub fn new(input: &'a [u8]) -> Script<'a> {
        Script(Input::new(input))
    }

    pub fn below(&mut self, end: usize) -> usize {
        let number = if end <= 256 { self.0.byte().into() } else { self.0.u16().into() };
        let number: usize = number;
        number % end
    }

    pub fn durabilities(&mut self) -> Durabilities {
        let interval = Durability::Interval(Duration::from_secs(1));
        let all = [Durability::Sync, Durability::Process, interval];
        Durabilities { inserts: all[self.below(3)], deletes: all[self.below(3)] }
    }
}

pub struct Workload<'a> {
    pub random: Script<'a>,
    pub world: World,
    pub held: Vec<Held>,
    /// The id that the next message must get; None after a crash, which leaves some out.
    pub next_id: Option<u64>,
    pub highest_id: u64,
    pub tokens: u64,
    pub coverage: Coverage,
    durabilities: Durabilities,
    checker: Checker,
    disk: Disk,
    clock: Clock,
    time: Time,
    store: Option<Store>,
    since_durable: Vec<Arc<World>>,
    fork: Arc<Mutex<Option<Fork>>>,
    newborn: bool,
}

impl<'a> Workload<'a> {
    pub fn new(durabilities: Durabilities, script: Script<'a>) -> Workload<'a> {
        let clock = Clock::new();
        let time = Time { mono: 0, wall: 1_700_000_000_000 };
        clock.set_wall_ms(time.wall);
        let counts = Arc::new(Counts::default());
        Workload {
            random: script,
            world: World::default(),
            held: Vec::new(),
            next_id: None,
            highest_id: 0,
            tokens: 0,
            coverage: Coverage::default(),
            durabilities,
            checker: Checker { options: durabilities.options(), counts, again_every: AGAIN_EVERY },
            disk: Disk::new(),
            clock,
            time,
            store: None,
            since_durable: vec![Arc::default()],
            fork: Arc::default(),
            newborn: true,
        }
    }

    /// Runs the script to its end: for each operation a byte that says whether it is cut off within, and what
    /// [`Workload::perform_any`] asks for.
    pub fn run(&mut self) -> Outcome<()> {
        self.operate("open", Self::open)?;
        self.newborn = false;
        let rules = Rules { max_attempts: Some(3), lease_ms: 10_000, ..Rules::default() };
        self.operate("declare a", |run| run.declare("a", Rules { backoff_ms: 50, ..rules }))?;
        let rules = Rules { max_attempts: Some(2), dead_letter: Some(DEAD), ..Rules::default() };
        self.operate("declare b", |run| run.declare("b", Rules { backoff_ms: 0, ..rules }))?;
        self.operate("insert", |run| run.insert("a"))?;
        // Without it a power cut could take even the queues away.
        self.operate("sync", Self::sync)?;
        for n in 0..OPERATIONS_MAX {
            if self.random.0.is_empty() {
                break;
            }
            let cut = self.random.below(256);
            if cut < CUTS {
                self.cut_within();
            } else if cut < 2 * CUTS {
                self.crash().map_err(|why| format!("operation {n}: {why}"))?;
            }
            self.perform_any().map_err(|why| format!("operation {n}: {why}"))?;
        }
        self.disk.on_operation(None);
        self.reopen()
    }

    fn a_crash(&mut self) -> Crash {
        match self.random.below(4) {
            0 => Crash::Kill,
            _ => Crash::PowerCut(self.random.below(1 << 16) as u64),
        }
    }

    /// Has a copy of the disk taken after one of the storage operations to come, as a crash leaves it there.
    fn cut_within(&mut self) {
        let crash = self.a_crash();
        let at = self.disk.operations() + 1 + self.random.below(16) as u64;
        let taken = self.fork.clone();
        self.disk.on_operation(Some(Box::new(move |disk, number| {
            if number == at {
                *taken.lock().unwrap() = Some(fork(disk, crash));
            }
        })));
    }

    /// Does one operation, and checks what a crash in it has left.
    pub fn operate(
        &mut self,
        what: &str,
        operation: impl FnOnce(&mut Self) -> Outcome<Durable>,
    ) -> Outcome<()> {
        let before = self.since_durable.len() - 1;
        let durable = operation(self).map_err(|why| format!("{what}: {why}"))?;
        let taken = self.fork.lock().unwrap().take();
        if let Some(fork) = taken {
            let checked = self.checker.check(&fork, &self.promises(before));
            checked.map_err(|why| format!("{what}: {why}"))?;
        }
        if durable {
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
        self.since_durable.push(Arc::new(self.world.clone()));
    }

    /// Whether the message was there when all was last durable.
    pub fn is_durable(&self, queue: &str, id: u64) -> bool {
        let queue = self.since_durable.first().and_then(|world| world.queues.get(queue));
        queue.is_some_and(|queue| queue.messages.contains_key(&id))
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open between operations")
    }

    pub fn queue(&self, name: &str) -> Outcome<Queue> {
        words(self.store().find(name), "find")?.ok_or_else(|| format!("queue {name} is gone"))
    }

    pub fn time(&self) -> Time {
        self.time
    }

    pub fn inserts_are_synced(&self) -> bool {
        self.durabilities.inserts == Durability::Sync
    }

    pub fn deletes_are_synced(&self) -> bool {
        self.durabilities.deletes == Durability::Sync
    }

    fn open(&mut self) -> Outcome<Durable> {
        let options = self.durabilities.options();
        self.store = Some(words(options.open_simulated(&self.disk, &self.clock), "open")?);
        self.note();
        Ok(true)
    }

    /// Closes the store properly, and opens it again.
    pub fn reopen(&mut self) -> Outcome<()> {
        self.operate("close", Self::close)?;
        self.operate("reopen", Self::open)?;
        let recovery = self.store().recovery();
        if !recovery.clean || recovery.redelivered != 0 || !recovery.damaged.is_empty() {
            return Err(format!("after a close: {recovery:?}"));
        }
        Ok(())
    }

    fn close(&mut self) -> Outcome<Durable> {
        for name in ["a", DEAD, "b", "t"] {
            if self.world.queues.contains_key(name) {
                self.give_back(name)?;
            }
        }
        if let Some(store) = self.store.take() {
            words(store.close(), "close")?;
        }
        self.held.clear();
        Ok(true)
    }

    /// What a close does with the messages of a queue that are in flight.
    fn give_back(&mut self, name: &'static str) -> Outcome<()> {
        // Whether the end of a lease was noticed decides whether its attempt counts.
        words(self.queue(name)?.stats(), "stats")?;
        self.world.advance(name, self.time);
        for id in self.world.queue(name).ids_at(|place| matches!(place, Place::InFlight(_))) {
            let attempts = self.world.queue(name).messages[&id].attempts - 1;
            self.world.put(name, id, attempts, Place::GivenBack);
            self.note();
        }
        for message in self.world.queue_mut(name).messages.values_mut() {
            message.token = 0;
        }
        Ok(())
    }

    /// The process dies or the power goes, and what is left is opened and worked on.
    pub fn crash(&mut self) -> Outcome<()> {
        let crash = self.a_crash();
        let left = crash.apply(&self.disk);
        let last = self.since_durable.len() - 1;
        // Looking at it changes it, so a copy of it is looked at.
        let copy = Fork { disk: left.kill(), ..fork(&self.disk, crash) };
        let found = self.checker.check(&copy, &self.promises(last))?;
        self.disk.on_operation(None);
        self.held.clear();
        self.store = None;
        self.disk = left;
        self.world = found.died();
        self.next_id = None;
        if crash != Crash::Kill {
            self.since_durable = vec![found];
        }
        self.operate("recover", Self::open)?;
        self.operate("insert", |run| run.insert("a"))
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
        Ok(false)
    }

    /// Lets time pass, and the background thread do what it has to by then.
    pub fn tick(&mut self, by_ms: u64) -> Outcome<Durable> {
        self.clock.advance(Duration::from_millis(by_ms));
        self.time = Time { mono: self.time.mono + by_ms, wall: self.time.wall + by_ms };
        self.steps(usize::MAX)?;
        let within = |every: Duration| every <= Duration::from_millis(by_ms);
        let synced = |durability| match durability {
            Durability::Interval(every) => within(every),
            _ => false,
        };
        let inserts = self.inserts_are_synced() || synced(self.durabilities.inserts);
        // Attempts and places are synced by the interval of the deletes, and with `Sync` not at all.
        Ok(inserts && synced(self.durabilities.deletes))
    }
}

fn fork(disk: &Disk, crash: Crash) -> Fork {
    let unsynced = crash == Crash::Kill;
    Fork { disk: crash.apply(disk), crash, unsynced, operation: disk.operations(), level: 0 }
}
