//! What the end of the log says of itself.

use super::super::fixture::{ID_CEILING, LANE, SEGMENT_BYTES, World, message};
use super::super::{Purpose, Refused, frames_capacity};
use super::*;
use crate::format::frame::{self, Found, frame_bytes};
use crate::format::header::{HeaderFound, decode_start};
use crate::storage::Prepare;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

#[test]
fn what_is_in_the_active_segment_is_counted() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    world.insert(&[message(b"a"), message(&[7; 100])]).unwrap();
    world.record().unwrap();
    let other = Lane { queue: 2, ..LANE };
    world.insert(&[Draft::insert(0, b"", b"", &[other, LANE])]).unwrap();
    let tail = world.log.tail();
    assert_eq!((tail.active_messages(), tail.next_id()), (4, 5));
    let bytes = frame_bytes(1, false) + frame_bytes(100, false) + frame_bytes(0, false);
    assert_eq!(tail.active_message_bytes(), bytes);
    assert_eq!(tail.active_bytes(), (tail.end().offset().into(), SEGMENT_BYTES.into()));
    assert_eq!((tail.lane_len(LANE), tail.lane_len(other)), (3, 1));
    assert!(tail.is_active(1) && !tail.is_active(2));
}

/// Or a queue could be taken for empty that somebody has just inserted into.
#[test]
fn what_was_sealed_and_nobody_has_taken_in_is_counted() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    world.insert(&[message(b"a"), message(b"b")]).unwrap();
    world.roll();
    let rolled = world.log.tail().lane_len(LANE);
    world.insert(&[message(b"c")]).unwrap();
    let mut tail = world.log.tail();
    assert!(!tail.is_active(1));
    assert_eq!(tail.lane_len(LANE), rolled + 1);
    assert!(rolled >= 2);
    let in_sealed: usize =
        (tail.take_sealed().iter()).map(|sealed| sealed.segment.index().unwrap().len(LANE)).sum();
    assert_eq!(tail.lane_len(LANE), rolled + 1 - in_sealed);
}

#[test]
fn a_run_reads_back_as_it_was_appended() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    world.insert(&[message(b"before")]).unwrap();
    let start = world.log.tail().end().offset();
    let lanes = [LANE, Lane { queue: 2, ..LANE }];
    let run = [Draft::insert(0, b"head", b"payload", &lanes), message(b""), message(b"last")];
    assert_eq!(world.insert(&run).unwrap().first_id, 2);
    let tail = world.log.tail();
    let segment = &tail.active().unwrap().segment;
    let bytes = segment.bytes(0..tail.end().offset().into());
    let mut at = start;
    let mut found = Vec::new();
    while let Found::Frame(frame) = frame::read(bytes, at, &segment.seed) {
        found.push((frame.envelope.arg, frame.envelope.continued, frame.body));
        at = frame.next_offset();
    }
    assert_eq!(found, [(1, true, &b"headpayload"[..]), (3, true, b""), (4, false, b"last")]);
    let index = &tail.active().unwrap().index;
    let slots = [(0, FRAMES_START), (1, start), (3, start + 32), (4, start + 56)];
    assert_eq!((index.lane(LANE), index.lane(lanes[1])), (&slots[..], &[(2, start)][..]));
}

#[test]
fn a_segment_begins_with_two_copies_of_its_header() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    let HeaderFound::Header { header, damaged_copy } = decode_start(&world.bytes(0..FRAMES_START))
    else {
        panic!("there is a header");
    };
    assert_eq!((header.number, header.first_id, damaged_copy), (1, 1, false));
    assert_eq!(header.capacity, SEGMENT_BYTES);
}

#[test]
fn messages_of_the_active_segment_are_found_by_their_ids() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    let other = Lane { queue: 2, ..LANE };
    let ends: Vec<Position> =
        [LANE, other, LANE, LANE].map(|lane| insert_into(&world, lane)).to_vec();
    let tail = world.log.tail();
    let slots = tail.read_lane(1, LANE, 0, tail.end(), 9).unwrap();
    assert_eq!(slots.iter().map(|slot| slot.0).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(slots[1].1, ends[1].offset());
    assert_eq!(tail.read_lane(1, LANE, 1, tail.end(), 1), Some(vec![slots[1]]));
    // Only what lies before the end of what may be seen.
    assert_eq!(tail.read_lane(1, LANE, 0, ends[1], 9), Some(vec![slots[0]]));
    assert_eq!(tail.read_lane(1, LANE, 9, tail.end(), 9), Some(vec![]));
    assert_eq!(tail.read_lane(2, LANE, 0, tail.end(), 9), None);
    assert_eq!([0, 1, 2, 3, 4].map(|id| tail.lower_bound(1, LANE, id).unwrap()), [0, 1, 1, 2, 3]);
    assert_eq!(tail.lower_bound(2, LANE, 0), None);
    assert_eq!(tail.find(1, LANE, 2), Some(slots[1].1));
    assert_eq!((tail.find(1, LANE, 1), tail.find(2, LANE, 2)), (None, None));
}

fn insert_into(world: &World, lane: Lane) -> Position {
    world.insert(&[Draft::insert(0, b"", b"x", &[lane])]).unwrap().end
}

#[test]
fn nothing_is_appended_once_the_end_is_captured_or_the_log_closed() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    let end = world.record().unwrap().end;
    world.log.tail().end_appending();
    assert_eq!(world.record().unwrap_err(), Refused::Closed);
    world.log.close();
    let tail = world.log.tail();
    assert_eq!(tail.end(), end);
    assert_eq!((tail.active_messages(), tail.active_bytes()), (0, (0, 0)));
    assert!(!tail.is_active(1) && !tail.wants_segment() && !tail.wants_pages());
}

#[test]
fn a_cursor_counts_the_segments_that_the_log_is_ahead_of_it() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    (0..3).for_each(|_| world.roll());
    let mut tail = world.log.tail();
    assert_eq!((tail.ahead, tail.end().segment()), (3, 4));
    for (segment, ahead) in [(1, 3), (2, 2), (4, 0)] {
        tail.checkpointed(segment, ID_CEILING + 7);
        assert_eq!((tail.ahead, tail.id_ceiling), (ahead, ID_CEILING + 7));
    }
}

#[test]
fn the_first_prepared_segment_is_taken_that_is_long_enough() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    let room = frames_capacity(SEGMENT_BYTES);
    assert_eq!(world.log.tail().next_prepared(0), None);
    assert_eq!(world.log.tail().newest_bytes(), SEGMENT_BYTES.into());
    world.prepare().unwrap();
    assert!(world.log.prepare(room + 8, Purpose::Insert, 0).is_ok());
    let tail = world.log.tail();
    assert_eq!(tail.newest_bytes(), file_bytes(room + 8));
    let next = [0, room, room + 1, room + 8, room + 9].map(|bytes| tail.next_prepared(bytes));
    assert_eq!(next, [Some(0), Some(0), Some(1), Some(1), None]);
}

#[test]
fn pages_ahead_are_made_present_in_a_log_that_has_grown() {
    let world = World::new(Prepare::Reserve, 16 << 20);
    let present = || world.log.tail().active().unwrap().present;
    let wants = || world.log.tail().wants_pages();
    let end = |bytes: u64| world.fill((u64::from(FRAMES_START) + bytes) as u32);
    end(PREFAULT_MIN - 8);
    assert!(!wants() && !world.log.prefault());
    world.insert(&[message(b"")]).unwrap();
    assert!(wants());
    // As far ahead as was written, to the next page.
    assert!(world.log.prefault());
    let at = u64::from(world.log.tail().end().offset());
    let written = world.log.tail().written_bytes();
    assert_eq!(present(), (at + written).next_multiple_of(PAGE_BYTES));
    assert!(!wants() && !world.log.prefault());
    // It is time again once less than half of it is left.
    end(400 * KIB);
    assert!(wants());
    // From where a large page is worth it, to the next one.
    end(PREFAULT_STEP);
    assert!(world.log.prefault() && present() == 4 * MIB);
    assert!(world.log.prefault() && present() == 6 * MIB);
    assert!(!world.log.prefault());
    // At most so far, and never beyond a step at once.
    end(9 * MIB);
    assert!(world.log.prefault());
    assert_eq!(present(), 10 * MIB);
    assert!(world.log.prefault());
    assert_eq!(present(), 12 * MIB);
    assert!(world.log.prefault());
    assert_eq!(present(), 14 * MIB);
    assert!(!world.log.prefault());
    end(14 * MIB);
    assert!(world.log.prefault());
    assert_eq!(present(), 16 * MIB);
    assert!(!world.log.prefault() && !wants());
}

#[test]
fn no_pages_are_made_present_where_syncs_are_frequent() {
    let world = World::new(Prepare::Zero, 4 << 20);
    world.fill((2 * MIB) as u32);
    assert!(!world.log.tail().wants_pages() && !world.log.prefault());
}

#[test]
fn a_segment_ends_before_its_ids_run_out_of_32_bits() {
    let world = World::new(Prepare::Reserve, SEGMENT_BYTES);
    let tail = world.log.tail();
    let active = tail.active().unwrap();
    let last = active.segment.first_id + u64::from(u32::MAX);
    assert!(active.fits(0, last) && !active.fits(0, last + 1));
}
