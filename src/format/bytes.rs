//! Reading and writing little-endian fields and varints.
//!
//! A [`Reader`] only moves forward, never past its bytes, and hands out slices of them; what it cannot read is
//! [`Malformed`], with the place. Each number has one encoding only, so that equal values are equal bytes.

use std::fmt;

/// The most bytes that a varint takes.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// The largest value of a 48-bit field. As milliseconds it lasts until the year 10889.
pub(crate) const U48_MAX: u64 = (1 << 48) - 1;

/// Bytes that no writer of this version makes, although their checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// What is wrong.
    pub(crate) what: &'static str,
    /// Where, counted from the first byte that the decoder was given.
    pub(crate) at: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// Reads fields off the front of a slice.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes have been read.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error at this place.
    pub(crate) fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let Some(taken) = self.bytes[self.at..].get(..count) else {
            return Err(self.malformed("field cut off"));
        };
        self.at += count;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u48(&mut self) -> Result<u64, Malformed> {
        let low: [u8; 6] = self.array()?;
        let mut word = [0; 8];
        word[..6].copy_from_slice(&low);
        Ok(u64::from_le_bytes(word))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// LEB128 in its shortest form; a longer one is malformed.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let start = self.at;
        let mut value = 0;
        for index in 0..VARINT_BYTES_MAX {
            let byte = self.u8()?;
            // Nine bytes carry 63 bits: of the tenth, only the lowest bit is left.
            if index == VARINT_BYTES_MAX - 1 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7F) << (7 * index);
            if byte < 0x80 {
                if byte == 0 && index > 0 {
                    return Err(Malformed { what: "varint longer than it need be", at: start });
                }
                return Ok(value);
            }
        }
        Err(Malformed { what: "varint beyond 64 bits", at: start })
    }

    /// A varint that must fit in 32 bits.
    pub(crate) fn varint_u32(&mut self) -> Result<u32, Malformed> {
        let start = self.at;
        u32::try_from(self.varint()?)
            .map_err(|_| Malformed { what: "varint beyond 32 bits", at: start })
    }

    /// A varint length and that many bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let start = self.at;
        let length = self.varint()?;
        usize::try_from(length)
            .ok()
            .and_then(|length| self.take(length).ok())
            .ok_or(Malformed { what: "length beyond the end", at: start })
    }

    /// A varint count of things that take at least `bytes_each_min` bytes, checked against what is left: safe to
    /// reserve memory by.
    pub(crate) fn count(&mut self, bytes_each_min: usize) -> Result<usize, Malformed> {
        let start = self.at;
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.remaining() / bytes_each_min => Ok(count),
            _ => Err(Malformed { what: "count beyond the end", at: start }),
        }
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    /// Nothing may be left.
    pub(crate) fn finish(&self) -> Result<(), Malformed> {
        if self.remaining() > 0 {
            return Err(self.malformed("bytes behind the last field"));
        }
        Ok(())
    }
}

pub(crate) fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Six bytes. A larger value is stored as the largest that fits: a time that far away means "never".
pub(crate) fn put_u48(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.min(U48_MAX).to_le_bytes()[..6]);
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A varint length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// How many bytes [`put_varint`] makes of `value`.
pub(crate) fn varint_size(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn varint_of(bytes: &[u8]) -> Result<u64, Malformed> {
        let mut reader = Reader::new(bytes);
        let value = reader.varint()?;
        reader.finish()?;
        Ok(value)
    }

    proptest! {
        #[test]
        fn varints_round_trip_in_the_size_foretold(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_size(value));
            prop_assert_eq!(varint_of(&out), Ok(value));
        }

        #[test]
        fn a_varint_that_decodes_has_no_other_encoding(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Ok(value) = varint_of(&bytes) {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(out, bytes);
            }
        }

        #[test]
        fn fields_round_trip(a: u8, b: u16, c: u32, d in 0..=U48_MAX, e: u64, f: Vec<u8>, g: Vec<u8>) {
            let mut out = vec![a];
            put_u16(&mut out, b);
            put_u32(&mut out, c);
            put_u48(&mut out, d);
            put_u64(&mut out, e);
            put_bytes(&mut out, &f);
            out.extend_from_slice(&g);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.u8(), Ok(a));
            prop_assert_eq!(reader.u16(), Ok(b));
            prop_assert_eq!(reader.u32(), Ok(c));
            prop_assert_eq!(reader.u48(), Ok(d));
            prop_assert_eq!(reader.u64(), Ok(e));
            prop_assert_eq!(reader.bytes(), Ok(&f[..]));
            prop_assert_eq!(reader.rest(), &g[..]);
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn an_overlong_or_oversized_varint_is_malformed() {
        assert_eq!(varint_of(&[0x80, 0x00]).unwrap_err().what, "varint longer than it need be");
        let mut largest = [0xFF; 10];
        largest[9] = 0x01;
        assert_eq!(varint_of(&largest), Ok(u64::MAX));
        largest[9] = 0x02;
        assert_eq!(varint_of(&largest).unwrap_err().what, "varint beyond 64 bits");
        assert_eq!(varint_of(&[0x80; 11]).unwrap_err().what, "varint beyond 64 bits");
        let cut_off = varint_of(&[0x80]).unwrap_err();
        assert_eq!(cut_off.to_string(), "field cut off at byte 1");
    }

    #[test]
    fn a_length_or_count_beyond_the_bytes_is_not_trusted() {
        let mut huge = Vec::new();
        put_varint(&mut huge, u64::MAX);
        assert_eq!(Reader::new(&huge).bytes().unwrap_err().what, "length beyond the end");
        assert_eq!(Reader::new(&huge).count(1).unwrap_err().what, "count beyond the end");
        assert_eq!(Reader::new(&[2, 0, 0, 0]).count(2).unwrap_err().what, "count beyond the end");
        assert_eq!(Reader::new(&[2, 0, 0, 0, 0]).count(2), Ok(2));
    }

    #[test]
    fn a_time_beyond_48_bits_is_stored_as_the_last_one() {
        let mut out = Vec::new();
        put_u48(&mut out, u64::MAX);
        assert_eq!(Reader::new(&out).u48(), Ok(U48_MAX));
    }
}
