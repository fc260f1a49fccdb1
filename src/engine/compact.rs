//! Rewriting sealed segments in which little is left: what [`crate::compaction`] has chosen is copied into one new segment
//! at the same place in the log, with its ids and in its order.
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

use super::Engine;
use super::lane::find;
use super::maintenance::Maintenance;
use super::state::{Retired, SegmentState, State, Weight};
use crate::compaction::{Policy, Size, choose, is_due};
use crate::cursor::AckSet;
use crate::error::Result;
use crate::format::checksum::{Seed, crc32};
use crate::format::frame::{Envelope, FRAME_ALIGNMENT, Found, frame_bytes, read_verified_header};
use crate::format::header::{FRAMES_START, HEADER_COPIES_AT, Header, HeaderFound, decode_start};
use crate::format::record::insert::decode_insert;
use crate::format::record::{INSERT, ROLL, encode_roll};
use crate::log::{Lane, LaneIndex, MemoryIndex, SEGMENT_OVERHEAD, Segment, segment_name};
use crate::planted::{Bug, planted};
use crate::storage::{File, Prepare, Spare, is_full};

/// The name of a segment that is being written.
pub(super) const COPY_NAME: &str = "compact.tmp";

/// How much is copied before whoever waits for maintenance has a turn.
const COPY_BYTES: usize = 2 << 20;

/// How much more log there must be before a compaction is tried again that could not be done.
const RETRY_BYTES: u64 = 16 << 20;

/// A segment that is being rewritten.
struct Source {
    segment: Arc<Segment>,
    /// What was deleted in it when its messages were chosen; None before.
    acks: Option<AckSet>,
}

/// A compaction that has begun.
pub(super) struct Rewrite {
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
enum Abandoned {
    /// Its segments are not what they were.
    Changed,
    /// Something in this segment does not verify.
    Damaged(Arc<Segment>),
    /// There is no space for the copy.
    Full,
    /// The copy could not be written.
    Io,
}

impl From<io::Error> for Abandoned {
    fn from(error: io::Error) -> Abandoned {
        if is_full(&error) { Abandoned::Full } else { Abandoned::Io }
    }
}

impl Engine {
    /// Does one piece of a compaction, if one has begun or is due. Whether there may be more.
    pub(super) fn compact(&self, maintenance: &mut Maintenance) -> Result<bool> {
        let Some(mut rewrite) = maintenance.rewrite.take() else {
            return self.begin_if_due(maintenance);
        };
        let copied = self.copy_some(&mut rewrite);
        let done = match copied {
            Ok(false) => {
                maintenance.rewrite = Some(rewrite);
                return Ok(true);
            }
            Ok(true) => self.finish(rewrite)?,
            Err(abandoned) => Err(abandoned),
        };
        if let Err(abandoned) = done {
            self.give_up(maintenance, &abandoned);
        }
        Ok(true)
    }

    fn give_up(&self, maintenance: &mut Maintenance, abandoned: &Abandoned) {
        // What cannot be removed now is removed before the next copy, or by the next open.
        self.space.put_back(Spare::Copy, COPY_NAME);
        match abandoned {
            Abandoned::Changed => {}
            Abandoned::Damaged(segment) => self.fix(segment),
            Abandoned::Full => maintenance.compact_full = Some(self.space.changes()),
            Abandoned::Io => {
                let more = RETRY_BYTES.min(self.settings.segment_bytes);
                maintenance.compact_at = self.log.tail().written_bytes() + more;
            }
        }
    }

    /// Leaves a segment as it is from now on.
    fn fix(&self, segment: &Arc<Segment>) {
        let mut state = self.lock_state();
        if let Some(at) = place(&state, segment) {
            state.segments[at].damaged = true;
        }
    }

    fn begin_if_due(&self, maintenance: &mut Maintenance) -> Result<bool> {
        if self.log.tail().written_bytes() < maintenance.compact_at
            || maintenance.compact_full == Some(self.space.changes())
        {
            return Ok(false);
        }
        let sizes = |least: bool| -> Vec<Size> {
            let state = self.lock_state();
            let covered = maintenance.position.segment();
            state.segments.iter().map(|s| size_of(s, covered, least)).collect()
        };
        let policy = Policy {
            segment_bytes: self.settings.segment_bytes,
            garbage_percent: self.settings.garbage_percent.into(),
            copy_bytes: None,
        };
        if !is_due(&sizes(true), policy) {
            return Ok(false);
        }
        if let Some(segment) = self.unclear() {
            self.weigh(&segment)?;
            return Ok(true);
        }
        let sizes = sizes(false);
        let mut begun = match choose(&sizes, policy) {
            Some(chosen) => self.begin(chosen),
            None => return Ok(false),
        };
        if matches!(begun, Err(Abandoned::Full)) {
            // What is held back for a copy is enough for less.
            let held = self.space.held(Spare::Copy).saturating_sub(SEGMENT_OVERHEAD);
            let smaller = Policy { copy_bytes: Some(held), ..policy };
            if let Some(chosen) = choose(&sizes, smaller) {
                begun = self.begin(chosen);
            }
        }
        match begun {
            Ok(rewrite) => maintenance.rewrite = rewrite,
            Err(abandoned) => self.give_up(maintenance, &abandoned),
        }
        Ok(true)
    }

    /// A segment of which it is not known well enough what its messages take.
    fn unclear(&self) -> Option<Arc<Segment>> {
        let state = self.lock_state();
        let unclear = |s: &&SegmentState| {
            let live = s.live_bytes();
            s.segment.is_sealed()
                && !s.damaged
                && s.live() > 0
                && live.end() - live.start() > self.settings.segment_bytes / 32
        };
        state.segments.iter().find(unclear).map(|s| s.segment.clone())
    }

    /// Finds out what the messages of a segment take that are not deleted.
    fn weigh(&self, segment: &Arc<Segment>) -> Result<()> {
        if segment.index().is_none() && self.load_index(segment).is_err() {
            self.fix(segment);
            return Ok(());
        }
        let Some(acks) = self.acks_of(segment) else { return Ok(()) };
        let Ok(data) = segment.data(&*self.storage) else {
            self.fix(segment);
            return Ok(());
        };
        let bytes = data.get(0..data.published().min(segment.end().into())).unwrap_or_default();
        let mut weight = Weight { acked: acks.count(), ..Weight::default() };
        for offset in live_offsets(segment, &acks) {
            let Some(envelope) = read_verified_header(bytes, offset) else {
                self.fix(segment);
                return Ok(());
            };
            weight.most += envelope.total_bytes();
            weight.largest = weight.largest.max(envelope.total_bytes());
        }
        weight.least = weight.most;
        let mut state = self.lock_state();
        if let Some(at) = place(&state, segment) {
            state.segments[at].weight = weight;
        }
        Ok(())
    }

    /// What is deleted in a segment; None if it is gone.
    fn acks_of(&self, segment: &Arc<Segment>) -> Option<AckSet> {
        let state = self.lock_state();
        place(&state, segment).map(|at| state.segments[at].acks.clone())
    }

    fn begin(&self, chosen: Range<usize>) -> std::result::Result<Option<Rewrite>, Abandoned> {
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
        let id_end = {
            let state = self.lock_state();
            let at = place(&state, last).ok_or(Abandoned::Changed)?;
            state.segments[at].id_end
        };
        let most: u64 = {
            let state = self.lock_state();
            let most =
                |s: &Arc<Segment>| Some(*state.segments[place(&state, s)?].live_bytes().end());
            segments.iter().filter_map(most).sum()
        };
        let bytes = SEGMENT_OVERHEAD + most;
        let capacity = u32::try_from(bytes).map_err(|_| Abandoned::Damaged(first.clone()))?;
        if u32::try_from(id_end.saturating_sub(first.first_id)).is_err() {
            // Its ids would not fit into the frames.
            return Err(Abandoned::Damaged(last.clone()));
        }
        self.space.put_back(Spare::Copy, COPY_NAME);
        let lens = bytes..=bytes;
        let file = self.space.create_or_take(Spare::Copy, COPY_NAME, lens, Prepare::Reserve)?;
        let header = Header {
            store: self.store_id,
            number: self.log.take_number(),
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
    fn copy_some(&self, rewrite: &mut Rewrite) -> std::result::Result<bool, Abandoned> {
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
    fn finish(&self, rewrite: Rewrite) -> Result<std::result::Result<(), Abandoned>> {
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
            return Err(super::poisoned(Some(failed)));
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
        let segment = Arc::new(Segment::sealed(number, *numbers.end(), first_id, salt, end));
        segment.set_index(LaneIndex::Memory(rewrite.index));
        let id_end = state.segments[until - 1].id_end;
        let new = SegmentState { acks, messages, weight, id_end, ..SegmentState::new(segment) };
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
    fn copy(
        &mut self,
        segment: &Segment,
        data: &crate::storage::Mapping,
        offset: u32,
        out: &mut Vec<u8>,
    ) -> bool {
        let Found::Frame(frame) = segment.frame(data, offset) else { return false };
        let old = frame.envelope;
        let Ok((head, _)) = decode_insert(old.info, frame.body) else { return false };
        if old.kind != INSERT {
            return false;
        }
        let first_id = segment.first_id + u64::from(old.arg);
        let arg = (first_id - self.header.first_id) as u32;
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

/// Where a segment is in the list, if it is there.
fn place(state: &State, segment: &Arc<Segment>) -> Option<usize> {
    let at = find(&state.segments, segment.number)?;
    Arc::ptr_eq(&state.segments[at].segment, segment).then_some(at)
}

/// What the policy needs to know of a segment: with the least that its messages can take, or the most. Only what lies
/// before the newest cursor's position, in segment `covered`, can be rewritten.
fn size_of(s: &SegmentState, covered: u32, least: bool) -> Size {
    let live = s.live_bytes();
    if !s.segment.is_sealed() || s.live() == 0 {
        // It is dropped as a whole.
        return Size { bytes: 0, live: 0, free: false };
    }
    // What every segment has is no garbage.
    let frames = u64::from(s.segment.end()).saturating_sub(SEGMENT_OVERHEAD);
    Size {
        bytes: frames.max(*live.start()),
        live: if least { *live.start() } else { *live.end() },
        free: !s.damaged && s.dropped_in.is_none() && s.segment.number < covered,
    }
}

/// Where the frames of a segment lie that hold messages which are not deleted, ascending.
fn live_offsets(segment: &Segment, acks: &AckSet) -> Vec<u32> {
    let Some(index) = segment.index() else { return Vec::new() };
    let mut offsets = Vec::new();
    for (lane, count) in index.lanes() {
        let slots = (0..count).filter_map(|k| index.entry(lane, k));
        offsets.extend(slots.filter(|(delta, _)| !acks.contains(*delta)).map(|(_, at)| at));
    }
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}
