//! What the append lock guards: the active segment, the prepared ones, and the counters that go with them.
//!
//! Everything here is memory; no method touches a file.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::appender::{Draft, SEGMENTS_AHEAD_MAX};
use super::index::{Lane, LaneIndex, MemoryIndex, Slot};
use super::prepare::{ROLL_RESERVE, file_bytes};
use super::segment::Segment;
use crate::format::frame::Envelope;
use crate::format::header::{FRAMES_START, HEADER_COPIES_AT, Header, SEGMENT_IDS_MAX};
use crate::format::position::Position;
use crate::planted::{Bug, planted};
use crate::storage::{File, MapWriter, Mapping};

/// How far ahead of the log's end pages are made present; as far as the log has grown since it was opened, if that is
/// less, so that a small store does not take the space of a busy one.
const PREFAULT_MAX: u64 = 4 << 20;

/// A log that has grown less than this since it was opened meets its page faults itself.
const PREFAULT_MIN: u64 = 256 << 10;

/// Pages are made present up to the next multiple of this. For pieces that begin and end there the system uses its
/// largest pages, at a quarter of the price and less.
const PREFAULT_STEP: u64 = 2 << 20;

/// Or a multiple of what the system has.
const PAGE_BYTES: u64 = 4096;

/// A file that is reserved, durable under its name, and all zeros.
pub(crate) struct Prepared {
    /// Complete but for the first id, which is known when the segment becomes active.
    pub header: Header,
    pub file: Arc<dyn File>,
    pub writer: MapWriter,
    /// Before this offset all pages are present.
    pub present: u64,
}

/// A segment that was active until the log rolled on.
pub(crate) struct Sealed {
    pub segment: Arc<Segment>,
    pub file: Arc<dyn File>,
}

pub(crate) struct Active {
    pub segment: Arc<Segment>,
    pub file: Arc<dyn File>,
    pub writer: MapWriter,
    /// Where the next frame goes.
    pub offset: u32,
    /// Between there and this offset all pages are present, or are being made so.
    pub present: u64,
    pub index: MemoryIndex,
}

/// The mutable end of the log.
pub(crate) struct Tail {
    /// None once the log is closed.
    pub(super) active: Option<Active>,
    pub(super) next_id: u64,
    /// Ids below this one may be given out: the cursor says that they may have been.
    pub(super) id_ceiling: u64,
    pub(super) next_number: u32,
    pub(super) prepared: VecDeque<Prepared>,
    /// Prepared, but too small for what came; to be removed.
    pub(super) discarded: Vec<Prepared>,
    /// Sealed, and not covered by a sync yet.
    pub(super) unsynced: Vec<Arc<dyn File>>,
    /// Sealed, and not yet taken by [`Tail::take_sealed`]; in log order.
    pub(super) sealed: Vec<Sealed>,
    /// Segments sealed since the last cursor.
    pub(super) ahead: usize,
    /// The last sync mark that was written.
    pub(super) marked: Position,
    /// When what was appended must have been synced.
    pub(super) sync_by: Option<Instant>,
    /// Bytes of frames appended since the log was opened.
    pub(super) written_bytes: u64,
    /// Whether pages are made present before they are written. Not where syncs are frequent: it makes pages dirty.
    pub(super) prefaults: bool,
    /// Nothing may be appended any more: a cursor says that the log ends here.
    pub(super) ended: bool,
    /// The end, once the log is closed.
    pub(super) closed_at: Position,
}

impl Active {
    /// A prepared file becomes the end of the log. The magic is stored last, in the second copy first, so that a
    /// header whose first copy is there is whole.
    pub fn begin(prepared: Prepared, first_id: u64) -> io::Result<Active> {
        let Prepared { mut header, file, mut writer, present } = prepared;
        header.first_id = first_id;
        let copy = header.encode();
        let (first_word, rest) = copy.split_at(8);
        let mut magic = [0; 8];
        magic.copy_from_slice(first_word);
        for at in HEADER_COPIES_AT.into_iter().rev() {
            writer.write(at as u64 + 8, rest);
            writer.store_word(at as u64, u64::from_le_bytes(magic));
        }
        writer.finish()?;
        writer.publish(u64::from(FRAMES_START));
        let segment = Arc::new(Segment::active(&header, writer.mapping()));
        let (offset, index) = (FRAMES_START, MemoryIndex::default());
        Ok(Active { segment, file, writer, offset, present, index })
    }

    pub fn end(&self) -> Position {
        Position::new(self.segment.number, self.offset)
    }

    /// Whether frames of `bytes` that use up `ids` fit, with room left for the frame that ends the segment.
    pub fn fits(&self, bytes: u64, next_id: u64) -> bool {
        u64::from(self.offset) + bytes + u64::from(ROLL_RESERVE) <= self.writer.len()
            && next_id - self.segment.first_id <= SEGMENT_IDS_MAX
    }

    /// Copies a run that is known to fit.
    ///
    /// Ensures: the frames become whole one after the other, each by its first word, so that a kill leaves a run
    /// without its last frame, which does not count, and never a hole with frames behind it. Nothing is published or
    /// indexed before the last of them is whole. After an error nothing is known of the run, and nothing may follow it.
    pub fn write_run(
        &mut self,
        run: &[Draft<'_>],
        mark: Option<Position>,
        first_id: u64,
    ) -> io::Result<()> {
        let start = self.offset;
        let mut at = start;
        let mut id = first_id;
        let mut first_words: SmallVec<[(u64, u64); 1]> = SmallVec::with_capacity(run.len());
        for (n, draft) in run.iter().enumerate() {
            let delta = (id - self.segment.first_id) as u32;
            let envelope = Envelope {
                length: draft.length() as u32,
                kind: draft.kind,
                continued: n + 1 < run.len(),
                mark: mark.filter(|_| n == 0),
                info: draft.info,
                arg: if draft.lanes.is_empty() { 0 } else { delta },
                body_checksum: draft.checksum,
            };
            let encoded = envelope.encode(&self.segment.seed, at);
            let body_at = u64::from(at) + envelope.size() as u64;
            if planted(Bug::FirstWordFirst) {
                self.writer.store_word(at.into(), encoded.first_word());
            }
            self.writer.write(u64::from(at) + 8, encoded.behind_first_word());
            self.writer.write(body_at, draft.head);
            if !draft.payload.is_empty() {
                self.writer.write(body_at + draft.head.len() as u64, draft.payload);
            }
            first_words.push((at.into(), encoded.first_word()));
            at += envelope.total_bytes() as u32;
            id += draft.lanes.len() as u64;
        }
        self.writer.store_words(&first_words);
        self.writer.finish()?;
        self.writer.publish(u64::from(at));
        self.offset = at;
        self.index_run(run, mark.is_some(), start, first_id);
        Ok(())
    }

    fn index_run(&mut self, run: &[Draft<'_>], marked: bool, start: u32, first_id: u64) {
        let mut at = start;
        let mut delta = (first_id - self.segment.first_id) as u32;
        for (n, draft) in run.iter().enumerate() {
            for lane in draft.lanes {
                self.index.push(*lane, (delta, at));
                delta += 1;
            }
            let bytes = draft.frame_bytes(n == 0 && marked);
            if !draft.lanes.is_empty() {
                self.index.add_bytes(bytes);
                self.index.note_expiry(draft.expiry);
            }
            at += bytes as u32;
        }
    }
}

impl Tail {
    /// Behind the last frame.
    pub fn end(&self) -> Position {
        self.active.as_ref().map_or(self.closed_at, Active::end)
    }

    /// From now on every append is refused, so that what is captured now stays true.
    pub fn end_appending(&mut self) {
        self.ended = true;
    }

    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    pub fn sync_by(&self) -> Option<Instant> {
        self.sync_by
    }

    pub fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// Messages that were ever inserted in the active segment.
    pub fn active_messages(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.index.messages())
    }

    /// Whether it is time to prepare a segment: not for a log that may never need one.
    pub fn wants_segment(&self) -> bool {
        let used = |active: &Active| u64::from(active.offset) > active.writer.len() / 4;
        self.prepared.is_empty() && self.active.as_ref().is_some_and(used)
    }

    /// What the frames of the active segment's messages take.
    pub fn active_message_bytes(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.index.bytes())
    }

    /// Before this time, in milliseconds since the epoch, no message of the active segment expires that came since this
    /// was last called; None for never.
    pub fn take_first_expiry(&mut self) -> Option<u64> {
        self.active.as_mut().and_then(|active| active.index.take_first_expiry())
    }

    /// As [`take_first_expiry`](Tail::take_first_expiry), which says the same again.
    pub fn first_expiry(&self) -> Option<u64> {
        self.active.as_ref().and_then(|active| active.index.first_expiry())
    }

    /// The lanes that the active segment has messages of.
    pub fn lanes(&self) -> Vec<Lane> {
        let lanes = self.active.iter().flat_map(|active| active.index.all_lanes());
        lanes.map(|(lane, _)| lane).collect()
    }

    /// How much of the active segment is used and how much is reserved, in bytes.
    pub fn active_bytes(&self) -> (u64, u64) {
        self.active.as_ref().map_or((0, 0), |active| (active.offset.into(), active.writer.len()))
    }

    /// How long the segment is that was made ready last, in bytes.
    pub(super) fn newest_bytes(&self) -> u64 {
        let active = self.active.as_ref().map(|active| active.writer.len());
        self.prepared.back().map(|prepared| prepared.writer.len()).or(active).unwrap_or(0)
    }

    /// How far ahead of the end pages should be present.
    pub(super) fn prefault_bytes(&self) -> u64 {
        if self.prefaults && self.written_bytes >= PREFAULT_MIN {
            self.written_bytes.min(PREFAULT_MAX)
        } else {
            0
        }
    }

    /// Whether it is time to make more pages present.
    #[inline]
    pub fn wants_pages(&self) -> bool {
        let ahead = self.prefault_bytes();
        self.active.as_ref().is_some_and(|active| {
            let enough = u64::from(active.offset) + ahead / 2;
            ahead > 0 && active.present < enough.min(active.writer.len())
        })
    }

    /// The next pages to make present. They count as present from now on.
    pub(super) fn take_pages(&mut self) -> Option<(Mapping, Range<u64>)> {
        let ahead = self.prefault_bytes();
        let active = self.active.as_mut().filter(|_| ahead > 0)?;
        let start = active.present.max(active.offset.into());
        let whole = if ahead < PREFAULT_STEP { PAGE_BYTES } else { PREFAULT_STEP };
        let wanted = (u64::from(active.offset) + ahead).next_multiple_of(whole);
        let start = start / PAGE_BYTES * PAGE_BYTES;
        let step = (start + 1).next_multiple_of(PREFAULT_STEP);
        let end = wanted.min(step).min(active.writer.len());
        if end <= active.present {
            return None;
        }
        active.present = end;
        Some((active.writer.mapping(), start..end))
    }

    /// Which of the prepared segments a roll would take: the first that is large enough.
    pub fn next_prepared(&self, frames_bytes: u64) -> Option<usize> {
        let fits = |prepared: &Prepared| prepared.writer.len() >= file_bytes(frames_bytes);
        self.prepared.iter().position(fits)
    }

    /// Segments sealed since this was last called, in log order.
    pub fn take_sealed(&mut self) -> Vec<Sealed> {
        std::mem::take(&mut self.sealed)
    }

    /// A cursor from which `segment` is the first to be replayed, with this ceiling of ids, is durable.
    pub fn checkpointed(&mut self, segment: u32, id_ceiling: u64) {
        let active = self.active.as_ref().map_or(segment, |active| active.segment.number);
        // Numbers may have gaps, so this counts too much at worst.
        self.ahead = self.ahead.min(active.saturating_sub(segment) as usize);
        self.id_ceiling = id_ceiling;
    }

    /// Copies up to `max` messages of a lane of the active segment, from its `k`-th on, that lie before `visible`.
    /// None if `number` is not the active segment.
    pub fn read_lane(
        &self,
        number: u32,
        key: Lane,
        k: usize,
        visible: Position,
        max: usize,
    ) -> Option<Vec<Slot>> {
        let active = self.active.as_ref().filter(|active| active.segment.number == number)?;
        let entries = active.index.lane(key).get(k..).unwrap_or_default();
        let seen = |slot: &&Slot| Position::new(number, slot.1) < visible;
        Some(entries.iter().take(max).take_while(seen).copied().collect())
    }

    /// How many messages the lane has in the active segment, and in those that were sealed since
    /// [`take_sealed`](Tail::take_sealed): the log may have rolled since somebody looked.
    pub fn lane_len(&self, key: Lane) -> usize {
        let active = self.active.as_ref().map_or(0, |active| active.index.lane(key).len());
        let sealed = self.sealed.iter().filter_map(|sealed| sealed.segment.index());
        match planted(Bug::SealedNotCounted) {
            false => active + sealed.map(|index| index.len(key)).sum::<usize>(),
            true => active,
        }
    }

    /// How many messages of a lane of the active segment have a lower id than its first one and `delta`.
    pub fn lower_bound(&self, number: u32, key: Lane, delta: u32) -> Option<usize> {
        let active = self.active.as_ref().filter(|active| active.segment.number == number)?;
        Some(active.index.lane(key).partition_point(|slot| slot.0 < delta))
    }

    pub fn is_active(&self, number: u32) -> bool {
        self.active.as_ref().is_some_and(|active| active.segment.number == number)
    }

    /// Whether an append that uses up `ids` would wait for a checkpoint.
    pub fn wants_checkpoint(&self, ids: u64) -> bool {
        self.next_id + ids > self.id_ceiling || self.ahead >= SEGMENTS_AHEAD_MAX
    }

    /// Where the message `first_id + delta` of a lane of the active segment lies.
    pub fn find(&self, number: u32, key: Lane, delta: u32) -> Option<u32> {
        let active = self.active.as_ref().filter(|active| active.segment.number == number)?;
        let entries = active.index.lane(key);
        let at = entries.binary_search_by_key(&delta, |slot| slot.0).ok()?;
        Some(entries[at].1)
    }

    pub(super) fn seal_active(&mut self, active: Active) {
        let Active { segment, file, offset, index, .. } = active;
        segment.seal(offset, LaneIndex::Memory(index));
        self.unsynced.push(file.clone());
        self.sealed.push(Sealed { segment, file });
        self.ahead += 1;
    }
}

#[cfg(test)]
mod tests;
