//! Declarations at the same time, and removals beside inserts.

use super::*;
use crate::error::ErrorKind;
use crate::sync::thread;

#[test]
fn of_two_declarations_that_would_make_a_circle_one_is_refused() {
    explore(|| {
        let disk = yielding(Disk::new());
        let store = open(&disk, settings(Durability::Process));
        let declaring = [("a", "b"), ("b", "a")].map(|(name, dead)| {
            let store = store.clone();
            let options = QueueOptions::new().dead_letter(dead);
            thread::spawn(move || store.declare(name, options).map(drop))
        });
        let refused = declaring.into_iter().filter_map(|thread| thread.join().unwrap().err());
        let kinds: Vec<_> = refused.map(|error| error.kind().clone()).collect();
        assert_eq!(kinds, [ErrorKind::InvalidArgument]);
        store.close().unwrap();
    });
}

#[test]
fn no_queue_is_removed_with_a_message_that_has_come_into_it() {
    explore(|| {
        let disk = yielding(Disk::new());
        let store = open(&disk, settings(Durability::Process));
        let queue = store.queue("q").unwrap();
        // So much that the next segment is prepared.
        store.queue("filler").unwrap().insert(vec![0; SEGMENT_BYTES as usize / 3]).unwrap();
        while store.engine().supply_step().unwrap() {}
        let (used, len) = store.engine().log.tail().active_bytes();
        // The record of the removal does not fit behind it: the log rolls in between.
        let payload = vec![7; (len - used) as usize - 75];
        let inserting = thread::spawn(move || queue.insert(payload).is_ok());
        let removed = store.remove("q").is_ok();
        let inserted = inserting.join().unwrap();
        assert!(removed != inserted, "removed: {removed}, inserted: {inserted}");
        store.close().unwrap();
    });
}
