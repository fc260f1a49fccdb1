//! What the messages of a queue with a limit in bytes take.
//!
//! It is counted by whoever first needs it, segment by segment beside running work, and kept up to date from then on; who
//! deletes without having seen the size lets it be counted anew.

use std::sync::Arc;

use super::compact::place;
use super::queue_entry::QueueEntry;
use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::error::Result;
use crate::format::frame::{HeaderOnly, frame_bytes, read_header};
use crate::format::position::Position;
use crate::log::{Draft, Segment, Slot};
use crate::storage::Mapping;

/// What the messages of a queue take that have a lower id than `below`, in bytes. The rest is not counted yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    bytes: u64,
    below: u64,
}

impl Usage {
    /// What all messages take, if they are all counted.
    pub fn total(self) -> Option<u64> {
        (self.below == u64::MAX).then_some(self.bytes)
    }

    /// A new message takes so much.
    pub fn add(&mut self, bytes: u64) {
        if self.below == u64::MAX {
            self.bytes += bytes;
        }
    }

    /// Message `id` is gone, which took so much; None if nobody knows.
    pub fn remove(&mut self, id: u64, bytes: Option<u64>) {
        match bytes {
            _ if id >= self.below => {}
            Some(bytes) => self.bytes = self.bytes.saturating_sub(bytes),
            None => *self = Usage::default(),
        }
    }
}

/// What a message with a body of this length takes, as limits count it.
pub(super) fn message_bytes(body: u64) -> u64 {
    frame_bytes(body, false)
}

impl Engine {
    /// Counts what the messages of a queue take, a segment at a time.
    pub(super) fn count_usage(&self, queue: &Arc<QueueShared>) -> Result<()> {
        while let Some((segment, counted)) = self.next_to_count(queue)? {
            if segment.index().is_none() {
                self.load_index(&segment)?;
            }
            // What is missing takes nothing.
            let data = self.data_of(&segment)?;
            let size = |at| data.map_or(0, |data| size_at(&segment, data, at));
            let slots = slots_behind(&segment, queue, counted).into_iter();
            let sizes: Vec<(u32, u64)> = slots.map(|(delta, at)| (delta, size(at))).collect();
            let mut state = self.lock_open()?;
            let Some(at) = place(&state, &segment) else { continue };
            let s = &state.segments[at];
            let left = sizes.iter().filter(|(delta, _)| !s.acks.contains(*delta));
            let (bytes, below) = (left.map(|(_, bytes)| bytes).sum::<u64>(), s.id_end);
            let usage = &mut queue_mut(&mut state, queue)?.usage;
            // Somebody else may have counted it, or everything has to be counted anew.
            if usage.below == counted {
                *usage = Usage { bytes: usage.bytes + bytes, below };
            }
        }
        Ok(())
    }

    /// The next sealed segment to be counted, and below which id everything is. The active one is counted here, at last: it
    /// is in memory.
    fn next_to_count(&self, queue: &QueueShared) -> Result<Option<(Arc<Segment>, u64)>> {
        let mut guard = self.lock_open()?;
        let state = &mut *guard;
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        let below = queue_mut(state, queue)?.usage.below;
        if below == u64::MAX {
            return Ok(None);
        }
        let next = state.segments.iter().find(|s| s.id_end > below);
        let Some(s) = next else { return Ok(None) };
        if s.segment.is_sealed() {
            return Ok(Some((s.segment.clone(), below)));
        }
        let Some(data) = self.data_of(&s.segment)? else { return Ok(None) };
        let (segment, acks) = (&s.segment, &s.acks);
        let lanes = tail.lanes().into_iter().filter(|lane| lane.queue == queue.id);
        let everything = Position::from_u64(u64::MAX);
        let slots = lanes
            .filter_map(|lane| tail.read_lane(segment.number, lane, 0, everything, usize::MAX));
        let live = slots.flatten().filter(|(delta, _)| !acks.contains(*delta));
        let bytes: u64 = live.map(|(_, at)| size_at(segment, data, at)).sum();
        let usage = &mut queue_mut(state, queue)?.usage;
        *usage = Usage { bytes: usage.bytes + bytes, below: u64::MAX };
        Ok(None)
    }
}

/// The messages of a queue in a sealed segment whose ids are not below `counted`: a rewritten one may begin before it.
fn slots_behind(segment: &Segment, queue: &QueueShared, counted: u64) -> Vec<Slot> {
    let Some(index) = segment.index() else { return Vec::new() };
    let delta = u32::try_from(counted.saturating_sub(segment.first_id)).unwrap_or(u32::MAX);
    let lanes = index.lanes().into_iter().filter(|(lane, _)| lane.queue == queue.id);
    let slots = lanes.flat_map(|(lane, count)| {
        let index = &index;
        (index.lower_bound(lane, delta)..count).filter_map(move |k| index.entry(lane, k))
    });
    slots.collect()
}

/// What the message at `offset` takes; nothing if its envelope cannot be read.
fn size_at(segment: &Segment, data: &Mapping, offset: u32) -> u64 {
    let bytes = data.get(0..data.published()).unwrap_or_default();
    match read_header(bytes, offset, &segment.seed) {
        HeaderOnly::Frame(envelope) => message_bytes(envelope.length.into()),
        HeaderOnly::End | HeaderOnly::Bad => 0,
    }
}

impl QueueEntry {
    /// Messages of these sizes were appended.
    pub fn note_usage(&mut self, run: &[Draft<'_>]) {
        run.iter().for_each(|draft| self.usage.add(draft.frame_bytes(false)));
    }
}
