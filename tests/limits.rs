//! Queues with limits: what an insert does that finds no room, and that no limit is ever exceeded.

#[path = "common/got.rs"]
mod got;
#[path = "common/small_store.rs"]
mod small_store;

use std::thread;
use std::time::{Duration, Instant};

use millpond::testing::{Clock, Disk, Fault, FaultKind};
use millpond::{
    AtLimit, Durability, Error, ErrorKind, Message, MessageId, Queue, QueueOptions, State, Store,
};

use got::{get_all, numbers};
use small_store::{number, options, payload, settle};

fn open(disk: &Disk) -> Store {
    options().open_simulated(disk, &Clock::new()).unwrap()
}

fn limited(options: QueueOptions) -> Queue {
    open(&Disk::new()).declare("q", options).unwrap()
}

fn at_most(messages: u64, at_limit: AtLimit) -> QueueOptions {
    QueueOptions::new().max_messages(messages).at_limit(at_limit)
}

fn insert(queue: &Queue, n: u64) -> Result<MessageId, Error> {
    queue.insert(payload(n, 100))
}

fn is_full<T: std::fmt::Debug>(inserted: Result<T, Error>) {
    let error = inserted.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::QueueFull, "{error}");
    assert!(error.is_retryable());
}

#[test]
fn a_full_queue_rejects_inserts_until_there_is_room() {
    let queue = limited(at_most(3, AtLimit::Reject));
    (0..3).for_each(|n| assert!(insert(&queue, n).is_ok()));
    is_full(insert(&queue, 3));
    is_full(queue.insert_timeout(payload(3, 100), Duration::from_secs(60)));
    // Held, delayed and buried ones count as well.
    let held = queue.get().unwrap();
    is_full(insert(&queue, 3));
    held.release_after(Duration::from_secs(5)).unwrap();
    queue.get().unwrap().bury("broken").unwrap();
    is_full(insert(&queue, 3));
    queue.get().unwrap().delete().unwrap();
    insert(&queue, 3).unwrap();
    is_full(insert(&queue, 4));
    queue.purge(State::Buried).unwrap();
    insert(&queue, 4).unwrap();
    assert_eq!(numbers(&get_all(&queue)), [3, 4]);
}

#[test]
fn a_batch_finds_room_for_all_of_it_or_none() {
    let queue = limited(at_most(5, AtLimit::Reject));
    let batch = |numbers: std::ops::Range<u64>| queue.insert_batch(numbers.map(|n| payload(n, 50)));
    batch(0..3).unwrap();
    is_full(batch(3..6));
    assert_eq!(queue.stats().unwrap().ready, 3);
    batch(3..5).unwrap();
    queue.purge(State::Ready).unwrap();
    let error = batch(0..6).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TooLarge, "it can never fit: {error}");
    // With keys, what is known needs no room.
    let keyed = |keys: [&[u8]; 3]| {
        queue.insert_batch(keys.map(|key| Message::new("x").dedup_key(key.to_vec())))
    };
    keyed([b"a", b"b", b"c"]).unwrap();
    keyed([b"a", b"d", b"e"]).unwrap();
    keyed([b"a", b"b", b"e"]).unwrap();
    is_full(keyed([b"a", b"b", b"f"]));
    assert_eq!(queue.stats().unwrap().ready, 5);
}

#[test]
fn an_insert_waits_for_room_and_not_longer_than_it_was_told_to() {
    let queue = limited(at_most(2, AtLimit::Block));
    insert(&queue, 0).unwrap();
    insert(&queue, 1).unwrap();
    is_full(queue.try_insert(payload(2, 100)));
    let begin = Instant::now();
    is_full(queue.insert_timeout(payload(2, 100), Duration::from_millis(30)));
    assert!(begin.elapsed() >= Duration::from_millis(30));
    let waiting: Vec<_> = (2..6)
        .map(|n| {
            let queue = queue.clone();
            thread::spawn(move || match n % 2 {
                0 => insert(&queue, n).unwrap(),
                _ => queue.insert_timeout(payload(n, 100), Duration::from_secs(600)).unwrap(),
            })
        })
        .collect();
    // One leaves, one comes in.
    let mut got = Vec::new();
    while got.len() < 6 {
        let stats = queue.stats().unwrap();
        assert!(stats.ready + stats.in_flight <= 2, "{stats:?}");
        if let Some(delivery) = queue.get_timeout(Duration::from_secs(60)).unwrap() {
            got.push(number(delivery.payload()));
            delivery.delete().unwrap();
        }
    }
    waiting.into_iter().for_each(|thread| assert!(thread.join().is_ok()));
    got.sort_unstable();
    assert_eq!(got, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn whoever_waits_for_room_ends_with_the_queue_and_the_store() {
    for how in ["close", "remove", "raise", "purge", "expire"] {
        let clock = Clock::new();
        let store = options().open_simulated(&Disk::new(), &clock).unwrap();
        let queue = store.declare("q", at_most(1, AtLimit::Block)).unwrap();
        queue.insert(Message::new("x").ttl(Duration::from_secs(1))).unwrap();
        let waiting = queue.clone();
        let waiter = thread::spawn(move || insert(&waiting, 1));
        thread::sleep(Duration::from_millis(20));
        match how {
            "close" => store.close().unwrap(),
            "remove" => {
                // It is not empty before, and not full after the purge: whoever is first.
                queue.purge(State::Ready).unwrap();
                while store.remove("q").is_err() {
                    queue.purge(State::Ready).unwrap();
                }
            }
            "raise" => drop(store.declare("q", at_most(2, AtLimit::Block)).unwrap()),
            // It may find what the waiter has inserted, too.
            "purge" => assert!((1..=2).contains(&queue.purge(State::Ready).unwrap())),
            _ => {
                clock.advance(Duration::from_secs(1));
                settle(&store);
            }
        }
        let outcome = waiter.join().unwrap();
        match how {
            "close" => assert_eq!(outcome.unwrap_err().kind(), &ErrorKind::Closed),
            "remove" => {}
            _ => assert!(outcome.is_ok(), "{outcome:?}"),
        }
    }
}

#[test]
fn the_oldest_of_the_least_urgent_make_room() {
    let queue = limited(at_most(4, AtLimit::DropOldest));
    for (n, priority) in [(0, 0), (1, 5), (2, 0), (3, 5)] {
        queue.insert(Message::new(payload(n, 100)).priority(priority)).unwrap();
    }
    insert(&queue, 4).unwrap();
    assert_eq!(queue.stats().unwrap().ready, 4);
    // Held messages stay; what was given back is older than what nobody has touched.
    let held = queue.get().unwrap();
    assert_eq!(number(held.payload()), 1);
    queue.insert_batch([payload(5, 10), payload(6, 10)]).unwrap();
    assert_eq!(numbers(&get_all(&queue)), [3, 5, 6]);
    is_full(insert(&queue, 7));
    held.release().unwrap();
    insert(&queue, 8).unwrap();
    assert_eq!(numbers(&get_all(&queue)), [8]);
}

#[test]
fn a_batch_that_needs_all_the_room_there_is_drops_each_message_once() {
    let queue = limited(at_most(4, AtLimit::DropOldest));
    for (n, priority) in [(0, 2), (1, 0), (2, 0), (3, 2)] {
        queue.insert(Message::new(payload(n, 100)).priority(priority)).unwrap();
    }
    get_all(&queue).into_iter().for_each(|delivery| delivery.release().unwrap());
    queue.insert_batch((4..8).map(|n| payload(n, 10))).unwrap();
    assert_eq!(queue.stats().unwrap().delayed, 0);
    assert_eq!(numbers(&get_all(&queue)), [4, 5, 6, 7]);
}

#[test]
fn what_makes_room_moves_to_the_dead_letter_queue_if_there_is_one() {
    let store = open(&Disk::new());
    let options = at_most(2, AtLimit::DropOldest).dead_letter("dead");
    let queue = store.declare("q", options).unwrap();
    (0..5).for_each(|n| assert!(insert(&queue, n).is_ok()));
    assert_eq!(numbers(&get_all(&queue)), [3, 4]);
    assert_eq!(numbers(&get_all(&store.queue("dead").unwrap())), [0, 1, 2]);
}

#[test]
fn a_full_dead_letter_queue_leaves_its_messages_buried_where_they_are() {
    let store = open(&Disk::new());
    let queue = store.declare("q", QueueOptions::new().dead_letter("dead")).unwrap();
    let dead = store.declare("dead", at_most(1, AtLimit::Block)).unwrap();
    (0..3).for_each(|n| assert!(insert(&queue, n).is_ok()));
    get_all(&queue).into_iter().for_each(|delivery| delivery.bury("no").unwrap());
    assert_eq!((dead.stats().unwrap().ready, queue.stats().unwrap().buried), (1, 2));
    // Or they push out the oldest.
    store.declare("dead", at_most(1, AtLimit::DropOldest)).unwrap();
    insert(&queue, 3).unwrap();
    queue.get().unwrap().bury("no").unwrap();
    assert_eq!(numbers(&get_all(&dead)), [3]);
}

/// How many messages of so many bytes find room.
fn fill(queue: &Queue, bytes: usize) -> u64 {
    let mut n = 0;
    while queue.try_insert(payload(n, bytes)).is_ok() {
        n += 1;
    }
    n
}

#[test]
fn a_limit_in_bytes_counts_what_messages_take() {
    let mut disk = Disk::new();
    let mut store = open(&disk);
    let options = || QueueOptions::new().max_bytes(100_000).at_limit(AtLimit::Reject);
    let queue = store.declare("q", options()).unwrap();
    // 128 bytes each, and a large one that takes as much as ten of them.
    let all = fill(&queue, 100);
    assert_eq!(all, 100_000 / 128);
    get_all(&queue).into_iter().for_each(|delivery| delivery.release().unwrap());
    for round in 0..4 {
        match round {
            0 => {}
            1 => store.close().unwrap(),
            _ => disk = disk.kill(),
        }
        if round > 0 {
            store = open(&disk);
        }
        let queue = store.declare("q", options()).unwrap();
        is_full(queue.insert(payload(0, 100)));
        is_full(queue.insert(payload(0, 1253)));
        let taken = queue.get_batch(10, Duration::ZERO).unwrap();
        assert_eq!(taken.len(), 10);
        queue.delete_batch(taken).unwrap();
        queue.insert(payload(0, 1253)).unwrap();
        is_full(queue.insert(payload(0, 100)));
        // It has to be counted anew, over several segments.
        let held = queue.get_batch(5, Duration::ZERO).unwrap();
        assert_eq!(queue.purge(State::InFlight).unwrap(), 5);
        drop(held);
        assert_eq!(fill(&queue, 100), 5);
        settle(&store);
    }
    let queue = store.queue("q").unwrap();
    queue.purge(State::Ready).unwrap();
    assert_eq!(fill(&queue, 100), all);
}

#[test]
fn messages_of_any_size_make_room_in_bytes() {
    let options = QueueOptions::new().max_bytes(50_000).at_limit(AtLimit::DropOldest);
    let queue = limited(options);
    let (mut inserted, mut kept) = (0, 0);
    for n in 0..2000 {
        let bytes = (n as usize * 7919) % 3000;
        insert_of(&queue, n, bytes);
        inserted += 1;
        if n % 100 == 0 {
            kept = queue.stats().unwrap().ready;
        }
    }
    assert!(inserted == 2000 && kept > 10);
    let all = get_all(&queue);
    let taken: usize = all.iter().map(|delivery| delivery.payload().len() + 27).sum();
    assert!((40_000..=50_000).contains(&taken), "{taken}");
    let numbers = numbers(&all);
    assert_eq!(numbers, (2000 - numbers.len() as u64..2000).collect::<Vec<_>>(), "the newest");
    let error = queue.insert(payload(0, 50_000)).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TooLarge);
}

fn insert_of(queue: &Queue, n: u64, bytes: usize) {
    queue.insert(payload(n, bytes)).unwrap();
}

#[test]
fn many_producers_and_consumers_never_exceed_a_limit() {
    for at_limit in [AtLimit::Block, AtLimit::DropOldest] {
        let options = QueueOptions::new().max_messages(20).max_bytes(10_000).at_limit(at_limit);
        let queue = limited(options);
        let producers: Vec<_> = (0..4)
            .map(|producer| {
                let queue = queue.clone();
                thread::spawn(move || {
                    for n in 0..500 {
                        insert_of(&queue, producer * 1000 + n, (n as usize * 131) % 900);
                    }
                })
            })
            .collect();
        let mut got = 0;
        while !producers.iter().all(|p| p.is_finished()) || queue.stats().unwrap().ready > 0 {
            let stats = queue.stats().unwrap();
            assert!(stats.ready + stats.in_flight <= 20, "{stats:?}");
            let taken = queue.get_batch(3, Duration::from_millis(1)).unwrap();
            got += queue.delete_batch(taken).unwrap().deleted;
        }
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert!(if at_limit == AtLimit::Block { got == 2000 } else { got <= 2000 }, "{got}");
        assert_eq!(queue.store().stats().messages, 0);
    }
}

#[test]
fn limits_that_contradict_themselves_or_what_is_there_are_refused() {
    let store = open(&Disk::new());
    for options in [
        QueueOptions::new().max_messages(0),
        QueueOptions::new().max_bytes(0),
        QueueOptions::new().at_limit(AtLimit::Reject),
    ] {
        let error = store.declare("q", options).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    }
    let queue = store.queue("q").unwrap();
    (0..10).for_each(|n| assert!(insert(&queue, n).is_ok()));
    for options in [QueueOptions::new().max_messages(9), QueueOptions::new().max_bytes(1279)] {
        let error = store.declare("q", options).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains("has 10 messages"), "{error}");
        insert(&queue, 10).expect("nothing was changed");
        queue.get().unwrap().delete().unwrap();
    }
    store.declare("q", QueueOptions::new().max_messages(10).max_bytes(1280)).unwrap();
    is_full(queue.try_insert("x"));
}

#[test]
fn limits_are_kept_over_restarts() {
    let mut disk = Disk::new();
    let mut store = open(&disk);
    store.declare("q", at_most(2, AtLimit::Reject)).unwrap();
    for n in 0..4 {
        let queue = store.queue("q").unwrap();
        if n < 2 {
            insert(&queue, n).unwrap();
        } else {
            is_full(insert(&queue, n));
        }
        if n % 2 == 0 {
            store.close().unwrap();
        } else {
            disk = disk.kill();
        }
        store = open(&disk);
    }
}

#[test]
fn given_back_messages_of_several_priorities_make_room_once_each() {
    let disk = Disk::new();
    let store = open(&disk);
    let queue = store.declare("q", at_most(4, AtLimit::DropOldest)).unwrap();
    for (n, priority) in [(0, 0), (1, 5), (2, 5), (3, 5)] {
        queue.insert(Message::new(payload(n, 100)).priority(priority)).unwrap();
    }
    get_all(&queue).into_iter().for_each(|delivery| delivery.release().unwrap());
    queue.insert_batch((4..7).map(|n| payload(n, 100))).unwrap();
    assert_eq!(queue.stats().unwrap().ready, 4);
    let store = open(&disk.kill());
    assert_eq!(store.stats().messages, 4, "none of them is counted as deleted twice");
    assert_eq!(numbers(&get_all(&store.queue("q").unwrap())), [3, 4, 5, 6]);
}

#[test]
fn what_was_held_too_long_is_ready_to_make_room() {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let lease = Duration::from_secs(1);
    let queue = store.declare("q", at_most(2, AtLimit::DropOldest).lease(Some(lease))).unwrap();
    (0..2).for_each(|n| assert!(insert(&queue, n).is_ok()));
    let held = get_all(&queue);
    is_full(insert(&queue, 2));
    clock.advance(lease);
    insert(&queue, 2).unwrap();
    assert_eq!(numbers(&get_all(&queue)), [1, 2]);
    drop(held);
}

#[test]
fn an_insert_whose_queue_cannot_be_counted_fails_and_can_be_tried_again() {
    for after in 0..3 {
        let disk = Disk::new();
        let store = open(&disk);
        let options = QueueOptions::new().max_bytes(300_000).at_limit(AtLimit::Reject);
        let queue = store.declare("q", options).unwrap();
        let all = fill(&queue, 100);
        settle(&store);
        store.close().unwrap();
        let queue = open(&disk).queue("q").unwrap();
        disk.fail(Fault { kind: FaultKind::Map, after, sticky: true });
        let error = insert(&queue, 0).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Io, "{error}");
        disk.heal();
        is_full(insert(&queue, 0));
        assert_eq!(queue.stats().unwrap().ready, all);
    }
}

#[test]
fn whoever_waits_for_room_is_told_of_messages_that_damage_has_taken() {
    let disk = Disk::new();
    let store = open(&disk);
    let queue = store.declare("q", at_most(1000, AtLimit::Block)).unwrap();
    (0..1000).for_each(|n| assert!(insert(&queue, n).is_ok()));
    settle(&store);
    store.close().unwrap();
    disk.file_names()
        .iter()
        .filter(|name| name.ends_with(".idx"))
        .for_each(|name| disk.remove_file(name));
    let oldest = disk.file_names().into_iter().find(|name| name.ends_with(".seg")).unwrap();
    let mut bytes = disk.read_file(&oldest).unwrap();
    bytes[8192..9216].fill(0xFF);
    disk.write_file(&oldest, bytes);
    let queue = open(&disk).queue("q").unwrap();
    let waiting = queue.clone();
    let waiter = thread::spawn(move || {
        let begin = Instant::now();
        waiting.insert_timeout(payload(1000, 100), Duration::from_secs(20)).unwrap();
        begin.elapsed()
    });
    thread::sleep(Duration::from_millis(50));
    assert!(queue.peek().unwrap().is_some());
    assert!(waiter.join().unwrap() < Duration::from_secs(10));
}

#[test]
fn thousands_of_small_messages_make_room_for_a_large_one() {
    let store = Store::options()
        .durability(Durability::Process)
        .segment_bytes(1 << 20)
        .open_simulated(&Disk::new(), &Clock::new())
        .unwrap();
    let options = QueueOptions::new().max_bytes(400_000).at_limit(AtLimit::DropOldest);
    let queue = store.declare("q", options).unwrap();
    for piece in 0..20 {
        queue.insert_batch((0..1000).map(|n| payload(piece * 1000 + n, 8))).unwrap();
    }
    assert!(queue.stats().unwrap().ready > 8000);
    insert_of(&queue, 20_000, 390_000);
    let left = numbers(&get_all(&queue));
    assert!(left.len() > 100 && left.last() == Some(&20_000), "{}", left.len());
}

#[test]
fn a_message_that_does_not_verify_takes_no_room_once_it_is_gone() {
    let disk = Disk::new();
    let store = open(&disk);
    let options = QueueOptions::new().max_bytes(200_000).at_limit(AtLimit::DropOldest);
    let queue = store.declare("q", options).unwrap();
    (0..2000).for_each(|n| assert!(insert(&queue, n).is_ok()));
    let most = queue.stats().unwrap().ready;
    settle(&store);
    store.close().unwrap();
    let oldest = disk.file_names().into_iter().find(|name| name.ends_with(".seg")).unwrap();
    let mut bytes = disk.read_file(&oldest).unwrap();
    let len = bytes.len();
    // In the payload of one of the last.
    bytes[len - 1000] ^= 0x10;
    disk.write_file(&oldest, bytes);
    let queue = open(&disk).queue("q").unwrap();
    (2000..4000).for_each(|n| assert!(insert(&queue, n).is_ok()));
    assert_eq!(queue.stats().unwrap().ready, most);
}
