//! Which deduplication keys a queue has seen of late, and which message each was first inserted with.
//!
//! Keys are kept whole: where two were taken for one because their hashes are alike, a message would be lost.
//!
//! A window is the end of the line of all keys that were ever inserted: the oldest is forgotten first, whether by time
//! or by number. So what the log says gives the same window again, wherever one begins to read.
//!
//! Times are milliseconds of a clock that nobody sets while the store is open. They never fall along the line: a key that
//! seems older than the one before it lives as long as that one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::format::cursor::window::{SEEN_OVERHEAD, SeenKey};

/// So many keys that time has let go of are forgotten in one go, so that nobody who holds a lock waits long for it.
const FORGOTTEN_AT_ONCE: usize = 64;

/// What a window forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// How long a key is known, in milliseconds.
    pub time_ms: u64,
    /// How many keys are known at most.
    pub keys: usize,
}

#[derive(Debug)]
pub(crate) struct DedupWindow {
    limits: Limits,
    /// In the order of their ids. Of a key that is there twice the later one counts; the other one is over.
    line: VecDeque<SeenKey>,
    /// How many have left the front of the line.
    gone: u64,
    /// Where each key is, counted from the first that ever was in the line.
    by_key: HashMap<Arc<[u8]>, u64>,
    /// Of all in the line.
    key_bytes: u64,
}

impl DedupWindow {
    pub fn new(limits: Limits) -> DedupWindow {
        DedupWindow { limits, line: VecDeque::new(), gone: 0, by_key: HashMap::new(), key_bytes: 0 }
    }

    /// What is beyond the new limits is still there until something is forgotten.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The message that this key was inserted with, if it is known.
    pub fn find(&self, key: &[u8], now_ms: u64) -> Option<u64> {
        let place = self.by_key.get(key)?;
        let seen = self.line.get(usize::try_from(place.checked_sub(self.gone)?).ok()?)?;
        (!self.is_over(seen, now_ms)).then_some(seen.id)
    }

    /// A key was inserted with message `id`, which is behind all others in the line.
    pub fn add(&mut self, seen: SeenKey) {
        self.push(seen);
        self.forget_beyond();
    }

    fn push(&mut self, mut seen: SeenKey) {
        if let Some(last) = self.line.back() {
            // A later piece of a cursor goes on behind the one before, and nothing but a forged file goes back.
            if seen.id <= last.id {
                return;
            }
            seen.time_ms = seen.time_ms.max(last.time_ms);
        }
        self.by_key.insert(seen.key.clone(), self.gone + self.line.len() as u64);
        self.key_bytes += seen.key.len() as u64;
        self.line.push_back(seen);
    }

    fn is_over(&self, seen: &SeenKey, now_ms: u64) -> bool {
        now_ms.saturating_sub(seen.time_ms) >= self.limits.time_ms
    }

    /// Forgets what is beyond the number of keys.
    pub fn forget_beyond(&mut self) {
        while self.line.len() > self.limits.keys {
            self.forget_first();
        }
    }

    /// Forgets some of what time has let go of, and returns whether there may be more. It is not found any more either.
    pub fn forget_some(&mut self, now_ms: u64) -> bool {
        for _ in 0..FORGOTTEN_AT_ONCE {
            if !self.line.front().is_some_and(|first| self.is_over(first, now_ms)) {
                return false;
            }
            self.forget_first();
        }
        true
    }

    /// Forgets all that is beyond the limits.
    pub fn forget(&mut self, now_ms: u64) {
        self.forget_beyond();
        while self.forget_some(now_ms) {}
    }

    fn forget_first(&mut self) {
        let Some(first) = self.line.pop_front() else { return };
        if self.by_key.get(&first.key) == Some(&self.gone) {
            self.by_key.remove(&first.key);
        }
        self.gone += 1;
        self.key_bytes -= first.key.len() as u64;
        if self.line.is_empty() {
            // A burst of keys is not to hold memory for ever.
            (self.line, self.by_key) = Default::default();
        }
    }

    /// The first id that is still known, and up to `max` keys behind the one of message `behind`. None if there are no
    /// more.
    pub fn piece(
        &self,
        behind: Option<u64>,
        now_ms: u64,
        max: usize,
    ) -> Option<(u64, Vec<SeenKey>)> {
        let known = self.line.partition_point(|seen| self.is_over(seen, now_ms));
        let first_id = self.line.get(known)?.id;
        let start = behind.map_or(0, |behind| self.line.partition_point(|seen| seen.id <= behind));
        let piece: Vec<SeenKey> = self.line.range(start.max(known)..).take(max).cloned().collect();
        (!piece.is_empty()).then_some((first_id, piece))
    }

    /// Takes in a piece that a cursor holds: nothing before `first_id` was known any more, and then these followed. What
    /// is beyond the limits stays until they are known for certain.
    pub fn load(&mut self, first_id: u64, piece: &[SeenKey]) {
        while self.line.front().is_some_and(|first| first.id < first_id) {
            self.forget_first();
        }
        piece.iter().for_each(|seen| self.push(seen.clone()));
    }

    /// The clock that counts from now on shows `now_ms`. A key that seems to be of a later time, since the clock was set
    /// back, is as old as the moment.
    pub fn begin(&mut self, now_ms: u64) {
        for seen in &mut self.line {
            seen.time_ms = seen.time_ms.min(now_ms);
        }
        self.forget(now_ms);
    }

    /// How many keys are held.
    pub fn len(&self) -> u64 {
        self.line.len() as u64
    }

    /// What the window takes in a cursor, roughly, once it holds `more` keys than now, as far as its limits let it.
    pub fn cursor_bytes(&self, more: u64) -> u64 {
        let each = self.key_bytes.checked_div(self.len()).map_or(0, |key| key + 1 + SEEN_OVERHEAD);
        each * (self.len() + more).min(self.limits.keys as u64)
    }
}

#[cfg(test)]
mod tests;
