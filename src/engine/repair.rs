//! Making durable what an open has found, before anything is appended: see [`super::open`] for the steps and their
//! crash windows.

use std::sync::Arc;

use super::background::Background;
use super::compact::COPY_NAME;
use super::maintenance::{INDEX_BEING_WRITTEN, Maintenance};
use super::open::{Named, Opening, used_of};
use super::recover::{Found, TailFile};
use super::state::{SegmentState, State, Weight};
use super::walk::{aside_note, set_aside};
use super::{Engine, read};
use crate::error::{Error, Result};
use crate::format::cursor::CursorHeader;
use crate::format::cursor::sections::Section;
use crate::format::header::{
    self, FRAMES_START, HEADER_BYTES, HEADER_COPIES_AT, Header, HeaderFound,
};
use crate::format::position::Position;
use crate::lock::{Lock, Signal};
use crate::log::{
    Active, LaneIndex, Log, LogSettings, MemoryIndex, Purpose, ROLL_RESERVE, Segment, Start,
    file_bytes, index_name, parse_index_name, parse_segment_name, prepare_file, reuse_file,
    segment_name, sync_prepared,
};
use crate::options::Durability;
use crate::planted::{Bug, planted};
use crate::report::Recovery;
use crate::storage::{self, PROBE, Prepare, Space, Spare};
use crate::sync::atomic::{AtomicBool, AtomicU64};

impl Opening {
    /// Makes durable what was found, and starts the engine from there.
    pub(super) fn repair(
        self,
        mut found: Found,
        mut recovery: Recovery,
        store_id: [u8; 16],
        newest: u64,
        cursor: Option<&(CursorHeader, Vec<Section>)>,
        lock: Box<dyn storage::Lock>,
    ) -> Result<Arc<Engine>> {
        for aside in &recovery.set_aside {
            let of = |file: &&TailFile| {
                self.storage.path(&segment_name(file.header.number)) == aside.file
            };
            if let Some(file) = found.files.iter().find(of) {
                let name = segment_name(file.header.number);
                let note = aside_note(&file.header, aside.offset);
                set_aside(&*self.storage, &name, aside.offset, aside.bytes, &note);
            }
        }
        super::walk::quarantine(&*self.storage, &recovery.damaged, self.time.now().wall_ms);
        for damage in &recovery.damaged {
            let name = damage.file.file_name().and_then(|name| name.to_str());
            if let Some(number) = name.and_then(parse_segment_name) {
                // An index that was written before the damage names messages that are not counted any more.
                let _ = self.storage.remove(&index_name(number));
            }
        }
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
        let given_back = found.replay.give_back();
        // A close leaves none in flight, but some whose lease had run out.
        recovery.redelivered = if recovery.clean { 0 } else { given_back };
        let damaged = !found.damage.is_empty() || recovery.full_walk;
        let space = Arc::new(Space::new(self.storage.clone(), self.settings.max_bytes));
        let (active, strays) = self.activate(&mut found, &space, &settings, &mut next_number)?;
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
        let log = Log::new(self.storage.clone(), space.clone(), settings, start);
        let engine = Engine {
            storage: self.storage.clone(),
            space,
            settings: self.settings,
            store_id,
            recovery,
            log,
            state: Lock::new(state),
            maintenance: Lock::new(Maintenance {
                generation: newest,
                checkpoint_at: 0,
                checkpoint_time: self.time.mono(),
                retry_at: 0,
                retry_changes: 0,
                position: Position::default(),
                rewrite: None,
                compact_at: 0,
                compact_full: None,
            }),
            supply: Lock::new(()),
            background: Background::default(),
            supplier: Background::default(),
            unseen: AtomicU64::new(0),
            poison_told: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            settled: Signal::default(),
            closed: AtomicBool::new(false),
            directory_lock: Lock::new(Some(lock)),
            time: self.time,
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
            // A file that was cut off may end before where its frames would begin.
            let len = u32::try_from(file.len).unwrap_or(u32::MAX);
            let (end, used) = (end.min(len), used.min(len));
            let from = if number == proof.segment() { proof.offset().min(end) } else { 0 };
            let name = segment_name(number);
            self.rewrite(&name, from.into(), end.into(), used.into()).map_err(|error| {
                Error::io("cannot repair a segment", error).file(self.storage.path(&name))
            })?;
        }
        Ok(())
    }

    /// Gives a file that has other names to this one alone. Crash windows: the copy, which the next open removes, or the
    /// file as it was.
    fn part(&self, name: &str) -> std::io::Result<()> {
        const COPY: &str = "part.tmp";
        let file = self.storage.open_read(name)?;
        let data = file.map_read()?;
        let _ = self.storage.remove(COPY);
        let copy = self.storage.create(COPY, data.published(), Prepare::Reserve)?;
        copy.write_at(0, data.bytes(0..data.published()))?;
        copy.sync_data()?;
        self.storage.rename(COPY, name)?;
        self.storage.sync_dir()
    }

    /// Writes `from..end` of a file as it is, and zeros over `end..used`.
    pub(super) fn rewrite(
        &self,
        name: &str,
        from: u64,
        end: u64,
        used: u64,
    ) -> std::io::Result<()> {
        const CHUNK: u64 = 1 << 20;
        let used = if planted(Bug::LeftBehindTheEnd) { end } else { used };
        if from < used && self.storage.is_linked(name) {
            // A backup has the same file.
            self.part(name)?;
        }
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
                    *next_number += 1;
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

/// A segment that nothing more is appended to.
fn seal(state: &mut State, header: &Header, end: u32, index: MemoryIndex) {
    let place = header.place();
    let segment = Segment::sealed(header.number, place, header.first_id, header.salt, end);
    let segment = Arc::new(segment);
    let (messages, weight) = (index.messages(), Weight::of(&index));
    segment.set_index(LaneIndex::Memory(index));
    if let Some(at) = super::lane::find(&state.segments, place) {
        let s = &mut state.segments[at];
        s.segment = segment;
        s.messages = messages;
        s.weight = weight;
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
        let named: Vec<u32> = self.lock_state().segments.iter().map(|s| s.segment.file).collect();
        let mut unused = Vec::new();
        for (name, _) in files {
            let unnamed = |number: u32| !named.contains(&number);
            if let Some(number) = parse_segment_name(name).filter(|&number| unnamed(number)) {
                let foreign = self.is_foreign(number);
                let aside = (foreign || strays.contains(&number))
                    && self.storage.create_dir("quarantine").is_ok()
                    && self.storage.rename(name, &format!("quarantine/{name}")).is_ok();
                if foreign && !aside {
                    // It cannot come into the log, and stays until there is a place for it.
                    continue;
                }
                let _ = self.storage.remove(&index_name(number));
                unused.push(name.clone());
            } else if name == COPY_NAME {
                self.space.put_back(Spare::Copy, name);
            } else if name == "cursor.tmp"
                || name == "part.tmp"
                || name == PROBE
                || name == INDEX_BEING_WRITTEN
                || parse_index_name(name).is_some_and(unnamed)
            {
                let _ = self.storage.remove(name);
            }
        }
        self.give_back_segments(&unused)?;
        self.space.freed();
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
                    // Frames begin right behind the header. To read all of a file that was only reserved takes as long as
                    // the rest of the open.
                    used_of(&*self.storage, &segment_name(number), 1 << 20)? != FRAMES_START
                }
                HeaderFound::Bad | HeaderFound::Newer { .. } => true,
            })
        };
        read().unwrap_or(true)
    }
}
