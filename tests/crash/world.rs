//! What a store must hold: the model that recovered stores are compared with.
//!
//! A [`World`] is the state that a prefix of the log describes. Every record that an operation appends makes a new
//! one, so that "the log has no holes" becomes "what was recovered equals one of these worlds". It knows nothing of
//! files, syncs or crashes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millpond::{AtLimit, Backoff, Delivery, ErrorKind, QueueOptions};

/// The key of a header with a number.
const HEADER: &str = "number";

/// A payload, made from a number so that it need not be kept, and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    pub len: usize,
    pub checksum: u32,
    pub priority: u8,
    /// The number in its header.
    pub header: Option<i64>,
    /// Its deduplication key.
    pub key: Option<u8>,
    pub group: Option<u8>,
}

/// How many deduplication keys there are.
pub const KEYS: u8 = 4;

/// How long, and how many of them, the queues know.
const WINDOW_MS: u64 = 15_000;
const WINDOW_KEYS: usize = 3;

impl Content {
    /// Of a plain message.
    pub fn of(payload: &[u8]) -> Content {
        let checksum = crc32fast::hash(payload);
        Content { len: payload.len(), checksum, priority: 0, header: None, key: None, group: None }
    }

    /// Of a message that is to be inserted into `queue`: in one of the queues they differ in more than their payloads.
    pub fn to_insert(queue: &str, tag: u64, payload: &[u8]) -> Content {
        let plain = Content::of(payload);
        match queue {
            "b" => {
                let header = tag.is_multiple_of(4).then_some(tag as i64);
                Content { priority: (tag % 3) as u8, header, ..plain }
            }
            // Every other one belongs to one of two groups.
            "a" => Content { group: [Some(1), None, Some(2), None][tag as usize % 4], ..plain },
            // Every other one expires.
            "t" => Content { header: tag.is_multiple_of(2).then_some(-(tag as i64)), ..plain },
            _ => plain,
        }
    }

    /// How long the message lives.
    pub fn ttl_ms(&self) -> Option<u64> {
        self.header.is_some_and(|number| number < 0).then_some(1500)
    }

    /// For how long the message is delayed.
    pub fn delay_ms(&self) -> u64 {
        if self.header.is_some_and(|number| number > 0 && number % 8 == 0) { 700 } else { 0 }
    }

    pub fn delivered(delivery: &Delivery) -> Content {
        let header = delivery.headers().get(HEADER).and_then(|value| value.as_integer());
        let key = delivery.dedup_key().map(|key| key[0]);
        let group = delivery.group().map(|group| group[0]);
        let plain = Content::of(delivery.payload());
        Content { priority: delivery.priority(), header, key, group, ..plain }
    }

    /// The message with this content.
    pub fn message<'a>(&self, payload: &'a [u8]) -> millpond::Message<'a> {
        let delay = Duration::from_millis(self.delay_ms());
        let message = millpond::Message::new(payload).priority(self.priority).delay(delay);
        let message = match self.header {
            Some(number) => message.header(HEADER, number),
            None => message,
        };
        let message = match self.ttl_ms() {
            Some(ttl) => message.ttl(Duration::from_millis(ttl)),
            None => message,
        };
        let message = match self.group {
            Some(group) => message.group(vec![group]),
            None => message,
        };
        match self.key {
            Some(key) => message.dedup_key(vec![key]),
            None => message,
        }
    }
}

/// Inserts a message with each key into a queue with nothing to get: the id of the one that was inserted with it before,
/// or none. Then there is a new one, and it is deleted.
pub fn probe_keys(queue: &millpond::Queue) -> Result<Vec<Option<u64>>, String> {
    let words = |error: millpond::Error| format!("with a key: {error}");
    let probe = |key| {
        let message = millpond::Message::new("probe").dedup_key(vec![key]);
        let id = match queue.insert(message) {
            // What is known needs no room.
            Err(error) if *error.kind() == ErrorKind::QueueFull => return Ok(None),
            inserted => inserted.map_err(words)?,
        };
        let Some(delivery) = queue.try_get().map_err(words)? else { return Ok(Some(id.as_u64())) };
        if delivery.id() != id || delivery.dedup_key() != Some(&[key]) {
            return Err(format!("got {delivery:?} after the insert of {id} with key {key}"));
        }
        delivery.delete().map_err(words)?;
        Ok(None)
    };
    (0..KEYS).map(probe).collect()
}

pub fn payload(tag: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        bytes.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_mul(0xd129_0d3b_3f4d_6b61).wrapping_add(0x1234_5677);
    }
    bytes.truncate(len);
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Untouched,
    /// Held until this time of the monotonic clock.
    InFlight(u64),
    /// Its lease ran out, or it was given back.
    GivenBack,
    /// Until this time of the wall clock.
    Delayed(u64),
    Buried,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub origin: u64,
    /// The queue that has given it up.
    pub from: Option<&'static str>,
    pub content: Content,
    pub attempts: u32,
    pub place: Place,
    /// Somebody has had it since it was inserted, or kicked.
    pub delivered: bool,
    /// It was passed over since another one holds its group; then it is as if it was given back.
    pub waits: bool,
    /// That is all that happened to it.
    pub unrecorded: bool,
    /// When its delay was or will be over, by the wall clock; 0 if it was not delayed since it was last delivered.
    pub due: u64,
    /// When it expires, by the wall clock.
    pub expiry: Option<u64>,
    /// Which delivery of the workload may settle it.
    pub token: u64,
}

impl Message {
    /// Whether it has expired and nobody holds it: it is not delivered any more, but nobody knows how long it is there.
    fn is_fading(&self, wall: u64) -> bool {
        let is_free = !matches!(self.place, Place::InFlight(_) | Place::Buried);
        is_free && self.expiry.is_some_and(|expiry| expiry <= wall)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub max_attempts: Option<u32>,
    pub dead_letter: Option<&'static str>,
    pub lease_ms: u64,
    /// The wait after the first failure, at most.
    pub backoff_ms: u64,
    /// If there are more, the oldest make room.
    pub max_messages: Option<usize>,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            max_attempts: None,
            dead_letter: None,
            lease_ms: 30 * 60 * 1000,
            backoff_ms: 100,
            max_messages: None,
        }
    }
}

impl Rules {
    pub fn options(&self) -> QueueOptions {
        let first = Duration::from_millis(self.backoff_ms);
        let backoff = match self.backoff_ms {
            0 => Backoff::Fixed(first),
            // When the message comes back, the store says.
            _ => Backoff::Exponential { first, max: 2 * first, jitter: 50 },
        };
        let options = QueueOptions::new()
            .lease(Some(Duration::from_millis(self.lease_ms)))
            .max_attempts(self.max_attempts)
            .backoff(backoff)
            .dedup_window(Duration::from_millis(WINDOW_MS), WINDOW_KEYS);
        let options = match self.max_messages {
            Some(most) => options.max_messages(most as u64).at_limit(AtLimit::DropOldest),
            None => options,
        };
        match self.dead_letter {
            Some(name) => options.dead_letter(name),
            None => options,
        }
    }

    fn exhausted(&self, attempts: u32) -> bool {
        self.max_attempts.is_some_and(|most| attempts >= most)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Queue {
    pub rules: Rules,
    pub is_paused: bool,
    pub messages: BTreeMap<u64, Message>,
    /// Who holds each group, and whether it was delivered: the one that was last, until it is done with, and then the next
    /// of those that wait.
    holders: BTreeMap<u8, (u64, bool)>,
    /// The process has ended since these were asked for.
    unlearned: bool,
    /// The time of the wall clock that was last told.
    wall: u64,
    /// The last keys that were inserted, each with the id and the time of its message.
    window: Vec<(u8, u64, u64)>,
}

type Turn = (Reverse<u8>, bool, u64, u64);

/// The time on both clocks, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    pub mono: u64,
    pub wall: u64,
}

impl Queue {
    /// The message that a key is known for.
    pub fn known(&self, key: u8, wall: u64) -> Option<u64> {
        let mut known = self.window.iter().filter(|(_, _, at)| wall < at + WINDOW_MS);
        known.rfind(|(known, _, _)| *known == key).map(|(_, id, _)| *id)
    }

    /// A message was inserted with a key that was not known.
    pub fn note_key(&mut self, key: u8, id: u64, wall: u64) {
        self.window.push((key, id, wall));
        self.window.drain(..self.window.len().saturating_sub(WINDOW_KEYS));
    }

    /// What [`probe_keys`] finds when it inserts a message with each key: the id that is known for it, or none.
    fn probe_keys(&mut self, wall: u64) -> Vec<Option<u64>> {
        let probe = |key| {
            let known = self.known(key, wall);
            if known.is_none() {
                self.note_key(key, UNKNOWN_ID, wall);
            }
            known
        };
        (0..KEYS).map(probe).collect()
    }

    /// What can be delivered, and when it is its turn: by falling priority; of equals first those given back, then those
    /// that were delayed, by due time.
    fn deliverable(&self) -> impl Iterator<Item = (Turn, &Message)> {
        let there = self.messages.iter().filter(|(_, m)| !m.is_fading(self.wall));
        there.filter_map(|(id, m)| {
            let untouched = m.place == Place::Untouched;
            let turn = (Reverse(m.content.priority), untouched, m.due, *id);
            (untouched || m.place == Place::GivenBack).then_some((turn, m))
        })
    }

    /// How many messages may be gone or not.
    pub fn fading(&self, wall: u64) -> u64 {
        self.messages.values().filter(|message| message.is_fading(wall)).count() as u64
    }

    /// Whether nothing is left but what may be gone.
    pub fn is_fading(&self, wall: u64) -> bool {
        self.fading(wall) == self.messages.len() as u64
    }

    /// What nobody has touched, in order.
    pub fn untouched(&self) -> Vec<u64> {
        let untouched = self.deliverable().filter(|(_, m)| m.place == Place::Untouched);
        let mut turns: Vec<Turn> = untouched.map(|(turn, _)| turn).collect();
        turns.sort_unstable();
        turns.into_iter().map(|(_, _, _, id)| id).collect()
    }

    pub fn ids_at(&self, place: fn(Place) -> bool) -> Vec<u64> {
        self.messages.iter().filter(|(_, m)| place(m.place)).map(|(id, _)| *id).collect()
    }

    fn count(&self, place: impl Fn(Place) -> bool) -> u64 {
        self.messages.values().filter(|m| place(m.place)).count() as u64
    }

    /// Leases that have run out and delays that are over.
    fn advance(&mut self, now: Time) {
        self.wall = now.wall;
        for message in self.messages.values_mut() {
            let over = match message.place {
                Place::InFlight(until) => until <= now.mono,
                Place::Delayed(due) => due <= now.wall,
                _ => false,
            };
            if over {
                message.place = Place::GivenBack;
            }
        }
    }

    /// The message that must leave the queue before anything of it is delivered.
    pub fn first_exhausted(&self) -> Option<u64> {
        let mut trial = self.clone();
        let id = trial.next_admitted(&[], |_| true)?;
        trial.is_exhausted(id).then_some(id)
    }

    /// The next message that may go out, but for those that are taken. Those before it have to wait for their groups.
    fn next_admitted(&mut self, taken: &[u64], is_visible: impl Fn(u64) -> bool) -> Option<u64> {
        self.pass_on_groups();
        loop {
            let free = self
                .deliverable()
                .filter(|((_, _, _, id), m)| !m.waits && is_visible(*id) && !taken.contains(id));
            let ((_, _, _, id), _) = free.min_by_key(|(turn, _)| *turn)?;
            if self.may_go(id) {
                return Some(id);
            }
            let message = self.messages.get_mut(&id)?;
            message.waits = true;
            if message.place == Place::Untouched {
                message.place = Place::GivenBack;
                message.unrecorded = true;
            }
        }
    }

    fn may_go(&mut self, id: u64) -> bool {
        let Some(group) = self.messages[&id].content.group else { return true };
        if std::mem::take(&mut self.unlearned) {
            let messages = &self.messages;
            self.holders.retain(|_, (holder, _)| messages[holder].delivered);
            self.holders.values_mut().for_each(|(_, is_out)| *is_out = true);
        }
        // All of a group have the same priority.
        self.holders.get(&group).is_none_or(|(holder, _)| *holder == id)
    }

    /// Whoever is done with lets go of its group, and the next of those that wait holds it.
    fn pass_on_groups(&mut self) {
        let messages = &self.messages;
        let done = |id: &u64| messages.get(id).is_none_or(|m| m.place == Place::Buried);
        let free = self.holders.iter().filter(|(_, (id, _))| done(id)).map(|(group, _)| *group);
        for group in free.collect::<Vec<u8>>() {
            self.holders.remove(&group);
            let waiting = self.messages.iter_mut().filter(|(_, m)| m.waits);
            let waiting = waiting.filter(|(_, message)| message.content.group == Some(group));
            let next = waiting.min_by_key(|(id, m)| (Reverse(m.content.priority), m.due, **id));
            if let Some((id, message)) = next {
                message.waits = false;
                self.holders.insert(group, (*id, false));
            }
        }
    }

    /// The messages that make room for `count` more. Only where all have the same priority.
    pub fn make_room(&self, count: usize) -> Result<Vec<u64>, ErrorKind> {
        let Some(most) = self.rules.max_messages else { return Ok(Vec::new()) };
        if count > most {
            return Err(ErrorKind::TooLarge);
        }
        let beyond = (self.messages.len() + count).saturating_sub(most);
        let mut turns: Vec<Turn> = self.deliverable().map(|(turn, _)| turn).collect();
        turns.sort_unstable();
        if turns.len() < beyond {
            return Err(ErrorKind::QueueFull);
        }
        Ok(turns.into_iter().map(|(_, _, _, id)| id).take(beyond).collect())
    }

    pub fn is_exhausted(&self, id: u64) -> bool {
        self.messages.get(&id).is_some_and(|m| self.rules.exhausted(m.attempts))
    }

    /// What a get of up to `max` takes once nothing exhausted stands in front, of what may be seen. They hold their groups
    /// from then on.
    pub fn take_next(&mut self, max: usize, is_visible: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut taken = Vec::new();
        while taken.len() < max {
            let Some(id) = self.next_admitted(&taken, &is_visible) else { break };
            if self.is_exhausted(id) {
                break;
            }
            if let Some(group) = self.messages[&id].content.group {
                self.holders.insert(group, (id, true));
            }
            taken.push(id);
        }
        taken
    }
}

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

/// The queue that has given a delivered message up, if one has.
pub fn came_from(delivery: &Delivery) -> Option<&'static str> {
    let origin = delivery.origin()?;
    ["a", "b", "t", DEAD].into_iter().find(|name| *name == origin.queue())
}

/// The queue that dead letters go to.
pub const DEAD: &str = "dead";

/// Ids from here on stand for those that a recovered store gives out itself.
const UNKNOWN_ID: u64 = 1 << 60;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub ready: u64,
    pub delayed: u64,
    pub buried: u64,
}

/// A message as it was delivered.
#[derive(Clone, Copy, Debug)]
pub struct Got {
    pub id: u64,
    pub origin: u64,
    pub from: Option<&'static str>,
    pub attempt: u32,
    pub content: Content,
}

impl PartialEq for Got {
    fn eq(&self, other: &Got) -> bool {
        let same_id = self.id == other.id || self.id.max(other.id) >= UNKNOWN_ID;
        same_id
            && (self.origin, self.from, self.attempt, self.content)
                == (other.origin, other.from, other.attempt, other.content)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeenQueue {
    pub stats: Stats,
    /// How many of those that are ready or delayed may be gone.
    pub fading: u64,
    /// It was resumed before it was drained.
    pub is_paused: bool,
    /// All that was delivered, in order: first what was ready, then what was delayed.
    pub got: Vec<Got>,
    /// For each deduplication key, the id of the message that it is known for.
    pub keys: Vec<Option<u64>>,
    pub buried_in_the_end: u64,
}

/// Everything that can be seen of a store from outside.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub queues: BTreeMap<String, SeenQueue>,
    moved: u64,
}

impl Seen {
    /// The first difference in words; None if there is none.
    pub fn difference(&self, expected: &Seen) -> Option<String> {
        let (have, want): (Vec<_>, Vec<_>) =
            (self.queues.keys().collect(), expected.queues.keys().collect());
        if have != want {
            return Some(format!("queues {have:?}, expected {want:?}"));
        }
        for (name, want) in &expected.queues {
            let have = &self.queues[name];
            let waiting = |stats: Stats| stats.ready + stats.delayed;
            let gone = waiting(want.stats).wrapping_sub(waiting(have.stats));
            let alike = if want.fading == 0 {
                have.stats == want.stats
            } else {
                gone <= want.fading && have.stats.buried == want.stats.buried
            };
            if !alike {
                return Some(format!("{name}: {:?}, expected {:?}", have.stats, want.stats));
            }
            if have.is_paused != want.is_paused {
                let (a, b) = (have.is_paused, want.is_paused);
                return Some(format!("{name}: paused is {a}, expected {b}"));
            }
            let pairs = have.got.iter().zip(&want.got).enumerate();
            if let Some((n, (a, b))) = pairs.into_iter().find(|(_, (a, b))| a != b) {
                return Some(format!("{name}: delivery {n} is {a:?}, expected {b:?}"));
            }
            let lens = (have.got.len(), want.got.len());
            if lens.0 != lens.1 {
                return Some(format!("{name}: {} deliveries, expected {}", lens.0, lens.1));
            }
            if have.keys != want.keys {
                return Some(format!("{name}: keys {:?}, expected {:?}", have.keys, want.keys));
            }
            if have.buried_in_the_end != want.buried_in_the_end {
                let (a, b) = (have.buried_in_the_end, want.buried_in_the_end);
                return Some(format!("{name}: {a} buried in the end, expected {b}"));
            }
        }
        None
    }
}
