//! Reading what a lane or an index points at, verified, outside of the locks; and what to do about damage.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Engine;
use super::usage::message_bytes;
use super::walk::{build_index, quarantine};
use crate::error::{Error, Result};
use crate::format::frame::Found;
use crate::format::record::headers::HeaderBlock;
use crate::format::record::insert::{InsertHead, decode_insert};
use crate::format::record::{INSERT, insert};
use crate::log::{Lane, LaneIndex, MemoryIndex, Segment, index_name};
use crate::report::Damage;
use crate::storage::{Mapping, Storage};

/// A message's bytes, verified, and kept mapped by whoever holds this.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    segment: Arc<Segment>,
    body: Range<u32>,
    /// The payload is the body's end.
    payload_offset: u32,
    info: u16,
    pub priority: u8,
    pub time_ms: u64,
    /// The id that the message had when it was first inserted.
    pub origin_id: u64,
}

/// A message's frame, verified: where its parts lie, and what it says.
pub(super) struct Verified {
    body: Range<u32>,
    payload_offset: u32,
    info: u16,
    priority: u8,
    time_ms: u64,
    origin_id: u64,
}

impl Verified {
    /// In the segment that it was read from.
    #[inline]
    pub fn kept_by(self, segment: Arc<Segment>) -> Content {
        let Verified { body, payload_offset, info, priority, time_ms, origin_id } = self;
        Content { segment, body, payload_offset, info, priority, time_ms, origin_id }
    }
}

impl Content {
    pub fn payload(&self) -> &[u8] {
        self.segment.bytes(self.payload_offset.into()..self.body.end.into())
    }

    /// What the message takes, as limits count it.
    pub fn bytes(&self) -> u64 {
        message_bytes((self.body.end - self.body.start).into())
    }

    /// Whether it has expired by now, in milliseconds since the epoch.
    pub fn has_expired(&self, now_ms: u64) -> bool {
        let expiry = self.head().and_then(|head| head.expiry);
        expiry.is_some_and(|expiry| expiry <= now_ms)
    }

    /// The segment that it was read from.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The headers; empty if they cannot be read.
    pub fn headers(&self) -> HeaderBlock<'_> {
        self.head().and_then(|head| head.header_block().ok()).unwrap_or_default()
    }

    /// Everything that goes with the payload. It was checked when the content was read.
    pub fn head(&self) -> Option<InsertHead<'_>> {
        let body = self.segment.bytes(self.body.start.into()..self.body.end.into());
        insert::decode_insert(self.info, body).ok().map(|(head, _)| head)
    }
}

impl Engine {
    /// Reads message `id` of `lane` from its frame; None if that is damaged or not its frame. An error says that its
    /// bytes could not be reached, and nothing about them.
    #[inline]
    pub(super) fn read(
        &self,
        segment: &Arc<Segment>,
        offset: u32,
        lane: Lane,
        id: u64,
    ) -> Result<Option<Content>> {
        let verified = self.verify_message(segment, offset, lane, id)?;
        Ok(verified.map(|verified| verified.kept_by(segment.clone())))
    }

    /// As [`read`](Engine::read), for whoever has the segment to give.
    #[inline]
    pub(super) fn verify_message(
        &self,
        segment: &Segment,
        offset: u32,
        lane: Lane,
        id: u64,
    ) -> Result<Option<Verified>> {
        let data = self.data_of(segment)?;
        Ok(data.and_then(|data| verify(segment, data, offset, lane, id)))
    }

    /// A segment's bytes; None if its file is missing. An error says that they could not be reached.
    #[inline]
    pub(super) fn data_of<'a>(&self, segment: &'a Segment) -> Result<Option<&'a Mapping>> {
        match segment.data(&*self.storage) {
            Ok(data) => Ok(Some(data)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.unreadable(segment, error)),
        }
    }

    #[cold]
    fn unreadable(&self, segment: &Segment, error: io::Error) -> Error {
        Error::io("cannot read a segment", error).file(self.storage.path(&segment.name()))
    }

    /// Loads the index of a sealed segment: from its file, or by walking the segment. If that finds damage, messages
    /// that were counted may be gone, so all are counted anew: now, or if an error comes between, with the next index.
    pub(super) fn load_index(&self, segment: &Arc<Segment>) -> Result<()> {
        self.load_one_index(segment)?;
        while let Some(missing) = self.recount_if_due()? {
            self.load_one_index(&missing)?;
        }
        Ok(())
    }

    /// Counts all messages, if that is due, unless the index of a segment is missing for it, which it returns.
    fn recount_if_due(&self) -> Result<Option<Arc<Segment>>> {
        let mut state = self.lock_open()?;
        if !state.recount_due {
            return Ok(None);
        }
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        let mut sealed = state.segments.iter().map(|s| &s.segment).filter(|s| s.is_sealed());
        let missing = sealed.find(|segment| segment.index().is_none()).cloned();
        if missing.is_none()
            && let Some(active) = tail.active()
        {
            state.recount(active.segment.number, &active.index);
            state.recount_due = false;
        }
        Ok(missing)
    }

    fn load_one_index(&self, segment: &Arc<Segment>) -> Result<()> {
        if segment.index().is_some() {
            return Ok(());
        }
        let known = || -> Result<Option<(u64, u64)>> {
            let state = self.lock_open()?;
            let at = super::lane::find(&state.segments, segment.number);
            Ok(at.map(|at| (state.segments[at].id_end, state.segments[at].messages)))
        };
        // One that was reclaimed meanwhile had nothing left in it.
        let reclaimed = || segment.set_index(LaneIndex::Memory(MemoryIndex::default()));
        let Some((id_end, messages)) = known()? else {
            reclaimed();
            return Ok(());
        };
        let (index, damage) = load_index(&*self.storage, segment, id_end, messages)
            .map_err(|error| self.unreadable(segment, error))?;
        if known()?.is_none() {
            reclaimed();
            return Ok(());
        }
        segment.set_index(index);
        if !damage.is_empty() {
            quarantine(&*self.storage, &damage, self.now().wall_ms);
            let mut state = self.lock_state();
            state.note_damage(damage);
            state.recount_due = true;
        }
        Ok(())
    }
}

fn verify(segment: &Segment, data: &Mapping, offset: u32, lane: Lane, id: u64) -> Option<Verified> {
    let Found::Frame(frame) = segment.frame(data, offset) else { return None };
    if frame.envelope.kind != INSERT {
        return None;
    }
    let (head, payload) = decode_insert(frame.envelope.info, frame.body).ok()?;
    let first_id = segment.first_id + u64::from(frame.envelope.arg);
    let nth = usize::try_from(id.checked_sub(first_id)?).ok()?;
    if head.targets().nth(nth) != Some((lane.queue, lane.priority)) {
        return None;
    }
    // Both fit: a frame ends where an offset can name.
    let start = frame.body_offset();
    let end = start + frame.body.len() as u32;
    Some(Verified {
        body: start..end,
        payload_offset: end - payload.len() as u32,
        info: frame.envelope.info,
        priority: lane.priority,
        time_ms: head.time_ms,
        origin_id: head.origin.map_or(id, |origin| origin.id),
    })
}

/// The index of a sealed segment, and the damage that was found while it was made anew. No message of it has the id
/// `id_end` or a higher one.
///
/// Its file is believed if it has as many `messages` as the cursor and the log say. One that was written when damage had
/// been found, before any cursor knew of that, has fewer: those that were lost would stay in the counts, unreported.
pub(super) fn load_index(
    storage: &dyn Storage,
    segment: &Segment,
    id_end: u64,
    messages: u64,
) -> io::Result<(LaneIndex, Vec<Damage>)> {
    let end = segment.end();
    let from_file = storage
        .open_read(&index_name(segment.file))
        .and_then(|file| file.map_read())
        .ok()
        .and_then(|file| LaneIndex::from_file(file, segment.file, segment.salt, end))
        .filter(|index| index.messages() == messages);
    if let Some(index) = from_file {
        return Ok((index, Vec::new()));
    }
    let file = storage.path(&segment.name());
    let data = match segment.data(storage) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = "the segment is missing".to_owned();
            let ids = segment.first_id..id_end;
            let damage = Damage { file, offset: 0, bytes: 0, ids, what };
            return Ok((LaneIndex::Memory(MemoryIndex::default()), vec![damage]));
        }
        Err(error) => return Err(error),
    };
    let bytes = data.get(0..data.published().min(u64::from(end))).unwrap_or_default();
    let (index, damage) = build_index(bytes, segment, end, id_end, &file);
    Ok((LaneIndex::Memory(index), damage))
}
