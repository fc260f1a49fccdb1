//! What is not as it should be: arguments, directories, files of other programs and of other versions. Each has a
//! defined result.

use std::fs;
use std::time::Duration;

use millpond::testing::{Clock, Disk};
use millpond::{Backoff, Durability, ErrorKind, QueueOptions, Store, StoreOptions};

fn options() -> StoreOptions {
    Store::options().segment_bytes(64 << 10)
}

fn kind<T: std::fmt::Debug>(result: millpond::Result<T>) -> ErrorKind {
    result.unwrap_err().kind().clone()
}

#[test]
fn an_oversized_message_is_refused_and_one_larger_than_a_segment_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().max_message_bytes(200_000).open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    assert_eq!(kind(queue.insert(vec![1; 200_001])), ErrorKind::TooLarge);
    queue.insert(vec![2; 200_000]).unwrap();
    let batch = [vec![3; 40_000], vec![4; 40_000]];
    assert_eq!(kind(queue.insert_batch(&batch)), ErrorKind::TooLarge);
    queue.insert("small").unwrap();
    assert_eq!(queue.stats().unwrap().ready, 2);
    assert_eq!(queue.get().unwrap().payload(), vec![2; 200_000]);
}

#[test]
fn an_empty_message_is_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("").unwrap();
    assert!(queue.insert_batch(Vec::<&str>::new()).unwrap().is_empty());
    store.close().unwrap();
    let store = options().open(dir.path()).unwrap();
    let delivery = store.queue("q").unwrap().get().unwrap();
    assert_eq!(delivery.payload(), b"");
    delivery.delete().unwrap();
}

#[test]
fn a_bad_name_of_a_queue_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    for name in ["", "a\nb", "\u{7f}", &"x".repeat(256)] {
        assert_eq!(kind(store.queue(name)), ErrorKind::InvalidArgument, "{name:?}");
        assert_eq!(kind(store.find(name)), ErrorKind::InvalidArgument, "{name:?}");
        assert_eq!(kind(store.remove(name)), ErrorKind::InvalidArgument, "{name:?}");
    }
    assert!(store.find("nobody").unwrap().is_none());
    assert_eq!(kind(store.remove("nobody")), ErrorKind::NotFound);
    assert!(store.queue_names().is_empty());
}

#[test]
fn options_out_of_range_are_refused_and_nothing_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for options in [
        Store::options().segment_bytes(4096),
        Store::options().segment_bytes((64 << 10) + 1),
        Store::options().segment_bytes(2 << 30),
        Store::options().max_message_bytes(0),
        Store::options().max_message_bytes(2 << 30),
        Store::options().durability(Durability::Interval(Duration::ZERO)),
        Store::options().delete_durability(Durability::Interval(Duration::from_secs(7200))),
    ] {
        assert_eq!(kind(options.open(&path)), ErrorKind::InvalidArgument, "{options:?}");
        assert!(!path.exists());
    }
}

#[test]
fn queue_options_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    for options in [
        QueueOptions::new().lease(Some(Duration::ZERO)),
        QueueOptions::new().max_attempts(Some(0)),
        QueueOptions::new().dead_letter("q"),
        QueueOptions::new().dead_letter(""),
        QueueOptions::new().durability(Durability::Interval(Duration::ZERO)),
    ] {
        let result = store.declare("q", options.clone());
        assert_eq!(kind(result), ErrorKind::InvalidArgument, "{options:?}");
    }
    store.declare("q", QueueOptions::new().dead_letter("dead")).unwrap();
    let back = QueueOptions::new().dead_letter("q").backoff(Backoff::Fixed(Duration::ZERO));
    assert_eq!(kind(store.declare("dead", back)), ErrorKind::InvalidArgument);
}

#[test]
fn a_directory_that_is_a_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    fs::write(&path, "not a directory").unwrap();
    let error = options().open(&path).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Io);
    assert_eq!(error.file_path(), Some(path.as_path()));
    assert_eq!(fs::read(&path).unwrap(), b"not a directory");
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    // Not even root can make a directory here.
    let error = options().open("/proc/millpond").unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Io);
    assert!(error.io_error().is_some());
}

#[test]
fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["notes.txt", "1.seg", "0000000009.seg.bak", "cursor.old", "cursor.7"];
    for name in names {
        fs::write(dir.path().join(name), name).unwrap();
    }
    fs::create_dir(dir.path().join("0000000002.seg")).unwrap();
    for _ in 0..2 {
        let store = options().open(dir.path()).unwrap();
        assert!(store.recovery().damaged.is_empty());
        store.queue("q").unwrap().insert("x").unwrap();
        store.close().unwrap();
    }
    for name in names {
        assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), name);
    }
    assert!(dir.path().join("0000000002.seg").is_dir());
}

/// A closed store with one message, its last cursor and its segment.
fn closed_store() -> (Disk, String, String) {
    let disk = Disk::new();
    let store = options().open_simulated(&disk, &Clock::new()).unwrap();
    store.queue("q").unwrap().insert("x").unwrap();
    store.close().unwrap();
    let names = disk.file_names();
    let cursor = names.iter().rfind(|name| name.starts_with("cursor.")).unwrap().clone();
    let segment = names.iter().rfind(|name| name.ends_with(".seg")).unwrap().clone();
    (disk.kill(), cursor, segment)
}

fn change(disk: &Disk, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = disk.read_file(name).unwrap();
    change(&mut content);
    disk.write_file(name, content);
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let (disk, cursor, segment) = closed_store();
    let newer_cursor = disk.kill();
    change(&newer_cursor, &cursor, |content| {
        content[8] = 2;
        let covered = content.len() - 4;
        let checksum = crc32fast::hash(&content[..covered]).to_le_bytes();
        content[covered..].copy_from_slice(&checksum);
    });
    let newer_segment = disk.kill();
    change(&newer_segment, &segment, |content| {
        for at in [0, 2048] {
            content[at + 8] = 2;
            let checksum = crc32fast::hash(&content[at..at + 124]).to_le_bytes();
            content[at + 124..at + 128].copy_from_slice(&checksum);
        }
    });
    for (disk, file) in [(newer_cursor, cursor), (newer_segment, segment)] {
        let before: Vec<_> = disk.file_names().iter().map(|name| disk.read_file(name)).collect();
        let error = options().open_simulated(&disk, &Clock::new()).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::NewerFormat);
        assert!(error.to_string().contains(&file), "{error}");
        let names = disk.file_names();
        let after: Vec<_> = names.iter().map(|name| disk.read_file(name)).collect();
        let lock = names.iter().position(|name| name == "LOCK").unwrap();
        for (n, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(n == lock || before == after, "{} was changed", names[n]);
        }
    }
}

#[test]
fn empty_or_zeroed_cursors_cost_nothing_and_are_reported() {
    for zeros in [0, 300] {
        let (disk, cursor, _) = closed_store();
        disk.write_file(&cursor, vec![0; zeros]);
        let error = options().strict(true).open_simulated(&disk.kill(), &Clock::new()).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Corrupt);
        assert!(error.file_path().is_some() && error.byte_offset().is_some());
        let store = options().open_simulated(&disk, &Clock::new()).unwrap();
        assert_eq!(store.recovery().bad_cursors.len(), 1);
        assert_eq!(store.find("q").unwrap().unwrap().get().unwrap().payload(), b"x");
    }
}

#[test]
fn empty_or_zeroed_segments_that_nothing_names_are_removed() {
    for zeros in [0, 64 << 10] {
        let (disk, _, _) = closed_store();
        disk.write_file("0000000007.seg", vec![0; zeros]);
        let store = options().open_simulated(&disk, &Clock::new()).unwrap();
        assert!(store.recovery().damaged.is_empty());
        assert!(!disk.file_names().contains(&"0000000007.seg".to_owned()));
        assert_eq!(store.find("q").unwrap().unwrap().get().unwrap().payload(), b"x");
    }
}
