//! What the workload notes before and after each call.

/// When something was noted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// How many records were noted before, by all threads.
    pub tick: u64,
    /// How many block writes and flushes the device had taken. What a call has waited for is among those before the
    /// position that is noted once it has returned.
    pub position: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Opening,
    /// The store is open. `count` is 1 if it syncs inserts, and 2 more if it syncs deletes.
    Opened,
    /// `count` messages are about to be inserted, from `key` on.
    Inserting,
    /// They were, with ids from `id` on.
    Inserted,
    /// Up to `count` messages are about to be got.
    Getting,
    /// This one was.
    Got,
    /// No more of that get.
    GotAll,
    Deleting,
    Releasing,
    Failing,
    /// What the thread was about to do with the message has returned.
    Settled,
    Syncing,
    Synced,
    /// No other thread is at work, and what is held is given back.
    Closing,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub thread: u8,
    pub queue: u8,
    pub count: u16,
    pub attempt: u32,
    pub key: u64,
    pub id: u64,
    pub at: Moment,
}

impl Record {
    pub fn new(thread: u8, kind: Kind) -> Record {
        let at = Moment::default();
        Record { kind, thread, queue: 0, count: 0, attempt: 0, key: 0, id: 0, at }
    }
}

/// Who takes the notes, all of one call at once, and sets their moments.
pub trait Witness: Sync {
    fn note(&self, records: &[Record]);
}
