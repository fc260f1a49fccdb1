//! A cursor file.

use super::input::Input;
use super::seal;
use crate::cursor::AckSet;
use crate::format::cursor::sections::{AckedSection, Section};
use crate::format::cursor::{CursorEncoder, CursorFound, CursorHeader, decode};

const SEALED: u8 = 1 << 0;

/// The most entries of a section that one section is made of again.
const ENTRIES_MAX: usize = 4096;

/// A byte of flags, and the file.
pub fn cursor(input: &[u8]) {
    let mut input = Input::new(input);
    let flags = input.byte();
    let mut file = input.rest().to_vec();
    if flags & SEALED != 0 {
        seal::cursor(&mut file);
    }
    match decode(&file) {
        CursorFound::Cursor { header, sections } => check(&header, sections),
        CursorFound::Newer { .. } => {}
        CursorFound::Bad { offset, .. } => assert!(offset <= file.len()),
    }
}

/// What was read, once more written and read, is the same.
fn check(header: &CursorHeader, mut sections: Vec<Section>) {
    let fits = |section: &Section| match section {
        // One without entries says nothing, and is not written.
        Section::Entries(entries) => (1..=ENTRIES_MAX).contains(&entries.entries.len()),
        _ => true,
    };
    sections.retain(fits);
    let mut encoder = CursorEncoder::new(header);
    for section in &sections {
        match section {
            Section::Segment(segment) => encoder.segment(segment),
            Section::Queue(queue) => encoder.queue(queue),
            Section::Entries(entries) => encoder.entries(entries.queue, &entries.entries),
            Section::Acked(acked) => {
                check_acked(acked);
                encoder.acked(acked);
            }
            Section::Damage(damage) => encoder.damage(damage),
            Section::Window(window) => encoder.window(window),
            Section::Paused(paused) => encoder.paused(paused),
            Section::NextQueue(number) => encoder.next_queue(*number),
        }
    }
    let again = decode(&encoder.finish());
    assert_eq!(again, CursorFound::Cursor { header: header.clone(), sections });
}

/// The set in memory holds what the section says, and says so again.
fn check_acked(acked: &AckedSection) {
    let set = AckSet::from_section(acked);
    let said: u64 = acked.pages.iter().map(|(_, form)| u64::from(form.count())).sum();
    assert_eq!(set.count(), said);
    let again = set.section(acked.segment);
    let again = again.map_or_else(AckSet::default, |section| AckSet::from_section(&section));
    assert_eq!(again.count(), said);
    assert!(again.since(&set).is_empty() && set.since(&again).is_empty());
}
