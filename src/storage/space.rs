//! What a store takes of the disk: every file that can be large is made here, within the limit that the store was opened
//! with. That limit acts in the same way as the end of the disk, only earlier.
//!
//! What is held back for when there is no more space: [`spares`].

mod spares;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::sync::Arc;

use super::{File, Prepare, Storage};
use crate::lock::Lock;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use spares::{Spare, SpareBytes};

/// The name of a file that is made only to see whether there is room for it.
pub(crate) const PROBE: &str = "spare.probe";

/// Space is had and given back in multiples of this, in bytes.
const STEP: u64 = 4096;

/// Whether there is no space. An allocation that is told apart from other failures by this can succeed later.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The space of a store: every file that can be large is made here.
pub(crate) struct Space {
    storage: Arc<dyn Storage>,
    /// How long all files together may be, in bytes; None for as long as the disk has room.
    max_bytes: Option<u64>,
    /// All spares were there when last looked at, and none was taken since. Changes under the lock.
    complete: AtomicBool,
    /// A spare was taken since all were there.
    short: AtomicBool,
    /// There was no space when it was last asked for, and none was given back since.
    full: AtomicBool,
    /// How often space was given back, held back, or asked for in vain.
    changes: AtomicU64,
    /// Held from the look at the limit until the file is there. How long all files were when the store was opened, or the
    /// first spare was taken: if that was beyond the limit, what was held back then is held back again.
    limit: Lock<u64>,
    /// Held by whoever makes, takes or changes spares, or gives back what becomes one. How long they were to be last.
    spares: Lock<SpareBytes>,
}

impl Space {
    pub fn new(storage: Arc<dyn Storage>, max_bytes: Option<u64>) -> Space {
        // A store that is beyond its limit may hold back again what it has lost meanwhile, in whole pages.
        let used = |page: u64| -> u64 {
            let files = storage.list().unwrap_or_default();
            files.iter().map(|entry| entry.len.next_multiple_of(page)).sum()
        };
        let before = if max_bytes.is_some_and(|max| used(1) > max) { used(STEP) } else { 0 };
        Space {
            storage,
            max_bytes,
            complete: AtomicBool::new(false),
            short: AtomicBool::new(false),
            full: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            limit: Lock::new(before),
            spares: Lock::default(),
        }
    }

    /// Whether no thread has panicked in here.
    pub fn is_healthy(&self) -> bool {
        self.spares.try_healthy().is_some() && self.limit.try_healthy().is_some()
    }

    /// Whether all spares are there, so that inserts may go on.
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether it is no use to ask for space before some is given back.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Changes whenever there may be space where there was none.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Space was given back.
    pub fn freed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.full.store(false, Ordering::Release);
    }

    /// Somebody needs space: whoever has found none may look again.
    pub fn asked(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Removes a file. Whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        let removed = self.storage.remove(name).is_ok();
        if removed {
            self.freed();
        }
        removed
    }

    /// As [`Storage::create`], within the limit.
    pub fn create(&self, name: &str, len: u64, prepare: Prepare) -> io::Result<Arc<dyn File>> {
        self.create_within(false, name, len, prepare)
    }

    fn create_within(
        &self,
        restores: bool,
        name: &str,
        len: u64,
        prepare: Prepare,
    ) -> io::Result<Arc<dyn File>> {
        let made = self.within_limit(restores, len, || self.storage.create(name, len, prepare));
        if made.as_ref().is_err_and(is_full) {
            self.full.store(true, Ordering::Release);
        }
        made
    }

    /// Does what takes so much `more`, if the limit allows, or if it restores no more than what there was.
    fn within_limit<T>(
        &self,
        restores: bool,
        more: u64,
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(mut max) = self.max_bytes else { return make() };
        let before = self.limit.lock();
        if restores {
            max = max.max(*before);
        }
        let full = self.used()?.saturating_add(more) > max;
        if full { Err(ErrorKind::StorageFull.into()) } else { make() }
    }

    fn used(&self) -> io::Result<u64> {
        Ok(self.storage.list()?.iter().map(|entry| entry.len).sum())
    }
}
