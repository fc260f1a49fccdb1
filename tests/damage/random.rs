//! Several kinds of damage at once, at random: bursts, cut and swapped and duplicated files, files of another store, files
//! as they were some time ago, directories restored in part.
//!
//! What is asked: the store opens; what it delivers was inserted; a live message whose bytes are as they were is
//! delivered, or can be salvaged if the crash that went before was one that not even the page cache survives.

use std::collections::{BTreeMap, BTreeSet};

use millpond::testing::{Disk, salvage, verify};
use millpond::{Store, StoreOptions};

use crate::check::{drain, guarded, open, text};
use crate::fixture::{Fixture, Left, clock, options};

pub type Files = BTreeMap<String, Vec<u8>>;

/// A store to damage, and what else may lie around.
pub struct World {
    fixture: Fixture,
    foreign: Files,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

impl World {
    pub fn new(left: Left) -> World {
        World { fixture: Fixture::new(left), foreign: foreign() }
    }

    /// Runs one case; a failure in words.
    pub fn run(&self, seed: u64) -> Result<(), String> {
        let mut random = Random(seed);
        let mut files = self.fixture.files.clone();
        let mut done = Vec::new();
        for _ in 0..1 + random.below(3) {
            done.push(self.damage(&mut files, &mut random));
        }
        guarded(|| self.check(&files))
            .map_err(|why| format!("{:?}, seed {seed}, {done:?}: {why}", self.fixture.left))
    }

    fn damage(&self, files: &mut Files, random: &mut Random) -> String {
        let names: Vec<String> =
            files.keys().filter(|name| *name != "LOCK" && !name.contains('/')).cloned().collect();
        let segments: Vec<&String> = names.iter().filter(|name| name.ends_with(".seg")).collect();
        if names.is_empty() || segments.is_empty() {
            return "nothing is left".to_owned();
        }
        // Segments hold what matters.
        let name = if random.below(3) > 0 {
            random.pick(&segments).to_string()
        } else {
            random.pick(&names).clone()
        };
        let mut bytes = files[&name].clone();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let (kind, at) = (random.below(11), random.below(used));
        let what = match kind {
            0 | 1 => {
                let end = bytes.len().min(at + 1 + random.below(64));
                bytes[at.min(end)..end].iter_mut().for_each(|byte| *byte ^= random.next() as u8);
                format!("changed {name} {at}..{end}")
            }
            2 => {
                let end = bytes.len().min((at + random.below(8192)).next_multiple_of(512));
                bytes[(at / 512 * 512).min(end)..end].fill(0);
                format!("zeroed {name} {}..{end}", at / 512 * 512)
            }
            3 => {
                bytes.truncate(random.below(bytes.len() + 1));
                format!("cut {name} to {}", bytes.len())
            }
            4 => {
                let more = random.below(10_000);
                bytes.extend((0..more).map(|_| random.next() as u8));
                format!("added {more} to {name}")
            }
            5 => {
                files.remove(&name);
                return format!("removed {name}");
            }
            6 => {
                let other = random.pick(&segments).to_string();
                let old = files.insert(other.clone(), bytes);
                bytes = old.unwrap_or_default();
                format!("swapped {name} and {other}")
            }
            7 => {
                let number = random.below(30);
                let copy = format!("{number:010}.seg");
                files.insert(copy.clone(), bytes.clone());
                format!("copied {name} to {copy}")
            }
            8 => {
                let foreign: Vec<&String> = self.foreign.keys().collect();
                let from = random.pick(&foreign).to_string();
                bytes = self.foreign[&from].clone();
                format!("put {from} of another store in the place of {name}")
            }
            9 => {
                let Some(earlier) = self.fixture.earlier.get(&name) else {
                    files.remove(&name);
                    return format!("removed {name}, which was not there earlier");
                };
                bytes = earlier.clone();
                format!("put an earlier {name} in the place of the last one")
            }
            _ => {
                let keep = random.next();
                let mut n = 0;
                for (name, earlier) in &self.fixture.earlier {
                    n += 1;
                    if keep >> (n % 64) & 1 == 1 && name != "LOCK" {
                        files.insert(name.clone(), earlier.clone());
                    }
                }
                return format!("restored some of an earlier copy, by {keep:x}");
            }
        };
        files.insert(name, bytes);
        what
    }

    fn check(&self, files: &Files) -> Result<(), String> {
        let disk = self.fixture.fork();
        for name in disk.file_names() {
            if name != "LOCK" {
                disk.remove_file(&name);
            }
        }
        for (name, bytes) in files.iter().filter(|(name, _)| *name != "LOCK") {
            disk.write_file(name, bytes.clone());
        }
        let intact = self.intact(files);
        // A store without anything that names it is no store.
        let rescued = verify(&disk).is_ok().then(|| self.salvage(&disk)).transpose()?;
        let store = open(&disk, false)?;
        let drained = drain(&store)?;
        for (id, payload) in &drained.messages {
            if self.fixture.inserted.get(id) != Some(payload) {
                return Err(format!("message {id} has a payload that it was not inserted with"));
            }
        }
        for id in self.fixture.live.iter().filter(|id| intact.contains(id)) {
            let delivered = drained.messages.contains_key(id);
            let salvaged = rescued.as_ref().is_some_and(|rescued| rescued.contains(id));
            if !delivered && (self.fixture.left.was_killed() || !salvaged) {
                let damage = &drained.damage;
                return Err(format!(
                    "message {id} is intact and missing, salvaged: {salvaged}; {damage:?}"
                ));
            }
        }
        store.close().map_err(text)?;
        drop(store);
        let again = open(&disk, false)?;
        match drain(&again)?.messages.len() {
            0 => Ok(()),
            more => Err(format!("{more} messages came back after a close")),
        }
    }

    /// The messages whose own bytes, and what it takes to verify them, are where they were.
    fn intact(&self, files: &Files) -> BTreeSet<u64> {
        let mut intact = BTreeSet::new();
        for (name, frames) in &self.fixture.frames {
            let (old, Some(new)) = (&self.fixture.files[name], files.get(name)) else { continue };
            let same = |start: usize, end: usize| new.get(start..end) == Some(&old[start..end]);
            if !same(0, 128) && !same(2048, 2048 + 128) {
                continue;
            }
            let whole = frames.iter().filter(|frame| same(frame.start, frame.end));
            intact.extend(whole.filter_map(|frame| frame.id));
        }
        intact
    }

    /// The old ids of what is salvaged.
    fn salvage(&self, disk: &Disk) -> Result<BTreeSet<u64>, String> {
        let fresh = options().open_simulated(&Disk::new(), &clock()).map_err(text)?;
        salvage(disk, &fresh).map_err(|error| format!("salvage: {error}"))?;
        let mut ids = BTreeSet::new();
        for name in fresh.queue_names() {
            let queue = fresh.queue(&name).map_err(text)?;
            while let Some(delivery) = queue.try_get().map_err(text)? {
                let id = delivery.origin_id().as_u64();
                // One that was moved has the id that it was inserted with.
                if self.fixture.inserted.get(&id).map(Vec::as_slice) != Some(delivery.payload()) {
                    return Err(format!("message {id} was salvaged with another payload"));
                }
                ids.insert(id);
                let moved = self.fixture.moved.get(&id);
                ids.extend(moved);
                delivery.delete().map_err(text)?;
            }
        }
        Ok(ids)
    }
}

/// The files of a store that has nothing to do with the others.
fn foreign() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let options: StoreOptions = Store::options().segment_bytes(64 << 10);
    let store = options.open(dir.path()).unwrap();
    let queue = store.queue("foreign").unwrap();
    for n in 0..300 {
        queue.insert(format!("foreign {n} {}", "x".repeat(400))).unwrap();
    }
    store.close().unwrap();
    let entries = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().unwrap();
    files.map(|entry| (name(&entry), std::fs::read(entry.path()).unwrap())).collect()
}
