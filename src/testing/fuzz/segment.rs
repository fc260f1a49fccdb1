//! A segment file: its header, the walk through its frames, the verdict on it, and an index beside it.

use super::frame::check_record;
use super::input::Input;
use super::seal;
use crate::format::checksum::Seed;
use crate::format::frame::{self, Found};
use crate::format::header::{self, FRAMES_START, HEADER_BYTES, HEADER_COPIES_AT, HeaderFound};
use crate::format::index;
use crate::format::position::Position;
use crate::log::{BadSpan, Survey, Surveyed, frames, survey, verdict};

const SEALED: u8 = 1 << 0;
/// The header's copies differ.
const TWO_COPIES: u8 = 1 << 1;
const INDEX: u8 = 1 << 2;
/// The index says that it is about this segment.
const INDEX_OF_THIS: u8 = 1 << 3;

/// Zeros behind the frames come in pieces of so many bytes.
const ZEROS: usize = 64;

struct Made {
    file: Vec<u8>,
    index: Vec<u8>,
}

/// A byte of flags; which frames are not sealed; how many zeros follow; one copy of the header, or two; with `INDEX`
/// the length of an index and the index; frames. What lies between the copies is read by nobody, so it is left out.
pub fn segment(input: &[u8]) {
    let mut input = Input::new(input);
    let flags = input.byte();
    let leave = input.byte();
    let zeros = usize::from(input.byte()) * ZEROS;
    let mut made = Made { file: vec![0; FRAMES_START as usize], index: Vec::new() };
    let first = input.take(HEADER_BYTES);
    let second = if flags & TWO_COPIES != 0 { input.take(HEADER_BYTES) } else { first };
    for (at, copy) in HEADER_COPIES_AT.into_iter().zip([first, second]) {
        made.file[at..at + copy.len()].copy_from_slice(copy);
    }
    if flags & INDEX != 0 {
        let length = input.u16().into();
        made.index.extend_from_slice(input.take(length));
    }
    made.file.extend_from_slice(input.rest());
    made.file.resize(made.file.len() + zeros, 0);
    if flags & SEALED != 0 {
        seal::segment(&mut made.file, leave);
    }
    check(&mut made, flags);
}

fn check(made: &mut Made, flags: u8) {
    let Made { file, index } = made;
    check_header(file);
    let salt = seal::salt_of(file);
    let seed = Seed::new(salt);
    let found = survey(file, &seed, FRAMES_START);
    check_survey(file, &seed, &found);
    check_verdict(&found);
    if flags & INDEX_OF_THIS != 0 && index.len() >= INDEX_END_AT + 4 {
        index[INDEX_SALT_AT..INDEX_SALT_AT + 8].copy_from_slice(&salt.to_le_bytes());
        index[INDEX_END_AT..INDEX_END_AT + 4].copy_from_slice(&found.end.to_le_bytes());
    }
    if flags & SEALED != 0 {
        seal::index(index);
    }
    check_index(index, salt, found.end);
}

const INDEX_NUMBER_AT: usize = 16;
const INDEX_SALT_AT: usize = 24;
const INDEX_END_AT: usize = 32;

/// A header that is believed is in the file, bit by bit.
fn check_header(file: &[u8]) {
    let HeaderFound::Header { header, damaged_copy } = header::decode_start(file) else { return };
    let encoded = header.encode();
    let same = HEADER_COPIES_AT.map(|at| file[at..at + HEADER_BYTES] == encoded);
    assert_ne!(same, [false, false]);
    assert_eq!(damaged_copy, same != [true, true]);
    assert!(header.covers(header.place()));
}

/// Frames that verify and bad spans lie one behind the other without a gap, and no frame is passed over that does not
/// lie within the body of another.
fn check_survey(file: &[u8], seed: &Seed, found: &Survey) {
    let mut at = FRAMES_START;
    let mut spans = found.bad.iter().peekable();
    let mut mark = None;
    frames(file, found, FRAMES_START, found.end, |offset, envelope| {
        while let Some(span) = spans.next_if(|span| span.start == at) {
            check_span(file, seed, span);
            at = span.end;
        }
        assert_eq!(offset, at);
        let Found::Frame(frame) = frame::read(file, offset, seed) else {
            panic!("a frame at {offset} does not verify")
        };
        assert_eq!(&frame.envelope, envelope);
        check_record(envelope, frame.body);
        mark = mark.max(envelope.mark);
        at = frame.next_offset();
    });
    assert_eq!((at, mark), (found.end, found.mark));
    for span in spans {
        assert_eq!((span.start, span.followed), (at, false), "only the last one is not followed");
        check_span(file, seed, span);
        at = span.end;
    }
    assert!(found.open_run.is_none_or(|run| run < found.end));
    assert!(found.without_open_run(found.end) <= found.end);
}

fn check_span(file: &[u8], seed: &Seed, span: &BadSpan) {
    let is_whole = |at: u32| matches!(frame::read(file, at, seed), Found::Frame(_));
    assert!(span.start < span.end && !is_whole(span.start), "{span:?}");
    assert_eq!(span.followed, is_whole(span.end), "{span:?}");
    if let Found::BadBody(envelope) = frame::read(file, span.start, seed)
        && u64::from(span.end - span.start) == envelope.total_bytes()
    {
        // What the damaged body holds is no frame of the log.
        return;
    }
    assert!(!(span.start..span.end).step_by(8).any(is_whole), "a frame is passed over: {span:?}");
}

/// Whatever is proven, the verdict is on what was found.
fn check_verdict(found: &Survey) {
    const NUMBER: u32 = 7;
    let middle = found.end / 16 * 8;
    for (proof, same_boot) in
        [0, middle, found.end, u32::MAX].into_iter().zip([true, false].into_iter().cycle())
    {
        let proof = Position::new(NUMBER, proof);
        let surveyed = Surveyed {
            first: NUMBER,
            number: NUMBER,
            rewritten: !same_boot && found.bad.is_empty(),
            survey: found,
            short: !same_boot,
            next_lost: same_boot,
        };
        let verdict = verdict(&[surveyed], proof, same_boot);
        assert_eq!(verdict.segments, [0]);
        let ends = [found.end, found.used];
        assert!(ends.iter().any(|end| verdict.end <= *end), "{verdict:?} of {found:?}");
        assert!(verdict.damaged.iter().all(|span| span.at == 0 && span.start <= span.end));
        assert!(verdict.damaged.is_sorted_by_key(|span| span.start));
    }
}

/// Every slot that an index is said to have can be asked for, and what was read can be written.
fn check_index(bytes: &[u8], salt: u64, end: u32) {
    let number = bytes.get(INDEX_NUMBER_AT).copied().unwrap_or(1).into();
    let Some(layout) = index::open(bytes, number, salt, end) else { return };
    let mut lanes = Vec::new();
    for (queue, priority, count) in layout.lanes() {
        assert_eq!(layout.count(queue, priority), count);
        let slot = |k| layout.slot(bytes, queue, priority, k);
        let slots: Vec<index::Slot> = (0..count).filter_map(slot).collect();
        assert_eq!((slots.len(), slot(count)), (count, None));
        for id_delta in [0, slots[count / 2].0, u32::MAX] {
            let bound = layout.lower_bound(bytes, queue, priority, id_delta);
            assert!(bound <= count);
            if slots.is_sorted() {
                assert_eq!(bound, slots.partition_point(|slot| slot.0 < id_delta));
            }
        }
        lanes.push((index::Lane { queue, priority }, slots));
    }
    let borrowed: Vec<_> = lanes.iter().map(|(lane, slots)| (*lane, &slots[..])).collect();
    let encoded = index::encode(number, salt, end, &borrowed);
    let again = index::open(&encoded, number, salt, end).expect("what was just encoded");
    for (lane, slots) in lanes {
        let slot = |k| again.slot(&encoded, lane.queue, lane.priority, k);
        assert!((0..slots.len()).map(slot).eq(slots.iter().copied().map(Some)));
    }
}
