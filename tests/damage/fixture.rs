//! A small store with a bit of everything, as it is left by a close, a kill or a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millpond::testing::{Clock, Disk, step};
use millpond::{Backoff, Delivery, Queue, QueueOptions, Store, StoreOptions};

use crate::frames::{self, Frame};

/// 2023-11-14, so that every run has the same bytes.
const WALL_MS: u64 = 1_700_000_000_000;

/// How the store was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Closed,
    Killed,
    /// Everything reached the disk, but the next open cannot know that.
    PowerCut,
    /// Killed, after it had been killed and closed before: with ids left out, and behind the cursor of a close.
    Reopened,
}

impl Left {
    pub fn was_killed(self) -> bool {
        matches!(self, Left::Killed | Left::Reopened)
    }
}

pub struct Fixture {
    pub left: Left,
    pub files: BTreeMap<String, Vec<u8>>,
    pub frames: BTreeMap<String, Vec<Frame>>,
    /// Every message that ever was, by id.
    pub inserted: BTreeMap<u64, Vec<u8>>,
    /// Those that must be delivered.
    pub live: BTreeSet<u64>,
    pub buried: BTreeSet<u64>,
    /// The new ids of messages that were moved to another queue.
    pub moved: BTreeMap<u64, u64>,
    /// The files as they were in the middle of its life.
    pub earlier: BTreeMap<String, Vec<u8>>,
    disk: Disk,
}

pub fn options() -> StoreOptions {
    Store::options().segment_bytes(64 << 10)
}

pub fn clock() -> Clock {
    let clock = Clock::new();
    clock.set_wall_ms(WALL_MS);
    clock
}

/// What is done to the store, and what is to be expected of it.
struct Script {
    store: Store,
    inserted: BTreeMap<u64, Vec<u8>>,
    deleted: BTreeSet<u64>,
    buried: BTreeSet<u64>,
    moved: BTreeMap<u64, u64>,
    held: Vec<Delivery>,
    count: usize,
}

impl Script {
    /// Payloads that differ in every message, `bytes` long.
    fn insert(&mut self, queue: &Queue, bytes: usize) -> u64 {
        let payload = self.payload(queue, bytes);
        let id = queue.insert(&payload).unwrap().as_u64();
        self.inserted.insert(id, payload);
        id
    }

    fn payload(&mut self, queue: &Queue, bytes: usize) -> Vec<u8> {
        self.count += 1;
        let text = format!("{} {} ", queue.name(), self.count);
        text.bytes().cycle().take(bytes.max(text.len())).collect()
    }

    fn insert_batch(&mut self, queue: &Queue, count: usize) {
        let payloads: Vec<Vec<u8>> = (0..count).map(|_| self.payload(queue, 20)).collect();
        let ids = queue.insert_batch(&payloads).unwrap();
        self.inserted.extend(ids.iter().map(|id| id.as_u64()).zip(payloads));
    }

    fn get(&self, queue: &Queue) -> Delivery {
        queue.try_get().unwrap().expect("a message is there")
    }

    fn delete(&mut self, queue: &Queue) {
        let delivery = self.get(queue);
        self.deleted.insert(delivery.id().as_u64());
        delivery.delete().unwrap();
    }

    fn hold(&mut self, queue: &Queue) {
        let delivery = self.get(queue);
        self.held.push(delivery);
    }

    fn bury(&mut self, queue: &Queue) {
        let delivery = self.get(queue);
        self.buried.insert(delivery.id().as_u64());
        delivery.bury("no use").unwrap();
    }

    /// Moves a message to the dead letter queue, where it has the next id.
    fn bury_elsewhere(&mut self, queue: &Queue) {
        let delivery = self.get(queue);
        let payload = delivery.payload().to_vec();
        let id = delivery.id().as_u64();
        self.deleted.insert(id);
        delivery.bury("no use").unwrap();
        let last = self.inserted.last_key_value().map_or(0, |(id, _)| *id);
        self.inserted.insert(last + 1, payload);
        self.moved.insert(id, last + 1);
    }

    fn maintain(&self) {
        while step(&self.store).unwrap() {}
    }
}

impl Fixture {
    pub fn new(left: Left) -> Fixture {
        let mut disk = Disk::new();
        let clock = clock();
        let store = options().open_simulated(&disk, &clock).unwrap();
        let mut script = Script {
            store,
            inserted: BTreeMap::new(),
            deleted: BTreeSet::new(),
            buried: BTreeSet::new(),
            moved: BTreeMap::new(),
            held: Vec::new(),
            count: 0,
        };
        covered_by_a_cursor(&mut script, &clock);
        let earlier = files(&disk);
        if left == Left::Reopened {
            disk = disk.kill();
            script.store = options().open_simulated(&disk, &clock).unwrap();
            let jobs = script.store.queue("jobs").unwrap();
            script.insert(&jobs, 40);
            script.insert(&jobs, 40);
            script.store.close().unwrap();
            script.store = options().open_simulated(&disk, &clock).unwrap();
        }
        behind_the_cursor(&mut script, &clock);
        let Script { store, inserted, deleted, buried, moved, held, .. } = script;
        let disk = match left {
            Left::Closed => {
                store.close().unwrap();
                disk.kill()
            }
            Left::Killed | Left::Reopened => disk.kill(),
            Left::PowerCut => disk.power_cut(1),
        };
        drop(held);
        drop(store);
        let files = files(&disk);
        let frames = files
            .iter()
            .filter(|(name, _)| name.ends_with(".seg"))
            .map(|(name, bytes)| (name.clone(), frames::read(bytes)))
            .collect();
        let live: BTreeSet<u64> = inserted
            .keys()
            .copied()
            .filter(|id| !deleted.contains(id) && !buried.contains(id))
            .collect();
        Fixture { left, files, frames, inserted, live, buried, moved, earlier, disk }
    }

    pub fn fork(&self) -> Disk {
        self.disk.kill()
    }

    pub fn names(&self, end: &str) -> Vec<&str> {
        self.files.keys().map(String::as_str).filter(|name| name.contains(end)).collect()
    }
}

fn files(disk: &Disk) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| (name.clone(), disk.read_file(&name).unwrap());
    disk.file_names().into_iter().map(read).collect()
}

/// Segments that are sealed and indexed, and state that only the cursors know.
fn covered_by_a_cursor(script: &mut Script, clock: &Clock) {
    let store = script.store.clone();
    let now = QueueOptions::new().backoff(Backoff::Fixed(Duration::ZERO));
    let jobs = store.declare("jobs", now.clone()).unwrap();
    let mail = store.declare("mail", now.dead_letter("dead")).unwrap();
    let gone = store.queue("gone").unwrap();
    script.insert(&gone, 20);
    script.delete(&gone);
    store.remove("gone").unwrap();
    for _ in 0..6 {
        script.insert(&jobs, 24);
        script.insert(&mail, 15);
    }
    script.insert(&jobs, 0);
    for _ in 0..2 {
        script.delete(&jobs);
        script.delete(&mail);
    }
    script.bury(&jobs);
    script.bury_elsewhere(&mail);
    script.get(&jobs).fail_after("later", Duration::from_secs(600)).unwrap();
    script.maintain();
    for bytes in [40_000, 30_000, 38_000] {
        script.insert(&jobs, bytes);
        script.insert_batch(&mail, 3);
        script.maintain();
    }
    script.delete(&jobs);
    clock.advance(Duration::from_secs(5));
    script.maintain();
}

/// The same again, with a roll in between, and without a cursor or an index afterwards.
fn behind_the_cursor(script: &mut Script, clock: &Clock) {
    let store = script.store.clone();
    let (jobs, mail) = (store.queue("jobs").unwrap(), store.queue("mail").unwrap());
    let late = store.queue("late").unwrap();
    script.delete(&jobs);
    script.insert(&late, 12);
    script.insert_batch(&mail, 3);
    script.bury_elsewhere(&mail);
    script.delete(&mail);
    script.insert(&jobs, 50_000);
    script.insert(&jobs, 100);
    script.insert(&jobs, 30);
    store.declare("late", QueueOptions::new().lease(None)).unwrap();
    script.insert(&late, 10);
    script.insert_batch(&late, 3);
    script.bury(&late);
    script.get(&mail).fail("again").unwrap();
    script.get(&late).release_after(Duration::from_secs(60)).unwrap();
    clock.advance(Duration::from_secs(1));
    script.delete(&jobs);
    script.hold(&jobs);
    script.hold(&mail);
    script.insert(&mail, 30);
    script.insert(&late, 45_000);
    script.delete(&late);
}
