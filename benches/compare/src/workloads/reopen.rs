//! From nothing to the first message, with many waiting. The store was filled by another process.

use std::time::{Duration, Instant};

use super::{Phase, Task, fill};
use crate::contender::{Consumer, Contender, Supported};
use crate::measure;
use crate::outcome::Outcome;
use crate::payload::Payloads;

/// Whoever needs longer for filling has no figure.
const FILL_TIME: Duration = Duration::from_secs(60);

pub fn run<C: Contender>(task: &Task, waiting: u64) -> Supported<Outcome> {
    match task.phase {
        Phase::Fill { close } => fill_up::<C>(task, waiting, close),
        Phase::Open(before) => open::<C>(task, before),
        Phase::Whole => unreachable!("the phases are two processes"),
    }
}

fn fill_up<C: Contender>(task: &Task, waiting: u64, close: bool) -> Supported<Outcome> {
    let store = C::open(&task.dir, task.workload.durability, 1)?;
    // What cannot be consumed has no first message. Some find that out only when they are asked for one.
    store.consumer(0)?.pop(&mut |_| ())?;
    let began = Instant::now();
    let mut payloads = Payloads::new(task.workload.size, 0);
    let count = fill::fill(&store, &mut payloads, waiting, FILL_TIME)?;
    let mut outcome = Outcome::default();
    outcome.set("fill_seconds", began.elapsed().as_secs_f64());
    if count < waiting {
        outcome = Outcome::unsupported(format!("took only {count} in {} s", FILL_TIME.as_secs()));
    }
    match close {
        true => store.close(),
        // The process is killed soon, with the store open.
        false => std::mem::forget(store),
    }
    Ok(outcome)
}

/// `before` messages were taken out by earlier opens.
fn open<C: Contender>(task: &Task, before: u64) -> Supported<Outcome> {
    let payloads = Payloads::new(task.workload.size, 0);
    let mut first = None;
    let began = Instant::now();
    let store = C::open(&task.dir, task.workload.durability, 1)?;
    let mut consumer = store.consumer(0)?;
    consumer.pop(&mut |payload| first = payloads.check(payload))?;
    let elapsed = began.elapsed();
    let mut outcome = Outcome::default();
    outcome.set("ms", elapsed.as_secs_f64() * 1e3);
    let pid = store.server_pid().unwrap_or(std::process::id());
    if let Some(bytes) = measure::anonymous_memory(pid) {
        outcome.set("rss_mib", bytes as f64 / (1 << 20) as f64);
    }
    let expected = Some((0, before));
    outcome.judge((first != expected).then(|| "another first message".to_string()));
    drop(consumer);
    store.close();
    Ok(outcome)
}
