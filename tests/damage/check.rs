//! Opens a damaged store, drains it, and compares what came out with what had to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use millpond::testing::Disk;
use millpond::{Damage, ErrorKind, Store};

use crate::fixture::{Fixture, Left, clock, options};
use crate::frames::{self, Frame};

/// One damaged file.
#[derive(Clone, Debug)]
pub struct Case {
    pub file: String,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Flip { at: usize, bit: u8 },
    Truncate { len: usize },
    Zero { range: Range<usize> },
    Missing,
}

impl Case {
    fn content(&self, old: &[u8]) -> Option<Vec<u8>> {
        let mut new = old.to_vec();
        match &self.what {
            What::Flip { at, bit } => new[*at] ^= 1 << bit,
            What::Truncate { len } => new.truncate(*len),
            What::Zero { range } => new[range.clone()].fill(0),
            What::Missing => return None,
        }
        Some(new)
    }

    fn range(&self, len: usize) -> Range<usize> {
        match &self.what {
            What::Flip { at, .. } => *at..*at + 1,
            What::Truncate { len: from } => *from..len,
            What::Zero { range } => range.clone(),
            What::Missing => 0..len,
        }
    }
}

/// What came out of a store.
pub struct Drained {
    pub messages: BTreeMap<u64, Vec<u8>>,
    pub buried: u64,
    pub damage: Vec<Damage>,
}

/// Runs a case; a failure in words.
pub fn run(fixture: &Fixture, case: &Case, thorough: bool) -> Result<(), String> {
    let checked = guarded(|| {
        lenient(fixture, case, thorough)?;
        strict(fixture, case)
    });
    checked.map_err(|why| format!("{:?}, {case:?}: {why}", fixture.left))
}

/// A panic counts as a failure.
pub fn guarded(check: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// What the damage has to do with each frame of the fixture.
struct Expected {
    /// Messages whose own frames were hit.
    hit: BTreeSet<u64>,
    /// Messages that nothing proves to have been durable, at or behind the damage.
    unproven: BTreeSet<u64>,
    /// Deleted messages may come back.
    may_return: bool,
    /// No frame was touched.
    frames_intact: bool,
}

impl Expected {
    fn new(fixture: &Fixture, case: &Case) -> Expected {
        let range = case.range(fixture.files[&case.file].len());
        let frames = fixture.hit(&case.file, range.clone());
        let behind_end = fixture.frames.get(&case.file).is_some_and(|frames| {
            range.end > frames.last().map_or(4096, |frame| frame.end.next_multiple_of(8))
        });
        // A segment file that is shorter than it was is damaged, also where only padding is missing.
        let cut = matches!(case.what, What::Truncate { .. }) && case.file.ends_with(".seg");
        let unproven = unproven(fixture, case, &frames);
        Expected {
            may_return: frames.iter().chain(&unproven).any(|frame| frame.is_delete()),
            hit: frames.iter().filter_map(|frame| frame.id).collect(),
            unproven: unproven.iter().filter_map(|frame| frame.id).collect(),
            frames_intact: frames.is_empty() && !behind_end && !cut,
        }
    }
}

/// After a power cut only what is proven counts: not the frames at or behind the damage and behind every proof that is
/// left. After a kill all of it counts, but nobody can tell zeros from a segment that was not begun.
fn unproven<'a>(fixture: &'a Fixture, case: &Case, hit: &[&Frame]) -> Vec<&'a Frame> {
    let zeroed = matches!(case.what, What::Zero { .. });
    let only_proven = fixture.left == Left::PowerCut || zeroed;
    let Some(first) = hit.first().filter(|_| only_proven) else { return Vec::new() };
    let number_of = |name: &str| name[..10].parse::<u64>().unwrap_or(0);
    let damaged = number_of(&case.file);
    let cursor = fixture.names("cursor.").last().map(|name| {
        let bytes = &fixture.files[*name];
        (frames::number(bytes, 44, 4), frames::number(bytes, 40, 4))
    });
    let is_hit = |name: &str, frame: &Frame| {
        number_of(name) == damaged && hit.iter().any(|hit| hit.start == frame.start)
    };
    let marks = fixture.frames.iter().flat_map(|(name, frames)| {
        frames.iter().filter(move |frame| !is_hit(name, frame)).filter_map(|frame| frame.mark)
    });
    let proof = marks.chain(cursor).max().unwrap_or_default();
    let at_or_behind = |name: &str, frame: &Frame| {
        let position = (number_of(name), frame.start as u64);
        position >= proof && position >= (damaged, first.start as u64)
    };
    let all =
        fixture.frames.iter().flat_map(|(name, frames)| frames.iter().map(move |f| (name, f)));
    all.filter(|(name, frame)| at_or_behind(name, frame)).map(|(_, frame)| frame).collect()
}

fn damaged_disk(fixture: &Fixture, case: &Case) -> Disk {
    fixture.with(&case.file, case.content(&fixture.files[&case.file]))
}

fn lenient(fixture: &Fixture, case: &Case, thorough: bool) -> Result<(), String> {
    let expected = Expected::new(fixture, case);
    let mut disk = damaged_disk(fixture, case);
    if thorough {
        // What an open has found and repaired, another one must find again.
        let store = open(&disk, false)?;
        let next = disk.kill();
        drop(store);
        disk = next;
    }
    let store = open(&disk, false)?;
    let drained = drain(&store)?;
    compare(fixture, &expected, &drained)?;
    goes_on(fixture, store, &disk, drained.buried)
}

pub fn open(disk: &Disk, strict: bool) -> Result<Store, String> {
    let clock = clock();
    let opened = options().strict(strict).open_simulated(disk, &clock);
    // Whatever was delayed is due.
    clock.advance(Duration::from_secs(7200));
    opened.map_err(|error| format!("open failed: {error}"))
}

pub fn drain(store: &Store) -> Result<Drained, String> {
    let mut messages = BTreeMap::new();
    let mut buried = 0;
    for name in store.queue_names() {
        let queue =
            store.find(&name).map_err(text)?.ok_or("a queue that is listed is not there")?;
        while let Some(delivery) = queue.try_get().map_err(text)? {
            let id = delivery.id().as_u64();
            if messages.insert(id, delivery.payload().to_vec()).is_some() {
                return Err(format!("message {id} was delivered twice"));
            }
            delivery.delete().map_err(text)?;
        }
        let stats = queue.stats().map_err(text)?;
        if (stats.ready, stats.in_flight, stats.delayed) != (0, 0, 0) {
            return Err(format!("{name} is drained, but {stats:?}"));
        }
        buried += stats.buried;
    }
    let damage = [store.recovery().damaged.clone(), store.stats().damage].concat();
    Ok(Drained { messages, buried, damage })
}

pub fn text(error: millpond::Error) -> String {
    error.to_string()
}

fn compare(fixture: &Fixture, expected: &Expected, drained: &Drained) -> Result<(), String> {
    for (id, payload) in &drained.messages {
        if fixture.inserted.get(id) != Some(payload) {
            return Err(format!("message {id} has a payload that it was not inserted with"));
        }
        let buried_before = fixture.buried.contains(id);
        if !fixture.live.contains(id) && !buried_before && !expected.may_return {
            return Err(format!("deleted message {id} came back"));
        }
    }
    let reported = |id: &u64| drained.damage.iter().any(|damage| damage.ids.contains(id));
    let missing = fixture.live.iter().filter(|id| !drained.messages.contains_key(id));
    for id in missing.clone() {
        if expected.unproven.contains(id) {
            continue;
        }
        if !expected.hit.contains(id) {
            return Err(format!(
                "message {id} was not touched and is missing; {:?}",
                drained.damage
            ));
        }
        if !reported(id) {
            return Err(format!("message {id} is missing and not reported; {:?}", drained.damage));
        }
    }
    let returned = fixture.buried.iter().filter(|id| drained.messages.contains_key(id)).count();
    let excused = |id: &&u64| expected.hit.contains(id) || expected.unproven.contains(id);
    let lost = fixture.buried.iter().filter(excused).count();
    if drained.buried as usize + returned + lost < fixture.buried.len() {
        return Err(format!("{} buried messages, not {:?}", drained.buried, fixture.buried));
    }
    if expected.frames_intact && !drained.damage.is_empty() {
        return Err(format!("no frame was touched, but damage is reported: {:?}", drained.damage));
    }
    Ok(())
}

/// The store works, and its ids are new.
fn goes_on(fixture: &Fixture, store: Store, disk: &Disk, buried: u64) -> Result<(), String> {
    let held = store.stats().messages;
    if held != buried {
        return Err(format!("{held} messages are counted after a drain, {buried} are buried"));
    }
    let queue = store.queue("after").map_err(text)?;
    let id = queue.insert("still works").map_err(text)?.as_u64();
    if fixture.inserted.keys().last().is_some_and(|last| id <= *last) {
        return Err(format!("id {id} was given out again"));
    }
    store.close().map_err(text)?;
    drop(store);
    let store = open(disk, true)?;
    let drained = drain(&store)?;
    if !store.recovery().clean || drained.messages.len() != 1 || drained.buried != buried {
        return Err(format!(
            "after a close: {:?}, {:?}, {} buried",
            store.recovery(),
            drained.messages,
            drained.buried
        ));
    }
    Ok(())
}

fn strict(fixture: &Fixture, case: &Case) -> Result<(), String> {
    let disk = damaged_disk(fixture, case);
    let before = contents(&disk);
    match options().strict(true).open_simulated(&disk, &clock()) {
        Ok(store) => {
            drop(store);
            Ok(())
        }
        Err(error) => {
            if error.kind() != &ErrorKind::Corrupt {
                return Err(format!("strict mode: {error}"));
            }
            if error.file_path().is_none() || error.byte_offset().is_none() {
                return Err(format!("strict mode names no file or no offset: {error}"));
            }
            if contents(&disk) != before {
                return Err("strict mode has changed something".to_owned());
            }
            Ok(())
        }
    }
}

/// All files but the lock.
fn contents(disk: &Disk) -> BTreeMap<String, Option<Vec<u8>>> {
    let names = disk.file_names().into_iter().filter(|name| name != "LOCK");
    names.map(|name| (name.clone(), disk.read_file(&name))).collect()
}
