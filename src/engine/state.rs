//! What the dispatch lock guards: the queues, what became of their messages, and which segments still matter.
//!
//! Everything here is memory. Changes of a message's state are made together with the append of their record,
//! under this lock, so that the log and this state never disagree about the order of things.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::choose::Candidate;
use super::lane::{Head, LaneReader, find};
use super::queue_entry::QueueEntry;
use super::segment_state::{SegmentState, Weight};
use super::take::Few;
use crate::dispatch::Turn;
use crate::format::position::Position;
use crate::log::{Lane, LaneIndex, Log, MemoryIndex, Sealed, Segment, Tail};
use crate::report::Damage;

/// A segment that was rewritten. A kept cursor may still name it.
#[derive(Debug)]
pub(super) struct Retired {
    pub segment: Arc<Segment>,
    /// The generation of the first cursor that does not name it.
    pub dropped_in: Option<u64>,
}

#[derive(Default)]
pub(super) struct State {
    pub queues: BTreeMap<u32, QueueEntry>,
    pub names: HashMap<Arc<str>, u32>,
    /// In the order of the log. The last one is active.
    pub segments: Vec<SegmentState>,
    pub next_queue: u32,
    pub next_token: u64,
    /// Damage that is known; reported once, and remembered by the cursor.
    pub damage: Vec<Damage>,
    /// Messages whose frames turned out to be damaged when they were to be delivered.
    pub damaged_messages: u64,
    /// How large the newest cursor is.
    pub cursor_bytes: u64,
    /// Sealed, and not yet cut to their end.
    pub untrimmed: Vec<Sealed>,
    /// Segments that were rewritten, whose files are still there.
    pub retired: Vec<Retired>,
    /// A sealed segment has lost its last message since the background thread looked.
    pub reclaimable: bool,
    /// Damage was found, and the messages are not [counted](State::recount) anew yet.
    pub recount_due: bool,
}

impl State {
    /// Takes in what the log has sealed since, and the segment that is active now.
    pub fn absorb(&mut self, tail: &mut Tail) {
        for sealed in tail.take_sealed() {
            self.count_sealed(&sealed.segment);
            self.untrimmed.push(sealed);
        }
        if let Some(active) = tail.active()
            && self.segments.last().is_none_or(|last| last.segment.number != active.segment.number)
        {
            self.append_segment(active.segment.clone());
        }
    }

    /// The log goes on in `segment`.
    fn append_segment(&mut self, segment: Arc<Segment>) {
        if let Some(last) = self.segments.last_mut() {
            last.id_end = last.id_end.min(segment.first_id);
        }
        self.segments.push(SegmentState::new(segment));
    }

    fn count_sealed(&mut self, segment: &Arc<Segment>) {
        let Some(index) = segment.index() else { return };
        self.count_lanes(&index, segment.first_id);
        let at = find(&self.segments, segment.number).unwrap_or_else(|| {
            self.append_segment(segment.clone());
            self.segments.len() - 1
        });
        self.segments[at].messages = index.messages();
        if let LaneIndex::Memory(index) = &*index {
            self.segments[at].weight = Weight::of(index);
            self.segments[at].note_expiry(index.first_expiry());
        }
        self.reclaimable = true;
    }

    fn count_lanes(&mut self, index: &LaneIndex, first_id: u64) {
        for (lane, count) in index.lanes() {
            if let Some(queue) = self.queues.get_mut(&lane.queue) {
                queue.add_lane(lane.priority, first_id);
                queue.settled_balance += count as i64;
            }
        }
    }

    /// Notes damage that was found. Where it begins as some that was known, it has grown, and takes its place.
    pub fn note_damage(&mut self, found: Vec<Damage>) {
        for new in found {
            self.damage.retain(|known| (&known.file, known.offset) != (&new.file, new.offset));
            self.damage.push(new);
        }
    }

    /// Counts all messages anew, after damage that has made some of them vanish. Every sealed segment must have its
    /// index; `index` is that of the active one, number `active`.
    ///
    /// Ensures: what is touched or deleted is in an index, so that [`SegmentState::live`] never counts too few.
    pub fn recount(&mut self, active: u32, index: &MemoryIndex) {
        for queue in self.queues.values_mut() {
            queue.settled_balance = 0;
        }
        let queues = self.queues.values();
        let holders: HashSet<u64> = queues.flat_map(|q| q.touched.untouched_holders()).collect();
        let mut there = HashSet::new();
        for s in &mut self.segments {
            let is_active = s.segment.number == active;
            let messages = match s.segment.index().filter(|_| !is_active) {
                Some(index) => index.all(),
                None if is_active => index.all(),
                None => continue,
            };
            let old = std::mem::take(&mut s.acks);
            for &(lane, delta) in &messages {
                let id = s.segment.first_id + u64::from(delta);
                let Some(queue) = self.queues.get_mut(&lane.queue) else {
                    // A message of a queue that is gone is deleted.
                    s.acks.insert(delta);
                    continue;
                };
                queue.add_lane(lane.priority, 0);
                if old.contains(delta) {
                    s.acks.insert(delta);
                    // Those of the active segment are counted there.
                    queue.settled_balance -= i64::from(is_active);
                } else {
                    queue.settled_balance += i64::from(!is_active);
                    if queue.touched.contains(id) || holders.contains(&id) {
                        there.insert(id);
                    }
                }
            }
            s.messages = messages.len() as u64;
            let most = s.segment.end().into();
            s.weight = Weight { acked: s.acks.count(), least: 0, most, largest: u64::MAX };
        }
        for queue in self.queues.values_mut() {
            let touched = queue.touched.range(..).map(|(id, _)| id);
            let all = touched.chain(queue.touched.untouched_holders());
            let gone: Vec<u64> = all.filter(|id| !there.contains(id)).collect();
            gone.into_iter().for_each(|id| drop(queue.touched.remove(id)));
            queue.wake_for_groups();
            // What a lane has waited with may be among them.
            queue.shared.signal.notify_all();
            queue.shared.wake_for_room();
        }
        self.reclaimable = true;
    }

    /// The segment that holds message `id`, if it is still there.
    pub fn segment_of(&self, id: u64) -> Option<usize> {
        let behind = self.segments.partition_point(|s| s.segment.first_id <= id);
        behind.checked_sub(1)
    }

    /// The segment of message `id` is to be swept, whatever the last sweep has found.
    pub fn sweep_again(&mut self, id: u64) {
        if let Some(at) = self.segment_of(id) {
            self.segments[at].note_expiry(Some(0));
        }
    }

    /// Whether `segment` still is the one that holds message `id`. A rewritten one does not know of the messages that were
    /// deleted before.
    pub fn lies_in(&self, id: u64, segment: &Arc<Segment>) -> bool {
        self.segment_of(id).is_some_and(|at| Arc::ptr_eq(&self.segments[at].segment, segment))
    }

    pub fn is_deleted(&self, id: u64) -> bool {
        let Some(at) = self.segment_of(id) else { return true };
        let s = &self.segments[at];
        let delta = u32::try_from(id - s.segment.first_id);
        id >= s.id_end || delta.is_ok_and(|delta| s.acks.contains(delta))
    }

    /// Marks `id` deleted. Whether it was not before.
    pub fn ack(&mut self, id: u64) -> bool {
        let Some(at) = self.segment_of(id) else { return false };
        let s = &mut self.segments[at];
        if id >= s.id_end {
            return false;
        }
        let Ok(delta) = u32::try_from(id - s.segment.first_id) else { return false };
        let new = s.acks.insert(delta);
        if new && s.segment.is_sealed() && s.live() == 0 {
            self.reclaimable = true;
        }
        new
    }

    /// A message of `queue` was deleted, which took so many bytes; None if that is not known.
    pub fn forget(&mut self, queue: u32, id: u64, bytes: Option<u64>) {
        let new = self.ack(id);
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.touched.remove(id);
            queue.wake_for_groups();
            queue.forget_known(id);
            if new {
                queue.settled_balance -= 1;
                queue.usage.remove(id, bytes);
                queue.shared.wake_for_room();
            }
        }
    }

    /// The next untouched message of a queue that lies before `visible`, with the priority of its lane. Lanes of lower
    /// priority than `at_least` are left out, and those that `without` has a bit for.
    pub fn lane_head(
        &mut self,
        queue: u32,
        at_least: u8,
        without: u16,
        log: &Log,
        visible: Position,
    ) -> Option<(u8, Head)> {
        let entry = self.queues.get_mut(&queue)?;
        // Read before the looks: what one of them misses changes the number.
        let moment = (entry.shared.urgent(), visible);
        for lane in entry.lanes.iter_mut().filter(|lane| lane.priority() >= at_least) {
            let is_out = without & 1 << lane.priority() != 0;
            if is_out || lane.priority() > 0 && lane.is_empty_since(moment) {
                continue;
            }
            match lane.head(&self.segments, &entry.touched, log, visible) {
                Head::Empty => lane.note_empty(moment),
                head => return Some((lane.priority(), head)),
            }
        }
        None
    }

    /// Adds to `chosen`, up to `max`, what has been read ahead of the lane that is next, if nothing that was given back comes
    /// before it, but for what was chosen up to `behind`. Whether there was anything.
    pub fn take_ahead(
        &mut self,
        queue: u32,
        visible: Position,
        behind: Option<Turn>,
        max: usize,
        chosen: &mut Few<Candidate>,
    ) -> bool {
        let Some(entry) = self.queues.get_mut(&queue) else { return false };
        let above = entry.touched.next_ready(behind).map_or(0, |turn| turn.priority() + 1);
        let moment = (entry.shared.urgent(), visible);
        let mut lanes = entry.lanes.iter_mut().take_while(|lane| lane.priority() >= above);
        match lanes.find(|lane| lane.priority() == 0 || !lane.is_empty_since(moment)) {
            Some(lane) => lane.take_ahead(&self.segments, &entry.touched, visible, max, chosen),
            None => false,
        }
    }

    pub fn lane(&mut self, queue: u32, priority: u8) -> Option<&mut LaneReader> {
        let lanes = &mut self.queues.get_mut(&queue)?.lanes;
        lanes.iter_mut().find(|lane| lane.priority() == priority)
    }

    /// Where message `id` lies, if it is in that lane.
    pub fn locate(&self, lane: Lane, id: u64, log: &Log) -> Located {
        let Some(at) = self.segment_of(id) else { return Located::Gone };
        let segment = &self.segments[at].segment;
        let Ok(delta) = u32::try_from(id - segment.first_id) else { return Located::Gone };
        let offset = if segment.is_sealed() {
            // It may lie in a segment that is not in the list yet: somebody may have been told this id a moment ago.
            if at + 1 == self.segments.len() && !is_last(segment, log) {
                return Located::Rolled;
            }
            match segment.index() {
                Some(index) => index.find(lane, delta),
                None => return Located::NeedsIndex(segment.clone()),
            }
        } else {
            let tail = log.tail();
            if !tail.is_active(segment.number) {
                return Located::Rolled;
            }
            tail.find(segment.number, lane, delta)
        };
        match offset {
            Some(offset) => Located::At { segment: segment.clone(), offset },
            None => Located::Gone,
        }
    }

    /// The first of `count` in a row that nobody had before. 0 is none.
    pub fn new_tokens(&mut self, count: u64) -> u64 {
        let first = self.next_token + 1;
        self.next_token += count;
        first
    }
}

/// Whether the log does not go on in another segment.
fn is_last(segment: &Segment, log: &Log) -> bool {
    log.tail().active().is_none_or(|active| active.segment.number == segment.number)
}

pub(super) enum Located {
    At { segment: Arc<Segment>, offset: u32 },
    NeedsIndex(Arc<Segment>),
    Rolled,
    Gone,
}
