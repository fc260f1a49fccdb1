//! The simulated directory: names, volatile and durable, and everything else that belongs to one disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::LOCK;
use super::cut::Cut;
use super::inode::Inode;
use super::{Fault, FaultKind};

/// What Linux and all other systems with that error call it.
const EIO: i32 = 5;

/// What the names of all boots begin with.
pub(super) const BOOT: &str = "sim-boot-";

/// The first process on a disk; each fork is the next one.
const FIRST_PID: u32 = 1000;

pub(super) fn io_error() -> io::Error {
    io::Error::from_raw_os_error(EIO)
}

/// A change to the directory.
#[derive(Clone)]
enum Change {
    Create { name: String, inode: u64 },
    CreateDir { name: String },
    Rename { from: String, to: String, inode: u64 },
    Remove { name: String, inode: u64 },
}

impl Change {
    fn inode(&self) -> Option<u64> {
        match self {
            Self::CreateDir { .. } => None,
            Self::Create { inode, .. }
            | Self::Rename { inode, .. }
            | Self::Remove { inode, .. } => Some(*inode),
        }
    }

    fn concerns(&self, other: &str) -> bool {
        match self {
            Self::Rename { from, to, .. } => from == other || to == other,
            Self::Create { name, .. } | Self::CreateDir { name } | Self::Remove { name, .. } => {
                name == other
            }
        }
    }
}

/// A change that is not durable.
#[derive(Clone)]
struct Pending {
    change: Change,
    /// A directory sync has failed on it: no later one will write it.
    lost: bool,
}

/// Which files there are.
#[derive(Clone, Default)]
pub(super) struct Namespace {
    /// Files in subdirectories are listed as `directory/name`.
    pub(super) names: BTreeMap<String, u64>,
    pub(super) dirs: BTreeSet<String>,
}

impl Namespace {
    fn has_parent_of(&self, name: &str) -> bool {
        name.rsplit_once('/').is_none_or(|(dir, _)| self.dirs.contains(dir))
    }

    /// Does what `change` says, if it makes sense here: on a drive that reorders, what it builds on may be missing.
    fn apply(&mut self, change: &Change) {
        match change {
            Change::CreateDir { name } => drop(self.dirs.insert(name.clone())),
            Change::Create { name, inode } => {
                if !self.names.contains_key(name) && self.has_parent_of(name) {
                    self.names.insert(name.clone(), *inode);
                }
            }
            Change::Rename { from, to, inode } => {
                if self.names.get(from) == Some(inode) && self.has_parent_of(to) {
                    self.names.remove(from);
                    self.names.insert(to.clone(), *inode);
                }
            }
            Change::Remove { name, inode } => {
                if self.names.get(name) == Some(inode) {
                    self.names.remove(name);
                }
            }
        }
    }
}

/// All of one disk. Its methods are single steps under its lock.
pub(super) struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// What the system shows.
    pub(super) volatile: Arc<Namespace>,
    /// What the drive holds for certain.
    durable: Arc<Namespace>,
    /// What lies between the two, in order.
    pending: Vec<Pending>,
    pub(super) capacity: Option<u64>,
    pub(super) creation_slack: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) faults_struck: u64,
    pub(super) operations: u64,
    pub(super) written: u64,
    pub(super) locked: bool,
    pub(super) boot_id: String,
    pub(super) pid: u32,
    /// How far the random numbers of this disk's stores have come: each open goes on from there, so that no two have the
    /// same ones, as no two processes have.
    pub(super) random: Arc<AtomicU64>,
}

impl State {
    pub(super) fn new(capacity: Option<u64>) -> Self {
        Self {
            inodes: BTreeMap::new(),
            next_inode: 0,
            volatile: Arc::default(),
            durable: Arc::default(),
            pending: Vec::new(),
            capacity,
            creation_slack: 0,
            faults: Vec::new(),
            faults_struck: 0,
            operations: 0,
            written: 0,
            locked: false,
            boot_id: new_boot_id(),
            pid: FIRST_PID,
            random: Arc::default(),
        }
    }

    pub(super) fn kill(&mut self) -> Self {
        let referenced = self.referenced().into_iter();
        Self {
            inodes: referenced.map(|id| (id, self.inode_mut(id).fork())).collect(),
            next_inode: self.next_inode,
            volatile: self.volatile.clone(),
            durable: self.durable.clone(),
            pending: self.pending.clone(),
            boot_id: self.boot_id.clone(),
            pid: self.pid + 1,
            creation_slack: self.creation_slack,
            random: Arc::new(self.random.load(Ordering::Relaxed).into()),
            ..Self::new(self.capacity)
        }
    }

    pub(super) fn power_cut(&mut self, seed: u64) -> Self {
        let mut cut = Cut::new(seed);
        let mut left = self.durable.clone();
        let happened = cut.happened(self.pending.len());
        for (pending, happened) in self.pending.iter().zip(happened) {
            if happened {
                Arc::make_mut(&mut left).apply(&pending.change);
            }
        }
        let inodes = left.names.values().map(|&id| (id, cut.inode(self.inode_mut(id)))).collect();
        Self {
            inodes,
            next_inode: self.next_inode,
            volatile: left.clone(),
            durable: left,
            pid: self.pid + 1,
            creation_slack: self.creation_slack,
            random: Arc::new(self.random.load(Ordering::Relaxed).into()),
            ..Self::new(self.capacity)
        }
    }

    /// Every inode that has a name or may have one after a power cut, in order.
    fn referenced(&self) -> Vec<u64> {
        let named = self.volatile.names.values().chain(self.durable.names.values()).copied();
        let pending = self.pending.iter().filter_map(|pending| pending.change.inode());
        let mut referenced: Vec<u64> = named.chain(pending).collect();
        referenced.sort_unstable();
        referenced.dedup();
        referenced
    }

    /// Ensures: every id in the namespaces, in `pending` and in an open handle is a key, since `collect` keeps those.
    pub(super) fn inode(&self, id: u64) -> &Inode {
        &self.inodes[&id]
    }

    /// Ensures: as `inode`.
    pub(super) fn inode_mut(&mut self, id: u64) -> &mut Inode {
        self.inodes.get_mut(&id).expect("an inode that is open or has a name exists")
    }

    #[cfg(test)]
    pub(super) fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// Whether an operation of this kind is to fail now.
    pub(super) fn fails(&mut self, kind: FaultKind) -> bool {
        let mut fails = false;
        self.faults.retain_mut(|fault| {
            if fault.kind != kind {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            fails = true;
            fault.sticky
        });
        self.faults_struck += u64::from(fails);
        fails
    }

    pub(super) fn fail(&mut self, kind: FaultKind) -> io::Result<()> {
        if !self.fails(kind) {
            return Ok(());
        }
        Err(match kind {
            FaultKind::Reserve => ErrorKind::StorageFull.into(),
            FaultKind::Map => ErrorKind::OutOfMemory.into(),
            _ => io_error(),
        })
    }

    /// What of `bytes` a call writes, and what it says.
    pub(super) fn write_call<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], io::Result<()>) {
        if let Err(error) = self.fail(FaultKind::Write) {
            return (&[], Err(error));
        }
        // A call copies whole words.
        let half = bytes.len() / 16 * 8;
        if half == 0 {
            return (bytes, Ok(()));
        }
        match self.fail(FaultKind::ShortWrite) {
            Ok(()) => (bytes, Ok(())),
            Err(error) => (&bytes[..half], Err(error)),
        }
    }

    /// Fails if `more` bytes do not fit.
    pub(super) fn check_space(&self, more: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let files = self.volatile.names.iter().filter(|(name, _)| *name != LOCK);
        let used: u64 = files.map(|(_, &id)| self.inode(id).len()).sum();
        if used.saturating_add(more) > capacity {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    pub(super) fn find(&self, name: &str) -> io::Result<u64> {
        if self.volatile.dirs.contains(name) {
            return Err(ErrorKind::IsADirectory.into());
        }
        Ok(*self.volatile.names.get(name).ok_or(ErrorKind::NotFound)?)
    }

    pub(super) fn create(&mut self, name: &str, len: u64) -> io::Result<u64> {
        self.fail(FaultKind::Create)?;
        if self.volatile.names.contains_key(name) || self.volatile.dirs.contains(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if !self.volatile.has_parent_of(name) {
            return Err(ErrorKind::NotFound.into());
        }
        if len > 0 {
            self.fail(FaultKind::Reserve)?;
            self.check_space(len + self.creation_slack)?;
        }
        Ok(self.add(name, len))
    }

    /// A new file that nothing stands in the way of.
    pub(super) fn add(&mut self, name: &str, len: u64) -> u64 {
        let mut inode = Inode::empty();
        inode.set_len(len);
        let inode = self.insert(inode);
        self.change(Change::Create { name: name.to_owned(), inode });
        inode
    }

    pub(super) fn create_dir(&mut self, name: &str) -> io::Result<()> {
        self.fail(FaultKind::Create)?;
        if self.volatile.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if !self.volatile.dirs.contains(name) {
            self.change(Change::CreateDir { name: name.to_owned() });
        }
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.fail(FaultKind::Create)?;
        let inode = self.find(from)?;
        if self.volatile.dirs.contains(to) {
            return Err(ErrorKind::IsADirectory.into());
        }
        if !self.volatile.has_parent_of(to) {
            return Err(ErrorKind::NotFound.into());
        }
        self.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        self.fail(FaultKind::Remove)?;
        let inode = self.find(name)?;
        self.change(Change::Remove { name: name.to_owned(), inode });
        Ok(())
    }

    pub(super) fn sync_dir(&mut self) -> io::Result<()> {
        if self.fails(FaultKind::SyncDir) {
            for pending in &mut self.pending {
                pending.lost = true;
            }
            return Err(io_error());
        }
        let durable = Arc::make_mut(&mut self.durable);
        self.pending.retain(|pending| {
            if !pending.lost {
                durable.apply(&pending.change);
            }
            pending.lost
        });
        self.collect();
        Ok(())
    }

    /// Puts a file under a name, whatever was there, durably.
    pub(super) fn put(&mut self, name: &str, inode: Inode) {
        self.take(name);
        let id = self.insert(inode);
        for namespace in [&mut self.volatile, &mut self.durable].map(Arc::make_mut) {
            if let Some((dir, _)) = name.rsplit_once('/') {
                namespace.dirs.insert(dir.to_owned());
            }
            namespace.names.insert(name.to_owned(), id);
        }
    }

    /// Removes a name durably.
    pub(super) fn take(&mut self, name: &str) {
        self.pending.retain(|pending| !pending.change.concerns(name));
        Arc::make_mut(&mut self.volatile).names.remove(name);
        Arc::make_mut(&mut self.durable).names.remove(name);
        self.collect();
    }

    fn insert(&mut self, inode: Inode) -> u64 {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, inode);
        id
    }

    fn change(&mut self, change: Change) {
        Arc::make_mut(&mut self.volatile).apply(&change);
        self.pending.push(Pending { change, lost: false });
    }

    /// Forgets the files that nobody can reach any more.
    fn collect(&mut self) {
        let referenced = self.referenced();
        self.inodes.retain(|id, inode| referenced.binary_search(id).is_ok() || inode.is_open());
    }
}

/// Every boot in this process has a name of its own, all of the same length: what a disk holds must not depend on how many
/// other disks there are.
fn new_boot_id() -> String {
    static BOOTS: AtomicU64 = AtomicU64::new(1);
    format!("{BOOT}{:010}", BOOTS.fetch_add(1, Ordering::Relaxed))
}
