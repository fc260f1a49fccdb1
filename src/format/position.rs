//! A place in the log: segment number and byte offset in one word.
//!
//! Positions order like the log as long as the two segments' numbers do. Any u64 is a position; only its user
//! knows whether that segment exists.

use std::fmt;

/// Segment number in the upper half, byte offset in that segment's file in the lower.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Position(u64);

impl Position {
    pub(crate) const fn new(segment: u32, offset: u32) -> Self {
        Self((segment as u64) << 32 | offset as u64)
    }

    /// The word as it lies on disk.
    pub(crate) const fn from_u64(word: u64) -> Self {
        Self(word)
    }

    pub(crate) const fn as_u64(self) -> u64 {
        self.0
    }

    pub(crate) const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) const fn offset(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_keeps_both_halves_and_orders_by_segment_first() {
        let position = Position::new(7, u32::MAX);
        assert_eq!((position.segment(), position.offset()), (7, u32::MAX));
        assert_eq!(Position::from_u64(position.as_u64()), position);
        assert!(position < Position::new(8, 0));
        assert_eq!(position.to_string(), "7:4294967295");
        assert_eq!(format!("{position:?}"), "7:4294967295");
    }
}
