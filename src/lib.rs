//! millpond: an embedded, crash-safe message queue on a write-ahead log.
#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

mod format;
mod storage;
