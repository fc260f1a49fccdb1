//! A directory: the files of a small real store, changed as the input says, or files that the input makes up. It is
//! verified, salvaged, opened strictly and not, drained, closed and opened again.
//!
//! What is asked of files whose checksums were left alone: the store opens, and delivers nothing but what was inserted,
//! each message at most once. Files whose checksums were put right may say anything; of them it is asked that nothing
//! panics, hangs or takes memory without end, and that what could be closed can be opened.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use millpond::testing::fuzz::{Input, seal};
use millpond::testing::{Disk, salvage, step, verify};
use millpond::{ErrorKind, Queue, Store};

use crate::fixture::{Fixture, Left, clock, options};

type Files = BTreeMap<String, Vec<u8>>;

/// More is cut off the end of a script.
const EDITS_MAX: usize = 16;

/// Room for the store and some segments more: what a made-up length asks for beyond that meets a full disk.
const DISK_BYTES: u64 = 4 << 20;

static STORES: LazyLock<[Fixture; 3]> =
    LazyLock::new(|| [Left::Closed, Left::Killed, Left::PowerCut].map(Fixture::new));

/// The first byte of an input.
#[derive(Clone, Copy)]
pub struct Flags(u8);

impl Flags {
    pub const EMPTY: u8 = 3;
    pub const SEALED: u8 = 1 << 2;
    /// Two thirds of the work are left out, so that the rest is done more often.
    const NOT_READ_ONLY: u8 = 1 << 3;
    const NOT_STRICT: u8 = 1 << 4;

    /// The store to begin with; None for an empty directory.
    fn store(self) -> Option<&'static Fixture> {
        STORES.get(usize::from(self.0 & 3))
    }

    fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }
}

/// A byte of flags, and edits: a byte that says which, and what they need.
pub fn directory(input: &[u8]) {
    let mut input = Input::new(input);
    let flags = Flags(input.byte());
    let store = flags.store();
    let mut files = store.map(|store| store.files.clone()).unwrap_or_default();
    files.retain(|name, _| name != "LOCK");
    for _ in 0..EDITS_MAX {
        if input.is_empty() {
            break;
        }
        edit(&mut files, store, &mut input);
    }
    if flags.has(Flags::SEALED) {
        let changed = |name: &str, bytes: &[u8]| {
            store.and_then(|store| store.files.get(name)).is_none_or(|old| old != bytes)
        };
        let changed = files.iter_mut().filter(|(name, bytes)| changed(name, bytes));
        changed.for_each(|(name, bytes)| seal_file(name, bytes));
    }
    let case = Case { store, files, forged: flags.has(Flags::SEALED) || store.is_none() };
    if !flags.has(Flags::NOT_READ_ONLY) {
        case.read_only();
    }
    if !flags.has(Flags::NOT_STRICT) {
        case.strict();
    }
    case.open();
}

fn seal_file(name: &str, bytes: &mut Vec<u8>) {
    match name.rsplit('.').next() {
        Some("seg") => seal::segment(bytes, 0),
        Some("idx") => seal::index(bytes),
        _ if name.starts_with("cursor.") => seal::cursor(bytes),
        _ => {}
    }
}

/// The names that a store has files under, and one that it does not know.
fn made_up_name(input: &mut Input<'_>) -> String {
    let number = input.byte() % 32;
    match input.byte() % 6 {
        0 | 1 => format!("{number:010}.seg"),
        2 => format!("{number:010}.idx"),
        3 => format!("cursor.{number:010}"),
        4 => format!("quarantine/{number:010}.seg-4096.txt"),
        _ => format!("quarantine/{number:010}.seg-4096.bin"),
    }
}

fn name_in(files: &Files, input: &mut Input<'_>) -> String {
    let at = usize::from(input.byte()) % files.len().max(1);
    files.keys().nth(at).cloned().unwrap_or_else(|| made_up_name(input))
}

/// A place in the part of a file that was written to.
fn place_in(bytes: &[u8], input: &mut Input<'_>) -> usize {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    // Two bytes name a place in the longest files.
    usize::from(input.u16()) % (used + 8)
}

/// Writes over what is there, and behind the end.
fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    bytes.resize(bytes.len().max(at + new.len()), 0);
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn edit(files: &mut Files, store: Option<&Fixture>, input: &mut Input<'_>) {
    let kind = input.byte() % 12;
    let name = match kind {
        10 | 11 => made_up_name(input),
        _ => name_in(files, input),
    };
    let mut bytes = files.get(&name).cloned().unwrap_or_default();
    match kind {
        0 => {
            let at = place_in(&bytes, input);
            let length = input.byte().into();
            put(&mut bytes, at, input.take(length));
        }
        1 => {
            let at = place_in(&bytes, input);
            let mask = input.byte();
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
        }
        2 => {
            let at = place_in(&bytes, input);
            bytes.truncate(at);
        }
        3 => {
            files.remove(&name);
            return;
        }
        4 => {
            let at = place_in(&bytes, input);
            let length = 16 * usize::from(input.byte());
            bytes.iter_mut().skip(at).take(length).for_each(|byte| *byte = 0);
        }
        5 => {
            let other = name_in(files, input);
            bytes = files.insert(other, bytes).unwrap_or_default();
        }
        6 => {
            let copy = made_up_name(input);
            files.insert(copy, bytes);
            return;
        }
        7 => match store.and_then(|store| store.earlier.get(&name)) {
            Some(earlier) => bytes = earlier.clone(),
            None => return,
        },
        8 => edit_frame(&mut bytes, store, &name, input),
        9 => append_frame(&mut bytes, store, &name, input),
        _ => {
            let length = input.u16().into();
            bytes = input.take(length).to_vec();
            if kind == 11 {
                // The frames of a segment begin behind two copies of its header.
                bytes = segment(&bytes);
            }
        }
    }
    files.insert(name, bytes);
}

const HEADER: usize = 128;

/// A segment file out of its header and its frames.
fn segment(bytes: &[u8]) -> Vec<u8> {
    let (header, frames) = bytes.split_at(bytes.len().min(HEADER));
    let mut file = vec![0; 4096];
    file[..header.len()].copy_from_slice(header);
    file[2048..2048 + header.len()].copy_from_slice(header);
    file.extend_from_slice(frames);
    file
}

/// Changes bytes of one frame, counted from where it begins.
fn edit_frame(bytes: &mut Vec<u8>, store: Option<&Fixture>, name: &str, input: &mut Input<'_>) {
    let which = usize::from(input.byte());
    let at = usize::from(input.byte());
    let length = usize::from(input.byte() % 16);
    let frames = store.and_then(|store| store.frames.get(name)).filter(|frames| !frames.is_empty());
    let Some(frames) = frames else { return };
    put(bytes, frames[which % frames.len()].start + at, input.take(length));
}

/// Puts a frame behind the last one.
fn append_frame(bytes: &mut Vec<u8>, store: Option<&Fixture>, name: &str, input: &mut Input<'_>) {
    let (kind, flags, info, arg) = (input.byte(), input.byte(), input.u16(), input.u16());
    let length = input.byte();
    let body = input.take(length.into());
    let last = store.and_then(|store| store.frames.get(name)).and_then(|frames| frames.last());
    let mut at = last.map_or(4096, |last| last.end.next_multiple_of(8));
    while bytes.get(at..at + 4).is_some_and(|length| *length != [0; 4]) {
        // Behind one that was put there before.
        at += 8;
    }
    let mut frame = vec![0; 20];
    frame[0] = body.len() as u8;
    frame[4..6].copy_from_slice(&[kind, flags & 1]);
    frame[6..8].copy_from_slice(&info.to_le_bytes());
    frame[16..18].copy_from_slice(&arg.to_le_bytes());
    frame.extend_from_slice(body);
    put(bytes, at, &frame);
}

struct Case {
    store: Option<&'static Fixture>,
    files: Files,
    /// Its checksums may be right whatever it says: they were put right, or all of it was made up.
    forged: bool,
}

impl Case {
    fn disk(&self) -> Disk {
        let disk = self.store.map_or_else(Disk::new, Fixture::fork);
        disk.set_capacity(Some(DISK_BYTES));
        for name in disk.file_names().iter().filter(|name| *name != "LOCK") {
            disk.remove_file(name);
        }
        for (name, bytes) in &self.files {
            disk.write_file(name, bytes.clone());
        }
        disk
    }

    fn strict(&self) {
        let disk = self.disk();
        let strict = options().strict(true).open_simulated(&disk, &clock());
        match strict {
            Ok(store) => drop(store),
            Err(error) => {
                self.expect(error.kind());
                assert_eq!(contents(&disk), self.files, "strict mode has changed something");
            }
        }
    }

    /// An open fails in the ways that the guarantees name.
    fn expect(&self, kind: &ErrorKind) {
        let known = match kind {
            ErrorKind::Corrupt | ErrorKind::NewerFormat | ErrorKind::DiskFull => true,
            // A made-up length or name may lead where there is nothing.
            ErrorKind::Io => self.forged,
            _ => false,
        };
        assert!(known, "the open failed with {kind:?}");
    }

    fn read_only(&self) {
        let disk = self.disk();
        let report = verify(&disk);
        assert_eq!(contents(&disk), self.files, "verify has changed something");
        if report.is_err() {
            return;
        }
        let rescued = Disk::with_capacity(DISK_BYTES);
        let fresh = options().open_simulated(&rescued, &clock()).expect("a new store");
        match salvage(&disk, &fresh) {
            Ok(_) => {
                self.drain(&fresh);
            }
            Err(error) => self.expect(error.kind()),
        }
        assert_eq!(contents(&disk), self.files, "salvage has changed something");
    }

    fn open(&self) {
        let disk = self.disk();
        let clock = clock();
        let store = match options().open_simulated(&disk, &clock) {
            Ok(store) => store,
            Err(error) if self.forged => return self.expect(error.kind()),
            // A version above this one, with the right checksum, is no damage.
            Err(error) => return assert_eq!(error.kind(), &ErrorKind::NewerFormat),
        };
        self.drain(&store);
        clock.advance(Duration::from_secs(3600));
        self.drain(&store);
        for _ in 0..50 {
            if !step(&store).unwrap_or(false) {
                break;
            }
        }
        let works = works(&store);
        assert!(works || self.forged, "the store does not work");
        let closed = store.close();
        assert!(closed.is_ok() || self.forged, "{closed:?}");
        drop(store);
        match options().open_simulated(&disk, &clock) {
            Ok(store) if !self.forged => {
                assert!(store.recovery().clean, "{:?}", store.recovery());
                assert_eq!(self.drain(&store), 0, "messages came back");
            }
            Ok(store) => {
                self.drain(&store);
            }
            Err(error) => assert!(closed.is_err() && self.forged, "the second open: {error}"),
        }
    }

    /// Takes and deletes what there is. How much it was.
    fn drain(&self, store: &Store) -> usize {
        let mut count = 0;
        for name in store.queue_names() {
            let queue = store.find(&name).expect("find").expect("a queue of the catalog");
            let drained = self.drain_queue(&queue, &mut count);
            assert!(drained.is_ok() || self.forged, "{name}: {drained:?}");
        }
        count
    }

    fn drain_queue(&self, queue: &Queue, count: &mut usize) -> millpond::Result<()> {
        let bytes: usize = self.files.values().map(Vec::len).sum();
        loop {
            let deliveries = queue.get_batch(64, Duration::ZERO)?;
            if deliveries.is_empty() {
                return Ok(());
            }
            *count += deliveries.len();
            // Two bytes name a queue that a message goes to.
            assert!(*count <= bytes / 2, "more messages than there are bytes");
            for delivery in &deliveries {
                let (id, payload) = (delivery.origin_id().as_u64(), delivery.payload());
                assert!(payload.len() <= bytes, "message {id} is longer than all files");
                let inserted = self.store.and_then(|store| store.inserted.get(&id));
                let right = inserted.is_some_and(|inserted| inserted == payload);
                assert!(right || self.forged, "message {id} was not inserted like that");
            }
            let all = deliveries.len() as u64;
            let deleted = queue.delete_batch(deliveries)?;
            // Forged segments may hold two messages of one id.
            assert!((deleted.deleted, deleted.stale) == (all, 0) || self.forged, "{deleted:?}");
        }
    }
}

fn works(store: &Store) -> bool {
    let round = || -> millpond::Result<bool> {
        let queue = store.queue("after")?;
        let id = queue.insert("still works")?;
        let Some(delivery) = queue.try_get()? else { return Ok(false) };
        let same = delivery.id() == id && delivery.payload() == b"still works";
        delivery.delete()?;
        Ok(same)
    };
    round().unwrap_or(false)
}

/// All files but the lock.
fn contents(disk: &Disk) -> Files {
    let names = disk.file_names().into_iter().filter(|name| name != "LOCK");
    names.map(|name| (name.clone(), disk.read_file(&name).unwrap_or_default())).collect()
}
