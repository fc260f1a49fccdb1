//! The limit on this disk: what it costs to put the same bytes into one file and do nothing else.
//!
//! A record is its length, its checksum and the payload, in a file of which all room is reserved beforehand. Reading
//! them back is there to check that the limit is an honest one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fs2::FileExt as _;
use memmap2::MmapMut;

use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported, Unsupported};

/// Room for the records of any workload that RAW takes part in.
const FILE_BYTES: u64 = 256 << 20;

/// Room for the marks of deletes.
const MARKS_BYTES: u64 = 8 << 20;

const HEADER: usize = 8;

/// One way of writing records.
pub trait Append: Send + Sync {
    const NAME: &'static str;
    const DURABILITY: Durability;
    fn begin(file: File) -> Self;
    fn put(&mut self, payloads: &[&[u8]]);
}

pub struct Raw<A> {
    dir: PathBuf,
    durability: Durability,
    appender: Mutex<Option<A>>,
}

impl<A: Append> Contender for Raw<A> {
    fn card() -> Card {
        Card { name: A::NAME, version: String::new(), unequal: &[] }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Self> {
        if queues != 1 {
            return Err(Unsupported("one file"));
        }
        let path = dir.join("raw");
        let appender = match path.exists() {
            true => None,
            false if durability != A::DURABILITY => return Err(Unsupported("another durability")),
            false => Some(A::begin(reserve(&path, FILE_BYTES))),
        };
        Ok(Raw { dir: dir.to_path_buf(), durability, appender: Mutex::new(appender) })
    }

    fn producer(&self, _queue: usize) -> Supported<impl Producer + '_> {
        self.appender.lock().unwrap().take().map(Sender).ok_or(Unsupported("one sender"))
    }

    fn consumer(&self, _queue: usize) -> Supported<impl Consumer + '_> {
        let mut reader = Reader::of(&self.dir.join("raw"), 0);
        let path = self.dir.join("marks");
        let mut marks_end = 0;
        if path.exists() {
            let mut marks = Reader::of(&path, 0);
            while marks.next() {
                reader.at = u64::from_le_bytes(*marks.buffer.first_chunk().unwrap());
            }
            marks_end = marks.at;
        }
        if self.durability == Durability::Sync || marks_end > 0 {
            let marks = match marks_end {
                0 => Synced::begin(reserve(&path, MARKS_BYTES)),
                at => Synced { file: open(&path), at, buffer: Vec::new() },
            };
            reader.marks = Some(marks);
        }
        Ok(reader)
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn reserve(path: &Path, bytes: u64) -> File {
    let file = open(path);
    file.allocate(bytes).unwrap();
    file
}

fn header(payload: &[u8]) -> [u8; HEADER] {
    let length = (payload.len() as u32).to_le_bytes();
    let checksum = crc32fast::hash(payload).to_le_bytes();
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&length);
    header[4..].copy_from_slice(&checksum);
    header
}

fn encode(payloads: &[&[u8]], into: &mut Vec<u8>) {
    into.clear();
    for payload in payloads {
        into.extend_from_slice(&header(payload));
        into.extend_from_slice(payload);
    }
}

struct Sender<A>(A);

impl<A: Append> Producer for Sender<A> {
    fn insert(&mut self, payload: &[u8]) {
        self.0.put(&[payload]);
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        self.0.put(payloads);
        Ok(())
    }
}

/// One pwrite and one fdatasync for each call.
pub struct Synced {
    file: File,
    at: u64,
    buffer: Vec<u8>,
}

impl Append for Synced {
    const NAME: &'static str = "RAW: pwrite + fdatasync";
    const DURABILITY: Durability = Durability::Sync;

    fn begin(file: File) -> Synced {
        // Blocks that were only reserved cost a change of metadata at the first write: not the limit.
        let length = file.metadata().unwrap().len();
        let zeroes = vec![0; 1 << 20];
        for at in (0..length).step_by(zeroes.len()) {
            file.write_all_at(&zeroes, at).unwrap();
        }
        file.sync_all().unwrap();
        Synced { file, at: 0, buffer: Vec::new() }
    }

    fn put(&mut self, payloads: &[&[u8]]) {
        encode(payloads, &mut self.buffer);
        self.file.write_all_at(&self.buffer, self.at).unwrap();
        self.file.sync_data().unwrap();
        self.at += self.buffer.len() as u64;
    }
}

/// One write call for each call.
pub struct Written {
    file: File,
    at: u64,
    buffer: Vec<u8>,
}

impl Append for Written {
    const NAME: &'static str = "RAW: one write call";
    const DURABILITY: Durability = Durability::Process;

    fn begin(file: File) -> Written {
        Written { file, at: 0, buffer: Vec::new() }
    }

    fn put(&mut self, payloads: &[&[u8]]) {
        encode(payloads, &mut self.buffer);
        self.file.write_all_at(&self.buffer, self.at).unwrap();
        self.at += self.buffer.len() as u64;
    }
}

/// A copy into a mapping, whose pages were touched before (`FAULTED`) or are met for the first time.
pub struct Mapped<const FAULTED: bool> {
    map: MmapMut,
    at: usize,
}

impl<const FAULTED: bool> Append for Mapped<FAULTED> {
    const NAME: &'static str = match FAULTED {
        true => "RAW: copy, pages faulted before",
        false => "RAW: copy, fresh mapping",
    };
    const DURABILITY: Durability = Durability::Process;

    fn begin(file: File) -> Self {
        // SAFETY: nobody else has the file, and nobody cuts it off.
        let mut map = unsafe { MmapMut::map_mut(&file) }.unwrap();
        if FAULTED {
            for at in (0..map.len()).step_by(4096) {
                map[at] = 0;
            }
        }
        Mapped { map, at: 0 }
    }

    fn put(&mut self, payloads: &[&[u8]]) {
        for payload in payloads {
            let record = &mut self.map[self.at..self.at + HEADER + payload.len()];
            record[..HEADER].copy_from_slice(&header(payload));
            record[HEADER..].copy_from_slice(payload);
            self.at += record.len();
        }
    }
}

/// Reads the records in their order; a delete is a mark of its own, as durable as they are.
struct Reader {
    file: File,
    at: u64,
    buffer: Vec<u8>,
    marks: Option<Synced>,
}

impl Reader {
    fn of(path: &Path, at: u64) -> Reader {
        Reader { file: open(path), at, buffer: Vec::new(), marks: None }
    }

    /// Whether there was another record; it is in the buffer then.
    fn next(&mut self) -> bool {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, self.at).unwrap();
        let length = u32::from_le_bytes(*header.first_chunk().unwrap()) as usize;
        if length == 0 {
            return false;
        }
        self.buffer.resize(length, 0);
        self.file.read_exact_at(&mut self.buffer, self.at + HEADER as u64).unwrap();
        let checksum = u32::from_le_bytes(*header.last_chunk().unwrap());
        assert_eq!(crc32fast::hash(&self.buffer), checksum, "a damaged record");
        self.at += (HEADER + length) as u64;
        true
    }
}

impl Consumer for Reader {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        if !self.next() {
            return Ok(false);
        }
        look(&self.buffer);
        let mark = self.at.to_le_bytes();
        if let Some(marks) = &mut self.marks {
            marks.put(&[&mark]);
        }
        Ok(true)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let mut count = 0;
        while count < max && self.next() {
            look(&self.buffer);
            count += 1;
        }
        let mark = self.at.to_le_bytes();
        if let (Some(marks), true) = (&mut self.marks, count > 0) {
            marks.put(&vec![&mark[..]; count]);
        }
        Ok(count)
    }

    fn pop_out_of_order(
        &mut self,
        _max: usize,
        _order: &[usize],
        _look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        Err(Unsupported("one file"))
    }
}
