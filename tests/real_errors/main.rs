//! Errors of the real kernel: a device that takes no writes or gives no reads, a file system that is shut down, limits of a
//! process, a directory that is closed or removed, a file that somebody cuts off.
//!
//! What was acknowledged before must be there after, errors must come out, and only what `docs/guarantees.md` names may
//! raise SIGBUS. Some of it takes tools (`tests/tools`) and the right to mount; where the machine has them not, the test
//! says so on standard error, and shows nothing.
#![cfg(target_os = "linux")]

mod device;
mod directory;
mod limits;
mod sigbus;
mod worker;
mod write_back;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use millpond::{Durability, Queue, Store, StoreOptions};

/// Messages of so many bytes fill segments soon.
const PAYLOAD_BYTES: usize = 1000;

pub fn payload(n: u64) -> Vec<u8> {
    let mut payload = n.to_le_bytes().to_vec();
    payload.resize(PAYLOAD_BYTES, n as u8);
    payload
}

/// The number that a payload was made from.
pub fn number(bytes: &[u8]) -> u64 {
    let n = u64::from_le_bytes(*bytes.first_chunk().expect("a message of the test"));
    assert_eq!(bytes, payload(n), "message {n} has other bytes than it had");
    n
}

pub fn options(durability: Durability, segment_bytes: u64) -> StoreOptions {
    Store::options()
        .durability(durability)
        .delete_durability(durability)
        .segment_bytes(segment_bytes)
}

/// What was told to whoever used a store.
#[derive(Debug, Default)]
pub struct Told {
    pub inserted: BTreeSet<u64>,
    /// Inserts that have failed, or have not returned.
    pub uncertain: BTreeSet<u64>,
    pub deleted: BTreeSet<u64>,
    /// Deletes that have failed, or have not returned.
    pub deleting: BTreeSet<u64>,
}

impl Told {
    /// Every message that was acknowledged is in the queue, and none that was deleted.
    pub fn check(&self, found: &[u64]) {
        let set: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(set.len(), found.len(), "a message is there twice");
        let kept = self.inserted.difference(&self.deleted);
        let lost: Vec<&u64> =
            kept.filter(|n| !set.contains(n) && !self.deleting.contains(n)).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let back: Vec<&u64> = set.intersection(&self.deleted).collect();
        assert!(back.is_empty(), "deleted and back: {back:?}");
        let known = |n: &&u64| self.inserted.contains(n) || self.uncertain.contains(n);
        assert!(set.iter().all(|n| known(&n)), "nobody has inserted some of {set:?}");
    }
}

/// Takes everything out of a queue.
pub fn drain(queue: &Queue) -> Vec<u64> {
    let mut found = Vec::new();
    while let Some(delivery) = queue.try_get().unwrap() {
        found.push(number(delivery.payload()));
        delivery.delete().unwrap();
    }
    found
}

/// Opens a store that has met errors: nothing that was durable has changed, and all that was acknowledged is there.
pub fn check_store(dir: &Path, told: &Told) {
    let store = options(Durability::Sync, 1 << 20).open(dir).unwrap();
    let recovery = store.recovery();
    assert!(recovery.damaged.is_empty() && recovery.bad_cursors.is_empty(), "{recovery:?}");
    let queue = store.queue("q").unwrap();
    told.check(&drain(&queue));
    queue.insert("it works").unwrap();
    store.close().unwrap();
}

/// Runs a tool, or says why it could not do what it was to do.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Says what is not shown on this machine, and why.
pub fn not_shown(what: &str, why: &str) {
    eprintln!("not shown, {what}: {why}");
}

/// The process that meets an error. Does nothing unless a test started it.
#[test]
#[ignore = "the other tests of this file start it"]
fn worker() {
    worker::run_if_started();
}
