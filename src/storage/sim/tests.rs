//! What the simulated disk loses, and what it must not.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::super::{File, LockError, Prepare, Storage, Writing};
use super::*;

/// As many as find every state of a handful of sectors.
const SEEDS: std::ops::Range<u64> = 0..2000;

/// A disk with one durable file of zeroes.
fn disk_with(name: &str, len: u64) -> (Disk, Arc<dyn File>) {
    let disk = Disk::new();
    let file = disk.create(name, len, Prepare::Reserve).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir().unwrap();
    (disk, file)
}

fn fail(disk: &Disk, kind: FaultKind) {
    disk.fail(Fault { kind, after: 0, sticky: false });
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

fn is_eio<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(5))
}

/// Everything that a power cut can leave of the first byte of each sector.
fn firsts_after_cuts(disk: &Disk, name: &str) -> BTreeSet<Vec<u8>> {
    let firsts = |content: Vec<u8>| content.iter().step_by(512).copied().collect();
    SEEDS.map(|seed| firsts(disk.power_cut(seed).read_file(name).unwrap())).collect()
}

#[test]
fn unsynced_sectors_may_survive_or_not() {
    let (disk, file) = disk_with("a", 1024);
    file.write_at(0, &[1; 1024]).unwrap();
    file.write_at(512, &[2; 512]).unwrap();
    assert_eq!(disk.power_cut(0).read_file("a").unwrap(), [0; 1024]);
    let kept = disk.power_cut(1).read_file("a").unwrap();
    assert_eq!(kept, [[1; 512], [2; 512]].concat());
    let expected = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]];
    assert_eq!(firsts_after_cuts(&disk, "a"), expected.map(Vec::from).into());
    file.sync_data().unwrap();
    assert_eq!(firsts_after_cuts(&disk, "a"), [vec![1, 2]].into());
}

#[test]
fn data_ends_with_the_last_block_that_is_not_zero() {
    let (disk, file) = disk_with("a", 10_000);
    assert_eq!(file.data_end().unwrap(), 0, "reserved, and not written");
    file.write_at(4095, &[1]).unwrap();
    file.sync_data().unwrap();
    assert_eq!(file.data_end().unwrap(), 4096);
    file.write_at(8000, &[1; 1000]).unwrap();
    assert_eq!(file.data_end().unwrap(), 10_000, "the file ends within its last block");
    let ends = |seed| disk.power_cut(seed).open_read("a").unwrap().data_end().unwrap();
    assert_eq!(SEEDS.map(ends).collect::<BTreeSet<_>>(), [4096, 8192, 10_000].into());
    file.write_at(0, &[0; 10_000]).unwrap();
    assert_eq!(file.data_end().unwrap(), 0, "zeroes are a hole");
}

#[test]
fn a_sector_is_not_torn() {
    let (disk, file) = disk_with("a", 512);
    file.write_at(0, &[1; 512]).unwrap();
    for seed in SEEDS {
        let content = disk.power_cut(seed).read_file("a").unwrap();
        assert!(content == [0; 512] || content == [1; 512]);
    }
}

#[test]
fn only_the_last_contents_of_a_sector_are_remembered() {
    let (disk, file) = disk_with("a", 512);
    for byte in 1..=20 {
        file.write_at(0, &[byte]).unwrap();
    }
    let expected = std::iter::once(0).chain(12..=20).map(|byte| vec![byte]).collect();
    assert_eq!(firsts_after_cuts(&disk, "a"), expected);
}

#[test]
fn an_unsynced_length_may_survive_or_not() {
    let (disk, file) = disk_with("a", 100);
    file.write_at(0, &[7; 100]).unwrap();
    file.sync_data().unwrap();
    file.set_len(10).unwrap();
    file.set_len(600).unwrap();
    let lens = |disk: &Disk| -> BTreeSet<usize> {
        SEEDS.map(|seed| disk.power_cut(seed).read_file("a").unwrap().len()).collect()
    };
    assert_eq!(lens(&disk), [10, 100, 600].into());
    assert_eq!(disk.power_cut(0).read_file("a").unwrap(), [7; 100]);
    let mut kept = vec![7; 10];
    kept.resize(600, 0);
    assert_eq!(disk.power_cut(1).read_file("a").unwrap(), kept);
    file.sync_data().unwrap();
    assert_eq!(lens(&disk), [600].into());
}

#[test]
fn a_name_is_durable_only_after_the_directory_sync() {
    let disk = Disk::new();
    let file = disk.create("a", 0, Prepare::Reserve).unwrap();
    file.write_at(0, b"content").unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.power_cut(0).file_names(), [""; 0]);
    assert_eq!(disk.power_cut(1).read_file("a").unwrap(), b"content");
    disk.sync_dir().unwrap();
    assert_eq!(disk.power_cut(0).read_file("a").unwrap(), b"content");

    disk.remove("a").unwrap();
    assert_eq!(disk.power_cut(0).read_file("a").unwrap(), b"content");
    assert_eq!(disk.power_cut(1).file_names(), [""; 0]);
}

#[test]
fn a_durable_name_says_nothing_of_the_content() {
    let disk = Disk::new();
    let file = disk.create("a", 0, Prepare::Reserve).unwrap();
    file.write_at(0, b"content").unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(disk.power_cut(0).read_file("a").unwrap(), b"");
}

#[test]
fn a_rename_replaces_all_or_nothing() {
    let (disk, old) = disk_with("current", 0);
    old.write_at(0, b"old").unwrap();
    old.sync_data().unwrap();
    let new = disk.create("next", 0, Prepare::Reserve).unwrap();
    new.write_at(0, b"new").unwrap();
    new.sync_data().unwrap();
    disk.rename("next", "current").unwrap();
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        let cut = disk.power_cut(seed);
        seen.insert((cut.read_file("current").unwrap(), cut.read_file("next").is_some()));
    }
    let state = |current: &[u8], next| (current.to_vec(), next);
    assert_eq!(seen, [state(b"old", false), state(b"old", true), state(b"new", false)].into());
}

#[test]
fn directory_operations_survive_independently() {
    let disk = Disk::new();
    for name in ["a", "b", "c"] {
        disk.create(name, 0, Prepare::Reserve).unwrap();
    }
    let seen: BTreeSet<_> = SEEDS.map(|seed| disk.power_cut(seed).file_names().concat()).collect();
    assert_eq!(seen, ["", "a", "ab", "abc", "ac", "b", "bc", "c"].map(String::from).into());
}

#[test]
fn a_file_needs_its_directory_to_survive() {
    let disk = Disk::new();
    disk.create_dir("quarantine").unwrap();
    disk.create("quarantine/x", 0, Prepare::Reserve).unwrap();
    for seed in SEEDS {
        let cut = disk.power_cut(seed);
        let names: Vec<_> = cut.list().unwrap().into_iter().map(|entry| entry.name).collect();
        assert!(cut.file_names().is_empty() || names == ["quarantine"]);
    }
    disk.sync_dir().unwrap();
    assert_eq!(disk.power_cut(0).file_names(), ["quarantine/x"]);
}

#[test]
fn mapped_writes_are_covered_by_sync_data() {
    let (disk, file) = disk_with("a", 1024);
    let mut writer = file.map_write(Writing::Stores).unwrap();
    writer.write(512, b"mapped");
    writer.store_word(0, u64::from_le_bytes(*b"the word"));
    assert_eq!(disk.power_cut(0).read_file("a").unwrap(), [0; 1024]);
    file.sync_data().unwrap();
    writer.write(520, b"later");
    let content = disk.power_cut(0).read_file("a").unwrap();
    assert_eq!(
        (&content[..8], &content[512..525]),
        (&b"the word"[..], &b"mapped\0\0\0\0\0\0\0"[..])
    );
    assert_eq!(&disk.power_cut(1).read_file("a").unwrap()[512..525], b"mapped\0\0later");
}

#[test]
fn the_same_seed_leaves_the_same_disk() {
    let (disk, file) = disk_with("a", 64 * 512);
    file.write_at(0, &[1; 64 * 512]).unwrap();
    disk.create("b", 0, Prepare::Reserve).unwrap();
    for seed in 0..50 {
        let (one, other) = (disk.power_cut(seed), disk.power_cut(seed));
        assert_eq!(one.read_file("a"), other.read_file("a"));
        assert_eq!(one.file_names(), other.file_names());
    }
}

#[test]
fn some_seeds_lose_most_and_some_keep_most() {
    let (disk, file) = disk_with("a", 64 * 512);
    file.write_at(0, &[1; 64 * 512]).unwrap();
    let kept: Vec<usize> = (2..200)
        .map(|seed| disk.power_cut(seed).read_file("a").unwrap())
        .map(|content| content.iter().step_by(512).filter(|&&byte| byte == 1).count())
        .collect();
    for range in [0..1, 1..16, 24..33, 48..64, 64..65] {
        assert!(kept.iter().any(|kept| range.contains(kept)), "no seed keeps {range:?}");
    }
}

#[test]
fn a_power_cut_leaves_a_synced_unlocked_disk_of_another_boot() {
    let (disk, file) = disk_with("a", 1024);
    let _lock = disk.lock().unwrap();
    file.write_at(0, &[1; 1024]).unwrap();
    for seed in 0..50 {
        let cut = disk.power_cut(seed);
        let content = cut.read_file("a");
        assert_eq!(cut.power_cut(0).read_file("a"), content);
        assert_eq!(cut.power_cut(0).file_names(), cut.file_names());
        assert_ne!(cut.boot_id(), disk.boot_id());
        assert!(cut.lock().is_ok());
    }
}

#[test]
fn a_kill_keeps_the_page_cache_and_what_is_unsynced() {
    let (disk, file) = disk_with("a", 1024);
    let lock = disk.lock().unwrap();
    lock.note("the first").unwrap();
    file.write_at(0, &[1; 1024]).unwrap();
    disk.create("b", 0, Prepare::Reserve).unwrap();
    let killed = disk.kill();
    assert_eq!(killed.boot_id(), disk.boot_id());
    assert_ne!(killed.pid(), disk.pid());
    assert_eq!(killed.lock().unwrap().previous_note(), "the first");
    assert_eq!(killed.read_file("a").unwrap(), [1; 1024]);
    assert_eq!(killed.power_cut(0).read_file("a").unwrap(), [0; 1024]);
    assert_eq!(killed.power_cut(0).file_names(), ["a"]);
    assert_eq!(firsts_after_cuts(&killed, "a"), firsts_after_cuts(&disk, "a"));
    killed.open("a").unwrap().sync_data().unwrap();
    killed.sync_dir().unwrap();
    assert_eq!(killed.power_cut(0).read_file("a").unwrap(), [1; 1024]);
    assert_eq!(killed.power_cut(0).file_names(), ["LOCK", "a", "b"]);
    assert_eq!(disk.power_cut(0).file_names(), ["a"]);
}

#[test]
fn forks_are_independent() {
    let (disk, file) = disk_with("a", 1024);
    file.write_at(0, b"before").unwrap();
    let mut writer = file.map_write(Writing::Stores).unwrap();
    let forks = [disk.kill(), disk.power_cut(1)];
    writer.write(0, b"behind");
    for fork in &forks {
        assert_eq!(&fork.read_file("a").unwrap()[..6], b"before");
        fork.open("a").unwrap().map_write(Writing::Stores).unwrap().write(0, b"forked");
        assert_eq!(&fork.read_file("a").unwrap()[..6], b"forked");
    }
    assert_eq!(writer.bytes(0..6), b"behind");
    drop(writer);
    let fork = disk.kill();
    file.write_at(0, b"parent").unwrap();
    fork.remove("a").unwrap();
    assert_eq!(disk.read_file("a").unwrap()[..6], *b"parent");
    assert!(matches!((disk.lock(), fork.lock()), (Ok(_), Ok(_))));
}

#[test]
fn a_lock_is_held_until_it_is_dropped() {
    let disk = Disk::new();
    let lock = disk.lock().unwrap();
    assert!(matches!(disk.clone().lock(), Err(LockError::Held { .. })));
    drop(lock);
    assert!(disk.lock().is_ok());
}

#[test]
fn every_operation_is_counted_and_told() {
    let disk = Disk::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    disk.on_operation(Some(Box::new(move |disk, number| {
        // Took effect, and no lock is held: the disk can be forked and used.
        disk.kill().create("on the fork", 0, Prepare::Reserve).unwrap();
        tell.lock().unwrap().push((number, disk.file_names().len()));
    })));
    let lock = disk.lock().unwrap();
    lock.note("note").unwrap();
    let file = disk.create("a", 64, Prepare::Reserve).unwrap();
    file.write_at(0, b"x").unwrap();
    file.set_len(32).unwrap();
    file.sync_data().unwrap();
    let mut writer = file.map_write(Writing::Stores).unwrap();
    writer.write(8, b"x");
    writer.store_word(0, 1);
    writer.publish(16);
    disk.rename("a", "b").unwrap();
    disk.sync_dir().unwrap();
    disk.remove("b").unwrap();
    assert_eq!(disk.operations(), 10);
    let names = [1, 2, 2, 2, 2, 2, 2, 2, 2, 1];
    assert_eq!(*told.lock().unwrap(), (1..=10).zip(names).collect::<Vec<_>>());
    assert_eq!(disk.kill().operations(), 0);

    disk.on_operation(None);
    disk.sync_dir().unwrap();
    assert_eq!((disk.operations(), told.lock().unwrap().len()), (11, 10));
}

#[test]
fn a_callback_may_operate_on_its_disk_and_replace_itself() {
    let disk = Disk::new();
    disk.on_operation(Some(Box::new(|disk, number| {
        disk.create("from the callback", 0, Prepare::Reserve).unwrap();
        assert_eq!(number, 1, "what the callback does is not told");
        disk.on_operation(None);
    })));
    disk.sync_dir().unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(disk.operations(), 3);
}

#[test]
fn a_failed_sync_loses_the_pages_and_the_next_one_succeeds() {
    let (disk, file) = disk_with("a", 1024);
    file.write_at(0, &[1; 1024]).unwrap();
    fail(&disk, FaultKind::Sync);
    assert!(is_eio(file.sync_data()));
    file.sync_data().unwrap();
    assert_eq!(disk.read_file("a").unwrap(), [1; 1024], "still cached");
    assert_eq!(disk.power_cut(0).read_file("a").unwrap(), [0; 1024]);
    assert_eq!(disk.kill().power_cut(0).read_file("a").unwrap(), [0; 1024]);
    let expected = [[0, 0], [0, 1], [1, 0], [1, 1]];
    assert_eq!(firsts_after_cuts(&disk, "a"), expected.map(Vec::from).into());

    // Written again, be it with the same bytes, a sector is synced again; the other one stays lost.
    file.write_at(0, &[1; 10]).unwrap();
    file.sync_data().unwrap();
    assert_eq!(firsts_after_cuts(&disk, "a"), [vec![1, 0], vec![1, 1]].into());
}

#[test]
fn a_failed_directory_sync_loses_the_names() {
    let disk = Disk::new();
    disk.create("a", 0, Prepare::Reserve).unwrap();
    fail(&disk, FaultKind::SyncDir);
    assert!(is_eio(disk.sync_dir()));
    disk.create("b", 0, Prepare::Reserve).unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(disk.file_names(), ["a", "b"]);
    assert_eq!(disk.power_cut(0).file_names(), ["b"]);
    assert_eq!(disk.power_cut(1).file_names(), ["a", "b"]);
}

#[test]
fn faults_hit_their_kind_when_they_are_due() {
    let (disk, file) = disk_with("a", 64);
    disk.fail(Fault { kind: FaultKind::Write, after: 1, sticky: false });
    assert!(file.write_at(0, b"x").is_ok());
    assert!(is_eio(file.set_len(0)));
    assert!(file.set_len(32).is_ok());

    disk.fail(Fault { kind: FaultKind::Create, after: 0, sticky: true });
    assert!(is_eio(disk.create("b", 0, Prepare::Reserve)));
    assert!(is_eio(disk.rename("a", "b")));
    assert!(disk.kill().rename("a", "b").is_ok(), "a fork does not inherit faults");
    disk.heal();
    assert!(disk.create("b", 0, Prepare::Reserve).is_ok());

    fail(&disk, FaultKind::Reserve);
    assert!(disk.create("c", 0, Prepare::Reserve).is_ok());
    let full = disk.create("d", 1, Prepare::Reserve);
    assert_eq!(kind(full), Some(ErrorKind::StorageFull));
    assert_eq!(disk.file_names(), ["a", "b", "c"]);

    fail(&disk, FaultKind::Map);
    assert_eq!(kind(file.map_read()), Some(ErrorKind::OutOfMemory));
    assert!(file.map_write(Writing::Stores).is_ok());
}

#[test]
fn space_that_is_given_back_can_be_used_again() {
    let disk = Disk::with_capacity(1000);
    let a = disk.create("a", 600, Prepare::Reserve).unwrap();
    let full = Some(ErrorKind::StorageFull);
    assert_eq!(kind(disk.create("b", 401, Prepare::Reserve)), full);
    let b = disk.create("b", 400, Prepare::Reserve).unwrap();
    assert_eq!(kind(b.write_at(399, b"xy")), full);
    b.write_at(399, b"x").unwrap();
    disk.lock().unwrap().note("the lock file takes no space").unwrap();
    a.set_len(500).unwrap();
    b.write_at(400, &[1; 100]).unwrap();
    disk.remove("a").unwrap();
    disk.create("c", 500, Prepare::Reserve).unwrap();
    assert_eq!(kind(disk.kill().create("d", 1, Prepare::Reserve)), full);
    disk.set_capacity(None);
    disk.create("d", 500, Prepare::Reserve).unwrap();
}

#[test]
fn raw_files_are_durable_at_once() {
    let (disk, file) = disk_with("a", 4);
    file.write_at(0, b"open").unwrap();
    disk.write_file("a", b"damaged".to_vec());
    disk.write_file("quarantine/x", b"x".to_vec());
    assert_eq!(disk.power_cut(0).read_file("a").unwrap(), b"damaged");
    assert_eq!(disk.power_cut(0).read_file("quarantine/x").unwrap(), b"x");
    let mut open = [0; 4];
    file.read_at(0, &mut open).unwrap();
    assert_eq!(&open, b"open");
    disk.remove_file("a");
    disk.remove_file("not there");
    assert_eq!(disk.power_cut(1).read_file("a"), None);
    assert_eq!(disk.file_names(), ["quarantine/x"]);
}

#[test]
fn changing_what_a_live_mapping_has_published_is_noticed() {
    let (_disk, file) = disk_with("a", 1024);
    let mut writer = file.map_write(Writing::Stores).unwrap();
    writer.write(0, b"payload");
    writer.publish(8);
    let mapping = writer.mapping();
    drop(writer);
    let noticed = |work: &mut dyn FnMut()| catch_unwind(AssertUnwindSafe(work)).is_err();
    assert!(noticed(&mut || file.write_at(0, b"x").unwrap()));
    assert!(noticed(&mut || file.set_len(7).unwrap()));
    assert!(noticed(&mut || file.map_write(Writing::Stores).unwrap().write(0, b"x")));
    file.write_at(8, b"x").unwrap();
    file.set_len(8).unwrap();
    assert_eq!(mapping.bytes(0..7), b"payload");
    drop(mapping);
    file.write_at(0, b"x").unwrap();
}

#[test]
fn a_file_can_grow_beside_its_readers() {
    let (disk, file) = disk_with("a", 8);
    file.write_at(0, b"12345678").unwrap();
    let mapping = file.map_read().unwrap();
    file.write_at(8, &[9; 100_000]).unwrap();
    assert_eq!(mapping.bytes(0..8), b"12345678");
    assert_eq!(disk.read_file("a").unwrap().len(), 100_008);
}

#[test]
fn removed_files_are_forgotten() {
    let (disk, file) = disk_with("a", 8);
    disk.remove("a").unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(disk.state().inode_count(), 1, "it is open");
    drop(file);
    disk.sync_dir().unwrap();
    assert_eq!(disk.state().inode_count(), 0);
}
