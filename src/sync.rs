//! What threads share: the standard library's, or what a checker of interleavings puts in its place.
//!
//! `--cfg loom` is for models of single protocols, which visit every interleaving of a few threads, `--cfg shuttle` for the
//! whole store under schedules that a seed picks. `docs/testing.md` has the commands.

#[cfg(shuttle)]
mod timed;

#[cfg(loom)]
pub(crate) use loom::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(shuttle)]
pub(crate) use timed::Condvar;
#[cfg(all(test, shuttle))]
pub(crate) use timed::time_goes_by;
