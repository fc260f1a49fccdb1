//! The index of a sealed segment: where each lane's messages lie.
//!
//! It is derived from the segment, so nothing hangs on it: an index that does not verify, or is about another
//! state of the segment, is built anew. Once opened, slots are read in place, out of a mapping.

use super::bytes::{Reader, put_u32, put_u64};
use super::checksum::crc32;
use super::frame::FRAME_ALIGNMENT;
use super::header::FRAMES_START;

const MAGIC: [u8; 8] = *b"MPONDIDX";

// To raise it: change what is written. A reader takes its own version only and has any other built anew, so
// nothing of an old one needs to be kept.
pub(crate) const INDEX_VERSION: u32 = 1;

const HEADER_BYTES: usize = 40;
const LANE_BYTES: usize = 16;
const SLOT_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;

/// A queue at one priority. In the file, lanes are sorted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lane {
    pub(crate) queue: u32,
    pub(crate) priority: u8,
}

/// A message of a lane: its id less the segment's first id, and where its frame lies.
pub(crate) type Slot = (u32, u32);

/// A whole index file for the segment `number` with this salt, whose last frame ends at `end`.
///
/// `lanes` must be in strictly ascending order, and so must the ids within each; no lane may be empty, and there
/// must be fewer than 2^32 slots in all.
pub(crate) fn encode(number: u32, salt: u64, end: u32, lanes: &[(Lane, &[Slot])]) -> Vec<u8> {
    debug_assert!(lanes.windows(2).all(|pair| pair[0].0 < pair[1].0), "lanes out of order");
    let slots: usize = lanes.iter().map(|(_, slots)| slots.len()).sum();
    let mut out = Vec::with_capacity(
        HEADER_BYTES + lanes.len() * LANE_BYTES + slots * SLOT_BYTES + CHECKSUM_BYTES,
    );
    out.extend_from_slice(&MAGIC);
    put_u32(&mut out, INDEX_VERSION);
    put_u32(&mut out, 0);
    put_u64(&mut out, number.into());
    put_u64(&mut out, salt);
    put_u32(&mut out, end);
    put_u32(&mut out, lanes.len() as u32);
    let mut start = 0;
    for (lane, slots) in lanes {
        put_u32(&mut out, lane.queue);
        put_u32(&mut out, lane.priority.into());
        put_u32(&mut out, start);
        put_u32(&mut out, slots.len() as u32);
        start += slots.len() as u32;
    }
    for (id_delta, offset) in lanes.iter().flat_map(|(_, slots)| slots.iter()) {
        put_u32(&mut out, *id_delta);
        put_u32(&mut out, *offset);
    }
    let checksum = crc32(&out);
    put_u32(&mut out, checksum);
    out
}

/// The lane table of an index that verified. The slots stay in the bytes that it was opened from, and those must
/// be given to the functions that ask for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexLayout {
    lanes: Vec<LaneRange>,
    /// Where the slots begin.
    slots_at: usize,
}

/// A lane's part of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LaneRange {
    lane: Lane,
    start: u32,
    count: u32,
}

/// Checks all of `bytes`, the whole file. None if it is damaged or about another segment or state of it.
pub(crate) fn open(bytes: &[u8], number: u32, salt: u64, end: u32) -> Option<IndexLayout> {
    let covered_bytes = bytes.len().checked_sub(CHECKSUM_BYTES)?;
    let (covered, checksum) = bytes.split_at(covered_bytes);
    if checksum != crc32(covered).to_le_bytes() {
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
    if lane_count > reader.remaining() / LANE_BYTES {
        return None;
    }
    let mut lanes: Vec<LaneRange> = Vec::with_capacity(lane_count);
    let mut start = 0;
    for _ in 0..lane_count {
        let range = decode_lane(&mut reader)?;
        let in_order = lanes.last().is_none_or(|last| last.lane < range.lane);
        if !in_order || range.start != start || range.count == 0 {
            return None;
        }
        start = start.checked_add(range.count)?;
        lanes.push(range);
    }
    let layout = IndexLayout { lanes, slots_at: reader.at() };
    let whole = u64::from(start) * SLOT_BYTES as u64 == reader.remaining() as u64;
    (whole && slots_are_sound(bytes, &layout, end)).then_some(layout)
}

fn decode_lane(reader: &mut Reader<'_>) -> Option<LaneRange> {
    let queue = reader.u32().ok()?;
    let priority = u8::try_from(reader.u32().ok()?).ok()?;
    let start = reader.u32().ok()?;
    Some(LaneRange { lane: Lane { queue, priority }, start, count: reader.u32().ok()? })
}

/// Ids ascend within each lane, and each offset is one at which a frame can begin.
fn slots_are_sound(bytes: &[u8], layout: &IndexLayout, end: u32) -> bool {
    layout.lanes.iter().all(|range| {
        let mut previous = None;
        (0..range.count as usize).all(|k| {
            let Some((id_delta, offset)) = layout.slot_in(bytes, range, k) else { return false };
            let ascending = previous.is_none_or(|previous| previous < id_delta);
            previous = Some(id_delta);
            ascending
                && offset.is_multiple_of(FRAME_ALIGNMENT)
                && (FRAMES_START..end).contains(&offset)
        })
    })
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
        let at = self.slots_at + (range.start as usize + k) * SLOT_BYTES;
        let mut reader = Reader::new(bytes.get(at..at + SLOT_BYTES)?);
        Some((reader.u32().ok()?, reader.u32().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::strategies::index_lanes;
    use proptest::prelude::*;

    const NUMBER: u32 = 9;
    const SALT: u64 = 0x0123_4567_89AB_CDEF;
    const END: u32 = 1 << 20;

    fn encode_owned(lanes: &[(Lane, Vec<Slot>)]) -> Vec<u8> {
        let lanes: Vec<_> = lanes.iter().map(|(lane, slots)| (*lane, &slots[..])).collect();
        encode(NUMBER, SALT, END, &lanes)
    }

    fn open_expected(bytes: &[u8]) -> Option<IndexLayout> {
        open(bytes, NUMBER, SALT, END)
    }

    fn sample() -> Vec<u8> {
        encode_owned(&[
            (Lane { queue: 1, priority: 0 }, vec![(0, 4096), (2, 4160)]),
            (Lane { queue: 1, priority: 4 }, vec![(1, 4128)]),
        ])
    }

    proptest! {
        #[test]
        fn an_index_reads_back_as_written(lanes in index_lanes(END)) {
            let bytes = encode_owned(&lanes);
            let layout = open_expected(&bytes).expect("what was just encoded");
            let counts = lanes.iter().map(|(lane, slots)| (lane.queue, lane.priority, slots.len()));
            prop_assert!(layout.lanes().eq(counts));
            for (Lane { queue, priority }, slots) in &lanes {
                prop_assert_eq!(layout.count(*queue, *priority), slots.len());
                for (k, slot) in slots.iter().enumerate() {
                    prop_assert_eq!(layout.slot(&bytes, *queue, *priority, k), Some(*slot));
                }
                prop_assert_eq!(layout.slot(&bytes, *queue, *priority, slots.len()), None);
            }
            prop_assert_eq!(layout.slot(&bytes, 99, 0, 0), None);
        }

        #[test]
        fn the_lower_bound_is_where_a_scan_finds_it(lanes in index_lanes(END), id_delta in 0u32..300) {
            let bytes = encode_owned(&lanes);
            let layout = open_expected(&bytes).expect("what was just encoded");
            for (lane, slots) in &lanes {
                let scanned = slots.iter().filter(|slot| slot.0 < id_delta).count();
                let found = layout.lower_bound(&bytes, lane.queue, lane.priority, id_delta);
                prop_assert_eq!(found, scanned);
            }
        }

        #[test]
        fn random_bytes_never_panic_and_never_pass(bytes: Vec<u8>) {
            prop_assert_eq!(open_expected(&bytes), None);
        }

        #[test]
        fn a_wrong_field_with_the_right_checksum_never_panics(
            at: prop::sample::Index,
            byte: u8,
        ) {
            let mut bytes = sample();
            let covered = bytes.len() - CHECKSUM_BYTES;
            bytes[at.index(covered)] = byte;
            let checksum = crc32(&bytes[..covered]);
            bytes[covered..].copy_from_slice(&checksum.to_le_bytes());
            if let Some(layout) = open_expected(&bytes) {
                for (queue, priority, count) in layout.lanes() {
                    prop_assert!(layout.slot(&bytes, queue, priority, count - 1).is_some());
                    layout.lower_bound(&bytes, queue, priority, 1);
                }
            }
        }
    }

    #[test]
    fn every_single_bit_flip_of_an_index_is_noticed() {
        let whole = sample();
        assert!(open_expected(&whole).is_some());
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open_expected(&bytes), None, "bit {bit}");
        }
        for length in 0..whole.len() {
            assert_eq!(open_expected(&whole[..length]), None, "cut to {length} bytes");
        }
    }

    #[test]
    fn an_index_is_good_for_one_state_of_one_segment() {
        let bytes = sample();
        assert_eq!(open(&bytes, NUMBER + 1, SALT, END), None);
        assert_eq!(open(&bytes, NUMBER, SALT + 1, END), None);
        assert_eq!(open(&bytes, NUMBER, SALT, END + 8), None);
    }

    #[test]
    fn ids_out_of_order_and_offsets_that_no_frame_has_are_refused() {
        for slots in [
            vec![(1, 4096), (1, 4104)],
            vec![(0, FRAMES_START - 8)],
            vec![(0, FRAMES_START + 4)],
            vec![(0, END)],
        ] {
            let bytes = encode_owned(&[(Lane { queue: 1, priority: 0 }, slots)]);
            assert_eq!(open_expected(&bytes), None);
        }
    }
}
