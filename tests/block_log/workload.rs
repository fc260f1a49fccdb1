//! Threads that work on a store and note down what they do.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use millpond::{Delivery, Queue, Result};

use crate::load::{self, DEAD, INSERTED_INTO, QUEUES, Random};
use crate::record::{Kind, Record, Witness};

/// No more is inserted when so many messages wait or are held, so that a check stays short.
const BACKLOG_MAX: i64 = 150;

/// What a thread holds at most without settling it.
const HELD_MAX: usize = 12;

/// Of so many deliveries one is kept until the store is closed: it holds up its segment, which is rewritten.
const KEPT_ONE_IN: u64 = 12;

/// The thread that opens, closes and syncs.
const MAIN: u8 = 0;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub threads: u8,
    /// With which options it is opened first.
    pub first_open: u32,
    pub opens: u32,
    /// How much each thread does before a close.
    pub operations: u32,
}

/// Does the whole plan to a store in `dir`.
pub fn run(dir: &Path, plan: &Plan, witness: &dyn Witness) -> Result<()> {
    let backlog = AtomicI64::new(0);
    for n in plan.first_open..plan.first_open + plan.opens {
        let (options, synced) = load::options(n);
        let count = u16::from(synced.inserts) + 2 * u16::from(synced.deletes);
        let main = |kind| Record { count, ..Record::new(MAIN, kind) };
        witness.note(&[main(Kind::Opening)]);
        let store = options.open(dir)?;
        let queues = (0..).zip(QUEUES).map(|(n, name)| store.declare(name, load::queue_options(n)));
        let queues: Vec<Queue> = queues.collect::<Result<_>>()?;
        witness.note(&[main(Kind::Opened)]);
        let held = thread::scope(|scope| {
            let workers = (1..=plan.threads).map(|thread| {
                let worker = Worker {
                    thread,
                    witness,
                    queues: &queues,
                    backlog: &backlog,
                    inserted: 0,
                    round: n,
                    random: Random::new(plan.seed ^ u64::from(n) << 32 ^ u64::from(thread)),
                    held: Vec::new(),
                    kept: Vec::new(),
                };
                scope.spawn(move || worker.run(plan.operations))
            });
            let workers: Vec<_> = workers.collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Result<Vec<_>>>()
        })?;
        witness.note(&[main(Kind::Closing)]);
        store.close()?;
        witness.note(&[main(Kind::Closed)]);
        // Only now: a delivery that is dropped while the store is open counts as failed.
        drop(held);
    }
    Ok(())
}

struct Worker<'a> {
    thread: u8,
    witness: &'a dyn Witness,
    queues: &'a [Queue],
    backlog: &'a AtomicI64,
    inserted: u64,
    round: u32,
    random: Random,
    held: Vec<(Record, Delivery)>,
    kept: Vec<(Record, Delivery)>,
}

impl Worker<'_> {
    /// What it still holds in the end.
    fn run(mut self, operations: u32) -> Result<Vec<(Record, Delivery)>> {
        for _ in 0..operations {
            let room = self.backlog.load(Ordering::Relaxed) < BACKLOG_MAX;
            match self.random.below(100) {
                0..35 if room => self.insert(1)?,
                35..45 if room => {
                    let count = 2 + self.random.below(6);
                    self.insert(count)?;
                }
                45..46 => self.sync()?,
                _ => self.get()?,
            }
            while self.held.len() > HELD_MAX || (!self.held.is_empty() && self.random.one_in(2)) {
                let which = self.random.below(self.held.len() as u64) as usize;
                let (got, delivery) = self.held.swap_remove(which);
                self.settle(got, delivery)?;
            }
        }
        self.held.append(&mut self.kept);
        Ok(self.held)
    }

    fn record(&self, kind: Kind) -> Record {
        Record::new(self.thread, kind)
    }

    fn note(&self, record: Record) {
        self.witness.note(&[record]);
    }

    fn insert(&mut self, count: u64) -> Result<()> {
        let queue = self.random.below(INSERTED_INTO) as u8;
        let key = u64::from(self.thread) << 48 | u64::from(self.round) << 32 | (self.inserted + 1);
        self.inserted += count;
        let payloads: Vec<Vec<u8>> = (key..key + count).map(load::payload).collect();
        if count > 1 && payloads.iter().any(|payload| payload.len() > 8000) {
            // A batch has to fit in a segment.
            return Ok(());
        }
        let record = Record { queue, key, count: count as u16, ..self.record(Kind::Inserting) };
        self.note(record);
        let handle = &self.queues[queue as usize];
        let id = match payloads.as_slice() {
            [payload] => handle.insert(payload)?,
            batch => handle.insert_batch(batch)?[0],
        };
        self.note(Record { kind: Kind::Inserted, id: id.as_u64(), ..record });
        self.backlog.fetch_add(count as i64, Ordering::Relaxed);
        Ok(())
    }

    fn get(&mut self) -> Result<()> {
        let queue = self.random.below(u64::from(DEAD) + 1) as u8;
        let count = if self.random.one_in(4) { 1 + self.random.below(6) } else { 1 };
        let getting = Record { queue, count: count as u16, ..self.record(Kind::Getting) };
        self.note(getting);
        let deliveries = self.queues[queue as usize].get_batch(count as usize, Duration::ZERO)?;
        let mut records: Vec<Record> =
            deliveries.iter().map(|delivery| got(getting, delivery)).collect();
        for (record, delivery) in records.iter().zip(deliveries) {
            let kept = self.random.one_in(KEPT_ONE_IN) && self.kept.len() < HELD_MAX;
            let held = if kept { &mut self.kept } else { &mut self.held };
            held.push((*record, delivery));
        }
        records.push(Record { kind: Kind::GotAll, ..getting });
        self.witness.note(&records);
        Ok(())
    }

    fn settle(&mut self, got: Record, delivery: Delivery) -> Result<()> {
        let choice = self.random.below(20);
        let kind = match choice {
            0..12 => Kind::Deleting,
            12..14 => Kind::Releasing,
            _ => Kind::Failing,
        };
        self.note(Record { kind, ..got });
        match kind {
            Kind::Deleting => delivery.delete()?,
            Kind::Releasing => delivery.release()?,
            _ => drop(delivery.fail("chance")?),
        }
        self.note(Record { kind: Kind::Settled, ..got });
        if kind == Kind::Deleting {
            self.backlog.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.note(self.record(Kind::Syncing));
        self.queues[0].store().sync()?;
        self.note(self.record(Kind::Synced));
        Ok(())
    }
}

/// What a delivery says of itself; its bytes are checked on the way.
fn got(getting: Record, delivery: &Delivery) -> Record {
    Record {
        kind: Kind::Got,
        key: load::identify(delivery.payload()).unwrap(),
        id: delivery.id().as_u64(),
        attempt: delivery.attempt(),
        ..getting
    }
}
