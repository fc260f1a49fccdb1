//! What users choose: when things become durable, and how a queue treats its messages.

mod backoff;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use backoff::Backoff;

/// When an operation is durable.
///
/// Whatever is chosen, an operation that has returned survives the death of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// Before the call returns: it survives a power cut. Concurrent callers share one fdatasync.
    Sync,
    /// Within this time, by the background thread, or sooner with somebody else's sync. Between 1 ms and 1 hour.
    Interval(Duration),
    /// When the operating system writes it back, or with somebody else's sync.
    Process,
}

impl Durability {
    fn check(self) -> Result<()> {
        let range = Duration::from_millis(1)..=Duration::from_secs(3600);
        match self {
            Durability::Interval(every) if !range.contains(&every) => {
                Err(Error::invalid("the interval of a durability must be from 1 ms to 1 hour"))
            }
            _ => Ok(()),
        }
    }
}

/// What a delivery counts as that is dropped without having been settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDrop {
    /// A failed attempt, as by `fail`: counted, and given back after the backoff.
    #[default]
    Fail,
    /// Given back at once and not counted, as by `release`.
    Release,
}

/// What an insert does that finds no room in its queue.
///
/// Stored with the queue's options: variants are only ever added at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AtLimit {
    /// It waits until there is: [`insert`](crate::Queue::insert) for ever,
    /// [`insert_timeout`](crate::Queue::insert_timeout) for so long; [`try_insert`](crate::Queue::try_insert) fails with
    /// `QueueFull`.
    #[default]
    Block,
    /// It fails with `QueueFull`.
    Reject,
    /// The oldest ready messages of the lowest priority make room: deleted by the same append, or moved to the dead letter
    /// queue. It fails with `QueueFull` if those that are ready are not enough.
    DropOldest,
}

/// So that what moves to a dead letter queue never expires beyond what the log has room for.
const TTL_MAX: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// How a queue treats its messages.
///
/// The defaults let no message leave by itself: unlimited attempts, exponential backoff from 100 ms to 1 minute,
/// a lease of 30 minutes, no dead letter queue, the store's durability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueOptions {
    pub(crate) lease: Option<Duration>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) backoff: Backoff,
    pub(crate) on_drop: OnDrop,
    pub(crate) dead_letter: Option<String>,
    pub(crate) durability: Option<Durability>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) max_messages: Option<u64>,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) at_limit: AtLimit,
    pub(crate) dedup_time: Duration,
    pub(crate) dedup_keys: usize,
    pub(crate) pause_after_failures: u32,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions {
            lease: Some(Duration::from_secs(30 * 60)),
            max_attempts: None,
            backoff: Backoff::default(),
            on_drop: OnDrop::default(),
            dead_letter: None,
            durability: None,
            ttl: None,
            max_messages: None,
            max_bytes: None,
            at_limit: AtLimit::default(),
            dedup_time: Duration::from_secs(5 * 60),
            dedup_keys: 100_000,
            pause_after_failures: 0,
        }
    }
}

/// How long and how many deduplication keys a queue can know at most.
const DEDUP_TIME_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
const DEDUP_KEYS_MAX: usize = 1_000_000;

/// The stored form. A changed set of options becomes a new variant at the end, and the old ones keep their structs.
#[derive(Serialize, Deserialize)]
enum Stored {
    V1(QueueOptions),
}

impl QueueOptions {
    /// The defaults.
    pub fn new() -> QueueOptions {
        QueueOptions::default()
    }

    /// How long a consumer may hold a message before it is given back to others, which counts as a failed attempt.
    /// From 1 ms; `None` for no limit. Default: 30 minutes. A dropped delivery or a dead process gives back at once
    /// anyway, so a short lease mostly runs slow handlers twice.
    pub fn lease(mut self, lease: Option<Duration>) -> QueueOptions {
        self.lease = lease;
        self
    }

    /// After how many failed attempts a message is moved to the dead letter queue, or buried without one. From 1;
    /// `None`, the default, for never.
    pub fn max_attempts(mut self, attempts: Option<u32>) -> QueueOptions {
        self.max_attempts = attempts;
        self
    }

    /// How long a failed message waits before its next attempt. Default: 100 ms, doubling up to 1 minute, all alike. Where
    /// many messages fail together, as in an outage of what their consumers call, give it some jitter.
    /// [`Delivery::fail_after`](crate::Delivery::fail_after) overrides it for one failure.
    pub fn backoff(mut self, backoff: Backoff) -> QueueOptions {
        self.backoff = backoff;
        self
    }

    /// What a delivery counts as that is dropped without having been settled. Default: a failed attempt.
    pub fn on_drop(mut self, on_drop: OnDrop) -> QueueOptions {
        self.on_drop = on_drop;
        self
    }

    /// The queue that messages move to which are given up: buried, or their attempts used up. It is declared with defaults
    /// if there is none of that name. Default: none, they are kept as buried.
    ///
    /// A dead letter tells where it comes from: [`Delivery::origin`](crate::Delivery::origin). Once the reason is mended,
    /// [`Queue::redrive`](crate::Queue::redrive) brings it back. On a full disk it is kept as buried instead.
    pub fn dead_letter(mut self, queue: &str) -> QueueOptions {
        self.dead_letter = Some(queue.to_owned());
        self
    }

    /// When inserts into this queue are durable. Default: the store's durability.
    pub fn durability(mut self, durability: Durability) -> QueueOptions {
        self.durability = Some(durability);
        self
    }

    /// How long messages are worth delivering that are inserted from now on: see [`Message::ttl`](crate::Message::ttl).
    /// From 1 ms to 1000 years. Default: for ever.
    pub fn ttl(mut self, ttl: Duration) -> QueueOptions {
        self.ttl = Some(ttl);
        self
    }

    /// For how long, and of how many of the last messages that had one, the queue knows the deduplication key: what ends
    /// first. Within this window an insert with a [key](crate::Message::dedup_key) that is known inserts nothing. From 1 ms
    /// to 366 days, and from 1 to 1,000,000 keys. Default: 5 minutes and 100,000 keys.
    ///
    /// It survives restarts, power cuts and the removal of the messages; it goes with the queue. A key takes 115 to 140 bytes
    /// of memory besides its own, as measured (16 MB for 100,000 keys of 16 bytes), and some 10 bytes besides its own in each
    /// checkpoint; messages without a key cost nothing. A smaller window forgets at once what is beyond it, a larger one
    /// knows no more than what is still there.
    ///
    /// While the store is open, the time is that of a clock that nobody can set, and that may stand still while the
    /// machine sleeps. Over a restart it is the wall clock's: if that is set forward meanwhile, keys are forgotten as
    /// much earlier; if backward, they are known for longer, for one window from the restart at most.
    pub fn dedup_window(mut self, time: Duration, keys: usize) -> QueueOptions {
        (self.dedup_time, self.dedup_keys) = (time, keys);
        self
    }

    /// How many messages the queue may have, in whatever state. From 1. Default: no limit.
    ///
    /// A limit holds from the moment that `declare` returns, for what is inserted then; what is moved into a dead letter
    /// queue that is full is kept as buried where it is. Declaring one that is already exceeded is a `Conflict`.
    pub fn max_messages(mut self, messages: u64) -> QueueOptions {
        self.max_messages = Some(messages);
        self
    }

    /// How much the messages of the queue may take in the log, in bytes: their payloads, headers and keys, and some 30
    /// bytes for each. From 1. Default: no limit.
    ///
    /// After an open, and after a purge, the first insert counts what is there: it looks up how long each message is.
    pub fn max_bytes(mut self, bytes: u64) -> QueueOptions {
        self.max_bytes = Some(bytes);
        self
    }

    /// What an insert does that finds no room. Default: it waits.
    pub fn at_limit(mut self, at_limit: AtLimit) -> QueueOptions {
        self.at_limit = at_limit;
        self
    }

    /// After how many failures in a row the queue pauses itself, whatever messages they were at: what its consumers need
    /// is out of order, and the backlog is not to become dead letters one by one. 0, the default, for never.
    ///
    /// A failure is one that counts as an attempt: [`fail`](crate::Delivery::fail), a lease that ran out, a delivery that
    /// was dropped (unless that [releases](OnDrop::Release)). A delete by a consumer begins anew; a release or a bury does
    /// neither. The count is kept in memory: a restart begins anew, too. The pause is as durable as a failure.
    ///
    /// The failure that pauses the queue gives no message up, and neither do those of messages that are still in flight
    /// then: one whose attempts are used up gets one more. What failed `max_attempts` times before is gone, so with a limit
    /// of no more than [`max_attempts`](QueueOptions::max_attempts) an outage alone gives up nothing.
    ///
    /// [`Queue::stats`](crate::Queue::stats) says that it is paused, and why; with the feature `tracing` the log does, too.
    /// It goes on by [`Queue::resume`](crate::Queue::resume).
    pub fn pause_after_failures(mut self, failures: u32) -> QueueOptions {
        self.pause_after_failures = failures;
        self
    }

    pub(crate) fn check(&self, queue: &str) -> Result<()> {
        if self.lease.is_some_and(|lease| lease < Duration::from_millis(1)) {
            return Err(Error::invalid("a lease must be at least 1 ms"));
        }
        if self.max_attempts == Some(0) {
            return Err(Error::invalid("max_attempts must be at least 1"));
        }
        if self.ttl.is_some_and(|ttl| !(Duration::from_millis(1)..=TTL_MAX).contains(&ttl)) {
            return Err(Error::invalid("a queue's time to live is from 1 ms to 1000 years"));
        }
        if let Some(name) = &self.dead_letter {
            check_queue_name(name)?;
            if name == queue {
                return Err(Error::invalid("a queue cannot be its own dead letter queue"));
            }
        }
        if self.max_messages == Some(0) || self.max_bytes == Some(0) {
            return Err(Error::invalid("a queue must have room for at least one message"));
        }
        if self.at_limit != AtLimit::Block
            && self.max_messages.is_none()
            && self.max_bytes.is_none()
        {
            return Err(Error::invalid("at_limit says what to do at a limit, and there is none"));
        }
        self.backoff.check()?;
        if !(Duration::from_millis(1)..=DEDUP_TIME_MAX).contains(&self.dedup_time) {
            return Err(Error::invalid("a deduplication window lasts from 1 ms to 366 days"));
        }
        if !(1..=DEDUP_KEYS_MAX).contains(&self.dedup_keys) {
            let what = format!("a deduplication window has 1 to {DEDUP_KEYS_MAX} keys");
            return Err(Error::invalid(what));
        }
        self.durability.map_or(Ok(()), Durability::check)
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.max_messages.is_some() || self.max_bytes.is_some()
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        bincode::serde::encode_to_vec(Stored::V1(self.clone()), bincode::config::standard())
            .map_err(|error| Error::invalid(format!("these options cannot be stored: {error}")))
    }

    /// None for what a later version wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Option<QueueOptions> {
        // An honest record of options is a few dozen bytes.
        let config = bincode::config::standard().with_limit::<65536>();
        let (Stored::V1(options), used) = bincode::serde::decode_from_slice(bytes, config).ok()?;
        (used == bytes.len()).then_some(options)
    }
}

pub(crate) const QUEUE_NAME_BYTES_MAX: usize = 255;

pub(crate) fn check_queue_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > QUEUE_NAME_BYTES_MAX || name.contains(char::is_control) {
        return Err(Error::invalid(format!(
            "a queue's name has 1 to {QUEUE_NAME_BYTES_MAX} bytes and no control characters: {name:?}"
        )));
    }
    Ok(())
}

/// How a store is opened, but for its directory.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub durability: Durability,
    pub delete_durability: Durability,
    pub segment_bytes: u64,
    pub max_message_bytes: u64,
    pub garbage_percent: u32,
    /// How long all files together may be.
    pub max_bytes: Option<u64>,
    pub strict: bool,
    /// Whether a thread of its own does the maintenance; tests do it themselves.
    pub background: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            durability: Durability::Sync,
            delete_durability: Durability::Interval(Duration::from_secs(1)),
            segment_bytes: 64 << 20,
            max_message_bytes: 64 << 20,
            garbage_percent: 100,
            max_bytes: None,
            strict: false,
            background: true,
        }
    }
}

pub(crate) const SEGMENT_BYTES_MIN: u64 = 64 << 10;
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// What a store may be limited to, in segments.
const SEGMENTS_MIN: u64 = 4;
pub(crate) const MESSAGE_BYTES_MAX: u64 = 1 << 30;

impl Settings {
    pub fn check(&self) -> Result<()> {
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
            || !self.segment_bytes.is_multiple_of(4096)
        {
            return Err(Error::invalid(
                "segment_bytes must be from 64 KiB to 1 GiB, in multiples of 4 KiB",
            ));
        }
        if !(1..=MESSAGE_BYTES_MAX).contains(&self.max_message_bytes) {
            return Err(Error::invalid("max_message_bytes must be from 1 to 1 GiB"));
        }
        if !(10..=1000).contains(&self.garbage_percent) {
            return Err(Error::invalid("garbage_percent must be from 10 to 1000"));
        }
        if self.max_bytes.is_some_and(|max| max < SEGMENTS_MIN * self.segment_bytes) {
            return Err(Error::invalid("max_bytes must be at least four times segment_bytes"));
        }
        self.durability.check()?;
        self.delete_durability.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_read_back_as_they_were_stored() {
        let options = QueueOptions::new()
            .lease(None)
            .max_attempts(Some(3))
            .backoff(Backoff::List(vec![Duration::MAX; 100]))
            .on_drop(OnDrop::Release)
            .dead_letter("dead")
            .durability(Durability::Interval(Duration::from_millis(20)))
            .ttl(Duration::from_secs(60))
            .max_messages(7)
            .max_bytes(8)
            .at_limit(AtLimit::DropOldest)
            .dedup_window(Duration::from_secs(60), 5)
            .pause_after_failures(20);
        assert_eq!(QueueOptions::decode(&options.encode().unwrap()), Some(options));
    }

    #[test]
    fn damaged_or_later_options_are_not_taken_for_options() {
        let mut bytes = QueueOptions::new().encode().unwrap();
        assert_eq!(QueueOptions::decode(&bytes[..bytes.len() - 1]), None);
        bytes[0] = 1;
        assert_eq!(QueueOptions::decode(&bytes), None);
        assert_eq!(QueueOptions::decode(&[]), None);
    }

    #[test]
    fn a_bad_queue_name_is_refused() {
        for name in ["", "a\nb", "\u{0}", &"x".repeat(256)] {
            assert!(check_queue_name(name).is_err(), "{name:?}");
        }
        assert!(check_queue_name("orders/eu west.1-é").is_ok());
    }
}
