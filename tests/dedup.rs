//! A message with a deduplication key is inserted once: within the window, over restarts, power cuts and compaction.

#[path = "common/small_store.rs"]
mod small_store;

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use millpond::testing::{Clock, Disk, Fault, FaultKind, backup, salvage};
use millpond::{
    Durability, ErrorKind, Message, MessageId, Queue, QueueOptions, State, Store, StoreOptions,
};

use small_store::{number, options, payload, settle};

const MINUTE: Duration = Duration::from_secs(60);

fn open(disk: &Disk, clock: &Clock) -> Store {
    options().open_simulated(disk, clock).unwrap()
}

fn synced() -> StoreOptions {
    options().durability(Durability::Sync).delete_durability(Durability::Sync)
}

fn keyed(n: u64) -> Message<'static> {
    Message::new(payload(n, 100)).dedup_key(format!("key {n}").into_bytes())
}

fn insert(queue: &Queue, n: u64) -> MessageId {
    queue.insert(keyed(n)).unwrap()
}

/// Gets and deletes all, and returns the numbers.
fn take_all(queue: &Queue) -> Vec<u64> {
    let mut all = Vec::new();
    while let Some(delivery) = queue.try_get().unwrap() {
        all.push(number(delivery.payload()));
        delivery.delete().unwrap();
    }
    all
}

fn window(store: &Store, time: Duration, keys: usize) -> Queue {
    store.declare("q", QueueOptions::new().dedup_window(time, keys)).unwrap()
}

/// An insert of `n` finds a message with its key.
fn is_known(queue: &Queue, n: u64) -> bool {
    let before = queue.stats().unwrap().ready;
    insert(queue, n);
    queue.stats().unwrap().ready == before
}

#[test]
fn a_known_key_returns_the_first_id_and_appends_nothing() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = open(&disk, &clock);
    let queue = store.queue("q").unwrap();
    let first = insert(&queue, 7);
    let written = disk.written_bytes();
    let files =
        |disk: &Disk| disk.file_names().iter().map(|n| disk.read_file(n)).collect::<Vec<_>>();
    let before = files(&disk);
    // Whatever else differs.
    let other = Message::new("something else").priority(9).header("x", 1).delay(MINUTE);
    assert_eq!(queue.insert(other.dedup_key(b"key 7")).unwrap(), first);
    assert_eq!(insert(&queue, 7), first);
    assert!(files(&disk) == before && disk.written_bytes() == written, "nothing was appended");
    // Other keys, other queues, and none.
    let others = [insert(&queue, 8), insert(&store.queue("r").unwrap(), 7)];
    let plain = [queue.insert(payload(7, 100)).unwrap(), queue.insert(payload(7, 100)).unwrap()];
    assert!(!others.contains(&first) && plain[0] != plain[1]);
    assert_eq!(take_all(&queue), [7, 8, 7, 7]);
}

#[test]
fn a_key_is_known_though_its_message_is_gone() {
    let store = open(&Disk::new(), &Clock::new());
    let queue = store.queue("q").unwrap();
    let (a, b) = (insert(&queue, 1), insert(&queue, 2));
    queue.get().unwrap().delete().unwrap();
    assert_eq!(queue.purge(State::Ready).unwrap(), 1);
    assert_eq!((insert(&queue, 1), insert(&queue, 2)), (a, b));
    assert_eq!(queue.stats().unwrap().ready, 0);
    // It goes with its queue.
    store.remove("q").unwrap();
    assert_ne!(insert(&store.queue("q").unwrap(), 1), a);
    assert_eq!(queue.insert(keyed(1)).unwrap_err().kind(), &ErrorKind::NotFound);
}

#[test]
fn a_key_is_known_for_the_time_of_its_window() {
    let clock = Clock::new();
    let store = open(&Disk::new(), &clock);
    let queue = window(&store, MINUTE, 100);
    let first = insert(&queue, 1);
    clock.advance(MINUTE - Duration::from_millis(1));
    assert_eq!(insert(&queue, 1), first);
    // A duplicate does not make it any longer.
    clock.advance(Duration::from_millis(1));
    let second = insert(&queue, 1);
    assert_ne!(second, first);
    clock.advance(MINUTE / 2);
    assert_eq!(insert(&queue, 1), second);
}

#[test]
fn of_too_many_keys_the_oldest_is_forgotten() {
    let store = open(&Disk::new(), &Clock::new());
    let queue = window(&store, MINUTE, 3);
    (0..4).for_each(|n| assert!(!is_known(&queue, n)));
    assert!((1..4).all(|n| is_known(&queue, n)));
    assert!(!is_known(&queue, 0) && !is_known(&queue, 1) && is_known(&queue, 3));
    let default = store.queue("other").unwrap();
    (0..2000).for_each(|n| assert!(!is_known(&default, n)));
    assert!((0..2000).all(|n| is_known(&default, n)));
}

#[test]
fn another_window_knows_what_is_left_of_the_one_before() {
    let clock = Clock::new();
    let store = open(&Disk::new(), &clock);
    let queue = window(&store, MINUTE, 10);
    (0..6).for_each(|n| assert!(!is_known(&queue, n)));
    // A smaller one forgets at once.
    window(&store, MINUTE, 2);
    window(&store, MINUTE, 10);
    assert!(is_known(&queue, 4) && is_known(&queue, 5) && !is_known(&queue, 3));
    clock.advance(MINUTE / 2);
    window(&store, MINUTE / 2, 10);
    window(&store, MINUTE * 60, 10);
    assert!((3..6).all(|n| !is_known(&queue, n)));
    clock.advance(MINUTE * 59);
    assert!((3..6).all(|n| is_known(&queue, n)));
}

/// More keys than a checkpoint captures in one go, some of them of messages that are gone.
#[test]
fn keys_are_known_after_kills_closes_and_power_cuts() {
    type End = fn(Store, Disk) -> Disk;
    let ends: [End; 3] = [
        |_, disk| disk.kill(),
        |_, disk| disk.power_cut(3),
        |store, disk| {
            store.close().unwrap();
            disk
        },
    ];
    for end in ends {
        let (mut disk, clock) = (Disk::new(), Clock::new());
        let mut ids = BTreeMap::new();
        for round in 0..4 {
            let store = synced().open_simulated(&disk, &clock).unwrap();
            let queue = store.queue("q").unwrap();
            for (n, id) in &ids {
                assert_eq!(insert(&queue, *n), *id, "round {round}");
            }
            assert_eq!(queue.stats().unwrap().ready, 100 * round);
            for from in (round * 800..(round + 1) * 800).step_by(100) {
                let batch = queue.insert_batch((from..from + 100).map(keyed)).unwrap();
                ids.extend((from..).zip(batch));
            }
            for _ in 0..700 {
                queue.get().unwrap().delete().unwrap();
            }
            if round == 2 {
                settle(&store);
            }
            disk = end(store, disk);
        }
    }
}

#[test]
fn a_window_ends_when_it_would_have_without_a_restart() {
    let (mut disk, clock) = (Disk::new(), Clock::new());
    for closed in [true, false] {
        let store = open(&disk, &clock);
        let queue = window(&store, MINUTE, 3);
        (0..3).for_each(|n| assert!(!is_known(&queue, n)));
        clock.advance(MINUTE / 2);
        insert(&queue, 3);
        if closed {
            store.close().unwrap();
        }
        disk = disk.kill();
        clock.advance(MINUTE / 2);
        let store = open(&disk, &clock);
        let queue = store.queue("q").unwrap();
        assert!(is_known(&queue, 3) && !is_known(&queue, 2));
        clock.advance(MINUTE * 2);
    }
}

#[test]
fn keys_are_known_when_the_segment_of_their_message_is_gone() {
    let (mut disk, clock) = (Disk::new(), Clock::new());
    let mut store = open(&disk, &clock);
    let queue = store.queue("q").unwrap();
    let ids: Vec<MessageId> = (0..1000).map(|n| insert(&queue, n)).collect();
    let segments = |disk: &Disk| disk.file_names().into_iter().filter(|n| n.ends_with(".seg"));
    let of_first = segments(&disk).next().unwrap();
    // Every fiftieth stays, so that the segments are rewritten; then all go.
    let held = queue.get_batch(1000, Duration::ZERO).unwrap();
    let (keep, delete): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|held| number(held.payload()).is_multiple_of(50));
    queue.delete_batch(delete).unwrap();
    settle(&store);
    (0..1000).for_each(|n| assert_eq!(insert(&queue, n), ids[n as usize]));
    assert_eq!(keep[3].dedup_key(), Some(&b"key 150"[..]), "the copy has it, too");
    queue.delete_batch(keep).unwrap();
    (0..300).for_each(|n| assert!(queue.insert(payload(n, 500)).is_ok()));
    settle(&store);
    assert!(segments(&disk).all(|name| name != of_first));
    for close in [false, true, false] {
        let queue = store.queue("q").unwrap();
        (0..1000).for_each(|n| assert_eq!(insert(&queue, n), ids[n as usize]));
        assert_eq!(queue.stats().unwrap().ready, 300);
        if close {
            store.close().unwrap();
        }
        disk = disk.kill();
        store = open(&disk, &clock);
    }
}

#[test]
fn without_cursors_the_keys_are_known_of_what_is_in_the_log() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = open(&disk, &clock);
    let queue = window(&store, MINUTE, 500);
    let ids: Vec<MessageId> = (0..1000).map(|n| insert(&queue, n)).collect();
    settle(&store);
    let disk = disk.kill();
    let cursors: Vec<String> =
        disk.file_names().into_iter().filter(|name| name.starts_with("cursor.")).collect();
    cursors.iter().for_each(|name| disk.remove_file(name));
    let store = open(&disk, &clock);
    assert!(store.recovery().full_walk);
    let queue = store.queue("q").unwrap();
    (500..1000).for_each(|n| assert_eq!(insert(&queue, n), ids[n as usize]));
    assert!(!is_known(&queue, 499));
}

#[test]
fn a_key_that_a_power_cut_has_taken_is_not_known_any_more() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = open(&disk, &clock);
    let queue = store.queue("q").unwrap();
    store.sync().unwrap();
    let id = insert(&queue, 1);
    assert_eq!(insert(&queue, 1), id);
    let left = disk.power_cut(0);
    let queue = open(&left, &clock).queue("q").unwrap();
    assert_ne!(insert(&queue, 1), id);
    assert_eq!(take_all(&queue), [1], "it is not swallowed");
}

#[test]
fn a_batch_inserts_what_is_new_in_one_run() {
    let clock = Clock::new();
    let store = open(&Disk::new(), &clock);
    let queue = store.queue("q").unwrap();
    let known = insert(&queue, 5);
    let batch = || {
        let delayed = Message::new(payload(9, 10)).delay(MINUTE);
        let urgent = keyed(2).priority(3);
        vec![keyed(1), keyed(5), urgent, Message::new(payload(8, 10)), keyed(1), delayed, keyed(5)]
    };
    let ids = queue.insert_batch(batch()).unwrap();
    let first = ids[0].as_u64();
    let row = |n: u64| first + n;
    let expected = [row(0), known.as_u64(), row(1), row(2), row(0), row(3), known.as_u64()];
    assert_eq!(ids.iter().map(|id| id.as_u64()).collect::<Vec<_>>(), expected);
    assert_eq!(take_all(&queue), [2, 5, 1, 8]);
    // Once more: only what has no key is inserted.
    let again = queue.insert_batch(batch()).unwrap();
    let same: Vec<usize> = (0..7).filter(|&n| again[n] == ids[n]).collect();
    assert_eq!(same, [0, 1, 2, 4, 6]);
    assert_eq!(take_all(&queue), [8]);
    clock.advance(MINUTE);
    assert_eq!(take_all(&queue), [9, 9]);
    // All of them known: nothing is appended.
    let all = queue.insert_batch([keyed(1), keyed(2)]).unwrap();
    assert_eq!(all, [ids[0], ids[2]]);
    assert_eq!(queue.stats().unwrap().ready, 0);
    // One that is refused takes the others with it, and their keys.
    let bad = [keyed(30), keyed(31).priority(200)];
    assert_eq!(queue.insert_batch(bad).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    assert!(!is_known(&queue, 30));
}

#[test]
fn a_duplicate_returns_only_when_the_first_one_is_durable() {
    for batch in [false, true] {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = synced().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        insert(&queue, 1);
        let before = disk.operations();
        insert(&queue, 2);
        let each = disk.operations() - before;
        // The insert of the first one stands still in its last operation, which is the sync.
        let (is_syncing, syncing) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let last = disk.operations() + each;
        disk.on_operation(Some(Box::new(move |_, n| {
            if n == last {
                is_syncing.send(()).unwrap();
                may_go_on.recv().unwrap();
            }
        })));
        let (first, again) = (queue.clone(), queue.clone());
        let first = thread::spawn(move || insert(&first, 3));
        syncing.recv_timeout(MINUTE).unwrap();
        let (has_returned, returned) = mpsc::channel();
        let again = thread::spawn(move || {
            let id = match batch {
                true => again.insert_batch([keyed(1), keyed(3)]).unwrap()[1],
                false => insert(&again, 3),
            };
            has_returned.send(()).unwrap();
            id
        });
        assert!(returned.recv_timeout(Duration::from_millis(100)).is_err(), "it has to wait");
        go_on.send(()).unwrap();
        assert_eq!(first.join().unwrap(), again.join().unwrap());
        disk.on_operation(None);
    }
}

/// Whoever is told that nobody knows does it again with the same key, after the reopen: the message is there once.
#[test]
fn a_retry_with_its_key_after_a_failed_sync_leaves_one_message() {
    let (mut survived, mut inserted) = (0, 0);
    for seed in 0..40 {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = synced().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        let before = insert(&queue, 1);
        disk.fail(Fault { kind: FaultKind::Sync, after: 0, sticky: true });
        let error = queue.insert(keyed(2)).unwrap_err();
        assert!(error.is_indeterminate() && *error.kind() == ErrorKind::Poisoned, "{error}");
        // The disk knows of it, and nobody may be told so.
        for n in [1, 2] {
            let error = queue.insert(keyed(n)).unwrap_err();
            assert!(!error.is_indeterminate() && *error.kind() == ErrorKind::Poisoned, "{error}");
        }
        disk.heal();
        let left = if seed == 0 { disk.kill() } else { disk.power_cut(seed) };
        let store = synced().open_simulated(&left, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        match queue.stats().unwrap().ready {
            1 => inserted += 1,
            _ => survived += 1,
        }
        assert_eq!(insert(&queue, 1), before);
        let retried = insert(&queue, 2);
        assert_eq!(insert(&queue, 2), retried);
        let left = left.power_cut(seed);
        let queue = synced().open_simulated(&left, &clock).unwrap().queue("q").unwrap();
        assert_eq!(insert(&queue, 2), retried);
        assert_eq!(take_all(&queue), [1, 2], "seed {seed}");
    }
    assert!(survived > 0 && inserted > 0, "{survived} survived, {inserted} did not");
}

#[test]
fn a_clock_that_is_set_neither_forgets_nor_keeps_keys_while_the_store_is_open() {
    const WALL_MS: u64 = 1_700_000_000_000;
    let (mut disk, clock) = (Disk::new(), Clock::new());
    clock.set_wall_ms(WALL_MS);
    let store = open(&disk, &clock);
    let queue = window(&store, MINUTE, 100);
    insert(&queue, 1);
    for wall_ms in [0, WALL_MS * 2, WALL_MS] {
        clock.set_wall_ms(wall_ms);
        clock.advance(MINUTE / 4);
        assert!(is_known(&queue, 1));
    }
    clock.set_wall_ms(0);
    insert(&queue, 2);
    clock.set_wall_ms(WALL_MS);
    clock.advance(MINUTE / 4);
    assert!(!is_known(&queue, 1) && is_known(&queue, 2));
    // A close says how old they are.
    store.close().unwrap();
    disk = disk.kill();
    let store = open(&disk, &clock);
    let queue = store.queue("q").unwrap();
    clock.advance(MINUTE / 2);
    assert!(is_known(&queue, 1) && is_known(&queue, 2));
    clock.advance(MINUTE / 4);
    assert!(is_known(&queue, 1) && !is_known(&queue, 2));
    insert(&queue, 3);
    store.close().unwrap();
    // Set back while it is closed: they live for one window more at most, however far that is.
    clock.set_wall_ms(0);
    let store = open(&disk, &clock);
    let queue = store.queue("q").unwrap();
    clock.advance(MINUTE - Duration::from_millis(1));
    assert!(is_known(&queue, 3));
    clock.advance(Duration::from_millis(1));
    assert!(!is_known(&queue, 3));
}

#[test]
fn only_the_message_that_was_inserted_with_a_key_has_it() {
    let store = open(&Disk::new(), &Clock::new());
    let options = QueueOptions::new().max_attempts(Some(1)).dead_letter("dead");
    let queue = store.declare("q", options).unwrap();
    let dead = store.queue("dead").unwrap();
    insert(&queue, 1);
    assert_eq!(queue.peek().unwrap().unwrap().dedup_key(), Some(&b"key 1"[..]));
    let delivery = queue.get().unwrap();
    assert_eq!(delivery.dedup_key(), Some(&b"key 1"[..]));
    // A copy is another message.
    queue.insert(&delivery).unwrap();
    assert_eq!(queue.peek().unwrap().unwrap().dedup_key(), None);
    delivery.fail("no").unwrap();
    assert_eq!(dead.peek().unwrap().unwrap().dedup_key(), None);
    assert!(!is_known(&dead, 1) && is_known(&queue, 1));
    assert_eq!(Message::from(&keyed(3)), keyed(3));
}

#[test]
fn a_backup_knows_the_keys_and_what_was_salvaged_has_none() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = open(&disk, &clock);
    let queue = store.queue("q").unwrap();
    let ids: Vec<MessageId> = (0..5).map(|n| insert(&queue, n)).collect();
    let copy = Disk::new();
    backup(&store, &copy).unwrap();
    let copied = open(&copy, &clock).queue("q").unwrap();
    (0..5).for_each(|n| assert_eq!(insert(&copied, n), ids[n as usize]));
    let rescued = open(&Disk::new(), &clock);
    salvage(&disk.kill(), &rescued).unwrap();
    let queue = rescued.queue("q").unwrap();
    assert_eq!(queue.peek().unwrap().unwrap().dedup_key(), None);
    assert_eq!(take_all(&queue), [0, 1, 2, 3, 4]);
    assert!(!is_known(&queue, 0));
}

#[test]
fn keys_and_windows_that_cannot_be_are_refused() {
    let store = open(&Disk::new(), &Clock::new());
    let queue = store.queue("q").unwrap();
    for bytes in [0, 256] {
        let error = queue.insert(Message::new("x").dedup_key(vec![7; bytes])).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert_eq!(error.to_string(), "a deduplication key has 1 to 255 bytes");
    }
    assert_eq!(queue.stats().unwrap().ready, 0);
    for bytes in [1, 255] {
        let message = || Message::new("x").dedup_key(vec![7; bytes]);
        assert_eq!(queue.insert(message()).unwrap(), queue.insert(message()).unwrap());
    }
    let year = Duration::from_secs(366 * 24 * 3600);
    let ms = Duration::from_millis(1);
    for (time, keys) in [(Duration::ZERO, 1), (year + ms, 1), (MINUTE, 0), (MINUTE, 1_000_001)] {
        let refused = store.declare("q", QueueOptions::new().dedup_window(time, keys));
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("a deduplication window"), "{error}");
    }
    for (time, keys) in [(ms, 1), (year, 1_000_000)] {
        window(&store, time, keys);
    }
}
