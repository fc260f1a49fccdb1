//! Which messages have to make room in a queue that drops its oldest, and how they go: deleted by the append that needs
//! the room, or moved to the dead letter queue before it.

use std::sync::Arc;

use smallvec::SmallVec;

use super::super::choose::{self, Candidate, Detour};
use super::super::lane::Head;
use super::super::settle::Claimant;
use super::super::state::{Located, State};
use super::super::take::queue_mut;
use super::super::{Engine, QueueShared};
use super::{Need, NoRoom, Room, full};
use crate::dispatch::Turn;
use crate::error::{ErrorKind, Result};
use crate::format::position::Position;
use crate::log::{Lane, Segment};

/// The reason that is kept with a message that had to make room.
const DROPPED: &str = "dropped: its queue was full";

/// Messages that are deleted to make room, each with what it takes, if that is known.
pub(in crate::engine) type Victims = SmallVec<[(u64, Option<u64>); 1]>;

impl Engine {
    /// Finds the oldest messages of the lowest priority that make up for what is too much. If they have to move, the first
    /// of them.
    pub(super) fn find_victims(
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
        choose::unread(state, queue, &chosen);
        victims.sort_unstable();
        outcome?;
        match chosen.first() {
            Some(first) if moves => Err(NoRoom::Move(first.id, first.priority)),
            _ => Ok(Room { victims }),
        }
    }

    /// Moves a message that was given back, or [touched](touch), to the dead letter queue to make room. If that has none
    /// either, it stays as it was.
    pub(super) fn drop_by_moving(
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
    pub(in crate::engine) fn forget_victims(
        &self,
        state: &mut State,
        queue: &QueueShared,
        victims: &Victims,
    ) {
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
}

/// Touches a message that is to make room, so that it can be moved: from here on it is known whether somebody else has had
/// it. Whether nobody had touched it.
pub(super) fn touch(state: &mut State, queue: &QueueShared, id: u64, priority: u8) -> Result<bool> {
    let touched = &mut queue_mut(state, queue)?.touched;
    let untouched = !touched.contains(id);
    if untouched {
        touched.touch(id, priority);
    }
    Ok(untouched)
}
