//! Running a plan, and checking the forks of a workload.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use millpond::{Durability, Store, StoreOptions};

use super::check::{Checker, Counts, Fork, Promises};
use super::workload::{Coverage, Outcome, Random, Workload};

/// Of so many forks one is cut again while it is recovered, and of so many of those one again.
const AGAIN_EVERY: [u64; 2] = [600, 150];

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub durability: Durability,
    pub delete_durability: Durability,
    pub operations: usize,
    /// Power cuts after each storage operation.
    pub power_cuts: u64,
}

impl Plan {
    pub fn options(&self) -> StoreOptions {
        Store::options()
            .durability(self.durability)
            .delete_durability(self.delete_durability)
            .segment_bytes(64 << 10)
    }
}

/// A fork to check, and where it comes from.
pub struct Job {
    pub fork: Fork,
    pub promises: Promises,
    pub origin: Arc<str>,
}

impl Job {
    pub fn check(&self, checker: &Checker) -> Outcome<()> {
        let Job { fork, promises, origin } = self;
        checker.check(fork, promises).map(|_| ()).map_err(|why| format!("{origin}: {why}"))
    }
}

/// Runs the plan and checks every fork, up to the first broken promise.
pub fn run(plan: &Plan, seed: u64, counts: &Arc<Counts>) -> Outcome<Coverage> {
    let checker = Checker::new(plan.options(), counts.clone(), AGAIN_EVERY);
    let check = |job: Job| job.check(&checker);
    Workload::new(plan, Random::new(seed), &checker, &check).run()
}

/// Does all pieces of work, as many at a time as there are processors. Panics at the first that fails.
pub fn all(count: u64, work: impl Fn(u64) -> Outcome<()> + Sync) {
    let (next, broken) = (AtomicU64::new(0), Mutex::new(None));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            if let Err(why) = work(number) {
                broken.lock().unwrap().get_or_insert(why);
                next.store(count, Ordering::Relaxed);
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
}
