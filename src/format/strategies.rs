//! What the property tests of this module make their values from.

use std::num::NonZeroU64;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::IDS_END;
use super::bytes::U48_MAX;
use super::checksum::crc32;
use super::cursor::pages::{PAGE_WORDS, PageForm};
use super::cursor::sections::{
    AckedSection, DamageSection, EntriesSection, Entry, LIVE_END, LaneState, PausedSection,
    QueueSection, Section, SegmentSection,
};
use super::cursor::window::{DEDUP_KEY_BYTES_MAX, SeenKey, WindowSection};
use super::cursor::{CursorHeader, GENERATIONS_END};
use super::frame::Envelope;
use super::header::{FRAMES_START, Header};
use super::index::{Lane, Slot};
use super::position::Position;
use super::record::insert::PRIORITIES;
use super::record::settle::Place;

pub(super) fn small_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

pub(super) fn position() -> impl Strategy<Value = Position> {
    any::<u64>().prop_map(Position::from_u64)
}

pub(super) fn place() -> impl Strategy<Value = Place> {
    prop::sample::select(vec![Place::InFlight, Place::GivenBack, Place::Delayed, Place::Buried])
}

pub(super) fn header() -> impl Strategy<Value = Header> {
    let numbers = (1..=u32::MAX, 1..=u32::MAX, 1..=u32::MAX);
    (numbers, any::<([u8; 16], u64, u64, u64, u32)>()).prop_map(
        |((number, a, b), (store, first_id, salt, created_at, capacity))| Header {
            store,
            number,
            replaces_first: a.min(b),
            replaces_last: a.max(b),
            first_id: first_id % IDS_END,
            salt,
            created_at,
            capacity,
        },
    )
}

/// With the body that it is for.
pub(super) fn envelope() -> impl Strategy<Value = (Envelope, Vec<u8>)> {
    let fields = (1..=u8::MAX, any::<bool>(), option::of(position()), any::<u16>(), any::<u32>());
    (fields, small_bytes()).prop_map(|((kind, continued, mark, info, arg), body)| {
        let (length, body_checksum) = (body.len() as u32, crc32(&body));
        (Envelope { length, kind, continued, mark, info, arg, body_checksum }, body)
    })
}

/// Ascending, disjoint, not touching.
pub(super) fn runs() -> impl Strategy<Value = Vec<(u64, u64)>> {
    (any::<u32>(), vec((1..10_000_u64, 1..10_000_u64), 1..20)).prop_map(|(first, steps)| {
        let mut end = u64::from(first);
        let run = |(gap, length)| {
            let start = end + gap;
            end = start + length;
            (start, length)
        };
        steps.into_iter().map(run).collect()
    })
}

pub(super) fn bitmap() -> impl Strategy<Value = Box<[u64; PAGE_WORDS]>> {
    let mixed = vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], PAGE_WORDS);
    let sparse = (0..PAGE_WORDS, any::<u64>()).prop_map(|(at, word)| {
        let mut words = vec![0; PAGE_WORDS];
        words[at] = word;
        words
    });
    prop_oneof![mixed, sparse, Just(vec![u64::MAX; PAGE_WORDS])].prop_map(|words| {
        let mut bitmap = Box::new([0; PAGE_WORDS]);
        bitmap.copy_from_slice(&words);
        bitmap
    })
}

pub(super) fn page_form() -> impl Strategy<Value = PageForm> {
    prop_oneof![
        Just(PageForm::Full),
        bitmap().prop_map(PageForm::Bitmap),
        bitmap().prop_map(|bitmap| PageForm::smallest(&bitmap).unwrap_or(PageForm::Full)),
    ]
}

fn cursor_header() -> impl Strategy<Value = CursorHeader> {
    let fields = any::<(bool, [u8; 16], u64, u64, u64, u64)>();
    (fields, position(), position()).prop_map(
        |((clean, store, generation, id_ceiling, next_id, written_at), position, proof)| {
            CursorHeader {
                clean,
                store,
                generation: generation % GENERATIONS_END,
                position,
                proof,
                id_ceiling: id_ceiling % IDS_END,
                next_id: next_id % IDS_END,
                written_at,
            }
        },
    )
}

/// A cursor whose segments are those of a log that goes on at its position.
pub(super) fn cursor() -> impl Strategy<Value = (CursorHeader, Vec<Section>)> {
    (cursor_header(), sections()).prop_map(|(header, mut sections)| {
        let (mut last, active) = (0, header.position.segment());
        sections.retain_mut(|section| {
            let Section::Segment(segment) = section else { return true };
            if segment.active {
                segment.number = active;
            }
            segment.active = segment.number == active;
            segment.end = segment.end.max(FRAMES_START + 1);
            let fits = segment.number > last && segment.number <= active;
            last = if fits { segment.number } else { last };
            fits
        });
        (header, sections)
    })
}

fn sections() -> impl Strategy<Value = Vec<Section>> {
    let section = prop_oneof![
        segment_section().prop_map(Section::Segment),
        queue_section().prop_map(Section::Queue),
        entries_section().prop_map(Section::Entries),
        acked_section().prop_map(Section::Acked),
        damage_section().prop_map(Section::Damage),
        window_section().prop_map(Section::Window),
        any::<(u32, u32)>()
            .prop_map(|(queue, failures)| Section::Paused(PausedSection { queue, failures })),
        any::<u32>().prop_map(Section::NextQueue),
    ];
    vec(section, 0..8)
}

fn segment_section() -> impl Strategy<Value = SegmentSection> {
    (1..=u32::MAX, 1..=u32::MAX, any::<(u64, u64, u32, bool, u32, u32, u64)>()).prop_map(
        |(file, number, (salt, first_id, end, active, messages, live_bytes, first_expiry))| {
            SegmentSection {
                file,
                number,
                salt,
                first_id: first_id % IDS_END,
                end,
                active,
                messages: messages.into(),
                live_bytes: live_bytes.into(),
                first_expiry: NonZeroU64::new(first_expiry >> (first_expiry % 64)),
            }
        },
    )
}

fn queue_section() -> impl Strategy<Value = QueueSection> {
    let lane = (0..PRIORITIES, any::<u64>())
        .prop_map(|(priority, next_id)| LaneState { priority, next_id });
    let positions = (position(), position(), any::<bool>(), any::<bool>());
    (any::<u32>(), small_bytes(), positions, 0..LIVE_END, small_bytes(), vec(lane, 0..10)).prop_map(
        |(id, name, (declared_at, as_of, expires, grouped), live, options, lanes)| QueueSection {
            id,
            name,
            declared_at,
            as_of,
            expires,
            grouped,
            live,
            options,
            lanes,
        },
    )
}

fn entries_section() -> impl Strategy<Value = EntriesSection> {
    let fields = (place(), any::<bool>(), any::<u32>(), 0..PRIORITIES, 0..=U48_MAX, small_bytes());
    (any::<u32>(), btree_map(any::<u64>(), fields, 1..20)).prop_map(|(queue, entries)| {
        let entry = |(id, (place, fresh, attempts, priority, due, reason))| Entry {
            id,
            place,
            fresh,
            attempts,
            priority,
            due,
            reason,
        };
        EntriesSection { queue, entries: entries.into_iter().map(entry).collect() }
    })
}

fn acked_section() -> impl Strategy<Value = AckedSection> {
    (1..=u32::MAX, btree_map(0..131_072_u32, page_form(), 0..4))
        .prop_map(|(segment, pages)| AckedSection { segment, pages: pages.into_iter().collect() })
}

fn damage_section() -> impl Strategy<Value = DamageSection> {
    (1..=u32::MAX, any::<(u32, u32, u64, u64)>()).prop_map(
        |(segment, (start, end, first_id, last_id_exclusive))| DamageSection {
            segment,
            start,
            end,
            first_id,
            last_id_exclusive,
        },
    )
}

fn window_section() -> impl Strategy<Value = WindowSection> {
    let seen = (0..=U48_MAX, vec(any::<u8>(), 1..=DEDUP_KEY_BYTES_MAX));
    let keys = btree_map(0..IDS_END, seen, 0..20);
    (any::<(u32, u64)>(), position(), keys).prop_map(|((queue, first_id), as_of, keys)| {
        let seen = |(id, (time_ms, key))| SeenKey { key: Vec::into(key), id, time_ms };
        WindowSection { queue, as_of, first_id, keys: keys.into_iter().map(seen).collect() }
    })
}

/// With offsets below `end`.
pub(super) fn index_lanes(end: u32) -> impl Strategy<Value = Vec<(Lane, Vec<Slot>)>> {
    let lane = (0..5_u32, 0..PRIORITIES).prop_map(|(queue, priority)| Lane { queue, priority });
    let slots = btree_map(0..300_u32, FRAMES_START / 8..end / 8, 1..50)
        .prop_map(|slots| slots.into_iter().map(|(id_delta, slot)| (id_delta, slot * 8)).collect());
    btree_map(lane, slots, 0..8).prop_map(|lanes| lanes.into_iter().collect())
}
