//! The rounds: start a child, kill it, look at what is left.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millpond::{Delivery, Durability, State, Store};
use tempfile::TempDir;

use crate::Length;
use crate::child::{self, Orders};
use crate::fifo;
use crate::journal::{self, Kind, Record};
use crate::load::{
    self, CONSUMERS, DEAD, GROUPED, MENDER, PAUSED, PAUSER, PRODUCERS, QUEUES, Random, SHARED_MAX,
    SINGLE, TROUBLED,
};
use crate::model::{Model, Seen};

const SIGKILL: i32 = 9;

/// Drawing all messages out of the copy must not take longer; delays are of a few milliseconds.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// Compaction must have caught up with a store at rest in this time.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// The directory of a run, which is kept if the run fails.
struct Scene(TempDir);

impl Drop for Scene {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.disable_cleanup(true);
            println!("the directory is kept: {}", self.0.path().display());
        }
    }
}

pub fn run(durability: Durability, length: Length) {
    let seed = match std::env::var("MILLPOND_KILL_SEED") {
        Ok(seed) => seed.parse().expect("a number for a seed"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("{durability:?}: MILLPOND_KILL_SEED={seed}, {length:?}");
    let scene = Scene(tempfile::tempdir().unwrap());
    let mut random = Random::new(seed);
    let mut model = Model::default();
    let began = Instant::now();
    for round in 0.. {
        match length {
            Length::Rounds(rounds) if round >= rounds => break,
            Length::Time(time) if began.elapsed() >= time => break,
            _ => {}
        }
        let orders = Orders {
            dir: scene.0.path().join("store"),
            journals: child::journals(scene.0.path(), round),
            durability,
            round,
            seed,
        };
        let life = Duration::from_micros(5_000 + random.below(195_000));
        kill_one(scene.0.path(), &orders, life);
        if let Err(what) = check(scene.0.path(), &orders, &mut model) {
            panic!("round {round}, killed after {life:?}: {what}");
        }
    }
    println!("{durability:?}: {}", model.figures);
    if model.figures.rounds >= ROUNDS_TO_TELL {
        let figures = &model.figures;
        assert!(figures.inserts > 0 && figures.deletes > 0, "nothing was done");
        assert!(figures.duplicates > 0, "nothing was inserted again");
        assert!(figures.dead_letters > 0, "nothing was given up");
        assert!(
            figures.redeliveries > 0 && figures.in_flight_when_killed > 0,
            "nothing was killed"
        );
    }
}

/// In fewer rounds a slow machine may not get far.
const ROUNDS_TO_TELL: u32 = 10;

/// Starts a child, lets it live for `life`, and kills it.
fn kill_one(base: &Path, orders: &Orders, life: Duration) {
    fs::create_dir(&orders.journals).unwrap();
    let said = base.join("child.log");
    let log = File::create(&said).unwrap();
    let (key, value) = orders.encode();
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(key, value)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    thread::sleep(life);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    if status.signal() != Some(SIGKILL) {
        let said = fs::read_to_string(&said).unwrap_or_default();
        panic!("round {}: the child ended by itself, {status}:\n{said}", orders.round);
    }
}

/// Compares the directory with all that the journals say.
fn check(base: &Path, orders: &Orders, model: &mut Model) -> Result<(), String> {
    let threads = PRODUCERS as usize + CONSUMERS.len();
    let journals: Vec<Vec<Record>> =
        (0..threads).map(|n| journal::read(&orders.journals, n).unwrap()).collect();
    let single = PRODUCERS as usize + CONSUMERS.iter().position(|of| *of == [SINGLE]).unwrap();
    fifo::check(&journals[single], model.given_back(), model.highest_single())?;
    model.play(&journals)?;
    model.play_pauses(&journal::read(&orders.journals, PAUSER).unwrap());
    model.play_troubles(&journal::read(&orders.journals, MENDER).unwrap())?;

    let copy = base.join("copy");
    let disk_bytes = copy_files(&orders.dir, &copy);
    let seen = examine(&copy, orders, &journals, model)?;
    model.check(&seen)?;
    reexamine(&copy, orders, &seen)?;
    model.figures.duplicates += insert_again(&copy, orders, &journals, &seen)?;

    let figures = &mut model.figures;
    figures.rounds += 1;
    figures.disk_bytes_max = figures.disk_bytes_max.max(disk_bytes);
    let opened = |journal: &Vec<Record>| journal.iter().any(|record| record.kind == Kind::Opened);
    figures.killed_while_opening += u32::from(!journals.iter().any(opened));
    fs::remove_dir_all(&copy).unwrap();
    fs::remove_dir_all(&orders.journals).unwrap();
    Ok(())
}

/// Opens the copy as the next child will open the original, and takes out everything.
fn examine(
    copy: &Path,
    orders: &Orders,
    journals: &[Vec<Record>],
    model: &mut Model,
) -> Result<Vec<Seen>, String> {
    let store = open(copy, orders, false)?;
    let recovery = store.recovery().clone();
    let (at_least, at_most) = model.in_flight();
    let began = journals.iter().any(|journal| !journal.is_empty());
    if began && !(at_least..=at_most).contains(&recovery.redelivered) {
        return Err(format!("from {at_least} to {at_most} were in flight: {recovery:?}"));
    }
    if let Some(queue) = store.find(QUEUES[PAUSED as usize]).map_err(|e| e.to_string())? {
        let stats = queue.stats().map_err(|e| e.to_string())?;
        model.check_paused(stats.paused.is_some())?;
        queue.resume().map_err(|e| e.to_string())?;
    }
    let settled = settle(&store, copy)?;
    model.figures.settled_bytes_max = model.figures.settled_bytes_max.max(settled);
    if let Some(dead) = store.find(DEAD).map_err(|e| e.to_string())? {
        model.figures.dead_letters += dead.stats().map_err(|e| e.to_string())?.ready;
    }
    let held = drain(&store)?;
    let seen = held.iter().map(|(seen, _)| *seen).collect();
    // What is held goes back uncounted.
    store.close().map_err(|error| error.to_string())?;
    Ok(seen)
}

/// Waits until compaction has held its promise. How much disk the store takes then, in bytes.
fn settle(store: &Store, copy: &Path) -> Result<u64, String> {
    let until = Instant::now() + SETTLE_MAX;
    loop {
        let stats = store.stats();
        // Two cursors follow the deduplication keys that are known, and three times one is held back, those keys included
        // that two segments may bring; with keys as short as these a message takes at least twice what its key does.
        let cursor = cursor_bytes(copy);
        let state = 2 * cursor + 3 * (cursor + load::SEGMENT_BYTES_MAX);
        let bound = 2 * stats.live_bytes + state + 4 * load::SEGMENT_BYTES_MAX;
        if stats.bytes_on_disk <= bound {
            return Ok(stats.bytes_on_disk);
        }
        if Instant::now() > until {
            return Err(format!(
                "{} bytes for {} live ones",
                stats.bytes_on_disk, stats.live_bytes
            ));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// How large the larger of the cursors is.
fn cursor_bytes(copy: &Path) -> u64 {
    let files = fs::read_dir(copy).into_iter().flatten().flatten();
    let cursors = files.filter(|file| file.file_name().to_string_lossy().starts_with("cursor."));
    cursors.filter_map(|file| Some(file.metadata().ok()?.len())).max().unwrap_or(0)
}

/// After a close everything is as it was, attempts too.
fn reexamine(copy: &Path, orders: &Orders, before: &[Seen]) -> Result<(), String> {
    let store = open(copy, orders, true)?;
    let mut after: Vec<Seen> = drain(&store)?.iter().map(|(seen, _)| *seen).collect();
    let mut before = before.to_vec();
    // What was held when it expired is not given back.
    let lasts = |seen: &Seen| load::ttl(seen.queue, seen.key).is_none();
    before.retain(lasts);
    after.retain(lasts);
    before.sort_by_key(|seen| (seen.queue, seen.id));
    after.sort_by_key(|seen| (seen.queue, seen.id));
    match before.iter().zip(&after).find(|(before, after)| before != after) {
        Some((before, after)) => Err(format!("closing has made {after:?} of {before:?}")),
        None if before.len() != after.len() => {
            Err(format!("{} messages before the close, {} after it", before.len(), after.len()))
        }
        None => Ok(()),
    }
}

/// What was inserted in this round with a deduplication key, or is there, is not inserted again, whatever became of it.
/// Returns how many those were.
fn insert_again(
    copy: &Path,
    orders: &Orders,
    journals: &[Vec<Record>],
    seen: &[Seen],
) -> Result<u64, String> {
    let store = open(copy, orders, false)?;
    let inserted = journals.iter().flatten().filter(|record| record.kind == Kind::Inserted);
    let inserted = inserted.flat_map(|record| {
        let keys = record.key..record.key + u64::from(record.count);
        keys.zip(record.id..).map(|(key, id)| (record.queue, key, id))
    });
    let in_this_round = |seen: &&Seen| load::round(seen.key) == orders.round;
    // The window knows the id that a message had before it was moved.
    let there = seen
        .iter()
        .filter(in_this_round)
        .filter(|seen| seen.queue != TROUBLED)
        .map(|seen| (seen.queue, seen.key, seen.id));
    let mut count = 0;
    for (queue, key, id) in inserted.chain(there).filter(|(_, key, _)| load::has_dedup_key(*key)) {
        let handle = store.queue(QUEUES[queue as usize]).map_err(|error| error.to_string())?;
        let payload = load::payload(queue, key);
        let again = handle.insert(load::message(queue, key, &payload));
        match again.map_err(|error| error.to_string())?.as_u64() {
            again if again == id => count += 1,
            other => return Err(format!("message {key:#x} had id {id} and is there as {other}")),
        }
    }
    Ok(count)
}

fn open(copy: &Path, orders: &Orders, clean: bool) -> Result<Store, String> {
    let store = load::open(copy, orders.durability, orders.round + 1).map_err(|e| e.to_string())?;
    let recovery = store.recovery();
    if !recovery.damaged.is_empty()
        || !recovery.bad_cursors.is_empty()
        || !recovery.renamed_queues.is_empty()
        || (clean && !recovery.clean)
    {
        return Err(format!("a kill has done damage: {recovery:?}"));
    }
    Ok(store)
}

/// Takes all messages out of all queues, and keeps them in flight.
fn drain(store: &Store) -> Result<Vec<(Seen, Option<Delivery>)>, String> {
    let text = |error: millpond::Error| error.to_string();
    let mut all = Vec::new();
    // The others are looked through instead.
    for (n, name) in (0..).zip(QUEUES).filter(|(n, _)| *n != GROUPED && *n != TROUBLED) {
        // A child that was killed early has declared none.
        let Some(queue) = store.find(name).map_err(text)? else { continue };
        // Buried, and not kicked yet.
        queue.kick(u64::MAX).map_err(text)?;
        let stats = queue.stats().map_err(text)?;
        let expected = stats.ready + stats.delayed;
        if n == 1 && expected + stats.buried > SHARED_MAX {
            return Err(format!("more than {SHARED_MAX} messages in {name:?}: {stats:?}"));
        }
        let until = Instant::now() + DRAIN_MAX;
        let mut found = 0;
        // Some expire before they can be got.
        let waits = || queue.stats().is_ok_and(|stats| stats.ready + stats.delayed > 0);
        while waits() && Instant::now() < until {
            for delivery in queue.get_batch(1000, Duration::from_millis(20)).map_err(text)? {
                let key = load::check(n, &delivery)?;
                let (id, attempt) = (delivery.id().as_u64(), delivery.attempt());
                all.push((Seen { queue: n, id, key, attempt }, Some(delivery)));
                found += 1;
            }
        }
        let more = queue.try_get().map_err(text)?.is_some();
        let missing = found < expected && !load::has_mortal(n);
        if missing || found > expected || more || waits() || stats.in_flight + stats.buried > 0 {
            return Err(format!("{found} messages of queue {name:?}, more: {more}; {stats:?}"));
        }
    }
    all.extend(look_through(store, GROUPED, QUEUES[GROUPED as usize])?);
    all.extend(look_through(store, TROUBLED, QUEUES[TROUBLED as usize])?);
    all.extend(look_through(store, TROUBLED, DEAD)?);
    let stats = store.stats();
    if stats.messages != all.len() as u64 || stats.damaged_messages > 0 {
        return Err(format!("{} messages were delivered: {stats:?}", all.len()));
    }
    Ok(all)
}

/// All messages of a queue, which were inserted into that one.
fn look_through(
    store: &Store,
    inserted_into: u8,
    name: &str,
) -> Result<Vec<(Seen, Option<Delivery>)>, String> {
    let text = |error: millpond::Error| error.to_string();
    let Some(queue) = store.find(name).map_err(text)? else {
        return Ok(Vec::new());
    };
    queue.kick(u64::MAX).map_err(text)?;
    let mut all = Vec::new();
    for state in [State::Ready, State::Delayed] {
        for entry in queue.browse(state) {
            let entry = entry.map_err(text)?;
            let key = load::identify(inserted_into, entry.payload())?;
            let (id, attempt) = (entry.id().as_u64(), entry.attempt());
            all.push((Seen { queue: inserted_into, id, key, attempt }, None));
        }
    }
    Ok(all)
}

/// Copies the files of a store, as far as there are any. How large they are together.
fn copy_files(from: &Path, to: &Path) -> u64 {
    fs::create_dir(to).unwrap();
    let Ok(files) = fs::read_dir(from) else { return 0 };
    let files = files.map(|file| file.unwrap()).filter(|file| file.file_type().unwrap().is_file());
    files.map(|file| fs::copy(file.path(), to.join(file.file_name())).unwrap()).sum()
}
