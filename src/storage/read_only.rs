//! A directory that is only read, also while another process writes to it.
//!
//! What it maps is a copy: a file that the other process cuts off under a mapping would end this one.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Entry, File, Hold, Lock, LockError, MapWriter, Mapping, Prepare, Storage, Writing};

/// How often a file is read again that becomes shorter meanwhile.
const TRIES: usize = 10;

/// Lets nothing through that would change the directory.
pub(crate) struct ReadOnly(pub Arc<dyn Storage>);

fn refused<T>() -> io::Result<T> {
    Err(ErrorKind::ReadOnlyFilesystem.into())
}

impl Storage for ReadOnly {
    /// Whoever has the directory open must not be kept out.
    fn lock(&self) -> Result<Box<dyn Lock>, LockError> {
        Err(LockError::Io(ErrorKind::ReadOnlyFilesystem.into()))
    }

    fn list_in(&self, dir: &str) -> io::Result<Vec<Entry>> {
        self.0.list_in(dir)
    }

    fn create(&self, _name: &str, _len: u64, _prepare: Prepare) -> io::Result<Arc<dyn File>> {
        refused()
    }

    fn open(&self, _name: &str) -> io::Result<Arc<dyn File>> {
        refused()
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Copied(self.0.open_read(name)?)))
    }

    fn link(&self, _name: &str, _to: &dyn Storage) -> io::Result<()> {
        refused()
    }

    fn is_linked(&self, name: &str) -> bool {
        self.0.is_linked(name)
    }

    fn hold(&self, _name: &str) -> io::Result<Hold> {
        refused()
    }

    fn is_held(&self, name: &str) -> bool {
        self.0.is_held(name)
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        refused()
    }

    fn create_dir(&self, _name: &str) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self) -> io::Result<()> {
        refused()
    }

    fn boot_id(&self) -> String {
        self.0.boot_id()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn pid(&self) -> u32 {
        self.0.pid()
    }
}

/// A file that is only read.
struct Copied(Arc<dyn File>);

impl File for Copied {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        refused()
    }

    fn lengthen(&self, _len: u64) -> io::Result<()> {
        refused()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        refused()
    }

    fn map_read(&self) -> io::Result<Mapping> {
        let mut copied = Mapping::copy_of(&*self.0);
        for _ in 1..TRIES {
            match &copied {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
                _ => break,
            }
            copied = Mapping::copy_of(&*self.0);
        }
        copied
    }

    fn map_write(&self, _writing: Writing) -> io::Result<MapWriter> {
        refused()
    }
}
