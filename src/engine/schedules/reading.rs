//! Consumers beside everything that takes segments away: checkpoints that drop them, compaction that rewrites them.

use std::sync::OnceLock;

use super::*;
use crate::error::ErrorKind;
use crate::report::State as MessageState;
use crate::sync::thread::{self, JoinHandle};

/// Gets and deletes until the store is closed.
fn consume(queue: &Queue, tally: &Tally) -> JoinHandle<()> {
    let (queue, tally) = (queue.clone(), tally.clone());
    thread::spawn(move || {
        loop {
            match queue.get() {
                Ok(delivery) => {
                    let name = name_of(delivery.payload());
                    delivery.delete().unwrap();
                    tally.add(name);
                }
                Err(error) => {
                    assert_eq!(error.kind(), &ErrorKind::Closed);
                    return;
                }
            }
        }
    })
}

fn names(threads: usize, each: usize) -> impl Iterator<Item = String> {
    (0..threads).flat_map(move |thread| (0..each).map(move |n| format!("{thread}.{n}")))
}

/// Producers and consumers that wait, while segments roll, cursors are written and segments are dropped: each message is
/// delivered once, and the close ends everybody.
fn roll_and_drop(durability: Durability) {
    let disk = Disk::new();
    let store = open(&disk, settings(durability));
    let queue = queue(&store, "q");
    let tally = Tally::default();
    let producers: Vec<_> = (0..2)
        .map(|thread| {
            let queue = queue.clone();
            thread::spawn(move || {
                for n in 0..4 {
                    queue.insert(payload(&format!("{thread}.{n}"), LARGE)).unwrap();
                }
            })
        })
        .collect();
    let consumers = [consume(&queue, &tally), consume(&queue, &tally)];
    producers.into_iter().for_each(|producer| producer.join().unwrap());
    while tally.total() < 8 {
        thread::yield_now();
    }
    store.close().unwrap();
    consumers.into_iter().for_each(|consumer| consumer.join().unwrap());
    tally.assert_once_each(names(2, 4));
    drop((queue, store));
    let store = open(&disk, settings(durability));
    assert!(store.recovery().clean);
    assert_eq!(store.stats().messages, 0);
    store.close().unwrap();
}

#[test]
fn messages_come_once_while_segments_roll_and_are_dropped() {
    explore(|| roll_and_drop(Durability::Process));
}

#[test]
fn synced_messages_come_once_while_segments_roll_and_are_dropped() {
    explore(|| roll_and_drop(Durability::Sync));
}

/// A closed store in which of each segment one message is left, so that compaction has something to do: the names of
/// those, and the disk. No thread maintains it before it is opened again.
fn sparse() -> &'static (Vec<String>, Disk) {
    static SPARSE: OnceLock<(Vec<String>, Disk)> = OnceLock::new();
    SPARSE.get_or_init(|| {
        alone(|| {
            let disk = Disk::new();
            let rare = Settings { garbage_percent: 1000, ..settings(Durability::Process) };
            let store = open(&disk, Settings { background: false, ..rare });
            let queue = queue(&store, "q");
            let mut left = Vec::new();
            let all: Vec<String> = (0..16).map(|n| n.to_string()).collect();
            for name in &all {
                queue.insert(payload(name, LARGE)).unwrap();
            }
            for n in 0..16 {
                let delivery = queue.get().unwrap();
                if n % 4 == 2 {
                    left.push(delivery);
                } else {
                    delivery.delete().unwrap();
                }
            }
            let names = left.iter().map(|delivery| name_of(delivery.payload())).collect();
            drop(left);
            store.close().unwrap();
            (names, disk.kill())
        })
    })
}

/// Opens a copy of the sparse store, and lets work be done in it until compaction has given its segments up.
fn beside_compaction(work: impl Fn(&Store, &Queue) -> Vec<JoinHandle<()>> + Send + Sync + 'static) {
    let (_, disk) = sparse();
    explore(move || {
        let disk = yielding(disk.kill());
        let before = disk.file_names();
        let store = open(&disk, settings(Durability::Process));
        let queue = store.queue("q").unwrap();
        let threads = work(&store, &queue);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let is_old = |name: &String| name.ends_with(".seg") && before.contains(name);
        while store.engine().maintain().unwrap() {}
        assert!(disk.file_names().iter().filter(|name| is_old(name)).count() < 3, "{disk:?}");
        assert_eq!(store.stats().damage, []);
        assert_eq!(store.stats().damaged_messages, 0);
        store.close().unwrap();
    });
}

/// A consumer that is about to read what it has claimed may be overtaken by the removal of the file.
#[test]
fn messages_are_whole_while_their_segments_are_rewritten() {
    beside_compaction(|_, queue| {
        let consuming = |_| {
            let queue = queue.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let delivery = queue.get().unwrap();
                    let held = name_of(delivery.payload());
                    thread::yield_now();
                    assert_eq!(name_of(delivery.payload()), held);
                    delivery.release().unwrap();
                }
            })
        };
        (0..2).map(consuming).collect()
    });
}

/// What is deleted while it is copied stays deleted, and what is not stays.
#[test]
fn deletes_hold_while_their_segments_are_rewritten() {
    let tally = |queue: &Queue| {
        let queue = queue.clone();
        thread::spawn(move || {
            for _ in 0..2 {
                let delivery = queue.get().unwrap();
                name_of(delivery.payload());
                delivery.delete().unwrap();
            }
        })
    };
    beside_compaction(move |store, queue| {
        let deleting = tally(queue);
        let store = store.clone();
        let counting = thread::spawn(move || {
            deleting.join().unwrap();
            assert_eq!(store.stats().messages, 2);
        });
        vec![counting]
    });
}

/// Nobody holds a message that is only looked at: somebody else may delete it meanwhile, and its segment may go.
#[test]
fn a_look_beside_a_purge_sees_a_whole_message_or_none() {
    beside_compaction(|_, queue| {
        let looking = |_| {
            let queue = queue.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    if let Some(entry) = queue.peek().unwrap() {
                        name_of(entry.payload());
                    }
                }
            })
        };
        let purging = {
            let queue = queue.clone();
            thread::spawn(move || assert_eq!(queue.purge(MessageState::Ready).unwrap(), 4))
        };
        let mut threads: Vec<_> = (0..2).map(looking).collect();
        threads.push(purging);
        threads
    });
}
