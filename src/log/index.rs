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
