//! Time that goes by: leases and delays that end while consumers wait, of whom one keeps the time for all.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;
use crate::message::Message;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::time_goes_by;

const DELAY: Duration = Duration::from_secs(10);

/// Lets time go by, piece by piece so that consumers are asleep when something becomes ready, until `threads` are done.
/// Who waits for a time is woken by that; who waits for a signal needs one.
fn let_time_go_by(clock: &Clock, threads: Vec<JoinHandle<()>>, done: &AtomicUsize) {
    while done.load(Ordering::SeqCst) < threads.len() {
        clock.advance(DELAY / 4);
        time_goes_by();
        thread::yield_now();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// `work`, by as many threads as it has elements.
fn spawn_all(work: Vec<Box<dyn FnOnce() + Send>>, done: &Arc<AtomicUsize>) -> Vec<JoinHandle<()>> {
    let spawn = |work: Box<dyn FnOnce() + Send>| {
        let done = done.clone();
        thread::spawn(move || {
            work();
            done.fetch_add(1, Ordering::SeqCst);
        })
    };
    work.into_iter().map(spawn).collect()
}

fn get_and_delete(queue: &Queue) -> Box<dyn FnOnce() + Send> {
    let queue = queue.clone();
    Box::new(move || queue.get().unwrap().delete().unwrap())
}

/// Several messages become ready at one moment, for which only one consumer has set its alarm.
#[test]
fn messages_whose_delay_is_over_come_to_all_who_wait() {
    explore(|| {
        let clock = Clock::new();
        let store = open_with(&Disk::new(), settings(Durability::Process), &clock);
        let queue = queue(&store, "q");
        queue.insert_batch(["a", "b"]).unwrap();
        let both = [queue.get().unwrap(), queue.get().unwrap()];
        for delivery in both {
            delivery.release_after(DELAY).unwrap();
        }
        let done = Arc::default();
        let threads = spawn_all(vec![get_and_delete(&queue), get_and_delete(&queue)], &done);
        let_time_go_by(&clock, threads, &done);
        store.close().unwrap();
    });
}

/// The consumer that keeps the time may leave before it is over; another one must take the time over.
#[test]
fn a_consumer_that_leaves_hands_the_time_on() {
    explore(|| {
        let clock = Clock::new();
        let store = open_with(&Disk::new(), settings(Durability::Process), &clock);
        let queue = queue(&store, "q");
        queue.insert("a").unwrap();
        queue.get().unwrap().release_after(DELAY).unwrap();
        let leaving = queue.clone();
        let leaving = Box::new(move || drop(leaving.get_timeout(Duration::ZERO).unwrap()));
        let done = Arc::default();
        let threads = spawn_all(vec![leaving, get_and_delete(&queue)], &done);
        let_time_go_by(&clock, threads, &done);
        store.close().unwrap();
    });
}

/// A delay may be over while the insert still waits for its sync. Then the message may not be seen, and whoever waits for
/// it is to be woken by the insert.
#[test]
fn a_message_whose_delay_is_over_is_delivered_only_once_it_is_durable() {
    explore(|| {
        let clock = Clock::new();
        let disk = yielding(Disk::new());
        let store = open_with(&disk, settings(Durability::Sync), &clock);
        let queue = queue(&store, "q");
        let insert = |name: &'static str| -> Box<dyn FnOnce() + Send> {
            let queue = queue.clone();
            let message = Message::new(payload(name, 100)).delay(DELAY);
            Box::new(move || drop(queue.insert(message).unwrap()))
        };
        let get = || -> Box<dyn FnOnce() + Send> {
            let (disk, queue) = (disk.clone(), queue.clone());
            Box::new(move || {
                let delivery = queue.get().unwrap();
                let name = name_of(delivery.payload());
                assert!(survives_a_power_cut(&disk, &name), "{name} was delivered");
                delivery.delete().unwrap();
            })
        };
        let done = Arc::default();
        let threads = spawn_all(vec![insert("a"), insert("b"), get(), get()], &done);
        let_time_go_by(&clock, threads, &done);
        store.close().unwrap();
    });
}

/// A lease begins while others wait already, without an alarm.
#[test]
fn a_message_whose_lease_is_over_comes_to_whoever_waits() {
    explore(|| {
        let clock = Clock::new();
        let store = open_with(&Disk::new(), settings(Durability::Process), &clock);
        let queue = store.declare("q", QueueOptions::new().lease(Some(DELAY))).unwrap();
        let done = Arc::default();
        // Its own lease may end, too, before it deletes.
        let get = || -> Box<dyn FnOnce() + Send> {
            let queue = queue.clone();
            Box::new(move || drop(queue.get().unwrap().delete()))
        };
        let threads = spawn_all(vec![get()], &done);
        queue.insert_batch(["a", "b"]).unwrap();
        let held = queue.get().unwrap();
        let more = spawn_all(vec![get()], &done);
        let_time_go_by(&clock, threads.into_iter().chain(more).collect(), &done);
        drop(held);
        store.close().unwrap();
    });
}

/// Nobody waits for the sync of a message that may be lost for a while: the thread of the store sees to it in time.
#[test]
fn a_message_is_synced_when_its_interval_is_over() {
    explore(|| {
        let clock = Clock::new();
        let disk = Disk::new();
        let store = open_with(&disk, settings(Durability::Interval(DELAY)), &clock);
        let queue = queue(&store, "q");
        queue.insert(payload("x", 100)).unwrap();
        clock.advance(DELAY);
        while !survives_a_power_cut(&disk, "x") {
            time_goes_by();
            thread::yield_now();
        }
        store.close().unwrap();
    });
}
