//! The cursor's sections, one plain struct each.

use std::num::NonZeroU64;

use crate::format::IDS_END;
use crate::format::bytes::{Malformed, Reader, put_bytes, put_u32, put_u48, put_u64, put_varint};
use crate::format::position::Position;
use crate::format::record::insert::decode_priority;
use crate::format::record::settle::Place;

use super::pages::{PAGE_COUNT_MAX, PageForm};
use super::window::WindowSection;

const FLAG_ACTIVE: u32 = 1 << 0;
const FLAG_EXPIRES: u8 = 1 << 0;
const FLAG_GROUPED: u8 = 1 << 1;

/// The fewest bytes of a lane, an entry, a page: by these a count is checked before memory is reserved.
const LANE_BYTES_MIN: usize = 2;
const ENTRY_BYTES_MIN: usize = 11;
const PAGE_BYTES_MIN: usize = 2;

/// Any section that this version knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Segment(SegmentSection),
    Queue(QueueSection),
    Entries(EntriesSection),
    Acked(AckedSection),
    Damage(DamageSection),
    Window(WindowSection),
    Paused(PausedSection),
    /// The lowest number that no queue has had, also none that was removed.
    NextQueue(u32),
}

/// A segment of the log. Their order is the log's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentSection {
    /// The number that its header says and its file is named by.
    pub(crate) file: u32,
    /// The number that its positions carry: its own, or if it was rewritten, the highest that it takes the place of.
    pub(crate) number: u32,
    pub(crate) salt: u64,
    pub(crate) first_id: u64,
    /// The offset behind the last frame; in the active segment, that of the cursor's position.
    pub(crate) end: u32,
    pub(crate) active: bool,
    /// How many ids were inserted in it, up to `end`.
    pub(crate) messages: u64,
    /// What the frames of those that are not deleted take at most.
    pub(crate) live_bytes: u64,
    /// No message of it expires before this time.
    pub(crate) first_expiry: Option<NonZeroU64>,
}

impl SegmentSection {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.file.into());
        put_u64(out, self.number.into());
        put_u64(out, self.salt);
        put_u64(out, self.first_id);
        put_u32(out, self.end);
        put_u32(out, if self.active { FLAG_ACTIVE } else { 0 });
        put_u64(out, self.messages);
        put_u64(out, self.live_bytes);
        put_u64(out, self.first_expiry.map_or(0, NonZeroU64::get));
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let file = decode_segment_number(reader)?;
        let number = decode_segment_number(reader)?;
        let salt = reader.u64()?;
        let first_id = decode_id(reader)?;
        let end = reader.u32()?;
        let flags = reader.u32()?;
        if flags & !FLAG_ACTIVE != 0 {
            return Err(reader.malformed("unknown segment flags"));
        }
        let active = flags & FLAG_ACTIVE != 0;
        let (messages, live_bytes) = (reader.u64()?, reader.u64()?);
        // It is shorter than that, and counts its ids from the first in 32 bits.
        if messages > 1 << 32 || live_bytes >= 1 << 32 {
            return Err(reader.malformed("more messages than a segment has room for"));
        }
        let first_expiry = NonZeroU64::new(reader.u64()?);
        Ok(Self { file, number, salt, first_id, end, active, messages, live_bytes, first_expiry })
    }
}

/// A queue in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueSection {
    pub(crate) id: u32,
    pub(crate) name: Vec<u8>,
    /// Where its Declare record lies.
    pub(crate) declared_at: Position,
    /// What is said of this queue is true as of here.
    pub(crate) as_of: Position,
    /// Whether it has, or has had, messages that expire.
    pub(crate) expires: bool,
    /// Whether it has, or has had, messages that belong to groups.
    pub(crate) grouped: bool,
    /// How many messages it holds.
    pub(crate) live: u64,
    pub(crate) options: Vec<u8>,
    pub(crate) lanes: Vec<LaneState>,
}

/// No queue has so many messages, which would take 7 PB; so the numbers of some queues can be added up without a thought.
pub(crate) const LIVE_END: u64 = 1 << 48;

/// How far a lane has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneState {
    pub(crate) priority: u8,
    /// No message with a lower id is unread.
    pub(crate) next_id: u64,
}

impl QueueSection {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.id.into());
        put_bytes(out, &self.name);
        put_u64(out, self.declared_at.as_u64());
        put_u64(out, self.as_of.as_u64());
        let expires = if self.expires { FLAG_EXPIRES } else { 0 };
        out.push(expires | if self.grouped { FLAG_GROUPED } else { 0 });
        put_varint(out, self.live);
        put_bytes(out, &self.options);
        put_varint(out, self.lanes.len() as u64);
        for lane in &self.lanes {
            out.push(lane.priority);
            put_varint(out, lane.next_id);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (id, name) = (reader.varint_u32()?, reader.bytes()?.to_vec());
        let declared_at = Position::from_u64(reader.u64()?);
        let as_of = Position::from_u64(reader.u64()?);
        let flags = reader.u8()?;
        if flags & !(FLAG_EXPIRES | FLAG_GROUPED) != 0 {
            return Err(reader.malformed("unknown queue flags"));
        }
        let mut queue = Self {
            id,
            name,
            declared_at,
            as_of,
            expires: flags & FLAG_EXPIRES != 0,
            grouped: flags & FLAG_GROUPED != 0,
            live: reader.varint()?,
            options: reader.bytes()?.to_vec(),
            lanes: Vec::new(),
        };
        if queue.live >= LIVE_END {
            return Err(reader.malformed("more messages than a queue can hold"));
        }
        let count = reader.count(LANE_BYTES_MIN)?;
        queue.lanes.reserve_exact(count);
        for _ in 0..count {
            let priority = decode_priority(reader)?;
            queue.lanes.push(LaneState { priority, next_id: reader.varint()? });
        }
        Ok(queue)
    }
}

/// Messages of one queue that are not simply ready. A queue may have any number of these sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntriesSection {
    pub(crate) queue: u32,
    /// In strictly ascending order of id.
    pub(crate) entries: Vec<Entry>,
}

/// One such message. The fields mean what they mean in a Set record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) place: Place,
    pub(crate) fresh: bool,
    pub(crate) attempts: u32,
    pub(crate) priority: u8,
    pub(crate) due: u64,
    pub(crate) reason: Vec<u8>,
}

pub(super) fn encode_entries(out: &mut Vec<u8>, queue: u32, entries: &[Entry]) {
    put_varint(out, queue.into());
    put_varint(out, entries.len() as u64);
    let mut previous = 0;
    for (index, entry) in entries.iter().enumerate() {
        debug_assert!(index == 0 || entry.id > previous, "entries out of order");
        put_varint(out, entry.id - previous);
        previous = entry.id;
        out.push(entry.place.encode(entry.fresh));
        put_varint(out, entry.attempts.into());
        out.push(entry.priority);
        put_u48(out, entry.due);
        put_bytes(out, &entry.reason);
    }
}

impl EntriesSection {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let queue = reader.varint_u32()?;
        let count = reader.count(ENTRY_BYTES_MIN)?;
        let mut entries = Vec::with_capacity(count);
        let mut previous = 0_u64;
        for index in 0..count {
            let delta = reader.varint()?;
            let id = previous.checked_add(delta).filter(|_| delta > 0 || index == 0);
            let id = id.ok_or_else(|| reader.malformed("ids out of order"))?;
            previous = id;
            let (place, fresh) = Place::decode(reader)?;
            entries.push(Entry {
                id,
                place,
                fresh,
                attempts: reader.varint_u32()?,
                priority: decode_priority(reader)?,
                due: reader.u48()?,
                reason: reader.bytes()?.to_vec(),
            });
        }
        Ok(Self { queue, entries })
    }
}

/// The ids of one segment that are deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AckedSection {
    pub(crate) segment: u32,
    /// In strictly ascending order of page number; a page without any deleted id is left out. Page n is about
    /// the ids from the segment's first id + n x [`super::pages::PAGE_IDS`].
    pub(crate) pages: Vec<(u32, PageForm)>,
}

impl AckedSection {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.segment.into());
        put_varint(out, self.pages.len() as u64);
        let mut previous = 0;
        for (index, (page, form)) in self.pages.iter().enumerate() {
            debug_assert!(index == 0 || *page > previous, "pages out of order");
            put_varint(out, (page - previous).into());
            previous = *page;
            form.encode(out);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let segment = decode_segment_number(reader)?;
        let count = reader.count(PAGE_BYTES_MIN)?;
        let mut pages = Vec::with_capacity(count.min(PAGE_COUNT_MAX as usize));
        let mut previous = 0_u32;
        for index in 0..count {
            let delta = reader.varint_u32()?;
            let page = previous
                .checked_add(delta)
                .filter(|&page| (delta > 0 || index == 0) && page < PAGE_COUNT_MAX)
                .ok_or_else(|| reader.malformed("pages out of order or range"))?;
            previous = page;
            pages.push((page, PageForm::decode(reader)?));
        }
        Ok(Self { segment, pages })
    }
}

/// A damaged range that has been reported already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DamageSection {
    pub(crate) segment: u32,
    /// The range in the file, `end` excluded.
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// The ids that may have been lost with it.
    pub(crate) first_id: u64,
    pub(crate) last_id_exclusive: u64,
}

impl DamageSection {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.segment.into());
        put_u32(out, self.start);
        put_u32(out, self.end);
        put_u64(out, self.first_id);
        put_u64(out, self.last_id_exclusive);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            segment: decode_segment_number(reader)?,
            start: reader.u32()?,
            end: reader.u32()?,
            first_id: reader.u64()?,
            last_id_exclusive: reader.u64()?,
        })
    }
}

/// A queue that is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PausedSection {
    pub(crate) queue: u32,
    /// As in its Pause record.
    pub(crate) failures: u32,
}

impl PausedSection {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.queue.into());
        put_varint(out, self.failures.into());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { queue: reader.varint_u32()?, failures: reader.varint_u32()? })
    }
}

fn decode_segment_number(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    u32::try_from(reader.u64()?)
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| reader.malformed("segment number out of range"))
}

fn decode_id(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    let id = reader.u64()?;
    if id >= IDS_END {
        return Err(reader.malformed("id out of range"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::insert::PRIORITIES;

    fn what<T>(decoded: Result<T, Malformed>) -> Option<&'static str> {
        decoded.err().map(|malformed| malformed.what)
    }

    fn entries(deltas: [u64; 2], priority: u8) -> Option<&'static str> {
        let mut out = vec![1, 2];
        for delta in deltas {
            put_varint(&mut out, delta);
            out.extend_from_slice(&[Place::Buried as u8, 0, priority]);
            put_u48(&mut out, 0);
            put_bytes(&mut out, b"");
        }
        what(EntriesSection::decode(&mut Reader::new(&out)))
    }

    #[test]
    fn entries_come_in_strictly_ascending_order_with_a_priority_that_there_is() {
        assert_eq!(entries([0, 1], PRIORITIES - 1), None);
        assert_eq!(entries([u64::MAX, 1], 0), Some("ids out of order"));
        assert_eq!(entries([5, 0], 0), Some("ids out of order"));
        assert_eq!(entries([0, 1], PRIORITIES), Some("priority out of range"));
    }

    fn full_pages(deltas: [u32; 2]) -> Option<&'static str> {
        let mut out = Vec::new();
        put_u64(&mut out, 1);
        put_varint(&mut out, 2);
        for delta in deltas {
            put_varint(&mut out, delta.into());
            PageForm::Full.encode(&mut out);
        }
        what(AckedSection::decode(&mut Reader::new(&out)))
    }

    #[test]
    fn pages_come_in_strictly_ascending_order_within_a_segment() {
        assert_eq!(full_pages([0, PAGE_COUNT_MAX - 1]), None);
        let refused = Some("pages out of order or range");
        assert_eq!(full_pages([0, PAGE_COUNT_MAX]), refused);
        assert_eq!(full_pages([5, 0]), refused);
        assert_eq!(full_pages([5, u32::MAX]), refused);
    }

    #[test]
    fn a_segment_has_a_number_of_32_bits_that_is_not_0() {
        let number = |number: u64| {
            let mut out = Vec::new();
            put_u64(&mut out, number);
            decode_segment_number(&mut Reader::new(&out)).ok()
        };
        assert_eq!(number(1), Some(1));
        assert_eq!(number(u32::MAX.into()), Some(u32::MAX));
        assert_eq!((number(0), number(1 << 32)), (None, None));
    }
}
