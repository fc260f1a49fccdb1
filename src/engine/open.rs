//! Opening a store: locking, reading the cursor, walking what it does not cover, passing the verdict, repairing.
//!
//! Everything up to the verdict only reads. In strict mode damage ends it there. The repair then makes durable what
//! the walk has found, before anything is appended:
//!
//! 1. what lies behind the end is copied to `quarantine/`;
//! 2. frames that no proof covers are written again, since they may be pages of a failed write-back that never
//!    reached the disk, and zeros are written over what lies behind the end, so that no frame left there ever joins
//!    the log; the file is synced;
//! 3. a cursor is published that ends there and names no later segment;
//! 4. files that it does not name are removed or set aside, and the directory synced.
//!
//! Crash windows: after 1, a copy too many; after 2, the same log, proven no further; after 3, stray segments,
//! which the next open passes over, because nothing names them. Doing it all again finds the same log each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::background::Background;
use super::checkpoint::IDS_RESERVED;
use super::maintenance::Maintenance;
use super::replay::{Known, Replay};
use super::state::{SegmentState, State};
use super::walk::{Gaps, describe, index_insert, set_aside};
use super::{Engine, read};
use crate::clock::TimeSource;
use crate::cursor::{BadCursor, Loaded, load};
use crate::error::{Error, ErrorKind, Result};
use crate::format::cursor::CursorHeader;
use crate::format::cursor::sections::Section;
use crate::format::header::{
    self, FRAMES_START, HEADER_BYTES, HEADER_COPIES_AT, Header, HeaderFound,
};
use crate::format::position::Position;
use crate::format::record::{Record, RecordError};
use crate::lock::{Lock, Signal};
use crate::log::{
    Active, LaneIndex, Log, LogSettings, MemoryIndex, ROLL_RESERVE, Segment, Start, Survey,
    Surveyed, Verdict, file_bytes, frames, index_name, parse_index_name, parse_segment_name,
    prepare_file, reuse_file, segment_name, survey, sync_prepared, used_bytes, verdict,
};
use crate::options::{Durability, Settings};
use crate::random::Entropy;
use crate::report::{Damage, Recovery, SetAside};
use crate::storage::{self, LockError, Mapping, Prepare, Storage};

/// What the lock file says: who has it, and the boot in which the log was last known to be whole in the page cache.
pub(super) fn lock_note(pid: u32, boot: &str) -> String {
    format!("pid {pid}\nboot {boot}\n")
}

fn noted<'a>(note: &'a str, key: &str) -> Option<&'a str> {
    note.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

/// A segment file behind the position of the cursor.
struct TailFile {
    header: Header,
    /// Its bytes, for as long as nothing is changed.
    data: Option<Mapping>,
    /// How long it is.
    len: u64,
    /// Replay begins here.
    from: u32,
    survey: Survey,
}

impl TailFile {
    fn bytes(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], |data| data.bytes(0..data.published()))
    }
}

/// What was found, before anything is changed.
struct Found {
    files: Vec<TailFile>,
    verdict: Verdict,
    replay: Replay,
    /// The index of each segment that the log goes through behind the cursor.
    indexes: Vec<MemoryIndex>,
    damage: Vec<Damage>,
    /// Where the log ends.
    end: u32,
    next_id: u64,
    replayed_bytes: u64,
}

/// A segment file that the last frame of another one names, and that has no header.
enum Named {
    /// As it was made ready.
    Unused { len: u64 },
    /// It holds something behind where the header would be.
    Torn,
    /// Missing, cut off, or its header is damaged.
    Lost,
}

/// Where the last byte of a segment file lies that is not zero, the header aside.
fn used_of(storage: &dyn Storage, name: &str) -> std::io::Result<u32> {
    let data = storage.open_read(name)?.map_read()?;
    Ok(used_bytes(data.bytes(0..data.published()), FRAMES_START))
}

struct Opening {
    storage: Arc<dyn Storage>,
    settings: Settings,
    time: TimeSource,
    entropy: Entropy,
    /// All files of the directory, with their lengths.
    files: Vec<(String, u64)>,
    same_boot: bool,
}

impl Engine {
    pub fn open(
        storage: Arc<dyn Storage>,
        settings: Settings,
        time: TimeSource,
        entropy: Entropy,
    ) -> Result<Arc<Engine>> {
        settings.check()?;
        let lock = storage.lock().map_err(|error| match error {
            LockError::Held { note } => {
                let pid = noted(&note, "pid").and_then(|pid| pid.parse().ok());
                let holder =
                    pid.map_or("another process".to_owned(), |pid| format!("process {pid}"));
                Error::new(ErrorKind::Locked { pid }, format!("the store is open in {holder}"))
                    .file(storage.path(""))
            }
            LockError::Io(error) => {
                Error::io("cannot lock the store", error).file(storage.path("LOCK"))
            }
        })?;
        let boot = storage.boot_id();
        let last_boot = noted(lock.previous_note(), "boot").unwrap_or_default().to_owned();
        lock.note(&lock_note(storage.pid(), &last_boot)).map_err(|error| {
            Error::io("cannot write the lock file", error).file(storage.path("LOCK"))
        })?;
        let listed = storage.list().map_err(|error| {
            Error::io("cannot list the directory", error).file(storage.path(""))
        })?;
        let files =
            listed.into_iter().filter(|entry| entry.is_file).map(|e| (e.name, e.len)).collect();
        let same_boot = !boot.is_empty() && boot == last_boot;
        let opening = Opening { storage, settings, time, entropy, files, same_boot };
        let engine = opening.run(lock)?;
        if let Some(lock) = &*engine.directory_lock.lock() {
            // Without it a bad frame after the death of this process is taken for the end, and set aside.
            let _ = lock.note(&lock_note(engine.storage.pid(), &boot));
        }
        if engine.settings.background {
            engine.start_background()?;
        }
        Ok(engine)
    }
}

impl Opening {
    fn run(self, lock: Box<dyn storage::Lock>) -> Result<Arc<Engine>> {
        let names: Vec<String> = self.files.iter().map(|(name, _)| name.clone()).collect();
        let loaded =
            load(&*self.storage, &names).map_err(|error| self.io("cannot read a cursor", error))?;
        let (cursor, bad, newest) = match loaded {
            Loaded::Found { cursor, bad, newest } => (cursor, bad, newest),
            Loaded::Newer { name, version } => {
                return Err(Error::new(
                    ErrorKind::NewerFormat,
                    format!("a cursor of format version {version}, written by a newer millpond"),
                )
                .file(self.storage.path(&name)));
            }
        };
        let headers = self.headers()?;
        let store_id = match (&cursor, headers.values().next()) {
            (Some((header, _)), _) => header.store,
            (None, Some((header, _))) => header.store,
            (None, None) => {
                self.entropy.store_id().map_err(|error| self.io("cannot make an id", error))?
            }
        };
        let is_new = cursor.is_none() && headers.is_empty() && bad.is_empty();
        let found = self.find(cursor.as_ref(), &bad, headers, store_id)?;
        let recovery = self.report(&found, cursor.as_ref(), &bad, is_new);
        if self.settings.strict {
            self.refuse_damage(&recovery, &bad)?;
        }
        self.repair(found, recovery, store_id, newest, cursor.as_ref(), lock)
    }

    fn io(&self, what: &'static str, error: std::io::Error) -> Error {
        Error::io(what, error).file(self.storage.path(""))
    }

    /// The header of every segment file that has one, by number, with the file's length.
    fn headers(&self) -> Result<std::collections::BTreeMap<u32, (Header, u64)>> {
        let mut headers = std::collections::BTreeMap::new();
        let numbered =
            self.files.iter().filter_map(|(name, len)| Some((parse_segment_name(name)?, *len)));
        for (number, len) in numbered {
            match self.header(number, len)? {
                HeaderFound::Header { header, .. } if header.number == number => {
                    headers.insert(number, (header, len));
                }
                HeaderFound::Newer { version } => {
                    return Err(Error::new(
                        ErrorKind::NewerFormat,
                        format!(
                            "a segment of format version {version}, written by a newer millpond"
                        ),
                    )
                    .file(self.storage.path(&segment_name(number))));
                }
                _ => {}
            }
        }
        Ok(headers)
    }

    fn header(&self, number: u32, len: u64) -> Result<HeaderFound> {
        let name = segment_name(number);
        let read = || {
            let file = self.storage.open_read(&name)?;
            let mut copies = [[0; HEADER_BYTES]; 2];
            for (copy, at) in copies.iter_mut().zip(HEADER_COPIES_AT) {
                let left = len.saturating_sub(at as u64).min(HEADER_BYTES as u64) as usize;
                if left > 0 {
                    file.read_at(at as u64, &mut copy[..left])?;
                }
            }
            Ok(header::decode(&copies[0], &copies[1]))
        };
        read().map_err(|error| {
            Error::io("cannot read a segment's header", error).file(self.storage.path(&name))
        })
    }

    /// What the file of segment `number`, which is no segment of the log, is.
    fn named(&self, number: u32) -> Named {
        let name = segment_name(number);
        let len = self.files.iter().find(|(file, _)| *file == name).map(|(_, len)| *len);
        let Some(len) = len.filter(|len| *len >= file_bytes(0)) else { return Named::Lost };
        if !matches!(self.header(number, len), Ok(HeaderFound::Unused)) {
            return Named::Lost;
        }
        match used_of(&*self.storage, &name) {
            Ok(FRAMES_START) => Named::Unused { len },
            _ => Named::Torn,
        }
    }

    /// Reads everything and passes the verdict. Changes nothing.
    fn find(
        &self,
        cursor: Option<&(CursorHeader, Vec<Section>)>,
        bad_cursors: &[BadCursor],
        mut headers: std::collections::BTreeMap<u32, (Header, u64)>,
        store_id: [u8; 16],
    ) -> Result<Found> {
        headers.retain(|_, (header, _)| header.store == store_id);
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
                number: file.header.number,
                survey: &file.survey,
                short: !clean && file.len < file.header.capacity.into(),
                next_lost: file.survey.next.is_some_and(|next| {
                    !headers.contains_key(&next)
                        && match self.named(next) {
                            Named::Unused { .. } => false,
                            // A power cut may keep frames and lose the header before them; a kill does not.
                            Named::Torn => self.same_boot,
                            Named::Lost => true,
                        }
                }),
            })
            .collect();
        let verdict = verdict(&surveyed, start, self.same_boot);
        let is_start = |file: &TailFile| file.header.number == start.segment();
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
            let number = s.segment.number;
            if number == active {
                continue;
            }
            let name = segment_name(number);
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
                missing.push(number);
            } else if known.contains(&(number, offset as u32)) {
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
        let mut tail: Vec<Header> =
            headers.range(start.segment()..).map(|(_, (header, _))| header.clone()).collect();
        if let Some(active) = active.map(|s| &s.segment)
            && tail.first().is_none_or(|header| header.number != active.number)
            && self.files.iter().any(|(name, _)| *name == active.name())
        {
            tail.insert(0, stand_in(active));
        }
        for header in tail {
            let name = segment_name(header.number);
            let open = || self.storage.open_read(&name)?.map_read();
            let data = open().map_err(|error| {
                Error::io("cannot read a segment", error).file(self.storage.path(&name))
            })?;
            let is_start = header.number == start.segment();
            let from = if is_start { start.offset() } else { FRAMES_START };
            let seed = crate::format::checksum::Seed::new(header.salt);
            let mut limit = data.published();
            if clean && is_start {
                limit = limit.min(start.offset().into());
            }
            let found = survey(data.bytes(0..limit), &seed, FRAMES_START);
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

    /// Applies every record behind the cursor to the state, and indexes the segments that the log goes through.
    /// What is lost at its end may have had any id below `id_ceiling`.
    fn replay_tail(&self, found: &mut Found, known: &Known, id_ceiling: u64) -> Result<()> {
        let segments = found.verdict.segments.clone();
        for (n, &at) in segments.iter().enumerate() {
            let is_last = n + 1 == segments.len();
            let file = &found.files[at];
            let segment = Segment::sealed(
                file.header.number,
                file.header.first_id,
                file.header.salt,
                file.survey.end,
            );
            let mut end =
                if is_last { found.verdict.end } else { file.survey.end.max(file.survey.used) };
            if is_last && !found.verdict.ends_in_damage && !found.verdict.cut_short {
                end = without_open_run(file, &segment, end);
                found.end = end;
            }
            let spans: Vec<_> =
                found.verdict.damaged.iter().filter(|span| span.at == at).copied().collect();
            let offsets = spans.iter().map(|span| (span.start, span.end)).collect();
            let mut gaps = Gaps::new(file.header.first_id, offsets);
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
            frames(bytes, &seed_of(file), &file.survey, FRAMES_START, end, |offset, envelope| {
                let first_id = file.header.first_id + u64::from(envelope.arg);
                let ids = index_insert(&mut index, bytes, offset, envelope, file.header.first_id);
                if let Some(ids) = ids {
                    gaps.found(offset, ids);
                }
                if offset < file.from || failed.is_some() {
                    return;
                }
                let start = Position::new(file.header.number, offset);
                let behind = offset + envelope.total_bytes() as u32;
                let body = offset as usize + envelope.size();
                let body = &bytes[body..body + envelope.length as usize];
                let applied = match Record::decode(envelope, body) {
                    Ok(record) => {
                        let end = Position::new(file.header.number, behind);
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
            let ids = gaps.finish(behind.unwrap_or(found.replay.next_id.max(id_ceiling)), end);
            for (span, ids) in spans.iter().zip(ids) {
                if !known.contains(&(file.header.number, span.start)) {
                    found.damage.push(describe(span, ids, &path));
                }
            }
            found.indexes.push(index);
        }
        Ok(())
    }

    fn report(
        &self,
        found: &Found,
        cursor: Option<&(CursorHeader, Vec<Section>)>,
        bad: &[BadCursor],
        is_new: bool,
    ) -> Recovery {
        let mut recovery = Recovery {
            clean: is_new || (cursor.is_some_and(|(h, _)| h.clean) && bad.is_empty()),
            replayed_bytes: found.replayed_bytes,
            damaged: found.damage.clone(),
            bad_cursors: bad.iter().map(|bad| self.storage.path(&bad.name)).collect(),
            full_walk: cursor.is_none() && !is_new,
            renamed_queues: found.replay.renamed_queues.clone(),
            ..Recovery::default()
        };
        for (at, file) in found.files.iter().enumerate() {
            let last = found.verdict.segments.last() == Some(&at);
            let in_log = found.verdict.segments.contains(&at);
            let start = if last { found.end } else { FRAMES_START };
            if (last || !in_log) && file.survey.used > start {
                recovery.set_aside.push(SetAside {
                    file: self.storage.path(&segment_name(file.header.number)),
                    offset: start.into(),
                    bytes: (file.survey.used - start).into(),
                });
            }
        }
        recovery
    }

    /// Strict mode: the first damage as an error.
    fn refuse_damage(&self, recovery: &Recovery, bad: &[BadCursor]) -> Result<()> {
        if let Some(damage) = recovery.damaged.first() {
            return Err(Error::new(ErrorKind::Corrupt, damage.what.clone())
                .file(&damage.file)
                .offset(damage.offset));
        }
        if let Some(bad) = bad.first() {
            return Err(Error::new(ErrorKind::Corrupt, format!("a bad cursor: {}", bad.reason))
                .file(self.storage.path(&bad.name))
                .offset(bad.offset));
        }
        Ok(())
    }

    /// Makes durable what was found, and starts the engine from there.
    fn repair(
        self,
        mut found: Found,
        mut recovery: Recovery,
        store_id: [u8; 16],
        newest: u64,
        cursor: Option<&(CursorHeader, Vec<Section>)>,
        lock: Box<dyn storage::Lock>,
    ) -> Result<Arc<Engine>> {
        for aside in &recovery.set_aside {
            if let Some(name) = aside.file.file_name().and_then(|name| name.to_str()) {
                set_aside(
                    &*self.storage,
                    name,
                    aside.offset,
                    aside.bytes,
                    "behind the end of the log\n",
                );
            }
        }
        super::walk::quarantine(&*self.storage, &recovery.damaged, self.time.now().wall_ms);
        let settings = LogSettings {
            store: store_id,
            segment_bytes: self.settings.segment_bytes as u32,
            prepare: match self.settings.durability {
                Durability::Sync => Prepare::Zero,
                Durability::Interval(_) | Durability::Process => Prepare::Reserve,
            },
            entropy: self.entropy.clone(),
        };
        if !recovery.clean {
            self.rewrite_unproven(&found, cursor.map(|(header, _)| header.position))?;
        }
        let highest = self.files.iter().filter_map(|(name, _)| parse_segment_name(name)).max();
        let mut next_number = highest.unwrap_or(0) + 1;
        recovery.redelivered = found.replay.give_back();
        let damaged = !found.damage.is_empty() || recovery.full_walk;
        let (active, strays) = self.activate(&mut found, &settings, &mut next_number)?;
        let Found { replay, damage, next_id, .. } = found;
        let mut state = replay.state;
        state.damage.extend(damage);
        if damaged {
            self.recount(&mut state, &active)?;
        } else {
            subtract_active(&mut state, &active.index);
        }
        recovery.segments = state.segments.len();
        let start = Start { active, next_id, id_ceiling: next_id, next_number };
        let log = Log::new(self.storage.clone(), settings, start);
        let engine = Engine {
            storage: self.storage.clone(),
            settings: self.settings,
            time: self.time,
            store_id,
            recovery,
            log,
            state: Lock::new(state),
            maintenance: Lock::new(Maintenance {
                generation: newest,
                checkpoint_at: 0,
                cursor_bytes: 0,
                retry_at: 0,
            }),
            background: Background::default(),
            unseen: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            settled: Signal::default(),
            closed: AtomicBool::new(false),
            directory_lock: Lock::new(Some(lock)),
        };
        engine.checkpoint(&mut engine.maintenance.lock(), false)?;
        engine.remove_strays(&self.files, &strays)?;
        Ok(Arc::new(engine))
    }

    /// Writes again what no proof covers, and zeros over what lies behind the end.
    fn rewrite_unproven(&self, found: &Found, proof: Option<Position>) -> Result<()> {
        let proof = proof.unwrap_or_default();
        let last = found.verdict.segments.last().copied();
        for &at in &found.verdict.segments {
            let file = &found.files[at];
            let number = file.header.number;
            let (end, used) = if Some(at) == last {
                (found.end, file.survey.used.max(found.end))
            } else {
                (file.survey.end, file.survey.end)
            };
            let from = if number == proof.segment() { proof.offset().min(end) } else { 0 };
            let name = segment_name(number);
            self.rewrite(&name, from.into(), end.into(), used.into()).map_err(|error| {
                Error::io("cannot repair a segment", error).file(self.storage.path(&name))
            })?;
        }
        Ok(())
    }

    /// Writes `from..end` of a file as it is, and zeros over `end..used`.
    fn rewrite(&self, name: &str, from: u64, end: u64, used: u64) -> std::io::Result<()> {
        const CHUNK: u64 = 1 << 20;
        let file = self.storage.open(name)?;
        let mut content = vec![0; CHUNK as usize];
        let mut at = from;
        while at < used {
            let bytes = CHUNK.min(used - at);
            let chunk = &mut content[..bytes as usize];
            let kept = end.saturating_sub(at).min(bytes) as usize;
            file.read_at(at, &mut chunk[..kept])?;
            chunk[kept..].fill(0);
            file.write_at(at, chunk)?;
            at += bytes;
        }
        file.sync_data()
    }

    /// The segment in which the log goes on: its last one, or a new one if that is full, cut short or missing.
    /// Also the numbers of the files that are not part of the log.
    fn activate(
        &self,
        found: &mut Found,
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
            let whole = file.survey.next.is_none()
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
                seal(&mut found.replay.state, &file.header, end, index);
            }
        }
        self.trim(&found.replay.state, last.as_ref().map(|(header, _)| header.number));
        let Some((header, index)) = last else {
            return Ok((self.begin_segment(found, settings, next_number)?, strays));
        };
        let name = segment_name(header.number);
        let open = || {
            let file = self.storage.open(&name)?;
            let writer = file.map_write()?;
            Ok((file, writer))
        };
        let (file, mut writer) = open().map_err(|error| {
            Error::io("cannot open the active segment", error).file(self.storage.path(&name))
        })?;
        writer.publish(found.end.into());
        let segment = Arc::new(Segment::active(&header, writer.mapping()));
        let active = Active { segment: segment.clone(), file, writer, offset: found.end, index };
        if let Some(at) = super::lane::find(&found.replay.state.segments, header.number) {
            let s = &mut found.replay.state.segments[at];
            *s = SegmentState {
                segment,
                acks: std::mem::take(&mut s.acks),
                ..SegmentState::new(s.segment.clone())
            };
        }
        Ok((active, strays))
    }

    /// Cuts segments to their end that the last process had no time to, all but the `active` one. Nothing is mapped yet.
    fn trim(&self, state: &State, active: Option<u32>) {
        let sealed =
            |segment: &&Arc<Segment>| segment.is_sealed() && Some(segment.number) != active;
        for segment in state.segments.iter().map(|s| &s.segment).filter(sealed) {
            let (name, end) = (segment.name(), u64::from(segment.end()));
            if self.files.iter().any(|(file, len)| *file == name && *len > end) {
                // One that stays too long costs space and nothing else.
                let _ = self.storage.open(&name).and_then(|file| file.set_len(end));
            }
        }
    }

    fn begin_segment(
        &self,
        found: &mut Found,
        settings: &LogSettings,
        next_number: &mut u32,
    ) -> Result<Active> {
        let bytes = file_bytes(0).max(settings.segment_bytes.into());
        // An open does not wait until zeros are on the disk: this one segment is only reserved.
        let settings = LogSettings { prepare: Prepare::Reserve, ..settings.clone() };
        let now = self.time.now().wall_ms;
        // The log goes on where its last frame says, if that segment is still as it was made ready.
        let last = found.verdict.segments.last().and_then(|&at| found.files[at].survey.next);
        let named = last.and_then(|number| match self.named(number) {
            Named::Unused { len } => Some((number, len)),
            Named::Torn | Named::Lost => None,
        });
        let number = named.map_or(*next_number, |(number, _)| number);
        let mut begin = || {
            let prepared = match named {
                Some((_, len)) => {
                    let name = segment_name(number);
                    // A header that a kill cut off may have left bytes.
                    self.rewrite(&name, 0, 0, FRAMES_START.into())?;
                    reuse_file(&*self.storage, &settings, number, len, now)?
                }
                None => {
                    *next_number += 1;
                    prepare_file(&*self.storage, &settings, number, bytes, now)?
                }
            };
            sync_prepared(&*self.storage, &prepared)?;
            let active = Active::begin(prepared, found.next_id);
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

    /// After damage: counts every queue's messages anew, from the indexes.
    fn recount(&self, state: &mut State, active: &Active) -> Result<()> {
        for s in &state.segments {
            if s.segment.is_sealed() && s.segment.index().is_none() {
                let (index, damage) = read::load_index(&*self.storage, &s.segment, s.id_end)
                    .map_err(|error| {
                        Error::io("cannot read a segment", error)
                            .file(self.storage.path(&s.segment.name()))
                    })?;
                s.segment.set_index(index);
                state.damage.extend(damage);
            }
        }
        state.recount(active.segment.number, &active.index);
        Ok(())
    }
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

fn seed_of(file: &TailFile) -> crate::format::checksum::Seed {
    crate::format::checksum::Seed::new(file.header.salt)
}

/// Where the log ends if a run that has lost its end does not count.
fn without_open_run(file: &TailFile, segment: &Segment, end: u32) -> u32 {
    let mut open = None;
    frames(file.bytes(), &segment.seed, &file.survey, FRAMES_START, end, |offset, envelope| {
        open = if envelope.continued { open.or(Some(offset)) } else { None };
    });
    open.unwrap_or(end)
}

/// A segment that nothing more is appended to.
fn seal(state: &mut State, header: &Header, end: u32, index: MemoryIndex) {
    let segment = Arc::new(Segment::sealed(header.number, header.first_id, header.salt, end));
    let messages = index.messages();
    segment.set_index(LaneIndex::Memory(index));
    if let Some(at) = super::lane::find(&state.segments, header.number) {
        let s = &mut state.segments[at];
        s.segment = segment;
        s.messages = messages;
    }
}

/// What the active segment holds is counted there.
fn subtract_active(state: &mut State, index: &MemoryIndex) {
    for (lane, slots) in index.all_lanes() {
        if let Some(queue) = state.queues.get_mut(&lane.queue) {
            queue.settled_balance -= slots.len() as i64;
        }
    }
}

impl Engine {
    /// Removes, or sets aside, the files that belong to no state that can still be needed. They are not part of the log
    /// that the cursor names, and must not come back into it.
    fn remove_strays(&self, files: &[(String, u64)], strays: &[u32]) -> Result<()> {
        let named: Vec<u32> = self.lock_state().segments.iter().map(|s| s.segment.number).collect();
        for (name, _) in files {
            let unnamed = |number: u32| !named.contains(&number);
            if let Some(number) = parse_segment_name(name).filter(|&number| unnamed(number)) {
                let aside = strays.contains(&number) || self.is_foreign(number);
                if aside && self.storage.create_dir("quarantine").is_ok() {
                    let _ = self.storage.rename(name, &format!("quarantine/{name}"));
                }
                let _ = self.storage.remove(name);
                let _ = self.storage.remove(&index_name(number));
            } else if name == "cursor.tmp" || parse_index_name(name).is_some_and(unnamed) {
                let _ = self.storage.remove(name);
            }
        }
        self.storage.sync_dir().map_err(|error| {
            let failed = self.log.poison(error);
            super::poisoned(Some(failed))
        })
    }

    /// Whether the file holds a segment of another store, or something that is no segment: not ours to delete.
    fn is_foreign(&self, number: u32) -> bool {
        let read = || -> std::io::Result<bool> {
            let file = self.storage.open_read(&segment_name(number))?;
            let mut copies = [[0; HEADER_BYTES]; 2];
            for (copy, at) in copies.iter_mut().zip(HEADER_COPIES_AT) {
                let left = file.len()?.saturating_sub(at as u64).min(HEADER_BYTES as u64);
                if left > 0 {
                    file.read_at(at as u64, &mut copy[..left as usize])?;
                }
            }
            Ok(match header::decode(&copies[0], &copies[1]) {
                HeaderFound::Header { header, .. } => header.store != self.store_id,
                HeaderFound::Unused => {
                    used_of(&*self.storage, &segment_name(number))? != FRAMES_START
                }
                HeaderFound::Bad | HeaderFound::Newer { .. } => true,
            })
        };
        read().unwrap_or(true)
    }
}
