//! What threads share: the standard library's, or what a checker of interleavings puts in its place.
//!
//! `--cfg loom` is for models of single protocols, which visit every interleaving of a few threads. `docs/testing.md` has
//! the command.

#[cfg(loom)]
pub(crate) use loom::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
