//! Rebuilding the state: what the cursor says, and every record behind it on top.
//!
//! Records are absolute and are applied in the order of the log, so that it does not matter that the cursor's
//! pieces were captured while work went on: whatever changed after the position of the cursor has its record
//! behind it. Only the count of a queue's messages and its deduplication window are relative: a count is changed by each
//! record, and what a window has forgotten must not come back. They say as of which position they are true.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::sync::Arc;

use super::lane::find;
use super::queue_entry::QueueEntry;
use super::queue_shared::Traits;
use super::segment_state::{SegmentState, Weight};
use super::state::State;
use crate::cursor::AckSet;
use crate::dispatch::{Entry, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::format::cursor::sections::{self, Section};
use crate::format::cursor::window::{SeenKey, WindowSection, is_dedup_key};
use crate::format::position::Position;
use crate::format::record::Record;
use crate::format::record::insert::InsertHead;
use crate::format::record::settle::Placed;
use crate::format::runs::Runs;
use crate::log::Segment;
use crate::options::{Durability, QueueOptions};
use crate::planted::{Bug, planted};
use crate::report::{Damage, Paused};

pub(super) struct Replay {
    pub state: State,
    pub next_id: u64,
    default: Durability,
    /// As of which position each queue's count is true.
    as_of: BTreeMap<u32, Position>,
    /// As of which position each queue's deduplication window is true.
    window_as_of: BTreeMap<u32, Position>,
    removed: BTreeSet<u32>,
    pub renamed_queues: Vec<String>,
}

/// Damage that was reported before: where it ends, by segment and where it begins.
pub(super) type Known = HashMap<(u32, u32), u32>;

impl Replay {
    pub fn new(default: Durability) -> Replay {
        Replay {
            state: State { next_queue: 1, ..State::default() },
            next_id: 1,
            default,
            as_of: BTreeMap::new(),
            window_as_of: BTreeMap::new(),
            removed: BTreeSet::new(),
            renamed_queues: Vec::new(),
        }
    }

    /// Takes in what the cursor says. `path` gives a segment's path.
    pub fn load(
        &mut self,
        sections: &[Section],
        path: impl Fn(u32) -> std::path::PathBuf,
    ) -> Result<Known> {
        let mut known = Known::new();
        for section in sections {
            match section {
                Section::Segment(s) => {
                    let end = if s.active { 0 } else { s.end };
                    let segment = Segment::sealed(s.file, s.number, s.first_id, s.salt, end);
                    if let Some(last) = self.state.segments.last_mut() {
                        last.id_end = s.first_id;
                    }
                    let mut state = SegmentState::new(segment.into());
                    state.messages = s.messages;
                    state.weight = Weight::at_most(s.live_bytes, 0);
                    state.sweep_at = s.first_expiry.map(NonZeroU64::get);
                    self.state.segments.push(state);
                }
                Section::Queue(q) => self.load_queue(q)?,
                Section::Entries(e) => self.load_entries(e),
                Section::Window(w) => self.load_window(w),
                Section::Acked(a) => {
                    if let Some(at) = find(&self.state.segments, a.segment) {
                        let s = &mut self.state.segments[at];
                        s.acks = AckSet::from_section(a);
                        s.weight = Weight::at_most(s.weight.most, s.acks.count());
                    }
                }
                Section::Paused(paused) => {
                    self.set_paused(paused.queue, Some(Paused::from_failures(paused.failures)));
                }
                Section::NextQueue(number) => {
                    self.state.next_queue = self.state.next_queue.max(*number);
                }
                Section::Damage(d) => {
                    let end = known.entry((d.segment, d.start)).or_insert(d.end);
                    *end = d.end.max(*end);
                    self.state.damage.push(Damage {
                        file: path(d.segment),
                        offset: d.start.into(),
                        bytes: d.end.saturating_sub(d.start).into(),
                        ids: d.first_id..d.last_id_exclusive,
                        what: "reported before".to_owned(),
                    });
                }
            }
        }
        Ok(known)
    }

    fn load_queue(&mut self, q: &sections::QueueSection) -> Result<()> {
        let options = QueueOptions::decode(&q.options).ok_or_else(newer_options)?;
        let name = String::from_utf8_lossy(&q.name).into_owned();
        let entry = self.add_queue(q.id, &name, options, 0);
        entry.settled_balance = q.live as i64;
        entry.declared_at = q.declared_at;
        entry.shared.look_for(Traits { priority: 0, expires: q.expires, grouped: q.grouped });
        entry.set_lanes(q.lanes.iter().map(|lane| (lane.priority, lane.next_id)));
        self.as_of.insert(q.id, q.as_of);
        Ok(())
    }

    fn load_entries(&mut self, e: &sections::EntriesSection) {
        let Some(queue) = self.state.queues.get_mut(&e.queue) else { return };
        for entry in &e.entries {
            let reason = String::from_utf8_lossy(&entry.reason);
            queue.touched.put(
                entry.id,
                entry_of(
                    Placed {
                        place: entry.place,
                        fresh: entry.fresh,
                        priority: entry.priority,
                        attempts: entry.attempts,
                        due: entry.due,
                    },
                    &reason,
                ),
            );
        }
    }

    fn load_window(&mut self, w: &WindowSection) {
        let Some(queue) = self.state.queues.get_mut(&w.queue) else { return };
        queue.window.load(w.first_id, &w.keys);
        self.window_as_of.insert(w.queue, w.as_of);
    }

    /// Whether the queue's window, as the cursor has it, is older than a record that begins at `start`.
    fn changes_window(&self, queue: u32, start: Position) -> bool {
        self.window_as_of.get(&queue).is_none_or(|as_of| start >= *as_of)
    }

    fn add_queue(
        &mut self,
        id: u32,
        name: &str,
        options: QueueOptions,
        first_id: u64,
    ) -> &mut QueueEntry {
        self.state.next_queue = self.state.next_queue.max(id.saturating_add(1));
        let new = QueueEntry::new(id, name, options, self.default, first_id);
        self.state.names.insert(new.shared.name.clone(), id);
        match self.state.queues.entry(id) {
            MapEntry::Occupied(mut slot) => {
                slot.insert(new);
                slot.into_mut()
            }
            MapEntry::Vacant(slot) => slot.insert(new),
        }
    }

    /// Those ids of `runs` that a message had before this record. A run of a few bytes can claim nearly all numbers: it
    /// must take neither for ever nor all memory to find out that nobody has them.
    fn given_out<'a>(&self, runs: &Runs<'a>) -> impl Iterator<Item = u64> + use<'a> {
        let next_id = self.next_id;
        runs.iter().flat_map(move |(start, length)| start..(start + length).min(next_id))
    }

    /// Applies the record whose frame begins at `start` and ends at `end`.
    pub fn apply(
        &mut self,
        record: &Record<'_>,
        first_id: u64,
        start: Position,
        end: Position,
    ) -> Result<()> {
        match record {
            Record::Insert { head, .. } => self.insert(head, first_id, start)?,
            Record::Delete(delete) => {
                for id in self.given_out(&delete.runs) {
                    self.state.ack(id);
                    if let Some(queue) = self.state.queues.get_mut(&delete.queue) {
                        queue.touched.remove(id);
                    }
                }
                self.count(delete.queue, start, -(delete.runs.total_ids() as i64));
            }
            Record::Set(set) => {
                let reason = String::from_utf8_lossy(set.reason);
                for id in self.given_out(&set.runs) {
                    if self.state.is_deleted(id) {
                        continue;
                    }
                    let Some(queue) = self.state.queues.get_mut(&set.queue) else { continue };
                    queue.touched.put(id, entry_of(set.placed, &reason));
                    // A kicked one: sweeps have passed it over.
                    let kicked = set.placed.place == Place::GivenBack && set.placed.fresh;
                    if kicked && queue.shared.has_expiring() {
                        self.state.sweep_again(id);
                    }
                }
            }
            Record::Declare(declare) => {
                let options = QueueOptions::decode(declare.options).ok_or_else(newer_options)?;
                let name = String::from_utf8_lossy(declare.name).into_owned();
                let (default, first_id) = (self.default, self.next_id);
                self.rename(declare.queue, &name);
                let changes_window = self.changes_window(declare.queue, start);
                let entry = match self.state.queues.get_mut(&declare.queue) {
                    Some(entry) => {
                        entry.set_options(options, default);
                        if changes_window {
                            entry.window.forget_beyond();
                        }
                        entry
                    }
                    None => self.add_queue(declare.queue, &name, options, first_id),
                };
                entry.declared_at = end;
            }
            Record::Remove { queue } => {
                self.removed.insert(*queue);
                if let Some(entry) = self.state.queues.remove(queue) {
                    self.state.names.remove(&entry.shared.name);
                    self.renamed_queues.retain(|name| **name != *entry.shared.name);
                }
            }
            Record::Pause { queue, failures } => {
                self.set_paused(*queue, Some(Paused::from_failures(*failures)));
            }
            Record::Resume { queue } => self.set_paused(*queue, None),
            Record::Roll { .. } => {}
            Record::Bind(_) | Record::Unbind(_) | Record::Value(_) => {
                return Err(newer("a record of a later feature"));
            }
        }
        Ok(())
    }

    /// One that nobody knows was removed, or is declared further on, and what it is then stands there too.
    fn set_paused(&mut self, queue: u32, pause: Option<Paused>) {
        if let Some(entry) = self.state.queues.get_mut(&queue) {
            entry.pause = pause;
        }
    }

    fn insert(&mut self, head: &InsertHead<'_>, first_id: u64, start: Position) -> Result<()> {
        if let Some(at) = find(&self.state.segments, start.segment()) {
            self.state.segments[at].note_expiry(head.expiry);
        }
        let key = head.key.filter(|key| is_dedup_key(key)).map(<Arc<[u8]>>::from);
        let mut id = first_id;
        for (queue, priority) in head.targets() {
            if !self.state.queues.contains_key(&queue) && !self.removed.contains(&queue) {
                self.add_unnamed(queue, first_id);
            }
            let is_deleted = self.state.is_deleted(id);
            let key = key.as_ref().filter(|_| self.changes_window(queue, start));
            if let Some(entry) = self.state.queues.get_mut(&queue) {
                entry.add_lane(priority, first_id);
                entry.shared.look_for(traits(head, priority));
                // What became of it since is in the records that follow.
                if let Some(due) = head.not_before.filter(|_| !is_deleted) {
                    entry.delay(id, priority, due);
                }
                if let Some(key) = key {
                    entry.window.add(SeenKey { key: key.clone(), id, time_ms: head.time_ms });
                }
            }
            self.count(queue, start, 1);
            id += 1;
        }
        self.next_id = self.next_id.max(id);
        Ok(())
    }

    /// A queue that was found by its messages before its declaration gets its name.
    fn rename(&mut self, queue: u32, name: &str) {
        let Some(entry) = self.state.queues.get_mut(&queue) else { return };
        if *entry.shared.name == *name {
            return;
        }
        let old = entry.shared.name.clone();
        entry.rename(name, self.default);
        self.state.names.remove(&old);
        self.state.names.insert(entry.shared.name.clone(), queue);
        self.renamed_queues.retain(|renamed| **renamed != *old);
    }

    /// A queue whose declaration is damaged: its messages are not lost, but are found under another name.
    pub fn add_unnamed(&mut self, queue: u32, first_id: u64) {
        let name = format!("recovered-{queue}");
        self.add_queue(queue, &name, QueueOptions::default(), first_id);
        self.renamed_queues.push(name);
    }

    fn count(&mut self, queue: u32, start: Position, messages: i64) {
        if self.as_of.get(&queue).is_some_and(|as_of| start < *as_of) {
            return;
        }
        if let Some(entry) = self.state.queues.get_mut(&queue) {
            entry.settled_balance += messages;
        }
    }

    /// Gives back what was in flight when the process died; the attempt counts. Returns how many there were.
    pub fn give_back(&mut self) -> u64 {
        let mut given_back = 0;
        for queue in self.state.queues.values_mut() {
            let learns = queue.shared.has_groups() && !planted(Bug::HoldersForgotten);
            queue.unlearned = learns.then_some(0);
            let in_flight: Vec<(u64, Entry)> = queue
                .touched
                .range(..)
                .filter(|(_, entry)| entry.place == Place::InFlight)
                .map(|(id, entry)| {
                    let forgotten = u32::from(planted(Bug::AttemptForgotten));
                    (id, Entry::given_back(entry.priority, entry.attempts - forgotten))
                })
                .collect();
            given_back += in_flight.len() as u64;
            for (id, entry) in in_flight {
                queue.touched.put(id, entry);
            }
        }
        given_back
    }
}

/// What consumers have to look out for because of a message.
fn traits(head: &InsertHead<'_>, priority: u8) -> Traits {
    Traits { priority, expires: head.expiry.is_some(), grouped: head.group.is_some() }
}

fn entry_of(placed: Placed, reason: &str) -> Entry {
    let Placed { place, fresh, priority, attempts, due } = placed;
    let entry = match place {
        Place::InFlight => Entry::in_flight(priority, attempts, 0, None),
        // It may have been delayed until then.
        Place::GivenBack => Entry { due_ms: due, ..Entry::given_back(priority, attempts) },
        Place::Delayed => Entry::delayed(priority, attempts, due),
        Place::Buried => Entry::buried(priority, attempts, reason),
    };
    Entry { fresh, ..entry }
}

fn newer(what: &'static str) -> Error {
    Error::new(ErrorKind::NewerFormat, format!("written by a newer millpond: {what}"))
}

fn newer_options() -> Error {
    newer("queue options that this version does not know")
}
