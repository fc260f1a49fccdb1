//! Getting messages: which one is next, and handing it out.
//!
//! Under the dispatch lock the next messages are chosen and the record that they are in flight is appended; their
//! bytes are read and verified afterwards, outside of the locks. A message whose bytes are damaged is deleted, and
//! the next one taken: it can never be delivered, and must not stand in the way of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::lane::Head;
use super::state::{Located, QueueEntry, State};
use super::{Content, Engine, HeldBy, QueueShared, removed};
use crate::clock::{Now, real_now};
use crate::dispatch::{Entry, Place};
use crate::error::{Error, Result};
use crate::format::position::Position;
use crate::format::record::SET;
use crate::format::record::settle::encode_set;
use crate::lock::Guard;
use crate::log::{Draft, Lane, Purpose, Refused, Segment};
use crate::options::Durability;

/// A message that was handed out.
pub(crate) struct Taken {
    pub id: u64,
    pub token: u64,
    pub attempt: u32,
    pub deadline: Option<Instant>,
    pub content: Content,
}

/// A message that was looked at.
pub(crate) struct Peeked {
    pub id: u64,
    pub attempt: u32,
    pub content: Content,
}

/// A message that is next.
struct Candidate {
    id: u64,
    priority: u8,
    /// Attempts used before this one; None if nobody has touched it yet.
    attempts: Option<u32>,
    segment: Arc<Segment>,
    offset: u32,
}

/// What must be done outside of the locks before it is known which message is next.
enum Detour {
    Index(Arc<Segment>),
    Room(Refused),
    /// This message's attempts are used up.
    Exhausted {
        id: u64,
    },
    /// This message's frame cannot be found.
    Lost {
        id: u64,
    },
}

/// A candidate that is in flight by now, and not read yet.
struct Claim {
    candidate: Candidate,
    token: u64,
    deadline: Option<Instant>,
}

impl Engine {
    /// Takes up to `max` messages, without waiting.
    pub fn try_take(&self, queue: &Arc<QueueShared>, max: usize) -> Result<Vec<Taken>> {
        let guard = self.lock_state();
        Ok(self.take_some(queue, max, guard)?.0)
    }

    /// Takes up to `max` messages; waits for the first until `until`, or for as long as it takes.
    pub fn take(
        &self,
        queue: &Arc<QueueShared>,
        max: usize,
        until: Option<Instant>,
    ) -> Result<Vec<Taken>> {
        let (taken, empty) = self.take_some(queue, max, self.lock_state())?;
        if empty.is_none() {
            return Ok(taken);
        }
        drop(empty);
        // Counted in before the next look: an insert that this look misses sees a waiter.
        queue.waiters.fetch_add(1, Ordering::SeqCst);
        let waiter = self.lock_state().new_token();
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
    ) -> Result<Vec<Taken>> {
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
    ) -> Result<(Vec<Taken>, Option<(Guard<'a, State>, Option<Duration>)>)> {
        loop {
            self.check_open(queue)?;
            let now = self.now();
            match self.claim(&mut guard, queue, max.max(1), now) {
                Ok(claims) if claims.is_empty() => {
                    let touched = &queue_mut(&mut guard, queue)?.touched;
                    let sleep = touched.sleep_for(now.mono, now.wall_ms);
                    return Ok((Vec::new(), Some((guard, sleep))));
                }
                Ok(claims) => {
                    drop(guard);
                    let taken = self.read_claims(queue, claims)?;
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

    fn take_detour(&self, queue: &Arc<QueueShared>, detour: Detour) -> Result<()> {
        match detour {
            Detour::Index(segment) => self.load_index(&segment),
            Detour::Room(refused) => self.make_room(refused, Purpose::Settle),
            Detour::Exhausted { id } => self.retire_exhausted(queue, id),
            Detour::Lost { id } => self.drop_damaged(queue, id, None),
        }
    }

    /// Chooses up to `max` messages and makes them in flight.
    fn claim(
        &self,
        state: &mut State,
        queue: &QueueShared,
        max: usize,
        now: Now,
    ) -> std::result::Result<Vec<Claim>, Detour> {
        let Some(entry) = state.queues.get_mut(&queue.id) else { return Ok(Vec::new()) };
        entry.touched.advance(now.mono, now.wall_ms);
        let max_attempts = entry.options.max_attempts;
        let deadline = entry.options.lease.and_then(|lease| now.mono.checked_add(lease));
        let visible = self.visible(queue);
        let mut chosen: Vec<Candidate> = Vec::with_capacity(max.min(16));
        let mut detour = None;
        while chosen.len() < max {
            match self.next_candidate(state, queue, visible, &chosen) {
                Ok(Some(candidate)) => {
                    let used = candidate.attempts.unwrap_or(0);
                    if max_attempts.is_some_and(|most| used >= most) {
                        detour = Some(Detour::Exhausted { id: candidate.id });
                        break;
                    }
                    if candidate.attempts.is_none()
                        && let Some(lane) = state.lane(queue.id, candidate.priority)
                    {
                        lane.consume();
                    }
                    chosen.push(candidate);
                }
                Ok(None) => break,
                Err(found) => {
                    detour = Some(found);
                    break;
                }
            }
        }
        if let Some(detour) = detour.filter(|_| chosen.is_empty()) {
            return Err(detour);
        }
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        if let Err(refused) = self.append_in_flight(queue, &chosen, now) {
            unread(state, queue, &chosen);
            return Err(Detour::Room(refused));
        }
        Ok(self.make_in_flight(state, queue, chosen, deadline, now))
    }

    /// Before which position messages of this queue may be seen: under `Sync`, only what is durable.
    fn visible(&self, queue: &QueueShared) -> Position {
        match queue.durability() {
            Durability::Sync => self.log.synced_through(),
            _ => Position::from_u64(u64::MAX),
        }
    }

    /// The message after those already chosen: given back ones first, but for untouched ones of higher priority.
    fn next_candidate(
        &self,
        state: &mut State,
        queue: &QueueShared,
        visible: Position,
        chosen: &[Candidate],
    ) -> std::result::Result<Option<Candidate>, Detour> {
        let behind = chosen.iter().rfind(|c| c.attempts.is_some()).map(|c| (c.priority, c.id));
        let touched = state.queues.get(&queue.id).map(|entry| &entry.touched);
        let ready = touched.and_then(|touched| touched.next_ready(behind));
        let above = ready.map_or(0, |(priority, _)| priority + 1);
        loop {
            match state.lane_head(queue.id, above, &self.log, visible) {
                None => break,
                Some((priority, Head::Message { id, offset, segment })) => {
                    return Ok(Some(Candidate { id, priority, attempts: None, segment, offset }));
                }
                Some((_, Head::NeedsIndex(segment))) => return Err(Detour::Index(segment)),
                Some((_, Head::Rolled)) => state.absorb(&mut self.log.tail()),
                Some((_, Head::Empty)) => break,
            }
        }
        let Some((priority, id)) = ready else { return Ok(None) };
        loop {
            match state.locate(Lane { queue: queue.id, priority }, id, &self.log) {
                Located::At { segment, offset } => {
                    let attempts = touched_attempts(state, queue, id);
                    return Ok(Some(Candidate { id, priority, attempts, segment, offset }));
                }
                Located::NeedsIndex(segment) => return Err(Detour::Index(segment)),
                Located::Rolled => state.absorb(&mut self.log.tail()),
                Located::Gone => return Err(Detour::Lost { id }),
            }
        }
    }

    /// Records that these messages are in flight: one record for each number of attempts, all in one run.
    fn append_in_flight(
        &self,
        queue: &QueueShared,
        chosen: &[Candidate],
        now: Now,
    ) -> std::result::Result<(), Refused> {
        let mut by_attempt: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for candidate in chosen {
            let attempt = candidate.attempts.unwrap_or(0).saturating_add(1);
            by_attempt.entry(attempt).or_default().push(candidate.id);
        }
        let bodies: Vec<Vec<u8>> = by_attempt
            .iter_mut()
            .map(|(&attempt, ids)| {
                ids.sort_unstable();
                let mut body = Vec::with_capacity(32);
                let runs = ids.iter().map(|&id| (id, 1));
                encode_set(queue.id, Place::InFlight, attempt, 0, runs, "", &mut body);
                body
            })
            .collect();
        let run: Vec<Draft<'_>> = bodies.iter().map(|body| Draft::record(SET, body)).collect();
        let sync_by = self.settle_by(now);
        let appended = self.log.append(&run, Purpose::Settle, sync_by, None)?;
        self.after_append(&appended);
        Ok(())
    }

    fn make_in_flight(
        &self,
        state: &mut State,
        queue: &QueueShared,
        chosen: Vec<Candidate>,
        deadline: Option<Instant>,
        now: Now,
    ) -> Vec<Claim> {
        let mut claims = Vec::with_capacity(chosen.len());
        for candidate in chosen {
            let token = state.new_token();
            let attempt = candidate.attempts.unwrap_or(0).saturating_add(1);
            let entry = Entry::in_flight(candidate.priority, attempt, token, deadline);
            if let Some(queue) = state.queues.get_mut(&queue.id) {
                queue.touched.put(candidate.id, entry);
            }
            claims.push(Claim { candidate, token, deadline });
        }
        if let Some(queue) = state.queues.get(&queue.id) {
            queue.set_timer(now);
        }
        claims
    }

    /// Reads and verifies what was claimed. Damaged messages are dropped and reported.
    fn read_claims(&self, queue: &Arc<QueueShared>, claims: Vec<Claim>) -> Result<Vec<Taken>> {
        let mut taken = Vec::with_capacity(claims.len());
        let mut failed = None;
        for Claim { candidate, token, deadline } in claims {
            let Candidate { id, priority, attempts, segment, offset } = candidate;
            let lane = Lane { queue: queue.id, priority };
            let outcome = match self.read(&segment, offset, lane, id) {
                Ok(Some(content)) => {
                    let attempt = attempts.unwrap_or(0).saturating_add(1);
                    taken.push(Taken { id, token, attempt, deadline, content });
                    Ok(())
                }
                Ok(None) => self.drop_damaged(queue, id, Some((&segment, offset))),
                // Its bytes could not be reached now, which says nothing about them.
                Err(error) => {
                    let held = HeldBy { queue: queue.clone(), id, token };
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
            let found = self.next_candidate(&mut guard, queue, visible, &[]);
            drop(guard);
            match found {
                Ok(None) => return Ok(None),
                Ok(Some(Candidate { id, priority, attempts, segment, offset })) => {
                    let lane = Lane { queue: queue.id, priority };
                    if let Some(content) = self.read(&segment, offset, lane, id)? {
                        let attempt = attempts.unwrap_or(0).saturating_add(1);
                        return Ok(Some(Peeked { id, attempt, content }));
                    }
                    self.drop_damaged(queue, id, Some((&segment, offset)))?;
                }
                Err(detour) => self.take_detour(queue, detour)?,
            }
        }
    }
}

fn touched_attempts(state: &State, queue: &QueueShared, id: u64) -> Option<u32> {
    Some(state.queues.get(&queue.id)?.touched.get(id)?.attempts)
}

pub(super) fn queue_mut<'a>(
    state: &'a mut State,
    queue: &QueueShared,
) -> Result<&'a mut QueueEntry> {
    state.queues.get_mut(&queue.id).ok_or_else(removed)
}

/// Puts back at the head of their lanes what was chosen from there.
fn unread(state: &mut State, queue: &QueueShared, chosen: &[Candidate]) {
    for candidate in chosen.iter().filter(|candidate| candidate.attempts.is_none()) {
        if let Some(lane) = state.lane(queue.id, candidate.priority) {
            lane.rewind(candidate.id);
        }
    }
}
