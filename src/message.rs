//! What users insert.

use std::borrow::Cow;
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

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A message to insert: a payload, borrowed or owned, of any bytes, also none.
///
/// Whatever can be a payload converts by itself, so that this type is seldom named:
///
/// ```
/// # fn main() -> millpond::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let store = millpond::Store::open(dir.path())?;
/// # let queue = store.queue("jobs")?;
/// queue.insert("text")?;
/// queue.insert(b"bytes")?;
/// queue.insert(vec![1, 2, 3])?;
/// queue.insert(millpond::Message::new("named"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    payload: Cow<'a, [u8]>,
}

impl<'a> Message<'a> {
    /// A message with this payload.
    pub fn new(payload: impl Into<Message<'a>>) -> Message<'a> {
        payload.into()
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(payload: &'a [u8]) -> Self {
        Message { payload: Cow::Borrowed(payload) }
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Message<'a> {
    fn from(payload: &'a [u8; N]) -> Self {
        payload.as_slice().into()
    }
}

impl<'a> From<&'a str> for Message<'a> {
    fn from(payload: &'a str) -> Self {
        payload.as_bytes().into()
    }
}

impl<'a> From<&'a String> for Message<'a> {
    fn from(payload: &'a String) -> Self {
        payload.as_bytes().into()
    }
}

impl<'a> From<&'a Vec<u8>> for Message<'a> {
    fn from(payload: &'a Vec<u8>) -> Self {
        payload.as_slice().into()
    }
}

impl From<Vec<u8>> for Message<'_> {
    fn from(payload: Vec<u8>) -> Self {
        Message { payload: Cow::Owned(payload) }
    }
}

impl From<String> for Message<'_> {
    fn from(payload: String) -> Self {
        payload.into_bytes().into()
    }
}

impl<'a> From<Cow<'a, [u8]>> for Message<'a> {
    fn from(payload: Cow<'a, [u8]>) -> Self {
        Message { payload }
    }
}

impl<'a> From<&'a Message<'_>> for Message<'a> {
    fn from(message: &'a Message<'_>) -> Self {
        message.payload().into()
    }
}
