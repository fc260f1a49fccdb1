//! What messages say themselves of when they may go out: when they expire, and which group they belong to.
//!
//! That is in their frames alone, and no frame is read under the locks. So of a queue that may have such messages, those
//! that are next are looked at first, what a lane has read ahead in one go; what was seen is remembered until they are
//! taken.

use std::sync::Arc;

use super::choose::{Candidate, Detour};
use super::expire::Unheld;
use super::queue_entry::QueueEntry;
use super::state::{Located, State};
use super::take::queue_mut;
use super::{Content, Engine, QueueShared};
use crate::clock::Now;
use crate::dispatch::{GroupKey, Turn};
use crate::error::Result;
use crate::log::{Lane, Segment};

/// What has been seen of more messages of one queue than these, and those that somebody is looking behind, is forgotten,
/// and seen again.
const KNOWN_MAX: usize = 4096;

/// How many touched messages are looked at in one go.
const TOUCHED_AHEAD: usize = 64;

/// What has been seen of a message that is next.
#[derive(Clone, Debug)]
pub(super) struct Known {
    priority: u8,
    /// In milliseconds since the epoch.
    expiry: Option<u64>,
    /// What it takes, as limits count it; None if it does not verify.
    pub bytes: Option<u64>,
    pub group: Option<GroupKey>,
}

impl Known {
    fn has_expired(&self, now: Now) -> bool {
        self.expiry.is_some_and(|expiry| expiry <= now.wall_ms)
    }
}

/// Messages that are to be looked at: ids and offsets in one segment.
pub(super) struct Look {
    lane: Lane,
    pub segment: Arc<Segment>,
    slots: Vec<(u64, u32)>,
    /// What has been seen of so many others must not be forgotten.
    pub behind: usize,
}

/// Whether a message may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    Yes,
    /// From now on it waits for its group.
    Waits,
    /// It would have to wait for its group, and so its lane has to.
    LaneWaits,
}

impl Engine {
    /// Whether the candidate may go out, as far as its frame has a say in it. A detour if it has expired, or if it must be
    /// looked at first.
    #[inline]
    pub(super) fn admit(
        &self,
        state: &mut State,
        queue: &QueueShared,
        candidate: &Candidate,
        now: Now,
    ) -> std::result::Result<Admitted, Detour> {
        match queue.looks_ahead() {
            true => self.admit_known(state, queue, candidate, now),
            false => Ok(Admitted::Yes),
        }
    }

    fn admit_known(
        &self,
        state: &mut State,
        queue: &QueueShared,
        candidate: &Candidate,
        now: Now,
    ) -> std::result::Result<Admitted, Detour> {
        let Some(entry) = state.queues.get_mut(&queue.id) else { return Ok(Admitted::Yes) };
        let known = match self.known(entry, queue, candidate) {
            Ok(known) => known,
            Err(Detour::Look(mut look)) => {
                if let Some(turn) = candidate.turn {
                    self.look_behind(state, queue, turn, &mut look);
                }
                return Err(Detour::Look(look));
            }
            Err(detour) => return Err(detour),
        };
        if known.has_expired(now) {
            let expired = entry.known.iter().filter(|(_, known)| known.has_expired(now));
            let expired = expired.map(|(id, known)| {
                let Known { priority, bytes, .. } = *known;
                Unheld { id: *id, priority, bytes }
            });
            return Err(Detour::Expired(expired.collect()));
        }
        match known.group.clone() {
            Some(group) => entry.admit_grouped(candidate, &group),
            None => Ok(Admitted::Yes),
        }
    }

    /// Adds those whose turn comes behind that of a touched message, as far as they lie in the same segment.
    fn look_behind(&self, state: &State, queue: &QueueShared, turn: Turn, look: &mut Look) {
        let Some(entry) = state.queues.get(&queue.id) else { return };
        let mut behind = turn;
        while look.slots.len() < TOUCHED_AHEAD
            && let Some(next) = entry.touched.next_ready(Some(behind))
            && next.priority() == look.lane.priority
            && !entry.known.contains_key(&next.id)
            && let Located::At { segment, offset } = state.locate(look.lane, next.id, &self.log)
            && Arc::ptr_eq(&segment, &look.segment)
        {
            look.slots.push((next.id, offset));
            behind = next;
        }
    }

    /// What has been seen of a candidate; a detour if nothing has.
    pub(super) fn known<'a>(
        &self,
        entry: &'a QueueEntry,
        queue: &QueueShared,
        candidate: &Candidate,
    ) -> std::result::Result<&'a Known, Detour> {
        if let Some(known) = entry.known.get(&candidate.id) {
            return Ok(known);
        }
        let lane = Lane { queue: queue.id, priority: candidate.priority };
        let reader = entry.lanes.iter().find(|reader| reader.priority() == lane.priority);
        let ahead = reader.and_then(|reader| reader.ahead());
        let slots = match ahead {
            Some((segment, slots))
                if candidate.turn.is_none() && Arc::ptr_eq(segment, &candidate.segment) =>
            {
                slots.filter(|(id, _)| *id >= candidate.id).collect()
            }
            _ => vec![(candidate.id, candidate.offset)],
        };
        let segment = candidate.segment.clone();
        Err(Detour::Look(Box::new(Look { lane, segment, slots, behind: 0 })))
    }

    /// Sees what these messages say. One that does not verify says nothing: whoever gets it reports it.
    pub(super) fn look_ahead(&self, queue: &QueueShared, look: &Look) -> Result<()> {
        let priority = look.lane.priority;
        let see = |&(id, offset): &(u64, u32)| {
            let content = self.read(&look.segment, offset, look.lane, id)?;
            let bytes = content.as_ref().map(Content::bytes);
            let head = content.as_ref().and_then(Content::head);
            let expiry = head.and_then(|head| head.expiry);
            let group = head.and_then(|head| head.group).map(GroupKey::from);
            Ok((id, Known { priority, expiry, bytes, group }))
        };
        let seen = look.slots.iter().map(see).collect::<Result<Vec<_>>>()?;
        let mut state = self.lock_state();
        let known = &mut queue_mut(&mut state, queue)?.known;
        if known.len() + seen.len() > KNOWN_MAX + look.behind {
            known.clear();
        }
        known.extend(seen);
        Ok(())
    }
}
