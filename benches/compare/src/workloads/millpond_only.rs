//! What only millpond is asked: messages that many hold at once, and consumers that wait for nothing.

use std::time::{Duration, Instant};

use super::{Task, fill};
use crate::contender::{Contender, Supported};
use crate::contenders::millpond::Millpond;
use crate::measure;
use crate::outcome::Outcome;
use crate::payload::{Ledger, Payloads};

/// What inserts, gets and deletes cost while `held` messages are in flight.
pub fn in_flight(task: &Task, held: u64, operations: u64) -> Supported<Outcome> {
    let store = Millpond::open(&task.dir, task.workload.durability, 1)?;
    let mut payloads = Payloads::new(task.workload.size, 0);
    fill::fill(&store, &mut payloads, held, Duration::from_secs(60))?;
    let queue = store.queue(0);
    let mut holding = Vec::new();
    while holding.len() < held as usize {
        let batch = queue.get_batch(held as usize - holding.len(), Duration::ZERO).unwrap();
        assert!(!batch.is_empty(), "a message is missing");
        holding.extend(batch);
    }
    measure::sync_file_system(&task.dir);
    let mut outcome = Outcome::default();
    let began = Instant::now();
    for n in 0..operations {
        queue.insert(payloads.make(n)).unwrap();
    }
    outcome.set("insert_ns", per_operation(began, operations));
    let mut ledger = Ledger::new(&[operations]);
    let began = Instant::now();
    while let Some(delivery) = queue.try_get().unwrap() {
        ledger.enter(payloads.check(delivery.payload()));
        delivery.delete().unwrap();
    }
    outcome.set("pop_ns", per_operation(began, operations));
    outcome.judge(ledger.verdict(&[operations], true, true));
    assert_eq!(queue.delete_batch(holding).unwrap().deleted, held);
    store.close();
    Ok(outcome)
}

/// Processor time while consumers wait and nothing comes.
pub fn idle(task: &Task, consumers: usize, time: Duration) -> Supported<Outcome> {
    let store = Millpond::open(&task.dir, task.workload.durability, 1)?;
    let spent = std::thread::scope(|scope| {
        for _ in 0..consumers {
            let queue = store.queue(0).clone();
            let wait = time + Duration::from_secs(1);
            scope.spawn(move || assert!(queue.get_timeout(wait).unwrap().is_none()));
        }
        // Until they have begun to wait.
        std::thread::sleep(Duration::from_millis(500));
        let before = measure::cpu_time();
        std::thread::sleep(time);
        measure::cpu_time() - before
    });
    let mut outcome = Outcome::default();
    outcome.set("cpu_ms", spent.as_secs_f64() * 1e3 / time.as_secs_f64());
    store.close();
    Ok(outcome)
}

fn per_operation(began: Instant, operations: u64) -> f64 {
    began.elapsed().as_nanos() as f64 / operations as f64
}
