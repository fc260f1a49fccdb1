//! Walking a surveyed segment frame by frame: its index, and which ids its damage may have cost.

use std::ops::Range;
use std::path::Path;

use crate::format::IDS_END;
use crate::format::frame::Envelope;
use crate::format::header::{FRAMES_START, Header};
use crate::format::record::INSERT;
use crate::format::record::insert::decode_insert;
use crate::log::{BadSpan, DamagedSpan, Lane, MemoryIndex, Segment, frames, survey};
use crate::report::Damage;
use crate::storage::{Prepare, Storage};

/// At most this much damage is copied aside in one go.
const QUARANTINE_BYTES_MAX: u64 = 64 << 20;

/// Assigns ids to damage: those between the last message before it and the first behind it. An open that was not clean may
/// have left out many between two messages.
pub(super) struct Gaps {
    expected: u64,
    open: Vec<usize>,
    ids: Vec<Range<u64>>,
    spans: Vec<(u32, u32)>,
    next: usize,
}

impl Gaps {
    /// `spans` are the damaged stretches in ascending order; the first message there may have had id `first_id`.
    pub fn new(first_id: u64, spans: Vec<(u32, u32)>) -> Gaps {
        let ids = vec![first_id..first_id; spans.len()];
        Gaps { expected: first_id, open: Vec::new(), ids, spans, next: 0 }
    }

    /// Messages `ids` were found at `offset`.
    pub fn found(&mut self, offset: u32, ids: Range<u64>) {
        self.pass(offset);
        self.close(ids.start);
        self.expected = ids.end;
    }

    /// Messages before `offset` have lower ids than `next_id`, and those from there on have none. A span that reaches to
    /// `end`, where the segment ends now, may have cost what was behind as well.
    pub fn boundary(&mut self, offset: u32, next_id: u64, end: u32) {
        self.pass(offset);
        let spans = &self.spans;
        let (before, across): (Vec<usize>, Vec<usize>) =
            self.open.iter().partition(|&&at| spans[at].1 <= offset && spans[at].1 < end);
        self.open = before;
        self.close(next_id);
        self.open = across;
        self.expected = self.expected.max(next_id);
    }

    /// Everything before `offset` has been walked.
    fn pass(&mut self, offset: u32) {
        while self.spans.get(self.next).is_some_and(|(start, _)| *start < offset) {
            self.ids[self.next] = self.expected..self.expected;
            self.open.push(self.next);
            self.next += 1;
        }
    }

    fn close(&mut self, first_behind: u64) {
        for at in self.open.drain(..) {
            self.ids[at].end = first_behind.max(self.ids[at].start);
        }
    }

    /// The ids of each span, where no message behind the last one has an id of `id_end` or above.
    pub fn finish(mut self, id_end: u64) -> Vec<Range<u64>> {
        self.pass(u32::MAX);
        self.close(id_end);
        self.ids
    }

    /// The same for the last segment of the log, which ends at `end`: behind the newest cursor no id was left out, so a
    /// span there has lost no more messages than it has bytes.
    pub fn finish_log(mut self, id_end: u64, end: u32) -> Vec<Range<u64>> {
        self.pass(u32::MAX);
        for at in std::mem::take(&mut self.open) {
            let (span_start, span_end) = self.spans[at];
            let most = match span_end < end {
                true => self.expected.saturating_add((span_end - span_start).into()),
                false => u64::MAX,
            };
            self.ids[at].end = id_end.min(most).max(self.ids[at].start);
        }
        self.ids
    }
}

/// Adds an insert to `index`; returns its ids.
pub(super) fn index_insert(
    index: &mut MemoryIndex,
    bytes: &[u8],
    offset: u32,
    envelope: &Envelope,
    first_id: u64,
) -> Option<Range<u64>> {
    if envelope.kind != INSERT {
        return None;
    }
    let start = offset as usize + envelope.size();
    let body = bytes.get(start..start + envelope.length as usize)?;
    let (head, _) = decode_insert(envelope.info, body).ok()?;
    index.add_bytes(envelope.total_bytes());
    index.note_expiry(head.expiry);
    let mut delta = envelope.arg;
    for (queue, priority) in head.targets() {
        index.push(Lane { queue, priority }, (delta, offset));
        delta = delta.checked_add(1)?;
    }
    Some(first_id + u64::from(envelope.arg)..first_id + u64::from(delta))
}

/// The index of a sealed segment from its bytes. No message of it has the id `id_end` or
/// a higher one.
pub(super) fn build_index(
    bytes: &[u8],
    segment: &Segment,
    end: u32,
    id_end: u64,
    file: &Path,
) -> (MemoryIndex, Vec<Damage>) {
    let found = survey(bytes, &segment.seed, FRAMES_START);
    let mut spans: Vec<DamagedSpan> = found.bad.iter().map(damaged).collect();
    if found.end < end && found.bad.last().is_none_or(|span| span.followed) {
        let what = "the end of the segment is missing";
        spans.push(DamagedSpan { at: 0, start: found.end, end, what });
    }
    let offsets = spans.iter().map(|span| (span.start, span.end)).collect();
    let mut gaps = Gaps::new(segment.first_id, offsets);
    let mut index = MemoryIndex::default();
    frames(bytes, &found, FRAMES_START, end, |offset, envelope| {
        if let Some(ids) = index_insert(&mut index, bytes, offset, envelope, segment.first_id) {
            gaps.found(offset, ids);
        }
    });
    let ids = gaps.finish(id_end);
    let damage = spans.iter().zip(ids).map(|(span, ids)| describe(span, ids, file)).collect();
    (index, damage)
}

fn damaged(span: &BadSpan) -> DamagedSpan {
    let what = "a frame does not verify";
    DamagedSpan { at: 0, start: span.start, end: span.end, what }
}

pub(super) fn describe(span: &DamagedSpan, ids: Range<u64>, file: &Path) -> Damage {
    Damage {
        file: file.to_path_buf(),
        offset: span.start.into(),
        bytes: (span.end - span.start).into(),
        ids,
        what: span.what.to_owned(),
    }
}

/// Copies damaged ranges to `quarantine/`, with a note each. Best effort: what cannot be copied is not.
pub(super) fn quarantine(storage: &dyn Storage, damage: &[Damage], wall_ms: u64) {
    for found in damage {
        let Some(name) = found.file.file_name().and_then(|name| name.to_str()) else { continue };
        let note = format!("{}\nids {:?}\nfound at {wall_ms} ms\n", found.what, found.ids);
        set_aside(storage, name, found.offset, found.bytes, &note);
    }
}

/// What is said of bytes behind the end of the log that are set aside, so that they can still be read.
pub(super) fn aside_note(header: &Header, offset: u64) -> String {
    let Header { salt, first_id, .. } = header;
    format!("behind the end of the log\nsalt {salt}\nfirst id {first_id}\noffset {offset}\n")
}

/// What such a note says.
pub(super) struct Aside {
    pub salt: u64,
    pub first_id: u64,
    pub offset: u64,
}

/// None for any other note.
pub(super) fn parse_aside(note: &str) -> Option<Aside> {
    let said = |key: &str| {
        note.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
    };
    let first_id = said("first id").filter(|id| *id < IDS_END)?;
    Some(Aside { salt: said("salt")?, first_id, offset: said("offset")? })
}

/// Copies a range of file `name` to `quarantine/`.
pub(super) fn set_aside(storage: &dyn Storage, name: &str, offset: u64, bytes: u64, note: &str) {
    let stem = format!("quarantine/{name}-{offset}");
    let copy = || -> std::io::Result<()> {
        storage.create_dir("quarantine")?;
        let file = storage.open_read(name)?;
        let bytes = bytes.min(file.len()?.saturating_sub(offset)).min(QUARANTINE_BYTES_MAX);
        let mut content = vec![0; usize::try_from(bytes).map_err(std::io::Error::other)?];
        file.read_at(offset, &mut content)?;
        write_new(storage, &format!("{stem}.bin"), &content)?;
        write_new(storage, &format!("{stem}.txt"), note.as_bytes())
    };
    // A copy that fails must not keep the store from opening.
    let _ = copy();
}

fn write_new(storage: &dyn Storage, name: &str, content: &[u8]) -> std::io::Result<()> {
    storage.create(name, content.len() as u64, Prepare::Reserve)?.write_at(0, content)
}
