//! What becomes of messages that have expired. Who finds out: whoever is about to take one, by [`look`](super::look), and
//! the [`sweep`](super::sweep).

use std::sync::Arc;

use super::queue_entry::QueueEntry;
use super::settle::Claimant;
use super::state::{Located, State};
use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::dispatch::{Entry, Place};
use crate::error::Result;
use crate::log::Purpose;

/// How many are deleted in one append.
const CHUNK: usize = 1024;

/// The reason that is kept with an expired message.
const EXPIRED: &str = "expired";

/// A message that leaves its queue though nobody holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unheld {
    pub id: u64,
    pub priority: u8,
    /// What it takes, as limits count it.
    pub bytes: Option<u64>,
}

impl Engine {
    /// These messages of `queue` have expired: they move to the dead letter queue, or are deleted
    /// if there is none, but for those that somebody holds or that are buried. Whether somebody holds one.
    pub(super) fn expire(&self, queue: &Arc<QueueShared>, messages: &[Unheld]) -> Result<bool> {
        let mut messages = messages.to_vec();
        messages.sort_unstable();
        let mut held = false;
        let is_held = |entry: &QueueEntry, chunk: &[Unheld]| {
            let mut touched = chunk.iter().filter_map(|message| entry.touched.get(message.id));
            touched.any(|entry| entry.place == Place::InFlight)
        };
        for chunk in messages.chunks(CHUNK) {
            let has_dead_letter = {
                let mut state = self.lock_state();
                let entry = queue_mut(&mut state, queue)?;
                held |= is_held(entry, chunk);
                entry.options.dead_letter.is_some()
            };
            if has_dead_letter {
                for message in chunk {
                    self.retire_unheld(queue, message.id, message.priority, EXPIRED)?;
                }
            } else {
                self.delete_expired(queue, chunk)?;
            }
            // Somebody may have extended a lease that was over.
            held |= is_held(queue_mut(&mut self.lock_state(), queue)?, chunk);
        }
        Ok(held)
    }

    fn delete_expired(&self, queue: &Arc<QueueShared>, messages: &[Unheld]) -> Result<()> {
        loop {
            self.check_alive()?;
            let mut state = self.lock_state();
            let mut free: Vec<&Unheld> = messages.iter().collect();
            free.retain(|message| self.is_free(&mut state, queue, message.id));
            let ids: Vec<u64> = free.iter().map(|message| message.id).collect();
            if ids.is_empty() {
                return Ok(());
            }
            match self.append_delete(queue.id, &ids) {
                Ok(appended) => {
                    for message in free {
                        state.forget(queue.id, message.id, message.bytes);
                    }
                    self.after_settle(&mut state);
                    drop(state);
                    self.after_append(&appended);
                    return Ok(());
                }
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Settle)?;
                }
            }
        }
    }

    /// Takes a message out of circulation that nobody holds. In memory it is given back first: in the log an untouched
    /// message reads the same, and a delayed one is so again after a crash.
    fn retire_unheld(
        &self,
        queue: &Arc<QueueShared>,
        id: u64,
        priority: u8,
        why: &str,
    ) -> Result<()> {
        if self.give_back_unheld(queue, id, priority)? {
            self.retire_given_back(queue, id, Claimant::Store, why)?;
        }
        Ok(())
    }

    /// Touches a message that nobody holds, so that it can be moved. False if it is not there.
    fn give_back_unheld(&self, queue: &QueueShared, id: u64, priority: u8) -> Result<bool> {
        let mut state = self.lock_state();
        if !self.is_free(&mut state, queue, id) {
            return Ok(false);
        }
        let touched = &mut queue_mut(&mut state, queue)?.touched;
        match touched.get(id) {
            Some(entry) if entry.place == Place::GivenBack => {}
            Some(entry) => {
                let fresh = entry.fresh;
                let given_back = Entry::given_back(priority, entry.attempts);
                touched.put(id, Entry { fresh, ..given_back });
            }
            None => touched.touch(id, priority),
        }
        Ok(true)
    }

    /// Whether a message is there, and neither held nor buried. What was seen of it may be old: its segment may have been
    /// rewritten without it since, so it is looked up. A delete that is recorded twice would be counted twice.
    fn is_free(&self, state: &mut State, queue: &QueueShared, id: u64) -> bool {
        let touched = state.queues.get(&queue.id).and_then(|entry| entry.touched.get(id));
        if touched.is_some_and(|entry| matches!(entry.place, Place::InFlight | Place::Buried)) {
            return false;
        }
        let is_there = loop {
            match state.look_up(queue.id, id, &self.log) {
                Located::At { .. } => break true,
                Located::Rolled => state.absorb(&mut self.log.tail()),
                Located::NeedsIndex(_) | Located::Gone => break false,
            }
        };
        if !is_there && let Some(entry) = state.queues.get_mut(&queue.id) {
            entry.forget_known(id);
        }
        is_there
    }
}

#[cfg(not(any(loom, shuttle)))]
#[cfg(test)]
mod tests {
    use super::super::choose::Detour;
    use super::super::fixture;
    use crate::clock::Clock;
    use crate::engine::take::Few;
    use crate::message::Message;
    use crate::options::Durability;
    use crate::storage::sim::Disk;
    use crate::store::Store;
    use std::time::Duration;

    fn open(disk: &Disk, clock: &Clock) -> Store {
        fixture::open(disk, clock, Durability::Process)
    }

    /// Whoever looks does it without the lock: what it sees may be deleted by then, and rewritten away.
    #[test]
    fn what_was_seen_and_is_gone_is_not_deleted_again() {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = open(&disk, &clock);
        let queue = store.queue("q").unwrap();
        let ids: Vec<u64> = (0..2000)
            .map(|_| queue.insert(Message::new(vec![0; 200]).ttl(Duration::from_secs(1))).unwrap())
            .map(|id| id.as_u64())
            .collect();
        for _ in 0..500 {
            queue.insert("lives on").unwrap();
        }
        let engine = store.engine();
        let shared = engine.find_queue("q").unwrap().unwrap();
        let look = {
            let mut state = engine.lock_state();
            match engine.choose(&mut state, &shared, 1, None, engine.now(), &mut Few::new()) {
                Err(Detour::Look(look)) => look,
                _ => panic!("nothing has been seen yet"),
            }
        };
        // It reads from the old segment, as somebody does who has begun before.
        engine.look_ahead(&shared, &look).unwrap();
        for id in &ids[..1900] {
            assert!(queue.delete_by_id((*id).into()).unwrap());
        }
        while engine.maintain().unwrap() {}
        let old = engine.lock_state().lies_in(ids[0], &look.segment);
        assert!(!old, "its segment was rewritten or dropped");
        engine.look_ahead(&shared, &look).unwrap();
        clock.advance(Duration::from_secs(1));
        let left = queue.try_get().unwrap().expect("one that lives on");
        assert_eq!(store.stats().messages, 500);
        let killed = disk.kill();
        drop((left, queue, store));
        assert_eq!(open(&killed, &clock).stats().messages, 500);
    }
}
