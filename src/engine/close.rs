//! Closing: no more gets, then no more of anything, then a cursor that ends exactly where the log does.

use std::sync::Arc;
use std::time::Duration;

use super::compact::COPY_NAME;
use super::queue_entry::QueueEntry;
use super::state::State;
use super::{Engine, open, poisoned};
use crate::clock::real_now;
use crate::dispatch::{Entry, Place};
use crate::error::Result;
use crate::format::record::SET;
use crate::format::record::settle::{Placed, encode_set};
use crate::log::{Draft, PrepareFailed, Purpose, Segment};
use crate::planted::{Bug, planted};
use crate::storage::{Lock as DirectoryLock, Spare};
use crate::sync::atomic::Ordering;

/// How much of the log an open may have to read after a close, in bytes: a fraction of a millisecond's work.
const READ_BY_OPEN_MAX: u64 = 256 << 10;

/// How much a closed store may have reserved for what comes later, in bytes.
const RESERVED_AT_REST_MAX: u64 = 1 << 20;

/// What a close found still in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// Messages that were in flight when the close began and were settled in time, or whose lease ran out.
    pub settled: u64,
    /// Messages that were still in flight at its end; given back, the attempt not counted.
    pub released: u64,
}

impl Engine {
    /// Closes the store: gets end at once, everything else goes on until nothing is in flight or `wait` is over.
    pub fn close(&self, wait: Duration) -> Result<Closed> {
        if self.closing.swap(true, Ordering::AcqRel) {
            return Ok(Closed::default());
        }
        self.wake_all_waiters();
        let began_with = self.wait_for_flight(wait);
        self.stop_background();
        let released = self.release_all();
        // Held to the end: nobody makes files in the directory once its lock is given up.
        let mut maintenance = self.maintenance.lock();
        let _supply = self.supply.lock();
        if maintenance.rewrite.take().is_some() {
            self.space.put_back(Spare::Copy, COPY_NAME);
        }
        let outcome = released.and_then(|released| {
            self.seal_for_rest()?;
            self.checkpoint(&mut maintenance, true)?;
            Ok(Closed { settled: began_with.saturating_sub(released), released })
        });
        let spares = self.spare_bytes();
        {
            // Whoever holds this lock and found the store open may rely on the log having an end.
            let mut state = self.lock_state();
            self.closed.store(true, Ordering::Release);
            self.log.close();
            // Only deliveries keep bytes mapped from now on.
            maintenance.sweep = None;
            state.untrimmed.clear();
            let lanes = state.queues.values_mut().flat_map(|queue| &mut queue.lanes);
            lanes.for_each(|lane| lane.forget(0..=u32::MAX));
            self.hold_mapped(&state);
            state.segments.clear();
            state.retired.clear();
            state.queues.values().for_each(|queue| queue.shared.wake_for_room());
        }
        let outcome = self.give_back_unused().and(outcome);
        if !self.log.is_poisoned() {
            // What was just given back goes to the spares first.
            let _ = self.space.hold_back(spares);
            self.space.let_go_of_copy();
        }
        let note = open::lock_note(self.storage.pid(), "");
        if let Some(lock) = self.directory_lock.lock().take()
            && !self.log.is_poisoned()
        {
            // The next open tells by the cursor, not by the note, that the store was closed.
            let _ = lock.note(&note);
        }
        outcome
    }

    /// Seals the active segment and begins a short one, if an open would have to read much of it, or if it has reserved
    /// much that a closed store does not need. Crash windows: those of every roll.
    fn seal_for_rest(&self) -> Result<()> {
        let read_max = READ_BY_OPEN_MAX.min(self.settings.segment_bytes / 4);
        let (used, reserved) = self.log.tail().active_bytes();
        if used <= read_max && reserved - used <= RESERVED_AT_REST_MAX {
            return Ok(());
        }
        match self.log.seal_for_rest(self.now().wall_ms) {
            Ok(()) if self.log.is_poisoned() => return Err(self.write_failed()),
            Ok(()) => {}
            // There is no space for another segment; then this one stays as it is.
            Err(PrepareFailed::Create(_)) => return Ok(()),
            Err(PrepareFailed::Sync(failed)) => {
                self.on_poison();
                return Err(poisoned(Some(failed)));
            }
        }
        let end = self.log.tail().end();
        self.sync_to(end)?;
        self.trim_sealed();
        while self.write_index()? {}
        Ok(())
    }

    /// Closes the store for the last handle. After a panic inside of it nothing is written any more, as after a kill:
    /// its state cannot be trusted, and a second panic in a drop would end the process.
    pub fn close_on_drop(&self) {
        let trusted = self.state.try_healthy().is_some()
            && self.maintenance.try_healthy().is_some()
            && self.supply.try_healthy().is_some()
            && self.space.is_healthy()
            && self.log.is_healthy();
        if trusted {
            let _ = self.close(Duration::ZERO);
        } else {
            self.stop_background();
            // A delivery may still be there, and must not write to what is another's from here on.
            self.closed.store(true, Ordering::Release);
            if self.log.is_healthy() {
                self.log.close();
            }
            self.hold_mapped(&self.state.lock_anyway());
            self.directory_lock.lock_anyway().take();
        }
    }

    /// Holds the files of segments that somebody has, deliveries above all: they may keep them longer than this engine
    /// keeps the directory locked, and whoever has it next must not change what they have mapped.
    fn hold_mapped(&self, state: &State) {
        let segments = state.segments.iter().map(|s| &s.segment);
        let segments = segments.chain(state.retired.iter().map(|r| &r.segment));
        let is_mapped = |segment: &&Arc<Segment>| {
            Arc::strong_count(segment) > 1 && !planted(Bug::DeliveryNotHeld)
        };
        let is_unheld = |segment: &&Arc<Segment>| segment.hold(&*self.storage).is_err();
        let unheld: Vec<_> = segments.filter(is_mapped).filter(is_unheld).collect();
        if unheld.is_empty() {
            return;
        }
        // Then nobody has the directory next before those are gone.
        if let Some(lock) = self.directory_lock.lock_anyway().take() {
            let lock: Arc<dyn DirectoryLock> = lock.into();
            unheld.iter().for_each(|segment| segment.hold_by(Box::new(lock.clone())));
        }
    }

    /// Waits until nothing is in flight, since it was settled or its lease is over, or for `wait`; returns how much was in
    /// flight at first.
    fn wait_for_flight(&self, wait: Duration) -> u64 {
        let until = real_now().checked_add(wait);
        let mut state = self.lock_state();
        let mut first = None;
        loop {
            let now = self.now();
            let mut left = match until {
                Some(until) => until.saturating_duration_since(real_now()),
                None => Duration::from_secs(3600),
            };
            let is_over = left.is_zero();
            let mut in_flight = 0;
            for QueueEntry { touched, .. } in state.queues.values_mut() {
                touched.advance(now.mono, now.wall_ms);
                in_flight += touched.in_flight();
                if let Some(end) = touched.next_deadline() {
                    left = left.min(end.saturating_duration_since(now.mono));
                }
            }
            let began_with = *first.get_or_insert(in_flight);
            if in_flight == 0 || is_over || self.log.is_poisoned() {
                return began_with;
            }
            state = self.settled.wait_for(state, left);
        }
    }

    /// Gives back whatever is in flight, uncounted.
    fn release_all(&self) -> Result<u64> {
        self.check_alive()?;
        let mut released = 0;
        // All before it was looked at.
        let mut from = (0, 0);
        loop {
            let now = self.now();
            let mut state = self.lock_state();
            for queue in state.queues.values_mut() {
                // A lease that has run out was a failed attempt, noticed or not.
                queue.touched.advance(now.mono, now.wall_ms);
            }
            let found = state.queues.range(from.0..).find_map(|(&number, queue)| {
                let first = if number == from.0 { from.1 } else { 0 };
                let mut in_flight =
                    queue.touched.range(first..).filter(|(_, e)| e.place == Place::InFlight);
                in_flight.next().map(|(id, e)| (number, id, e.priority, e.attempts))
            });
            let Some((queue, id, priority, attempts)) = found else {
                if from == (0, 0) {
                    return Ok(released);
                }
                // A lease that was over may have been extended since.
                from = (0, 0);
                continue;
            };
            let attempts = attempts.saturating_sub(1);
            let mut body = Vec::new();
            let run = std::iter::once((id, 1));
            let placed =
                Placed { place: Place::GivenBack, fresh: false, priority, attempts, due: 0 };
            encode_set(queue, placed, run, "", &mut body);
            match self.log.append(&[Draft::record(SET, &body)], Purpose::Settle, None, None) {
                Ok(_) => {
                    if let Some(queue) = state.queues.get_mut(&queue) {
                        queue.touched.put(id, Entry::given_back(priority, attempts));
                    }
                    released += 1;
                    from = (queue, id + 1);
                }
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Settle)?;
                }
            }
        }
    }
}
