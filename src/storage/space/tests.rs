//! What is held back, what it becomes, and what a limit stops.

use super::super::disk::RealDirectory;
use super::super::sim::Disk;
use super::*;

const K: u64 = 1024;

const BYTES: SpareBytes = SpareBytes { log: 8 * K, cursor: 16 * K, copy: 0 };

fn space(capacity: u64, max_bytes: Option<u64>) -> (Disk, Space) {
    let disk = Disk::with_capacity(capacity);
    (disk.clone(), Space::new(Arc::new(disk), max_bytes))
}

fn create_log(space: &Space, name: &str) -> io::Result<u64> {
    space.create_or_take(Spare::Log, name, 6 * K..=100 * K, Prepare::Reserve)?.len()
}

fn create_cursor(space: &Space, name: &str, len: u64) -> io::Result<u64> {
    space.create_or_take(Spare::Cursor, name, len..=len, Prepare::Reserve)?.len()
}

#[test]
fn spares_are_taken_only_when_nothing_can_be_made() {
    let (disk, space) = space(156 * K, None);
    space.hold_back(BYTES).unwrap();
    assert!(space.is_complete());
    assert_eq!(create_log(&space, "a").unwrap(), 100 * K);
    assert!(space.is_complete() && !space.is_full());
    for name in ["b", "c", "d"] {
        assert_eq!(create_log(&space, name).unwrap(), 8 * K);
        assert!(!space.is_complete() && space.is_full());
    }
    assert!(is_full(&create_log(&space, "e").unwrap_err()));
    assert!(is_full(&space.hold_back(BYTES).unwrap_err()));
    assert_eq!(disk.file_names(), ["a", "b", "c", "d", "spare.cursor-1", "spare.cursor-2"]);

    assert!(space.remove("a") && !space.is_full());
    space.hold_back(BYTES).unwrap();
    assert!(space.is_complete());
}

#[test]
fn what_is_given_back_becomes_a_spare_where_no_file_can_be_made() {
    let (disk, space) = space(56 * K, None);
    space.hold_back(BYTES).unwrap();
    disk.set_creation_slack(1000 * K);
    let [a, b] = ["a", "b"].map(str::to_owned);
    assert_eq!(create_cursor(&space, "a", 5 * K).unwrap(), 5 * K);
    assert_eq!(create_cursor(&space, "b", 5 * K).unwrap(), 5 * K);
    assert_eq!(space.held(Spare::Cursor), 0);
    space.give_back(Spare::Cursor, &[a, b.clone()]).unwrap();
    space.hold_back(BYTES).unwrap();
    assert_eq!(space.held(Spare::Cursor), 16 * K);

    assert_eq!(create_log(&space, "b").unwrap(), 8 * K);
    assert!(is_full(&space.hold_back(BYTES).unwrap_err()));
    space.give_back(Spare::Log, &[b]).unwrap();
    space.hold_back(BYTES).unwrap();
    assert!(space.is_complete());
    disk.set_creation_slack(0);
    disk.set_capacity(None);
    space.create("c", 1, Prepare::Reserve).unwrap();
    space.give_back(Spare::Log, &["c".to_owned()]).unwrap();
    assert_eq!(disk.file_names().len(), 5, "no more than are wanted");
}

/// With its old name it would be taken for what it was.
#[test]
fn what_was_given_back_never_has_its_old_name_and_another_content() {
    for seed in 0..100 {
        let (disk, space) = space(32 * K, None);
        disk.write_file("a", vec![7; 8 << 10]);
        space.give_back(Spare::Log, &["a".to_owned()]).unwrap();
        create_log(&space, "b").unwrap();
        let left = disk.power_cut(seed);
        assert!(left.read_file("a").is_none_or(|bytes| bytes == [7; 8 << 10]), "{seed}");
    }
}

#[test]
fn what_a_backup_shares_is_not_used_again() {
    let [dir, backup] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let [ours, shared] = [dir.path().join("a"), backup.path().join("a")];
    std::fs::write(&ours, [7; 8 << 10]).unwrap();
    std::fs::hard_link(&ours, &shared).unwrap();
    let storage = Arc::new(RealDirectory::open(dir.path()).unwrap());
    let space = Space::new(storage.clone(), None);
    space.give_back(Spare::Log, &["a".to_owned()]).unwrap();
    assert_eq!(storage.list().unwrap(), []);
    space.hold_back(BYTES).unwrap();
    assert_eq!(std::fs::read(&shared).unwrap(), [7; 8 << 10]);
}

#[test]
fn what_somebody_holds_is_not_used_again() {
    let (disk, space) = space(1000 * K, None);
    let [held, free] = ["held", "free"].map(str::to_owned);
    disk.write_file(&held, vec![7; 8 << 10]);
    disk.write_file(&free, vec![7; 8 << 10]);
    let _hold = Storage::hold(&disk, &held).unwrap();
    space.give_back(Spare::Log, &[held, free]).unwrap();
    assert_eq!(disk.file_names(), ["spare.log-1"]);
}

#[test]
fn a_cursor_takes_the_place_of_a_compaction_or_of_the_log_if_it_must() {
    let (_, space) = space(96 * K, None);
    space.hold_back(SpareBytes { copy: 40 * K, ..BYTES }).unwrap();
    assert_eq!(create_cursor(&space, "c", 30 * K).unwrap(), 30 * K);
    assert_eq!((space.held(Spare::Cursor), space.held(Spare::Copy)), (16 * K, 0));
    for (name, len) in [("d", 26 * K), ("e", 16 * K), ("f", 8 * K)] {
        assert_eq!(create_cursor(&space, name, len).unwrap(), len);
    }
    assert_eq!((space.held(Spare::Cursor), space.held(Spare::Log)), (0, 8 * K));
    assert!(is_full(&create_cursor(&space, "g", 9 * K).unwrap_err()));
}

#[test]
fn what_was_left_in_a_spare_is_not_left_in_the_log() {
    let (disk, space) = space(8 * K, None);
    disk.write_file("spare.log-2", vec![7; 8 << 10]);
    assert_eq!(create_log(&space, "a").unwrap(), 8 * K);
    assert_eq!(disk.read_file("a").unwrap(), [0; 8 << 10]);
    // Wherever the name goes, the zeroes have gone before.
    for seed in 0..50 {
        if let Some(content) = disk.power_cut(seed).read_file("a") {
            assert_eq!(content, [0; 8 << 10], "seed {seed}");
        }
    }
}

#[test]
fn spares_grow_and_shrink_with_what_they_are_for() {
    let (disk, space) = space(1000 * K, None);
    let held = |bytes: SpareBytes| {
        let full = space.hold_back(bytes).is_err();
        let [log, cursor, copy] =
            [Spare::Log, Spare::Cursor, Spare::Copy].map(|spare| space.held(spare) / K);
        (log, cursor, copy, full)
    };
    assert_eq!(held(BYTES), (8, 16, 0, false));
    let more = SpareBytes { cursor: 40 * K, copy: 100 * K, ..BYTES };
    assert_eq!(held(more), (8, 40, 100, false));
    assert_eq!(held(SpareBytes { copy: 60 * K, ..BYTES }), (8, 16, 100, false));
    assert_eq!(held(SpareBytes { copy: 40 * K, ..BYTES }), (8, 16, 40, false));
    // As much as there is.
    assert_eq!(held(SpareBytes { copy: 1640 * K, ..BYTES }), (8, 16, 840, true));
    assert_eq!(held(BYTES), (8, 16, 0, false));
    assert_eq!(disk.file_names().len(), 5);
}

#[test]
fn a_limit_acts_as_the_end_of_the_disk() {
    let (_, space) = space(10_000 * K, Some(156 * K));
    space.hold_back(BYTES).unwrap();
    assert_eq!(create_log(&space, "a").unwrap(), 100 * K);
    assert_eq!(create_log(&space, "b").unwrap(), 8 * K);
    assert!(space.create("c", 1, Prepare::Reserve).is_err_and(|error| is_full(&error)));
}
