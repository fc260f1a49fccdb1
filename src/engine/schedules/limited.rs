//! Queues with limits: inserts that wait for room, and whatever makes it.

use super::*;
use crate::error::ErrorKind;
use crate::options::AtLimit;
use crate::sync::thread;

/// What a large message takes, and a little more.
const LARGE_BYTES: u64 = LARGE as u64 + 64;

fn limited(store: &Store, options: QueueOptions) -> Queue {
    store.declare("q", options.on_drop(OnDrop::Release)).unwrap()
}

fn at_most(messages: u64, at_limit: AtLimit) -> QueueOptions {
    QueueOptions::new().max_messages(messages).at_limit(at_limit)
}

fn is_full<T: std::fmt::Debug>(inserted: Result<T, crate::Error>) -> bool {
    inserted.is_err_and(|error| *error.kind() == ErrorKind::QueueFull)
}

/// Whoever deletes wakes the insert that waits; the limit is kept, and a close ends the wait for what is left.
#[test]
fn a_consumer_wakes_inserts_that_wait_for_room_and_a_close_ends_their_wait() {
    explore(|| {
        let store = open(&Disk::new(), settings(Durability::Process));
        let queue = limited(&store, at_most(1, AtLimit::Block));
        let inserting = ["a", "b"].map(|name| {
            let queue = queue.clone();
            thread::spawn(move || (0..2).map(|_| queue.insert(name)).collect::<Vec<_>>())
        });
        for _ in 0..3 {
            assert!(queue.stats().unwrap().ready <= 1);
            queue.get().unwrap().delete().unwrap();
        }
        // The last one may be in, or waits; nothing that comes now finds room.
        let late = {
            let queue = queue.clone();
            thread::spawn(move || [queue.insert("c"), queue.insert("d")])
        };
        store.close().unwrap();
        let mut inserted = 0;
        let all = inserting.into_iter().flat_map(|thread| thread.join().unwrap());
        for outcome in all.chain(late.join().unwrap()) {
            match outcome {
                Ok(_) => inserted += 1,
                Err(error) => assert_eq!(error.kind(), &ErrorKind::Closed),
            }
        }
        assert!((3..=4).contains(&inserted), "{inserted}");
    });
}

/// Several inserts count at once what messages take, while segments are rewritten. None of these is counted twice.
#[test]
fn messages_are_counted_once() {
    let made = alone(|| {
        let disk = Disk::new();
        let store = open(&disk, Settings { background: false, ..settings(Durability::Process) });
        let queue = limited(&store, QueueOptions::new());
        for n in 0..9 {
            queue.insert(payload(&n.to_string(), LARGE)).unwrap();
        }
        let options = QueueOptions::new().max_bytes(12 * LARGE_BYTES).at_limit(AtLimit::Reject);
        limited(&store, options);
        store.close().unwrap();
        disk
    });
    explore(move || {
        let disk = yielding(made.kill());
        let store = open(&disk, settings(Durability::Process));
        let queue = store.queue("q").unwrap();
        let inserting = ["x", "y"].map(|name| {
            let queue = queue.clone();
            thread::spawn(move || queue.try_insert(payload(name, LARGE)).is_ok())
        });
        inserting.into_iter().for_each(|thread| assert!(thread.join().unwrap()));
        queue.try_insert(payload("z", LARGE)).unwrap();
        assert!(is_full(queue.try_insert(payload("too much", LARGE))));
        store.close().unwrap();
    });
}

/// Inserts may have begun before the queue had a limit.
#[test]
fn a_limit_holds_from_its_declaration_on() {
    explore(|| {
        let store = open(&Disk::new(), settings(Durability::Process));
        let queue = limited(&store, QueueOptions::new());
        let inserting = ["a", "b", "c"].map(|name| {
            let queue = queue.clone();
            thread::spawn(move || drop(queue.try_insert(name)))
        });
        let options = at_most(1, AtLimit::Reject).max_bytes(100);
        let declared = store.declare("q", options);
        if let Ok(queue) = &declared {
            assert!(queue.stats().unwrap().ready <= 1);
        }
        inserting.into_iter().for_each(|thread| thread.join().unwrap());
        let ready = queue.stats().unwrap().ready;
        match declared {
            Ok(_) => assert!(ready <= 1 && (ready == 0 || is_full(queue.try_insert("d")))),
            Err(error) => assert_eq!(error.kind(), &ErrorKind::Conflict),
        }
        store.close().unwrap();
    });
}
