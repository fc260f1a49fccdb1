//! Just enough of a reader, written from `docs/format.md` alone, to know which bytes belong to which message.

/// A frame of an undamaged segment.
#[derive(Clone, Debug)]
pub struct Frame {
    pub start: usize,
    /// Behind the body; the padding that follows is nobody's.
    pub end: usize,
    pub kind: u8,
    /// The id of the message, if it is one.
    pub id: Option<u64>,
    /// What the sync mark proves: segment and offset.
    pub mark: Option<(u64, u64)>,
}

/// Where the header of a segment lies, twice, and how long it is.
pub const HEADER_COPIES: [usize; 2] = [0, 2048];
pub const HEADER_BYTES: usize = 128;

const INSERT: u8 = 1;
const DELETE: u8 = 2;

impl Frame {
    /// Where the body begins.
    pub fn body(&self) -> usize {
        self.start + if self.mark.is_some() { 28 } else { 20 }
    }

    pub fn is_delete(&self) -> bool {
        self.kind == DELETE
    }
}

pub fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub fn read(segment: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    if segment.len() < 4096 || number(segment, 0, 8) == 0 {
        return frames;
    }
    let first_id = number(segment, 56, 8);
    let mut at = 4096;
    while at + 8 <= segment.len() && number(segment, at, 8) != 0 {
        let (kind, flags) = (segment[at + 4], segment[at + 5]);
        let marked = flags & 2 != 0;
        let envelope = if marked { 28 } else { 20 };
        let end = at + envelope + number(segment, at, 4) as usize;
        let mark = marked.then(|| (number(segment, at + 24, 4), number(segment, at + 20, 4)));
        let id = (kind == INSERT).then(|| first_id + number(segment, at + 16, 4));
        frames.push(Frame { start: at, end, kind, id, mark });
        at = end.next_multiple_of(8);
    }
    frames
}
