//! What appends need before they can go on: pages that are present, the next segment, and what is held back for a full
//! disk.
//!
//! A thread of its own repeats [`Engine::supply_step`], since maintenance may wait for the disk long enough for appends
//! to use up a whole segment. An append that finds no segment makes one itself, under the same lock.
//!
//! **A full disk** refuses inserts. Records that settle go on in the spare segments. What these hold is garbage once a
//! cursor covers it; so whoever finds no spare left has two cursors written, which gives back the one before.

use super::state::State;
use super::{Engine, poisoned};
use crate::error::{Error, Result};
use crate::log::{PrepareFailed, Purpose, SEGMENT_OVERHEAD};
use crate::storage::SpareBytes;

/// How long a spare segment is, in bytes; a quarter of a segment, if that is less.
const SPARE_LOG_BYTES: u64 = 64 << 10;

/// How much longer cursors may become while the disk is full, in bytes, besides what is known to come; a quarter of a
/// segment, if that is less.
const SPARE_CURSOR_BYTES: u64 = 64 << 10;

/// What a touched message takes in a cursor, roughly, in bytes.
const CURSOR_ENTRY_BYTES: u64 = 16;

impl Engine {
    /// Makes the next pages present, or a segment ready, or what is held back, if that is wanted. Whether there may be
    /// more to do.
    pub(crate) fn supply_step(&self) -> Result<bool> {
        let _supply = self.supply.lock();
        self.check_alive()?;
        // A segment first: an append can do without a page, but not without that.
        Ok(self.hold_back_if_wanted()? || self.prepare_if_wanted()? || self.log.prefault())
    }

    fn hold_back_if_wanted(&self) -> Result<bool> {
        if self.space.is_complete() || self.space.is_full() {
            return Ok(false);
        }
        told_later(self.make_spares())
    }

    fn prepare_if_wanted(&self) -> Result<bool> {
        if self.space.is_full() || !self.log.tail().wants_segment() {
            return Ok(false);
        }
        told_later(self.prepare(0, Purpose::Insert))
    }

    /// To be called under the supply lock.
    fn prepare(&self, frames_bytes: u64, purpose: Purpose) -> Result<()> {
        if purpose == Purpose::Insert {
            // What is to come may need more than what is there now.
            self.make_spares()?;
        }
        let prepared = self.log.prepare(frames_bytes, purpose, self.now().wall_ms);
        prepared.map_err(|failed| match failed {
            PrepareFailed::Create(error) => Error::io("cannot make the next segment", error),
            PrepareFailed::Sync(failed) => {
                self.on_poison();
                poisoned(Some(failed))
            }
        })
    }

    /// Makes sure that all is there that is held back.
    pub(super) fn hold_back(&self) -> Result<()> {
        let _supply = self.supply.lock();
        self.check_alive()?;
        if self.space.is_complete() { Ok(()) } else { self.make_spares() }
    }

    fn make_spares(&self) -> Result<()> {
        self.space.hold_back(self.spare_bytes()).map_err(|error| {
            Error::io("cannot reserve what must be held back for a full disk", error)
        })
    }

    /// How much has to be held back, so that a full disk stays alive.
    pub(super) fn spare_bytes(&self) -> SpareBytes {
        let quarter = self.settings.segment_bytes / 4;
        let state = self.lock_state();
        let messages: u64 = state.segments.iter().map(|s| s.messages).sum();
        let touched: u64 = state.queues.values().map(|queue| queue.touched.len()).sum();
        let windows = self.window_bytes_ahead(&state);
        // What is deleted in a segment takes at most a bit for each message, what is touched as much again as now. Two
        // cursors of that size are kept, and another one is written; there are two spares for all of them.
        let cursor = state.cursor_bytes.max(touched * CURSOR_ENTRY_BYTES + windows);
        let cursors = SPARE_CURSOR_BYTES.min(quarter) + 3 * (messages / 8 + cursor);
        let sealed = state.segments.iter().filter(|s| s.segment.is_sealed());
        let sealed = sealed.map(|s| u64::from(s.segment.end())).max();
        let active = self.log.tail().active_bytes().0;
        // A segment is worth a copy when at most half of it is left. A log that has hardly begun has none.
        let longest = sealed.unwrap_or(0).max(if active > quarter { active } else { 0 });
        let copy = if longest > 0 { longest / 2 + SEGMENT_OVERHEAD } else { 0 };
        SpareBytes {
            log: SPARE_LOG_BYTES.min(quarter),
            cursor: (cursors / 2).next_multiple_of(4096),
            copy: copy.next_multiple_of(4096),
        }
    }

    /// What the deduplication windows take in a cursor, roughly, once the segments are full that inserts may go on in without
    /// asking for space: the active one and the next, if messages and keys go on as in the active one.
    fn window_bytes_ahead(&self, state: &State) -> u64 {
        let known: u64 = state.queues.values().map(|queue| queue.window.len()).sum();
        let (messages, bytes, active) = {
            let tail = self.log.tail();
            (tail.active_messages(), tail.active_message_bytes(), tail.active_bytes().1)
        };
        // The next one is at most twice as long as this one.
        let room = (3 * active).min(active + self.settings.segment_bytes);
        let more = room * messages / bytes.max(1);
        let windows = state.queues.values().map(|queue| &queue.window);
        windows.map(|window| window.cursor_bytes(more * window.len() / known.max(1))).sum()
    }

    /// Makes sure that the log can roll for `frames_bytes`.
    pub(super) fn prepare_for(&self, frames_bytes: u64, purpose: Purpose) -> Result<()> {
        match self.try_prepare_for(frames_bytes, purpose) {
            Err(error) if purpose == Purpose::Settle && error.is_retryable() => {}
            done => return done,
        }
        let mut maintenance = self.maintenance.lock();
        // The first cursor leaves out what has died, and the second gives it back.
        for _ in 0..2 {
            // Somebody else may have done the same meanwhile.
            match self.try_prepare_for(frames_bytes, purpose) {
                Err(error) if error.is_retryable() => {}
                done => return done,
            }
            self.checkpoint(&mut maintenance, false)?;
        }
        self.try_prepare_for(frames_bytes, purpose)
    }

    pub(super) fn try_prepare_for(&self, frames_bytes: u64, purpose: Purpose) -> Result<()> {
        let _supply = self.supply.lock();
        if self.log.tail().next_prepared(frames_bytes).is_some() {
            return Ok(());
        }
        self.check_alive()?;
        if purpose == Purpose::Settle && !self.space.is_complete() {
            // What was given back goes there first, and comes from there.
            let _ = self.make_spares();
        }
        self.prepare(frames_bytes, purpose)
    }
}

/// That there is no space is for whoever needs it to be told.
fn told_later(done: Result<()>) -> Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.is_retryable() => Ok(false),
        Err(error) => Err(error),
    }
}
