//! For tests of programs that use millpond: a disk that can be cut off at any moment, a clock that stands still until it
//! is moved, and [`CrashTest`], which crashes a program at every operation of its disk.

mod crashes;
#[doc(hidden)]
pub mod fuzz;

pub use self::crashes::{Broken, Crash, CrashTest, Crashes, Cut, Journal, Visited};
pub use crate::clock::Clock;
pub use crate::storage::sim::{Callback, Disk, Fault, FaultKind};

use std::sync::Arc;

use crate::engine;
use crate::error::Result;
use crate::report::Report;
use crate::store::Store;

/// Does one piece of the work that a store's background threads would do. Whether there was any.
pub fn step(store: &Store) -> Result<bool> {
    let engine = store.engine();
    Ok(engine.supply_step()? || engine.maintain()?)
}

/// As [`Store::verify`].
pub fn verify(disk: &Disk) -> Result<Report> {
    engine::verify(Arc::new(disk.clone()))
}

/// As [`Store::salvage`], into a store that is open.
pub fn salvage(from: &Disk, to: &Store) -> Result<Report> {
    to.engine().salvage_from(Arc::new(from.clone()))
}

/// As [`Store::backup`], onto an empty disk.
pub fn backup(store: &Store, to: &Disk) -> Result<()> {
    store.engine().backup(to)
}
