//! Taking a message out of circulation: to the dead letter queue in one append, or buried where it is.
//!
//! A move that finds no space falls back to burying the message, which needs none: it is kept rather than lost.

use std::sync::Arc;
use std::time::Instant;

use super::insert::expiry_ms;
use super::limits::Need;
use super::queue_shared::Traits;
use super::settle::{Claimant, Fate};
use super::state::{Located, State};
use super::take::queue_mut;
use super::{Content, Engine, QueueShared};
use crate::clock::real_now;
use crate::dispatch::Entry;
use crate::error::{ErrorKind, Result};
use crate::format::record::DELETE;
use crate::format::record::insert::{InsertHead, Origin};
use crate::format::record::settle::{encode_delete, reason_cut};
use crate::log::{Appended, Draft, Lane, Purpose};
use crate::options::Durability;
use crate::planted::{Bug, planted};
use crate::sync::atomic::Ordering;

/// A message on its way from one queue to another.
#[derive(Clone, Copy)]
pub(super) struct Move<'a> {
    pub from: &'a QueueShared,
    pub id: u64,
    pub to: &'a Arc<QueueShared>,
    pub content: &'a Content,
    /// What it will tell of its past.
    pub origin: Origin<'a>,
    /// When the background thread must have made it durable.
    pub sync_by: Option<Instant>,
}

impl Engine {
    /// A message that is given back is not to be delivered any more.
    pub(super) fn retire_given_back(
        &self,
        queue: &Arc<QueueShared>,
        id: u64,
        claimant: Claimant,
        why: &str,
    ) -> Result<()> {
        match self.retire(queue, id, claimant, why) {
            // Somebody else has dealt with it meanwhile.
            Err(error) if *error.kind() == ErrorKind::StaleDelivery => Ok(()),
            other => other.map(|_| ()),
        }
    }

    pub(super) fn retire(
        &self,
        queue: &Arc<QueueShared>,
        id: u64,
        claimant: Claimant,
        why: &str,
    ) -> Result<Fate> {
        if self.try_move(queue, id, claimant, why)? {
            return Ok(Fate::DeadLettered);
        }
        self.put_as(queue, id, claimant, |entry, _, _| {
            (Entry::buried(entry.priority, entry.attempts, reason_cut(why)), Fate::Buried)
        })
    }

    /// Moves a message to the dead letter queue. False if there is none, or if it cannot be moved there.
    pub(super) fn try_move(
        &self,
        queue: &Arc<QueueShared>,
        id: u64,
        claimant: Claimant,
        why: &str,
    ) -> Result<bool> {
        loop {
            let dead_letter = {
                let mut state = self.lock_state();
                // A stale delivery changes nothing, and declares no dead letter queue either.
                claimant.check(&state, queue, id)?;
                queue_mut(&mut state, queue)?.options.dead_letter.clone()
            };
            let Some(name) = dead_letter else { return Ok(false) };
            let target = match self.open_queue(&name) {
                Err(error) if *error.kind() == ErrorKind::DiskFull => return Ok(false),
                target => target?,
            };
            match self.move_to(queue, id, claimant, &target, why) {
                // It was removed while the message was on its way.
                Err(error) if *error.kind() == ErrorKind::NotFound => continue,
                // It is kept where it is rather than lost.
                Err(error) if *error.kind() == ErrorKind::DiskFull => return Ok(false),
                moved => return moved,
            }
        }
    }

    /// Moves a message to another queue in one append: it is never in both, and never in neither. False if its bytes
    /// cannot be read.
    fn move_to(
        &self,
        from: &Arc<QueueShared>,
        id: u64,
        claimant: Claimant,
        to: &Arc<QueueShared>,
        why: &str,
    ) -> Result<bool> {
        let Some((content, attempts)) = self.content_of(from, id, claimant)? else {
            return Ok(false);
        };
        let origin = Origin {
            id: content.origin_id,
            attempts,
            queue: from.name.as_bytes(),
            reason: reason_cut(why).as_bytes(),
        };
        // Nobody waits for this one, so the background thread has to make it durable, and so visible.
        let sync_by = match to.durability() {
            Durability::Sync => Some(self.time.mono()),
            other => self.sync_by(other),
        };
        let moved = Move { from, id, to, content: &content, origin, sync_by };
        let appended = match self
            .append_move(&moved, |state, _| claimant.check(state, from, id).map(drop))
        {
            // It is kept where it is.
            Err(error) if matches!(error.kind(), ErrorKind::QueueFull | ErrorKind::TooLarge) => {
                return Ok(false);
            }
            appended => appended?,
        };
        if to.durability() == Durability::Sync {
            self.unseen.fetch_max(appended.end.as_u64(), Ordering::SeqCst);
            // The sync may have been faster.
            self.wake_for_unseen();
        }
        self.wake_waiters(to, 1);
        Ok(true)
    }

    /// Appends that a message is in another queue now, if `check` finds nothing against it, and against the room that it
    /// needs there.
    pub(super) fn append_move(
        &self,
        moved: &Move<'_>,
        check: impl Fn(&State, Need) -> Result<()>,
    ) -> Result<Appended> {
        let Move { from, id, to, content, origin, sync_by } = *moved;
        let (priority, now) = (content.priority, self.now());
        let expiry = to.ttl().map_or(Ok(None), |ttl| expiry_ms(ttl, now).map(Some))?;
        let head = content.head();
        let group = head.and_then(|head| head.group);
        let insert = InsertHead {
            origin: Some(origin),
            expiry,
            group,
            headers: head.and_then(|head| head.headers),
            ..InsertHead::plain(now.wall_ms, to.id, priority)
        };
        let mut head = Vec::new();
        let info = insert.encode_head(&mut head);
        let mut delete = Vec::new();
        encode_delete(from.id, std::iter::once((id, 1)), &mut delete);
        let lanes = [Lane { queue: to.id, priority }];
        let traits = Traits { priority, expires: expiry.is_some(), grouped: group.is_some() };
        let run = [
            Draft { expiry, ..Draft::insert(info, &head, content.payload(), &lanes) },
            Draft::record(DELETE, &delete),
        ];
        let appended = loop {
            self.check_alive()?;
            self.look_for(to, traits)?;
            let state = self.lock_state();
            let need = Need::of(&run[..1]);
            check(&state, need)?;
            let room = self.room(state, to, need, Some(real_now()))?;
            let Some((mut state, victims)) = room else { continue };
            let (run, rest) = run.split_at(if planted(Bug::MovedInTwoAppends) { 1 } else { 2 });
            match self.append_with_victims(to, run, &victims, sync_by) {
                Ok(appended) => {
                    if planted(Bug::MovedInTwoAppends) {
                        let _ = self.log.append(rest, Purpose::Insert, sync_by, None);
                    }
                    self.forget_victims(&mut state, to, &victims);
                    if let Some(to) = state.queues.get_mut(&to.id) {
                        to.note_usage(&run[..1]);
                    }
                    state.forget(from.id, id, Some(content.bytes()));
                    self.after_settle(&mut state);
                    break appended;
                }
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Insert)?;
                }
            }
        };
        to.note_append(priority);
        self.after_append(&appended);
        Ok(appended)
    }

    /// The bytes of a touched message, and its attempts; None if they cannot be found or do not verify.
    fn content_of(
        &self,
        queue: &Arc<QueueShared>,
        id: u64,
        claimant: Claimant,
    ) -> Result<Option<(Content, u32)>> {
        loop {
            let mut state = self.lock_open()?;
            let entry = claimant.check(&state, queue, id)?;
            let (lane, attempts) =
                (Lane { queue: queue.id, priority: entry.priority }, entry.attempts);
            match state.locate(lane, id, &self.log) {
                Located::At { segment, offset } => {
                    drop(state);
                    let content = self.read(&segment, offset, lane, id)?;
                    return Ok(content.map(|content| (content, attempts)));
                }
                Located::NeedsIndex(segment) => {
                    drop(state);
                    self.load_index(&segment)?;
                }
                Located::Rolled => state.absorb(&mut self.log.tail()),
                Located::Gone => return Ok(None),
            }
        }
    }
}
