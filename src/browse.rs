//! Looking through a queue.

use std::fmt;
use std::iter::FusedIterator;
use std::vec;

use crate::delivery::Entry;
use crate::engine::Browsing;
use crate::error::Result;
use crate::queue::Queue;
use crate::report::State;

/// The messages of a queue that are in one state: see [`Queue::browse`].
///
/// It keeps the store open, as a handle of the queue does.
#[must_use = "an iterator does nothing until it is asked for something"]
pub struct Browse {
    queue: Queue,
    at: Browsing,
    /// What has been read of it ahead.
    read: vec::IntoIter<Result<Entry>>,
}

impl Browse {
    pub(crate) fn new(queue: &Queue, which: State) -> Browse {
        let at = queue.store().engine().browse(which, false);
        Browse { queue: queue.clone(), at, read: Vec::new().into_iter() }
    }
}

impl Iterator for Browse {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        if let Some(entry) = self.read.next() {
            return Some(entry);
        }
        match self.queue.store().engine().browse_next(self.queue.shared(), &mut self.at) {
            Ok(read) => {
                let entries: Vec<_> = read.into_iter().map(|read| read.map(Entry::new)).collect();
                self.read = entries.into_iter();
                self.read.next()
            }
            Err(error) => {
                self.at.end();
                Some(Err(error))
            }
        }
    }
}

impl FusedIterator for Browse {}

impl fmt::Debug for Browse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browse").field("queue", &self.queue.name()).finish_non_exhaustive()
    }
}
