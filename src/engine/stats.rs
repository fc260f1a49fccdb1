//! Figures for the people who run a store.

use std::sync::Arc;

use super::segment_state::SegmentState;
use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::dispatch::Place;
use crate::error::Result;
use crate::id::MessageId;
use crate::log::{Lane, Tail};
use crate::report::{self, Damage, Paused};

/// How many messages of a queue are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Waiting for a consumer. Under `Sync` this includes those whose insert has not returned yet.
    pub ready: u64,
    /// Held by consumers.
    pub in_flight: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// Out of circulation.
    pub buried: u64,
    /// Why nothing is got from it, if it is paused.
    pub paused: Option<Paused>,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Queues that are declared.
    pub queues: usize,
    /// Segments of the log, the active one included.
    pub segments: usize,
    /// Messages that are not deleted, in all queues.
    pub messages: u64,
    /// What all files of the directory take, in bytes; segments that are made ready for what comes are counted in full.
    pub bytes_on_disk: u64,
    /// What the messages in the log take that are not deleted, in bytes, each with its envelope. At most: where deleted
    /// ones were of different sizes, it is found out when it matters.
    pub live_bytes: u64,
    /// What the rest of the log takes: deleted messages, and records of what became of messages.
    pub dead_bytes: u64,
    /// The segments, in the order of the log. The last one is active.
    pub log: Vec<SegmentStats>,
    /// The message that holds the oldest segment. None if that is the active one, or if it would have to be looked up on
    /// the disk.
    pub oldest: Option<Oldest>,
    /// Messages that were to be delivered and turned out to be damaged, since the store was opened. They were dropped.
    pub damaged_messages: u64,
    /// All damage that is known, that of earlier opens included.
    pub damage: Vec<Damage>,
}

/// What a segment of the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentStats {
    /// The number in its file's name.
    pub number: u32,
    /// Up to the end of what was written.
    pub bytes: u64,
    /// What its messages take that are not deleted; at most.
    pub live_bytes: u64,
    /// Messages that were inserted in it, or are left in it since it was rewritten.
    pub messages: u64,
    /// Those of them that are not deleted.
    pub live_messages: u64,
}

/// The first message that is not deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Oldest {
    /// Its queue.
    pub queue: String,
    /// Its number.
    pub id: MessageId,
    /// Where it is.
    pub state: report::State,
}

impl Engine {
    pub fn queue_stats(&self, queue: &Arc<QueueShared>) -> Result<QueueStats> {
        let now = self.now();
        let mut state = self.lock_open()?;
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        let entry = queue_mut(&mut state, queue)?;
        entry.touched.advance(now.mono, now.wall_ms);
        let live = entry.live(&tail);
        let touched = &entry.touched;
        let elsewhere = touched.in_flight() + touched.delayed() + touched.buried();
        Ok(QueueStats {
            ready: live.saturating_sub(elsewhere),
            in_flight: touched.in_flight(),
            delayed: touched.delayed(),
            buried: touched.buried(),
            paused: entry.pause,
        })
    }

    pub fn store_stats(&self) -> StoreStats {
        let files = self.storage.list().unwrap_or_default();
        let bytes_on_disk = files.iter().map(|file| file.len).sum();
        let oldest = self.oldest();
        let mut state = self.lock_state();
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        let log: Vec<SegmentStats> =
            state.segments.iter().map(|s| segment_stats(s, &tail)).collect();
        StoreStats {
            queues: state.queues.len(),
            segments: state.segments.len(),
            messages: state.queues.values().map(|queue| queue.live(&tail)).sum(),
            bytes_on_disk,
            live_bytes: log.iter().map(|segment| segment.live_bytes).sum(),
            dead_bytes: log
                .iter()
                .map(|segment| segment.bytes.saturating_sub(segment.live_bytes))
                .sum(),
            oldest,
            log,
            damaged_messages: state.damaged_messages,
            damage: state.damage.clone(),
        }
    }
}

fn segment_stats(s: &SegmentState, tail: &Tail) -> SegmentStats {
    let number = s.segment.file;
    let (bytes, live_bytes, messages) = match s.segment.is_sealed() {
        true => (s.segment.end().into(), *s.live_bytes().end(), s.messages),
        false => (tail.active_bytes().0, tail.active_message_bytes(), tail.active_messages()),
    };
    let live_messages = messages.saturating_sub(s.acks.count());
    // Of the active one it is not kept up what each deleted message took.
    let live_bytes = if live_messages == 0 { 0 } else { live_bytes.min(bytes) };
    SegmentStats { number, bytes, live_bytes, messages, live_messages }
}

impl Engine {
    /// Looked for outside of the locks: it may be the last of many.
    fn oldest(&self) -> Option<Oldest> {
        let (segment, acks) = {
            let state = self.lock_state();
            let holds = |s: &&SegmentState| !s.segment.is_sealed() || s.live() > 0;
            let s = state.segments.iter().find(holds)?;
            (s.segment.clone(), s.acks.clone())
        };
        // Of the active one the index is the appender's.
        let index = segment.index()?;
        let first = |lane: Lane, count: usize| {
            let mut deltas = (0..count).filter_map(|k| Some(index.entry(lane, k)?.0));
            deltas.find(|delta| !acks.contains(*delta)).map(|delta| (delta, lane.queue))
        };
        let lanes = index.lanes().into_iter();
        let (delta, queue) = lanes.filter_map(|(lane, count)| first(lane, count)).min()?;
        let id = segment.first_id + u64::from(delta);
        let state = self.lock_state();
        let queue = state.queues.get(&queue)?;
        let state = match queue.touched.get(id).map(|entry| entry.place) {
            None | Some(Place::GivenBack) => report::State::Ready,
            Some(Place::InFlight) => report::State::InFlight,
            Some(Place::Delayed) => report::State::Delayed,
            Some(Place::Buried) => report::State::Buried,
        };
        Some(Oldest { queue: queue.shared.name.to_string(), id: MessageId(id), state })
    }
}
