//! A simulated disk, for tests that pull the plug.
//!
//! What the operating system and the drive may do to data between a write and a sync, this disk does on demand: every
//! 512-byte sector that was not synced, every length and every directory operation may or may not have reached the
//! platter when the power goes. [`Disk::power_cut`] and [`Disk::kill`] leave the disk as it is and return another one,
//! so that a test can crash at every operation of one run. Nothing is random but what a seed says.
//!
//! The parts: `buffer` is the memory of one file, `inode` its content, volatile and durable, `state` the directory,
//! `cut` decides what a power cut leaves, `fingerprint` tells contents apart by a number, `handle` is the disk as the rest
//! of the crate sees it.

mod buffer;
mod cut;
mod fingerprint;
mod handle;
mod inode;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) use buffer::Buffer;
pub(super) use handle::Handle;
use inode::Inode;
use state::State;

use crate::random::Entropy;

/// What a disk can be told to fail at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// Syncing a file's content fails with an I/O error. As on Linux, what was to be written counts as clean from then
    /// on: it can still be read, but later syncs succeed without writing it, until it is written again.
    Sync,
    /// Syncing the directory fails with an I/O error, and later syncs succeed without the operations that it lost.
    SyncDir,
    /// Creating a file with space reserved for it fails for want of space.
    Reserve,
    /// Writing to a file (not through a mapping), or setting its length, fails with an I/O error.
    Write,
    /// As `Write`, but the first half of the bytes is written. A single word is written as a whole.
    ShortWrite,
    /// Creating a file or a directory, or renaming a file, fails with an I/O error.
    Create,
    /// Removing a file fails with an I/O error.
    Remove,
    /// Reading from a file (not through a mapping) fails with an I/O error.
    Read,
    /// Mapping a file fails for want of memory, or keeping one for what is mapped of it.
    Map,
}

/// A failure to come, see [`Disk::fail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What fails.
    pub kind: FaultKind,
    /// How many operations of that kind succeed before; 0 fails the next one.
    pub after: u64,
    /// Whether all later ones fail too.
    pub sticky: bool,
}

/// What [`Disk::on_operation`] calls: with the disk, and the number of the operation.
pub type Callback = Box<dyn FnMut(&Disk, u64) + Send>;

/// The callback, or the fact that it runs at the moment.
enum Slot {
    Idle(Option<Callback>),
    Running,
}

struct Shared {
    state: Mutex<State>,
    callback: Mutex<Slot>,
}

/// A directory on a disk that exists in memory only, and that can lose power.
///
/// Clones are the same disk. [`kill`](Disk::kill) and [`power_cut`](Disk::power_cut) return independent ones.
#[derive(Clone)]
pub struct Disk {
    shared: Arc<Shared>,
}

impl Disk {
    /// An empty disk without end.
    pub fn new() -> Self {
        Self::from_state(State::new(None))
    }

    /// An empty disk of `bytes` bytes, see [`set_capacity`](Disk::set_capacity).
    pub fn with_capacity(bytes: u64) -> Self {
        Self::from_state(State::new(Some(bytes)))
    }

    /// Sets how many bytes fit, or that all do.
    ///
    /// Creating a file with space reserved for it, and writing beyond a file's end, fail when the lengths of all files
    /// would exceed this. (The lock file does not count.) What exists is not touched.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Sets how many bytes must be free beyond a new file's length for it to be created, though it does not take them: on
    /// some file systems that is much. Only where a capacity is set; 0 at first.
    pub fn set_creation_slack(&self, bytes: u64) {
        self.state().creation_slack = bytes;
    }

    /// The disk as the next process finds it after this one was killed right now.
    ///
    /// Everything written survives, since the page cache does; what was not synced is still not synced. The boot is the
    /// same one, the directory is not locked, no callback, no fault and no operation counted is carried over.
    pub fn kill(&self) -> Disk {
        Self::from_state(self.state().kill())
    }

    /// The disk as the next boot might find it if the power went right now.
    ///
    /// What was synced is there. Of what was not, `seed` decides: 0 loses all of it, 1 keeps all of it, and any other
    /// number picks one of the many states in between: a sector has its synced content or any that it had since
    /// (the last eight), a length likewise, and a creation, rename or removal happened or not. Some seeds lose most,
    /// some keep most, some decide file by file.
    pub fn power_cut(&self, seed: u64) -> Disk {
        Self::from_state(self.state().power_cut(seed))
    }

    /// A number that two disks share if a process can find nothing different on them: the same names, lengths and contents,
    /// and a lock file that speaks of the same boot as it runs in, or of another. That they share it by chance need not
    /// be feared.
    ///
    /// What was not synced counts as it is seen now, and not for what a power cut might leave of it; capacities and faults do
    /// not count.
    pub fn fingerprint(&self) -> u128 {
        fingerprint::of_disk(&self.state())
    }

    /// How many operations were performed, failed ones included: files and directories created, renamed or removed,
    /// writes, stores and syncs.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// How many bytes were written to files, in whatever way.
    pub fn written_bytes(&self) -> u64 {
        self.state().written
    }

    /// Calls `callback` after each operation with the disk and the operation's number, counted from 1.
    ///
    /// The callback may use the disk; operations that are performed while it runs do not call it.
    pub fn on_operation(&self, callback: Option<Callback>) {
        *self.callback() = Slot::Idle(callback);
    }

    /// Makes an operation to come fail. Several faults may be waiting at the same time.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// How many operations have failed by a fault so far.
    pub fn faults_struck(&self) -> u64 {
        self.state().faults_struck
    }

    /// Takes back all faults. What they have broken stays broken.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// The content of a file, synced or not.
    pub fn read_file(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = state.inode(*state.volatile.names.get(name)?);
        Some(inode.content().to_vec())
    }

    /// Puts a durable file in place of whatever has that name. Who has the old file open keeps the old one.
    pub fn write_file(&self, name: &str, content: Vec<u8>) {
        self.state().put(name, Inode::durable(&content));
    }

    /// Removes a file durably, if there is one. Who has it open keeps it.
    pub fn remove_file(&self, name: &str) {
        self.state().take(name);
    }

    /// The names of all files, synced or not, sorted; those in subdirectories as `directory/name`.
    pub fn file_names(&self) -> Vec<String> {
        self.state().volatile.names.keys().cloned().collect()
    }

    /// Random numbers for the next store on it.
    pub(crate) fn entropy(&self) -> Entropy {
        Entropy::Sequence(self.state().random.clone())
    }

    fn from_state(state: State) -> Self {
        let callback = Mutex::new(Slot::Idle(None));
        Self { shared: Arc::new(Shared { state: Mutex::new(state), callback }) }
    }

    /// The lock is never held while somebody else's code runs. A panic under it is a failing test, which the others
    /// need not follow.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn callback(&self) -> MutexGuard<'_, Slot> {
        self.shared.callback.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Performs one operation, counts it, and tells the callback.
    fn operate<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let (result, number) = {
            let mut state = self.state();
            let result = work(&mut state);
            state.operations += 1;
            (result, state.operations)
        };
        let taken = std::mem::replace(&mut *self.callback(), Slot::Running);
        match taken {
            // Performed by the callback itself, or beside it; the one that runs puts itself back.
            Slot::Running => {}
            Slot::Idle(None) => self.put_back(None),
            Slot::Idle(Some(mut callback)) => {
                callback(self, number);
                self.put_back(Some(callback));
            }
        }
        result
    }

    /// Unless the callback was replaced while it ran.
    fn put_back(&self, callback: Option<Callback>) {
        let mut slot = self.callback();
        if matches!(*slot, Slot::Running) {
            *slot = Slot::Idle(callback);
        }
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Disk")
            .field("boot_id", &state.boot_id)
            .field("files", &state.volatile.names.keys())
            .field("operations", &state.operations)
            .finish_non_exhaustive()
    }
}
