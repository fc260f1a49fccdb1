//! Message groups: of each one message at a time is out, in order, and others are not held up.

#[path = "common/got.rs"]
mod got;
#[path = "common/simulated.rs"]
mod simulated;
#[path = "common/small_store.rs"]
mod small_store;

use std::thread;
use std::time::Duration;

use millpond::{
    AtLimit, Backoff, Delivery, ErrorKind, Message, OnDrop, Queue, QueueOptions, State,
};

use got::{get_all, numbers};
use simulated::Simulated;
use small_store::{number, payload, settle};

const SECOND: Duration = Duration::from_secs(1);

fn declare(s: &Simulated, options: QueueOptions) -> Queue {
    s.store.declare("q", options.on_drop(OnDrop::Release)).unwrap()
}

fn queue_of(s: &Simulated) -> Queue {
    declare(s, QueueOptions::new())
}

fn reopen(s: &mut Simulated, kill: bool) -> Queue {
    s.reopen(kill);
    s.store.queue("q").unwrap()
}

fn of(group: &str, n: u64) -> Message<'static> {
    Message::new(payload(n, 100)).group(group.as_bytes().to_vec())
}

fn insert(queue: &Queue, messages: &[(&str, u64)]) {
    for &(group, n) in messages {
        match group {
            "" => queue.insert(payload(n, 100)).unwrap(),
            group => queue.insert(of(group, n)).unwrap(),
        };
    }
}

/// The numbers in the order in which they come if each is deleted before the next is got.
fn drain(queue: &Queue) -> Vec<u64> {
    let next = || queue.try_get().unwrap();
    let done = |delivery: Delivery| {
        let number = number(delivery.payload());
        delivery.delete().unwrap();
        number
    };
    std::iter::from_fn(|| next().map(done)).collect()
}

#[test]
fn one_message_of_a_group_is_out_at_a_time_and_the_others_are_got_past_it() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    insert(&queue, &[("a", 0), ("a", 1), ("b", 2), ("", 3), ("a", 4), ("b", 5), ("", 6)]);
    let mut all = get_all(&queue);
    assert_eq!(numbers(&all), [0, 2, 3, 6]);
    assert_eq!(all[0].group(), Some(&b"a"[..]));
    assert_eq!(all[2].group(), None);
    let stats = queue.stats().unwrap();
    assert_eq!((stats.ready, stats.in_flight), (3, 4), "who waits for its group is ready");
    all.remove(0).delete().unwrap();
    assert_eq!(numbers(&get_all(&queue)), [1], "one, though it was dropped and got again");
    all.remove(0).delete().unwrap();
    drop(all);
    assert_eq!(drain(&queue), [1, 3, 4, 5, 6]);
    assert_eq!(f.store.stats().messages, 0);
}

#[test]
fn a_get_of_many_takes_one_of_each_group() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    queue.insert_batch((0..300).map(|n| of(["a", "b", "c"][n as usize % 3], n))).unwrap();
    for round in 0..100 {
        let batch = queue.get_batch(50, Duration::ZERO).unwrap();
        let expected: Vec<u64> = (0..3).map(|n| 3 * round + n).collect();
        assert_eq!(numbers(&batch), expected);
        queue.delete_batch(batch).unwrap();
    }
    assert_eq!(f.store.stats().messages, 0);
}

#[test]
fn whatever_gives_a_message_back_its_group_waits_for_it() {
    let f = Simulated::new();
    let lease = QueueOptions::new().lease(Some(10 * SECOND)).max_attempts(Some(3));
    let queue = declare(&f, lease.backoff(Backoff::Fixed(5 * SECOND)));
    insert(&queue, &[("a", 0), ("a", 1)]);
    queue.get().unwrap().release().unwrap();
    assert_eq!(numbers(&get_all(&queue)), [0]);
    queue.get().unwrap().release_after(SECOND).unwrap();
    assert!(queue.try_get().unwrap().is_none());
    f.clock.advance(SECOND);
    queue.get().unwrap().fail("not yet").unwrap();
    assert!(queue.try_get().unwrap().is_none(), "it waits for its retry");
    f.clock.advance(5 * SECOND);
    let late = queue.get().unwrap();
    assert_eq!((number(late.payload()), late.attempt()), (0, 2));
    f.clock.advance(10 * SECOND);
    let again = queue.get().unwrap();
    assert_eq!((number(again.payload()), again.attempt()), (0, 3), "its lease is over");
    assert_eq!(*late.delete().unwrap_err().kind(), ErrorKind::StaleDelivery);
    again.fail("no more").unwrap();
    assert_eq!(number(queue.get().unwrap().payload()), 1, "that one is buried");
}

#[test]
fn a_message_that_is_moved_or_buried_lets_its_group_go_on() {
    let f = Simulated::new();
    let queue = declare(&f, QueueOptions::new().dead_letter("dead"));
    let dead = f.store.declare("dead", QueueOptions::new().on_drop(OnDrop::Release)).unwrap();
    insert(&queue, &[("a", 0), ("a", 1), ("a", 2), ("a", 3)]);
    for _ in 0..3 {
        queue.get().unwrap().bury("broken").unwrap();
    }
    let left = queue.get().unwrap();
    assert_eq!(number(left.payload()), 3);
    assert_eq!(numbers(&get_all(&dead)), [0], "it has its group there too");
    assert_eq!(dead.redrive(10).unwrap(), 3);
    assert!(queue.try_get().unwrap().is_none());
    left.delete().unwrap();
    assert_eq!(drain(&queue), [0, 1, 2]);
}

#[test]
fn what_is_kicked_waits_for_its_group() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    insert(&queue, &[("a", 0), ("a", 1)]);
    queue.get().unwrap().bury("broken").unwrap();
    let next = queue.get().unwrap();
    assert_eq!(queue.kick(1).unwrap(), 1);
    assert!(queue.try_get().unwrap().is_none());
    next.delete().unwrap();
    assert_eq!(drain(&queue), [0]);
}

#[test]
fn a_delayed_message_takes_its_turn_when_it_is_due() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    queue.insert(of("a", 0).delay(SECOND)).unwrap();
    insert(&queue, &[("a", 1), ("a", 2)]);
    let first = queue.get().unwrap();
    assert_eq!(number(first.payload()), 1, "it holds nobody up");
    f.clock.advance(SECOND);
    assert!(queue.try_get().unwrap().is_none(), "nor does it go out beside another one");
    first.delete().unwrap();
    let left = drain(&queue);
    assert!(left == [0, 2] || left == [2, 0], "{left:?}");
}

#[test]
fn an_urgent_message_overtakes_its_group_but_not_the_one_that_is_out() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    insert(&queue, &[("a", 0), ("a", 1), ("a", 2)]);
    let first = queue.get().unwrap();
    queue.insert(of("a", 3).priority(9)).unwrap();
    assert!(queue.try_get().unwrap().is_none());
    first.delete().unwrap();
    assert_eq!(drain(&queue), [3, 1, 2]);
}

#[test]
fn groups_go_on_after_a_restart_where_they_were() {
    for kill in [false, true] {
        let mut f = Simulated::new();
        let queue = declare(&f, QueueOptions::new().backoff(Backoff::Fixed(60 * SECOND)));
        let groups = ["in flight", "failed", "released", "given back", "buried", "new"];
        for n in 0..18 {
            queue.insert(of(groups[n as usize % 6], n)).unwrap();
        }
        queue.insert(of("new", 18).delay(3600 * SECOND)).unwrap();
        let all = get_all(&queue);
        assert_eq!(numbers(&all), [0, 1, 2, 3, 4, 5]);
        let mut all = all.into_iter();
        let in_flight = all.next().unwrap();
        all.next().unwrap().fail("try again").unwrap();
        all.next().unwrap().release_after(60 * SECOND).unwrap();
        all.next().unwrap().release().unwrap();
        all.next().unwrap().bury("broken").unwrap();
        all.next().unwrap().delete().unwrap();
        // What waits is in a cursor.
        settle(&f.store);
        if !kill {
            drop(in_flight);
        } else {
            std::mem::forget(in_flight);
        }
        drop(queue);
        let queue = reopen(&mut f, kill);
        let all = get_all(&queue);
        let mut got = numbers(&all);
        got.sort_unstable();
        assert_eq!(got, [0, 3, 10, 11], "kill: {kill}");
        f.clock.advance(60 * SECOND);
        let due = get_all(&queue);
        let mut got = numbers(&due);
        got.sort_unstable();
        assert_eq!(got, [1, 2], "kill: {kill}");
        drop((all, due));
        let mut left = drain(&queue);
        for group in 0..6 {
            let of_group: Vec<u64> = left.iter().copied().filter(|n| n % 6 == group).collect();
            assert!(of_group.is_sorted(), "{left:?}");
        }
        left.sort_unstable();
        let expected = (0..18).filter(|n| *n != 4 && *n != 5);
        assert_eq!(left, expected.collect::<Vec<u64>>());
    }
}

#[test]
fn groups_go_on_after_their_segments_were_rewritten() {
    let mut f = Simulated::new();
    let queue = queue_of(&f);
    for n in 0..3000 {
        queue.insert(of(if n % 100 == 0 { "rare" } else { "frequent" }, n)).unwrap();
    }
    let rare = loop {
        let delivery = queue.get().unwrap();
        match number(delivery.payload()) {
            0 => break delivery,
            _ => delivery.delete().unwrap(),
        }
    };
    assert_eq!(drain(&queue).len(), 2970);
    settle(&f.store);
    assert!(queue.try_get().unwrap().is_none());
    rare.delete().unwrap();
    assert_eq!(numbers(&get_all(&queue)), [100]);
    drop(queue);
    let queue = reopen(&mut f, true);
    assert_eq!(drain(&queue), (1..30).map(|n| 100 * n).collect::<Vec<u64>>());
}

#[test]
fn a_busy_group_holds_up_others_only_behind_ten_thousand_that_wait() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    for n in 0..=10_000 {
        queue.insert(of("busy", n)).unwrap();
    }
    insert(&queue, &[("", 20_000)]);
    let busy = queue.get().unwrap();
    assert_eq!(number(queue.get().unwrap().payload()), 20_000);
    queue.insert(of("busy", 10_001)).unwrap();
    insert(&queue, &[("", 20_001)]);
    queue.insert(Message::new(payload(20_002, 8)).priority(1)).unwrap();
    let urgent = get_all(&queue);
    assert_eq!(numbers(&urgent), [20_002, 20_000], "that priority waits, and only that");
    let waiting = queue.clone();
    let waiter = thread::spawn(move || {
        let got: Vec<u64> = (0..2).map(|_| number(waiting.get().unwrap().payload())).collect();
        got
    });
    busy.delete().unwrap();
    let mut got = waiter.join().unwrap();
    got.sort_unstable();
    assert!(got == [1, 20_001] || got == [1, 1], "{got:?}");
}

#[test]
fn who_waits_for_a_message_is_woken_when_a_group_goes_on() {
    for done in 0..4 {
        let f = Simulated::new();
        let queue = queue_of(&f);
        insert(&queue, &[("a", 0), ("a", 1)]);
        let first = queue.get().unwrap();
        let waiting = queue.clone();
        let waiter = thread::spawn(move || number(waiting.get().unwrap().payload()));
        // So that it has most likely begun to wait.
        thread::sleep(Duration::from_millis(5));
        match done {
            0 => first.delete().unwrap(),
            1 => first.bury("broken").unwrap(),
            2 => assert_eq!(queue.delete_batch([first]).unwrap().deleted, 1),
            _ => assert!(queue.delete_by_id(first.id()).unwrap()),
        }
        assert_eq!(waiter.join().unwrap(), 1);
    }
}

#[test]
fn who_waits_for_its_group_can_be_seen_deleted_and_dropped() {
    let f = Simulated::new();
    let queue = declare(&f, QueueOptions::new().max_messages(5).at_limit(AtLimit::DropOldest));
    insert(&queue, &[("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 4)]);
    let first = queue.get().unwrap();
    assert!(queue.try_get().unwrap().is_some_and(|d| number(d.payload()) == 4));
    let seen = queue.browse(State::Ready).map(|entry| number(entry.unwrap().payload()));
    assert_eq!(seen.collect::<Vec<_>>(), [1, 2, 3, 4]);
    let third = queue.browse(State::Ready).nth(1).unwrap().unwrap();
    assert_eq!(third.group(), Some(&b"a"[..]));
    assert!(queue.delete_by_id(third.id()).unwrap());
    insert(&queue, &[("a", 5), ("a", 6)]);
    first.delete().unwrap();
    assert_eq!(drain(&queue), [3, 4, 5, 6], "1 had to make room");
    insert(&queue, &[("a", 7), ("a", 8), ("a", 9)]);
    let first = queue.get().unwrap();
    assert!(queue.try_get().unwrap().is_none());
    assert_eq!(queue.purge(State::Ready).unwrap(), 2);
    first.delete().unwrap();
    assert_eq!(f.store.stats().messages, 0);
}

#[test]
fn who_expires_while_it_waits_is_passed_over() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    insert(&queue, &[("a", 0)]);
    queue.insert(of("a", 1).ttl(SECOND)).unwrap();
    insert(&queue, &[("a", 2)]);
    let first = queue.get().unwrap();
    assert!(queue.try_get().unwrap().is_none());
    f.clock.advance(SECOND);
    first.delete().unwrap();
    assert_eq!(drain(&queue), [2]);
    assert_eq!(f.store.stats().messages, 0);
}

/// The record of a get may need a new segment, and what was chosen is chosen again.
#[test]
fn the_order_holds_while_the_log_rolls() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    for n in 0..4000 {
        queue.insert(of(["a", "b", "c", "d", "e", "f", "g"][n as usize % 7], n)).unwrap();
    }
    let mut last = [None; 7];
    let mut count = 0;
    loop {
        let batch = queue.get_batch(5, Duration::ZERO).unwrap();
        if batch.is_empty() {
            break;
        }
        for delivery in &batch {
            let n = number(delivery.payload());
            let next = last[n as usize % 7].map_or(n % 7, |last: u64| last + 7);
            assert_eq!(n, next);
            last[n as usize % 7] = Some(n);
            count += 1;
        }
        queue.delete_batch(batch).unwrap();
    }
    assert_eq!(count, 4000);
}

/// Ten thousand messages of group "a" wait for number 0, which is held; what comes behind them in the lane has to wait.
fn full_lane(queue: &Queue, behind: &[Message<'static>]) -> Delivery {
    insert(queue, &[("a", 0)]);
    for n in 1..=10_000 {
        queue.insert(of("a", n)).unwrap();
    }
    for message in behind {
        queue.insert(message).unwrap();
    }
    queue.get().unwrap()
}

/// Whoever sleeps gets this message.
fn is_woken_for(queue: &Queue, expected: u64, wake: impl FnOnce()) {
    let waiting = queue.clone();
    let sleeper = thread::spawn(move || number(waiting.get().unwrap().payload()));
    // So that it has most likely begun to wait.
    thread::sleep(Duration::from_millis(5));
    wake();
    assert_eq!(sleeper.join().unwrap(), expected);
}

#[test]
fn who_waits_behind_a_full_lane_is_woken_whatever_makes_it_go_on() {
    let plain = || Message::new(payload(77, 100));
    let f = Simulated::new();
    let queue = queue_of(&f);
    insert(&queue, &[("b", 50)]);
    let first = queue.get().unwrap();
    let held = full_lane(&queue, &[of("b", 51), plain()]);
    assert!(queue.try_get().unwrap().is_none());
    // Nobody else waits for that group.
    is_woken_for(&queue, 51, || first.delete().unwrap());
    drop(held);

    let f = Simulated::new();
    let queue = queue_of(&f);
    let held = full_lane(&queue, &[of("a", 10_001), plain()]);
    assert!(queue.try_get().unwrap().is_none());
    let next = queue.browse(State::Ready).last().unwrap().unwrap().id().as_u64() - 1;
    is_woken_for(&queue, 77, || assert!(queue.delete_by_id(next.into()).unwrap()));
    drop(held);

    let f = Simulated::new();
    let queue = queue_of(&f);
    let held = full_lane(&queue, &[of("a", 10_001).ttl(SECOND), plain()]);
    assert!(queue.try_get().unwrap().is_none());
    is_woken_for(&queue, 77, || {
        f.clock.advance(2 * SECOND);
        settle(&f.store);
    });
    drop(held);
}

#[test]
fn a_message_that_was_released_keeps_its_group_over_a_restart() {
    for (kill, wait) in [(true, 5), (true, 20), (false, 5), (false, 20)] {
        let mut f = Simulated::new();
        let queue = queue_of(&f);
        insert(&queue, &[("a", 0), ("a", 1), ("b", 2)]);
        queue.insert(of("b", 3).delay(SECOND)).unwrap();
        queue.get().unwrap().release_after(10 * SECOND).unwrap();
        queue.get().unwrap().release_after(10 * SECOND).unwrap();
        queue.insert(of("a", 4).priority(9)).unwrap();
        assert!(queue.try_get().unwrap().is_none());
        f.clock.advance(wait * SECOND);
        drop(queue);
        let queue = reopen(&mut f, kill);
        f.clock.advance(20 * SECOND);
        let left = drain(&queue);
        let of_group = |numbers: &[u64]| -> Vec<u64> {
            left.iter().copied().filter(|n| numbers.contains(n)).collect()
        };
        assert_eq!(of_group(&[0, 1, 4]), [0, 4, 1], "kill: {kill}, {wait} s: {left:?}");
        assert_eq!(of_group(&[2, 3]), [2, 3], "kill: {kill}, {wait} s: {left:?}");
    }
}

#[test]
fn an_urgent_message_does_not_wait_for_one_of_its_group_that_nobody_has() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    insert(&queue, &[("a", 0), ("a", 1)]);
    let first = queue.get().unwrap();
    assert!(queue.try_get().unwrap().is_none());
    first.delete().unwrap();
    queue.insert(of("a", 9).priority(9)).unwrap();
    queue.insert(Message::new(payload(5, 100)).priority(5)).unwrap();
    assert_eq!(drain(&queue), [9, 5, 1]);
}

#[test]
fn a_name_of_a_group_has_1_to_255_bytes() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    for name in [Vec::new(), vec![0; 256]] {
        let error = queue.insert(Message::new("x").group(name)).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::InvalidArgument);
    }
    queue.insert(Message::new("x").group(vec![0; 255])).unwrap();
    let got = queue.get().unwrap();
    assert_eq!(got.group(), Some(&[0; 255][..]));
    assert_eq!(Message::from(&got), Message::new("x").group(vec![0; 255]));
}
