//! An index holds the slots that it was made of, and none is opened that is damaged or about something else.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::format::record::insert::PRIORITIES;
use crate::format::strategies::index_lanes;

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
            let fill = || (0..exact).map(|n| ((u64::from(fill) * (n + 1)) >> 13) as u8).collect();
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
        (second + 4, PRIORITIES),
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
