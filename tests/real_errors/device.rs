//! A file system on a device whose errors can be switched on: nbdkit keeps the bytes and has the errors, nbdfuse makes a
//! file of it, and that is mounted as any image is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::run;

const BYTES: &str = "400M";

/// The servers must have begun within this time.
const BEGIN_MAX: Duration = Duration::from_secs(20);

/// Which calls of the device fail while errors are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    Writes,
    Reads,
}

pub struct Device {
    base: TempDir,
    loop_device: Option<String>,
    is_mounted: bool,
    servers: Vec<Child>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.fail(false);
        self.unmount();
        let _ = run("umount", &[path(&self.file_system())]);
        let _ = run("umount", &[path(&self.view())]);
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a directory for temporary files with a plain name")
}

impl Device {
    /// A device with a new file system of this kind on it, mounted.
    pub fn new(kind: &str, fails: Fails) -> Result<Device, String> {
        for tool in ["nbdkit", "nbdfuse"] {
            run(tool, &["--version"])?;
        }
        let base = tempfile::tempdir().unwrap();
        let mut device = Device { base, loop_device: None, is_mounted: false, servers: Vec::new() };
        for dir in [device.view(), device.file_system()] {
            fs::create_dir(dir).unwrap();
        }
        device.serve(fails)?;
        let file = device.view().join("nbd");
        run(&format!("mkfs.{kind}"), &["-q", path(&file)])?;
        device.mount()?;
        Ok(device)
    }

    fn serve(&mut self, fails: Fails) -> Result<(), String> {
        let socket = self.base.path().join("socket");
        let (writes, reads) = match fails {
            Fails::Writes => ("100%", "0"),
            Fails::Reads => ("0", "100%"),
        };
        let mut kit = Command::new("nbdkit");
        kit.arg("--unix").arg(&socket).args(["--filter=error", "--foreground", "memory", BYTES]);
        kit.arg("error=EIO");
        kit.arg(format!("error-pwrite-rate={writes}")).arg(format!("error-zero-rate={writes}"));
        kit.arg(format!("error-trim-rate={writes}")).arg(format!("error-pread-rate={reads}"));
        kit.arg(format!("error-file={}", self.switch().display()));
        self.start(kit, &socket)?;
        let mut fuse = Command::new("nbdfuse");
        fuse.arg(self.view()).arg(format!("nbd+unix:///?socket={}", socket.display()));
        self.start(fuse, &self.view().join("nbd"))
    }

    /// Starts a server, and waits for what it makes.
    fn start(&mut self, mut server: Command, makes: &Path) -> Result<(), String> {
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.servers.push(server.map_err(|error| error.to_string())?);
        let until = Instant::now() + BEGIN_MAX;
        while !makes.exists() {
            if Instant::now() > until {
                return Err(format!("{} does not come", makes.display()));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn view(&self) -> PathBuf {
        self.base.path().join("device")
    }

    fn switch(&self) -> PathBuf {
        self.base.path().join("errors-are-on")
    }

    /// Where the file system is mounted.
    pub fn file_system(&self) -> PathBuf {
        self.base.path().join("mounted")
    }

    /// Switches the errors on or off.
    pub fn fail(&self, on: bool) {
        if on {
            fs::write(self.switch(), "").unwrap();
        } else {
            let _ = fs::remove_file(self.switch());
        }
    }

    /// Past the page cache of the file that the device is, so that every read and write gets to it.
    pub fn mount(&mut self) -> Result<(), String> {
        let file = self.view().join("nbd");
        let device = run("losetup", &["--find", "--show", "--direct-io=on", path(&file)])?;
        self.loop_device = Some(device.clone());
        run("mount", &[&device, path(&self.file_system())])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Also forgets all that the kernel has in memory of it.
    pub fn unmount(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            run("umount", &[path(&self.file_system())]).unwrap();
        }
        if let Some(device) = self.loop_device.take() {
            run("losetup", &["--detach", &device]).unwrap();
        }
    }

    pub fn remount(&mut self) {
        self.unmount();
        self.mount().unwrap();
    }
}
