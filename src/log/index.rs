//! Which messages of a segment belong to which lane, and where their frames are.
//!
//! For the active segment, and for a sealed one whose `.idx` file is not written yet, it lies in memory; for the
//! others it is mapped from the file. Both give the same answers; a lane's entries are in ascending order of id.
//! All of it is derived: it can be made again by walking the segment.

use std::collections::HashMap;

use crate::format::index::{self, IndexLayout};
use crate::storage::Mapping;

pub(crate) use crate::format::index::{Lane, Slot};

#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryIndex {
    lanes: Vec<(Lane, Vec<Slot>)>,
    by_key: HashMap<Lane, usize>,
    /// Where the last message went: most go to the same lane.
    last: usize,
    messages: u64,
    /// What the frames of the messages take, and the largest of them.
    bytes: u64,
    largest: u64,
    /// When the first of them expires, in milliseconds since the epoch.
    first_expiry: Option<u64>,
}

impl MemoryIndex {
    /// Ids must come in ascending order.
    #[inline]
    pub fn push(&mut self, key: Lane, entry: Slot) {
        self.messages += 1;
        if let Some((last, entries)) = self.lanes.get_mut(self.last)
            && *last == key
        {
            entries.push(entry);
            return;
        }
        let next = self.lanes.len();
        let at = *self.by_key.entry(key).or_insert(next);
        if at == next {
            self.lanes.push((key, Vec::new()));
        }
        self.lanes[at].1.push(entry);
        self.last = at;
    }

    pub fn lane(&self, key: Lane) -> &[Slot] {
        self.by_key.get(&key).map_or(&[], |&at| &self.lanes[at].1)
    }

    pub fn all_lanes(&self) -> impl Iterator<Item = (Lane, &[Slot])> {
        self.lanes.iter().map(|(lane, slots)| (*lane, slots.as_slice()))
    }

    /// Messages in all lanes.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// A frame that takes so many bytes has messages, which are pushed one by one.
    #[inline]
    pub fn add_bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
    }

    /// A message expires then.
    #[inline]
    pub fn note_expiry(&mut self, expiry: Option<u64>) {
        if expiry.is_some() {
            self.first_expiry = earlier(self.first_expiry, expiry);
        }
    }

    /// Before this time no message expires; None for never.
    pub fn first_expiry(&self) -> Option<u64> {
        self.first_expiry
    }

    /// As [`first_expiry`](MemoryIndex::first_expiry), which is about those from then on that come later.
    pub fn take_first_expiry(&mut self) -> Option<u64> {
        self.first_expiry.take()
    }

    /// What the frames of the messages take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the largest of the frames takes.
    pub fn largest(&self) -> u64 {
        self.largest
    }

    /// Every message: its lane, and its id less the segment's first one.
    pub fn all(&self) -> Vec<(Lane, u32)> {
        self.all_lanes().flat_map(|(lane, slots)| slots.iter().map(move |s| (lane, s.0))).collect()
    }

    /// The content of the `.idx` file.
    pub fn encode(&self, number: u32, salt: u64, end: u32) -> Vec<u8> {
        let mut lanes: Vec<(Lane, &[Slot])> =
            self.lanes.iter().map(|(key, entries)| (*key, entries.as_slice())).collect();
        lanes.sort_by_key(|(key, _)| *key);
        index::encode(number, salt, end, &lanes)
    }
}

/// The earlier of two times, where None is never.
pub(crate) fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The index of a sealed segment.
#[derive(Debug)]
pub(crate) enum LaneIndex {
    Memory(MemoryIndex),
    File { mapping: Mapping, layout: IndexLayout },
}

impl LaneIndex {
    /// The index in a mapped `.idx` file; None if it is damaged or not about this segment.
    pub fn from_file(mapping: Mapping, number: u32, salt: u64, end: u32) -> Option<LaneIndex> {
        let bytes = mapping.bytes(0..mapping.published());
        let layout = index::open(bytes, number, salt, end)?;
        Some(LaneIndex::File { mapping, layout })
    }

    /// How many messages the lane has in this segment.
    pub fn len(&self, key: Lane) -> usize {
        match self {
            LaneIndex::Memory(index) => index.lane(key).len(),
            LaneIndex::File { layout, .. } => layout.count(key.queue, key.priority),
        }
    }

    /// The `k`-th message of the lane.
    pub fn entry(&self, key: Lane, k: usize) -> Option<Slot> {
        match self {
            LaneIndex::Memory(index) => index.lane(key).get(k).copied(),
            LaneIndex::File { mapping, layout } => {
                let bytes = mapping.bytes(0..mapping.published());
                layout.slot(bytes, key.queue, key.priority, k)
            }
        }
    }

    /// The place in the lane of the first message whose id is at least `id_delta` behind the segment's first.
    pub fn lower_bound(&self, key: Lane, id_delta: u32) -> usize {
        match self {
            LaneIndex::Memory(index) => {
                index.lane(key).partition_point(|(delta, _)| *delta < id_delta)
            }
            LaneIndex::File { mapping, layout } => {
                let bytes = mapping.bytes(0..mapping.published());
                layout.lower_bound(bytes, key.queue, key.priority, id_delta)
            }
        }
    }

    /// Where the message's frame is.
    pub fn find(&self, key: Lane, id_delta: u32) -> Option<u32> {
        let (found, offset) = self.entry(key, self.lower_bound(key, id_delta))?;
        (found == id_delta).then_some(offset)
    }

    /// Every lane, and how many messages it has.
    pub fn lanes(&self) -> Vec<(Lane, usize)> {
        match self {
            LaneIndex::Memory(index) => {
                index.lanes.iter().map(|(key, entries)| (*key, entries.len())).collect()
            }
            LaneIndex::File { layout, .. } => {
                let lanes = layout.lanes();
                lanes.map(|(queue, priority, n)| (Lane { queue, priority }, n)).collect()
            }
        }
    }

    /// Every message: its lane, and its id less the segment's first one.
    pub fn all(&self) -> Vec<(Lane, u32)> {
        let lanes = self.lanes().into_iter();
        let lane =
            |(lane, count)| (0..count).filter_map(move |k| Some((lane, self.entry(lane, k)?.0)));
        lanes.flat_map(lane).collect()
    }

    /// Messages in all lanes.
    pub fn messages(&self) -> u64 {
        self.lanes().iter().map(|(_, count)| *count as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Storage;
    use crate::storage::sim::Disk;

    const SALT: u64 = 42;
    const END: u32 = 1 << 20;

    fn lane(queue: u32, priority: u8) -> Lane {
        Lane { queue, priority }
    }

    /// Messages of three lanes among each other.
    fn sample() -> MemoryIndex {
        let mut index = MemoryIndex::default();
        for n in 0..100 {
            let key = [lane(2, 0), lane(2, 0), lane(1, 3), lane(1, 0)][n as usize % 4];
            index.push(key, (2 * n, 4096 + 32 * n));
            index.add_bytes(32 + u64::from(n == 50) * 8);
        }
        index
    }

    fn mapped(index: &MemoryIndex, end: u32) -> Option<LaneIndex> {
        let disk = Disk::new();
        disk.write_file("index", index.encode(3, SALT, end));
        let mapping = disk.open_read("index").unwrap().map_read().unwrap();
        LaneIndex::from_file(mapping, 3, SALT, END)
    }

    #[test]
    fn an_index_in_memory_counts_its_messages_and_what_they_take() {
        let index = sample();
        assert_eq!((index.messages(), index.bytes(), index.largest()), (100, 3208, 40));
        assert_eq!(index.lane(lane(2, 0)).len(), 50);
        assert_eq!(index.lane(lane(1, 3))[1], (12, 4096 + 32 * 6));
        assert_eq!(index.lane(lane(7, 0)), []);
        assert_eq!(index.all().len(), 100);
    }

    #[test]
    fn an_index_that_is_mapped_answers_as_the_one_in_memory() {
        let file = mapped(&sample(), END).unwrap();
        let memory = LaneIndex::Memory(sample());
        for key in [lane(1, 0), lane(1, 3), lane(2, 0), lane(7, 0)] {
            assert_eq!(file.len(key), memory.len(key));
            for n in 0..201 {
                assert_eq!(file.entry(key, n as usize), memory.entry(key, n as usize));
                assert_eq!(file.lower_bound(key, n), memory.lower_bound(key, n));
                assert_eq!(file.find(key, n), memory.find(key, n));
            }
        }
        assert_eq!((memory.len(lane(2, 0)), memory.all().len()), (50, 100));
        assert_eq!(
            (memory.lower_bound(lane(1, 3), 5), memory.lower_bound(lane(1, 3), 999)),
            (1, 25)
        );
        assert_eq!((memory.find(lane(1, 3), 4), memory.find(lane(1, 3), 5)), (Some(4160), None));
        assert_eq!((file.messages(), memory.messages()), (100, 100));
        let sorted = |index: &LaneIndex| {
            let (mut lanes, mut all) = (index.lanes(), index.all());
            lanes.sort();
            all.sort();
            (lanes, all)
        };
        assert_eq!(sorted(&file), sorted(&memory));
    }

    #[test]
    fn an_index_of_another_state_of_its_segment_is_not_taken() {
        assert!(mapped(&sample(), END - 8).is_none());
    }
}
