//! Holds a process at its system calls, and kills it there or makes a call fail.
//!
//! By ptrace, as a debugger does it. All threads are counted together, so that every call of a run has one number; a
//! process is killed before a call or behind it, and a call can be made to write less than it was to.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::child::{Orders, READY};

const PAGE_BYTES: u64 = 4096;

/// The calls that change files, their names, their locks or what is mapped of them; and the names of the calls.
const COUNTED: [(c_long, &str); 26] = [
    (libc::SYS_openat, "openat"),
    (libc::SYS_open, "open"),
    (libc::SYS_creat, "creat"),
    (libc::SYS_write, "write"),
    (libc::SYS_pwrite64, "pwrite"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_truncate, "truncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_msync, "msync"),
    (libc::SYS_sync_file_range, "sync_file_range"),
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_link, "link"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_madvise, "madvise"),
    (libc::SYS_flock, "flock"),
    (libc::SYS_copy_file_range, "copy_file_range"),
];

/// One call of a run.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: &'static str,
    /// How many bytes a write was to write.
    bytes: u64,
    /// Where in the file.
    offset: u64,
    /// The file that it is about; of a renaming the new name.
    pub path: PathBuf,
    makes_a_file: bool,
    /// The device and number of a regular file that is open.
    file: Option<(u64, u64)>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.path.display())
    }
}

impl Call {
    /// How many bytes reach the file if the call ends after the first of its pages.
    fn first_page(&self) -> Option<u64> {
        let bytes = PAGE_BYTES - self.offset % PAGE_BYTES;
        (self.name == "pwrite" && bytes < self.bytes).then_some(bytes)
    }

    /// Whether it writes more than a page.
    pub fn has_pages(&self) -> bool {
        self.first_page().is_some()
    }

    fn is_sync(&self) -> bool {
        matches!(self.name, "fsync" | "fdatasync" | "msync" | "sync_file_range")
    }
}

/// What is to happen at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Killed before the call is made.
    KillBefore,
    /// Killed when it has been made, and nobody knows.
    KillAfter,
    /// Killed after the first page of a write that has several; a write of one page as by `KillAfter`.
    KillWithin,
    /// The call is not made, and fails.
    Fail(Errno),
    /// A write of several pages ends after the first, which is no error.
    Shorten,
}

/// The call that is hit. Threads make no two runs alike, so a blow that suits only some calls counts only those.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// The call of this number, counted from 0.
    Any(usize),
    /// The call of this number among those of one name.
    Of(&'static str, usize),
}

/// What became of a process.
#[derive(Debug)]
pub struct Outcome {
    /// Every call, up to the blow and after it.
    pub calls: Vec<Call>,
    /// The call that was hit; None if the run had ended before.
    pub hit: Option<Call>,
    /// How it ended: by itself with this status, or killed.
    pub status: Option<i32>,
    /// A file that was synced with success after a sync of it had failed.
    pub synced_again: Option<PathBuf>,
}

/// Runs a child and lets one blow fall, if there is any.
#[expect(clippy::zombie_processes, reason = "`follow` waits for all of its threads")]
pub fn run(orders: &Orders, blow: Option<(Place, Blow)>) -> Outcome {
    let mut child = start(orders);
    let mut trace = Trace {
        leader: Pid::from_raw(child.id() as i32),
        blow,
        threads: HashMap::new(),
        failed_syncs: HashSet::new(),
        outcome: Outcome { calls: Vec::new(), hit: None, status: None, synced_again: None },
    };
    trace.take_hold();
    child.stdin.take().unwrap().write_all(b"g").unwrap();
    trace.follow();
    trace.outcome
}

/// Why no process may be held on this machine, if that is so.
pub fn why_not(orders: &Orders) -> Option<Errno> {
    let mut child = start(orders);
    let held = ptrace::seize(Pid::from_raw(child.id() as i32), Options::empty());
    child.kill().unwrap();
    child.wait().unwrap();
    held.err()
}

/// Starts a child, which waits to be told to go on.
fn start(orders: &Orders) -> Child {
    let said = orders.base.join("child.log");
    let (key, value) = orders.encode();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(key, value)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(said).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    while !lines.next().expect("the child says that it has begun").unwrap().contains(READY) {}
    child
}

/// A thread that is inside of a call.
struct Inside {
    call: Option<Call>,
    /// What happens when it leaves.
    then: Then,
}

enum Then {
    GoOn,
    Kill,
    Return(Errno),
}

struct Trace {
    leader: Pid,
    blow: Option<(Place, Blow)>,
    /// The threads, and the call that each is inside of.
    threads: HashMap<Pid, Option<Inside>>,
    failed_syncs: HashSet<(u64, u64)>,
    outcome: Outcome,
}

impl Trace {
    /// Takes hold of all threads that there are; those to come are held as they begin. If this process dies, so do they.
    fn take_hold(&mut self) {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_EXITKILL;
        for entry in fs::read_dir(format!("/proc/{}/task", self.leader)).unwrap() {
            let thread: i32 = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
            let thread = Pid::from_raw(thread);
            ptrace::seize(thread, options).expect("a process may hold its own child");
            ptrace::interrupt(thread).unwrap();
            self.threads.insert(thread, None);
        }
    }

    /// Follows the process to its end.
    fn follow(&mut self) {
        // Of this thread alone: other tests have children too.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (thread, signal) = match waitpid(None, Some(flags)) {
                Ok(WaitStatus::Exited(thread, status)) if thread == self.leader => {
                    self.outcome.status = Some(status);
                    return;
                }
                Ok(WaitStatus::Signaled(thread, signal, _)) if thread == self.leader => {
                    assert_eq!(signal, Signal::SIGKILL, "the child died by itself");
                    return;
                }
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    self.at_call(thread);
                    (thread, None)
                }
                Ok(WaitStatus::PtraceEvent(thread, _, _)) => (thread, None),
                Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
                Ok(_) => continue,
                Err(Errno::EINTR) => continue,
                Err(error) => panic!("waiting for the child: {error}"),
            };
            // One that has just been killed is gone.
            let _ = ptrace::syscall(thread, signal);
        }
    }

    fn at_call(&mut self, thread: Pid) {
        // It has been killed meanwhile if this fails.
        let Ok(regs) = ptrace::getregs(thread) else { return };
        let Ok(info) = ptrace::syscall_info(thread) else { return };
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                let inside = self.enter(thread, regs);
                self.threads.insert(thread, Some(inside));
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                if let Some(inside) = self.threads.insert(thread, None).flatten() {
                    self.leave(thread, regs, inside);
                }
            }
            _ => {}
        }
    }

    fn enter(&mut self, thread: Pid, regs: user_regs_struct) -> Inside {
        let Some(call) = self.counted(thread, &regs) else {
            return Inside { call: None, then: Then::GoOn };
        };
        let blow = self.blow.filter(|(place, _)| self.is_at(*place, &call)).map(|(_, blow)| blow);
        self.outcome.calls.push(call.clone());
        if blow.is_some() {
            self.outcome.hit = Some(call.clone());
        }
        let shortened = call.first_page().map(|bytes| user_regs_struct { rdx: bytes, ..regs });
        let then = match blow {
            None => Then::GoOn,
            Some(Blow::KillBefore) => {
                // A process that is killed where it enters a call does not make it.
                kill(self.leader, Signal::SIGKILL).unwrap();
                Then::GoOn
            }
            Some(Blow::KillAfter) => Then::Kill,
            Some(Blow::KillWithin) => {
                shortened.map_or(Ok(()), |regs| ptrace::setregs(thread, regs)).unwrap();
                Then::Kill
            }
            Some(Blow::Shorten) => {
                shortened.map_or(Ok(()), |regs| ptrace::setregs(thread, regs)).unwrap();
                Then::GoOn
            }
            Some(Blow::Fail(errno)) => {
                // There is no call of this number, so none is made.
                ptrace::setregs(thread, user_regs_struct { orig_rax: u64::MAX, ..regs }).unwrap();
                Then::Return(errno)
            }
        };
        Inside { call: Some(call), then }
    }

    fn is_at(&self, place: Place, call: &Call) -> bool {
        let before = &self.outcome.calls;
        match place {
            Place::Any(at) => at == before.len(),
            Place::Of(name, at) => {
                call.name == name && before.iter().filter(|call| call.name == name).count() == at
            }
        }
    }

    fn leave(&mut self, thread: Pid, regs: user_regs_struct, inside: Inside) {
        let mut returned = regs.rax as i64;
        match inside.then {
            Then::GoOn => {}
            Then::Kill => kill(self.leader, Signal::SIGKILL).unwrap(),
            Then::Return(errno) => {
                returned = -i64::from(errno as i32);
                ptrace::setregs(thread, user_regs_struct { rax: returned as u64, ..regs }).unwrap();
            }
        }
        let Some(call) = inside.call else { return };
        if call.makes_a_file && returned >= 0 {
            // It may have the number of one that was removed.
            let (_, new) = behind(thread, returned as u64);
            new.map(|file| self.failed_syncs.remove(&file));
        }
        let Some(file) = call.file.filter(|_| call.is_sync()) else { return };
        if returned < 0 {
            self.failed_syncs.insert(file);
        } else if self.failed_syncs.contains(&file) {
            self.outcome.synced_again = Some(call.path);
        }
    }

    /// The call that a thread is about to make, if it is one of those that count.
    fn counted(&self, thread: Pid, regs: &user_regs_struct) -> Option<Call> {
        let number = regs.orig_rax as c_long;
        let (_, name) = COUNTED.into_iter().find(|(counted, _)| *counted == number)?;
        if name == "mmap" && regs.r8 as i32 == -1 {
            // Memory, and no file.
            return None;
        }
        let text = |address| read_text(thread, address);
        let (path, file) = match name {
            "openat" | "unlinkat" => (text(regs.rsi), None),
            "rename" | "link" => (text(regs.rsi), None),
            "linkat" | "renameat" | "renameat2" => (text(regs.r10), None),
            "open" | "creat" | "truncate" | "unlink" | "mkdir" => (text(regs.rdi), None),
            "madvise" => (PathBuf::new(), None),
            "mmap" => behind(thread, regs.r8),
            _ => behind(thread, regs.rdi),
        };
        let makes_a_file = name == "openat" && regs.rdx as i32 & libc::O_EXCL != 0;
        Some(Call { name, bytes: regs.rdx, offset: regs.r10, path, makes_a_file, file })
    }
}

/// The file behind a number of a thread's: its name, and device and number if it is a regular file.
fn behind(thread: Pid, number: u64) -> (PathBuf, Option<(u64, u64)>) {
    let link = format!("/proc/{thread}/fd/{}", number as i32);
    let found = fs::metadata(&link).ok().filter(fs::Metadata::is_file);
    (fs::read_link(link).unwrap_or_default(), found.map(|found| (found.dev(), found.ino())))
}

/// A text in the memory of a thread.
fn read_text(thread: Pid, address: u64) -> PathBuf {
    let mut bytes = [0; 512];
    let memory = File::open(format!("/proc/{thread}/mem"));
    let _ = memory.and_then(|memory| memory.read_at(&mut bytes, address));
    let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    PathBuf::from(text.to_string_lossy().into_owned())
}
