//! A store: a directory with a log and its queues.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::TimeSource;
use crate::engine::{Closed, Engine, StoreStats, check_empty, verify};
use crate::error::{Error, Result};
use crate::options::{Durability, QueueOptions, Settings};
use crate::queue::Queue;
use crate::random::Entropy;
use crate::report::{Recovery, Report};
use crate::storage::Storage;
use crate::storage::disk::RealDirectory;

/// An open store. Clones are cheap and share it; it is closed when the last one, and the last [`Queue`], is dropped, or
/// by [`close`](Store::close).
#[derive(Clone)]
pub struct Store(Arc<Handle>);

struct Handle(Arc<Engine>);

impl Drop for Handle {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `close`.
        self.0.close_on_drop();
    }
}

impl Store {
    /// Opens the store in `dir` with the default options, and creates it if there is none.
    ///
    /// Only one process can have a store open. Blocks for reading the last cursor and the log behind it; that follows
    /// the number of segments and the log since the last checkpoint, not the number of messages.
    ///
    /// # Errors
    /// `Locked` if it is open already, `NewerFormat`, `DiskFull`, `Io`.
    ///
    /// ```
    /// # fn main() -> millpond::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// let store = millpond::Store::open(dir.path())?;
    /// let queue = store.queue("jobs")?;
    /// queue.insert("first")?;
    /// let job = queue.get()?;
    /// assert_eq!(job.payload(), b"first");
    /// job.delete()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(dir: impl AsRef<Path>) -> Result<Store> {
        Store::options().open(dir)
    }

    /// Options to open a store with.
    pub fn options() -> StoreOptions {
        StoreOptions::default()
    }

    pub(crate) fn start(
        storage: Arc<dyn Storage>,
        settings: Settings,
        time: TimeSource,
        entropy: Entropy,
    ) -> Result<Store> {
        let engine = Engine::open(storage, settings, time, entropy)?;
        Ok(Store(Arc::new(Handle(engine))))
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.0.0
    }

    /// What the open found and did.
    pub fn recovery(&self) -> &Recovery {
        self.engine().recovery()
    }

    /// The store's own number, made when it was created. With a message's `origin_id` it makes a key that no other
    /// message has, on this machine or another.
    pub fn uuid(&self) -> [u8; 16] {
        self.engine().store_id()
    }

    /// The queue of that name; declared with default options if there is none. Its options are not changed.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is empty, longer than 255 bytes or has control characters; those of an insert.
    pub fn queue(&self, name: &str) -> Result<Queue> {
        Ok(Queue::new(self.clone(), self.engine().open_queue(name)?))
    }

    /// The queue of that name, if there is one: a typo creates nothing.
    pub fn find(&self, name: &str) -> Result<Option<Queue>> {
        let found = self.engine().find_queue(name)?;
        Ok(found.map(|shared| Queue::new(self.clone(), shared)))
    }

    /// Declares a queue, or sets all options of the one that is there. Durable as the store's inserts are.
    ///
    /// # Errors
    /// `InvalidArgument` for an option out of its range, or dead letter queues that lead in a circle.
    pub fn declare(&self, name: &str, options: QueueOptions) -> Result<Queue> {
        Ok(Queue::new(self.clone(), self.engine().declare(name, options)?))
    }

    /// Removes an empty queue. Its old handles return `NotFound` from then on, also after it was declared anew.
    ///
    /// # Errors
    /// `NotEmpty` if any message is left, `NotFound` if there is no queue of that name.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.engine().remove_queue(name)
    }

    /// The names of all queues, sorted.
    pub fn queue_names(&self) -> Vec<String> {
        self.engine().queue_names()
    }

    /// Makes everything durable that was done before the call, whatever durability it was done with. Blocks for one
    /// sync, which it shares with others.
    pub fn sync(&self) -> Result<()> {
        self.engine().sync()
    }

    /// What the store holds.
    pub fn stats(&self) -> StoreStats {
        self.engine().store_stats()
    }

    /// Copies the store into directory `dir`, while it is in use: as it was at one moment during the call, to the last
    /// record. What is in flight then is delivered again by the copy. `dir` must be missing or empty. Once this returns,
    /// it is durable, and opens as a store (of the same [`uuid`](Store::uuid)); until then it is named `dir.partial`.
    ///
    /// On the same file system it takes little space and time, since sealed segments get a second name there; the one that
    /// is written to is copied. Blocks for that, and for a checkpoint; inserts and consumers go on. Of a poisoned store the
    /// copy is what can be read.
    ///
    /// # Errors
    /// `InvalidArgument` if there is anything in `dir`; `DiskFull`, `Io`; `Closed`.
    pub fn backup(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::invalid("the directory of a backup must be empty").file(dir)
            }
            _ => Error::io("cannot make the directory of the backup", error).file(dir),
        };
        let copy = RealDirectory::beside(dir).map_err(failed)?;
        self.engine().backup(&copy)?;
        copy.become_dir(dir).map_err(failed)
    }

    /// Reads all of the store in `dir` and verifies it: every frame of every segment, the cursors, the indexes. Changes
    /// nothing, takes no lock, and may run while another process has the store open. Blocks for reading all files. It
    /// holds one segment in memory at a time, besides those that no cursor covers: if all cursors are lost, the whole log.
    ///
    /// # Errors
    /// `Io` if there is no store or a file cannot be read, `NewerFormat`. Damage is no error: see
    /// [`Report::is_sound`](crate::Report::is_sound).
    pub fn verify(dir: impl AsRef<Path>) -> Result<Report> {
        verify(existing(dir.as_ref())?)
    }

    /// Copies all messages that can be read of the store in `from`, which may be past repair, into a new store in `to`,
    /// under the same queues: also what an open would set aside, or has set aside, because nothing proves that it was
    /// durable, and what only the death of the process stood against. Nothing in `from` is changed, so it may be a copy on a
    /// read-only disk; no process should have it open. The messages get new ids, and keep the old ones as
    /// [`origin_id`](crate::Delivery::origin_id). All are ready in the new store: those that were in flight, delayed or
    /// buried too.
    ///
    /// # Errors
    /// As by [`verify`](Store::verify); `InvalidArgument` if there is anything in `to`; `DiskFull`.
    pub fn salvage(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Report> {
        let from = existing(from.as_ref())?;
        let to = to.as_ref();
        let directory = RealDirectory::open(to).map_err(|error| {
            Error::io("cannot open the directory of the new store", error).file(to)
        })?;
        check_empty(&directory)?;
        let store = Store::options().durability(Durability::Process).open(to)?;
        let report = store.engine().salvage_from(from)?;
        store.close()?;
        Ok(report)
    }

    /// Closes the store: what is in flight is given back uncounted, everything is made durable, and the next open has
    /// nothing to replay. All handles return `Closed` from then on. Closing twice is fine.
    pub fn close(&self) -> Result<()> {
        self.close_timeout(Duration::ZERO).map(|_| ())
    }

    /// As [`close`](Store::close), but gives consumers up to `wait` to settle what they hold, or until their leases have run
    /// out. Gets end at once; inserts and settling go on until then.
    pub fn close_timeout(&self, wait: Duration) -> Result<Closed> {
        self.engine().close(wait)
    }
}

/// A directory that must be there.
fn existing(dir: &Path) -> Result<Arc<dyn Storage>> {
    match RealDirectory::existing(dir) {
        Ok(directory) => Ok(Arc::new(directory)),
        Err(error) => Err(Error::io("cannot open the store's directory", error).file(dir)),
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("queues", &self.queue_names()).finish_non_exhaustive()
    }
}

/// How to open a store.
///
/// ```
/// # fn main() -> millpond::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// use millpond::{Durability, Store};
/// let store = Store::options()
///     .durability(Durability::Process)
///     .segment_bytes(16 << 20)
///     .open(dir.path())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "options do nothing until `open`"]
pub struct StoreOptions {
    settings: Settings,
}

impl StoreOptions {
    /// When inserts are durable, in queues that do not say so themselves. Default: `Sync`.
    pub fn durability(mut self, durability: Durability) -> StoreOptions {
        self.settings.durability = durability;
        self
    }

    /// When deletes are durable. Default: `Interval(1 s)`; a power cut then brings back at most what was deleted in the
    /// last second. They ride along with any sync before that.
    pub fn delete_durability(mut self, durability: Durability) -> StoreOptions {
        self.settings.delete_durability = durability;
        self
    }

    /// How long a segment file is, in bytes: from 64 KiB to 1 GiB, in multiples of 4 KiB. Default: 64 MiB. Space comes
    /// back in whole segments, and up to four are held beyond what the messages need; smaller ones suit small disks.
    /// Segments that are there keep their size.
    pub fn segment_bytes(mut self, bytes: u64) -> StoreOptions {
        self.settings.segment_bytes = bytes;
        self
    }

    /// The largest payload that is taken, in bytes: from 1 to 1 GiB. Default: 64 MiB. One that does not fit in a segment
    /// gets a larger segment of its own.
    pub fn max_message_bytes(mut self, bytes: u64) -> StoreOptions {
        self.settings.max_message_bytes = bytes;
        self
    }

    /// How much garbage the log may hold (deleted messages, and records of what became of messages), in percent of the
    /// messages that are not deleted: from 10 to 1000. Beyond that, and half a segment more, segments in which little is
    /// left are rewritten in the background. Less costs more writing. Default: 100, so that the log takes at most twice
    /// what is in it.
    pub fn garbage_percent(mut self, percent: u32) -> StoreOptions {
        self.settings.garbage_percent = percent;
        self
    }

    /// How long all files of the store may be together, in bytes: at least four segments. It acts as the end of the disk
    /// does: an insert that would need more returns `DiskFull`, and everything else goes on. What is kept in
    /// `quarantine/` does not count. Default: no limit but the disk's.
    pub fn max_bytes(mut self, bytes: u64) -> StoreOptions {
        self.settings.max_bytes = Some(bytes);
        self
    }

    /// Whether damage to what was proven durable makes the open fail, with nothing changed on disk. Default: false; the
    /// damaged bytes are skipped, kept in `quarantine/` and reported by [`Store::recovery`].
    pub fn strict(mut self, strict: bool) -> StoreOptions {
        self.settings.strict = strict;
        self
    }

    /// Opens the store in `dir`, and creates it if there is none. As [`Store::open`].
    pub fn open(&self, dir: impl AsRef<Path>) -> Result<Store> {
        self.settings.check()?;
        let dir = dir.as_ref();
        let storage = RealDirectory::open(dir).map_err(|error| {
            let what = match error.kind() {
                io::ErrorKind::NotADirectory => "the store's directory is a file",
                _ => "cannot open the store's directory",
            };
            Error::io(what, error).file(dir)
        })?;
        let settings = self.settings.clone();
        Store::start(Arc::new(storage), settings, TimeSource::System, Entropy::System)
    }

    /// Opens a store on a simulated disk, with a clock that stands still. No background thread is started: maintenance
    /// is done by [`testing::step`](crate::testing::step), and by calls that cannot go on without.
    #[cfg(feature = "testing")]
    pub fn open_simulated(
        &self,
        disk: &crate::testing::Disk,
        clock: &crate::testing::Clock,
    ) -> Result<Store> {
        let settings = Settings { background: false, ..self.settings.clone() };
        let time = TimeSource::Manual(clock.clone());
        Store::start(Arc::new(disk.clone()), settings, time, disk.entropy())
    }
}
