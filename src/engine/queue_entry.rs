//! What is known of a queue under the dispatch lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::QueueShared;
use super::lane::LaneReader;
use super::look::Known;
use super::usage::Usage;
use crate::clock::{Now, millis};
use crate::dispatch::{DedupWindow, Entry, Limits, QueueState};
use crate::format::position::Position;
use crate::log::{Lane, Tail};
use crate::options::{Durability, QueueOptions};
use crate::report::Paused;
use crate::sync::atomic::Ordering;

#[derive(Debug)]
pub(super) struct QueueEntry {
    pub shared: Arc<QueueShared>,
    pub options: QueueOptions,
    /// Why nothing is got from it, if so.
    pub pause: Option<Paused>,
    /// Where the newest record that declares it ends.
    pub declared_at: Position,
    pub touched: QueueState,
    /// From this id on it is not known yet which of the touched messages hold groups; None if nothing is left to be known.
    pub unlearned: Option<u64>,
    /// What has been seen of messages that are next, where some expire or belong to groups.
    pub known: HashMap<u64, Known>,
    /// Of a queue with a limit in bytes.
    pub usage: Usage,
    /// Deduplication keys that were seen of late.
    pub window: DedupWindow,
    /// By falling priority.
    pub lanes: Vec<LaneReader>,
    /// When the one waiter that keeps the time for all of this queue's wakes up, and which one that is.
    pub alarm: Option<(Instant, u64)>,
    /// Messages of the sealed segments that are in the list, less all deleted ones; the others are counted in the tail of the
    /// log. So it may be below zero.
    pub settled_balance: i64,
}

impl QueueEntry {
    pub fn new(
        id: u32,
        name: &str,
        options: QueueOptions,
        default: Durability,
        first_id: u64,
    ) -> QueueEntry {
        let mut entry = QueueEntry {
            shared: QueueShared::new(id, name, default),
            options: QueueOptions::default(),
            pause: None,
            window: DedupWindow::new(window_limits(&options)),
            declared_at: Position::default(),
            touched: QueueState::default(),
            unlearned: None,
            known: HashMap::new(),
            usage: Usage::default(),
            lanes: Vec::new(),
            alarm: None,
            settled_balance: 0,
        };
        entry.set_options(options, default);
        entry.add_lane(0, first_id);
        entry
    }

    /// Message `id` is not next any more.
    #[inline]
    pub fn forget_known(&mut self, id: u64) {
        if !self.known.is_empty() {
            self.known.remove(&id);
        }
    }

    /// The same queue under another name.
    pub fn rename(&mut self, name: &str, default: Durability) {
        self.shared = self.shared.renamed(name, default);
        self.set_options(self.options.clone(), default);
    }

    pub fn set_options(&mut self, options: QueueOptions, default: Durability) {
        self.shared.set_durability(options.durability.unwrap_or(default));
        self.shared.set_ttl(options.ttl);
        self.window.set_limits(window_limits(&options));
        self.set_limited(options.is_limited());
        self.shared.wake_for_room();
        self.options = options;
    }

    /// A message that was inserted is due later: it is touched from the first.
    pub fn delay(&mut self, id: u64, priority: u8, due: u64) {
        let entry = Entry { fresh: true, ..Entry::delayed(priority, 0, due) };
        self.touched.put(id, entry);
    }

    /// Makes sure that messages of this priority are looked for, from `first_id` on.
    pub fn add_lane(&mut self, priority: u8, first_id: u64) {
        let at = self.lanes.partition_point(|lane| lane.priority() > priority);
        if self.lanes.get(at).is_none_or(|lane| lane.priority() != priority) {
            let lane = Lane { queue: self.shared.id, priority };
            self.lanes.insert(at, LaneReader::new(lane, first_id));
            self.shared.look_for_priority(priority);
        }
    }

    /// Looks for messages as `lanes` say, priority and first id, and for no others.
    pub fn set_lanes(&mut self, lanes: impl Iterator<Item = (u8, u64)>) {
        self.lanes.clear();
        self.shared.look_for_no_priority();
        lanes.for_each(|(priority, first_id)| self.add_lane(priority, first_id));
    }

    /// A message may become ready by time alone. If no waiter wakes up early enough, one is woken to see to it.
    pub fn set_timer(&self, now: Now) {
        if self.shared.waiters.load(Ordering::SeqCst) == 0 {
            return;
        }
        let Some(sleep) = self.touched.sleep_for(now.mono, now.wall_ms) else { return };
        let due = now.mono + sleep;
        if self.alarm.is_none_or(|(alarm, _)| due < alarm) {
            self.shared.signal.notify_one();
        }
    }

    /// Messages that are not deleted.
    pub fn live(&self, tail: &Tail) -> u64 {
        let lane = |lane: &LaneReader| Lane { queue: self.shared.id, priority: lane.priority() };
        let unsettled: usize = self.lanes.iter().map(lane).map(|lane| tail.lane_len(lane)).sum();
        u64::try_from(self.settled_balance + unsettled as i64).unwrap_or(0)
    }
}

fn window_limits(options: &QueueOptions) -> Limits {
    Limits { time_ms: millis(options.dedup_time), keys: options.dedup_keys }
}
