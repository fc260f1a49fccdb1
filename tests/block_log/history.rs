//! What may be in the store: everything that the workload did, and which of it a power cut may have unmade.
//!
//! A message goes through steps, from its insert to its delete, and a store that is found shows which of them have taken
//! effect. Three things are asked of it:
//! 1. What was acknowledged as durable when the power failed has taken effect.
//! 2. What had not begun then has not.
//! 3. The log has no holes: if anything has taken effect, then so has all that had returned before it began, whether it
//!    was synced or not; and a batch is there whole or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::load::{self, AFTERWARDS, DEAD, LOOSE, Synced};
use crate::observe::{Observed, Seen};
use crate::record::{Kind, Moment, Record};

type Checked<T = ()> = Result<T, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Insert(u8),
    Get,
    Release,
    Fail,
    Delete,
}

/// One step of one message.
#[derive(Clone, Copy, Debug)]
struct Event {
    step: Step,
    begin: Moment,
    /// None if it had not returned when the notes end.
    end: Option<Moment>,
    /// A power cut after the end must not unmake it.
    durable: bool,
}

impl Event {
    fn acknowledged_by(&self, position: u64) -> bool {
        self.durable && self.end.is_some_and(|end| end.position <= position)
    }

    fn ended_before(&self, tick: u64) -> bool {
        self.end.is_some_and(|end| end.tick < tick)
    }
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Absent,
    Waiting { queue: u8, attempts: u32, touched: bool },
    InFlight { queue: u8, attempts: u32 },
}

impl Place {
    fn after(self, step: Step) -> Checked<Place> {
        use Place::{Absent, InFlight, Waiting};
        Ok(match (self, step) {
            (Absent, Step::Insert(queue)) => Waiting { queue, attempts: 0, touched: false },
            (Waiting { queue, attempts, .. }, Step::Get) => {
                InFlight { queue, attempts: attempts + 1 }
            }
            (InFlight { queue, attempts }, Step::Release) => {
                Waiting { queue, attempts: attempts - 1, touched: true }
            }
            (InFlight { queue, attempts }, Step::Fail) => given_back(queue, attempts),
            (InFlight { .. }, Step::Delete) => Absent,
            (place, step) => return Err(format!("{step:?} of a message that is {place:?}")),
        })
    }

    /// Where it is found after a crash.
    fn found(self) -> Place {
        match self {
            Place::InFlight { queue, attempts } => given_back(queue, attempts),
            place => place,
        }
    }

    fn is_touched(self) -> bool {
        matches!(self, Place::Waiting { touched: true, .. })
    }

    fn shows(self) -> Option<(u8, u32)> {
        match self.found() {
            Place::Waiting { queue, attempts, .. } => Some((queue, attempts + 1)),
            _ => None,
        }
    }
}

fn given_back(queue: u8, attempts: u32) -> Place {
    match load::is_exhausted(queue, attempts) {
        true => Place::Waiting { queue: DEAD, attempts: 0, touched: false },
        false => Place::Waiting { queue, attempts, touched: true },
    }
}

#[derive(Debug)]
struct Message {
    /// None if its insert has not returned.
    id: Option<u64>,
    /// The first message of its batch.
    batch: u64,
    events: Vec<Event>,
    /// Where it is after none of the events, after the first, and so on.
    places: Vec<Place>,
}

impl Message {
    /// How many of its events may have taken effect when the power failed at `position`.
    fn begun_by(&self, position: u64) -> usize {
        self.events.iter().take_while(|event| event.begin.position <= position).count()
    }

    /// How many must have, if `tick` is when something began that has.
    fn required(&self, position: u64, tick: u64, batches: &BTreeSet<u64>) -> usize {
        let required = |event: &Event| event.acknowledged_by(position) || event.ended_before(tick);
        let insert = usize::from(batches.contains(&self.batch));
        self.events.iter().rposition(required).map_or(0, |last| last + 1).max(insert)
    }

    fn last_place(&self) -> Place {
        *self.places.last().expect("a message is absent before its insert")
    }

    fn push(&mut self, event: Event) -> Checked {
        self.places.push(self.last_place().after(event.step)?);
        self.events.push(event);
        Ok(())
    }
}

#[derive(Debug, Default)]
pub struct History {
    messages: BTreeMap<u64, Message>,
    /// When something that makes all before it durable began, and when it had returned.
    syncs: Vec<(Moment, Moment)>,
    /// When the store was there for the first time.
    opened: Option<Moment>,
    pub counts: Counts,
}

/// What was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub inserts: u64,
    pub deliveries: u64,
    pub deletes: u64,
    pub dead_letters: u64,
    pub opens: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.inserts += other.inserts;
        self.deliveries += other.deliveries;
        self.deletes += other.deletes;
        self.dead_letters += other.dead_letters;
        self.opens += other.opens;
    }
}

/// What a crash is known to have left.
struct Floor {
    /// When the last thing began that has taken effect.
    tick: u64,
    batches: BTreeSet<u64>,
}

impl History {
    pub fn new(records: &[Record]) -> Checked<History> {
        let mut reader = Reader::default();
        for record in records {
            reader.read(record).map_err(|why| format!("{why}, at {record:?}"))?;
        }
        reader.finish()
    }

    /// Whether a store in which this was found may be left by a power cut at `position`.
    pub fn check(&self, observed: &Observed, position: u64) -> Checked {
        if observed.full_walk && self.opened.is_some_and(|opened| opened.position <= position) {
            return Err("no cursor was found".to_owned());
        }
        let mut seen = HashMap::new();
        for (queue, found) in (0..AFTERWARDS).zip(&observed.queues) {
            for found in found {
                self.check_identity(queue, found)?;
                if let Some((other, _)) = seen.insert(found.key, (queue, found)) {
                    return Err(format!("{found:?} is in queue {queue}, and in {other}"));
                }
            }
        }
        let floor = self.settle(&seen, position)?;
        for (queue, found) in (0..AFTERWARDS).zip(&observed.queues) {
            self.check_order(queue, found, position, &floor)?;
        }
        self.check_new_id(observed.first_new, position)
    }

    fn check_identity(&self, queue: u8, seen: &Seen) -> Checked {
        let message = self.messages.get(&seen.key);
        let message = message.ok_or_else(|| format!("nobody has inserted {seen:?}"))?;
        let moved = seen.id != seen.origin;
        if message.id.is_some_and(|id| id != seen.origin) || moved != (queue == DEAD) {
            return Err(format!("{seen:?} in queue {queue}, and it was inserted as {message:?}"));
        }
        Ok(())
    }

    /// Finds the fewest events that explain what was seen, and then all that must have taken effect since one of them has,
    /// until nothing is added.
    fn settle(&self, seen: &HashMap<u64, (u8, &Seen)>, position: u64) -> Checked<Floor> {
        let synced = self.syncs.iter().filter(|(_, end)| end.position <= position);
        let tick = synced.map(|(begin, _)| begin.tick).max().unwrap_or(0);
        let mut floor = Floor { tick, batches: BTreeSet::new() };
        loop {
            let before = (floor.tick, floor.batches.len());
            for (key, message) in &self.messages {
                let shown = seen.get(key).map(|(queue, seen)| (*queue, seen.attempt));
                let (from, to) = self.range(message, position, &floor);
                let effective = (from..=to).find(|n| message.places[*n].shows() == shown);
                let effective = effective.ok_or_else(|| {
                    format!(
                        "message {key:#x} is found as {shown:?} (queue, attempt), where {from} to \
                         {to} of its steps may have taken effect, at position {position}: \
                         {message:#?}"
                    )
                })?;
                let begins = message.events[..effective].iter().map(|event| event.begin.tick);
                floor.tick = begins.max().unwrap_or(0).max(floor.tick);
                if effective > 0 {
                    floor.batches.insert(message.batch);
                }
            }
            if before == (floor.tick, floor.batches.len()) {
                return Ok(floor);
            }
        }
    }

    /// From how many to how many events of the message may have taken effect.
    fn range(&self, message: &Message, position: u64, floor: &Floor) -> (usize, usize) {
        (message.required(position, floor.tick, &floor.batches), message.begun_by(position))
    }

    /// What was given back comes first, in the order of the ids; then what nobody has touched, in that order too.
    fn check_order(&self, queue: u8, found: &[Seen], position: u64, floor: &Floor) -> Checked {
        let may_be = |seen: &Seen, touched: bool| {
            let message = &self.messages[&seen.key];
            let (from, to) = self.range(message, position, floor);
            message.places[from..=to].iter().any(|place| {
                place.shows() == Some((queue, seen.attempt))
                    && place.found().is_touched() == touched
            })
        };
        let ascend = |part: &[Seen]| part.is_sorted_by_key(|seen| seen.id);
        let explains = |split: &usize| {
            let (first, second) = found.split_at(*split);
            ascend(first)
                && ascend(second)
                && first.iter().all(|seen| may_be(seen, true))
                && second.iter().all(|seen| may_be(seen, false))
        };
        match (0..=found.len()).any(|split| explains(&split)) {
            true => Ok(()),
            false => Err(format!("queue {queue} is delivered in this order: {found:#?}")),
        }
    }

    /// No id that somebody was told is given out again.
    fn check_new_id(&self, first_new: u64, position: u64) -> Checked {
        let told =
            |message: &&Message| message.events[0].end.is_some_and(|end| end.position <= position);
        let highest = self.messages.values().filter(told).filter_map(|message| message.id).max();
        match highest {
            Some(highest) if first_new <= highest => {
                Err(format!("id {first_new} is given out, and {highest} was before"))
            }
            _ => Ok(()),
        }
    }
}

/// A delivery, and what was done with it.
#[derive(Debug)]
struct Delivered {
    key: u64,
    attempt: u32,
    get: Event,
    settle: Option<Event>,
}

/// Reads the notes.
#[derive(Default)]
struct Reader {
    history: History,
    synced: Synced,
    /// What each thread has begun and not ended.
    begun: HashMap<u8, Record>,
    /// In the order in which they returned.
    deliveries: Vec<Delivered>,
    /// The deliveries of messages that are held.
    held: HashMap<u64, usize>,
}

impl Reader {
    fn read(&mut self, record: &Record) -> Checked {
        let begun = self.begun.get(&record.thread).copied();
        let begin = begun.map_or(record.at, |begun| begun.at);
        match record.kind {
            Kind::Opening | Kind::Getting | Kind::Syncing => {
                self.begun.insert(record.thread, *record);
            }
            Kind::Inserting => {
                self.begin_insert(record);
                self.begun.insert(record.thread, *record);
            }
            Kind::Deleting | Kind::Releasing | Kind::Failing => {
                self.begin_settle(record)?;
                self.begun.insert(record.thread, *record);
            }
            Kind::Closing => {
                self.begin_close(record);
                self.begun.insert(record.thread, *record);
            }
            Kind::Got => self.get(record, begin),
            Kind::GotAll => drop(self.begun.remove(&record.thread)),
            Kind::Inserted => {
                self.end_insert(record)?;
                self.begun.remove(&record.thread);
            }
            Kind::Settled => {
                self.end_settle(record)?;
                self.begun.remove(&record.thread);
            }
            Kind::Opened | Kind::Synced | Kind::Closed => {
                self.end_sync(record, begin);
                self.begun.remove(&record.thread);
            }
        }
        Ok(())
    }

    fn begin_insert(&mut self, record: &Record) {
        for key in record.key..record.key + u64::from(record.count) {
            let event = Event {
                step: Step::Insert(record.queue),
                begin: record.at,
                end: None,
                durable: record.queue != LOOSE && self.synced.inserts,
            };
            let place = Place::Waiting { queue: record.queue, attempts: 0, touched: false };
            let places = vec![Place::Absent, place];
            let message = Message { id: None, batch: record.key, events: vec![event], places };
            self.history.messages.insert(key, message);
        }
    }

    fn end_insert(&mut self, record: &Record) -> Checked {
        let keys = record.key..record.key + u64::from(record.count);
        for (key, id) in keys.zip(record.id..) {
            let message = self.history.messages.get_mut(&key).ok_or("an unknown insert")?;
            message.id = Some(id);
            message.events[0].end = Some(record.at);
        }
        self.history.counts.inserts += u64::from(record.count);
        Ok(())
    }

    fn get(&mut self, record: &Record, begin: Moment) {
        let get = Event { step: Step::Get, begin, end: Some(record.at), durable: false };
        let delivered = Delivered { key: record.key, attempt: record.attempt, get, settle: None };
        self.held.insert(record.key, self.deliveries.len());
        self.deliveries.push(delivered);
        self.history.counts.deliveries += 1;
    }

    fn begin_settle(&mut self, record: &Record) -> Checked {
        let at = self.held.remove(&record.key).ok_or("a message that is not held is settled")?;
        let (step, durable) = match record.kind {
            Kind::Deleting => (Step::Delete, self.synced.deletes),
            Kind::Releasing => (Step::Release, false),
            _ => (Step::Fail, false),
        };
        self.deliveries[at].settle = Some(Event { step, begin: record.at, end: None, durable });
        Ok(())
    }

    fn end_settle(&mut self, record: &Record) -> Checked {
        let begun = self.begun.get(&record.thread).ok_or("nothing was begun")?;
        let settle = self.deliveries.iter_mut().rev().filter_map(|d| d.settle.as_mut());
        let mut settle = settle.filter(|settle| settle.begin == begun.at);
        let settle = settle.next().ok_or("a settle ends that did not begin")?;
        settle.end = Some(record.at);
        self.history.counts.deletes += u64::from(settle.step == Step::Delete);
        Ok(())
    }

    /// What is held is given back uncounted.
    fn begin_close(&mut self, record: &Record) {
        for (_, at) in self.held.drain() {
            let settle = Event { step: Step::Release, begin: record.at, end: None, durable: true };
            self.deliveries[at].settle = Some(settle);
        }
    }

    fn end_sync(&mut self, record: &Record, begin: Moment) {
        let history = &mut self.history;
        match record.kind {
            Kind::Opened => {
                history.opened.get_or_insert(record.at);
                history.counts.opens += 1;
                self.synced =
                    Synced { inserts: record.count & 1 != 0, deletes: record.count & 2 != 0 };
            }
            Kind::Closed => {
                let settles = self.deliveries.iter_mut().filter_map(|d| d.settle.as_mut());
                let by_close = settles.filter(|settle| settle.begin == begin);
                by_close.for_each(|settle| settle.end = Some(record.at));
            }
            _ => {}
        }
        history.syncs.push((begin, record.at));
    }

    fn finish(mut self) -> Checked<History> {
        let messages = &mut self.history.messages;
        for delivered in &self.deliveries {
            let message = messages.get_mut(&delivered.key).ok_or("an unknown delivery")?;
            message.push(delivered.get)?;
            let Place::InFlight { queue, attempts } = message.last_place() else { continue };
            if attempts != delivered.attempt {
                return Err(format!("attempt {attempts} was expected: {delivered:?}"));
            }
            if let Some(settle) = delivered.settle {
                message.push(settle)?;
                let moved = settle.step == Step::Fail && load::is_exhausted(queue, attempts);
                self.history.counts.dead_letters += u64::from(moved);
            }
        }
        // A get that has not returned may have taken any message that waits there.
        for begun in self.begun.values().filter(|begun| begun.kind == Kind::Getting) {
            for message in messages.values_mut() {
                let waits_in = match message.last_place() {
                    Place::Waiting { queue, .. } => Some(queue),
                    _ => None,
                };
                if waits_in == Some(begun.queue) {
                    let begin = begun.at;
                    message.push(Event { step: Step::Get, begin, end: None, durable: false })?;
                }
            }
        }
        Ok(self.history)
    }
}
