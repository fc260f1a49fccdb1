//! What the process does that is killed: a script that follows from a seed, and what it makes of the model.
//!
//! The process and its parent run the same script, the parent on the model alone. So of a process that died it is enough
//! to know how far it came. There are no leases and no delays in it: nothing depends on the time.

use std::sync::Arc;

use millpond::State;

use crate::content::{Content, DEAD, payload};
use crate::queue::{Place, Rules};
use crate::world::World;

/// How many messages the queues may hold before more is taken out than put in.
const LIVE_MAX: usize = 70;

/// What a consumer holds at most.
const HELD_MAX: usize = 30;

/// So many messages are put in at once.
const SOWN: usize = 130;

/// Of so many of them one stays, so that segments are left with little in them, and rewritten.
const LEFT_EVERY: u64 = 8;

const BATCH: usize = 10;

#[derive(Clone, Debug)]
pub enum Step {
    Declare {
        queue: &'static str,
        rules: Rules,
    },
    /// One message by an insert, several by a batch: what each is made from, and its length.
    Insert {
        queue: &'static str,
        messages: Vec<(u64, usize)>,
    },
    Get {
        queue: &'static str,
        max: usize,
    },
    Delete(u64),
    DeleteBatch {
        queue: &'static str,
        ids: Vec<u64>,
    },
    Release(u64),
    Fail(u64),
    Bury(u64),
    Purge {
        queue: &'static str,
        which: State,
    },
    Remove {
        queue: &'static str,
    },
    Sync,
    /// All that the background threads would do.
    Maintain,
    Backup,
    Reopen,
}

/// A message as it must be delivered.
pub type Expected = (u64, u64, u32, Content);

/// What the store must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    /// The id of the first.
    Inserted(u64),
    Got(Vec<Expected>),
    Failed {
        /// Delivered again, and not moved or buried.
        again: bool,
    },
    Purged(u64),
}

/// What a step does.
pub struct Effect {
    pub answer: Answer,
    /// The states that it leads through, in order. A kill may leave any of them.
    pub worlds: Vec<Arc<World>>,
}

/// The part of the script that is being played.
enum Act {
    /// So many messages are to be put in.
    Sow(usize),
    /// Most of them are taken out.
    Reap,
    /// What was left of them is given back.
    GiveBack,
    /// So many steps of any kind.
    Any(usize),
}

pub struct Script {
    random: Random,
    acts_left: usize,
    act: Act,
    act_steps: usize,
    /// Steps that come before any others, last first.
    planned: Vec<Step>,
    world: World,
    worlds: Vec<Arc<World>>,
    /// What was got and is not settled.
    held: Vec<(&'static str, u64)>,
    next_id: u64,
}

impl Script {
    /// `acts` times a crop, and then `steps` of any kind.
    pub fn new(seed: u64, acts: usize, steps: usize) -> Script {
        let a = Rules { max_attempts: Some(3), backoff_ms: 0, ..Rules::default() };
        let b = Rules { max_attempts: Some(2), dead_letter: Some(DEAD), ..a.clone() };
        let dead = Rules { max_attempts: None, ..a.clone() };
        let declare = |queue, rules| Step::Declare { queue, rules };
        Script {
            random: Random(seed),
            acts_left: acts,
            act: Act::Sow(SOWN),
            act_steps: steps,
            planned: vec![declare("b", b), declare("a", a), declare(DEAD, dead)],
            world: World::default(),
            worlds: Vec::new(),
            held: Vec::new(),
            next_id: 1,
        }
    }

    /// The next step; None at the end.
    pub fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(step) = self.planned.pop() {
                return Some(step);
            }
            match self.act {
                Act::Sow(0) => self.act = Act::Reap,
                Act::Sow(left) => {
                    self.act = Act::Sow(left - BATCH);
                    return Some(self.insert("a", BATCH));
                }
                Act::Reap => match self.reap() {
                    Some(step) => return Some(step),
                    None => self.act = Act::GiveBack,
                },
                Act::GiveBack => match self.held.last() {
                    Some((_, id)) => return Some(Step::Release(*id)),
                    None => {
                        self.planned = vec![Step::Maintain, Step::Reopen, Step::Maintain];
                        self.act = Act::Any(self.act_steps);
                    }
                },
                Act::Any(0) if self.acts_left == 1 => {
                    self.acts_left = 0;
                    self.planned = vec![Step::Reopen];
                }
                Act::Any(0) if self.acts_left == 0 => return None,
                Act::Any(0) => {
                    self.acts_left -= 1;
                    self.act = Act::Sow(SOWN);
                }
                Act::Any(left) => {
                    self.act = Act::Any(left - 1);
                    return Some(self.any());
                }
            }
        }
    }

    /// Takes messages out of queue `a`, and deletes all but a few.
    fn reap(&self) -> Option<Step> {
        let of_queue = self.held.iter().filter(|(queue, id)| *queue == "a" && id % LEFT_EVERY > 0);
        let ids: Vec<u64> = of_queue.map(|(_, id)| *id).collect();
        let waits = |place| matches!(place, Place::Untouched | Place::GivenBack);
        let is_empty = self.world.queue("a").ids_at(waits).is_empty();
        match ids.len() {
            0 if is_empty => None,
            n if n >= BATCH || is_empty => Some(Step::DeleteBatch { queue: "a", ids }),
            _ => Some(Step::Get { queue: "a", max: BATCH }),
        }
    }

    fn any(&mut self) -> Step {
        let queue = ["a", "b", "a", "b", DEAD][self.random.below(5)];
        let is_full = self.world.live() > LIVE_MAX;
        let holds_much = self.held.len() > HELD_MAX;
        match self.random.below(100) {
            0..22 if !is_full => self.insert(queue, 1),
            22..27 if !is_full => {
                let count = 2 + self.random.below(5);
                self.insert(queue, count)
            }
            27..50 if !holds_much => Step::Get { queue, max: 1 },
            50..56 if !holds_much => Step::Get { queue, max: 6 },
            0..86 => self.settle().unwrap_or(Step::Get { queue, max: 1 }),
            86 => Step::Purge { queue, which: State::Ready },
            87 => Step::Purge { queue, which: State::Buried },
            88..92 => self.on_another_queue(),
            92..94 => Step::Sync,
            94..98 => Step::Maintain,
            98 => Step::Backup,
            _ => Step::Reopen,
        }
    }

    /// A queue that comes and goes.
    fn on_another_queue(&mut self) -> Step {
        let queue = "t";
        let Some(found) = self.world.queues.get(queue) else {
            return Step::Declare { queue, rules: Rules { backoff_ms: 0, ..Rules::default() } };
        };
        match self.random.below(4) {
            _ if found.messages.is_empty() => Step::Remove { queue },
            0 | 1 => Step::Purge { queue, which: State::Ready },
            2 => Step::Get { queue, max: 2 },
            _ => self.insert(queue, 1),
        }
    }

    fn settle(&mut self) -> Option<Step> {
        if self.held.is_empty() {
            return None;
        }
        let (queue, id) = self.held[self.random.below(self.held.len())];
        Some(match self.random.below(20) {
            0..9 => Step::Delete(id),
            9..12 => {
                let of_queue = self.held.iter().filter(|held| held.0 == queue);
                Step::DeleteBatch { queue, ids: of_queue.map(|held| held.1).collect() }
            }
            12..15 => Step::Release(id),
            15..19 => Step::Fail(id),
            _ => Step::Bury(id),
        })
    }

    fn insert(&mut self, queue: &'static str, count: usize) -> Step {
        let tags = self.next_id..self.next_id + count as u64;
        let messages = tags.map(|tag| (tag, self.message_bytes(count == 1))).collect();
        Step::Insert { queue, messages }
    }

    /// Long ones not in a batch, which has to fit in a segment.
    fn message_bytes(&mut self, may_be_long: bool) -> usize {
        match self.random.below(100) {
            // It gets a segment of its own.
            0 if may_be_long => 66_000,
            1..6 if may_be_long => 9_000 + self.random.below(5_000),
            0..12 => 0,
            12..25 => self.random.below(60),
            _ => self.random.below(2_000),
        }
    }

    /// The highest id that was given out so far.
    pub fn highest_id(&self) -> u64 {
        self.next_id - 1
    }

    /// Does the step to the model.
    pub fn play(&mut self, step: &Step) -> Effect {
        let answer = match step {
            Step::Declare { queue, rules } => self.declare(queue, rules),
            Step::Insert { queue, messages } => self.put_in(queue, messages),
            Step::Get { queue, max } => self.get(queue, *max),
            Step::Delete(id) => self.delete(&[*id]),
            Step::DeleteBatch { ids, .. } => self.delete(ids),
            Step::Release(id) => {
                let (queue, attempts) = self.settled(*id);
                self.world.put(queue, *id, attempts - 1, Place::GivenBack);
                self.note(Answer::Nothing)
            }
            Step::Fail(id) => self.fail(*id),
            Step::Bury(id) => {
                let (queue, _) = self.settled(*id);
                self.retire(queue, *id);
                Answer::Nothing
            }
            Step::Purge { queue, which } => self.purge(queue, *which),
            Step::Remove { queue } => {
                self.world.queues.remove(queue);
                self.note(Answer::Nothing)
            }
            Step::Sync | Step::Maintain | Step::Backup => Answer::Nothing,
            Step::Reopen => self.close(),
        };
        Effect { answer, worlds: std::mem::take(&mut self.worlds) }
    }

    /// The log describes this state now.
    fn note(&mut self, answer: Answer) -> Answer {
        self.worlds.push(Arc::new(self.world.clone()));
        answer
    }

    fn declare(&mut self, queue: &'static str, rules: &Rules) -> Answer {
        self.world.queue_mut(queue).rules = rules.clone();
        self.note(Answer::Nothing)
    }

    fn put_in(&mut self, queue: &'static str, messages: &[(u64, usize)]) -> Answer {
        let first = self.next_id;
        for (id, (tag, len)) in (first..).zip(messages) {
            self.world.insert(queue, id, Content::of(&payload(*tag, *len)));
        }
        self.next_id += messages.len() as u64;
        self.note(Answer::Inserted(first))
    }

    fn get(&mut self, queue: &'static str, max: usize) -> Answer {
        while let Some(id) = self.world.queue(queue).first_exhausted() {
            self.retire(queue, id);
        }
        let mut got = Vec::new();
        for id in self.world.queue_mut(queue).take_next(max, |_| true) {
            if let Some(message) = self.world.queue_mut(queue).messages.get_mut(&id) {
                message.attempts += 1;
                message.place = Place::InFlight(u64::MAX);
                got.push((id, message.origin, message.attempts, message.content));
            }
            self.held.push((queue, id));
            self.note(Answer::Nothing);
        }
        Answer::Got(got)
    }

    /// Nobody holds the message any more. Its queue, and its attempts.
    fn settled(&mut self, id: u64) -> (&'static str, u32) {
        let at = self.held.iter().position(|held| held.1 == id).expect("the script holds it");
        let (queue, _) = self.held.remove(at);
        (queue, self.world.queue(queue).messages[&id].attempts)
    }

    fn delete(&mut self, ids: &[u64]) -> Answer {
        for id in ids {
            let (queue, _) = self.settled(*id);
            self.world.queue_mut(queue).messages.remove(id);
        }
        self.note(Answer::Nothing)
    }

    fn fail(&mut self, id: u64) -> Answer {
        let (queue, attempts) = self.settled(id);
        let again = !self.world.queue(queue).is_exhausted(id);
        if again {
            self.world.put(queue, id, attempts, Place::GivenBack);
            self.note(Answer::Nothing);
        } else {
            self.retire(queue, id);
        }
        Answer::Failed { again }
    }

    fn retire(&mut self, queue: &'static str, id: u64) {
        if self.world.retire(queue, id, self.next_id) {
            self.next_id += 1;
        }
        self.note(Answer::Nothing);
    }

    fn purge(&mut self, queue: &'static str, which: State) -> Answer {
        let places: &[Place] = match which {
            State::Ready => &[Place::GivenBack, Place::Untouched],
            _ => &[Place::Buried],
        };
        let mut purged = 0;
        for place in places {
            let of_queue = self.world.queue(queue).messages.iter();
            let ids: Vec<u64> =
                of_queue.filter(|(_, m)| m.place == *place).map(|(id, _)| *id).collect();
            for id in ids {
                self.world.queue_mut(queue).messages.remove(&id);
                purged += 1;
                // It may take several appends, in order.
                self.note(Answer::Nothing);
            }
        }
        Answer::Purged(purged)
    }

    /// What is in flight is given back uncounted.
    fn close(&mut self) -> Answer {
        // In the order of their first declaration.
        for name in [DEAD, "a", "b", "t"] {
            if !self.world.queues.contains_key(name) {
                continue;
            }
            for id in self.world.queue(name).ids_at(|place| matches!(place, Place::InFlight(_))) {
                let attempts = self.world.queue(name).messages[&id].attempts - 1;
                self.world.put(name, id, attempts, Place::GivenBack);
                self.note(Answer::Nothing);
            }
        }
        self.held.clear();
        Answer::Nothing
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 8) as usize % end
    }
}
