//! What a user can do, done to the store and to the model.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use millpond::testing::Cut;
use millpond::{Delivery, ErrorKind, Fate, State};

use super::check::{mix, words};
use super::content::{Content, DEAD, KEYS, came_from, payload};
use super::queue::{Message, Place, Queue, Rules};
use super::workload::{Durable, Held, Outcome, QUEUES, Workload};

/// How many messages the queues may hold before more is taken out than put in.
const LIVE_MAX: usize = 90;

/// Something that a user, the time or a crash does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Insert(&'static str),
    /// Of this many bytes.
    InsertOf(&'static str, usize),
    /// Of this many bytes, to be ready later.
    InsertDelayed(&'static str, usize),
    InsertBatch(&'static str),
    /// With this deduplication key.
    InsertKey(&'static str, u8),
    /// A batch with any of the keys.
    InsertKeys(&'static str),
    /// Up to this many.
    Get(&'static str, usize),
    Delete,
    DeleteBatch,
    /// To be ready again after so many milliseconds.
    Release(u64),
    Fail,
    Bury,
    Purge(&'static str, State),
    /// Pauses the queue, or resumes it if it is paused.
    Pause(&'static str),
    /// Up to so many.
    Kick(&'static str, usize),
    Redrive(usize),
    /// Of any message in this queue.
    DeleteById(&'static str),
    /// With other attempts, and with a limit to what there is, or without.
    Redeclare,
    Declare(&'static str),
    Remove,
    Sync,
    /// At most so many pieces of the background's work.
    Steps(usize),
    /// So many milliseconds pass.
    Tick(u64),
    Reopen,
    Crash(Cut),
}

impl Workload<'_> {
    pub fn perform_any(&mut self) -> Outcome<()> {
        let operation = self.any_operation();
        self.perform(operation)
    }

    fn any_operation(&mut self) -> Operation {
        use Operation::*;
        let queue = QUEUES[self.random.below(5).min(2)];
        if queue == DEAD && self.random.below(4) == 0 {
            return Redrive(1 + self.random.below(6));
        }
        // Not for long: little happens meanwhile.
        if self.world.queues.get(queue).is_some_and(|queue| queue.is_paused)
            && self.random.below(5) == 0
        {
            return Pause(queue);
        }
        let full = self.world.live() > LIVE_MAX;
        match self.random.below(1000) {
            0..240 if !full => Insert(queue),
            240..300 if !full => InsertKey(QUEUES[self.random.below(2)], self.any_key()),
            300..320 if !full => InsertKeys(QUEUES[self.random.below(2)]),
            320..380 if !full => InsertBatch(queue),
            0..300 => Get(queue, 1),
            300..400 => Get(queue, 6),
            400..500 => Get(queue, 1),
            500..680 => Delete,
            680..730 => DeleteBatch,
            730..770 => Release(0),
            770..790 => Release(700),
            790..840 => Fail,
            840..860 => Bury,
            860..866 => Purge(queue, State::Ready),
            866..876 => Purge(queue, State::Buried),
            876..880 => Purge(queue, State::Delayed),
            880..883 => Purge(queue, State::InFlight),
            883..886 => Redeclare,
            886..901 => self.any_on_another_queue(),
            901..906 => Sync,
            906..914 => Kick(queue, 1 + self.random.below(4)),
            914..920 => DeleteById(queue),
            920..926 => Pause(queue),
            926..980 => Steps(2),
            980..990 => Tick([20, 300, 1100, 12_000][self.random.below(4)]),
            990..995 => Reopen,
            _ => Crash(match self.random.below(3) {
                0 => Cut::Kill,
                _ => Cut::PowerCut(mix(self.storage_operations() << 4 | 15)),
            }),
        }
    }

    /// On a queue that comes and goes.
    fn any_on_another_queue(&mut self) -> Operation {
        if !self.world.queues.contains_key("t") {
            return Operation::Declare("t");
        }
        match self.random.below(5) {
            0 | 1 => Operation::Insert("t"),
            2 => Operation::Get("t", 2),
            3 => Operation::Purge("t", State::Ready),
            _ => Operation::Remove,
        }
    }

    pub fn perform(&mut self, operation: Operation) -> Outcome<()> {
        use Operation::*;
        match operation {
            Insert(queue) => {
                let len = self.length();
                self.operate("insert", |run| run.insert(queue, len))
            }
            InsertOf(queue, len) => self.operate("insert", |run| run.insert(queue, len)),
            InsertDelayed(queue, len) => {
                self.operate("insert", |run| run.insert_delayed(queue, len))
            }
            InsertBatch(queue) => self.operate("insert_batch", |run| run.insert_batch(queue)),
            InsertKey(queue, key) => self.operate("insert", |run| run.insert_keys(queue, &[key])),
            InsertKeys(queue) => {
                let keys = [(); 3].map(|()| self.any_key());
                self.operate("insert_batch", |run| run.insert_keys(queue, &keys))
            }
            Get(queue, max) => self.operate("get", |run| run.get(queue, max)),
            Delete => self.operate("delete", Self::delete),
            DeleteBatch => self.operate("delete_batch", Self::delete_batch),
            Release(delay_ms) => self.operate("release", |run| run.release(delay_ms)),
            Fail => self.operate("fail", Self::fail),
            Bury => self.operate("bury", Self::bury),
            Purge(queue, which) => self.operate("purge", |run| run.purge(queue, which)),
            Pause(queue) => self.operate("pause", |run| run.pause(queue)),
            Kick(queue, max) => self.operate("kick", |run| run.kick(queue, max)),
            Redrive(max) => self.operate("redrive", |run| run.redrive(max)),
            DeleteById(queue) => self.operate("delete_by_id", |run| run.delete_by_id(queue)),
            Redeclare => self.redeclare(),
            Declare(queue) => self.operate("declare", |run| run.declare(queue, Rules::default())),
            Remove => self.operate("remove", Self::remove),
            Sync => self.operate("sync", Self::sync),
            Steps(most) => self.operate("step", |run| run.steps(most)),
            Tick(by_ms) => self.operate("tick", |run| run.tick(by_ms)),
            Reopen => self.reopen(),
            Crash(cut) => self.crash(cut),
        }
    }

    pub fn declare(&mut self, name: &'static str, rules: Rules) -> Outcome<Durable> {
        words(self.store().declare(name, rules.options()), "declare")?;
        let target = rules.dead_letter.filter(|name| !self.world.queues.contains_key(name));
        if let Some(target) = target {
            self.world.queue_mut(target);
            self.note();
        }
        let known = self.world.queues.get(name).map(|queue| &queue.rules);
        if known == Some(&rules) {
            // Nothing was written, so there was nothing to sync.
            return Ok(false);
        }
        self.world.queue_mut(name).rules = rules;
        self.note();
        Ok(self.inserts_are_synced())
    }

    fn redeclare(&mut self) -> Outcome<()> {
        let most = 2 + self.random.below(3) as u32;
        let queue = self.world.queue("a");
        let max_messages = match queue.rules.max_messages {
            None => Some(queue.messages.len().max(2)),
            Some(_) => None,
        };
        let rules = Rules { max_attempts: Some(most), max_messages, ..queue.rules.clone() };
        self.operate("declare", |run| run.declare("a", rules))
    }

    fn remove(&mut self) -> Outcome<Durable> {
        let refused = match self.world.queues.get("t") {
            None => Some(ErrorKind::NotFound),
            Some(queue) => (!queue.messages.is_empty()).then_some(ErrorKind::NotEmpty),
        };
        let wall = self.time().wall;
        // Nobody knows whether what has expired is still there.
        let either = self.world.queues.get("t").is_some_and(|queue| queue.is_fading(wall));
        match (self.store().remove("t"), refused) {
            (Ok(()), refused) if refused.is_none() || either => {}
            (Err(error), Some(kind)) if *error.kind() == kind => return Ok(false),
            (other, refused) => return Err(format!("remove: {other:?}, expected {refused:?}")),
        }
        self.world.queues.remove("t");
        self.held.retain(|held| held.queue != "t");
        self.note();
        Ok(self.inserts_are_synced())
    }

    fn length(&mut self) -> usize {
        match self.random.below(300) {
            0 => 66_000 + self.random.below(20_000),
            1..20 => 0,
            20..100 => self.random.below(60),
            _ => self.random.below(2000),
        }
    }

    pub fn insert(&mut self, queue: &'static str, len: usize) -> Outcome<Durable> {
        let tag = self.highest_id + 1;
        let payload = payload(tag, len);
        let content = Content::to_insert(queue, tag, &payload);
        self.insert_as(queue, content, &payload)
    }

    fn insert_delayed(&mut self, queue: &'static str, len: usize) -> Outcome<Durable> {
        let payload = payload(self.highest_id + 1, len);
        self.insert_as(queue, Content::of(&payload).delayed(), &payload)
    }

    fn insert_as(
        &mut self,
        queue: &'static str,
        content: Content,
        payload: &[u8],
    ) -> Outcome<Durable> {
        let room = self.make_room(queue, 1);
        let inserted = self.queue(queue)?.insert(content.message(payload));
        let Some(id) = admitted(inserted, &room)? else { return Ok(false) };
        let id = id.as_u64();
        self.check_ids(id, 1)?;
        self.drop_oldest(queue, room);
        self.put_in(queue, id, content);
        self.note();
        Ok(self.inserts_are_synced())
    }

    fn insert_batch(&mut self, queue: &'static str) -> Outcome<Durable> {
        let count = 1 + self.random.below(7);
        let tags = self.highest_id + 1..;
        let batch: Vec<(Vec<u8>, Content)> = (tags.take(count))
            .map(|tag| {
                let payload = payload(tag, self.random.below(2000));
                let content = Content::to_insert(queue, tag, &payload);
                (payload, content)
            })
            .collect();
        let messages = batch.iter().map(|(payload, content)| content.message(payload));
        let room = self.make_room(queue, count);
        let inserted = self.queue(queue)?.insert_batch(messages);
        let Some(ids) = admitted(inserted, &room)? else { return Ok(false) };
        self.check_ids(ids[0].as_u64(), count as u64)?;
        self.drop_oldest(queue, room);
        for (id, (_, content)) in ids.iter().zip(&batch) {
            self.put_in(queue, id.as_u64(), *content);
        }
        self.note();
        Ok(self.inserts_are_synced())
    }

    fn make_room(&mut self, queue: &'static str, count: usize) -> Result<Vec<u64>, ErrorKind> {
        if self.world.queue(queue).rules.max_messages.is_none() {
            return Ok(Vec::new());
        }
        let now = self.time();
        self.world.advance(queue, now);
        self.world.queue(queue).make_room(count)
    }

    /// The room was made by the append that needed it.
    fn drop_oldest(&mut self, queue: &'static str, room: Result<Vec<u64>, ErrorKind>) {
        room.into_iter().flatten().for_each(|id| self.forget(queue, id));
    }

    fn any_key(&mut self) -> u8 {
        self.random.below(KEYS.into()) as u8
    }

    fn insert_keys(&mut self, queue: &'static str, keys: &[u8]) -> Outcome<Durable> {
        let wall = self.time().wall;
        let payload = payload(self.highest_id + 1, self.random.below(2000));
        let content = |key| Content { key: Some(key), ..Content::of(&payload) };
        let messages: Vec<_> = keys.iter().map(|&key| content(key).message(&payload)).collect();
        let handle = self.queue(queue)?;
        let known = |key: &&u8| self.world.queue(queue).known(**key, wall).is_some();
        let wanted: BTreeSet<&u8> = keys.iter().filter(|key| !known(key)).collect();
        let room = self.make_room(queue, wanted.len());
        let ids = match messages.as_slice() {
            [one] => handle.insert(one).map(|id| vec![id]),
            batch => handle.insert_batch(batch),
        };
        let Some(ids) = admitted(ids, &room)? else { return Ok(false) };
        self.drop_oldest(queue, room);
        let ids: Vec<u64> = ids.into_iter().map(|id| id.as_u64()).collect();
        let mut new: Vec<(u8, u64)> = Vec::new();
        for (&key, &id) in keys.iter().zip(&ids) {
            let in_batch = new.iter().find(|(other, _)| *other == key).map(|(_, id)| *id);
            match self.world.queue(queue).known(key, wall).or(in_batch) {
                Some(known) if known != id => {
                    return Err(format!("key {key} of message {known} came with id {id}"));
                }
                Some(_) => {}
                None => new.push((key, id)),
            }
        }
        for (key, id) in new.iter().copied() {
            self.check_ids(id, 1)?;
            self.put_in(queue, id, content(key));
            self.world.queue_mut(queue).note_key(key, id, wall);
        }
        if !new.is_empty() {
            self.note();
        }
        self.coverage.duplicates += keys.len() - new.len();
        Ok(self.inserts_are_synced())
    }

    fn put_in(&mut self, queue: &'static str, id: u64, content: Content) {
        self.world.insert(queue, id, content);
        if let Some(ttl) = content.ttl_ms() {
            self.world.expire(queue, id, self.time().wall + ttl);
        }
        if content.delay_ms() > 0 {
            let due = self.time().wall + content.delay_ms();
            self.world.put(queue, id, 0, Place::Delayed(due));
        }
    }

    fn check_ids(&mut self, first: u64, count: u64) -> Outcome<()> {
        if self.next_id.is_some_and(|next| next != first) || first <= self.highest_id {
            let (next, highest) = (self.next_id, self.highest_id);
            return Err(format!("id {first} after {highest}, expected {next:?}"));
        }
        self.highest_id = first + count - 1;
        self.next_id = Some(first + count);
        self.coverage.inserted += count as usize;
        Ok(())
    }

    fn retire(&mut self, queue: &'static str, id: u64) -> Outcome<bool> {
        let new_id = self.next_id.ok_or("the next id is not known")?;
        let moved = self.world.retire(queue, id, new_id);
        if moved {
            self.next_id = Some(new_id + 1);
            self.highest_id = new_id;
            self.coverage.dead_letters += 1;
        }
        self.note();
        Ok(moved)
    }

    pub fn get(&mut self, queue: &'static str, max: usize) -> Outcome<Durable> {
        let now = self.time();
        self.world.advance(queue, now);
        if self.world.queue(queue).is_paused {
            return match words(self.queue(queue)?.get_batch(max, Duration::ZERO), "get")? {
                got if got.is_empty() => Ok(false),
                got => Err(format!("got {got:?} from {queue}, which is paused")),
            };
        }
        while let Some(id) = self.world.queue(queue).first_exhausted() {
            self.retire(queue, id)?;
        }
        let handle = self.queue(queue)?;
        let got = match max {
            1 => words(handle.try_get(), "try_get")?.into_iter().collect(),
            _ => words(handle.get_batch(max, Duration::ZERO), "get_batch")?,
        };
        let (expected, after) = self.expected(queue, max, &got)?;
        *self.world.queue_mut(queue) = after;
        for (delivery, id) in got.into_iter().zip(expected) {
            self.tokens += 1;
            let token = self.tokens;
            let entry = self.world.queue_mut(queue);
            let lease_ms = entry.rules.lease_ms;
            let message = entry.messages.get_mut(&id).ok_or("the model has lost a message")?;
            message.attempts += 1;
            message.place = Place::InFlight(now.mono + lease_ms);
            message.unrecorded = false;
            message.delivered = true;
            message.due = 0;
            message.token = token;
            check_delivery(&delivery, id, message)?;
            self.held.push(Held { delivery, queue, id, token });
        }
        self.note();
        Ok(false)
    }

    /// What should have come, given that this came, and the queue with that taken. It may be fewer than are there where an index has to be loaded first;
    /// and where inserts are synced, only what some sync has covered may come: nobody knows how far those went, but each
    /// went so far that all before it is covered.
    fn expected(&self, queue: &str, max: usize, got: &[Delivery]) -> Outcome<(Vec<u64>, Queue)> {
        let got: Vec<u64> = got.iter().map(|delivery| delivery.id().as_u64()).collect();
        let entry = self.world.queue(queue);
        let unsynced = |id: &u64| self.inserts_are_synced() && !self.is_durable(queue, *id);
        let unsynced: Vec<u64> = entry.untouched().into_iter().filter(unsynced).collect();
        for end in unsynced.iter().copied().chain([u64::MAX]) {
            let take = |max: usize| {
                let mut after = entry.clone();
                let next = after.take_next(max, |id| id < end || !unsynced.contains(&id));
                (next, after)
            };
            let (next, after) = take(max);
            if next == got {
                return Ok((got, after));
            }
            if next.starts_with(&got) && !got.is_empty() {
                return Ok(take(got.len()));
            }
        }
        let next = entry.clone().take_next(max, |_| true);
        Err(format!("{queue}: got {got:?} where {next:?} is next, of which {unsynced:?} unsynced"))
    }

    /// Takes any delivery that is held, and says whether it may still settle its message.
    fn any_held(&mut self) -> Option<(Held, bool)> {
        if self.held.is_empty() {
            return None;
        }
        let at = self.random.below(self.held.len());
        let held = self.held.swap_remove(at);
        let valid = self.is_valid(&held);
        Some((held, valid))
    }

    fn is_valid(&self, held: &Held) -> bool {
        let messages = self.world.queues.get(held.queue).map(|queue| &queue.messages);
        messages.and_then(|m| m.get(&held.id)).is_some_and(|m| m.token == held.token)
    }

    fn forget(&mut self, queue: &'static str, id: u64) {
        self.world.queue_mut(queue).messages.remove(&id);
    }

    fn attempts(&self, queue: &str, id: u64) -> u32 {
        self.world.queue(queue).messages[&id].attempts
    }

    fn delete(&mut self) -> Outcome<Durable> {
        let Some((held, valid)) = self.any_held() else { return Ok(false) };
        if !expect(held.delivery.delete(), valid, "delete")? {
            return Ok(false);
        }
        self.forget(held.queue, held.id);
        self.note();
        Ok(self.deletes_are_synced())
    }

    fn delete_batch(&mut self) -> Outcome<Durable> {
        let Some(last) = self.held.last() else { return Ok(false) };
        let queue = last.queue;
        let (of_queue, rest): (Vec<Held>, Vec<Held>) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.queue == queue);
        self.held = rest;
        let valid: Vec<u64> =
            of_queue.iter().filter(|held| self.is_valid(held)).map(|held| held.id).collect();
        let count = of_queue.len();
        let deliveries = of_queue.into_iter().map(|held| held.delivery);
        let deleted = words(self.queue(queue)?.delete_batch(deliveries), "delete_batch")?;
        if (deleted.deleted, deleted.stale) != (valid.len() as u64, (count - valid.len()) as u64) {
            return Err(format!("{deleted:?} of {count}, of which {valid:?} are valid"));
        }
        for id in &valid {
            self.forget(queue, *id);
        }
        self.note();
        Ok(self.deletes_are_synced() && !valid.is_empty())
    }

    fn release(&mut self, delay_ms: u64) -> Outcome<Durable> {
        let Some((held, valid)) = self.any_held() else { return Ok(false) };
        let released = held.delivery.release_after(Duration::from_millis(delay_ms));
        if expect(released, valid, "release")? {
            let attempts = self.attempts(held.queue, held.id) - 1;
            let place = match delay_ms {
                0 => Place::GivenBack,
                _ => Place::Delayed(self.time().wall + delay_ms),
            };
            self.world.put(held.queue, held.id, attempts, place);
            self.note();
        }
        Ok(false)
    }

    fn fail(&mut self) -> Outcome<Durable> {
        let Some((held, valid)) = self.any_held() else { return Ok(false) };
        let fate = match held.delivery.fail("no") {
            Ok(fate) if valid => fate,
            Err(error) if !valid && *error.kind() == ErrorKind::StaleDelivery => return Ok(false),
            other => return Err(format!("fail, valid {valid}: {other:?}")),
        };
        let Held { queue, id, .. } = held;
        let rules = self.world.queue(queue).rules.clone();
        if self.world.queue(queue).is_exhausted(id) {
            let moved = self.retire(queue, id)?;
            return match fate {
                Fate::DeadLettered if moved => Ok(false),
                Fate::Buried if !moved => Ok(false),
                _ => Err(format!("{fate:?}, moved {moved}")),
            };
        }
        let Fate::RetryAt(at) = fate else { return Err(format!("{fate:?} before the last")) };
        let due = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let place = if rules.backoff_ms == 0 { Place::GivenBack } else { Place::Delayed(due) };
        let attempts = self.attempts(queue, id);
        self.world.put(queue, id, attempts, place);
        self.note();
        Ok(false)
    }

    fn bury(&mut self) -> Outcome<Durable> {
        let Some((held, valid)) = self.any_held() else { return Ok(false) };
        if expect(held.delivery.bury("no"), valid, "bury")? {
            self.retire(held.queue, held.id)?;
        }
        Ok(false)
    }

    fn pause(&mut self, queue: &'static str) -> Outcome<Durable> {
        let handle = self.queue(queue)?;
        let paused = match self.world.queue(queue).is_paused {
            true => handle.resume(),
            false => handle.pause(),
        };
        words(paused, "pause or resume")?;
        let entry = self.world.queue_mut(queue);
        entry.is_paused = !entry.is_paused;
        self.note();
        Ok(self.inserts_are_synced())
    }

    fn kick(&mut self, queue: &'static str, max: usize) -> Outcome<Durable> {
        let kicked = words(self.queue(queue)?.kick(max as u64), "kick")?;
        let expected = self.world.kick(queue, max);
        if kicked != expected {
            return Err(format!("{queue}: kicked {kicked}, expected {expected}"));
        }
        self.note();
        Ok(false)
    }

    fn redrive(&mut self, max: usize) -> Outcome<Durable> {
        let now = self.time();
        self.world.advance(DEAD, now);
        let mut back = self.world.homeward(DEAD);
        back.truncate(max);
        let moved = words(self.queue(DEAD)?.redrive(max as u64), "redrive")?;
        if moved != back.len() as u64 {
            return Err(format!("redriven {moved}, expected {back:?}"));
        }
        for (id, home) in back {
            let new_id = self.next_id.ok_or("the next id is not known")?;
            self.world.bring_back(DEAD, id, home, new_id);
            (self.next_id, self.highest_id) = (Some(new_id + 1), new_id);
            self.coverage.redriven += 1;
            self.note();
        }
        Ok(self.inserts_are_synced() && moved > 0)
    }

    fn delete_by_id(&mut self, queue: &'static str) -> Outcome<Durable> {
        let ids: Vec<u64> = self.world.queue(queue).messages.keys().copied().collect();
        let others = self.world.queues.iter().filter(|(name, _)| **name != queue);
        let other = others.flat_map(|(_, other)| other.messages.keys()).next().copied();
        let handle = self.queue(queue)?;
        for id in other.into_iter().chain([self.highest_id + 1000]) {
            if words(handle.delete_by_id(id.into()), "delete_by_id")? {
                return Err(format!("{id} was deleted, and is not of queue {queue}"));
            }
        }
        if ids.is_empty() {
            return Ok(false);
        }
        let id = ids[self.random.below(ids.len())];
        if !words(handle.delete_by_id(id.into()), "delete_by_id")? {
            return Err(format!("{id} was not found in queue {queue}"));
        }
        self.forget(queue, id);
        self.note();
        Ok(self.deletes_are_synced())
    }

    fn purge(&mut self, queue: &'static str, which: State) -> Outcome<Durable> {
        let now = self.time();
        self.world.advance(queue, now);
        let fading = self.world.queue(queue).fading(now.wall);
        let (touched, untouched) = {
            let entry = self.world.queue(queue);
            match which {
                State::Ready => {
                    (entry.ids_at(|place| place == Place::GivenBack), entry.untouched())
                }
                State::InFlight => {
                    (entry.ids_at(|place| matches!(place, Place::InFlight(_))), Vec::new())
                }
                State::Delayed => {
                    (entry.ids_at(|place| matches!(place, Place::Delayed(_))), Vec::new())
                }
                _ => (entry.ids_at(|place| place == Place::Buried), Vec::new()),
            }
        };
        let purged = words(self.queue(queue)?.purge(which), "purge")?;
        let expected = touched.len() + untouched.len();
        if purged.abs_diff(expected as u64) > fading {
            return Err(format!("{queue}: purged {purged} {which:?}, expected {expected}"));
        }
        for &id in &touched {
            self.forget(queue, id);
        }
        // It may take several appends to get through the others, in order.
        self.note();
        for id in untouched {
            self.forget(queue, id);
            self.note();
        }
        Ok(self.deletes_are_synced() && purged > 0)
    }
}

/// What an insert has returned, if there was room as there must have been.
fn admitted<T>(
    inserted: millpond::Result<T>,
    room: &Result<Vec<u64>, ErrorKind>,
) -> Outcome<Option<T>> {
    match (inserted, room) {
        (Ok(inserted), Ok(_)) => Ok(Some(inserted)),
        (Err(error), Err(kind)) if error.kind() == kind => Ok(None),
        (inserted, room) => Err(format!("insert: {:?}, expected {room:?}", inserted.err())),
    }
}

/// Whether a settle went through, as it must exactly if the delivery is `valid`.
fn expect(result: millpond::Result<()>, valid: bool, what: &str) -> Outcome<bool> {
    match result {
        Ok(()) if valid => Ok(true),
        Err(error) if !valid && *error.kind() == ErrorKind::StaleDelivery => Ok(false),
        other => Err(format!("{what}, valid {valid}: {other:?}")),
    }
}

fn check_delivery(delivery: &Delivery, id: u64, message: &Message) -> Outcome<()> {
    let got = (
        delivery.id().as_u64(),
        delivery.origin_id().as_u64(),
        came_from(delivery),
        delivery.attempt(),
        Content::delivered(delivery),
    );
    let expected = (id, message.origin, message.from, message.attempts, message.content);
    if got != expected {
        return Err(format!("got {got:?}, expected {expected:?}"));
    }
    Ok(())
}
