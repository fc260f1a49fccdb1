//! The disk itself: a process that serves an image as a file, by the protocol of FUSE, and writes down each write and flush
//! before it confirms it. A loop device makes a block device of that file.
//!
//! It takes one request after the other, so the order of its log is the order of the device. It is a process of its own,
//! since a thread could need the memory map that a page fault on the mounted file system holds while it waits for that
//! thread. It ends when its file is unmounted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use crate::device::Flushes;
use crate::log::Writer;
use crate::mount;

const ORDERS: &str = "MILLPOND_BLOCK_SERVER";

/// What the server is told, through the environment.
pub struct Orders {
    pub image: PathBuf,
    pub log: PathBuf,
    /// An empty file, in whose place the image is served.
    pub export: PathBuf,
    pub flushes: Flushes,
}

impl Orders {
    pub fn encode(&self) -> (&'static str, String) {
        let Orders { image, log, export, flushes } = self;
        let kept = *flushes == Flushes::Kept;
        (ORDERS, format!("{}\n{}\n{}\n{kept}", image.display(), log.display(), export.display()))
    }

    fn decode(text: &str) -> Option<Orders> {
        let mut lines = text.lines();
        Some(Orders {
            image: lines.next()?.into(),
            log: lines.next()?.into(),
            export: lines.next()?.into(),
            flushes: if lines.next()? == "true" { Flushes::Kept } else { Flushes::Ignored },
        })
    }
}

pub fn run_if_started() {
    let Ok(text) = std::env::var(ORDERS) else { return };
    let orders = Orders::decode(&text).expect("orders that this binary has written");
    match mount_export(&orders) {
        Ok(mut fuse) => Server::new(&orders).serve(&mut fuse),
        // Whoever has started this sees that nothing is served, and says so.
        Err(_) => std::process::exit(1),
    }
}

/// Mounts a file system that is one file. Its requests come out of the file that is returned.
fn mount_export(orders: &Orders) -> Result<File, String> {
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let fuse = fuse.map_err(|error| error.to_string())?;
    // It is handed over as the standard input of the program that mounts; the root is a regular file.
    let stdin = fuse.try_clone().map_err(|error| error.to_string())?;
    mount::run(
        Command::new("mount")
            .args(["-i", "-t", "fuse", "-o", "fd=0,rootmode=100000,user_id=0,group_id=0"])
            .args(["millpond-block-log".as_ref(), orders.export.as_os_str()])
            .stdin(stdin),
    )?;
    Ok(fuse)
}

const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const INIT: u32 = 26;
const DESTROY: u32 = 38;
/// These get no answer.
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// Reads and writes come side by side (asynchronous, direct), of up to this.
const REQUEST_BYTES_MAX: usize = 1 << 20;
const ASYNC_READ: u32 = 1;
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;

const DIRECT_IO: u32 = 1;
const REGULAR_FILE: u32 = 0o100_600;

const ENOSYS: i32 = 38;
const ENODEV: i32 = 19;

/// What comes before the fields of a request: its length, what it asks for, its number, and who asks.
const HEADER: usize = 40;

/// The fields before the bytes of a write.
const WRITE_HEADER: usize = 40;

struct Server {
    image: File,
    bytes: u64,
    log: Writer,
    flushes: Flushes,
}

impl Server {
    fn new(orders: &Orders) -> Server {
        let image = OpenOptions::new().read(true).write(true).open(&orders.image).unwrap();
        let bytes = image.metadata().unwrap().len();
        Server { image, bytes, log: Writer::create(&orders.log), flushes: orders.flushes }
    }

    fn serve(&mut self, fuse: &mut File) {
        let mut request = vec![0; HEADER + WRITE_HEADER + REQUEST_BYTES_MAX + 4096];
        loop {
            let len = match fuse.read(&mut request) {
                Ok(len) => len,
                Err(error) if error.raw_os_error() == Some(ENODEV) => return,
                // A request that was given up before it was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => panic!("/dev/fuse: {error}"),
            };
            let (header, fields) = request[..len].split_at(HEADER);
            let kind = u32_at(header, 4);
            if [FORGET, INTERRUPT, BATCH_FORGET].contains(&kind) {
                continue;
            }
            let (error, body) = match self.answer(kind, fields) {
                Some(body) => (0, body),
                None => (-ENOSYS, Vec::new()),
            };
            let mut answer = ((16 + body.len()) as u32).to_le_bytes().to_vec();
            answer.extend(error.to_le_bytes());
            answer.extend(&header[8..16]);
            answer.extend(body);
            // Who has asked may be gone meanwhile.
            let _ = fuse.write(&answer);
        }
    }

    /// None for what is not offered: the kernel then does without it, and writes zeros instead of discarding, say.
    fn answer(&mut self, kind: u32, fields: &[u8]) -> Option<Vec<u8>> {
        Some(match kind {
            INIT => init(),
            GETATTR => self.attributes(),
            OPEN => [u64_bytes(0), u32_bytes(DIRECT_IO), u32_bytes(0)].concat(),
            READ => {
                let (offset, size) = (u64_at(fields, 8), u32_at(fields, 16));
                let end = (offset + u64::from(size)).min(self.bytes);
                let mut bytes = vec![0; end.saturating_sub(offset) as usize];
                self.image.read_exact_at(&mut bytes, offset).unwrap();
                bytes
            }
            WRITE => {
                let offset = u64_at(fields, 8);
                let bytes = &fields[WRITE_HEADER..];
                assert!(offset + bytes.len() as u64 <= self.bytes, "a write behind the end");
                self.image.write_all_at(bytes, offset).unwrap();
                self.log.write(offset, bytes);
                [u32_bytes(bytes.len() as u32), u32_bytes(0)].concat()
            }
            FSYNC => {
                if self.flushes == Flushes::Kept {
                    self.log.flush();
                }
                Vec::new()
            }
            RELEASE | DESTROY => Vec::new(),
            _ => return None,
        })
    }

    fn attributes(&self) -> Vec<u8> {
        let valid = [u64_bytes(1 << 30), u64_bytes(0)].concat();
        let inode = [u64_bytes(1), u64_bytes(self.bytes), u64_bytes(self.bytes / 512)].concat();
        let times = [0; 3 * 8 + 3 * 4].to_vec();
        let links = 1;
        let rest = [REGULAR_FILE, links, 0, 0, 0, 4096, 0].map(u32_bytes).concat();
        [valid, inode, times, rest].concat()
    }
}

fn init() -> Vec<u8> {
    let flags = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES;
    let (background, congested) = (64_u16, 48_u16);
    let pages = (REQUEST_BYTES_MAX / 4096) as u16;
    let mut answer = [7, 31, 0, flags].map(u32_bytes).concat();
    answer.extend([background, congested].map(u16::to_le_bytes).concat());
    answer.extend([REQUEST_BYTES_MAX as u32, 1].map(u32_bytes).concat());
    answer.extend(u32_bytes(pages.into()));
    answer.resize(64, 0);
    answer
}

fn u32_bytes(number: u32) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn u64_bytes(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}
