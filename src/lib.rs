//! millpond: an embedded, crash-safe message queue on a write-ahead log.
//!
//! A program links it, opens a directory, and gets named queues with *insert - get - delete* semantics: a message stays
//! in its queue until the consumer that got it deletes it, and what was not deleted when the process died is delivered
//! again on reopen.
//!
//! ```
//! # fn main() -> millpond::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! let store = millpond::Store::open(dir.path())?;
//! let queue = store.queue("mail")?;
//!
//! queue.insert("to: ada")?; // on stable storage when it returns
//!
//! let mail = queue.get()?;
//! assert_eq!(mail.payload(), b"to: ada");
//! // If the process dies here, the mail is delivered again, as attempt 2.
//! mail.delete()?;
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_op_in_unsafe_fn, missing_docs)]
// Files, clocks, threads and random numbers have one home each, see clippy.toml. The tests may use them.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;

mod browse;
mod clock;
mod compaction;
mod cursor;
mod delivery;
mod dispatch;
mod engine;
mod error;
mod events;
mod format;
mod headers;
mod id;
mod lock;
mod log;
mod message;
mod options;
mod origin;
mod planted;
mod queue;
mod random;
mod report;
mod storage;
mod store;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;

pub use browse::Browse;
pub use delivery::{Delivery, Entry, Payload};
pub use engine::{Closed, Fate, Oldest, QueueStats, SegmentStats, StoreStats};
pub use error::{Error, ErrorKind, Result};
pub use headers::{HeaderValue, Headers};
pub use id::MessageId;
pub use message::Message;
pub use options::{AtLimit, Backoff, Durability, OnDrop, QueueOptions};
pub use origin::Origin;
pub use queue::{Deleted, Queue};
pub use report::{Damage, Paused, Recovery, Report, SetAside, State};
pub use store::{Store, StoreOptions};
