//! What the messages of the workloads hold, made from numbers so that it need not be kept.

use std::time::Duration;

use millpond::{Delivery, ErrorKind};

/// The key of a header with a number.
const HEADER: &str = "number";

/// A payload, made from a number so that it need not be kept, and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    pub len: usize,
    pub checksum: u32,
    pub priority: u8,
    /// The number in its header.
    pub header: Option<i64>,
    /// Its deduplication key.
    pub key: Option<u8>,
    pub group: Option<u8>,
}

/// How many deduplication keys there are.
pub const KEYS: u8 = 4;

impl Content {
    /// Of a plain message.
    pub fn of(payload: &[u8]) -> Content {
        let checksum = crc32fast::hash(payload);
        Content { len: payload.len(), checksum, priority: 0, header: None, key: None, group: None }
    }

    /// Of a message that is to be inserted into `queue`: in one of the queues they differ in more than their payloads.
    pub fn to_insert(queue: &str, tag: u64, payload: &[u8]) -> Content {
        let plain = Content::of(payload);
        match queue {
            "b" => {
                let header = tag.is_multiple_of(4).then_some(tag as i64);
                Content { priority: (tag % 3) as u8, header, ..plain }
            }
            // Every other one belongs to one of two groups.
            "a" => Content { group: [Some(1), None, Some(2), None][tag as usize % 4], ..plain },
            // Every other one expires.
            "t" => Content { header: tag.is_multiple_of(2).then_some(-(tag as i64)), ..plain },
            _ => plain,
        }
    }

    /// With the number of those that are delayed.
    pub fn delayed(self) -> Content {
        Content { header: Some(8), ..self }
    }

    /// How long the message lives.
    pub fn ttl_ms(&self) -> Option<u64> {
        self.header.is_some_and(|number| number < 0).then_some(1500)
    }

    /// For how long the message is delayed.
    pub fn delay_ms(&self) -> u64 {
        if self.header.is_some_and(|number| number > 0 && number % 8 == 0) { 700 } else { 0 }
    }

    pub fn delivered(delivery: &Delivery) -> Content {
        let header = delivery.headers().get(HEADER).and_then(|value| value.as_integer());
        let key = delivery.dedup_key().map(|key| key[0]);
        let group = delivery.group().map(|group| group[0]);
        let plain = Content::of(delivery.payload());
        Content { priority: delivery.priority(), header, key, group, ..plain }
    }

    /// The message with this content.
    pub fn message<'a>(&self, payload: &'a [u8]) -> millpond::Message<'a> {
        let delay = Duration::from_millis(self.delay_ms());
        let message = millpond::Message::new(payload).priority(self.priority).delay(delay);
        let message = match self.header {
            Some(number) => message.header(HEADER, number),
            None => message,
        };
        let message = match self.ttl_ms() {
            Some(ttl) => message.ttl(Duration::from_millis(ttl)),
            None => message,
        };
        let message = match self.group {
            Some(group) => message.group(vec![group]),
            None => message,
        };
        match self.key {
            Some(key) => message.dedup_key(vec![key]),
            None => message,
        }
    }
}

/// Inserts a message with each key into a queue with nothing to get: the id of the one that was inserted with it before,
/// or none. Then there is a new one, and it is deleted.
pub fn probe_keys(queue: &millpond::Queue) -> Result<Vec<Option<u64>>, String> {
    let words = |error: millpond::Error| format!("with a key: {error}");
    let probe = |key| {
        let message = millpond::Message::new("probe").dedup_key(vec![key]);
        let id = match queue.insert(message) {
            // What is known needs no room.
            Err(error) if *error.kind() == ErrorKind::QueueFull => return Ok(None),
            inserted => inserted.map_err(words)?,
        };
        let Some(delivery) = queue.try_get().map_err(words)? else { return Ok(Some(id.as_u64())) };
        if delivery.id() != id || delivery.dedup_key() != Some(&[key]) {
            return Err(format!("got {delivery:?} after the insert of {id} with key {key}"));
        }
        delivery.delete().map_err(words)?;
        Ok(None)
    };
    (0..KEYS).map(probe).collect()
}

pub fn payload(tag: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        bytes.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_mul(0xd129_0d3b_3f4d_6b61).wrapping_add(0x1234_5677);
    }
    bytes.truncate(len);
    bytes
}

/// The queue that has given a delivered message up, if one has.
pub fn came_from(delivery: &Delivery) -> Option<&'static str> {
    let origin = delivery.origin()?;
    ["a", "b", "t", DEAD].into_iter().find(|name| *name == origin.queue())
}

/// The queue that dead letters go to.
pub const DEAD: &str = "dead";
