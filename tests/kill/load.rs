//! What the child and its parent agree on: queues, options, and the bytes of each message.

#[path = "../common/random.rs"]
mod random;

use std::path::Path;
use std::time::Duration;

use millpond::{Backoff, Delivery, Durability, HeaderValue, Message, QueueOptions, Store};

pub use random::Random;

/// The queue with one consumer, where the order of deliveries is checked.
pub const SINGLE: u8 = 0;

pub const QUEUES: [&str; 5] = ["single", "shared", "slow", "grouped", "troubled"];

/// The queue whose messages belong to groups.
pub const GROUPED: u8 = 3;

const GROUPS: u64 = 5;

/// The queue whose messages fail more often than not.
pub const TROUBLED: u8 = 4;

/// Where they go then.
pub const DEAD: &str = "dead";

/// How many of them are held at a time.
pub const TROUBLES_MAX: usize = 8;

/// How many messages the shared queue takes; whoever inserts more waits.
pub const SHARED_MAX: u64 = 600;

pub const PRODUCERS: u64 = 4;

/// The queues that each consumer takes from, in turn.
pub const CONSUMERS: [&[u8]; 4] = [&[SINGLE], &[1, GROUPED], &[2, GROUPED], &[1, 2, GROUPED]];

/// The journal of the thread that pauses a queue.
pub const PAUSER: usize = PRODUCERS as usize + CONSUMERS.len();

/// The journal of the thread that sees to the troubled queue.
pub const MENDER: usize = PAUSER + 1;

/// The queue that is paused now and then.
pub const PAUSED: u8 = 2;

/// How each queue treats failures: the single one gives back at once, so that its order is known.
pub fn queue_options(queue: u8) -> QueueOptions {
    let ms = Duration::from_millis;
    let options = QueueOptions::new().lease(None).backoff(match queue {
        SINGLE | TROUBLED => Backoff::Fixed(Duration::ZERO),
        1 => Backoff::List(vec![ms(1), ms(3)]),
        _ => Backoff::Exponential { first: ms(1), max: ms(8), jitter: 50 },
    });
    match queue {
        1 => options.max_messages(SHARED_MAX),
        TROUBLED => options.max_attempts(Some(2)).dead_letter(DEAD).pause_after_failures(4),
        _ => options,
    }
}

/// No segment is made longer than this.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 20;

/// Opens the store as round `round` has it. Segments are small, so that they roll and are reclaimed all the time.
pub fn open(dir: &Path, durability: Durability, round: u32) -> millpond::Result<Store> {
    let segment_kib = [64, 128, 64, 256, 64, 1024][round as usize % 6];
    Store::options()
        .durability(durability)
        .delete_durability(durability)
        .segment_bytes(segment_kib << 10)
        .open(dir)
}

/// A message's name: its producer, the round, and a number.
pub fn key(producer: u64, round: u32, number: u64) -> u64 {
    assert!(number < 1 << 24);
    (producer << 48) | (u64::from(round) << 24) | number
}

pub fn producer(key: u64) -> u64 {
    key >> 48
}

pub fn round(key: u64) -> u32 {
    (key >> 24) as u32 & 0xFF_FFFF
}

/// The message of that name: its name, its queue, and filler that follows from both.
pub fn payload(queue: u8, key: u64) -> Vec<u8> {
    let mut random = Random::new(key ^ (u64::from(queue) << 60));
    let bytes = match random.below(1000) {
        // Larger than the smallest segment, so that it gets one of its own.
        0 => 70_000 + random.below(30_000),
        1..50 => random.below(16_000),
        _ => random.below(700),
    };
    let mut payload = Vec::with_capacity(9 + bytes as usize + 8);
    payload.extend_from_slice(&key.to_le_bytes());
    payload.push(queue);
    while payload.len() < 9 + bytes as usize {
        payload.extend_from_slice(&random.next().to_le_bytes());
    }
    payload.truncate(9 + bytes as usize);
    payload
}

/// How many priorities there are.
pub const PRIORITIES: usize = 3;

/// How urgent the message of that name is. In some queues all are alike.
pub fn priority(queue: u8, key: u64) -> u8 {
    if queue == SINGLE || queue == GROUPED { 0 } else { (key % PRIORITIES as u64) as u8 }
}

/// For how long the message of that name is delayed; only where others may overtake it.
fn delay_ms(queue: u8, key: u64) -> u64 {
    if queue == 2 && key.is_multiple_of(5) { 1 + key % 7 } else { 0 }
}

/// Whether the message of that name comes in the order of the inserts, and not when it is due or its group allows it.
pub fn comes_in_order(queue: u8, key: u64) -> bool {
    delay_ms(queue, key) == 0 && group(queue, key).is_none() && queue != TROUBLED
}

/// The group that the message of that name belongs to.
pub fn group(queue: u8, key: u64) -> Option<u8> {
    (queue == GROUPED).then_some((key % GROUPS) as u8)
}

/// Whether messages of that queue expire.
pub fn has_mortal(queue: u8) -> bool {
    queue == 1
}

/// How long the message of that name lives, if not for ever.
pub fn ttl(queue: u8, key: u64) -> Option<Duration> {
    let is_mortal = has_mortal(queue) && key % 7 == 3;
    is_mortal.then(|| Duration::from_millis(10 + key % 40))
}

/// Every fourth message has its name in a header too.
fn has_header(key: u64) -> bool {
    key.is_multiple_of(4)
}

/// Every third message has its name as its deduplication key.
fn dedup_key(key: u64) -> Option<[u8; 8]> {
    key.is_multiple_of(3).then(|| key.to_le_bytes())
}

pub fn has_dedup_key(key: u64) -> bool {
    dedup_key(key).is_some()
}

/// What is inserted for these bytes.
pub fn message(queue: u8, key: u64, payload: &[u8]) -> Message<'_> {
    let delay = Duration::from_millis(delay_ms(queue, key));
    let message = Message::new(payload).priority(priority(queue, key)).delay(delay);
    let message = match group(queue, key) {
        Some(group) => message.group(vec![group]),
        None => message,
    };
    let message = match ttl(queue, key) {
        Some(ttl) => message.ttl(ttl),
        None => message,
    };
    let message = if has_header(key) { message.header("name", key as i64) } else { message };
    match dedup_key(key) {
        Some(key) => message.dedup_key(key.to_vec()),
        None => message,
    }
}

/// The name of the message that was delivered, if all of it is as it was inserted.
pub fn check(queue: u8, delivery: &Delivery) -> Result<u64, String> {
    let key = identify(queue, delivery.payload())?;
    let header = has_header(key).then_some(HeaderValue::Integer(key as i64));
    let found = (delivery.priority(), delivery.headers().get("name"), delivery.headers().len());
    if found != (priority(queue, key), header.clone(), usize::from(header.is_some())) {
        return Err(format!("message {key:#x} of queue {queue} came with {found:?}"));
    }
    if delivery.group() != group(queue, key).as_ref().map(std::slice::from_ref) {
        return Err(format!("message {key:#x} came with group {:?}", delivery.group()));
    }
    if delivery.dedup_key() != dedup_key(key).as_ref().map(<[u8; 8]>::as_slice) {
        return Err(format!("message {key:#x} came with {:?}", delivery.dedup_key()));
    }
    Ok(key)
}

/// The name of the message with these bytes, if it is one of this queue.
pub fn identify(queue: u8, bytes: &[u8]) -> Result<u64, String> {
    let name = bytes.first_chunk().ok_or_else(|| format!("a message of {} bytes", bytes.len()))?;
    let key = u64::from_le_bytes(*name);
    if payload(queue, key) != bytes {
        return Err(format!("message {key:#x} of queue {queue} has other bytes than it had"));
    }
    Ok(key)
}
