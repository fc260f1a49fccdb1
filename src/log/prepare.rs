//! Segment files made ready: how long they are, what they are filled with, and their durable names. Nothing is appended
//! here; the appender takes what is ready.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::appender::Purpose;
use super::commit::SyncFailed;
use super::segment::segment_name;
use super::tail::Prepared;
use crate::format::header::{FRAMES_START, Header};
use crate::planted::{Bug, planted};
use crate::random::Entropy;
use crate::storage::{File, Prepare, Space, Spare, Storage, Writing};

/// Kept free at the end of a segment for the frame that names the next one, with a mark.
pub(crate) const ROLL_RESERVE: u32 = 40;

/// Where zeroes are written ahead, the first segment after an open is this long at most, in bytes, and each one after it
/// twice as long as the one before: an open writes few of them, and a small store stays small.
const FIRST_ZEROED_BYTES: u32 = 1 << 20;

/// The segment that a store at rest ends with is this long at most, in bytes.
pub(super) const AT_REST_BYTES: u32 = 64 << 10;

#[derive(Clone)]
pub(crate) struct LogSettings {
    pub store: [u8; 16],
    pub segment_bytes: u32,
    pub prepare: Prepare,
    pub entropy: Entropy,
}

/// Why a segment could not be made ready.
pub(crate) enum PrepareFailed {
    /// Nothing was promised yet: there is no space, or no permission.
    Create(io::Error),
    /// A sync failed. The store is poisoned.
    Sync(SyncFailed),
}

impl LogSettings {
    /// How segments are written. Where zeroes are written ahead, syncs are frequent.
    pub fn writing(&self) -> Writing {
        match self.prepare {
            Prepare::Zero => Writing::Calls,
            Prepare::Reserve => Writing::Stores,
        }
    }

    /// How long the first segment is that an open makes, in bytes.
    pub fn first_segment_bytes(&self) -> u32 {
        match self.prepare {
            Prepare::Zero => self.segment_bytes.min(FIRST_ZEROED_BYTES),
            Prepare::Reserve => self.segment_bytes,
        }
    }

    /// How long a segment is that follows one of `before` bytes.
    pub fn next_segment_bytes(&self, before: u64) -> u64 {
        match self.prepare {
            Prepare::Zero => {
                (before * 2).max(FIRST_ZEROED_BYTES.into()).min(self.segment_bytes.into())
            }
            Prepare::Reserve => self.segment_bytes.into(),
        }
    }

    /// How long the segment is that a store at rest ends with, in bytes.
    pub fn rest_segment_bytes(&self) -> u32 {
        self.segment_bytes.min(AT_REST_BYTES)
    }
}

/// What a segment file takes besides its frames.
pub(crate) const SEGMENT_OVERHEAD: u64 = (FRAMES_START + ROLL_RESERVE) as u64;

/// How long a segment file must be to hold `frames_bytes` of frames.
pub(crate) fn file_bytes(frames_bytes: u64) -> u64 {
    SEGMENT_OVERHEAD + frames_bytes
}

/// How many bytes of frames fit in a segment file.
pub(crate) fn frames_capacity(segment_bytes: u32) -> u64 {
    u64::from(segment_bytes.saturating_sub(FRAMES_START + ROLL_RESERVE))
}

/// After some four billion segments.
pub(crate) fn no_number_left() -> io::Error {
    io::Error::other("no segment number is left")
}

/// Creates the file of a segment, as long as the upper of these limits, or for what settles as long as the spare that it
/// finds.
///
/// Crash windows: the file without its name, with a wrong length, or durable and all zeros. An open takes each
/// for an unused segment and removes it.
pub(crate) fn prepare_file(
    space: &Space,
    settings: &LogSettings,
    number: u32,
    bytes: RangeInclusive<u64>,
    purpose: Purpose,
    created_at: u64,
) -> io::Result<Prepared> {
    let name = segment_name(number);
    let file = match purpose {
        Purpose::Insert => space.create(&name, *bytes.end(), settings.prepare)?,
        Purpose::Settle => space.create_or_take(Spare::Log, &name, bytes, settings.prepare)?,
    };
    prepared(file, settings, number, created_at).inspect_err(|_| {
        space.remove(&name);
    })
}

/// A file that was prepared before and never used, and holds nothing but zeros.
pub(crate) fn reuse_file(
    storage: &dyn Storage,
    settings: &LogSettings,
    number: u32,
    created_at: u64,
) -> io::Result<Prepared> {
    let file = storage.open(&segment_name(number))?;
    // A failed sync of the process before may have lost it: set anew, it goes with the next one.
    file.set_len(file.len()?)?;
    prepared(file, settings, number, created_at)
}

fn prepared(
    file: Arc<dyn File>,
    settings: &LogSettings,
    number: u32,
    created_at: u64,
) -> io::Result<Prepared> {
    let capacity = u32::try_from(file.len()?).map_err(io::Error::other)?;
    let header = Header {
        store: settings.store,
        number,
        replaces_first: number,
        replaces_last: number,
        first_id: 0,
        salt: settings.entropy.next_u64()?,
        created_at,
        capacity,
    };
    let writer = file.map_write(settings.writing())?;
    Ok(Prepared { header, file, writer, present: 0 })
}

/// Makes a prepared file and its name durable. A failure here is a failed sync.
pub(crate) fn sync_prepared(storage: &dyn Storage, prepared: &Prepared) -> io::Result<()> {
    prepared.file.sync_data()?;
    if planted(Bug::DirectorySyncLeftOut) { Ok(()) } else { storage.sync_dir() }
}
