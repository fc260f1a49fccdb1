//! Attempts to break compaction: every bug of it that was found, as a named case, and random runs that are cut off at
//! every few storage operations, with cursors whole, damaged or lost.
//!
//! `MILLPOND_COMPACTION_SEEDS=n` makes n random runs of each kind instead of one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use millpond::testing::{Clock, Disk, Fault, FaultKind, step};
use millpond::{Delivery, Durability, ErrorKind, Queue, QueueOptions, Store, StoreOptions};

use super::small_store::{SEGMENT_BYTES, number, options, payload, settle};

/// A fork of the disk, and the numbers of what must be in it.
type Cut = (Disk, BTreeSet<u64>);

fn names(disk: &Disk, what: &str) -> Vec<String> {
    disk.file_names().into_iter().filter(|n| n.contains(what) && !n.contains('/')).collect()
}

fn lose_cursors(disk: &Disk) {
    names(disk, "cursor.").iter().for_each(|name| disk.remove_file(name));
}

fn damage_newest_cursor(disk: &Disk) -> bool {
    let all: Vec<String> =
        names(disk, "cursor.").into_iter().filter(|n| !n.ends_with("tmp")).collect();
    if all.len() < 2 {
        return false;
    }
    let name = all.last().unwrap();
    let mut content = disk.read_file(name).unwrap();
    let at = content.len() / 2;
    content[at] ^= 0x10;
    disk.write_file(name, content);
    true
}

fn is_rewritten(content: &[u8]) -> bool {
    content.len() > 4096 && content[..8] == *b"MPONDSEG" && content[32..40] != content[48..56]
}

fn rewritten(disk: &Disk) -> Vec<String> {
    let is = |name: &String| disk.read_file(name).is_some_and(|content| is_rewritten(&content));
    names(disk, ".seg").into_iter().filter(is).collect()
}

fn drain_ids(queue: &Queue) -> Vec<(u64, u64, u32)> {
    let mut all = Vec::new();
    while let Some(delivery) = queue.try_get().unwrap() {
        all.push((delivery.id().as_u64(), number(delivery.payload()), delivery.attempt()));
        delivery.delete().unwrap();
    }
    all
}

/// Two consumers meet the same damaged message: a peek and a get. While the peek sets the bytes aside, the other one
/// deletes the message and its segment is rewritten without it.
#[test]
fn a_message_found_damaged_twice_is_counted_deleted_once() {
    let (disk, clock) = (Disk::new(), Clock::new());
    {
        let store = options().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        for n in 0..400 {
            queue.insert(payload(n, 500)).unwrap();
            if n % 20 == 19 {
                settle(&store);
            }
        }
        store.close().unwrap();
    }
    // The content of message 0 is damaged: the first frame of the first segment is a declaration.
    let first = names(&disk, ".seg").remove(0);
    let mut content = disk.read_file(&first).unwrap();
    let at =
        (0..content.len() - 508).find(|&at| content[at..at + 508] == [0; 508][..]).unwrap_or(0);
    let needle = payload(1, 500);
    let at1 = content.windows(500).position(|w| w == needle).unwrap();
    let _ = at;
    content[at1 - 100] ^= 1;
    disk.write_file(&first, content);

    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let before = store.stats().messages;
    assert_eq!(before, 400);
    let kept: Arc<Mutex<Vec<Delivery>>> = Arc::default();
    let done = Arc::new(Mutex::new(false));
    let (s, q, k, d) = (store.clone(), queue.clone(), kept.clone(), done.clone());
    disk.on_operation(Some(Box::new(move |_, _| {
        if std::mem::replace(&mut *d.lock().unwrap(), true) {
            return;
        }
        // Another consumer: takes all, keeps each twentieth, and the maintenance thread does its work.
        let mut n = 0;
        while let Some(delivery) = q.try_get().unwrap() {
            n += 1;
            if n % 20 == 0 {
                k.lock().unwrap().push(delivery);
            } else {
                delivery.delete().unwrap();
            }
        }
        for _ in 0..200 {
            q.insert(payload(1 << 40, 500)).unwrap();
            q.try_get().unwrap().unwrap().delete().unwrap();
            settle(&s);
        }
    })));
    let peeked = queue.peek().unwrap();
    disk.on_operation(None);
    assert!(*done.lock().unwrap(), "the race took place");
    assert!(peeked.is_none());
    println!("rewritten {:?}; stats {:?}", rewritten(&disk), store.stats());
    let kept = std::mem::take(&mut *kept.lock().unwrap());
    let count = kept.len() as u64;
    let messages = store.stats().messages;
    let damaged = store.stats().damaged_messages;
    // All of them but the last are deleted.
    let mut ids: Vec<u64> = Vec::new();
    for delivery in kept {
        ids.push(delivery.id().as_u64());
        if ids.len() as u64 == count {
            delivery.release().unwrap();
        } else {
            delivery.delete().unwrap();
        }
    }
    for _ in 0..200 {
        queue.insert(payload(1 << 40, 500)).unwrap();
        let mut got = queue.try_get().unwrap().unwrap();
        if number(got.payload()) != 1 << 40 {
            let other = queue.try_get().unwrap().unwrap();
            got.release().unwrap();
            got = other;
        }
        got.delete().unwrap();
        settle(&store);
    }
    let left = drain_ids(&queue);
    println!("left {left:?}, {messages} counted of {count}, {damaged} damaged");
    assert_eq!(left.len(), 1, "the last one is still there");
    assert_eq!(messages, count);
    assert_eq!(damaged, 1);
}

/// Messages are moved to a dead letter queue, the moves are not durable, and their old segments are rewritten. The power goes,
/// and all cursors are lost.
#[test]
fn a_moved_message_is_in_one_queue_at_least_after_a_full_walk() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let _dead = store.queue("dead").unwrap();
    let queue = store.declare("q", QueueOptions::new().dead_letter("dead")).unwrap();
    for n in 0..1000 {
        queue.insert(payload(n, 500)).unwrap();
        if n % 20 == 19 {
            settle(&store);
        }
    }
    store.sync().unwrap();
    let mut deliveries = Vec::new();
    for _ in 0..1000u64 {
        deliveries.push(queue.try_get().unwrap().unwrap());
    }
    settle(&store);
    store.sync().unwrap();
    let mut held = Vec::new();
    let forks: Arc<Mutex<Vec<Disk>>> = Arc::default();
    let f = forks.clone();
    disk.on_operation(Some(Box::new(move |disk, _| f.lock().unwrap().push(disk.power_cut(0)))));
    let mut live: BTreeSet<u64> = BTreeSet::new();
    for (n, delivery) in deliveries.into_iter().enumerate() {
        match n % 50 {
            0 => held.push(delivery),
            1 => delivery.bury("no").unwrap(),
            _ => delivery.delete().unwrap(),
        }
        if n % 50 < 2 {
            live.insert(n as u64);
        }
        settle(&store);
    }
    settle(&store);
    disk.on_operation(None);
    let forks = std::mem::take(&mut *forks.lock().unwrap());
    println!("{} forks, rewritten {:?}", forks.len(), rewritten(&disk));
    for (n, fork) in forks.iter().enumerate() {
        lose_cursors(fork);
        let store = options().open_simulated(fork, &clock).unwrap();
        let mut found = BTreeSet::new();
        for name in store.queue_names() {
            let queue = store.find(&name).unwrap().unwrap();
            found.extend(drain_ids(&queue).iter().map(|(_, n, _)| *n));
        }
        let missing: Vec<_> = live.difference(&found).collect();
        assert!(missing.is_empty(), "fork {n}: {missing:?} {:?}", store.recovery());
        assert!(store.recovery().renamed_queues.is_empty(), "fork {n}: {:?}", store.recovery());
    }
}

/// All cursors are lost, in another boot, with everything durable.
#[test]
fn a_full_walk_in_another_boot_finds_all() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut held = BTreeMap::new();
    let forks: Arc<Mutex<Vec<Cut>>> = Arc::default();
    for n in 0..3000u64 {
        queue.insert(payload(n, 500)).unwrap();
        let delivery = queue.try_get().unwrap().unwrap();
        if n % 100 == 0 {
            held.insert(n, delivery);
        } else {
            delivery.delete().unwrap();
        }
        if n % 10 == 9 {
            settle(&store);
            store.sync().unwrap();
            if n % 50 == 49 {
                let live: BTreeSet<u64> = held.keys().copied().collect();
                forks.lock().unwrap().push((disk.power_cut(0), live));
            }
        }
    }
    println!("rewritten {:?} of {:?}", rewritten(&disk), names(&disk, ".seg"));
    let mut bad = Vec::new();
    for (n, (fork, live)) in forks.lock().unwrap().iter().enumerate() {
        lose_cursors(fork);
        let before = (names(fork, ".seg"), rewritten(fork));
        let store = options().open_simulated(fork, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        let found: BTreeSet<u64> = drain_ids(&queue).iter().map(|(_, n, _)| *n).collect();
        let missing: Vec<_> = live.difference(&found).copied().collect();
        if !missing.is_empty() {
            bad.push(format!(
                "fork {n}: {missing:?} of {}: {before:?} {:?}",
                live.len(),
                store.recovery()
            ));
        }
    }
    assert!(bad.is_empty(), "{} bad: {}", bad.len(), bad.join("\n"));
}

/// The old files are half removed, all cursors are lost, and the new file has one flipped bit.
fn flipped(cut: bool) {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut held = Vec::new();
    for n in 0..1000u64 {
        queue.insert(payload(n, 500)).unwrap();
        if n % 10 == 9 {
            settle(&store);
        }
    }
    let mut live = BTreeSet::new();
    let forks: Arc<Mutex<Vec<Cut>>> = Arc::default();
    let now: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
    for n in 0..1000u64 {
        let delivery = queue.try_get().unwrap().unwrap();
        if n % 20 == 0 {
            held.push(delivery);
            live.insert(n);
        } else {
            delivery.delete().unwrap();
        }
    }
    *now.lock().unwrap() = live.clone();
    let f = forks.clone();
    disk.on_operation(Some(Box::new(move |disk, _| {
        let fork = if cut { disk.power_cut(1) } else { disk.kill() };
        f.lock().unwrap().push((fork, now.lock().unwrap().clone()))
    })));
    settle(&store);
    disk.on_operation(None);
    let mut bad = Vec::new();
    for (n, (fork, live)) in forks.lock().unwrap().iter().enumerate() {
        lose_cursors(fork);
        let Some(name) = rewritten(fork).pop() else { continue };
        let mut content = fork.read_file(&name).unwrap();
        content[4096 + 300] ^= 4;
        fork.write_file(&name, content);
        let before = (names(fork, ".seg"), rewritten(fork));
        let store = options().open_simulated(fork, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        let queue_all = drain_ids(&queue);
        let found: BTreeSet<u64> = queue_all.iter().map(|(_, n, _)| *n).collect();
        let missing: Vec<_> = live.difference(&found).copied().collect();
        let all: Vec<u64> = queue_all.iter().map(|(id, _, _)| *id).collect();
        if missing.len() > 1 || all.len() != all.iter().collect::<BTreeSet<_>>().len() {
            let aside = names_aside(fork);
            let recovery = store.recovery();
            bad.push(format!(
                "fork {n}: {missing:?} of {}, {} delivered {} different: {before:?} {aside:?} {recovery:?}",
                live.len(),
                all.len(),
                found.len()
            ));
        }
    }
    assert!(bad.is_empty(), "{} bad: {}", bad.len(), bad.join("\n"));
}

fn names_aside(disk: &Disk) -> Vec<String> {
    disk.file_names().into_iter().filter(|n| n.contains('/') && n.ends_with(".seg")).collect()
}

#[test]
fn one_flipped_bit_costs_one_message_while_the_old_files_are_removed() {
    flipped(false);
}

#[test]
fn one_flipped_bit_costs_one_message_in_another_boot() {
    flipped(true);
}

/// The power goes at every storage operation; what an open finds by a cursor it must find without any, too.
fn with_and_without_cursors(rewrite: bool) {
    let mut bad = Vec::new();
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut held = Vec::new();
    let mut recent = std::collections::VecDeque::new();
    let forks: Arc<Mutex<Vec<(Disk, Disk)>>> = Arc::default();
    for n in 0..1400u64 {
        if n == 1000 {
            let f = forks.clone();
            disk.on_operation(Some(Box::new(move |disk, _| {
                f.lock().unwrap().push((disk.power_cut(0), disk.power_cut(0)));
            })));
        }
        queue.insert(payload(n, 500)).unwrap();
        let delivery = queue.try_get().unwrap().unwrap();
        let keep = if rewrite { n < 700 && n % 50 == 0 } else { n < 400 };
        if keep {
            held.push(delivery);
        } else {
            // The last few are always there.
            recent.push_back(delivery);
            if recent.len() > 5 {
                recent.pop_front().unwrap().delete().unwrap();
            }
        }
        if n % 10 == 9 {
            settle(&store);
        }
    }
    disk.on_operation(None);
    println!("{:?} of {:?}", rewritten(&disk), names(&disk, ".seg"));
    let all = |disk: &Disk| {
        let store = options().open_simulated(disk, &clock).unwrap();
        let mut found = BTreeSet::new();
        for name in store.queue_names() {
            let queue = store.find(&name).unwrap().unwrap();
            found.extend(drain_ids(&queue).iter().map(|(_, n, _)| *n));
        }
        (found, format!("{:?}", store.recovery()))
    };
    for (n, (with, without)) in forks.lock().unwrap().iter().enumerate() {
        lose_cursors(without);
        let before = (names(without, ".seg"), rewritten(without));
        let ((with, _), (without, why)) = (all(with), all(without));
        let missing: Vec<_> = with.difference(&without).copied().collect();
        if !missing.is_empty() {
            bad.push(format!("fork {n}: {missing:?} of {}: {before:?} {why}", with.len()));
        }
    }
    bad.truncate(100);
    let first = bad.first().cloned().unwrap_or_default();
    assert!(bad.is_empty(), "{} bad of {}: {first}", bad.len(), forks.lock().unwrap().len());
}

#[test]
fn without_cursors_as_with_them_plain() {
    with_and_without_cursors(false);
}

#[test]
fn without_cursors_as_with_them_rewritten() {
    with_and_without_cursors(true);
}

/// Everything is durable; then the power goes, and all cursors are lost. `rewrite` says whether a segment is rewritten
/// before; the one that its last frame names is dropped in either case. Returns what is missing.
fn late_message_after_a_dropped_segment(rewrite: bool, flip: bool) -> (Vec<u64>, Vec<u64>, String) {
    let (disk, clock) = (Disk::new(), Clock::new());
    let synced = || options().durability(Durability::Sync).delete_durability(Durability::Sync);
    let store = synced().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut live = BTreeSet::new();
    let mut held = Vec::new();
    for n in 0..3000u64 {
        queue.insert(payload(n, 500)).unwrap();
        let delivery = queue.try_get().unwrap().unwrap();
        let keep = if rewrite { n < 1000 && n % 20 == 0 } else { n < 100 };
        if keep {
            held.push(delivery);
            live.insert(n);
        } else {
            delivery.delete().unwrap();
        }
        settle(&store);
    }
    assert_eq!(!rewritten(&disk).is_empty(), rewrite);
    let mut outcome = (Vec::new(), Vec::new(), String::new());
    for late in 10_000..10_400u64 {
        queue.insert(payload(late, 500)).unwrap();
        live.insert(late);
        let durable = disk.power_cut(0);
        lose_cursors(&durable);
        if flip {
            let name = rewritten(&durable).pop().unwrap();
            let mut content = durable.read_file(&name).unwrap();
            let at = content.len() / 2;
            content[at] ^= 4;
            durable.write_file(&name, content);
        }
        let files = (names(&durable, ".seg"), rewritten(&durable));
        let again = synced().open_simulated(&durable, &clock).unwrap();
        let mut found = Vec::new();
        for name in again.queue_names() {
            let queue = again.find(&name).unwrap().unwrap();
            found.extend(drain_ids(&queue).iter().map(|(_, n, _)| *n));
        }
        let set: BTreeSet<u64> = found.iter().copied().collect();
        let missing: Vec<u64> = live.difference(&set).copied().collect();
        found.sort_unstable();
        let twice: Vec<u64> = found.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0]).collect();
        settle(&store);
        again.sync().unwrap();
        if missing.len() + twice.len() > outcome.0.len() + outcome.1.len() {
            println!("late {late}: missing {missing:?} twice {twice:?}");
            outcome = (missing, twice, format!("late {late}: {files:?} {:?}", again.recovery()));
        }
    }
    outcome
}

#[test]
fn a_full_walk_goes_on_behind_a_dropped_segment_rewritten() {
    let (missing, twice, why) = late_message_after_a_dropped_segment(true, false);
    assert!(missing.is_empty() && twice.is_empty(), "{missing:?} {twice:?} {why}");
}

#[test]
fn a_full_walk_goes_on_behind_a_dropped_segment_plain() {
    let (missing, twice, why) = late_message_after_a_dropped_segment(false, false);
    assert!(missing.is_empty() && twice.is_empty(), "{missing:?} {twice:?} {why}");
}

#[test]
fn a_flipped_bit_in_a_rewritten_segment_costs_one_message_in_a_full_walk() {
    let (missing, twice, why) = late_message_after_a_dropped_segment(true, true);
    assert!(missing.len() <= 1 && twice.is_empty(), "{missing:?} {twice:?} {why}");
}

/// Whatever operation of the disk fails while segments are rewritten, nothing is lost and nothing comes back.
#[test]
fn every_fault_while_it_is_rewritten() {
    let mut poisoned = 0;
    let mut rewrote = 0;
    for kind in [
        FaultKind::Sync,
        FaultKind::SyncDir,
        FaultKind::Reserve,
        FaultKind::Write,
        FaultKind::Create,
        FaultKind::Map,
    ] {
        for after in 0..30 {
            let (disk, clock) = (Disk::new(), Clock::new());
            let synced =
                || options().durability(Durability::Sync).delete_durability(Durability::Sync);
            let store = synced().open_simulated(&disk, &clock).unwrap();
            let queue = store.queue("q").unwrap();
            for n in 0..120u64 {
                let bytes = if n == 60 { 150_000 } else { 3000 };
                queue.insert(payload(n, bytes)).unwrap();
                if n % 10 == 9 {
                    settle(&store);
                }
            }
            let mut live = BTreeSet::new();
            let mut held = Vec::new();
            for n in 0..120u64 {
                let delivery = queue.try_get().unwrap().unwrap();
                if n % 12 == 0 {
                    held.push(delivery);
                    live.insert(n);
                } else {
                    delivery.delete().unwrap();
                }
            }
            disk.fail(Fault { kind, after, sticky: false });
            let mut failed = false;
            for _ in 0..400 {
                match step(&store) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        failed = true;
                        if *error.kind() == ErrorKind::Poisoned {
                            poisoned += 1;
                            break;
                        }
                    }
                }
            }
            disk.heal();
            rewrote += usize::from(!rewritten(&disk).is_empty());
            for fork in
                [disk.kill(), disk.power_cut(0), disk.power_cut(1), disk.power_cut(7 + after)]
            {
                let store = synced().open_simulated(&fork, &clock).unwrap();
                assert!(
                    store.recovery().damaged.is_empty(),
                    "{kind:?} {after} {:?}",
                    store.recovery()
                );
                assert_eq!(store.stats().messages, live.len() as u64);
                let queue = store.queue("q").unwrap();
                let found: BTreeSet<u64> = drain_ids(&queue).iter().map(|(_, n, _)| *n).collect();
                assert_eq!(found, live, "{kind:?} {after} {failed}");
            }
            for delivery in held {
                let n = number(delivery.payload());
                let bytes = if n == 60 { 150_000 } else { 3000 };
                assert_eq!(delivery.payload(), payload(n, bytes));
                std::mem::forget(delivery);
            }
        }
    }
    println!("{poisoned} poisoned, {rewrote} rewritten");
}

/// Only the rewritten segment is left of the store, one bit of it is damaged, and the machine was started again.
#[test]
fn a_rewritten_segment_never_becomes_the_active_one() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut held = Vec::new();
    for n in 0..1000u64 {
        queue.insert(payload(n, 500)).unwrap();
        let delivery = queue.try_get().unwrap().unwrap();
        if n % 10 == 0 {
            held.push(delivery);
        } else {
            delivery.delete().unwrap();
        }
        if n % 10 == 9 {
            settle(&store);
        }
    }
    let fork = disk.power_cut(0);
    lose_cursors(&fork);
    let name = rewritten(&fork).pop().unwrap();
    for other in names(&fork, ".seg").iter().filter(|other| **other != name) {
        fork.remove_file(other);
    }
    let mut content = fork.read_file(&name).unwrap();
    let at = content.len() * 3 / 4;
    content[at] ^= 4;
    fork.write_file(&name, content);
    let store = options().open_simulated(&fork, &clock).unwrap();
    println!("{name} {:?} {:?}", store.recovery(), names(&fork, ".seg"));
    let counted = store.stats().messages;
    for name in store.queue_names() {
        let queue = store.find(&name).unwrap().unwrap();
        queue.insert(payload(5000, 500)).unwrap();
        let all = drain_ids(&queue);
        let ids: BTreeSet<u64> = all.iter().map(|(id, _, _)| *id).collect();
        println!("{name}: {counted} counted, {} delivered, {} different", all.len(), ids.len());
        assert_eq!(all.len(), ids.len());
        assert_eq!(all.len() as u64, counted + 1);
        assert!(store.recovery().set_aside.is_empty() && store.recovery().damaged.len() <= 2);
    }
    settle(&store);
    store.close().unwrap();
    let store = options().open_simulated(&fork, &clock).unwrap();
    assert_eq!(store.stats().messages, 0);
}

// --- A random run, forked at every storage operation.

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

/// What comes and goes in one operation.
const TEMPORARY: u64 = 1 << 50;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Kill,
    KillBadCursor,
    KillNoCursor,
    Cut,
    CutBadCursor,
    CutNoCursor,
}

struct Fork {
    disk: Disk,
    mode: Mode,
    op: u64,
}

fn take_fork(disk: &Disk, op: u64, random: &mut Random, cuts: bool) -> Option<Fork> {
    let mode = match random.below(if cuts { 6 } else { 3 }) {
        0 => Mode::Kill,
        1 => Mode::KillBadCursor,
        2 => Mode::KillNoCursor,
        3 => Mode::Cut,
        4 => Mode::CutBadCursor,
        _ => Mode::CutNoCursor,
    };
    let fork = match mode {
        Mode::Kill | Mode::KillBadCursor | Mode::KillNoCursor => disk.kill(),
        _ => disk.power_cut(random.below(1000) as u64),
    };
    match mode {
        Mode::KillBadCursor | Mode::CutBadCursor if !damage_newest_cursor(&fork) => return None,
        Mode::KillNoCursor | Mode::CutNoCursor => lose_cursors(&fork),
        _ => {}
    }
    Some(Fork { disk: fork, mode, op })
}

fn check(
    fork: &Fork,
    options: &StoreOptions,
    before: &BTreeSet<u64>,
    after: &BTreeSet<u64>,
) -> Result<(), String> {
    let clock = Clock::new();
    let files = (names(&fork.disk, ".seg"), rewritten(&fork.disk));
    let what = |store: &Store| {
        format!("{:?} at {}: files {files:?} {:?}", fork.mode, fork.op, store.recovery())
    };
    let mut store =
        options.open_simulated(&fork.disk, &clock).map_err(|e| format!("{:?}: {e}", fork.mode))?;
    let full = store.recovery().full_walk;
    let first = what(&store);
    if !full && !store.recovery().damaged.is_empty() {
        return Err(format!("damage: {first}"));
    }
    let mut disk = fork.disk.clone();
    if fork.op.is_multiple_of(3) {
        settle(&store);
    }
    if fork.op.is_multiple_of(2) {
        disk = disk.kill();
        store =
            options.open_simulated(&disk, &clock).map_err(|e| format!("{:?}: {e}", fork.mode))?;
        if fork.op.is_multiple_of(4) {
            settle(&store);
        }
    }
    let mut counted = store.stats().messages;
    let mut tags = Vec::new();
    let mut ids = BTreeSet::new();
    for name in store.queue_names() {
        let queue = store.find(&name).unwrap().unwrap();
        store.sync().unwrap();
        let stats = queue.stats().unwrap();
        let got = drain_ids(&queue);
        if stats.ready != got.len() as u64 {
            return Err(format!("{name}: {stats:?}, {} got, {first}", got.len()));
        }
        let (touched, fresh): (Vec<_>, Vec<_>) =
            got.iter().partition(|(_, _, attempt)| *attempt > 1);
        for list in [&touched, &fresh] {
            if !list.is_sorted_by_key(|(id, _, _)| *id) && !full {
                // A message that was released has attempt 1 again, and comes first.
                let descents = list.windows(2).filter(|w| w[0].0 > w[1].0).count();
                if descents > 1 {
                    return Err(format!("{name}: order {list:?} {first}"));
                }
            }
        }
        for (id, tag, _) in got {
            if !ids.insert(id) {
                return Err(format!("id {id} twice in {name}: {first}"));
            }
            counted -= u64::from(tag == TEMPORARY);
            if tag != TEMPORARY {
                tags.push(tag);
            }
        }
    }
    let set: BTreeSet<u64> = tags.iter().copied().collect();
    if counted != tags.len() as u64 {
        return Err(format!("{counted} counted, {} there: {first}", tags.len()));
    }
    let common: BTreeSet<u64> = before.intersection(after).copied().collect();
    if let Some(missing) = common.difference(&set).next() {
        return Err(format!("{missing} is lost: {first}"));
    }
    if !full {
        if set.len() != tags.len() {
            return Err(format!("twice: {first}"));
        }
        let all: BTreeSet<u64> = before.union(after).copied().collect();
        if let Some(extra) = set.difference(&all).next() {
            return Err(format!("{extra} came back: {first}"));
        }
    }
    settle(&store);
    store.close().map_err(|e| format!("close {e}"))?;
    let store = options.open_simulated(&disk, &clock).map_err(|e| e.to_string())?;
    if store.stats().messages != 0 {
        return Err(format!("{} after the drain: {first}", store.stats().messages));
    }
    Ok(())
}

fn stress(seed: u64, durability: Durability, ops: usize, every: u64) {
    let options = Store::options()
        .segment_bytes(SEGMENT_BYTES)
        .durability(durability)
        .delete_durability(durability);
    let cuts = durability == Durability::Sync;
    let (mut disk, clock) = (Disk::new(), Clock::new());
    let mut store = options.open_simulated(&disk, &clock).unwrap();
    let forks: Arc<Mutex<Vec<Fork>>> = Arc::default();
    let watch = |disk: &Disk, salt: u64| {
        let forks = forks.clone();
        let mut random = Random(seed * 7919 + salt * 31 + 1);
        disk.on_operation(Some(Box::new(move |disk, op| {
            if random.below(every as usize) == 0
                && let Some(fork) = take_fork(disk, op, &mut random, cuts)
            {
                forks.lock().unwrap().push(fork);
            }
        })));
    };
    let mut random = Random(seed * 104_729 + 3);
    let declare = |store: &Store| {
        store.queue("dead").unwrap();
        store.declare("b", QueueOptions::new().dead_letter("dead")).unwrap();
        store.queue("a").unwrap();
        store.sync().unwrap();
    };
    declare(&store);
    let mut live: BTreeSet<u64> = BTreeSet::new();
    let mut held: Vec<Delivery> = Vec::new();
    let mut next = 0u64;
    let mut modes: BTreeMap<String, usize> = BTreeMap::new();
    let mut rewrites: BTreeSet<String> = BTreeSet::new();
    watch(&disk, 0);
    for n in 0..ops {
        let before = live.clone();
        let full = live.len() > if n / 600 % 2 == 0 { 60 } else { 140 };
        match random.below(100) {
            0..45 if !full => {
                let name = ["a", "b"][random.below(2)];
                let queue = store.queue(name).unwrap();
                let bytes = match random.below(60) {
                    0 => 20_000,
                    1 => 70_000,
                    2..20 => 20,
                    _ => 1500,
                };
                queue.insert(payload(next, bytes)).unwrap();
                live.insert(next);
                next += 1;
            }
            0..76 => {
                let name = ["a", "a", "a", "b", "b", "b", "dead"][random.below(7)];
                let queue = store.queue(name).unwrap();
                if let Some(delivery) = queue.try_get().unwrap() {
                    let tag = number(delivery.payload());
                    match random.below(20) {
                        0..=2 => held.push(delivery),
                        3 if name == "b" => delivery.bury("x").unwrap(),
                        4 => delivery.release().unwrap(),
                        _ => {
                            live.remove(&tag);
                            delivery.delete().unwrap();
                        }
                    }
                }
            }
            76..80 => {
                if !held.is_empty() {
                    let at = random.below(held.len());
                    let delivery = held.swap_remove(at);
                    let tag = number(delivery.payload());
                    if random.below(2) == 0 {
                        live.remove(&tag);
                        delivery.delete().unwrap();
                    } else {
                        delivery.release().unwrap();
                    }
                }
            }
            88 => {
                let name = format!("temporary{}", random.below(3));
                let queue = store.queue(&name).unwrap();
                if random.below(2) == 0 {
                    queue.insert(payload(TEMPORARY, 300)).unwrap();
                    queue.try_get().unwrap().unwrap().delete().unwrap();
                    store.remove(&name).unwrap();
                }
            }
            89 if random.below(8) == 0 => {
                held.into_iter().for_each(std::mem::forget);
                held = Vec::new();
                disk.on_operation(None);
                let old = store;
                disk = match random.below(3) {
                    0 => {
                        old.close().unwrap();
                        disk
                    }
                    1 if cuts => {
                        old.sync().unwrap();
                        disk.power_cut(random.below(100) as u64)
                    }
                    _ => disk.kill(),
                };
                watch(&disk, n as u64);
                store = options.open_simulated(&disk, &clock).unwrap();
                assert!(store.recovery().damaged.is_empty());
                std::mem::forget(old);
            }
            _ => {
                let most = if random.below(4) == 0 { 30 } else { 4 };
                for _ in 0..random.below(most) {
                    step(&store).unwrap();
                }
            }
        }
        let (lo, hi) = (&before, &live);
        for fork in std::mem::take(&mut *forks.lock().unwrap()) {
            *modes.entry(format!("{:?}", fork.mode)).or_default() += 1;
            if let Err(why) = check(&fork, &options, lo, hi) {
                panic!("seed {seed}, operation {n}: {why}");
            }
        }
        if n % 20 == 0 {
            rewrites.extend(rewritten(&disk));
            assert_eq!(store.stats().messages, live.len() as u64, "seed {seed}, operation {n}");
        }
    }
    println!("seed {seed}: {modes:?}, {} rewritten, {} live of {next}", rewrites.len(), live.len());
}

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("MILLPOND_COMPACTION_SEEDS").ok().and_then(|v| v.parse().ok());
    1..count.unwrap_or(1) + 1
}

#[test]
fn stress_synced() {
    seeds().for_each(|seed| stress(seed, Durability::Sync, 10000, 6));
}

#[test]
fn stress_unsynced_kills() {
    seeds().for_each(|seed| stress(seed, Durability::Process, 10000, 6));
}
