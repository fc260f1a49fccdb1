//! All interleavings, with a few preemptions, of a consumer that waits and of what has to wake it: real calls of a
//! real store on the simulated disk, without its background threads.
//!
//! loom calls a state in which everybody waits a deadlock, so a lost wakeup fails every test here. Two things it does
//! not see: the one order of all sequentially consistent operations, so messages are not synced here; and what goes
//! over the disk, so nothing is rewritten or removed here. `schedules.rs` does both.

use std::sync::Arc;

use loom::thread::{Builder, JoinHandle};

use crate::clock::{Clock, TimeSource};
use crate::error::ErrorKind;
use crate::options::{Durability, OnDrop, QueueOptions, Settings};
use crate::queue::Queue;
use crate::random::Entropy;
use crate::storage::sim::Disk;
use crate::store::Store;

/// What an open needs is more than loom's threads have.
const STACK_WORDS: usize = 64 << 10;

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().stack_size(STACK_WORDS).spawn(work).unwrap()
}

/// All interleavings of `model` with at most `few` switches away from a thread that could go on; with
/// `MILLPOND_MODELS=all`, with at most `many`.
fn explore(few: usize, many: usize, model: impl Fn() + Send + Sync + 'static) {
    let all = std::env::var("MILLPOND_MODELS").is_ok_and(|value| value == "all");
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(if all { many } else { few });
    builder.max_branches = 200_000;
    let model = Arc::new(model);
    builder.check(move || {
        let model = model.clone();
        spawn(move || model()).join().unwrap();
    });
}

fn open(disk: &Disk) -> Store {
    let settings = Settings {
        durability: Durability::Process,
        delete_durability: Durability::Process,
        segment_bytes: 64 << 10,
        background: false,
        ..Settings::default()
    };
    let (time, entropy) = (TimeSource::Manual(Clock::new()), Entropy::Sequence(Arc::default()));
    Store::start(Arc::new(disk.clone()), settings, time, entropy).unwrap()
}

fn queue(store: &Store) -> Queue {
    store.declare("q", QueueOptions::new().lease(None).on_drop(OnDrop::Release)).unwrap()
}

#[test]
fn an_insert_wakes_a_consumer_that_is_about_to_sleep() {
    explore(3, 5, || {
        let store = open(&Disk::new());
        let queue = queue(&store);
        let consumer = queue.clone();
        let consumer = spawn(move || consumer.get().unwrap().delete().unwrap());
        queue.insert("x").unwrap();
        consumer.join().unwrap();
        store.close().unwrap();
    });
}

#[test]
fn a_release_wakes_a_consumer_that_is_about_to_sleep() {
    explore(3, 5, || {
        let store = open(&Disk::new());
        let queue = queue(&store);
        queue.insert("x").unwrap();
        let held = queue.get().unwrap();
        let consumer = spawn(move || queue.get().unwrap().delete().unwrap());
        held.release().unwrap();
        consumer.join().unwrap();
        store.close().unwrap();
    });
}

/// One of them may take what the other was woken for.
#[test]
fn two_inserts_wake_two_consumers() {
    explore(2, 4, || {
        let store = open(&Disk::new());
        let queue = queue(&store);
        let consume = || {
            let queue = queue.clone();
            spawn(move || queue.get().unwrap().delete().unwrap())
        };
        let consumers = [consume(), consume()];
        queue.insert("x").unwrap();
        queue.insert("y").unwrap();
        consumers.into_iter().for_each(|consumer| consumer.join().unwrap());
        store.close().unwrap();
    });
}

#[test]
fn a_close_ends_a_wait() {
    explore(2, 4, || {
        let store = open(&Disk::new());
        let queue = queue(&store);
        let consumer = spawn(move || queue.get().unwrap_err());
        store.close().unwrap();
        assert_eq!(consumer.join().unwrap().kind(), &ErrorKind::Closed);
    });
}
