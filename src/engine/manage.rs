//! What is done to messages from outside, by whoever looks after a queue: kicked, and deleted by their ids.

use std::ops::Bound;
use std::sync::Arc;

use super::scratch::with_scratch;
use super::settle::placed;
use super::state::{Located, State};
use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::dispatch::{Entry, Place};
use crate::error::Result;
use crate::format::record::SET;
use crate::format::record::settle::encode_set;
use crate::log::{Appended, Draft, Lane, Log, Purpose, Refused};
use crate::options::Durability;

/// How many messages are kicked in one append.
const KICK_CHUNK: usize = 1024;

impl Engine {
    /// Makes up to `max` buried messages ready again, the oldest first, as if they were new; returns how many.
    pub fn kick(&self, queue: &Arc<QueueShared>, max: u64) -> Result<u64> {
        let mut kicked = 0;
        let mut from = Bound::Unbounded;
        while kicked < max {
            self.check_alive()?;
            let mut state = self.lock_open()?;
            let touched = &mut queue_mut(&mut state, queue)?.touched;
            let most = usize::try_from(max - kicked).unwrap_or(KICK_CHUNK).min(KICK_CHUNK);
            let buried = touched.range((from, Bound::Unbounded));
            let buried = buried.filter(|(_, entry)| entry.place == Place::Buried).take(most);
            let given_back: Vec<(u64, Entry)> =
                buried.map(|(id, entry)| (id, Entry::fresh(entry.priority))).collect();
            let Some(&(last, _)) = given_back.last() else { break };
            match self.append_given_back(queue, &given_back) {
                Ok(appended) => {
                    kicked += given_back.len() as u64;
                    from = Bound::Excluded(last);
                    let ids: Vec<u64> = given_back.iter().map(|(id, _)| *id).collect();
                    given_back.into_iter().for_each(|(id, entry)| touched.put(id, entry));
                    // What is buried does not expire, so the sweeps have passed it over.
                    if queue.has_expiring() {
                        ids.into_iter().for_each(|id| state.sweep_again(id));
                        self.background.wake();
                    }
                    queue.signal.notify_all();
                    drop(state);
                    self.after_append(&appended);
                }
                Err(refused) => {
                    drop(state);
                    match self.make_room(refused, Purpose::Settle) {
                        // So far it has come.
                        Err(error) if error.is_retryable() && kicked > 0 => break,
                        result => result?,
                    }
                }
            }
        }
        Ok(kicked)
    }

    /// Records that messages, ascending, are given back: one record for each priority and number of attempts, all in one
    /// run.
    pub(super) fn append_given_back(
        &self,
        queue: &QueueShared,
        messages: &[(u64, Entry)],
    ) -> std::result::Result<Appended, Refused> {
        let kind = |entry: &Entry| (entry.priority, entry.attempts, entry.fresh, entry.due_ms);
        let mut sorted: Vec<&(u64, Entry)> = messages.iter().collect();
        sorted.sort_by_key(|(_, entry)| kind(entry));
        with_scratch(|buffer| {
            let mut ends = Vec::new();
            for alike in sorted.chunk_by(|(_, a), (_, b)| kind(a) == kind(b)) {
                let ids = alike.iter().map(|(id, _)| (*id, 1));
                encode_set(queue.id, placed(&alike[0].1), ids, "", buffer);
                ends.push(buffer.len());
            }
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let bodies = starts.zip(&ends).map(|(start, &end)| &buffer[start..end]);
            let run: Vec<Draft<'_>> = bodies.map(|body| Draft::record(SET, body)).collect();
            self.log.append(&run, Purpose::Settle, self.settle_by(), None)
        })
    }

    /// Deletes message `id`, in whatever state it is; whether this queue had it. Under `Sync`, returns when that is
    /// durable.
    pub fn delete_by_id(&self, queue: &Arc<QueueShared>, id: u64) -> Result<bool> {
        let end = loop {
            self.check_alive()?;
            let mut state = self.lock_open()?;
            queue_mut(&mut state, queue)?;
            match state.look_up(queue.id, id, &self.log) {
                Located::At { .. } => {}
                Located::NeedsIndex(segment) => {
                    drop(state);
                    self.load_index(&segment)?;
                    continue;
                }
                Located::Rolled => {
                    state.absorb(&mut self.log.tail());
                    continue;
                }
                Located::Gone => return Ok(false),
            }
            match self.append_delete(queue.id, &[id]) {
                Ok(appended) => {
                    state.forget(queue.id, id, None);
                    self.after_settle(&mut state);
                    drop(state);
                    self.after_append(&appended);
                    break appended.end;
                }
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Settle)?;
                }
            }
        };
        if self.settings.delete_durability == Durability::Sync {
            self.sync_to(end)?;
        }
        Ok(true)
    }
}

impl State {
    /// Where message `id` lies, if it is one of this queue and not deleted. Nothing is believed of the id.
    pub(super) fn look_up(&self, queue: u32, id: u64, log: &Log) -> Located {
        let Some(entry) = self.queues.get(&queue).filter(|_| !self.is_deleted(id)) else {
            return Located::Gone;
        };
        let known = entry.touched.get(id).map(|touched| touched.priority);
        let lanes = entry.lanes.iter().map(|lane| lane.priority());
        let mut priorities = lanes.filter(|priority| known.is_none_or(|known| known == *priority));
        let found =
            priorities.find_map(|priority| match self.locate(Lane { queue, priority }, id, log) {
                Located::Gone => None,
                located => Some(located),
            });
        found.unwrap_or(Located::Gone)
    }
}
