//! A device that takes no more writes, and a file system that goes down: the one shows a failed sync, the other a power cut.

use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use millpond::{Durability, Error, ErrorKind, Queue, Store};

use super::device::{Device, Fails};
use super::{Told, check_store, not_shown, options, payload, run};

const THREADS: u64 = 4;

/// Messages before the errors.
const BEFORE: u64 = 600;

/// Every thread must have met the error by then.
const AFTER_MAX: u64 = 20_000;

/// A store in a new directory of the device, with messages inserted and every third of them deleted.
fn busy_store(device: &Device) -> (PathBuf, Store, Queue, Told) {
    let dir = device.file_system().join("store");
    let store = options(Durability::Sync, 1 << 20).open(&dir).unwrap();
    let queue = store.queue("q").unwrap();
    let mut told = Told::default();
    for n in 0..BEFORE {
        queue.insert(payload(n)).unwrap();
        told.inserted.insert(n);
        if n % 3 == 0 {
            let delivery = queue.get().unwrap();
            let number = super::number(delivery.payload());
            delivery.delete().unwrap();
            told.deleted.insert(number);
        }
    }
    (dir, store, queue, told)
}

/// Inserts by several threads, until each has met an error: `fail` brings it about meanwhile.
fn insert_until_it_fails(queue: &Queue, told: &mut Told, fail: impl FnOnce() + Send) -> Vec<Error> {
    let told = Mutex::new(told);
    let insert = |thread: u64| {
        for n in (BEFORE + thread..).step_by(THREADS as usize).take(AFTER_MAX as usize) {
            let inserted = queue.insert(payload(n));
            let mut told = told.lock().unwrap();
            match inserted {
                Ok(_) => told.inserted.insert(n),
                Err(error) => {
                    told.uncertain.insert(n);
                    return error;
                }
            };
        }
        panic!("no insert has failed");
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            fail();
        });
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || insert(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn assert_poisoned(store: &Store, queue: &Queue, when: &str) {
    let kind = |result: millpond::Result<()>| result.map_err(|error| error.kind().clone());
    assert_eq!(kind(queue.insert("late").map(drop)), Err(ErrorKind::Poisoned), "{when}");
    assert_eq!(kind(queue.try_get().map(drop)), Err(ErrorKind::Poisoned), "{when}");
    assert_eq!(kind(store.sync()), Err(ErrorKind::Poisoned), "{when}");
}

fn a_device_that_takes_no_writes(kind: &str, ends_while_unmounting: bool) {
    let what = format!("a device with {kind} that takes no writes");
    let mut device = match Device::new(kind, Fails::Writes) {
        Ok(device) => device,
        Err(why) => return not_shown(&what, &why),
    };
    let (dir, store, queue, mut told) = busy_store(&device);
    let held = queue.get().unwrap();
    told.deleting.insert(super::number(held.payload()));

    let errors = insert_until_it_fails(&queue, &mut told, || device.fail(true));
    let kinds: Vec<_> = errors.iter().map(Error::kind).collect();
    assert!(kinds.iter().all(|kind| **kind == ErrorKind::Poisoned), "{errors:?}");
    assert!(errors.iter().any(Error::is_indeterminate), "{errors:?}");
    assert_poisoned(&store, &queue, "after a failed sync");
    assert_eq!(held.delete().map_err(|error| error.kind().clone()), Err(ErrorKind::Poisoned));
    if !ends_while_unmounting {
        // The kernel would take a second sync, and say that all is well.
        device.fail(false);
        assert_poisoned(&store, &queue, "after a failed sync, though the device works again");
    }
    assert!(store.close().is_err());
    drop((queue, store));
    device.unmount();
    device.fail(false);
    device.mount().unwrap();
    println!("{kind}: {} acknowledged, {} not", told.inserted.len(), told.uncertain.len());
    check_store(&dir, &told);
}

#[test]
fn a_failed_write_back_poisons_the_store_and_loses_nothing_acknowledged_on_ext4() {
    a_device_that_takes_no_writes("ext4", false);
}

#[test]
fn a_failed_write_back_poisons_the_store_and_loses_nothing_acknowledged_on_xfs() {
    a_device_that_takes_no_writes("xfs", false);
}

/// So that not even the note in the lock file can be written, which says that a sync has failed.
#[test]
fn a_device_that_takes_no_writes_to_the_end_loses_nothing_acknowledged() {
    a_device_that_takes_no_writes("ext4", true);
}

/// The file system goes down without writing its journal: what a power cut does to it.
fn a_file_system_that_goes_down(kind: &str) {
    let what = format!("{kind} that goes down");
    let mounted = run("xfs_io", &["-V"]).and_then(|_| Device::new(kind, Fails::Writes));
    let mut device = match mounted {
        Ok(device) => device,
        Err(why) => return not_shown(&what, &why),
    };
    let (dir, store, queue, mut told) = busy_store(&device);
    let errors = insert_until_it_fails(&queue, &mut told, || {
        let root = device.file_system();
        run("xfs_io", &["-x", "-c", "shutdown", root.to_str().unwrap()]).unwrap();
    });
    println!("{what}: {:?}", errors.iter().map(Error::kind).collect::<Vec<_>>());
    let _ = store.close();
    drop((queue, store));
    device.remount();
    check_store(&dir, &told);
}

#[test]
fn nothing_acknowledged_is_lost_when_ext4_goes_down() {
    a_file_system_that_goes_down("ext4");
}

#[test]
fn nothing_acknowledged_is_lost_when_xfs_goes_down() {
    a_file_system_that_goes_down("xfs");
}
