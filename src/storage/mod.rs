//! The only place that names files and mappings, and the only home of `unsafe`.
//!
//! [`Storage`] is a directory, [`File`] a file in it, [`Mapping`] and [`MapWriter`] the two sides of a mapped file.
//! There are two backings: [`disk`] is a real directory; `sim` is a simulated disk that loses, tears and reorders what
//! was not synced, fails on command and runs out of space. What stands above this module cannot tell them apart.
//!
//! Rules for whoever calls:
//! - A file's bytes are durable after `sync_data`, its name after `sync_dir`; neither implies the other.
//! - While a [`MapWriter`] lives, its file is changed through it alone; the handle that it came from answers
//!   `ResourceBusy` to everything else.
//! - Bytes that a live [`Mapping`] may read (those below its `published`) are not rewritten, not cut off by `set_len`,
//!   and not mapped for writing through a second handle. Nothing can check that on a real disk at a bearable price;
//!   the simulated one panics, so every test that runs on it is a test of this rule too. Who gives up the lock of the
//!   directory before a mapping holds the file for as long.
//! - A name has no directory in front of it, or one that `create_dir` made: `"LOCK"`, `"quarantine/x"`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) mod disk;
mod map;
mod read_only;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod sim;
mod space;
#[cfg(test)]
mod tests;

pub(crate) use map::{MapWriter, Mapping};
pub(crate) use read_only::ReadOnly;
pub(crate) use space::{PROBE, Space, Spare, SpareBytes, is_full};

/// The name of the lock file.
const LOCK: &str = "LOCK";

/// How `create` makes a new file's space its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prepare {
    /// The blocks are allocated but not written: cheap now; the first sync of each block costs one flush more.
    Reserve,
    /// Allocated, then filled with zeroes.
    Zero,
}

/// How a [`MapWriter`] writes. Readers see no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// By stores to the mapped memory: no call of the system, but a page fault for each page and sync.
    Stores,
    /// By write calls, of as much as lies together: cheaper where every few writes are synced. There a store would meet
    /// a page fault each time, would make a whole folio dirty instead of a block, and make the sync look for who has
    /// mapped it.
    Calls,
}

/// What `list` found in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: String,
    /// In bytes; 0 for what is not a file.
    pub len: u64,
    pub is_file: bool,
}

/// Why the directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Somebody else has it. `note` is what the holder wrote into the lock file, as far as it can be read.
    #[error("locked by another process: {note}")]
    Held { note: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The exclusive lock of a directory; dropping it, or the death of the process, releases it.
pub(crate) trait Lock: fmt::Debug + Send + Sync {
    /// The content that the lock file had when the lock was taken: the last note of the holder before.
    fn previous_note(&self) -> &str;
    /// Replaces the content of the lock file. It is not synced: a note tells of processes, and none outlives a boot.
    fn note(&self, text: &str) -> io::Result<()>;
}

/// Holds a file until it is dropped, or the process dies: see [`Storage::hold`].
pub(crate) type Hold = Box<dyn fmt::Debug + Send + Sync>;

/// A directory of files.
pub(crate) trait Storage: Send + Sync {
    /// Takes the lock, or fails at once.
    fn lock(&self) -> Result<Box<dyn Lock>, LockError>;
    /// What lies in directory `dir`, or at the top level if that is empty, sorted by name. The names are without `dir`.
    fn list_in(&self, dir: &str) -> io::Result<Vec<Entry>>;
    /// The top level of the directory, sorted by name.
    fn list(&self) -> io::Result<Vec<Entry>> {
        self.list_in("")
    }
    /// A new file (`AlreadyExists` if there is one) of `len` zero bytes, for which space is really reserved. If that
    /// fails (`StorageFull`), the file is removed again.
    fn create(&self, name: &str, len: u64, prepare: Prepare) -> io::Result<Arc<dyn File>>;
    /// An existing file, to read and write.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// An existing file, to read.
    fn open_read(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Gives a file the same name in another directory too, or fails: it may lie on another file system.
    fn link(&self, name: &str, to: &dyn Storage) -> io::Result<()>;
    /// Whether a file has another name besides, so that what is written to it is written there too.
    fn is_linked(&self, name: &str) -> bool;
    /// Lets whoever has the lock next know that a file is mapped.
    fn hold(&self, name: &str) -> io::Result<Hold>;
    /// Whether somebody holds a file, so that it must not change: somebody who had the lock before may have it mapped.
    fn is_held(&self, name: &str) -> bool;
    /// Replaces `to` if it exists, atomically; durable after `sync_dir`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Handles and mappings of it stay valid.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes a subdirectory; one that exists is fine.
    fn create_dir(&self, name: &str) -> io::Result<()>;
    /// Makes durable what the directory holds, and, as far as it can, what the subdirectories hold that `create_dir`
    /// was called for.
    fn sync_dir(&self) -> io::Result<()>;
    /// Names this boot of the machine, or is empty where the system has no such name.
    fn boot_id(&self) -> String;
    /// Where `name` lies, for error messages.
    fn path(&self, name: &str) -> PathBuf;
    /// This process, for the note in the lock file.
    fn pid(&self) -> u32;
}

/// An open file.
pub(crate) trait File: Send + Sync {
    /// In bytes.
    fn len(&self) -> io::Result<u64>;
    /// A place from which on all bytes are zero: the length, or less where the system knows what was never written. While
    /// nobody writes.
    fn data_end(&self) -> io::Result<u64> {
        self.len()
    }
    /// Fills `buf`, or fails with `UnexpectedEof`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`; a file that is too short grows.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Adds zeroes up to `len`, for which space is really reserved, or changes nothing.
    fn lengthen(&self, len: u64) -> io::Result<()>;
    /// Cuts off, or adds zeroes for which no space is reserved.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the content and the length durable, also what was written through a mapping. After an error nothing is
    /// known of what was written since the last success, and a later success says nothing about it either.
    fn sync_data(&self) -> io::Result<()>;
    /// Maps the whole file, all of it published. An empty file gives an empty mapping.
    fn map_read(&self) -> io::Result<Mapping>;
    /// Maps the whole file for writing, nothing of it published. While the writer lives, this, `write_at` and `set_len`
    /// of the same handle (on a simulated disk: of the same file) fail with `ResourceBusy`.
    fn map_write(&self, writing: Writing) -> io::Result<MapWriter>;
}
