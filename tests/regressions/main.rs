//! Every bug that was found and fixed, as a named case: about damage in [`damage`], about errors of the disk in
//! [`errors`], about what outlives a store in [`held`], and all others here.

mod damage;
mod errors;
mod held;

use millpond::testing::{Clock, Disk, step};
use millpond::{Backoff, Durability, Message, Queue, QueueOptions, State, Store, StoreOptions};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

fn opts() -> StoreOptions {
    Store::options().segment_bytes(64 << 10)
}
fn proc_opts() -> StoreOptions {
    opts().durability(Durability::Process).delete_durability(Durability::Process)
}
fn drain(q: &Queue) -> Vec<Vec<u8>> {
    let mut v = vec![];
    while let Some(d) = q.try_get().unwrap() {
        v.push(d.payload().to_vec());
        d.delete().unwrap();
    }
    v
}
fn steps(s: &Store) {
    for _ in 0..50 {
        if !step(s).unwrap() {
            break;
        }
    }
}

#[test]
fn a_close_ends_when_what_was_in_flight_is_purged() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert("x").unwrap();
    let held = queue.get().unwrap();
    let closed = std::thread::scope(|scope| {
        let closing = scope.spawn(|| store.close_timeout(Duration::from_secs(3600)));
        // Gets end when the close begins.
        while queue.try_get().is_ok() {
            std::thread::yield_now();
        }
        assert_eq!(queue.purge(State::InFlight).unwrap(), 1);
        closing.join().unwrap()
    });
    assert_eq!(closed.unwrap().released, 0);
    std::mem::forget(held);
}

#[test]
fn a_close_ends_when_the_leases_of_what_was_in_flight_have_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let options = QueueOptions::default().lease(Some(Duration::from_millis(20)));
    let queue = store.declare("q", options).unwrap();
    queue.insert("x").unwrap();
    let _held = queue.get().unwrap();
    let closed = store.close_timeout(Duration::from_secs(3600)).unwrap();
    assert_eq!((closed.settled, closed.released), (1, 0));
}

#[test]
fn an_insert_that_returns_during_a_close_is_not_lost() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    q.insert("early").unwrap();
    let slot = Arc::new(Mutex::new(vec![]));
    let (s2, q2) = (slot.clone(), q.clone());
    disk.on_operation(Some(Box::new(move |d, _| {
        if d.file_names().iter().any(|n| n == "cursor.tmp") {
            let r = q2.insert("late");
            s2.lock().unwrap().push(r.map(|i| i.as_u64()).map_err(|e| e.to_string()));
        }
    })));
    store.close().unwrap();
    disk.on_operation(None);
    println!("inserts during close: {:?}", slot.lock().unwrap());
    let ok = slot.lock().unwrap().iter().filter(|r| r.is_ok()).count();
    let store = opts().open_simulated(&disk.kill(), &clock).unwrap();
    println!("recovery {:?}", store.recovery());
    let got = drain(&store.queue("q").unwrap());
    assert_eq!(got.len(), 1 + ok, "{got:?}");
}

#[test]
fn a_kill_within_a_batch_leaves_all_of_it_or_nothing() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    let forks = Arc::new(Mutex::new(vec![]));
    let f2 = forks.clone();
    disk.on_operation(Some(Box::new(move |d, n| f2.lock().unwrap().push((n, d.kill())))));
    q.insert_batch(["a", "b", "c"]).unwrap();
    disk.on_operation(None);
    let mut bad = 0;
    for (n, fork) in forks.lock().unwrap().drain(..) {
        let strict = proc_opts()
            .strict(true)
            .open_simulated(&fork.kill(), &clock)
            .map(|s| {
                let _ = s.close();
            })
            .map_err(|e| e.to_string());
        let store = proc_opts().open_simulated(&fork, &clock).unwrap();
        let got = drain(&store.queue("q").unwrap());
        if !(got.is_empty() || got.len() == 3) || strict.is_err() {
            bad += 1;
            println!(
                "op {n}: {} of 3, strict {strict:?}, damage {:?}",
                got.len(),
                store.recovery().damaged
            );
        }
    }
    assert_eq!(bad, 0);
}

#[test]
fn a_kill_within_a_dead_letter_move_leaves_the_message_in_one_queue() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.declare("q", QueueOptions::new().dead_letter("dlq")).unwrap();
    q.insert("precious").unwrap();
    let d = q.try_get().unwrap().unwrap();
    let forks = Arc::new(Mutex::new(vec![]));
    let f2 = forks.clone();
    disk.on_operation(Some(Box::new(move |d, n| f2.lock().unwrap().push((n, d.kill())))));
    d.bury("why").unwrap();
    disk.on_operation(None);
    let mut bad = 0;
    for (n, fork) in forks.lock().unwrap().drain(..) {
        let store = proc_opts().open_simulated(&fork, &clock).unwrap();
        let a = drain(&store.queue("q").unwrap()).len();
        let b = drain(&store.queue("dlq").unwrap()).len();
        if a + b != 1 {
            bad += 1;
            println!("op {n}: in q {a}, in dlq {b}; damage {:?}", store.recovery().damaged);
        }
    }
    assert_eq!(bad, 0);
}

fn find(hay: &[u8], needle: &[u8]) -> usize {
    hay.windows(needle.len()).position(|w| w == needle).unwrap()
}

#[test]
fn damage_to_a_deleted_message_costs_no_live_one() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    let other = store.queue("other").unwrap();
    for n in 0..10 {
        q.insert(format!("message-{n:04}").as_bytes()).unwrap();
    }
    for _ in 0..9 {
        q.try_get().unwrap().unwrap().delete().unwrap();
    } // 0..=8 deleted, 9 lives
    store.sync().unwrap();
    let disk = disk.kill();
    let seg = "0000000001.seg";
    let mut bytes = disk.read_file(seg).unwrap();
    let at = find(&bytes, b"message-0003");
    bytes[at - 16] ^= 1; // in the header of its frame
    disk.write_file(seg, bytes);
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    println!("{:?}", store.recovery().damaged);
    let (q, other) = (store.queue("q").unwrap(), {
        drop(other);
        store.queue("other").unwrap()
    });
    println!("stats {:?}", q.stats().unwrap());
    for _ in 0..40 {
        other.insert(vec![7u8; 4000].as_slice()).unwrap();
    }
    steps(&store);
    println!("files {:?}", disk.file_names());
    println!("stats {:?}", q.stats().unwrap());
    let got = drain(&q);
    assert_eq!(got, [b"message-0009".to_vec()]);
}

#[test]
fn a_full_walk_past_a_reclaimed_segment_costs_no_live_message() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    let keep = store.queue("keep").unwrap();
    keep.insert("live").unwrap();
    // several segments, all deleted by records in later segments
    let mut held = std::collections::VecDeque::new();
    for n in 0..60 {
        q.insert(vec![n as u8; 4000].as_slice()).unwrap();
        held.push_back(q.try_get().unwrap().unwrap());
        if held.len() > 20 {
            held.pop_front().unwrap().delete().unwrap();
        }
        steps(&store);
    }
    for d in held {
        d.delete().unwrap();
    }
    q.insert("x").unwrap();
    store.sync().unwrap();
    steps(&store);
    steps(&store);
    println!("files before {:?}", disk.file_names());
    let disk = disk.kill();
    for n in disk.file_names() {
        if n.starts_with("cursor.") {
            disk.write_file(&n, vec![1; 200]);
        }
    }
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    println!("damaged {:?}", store.recovery().damaged.len());
    for _ in 0..10 {
        steps(&store);
    }
    let q = store.queue("q").unwrap();
    for _ in 0..40 {
        q.insert(vec![7u8; 4000].as_slice()).unwrap();
    }
    for _ in 0..10 {
        steps(&store);
    }
    println!("files after {:?}", disk.file_names());
    assert_eq!(drain(&store.queue("keep").unwrap()), [b"live".to_vec()]);
}

#[test]
fn a_missing_active_segment_does_not_hang_the_queue() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    for n in 0..30 {
        q.insert(vec![n as u8; 4000].as_slice()).unwrap();
    }
    println!("{:?}", disk.file_names());
    let disk = disk.kill();
    disk.remove_file("0000000001.seg");
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    println!("damaged {:?}", store.recovery().damaged);
    let silent = store.recovery().damaged.is_empty();
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let q = store.queue("q").unwrap();
        tx.send(q.try_get().map(|d| d.is_some())).unwrap();
    });
    let r = rx.recv_timeout(Duration::from_secs(3));
    println!("try_get: {r:?}");
    assert!(!silent && r.is_ok());
}

#[test]
fn a_dead_letter_made_durable_by_another_sync_wakes_its_consumer() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let q = store.declare("q", QueueOptions::new().dead_letter("dlq")).unwrap();
    let a = store.queue("a").unwrap();
    q.insert("m").unwrap();
    let d = q.try_get().unwrap().unwrap();
    let dlq = store.queue("dlq").unwrap();
    let (tx, rx) = mpsc::channel();
    let w = dlq.clone();
    std::thread::spawn(move || {
        let r = w.get_timeout(Duration::from_secs(4));
        tx.send((std::time::Instant::now(), r.map(|d| d.is_some()).ok())).unwrap();
    });
    std::thread::sleep(Duration::from_millis(200));
    d.bury("x").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    a.insert("other").unwrap();
    steps(&store);
    let t = std::time::Instant::now();
    let r = rx.recv_timeout(Duration::from_secs(2));
    println!("{r:?} after {:?}; ready {:?}", t.elapsed(), dlq.stats());
    assert!(r.is_ok());
}

#[test]
fn two_messages_that_become_due_at_once_wake_two_consumers() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store
        .declare(
            "q",
            QueueOptions::new().lease(None).backoff(Backoff::Fixed(Duration::from_millis(300))),
        )
        .unwrap();
    q.insert("1").unwrap();
    q.insert("2").unwrap();
    let (a, b) = (q.try_get().unwrap().unwrap(), q.try_get().unwrap().unwrap());
    a.fail("x").unwrap();
    b.fail("x").unwrap();
    let (tx, rx) = mpsc::channel();
    for _ in 0..2 {
        let (q, tx) = (q.clone(), tx.clone());
        std::thread::spawn(move || {
            let d = q.get_timeout(Duration::from_secs(5)).unwrap();
            tx.send(d.is_some()).unwrap();
            std::thread::sleep(Duration::from_secs(10));
            drop(d);
        });
    }
    std::thread::sleep(Duration::from_millis(100));
    clock.advance(Duration::from_millis(300));
    println!("{:?}", rx.recv_timeout(Duration::from_secs(2)));
    let second = rx.recv_timeout(Duration::from_secs(2));
    println!("{second:?} {:?}", q.stats());
    assert!(second.is_ok());
}

#[test]
fn a_full_walk_does_not_give_ids_out_again() {
    let clock = Clock::new();
    let mut disk = Disk::new();
    let mut last = 0;
    for _ in 0..4 {
        let store = proc_opts().open_simulated(&disk, &clock).unwrap();
        let q = store.queue("q").unwrap();
        for _ in 0..30 {
            last = q.insert(vec![1u8; 4000].as_slice()).unwrap().as_u64();
        }
        drain(&q);
        for _ in 0..20 {
            steps(&store);
        }
        disk = disk.kill();
    }
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    // roll with settle records only
    last = last.max(q.insert("m").unwrap().as_u64());
    for _ in 0..4000 {
        q.try_get().unwrap().unwrap().release().unwrap();
    }
    drain(&q);
    for _ in 0..20 {
        steps(&store);
    }
    println!("{:?} last {last}", disk.file_names());
    let disk = disk.kill();
    for n in disk.file_names() {
        if n.starts_with("cursor.") {
            disk.write_file(&n, vec![1; 200]);
        }
    }
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let names = store.queue_names();
    let q = store.queue("q").unwrap();
    let id = q.insert("n").unwrap().as_u64();
    println!("{names:?} new id {id}, last {last}");
    assert!(id > last);
}

#[test]
fn a_full_walk_finds_the_name_of_a_queue_that_was_declared_again() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("orders").unwrap();
    for _ in 0..20 {
        q.insert(vec![1u8; 4000].as_slice()).unwrap();
    } // crosses into segment 2
    let mut n = 0;
    while n < 17 {
        q.try_get().unwrap().unwrap().delete().unwrap();
        n += 1;
    }
    for _ in 0..20 {
        steps(&store);
    }
    store.sync().unwrap();
    println!("{:?} {:?}", disk.file_names(), q.stats());
    let disk = disk.kill();
    for n in disk.file_names() {
        if n.starts_with("cursor.") {
            disk.write_file(&n, vec![1; 200]);
        }
    }
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    println!("{:?} {:?}", store.queue_names(), store.recovery().renamed_queues);
    assert_eq!(store.queue_names(), ["orders"]);
}

#[test]
fn a_damaged_last_frame_leaves_room_for_what_follows() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    let mut p = b"zeros-behind".to_vec();
    p.resize(2000, 0);
    q.insert(p.as_slice()).unwrap();
    let disk = disk.kill();
    let mut bytes = disk.read_file("0000000001.seg").unwrap();
    let at = find(&bytes, b"zeros-behind");
    bytes[at] ^= 1;
    disk.write_file("0000000001.seg", bytes);
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    println!("{:?}", store.recovery().damaged);
    let q = store.queue("q").unwrap();
    for n in 0..3 {
        q.insert(format!("new-{n}").as_bytes()).unwrap();
    }
    store.close().unwrap();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    println!("{:?} {:?}", store.recovery(), store.queue("q").unwrap().stats());
    assert_eq!(drain(&store.queue("q").unwrap()).len(), 3);
}

#[test]
fn a_queue_that_becomes_a_synced_one_shows_what_was_inserted_before() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    q.insert("m").unwrap();
    let q = store.declare("q", QueueOptions::new().durability(Durability::Sync)).unwrap();
    steps(&store);
    assert!(q.try_get().unwrap().is_some());
}

#[test]
fn a_zeroed_header_of_a_later_segment_is_reported_and_nothing_overwritten() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    for n in 0..20 {
        q.insert(vec![n as u8 + 1; 4000].as_slice()).unwrap();
    }
    let disk = disk.kill();
    let mut b = disk.read_file("0000000002.seg").unwrap();
    println!("nonzero {}", b[4096..].iter().filter(|x| **x != 0).count());
    b[..4096].fill(0);
    disk.write_file("0000000002.seg", b);
    println!(
        "strict {:?}",
        opts().strict(true).open_simulated(&disk.kill(), &clock).err().map(|e| e.to_string())
    );
    let store = opts().open_simulated(&disk, &clock).unwrap();
    println!("{:?} {:?}", store.recovery(), disk.file_names());
    let n = drain(&store.queue("q").unwrap()).len();
    assert!(n == 20 || !store.recovery().damaged.is_empty(), "{n} of 20, nothing reported");
}
#[test]
fn frames_behind_a_clean_cursor_never_join_the_log() {
    let disk = Disk::new();
    let clock = Clock::new();
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    q.insert("early").unwrap();
    let q2 = q.clone();
    let ids = Arc::new(Mutex::new(vec![]));
    let i2 = ids.clone();
    disk.on_operation(Some(Box::new(move |d, _| {
        if d.file_names().iter().any(|n| n == "cursor.tmp")
            && let Ok(i) = q2.insert("late")
        {
            i2.lock().unwrap().push(i.as_u64());
        }
    })));
    store.close().unwrap();
    disk.on_operation(None);
    let disk = disk.kill();
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let q = store.queue("q").unwrap();
    let id = q.insert("new1").unwrap();
    println!("late ids {:?}, new id {:?}", ids.lock().unwrap(), id);
    let store2 = opts().open_simulated(&disk.kill(), &clock).unwrap();
    let got: Vec<String> = drain(&store2.queue("q").unwrap())
        .into_iter()
        .map(|p| String::from_utf8(p).unwrap())
        .collect();
    println!("{got:?} {:?}", store2.recovery());
    assert_eq!(got, ["early", "new1"]);
}

#[test]
fn a_queue_does_not_inherit_the_number_of_one_that_was_removed() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("old").unwrap();
    for _ in 0..3 {
        queue.insert("x").unwrap();
    }
    assert_eq!(drain(&queue).len(), 3);
    drop(queue);
    store.remove("old").unwrap();
    store.close().unwrap();
    drop(store);
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("new").unwrap();
    assert_eq!(queue.stats().unwrap().ready, 0);
    queue.insert("y").unwrap();
    assert_eq!((queue.stats().unwrap().ready, drain(&queue).len()), (1, 1));
}

/// What is left of the file may not even hold its header: then the cursor alone knows that it was longer.
#[test]
fn the_only_segment_cut_off_anywhere_is_reported_as_damage() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for _ in 0..10 {
        queue.insert("promised").unwrap();
    }
    let name = disk.file_names().into_iter().find(|name| name.ends_with(".seg")).unwrap();
    let content = disk.read_file(&name).unwrap();
    for len in [0, 1, 100, 2048, 4095, 4096, 4097, 5000] {
        let left = disk.kill();
        left.write_file(&name, content[..len].to_vec());
        let strict = proc_opts().strict(true).open_simulated(&left.kill(), &clock);
        assert!(strict.is_err(), "cut to {len} bytes");
        let store = proc_opts().open_simulated(&left, &clock).unwrap();
        let recovery = store.recovery();
        let damaged = &recovery.damaged;
        assert!(!damaged.is_empty(), "cut to {len} bytes: {recovery:?}");
        let lost = |id: u64| damaged.iter().any(|damage| damage.ids.contains(&id));
        let queue = store.queue("q").unwrap();
        let found = drain(&queue).len() as u64;
        assert!((found + 1..=10).all(lost), "cut to {len} bytes, {found} are left: {recovery:?}");
        queue.insert("and on").unwrap();
        assert_eq!(drain(&queue).len(), 1);
    }
}

/// That a lease has run out is not in the log, and neither is that it is extended: a cursor in between must not know more.
#[test]
fn a_lease_that_was_extended_after_it_ran_out_counts_as_redelivered() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let lease = Duration::from_secs(1);
    let queue = store.declare("q", QueueOptions::new().lease(Some(lease))).unwrap();
    queue.insert("held").unwrap();
    let held = queue.get().unwrap();
    clock.advance(2 * lease);
    assert_eq!(queue.stats().unwrap().ready, 1);
    let cursors = || -> Vec<_> {
        disk.file_names().into_iter().filter(|name| name.starts_with("cursor")).collect()
    };
    let before = cursors();
    let other = store.queue("other").unwrap();
    while cursors() == before {
        other.insert(vec![1; 10_000]).unwrap();
        steps(&store);
    }
    held.extend(lease).unwrap();
    let left = proc_opts().open_simulated(&disk.kill(), &clock).unwrap();
    assert_eq!(left.recovery().redelivered, 1);
    // Nothing was in flight when the store was closed.
    clock.advance(2 * lease);
    assert_eq!(queue.stats().unwrap().ready, 1);
    store.close().unwrap();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    assert_eq!(store.recovery().redelivered, 0);
}

/// What became of a delayed message was noted in the segment before its own, if the log had gone on with its very insert.
#[test]
fn a_delayed_message_that_begins_a_segment_stays_purged() {
    for key in [None, Some(b"key")] {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = opts().open_simulated(&disk, &clock).unwrap();
        let options = QueueOptions::default().dedup_window(Duration::from_secs(60), 10);
        let queue = store.declare("q", options).unwrap();
        let mut delayed = Message::new(vec![0; 40_000]).delay(Duration::from_secs(1));
        if let Some(key) = key {
            delayed = delayed.dedup_key(&key[..]);
        }
        queue.insert(vec![1; 40_000]).unwrap();
        queue.insert(delayed).unwrap();
        assert_eq!(disk.file_names().iter().filter(|name| name.ends_with(".seg")).count(), 2);
        assert_eq!(queue.purge(State::Delayed).unwrap(), 1);
        store.close().unwrap();
        clock.advance(Duration::from_secs(2));
        let store = opts().open_simulated(&disk, &clock).unwrap();
        assert_eq!(drain(&store.queue("q").unwrap()), [vec![1; 40_000]]);
    }
}

/// The index of a segment whose last messages a power cut had taken was believed again, as soon as the segment had come to
/// end at the same place with others: they were never delivered.
#[test]
fn an_index_of_what_a_power_cut_has_undone_is_not_believed() {
    const SEGMENT: &str = "0000000001.seg";
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let segments = |disk: &Disk| disk.file_names().iter().filter(|n| n.ends_with(".seg")).count();
    let fill = |disk: &Disk, queue: &Queue, byte: u8| {
        let before = segments(disk);
        let mut count = 0;
        while segments(disk) == before {
            queue.insert(vec![byte; 1000]).unwrap();
            count += 1;
        }
        count
    };
    let count = fill(&disk, &queue, 1);
    steps(&store);
    assert!(disk.file_names().iter().any(|name| name == "0000000001.idx"));

    // Of what no sync has covered, the power cut keeps the index and half of the segment.
    let left = disk.power_cut(1);
    let mut bytes = left.read_file(SEGMENT).unwrap();
    bytes[32 << 10..].fill(0);
    left.write_file(SEGMENT, bytes);
    for name in left.file_names() {
        if name.starts_with("cursor.") || name == "0000000002.seg" {
            left.remove_file(&name);
        }
    }
    let store = proc_opts().open_simulated(&left, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let kept = queue.stats().unwrap().ready;
    assert!((10..count).contains(&kept), "{kept} of {count}");
    let more = fill(&left, &queue, 2);
    assert_eq!(kept + more, count, "it ends where it did");
    // Nobody has read it, and its index is not written, when the process dies behind a cursor.
    let left = left.kill();
    let store = proc_opts().open_simulated(&left, &clock).unwrap();
    let left = left.kill();
    drop(store);
    let store = proc_opts().open_simulated(&left, &clock).unwrap();
    assert_eq!(store.stats().damage, []);
    assert_eq!(drain(&store.queue("q").unwrap()).len() as u64, count);
    assert_eq!(store.stats().damage, []);
}

#[test]
fn damage_to_the_first_message_of_an_open_is_reported_with_its_id() {
    // An open that was not clean leaves out four million ids. With messages behind it, and with records alone.
    for more in [true, false] {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = opts().open_simulated(&disk, &clock).unwrap();
        store.queue("q").unwrap().insert("before").unwrap();
        let disk = disk.kill();
        let store = opts().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        let id = queue.insert("the first").unwrap().as_u64();
        match more {
            true => _ = queue.insert("another").unwrap(),
            false => queue.get().unwrap().delete().unwrap(),
        }
        let disk = disk.kill();
        let mut bytes = disk.read_file("0000000001.seg").unwrap();
        let at = find(&bytes, b"the first");
        bytes[at] ^= 1;
        disk.write_file("0000000001.seg", bytes);
        let store = opts().open_simulated(&disk, &clock).unwrap();
        let damage = &store.recovery().damaged;
        assert!(matches!(&damage[..], [damage] if damage.ids.contains(&id)), "{id}: {damage:?}");
        assert!(damage[0].ids.end - damage[0].ids.start < 100, "{damage:?}");
    }
}
