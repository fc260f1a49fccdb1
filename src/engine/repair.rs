//! Making durable what an open has found, before anything is appended: see [`super::open`] for the steps and their
//! crash windows.

mod activate;
mod strays;

use std::sync::Arc;

use super::background::Background;
use super::maintenance::Maintenance;
use super::open::Opening;
use super::recover::{Found, TailFile};
use super::state::State;
use super::walk::{aside_note, set_aside};
use super::{Engine, read};
use crate::cursor::{PublishFailed, remove_before};
use crate::error::{Error, Result};
use crate::format::cursor::CursorHeader;
use crate::format::cursor::sections::Section;
use crate::format::position::Position;
use crate::lock::{Lock, Signal};
use crate::log::{
    Active, Log, LogSettings, MemoryIndex, Start, index_name, no_number_left, parse_segment_name,
    segment_name,
};
use crate::options::Durability;
use crate::planted::{Bug, planted};
use crate::report::Recovery;
use crate::storage::{self, Prepare, Space};
use crate::sync::atomic::{AtomicBool, AtomicU64};

/// The name of the copy of a file that is given to one name alone.
const PART_NAME: &str = "part.tmp";

/// A segment file whose number is higher than that of all segments by more than this was not made by millpond.
const NUMBERS_AHEAD: u32 = 1 << 20;

impl Opening {
    /// Makes durable what was found, and starts the engine from there.
    pub(super) fn repair(
        self,
        mut found: Found,
        mut recovery: Recovery,
        store_id: [u8; 16],
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
        let position = cursor.map(|(header, _)| header.position);
        if !recovery.clean {
            self.rewrite_unproven(&found, position)?;
        }
        let mut next_number = self.next_number(&found, position)?;
        let given_back = found.replay.give_back();
        // A close leaves none in flight, but some whose lease had run out.
        recovery.redelivered = if recovery.clean { 0 } else { given_back };
        let damaged = !found.damage.is_empty() || recovery.full_walk;
        let space = Arc::new(Space::new(self.storage.clone(), self.settings.max_bytes));
        let (active, strays) = self.activate(&mut found, &space, &settings, &mut next_number)?;
        let Found { replay, damage, next_id, .. } = found;
        let mut state = replay.state;
        state.note_damage(damage);
        if damaged {
            self.recount(&mut state, &active)?;
        } else {
            subtract_active(&mut state, &active.index);
        }
        let opened = self.time.now();
        for queue in state.queues.values_mut() {
            queue.window.begin(opened.wall_ms);
        }
        recovery.segments = state.segments.len();
        let start = Start { active, next_id, id_ceiling: next_id, next_number };
        let log = Log::new(self.storage.clone(), space.clone(), settings, start);
        let engine = Engine {
            storage: self.storage.clone(),
            space,
            settings: self.settings,
            opened,
            store_id,
            recovery,
            log,
            state: Lock::new(state),
            maintenance: Lock::new(Maintenance {
                generation: cursor.map_or(0, |(header, _)| header.generation),
                checkpoint_at: 0,
                checkpoint_time: self.time.mono(),
                retry_at: 0,
                retry_changes: 0,
                position: Position::default(),
                rewrite: None,
                compact_full: None,
                compact_failed: None,
                sweep: None,
                sweep_after: None,
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
        engine.checkpoint_twice()?;
        engine.remove_strays(&self.files, &strays)?;
        Ok(Arc::new(engine))
    }

    /// Above that of every file, and of every segment that the log or the cursor knows of, which may be lost: a number that
    /// comes twice makes a walk of the log go on in the wrong segment. But for those that are so far ahead of the log that
    /// they are no part of it.
    fn next_number(&self, found: &Found, cursor: Option<Position>) -> Result<u32> {
        let sealed = found.replay.state.segments.iter().map(|s| s.segment.file);
        let of_log = found.files.iter().map(|file| file.header.number).chain(sealed);
        let of_log = of_log.chain(cursor.map(|position| position.segment())).max();
        let most = of_log.unwrap_or(0).saturating_add(NUMBERS_AHEAD);
        let files = self.files.iter().filter_map(|(name, _)| parse_segment_name(name));
        let named = found.files.iter().filter_map(|file| file.survey.next);
        let numbers = files.chain(named).filter(|number| *number <= most);
        let highest = numbers.chain(of_log).max().unwrap_or(0);
        highest.checked_add(1).ok_or_else(|| self.io("cannot make a segment", no_number_left()))
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

    /// Gives a file that others have too to this name alone. Crash windows: the copy, which the next open removes, or the
    /// file as it was.
    fn part(&self, name: &str) -> std::io::Result<()> {
        let file = self.storage.open_read(name)?;
        let data = file.map_read()?;
        let _ = self.storage.remove(PART_NAME);
        let copy = self.storage.create(PART_NAME, data.published(), Prepare::Reserve)?;
        copy.write_at(0, data.bytes(0..data.published()))?;
        copy.sync_data()?;
        self.storage.rename(PART_NAME, name)?;
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
        if from < used && (self.storage.is_linked(name) || self.storage.is_held(name)) {
            // A backup has the same file, or a delivery of an earlier owner has it mapped.
            self.part(name)?;
        }
        let file = self.storage.open(name)?;
        let mut content = vec![0; CHUNK.min(used.saturating_sub(from)) as usize];
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

    /// After damage: counts every queue's messages anew, from the indexes.
    fn recount(&self, state: &mut State, active: &Active) -> Result<()> {
        let mut damage = Vec::new();
        for s in &state.segments {
            if s.segment.is_sealed() && s.segment.index().is_none() {
                let loaded = read::load_index(&*self.storage, &s.segment, s.id_end, s.messages);
                let (index, found) = loaded.map_err(|error| {
                    Error::io("cannot read a segment", error)
                        .file(self.storage.path(&s.segment.name()))
                })?;
                s.segment.set_index(index);
                damage.extend(found);
            }
        }
        state.note_damage(damage);
        state.recount(active.segment.number, &active.index);
        Ok(())
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
    /// The first cursors of this open: see [`super::open`] for why there are two. Crash windows: those of a cursor; and,
    /// where there is no room for two, some of the older ones removed, or all, beside the first.
    fn checkpoint_twice(&self) -> Result<()> {
        let mut maintenance = self.maintenance.lock();
        self.checkpoint(&mut maintenance, false)?;
        if planted(Bug::OneCursorOfAnOpen) {
            return Ok(());
        }
        match self.checkpoint(&mut maintenance, false) {
            Err(error) if error.is_retryable() => {}
            done => return done,
        }
        // On a full disk there is room for it where the older ones are, which must not be believed again anyway.
        let removed = remove_before(&*self.storage, maintenance.generation);
        self.space.freed();
        removed.map_err(|error| self.publish_failed(PublishFailed::Sync(error), 0))?;
        match self.checkpoint(&mut maintenance, false) {
            // One has to do then: without it the whole log is read.
            Err(error) if error.is_retryable() => Ok(()),
            done => done,
        }
    }
}
