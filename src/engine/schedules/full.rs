//! A store that has no space left: settling goes on, and space comes back.

use super::*;
use crate::error::ErrorKind;
use crate::sync::thread;

/// Consumers settle while producers are refused and try again; both may have to write cursors themselves to go on.
#[test]
fn a_full_store_is_emptied_by_its_consumers_and_takes_messages_again() {
    explore(|| {
        let disk = Disk::new();
        let limit =
            Settings { max_bytes: Some(5 * SEGMENT_BYTES), ..settings(Durability::Process) };
        let store = open(&disk, limit);
        let queue = queue(&store, "q");
        let mut inserted = 0;
        let insert = |n: usize| match queue.insert(payload(&n.to_string(), LARGE)) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), &ErrorKind::DiskFull);
                false
            }
        };
        while insert(inserted) {
            inserted += 1;
        }
        let tally = Tally::default();
        let consumers: Vec<_> = (0..2)
            .map(|n| {
                let (queue, tally) = (queue.clone(), tally.clone());
                let share = (inserted + n) / 2;
                thread::spawn(move || {
                    for _ in 0..share {
                        let delivery = queue.get().unwrap();
                        tally.add(name_of(delivery.payload()));
                        delivery.delete().unwrap();
                    }
                })
            })
            .collect();
        // Space must come back, though nobody may be left who gives some.
        while !insert(inserted) {
            thread::yield_now();
        }
        consumers.into_iter().for_each(|consumer| consumer.join().unwrap());
        let last = queue.get().unwrap();
        tally.add(name_of(last.payload()));
        last.delete().unwrap();
        tally.assert_once_each((0..=inserted).map(|n| n.to_string()));
        store.close().unwrap();
    });
}
