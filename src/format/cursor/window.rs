//! The section of deduplication keys that a queue has seen of late.

use std::sync::Arc;

use crate::format::IDS_END;
use crate::format::bytes::{Malformed, Reader, put_bytes, put_u48, put_u64, put_varint};
use crate::format::position::Position;

/// How long a deduplication key may be, in bytes; none is empty.
pub(crate) const DEDUP_KEY_BYTES_MAX: usize = 255;

/// The fewest bytes of a key with what goes with it: by these a count is checked before memory is reserved.
const SEEN_BYTES_MIN: usize = 9;

/// What a key takes in a cursor besides its own bytes, roughly, in bytes.
pub(crate) const SEEN_OVERHEAD: u64 = 10;

/// A deduplication key, and the message that it was first inserted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenKey {
    pub(crate) key: Arc<[u8]>,
    pub(crate) id: u64,
    pub(crate) time_ms: u64,
}

/// A piece of a queue's window. A queue may have any number of these sections, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WindowSection {
    pub(crate) queue: u32,
    /// What the section says is true as of here.
    pub(crate) as_of: Position,
    /// Keys of messages with a lower id were forgotten by then, also those of the sections before.
    pub(crate) first_id: u64,
    /// In strictly ascending order of id.
    pub(crate) keys: Vec<SeenKey>,
}

/// Whether a key can be one.
pub(crate) fn is_dedup_key(key: &[u8]) -> bool {
    (1..=DEDUP_KEY_BYTES_MAX).contains(&key.len())
}

impl WindowSection {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.queue.into());
        put_u64(out, self.as_of.as_u64());
        put_varint(out, self.first_id);
        put_varint(out, self.keys.len() as u64);
        let mut previous = 0;
        for (index, seen) in self.keys.iter().enumerate() {
            debug_assert!(index == 0 || seen.id > previous, "keys out of order");
            put_varint(out, seen.id - previous);
            previous = seen.id;
            put_u48(out, seen.time_ms);
            put_bytes(out, &seen.key);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let queue = reader.varint_u32()?;
        let as_of = Position::from_u64(reader.u64()?);
        let first_id = reader.varint()?;
        let count = reader.count(SEEN_BYTES_MIN)?;
        let mut keys = Vec::with_capacity(count);
        let mut previous = 0_u64;
        for index in 0..count {
            let distance = reader.varint()?;
            let id = previous.checked_add(distance).filter(|_| distance > 0 || index == 0);
            let id = id.filter(|id| *id < IDS_END);
            let id = id.ok_or_else(|| reader.malformed("ids out of order or range"))?;
            previous = id;
            let time_ms = reader.u48()?;
            let key = reader.bytes()?;
            if !is_dedup_key(key) {
                return Err(reader.malformed("length of a deduplication key out of range"));
            }
            keys.push(SeenKey { key: key.into(), id, time_ms });
        }
        Ok(Self { queue, as_of, first_id, keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(distances: [u64; 2], key_bytes: usize) -> Vec<u8> {
        let mut out = vec![1];
        put_u64(&mut out, 0);
        out.extend_from_slice(&[0, 2]);
        for distance in distances {
            put_varint(&mut out, distance);
            put_u48(&mut out, 0);
            put_bytes(&mut out, &vec![b'k'; key_bytes]);
        }
        out
    }

    fn what(section: &[u8]) -> Option<&'static str> {
        let decoded = WindowSection::decode(&mut Reader::new(section));
        decoded.err().map(|malformed| malformed.what)
    }

    #[test]
    fn keys_are_those_of_ids_that_ascend_and_exist() {
        let out_of = Some("ids out of order or range");
        assert_eq!(what(&section([0, 1], 1)), None);
        assert_eq!(what(&section([5, 0], 1)), out_of);
        assert_eq!(what(&section([IDS_END - 2, 1], 1)), None);
        assert_eq!(what(&section([IDS_END - 1, 1], 1)), out_of);
        assert_eq!(what(&section([1, u64::MAX], 1)), out_of);
    }

    #[test]
    fn a_key_has_the_bytes_of_one() {
        let length = Some("length of a deduplication key out of range");
        assert_eq!(what(&section([1, 1], DEDUP_KEY_BYTES_MAX)), None);
        assert_eq!(what(&section([1, 1], DEDUP_KEY_BYTES_MAX + 1)), length);
        let mut empty = section([1, 1], 0);
        // Without the keys there are too few bytes for the count, which is noticed first.
        empty.extend_from_slice(&[0; 2]);
        assert_eq!(what(&empty), length);
    }

    #[test]
    fn a_count_that_the_bytes_do_not_bear_out_takes_no_memory() {
        let mut out = vec![1];
        put_u64(&mut out, 0);
        out.push(0);
        put_varint(&mut out, u64::MAX);
        assert_eq!(what(&out), Some("count beyond the end"));
    }
}
