//! The journal of one thread: fixed records, each batch appended by one write call, which a SIGKILL does not undo.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

const RECORD_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The store is open.
    Opened,
    /// `count` messages are about to be inserted, from `key` on.
    Inserting,
    /// They were, with ids from `id` on.
    Inserted,
    /// Up to `count` messages are about to be got.
    Getting,
    /// This one was.
    Got,
    /// No more of that get.
    GotAll,
    Deleting,
    Releasing,
    Failing,
    /// Buried, and kicked with all others that are.
    Burying,
    /// The queue is about to be paused.
    Pausing,
    Resuming,
    /// What the thread was about to do with the message or the queue has returned.
    Settled,
}

const KINDS: [Kind; 13] = [
    Kind::Opened,
    Kind::Inserting,
    Kind::Inserted,
    Kind::Getting,
    Kind::Got,
    Kind::GotAll,
    Kind::Deleting,
    Kind::Releasing,
    Kind::Failing,
    Kind::Burying,
    Kind::Pausing,
    Kind::Resuming,
    Kind::Settled,
];

#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub kind: Kind,
    pub queue: u8,
    pub count: u16,
    pub attempt: u32,
    pub id: u64,
    pub key: u64,
    /// Since the child began, in nanoseconds; comparable between its threads.
    pub at: u64,
}

impl Record {
    pub fn new(kind: Kind, queue: u8) -> Record {
        Record { kind, queue, count: 0, attempt: 0, id: 0, key: 0, at: 0 }
    }

    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = self.kind as u8;
        bytes[1] = self.queue;
        bytes[2..4].copy_from_slice(&self.count.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.attempt.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.key.to_le_bytes());
        bytes[24..].copy_from_slice(&self.at.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; RECORD_BYTES]) -> Record {
        let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        Record {
            kind: KINDS[bytes[0] as usize],
            queue: bytes[1],
            count: u16::from_le_bytes([bytes[2], bytes[3]]),
            attempt: u32::from_le_bytes(*bytes[4..].first_chunk().unwrap()),
            id: u64_at(8),
            key: u64_at(16),
            at: u64_at(24),
        }
    }
}

pub struct Journal {
    file: File,
    began: Instant,
}

fn path(dir: &Path, thread: usize) -> PathBuf {
    dir.join(thread.to_string())
}

impl Journal {
    pub fn create(dir: &Path, thread: usize, began: Instant) -> io::Result<Journal> {
        Ok(Journal { file: File::create_new(path(dir, thread))?, began })
    }

    pub fn write(&mut self, records: &[Record]) {
        let at = self.began.elapsed().as_nanos() as u64;
        let bytes: Vec<u8> =
            records.iter().flat_map(|record| Record { at, ..*record }.encode()).collect();
        // One call: a kill leaves whole records, from the front.
        let written = self.file.write(&bytes).expect("the journal can be written");
        assert_eq!(written, bytes.len(), "the journal takes all of a write");
    }
}

/// What a thread had written when it died. A thread that never began has written nothing.
pub fn read(dir: &Path, thread: usize) -> io::Result<Vec<Record>> {
    let bytes = match fs::read(path(dir, thread)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes?,
    };
    Ok(bytes.as_chunks().0.iter().map(Record::decode).collect())
}
