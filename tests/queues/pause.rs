//! Queues that are paused, by a call or by themselves.

use std::thread;

use millpond::testing::{Clock, Disk};
use millpond::{
    Backoff, Durability, ErrorKind, Fate, OnDrop, Paused, Queue, QueueOptions, State, Store,
};

use super::small_store::SEGMENT_BYTES;
use super::{get_all, insert, ms, numbers, open, options, payload, ready, settle};

fn paused(store: &Store) -> Option<Paused> {
    store.queue("q").unwrap().stats().unwrap().paused
}

#[test]
fn a_paused_queue_delivers_nothing_and_everything_else_goes_on() {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let queue = store.declare("q", QueueOptions::new().lease(Some(ms(1000)))).unwrap();
    insert(&queue, 0..4);
    let mut held = queue.get_batch(3, ms(0)).unwrap();
    queue.pause().unwrap();
    queue.pause().unwrap();
    assert_eq!(paused(&store), Some(Paused::ByCall));
    assert!(queue.try_get().unwrap().is_none());
    assert!(queue.get_timeout(ms(1)).unwrap().is_none());
    assert!(queue.get_batch(5, ms(1)).unwrap().is_empty());

    insert(&queue, 4..5);
    held.pop().unwrap().delete().unwrap();
    held.pop().unwrap().release().unwrap();
    // It shows what would come.
    assert_eq!(queue.peek().unwrap().unwrap().attempt(), 1);
    assert_eq!(queue.browse(State::Ready).count(), 3);
    let late = held.pop().unwrap();
    clock.advance(ms(1000));
    assert_eq!(queue.stats().unwrap().in_flight, 0);
    assert!(queue.try_get().unwrap().is_none());
    late.delete().unwrap();

    queue.resume().unwrap();
    queue.resume().unwrap();
    assert_eq!(paused(&store), None);
    assert_eq!(ready(&queue), [1, 3, 4]);
}

#[test]
fn a_pause_and_its_end_outlive_kills_closes_and_power_cuts() {
    for durability in [Durability::Sync, Durability::Process] {
        let options = options().durability(durability);
        let mut disk = Disk::new();
        let mut store = options.open_simulated(&disk, &Clock::new()).unwrap();
        store.queue("q").unwrap().insert("x").unwrap();
        for round in 0..18 {
            let expected = (round % 2 == 0).then_some(Paused::ByCall);
            let queue = store.queue("q").unwrap();
            match expected {
                Some(_) => queue.pause().unwrap(),
                None => queue.resume().unwrap(),
            }
            if round % 9 > 5 {
                settle(&store);
            }
            match round / 2 % 3 {
                0 => disk = disk.kill(),
                1 if durability == Durability::Sync => disk = disk.power_cut(round),
                _ => store.close().unwrap(),
            }
            store = options.open_simulated(&disk, &Clock::new()).unwrap();
            assert_eq!(paused(&store), expected, "{durability:?}, round {round}");
            let queue = store.queue("q").unwrap();
            let got = queue.try_get().unwrap();
            assert_eq!(got.is_some(), expected.is_none());
            got.into_iter().for_each(|delivery| delivery.release().unwrap());
        }
    }
}

/// Lets the log go on, with what it held before dead or rewritten.
fn churn(store: &Store, kept: u64) {
    let other = store.queue("other").unwrap();
    for round in 0..6 {
        for n in 0..300 {
            other.insert(payload(n, 800)).unwrap();
        }
        let all = get_all(&other);
        let (_, rest): (Vec<_>, Vec<_>) =
            (0..).zip(all).partition(|(n, _)| kept > 0 && *n == round * kept);
        other.delete_batch(rest.into_iter().map(|(_, delivery)| delivery)).unwrap();
        settle(store);
    }
}

#[test]
fn whether_a_queue_is_paused_is_known_when_all_cursors_are_lost() {
    for (is_paused, kept) in [(true, 0), (false, 0), (true, 7), (false, 7)] {
        let disk = Disk::new();
        let store = open(&disk);
        let queue = store.queue("q").unwrap();
        queue.insert("x").unwrap();
        queue.pause().unwrap();
        churn(&store, kept);
        if !is_paused {
            queue.resume().unwrap();
            churn(&store, kept);
        }
        // Other options say nothing of that.
        store.declare("q", QueueOptions::new().lease(Some(ms(7000)))).unwrap();
        churn(&store, kept);
        let disk = disk.kill();
        for name in disk.file_names().into_iter().filter(|name| name.starts_with("cursor.")) {
            disk.remove_file(&name);
        }
        let store = open(&disk);
        assert!(store.recovery().full_walk);
        assert_eq!(paused(&store), is_paused.then_some(Paused::ByCall), "kept {kept}");
    }
}

#[test]
fn whoever_waits_at_a_paused_queue_is_woken_when_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    queue.pause().unwrap();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let queue = queue.clone();
            thread::spawn(move || queue.get_timeout(ms(60_000)).unwrap().unwrap().delete())
        })
        .collect();
    thread::sleep(ms(20));
    insert(&queue, 0..3);
    thread::sleep(ms(20));
    assert_eq!(queue.stats().unwrap().ready, 3);
    queue.resume().unwrap();
    waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
    queue.pause().unwrap();
    let waiting = queue.clone();
    let waiter = thread::spawn(move || waiting.get().unwrap_err());
    thread::sleep(ms(20));
    store.close().unwrap();
    assert_eq!(waiter.join().unwrap().kind(), &ErrorKind::Closed);
}

#[test]
fn a_queue_is_paused_and_resumed_on_a_full_disk() {
    let store = options().max_bytes(6 * SEGMENT_BYTES);
    let store = store.open_simulated(&Disk::new(), &Clock::new()).unwrap();
    let queue = store.queue("q").unwrap();
    while queue.insert(payload(1, 500)).is_ok() {}
    for _ in 0..2000 {
        queue.pause().unwrap();
        assert!(queue.try_get().unwrap().is_none());
        queue.resume().unwrap();
        queue.try_get().unwrap().unwrap().release().unwrap();
    }
}

fn guarded(store: &Store, limit: u32, max_attempts: Option<u32>) -> Queue {
    let options = QueueOptions::new().pause_after_failures(limit).max_attempts(max_attempts);
    let options = options.backoff(Backoff::Fixed(ms(0))).dead_letter("dead");
    store.declare("q", options.lease(Some(ms(1000)))).unwrap()
}

fn fail_one(queue: &Queue) -> Fate {
    queue.get().unwrap().fail("the mail server is down").unwrap()
}

#[test]
fn a_queue_pauses_itself_after_so_many_failures_in_a_row_and_says_so() {
    let disk = Disk::new();
    let store = open(&disk);
    let queue = guarded(&store, 3, None);
    insert(&queue, 0..10);
    for _ in 0..5 {
        fail_one(&queue);
        fail_one(&queue);
        // One that works, one that is given back and one that is put aside: only the first says that all is well.
        queue.get().unwrap().release().unwrap();
        queue.get().unwrap().delete().unwrap();
    }
    fail_one(&queue);
    queue.get().unwrap().release().unwrap();
    queue.get().unwrap().bury("not this one").unwrap();
    fail_one(&queue);
    assert_eq!(paused(&store), None);
    fail_one(&queue);
    assert_eq!(paused(&store), Some(Paused::ByFailures(3)));
    assert_eq!(paused(&store).unwrap().to_string(), "paused itself after 3 failures in a row");
    assert!(queue.try_get().unwrap().is_none());
    // That is durable, with its reason; a pause by a call changes nothing about it.
    queue.pause().unwrap();
    let store = open(&disk.kill());
    assert_eq!(paused(&store), Some(Paused::ByFailures(3)));
    let queue = store.queue("q").unwrap();
    queue.resume().unwrap();
    for _ in 0..2 {
        fail_one(&queue);
    }
    assert_eq!(paused(&store), None, "it counts anew");
    fail_one(&queue);
    assert_eq!(paused(&store), Some(Paused::ByFailures(3)));
}

#[test]
fn lost_leases_and_dropped_deliveries_count_as_failures_and_released_ones_do_not() {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let queue = guarded(&store, 3, None);
    insert(&queue, 0..3);
    drop(queue.get().unwrap());
    let late = queue.get_batch(2, ms(0)).unwrap();
    clock.advance(ms(1000));
    assert!(queue.try_get().unwrap().is_none());
    assert_eq!(paused(&store), Some(Paused::ByFailures(3)));
    // What failed because its lease was over is not counted twice.
    for delivery in late {
        delivery.fail("late").unwrap();
    }
    queue.resume().unwrap();
    fail_one(&queue);
    let options = QueueOptions::new().pause_after_failures(3).on_drop(OnDrop::Release);
    store.declare("q", options).unwrap();
    (0..5).for_each(|_| drop(queue.get().unwrap()));
    assert_eq!(paused(&store), None);
}

#[test]
fn the_failure_that_pauses_a_queue_gives_no_message_up_and_neither_do_those_in_flight() {
    let store = open(&Disk::new());
    let queue = guarded(&store, 4, Some(1));
    insert(&queue, 0..8);
    let mut held = queue.get_batch(6, ms(0)).unwrap().into_iter();
    let fates: Vec<Fate> = held.by_ref().map(|delivery| delivery.fail("no").unwrap()).collect();
    assert!(fates[..3].iter().all(|fate| *fate == Fate::DeadLettered), "{fates:?}");
    assert!(fates[3..].iter().all(|fate| matches!(fate, Fate::RetryAt(_))), "{fates:?}");
    assert_eq!(store.queue("dead").unwrap().stats().unwrap().ready, 3);
    queue.resume().unwrap();
    let left = get_all(&queue);
    assert_eq!(numbers(&left), [3, 4, 5, 6, 7], "each gets one more attempt");
    assert!(left.iter().all(|delivery| delivery.attempt() == 1));
    left.into_iter().for_each(|delivery| delivery.delete().unwrap());
}

#[test]
fn an_outage_gives_nothing_up_where_the_limit_is_no_more_than_the_attempts() {
    let store = open(&Disk::new());
    let queue = guarded(&store, 3, Some(3));
    insert(&queue, 0..1);
    for _ in 0..4 {
        while let Some(delivery) = queue.try_get().unwrap() {
            delivery.fail("no").unwrap();
        }
        assert_eq!(paused(&store), Some(Paused::ByFailures(3)));
        queue.resume().unwrap();
        queue.get().unwrap().delete().unwrap();
        insert(&queue, 0..1);
    }
    assert_eq!(store.queue("dead").unwrap().stats().unwrap().ready, 0);
}

#[test]
fn what_has_lost_its_last_lease_when_the_queue_pauses_gets_one_more_attempt() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = guarded(&store, 2, Some(1));
    insert(&queue, 0..2);
    let held = queue.get_batch(2, ms(0)).unwrap();
    clock.advance(ms(1000));
    assert!(queue.try_get().unwrap().is_none());
    assert_eq!(paused(&store), Some(Paused::ByFailures(2)));
    let disk = disk.kill();
    drop(held);
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.resume().unwrap();
    let again = get_all(&queue);
    assert_eq!(numbers(&again), [0, 1]);
    assert!(again.iter().all(|delivery| delivery.attempt() == 1));
    queue.delete_batch(again).unwrap();
}

#[test]
fn a_salvaged_queue_is_paused_as_it_was() {
    let disk = Disk::new();
    let store = open(&disk);
    let queue = store.queue("q").unwrap();
    insert(&queue, 0..3);
    queue.pause().unwrap();
    store.close().unwrap();
    let saved = open(&Disk::new());
    millpond::testing::salvage(&disk, &saved).unwrap();
    assert_eq!((paused(&saved), saved.stats().messages), (Some(Paused::ByCall), 3));
}

/// A queue with a lease of a second that pauses itself after `limit` failures and gives up after `most`, with messages 0
/// and 1, and its dead letter queue.
fn in_an_outage(store: &Store, limit: u32, most: u32) -> (Queue, Queue) {
    let dead = store.queue("dead").unwrap();
    let options = QueueOptions::new().pause_after_failures(limit).max_attempts(Some(most));
    let options = options.lease(Some(ms(1000))).backoff(Backoff::Fixed(ms(0)));
    let queue = store.declare("q", options.dead_letter("dead")).unwrap();
    insert(&queue, 0..2);
    (queue, dead)
}

#[test]
fn what_loses_its_lease_while_its_queue_is_paused_by_failures_has_one_more_attempt() {
    for noticed in [false, true] {
        for kill in [false, true] {
            let (mut disk, clock) = (Disk::new(), Clock::new());
            let mut store = options().open_simulated(&disk, &clock).unwrap();
            let (mut queue, mut dead) = in_an_outage(&store, 1, 1);
            let held = queue.get_batch(2, ms(0)).unwrap();
            let mut held = held.into_iter();
            held.next().unwrap().fail("the other end is down").unwrap();
            assert_eq!(paused(&store), Some(Paused::ByFailures(1)));
            std::mem::forget(held);
            clock.advance(ms(2000));
            if noticed {
                assert_eq!(queue.stats().unwrap().in_flight, 0);
            }
            if kill {
                disk = disk.kill();
                store = options().open_simulated(&disk, &clock).unwrap();
                (queue, dead) = (store.queue("q").unwrap(), store.queue("dead").unwrap());
            }
            queue.resume().unwrap();
            assert_eq!(ready(&queue), [0, 1], "noticed {noticed}, kill {kill}");
            assert_eq!(dead.stats().unwrap().ready, 0);
        }
    }
}

#[test]
fn an_outage_in_which_somebody_pauses_or_resumes_the_queue_gives_nothing_up() {
    for pauses in [false, true] {
        let clock = Clock::new();
        let store = options().open_simulated(&Disk::new(), &clock).unwrap();
        let (queue, dead) = in_an_outage(&store, 3, 3);
        for _ in 0..2 {
            queue.get().unwrap().fail("the other end is down").unwrap();
        }
        std::mem::forget(queue.get().unwrap());
        if pauses {
            queue.pause().unwrap();
        }
        clock.advance(ms(2000));
        // The third failure is noticed, and nothing paused for it yet.
        assert_eq!(queue.stats().unwrap().in_flight, 0);
        queue.resume().unwrap();
        assert_eq!(paused(&store), None);
        assert_eq!(ready(&queue), [0, 1]);
        assert_eq!((paused(&store), dead.stats().unwrap().ready), (None, 0));
    }
}

#[test]
fn a_pause_that_a_queue_makes_by_itself_survives_a_power_cut_under_sync() {
    let options = options().durability(Durability::Sync).delete_durability(Durability::Sync);
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options.open_simulated(&disk, &clock).unwrap();
    let guard = QueueOptions::new().pause_after_failures(1).lease(Some(ms(10_000)));
    let queue = store.declare("q", guard).unwrap();
    queue.insert("x").unwrap();
    std::mem::forget(queue.get().unwrap());
    clock.advance(ms(5000));
    // What the get has recorded is synced.
    settle(&store);
    clock.advance(ms(5000));
    assert!(queue.try_get().unwrap().is_none());
    assert_eq!(paused(&store), Some(Paused::ByFailures(1)));
    clock.advance(ms(1000));
    settle(&store);
    for seed in 0..20 {
        let after = options.open_simulated(&disk.power_cut(seed), &clock).unwrap();
        assert_eq!(paused(&after), Some(Paused::ByFailures(1)));
    }
}
