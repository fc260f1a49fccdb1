//! Messages that expire: never delivered late, moved with the reason or deleted, and their space comes back.

#[path = "common/got.rs"]
mod got;
#[path = "common/simulated.rs"]
mod simulated;
#[path = "common/small_store.rs"]
mod small_store;

use std::time::{Duration, Instant};

use millpond::testing::{Fault, FaultKind};
use millpond::{Backoff, Delivery, ErrorKind, Message, Queue, QueueOptions, State};

use got::{get_all, numbers};
use simulated::Simulated;
use small_store::{number, options, payload, settle};

const SECOND: Duration = Duration::from_secs(1);

fn queue_of(s: &Simulated) -> Queue {
    s.store.queue("q").unwrap()
}

/// What was delivered with each attempt at once, and expires into "dead".
fn queue_with_dead_letters(s: &Simulated) -> (Queue, Queue) {
    let options = QueueOptions::new().dead_letter("dead");
    let options = options.backoff(Backoff::Fixed(Duration::ZERO));
    (s.store.declare("q", options).unwrap(), s.store.queue("dead").unwrap())
}

fn mortal(n: u64, ttl: Duration) -> Message<'static> {
    Message::new(payload(n, 100)).ttl(ttl)
}

#[test]
fn an_expired_message_is_not_delivered_any_more() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    queue.insert(mortal(0, SECOND)).unwrap();
    queue.insert(payload(1, 100)).unwrap();
    queue.insert_batch([mortal(2, 2 * SECOND), mortal(3, SECOND).priority(5)]).unwrap();
    f.clock.advance(SECOND - Duration::from_millis(1));
    assert_eq!(number(queue.peek().unwrap().unwrap().payload()), 3, "not yet");
    f.clock.advance(Duration::from_millis(1));
    assert_eq!(number(queue.peek().unwrap().unwrap().payload()), 1);
    let all = get_all(&queue);
    assert_eq!(numbers(&all), [1, 2]);
    assert_eq!(all[0].attempt(), 1, "looking at it is no attempt");
    assert_eq!(queue.stats().unwrap().ready, 0);
    queue.delete_batch(all).unwrap();
    assert_eq!(f.store.stats().messages, 0);
}

#[test]
fn a_get_of_many_passes_over_thousands_that_have_expired() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    for n in 0..3000 {
        if n % 3 == 0 {
            queue.insert(payload(n, 10)).unwrap();
        } else {
            queue.insert(mortal(n, SECOND)).unwrap();
        }
    }
    f.clock.advance(SECOND);
    let all = queue.get_batch(800, Duration::ZERO).unwrap();
    assert_eq!(numbers(&all), (0..800).map(|n| 3 * n).collect::<Vec<u64>>());
    assert_eq!(get_all(&queue).len(), 200);
}

#[test]
fn the_shorter_of_a_messages_and_its_queues_time_holds() {
    let f = Simulated::new();
    queue_of(&f).insert(payload(0, 100)).unwrap();
    let queue = f.store.declare("q", QueueOptions::new().ttl(10 * SECOND)).unwrap();
    queue.insert(payload(1, 100)).unwrap();
    queue.insert(mortal(2, 20 * SECOND)).unwrap();
    queue.insert(mortal(3, SECOND)).unwrap();
    f.clock.advance(9 * SECOND);
    assert_eq!(get_all(&queue).len(), 3);
    f.store.close().unwrap();
    let store = options().open_simulated(&f.disk, &f.clock).unwrap();
    f.clock.advance(SECOND);
    assert_eq!(numbers(&get_all(&store.queue("q").unwrap())), [0], "it came before the option");
}

#[test]
fn an_expired_message_moves_to_the_dead_letter_queue() {
    let f = Simulated::new();
    let (queue, dead) = queue_with_dead_letters(&f);
    // Found by a get, and by the background.
    for round in 0..2 {
        queue.insert(mortal(0, SECOND).priority(3).header("k", 1)).unwrap();
        queue.insert(mortal(1, SECOND)).unwrap();
        f.clock.advance(SECOND);
        if round == 0 {
            assert!(queue.try_get().unwrap().is_none());
        } else {
            settle(&f.store);
        }
        let all = get_all(&dead);
        assert_eq!(numbers(&all), [0, 1]);
        assert_eq!((all[0].priority(), all[0].headers().len()), (3, 1));
        assert_eq!(queue.stats().unwrap().ready, 0);
        // There it lives for ever.
        f.clock.advance(1000 * SECOND);
        settle(&f.store);
        assert_eq!(dead.delete_batch(all).unwrap().deleted, 2);
    }
}

#[test]
fn a_message_expires_while_it_is_delayed_or_waits_for_its_retry() {
    for moves in [false, true] {
        for kill in [false, true] {
            let mut f = Simulated::new();
            let options = QueueOptions::new().backoff(Backoff::Fixed(100 * SECOND));
            let options = if moves { options.dead_letter("dead") } else { options };
            let queue = f.store.declare("q", options).unwrap();
            let dead = f.store.queue("dead").unwrap();
            for n in 0..2 {
                queue.insert(mortal(n, 10 * SECOND)).unwrap();
            }
            queue.get().unwrap().fail("once").unwrap();
            queue.get().unwrap().release_after(50 * SECOND).unwrap();
            f.clock.advance(10 * SECOND);
            settle(&f.store);
            let kept = if moves { vec![0, 1] } else { vec![] };
            let letters = get_all(&dead);
            assert_eq!(numbers(&letters), kept);
            for letter in &letters {
                let origin = letter.origin().unwrap();
                assert_eq!((origin.queue(), origin.reason()), ("q", "expired"));
            }
            letters.into_iter().for_each(|letter| letter.release().unwrap());
            f.reopen(kill);
            f.clock.advance(100 * SECOND);
            assert!(queue_of(&f).try_get().unwrap().is_none());
            assert_eq!(f.store.stats().messages, kept.len() as u64);
        }
    }
}

#[test]
fn the_space_of_expired_messages_comes_back_though_nobody_gets() {
    let mut f = Simulated::new();
    for round in 0..4 {
        let queue = queue_of(&f);
        for n in 0..3000 {
            let message = Message::new(payload(n, 200));
            queue.insert(message.ttl(Duration::from_millis(1000 + n))).unwrap();
        }
        settle(&f.store);
        let full = f.store.stats();
        assert!(full.messages == 3000 && full.segments > 8, "{full:?}");
        // Also where it was reopened before they expire, and while some have.
        f.reopen(round % 2 == 0);
        f.clock.advance(2 * SECOND);
        settle(&f.store);
        let half = f.store.stats();
        assert!((1990..=2000).contains(&half.messages), "{}", half.messages);
        f.reopen(round % 2 == 1);
        f.clock.advance(2 * SECOND);
        settle(&f.store);
        let left = f.store.stats();
        assert!(left.messages == 0 && left.segments <= 3, "{left:?}");
        assert_eq!(f.store.queue("q").unwrap().stats().unwrap().ready, 0);
    }
}

#[test]
fn the_background_gives_back_the_space_of_expired_messages() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path()).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert(mortal(0, 1000 * SECOND)).unwrap();
    // Later messages expire sooner, so the background has to be woken earlier than it meant to.
    for n in 1..100 {
        queue.insert(mortal(n, Duration::from_millis(200 - n))).unwrap();
    }
    let begin = Instant::now();
    while store.stats().messages > 1 {
        assert!(begin.elapsed() < 60 * SECOND, "{:?}", store.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(numbers(&get_all(&queue)), [0]);
}

#[test]
fn whoever_holds_an_expired_message_may_finish() {
    let f = Simulated::new();
    let (queue, dead) = queue_with_dead_letters(&f);
    for n in 0..4 {
        queue.insert(mortal(n, SECOND)).unwrap();
    }
    let [deleted, released, failed, buried] = <[Delivery; 4]>::try_from(get_all(&queue)).unwrap();
    f.clock.advance(SECOND);
    settle(&f.store);
    assert_eq!(queue.stats().unwrap().in_flight, 4);
    deleted.delete().unwrap();
    released.release().unwrap();
    failed.fail("no").unwrap();
    buried.bury("broken").unwrap();
    assert_eq!(numbers(&get_all(&dead)), [3]);
    assert!(queue.try_get().unwrap().is_none(), "given back, and too late");
    assert_eq!(numbers(&get_all(&dead)), [1, 2]);
}

#[test]
fn what_was_held_when_it_expired_is_swept_once_it_is_given_back() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    queue.insert(mortal(0, SECOND)).unwrap();
    let held = queue.get().unwrap();
    f.clock.advance(SECOND);
    settle(&f.store);
    held.release_after(SECOND).unwrap();
    assert_eq!(queue.stats().unwrap().delayed, 1);
    f.clock.advance(60 * SECOND);
    settle(&f.store);
    assert_eq!(f.store.stats().messages, 0);
}

#[test]
fn a_buried_message_does_not_expire() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    queue.insert(mortal(0, SECOND)).unwrap();
    queue.get().unwrap().bury("look at it").unwrap();
    f.clock.advance(100 * SECOND);
    settle(&f.store);
    assert_eq!(queue.stats().unwrap().buried, 1);
    assert_eq!(queue.purge(State::Buried).unwrap(), 1);
}

#[test]
fn what_was_buried_when_it_expired_is_swept_once_it_is_kicked() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    queue.insert(mortal(0, SECOND)).unwrap();
    queue.get().unwrap().bury("look at it").unwrap();
    f.clock.advance(SECOND);
    settle(&f.store);
    assert_eq!(queue.kick(1).unwrap(), 1);
    settle(&f.store);
    assert_eq!(f.store.stats().messages, 0);
}

#[test]
fn what_was_kicked_is_swept_after_a_kill_too() {
    for kill in [false, true] {
        let mut f = Simulated::new();
        let queue = queue_of(&f);
        queue.insert(mortal(0, SECOND)).unwrap();
        queue.get().unwrap().bury("to be looked at").unwrap();
        let other = f.store.queue("other").unwrap();
        (0..1000).for_each(|n| assert!(other.insert(payload(n, 200)).is_ok()));
        f.clock.advance(SECOND);
        settle(&f.store);
        // A cursor says that nothing expires there: the sweep has passed it over.
        f.reopen(false);
        settle(&f.store);
        assert_eq!(queue_of(&f).kick(1).unwrap(), 1);
        if kill {
            f.reopen(true);
        }
        for _ in 0..5 {
            f.clock.advance(100 * SECOND);
            settle(&f.store);
        }
        assert_eq!(f.store.stats().messages, 1000, "kill {kill}");
    }
}

#[test]
fn a_message_expires_by_the_wall_clock() {
    let f = Simulated::new();
    f.clock.set_wall_ms(1_700_000_000_000);
    let queue = queue_of(&f);
    queue.insert(mortal(0, 10 * SECOND)).unwrap();
    f.clock.set_wall_ms(1_600_000_000_000);
    f.clock.advance(1000 * SECOND);
    settle(&f.store);
    let delivery = queue.try_get().unwrap().expect("the clock is behind");
    delivery.release().unwrap();
    f.clock.set_wall_ms(1_700_000_010_000);
    assert!(queue.try_get().unwrap().is_none());
}

#[test]
fn what_was_copied_by_compaction_expires_too() {
    let mut f = Simulated::new();
    let queue = queue_of(&f);
    for n in 0..4000 {
        let ttl = if n % 8 == 0 { 100 * SECOND } else { 1000 * SECOND };
        queue.insert(Message::new(payload(n, 200)).ttl(ttl)).unwrap();
    }
    let all = get_all(&queue);
    let (kept, deleted): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|delivery| number(delivery.payload()).is_multiple_of(8));
    queue.delete_batch(deleted).unwrap();
    drop(kept);
    settle(&f.store);
    let rewritten = f.store.stats();
    assert!(rewritten.segments < 8 && rewritten.messages == 500, "{rewritten:?}");
    f.reopen(false);
    f.clock.advance(100 * SECOND);
    settle(&f.store);
    assert_eq!(f.store.stats().messages, 0);
}

#[test]
fn an_expired_message_that_finds_no_space_to_move_is_buried() {
    let f = Simulated::new();
    let (queue, dead) = queue_with_dead_letters(&f);
    queue.insert(mortal(0, SECOND)).unwrap();
    settle(&f.store);
    let used = f.disk.file_names().into_iter().filter_map(|name| f.disk.read_file(&name));
    f.disk.set_capacity(Some(used.map(|bytes| bytes.len() as u64).sum()));
    while queue.insert(payload(1, 100)).is_ok() {}
    f.clock.advance(SECOND);
    settle(&f.store);
    assert_eq!(queue.stats().unwrap().buried, 1);
    assert_eq!(dead.stats().unwrap().ready, 0);
}

#[test]
fn a_time_to_live_that_makes_no_sense_is_refused() {
    let f = Simulated::new();
    let queue = queue_of(&f);
    let refused = [
        (Message::new("x").ttl(Duration::ZERO), "at least 1 ms"),
        (Message::new("x").ttl(Duration::MAX), "beyond the year 10889"),
        (Message::new("x").ttl(SECOND).delay(SECOND), "would expire before it is due"),
    ];
    for (message, what) in refused {
        let error = queue.insert(message).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(what), "{error}");
    }
    for ttl in [Duration::ZERO, Duration::MAX] {
        let error = f.store.declare("q", QueueOptions::new().ttl(ttl)).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    }
    assert_eq!(f.store.stats().messages, 0);
}

#[test]
fn thousands_expire_on_a_full_disk_though_the_log_has_to_go_on_for_them() {
    let f = Simulated::new();
    let (queue, dead) = queue_with_dead_letters(&f);
    for n in 0..1400 {
        queue.insert(mortal(n, SECOND)).unwrap();
    }
    settle(&f.store);
    let used = f.disk.file_names().into_iter().filter_map(|name| f.disk.read_file(&name));
    f.disk.set_capacity(Some(used.map(|bytes| bytes.len() as u64).sum()));
    while queue.insert(payload(1, 100)).is_ok() {}
    f.clock.advance(SECOND);
    for _ in 0..10 {
        settle(&f.store);
        f.clock.advance(60 * SECOND);
    }
    let (left, moved) = (queue.stats().unwrap(), dead.stats().unwrap());
    assert_eq!(left.buried + moved.ready, 1400, "{left:?}, {moved:?}");
}

#[test]
fn a_sweep_that_meets_an_error_is_made_up_for_and_holds_nothing_else_up() {
    for after in 0..4 {
        let mut f = Simulated::new();
        let queue = queue_of(&f);
        for n in 0..2000 {
            queue.insert(mortal(n, 100 * SECOND)).unwrap();
        }
        settle(&f.store);
        f.reopen(false);
        f.disk.fail(Fault { kind: FaultKind::Map, after, sticky: true });
        f.clock.advance(100 * SECOND);
        settle(&f.store);
        assert!(f.store.stats().messages > 0);
        f.disk.heal();
        settle(&f.store);
        f.clock.advance(60 * SECOND);
        settle(&f.store);
        assert_eq!(f.store.stats().messages, 0, "after {after}");
    }
}
