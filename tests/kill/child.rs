//! The process that is killed: producers and consumers that write down what they do.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use millpond::{Delivery, Durability, Message, Queue, Result, Store};

use crate::journal::{Journal, Kind, Record};
use crate::load::{self, CONSUMERS, PRODUCERS, QUEUES, Random};

/// No more messages are inserted into a queue that has this many, so that a round's check stays short.
const BACKLOG_MAX: i64 = 1000;

/// How many messages each queue has, roughly.
type Backlog = Arc<[AtomicI64; QUEUES.len()]>;

/// What a consumer holds at most without settling it.
const HELD_MAX: usize = 40;

/// What the parent tells its child, through the environment.
pub struct Orders {
    pub dir: PathBuf,
    pub journals: PathBuf,
    pub durability: Durability,
    pub round: u32,
    pub seed: u64,
}

const ORDERS: &str = "MILLPOND_KILL_CHILD";

impl Orders {
    pub fn encode(&self) -> (&'static str, String) {
        let Orders { dir, journals, durability, round, seed } = self;
        let sync = *durability == Durability::Sync;
        (ORDERS, format!("{round}\n{seed}\n{sync}\n{}\n{}", dir.display(), journals.display()))
    }

    fn decode(text: &str) -> Option<Orders> {
        let mut lines = text.lines();
        Some(Orders {
            round: lines.next()?.parse().ok()?,
            seed: lines.next()?.parse().ok()?,
            durability: if lines.next()? == "true" {
                Durability::Sync
            } else {
                Durability::Process
            },
            dir: lines.next()?.into(),
            journals: lines.next()?.into(),
        })
    }
}

pub fn run_if_started() {
    let Ok(text) = std::env::var(ORDERS) else { return };
    let orders = Orders::decode(&text).expect("orders that this binary has written");
    // A thread that fails must not leave the others running as if nothing had happened.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::exit(101);
    }));
    let began = Instant::now();
    let store = load::open(&orders.dir, orders.durability, orders.round).unwrap();
    let recovery = store.recovery();
    assert!(recovery.damaged.is_empty(), "{recovery:?}");
    start(&store, &orders, began).unwrap();
    // The parent holds the other end. If it is gone, nobody is left to kill this process.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(1);
}

fn start(store: &Store, orders: &Orders, began: Instant) -> Result<()> {
    let queues = (0..).zip(QUEUES).map(|(n, name)| store.declare(name, load::queue_options(n)));
    let queues: Vec<Queue> = queues.collect::<Result<_>>()?;
    let backlog = Backlog::default();
    for (queue, backlog) in queues.iter().zip(&*backlog) {
        let stats = queue.stats()?;
        backlog.store((stats.ready + stats.delayed) as i64, Ordering::Relaxed);
    }
    let seed = Random::new(orders.seed ^ u64::from(orders.round)).next();
    let journal = |thread| Journal::create(&orders.journals, thread, began).unwrap();
    for thread in 0..PRODUCERS {
        let mut worker = Producer {
            name: thread,
            round: orders.round,
            inserted: 0,
            queues: queues.clone(),
            backlog: backlog.clone(),
            journal: journal(thread as usize),
            random: Random::new(seed ^ thread),
        };
        thread::spawn(move || worker.run());
    }
    for (n, from) in CONSUMERS.iter().enumerate() {
        let thread = PRODUCERS as usize + n;
        let mut worker = Consumer {
            queues: from.iter().map(|&n| (n, queues[n as usize].clone())).collect(),
            held: Vec::new(),
            backlog: backlog.clone(),
            journal: journal(thread),
            random: Random::new(seed ^ thread as u64),
        };
        thread::spawn(move || worker.run());
    }
    let mut worker = Pauser {
        queue: queues[load::PAUSED as usize].clone(),
        journal: journal(load::PAUSER),
        random: Random::new(seed),
    };
    thread::spawn(move || worker.run());
    let mut worker = Mender {
        queue: queues[load::TROUBLED as usize].clone(),
        dead: store.queue(load::DEAD)?,
        backlog,
        journal: journal(load::MENDER),
        random: Random::new(seed ^ 1),
    };
    thread::spawn(move || worker.run());
    Ok(())
}

struct Producer {
    name: u64,
    round: u32,
    inserted: u64,
    queues: Vec<Queue>,
    backlog: Backlog,
    journal: Journal,
    random: Random,
}

impl Producer {
    fn run(&mut self) {
        self.journal.write(&[Record::new(Kind::Opened, 0)]);
        loop {
            let queue = self.random.below(QUEUES.len() as u64) as u8;
            if self.backlog[queue as usize].load(Ordering::Relaxed) < BACKLOG_MAX {
                self.insert(queue).unwrap();
            } else {
                thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn insert(&mut self, queue: u8) -> Result<()> {
        let count = if self.random.one_in(8) { 2 + self.random.below(6) } else { 1 };
        let first = load::key(self.name, self.round, self.inserted);
        let payloads: Vec<Vec<u8>> = (first..first + count)
            .map(|key| load::payload(queue, key))
            // A batch has to fit in a segment.
            .filter(|payload| count == 1 || payload.len() < 7000)
            .collect();
        if payloads.len() as u64 != count {
            self.inserted += count;
            return Ok(());
        }
        let record =
            Record { count: count as u16, key: first, ..Record::new(Kind::Inserting, queue) };
        self.journal.write(&[record]);
        let handle = &self.queues[queue as usize];
        let messages = (first..).zip(&payloads);
        let messages: Vec<Message<'_>> =
            messages.map(|(key, payload)| load::message(queue, key, payload)).collect();
        let id = match messages.as_slice() {
            [message] => handle.insert(message)?,
            batch => handle.insert_batch(batch)?[0],
        };
        self.journal.write(&[Record { kind: Kind::Inserted, id: id.as_u64(), ..record }]);
        self.inserted += count;
        let immortal = (first..first + count).filter(|key| load::ttl(queue, *key).is_none());
        self.backlog[queue as usize].fetch_add(immortal.count() as i64, Ordering::Relaxed);
        if load::has_dedup_key(first) && self.random.one_in(4) {
            assert_eq!(handle.insert(&messages[0])?, id, "{first:#x} was inserted again");
        }
        Ok(())
    }
}

/// Lets a queue rest for a while, and go on.
struct Pauser {
    queue: Queue,
    journal: Journal,
    random: Random,
}

impl Pauser {
    fn run(&mut self) {
        loop {
            // The process before may have left it paused.
            self.set(Kind::Resuming).unwrap();
            thread::sleep(Duration::from_micros(self.random.below(20_000)));
            self.set(Kind::Pausing).unwrap();
            thread::sleep(Duration::from_micros(self.random.below(3000)));
        }
    }

    fn set(&mut self, kind: Kind) -> Result<()> {
        self.journal.write(&[Record::new(kind, load::PAUSED)]);
        match kind {
            Kind::Pausing => self.queue.pause()?,
            _ => self.queue.resume()?,
        }
        self.journal.write(&[Record::new(Kind::Settled, load::PAUSED)]);
        Ok(())
    }
}

/// Works on messages that fail more often than not, and brings back what was given up.
struct Mender {
    queue: Queue,
    dead: Queue,
    backlog: Backlog,
    journal: Journal,
    random: Random,
}

impl Mender {
    fn run(&mut self) {
        loop {
            self.work().unwrap();
        }
    }

    fn work(&mut self) -> Result<()> {
        let batch = self.queue.get_batch(load::TROUBLES_MAX, Duration::from_millis(2))?;
        for delivery in batch {
            match self.random.below(10) {
                0..3 => self.delete(delivery)?,
                3..8 => drop(delivery.fail("chance")?),
                8 => delivery.release()?,
                _ => delivery.bury("chance")?,
            }
        }
        // After four failures in a row it has paused itself.
        if self.queue.stats()?.paused.is_some() {
            self.queue.resume()?;
        }
        if self.random.one_in(3) {
            self.dead.redrive(self.random.below(30))?;
        }
        Ok(())
    }

    fn delete(&mut self, delivery: Delivery) -> Result<()> {
        let key = load::identify(load::TROUBLED, delivery.payload()).unwrap();
        let record = Record { key, ..Record::new(Kind::Deleting, load::TROUBLED) };
        self.journal.write(&[record]);
        delivery.delete()?;
        self.journal.write(&[Record { kind: Kind::Settled, ..record }]);
        self.backlog[load::TROUBLED as usize].fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

struct Consumer {
    queues: Vec<(u8, Queue)>,
    held: Vec<(Record, Delivery)>,
    backlog: Backlog,
    journal: Journal,
    random: Random,
}

impl Consumer {
    fn run(&mut self) {
        self.journal.write(&[Record::new(Kind::Opened, 0)]);
        loop {
            let n = self.random.below(self.queues.len() as u64) as usize;
            self.get(n).unwrap();
            while self.held.len() > HELD_MAX || (!self.held.is_empty() && self.random.below(8) > 0)
            {
                let which = self.random.below(self.held.len() as u64) as usize;
                let (record, delivery) = self.held.swap_remove(which);
                self.settle(record, delivery).unwrap();
            }
        }
    }

    fn get(&mut self, n: usize) -> Result<()> {
        let (number, queue) = &self.queues[n];
        let count = if self.random.one_in(4) { 1 + self.random.below(8) } else { 1 };
        self.journal
            .write(&[Record { count: count as u16, ..Record::new(Kind::Getting, *number) }]);
        let before = SystemTime::now();
        let deliveries = queue.get_batch(count as usize, Duration::from_millis(5))?;
        deliveries.iter().for_each(|delivery| check_in_time(*number, delivery, before));
        let mut records: Vec<Record> = deliveries.iter().map(|d| got(*number, d)).collect();
        let got = records.clone();
        records.push(Record::new(Kind::GotAll, *number));
        self.journal.write(&records);
        self.held.extend(got.into_iter().zip(deliveries));
        Ok(())
    }

    fn queue(&self, number: u8) -> &Queue {
        let found = self.queues.iter().find(|(n, _)| *n == number);
        &found.expect("a message is settled by whoever got it").1
    }

    fn settle(&mut self, record: Record, delivery: Delivery) -> Result<()> {
        let choice = self.random.below(21);
        // The order in the single queue is checked, which delays would change.
        let is_single = record.queue == load::SINGLE;
        let kind = match choice {
            0..16 => Kind::Deleting,
            16..18 => Kind::Releasing,
            20 if !is_single => Kind::Burying,
            _ => Kind::Failing,
        };
        self.journal.write(&[Record { kind, ..record }]);
        let delay = Duration::from_millis(self.random.below(6));
        match choice {
            // Its delivery becomes stale, and says nothing when it is dropped.
            0 => assert!(self.queue(record.queue).delete_by_id(delivery.id())?),
            1..16 => delivery.delete()?,
            16 if !is_single => delivery.release_after(delay)?,
            16..18 => delivery.release()?,
            18 => drop(delivery),
            20 if !is_single => {
                delivery.bury("chance")?;
                self.queue(record.queue).kick(u64::MAX)?;
            }
            _ if !is_single => drop(delivery.fail_after("chance", delay)?),
            _ => drop(delivery.fail("chance")?),
        }
        self.journal.write(&[Record { kind: Kind::Settled, ..record }]);
        if kind == Kind::Deleting && load::ttl(record.queue, record.key).is_none() {
            self.backlog[record.queue as usize].fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What a delivery says of itself; its bytes are checked on the way.
fn got(queue: u8, delivery: &Delivery) -> Record {
    let key = load::check(queue, delivery).unwrap();
    let (id, attempt) = (delivery.id().as_u64(), delivery.attempt());
    Record { key, id, attempt, ..Record::new(Kind::Got, queue) }
}

/// Nothing is delivered that had expired before the get began.
fn check_in_time(queue: u8, delivery: &Delivery, before: SystemTime) {
    // The time of an insert is that of a coarse clock.
    const COARSE: Duration = Duration::from_millis(20);
    let key = load::check(queue, delivery).unwrap();
    if let Some(ttl) = load::ttl(queue, key) {
        let expiry = delivery.inserted_at() + ttl + COARSE;
        assert!(before < expiry, "{key:#x} expired at {expiry:?}, and was got after {before:?}");
    }
}

/// Where the journals of a round lie.
pub fn journals(base: &Path, round: u32) -> PathBuf {
    base.join(format!("journals-{round}"))
}
