//! What has become a dead letter, what it tells, and how it comes back.

use std::time::SystemTime;

use millpond::testing::{Clock, Disk};
use millpond::{
    AtLimit, Backoff, Delivery, Durability, ErrorKind, Fate, Message, Queue, QueueOptions, State,
    Store,
};

use super::small_store::SEGMENT_BYTES;
use super::{get_all, insert, ms, number, numbers, open, options, payload, ready, settle};

/// Two queues that share one for dead letters.
fn queues(store: &Store) -> [Queue; 3] {
    let declare = |name, attempts| {
        let options = QueueOptions::new().max_attempts(Some(attempts)).dead_letter("dead");
        store.declare(name, options.backoff(Backoff::Fixed(ms(0)))).unwrap()
    };
    [declare("a", 2), declare("b", 1), store.queue("dead").unwrap()]
}

/// Lets everything in the queue become a dead letter.
fn give_up(queue: &Queue) {
    while let Some(delivery) = queue.try_get().unwrap() {
        let why = format!("reason {}", number(delivery.payload()));
        delivery.fail(why).unwrap();
    }
}

#[test]
fn a_dead_letter_tells_where_it_comes_from_why_and_when() {
    let (mut disk, clock) = (Disk::new(), Clock::new());
    let mut store = options().open_simulated(&disk, &clock).unwrap();
    let [a, _, dead] = queues(&store);
    let id = a.insert(Message::new(payload(7, 100)).priority(3).header("n", 7)).unwrap();
    assert_eq!(a.peek().unwrap().unwrap().origin(), None);
    clock.advance(ms(5000));
    give_up(&a);
    let moved_at = SystemTime::UNIX_EPOCH + ms(clock.wall_ms());
    clock.advance(ms(5000));
    assert_eq!(dead.peek().unwrap().unwrap().origin_id(), id);
    for round in 0..3 {
        if round == 1 {
            store.close().unwrap();
        } else if round == 2 {
            disk = disk.kill();
        }
        if round > 0 {
            store = options().open_simulated(&disk, &clock).unwrap();
        }
        let dead = store.queue("dead").unwrap();
        let delivery = dead.get().unwrap();
        let origin = delivery.origin().unwrap();
        assert_eq!((origin.queue(), origin.reason(), origin.attempts()), ("a", "reason 7", 2));
        assert_eq!((origin.id(), origin.moved_at()), (id, moved_at));
        assert_eq!((delivery.origin_id(), delivery.inserted_at()), (id, moved_at));
        delivery.release().unwrap();
    }
}

#[test]
fn dead_letters_go_back_to_the_queues_that_they_came_from_as_they_were() {
    let store = open(&Disk::new());
    let [a, b, dead] = queues(&store);
    let message =
        |n: u64| Message::new(payload(n, 100)).priority((n % 3) as u8).header("n", n as i64);
    let ids: Vec<_> =
        (0..30).map(|n| [&a, &b][n as usize % 2].insert(message(n)).unwrap()).collect();
    give_up(&a);
    give_up(&b);
    dead.insert("never was anywhere else").unwrap();
    // One of them was got before.
    dead.get().unwrap().release().unwrap();
    assert_eq!(dead.stats().unwrap().ready, 31);

    assert_eq!(dead.redrive(4).unwrap(), 4);
    assert_eq!(dead.redrive(u64::MAX).unwrap(), 26);
    assert_eq!(dead.redrive(u64::MAX).unwrap(), 0);
    assert_eq!((dead.stats().unwrap().ready, a.stats().unwrap().ready), (1, 15));
    for (queue, mut expected) in
        [(&a, Vec::from_iter((0..30).step_by(2))), (&b, (1..30).step_by(2).collect())]
    {
        expected.sort_by_key(|n| std::cmp::Reverse(n % 3));
        let back = get_all(queue);
        assert_eq!(numbers(&back), expected, "in the order of their inserts");
        for delivery in back {
            let n = number(delivery.payload());
            assert_eq!((delivery.attempt(), delivery.origin_id()), (1, ids[n as usize]));
            assert_eq!(u64::from(delivery.priority()), n % 3);
            assert_eq!(delivery.headers().get("n"), Some((n as i64).into()));
            let origin = delivery.origin().unwrap();
            assert_eq!((origin.queue(), origin.id()), (queue.name(), ids[n as usize]));
            assert_eq!(origin.reason(), format!("reason {n}"), "it still tells");
        }
    }
}

#[test]
fn a_message_that_was_brought_back_becomes_a_dead_letter_again_with_the_same_origin_id() {
    let store = open(&Disk::new());
    let [a, b, dead] = queues(&store);
    let id = b.insert("x").unwrap();
    for round in 1..4 {
        assert!(matches!(b.get().unwrap().fail(round).unwrap(), Fate::DeadLettered));
        let origin = dead.peek().unwrap().unwrap();
        let origin = origin.origin().unwrap();
        assert_eq!((origin.id(), origin.reason()), (id, &*round.to_string()));
        // It is at home in the queue that it is brought back to, and goes nowhere from there.
        assert_eq!((dead.redrive(9).unwrap(), b.redrive(9).unwrap()), (1, 0));
    }
    assert_eq!((a.stats().unwrap().ready, b.stats().unwrap().ready), (0, 1));
}

#[test]
fn a_dead_letter_whose_queue_is_gone_stays_and_declares_nothing() {
    let store = open(&Disk::new());
    let [a, b, dead] = queues(&store);
    insert(&a, 0..2);
    insert(&b, 2..4);
    give_up(&a);
    give_up(&b);
    store.remove("a").unwrap();
    assert_eq!(dead.redrive(u64::MAX).unwrap(), 2);
    assert_eq!(store.queue_names(), ["b", "dead"]);
    assert_eq!(ready(&b), [2, 3]);
    let stay = get_all(&dead);
    assert_eq!(numbers(&stay), [0, 1]);
    // Once there is one of that name again, they go there; those in flight stay.
    let mut stay = stay.into_iter();
    stay.next().map(Delivery::release).unwrap().unwrap();
    let a = store.queue("a").unwrap();
    assert_eq!(dead.redrive(u64::MAX).unwrap(), 1);
    assert_eq!(ready(&a), [0]);
    assert_eq!(dead.stats().unwrap().in_flight, 1);
}

#[test]
fn a_redrive_takes_what_is_ready_and_leaves_the_rest() {
    let store = open(&Disk::new());
    let [a, _, dead] = queues(&store);
    insert(&a, 0..5);
    give_up(&a);
    dead.get().unwrap().bury("kept").unwrap();
    dead.get().unwrap().release_after(ms(1000)).unwrap();
    let held = dead.get().unwrap();
    assert_eq!(dead.redrive(0).unwrap(), 0);
    assert_eq!(dead.redrive(10).unwrap(), 2);
    assert_eq!(ready(&a), [3, 4]);
    held.delete().unwrap();
    let stats = dead.stats().unwrap();
    assert_eq!((stats.ready, stats.delayed, stats.buried), (0, 1, 1));
}

#[test]
fn what_was_redriven_is_durable_and_can_be_got_when_it_returns() {
    let disk = Disk::new();
    let options = options().durability(Durability::Sync).delete_durability(Durability::Sync);
    let store = options.open_simulated(&disk, &Clock::new()).unwrap();
    let [a, _, dead] = queues(&store);
    insert(&a, 0..300);
    give_up(&a);
    // Also what is not durable yet, and could not be got.
    assert_eq!(dead.redrive(u64::MAX).unwrap(), 300);
    let got = get_all(&a);
    assert_eq!(numbers(&got), Vec::from_iter(0..300));
    let store = options.open_simulated(&disk.power_cut(1), &Clock::new()).unwrap();
    assert_eq!(store.find("dead").unwrap().unwrap().stats().unwrap().ready, 0);
    assert_eq!(store.find("a").unwrap().unwrap().stats().unwrap().ready, 300);
}

#[test]
fn dead_letters_are_redriven_from_segments_that_are_sealed_and_rewritten() {
    let disk = Disk::new();
    let store = open(&disk);
    let [a, b, dead] = queues(&store);
    for n in 0..400 {
        let queue = if n % 10 == 0 { &b } else { &a };
        queue.insert(payload(n, 900)).unwrap();
        give_up(&b);
    }
    a.purge(State::Ready).unwrap();
    settle(&store);
    store.close().unwrap();
    let store = open(&disk);
    let [_, b, dead] = [store.queue("a").unwrap(), store.queue("b").unwrap(), dead]
        .map(|queue| store.queue(queue.name()).unwrap());
    assert_eq!(dead.redrive(u64::MAX).unwrap(), 40);
    assert_eq!(ready(&b), Vec::from_iter((0..400).step_by(10)));
    settle(&store);
}

#[test]
fn a_redrive_stops_where_a_queue_is_full_and_drops_nothing() {
    let store = open(&Disk::new());
    let one = || QueueOptions::new().max_messages(1).at_limit(AtLimit::DropOldest);
    let dead = store.declare("dead", one()).unwrap();
    let queue = store.declare("q", one().dead_letter("dead")).unwrap();
    insert(&queue, 0..1);
    queue.get().unwrap().bury("broken").unwrap();
    insert(&queue, 1..2);
    let full = dead.redrive(10).unwrap_err();
    assert_eq!(full.kind(), &ErrorKind::QueueFull);
    assert_eq!((ready(&queue), ready(&dead)), (vec![1], vec![0]));
    queue.get().unwrap().delete().unwrap();
    assert_eq!(dead.redrive(10).unwrap(), 1);
    assert_eq!((ready(&queue), ready(&dead)), (vec![0], vec![]));
}

#[test]
fn a_full_disk_stops_a_redrive_where_it_is() {
    let store = options().max_bytes(8 * SEGMENT_BYTES);
    let store = store.open_simulated(&Disk::new(), &Clock::new()).unwrap();
    let [a, _, dead] = queues(&store);
    let mut sent = 0;
    // Two messages in three are dead letters when the disk is full.
    while a.insert(payload(sent, 3000)).is_ok() {
        sent += 1;
        if sent % 3 != 0 {
            give_up(&a);
        }
    }
    let letters = dead.stats().unwrap().ready;
    let messages = store.stats().messages;
    let mut back = 0;
    let full = loop {
        match dead.redrive(u64::MAX) {
            Ok(0) => panic!("it ends with an error if none could be moved"),
            Ok(count) => back += count,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), &ErrorKind::DiskFull);
    assert_eq!(dead.stats().unwrap().ready, letters - back);
    assert_eq!(store.stats().messages, messages, "each is in one of the queues");
}
