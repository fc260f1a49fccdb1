//! What users insert.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use crate::engine::Due;
use crate::error::{Error, ErrorKind, Result};
use crate::format::cursor::window::{DEDUP_KEY_BYTES_MAX, is_dedup_key};
use crate::format::record::headers::put_header_block;
use crate::format::record::insert::GROUP_BYTES_MAX;
use crate::headers::{CONTENT_TYPE, CORRELATION_ID, HeaderValue, REPLY_TO};

/// The most urgent priority.
const PRIORITY_MAX: u8 = 9;

const KEY_BYTES_MAX: usize = 255;

const HEADERS_BYTES_MAX: usize = 64 << 10;

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
///
/// What else a message can have is set on it, and checked when it is inserted:
///
/// ```
/// # fn main() -> millpond::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let store = millpond::Store::open(dir.path())?;
/// # let queue = store.queue("jobs")?;
/// use millpond::Message;
///
/// queue.insert(Message::new("later"))?;
/// queue.insert(Message::new("{}").priority(9).content_type("application/json").header("try", 3))?;
///
/// let first = queue.get()?;
/// assert_eq!(first.payload(), b"{}");
/// assert_eq!(first.headers().content_type(), Some("application/json"));
/// assert_eq!(first.headers().get("try"), Some(3.into()));
/// # first.delete()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    payload: Cow<'a, [u8]>,
    priority: u8,
    /// Most messages have nothing of it, and are to cost nothing for it.
    more: Option<Box<More<'a>>>,
}

/// What few messages ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct More<'a> {
    due: Option<Due>,
    ttl: Option<Duration>,
    dedup_key: Option<Cow<'a, [u8]>>,
    group: Option<Cow<'a, [u8]>>,
    headers: Vec<(Cow<'a, str>, HeaderValue<'a>)>,
}

impl More<'_> {
    fn borrow(&self) -> More<'_> {
        let headers = self.headers.iter();
        More {
            due: self.due,
            ttl: self.ttl,
            dedup_key: self.dedup_key.as_deref().map(Cow::Borrowed),
            group: self.group.as_deref().map(Cow::Borrowed),
            headers: headers.map(|(key, value)| ((&**key).into(), value.borrow())).collect(),
        }
    }
}

impl<'a> Message<'a> {
    fn more(&mut self) -> &mut More<'a> {
        self.more.get_or_insert_default()
    }

    /// A message with this payload.
    pub fn new(payload: impl Into<Message<'a>>) -> Message<'a> {
        payload.into()
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// How urgent it is, from 0, the default, to 9. Of the messages that are ready those of higher priority are got first;
    /// among equals those that were given back, then those whose delay is over, and then the others in the order of their
    /// inserts.
    pub fn priority(mut self, priority: u8) -> Message<'a> {
        self.priority = priority;
        self
    }

    /// Keeps the message back for so long: it can be got when the time is over, whatever happens to the process meanwhile.
    /// Of messages that have become due those that were due first are got first.
    ///
    /// The time is that of the wall clock. If somebody sets that forward, what is due by then can be got at once; if
    /// backward, it takes as much longer. Nothing is lost by either. Each delayed message takes some hundred bytes of
    /// memory.
    pub fn delay(mut self, delay: Duration) -> Message<'a> {
        self.more().due = Some(Due::In(delay));
        self
    }

    /// As [`delay`](Message::delay), until this time. A time that has come is no delay.
    pub fn not_before(mut self, time: SystemTime) -> Message<'a> {
        self.more().due = Some(Due::At(time));
        self
    }

    /// How long the message is worth delivering, from its insert on and by the wall clock; from 1 ms. Without it, the
    /// queue's [`ttl`](crate::QueueOptions::ttl) holds; with both, the shorter one.
    ///
    /// One that has expired is never delivered any more. It moves to the queue's dead letter queue, with the reason
    /// "expired", or is deleted if there is none, and its space comes back, also when nobody gets from the queue. A
    /// consumer that holds it by then may finish its work. Until the background has found it, it is counted among those
    /// that wait.
    pub fn ttl(mut self, ttl: Duration) -> Message<'a> {
        self.more().ttl = Some(ttl);
        self
    }

    /// Names the message, so that it can be inserted again without being there twice: while its queue knows the key, an
    /// insert with the same one returns the id of the first message and inserts nothing, whatever else differs, and also if
    /// that message was delivered and deleted since. Any 1 to 255 bytes. How long a queue knows it is said by its
    /// [`dedup_window`](crate::QueueOptions::dedup_window): by default 5 minutes, if not 100,000 other keys follow.
    ///
    /// A duplicate returns only when the first message has reached the durability that the queue asks for. In a batch, the
    /// same goes for each message by itself, and of two with the same key the first is inserted.
    ///
    /// So whoever does not know whether an insert took effect, because the process or the disk has failed, does it again:
    ///
    /// ```
    /// # fn main() -> millpond::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// use millpond::{Message, Store};
    ///
    /// let order = || Message::new("2 pounds of tea").dedup_key(b"order 17");
    /// let store = Store::open(dir.path())?;
    /// let first = match store.queue("orders")?.insert(order()) {
    ///     // Its sync has failed: it may be there after a reopen, or not. Nothing more is accepted until then.
    ///     Err(error) if error.is_indeterminate() => None,
    ///     other => Some(other?),
    /// };
    /// drop(store);
    ///
    /// // In the next process, or after the reopen: it is there once, whatever became of it before.
    /// let store = Store::open(dir.path())?;
    /// let queue = store.queue("orders")?;
    /// let id = queue.insert(order())?;
    /// assert!(first.is_none_or(|first| first == id));
    /// assert_eq!(queue.stats()?.ready, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A message that is moved to a dead letter queue, that is made from a [`Delivery`](crate::Delivery), or that was
    /// salvaged, has no key.
    pub fn dedup_key(mut self, key: impl Into<Cow<'a, [u8]>>) -> Message<'a> {
        self.more().dedup_key = Some(key.into());
        self
    }

    /// Puts the message into the group of this name, any 1 to 255 bytes. Of a group, one message at a time is with a consumer,
    /// and the next one goes out when that is done with: deleted, moved to the dead letter queue, or buried. So with any
    /// number of consumers what belongs together is done in order, and everything else beside it:
    ///
    /// ```
    /// # fn main() -> millpond::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = millpond::Store::open(dir.path())?;
    /// # let queue = store.queue("orders")?;
    /// use millpond::Message;
    ///
    /// queue.insert(Message::new("open account 17").group(b"17"))?;
    /// queue.insert(Message::new("close account 17").group(b"17"))?;
    /// queue.insert(Message::new("open account 18").group(b"18"))?;
    ///
    /// let first = queue.get()?;
    /// let second = queue.get()?;
    /// assert_eq!(first.payload(), b"open account 17");
    /// assert_eq!(second.payload(), b"open account 18");
    /// assert!(queue.try_get()?.is_none());
    /// first.delete()?;
    /// assert_eq!(queue.get()?.payload(), b"close account 17");
    /// # second.delete()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The order is that of the queue: higher priority first, then that of the inserts. A message that was given back or has
    /// failed keeps its group until it is done with, also while it waits for a retry, and after a restart. One that is
    /// inserted with a delay takes its turn when it is due, and holds nobody up before.
    ///
    /// A group whose message takes long does not hold up others: they are got past it. Up to 10,000 messages of each
    /// priority can wait behind their groups so, in some 300 bytes of memory each; if more do, the rest of that
    /// priority waits with them. There may be any number of groups, and one that nobody is in costs nothing.
    pub fn group(mut self, name: impl Into<Cow<'a, [u8]>>) -> Message<'a> {
        self.more().group = Some(name.into());
        self
    }

    /// Adds a header, or gives one another value. Keys are text of 1 to 255 bytes; all headers of a message take at most
    /// 64 KiB. They come out in the order in which they were added.
    pub fn header(
        mut self,
        key: impl Into<Cow<'a, str>>,
        value: impl Into<HeaderValue<'a>>,
    ) -> Message<'a> {
        let (key, value) = (key.into(), value.into());
        let headers = &mut self.more().headers;
        match headers.iter_mut().find(|(there, _)| *there == key) {
            Some(header) => header.1 = value,
            None => headers.push((key, value)),
        }
        self
    }

    /// Sets the header that says what the payload is, as a media type: `application/json`.
    pub fn content_type(self, media_type: impl Into<Cow<'a, str>>) -> Message<'a> {
        self.header(CONTENT_TYPE, HeaderValue::String(media_type.into()))
    }

    /// Sets the header that tells which request an answer is for, and that an answer takes over from its request.
    pub fn correlation_id(self, id: impl Into<Cow<'a, str>>) -> Message<'a> {
        self.header(CORRELATION_ID, HeaderValue::String(id.into()))
    }

    /// Sets the header that names the queue in which an answer is expected.
    pub fn reply_to(self, queue: impl Into<Cow<'a, str>>) -> Message<'a> {
        self.header(REPLY_TO, HeaderValue::String(queue.into()))
    }

    /// Whether there is nothing but a payload.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.priority == 0 && self.more.is_none()
    }

    pub(crate) fn due(&self) -> Option<Due> {
        self.more.as_ref()?.due
    }

    pub(crate) fn time_to_live(&self) -> Option<Duration> {
        self.more.as_ref()?.ttl
    }

    /// The priority, once it is known to be one.
    pub(crate) fn checked_priority(&self) -> Result<u8> {
        if self.priority > PRIORITY_MAX {
            let what = format!("a priority is from 0 to {PRIORITY_MAX}, not {}", self.priority);
            return Err(Error::invalid(what));
        }
        Ok(self.priority)
    }

    /// The deduplication key, once it is known to be one.
    pub(crate) fn checked_dedup_key(&self) -> Result<Option<&[u8]>> {
        let key = self.more.as_ref().and_then(|more| more.dedup_key.as_deref());
        if key.is_some_and(|key| !is_dedup_key(key)) {
            let what = format!("a deduplication key has 1 to {DEDUP_KEY_BYTES_MAX} bytes");
            return Err(Error::invalid(what));
        }
        Ok(key)
    }

    /// The name of the group, once it is known to be one.
    pub(crate) fn checked_group(&self) -> Result<Option<&[u8]>> {
        let name = self.more.as_ref().and_then(|more| more.group.as_deref());
        if name.is_some_and(|name| !(1..=GROUP_BYTES_MAX).contains(&name.len())) {
            return Err(Error::invalid(format!("a group's name has 1 to {GROUP_BYTES_MAX} bytes")));
        }
        Ok(name)
    }

    /// The headers as they are stored; empty for none.
    pub(crate) fn encode_headers(&self) -> Result<Vec<u8>> {
        let headers = self.more.as_ref().map_or(&[][..], |more| &more.headers);
        if headers.is_empty() {
            return Ok(Vec::new());
        }
        let keys = headers.iter().map(|(key, _)| key);
        if let Some(key) = keys.into_iter().find(|key| !(1..=KEY_BYTES_MAX).contains(&key.len())) {
            let what = format!("a header's key has 1 to {KEY_BYTES_MAX} bytes: {key:?}");
            return Err(Error::invalid(what));
        }
        let mut block = Vec::new();
        put_header_block(&mut block, headers.iter().map(|(key, value)| (&**key, value.stored())));
        if block.len() > HEADERS_BYTES_MAX {
            let what =
                format!("headers of {} bytes; they may have {HEADERS_BYTES_MAX}", block.len());
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        Ok(block)
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(payload: &'a [u8]) -> Self {
        Cow::Borrowed(payload).into()
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
        Cow::<[u8]>::Owned(payload).into()
    }
}

impl From<String> for Message<'_> {
    fn from(payload: String) -> Self {
        payload.into_bytes().into()
    }
}

impl<'a> From<Cow<'a, [u8]>> for Message<'a> {
    fn from(payload: Cow<'a, [u8]>) -> Self {
        Message { payload, priority: 0, more: None }
    }
}

impl<'a> From<&'a Message<'_>> for Message<'a> {
    fn from(message: &'a Message<'_>) -> Self {
        let payload = Cow::Borrowed(&*message.payload);
        let more = message.more.as_ref().map(|more| Box::new(more.borrow()));
        Message { payload, priority: message.priority, more }
    }
}
