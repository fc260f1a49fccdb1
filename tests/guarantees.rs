//! The promises of `docs/guarantees.md` that need no long run: one small test for each.

use std::time::Duration;

use millpond::testing::{Clock, Disk, Fault, FaultKind, step};
use millpond::{
    Backoff, Delivery, Durability, ErrorKind, Queue, QueueOptions, Store, StoreOptions,
};

const SEGMENT_BYTES: u64 = 64 << 10;

fn options() -> StoreOptions {
    Store::options().segment_bytes(SEGMENT_BYTES)
}

fn open(disk: &Disk, clock: &Clock) -> (Store, Queue) {
    let store = options().open_simulated(disk, clock).unwrap();
    let queue = store.queue("q").unwrap();
    (store, queue)
}

fn get(queue: &Queue) -> Delivery {
    queue.try_get().unwrap().expect("a message is ready")
}

fn fail_next(disk: &Disk, kind: FaultKind) {
    disk.fail(Fault { kind, after: 0, sticky: false });
}

#[test]
fn a_returned_insert_survives_every_power_cut_under_sync() {
    let disk = Disk::new();
    let (_store, queue) = open(&disk, &Clock::new());
    queue.insert("kept").unwrap();
    for seed in 0..50 {
        let (store, queue) = open(&disk.power_cut(seed), &Clock::new());
        assert_eq!(get(&queue).payload(), b"kept", "seed {seed}");
        assert_eq!(store.recovery().damaged, []);
    }
}

#[test]
fn a_batch_survives_whole_or_not_at_all() {
    let disk = Disk::new();
    let (_store, queue) = open(&disk, &Clock::new());
    let states = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = states.clone();
    disk.on_operation(Some(Box::new(move |disk, n| {
        sink.lock().unwrap().extend([disk.kill(), disk.power_cut(n + 2)]);
    })));
    queue.insert_batch(["a", "b", "c"]).unwrap();
    disk.on_operation(None);
    for disk in std::mem::take(&mut *states.lock().unwrap()) {
        let (_store, queue) = open(&disk, &Clock::new());
        let found = queue.stats().unwrap().ready;
        assert!(found == 0 || found == 3, "{found} of 3");
    }
}

#[test]
fn a_synced_delete_never_comes_back() {
    let disk = Disk::new();
    let (store, queue) = open(&disk, &Clock::new());
    queue.insert("done").unwrap();
    get(&queue).delete().unwrap();
    store.sync().unwrap();
    for seed in 0..50 {
        let (_store, queue) = open(&disk.power_cut(seed), &Clock::new());
        assert!(queue.try_get().unwrap().is_none(), "seed {seed}");
    }
}

#[test]
fn a_message_in_flight_comes_back_after_a_kill_with_its_attempt_counted() {
    let mut disk = Disk::new();
    open(&disk, &Clock::new()).1.insert("again").unwrap();
    for attempt in 1..5 {
        disk = disk.kill();
        let (store, queue) = open(&disk, &Clock::new());
        assert_eq!(store.recovery().redelivered, u64::from(attempt > 1));
        let delivery = get(&queue);
        assert_eq!((delivery.payload(), delivery.attempt()), (&b"again"[..], attempt));
        let after_kill = disk.kill();
        drop(delivery);
        disk = after_kill;
    }
}

#[test]
fn a_closed_store_gives_back_uncounted_and_opens_clean() {
    let disk = Disk::new();
    let (store, queue) = open(&disk, &Clock::new());
    queue.insert("held").unwrap();
    let held = get(&queue);
    let closed = store.close_timeout(Duration::ZERO).unwrap();
    assert_eq!((closed.settled, closed.released), (0, 1));
    assert_eq!(held.payload(), b"held");
    assert_eq!(held.delete().unwrap_err().kind(), &ErrorKind::Closed);
    let (store, queue) = open(&disk, &Clock::new());
    assert!(store.recovery().clean);
    assert_eq!(get(&queue).attempt(), 1);
}

#[test]
fn ids_are_never_used_again_after_a_kill_or_a_power_cut() {
    let mut disk = Disk::new();
    let mut highest = 0;
    for seed in 2..20 {
        let (_store, queue) = open(&disk, &Clock::new());
        for _ in 0..3 {
            let id = queue.insert("x").unwrap().as_u64();
            assert!(id > highest, "{id} after {highest}");
            highest = id;
        }
        disk = if seed % 2 == 0 { disk.kill() } else { disk.power_cut(seed) };
    }
}

#[test]
fn after_a_failed_sync_nothing_is_accepted_or_promised_any_more() {
    let disk = Disk::new();
    let (store, queue) = open(&disk, &Clock::new());
    queue.insert("before").unwrap();
    let held = get(&queue);
    fail_next(&disk, FaultKind::Sync);
    let error = queue.insert("lost?").unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Poisoned);
    assert!(error.is_indeterminate() && !error.is_retryable());
    disk.heal();
    let later = queue.insert("later").unwrap_err();
    assert_eq!((later.kind(), later.is_indeterminate()), (&ErrorKind::Poisoned, false));
    assert_eq!(held.delete().unwrap_err().kind(), &ErrorKind::Poisoned);
    assert_eq!(queue.try_get().unwrap_err().kind(), &ErrorKind::Poisoned);
    assert_eq!(store.sync().unwrap_err().kind(), &ErrorKind::Poisoned);
    assert_eq!(store.close().unwrap_err().kind(), &ErrorKind::Poisoned);
    drop((queue, store));
    for seed in 0..20 {
        let (store, queue) = open(&disk.power_cut(seed), &Clock::new());
        assert_eq!(get(&queue).payload(), b"before", "seed {seed}");
        assert_eq!(store.recovery().damaged, []);
    }
}

#[test]
fn after_a_failed_write_to_the_log_nothing_is_accepted_and_whoever_waits_is_told() {
    let disk = Disk::new();
    let (store, queue) = open(&disk, &Clock::new());
    let other = store.queue("other").unwrap();
    queue.insert("before").unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| other.get().map(drop).unwrap_err());
        std::thread::sleep(Duration::from_millis(20));
        fail_next(&disk, FaultKind::Write);
        let error = queue.insert("lost?").unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Poisoned);
        assert!(error.is_indeterminate() && !error.is_retryable());
        assert_eq!(waits.join().unwrap().kind(), &ErrorKind::Poisoned);
    });
    disk.heal();
    let later = queue.insert("later").unwrap_err();
    assert_eq!((later.kind(), later.is_indeterminate()), (&ErrorKind::Poisoned, false));
    assert_eq!(store.close().unwrap_err().kind(), &ErrorKind::Poisoned);
    drop((queue, other, store));
    for disk in [disk.kill(), disk.power_cut(1)] {
        let (store, queue) = open(&disk, &Clock::new());
        assert_eq!(get(&queue).payload(), b"before");
        assert_eq!(store.recovery().damaged, []);
    }
}

#[test]
fn a_full_disk_refuses_inserts_and_takes_deletes() {
    let disk = Disk::new();
    let (store, queue) = open(&disk, &Clock::new());
    let used = |disk: &Disk| -> u64 {
        let files = disk.file_names();
        files.iter().map(|name| disk.read_file(name).unwrap().len() as u64).sum()
    };
    for _ in 0..20 {
        queue.insert(vec![7; 1000]).unwrap();
    }
    while step(&store).unwrap() {}
    disk.set_capacity(Some(used(&disk)));
    let error = loop {
        match queue.insert(vec![7; 1000]) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), &ErrorKind::DiskFull);
    assert!(error.is_retryable() && !error.is_indeterminate());
    let held = queue.stats().unwrap().ready;
    for _ in 0..held {
        get(&queue).delete().unwrap();
    }
    assert_eq!(queue.stats().unwrap(), Default::default());
    // There is space again: the next insert finds it.
    disk.set_capacity(None);
    queue.insert("fits").unwrap();
    assert_eq!(get(&queue).payload(), b"fits");
}

#[test]
fn strict_mode_refuses_damage_and_changes_nothing() {
    let disk = Disk::new();
    let (store, queue) = open(&disk, &Clock::new());
    queue.insert("whole").unwrap();
    queue.insert("hit").unwrap();
    queue.insert("whole too").unwrap();
    let disk = {
        let killed = disk.kill();
        drop((queue, store));
        killed
    };
    let segment = disk.file_names().into_iter().find(|name| name.ends_with(".seg")).unwrap();
    let mut bytes = disk.read_file(&segment).unwrap();
    let at = bytes.windows(3).position(|window| window == b"hit").unwrap();
    bytes[at] ^= 1;
    disk.write_file(&segment, bytes.clone());

    let error = options().strict(true).open_simulated(&disk, &Clock::new()).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Corrupt);
    assert!(error.file_path().is_some_and(|path| path.ends_with(&segment)), "{error}");
    assert!(error.byte_offset().is_some(), "{error}");
    assert_eq!(disk.read_file(&segment).unwrap(), bytes);

    let (store, queue) = open(&disk, &Clock::new());
    assert_eq!(store.recovery().damaged, error.damage(), "the same list");
    let [damage] = &store.recovery().damaged[..] else { panic!("{:?}", store.recovery()) };
    assert!(damage.file.ends_with(&segment) && damage.ids.end - damage.ids.start == 1);
    assert!(disk.file_names().iter().any(|name| name.starts_with("quarantine/")));
    assert_eq!(get(&queue).to_payload().as_ref(), b"whole");
}

#[test]
fn a_lease_follows_the_monotonic_clock_and_a_delay_the_wall_clock() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let lease = QueueOptions::new().lease(Some(Duration::from_secs(60)));
    let queue = store.declare("q", lease.backoff(Backoff::Fixed(Duration::ZERO))).unwrap();
    queue.insert("x").unwrap();
    let held = get(&queue);
    clock.set_wall_ms(clock.wall_ms() + 86_400_000);
    assert!(queue.try_get().unwrap().is_none(), "a day on the wall is no time for a lease");
    clock.advance(Duration::from_secs(60));
    let second = get(&queue);
    assert_eq!(second.attempt(), 2);
    assert_eq!(held.delete().unwrap_err().kind(), &ErrorKind::StaleDelivery);

    second.release_after(Duration::from_secs(60)).unwrap();
    clock.set_wall_ms(clock.wall_ms() - 3_600_000);
    clock.advance(Duration::from_secs(60));
    assert!(
        queue.try_get().unwrap().is_none(),
        "set back by an hour, a delay lasts an hour longer"
    );
    clock.advance(Duration::from_secs(3600));
    get(&queue).delete().unwrap();
}

#[test]
fn under_sync_a_message_is_not_delivered_before_it_is_durable() {
    let disk = Disk::new();
    let (store, queue) = open(&disk, &Clock::new());
    fail_next(&disk, FaultKind::Sync);
    // Its record is in the log, and no sync has covered it.
    queue.insert("x").unwrap_err();
    assert!(queue.peek().unwrap().is_none());
    drop(store);
}

#[test]
fn interval_durability_is_kept_by_the_background_work() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let every = Durability::Interval(Duration::from_millis(50));
    let queue = store.declare("q", QueueOptions::new().durability(every)).unwrap();
    queue.insert("soon").unwrap();
    clock.advance(Duration::from_millis(50));
    while step(&store).unwrap() {}
    for seed in 0..20 {
        let (_store, queue) = open(&disk.power_cut(seed), &Clock::new());
        assert_eq!(get(&queue).payload(), b"soon", "seed {seed}");
    }
}

/// Messages of one length, so that a new one ends exactly where one that was lost ended, and what lay behind that begins.
#[test]
fn what_a_power_cut_leaves_behind_the_end_never_joins_the_log() {
    let open = |disk: &Disk| {
        let options = options().durability(Durability::Process);
        let store = options.open_simulated(disk, &Clock::new()).unwrap();
        let queue = store.queue("q").unwrap();
        (store, queue)
    };
    let disk = Disk::new();
    let (store, queue) = open(&disk);
    store.sync().unwrap();
    for n in 0..8 {
        queue.insert(&[n; 600]).unwrap();
    }
    let mut left_something = 0;
    for seed in 2..300 {
        let left = disk.power_cut(seed);
        let (store, queue) = open(&left);
        left_something += u32::from(!store.recovery().set_aside.is_empty());
        let kept = queue.stats().unwrap().ready;
        for new in 1..8 {
            queue.insert(&[100; 600]).unwrap();
            let (store, queue) = open(&left.kill());
            assert_eq!(store.recovery().damaged, [], "seed {seed}");
            assert_eq!(queue.stats().unwrap().ready, kept + new, "seed {seed}");
        }
    }
    assert!(left_something > 20, "only {left_something} power cuts left something behind the end");
}
