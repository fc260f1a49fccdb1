//! Producers and consumers at once, with a backlog that stays short.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Limit, Task};
use crate::contender::{Consumer, Contender, Producer, Supported};
use crate::outcome::Outcome;
use crate::payload::{Ledger, Payloads};

/// A producer pauses when so many messages wait.
const BACKLOG: u64 = 100_000;

/// How often a producer looks at the backlog and the clock: every so many messages.
const LOOK_EVERY: u64 = 64;

/// How long consumers wait for messages that do not come, after the last insert.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a slow consumer goes on after the last insert. Its rate is that of what it has taken by then.
const OVERTIME: Duration = Duration::from_secs(3);

#[derive(Clone, Copy)]
pub struct Shape {
    pub producers: usize,
    pub consumers: usize,
    /// Each producer and each consumer goes round them.
    pub queues: usize,
}

/// How far everybody is.
struct Progress {
    inserted: AtomicU64,
    popped: AtomicU64,
    producing: AtomicU64,
}

impl Progress {
    fn is_over(&self) -> bool {
        // In this order: the last insert is counted before its producer has ended.
        self.producing.load(Ordering::Acquire) == 0
            && self.popped.load(Ordering::Acquire) >= self.inserted.load(Ordering::Acquire)
    }
}

pub fn run<C: Contender>(task: &Task, shape: Shape, limit: Limit) -> Supported<Outcome> {
    let store = C::open(&task.dir, task.workload.durability, shape.queues)?;
    let queues = 0..shape.queues;
    let mut producers = Vec::new();
    for _ in 0..shape.producers {
        producers.push(queues.clone().map(|q| store.producer(q)).collect::<Supported<Vec<_>>>()?);
    }
    let mut consumers = Vec::new();
    for _ in 0..shape.consumers {
        consumers.push(queues.clone().map(|q| store.consumer(q)).collect::<Supported<Vec<_>>>()?);
    }
    let progress = Progress {
        inserted: AtomicU64::new(0),
        popped: AtomicU64::new(0),
        producing: AtomicU64::new(shape.producers as u64),
    };
    let each = Limit { messages: limit.messages / shape.producers as u64, ..limit };
    let size = task.workload.size;
    let began = Instant::now();
    let overtime = began + limit.time + OVERTIME;
    let (counts, found) = std::thread::scope(|scope| {
        let progress = &progress;
        let producing = producers.into_iter().enumerate().map(|(n, handles)| {
            scope.spawn(move || produce(handles, Payloads::new(size, n), each, progress))
        });
        let producing: Vec<_> = producing.collect();
        let consuming = consumers.into_iter().map(|handles| {
            scope.spawn(move || consume(handles, &Payloads::new(size, 0), overtime, progress))
        });
        let consuming: Vec<_> = consuming.collect();
        let counts: Vec<u64> = producing.into_iter().map(|thread| thread.join().unwrap()).collect();
        let found = consuming.into_iter().map(|thread| thread.join().unwrap());
        found.collect::<Supported<Vec<_>>>().map(|found| (counts, found))
    })?;
    let messages: usize = found.iter().map(|(found, _)| found.len()).sum();
    let complete = began.elapsed() < limit.time + OVERTIME;
    let last = found.iter().map(|(_, ended)| *ended).max().expect("there is a consumer");
    let mut ledger = Ledger::new(&counts);
    found.iter().flat_map(|(found, _)| found).for_each(|found| ledger.enter(*found));
    let mut outcome = Outcome::default();
    outcome.set("rate", messages as f64 / (last - began).as_secs_f64());
    outcome.set("messages", messages as f64);
    let ordered = shape.producers == 1 && shape.consumers == 1 && shape.queues == 1;
    outcome.judge(ledger.verdict(&counts, complete, ordered));
    store.close();
    Ok(outcome)
}

/// Inserts until the limit; how many.
fn produce<P: Producer>(
    mut queues: Vec<P>,
    mut payloads: Payloads,
    limit: Limit,
    progress: &Progress,
) -> u64 {
    let end = Instant::now() + limit.time;
    let among = queues.len();
    let mut count = 0;
    let mut told = 0;
    while count < limit.messages {
        if count % LOOK_EVERY == 0 {
            progress.inserted.fetch_add(count - told, Ordering::AcqRel);
            told = count;
            if Instant::now() >= end {
                break;
            }
            while progress.inserted.load(Ordering::Relaxed)
                > progress.popped.load(Ordering::Relaxed) + BACKLOG
                && Instant::now() < end
            {
                std::thread::yield_now();
            }
        }
        queues[count as usize % among].insert(payloads.make(count));
        count += 1;
    }
    progress.inserted.fetch_add(count - told, Ordering::AcqRel);
    progress.producing.fetch_sub(1, Ordering::AcqRel);
    count
}

type Found = Vec<Option<(usize, u64)>>;

/// Pops until all that was inserted is out, or the time is over: what it saw, and when the last of it came.
fn consume<C: Consumer>(
    mut queues: Vec<C>,
    payloads: &Payloads,
    overtime: Instant,
    progress: &Progress,
) -> Supported<(Found, Instant)> {
    let mut found = Vec::with_capacity(1 << 20);
    let mut told = 0;
    let mut empty = 0_u32;
    let mut last = Instant::now();
    loop {
        let before = found.len();
        for queue in &mut queues {
            queue.pop(&mut |payload| found.push(payloads.check(payload)))?;
        }
        if found.len() > before {
            if empty > 0 || found.len() >= told + LOOK_EVERY as usize {
                progress.popped.fetch_add((found.len() - told) as u64, Ordering::AcqRel);
                told = found.len();
                last = Instant::now();
                if last >= overtime {
                    return Ok((found, last));
                }
            }
            empty = 0;
            continue;
        }
        if empty == 0 {
            last = Instant::now();
            progress.popped.fetch_add((found.len() - told) as u64, Ordering::AcqRel);
            told = found.len();
        }
        empty += 1;
        if progress.is_over() || (empty > 100 && last.elapsed() > PATIENCE) {
            return Ok((found, last));
        }
        // Whoever finds nothing lets the producers go on, and polls less and less eagerly.
        match empty {
            0..16 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}
