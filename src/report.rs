//! What an open found, for the person who reads it.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// A range of a file that was proven durable once and is damaged now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The damaged file.
    pub file: PathBuf,
    /// Where the damage begins, in bytes.
    pub offset: u64,
    /// How many bytes are damaged; 0 where the file is missing.
    pub bytes: u64,
    /// The ids that may be gone with it. Ids in the range that were deleted, or never given out, are not lost.
    pub ids: Range<u64>,
    /// What is wrong, in words.
    pub what: String,
}

/// Bytes that were never proven durable and do not belong to the log: what a crash left unfinished.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetAside {
    /// The file they were found in.
    pub file: PathBuf,
    /// Where they begin, in bytes.
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
}

/// What the open found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// The store was closed properly before, or is new.
    pub clean: bool,
    /// Segments of the log.
    pub segments: usize,
    /// Bytes of log that were read again because no cursor covered them.
    pub replayed_bytes: u64,
    /// Messages that were in flight when the store died; the attempt counts.
    pub redelivered: u64,
    /// Damage to what was proven durable, found by this open. In segments that a cursor covers it is found when they
    /// are read; then it is in the store's statistics.
    pub damaged: Vec<Damage>,
    /// Unfinished bytes behind the end of the log, copied to `quarantine/` as far as that could be done.
    pub set_aside: Vec<SetAside>,
    /// Cursor files that could not be read. With the newest of them gone the log was replayed from an older one,
    /// which loses nothing; with all of them gone deleted messages may have come back.
    pub bad_cursors: Vec<PathBuf>,
    /// No cursor could be read, so all of the log was.
    pub full_walk: bool,
    /// Queues whose names were damaged, under the names that their messages are found by now.
    pub renamed_queues: Vec<String>,
}

/// What was found in a store that was checked, or that messages were salvaged from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Queues that are declared.
    pub queues: usize,
    /// Messages that are not deleted; or that were salvaged.
    pub messages: u64,
    /// Segments of the log.
    pub segments: usize,
    /// How long they are together, in bytes.
    pub bytes: u64,
    /// Damage to what was proven durable.
    pub damaged: Vec<Damage>,
    /// Unfinished bytes behind the end of the log.
    pub set_aside: Vec<SetAside>,
    /// Cursor files that cannot be read.
    pub bad_cursors: Vec<PathBuf>,
    /// Index files that cannot be used. Nothing is lost: they are made anew.
    pub bad_indexes: Vec<PathBuf>,
    /// No cursor can be read.
    pub full_walk: bool,
}

impl Report {
    /// Whether everything is as it was written. What a crash has left unfinished does not count.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.bad_cursors.is_empty() && self.bad_indexes.is_empty()
    }
}

/// Why nothing is got from a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Paused {
    /// By [`Queue::pause`](crate::Queue::pause).
    ByCall,
    /// By so many failures in a row: [`QueueOptions::pause_after_failures`](crate::QueueOptions::pause_after_failures).
    ByFailures(u32),
}

impl Paused {
    /// As it is stored: 0 is by a call.
    pub(crate) fn from_failures(failures: u32) -> Paused {
        if failures == 0 { Paused::ByCall } else { Paused::ByFailures(failures) }
    }

    pub(crate) fn failures(self) -> u32 {
        match self {
            Paused::ByCall => 0,
            Paused::ByFailures(failures) => failures,
        }
    }
}

impl fmt::Display for Paused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Paused::ByCall => f.write_str("paused by a call"),
            Paused::ByFailures(count) => write!(f, "paused itself after {count} failures in a row"),
        }
    }
}

/// Where a message is, between its insert and its delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Waiting for a consumer.
    Ready,
    /// Held by a consumer.
    InFlight,
    /// Waiting for its time: it failed or was released with a delay.
    Delayed,
    /// Out of circulation: its attempts are used up, or it was buried.
    Buried,
}
