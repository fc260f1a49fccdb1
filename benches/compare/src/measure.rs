//! What the kernel says of a process, a directory and the disk under it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A number from a file of lines `Name: value`.
fn line_of(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Memory of a process that is its own and backed by no file, in bytes.
pub fn anonymous_memory(pid: u32) -> Option<u64> {
    Some(line_of(&format!("/proc/{pid}/status"), "RssAnon")? * 1024)
}

/// Bytes that a process has caused to be written to disk: pages are counted when they are made dirty, and again when
/// they are made dirty after having been written. What was cut off before it was written is not counted.
pub fn written_by(pid: u32) -> Option<u64> {
    let path = format!("/proc/{pid}/io");
    let cancelled = line_of(&path, "cancelled_write_bytes")?;
    Some(line_of(&path, "write_bytes")?.saturating_sub(cancelled))
}

/// Processor time of this process, all of its threads, in user and kernel.
pub fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the structure that it is given; zeroed it is valid too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// Counters of the disk that a directory lies on, since the machine was started: of all processes.
#[derive(Clone, Copy)]
pub struct Disk {
    pub flushes: Option<u64>,
    pub written_bytes: u64,
}

pub fn disk(dir: &Path) -> Option<Disk> {
    let stat = fs::read_to_string(block_device(dir)?.join("stat")).ok()?;
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Documentation/block/stat.rst: the 7th is sectors written, the 16th flush requests, where the kernel counts them.
    Some(Disk { flushes: fields.get(15).copied(), written_bytes: fields.get(6)? * 512 })
}

/// Where the kernel describes the disk of a directory.
pub fn block_device(dir: &Path) -> Option<PathBuf> {
    let device = fs::metadata(dir).ok()?.dev();
    let path = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    fs::canonicalize(path).ok()
}

/// What all files under a directory take.
#[derive(Default)]
pub struct Space {
    /// What they say their lengths are.
    pub length: u64,
    /// What is reserved for them on the disk.
    pub allocated: u64,
}

pub fn space(dir: &Path) -> Space {
    let mut space = Space::default();
    for entry in fs::read_dir(dir).expect("the directory can be listed").flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            let inner = self::space(&entry.path());
            space.length += inner.length;
            space.allocated += inner.allocated;
        } else {
            space.length += meta.len();
            space.allocated += meta.blocks() * 512;
        }
    }
    space
}

/// Waits until all that was written to the file system of a directory is on the disk.
pub fn sync_file_system(dir: &Path) {
    use std::os::fd::AsRawFd;
    let Ok(file) = fs::File::open(dir) else { return };
    // SAFETY: the descriptor is open as long as the file is.
    unsafe { libc::syncfs(file.as_raw_fd()) };
}
