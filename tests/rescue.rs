//! Checking, copying and salvaging whole stores.

#[path = "common/small_store.rs"]
mod small_store;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use millpond::testing::fuzz::seal;
use millpond::testing::{Clock, Disk, Fault, FaultKind, backup, salvage, step, verify};
use millpond::{Durability, ErrorKind, Message, Queue, QueueOptions, Store};

use small_store::{SEGMENT_BYTES, options, settle};

fn payload(n: u64) -> Vec<u8> {
    small_store::payload(n, 500)
}

fn number(payload: &[u8]) -> u64 {
    let n = small_store::number(payload);
    assert_eq!(payload, self::payload(n), "the bytes of message {n} are its own");
    n
}

fn drain(queue: &Queue) -> Vec<u64> {
    let mut all = Vec::new();
    while let Some(delivery) = queue.try_get().unwrap() {
        all.push(number(delivery.payload()));
        delivery.delete().unwrap();
    }
    all
}

/// A thousand messages over several segments, of which all but every third are deleted, one is in flight and one buried.
fn busy(disk: &Disk, clock: &Clock) -> (Store, BTreeSet<u64>) {
    let store = options().open_simulated(disk, clock).unwrap();
    let queue = store.declare("q", QueueOptions::new().max_attempts(Some(5))).unwrap();
    let mut left = BTreeSet::new();
    for n in 0..1000 {
        queue.insert(payload(n)).unwrap();
        if n % 50 == 49 {
            settle(&store);
        }
    }
    let mut kept = Vec::new();
    for n in 0..1000 {
        let delivery = queue.try_get().unwrap().unwrap();
        if n % 3 == 0 {
            left.insert(n);
            kept.push(delivery);
        } else {
            delivery.delete().unwrap();
        }
    }
    kept.pop().unwrap().bury("to be looked at").unwrap();
    kept.into_iter().for_each(|delivery| delivery.release().unwrap());
    settle(&store);
    (store, left)
}

/// Ends the other thread.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn segments(disk: &Disk) -> Vec<String> {
    disk.file_names().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

fn flip(disk: &Disk, name: &str, at: usize) {
    let mut bytes = disk.read_file(name).unwrap();
    // More than the padding between two frames.
    bytes[at..at + 8].iter_mut().for_each(|byte| *byte ^= 0x10);
    disk.write_file(name, bytes);
}

#[test]
fn a_sound_store_is_found_sound_and_nothing_is_changed() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let (store, left) = busy(&disk, &clock);
    for closed in [false, true] {
        if closed {
            store.close().unwrap();
        }
        let before: Vec<_> = disk.file_names().iter().map(|name| disk.read_file(name)).collect();
        let report = verify(&disk).unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!((report.queues, report.messages), (1, left.len() as u64));
        assert!(report.segments > 3 && report.bytes > 100_000, "{report:?}");
        let after: Vec<_> = disk.file_names().iter().map(|name| disk.read_file(name)).collect();
        assert!(before == after);
    }
    let report = verify(&disk.power_cut(1)).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(verify(&Disk::new()).unwrap_err().kind(), &ErrorKind::Io);
}

#[test]
fn verify_finds_what_an_open_does_not_read() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let (store, left) = busy(&disk, &clock);
    store.close().unwrap();
    for name in disk.file_names() {
        if name.starts_with("spare") || name == "LOCK" || name.starts_with("quarantine") {
            continue;
        }
        let damaged = disk.kill();
        let len = damaged.read_file(&name).unwrap().len();
        flip(&damaged, &name, len / 2);
        let report = verify(&damaged).unwrap();
        if name.ends_with(".seg") {
            if len as u64 != SEGMENT_BYTES {
                let [damage] = &report.damaged[..] else { panic!("{name}: {report:?}") };
                assert!(damage.file.ends_with(&name), "{name}: {report:?}");
            }
        } else if name.ends_with(".idx") {
            assert_eq!(report.bad_indexes.len(), 1, "{name}: {report:?}");
        } else {
            assert_eq!(report.bad_cursors.len(), 1, "{name}: {report:?}");
        }
        // Nothing of it keeps the store from opening, with all but what was hit.
        let store = options().open_simulated(&damaged, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        queue.purge(millpond::State::Buried).unwrap();
        let found = drain(&queue).len();
        assert!(found + 2 >= left.len(), "{name}: {found} of {}", left.len());
    }
}

#[test]
fn a_store_is_verified_beside_the_process_that_works_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().durability(Durability::Sync).open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    let (done, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(Ordering::SeqCst) {
                queue.insert_batch((n..n + 50).map(payload)).unwrap();
                for _ in 0..49 {
                    queue.get().unwrap().delete().unwrap();
                }
                n += 50;
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
        let _stop = Stop(&done);
        for _ in 0..20 {
            let before = rounds.load(Ordering::SeqCst);
            let report = Store::verify(dir.path()).unwrap();
            assert!(report.is_sound(), "{report:?}");
            while rounds.load(Ordering::SeqCst) < before + 5 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

#[test]
fn a_backup_opens_as_the_store_was() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let (store, left) = busy(&disk, &clock);
    let queue = store.queue("q").unwrap();
    let held = queue.try_get().unwrap().unwrap();
    let copy = Disk::new();
    backup(&store, &copy).unwrap();
    // What comes after is not in it.
    queue.insert(payload(5000)).unwrap();
    held.delete().unwrap();
    assert!(verify(&copy).unwrap().is_sound(), "{:?}", verify(&copy));
    for copy in [copy.kill(), copy.power_cut(0)] {
        let again = options().open_simulated(&copy, &clock).unwrap();
        assert!(again.recovery().damaged.is_empty(), "{:?}", again.recovery());
        assert_eq!(again.uuid(), store.uuid());
        let queue = again.queue("q").unwrap();
        assert_eq!(queue.stats().unwrap().buried, 1);
        let delivery = queue.try_get().unwrap().unwrap();
        assert_eq!((number(delivery.payload()), delivery.attempt()), (0, 2), "it was in flight");
        delivery.release().unwrap();
        let ready: BTreeSet<u64> = drain(&queue).into_iter().collect();
        assert!(ready.is_subset(&left) && ready.len() == left.len() - 1);
        assert!(queue.insert(payload(1)).unwrap().as_u64() > 1000, "no id is used again");
        settle(&again);
    }
}

#[test]
fn a_backup_can_be_made_of_a_poisoned_store() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let (store, left) = busy(&disk, &clock);
    let queue = store.queue("q").unwrap();
    queue.insert(payload(3000)).unwrap();
    disk.fail(Fault { kind: FaultKind::Sync, after: 0, sticky: false });
    assert_eq!(store.sync().unwrap_err().kind(), &ErrorKind::Poisoned);
    let copy = Disk::new();
    backup(&store, &copy).unwrap();
    let again = options().open_simulated(&copy, &clock).unwrap();
    let found = drain(&again.queue("q").unwrap());
    assert_eq!(found.len(), left.len(), "all but the buried one, and the last one");
    assert_eq!(found.last(), Some(&3000));
}

#[test]
fn backups_are_consistent_while_the_store_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path().join("store")).unwrap();
    let queue = store.queue("q").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                queue.insert(payload(n)).unwrap();
                if n >= 500 {
                    queue.get().unwrap().delete().unwrap();
                }
            }
        });
        // Also if something fails, so that the other thread ends.
        let _stop = Stop(&done);
        for round in 0..10 {
            let to = dir.path().join(format!("backup-{round}"));
            store.backup(&to).unwrap();
            assert!(Store::verify(&to).unwrap().is_sound());
            let copy = options().open(&to).unwrap();
            assert!(copy.recovery().damaged.is_empty(), "{:?}", copy.recovery());
            // A moment of the past: messages in a row, and as many as there ever are.
            let found = drain(&copy.queue("q").unwrap());
            assert!(found.windows(2).all(|pair| pair[1] == pair[0] + 1), "{found:?}");
            assert!(found.len() <= 501, "{}", found.len());
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(
        store.backup(dir.path().join("store")).unwrap_err().kind(),
        &ErrorKind::InvalidArgument
    );
    assert!(!dir.path().join("backup-0.partial").exists());
    // Its files are shared with the copies, and go on without harm.
    store.close().unwrap();
    assert!(Store::verify(dir.path().join("store")).unwrap().is_sound());
    assert!(Store::verify(dir.path().join("backup-3")).unwrap().is_sound());
}

#[test]
fn all_messages_that_can_be_read_are_salvaged() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let (store, left) = busy(&disk, &clock);
    store.close().unwrap();
    let rescued = |disk: &Disk| {
        let fresh = options().open_simulated(&Disk::new(), &clock).unwrap();
        let report = salvage(disk, &fresh).unwrap();
        let queue = fresh.find("q").unwrap().expect("it has the old name");
        let ids: BTreeSet<u64> = drain(&queue).into_iter().collect();
        assert_eq!(report.messages, ids.len() as u64);
        (report, ids)
    };
    let (report, all) = rescued(&disk);
    assert!(report.is_sound() && all == left, "{report:?}");

    // A damaged byte costs one message; a lost segment those in it; lost cursors none.
    let hit = disk.kill();
    let first = &segments(&hit)[0];
    flip(&hit, first, 6000);
    let (report, found) = rescued(&hit);
    assert!(found.len() + 1 >= left.len() && found.is_subset(&left) && !report.is_sound());
    let torn = disk.kill();
    torn.remove_file(first);
    let (report, found) = rescued(&torn);
    assert!(found.len() > left.len() / 2 && found.is_subset(&left) && !report.is_sound());
    let lost = disk.kill();
    for name in lost.file_names().iter().filter(|name| name.starts_with("cursor")) {
        lost.remove_file(name);
    }
    let (report, found) = rescued(&lost);
    assert!(report.full_walk && found.is_superset(&left));
}

#[test]
fn salvaged_messages_keep_what_they_asked_for() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let second = Duration::from_secs(1);
    queue.insert(Message::new("plain")).unwrap();
    queue.insert(Message::new("urgent").priority(9).header("k", 1)).unwrap();
    queue.insert(Message::new("late").delay(10 * second)).unwrap();
    queue.insert(Message::new("mortal").ttl(5 * second)).unwrap();
    store.close().unwrap();
    // At once, and after a restart of the store that they were brought to.
    for reopened in [false, true] {
        let (to, clock) = (Disk::new(), Clock::new());
        let mut fresh = options().open_simulated(&to, &clock).unwrap();
        assert_eq!(salvage(&disk, &fresh).unwrap().messages, 4);
        if reopened {
            fresh.close().unwrap();
            fresh = options().open_simulated(&to, &clock).unwrap();
        }
        let queue = fresh.queue("q").unwrap();
        let urgent = queue.try_get().unwrap().expect("it is looked for");
        assert_eq!((urgent.payload(), urgent.priority()), (&b"urgent"[..], 9));
        assert_eq!(urgent.headers().len(), 1);
        let plain = queue.get().unwrap();
        assert_eq!(plain.payload(), b"plain");
        clock.advance(5 * second);
        assert!(queue.try_get().unwrap().is_none(), "one has expired, one is not due");
        clock.advance(5 * second);
        assert_eq!(queue.get().unwrap().payload(), b"late");
        assert!(queue.try_get().unwrap().is_none());
    }
}

#[test]
fn messages_outlive_what_nobody_can_have_declared() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let options_of_q = QueueOptions::new().max_messages(9).dead_letter("heap");
    let queue = store.declare("q", options_of_q).unwrap();
    (0..5).for_each(|n| _ = queue.insert(payload(n)).unwrap());
    let heap = store.find("heap").unwrap().unwrap();
    (5..7).for_each(|n| _ = heap.insert(payload(n)).unwrap());
    store.close().unwrap();
    // A name that is refused takes the options of the queue along that names it.
    for name in disk.file_names() {
        let mut bytes = disk.read_file(&name).unwrap();
        let starts = bytes.windows(4).enumerate().filter(|(_, at)| at == b"heap");
        let starts: Vec<usize> = starts.map(|(start, _)| start).collect();
        starts.iter().for_each(|start| bytes[*start] = 1);
        match name.ends_with(".seg") {
            true => seal::segment(&mut bytes, 0),
            false if name.starts_with("cursor.") => seal::cursor(&mut bytes),
            false => assert!(starts.is_empty()),
        }
        disk.write_file(&name, bytes);
    }
    let fresh = options().open_simulated(&Disk::new(), &clock).unwrap();
    assert_eq!(salvage(&disk, &fresh).unwrap().messages, 7);
    let queue = fresh.find("q").unwrap().expect("it keeps its name");
    assert_eq!(drain(&queue), [0, 1, 2, 3, 4]);
    let others: Vec<String> = fresh.queue_names().into_iter().filter(|name| name != "q").collect();
    assert!(matches!(&others[..], [name] if name.starts_with("recovered-")), "{others:?}");
    assert_eq!(drain(&fresh.find(&others[0]).unwrap().unwrap()), [5, 6]);
}

#[test]
fn what_was_never_proven_can_be_salvaged_before_and_after_an_open() {
    let clock = Clock::new();
    let mut rescued = 0;
    for seed in 2..40 {
        let disk = Disk::new();
        let store = options().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        queue.insert(payload(0)).unwrap();
        store.sync().unwrap();
        for n in 1..60 {
            queue.insert(payload(n)).unwrap();
        }
        let cut = disk.power_cut(seed);
        let salvaged = |disk: &Disk| {
            let fresh = options().open_simulated(&Disk::new(), &clock).unwrap();
            salvage(disk, &fresh).unwrap();
            let found = drain(&fresh.queue("q").unwrap());
            let distinct: BTreeSet<u64> = found.iter().copied().collect();
            assert_eq!(distinct.len(), found.len(), "each once");
            distinct
        };
        let before = salvaged(&cut);
        let opened = options().open_simulated(&cut, &clock).unwrap();
        let ready = opened.queue("q").unwrap().stats().unwrap().ready;
        assert!(before.len() as u64 >= ready && before.contains(&0), "seed {seed}");
        rescued += before.len() as u64 - ready;
        // What the open has set aside is not lost either.
        opened.close().unwrap();
        assert_eq!(salvaged(&cut), before, "seed {seed}");
    }
    assert!(rescued > 0, "some cut leaves more than the log");
}

#[test]
fn salvage_works_between_directories_and_refuses_one_that_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let store = options().open(&from).unwrap();
    let queue = store.queue("q").unwrap();
    let ids = queue.insert_batch((0..100).map(payload)).unwrap();
    store.close().unwrap();
    let before: Vec<_> = fs::read_dir(&from).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(Store::salvage(&from, &to).unwrap().messages, 100);
    let after: Vec<_> = fs::read_dir(&from).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(before, after);
    let rescued = Store::open(&to).unwrap();
    let delivery = rescued.queue("q").unwrap().try_get().unwrap().unwrap();
    assert_eq!((delivery.origin_id(), number(delivery.payload())), (ids[0], 0));
    assert_eq!(Store::salvage(&from, &to).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let missing = dir.path().join("nothing");
    assert_eq!(Store::verify(&missing).unwrap_err().kind(), &ErrorKind::Io);
    assert!(!missing.exists());
}

#[test]
fn a_power_cut_is_no_damage_to_an_index() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().durability(Durability::Sync).open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    for n in 0..300 {
        q.insert(payload(n)).unwrap();
        settle(&store);
    }
    let cut = disk.power_cut(0);
    drop(options().open_simulated(&cut, &clock).unwrap());
    for cut in [cut, disk.power_cut(0)] {
        let report = millpond::testing::verify(&cut).unwrap();
        println!("S3 {report:?}");
    }
    let cut = disk.power_cut(0);
    assert!(millpond::testing::verify(&cut).unwrap().is_sound());
}

#[test]
fn a_message_that_was_moved_behind_the_end_of_the_log_is_salvaged_once() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let q = store.declare("q", QueueOptions::new().dead_letter("dead")).unwrap();
    q.insert(payload(7)).unwrap();
    store.sync().unwrap();
    for _ in 0..40 {
        q.try_get().unwrap().unwrap().release().unwrap();
    }
    q.try_get().unwrap().unwrap().bury("why").unwrap();
    let mut twice = 0;
    let mut none = 0;
    for seed in 2..300 {
        let into = options().open_simulated(&Disk::new(), &clock).unwrap();
        let r = millpond::testing::salvage(&disk.power_cut(seed), &into).unwrap();
        if r.messages == 2 {
            twice += 1
        } else if r.messages == 0 {
            none += 1
        }
    }
    assert_eq!((twice, none), (0, 0), "of 298 power cuts");
}

/// A sealed segment was cut to its end between the look at its length and the copy.
#[test]
fn a_backup_that_has_to_copy_bears_a_segment_that_is_cut() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..300 {
        queue.insert(payload(n)).unwrap();
    }
    let (copy, beside) = (Disk::new(), store.clone());
    copy.on_operation(Some(Box::new(move |_, _| settle(&beside))));
    backup(&store, &copy).unwrap();
    copy.on_operation(None);
    assert!(verify(&copy).unwrap().is_sound());
    let copy = options().open_simulated(&copy, &clock).unwrap();
    assert_eq!(drain(&copy.queue("q").unwrap()), (0..300).collect::<Vec<u64>>());
}

/// The newest cursor that is left names files that a compaction, or the cursor that failed, has let go of.
#[test]
fn a_backup_of_a_poisoned_store_has_all_that_its_cursor_names() {
    let mut poisoned = 0;
    for after in 0..60 {
        for kind in [FaultKind::SyncDir, FaultKind::Sync] {
            let (disk, clock) = (Disk::new(), Clock::new());
            let store = options().open_simulated(&disk, &clock).unwrap();
            let queue = store.queue("q").unwrap();
            queue.insert_batch((0..100).map(payload)).unwrap();
            for n in 100..1000 {
                queue.insert(payload(n)).unwrap();
            }
            settle(&store);
            disk.fail(Fault { kind, after, sticky: false });
            let mut kept = Vec::new();
            for n in 0..1000 {
                let Ok(Some(delivery)) = queue.try_get() else { break };
                if n % 5 == 0 {
                    kept.push(delivery);
                } else if delivery.delete().is_err() {
                    break;
                }
                if n % 20 == 0 {
                    while step(&store).is_ok_and(|worked| worked) {}
                }
            }
            while step(&store).is_ok_and(|worked| worked) {}
            if !store.sync().is_err_and(|error| error.kind() == &ErrorKind::Poisoned) {
                continue;
            }
            poisoned += 1;
            let live: BTreeSet<u64> = kept.iter().map(|held| number(held.payload())).collect();
            let copy = Disk::new();
            backup(&store, &copy).unwrap();
            let again = options().open_simulated(&copy, &clock).unwrap();
            assert_eq!(again.recovery().damaged, [], "{kind:?} {after}");
            let found: BTreeSet<u64> = drain(&again.queue("q").unwrap()).into_iter().collect();
            assert!(found.is_superset(&live), "{kind:?} {after}");
        }
    }
    assert!(poisoned > 10, "{poisoned}");
}

/// The most memory that this process ever had, in bytes.
#[cfg(target_os = "linux")]
fn memory_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A note in `quarantine/` has no checksum, and may claim anything.
#[cfg(target_os = "linux")]
#[test]
fn a_note_that_claims_a_far_place_takes_no_memory_for_it() {
    let base = tempfile::tempdir().unwrap();
    let (dir, to) = (base.path().join("store"), base.path().join("saved"));
    let store = options().open(&dir).unwrap();
    store.queue("q").unwrap().insert("kept").unwrap();
    store.close().unwrap();
    let aside = dir.join("quarantine");
    std::fs::create_dir_all(&aside).unwrap();
    let note = "behind the end of the log\nsalt 1\nfirst id 1\noffset 2000000000\n";
    std::fs::write(aside.join("0000000001.seg-2000000000.txt"), note).unwrap();
    std::fs::write(aside.join("0000000001.seg-2000000000.bin"), [7; 5000]).unwrap();
    Store::salvage(&dir, &to).unwrap();
    assert!(memory_peak() < 1 << 30, "{} bytes", memory_peak());
    let store = options().open(&to).unwrap();
    assert_eq!(store.queue("q").unwrap().peek().unwrap().unwrap().payload(), b"kept");
}
