//! Closes beside everything: what was acknowledged before is there, and nothing goes on behind it.

use std::sync::Weak;
use std::time::Duration;

use super::*;
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::sync::thread;

/// That the threads of the store have ended, which keep it while they work.
fn assert_ended(store: Store, queue: Queue) {
    let engine: Weak<Engine> = Arc::downgrade(store.engine());
    drop((store, queue));
    assert_eq!(engine.strong_count(), 0, "somebody still works");
}

/// A close while messages are inserted, taken and settled: the next open finds what was acknowledged, and nothing more.
fn close_beside_work(durability: Durability) {
    let disk = yielding(Disk::new());
    let store = open(&disk, settings(durability));
    let queue = queue(&store, "q");
    let inserting = {
        let queue = queue.clone();
        thread::spawn(move || {
            let insert = |n: &usize| queue.insert(payload(&n.to_string(), LARGE)).is_ok();
            (0..6).take_while(insert).count()
        })
    };
    let deleting = {
        let queue = queue.clone();
        thread::spawn(move || {
            let mut deleted = 0;
            while let Ok(delivery) = queue.get() {
                name_of(delivery.payload());
                deleted += usize::from(delivery.delete().is_ok());
            }
            deleted
        })
    };
    store.close().unwrap();
    let operations = disk.operations();
    let (inserted, deleted) = (inserting.join().unwrap(), deleting.join().unwrap());
    assert_eq!(disk.operations(), operations, "somebody has written behind the close");
    assert_ended(store, queue);
    let store = open(&disk, Settings { background: false, ..settings(durability) });
    assert!(store.recovery().clean);
    assert_eq!(store.recovery().damaged, []);
    assert_eq!(store.stats().messages, (inserted - deleted) as u64);
    store.close().unwrap();
}

#[test]
fn a_close_keeps_what_was_acknowledged() {
    explore(|| close_beside_work(Durability::Process));
}

#[test]
fn a_close_keeps_what_was_acknowledged_and_synced() {
    explore(|| close_beside_work(Durability::Sync));
}

/// A close that waits for what is in flight is woken by whoever settles the last of it.
#[test]
fn a_close_waits_for_what_is_in_flight() {
    explore(|| {
        let disk = Disk::new();
        let store = open(&disk, settings(Durability::Process));
        let queue = queue(&store, "q");
        queue.insert_batch(["a", "b"]).unwrap();
        let held = [queue.get().unwrap(), queue.get().unwrap()];
        let settling = held.map(|held| thread::spawn(move || held.delete().unwrap()));
        let closed = store.close_timeout(Duration::from_secs(3600)).unwrap();
        assert_eq!(closed.released, 0);
        settling.into_iter().for_each(|thread| thread.join().unwrap());
        assert_ended(store, queue);
    });
}

/// The store is closed while a delivery is settled and a backup is made, which has all or is refused.
#[test]
fn a_close_beside_settling_and_a_backup() {
    explore(|| {
        let disk = Disk::new();
        let store = open(&disk, settings(Durability::Process));
        let queue = queue(&store, "q");
        for n in 0..4 {
            queue.insert(payload(&n.to_string(), LARGE)).unwrap();
        }
        let held = queue.get().unwrap();
        let engine: Arc<Engine> = store.engine().clone();
        let settling = thread::spawn(move || held.delete());
        let copy = Disk::new();
        let to = copy.clone();
        let copying = thread::spawn(move || engine.backup(&to));
        store.close().unwrap();
        let deleted = settling.join().unwrap().is_ok();
        match copying.join().unwrap() {
            Ok(()) => {
                let copy = open(&copy, settings(Durability::Process));
                assert_eq!(copy.recovery().damaged, []);
                assert!(copy.stats().messages >= 3);
                copy.close().unwrap();
            }
            Err(error) => assert_eq!(error.kind(), &ErrorKind::Closed),
        }
        assert_ended(store, queue);
        let store = open(&disk, settings(Durability::Process));
        assert_eq!(store.stats().messages, if deleted { 3 } else { 4 });
        store.close().unwrap();
    });
}
