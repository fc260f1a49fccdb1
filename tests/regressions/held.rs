//! What somebody still has of a store keeps its bytes, whatever becomes of the store.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millpond::Delivery;
use millpond::testing::{Clock, Disk, Fault, FaultKind, step};

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
