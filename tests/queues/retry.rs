//! How long a failed message waits.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use millpond::testing::{Clock, Disk};
use millpond::{Backoff, Delivery, ErrorKind, Fate, QueueOptions, Store};

use super::{get_all, insert, ms, numbers, open, options, settle};

/// How long a message waits that fails now, by the clock that stands still.
fn wait(delivery: Delivery, clock: &Clock) -> Duration {
    let now = SystemTime::UNIX_EPOCH + ms(clock.wall_ms());
    match delivery.fail("no").unwrap() {
        Fate::RetryAt(at) => at.duration_since(now).unwrap(),
        fate => panic!("{fate:?}"),
    }
}

/// A store whose queue has one message, and how long that waits after each of its failures.
fn waits(backoff: Backoff, failures: usize) -> Vec<u64> {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let queue = store.declare("q", QueueOptions::new().backoff(backoff)).unwrap();
    insert(&queue, 0..1);
    (0..failures)
        .map(|_| {
            let wait = wait(queue.get().unwrap(), &clock);
            assert!(wait.is_zero() || queue.try_get().unwrap().is_none());
            clock.advance(wait);
            wait.as_millis() as u64
        })
        .collect()
}

#[test]
fn a_failed_message_waits_as_its_queue_says() {
    assert_eq!(waits(Backoff::Fixed(ms(70)), 3), [70, 70, 70]);
    let exponential = Backoff::Exponential { first: ms(10), max: ms(50), jitter: 0 };
    assert_eq!(waits(exponential, 5), [10, 20, 40, 50, 50]);
    let list = Backoff::List(vec![ms(500), Duration::ZERO, ms(60_000)]);
    assert_eq!(waits(list, 4), [500, 0, 60_000, 60_000]);
    assert_eq!(waits(Backoff::default(), 3), [100, 200, 400]);
}

#[test]
fn messages_that_failed_together_do_not_come_back_together_where_there_is_jitter() {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let backoff = Backoff::Exponential { first: ms(1000), max: ms(60_000), jitter: 30 };
    let queue = store.declare("q", QueueOptions::new().backoff(backoff)).unwrap();
    insert(&queue, 0..100);
    let mut before = BTreeSet::new();
    for longest in [1000, 2000, 4000] {
        let failed = get_all(&queue);
        assert_eq!(failed.len(), 100);
        let waits: BTreeSet<Duration> = failed.into_iter().map(|d| wait(d, &clock)).collect();
        assert!(waits.len() > 60, "{} different waits", waits.len());
        let within = ms(longest * 7 / 10)..=ms(longest);
        assert!(waits.iter().all(|wait| within.contains(wait)), "{waits:?}");
        assert_ne!(waits, before);
        before = waits;
        clock.advance(ms(longest));
    }
}

#[test]
fn a_backoff_is_kept_over_a_kill() {
    let disk = Disk::new();
    let store = open(&disk);
    let list = Backoff::List(vec![ms(500), ms(3000)]);
    store.declare("q", QueueOptions::new().backoff(list)).unwrap();
    insert(&store.queue("q").unwrap(), 0..1);
    drop(store.queue("q").unwrap().get().unwrap());
    settle(&store);
    let clock = Clock::new();
    let disk = disk.kill();
    clock.advance(ms(10_000));
    let store = options().open_simulated(&disk, &clock).unwrap();
    let due = get_all(&store.queue("q").unwrap());
    assert_eq!(numbers(&due), [0]);
    due.into_iter().for_each(|delivery| assert_eq!(wait(delivery, &clock), ms(3000)));
}

fn refused(store: &Store, backoff: Backoff) -> String {
    let error = store.declare("q", QueueOptions::new().backoff(backoff)).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    assert!(store.queue_names().is_empty(), "nothing was declared");
    error.to_string()
}

#[test]
fn a_backoff_that_contradicts_itself_is_refused_when_it_is_declared() {
    let store = open(&Disk::new());
    let exponential = |first, max, jitter| Backoff::Exponential { first, max, jitter };
    assert_eq!(
        refused(&store, exponential(ms(2), ms(1), 0)),
        "a backoff that begins with 2ms cannot be at most 1ms"
    );
    assert_eq!(
        refused(&store, exponential(ms(1), ms(2), 101)),
        "the jitter of a backoff is from 0 to 100 percent"
    );
    let list = |count| Backoff::List(vec![ms(1); count]);
    assert_eq!(refused(&store, list(0)), "a backoff lists from 1 to 100 waits, not 0");
    assert_eq!(refused(&store, list(101)), "a backoff lists from 1 to 100 waits, not 101");
    store.declare("q", QueueOptions::new().backoff(list(100))).unwrap();
}
