//! What the frames carry: one record each.
//!
//! A record's meaning is complete in itself and absolute, so that replaying one twice, or after a newer one,
//! changes nothing. A decoded record borrows from the body; an encoder appends to a buffer and trusts its caller
//! to keep within the limits that are named here. What a record does to a queue is none of this module's
//! business.

pub(crate) mod catalog;
pub(crate) mod headers;
pub(crate) mod insert;
pub(crate) mod settle;
#[cfg(test)]
mod tests;

use super::bytes::{Malformed, Reader, put_varint};
use super::frame::Envelope;
use catalog::{Binding, Declare, Value};
use insert::{InsertHead, decode_insert};
use settle::{Delete, Set};

// The kinds of record, as they stand in the envelope. A new one takes the next free number and raises the segment
// version. A number is never used again.
pub(crate) const INSERT: u8 = 1;
pub(crate) const DELETE: u8 = 2;
pub(crate) const SET: u8 = 3;
pub(crate) const DECLARE: u8 = 4;
pub(crate) const REMOVE: u8 = 5;
pub(crate) const BIND: u8 = 6;
pub(crate) const UNBIND: u8 = 7;
pub(crate) const PAUSE: u8 = 8;
pub(crate) const RESUME: u8 = 9;
pub(crate) const VALUE: u8 = 10;
pub(crate) const ROLL: u8 = 11;

/// A record, borrowed from the body of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A message, or one for each of several queues. The ids are in the envelope's `arg`.
    Insert {
        head: InsertHead<'a>,
        payload: &'a [u8],
    },
    Delete(Delete<'a>),
    Set(Set<'a>),
    Declare(Declare<'a>),
    Remove {
        queue: u32,
    },
    Bind(Binding<'a>),
    Unbind(Binding<'a>),
    /// Nothing is got from this queue until it is resumed.
    Pause {
        queue: u32,
        /// So many failures in a row have paused it; 0 if somebody has.
        failures: u32,
    },
    Resume {
        queue: u32,
    },
    Value(Value<'a>),
    /// The segment's last frame: the log goes on in this one.
    Roll {
        next_segment: u32,
    },
}

/// Why a body whose checksum is right is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// A kind that this version does not have: a later one wrote it.
    UnknownKind(u8),
    /// The kind is known, the content is not what any writer makes.
    Malformed(Malformed),
}

impl From<Malformed> for RecordError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl<'a> Record<'a> {
    /// Reads the body of the frame that `envelope` describes.
    pub(crate) fn decode(envelope: &Envelope, body: &'a [u8]) -> Result<Self, RecordError> {
        if envelope.kind == INSERT {
            let (head, payload) = decode_insert(envelope.info, body)?;
            return Ok(Self::Insert { head, payload });
        }
        let mut reader = Reader::new(body);
        let record = match envelope.kind {
            DELETE => Self::Delete(Delete::decode(&mut reader)?),
            SET => Self::Set(Set::decode(&mut reader)?),
            DECLARE => Self::Declare(Declare::decode(&mut reader)?),
            REMOVE => Self::Remove { queue: reader.varint_u32()? },
            BIND => Self::Bind(Binding::decode(&mut reader)?),
            UNBIND => Self::Unbind(Binding::decode(&mut reader)?),
            PAUSE => Self::Pause { queue: reader.varint_u32()?, failures: reader.varint_u32()? },
            RESUME => Self::Resume { queue: reader.varint_u32()? },
            VALUE => Self::Value(Value::decode(&mut reader)?),
            ROLL => Self::Roll { next_segment: decode_roll(&mut reader)? },
            unknown => return Err(RecordError::UnknownKind(unknown)),
        };
        if envelope.info != 0 || envelope.arg != 0 {
            let what = "info or arg in the envelope of a record that has none";
            return Err(Malformed { what, at: 0 }.into());
        }
        reader.finish()?;
        Ok(record)
    }
}

pub(crate) fn encode_pause(queue: u32, failures: u32, out: &mut Vec<u8>) {
    put_varint(out, queue.into());
    put_varint(out, failures.into());
}

/// The body of Remove and Resume.
pub(crate) fn encode_queue(queue: u32, out: &mut Vec<u8>) {
    put_varint(out, queue.into());
}

/// `next_segment` must not be 0.
pub(crate) fn encode_roll(next_segment: u32, out: &mut Vec<u8>) {
    put_varint(out, next_segment.into());
}

fn decode_roll(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    match reader.varint_u32()? {
        0 => Err(reader.malformed("segment number 0")),
        next_segment => Ok(next_segment),
    }
}
