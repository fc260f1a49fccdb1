//! What becomes of a message after it was delivered: deleted, given back, delayed, buried, or moved to another
//! queue.
//!
//! Each change is decided and recorded under the dispatch lock, so that a delivery that has become stale changes
//! nothing. No settling waits for a consumer, and none needs space that is not held back for it, but for a move to
//! a dead letter queue, which falls back to burying the message where it is.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::scratch::with_scratch;
use super::state::State;
use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::clock::{Now, millis, wall_time};
use crate::dispatch::{Entry, Place};
use crate::error::{Error, Result};
use crate::format::position::Position;
use crate::format::record::settle::{Placed, encode_delete, encode_set};
use crate::format::record::{DELETE, SET};
use crate::log::{Appended, Draft, Purpose, Refused, Segment};
use crate::options::{Durability, OnDrop, QueueOptions};
use crate::planted::{Bug, planted};
use crate::report::Damage;
use crate::sync::atomic::Ordering;

/// A message as a delivery holds it.
#[derive(Clone)]
pub(crate) struct HeldBy {
    pub queue: Arc<QueueShared>,
    pub id: u64,
    pub token: u64,
    /// What it takes, as limits count it.
    pub bytes: u64,
}

/// What became of a message whose attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It is delivered again, not before this time.
    RetryAt(SystemTime),
    /// Its attempts are used up, and it was moved to the dead letter queue.
    DeadLettered,
    /// Its attempts are used up, and it is kept in its queue as buried.
    Buried,
}

/// Who asks for a message to be buried.
#[derive(Clone, Copy)]
pub(super) enum Claimant {
    /// A delivery.
    Token(u64),
    /// The store itself, of a message that is given back.
    Store,
    /// The store, of one whose attempts are used up.
    Exhausted,
}

impl Claimant {
    pub(super) fn check<'a>(
        self,
        state: &'a State,
        queue: &QueueShared,
        id: u64,
    ) -> Result<&'a Entry> {
        let touched = state.queues.get(&queue.id).map(|entry| &entry.touched);
        let entry = touched.ok_or_else(super::removed)?;
        match self {
            Claimant::Token(token) => entry.holder(id, token).map_err(|_| Error::stale()),
            Claimant::Store => {
                let given_back = |entry: &&Entry| entry.place == Place::GivenBack;
                entry.get(id).filter(given_back).ok_or_else(Error::stale)
            }
            Claimant::Exhausted => {
                let queue = state.queues.get(&queue.id).filter(|queue| !queue.spares());
                let most = queue.and_then(|queue| queue.options.max_attempts);
                let is_used_up = |entry: &&Entry| {
                    entry.place == Place::GivenBack && most.is_some_and(|m| entry.attempts >= m)
                };
                entry.get(id).filter(is_used_up).ok_or_else(Error::stale)
            }
        }
    }
}

impl Engine {
    /// Deletes a message. Under `Sync`, returns when that is durable.
    pub fn delete(&self, held: &HeldBy) -> Result<()> {
        let deleted = self.try_delete(held);
        self.settled_or_given_back(held, deleted)
    }

    /// A delivery is used up by settling. If that could not be recorded for want of space, the message is given back,
    /// its attempt counted: in memory alone, since "in flight" reads the same in the log after a restart.
    fn settled_or_given_back<T>(&self, held: &HeldBy, settled: Result<T>) -> Result<T> {
        if settled.as_ref().is_err_and(Error::is_retryable) {
            self.give_back(held);
        }
        settled
    }

    fn give_back(&self, held: &HeldBy) {
        let mut state = self.lock_state();
        if let Some(queue) = state.queues.get_mut(&held.queue.id)
            && let Ok(entry) = queue.touched.holder(held.id, held.token)
        {
            let given_back = Entry::given_back(entry.priority, entry.attempts);
            queue.touched.put(held.id, given_back);
            held.queue.signal.notify_one();
        }
    }

    fn try_delete(&self, held: &HeldBy) -> Result<()> {
        let end = loop {
            self.check_alive()?;
            let mut state = self.lock_state();
            Claimant::Token(held.token).check(&state, &held.queue, held.id)?;
            match self.append_delete(held.queue.id, &[held.id]) {
                Ok(appended) => {
                    state.forget(held.queue.id, held.id, Some(held.bytes));
                    end_streak(&mut state, held.queue.id);
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
        if self.settings.delete_durability == Durability::Sync && !planted(Bug::DeleteNotSynced) {
            self.sync_to(end)?;
        }
        Ok(())
    }

    /// Deletes those of `held` that are not stale, in one append for each queue and thousand. Returns how many were
    /// deleted.
    pub fn delete_batch(&self, mut held: Vec<&HeldBy>) -> Result<u64> {
        held.sort_unstable_by_key(|held| (held.queue.id, held.id));
        let deleted = self.delete_chunks(&held);
        if deleted.as_ref().is_err_and(Error::is_retryable) {
            held.into_iter().for_each(|held| self.give_back(held));
        }
        deleted
    }

    /// `held` by queue and id.
    fn delete_chunks(&self, held: &[&HeldBy]) -> Result<u64> {
        const CHUNK: usize = 1000;
        let mut deleted = 0;
        let mut end = None;
        for queue in held.chunk_by(|a, b| a.queue.id == b.queue.id) {
            for chunk in queue.chunks(CHUNK) {
                let (count, appended_to) = self.delete_chunk(chunk)?;
                deleted += count;
                end = end.max(appended_to);
            }
        }
        if let Some(end) = end.filter(|_| self.settings.delete_durability == Durability::Sync) {
            self.sync_to(end)?;
        }
        Ok(deleted)
    }

    fn delete_chunk(&self, chunk: &[&HeldBy]) -> Result<(u64, Option<Position>)> {
        loop {
            self.check_alive()?;
            let mut state = self.lock_state();
            let mut valid = chunk.to_vec();
            valid.retain(|held| {
                Claimant::Token(held.token).check(&state, &held.queue, held.id).is_ok()
            });
            let ids: Vec<u64> = valid.iter().map(|held| held.id).collect();
            let (Some(first), false) = (chunk.first(), ids.is_empty()) else {
                return Ok((0, None));
            };
            let queue = first.queue.id;
            match self.append_delete(queue, &ids) {
                Ok(appended) => {
                    for held in valid {
                        state.forget(queue, held.id, Some(held.bytes));
                    }
                    end_streak(&mut state, queue);
                    self.after_settle(&mut state);
                    drop(state);
                    self.after_append(&appended);
                    return Ok((ids.len() as u64, Some(appended.end)));
                }
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Settle)?;
                }
            }
        }
    }

    /// Appends that `ids`, ascending, are deleted.
    pub(super) fn append_delete(
        &self,
        queue: u32,
        ids: &[u64],
    ) -> std::result::Result<Appended, Refused> {
        let sync_by = self.sync_by(self.settings.delete_durability);
        with_scratch(|body| {
            encode_delete(queue, ids.iter().map(|&id| (id, 1)), body);
            self.log.append(&[Draft::record(DELETE, body)], Purpose::Settle, sync_by, None)
        })
    }

    /// What has to be looked at when a message has left the flight.
    pub(super) fn after_settle(&self, state: &mut State) {
        if state.reclaimable {
            self.background.wake();
        }
        if self.closing.load(Ordering::Acquire) {
            self.settled.notify_all();
        }
    }

    /// Gives a message back, uncounted, after `delay`.
    pub fn release(&self, held: &HeldBy, delay: Duration) -> Result<()> {
        let released = self.put(held, |entry, _, now| {
            let attempts = entry.attempts.saturating_sub(1);
            (later(entry.priority, attempts, now, delay), ())
        });
        self.settled_or_given_back(held, released)
    }

    /// Counts the attempt as failed. `delay` stands in for the queue's backoff.
    pub fn fail(&self, held: &HeldBy, why: &str, delay: Option<Duration>) -> Result<Fate> {
        let failed = self.try_fail(held, why, delay);
        self.settled_or_given_back(held, failed)
    }

    fn try_fail(&self, held: &HeldBy, why: &str, delay: Option<Duration>) -> Result<Fate> {
        let (exhausted, spared) = {
            let mut state = self.lock_state();
            let entry = Claimant::Token(held.token).check(&state, &held.queue, held.id)?;
            let (attempts, place) = (entry.attempts, entry.place);
            let queue = queue_mut(&mut state, &held.queue)?;
            // If its lease is over, that has counted.
            if place == Place::InFlight {
                queue.touched.streak.failed();
            }
            let most = queue.options.max_attempts;
            (most.is_some_and(|most| attempts >= most), queue.spares())
        };
        if exhausted && !spared {
            return self.retire(&held.queue, held.id, Claimant::Token(held.token), why);
        }
        let fate = self.put(held, |entry, options, now| {
            let delay = delay.unwrap_or_else(|| options.backoff.delay(held.id, entry.attempts));
            let attempts = entry.attempts.saturating_sub(exhausted.into());
            let entry = later(entry.priority, attempts, now, delay);
            let at = if entry.place == Place::Delayed { entry.due_ms } else { now.wall_ms };
            (entry, Fate::RetryAt(wall_time(at)))
        })?;
        if spared {
            // The failure is recorded. If this cannot be, the next get tries again, and takes nothing before.
            let _ = self.pause_for_failures(&held.queue);
        }
        Ok(fate)
    }

    /// Lets the message's lease end `lease` from now.
    pub fn extend(&self, held: &HeldBy, lease: Duration) -> Result<()> {
        self.check_alive()?;
        let now = self.now();
        let deadline = now.mono.checked_add(lease);
        let mut state = self.lock_state();
        let queue = queue_mut(&mut state, &held.queue)?;
        queue.touched.extend(held.id, held.token, deadline).map_err(|_| Error::stale())?;
        queue.set_timer(now);
        Ok(())
    }

    /// Takes the message out of circulation: to the dead letter queue, or buried.
    pub fn bury(&self, held: &HeldBy, why: &str) -> Result<()> {
        let buried = self.retire(&held.queue, held.id, Claimant::Token(held.token), why);
        self.settled_or_given_back(held, buried.map(|_| ()))
    }

    fn put<T>(
        &self,
        held: &HeldBy,
        decide: impl Fn(&Entry, &QueueOptions, Now) -> (Entry, T),
    ) -> Result<T> {
        self.put_as(&held.queue, held.id, Claimant::Token(held.token), decide)
    }

    /// Puts a message into the state that `decide` says, and records it.
    pub(super) fn put_as<T>(
        &self,
        queue: &QueueShared,
        id: u64,
        claimant: Claimant,
        decide: impl Fn(&Entry, &QueueOptions, Now) -> (Entry, T),
    ) -> Result<T> {
        loop {
            self.check_alive()?;
            let now = self.now();
            let mut state = self.lock_state();
            let entry = claimant.check(&state, queue, id)?;
            let options = &state.queues.get(&queue.id).ok_or_else(super::removed)?.options;
            let (entry, outcome) = decide(entry, options, now);
            let sync_by = self.settle_by();
            let appended = with_scratch(|body| {
                let reason = entry.reason.as_deref().unwrap_or_default();
                encode_set(queue.id, placed(&entry), std::iter::once((id, 1)), reason, body);
                self.log.append(&[Draft::record(SET, body)], Purpose::Settle, sync_by, None)
            });
            match appended {
                Ok(appended) => {
                    let ready = entry.place == Place::GivenBack;
                    let changed = queue_mut(&mut state, queue)?;
                    changed.touched.put(id, entry);
                    changed.wake_for_groups();
                    if ready {
                        queue.signal.notify_one();
                    } else {
                        changed.set_timer(now);
                    }
                    self.after_settle(&mut state);
                    drop(state);
                    self.after_append(&appended);
                    return Ok(outcome);
                }
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Settle)?;
                }
            }
        }
    }

    /// A delivery was dropped without having been settled. Silent when that can no longer be recorded.
    pub fn abandon(&self, held: &HeldBy, why: &str) {
        // If a thread panicked inside of the store, this one must not panic too: it may be unwinding.
        let is_healthy = self.maintenance.is_healthy()
            && self.supply.is_healthy()
            && self.space.is_healthy()
            && self.log.is_healthy();
        let state = if is_healthy { self.state.try_healthy() } else { None };
        let on_drop = state
            .and_then(|state| state.queues.get(&held.queue.id).map(|queue| queue.options.on_drop));
        let _ = match on_drop {
            Some(OnDrop::Fail) => self.fail(held, why, None).map(|_| ()),
            Some(OnDrop::Release) => self.release(held, Duration::ZERO),
            None => Ok(()),
        };
    }

    /// Deletes a message whose bytes are damaged, and reports it; one that is in no index is only forgotten.
    pub(super) fn drop_damaged(
        &self,
        queue: &Arc<QueueShared>,
        id: u64,
        at: Option<(&Arc<Segment>, u32)>,
    ) -> Result<()> {
        let (file, offset) = match at {
            Some((segment, offset)) => (self.storage.path(&segment.name()), offset),
            None => (self.storage.path(""), 0),
        };
        let what = "a message that does not verify".to_owned();
        let damage = Damage { file, offset: offset.into(), bytes: 0, ids: id..id + 1, what };
        if let Some((segment, offset)) = at {
            let name = segment.name();
            let note = format!("message {id} of queue {:?} does not verify\n", queue.name);
            super::walk::set_aside(&*self.storage, &name, offset.into(), 4096, &note);
        }
        loop {
            self.check_alive()?;
            let mut state = self.lock_state();
            let moved = at.is_some_and(|(segment, _)| !state.lies_in(id, segment));
            if (moved || state.is_deleted(id))
                && !queue_mut(&mut state, queue)?.touched.contains(id)
            {
                return Ok(());
            }
            if at.is_none() {
                // Nothing counts it, and so nothing may count it as deleted.
                let entry = queue_mut(&mut state, queue)?;
                entry.touched.remove(id);
                entry.wake_for_groups();
                state.damaged_messages += 1;
                state.damage.push(damage);
                return Ok(());
            }
            match self.append_delete(queue.id, &[id]) {
                Ok(appended) => {
                    state.forget(queue.id, id, None);
                    state.damaged_messages += 1;
                    state.damage.push(damage);
                    // Without it the segment may be rewritten.
                    if let Some(at) = state.segment_of(id) {
                        state.segments[at].damaged = false;
                    }
                    self.after_settle(&mut state);
                    drop(state);
                    self.after_append(&appended);
                    return Ok(());
                }
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Settle)?;
                }
            }
        }
    }
}

/// An attempt has succeeded.
fn end_streak(state: &mut State, queue: u32) {
    if let Some(queue) = state.queues.get_mut(&queue) {
        queue.touched.streak.end();
    }
}

pub(super) fn placed(entry: &Entry) -> Placed {
    let Entry { place, fresh, priority, attempts, due_ms, .. } = *entry;
    Placed { place, fresh, priority, attempts, due: due_ms }
}

/// Given back at once, or after a delay.
fn later(priority: u8, attempts: u32, now: Now, delay: Duration) -> Entry {
    if delay.is_zero() {
        return Entry::given_back(priority, attempts);
    }
    // A delay of less than a millisecond is one.
    let due_ms = now.wall_ms.saturating_add(millis(delay).max(1));
    Entry::delayed(priority, attempts, due_ms)
}
