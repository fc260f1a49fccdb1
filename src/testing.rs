//! For tests of programs that use millpond: a disk that can be cut off at any moment, and a clock that stands still
//! until it is moved.

pub use crate::clock::Clock;
pub use crate::storage::sim::{Callback, Disk, Fault, FaultKind};

use crate::error::Result;
use crate::store::Store;

/// Does one piece of the maintenance that a store's background thread would do. Whether there was any.
pub fn step(store: &Store) -> Result<bool> {
    store.engine().step()
}
