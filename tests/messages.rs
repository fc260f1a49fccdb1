//! What a message can have besides its payload: it is as it was inserted wherever it turns up.

#[path = "common/small_store.rs"]
mod small_store;

use std::time::{Duration, SystemTime};

use millpond::testing::{Clock, Disk};
use millpond::{
    Backoff, Delivery, Error, ErrorKind, HeaderValue, Headers, Message, Queue, QueueOptions, Store,
};

use small_store::{number, options, payload, settle};

fn open(disk: &Disk) -> Store {
    options().open_simulated(disk, &Clock::new()).unwrap()
}

fn a_queue() -> Queue {
    open(&Disk::new()).queue("q").unwrap()
}

/// All that can be got, in order.
fn get_all(queue: &Queue) -> Vec<Delivery> {
    std::iter::from_fn(|| queue.try_get().unwrap()).collect()
}

fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| number(delivery.payload())).collect()
}

fn got(queue: &Queue) -> Vec<u64> {
    numbers(&get_all(queue))
}

fn insert(queue: &Queue, n: u64, priority: u8) {
    queue.insert(Message::new(payload(n, 100)).priority(priority)).unwrap();
}

#[test]
fn what_is_more_urgent_comes_first_and_equals_come_in_order() {
    let queue = a_queue();
    for (n, priority) in (0..).zip([0, 9, 3, 0, 9, 3, 1, 0]) {
        insert(&queue, n, priority);
    }
    assert_eq!(queue.peek().unwrap().unwrap().priority(), 9);
    assert_eq!(got(&queue), [1, 4, 2, 5, 6, 0, 3, 7]);
}

#[test]
fn a_message_that_comes_later_overtakes_if_it_is_more_urgent() {
    let queue = a_queue();
    insert(&queue, 0, 0);
    insert(&queue, 1, 2);
    let first = queue.get().unwrap();
    assert_eq!((number(first.payload()), first.priority()), (1, 2));
    // Nothing of that priority is left, and then there is again.
    let second = queue.get().unwrap();
    assert_eq!(number(second.payload()), 0);
    second.release().unwrap();
    insert(&queue, 2, 2);
    insert(&queue, 3, 9);
    assert_eq!(got(&queue), [3, 2, 0]);
}

#[test]
fn what_was_given_back_comes_before_its_equals_and_behind_what_is_more_urgent() {
    let queue = a_queue();
    (0..3).for_each(|n| insert(&queue, n, 4));
    let first = queue.get().unwrap();
    first.release().unwrap();
    insert(&queue, 3, 5);
    assert_eq!(got(&queue), [3, 0, 1, 2]);
}

#[test]
fn priorities_and_headers_are_there_after_a_kill_and_a_close() {
    let mut disk = Disk::new();
    let store = open(&disk);
    let queue = store.queue("q").unwrap();
    let message = |n: u64| {
        let message = Message::new(payload(n, 100)).priority((n % 10) as u8);
        message.header("n", n as i64).content_type("text/plain")
    };
    (0..1000).for_each(|n| assert!(queue.insert(message(n)).is_ok()));
    // Some were in flight.
    let held = queue.get_batch(150, Duration::ZERO).unwrap();
    disk = disk.kill();
    drop((held, queue, store));
    for _ in 0..2 {
        let store = open(&disk);
        let queue = store.queue("q").unwrap();
        let all = get_all(&queue);
        let mut expected: Vec<u64> = (0..1000).collect();
        expected.sort_by_key(|n| std::cmp::Reverse(n % 10));
        assert!(numbers(&all) == expected, "{:?}", numbers(&all));
        for delivery in &all {
            let n = number(delivery.payload());
            assert_eq!(u64::from(delivery.priority()), n % 10);
            assert_eq!(delivery.headers().get("n").unwrap().as_integer(), Some(n as i64));
            assert_eq!(delivery.headers().content_type(), Some("text/plain"));
        }
        // Gives back what is held, which a drop would count as a failure.
        store.close().unwrap();
    }
}

#[test]
fn a_rewritten_segment_keeps_priorities_and_headers() {
    let store = open(&Disk::new());
    let queue = store.queue("q").unwrap();
    let all: Vec<_> = (0..2000)
        .map(|n| {
            let message = Message::new(payload(n, 500)).priority((n % 3) as u8);
            queue.insert(message.header("n", n as i64)).unwrap()
        })
        .collect();
    let kept = |n: u64| n.is_multiple_of(50);
    let held = get_all(&queue);
    assert_eq!(held.len(), all.len());
    let (keep, delete): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|d| kept(number(d.payload())));
    queue.delete_batch(delete).unwrap();
    keep.into_iter().for_each(|delivery| delivery.release().unwrap());
    let before = store.stats().bytes_on_disk;
    settle(&store);
    assert!(store.stats().bytes_on_disk < before / 4, "the segments were rewritten");
    let left = get_all(&queue);
    assert_eq!(left.len(), 40);
    for delivery in left {
        let n = number(delivery.payload());
        assert_eq!(u64::from(delivery.priority()), n % 3);
        assert_eq!(delivery.headers().get("n"), Some((n as i64).into()));
        delivery.delete().unwrap();
    }
}

#[test]
fn a_dead_letter_keeps_its_priority_and_its_headers() {
    let store = open(&Disk::new());
    let options = QueueOptions::new().max_attempts(Some(1)).dead_letter("dead");
    let queue = store.declare("q", options.backoff(Backoff::Fixed(Duration::ZERO))).unwrap();
    queue.insert(Message::new("a").priority(7).correlation_id("x-1").reply_to("answers")).unwrap();
    queue.get().unwrap().fail("no").unwrap();
    let dead = store.queue("dead").unwrap().get().unwrap();
    assert_eq!(dead.priority(), 7);
    assert_eq!(dead.headers().correlation_id(), Some("x-1"));
    assert_eq!(dead.headers().reply_to(), Some("answers"));
    // And so does one that is inserted anew from a delivery.
    queue.insert(&dead).unwrap();
    dead.delete().unwrap();
    let again = queue.get().unwrap();
    assert_eq!((again.priority(), again.headers().len()), (7, 2));
    again.delete().unwrap();
}

#[test]
fn headers_come_out_as_they_went_in() {
    let queue = a_queue();
    let text = "text".to_owned();
    let message = Message::new("payload")
        .header("string", text.as_str())
        .header("bytes", &b"\0\xFF"[..])
        .header("integer", i64::MIN)
        .header("bool", true)
        .header("bytes", vec![1, 2, 3]);
    let copy = Message::from(&message);
    assert_eq!(copy, message);
    queue.insert(message).unwrap();
    let delivery = queue.get().unwrap();
    let headers = delivery.headers();
    let expected = [
        ("string", HeaderValue::from("text")),
        ("bytes", HeaderValue::from(vec![1, 2, 3])),
        ("integer", HeaderValue::Integer(i64::MIN)),
        ("bool", HeaderValue::Bool(true)),
    ];
    assert_eq!(headers.iter().collect::<Vec<_>>(), expected);
    assert_eq!(headers.get("string").unwrap().as_str(), Some("text"));
    assert_eq!(headers.get("bytes").unwrap().as_bytes(), Some(&[1, 2, 3][..]));
    assert_eq!(headers.get("bool").unwrap().as_bool(), Some(true));
    assert_eq!((headers.get("other"), headers.content_type()), (None, None));
    assert_eq!(delivery.payload(), b"payload");
    delivery.delete().unwrap();
    queue.insert("plain").unwrap();
    let plain = queue.get().unwrap();
    assert!(plain.headers().is_empty() && plain.headers() == Headers::default());
    plain.delete().unwrap();
}

fn delayed(n: u64, ms: u64) -> Message<'static> {
    Message::new(payload(n, 100)).delay(Duration::from_millis(ms))
}

#[test]
fn a_delayed_message_comes_when_it_is_due_and_not_before() {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert(delayed(0, 1000)).unwrap();
    queue.insert(delayed(1, 0)).unwrap();
    queue.insert(Message::new(payload(2, 100)).not_before(SystemTime::UNIX_EPOCH)).unwrap();
    let stats = queue.stats().unwrap();
    assert_eq!((stats.ready, stats.delayed), (2, 1));
    assert_eq!(got(&queue), [1, 2]);
    clock.advance(Duration::from_millis(999));
    // What the helper dropped above is due before.
    let before: Vec<u64> = got(&queue);
    assert!(!before.contains(&0), "{before:?}");
    clock.advance(Duration::from_millis(1));
    let due = queue.get().unwrap();
    assert_eq!((number(due.payload()), due.attempt()), (0, 1));
}

#[test]
fn what_is_due_comes_in_the_order_of_its_times_and_before_what_was_not_delayed() {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for (n, ms) in (0..).zip([500, 300, 400, 300, 0]) {
        queue.insert(delayed(n, ms)).unwrap();
    }
    let batch = [delayed(5, 100), delayed(6, 0), delayed(7, 450)];
    queue.insert_batch(batch).unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(got(&queue), [5, 1, 3, 2, 7, 0, 4, 6]);
}

#[test]
fn delays_go_on_over_kills_and_closes() {
    let (mut disk, clock) = (Disk::new(), Clock::new());
    let mut store = options().open_simulated(&disk, &clock).unwrap();
    for n in 0..300 {
        store.queue("q").unwrap().insert(delayed(n, 1000 * (300 - n))).unwrap();
    }
    for (round, left) in (0..).zip([300, 200, 100, 0u64]) {
        if round % 2 == 0 {
            store.close().unwrap();
        } else {
            disk = disk.kill();
        }
        store = options().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        assert_eq!(queue.stats().unwrap().delayed, left);
        let due = get_all(&queue);
        let expected: Vec<u64> =
            if round == 0 { Vec::new() } else { (left..left + 100).rev().collect() };
        assert_eq!(numbers(&due), expected);
        queue.delete_batch(due).unwrap();
        clock.advance(Duration::from_secs(100));
    }
}

#[test]
fn a_clock_that_is_set_neither_loses_nor_repeats_a_delayed_message() {
    let clock = Clock::new();
    clock.set_wall_ms(1_700_000_000_000);
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert(delayed(0, 1000)).unwrap();
    queue.insert(delayed(1, 60_000)).unwrap();
    clock.set_wall_ms(1_600_000_000_000);
    clock.advance(Duration::from_secs(2000));
    assert_eq!(got(&queue), [], "the wall clock is behind");
    clock.set_wall_ms(1_800_000_000_000);
    let all = get_all(&queue);
    assert_eq!(numbers(&all), [0, 1], "all that is due comes at once");
    queue.delete_batch(all).unwrap();
    clock.set_wall_ms(1_700_000_000_000);
    assert_eq!(queue.stats().unwrap().delayed + queue.stats().unwrap().ready, 0);
}

#[test]
fn whoever_waits_is_woken_when_a_delay_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    let waiting = queue.clone();
    let waiter = std::thread::spawn(move || waiting.get_timeout(Duration::from_secs(60)).unwrap());
    std::thread::sleep(Duration::from_millis(20));
    queue.insert(delayed(7, 50)).unwrap();
    let delivery = waiter.join().unwrap().expect("it comes long before the minute is over");
    assert_eq!(number(delivery.payload()), 7);
}

fn refused(message: Message<'_>) -> Error {
    let queue = a_queue();
    let error = queue.insert(&message).unwrap_err();
    assert_eq!(
        queue.insert_batch([Message::new("good"), message]).unwrap_err().kind(),
        error.kind()
    );
    assert_eq!(queue.stats().unwrap().ready, 0, "nothing was inserted");
    error
}

#[test]
fn a_message_that_asks_for_what_there_is_not_is_refused() {
    let invalid = [
        (Message::new("x").priority(10), "a priority is from 0 to 9, not 10"),
        (
            Message::new("x").delay(Duration::MAX),
            "a message cannot be delayed beyond the year 10889",
        ),
        (Message::new("x").header("", 1), "a header's key has 1 to 255 bytes: \"\""),
        (Message::new("x").header("k".repeat(256), 1), "a header's key has 1 to 255 bytes"),
    ];
    for (message, what) in invalid {
        let error = refused(message);
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(what), "{error}");
    }
    let error = refused(Message::new("x").header("k", vec![0; 65536]));
    assert_eq!(error.kind(), &ErrorKind::TooLarge);
    assert!(error.to_string().contains("headers of"), "{error}");
    let queue = a_queue();
    queue.insert(Message::new("x").priority(9).header("k".repeat(255), vec![0; 60_000])).unwrap();
}

#[test]
fn a_delayed_message_in_a_segment_that_nobody_has_looked_at_is_found() {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let queue = store.queue("q").unwrap();
    // The log goes on in another segment, which only an insert has seen.
    queue.insert(vec![0; 60_000]).unwrap();
    queue.insert(vec![0; 60_000]).unwrap();
    queue.insert(delayed(7, 1000)).unwrap();
    clock.advance(Duration::from_secs(1));
    let due = queue.try_get().unwrap().expect("it is due");
    assert_eq!(number(due.payload()), 7);
    assert_eq!(store.stats().damaged_messages, 0);
}
