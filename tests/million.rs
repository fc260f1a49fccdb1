//! A million waiting messages cost disk, not memory and not time: what a process needs that opens a store with a
//! backlog, after a proper close and after a SIGKILL. And what those cost that are kept in memory: delayed messages,
//! deduplication keys, and messages that wait for their group.
//!
//! The bounds on memory and disk are checked. How long the first get takes depends on the machine, and is printed:
//!
//! ```text
//! cargo test --release --test million -- --nocapture
//! ```
//!
//! The work is done by child processes (this same binary, started anew), so that one's memory is not another's.
#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millpond::{Durability, Message, Store};

const MESSAGES: u64 = 1_000_000;

const PAYLOAD_BYTES: usize = 100;

/// Anonymous memory of the process, whatever the backlog.
const RSS_ANON_MAX_KIB: u64 = 16 << 10;

/// On disk, for each message, beyond its payload.
const OVERHEAD_MAX_BYTES: f64 = 36.0;

/// A delayed message in memory, in bytes.
const DELAYED_MAX_BYTES: u64 = 150;

/// A deduplication key of 16 bytes in memory, in bytes.
const KEY_MAX_BYTES: u64 = 200;

/// A message that waits for its group in memory, in bytes.
const WAITING_MAX_BYTES: u64 = 400;

/// Names the task and the directory of a child.
const TASK: &str = "MILLPOND_MILLION_TASK";

/// Lines of a child that begin with this are for the parent.
const WORD: &str = "million:";

fn payload(n: u64) -> [u8; PAYLOAD_BYTES] {
    let mut payload = [n as u8; PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&n.to_le_bytes());
    payload
}

fn open(dir: &Path) -> Store {
    Store::options().durability(Durability::Process).open(dir).unwrap()
}

fn say(what: &str, value: impl std::fmt::Display) {
    println!("{WORD} {what} {value}");
}

/// What this thread has had of the CPU, which tells more than the clock on a machine that is busy with other things.
fn cpu_us() -> u64 {
    let schedule = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    schedule.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1000
}

fn rss_anon_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn fill(dir: &Path, close: bool) {
    let store = open(dir);
    let queue = store.queue("backlog").unwrap();
    let began = Instant::now();
    for n in 0..MESSAGES {
        queue.insert(&payload(n)).unwrap();
    }
    say("fill_ms", began.elapsed().as_millis());
    if close {
        store.close().unwrap();
    }
    say("filled", u8::from(close));
    if !close {
        // The parent kills this process, or is gone.
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(1);
    }
}

fn drain(dir: &Path, clean: bool) {
    say("rss_before_open_kib", rss_anon_kib());
    let (began, cpu_began) = (Instant::now(), cpu_us());
    let store = open(dir);
    say("open_us", began.elapsed().as_micros());
    let queue = store.find("backlog").unwrap().unwrap();
    let first = queue.get().unwrap();
    say("first_get_us", began.elapsed().as_micros());
    say("first_get_cpu_us", cpu_us() - cpu_began);
    assert_eq!(store.recovery().clean, clean);
    assert!(store.recovery().damaged.is_empty(), "{:?}", store.recovery());
    assert_eq!(first.payload(), payload(0));
    assert_eq!(store.stats().messages, MESSAGES);
    say("rss_open_kib", rss_anon_kib());
    // The oldest stays, which is the one that holds on to most.
    let began = Instant::now();
    let mut rss_most = 0;
    for n in 1..MESSAGES {
        let delivery = queue.get().unwrap();
        assert_eq!((delivery.payload(), delivery.attempt()), (&payload(n)[..], 1));
        delivery.delete().unwrap();
        if n % 50_000 == 0 {
            rss_most = rss_most.max(rss_anon_kib());
        }
    }
    say("drain_ms", began.elapsed().as_millis());
    say("rss_while_draining_kib", rss_most);
    assert_eq!(store.stats().messages, 1);
    assert!(queue.try_get().unwrap().is_none());
    say("rss_drained_kib", rss_anon_kib());
    first.release().unwrap();
    store.close().unwrap();
}

/// Says how many bytes of memory each of `count` messages takes that `work` does something to.
fn say_bytes_each(count: u64, work: impl FnOnce()) {
    let before = rss_anon_kib();
    work();
    say("bytes_each", (rss_anon_kib() - before) * 1024 / count);
}

fn delay(dir: &Path) {
    let queue = open(dir).queue("backlog").unwrap();
    say_bytes_each(MESSAGES, || {
        for n in 0..MESSAGES {
            let message = Message::new(payload(n).to_vec());
            queue.insert(message.delay(Duration::from_secs(3600 + n % 1000))).unwrap();
        }
    });
    assert_eq!(queue.stats().unwrap().delayed, MESSAGES);
}

fn insert_keys(dir: &Path) {
    const KEYS: u64 = 100_000;
    let queue = open(dir).queue("backlog").unwrap();
    say_bytes_each(KEYS, || {
        for n in 0..KEYS {
            let key = format!("{n:016}").into_bytes();
            queue.insert(Message::new(payload(n).to_vec()).dedup_key(key)).unwrap();
        }
    });
}

fn wait_for_groups(dir: &Path) {
    const WAITING: u64 = 9000;
    let queue = open(dir).queue("backlog").unwrap();
    for n in 0..=WAITING {
        let message = Message::new(payload(n).to_vec());
        queue.insert(message.group(b"a group's name: 1".to_vec())).unwrap();
    }
    let first = queue.get().unwrap();
    say_bytes_each(WAITING, || assert!(queue.try_get().unwrap().is_none()));
    drop(first);
}

/// What lies in the log, the indexes and the cursors, in bytes; reserved space that nothing was written to, and what
/// is held back for a full disk, is left out.
fn used_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let is_spare = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spare."))
    };
    let files = files.filter(|path| !is_spare(path));
    let used = |path: PathBuf| match path.extension() {
        Some(extension) if extension == "seg" => {
            let bytes = fs::read(&path).unwrap();
            bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
        }
        _ => fs::metadata(&path).unwrap().len(),
    };
    files.map(used).sum()
}

fn start(task: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(TASK, format!("{task}\n{}", dir.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the child says until it ends, or until it has said `until`.
fn listen(child: &mut Child, until: Option<&str>) -> HashMap<String, u64> {
    let mut said = HashMap::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The test harness may have begun the line.
        let Some((_, words)) = line.split_once(WORD) else { continue };
        let (what, value) = words.trim().split_once(' ').unwrap();
        said.insert(what.to_owned(), value.parse().unwrap());
        if Some(what) == until {
            break;
        }
    }
    said
}

fn a_million_waiting(killed: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut filling = start(if killed { "fill" } else { "fill and close" }, dir.path());
    let filled = listen(&mut filling, killed.then_some("filled"));
    if killed {
        filling.kill().unwrap();
    }
    let status = filling.wait().unwrap();
    assert_eq!(status.success(), !killed, "{status}");
    assert!(filled.contains_key("filled"), "the child ended early: {status}");

    let overhead = used_bytes(dir.path()) as f64 / MESSAGES as f64 - PAYLOAD_BYTES as f64;
    let mut draining = start(if killed { "drain" } else { "drain a clean store" }, dir.path());
    let said = listen(&mut draining, None);
    assert!(draining.wait().unwrap().success());
    println!(
        "{}: first get {:.1} ms after the start of open ({:.1} ms for open; \
         {:.1} ms of CPU time); \
         RssAnon {} KiB before, {} open, {} most while draining, {} drained; \
         {overhead:.2} bytes on disk per message beyond the payload; \
         filled in {} ms, drained in {} ms",
        if killed { "after a SIGKILL" } else { "after a close" },
        said["first_get_us"] as f64 / 1e3,
        said["open_us"] as f64 / 1e3,
        said["first_get_cpu_us"] as f64 / 1e3,
        said["rss_before_open_kib"],
        said["rss_open_kib"],
        said["rss_while_draining_kib"],
        said["rss_drained_kib"],
        filled["fill_ms"],
        said["drain_ms"],
    );
    for moment in ["rss_open_kib", "rss_while_draining_kib", "rss_drained_kib"] {
        assert!(said[moment] < RSS_ANON_MAX_KIB, "{moment}: {} KiB", said[moment]);
    }
    assert!(overhead <= OVERHEAD_MAX_BYTES, "{overhead} bytes for each message");
}

#[test]
fn memory_and_disk_stay_bounded_with_a_million_waiting_messages_after_a_close() {
    a_million_waiting(false);
}

#[test]
fn memory_and_disk_stay_bounded_with_a_million_waiting_messages_after_a_kill() {
    a_million_waiting(true);
}

fn bytes_each(task: &str) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(task, dir.path());
    let said = listen(&mut child, None);
    assert!(child.wait().unwrap().success());
    let bytes = said["bytes_each"];
    println!("{task}: {bytes} bytes of memory each");
    bytes
}

#[test]
fn what_is_kept_in_memory_of_a_message_is_bounded() {
    assert!(bytes_each("delay") <= DELAYED_MAX_BYTES);
    assert!(bytes_each("insert keys") <= KEY_MAX_BYTES);
    assert!(bytes_each("wait for groups") <= WAITING_MAX_BYTES);
}

/// The process that does the work. Does nothing unless a parent started it.
#[test]
#[ignore = "the other tests of this file start it"]
fn child() {
    let Ok(text) = std::env::var(TASK) else { return };
    let (task, dir) = text.split_once('\n').unwrap();
    match task {
        "fill" => fill(dir.as_ref(), false),
        "fill and close" => fill(dir.as_ref(), true),
        "drain" => drain(dir.as_ref(), false),
        "drain a clean store" => drain(dir.as_ref(), true),
        "delay" => delay(dir.as_ref()),
        "insert keys" => insert_keys(dir.as_ref()),
        "wait for groups" => wait_for_groups(dir.as_ref()),
        _ => panic!("no such task: {task}"),
    }
}
