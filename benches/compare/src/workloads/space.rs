//! What messages take on the disk, and what is written for them.

use std::time::{Duration, Instant};

use super::{Task, fill};
use crate::contender::{Consumer, Contender, Durability, Producer, Supported, Unsupported};
use crate::measure;
use crate::outcome::Outcome;
use crate::payload::{Ledger, Payloads};

const FILL_TIME: Duration = Duration::from_secs(20);

/// The longest that inserting goes on, of a life. A slow contender lives it with fewer messages.
const LIFE_TIME: Duration = Duration::from_secs(3);

/// After a close, with messages waiting.
pub fn waiting<C: Contender>(task: &Task, messages: u64) -> Supported<Outcome> {
    let store = C::open(&task.dir, task.workload.durability, 1)?;
    let mut payloads = Payloads::new(task.workload.size, 0);
    let count = fill::fill(&store, &mut payloads, messages, FILL_TIME)?;
    store.close();
    measure::sync_file_system(&task.dir);
    let space = measure::space(&task.dir);
    let mut outcome = Outcome::default();
    outcome.set("messages", count as f64);
    outcome.set("allocated", space.allocated as f64 / count as f64);
    outcome.set("length", space.length as f64 / count as f64);
    fill::verify::<C>(&task.dir, task.workload.size, &[count], &mut outcome);
    Ok(outcome)
}

/// Through a whole life: inserted, got, deleted; by batches of `batch`.
pub fn life<C: Contender>(task: &Task, messages: u64, batch: usize) -> Supported<Outcome> {
    let disk_before = measure::disk(&task.dir);
    let own_before = measure::written_by(std::process::id());
    let store = C::open(&task.dir, task.workload.durability, 1)?;
    let mut payloads = Payloads::new(task.workload.size, 0);
    let mut producer = store.producer(0)?;
    let mut consumer = store.consumer(0)?;
    let end = Instant::now() + LIFE_TIME;
    let mut n = 0;
    while n < messages && Instant::now() < end {
        match batch {
            1 => producer.insert(payloads.make(n)),
            _ => producer.insert_batch(&payloads.make_batch(n, batch))?,
        }
        n += batch as u64;
    }
    let messages = n;
    let mut ledger = Ledger::new(&[messages]);
    let end = Instant::now() + 3 * LIFE_TIME;
    loop {
        if Instant::now() >= end {
            return Err(Unsupported("too slow: what it took in 3 s was not deleted in 9 s"));
        }
        let mut look = |payload: &[u8]| ledger.enter(payloads.check(payload));
        let count = match batch {
            1 => usize::from(consumer.pop(&mut look)?),
            _ => consumer.pop_batch(batch, &mut look)?,
        };
        if count == 0 {
            break;
        }
    }
    drop((producer, consumer));
    // A server is asked before it ends: what it writes then is not counted, its start is.
    let server = store.server_pid().map(measure::written_by);
    store.close();
    measure::sync_file_system(&task.dir);
    let own =
        measure::written_by(std::process::id()).zip(own_before).map(|(now, before)| now - before);
    let mut outcome = Outcome::default();
    if let Some(written) = server.unwrap_or(own) {
        outcome.set("written", written as f64 / messages as f64);
    }
    if let Some((before, after)) = disk_before.zip(measure::disk(&task.dir)) {
        let written = after.written_bytes - before.written_bytes;
        outcome.set("disk", written as f64 / messages as f64);
        let flushes = before.flushes.zip(after.flushes);
        if let (Durability::Sync, Some((before, after))) = (task.workload.durability, flushes) {
            outcome.set("flushes", (after - before) as f64 / messages as f64);
        }
    }
    outcome.judge(ledger.verdict(&[messages], true, true));
    Ok(outcome)
}
