//! Pausing: a queue from which nothing is got, because somebody said so or because it has failed too often in a row.
//!
//! The record that says so stands behind a declaration of the queue, in one run. So the newest declaration of a queue
//! always tells whether it is paused, and it is carried forward for as long as there is the queue: see
//! [`declare_again`](Engine::declare_again).

use std::sync::Arc;

use super::queue_entry::QueueEntry;
use super::state::State;
use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::dispatch::{Entry, Place};
use crate::error::Result;
use crate::events;
use crate::log::{Purpose, Refused};
use crate::options::Durability;
use crate::report::Paused;

/// How many messages are spared in one append.
const SPARED_CHUNK: usize = 1024;

impl QueueEntry {
    /// Whether it has failed so often in a row that it is to pause.
    pub fn is_failing(&self) -> bool {
        self.touched.streak.reaches(self.options.pause_after_failures)
    }

    /// Whether failures do not use messages up: they say more of what the consumers need than of the messages.
    pub fn spares(&self) -> bool {
        self.is_failing() || matches!(self.pause, Some(Paused::ByFailures(_)))
    }

    /// Failures count anew, and consumers go on.
    fn end_outage(&mut self) {
        self.touched.streak.end();
        self.shared.signal.notify_all();
    }

    /// Some of the ready messages whose attempts are used up, with one left. The next get would give them up.
    fn spared(&self) -> Vec<(u64, Entry)> {
        let Some(most) = self.options.max_attempts else { return Vec::new() };
        let exhausted = self
            .touched
            .range(..)
            .filter(|(_, entry)| entry.place == Place::GivenBack && entry.attempts >= most);
        // Whoever holds one whose lease is over may still settle it.
        let spared =
            exhausted.map(|(id, entry)| (id, Entry { attempts: most - 1, ..entry.clone() }));
        spared.take(SPARED_CHUNK).collect()
    }
}

impl Engine {
    /// Pauses a queue, or resumes it. Durable as a declaration is. What has failed in an outage until a resume has one more
    /// attempt, also what was in flight when the queue paused itself.
    pub fn set_paused(&self, queue: &Arc<QueueShared>, pause: Option<Paused>) -> Result<()> {
        let end = loop {
            self.check_alive()?;
            let now = self.now();
            let mut state = self.lock_open()?;
            let entry = queue_mut(&mut state, queue)?;
            entry.touched.advance(now.mono, now.wall_ms);
            let spared =
                if pause.is_none() && entry.spares() { entry.spared() } else { Vec::new() };
            let refused = if !spared.is_empty() {
                self.record_spared(queue, entry, spared).err()
            } else if entry.pause.is_some() != pause.is_some() {
                self.record_pause(&mut state, queue, pause)?
            } else {
                if pause.is_none() && entry.is_failing() {
                    // It is about to pause itself, and no more.
                    entry.end_outage();
                }
                break entry.declared_at;
            };
            drop(state);
            if let Some(refused) = refused {
                self.make_room(refused, Purpose::Settle)?;
            }
        };
        if self.settings.durability == Durability::Sync {
            self.sync_to(end)?;
        }
        Ok(())
    }

    /// Pauses a queue that has failed too often in a row. What its last failures have used up gets one more attempt, or
    /// the first gets after a resume would give it up.
    pub(super) fn pause_for_failures(&self, queue: &Arc<QueueShared>) -> Result<()> {
        loop {
            self.check_alive()?;
            let mut state = self.lock_open()?;
            let entry = queue_mut(&mut state, queue)?;
            if entry.pause.is_some() || !entry.is_failing() {
                return Ok(());
            }
            let failures = entry.touched.streak.count();
            let spared = entry.spared();
            let refused = if spared.is_empty() {
                let why = Some(Paused::ByFailures(failures));
                let refused = self.record_pause(&mut state, queue, why)?;
                if refused.is_none() {
                    drop(state);
                    // Outside of the locks: what listens may take its time, or use the store.
                    events::paused_itself(&queue.name, failures);
                    return Ok(());
                }
                refused
            } else {
                self.record_spared(queue, entry, spared).err()
            };
            drop(state);
            if let Some(refused) = refused {
                self.make_room(refused, Purpose::Settle)?;
            }
        }
    }

    fn record_spared(
        &self,
        queue: &QueueShared,
        entry: &mut QueueEntry,
        spared: Vec<(u64, Entry)>,
    ) -> std::result::Result<(), Refused> {
        let appended = self.append_given_back(queue, &spared)?;
        spared.into_iter().for_each(|(id, spared)| entry.touched.put(id, spared));
        self.after_append(&appended);
        Ok(())
    }

    /// Records that a queue is paused, or is not any more, or says why that was refused.
    fn record_pause(
        &self,
        state: &mut State,
        queue: &QueueShared,
        pause: Option<Paused>,
    ) -> Result<Option<Refused>> {
        let entry = queue_mut(state, queue)?;
        let purpose = Purpose::Settle;
        let options = &entry.options;
        match self.append_declare(queue.id, &queue.name, options, Some(pause), purpose)? {
            Ok(end) => entry.declared_at = end,
            Err(refused) => return Ok(Some(refused)),
        }
        entry.pause = pause;
        if pause.is_none() {
            entry.end_outage();
        }
        Ok(None)
    }
}
