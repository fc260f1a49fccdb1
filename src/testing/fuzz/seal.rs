//! Putting right the checksums, and nothing else, of files that somebody has made up or changed.

use crate::format::checksum::{Seed, crc32};
use crate::format::frame::{FRAME_ALIGNMENT, frame_bytes, read_verified_header};
use crate::format::header::{FRAMES_START, HEADER_BYTES, HEADER_COPIES_AT};

const CHECKSUM_BYTES: usize = 4;

/// Where a section's length lies in it, and where its data begins.
const SECTION_LENGTH_AT: usize = 4;
const SECTION_HEADER_BYTES: usize = 8;
const CURSOR_SECTIONS_AT: usize = 80;

/// The salt that the first copy of a segment's header has, or the second where that one is blank.
pub(super) fn salt_of(file: &[u8]) -> u64 {
    const SALT_AT: usize = 64;
    let salt = |copy: usize| {
        let bytes = file.get(copy + SALT_AT..copy + SALT_AT + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?)).filter(|salt| *salt != 0)
    };
    HEADER_COPIES_AT.into_iter().find_map(salt).unwrap_or(0)
}

/// A whole segment file: its header's copies, and its frames but those whose turn among each 8 is a bit in `leave`.
pub fn segment(file: &mut [u8], leave: u8) {
    for at in HEADER_COPIES_AT {
        if let Some(copy) = file.get_mut(at..at + HEADER_BYTES)
            && copy[..8] != [0; 8]
        {
            last_bytes(copy);
        }
    }
    let seed = Seed::new(salt_of(file));
    let mut at = FRAMES_START;
    for turn in (0..8).cycle() {
        match frame(file, at, &seed, leave >> turn & 1 == 1) {
            Some(next) => at = next,
            None => return,
        }
    }
}

/// The frame at `at`, or with `spoil` its length and kind alone. A length that leads beyond the file becomes one that
/// does not. Where the next frame lies, if there is anything here.
pub(super) fn frame(file: &mut [u8], at: u32, seed: &Seed, spoil: bool) -> Option<u32> {
    let left = file.get(at as usize..)?;
    if left.get(..8)? == [0; 8] {
        return None;
    }
    let mut envelope = read_verified_header(file, at)?;
    let room = left.len().checked_sub(envelope.size())?;
    envelope.length = envelope.length.min(u32::try_from(room).ok()?);
    envelope.kind = envelope.kind.max(1);
    let body = at as usize + envelope.size();
    envelope.body_checksum = crc32(&file[body..body + envelope.length as usize]);
    let encoded = envelope.encode(seed, at);
    let sealed = if spoil { &encoded.as_bytes()[..5] } else { encoded.as_bytes() };
    file[at as usize..at as usize + sealed.len()].copy_from_slice(sealed);
    let bytes = frame_bytes(envelope.length.into(), envelope.mark.is_some());
    at.checked_add(u32::try_from(bytes).ok()?.max(FRAME_ALIGNMENT))
}

/// A whole cursor file: the lengths of sections that lead beyond the end, the end section, the checksum.
pub fn cursor(file: &mut Vec<u8>) {
    file.truncate(file.len().saturating_sub(CHECKSUM_BYTES));
    let mut at = CURSOR_SECTIONS_AT;
    loop {
        let end = [0; SECTION_HEADER_BYTES];
        let Some(section) = file.get_mut(at..).filter(|left| left.len() >= end.len()) else {
            file.resize(at, 0);
            file.extend_from_slice(&end);
            break;
        };
        if section[..end.len()] == end {
            file.truncate(at + end.len());
            break;
        }
        let room = u32::try_from(section.len() - end.len()).unwrap_or(u32::MAX);
        let field = &mut section[SECTION_LENGTH_AT..SECTION_HEADER_BYTES];
        let length = field.iter().rev().fold(0, |length, byte| length << 8 | u32::from(*byte));
        let length = length.min(room);
        field.copy_from_slice(&length.to_le_bytes());
        at += end.len() + length as usize;
    }
    let checksum = crc32(file);
    file.extend_from_slice(&checksum.to_le_bytes());
}

/// A whole index file.
pub fn index(file: &mut [u8]) {
    last_bytes(file);
}

/// The checksum in the last bytes, over all before them.
fn last_bytes(bytes: &mut [u8]) {
    if let Some(covered) = bytes.len().checked_sub(CHECKSUM_BYTES) {
        let checksum = crc32(&bytes[..covered]);
        bytes[covered..].copy_from_slice(&checksum.to_le_bytes());
    }
}
