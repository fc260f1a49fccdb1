//! Room in a queue that is limited: whether there is enough, and how it is made.
//!
//! Inserts into such a queue decide and append under one hold of the dispatch lock, so that a limit is never exceeded.
//! How many messages a queue has is always known; what they take is [counted](super::usage).

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::choose::{Candidate, Detour};
use super::lane::Head;
use super::queue_entry::QueueEntry;
use super::settle::Claimant;
use super::state::{Located, State};
use super::take::queue_mut;
use super::usage::Usage;
use super::{Engine, QueueShared};
use crate::clock::real_now;
use crate::dispatch::Turn;
use crate::error::{Error, ErrorKind, Result};
use crate::format::position::Position;
use crate::lock::Guard;
use crate::log::{Draft, Lane, Segment};
use crate::options::{AtLimit, QueueOptions};
use crate::sync::atomic::Ordering;

/// The reason that is kept with a message that had to make room.
const DROPPED: &str = "dropped: its queue was full";

/// How much room is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    messages: u64,
    bytes: u64,
}

impl Need {
    pub fn of(run: &[Draft<'_>]) -> Need {
        let bytes = run.iter().map(|draft| draft.frame_bytes(false)).sum();
        Need { messages: run.len() as u64, bytes }
    }

    /// What of it there is no room for; `used` is what is there.
    fn beyond(self, used: Need, options: &QueueOptions) -> Need {
        let beyond = |used: u64, need: u64, most: Option<u64>| {
            most.map_or(0, |most| used.saturating_add(need).saturating_sub(most))
        };
        Need {
            messages: beyond(used.messages, self.messages, options.max_messages),
            bytes: beyond(used.bytes, self.bytes, options.max_bytes),
        }
    }

    fn is_none(self) -> bool {
        self == Need::default()
    }
}

/// Messages that are deleted to make room, each with what it takes, if that is known.
pub(super) type Victims = SmallVec<[(u64, Option<u64>); 1]>;

/// There is room, once these messages are deleted.
struct Room {
    victims: Victims,
}

/// What stands between an insert and its room.
enum NoRoom {
    /// Somebody has to take something out.
    Full,
    /// This message has to move to the dead letter queue.
    Move(u64, u8),
    Detour(Detour),
    /// What is there has to be counted.
    Count,
}

impl From<Detour> for NoRoom {
    fn from(detour: Detour) -> NoRoom {
        NoRoom::Detour(detour)
    }
}

impl Engine {
    /// Makes sure that there is room for `need` in `queue`: gives the lock back with what must be deleted by the same
    /// append; or None if it had to give it up, and the caller must look again. Waits until `until` where the queue
    /// lets its inserts wait.
    ///
    /// # Errors
    /// `QueueFull`; `TooLarge` for what the queue can never have room for.
    pub(super) fn room<'a>(
        &'a self,
        mut state: Guard<'a, State>,
        queue: &Arc<QueueShared>,
        need: Need,
        until: Option<Instant>,
    ) -> Result<Option<(Guard<'a, State>, Victims)>> {
        if !queue.is_limited() {
            return Ok(Some((state, Victims::new())));
        }
        let options = &queue_mut(&mut state, queue)?.options;
        if !need.beyond(Need::default(), options).is_none() {
            let what = format!("{} messages of {} bytes", need.messages, need.bytes);
            let what = format!("{what}, more than queue {:?} may ever have", queue.name);
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        let no_room = match self.find_room(&mut state, queue, need)? {
            Ok(Room { victims }) => return Ok(Some((state, victims))),
            Err(no_room) => no_room,
        };
        match no_room {
            NoRoom::Full => self.wait_for_room(state, queue, until)?,
            NoRoom::Move(id, priority) => {
                let was_untouched = touch(&mut state, queue, id, priority)?;
                drop(state);
                self.drop_by_moving(queue, id, priority, was_untouched)?;
            }
            NoRoom::Count => {
                drop(state);
                self.count_usage(queue)?;
            }
            NoRoom::Detour(detour) => {
                drop(state);
                self.take_detour(queue, detour)?;
            }
        }
        Ok(None)
    }

    fn find_room(
        &self,
        state: &mut State,
        queue: &Arc<QueueShared>,
        need: Need,
    ) -> Result<std::result::Result<Room, NoRoom>> {
        let Some(used) = self.used(state, queue)? else { return Ok(Err(NoRoom::Count)) };
        let entry = queue_mut(state, queue)?;
        let beyond = need.beyond(used, &entry.options);
        if beyond.is_none() {
            return Ok(Ok(Room { victims: Victims::new() }));
        }
        let (at_limit, moves) = (entry.options.at_limit, entry.options.dead_letter.is_some());
        Ok(match at_limit {
            AtLimit::Block | AtLimit::Reject => Err(NoRoom::Full),
            AtLimit::DropOldest => self.find_victims(state, queue, beyond, moves),
        })
    }

    /// What is there; None if it has to be counted.
    fn used(&self, state: &State, queue: &QueueShared) -> Result<Option<Need>> {
        let entry = state.queues.get(&queue.id).ok_or_else(super::removed)?;
        let bytes = match entry.options.max_bytes {
            Some(_) => entry.usage.total(),
            None => Some(0),
        };
        let messages = entry.live(&self.log.tail());
        Ok(bytes.map(|bytes| Need { messages, bytes }))
    }

    /// An error if something would have to make room for `need`, as far as that is known.
    pub(super) fn check_room(&self, state: &State, queue: &QueueShared, need: Need) -> Result<()> {
        let Some(used) = self.used(state, queue)? else { return Ok(()) };
        let entry = state.queues.get(&queue.id).ok_or_else(super::removed)?;
        match need.beyond(used, &entry.options).is_none() {
            true => Ok(()),
            false => Err(full(queue)),
        }
    }

    fn wait_for_room(
        &self,
        mut state: Guard<'_, State>,
        queue: &QueueShared,
        until: Option<Instant>,
    ) -> Result<()> {
        let waits = queue_mut(&mut state, queue)?.options.at_limit == AtLimit::Block;
        let left = until.map(|until| until.saturating_duration_since(real_now()));
        if !waits || left.is_some_and(|left| left.is_zero()) {
            return Err(full(queue));
        }
        queue.room_waiters.fetch_add(1, Ordering::SeqCst);
        let state = match left {
            None => queue.room.wait(state),
            Some(left) => queue.room.wait_for(state, left),
        };
        drop(state);
        queue.room_waiters.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    /// Finds the oldest messages of the lowest priority that make up for what is too much. If they have to move, the first
    /// of them.
    fn find_victims(
        &self,
        state: &mut State,
        queue: &Arc<QueueShared>,
        beyond: Need,
        moves: bool,
    ) -> std::result::Result<Room, NoRoom> {
        let now = self.now();
        if let Some(entry) = state.queues.get_mut(&queue.id) {
            entry.touched.advance(now.mono, now.wall_ms);
        }
        let mut chosen: Vec<Candidate> = Vec::new();
        // The last one chosen that was given back before.
        let mut behind = None;
        let mut victims = Victims::new();
        let mut freed = Need::default();
        let outcome = loop {
            if freed.messages >= beyond.messages && freed.bytes >= beyond.bytes {
                break Ok(());
            }
            match self.next_victim(state, queue, behind) {
                Ok(Some(candidate)) => {
                    let bytes = match self.bytes_of(state, queue, &candidate) {
                        Ok(bytes) => bytes,
                        Err(detour) => break Err(detour.behind(chosen.len()).into()),
                    };
                    if candidate.turn.is_some() {
                        behind = candidate.turn;
                    } else if let Some(lane) = state.lane(queue.id, candidate.priority) {
                        lane.consume();
                    }
                    victims.push((candidate.id, bytes));
                    freed.messages += 1;
                    freed.bytes += bytes.unwrap_or(0);
                    chosen.push(candidate);
                }
                Ok(None) => break Err(NoRoom::Full),
                Err(detour) => break Err(detour.into()),
            }
        };
        // Until they are deleted they are where they were.
        super::choose::unread(state, queue, &chosen);
        victims.sort_unstable();
        outcome?;
        match chosen.first() {
            Some(first) if moves => Err(NoRoom::Move(first.id, first.priority)),
            _ => Ok(Room { victims }),
        }
    }

    /// Moves a message that was given back, or [touched](touch), to the dead letter queue to make room. If that has none
    /// either, it stays as it was.
    fn drop_by_moving(
        &self,
        queue: &Arc<QueueShared>,
        id: u64,
        priority: u8,
        was_untouched: bool,
    ) -> Result<()> {
        match self.try_move(queue, id, Claimant::Store, DROPPED) {
            Ok(true) => Ok(()),
            Ok(false) => {
                if was_untouched {
                    self.untouch(queue, id, priority);
                }
                match self.damaged_at(queue, id, priority)? {
                    // It can be moved nowhere, and must not stand in the way of the others.
                    Some((segment, offset)) => {
                        self.drop_damaged(queue, id, Some((&segment, offset)))
                    }
                    None => Err(full(queue)),
                }
            }
            // Somebody else has taken it meanwhile.
            Err(error) if *error.kind() == ErrorKind::StaleDelivery => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where a message lies that does not verify; None if it does, or is not there any more.
    fn damaged_at(
        &self,
        queue: &QueueShared,
        id: u64,
        priority: u8,
    ) -> Result<Option<(Arc<Segment>, u32)>> {
        let lane = Lane { queue: queue.id, priority };
        let located = self.lock_state().locate(lane, id, &self.log);
        let Located::At { segment, offset } = located else { return Ok(None) };
        let verified = self.verify_message(&segment, offset, lane, id)?;
        Ok(verified.is_none().then_some((segment, offset)))
    }

    /// A message that was touched, and nothing recorded of it, is as it was before.
    fn untouch(&self, queue: &QueueShared, id: u64, priority: u8) {
        let mut state = self.lock_state();
        let Some(entry) = state.queues.get_mut(&queue.id) else { return };
        if entry.touched.untouch(id)
            && let Some(lane) = state.lane(queue.id, priority)
        {
            lane.rewind(id);
        }
    }

    /// What a victim takes; None if that does not matter, or if it does not verify.
    fn bytes_of(
        &self,
        state: &State,
        queue: &QueueShared,
        candidate: &Candidate,
    ) -> std::result::Result<Option<u64>, Detour> {
        let entry = state.queues.get(&queue.id);
        match entry.filter(|entry| entry.options.max_bytes.is_some()) {
            Some(entry) => self.known(entry, queue, candidate).map(|known| known.bytes),
            None => Ok(None),
        }
    }

    /// The victims were deleted by an append.
    pub(super) fn forget_victims(&self, state: &mut State, queue: &QueueShared, victims: &Victims) {
        for &(id, bytes) in victims {
            state.forget(queue.id, id, bytes);
        }
        if !victims.is_empty() {
            self.after_settle(state);
        }
    }

    /// The ready message of the lowest priority that would be delivered first, but for those already chosen, of which
    /// `behind` is the last that was given back before.
    fn next_victim(
        &self,
        state: &mut State,
        queue: &QueueShared,
        behind: Option<Turn>,
    ) -> std::result::Result<Option<Candidate>, Detour> {
        let everything = Position::from_u64(u64::MAX);
        let lanes = state.queues.get(&queue.id).map_or(0, |entry| entry.lanes.len());
        for at in (0..lanes).rev() {
            let Some(entry) = state.queues.get(&queue.id) else { return Ok(None) };
            let priority = entry.lanes[at].priority();
            // Of lower priorities all that were given back are chosen.
            if behind.is_none_or(|turn| turn.priority() <= priority) {
                let behind = behind.filter(|turn| turn.priority() == priority);
                let Some(entry) = state.queues.get_mut(&queue.id) else { return Ok(None) };
                if let Some(turn) = entry.touched.next_free_of(priority, behind) {
                    return self.touched_candidate(state, queue, turn).map(Some);
                }
            }
            loop {
                let Some(entry) = state.queues.get_mut(&queue.id) else { return Ok(None) };
                match entry.lanes[at].head(&state.segments, &entry.touched, &self.log, everything) {
                    Head::Message { id, offset, segment } => {
                        return Ok(Some(Candidate::untouched(id, priority, segment, offset)));
                    }
                    Head::NeedsIndex(segment) => return Err(Detour::Index(segment)),
                    Head::Rolled => state.absorb(&mut self.log.tail()),
                    Head::Empty => break,
                }
            }
        }
        Ok(None)
    }

    /// An error if there is more in the queue than these options would let in.
    pub(super) fn check_limits(
        &self,
        queue: &Arc<QueueShared>,
        options: &QueueOptions,
    ) -> Result<()> {
        loop {
            let mut state = self.lock_open()?;
            if self.lets_in_what_is_there(&mut state, queue, options)? {
                return Ok(());
            }
            drop(state);
            self.count_usage(queue)?;
        }
    }

    /// Makes sure that these options let in what is in the queue. False if that has to be counted first.
    ///
    /// Ensures: that stays so while the caller holds the lock. From here on inserts take it, and those that did not have
    /// been appended.
    ///
    /// # Errors
    /// `Conflict` if there is more.
    pub(super) fn lets_in_what_is_there(
        &self,
        state: &mut State,
        queue: &QueueShared,
        options: &QueueOptions,
    ) -> Result<bool> {
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        let entry = queue_mut(state, queue)?;
        if *options == entry.options || !options.is_limited() {
            return Ok(true);
        }
        entry.set_limited(true);
        let bytes = match options.max_bytes {
            Some(_) => entry.usage.total(),
            None => Some(0),
        };
        let Some(bytes) = bytes else { return Ok(false) };
        let there = Need { messages: entry.live(&tail), bytes };
        if !Need::default().beyond(there, options).is_none() {
            let Need { messages, bytes } = there;
            let mut what = format!("queue {:?} has {messages} messages", queue.name);
            if options.max_bytes.is_some() {
                what.push_str(&format!(" of {bytes} bytes"));
            }
            what.push_str(", which is more than its limit would be; nothing was changed");
            return Err(Error::new(ErrorKind::Conflict, what));
        }
        Ok(true)
    }

    /// A declaration has failed: inserts need no lock again if the queue has no limit.
    pub(super) fn limit_as_declared(&self, name: &str) {
        let mut state = self.lock_state();
        let id = state.names.get(name).copied();
        if let Some(entry) = id.and_then(|id| state.queues.get_mut(&id)) {
            entry.set_limited(entry.options.is_limited());
        }
    }
}

/// Touches a message that is to make room, so that it can be moved: from here on it is known whether somebody else has had
/// it. Whether nobody had touched it.
fn touch(state: &mut State, queue: &QueueShared, id: u64, priority: u8) -> Result<bool> {
    let touched = &mut queue_mut(state, queue)?.touched;
    let untouched = !touched.contains(id);
    if untouched {
        touched.touch(id, priority);
    }
    Ok(untouched)
}

fn full(queue: &QueueShared) -> Error {
    Error::new(ErrorKind::QueueFull, format!("there is no room in queue {:?}", queue.name))
}

impl QueueEntry {
    /// Whether inserts have to look for room. Under the dispatch lock, and to begin with it under the append lock: those
    /// that do not hold the first look under the second.
    pub fn set_limited(&mut self, limited: bool) {
        if limited != self.shared.is_limited() {
            // Without a limit nobody counts.
            self.usage = Usage::default();
            self.shared.set_limited(limited);
        }
    }
}

#[cfg(not(any(loom, shuttle)))]
#[cfg(test)]
mod tests;
