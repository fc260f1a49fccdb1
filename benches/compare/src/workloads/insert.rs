//! How fast messages go in, and how long each insert takes.

use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{Limit, Task, fill};
use crate::contender::{Contender, Durability, Producer, Supported};
use crate::measure;
use crate::outcome::{Outcome, histogram};
use crate::payload::Payloads;

/// What one pass over the workload gave.
struct Pass {
    /// By thread: the messages that it inserted.
    counts: Vec<u64>,
    elapsed: Duration,
    latency: Histogram<u64>,
    flushes: Option<u64>,
}

#[derive(Clone, Copy)]
struct Plan {
    threads: usize,
    batch: usize,
    limit: Limit,
    /// Whether each insert is timed. That takes some 50 ns: little beside a sync, and much beside a copy.
    timed: bool,
}

pub fn run<C: Contender>(
    task: &Task,
    threads: usize,
    batch: usize,
    limit: Limit,
) -> Supported<Outcome> {
    let synced = task.workload.durability == Durability::Sync;
    let mut outcome = Outcome::default();
    let plan = Plan { threads, batch, limit, timed: synced };
    let rate = pass_of::<C>(task, "rate", plan, &mut outcome)?;
    let messages: u64 = rate.counts.iter().sum();
    outcome.set("rate", messages as f64 / rate.elapsed.as_secs_f64());
    outcome.set("messages", messages as f64);
    if let (true, Some(flushes)) = (synced, rate.flushes) {
        outcome.set("flushes", flushes as f64 / messages as f64);
    }
    if synced {
        outcome.set_latency(&rate.latency);
    } else {
        let timed = pass_of::<C>(task, "latency", Plan { timed: true, ..plan }, &mut outcome)?;
        outcome.set_latency(&timed.latency);
    }
    Ok(outcome)
}

/// A pass in a directory of its own; of the first one, a look at what it has left.
fn pass_of<C: Contender>(
    task: &Task,
    name: &str,
    plan: Plan,
    outcome: &mut Outcome,
) -> Supported<Pass> {
    let dir = task.dir.join(name);
    std::fs::create_dir(&dir).unwrap();
    let pass = pass::<C>(task, &dir, plan)?;
    if name == "rate" {
        fill::verify::<C>(&dir, task.workload.size, &pass.counts, outcome);
    }
    std::fs::remove_dir_all(&dir).unwrap();
    Ok(pass)
}

fn pass<C: Contender>(task: &Task, dir: &Path, plan: Plan) -> Supported<Pass> {
    let store = C::open(dir, task.workload.durability, 1)?;
    let producers = (0..plan.threads).map(|_| store.producer(0)).collect::<Supported<Vec<_>>>()?;
    measure::sync_file_system(dir);
    let before = measure::disk(dir);
    let start = Barrier::new(plan.threads);
    let done = std::thread::scope(|scope| {
        let threads = producers.into_iter().enumerate().map(|(thread, producer)| {
            let payloads = Payloads::new(task.workload.size, thread);
            let start = &start;
            scope.spawn(move || {
                start.wait();
                insert(producer, payloads, plan)
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Supported<Vec<_>>>()
    })?;
    let after = measure::disk(dir);
    store.close();
    let began = done.iter().map(|done| done.began).min().expect("there is a thread");
    let ended = done.iter().map(|done| done.ended).max().expect("there is a thread");
    let mut latency = histogram();
    done.iter().for_each(|done| latency.add(&done.latency).unwrap());
    let flushes =
        before.zip(after).and_then(|(before, after)| Some(after.flushes? - before.flushes?));
    let counts = done.iter().map(|done| done.count).collect();
    Ok(Pass { counts, elapsed: ended - began, latency, flushes })
}

/// What one thread has done.
struct Done {
    count: u64,
    began: Instant,
    ended: Instant,
    latency: Histogram<u64>,
}

fn insert(mut producer: impl Producer, mut payloads: Payloads, plan: Plan) -> Supported<Done> {
    let messages = plan.limit.messages / plan.threads as u64;
    let mut latency = histogram();
    let began = Instant::now();
    let end = began + plan.limit.time;
    let mut count = 0;
    let mut calls = 0_u64;
    while count < messages {
        // The clock is looked at rarely, where each insert is not timed anyway.
        if (plan.timed || calls.is_multiple_of(32)) && Instant::now() >= end {
            break;
        }
        calls += 1;
        if plan.batch > 1 {
            let batch = payloads.make_batch(count, plan.batch);
            let before = Instant::now();
            producer.insert_batch(&batch)?;
            latency.saturating_record(before.elapsed().as_nanos() as u64);
        } else if plan.timed {
            let payload = payloads.make(count);
            let before = Instant::now();
            producer.insert(payload);
            latency.saturating_record(before.elapsed().as_nanos() as u64);
        } else {
            producer.insert(payloads.make(count));
        }
        count += plan.batch as u64;
    }
    Ok(Done { count, began, ended: Instant::now(), latency })
}
