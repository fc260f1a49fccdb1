//! What a dead letter tells of its past.

use std::time::SystemTime;

use crate::clock::wall_time;
use crate::engine::Content;
use crate::id::MessageId;

/// Where and why a message was taken out of circulation: see [`Delivery::origin`](crate::Delivery::origin).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    id: u64,
    queue: &'a str,
    reason: &'a str,
    attempts: u32,
    moved_at_ms: u64,
}

impl<'a> Origin<'a> {
    pub(crate) fn of(content: &'a Content) -> Option<Origin<'a>> {
        let head = content.head()?;
        let origin = head.origin?;
        Some(Origin {
            id: origin.id,
            queue: text(origin.queue),
            reason: text(origin.reason),
            attempts: origin.attempts,
            moved_at_ms: head.time_ms,
        })
    }

    /// The number that the message had when it was first inserted.
    pub fn id(&self) -> MessageId {
        MessageId(self.id)
    }

    /// The name of the queue that has given it up.
    pub fn queue(&self) -> &'a str {
        self.queue
    }

    /// Why: what `fail` or `bury` was told, at most 1024 bytes of it, or that its attempts were used up.
    pub fn reason(&self) -> &'a str {
        self.reason
    }

    /// How many attempts it had used there.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// When it came to the queue that it is in now, by the wall clock of that moment.
    pub fn moved_at(&self) -> SystemTime {
        wall_time(self.moved_at_ms)
    }
}

/// As far as it is text. Somebody else may have written the bytes.
fn text(bytes: &[u8]) -> &str {
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_ends_the_text() {
        assert_eq!(text("größer".as_bytes()), "größer");
        assert_eq!((text(b"abc\xFFdef"), text(b"\xFF"), text(b"")), ("abc", "", ""));
    }
}
