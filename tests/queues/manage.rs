//! Messages that are dealt with from outside: kicked, and deleted by their numbers.

use millpond::testing::{Clock, Disk};
use millpond::{Durability, ErrorKind, Message, MessageId, Queue, QueueOptions, State};

use super::small_store::SEGMENT_BYTES;
use super::{get_all, insert, ms, number, numbers, open, options, payload, ready, settle};

fn bury_all(queue: &Queue) {
    for delivery in get_all(queue) {
        let why = format!("reason {}", number(delivery.payload()));
        delivery.bury(why).unwrap();
    }
}

#[test]
fn kicked_messages_are_ready_again_as_if_they_were_new_the_oldest_first() {
    let mut disk = Disk::new();
    let mut store = open(&disk);
    let queue = store.declare("q", QueueOptions::new().max_attempts(Some(2))).unwrap();
    for n in 0..8 {
        queue.insert(Message::new(payload(n, 100)).priority((n % 2) as u8)).unwrap();
    }
    bury_all(&queue);
    assert_eq!(queue.kick(0).unwrap(), 0);
    assert_eq!(queue.kick(3).unwrap(), 3);
    let stats = queue.stats().unwrap();
    assert_eq!((stats.ready, stats.buried), (3, 5));
    for closed in [false, true] {
        if closed {
            store.close().unwrap();
        } else {
            disk = disk.kill();
        }
        store = open(&disk);
        let queue = store.queue("q").unwrap();
        let kicked = get_all(&queue);
        assert_eq!(numbers(&kicked), [1, 0, 2], "by priority, then by number");
        assert!(kicked.iter().all(|delivery| delivery.attempt() == 1));
        kicked.into_iter().for_each(|delivery| delivery.release().unwrap());
    }
    let queue = store.queue("q").unwrap();
    assert_eq!(queue.kick(u64::MAX).unwrap(), 5);
    assert_eq!(queue.kick(u64::MAX).unwrap(), 0);
    assert_eq!(ready(&queue), [1, 3, 5, 7, 0, 2, 4, 6]);
}

#[test]
fn many_messages_are_kicked_in_few_appends() {
    let store = open(&Disk::new());
    let queue = store.queue("q").unwrap();
    insert(&queue, 0..3000);
    bury_all(&queue);
    settle(&store);
    let bytes = |store: &millpond::Store| store.stats().log.iter().map(|s| s.bytes).sum::<u64>();
    let before = bytes(&store);
    assert_eq!(queue.kick(u64::MAX).unwrap(), 3000);
    assert!(bytes(&store) - before < 1000, "{} bytes", bytes(&store) - before);
    assert_eq!(ready(&queue), Vec::from_iter(0..3000));
}

#[test]
fn a_kick_wakes_whoever_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    insert(&queue, 0..1);
    bury_all(&queue);
    let waiting = queue.clone();
    let waiter = std::thread::spawn(move || waiting.get_timeout(ms(60_000)).unwrap());
    std::thread::sleep(ms(20));
    queue.kick(1).unwrap();
    let delivery = waiter.join().unwrap().expect("it comes long before the minute is over");
    delivery.delete().unwrap();
}

#[test]
fn a_message_is_deleted_by_its_number_whatever_state_it_is_in() {
    let (mut disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let ids: Vec<MessageId> = (0..6).map(|n| queue.insert(payload(n, 100)).unwrap()).collect();
    let mut held = get_all(&queue).into_iter();
    let in_flight = held.next().unwrap();
    held.next().unwrap().release().unwrap();
    held.next().unwrap().release_after(ms(1000)).unwrap();
    held.next().unwrap().bury("no").unwrap();
    held.for_each(|delivery| delivery.release().unwrap());
    let untouched = queue.insert(Message::new("x").priority(4)).unwrap();
    for id in ids[..4].iter().chain([&untouched]) {
        assert!(queue.delete_by_id(*id).unwrap());
        assert!(!queue.delete_by_id(*id).unwrap(), "it is gone");
    }
    assert_eq!(in_flight.delete().unwrap_err().kind(), &ErrorKind::StaleDelivery);
    let stats = queue.stats().unwrap();
    assert_eq!((stats.ready, stats.in_flight, stats.delayed, stats.buried), (2, 0, 0, 0));
    disk = disk.kill();
    let queue = options().open_simulated(&disk, &clock).unwrap().queue("q").unwrap();
    assert_eq!(ready(&queue), [4, 5]);
}

#[test]
fn a_number_that_is_not_of_this_queue_deletes_nothing() {
    let disk = Disk::new();
    let mut store = open(&disk);
    let (a, b) = (store.queue("a").unwrap(), store.queue("b").unwrap());
    insert(&a, 0..100);
    let of_b = b.insert("x").unwrap();
    let behind = a.insert("y").unwrap();
    let all = [0, of_b.as_u64(), behind.as_u64() + 1, 1 << 40, 1 << 63, u64::MAX];
    for round in 0..3 {
        let a = store.queue("a").unwrap();
        for number in all {
            assert!(!a.delete_by_id(number.into()).unwrap(), "{number}");
        }
        let stats = (a.stats().unwrap().ready, store.stats().messages);
        assert_eq!(stats, (101, 102));
        if round == 0 {
            // With a segment that is sealed, and one that is rewritten.
            insert(&b, 0..2000);
            b.purge(State::Ready).unwrap();
            store.queue("b").unwrap().insert("z").unwrap();
            settle(&store);
        }
        store.close().unwrap();
        store = open(&disk);
    }
}

#[test]
fn a_message_in_an_old_segment_is_deleted_by_its_number_and_gives_its_space_back() {
    let disk = Disk::new();
    let store = open(&disk);
    let queue = store.queue("q").unwrap();
    let ids: Vec<_> = (0..1000).map(|n| queue.insert(payload(n, 1000)).unwrap()).collect();
    store.close().unwrap();
    let store = open(&disk);
    let queue = store.queue("q").unwrap();
    for (n, id) in ids.iter().enumerate() {
        if n % 100 != 0 {
            assert!(queue.delete_by_id(*id).unwrap());
        }
    }
    settle(&store);
    assert!(store.stats().bytes_on_disk < 5 * SEGMENT_BYTES);
    assert_eq!(ready(&queue), Vec::from_iter((0..1000).step_by(100)));
}

#[test]
fn a_deleted_number_does_not_come_back_after_a_power_cut_where_deletes_are_synced() {
    let disk = Disk::new();
    let options = options().delete_durability(Durability::Sync);
    let store = options.open_simulated(&disk, &Clock::new()).unwrap();
    let queue = store.queue("q").unwrap();
    let id = queue.insert("x").unwrap();
    assert!(queue.delete_by_id(id).unwrap());
    let store = options.open_simulated(&disk.power_cut(1), &Clock::new()).unwrap();
    assert_eq!(store.queue("q").unwrap().stats().unwrap(), Default::default());
}
