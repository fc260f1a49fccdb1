//! Putting messages in and taking them out again, apart from what is measured.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::contender::{Consumer, Contender, Durability, Producer, Supported};
use crate::outcome::Outcome;
use crate::payload::{Ledger, Payloads};

/// Messages that are inserted at once where only the result counts.
const BATCH: usize = 200;

/// How long it may take to see whether all is there. Of a slow contender only a part is looked at.
const CHECK_TIME: Duration = Duration::from_secs(3);

/// Inserts up to `count` messages, by batches if the contender has them; fewer if the time is over. How many.
pub fn fill<C: Contender>(
    store: &C,
    payloads: &mut Payloads,
    count: u64,
    time: Duration,
) -> Supported<u64> {
    let mut producer = store.producer(0)?;
    let end = Instant::now() + time;
    let mut batches = true;
    let mut n = 0;
    while n < count && Instant::now() < end {
        let size = BATCH.min((count - n) as usize);
        batches = batches && producer.insert_batch(&payloads.make_batch(n, size)).is_ok();
        if batches {
            n += size as u64;
        } else {
            producer.insert(payloads.make(n));
            n += 1;
        }
    }
    Ok(n)
}

/// Takes out what is left; whether that was all of it, or the time was over before.
pub fn take_all(consumer: &mut impl Consumer, mut look: impl FnMut(&[u8])) -> Supported<bool> {
    let end = Instant::now() + CHECK_TIME;
    while Instant::now() < end {
        let count = match consumer.pop_batch(1000, &mut look) {
            Ok(count) => count,
            Err(_) => usize::from(consumer.pop(&mut look)?),
        };
        if count == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens a store that was closed, to look at it: without syncs, but for contenders that cannot change their mind.
pub fn reopen<C: Contender>(dir: &Path, queues: usize) -> Supported<C> {
    C::open(dir, Durability::Process, queues).or_else(|_| C::open(dir, Durability::Sync, queues))
}

/// Opens the store anew and takes out everything, to see whether it is what was put in.
pub fn verify<C: Contender>(dir: &Path, size: usize, counts: &[u64], outcome: &mut Outcome) {
    match what_is_wrong::<C>(dir, size, counts) {
        Ok((true, verdict)) => outcome.judge(verdict),
        Ok((false, verdict)) => {
            outcome.judge(verdict);
            outcome.set("partly", 1.0);
        }
        Err(_) => outcome.set("unchecked", 1.0),
    }
}

/// Whether all was looked at, and what is wrong with it, if anything is.
fn what_is_wrong<C: Contender>(
    dir: &Path,
    size: usize,
    counts: &[u64],
) -> Supported<(bool, Option<String>)> {
    let store = reopen::<C>(dir, 1)?;
    let payloads = Payloads::new(size, 0);
    let mut ledger = Ledger::new(counts);
    let mut consumer = store.consumer(0)?;
    let complete = take_all(&mut consumer, |payload| ledger.enter(payloads.check(payload)))?;
    Ok((complete, ledger.verdict(counts, complete, counts.len() == 1)))
}

/// Opens the store anew: whether nothing of what was deleted has come back.
pub fn verify_empty<C: Contender>(dir: &Path) -> Supported<Option<String>> {
    let store = reopen::<C>(dir, 1)?;
    let mut count = 0;
    take_all(&mut store.consumer(0)?, |_| count += 1)?;
    Ok((count > 0).then(|| format!("{count} deleted ones came back")))
}
