use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millpond::testing::{Clock, Disk};
use millpond::{
    Durability, ErrorKind, Message, MessageId, Queue, QueueOptions, State, Store, StoreOptions,
};

use super::small_store::{SEGMENT_BYTES, number, options, payload, settle};
use super::{NEVER, disk_with_slack, fill, get};

pub fn used(disk: &Disk) -> u64 {
    let names = disk.file_names().into_iter().filter(|name| name != "LOCK");
    names.filter_map(|name| disk.read_file(&name)).map(|bytes| bytes.len() as u64).sum()
}

/// As if another program had taken all that is free.
pub fn take_all_space(disk: &Disk) {
    disk.set_capacity(Some(used(disk)));
}

/// A store of `messages` messages of 500 bytes on a disk without a free byte.
fn full(messages: u64, slack: u64) -> (Disk, Clock, Store, Queue, u64) {
    full_with(&options(), messages, slack)
}

fn full_with(
    options: &StoreOptions,
    messages: u64,
    slack: u64,
) -> (Disk, Clock, Store, Queue, u64) {
    let (disk, clock) = (disk_with_slack(slack), Clock::new());
    let store = options.open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..messages {
        queue.insert(payload(n, 500)).unwrap();
        if n % 50 == 49 {
            settle(&store);
        }
    }
    settle(&store);
    take_all_space(&disk);
    let messages = messages + fill(&queue, messages, 500);
    (disk, clock, store, queue, messages)
}

fn refuses(queue: &Queue) {
    let error = queue.insert(payload(0, 500)).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::DiskFull, "{error}");
}

#[test]
fn a_full_disk_refuses_inserts_and_nothing_else() {
    for (messages, slack) in [(1, 0), (100, 0), (1000, 0), (1, NEVER), (1000, NEVER)] {
        let (disk, clock, store, queue, messages) = full(messages, slack);
        let before = queue.stats().unwrap();
        refuses(&queue);
        assert_eq!(queue.stats().unwrap(), before, "nothing was left behind");

        // Ten thousand rounds take many times the segments that are left.
        let first = queue.peek().unwrap().unwrap().id();
        for n in 0..10_000 {
            let delivery = get(&queue);
            match n % 3 {
                0 => delivery.release().unwrap(),
                1 => drop(delivery.fail("try again").unwrap()),
                _ => delivery.release_after(Duration::from_millis(1)).unwrap(),
            }
            clock.advance(Duration::from_secs(120));
            assert_eq!(queue.peek().unwrap().unwrap().id(), first);
            if n % 1000 == 0 {
                refuses(&queue);
            }
        }
        get(&queue).bury("for good").unwrap();
        assert_eq!(queue.stats().unwrap().buried, 1);
        assert_eq!(queue.purge(State::Buried).unwrap(), 1);

        // It closes, opens and dies without a byte free.
        store.close().unwrap();
        let store = options().open_simulated(&disk, &clock).unwrap();
        assert!(store.recovery().clean, "{:?}", store.recovery());
        let disk = disk.kill();
        let store = options().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        assert_eq!(queue.stats().unwrap().ready, messages - 1);
        let mut left: Vec<u64> = Vec::new();
        while let Some(delivery) = queue.try_get().unwrap() {
            left.push(number(delivery.payload()));
            delivery.delete().unwrap();
            settle(&store);
        }
        assert_eq!(left, (1..messages).collect::<Vec<u64>>());

        // What was deleted is free again.
        disk.set_creation_slack(0);
        assert!(fill(&queue, 0, 500) > 0);
    }
}

#[test]
fn compaction_gives_space_back_on_a_full_disk() {
    let (disk, _clock, store, queue, messages) = full(2000, 0);
    let mut kept = Vec::new();
    for n in 0..messages {
        let delivery = get(&queue);
        assert_eq!(number(delivery.payload()), n);
        // No segment dies of it.
        if n % 5 == 0 {
            kept.push(delivery)
        } else {
            delivery.delete().unwrap()
        }
        if n % 100 == 0 {
            settle(&store);
        }
    }
    settle(&store);
    let more = fill(&queue, messages, 500);
    assert!(more > messages / 4, "room for {more} where {messages} were");
    assert!(used(&disk) <= 2 * messages * 540);
    for (n, delivery) in kept.into_iter().enumerate() {
        assert_eq!(number(delivery.payload()), n as u64 * 5, "it keeps its bytes");
        delivery.delete().unwrap();
    }
    for n in messages..messages + more {
        let delivery = get(&queue);
        assert_eq!(number(delivery.payload()), n);
        delivery.delete().unwrap();
    }
}

/// Each copy is made in the file of a segment that was rewritten before.
#[test]
fn compaction_goes_on_where_no_file_can_be_made() {
    let (disk, _clock, store, queue, messages) = full(2000, NEVER);
    let before = used(&disk);
    for n in 0..messages {
        let delivery = get(&queue);
        if n % 8 == 0 {
            delivery.bury("kept").unwrap()
        } else {
            delivery.delete().unwrap()
        }
        if n % 100 == 0 {
            settle(&store);
        }
    }
    settle(&store);
    assert!(used(&disk) < before / 2, "{} of {before} bytes", used(&disk));
    assert_eq!(queue.stats().unwrap().buried, messages.div_ceil(8));
    disk.set_creation_slack(0);
    queue.insert(payload(0, 500)).unwrap();
}

#[test]
fn thousands_in_flight_are_settled_on_a_full_disk() {
    [0, NEVER].into_iter().for_each(thousands_in_flight_are_settled);
}

fn thousands_in_flight_are_settled(slack: u64) {
    let (disk, clock) = (disk_with_slack(slack), Clock::new());
    let store = options().segment_bytes(16 * SEGMENT_BYTES).open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..3_000 {
        queue.insert(payload(n, 400)).unwrap();
    }
    settle(&store);
    take_all_space(&disk);
    let messages = 3_000 + fill(&queue, 3_000, 400);
    let held: Vec<_> = (0..messages).map(|_| get(&queue)).collect();
    assert!(queue.try_get().unwrap().is_none());
    for (n, delivery) in held.into_iter().enumerate() {
        if n % 2 == 0 { delivery.delete().unwrap() } else { delivery.release().unwrap() }
    }
    assert_eq!(queue.stats().unwrap().ready, messages / 2);
    settle(&store);
    assert_eq!(get(&queue).attempt(), 1);
}

/// More delays of their own than the cursors of that size have room for.
#[test]
fn what_cannot_be_settled_for_want_of_space_is_given_back() {
    const MESSAGES: u64 = 60_000;
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for first in (0..MESSAGES).step_by(500) {
        queue.insert_batch((first..first + 500).map(|n| payload(n, 8))).unwrap();
    }
    settle(&store);
    take_all_space(&disk);
    let mut held = queue.get_batch(MESSAGES as usize, Duration::ZERO).unwrap().into_iter();
    let (n, error) = loop {
        let delivery = held.next().expect("some cannot be settled");
        let n = number(delivery.payload());
        if let Err(error) = delivery.release_after(Duration::from_millis(3_600_000 - 7 * n)) {
            break (n, error);
        }
    };
    assert_eq!(error.kind(), &ErrorKind::DiskFull, "{error}");
    // What deletes want is less, and there is none of that at some time either.
    let (batch, error) = loop {
        let batch: Vec<_> = held.by_ref().take(3).collect();
        let numbers: Vec<u64> = batch.iter().map(|delivery| number(delivery.payload())).collect();
        if let Err(error) = queue.delete_batch(batch) {
            break (numbers, error);
        }
    };
    assert_eq!(error.kind(), &ErrorKind::DiskFull, "{error}");
    assert_eq!(queue.stats().unwrap().in_flight, held.len() as u64);
    disk.set_capacity(None);
    let again = queue.get_batch(4, Duration::ZERO).unwrap();
    assert!(again.iter().all(|delivery| delivery.attempt() == 2), "its attempt counts");
    let numbers: Vec<u64> = again.iter().map(|delivery| number(delivery.payload())).collect();
    assert_eq!((numbers[0], &numbers[1..]), (n, &batch[..]));
    queue.delete_batch(again).unwrap();
    held.for_each(|delivery| delivery.delete().unwrap());
    assert_eq!((queue.stats().unwrap().delayed, store.stats().messages), (n, n));
    drop((queue, store));
    let store = options().open_simulated(&disk.kill(), &clock).unwrap();
    assert_eq!(store.stats().messages, n);
}

/// A full disk refuses what is new, and knows what is not. What is held back has room for the keys.
#[test]
fn on_a_full_disk_duplicates_are_known_and_cursors_have_room_for_their_keys() {
    let (mut disk, clock) = (Disk::new(), Clock::new());
    // No checkpoint says how large one becomes before the disk is full.
    let options = options().segment_bytes(16 * SEGMENT_BYTES);
    let mut store = options.open_simulated(&disk, &clock).unwrap();
    let mut queue = store.queue("q").unwrap();
    let long = |n: u64| Message::new(payload(n, 300)).dedup_key(format!("{n:0200}").into_bytes());
    let mut ids: Vec<MessageId> = (0..3000).map(|n| queue.insert(long(n)).unwrap()).collect();
    take_all_space(&disk);
    loop {
        match queue.insert(long(ids.len() as u64)) {
            Ok(id) => ids.push(id),
            Err(error) => break assert_eq!(error.kind(), &ErrorKind::DiskFull, "{error}"),
        }
    }
    for round in 0..3 {
        for (n, id) in (0..).zip(&ids) {
            assert_eq!(queue.insert(long(n)).unwrap(), *id);
        }
        // Settling goes on through many checkpoints.
        for _ in 0..3000 {
            get(&queue).release().unwrap();
        }
        if round == 1 {
            store.close().unwrap();
        }
        disk = disk.kill();
        store = options.open_simulated(&disk, &clock).unwrap();
        queue = store.queue("q").unwrap();
    }
    for _ in &ids {
        get(&queue).delete().unwrap();
    }
    // Once they are forgotten, their space comes back too.
    clock.advance(Duration::from_secs(300));
    settle(&store);
    queue.insert(long(0)).unwrap();
}

#[test]
fn a_dead_letter_that_finds_no_space_is_buried_where_it_is() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let options = QueueOptions::new().dead_letter("dead");
    let queue = store.declare("q", options).unwrap();
    let dead = store.queue("dead").unwrap();
    queue.insert(payload(0, 500)).unwrap();
    queue.insert(payload(1, 500)).unwrap();
    get(&queue).bury("while there is space").unwrap();
    get(&dead).release().unwrap();
    settle(&store);
    take_all_space(&disk);
    fill(&store.queue("other").unwrap(), 0, 500);
    get(&queue).bury("without any").unwrap();
    assert_eq!(queue.stats().unwrap().buried, 1);
}

#[test]
fn a_store_keeps_its_limit_as_if_the_disk_ended_there() {
    let limit = 10 * SEGMENT_BYTES;
    let (disk, clock) = (Disk::new(), Clock::new());
    let most = Arc::new(Mutex::new(0));
    let seen = most.clone();
    disk.on_operation(Some(Box::new(move |disk, _| {
        let mut most = seen.lock().unwrap();
        *most = u64::max(*most, used(disk));
    })));
    let limited = options().max_bytes(limit);
    let store = limited.open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let mut next = 0;
    let mut expected = BTreeSet::new();
    for round in 0..20 {
        let more = fill(&queue, next, 500);
        assert!(more > 0, "round {round}");
        expected.extend(next..next + more);
        next += more;
        // All but some are taken out again.
        let mut kept = Vec::new();
        while let Some(delivery) = queue.try_get().unwrap() {
            let n = number(delivery.payload());
            if n.is_multiple_of(64) && round % 4 < 3 {
                kept.push(delivery);
                continue;
            }
            assert!(expected.remove(&n));
            delivery.delete().unwrap();
            settle(&store);
        }
        kept.into_iter().for_each(|delivery| delivery.release().unwrap());
    }
    assert!(*most.lock().unwrap() <= limit, "{} of {limit} bytes", most.lock().unwrap());
    store.close().unwrap();
    let store = limited.open_simulated(&disk, &clock).unwrap();
    assert_eq!(store.stats().messages, expected.len() as u64);
    let too_small = options().max_bytes(3 * SEGMENT_BYTES).open_simulated(&disk, &clock);
    assert_eq!(too_small.unwrap_err().kind(), &ErrorKind::InvalidArgument);
}

/// Killed, or cut off from power, after each operation on a full disk, the store opens and still has what it must.
#[test]
fn a_store_on_a_full_disk_survives_being_cut_off_anywhere() {
    for slack in [0, NEVER] {
        survives_being_cut_off_anywhere(options(), slack, |disk, _| disk.kill());
        let synced = options().durability(Durability::Sync).delete_durability(Durability::Sync);
        survives_being_cut_off_anywhere(synced, slack, Disk::power_cut);
    }
}

fn survives_being_cut_off_anywhere(
    options: StoreOptions,
    slack: u64,
    cut: impl Fn(&Disk, u64) -> Disk + Send + 'static,
) {
    let (disk, clock, store, queue, messages) = full_with(&options, 600, slack);
    let deleted = Arc::new(Mutex::new(BTreeSet::new()));
    let forks = Arc::new(Mutex::new(Vec::new()));
    let (sink, seen) = (forks.clone(), deleted.clone());
    disk.on_operation(Some(Box::new(move |disk, n| {
        if n % 9 == 0 {
            let deleted: BTreeSet<u64> = seen.lock().unwrap().clone();
            sink.lock().unwrap().push((cut(disk, n), deleted));
        }
    })));
    let mut checked = 0;
    for n in 0..messages {
        let delivery = get(&queue);
        let number = number(delivery.payload());
        if n % 4 == 3 {
            delivery.release().unwrap();
        } else {
            delivery.delete().unwrap();
            deleted.lock().unwrap().insert(number);
        }
        if n % 20 == 0 {
            settle(&store);
        }
        for (killed, deleted) in std::mem::take(&mut *forks.lock().unwrap()) {
            check(&options, &killed, &clock, messages, &deleted);
            checked += 1;
        }
    }
    disk.on_operation(None);
    println!("{checked} states");
    assert!(checked > 200, "{checked}");
}

/// A file that was a segment before it became another one.
fn no_segment_is_found_under_another_name(disk: &Disk) {
    const NUMBER_AT: usize = 32;
    for name in disk.file_names() {
        let own = name.strip_prefix("quarantine/").unwrap_or(&name).strip_suffix(".seg");
        let Some(own) = own.and_then(|own| own.parse::<u64>().ok()) else { continue };
        let bytes = disk.read_file(&name).unwrap();
        let copies = [0, 2048].map(|at| bytes.get(at..at + NUMBER_AT + 8).unwrap_or_default());
        for header in copies.iter().filter(|header| header.starts_with(b"MPONDSEG")) {
            let number = header[NUMBER_AT..].try_into().map(u64::from_le_bytes).unwrap();
            assert_eq!(number, own, "{name} holds what another segment was");
        }
    }
}

fn check(
    options: &StoreOptions,
    disk: &Disk,
    clock: &Clock,
    messages: u64,
    deleted: &BTreeSet<u64>,
) {
    let store = options.open_simulated(disk, clock).unwrap();
    let recovery = store.recovery();
    assert!(recovery.damaged.is_empty() && recovery.bad_cursors.is_empty(), "{recovery:?}");
    no_segment_is_found_under_another_name(disk);
    let queue = store.queue("q").unwrap();
    let mut left = BTreeSet::new();
    while let Some(delivery) = queue.try_get().unwrap() {
        assert!(left.insert(number(delivery.payload())));
        delivery.delete().unwrap();
    }
    assert!(left.is_disjoint(deleted), "deleted ones are back");
    // The one that was being deleted may be gone.
    let missing = messages as usize - left.len() - deleted.len();
    assert!(missing <= 1, "{missing} are missing");
    settle(&store);
    disk.set_creation_slack(0);
    queue.insert("there is space again").unwrap();
}
