//! A disk that logs what it takes. It is taken down when it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::{self, Log};
use crate::mount::{FileSystem, run, unmount};
use crate::server::Orders;

/// How long the server of a logged device may take to begin.
const START_MAX: Duration = Duration::from_secs(20);

/// What a workload runs on.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    pub file_system: FileSystem,
    pub flushes: Flushes,
}

/// Whether the disk does what it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    Kept,
    /// It confirms them and does nothing. No store survives that, so a check must notice.
    Ignored,
}

/// A block device over an image, which logs every write and flush: a file that `server` serves, and a loop device over it.
pub struct LoggedDevice {
    device: Option<PathBuf>,
    export: PathBuf,
    server: Child,
    log: PathBuf,
    numbers: File,
}

impl LoggedDevice {
    /// `image` is written to. The log and what the server needs lie in `dir`.
    pub fn start(image: &Path, dir: &Path, flushes: Flushes) -> Result<LoggedDevice, String> {
        let (log, export) = (dir.join("log"), dir.join("export"));
        for file in [&log, &export] {
            File::create(file).unwrap();
        }
        let numbers = File::open(&log).unwrap();
        let orders =
            Orders { image: image.to_owned(), log: log.clone(), export: export.clone(), flushes };
        let (key, value) = orders.encode();
        let server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server", "--ignored", "--nocapture"])
            .env(key, value)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("the server: {error}"))?;
        let mut started = LoggedDevice { device: None, export, server, log, numbers };
        wait_for_export(&mut started.server, &started.export)?;
        // Direct, so that nothing is kept back between the file system and the log.
        let attach = ["--find", "--show", "--direct-io=on"];
        let device = run(Command::new("losetup").args(attach).arg(&started.export))?;
        started.device = Some(device.into());
        Ok(started)
    }

    pub fn path(&self) -> &Path {
        self.device.as_deref().expect("it was started")
    }

    /// How many writes and flushes it has taken.
    pub fn position(&self) -> u64 {
        log::count(&self.numbers)
    }

    /// Ends the device, which nobody has mounted any more.
    pub fn finish(self) -> Log {
        let path = self.log.clone();
        drop(self);
        Log::read(&path)
    }
}

impl Drop for LoggedDevice {
    fn drop(&mut self) {
        let detached = self.device.as_ref().map_or(Ok(String::new()), |device| {
            run(Command::new("losetup").arg("--detach").arg(device))
        });
        if let Err(why) = detached {
            eprintln!("a device stays attached: {why}");
        }
        unmount(&self.export);
        // It ends by itself, if it was mounted; its log is complete then.
        if self.server.try_wait().unwrap().is_none() && !is_served(&self.export) {
            let _ = self.server.wait();
        }
    }
}

/// The server's file is empty until it is served.
fn is_served(export: &Path) -> bool {
    fs::metadata(export).is_ok_and(|found| found.len() > 0)
}

fn wait_for_export(server: &mut Child, export: &Path) -> Result<(), String> {
    let until = Instant::now() + START_MAX;
    while !is_served(export) {
        let ended = server.try_wait().unwrap();
        if ended.is_some() || Instant::now() > until {
            let _ = server.kill();
            return Err("no file can be served by FUSE, which takes root and /dev/fuse".to_owned());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
