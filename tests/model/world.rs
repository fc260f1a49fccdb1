//! The real store beside the model: every operation is done to both, and what they answer is compared.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millpond::testing::{Clock, Disk, step};
use millpond::{
    AtLimit, Backoff, Delivery, Durability, ErrorKind, Fate, Message, OnDrop, Paused, Queue,
    QueueOptions, State, Store,
};

use crate::options::{self, Options};
use crate::queue::{self, Headers, Place, Seq};
use crate::reference::{self, Held, Model, Refused};

pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// Of headers.
const KEYS: [&str; 3] = ["x", "trace", "a longer key"];

/// 2023-11-14.
const WALL_MS: u64 = 1_700_000_000_000;

pub struct World {
    disk: Disk,
    clock: Clock,
    store: Store,
    sync: bool,
    pub model: Model,
    held: Vec<(Delivery, Held)>,
    /// Handles of queues that were removed since.
    removed: Vec<Queue>,
    highest_id: u64,
    count: usize,
}

fn open(disk: &Disk, clock: &Clock, sync: bool) -> Store {
    let durability = if sync { Durability::Sync } else { Durability::Process };
    let options = Store::options().segment_bytes(64 << 10).durability(durability);
    options.open_simulated(disk, clock).unwrap()
}

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn kind(refused: Refused) -> ErrorKind {
    match refused {
        Refused::Stale => ErrorKind::StaleDelivery,
        Refused::NotFound => ErrorKind::NotFound,
        Refused::NotEmpty => ErrorKind::NotEmpty,
        Refused::Invalid => ErrorKind::InvalidArgument,
        Refused::Conflict => ErrorKind::Conflict,
        Refused::Full => ErrorKind::QueueFull,
        Refused::TooLarge => ErrorKind::TooLarge,
    }
}

fn backoff(model: &options::Backoff) -> Backoff {
    match model {
        options::Backoff::Fixed(delay) => Backoff::Fixed(ms(*delay)),
        options::Backoff::Exponential { first, max, jitter } => {
            Backoff::Exponential { first: ms(*first), max: ms(*max), jitter: *jitter }
        }
        options::Backoff::List(waits) => Backoff::List(waits.iter().map(|w| ms(*w)).collect()),
    }
}

/// Both did it, or both refused for the same reason.
fn same<T: PartialEq + std::fmt::Debug>(
    real: millpond::Result<T>,
    model: Result<T, Refused>,
    what: &str,
) {
    assert_eq!(real.map_err(|error| error.kind().clone()), model.map_err(kind), "{what}");
}

fn is_at(place: Place, state: State) -> bool {
    match state {
        State::Ready => matches!(place, Place::Untouched | Place::GivenBack),
        State::InFlight => matches!(place, Place::InFlight(_)),
        State::Delayed => matches!(place, Place::Delayed(_)),
        _ => place == Place::Buried,
    }
}

impl World {
    pub fn new(sync: bool) -> World {
        let (disk, clock) = (Disk::new(), Clock::new());
        clock.set_wall_ms(WALL_MS);
        let store = open(&disk, &clock, sync);
        World {
            disk,
            clock,
            store,
            sync,
            model: Model::new(WALL_MS),
            held: Vec::new(),
            removed: Vec::new(),
            highest_id: 0,
            count: 0,
        }
    }

    fn queue(&mut self, name: &'static str) -> Queue {
        self.model.open_queue(name);
        self.store.queue(name).unwrap()
    }

    fn payload(&mut self, bytes: usize) -> Vec<u8> {
        self.count += 1;
        format!("{} ", self.count).bytes().cycle().take(bytes).collect()
    }

    fn new_id(&mut self, name: &'static str, seq: Seq, id: u64) {
        assert!(id > self.highest_id, "id {id} is not above {}", self.highest_id);
        self.highest_id = id;
        self.model.queues.get_mut(name).unwrap().messages.get_mut(&seq).unwrap().id = Some(id);
    }

    pub fn insert(&mut self, name: &'static str, bytes: usize, priority: u8, headers: usize) {
        let queue = self.queue(name);
        let payload = self.payload(bytes);
        let headers: Headers = KEYS.into_iter().take(headers).zip(self.count as i64..).collect();
        let message = headers.iter().fold(Message::new(&payload), |m, (k, v)| m.header(*k, *v));
        let real = queue.try_insert(message.priority(priority));
        let Some(id) = self.room(name, 1, real) else { return };
        let seq = self.model.insert(name, payload, priority, headers, 0);
        let id = id.as_u64();
        self.new_id(name, seq, id);
    }

    pub fn insert_delayed(&mut self, name: &'static str, bytes: usize, priority: u8, delay: u64) {
        let queue = self.queue(name);
        let payload = self.payload(bytes);
        let message = Message::new(&payload).priority(priority);
        let message = if delay.is_multiple_of(2) {
            message.delay(ms(delay))
        } else {
            message.not_before(UNIX_EPOCH + ms(self.model.wall + delay))
        };
        let real = queue.try_insert(message);
        let Some(id) = self.room(name, 1, real) else { return };
        let seq = self.model.insert(name, payload, priority, Vec::new(), delay);
        self.new_id(name, seq, id.as_u64());
    }

    /// Makes room in the model as the store has, or finds that both are full.
    fn room<T>(&mut self, name: &'static str, count: u64, real: millpond::Result<T>) -> Option<T> {
        let refused = self.model.make_room(name, count).map_err(kind).err();
        match (real, refused) {
            (Ok(done), None) => Some(done),
            (Err(error), Some(kind)) if *error.kind() == kind => None,
            (real, refused) => panic!("{:?}, and in the model {refused:?}", real.err()),
        }
    }

    /// Only where expired messages are deleted: in which order they move to a dead letter queue is nobody's business.
    pub fn insert_mortal(&mut self, name: &'static str, priority: u8, ttl: u64) {
        let queue = self.queue(name);
        let options = &self.model.queues[name].options;
        if options.dead_letter.is_some() || options.max_messages.is_some() {
            return;
        }
        let payload = self.payload(20);
        let id = queue.insert(Message::new(&payload).priority(priority).ttl(ms(ttl))).unwrap();
        let seq = self.model.insert(name, payload, priority, Vec::new(), 0);
        let expiry = self.model.wall + ttl;
        let message = self.model.queues.get_mut(name).unwrap().messages.get_mut(&seq).unwrap();
        message.expiry = Some(expiry);
        self.new_id(name, seq, id.as_u64());
    }

    /// One message for each group, in a batch if there are several.
    pub fn insert_grouped(&mut self, name: &'static str, groups: &[u8], priority: u8, delay: u64) {
        let queue = self.queue(name);
        let blocks = self.model.queues[name].options.max_messages.is_some();
        let blocks = blocks && !self.model.queues[name].options.drops && groups.len() > 1;
        if blocks {
            // It might wait for ever.
            return;
        }
        let payloads: Vec<Vec<u8>> = groups.iter().map(|_| self.payload(40)).collect();
        let mut messages = payloads.iter().zip(groups).map(|(payload, group)| {
            Message::new(payload).group(vec![*group]).priority(priority).delay(ms(delay))
        });
        let real = match groups.len() {
            1 => queue.try_insert(messages.next().unwrap()).map(|id| vec![id]),
            _ => queue.insert_batch(messages),
        };
        let Some(ids) = self.room(name, groups.len() as u64, real) else { return };
        for ((id, group), payload) in ids.iter().zip(groups).zip(payloads) {
            let seq = self.model.insert(name, payload, priority, Vec::new(), delay);
            let queue = self.model.queues.get_mut(name).unwrap();
            queue.messages.get_mut(&seq).unwrap().group = Some(*group);
            self.new_id(name, seq, id.as_u64());
        }
    }

    /// One message for each key, in a batch if there are several.
    pub fn insert_keyed(&mut self, name: &'static str, keys: &[u8], priority: u8) {
        let queue = self.queue(name);
        if self.model.queues[name].options.max_messages.is_some() {
            // How much room it needs depends on the keys that are known; see `tests/limits.rs`.
            return;
        }
        let payloads: Vec<Vec<u8>> = keys.iter().map(|_| self.payload(30)).collect();
        let messages = payloads.iter().zip(keys);
        let mut messages = messages
            .map(|(payload, key)| Message::new(payload).dedup_key(vec![*key]).priority(priority));
        let ids = match keys.len() {
            1 => messages.by_ref().take(1).map(|message| queue.insert(message).unwrap()).collect(),
            _ => queue.insert_batch(messages).unwrap(),
        };
        let highest_id = self.highest_id;
        let mut new: Vec<(u8, u64)> = Vec::new();
        for ((id, key), payload) in ids.iter().map(|id| id.as_u64()).zip(keys).zip(payloads) {
            if let Some((_, first)) = new.iter().find(|(other, _)| other == key) {
                assert_eq!(id, *first, "key {key} is in the batch twice");
                continue;
            }
            let is_new = id > highest_id;
            self.model.check_key(name, *key, (!is_new).then_some(id));
            if is_new {
                let seq = self.model.insert(name, payload, priority, Vec::new(), 0);
                self.new_id(name, seq, id);
                new.push((*key, id));
            }
        }
        new.into_iter().for_each(|(key, id)| self.model.note_key(name, key, id));
    }

    /// Every other message of the batch has this priority, and the others this delay.
    pub fn insert_batch(&mut self, name: &'static str, count: usize, priority: u8, delay: u64) {
        let queue = self.queue(name);
        let priority = |n: usize| if n.is_multiple_of(2) { priority } else { 0 };
        let delay = |n: usize| if n.is_multiple_of(2) { 0 } else { delay };
        let payloads: Vec<Vec<u8>> = (0..count).map(|n| self.payload(n * 7)).collect();
        let messages = payloads.iter().enumerate();
        let messages = messages
            .map(|(n, payload)| Message::new(payload).priority(priority(n)).delay(ms(delay(n))));
        let blocks = self.model.queues[name].options.max_messages.is_some();
        if blocks && !self.model.queues[name].options.drops {
            // It might wait for ever.
            return;
        }
        let real = queue.insert_batch(messages);
        let ids = if count == 0 {
            real.unwrap()
        } else {
            let Some(ids) = self.room(name, count as u64, real) else { return };
            ids
        };
        assert_eq!(ids.len(), count);
        assert!(ids.windows(2).all(|pair| pair[0].as_u64() + 1 == pair[1].as_u64()));
        for (n, (id, payload)) in ids.iter().zip(payloads).enumerate() {
            let seq = self.model.insert(name, payload, priority(n), Vec::new(), delay(n));
            self.new_id(name, seq, id.as_u64());
        }
    }

    /// Compares a message with the model's, which learns the ids of moved ones here.
    fn same_message(&mut self, name: &'static str, seq: Seq, id: u64, payload: &[u8]) {
        let message = self.model.queues.get_mut(name).unwrap().messages.get_mut(&seq).unwrap();
        assert_eq!(*message.id.get_or_insert(id), id);
        assert!(message.payload == payload, "the payload of message {id}");
        self.highest_id = self.highest_id.max(id);
    }

    pub fn get(&mut self, name: &'static str, max: Option<usize>) {
        let queue = self.queue(name);
        let real = match max {
            Some(max) => queue.get_batch(max, Duration::ZERO).unwrap(),
            None if self.count.is_multiple_of(2) => Vec::from_iter(queue.try_get().unwrap()),
            None => Vec::from_iter(queue.get_timeout(Duration::ZERO).unwrap()),
        };
        let before = self.model.clone();
        let mut model = self.model.get(name, max.unwrap_or(1));
        if model.len() > real.len() && !real.is_empty() {
            // A batch may end where the store must look into another file.
            self.model = before;
            model = self.model.get(name, real.len());
        }
        assert_eq!(real.len(), model.len(), "messages from {name}");
        for (delivery, held) in real.into_iter().zip(model) {
            self.same_message(name, held.seq, delivery.id().as_u64(), delivery.payload());
            let message = &self.model.queues[name].messages[&held.seq];
            assert_eq!(delivery.attempt(), message.attempts, "attempts of {}", delivery.id());
            assert_eq!(delivery.queue(), name);
            assert_eq!(delivery.priority(), message.priority);
            assert_eq!(delivery.group(), message.group.as_ref().map(std::slice::from_ref));
            let headers = delivery.headers();
            let headers = headers.iter().map(|(key, value)| (key, value.as_integer().unwrap()));
            assert_eq!(headers.collect::<Vec<_>>(), message.headers);
            let from = delivery.origin().map(|origin| origin.queue());
            assert_eq!(from, message.from);
            if message.origin == held.seq {
                assert_eq!(delivery.origin_id(), delivery.id());
            } else {
                assert!(delivery.origin_id() < delivery.id());
            }
            self.held.push((delivery, held));
        }
    }

    pub fn peek(&mut self, name: &'static str) {
        let queue = self.queue(name);
        let real = queue.peek().unwrap();
        let wall = self.model.wall;
        let model = self.model.queues.get_mut(name).unwrap().next(wall);
        assert_eq!(real.is_some(), model.is_some(), "a message to peek at in {name}");
        let Some((entry, seq)) = real.zip(model) else { return };
        self.same_message(name, seq, entry.id().as_u64(), entry.payload());
        assert_eq!(entry.attempt(), self.model.queues[name].messages[&seq].attempts + 1);
    }

    fn take_held(&mut self, which: usize) -> Option<(Delivery, Held)> {
        if self.held.is_empty() {
            return None;
        }
        let at = which % self.held.len();
        Some(self.held.remove(at))
    }

    /// Settles in both, or finds that the message had expired and is gone.
    fn settle<T: PartialEq + std::fmt::Debug>(
        &mut self,
        held: Held,
        real: millpond::Result<T>,
        model: impl FnOnce(&mut Model) -> Result<T, Refused>,
        what: &str,
    ) {
        let stale = real.as_ref().is_err_and(|e| *e.kind() == ErrorKind::StaleDelivery);
        if stale && self.model.is_fading(held) {
            self.model.forget(held);
        } else {
            same(real, model(&mut self.model), what);
        }
    }

    pub fn delete(&mut self, which: usize) {
        let Some((delivery, held)) = self.take_held(which) else { return };
        self.settle(held, delivery.delete(), |model| model.delete(held), "delete");
    }

    pub fn delete_batch(&mut self, name: &'static str, which: usize, count: usize) {
        let queue = self.queue(name);
        let mut batch: Vec<_> = (0..count).filter_map(|_| self.take_held(which)).collect();
        let fading = batch.extract_if(.., |(_, held)| self.model.is_fading(*held));
        let fading: Vec<_> = fading.collect();
        for (delivery, held) in fading {
            self.settle(held, delivery.delete(), |model| model.delete(held), "delete");
        }
        let deleted = batch.iter().filter(|(_, held)| self.model.delete(*held).is_ok()).count();
        let stale = batch.len() - deleted;
        let real = queue.delete_batch(batch.into_iter().map(|(delivery, _)| delivery)).unwrap();
        assert_eq!((real.deleted, real.stale), (deleted as u64, stale as u64));
    }

    pub fn release(&mut self, which: usize, delay: u64) {
        let Some((delivery, held)) = self.take_held(which) else { return };
        let real = match delay {
            0 => delivery.release(),
            delay => delivery.release_after(ms(delay)),
        };
        self.settle(held, real, |model| model.release(held, delay), "release");
    }

    pub fn fail(&mut self, which: usize, delay: Option<u64>) {
        let Some((delivery, held)) = self.take_held(which) else { return };
        let real = match delay {
            None => delivery.fail("no"),
            Some(delay) => delivery.fail_after("no", ms(delay)),
        };
        let since_epoch = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_millis();
        let real = real.map(|fate| match fate {
            Fate::RetryAt(at) => reference::Fate::RetryAt(since_epoch(at) as u64),
            Fate::DeadLettered => reference::Fate::DeadLettered,
            Fate::Buried => reference::Fate::Buried,
            other => panic!("an unknown fate: {other:?}"),
        });
        self.settle(held, real, |model| model.fail(held, delay), "fail");
    }

    pub fn bury(&mut self, which: usize) {
        let Some((delivery, held)) = self.take_held(which) else { return };
        self.settle(held, delivery.bury("no"), |model| model.bury(held), "bury");
    }

    pub fn extend(&mut self, which: usize, lease: u64) {
        let Some((delivery, held)) = self.take_held(which) else { return };
        let real = delivery.extend(ms(lease));
        self.settle(held, real, |model| model.extend(held, lease), "extend");
        self.held.push((delivery, held));
    }

    pub fn drop_held(&mut self, which: usize) {
        let Some((delivery, held)) = self.take_held(which) else { return };
        if self.model.is_fading(held) {
            // Nobody learns whether it was still there.
            return self.settle(held, delivery.delete(), |model| model.delete(held), "delete");
        }
        drop(delivery);
        self.model.drop(held);
    }

    pub fn redrive(&mut self, name: &'static str, max: usize) {
        let queue = self.queue(name);
        same(queue.redrive(max as u64), self.model.redrive(name, max), "redrive");
    }

    pub fn pause(&mut self, name: &'static str) {
        self.queue(name).pause().unwrap();
        self.model.pause(name);
    }

    pub fn resume(&mut self, name: &'static str) {
        self.queue(name).resume().unwrap();
        self.model.resume(name);
    }

    pub fn kick(&mut self, name: &'static str, max: usize) {
        let queue = self.queue(name);
        assert_eq!(queue.kick(max as u64).unwrap(), self.model.kick(name, max), "kicked");
    }

    /// Deletes any message of any queue, as if it were in this one.
    pub fn delete_by_id(&mut self, name: &'static str, which: usize) {
        let queue = self.queue(name);
        let all = self.model.queues.values().flat_map(|queue| queue.messages.values());
        let ids: Vec<u64> = all.filter_map(|message| message.id).chain([0, u64::MAX]).collect();
        let id = ids[which % ids.len()];
        let deleted = queue.delete_by_id(id.into()).unwrap();
        let fading = self.model.has_fading(name, id);
        let model = self.model.delete_by_id(name, id);
        assert!(deleted == model || (model && fading), "{id} in {name}: {deleted}");
    }

    pub fn browse(&mut self, name: &'static str, state: State) {
        let queue = self.queue(name);
        let model = self.model.queues[name].at(self.model.wall, |place| is_at(place, state));
        let real: Vec<_> = queue.browse(state).map(Result::unwrap).collect();
        assert_eq!(real.len(), model.len(), "messages of {name} that are {state:?}");
        for (entry, seq) in real.iter().zip(model) {
            self.same_message(name, seq, entry.id().as_u64(), entry.payload());
            let message = &self.model.queues[name].messages[&seq];
            let from = entry.origin().map(|origin| origin.queue());
            assert_eq!((entry.attempts(), from), (message.attempts, message.from));
            let due = entry.due().map(|due| due.duration_since(UNIX_EPOCH).unwrap().as_millis());
            match message.place {
                Place::Delayed(at) => assert_eq!(due, Some(at.into())),
                _ => assert_eq!(due, None),
            }
        }
    }

    pub fn purge(&mut self, name: &'static str, state: State) {
        let queue = self.queue(name);
        let model = self.model.purge(name, |place| is_at(place, state));
        let real = queue.purge(state).unwrap();
        assert!((model.0..=model.0 + model.1).contains(&real), "purged {real} of {state:?}");
    }

    pub fn declare(&mut self, name: &'static str, options: Options) {
        let is_strict = options.dead_letter.is_some() || options.max_messages.is_some();
        if is_strict && self.model.has_expiring(Some(name)) {
            return;
        }
        let mut real = QueueOptions::new()
            .lease(options.lease.map(ms))
            .max_attempts(options.max_attempts)
            .backoff(backoff(&options.backoff))
            .dedup_window(ms(options.window.0), options.window.1)
            .pause_after_failures(options.pause_after);
        if options.release_on_drop {
            real = real.on_drop(OnDrop::Release);
        }
        if let Some(dead) = options.dead_letter {
            real = real.dead_letter(dead);
        }
        if let Some(most) = options.max_messages {
            let at_limit = if options.drops { AtLimit::DropOldest } else { AtLimit::Block };
            real = real.max_messages(most).at_limit(at_limit);
        }
        same(
            self.store.declare(name, real).map(|_| ()),
            self.model.declare(name, options),
            "declare",
        );
    }

    pub fn remove(&mut self, name: &'static str) {
        let old = self.store.find(name).unwrap();
        let real = self.store.remove(name);
        let is_full = real.as_ref().is_err_and(|error| *error.kind() == ErrorKind::NotEmpty);
        let fading = |queue: &queue::Queue| queue.counts(self.model.wall).fading > 0;
        if is_full && self.model.queues.get(name).is_some_and(fading) {
            return;
        }
        let model = self.model.remove(name);
        if model.is_ok() {
            self.removed.extend(old);
        }
        same(real, model, "remove");
    }

    pub fn advance(&mut self, by: u64) {
        self.clock.advance(ms(by));
        self.model.mono += by;
        self.model.wall += by;
    }

    pub fn set_wall_back(&mut self, by: u64) {
        if self.model.has_expiring(None) {
            // What has expired and is still there might come back.
            return;
        }
        self.model.set_wall(self.model.wall - by);
        self.clock.set_wall_ms(self.model.wall);
    }

    pub fn step(&mut self) {
        step(&self.store).unwrap();
    }

    pub fn close_and_reopen(&mut self) {
        self.store.close().unwrap();
        if let Some((delivery, _)) = self.take_held(0) {
            assert_eq!(delivery.delete().unwrap_err().kind(), &ErrorKind::Closed);
        }
        self.held.clear();
        self.removed.clear();
        self.model.end(true);
        self.store = open(&self.disk, &self.clock, self.sync);
        assert!(self.store.recovery().clean, "{:?}", self.store.recovery());
        self.check_recovery();
    }

    pub fn kill_and_reopen(&mut self) {
        // A time that has come is not recorded. With the clock behind it again, it may or may not come again.
        let behind = self.model.latest_due().saturating_sub(self.model.wall);
        self.model.set_wall(self.model.wall + behind);
        self.clock.set_wall_ms(self.model.wall);
        let disk = self.disk.kill();
        self.held.clear();
        self.removed.clear();
        let in_flight = self.model.end(false);
        self.store = open(&disk, &self.clock, self.sync);
        self.disk = disk;
        // Leases that had run out are still "in flight" in the log.
        assert!(self.store.recovery().redelivered >= in_flight);
        self.check_recovery();
    }

    fn check_recovery(&self) {
        let recovery = self.store.recovery();
        assert_eq!(recovery.damaged, []);
        assert!(recovery.bad_cursors.is_empty() && !recovery.full_walk);
        assert!(recovery.renamed_queues.is_empty());
    }

    /// What becomes visible by itself is so on both sides.
    pub fn catch_up(&mut self) {
        if self.sync {
            // Under `Sync`, what was moved to another queue can be got once it is durable.
            self.store.sync().unwrap();
        }
        self.model.observe();
    }

    /// Everything that can be seen without changing anything.
    pub fn compare(&mut self) {
        self.catch_up();
        let names: Vec<&str> = self.model.queues.keys().copied().collect();
        assert_eq!(self.store.queue_names(), names);
        let (mut all, mut all_gone) = (0, 0);
        for (name, queue) in &self.model.queues {
            let real = self.store.find(name).unwrap().unwrap().stats().unwrap();
            let paused = queue.paused.map(|failures| match failures {
                0 => Paused::ByCall,
                failures => Paused::ByFailures(failures),
            });
            assert_eq!(real.paused, paused, "whether {name} is paused");
            let model = queue.counts(self.model.wall);
            let waiting = model.ready + model.delayed;
            let gone = waiting.checked_sub(real.ready + real.delayed).expect("none too many");
            assert!(gone <= model.fading, "{gone} of {} are gone from {name}", model.fading);
            all += model.ready + model.delayed + model.in_flight + model.buried;
            all_gone += gone;
            let real = queue::Counts {
                ready: if model.fading > 0 { model.ready } else { real.ready },
                in_flight: real.in_flight,
                delayed: if model.fading > 0 { model.delayed } else { real.delayed },
                buried: real.buried,
                fading: model.fading,
            };
            assert_eq!(real, model, "counts of {name}");
        }
        let stats = self.store.stats();
        assert_eq!((stats.queues, stats.messages), (names.len(), all - all_gone));
        assert_eq!((stats.damaged_messages, &stats.damage[..]), (0, &[][..]));
        for queue in &self.removed {
            assert_eq!(queue.insert("x").unwrap_err().kind(), &ErrorKind::NotFound);
            assert_eq!(queue.try_get().unwrap_err().kind(), &ErrorKind::NotFound);
        }
    }

    /// Everything is there in the end, in its order.
    pub fn drain(&mut self) {
        self.close_and_reopen();
        self.advance(120_000);
        while step(&self.store).unwrap() {}
        self.model.sweep();
        self.compare();
        for name in NAMES {
            self.resume(name);
            let mut before = None;
            while before != Some(self.held.len()) {
                before = Some(self.held.len());
                self.get(name, Some(5));
                self.compare();
            }
        }
        while !self.held.is_empty() {
            self.delete(0);
        }
        self.compare();
    }
}
