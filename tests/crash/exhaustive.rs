//! All workloads of up to two operations, on a store that holds a little of everything; of up to three in the long run.
//!
//! Each is cut off after every storage operation of its last operation: what the ones before may leave, the shorter
//! workloads have visited.
//!
//! `MILLPOND_CRASH_LENGTH=3` goes on to longer ones, `MILLPOND_CRASH_CUTS=n` tries n power cuts after each storage
//! operation.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use millpond::State;
use millpond::testing::Cut;

use super::check::{Checker, Counts};
use super::operations::Operation::{self, *};
use super::run::{Job, Plan};
use super::workload::{Outcome, Random, Workload};

/// What workloads are made of. The large insert makes the log roll.
const OPERATIONS: [Operation; 22] = [
    InsertOf("a", 100),
    InsertOf("a", 60_000),
    InsertBatch("b"),
    Get("a", 1),
    Get("b", 6),
    Delete,
    DeleteBatch,
    Release(0),
    Release(700),
    Fail,
    Bury,
    Purge("a", State::Ready),
    Purge("a", State::Buried),
    Redeclare,
    Declare("t"),
    Remove,
    Sync,
    Steps(usize::MAX),
    Tick(12_000),
    Reopen,
    Crash(Cut::Kill),
    Crash(Cut::PowerCut(0)),
];

/// So that every operation finds something to do: messages that wait, are in flight, have failed and are buried, in both
/// queues, some of them in a sealed segment.
const BEFORE: [Operation; 15] = [
    Declare("t"),
    InsertOf("a", 100),
    InsertOf("a", 40_000),
    InsertBatch("b"),
    Get("a", 1),
    Bury,
    Get("a", 1),
    Fail,
    InsertOf("a", 30_000),
    Get("b", 1),
    InsertOf("a", 100),
    Get("a", 1),
    InsertOf("b", 100),
    Sync,
    Steps(usize::MAX),
];

/// How many workloads there are of up to `length` operations.
fn count(length: u32) -> u64 {
    (1..=length).map(|length| (OPERATIONS.len() as u64).pow(length)).sum()
}

/// The workload of this number; the shorter ones come first.
fn workload(mut number: u64) -> Vec<Operation> {
    let each = OPERATIONS.len() as u64;
    let mut length = 1;
    while number >= each.pow(length) {
        number -= each.pow(length);
        length += 1;
    }
    (0..length).map(|n| OPERATIONS[(number / each.pow(n) % each) as usize]).collect()
}

fn run(plan: &Plan, operations: &[Operation], checker: &Checker) -> Outcome<()> {
    let check = |job: Job| {
        let Job { fork, promises, origin } = job;
        checker.check(&fork, &promises).map(|_| ()).map_err(|why| format!("{origin}: {why}"))
    };
    let mut run = Workload::new(plan, Random::new(1), checker, &check);
    run.begin()?;
    BEFORE.iter().try_for_each(|operation| run.perform(*operation))?;
    let (last, first) = operations.split_last().ok_or("a workload of nothing")?;
    first.iter().try_for_each(|operation| run.perform(*operation))?;
    run.watch();
    run.perform(*last)
}

/// Visits all workloads of up to `length` operations, and returns how many states that were.
pub fn visit(plan: &Plan, length: u32) -> u64 {
    let counts = Arc::new(Counts::default());
    // A workload is short enough for each of its recoveries to be cut.
    let again_every = [40, 10];
    let checker = Checker { options: plan.options(), counts: counts.clone(), again_every };
    let (next, broken) = (AtomicU64::new(0), Mutex::new(None));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count(length) {
                return;
            }
            let operations = workload(number);
            if let Err(why) = run(plan, &operations, &checker) {
                broken.lock().unwrap().get_or_insert(format!("{operations:?}: {why}"));
                next.store(count(length), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(2, |n| n.get());
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    if let Some(why) = broken.into_inner().unwrap() {
        panic!("{why}");
    }
    counts.total()
}

#[test]
fn every_number_is_another_workload() {
    let mut seen = std::collections::HashSet::new();
    for number in 0..count(2) {
        let operations = workload(number);
        assert!(operations.len() <= 2 && seen.insert(format!("{operations:?}")));
    }
    assert_eq!(workload(count(2)).len(), 3);
}
