//! All workloads of up to two operations, on a store that holds a little of everything; of up to three in the long run.
//!
//! Each is cut off after every storage operation of its last operation: what the ones before may leave, the shorter
//! workloads have visited.
//!
//! `MILLPOND_CRASH_LENGTH=3` goes on to longer ones, `MILLPOND_CRASH_CUTS=n` tries n power cuts after each storage
//! operation.

use std::sync::Arc;

use millpond::State;
use millpond::testing::Cut;

use super::check::{Checker, Counts};
use super::operations::Operation::{self, *};
use super::run::{self, Job, Plan};
use super::workload::{Outcome, Random, Workload};

/// What workloads are made of. The large insert makes the log roll.
const OPERATIONS: [Operation; 27] = [
    InsertOf("a", 100),
    InsertOf("t", 100),
    InsertDelayed("b", 60_000),
    InsertBatch("b"),
    InsertKey("a", 1),
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
    Purge("b", State::Delayed),
    Kick("a", 9),
    Pause("a"),
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
const BEFORE: [Operation; 18] = [
    Declare("t"),
    InsertOf("t", 100),
    InsertOf("t", 100),
    InsertOf("a", 100),
    InsertKey("a", 0),
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

/// How many sequences there are of up to `length` operations, the empty one included.
fn count(length: u32) -> u64 {
    (0..=length).map(|length| (OPERATIONS.len() as u64).pow(length)).sum()
}

/// The sequence of this number; the shorter ones come first.
fn sequence(mut number: u64) -> Vec<Operation> {
    let each = OPERATIONS.len() as u64;
    let mut length = 0;
    while number >= each.pow(length) {
        number -= each.pow(length);
        length += 1;
    }
    (0..length).map(|n| OPERATIONS[(number / each.pow(n) % each) as usize]).collect()
}

/// Runs the operations `first`, and checks the crashes within the `last` one.
fn run(plan: &Plan, first: &[Operation], last: Operation, checker: &Checker) -> Outcome<()> {
    let check = |job: Job| job.check(checker);
    let mut run = Workload::new(plan, Random::new(1), checker, &check);
    run.begin()?;
    BEFORE.iter().try_for_each(|operation| run.perform(*operation))?;
    first.iter().try_for_each(|operation| run.perform(*operation))?;
    run.watch();
    run.perform(last)
}

/// Visits all workloads of up to `length` operations, and returns what that was; tells of it whenever those that end with
/// one operation are done.
///
/// Those that end with the same operation are one piece of work, since many of them leave the same: not every operation
/// before it has changed something.
pub fn visit(
    plan: &Plan,
    length: u32,
    done: impl Fn(Operation, &Counts) + std::marker::Sync,
) -> Arc<Counts> {
    let counts = Arc::new(Counts::default());
    run::all(OPERATIONS.len() as u64, |number| {
        let last = OPERATIONS[number as usize];
        // A workload is short enough for each of its recoveries to be cut.
        let checker = Checker::new(plan.options(), counts.clone(), [40, 10]);
        (0..count(length - 1)).map(sequence).try_for_each(|first| {
            run(plan, &first, last, &checker).map_err(|why| format!("{first:?}, {last:?}: {why}"))
        })?;
        done(last, &counts);
        Ok(())
    });
    counts
}

#[test]
fn every_number_is_another_sequence() {
    let mut seen = std::collections::HashSet::new();
    for number in 0..count(2) {
        let operations = sequence(number);
        assert!(operations.len() <= 2 && seen.insert(format!("{operations:?}")));
    }
    assert_eq!(sequence(count(2)).len(), 3);
}
