//! Opens a damaged store, drains it, and compares what came out with what had to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use millpond::testing::Disk;
use millpond::{Damage, ErrorKind, Store};

use crate::fixture::{Fixture, clock, options};
use crate::frames::{self, Frame, HEADER_BYTES, HEADER_COPIES};

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
    /// Damages a disk. Another damage may have taken the place away.
    fn apply(&self, disk: &Disk) {
        let Some(mut content) = disk.read_file(&self.file) else { return };
        let len = content.len();
        match &self.what {
            What::Flip { at, .. } if *at >= len => {}
            What::Flip { at, bit } => content[*at] ^= 1 << bit,
            What::Truncate { len } => content.truncate(*len),
            What::Zero { range } => content[range.start.min(len)..range.end.min(len)].fill(0),
            What::Missing => return disk.remove_file(&self.file),
        }
        disk.write_file(&self.file, content);
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

/// Runs cases at once; a failure in words.
pub fn run(fixture: &Fixture, cases: &[&Case], thorough: bool) -> Result<(), String> {
    let checked = guarded(|| {
        lenient(fixture, cases, thorough)?;
        strict(fixture, cases)
    });
    checked.map_err(|why| format!("{:?}, {cases:?}: {why}", fixture.left))
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

/// A frame, and the segment file that it is in.
type Placed<'a> = (&'a str, &'a Frame);

impl Expected {
    fn new(fixture: &Fixture, cases: &[&Case]) -> Expected {
        let (hit, headless) = hit(fixture, cases);
        let harmless = |case: &&Case| {
            let range = case.range(fixture.files[&case.file].len());
            let behind_end = fixture.frames.get(&case.file).is_some_and(|frames| {
                range.end > frames.last().map_or(4096, |frame| frame.end.next_multiple_of(8))
            });
            // A segment file that is shorter than it was is damaged, also where only padding is missing.
            let cut = matches!(case.what, What::Truncate { .. }) && case.file.ends_with(".seg");
            !behind_end && !cut
        };
        let unproven = unproven(fixture, cases, &hit);
        let ids = |frames: &[Placed]| frames.iter().filter_map(|(_, frame)| frame.id).collect();
        Expected {
            may_return: hit.iter().chain(&unproven).any(|(_, frame)| frame.is_delete()),
            hit: ids(&hit),
            unproven: ids(&unproven),
            frames_intact: hit.is_empty() && !headless && cases.iter().all(harmless),
        }
    }
}

/// The frames that have damaged bytes, and all of a segment that has lost both copies of its header. Whether there is such
/// a segment.
fn hit<'a>(fixture: &'a Fixture, cases: &[&Case]) -> (Vec<Placed<'a>>, bool) {
    let mut hit = Vec::new();
    let mut headless = false;
    for (name, frames) in &fixture.frames {
        let len = fixture.files[name].len();
        let ranges = cases.iter().filter(|case| case.file == *name).map(|case| case.range(len));
        let ranges: Vec<Range<usize>> = ranges.collect();
        let is_hit = |start: usize, end: usize| {
            ranges.iter().any(|range| start < range.end && range.start < end)
        };
        let lost = HEADER_COPIES.iter().all(|&at| is_hit(at, at + HEADER_BYTES));
        headless |= lost;
        let frames = frames.iter().filter(|frame| lost || is_hit(frame.start, frame.end));
        hit.extend(frames.map(|frame| (name.as_str(), frame)));
    }
    (hit, headless)
}

/// After a power cut only what is proven counts: not the frames at or behind the damage and behind every proof that is
/// left. So it does after a close whose cursor is damaged, and after a kill if the lock file does not tell of it. After a
/// kill all of it counts, but nobody can tell zeros from a segment that was not begun.
fn unproven<'a>(fixture: &'a Fixture, cases: &[&Case], hit: &[Placed<'a>]) -> Vec<Placed<'a>> {
    let is_damaged = |name: &str| cases.iter().any(|case| case.file == name);
    let zeroed = cases.iter().any(|case| matches!(case.what, What::Zero { .. }));
    let only_proven = !fixture.left.was_killed() || zeroed || is_damaged("LOCK");
    let number_of = |name: &str| name[..10].parse::<u64>().unwrap_or(0);
    let position = |(name, frame): &Placed| (number_of(name), frame.start as u64);
    let Some(first) = hit.iter().map(position).min().filter(|_| only_proven) else {
        return Vec::new();
    };
    let cursors = fixture.names("cursor.").into_iter().filter(|name| !is_damaged(name));
    let proofs = cursors.map(|name| {
        let bytes = &fixture.files[name];
        (frames::number(bytes, 44, 4), frames::number(bytes, 40, 4))
    });
    let all = fixture.frames.iter();
    let all = all.flat_map(|(name, frames)| frames.iter().map(move |frame| (name.as_str(), frame)));
    let hit: BTreeSet<(u64, u64)> = hit.iter().map(position).collect();
    let whole = all.clone().filter(|placed| !hit.contains(&position(placed)));
    let proof = whole.filter_map(|(_, frame)| frame.mark).chain(proofs).max().unwrap_or_default();
    all.filter(|placed| position(placed) >= proof.max(first)).collect()
}

fn damaged_disk(fixture: &Fixture, cases: &[&Case]) -> Disk {
    let disk = fixture.fork();
    cases.iter().for_each(|case| case.apply(&disk));
    disk
}

fn lenient(fixture: &Fixture, cases: &[&Case], thorough: bool) -> Result<(), String> {
    let expected = Expected::new(fixture, cases);
    let mut disk = damaged_disk(fixture, cases);
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

fn strict(fixture: &Fixture, cases: &[&Case]) -> Result<(), String> {
    let disk = damaged_disk(fixture, cases);
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
