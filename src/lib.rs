//! millpond: an embedded, crash-safe message queue on a write-ahead log.
#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

mod clock;
mod cursor;
mod dispatch;
mod error;
mod format;
mod lock;
mod log;
mod options;
mod random;
mod report;
mod storage;
