//! What an operation costs when many messages wait.

use std::time::{Duration, Instant};

use super::{Task, fill};
use crate::contender::{Consumer, Contender, Producer, Supported};
use crate::measure;
use crate::outcome::Outcome;
use crate::payload::{Ledger, Payloads};

const FILL_TIME: Duration = Duration::from_secs(60);

/// Inserts and pops take turns by so many, so that the backlog stays as long as it is.
const TURN: u64 = 1000;

pub fn run<C: Contender>(task: &Task, waiting: u64, operations: u64) -> Supported<Outcome> {
    let store = C::open(&task.dir, task.workload.durability, 1)?;
    let mut payloads = Payloads::new(task.workload.size, 0);
    let count = fill::fill(&store, &mut payloads, waiting, FILL_TIME)?;
    if count < waiting {
        return Ok(Outcome::unsupported(format!("took only {count} in 60 s")));
    }
    measure::sync_file_system(&task.dir);
    let mut producer = store.producer(0)?;
    let mut consumer = store.consumer(0)?;
    let mut ledger = Ledger::new(&[operations]);
    let mut inserting = Duration::ZERO;
    let mut popping = Duration::ZERO;
    for turn in 0..operations / TURN {
        let first = count + turn * TURN;
        let began = Instant::now();
        for n in first..first + TURN {
            producer.insert(payloads.make(n));
        }
        inserting += began.elapsed();
        let began = Instant::now();
        for _ in 0..TURN {
            consumer.pop(&mut |payload| ledger.enter(payloads.check(payload)))?;
        }
        popping += began.elapsed();
    }
    let mut outcome = Outcome::default();
    outcome.set("insert_ns", inserting.as_nanos() as f64 / operations as f64);
    outcome.set("pop_ns", popping.as_nanos() as f64 / operations as f64);
    // What was inserted first comes out first, as many as there were operations.
    outcome.judge(ledger.verdict(&[operations], true, true));
    drop((producer, consumer));
    store.close();
    Ok(outcome)
}
