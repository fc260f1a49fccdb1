//! Message groups: which messages may go out because no other one of their group is, and how that is found out after an
//! open.
//!
//! Nothing is recorded of it. A message that waits for its group has not been delivered, which reads the same in the log
//! whether it waits or not, and in a cursor: there its lane has come to no further than the first that was passed over.
//! Which messages hold their groups follows from what is recorded: those that were delivered and are not done with. Their
//! frames say which groups that are, and are read when the first message with a group is to go out after an open.

use std::sync::Arc;

use super::choose::{Candidate, Detour};
use super::look::Admitted;
use super::queue_entry::QueueEntry;
use super::state::Located;
use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::dispatch::{Entry, Freed, GroupKey, Place};
use crate::error::Result;
use crate::log::{Lane, Segment};
use crate::planted::{Bug, planted};

/// How many touched messages are looked at under one hold of the lock.
const CHUNK: usize = 1024;

/// A message that was touched before the store was opened, and may hold its group.
struct Touched {
    id: u64,
    lane: Lane,
    segment: Arc<Segment>,
    offset: u32,
}

impl Engine {
    /// Finds out which messages hold groups that were touched before the store was opened.
    pub(super) fn learn_holders(&self, queue: &Arc<QueueShared>) -> Result<()> {
        while let Some((from, next, touched)) = self.next_unlearned(queue)? {
            let mut holders: Vec<(u64, GroupKey)> = Vec::new();
            for touched in touched {
                let Touched { id, lane, segment, offset } = touched;
                let content = self.read(&segment, offset, lane, id)?;
                let head = content.as_ref().and_then(|content| content.head());
                let group = head.and_then(|head| head.group);
                holders.extend(group.map(|group| (id, GroupKey::from(group))));
            }
            let mut state = self.lock_open()?;
            let entry = queue_mut(&mut state, queue)?;
            if entry.unlearned != Some(from) {
                // Somebody else has.
                continue;
            }
            for (id, group) in holders {
                let touched = entry.touched.get(id).filter(|touched| may_hold(touched));
                if let Some(priority) = touched.map(|touched| touched.priority) {
                    entry.touched.hold(id, priority, &group);
                }
            }
            entry.unlearned = next;
        }
        Ok(())
    }

    /// The next messages that may hold a group, the id from which on they were looked for, and that from which on there may
    /// be more. None if there are no more.
    #[allow(clippy::type_complexity)]
    fn next_unlearned(
        &self,
        queue: &QueueShared,
    ) -> Result<Option<(u64, Option<u64>, Vec<Touched>)>> {
        'again: loop {
            let mut state = self.lock_open()?;
            let entry = queue_mut(&mut state, queue)?;
            let Some(from) = entry.unlearned else { return Ok(None) };
            let chunk: Vec<(u64, Entry)> =
                entry.touched.range(from..).take(CHUNK).map(|(id, e)| (id, e.clone())).collect();
            let next = chunk.last().map(|(last, _)| last + 1);
            let mut found = Vec::new();
            for (id, touched) in chunk.iter().filter(|(_, touched)| may_hold(touched)) {
                let lane = Lane { queue: queue.id, priority: touched.priority };
                let id = *id;
                match state.locate(lane, id, &self.log) {
                    Located::At { segment, offset } => {
                        found.push(Touched { id, lane, segment, offset });
                    }
                    Located::NeedsIndex(segment) => {
                        drop(state);
                        self.load_index(&segment)?;
                        continue 'again;
                    }
                    Located::Rolled => {
                        state.absorb(&mut self.log.tail());
                        continue 'again;
                    }
                    Located::Gone => {}
                }
            }
            return Ok(Some((from, next, found)));
        }
    }
}

/// Whether a message was delivered before, and is not done with.
fn may_hold(entry: &Entry) -> bool {
    !entry.fresh && matches!(entry.place, Place::GivenBack | Place::Delayed)
}

impl QueueEntry {
    /// Whether a message of this group may go out; if not, it waits from now on. A detour if it is not known who holds the
    /// group.
    pub fn admit_grouped(
        &mut self,
        candidate: &Candidate,
        group: &GroupKey,
    ) -> std::result::Result<Admitted, Detour> {
        let Candidate { id, priority, .. } = *candidate;
        if self.unlearned.is_some() {
            return Err(Detour::Holders);
        }
        if self.touched.may_go(id, priority, group) {
            return Ok(Admitted::Yes);
        }
        if !self.touched.wait(id, priority, group) {
            return Ok(Admitted::LaneWaits);
        }
        self.forget_known(id);
        Ok(Admitted::Waits)
    }

    /// Message `id` is chosen: none of its group is chosen beside it. It has been looked at.
    pub fn hold_group(&mut self, id: u64, priority: u8) {
        if let Some(group) = self.known.get(&id).and_then(|known| known.group.as_ref()) {
            self.touched.hold(id, priority, group);
        }
    }

    /// Wakes consumers if messages may go out now because another one is done with.
    #[inline]
    pub fn wake_for_groups(&mut self) {
        match self.touched.take_freed() {
            Freed::None => {}
            _ if planted(Bug::GroupWakesNobody) => {}
            Freed::One => self.shared.signal.notify_one(),
            Freed::More => self.shared.signal.notify_all(),
        }
    }
}
