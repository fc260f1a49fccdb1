//! Checkpoints: writing a new cursor beside running work, and removing the segments that no cursor needs.
//!
//! What a cursor says is captured piece by piece: [`capture`]. The log is made durable up to where that ended before the
//! cursor is published, since the pieces know of records behind the position.
//!
//! A segment without live messages is left out of the next cursor, and its files are removed after the one after
//! that: by then neither of the two kept cursors names it, nor needs the log that far back.
//!
//! Crash windows: see [`crate::cursor`] for the cursor's own; a segment that no cursor names is removed by the
//! next open.

mod capture;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::maintenance::Maintenance;
use super::state::State;
use super::{Engine, poisoned};
use crate::cursor::{PublishFailed, publish};
use crate::error::{Error, Result};
use crate::format::cursor::CursorHeader;
use crate::format::position::Position;
use crate::log::{Purpose, Refused, Segment, index_name};
use crate::planted::{Bug, planted};

/// Ids that a cursor reserves ahead of those given out.
pub(super) const IDS_RESERVED: u64 = 1 << 22;

/// The least log between two cursors that are written because of the log's growth: with some time between them, so that
/// a burst is not held up by syncs, and without.
const LOG_BYTES_MIN: u64 = 16 << 20;
const LOG_BYTES_MIN_IN_A_BURST: u64 = 64 << 20;

/// How long after a cursor a burst is over.
const BURST: Duration = Duration::from_secs(1);

/// The cursor is at most a quarter of the log written between two of them.
const LOG_PER_CURSOR: u64 = 4;

/// What a declaration takes besides the queue's name and options, roughly.
const DECLARE_BYTES: u64 = 64;

impl Engine {
    pub(super) fn checkpoint_if_due(&self, maintenance: &mut Maintenance) -> Result<bool> {
        if !self.is_checkpoint_due(maintenance) {
            return Ok(false);
        }
        match self.checkpoint(maintenance, false) {
            Ok(()) => Ok(true),
            // There is no space for it now. Work goes on without, until the log has grown too long for that.
            Err(error) if error.is_retryable() => {
                self.lock_state().reclaimable = true;
                maintenance.retry_at = self.log.tail().written_bytes() + (1 << 20);
                maintenance.retry_changes = self.space.changes();
                Ok(false)
            }
            Err(error) => {
                // It stays due.
                self.lock_state().reclaimable = true;
                Err(error)
            }
        }
    }

    fn is_checkpoint_due(&self, maintenance: &Maintenance) -> bool {
        let mut state = self.lock_state();
        let written = self.log.tail().written_bytes();
        if written < maintenance.retry_at && self.space.changes() == maintenance.retry_changes {
            return false;
        }
        let grown = written - maintenance.checkpoint_at;
        let since = self.time.mono().saturating_duration_since(maintenance.checkpoint_time);
        let in_a_burst = since < BURST;
        let least = if in_a_burst { LOG_BYTES_MIN_IN_A_BURST } else { LOG_BYTES_MIN };
        let least = least.min(self.settings.segment_bytes);
        if grown >= least.max(LOG_PER_CURSOR * state.cursor_bytes) {
            return true;
        }
        if std::mem::take(&mut state.reclaimable) {
            let dead =
                |s: &super::segment_state::SegmentState| s.segment.is_sealed() && s.live() == 0;
            if state.segments.iter().any(|s| dead(s) && s.dropped_in.is_none()) {
                return true;
            }
        }
        // One more lets go of what the last one has left out.
        state.segments.iter().any(|s| s.dropped_in.is_some()) || !state.retired.is_empty()
    }

    /// Writes the checkpoint that an append waits for, unless somebody has meanwhile.
    pub(super) fn checkpoint_for(&self, ids: u64) -> Result<()> {
        let mut maintenance = self.maintenance.lock();
        if !self.log.tail().wants_checkpoint(ids) {
            return Ok(());
        }
        self.check_alive()?;
        self.checkpoint(&mut maintenance, false)
    }

    /// Writes a cursor and gives back the segments that are no longer needed. `clean` says that nothing will be appended
    /// behind it.
    pub(super) fn checkpoint(&self, maintenance: &mut Maintenance, clean: bool) -> Result<()> {
        // Nothing is appended before the first cursor of an open: that of a close would still say where the log ends.
        let is_first = maintenance.position == Position::default();
        if !clean && !is_first {
            self.carry_declarations()?;
        }
        let generation = maintenance.generation + 1;
        let moment = self.moment(generation, clean);
        let bytes = self.encode_cursor(&moment)?;
        let end = self.log.tail().end();
        if !planted(Bug::CursorBeforeTheLog) {
            self.sync_to(end)?;
        }
        if planted(Bug::RemovedBeforeTheCursor) {
            self.remove_dropped(generation + 1)?;
        }
        // What was durable before stays so, but nothing is promised any more.
        self.check_alive()?;
        if let Err(failed) = publish(&*self.storage, &self.space, generation, &bytes) {
            return Err(self.publish_failed(failed, generation));
        }
        maintenance.generation = generation;
        maintenance.checkpoint_at = moment.written_bytes;
        maintenance.checkpoint_time = self.time.mono();
        maintenance.retry_at = 0;
        let CursorHeader { position, id_ceiling, .. } = moment.header;
        maintenance.position = position;
        self.log.tail().checkpointed(position.segment(), id_ceiling);
        self.lock_state().cursor_bytes = bytes.len() as u64;
        self.remove_dropped(generation)?;
        self.space.hold_less(self.spare_bytes());
        if !self.space.is_complete() {
            self.supplier.wake();
        }
        Ok(())
    }

    pub(super) fn publish_failed(&self, failed: PublishFailed, generation: u64) -> Error {
        match failed {
            PublishFailed::NotWritten(error) => {
                let mut state = self.lock_state();
                for s in state.segments.iter_mut().filter(|s| s.dropped_in == Some(generation)) {
                    s.dropped_in = None;
                }
                for r in state.retired.iter_mut().filter(|r| r.dropped_in == Some(generation)) {
                    r.dropped_in = None;
                }
                Error::io("cannot write the cursor", error)
            }
            PublishFailed::Sync(error) => {
                let failed = self.log.poison(error);
                self.on_poison();
                poisoned(Some(failed))
            }
        }
    }

    /// Declares again, at the end of the log, the queues whose declaration lies in a dead segment, or in one that is lost: a
    /// walk of the whole log must still find it if all cursors are lost.
    fn carry_declarations(&self) -> Result<()> {
        let mut declared: HashMap<u32, u64> = HashMap::new();
        for queue in self.lock_state().queues.values() {
            let options = queue.options.encode()?.len() as u64;
            let bytes = queue.shared.name.len() as u64 + options + DECLARE_BYTES;
            *declared.entry(queue.declared_at.segment()).or_default() += bytes;
        }
        // A checkpoint without the declaration keeps the segment.
        self.declare_again(|state, number| {
            super::lane::find(&state.segments, number).is_none_or(|at| {
                let s = &state.segments[at];
                // One that holds little else stays as it is: carried on, it would only be another one like it.
                let declared = declared.get(&number).copied().unwrap_or(0);
                s.segment.is_sealed() && s.live() == 0 && 2 * declared <= s.segment.end().into()
            })
        })?;
        Ok(())
    }

    /// Declares again the queues that were declared in a segment whose number `goes` picks. Whether all could be: there
    /// may be no room.
    pub(super) fn declare_again(&self, goes: impl Fn(&State, u32) -> bool) -> Result<bool> {
        loop {
            let mut state = self.lock_state();
            state.absorb(&mut self.log.tail());
            let found = state.queues.values().find(|q| goes(&state, q.declared_at.segment()));
            let Some(found) = found else { return Ok(true) };
            let (shared, options) = (found.shared.clone(), found.options.clone());
            let (name, pause) = (&shared.name, Some(found.pause));
            match self.append_declare(shared.id, name, &options, pause, Purpose::Settle)? {
                Ok(end) => {
                    if let Some(entry) = state.queues.get_mut(&shared.id) {
                        entry.declared_at = end;
                    }
                }
                Err(Refused::Failed) => {
                    drop(state);
                    return Err(self.write_failed());
                }
                Err(Refused::Segment { frames_bytes }) => {
                    drop(state);
                    if self.try_prepare_for(frames_bytes, Purpose::Settle).is_err() {
                        return Ok(false);
                    }
                }
                Err(_) => return Ok(false),
            }
        }
    }

    /// Gives back the segments that neither of the two kept cursors names.
    fn remove_dropped(&self, generation: u64) -> Result<()> {
        let is_dropped = |dropped_in: Option<u64>| dropped_in.is_some_and(|g| g < generation);
        let dropped: Vec<Arc<Segment>> = {
            let mut guard = self.lock_state();
            let state = &mut *guard;
            let dead = state.segments.extract_if(.., |s| is_dropped(s.dropped_in));
            let mut dropped: Vec<Arc<Segment>> = dead.map(|s| s.segment).collect();
            let files: Vec<u32> = dropped.iter().map(|segment| segment.file).collect();
            state.untrimmed.retain(|sealed| !files.contains(&sealed.segment.file));
            let retired = state.retired.extract_if(.., |r| is_dropped(r.dropped_in));
            dropped.extend(retired.map(|r| r.segment));
            dropped
        };
        let mut unused = Vec::new();
        for segment in dropped {
            // What cannot be removed now is removed by the next open.
            self.space.remove(&index_name(segment.file));
            let name = segment.name();
            if Arc::strong_count(&segment) > 1 {
                // A backup may have the file under another name, and it stays here if it cannot be removed: whoever finds
                // it must not change it.
                let _ = segment.hold(&*self.storage);
            }
            if segment.give_up() {
                unused.push(name);
            } else {
                // Deliveries keep the bytes of a file without a name.
                self.space.remove(&name);
            }
        }
        self.give_back_segments(&unused)
    }
}
