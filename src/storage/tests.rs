//! What both backings promise.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tempfile::TempDir;

use super::disk::RealDirectory;
use super::sim::{Disk, Fault, FaultKind};
use super::*;

/// Runs `test` on an empty directory of each kind.
fn on_both(test: impl Fn(&dyn Storage)) {
    let dir = TempDir::new().unwrap();
    test(&RealDirectory::open(dir.path()).unwrap());
    test(&Disk::new());
}

fn read(storage: &dyn Storage, name: &str) -> Vec<u8> {
    let file = storage.open_read(name).unwrap();
    let mut content = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut content).unwrap();
    content
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

fn panics(work: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_err()
}

#[test]
fn a_created_file_is_zero_and_as_long_as_asked_for() {
    on_both(|storage| {
        for (name, len, prepare) in [
            ("a", 0, Prepare::Reserve),
            ("b", 10_000, Prepare::Reserve),
            ("c", 10_000, Prepare::Zero),
        ] {
            let file = storage.create(name, len, prepare).unwrap();
            assert_eq!(file.len().unwrap(), len);
            assert_eq!(read(storage, name), vec![0; len as usize]);
            assert_eq!(kind(storage.create(name, 0, prepare)), Some(ErrorKind::AlreadyExists));
        }
    });
}

#[test]
fn behind_the_end_of_the_data_all_is_zero_however_it_was_written() {
    on_both(|storage| {
        for (n, (prepare, writing)) in [
            (Prepare::Reserve, Writing::Stores),
            (Prepare::Reserve, Writing::Calls),
            (Prepare::Zero, Writing::Calls),
        ]
        .into_iter()
        .enumerate()
        {
            let name = &n.to_string();
            let file = storage.create(name, 1 << 20, prepare).unwrap();
            let mut writer = file.map_write(writing).unwrap();
            for at in [0, 5000, 300_000, 1_000_000] {
                writer.write(at, b"x");
                writer.finish().unwrap();
                for synced in [false, true] {
                    let end = storage.open_read(name).unwrap().data_end().unwrap();
                    assert!((at + 1..=1 << 20).contains(&end), "{prepare:?} {at} {end} {synced}");
                    file.sync_data().unwrap();
                }
            }
        }
        assert_eq!(storage.create("empty", 0, Prepare::Reserve).unwrap().data_end().unwrap(), 0);
    });
}

#[test]
fn what_was_never_written_is_not_data_where_the_file_system_knows() {
    let dir = TempDir::new().unwrap();
    let storage = RealDirectory::open(dir.path()).unwrap();
    let file = storage.create("a", 64 << 20, Prepare::Reserve).unwrap();
    file.write_at(1 << 20, b"x").unwrap();
    let end = file.data_end().unwrap();
    println!("data ends at {end}");
    let sparse = std::fs::File::create(dir.path().join("b")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    let holes_are_known = storage.open_read("b").unwrap().data_end().unwrap() == 0;
    assert!(!holes_are_known || end < 2 << 20, "{end}");
}

#[test]
fn reserve_fails_when_full() {
    let dir = TempDir::new().unwrap();
    let real = RealDirectory::open(dir.path()).unwrap();
    let sim = Disk::with_capacity(1 << 20);
    for (storage, too_much) in [(&real as &dyn Storage, 1 << 50), (&sim, (1 << 20) + 1)] {
        for prepare in [Prepare::Reserve, Prepare::Zero] {
            let full = storage.create("a", too_much, prepare);
            assert_eq!(kind(full), Some(ErrorKind::StorageFull));
            assert_eq!(storage.list().unwrap(), [], "what was made is removed");
        }
        storage.create("b", 4096, Prepare::Reserve).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn reserved_space_is_not_sparse() {
    use std::os::unix::fs::MetadataExt;
    let dir = TempDir::new().unwrap();
    let storage = RealDirectory::open(dir.path()).unwrap();
    for (name, prepare) in [("a", Prepare::Reserve), ("b", Prepare::Zero)] {
        storage.create(name, 100_000, prepare).unwrap();
        let metadata = std::fs::metadata(dir.path().join(name)).unwrap();
        assert!(metadata.blocks() * 512 >= 100_000);
    }
}

#[test]
fn reads_are_exact_and_writes_extend() {
    on_both(|storage| {
        let file = storage.create("a", 0, Prepare::Reserve).unwrap();
        file.write_at(3, b"xyz").unwrap();
        assert_eq!(read(storage, "a"), b"\0\0\0xyz");
        assert_eq!(kind(file.read_at(4, &mut [0; 3])), Some(ErrorKind::UnexpectedEof));
        assert_eq!(kind(file.read_at(1 << 40, &mut [0; 1])), Some(ErrorKind::UnexpectedEof));
        file.set_len(4).unwrap();
        file.set_len(6).unwrap();
        assert_eq!(read(storage, "a"), b"\0\0\0x\0\0", "what was cut off does not come back");
        file.sync_data().unwrap();
    });
}

#[test]
fn a_handle_for_reading_does_not_write() {
    on_both(|storage| {
        storage.create("a", 8, Prepare::Reserve).unwrap();
        let file = storage.open_read("a").unwrap();
        assert!(file.write_at(0, b"x").is_err());
        assert!(file.set_len(0).is_err());
        assert!(file.map_write(Writing::Stores).is_err());
        assert_eq!(read(storage, "a"), [0; 8]);
    });
}

#[test]
fn names_come_and_go() {
    on_both(|storage| {
        let a = storage.create("a", 0, Prepare::Reserve).unwrap();
        a.write_at(0, b"from a").unwrap();
        storage.create("b", 5, Prepare::Reserve).unwrap();
        storage.create_dir("quarantine").unwrap();
        storage.create_dir("quarantine").unwrap();
        let x = storage.create("quarantine/x", 0, Prepare::Reserve).unwrap();
        x.write_at(0, b"x").unwrap();
        let entry = |name: &str, len, is_file| Entry { name: name.to_owned(), len, is_file };
        assert_eq!(
            storage.list().unwrap(),
            [entry("a", 6, true), entry("b", 5, true), entry("quarantine", 0, false)]
        );

        storage.rename("a", "b").unwrap();
        assert_eq!(read(storage, "b"), b"from a");
        storage.rename("b", "quarantine/b").unwrap();
        assert_eq!(storage.list().unwrap(), [entry("quarantine", 0, false)]);
        assert_eq!(read(storage, "quarantine/b"), b"from a");
        storage.remove("quarantine/x").unwrap();
        storage.sync_dir().unwrap();

        assert_eq!(kind(storage.remove("a")), Some(ErrorKind::NotFound));
        assert_eq!(kind(storage.open("a")), Some(ErrorKind::NotFound));
        assert_eq!(kind(storage.open_read("quarantine/x")), Some(ErrorKind::NotFound));
        assert_eq!(kind(storage.rename("a", "b")), Some(ErrorKind::NotFound));
        let nowhere = storage.create("missing/x", 0, Prepare::Reserve);
        assert_eq!(kind(nowhere), Some(ErrorKind::NotFound));
    });
}

#[test]
fn a_removed_file_can_be_used_by_who_has_it() {
    on_both(|storage| {
        let file = storage.create("a", 4096, Prepare::Reserve).unwrap();
        file.write_at(0, b"still here").unwrap();
        let mapping = file.map_read().unwrap();
        storage.remove("a").unwrap();
        storage.sync_dir().unwrap();
        assert_eq!(mapping.bytes(0..10), b"still here");
        let mut buf = [0; 10];
        file.read_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"still here");
        file.sync_data().unwrap();
    });
}

#[test]
fn a_second_lock_fails_with_the_holders_note() {
    on_both(|storage| {
        let first = storage.lock().unwrap();
        assert_eq!(first.previous_note(), "");
        first.note("a long note, to be replaced").unwrap();
        first.note("pid 1").unwrap();
        match storage.lock() {
            Err(LockError::Held { note }) => assert_eq!(note, "pid 1"),
            Err(LockError::Io(error)) => panic!("{error}"),
            Ok(_) => panic!("locked twice"),
        }
        assert_eq!(storage.list().unwrap()[0].name, LOCK);
        drop(first);
        assert_eq!(storage.lock().unwrap().previous_note(), "pid 1");
    });
}

fn in_all_ways(test: impl Fn(&dyn Storage, Writing)) {
    for writing in [Writing::Stores, Writing::Calls] {
        on_both(|storage| test(storage, writing));
    }
}

#[test]
fn readers_see_what_is_published_and_nothing_else() {
    in_all_ways(|storage, writing| {
        let file = storage.create("a", 4096, Prepare::Reserve).unwrap();
        let mut writer = file.map_write(writing).unwrap();
        let mapping = writer.mapping();
        writer.write(8, b"payload");
        writer.store_word(0, 0x0807_0605_0403_0201);
        assert_eq!(mapping.published(), 0);
        assert_eq!(mapping.get(0..1), None);
        writer.finish().unwrap();
        assert_eq!(writer.bytes(0..15), b"\x01\x02\x03\x04\x05\x06\x07\x08payload");

        writer.publish(16);
        writer.publish(8);
        assert_eq!(mapping.published(), 16, "the frontier does not go back");
        assert_eq!(mapping.bytes(8..15), b"payload");
        assert_eq!(mapping.clone().get(0..16).unwrap().len(), 16);
        assert_eq!(mapping.get(0..17), None);
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = mapping.get(9..8);
        assert_eq!(reversed, None);
        assert_eq!(
            &read(storage, "a")[8..15],
            b"payload",
            "a mapping and a file are the same bytes"
        );
        drop(writer);
        drop(file);
        assert_eq!(mapping.bytes(8..15), b"payload", "a mapping outlives its file and its writer");
    });
}

#[test]
fn a_writer_stays_within_what_is_unpublished_and_mapped() {
    in_all_ways(|storage, writing| {
        let file = storage.create("a", 64, Prepare::Reserve).unwrap();
        let mut writer = file.map_write(writing).unwrap();
        assert_eq!(writer.len(), 64);
        writer.publish(16);
        assert!(panics(|| writer.write(15, b"x")));
        assert!(panics(|| writer.store_word(8, 1)));
        assert!(panics(|| writer.store_word(20, 1)), "not aligned");
        assert!(panics(|| writer.write(60, b"12345")));
        assert!(panics(|| writer.write(u64::MAX, b"12345")));
        assert!(panics(|| writer.store_word(64, 1)));
        assert!(panics(|| writer.store_words(&[(24, 1), (8, 1)])));
        assert!(panics(|| writer.publish(65)));
        assert!(panics(|| drop(writer.bytes(60..65).to_vec())));
        assert!(panics(|| drop(writer.mapping().bytes(16..17).to_vec())));
        writer.write(64, b"");
        writer.write(16, &[1; 48]);
        writer.finish().unwrap();
        assert_eq!(writer.bytes(0..64)[15..17], [0, 1]);
    });
}

#[test]
fn writes_here_and_there_leave_the_same_bytes_however_they_are_made() {
    in_all_ways(|storage, writing| {
        let file = storage.create("a", 1 << 20, Prepare::Reserve).unwrap();
        file.write_at(0, &[9; 64]).unwrap();
        let mut expected = vec![0; 1 << 20];
        expected[..64].fill(9);
        let mut writer = file.map_write(writing).unwrap();
        // In a row, with gaps small and large, backwards, over what was just written, and larger than what is put together.
        let large = vec![5; 300_000];
        let writes: [(usize, &[u8]); 9] = [
            (8, b"one"),
            (11, b"two"),
            (22, b"behind a gap"),
            (40, b"behind another"),
            (16, b"before"),
            (17, b"over"),
            (5000, &large),
            (305_000, b"behind the large one"),
            (1 << 19, b"far away"),
        ];
        for (at, bytes) in writes {
            writer.write(at as u64, bytes);
            expected[at..at + bytes.len()].copy_from_slice(bytes);
        }
        writer.store_word(24, 0x0807_0605_0403_0201);
        expected[24..32].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let words: Vec<(u64, u64)> = (0..100).map(|n| (4000 + n * n * 64, n)).collect();
        writer.store_words(&words);
        for (at, word) in words {
            expected[at as usize..at as usize + 8].copy_from_slice(&word.to_le_bytes());
        }
        writer.finish().unwrap();
        assert!(writer.bytes(0..1 << 20) == expected);
        writer.publish(1 << 20);
        drop(writer);
        assert!(read(storage, "a") == expected);
    });
}

#[test]
fn a_call_that_fails_is_told_at_the_end_of_the_series() {
    let disk = Disk::new();
    let file = disk.create("a", 4096, Prepare::Zero).unwrap();
    let mut writer = file.map_write(Writing::Calls).unwrap();
    writer.write(0, b"well");
    writer.finish().unwrap();
    disk.fail(Fault { kind: FaultKind::Write, after: 0, sticky: false });
    writer.write(8, b"lost");
    writer.store_word(16, 1);
    assert!(writer.finish().is_err());
    let mut word = [0; 8];
    disk.open_read("a").unwrap().read_at(16, &mut word).unwrap();
    assert_eq!(word, [0; 8], "a word is not there without what was written before it");
    writer.write(24, b"well again");
    writer.finish().unwrap();
}

#[test]
fn a_file_has_one_writer_at_a_time() {
    on_both(|storage| {
        let file = storage.create("a", 64, Prepare::Reserve).unwrap();
        let writer = file.map_write(Writing::Stores).unwrap();
        let mapping = writer.mapping();
        assert_eq!(kind(file.map_write(Writing::Stores)), Some(ErrorKind::ResourceBusy));
        assert_eq!(kind(file.write_at(0, b"x")), Some(ErrorKind::ResourceBusy));
        assert_eq!(kind(file.set_len(0)), Some(ErrorKind::ResourceBusy));
        file.sync_data().unwrap();
        drop(writer);
        file.write_at(0, b"x").unwrap();
        let mut writer = file.map_write(Writing::Stores).unwrap();
        writer.write(1, b"y");
        writer.publish(2);
        assert_eq!(writer.mapping().bytes(0..2), b"xy");
        assert_eq!(mapping.published(), 0, "each writer has a frontier of its own");
    });
}

#[test]
fn an_empty_file_gives_an_empty_mapping() {
    in_all_ways(|storage, writing| {
        let file = storage.create("a", 0, Prepare::Reserve).unwrap();
        let mapping = file.map_read().unwrap();
        assert_eq!((mapping.published(), mapping.bytes(0..0)), (0, &b""[..]));
        let mut writer = file.map_write(writing).unwrap();
        writer.write(0, b"");
        writer.publish(0);
        assert_eq!((writer.len(), writer.bytes(0..0)), (0, &b""[..]));
    });
}

#[test]
fn one_thread_writes_while_others_read() {
    const WORDS: u64 = 512;
    in_all_ways(|storage, writing| {
        let file = storage.create("a", WORDS * 8, Prepare::Reserve).unwrap();
        let mut writer = file.map_write(writing).unwrap();
        let mapping = writer.mapping();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let mapping = mapping.clone();
                scope.spawn(move || {
                    while mapping.published() < WORDS * 8 {
                        let end = mapping.published();
                        let words = mapping.bytes(0..end).chunks(8).enumerate();
                        for (index, word) in words {
                            assert_eq!(word, (index as u64 + 1).to_le_bytes());
                        }
                    }
                });
            }
            for index in 0..WORDS {
                writer.store_word(index * 8, index + 1);
                writer.finish().unwrap();
                writer.publish(index * 8 + 8);
            }
        });
    });
}

#[test]
fn a_directory_is_made_with_its_parents_and_a_file_is_none() {
    let dir = TempDir::new().unwrap();
    let deep = dir.path().join("a/b/c");
    for _ in 0..2 {
        let storage = RealDirectory::open(&deep).unwrap();
        assert_eq!(storage.path("x"), deep.join("x"));
        assert_eq!(storage.pid(), std::process::id());
    }
    std::fs::write(deep.join("file"), b"").unwrap();
    for path in ["file", "file/below"] {
        let opened = RealDirectory::open(&deep.join(path));
        assert_eq!(kind(opened), Some(ErrorKind::NotADirectory));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_boot_has_a_name() {
    let id = RealDirectory::open(Path::new(".")).unwrap().boot_id();
    assert_eq!((id.len(), id.trim()), (36, &*id));
}

#[test]
fn a_file_is_held_until_the_last_hold_is_dropped_whatever_its_name() {
    on_both(|storage| {
        storage.create("a", 10, Prepare::Reserve).unwrap();
        storage.create("b", 10, Prepare::Reserve).unwrap();
        let holds = [storage.hold("a").unwrap(), storage.hold("a").unwrap()];
        storage.rename("a", "c").unwrap();
        assert!(storage.is_held("c") && !storage.is_held("b") && !storage.is_held("a"));
        let [first, last] = holds;
        drop(first);
        assert!(storage.is_held("c"));
        drop(last);
        assert!(!storage.is_held("c"));
        assert_eq!(kind(storage.hold("a")), Some(ErrorKind::NotFound));
    });
}
