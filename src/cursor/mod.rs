//! The ack cursor: which messages are gone, and the files that remember it and everything else that is not a
//! live record.

mod acks;
mod files;

pub(crate) use acks::AckSet;
pub(crate) use files::{
    BadCursor, CURSOR_BEING_WRITTEN, Loaded, PublishFailed, cursor_name, load, parse_cursor_name,
    publish, read_cursor, remove_before, unreadable_before,
};
