//! What the library does with arguments, directories and files that are not as they should be: each has a defined
//! result, and none of them changes what is there.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use millpond::testing::{Clock, Disk, Fault, FaultKind};
use millpond::{Durability, Error, ErrorKind, QueueOptions, Store, StoreOptions};

fn options() -> StoreOptions {
    Store::options().segment_bytes(64 << 10)
}

/// A store of one message, closed.
fn small_store() -> Disk {
    let disk = Disk::new();
    let store = options().open_simulated(&disk, &Clock::new()).unwrap();
    store.queue("q").unwrap().insert("kept").unwrap();
    store.close().unwrap();
    disk
}

fn open(disk: &Disk) -> Result<Store, Error> {
    options().open_simulated(disk, &Clock::new())
}

fn contents(disk: &Disk) -> BTreeMap<String, Option<Vec<u8>>> {
    let names = disk.file_names().into_iter().filter(|name| name != "LOCK");
    names.map(|name| (name.clone(), disk.read_file(&name))).collect()
}

fn name_with(disk: &Disk, part: &str) -> String {
    disk.file_names().into_iter().rfind(|name| name.contains(part)).unwrap()
}

fn assert_holds_its_message(store: &Store) {
    let queue = store.find("q").unwrap().expect("the queue is there");
    assert_eq!(queue.peek().unwrap().expect("the message is there").payload(), b"kept");
}

#[test]
fn a_message_over_the_limit_is_refused_and_one_at_the_limit_is_taken() {
    let store = options().max_message_bytes(1000);
    let store = store.open_simulated(&Disk::new(), &Clock::new()).unwrap();
    let queue = store.queue("q").unwrap();
    assert_eq!(queue.insert(vec![0; 1001]).unwrap_err().kind(), &ErrorKind::TooLarge);
    let batch = [vec![0; 10], vec![0; 1001]];
    assert_eq!(queue.insert_batch(&batch).unwrap_err().kind(), &ErrorKind::TooLarge);
    assert_eq!(queue.stats().unwrap().ready, 0);
    queue.insert(vec![0; 1000]).unwrap();
    assert_eq!(queue.peek().unwrap().unwrap().payload().len(), 1000);
}

#[test]
fn a_batch_that_fits_in_no_segment_is_refused_as_a_whole() {
    let store = open(&Disk::new()).unwrap();
    let queue = store.queue("q").unwrap();
    let batch = vec![vec![0; 10_000]; 7];
    assert_eq!(queue.insert_batch(&batch).unwrap_err().kind(), &ErrorKind::TooLarge);
    assert_eq!(queue.stats().unwrap().ready, 0);
    queue.insert_batch(&batch[..5]).unwrap();
    assert_eq!(queue.insert_batch(Vec::<&str>::new()).unwrap(), []);
    assert_eq!(queue.stats().unwrap().ready, 5);
}

#[test]
fn an_empty_message_is_a_message() {
    let store = open(&Disk::new()).unwrap();
    let queue = store.queue("q").unwrap();
    let id = queue.insert("").unwrap();
    let delivery = queue.try_get().unwrap().unwrap();
    assert_eq!((delivery.id(), delivery.payload()), (id, &b""[..]));
    delivery.delete().unwrap();
    assert_eq!(queue.stats().unwrap(), Default::default());
}

#[test]
fn a_bad_queue_name_is_refused_by_every_call_that_takes_one() {
    let store = open(&Disk::new()).unwrap();
    let too_long = "x".repeat(256);
    for name in ["", "line\nbreak", "nul\0", "del\u{7f}", "\u{85}", &too_long] {
        let errors = [
            store.queue(name).map(drop).unwrap_err(),
            store.find(name).map(drop).unwrap_err(),
            store.declare(name, QueueOptions::new()).map(drop).unwrap_err(),
            store.declare("q", QueueOptions::new().dead_letter(name)).map(drop).unwrap_err(),
            store.remove(name).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{name:?}");
        }
    }
    assert_eq!(store.queue_names(), Vec::<String>::new());
    for name in [" ", "/", "..", "ü", &"x".repeat(255)] {
        assert_eq!(store.queue(name).unwrap().name(), name);
    }
}

#[test]
fn store_options_out_of_range_are_refused() {
    let bad = [
        Store::options().segment_bytes((64 << 10) - 4096),
        Store::options().segment_bytes((64 << 10) + 1),
        Store::options().segment_bytes((1 << 30) + 4096),
        Store::options().max_message_bytes(0),
        Store::options().max_message_bytes((1 << 30) + 1),
        Store::options().garbage_percent(9),
        Store::options().garbage_percent(1001),
        Store::options().durability(Durability::Interval(Duration::ZERO)),
        Store::options().delete_durability(Durability::Interval(Duration::from_secs(3601))),
    ];
    for options in bad {
        let disk = Disk::new();
        let error = options.open_simulated(&disk, &Clock::new()).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{options:?}");
        assert_eq!(disk.file_names(), Vec::<String>::new());
    }
}

#[test]
fn queue_options_out_of_range_are_refused_and_declare_nothing() {
    let store = open(&Disk::new()).unwrap();
    let bad = [
        QueueOptions::new().lease(Some(Duration::ZERO)),
        QueueOptions::new().lease(Some(Duration::from_nanos(999_999))),
        QueueOptions::new().max_attempts(Some(0)),
        QueueOptions::new().dead_letter("q"),
        QueueOptions::new().durability(Durability::Interval(Duration::from_nanos(1))),
    ];
    for options in bad {
        let error = store.declare("q", options.clone()).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{options:?}");
    }
    assert_eq!(store.queue_names(), Vec::<String>::new());
}

#[test]
fn dead_letter_queues_that_lead_in_a_circle_are_refused() {
    let store = open(&Disk::new()).unwrap();
    store.declare("a", QueueOptions::new().dead_letter("b")).unwrap();
    store.declare("b", QueueOptions::new().dead_letter("c")).unwrap();
    let error = store.declare("c", QueueOptions::new().dead_letter("a")).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
}

#[test]
fn the_longest_times_do_not_overflow() {
    let store = open(&Disk::new()).unwrap();
    let queue = store.declare("q", QueueOptions::new().lease(Some(Duration::MAX))).unwrap();
    queue.insert("x").unwrap();
    let delivery = queue.try_get().unwrap().unwrap();
    delivery.extend(Duration::MAX).unwrap();
    delivery.release_after(Duration::MAX).unwrap();
    assert_eq!(queue.stats().unwrap().delayed, 1);
    assert!(queue.get_timeout(Duration::ZERO).unwrap().is_none());
}

#[test]
fn a_batch_of_no_messages_cannot_be_got() {
    let store = open(&Disk::new()).unwrap();
    let error = store.queue("q").unwrap().get_batch(0, Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
}

/// An error of the operating system that names the place.
fn assert_io(error: &Error, path: &Path) {
    assert_eq!(error.kind(), &ErrorKind::Io, "{error}");
    assert!(error.io_error().is_some(), "{error}");
    assert!(error.file_path().is_some_and(|file| file.starts_with(path)), "{error}");
}

#[test]
fn a_directory_that_is_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "not a store").unwrap();
    assert_io(&Store::open(&path).unwrap_err(), &path);
    let below = path.join("store");
    assert_io(&Store::open(&below).unwrap_err(), &below);
    assert_eq!(std::fs::read(&path).unwrap(), b"not a store");
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_cannot_be_made_is_refused() {
    // Nobody can make a directory there, not even root, for whom permissions do not count.
    let path = Path::new("/proc/millpond");
    assert_io(&Store::open(path).unwrap_err(), path);
}

#[cfg(unix)]
#[test]
fn a_directory_without_permission_to_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o555)).unwrap();
    if std::fs::write(path.join("probe"), "").is_ok() {
        // Root may write anywhere.
        return;
    }
    assert_io(&Store::open(&path).unwrap_err(), &path);
}

/// Raises the version of a header or a cursor and makes its checksum right.
fn raise_version(bytes: &mut [u8]) {
    let covered = bytes.len() - 4;
    bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..covered]);
    bytes[covered..].copy_from_slice(&checksum.to_le_bytes());
}

fn assert_newer(disk: &Disk, name: &str) {
    let before = contents(disk);
    let error = open(disk).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::NewerFormat, "{error}");
    assert!(error.file_path().is_some_and(|file| file.ends_with(name)), "{error}");
    assert_eq!(contents(disk), before, "nothing is touched");
}

#[test]
fn a_segment_of_a_newer_version_is_left_alone() {
    for copies in [&[0][..], &[2048], &[0, 2048]] {
        let disk = small_store();
        let name = name_with(&disk, ".seg");
        let mut bytes = disk.read_file(&name).unwrap();
        for &at in copies {
            raise_version(&mut bytes[at..at + 128]);
        }
        disk.write_file(&name, bytes);
        assert_newer(&disk, &name);
    }
}

#[test]
fn a_cursor_of_a_newer_version_is_left_alone() {
    let disk = small_store();
    let name = name_with(&disk, "cursor.");
    let mut bytes = disk.read_file(&name).unwrap();
    raise_version(&mut bytes);
    disk.write_file(&name, bytes);
    assert_newer(&disk, &name);
}

#[test]
fn foreign_files_are_left_alone() {
    let disk = small_store();
    let foreign = [
        "README",
        "1.seg",
        "0000000001.seg.bak",
        "0000000000.seg",
        "cursor",
        "cursor.7",
        "cursor.0000000001~",
        "0000000001.idx.old",
        "lock",
    ];
    for name in foreign {
        disk.write_file(name, name.as_bytes().to_vec());
    }
    for _ in 0..2 {
        let store = open(&disk).unwrap();
        assert!(store.recovery().clean);
        assert_holds_its_message(&store);
        store.close().unwrap();
    }
    for name in foreign {
        assert_eq!(disk.read_file(name).as_deref(), Some(name.as_bytes()), "{name}");
    }
}

#[test]
fn a_segment_of_another_store_is_set_aside_and_its_messages_are_not_delivered() {
    let real = tempfile::tempdir().unwrap();
    let other = options().open(real.path()).unwrap();
    other.queue("q").unwrap().insert("of another store").unwrap();
    other.close().unwrap();
    let foreign = real.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
    let foreign = foreign.into_iter().find(|path| path.extension().is_some_and(|e| e == "seg"));
    let foreign = std::fs::read(foreign.unwrap()).unwrap();

    let disk = small_store();
    disk.write_file("0000000777.seg", foreign.clone());
    let store = open(&disk).unwrap();
    assert_holds_its_message(&store);
    assert_eq!(store.stats().messages, 1);
    assert_eq!(disk.read_file("0000000777.seg"), None);
    assert_eq!(disk.read_file("quarantine/0000000777.seg"), Some(foreign));
}

/// Empty and all-zero files, where a kill or a failed copy may leave them.
fn blank_files(name: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    let lengths = [0, 1, 8, 4096, 4097, 64 << 10];
    lengths.into_iter().map(move |len| (name.to_owned(), vec![0; len]))
}

#[test]
fn a_blank_segment_beside_a_store_costs_nothing() {
    for (name, content) in blank_files("0000000050.seg") {
        let disk = small_store();
        let bytes = content.len();
        disk.write_file(&name, content);
        let store = open(&disk).unwrap();
        assert!(store.recovery().clean && store.recovery().damaged.is_empty(), "{bytes} zeros");
        assert_holds_its_message(&store);
        assert_eq!(disk.read_file(&name), None, "it is cleared away, with {bytes} zeros");
        store.close().unwrap();
        assert_holds_its_message(&open(&disk).unwrap());
    }
}

#[test]
fn a_blank_segment_alone_is_a_new_store() {
    for (name, content) in blank_files("0000000001.seg") {
        let disk = Disk::new();
        disk.write_file(&name, content);
        let store = open(&disk).unwrap();
        assert!(store.recovery().damaged.is_empty());
        store.queue("q").unwrap().insert("kept").unwrap();
        drop(store);
        assert_holds_its_message(&open(&disk).unwrap());
    }
}

#[test]
fn a_blank_cursor_beside_a_store_is_reported_and_costs_nothing() {
    for (name, content) in blank_files("cursor.0000000099") {
        let disk = small_store();
        let len = content.len();
        disk.write_file(&name, content);
        let strict = options().strict(true).open_simulated(&disk, &Clock::new()).unwrap_err();
        assert_eq!(strict.kind(), &ErrorKind::Corrupt, "{len} zeros: {strict}");
        assert!(strict.file_path().is_some_and(|file| file.ends_with(&name)), "{strict}");
        assert!(strict.byte_offset().is_some(), "{strict}");
        let store = open(&disk).unwrap();
        assert_eq!(store.recovery().bad_cursors.len(), 1, "{len} zeros");
        assert_holds_its_message(&store);
        store.close().unwrap();
        let store = open(&disk).unwrap();
        assert!(store.recovery().clean, "{len} zeros: {:?}", store.recovery());
        assert_holds_its_message(&store);
    }
}

#[test]
fn a_blank_cursor_alone_is_reported_and_the_store_is_empty() {
    for (name, content) in blank_files("cursor.0000000001") {
        let disk = Disk::new();
        disk.write_file(&name, content);
        let store = open(&disk).unwrap();
        assert_eq!(store.recovery().bad_cursors.len(), 1);
        assert_eq!(store.queue_names(), Vec::<String>::new());
        store.queue("q").unwrap().insert("kept").unwrap();
        drop(store);
        assert_holds_its_message(&open(&disk).unwrap());
    }
}

#[test]
fn directories_where_files_should_be_are_refused_or_passed_over_but_never_removed() {
    for name in ["LOCK", "cursor.0000000001", "cursor.tmp", "0000000001.seg", "0000000001.idx"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("inside"), "kept").unwrap();
        match options().open(dir.path()) {
            Ok(store) => {
                store.queue("q").unwrap().insert("kept").unwrap();
                drop(store);
                assert_holds_its_message(&options().open(dir.path()).unwrap());
            }
            // Its number is needed, and the system says what is in the way.
            Err(error) => assert!(error.io_error().is_some(), "{name}: {error}"),
        }
        assert_eq!(std::fs::read(path.join("inside")).unwrap(), b"kept", "{name}");
    }
}

#[test]
fn a_file_in_the_place_of_the_quarantine_does_not_keep_a_store_from_opening() {
    let disk = small_store();
    disk.write_file("quarantine", b"in the way".to_vec());
    disk.write_file("0000000777.seg", vec![7; 9000]);
    let store = open(&disk).unwrap();
    assert_holds_its_message(&store);
    assert_eq!(disk.read_file("quarantine").as_deref(), Some(&b"in the way"[..]));
    assert_eq!(disk.read_file("0000000777.seg"), Some(vec![7; 9000]), "it is not ours to delete");
}

/// First the index of its segment cannot be reached, then the segment itself. That says nothing about the message.
#[test]
fn a_message_that_cannot_be_reached_now_is_delivered_later() {
    let disk = Disk::new();
    let store = open(&disk).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..20 {
        queue.insert(vec![n; 10_000]).unwrap();
    }
    store.close().unwrap();
    for after in [0, 1] {
        let disk = disk.kill();
        let store = open(&disk).unwrap();
        let queue = store.queue("q").unwrap();
        disk.fail(Fault { kind: FaultKind::Map, after, sticky: true });
        let error = queue.try_get().unwrap_err();
        assert_io(&error, Path::new("/simulated/0000000001.seg"));
        disk.heal();
        let delivery = queue.try_get().unwrap().unwrap();
        assert_eq!((delivery.payload()[0], queue.stats().unwrap().ready), (0, 19));
        assert_eq!(store.stats().damage, []);
    }
}
