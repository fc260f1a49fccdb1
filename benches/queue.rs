//! What the operations of one queue cost, on a real directory. The one command:
//!
//! ```text
//! cargo bench --bench queue
//! ```
//!
//! It prints the version, the durability of each figure is in its name, and `MILLPOND_BENCH_DIR` says which disk is
//! measured (by default, the one that temporary files lie on: see that it is no memory file system, or the synced
//! figures mean nothing). Every run checks what it got: counts, order, and content.

use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millpond::{Durability, Queue, Store};
use tempfile::TempDir;

const PAYLOAD_BYTES: usize = 100;

const BATCH: usize = 100;

const WAITING: u64 = 100_000;

/// An untimed pause for deletes: no more messages wait than this.
const BACKLOG_MAX: u64 = 100_000;

fn directory() -> TempDir {
    match std::env::var_os("MILLPOND_BENCH_DIR") {
        Some(dir) => TempDir::new_in(dir),
        None => TempDir::new(),
    }
    .expect("a directory to measure in")
}

fn open(dir: &Path, durability: Durability) -> Store {
    Store::options().durability(durability).open(dir).unwrap()
}

fn payload(n: u64) -> [u8; PAYLOAD_BYTES] {
    let mut payload = [n as u8; PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&n.to_le_bytes());
    payload
}

/// Takes the messages `from..to` out, and nothing else.
fn drain(queue: &Queue, from: u64, to: u64) {
    let mut next = from;
    while next < to {
        let batch = queue.get_batch(1000, Duration::ZERO).unwrap();
        assert!(!batch.is_empty(), "message {next} of {to} is missing");
        for delivery in &batch {
            assert_eq!(delivery.payload(), payload(next));
            next += 1;
        }
        let count = batch.len() as u64;
        assert_eq!(queue.delete_batch(batch).unwrap().deleted, count);
    }
    assert!(queue.try_get().unwrap().is_none());
}

fn unsynced(c: &mut Criterion) {
    let mut group = c.benchmark_group("process durability, 100 bytes");
    group.throughput(Throughput::Elements(1));
    group.bench_function("insert", |b| {
        let dir = directory();
        let store = open(dir.path(), Durability::Process);
        let queue = store.queue("q").unwrap();
        let mut next = 0;
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let end = next + iterations;
            while next < end {
                let first = next;
                let until = end.min(next + BACKLOG_MAX);
                let began = Instant::now();
                while next < until {
                    queue.insert(&payload(next)).unwrap();
                    next += 1;
                }
                spent += began.elapsed();
                drain(&queue, first, until);
            }
            spent
        });
    });
    group.bench_function("insert, get, delete", |b| {
        let dir = directory();
        let store = open(dir.path(), Durability::Process);
        let queue = store.queue("q").unwrap();
        let mut n = 0;
        b.iter(|| {
            queue.insert(&payload(n)).unwrap();
            let delivery = queue.try_get().unwrap().unwrap();
            assert_eq!(delivery.payload(), payload(n));
            delivery.delete().unwrap();
            n += 1;
        });
        assert_eq!(store.stats().messages, 0);
    });
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("insert, get, delete by 100", |b| {
        let dir = directory();
        let store = open(dir.path(), Durability::Process);
        let queue = store.queue("q").unwrap();
        let mut n = 0;
        b.iter(|| {
            let payloads: [_; BATCH] = std::array::from_fn(|k| payload(n + k as u64));
            assert_eq!(queue.insert_batch(payloads.iter()).unwrap().len(), BATCH);
            let batch = queue.get_batch(BATCH, Duration::ZERO).unwrap();
            assert!(batch.iter().map(|d| d.payload()).eq(payloads.iter().map(|p| &p[..])));
            assert_eq!(queue.delete_batch(batch).unwrap().deleted, BATCH as u64);
            n += BATCH as u64;
        });
        assert_eq!(store.stats().messages, 0);
    });
    group.finish();
}

/// How long `threads` need to insert `each` messages, every one of them synced.
fn insert_synced(queue: &Queue, threads: u64, each: u64) -> Duration {
    let start = Barrier::new(threads as usize + 1);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for n in 0..each {
                    queue.insert(&payload(thread * each + n)).unwrap();
                }
            });
        }
        // Taken first: this thread may be the last that goes on behind the barrier.
        let began = Instant::now();
        start.wait();
        began
    })
    .elapsed()
}

fn synced(c: &mut Criterion) {
    let mut group = c.benchmark_group("sync durability, 100 bytes");
    group.throughput(Throughput::Elements(1));
    group.sample_size(10);
    for threads in [1, 8] {
        group.bench_function(BenchmarkId::new("insert, threads", threads), |b| {
            let dir = directory();
            let store = open(dir.path(), Durability::Sync);
            let queue = store.queue("q").unwrap();
            b.iter_custom(|iterations| {
                let each = iterations.div_ceil(threads);
                let spent = insert_synced(&queue, threads, each);
                assert_eq!(queue.stats().unwrap().ready, threads * each);
                check_and_delete_all(&queue, threads * each);
                spent.mul_f64(iterations as f64 / (threads * each) as f64)
            });
        });
    }
    group.finish();
}

/// Takes out the messages `0..count`, which have come in any order.
fn check_and_delete_all(queue: &Queue, count: u64) {
    let mut seen = vec![false; count as usize];
    loop {
        let batch = queue.get_batch(1000, Duration::ZERO).unwrap();
        if batch.is_empty() {
            break;
        }
        for delivery in &batch {
            let n = u64::from_le_bytes(*delivery.payload().first_chunk().unwrap());
            assert_eq!(delivery.payload(), payload(n));
            assert!(!std::mem::replace(&mut seen[n as usize], true), "message {n} came twice");
        }
        queue.delete_batch(batch).unwrap();
    }
    assert!(seen.iter().all(|seen| *seen), "a message is missing");
}

fn reopen(c: &mut Criterion) {
    let mut group = c.benchmark_group("reopen, 100 thousand waiting");
    group.sample_size(10);
    group.bench_function("open and first get", |b| {
        let dir = directory();
        let store = open(dir.path(), Durability::Process);
        let queue = store.queue("q").unwrap();
        for n in 0..WAITING {
            queue.insert(&payload(n)).unwrap();
        }
        store.close().unwrap();
        drop((queue, store));
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let began = Instant::now();
                let store = open(dir.path(), Durability::Process);
                let queue = store.find("q").unwrap().unwrap();
                let first = queue.get().unwrap();
                spent += began.elapsed();
                assert_eq!((first.payload(), first.attempt()), (&payload(0)[..], 1));
                assert_eq!(store.stats().messages, WAITING);
                first.release().unwrap();
                store.close().unwrap();
            }
            spent
        });
    });
    group.finish();
}

fn settings() -> Criterion {
    println!("millpond {}", env!("CARGO_PKG_VERSION"));
    Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
}

criterion_group!(name = benches; config = settings(); targets = unsynced, synced, reopen);
criterion_main!(benches);
