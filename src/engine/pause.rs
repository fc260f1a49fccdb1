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
use crate::log::Purpose;
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
    /// Pauses a queue, or resumes it. Durable as a declaration is.
    pub fn set_paused(&self, queue: &Arc<QueueShared>, pause: Option<Paused>) -> Result<()> {
        let end = loop {
            self.check_alive()?;
            let mut state = self.lock_open()?;
            let entry = queue_mut(&mut state, queue)?;
            if entry.pause.is_some() == pause.is_some() {
                break entry.declared_at;
            }
            if let Some(refused) = self.record_pause(&mut state, queue, pause)? {
                drop(state);
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
                match self.append_given_back(queue, &spared) {
                    Ok(appended) => {
                        spared.into_iter().for_each(|(id, spared)| entry.touched.put(id, spared));
                        self.after_append(&appended);
                        None
                    }
                    Err(refused) => Some(refused),
                }
            };
            drop(state);
            if let Some(refused) = refused {
                self.make_room(refused, Purpose::Settle)?;
            }
        }
    }

    /// Records that a queue is paused, or is not any more, or says why that was refused.
    fn record_pause(
        &self,
        state: &mut State,
        queue: &QueueShared,
        pause: Option<Paused>,
    ) -> Result<Option<crate::log::Refused>> {
        let entry = queue_mut(state, queue)?;
        let purpose = Purpose::Settle;
        let options = &entry.options;
        match self.append_declare(queue.id, &queue.name, options, Some(pause), purpose)? {
            Ok(end) => entry.declared_at = end,
            Err(refused) => return Ok(Some(refused)),
        }
        entry.pause = pause;
        if pause.is_none() {
            entry.touched.streak.end();
            queue.signal.notify_all();
        }
        Ok(None)
    }
}
