//! Crashes in the middle of a schedule: whatever the threads were at, what was acknowledged is there.

use std::collections::BTreeSet;

use shuttle::rand::Rng;

use super::*;
use crate::sync::thread;

/// What was said about messages at one moment.
#[derive(Clone, Default)]
struct Said {
    inserting: BTreeSet<String>,
    inserted: BTreeSet<String>,
    deleting: BTreeSet<String>,
    deleted: BTreeSet<String>,
}

/// What a crash has left, and what had been said before.
struct Crash {
    killed: Disk,
    cut: Disk,
    said: Said,
}

type Shared<T> = Arc<Mutex<T>>;

/// Crashes at an operation of the disk that the schedule picks, and lets the threads go on.
fn crash_somewhere(disk: &Disk, said: &Shared<Said>) -> Shared<Option<Crash>> {
    let crash: Shared<Option<Crash>> = Arc::default();
    let (kept, said) = (crash.clone(), said.clone());
    let mut random = shuttle::rand::thread_rng();
    let (at, seed) = (random.gen_range(0..OPERATIONS), random.gen_range(0..1_000));
    let at = disk.operations() + at;
    let turn = AtomicBool::new(false);
    disk.on_operation(Some(Box::new(move |disk, _| {
        // Others are not called back while one of them is: the next one that is crashes.
        if disk.operations() >= at && kept.lock().unwrap().is_none() {
            let said = said.lock().unwrap().clone();
            *kept.lock().unwrap() =
                Some(Crash { killed: disk.kill(), cut: disk.power_cut(seed), said });
        }
        turn.load(Ordering::SeqCst);
    })));
    crash
}

/// About as many as there are in one schedule.
const OPERATIONS: u64 = 120;

fn work(durability: Durability) {
    let disk = Disk::new();
    let store = open(&disk, settings(durability));
    let queue = queue(&store, "q");
    store.sync().unwrap();
    let said = Shared::<Said>::default();
    let crash = crash_somewhere(&disk, &said);
    let producers = (0..2).map(|thread| {
        let (queue, said) = (queue.clone(), said.clone());
        thread::spawn(move || {
            for n in 0..3 {
                let name = format!("{thread}.{n}");
                said.lock().unwrap().inserting.insert(name.clone());
                queue.insert(payload(&name, LARGE)).unwrap();
                said.lock().unwrap().inserted.insert(name);
            }
        })
    });
    let consumers = (0..2).map(|_| {
        let (queue, said) = (queue.clone(), said.clone());
        thread::spawn(move || {
            for _ in 0..3 {
                let delivery = queue.get().unwrap();
                let name = name_of(delivery.payload());
                said.lock().unwrap().deleting.insert(name.clone());
                delivery.delete().unwrap();
                said.lock().unwrap().deleted.insert(name);
            }
        })
    });
    let threads: Vec<_> = producers.chain(consumers).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    disk.on_operation(None);
    store.close().unwrap();
    let Some(Crash { killed, cut, said }) = crash.lock().unwrap().take() else { return };
    let left = messages(&killed);
    assert!(said.inserted.difference(&said.deleting).all(|name| left.contains(name)), "{left:?}");
    assert!(left.is_subset(&said.inserting) && left.is_disjoint(&said.deleted), "{left:?}");
    let left = messages(&cut);
    assert!(left.is_subset(&said.inserting), "{left:?}");
    if durability == Durability::Sync {
        let kept = said.inserted.difference(&said.deleting);
        assert!(kept.clone().all(|name| left.contains(name)), "{left:?}");
    }
}

/// What an open finds, each once.
fn messages(disk: &Disk) -> BTreeSet<String> {
    let settings = Settings { background: false, ..settings(Durability::Process) };
    let store = open(disk, settings);
    assert_eq!(store.recovery().damaged, []);
    let mut names = BTreeSet::new();
    while let Some(delivery) = store.queue("q").unwrap().try_get().unwrap() {
        assert!(names.insert(name_of(delivery.payload())), "a message twice");
        delivery.delete().unwrap();
    }
    assert_eq!(store.stats().damaged_messages, 0);
    store.close().unwrap();
    names
}

#[test]
fn a_crash_at_any_moment_of_any_schedule_keeps_what_was_acknowledged() {
    explore(|| work(Durability::Process));
}

#[test]
fn a_crash_at_any_moment_of_any_schedule_keeps_what_was_acknowledged_and_synced() {
    explore(|| work(Durability::Sync));
}
