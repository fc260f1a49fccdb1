//! What became of the messages of one segment.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::cursor::AckSet;
use crate::log::{MemoryIndex, Segment, Tail, earlier};

#[derive(Debug)]
pub(super) struct SegmentState {
    pub segment: Arc<Segment>,
    pub acks: AckSet,
    /// Messages that were ever inserted in it; known when it is sealed.
    pub messages: u64,
    /// What they take.
    pub weight: Weight,
    /// It cannot be rewritten: something in it does not verify, which whoever gets that message will report.
    pub damaged: bool,
    /// No message of it has this id or a higher one; known when it is sealed.
    pub id_end: u64,
    /// The generation of the first cursor that does not name it, once it is dead.
    pub dropped_in: Option<u64>,
    /// Before this time, in milliseconds since the epoch, none of its messages expires; None for never. In the active
    /// segment, but for those that its index says it of.
    pub sweep_at: Option<u64>,
    /// What `sweep_at` was before the sweep that is going on.
    pub sweeping: Option<u64>,
}

impl SegmentState {
    pub fn new(segment: Arc<Segment>) -> SegmentState {
        SegmentState {
            segment,
            acks: AckSet::default(),
            messages: 0,
            weight: Weight::default(),
            damaged: false,
            id_end: u64::MAX,
            dropped_in: None,
            sweep_at: None,
            sweeping: None,
        }
    }

    /// A message of it expires then.
    pub fn note_expiry(&mut self, expiry: Option<u64>) {
        self.sweep_at = earlier(self.sweep_at, expiry);
    }

    /// Before this time none of its messages expires; None for never.
    pub fn first_expiry(&self, tail: &Tail) -> Option<u64> {
        let index = if tail.is_active(self.segment.number) { tail.first_expiry() } else { None };
        earlier(index, earlier(self.sweep_at, self.sweeping))
    }

    /// Messages that are not deleted; only for a sealed segment.
    pub fn live(&self) -> u64 {
        self.messages.saturating_sub(self.acks.count())
    }

    /// What the frames of messages take that are not deleted, at least and at most; only for a sealed segment.
    pub fn live_bytes(&self) -> RangeInclusive<u64> {
        let deleted = self.acks.count().saturating_sub(self.weight.acked);
        let most = self.weight.most.saturating_sub(deleted * FRAME_BYTES_MIN);
        let least = self.weight.least.saturating_sub(deleted.saturating_mul(self.weight.largest));
        least.max(self.live() * FRAME_BYTES_MIN).min(most)..=most
    }
}

/// No frame is smaller.
const FRAME_BYTES_MIN: u64 = 24;

/// What the messages of a segment took at one time. What has been deleted since is known by number alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weight {
    /// How many were deleted then.
    pub acked: u64,
    /// What the frames of the others took, at least and at most.
    pub least: u64,
    pub most: u64,
    /// No frame of them took more.
    pub largest: u64,
}

impl Weight {
    /// Of a segment of which nothing is deleted.
    pub fn of(index: &MemoryIndex) -> Weight {
        Weight { acked: 0, least: index.bytes(), most: index.bytes(), largest: index.largest() }
    }

    /// Where only that is known, with so many deleted. It was exact before the first one was.
    pub fn at_most(bytes: u64, acked: u64) -> Weight {
        let least = if acked == 0 { bytes } else { 0 };
        Weight { acked, least, most: bytes, largest: u64::MAX }
    }
}
