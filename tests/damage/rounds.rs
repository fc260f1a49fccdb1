//! A store that is used, damaged and opened again, several times over: what an open has reported and made good is what the
//! next damage meets.
//!
//! What is asked: no id is given out twice; what is delivered was inserted, once; what is not delivered any more was
//! deleted, or is among the ids that were reported; no count is left when all is out, and the space comes back.

use std::collections::{BTreeMap, BTreeSet};

use millpond::testing::{Clock, Disk, step};
use millpond::{Damage, Durability, Queue, Store, StoreOptions};

use crate::check::guarded;

#[path = "../common/random.rs"]
mod random;

use random::Random;

const ROUNDS: usize = 6;

const SEGMENT_BYTES: u64 = 64 << 10;

/// Which kinds of damage a store meets. A lost cursor beside damage to the log is not among them: the log alone does not
/// say where a store was closed, so what is damaged behind that is taken for what was never promised.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Flips,
    Files,
    Cursors,
}

struct Rounds {
    random: Random,
    kind: Kind,
    disk: Disk,
    clock: Clock,
    inserted: u64,
    last_id: u64,
    /// What each message says, by its id.
    live: BTreeMap<u64, u64>,
    gone: BTreeSet<u64>,
    done: Vec<String>,
}

pub fn run(seed: u64) -> Result<(), String> {
    let kind = [Kind::Flips, Kind::Files, Kind::Cursors][seed as usize % 3];
    let mut rounds = Rounds {
        random: Random::new(seed),
        kind,
        disk: Disk::new(),
        clock: Clock::new(),
        inserted: 0,
        last_id: 0,
        live: BTreeMap::new(),
        gone: BTreeSet::new(),
        done: Vec::new(),
    };
    for _ in 0..ROUNDS {
        let outcome = guarded(|| {
            rounds.round();
            Ok(())
        });
        outcome.map_err(|why| format!("{kind:?}, seed {seed}, {:?}: {why}", rounds.done))?;
    }
    Ok(())
}

fn options() -> StoreOptions {
    let options = Store::options().segment_bytes(SEGMENT_BYTES);
    options.durability(Durability::Process).delete_durability(Durability::Process)
}

fn payload(n: u64, length: u64) -> Vec<u8> {
    let mut payload = n.to_le_bytes().to_vec();
    payload.resize(8 + length as usize, n as u8 | 1);
    payload
}

fn steps(store: &Store) {
    while step(store).unwrap() {}
}

impl Rounds {
    fn round(&mut self) {
        self.work();
        for _ in 0..self.random.below(3) {
            let done = self.damage();
            self.done.push(done);
        }
        let mut reported = Vec::new();
        for _ in 0..1 + self.random.below(2) {
            let store = options().open_simulated(&self.disk, &self.clock).unwrap();
            reported.extend(store.recovery().damaged.clone());
            self.disk = self.disk.kill();
        }
        self.look(reported);
    }

    /// Uses the store, and closes or kills it.
    fn work(&mut self) {
        let store = options().open_simulated(&self.disk, &self.clock).unwrap();
        let queue = store.queue("q").unwrap();
        let mut held = Vec::new();
        for _ in 0..self.random.below(60) {
            match self.random.below(10) {
                0..=5 => self.insert(&queue),
                6 | 7 => held.extend(queue.try_get().unwrap()),
                8 if !held.is_empty() => {
                    let at = self.random.below(held.len() as u64) as usize;
                    let delivery = held.swap_remove(at);
                    let id = delivery.id().as_u64();
                    delivery.delete().unwrap();
                    self.live.remove(&id);
                    self.gone.insert(id);
                }
                _ => steps(&store),
            }
        }
        if self.random.one_in(3) {
            held.into_iter().for_each(|delivery| delivery.release().unwrap());
            store.close().unwrap();
        }
        self.disk = self.disk.kill();
    }

    fn insert(&mut self, queue: &Queue) {
        let count = if self.random.one_in(6) { 1 + self.random.below(5) } else { 1 };
        let numbers = self.inserted..self.inserted + count;
        self.inserted += count;
        let payloads: Vec<_> =
            numbers.clone().map(|n| payload(n, self.random.below(3000))).collect();
        for (id, n) in queue.insert_batch(payloads).unwrap().into_iter().zip(numbers) {
            assert!(id.as_u64() > self.last_id, "id {id} is given out again");
            self.last_id = id.as_u64();
            self.live.insert(self.last_id, n);
        }
    }

    /// Damages one thing; what, in words.
    fn damage(&mut self) -> String {
        let names = self.disk.file_names().into_iter();
        let pick = |end: &str, random: &mut Random| {
            let names: Vec<String> = names.clone().filter(|name| name.contains(end)).collect();
            let at = random.below(names.len().max(1) as u64) as usize;
            names.get(at).cloned()
        };
        if self.random.one_in(4) {
            let indexes = names.clone().filter(|name| name.ends_with(".idx"));
            indexes.for_each(|name| self.disk.remove_file(&name));
            return "no index".to_owned();
        }
        let what = if matches!(self.kind, Kind::Cursors) { "cursor." } else { ".seg" };
        let Some(name) = pick(what, &mut self.random).filter(|name| !name.contains('/')) else {
            return format!("no {what}");
        };
        let mut bytes = self.disk.read_file(&name).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        let how = match (self.kind, self.random.below(3)) {
            (Kind::Flips, _) if used > 4096 => {
                let at = 4096 + self.random.below(used - 4096) as usize;
                bytes[at] ^= 1 << self.random.below(8);
                format!("flipped at {at}")
            }
            (Kind::Files, 0) if bytes.len() > 4096 => {
                // One copy of the header or the other, or both.
                let copies = [&[0][..], &[2048], &[0, 2048]][self.random.below(3) as usize];
                copies.iter().for_each(|&at| bytes[at..at + 128].fill(0xee));
                format!("header at {copies:?}")
            }
            (Kind::Files, 1) => {
                bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize);
                format!("cut to {}", bytes.len())
            }
            (Kind::Cursors, 0) => {
                bytes = vec![3; 300];
                "bad".to_owned()
            }
            (Kind::Flips, _) | (Kind::Files, 0) => "as it was".to_owned(),
            (Kind::Files | Kind::Cursors, _) => {
                self.disk.remove_file(&name);
                return format!("{name}: gone");
            }
        };
        self.disk.write_file(&name, bytes);
        format!("{name}: {how}")
    }

    /// Takes all out of a copy of the store, and judges.
    fn look(&mut self, mut reported: Vec<Damage>) {
        let disk = self.disk.kill();
        let store = options().open_simulated(&disk, &self.clock).unwrap();
        reported.extend(store.recovery().damaged.clone());
        let mut found = BTreeSet::new();
        for name in store.queue_names() {
            let queue = store.queue(&name).unwrap();
            while let Some(delivery) = queue.try_get().unwrap() {
                let id = delivery.id().as_u64();
                let n = u64::from_le_bytes(*delivery.payload().first_chunk().unwrap());
                assert!(found.insert(id), "{id} is there twice");
                // What was deleted may come back with damage to what said so.
                assert!(self.live.contains_key(&id) || self.gone.remove(&id), "{id} is unknown");
                assert_eq!(*self.live.entry(id).or_insert(n), n, "{id} is another message");
                delivery.delete().unwrap();
            }
        }
        // What an earlier round has reported excuses no loss of this one.
        let known = |damage: &Damage| damage.what == "reported before";
        reported.extend(store.stats().damage.into_iter().filter(|damage| !known(damage)));
        let lost: Vec<u64> = self.live.keys().copied().filter(|id| !found.contains(id)).collect();
        for id in lost {
            let is_reported = reported.iter().any(|damage| damage.ids.contains(&id));
            assert!(is_reported, "{id} is lost, and nobody says so: {reported:?}");
            self.live.remove(&id);
            self.gone.insert(id);
        }
        assert_eq!(store.stats().messages, 0, "all are out");
        self.judge_space(&disk, &store);
    }

    fn judge_space(&self, disk: &Disk, store: &Store) {
        let queue = store.queue("q").unwrap();
        for _ in 0..30 {
            queue.insert(vec![9; 3000]).unwrap();
            steps(store);
        }
        while let Some(delivery) = queue.try_get().unwrap() {
            delivery.delete().unwrap();
        }
        steps(store);
        let names = disk.file_names().into_iter();
        let segments = names.filter(|name| !name.contains('/') && name.ends_with(".seg"));
        let bytes: usize = segments.map(|name| disk.read_file(&name).unwrap().len()).sum();
        assert!((bytes as u64) < 5 * SEGMENT_BYTES, "{bytes} bytes of an empty store");
    }
}
