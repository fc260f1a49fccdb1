//! Records about messages that are there already: gone, or in another place.

use crate::format::bytes::{Malformed, Reader, put_u48, put_varint};
use crate::format::runs::{Runs, put_runs};

/// The most bytes of a reason that are kept.
pub(crate) const REASON_BYTES_MAX: usize = 1024;

/// Messages of one queue that are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delete<'a> {
    pub(crate) queue: u32,
    pub(crate) runs: Runs<'a>,
}

impl<'a> Delete<'a> {
    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self { queue: reader.varint_u32()?, runs: Runs::decode(reader)? })
    }
}

/// `runs` as in [`put_runs`].
pub(crate) fn encode_delete(
    queue: u32,
    runs: impl Iterator<Item = (u64, u64)> + Clone,
    out: &mut Vec<u8>,
) {
    put_varint(out, queue.into());
    put_runs(out, runs);
}

/// Where in its queue's life a message is, when not simply ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Place {
    InFlight = 1,
    /// Ready again, ahead of those never delivered.
    GivenBack = 2,
    Delayed = 3,
    Buried = 4,
}

/// Beside a place: nobody has had the message since it was inserted, or kicked.
const FRESH: u8 = 1 << 3;

impl Place {
    /// With whether the message is fresh.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<(Self, bool), Malformed> {
        let word = reader.u8()?;
        let place = Self::from_number(word & !FRESH);
        let place = place.ok_or_else(|| reader.malformed("unknown place"))?;
        Ok((place, word & FRESH != 0))
    }

    pub(crate) fn encode(self, fresh: bool) -> u8 {
        self as u8 | if fresh { FRESH } else { 0 }
    }

    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::InFlight,
            2 => Self::GivenBack,
            3 => Self::Delayed,
            4 => Self::Buried,
            _ => return None,
        })
    }
}

/// Where a message is from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) place: Place,
    /// Whether nobody has had it since it was inserted, or kicked.
    pub(crate) fresh: bool,
    /// That of its lane, so that nobody has to look for it there. Below [`PRIORITIES`](super::insert::PRIORITIES).
    pub(crate) priority: u8,
    /// Attempts used, the running one included if in flight.
    pub(crate) attempts: u32,
    /// Milliseconds since the Unix epoch; 0 for none.
    pub(crate) due: u64,
}

impl Placed {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let word = reader.u8()?;
        let (place, fresh, priority) = (word & 0x07, word & FRESH != 0, word >> 4);
        let place = Place::from_number(place).ok_or_else(|| reader.malformed("unknown place"))?;
        Ok(Self { place, fresh, priority, attempts: reader.varint_u32()?, due: reader.u48()? })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.place.encode(self.fresh) | self.priority << 4);
        put_varint(out, self.attempts.into());
        put_u48(out, self.due);
    }
}

/// Messages of one queue that are in a place from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Set<'a> {
    pub(crate) queue: u32,
    pub(crate) placed: Placed,
    pub(crate) runs: Runs<'a>,
    /// Text, but not checked to be UTF-8.
    pub(crate) reason: &'a [u8],
}

impl<'a> Set<'a> {
    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            queue: reader.varint_u32()?,
            placed: Placed::decode(reader)?,
            runs: Runs::decode(reader)?,
            reason: reader.rest(),
        })
    }
}

/// `runs` as in [`put_runs`]; `reason` is cut as by [`reason_cut`].
pub(crate) fn encode_set(
    queue: u32,
    placed: Placed,
    runs: impl Iterator<Item = (u64, u64)> + Clone,
    reason: &str,
    out: &mut Vec<u8>,
) {
    put_varint(out, queue.into());
    placed.encode(out);
    put_runs(out, runs);
    out.extend_from_slice(reason_cut(reason).as_bytes());
}

/// As much of the beginning of `reason` as is kept: whole characters.
pub(crate) fn reason_cut(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(reason_cut("short"), "short");
        assert_eq!(reason_cut(&"x".repeat(2000)).len(), REASON_BYTES_MAX);
        // Three bytes a character: 1024 is within the 342nd.
        assert_eq!(reason_cut(&"\u{20AC}".repeat(500)), "\u{20AC}".repeat(341));
    }
}
