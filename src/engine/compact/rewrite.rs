//! Rewriting sealed segments in which little is left: their messages are copied into one new segment at the same place in
//! the log, with its ids and in its order.
//!
//! It is done piece by piece beside running work. Under the dispatch lock only what is deleted in one segment is copied
//! beforehand, and in the end the new segment takes the place of the old ones in the list. Whoever reads from an old one
//! keeps it: deliveries hold their segment mapped, and lanes read again what they have read ahead.
//!
//! Only messages are copied. Every other record of a segment that lies before the position of a cursor is part of what
//! that cursor says, but for declarations, which are made again at the end of the log.
//!
//! Crash windows:
//! - the copy, under a name that no segment has: the next open removes it;
//! - the new segment under its own name, durable, and named by no cursor: the next open removes it;
//! - named by the newest cursor, while the one before names the old files: these are kept until that one is gone. An open
//!   goes by the newest cursor that verifies. If it finds none, whole new segments stand for the old ones.

use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::super::segment_state::{SegmentState, Weight};
use super::super::state::Retired;
use super::super::{Engine, poisoned};
use super::{COPY_NAME, live_offsets, place};
use crate::cursor::AckSet;
use crate::error::Result;
use crate::format::checksum::{Seed, crc32};
use crate::format::frame::{Envelope, FRAME_ALIGNMENT, Found, frame_bytes};
use crate::format::header::{FRAMES_START, HEADER_COPIES_AT, Header, HeaderFound, decode_start};
use crate::format::record::insert::decode_insert;
use crate::format::record::{INSERT, ROLL, encode_roll};
use crate::log::{Lane, LaneIndex, MemoryIndex, SEGMENT_OVERHEAD, Segment, segment_name};
use crate::planted::{Bug, planted};
use crate::storage::{File, Mapping, Prepare, Spare, is_full};

/// How much is copied before whoever waits for maintenance has a turn.
const COPY_BYTES: usize = 2 << 20;

/// A segment that is being rewritten.
struct Source {
    segment: Arc<Segment>,
    /// What was deleted in it when its messages were chosen; None before.
    acks: Option<AckSet>,
}

/// A compaction that has begun.
pub struct Rewrite {
    /// In the order of the log, without a gap.
    sources: Vec<Source>,
    /// What is to be copied of the source before `next`: the offsets of its frames, the last one first.
    offsets: Vec<u32>,
    next: usize,
    file: Arc<dyn File>,
    header: Header,
    seed: Seed,
    /// Behind the last frame that was copied.
    at: u32,
    index: MemoryIndex,
    /// Of what was copied, the ids that were deleted even so: other messages of the same frame were not.
    acks: AckSet,
}

/// Why a compaction ends early. Nothing is lost by it but time.
pub(super) enum Abandoned {
    /// Its segments are not what they were.
    Changed,
    /// Something in this segment does not verify.
    Damaged(Arc<Segment>),
    /// There is no space for the copy.
    Full,
    /// The copy could not be written, or something could not be read: that may pass.
    Io,
}

impl From<io::Error> for Abandoned {
    fn from(error: io::Error) -> Abandoned {
        if is_full(&error) { Abandoned::Full } else { Abandoned::Io }
    }
}

impl Engine {
    /// Makes the file that the `chosen` segments are copied into. None if there are none.
    pub(super) fn begin(
        &self,
        chosen: Range<usize>,
    ) -> std::result::Result<Option<Rewrite>, Abandoned> {
        let segments: Vec<Arc<Segment>> = {
            let state = self.lock_state();
            let chosen = state.segments.get(chosen).unwrap_or_default();
            chosen.iter().map(|s| s.segment.clone()).collect()
        };
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
            return Ok(None);
        };
        for segment in &segments {
            if segment.index().is_none() {
                self.load_index(segment).map_err(|_| Abandoned::Io)?;
            }
        }
        let most: u64 = {
            let state = self.lock_state();
            let most =
                |s: &Arc<Segment>| Some(*state.segments[place(&state, s)?].live_bytes().end());
            segments.iter().filter_map(most).sum()
        };
        let bytes = SEGMENT_OVERHEAD + most;
        let capacity = u32::try_from(bytes).map_err(|_| Abandoned::Damaged(first.clone()))?;
        self.space.put_back(Spare::Copy, COPY_NAME);
        let lens = bytes..=bytes;
        let file = self.space.create_or_take(Spare::Copy, COPY_NAME, lens, Prepare::Reserve)?;
        let header = Header {
            store: self.store_id,
            number: self.log.take_number()?,
            replaces_first: self.replaces_first(first)?,
            replaces_last: last.number,
            first_id: first.first_id,
            salt: self.log.new_salt()?,
            created_at: self.now().wall_ms,
            capacity,
        };
        Ok(Some(Rewrite {
            sources: segments.iter().map(|s| Source { segment: s.clone(), acks: None }).collect(),
            offsets: Vec::new(),
            next: 0,
            file,
            seed: Seed::new(header.salt),
            header,
            at: FRAMES_START,
            index: MemoryIndex::default(),
            acks: AckSet::default(),
        }))
    }

    /// The lowest number that a segment takes the place of.
    fn replaces_first(&self, segment: &Arc<Segment>) -> std::result::Result<u32, Abandoned> {
        if segment.file == segment.number {
            return Ok(segment.number);
        }
        let data = segment.data(&*self.storage)?;
        match decode_start(data.get(0..FRAMES_START.into()).unwrap_or_default()) {
            HeaderFound::Header { header, .. } => Ok(header.replaces_first),
            _ => Err(Abandoned::Damaged(segment.clone())),
        }
    }

    /// Copies some more. Whether that was all.
    pub(super) fn copy_some(&self, rewrite: &mut Rewrite) -> std::result::Result<bool, Abandoned> {
        let start = rewrite.at;
        let mut copied = Vec::with_capacity(COPY_BYTES);
        while copied.len() < COPY_BYTES {
            if let Some(offset) = rewrite.offsets.pop() {
                let segment = rewrite.sources[rewrite.next - 1].segment.clone();
                let data = segment.data(&*self.storage)?;
                if !rewrite.copy(&segment, data, offset, &mut copied) {
                    return Err(Abandoned::Damaged(segment));
                }
                continue;
            }
            let Some(source) = rewrite.sources.get_mut(rewrite.next) else { break };
            let acks = self.acks_of(&source.segment).ok_or(Abandoned::Changed)?;
            rewrite.offsets = live_offsets(&source.segment, &acks);
            rewrite.offsets.reverse();
            source.acks = Some(acks);
            rewrite.next += 1;
        }
        rewrite.file.write_at(start.into(), &copied)?;
        // Each time, so that the last sync is not a long one.
        if !planted(Bug::RewriteNotSynced) {
            rewrite.file.sync_data()?;
        }
        Ok(rewrite.offsets.is_empty() && rewrite.next == rewrite.sources.len())
    }

    /// Completes the file, and puts the new segment in the place of the old ones.
    pub(super) fn finish(&self, rewrite: Rewrite) -> Result<std::result::Result<(), Abandoned>> {
        let numbers = rewrite.numbers();
        let taken = rewrite.header.replaces_first..=rewrite.header.replaces_last;
        if !self.declare_again(|_, number| taken.contains(&number))? {
            return Ok(Err(Abandoned::Full));
        }
        let next = {
            let state = self.lock_state();
            let there = |s: &Source| {
                place(&state, &s.segment).is_some_and(|at| state.segments[at].dropped_in.is_none())
            };
            let at = state.segments.partition_point(|s| s.segment.number <= *numbers.end());
            let next = state.segments.get(at).map(|s| s.segment.number);
            // That stays so: what drops segments has to wait for the maintenance lock.
            next.filter(|_| rewrite.sources.iter().all(there))
        };
        let Some(next) = next else { return Ok(Err(Abandoned::Changed)) };
        let end = match rewrite.complete(next) {
            Ok(end) => end,
            Err(error) => return Ok(Err(error.into())),
        };
        // A walk of the whole log goes by the new segment: what it leaves out must be as durable as that.
        let log_end = self.log.tail().end();
        self.sync_to(log_end)?;
        let name = segment_name(rewrite.header.number);
        if let Err(error) = self.storage.rename(COPY_NAME, &name) {
            return Ok(Err(error.into()));
        }
        if let Err(error) = self.storage.sync_dir() {
            let failed = self.log.poison(error);
            self.on_poison();
            return Err(poisoned(Some(failed)));
        }
        let taken = self.take_place(rewrite, end);
        if taken.is_err() {
            let _ = self.storage.remove(&name);
        }
        Ok(taken)
    }

    fn take_place(&self, rewrite: Rewrite, end: u32) -> std::result::Result<(), Abandoned> {
        let Header { number, first_id, salt, .. } = rewrite.header;
        let numbers = rewrite.numbers();
        let mut guard = self.lock_state();
        let state = &mut *guard;
        let (first, last) = (&rewrite.sources[0].segment, rewrite.last());
        let at = place(state, first).ok_or(Abandoned::Changed)?;
        let until = place(state, last).ok_or(Abandoned::Changed)? + 1;
        let mut acks = rewrite.acks;
        for (s, source) in state.segments[at..until].iter().zip(&rewrite.sources) {
            if !Arc::ptr_eq(&s.segment, &source.segment) || s.dropped_in.is_some() {
                return Err(Abandoned::Changed);
            }
            let before = source.acks.as_ref().ok_or(Abandoned::Changed)?;
            let ahead = (source.segment.first_id - first_id) as u32;
            if planted(Bug::DeletedDuringRewriteForgotten) {
                continue;
            }
            for delta in s.acks.since(before) {
                acks.insert(delta + ahead);
            }
        }
        let (messages, weight) = (rewrite.index.messages(), Weight::of(&rewrite.index));
        let sweep_at = rewrite.index.first_expiry();
        let segment = Arc::new(Segment::sealed(number, *numbers.end(), first_id, salt, end));
        segment.set_index(LaneIndex::Memory(rewrite.index));
        let id_end = state.segments[until - 1].id_end;
        let new =
            SegmentState { sweep_at, acks, messages, weight, id_end, ..SegmentState::new(segment) };
        state.reclaimable |= new.live() == 0;
        let old: Vec<SegmentState> = state.segments.splice(at..until, [new]).collect();
        state.untrimmed.retain(|sealed| !numbers.contains(&sealed.segment.number));
        let retired = |s: SegmentState| Retired { segment: s.segment, dropped_in: None };
        state.retired.extend(old.into_iter().map(retired));
        for queue in state.queues.values_mut() {
            queue.lanes.iter_mut().for_each(|lane| lane.forget(numbers.clone()));
        }
        Ok(())
    }
}

impl Rewrite {
    fn last(&self) -> &Arc<Segment> {
        &self.sources[self.sources.len() - 1].segment
    }

    /// The numbers of the old segments, and those between.
    fn numbers(&self) -> RangeInclusive<u32> {
        self.sources[0].segment.number..=self.last().number
    }

    /// Copies one frame to the end of `out`. False if it does not verify.
    fn copy(&mut self, segment: &Segment, data: &Mapping, offset: u32, out: &mut Vec<u8>) -> bool {
        let Found::Frame(frame) = segment.frame(data, offset) else { return false };
        let old = frame.envelope;
        let Ok((head, _)) = decode_insert(old.info, frame.body) else { return false };
        if old.kind != INSERT {
            return false;
        }
        let first_id = segment.first_id + u64::from(old.arg);
        // What was chosen fits, unless a frame claims ids of the segments behind its own.
        let Ok(arg) = u32::try_from(first_id - self.header.first_id) else { return false };
        let envelope = Envelope { continued: false, mark: None, arg, ..old };
        let acks = self.sources[self.next - 1].acks.as_ref();
        for (n, (queue, priority)) in head.targets().enumerate() {
            let n = n as u32;
            self.index.push(Lane { queue, priority }, (arg + n, self.at));
            if acks.is_some_and(|acks| acks.contains(old.arg + n)) {
                self.acks.insert(arg + n);
            }
        }
        self.index.add_bytes(envelope.total_bytes());
        self.index.note_expiry(head.expiry);
        out.extend_from_slice(envelope.encode(&self.seed, self.at).as_bytes());
        let body_at = out.len();
        out.extend_from_slice(frame.body);
        // The copy is what gets a new checksum, so it is the copy that must verify.
        let whole = crc32(&out[body_at..]) == old.body_checksum;
        out.resize(out.len().next_multiple_of(FRAME_ALIGNMENT as usize), 0);
        self.at += envelope.total_bytes() as u32;
        whole
    }

    /// Writes the frame that ends the segment, which names the `next` one, and the header; makes all of it durable.
    /// Returns where it ends.
    fn complete(&self, next: u32) -> io::Result<u32> {
        let mut body = Vec::new();
        encode_roll(next, &mut body);
        let envelope = Envelope {
            length: body.len() as u32,
            kind: ROLL,
            continued: false,
            mark: None,
            info: 0,
            arg: 0,
            body_checksum: crc32(&body),
        };
        let mut roll = envelope.encode(&self.seed, self.at).as_bytes().to_vec();
        roll.append(&mut body);
        roll.resize(frame_bytes(envelope.length.into(), false) as usize, 0);
        let end = self.at + roll.len() as u32;
        self.file.write_at(self.at.into(), &roll)?;
        let header = Header { capacity: end, ..self.header.clone() }.encode();
        for at in HEADER_COPIES_AT {
            self.file.write_at(at as u64, &header)?;
        }
        self.file.set_len(end.into())?;
        if !planted(Bug::RewriteNotSynced) {
            self.file.sync_data()?;
        }
        Ok(end)
    }
}
