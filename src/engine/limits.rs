//! Room in a queue that is limited: whether there is enough, and how it is made.
//!
//! Inserts into such a queue decide and append under one hold of the dispatch lock, so that a limit is never exceeded.
//! How many messages a queue has is always known; what they take is [counted](super::usage).

use std::sync::Arc;
use std::time::Instant;

pub(super) use self::victims::Victims;
use self::victims::touch;
use super::choose::Detour;
use super::queue_entry::QueueEntry;
use super::state::State;
use super::take::queue_mut;
use super::usage::Usage;
use super::{Engine, QueueShared};
use crate::clock::real_now;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Guard;
use crate::log::Draft;
use crate::options::{AtLimit, QueueOptions};
use crate::sync::atomic::Ordering;

mod victims;

/// How much room is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    messages: u64,
    bytes: u64,
}

impl Need {
    pub fn of(run: &[Draft<'_>]) -> Need {
        let bytes = run.iter().map(|draft| draft.frame_bytes(false)).sum();
        Need { messages: run.len() as u64, bytes }
    }

    /// What of it there is no room for; `used` is what is there.
    fn beyond(self, used: Need, options: &QueueOptions) -> Need {
        let beyond = |used: u64, need: u64, most: Option<u64>| {
            most.map_or(0, |most| used.saturating_add(need).saturating_sub(most))
        };
        Need {
            messages: beyond(used.messages, self.messages, options.max_messages),
            bytes: beyond(used.bytes, self.bytes, options.max_bytes),
        }
    }

    fn is_none(self) -> bool {
        self == Need::default()
    }
}

/// There is room, once these messages are deleted.
struct Room {
    victims: Victims,
}

/// What stands between an insert and its room.
enum NoRoom {
    /// Somebody has to take something out.
    Full,
    /// This message has to move to the dead letter queue.
    Move(u64, u8),
    Detour(Detour),
    /// What is there has to be counted.
    Count,
}

impl From<Detour> for NoRoom {
    fn from(detour: Detour) -> NoRoom {
        NoRoom::Detour(detour)
    }
}

impl Engine {
    /// Makes sure that there is room for `need` in `queue`: gives the lock back with what must be deleted by the same
    /// append; or None if it had to give it up, and the caller must look again. Waits until `until` where the queue
    /// lets its inserts wait.
    ///
    /// # Errors
    /// `QueueFull`; `TooLarge` for what the queue can never have room for.
    pub(super) fn room<'a>(
        &'a self,
        mut state: Guard<'a, State>,
        queue: &Arc<QueueShared>,
        need: Need,
        until: Option<Instant>,
    ) -> Result<Option<(Guard<'a, State>, Victims)>> {
        if !queue.is_limited() {
            return Ok(Some((state, Victims::new())));
        }
        let options = &queue_mut(&mut state, queue)?.options;
        if !need.beyond(Need::default(), options).is_none() {
            let what = format!("{} messages of {} bytes", need.messages, need.bytes);
            let what = format!("{what}, more than queue {:?} may ever have", queue.name);
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        let no_room = match self.find_room(&mut state, queue, need)? {
            Ok(Room { victims }) => return Ok(Some((state, victims))),
            Err(no_room) => no_room,
        };
        match no_room {
            NoRoom::Full => self.wait_for_room(state, queue, until)?,
            NoRoom::Move(id, priority) => {
                let was_untouched = touch(&mut state, queue, id, priority)?;
                drop(state);
                self.drop_by_moving(queue, id, priority, was_untouched)?;
            }
            NoRoom::Count => {
                drop(state);
                self.count_usage(queue)?;
            }
            NoRoom::Detour(detour) => {
                drop(state);
                self.take_detour(queue, detour)?;
            }
        }
        Ok(None)
    }

    fn find_room(
        &self,
        state: &mut State,
        queue: &Arc<QueueShared>,
        need: Need,
    ) -> Result<std::result::Result<Room, NoRoom>> {
        let Some(used) = self.used(state, queue)? else { return Ok(Err(NoRoom::Count)) };
        let entry = queue_mut(state, queue)?;
        let beyond = need.beyond(used, &entry.options);
        if beyond.is_none() {
            return Ok(Ok(Room { victims: Victims::new() }));
        }
        let (at_limit, moves) = (entry.options.at_limit, entry.options.dead_letter.is_some());
        Ok(match at_limit {
            AtLimit::Block | AtLimit::Reject => Err(NoRoom::Full),
            AtLimit::DropOldest => self.find_victims(state, queue, beyond, moves),
        })
    }

    /// What is there; None if it has to be counted.
    fn used(&self, state: &State, queue: &QueueShared) -> Result<Option<Need>> {
        let entry = state.queues.get(&queue.id).ok_or_else(super::removed)?;
        let bytes = match entry.options.max_bytes {
            Some(_) => entry.usage.total(),
            None => Some(0),
        };
        let messages = entry.live(&self.log.tail());
        Ok(bytes.map(|bytes| Need { messages, bytes }))
    }

    /// An error if something would have to make room for `need`, as far as that is known.
    pub(super) fn check_room(&self, state: &State, queue: &QueueShared, need: Need) -> Result<()> {
        let Some(used) = self.used(state, queue)? else { return Ok(()) };
        let entry = state.queues.get(&queue.id).ok_or_else(super::removed)?;
        match need.beyond(used, &entry.options).is_none() {
            true => Ok(()),
            false => Err(full(queue)),
        }
    }

    fn wait_for_room(
        &self,
        mut state: Guard<'_, State>,
        queue: &QueueShared,
        until: Option<Instant>,
    ) -> Result<()> {
        let waits = queue_mut(&mut state, queue)?.options.at_limit == AtLimit::Block;
        let left = until.map(|until| until.saturating_duration_since(real_now()));
        if !waits || left.is_some_and(|left| left.is_zero()) {
            return Err(full(queue));
        }
        queue.room_waiters.fetch_add(1, Ordering::SeqCst);
        let state = match left {
            None => queue.room.wait(state),
            Some(left) => queue.room.wait_for(state, left),
        };
        drop(state);
        queue.room_waiters.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    /// An error if there is more in the queue than these options would let in.
    pub(super) fn check_limits(
        &self,
        queue: &Arc<QueueShared>,
        options: &QueueOptions,
    ) -> Result<()> {
        loop {
            let mut state = self.lock_open()?;
            if self.lets_in_what_is_there(&mut state, queue, options)? {
                return Ok(());
            }
            drop(state);
            self.count_usage(queue)?;
        }
    }

    /// Makes sure that these options let in what is in the queue. False if that has to be counted first.
    ///
    /// Ensures: that stays so while the caller holds the lock. From here on inserts take it, and those that did not have
    /// been appended.
    ///
    /// # Errors
    /// `Conflict` if there is more.
    pub(super) fn lets_in_what_is_there(
        &self,
        state: &mut State,
        queue: &QueueShared,
        options: &QueueOptions,
    ) -> Result<bool> {
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        let entry = queue_mut(state, queue)?;
        if *options == entry.options || !options.is_limited() {
            return Ok(true);
        }
        entry.set_limited(true);
        let bytes = match options.max_bytes {
            Some(_) => entry.usage.total(),
            None => Some(0),
        };
        let Some(bytes) = bytes else { return Ok(false) };
        let there = Need { messages: entry.live(&tail), bytes };
        if !Need::default().beyond(there, options).is_none() {
            let Need { messages, bytes } = there;
            let mut what = format!("queue {:?} has {messages} messages", queue.name);
            if options.max_bytes.is_some() {
                what.push_str(&format!(" of {bytes} bytes"));
            }
            what.push_str(", which is more than its limit would be; nothing was changed");
            return Err(Error::new(ErrorKind::Conflict, what));
        }
        Ok(true)
    }

    /// A declaration has failed: inserts need no lock again if the queue has no limit.
    pub(super) fn limit_as_declared(&self, name: &str) {
        let mut state = self.lock_state();
        let id = state.names.get(name).copied();
        if let Some(entry) = id.and_then(|id| state.queues.get_mut(&id)) {
            entry.set_limited(entry.options.is_limited());
        }
    }
}

fn full(queue: &QueueShared) -> Error {
    Error::new(ErrorKind::QueueFull, format!("there is no room in queue {:?}", queue.name))
}

impl QueueEntry {
    /// Whether inserts have to look for room. Under the dispatch lock, and to begin with it under the append lock: those
    /// that do not hold the first look under the second.
    pub fn set_limited(&mut self, limited: bool) {
        if limited != self.shared.is_limited() {
            // Without a limit nobody counts.
            self.usage = Usage::default();
            self.shared.set_limited(limited);
        }
    }
}

#[cfg(not(any(loom, shuttle)))]
#[cfg(test)]
mod tests;
