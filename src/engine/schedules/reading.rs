//! Consumers beside everything that takes segments away: checkpoints that drop them, compaction that rewrites them.

use std::sync::OnceLock;
use std::time::Duration;

use super::*;
use crate::error::ErrorKind;
use crate::report::State as MessageState;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::time_goes_by;

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

/// Producers and consumers that wait, while segments roll, cursors are written and segments are dropped: each message
/// is delivered once, and the close ends everybody.
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

/// How many messages there were in each segment of the sparse store, of which one or two are left.
const IN_SEGMENT: usize = 8;
const SEGMENTS: usize = 4;

/// A closed store in which little is left of each segment, so that compaction has something to do: the names of what
/// is left in queue `q`, and the disk. The one message of queue `other` comes last.
fn sparse() -> &'static (Vec<String>, Disk) {
    static SPARSE: OnceLock<(Vec<String>, Disk)> = OnceLock::new();
    SPARSE.get_or_init(|| {
        alone(|| {
            let disk = Disk::new();
            let rare = Settings { garbage_percent: 1000, ..settings(Durability::Process) };
            let store = open(&disk, Settings { background: false, ..rare });
            let queue = queue(&store, "q");
            for n in 0..SEGMENTS * IN_SEGMENT {
                queue.insert(payload(&n.to_string(), LARGE / 2)).unwrap();
            }
            store.queue("other").unwrap().insert(payload("other", 100)).unwrap();
            let mut left = Vec::new();
            for n in 0..SEGMENTS * IN_SEGMENT {
                let delivery = queue.get().unwrap();
                if [3, 6].contains(&(n % IN_SEGMENT)) && n != 3 {
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

/// Opens a copy of the sparse store and lets work be done in it, until compaction has given the old segments back.
/// Each message is delivered once in the end, by that work or to whoever opens the store next.
fn beside_compaction(
    work: impl Fn(&Store, &Queue, &Tally) -> Vec<JoinHandle<()>> + Send + Sync + 'static,
) {
    let (names, disk) = sparse();
    let is_old = |name: &String| name.ends_with(".seg");
    let old: Vec<String> = disk.file_names().into_iter().filter(is_old).collect();
    explore(move || {
        let disk = yielding(disk.kill());
        let clock = Clock::new();
        let store = open_with(&disk, settings(Durability::Process), &clock);
        let queue = store.queue("q").unwrap();
        let tally = Tally::default();
        let threads = work(&store, &queue, &tally);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // Deletes that empty no segment wake nobody: their sync, some time later, does.
        clock.advance(Duration::from_secs(2));
        while disk.file_names().iter().filter(|name| old.contains(name)).count() > 1 {
            time_goes_by();
            thread::yield_now();
        }
        assert_eq!((store.stats().damage, store.stats().damaged_messages), (vec![], 0));
        store.close().unwrap();
        drop((queue, store));
        let store = open(&disk, Settings { background: false, ..settings(Durability::Process) });
        assert_eq!(store.recovery().damaged, []);
        while let Some(delivery) = store.queue("q").unwrap().try_get().unwrap() {
            tally.add(name_of(delivery.payload()));
            delivery.delete().unwrap();
        }
        tally.assert_once_each(names.iter().cloned());
        while let Some(delivery) = store.queue("other").unwrap().try_get().unwrap() {
            delivery.delete().unwrap();
        }
        // A delete that a segment does not know of would hold it for ever.
        let live: u64 = store.stats().log.iter().map(|segment| segment.live_messages).sum();
        assert_eq!(live, 0, "{:?}", store.stats());
        store.close().unwrap();
    });
}

/// A consumer that is about to read what it has claimed may be overtaken by the removal of the file.
#[test]
fn messages_are_whole_while_their_segments_are_rewritten() {
    beside_compaction(|_, queue, _| {
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
    beside_compaction(|_, queue, tally| {
        let deleting = |share| {
            let (queue, tally) = (queue.clone(), tally.clone());
            thread::spawn(move || {
                for _ in 0..share {
                    let delivery = queue.get().unwrap();
                    tally.add(name_of(delivery.payload()));
                    delivery.delete().unwrap();
                }
            })
        };
        [4, 2].map(deleting).into()
    });
}

/// Nobody holds a message that is only looked at: somebody else may delete it meanwhile, and its segment may go. The
/// same is true of a segment that the consumer of another queue looks through.
#[test]
fn a_look_beside_a_purge_sees_a_whole_message_or_none() {
    beside_compaction(|store, queue, tally| {
        let looking = {
            let queue = queue.clone();
            thread::spawn(move || {
                for _ in 0..3 {
                    if let Some(entry) = queue.peek().unwrap() {
                        name_of(entry.payload());
                    }
                }
            })
        };
        let purging = {
            let (queue, tally) = (queue.clone(), tally.clone());
            let (names, _) = sparse();
            thread::spawn(move || {
                let purged = queue.purge(MessageState::Ready).unwrap();
                assert_eq!(purged, names.len() as u64);
                names.iter().for_each(|name| tally.add(name.clone()));
            })
        };
        let other = store.queue("other").unwrap();
        let passing = thread::spawn(move || {
            let delivery = other.get().unwrap();
            assert_eq!(name_of(delivery.payload()), "other");
            delivery.delete().unwrap();
        });
        vec![looking, purging, passing]
    });
}
