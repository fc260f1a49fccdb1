//! A disk that fails at the n-th operation of a kind, once or for good: what the caller is told, and what is there
//! after a crash on top of it.
//!
//! The ledger is simpler than the model of `world`: one queue, everything synced, and each message is promised, gone,
//! or, where an error said so, either.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use millpond::testing::{Clock, Disk, Fault, FaultKind, step};
use millpond::{Delivery, Durability, Error, ErrorKind, Store, StoreOptions};

use super::check::{mix, words};
use super::content::{Content, payload};
use super::workload::{Choices, Outcome, Random};

/// Of one workload.
const OPERATIONS: usize = 14;

/// Of each kind of fault, each of these workloads meets one at every place, once and for good.
const WORKLOADS: u64 = 20;

/// What was told to the caller.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeMap<u64, Content>,
    deleted: BTreeSet<u64>,
    /// The call failed, and said that it may have taken effect all the same.
    maybe_deleted: BTreeSet<u64>,
    maybe_inserted: Vec<Vec<Content>>,
}

impl Ledger {
    fn check(&self, found: &BTreeMap<u64, Content>) -> Outcome<()> {
        for (id, content) in &self.acknowledged {
            let excused = self.deleted.contains(id) || self.maybe_deleted.contains(id);
            match found.get(id) {
                None if !excused => {
                    return Err(format!("message {id} was acknowledged and is lost"));
                }
                Some(found) if found != content => {
                    return Err(format!("message {id} is {found:?}, expected {content:?}"));
                }
                _ => {}
            }
        }
        if let Some(id) = self.deleted.iter().find(|id| found.contains_key(id)) {
            return Err(format!("message {id} was deleted and came back"));
        }
        let new = found.iter().filter(|(id, _)| !self.acknowledged.contains_key(id));
        let new: Vec<Content> = new.map(|(_, content)| *content).collect();
        if new.is_empty() || self.maybe_inserted.contains(&new) {
            return Ok(());
        }
        Err(format!("{new:?} were never acknowledged; possible are {:?}", self.maybe_inserted))
    }
}

fn options() -> StoreOptions {
    Store::options()
        .durability(Durability::Sync)
        .delete_durability(Durability::Sync)
        .segment_bytes(64 << 10)
}

/// How one run under a fault went.
#[derive(Default)]
struct Run {
    ledger: Ledger,
    held: Vec<Delivery>,
    /// What the first error was.
    failed: Option<ErrorKind>,
    errors: usize,
}

impl Run {
    /// Takes note of an error, and checks that it is one that this fault may cause.
    fn fail(&mut self, fault: Fault, what: &str, error: &Error) -> Outcome<()> {
        let kind = error.kind().clone();
        let poisoned = self.failed == Some(ErrorKind::Poisoned);
        let right = match fault.kind {
            _ if poisoned => kind == ErrorKind::Poisoned,
            FaultKind::Sync | FaultKind::SyncDir => kind == ErrorKind::Poisoned,
            // For good, it ends settling too, once the log needs another segment: no room is held back for that yet.
            FaultKind::Reserve => kind == ErrorKind::DiskFull && (what == "insert" || fault.sticky),
            _ => matches!(kind, ErrorKind::Io | ErrorKind::Poisoned),
        };
        let once = fault.sticky || poisoned || self.errors == 0;
        // An insert that found the store poisoned before it began is known not to have happened.
        let indeterminate = !error.is_indeterminate() || (kind == ErrorKind::Poisoned && !poisoned);
        if !right || !once || !indeterminate {
            return Err(format!("{what} after {} errors: {error} ({error:?})", self.errors));
        }
        self.errors += 1;
        if kind == ErrorKind::Poisoned {
            self.failed = Some(kind);
        }
        Ok(())
    }

    fn operate(
        &mut self,
        store: &Store,
        fault: Fault,
        n: usize,
        random: &mut Random,
    ) -> Outcome<()> {
        let queue = words(store.find("q"), "find")?.ok_or("the queue is gone")?;
        let was_poisoned = self.failed == Some(ErrorKind::Poisoned);
        let outcome = match random.below(10) {
            0..4 => {
                let count = if random.below(4) == 0 { 5 } else { 1 };
                let payloads: Vec<Vec<u8>> =
                    (0..count).map(|k| payload((n * 10 + k) as u64, random.below(5000))).collect();
                let contents: Vec<Content> = payloads.iter().map(|p| Content::of(p)).collect();
                match queue.insert_batch(&payloads) {
                    Ok(ids) => {
                        let new = ids.iter().map(|id| id.as_u64()).zip(contents);
                        self.ledger.acknowledged.extend(new);
                        Ok(())
                    }
                    Err(error) => {
                        if error.is_indeterminate() {
                            self.ledger.maybe_inserted.push(contents);
                        }
                        Err(("insert", error))
                    }
                }
            }
            4..6 => match queue.get_batch(3, Duration::ZERO) {
                Ok(deliveries) => {
                    self.held.extend(deliveries);
                    Ok(())
                }
                Err(error) => Err(("get", error)),
            },
            6..8 => self.delete(),
            8 => step(store).map(|_| ()).map_err(|error| ("step", error)),
            _ => store.sync().map_err(|error| ("sync", error)),
        };
        match outcome {
            Err((what, error)) => self.fail(fault, what, &error),
            Ok(()) if was_poisoned => self.check_poisoned(store),
            Ok(()) => Ok(()),
        }
    }

    fn delete(&mut self) -> Result<(), (&'static str, Error)> {
        let Some(delivery) = self.held.pop() else { return Ok(()) };
        let id = delivery.id().as_u64();
        match delivery.delete() {
            Ok(()) => {
                self.ledger.deleted.insert(id);
                Ok(())
            }
            Err(error) => {
                if error.is_indeterminate() {
                    self.ledger.maybe_deleted.insert(id);
                }
                Err(("delete", error))
            }
        }
    }

    /// Nothing is accepted any more, and what is there can still be looked at.
    fn check_poisoned(&self, store: &Store) -> Outcome<()> {
        let queue = words(store.find("q"), "find")?.ok_or("the queue is gone")?;
        let refused = |error: Option<Error>, what: &str| match error {
            Some(error) if *error.kind() == ErrorKind::Poisoned && !error.is_indeterminate() => {
                Ok(())
            }
            other => Err(format!("{what} on a poisoned store: {other:?}")),
        };
        refused(queue.insert("x").err(), "insert")?;
        refused(queue.try_get().err(), "get")?;
        refused(store.sync().err(), "sync")?;
        words(queue.peek(), "peek").map(|_| ())
    }
}

/// Everything in a store.
fn content_of(disk: &Disk) -> Outcome<BTreeMap<u64, Content>> {
    let clock = Clock::new();
    // A delivery that was dropped has failed, and waits for its next attempt.
    clock.advance(Duration::from_secs(7200));
    let store = words(options().open_simulated(disk, &clock), "open")?;
    let recovery = store.recovery();
    if !recovery.damaged.is_empty() || !recovery.bad_cursors.is_empty() {
        return Err(format!("a failed sync is not damage: {recovery:?}"));
    }
    let mut found = BTreeMap::new();
    let Some(queue) = words(store.find("q"), "find")? else { return Ok(found) };
    loop {
        let got = words(queue.get_batch(50, Duration::ZERO), "get")?;
        if got.is_empty() {
            break;
        }
        for delivery in &got {
            if found.insert(delivery.id().as_u64(), Content::of(delivery.payload())).is_some() {
                return Err(format!("message {} came twice", delivery.id()));
            }
        }
        words(queue.delete_batch(got), "delete")?;
    }
    words(queue.insert("it works"), "insert")?;
    words(store.close(), "close")?;
    Ok(found)
}

/// Crashes on top of the fault.
fn check_crashes(disk: &Disk, ledger: &Ledger, number: u64) -> Outcome<u64> {
    let seeds = [0, mix(number)];
    for seed in seeds {
        let found = content_of(&disk.power_cut(seed)).and_then(|found| ledger.check(&found));
        found.map_err(|why| format!("power cut {seed}: {why}"))?;
    }
    let first = content_of(&disk.kill()).map_err(|why| format!("kill: {why}"))?;
    ledger.check(&first).map_err(|why| format!("kill: {why}"))?;
    // What a reopened store serves is durable, though the disk has forgotten that it was to be written.
    let reopened = disk.kill();
    let store = words(options().open_simulated(&reopened, &Clock::new()), "reopen")?;
    let found = content_of(&reopened.power_cut(seeds[0]))?;
    if found != first {
        let (found, first) = (found.len(), first.len());
        return Err(format!("kill, reopen, power cut: {found} messages of {first}"));
    }
    drop(store);
    Ok(seeds.len() as u64 + 2)
}

/// Runs under a fault. How many states were visited, whether it struck, and whether anybody was told.
fn run(fault: Fault, seed: u64) -> Outcome<Struck> {
    let (disk, clock) = (Disk::new(), Clock::new());
    disk.fail(fault);
    let mut run = Run::default();
    let opened = options().open_simulated(&disk, &clock).and_then(|s| s.queue("q").map(|_| s));
    let Ok(store) = opened else {
        let states = check_crashes(&disk, &run.ledger, seed)?;
        disk.heal();
        content_of(&disk)?;
        return Ok(Struck { states, struck: true, told: true });
    };
    let mut random = Random::new(seed);
    let mut states = 0;
    for n in 0..OPERATIONS {
        let before = run.errors;
        run.operate(&store, fault, n, &mut random)
            .map_err(|why| format!("operation {n}: {why}"))?;
        if (before == 0 && run.errors > 0) || n + 1 == OPERATIONS {
            let checked = check_crashes(&disk, &run.ledger, seed + n as u64);
            states += checked.map_err(|why| format!("after operation {n}: {why}"))?;
        }
    }
    let poisoned = run.failed == Some(ErrorKind::Poisoned);
    run.held.clear();
    let closed = store.close();
    if poisoned && closed.is_ok() {
        return Err("a poisoned store said that it was closed properly".to_owned());
    }
    drop(store);
    let struck = disk.faults_struck() > 0;
    disk.heal();
    let found = content_of(&disk).map_err(|why| format!("after the close: {why}"))?;
    run.ledger.check(&found).map_err(|why| format!("after the close: {why}"))?;
    Ok(Struck { states, struck, told: run.errors > 0 })
}

/// What came of a fault.
struct Struck {
    states: u64,
    struck: bool,
    told: bool,
}

/// Of one kind of fault, in all workloads, at every place.
#[derive(Default)]
struct Sum {
    states: u64,
    struck: u64,
    told: u64,
}

fn every_place(kind: FaultKind, workloads: RangeInclusive<u64>) -> Sum {
    let mut sum = Sum::default();
    for (seed, sticky) in workloads.flat_map(|seed| [(seed, false), (seed, true)]) {
        for after in 0.. {
            let fault = Fault { kind, after, sticky };
            let Struck { states, struck, told } =
                run(fault, seed).unwrap_or_else(|why| panic!("{fault:?}, workload {seed}: {why}"));
            sum.states += states;
            sum.struck += u64::from(struck);
            sum.told += u64::from(told);
            if !struck {
                // There are no more operations of this kind.
                break;
            }
        }
    }
    sum
}

#[test]
fn a_failing_disk_is_reported_and_nothing_is_acknowledged_falsely() {
    let kinds = [
        FaultKind::Sync,
        FaultKind::SyncDir,
        FaultKind::Reserve,
        FaultKind::Write,
        FaultKind::ShortWrite,
        FaultKind::Create,
        FaultKind::Remove,
        FaultKind::Map,
    ];
    let workloads = WORKLOADS * super::number("MILLPOND_CRASH_SEEDS", 1);
    thread::scope(|scope| {
        let sums = kinds.map(|kind| scope.spawn(move || every_place(kind, 1..=workloads)));
        for (kind, sum) in kinds.into_iter().zip(sums) {
            let Sum { states, struck, told } =
                sum.join().unwrap_or_else(|panic| resume_unwind(panic));
            println!("{kind:?}: {struck} runs, {told} of them with an error, {states} states");
            // A failed write mostly concerns a file that can be made again, of which nobody is told.
            assert!(struck > 3, "{kind:?}: the fault hardly ever struck");
        }
    });
}

/// What a workload without a fault leaves, killed.
fn left_by(seed: u64) -> Outcome<Disk> {
    let disk = Disk::new();
    let store = words(options().open_simulated(&disk, &Clock::new()), "open")?;
    words(store.queue("q"), "declare")?;
    let (mut run, mut random) = (Run::default(), Random::new(seed));
    let none = Fault { kind: FaultKind::Read, after: u64::MAX, sticky: false };
    for n in 0..OPERATIONS {
        run.operate(&store, none, n, &mut random)?;
    }
    Ok(disk.kill())
}

#[test]
fn a_disk_that_cannot_be_read_costs_nothing_once_it_can() {
    for kind in [FaultKind::Read, FaultKind::Map] {
        let (mut struck, mut refused) = (0, 0);
        for (seed, sticky) in (1..=WORKLOADS).flat_map(|seed| [(seed, false), (seed, true)]) {
            let left = left_by(seed).unwrap();
            let expected = content_of(&left.kill()).unwrap();
            for after in 0.. {
                let disk = left.kill();
                disk.fail(Fault { kind, after, sticky });
                let opened = options().open_simulated(&disk, &Clock::new());
                refused += u64::from(opened.is_err());
                drop(opened);
                if disk.faults_struck() == 0 {
                    break;
                }
                struck += 1;
                disk.heal();
                let found = content_of(&disk);
                assert_eq!(
                    found,
                    Ok(expected.clone()),
                    "{kind:?} {after} {sticky}, workload {seed}"
                );
            }
        }
        println!("{kind:?}: {struck} opens, {refused} of them refused");
        assert!(refused > WORKLOADS, "{kind:?}: the fault hardly ever struck");
    }
}
