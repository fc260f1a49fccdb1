//! The threads: one runs the workload, the others check its forks.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use millpond::{Durability, Store, StoreOptions};

use super::check::{Checker, Counts, Fork, Promises};
use super::workload::{Coverage, Random, Workload};

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

/// Runs the plan and checks every fork. Panics at the first broken promise.
pub fn run(name: &str, plan: &Plan, seed: u64, counts: &Arc<Counts>) -> Coverage {
    let checker =
        Checker { options: plan.options(), counts: counts.clone(), again_every: AGAIN_EVERY };
    let broken = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let (sender, receiver) = sync_channel(32);
    let receiver = Mutex::new(receiver);
    let outcome = thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(2, |n| n.get());
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(why) = check_all(&checker, &receiver) {
                    broken.lock().unwrap().get_or_insert(why);
                    stop.store(true, Ordering::Release);
                    // The workload must not wait for room.
                    while next(&receiver).is_some() {}
                }
            });
        }
        let work = || {
            let hand_over =
                move |job| sender.send(job).map_err(|_| "nobody checks any more".to_owned());
            Workload::new(plan, Random::new(seed), &checker, &hand_over).run(&stop)
        };
        // The channel is closed when this is done, and with it the threads.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
    });
    if let Some(why) = broken.into_inner().unwrap() {
        panic!("{name}, seed {seed}: {why}");
    }
    match outcome {
        Ok(Ok(coverage)) => coverage,
        Ok(Err(why)) => panic!("{name}, seed {seed}: {why}"),
        Err(panic) => resume_unwind(panic),
    }
}

fn next(receiver: &Mutex<Receiver<Job>>) -> Option<Job> {
    receiver.lock().unwrap().recv().ok()
}

fn check_all(checker: &Checker, receiver: &Mutex<Receiver<Job>>) -> Result<(), String> {
    while let Some(job) = next(receiver) {
        checker.check(&job.fork, &job.promises).map_err(|why| format!("{}: {why}", job.origin))?;
    }
    Ok(())
}
