//! Consumers that wait, and everything that has to wake them.

use std::time::Duration;

use super::*;
use crate::error::ErrorKind;
use crate::sync::thread;

/// More than any test waits.
const LONG: Duration = Duration::from_secs(3600);

/// Two threads that wait for each other in turn: each insert meets a consumer that is about to sleep.
fn take_turns(durability: Durability) {
    const ROUNDS: usize = 3;
    let store = open(&Disk::new(), settings(durability));
    let (there, back) = (queue(&store, "there"), queue(&store, "back"));
    let answering = {
        let (there, back) = (there.clone(), back.clone());
        thread::spawn(move || {
            for _ in 0..ROUNDS {
                there.get().unwrap().delete().unwrap();
                back.insert("answer").unwrap();
            }
        })
    };
    for _ in 0..ROUNDS {
        there.insert("question").unwrap();
        back.get().unwrap().delete().unwrap();
    }
    answering.join().unwrap();
    store.close().unwrap();
}

#[test]
fn an_insert_wakes_a_consumer_that_is_about_to_sleep() {
    explore(|| take_turns(Durability::Process));
}

#[test]
fn a_synced_insert_wakes_a_consumer_that_is_about_to_sleep() {
    explore(|| take_turns(Durability::Sync));
}

/// As many consumers as messages, which come one by one, as a batch, and by being given back.
#[test]
fn every_consumer_gets_a_message() {
    explore(|| {
        let store = open(&Disk::new(), settings(Durability::Process));
        let queue = queue(&store, "q");
        let consumers: Vec<_> = (0..3)
            .map(|n| {
                let queue = queue.clone();
                thread::spawn(move || {
                    if n == 0 {
                        queue.get().unwrap().release().unwrap();
                    }
                    queue.get().unwrap().delete().unwrap();
                })
            })
            .collect();
        let batch = {
            let queue = queue.clone();
            thread::spawn(move || queue.insert_batch(["a", "b"]).unwrap())
        };
        queue.insert("c").unwrap();
        batch.join().unwrap();
        consumers.into_iter().for_each(|consumer| consumer.join().unwrap());
        store.close().unwrap();
    });
}

/// A consumer whose time is over leaves what it was woken for to the others.
#[test]
fn a_consumer_that_leaves_hands_its_wakeup_on() {
    explore(|| {
        let store = open(&Disk::new(), settings(Durability::Process));
        let queue = queue(&store, "q");
        let leaving = {
            let queue = queue.clone();
            thread::spawn(move || queue.get_timeout(Duration::ZERO).unwrap().map(drop))
        };
        let staying = {
            let queue = queue.clone();
            thread::spawn(move || queue.get_timeout(LONG).unwrap().unwrap().delete().unwrap())
        };
        queue.insert("x").unwrap();
        staying.join().unwrap();
        leaving.join().unwrap();
        store.close().unwrap();
    });
}

/// A dead letter is seen once it is durable, and nobody waits for its sync: whoever syncs past it wakes its consumer.
#[test]
fn a_sync_wakes_the_consumer_of_a_dead_letter() {
    explore(|| {
        let store = open(&Disk::new(), settings(Durability::Sync));
        let dead = queue(&store, "dead");
        let jobs = store.declare("jobs", QueueOptions::new().dead_letter("dead")).unwrap();
        jobs.insert("x").unwrap();
        let mourning = thread::spawn(move || dead.get().unwrap().delete().unwrap());
        let burying = {
            let jobs = jobs.clone();
            thread::spawn(move || jobs.get().unwrap().bury("broken").unwrap())
        };
        let other = jobs.clone();
        let syncing = thread::spawn(move || jobs.insert("y").unwrap());
        burying.join().unwrap();
        syncing.join().unwrap();
        // The other insert may have been synced before the move was made.
        other.insert("z").unwrap();
        mourning.join().unwrap();
        store.close().unwrap();
    });
}

/// Whoever waits is told what has come instead of a message.
fn told(end: impl Fn(&Disk, &Store, &Queue) + Send + Sync + 'static, expected: ErrorKind) {
    explore(move || {
        let disk = Disk::new();
        let store = open(&disk, settings(Durability::Process));
        let queue = queue(&store, "q");
        let consumers: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || queue.get().unwrap_err())
            })
            .collect();
        end(&disk, &store, &queue);
        for consumer in consumers {
            assert_eq!(consumer.join().unwrap().kind(), &expected);
        }
        let _ = store.close();
    });
}

#[test]
fn a_close_ends_all_waits() {
    told(|_, store, _| store.close().unwrap(), ErrorKind::Closed);
}

#[test]
fn a_removed_queue_ends_all_waits() {
    told(|_, store, _| store.remove("q").unwrap(), ErrorKind::NotFound);
}

#[test]
fn a_failed_sync_ends_all_waits() {
    use crate::storage::sim::{Fault, FaultKind};
    let fail = |disk: &Disk, store: &Store, _: &Queue| {
        disk.fail(Fault { kind: FaultKind::Sync, after: 0, sticky: true });
        store.declare("other", QueueOptions::new()).unwrap();
        store.sync().unwrap_err();
    };
    told(fail, ErrorKind::Poisoned);
}
