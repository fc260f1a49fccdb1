//! A store of small segments, without a sync for each call, and messages that know their number.

use millpond::testing::step;
use millpond::{Durability, Store, StoreOptions};

pub const SEGMENT_BYTES: u64 = 64 << 10;

pub fn options() -> StoreOptions {
    Store::options()
        .segment_bytes(SEGMENT_BYTES)
        .durability(Durability::Process)
        .delete_durability(Durability::Process)
}

/// All that the background threads would do.
pub fn settle(store: &Store) {
    let mut steps = 0;
    while step(store).unwrap() {
        steps += 1;
        assert!(steps < 100_000, "it comes to an end");
    }
}

pub fn payload(n: u64, bytes: usize) -> Vec<u8> {
    let mut payload = n.to_le_bytes().to_vec();
    payload.resize(bytes.max(8), n as u8);
    payload
}

pub fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(*payload.first_chunk().unwrap())
}
