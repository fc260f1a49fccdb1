//! What appends need before they can go on: pages that are present, and the next segment.
//!
//! A thread of its own repeats [`Engine::supply_step`], since maintenance may wait for the disk long enough for appends
//! to use up a whole segment. An append that finds no segment makes one itself, under the same lock.

use super::{Engine, poisoned};
use crate::error::{Error, Result};
use crate::log::{PrepareFailed, Purpose};

impl Engine {
    /// Makes the next pages present, or a segment ready, if that is wanted. Whether there may be more to do.
    pub(crate) fn supply_step(&self) -> Result<bool> {
        let _supply = self.supply.lock();
        self.check_alive()?;
        // A segment first: an append can do without a page, but not without that.
        Ok(self.prepare_if_wanted()? || self.log.prefault())
    }

    fn prepare_if_wanted(&self) -> Result<bool> {
        if !self.log.tail().wants_segment() {
            return Ok(false);
        }
        match self.prepare(0) {
            Ok(()) => Ok(true),
            // Whoever needs the segment will be told.
            Err(error) if error.is_retryable() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn prepare(&self, frames_bytes: u64) -> Result<()> {
        self.log.prepare(frames_bytes, self.now().wall_ms).map_err(|failed| match failed {
            PrepareFailed::Create(error) => Error::io("cannot make the next segment", error),
            PrepareFailed::Sync(failed) => {
                self.on_poison();
                poisoned(Some(failed))
            }
        })
    }

    /// Makes sure that the log can roll for `frames_bytes`.
    pub(super) fn prepare_for(&self, frames_bytes: u64, purpose: Purpose) -> Result<()> {
        let _supply = self.supply.lock();
        loop {
            let wanted = {
                let tail = self.log.tail();
                if tail.next_prepared(frames_bytes, purpose).is_some() {
                    return Ok(());
                }
                // One that is large enough is there, and the one to be left behind may be of any size.
                let large = tail.next_prepared(frames_bytes, Purpose::Settle).is_some();
                if large { 0 } else { frames_bytes }
            };
            self.check_alive()?;
            self.prepare(wanted)?;
        }
    }
}
