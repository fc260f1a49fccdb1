//! Simulated crashes: a long run of operations on a simulated disk is cut off after every storage operation, by
//! killing the process and by power cuts that keep different sectors, and what is found on reopening is held against
//! what had been promised. A sample of the recoveries is cut off again, and a sample of those once more.
//!
//! The parts: `world` is the model, made of `queue`s and compared by what can be `seen`; `workload` runs the
//! `operations` on store and model and takes the forks, `check` opens a fork and compares, `faults` makes the disk fail
//! instead.
//!
//! `MILLPOND_CRASH_SEEDS=n` runs n workloads of each kind instead of one (the first is always the same), and
//! `MILLPOND_CRASH_FIRST=s` begins with seed s.

mod check;
mod content;
mod exhaustive;
mod faults;
mod operations;
mod queue;
mod run;
mod seen;
mod workload;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millpond::Durability;

use check::Counts;
use run::{Plan, all, run};

const OPERATIONS: usize = 2200;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs a plan for each seed that was asked for, and prints what was visited.
fn run_all(name: &str, plan: &Plan) {
    let first = number("MILLPOND_CRASH_FIRST", 1);
    all(number("MILLPOND_CRASH_SEEDS", 1), |n| {
        let seed = first + n;
        let counts = Arc::new(Counts::default());
        let coverage =
            run(plan, seed, &counts).map_err(|why| format!("{name}, seed {seed}: {why}"))?;
        let [once, twice] = &counts.in_recovery;
        println!(
            "{name}, seed {seed}: {} operations, {} storage operations; {} states, {} of them distinct: {} killed, \
             {} power cuts, {} cut again while recovering, {} a third time; {coverage:?}",
            plan.operations,
            coverage.storage_operations,
            counts.total(),
            counts.distinct.load(Ordering::Relaxed),
            counts.kills.load(Ordering::Relaxed),
            counts.power_cuts.load(Ordering::Relaxed),
            once.load(Ordering::Relaxed),
            twice.load(Ordering::Relaxed),
        );
        assert!(coverage.segments > 8, "{name}, seed {seed}: the log hardly rolled: {coverage:?}");
        assert!(coverage.removed_segments > 4, "{name}, seed {seed}: {coverage:?}");
        assert!(coverage.rewritten_segments > 0, "{name}, seed {seed}: {coverage:?}");
        assert!(coverage.indexes > 4, "{name}, seed {seed}: {coverage:?}");
        assert!(coverage.duplicates > 50, "{name}, seed {seed}: {coverage:?}");
        assert!(coverage.redriven > 0, "{name}, seed {seed}: {coverage:?}");
        assert!(coverage.cursors > 20, "{name}, seed {seed}: {coverage:?}");
        Ok(())
    });
}

#[test]
fn what_was_acknowledged_survives_a_cut_after_any_storage_operation() {
    run_all(
        "all synced",
        &Plan {
            durability: Durability::Sync,
            delete_durability: Durability::Sync,
            operations: OPERATIONS,
            power_cuts: 3,
        },
    );
}

#[test]
fn deletes_that_no_sync_has_covered_may_come_back_after_a_power_cut_and_nothing_else() {
    run_all(
        "synced inserts",
        &Plan {
            durability: Durability::Sync,
            delete_durability: Durability::Interval(Duration::from_secs(1)),
            operations: OPERATIONS,
            power_cuts: 3,
        },
    );
}

#[test]
fn without_syncs_a_power_cut_leaves_a_prefix_of_what_was_done() {
    run_all(
        "unsynced",
        &Plan {
            durability: Durability::Process,
            delete_durability: Durability::Process,
            operations: OPERATIONS,
            power_cuts: 3,
        },
    );
}

/// Runs all workloads of few operations, which `MILLPOND_CRASH_LENGTH` can make more, and prints what was visited.
fn run_every(name: &str, durability: Durability, delete_durability: Durability) {
    let length = number("MILLPOND_CRASH_LENGTH", 2) as u32;
    let power_cuts = number("MILLPOND_CRASH_CUTS", 2);
    let plan = Plan { durability, delete_durability, operations: 0, power_cuts };
    let report = |last: &str, counts: &Counts| {
        println!(
            "{name}, all workloads of up to {length} operations{last}: {} states, {} of them distinct",
            counts.total(),
            counts.distinct.load(Ordering::Relaxed),
        );
    };
    // A long run is worth something before it is through.
    let counts = exhaustive::visit(&plan, length, |last, counts| {
        report(&format!(", those that end with {last:?} done"), counts);
    });
    report("", &counts);
}

#[test]
fn every_workload_of_few_operations_keeps_its_promises() {
    run_every("all synced", Durability::Sync, Durability::Sync);
}

#[test]
fn every_workload_of_few_operations_keeps_its_promises_with_synced_inserts() {
    let each_second = Durability::Interval(Duration::from_secs(1));
    run_every("synced inserts", Durability::Sync, each_second);
}

#[test]
fn every_workload_of_few_operations_keeps_its_promises_unsynced() {
    run_every("unsynced", Durability::Process, Durability::Process);
}
