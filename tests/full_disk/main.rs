//! With no byte free, inserts are refused and everything else goes on; and so it is at the limit of a store.

mod attacks;
mod real;
mod simulated;
#[path = "../common/small_store.rs"]
mod small_store;

use millpond::testing::Disk;
use millpond::{Delivery, ErrorKind, Queue};

use small_store::payload;

/// So much space besides its length that no file can be made where there is an end to it, as on a full XFS.
pub const NEVER: u64 = 1 << 40;

/// A disk on which making a file needs so much space besides.
pub fn disk_with_slack(slack: u64) -> Disk {
    let disk = Disk::new();
    disk.set_creation_slack(slack);
    disk
}

pub fn get(queue: &Queue) -> Delivery {
    queue.try_get().unwrap().expect("a message is ready")
}

/// Inserts messages from number `first` on until there is no space. How many there were.
pub fn fill(queue: &Queue, first: u64, bytes: usize) -> u64 {
    let mut n = first;
    loop {
        match queue.insert(payload(n, bytes)) {
            Ok(_) => n += 1,
            Err(error) => {
                assert_eq!(error.kind(), &ErrorKind::DiskFull, "{error}");
                assert!(error.is_retryable() && !error.is_indeterminate());
                return n - first;
            }
        }
    }
}
