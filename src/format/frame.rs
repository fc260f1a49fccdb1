//! The envelope around every record: how long it is, what it is, and whether it is whole.
//!
//! Header and body have a checksum each, and the header's covers the body's. So a header that verifies vouches
//! for its length, and the walk goes on behind a damaged body; a length whose header does not verify is never
//! used. The first word is stored last: while it is zero, there is no frame. This file does not know what a
//! body means.

use super::checksum::{Seed, crc32};
use super::position::Position;
use crate::planted::{Bug, planted};

/// Every frame starts at a multiple of this.
pub(crate) const FRAME_ALIGNMENT: u32 = 8;
/// The envelope's size without and with a sync mark.
pub(crate) const ENVELOPE_BYTES: usize = 20;
pub(crate) const ENVELOPE_BYTES_MARKED: usize = 28;

const FIRST_WORD_BYTES: usize = 8;
const FLAG_CONTINUED: u8 = 1 << 0;
const FLAG_MARK: u8 = 1 << 1;

/// What the envelope says about its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Length of the body in bytes.
    pub(crate) length: u32,
    /// Kind of record; never 0.
    pub(crate) kind: u8,
    /// The run goes on in the next frame.
    pub(crate) continued: bool,
    /// The sync mark: all before this position was durable when the frame was written.
    pub(crate) mark: Option<Position>,
    /// For an insert, priority and field flags; otherwise 0.
    pub(crate) info: u16,
    /// For an insert, its first id less the segment header's `first_id`; otherwise 0.
    pub(crate) arg: u32,
    /// [`crc32`] of the body.
    pub(crate) body_checksum: u32,
}

/// How many bytes of the log a frame takes, padding included.
pub(crate) fn frame_bytes(length: u64, marked: bool) -> u64 {
    let envelope = if marked { ENVELOPE_BYTES_MARKED } else { ENVELOPE_BYTES } as u64;
    (envelope + length).next_multiple_of(u64::from(FRAME_ALIGNMENT))
}

/// An envelope as it lies on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncodedEnvelope {
    bytes: [u8; ENVELOPE_BYTES_MARKED],
    size: u8,
}

impl EncodedEnvelope {
    /// The whole envelope, first word included.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.size)]
    }

    /// All but the first word: store this, the body, and only then the first word.
    pub(crate) fn behind_first_word(&self) -> &[u8] {
        &self.bytes[FIRST_WORD_BYTES..usize::from(self.size)]
    }

    /// The first 8 bytes as one word of this machine: storing it natively stores the right bytes.
    pub(crate) fn first_word(&self) -> u64 {
        let mut word = [0; FIRST_WORD_BYTES];
        word.copy_from_slice(&self.bytes[..FIRST_WORD_BYTES]);
        u64::from_ne_bytes(word)
    }
}

impl Envelope {
    /// The envelope's size in bytes.
    pub(crate) fn size(&self) -> usize {
        if self.mark.is_some() { ENVELOPE_BYTES_MARKED } else { ENVELOPE_BYTES }
    }

    /// How many bytes of the log the frame takes, padding included.
    pub(crate) fn total_bytes(&self) -> u64 {
        frame_bytes(u64::from(self.length), self.mark.is_some())
    }

    /// For a frame at `offset` of the file whose salt `seed` has taken in. `kind` must not be 0.
    pub(crate) fn encode(&self, seed: &Seed, offset: u32) -> EncodedEnvelope {
        debug_assert!(self.kind != 0 && offset.is_multiple_of(FRAME_ALIGNMENT));
        let mut bytes = [0; ENVELOPE_BYTES_MARKED];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind;
        bytes[5] = if self.continued { FLAG_CONTINUED } else { 0 };
        bytes[6..8].copy_from_slice(&self.info.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body_checksum.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.arg.to_le_bytes());
        if let Some(mark) = self.mark {
            bytes[5] |= FLAG_MARK;
            bytes[20..28].copy_from_slice(&mark.as_u64().to_le_bytes());
        }
        let size = self.size();
        let checksum = header_checksum(&bytes, size, seed, offset);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        EncodedEnvelope { bytes, size: size as u8 }
    }
}

/// Over the frame's place and everything in the envelope but this checksum, in one go: this runs for every
/// append.
fn header_checksum(
    bytes: &[u8; ENVELOPE_BYTES_MARKED],
    size: usize,
    seed: &Seed,
    offset: u32,
) -> u32 {
    let mut covered = [0; ENVELOPE_BYTES_MARKED];
    covered[0..4].copy_from_slice(&offset.to_le_bytes());
    covered[4..16].copy_from_slice(&bytes[0..12]);
    covered[16..28].copy_from_slice(&bytes[16..28]);
    // The offset has taken the place of the checksum, so as much is covered as the envelope is long.
    seed.checksum(&covered[..size])
}

/// A frame whose header and body both verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) envelope: Envelope,
    pub(crate) body: &'a [u8],
    /// Where the frame begins in the file.
    pub(crate) offset: u32,
}

impl Frame<'_> {
    /// Where the body begins in the file.
    pub(crate) fn body_offset(&self) -> u32 {
        self.offset + self.envelope.size() as u32
    }

    /// Where the next frame begins in the file. [`read`] ensures that it is not past the file's end.
    pub(crate) fn next_offset(&self) -> u32 {
        self.offset + self.envelope.total_bytes() as u32
    }
}

/// What lies at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Frame(Frame<'a>),
    /// A zero first word, or not even room for one: nothing here yet.
    End,
    /// Nothing in it can be believed, the length least of all.
    BadHeader,
    /// The header verifies, so its length may be used to go on (but may lead beyond the file); the body does
    /// not verify, or the file ends within the frame.
    BadBody(Envelope),
}

/// What lies at an offset, the body left aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderOnly {
    /// The header verifies. The frame may still extend beyond the file.
    Frame(Envelope),
    End,
    Bad,
}

/// Reads the frame at `offset` of `bytes`, the file from its beginning, and verifies header and body.
pub(crate) fn read<'a>(bytes: &'a [u8], offset: u32, seed: &Seed) -> Found<'a> {
    let envelope = match read_header(bytes, offset, seed) {
        HeaderOnly::Frame(envelope) => envelope,
        HeaderOnly::End => return Found::End,
        HeaderOnly::Bad => return Found::BadHeader,
    };
    match whole_body(bytes, offset, &envelope) {
        Some(body) if crc32(body) == envelope.body_checksum || planted(Bug::BodyNotVerified) => {
            Found::Frame(Frame { envelope, body, offset })
        }
        _ => Found::BadBody(envelope),
    }
}

/// The body, if it lies within the file and the frame ends where an offset can name. Padding that the file has lost is
/// no loss.
fn whole_body<'a>(bytes: &'a [u8], offset: u32, envelope: &Envelope) -> Option<&'a [u8]> {
    u32::try_from(u64::from(offset) + envelope.total_bytes()).ok()?;
    let start = offset as usize + envelope.size();
    bytes.get(start..start + envelope.length as usize)
}

/// Reads the envelope at `offset` of `bytes`, the file from its beginning, and touches nothing behind it.
#[inline]
pub(crate) fn read_header(bytes: &[u8], offset: u32, seed: &Seed) -> HeaderOnly {
    let Some(bytes) = bytes.get(offset as usize..).filter(|left| left.len() >= FIRST_WORD_BYTES)
    else {
        return HeaderOnly::End;
    };
    if bytes[..FIRST_WORD_BYTES] == [0; FIRST_WORD_BYTES] {
        return HeaderOnly::End;
    }
    match decode_envelope(bytes, offset, seed) {
        Some(envelope) => HeaderOnly::Frame(envelope),
        None => HeaderOnly::Bad,
    }
}

/// The envelope at `offset`, where [`read`] or [`read_header`] has verified it before.
pub(crate) fn read_verified_header(bytes: &[u8], offset: u32) -> Option<Envelope> {
    let (envelope, _) = copy_envelope(bytes.get(offset as usize..)?)?;
    Some(envelope_fields(&envelope))
}

#[inline]
fn decode_envelope(bytes: &[u8], offset: u32, seed: &Seed) -> Option<Envelope> {
    let (envelope, size) = copy_envelope(bytes)?;
    let checksum = u32_at(&envelope, 12);
    let is_right = checksum == header_checksum(&envelope, size, seed, offset);
    if !is_right && !planted(Bug::LengthTrusted) {
        return None;
    }
    let sound = envelope[4] != 0
        && envelope[5] & !(FLAG_CONTINUED | FLAG_MARK) == 0
        && offset.is_multiple_of(FRAME_ALIGNMENT);
    sound.then(|| envelope_fields(&envelope))
}

/// The bytes of an envelope, and how many of them count.
fn copy_envelope(bytes: &[u8]) -> Option<([u8; ENVELOPE_BYTES_MARKED], usize)> {
    let marked = *bytes.get(5)? & FLAG_MARK != 0;
    let size = if marked { ENVELOPE_BYTES_MARKED } else { ENVELOPE_BYTES };
    let mut envelope = [0; ENVELOPE_BYTES_MARKED];
    envelope[..size].copy_from_slice(bytes.get(..size)?);
    Some((envelope, size))
}

fn envelope_fields(envelope: &[u8; ENVELOPE_BYTES_MARKED]) -> Envelope {
    let flags = envelope[5];
    let mark = Position::new(u32_at(envelope, 24), u32_at(envelope, 20));
    Envelope {
        length: u32_at(envelope, 0),
        kind: envelope[4],
        continued: flags & FLAG_CONTINUED != 0,
        mark: (flags & FLAG_MARK != 0).then_some(mark),
        info: u16::from_le_bytes([envelope[6], envelope[7]]),
        arg: u32_at(envelope, 16),
        body_checksum: u32_at(envelope, 8),
    }
}

fn u32_at(bytes: &[u8; ENVELOPE_BYTES_MARKED], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::strategies::envelope;
    use proptest::prelude::*;

    /// A file whose one frame lies at `offset`.
    fn file(envelope: &Envelope, body: &[u8], offset: u32, seed: &Seed) -> Vec<u8> {
        let mut file = vec![0; offset as usize];
        file.extend_from_slice(envelope.encode(seed, offset).as_bytes());
        file.extend_from_slice(body);
        file.resize(offset as usize + envelope.total_bytes() as usize, 0);
        file
    }

    fn sample(body: &[u8], mark: Option<Position>) -> Envelope {
        Envelope {
            length: body.len() as u32,
            kind: 1,
            continued: true,
            mark,
            info: 0x0243,
            arg: 77,
            body_checksum: crc32(body),
        }
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_as_written(
            (envelope, body) in envelope(),
            slot in 0u32..64,
            salt: u64,
        ) {
            let offset = slot * FRAME_ALIGNMENT;
            let seed = Seed::new(salt);
            let file = file(&envelope, &body, offset, &seed);
            let frame = Frame { envelope, body: &body, offset };
            prop_assert_eq!(read(&file, offset, &seed), Found::Frame(frame));
            prop_assert_eq!(read_header(&file, offset, &seed), HeaderOnly::Frame(envelope));
            prop_assert_eq!(read_verified_header(&file, offset), Some(envelope));
            prop_assert_eq!(frame.next_offset() as usize, file.len());
            prop_assert_eq!(&file[frame.body_offset() as usize..][..body.len()], &body[..]);
            prop_assert_eq!(read(&file, frame.next_offset(), &seed), Found::End);
        }

        #[test]
        fn random_bytes_never_panic_and_never_pass(bytes: Vec<u8>, offset: u32, small in 0u32..128) {
            let seed = Seed::new(1);
            for offset in [offset, small, small & !7] {
                prop_assert!(!matches!(read(&bytes, offset, &seed), Found::Frame(_)));
            }
        }
    }

    #[test]
    fn every_single_bit_flip_of_a_frame_is_noticed() {
        let seed = Seed::new(42);
        for mark in [None, Some(Position::new(3, 4096))] {
            let body = b"thirteen long";
            let envelope = sample(body, mark);
            let whole = file(&envelope, body, 8, &seed);
            let covered = 8 + envelope.size() + body.len();
            for bit in 8 * 8..covered * 8 {
                let mut file = whole.clone();
                file[bit / 8] ^= 1 << (bit % 8);
                let in_header = bit / 8 < 8 + envelope.size();
                let expected = if in_header { Found::BadHeader } else { Found::BadBody(envelope) };
                assert_eq!(read(&file, 8, &seed), expected, "bit {bit}");
            }
            // What is behind the body is padding: damage there costs nothing.
            for bit in covered * 8..whole.len() * 8 {
                let mut file = whole.clone();
                file[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read(&file, 8, &seed), read(&whole, 8, &seed), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_frame_passes_in_its_own_place_of_its_own_segment_only() {
        let seed = Seed::new(42);
        let envelope = sample(b"body", None);
        let file = file(&envelope, b"body", 8, &seed);
        assert_eq!(read(&file, 8, &Seed::new(43)), Found::BadHeader);
        assert_eq!(read(&file[8..], 0, &seed), Found::BadHeader);
    }

    #[test]
    fn without_its_first_word_a_frame_is_not_there_yet() {
        let seed = Seed::new(42);
        let envelope = sample(b"body", None);
        let mut file = file(&envelope, b"body", 0, &seed);
        file[..8].fill(0);
        assert_eq!(read(&file, 0, &seed), Found::End);

        let encoded = envelope.encode(&seed, 0);
        file[8..20].copy_from_slice(encoded.behind_first_word());
        file[..8].copy_from_slice(&encoded.first_word().to_ne_bytes());
        assert!(matches!(read(&file, 0, &seed), Found::Frame(_)));
    }

    #[test]
    fn a_frame_that_the_file_cuts_off_is_never_whole() {
        let seed = Seed::new(42);
        let envelope = sample(b"body", Some(Position::new(1, 4096)));
        let whole = file(&envelope, b"body", 0, &seed);
        assert_eq!(whole.len(), 32);
        for length in 0..whole.len() {
            let expected = match length {
                0..8 => Found::End,
                8..28 => Found::BadHeader,
                _ => Found::BadBody(envelope),
            };
            assert_eq!(read(&whole[..length], 0, &seed), expected, "cut to {length} bytes");
        }
    }

    #[test]
    fn a_frame_that_has_lost_its_padding_is_whole() {
        let seed = Seed::new(42);
        let envelope = sample(b"body!", None);
        let whole = file(&envelope, b"body!", 0, &seed);
        assert_eq!(whole.len(), 32);
        for length in 25..32 {
            let frame = Frame { envelope, body: b"body!", offset: 0 };
            assert_eq!(read(&whole[..length], 0, &seed), Found::Frame(frame), "cut to {length}");
        }
        assert_eq!(read(&whole[..24], 0, &seed), Found::BadBody(envelope));
    }

    #[test]
    fn a_length_that_leads_beyond_every_file_overflows_nothing() {
        let seed = Seed::new(42);
        let envelope = Envelope { length: u32::MAX, ..sample(b"", None) };
        let file = envelope.encode(&seed, 0).as_bytes().to_vec();
        assert_eq!(read(&file, 0, &seed), Found::BadBody(envelope));
        assert_eq!(envelope.total_bytes(), u64::from(u32::MAX) + 21 + 4);
    }

    #[test]
    fn a_long_frame_far_into_its_file_is_read() {
        let seed = Seed::new(42);
        let body = vec![7; 8192];
        let envelope = sample(&body, None);
        let offset = 1 << 20;
        let file = file(&envelope, &body, offset, &seed);
        assert_eq!(
            read(&file, offset, &seed),
            Found::Frame(Frame { envelope, body: &body, offset })
        );
    }

    #[test]
    fn unknown_flags_and_kind_zero_are_refused_even_with_the_right_checksum() {
        let seed = Seed::new(42);
        for (at, value) in [(4, 0), (5, 1 << 2), (5, 1 << 7)] {
            let mut bytes = sample(b"", None).encode(&seed, 0).bytes;
            bytes[at] = value;
            let checksum = header_checksum(&bytes, ENVELOPE_BYTES, &seed, 0);
            bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
            assert_eq!(read(&bytes[..24], 0, &seed), Found::BadHeader, "byte {at} = {value}");
        }
    }

    #[test]
    fn a_plain_frame_costs_what_the_format_page_says() {
        assert_eq!(frame_bytes(0, false), 24);
        assert_eq!(frame_bytes(4, false), 24);
        assert_eq!(frame_bytes(5, false), 32);
        assert_eq!(frame_bytes(4, true), 32);
    }
}
