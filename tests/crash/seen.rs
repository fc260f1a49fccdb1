//! Everything that can be seen of a store from outside, of the real one or of the model.

use std::collections::BTreeMap;

use super::content::Content;

/// Ids from here on stand for those that a recovered store gives out itself.
pub const UNKNOWN_ID: u64 = 1 << 60;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub ready: u64,
    pub delayed: u64,
    pub buried: u64,
}

/// A message as it was delivered.
#[derive(Clone, Copy, Debug)]
pub struct Got {
    pub id: u64,
    pub origin: u64,
    pub from: Option<&'static str>,
    pub attempt: u32,
    pub content: Content,
}

impl PartialEq for Got {
    fn eq(&self, other: &Got) -> bool {
        let same_id = self.id == other.id || self.id.max(other.id) >= UNKNOWN_ID;
        same_id
            && (self.origin, self.from, self.attempt, self.content)
                == (other.origin, other.from, other.attempt, other.content)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeenQueue {
    pub stats: Stats,
    /// How many of those that are ready or delayed may be gone.
    pub fading: u64,
    /// It was resumed before it was drained.
    pub is_paused: bool,
    /// All that was delivered, in order: first what was ready, then what was delayed.
    pub got: Vec<Got>,
    /// For each deduplication key, the id of the message that it is known for.
    pub keys: Vec<Option<u64>>,
    pub buried_in_the_end: u64,
}

/// Everything that can be seen of a store from outside.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub queues: BTreeMap<String, SeenQueue>,
    pub moved: u64,
}

impl Seen {
    /// The first difference in words; None if there is none.
    pub fn difference(&self, expected: &Seen) -> Option<String> {
        let (have, want): (Vec<_>, Vec<_>) =
            (self.queues.keys().collect(), expected.queues.keys().collect());
        if have != want {
            return Some(format!("queues {have:?}, expected {want:?}"));
        }
        for (name, want) in &expected.queues {
            let have = &self.queues[name];
            let waiting = |stats: Stats| stats.ready + stats.delayed;
            let gone = waiting(want.stats).wrapping_sub(waiting(have.stats));
            let alike = if want.fading == 0 {
                have.stats == want.stats
            } else {
                gone <= want.fading && have.stats.buried == want.stats.buried
            };
            if !alike {
                return Some(format!("{name}: {:?}, expected {:?}", have.stats, want.stats));
            }
            if have.is_paused != want.is_paused {
                let (a, b) = (have.is_paused, want.is_paused);
                return Some(format!("{name}: paused is {a}, expected {b}"));
            }
            let pairs = have.got.iter().zip(&want.got).enumerate();
            if let Some((n, (a, b))) = pairs.into_iter().find(|(_, (a, b))| a != b) {
                return Some(format!("{name}: delivery {n} is {a:?}, expected {b:?}"));
            }
            let lens = (have.got.len(), want.got.len());
            if lens.0 != lens.1 {
                return Some(format!("{name}: {} deliveries, expected {}", lens.0, lens.1));
            }
            if have.keys != want.keys {
                return Some(format!("{name}: keys {:?}, expected {:?}", have.keys, want.keys));
            }
            if have.buried_in_the_end != want.buried_in_the_end {
                let (a, b) = (have.buried_in_the_end, want.buried_in_the_end);
                return Some(format!("{name}: {a} buried in the end, expected {b}"));
            }
        }
        None
    }
}
