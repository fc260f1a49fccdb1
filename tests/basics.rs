//! The queue as its users see it, on a real directory.

use std::time::Duration;

use millpond::{Backoff, Durability, ErrorKind, QueueOptions, State, Store};

fn open(dir: &std::path::Path) -> Store {
    Store::options().segment_bytes(64 << 10).open(dir).unwrap()
}

#[test]
fn messages_come_in_the_order_of_their_inserts_and_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let queue = store.queue("q").unwrap();
    let ids: Vec<_> = (0..1000).map(|n| queue.insert(format!("message {n}")).unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    for (n, id) in ids.iter().enumerate().take(500) {
        let delivery = queue.get().unwrap();
        assert_eq!(delivery.payload(), format!("message {n}").as_bytes());
        assert_eq!(delivery.id(), *id);
        delivery.delete().unwrap();
    }
    store.close().unwrap();
    let store = open(dir.path());
    assert!(store.recovery().clean);
    let queue = store.find("q").unwrap().unwrap();
    assert_eq!(queue.stats().unwrap().ready, 500);
    for n in 500..1000 {
        let delivery = queue.get().unwrap();
        assert_eq!(delivery.payload(), format!("message {n}").as_bytes());
        assert_eq!(delivery.attempt(), 1);
        delivery.delete().unwrap();
    }
    assert!(queue.try_get().unwrap().is_none());
}

#[test]
fn space_comes_back_when_messages_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::options()
        .segment_bytes(64 << 10)
        .durability(Durability::Process)
        .open(dir.path())
        .unwrap();
    let queue = store.queue("q").unwrap();
    for _ in 0..50 {
        for _ in 0..100 {
            queue.insert(vec![7; 1000]).unwrap();
        }
        for delivery in queue.get_batch(100, Duration::ZERO).unwrap() {
            delivery.delete().unwrap();
        }
    }
    let used = || -> u64 {
        let files = std::fs::read_dir(dir.path()).unwrap();
        // One may vanish meanwhile.
        files.filter_map(|file| file.unwrap().metadata().ok()).map(|found| found.len()).sum()
    };
    for _ in 0..100 {
        if used() <= 6 * (64 << 10) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} bytes are still used", used());
}

#[test]
fn a_failed_message_comes_back_after_its_backoff_and_is_buried_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let options = QueueOptions::new()
        .max_attempts(Some(2))
        .backoff(Backoff::Fixed(Duration::ZERO))
        .dead_letter("dead");
    let queue = store.declare("q", options).unwrap();
    let id = queue.insert("x").unwrap();
    queue.get().unwrap().fail("no").unwrap();
    let second = queue.get().unwrap();
    assert_eq!(second.attempt(), 2);
    assert_eq!(second.fail("still no").unwrap(), millpond::Fate::DeadLettered);
    assert!(queue.try_get().unwrap().is_none());
    let dead = store.queue("dead").unwrap().get_timeout(Duration::from_secs(5)).unwrap().unwrap();
    assert_eq!((dead.payload(), dead.origin_id()), (&b"x"[..], id));
    dead.delete().unwrap();
    assert_eq!(store.stats().messages, 0);
}

#[test]
fn a_second_open_fails_at_once_and_names_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = Store::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Locked { pid: Some(std::process::id()) });
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn a_waiting_get_is_woken_by_an_insert_and_by_close() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let queue = store.queue("q").unwrap();
    let waiting = {
        let queue = queue.clone();
        std::thread::spawn(move || {
            queue.get().unwrap().delete().unwrap();
            queue.get().map(|_| ()).unwrap_err()
        })
    };
    std::thread::sleep(Duration::from_millis(50));
    queue.insert("wake up").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    store.close().unwrap();
    assert_eq!(waiting.join().unwrap().kind(), &ErrorKind::Closed);
}

#[test]
fn a_purge_deletes_what_is_in_that_state_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let queue = store.queue("q").unwrap();
    for _ in 0..10 {
        queue.insert_batch((0..300).map(|n| n.to_string())).unwrap();
    }
    let held = queue.get().unwrap();
    assert_eq!(store.remove("q").unwrap_err().kind(), &ErrorKind::NotEmpty);
    assert_eq!(queue.purge(State::Ready).unwrap(), 2999);
    assert_eq!(queue.stats().unwrap().in_flight, 1);
    assert_eq!(queue.purge(State::InFlight).unwrap(), 1);
    assert_eq!(held.delete().unwrap_err().kind(), &ErrorKind::StaleDelivery);
    store.remove("q").unwrap();
    assert_eq!(queue.insert("x").unwrap_err().kind(), &ErrorKind::NotFound);
}
