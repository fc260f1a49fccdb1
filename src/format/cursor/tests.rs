//! A cursor reads back as written, no damage to it passes, and an older program sees what it must not skip.

use proptest::prelude::*;

use super::pages::PageForm;
use super::sections::LaneState;
use super::window::SeenKey;
use super::*;
use crate::format::record::settle::Place;
use crate::format::strategies::cursor;

fn encode(header: &CursorHeader, sections: &[Section]) -> Vec<u8> {
    let mut encoder = CursorEncoder::new(header);
    for section in sections {
        match section {
            Section::Segment(segment) => encoder.segment(segment),
            Section::Queue(queue) => encoder.queue(queue),
            Section::Entries(entries) => encoder.entries(entries.queue, &entries.entries),
            Section::Acked(acked) => encoder.acked(acked),
            Section::Damage(damage) => encoder.damage(damage),
            Section::Window(window) => encoder.window(window),
            Section::Paused(paused) => encoder.paused(paused),
            Section::NextQueue(number) => encoder.next_queue(*number),
        }
    }
    encoder.finish()
}

fn with_checksum(mut file: Vec<u8>) -> Vec<u8> {
    let covered = file.len() - CHECKSUM_BYTES;
    let checksum = crc32(&file[..covered]);
    file[covered..].copy_from_slice(&checksum.to_le_bytes());
    file
}

fn header() -> CursorHeader {
    CursorHeader {
        clean: true,
        store: *b"0123456789abcdef",
        generation: 3,
        position: Position::new(2, 4096),
        proof: Position::new(2, 8192),
        id_ceiling: 1000,
        next_id: 900,
        written_at: 1_700_000_000_000,
    }
}

fn sample() -> Vec<Section> {
    let entry = Entry {
        id: 5,
        place: Place::Delayed,
        fresh: true,
        attempts: 0,
        priority: 4,
        due: 9,
        reason: vec![],
    };
    let second = Entry { id: 200, reason: b"why".to_vec(), ..entry.clone() };
    vec![
        Section::Segment(SegmentSection {
            file: 2,
            number: 2,
            salt: 1,
            first_id: 1,
            end: 4096,
            active: true,
            messages: 0,
            live_bytes: 0,
            first_expiry: None,
        }),
        Section::Queue(QueueSection {
            id: 1,
            name: b"jobs".to_vec(),
            declared_at: Position::new(1, 4096),
            as_of: Position::new(2, 4096),
            expires: true,
            grouped: true,
            live: 300,
            options: vec![1, 2, 3],
            lanes: vec![LaneState { priority: 4, next_id: 7 }],
        }),
        Section::Entries(EntriesSection { queue: 1, entries: vec![entry, second] }),
        Section::Acked(AckedSection {
            segment: 2,
            pages: vec![(0, PageForm::Full), (3, PageForm::Runs(vec![(0, 5), (7, 1)]))],
        }),
        Section::Damage(DamageSection {
            segment: 1,
            start: 4096,
            end: 8192,
            first_id: 1,
            last_id_exclusive: 9,
        }),
        Section::Window(WindowSection {
            queue: 1,
            as_of: Position::new(2, 4096),
            first_id: 3,
            keys: vec![SeenKey { key: (*b"k1").into(), id: 5, time_ms: 9 }],
        }),
        Section::Paused(PausedSection { queue: 1, failures: 20 }),
    ]
}

/// A file with one section of an unknown tag.
fn with_unknown_section(flags: u16) -> Vec<u8> {
    let mut file = encode(&header(), &[]);
    let mut section = vec![99, 0, flags as u8, 0, 2, 0, 0, 0];
    section.extend_from_slice(b"??");
    file.splice(HEADER_BYTES..HEADER_BYTES, section);
    with_checksum(file)
}

proptest! {
    #[test]
    fn a_cursor_reads_back_as_written((header, sections) in cursor()) {
        let file = encode(&header, &sections);
        prop_assert_eq!(decode(&file), CursorFound::Cursor { header, sections });
    }

    #[test]
    fn random_bytes_never_panic_and_never_pass(bytes: Vec<u8>) {
        let bad = matches!(decode(&bytes), CursorFound::Bad { .. });
        prop_assert!(bad);
    }

    #[test]
    fn random_sections_behind_a_right_checksum_never_panic(
        tag in 0u8..12,
        data in prop::collection::vec(any::<u8>(), 0..64),
        length in prop::option::of(any::<u32>()),
    ) {
        let mut file = encode(&header(), &[]);
        let mut section = vec![tag, 0, 0, 0];
        put_u32(&mut section, length.unwrap_or(data.len() as u32));
        section.extend_from_slice(&data);
        file.splice(HEADER_BYTES..HEADER_BYTES, section);
        let _ = decode(&with_checksum(file));
    }

    #[test]
    fn a_wrong_field_with_the_right_checksum_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut file = encode(&header(), &sample());
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        let _ = decode(&with_checksum(file));
    }
}

#[test]
fn every_single_bit_flip_of_a_cursor_is_noticed() {
    let whole = encode(&header(), &sample());
    for bit in 0..whole.len() * 8 {
        let mut file = whole.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(decode(&file), CursorFound::Bad { .. }), "bit {bit}");
    }
    for length in 0..whole.len() {
        let found = decode(&whole[..length]);
        assert!(matches!(found, CursorFound::Bad { .. }), "cut to {length} bytes");
    }
}

#[test]
fn a_newer_version_is_told_from_damage_by_its_checksum() {
    let mut file = encode(&header(), &sample());
    file[8] = 2;
    assert!(matches!(decode(&file), CursorFound::Bad { .. }));
    assert_eq!(decode(&with_checksum(file)), CursorFound::Newer { version: 2 });
}

#[test]
fn what_no_store_reaches_is_bad_even_with_the_right_checksum() {
    // The last bytes of the generation, of the ceiling, of the next id, and of the first id of the segment behind the header.
    for at in [39, 63, 71, HEADER_BYTES + SECTION_HEADER_BYTES + 31] {
        let mut file = encode(&header(), &sample());
        file[at] = 0x80;
        assert!(matches!(decode(&with_checksum(file)), CursorFound::Bad { .. }), "byte {at}");
    }
}

#[test]
fn an_unknown_section_is_skipped_only_if_it_says_so() {
    let skipped = CursorFound::Cursor { header: header(), sections: vec![] };
    assert_eq!(decode(&with_unknown_section(SECTION_FLAG_OPTIONAL)), skipped);
    assert_eq!(decode(&with_unknown_section(0)), CursorFound::Newer { version: 1 });
}

#[test]
fn versions_and_flags_that_no_writer_makes_are_bad_even_with_the_right_checksum() {
    // Version 0; an unknown flag of the file; a flag and a length of the end section.
    for (at, byte) in [(8, 0), (12, 2), (HEADER_BYTES + 2, 1), (HEADER_BYTES + 4, 4)] {
        let mut file = encode(&header(), &[]);
        file[at] = byte;
        file.splice(
            HEADER_BYTES + SECTION_HEADER_BYTES..HEADER_BYTES + SECTION_HEADER_BYTES,
            [0; 4],
        );
        file.truncate(file.len() - if byte == 4 { 0 } else { 4 });
        let found = decode(&with_checksum(file));
        assert!(matches!(found, CursorFound::Bad { .. }), "byte {at} = {byte}: {found:?}");
    }
}

/// A file with one section of this content.
fn with_section(tag: u16, data: &[u8]) -> Vec<u8> {
    let mut file = encode(&header(), &[]);
    let mut section = Vec::new();
    put_u16(&mut section, tag);
    put_u16(&mut section, 0);
    put_u32(&mut section, data.len() as u32);
    section.extend_from_slice(data);
    file.splice(HEADER_BYTES..HEADER_BYTES, section);
    with_checksum(file)
}

#[test]
fn what_is_malformed_in_a_section_is_found_in_its_place() {
    // One entry more than its four bytes hold: noticed at the count, behind the queue's number.
    let file = with_section(TAG_ENTRIES, &[1, 1, 5, 1]);
    let offset = HEADER_BYTES + SECTION_HEADER_BYTES + 1;
    assert_eq!(decode(&file), CursorFound::Bad { reason: "count beyond the end", offset });
}

#[test]
fn nothing_may_stand_behind_the_end_section() {
    let mut file = encode(&header(), &[]);
    file.extend_from_slice(&[0; 4]);
    let reason = "bytes behind the last field";
    let offset = HEADER_BYTES + SECTION_HEADER_BYTES;
    assert_eq!(decode(&with_checksum(file)), CursorFound::Bad { reason, offset });
}

#[test]
fn a_file_without_its_end_section_is_bad() {
    let mut file = encode(&header(), &sample());
    file.truncate(file.len() - SECTION_HEADER_BYTES);
    assert!(matches!(decode(&with_checksum(file)), CursorFound::Bad { .. }));
}

#[test]
fn many_entries_take_several_sections() {
    let entry = |id| Entry {
        id,
        place: Place::InFlight,
        fresh: false,
        attempts: 1,
        priority: 0,
        due: 0,
        reason: vec![],
    };
    let entries: Vec<_> = (0..ENTRIES_PER_SECTION as u64 + 1).map(entry).collect();
    let mut encoder = CursorEncoder::new(&header());
    encoder.entries(1, &entries);
    let CursorFound::Cursor { sections, .. } = decode(&encoder.finish()) else {
        panic!("what was just encoded does not decode");
    };
    let counts: Vec<_> = sections
        .iter()
        .map(|section| match section {
            Section::Entries(section) => section.entries.len(),
            other => panic!("not entries: {other:?}"),
        })
        .collect();
    assert_eq!(counts, [ENTRIES_PER_SECTION, 1]);
}

#[test]
fn the_segments_of_a_cursor_lead_up_to_its_position() {
    let segment = |number| SegmentSection {
        file: number,
        number,
        salt: 1,
        first_id: 1,
        end: 4200,
        active: number == 2,
        messages: 0,
        live_bytes: 0,
        first_expiry: None,
    };
    let reason = |segments: &[SegmentSection]| {
        let sections: Vec<_> = segments.iter().cloned().map(Section::Segment).collect();
        match decode(&encode(&header(), &sections)) {
            CursorFound::Bad { reason, .. } => Some(reason),
            _ => None,
        }
    };
    assert_eq!(reason(&[segment(1), segment(2)]), None);
    assert_eq!(reason(&[segment(1)]), None, "the active one is missing");
    assert_eq!(reason(&[segment(2), segment(1)]), Some("segments out of order"));
    assert_eq!(reason(&[segment(1), segment(1)]), Some("segments out of order"));
    assert_eq!(reason(&[segment(3)]), Some("segment behind the position"));
    let other = Some("another segment active than that of the position");
    assert_eq!(reason(&[SegmentSection { active: true, ..segment(1) }]), other);
    assert_eq!(reason(&[SegmentSection { active: false, ..segment(2) }]), other);
    let empty = |number| SegmentSection { end: 4096, ..segment(number) };
    assert_eq!(reason(&[empty(1)]), Some("sealed segment without frames"));
    assert_eq!(reason(&[empty(2)]), None);
    let crowded = |messages, live_bytes| SegmentSection { messages, live_bytes, ..segment(1) };
    assert_eq!(reason(&[crowded(1 << 32, u32::MAX.into())]), None);
    let too_many = Some("more messages than a segment has room for");
    assert_eq!(reason(&[crowded((1 << 32) + 1, 1)]), too_many);
    assert_eq!(reason(&[crowded(1, 1 << 32)]), too_many);
}

#[test]
fn a_queue_holds_no_more_messages_than_can_be_added_up() {
    let is_bad = |live| {
        let Section::Queue(queue) = &sample()[1] else { unreachable!() };
        let queue = Section::Queue(QueueSection { live, ..queue.clone() });
        matches!(decode(&encode(&header(), &[queue])), CursorFound::Bad { .. })
    };
    assert!(!is_bad(sections::LIVE_END - 1));
    assert!(is_bad(sections::LIVE_END));
}
