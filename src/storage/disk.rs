//! A real directory: `std::fs`, and fs2 for the locks.
//!
//! With its [`file`]s it adds nothing to what the system does but three things: a file's space is really reserved or the
//! file is not there; a new directory's own name is made durable; and a handle gives out one
//! [`MapWriter`](super::MapWriter) at a time.

#![expect(clippy::disallowed_methods, reason = "the home of files")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fs2::FileExt as _;

use self::file::{RealFile, write_all_at};
use super::{Entry, File, Hold, LOCK, Lock, LockError, Prepare, Storage};

pub(super) mod file;

/// No note is longer; what else lies in a lock file is not read.
const NOTE_MAX_BYTES: u64 = 4096;

/// A directory of the file system.
#[derive(Debug)]
pub(crate) struct RealDirectory {
    /// Absolute, so that a later change of the working directory changes nothing.
    dir: PathBuf,
    /// Open for its syncs, so that none fails for want of a file descriptor. None where there is nothing to sync.
    synced: Option<fs::File>,
    /// What `create_dir` was called for, and `sync_dir` syncs too.
    subdirectories: Mutex<BTreeSet<PathBuf>>,
}

impl RealDirectory {
    /// Opens `dir`, and makes it and its parents if they are missing. Fails with `NotADirectory` if it is a file.
    ///
    /// When it returns, the names of the directories that it made are durable.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let dir = std::path::absolute(dir)?;
        match fs::metadata(&dir) {
            Ok(found) if found.is_dir() => {
                // A process before may have made it and died before its sync. If this one may not read the parent,
                // then it did not make the directory either.
                let _ = dir.parent().map_or(Ok(()), sync_directory);
            }
            Ok(_) => return Err(ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let missing = dir.ancestors().take_while(|path| !path.exists()).count();
                fs::create_dir_all(&dir)?;
                for parent in dir.ancestors().skip(1).take(missing) {
                    sync_directory(parent)?;
                }
            }
            Err(error) => return Err(error),
        }
        let synced = open_directory(&dir)?;
        Ok(Self { dir, synced, subdirectories: Mutex::default() })
    }

    /// Makes a directory beside `dir` that is to become `dir` by [`become_dir`](Self::become_dir). `AlreadyExists` if
    /// there is anything in `dir`. What an earlier try left is removed.
    pub(crate) fn beside(dir: &Path) -> io::Result<Self> {
        let dir = std::path::absolute(dir)?;
        match fs::read_dir(&dir) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(ErrorKind::AlreadyExists.into());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut name = dir.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        name.push(".partial");
        let beside = dir.with_file_name(name);
        if fs::metadata(&beside).is_ok() {
            fs::remove_dir_all(&beside)?;
        }
        Self::open(&beside)
    }

    /// Gives a directory that was made by [`beside`](Self::beside) the name that it was made for, durably.
    pub(crate) fn become_dir(self, dir: &Path) -> io::Result<()> {
        let dir = std::path::absolute(dir)?;
        fs::rename(&self.dir, &dir)?;
        dir.parent().map_or(Ok(()), sync_directory)
    }

    /// Opens `dir` if it is there, to read.
    pub(crate) fn existing(dir: &Path) -> io::Result<Self> {
        let dir = std::path::absolute(dir)?;
        if !fs::metadata(&dir)?.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        Ok(Self { dir, synced: None, subdirectories: Mutex::default() })
    }

    fn open_with(&self, name: &str, options: &fs::OpenOptions) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile::new(options.open(self.dir.join(name))?)))
    }

    fn take_lock(&self) -> Result<RealLock, LockError> {
        // Not truncated: until the lock is taken, the content belongs to the holder.
        let path = self.dir.join(LOCK);
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let taken = file.try_lock_exclusive();
        let note = read_note(&file);
        match taken {
            Ok(()) => Ok(RealLock { file, previous: note? }),
            Err(error) if is_contended(&error) => {
                Err(LockError::Held { note: note.unwrap_or_default() })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Storage for RealDirectory {
    fn lock(&self) -> Result<Box<dyn Lock>, LockError> {
        Ok(Box::new(self.take_lock()?))
    }

    fn list_in(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.dir.join(dir))? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed since the directory was read.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let is_file = metadata.is_file();
            entries.push(Entry {
                name: entry.file_name().to_string_lossy().into_owned(),
                len: if is_file { metadata.len() } else { 0 },
                is_file,
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create(&self, name: &str, len: u64, prepare: Prepare) -> io::Result<Arc<dyn File>> {
        let path = self.dir.join(name);
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let file = RealFile::new(file);
        if let Err(error) = file.reserve(&self.dir, len, prepare) {
            // The error that matters is the first one.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.open_with(name, fs::OpenOptions::new().read(true).write(true))
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.open_with(name, fs::OpenOptions::new().read(true))
    }

    fn link(&self, name: &str, to: &dyn Storage) -> io::Result<()> {
        fs::hard_link(self.dir.join(name), to.path(name))
    }

    fn is_linked(&self, name: &str) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(self.dir.join(name)).is_ok_and(|found| found.nlink() > 1)
        }
        // Not told there, so that it is taken for granted.
        #[cfg(not(unix))]
        {
            let _ = name;
            true
        }
    }

    fn hold(&self, name: &str) -> io::Result<Hold> {
        let file = fs::File::open(self.dir.join(name))?;
        fs2::FileExt::try_lock_shared(&file)?;
        Ok(Box::new(RealHold(file)))
    }

    fn is_held(&self, name: &str) -> bool {
        let free = || -> io::Result<()> {
            let file = fs::OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
            file.try_lock_exclusive()?;
            // As for a hold, closing the file is not enough.
            fs2::FileExt::unlock(&file)
        };
        // Where the system does not say, it is taken for granted.
        free().is_err_and(|error| error.kind() != ErrorKind::NotFound)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        let path = self.dir.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
            result => result?,
        }
        self.subdirectories.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let subdirectories =
            self.subdirectories.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for subdirectory in &subdirectories {
            // Nothing that a store needs lies there.
            let _ = sync_directory(subdirectory);
        }
        self.synced.as_ref().map_or(Ok(()), fs::File::sync_all)
    }

    fn boot_id(&self) -> String {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }
}

/// The locked file. The system releases the lock when the process ends.
#[derive(Debug)]
struct RealLock {
    file: fs::File,
    previous: String,
}

impl Lock for RealLock {
    fn previous_note(&self) -> &str {
        &self.previous
    }

    fn note(&self, text: &str) -> io::Result<()> {
        // Cut off last: emptied first, the file would give its block back, and a full disk might not have another.
        write_all_at(&self.file, 0, text.as_bytes())?;
        self.file.set_len(text.len() as u64)
    }
}

impl Drop for RealLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is being started shares it until it runs its program.
        let _ = fs2::FileExt::unlock(&self.file);
    }
}

/// The held file. The system releases it when the process ends.
#[derive(Debug)]
struct RealHold(fs::File);

impl Drop for RealHold {
    fn drop(&mut self) {
        // As for the lock of the directory, closing the file is not enough.
        let _ = fs2::FileExt::unlock(&self.0);
    }
}

fn read_note(file: &fs::File) -> io::Result<String> {
    let mut note = Vec::new();
    file.take(NOTE_MAX_BYTES).read_to_end(&mut note)?;
    Ok(String::from_utf8_lossy(&note).into_owned())
}

fn is_contended(error: &io::Error) -> bool {
    error.raw_os_error() == fs2::lock_contended_error().raw_os_error()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    open_directory(path)?.map_or(Ok(()), |directory| directory.sync_all())
}

#[cfg(unix)]
fn open_directory(path: &Path) -> io::Result<Option<fs::File>> {
    fs::File::open(path).map(Some)
}

/// Elsewhere a directory cannot be opened as a file, and its entries are left to the file system.
#[cfg(not(unix))]
fn open_directory(_path: &Path) -> io::Result<Option<fs::File>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lock_is_free_although_a_child_process_shares_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let storage = RealDirectory::open(dir.path()).unwrap();
        let lock = storage.take_lock().unwrap();
        let shared = lock.file.try_clone().unwrap();
        assert!(storage.take_lock().is_err());
        drop(lock);
        assert!(storage.take_lock().is_ok());
        drop(shared);
    }
}
