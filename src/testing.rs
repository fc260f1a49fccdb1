//! For tests of programs that use millpond: a disk that can be cut off at any moment, and a clock that stands still
//! until it is moved.

pub use crate::clock::Clock;
pub use crate::storage::sim::{Callback, Disk, Fault, FaultKind};

use crate::error::Result;
use crate::store::Store;

/// Does one piece of the work that a store's background threads would do. Whether there was any.
pub fn step(store: &Store) -> Result<bool> {
    let engine = store.engine();
    Ok(engine.supply_step()? || engine.maintain()?)
}
