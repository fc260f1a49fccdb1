//! Looking through a queue.

use std::time::SystemTime;

use millpond::testing::{Clock, Disk, Fault, FaultKind};
use millpond::{Browse, Durability, Entry, ErrorKind, Message, Queue, QueueOptions, State};

use super::{get_all, insert, ms, number, open, options, payload, settle};

fn shown(browse: Browse) -> Vec<u64> {
    browse.map(|entry| number(entry.unwrap().payload())).collect()
}

fn all(queue: &Queue, which: State) -> Vec<Entry> {
    queue.browse(which).map(Result::unwrap).collect()
}

#[test]
fn each_message_is_shown_in_the_state_that_it_is_in_with_what_is_known_of_it() {
    let clock = Clock::new();
    let store = options().open_simulated(&Disk::new(), &clock).unwrap();
    let queue = store.declare("q", QueueOptions::new().lease(Some(ms(9000)))).unwrap();
    let ids: Vec<_> = (0..6)
        .map(|n| queue.insert(Message::new(payload(n, 100)).header("n", n as i64)).unwrap())
        .collect();
    queue.insert(Message::new(payload(6, 100)).priority(2)).unwrap();
    queue.insert(Message::new(payload(7, 100)).delay(ms(500))).unwrap();
    let mut held = get_all(&queue).into_iter();
    held.next().unwrap().release().unwrap();
    held.next().unwrap().bury("it is broken").unwrap();
    held.next().unwrap().fail_after("later", ms(700)).unwrap();
    let in_flight = held.next().unwrap();
    held.for_each(|delivery| delivery.release().unwrap());

    assert_eq!(shown(queue.browse(State::Ready)), [6, 3, 4, 5]);
    let buried = all(&queue, State::Buried);
    let [one] = &buried[..] else { panic!("{buried:?}") };
    assert_eq!((one.id(), one.reason(), one.attempts()), (ids[0], Some("it is broken"), 1));
    assert_eq!((one.due(), one.deadline(), one.headers().len()), (None, None, 1));
    let due = |by| Some(SystemTime::UNIX_EPOCH + ms(clock.wall_ms() + by));
    let delayed = all(&queue, State::Delayed);
    let delayed: Vec<_> = delayed.iter().map(|e| (number(e.payload()), e.due())).collect();
    assert_eq!(delayed, [(1, due(700)), (7, due(500))]);
    let held = all(&queue, State::InFlight);
    let [one] = &held[..] else { panic!("{held:?}") };
    assert_eq!((one.id(), one.attempts()), (in_flight.id(), 1));
    assert_eq!(one.deadline(), in_flight.deadline());

    // Nothing has changed by it, and time goes on.
    assert_eq!(queue.stats().unwrap().in_flight, 1);
    clock.advance(ms(600));
    assert_eq!(shown(queue.browse(State::Delayed)), [1]);
    assert_eq!(shown(queue.browse(State::Ready)), [6, 3, 4, 5, 7]);
    clock.advance(ms(9000));
    assert_eq!(shown(queue.browse(State::Ready)), [6, 1, 2, 3, 4, 5, 7]);
    in_flight.delete().unwrap();
}

#[test]
fn a_long_queue_is_shown_whole_and_in_order_also_from_old_segments() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let mut store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..3000 {
        queue.insert(Message::new(payload(n, 300)).priority((n % 7 / 5) as u8)).unwrap();
    }
    let touched = |n: u64| n.is_multiple_of(3);
    for delivery in get_all(&queue) {
        if touched(number(delivery.payload())) {
            delivery.release_after(ms(5)).unwrap();
        } else {
            delivery.release().unwrap();
        }
    }
    for _ in 0..2 {
        store.close().unwrap();
        store = options().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        let mut expected: Vec<u64> = (0..3000).filter(|n| !touched(*n)).collect();
        expected.sort_by_key(|n| std::cmp::Reverse(n % 7 / 5));
        assert!(shown(queue.browse(State::Ready)) == expected);
        let delayed: Vec<u64> = (0..3000).filter(|n| touched(*n)).collect();
        assert!(shown(queue.browse(State::Delayed)) == delayed);
        assert_eq!(shown(queue.browse(State::Buried)), []);
        settle(&store);
    }
}

#[test]
fn a_browse_never_fails_or_repeats_itself_whatever_happens_meanwhile() {
    let store = open(&Disk::new());
    let queue = store.queue("q").unwrap();
    let message = |n: u64| Message::new(payload(n, 400)).priority((n % 2) as u8);
    (0..2000).for_each(|n| assert!(queue.insert(message(n)).is_ok()));
    let browse = queue.browse(State::Ready);
    let mut seen = Vec::new();
    let mut held = Vec::new();
    for (step, entry) in browse.enumerate() {
        let entry = entry.unwrap();
        seen.push(entry.id());
        queue.insert(message(10_000 + step as u64)).unwrap();
        match step % 5 {
            0 => held.extend(queue.get_batch(20, ms(0)).unwrap()),
            1 => held.drain(..held.len() / 2).for_each(|delivery| drop(delivery.release())),
            2 if step % 100 == 2 => settle(&store),
            2 => drop(queue.delete_by_id((step as u64 * 7 % 2000).into()).unwrap()),
            3 => drop(queue.delete_batch(held.split_off(held.len() / 2)).unwrap()),
            _ => {}
        }
        assert!(entry.payload().len() == 400);
    }
    assert!(seen.len() > 500, "{}", seen.len());
    let mut distinct = seen.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), seen.len());
    // Of what was inserted since it began, it shows nothing.
    assert!(distinct.last().unwrap().as_u64() <= 2000);
}

#[test]
fn what_nobody_touches_is_shown_though_others_come_and_go_and_segments_are_rewritten() {
    let store = open(&Disk::new());
    let queue = store.queue("q").unwrap();
    let ids: Vec<_> = (0..1500).map(|n| queue.insert(payload(n, 400)).unwrap()).collect();
    let kept = |n: usize| n.is_multiple_of(10);
    let mut seen = Vec::new();
    let mut browse = queue.browse(State::Ready);
    seen.extend(browse.by_ref().take(100).map(|entry| number(entry.unwrap().payload())));
    for (_, id) in ids.iter().enumerate().filter(|(n, _)| !kept(*n)) {
        assert!(queue.delete_by_id(*id).unwrap());
    }
    settle(&store);
    assert!(store.stats().dead_bytes < store.stats().live_bytes + (64 << 10), "it was rewritten");
    seen.extend(browse.map(|entry| number(entry.unwrap().payload())));
    assert!((0..1500).filter(|n| kept(*n)).all(|n| seen.contains(&(n as u64))), "{seen:?}");
    assert!(seen.len() < 400);
}

#[test]
fn a_poisoned_store_can_still_be_looked_through() {
    let disk = Disk::new();
    let options = options().durability(Durability::Sync);
    let store = options.open_simulated(&disk, &Clock::new()).unwrap();
    let queue = store.queue("q").unwrap();
    insert(&queue, 0..200);
    disk.fail(Fault { kind: FaultKind::Sync, after: 0, sticky: true });
    assert_eq!(queue.insert("x").unwrap_err().kind(), &ErrorKind::Poisoned);
    assert_eq!(queue.try_get().unwrap_err().kind(), &ErrorKind::Poisoned);
    assert_eq!(shown(queue.browse(State::Ready)), Vec::from_iter(0..200));
    assert_eq!(number(queue.peek().unwrap().unwrap().payload()), 0);
}

#[test]
fn a_browse_leaves_out_what_is_not_durable_yet_where_inserts_are_synced() {
    let options = options().durability(Durability::Sync);
    let store = options.open_simulated(&Disk::new(), &Clock::new()).unwrap();
    let dead_letter = QueueOptions::new().dead_letter("dead");
    let queue = store.declare("q", dead_letter).unwrap();
    insert(&queue, 0..1);
    queue.get().unwrap().bury("no").unwrap();
    let dead = store.queue("dead").unwrap();
    assert_eq!((dead.stats().unwrap().ready, shown(dead.browse(State::Ready)).len()), (1, 0));
    store.sync().unwrap();
    assert_eq!(shown(dead.browse(State::Ready)), [0]);
}

#[test]
fn damaged_messages_are_left_out_and_stay_until_somebody_gets_them() {
    let disk = Disk::new();
    let store = open(&disk);
    insert(&store.queue("q").unwrap(), 0..1000);
    settle(&store);
    store.close().unwrap();
    let name = disk.file_names().into_iter().find(|name| name.ends_with(".seg")).unwrap();
    let mut bytes = disk.read_file(&name).unwrap();
    let third = bytes.windows(8).position(|window| window == 2u64.to_le_bytes());
    bytes[third.unwrap() + 20] ^= 1;
    disk.write_file(&name, bytes);
    let store = open(&disk);
    let queue = store.queue("q").unwrap();
    let expected = Vec::from_iter((0..1000).filter(|n| *n != 2));
    assert_eq!(shown(queue.browse(State::Ready)), expected);
    assert_eq!((queue.stats().unwrap().ready, store.stats().damaged_messages), (1000, 0));
    assert_eq!(get_all(&queue).len(), 999);
    assert_eq!(store.stats().damaged_messages, 1);
}

#[test]
fn a_browse_ends_when_the_store_is_closed_or_the_queue_removed() {
    let store = open(&Disk::new());
    let queue = store.queue("q").unwrap();
    let mut browse = queue.browse(State::Ready);
    store.remove("q").unwrap();
    let error = browse.next().unwrap().unwrap_err();
    assert_eq!((error.kind(), browse.next().is_none()), (&ErrorKind::NotFound, true));
    let queue = store.queue("q").unwrap();
    let mut browse = queue.browse(State::Ready);
    store.close().unwrap();
    let error = browse.next().unwrap().unwrap_err();
    assert_eq!((error.kind(), browse.next().is_none()), (&ErrorKind::Closed, true));
}
