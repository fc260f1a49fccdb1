//! The cursor file: a checkpoint of everything that is not a live record.
//!
//! A header, sections, an end section, and one checksum over all of it, which is checked before anything else is
//! believed. Its sections are captured one after the other while work goes on.

pub(crate) mod pages;
pub(crate) mod sections;

use super::IDS_END;
use super::bytes::{Malformed, Reader, put_u16, put_u32, put_u64};
use super::checksum::crc32;
use super::position::Position;
use sections::{
    AckedSection, DamageSection, EntriesSection, Entry, QueueSection, Section, SegmentSection,
};

const MAGIC: [u8; 8] = *b"MPONDCUR";

// To raise it: a reader must go on reading every lower version, so keep its decoder and a directory written by
// it as test data; magic, version and the checksum in the last 4 bytes stay where they are for ever. A new
// section needs no new version: it takes the next free tag, and the OPTIONAL flag if an older program loses
// nothing by skipping it. Anything else that an older program would read wrongly does need one.
pub(crate) const CURSOR_VERSION: u32 = 1;

const HEADER_BYTES: usize = 80;
const SECTION_HEADER_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;

const FLAG_CLEAN: u32 = 1 << 0;
const SECTION_FLAG_OPTIONAL: u16 = 1 << 0;

const TAG_END: u16 = 0;
const TAG_SEGMENT: u16 = 1;
const TAG_QUEUE: u16 = 2;
const TAG_ENTRIES: u16 = 3;
const TAG_ACKED: u16 = 4;
const TAG_DAMAGE: u16 = 5;
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
    let mut sections = Vec::new();
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
            Ok(Some(section)) => sections.push(section),
            Ok(None) if flags & SECTION_FLAG_OPTIONAL != 0 => {}
            Ok(None) => return Ok(CursorFound::Newer { version }),
            Err(malformed) => return Err(Malformed { at: start + malformed.at, ..malformed }),
        }
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
        TAG_NEXT_QUEUE => Section::NextQueue(reader.u32()?),
        _ => return Ok(None),
    };
    reader.finish()?;
    Ok(Some(section))
}

#[cfg(test)]
mod tests {
    use super::pages::PageForm;
    use super::sections::LaneState;
    use super::*;
    use crate::format::record::settle::Place;
    use crate::format::strategies::{cursor_header, sections};
    use proptest::prelude::*;

    fn encode(header: &CursorHeader, sections: &[Section]) -> Vec<u8> {
        let mut encoder = CursorEncoder::new(header);
        for section in sections {
            match section {
                Section::Segment(segment) => encoder.segment(segment),
                Section::Queue(queue) => encoder.queue(queue),
                Section::Entries(entries) => encoder.entries(entries.queue, &entries.entries),
                Section::Acked(acked) => encoder.acked(acked),
                Section::Damage(damage) => encoder.damage(damage),
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
            attempts: 1,
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
            }),
            Section::Queue(QueueSection {
                id: 1,
                name: b"jobs".to_vec(),
                declared_at: Position::new(1, 4096),
                as_of: Position::new(2, 4096),
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
        fn a_cursor_reads_back_as_written(header in cursor_header(), sections in sections()) {
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
            tag in 0u8..8,
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
    fn ids_that_no_store_reaches_are_bad_even_with_the_right_checksum() {
        // The last bytes of the ceiling, of the next id, and of the first id of the segment behind the header.
        for at in [63, 71, HEADER_BYTES + SECTION_HEADER_BYTES + 31] {
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
}
