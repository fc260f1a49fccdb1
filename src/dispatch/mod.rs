//! Which message goes out next, and what became of those that went: a pure state machine.
//!
//! It takes the time, and knows neither files nor clocks nor threads. A [`QueueState`] holds only the messages
//! that somebody has touched (in flight, given back, delayed, buried), and those that wait for their group; the rest of the
//! backlog stays in the log and is read from there by id, so memory follows what is in flight, never what waits.

mod by_id;
mod dedup;
mod entry;
mod groups;
mod leases;
mod queue;
mod streak;

pub(crate) use dedup::{DedupWindow, Limits};
pub(crate) use entry::{Entry, Place};
pub(crate) use groups::GroupKey;
pub(crate) use queue::{Freed, QueueState, Turn};
