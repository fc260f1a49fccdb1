//! Where the log goes on once it is repaired: in its last segment, or in a new one. Those before are sealed.

use std::sync::Arc;

use super::super::lane::find;
use super::super::open::{Named, Opening};
use super::super::recover::Found;
use super::super::segment_state::{SegmentState, Weight};
use super::super::state::State;
use crate::error::{Error, Result};
use crate::format::header::{FRAMES_START, Header};
use crate::log::{
    Active, LaneIndex, LogSettings, MemoryIndex, Purpose, ROLL_RESERVE, Segment, file_bytes,
    index_name, no_number_left, prepare_file, reuse_file, segment_name, sync_prepared,
};
use crate::planted::{Bug, planted};
use crate::storage::Space;

impl Opening {
    /// The segment in which the log goes on: its last one, or a new one if that is full, cut short or missing.
    /// Also the numbers of the files that are not part of the log.
    pub(super) fn activate(
        &self,
        found: &mut Found,
        space: &Space,
        settings: &LogSettings,
        next_number: &mut u32,
    ) -> Result<(Active, Vec<u32>)> {
        let in_log: Vec<u32> =
            found.verdict.segments.iter().map(|&at| found.files[at].header.number).collect();
        let strays = found.files.iter().map(|file| file.header.number);
        let strays = strays.filter(|number| !in_log.contains(number)).collect();
        let indexes = std::mem::take(&mut found.indexes);
        let mut last = None;
        let count = indexes.len();
        for (n, (&at, index)) in found.verdict.segments.iter().zip(indexes).enumerate() {
            let file = &found.files[at];
            let whole = !file.header.is_rewritten()
                && file.survey.next.is_none()
                && !found.verdict.cut_short
                && file.header.capacity > 0
                && u64::from(file.header.capacity) == file.len
                // Where the frame that names the next segment is damaged, there is no room for another one.
                && u64::from(found.end) + u64::from(ROLL_RESERVE) <= file.len;
            if n + 1 == count && whole {
                last = Some((file.header.clone(), index));
            } else {
                let end = if n + 1 == count { found.end } else { file.survey.end };
                // Damage reaches to where the next frame could begin, the file perhaps not.
                let end = u64::from(end).min(file.len) as u32;
                if end > FRAMES_START {
                    seal(&mut found.replay.state, &file.header, end, index);
                } else {
                    // Nothing is left of it.
                    let place = file.header.place();
                    found.replay.state.segments.retain(|s| s.segment.number != place);
                }
            }
        }
        self.trim(&found.replay.state, last.as_ref().map(|(header, _)| header.number));
        let Some((header, index)) = last else {
            return Ok((self.begin_segment(found, space, settings, next_number)?, strays));
        };
        self.forget_index(header.number)?;
        let name = segment_name(header.number);
        let open = || {
            let file = self.storage.open(&name)?;
            let writer = file.map_write(settings.writing())?;
            Ok((file, writer))
        };
        let (file, mut writer) = open().map_err(|error| {
            Error::io("cannot open the active segment", error).file(self.storage.path(&name))
        })?;
        writer.publish(found.end.into());
        let segment = Arc::new(Segment::active(&header, writer.mapping()));
        let offset = found.end;
        let active = Active { segment: segment.clone(), file, writer, offset, present: 0, index };
        if let Some(at) = find(&found.replay.state.segments, header.number) {
            let s = &mut found.replay.state.segments[at];
            *s = SegmentState {
                segment,
                acks: std::mem::take(&mut s.acks),
                ..SegmentState::new(s.segment.clone())
            };
        }
        Ok((active, strays))
    }

    /// Cuts segments to their end that the last process had no time to, all but the `active` one. Nothing is mapped yet, but by
    /// those who have something of an earlier owner of the store.
    fn trim(&self, state: &State, active: Option<u32>) {
        let sealed =
            |segment: &&Arc<Segment>| segment.is_sealed() && Some(segment.number) != active;
        for segment in state.segments.iter().map(|s| &s.segment).filter(sealed) {
            let (name, end) = (segment.name(), u64::from(segment.end()));
            let is_too_long = self.files.iter().any(|(file, len)| *file == name && *len > end);
            if is_too_long && !self.storage.is_held(&name) {
                // One that stays too long costs space and nothing else.
                let _ = self.storage.open(&name).and_then(|file| file.set_len(end));
            }
        }
    }

    /// Removes the index of a segment that the log goes on in: it is of a state that a power cut has undone, and would be
    /// believed as soon as the segment came to end at the same place again. So that is durable before anything is appended.
    /// Crash windows: the index is there or not, and the log ends where it did.
    fn forget_index(&self, number: u32) -> Result<()> {
        let name = index_name(number);
        if planted(Bug::UndoneIndexKept) || !self.files.iter().any(|(file, _)| *file == name) {
            return Ok(());
        }
        let removed = self.storage.remove(&name).and_then(|()| self.storage.sync_dir());
        removed.map_err(|error| {
            Error::io("cannot remove an outdated index", error).file(self.storage.path(&name))
        })
    }

    fn begin_segment(
        &self,
        found: &mut Found,
        space: &Space,
        settings: &LogSettings,
        next_number: &mut u32,
    ) -> Result<Active> {
        let bytes = file_bytes(0).max(settings.first_segment_bytes().into());
        let now = self.time.now().wall_ms;
        // The log goes on where its last frame says, if that segment is still as it was made ready.
        let last = found.verdict.segments.last().and_then(|&at| found.files[at].survey.next);
        let named = last.and_then(|number| match self.named(number) {
            Named::Unused => Some(number),
            Named::Torn | Named::Lost => None,
        });
        let number = named.unwrap_or(*next_number);
        let mut begin = || {
            let prepared = match named {
                Some(_) => {
                    let name = segment_name(number);
                    // A header that a kill cut off may have left bytes.
                    self.rewrite(&name, 0, 0, FRAMES_START.into())?;
                    reuse_file(&*self.storage, settings, number, now)?
                }
                None => {
                    *next_number = number.checked_add(1).ok_or_else(no_number_left)?;
                    let bytes = file_bytes(0)..=bytes;
                    prepare_file(space, settings, number, bytes, Purpose::Settle, now)?
                }
            };
            sync_prepared(&*self.storage, &prepared)?;
            let active = Active::begin(prepared, found.next_id)?;
            active.file.sync_data()?;
            Ok(active)
        };
        let active = begin().map_err(|error| {
            Error::io("cannot make a segment", error).file(self.storage.path(&segment_name(number)))
        })?;
        let state = &mut found.replay.state;
        if let Some(last) = state.segments.last_mut() {
            last.id_end = last.id_end.min(found.next_id);
        }
        state.segments.push(SegmentState::new(active.segment.clone()));
        Ok(active)
    }
}

/// A segment that nothing more is appended to.
fn seal(state: &mut State, header: &Header, end: u32, index: MemoryIndex) {
    let place = header.place();
    let segment = Segment::sealed(header.number, place, header.first_id, header.salt, end);
    let segment = Arc::new(segment);
    let (messages, weight) = (index.messages(), Weight::of(&index));
    segment.set_index(LaneIndex::Memory(index));
    if let Some(at) = find(&state.segments, place) {
        let s = &mut state.segments[at];
        s.segment = segment;
        s.messages = messages;
        s.weight = weight;
    }
}
