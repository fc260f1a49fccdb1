//! Random numbers: the one place that makes them.

use std::io;
#[cfg(feature = "testing")]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Where salts and store ids come from.
#[derive(Clone, Debug, Default)]
pub(crate) enum Entropy {
    #[default]
    System,
    #[cfg(feature = "testing")]
    /// Distinct numbers in a fixed order, so that a simulated run can be repeated.
    Sequence(Arc<AtomicU64>),
}

impl Entropy {
    #[expect(clippy::disallowed_methods, reason = "the home of random numbers")]
    pub fn next_u64(&self) -> io::Result<u64> {
        match self {
            Entropy::System => {
                let mut bytes = [0; 8];
                getrandom::fill(&mut bytes).map_err(io::Error::from)?;
                Ok(u64::from_le_bytes(bytes))
            }
            #[cfg(feature = "testing")]
            Entropy::Sequence(state) => {
                let step = 0x9E37_79B9_7F4A_7C15;
                let mut z = state.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
                z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                Ok(z ^ (z >> 31))
            }
        }
    }

    pub fn store_id(&self) -> io::Result<[u8; 16]> {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_u64()?.to_le_bytes());
        id[8..].copy_from_slice(&self.next_u64()?.to_le_bytes());
        Ok(id)
    }
}
