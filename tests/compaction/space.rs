//! Space comes back, within the bound, and what stays is whole and in order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millpond::testing::{Clock, Disk};
use millpond::{Delivery, Durability, Queue, State, Store};

use super::small_store::{SEGMENT_BYTES, number, options, payload, settle};

/// All files, with their lengths.
fn files(disk: &Disk) -> Vec<(String, u64)> {
    let length = |name: &String| disk.read_file(name).map_or(0, |content| content.len() as u64);
    disk.file_names().into_iter().map(|name| (name.clone(), length(&name))).collect()
}

/// Twice what is live, with the state that goes with it, and four segments.
fn assert_bounded(disk: &Disk, live: u64) {
    let bytes: u64 = files(disk).iter().map(|(_, bytes)| bytes).sum();
    let is_state = |name: &str| name.starts_with("cursor.") || name.ends_with(".idx");
    let state: u64 =
        files(disk).iter().filter(|(name, _)| is_state(name)).map(|(_, bytes)| bytes).sum();
    let bound = 2 * (live + state) + 4 * SEGMENT_BYTES;
    assert!(bytes <= bound, "{bytes} bytes for {live} live ones: {:?}", files(disk));
}

/// Prints how much was written for each byte of a message, envelope included, and holds it to a bound.
fn assert_written(disk: &Disk, load: &str, message_bytes: u64, bound: f64) {
    let amplification = disk.written_bytes() as f64 / message_bytes as f64;
    println!("{load}: {amplification:.2} bytes written for each byte of a message");
    assert!(amplification <= bound, "{load}: {amplification:.2}");
}

/// What a program leaves that is killed so many times and inserts nothing.
fn kills(mut disk: Disk, clock: &Clock, count: u32) -> Disk {
    for _ in 0..count {
        let store = options().open_simulated(&disk, clock).unwrap();
        disk = disk.kill();
        drop(store);
    }
    disk
}

/// Takes all that is there.
fn drain(queue: &Queue) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(delivery) = queue.try_get().unwrap() {
        all.push(delivery.payload().to_vec());
        delivery.delete().unwrap();
    }
    all
}

/// Each unclean open skips 2^22 ids, so that one segment cannot hold the ids of all: what was chosen could not be rewritten,
/// and its last segment was taken for damaged, one after the other.
#[test]
fn space_comes_back_though_kills_have_skipped_more_ids_than_a_segment_can_hold() {
    let (mut disk, clock) = (Disk::new(), Clock::new());
    for (kills_before, segments) in [(0, 5), (520, 5), (520, 15)] {
        disk = kills(disk, &clock, kills_before);
        let store = options().open_simulated(&disk, &clock).unwrap();
        let (kept, queue) = (store.queue("kept").unwrap(), store.queue("q").unwrap());
        for n in 0..segments {
            kept.insert(payload(n, 1000)).unwrap();
            queue.insert_batch(vec![payload(n, 5000); 11]).unwrap();
            settle(&store);
        }
        disk = disk.kill();
        drop((kept, queue, store));
    }
    let store = options().open_simulated(&disk, &clock).unwrap();
    assert_eq!(drain(&store.queue("q").unwrap()).len(), 25 * 11);
    settle(&store);
    assert_bounded(&disk, 25 * 1040);
    let segments = files(&disk).into_iter().filter(|(name, _)| name.ends_with(".seg")).count();
    assert!(segments <= 6, "{segments} segments");

    let disk = disk.kill();
    let store = options().open_simulated(&disk, &clock).unwrap();
    settle(&store);
    assert_bounded(&disk, 25 * 1040);
    let kept: Vec<Vec<u8>> = [5, 5, 15]
        .into_iter()
        .flat_map(|segments| (0..segments).map(|n| payload(n, 1000)))
        .collect();
    assert_eq!(drain(&store.queue("kept").unwrap()), kept);
    assert_eq!(store.stats().damage, []);
}

#[test]
fn every_hundredth_message_stays_and_the_rest_of_the_disk_comes_back() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut kept = Vec::new();
    for n in 0..10_000 {
        queue.insert(payload(n, 500)).unwrap();
        if n % 50 == 49 {
            settle(&store);
        }
    }
    for n in 0..10_000 {
        let delivery = queue.try_get().unwrap().unwrap();
        if n % 100 == 0 {
            kept.push(delivery);
        } else {
            delivery.delete().unwrap();
        }
        if n % 50 == 49 {
            settle(&store);
        }
    }
    settle(&store);
    assert_bounded(&disk, 100 * 540);
    assert_written(&disk, "every hundredth message stays", 10_000 * 536, 3.0);
    for (at, delivery) in kept.iter().enumerate() {
        assert_eq!(delivery.payload(), payload(at as u64 * 100, 500), "it keeps its bytes");
    }
    kept.into_iter().for_each(|delivery| delivery.release().unwrap());
    for killed in [true, false] {
        let again = match killed {
            true => disk.kill(),
            false => {
                store.close().unwrap();
                disk.clone()
            }
        };
        let store = options().open_simulated(&again, &clock).unwrap();
        assert!(store.recovery().damaged.is_empty(), "{:?}", store.recovery());
        assert_eq!(store.stats().messages, 100);
        let all = drain(&store.queue("q").unwrap());
        let expected: Vec<_> = (0..100).map(|n| payload(n * 100, 500)).collect();
        assert_eq!(all, expected);
        settle(&store);
        assert_bounded(&again, 0);
    }
}

#[test]
fn one_old_message_does_not_hold_what_came_after_it() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let other = store.queue("other").unwrap();
    other.insert("old").unwrap();
    for n in 0..20_000 {
        queue.insert(payload(n, 500)).unwrap();
        let delivery = queue.try_get().unwrap().unwrap();
        assert_eq!(number(delivery.payload()), n);
        delivery.delete().unwrap();
        if n % 50 == 49 {
            settle(&store);
            assert_bounded(&disk, 40);
        }
    }
    assert_written(&disk, "first in, first out, behind one old message", 20_000 * 536, 2.0);
    assert_eq!(drain(&other), [b"old"]);
}

#[test]
fn messages_deleted_at_random_give_their_space_back() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut held: Vec<Delivery> = Vec::new();
    let mut random = 1_u64;
    for n in 0..20_000 {
        queue.insert(payload(n, 500)).unwrap();
        held.push(queue.try_get().unwrap().unwrap());
        if held.len() > 500 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (random >> 33) as usize % held.len();
            held.swap_remove(at).delete().unwrap();
        }
        if n % 50 == 49 {
            settle(&store);
            // The state is in the spare for the next cursor, too.
            assert_bounded(&disk, held.len() as u64 * 536 + 40_000);
        }
    }
    assert_written(&disk, "deleted at random, out of five hundred", 20_000 * 536, 3.0);
}

#[test]
fn buried_messages_and_their_reasons_take_no_more_than_they_need() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let why = "x".repeat(100);
    for n in 0..10_000 {
        queue.insert(payload(n, 500)).unwrap();
        queue.try_get().unwrap().unwrap().bury(&why).unwrap();
        if n % 500 == 499 {
            // Somebody looks at them now and then.
            assert_eq!(queue.purge(State::Buried).unwrap(), 500);
        }
        if n % 50 == 49 {
            settle(&store);
            // The reasons are in both cursors, in what is held back for the next, and in the log until those cover it.
            assert_bounded(&disk, (n % 500 + 1) * 536 + 500 * 240);
        }
    }
    assert_written(&disk, "buried, and purged by the five hundred", 10_000 * 536, 3.0);
}

#[test]
fn a_message_released_for_ever_takes_no_more_than_one() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("again and again").unwrap();
    for n in 0..50_000 {
        queue.try_get().unwrap().unwrap().release().unwrap();
        if n % 100 == 99 {
            settle(&store);
        }
    }
    assert_bounded(&disk, 60);
    println!("released for ever: {} bytes for each round", disk.written_bytes() / 50_000);
    let delivery = queue.try_get().unwrap().unwrap();
    assert_eq!((delivery.payload(), delivery.attempt()), (&b"again and again"[..], 1));
}

#[test]
fn a_delivery_keeps_its_bytes_while_its_segment_is_rewritten_and_removed() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert(payload(7, 5000)).unwrap();
    let held = queue.try_get().unwrap().unwrap();
    let before = files(&disk);
    for n in 0..3000 {
        queue.insert(payload(n, 500)).unwrap();
        queue.try_get().unwrap().unwrap().delete().unwrap();
        if n % 50 == 49 {
            settle(&store);
        }
    }
    let first = &before.iter().find(|(name, _)| name.ends_with(".seg")).unwrap().0;
    assert!(!files(&disk).iter().any(|(name, _)| name == first), "{first} is gone");
    assert_eq!(held.payload(), payload(7, 5000));
    held.delete().unwrap();
    settle(&store);
    assert_bounded(&disk, 0);
    assert_eq!(store.stats().messages, 0);
}

#[test]
fn a_lane_that_has_read_ahead_goes_on_in_the_new_segment() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let (queue, filler) = (store.queue("q").unwrap(), store.queue("filler").unwrap());
    for n in 0..2000 {
        filler.insert(payload(n, 500)).unwrap();
        if n % 20 == 0 {
            queue.insert(payload(n, 8)).unwrap();
        }
        if n % 50 == 49 {
            settle(&store);
        }
    }
    // The lane has read ahead, and then what it has read from is rewritten.
    let first = queue.try_get().unwrap().unwrap();
    assert_eq!(number(first.payload()), 0);
    drain(&filler);
    settle(&store);
    assert_bounded(&disk, 100 * 48);
    let rest: Vec<u64> = drain(&queue).iter().map(|payload| number(payload)).collect();
    assert_eq!(rest, (1..100).map(|n| n * 20).collect::<Vec<_>>());
    first.release().unwrap();
    assert_eq!(drain(&queue).len(), 1);
}

#[test]
fn all_cursors_are_lost_and_the_rewritten_segments_stand_for_the_old_ones() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..5000 {
        queue.insert(payload(n, 500)).unwrap();
    }
    let mut kept = Vec::new();
    for n in 0..5000 {
        let delivery = queue.try_get().unwrap().unwrap();
        if n % 100 == 0 {
            kept.push(n);
            std::mem::forget(delivery);
        } else {
            delivery.delete().unwrap();
        }
        if n % 50 == 49 {
            settle(&store);
        }
    }
    settle(&store);
    let disk = disk.kill();
    for (name, _) in files(&disk) {
        if name.starts_with("cursor.") {
            disk.remove_file(&name);
        }
    }
    let store = options().open_simulated(&disk, &clock).unwrap();
    assert!(store.recovery().full_walk);
    let mut all: Vec<u64> =
        drain(&store.queue("q").unwrap()).iter().map(|payload| number(payload)).collect();
    all.sort_unstable();
    all.dedup();
    let missing: Vec<_> = kept.iter().filter(|n| all.binary_search(n).is_err()).collect();
    assert!(missing.is_empty(), "{missing:?} of {all:?}; {:?}", store.recovery());
}

/// Producers, and consumers that hold some messages for long and delete out of order, on a real disk with its threads.
#[test]
fn traffic_goes_on_beside_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    let stop = AtomicBool::new(false);
    let (inserted, deleted) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(2);
    let left = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if inserted.load(Ordering::Relaxed) - deleted.load(Ordering::Relaxed) > 5000 {
                        std::thread::yield_now();
                        continue;
                    }
                    let n = inserted.fetch_add(1, Ordering::Relaxed);
                    queue.insert(payload(n, 200 + (n % 7) as usize * 100)).unwrap();
                }
            });
        }
        let consumers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut held: Vec<Delivery> = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let Some(delivery) = queue.get_timeout(Duration::from_millis(10)).unwrap()
                        else {
                            continue;
                        };
                        let n = number(delivery.payload());
                        let bytes = 200 + (n % 7) as usize * 100;
                        assert_eq!(delivery.payload(), payload(n, bytes));
                        if n.is_multiple_of(50) && held.len() < 500 {
                            held.push(delivery);
                        } else {
                            delivery.delete().unwrap();
                            deleted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    for delivery in &held {
                        let n = number(delivery.payload());
                        let bytes = 200 + (n % 7) as usize * 100;
                        assert_eq!(delivery.payload(), payload(n, bytes), "held for long");
                    }
                    held
                })
            })
            .collect();
        std::thread::sleep(end - Instant::now());
        stop.store(true, Ordering::Relaxed);
        consumers.into_iter().flat_map(|consumer| consumer.join().unwrap()).collect::<Vec<_>>()
    });
    let expected = inserted.load(Ordering::Relaxed) - deleted.load(Ordering::Relaxed);
    assert_eq!(store.stats().messages, expected);
    drop(left);
    let bound = 2 * expected * 850 + 4 * SEGMENT_BYTES;
    let patience = Instant::now() + Duration::from_secs(60);
    while bytes_in(dir.path()) > bound && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
    let bytes = bytes_in(dir.path());
    assert!(bytes <= bound, "{bytes} for {expected}");
    store.close().unwrap();
    let store = options().open(dir.path()).unwrap();
    assert!(store.recovery().damaged.is_empty());
    let queue = store.queue("q").unwrap();
    let mut seen = BTreeMap::new();
    let patience = Instant::now() + Duration::from_secs(60);
    while (seen.len() as u64) < expected && Instant::now() < patience {
        // Dropped deliveries come back after their backoff.
        if let Some(delivery) = queue.get_timeout(Duration::from_millis(50)).unwrap() {
            *seen.entry(number(delivery.payload())).or_insert(0) += 1;
            delivery.delete().unwrap();
        }
    }
    assert_eq!(seen.len() as u64, expected);
    assert!(seen.values().all(|count| *count == 1));
}

fn bytes_in(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().filter_map(|entry| entry.unwrap().metadata().ok());
    files.filter(|meta| meta.is_file()).map(|meta| meta.len()).sum()
}

/// At full size, on a real disk: `cargo test --release --test compaction ten_gigabytes -- --ignored --nocapture`.
#[test]
#[ignore = "writes 10 GB"]
fn one_old_message_behind_ten_gigabytes() {
    const BYTES: usize = 10 << 10;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::options().durability(Durability::Process).open(dir.path()).unwrap();
    let (queue, other) = (store.queue("q").unwrap(), store.queue("other").unwrap());
    other.insert("old").unwrap();
    let bound = 4 * (64 << 20);
    let mut most = 0;
    for n in 0..1 << 20 {
        queue.insert(payload(n, BYTES)).unwrap();
        let delivery = queue.get().unwrap();
        assert_eq!(number(delivery.payload()), n);
        delivery.delete().unwrap();
        if n % 1000 == 0 {
            most = most.max(bytes_in(dir.path()));
        }
    }
    let patience = Instant::now() + Duration::from_secs(60);
    while bytes_in(dir.path()) > bound && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
    let settled = bytes_in(dir.path());
    println!("at most {} MiB on the way, {} MiB once settled", most >> 20, settled >> 20);
    assert!(settled <= bound, "{settled}");
    assert_eq!(other.get().unwrap().payload(), b"old");
}
