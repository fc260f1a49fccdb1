//! Compaction beside running work: when it is due, of which segments, and what becomes of one that ends early.
//!
//! [`crate::compaction`] chooses, by what the messages of each segment take. Where that is not known well enough, the
//! segment is weighed first. What it has chosen is rewritten piece by piece: [`rewrite`].

mod rewrite;

use std::io::ErrorKind;
use std::sync::Arc;

use super::Engine;
use super::lane::find;
use super::maintenance::Maintenance;
use super::segment_state::{SegmentState, Weight};
use super::state::State;
use crate::compaction::{Policy, Size, choose, is_due};
use crate::cursor::AckSet;
use crate::error::Result;
use crate::format::frame::read_verified_header;
use crate::format::header::SEGMENT_IDS_MAX;
use crate::log::{SEGMENT_OVERHEAD, Segment};
use crate::storage::Spare;

use rewrite::Abandoned;
pub(super) use rewrite::Rewrite;

/// The name of a segment that is being written.
pub(super) const COPY_NAME: &str = "compact.tmp";

/// How much more log there must be before a compaction is tried again that could not be done.
const RETRY_BYTES: u64 = 16 << 20;

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
        // What cannot be removed now is removed before the next copy, or by the next open. Nobody knows what of a file is on
        // the disk whose sync has failed: it must not be used again.
        match abandoned {
            Abandoned::Io => drop(self.space.remove(COPY_NAME)),
            _ => self.space.put_back(Spare::Copy, COPY_NAME),
        }
        match abandoned {
            Abandoned::Changed => {}
            Abandoned::Damaged(segment) => self.fix(segment),
            Abandoned::Full => maintenance.compact_full = Some(self.space.changes()),
            Abandoned::Io => {
                let more = RETRY_BYTES.min(self.settings.segment_bytes);
                let grown = self.log.tail().written_bytes() + more;
                maintenance.compact_failed = Some((grown, self.space.changes()));
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
        let changes = self.space.changes();
        let waits = |(grown, then)| changes == then && self.log.tail().written_bytes() < grown;
        if maintenance.compact_full == Some(changes)
            || maintenance.compact_failed.is_some_and(waits)
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
            if let Err(abandoned) = self.weigh(&segment) {
                self.give_up(maintenance, &abandoned);
            }
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
    fn weigh(&self, segment: &Arc<Segment>) -> std::result::Result<(), Abandoned> {
        self.load_index(segment).map_err(|_| Abandoned::Io)?;
        let Some(acks) = self.acks_of(segment) else { return Ok(()) };
        let data = segment.data(&*self.storage).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Abandoned::Damaged(segment.clone()),
            _ => Abandoned::Io,
        })?;
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
}

/// Where a segment is in the list, if it is there.
pub(super) fn place(state: &State, segment: &Arc<Segment>) -> Option<usize> {
    let at = find(&state.segments, segment.number)?;
    Arc::ptr_eq(&state.segments[at].segment, segment).then_some(at)
}

/// What the policy needs to know of a segment: with the least that its messages can take, or the most. Only what lies
/// before the newest cursor's position, in segment `covered`, can be rewritten.
fn size_of(s: &SegmentState, covered: u32, least: bool) -> Size {
    let live = s.live_bytes();
    if !s.segment.is_sealed() || s.live() == 0 {
        // It is dropped as a whole.
        return Size::default();
    }
    // What every segment has is no garbage.
    let frames = u64::from(s.segment.end()).saturating_sub(SEGMENT_OVERHEAD);
    let first_id = s.segment.first_id;
    Size {
        bytes: frames.max(*live.start()),
        live: if least { *live.start() } else { *live.end() },
        free: !s.damaged && s.dropped_in.is_none() && s.segment.number < covered,
        first_id,
        // Where the next segment begins may be much farther.
        id_end: s.id_end.min(first_id + SEGMENT_IDS_MAX),
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
