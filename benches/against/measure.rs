//! Measures the plain operations of one version of millpond, for `run`: prints what each costs, in nanoseconds for each
//! message. What comes out is checked against what was put in.

use std::time::{Duration, Instant};

use millpond::{Durability, Queue, Result, Store};

const MESSAGES: u64 = 1_000_000;

const PAYLOAD_BYTES: usize = 100;

const BATCH: usize = 100;

fn payload(n: u64) -> [u8; PAYLOAD_BYTES] {
    let mut payload = [n as u8; PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&n.to_le_bytes());
    payload
}

fn timed(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    work()?;
    println!("{what}\t{}", began.elapsed().as_nanos() as u64 / MESSAGES);
    Ok(())
}

fn insert(queue: &Queue) -> Result<()> {
    for n in 0..MESSAGES {
        queue.insert(&payload(n))?;
    }
    Ok(())
}

fn drain(queue: &Queue) -> Result<()> {
    for n in 0..MESSAGES {
        let delivery = queue.get()?;
        assert_eq!(delivery.payload(), payload(n));
        delivery.delete()?;
    }
    Ok(())
}

fn drain_by_batches(queue: &Queue) -> Result<()> {
    let mut next = 0;
    while next < MESSAGES {
        let batch = queue.get_batch(BATCH, Duration::ZERO)?;
        for delivery in &batch {
            assert_eq!(delivery.payload(), payload(next));
            next += 1;
        }
        queue.delete_batch(batch)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).expect("a directory for the store");
    let process = Durability::Process;
    let store = Store::options().durability(process).delete_durability(process).open(dir)?;
    let queue = store.queue("q")?;
    timed("insert", || insert(&queue))?;
    timed("get and delete", || drain(&queue))?;
    insert(&queue)?;
    timed("get and delete by 100", || drain_by_batches(&queue))?;
    assert!(queue.try_get()?.is_none());
    store.close()
}
