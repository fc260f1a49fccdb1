//! What the machine starts from: an archive with a shell, the kernel's modules for its devices, and this very program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::{MOUNTED, ORDERS};
use crate::mount::run;

/// In the order in which they are loaded. What the kernel has built in is passed over.
const MODULES: [&str; 9] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "libcrc32c",
    "xfs",
];

/// What the machine prints on its console once it is up.
pub const READY: &str = "ready";

/// Waits for orders, which come after the state of the machine has been saved: the file system, a boot id, a task, a seed.
/// The boot id is put in the place of the machine's own, which each start from the same state would have.
fn init() -> String {
    format!(
        "#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in {modules}; do
    if [ -e /modules/$module.ko ]; then $b insmod /modules/$module.ko; fi
done
for found in /dev/vport*; do port=$found; done
exec 3<>$port
echo {READY} >&3
read kind boot task seed <&3
# One process at a time may have the port open.
exec 3>&-
echo $boot >/boot_id
$b mount --bind /boot_id /proc/sys/kernel/random/boot_id
$b mount -t $kind /dev/vda {MOUNTED} || echo panicked: cannot mount
export {ORDERS}=\"$task $seed $port\"
/program --exact guest --ignored --nocapture
echo panicked: the guest has ended
while true; do $b sleep 1000; done
",
        modules = MODULES.join(" "),
    )
}

/// Writes the archive. `modules` is the directory of the kernel's modules.
pub fn write(archive: &Path, modules: &Path) -> Result<(), String> {
    let mut cpio = Cpio::default();
    for dir in ["bin", "dev", "proc", "sys", "modules", "tmp", &MOUNTED[1..]] {
        cpio.add(dir, DIRECTORY, &[]);
    }
    cpio.add("init", PROGRAM, init().as_bytes());
    cpio.add("bin/busybox", PROGRAM, &read(&busybox()?)?);
    for name in MODULES {
        if let Some(module) = find(modules, &format!("{name}.ko")) {
            cpio.add(&format!("modules/{name}.ko"), PROGRAM, &read(&module)?);
        }
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    cpio.add("program", PROGRAM, &read(&program)?);
    for library in libraries(&program)? {
        cpio.add_with_parents(&library, &read(&library)?);
    }
    fs::write(archive, cpio.finish()).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// One that needs no libraries.
fn busybox() -> Result<PathBuf, String> {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    places.into_iter().find(|path| path.exists()).ok_or("there is no busybox".to_owned())
}

/// The libraries that a program is linked with, the one that loads them included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, String> {
    let listed = run(Command::new("ldd").arg(program))?;
    let words = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(|word| PathBuf::from(word.trim_end_matches(':'))).collect())
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        let is_dir = path.is_dir() && !path.is_symlink();
        let found = if is_dir { find(&path, name) } else { None };
        if found.is_some() {
            return found;
        }
        if path.file_name().is_some_and(|found| found == name) {
            return Some(path);
        }
    }
    None
}

const PROGRAM: u32 = 0o100_755;
const DIRECTORY: u32 = 0o040_755;

/// An archive in the format that the kernel reads: "newc", of numbers in hexadecimal.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.names.push(name.to_owned());
        let inode = self.names.len();
        let (links, len, name_len) = (1, content.len(), name.len() + 1);
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{len:08x}{0:08x}{0:08x}{0:08x}{0:08x}\
             {name_len:08x}{0:08x}",
            0
        );
        self.bytes.extend(header.bytes().chain(name.bytes()).chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn add_with_parents(&mut self, path: &Path, content: &[u8]) {
        let name = path.display().to_string();
        let name = name.trim_start_matches('/');
        for (at, _) in name.match_indices('/') {
            if !self.names.iter().any(|known| *known == name[..at]) {
                self.add(&name[..at], DIRECTORY, &[]);
            }
        }
        self.add(name, PROGRAM, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
