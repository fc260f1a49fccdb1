//! The work that keeps the log short and gives room back, one step at a time.
//!
//! A thread repeats [`Engine::maintain`] until there is nothing to do; a caller who cannot wait for it does what it
//! needs itself, under the same lock.

use std::sync::Arc;
use std::time::Instant;

use super::compact::Rewrite;
use super::sweep::Sweep;
use super::{Engine, poisoned};
use crate::error::Result;
use crate::format::position::Position;
use crate::log::{LaneIndex, Segment, index_name};
use crate::storage::{Prepare, Spare};

/// The name of an index that is being written.
pub(super) const INDEX_BEING_WRITTEN: &str = "index.tmp";

/// What whoever does maintenance knows.
pub(super) struct Maintenance {
    /// The newest cursor.
    pub generation: u64,
    /// How much log had been written, in bytes, when the newest cursor was captured.
    pub checkpoint_at: u64,
    /// When that one was written.
    pub checkpoint_time: Instant,
    /// The newest cursor was not written for want of space; wait for more log before trying again.
    pub retry_at: u64,
    /// Or for space: [`Space::changes`](crate::storage::Space::changes) was this.
    pub retry_changes: u64,
    /// What the newest cursor is true of.
    pub position: Position,
    /// The compaction that has begun.
    pub rewrite: Option<Rewrite>,
    /// There was no space for a compaction when [`Space::changes`](crate::storage::Space::changes) was this.
    pub compact_full: Option<u64>,
    /// One has met an error: none before the log has grown to this, or there may be space again as above.
    pub compact_failed: Option<(u64, u64)>,
    /// The sweep that has begun.
    pub sweep: Option<Sweep>,
    /// No other sweep before this time.
    pub sweep_after: Option<Instant>,
}

impl Engine {
    /// Does one piece of maintenance, if there is any. Whether there may be more.
    pub(crate) fn maintain(&self) -> Result<bool> {
        let mut maintenance = self.maintenance.lock();
        self.check_alive()?;
        if self.sync_if_due()? || self.trim_sealed() {
            return Ok(true);
        }
        if self.write_index()? || self.checkpoint_if_due(&mut maintenance)? {
            return Ok(true);
        }
        if let Some(sweep) = self.next_sweep(&mut maintenance) {
            // What expires may have to wait for a checkpoint.
            drop(maintenance);
            self.sweep(sweep);
            return Ok(true);
        }
        if self.compact(&mut maintenance)? {
            return Ok(true);
        }
        self.give_back_unused()?;
        Ok(false)
    }

    /// Gives back prepared segments that will not be used.
    pub(super) fn give_back_unused(&self) -> Result<()> {
        self.give_back_segments(&self.log.take_unused())
    }

    /// Gives back files of segments that nobody needs or has mapped any more.
    pub(super) fn give_back_segments(&self, names: &[String]) -> Result<()> {
        self.space.give_back(Spare::Log, names).map_err(|error| {
            let failed = self.log.poison(error);
            self.on_poison();
            poisoned(Some(failed))
        })
    }

    fn sync_if_due(&self) -> Result<bool> {
        let (due, end) = {
            let tail = self.log.tail();
            (tail.sync_by(), tail.end())
        };
        if due.is_none_or(|due| due > self.now().mono) {
            return Ok(false);
        }
        self.sync_to(end)?;
        // Messages that nobody waits to see durable have become visible.
        self.wake_all_waiters();
        Ok(true)
    }

    /// Cuts sealed segments to their end, once a sync has covered them. Crash window: cut or not, the last frame says
    /// where the segment ends.
    pub(super) fn trim_sealed(&self) -> bool {
        let synced = self.log.synced_through();
        let mut ready = Vec::new();
        {
            let mut state = self.lock_state();
            state.absorb(&mut self.log.tail());
            let untrimmed = std::mem::take(&mut state.untrimmed);
            for sealed in untrimmed {
                if sealed.segment.end_position() <= synced {
                    ready.push(sealed);
                } else {
                    state.untrimmed.push(sealed);
                }
            }
        }
        for sealed in &ready {
            // A segment that stays too long costs space and nothing else.
            let _ = sealed.file.set_len(sealed.segment.end().into());
            self.space.freed();
        }
        !ready.is_empty()
    }

    /// Writes the index of one sealed segment that has it only in memory. Crash window: it is not there, and
    /// is made anew when it is needed.
    pub(super) fn write_index(&self) -> Result<bool> {
        if !self.space.is_complete() {
            // What there is of space is for what cannot be done without.
            return Ok(false);
        }
        let found = {
            let state = self.lock_state();
            state.segments.iter().map(|s| &s.segment).find_map(|segment| {
                let index = segment.index().filter(|_| segment.is_sealed())?;
                matches!(*index, LaneIndex::Memory(_)).then(|| (segment.clone(), index))
            })
        };
        let Some((segment, index)) = found else { return Ok(false) };
        let LaneIndex::Memory(memory) = &*index else { return Ok(false) };
        let content = memory.encode(segment.file, segment.salt, segment.end());
        match self.write_index_file(&segment, &content) {
            Ok(Some(index)) => {
                segment.set_index(index);
                Ok(true)
            }
            // It stays in memory; a later open makes it anew.
            Ok(None) | Err(_) => Ok(false),
        }
    }

    fn write_index_file(
        &self,
        segment: &Arc<Segment>,
        content: &[u8],
    ) -> std::io::Result<Option<LaneIndex>> {
        let name = index_name(segment.file);
        self.space.remove(INDEX_BEING_WRITTEN);
        let len = content.len() as u64;
        let file = self.space.create(INDEX_BEING_WRITTEN, len, Prepare::Reserve)?;
        file.write_at(0, content)?;
        file.sync_data()?;
        self.storage.rename(INDEX_BEING_WRITTEN, &name)?;
        let (number, salt, end) = (segment.file, segment.salt, segment.end());
        Ok(LaneIndex::from_file(file.map_read()?, number, salt, end))
    }
}
