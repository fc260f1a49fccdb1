//! The index of a sealed segment: where each lane's messages lie.
//!
//! It is derived from the segment, so nothing hangs on it: an index that does not verify, or is about another
//! state of the segment, is built anew. Once opened, slots are read in place, out of a mapping.
//!
//! A lane whose messages lie close together, as nearly all do, is written narrow: in blocks, each slot as its
//! distance from the first of its block. Within a lane slots are of one size, so the k-th is found without a search.
//!
//! Opening an index sums it up once and reads its table of lanes, but no slot: there may be millions. None has to be
//! right for reading to be safe: any bits make a slot, and who follows one into the segment verifies that a frame is
//! there, and that it is that of the message.

use super::bytes::{Reader, put_u16, put_u32, put_u64};
use super::checksum::crc32;
use super::frame::FRAME_ALIGNMENT;
use super::record::insert::decode_priority;
use crate::planted::{Bug, planted};

const MAGIC: [u8; 8] = *b"MPONDIDX";

// To raise it: change what is written. A reader takes its own version only and has any other built anew, so
// nothing of an old one needs to be kept.
pub(crate) const INDEX_VERSION: u32 = 1;

const HEADER_BYTES: usize = 40;
const LANE_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 4;

/// A slot in full: in the wide form every one, in the narrow form the base of each block.
const SLOT_BYTES: usize = 8;

/// A slot as its distance from the base of its block.
const DISTANCE_BYTES: usize = 4;

/// Slots that share a base. With more of them the base costs less, and it is more likely that one is too far off.
const BLOCK_SLOTS: usize = 32;
const BLOCK_BYTES: usize = SLOT_BYTES + BLOCK_SLOTS * DISTANCE_BYTES;

/// A queue at one priority. In the file, lanes are sorted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lane {
    pub(crate) queue: u32,
    pub(crate) priority: u8,
}

/// A message of a lane: its id less the segment's first id, and where its frame lies.
pub(crate) type Slot = (u32, u32);

/// How the slots of a lane are written. Zero is no form, so that zeros are no lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Form {
    Narrow = 1,
    Wide = 2,
}

impl Form {
    fn from_byte(byte: u8) -> Option<Form> {
        [Form::Narrow, Form::Wide].into_iter().find(|form| *form as u8 == byte)
    }

    /// How many bytes `count` slots take.
    fn bytes(self, count: u32) -> u64 {
        let count = u64::from(count);
        match self {
            Form::Narrow => {
                let blocks = count.div_ceil(BLOCK_SLOTS as u64);
                blocks * SLOT_BYTES as u64 + count * DISTANCE_BYTES as u64
            }
            Form::Wide => count * SLOT_BYTES as u64,
        }
    }
}

/// A whole index file for the segment `number` with this salt, whose last frame ends at `end`.
///
/// `lanes` must be in strictly ascending order, and so must the ids within each; no lane may be empty, or have 2^32
/// slots.
pub(crate) fn encode(number: u32, salt: u64, end: u32, lanes: &[(Lane, &[Slot])]) -> Vec<u8> {
    debug_assert!(lanes.windows(2).all(|pair| pair[0].0 < pair[1].0), "lanes out of order");
    let (mut table, mut slots_of_all) = (Vec::new(), Vec::new());
    for (lane, slots) in lanes {
        let form = put_slots(&mut slots_of_all, slots);
        put_lane(&mut table, *lane, form, slots.len() as u32);
    }
    let mut out =
        Vec::with_capacity(HEADER_BYTES + table.len() + slots_of_all.len() + CHECKSUM_BYTES);
    out.extend_from_slice(&MAGIC);
    put_u32(&mut out, INDEX_VERSION);
    put_u32(&mut out, 0);
    put_u64(&mut out, number.into());
    put_u64(&mut out, salt);
    put_u32(&mut out, end);
    put_u32(&mut out, lanes.len() as u32);
    out.append(&mut table);
    out.append(&mut slots_of_all);
    let checksum = crc32(&out);
    put_u32(&mut out, checksum);
    out
}

fn put_lane(out: &mut Vec<u8>, lane: Lane, form: Form, count: u32) {
    put_u32(out, lane.queue);
    out.extend_from_slice(&[lane.priority, form as u8]);
    put_u16(out, 0);
    put_u32(out, count);
}

/// Narrow where that can be and is not longer, which it is for a single slot.
fn put_slots(out: &mut Vec<u8>, slots: &[Slot]) -> Form {
    let start = out.len();
    if slots.len() > 1 && put_narrow(out, slots).is_some() {
        return Form::Narrow;
    }
    out.truncate(start);
    slots.iter().for_each(|slot| put_slot(out, *slot));
    Form::Wide
}

/// None if a slot is too far from the first of its block; what was put until then is to be dropped.
fn put_narrow(out: &mut Vec<u8>, slots: &[Slot]) -> Option<()> {
    for block in slots.chunks(BLOCK_SLOTS) {
        let base = *block.first()?;
        put_slot(out, base);
        for slot in block {
            let (ids, steps) = distance(base, *slot)?;
            put_u16(out, ids);
            put_u16(out, steps);
        }
    }
    Some(())
}

fn put_slot(out: &mut Vec<u8>, (id_delta, offset): Slot) {
    put_u32(out, id_delta);
    put_u32(out, offset);
}

/// How far `slot` is behind `base`, in ids and in steps of the frames' alignment; None if it does not fit.
fn distance(base: Slot, slot: Slot) -> Option<(u16, u16)> {
    let ids = slot.0.checked_sub(base.0)?;
    let bytes = slot.1.checked_sub(base.1)?;
    if !bytes.is_multiple_of(FRAME_ALIGNMENT) {
        return None;
    }
    Some((u16::try_from(ids).ok()?, u16::try_from(bytes / FRAME_ALIGNMENT).ok()?))
}

/// The lane table of an index that verified. The slots stay in the bytes that it was opened from, and those must
/// be given to the functions that ask for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexLayout {
    lanes: Vec<LaneRange>,
}

/// A lane's part of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LaneRange {
    lane: Lane,
    form: Form,
    count: u32,
    /// Where its slots begin in the file.
    at: usize,
}

/// Checks all of `bytes`, the whole file. None if it is damaged or about another segment or state of it.
///
/// Ensures: the slots of every lane lie within `bytes`. What they say is left to whoever reads the frames.
pub(crate) fn open(bytes: &[u8], number: u32, salt: u64, end: u32) -> Option<IndexLayout> {
    let covered_bytes = bytes.len().checked_sub(CHECKSUM_BYTES)?;
    let (covered, checksum) = bytes.split_at(covered_bytes);
    if checksum != crc32(covered).to_le_bytes() && !planted(Bug::IndexNotVerified) {
        return None;
    }
    let mut reader = Reader::new(covered);
    let about_this = reader.array().ok()? == MAGIC
        && reader.u32().ok()? == INDEX_VERSION
        && reader.u32().ok()? == 0
        && reader.u64().ok()? == u64::from(number)
        && reader.u64().ok()? == salt
        && reader.u32().ok()? == end;
    if !about_this {
        return None;
    }
    let lane_count = reader.u32().ok()? as usize;
    Some(IndexLayout { lanes: decode_lanes(&mut reader, lane_count)? })
}

/// None if the table is not as a writer makes it, or the slots do not take all of the rest.
fn decode_lanes(reader: &mut Reader<'_>, lane_count: usize) -> Option<Vec<LaneRange>> {
    let end = reader.at() + reader.remaining();
    let table_bytes = lane_count.checked_mul(LANE_BYTES)?;
    let mut slot_bytes = reader.remaining().checked_sub(table_bytes)?;
    let mut lanes: Vec<LaneRange> = Vec::with_capacity(lane_count);
    for _ in 0..lane_count {
        let range = decode_lane(reader, end - slot_bytes)?;
        let in_order = lanes.last().is_none_or(|last| last.lane < range.lane);
        if !in_order || range.count == 0 {
            return None;
        }
        let own_bytes = usize::try_from(range.form.bytes(range.count)).ok()?;
        slot_bytes = slot_bytes.checked_sub(own_bytes)?;
        lanes.push(range);
    }
    (slot_bytes == 0).then_some(lanes)
}

/// The lane whose slots begin at `at`.
fn decode_lane(reader: &mut Reader<'_>, at: usize) -> Option<LaneRange> {
    let queue = reader.u32().ok()?;
    let lane = Lane { queue, priority: decode_priority(reader).ok()? };
    let form = Form::from_byte(reader.u8().ok()?)?;
    let reserved = reader.u16().ok()?;
    let count = reader.u32().ok()?;
    (reserved == 0).then_some(LaneRange { lane, form, count, at })
}

impl IndexLayout {
    /// Each lane as queue, priority and number of messages, in ascending order. None is empty.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = (u32, u8, usize)> + '_ {
        self.lanes.iter().map(|range| (range.lane.queue, range.lane.priority, range.count as usize))
    }

    /// How many messages the lane has.
    pub(crate) fn count(&self, queue: u32, priority: u8) -> usize {
        self.range(queue, priority).map_or(0, |range| range.count as usize)
    }

    /// The lane's `k`-th message, in ascending order of id.
    pub(crate) fn slot(&self, bytes: &[u8], queue: u32, priority: u8, k: usize) -> Option<Slot> {
        self.slot_in(bytes, self.range(queue, priority)?, k)
    }

    /// How many messages of the lane have a lower id, which is the k of the first that has not.
    pub(crate) fn lower_bound(
        &self,
        bytes: &[u8],
        queue: u32,
        priority: u8,
        id_delta: u32,
    ) -> usize {
        let Some(range) = self.range(queue, priority) else { return 0 };
        let (mut low, mut high) = (0, range.count as usize);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.slot_in(bytes, range, middle) {
                Some((found, _)) if found < id_delta => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    fn range(&self, queue: u32, priority: u8) -> Option<&LaneRange> {
        let lane = Lane { queue, priority };
        let at = self.lanes.binary_search_by_key(&lane, |range| range.lane).ok()?;
        Some(&self.lanes[at])
    }

    fn slot_in(&self, bytes: &[u8], range: &LaneRange, k: usize) -> Option<Slot> {
        if k >= range.count as usize {
            return None;
        }
        match range.form {
            Form::Narrow => narrow_slot(bytes, range.at, k),
            Form::Wide => slot_at(bytes, range.at + k * SLOT_BYTES),
        }
    }
}

/// The `k`-th slot of a narrow lane whose blocks begin at `at`.
fn narrow_slot(bytes: &[u8], at: usize, k: usize) -> Option<Slot> {
    let block_at = at + k / BLOCK_SLOTS * BLOCK_BYTES;
    let (id_delta, offset) = slot_at(bytes, block_at)?;
    let at = block_at + SLOT_BYTES + k % BLOCK_SLOTS * DISTANCE_BYTES;
    let mut reader = Reader::new(bytes.get(at..at + DISTANCE_BYTES)?);
    let (ids, steps) = (reader.u16().ok()?, reader.u16().ok()?);
    // A sum that no writer has made wraps: that is a wrong slot, like any other.
    let behind = u32::from(steps) * FRAME_ALIGNMENT;
    Some((id_delta.wrapping_add(ids.into()), offset.wrapping_add(behind)))
}

fn slot_at(bytes: &[u8], at: usize) -> Option<Slot> {
    let mut reader = Reader::new(bytes.get(at..at + SLOT_BYTES)?);
    Some((reader.u32().ok()?, reader.u32().ok()?))
}

#[cfg(test)]
mod tests;
