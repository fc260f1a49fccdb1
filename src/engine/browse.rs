//! Looking through the messages of a queue that are in one state, without taking them.
//!
//! They are chosen under the dispatch lock, some at a time, and read outside of it. Where a look has come to is an id, so
//! that it means the same whatever happens in between: ids ascend, within a priority for those that are ready, and a
//! message keeps both for as long as it is there. So none is seen twice.

use std::sync::Arc;
use std::time::Instant;

use super::lane::{Head, LaneReader};
use super::queue_entry::QueueEntry;
use super::state::{Located, State};
use super::take::{Peeked, queue_mut};
use super::{Engine, QueueShared};
use crate::dispatch::{Entry, Place};
use crate::error::Result;
use crate::format::position::Position;
use crate::log::{Lane, Log, Segment};
use crate::report::State as MessageState;

/// How many messages are chosen and read at a time, of each of the two kinds: touched, and not.
const CHUNK: usize = 64;

/// How many touched messages are looked at under one hold of the lock.
const LOOKED_AT_MAX: usize = 4096;

/// How far a look has come.
#[derive(Clone, Debug)]
pub(crate) struct Browsing {
    place: Place,
    /// The priority that it is at; only for what is ready.
    priority: u8,
    /// All below was looked at.
    next_id: u64,
    /// What was inserted since it began is left out, or it might never end.
    end_id: u64,
    /// Also what may not be got yet because it is not durable.
    with_unseen: bool,
    is_over: bool,
}

impl Browsing {
    /// There are no more.
    pub fn end(&mut self) {
        self.is_over = true;
    }
}

/// A message that was chosen.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub id: u64,
    pub lane: Lane,
    pub attempts: u32,
    due_ms: u64,
    deadline: Option<Instant>,
    reason: Option<Box<str>>,
    /// Where it lies.
    segment: Arc<Segment>,
    offset: u32,
}

/// Where touched messages in this state are.
pub(super) fn place_of(state: MessageState) -> Place {
    match state {
        MessageState::Ready => Place::GivenBack,
        MessageState::InFlight => Place::InFlight,
        MessageState::Delayed => Place::Delayed,
        MessageState::Buried => Place::Buried,
    }
}

impl Engine {
    /// A look that begins with the first message in this state, and leaves out what is inserted from now on.
    pub fn browse(&self, which: MessageState, with_unseen: bool) -> Browsing {
        let end_id = self.log.tail().next_id();
        let (place, priority) = (place_of(which), u8::MAX);
        Browsing { place, priority, next_id: 0, end_id, with_unseen, is_over: false }
    }

    /// The next messages, at most twice `max`; none if there are no more.
    pub fn browse_some(
        &self,
        queue: &Arc<QueueShared>,
        at: &mut Browsing,
        max: usize,
    ) -> Result<Vec<Chosen>> {
        while !at.is_over {
            let visible = match at.with_unseen {
                true => Position::from_u64(u64::MAX),
                false => self.visible(queue),
            };
            let now = self.now();
            let mut state = self.lock_open()?;
            queue_mut(&mut state, queue)?.touched.advance(now.mono, now.wall_ms);
            match state.browse(queue.id, at, max, &self.log, visible) {
                Ok(chosen) if chosen.is_empty() => {}
                Ok(chosen) => return Ok(chosen),
                Err(segment) => {
                    drop(state);
                    self.load_index(&segment)?;
                }
            }
        }
        Ok(Vec::new())
    }

    /// The next messages, read; none if there are no more. What cannot be read now is an error in its place, and what has
    /// expired is left out though it may still be there.
    pub fn browse_next(
        &self,
        queue: &Arc<QueueShared>,
        at: &mut Browsing,
    ) -> Result<Vec<Result<Peeked>>> {
        loop {
            let mut chosen = self.browse_some(queue, at, CHUNK)?;
            if chosen.is_empty() {
                return Ok(Vec::new());
            }
            let waits = matches!(at.place, Place::GivenBack | Place::Delayed);
            let now_ms = self.now().wall_ms;
            let is_there = |peeked: &Peeked| !(waits && peeked.content.has_expired(now_ms));
            let read = chosen.iter_mut().map(|chosen| {
                let looked = self.look(chosen).map(|peeked| peeked.filter(is_there));
                looked.transpose()
            });
            let read: Vec<_> = read.flatten().collect();
            if !read.is_empty() {
                return Ok(read);
            }
        }
    }

    /// Reads a message that was chosen. None if it is gone by now, or its bytes are damaged, which whoever gets it reports.
    pub fn look(&self, chosen: &mut Chosen) -> Result<Option<Peeked>> {
        loop {
            let Chosen { id, lane, attempts, due_ms, deadline, .. } = *chosen;
            if let Some(content) = self.read(&chosen.segment, chosen.offset, lane, id)? {
                let reason = chosen.reason.take();
                return Ok(Some(Peeked { id, attempts, due_ms, deadline, reason, content }));
            }
            if !self.find_again(chosen)? {
                return Ok(None);
            }
        }
    }

    /// Whether the message lies elsewhere by now, since its segment was rewritten; then `chosen` says where.
    pub(super) fn find_again(&self, chosen: &mut Chosen) -> Result<bool> {
        loop {
            let mut state = self.lock_open()?;
            if state.lies_in(chosen.id, &chosen.segment) || state.is_deleted(chosen.id) {
                return Ok(false);
            }
            match state.locate(chosen.lane, chosen.id, &self.log) {
                Located::At { segment, offset } => {
                    (chosen.segment, chosen.offset) = (segment, offset);
                    return Ok(true);
                }
                Located::NeedsIndex(segment) => {
                    drop(state);
                    self.load_index(&segment)?;
                }
                Located::Rolled => state.absorb(&mut self.log.tail()),
                Located::Gone => return Ok(false),
            }
        }
    }
}

impl State {
    /// Goes on from `at`. An error is the segment whose index must be loaded first; then it is still at the same place.
    fn browse(
        &mut self,
        queue: u32,
        at: &mut Browsing,
        max: usize,
        log: &Log,
        visible: Position,
    ) -> std::result::Result<Vec<Chosen>, Arc<Segment>> {
        let Some(entry) = self.queues.get(&queue) else {
            at.is_over = true;
            return Ok(Vec::new());
        };
        let lane = match at.place {
            Place::GivenBack => {
                let Some(lane) = entry.lanes.iter().find(|l| l.priority() <= at.priority) else {
                    at.is_over = true;
                    return Ok(Vec::new());
                };
                Some((lane.priority(), at.next_id.max(lane.next_id())))
            }
            _ => None,
        };
        let (touched, mut end) =
            look_at_touched(entry, at, lane.map(|(priority, _)| priority), max);
        let mut chosen = Vec::new();
        for (id, entry) in touched {
            let lane = Lane { queue, priority: entry.priority };
            let Some((segment, offset)) = self.place_of_touched(lane, id, log)? else { continue };
            // Nobody has seen it.
            if entry.attempts == 0 && Position::new(segment.number, offset) >= visible {
                continue;
            }
            let Entry { attempts, deadline, reason, .. } = entry;
            // Of what was delayed it says when that was over.
            let due_ms = if entry.place == Place::Delayed { entry.due_ms } else { 0 };
            chosen.push(Chosen { id, lane, attempts, due_ms, deadline, reason, segment, offset });
        }
        if let Some((priority, from)) = lane {
            let lane = Lane { queue, priority };
            let untouched = self.look_at_untouched(lane, from, end, max, log, visible)?;
            if untouched.len() == max {
                end = untouched[max - 1].id + 1;
                chosen.retain(|chosen| chosen.id < end);
            }
            chosen.extend(untouched);
            chosen.sort_unstable_by_key(|chosen| chosen.id);
        }
        at.next_id = end;
        if end >= at.end_id {
            // To the next priority.
            let next = lane.and_then(|(priority, _)| priority.checked_sub(1));
            at.is_over = next.is_none();
            (at.priority, at.next_id) = (next.unwrap_or(0), 0);
        }
        Ok(chosen)
    }

    fn place_of_touched(
        &mut self,
        lane: Lane,
        id: u64,
        log: &Log,
    ) -> std::result::Result<Option<(Arc<Segment>, u32)>, Arc<Segment>> {
        loop {
            match self.locate(lane, id, log) {
                Located::At { segment, offset } => return Ok(Some((segment, offset))),
                Located::NeedsIndex(segment) => return Err(segment),
                Located::Rolled => self.absorb(&mut log.tail()),
                Located::Gone => return Ok(None),
            }
        }
    }

    /// Up to `max` messages of the lane that nobody has touched, with ids from `from` to before `end`. With fewer there
    /// are no more of those.
    fn look_at_untouched(
        &mut self,
        lane: Lane,
        from: u64,
        end: u64,
        max: usize,
        log: &Log,
        visible: Position,
    ) -> std::result::Result<Vec<Chosen>, Arc<Segment>> {
        // The queue's own reader stays where it is.
        let mut reader = LaneReader::new(lane, from);
        let mut found = Vec::new();
        while found.len() < max {
            let Some(entry) = self.queues.get(&lane.queue) else { break };
            match reader.head(&self.segments, &entry.touched, log, visible) {
                Head::Message { id, offset, segment } if id < end => {
                    reader.consume();
                    let (attempts, due_ms, deadline, reason) = (0, 0, None, None);
                    let new =
                        Chosen { id, lane, attempts, due_ms, deadline, reason, segment, offset };
                    found.push(new);
                }
                Head::NeedsIndex(segment) => return Err(segment),
                Head::Rolled => self.absorb(&mut log.tail()),
                Head::Message { .. } | Head::Empty => break,
            }
        }
        Ok(found)
    }
}

/// Up to `max` touched messages from where the look is, and where it has come to: all before that is among them.
fn look_at_touched(
    queue: &QueueEntry,
    at: &Browsing,
    priority: Option<u8>,
    max: usize,
) -> (Vec<(u64, Entry)>, u64) {
    let mut found = Vec::new();
    for (n, (id, entry)) in queue.touched.range(at.next_id..at.end_id).enumerate() {
        if found.len() == max || n == LOOKED_AT_MAX {
            return (found, id);
        }
        if entry.place == at.place && priority.is_none_or(|priority| priority == entry.priority) {
            found.push((id, entry.clone()));
        }
    }
    (found, at.end_id)
}
