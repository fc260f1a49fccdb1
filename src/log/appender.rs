//! Appending to the log: runs of frames, rolling to the next segment, and the syncs that cover them.
//!
//! Under the append lock a run is copied into the segment, the first words of its frames stored last, in their order, so
//! that a kill leaves a run without its last frame, which does not count. No file is touched under the lock:
//! segments are prepared beforehand (`prepare.rs`), and an append that finds none gives up and says what it needs.
//!
//! Crash windows of a roll: the old segment's last frame names the next one, whose header is not there yet (the
//! next segment begins with nothing); the header without a frame (an empty active segment). Recovery takes both
//! for the end of the log.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use super::commit::{Commit, SyncFailed, Unsynced};
use super::index::Lane;
use super::prepare::{
    LogSettings, PrepareFailed, file_bytes, no_number_left, prepare_file, sync_prepared,
};
use super::segment::segment_name;
use super::tail::{Active, Prepared, Tail};
use crate::format::checksum::crc32;
use crate::format::frame::frame_bytes;
use crate::format::position::Position;
use crate::format::record;
use crate::lock::{Guard, Lock};
use crate::planted::{Bug, planted};
use crate::storage::{File, Prepare, Space, Storage};
use crate::sync::atomic::{AtomicBool, Ordering};

/// Segments that the appender may be ahead of the last cursor; beyond that an append waits for a checkpoint.
pub(super) const SEGMENTS_AHEAD_MAX: usize = 4;

/// A record about to be appended.
#[derive(Clone, Copy)]
pub(crate) struct Draft<'a> {
    pub kind: u8,
    pub info: u16,
    pub head: &'a [u8],
    pub payload: &'a [u8],
    /// Of head and payload together.
    pub checksum: u32,
    /// The lanes that the message goes to, one id each; empty for all other records.
    pub lanes: &'a [Lane],
    /// When the message expires, in milliseconds since the epoch.
    pub expiry: Option<u64>,
}

impl<'a> Draft<'a> {
    pub fn record(kind: u8, body: &'a [u8]) -> Draft<'a> {
        let (payload, lanes) = (&[], &[]);
        Draft { kind, info: 0, head: body, payload, checksum: crc32(body), lanes, expiry: None }
    }

    pub fn insert(info: u16, head: &'a [u8], payload: &'a [u8], lanes: &'a [Lane]) -> Draft<'a> {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(head);
        hasher.update(payload);
        let (kind, checksum) = (record::INSERT, hasher.finalize());
        Draft { kind, info, head, payload, checksum, lanes, expiry: None }
    }

    pub(super) fn length(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    pub fn frame_bytes(&self, marked: bool) -> u64 {
        frame_bytes(self.length() as u64, marked)
    }
}

/// What a run of frames is for, which decides what space it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Insert,
    Settle,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    /// The ids of the run are in a row from here, in the order of drafts and lanes.
    pub first_id: u64,
    /// Behind the run.
    pub end: Position,
    /// Whether there may be something to maintain.
    pub wake: bool,
    /// Whether the log runs short of pages or segments.
    pub short: bool,
}

/// Why nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Poisoned,
    /// A write to the log has failed just now: the store is poisoned, and nobody knows what of the run is there.
    Failed,
    Closed,
    /// The queue that it is for was removed.
    Removed,
    /// The queue that it is for has a limit, which is seen to under the dispatch lock.
    Limited,
    /// It may use no space before all is there that is held back for the rest.
    HeldBack,
    /// It needs a prepared segment that can hold this many bytes of frames.
    Segment {
        frames_bytes: u64,
    },
    /// It needs a checkpoint: too far ahead of the last cursor, or out of reserved ids.
    Checkpoint {
        ids: u64,
    },
}

/// Where an opened log goes on.
pub(crate) struct Start {
    pub active: Active,
    pub next_id: u64,
    pub id_ceiling: u64,
    pub next_number: u32,
}

pub(crate) struct Log {
    storage: Arc<dyn Storage>,
    space: Arc<Space>,
    settings: LogSettings,
    tail: Lock<Tail>,
    commit: Commit,
}

impl Log {
    pub fn new(
        storage: Arc<dyn Storage>,
        space: Arc<Space>,
        settings: LogSettings,
        start: Start,
    ) -> Log {
        let position = start.active.end();
        let tail = Tail {
            active: Some(start.active),
            next_id: start.next_id,
            id_ceiling: start.id_ceiling,
            next_number: start.next_number,
            prepared: Default::default(),
            discarded: Vec::new(),
            unsynced: Vec::new(),
            sealed: Vec::new(),
            ahead: 0,
            // The cursor proves what was there when the log was opened.
            marked: position,
            sync_by: None,
            written_bytes: 0,
            prefaults: settings.prepare == Prepare::Reserve,
            ended: false,
            closed_at: position,
        };
        Log { storage, space, settings, tail: Lock::new(tail), commit: Commit::new(position) }
    }

    pub fn tail(&self) -> Guard<'_, Tail> {
        self.tail.lock()
    }

    /// Whether no thread has panicked in the middle of an append.
    pub fn is_healthy(&self) -> bool {
        self.tail.try_healthy().is_some()
    }

    pub fn is_poisoned(&self) -> bool {
        self.commit.is_poisoned()
    }

    pub fn failure(&self) -> Option<SyncFailed> {
        self.commit.failure()
    }

    pub fn poison(&self, cause: io::Error) -> SyncFailed {
        self.commit.poison(cause)
    }

    /// All before this position is on stable storage.
    #[inline]
    pub fn synced_through(&self) -> Position {
        self.commit.through()
    }

    /// Appends `run`: all of it or nothing. With `sync_by`, the background thread is to sync it by then; with
    /// `removed`, it is refused once that is set.
    ///
    /// Ensures: once this returns Ok the run survives the death of the process, and recovery sees nothing of it
    /// before it sees all of it.
    pub fn append(
        &self,
        run: &[Draft<'_>],
        purpose: Purpose,
        sync_by: Option<Instant>,
        removed: Option<&AtomicBool>,
    ) -> Result<Appended, Refused> {
        self.append_if(run, purpose, sync_by, |_| match removed {
            Some(removed) if removed.load(Ordering::Relaxed) => Err(Refused::Removed),
            _ => Ok(()),
        })
    }

    /// As [`append`](Log::append), if `admit` agrees. It is asked when nothing else can refuse the run any more, and
    /// nothing comes between its answer and the run.
    #[inline]
    pub fn append_if(
        &self,
        run: &[Draft<'_>],
        purpose: Purpose,
        sync_by: Option<Instant>,
        admit: impl FnOnce(&Tail) -> Result<(), Refused>,
    ) -> Result<Appended, Refused> {
        let mut guard = self.tail.lock();
        let tail = &mut *guard;
        if self.commit.is_poisoned() {
            return Err(Refused::Poisoned);
        }
        if tail.ended {
            return Err(Refused::Closed);
        }
        let may_use_all = purpose == Purpose::Settle || planted(Bug::HeldBackSpaceUsed);
        if !may_use_all && !self.space.is_complete() {
            return Err(Refused::HeldBack);
        }
        let ids: u64 = run.iter().map(|draft| draft.lanes.len() as u64).sum();
        if ids > 0 && tail.next_id + ids > tail.id_ceiling {
            return Err(Refused::Checkpoint { ids });
        }
        let mark = Some(self.commit.through()).filter(|through| *through > tail.marked);
        let bytes = run
            .iter()
            .enumerate()
            .map(|(n, draft)| draft.frame_bytes(n == 0 && mark.is_some()))
            .sum();
        let mut wake = false;
        if !tail.active.as_ref().ok_or(Refused::Closed)?.fits(bytes, tail.next_id + ids) {
            self.roll(tail, bytes)?;
            wake = true;
        }
        admit(tail)?;
        let active = tail.active.as_mut().ok_or(Refused::Closed)?;
        let first_id = tail.next_id;
        let first_expiry = active.index.first_expiry();
        active.write_run(run, mark, first_id).map_err(|error| self.fail(error))?;
        // It has to wake up earlier.
        wake |= active.index.first_expiry() != first_expiry;
        let end = active.end();
        tail.next_id += ids;
        tail.written_bytes += bytes;
        tail.marked = mark.unwrap_or(tail.marked);
        if let Some(by) = sync_by
            && tail.sync_by.is_none_or(|earlier| by < earlier)
        {
            tail.sync_by = Some(by);
            wake = true;
        }
        let short = (tail.wants_segment() && !self.space.is_full()) || tail.wants_pages();
        Ok(Appended { first_id, end, wake, short })
    }

    /// A write to the log has failed: nothing may follow it.
    fn fail(&self, error: io::Error) -> Refused {
        self.commit.poison(error);
        Refused::Failed
    }

    /// Seals the active segment and goes on in a prepared one.
    fn roll(&self, tail: &mut Tail, frames_bytes: u64) -> Result<(), Refused> {
        if tail.ahead >= SEGMENTS_AHEAD_MAX {
            return Err(Refused::Checkpoint { ids: 0 });
        }
        let at = tail.next_prepared(frames_bytes).ok_or(Refused::Segment { frames_bytes })?;
        // Smaller ones have lower numbers, which cannot come later in the log.
        tail.discarded.extend(tail.prepared.drain(..at));
        let next = tail.prepared.pop_front().ok_or(Refused::Segment { frames_bytes })?;
        let mut old = tail.active.take().ok_or(Refused::Closed)?;
        let mut body = Vec::with_capacity(5);
        record::encode_roll(next.header.number, &mut body);
        let roll = [Draft::record(record::ROLL, &body)];
        let begun = old.write_run(&roll, None, tail.next_id);
        match begun.and_then(|()| Active::begin(next, tail.next_id)) {
            Ok(next) => {
                tail.seal_active(old);
                tail.active = Some(next);
                Ok(())
            }
            Err(error) => {
                // Nothing is appended any more, and whoever looks finds the log as it was.
                tail.active = Some(old);
                Err(self.fail(error))
            }
        }
    }

    /// Returns when all before `target` is on stable storage.
    pub fn sync_to(&self, target: Position) -> Result<(), SyncFailed> {
        self.commit.wait(target, || {
            let mut tail = self.tail.lock();
            tail.sync_by = None;
            let mut files: Vec<Arc<dyn File>> = std::mem::take(&mut tail.unsynced);
            files.extend(tail.active.as_ref().map(|active| active.file.clone()));
            Unsynced { end: tail.end(), files }
        })
    }

    /// Makes a segment ready that can hold `frames_bytes`. Touches the disk; one caller at a time.
    pub fn prepare(
        &self,
        frames_bytes: u64,
        purpose: Purpose,
        created_at: u64,
    ) -> Result<(), PrepareFailed> {
        let before = self.tail.lock().newest_bytes();
        let least = file_bytes(frames_bytes);
        let bytes = least.max(self.settings.next_segment_bytes(before));
        let mut prepared = self.make(least..=bytes, purpose, created_at)?;
        prepared.present = self.tail.lock().prefault_bytes().min(prepared.writer.len());
        prepared.writer.mapping().prefault(0..prepared.present);
        self.tail.lock().prepared.push_back(prepared);
        Ok(())
    }

    /// A number that no segment has had.
    pub fn take_number(&self) -> io::Result<u32> {
        let mut tail = self.tail.lock();
        let number = tail.next_number;
        tail.next_number = number.checked_add(1).ok_or_else(no_number_left)?;
        Ok(number)
    }

    /// A number that nothing was made with; unless another one was taken since.
    fn give_number_back(&self, number: u32) {
        let mut tail = self.tail.lock();
        if tail.next_number == number + 1 {
            tail.next_number = number;
        }
    }

    /// A salt for a segment that the appender does not write.
    pub fn new_salt(&self) -> io::Result<u64> {
        self.settings.entropy.next_u64()
    }

    /// Makes the file of the next segment, durable under its name.
    fn make(
        &self,
        bytes: RangeInclusive<u64>,
        purpose: Purpose,
        created_at: u64,
    ) -> Result<Prepared, PrepareFailed> {
        let number = self.take_number().map_err(PrepareFailed::Create)?;
        let made = prepare_file(&self.space, &self.settings, number, bytes, purpose, created_at);
        let prepared = made.map_err(|error| {
            // Whoever asks a full disk again and again must not use up the numbers. One whose name is taken is no good.
            if error.kind() != io::ErrorKind::AlreadyExists {
                self.give_number_back(number);
            }
            PrepareFailed::Create(error)
        })?;
        sync_prepared(&*self.storage, &prepared)
            .map_err(|error| PrepareFailed::Sync(self.commit.poison(error)))?;
        Ok(prepared)
    }

    /// Seals the active segment, and goes on in a short one.
    pub fn seal_for_rest(&self, created_at: u64) -> Result<(), PrepareFailed> {
        let bytes = u64::from(self.settings.rest_segment_bytes());
        let prepared = self.make(bytes..=bytes, Purpose::Insert, created_at)?;
        let mut tail = self.tail.lock();
        // They are too large for a store at rest, and have lower numbers.
        let passed_over: Vec<Prepared> = tail.prepared.drain(..).collect();
        tail.discarded.extend(passed_over);
        tail.prepared.push_back(prepared);
        // A log that is too far ahead of its cursor stays in its segment.
        let _ = self.roll(&mut tail, 0);
        Ok(())
    }

    /// Makes the next pages present that appends will write to. Whether there were any to make.
    pub fn prefault(&self) -> bool {
        let wanted = self.tail.lock().take_pages();
        let Some((mapping, pages)) = wanted else { return false };
        mapping.prefault(pages);
        true
    }

    /// Ends appending.
    pub fn close(&self) {
        let mut guard = self.tail.lock();
        let tail = &mut *guard;
        tail.closed_at = tail.end();
        if let Some(active) = tail.active.take() {
            // Whoever still waits for a sync needs it.
            tail.unsynced.push(active.file);
        }
        tail.discarded.extend(tail.prepared.drain(..));
    }

    /// The names of prepared segments that will not be used: they were passed over, or the log is closed.
    pub fn take_unused(&self) -> Vec<String> {
        let unused = std::mem::take(&mut self.tail.lock().discarded);
        unused.iter().map(|prepared| segment_name(prepared.header.number)).collect()
    }
}

#[cfg(test)]
mod tests;
