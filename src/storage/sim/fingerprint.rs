//! Numbers that tell contents apart: 128 bits, so that two contents by chance never share one.
//!
//! That of a file is the sum of its sectors', and can be kept up to date as sectors change. A sector of zeroes has 0.

use super::inode::Sector;

/// Odd numbers without a pattern: the fractions of some square roots.
const KEYS: [u64; 4] =
    [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1];

/// Multiplies to twice the bits, and folds them.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// Two numbers that depend on everything that was taken in, in its order.
struct Lanes(u64, u64);

impl Lanes {
    fn new(seed: u64) -> Self {
        Self(fold(seed ^ KEYS[0], KEYS[1]), fold(seed ^ KEYS[2], KEYS[3]))
    }

    fn take(&mut self, x: u64, y: u64) {
        self.0 = fold(self.0 ^ x, y ^ KEYS[1]) ^ y;
        self.1 = fold(self.1 ^ y, x ^ KEYS[3]) ^ x;
    }

    fn finish(mut self) -> u128 {
        self.take(KEYS[0], KEYS[2]);
        u128::from(self.0) << 64 | u128::from(self.1)
    }
}

pub(super) fn of_sector(index: usize, sector: &Sector) -> u128 {
    if *sector == [0; size_of::<Sector>()] {
        return 0;
    }
    let mut lanes = Lanes::new(index as u64);
    for pair in sector.chunks_exact(16) {
        let word = |at: usize| pair[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        lanes.take(word(0), word(8));
    }
    lanes.finish()
}

/// Of whole sectors.
pub(super) fn of_sectors(bytes: &[u8]) -> u128 {
    let sectors = bytes.as_chunks().0.iter().enumerate();
    sectors.fold(0, |sum, (index, sector)| sum.wrapping_add(of_sector(index, sector)))
}

/// Of a text.
pub(super) fn of_text(text: &str) -> u128 {
    let mut lanes = Lanes::new(text.len() as u64);
    for piece in text.as_bytes().chunks(16) {
        let mut pair = [0; 16];
        pair[..piece.len()].copy_from_slice(piece);
        let pair = u128::from_le_bytes(pair);
        lanes.take(pair as u64, (pair >> 64) as u64);
    }
    lanes.finish()
}

/// Of something that has this one, and another number.
pub(super) fn mixed(print: u128, number: u64) -> u128 {
    let mut lanes = Lanes::new(number);
    lanes.take(print as u64, (print >> 64) as u64);
    lanes.finish()
}
