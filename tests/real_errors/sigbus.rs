//! What raises SIGBUS, and what does not, as `docs/guarantees.md` has it.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use millpond::{Durability, Store};

use super::device::{Device, Fails};
use super::worker::{self, Orders, Task, Worker};
use super::{drain, not_shown, options, payload, run};

const SIGBUS: i32 = 7;

const SEGMENT_BYTES: u64 = 1 << 20;

/// The segments of a store, in order.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    segments.sort();
    segments
}

fn cut_off(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// Opens what is left: the damage is reported, and all messages from `intact` on are there that were inserted.
fn check_that_it_is_reported(dir: &Path, intact: std::ops::Range<u64>) {
    let store = options(Durability::Process, SEGMENT_BYTES).open(dir).unwrap();
    let found = drain(&store.queue("q").unwrap());
    assert!(intact.clone().all(|n| found.contains(&n)), "of {intact:?}: {found:?}");
    let known = store.recovery().damaged.len() + store.stats().damage.len();
    assert!(known > 0, "nobody says that a segment was cut off: {:?}", store.recovery());
    store.close().unwrap();
}

fn worker_orders(dir: &Path, durability: Durability, task: Task) -> Orders {
    let (before, after) = (if task == Task::Insert { 99 } else { 0 }, 2000);
    let dir = dir.to_path_buf();
    Orders { dir, durability, segment_bytes: SEGMENT_BYTES, before, after, task }
}

#[test]
fn a_segment_that_is_cut_off_under_a_process_that_writes_to_it_raises_sigbus() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("store");
    let orders = worker_orders(&dir, Durability::Process, Task::Insert);
    let mut worker = worker::start(&orders, "");
    assert!(worker.wait_until_ready());
    cut_off(&segments(&dir)[0], 0);
    let (status, _, _) = worker.finish();
    assert!(Worker::has_died_of(status, SIGBUS), "{status}");
    check_that_it_is_reported(&dir, 0..0);
}

#[test]
fn a_segment_that_is_cut_off_under_a_process_that_reads_it_raises_sigbus() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("store");
    fill(&dir);
    let orders = worker_orders(&dir, Durability::Process, Task::Get);
    let mut worker = worker::start(&orders, "");
    assert!(worker.wait_until_ready());
    cut_off(&segments(&dir)[0], 8192);
    let (status, _, _) = worker.finish();
    assert!(Worker::has_died_of(status, SIGBUS), "{status}");
    check_that_it_is_reported(&dir, 1100..3000);
}

/// A store of several segments that was closed.
fn fill(dir: &Path) {
    let store = options(Durability::Process, SEGMENT_BYTES).open(dir).unwrap();
    let queue = store.queue("q").unwrap();
    (0..3000).for_each(|n| assert!(queue.insert(payload(n)).is_ok()));
    store.close().unwrap();
}

/// A worker that has the store open, and is to read segments that are not in memory, of a device that `breaks` then.
fn read_of_a_device(
    what: &str,
    may_be_an_error: bool,
    breaks: impl FnOnce(&Device) -> Result<(), String>,
) {
    let mut device = match Device::new("ext4", Fails::Reads) {
        Ok(device) => device,
        Err(why) => return not_shown(what, &why),
    };
    let dir = device.file_system().join("store");
    fill(&dir);
    device.remount();
    let mut worker = worker::start(&worker_orders(&dir, Durability::Process, Task::Get), "");
    assert!(worker.wait_until_ready());
    let broken = breaks(&device);
    let (status, _, errors) = worker.finish();
    device.fail(false);
    device.remount();
    if let Err(why) = broken {
        return not_shown(what, &why);
    }
    println!("{what}: {status}, {errors:?}");
    let is_told = may_be_an_error && !errors.is_empty();
    assert!(Worker::has_died_of(status, SIGBUS) || is_told, "{what}: {status}, {errors:?}");
    let store = options(Durability::Process, SEGMENT_BYTES).open(&dir).unwrap();
    assert!(store.recovery().damaged.is_empty(), "{:?}", store.recovery());
    let mut found = drain(&store.queue("q").unwrap());
    found.sort_unstable();
    assert_eq!(found, (0..3000).collect::<Vec<u64>>(), "{what}");
    store.close().unwrap();
}

#[test]
fn a_page_that_the_disk_cannot_read_raises_sigbus_and_loses_nothing() {
    read_of_a_device("a disk that cannot read", false, |device| {
        device.fail(true);
        Ok(())
    });
}

/// Or a call fails before, which is an error.
#[test]
fn a_file_system_that_is_gone_raises_sigbus_or_an_error_and_loses_nothing() {
    read_of_a_device("a file system that is gone", true, |device| {
        let root = device.file_system();
        run("xfs_io", &["-x", "-c", "shutdown -f", root.to_str().unwrap()]).map(drop)
    });
}

/// Verify reads copies, so nobody who cuts off a file can end it.
#[test]
fn a_process_that_verifies_does_not_die_of_files_that_are_cut_off() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("store");
    fill(&dir);
    let mut worker = worker::start(&worker_orders(&dir, Durability::Process, Task::Verify), "");
    assert!(worker.wait_until_ready());
    let files: Vec<(PathBuf, Vec<u8>)> =
        segments(&dir).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    let ending = std::thread::spawn(move || worker.finish());
    while !ending.is_finished() {
        for (path, bytes) in &files {
            cut_off(path, 4096);
            fs::write(path, bytes).unwrap();
        }
    }
    let (status, _, _) = ending.join().unwrap();
    assert!(status.success(), "{status}");
    assert!(Store::verify(&dir).unwrap().is_sound());
}
