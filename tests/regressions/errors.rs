//! An error of the disk that passes leaves nothing behind: no count that is wrong, no space that stays taken, nobody who
//! waits for ever.

use millpond::testing::{Clock, Disk, Fault, FaultKind, step};
use millpond::{QueueOptions, State, Store};

use super::{drain, opts, proc_opts, steps};

/// Those that do not poison a store.
const PASSING: [FaultKind; 6] = [
    FaultKind::Create,
    FaultKind::Write,
    FaultKind::ShortWrite,
    FaultKind::Reserve,
    FaultKind::Read,
    FaultKind::Map,
];

/// Has the background meet the fault. Whether it did, and the store goes on.
fn meets(store: &Store, disk: &Disk, fault: Fault) -> bool {
    disk.fail(fault);
    for _ in 0..300 {
        if disk.faults_struck() > 0 || step(store).is_ok_and(|worked| !worked) {
            break;
        }
    }
    let met = disk.faults_struck() > 0;
    disk.heal();
    met && step(store).is_ok()
}

fn bytes(disk: &Disk) -> usize {
    let names = disk.file_names().into_iter().filter(|name| name != "LOCK");
    names.map(|name| disk.read_file(&name).unwrap().len()).sum()
}

/// The old segment was gone and the new one not there: who came to the log's end looked for the new one, for ever, under
/// the lock.
#[test]
fn a_failed_write_of_a_roll_leaves_a_log_that_can_be_looked_at() {
    for after in 0..8 {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = opts().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        for n in 0..11 {
            queue.insert(vec![n; 5000]).unwrap();
        }
        steps(&store);
        disk.fail(Fault { kind: FaultKind::Write, after, sticky: false });
        let inserted = (0..20).take_while(|_| queue.insert(vec![9; 5000]).is_ok()).count();
        assert!(inserted < 20, "the fault at {after} did not strike");
        assert!(queue.browse(State::Ready).count() >= 11);
        assert!(queue.peek().unwrap().is_some());
        assert_eq!(queue.stats().unwrap().ready, 11 + inserted as u64);
        assert_eq!(queue.redrive(5).unwrap(), 0);
        store.close().unwrap_err();
    }
}

/// The segments were dead, and only a wish that was forgotten would have let go of them.
#[test]
fn an_error_of_the_background_that_passes_keeps_no_space() {
    for kind in PASSING {
        for after in 0..40 {
            let (disk, clock) = (Disk::new(), Clock::new());
            let store = proc_opts().open_simulated(&disk, &clock).unwrap();
            let queue = store.queue("q").unwrap();
            for _ in 0..150 {
                queue.insert(vec![1; 5000]).unwrap();
                steps(&store);
            }
            drain(&queue);
            if !meets(&store, &disk, Fault { kind, after, sticky: false }) {
                break;
            }
            steps(&store);
            assert!(bytes(&disk) < 5 * (64 << 10), "{kind:?} at {after}: {}", bytes(&disk));
        }
    }
}

/// A compaction that had met an error waited for more log, and the full log could not grow.
#[test]
fn an_error_of_a_compaction_that_passes_leaves_a_full_store_that_goes_on() {
    for kind in PASSING {
        for after in 0..60 {
            let (disk, clock) = (Disk::new(), Clock::new());
            let store = proc_opts().max_bytes(1 << 20).open_simulated(&disk, &clock).unwrap();
            let (kept, queue) = (store.queue("kept").unwrap(), store.queue("q").unwrap());
            for n in 0.. {
                let queue = if n % 12 == 0 { &kept } else { &queue };
                if queue.insert(vec![1; 5000]).is_err() {
                    break;
                }
                steps(&store);
            }
            // No segment dies of it.
            drain(&queue);
            if !meets(&store, &disk, Fault { kind, after, sticky: false }) {
                break;
            }
            let inserted = (0..40).any(|_| {
                steps(&store);
                queue.insert(vec![2; 5000]).is_ok()
            });
            assert!(inserted, "{kind:?} at {after}");
        }
    }
}

/// Segments whose messages were to be weighed were taken for damaged, and never compacted.
#[test]
fn segments_that_could_not_be_mapped_are_compacted_later() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let (kept, queue) = (store.queue("kept").unwrap(), store.queue("q").unwrap());
    for n in 0..20 {
        kept.insert(vec![n; 1000]).unwrap();
        queue.insert_batch(vec![vec![n; 5000]; 11]).unwrap();
        steps(&store);
    }
    store.close().unwrap();
    // An open knows of a segment what the cursor says, and that is not what its deleted messages took.
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    assert_eq!(drain(&store.queue("q").unwrap()).len(), 220);
    store.close().unwrap();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    disk.fail(Fault { kind: FaultKind::Map, after: 0, sticky: true });
    steps(&store);
    assert!(disk.faults_struck() > 0);
    disk.heal();
    let kept = store.queue("kept").unwrap();
    for n in 0..200 {
        kept.insert(vec![n; 500]).unwrap();
        steps(&store);
    }
    let live = 20 * 1040 + 200 * 540;
    assert!(bytes(&disk) < 2 * live + 4 * (64 << 10), "{}", bytes(&disk));
}

/// One index had found damage, and the next one could not be loaded: nobody counted the messages again.
#[test]
fn an_error_behind_the_find_of_damage_leaves_no_count_wrong() {
    for kind in [FaultKind::Map, FaultKind::Read] {
        for after in 0..12 {
            let (disk, clock) = (Disk::new(), Clock::new());
            let store = proc_opts().open_simulated(&disk, &clock).unwrap();
            let queue = store.declare("q", QueueOptions::new().max_messages(60)).unwrap();
            for _ in 0..50 {
                queue.insert(vec![7; 5000]).unwrap();
                steps(&store);
            }
            store.close().unwrap();
            for name in disk.file_names().iter().filter(|name| name.ends_with(".idx")) {
                disk.remove_file(name);
            }
            let mut damaged = disk.read_file("0000000001.seg").unwrap();
            damaged[30_000] ^= 1;
            disk.write_file("0000000001.seg", damaged);
            let store = proc_opts().open_simulated(&disk, &clock).unwrap();
            let queue = store.queue("q").unwrap();
            disk.fail(Fault { kind, after, sticky: false });
            let first = queue.try_get();
            disk.heal();
            drop(first.map(|got| got.map(|delivery| delivery.release().unwrap())));
            assert_eq!(drain(&queue).len(), 49, "{kind:?} at {after}");
            assert_eq!(queue.stats().unwrap().ready, 0, "{kind:?} at {after}");
            store.remove("q").unwrap();
        }
    }
}

/// A spare whose sync had failed was taken again, and its next sync was believed.
#[test]
fn a_spare_that_could_not_be_synced_is_not_used_again() {
    let (whole, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&whole, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for _ in 0..60 {
        queue.insert_batch(vec![vec![1; 60]; 100]).unwrap();
        steps(&store);
    }
    store.close().unwrap();
    for after in 0..12 {
        let disk = whole.kill();
        disk.set_capacity(Some(bytes(&disk) as u64));
        let store = proc_opts().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        disk.fail(Fault { kind: FaultKind::Sync, after, sticky: false });
        for round in 0..2500 {
            let deleted = queue.try_get().and_then(|got| got.unwrap().delete());
            if deleted.is_err() || (round % 50 == 0 && step(&store).is_err()) {
                break;
            }
        }
        disk.heal();
        if store.sync().is_err() {
            continue;
        }
        // It goes on, and promises.
        for _ in 0..300 {
            queue.try_get().unwrap().unwrap().delete().unwrap();
        }
        store.sync().unwrap();
        // One may be in flight still whose delete has failed.
        let left = queue.browse(State::Ready).count() + queue.browse(State::InFlight).count();
        let cut = disk.power_cut(0);
        cut.set_capacity(None);
        let store = proc_opts().open_simulated(&cut, &clock).unwrap();
        assert_eq!(store.recovery().damaged, [], "{after}");
        assert_eq!(store.queue("q").unwrap().browse(State::Ready).count(), left, "{after}");
    }
}

/// The length of such a file was lost with the sync, and the process that came next did not write it again.
#[test]
fn a_file_that_could_not_be_synced_is_as_good_as_new_for_the_next_process() {
    let (whole, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&whole, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for _ in 0..60 {
        queue.insert_batch(vec![vec![1; 60]; 100]).unwrap();
        steps(&store);
    }
    store.close().unwrap();
    let work = |store: &Store, rounds: u64| {
        let queue = store.queue("q").unwrap();
        for round in 0..rounds {
            let deleted = queue.try_get().and_then(|got| got.unwrap().delete());
            if deleted.is_err() || (round % 20 == 0 && step(store).is_err()) {
                return;
            }
        }
    };
    for (after, room) in (0..16).flat_map(|after| [0, 20_000, 70_000].map(|room| (after, room))) {
        let disk = whole.kill();
        disk.set_capacity(Some(bytes(&disk) as u64 + room));
        let store = proc_opts().open_simulated(&disk, &clock).unwrap();
        disk.fail(Fault { kind: FaultKind::Sync, after, sticky: false });
        work(&store, 1500);
        disk.heal();
        drop(store);
        let Ok(store) = proc_opts().open_simulated(&disk, &clock) else { continue };
        for _ in 0..8 {
            work(&store, 200);
            store.sync().unwrap();
            let queue = store.queue("q").unwrap();
            let left = queue.browse(State::Ready).count() + queue.browse(State::InFlight).count();
            let cut = disk.power_cut(0);
            cut.set_capacity(None);
            let store = proc_opts().open_simulated(&cut, &clock).unwrap();
            let recovery = store.recovery();
            assert_eq!(recovery.damaged, [], "{after}, {room}");
            assert!(recovery.bad_cursors.is_empty(), "{after}, {room}: {recovery:?}");
            let found = store.queue("q").unwrap().browse(State::Ready).count();
            assert_eq!(found, left, "{after}, {room}");
        }
    }
}
