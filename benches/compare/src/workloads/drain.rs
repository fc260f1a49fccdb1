//! How fast messages that wait come out: got and deleted.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::{Limit, Task, fill};
use crate::contender::{Consumer, Contender, Durability, Supported};
use crate::measure;
use crate::outcome::Outcome;
use crate::payload::{Ledger, Payloads, Random};

/// The longest that filling the store may take. A slow contender drains what it has taken by then.
const FILL_TIME: Duration = Duration::from_secs(3);

/// What one thread has done.
struct Done {
    began: Instant,
    ended: Instant,
    /// What it saw, in order.
    found: Vec<Option<(usize, u64)>>,
}

pub fn run<C: Contender>(
    task: &Task,
    threads: usize,
    batch: usize,
    limit: Limit,
) -> Supported<Outcome> {
    let synced = task.workload.durability == Durability::Sync;
    measured::<C>(task, threads, limit, |consumer, payloads, end, found: &mut Vec<_>| {
        // The clock costs less than a sync, and more than looking at it rarely.
        let look_every = if synced { 1 } else { 32 };
        let mut calls = 0_u64;
        loop {
            let mut look = |payload: &[u8]| found.push(payloads.check(payload));
            let more = match batch {
                1 => consumer.pop(&mut look)?,
                _ => consumer.pop_batch(batch, &mut look)? > 0,
            };
            calls += 1;
            if !more || (calls.is_multiple_of(look_every) && Instant::now() >= end) {
                return Ok(());
            }
        }
    })
}

/// Gets a window of messages and deletes them in another order.
pub fn out_of_order<C: Contender>(task: &Task, window: usize, limit: Limit) -> Supported<Outcome> {
    let order = Random::new(1).shuffled(window);
    measured::<C>(task, 1, limit, |consumer, payloads, end, found: &mut Vec<_>| {
        loop {
            let mut look = |payload: &[u8]| found.push(payloads.check(payload));
            let count = consumer.pop_out_of_order(window, &order, &mut look)?;
            if count == 0 || Instant::now() >= end {
                return Ok(());
            }
        }
    })
}

/// Fills a store, lets each thread `consume` until the end, and checks what came out and what did not.
fn measured<C: Contender>(
    task: &Task,
    threads: usize,
    limit: Limit,
    consume: impl Fn(
        &mut dyn Consumer,
        &Payloads,
        Instant,
        &mut Vec<Option<(usize, u64)>>,
    ) -> Supported<()>
    + Sync,
) -> Supported<Outcome> {
    let mut payloads = Payloads::new(task.workload.size, 0);
    let store = C::open(&task.dir, task.workload.durability, 1)?;
    let count = fill::fill(&store, &mut payloads, limit.messages, FILL_TIME)?;
    let consumers = (0..threads).map(|_| store.consumer(0)).collect::<Supported<Vec<_>>>()?;
    measure::sync_file_system(&task.dir);
    let before = measure::disk(&task.dir);
    let start = Barrier::new(threads);
    let done = std::thread::scope(|scope| {
        let threads = consumers.into_iter().map(|mut consumer| {
            let (start, payloads, consume) = (&start, &payloads, &consume);
            scope.spawn(move || {
                let mut found = Vec::with_capacity(count as usize);
                start.wait();
                let began = Instant::now();
                consume(&mut consumer, payloads, began + limit.time, &mut found)?;
                Ok(Done { began, ended: Instant::now(), found })
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Supported<Vec<_>>>()
    })?;
    let after = measure::disk(&task.dir);

    let mut ledger = Ledger::new(&[count]);
    done.iter().flat_map(|done| &done.found).for_each(|found| ledger.enter(*found));
    let mut outcome = Outcome::default();
    let messages: usize = done.iter().map(|done| done.found.len()).sum();
    let began = done.iter().map(|done| done.began).min().expect("there is a thread");
    let ended = done.iter().map(|done| done.ended).max().expect("there is a thread");
    outcome.set("rate", messages as f64 / (ended - began).as_secs_f64());
    outcome.set("messages", messages as f64);
    let flushes =
        before.zip(after).and_then(|(before, after)| Some(after.flushes? - before.flushes?));
    if let (Durability::Sync, Some(flushes)) = (task.workload.durability, flushes) {
        outcome.set("flushes", flushes as f64 / messages as f64);
    }
    store.close();
    // What the time did not suffice for, without syncs.
    let store = fill::reopen::<C>(&task.dir, 1)?;
    let mut consumer = store.consumer(0)?;
    let enter = |payload: &[u8]| ledger.enter(payloads.check(payload));
    let complete = fill::take_all(&mut consumer, enter)?;
    drop(consumer);
    store.close();
    outcome.judge(ledger.verdict(&[count], complete, threads == 1));
    match complete {
        true => outcome.judge(fill::verify_empty::<C>(&task.dir)?),
        false => outcome.set("partly", 1.0),
    }
    Ok(outcome)
}
