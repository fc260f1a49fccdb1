//! A store of small segments on a simulated disk, without threads of its own.

use std::sync::Arc;

use crate::clock::{Clock, TimeSource};
use crate::options::{Durability, Settings};
use crate::storage::sim::Disk;
use crate::store::Store;

pub(super) fn open(disk: &Disk, clock: &Clock, durability: Durability) -> Store {
    let settings = Settings {
        durability,
        delete_durability: Durability::Process,
        segment_bytes: 64 << 10,
        background: false,
        ..Settings::default()
    };
    let time = TimeSource::Manual(clock.clone());
    Store::start(Arc::new(disk.clone()), settings, time, disk.entropy()).unwrap()
}
