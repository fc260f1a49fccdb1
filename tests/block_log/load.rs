//! What the workload and the checks agree on: queues, options, and the bytes of each message.

#[path = "../common/random.rs"]
mod random;

use std::time::Duration;

use millpond::{Backoff, Durability, QueueOptions, Store, StoreOptions};

pub use random::Random;

/// After three attempts its messages move to `DEAD`.
pub const WORK: u8 = 0;
/// Inserts into it are synced with whatever comes later.
pub const LOOSE: u8 = 2;
pub const DEAD: u8 = 3;

/// For what is inserted after a crash.
pub const AFTERWARDS: u8 = 4;

pub const QUEUES: [&str; 5] = ["work", "plain", "loose", "dead", "afterwards"];

/// The queues that the workload inserts into come first.
pub const INSERTED_INTO: u64 = 3;

const ATTEMPTS_MAX: u32 = 3;

/// Whether a message of this queue is out of attempts.
pub fn is_exhausted(queue: u8, attempts: u32) -> bool {
    queue == WORK && attempts >= ATTEMPTS_MAX
}

pub fn queue_options(queue: u8) -> QueueOptions {
    // What is given back comes at once, so that the order is known.
    let options = QueueOptions::new().lease(None).backoff(Backoff::Fixed(Duration::ZERO));
    match queue {
        WORK => options.max_attempts(Some(ATTEMPTS_MAX)).dead_letter(QUEUES[DEAD as usize]),
        LOOSE => options.durability(Durability::Process),
        _ => options,
    }
}

/// What is durable when the call returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    pub inserts: bool,
    pub deletes: bool,
}

/// How the store is opened for the `n`-th time. Segments are small, so that they roll, die and are rewritten all the time.
pub fn options(n: u32) -> (StoreOptions, Synced) {
    let synced = Synced { inserts: n % 3 != 2, deletes: n.is_multiple_of(3) };
    let durability = |is_synced, ms| match is_synced {
        true => Durability::Sync,
        false => Durability::Interval(Duration::from_millis(ms)),
    };
    let options = Store::options()
        .durability(durability(synced.inserts, 20))
        .delete_durability(durability(synced.deletes, 50))
        .segment_bytes(if n.is_multiple_of(2) { 64 << 10 } else { 128 << 10 });
    (options, synced)
}

/// The message of that name: its name, and filler that follows from it.
pub fn payload(key: u64) -> Vec<u8> {
    let mut random = Random::new(key);
    let bytes = match random.below(500) {
        // Larger than the smallest segment, so that it gets one of its own.
        0 => 70_000 + random.below(30_000),
        1..25 => random.below(12_000),
        25..50 => 0,
        _ => random.below(1500),
    };
    let mut payload = key.to_le_bytes().to_vec();
    while payload.len() < 8 + bytes as usize {
        payload.extend_from_slice(&random.next().to_le_bytes());
    }
    payload.truncate(8 + bytes as usize);
    payload
}

/// The name of the message with these bytes.
pub fn identify(bytes: &[u8]) -> Result<u64, String> {
    let name = bytes.first_chunk().ok_or_else(|| format!("a message of {} bytes", bytes.len()))?;
    let key = u64::from_le_bytes(*name);
    match payload(key) == bytes {
        true => Ok(key),
        false => Err(format!("message {key:#x} has other bytes than it had")),
    }
}
