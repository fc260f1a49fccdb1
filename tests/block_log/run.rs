//! Recording a workload on a logged device, and checking what power cuts leave of it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use tempfile::TempDir;

use crate::device::{Disk, Flushes, LoggedDevice};
use crate::history::{Counts, History};
use crate::load::{self, AFTERWARDS, QUEUES, Random};
use crate::log::Log;
use crate::mount::{FileSystem, Mounted};
use crate::observe::{self, Observed};
use crate::record::{Moment, Record, Witness};
use crate::states::{self, Cut, Fates, Image};
use crate::workload::{self, Plan};

/// Of so many states the recovery is logged too, and cut off in its turn.
const AGAIN_EVERY: usize = 25;

/// How often each of those is cut off.
const AGAIN_CUTS: usize = 6;

/// What is inserted after a recovery that is logged.
const INSERTED_AFTERWARDS: u64 = 6;

/// States of one workload. A larger number of them takes several.
pub const STATES_OF_ONE: usize = 250;

#[derive(Debug, Default)]
pub struct Figures {
    pub workloads: u64,
    pub entries: u64,
    pub flushes: u64,
    pub states: u64,
    /// Those that were cut off again while they were recovered from.
    pub in_recovery: u64,
    pub fates: Fates,
    pub messages: u64,
    pub redelivered: u64,
    /// States in which nothing had been lost or torn behind the last flush.
    pub untouched: u64,
    /// States with a segment that compaction had written.
    pub rewritten: u64,
    pub acknowledged: Counts,
}

impl Figures {
    fn count(&mut self, fates: Fates, observed: &Observed) {
        self.rewritten += u64::from(observed.rewritten);
        self.states += 1;
        self.fates.add(fates);
        self.untouched += u64::from(fates.lost + fates.torn == 0);
        self.messages += observed.messages() as u64;
        self.redelivered += observed.redelivered;
    }

    pub fn add(&mut self, other: &Figures) {
        self.workloads += other.workloads;
        self.entries += other.entries;
        self.flushes += other.flushes;
        self.states += other.states;
        self.in_recovery += other.in_recovery;
        self.fates.add(other.fates);
        self.messages += other.messages;
        self.redelivered += other.redelivered;
        self.untouched += other.untouched;
        self.rewritten += other.rewritten;
        self.acknowledged.add(&other.acknowledged);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fates { kept, lost, torn } = self.fates;
        let Counts { inserts, deliveries, deletes, dead_letters, opens } = self.acknowledged;
        write!(
            f,
            "{} states ({} of them in a recovery), in {} of which no write was lost; unflushed writes: {kept} \
             kept, {lost} lost, {torn} torn; {} messages checked, {} of them delivered again; {} \
             states with rewritten segments; {} workloads: \
             {} writes and flushes ({} flushes), {inserts} inserts, {deliveries} deliveries, {deletes} \
             deletes, {dead_letters} dead letters, {opens} opens",
            self.states,
            self.in_recovery,
            self.untouched,
            self.messages,
            self.redelivered,
            self.rewritten,
            self.workloads,
            self.entries,
            self.flushes,
        )
    }
}

/// Why nothing was shown.
pub enum Failed {
    /// The machine lacks something.
    NotHere(String),
    Broken(String),
}

type Outcome<T> = Result<T, Failed>;

/// Where images lie: in memory if there is a place for it.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { memory } else { &std::env::temp_dir() };
    tempfile::Builder::new().prefix("millpond-block-log-").tempdir_in(dir).unwrap()
}

/// Runs one workload, and checks `count` of the states that a power cut may leave of it.
pub fn run(disk: Disk, plan: &Plan, count: usize) -> Outcome<Figures> {
    let scene = scratch();
    let file_system = disk.file_system;
    let recorded = Recorded::make(disk, plan, scene.path())?;
    let mut random = Random::new(plan.seed);
    let cuts = states::choose(&recorded.log, count, &mut random);
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    let figures = Mutex::new(recorded.figures());
    let checked = thread::scope(|scope| {
        let parts = cuts.chunks(cuts.len().div_ceil(threads).max(1)).enumerate();
        let checkers: Vec<_> = parts
            .map(|(n, cuts)| {
                let (dir, recorded, figures) = (scene.path(), &recorded, &figures);
                scope.spawn(move || {
                    let bench = Bench::new(file_system, dir.join(n.to_string()));
                    recorded.check_all(&bench, cuts, figures)
                })
            })
            .collect();
        let outcomes = checkers.into_iter().map(|checker| checker.join().unwrap());
        outcomes.collect::<Vec<_>>().into_iter().collect::<Result<(), String>>()
    });
    match checked {
        Ok(()) => Ok(figures.into_inner().unwrap()),
        Err(why) => Err(Failed::Broken(format!("{}, {plan:?}: {why}", file_system.name()))),
    }
}

/// The smallest that a file system can be made with, or nearly.
fn bytes(file_system: FileSystem) -> u64 {
    match file_system {
        FileSystem::Ext4 => 48 << 20,
        FileSystem::Xfs => 300 << 20,
    }
}

/// A workload that has ended, with all that its device took.
struct Recorded {
    flushes: Flushes,
    before: Vec<u8>,
    log: Log,
    history: History,
}

/// Notes with the position of the device.
struct Notes<'a> {
    device: &'a LoggedDevice,
    records: Mutex<Vec<Record>>,
}

impl Witness for Notes<'_> {
    fn note(&self, records: &[Record]) {
        let mut all = self.records.lock().unwrap();
        let at = Moment { tick: all.len() as u64, position: self.device.position() };
        all.extend(records.iter().map(|record| Record { at, ..*record }));
    }
}

impl Recorded {
    fn make(disk: Disk, plan: &Plan, dir: &Path) -> Outcome<Recorded> {
        let Disk { file_system, flushes } = disk;
        let image = dir.join("image");
        file_system.make(&image, bytes(file_system)).map_err(Failed::NotHere)?;
        let before = fs::read(&image).unwrap();
        let device = LoggedDevice::start(&image, dir, flushes).map_err(Failed::NotHere)?;
        let mounted = Mounted::mount(device.path(), file_system, &dir.join("mounted"));
        let mounted = mounted.map_err(Failed::NotHere)?;
        let notes = Notes { device: &device, records: Mutex::default() };
        let done = workload::run(&mounted.dir().join("store"), plan, &notes);
        done.map_err(|error| Failed::Broken(format!("the workload: {error}")))?;
        let records = notes.records.into_inner().unwrap();
        drop(mounted);
        let log = device.finish();
        let history = History::new(&records).map_err(Failed::Broken)?;
        fs::remove_file(image).unwrap();
        Ok(Recorded { flushes, before, log, history })
    }

    fn figures(&self) -> Figures {
        Figures {
            workloads: 1,
            entries: self.log.entries.len() as u64,
            flushes: self.log.entries.iter().filter(|entry| entry.is_flush()).count() as u64,
            acknowledged: self.history.counts,
            ..Figures::default()
        }
    }

    fn check_all(
        &self,
        bench: &Bench,
        cuts: &[Cut],
        figures: &Mutex<Figures>,
    ) -> Result<(), String> {
        let mut image = Image::new(self.before.clone(), bench.file_system);
        for (n, cut) in cuts.iter().enumerate() {
            let again = n % AGAIN_EVERY == AGAIN_EVERY / 2;
            self.check(bench, *cut, again, &mut image, figures)
                .map_err(|why| format!("{cut:?}: {why}{}", self.keep(*cut, &mut image)))?;
        }
        Ok(())
    }

    fn check(
        &self,
        bench: &Bench,
        cut: Cut,
        again: bool,
        image: &mut Image,
        figures: &Mutex<Figures>,
    ) -> Result<(), String> {
        let fates = image.write_cut(&self.log, cut, &bench.image);
        let observed = bench.observe()?;
        self.history.check(&observed, cut.at as u64)?;
        figures.lock().unwrap().count(fates, &observed);
        if again {
            image.write_cut(&self.log, cut, &bench.image);
            Recovery::make(bench)?.check_all(bench, &observed, cut.seed, figures)?;
        }
        Ok(())
    }

    /// Keeps the disk of a state that broke a promise. Where, in words.
    fn keep(&self, cut: Cut, image: &mut Image) -> String {
        if self.flushes == Flushes::Ignored {
            return String::new();
        }
        let path = std::env::temp_dir().join(format!("millpond-block-log-{:x}.image", cut.seed));
        let fates = image.write_cut(&self.log, cut, &path);
        format!("\nof what was not flushed: {fates:?}; the disk is kept: {}", path.display())
    }
}

/// Where one thread mounts what it checks.
struct Bench {
    file_system: FileSystem,
    dir: PathBuf,
    image: PathBuf,
}

impl Bench {
    fn new(file_system: FileSystem, dir: PathBuf) -> Bench {
        fs::create_dir(&dir).unwrap();
        let image = dir.join("image");
        Bench { file_system, dir, image }
    }

    /// Mounts the image as it is, and opens the store in it.
    fn observe(&self) -> Result<Observed, String> {
        let mounted = Mounted::mount(&self.image, self.file_system, &self.dir.join("mounted"))?;
        observe::observe(&mounted.dir().join("store"))
    }
}

/// The open after a crash, and some inserts behind it, on a logged device.
struct Recovery {
    before: Vec<u8>,
    log: Log,
    /// The ids of what was inserted, and where the device was when each of the inserts had returned.
    inserted: Vec<(u64, u64)>,
}

impl Recovery {
    /// Recovers from the image that lies on the bench.
    fn make(bench: &Bench) -> Result<Recovery, String> {
        let before = fs::read(&bench.image).unwrap();
        let device = LoggedDevice::start(&bench.image, &bench.dir, Flushes::Kept)?;
        let mounted = Mounted::mount(device.path(), bench.file_system, &bench.dir.join("mounted"))?;
        let store = observe::open_after_power_cut(&mounted.dir().join("store"))?;
        let words = |error: millpond::Error| error.to_string();
        let queue = store.queue(QUEUES[AFTERWARDS as usize]).map_err(words)?;
        let mut inserted = Vec::new();
        for key in 0..INSERTED_AFTERWARDS {
            let id = queue.insert(load::payload(key)).map_err(words)?.as_u64();
            inserted.push((id, device.position()));
        }
        drop(queue);
        store.close().map_err(words)?;
        drop(store);
        drop(mounted);
        Ok(Recovery { before, log: device.finish(), inserted })
    }

    /// However often it is cut off, the same is found as without.
    fn check_all(
        &self,
        bench: &Bench,
        first: &Observed,
        seed: u64,
        figures: &Mutex<Figures>,
    ) -> Result<(), String> {
        let mut image = Image::new(self.before.clone(), bench.file_system);
        for cut in states::choose(&self.log, AGAIN_CUTS, &mut Random::new(seed)) {
            let fates = image.write_cut(&self.log, cut, &bench.image);
            let at = |why: String| format!("its recovery cut off, {cut:?}, {fates:?}: {why}");
            let observed = bench.observe().map_err(at)?;
            if lasting(&observed) != lasting(first) {
                return Err(at(format!("found {observed:#?}, and at first {first:#?}")));
            }
            let returned = |(_, at): &&(u64, u64)| *at <= cut.at as u64;
            let told: Vec<u64> = self.inserted.iter().filter(returned).map(|(id, _)| *id).collect();
            observed.check_afterwards(&told, INSERTED_AFTERWARDS).map_err(at)?;
            let mut figures = figures.lock().unwrap();
            figures.count(fates, &observed);
            figures.in_recovery += 1;
        }
        Ok(())
    }
}

/// What must be the same after another crash, if only the queue for that was touched in between: not the ids of messages
/// that move to the dead letter queue only now.
fn lasting(observed: &Observed) -> Vec<(u8, u64, u64, u32)> {
    let queues = (0..AFTERWARDS).zip(&observed.queues);
    let seen = queues.flat_map(|(n, queue)| queue.iter().map(move |seen| (n, seen)));
    seen.map(|(n, seen)| (n, seen.key, seen.origin, seen.attempt)).collect()
}

/// The plan of a workload.
pub fn plan(seed: u64) -> Plan {
    // One thread alone meets every sync; several share them.
    let threads = if seed.is_multiple_of(4) { 1 } else { 4 };
    Plan { seed, threads, first_open: 0, opens: 4, operations: 500 / u32::from(threads) }
}
