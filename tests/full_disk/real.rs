//! On a real file system that is mounted for it. Where the machine lets nobody mount, that is said, and nothing is shown.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use millpond::{Durability, Queue, Store, StoreOptions};

use super::small_store::number;
use super::{fill, get};

const MIB: u64 = 1 << 20;

/// A file system of its own, unmounted in the end.
struct Mounted {
    dir: PathBuf,
    _image: tempfile::TempDir,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).output();
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn mount(kind: &str, bytes: u64) -> Result<Mounted, String> {
    let image = tempfile::tempdir().unwrap();
    let dir = image.path().join("mounted");
    fs::create_dir(&dir).unwrap();
    let (file, target) = (image.path().join("image"), dir.to_str().unwrap());
    if kind == "tmpfs" {
        run("mount", &["-t", kind, "-o", &format!("size={bytes}"), kind, target])?;
    } else {
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", file.to_str().unwrap()])?;
        run("mount", &["-o", "loop", file.to_str().unwrap(), target])?;
    }
    Ok(Mounted { dir, _image: image })
}

/// Takes every byte that is free.
fn take_all_space(dir: &Path) -> PathBuf {
    let filler = dir.join("filler");
    let mut file = fs::OpenOptions::new().create(true).append(true).open(&filler).unwrap();
    for bytes in [MIB as usize, 4096, 1] {
        while file.write(&vec![1; bytes]).is_ok_and(|written| written > 0) {}
        // What a file system holds back until something is written back shows after a sync.
        let _ = file.sync_all();
        while file.write(&vec![1; bytes]).is_ok_and(|written| written > 0) {}
    }
    filler
}

fn options(durability: Durability) -> StoreOptions {
    Store::options().segment_bytes(4 * MIB).durability(durability)
}

fn list(dir: &Path) -> String {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let name =
        |entry: fs::DirEntry| (entry.file_name(), entry.metadata().map_or(0, |found| found.len()));
    format!("{:?}", files.map(name).collect::<std::collections::BTreeMap<_, _>>())
}

fn drain(queue: &Queue, dir: &Path, keep_every: u64) -> Vec<u64> {
    let mut kept = Vec::new();
    let mut all = Vec::new();
    while let Some(delivery) =
        queue.try_get().unwrap_or_else(|error| panic!("{} out: {error}: {}", all.len(), list(dir)))
    {
        let number = number(delivery.payload());
        all.push(number);
        if number % keep_every == keep_every - 1 {
            kept.push(delivery);
        } else {
            delivery.delete().unwrap();
        }
    }
    kept.into_iter().for_each(|delivery| delivery.release().unwrap());
    all
}

fn a_full_file_system_refuses_inserts_and_nothing_else(kind: &str, durability: Durability) {
    let mounted = match mount(kind, if kind == "xfs" { 320 * MIB } else { 96 * MIB }) {
        Ok(mounted) => mounted,
        Err(why) => return println!("not shown on {kind}: {why}"),
    };
    let dir = mounted.dir.join("store");
    let store = options(durability).open(&dir).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..20 * 256 {
        queue.insert(super::payload(n, 4000)).unwrap();
    }
    let filler = take_all_space(&mounted.dir);
    let messages = 20 * 256 + fill(&queue, 20 * 256, 4000);
    take_all_space(&mounted.dir);

    // Many times the log that is left.
    for _ in 0..100_000 {
        get(&queue).release().unwrap();
    }
    store.close().unwrap();
    drop((queue, store));
    take_all_space(&mounted.dir);

    let store = options(durability).open(&dir).unwrap();
    assert!(store.recovery().clean, "{:?}", store.recovery());
    let queue = store.queue("q").unwrap();
    assert_eq!(queue.stats().unwrap().ready, messages);
    let mut all = drain(&queue, &dir, 8);
    all.sort_unstable();
    assert_eq!(all, (0..messages).collect::<Vec<u64>>());

    // Most of it was deleted, and its space comes back though the filler stays: on ext4 once its journal is committed, which
    // may take five seconds, and longer on a busy machine.
    let mut more = 0;
    for _ in 0..1200 {
        more = fill(&queue, messages + more, 4000) + more;
        if more > messages / 4 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let room = || format!("{kind}: room for {more} where {messages} were: {}", list(&dir));
    assert!(more > messages / 4, "{}", room());
    fs::remove_file(filler).unwrap();
    queue.insert("and on").unwrap();
    println!("{kind}, {durability:?}: {messages} messages, then {more} more");
    store.close().unwrap();
}

#[test]
fn a_full_tmpfs_refuses_inserts_and_nothing_else() {
    a_full_file_system_refuses_inserts_and_nothing_else("tmpfs", Durability::Process);
}

#[test]
fn a_full_ext4_refuses_inserts_and_nothing_else() {
    a_full_file_system_refuses_inserts_and_nothing_else("ext4", Durability::Process);
    a_full_file_system_refuses_inserts_and_nothing_else("ext4", Durability::Sync);
}

#[test]
fn a_full_xfs_refuses_inserts_and_nothing_else() {
    a_full_file_system_refuses_inserts_and_nothing_else("xfs", Durability::Process);
}
