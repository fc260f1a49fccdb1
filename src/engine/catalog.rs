//! Declaring, finding, purging and removing queues.

use std::sync::Arc;

use super::browse::place_of;
use super::lane::Head;
use super::queue_entry::QueueEntry;
use super::state::State;
use super::take::queue_mut;
use super::{Engine, QueueShared, UNAWAITED};
use crate::error::{Error, ErrorKind, Result};
use crate::format::position::Position;
use crate::format::record::catalog::Declare;
use crate::format::record::{DECLARE, PAUSE, REMOVE, RESUME, encode_pause, encode_queue};
use crate::log::{Draft, Purpose, Refused};
use crate::options::{Durability, QueueOptions, check_queue_name};
use crate::report::{Paused, State as MessageState};
use crate::sync::atomic::Ordering;

/// How many messages a purge deletes in one append.
const PURGE_CHUNK: usize = 1024;

impl Engine {
    /// The queue of that name; declared with defaults if there is none.
    pub fn open_queue(&self, name: &str) -> Result<Arc<QueueShared>> {
        if let Some(queue) = self.find_queue(name)? {
            return Ok(queue);
        }
        self.declare_with(name, QueueOptions::default(), false)
    }

    pub fn find_queue(&self, name: &str) -> Result<Option<Arc<QueueShared>>> {
        check_queue_name(name)?;
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed());
        }
        let state = self.lock_state();
        let id = state.names.get(name);
        Ok(id.and_then(|id| state.queues.get(id)).map(|entry| entry.shared.clone()))
    }

    /// Declares a queue, or sets the options of the one that is there, unless they contradict what is in it.
    pub fn declare(&self, name: &str, options: QueueOptions) -> Result<Arc<QueueShared>> {
        check_queue_name(name)?;
        options.check(name)?;
        if let Some(dead_letter) = &options.dead_letter {
            self.lock_state().check_no_cycle(name, dead_letter)?;
        }
        let declared = self.declare_checked(name, options);
        if declared.is_err() {
            self.limit_as_declared(name);
        }
        declared
    }

    fn declare_checked(&self, name: &str, options: QueueOptions) -> Result<Arc<QueueShared>> {
        if let Some(queue) = self.find_queue(name)? {
            self.check_limits(&queue, &options)?;
        }
        if let Some(dead_letter) = &options.dead_letter {
            self.open_queue(dead_letter)?;
        }
        self.declare_with(name, options, true)
    }

    /// With `set`, the options of a queue that is there already become `options`.
    fn declare_with(
        &self,
        name: &str,
        options: QueueOptions,
        set: bool,
    ) -> Result<Arc<QueueShared>> {
        let (queue, end) = loop {
            self.check_alive()?;
            let mut state = self.lock_state();
            if let Some(dead_letter) = &options.dead_letter {
                // Another declaration may have closed the circle meanwhile.
                state.check_no_cycle(name, dead_letter)?;
            }
            let known = state.names.get(name).copied();
            if let Some(entry) = known.and_then(|id| state.queues.get(&id))
                && (!set || entry.options == options)
            {
                break (entry.shared.clone(), entry.declared_at);
            }
            let there =
                known.and_then(|id| state.queues.get(&id)).map(|entry| entry.shared.clone());
            if let Some(queue) = there
                && !self.lets_in_what_is_there(&mut state, &queue, &options)?
            {
                drop(state);
                self.count_usage(&queue)?;
                continue;
            }
            let id = known.unwrap_or(state.next_queue);
            let pause = known.and_then(|id| state.queues.get(&id)).map(|entry| entry.pause);
            match self.append_declare(id, name, &options, pause, Purpose::Insert)? {
                Ok(end) => break (self.apply_declare(&mut state, id, name, options, end), end),
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Insert)?;
                }
            }
        };
        // Messages of a queue that has become a synced one are seen once they are durable.
        let synced = queue.durability() == Durability::Sync;
        if synced || self.settings.durability == Durability::Sync {
            self.sync_to(end)?;
            self.wake_waiters(&queue, usize::MAX);
        }
        Ok(queue)
    }

    /// Behind the declaration of a queue that is known, `pause` says whether it is paused: see [`super::pause`].
    pub(super) fn append_declare(
        &self,
        id: u32,
        name: &str,
        options: &QueueOptions,
        pause: Option<Option<Paused>>,
        purpose: Purpose,
    ) -> Result<std::result::Result<Position, Refused>> {
        let options = options.encode()?;
        let mut body = Vec::new();
        Declare { queue: id, name: name.as_bytes(), options: &options }.encode(&mut body);
        let mut paused = Vec::new();
        let kind = match pause.flatten() {
            Some(why) => {
                encode_pause(id, why.failures(), &mut paused);
                PAUSE
            }
            None => {
                encode_queue(id, &mut paused);
                RESUME
            }
        };
        let run = [Draft::record(DECLARE, &body), Draft::record(kind, &paused)];
        let run = &run[..if pause.is_some() { 2 } else { 1 }];
        // Nobody waits for a queue that pauses itself.
        let sync_by = match self.settings.durability {
            Durability::Sync => self.time.mono().checked_add(UNAWAITED),
            other => self.sync_by(other),
        };
        let appended = self.log.append(run, purpose, sync_by, None);
        Ok(appended.map(|appended| {
            self.after_append(&appended);
            appended.end
        }))
    }

    fn apply_declare(
        &self,
        state: &mut State,
        id: u32,
        name: &str,
        options: QueueOptions,
        end: Position,
    ) -> Arc<QueueShared> {
        let default = self.settings.durability;
        // No message of a queue is older than the queue.
        let first_id = self.log.tail().next_id();
        let entry = state
            .queues
            .entry(id)
            .or_insert_with(|| QueueEntry::new(id, name, options.clone(), default, first_id));
        entry.set_options(options, default);
        entry.window.forget(self.window_ms(self.now()));
        entry.declared_at = end;
        let shared = entry.shared.clone();
        state.names.insert(shared.name.clone(), id);
        state.next_queue = state.next_queue.max(id + 1);
        shared
    }

    /// Removes a queue that has no messages. Its handles return `NotFound` from then on.
    pub fn remove_queue(&self, name: &str) -> Result<()> {
        check_queue_name(name)?;
        let end = loop {
            self.check_alive()?;
            let mut state = self.lock_state();
            let Some(&id) = state.names.get(name) else {
                return Err(Error::new(ErrorKind::NotFound, format!("no queue named {name:?}")));
            };
            match self.try_remove(&mut state, id)? {
                Ok(end) => break end,
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Settle)?;
                }
            }
        };
        if self.settings.durability == Durability::Sync {
            self.sync_to(end)?;
        }
        Ok(())
    }

    fn try_remove(
        &self,
        state: &mut State,
        id: u32,
    ) -> Result<std::result::Result<Position, Refused>> {
        {
            let mut tail = self.log.tail();
            state.absorb(&mut tail);
            let Some(entry) = state.queues.get(&id) else { return Err(super::removed()) };
            let live = entry.live(&tail);
            if live > 0 {
                return Err(Error::new(
                    ErrorKind::NotEmpty,
                    format!(
                        "{live} messages are still in queue {:?}; purge it first",
                        entry.shared.name
                    ),
                ));
            }
        }
        let mut body = Vec::new();
        encode_queue(id, &mut body);
        let Some(entry) = state.queues.get(&id) else { return Err(super::removed()) };
        let draft = [Draft::record(REMOVE, &body)];
        // Inserts look at `removed` under the append lock: none comes in from then on, and none is refused before.
        let appended = self.log.append_if(&draft, Purpose::Settle, None, |tail| {
            if entry.live(tail) > 0 {
                return Err(Refused::Removed);
            }
            entry.shared.removed.store(true, Ordering::Release);
            Ok(())
        });
        match appended {
            Ok(appended) => {
                if let Some(entry) = state.queues.remove(&id) {
                    state.names.remove(&entry.shared.name);
                    entry.shared.signal.notify_all();
                    entry.shared.wake_for_room();
                }
                self.after_append(&appended);
                Ok(Ok(appended.end))
            }
            Err(Refused::Removed) => {
                let what = format!("a message has come into queue {:?}", entry.shared.name);
                Err(Error::new(ErrorKind::NotEmpty, what))
            }
            Err(refused) => Ok(Err(refused)),
        }
    }

    pub fn queue_names(&self) -> Vec<String> {
        let state = self.lock_state();
        let mut names: Vec<String> = state.names.keys().map(|name| name.to_string()).collect();
        names.sort_unstable();
        names
    }

    /// Deletes all messages of a queue that are in this state, a thousand at a time; returns how many.
    pub fn purge(&self, queue: &Arc<QueueShared>, which: MessageState) -> Result<u64> {
        let mut purged = 0;
        let mut end = None;
        loop {
            self.check_alive()?;
            let now = self.now();
            let mut state = self.lock_open()?;
            let entry = queue_mut(&mut state, queue)?;
            entry.touched.advance(now.mono, now.wall_ms);
            let mut ids = touched_ids(entry, which);
            let mut from_lanes = Vec::new();
            if which == MessageState::Ready && ids.len() < PURGE_CHUNK {
                match self.purge_lanes(&mut state, queue, PURGE_CHUNK - ids.len()) {
                    Ok(found) => from_lanes = found,
                    Err(segment) => {
                        drop(state);
                        self.load_index(&segment)?;
                        continue;
                    }
                }
            }
            ids.extend(from_lanes.iter().map(|(_, id)| id));
            ids.sort_unstable();
            if ids.is_empty() {
                break;
            }
            match self.append_delete(queue.id, &ids) {
                Ok(appended) => {
                    for &id in &ids {
                        state.forget(queue.id, id, None);
                    }
                    purged += ids.len() as u64;
                    end = Some(appended.end);
                    self.after_settle(&mut state);
                    self.background.wake();
                }
                Err(refused) => {
                    for (priority, id) in from_lanes {
                        if let Some(lane) = state.lane(queue.id, priority) {
                            lane.rewind(id);
                        }
                    }
                    drop(state);
                    self.make_room(refused, Purpose::Settle)?;
                }
            }
        }
        if let Some(end) = end.filter(|_| self.settings.delete_durability == Durability::Sync) {
            self.sync_to(end)?;
        }
        Ok(purged)
    }

    /// Takes up to `max` untouched messages off the lanes. An index that is missing is asked for only if nothing was
    /// found before it.
    fn purge_lanes(
        &self,
        state: &mut State,
        queue: &QueueShared,
        max: usize,
    ) -> std::result::Result<Vec<(u8, u64)>, Arc<crate::log::Segment>> {
        let visible = Position::from_u64(u64::MAX);
        let mut found = Vec::new();
        while found.len() < max {
            match state.lane_head(queue.id, 0, 0, &self.log, visible) {
                Some((priority, Head::Message { id, .. })) => {
                    if let Some(lane) = state.lane(queue.id, priority) {
                        lane.consume();
                    }
                    found.push((priority, id));
                }
                Some((_, Head::NeedsIndex(segment))) if found.is_empty() => return Err(segment),
                Some((_, Head::Rolled)) => state.absorb(&mut self.log.tail()),
                _ => break,
            }
        }
        Ok(found)
    }
}

/// Up to a chunk of touched messages in this state.
fn touched_ids(entry: &QueueEntry, which: MessageState) -> Vec<u64> {
    let place = place_of(which);
    let touched = entry.touched.range(..).filter(|(_, entry)| entry.place == place);
    touched.map(|(id, _)| id).take(PURGE_CHUNK).collect()
}

impl State {
    /// Dead letters that come back to where they were buried would go round for ever.
    fn check_no_cycle(&self, name: &str, dead_letter: &str) -> Result<()> {
        let mut next = Some(dead_letter);
        for _ in 0..=self.queues.len() {
            let Some(current) = next else { return Ok(()) };
            if current == name {
                return Err(Error::invalid(format!(
                    "the dead letter queues of {name:?} lead back to it"
                )));
            }
            let id = self.names.get(current);
            let entry = id.and_then(|id| self.queues.get(id));
            next = entry.and_then(|entry| entry.options.dead_letter.as_deref());
        }
        Ok(())
    }
}
