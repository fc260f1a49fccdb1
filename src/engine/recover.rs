//! Reading what the cursor does not cover, and applying it. Nothing here changes the disk.

use std::sync::Arc;

use super::checkpoint::IDS_RESERVED;
use super::open::{Named, Opening};
use super::replay::{Known, Replay};
use super::segment_state::SegmentState;
use super::state::State;
use super::walk::{Gaps, describe, index_insert};
use crate::cursor::BadCursor;
use crate::error::{Error, ErrorKind, Result};
use crate::format::cursor::CursorHeader;
use crate::format::cursor::sections::Section;
use crate::format::header::{FRAMES_START, Header};
use crate::format::position::Position;
use crate::format::record::{Record, RecordError};
use crate::log::{
    MemoryIndex, Segment, Survey, Surveyed, Verdict, frames, segment_name, survey_data, verdict,
};
use crate::planted::{Bug, planted};
use crate::report::Damage;
use crate::storage::Mapping;

/// A segment file behind the position of the cursor.
pub(super) struct TailFile {
    pub header: Header,
    /// Its bytes, for as long as nothing is changed.
    pub data: Option<Mapping>,
    /// How long it is.
    pub len: u64,
    /// Replay begins here.
    pub from: u32,
    pub survey: Survey,
}

impl TailFile {
    pub(super) fn bytes(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], |data| data.bytes(0..data.published()))
    }
}

/// What was found, before anything is changed.
pub(super) struct Found {
    pub files: Vec<TailFile>,
    pub verdict: Verdict,
    pub replay: Replay,
    /// The index of each segment that the log goes through behind the cursor.
    pub indexes: Vec<MemoryIndex>,
    pub damage: Vec<Damage>,
    /// Where the log ends.
    pub end: u32,
    pub next_id: u64,
    pub replayed_bytes: u64,
}

impl Opening {
    /// Reads everything and passes the verdict. Changes nothing.
    pub(super) fn find(
        &self,
        cursor: Option<&(CursorHeader, Vec<Section>)>,
        bad_cursors: &[BadCursor],
        mut headers: std::collections::BTreeMap<u32, (Header, u64)>,
        store_id: [u8; 16],
    ) -> Result<Found> {
        headers.retain(|_, (header, _)| {
            header.store == store_id || planted(Bug::ForeignSegmentAccepted)
        });
        let mut replay = Replay::new(self.settings.durability);
        let mut known = Known::new();
        let start = match cursor {
            Some((header, sections)) => {
                known = replay.load(sections, |n| self.storage.path(&segment_name(n)))?;
                replay.next_id = header.next_id;
                header.position
            }
            None => Position::default(),
        };
        let clean = cursor.is_some_and(|(header, _)| header.clean) && bad_cursors.is_empty();
        let mut damage = self.check_sealed(&mut replay.state, start.segment(), &known);
        let files = self.survey_tail(&replay.state, &headers, start, clean)?;
        let surveyed: Vec<Surveyed<'_>> = files
            .iter()
            .map(|file| Surveyed {
                first: file.header.replaces_first,
                number: file.header.place(),
                rewritten: file.header.is_rewritten(),
                survey: &file.survey,
                // Where only the cursor knows of it, its capacity is not known; it had its header at least.
                short: !clean && file.len < file.header.capacity.max(FRAMES_START).into(),
                next_lost: file.survey.next.is_some_and(|next| {
                    !headers.contains_key(&next)
                        && !files.iter().any(|file| file.header.covers(next))
                        && match self.named(next) {
                            Named::Unused => false,
                            // A power cut may keep frames and lose the header before them; a kill does not.
                            Named::Torn => self.same_boot,
                            Named::Lost => true,
                        }
                }),
            })
            .collect();
        let verdict = verdict(&surveyed, start, self.same_boot);
        let is_start = |file: &TailFile| file.header.place() == start.segment();
        if start.segment() != 0 && !files.iter().any(is_start) {
            let behind = files.first().map(|file| file.header.first_id);
            let ceiling = cursor.filter(|_| !clean).map_or(0, |(header, _)| header.id_ceiling);
            let behind = behind.unwrap_or(replay.next_id.max(ceiling));
            damage.push(self.missing(&replay.state, start.segment(), behind));
            replay.state.segments.retain(|s| s.segment.is_sealed());
        }
        let mut found = Found {
            end: verdict.end,
            indexes: Vec::new(),
            damage,
            next_id: 0,
            replayed_bytes: 0,
            files,
            verdict,
            replay,
        };
        let id_ceiling = cursor.filter(|_| !clean).map_or(0, |(header, _)| header.id_ceiling);
        self.replay_tail(&mut found, &known, id_ceiling)?;
        if let Some(&last) = found.verdict.segments.last() {
            // A frame behind the end that names another segment is not part of the log: this one is not full.
            let survey = &mut found.files[last].survey;
            survey.next = survey.next.filter(|_| found.end >= survey.end);
        }
        // What is mapped must not be written to.
        found.files.iter_mut().for_each(|file| file.data = None);
        let seen = found.replay.next_id;
        found.next_id = match cursor {
            Some(_) if clean => seen,
            Some(_) if planted(Bug::IdsUsedAgain) => seen,
            Some((header, _)) if bad_cursors.is_empty() => seen.max(header.id_ceiling),
            // The cursor that cannot be read may have reserved more.
            Some((header, _)) => seen.max(header.id_ceiling) + IDS_RESERVED,
            // Some ids may have been given out that no file remembers.
            None if found.files.is_empty() && bad_cursors.is_empty() => seen,
            None => seen + IDS_RESERVED,
        };
        Ok(found)
    }

    /// Looks whether the sealed segments that the cursor names are there, and as long as they were.
    fn check_sealed(&self, state: &mut State, active: u32, known: &Known) -> Vec<Damage> {
        let mut damage = Vec::new();
        let mut missing = Vec::new();
        for (n, s) in state.segments.iter().enumerate() {
            if s.segment.number == active {
                continue;
            }
            let (number, name) = (s.segment.file, s.segment.name());
            let len = self.files.iter().find(|(found, _)| *found == name).map(|(_, len)| *len);
            let first = s.segment.first_id;
            let behind = state.segments.get(n + 1).map_or(first, |next| next.segment.first_id);
            let end = u64::from(s.segment.end());
            let (offset, what) = match len {
                None => (0, "the segment is missing"),
                Some(len) if len < end => (len, "the end of the segment is missing"),
                Some(_) => continue,
            };
            if len.is_none() {
                missing.push(s.segment.number);
            } else if known.contains_key(&(number, offset as u32)) {
                continue;
            }
            damage.push(Damage {
                file: self.storage.path(&name),
                offset,
                bytes: end - offset,
                ids: first..behind,
                what: what.to_owned(),
            });
        }
        state.segments.retain(|s| !missing.contains(&s.segment.number));
        damage
    }

    fn missing(&self, state: &State, number: u32, id_end: u64) -> Damage {
        let first = state.segments.iter().find(|s| s.segment.number == number);
        let first = first.map_or(id_end, |s| s.segment.first_id);
        Damage {
            file: self.storage.path(&segment_name(number)),
            offset: 0,
            bytes: 0,
            ids: first..id_end.max(first),
            what: "the active segment is missing".to_owned(),
        }
    }

    /// Surveys the segment of `start` and everything behind it.
    fn survey_tail(
        &self,
        state: &State,
        headers: &std::collections::BTreeMap<u32, (Header, u64)>,
        start: Position,
        clean: bool,
    ) -> Result<Vec<TailFile>> {
        let mut files = Vec::new();
        // What the cursor says of the active segment stands in for a damaged header.
        let active = state.segments.iter().find(|s| s.segment.number == start.segment());
        let mut tail = match start.segment() {
            0 => self.whole_log(headers)?,
            number => plain(headers).filter(|header| header.number >= number).cloned().collect(),
        };
        if let Some(active) = active.map(|s| &s.segment)
            && tail.first().is_none_or(|header| header.number != active.number)
            && self.files.iter().any(|(name, _)| *name == active.name())
        {
            tail.insert(0, stand_in(active));
        }
        for header in tail {
            let name = segment_name(header.number);
            let (data, data_end) = self.map_segment(&name)?;
            let is_start = header.place() == start.segment();
            let from = if is_start { start.offset() } else { FRAMES_START };
            let seed = crate::format::checksum::Seed::new(header.salt);
            let mut limit = data.published();
            if clean && is_start {
                limit = limit.min(start.offset().into());
            }
            let found = survey_data(data.bytes(0..limit), data_end, &seed, FRAMES_START);
            if let Some(kind) = found.unknown_kind {
                return Err(Error::new(
                    ErrorKind::NewerFormat,
                    format!("a record of kind {kind}, written by a newer millpond"),
                )
                .file(self.storage.path(&name)));
            }
            let len = data.published();
            files.push(TailFile { header, data: Some(data), len, from, survey: found });
            if clean {
                break;
            }
        }
        Ok(files)
    }

    /// The segments of the whole log in its order, where no cursor says which they are: a rewritten one stands for those
    /// whose place it takes, unless it is not whole and they are still there.
    fn whole_log(
        &self,
        headers: &std::collections::BTreeMap<u32, (Header, u64)>,
    ) -> Result<Vec<Header>> {
        let all = || headers.values().map(|(header, _)| header);
        let mut chosen: Vec<Header> = Vec::new();
        // The newest first: it may take the place of one that was rewritten before.
        for header in all().rev().filter(|header| header.is_rewritten()) {
            let stands = chosen.iter().any(|newer| newer.covers(header.place()));
            if !stands && (self.is_whole(header)? || !self.is_old_log_there(header, headers)?) {
                chosen.push(header.clone());
            }
        }
        let left = plain(headers).filter(|h| !chosen.iter().any(|newer| newer.covers(h.number)));
        let mut log: Vec<Header> = left.cloned().collect();
        log.append(&mut chosen);
        log.sort_unstable_by_key(Header::place);
        Ok(log)
    }

    /// Whether the segments are all there whose place `new` takes: each names the next one. Some of them may have been
    /// removed already.
    fn is_old_log_there(
        &self,
        new: &Header,
        headers: &std::collections::BTreeMap<u32, (Header, u64)>,
    ) -> Result<bool> {
        let old = |number: u32| {
            let mut all = headers.values().rev().map(|(header, _)| header);
            all.find(|h| h.number < new.number && h.covers(number))
        };
        let mut at = old(new.replaces_first);
        while let Some(header) = at {
            if header.place() >= new.place() {
                return Ok(true);
            }
            let next = self.survey_of(header)?.next;
            at = next.filter(|next| *next > header.place()).and_then(old);
        }
        Ok(false)
    }

    /// Whether a rewritten segment is finished: its last frame names the next one, and all before it verify.
    fn is_whole(&self, header: &Header) -> Result<bool> {
        let found = self.survey_of(header)?;
        Ok(found.next.is_some() && found.bad.is_empty())
    }

    fn survey_of(&self, header: &Header) -> Result<Survey> {
        let (data, data_end) = self.map_segment(&segment_name(header.number))?;
        let seed = crate::format::checksum::Seed::new(header.salt);
        Ok(survey_data(data.bytes(0..data.published()), data_end, &seed, FRAMES_START))
    }

    /// The bytes of a segment file, and from where on they are all zero.
    fn map_segment(&self, name: &str) -> Result<(Mapping, u64)> {
        let mapped = self.storage.open_read(name).and_then(|file| {
            let data_end = file.data_end()?;
            Ok((file.map_read()?, data_end))
        });
        mapped.map_err(|error| {
            Error::io("cannot read a segment", error).file(self.storage.path(name))
        })
    }

    /// Applies every record behind the cursor to the state, and indexes the segments that the log goes through.
    /// What is lost at its end may have had any id below `id_ceiling`.
    fn replay_tail(&self, found: &mut Found, known: &Known, id_ceiling: u64) -> Result<()> {
        let segments = found.verdict.segments.clone();
        let cursor_next_id = found.replay.next_id;
        for (n, &at) in segments.iter().enumerate() {
            let is_last = n + 1 == segments.len();
            let file = &found.files[at];
            let place = file.header.place();
            let segment = Segment::sealed(
                file.header.number,
                place,
                file.header.first_id,
                file.header.salt,
                file.survey.end,
            );
            let mut end =
                if is_last { found.verdict.end } else { file.survey.end.max(file.survey.used) };
            let is_cut = is_last && !planted(Bug::TornBatchKept);
            if is_cut && !found.verdict.ends_in_damage && !found.verdict.cut_short {
                end = file.survey.without_open_run(end);
                found.end = end;
            }
            let spans: Vec<_> =
                found.verdict.damaged.iter().filter(|span| span.at == at).copied().collect();
            let offsets = spans.iter().map(|span| (span.start, span.end)).collect();
            let mut gaps = Gaps::new(file.header.first_id, offsets);
            // A cursor may be true of the very start of its segment.
            let mut is_behind = n > 0;
            let mut index = MemoryIndex::default();
            let mut failed = None;
            found.replay.next_id = found.replay.next_id.max(file.header.first_id);
            let bytes = file.bytes();
            let replay = &mut found.replay;
            if super::lane::find(&replay.state.segments, segment.number).is_none() {
                if let Some(last) = replay.state.segments.last_mut() {
                    last.id_end = last.id_end.min(file.header.first_id);
                }
                replay.state.segments.push(SegmentState::new(Arc::new(segment)));
            }
            frames(bytes, &file.survey, FRAMES_START, end, |offset, envelope| {
                let first_id = file.header.first_id + u64::from(envelope.arg);
                if !is_behind && offset >= file.from {
                    gaps.boundary(file.from, cursor_next_id, end);
                    is_behind = true;
                }
                let ids = index_insert(&mut index, bytes, offset, envelope, file.header.first_id);
                if let Some(ids) = ids {
                    gaps.found(offset, ids);
                }
                if offset < file.from || failed.is_some() {
                    return;
                }
                let start = Position::new(place, offset);
                let behind = offset + envelope.total_bytes() as u32;
                let body = offset as usize + envelope.size();
                let body = &bytes[body..body + envelope.length as usize];
                let applied = match Record::decode(envelope, body) {
                    Ok(record) => {
                        let end = Position::new(place, behind);
                        replay.apply(&record, first_id, start, end)
                    }
                    Err(RecordError::UnknownKind(kind)) => Err(Error::new(
                        ErrorKind::NewerFormat,
                        format!("a record of kind {kind}, written by a newer millpond"),
                    )),
                    // Its checksum is right, so no disk has done this. Passing over it would lose what it said.
                    Err(RecordError::Malformed(malformed)) => Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("a record that no millpond writes: {}", malformed.what),
                    )),
                };
                failed = applied.err().map(|error| {
                    let file = self.storage.path(&segment_name(file.header.number));
                    error.file(file).offset(offset.into())
                });
            });
            if let Some(error) = failed {
                return Err(error);
            }
            found.replayed_bytes += u64::from(end.saturating_sub(file.from));
            let path = self.storage.path(&segment_name(file.header.number));
            let behind = segments.get(n + 1).map(|&next| found.files[next].header.first_id);
            if !is_behind {
                gaps.boundary(file.from, cursor_next_id, end);
            }
            let ids = match behind {
                Some(behind) => gaps.finish(behind),
                None => gaps.finish_log(found.replay.next_id.max(id_ceiling), end),
            };
            for (span, ids) in spans.iter().zip(ids) {
                // Damage beside what was known makes one span with it.
                if known.get(&(file.header.number, span.start)).is_none_or(|end| span.end > *end) {
                    found.damage.push(describe(span, ids, &path));
                }
            }
            found.indexes.push(index);
        }
        Ok(())
    }
}

/// The segments that were not rewritten.
fn plain(
    headers: &std::collections::BTreeMap<u32, (Header, u64)>,
) -> impl Iterator<Item = &Header> {
    headers.values().map(|(header, _)| header).filter(|header| !header.is_rewritten())
}

/// The header of the active segment as far as the cursor knows it. Its capacity is not known, so that nothing more is
/// appended to it.
fn stand_in(segment: &Segment) -> Header {
    Header {
        store: [0; 16],
        number: segment.number,
        replaces_first: segment.number,
        replaces_last: segment.number,
        first_id: segment.first_id,
        salt: segment.salt,
        created_at: 0,
        capacity: 0,
    }
}
