//! What a store is, in a few dozen lines without a file: the model that the real one is compared with.
//!
//! Times are in milliseconds. Messages are in the order of their inserts, and go by that number: the ids are the
//! store's to choose, and the model learns them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::window::Window;

pub type Seq = usize;

/// Keys and numbers, in order.
pub type Headers = Vec<(&'static str, i64)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Untouched,
    GivenBack,
    /// Until the lease ends, by the monotonic clock.
    InFlight(Option<u64>),
    /// Until then, by the wall clock.
    Delayed(u64),
    Buried,
}

#[derive(Clone, Debug)]
pub struct Message {
    pub payload: Vec<u8>,
    pub priority: u8,
    pub headers: Headers,
    pub id: Option<u64>,
    /// The first message of those that this one was moved from.
    pub origin: Seq,
    pub group: Option<u8>,
    /// Whether somebody has had it since it was inserted, or kicked.
    pub delivered: bool,
    /// Whether it was passed over since another one holds its group; then it is as if it was given back.
    pub waits: bool,
    /// Whether that is all that happened to it, and is forgotten when the process ends.
    pub unrecorded: bool,
    /// The queue that has given it up.
    pub from: Option<&'static str>,
    pub place: Place,
    pub attempts: u32,
    /// Whether its last attempt was taken off, which is recorded as given back: an extended lease changes nothing of that.
    pub spared: bool,
    /// The delivery that may settle it.
    pub holder: Option<u64>,
    /// The time for which it was delayed, which has come.
    pub was_due: Option<u64>,
    /// When it expires, by the wall clock.
    pub expiry: Option<u64>,
}

impl Message {
    /// Whether it has expired and nobody holds it: then it is never delivered, and nobody knows whether it is still there.
    pub fn is_fading(&self, wall: u64) -> bool {
        let is_free = !matches!(self.place, Place::InFlight(_) | Place::Buried);
        is_free && self.expiry.is_some_and(|expiry| expiry <= wall)
    }
}

/// In milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backoff {
    Fixed(u64),
    Exponential { first: u64, max: u64, jitter: u8 },
    List(Vec<u64>),
}

impl Backoff {
    fn is_possible(&self) -> bool {
        match self {
            Backoff::Fixed(_) => true,
            Backoff::Exponential { first, max, jitter } => first <= max && *jitter <= 100,
            Backoff::List(waits) => !waits.is_empty(),
        }
    }

    fn delay(&self, id: u64, attempts: u32) -> u64 {
        match self {
            Backoff::Fixed(delay) => *delay,
            Backoff::Exponential { first, max, jitter } => {
                let longest = (first << attempts.saturating_sub(1).min(31)).min(*max);
                let nanos = u128::from(longest) * 1_000_000;
                let off = (nanos * u128::from(scatter(id, attempts))) >> 32;
                let wait = (nanos - off * u128::from(*jitter) / 100) / 1_000_000;
                // Less than a millisecond is one.
                wait.max(1) as u64
            }
            Backoff::List(waits) => waits[waits.len().min(attempts.max(1) as usize) - 1],
        }
    }
}

/// What decides by how much a wait is shorter than its jitter would let it be at most.
fn scatter(id: u64, attempts: u32) -> u32 {
    let mut word = id.wrapping_add(u64::from(attempts).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((word ^ (word >> 31)) >> 32) as u32
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub lease: Option<u64>,
    pub max_attempts: Option<u32>,
    pub backoff: Backoff,
    pub release_on_drop: bool,
    pub dead_letter: Option<&'static str>,
    pub max_messages: Option<u64>,
    /// Whether the oldest messages make room.
    pub drops: bool,
    /// How long deduplication keys are known, and how many.
    pub window: (u64, usize),
    /// 0 for never.
    pub pause_after: u32,
}

impl Default for Options {
    /// The library's.
    fn default() -> Options {
        Options {
            lease: Some(30 * 60 * 1000),
            max_attempts: None,
            backoff: Backoff::Exponential { first: 100, max: 60_000, jitter: 0 },
            release_on_drop: false,
            dead_letter: None,
            max_messages: None,
            drops: false,
            window: (300_000, 100_000),
            pause_after: 0,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Queue {
    pub options: Options,
    pub messages: BTreeMap<Seq, Message>,
    pub window: Window,
    /// Who holds each group, and whether it went out: the one that did last, until it is done with, and then the next of
    /// those that wait.
    pub holders: BTreeMap<u8, (Seq, bool)>,
    /// Whether the process has ended since these were asked for.
    pub unlearned: bool,
    /// Failures that have paused it, or 0 if somebody has.
    pub paused: Option<u32>,
    /// Failures in a row.
    pub streak: u32,
    /// Differs between two queues of one name, the first of which was removed.
    pub incarnation: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub ready: u64,
    pub in_flight: u64,
    pub delayed: u64,
    pub buried: u64,
    /// Of those that are ready or delayed, how many may be gone.
    pub fading: u64,
}

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

impl Queue {
    /// The next one to go out. Those before it have to wait for their groups.
    pub fn next(&mut self, wall: u64) -> Option<Seq> {
        self.pass_on_groups();
        loop {
            let seq = self.first(wall)?;
            if self.may_go(seq) {
                return Some(seq);
            }
            let message = self.messages.get_mut(&seq).unwrap();
            message.waits = true;
            if message.place == Place::Untouched {
                message.place = Place::GivenBack;
                message.unrecorded = true;
            }
        }
    }

    fn may_go(&mut self, seq: Seq) -> bool {
        let Some(group) = self.messages[&seq].group else { return true };
        if std::mem::take(&mut self.unlearned) {
            let messages = &self.messages;
            self.holders.retain(|_, (holder, _)| messages[holder].delivered);
            self.holders.values_mut().for_each(|(_, is_out)| *is_out = true);
        }
        match self.holders.get(&group) {
            Some(&(holder, is_out)) if holder != seq => {
                if is_out || self.messages[&holder].priority >= self.messages[&seq].priority {
                    return false;
                }
                // One that is more urgent comes first.
                self.holders.insert(group, (seq, false));
                let next = self.messages.get_mut(&holder).unwrap();
                next.waits = next.place == Place::GivenBack;
                true
            }
            _ => true,
        }
    }

    /// Whoever is done with lets go of its group, and the next of those that wait holds it.
    pub fn pass_on_groups(&mut self) {
        let messages = &self.messages;
        let done = |seq: &Seq| messages.get(seq).is_none_or(|m| m.place == Place::Buried);
        let free = self.holders.iter().filter(|(_, (id, _))| done(id)).map(|(group, _)| *group);
        for group in free.collect::<Vec<u8>>() {
            self.holders.remove(&group);
            let waiting = self.messages.iter_mut().filter(|(_, m)| m.waits);
            let waiting = waiting.filter(|(_, message)| message.group == Some(group));
            let next = waiting.min_by_key(|(seq, m)| (Reverse(m.priority), m.was_due, **seq));
            if let Some((seq, message)) = next {
                message.waits = false;
                self.holders.insert(group, (*seq, false));
            }
        }
    }

    /// Of those that do not wait: of the highest priority, and of these the given back ones first, then those that were
    /// delayed, by due time.
    fn first(&self, wall: u64) -> Option<Seq> {
        let ready = self
            .messages
            .iter()
            .filter(|(_, m)| matches!(m.place, Place::GivenBack | Place::Untouched))
            .filter(|(_, m)| !m.waits && !m.is_fading(wall));
        let turn = |(seq, m): &(&Seq, &Message)| {
            (Reverse(m.priority), m.place != Place::GivenBack, m.was_due, **seq)
        };
        ready.min_by_key(turn).map(|(seq, _)| *seq)
    }

    /// Those in these places, as they are shown: ready ones by priority, and of equals, like all others, by age.
    pub fn at(&self, wall: u64, hits: impl Fn(Place) -> bool) -> Vec<Seq> {
        let hits = self.messages.iter().filter(|(_, message)| hits(message.place));
        let there = hits.filter(|(_, message)| !message.is_fading(wall));
        let mut seqs: Vec<Seq> = there.map(|(seq, _)| *seq).collect();
        let ready =
            |seq: &Seq| matches!(self.messages[seq].place, Place::Untouched | Place::GivenBack);
        seqs.sort_by_key(|seq| Reverse(ready(seq).then_some(self.messages[seq].priority)));
        seqs
    }

    pub fn counts(&self, wall: u64) -> Counts {
        let mut counts = Counts::default();
        for message in self.messages.values() {
            counts.fading += u64::from(message.is_fading(wall));
            match message.place {
                Place::Untouched | Place::GivenBack => counts.ready += 1,
                Place::InFlight(_) => counts.in_flight += 1,
                Place::Delayed(_) => counts.delayed += 1,
                Place::Buried => counts.buried += 1,
            }
        }
        counts
    }

    /// How many messages there are too many for `count` more.
    fn beyond(&self, count: u64) -> u64 {
        let live = self.messages.len() as u64 + count;
        self.options.max_messages.map_or(0, |most| live.saturating_sub(most))
    }

    /// The ready messages in the order in which they make room.
    fn victims(&self) -> Vec<Seq> {
        let ready = |m: &Message| matches!(m.place, Place::GivenBack | Place::Untouched);
        let mut victims: Vec<_> = self.messages.iter().filter(|(_, m)| ready(m)).collect();
        victims.sort_by_key(|(seq, m)| (m.priority, m.place != Place::GivenBack, m.was_due, **seq));
        victims.into_iter().map(|(seq, _)| *seq).collect()
    }

    fn is_failing(&self) -> bool {
        self.options.pause_after > 0 && self.streak >= self.options.pause_after
    }

    /// Pauses itself if it has failed too often. What its last failures have used up gets one more attempt.
    fn pause_if_failing(&mut self) {
        if !self.is_failing() || self.paused.is_some() {
            return;
        }
        self.paused = Some(self.streak);
        let most = self.options.max_attempts.unwrap_or(u32::MAX);
        for message in self.messages.values_mut() {
            if message.place == Place::GivenBack && message.attempts >= most {
                message.attempts = most - 1;
                message.spared = true;
            }
        }
    }

    fn is_exhausted(&self, seq: Seq) -> bool {
        self.options.max_attempts.is_some_and(|most| self.messages[&seq].attempts >= most)
    }
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
            match self.make_room(home, 1) {
                Err(refused) if moved == 0 => return Err(refused),
                Err(_) => break,
                Ok(()) => {}
            }
            // It may have made room for what made room.
            let messages = &mut self.queues.get_mut(name).unwrap().messages;
            let Some(message) = messages.remove(&seq) else { continue };
            self.insert_moved(home, message, home);
            moved += 1;
        }
        Ok(moved as u64)
    }

    pub fn pause(&mut self, name: &'static str) {
        self.queues.get_mut(name).unwrap().paused.get_or_insert(0);
    }

    pub fn resume(&mut self, name: &'static str) {
        let queue = self.queues.get_mut(name).unwrap();
        if queue.paused.take().is_some() {
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
