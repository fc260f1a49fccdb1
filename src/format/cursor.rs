//! The cursor file: a checkpoint of everything that is not a live record.
//!
//! A header, sections, an end section, and one checksum over all of it, which is checked before anything else is
//! believed. Its sections are captured one after the other while work goes on.

pub(crate) mod pages;
pub(crate) mod sections;
#[cfg(test)]
mod tests;
pub(crate) mod window;

use super::IDS_END;
use super::bytes::{Malformed, Reader, put_u16, put_u32, put_u64};
use super::checksum::crc32;
use super::header::FRAMES_START;
use super::position::Position;
use sections::{
    AckedSection, DamageSection, EntriesSection, Entry, PausedSection, QueueSection, Section,
    SegmentSection,
};
use window::WindowSection;

const MAGIC: [u8; 8] = *b"MPONDCUR";

// To raise it: a reader must go on reading every lower version, so keep its decoder and a directory written by
// it as test data; magic, version and the checksum in the last 4 bytes stay where they are for ever. A new
// section needs no new version: it takes the next free tag, and the OPTIONAL flag if an older program loses
// nothing by skipping it. Anything else that an older program would read wrongly does need one.
pub(crate) const CURSOR_VERSION: u32 = 1;

const HEADER_BYTES: usize = 80;
const SECTION_HEADER_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;

/// Generations count from 1, one for each cursor; none gets anywhere near.
pub(super) const GENERATIONS_END: u64 = 1 << 63;

const FLAG_CLEAN: u32 = 1 << 0;
const SECTION_FLAG_OPTIONAL: u16 = 1 << 0;

const TAG_END: u16 = 0;
const TAG_SEGMENT: u16 = 1;
const TAG_QUEUE: u16 = 2;
const TAG_ENTRIES: u16 = 3;
const TAG_ACKED: u16 = 4;
const TAG_DAMAGE: u16 = 5;
const TAG_WINDOW: u16 = 7;
const TAG_PAUSED: u16 = 9;
const TAG_NEXT_QUEUE: u16 = 10;

/// The most entries that the encoder puts in one section.
const ENTRIES_PER_SECTION: usize = 4096;

/// What a cursor says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CursorHeader {
    /// Closed cleanly: the log ends exactly at `proof`.
    pub(crate) clean: bool,
    pub(crate) store: [u8; 16],
    pub(crate) generation: u64,
    /// Replay starts here.
    pub(crate) position: Position,
    /// Everything before this is durable.
    pub(crate) proof: Position,
    /// Ids below this may have been given out.
    pub(crate) id_ceiling: u64,
    /// The next id when the cursor was captured.
    pub(crate) next_id: u64,
    /// Milliseconds since the Unix epoch.
    pub(crate) written_at: u64,
}

/// What a file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CursorFound {
    Cursor {
        header: CursorHeader,
        /// In the order in which they were written.
        sections: Vec<Section>,
    },
    /// Whole, but written by a later version, or with a section that must not be skipped and is not known.
    Newer { version: u32 },
    /// Damaged, or no cursor of millpond.
    Bad { reason: &'static str, offset: usize },
}

/// Makes a cursor file section by section.
#[derive(Debug)]
pub(crate) struct CursorEncoder(Vec<u8>);

impl CursorEncoder {
    pub(crate) fn new(header: &CursorHeader) -> Self {
        let mut file = Vec::new();
        file.extend_from_slice(&MAGIC);
        put_u32(&mut file, CURSOR_VERSION);
        put_u32(&mut file, if header.clean { FLAG_CLEAN } else { 0 });
        file.extend_from_slice(&header.store);
        put_u64(&mut file, header.generation);
        put_u64(&mut file, header.position.as_u64());
        put_u64(&mut file, header.proof.as_u64());
        put_u64(&mut file, header.id_ceiling);
        put_u64(&mut file, header.next_id);
        put_u64(&mut file, header.written_at);
        Self(file)
    }

    pub(crate) fn segment(&mut self, segment: &SegmentSection) {
        self.section(TAG_SEGMENT, |out| segment.encode(out));
    }

    pub(crate) fn queue(&mut self, queue: &QueueSection) {
        self.section(TAG_QUEUE, |out| queue.encode(out));
    }

    /// In strictly ascending order of id; makes as many sections as it takes.
    pub(crate) fn entries(&mut self, queue: u32, entries: &[Entry]) {
        for entries in entries.chunks(ENTRIES_PER_SECTION) {
            self.section(TAG_ENTRIES, |out| sections::encode_entries(out, queue, entries));
        }
    }

    pub(crate) fn acked(&mut self, acked: &AckedSection) {
        self.section(TAG_ACKED, |out| acked.encode(out));
    }

    pub(crate) fn damage(&mut self, damage: &DamageSection) {
        self.section(TAG_DAMAGE, |out| damage.encode(out));
    }

    pub(crate) fn window(&mut self, window: &WindowSection) {
        self.section(TAG_WINDOW, |out| window.encode(out));
    }

    pub(crate) fn paused(&mut self, paused: &PausedSection) {
        self.section(TAG_PAUSED, |out| paused.encode(out));
    }

    /// The lowest number that no queue has had.
    pub(crate) fn next_queue(&mut self, number: u32) {
        self.section(TAG_NEXT_QUEUE, |out| put_u32(out, number));
    }

    /// The whole file.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.section(TAG_END, |_| {});
        let Self(mut file) = self;
        let checksum = crc32(&file);
        put_u32(&mut file, checksum);
        file
    }

    fn section(&mut self, tag: u16, encode: impl FnOnce(&mut Vec<u8>)) {
        let Self(out) = self;
        put_u16(out, tag);
        put_u16(out, 0);
        let length_at = out.len();
        put_u32(out, 0);
        let start = out.len();
        encode(out);
        let length = out.len() - start;
        debug_assert!(u32::try_from(length).is_ok(), "section beyond its length field");
        out[length_at..start].copy_from_slice(&(length as u32).to_le_bytes());
    }
}

/// Reads a whole file.
pub(crate) fn decode(bytes: &[u8]) -> CursorFound {
    const BYTES_MIN: usize = HEADER_BYTES + SECTION_HEADER_BYTES + CHECKSUM_BYTES;
    if bytes.len() < BYTES_MIN {
        return CursorFound::Bad { reason: "shorter than any cursor", offset: bytes.len() };
    }
    let (covered, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    if checksum != crc32(covered).to_le_bytes() {
        return CursorFound::Bad { reason: "checksum is wrong", offset: covered.len() };
    }
    decode_covered(covered).unwrap_or_else(|malformed| CursorFound::Bad {
        reason: malformed.what,
        offset: malformed.at,
    })
}

fn decode_covered(covered: &[u8]) -> Result<CursorFound, Malformed> {
    let mut reader = Reader::new(covered);
    if reader.array()? != MAGIC {
        return Err(Malformed { what: "magic is wrong", at: 0 });
    }
    let version = reader.u32()?;
    if version > CURSOR_VERSION {
        return Ok(CursorFound::Newer { version });
    }
    let flags = reader.u32()?;
    if version != CURSOR_VERSION || flags & !FLAG_CLEAN != 0 {
        return Err(reader.malformed("version 0 or unknown flags"));
    }
    let header = CursorHeader {
        clean: flags & FLAG_CLEAN != 0,
        store: reader.array()?,
        generation: reader.u64()?,
        position: Position::from_u64(reader.u64()?),
        proof: Position::from_u64(reader.u64()?),
        id_ceiling: reader.u64()?,
        next_id: reader.u64()?,
        written_at: reader.u64()?,
    };
    if header.id_ceiling.max(header.next_id) >= IDS_END {
        return Err(reader.malformed("id out of range"));
    }
    if header.generation >= GENERATIONS_END {
        return Err(reader.malformed("generation out of range"));
    }
    let mut sections = Vec::new();
    let mut last_segment = 0;
    loop {
        let tag = reader.u16()?;
        let flags = reader.u16()?;
        let length = reader.u32()?;
        if flags & !SECTION_FLAG_OPTIONAL != 0 {
            return Err(reader.malformed("unknown section flags"));
        }
        let start = reader.at();
        let data = reader.take(length as usize)?;
        if tag == TAG_END {
            if length > 0 || flags != 0 {
                return Err(reader.malformed("end section with flags or data"));
            }
            reader.finish()?;
            return Ok(CursorFound::Cursor { header, sections });
        }
        match decode_section(tag, data) {
            Ok(Some(Section::Segment(segment))) => {
                check_segment(&segment, last_segment, header.position)
                    .map_err(|what| Malformed { what, at: start })?;
                last_segment = segment.number;
                sections.push(Section::Segment(segment));
            }
            Ok(Some(section)) => sections.push(section),
            Ok(None) if flags & SECTION_FLAG_OPTIONAL != 0 => {}
            Ok(None) => return Ok(CursorFound::Newer { version }),
            Err(malformed) => return Err(Malformed { at: start + malformed.at, ..malformed }),
        }
    }
}

/// Segments stand in the order of the log, which goes on in the one of the cursor's position: that one is active, if it
/// is there, and none is behind it. Those before have frames.
fn check_segment(
    segment: &SegmentSection,
    last: u32,
    position: Position,
) -> Result<(), &'static str> {
    match segment.number {
        number if number <= last => Err("segments out of order"),
        number if number > position.segment() => Err("segment behind the position"),
        number if segment.active != (number == position.segment()) => {
            Err("another segment active than that of the position")
        }
        _ if !segment.active && segment.end <= FRAMES_START => Err("sealed segment without frames"),
        _ => Ok(()),
    }
}

/// None for an unknown tag.
fn decode_section(tag: u16, data: &[u8]) -> Result<Option<Section>, Malformed> {
    let mut reader = Reader::new(data);
    let section = match tag {
        TAG_SEGMENT => Section::Segment(SegmentSection::decode(&mut reader)?),
        TAG_QUEUE => Section::Queue(QueueSection::decode(&mut reader)?),
        TAG_ENTRIES => Section::Entries(EntriesSection::decode(&mut reader)?),
        TAG_ACKED => Section::Acked(AckedSection::decode(&mut reader)?),
        TAG_DAMAGE => Section::Damage(DamageSection::decode(&mut reader)?),
        TAG_WINDOW => Section::Window(WindowSection::decode(&mut reader)?),
        TAG_PAUSED => Section::Paused(PausedSection::decode(&mut reader)?),
        TAG_NEXT_QUEUE => Section::NextQueue(reader.u32()?),
        _ => return Ok(None),
    };
    reader.finish()?;
    Ok(Some(section))
}
