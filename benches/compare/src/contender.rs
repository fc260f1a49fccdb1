//! What a contender is asked to do. One file in `contenders/` for each.

use std::path::Path;

/// What must be true when an insert, or a delete, returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The death of the process loses nothing.
    Process,
    /// A power cut loses nothing.
    Sync,
}

/// Why a contender has no figure for a workload: shown in the table as it stands.
#[derive(Debug)]
pub struct Unsupported(pub &'static str);

pub type Supported<T> = Result<T, Unsupported>;

/// What a contender is, beside its figures.
pub struct Card {
    pub name: &'static str,
    /// Version of the crate or of the server, read from where it is true (`CARGO_PKG_VERSION` of a crate is in
    /// `Cargo.lock`; a server is asked).
    pub version: String,
    /// Weaknesses that make its numbers unequal, one sentence each. Empty for none.
    pub unequal: &'static [&'static str],
}

/// Opens a contender's store in an empty directory, or one that it has left before.
pub trait Contender: Sized + Send + Sync {
    fn card() -> Card;

    /// `queues` is how many of them the workload uses: they are numbered from 0.
    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Self>;

    /// A handle for one producing thread.
    fn producer(&self, queue: usize) -> Supported<impl Producer + '_>;

    /// A handle for one consuming thread.
    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_>;

    /// The process that does the work, if it is not this one: its memory and its writes are what counts.
    fn server_pid(&self) -> Option<u32> {
        None
    }

    /// An orderly end. Dropping is not: the process may die without it.
    fn close(self) {}
}

/// Inserts into one queue. Panics on errors: a contender that fails has no figure.
pub trait Producer: Send {
    /// Has the durability of the store when it returns.
    fn insert(&mut self, payload: &[u8]);

    /// All of them, with one synchronisation if the contender can.
    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()>;
}

/// Gets from one queue, and deletes.
pub trait Consumer: Send {
    /// The oldest message: shows its payload, deletes it. `false` if there is none. Get and delete are two steps, and
    /// a message that was got and not deleted must come back after the death of the process, where the contender can.
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool>;

    /// The same with up to `max` of them at once; how many there were. One synchronisation for all.
    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize>;

    /// Gets up to `max` messages, shows them in order, then deletes them one by one in the order of `order` (a
    /// permutation of 0..max), each with the durability of the store; how many there were.
    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize>;
}
