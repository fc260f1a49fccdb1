//! The record that brings messages: who gets them, what is known about them, and the payload.
//!
//! The payload is the body's rest, so it is readable in place, and encoding writes only what stands before it.

use crate::format::bytes::{Malformed, Reader, put_bytes, put_u48, put_varint};

use super::headers::HeaderBlock;

/// Priorities that the format has room for: 0 to 15.
pub(crate) const PRIORITIES: u8 = 16;
/// The most queues that one record can go to.
pub(crate) const TARGETS_MAX: usize = 1024;

const PRIORITY_MASK: u16 = 0x000F;
const MULTI: u16 = 1 << 4;
const NOT_BEFORE: u16 = 1 << 5;
const EXPIRY: u16 = 1 << 6;
const KEY: u16 = 1 << 7;
const GROUP: u16 = 1 << 8;
const ORIGIN: u16 = 1 << 9;
const HEADERS: u16 = 1 << 10;
const KNOWN: u16 = (HEADERS << 1) - 1;

/// A queue that gets the message. `priority` is below [`PRIORITIES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) queue: u32,
    pub(crate) priority: u8,
}

/// The queues that get the message: between 1 and [`TARGETS_MAX`]. The n-th gets the n-th id.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Targets<'a> {
    One(Target),
    #[cfg_attr(not(test), expect(dead_code, reason = "part of format 1; exchanges come later"))]
    Many(&'a [Target]),
    /// As read from disk, and checked.
    Encoded(EncodedTargets<'a>),
}

/// See [`Targets::Encoded`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncodedTargets<'a> {
    count: usize,
    encoded: &'a [u8],
}

impl<'a> Targets<'a> {
    /// How many there are, and so how many ids the record takes.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(targets) => targets.len(),
            Self::Encoded(encoded) => encoded.count,
        }
    }

    pub(crate) fn iter(&self) -> TargetsIter<'a> {
        match *self {
            Self::One(target) => TargetsIter::One(Some(target)),
            Self::Many(targets) => TargetsIter::Many(targets.iter()),
            Self::Encoded(encoded) => TargetsIter::Encoded(Reader::new(encoded.encoded)),
        }
    }
}

impl PartialEq for Targets<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Targets<'_> {}

/// See [`Targets::iter`].
#[derive(Clone, Debug)]
pub(crate) enum TargetsIter<'a> {
    One(Option<Target>),
    Many(std::slice::Iter<'a, Target>),
    Encoded(Reader<'a>),
}

impl Iterator for TargetsIter<'_> {
    type Item = Target;

    fn next(&mut self) -> Option<Target> {
        match self {
            Self::One(target) => target.take(),
            Self::Many(targets) => targets.next().copied(),
            // Checked when decoded, so an error is the end.
            Self::Encoded(reader) => decode_target(reader).ok(),
        }
    }
}

/// How long the name of a group may be, in bytes; none is empty.
pub(crate) const GROUP_BYTES_MAX: usize = 255;

/// Where a message was before it was moved here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin<'a> {
    pub(crate) id: u64,
    pub(crate) attempts: u32,
    pub(crate) queue: &'a [u8],
    pub(crate) reason: &'a [u8],
}

/// Everything but the payload. Times are milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InsertHead<'a> {
    pub(crate) time_ms: u64,
    pub(crate) targets: Targets<'a>,
    pub(crate) not_before: Option<u64>,
    pub(crate) expiry: Option<u64>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) group: Option<&'a [u8]>,
    pub(crate) origin: Option<Origin<'a>>,
    /// A header block, not yet checked: see [`InsertHead::header_block`].
    pub(crate) headers: Option<&'a [u8]>,
}

impl<'a> InsertHead<'a> {
    /// A message with nothing but its queue.
    pub(crate) fn plain(time_ms: u64, queue: u32, priority: u8) -> Self {
        Self {
            time_ms,
            targets: Targets::One(Target { queue, priority }),
            not_before: None,
            expiry: None,
            key: None,
            group: None,
            origin: None,
            headers: None,
        }
    }

    /// Each (queue, priority) in the order of their ids.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (u32, u8)> + use<'a> {
        self.targets.iter().map(|target| (target.queue, target.priority))
    }

    /// The headers, checked; empty if there are none.
    pub(crate) fn header_block(&self) -> Result<HeaderBlock<'a>, Malformed> {
        self.headers.map_or(Ok(HeaderBlock::default()), HeaderBlock::decode)
    }

    /// Appends everything up to the payload, which must follow, and returns the envelope's `info`.
    pub(crate) fn encode_head(&self, out: &mut Vec<u8>) -> u16 {
        put_u48(out, self.time_ms);
        let mut info = put_targets(out, &self.targets);
        if let Some(not_before) = self.not_before {
            info |= NOT_BEFORE;
            put_u48(out, not_before);
        }
        if let Some(expiry) = self.expiry {
            info |= EXPIRY;
            put_u48(out, expiry);
        }
        if let Some(key) = self.key {
            info |= KEY;
            put_bytes(out, key);
        }
        if let Some(group) = self.group {
            info |= GROUP;
            put_bytes(out, group);
        }
        if let Some(origin) = &self.origin {
            info |= ORIGIN;
            put_varint(out, origin.id);
            put_varint(out, origin.attempts.into());
            put_bytes(out, origin.queue);
            put_bytes(out, origin.reason);
        }
        if let Some(headers) = self.headers {
            info |= HEADERS;
            put_bytes(out, headers);
        }
        info
    }
}

/// Whether a message with this `info` expires.
pub(crate) fn expires(info: u16) -> bool {
    info & EXPIRY != 0
}

/// Reads the body of a frame of kind Insert. The payload is the body's end: it begins at
/// `body.len() - payload.len()`.
pub(crate) fn decode_insert(info: u16, body: &[u8]) -> Result<(InsertHead<'_>, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    if info & !PRIORITY_MASK == 0 {
        // The usual message, without a look at every flag.
        let (time_ms, queue) = (reader.u48()?, reader.varint_u32()?);
        let priority = (info & PRIORITY_MASK) as u8;
        return Ok((InsertHead::plain(time_ms, queue, priority), reader.rest()));
    }
    if info & !KNOWN != 0 {
        return Err(reader.malformed("unknown field flag"));
    }
    // Fields lie in the order in which this reads them.
    let head = InsertHead {
        time_ms: reader.u48()?,
        targets: decode_targets(info, &mut reader)?,
        not_before: field(info & NOT_BEFORE, &mut reader, Reader::u48)?,
        expiry: field(info & EXPIRY, &mut reader, Reader::u48)?,
        key: field(info & KEY, &mut reader, Reader::bytes)?,
        group: field(info & GROUP, &mut reader, Reader::bytes)?,
        origin: field(info & ORIGIN, &mut reader, decode_origin)?,
        headers: field(info & HEADERS, &mut reader, Reader::bytes)?,
    };
    Ok((head, reader.rest()))
}

/// The field, if its flag is set.
fn field<'a, T>(
    flag: u16,
    reader: &mut Reader<'a>,
    decode: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    if flag == 0 { Ok(None) } else { decode(reader).map(Some) }
}

fn decode_origin<'a>(reader: &mut Reader<'a>) -> Result<Origin<'a>, Malformed> {
    Ok(Origin {
        id: reader.varint()?,
        attempts: reader.varint_u32()?,
        queue: reader.bytes()?,
        reason: reader.bytes()?,
    })
}

/// Returns their part of `info`.
fn put_targets(out: &mut Vec<u8>, targets: &Targets<'_>) -> u16 {
    let mut iter = targets.iter();
    if let (1, Some(target)) = (targets.count(), iter.next()) {
        debug_assert!(target.priority < PRIORITIES);
        put_varint(out, target.queue.into());
        return u16::from(target.priority) & PRIORITY_MASK;
    }
    debug_assert!((1..=TARGETS_MAX).contains(&targets.count()));
    put_varint(out, targets.count() as u64);
    for target in targets.iter() {
        debug_assert!(target.priority < PRIORITIES);
        put_varint(out, target.queue.into());
        out.push(target.priority);
    }
    MULTI
}

fn decode_targets<'a>(info: u16, reader: &mut Reader<'a>) -> Result<Targets<'a>, Malformed> {
    let priority = (info & PRIORITY_MASK) as u8;
    if info & MULTI == 0 {
        return Ok(Targets::One(Target { queue: reader.varint_u32()?, priority }));
    }
    if priority != 0 {
        return Err(reader.malformed("priority in the envelope of a message for several queues"));
    }
    let count = reader.count(2)?;
    if !(1..=TARGETS_MAX).contains(&count) {
        return Err(reader.malformed("number of queues out of range"));
    }
    let mut ahead = reader.clone();
    for _ in 0..count {
        decode_target(&mut ahead)?;
    }
    let encoded = reader.take(ahead.at() - reader.at())?;
    Ok(Targets::Encoded(EncodedTargets { count, encoded }))
}

fn decode_target(reader: &mut Reader<'_>) -> Result<Target, Malformed> {
    Ok(Target { queue: reader.varint_u32()?, priority: decode_priority(reader)? })
}

/// A priority in a byte of its own.
pub(crate) fn decode_priority(reader: &mut Reader<'_>) -> Result<u8, Malformed> {
    match reader.u8()? {
        priority if priority < PRIORITIES => Ok(priority),
        _ => Err(reader.malformed("priority out of range")),
    }
}
