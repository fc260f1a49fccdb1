//! The whole store, its background threads included, on the simulated disk, under schedules that a seed picks.
//!
//! shuttle runs one thread at a time and chooses at every lock, signal and atomic who goes on, and where a test wants
//! it behind every operation of the disk. It calls a state in which everybody waits a deadlock, so a lost wakeup
//! fails every test here, and so does a wrong lock order.
//!
//! The clock stands still, and a wait with a limit does not end by itself, until a test lets time go by: whoever is
//! to be woken must be woken.
//!
//! What a schedule must get by to be found here is a preemption at one place, with a long run of another thread
//! there. A scheduler that tosses a coin at each step does not do that (within a hundred steps each thread has done
//! about as much as the others), so there are two that let a thread run: PCT, which preempts at a few places, and
//! [`Bursts`].

mod bursts;
mod closing;
mod cutting;
mod declaring;
mod full;
mod grouped;
mod keyed;
mod limited;
mod reading;
mod syncing;
mod timing;
mod waiting;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bursts::Bursts;

use crate::clock::{Clock, TimeSource};
use crate::options::{Durability, OnDrop, QueueOptions, Settings};
use crate::queue::Queue;
use crate::random::Entropy;
use crate::storage::sim::Disk;
use crate::store::Store;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The least that a store can be told.
const SEGMENT_BYTES: u64 = 64 << 10;

/// Four messages of this size fill a segment.
const LARGE: usize = 15_000;

/// How many changes of who goes first a bug may need that PCT is to find, and one more.
const PCT_DEPTHS: [usize; 2] = [2, 3];

/// A schedule has some hundred steps to some thousand. One that is still not done waits for something that nobody
/// does.
const STEPS_MAX: usize = 200_000;

fn from_env(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs `model` under `MILLPOND_SCHEDULES` schedules: half of them in bursts, half by PCT. The same ones each time,
/// but for another `MILLPOND_SCHEDULES_SEED`. With `MILLPOND_SCHEDULE`, under that one, as a failing test has printed
/// it.
fn explore(model: impl Fn() + Send + Sync + 'static) {
    if let Ok(schedule) = std::env::var("MILLPOND_SCHEDULE") {
        let scheduler = shuttle::scheduler::ReplayScheduler::new_from_encoded(&schedule);
        shuttle::Runner::new(scheduler, config()).run(model);
        return;
    }
    let count = from_env("MILLPOND_SCHEDULES", 1_000) as usize;
    let seed = from_env("MILLPOND_SCHEDULES_SEED", 1);
    let model = Arc::new(model);
    let run = |scheduler: Box<dyn shuttle::scheduler::Scheduler + Send>| {
        let model = model.clone();
        shuttle::Runner::new(scheduler, config()).run(move || model());
    };
    run(Box::new(Bursts::new(seed, count / 2)));
    for depth in PCT_DEPTHS {
        let count = count / 2 / PCT_DEPTHS.len();
        run(Box::new(shuttle::scheduler::PctScheduler::new_from_seed(seed, depth, count)));
    }
}

/// Runs `work` once, by itself, for what comes before the threads.
fn alone<T: Send + 'static>(work: impl Fn() -> T + Send + Sync + 'static) -> T {
    let made = Arc::new(Mutex::new(None));
    let kept = made.clone();
    shuttle::Runner::new(Bursts::new(0, 1), config()).run(move || {
        let done = work();
        *kept.lock().unwrap() = Some(done);
    });
    made.lock().unwrap().take().unwrap()
}

fn config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    // In words.
    config.stack_size = 64 << 10;
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS_MAX);
    // All of the store's atomics are taken for sequentially consistent here; relaxed ones are hints.
    config.silence_warnings = true;
    config
}

fn settings(durability: Durability) -> Settings {
    Settings { durability, segment_bytes: SEGMENT_BYTES, ..Settings::default() }
}

fn open(disk: &Disk, settings: Settings) -> Store {
    open_with(disk, settings, &Clock::new())
}

fn open_with(disk: &Disk, settings: Settings, clock: &Clock) -> Store {
    let time = TimeSource::Manual(clock.clone());
    let entropy = Entropy::Sequence(Arc::default());
    Store::start(Arc::new(disk.clone()), settings, time, entropy).unwrap()
}

/// A disk on which a thread that has synced or written something may be overtaken before it goes on.
fn yielding(disk: Disk) -> Disk {
    let turn = AtomicBool::new(false);
    disk.on_operation(Some(Box::new(move |_, _| {
        turn.load(Ordering::SeqCst);
    })));
    disk
}

/// Deliveries that are dropped are given back uncounted, without a wait.
fn queue(store: &Store, name: &str) -> Queue {
    store.declare(name, QueueOptions::new().on_drop(OnDrop::Release)).unwrap()
}

/// A payload that no other message has: `name`, over and over.
fn payload(name: &str, bytes: usize) -> Vec<u8> {
    format!("<{name}>").bytes().cycle().take(bytes).collect()
}

/// The name in a payload, which must be whole.
fn name_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == b'>').expect("the payload of a test");
    let name = String::from_utf8(bytes[1..end].to_vec()).unwrap();
    assert_eq!(bytes, payload(&name, bytes.len()), "bytes of another message");
    name
}

/// Whether the message would be there if the power went now, and took all with it that was not synced.
fn survives_a_power_cut(disk: &Disk, name: &str) -> bool {
    let left = disk.power_cut(0);
    let wanted = payload(name, name.len() + 2);
    left.file_names().iter().filter(|file| file.ends_with(".seg")).any(|file| {
        let content = left.read_file(file).unwrap();
        content.windows(wanted.len()).any(|bytes| bytes == wanted)
    })
}

/// Which messages were delivered and deleted, how often. Of the standard library, so that it does not disturb.
#[derive(Clone, Default)]
struct Tally(Arc<Mutex<BTreeMap<String, usize>>>);

impl Tally {
    fn add(&self, name: String) {
        *self.0.lock().unwrap().entry(name).or_default() += 1;
    }

    fn total(&self) -> usize {
        self.0.lock().unwrap().values().sum()
    }

    fn assert_once_each(&self, names: impl IntoIterator<Item = String>) {
        let expected: BTreeMap<String, usize> = names.into_iter().map(|name| (name, 1)).collect();
        assert_eq!(*self.0.lock().unwrap(), expected);
    }
}
