//! Group commit, by the store's own threads: nothing is acknowledged or delivered before it is durable.

use super::*;
use crate::error::ErrorKind;
use crate::storage::sim::{Fault, FaultKind};
use crate::sync::thread::{self, JoinHandle};

/// `threads` threads insert `each` messages one after the other, and look after each whether it is durable.
fn insert(
    (disk, queue): (&Disk, &Queue),
    threads: usize,
    each: usize,
    bytes: usize,
) -> Vec<JoinHandle<()>> {
    (0..threads)
        .map(|thread| {
            let (disk, queue) = (disk.clone(), queue.clone());
            thread::spawn(move || {
                for n in 0..each {
                    let name = format!("{thread}.{n}");
                    queue.insert(payload(&name, bytes)).unwrap();
                    assert!(survives_a_power_cut(&disk, &name), "{name} was acknowledged");
                }
            })
        })
        .collect()
}

fn acknowledged_is_durable(threads: usize, each: usize, bytes: usize) {
    explore(move || {
        let disk = yielding(Disk::new());
        let store = open(&disk, settings(Durability::Sync));
        let queue = queue(&store, "q");
        let threads = insert((&disk, &queue), threads, each, bytes);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        store.close().unwrap();
    });
}

#[test]
fn what_is_acknowledged_is_durable() {
    acknowledged_is_durable(4, 2, 100);
}

/// A sync has to cover what was written to the segments before the active one, and to the one that it becomes.
#[test]
fn what_is_acknowledged_is_durable_while_the_log_rolls() {
    acknowledged_is_durable(3, 3, LARGE);
}

#[test]
fn what_is_delivered_is_durable() {
    explore(|| {
        let disk = yielding(Disk::new());
        let store = open(&disk, settings(Durability::Sync));
        let queue = queue(&store, "q");
        let threads = insert((&disk, &queue), 2, 2, 100);
        for _ in 0..4 {
            let delivery = queue.get().unwrap();
            let name = name_of(delivery.payload());
            assert!(survives_a_power_cut(&disk, &name), "{name} was delivered");
            delivery.delete().unwrap();
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        store.close().unwrap();
    });
}

/// Nobody is told that anything is durable that is not, and everybody is told something.
#[test]
fn a_failed_sync_ends_all_inserts_and_nothing_is_acknowledged_falsely() {
    explore(|| {
        let disk = yielding(Disk::new());
        let store = open(&disk, settings(Durability::Sync));
        let queue = queue(&store, "q");
        disk.fail(Fault { kind: FaultKind::Sync, after: 1, sticky: false });
        let inserting = |thread: usize| {
            let (disk, queue) = (disk.clone(), queue.clone());
            thread::spawn(move || {
                for n in 0..2 {
                    let name = format!("{thread}.{n}");
                    match queue.insert(payload(&name, 100)) {
                        Ok(_) => assert!(survives_a_power_cut(&disk, &name), "{name}"),
                        Err(error) => assert_eq!(error.kind(), &ErrorKind::Poisoned),
                    }
                }
            })
        };
        let threads: Vec<_> = (0..3).map(inserting).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let _ = store.close();
    });
}
