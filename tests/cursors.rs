//! What cursor files cost that are missing, bad, or were never written by millpond: of the two that are kept either will do.

use std::sync::{Arc, Mutex};

use millpond::testing::{Clock, Disk, salvage, step, verify};
use millpond::{Durability, Queue, State, Store, StoreOptions};

fn options() -> StoreOptions {
    Store::options().segment_bytes(64 << 10)
}

fn drain(queue: &Queue) -> Vec<String> {
    let mut payloads = Vec::new();
    while let Some(delivery) = queue.try_get().unwrap() {
        payloads.push(String::from_utf8(delivery.payload().to_vec()).unwrap());
        delivery.delete().unwrap();
    }
    payloads
}

fn cursors(disk: &Disk) -> Vec<String> {
    let names = disk.file_names().into_iter();
    names.filter(|name| name.starts_with("cursor.") && name != "cursor.tmp").collect()
}

fn flip_newest(disk: &Disk) {
    let newest = cursors(disk).pop().unwrap();
    let mut bytes = disk.read_file(&newest).unwrap();
    bytes[100] ^= 1;
    disk.write_file(&newest, bytes);
}

/// A store that was closed and opened again, with a message of before.
fn reopened(disk: &Disk, clock: &Clock) -> Store {
    let store = options().open_simulated(disk, clock).unwrap();
    store.queue("q").unwrap().insert("before").unwrap();
    store.close().unwrap();
    options().open_simulated(disk, clock).unwrap()
}

#[test]
fn a_cursor_that_is_missing_behind_that_of_a_close_costs_no_message_and_no_id() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = reopened(&disk, &clock);
    let queue = store.queue("q").unwrap();
    let ids = ["a", "b", "c"].map(|payload| queue.insert(payload).unwrap());
    let killed = disk.kill();
    killed.remove_file(cursors(&killed).last().unwrap());
    let store = options().open_simulated(&killed, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let new = queue.insert("new").unwrap();
    assert!(!ids.contains(&new), "an id is given out once");
    assert_eq!(drain(&queue), ["before", "a", "b", "c", "new"]);
}

#[test]
fn a_cursor_that_is_missing_behind_that_of_a_close_costs_no_segment() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = reopened(&disk, &clock);
    let queue = store.queue("q").unwrap();
    (0..20).for_each(|n| _ = queue.insert(vec![n; 9000]).unwrap());
    let cut = disk.power_cut(0);
    cut.remove_file(cursors(&cut).last().unwrap());
    assert_eq!(verify(&cut).unwrap().messages, 21);
    let store = options().open_simulated(&cut, &clock).unwrap();
    assert_eq!(store.recovery().damaged, []);
    assert_eq!(store.stats().messages, 21);
    let rescue = options().open_simulated(&Disk::new(), &clock).unwrap();
    assert_eq!(salvage(&cut.kill(), &rescue).unwrap().messages, 21);
}

#[test]
fn a_bad_cursor_does_not_take_the_place_of_a_good_one() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().delete_durability(Durability::Sync).open_simulated(&disk, &clock);
    let store = store.unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert(vec![0; 45_000]).unwrap();
    queue.insert("deleted").unwrap();
    let stays = queue.get().unwrap();
    let deleted = queue.get().unwrap();
    // The delete is in a segment that goes before that of its message.
    queue.insert(vec![2; 50_000]).unwrap();
    deleted.delete().unwrap();
    stays.release().unwrap();
    let _stays = queue.get().unwrap();
    for n in 0..5 {
        queue.insert(vec![n; 50_000]).unwrap();
        queue.get().unwrap().delete().unwrap();
        while step(&store).unwrap() {}
    }
    let mut disk = disk.kill();
    for _ in 0..3 {
        flip_newest(&disk);
        let store = options().open_simulated(&disk, &clock).unwrap();
        assert_eq!((store.recovery().bad_cursors.len(), store.recovery().full_walk), (1, false));
        let ready = store.queue("q").unwrap();
        let ready = ready.browse(State::Ready).map(|message| message.unwrap().payload().len());
        assert!(ready.collect::<Vec<_>>().iter().all(|len| *len > 7), "it stays deleted");
        disk = disk.kill();
    }
}

/// The log goes on in a segment that nothing in it names, if the one that it names was torn. Two cursors know.
#[test]
fn a_bad_cursor_behind_a_torn_segment_costs_nothing() {
    const NEXT: &str = "0000000002.seg";
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("first").unwrap();
    while step(&store).unwrap() {}
    let torn: Arc<Mutex<Vec<Disk>>> = Arc::default();
    let found = torn.clone();
    disk.on_operation(Some(Box::new(move |disk, _| {
        for seed in 2..20 {
            let cut = disk.power_cut(seed);
            let Some(bytes) = cut.read_file(NEXT).filter(|bytes| bytes.len() > 9000) else {
                continue;
            };
            let is_zero = |range: std::ops::Range<usize>| bytes[range].iter().all(|b| *b == 0);
            // Frames, and neither copy of the header.
            if is_zero(0..128) && is_zero(2048..2176) && !is_zero(4096..bytes.len()) {
                found.lock().unwrap().push(cut);
            }
        }
    })));
    (0..8).for_each(|n| _ = queue.insert(vec![n; 9000]).unwrap());
    disk.on_operation(None);
    let mut went_on_elsewhere = 0;
    for cut in std::mem::take(&mut *torn.lock().unwrap()) {
        let store = options().open_simulated(&cut, &clock).unwrap();
        went_on_elsewhere += u32::from(cut.read_file(&format!("quarantine/{NEXT}")).is_some());
        store.queue("q").unwrap().insert_batch(["precious", "too"]).unwrap();
        let cut = cut.power_cut(0);
        flip_newest(&cut);
        let store = options().open_simulated(&cut, &clock).unwrap();
        assert_eq!(store.recovery().damaged, []);
        let queue = store.queue("q").unwrap();
        let ready: Vec<_> =
            queue.browse(State::Ready).map(|m| m.unwrap().payload().to_vec()).collect();
        assert!(ready.ends_with(&[b"precious".to_vec(), b"too".to_vec()]));
    }
    assert!(went_on_elsewhere > 3, "{went_on_elsewhere} power cuts have torn the segment");
}

#[test]
fn empty_files_of_the_highest_numbers_cost_nothing() {
    for name in ["4294967295.seg", "4294967294.seg", "cursor.18446744073709551615"] {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = options().open_simulated(&disk, &clock).unwrap();
        store.queue("q").unwrap().insert("x").unwrap();
        let mut disk = disk.kill();
        disk.write_file(name, Vec::new());
        for round in 0..4 {
            let store = options().open_simulated(&disk, &clock).unwrap();
            let queue = store.queue("q").unwrap();
            assert_eq!(queue.stats().unwrap().ready, 1 + 4 * round, "{name}, round {round}");
            assert_eq!(
                store.recovery().bad_cursors.len() as u64,
                match name.split_once('.') {
                    Some(("cursor", _)) if round == 0 => 1,
                    _ => 0,
                }
            );
            for n in 0..4 {
                queue.insert(vec![n; 20_000]).unwrap();
                while step(&store).unwrap() {}
            }
            disk = disk.kill();
        }
        assert!(!disk.file_names().iter().any(|found| found == name), "{name} is in the way");
    }
}

/// On a real file system, whose files can claim any length.
#[test]
fn a_cursor_that_claims_to_be_long_takes_no_memory_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    store.queue("q").unwrap().insert("x").unwrap();
    drop(store);
    let names = std::fs::read_dir(dir.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let newest = names.filter(|name| name.starts_with("cursor.")).max().unwrap();
    for name in [newest, "cursor.0000000099".to_owned()] {
        let path = dir.path().join(name);
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        file.unwrap().set_len(1 << 40).unwrap();
        let store = options().open(dir.path()).unwrap();
        assert_eq!(store.recovery().bad_cursors, [path]);
        assert_eq!(store.queue("q").unwrap().stats().unwrap().ready, 1);
    }
}

fn bytes(disk: &Disk) -> u64 {
    let names = disk.file_names().into_iter().filter(|name| name != "LOCK");
    names.map(|name| disk.read_file(&name).unwrap().len() as u64).sum()
}

/// With room for one cursor, an open left that of the close beside it, which says that nothing has happened since.
#[test]
fn an_open_on_a_full_disk_leaves_no_cursor_that_hides_what_comes_after_it() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("deleted").unwrap();
    queue.insert("before").unwrap();
    store.close().unwrap();
    let spares = disk.file_names().into_iter().filter(|name| name.starts_with("spare."));
    spares.for_each(|name| disk.remove_file(&name));
    let mut opens = 0;
    for slack in (0..4000).step_by(50) {
        let disk = disk.kill();
        disk.set_capacity(Some(bytes(&disk) + slack));
        let Ok(store) = options().open_simulated(&disk, &clock) else { continue };
        opens += 1;
        disk.set_capacity(None);
        let queue = store.queue("q").unwrap();
        queue.get().unwrap().delete().unwrap();
        let id = queue.insert("after").unwrap();
        let left = disk.kill();
        left.remove_file(cursors(&left).last().unwrap());
        let store = options().open_simulated(&left, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        assert!(id < queue.insert("new").unwrap(), "{slack}");
        assert_eq!(drain(&queue), ["before", "after", "new"], "{slack}");
    }
    assert!(opens > 0);
}

/// What was appended there lay behind the end that the cursor of the close gives, and the next open did not clear it away.
#[test]
fn nothing_is_appended_before_the_first_cursor_of_an_open() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for _ in 0..20 {
        queue.insert(vec![1; 9000]).unwrap();
    }
    // The segment of the declaration is dead from now on, and still there.
    while let Some(delivery) = queue.try_get().unwrap() {
        delivery.delete().unwrap();
    }
    store.close().unwrap();
    let segments = |disk: &Disk| -> Vec<_> {
        let names = disk.file_names().into_iter().filter(|name| name.ends_with(".seg"));
        names.map(|name| disk.read_file(&name).unwrap()).collect()
    };
    let (closed, found) = (segments(&disk), cursors(&disk));
    let first = Arc::new(Mutex::new(None));
    let seen = first.clone();
    disk.on_operation(Some(Box::new(move |disk, _| {
        if cursors(disk) != found {
            seen.lock().unwrap().get_or_insert_with(|| segments(disk));
        }
    })));
    let store = options().open_simulated(&disk, &clock).unwrap();
    disk.on_operation(None);
    assert!(first.lock().unwrap().take() == Some(closed), "something was appended");
    store.close().unwrap();
}

/// In the middle of it there is one cursor of the open, and of the older ones all, some or none.
#[test]
fn an_open_on_a_full_disk_may_end_anywhere() {
    let (whole, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&whole, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("deleted").unwrap();
    queue.insert("before").unwrap();
    queue.get().unwrap().delete().unwrap();
    store.close().unwrap();
    let spares = whole.file_names().into_iter().filter(|name| name.starts_with("spare."));
    spares.for_each(|name| whole.remove_file(&name));
    for slack in (0..1000).step_by(50) {
        let disk = whole.kill();
        disk.set_capacity(Some(bytes(&disk) + slack));
        let left = Arc::new(Mutex::new(Vec::new()));
        let forks = left.clone();
        disk.on_operation(Some(Box::new(move |disk, n| {
            let cuts = (0..4).map(|seed| disk.power_cut(n * 4 + seed));
            forks.lock().unwrap().extend(cuts.chain([disk.kill()]));
        })));
        let opened = options().open_simulated(&disk, &clock);
        disk.on_operation(None);
        drop(opened);
        for left in left.lock().unwrap().drain(..) {
            left.set_capacity(None);
            let store = options().open_simulated(&left, &clock).unwrap();
            assert_eq!(store.recovery().damaged, [], "{slack}");
            assert_eq!(drain(&store.queue("q").unwrap()), ["before"], "{slack}");
        }
    }
}
