//! Which messages are next: decided under the dispatch lock, from memory alone.
//!
//! Two sources meet here: those that were given back or delayed, by their turn, and the lanes of those that nobody has
//! touched, by priority and age. What memory does not know is left to a [`Detour`], which the caller takes without the
//! lock before it asks again. Nothing is recorded here.

use std::sync::Arc;

use super::expire::Unheld;
use super::lane::Head;
use super::look::{Admitted, Look};
use super::state::{Located, State};
use super::take::Few;
use super::{Engine, QueueShared};
use crate::clock::Now;
use crate::dispatch::Turn;
use crate::format::position::Position;
use crate::log::{Lane, Refused, Segment};
use crate::options::Durability;

/// A message that is next.
pub(super) struct Candidate {
    pub id: u64,
    pub priority: u8,
    /// Attempts used before this one.
    pub attempts: u32,
    pub segment: Arc<Segment>,
    pub offset: u32,
    /// Its turn among the touched ones; None if nobody has touched it yet.
    pub turn: Option<Turn>,
    /// The delivery's; 0 until it is in flight.
    pub token: u64,
}

impl Candidate {
    pub fn untouched(id: u64, priority: u8, segment: Arc<Segment>, offset: u32) -> Candidate {
        Candidate { id, priority, attempts: 0, segment, offset, turn: None, token: 0 }
    }

    /// Which attempt its delivery would be.
    pub fn attempt(&self) -> u32 {
        self.attempts.saturating_add(1)
    }

    /// What the messages of one record have in common: the attempt that their deliveries would be, and their priority.
    pub fn kind(&self) -> (u32, u8) {
        (self.attempt(), self.priority)
    }
}

/// What must be done outside of the locks before it is known which message is next.
pub(super) enum Detour {
    Index(Arc<Segment>),
    Room(Refused),
    /// It is not known whether these messages may go out.
    Look(Box<Look>),
    /// These messages have expired.
    Expired(Vec<Unheld>),
    /// It is not known which messages hold groups.
    Holders,
    /// This message's attempts are used up.
    Exhausted {
        id: u64,
    },
    /// This message's frame cannot be found.
    Lost {
        id: u64,
    },
}

impl Detour {
    /// It stands behind so many messages, of which is known what it is about.
    pub fn behind(mut self, messages: usize) -> Detour {
        if let Detour::Look(look) = &mut self {
            look.behind = messages;
        }
        self
    }
}

/// Where messages are looked at first, a get of more may take fewer than there are.
const LOOK_AT_MOST: usize = 1024;

impl Engine {
    /// Adds the next messages to `chosen`, up to `max`; a detour only if it stands before the first of them.
    pub(super) fn choose(
        &self,
        state: &mut State,
        queue: &QueueShared,
        max: usize,
        max_attempts: Option<u32>,
        now: Now,
        chosen: &mut Few<Candidate>,
    ) -> std::result::Result<(), Detour> {
        let visible = self.visible(queue);
        // The last one chosen that was given back before.
        let mut behind = None;
        let mut detour = None;
        while chosen.len() < max {
            if !queue.looks_ahead() && state.take_ahead(queue.id, visible, behind, max, chosen) {
                continue;
            }
            match self.next_candidate(state, queue, visible, behind, now) {
                Ok(Some(candidate)) => {
                    let used = candidate.attempts;
                    if max_attempts.is_some_and(|most| used >= most) {
                        detour = Some(Detour::Exhausted { id: candidate.id });
                        break;
                    }
                    if candidate.turn.is_some() {
                        behind = candidate.turn;
                    } else if let Some(lane) = state.lane(queue.id, candidate.priority) {
                        lane.consume();
                    }
                    if queue.has_groups()
                        && let Some(entry) = state.queues.get_mut(&queue.id)
                    {
                        entry.hold_group(candidate.id, candidate.priority);
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
        match detour {
            // That does not take long, and then there may be more.
            Some(
                detour
                @ (Detour::Look(_) | Detour::Expired(_) | Detour::Holders | Detour::Index(_)),
            ) if queue.looks_ahead() && chosen.len() < LOOK_AT_MOST => {
                unread(state, queue, chosen);
                chosen.clear();
                Err(detour)
            }
            Some(detour) if chosen.is_empty() => Err(detour),
            _ => Ok(()),
        }
    }

    /// Before which position messages of this queue may be seen: under `Sync`, only what is durable.
    pub(super) fn visible(&self, queue: &QueueShared) -> Position {
        match queue.durability() {
            Durability::Sync => self.log.synced_through(),
            _ => Position::from_u64(u64::MAX),
        }
    }

    /// The message after those already chosen, of which `behind` is the last that was given back before: first come
    /// those given back, but for untouched ones of higher priority.
    pub(super) fn next_candidate(
        &self,
        state: &mut State,
        queue: &QueueShared,
        visible: Position,
        mut behind: Option<Turn>,
        now: Now,
    ) -> std::result::Result<Option<Candidate>, Detour> {
        loop {
            let touched = state.queues.get(&queue.id).map(|entry| &entry.touched);
            let ready = touched.and_then(|touched| touched.next_ready(behind));
            let above = ready.map_or(0, |turn| turn.priority() + 1);
            if let Some(untouched) = self.next_untouched(state, queue, visible, above, now)? {
                return Ok(Some(untouched));
            }
            let Some(turn) = ready else { return Ok(None) };
            let candidate = self.touched_candidate(state, queue, turn)?;
            let at = Position::new(candidate.segment.number, candidate.offset);
            // One that was delayed may be due before it may be seen.
            if candidate.attempts == 0 && at >= visible {
                behind = Some(turn);
                continue;
            }
            if self.admit(state, queue, &candidate, now)? == Admitted::Yes {
                return Ok(Some(candidate));
            }
        }
    }

    /// The next message of priority `above` or higher that nobody has touched.
    fn next_untouched(
        &self,
        state: &mut State,
        queue: &QueueShared,
        visible: Position,
        above: u8,
        now: Now,
    ) -> std::result::Result<Option<Candidate>, Detour> {
        // Lanes that wait for a group.
        let mut without = 0;
        loop {
            match state.lane_head(queue.id, above, without, &self.log, visible) {
                Some((priority, Head::Message { id, offset, segment })) => {
                    let candidate = Candidate::untouched(id, priority, segment, offset);
                    match self.admit(state, queue, &candidate, now)? {
                        Admitted::Yes => return Ok(Some(candidate)),
                        Admitted::Waits => {}
                        Admitted::LaneWaits => without |= 1 << priority,
                    }
                }
                Some((_, Head::NeedsIndex(segment))) => return Err(Detour::Index(segment)),
                Some((_, Head::Rolled)) => state.absorb(&mut self.log.tail()),
                None | Some((_, Head::Empty)) => return Ok(None),
            }
        }
    }

    pub(super) fn touched_candidate(
        &self,
        state: &mut State,
        queue: &QueueShared,
        turn: Turn,
    ) -> std::result::Result<Candidate, Detour> {
        let (id, priority) = (turn.id, turn.priority());
        loop {
            match state.locate(Lane { queue: queue.id, priority }, id, &self.log) {
                Located::At { segment, offset } => {
                    let attempts = touched_attempts(state, queue, id);
                    let (turn, token) = (Some(turn), 0);
                    return Ok(Candidate { id, priority, attempts, segment, offset, turn, token });
                }
                Located::NeedsIndex(segment) => return Err(Detour::Index(segment)),
                Located::Rolled => state.absorb(&mut self.log.tail()),
                Located::Gone => return Err(Detour::Lost { id }),
            }
        }
    }
}

fn touched_attempts(state: &State, queue: &QueueShared, id: u64) -> u32 {
    let entry = state.queues.get(&queue.id).and_then(|queue| queue.touched.get(id));
    entry.map_or(0, |entry| entry.attempts)
}

/// Puts back at the head of their lanes what was chosen from there. What holds its group since then goes on to.
pub(super) fn unread(state: &mut State, queue: &QueueShared, chosen: &[Candidate]) {
    if queue.has_groups()
        && let Some(entry) = state.queues.get_mut(&queue.id)
    {
        chosen.iter().for_each(|candidate| entry.touched.take_back(candidate.id));
    }
    for candidate in chosen.iter().filter(|candidate| candidate.turn.is_none()) {
        if let Some(lane) = state.lane(queue.id, candidate.priority) {
            lane.rewind(candidate.id);
        }
    }
}
