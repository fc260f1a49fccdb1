//! The numbers of messages.

use std::fmt;

/// A message's number: unique in its store, ascending in the order of inserts, and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub(crate) u64);

impl MessageId {
    /// The number itself.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

/// The number that somebody has written down, in a log or on a command line.
impl From<u64> for MessageId {
    fn from(number: u64) -> MessageId {
        MessageId(number)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
