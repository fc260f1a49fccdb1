//! A directory that takes no new files, or is removed, under a running store.

use std::fs;
use std::path::Path;

use millpond::{Durability, Error, ErrorKind, Queue, Store};

use super::{Told, check_store, not_shown, options, payload, run};

const SEGMENT_BYTES: u64 = 64 << 10;

/// A directory that nobody may change, the superuser neither.
struct Immutable<'a>(&'a str);

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        let _ = run("chattr", &["-i", self.0]);
    }
}

/// Inserts messages until one is refused; so many at most.
fn insert_until_it_fails(queue: &Queue, from: u64, told: &mut Told) -> Error {
    for n in from..from + 5000 {
        match queue.insert(payload(n)) {
            Ok(_) => drop(told.inserted.insert(n)),
            Err(error) => {
                told.uncertain.insert(n);
                return error;
            }
        }
    }
    panic!("no insert was refused");
}

/// A store of so many messages.
fn store_of(messages: u64, dir: &Path, durability: Durability) -> (Store, Queue, Told) {
    let store = options(durability, SEGMENT_BYTES).open(dir).unwrap();
    let queue = store.queue("q").unwrap();
    let mut told = Told::default();
    for n in 0..messages {
        queue.insert(payload(n)).unwrap();
        told.inserted.insert(n);
    }
    (store, queue, told)
}

fn a_directory_that_takes_no_new_files(durability: Durability) {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("store");
    let (store, queue, mut told) = store_of(100, &dir, durability);
    let name = dir.to_str().unwrap();
    if let Err(why) = run("chattr", &["+i", name]) {
        return not_shown("a directory that takes no new files", &why);
    }
    let immutable = Immutable(name);
    let error = insert_until_it_fails(&queue, 100, &mut told);
    println!("{durability:?}: {error}");
    drop(immutable);
    if !error.is_indeterminate() {
        told.uncertain.clear();
    }
    // It takes files again, and the store needs nothing else to go on; unless a cursor could not get its name, which is
    // as a failed sync.
    for n in 10_000..10_200 {
        match queue.insert(payload(n)) {
            Ok(_) => drop(told.inserted.insert(n)),
            Err(late) => {
                assert_eq!(late.kind(), &ErrorKind::Poisoned, "{late}");
                told.uncertain.insert(n);
            }
        }
    }
    let is_closed = store.close().is_ok();
    assert_eq!(is_closed, told.inserted.contains(&10_199), "poisoned or not");
    drop((queue, store));
    check_store(&dir, &told);
}

#[test]
fn a_directory_that_takes_no_new_files_refuses_inserts_until_it_does() {
    a_directory_that_takes_no_new_files(Durability::Process);
    a_directory_that_takes_no_new_files(Durability::Sync);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).map(|entries| entries.map(|e| e.unwrap().file_name()));
    entries.map_or(Vec::new(), |names| names.map(|n| n.to_string_lossy().into_owned()).collect())
}

fn a_directory_that_is_removed(durability: Durability) {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("store");
    let (store, queue, mut told) = store_of(100, &dir, durability);
    // The threads of the store may make a file meanwhile.
    while fs::remove_dir_all(&dir).is_err() {}
    let error = insert_until_it_fails(&queue, 100, &mut told);
    println!("{durability:?}: {error}");
    let closed = store.close();
    assert!(closed.is_err(), "a store without a directory was closed well");
    drop((queue, store));
    assert!(!dir.exists(), "it has made {:?}", names(&dir));
    check_store(&dir, &Told::default());
}

#[test]
fn a_directory_that_is_removed_ends_the_inserts_with_an_error() {
    a_directory_that_is_removed(Durability::Process);
    a_directory_that_is_removed(Durability::Sync);
}
