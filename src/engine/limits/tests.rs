//! What happens between an insert's look for room and its append.

use std::time::Duration;

use super::super::fixture;
use super::super::lane::Head;
use super::*;
use crate::clock::Clock;
use crate::format::position::Position;
use crate::format::record::insert::InsertHead;
use crate::log::Lane;
use crate::message::Message;
use crate::options::Durability;
use crate::queue::Queue;
use crate::storage::sim::Disk;
use crate::store::Store;

fn open(disk: &Disk, durability: Durability) -> Store {
    fixture::open(disk, &Clock::new(), durability)
}

fn drops() -> QueueOptions {
    QueueOptions::new().at_limit(AtLimit::DropOldest)
}

/// Appends a message as an insert does that has not synced it yet, and returns where it ends.
fn append_unsynced(engine: &Engine, queue: &Arc<QueueShared>, payload: &[u8]) -> Position {
    let mut head = Vec::new();
    let info = InsertHead::plain(1, queue.id, 0).encode_head(&mut head);
    let lanes = [Lane { queue: queue.id, priority: 0 }];
    let run = [Draft::insert(info, &head, payload, &lanes)];
    loop {
        let room = engine.room(engine.lock_state(), queue, Need::of(&run), None).unwrap();
        let Some((mut state, victims)) = room else { continue };
        let appended = engine.append_with_victims(queue, &run, &victims, None).unwrap();
        queue_mut(&mut state, queue).unwrap().note_usage(&run);
        return appended.end;
    }
}

#[test]
fn what_an_insert_or_a_purge_has_looked_at_is_not_got_before_it_is_durable() {
    let disk = Disk::new();
    let store = open(&disk, Durability::Sync);
    let queue = store.declare("q", drops().max_bytes(1000)).unwrap();
    let engine = store.engine();
    let shared = engine.find_queue("q").unwrap().unwrap();
    let end = append_unsynced(engine, &shared, &[0; 900]);
    assert!(queue.try_get().unwrap().is_none());
    let need = Need { messages: 1, bytes: 900 };
    let found = engine.room(engine.lock_state(), &shared, need, None).unwrap();
    assert!(found.is_none(), "what would have to be deleted is looked at first");
    assert!(engine.log.synced_through() < end);
    assert!(queue.try_get().unwrap().is_none());
    store.sync().unwrap();
    queue.try_get().unwrap().unwrap().delete().unwrap();

    let other = store.queue("other").unwrap();
    let shared = engine.find_queue("other").unwrap().unwrap();
    for _ in 0..3 {
        append_unsynced(engine, &shared, b"payload");
    }
    {
        let mut state = engine.lock_state();
        let everything = Position::from_u64(u64::MAX);
        let head = state.lane_head(shared.id, 0, 0, &engine.log, everything);
        assert!(matches!(head, Some((0, Head::Message { .. }))));
    }
    assert!(other.try_get().unwrap().is_none());
    assert!(other.get_batch(9, Duration::ZERO).unwrap().is_empty());
    store.sync().unwrap();
    assert_eq!(other.get_batch(9, Duration::ZERO).unwrap().len(), 3);
}

/// A queue with one message and no room for another, and a dead letter queue that is full.
fn full(store: &Store) -> Queue {
    let dead = QueueOptions::new().max_messages(1).at_limit(AtLimit::Reject);
    store.declare("dead", dead).unwrap().insert("full").unwrap();
    let queue = store.declare("q", drops().max_messages(1).dead_letter("dead")).unwrap();
    queue.insert("message").unwrap();
    queue
}

#[test]
fn what_waits_for_its_retry_is_not_made_ready_by_an_insert_that_finds_no_room() {
    let disk = Disk::new();
    let store = open(&disk, Durability::Process);
    let queue = full(&store);
    let engine = store.engine();
    let shared = engine.find_queue("q").unwrap().unwrap();
    let (id, priority, untouched) = {
        let mut state = engine.lock_state();
        let need = Need { messages: 1, bytes: 100 };
        let found = engine.find_room(&mut state, &shared, need).unwrap();
        let Err(NoRoom::Move(id, priority)) = found else { panic!("it has to be moved") };
        (id, priority, touch(&mut state, &shared, id, priority).unwrap())
    };
    // Somebody gets it before it is moved.
    let delivery = queue.try_get().unwrap().unwrap();
    delivery.fail_after("not now", Duration::from_secs(60)).unwrap();
    assert!(queue.try_get().unwrap().is_none());
    engine.drop_by_moving(&shared, id, priority, untouched).unwrap();
    assert!(queue.try_get().unwrap().is_none());
    assert_eq!(queue.stats().unwrap().delayed, 1);
    let refused = queue.insert("another").unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::QueueFull);
    assert_eq!(queue.stats().unwrap().delayed, 1);
}

#[test]
fn a_damaged_message_does_not_keep_a_queue_full() {
    let disk = Disk::new();
    let store = open(&disk, Durability::Process);
    let queue = store.declare("q", drops().max_messages(2).dead_letter("dead")).unwrap();
    queue.insert("to be damaged").unwrap();
    queue.insert("second").unwrap();
    // Its segment is sealed.
    for _ in 0..5 {
        store.queue("filler").unwrap().insert(vec![0; 20_000]).unwrap();
    }
    drop(queue);
    store.close().unwrap();
    let disk = disk.kill();
    for name in disk.file_names().into_iter().filter(|name| name.ends_with(".seg")) {
        let mut bytes = disk.read_file(&name).unwrap();
        let found = bytes.windows(13).position(|window| window == b"to be damaged");
        if let Some(at) = found {
            bytes[at] ^= 1;
            disk.write_file(&name, bytes);
        }
    }
    let store = open(&disk, Durability::Process);
    let queue = store.queue("q").unwrap();
    queue.insert(Message::new("third")).unwrap();
    queue.insert(Message::new("fourth")).unwrap();
    assert_eq!(store.stats().damaged_messages, 1);
    assert_eq!(store.find("dead").unwrap().unwrap().stats().unwrap().ready, 1);
    let left = queue.get_batch(9, Duration::ZERO).unwrap();
    let payloads: Vec<_> = left.iter().map(|delivery| delivery.payload()).collect();
    assert_eq!(payloads, [&b"third"[..], b"fourth"]);
}
