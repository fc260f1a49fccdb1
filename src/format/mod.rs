//! What lies on disk: encode beside decode, pure. `docs/format.md` is the normative text.
//!
//! Nothing here knows files, clocks, locks or random numbers. Decoders take bytes that anything may have
//! happened to: they return what they found, never panic, and never allocate by a length that the bytes at
//! hand do not bear out.

/// All ids are below this, which no store reaches: so a few may be added to one that was read without a thought.
pub(crate) const IDS_END: u64 = 1 << 63;

pub(crate) mod bytes;
pub(crate) mod checksum;
pub(crate) mod cursor;
pub(crate) mod frame;
pub(crate) mod header;
pub(crate) mod index;
pub(crate) mod position;
pub(crate) mod record;
pub(crate) mod runs;

#[cfg(test)]
mod example_test;
#[cfg(test)]
mod strategies;
