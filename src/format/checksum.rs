//! The checksum of everything on disk: CRC-32 as in IEEE 802.3 (polynomial 0x04C11DB7, reflected).
//!
//! A checksum that a frame's place takes part in starts from the segment's [`Seed`], so that bytes from another
//! store, from an older file on the same blocks, or from another place in the same file never pass.

use crc32fast::Hasher;

use crate::planted::{Bug, planted};

/// The checksum of `bytes` alone.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// A checksum that has already taken in a segment's salt. Cloning it copies a few words.
#[derive(Clone, Debug)]
pub(crate) struct Seed(Hasher);

impl Seed {
    pub(crate) fn new(salt: u64) -> Self {
        let mut hasher = Hasher::new();
        let salt = if planted(Bug::StaleFrameAccepted) { 0 } else { salt };
        hasher.update(&salt.to_le_bytes());
        Self(hasher)
    }

    /// The checksum of the salt followed by `bytes`.
    pub(crate) fn checksum(&self, bytes: &[u8]) -> u32 {
        let mut hasher = self.0.clone();
        hasher.update(bytes);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_that_the_format_page_names() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn a_seed_stands_for_the_salt_in_front() {
        let salt = 0x0123_4567_89AB_CDEF_u64;
        let mut whole = salt.to_le_bytes().to_vec();
        whole.extend_from_slice(b"millpond");
        assert_eq!(Seed::new(salt).checksum(b"millpond"), crc32(&whole));
    }
}
