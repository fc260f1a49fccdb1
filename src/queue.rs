//! A named queue of a store.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::browse::Browse;
use crate::clock::real_now;
use crate::delivery::{Delivery, Entry};
use crate::engine::{Few, Outgoing, QueueShared, QueueStats, Taken};
use crate::error::{Error, Result};
use crate::id::MessageId;
use crate::message::Message;
use crate::report::{Paused, State};
use crate::store::Store;

/// A handle of a queue. Clones are cheap, can be used by many threads at once, and keep the store open.
#[derive(Clone)]
pub struct Queue {
    store: Store,
    shared: Arc<QueueShared>,
}

/// What [`Queue::delete_batch`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deleted {
    /// Messages that are deleted now.
    pub deleted: u64,
    /// Deliveries that had become stale: somebody else has those messages.
    pub stale: u64,
}

impl Queue {
    pub(crate) fn new(store: Store, shared: Arc<QueueShared>) -> Queue {
        Queue { store, shared }
    }

    pub(crate) fn shared(&self) -> &Arc<QueueShared> {
        &self.shared
    }

    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The store that the queue belongs to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How many messages are where.
    pub fn stats(&self) -> Result<QueueStats> {
        self.store.engine().queue_stats(&self.shared)
    }

    /// Inserts a message at the end of the queue.
    ///
    /// When it returns, the message survives the death of the process; under `Durability::Sync`, the default, it
    /// survives a power cut too, and can be got only from then on. Blocks for that sync, which concurrent inserts
    /// share, while the next segment of the log is being made ready, and while a limited queue has no room, unless it is
    /// [set otherwise](crate::AtLimit).
    ///
    /// # Errors
    /// `QueueFull`, `TooLarge`, `DiskFull` (nothing was inserted), `NotFound` (the queue was removed), `Closed`, `Poisoned`; if
    /// [`is_indeterminate`](Error::is_indeterminate), the message may be there after a reopen.
    #[doc(alias = "push")]
    #[doc(alias = "put")]
    #[doc(alias = "send")]
    #[doc(alias = "publish")]
    #[doc(alias = "enqueue")]
    pub fn insert<'a>(&self, message: impl Into<Message<'a>>) -> Result<MessageId> {
        self.insert_until(message.into(), None)
    }

    /// As [`insert`](Queue::insert), but does not wait for room in a queue that is limited. It does wait for durability.
    ///
    /// # Errors
    /// As by `insert`; `QueueFull` if there is no room.
    #[doc(alias = "offer")]
    pub fn try_insert<'a>(&self, message: impl Into<Message<'a>>) -> Result<MessageId> {
        self.insert_until(message.into(), Some(real_now()))
    }

    /// As [`insert`](Queue::insert), but waits for at most `wait` for room in a queue that is limited.
    ///
    /// # Errors
    /// As by `insert`; `QueueFull` if there was no room in time.
    pub fn insert_timeout<'a>(
        &self,
        message: impl Into<Message<'a>>,
        wait: Duration,
    ) -> Result<MessageId> {
        self.insert_until(message.into(), real_now().checked_add(wait))
    }

    #[inline]
    fn insert_until(&self, message: Message<'_>, until: Option<Instant>) -> Result<MessageId> {
        let engine = self.store.engine();
        if message.is_plain() {
            return engine.insert_plain(&self.shared, message.payload(), until).map(MessageId);
        }
        let headers = message.encode_headers()?;
        let outgoing = outgoing(&message, &headers)?;
        if outgoing.key.is_some() {
            let ids = engine.insert_keyed(&self.shared, &[outgoing], until)?;
            return Ok(MessageId(ids[0]));
        }
        engine.insert(&self.shared, &outgoing, until).map(MessageId)
    }

    /// Inserts all of `messages`, or none of them, in this order and with nothing between them. Their ids are in a row, but
    /// for those that have a [deduplication key](Message::dedup_key) that is known or in the batch already: these are not
    /// inserted, and the id of the first one with that key stands in their place.
    ///
    /// Durable as by [`insert`](Queue::insert), with one sync for all; waits for room for all of them.
    ///
    /// # Errors
    /// As by `insert`; `TooLarge` also if the batch does not fit in one segment of the log.
    pub fn insert_batch<'a, M: Into<Message<'a>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Vec<MessageId>> {
        let messages: Vec<Message<'a>> = messages.into_iter().map(Into::into).collect();
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let headers = messages.iter().map(Message::encode_headers).collect::<Result<Vec<_>>>()?;
        let messages = messages.iter().zip(&headers).map(|(m, headers)| outgoing(m, headers));
        let messages = messages.collect::<Result<Vec<_>>>()?;
        if messages.iter().any(|message| message.key.is_some()) {
            let ids = self.store.engine().insert_keyed(&self.shared, &messages, None)?;
            return Ok(ids.into_iter().map(MessageId).collect());
        }
        let first = self.store.engine().insert_batch(&self.shared, &messages, None)?;
        Ok((first..first + messages.len() as u64).map(MessageId).collect())
    }

    /// Gets the next message; waits for one, without using the CPU. Ends only with an error: when the store is closed
    /// or poisoned, or the queue removed.
    ///
    /// Those of higher priority come first; among equals those that were given back, then those whose delay is over, by
    /// due time, and then the others in the order of their inserts.
    #[doc(alias = "pop")]
    #[doc(alias = "recv")]
    #[doc(alias = "receive")]
    #[doc(alias = "reserve")]
    pub fn get(&self) -> Result<Delivery> {
        loop {
            // A get without a limit returns with a message or an error.
            if let Some(delivery) = self.get_until(1, None)?.next() {
                return Ok(delivery);
            }
        }
    }

    /// Gets the next message if there is one now. None is not the end: messages may be in flight or delayed.
    pub fn try_get(&self) -> Result<Option<Delivery>> {
        let taken = self.store.engine().try_take(&self.shared, 1)?;
        Ok(self.deliveries(taken).next())
    }

    /// Gets the next message, waiting for at most `wait`.
    pub fn get_timeout(&self, wait: Duration) -> Result<Option<Delivery>> {
        Ok(self.get_until(1, Some(wait))?.next())
    }

    /// Gets up to `max` messages: waits for the first for at most `wait`, then takes what is there. It may take fewer than
    /// are there, where going on would mean to read from the disk first.
    pub fn get_batch(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        if max == 0 {
            return Err(Error::invalid("a batch has at least one message"));
        }
        Ok(self.get_until(max, Some(wait))?.collect())
    }

    fn get_until(
        &self,
        max: usize,
        wait: Option<Duration>,
    ) -> Result<impl Iterator<Item = Delivery>> {
        // A limit beyond what the clock can show is none.
        let until = wait.and_then(|wait| real_now().checked_add(wait));
        let taken = self.store.engine().take(&self.shared, max, until)?;
        Ok(self.deliveries(taken))
    }

    fn deliveries(&self, taken: Few<Taken>) -> impl Iterator<Item = Delivery> {
        let engine = self.store.engine();
        taken.into_iter().map(|taken| Delivery::new(engine, &self.shared, taken))
    }

    /// Deletes many messages at once, in one append for each thousand. Stale deliveries are counted and left alone.
    ///
    /// # Errors
    /// As by [`Delivery::delete`], but for `StaleDelivery`; `InvalidArgument` for a delivery of another store, and then
    /// nothing is deleted.
    pub fn delete_batch(&self, deliveries: impl IntoIterator<Item = Delivery>) -> Result<Deleted> {
        let mut deliveries: Vec<Delivery> = deliveries.into_iter().collect();
        let engine = self.store.engine();
        if deliveries.iter().any(|delivery| !Arc::ptr_eq(delivery.engine(), engine)) {
            return Err(Error::invalid("a delivery of another store"));
        }
        let held: Vec<_> = deliveries.iter().map(Delivery::held).collect();
        let deleted = engine.delete_batch(held);
        deliveries.iter_mut().for_each(Delivery::forget);
        let deleted = deleted?;
        Ok(Deleted { deleted, stale: deliveries.len() as u64 - deleted })
    }

    /// Looks at the message that a get would take now, and leaves it there. Of a paused queue, the one that would come if it
    /// was resumed.
    pub fn peek(&self) -> Result<Option<Entry>> {
        Ok(self.store.engine().peek(&self.shared)?.map(Entry::new))
    }

    /// Looks through the messages that are in this state, without taking them: ready ones from the highest priority to the
    /// lowest, and of equals, like all others, in the order of their ids, which is that of their inserts.
    ///
    /// It shows what there is when it gets there, of the messages that were inserted before the call: one that changes its
    /// state meanwhile may be shown or not, but none is shown twice. Under `Durability::Sync` it leaves out what is not
    /// durable yet, as a get does. A message whose bytes are damaged is left out too; whoever gets it reports that. It works
    /// on a paused queue, and on a poisoned store.
    ///
    /// Some dozens of messages are chosen at a time, without holding anybody up, and read from the disk. None is copied:
    /// an [`Entry`] keeps its bytes mapped.
    ///
    /// # Errors
    /// `Io` in the place of a message that cannot be read now; the others follow. `Closed` and `NotFound` (the queue was
    /// removed) are the end.
    pub fn browse(&self, which: State) -> Browse {
        Browse::new(self, which)
    }

    /// Lets nothing be got from this queue until it is [resumed](Queue::resume): `try_get` returns None, `get` waits.
    /// Everything else goes on: inserts, settling what is in flight, leases and delays, peek and browse. A queue that is
    /// paused already stays so.
    ///
    /// It outlives the process; a power cut as [`Store::declare`](Store::declare) does. Blocks as that does. Works on a full
    /// disk.
    ///
    /// # Errors
    /// `NotFound` (the queue was removed), `Closed`, `Poisoned`.
    pub fn pause(&self) -> Result<()> {
        self.store.engine().set_paused(&self.shared, Some(Paused::ByCall))
    }

    /// Lets a paused queue go on, whatever has paused it, and wakes whoever waits. Failures are counted anew. Durable, and
    /// with errors, as [`pause`](Queue::pause).
    pub fn resume(&self) -> Result<()> {
        self.store.engine().set_paused(&self.shared, None)
    }

    /// Moves up to `max` dead letters back to the queues that have given them up, and returns how many: of the messages
    /// that are ready, the most urgent first, of equals the oldest first. Their attempts begin anew; payload, headers and
    /// priority stay, and so does what they tell of their [origin](Delivery::origin). Each goes in one step: it is never
    /// in both queues, and never in neither.
    ///
    /// Messages that come from nowhere else stay, and are not counted; so do those whose queue was removed (declare it
    /// again to get them back), and those that are in flight, delayed or buried.
    ///
    /// Nothing makes room for them: it stops where the queue that one goes to is full, also if that one's inserts would
    /// wait, or drop the oldest.
    ///
    /// Durable as an insert into the queue that they go to. Blocks as that does, but not for room.
    ///
    /// # Errors
    /// Those of [`insert`](Queue::insert). With `DiskFull` and `QueueFull` none was moved: if there was space for some, it
    /// returns their number. Otherwise some may have been.
    pub fn redrive(&self, max: u64) -> Result<u64> {
        self.store.engine().redrive(&self.shared, max)
    }

    /// Makes up to `max` buried messages ready again, the oldest first, and returns how many. They are given back as if they
    /// had never been delivered: their attempts begin anew, and why they were buried is forgotten.
    ///
    /// Durable as a release is; does not block. It works through the queue a thousand messages at a time: if the process
    /// dies meanwhile, some are ready and the others are buried as before.
    ///
    /// # Errors
    /// `NotFound` (the queue was removed), `Closed`, `Poisoned`; `DiskFull` as settling has it, if none was kicked.
    pub fn kick(&self, max: u64) -> Result<u64> {
        self.store.engine().kick(&self.shared, max)
    }

    /// Deletes the message of this number, whatever state it is in, and says whether there was one: false if it is gone
    /// already, was never given out, or is that of a message in another queue. If it is in flight, its delivery becomes
    /// stale.
    ///
    /// Durable as [`Delivery::delete`] is. Blocks as that does, and if it is the first to look into an old segment, for
    /// reading that one's index.
    ///
    /// # Errors
    /// As by `Delivery::delete`, but for `StaleDelivery`.
    pub fn delete_by_id(&self, id: MessageId) -> Result<bool> {
        self.store.engine().delete_by_id(&self.shared, id.as_u64())
    }

    /// Deletes all messages that are in this state now, and returns how many. Deliveries of messages that were in flight
    /// become stale.
    ///
    /// It works through the queue a thousand messages at a time: if the process dies meanwhile, some are deleted and
    /// the others are not.
    pub fn purge(&self, which: State) -> Result<u64> {
        self.store.engine().purge(&self.shared, which)
    }
}

fn outgoing<'a>(message: &'a Message<'_>, headers: &'a [u8]) -> Result<Outgoing<'a>> {
    let (priority, key) = (message.checked_priority()?, message.checked_dedup_key()?);
    let (due, ttl, group) = (message.due(), message.time_to_live(), message.checked_group()?);
    Ok(Outgoing { payload: message.payload(), headers, priority, due, ttl, key, group })
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name()).finish_non_exhaustive()
    }
}
