//! The headers of a message: keys with typed values, in the order in which they were written.
//!
//! A [`HeaderBlock`] has been checked as a whole, so reading it out cannot fail. The block is checked when it is
//! asked for, not when the record is decoded: most deliveries never look.

use crate::format::bytes::{Malformed, Reader, put_bytes, put_varint};

const STRING: u8 = 0;
const BYTES: u8 = 1;
const INTEGER: u8 = 2;
const BOOL: u8 = 3;

/// A header's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderValue<'a> {
    String(&'a str),
    Bytes(&'a [u8]),
    Integer(i64),
    Bool(bool),
}

/// A checked header block, read in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeaderBlock<'a> {
    count: usize,
    encoded: &'a [u8],
}

impl<'a> HeaderBlock<'a> {
    pub(crate) fn decode(block: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(block);
        // The shortest header: an empty key, the type, and one byte of value.
        let count = reader.count(3)?;
        let encoded = reader.clone().rest();
        for _ in 0..count {
            decode_header(&mut reader)?;
        }
        reader.finish()?;
        Ok(Self { count, encoded })
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Each key and value, in the order in which they were written.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a str, HeaderValue<'a>)> + use<'a> {
        let mut reader = Reader::new(self.encoded);
        (0..self.count).map_while(move |_| decode_header(&mut reader).ok())
    }
}

fn decode_header<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, HeaderValue<'a>), Malformed> {
    let key = decode_str(reader)?;
    let value = match reader.u8()? {
        STRING => HeaderValue::String(decode_str(reader)?),
        BYTES => HeaderValue::Bytes(reader.bytes()?),
        INTEGER => HeaderValue::Integer(from_zigzag(reader.varint()?)),
        BOOL => match reader.u8()? {
            0 => HeaderValue::Bool(false),
            1 => HeaderValue::Bool(true),
            _ => return Err(reader.malformed("neither true nor false")),
        },
        _ => return Err(reader.malformed("unknown type of header value")),
    };
    Ok((key, value))
}

fn decode_str<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    let at = reader.at();
    std::str::from_utf8(reader.bytes()?).map_err(|_| Malformed { what: "text is not UTF-8", at })
}

/// Appends a header block. The iterator is gone through twice.
pub(crate) fn put_header_block<'a>(
    out: &mut Vec<u8>,
    headers: impl Iterator<Item = (&'a str, HeaderValue<'a>)> + Clone,
) {
    put_varint(out, headers.clone().count() as u64);
    for (key, value) in headers {
        put_bytes(out, key.as_bytes());
        match value {
            HeaderValue::String(text) => {
                out.push(STRING);
                put_bytes(out, text.as_bytes());
            }
            HeaderValue::Bytes(bytes) => {
                out.push(BYTES);
                put_bytes(out, bytes);
            }
            HeaderValue::Integer(integer) => {
                out.push(INTEGER);
                put_varint(out, zigzag(integer));
            }
            HeaderValue::Bool(flag) => out.extend_from_slice(&[BOOL, flag.into()]),
        }
    }
}

/// 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ...: small numbers of either sign are short varints.
fn zigzag(integer: i64) -> u64 {
    (integer << 1 ^ integer >> 63) as u64
}

fn from_zigzag(word: u64) -> i64 {
    (word >> 1) as i64 ^ -((word & 1) as i64)
}
