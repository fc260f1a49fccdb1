//! What the journals say must be in the store: every message, where it may be, and what may have become of it.
//!
//! Only what was under way at the moment of the kill is uncertain. What the store holds after the kill settles it, and
//! from then on it must stay so.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use crate::journal::{Kind, Record};
use crate::load::{
    PRIORITIES, QUEUES, SINGLE, TROUBLED, TROUBLES_MAX, comes_in_order, group, priority, ttl,
};

/// A message that may be in the store.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    queue: u8,
    id: Option<u64>,
    /// It is known to have been inserted: the insert returned, or it was seen.
    sure: bool,
    /// It was delivered at least once.
    touched: bool,
    /// It is in flight, and nobody has begun to settle it.
    held: bool,
    /// Its delete has begun and not returned.
    deleting: bool,
    /// Which attempt its next delivery may be, from and to.
    next: (u32, u32),
}

/// A message as it was found after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub queue: u8,
    pub id: u64,
    pub key: u64,
    pub attempt: u32,
}

#[derive(Debug, Default)]
pub struct Figures {
    pub rounds: u32,
    pub killed_while_opening: u32,
    pub inserts: u64,
    pub inserts_cut_short: u64,
    /// Inserted again after the kill, with a key that must be known.
    pub duplicates: u64,
    pub deliveries: u64,
    pub redeliveries: u64,
    pub deletes: u64,
    pub in_flight_when_killed: u64,
    /// Found after the kills.
    pub dead_letters: u64,
    pub checked: u64,
    pub disk_bytes_max: u64,
    /// Once compaction has caught up.
    pub settled_bytes_max: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds ({} killed while opening), {} acknowledged inserts ({} cut short), \
             {} inserted again, {} deliveries ({} of them again), {} acknowledged deletes, {} in flight when killed, \
             {} dead letters found, {} messages checked, at most {} KiB of disk, {} once settled",
            self.rounds,
            self.killed_while_opening,
            self.inserts,
            self.inserts_cut_short,
            self.duplicates,
            self.deliveries,
            self.redeliveries,
            self.deletes,
            self.in_flight_when_killed,
            self.dead_letters,
            self.checked,
            self.disk_bytes_max >> 10,
            self.settled_bytes_max >> 10,
        )
    }
}

/// What a kill has left open.
#[derive(Debug, Default)]
struct Uncertain {
    /// First key and count of inserts that have not returned.
    inserts: Vec<(u64, u64)>,
    /// How many messages of each queue a get may have taken without returning.
    gets: [u64; QUEUES.len()],
    /// Messages whose settling has begun and not returned.
    settling: u64,
}

#[derive(Default)]
pub struct Model {
    live: HashMap<u64, Message>,
    /// Deleted, or never inserted. They must not appear again.
    gone: HashSet<u64>,
    /// Whose id each id is.
    ids: HashMap<u64, u64>,
    /// The highest id that was delivered of each queue and priority.
    highest: [[u64; PRIORITIES]; QUEUES.len()],
    groups: BTreeMap<u8, Group>,
    /// Whether the queue that is paused now and then is. None if that was under way.
    paused: Option<bool>,
    uncertain: Uncertain,
    pub figures: Figures,
}

type Checked<T = ()> = Result<T, String>;

/// A delivery, and what was done with it.
struct Delivered {
    got: Record,
    settling: Option<Kind>,
    /// When that began; for ever if it has not.
    settling_at: u64,
    settled: bool,
}

/// What is known of a group.
#[derive(Debug, Default)]
struct Group {
    /// Of those that nobody had had before, the last that was delivered.
    highest: u64,
    /// The last that was delivered, and until when it was held, since the child began.
    last: Option<(u64, u64)>,
    /// The only one that may be next, and whether that outlives the process.
    next: Option<(u64, bool)>,
}

impl Model {
    /// Takes in what the threads of a round have written.
    pub fn play(&mut self, journals: &[Vec<Record>]) -> Checked {
        self.uncertain = Uncertain::default();
        for journal in journals {
            self.play_inserts(journal)?;
        }
        let mut delivered: Vec<Delivered> = Vec::new();
        for journal in journals {
            delivered.extend(deliveries(journal));
            if let Some((queue, left)) = open_get(journal) {
                self.uncertain.gets[queue as usize] += left;
            }
        }
        // A message is got again only after its last delivery was written down and then settled.
        delivered.sort_by_key(|delivered| delivered.got.at);
        for group in self.groups.values_mut() {
            group.last = None;
            group.next = group.next.filter(|(_, lasts)| *lasts);
        }
        delivered.iter().try_for_each(|delivered| self.play_delivery(delivered))?;
        self.figures.in_flight_when_killed += self.held();
        Ok(())
    }

    /// Takes in what the thread has written that pauses a queue.
    pub fn play_pauses(&mut self, journal: &[Record]) {
        let mut asked = false;
        for record in journal {
            match record.kind {
                Kind::Settled => self.paused = Some(asked),
                kind => (asked, self.paused) = (kind == Kind::Pausing, None),
            }
        }
    }

    /// Takes in what the thread has written that sees to the troubled queue: which messages it has deleted. Where the others
    /// are, there or among the dead letters, it does not say, and their ids change on the way.
    pub fn play_troubles(&mut self, journal: &[Record]) -> Checked {
        for record in journal {
            match record.kind {
                Kind::Deleting => {
                    let message = self.message(record.key)?;
                    (message.sure, message.deleting) = (true, true);
                }
                Kind::Settled => {
                    self.bury(record.key);
                    self.figures.deletes += 1;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Compares that with what is found, and takes it for the truth from now on.
    pub fn check_paused(&mut self, paused: bool) -> Checked {
        match self.paused.replace(paused) {
            Some(expected) if expected != paused => {
                Err(format!("the queue is paused: {paused}, and was: {expected}"))
            }
            _ => Ok(()),
        }
    }

    fn play_inserts(&mut self, journal: &[Record]) -> Checked {
        let mut open = None;
        for record in journal {
            let keys = record.key..record.key + u64::from(record.count);
            match record.kind {
                Kind::Inserting => {
                    let new = Message {
                        queue: record.queue,
                        id: None,
                        sure: false,
                        touched: false,
                        held: false,
                        deleting: false,
                        next: (1, 1),
                    };
                    self.live.extend(keys.map(|key| (key, new)));
                    open = Some((record.key, u64::from(record.count)));
                }
                Kind::Inserted => {
                    for (key, id) in keys.zip(record.id..) {
                        self.identify(key, id)?;
                        self.message(key)?.sure = true;
                    }
                    self.figures.inserts += u64::from(record.count);
                    open = None;
                }
                _ => {}
            }
        }
        self.uncertain.inserts.extend(open);
        Ok(())
    }

    /// The message `key` has this id, and no other message has it or ever had it.
    fn identify(&mut self, key: u64, id: u64) -> Checked {
        let owner = *self.ids.entry(id).or_insert(key);
        let message = self.message(key)?;
        if owner != key {
            return Err(format!("id {id} is that of {key:#x}, and was that of {owner:#x}"));
        }
        match message.id.replace(id) {
            Some(other) if other != id => {
                Err(format!("message {key:#x} has the ids {other} and {id}: it is there twice"))
            }
            _ => Ok(()),
        }
    }

    fn message(&mut self, key: u64) -> Checked<&mut Message> {
        if self.gone.contains(&key) {
            return Err(format!(
                "message {key:#x} is back: its delete had returned, or it had gone"
            ));
        }
        self.live.get_mut(&key).ok_or_else(|| format!("nobody has inserted message {key:#x}"))
    }

    fn play_delivery(&mut self, delivered: &Delivered) -> Checked {
        let Record { key, id, attempt, queue, .. } = delivered.got;
        self.identify(key, id)?;
        self.note_delivered(queue, key, id);
        self.play_group(delivered)?;
        self.figures.deliveries += 1;
        self.figures.redeliveries += u64::from(attempt > 1);
        let message = self.message(key)?;
        if message.queue != queue || message.held || message.deleting {
            return Err(format!("{message:?} was delivered: {:?}", delivered.got));
        }
        if !(message.next.0..=message.next.1).contains(&attempt) {
            return Err(format!("attempt {attempt} of {key:#x}, which was {message:?}"));
        }
        (message.sure, message.touched) = (true, true);
        message.held = delivered.settling.is_none();
        // In flight, failed, or not deleted yet: the attempt counts.
        message.next = (attempt + 1, attempt + 1);
        match delivered.settling {
            Some(Kind::Releasing) => message.next.0 = attempt,
            Some(Kind::Deleting) => message.deleting = true,
            // If it was kicked, it begins anew.
            Some(Kind::Burying) => message.next.0 = 1,
            _ => {}
        }
        match (delivered.settling, delivered.settled) {
            (Some(Kind::Deleting), true) => {
                self.bury(key);
                self.figures.deletes += 1;
            }
            (Some(Kind::Releasing), true) => message.next = (attempt, attempt),
            (Some(Kind::Burying), true) => message.next = (1, 1),
            (Some(_), false) => self.uncertain.settling += 1,
            _ => {}
        }
        Ok(())
    }

    /// Of a group one message is out at a time, and nobody has had any that comes before those that were delivered. One that
    /// was not done with is the next.
    fn play_group(&mut self, delivered: &Delivered) -> Checked {
        let Record { key, id, queue, at, .. } = delivered.got;
        let Some(name) = group(queue, key) else { return Ok(()) };
        let is_new = !self.message(key)?.touched;
        let group = self.groups.entry(name).or_default();
        let was_held = group.last.is_some_and(|(_, until)| at < until);
        if was_held || group.next.is_some_and(|(next, _)| next != key) {
            return Err(format!("{:?} was delivered beside others: {group:?}", delivered.got));
        }
        if is_new && id <= group.highest {
            return Err(format!("{:?} was delivered late: {group:?}", delivered.got));
        }
        if is_new {
            group.highest = id;
        }
        group.last = Some((key, delivered.settling_at));
        group.next = match delivered.settling {
            None | Some(Kind::Failing) => Some((key, true)),
            // Without an attempt, nothing may say any more that it was delivered.
            Some(Kind::Releasing) => Some((key, false)),
            _ => None,
        };
        Ok(())
    }

    fn bury(&mut self, key: u64) {
        self.live.remove(&key);
        self.gone.insert(key);
    }

    fn held(&self) -> u64 {
        self.live.values().filter(|message| message.held).count() as u64
    }

    /// How many messages may have been in flight when the round was killed, at least and at most.
    pub fn in_flight(&self) -> (u64, u64) {
        let held = self.held();
        let gets = self.uncertain.gets.iter().sum::<u64>();
        (held, held + self.uncertain.settling + gets + TROUBLES_MAX as u64)
    }

    /// Compares what the store holds with what it must hold, and takes it for the truth from now on.
    pub fn check(&mut self, seen: &[Seen]) -> Checked {
        let mut present = HashSet::new();
        for seen in seen {
            if !present.insert(seen.key) {
                return Err(format!("it is there twice: {seen:?}"));
            }
            self.check_seen(seen)?;
        }
        self.check_order(seen)?;
        self.check_whole_batches(&present)?;
        let missing: Vec<u64> =
            self.live.keys().copied().filter(|key| !present.contains(key)).collect();
        for key in missing {
            let message = self.message(key)?;
            let may_expire = ttl(message.queue, key).is_some();
            if message.sure && !message.deleting && !may_expire {
                return Err(format!("message {key:#x} is lost: {message:?}"));
            }
            if !message.sure {
                self.figures.inserts_cut_short += 1;
            }
            self.bury(key);
        }
        self.figures.checked += seen.len() as u64;
        Ok(())
    }

    fn check_seen(&mut self, seen: &Seen) -> Checked {
        if seen.queue == TROUBLED {
            let message = self.message(seen.key)?;
            (message.sure, message.deleting) = (true, false);
            return Ok(());
        }
        self.identify(seen.key, seen.id)?;
        let queue = seen.queue as usize;
        let message = self.message(seen.key)?;
        let was = *message;
        if message.queue != seen.queue {
            return Err(format!("{message:?} is in another queue: {seen:?}"));
        }
        let by_unreturned_get = !message.held && seen.attempt == message.next.1 + 1;
        message.touched |= by_unreturned_get;
        (message.sure, message.held, message.deleting) = (true, false, false);
        message.next = (seen.attempt, seen.attempt);
        if by_unreturned_get {
            let left = self.uncertain.gets[queue].checked_sub(1);
            self.uncertain.gets[queue] =
                left.ok_or_else(|| format!("nobody was getting {seen:?}, which was {was:?}"))?;
            self.note_delivered(seen.queue, seen.key, seen.id);
        } else if !(was.next.0..=was.next.1).contains(&seen.attempt) {
            return Err(format!("its next attempt is {}, and it was {was:?}", seen.attempt));
        }
        Ok(())
    }

    fn note_delivered(&mut self, queue: u8, key: u64, id: u64) {
        if !comes_in_order(queue, key) {
            return;
        }
        let highest = &mut self.highest[queue as usize][priority(queue, key) as usize];
        *highest = id.max(*highest);
    }

    /// What nobody has touched comes by falling priority, in the order of the inserts, and behind all that was ever
    /// delivered of its priority.
    fn check_order(&self, seen: &[Seen]) -> Checked {
        let mut last = self.highest;
        let mut lowest = [u8::MAX; QUEUES.len()];
        let in_order =
            |seen: &&Seen| !self.live[&seen.key].touched && comes_in_order(seen.queue, seen.key);
        for seen in seen.iter().filter(in_order) {
            let (queue, priority) = (seen.queue as usize, priority(seen.queue, seen.key));
            let last = &mut last[queue][priority as usize];
            if seen.id <= *last || priority > lowest[queue] {
                let lowest = lowest[queue];
                return Err(format!("id {last} or priority {lowest} came before {seen:?}"));
            }
            *last = seen.id;
            lowest[queue] = priority;
        }
        // In the single queue nothing is delayed: what was given back comes first, in order too.
        let single = seen.iter().filter(|seen| seen.queue == SINGLE);
        let order: Vec<_> = single.map(|seen| (!self.live[&seen.key].touched, seen.id)).collect();
        match order.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => {
                Err(format!("in the single queue, {:?} came before {:?}", pair[0], pair[1]))
            }
            None => Ok(()),
        }
    }

    /// An insert that did not return has taken effect as a whole, or not at all.
    fn check_whole_batches(&self, present: &HashSet<u64>) -> Checked {
        for &(first, count) in &self.uncertain.inserts {
            // Or its delete was under way, too.
            let seen = |key: &u64| self.live.get(key).is_some_and(|message| message.sure);
            let there = |key: &u64| present.contains(key) || self.gone.contains(key) || seen(key);
            let lasts = |key: &u64| ttl(self.live[key].queue, *key).is_none();
            let batch = (first..first + count).filter(|key| self.live.contains_key(key));
            let batch: Vec<u64> = batch.filter(lasts).collect();
            let inserted = batch.iter().filter(|key| there(key)).count();
            if inserted != 0 && inserted != batch.len() {
                return Err(format!("{inserted} of the {count} messages of batch {first:#x}"));
            }
        }
        Ok(())
    }

    /// The messages of the single queue that will be delivered before all others.
    pub fn given_back(&self) -> BTreeSet<u64> {
        let touched = self.live.values().filter(|m| m.queue == SINGLE && m.touched);
        touched.filter_map(|message| message.id).collect()
    }

    pub fn highest_single(&self) -> u64 {
        self.highest[SINGLE as usize][0]
    }
}

/// The deliveries of one consumer, each with what it did with it.
fn deliveries(journal: &[Record]) -> Vec<Delivered> {
    let mut delivered: Vec<Delivered> = Vec::new();
    let mut open: HashMap<u64, usize> = HashMap::new();
    for record in journal {
        match record.kind {
            Kind::Got => {
                open.insert(record.id, delivered.len());
                let (settling, settling_at, settled) = (None, u64::MAX, false);
                delivered.push(Delivered { got: *record, settling, settling_at, settled });
            }
            Kind::Deleting | Kind::Releasing | Kind::Failing | Kind::Burying => {
                let delivered = &mut delivered[open[&record.id]];
                delivered.settling = Some(record.kind);
                delivered.settling_at = record.at;
            }
            Kind::Settled => delivered[open[&record.id]].settled = true,
            _ => {}
        }
    }
    delivered
}

/// The queue, and how many messages a get that has not returned may have taken without a word of it.
fn open_get(journal: &[Record]) -> Option<(u8, u64)> {
    let at = journal.iter().rposition(|record| record.kind == Kind::Getting)?;
    let (getting, after) = (journal[at], &journal[at + 1..]);
    let written = after.iter().filter(|record| record.kind == Kind::Got).count() as u64;
    let open = after.iter().all(|record| record.kind != Kind::GotAll);
    open.then(|| (getting.queue, u64::from(getting.count) - written))
}
