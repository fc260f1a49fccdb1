//! Two damages at once, in every two places.
//!
//! All pairs of bytes are too many: billions, even of a small store. But a byte is damaged together with all others of its
//! field, since no reader tells them apart: a field agrees with its checksum or it does not. So a place is a field, and one
//! byte of it is flipped; besides, each frame is zeroed or the file cut off before it, and each file is missing.

use crate::check::{Case, What};
use crate::fixture::Fixture;
use crate::frames::{Frame, HEADER_COPIES, number};

/// Where the fields of a segment's header begin, those of a frame, those of a cursor's header, of one of its sections and
/// of an index (`docs/format.md`).
const SEGMENT_FIELDS: [usize; 13] = [0, 8, 12, 16, 32, 40, 48, 56, 64, 72, 80, 84, 124];
const FRAME_FIELDS: [usize; 7] = [0, 4, 5, 6, 8, 12, 16];
const CURSOR_FIELDS: [usize; 10] = [0, 8, 12, 16, 32, 40, 48, 56, 64, 72];
const SECTION_FIELDS: [usize; 3] = [0, 2, 4];
const INDEX_FIELDS: [usize; 7] = [0, 8, 12, 16, 24, 32, 36];
const LANE_FIELDS: [usize; 5] = [0, 4, 5, 6, 8];

const CURSOR_SECTIONS: usize = 80;
const INDEX_LANES: usize = 40;
const LANE_BYTES: usize = 12;

/// All places of a store, each with what happens there.
pub fn places(fixture: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes) in &fixture.files {
        let mut add = |what| cases.push(Case { file: name.clone(), what });
        let flip = |at: usize| What::Flip { at, bit: (at % 8) as u8 };
        fields(fixture, name).into_iter().map(flip).for_each(&mut add);
        for frame in fixture.frames.get(name).into_iter().flatten() {
            add(What::Zero { range: frame.start..frame.end });
            add(What::Truncate { len: frame.start });
        }
        add(What::Truncate { len: bytes.len() / 2 });
        add(What::Missing);
    }
    cases
}

/// A byte of each field of a file.
fn fields(fixture: &Fixture, name: &str) -> Vec<usize> {
    let bytes = &fixture.files[name];
    let mut fields = match name {
        _ if name.ends_with(".seg") => of_segment(&fixture.frames[name]),
        _ if name.ends_with(".idx") => of_index(bytes),
        _ if name.starts_with("cursor.") => of_cursor(bytes),
        // What is in there means nothing, or as a whole.
        _ => vec![0, bytes.len().saturating_sub(2)],
    };
    fields.retain(|at| *at < bytes.len());
    fields.dedup();
    fields
}

fn of_segment(frames: &[Frame]) -> Vec<usize> {
    let headers = HEADER_COPIES.map(|at| SEGMENT_FIELDS.map(|field| at + field));
    let mut fields = headers.concat();
    for frame in frames {
        fields.extend(FRAME_FIELDS.map(|field| frame.start + field));
        fields.extend(frame.mark.iter().flat_map(|_| [frame.start + 20, frame.start + 24]));
        // The body's first and last byte, and the padding, if there is any.
        fields.extend([frame.body(), frame.end - 1]);
        fields.extend((frame.end % 8 != 0).then_some(frame.end));
    }
    let end = frames.last().map_or(4096, |frame| frame.end.next_multiple_of(8));
    fields.extend([end, end + 8]);
    fields
}

/// The header's fields, those of each section, and every fourth byte of what a section holds.
fn of_cursor(bytes: &[u8]) -> Vec<usize> {
    let mut fields = CURSOR_FIELDS.to_vec();
    let mut at = CURSOR_SECTIONS;
    while number(bytes, at, 8) != 0 {
        let end = at + 8 + number(bytes, at + 4, 4) as usize;
        fields.extend(SECTION_FIELDS.map(|field| at + field));
        fields.extend((at + 8..end).step_by(4));
        at = end;
    }
    fields.extend([at, bytes.len() - 4]);
    fields
}

fn of_index(bytes: &[u8]) -> Vec<usize> {
    let mut fields = INDEX_FIELDS.to_vec();
    let lanes = number(bytes, 36, 4) as usize;
    let slots = INDEX_LANES + lanes * LANE_BYTES;
    for lane in (INDEX_LANES..slots).step_by(LANE_BYTES) {
        fields.extend(LANE_FIELDS.map(|field| lane + field));
    }
    fields.extend((slots..bytes.len() - 4).step_by(8));
    fields.push(bytes.len() - 4);
    fields
}
