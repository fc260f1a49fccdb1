//! What a store must hold: the model that recovered stores are compared with.
//!
//! A [`World`] is the state that a prefix of the log describes. Every record that an operation appends makes a new
//! one, so that "the log has no holes" becomes "what was recovered equals one of these worlds". It knows nothing of
//! files, syncs or crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::content::{Content, DEAD};
use super::queue::{Message, Place, Queue, Time};
use super::seen::{Got, Seen, SeenQueue, Stats, UNKNOWN_ID};

#[derive(Clone, Debug, Default)]
pub struct World {
    pub queues: BTreeMap<&'static str, Arc<Queue>>,
}

impl World {
    pub fn queue(&self, name: &str) -> &Queue {
        &self.queues[name]
    }

    pub fn queue_mut(&mut self, name: &'static str) -> &mut Queue {
        Arc::make_mut(self.queues.entry(name).or_default())
    }

    pub fn insert(&mut self, queue: &'static str, id: u64, content: Content) {
        let (place, due) = (Place::Untouched, 0);
        let (origin, from, expiry) = (id, None, None);
        let (delivered, waits, unrecorded, attempts, token) = (false, false, false, 0, 0);
        let message = Message {
            origin,
            from,
            content,
            attempts,
            place,
            delivered,
            waits,
            unrecorded,
            due,
            expiry,
            token,
        };
        self.queue_mut(queue).messages.insert(id, message);
    }

    /// Lets a message expire at this time of the wall clock.
    pub fn expire(&mut self, queue: &'static str, id: u64, at: u64) {
        if let Some(message) = self.queue_mut(queue).messages.get_mut(&id) {
            message.expiry = Some(at);
        }
    }

    pub fn advance(&mut self, queue: &'static str, now: Time) {
        self.queue_mut(queue).advance(now);
    }

    /// Buries a message, or moves it to the dead letter queue, where it gets `new_id`. Whether it was moved.
    pub fn retire(&mut self, queue: &'static str, id: u64, new_id: u64) -> bool {
        let from = self.queue_mut(queue);
        let Some(target) = from.rules.dead_letter else {
            if let Some(message) = from.messages.get_mut(&id) {
                message.place = Place::Buried;
                message.token = 0;
            }
            return false;
        };
        self.move_to(queue, id, target, new_id, queue);
        true
    }

    /// Moves a message, which tells from then on that queue `home` has given it up.
    fn move_to(
        &mut self,
        queue: &'static str,
        id: u64,
        to: &'static str,
        new_id: u64,
        home: &'static str,
    ) {
        if let Some(message) = self.queue_mut(queue).messages.remove(&id) {
            let (place, from, expiry) = (Place::Untouched, Some(home), None);
            let content = Content { key: None, ..message.content };
            let message = Message { content, from, expiry, ..message };
            let (delivered, waits, unrecorded) = (false, false, false);
            let moved = Message {
                attempts: 0,
                place,
                delivered,
                waits,
                unrecorded,
                due: 0,
                token: 0,
                ..message
            };
            self.queue_mut(to).messages.insert(new_id, moved);
        }
    }

    /// Ready messages that come from another queue which is there, in the order in which they go back.
    pub fn homeward(&self, queue: &str) -> Vec<(u64, &'static str)> {
        let elsewhere = |home: &&str| *home != queue && self.queues.contains_key(home);
        let deliverable = self.queue(queue).deliverable();
        let ready = deliverable.filter_map(|((priority, _, _, id), m)| {
            Some((priority, id, m.from.filter(elsewhere)?))
        });
        let mut ready: Vec<_> = ready.collect();
        ready.sort_unstable();
        ready.into_iter().map(|(_, id, home)| (id, home)).collect()
    }

    /// Brings a message back to queue `home`, where it gets `new_id`.
    pub fn bring_back(&mut self, queue: &'static str, id: u64, home: &'static str, new_id: u64) {
        self.move_to(queue, id, home, new_id, home);
    }

    /// Makes buried messages ready. How many there were.
    pub fn kick(&mut self, queue: &'static str, max: usize) -> u64 {
        self.queue_mut(queue).pass_on_groups();
        let buried = self.queue(queue).ids_at(|place| place == Place::Buried);
        let kicked = buried.iter().take(max);
        let kick = |id: &u64| {
            self.put(queue, *id, 0, Place::GivenBack);
            if let Some(message) = self.queue_mut(queue).messages.get_mut(id) {
                message.delivered = false;
            }
        };
        kicked.map(kick).count() as u64
    }

    /// Puts a message that was settled where it belongs.
    pub fn put(&mut self, queue: &'static str, id: u64, attempts: u32, place: Place) {
        if let Some(message) = self.queue_mut(queue).messages.get_mut(&id) {
            let due = if let Place::Delayed(due) = place { due } else { 0 };
            let (waits, unrecorded) = (false, false);
            let message_is =
                Message { attempts, place, waits, unrecorded, due, token: 0, ..message.clone() };
            *message = message_is;
        }
    }

    pub fn live(&self) -> usize {
        self.queues.values().map(|queue| queue.messages.len()).sum()
    }

    /// The store as the next process finds it: nothing is in flight any more, and the attempts count.
    pub fn died(&self) -> World {
        let mut world = self.clone();
        for queue in world.queues.values_mut().map(Arc::make_mut) {
            queue.pass_on_groups();
            queue.unlearned = true;
            for message in queue.messages.values_mut() {
                message.token = 0;
                message.waits = false;
                if std::mem::take(&mut message.unrecorded) {
                    message.place = Place::Untouched;
                }
                if let Place::InFlight(_) = message.place {
                    message.place = Place::GivenBack;
                }
            }
        }
        world
    }

    /// What [`super::observe`] sees of a store that died in this state, at this time of the wall clock.
    pub fn seen(&self, wall: u64) -> Seen {
        let mut world = self.died();
        let mut seen = Seen::default();
        for (name, queue) in &world.queues {
            let delayed = queue.count(|place| matches!(place, Place::Delayed(due) if due > wall));
            let buried = queue.count(|place| place == Place::Buried);
            let ready = queue.messages.len() as u64 - delayed - buried;
            let stats = Stats { ready, delayed, buried };
            let fading = queue.fading(wall);
            let is_paused = queue.is_paused;
            let queue = SeenQueue { stats, fading, is_paused, ..SeenQueue::default() };
            seen.queues.insert((*name).to_owned(), queue);
        }
        let sinks: BTreeSet<&str> =
            world.queues.values().filter_map(|queue| queue.rules.dead_letter).collect();
        let names: Vec<&'static str> = world.queues.keys().copied().collect();
        let far = u64::MAX;
        let sources = || names.iter().filter(|name| !sinks.contains(*name));
        sources().for_each(|name| world.drain(name, wall, &mut seen));
        for name in sources().filter(|name| **name != DEAD) {
            let keys = world.queue_mut(name).probe_keys(wall);
            seen.queues.entry((*name).to_owned()).or_default().keys = keys;
        }
        sources().for_each(|name| world.drain(name, far, &mut seen));
        for name in names.iter().filter(|name| sinks.contains(*name)) {
            world.drain(name, far, &mut seen);
        }
        for (name, queue) in &world.queues {
            if let Some(seen) = seen.queues.get_mut(*name) {
                seen.buried_in_the_end = queue.messages.len() as u64;
            }
        }
        seen
    }

    fn drain(&mut self, name: &'static str, wall: u64, seen: &mut Seen) {
        self.advance(name, Time { mono: 0, wall });
        loop {
            if let Some(id) = self.queue(name).first_exhausted() {
                let new_id = UNKNOWN_ID + seen.moved;
                seen.moved += 1;
                self.retire(name, id, new_id);
                continue;
            }
            let ids = self.queue_mut(name).take_next(DRAIN_BATCH, |_| true);
            if ids.is_empty() {
                let messages = &mut self.queue_mut(name).messages;
                messages.retain(|_, message| !message.is_fading(wall));
                return;
            }
            for id in ids {
                let Some(message) = self.queue_mut(name).messages.remove(&id) else { continue };
                let Message { origin, from, content, attempts, .. } = message;
                let got = Got { id, origin, from, attempt: attempts + 1, content };
                if let Some(queue) = seen.queues.get_mut(name) {
                    queue.got.push(got);
                }
            }
        }
    }
}

/// How many messages a drain gets at a time: of a group one in each batch.
pub const DRAIN_BATCH: usize = 64;

/// A world that the past has seen, and that does not change any more.
#[derive(Debug, Default)]
pub struct Moment {
    pub world: World,
    /// At the time that was last asked for.
    seen: Mutex<Option<(u64, Arc<Seen>)>>,
}

impl Moment {
    pub fn of(world: World) -> Moment {
        Moment { world, seen: Mutex::default() }
    }

    /// As [`World::seen`], found out once.
    pub fn seen(&self, wall: u64) -> Arc<Seen> {
        let mut known = self.seen.lock().unwrap();
        match &*known {
            Some((at, seen)) if *at == wall => seen.clone(),
            _ => known.insert((wall, Arc::new(self.world.seen(wall)))).1.clone(),
        }
    }
}
