//! The virtual machine: started once up to where it waits for orders, saved, and from there started for each power cut.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::initramfs::{self, READY};

/// Where a kernel is looked for, under `boot` and `lib/modules`; the root unless this is set.
const ROOT: &str = "MILLPOND_POWER_KERNEL";

/// Some starts hang; then it is tried anew.
const STARTS: u32 = 4;
const START_MAX: Duration = Duration::from_secs(100);
const SAVE_MAX: Duration = Duration::from_secs(60);

/// How long it may take from a restored state to the first note.
const RESUME_MAX: Duration = Duration::from_secs(30);

/// However little it has said by then, it is ended.
const LIFE_MAX: Duration = Duration::from_secs(10);

/// When a machine is ended: so long after it has said so much.
#[derive(Clone, Copy, Debug)]
pub struct When {
    pub bytes: usize,
    pub then: Duration,
}

pub struct Machine {
    dir: PathBuf,
    kernel: PathBuf,
}

impl Machine {
    /// `disk` stands for all disks that it will have, which must be as long.
    pub fn prepare(dir: &Path, disk: &Path) -> Result<Machine, String> {
        let (kernel, modules) = find_kernel()?;
        let machine = Machine { dir: dir.to_owned(), kernel };
        initramfs::write(&machine.file("initramfs"), &modules)?;
        let mut why = String::new();
        for _ in 0..STARTS {
            match machine.save(disk) {
                Ok(()) => return Ok(machine),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts it up, and saves its state when it waits for orders.
    fn save(&self, disk: &Path) -> Result<(), String> {
        let mut running = self.start(disk, &[])?;
        let mut heard = Vec::new();
        let until = Instant::now() + START_MAX;
        while !heard.ends_with(format!("{READY}\n").as_bytes()) {
            running.hear(&mut heard)?;
            if Instant::now() > until {
                return Err(format!("the machine does not start up: {}", self.console()));
            }
        }
        // So that it really waits.
        thread::sleep(Duration::from_millis(500));
        let state = self.file("state");
        let commands = format!("migrate file:{}\nquit\n", state.display());
        let mut monitor = running.qemu.stdin.take().expect("its standard input is the monitor");
        monitor.write_all(commands.as_bytes()).map_err(|error| error.to_string())?;
        let until = Instant::now() + SAVE_MAX;
        while running.qemu.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                return Err("the state of the machine cannot be saved".to_owned());
            }
            thread::sleep(Duration::from_millis(20));
        }
        match fs::metadata(&state) {
            Ok(found) if found.len() > 0 => Ok(()),
            _ => Err("the machine has saved no state".to_owned()),
        }
    }

    /// Starts it from its saved state with another disk, and ends it. What it has said.
    pub fn cut(&self, disk: &Path, orders: &str, when: When) -> Result<Vec<u8>, String> {
        let state = format!("file:{}", self.file("state").display());
        let mut running = self.start(disk, &["-incoming", &state])?;
        writeln!(running.port, "{orders}").map_err(|error| error.to_string())?;
        let (mut said, began) = (Vec::new(), Instant::now());
        while said.is_empty() {
            running.hear(&mut said)?;
            if began.elapsed() > RESUME_MAX {
                return Err(format!("{orders}: the machine says nothing: {}", self.console()));
            }
        }
        let until = Instant::now() + LIFE_MAX;
        while said.len() < when.bytes && Instant::now() < until {
            running.hear(&mut said)?;
        }
        thread::sleep(when.then);
        running.qemu.kill().unwrap();
        let _ = running.qemu.wait();
        // What it had said before is still under way.
        running.port.set_read_timeout(None).unwrap();
        running.port.read_to_end(&mut said).map_err(|error| error.to_string())?;
        let console = self.console();
        match console.contains("panic") {
            true => Err(format!("{orders}: {console}")),
            false => Ok(said),
        }
    }

    fn console(&self) -> String {
        fs::read(self.file("console"))
            .map_or(String::new(), |console| String::from_utf8_lossy(&console).into_owned())
    }

    fn start(&self, disk: &Path, more: &[&str]) -> Result<Running, String> {
        let socket = self.file("port");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(|error| error.to_string())?;
        let drive = format!("file={},if=none,format=raw,id=disk,cache=writeback", disk.display());
        let port = format!("socket,id=port,path={}", socket.display());
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "160", "-nodefaults"])
            .args(["-no-user-config", "-display", "none", "-monitor", "stdio"])
            .args(["-serial", &format!("file:{}", self.file("console").display())])
            .args([Path::new("-kernel"), &self.kernel])
            .args([Path::new("-initrd"), &self.file("initramfs")])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"])
            // At once, by the processor that writes: a note must be out before anything that follows it is on the disk.
            .args(["-device", "virtio-serial-pci,ioeventfd=off"])
            .args(["-chardev", &port, "-device", "virtserialport,chardev=port,name=notes"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("qemu-system-x86_64: {error}"))?;
        let mut ending = Ending(Some(qemu));
        let port = accept(&listener, ending.0.as_mut().expect("it was just started"))?;
        port.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let qemu = ending.0.take().expect("it was just started");
        Ok(Running { qemu, port })
    }
}

/// A machine that has not come up is ended.
struct Ending(Option<Child>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(mut qemu) = self.0.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}

struct Running {
    qemu: Child,
    port: UnixStream,
}

impl Running {
    /// Takes in what it says, for a moment.
    fn hear(&mut self, heard: &mut Vec<u8>) -> Result<(), String> {
        let mut bytes = [0; 4096];
        match self.port.read(&mut bytes) {
            Ok(0) => Err("the machine has ended".to_owned()),
            Ok(count) => {
                heard.extend(&bytes[..count]);
                Ok(())
            }
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream, String> {
    listener.set_nonblocking(true).unwrap();
    loop {
        if let Ok((port, _)) = listener.accept() {
            port.set_nonblocking(false).unwrap();
            return Ok(port);
        }
        if let Some(status) = qemu.try_wait().unwrap() {
            return Err(format!("qemu-system-x86_64 has ended: {status}"));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Debian's kernel for virtual machines: it needs few modules.
fn find_kernel() -> Result<(PathBuf, PathBuf), String> {
    let root = std::env::var(ROOT).unwrap_or("/".to_owned());
    let root = Path::new(&root);
    let boot = fs::read_dir(root.join("boot")).map_err(|error| format!("boot: {error}"))?;
    let names = boot.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let versions = names.filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()));
    let version = versions.filter(|version| version.contains("cloud")).max();
    let version = version.ok_or("there is no kernel of linux-image-cloud-amd64")?;
    let kernel = root.join("boot").join(format!("vmlinuz-{version}"));
    Ok((kernel, root.join("lib/modules").join(version)))
}
