//! File systems: making them, mounting them, and unmounting them when they are dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long whoever still looks at a file system (somebody who lists all mounts, say) may hold up an unmount.
const BUSY_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    /// Makes an empty one in a file. Blocks are of 4 KiB, as on larger disks.
    pub fn make(self, image: &Path, bytes: u64) -> Result<(), String> {
        File::create(image).unwrap().set_len(bytes).unwrap();
        let arguments: &[&str] = match self {
            FileSystem::Ext4 => &["-q", "-F", "-b", "4096"],
            FileSystem::Xfs => &["-q", "-f"],
        };
        let program = format!("mkfs.{}", self.name());
        run(Command::new(program).args(arguments).arg(image)).map(drop)
    }
}

/// Runs a program. What it has printed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// A mounted file system.
pub struct Mounted {
    dir: PathBuf,
}

impl Mounted {
    /// Mounts an image, or a device, whose journal is replayed.
    pub fn mount(what: &Path, file_system: FileSystem, dir: &Path) -> Result<Mounted, String> {
        fs::create_dir_all(dir).unwrap();
        let options = match file_system {
            FileSystem::Ext4 => "rw",
            // Copies of the same one are mounted beside each other, and all have its uuid.
            FileSystem::Xfs => "rw,nouuid",
        };
        // For a file, `mount` makes a loop device, which goes with the mount.
        let arguments = ["-t", file_system.name(), "-o", options];
        run(Command::new("mount").args(arguments).args([what, dir]))?;
        Ok(Mounted { dir: dir.to_owned() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.dir);
    }
}

/// Whoever still looks at it may hold it up for a moment.
pub fn unmount(target: &Path) {
    let until = Instant::now() + BUSY_MAX;
    while let Err(why) = run(Command::new("umount").arg(target)) {
        if why.contains("not mounted") {
            return;
        }
        if Instant::now() > until {
            return eprintln!("{} cannot be unmounted: {why}", target.display());
        }
        thread::sleep(Duration::from_millis(5));
    }
}
