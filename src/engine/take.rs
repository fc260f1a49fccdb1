//! Getting messages: handing out those that are next.
//!
//! Under the dispatch lock the next messages are [chosen](super::choose) and the record that they are in flight is
//! appended; their bytes are read and verified afterwards, outside of the locks. A message whose bytes are damaged is
//! deleted, and the next one taken: it can never be delivered, and must not stand in the way of the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::choose::{Candidate, Detour, unread};
use super::queue_entry::QueueEntry;
use super::scratch::with_scratch;
use super::settle::Claimant;
use super::state::State;
use super::{Content, Engine, HeldBy, QueueShared, removed};
use crate::clock::{Now, real_now};
use crate::dispatch::{Entry, Place};
use crate::error::{Error, Result};
use crate::format::record::SET;
use crate::format::record::settle::{Placed, encode_set};
use crate::lock::Guard;
use crate::log::{Draft, Lane, Purpose, Refused};
use crate::sync::atomic::Ordering;

/// What a get of one message needs no memory for.
pub(crate) type Few<T> = SmallVec<[T; 1]>;

/// A message that was handed out.
pub(crate) struct Taken {
    pub id: u64,
    pub token: u64,
    pub attempt: u32,
    pub deadline: Option<Instant>,
    pub content: Content,
}

/// A message that was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Peeked {
    pub id: u64,
    /// Those that are used, the running one included.
    pub attempts: u32,
    /// When it becomes ready; 0 if it is not delayed.
    pub due_ms: u64,
    pub deadline: Option<Instant>,
    pub reason: Option<Box<str>>,
    pub content: Content,
}

impl Engine {
    /// Takes up to `max` messages, without waiting.
    pub fn try_take(&self, queue: &Arc<QueueShared>, max: usize) -> Result<Few<Taken>> {
        let guard = self.lock_state();
        Ok(self.take_some(queue, max, guard)?.0)
    }

    /// Takes up to `max` messages; waits for the first until `until`, or for as long as it takes.
    pub fn take(
        &self,
        queue: &Arc<QueueShared>,
        max: usize,
        until: Option<Instant>,
    ) -> Result<Few<Taken>> {
        let (taken, empty) = self.take_some(queue, max, self.lock_state())?;
        if empty.is_none() {
            return Ok(taken);
        }
        drop(empty);
        // Counted in before the next look: an insert that this look misses sees a waiter.
        queue.waiters.fetch_add(1, Ordering::SeqCst);
        let waiter = self.lock_state().new_tokens(1);
        let outcome = self.take_waiting(queue, max, until, waiter);
        queue.waiters.fetch_sub(1, Ordering::SeqCst);
        self.hand_over(queue, waiter);
        if outcome.is_err() {
            // It may have been woken for a message that it has not taken.
            queue.signal.notify_one();
        }
        outcome
    }

    /// A waiter leaves. If it kept the time for the others, another one must; if more than it could take has become
    /// ready, by time and so without a signal for each, the next one is to see to it.
    fn hand_over(&self, queue: &QueueShared, waiter: u64) {
        let mut state = self.lock_state();
        let Some(entry) = state.queues.get_mut(&queue.id) else { return };
        if entry.touched.next_ready(None).is_some() {
            queue.signal.notify_one();
        }
        if entry.alarm.is_some_and(|(_, keeper)| keeper == waiter) {
            entry.alarm = None;
            entry.set_timer(self.now());
        }
    }

    /// How long a waiter sleeps: the one that keeps the time until something may have become ready, the others until
    /// they are woken.
    fn alarm(
        &self,
        state: &mut State,
        queue: &QueueShared,
        sleep: Option<Duration>,
        waiter: u64,
    ) -> Option<Duration> {
        let entry = state.queues.get_mut(&queue.id)?;
        let due = sleep.map(|sleep| self.now().mono + sleep);
        if entry.alarm.is_some_and(|(_, keeper)| keeper == waiter) {
            entry.alarm = None;
        }
        let due = due.filter(|due| entry.alarm.is_none_or(|(alarm, _)| *due < alarm))?;
        entry.alarm = Some((due, waiter));
        sleep
    }

    fn take_waiting(
        &self,
        queue: &Arc<QueueShared>,
        max: usize,
        until: Option<Instant>,
        waiter: u64,
    ) -> Result<Few<Taken>> {
        let mut guard = self.lock_state();
        loop {
            let (taken, empty) = self.take_some(queue, max, guard)?;
            let Some((mut state, sleep)) = empty else { return Ok(taken) };
            let sleep = self.alarm(&mut state, queue, sleep, waiter);
            let left = until.map(|until| until.saturating_duration_since(real_now()));
            if left == Some(Duration::ZERO) {
                return Ok(taken);
            }
            guard = match (left, sleep) {
                (None, None) => queue.signal.wait(state),
                (Some(a), Some(b)) => queue.signal.wait_for(state, a.min(b)),
                (Some(limit), None) | (None, Some(limit)) => queue.signal.wait_for(state, limit),
            };
        }
    }

    /// Takes what is there. If there is nothing, gives the lock back, held since the look, and how long it can be
    /// before time alone makes something ready.
    #[allow(clippy::type_complexity)]
    fn take_some<'a>(
        &'a self,
        queue: &Arc<QueueShared>,
        max: usize,
        mut guard: Guard<'a, State>,
    ) -> Result<(Few<Taken>, Option<(Guard<'a, State>, Option<Duration>)>)> {
        loop {
            self.check_open(queue)?;
            let entry = queue_mut(&mut guard, queue)?;
            let now = self.now_for(queue, &entry.touched);
            entry.touched.advance(now.mono, now.wall_ms);
            if entry.pause.is_some() {
                // Whoever resumes it wakes all.
                return Ok((Few::new(), Some((guard, None))));
            }
            if entry.is_failing() {
                drop(guard);
                self.pause_for_failures(queue)?;
                guard = self.lock_state();
                continue;
            }
            let mut claims = Few::new();
            match self.claim(&mut guard, queue, max.max(1), now, &mut claims) {
                Ok(_) if claims.is_empty() => {
                    let touched = &queue_mut(&mut guard, queue)?.touched;
                    let sleep = touched.sleep_for(now.mono, now.wall_ms);
                    return Ok((Few::new(), Some((guard, sleep))));
                }
                Ok(deadline) => {
                    drop(guard);
                    let taken = self.read_claims(queue, claims, deadline)?;
                    if !taken.is_empty() {
                        return Ok((taken, None));
                    }
                }
                Err(detour) => {
                    drop(guard);
                    self.take_detour(queue, detour)?;
                }
            }
            guard = self.lock_state();
        }
    }

    fn check_open(&self, queue: &QueueShared) -> Result<()> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::closed());
        }
        self.check_alive()?;
        if queue.removed.load(Ordering::Acquire) { Err(removed()) } else { Ok(()) }
    }

    pub(super) fn take_detour(&self, queue: &Arc<QueueShared>, detour: Detour) -> Result<()> {
        match detour {
            Detour::Index(segment) => self.load_index(&segment),
            Detour::Room(refused) => self.make_room(refused, Purpose::Settle),
            Detour::Look(look) => self.look_ahead(queue, &look),
            Detour::Holders => self.learn_holders(queue),
            Detour::Expired(messages) => self.expire(queue, &messages).map(|_| ()),
            Detour::Exhausted { id } => {
                self.retire_given_back(queue, id, Claimant::Exhausted, "attempts used up")
            }
            Detour::Lost { id } => self.drop_damaged(queue, id, None),
        }
    }

    /// Adds up to `max` messages to `chosen` and makes them in flight; says until when.
    fn claim(
        &self,
        state: &mut State,
        queue: &QueueShared,
        max: usize,
        now: Now,
        chosen: &mut Few<Candidate>,
    ) -> std::result::Result<Option<Instant>, Detour> {
        let Some(entry) = state.queues.get(&queue.id) else { return Ok(None) };
        let max_attempts = entry.options.max_attempts;
        let deadline = entry.options.lease.and_then(|lease| now.mono.checked_add(lease));
        self.choose(state, queue, max, max_attempts, now, chosen)?;
        if chosen.is_empty() {
            return Ok(None);
        }
        if let Err(refused) = self.append_in_flight(queue, chosen) {
            unread(state, queue, chosen);
            return Err(Detour::Room(refused));
        }
        make_in_flight(state, queue, chosen, deadline, now);
        Ok(deadline)
    }

    /// Records that these messages are in flight: one record for each number of attempts and priority, all in one run.
    fn append_in_flight(
        &self,
        queue: &QueueShared,
        chosen: &[Candidate],
    ) -> std::result::Result<(), Refused> {
        let sync_by = self.settle_by();
        let append = |run: &[Draft<'_>]| self.log.append(run, Purpose::Settle, sync_by, None);
        let appended = with_scratch(|buffer| {
            let alike =
                |pair: &[Candidate]| pair[0].kind() == pair[1].kind() && pair[0].id < pair[1].id;
            if chosen.windows(2).all(alike) {
                let ids = chosen.iter().map(|c| c.id);
                encode_in_flight(queue, chosen[0].kind(), ids, buffer);
                return append(&[Draft::record(SET, buffer)]);
            }
            let mut all: Vec<_> = chosen.iter().map(|c| (c.kind(), c.id)).collect();
            all.sort_unstable();
            let mut ends = Vec::new();
            for same in all.chunk_by(|a, b| a.0 == b.0) {
                encode_in_flight(queue, same[0].0, same.iter().map(|&(_, id)| id), buffer);
                ends.push(buffer.len());
            }
            let mut start = 0;
            let body = |end| Draft::record(SET, &buffer[std::mem::replace(&mut start, end)..end]);
            append(&ends.into_iter().map(body).collect::<Vec<_>>())
        })?;
        self.after_append(&appended);
        Ok(())
    }

    /// Reads and verifies what was claimed. Damaged messages are dropped and reported.
    fn read_claims(
        &self,
        queue: &Arc<QueueShared>,
        claims: Few<Candidate>,
        deadline: Option<Instant>,
    ) -> Result<Few<Taken>> {
        let mut taken = Few::with_capacity(claims.len());
        let mut failed = None;
        for candidate in claims {
            let attempt = candidate.attempt();
            let Candidate { id, priority, segment, offset, token, .. } = candidate;
            let lane = Lane { queue: queue.id, priority };
            let outcome = match self.verify_message(&segment, offset, lane, id) {
                Ok(Some(verified)) => {
                    let content = verified.kept_by(segment);
                    taken.push(Taken { id, token, attempt, deadline, content });
                    Ok(())
                }
                Ok(None) => self.drop_damaged(queue, id, Some((&segment, offset))),
                // Its bytes could not be reached now, which says nothing about them.
                Err(error) => {
                    let held = HeldBy { queue: queue.clone(), id, token, bytes: 0 };
                    self.release(&held, Duration::ZERO).and(Err(error))
                }
            };
            failed = failed.or(outcome.err());
        }
        match failed.filter(|_| taken.is_empty()) {
            Some(error) => Err(error),
            None => Ok(taken),
        }
    }

    /// The message that a get would take now.
    pub fn peek(&self, queue: &Arc<QueueShared>) -> Result<Option<Peeked>> {
        loop {
            let mut guard = self.lock_open()?;
            let now = self.now();
            queue_mut(&mut guard, queue)?.touched.advance(now.mono, now.wall_ms);
            let visible = self.visible(queue);
            let found = self.next_candidate(&mut guard, queue, visible, None, now);
            drop(guard);
            match found {
                Ok(None) => return Ok(None),
                Ok(Some(candidate)) => {
                    let Candidate { id, priority, attempts, segment, offset, .. } = candidate;
                    let lane = Lane { queue: queue.id, priority };
                    if let Some(content) = self.read(&segment, offset, lane, id)? {
                        let (due_ms, deadline, reason) = (0, None, None);
                        let peeked = Peeked { id, attempts, due_ms, deadline, reason, content };
                        return Ok(Some(peeked));
                    }
                    self.drop_damaged(queue, id, Some((&segment, offset)))?;
                }
                Err(detour) => self.take_detour(queue, detour)?,
            }
        }
    }
}

/// `ids` ascending.
fn encode_in_flight(
    queue: &QueueShared,
    (attempts, priority): (u32, u8),
    ids: impl Iterator<Item = u64> + Clone,
    out: &mut Vec<u8>,
) {
    let placed = Placed { place: Place::InFlight, fresh: false, priority, attempts, due: 0 };
    encode_set(queue.id, placed, ids.map(|id| (id, 1)), "", out);
}

/// What was recorded for `chosen`, in memory.
fn make_in_flight(
    state: &mut State,
    queue: &QueueShared,
    chosen: &mut [Candidate],
    deadline: Option<Instant>,
    now: Now,
) {
    let first_token = state.new_tokens(chosen.len() as u64);
    let Some(queue) = state.queues.get_mut(&queue.id) else { return };
    for (candidate, token) in chosen.iter_mut().zip(first_token..) {
        candidate.token = token;
        let Candidate { id, priority, .. } = *candidate;
        let entry = Entry::in_flight(priority, candidate.attempt(), token, deadline);
        queue.touched.put(id, entry);
        queue.forget_known(id);
    }
    queue.set_timer(now);
}

pub(super) fn queue_mut<'a>(
    state: &'a mut State,
    queue: &QueueShared,
) -> Result<&'a mut QueueEntry> {
    state.queues.get_mut(&queue.id).ok_or_else(removed)
}
