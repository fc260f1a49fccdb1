//! What a store is, in a few hundred lines without a file: the model that the real one is compared with.

use std::collections::BTreeMap;

use crate::options::Options;
use crate::queue::{Headers, Message, Place, Queue, Seq};

/// What a delivery holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub queue: &'static str,
    pub incarnation: u64,
    pub seq: Seq,
    pub token: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Stale,
    NotFound,
    NotEmpty,
    Invalid,
    Conflict,
    Full,
    TooLarge,
}

/// What became of a failed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    RetryAt(u64),
    DeadLettered,
    Buried,
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub queues: BTreeMap<&'static str, Queue>,
    pub mono: u64,
    pub wall: u64,
    next_seq: Seq,
    next_token: u64,
    incarnations: u64,
}

impl Model {
    pub fn new(wall: u64) -> Model {
        Model { wall, ..Model::default() }
    }

    fn new_queue(&mut self, options: Options) -> Queue {
        self.incarnations += 1;
        Queue { options, incarnation: self.incarnations, ..Queue::default() }
    }

    pub fn open_queue(&mut self, name: &'static str) {
        if !self.queues.contains_key(name) {
            let queue = self.new_queue(Options::default());
            self.queues.insert(name, queue);
        }
    }

    pub fn declare(&mut self, name: &'static str, options: Options) -> Result<(), Refused> {
        if !options.backoff.is_possible() {
            return Err(Refused::Invalid);
        }
        let mut next = options.dead_letter;
        while let Some(dead) = next {
            if dead == name {
                return Err(Refused::Invalid);
            }
            next = self.queues.get(dead).and_then(|queue| queue.options.dead_letter);
        }
        let there = self.queues.get(name).map_or(0, |queue| queue.messages.len());
        if options.max_messages.is_some_and(|most| there as u64 > most) {
            return Err(Refused::Conflict);
        }
        if let Some(dead) = options.dead_letter {
            self.open_queue(dead);
        }
        self.open_queue(name);
        let queue = self.queues.get_mut(name).unwrap();
        queue.window.trim(options.window.1);
        queue.options = options;
        Ok(())
    }

    pub fn remove(&mut self, name: &'static str) -> Result<(), Refused> {
        let queue = self.queues.get(name).ok_or(Refused::NotFound)?;
        if queue.messages.values().any(|message| !message.is_fading(self.wall)) {
            return Err(Refused::NotEmpty);
        }
        self.queues.remove(name);
        Ok(())
    }

    /// Makes room for `count` messages, if there is none.
    pub fn make_room(&mut self, name: &'static str, count: u64) -> Result<(), Refused> {
        self.observe();
        let queue = &self.queues[name];
        if queue.options.max_messages.is_some_and(|most| count > most) {
            return Err(Refused::TooLarge);
        }
        let beyond = queue.beyond(count) as usize;
        let victims = queue.victims();
        if beyond > 0 && (!queue.options.drops || victims.len() < beyond) {
            return Err(Refused::Full);
        }
        for seq in victims.into_iter().take(beyond) {
            if self.queues[name].options.dead_letter.is_none() {
                self.queues.get_mut(name).unwrap().messages.remove(&seq);
            } else if !self.try_move(name, seq) {
                return Err(Refused::Full);
            }
        }
        Ok(())
    }

    pub fn insert(
        &mut self,
        name: &'static str,
        payload: Vec<u8>,
        priority: u8,
        headers: Headers,
        delay: u64,
    ) -> Seq {
        let origin = self.next_seq;
        let seq = self.insert_as(name, payload, priority, headers, origin);
        if delay > 0 {
            let message = self.queues.get_mut(name).unwrap().messages.get_mut(&seq);
            message.unwrap().place = Place::Delayed(self.wall + delay);
        }
        seq
    }

    fn insert_as(
        &mut self,
        name: &'static str,
        payload: Vec<u8>,
        priority: u8,
        headers: Headers,
        origin: Seq,
    ) -> Seq {
        let seq = self.next_seq;
        self.next_seq += 1;
        let message = Message {
            payload,
            priority,
            headers,
            id: None,
            origin,
            group: None,
            delivered: false,
            waits: false,
            unrecorded: false,
            from: None,
            place: Place::Untouched,
            attempts: 0,
            spared: false,
            holder: None,
            was_due: None,
            expiry: None,
        };
        self.queues.get_mut(name).unwrap().messages.insert(seq, message);
        seq
    }

    /// An insert with this key returned the id that is `known` for it, or has inserted a message.
    pub fn check_key(&mut self, name: &str, key: u8, known: Option<u64>) {
        let queue = self.queues.get_mut(name).unwrap();
        queue.window.check(key, known, self.mono, queue.options.window.0);
    }

    pub fn note_key(&mut self, name: &str, key: u8, id: u64) {
        let offset = self.offset();
        let queue = self.queues.get_mut(name).unwrap();
        queue.window.add(key, id, self.mono, offset);
        queue.window.trim(queue.options.window.1);
    }

    fn offset(&self) -> i64 {
        self.wall as i64 - self.mono as i64
    }

    /// The wall clock was set.
    pub fn set_wall(&mut self, wall: u64) {
        self.wall = wall;
        let offset = self.offset();
        self.queues.values_mut().for_each(|queue| queue.window.clock_set(offset));
    }

    /// Lets what is due become ready, and what has outlived its lease.
    pub fn observe(&mut self) {
        for queue in self.queues.values_mut() {
            for message in queue.messages.values_mut() {
                match message.place {
                    Place::Delayed(due) if due <= self.wall => {
                        message.place = Place::GivenBack;
                        message.was_due = Some(due);
                    }
                    Place::InFlight(Some(end)) if end <= self.mono => {
                        queue.streak += 1;
                        message.place = Place::GivenBack;
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whether a message that somebody holds may be gone.
    pub fn is_fading(&mut self, held: Held) -> bool {
        let wall = self.wall;
        self.held(held).is_ok_and(|message| message.is_fading(wall))
    }

    /// A message that had expired turned out to be gone.
    pub fn forget(&mut self, held: Held) {
        self.queues.get_mut(held.queue).unwrap().messages.remove(&held.seq);
    }

    /// All that have expired are gone.
    pub fn sweep(&mut self) {
        for queue in self.queues.values_mut() {
            queue.messages.retain(|_, message| !message.is_fading(self.wall));
        }
    }

    /// Whether there are messages that expire: in this queue, or in any.
    pub fn has_expiring(&self, name: Option<&str>) -> bool {
        let queues = self.queues.iter().filter(|(queue, _)| name.is_none_or(|n| n == **queue));
        queues.flat_map(|(_, queue)| queue.messages.values()).any(|m| m.expiry.is_some())
    }

    /// Takes up to `max`. A message without attempts left goes out of circulation when it is its turn, and ends a batch.
    pub fn get(&mut self, name: &'static str, max: usize) -> Vec<Held> {
        let mut taken = Vec::new();
        while taken.len() < max {
            let queue = self.queues.get_mut(name).unwrap();
            queue.pause_if_failing();
            if queue.paused.is_some() {
                break;
            }
            let Some(seq) = queue.next(self.wall) else { break };
            if queue.is_exhausted(seq) {
                if !taken.is_empty() {
                    break;
                }
                self.retire(name, seq);
                continue;
            }
            self.next_token += 1;
            let token = self.next_token;
            let deadline = queue.options.lease.map(|lease| self.mono + lease);
            let incarnation = queue.incarnation;
            let message = queue.messages.get_mut(&seq).unwrap();
            message.place = Place::InFlight(deadline);
            message.unrecorded = false;
            message.delivered = true;
            message.spared = false;
            if let Some(group) = message.group {
                queue.holders.insert(group, (seq, true));
            }
            message.attempts += 1;
            message.holder = Some(token);
            message.was_due = None;
            taken.push(Held { queue: name, incarnation, seq, token });
        }
        taken
    }

    /// Moves a message to the dead letter queue, or buries it.
    fn retire(&mut self, name: &'static str, seq: Seq) -> Fate {
        if self.try_move(name, seq) {
            return Fate::DeadLettered;
        }
        let messages = &mut self.queues.get_mut(name).unwrap().messages;
        let message = messages.get_mut(&seq).unwrap();
        message.place = Place::Buried;
        message.holder = None;
        Fate::Buried
    }

    /// Whether there is a dead letter queue, with room.
    fn try_move(&mut self, name: &'static str, seq: Seq) -> bool {
        let Some(dead) = self.queues[name].options.dead_letter else { return false };
        self.open_queue(dead);
        if self.make_room(dead, 1).is_err() {
            return false;
        }
        let messages = &mut self.queues.get_mut(name).unwrap().messages;
        let message = messages.remove(&seq).unwrap();
        self.insert_moved(dead, message, name);
        true
    }

    fn insert_moved(&mut self, to: &'static str, moved: Message, from: &'static str) {
        let Message { payload, priority, headers, origin, group, .. } = moved;
        let seq = self.insert_as(to, payload, priority, headers, origin);
        let message = self.queues.get_mut(to).unwrap().messages.get_mut(&seq).unwrap();
        message.from = Some(from);
        message.group = group;
    }

    /// Returns how many were moved.
    pub fn redrive(&mut self, name: &'static str, max: usize) -> Result<u64, Refused> {
        let home = |seq: &Seq| {
            let from = self.queues[name].messages[seq].from;
            from.filter(|from| *from != name && self.queues.contains_key(from))
        };
        let ready = self.queues[name]
            .at(self.wall, |place| matches!(place, Place::Untouched | Place::GivenBack));
        let back: Vec<_> = ready.into_iter().filter_map(|seq| Some((seq, home(&seq)?))).collect();
        let mut moved = 0;
        for (seq, home) in back {
            if moved == max {
                break;
            }
            self.observe();
            if self.queues[home].beyond(1) > 0 {
                match moved {
                    0 => return Err(Refused::Full),
                    _ => break,
                }
            }
            let messages = &mut self.queues.get_mut(name).unwrap().messages;
            let message = messages.remove(&seq).unwrap();
            self.insert_moved(home, message, home);
            moved += 1;
        }
        Ok(moved as u64)
    }

    pub fn pause(&mut self, name: &'static str) {
        self.queues.get_mut(name).unwrap().paused.get_or_insert(0);
    }

    pub fn resume(&mut self, name: &'static str) {
        self.observe();
        let queue = self.queues.get_mut(name).unwrap();
        let failing = queue.is_failing();
        if failing || queue.paused.is_some_and(|failures| failures > 0) {
            queue.spare();
        }
        if queue.paused.take().is_some() || failing {
            queue.streak = 0;
        }
    }

    /// Returns how many there were.
    pub fn kick(&mut self, name: &'static str, max: usize) -> u64 {
        let queue = self.queues.get_mut(name).unwrap();
        queue.pass_on_groups();
        let buried = queue.messages.values_mut().filter(|message| message.place == Place::Buried);
        let mut kicked = 0;
        for message in buried.take(max) {
            (message.place, message.attempts, message.was_due) = (Place::GivenBack, 0, None);
            message.delivered = false;
            kicked += 1;
        }
        kicked
    }

    /// Whether message `id` is in the queue and may be gone.
    pub fn has_fading(&self, name: &str, id: u64) -> bool {
        let mut messages = self.queues[name].messages.values();
        messages.any(|message| message.id == Some(id) && message.is_fading(self.wall))
    }

    pub fn delete_by_id(&mut self, name: &'static str, id: u64) -> bool {
        let messages = &mut self.queues.get_mut(name).unwrap().messages;
        let seq = messages.iter().find(|(_, message)| message.id == Some(id)).map(|(seq, _)| *seq);
        seq.and_then(|seq| messages.remove(&seq)).is_some()
    }

    fn held(&mut self, held: Held) -> Result<&mut Message, Refused> {
        let queue = self.queues.get_mut(held.queue);
        let queue = queue.filter(|queue| queue.incarnation == held.incarnation);
        let message = queue.ok_or(Refused::NotFound)?.messages.get_mut(&held.seq);
        message.filter(|message| message.holder == Some(held.token)).ok_or(Refused::Stale)
    }

    pub fn delete(&mut self, held: Held) -> Result<(), Refused> {
        self.held(held)?;
        let queue = self.queues.get_mut(held.queue).unwrap();
        queue.messages.remove(&held.seq);
        queue.streak = 0;
        Ok(())
    }

    fn give_back(&mut self, held: Held, delay: u64) -> Result<u64, Refused> {
        let due = self.wall + delay;
        let message = self.held(held)?;
        message.holder = None;
        message.place = if delay == 0 { Place::GivenBack } else { Place::Delayed(due) };
        message.was_due = None;
        Ok(due)
    }

    pub fn release(&mut self, held: Held, delay: u64) -> Result<(), Refused> {
        self.give_back(held, delay)?;
        let message = self.queues.get_mut(held.queue).unwrap().messages.get_mut(&held.seq).unwrap();
        // The last one of a message that was spared has been taken off already.
        message.attempts = message.attempts.saturating_sub(1);
        Ok(())
    }

    pub fn fail(&mut self, held: Held, delay: Option<u64>) -> Result<Fate, Refused> {
        let message = self.held(held)?;
        let (id, attempts) = (message.id.unwrap(), message.attempts);
        let is_in_flight = matches!(message.place, Place::InFlight(_));
        let queue = self.queues.get_mut(held.queue).unwrap();
        queue.streak += u32::from(is_in_flight);
        let spared = queue.is_failing() || queue.paused.is_some_and(|failures| failures > 0);
        let exhausted = queue.is_exhausted(held.seq);
        if exhausted && !spared {
            return Ok(self.retire(held.queue, held.seq));
        }
        let delay = delay.unwrap_or_else(|| queue.options.backoff.delay(id, attempts));
        let due = self.give_back(held, delay)?;
        let queue = self.queues.get_mut(held.queue).unwrap();
        queue.messages.get_mut(&held.seq).unwrap().attempts -= u32::from(exhausted);
        queue.pause_if_failing();
        Ok(Fate::RetryAt(due))
    }

    pub fn bury(&mut self, held: Held) -> Result<(), Refused> {
        self.held(held)?;
        self.retire(held.queue, held.seq);
        Ok(())
    }

    pub fn extend(&mut self, held: Held, lease: u64) -> Result<(), Refused> {
        let deadline = self.mono + lease;
        self.held(held)?.place = Place::InFlight(Some(deadline));
        Ok(())
    }

    /// A delivery goes out of scope.
    pub fn drop(&mut self, held: Held) {
        let _ = match self.queues.get(held.queue).map(|queue| queue.options.release_on_drop) {
            Some(true) => self.release(held, 0),
            Some(false) => self.fail(held, None).map(|_| ()),
            None => Ok(()),
        };
    }

    /// How many were purged, and how many more there may have been.
    pub fn purge(&mut self, name: &'static str, hits: impl Fn(Place) -> bool) -> (u64, u64) {
        let wall = self.wall;
        let messages = &mut self.queues.get_mut(name).unwrap().messages;
        let (mut purged, mut fading) = (0, 0);
        messages.retain(|_, message| {
            let hit = hits(message.place);
            let counter = if message.is_fading(wall) { &mut fading } else { &mut purged };
            *counter += u64::from(hit);
            !hit
        });
        (purged, fading)
    }

    /// The process ends, by a close (which gives back uncounted) or a kill. Returns how many were in flight.
    pub fn end(&mut self, closed: bool) -> u64 {
        let (mono, offset) = (self.mono, self.offset());
        self.queues.values_mut().for_each(|queue| queue.window.reopen(closed, mono, offset));
        let mut in_flight = 0;
        for queue in self.queues.values_mut() {
            queue.pass_on_groups();
            queue.streak = 0;
            queue.unlearned = true;
        }
        for message in self.queues.values_mut().flat_map(|queue| queue.messages.values_mut()) {
            message.holder = None;
            message.waits = false;
            if std::mem::take(&mut message.unrecorded) {
                message.place = Place::Untouched;
            }
            if matches!(message.place, Place::InFlight(_)) {
                in_flight += u64::from(!message.spared);
                message.place = Place::GivenBack;
                message.attempts = message.attempts.saturating_sub(closed.into());
            }
        }
        in_flight
    }

    /// The latest of the times that have come and that the log may still say are to come.
    pub fn latest_due(&self) -> u64 {
        let messages = self.queues.values().flat_map(|queue| queue.messages.values());
        messages.filter_map(|message| message.was_due).max().unwrap_or(0)
    }
}
