//! The segment header: who a segment file belongs to and how to check its frames.
//!
//! It is stored twice, so that one damaged sector does not cost the salt and with it every frame. The first
//! word is stored last: while it is zero in both copies, the segment has not been used.

use super::IDS_END;
use super::bytes::Reader;
use super::checksum::crc32;

/// How many bytes one copy takes.
pub(crate) const HEADER_BYTES: usize = 128;
/// Where the two copies lie in the file.
pub(crate) const HEADER_COPIES_AT: [usize; 2] = [0, 2048];
/// Where the first frame lies.
pub(crate) const FRAMES_START: u32 = 4096;
/// The ids in a segment end at most so far behind its first one: frames, indexes and what is deleted name them by how far
/// they are behind it, in 32 bits.
pub(crate) const SEGMENT_IDS_MAX: u64 = u32::MAX as u64;

const MAGIC: [u8; 8] = *b"MPONDSEG";

// To raise it: a reader must go on reading every lower version, so keep its decoder and a directory written by
// it as test data; magic, version and the checksum over bytes 0..124 stay where they are for ever, so that an
// older program can tell a newer file from a damaged one. Raise it for any use of a reserved byte or flag of the
// header or of a frame, and for a new record kind or field that an older program must not drop.
pub(crate) const SEGMENT_VERSION: u32 = 1;

const CHECKSUM_AT: usize = HEADER_BYTES - 4;

/// What the header says. Numbers are at least 1, and `replaces_first <= replaces_last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The store that the segment belongs to.
    pub(crate) store: [u8; 16],
    /// The segment's own number.
    pub(crate) number: u32,
    /// The lowest and the highest number of the segments whose place in the log this one takes: its own number
    /// twice unless it was rewritten.
    pub(crate) replaces_first: u32,
    pub(crate) replaces_last: u32,
    /// No message in the segment has a lower id.
    pub(crate) first_id: u64,
    pub(crate) salt: u64,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_at: u64,
    /// The file's length when it was prepared.
    pub(crate) capacity: u32,
}

/// What the two copies turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFound {
    /// At least one copy verifies; `damaged_copy` if the other one does not.
    Header { header: Header, damaged_copy: bool },
    /// The first word of both copies is zero: prepared and never used, or the writer died writing the header.
    Unused,
    /// Written by a later version of the format.
    Newer { version: u32 },
    /// Damaged, or no segment of millpond.
    Bad,
}

impl Header {
    /// Whether it takes the place of others.
    pub(crate) fn is_rewritten(&self) -> bool {
        (self.replaces_first, self.replaces_last) != (self.number, self.number)
    }

    /// Whether it is, or takes the place of, segment `number`.
    pub(crate) fn covers(&self, number: u32) -> bool {
        (self.replaces_first..=self.replaces_last).contains(&number)
    }

    /// The number that positions in it carry.
    pub(crate) fn place(&self) -> u32 {
        self.replaces_last
    }

    /// One copy. It must be stored at both places, each time its first 8 bytes last.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.store);
        bytes[32..40].copy_from_slice(&u64::from(self.number).to_le_bytes());
        bytes[40..48].copy_from_slice(&u64::from(self.replaces_first).to_le_bytes());
        bytes[48..56].copy_from_slice(&u64::from(self.replaces_last).to_le_bytes());
        bytes[56..64].copy_from_slice(&self.first_id.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.salt.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.created_at.to_le_bytes());
        bytes[80..84].copy_from_slice(&self.capacity.to_le_bytes());
        let checksum = crc32(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// As [`decode`], of both copies where they lie in the first bytes of the file.
pub(crate) fn decode_start(start: &[u8]) -> HeaderFound {
    let [a, b] = HEADER_COPIES_AT.map(|at| start.get(at..at + HEADER_BYTES).unwrap_or_default());
    decode(a, b)
}

/// Reads both copies. A copy that the file's end cuts off counts as followed by zeros.
pub(crate) fn decode(copy_a: &[u8], copy_b: &[u8]) -> HeaderFound {
    match (decode_copy(copy_a), decode_copy(copy_b)) {
        (Copy::Newer(version), _) | (_, Copy::Newer(version)) => HeaderFound::Newer { version },
        // Damage cannot make two whole copies that disagree, so neither is to be believed.
        (Copy::Whole(a), Copy::Whole(b)) if a != b => HeaderFound::Bad,
        (Copy::Whole(header), other) | (other, Copy::Whole(header)) => {
            HeaderFound::Header { header, damaged_copy: !matches!(other, Copy::Whole(_)) }
        }
        (Copy::Unused, Copy::Unused) => HeaderFound::Unused,
        _ => HeaderFound::Bad,
    }
}

enum Copy {
    Whole(Header),
    Unused,
    Newer(u32),
    Bad,
}

fn decode_copy(copy: &[u8]) -> Copy {
    let mut bytes = [0; HEADER_BYTES];
    let present = copy.len().min(HEADER_BYTES);
    bytes[..present].copy_from_slice(&copy[..present]);
    if bytes[..8] == [0; 8] {
        return Copy::Unused;
    }
    if bytes[..8] != MAGIC || bytes[CHECKSUM_AT..] != crc32(&bytes[..CHECKSUM_AT]).to_le_bytes() {
        return Copy::Bad;
    }
    decode_fields(&bytes).unwrap_or(Copy::Bad)
}

/// The fields of a copy whose magic and checksum are right, or None if no writer of this version makes them.
fn decode_fields(bytes: &[u8; HEADER_BYTES]) -> Option<Copy> {
    let mut reader = Reader::new(&bytes[8..CHECKSUM_AT]);
    let version = reader.u32().ok()?;
    if version > SEGMENT_VERSION {
        return Some(Copy::Newer(version));
    }
    let reserved = reader.u32().ok()?;
    let header = Header {
        store: reader.array().ok()?,
        number: u32::try_from(reader.u64().ok()?).ok()?,
        replaces_first: u32::try_from(reader.u64().ok()?).ok()?,
        replaces_last: u32::try_from(reader.u64().ok()?).ok()?,
        first_id: reader.u64().ok()?,
        salt: reader.u64().ok()?,
        created_at: reader.u64().ok()?,
        capacity: reader.u32().ok()?,
    };
    let sound = version == SEGMENT_VERSION
        && reserved == 0
        && reader.rest().iter().all(|&byte| byte == 0)
        && header.number > 0
        && header.first_id < IDS_END
        && header.replaces_first > 0
        && header.replaces_first <= header.replaces_last;
    sound.then_some(Copy::Whole(header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::strategies::header;
    use proptest::prelude::*;

    fn sample() -> Header {
        Header {
            store: *b"0123456789abcdef",
            number: 7,
            replaces_first: 7,
            replaces_last: 7,
            first_id: 1_000_000,
            salt: 0x0123_4567_89AB_CDEF,
            created_at: 1_700_000_000_000,
            capacity: 64 << 20,
        }
    }

    fn with_checksum(mut copy: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
        let checksum = crc32(&copy[..CHECKSUM_AT]);
        copy[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        copy
    }

    proptest! {
        #[test]
        fn a_header_reads_back_as_written(header in header()) {
            let copy = header.encode();
            prop_assert_eq!(
                decode(&copy, &copy),
                HeaderFound::Header { header, damaged_copy: false }
            );
        }

        #[test]
        fn random_bytes_never_panic_and_never_pass(a: Vec<u8>, b: Vec<u8>) {
            let found = decode(&a, &b);
            prop_assert!(matches!(found, HeaderFound::Bad | HeaderFound::Unused));
        }
    }

    #[test]
    fn every_single_bit_flip_of_a_header_copy_is_noticed() {
        let header = sample();
        let whole = header.encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut copy = whole;
            copy[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&copy, &copy), HeaderFound::Bad, "bit {bit}");
            let found = HeaderFound::Header { header: header.clone(), damaged_copy: true };
            assert_eq!(decode(&copy, &whole), found, "bit {bit} of the first copy");
            assert_eq!(decode(&whole, &copy), found, "bit {bit} of the second copy");
        }
    }

    #[test]
    fn a_header_without_its_first_word_is_unused() {
        let mut unfinished = sample().encode();
        unfinished[..8].fill(0);
        assert_eq!(decode(&unfinished, &[0; HEADER_BYTES]), HeaderFound::Unused);
        assert_eq!(decode(&[], &[]), HeaderFound::Unused);
        assert_eq!(decode(&[0; HEADER_BYTES], &[1; HEADER_BYTES]), HeaderFound::Bad);
    }

    #[test]
    fn one_copy_is_enough() {
        let header = sample();
        let found = HeaderFound::Header { header: header.clone(), damaged_copy: true };
        assert_eq!(decode(&header.encode(), &[]), found);
        assert_eq!(decode(&[0; HEADER_BYTES], &header.encode()), found);
    }

    #[test]
    fn two_whole_copies_that_disagree_are_not_believed() {
        let other = Header { salt: 1, ..sample() };
        assert_eq!(decode(&sample().encode(), &other.encode()), HeaderFound::Bad);
    }

    #[test]
    fn a_newer_version_is_told_from_damage_by_its_checksum() {
        let mut copy = sample().encode();
        copy[8] = 2;
        assert_eq!(decode(&copy, &copy), HeaderFound::Bad);
        let newer = with_checksum(copy);
        assert_eq!(decode(&newer, &newer), HeaderFound::Newer { version: 2 });
        assert_eq!(decode(&sample().encode(), &newer), HeaderFound::Newer { version: 2 });
    }

    #[test]
    fn values_that_no_writer_makes_are_bad_even_with_the_right_checksum() {
        // Version 0; each reserved field; a number of 0 and one beyond 32 bits; an empty range; an id beyond all.
        let fields =
            [(8, 0), (12, 1), (84, 1), (123, 1), (32, 0), (36, 1), (40, 0), (48, 1), (63, 0x80)];
        for (at, byte) in fields {
            let mut copy = sample().encode();
            copy[at] = byte;
            let copy = with_checksum(copy);
            assert_eq!(decode(&copy, &copy), HeaderFound::Bad, "byte {at} = {byte}");
        }
    }

    #[test]
    fn a_rewritten_segment_covers_all_that_it_takes_the_place_of() {
        let whole = sample();
        assert!(!whole.is_rewritten() && whole.covers(7) && !whole.covers(6) && !whole.covers(8));
        assert_eq!(whole.place(), 7);
        let rewritten = Header { number: 9, replaces_first: 4, replaces_last: 6, ..sample() };
        assert!(rewritten.is_rewritten());
        assert!((4..=6).all(|number| rewritten.covers(number)));
        assert!(!rewritten.covers(3) && !rewritten.covers(7) && !rewritten.covers(9));
        assert_eq!(rewritten.place(), 6);
    }

    #[test]
    fn both_copies_are_read_where_they_lie() {
        let header = sample();
        let mut start = vec![0; FRAMES_START as usize];
        for at in HEADER_COPIES_AT {
            start[at..at + HEADER_BYTES].copy_from_slice(&header.encode());
        }
        let found = |damaged_copy| HeaderFound::Header { header: header.clone(), damaged_copy };
        assert_eq!(decode_start(&start), found(false));
        for at in HEADER_COPIES_AT {
            let mut damaged = start.clone();
            damaged[at + HEADER_BYTES - 1] ^= 1;
            assert_eq!(decode_start(&damaged), found(true));
        }
        // The end of the file has cut off the second one.
        assert_eq!(decode_start(&start[..HEADER_BYTES]), found(true));
    }
}
