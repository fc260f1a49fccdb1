//! Inserting messages with deduplication keys.
//!
//! A key is looked up, the record appended, and the key remembered under one hold of the dispatch lock: of two inserts
//! with the same key, one is the first. What is known from there on is in the log in the same order, so that a crash
//! leaves either both, the message and its key, or neither. See [`crate::dispatch::DedupWindow`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::insert::Times;
use super::limits::Need;
use super::take::queue_mut;
use super::{Engine, Outgoing, QueueShared};
use crate::clock::Now;
use crate::dispatch::DedupWindow;
use crate::error::Result;
use crate::format::cursor::window::SeenKey;
use crate::format::position::Position;
use crate::log::{Appended, Draft, Purpose};
use crate::options::Durability;
use crate::planted::{Bug, planted};

/// Which message a message of a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// One with its key was inserted before.
    Known(u64),
    /// The n-th that is to be inserted; or one with its key is.
    New(usize),
}

/// What an append of messages with keys has come to.
struct Keyed {
    ids: Vec<u64>,
    /// None if all were known.
    appended: Option<Appended>,
    /// Behind all of them, those that were known included.
    end: Position,
}

impl Engine {
    /// Inserts those of `messages` whose key is not known, or nothing at all. Returns the id of each, or of the first one
    /// that had its key.
    pub fn insert_keyed(
        &self,
        queue: &Arc<QueueShared>,
        messages: &[Outgoing<'_>],
        until: Option<Instant>,
    ) -> Result<Vec<u64>> {
        // One time for the record and the window, so that a restart changes nothing.
        let now = self.now();
        self.with_run(queue, messages, now, |run, times| {
            let keyed = self.append_keyed(queue, messages, (run, times), now, until)?;
            let Some(appended) = &keyed.appended else {
                let synced = queue.durability() == Durability::Sync;
                if synced && !planted(Bug::DuplicateNotSynced) {
                    self.sync_to(keyed.end)?;
                }
                return Ok(keyed.ids);
            };
            messages.iter().for_each(|message| queue.note_append(message.priority));
            self.finish_insert(queue, appended, messages.len())?;
            Ok(keyed.ids)
        })
    }

    fn append_keyed(
        &self,
        queue: &Arc<QueueShared>,
        messages: &[Outgoing<'_>],
        (run, times): (&[Draft<'_>], &[Times]),
        inserted: Now,
        until: Option<Instant>,
    ) -> Result<Keyed> {
        let sync_by = self.sync_by(queue.durability());
        loop {
            self.check_alive()?;
            let mut state = self.lock_open()?;
            let entry = queue_mut(&mut state, queue)?;
            let now = self.now();
            entry.window.forget_some(self.window_ms(now));
            let places = places(messages, &entry.window, self.window_ms(now));
            let new = firsts(&places);
            if new.is_empty() {
                let end = self.log.tail().end();
                return Ok(Keyed { ids: ids(&places, 0), appended: None, end });
            }
            let run: Vec<Draft<'_>> = new.iter().map(|&n| run[n]).collect();
            let room = self.room(state, queue, Need::of(&run), until)?;
            let Some((mut state, victims)) = room else { continue };
            let appended = match self.append_with_victims(queue, &run, &victims, sync_by) {
                Ok(appended) => appended,
                Err(refused) => {
                    drop(state);
                    self.make_room(refused, Purpose::Insert)?;
                    continue;
                }
            };
            let time_ms = self.window_ms(inserted);
            self.forget_victims(&mut state, queue, &victims);
            let entry = queue_mut(&mut state, queue)?;
            entry.note_usage(&run);
            for (&n, id) in new.iter().zip(appended.first_id..) {
                if let Some(key) = messages[n].key {
                    entry.window.add(SeenKey { key: key.into(), id, time_ms });
                }
            }
            for (&n, id) in new.iter().zip(appended.first_id..) {
                self.delay(&mut state, queue, id, messages[n].priority, times[n].due);
            }
            queue_mut(&mut state, queue)?.set_timer(now);
            let (ids, end) = (ids(&places, appended.first_id), appended.end);
            return Ok(Keyed { ids, appended: Some(appended), end });
        }
    }
}

fn places(messages: &[Outgoing<'_>], window: &DedupWindow, now_ms: u64) -> Vec<Place> {
    let mut count = 0;
    let mut next = || {
        count += 1;
        Place::New(count - 1)
    };
    let mut in_batch: HashMap<&[u8], Place> = HashMap::new();
    let mut places = Vec::with_capacity(messages.len());
    for message in messages {
        let known = message.key.and_then(|key| window.find(key, now_ms));
        places.push(match (known, message.key) {
            (Some(id), _) => Place::Known(id),
            (None, Some(key)) if messages.len() > 1 => {
                *in_batch.entry(key).or_insert_with(&mut next)
            }
            _ => next(),
        });
    }
    places
}

/// Which messages are to be inserted: the first in each new place.
fn firsts(places: &[Place]) -> Vec<usize> {
    let mut next = 0;
    let mut is_first = |place: &Place| {
        let first = *place == Place::New(next);
        next += usize::from(first);
        first
    };
    (0..places.len()).filter(|&n| is_first(&places[n])).collect()
}

fn ids(places: &[Place], first_id: u64) -> Vec<u64> {
    let id = |place: &Place| match *place {
        Place::Known(id) => id,
        Place::New(nth) => first_id + nth as u64,
    };
    places.iter().map(id).collect()
}
