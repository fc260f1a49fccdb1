//! What a user can do, done to the store and to the model.

use std::time::{Duration, UNIX_EPOCH};

use millpond::{Delivery, ErrorKind, Fate, State};

use super::check::words;
use super::workload::{Durable, Held, Outcome, QUEUES, Workload};
use super::world::{Content, Message, Place, Rules, payload};

/// How many messages the queues may hold before more is taken out than put in.
const LIVE_MAX: usize = 90;

impl Workload<'_> {
    pub fn perform_any(&mut self) -> Outcome<()> {
        let queue = QUEUES[self.random.below(5).min(2)];
        let full = self.world.live() > LIVE_MAX;
        match self.random.below(1000) {
            0..320 if !full => self.operate("insert", |run| run.insert(queue)),
            320..380 if !full => self.operate("insert_batch", |run| run.insert_batch(queue)),
            0..300 => self.operate("get", |run| run.get(queue, 1)),
            300..400 => self.operate("get_batch", |run| run.get(queue, 6)),
            400..500 => self.operate("get", |run| run.get(queue, 1)),
            500..680 => self.operate("delete", Self::delete),
            680..730 => self.operate("delete_batch", Self::delete_batch),
            730..770 => self.operate("release", |run| run.release(0)),
            770..790 => self.operate("release_after", |run| run.release(700)),
            790..840 => self.operate("fail", Self::fail),
            840..860 => self.operate("bury", Self::bury),
            860..866 => self.operate("purge", |run| run.purge(queue, State::Ready)),
            866..876 => self.operate("purge", |run| run.purge(queue, State::Buried)),
            876..880 => self.operate("purge", |run| run.purge(queue, State::Delayed)),
            880..884 => self.operate("purge", |run| run.purge(queue, State::InFlight)),
            884..889 => self.redeclare(),
            889..901 => self.on_another_queue(),
            901..906 => self.operate("sync", Self::sync),
            906..980 => self.operate("step", |run| run.steps(2)),
            980..990 => {
                let by_ms = [20, 300, 1100, 12_000][self.random.below(4)];
                self.operate("tick", |run| run.tick(by_ms))
            }
            990..995 => self.reopen(),
            _ => self.crash(),
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
        let rules = Rules { max_attempts: Some(most), ..self.world.queue("a").rules.clone() };
        self.operate("declare", |run| run.declare("a", rules))
    }

    /// A queue that comes and goes.
    fn on_another_queue(&mut self) -> Outcome<()> {
        if !self.world.queues.contains_key("t") {
            return self.operate("declare", |run| run.declare("t", Rules::default()));
        }
        match self.random.below(5) {
            0 | 1 => self.operate("insert", |run| run.insert("t")),
            2 => self.operate("get", |run| run.get("t", 2)),
            3 => self.operate("purge", |run| run.purge("t", State::Ready)),
            _ => self.operate("remove", Self::remove),
        }
    }

    fn remove(&mut self) -> Outcome<Durable> {
        let empty = self.world.queue("t").messages.is_empty();
        match self.store().remove("t") {
            Ok(()) if empty => {}
            Err(error) if !empty && *error.kind() == ErrorKind::NotEmpty => return Ok(false),
            other => return Err(format!("remove, empty {empty}: {other:?}")),
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

    pub fn insert(&mut self, queue: &'static str) -> Outcome<Durable> {
        let len = self.length();
        let payload = payload(self.highest_id + 1, len);
        let id = words(self.queue(queue)?.insert(&payload), "insert")?.as_u64();
        self.check_ids(id, 1)?;
        self.world.insert(queue, id, Content::of(&payload));
        self.note();
        Ok(self.inserts_are_synced())
    }

    fn insert_batch(&mut self, queue: &'static str) -> Outcome<Durable> {
        let count = 1 + self.random.below(7);
        let payloads: Vec<Vec<u8>> = (0..count)
            .map(|n| payload(self.highest_id + 1 + n as u64, self.random.below(2000)))
            .collect();
        let ids = words(self.queue(queue)?.insert_batch(&payloads), "insert_batch")?;
        self.check_ids(ids[0].as_u64(), count as u64)?;
        for (id, payload) in ids.iter().zip(&payloads) {
            self.world.insert(queue, id.as_u64(), Content::of(payload));
        }
        self.note();
        Ok(self.inserts_are_synced())
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
        while let Some(id) = self.world.queue(queue).first_exhausted() {
            self.retire(queue, id)?;
        }
        let expected = self.world.queue(queue).next(max);
        let handle = self.queue(queue)?;
        let got = match max {
            1 => words(handle.try_get(), "try_get")?.into_iter().collect(),
            _ => words(handle.get_batch(max, Duration::ZERO), "get_batch")?,
        };
        self.check_how_many(queue, &expected, &got)?;
        for (delivery, id) in got.into_iter().zip(expected) {
            self.tokens += 1;
            let token = self.tokens;
            let entry = self.world.queue_mut(queue);
            let lease_ms = entry.rules.lease_ms;
            let message = entry.messages.get_mut(&id).ok_or("the model has lost a message")?;
            message.attempts += 1;
            message.place = Place::InFlight(now.mono + lease_ms);
            message.token = token;
            check_delivery(&delivery, id, message)?;
            self.held.push(Held { delivery, queue, id, token });
        }
        self.note();
        Ok(false)
    }

    /// Fewer than expected may come where an index has to be loaded first, and none if no sync has covered them yet.
    fn check_how_many(&self, queue: &str, expected: &[u64], got: &[Delivery]) -> Outcome<()> {
        let invisible = |id: &u64| {
            let message = &self.world.queue(queue).messages[id];
            message.place == Place::Untouched && !self.is_durable(queue, *id)
        };
        let none_is_right = expected.iter().all(invisible) && self.inserts_are_synced();
        if got.len() > expected.len() || (got.is_empty() && !expected.is_empty() && !none_is_right)
        {
            return Err(format!("{queue}: got {} where {expected:?} is next", got.len()));
        }
        Ok(())
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

    fn purge(&mut self, queue: &'static str, which: State) -> Outcome<Durable> {
        let now = self.time();
        self.world.advance(queue, now);
        let (touched, untouched) = {
            let entry = self.world.queue(queue);
            match which {
                State::Ready => (
                    entry.ids_at(|place| place == Place::GivenBack),
                    entry.ids_at(|place| place == Place::Untouched),
                ),
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
        if purged != expected as u64 {
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
        Ok(self.deletes_are_synced() && expected > 0)
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
        delivery.attempt(),
        Content::of(delivery.payload()),
    );
    let expected = (id, message.origin, message.attempts, message.content);
    if got != expected {
        return Err(format!("got {got:?}, expected {expected:?}"));
    }
    Ok(())
}
