//! A message in a consumer's hands.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::clock::wall_time;
use crate::engine::{Content, Engine, Fate, HeldBy, Peeked, QueueShared, Taken};
use crate::error::Result;
use crate::headers::Headers;
use crate::id::MessageId;
use crate::message::Message;
use crate::origin::Origin;

/// A message that was got and is not settled yet.
///
/// Settle it with [`delete`](Delivery::delete) when the work is done; until then the message stays in the queue, and
/// is delivered again if this process dies. A delivery that is dropped counts as a failed attempt (or as the queue's
/// [`on_drop`](crate::QueueOptions::on_drop) says).
///
/// Settling fails only with `StaleDelivery` (the lease ran out and somebody else has the message), `Closed`,
/// `Poisoned`, `NotFound` or `Io`; none is worth trying again. On a disk that stays full it can fail with `DiskFull` too:
/// the message is then given back, its attempt counted. A delivery does not keep the store open, only its own bytes mapped.
#[must_use = "a delivery that is dropped counts as a failed attempt; delete it when the work is done"]
pub struct Delivery {
    engine: Arc<Engine>,
    held: HeldBy,
    attempt: u32,
    deadline: Option<Instant>,
    content: Content,
    settled: bool,
}

impl Delivery {
    pub(crate) fn new(engine: &Arc<Engine>, queue: &Arc<QueueShared>, taken: Taken) -> Delivery {
        let Taken { id, token, attempt, deadline, content } = taken;
        let held = HeldBy { queue: queue.clone(), id, token, bytes: content.bytes() };
        Delivery { engine: engine.clone(), held, attempt, deadline, content, settled: false }
    }

    /// The message's bytes, as they lie in the log; verified.
    pub fn payload(&self) -> &[u8] {
        self.content.payload()
    }

    /// The message's bytes, to keep: no copy, and valid after the message is deleted and the store closed.
    pub fn to_payload(&self) -> Payload {
        Payload(self.content.clone())
    }

    /// The message's number.
    pub fn id(&self) -> MessageId {
        MessageId(self.held.id)
    }

    /// The number that the message had when it was first inserted. It stays the same when the message moves to a dead
    /// letter queue and back.
    pub fn origin_id(&self) -> MessageId {
        MessageId(self.content.origin_id)
    }

    /// What is known of a dead letter: the queue that has given it up, why, after how many attempts, and when. A
    /// message that was brought back by a [redrive](crate::Queue::redrive) still tells it. None for one that was never
    /// given up. (What [`Store::salvage`](crate::Store::salvage) has inserted anew names its own queue, but for dead
    /// letters.) It is read in place, from the log.
    pub fn origin(&self) -> Option<Origin<'_>> {
        Origin::of(&self.content)
    }

    /// The name of the queue it was got from.
    pub fn queue(&self) -> &str {
        &self.held.queue.name
    }

    /// The how-manieth attempt this is, from 1. Failed attempts count, those that a crash has cut short included;
    /// released ones do not.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When it was inserted, by the wall clock of that moment; to the millisecond, on Linux up to 10 ms earlier. For one
    /// that was moved from another queue, when that was.
    pub fn inserted_at(&self) -> SystemTime {
        wall_time(self.content.time_ms)
    }

    /// What goes with the payload.
    pub fn headers(&self) -> Headers<'_> {
        Headers::new(self.content.headers())
    }

    /// How urgent it is, from 0 to 9.
    pub fn priority(&self) -> u8 {
        self.content.priority
    }

    /// The deduplication key that it was inserted with.
    pub fn dedup_key(&self) -> Option<&[u8]> {
        self.content.head()?.key
    }

    /// The [group](crate::Message::group) that it belongs to.
    pub fn group(&self) -> Option<&[u8]> {
        self.content.head()?.group
    }

    /// When the lease ends, as it was when the message was got; None if the queue has no leases.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn held(&self) -> &HeldBy {
        &self.held
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The message is settled by other means: dropping the delivery must not.
    pub(crate) fn forget(&mut self) {
        self.settled = true;
    }

    /// Deletes the message: the work is done, and it never comes back.
    ///
    /// Survives the death of the process when it returns; a power cut according to the store's
    /// [`delete_durability`](crate::StoreOptions::delete_durability). Blocks only under `Sync`.
    #[doc(alias = "ack")]
    #[doc(alias = "complete")]
    #[doc(alias = "commit")]
    pub fn delete(mut self) -> Result<()> {
        self.settled = true;
        self.engine.delete(&self.held)
    }

    /// Gives the message back at once, in front of those that were never delivered. Not counted as an attempt.
    #[doc(alias = "nack")]
    #[doc(alias = "requeue")]
    pub fn release(self) -> Result<()> {
        self.release_after(Duration::ZERO)
    }

    /// Gives the message back after `delay`; later messages overtake it. Not counted as an attempt.
    pub fn release_after(mut self, delay: Duration) -> Result<()> {
        self.settled = true;
        self.engine.release(&self.held, delay)
    }

    /// The attempt has failed: the message is delivered again after the queue's backoff, or, when its attempts are used
    /// up, moved to the dead letter queue or buried.
    pub fn fail(mut self, why: impl fmt::Display) -> Result<Fate> {
        self.settled = true;
        self.engine.fail(&self.held, &why.to_string(), None)
    }

    /// As [`fail`](Delivery::fail), with `delay` instead of the queue's backoff.
    pub fn fail_after(mut self, why: impl fmt::Display, delay: Duration) -> Result<Fate> {
        self.settled = true;
        self.engine.fail(&self.held, &why.to_string(), Some(delay))
    }

    /// Takes the message out of circulation: it is moved to the queue's dead letter queue in one step, or kept as buried
    /// if there is none.
    pub fn bury(mut self, why: impl fmt::Display) -> Result<()> {
        self.settled = true;
        self.engine.bury(&self.held, &why.to_string())
    }

    /// Lets the lease end `lease` from now. One that has run out begins anew, unless somebody else has the message.
    #[doc(alias = "touch")]
    pub fn extend(&self, lease: Duration) -> Result<()> {
        self.engine.extend(&self.held, lease)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.settled {
            let why = if thread::panicking() { "panicked" } else { "dropped" };
            self.engine.abandon(&self.held, why);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("queue", &self.queue())
            .field("id", &self.held.id)
            .field("attempt", &self.attempt)
            .field("bytes", &self.payload().len())
            .finish_non_exhaustive()
    }
}

/// The bytes of a message. Clones share them.
#[derive(Clone, Debug)]
pub struct Payload(Content);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.0.payload()
    }
}

impl std::ops::Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.payload()
    }
}

/// A message that was looked at and not taken.
#[derive(Clone, Debug)]
pub struct Entry(Peeked);

impl Entry {
    pub(crate) fn new(peeked: Peeked) -> Entry {
        Entry(peeked)
    }

    /// The message's bytes, verified.
    pub fn payload(&self) -> &[u8] {
        self.0.content.payload()
    }

    /// The message's number.
    pub fn id(&self) -> MessageId {
        MessageId(self.0.id)
    }

    /// As [`Delivery::origin_id`].
    pub fn origin_id(&self) -> MessageId {
        MessageId(self.0.content.origin_id)
    }

    /// As [`Delivery::origin`].
    pub fn origin(&self) -> Option<Origin<'_>> {
        Origin::of(&self.0.content)
    }

    /// How many attempts are used, a running one included.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// When it becomes ready, if it is delayed.
    pub fn due(&self) -> Option<SystemTime> {
        Some(self.0.due_ms).filter(|due_ms| *due_ms > 0).map(wall_time)
    }

    /// When the lease of its delivery ends, if it is in flight and the queue has leases.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }

    /// Why it was buried, if it is and somebody said so.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    /// Which attempt its next delivery is, from 1, unless it is kicked before, or its running delivery released.
    pub fn attempt(&self) -> u32 {
        self.0.attempts.saturating_add(1)
    }

    /// What goes with the payload.
    pub fn headers(&self) -> Headers<'_> {
        Headers::new(self.0.content.headers())
    }

    /// How urgent it is, from 0 to 9.
    pub fn priority(&self) -> u8 {
        self.0.content.priority
    }

    /// The deduplication key that it was inserted with.
    pub fn dedup_key(&self) -> Option<&[u8]> {
        self.0.content.head()?.key
    }

    /// The [group](crate::Message::group) that it belongs to.
    pub fn group(&self) -> Option<&[u8]> {
        self.0.content.head()?.group
    }

    /// When it was inserted.
    pub fn inserted_at(&self) -> SystemTime {
        wall_time(self.0.content.time_ms)
    }
}

impl<'a> From<&'a Delivery> for Message<'a> {
    /// The same payload, priority, group and headers, to insert elsewhere. Not the deduplication key: it names the message that is
    /// there.
    fn from(delivery: &'a Delivery) -> Self {
        let message = Message::new(delivery.payload()).priority(delivery.priority());
        let message = match delivery.group() {
            Some(group) => message.group(group),
            None => message,
        };
        delivery.headers().iter().fold(message, |message, (key, value)| message.header(key, value))
    }
}
