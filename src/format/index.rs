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
    let lane = Lane { queue, priority: reader.u8().ok()? };
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
mod tests {
    use super::*;
    use crate::format::strategies::index_lanes;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    const NUMBER: u32 = 9;
    const SALT: u64 = 0x0123_4567_89AB_CDEF;
    const END: u32 = 1 << 20;
    const DISTANCE_MAX: u32 = u16::MAX as u32;
    const LANE: Lane = Lane { queue: 1, priority: 0 };

    fn encode_owned(lanes: &[(Lane, Vec<Slot>)]) -> Vec<u8> {
        let lanes: Vec<_> = lanes.iter().map(|(lane, slots)| (*lane, &slots[..])).collect();
        encode(NUMBER, SALT, END, &lanes)
    }

    fn open_expected(bytes: &[u8]) -> Option<IndexLayout> {
        open(bytes, NUMBER, SALT, END)
    }

    /// Messages in a row, in frames of 32 bytes.
    fn row(count: u32) -> Vec<Slot> {
        (0..count).map(|n| (n, 4096 + n * 32)).collect()
    }

    /// Two blocks of a narrow lane, and a wide one.
    fn sample() -> Vec<u8> {
        let bytes = encode_owned(&[
            (LANE, row(BLOCK_SLOTS as u32 + 2)),
            (Lane { queue: 1, priority: 4 }, vec![(50, 8192)]),
        ]);
        assert_eq!(forms(&bytes), [Form::Narrow, Form::Wide]);
        bytes
    }

    fn forms(bytes: &[u8]) -> Vec<Form> {
        let layout = open_expected(bytes).expect("what was just encoded");
        layout.lanes.iter().map(|range| range.form).collect()
    }

    /// Puts the right checksum in place of the one that is there.
    fn sum_up(bytes: &mut [u8]) {
        let covered = bytes.len() - CHECKSUM_BYTES;
        let checksum = crc32(&bytes[..covered]);
        bytes[covered..].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Encodes one lane of these slots, checks that all come back, and says in which form they were.
    fn form_of(slots: &[Slot]) -> Form {
        let bytes = encode(NUMBER, SALT, END, &[(LANE, slots)]);
        let layout = open_expected(&bytes).expect("what was just encoded");
        assert!((0..slots.len()).all(|k| layout.slot(&bytes, 1, 0, k) == Some(slots[k])));
        layout.lanes[0].form
    }

    /// Every slot that the lanes are said to have can be asked for.
    fn ask_for_all(bytes: &[u8], layout: &IndexLayout) {
        for (queue, priority, count) in layout.lanes() {
            let slots = (0..count).map(|k| layout.slot(bytes, queue, priority, k));
            assert_eq!(slots.flatten().count(), count);
            for id_delta in [0, 1, 1000, u32::MAX] {
                assert!(layout.lower_bound(bytes, queue, priority, id_delta) <= count);
            }
        }
    }

    /// The usual slots: ids and offsets ascend, in small steps mostly, over several blocks.
    fn dense_slots() -> impl Strategy<Value = Vec<Slot>> {
        let far = prop_oneof![8 => 1u32..50, 1 => 1u32..20_000];
        let near = vec((1u32..50, 0u32..200), 1..200);
        let steps = prop_oneof![near, vec((far, 0u32..200), 1..200)];
        (0u32..1000, steps).prop_map(|(first, steps)| {
            let mut slot = (first, 4096);
            let mut step = |(ids, frames): (u32, u32)| {
                slot = (slot.0 + ids, slot.1 + frames * FRAME_ALIGNMENT);
                slot
            };
            steps.into_iter().map(&mut step).collect()
        })
    }

    /// Lanes of slots anywhere, which are wide for the most part, and among them dense ones.
    fn mixed_lanes() -> impl Strategy<Value = Vec<(Lane, Vec<Slot>)>> {
        (index_lanes(END), vec(option::of(dense_slots()), 8)).prop_map(|(lanes, dense)| {
            let either = |((lane, any), dense): ((Lane, Vec<Slot>), Option<Vec<Slot>>)| {
                (lane, dense.unwrap_or(any))
            };
            lanes.into_iter().zip(dense).map(either).collect()
        })
    }

    /// The beginning of an index that claims lanes at will.
    fn forged() -> impl Strategy<Value = Vec<u8>> {
        let lane = (0u8..3, 0u8..4, 0u8..4, prop::bool::weighted(0.05), 0u32..40);
        (vec(lane, 0..4), option::of(vec(any::<u8>(), 0..400)), any::<u32>()).prop_map(
            |(lanes, slots, fill)| {
                let mut out = encode(NUMBER, SALT, END, &[]);
                out.truncate(HEADER_BYTES - 4);
                put_u32(&mut out, lanes.len() as u32);
                let mut exact = 0;
                for (queue, priority, form, reserved, count) in lanes {
                    put_u32(&mut out, queue.into());
                    out.extend_from_slice(&[priority, form]);
                    put_u16(&mut out, reserved.into());
                    put_u32(&mut out, count);
                    exact += Form::from_byte(form).map_or(0, |form| form.bytes(count));
                }
                let fill =
                    || (0..exact).map(|n| ((u64::from(fill) * (n + 1)) >> 13) as u8).collect();
                out.append(&mut slots.unwrap_or_else(fill));
                out.resize(out.len() + CHECKSUM_BYTES, 0);
                sum_up(&mut out);
                out
            },
        )
    }

    proptest! {
        #[test]
        fn an_index_reads_back_as_written(lanes in mixed_lanes()) {
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
        fn the_lower_bound_is_where_a_scan_finds_it(lanes in mixed_lanes(), id_delta in 0u32..300) {
            let bytes = encode_owned(&lanes);
            let layout = open_expected(&bytes).expect("what was just encoded");
            for (lane, slots) in &lanes {
                let around = slots.iter().flat_map(|slot| [slot.0, slot.0 + 1]);
                for id_delta in around.chain([id_delta, u32::MAX]) {
                    let scanned = slots.partition_point(|slot| slot.0 < id_delta);
                    let found = layout.lower_bound(&bytes, lane.queue, lane.priority, id_delta);
                    prop_assert_eq!(found, scanned);
                }
            }
        }

        #[test]
        fn a_lane_is_narrow_where_all_of_it_fits_and_that_is_not_longer(slots in dense_slots()) {
            let near = |a: Slot, b: Slot| {
                b.0 - a.0 <= DISTANCE_MAX && b.1 - a.1 <= DISTANCE_MAX * FRAME_ALIGNMENT
            };
            let fits = slots.chunks(32).all(|block| near(block[0], block[block.len() - 1]));
            let form = if fits && slots.len() > 1 { Form::Narrow } else { Form::Wide };
            prop_assert_eq!(form_of(&slots), form);
        }

        #[test]
        fn random_bytes_never_panic_and_never_pass(bytes: Vec<u8>) {
            prop_assert_eq!(open_expected(&bytes), None);
        }

        #[test]
        fn random_lanes_and_slots_with_the_right_checksum_never_panic(bytes in forged()) {
            if let Some(layout) = open_expected(&bytes) {
                ask_for_all(&bytes, &layout);
            }
        }

        #[test]
        fn a_wrong_field_with_the_right_checksum_never_panics(
            at: prop::sample::Index,
            byte: u8,
        ) {
            let mut bytes = sample();
            let covered = bytes.len() - CHECKSUM_BYTES;
            bytes[at.index(covered)] = byte;
            sum_up(&mut bytes);
            if let Some(layout) = open_expected(&bytes) {
                ask_for_all(&bytes, &layout);
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
    fn an_index_without_lanes_has_no_message() {
        let bytes = encode(NUMBER, SALT, END, &[]);
        assert_eq!(bytes.len(), HEADER_BYTES + CHECKSUM_BYTES);
        let layout = open_expected(&bytes).expect("what was just encoded");
        assert_eq!(layout.lanes().count(), 0);
        assert_eq!((layout.count(1, 0), layout.lower_bound(&bytes, 1, 0, 1)), (0, 0));
        assert_eq!(layout.slot(&bytes, 1, 0, 0), None);
    }

    #[test]
    fn a_slot_costs_little_more_than_four_bytes() {
        let bytes = encode(NUMBER, SALT, END, &[(LANE, &row(3200))]);
        let ends = HEADER_BYTES + LANE_BYTES + CHECKSUM_BYTES;
        assert_eq!(bytes.len() - ends, 3200 * 17 / 4);
        assert_eq!(form_of(&row(1)), Form::Wide);
        assert_eq!(form_of(&row(2)), Form::Narrow);
    }

    #[test]
    fn a_lane_is_wide_as_soon_as_one_slot_is_too_far_from_the_first_of_its_block() {
        let bytes_max = DISTANCE_MAX * FRAME_ALIGNMENT;
        let behind = |count: u32, ids: u32, bytes: u32| {
            let mut slots = row(count);
            let base = slots[(count - 1) as usize / BLOCK_SLOTS * BLOCK_SLOTS];
            let last = slots.last_mut().expect("a row of at least one");
            *last = (base.0 + ids, base.1 + bytes);
            form_of(&slots)
        };
        for count in [2, 3, 32, 34, 64, 100] {
            assert_eq!(behind(count, DISTANCE_MAX, bytes_max), Form::Narrow, "{count}");
            assert_eq!(behind(count, DISTANCE_MAX + 1, bytes_max), Form::Wide, "{count}");
            assert_eq!(behind(count, DISTANCE_MAX, bytes_max + 8), Form::Wide, "{count}");
            // Frames do not lie so, but nothing that is asked to be written may come back as something else.
            assert_eq!(behind(count, DISTANCE_MAX, bytes_max - 4), Form::Wide, "{count}");
        }
        let mut slots = row(33);
        slots[32] = (u32::MAX, u32::MAX - 7);
        assert_eq!(form_of(&slots), Form::Narrow, "the first of a block may be anywhere");
        slots[31] = (31, 4096 - 8);
        assert_eq!(form_of(&slots), Form::Wide, "before the first of its block");
    }

    #[test]
    fn a_table_of_lanes_that_no_writer_makes_is_refused() {
        let second = HEADER_BYTES + LANE_BYTES;
        for (at, byte) in [
            (HEADER_BYTES - 4, 1), // one lane fewer
            (HEADER_BYTES - 4, 3), // one more
            (HEADER_BYTES - 1, 0xFF),
            (HEADER_BYTES + 5, 0), // forms that there are not, and one that there is
            (HEADER_BYTES + 5, 3),
            (HEADER_BYTES + 5, 2),
            (HEADER_BYTES + 6, 1), // reserved
            (HEADER_BYTES + 7, 1),
            (HEADER_BYTES + 8, 33), // counts
            (HEADER_BYTES + 8, 35),
            (HEADER_BYTES + 11, 0xFF),
            (second + 8, 0),
            (second, 0), // out of order
            (second + 4, 0),
        ] {
            let mut bytes = sample();
            assert_ne!(bytes[at], byte, "byte {at} is changed");
            bytes[at] = byte;
            sum_up(&mut bytes);
            assert_eq!(open_expected(&bytes), None, "{byte} at {at}");
        }
    }

    #[test]
    fn a_lane_of_no_slots_is_refused() {
        for form in [Form::Narrow, Form::Wide] {
            let mut bytes = encode(NUMBER, SALT, END, &[]);
            bytes.truncate(HEADER_BYTES - 4);
            put_u32(&mut bytes, 1);
            put_lane(&mut bytes, LANE, form, 0);
            bytes.extend_from_slice(&[0; CHECKSUM_BYTES]);
            sum_up(&mut bytes);
            assert_eq!(open_expected(&bytes), None);
        }
    }

    #[test]
    fn distances_beyond_32_bits_wrap() {
        let mut bytes = encode(NUMBER, SALT, END, &[(LANE, &row(2))]);
        let base_at = HEADER_BYTES + LANE_BYTES;
        bytes[base_at..base_at + SLOT_BYTES].fill(0xFF);
        sum_up(&mut bytes);
        let layout = open_expected(&bytes).expect("slots are not looked at");
        assert_eq!(layout.slot(&bytes, 1, 0, 1), Some((0, 31)));
    }
}
