//! What a queue can promise: how it retries, what becomes of what it has given up, and how it is looked at and managed.

mod browse;
mod dead_letters;
#[path = "../common/got.rs"]
mod got;
mod manage;
mod pause;
mod retry;
#[path = "../common/small_store.rs"]
mod small_store;

use std::time::Duration;

use millpond::testing::{Clock, Disk};
use millpond::{Queue, Store};

use got::{get_all, numbers};
use small_store::{number, options, payload, settle};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn open(disk: &Disk) -> Store {
    options().open_simulated(disk, &Clock::new()).unwrap()
}

/// Messages with these numbers.
fn insert(queue: &Queue, numbers: std::ops::Range<u64>) {
    for n in numbers {
        queue.insert(payload(n, 100)).unwrap();
    }
}

/// The numbers of all that can be got, which is given back.
fn ready(queue: &Queue) -> Vec<u64> {
    let all = get_all(queue);
    let numbers = numbers(&all);
    all.into_iter().for_each(|delivery| delivery.release().unwrap());
    numbers
}
