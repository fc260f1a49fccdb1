//! A queue of the model: its messages, what becomes of them, and which of them is next.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use millpond::{AtLimit, Backoff, ErrorKind, QueueOptions};

use super::content::{Content, KEYS};
use super::seen::UNKNOWN_ID;

/// How long, and how many of them, the queues know.
const WINDOW_MS: u64 = 15_000;
const WINDOW_KEYS: usize = 3;

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
    pub fn is_fading(&self, wall: u64) -> bool {
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

    pub fn exhausted(&self, attempts: u32) -> bool {
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
    pub unlearned: bool,
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
    pub fn probe_keys(&mut self, wall: u64) -> Vec<Option<u64>> {
        let probe = |key| {
            let known = self.known(key, wall);
            // Where nothing can make room, none is inserted.
            if known.is_none()
                && let Ok(victims) = self.make_room(1)
            {
                self.messages.retain(|id, _| !victims.contains(id));
                self.note_key(key, UNKNOWN_ID, wall);
            }
            known
        };
        (0..KEYS).map(probe).collect()
    }

    /// What can be delivered, and when it is its turn: by falling priority; of equals first those given back, then those
    /// that were delayed, by due time.
    pub fn deliverable(&self) -> impl Iterator<Item = (Turn, &Message)> {
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

    pub fn count(&self, place: impl Fn(Place) -> bool) -> u64 {
        self.messages.values().filter(|m| place(m.place)).count() as u64
    }

    /// Leases that have run out and delays that are over.
    pub fn advance(&mut self, now: Time) {
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
    pub fn pass_on_groups(&mut self) {
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
