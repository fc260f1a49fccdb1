//! Figures for the people who run a store.

use std::sync::Arc;

use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::error::Result;
use crate::report::Damage;

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
    /// Messages that were to be delivered and turned out to be damaged, since the store was opened. They were dropped.
    pub damaged_messages: u64,
    /// All damage that is known, that of earlier opens included.
    pub damage: Vec<Damage>,
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
        })
    }

    pub fn store_stats(&self) -> StoreStats {
        let mut state = self.lock_state();
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        StoreStats {
            queues: state.queues.len(),
            segments: state.segments.len(),
            messages: state.queues.values().map(|queue| queue.live(&tail)).sum(),
            damaged_messages: state.damaged_messages,
            damage: state.damage.clone(),
        }
    }
}
