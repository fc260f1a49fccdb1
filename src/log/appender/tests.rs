//! What the appender takes, what it refuses, and what it says about it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::super::fixture::{ID_CEILING, LANE, SEGMENT_BYTES, World, message, settings};
use super::super::prepare::{AT_REST_BYTES, ROLL_RESERVE, frames_capacity};
use super::super::survey::survey;
use super::*;
use crate::clock::real_now;
use crate::format::header::FRAMES_START;
use crate::storage::Spare;
use crate::storage::SpareBytes;
use crate::storage::sim::{Fault, FaultKind};

const MIB: u64 = 1 << 20;

fn world() -> World {
    World::new(Prepare::Reserve, SEGMENT_BYTES)
}

#[test]
fn segments_grow_to_their_full_length_where_zeroes_are_written_ahead() {
    let zeroed = settings(Prepare::Zero, 64 << 20);
    assert_eq!(u64::from(zeroed.first_segment_bytes()), MIB);
    for (before, next) in [(0, 1), (1, 2), (2, 4), (24, 48), (48, 64), (64, 64)] {
        assert_eq!(zeroed.next_segment_bytes(before * MIB), next * MIB);
    }
    assert_eq!(settings(Prepare::Zero, SEGMENT_BYTES).first_segment_bytes(), SEGMENT_BYTES);
    let reserved = settings(Prepare::Reserve, 64 << 20);
    assert_eq!(u64::from(reserved.first_segment_bytes()), 64 * MIB);
    assert_eq!(reserved.next_segment_bytes(MIB), 64 * MIB);
}

#[test]
fn a_segment_holds_as_many_bytes_of_frames_as_it_says_and_no_more() {
    assert_eq!((frames_capacity(0), frames_capacity(FRAMES_START + ROLL_RESERVE)), (0, 0));
    let capacity = frames_capacity(SEGMENT_BYTES);
    assert_eq!(file_bytes(capacity), SEGMENT_BYTES.into());
    let payload = vec![7; capacity as usize - 20 + 1];
    let refused = world().insert(&[message(&payload)]).unwrap_err();
    assert_eq!(refused, Refused::Segment { frames_bytes: capacity + 8 });
    let world = world();
    world.insert(&[message(&payload[1..])]).unwrap();
    let end = world.log.tail().end();
    assert_eq!((end.segment(), end.offset()), (1, SEGMENT_BYTES - ROLL_RESERVE));
}

#[test]
fn a_full_segment_names_the_one_in_which_the_log_goes_on() {
    let world = world();
    world.roll();
    assert!(!world.log.tail().active().unwrap().segment.is_sealed());
    let sealed = world.log.tail().take_sealed();
    assert!(sealed[0].segment.is_sealed());
    assert_eq!(sealed[0].segment.index().unwrap().messages(), 1);
    let data = sealed[0].segment.data(&world.disk).unwrap();
    let found = survey(data.bytes(0..data.published()), &sealed[0].segment.seed, FRAMES_START);
    assert_eq!((found.next, sealed[0].segment.end()), (Some(2), found.end));
    assert!(found.end <= SEGMENT_BYTES);
}

#[test]
fn the_log_waits_for_a_cursor_when_it_is_four_segments_ahead() {
    let world = world();
    for _ in 0..SEGMENTS_AHEAD_MAX {
        assert!(!world.log.tail().wants_checkpoint(0));
        world.roll();
    }
    assert!(world.log.tail().wants_checkpoint(0));
    world.prepare().unwrap();
    world.fill(SEGMENT_BYTES - ROLL_RESERVE);
    assert_eq!(world.record().unwrap_err(), Refused::Checkpoint { ids: 0 });
    let active = world.log.tail().end().segment();
    world.log.tail().checkpointed(active, ID_CEILING);
    assert!(world.record().is_ok());
}

#[test]
fn ids_that_are_not_reserved_are_not_given_out() {
    let world = world();
    let lanes = vec![LANE; ID_CEILING as usize - 2];
    assert_eq!(world.insert(&[Draft::insert(0, b"", b"", &lanes)]).unwrap().first_id, 1);
    assert!(!world.log.tail().wants_checkpoint(1));
    assert_eq!(world.insert(&[message(b"")]).unwrap().first_id, ID_CEILING - 1);
    assert!(world.log.tail().wants_checkpoint(1));
    assert_eq!(world.insert(&[message(b"")]).unwrap_err(), Refused::Checkpoint { ids: 1 });
    // What takes no id goes on, also when the ceiling is not known any more.
    world.log.tail().checkpointed(1, 0);
    assert!(world.record().is_ok());
}

#[test]
fn without_its_spares_a_store_takes_no_messages_and_all_other_records() {
    let world = world();
    world.space.hold_back(SpareBytes { log: 0, cursor: 4096, copy: 0 }).unwrap();
    assert!(world.insert(&[message(b"")]).is_ok());
    // What the spare takes is there, and no more.
    world.disk.set_capacity(Some(u64::from(SEGMENT_BYTES) + 4096));
    let taken = world.space.create_or_take(Spare::Cursor, "x", 4096..=4096, Prepare::Reserve);
    assert!(taken.is_ok() && !world.space.is_complete());
    assert_eq!(world.insert(&[message(b"")]).unwrap_err(), Refused::HeldBack);
    assert!(world.record().is_ok());
}

#[test]
fn a_sync_is_marked_once_in_the_next_frame() {
    let world = world();
    let marks = |from: u32| {
        let mut bytes = vec![0; from as usize];
        let end = world.log.tail().end().offset();
        bytes.extend(world.bytes(from..end));
        let seed = world.log.tail().active().unwrap().segment.seed.clone();
        survey(&bytes, &seed, from).mark
    };
    let run = [message(b"a"), message(b"b"), message(b"c")];
    let first = world.insert(&run).unwrap().end;
    assert_eq!(marks(FRAMES_START), None);
    world.log.sync_to(first).unwrap();
    assert_eq!(world.log.synced_through(), first);
    let second = world.insert(&run).unwrap().end;
    assert_eq!(marks(first.offset()), Some(first));
    world.insert(&run).unwrap();
    assert_eq!(marks(second.offset()), None);
    let written = u64::from(world.log.tail().end().offset() - FRAMES_START);
    assert_eq!(world.log.tail().written_bytes(), written);
}

#[test]
fn the_earliest_time_to_sync_by_counts_and_wakes_whoever_syncs() {
    let world = world();
    let base = real_now();
    let insert = |secs| {
        let by = base + Duration::from_secs(secs);
        let appended = world.log.append(&[message(b"")], Purpose::Insert, Some(by), None);
        let earliest = world.log.tail().sync_by().unwrap() - base;
        (appended.unwrap().wake, earliest.as_secs())
    };
    assert_eq!(insert(20), (true, 20));
    assert_eq!(insert(20), (false, 20));
    assert_eq!(insert(30), (false, 20));
    assert_eq!(insert(10), (true, 10));
    assert!(!world.record().unwrap().wake);
    let end = world.log.tail().end();
    world.log.sync_to(end).unwrap();
    assert_eq!(world.log.tail().sync_by(), None);
}

#[test]
fn a_log_runs_short_when_a_quarter_is_used_and_there_is_no_next_segment() {
    let world = world();
    world.fill(SEGMENT_BYTES / 4 - 24);
    let last = world.insert(&[message(b"")]).unwrap();
    assert_eq!((last.end.offset(), last.short), (SEGMENT_BYTES / 4, false));
    assert!(world.insert(&[message(b"")]).unwrap().short);
    // It is no use to ask a full disk.
    world.disk.set_capacity(Some(0));
    assert!(world.prepare().is_err());
    assert!(!world.insert(&[message(b"")]).unwrap().short);
    world.disk.set_capacity(None);
    world.prepare().unwrap();
    assert!(!world.insert(&[message(b"")]).unwrap().short);
}

#[test]
fn a_number_is_given_out_once_and_given_back_only_by_what_was_not_made() {
    let world = world();
    world.disk.set_capacity(Some(0));
    assert!(world.prepare().is_err());
    assert_eq!([world.log.take_number().unwrap(), world.log.take_number().unwrap()], [2, 3]);
    assert!(world.prepare().is_err());
    world.disk.set_capacity(None);
    world.prepare().unwrap();
    assert_eq!(world.log.take_number().unwrap(), 5);
    assert!(world.disk.file_names().contains(&segment_name(4)));
}

#[test]
fn salts_are_not_alike() {
    let log = world().log;
    assert_ne!(log.new_salt().unwrap(), log.new_salt().unwrap());
}

#[test]
fn a_prepared_segment_is_durable_before_it_counts() {
    let world = world();
    world.prepare().unwrap();
    let left = world.disk.power_cut(0).read_file(&segment_name(2)).unwrap();
    assert_eq!(left.len(), SEGMENT_BYTES as usize);
    world.disk.fail(Fault { kind: FaultKind::Sync, after: 0, sticky: false });
    assert!(matches!(world.log.prepare(0, Purpose::Insert, 0), Err(PrepareFailed::Sync(_))));
    assert!(world.log.is_poisoned());
}

#[test]
fn a_poisoned_log_takes_nothing_and_says_why() {
    let world = world();
    assert!(!world.log.is_poisoned() && world.log.failure().is_none());
    world.log.poison(io::Error::other("the disk is gone"));
    assert!(world.log.is_poisoned());
    assert_eq!(world.log.failure().unwrap().0.to_string(), "the disk is gone");
    assert_eq!(world.record().unwrap_err(), Refused::Poisoned);
}

#[test]
fn a_panic_in_the_middle_of_an_append_shows() {
    let world = world();
    assert!(world.log.is_healthy());
    let admit = |_: &Tail| panic!("on purpose");
    let append = || world.log.append_if(&[message(b"")], Purpose::Insert, None, admit);
    catch_unwind(AssertUnwindSafe(append)).unwrap_err();
    assert!(!world.log.is_healthy());
}

#[test]
fn a_log_at_rest_goes_on_in_a_short_segment_and_keeps_no_others() {
    let world = World::new(Prepare::Reserve, 4 * AT_REST_BYTES);
    world.prepare().unwrap();
    assert!(world.log.seal_for_rest(0).is_ok());
    assert_eq!(world.log.tail().end().segment(), 3);
    assert_eq!(world.log.tail().active_bytes(), (FRAMES_START.into(), AT_REST_BYTES.into()));
    assert_eq!(world.log.take_unused(), [2].map(segment_name));
}

#[test]
fn segments_that_are_too_small_for_a_message_are_passed_over_and_given_back() {
    let world = world();
    let payload = vec![7; 100 << 10];
    let Refused::Segment { frames_bytes } = world.insert(&[message(&payload)]).unwrap_err() else {
        panic!("it fits in no segment");
    };
    world.prepare().unwrap();
    assert!(world.log.prepare(frames_bytes, Purpose::Insert, 0).is_ok());
    assert_eq!(world.insert(&[message(&payload)]).unwrap().end.segment(), 3);
    assert_eq!(world.log.take_unused(), [2].map(segment_name));
}

#[test]
fn a_closed_log_takes_nothing_and_keeps_no_prepared_segment() {
    let world = world();
    world.prepare().unwrap();
    world.log.close();
    assert_eq!(world.record().unwrap_err(), Refused::Closed);
    assert_eq!(world.log.take_unused(), [2].map(segment_name));
}

#[test]
fn what_is_for_a_queue_that_was_removed_is_refused() {
    let world = world();
    let append = |removed: bool| {
        let removed = AtomicBool::new(removed);
        world.log.append(&[message(b"")], Purpose::Insert, None, Some(&removed)).map(|_| ())
    };
    assert_eq!((append(false), append(true)), (Ok(()), Err(Refused::Removed)));
}
