//! The log of a device: every write and flush that it took, in order.
//!
//! A file: the number of entries in it, then the entries, each with where it was written and how much (in bytes; a flush
//! writes nothing), and what. Numbers take eight bytes.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a disk writes whole.
pub const SECTOR: usize = 512;

/// Who writes it.
pub struct Writer {
    file: File,
    entries: u64,
    end: u64,
}

impl Writer {
    pub fn create(path: &Path) -> Writer {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
        let mut writer = Writer { file, entries: 0, end: 8 };
        writer.count();
        writer
    }

    pub fn write(&mut self, to: u64, bytes: &[u8]) {
        let header = [to, bytes.len() as u64].map(u64::to_le_bytes).concat();
        self.file.write_all_at(&header, self.end).unwrap();
        self.file.write_all_at(bytes, self.end + 16).unwrap();
        self.end += 16 + bytes.len() as u64;
        self.entries += 1;
        self.count();
    }

    pub fn flush(&mut self) {
        self.write(0, &[]);
    }

    fn count(&mut self) {
        self.file.write_all_at(&self.entries.to_le_bytes(), 0).unwrap();
    }
}

/// How many entries a log has that is still written to.
pub fn count(log: &File) -> u64 {
    let mut number = [0; 8];
    log.read_exact_at(&mut number, 0).unwrap();
    u64::from_le_bytes(number)
}

/// One request.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it was written on the device, in bytes. Empty if it is a flush.
    pub to: Range<usize>,
    /// Where its bytes begin in the log.
    at: usize,
}

impl Entry {
    pub fn is_flush(&self) -> bool {
        self.to.is_empty()
    }
}

pub struct Log {
    bytes: Vec<u8>,
    pub entries: Vec<Entry>,
}

impl Log {
    pub fn read(path: &Path) -> Log {
        let bytes = fs::read(path).unwrap();
        let number = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap()) as usize;
        let mut at = 8;
        let mut entries = Vec::with_capacity(number(0));
        for _ in 0..number(0) {
            let (to, len) = (number(at), number(at + 8));
            entries.push(Entry { to: to..to + len, at: at + 16 });
            at += 16 + len;
        }
        assert_eq!(at, bytes.len(), "a log of another length than its entries have");
        Log { bytes, entries }
    }

    /// What the entry has written.
    pub fn data(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.at..entry.at + entry.to.len()]
    }
}
