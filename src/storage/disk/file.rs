//! An open file of a real directory: memmap2 for its mappings, fs2 for the allocation of its space.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fs2::FileExt as _;
use memmap2::MmapOptions;

use super::super::{File, MapWriter, Mapping, Prepare, Writing};

/// How many zeroes are written at a time: a larger write would leave a large folio in the page cache, all of which the
/// kernel counts as dirty, against whatever limits there are, when a byte of it is written.
const ZEROES: [u8; 4096] = [0; 4096];

/// How many zeroes are written before they are synced.
const ZEROED_UNSYNCED_MAX: u64 = 1 << 20;

/// An open file, and whether a writer of its mapping lives.
pub(super) struct RealFile {
    file: fs::File,
    writer: Mutex<Weak<()>>,
}

impl RealFile {
    pub(super) fn new(file: fs::File) -> Self {
        Self { file, writer: Mutex::default() }
    }

    /// Makes the empty file `len` bytes long, with blocks for all of them.
    pub(super) fn reserve(&self, dir: &Path, len: u64, prepare: Prepare) -> io::Result<()> {
        if len == 0 {
            // Systems refuse to allocate nothing.
            return Ok(());
        }
        let allocated = self.file.allocate(len).is_ok();
        // fs2 does not pass on why posix_fallocate failed (it reads errno, which that function does not set). If not
        // for want of space, then writing tells: it allocates too, on any file system, and reports honestly.
        if !allocated && fs2::available_space(dir)? < len {
            return Err(ErrorKind::StorageFull.into());
        }
        if !allocated || prepare == Prepare::Zero {
            let mut at = 0;
            while at < len {
                let count = (len - at).min(ZEROES.len() as u64);
                write_all_at(&self.file, at, &ZEROES[..count as usize])?;
                at += count;
                if at.is_multiple_of(ZEROED_UNSYNCED_MAX) {
                    // In small portions, so that a sync of the log beside this does not wait for all of it.
                    self.file.sync_data()?;
                }
            }
        }
        // Not every system's allocation changes the length.
        if self.len()? != len { self.file.set_len(len) } else { Ok(()) }
    }

    /// `ResourceBusy` while a writer of the mapping lives: the file is its alone.
    fn free_of_writer(&self) -> io::Result<MutexGuard<'_, Weak<()>>> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.strong_count() > 0 { Err(ErrorKind::ResourceBusy.into()) } else { Ok(writer) }
    }

    /// The file's length, as mappings want it.
    fn map_len(&self) -> io::Result<usize> {
        usize::try_from(self.len()?).map_err(|_| ErrorKind::FileTooLarge.into())
    }
}

impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// A block that is reserved, and neither written nor in the page cache, counts as a hole.
    #[cfg(target_os = "linux")]
    fn data_end(&self) -> io::Result<u64> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        let mut end = 0;
        loop {
            match seek(&self.file, SeekFrom::Data(end)) {
                Ok(data) => end = seek(&self.file, SeekFrom::Hole(data))?,
                Err(Errno::NXIO) => return Ok(end),
                // Not every file system can tell.
                Err(_) => return self.len(),
            }
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        read_exact_at(&self.file, offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _writer = self.free_of_writer()?;
        write_all_at(&self.file, offset, bytes)
    }

    fn lengthen(&self, len: u64) -> io::Result<()> {
        let _writer = self.free_of_writer()?;
        let before = self.len()?;
        if self.file.allocate(len).is_ok() && self.len()? == len {
            return Ok(());
        }
        // As in `reserve`: writing tells why.
        let zeroes = vec![0; 64 << 10];
        let mut at = before;
        while at < len {
            let count = (len - at).min(zeroes.len() as u64);
            if let Err(error) = write_all_at(&self.file, at, &zeroes[..count as usize]) {
                let _ = self.file.set_len(before);
                return Err(error);
            }
            at += count;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _writer = self.free_of_writer()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn map_read(&self) -> io::Result<Mapping> {
        match self.map_len()? {
            0 => Ok(Mapping::empty()),
            len => {
                let map = MmapOptions::new().len(len).map_raw_read_only(&self.file)?;
                Ok(Mapping::of_file(map))
            }
        }
    }

    fn map_write(&self, writing: Writing) -> io::Result<MapWriter> {
        let mut writer = self.free_of_writer()?;
        let sole = Arc::new(());
        *writer = Arc::downgrade(&sole);
        match self.map_len()? {
            0 => Ok(MapWriter::empty(sole)),
            len => {
                let map = MmapOptions::new().len(len).map_raw(&self.file)?;
                // Elsewhere a mapping need not show what calls have written.
                let calls = writing == Writing::Calls && cfg!(target_os = "linux");
                let calls = if calls { Some(self.file.try_clone()?) } else { None };
                Ok(MapWriter::of_file(map, calls, sole))
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &fs::File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(unix)]
pub(in crate::storage) fn write_all_at(
    file: &fs::File,
    offset: u64,
    bytes: &[u8],
) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &fs::File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => {
                offset += count as u64;
                buf = &mut buf[count..];
            }
        }
    }
    Ok(())
}

#[cfg(windows)]
pub(in crate::storage) fn write_all_at(
    file: &fs::File,
    mut offset: u64,
    mut bytes: &[u8],
) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(ErrorKind::WriteZero.into()),
            count => {
                offset += count as u64;
                bytes = &bytes[count..];
            }
        }
    }
    Ok(())
}
