//! A queue of the model: its messages, and which of them is next.
//!
//! Messages are in the order of their inserts, and go by that number: the ids are the store's to choose, and the model
//! learns them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::options::Options;
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
    pub fn beyond(&self, count: u64) -> u64 {
        let live = self.messages.len() as u64 + count;
        self.options.max_messages.map_or(0, |most| live.saturating_sub(most))
    }

    /// The ready messages in the order in which they make room.
    pub fn victims(&self) -> Vec<Seq> {
        let ready = |m: &Message| matches!(m.place, Place::GivenBack | Place::Untouched);
        let mut victims: Vec<_> = self.messages.iter().filter(|(_, m)| ready(m)).collect();
        victims.sort_by_key(|(seq, m)| (m.priority, m.place != Place::GivenBack, m.was_due, **seq));
        victims.into_iter().map(|(seq, _)| *seq).collect()
    }

    pub fn is_failing(&self) -> bool {
        self.options.pause_after > 0 && self.streak >= self.options.pause_after
    }

    /// Pauses itself if it has failed too often. What its last failures have used up gets one more attempt.
    pub fn pause_if_failing(&mut self) {
        if !self.is_failing() || self.paused.is_some() {
            return;
        }
        self.paused = Some(self.streak);
        self.spare();
    }

    /// Gives what the last failures have used up one more attempt.
    pub fn spare(&mut self) {
        let most = self.options.max_attempts.unwrap_or(u32::MAX);
        for message in self.messages.values_mut() {
            if message.place == Place::GivenBack && message.attempts >= most {
                message.attempts = most - 1;
                message.spared = true;
            }
        }
    }

    pub fn is_exhausted(&self, seq: Seq) -> bool {
        self.options.max_attempts.is_some_and(|most| self.messages[&seq].attempts >= most)
    }
}
