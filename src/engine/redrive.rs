//! Bringing dead letters back to the queues that they came from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::browse::Chosen;
use super::dead_letter::Move;
use super::state::State;
use super::{Content, Engine, QueueShared};
use crate::dispatch::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::format::position::Position;
use crate::format::record::insert::Origin;
use crate::options::Durability;
use crate::report::State as MessageState;

/// How many messages are moved before the queues that they went to are told.
const CHUNK: usize = 256;

/// What was moved and nobody was told of yet.
#[derive(Default)]
struct Moved {
    /// How many messages went to each queue.
    to: BTreeMap<u32, (Arc<QueueShared>, usize)>,
    end: Option<Position>,
}

impl Engine {
    /// Moves up to `max` ready messages back to the queues that have given them up, and returns how many. Each of them is
    /// durable as an insert is.
    pub fn redrive(&self, queue: &Arc<QueueShared>, max: u64) -> Result<u64> {
        let mut at = self.browse(MessageState::Ready, true);
        let mut count = 0;
        while count < max {
            let chunk = CHUNK.min(usize::try_from(max - count).unwrap_or(CHUNK));
            let chosen = self.browse_some(queue, &mut at, chunk)?;
            if chosen.is_empty() {
                break;
            }
            let mut moved = Moved::default();
            let mut failed = None;
            for chosen in chosen {
                if count == max {
                    break;
                }
                match self.redrive_one(queue, chosen, &mut moved) {
                    Ok(was_moved) => count += u64::from(was_moved),
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            self.tell_of(moved)?;
            match failed {
                // So far it has come.
                Some(error) if error.is_retryable() && count > 0 => break,
                Some(error) => return Err(error),
                None => {}
            }
        }
        Ok(count)
    }

    /// Makes what was moved durable where that is asked for, and wakes consumers.
    fn tell_of(&self, moved: Moved) -> Result<()> {
        let synced = moved.to.values().any(|(to, _)| to.durability() == Durability::Sync);
        if let Some(end) = moved.end.filter(|_| synced) {
            self.sync_to(end)?;
        }
        for (to, count) in moved.to.values() {
            self.wake_waiters(to, *count);
        }
        Ok(())
    }

    /// Whether the message was moved: it stays if it does not come from elsewhere, or from a queue that is not there, or
    /// is not ready any more.
    fn redrive_one(
        &self,
        queue: &Arc<QueueShared>,
        mut chosen: Chosen,
        moved: &mut Moved,
    ) -> Result<bool> {
        loop {
            let Some(peeked) = self.look(&mut chosen)? else { return Ok(false) };
            let content = peeked.content;
            if content.has_expired(self.now().wall_ms) {
                return Ok(false);
            }
            let head = content.head();
            let Some(origin) = head.and_then(|head| head.origin) else { return Ok(false) };
            let Some(to) = self.named(origin.queue).filter(|to| to.id != queue.id) else {
                return Ok(false);
            };
            match self.move_back(queue, chosen.id, &to, &content, origin, moved) {
                // Its segment was rewritten, or somebody has taken it.
                Err(error) if *error.kind() == ErrorKind::StaleDelivery => {
                    if !self.find_again(&mut chosen)? {
                        return Ok(false);
                    }
                }
                // The queue was removed meanwhile.
                Err(error) if *error.kind() == ErrorKind::NotFound => return Ok(false),
                result => return result.map(|()| true),
            }
        }
    }

    fn move_back(
        &self,
        from: &QueueShared,
        id: u64,
        to: &Arc<QueueShared>,
        content: &Content,
        origin: Origin<'_>,
        moved: &mut Moved,
    ) -> Result<()> {
        let sync_by = self.sync_by(to.durability());
        let back = Move { from, id, to, content, origin, sync_by };
        let appended = self.append_move(&back, |state, need| {
            check_ready(state, from, id, content)?;
            // Or what is brought back could be what makes room for what makes room for it.
            self.check_room(state, to, need)
        })?;
        moved.to.entry(to.id).or_insert_with(|| (to.clone(), 0)).1 += 1;
        moved.end = Some(appended.end);
        Ok(())
    }

    /// The queue of that name, if there is one.
    fn named(&self, name: &[u8]) -> Option<Arc<QueueShared>> {
        let state = self.lock_state();
        let id = state.names.get(std::str::from_utf8(name).ok()?)?;
        Some(state.queues.get(id)?.shared.clone())
    }
}

/// An error if the message is not ready any more, or not where `content` was read from.
fn check_ready(state: &State, queue: &QueueShared, id: u64, content: &Content) -> Result<()> {
    let entry = state.queues.get(&queue.id).ok_or_else(super::removed)?;
    let touched = entry.touched.get(id);
    let ready = touched.is_none_or(|entry| entry.place == Place::GivenBack);
    if !ready || state.is_deleted(id) || !state.lies_in(id, content.segment()) {
        return Err(Error::stale());
    }
    Ok(())
}
