//! What somebody still has of a store keeps its bytes, whatever becomes of the store.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millpond::testing::{Clock, Disk, Fault, FaultKind, step};
use millpond::{Delivery, ErrorKind};

use super::{opts, proc_opts};

/// Fills a store, gets its first message, and closes it with that message still held.
fn closed_with_one_held(disk: &Disk, clock: &Clock) -> Delivery {
    let store = proc_opts().open_simulated(disk, clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut n = 0;
    while queue.insert(vec![n; 3000]).is_ok() {
        n += 1;
        step(&store).unwrap();
    }
    let held = queue.try_get().unwrap().unwrap();
    store.close().unwrap();
    held
}

/// A segment that an open had found became a spare, and was cut and written over, though a delivery from before had it
/// mapped. The disk panics when that is done.
#[test]
fn a_delivery_keeps_its_bytes_though_the_store_is_opened_again() {
    for capacity in [400, 600, 900] {
        let (disk, clock) = (Disk::with_capacity(capacity << 10), Clock::new());
        let held = closed_with_one_held(&disk, &clock);
        let names = disk.file_names().into_iter().filter(|name| name != "LOCK");
        let used = names.map(|name| disk.read_file(&name).unwrap().len() as u64).sum();
        disk.set_capacity(Some(used));
        for _ in 0..2 {
            let store = proc_opts().open_simulated(&disk, &clock).unwrap();
            let queue = store.queue("q").unwrap();
            let mut deleted = 0;
            for round in 0..4000 {
                let Some(delivery) = queue.try_get().unwrap() else { break };
                if round % 150 == 149 && deleted < 15 {
                    deleted += 1;
                    delivery.delete().unwrap();
                } else {
                    delivery.release().unwrap();
                }
                if round % 50 == 0 {
                    step(&store).unwrap();
                }
                assert_eq!(held.payload(), [0; 3000], "round {round}");
            }
            store.close().unwrap();
        }
        assert_eq!(held.payload(), [0; 3000]);
    }
}

/// The open after a failed sync writes the log again. A delivery from before had it mapped.
#[test]
fn a_delivery_keeps_its_bytes_though_the_log_is_written_again() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("first").unwrap();
    let held = queue.try_get().unwrap().unwrap();
    disk.fail(Fault { kind: FaultKind::Sync, after: 0, sticky: false });
    queue.insert("second").unwrap_err();
    drop((queue, store));
    let store = opts().open_simulated(&disk, &clock).unwrap();
    assert!(!store.recovery().clean);
    assert_eq!(held.payload(), b"first");
    drop(store);
    assert_eq!(held.payload(), b"first");
}

/// After a panic inside of it nothing is written any more, but what is mapped must be known to the next one.
#[test]
fn a_delivery_keeps_its_bytes_though_the_store_panicked() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("first").unwrap();
    let held = queue.peek().unwrap().unwrap();
    disk.on_operation(Some(Box::new(|_, _| panic!("in the middle of an append"))));
    catch_unwind(AssertUnwindSafe(|| queue.insert("second"))).unwrap_err();
    disk.on_operation(None);
    drop((queue, store));
    let store = opts().open_simulated(&disk, &clock).unwrap();
    assert!(!store.recovery().clean);
    assert_eq!(held.payload(), b"first");
}

/// With a panic inside of the store nothing is recorded any more, and a drop must not panic itself: this thread unwinds.
#[test]
fn a_delivery_is_dropped_while_a_panic_inside_of_the_store_unwinds() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("first").unwrap();
    catch_unwind(AssertUnwindSafe(|| {
        let _held = queue.get().unwrap();
        disk.on_operation(Some(Box::new(|_, _| panic!("in the middle of an append"))));
        queue.insert("second")
    }))
    .unwrap_err();
    disk.on_operation(None);
}

#[test]
fn a_delivery_does_not_keep_a_store_locked_that_panicked() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("first").unwrap();
    let held = queue.get().unwrap();
    disk.on_operation(Some(Box::new(|_, _| panic!("in the middle of an append"))));
    catch_unwind(AssertUnwindSafe(|| queue.insert("second"))).unwrap_err();
    disk.on_operation(None);
    drop((queue, store));
    let store = opts().open_simulated(&disk, &clock).unwrap();
    assert_eq!(held.payload(), b"first");
    let before = disk.operations();
    drop(held);
    assert_eq!(disk.operations(), before, "it wrote to what is another's");
    assert_eq!(store.queue("q").unwrap().stats().unwrap().ready, 1);
}

/// Where a close cannot hold what is mapped, the directory stays locked until it is dropped, and no longer.
#[test]
fn what_cannot_be_held_keeps_the_store_locked_until_it_is_dropped() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("first").unwrap();
    let held = queue.get().unwrap().to_payload();
    disk.fail(Fault { kind: FaultKind::Map, after: 0, sticky: true });
    store.close().unwrap();
    disk.heal();
    drop((queue, store));
    let error = opts().open_simulated(&disk, &clock).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Locked { .. }), "{error}");
    drop(held);
    opts().open_simulated(&disk, &clock).unwrap();
}

/// The segment was no longer the store's, and its file could not be removed: the next owner found it, and nobody held it.
#[test]
fn a_payload_keeps_its_bytes_though_its_file_could_not_be_removed() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..20 {
        queue.insert(vec![n + 1; 9000]).unwrap();
    }
    let first = queue.get().unwrap();
    let held = first.to_payload();
    first.delete().unwrap();
    for _ in 0..11 {
        queue.get().unwrap().delete().unwrap();
    }
    disk.fail(Fault { kind: FaultKind::Remove, after: 0, sticky: true });
    while step(&store).unwrap() {}
    assert!(disk.faults_struck() > 0);
    disk.heal();
    store.close().unwrap();
    let spares = disk.file_names().into_iter().filter(|name| name.starts_with("spare."));
    spares.for_each(|name| disk.remove_file(&name));
    let names = disk.file_names().into_iter().filter(|name| name != "LOCK");
    let used: usize = names.map(|name| disk.read_file(&name).unwrap().len()).sum();
    disk.set_capacity(Some(used as u64 + 4096));
    for _ in 0..3 {
        let store = opts().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        if let Some(delivery) = queue.try_get().unwrap() {
            let _ = delivery.delete();
            while step(&store).unwrap() {}
        }
        assert_eq!(&held[..], [1; 9000]);
        store.close().unwrap();
    }
}

/// The store has dropped a segment that a backup shares, and whoever opens the backup uses its file again.
#[test]
fn a_payload_keeps_its_bytes_though_a_backup_is_opened() {
    for max_bytes in [290_000, 360_000, 430_000] {
        let dir = tempfile::tempdir().unwrap();
        let (original, backup) = (dir.path().join("original"), dir.path().join("backup"));
        let store = proc_opts().open(&original).unwrap();
        let queue = store.queue("q").unwrap();
        for n in 0..40 {
            queue.insert(vec![n + 1; 9000]).unwrap();
            while step(&store).unwrap() {}
        }
        let deliveries: Vec<_> = (0..30).map(|_| queue.get().unwrap()).collect();
        let held: Vec<_> = deliveries.iter().map(|delivery| delivery.to_payload()).collect();
        store.backup(&backup).unwrap();
        for delivery in deliveries {
            delivery.delete().unwrap();
            while step(&store).unwrap() {}
        }
        assert!(!original.join("0000000001.seg").exists());
        let copy = proc_opts().max_bytes(max_bytes).open(&backup).unwrap();
        let queue = copy.queue("q").unwrap();
        for turn in 0..200 {
            let Some(delivery) = queue.try_get().unwrap() else { break };
            if turn % 3 == 0 {
                delivery.delete().unwrap()
            } else {
                delivery.release().unwrap()
            }
            while step(&copy).unwrap() {}
            for (n, payload) in held.iter().enumerate() {
                assert!(payload.iter().all(|byte| *byte == n as u8 + 1), "{n}, turn {turn}");
            }
        }
    }
}
