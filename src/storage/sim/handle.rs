//! The simulated disk as the rest of the crate sees it: [`Storage`], [`Lock`] and [`File`].

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{
    Entry, File, Hold, LOCK, Lock, LockError, MapWriter, Mapping, Prepare, Storage, Writing,
};
use super::state::io_error;
use super::{Disk, FaultKind};

impl Disk {
    fn handle(&self, name: &str, writable: bool) -> io::Result<Arc<dyn File>> {
        let state = self.state();
        let inode = state.find(name)?;
        let _open = state.inode(inode).open();
        Ok(Arc::new(Handle {
            disk: self.clone(),
            inode,
            writable,
            writing: Writing::Stores,
            _open,
        }))
    }
}

impl Storage for Disk {
    fn lock(&self) -> Result<Box<dyn Lock>, LockError> {
        let mut state = self.state();
        let inode = match state.find(LOCK) {
            Ok(inode) => inode,
            Err(error) if error.kind() == ErrorKind::NotFound => state.add(LOCK, 0),
            Err(error) => return Err(error.into()),
        };
        let note = String::from_utf8_lossy(state.inode(inode).content()).into_owned();
        if state.locked {
            return Err(LockError::Held { note });
        }
        state.locked = true;
        let _open = state.inode(inode).open();
        Ok(Box::new(Locked { disk: self.clone(), inode, previous: note, _open }))
    }

    fn list_in(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let state = self.state();
        if !dir.is_empty() && !state.volatile.dirs.contains(dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let dirs = state.volatile.dirs.iter().filter(|_| dir.is_empty());
        let dirs = dirs.map(|name| Entry { name: name.clone(), len: 0, is_file: false });
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let names = state.volatile.names.range(prefix.clone()..);
        let inside = names.map_while(|(name, &id)| Some((name.strip_prefix(&prefix)?, id)));
        let files = inside.filter(|(name, _)| !name.as_bytes().contains(&b'/'));
        let mut entries = Vec::with_capacity(state.volatile.names.len());
        entries.extend(dirs);
        entries.extend(files.map(|(name, id)| {
            let len = state.inode(id).len();
            Entry { name: name.to_owned(), len, is_file: true }
        }));
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create(&self, name: &str, len: u64, _prepare: Prepare) -> io::Result<Arc<dyn File>> {
        // The handle's mark, taken under the same lock, keeps the file while the callback runs.
        let (inode, _open) = self.operate(|state| {
            let inode = state.create(name, len)?;
            Ok((inode, state.inode(inode).open()))
        })?;
        Ok(Arc::new(Handle {
            disk: self.clone(),
            inode,
            writable: true,
            writing: Writing::Stores,
            _open,
        }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.handle(name, true)
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.handle(name, false)
    }

    fn link(&self, _name: &str, _to: &dyn Storage) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn is_linked(&self, _name: &str) -> bool {
        false
    }

    fn hold(&self, name: &str) -> io::Result<Hold> {
        let mut state = self.state();
        state.fail(FaultKind::Map)?;
        let inode = state.find(name)?;
        Ok(Box::new(state.inode(inode).hold()))
    }

    fn is_held(&self, name: &str) -> bool {
        let state = self.state();
        state.find(name).is_ok_and(|inode| state.inode(inode).is_held())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operate(|state| state.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate(|state| state.remove(name))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        self.operate(|state| state.create_dir(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.operate(|state| state.sync_dir())
    }

    fn boot_id(&self) -> String {
        self.state().boot_id.clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("/simulated").join(name)
    }

    fn pid(&self) -> u32 {
        self.state().pid
    }
}

/// The lock of a simulated disk.
struct Locked {
    disk: Disk,
    inode: u64,
    previous: String,
    /// The file is open.
    _open: Arc<()>,
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked").finish_non_exhaustive()
    }
}

impl Lock for Locked {
    fn previous_note(&self) -> &str {
        &self.previous
    }

    fn note(&self, text: &str) -> io::Result<()> {
        self.disk.operate(|state| {
            let inode = state.inode_mut(self.inode);
            inode.check_free()?;
            inode.write(0, text.as_bytes());
            inode.set_len(text.len() as u64);
            Ok(())
        })
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.disk.state().locked = false;
    }
}

/// An open file of a simulated disk.
#[derive(Clone)]
pub(crate) struct Handle {
    disk: Disk,
    inode: u64,
    writable: bool,
    /// How its writer writes, if it belongs to one.
    writing: Writing,
    /// The file is open.
    _open: Arc<()>,
}

impl Handle {
    /// A write of the mapping's one writer, which is the caller. Readers see it only once it is published, so that a
    /// word need not be atomic here.
    pub(crate) fn write_mapped(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.operate(|state| {
            let (bytes, outcome) = match self.writing {
                Writing::Calls => state.write_call(bytes),
                Writing::Stores => (bytes, Ok(())),
            };
            state.written += bytes.len() as u64;
            state.inode_mut(self.inode).write_mapped(at, bytes);
            outcome
        })
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) }
    }
}

impl File for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().inode(self.inode).len())
    }

    fn data_end(&self) -> io::Result<u64> {
        Ok(self.disk.state().inode(self.inode).data_end())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.fail(FaultKind::Read)?;
        state.inode(self.inode).read(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.disk.operate(|state| {
            state.inode(self.inode).check_free()?;
            let (bytes, outcome) = state.write_call(bytes);
            if bytes.is_empty() {
                return outcome;
            }
            let end = offset.checked_add(bytes.len() as u64).ok_or(ErrorKind::FileTooLarge)?;
            let more = end.saturating_sub(state.inode(self.inode).len());
            if more > 0 {
                state.check_space(more)?;
            }
            state.written += bytes.len() as u64;
            state.inode_mut(self.inode).write(offset, bytes);
            outcome
        })
    }

    fn lengthen(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.disk.operate(|state| {
            state.inode(self.inode).check_free()?;
            state.fail(FaultKind::Reserve)?;
            state.check_space(len.saturating_sub(state.inode(self.inode).len()))?;
            state.inode_mut(self.inode).set_len(len);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.disk.operate(|state| {
            state.inode(self.inode).check_free()?;
            state.fail(FaultKind::Write)?;
            state.inode_mut(self.inode).set_len(len);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.operate(|state| {
            if state.fails(FaultKind::Sync) {
                state.inode_mut(self.inode).fail_sync();
                return Err(io_error());
            }
            state.inode_mut(self.inode).sync();
            Ok(())
        })
    }

    fn map_read(&self) -> io::Result<Mapping> {
        let mut state = self.disk.state();
        state.fail(FaultKind::Map)?;
        Ok(state.inode_mut(self.inode).map_read())
    }

    fn map_write(&self, writing: Writing) -> io::Result<MapWriter> {
        self.check_writable()?;
        let mut state = self.disk.state();
        state.fail(FaultKind::Map)?;
        state.inode_mut(self.inode).map_write(Handle { writing, ..self.clone() })
    }
}
