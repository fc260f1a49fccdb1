//! A process dies at a system call, or a call fails; and nothing that it was promised is lost.
//!
//! A child process (this same binary, started anew) plays a script on a store: segments of 64 KiB that roll, are indexed,
//! trimmed, rewritten and removed, dead letters, batches, purges, backups, closes and opens. Its parent holds it at
//! each call that touches files, in whatever thread (`tracer`), and lets one blow fall: it is killed before the call,
//! behind it, or within a write; or the call fails with an error, or writes only a part. Then the parent opens what is
//! left. The child has written down how far it came, so there are only a few states that the store may be in, those that
//! the step under way leads through, and it must be in one of them, to the last attempt of the last message (`check`).
//!
//! `cargo test --test syscalls` takes a sample of the calls. More of them, or every one in all ways:
//!
//! ```text
//! MILLPOND_SYSCALLS=1000 cargo test --test syscalls -- --nocapture
//! MILLPOND_SYSCALLS=all cargo test --test syscalls -- --nocapture
//! ```
//!
//! `MILLPOND_SYSCALLS_SEED` plays another script. A run that fails leaves its directory behind, and says where.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod check;
mod child;
#[path = "../crash/content.rs"]
#[allow(dead_code, reason = "nothing is delayed here")]
mod content;
mod failures;
mod kills;
#[path = "../crash/queue.rs"]
#[allow(dead_code, reason = "nothing is delayed here")]
mod queue;
mod script;
#[path = "../crash/seen.rs"]
mod seen;
mod tracer;
#[path = "../crash/world.rs"]
#[allow(dead_code, reason = "nothing is delayed here")]
mod world;

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use millpond::Durability;
use tempfile::TempDir;

use child::{Orders, Task};

/// How many blows of each kind are enough to notice a fault that shows often; the long run is for the others.
const KILLS: usize = 120;
const FAILURES: usize = 60;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    seed: u64,
    acts: usize,
    steps: usize,
    kills: usize,
    failures: usize,
}

impl Plan {
    fn asked_for() -> Plan {
        let (kills, failures) = match std::env::var("MILLPOND_SYSCALLS").ok().as_deref() {
            None => (KILLS, FAILURES),
            Some("all") => (usize::MAX, usize::MAX),
            Some(count) => {
                let count = count.parse().expect("a number, or `all`");
                (count, count)
            }
        };
        let seed = std::env::var("MILLPOND_SYSCALLS_SEED");
        let seed = seed.map_or(1, |seed| seed.parse().expect("a number for a seed"));
        Plan { seed, acts: 2, steps: 150, kills, failures }
    }
}

/// `count` of the numbers below `all`, spread evenly, from a place that the seed names; or all of them.
pub fn which(all: usize, count: usize, seed: u64) -> impl Iterator<Item = usize> {
    let count = count.min(all);
    let from = script::Random(seed).below(all / count.max(1) + 1);
    (0..count).map(move |n| ((n as u128 * all as u128 / count as u128) as usize + from) % all)
}

/// The directory of a run, which is kept if the run fails.
pub struct Scene(RefCell<TempDir>);

impl Scene {
    fn new() -> Scene {
        Scene(RefCell::new(tempfile::tempdir().unwrap()))
    }

    fn orders(&self, name: &str, durability: Durability, task: Task) -> Orders {
        let base: PathBuf = self.0.borrow().path().join(name);
        fs::create_dir_all(&base).unwrap();
        Orders { base, durability, task }
    }

    /// Whether the machine lets a test do what a debugger does; says so if not.
    fn may_hold_processes(&self) -> bool {
        let why_not = tracer::why_not(&self.orders("hold", Durability::Process, Task::Open));
        if let Some(why) = why_not {
            eprintln!(
                "not shown, deaths and errors at system calls: no process may be held: {why}"
            );
        }
        why_not.is_none()
    }

    fn clear(&self, orders: &Orders) {
        fs::remove_dir_all(&orders.base).unwrap();
    }

    fn keep(&self) {
        self.0.borrow_mut().disable_cleanup(true);
        println!("the directory is kept: {}", self.0.borrow().path().display());
    }

    /// What the child has said.
    fn said(&self, orders: &Orders) -> String {
        fs::read_to_string(orders.base.join("child.log")).unwrap_or_default()
    }
}

#[test]
fn nothing_promised_is_lost_when_a_process_dies_at_a_system_call_under_process_durability() {
    kills::run(Durability::Process, Plan::asked_for());
}

#[test]
fn nothing_promised_is_lost_when_a_process_dies_at_a_system_call_under_sync_durability() {
    kills::run(Durability::Sync, Plan::asked_for());
}

#[test]
fn a_failing_system_call_is_reported_and_nothing_is_acknowledged_falsely_under_process_durability()
{
    failures::run(Durability::Process, Plan::asked_for());
}

#[test]
fn a_failing_system_call_is_reported_and_nothing_is_acknowledged_falsely_under_sync_durability() {
    failures::run(Durability::Sync, Plan::asked_for());
}

/// The process that is killed. Does nothing unless a parent started it.
#[test]
#[ignore = "the other tests of this file start it"]
fn child() {
    child::run_if_started();
}
